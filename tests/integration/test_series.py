"""Visits that come again and again."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr
from sqlalchemy import text

from app import guard
from app.actor import service
from app.errors import Conflict, Forbidden, IllegalTransition, Invalid, SlotTaken
from app.services import scheduling, series
from app.services.scheduling import Asked
from app.services.series import Rule
from models.base import now
from models.scheduling import Appointment, AppointmentSeries, ScheduleException, VisitType, WorkingHours
from tests import factories
from tests.factories import Hospital

MADRID = ZoneInfo("Europe/Madrid")


@pytest.fixture(scope="module")
def kind(database: Any) -> int:
    """A kind of visit the doctor does round the clock at the first branch."""
    hospital: Hospital = database.hospital
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        visit = VisitType(name="Dressing", minutes=30, needs_room=False)
        session.add(visit)
        for weekday in range(1, 8):
            hours = WorkingHours(
                practitioner_id=hospital.staff["doctor"],
                branch_id=hospital.branches[0],
                weekday=weekday,
                starts=time(0),
                ends=time(23, 59),
                valid_from=date(2020, 1, 1),
            )
            session.add(hours)
        session.flush()
        return visit.id


@pytest.fixture(autouse=True)
def nothing_is_booked(database: Any) -> None:
    with guard.engine().begin() as connection:
        connection.execute(text("UPDATE appointment SET status = 'cancelled' WHERE status = 'booked'"))


def last_sunday(year: int, month: int) -> date:
    day = date(year, month, 31)
    return day - timedelta(days=day.isoweekday() % 7)


def wish(hospital: Hospital, kind: int, wall: datetime, patient: int = 2) -> Asked:
    return Asked(
        hospital.patients[patient],
        kind,
        hospital.staff["doctor"],
        wall.replace(tzinfo=MADRID),
        branch_id=hospital.branches[0],
    )


def planned(hospital: Hospital, asked: Asked, rule: Rule) -> list[series.Occurrence]:
    with factories.acting(hospital.accounts["reception"]):
        return series.plan(guard.session(), asked, rule)


def booked(hospital: Hospital, asked: Asked, rule: Rule, skip: tuple[int, ...] = ()) -> int:
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        return series.book_series(session, asked, rule, skip=skip).id


def visits(number: int) -> list[Any]:
    with guard.engine().connect() as connection:
        query = text("SELECT * FROM appointment WHERE series_id = :number AND status = 'booked' ORDER BY start_at")
        return list(connection.execute(query, {"number": number}).mappings())


def walls(*numbers: int) -> list[datetime]:
    found = [each["start_at"].astimezone(MADRID).replace(tzinfo=None) for number in numbers for each in visits(number)]
    return sorted(found)


def all_of(number: int) -> list[int]:
    """A series with those that were split from it."""
    patient = {"patient": factories.stored(AppointmentSeries, number)["patient_id"], "number": number}
    query = "SELECT id FROM appointment_series WHERE patient_id = :patient AND id >= :number ORDER BY id"
    with guard.engine().connect() as connection:
        return list(connection.execute(text(query), patient).scalars())


def promised(number: int) -> list[datetime]:
    """The dates that the rule of a series amounts to."""
    kept = factories.stored(AppointmentSeries, number)
    return list(rrulestr(kept["rule"], dtstart=kept["starts_on"]))


def change_of_clocks() -> tuple[date, date]:
    """The next days on which clocks in Madrid go forward and back."""
    year = now().year + 1
    return last_sunday(year, 3), last_sunday(year, 10)


def test_nine_o_clock_stays_nine_o_clock(hospital: Hospital, kind: int) -> None:
    spring, _ = change_of_clocks()
    first = datetime.combine(spring - timedelta(days=10), time(9))
    number = booked(hospital, wish(hospital, kind, first), Rule("weekly", count=4))
    assert walls(number) == [first + timedelta(weeks=nth) for nth in range(4)]
    hours = [each["start_at"].astimezone(UTC).hour for each in visits(number)]
    assert hours == [8, 8, 7, 7]


def test_the_hour_that_is_left_out_is_reported_and_can_be_skipped(hospital: Hospital, kind: int) -> None:
    spring, _ = change_of_clocks()
    asked, rule = (
        wish(hospital, kind, datetime.combine(spring - timedelta(days=1), time(2, 30))),
        Rule("daily", count=3),
    )
    found = planned(hospital, asked, rule)
    assert [bool(each.obstacle) for each in found] == [False, True, False]
    assert found[1].start_at is None
    assert "does not exist" in found[1].obstacle
    with pytest.raises(Invalid):
        booked(hospital, asked, rule)
    assert len(walls(booked(hospital, asked, rule, skip=(1,)))) == 2


def test_the_hour_that_comes_twice_is_the_first(hospital: Hospital, kind: int) -> None:
    _, autumn = change_of_clocks()
    number = booked(
        hospital,
        wish(hospital, kind, datetime.combine(autumn - timedelta(days=1), time(2, 30))),
        Rule("daily", count=2),
    )
    assert [each["start_at"].astimezone(UTC).hour for each in visits(number)] == [0, 0]


def test_what_stands_in_the_way_is_told_before_anything_is_written(hospital: Hospital, kind: int) -> None:
    first = datetime.combine(now().date() + timedelta(days=30), time(10))
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        scheduling.book(session, wish(hospital, kind, first + timedelta(weeks=1), patient=3))
    asked, rule = wish(hospital, kind, first), Rule("weekly", count=3)
    found = planned(hospital, asked, rule)
    assert [[taken.kind for taken in each.taken] for each in found] == [[], ["practitioner"], []]
    with guard.engine().connect() as connection:
        assert (
            connection.execute(
                text("SELECT count(*) FROM appointment_series WHERE starts_on = :at"), {"at": first}
            ).scalar()
            == 0
        )
    with pytest.raises(SlotTaken):
        booked(hospital, asked, rule)
    with guard.engine().connect() as connection:
        assert (
            connection.execute(
                text("SELECT count(*) FROM appointment_series WHERE starts_on = :at"), {"at": first}
            ).scalar()
            == 0
        )
    assert walls(booked(hospital, asked, rule, skip=(1,))) == [first, first + timedelta(weeks=2)]


def test_days_of_the_week_until_a_day(hospital: Hospital, kind: int) -> None:
    first = datetime.combine(now().date() + timedelta(days=60), time(11))
    first += timedelta(days=-first.weekday())
    rule = Rule("weekly", weekdays=(1, 4), until=(first + timedelta(days=10)).date())
    number = booked(hospital, wish(hospital, kind, first), rule)
    assert walls(number) == [first + timedelta(days=days) for days in (0, 3, 7, 10)]


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (Rule("yearly", count=2), "frequency"),
        (Rule("daily", interval=0, count=2), "interval"),
        (Rule("daily"), "count"),
        (Rule("daily", count=105), "count"),
        (Rule("daily", count=2, until=date(2090, 1, 1)), "count"),
        (Rule("daily", until=date(2020, 1, 1)), "until"),
        (Rule("daily", until=date(2090, 1, 1)), "until"),
        (Rule("monthly", interval=52, count=10), "count"),
        (Rule("daily", weekdays=(1,), count=2), "weekdays"),
        (Rule("weekly", weekdays=(8,), count=2), "weekdays"),
    ],
)
def test_bad_rules_are_refused_by_name(hospital: Hospital, kind: int, rule: Rule, field: str) -> None:
    asked = wish(hospital, kind, datetime.combine(now().date() + timedelta(days=30), time(10)))
    with pytest.raises(Invalid) as refusal:
        planned(hospital, asked, rule)
    assert refusal.value.field == field


@pytest.mark.parametrize(("scope", "moved"), [("one", [1]), ("following", [1, 2]), ("all", [0, 1, 2])])
def test_one_or_the_following_or_all_are_moved(hospital: Hospital, kind: int, scope: Any, moved: list[int]) -> None:
    """By a day and an hour; a week's step would go where its neighbour is, which makes room first."""
    first = datetime.combine(now().date() + timedelta(days=40), time(10))
    number = booked(hospital, wish(hospital, kind, first), Rule("weekly", count=3))
    second = visits(number)[1]["id"]
    to = first + timedelta(days=8, hours=1)
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        series.change(session, second, scope, wall=to)
    wanted = [
        first + timedelta(weeks=nth) + (timedelta(days=1, hours=1) if nth in moved else timedelta()) for nth in range(3)
    ]
    assert walls(*all_of(number)) == wanted
    if scope == "one":  # it is an exception of its series, whose rule stands
        assert promised(number) == [first + timedelta(weeks=nth) for nth in range(3)]
        return
    numbers = all_of(number)
    assert len(numbers) == (1 if scope == "all" else 2)
    assert [promised(each) for each in numbers] == [walls(each) for each in numbers]
    assert factories.stored(AppointmentSeries, numbers[-1])["rule"] == f"FREQ=WEEKLY;COUNT={len(moved)}"


