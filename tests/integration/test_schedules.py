"""What visits are made of: kinds, equipment, weekly hours, leave and holidays, and what is refused of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select

from app import guard
from app.actor import service
from app.errors import Conflict, Forbidden, Invalid
from app.services import free_times, schedules
from app.services.free_times import Wanted
from app.services.schedules import Stretch
from models.base import now
from models.organization import Branch, Practitioner, Room
from models.scheduling import Appointment, Equipment, ScheduleException, VisitType, WorkingHours
from tests import factories
from tests.conftest import Browser
from tests.factories import Hospital

ClientAs = Callable[[str], Browser]
MADRID = ZoneInfo("Europe/Madrid")
pytestmark = pytest.mark.usefixtures("savepoint")


def today() -> date:
    return now().astimezone(MADRID).date()


def monday(weeks: int = 1) -> date:
    """A Monday so many weeks ahead."""
    return today() + timedelta(days=7 * weeks - today().weekday())


def week(*hours: tuple[int, int, int]) -> list[Stretch]:
    return [Stretch(day, time(opens), time(closes)) for day, opens, closes in hours]


def working(hospital: Hospital, hours: list[Stretch], valid_from: date, username: str = "doctor") -> None:
    with factories.acting(hospital.accounts["admin"]), guard.unit_of_work() as session:
        asked = {"practitioner_id": hospital.staff[username], "branch_id": hospital.branches[0]}
        schedules.set_week(session, **asked, week=hours, valid_from=valid_from)


def rows(hospital: Hospital) -> list[tuple[int, time, time, date, date | None]]:
    with guard.acting_as(service("demo")):
        mine = select(WorkingHours).where(WorkingHours.practitioner_id == hospital.staff["doctor"])
        found = guard.session().scalars(mine.order_by(WorkingHours.valid_from, WorkingHours.weekday)).all()
        return [(row.weekday, row.starts, row.ends, row.valid_from, row.valid_until) for row in found]


def works(hospital: Hospital, opens: datetime, minutes: int = 30) -> bool:
    wanted = Wanted(hospital.staff["doctor"], None, None, (), opens, opens + timedelta(minutes=minutes))
    with guard.acting_as(service("demo")):
        return free_times.works_then(guard.session(), wanted, hospital.branches[0])


def at(day: date, hour: int, minute: int = 0) -> datetime:
    return datetime.combine(day, time(hour, minute), tzinfo=MADRID)


def booked(hospital: Hospital, start: datetime, minutes: int = 30) -> int:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        kind = schedules.offer_kind(session, name=f"Visit {start:%j%H%M}", minutes=minutes, needs_room=False)
        visit = Appointment(
            patient_id=hospital.patients[0],
            branch_id=hospital.branches[0],
            visit_type_id=kind.id,
            practitioner_id=hospital.staff["doctor"],
            start_at=start,
            end_at=start + timedelta(minutes=minutes),
        )
        session.add(visit)
        session.flush()
        return int(visit.id)


# ---- kinds and equipment -----------------------------------------------------------------------------------------


def test_a_kind_of_visit_says_who_does_it_where_and_with_what(hospital: Hospital) -> None:
    with factories.acting(hospital.accounts["admin"]), guard.unit_of_work() as session:
        branch = session.get(Branch, hospital.branches[0])
        room = session.scalars(select(Room).where(Room.branch_id == hospital.branches[0])).first()
        doctor = session.get(Practitioner, hospital.staff["doctor"])
        assert room is not None
        assert doctor is not None
        scanner = schedules.install(session, branch=branch, name=" Scanner  A ", kind="Ultrasound")
        kind = schedules.offer_kind(
            session, name="Ultrasound", minutes=30, buffer_after=10, practitioners=[doctor], rooms=[room],
            equipment=[scanner],
        )  # fmt: skip
        assert scanner.name == "Scanner A"
        schedules.change_kind(session, kind, name="Ultrasound, long", minutes=45, practitioners=[doctor])
        number = kind.id
    stored = with_all(VisitType, number)
    assert (stored.name, stored.minutes, stored.buffer_after) == ("Ultrasound, long", 45, 0)
    assert [person.id for person in stored.practitioners] == [hospital.staff["doctor"]]
    assert stored.rooms == stored.equipment == []


def with_all(model: Any, key: int) -> Any:
    """A row with its relations, read by somebody who may."""
    from sqlalchemy.orm import selectinload

    with guard.acting_as(service("demo")):
        options = [selectinload(getattr(model, name)) for name in ("practitioners", "rooms", "equipment")]
        return guard.session().scalars(select(model).where(model.id == key).options(*options)).one()


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("name", {"name": "   "}),
        ("name", {"name": "x" * 81}),
        ("minutes", {"minutes": 4}),
        ("minutes", {"minutes": 721}),
        ("minutes", {"minutes": None}),
        ("buffer_before", {"buffer_before": -1}),
        ("buffer_after", {"buffer_after": 121}),
    ],
)
def test_a_kind_that_cannot_be_is_refused(field: str, told: dict[str, Any], hospital: Hospital) -> None:
    with factories.acting(hospital.accounts["admin"]):
        with pytest.raises(Invalid) as refusal, guard.unit_of_work() as session:
            schedules.offer_kind(session, **{"name": "Check", "minutes": 20, **told})
        assert refusal.value.field == field
        assert guard.session().scalars(select(VisitType)).all() == []


def test_two_kinds_or_things_of_one_name_are_refused(hospital: Hospital) -> None:
    with factories.acting(hospital.accounts["admin"]):
        with guard.unit_of_work() as session:
            schedules.offer_kind(session, name="Check", minutes=20)
            branch = session.get(Branch, hospital.branches[0])
            schedules.install(session, branch=branch, name="Scanner")
        with pytest.raises(Conflict, match="of that name already"), guard.unit_of_work() as session:
            schedules.offer_kind(session, name="Check", minutes=30)
        with pytest.raises(Conflict, match="equipment of that name"), guard.unit_of_work() as session:
            schedules.install(session, branch=session.get(Branch, hospital.branches[0]), name="Scanner")
        with pytest.raises(Invalid, match="choose the branch"), guard.unit_of_work() as session:
            schedules.install(session, branch=None, name="Scanner")
        assert len(guard.session().scalars(select(Equipment)).all()) == 1


def test_equipment_stays_where_visits_are_booked_with_it(hospital: Hospital) -> None:
    number = booked(hospital, at(monday(), 10))
    with factories.acting(hospital.accounts["admin"]):
        with guard.unit_of_work() as session:
            here, there = (session.get(Branch, key) for key in hospital.branches)
            scanner = schedules.install(session, branch=here, name="Scanner")
            visit = session.get(Appointment, number)
            assert visit is not None
            visit.equipment_ids = [scanner.id]
        with pytest.raises(Invalid, match="has to stay there"), guard.unit_of_work() as session:
            schedules.change_equipment(session, scanner, branch=there, name="Scanner")
    with guard.acting_as(service("demo")):
        assert guard.session().scalars(select(Equipment)).one().branch_id == hospital.branches[0]


@pytest.mark.parametrize("username", ["doctor", "nurse", "reception", "billing", "patient"])
def test_only_who_runs_the_hospital_sets_it_up(username: str, hospital: Hospital) -> None:
    asked = {"practitioner_id": hospital.staff["doctor"], "branch_id": hospital.branches[0]}
    with factories.acting(hospital.accounts[username]):
        with pytest.raises(Forbidden), guard.unit_of_work() as session:
            schedules.offer_kind(session, name="Check", minutes=20)
        with pytest.raises(Forbidden), guard.unit_of_work() as session:
            schedules.set_week(session, **asked, week=week((1, 8, 15)), valid_from=monday())
    assert rows(hospital) == []


# ---- hours -------------------------------------------------------------------------------------------------------


def test_a_week_counts_from_its_day_on_and_ends_the_one_before(hospital: Hospital) -> None:
    working(hospital, week((1, 8, 15), (2, 8, 15)), today())
    working(hospital, week((1, 8, 15), (2, 13, 20)), monday(2))
    assert rows(hospital) == [
        (1, time(8), time(15), today(), None),
        (2, time(8), time(15), today(), monday(2) - timedelta(days=1)),
        (2, time(13), time(20), monday(2), None),
    ]
    assert works(hospital, at(monday(1) + timedelta(days=1), 9))
    assert not works(hospital, at(monday(2) + timedelta(days=1), 9))
    assert works(hospital, at(monday(2) + timedelta(days=1), 19, 30))
    assert not works(hospital, at(monday(2) + timedelta(days=1), 19, 31))


def test_a_week_replaces_what_was_planned_later(hospital: Hospital) -> None:
    working(hospital, week((1, 8, 15)), monday(3))
    working(hospital, week((3, 9, 12)), monday(2))
    assert rows(hospital) == [(3, time(9), time(12), monday(2), None)]


def test_nights_end_on_the_next_day(hospital: Hospital) -> None:
    working(hospital, week((7, 20, 8)), today())
    assert works(hospital, at(monday(2), 7, 30))
    assert not works(hospital, at(monday(2), 8))


@pytest.mark.parametrize(
    ("hours", "field"),
    [
        (week((1, 8, 12), (1, 11, 15)), "day1"),
        (week((1, 8, 8)), "day1"),
        (week((1, 20, 8), (2, 7, 12)), "day2"),
        (week((7, 20, 8), (1, 7, 12)), "day1"),
    ],
    ids=["overlap", "nothing", "into the next day", "round the week"],
)
def test_hours_that_cannot_be_are_refused(hours: list[Stretch], field: str, hospital: Hospital) -> None:
    working(hospital, week((5, 8, 15)), today())
    with pytest.raises(Invalid) as refusal:
        working(hospital, hours, monday())
    assert refusal.value.field == field
    assert rows(hospital) == [(5, time(8), time(15), today(), None)]


def test_hours_that_touch_are_fine(hospital: Hospital) -> None:
    working(hospital, week((1, 8, 12), (1, 12, 15), (7, 20, 8)), today())
    assert len(rows(hospital)) == 3


def test_days_that_are_over_keep_their_hours(hospital: Hospital) -> None:
    with pytest.raises(Invalid) as refusal:
        working(hospital, week((1, 8, 15)), today() - timedelta(days=1))
    assert refusal.value.field == "valid_from"
    assert rows(hospital) == []


def test_what_a_week_would_change_is_told_and_nothing_is_changed(hospital: Hospital) -> None:
    working(hospital, week((1, 8, 15), (2, 8, 15)), today())
    inside, outside = booked(hospital, at(monday(2), 9)), booked(hospital, at(monday(2), 14))
    already = booked(hospital, at(monday(2), 18))
    asked = {"practitioner_id": hospital.staff["doctor"], "branch_id": hospital.branches[0]}
    before = rows(hospital)
    with factories.acting(hospital.accounts["admin"]), guard.unit_of_work() as session:
        change = schedules.week_change(session, **asked, week=week((1, 8, 12), (2, 8, 15)), valid_from=monday())
        assert [visit.id for visit in change.outside] == [outside]
        assert (change.comes, change.goes) == (week((1, 8, 12)), week((1, 8, 15)))
    assert rows(hospital) == before
    assert len({inside, outside, already}) == 3


# ---- leave, holidays, extra sessions -----------------------------------------------------------------------------


def test_leave_takes_hours_away_and_names_the_visits_in_it(hospital: Hospital) -> None:
    working(hospital, week((1, 8, 15), (2, 8, 15)), today())
    inside, after = booked(hospital, at(monday(2), 9)), booked(hospital, at(monday(2) + timedelta(days=1), 9))
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        leave = schedules.set_exception(
            session, kind="leave", practitioner_id=hospital.staff["doctor"], branch_id=None,
            starts_at=at(monday(2), 0), ends_at=at(monday(2) + timedelta(days=1), 0),
        )  # fmt: skip
        assert [visit.id for visit in schedules.visits_in(session, leave)] == [inside]
        assert not works(hospital, at(monday(2), 9))
        schedules.lift_exception(session, leave)
    assert works(hospital, at(monday(2), 9))
    assert after != inside


@pytest.mark.parametrize(
    ("told", "field"),
    [
        ({"kind": "rain"}, "kind"),
        ({"kind": "leave", "practitioner_id": None}, "practitioner"),
        ({"kind": "extra", "branch_id": None}, "branch"),
        ({"kind": "holiday", "branch_id": None}, "branch"),
        ({"kind": "leave", "practitioner_id": 10**6}, "practitioner"),
        ({"ends_at": datetime(2027, 5, 1, tzinfo=UTC)}, "ends_at"),
        ({"ends_at": datetime(2029, 5, 1, tzinfo=UTC)}, "ends_at"),
    ],
)
def test_an_exception_that_cannot_be_is_refused(told: dict[str, Any], field: str, hospital: Hospital) -> None:
    whole = {
        "kind": "leave",
        "practitioner_id": hospital.staff["doctor"],
        "branch_id": hospital.branches[0],
        "starts_at": datetime(2027, 5, 1, tzinfo=UTC),
        "ends_at": datetime(2027, 5, 2, tzinfo=UTC),
    }
    with factories.acting(hospital.accounts["reception"]):
        with pytest.raises(Invalid) as refusal, guard.unit_of_work() as session:
            schedules.set_exception(session, **{**whole, **told})
        assert refusal.value.field == field
        assert guard.session().scalars(select(ScheduleException)).all() == []