@pytest.mark.parametrize(
    ("rule", "days", "told"),
    [
        (Rule("weekly", weekdays=(1, 4), count=5), 2, "FREQ=WEEKLY;BYDAY=WE,SA;WKST=WE;COUNT=5"),
        (Rule("weekly", interval=2, weekdays=(1, 4), count=5), 4, "FREQ=WEEKLY;INTERVAL=2;BYDAY=FR,MO;WKST=FR;COUNT=5"),
        (Rule("weekly", interval=2, weekdays=(1, 4), count=5), -3, None),
        (Rule("daily", interval=3, count=4), 1, "FREQ=DAILY;INTERVAL=3;COUNT=4"),
        (Rule("monthly", count=3), 0, "FREQ=MONTHLY;COUNT=3"),
    ],
)
def test_the_rule_says_where_a_series_went(
    hospital: Hospital, kind: int, rule: Rule, days: int, told: str | None
) -> None:
    first = soon(40)
    first += timedelta(days=-first.weekday())
    number = booked(hospital, wish(hospital, kind, first), rule)
    before = walls(number)
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        series.change(session, visits(number)[1]["id"], "all", wall=before[1] + timedelta(days=days, hours=2))
    assert walls(number) == [each + timedelta(days=days, hours=2) for each in before]
    assert promised(number) == walls(number)
    if told:
        assert factories.stored(AppointmentSeries, number)["rule"] == told


def test_what_no_rule_says_is_a_list_of_dates(hospital: Hospital, kind: int) -> None:
    """The last of a month moved by a day is the first of the next, whatever its length."""
    first = datetime.combine(date(now().year + 1, 1, 31), time(10))
    number = booked(hospital, wish(hospital, kind, first), Rule("monthly", count=3))
    assert walls(number) == [first, first.replace(month=3), first.replace(month=5)]
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        series.change(session, visits(number)[0]["id"], "all", wall=first + timedelta(days=1))
    assert walls(number) == [first.replace(month=month, day=1) for month in (2, 4, 6)]
    assert promised(number) == walls(number)
    assert factories.stored(AppointmentSeries, number)["rule"].startswith("RDATE:")
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        series.change(session, visits(number)[1]["id"], "following", wall=walls(number)[1] + timedelta(hours=1))
    assert [promised(each) for each in all_of(number)[-2:]] == [walls(each) for each in all_of(number)[-2:]]
    assert len(promised(number)) == 1


def test_what_was_left_out_or_moved_alone_does_not_make_the_rules_lie(hospital: Hospital, kind: int) -> None:
    first = soon(40)
    number = booked(hospital, wish(hospital, kind, first), Rule("weekly", count=6), skip=(1,))
    alone = visits(number)[2]["id"]
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        series.change(session, alone, "one", wall=walls(number)[2] + timedelta(days=1))
        stays = visits(number)[3]["id"]
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        series.change(
            session, visits(number)[1]["id"], "following", wall=walls(number)[1] + timedelta(days=2), skip=[stays]
        )
    old, new = all_of(number)[0], all_of(number)[-1]
    assert walls(old) == [first, first + timedelta(weeks=4)]
    assert walls(new) == [first + timedelta(days=days) for days in (16, 24, 37)]
    for each in (old, new):
        assert promised(each) == walls(each)


def test_two_of_a_series_never_come_to_the_same_time(hospital: Hospital, kind: int) -> None:
    """One was moved alone, to another hour of the day of the next one; moved together they would meet."""
    first = soon(40)
    number = booked(hospital, wish(hospital, kind, first), Rule("daily", count=3))
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        series.change(session, visits(number)[0]["id"], "one", wall=first + timedelta(days=1, hours=-2))
    before = walls(number)
    with factories.acting(hospital.accounts["reception"]):
        found = series.plan_change(guard.session(), visits(number)[0]["id"], "all", wall=first + timedelta(days=5))
        assert [bool(each.occurrence.obstacle) for each in found] == [False, True, False]
        with pytest.raises(SlotTaken), guard.unit_of_work() as session:
            series.change(session, visits(number)[0]["id"], "all", wall=first + timedelta(days=5))
    assert walls(number) == before


def test_of_another_version_nothing_is_moved_or_called_off(hospital: Hospital, kind: int) -> None:
    number = booked(hospital, wish(hospital, kind, soon()), Rule("weekly", count=3))
    before, visit = walls(number), visits(number)[1]
    with factories.acting(hospital.accounts["reception"]):
        for refused in (
            lambda s: series.change(s, visit["id"], "all", wall=soon(60), version=visit["version"] + 1),
            lambda s: series.call_off(s, visit["id"], "all", reason="pat", version=visit["version"] + 1),
            lambda s: series.change(s, visit["id"], "all", wall=soon(60), skip=[v["id"] for v in visits(number)]),
        ):
            with pytest.raises((IllegalTransition, Invalid)), guard.unit_of_work() as session:
                refused(session)
    assert walls(number) == before
    assert promised(number) == before


def test_a_daily_series_moves_into_its_own_steps(hospital: Hospital, kind: int) -> None:
    first = datetime.combine(now().date() + timedelta(days=40), time(10))
    number = booked(hospital, wish(hospital, kind, first), Rule("daily", count=4))
    for days in (1, -2):
        before = walls(number)
        with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
            found = series.plan_change(session, visits(number)[0]["id"], "all", wall=before[0] + timedelta(days=days))
            assert [each.occurrence.obstacle for each in found] == [""] * 4
            series.change(session, visits(number)[0]["id"], "all", wall=before[0] + timedelta(days=days))
        assert walls(number) == [each + timedelta(days=days) for each in before]


def test_a_change_that_meets_somebody_changes_nothing(hospital: Hospital, kind: int) -> None:
    first = datetime.combine(now().date() + timedelta(days=40), time(10))
    number = booked(hospital, wish(hospital, kind, first), Rule("weekly", count=3))
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        scheduling.book(session, wish(hospital, kind, first + timedelta(weeks=2, hours=3), patient=3))
    before = walls(number)
    with (
        pytest.raises(SlotTaken),
        factories.acting(hospital.accounts["reception"]),
        guard.unit_of_work() as session,
    ):
        series.change(session, visits(number)[0]["id"], "all", wall=first + timedelta(hours=3))
    assert walls(number) == before


def test_the_following_are_called_off(hospital: Hospital, kind: int) -> None:
    first = datetime.combine(now().date() + timedelta(days=40), time(10))
    number = booked(hospital, wish(hospital, kind, first), Rule("weekly", count=3))
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        series.call_off(session, visits(number)[1]["id"], "following", reason="prov")
    assert walls(number) == promised(number) == [first]


def test_a_time_without_its_offset_is_refused(hospital: Hospital, kind: int) -> None:
    asked = replace(wish(hospital, kind, soon()), start_at=soon())
    for what in (planned, booked):
        with pytest.raises(Invalid) as refusal:
            what(hospital, asked, Rule("daily", count=2))
        assert refusal.value.field == "start"


def soon(days: int = 40) -> datetime:
    """Ten o'clock, naive."""
    return datetime.combine(now().date() + timedelta(days=days), time(10))


def test_outside_hours_and_other_branches_are_told_too(hospital: Hospital, kind: int) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        leave = ScheduleException(kind="leave", practitioner_id=hospital.staff["doctor"])
        leave.starts_at = (soon() + timedelta(days=7)).replace(tzinfo=MADRID)
        leave.ends_at = leave.starts_at + timedelta(hours=1)
        session.add(leave)
        session.flush()
        number = leave.id
    found = planned(hospital, wish(hospital, kind, soon()), Rule("weekly", count=3))
    assert [each.obstacle for each in found] == ["", "The doctor does not work at that time.", ""]
    nurse = replace(
        wish(hospital, kind, soon()), practitioner_id=hospital.staff["nurse"], branch_id=hospital.branches[1]
    )
    found = planned(hospital, nurse, Rule("weekly", count=2))
    assert [each.obstacle for each in found] == ["This doctor does not work at this branch."] * 2
    with guard.engine().begin() as connection:
        connection.execute(text("DELETE FROM schedule_exception WHERE id = :id"), {"id": number})


def test_what_is_kept_is_the_rule_as_calendars_write_it(hospital: Hospital, kind: int) -> None:
    first = soon()
    number = booked(hospital, wish(hospital, kind, first), Rule("weekly", interval=2, weekdays=(1, 4), count=4))
    kept = factories.stored(AppointmentSeries, number)
    assert kept["rule"] == "FREQ=WEEKLY;INTERVAL=2;COUNT=4;BYDAY=MO,TH"
    assert (kept["time_zone"], kept["starts_on"]) == ("Europe/Madrid", first)
    assert list(rrulestr(kept["rule"], dtstart=kept["starts_on"])) == walls(number)
    assert len({each["uid"] for each in visits(number)}) == 4


def test_nobody_looks_ahead_or_changes_who_may_not(hospital: Hospital, kind: int) -> None:
    number = booked(hospital, wish(hospital, kind, soon()), Rule("weekly", count=2))
    before, visit = walls(number), visits(number)[0]["id"]
    with factories.acting(hospital.accounts["lab"]):
        for refused in (
            lambda s: series.plan(s, wish(hospital, kind, soon(50)), Rule("daily", count=2)),
            lambda s: series.book_series(s, wish(hospital, kind, soon(50)), Rule("daily", count=2)),
            lambda s: series.plan_change(s, visit, "all", wall=soon(41)),
            lambda s: series.change(s, visit, "all", wall=soon(41)),
            lambda s: series.call_off(s, visit, "all", reason="pat"),
        ):
            with pytest.raises(Forbidden), guard.unit_of_work() as session:
                refused(session)
    assert walls(number) == before


def test_what_has_been_stays_as_it_was(hospital: Hospital, kind: int) -> None:
    number = booked(hospital, wish(hospital, kind, soon()), Rule("weekly", count=4))
    first, second, *rest = visits(number)
    with guard.engine().begin() as connection:
        connection.execute(text("UPDATE appointment SET status = 'noshow' WHERE id = :id"), {"id": first["id"]})
        past = {"id": second["id"], "at": now().replace(second=0, microsecond=0) - timedelta(days=7)}
        connection.execute(
            text("UPDATE appointment SET start_at = :at, end_at = :at + interval '30 minutes' WHERE id = :id"), past
        )
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        gone = series.call_off(session, rest[0]["id"], "all", reason="pat")
    assert {each.id for each in gone} == {each["id"] for each in rest}
    assert factories.stored(Appointment, first["id"])["status"] == "noshow"
    assert factories.stored(Appointment, second["id"])["status"] == "booked"
    assert promised(number) == [past["at"].astimezone(MADRID).replace(tzinfo=None), soon()]
    with (
        factories.acting(hospital.accounts["reception"]),
        pytest.raises(IllegalTransition),
        guard.unit_of_work() as session,
    ):
        series.change(session, second["id"], "all", wall=soon(42))


def test_a_series_goes_to_somebody_else_at_its_own_time(hospital: Hospital, kind: int) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for weekday in range(1, 8):
            factories.work(session, hospital.staff["nurse"], hospital.branches[0], weekday, time(0), time(23, 59))
    number = booked(hospital, wish(hospital, kind, soon()), Rule("weekly", count=3))
    before, middle = visits(number), visits(number)[1]
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        series.change(
            session, middle["id"], "following", wall=walls(number)[1], practitioner_id=hospital.staff["nurse"]
        )
    after = [each for found in all_of(number) for each in visits(found)]
    assert [each["practitioner_id"] == hospital.staff["nurse"] for each in after] == [False, True, True]
    assert [each["start_at"] for each in after] == [each["start_at"] for each in before]
    assert [each["moved_from_id"] for each in after] == [None, before[1]["id"], before[2]["id"]]
    assert [each["uid"] for each in after] == [each["uid"] for each in before]


def test_a_series_is_not_moved_into_the_hour_that_is_left_out(hospital: Hospital, kind: int) -> None:
    spring, _ = change_of_clocks()
    first = datetime.combine(spring - timedelta(days=7), time(10))
    number = booked(hospital, wish(hospital, kind, first), Rule("weekly", count=3))
    before, visit, to = walls(number), visits(number)[0]["id"], first.replace(hour=2, minute=30)
    with factories.acting(hospital.accounts["reception"]):
        found = series.plan_change(guard.session(), visit, "all", wall=to)
        assert [each.occurrence.start_at is None for each in found] == [False, True, False]
        with pytest.raises(Invalid, match="does not exist"), guard.unit_of_work() as session:
            series.change(session, visit, "all", wall=to)
    assert walls(number) == before


def at_once(many: int, what: Any) -> list[Any]:
    """What so many threads get that begin at the same moment, or the error itself."""
    ready, answers = threading.Barrier(many), [None] * many

    def run(nth: int) -> None:
        ready.wait()
        try:
            answers[nth] = what(nth)
        except Exception as error:  # noqa: BLE001  (whatever it is, the test looks at it)
            answers[nth] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(nth,)) for nth in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_of_series_that_meet_one_is_booked_and_none_waits_for_ever(hospital: Hospital, kind: int) -> None:
    """Eight at once, each beginning on another day, so that they come to the same days in different orders."""
    rule = Rule("daily", count=10)

    def book(nth: int) -> int:
        return booked(hospital, wish(hospital, kind, soon(60 + nth), patient=2 + nth), rule)

    answers = at_once(8, book)
    assert Counter(type(each) for each in answers) == {int: 1, SlotTaken: 7}
    (number,) = (each for each in answers if isinstance(each, int))
    assert len(visits(number)) == 10


def test_changes_of_one_series_at_once_come_to_an_end(hospital: Hospital, kind: int) -> None:
    number = booked(hospital, wish(hospital, kind, soon(80)), Rule("daily", count=6))
    ids = [each["id"] for each in visits(number)]

    def change(nth: int) -> int:
        with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
            if nth % 2:
                return scheduling.move(session, ids[5 - nth // 2], start_at=at(soon(120 + nth))).id
            return len(series.change(session, ids[nth // 2], "all", wall=soon(100 + nth)))

    answers = at_once(6, change)
    assert {type(each) for each in answers} <= {int, IllegalTransition, SlotTaken, Conflict}
    assert any(isinstance(each, int) for each in answers)
    assert len(walls(*all_of(number))) == 6


def at(wall: datetime) -> datetime:
    return wall.replace(tzinfo=MADRID)
