"""The waiting list: who is asked, who gets the time, and what happens to times nobody takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import text

from app import guard
from app.actor import service
from app.errors import Forbidden, Invalid, NotFound, OfferOver, SlotTaken
from app.services import scheduling, waitlist
from app.services.scheduling import Asked
from jobs import waitlist as jobs
from models.base import now
from models.organization import Room
from models.scheduling import (
    Appointment,
    ScheduleException,
    SlotOfferInvitation,
    VisitType,
    WaitlistEntry,
    WorkingHours,
)
from tests import factories
from tests.factories import Hospital

Acting = Callable[[str], AbstractContextManager[Any]]
MADRID = ZoneInfo("Europe/Madrid")


@pytest.fixture(scope="module")
def kind(database: Any) -> int:
    """A kind of visit that doctor and nurse do from 8 to 18 every day at the first branch."""
    hospital: Hospital = database.hospital
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        visit = VisitType(name="Follow-up", minutes=30, needs_room=False)
        session.add(visit)
        for person in (hospital.staff["doctor"], hospital.staff["nurse"]):
            for weekday in range(1, 8):
                hours = WorkingHours(
                    practitioner_id=person,
                    branch_id=hospital.branches[0],
                    weekday=weekday,
                    starts=time(8),
                    ends=time(18),
                    valid_from=date(2020, 1, 1),
                )
                session.add(hours)
        session.flush()
        return visit.id


_days = iter(range(20, 700))


@pytest.fixture
def start() -> datetime:
    """Ten o'clock of a day of the future that no other test uses."""
    return datetime.combine(now().date() + timedelta(days=next(_days)), time(10), tzinfo=MADRID)


@pytest.fixture(autouse=True)
def nobody_waits(database: Any) -> None:
    with guard.engine().begin() as connection:
        connection.execute(text("UPDATE waitlist_entry SET status = 'withdrawn'"))
        connection.execute(text("UPDATE slot_offer SET status = 'withdrawn' WHERE status = 'open'"))


def booked(hospital: Hospital, kind: int, start: datetime, patient: int = 2, room_id: int | None = None) -> int:
    asked = Asked(
        hospital.patients[patient],
        kind,
        hospital.staff["doctor"],
        start,
        room_id=room_id,
        branch_id=hospital.branches[0],
    )
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        return scheduling.book(session, asked).id


def waits(hospital: Hospital, kind: int, patient: int, **more: Any) -> int:
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        entry = waitlist.join(
            session,
            patient_id=hospital.patients[patient],
            visit_type_id=kind,
            branch_id=hospital.branches[0],
            **more,
        )
        return entry.id


def freed(hospital: Hospital, visit: int, reason: str = "pat") -> None:
    """The visit is called off, and the job hears of it."""
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        scheduling.cancel(session, visit, reason=reason)
    told(hospital, visit)


def told(hospital: Hospital, visit: int) -> None:
    """The job hears of what became of a visit."""
    del hospital
    found = row(Appointment, visit)
    named = ("branch_id", "practitioner_id", "patient_id", "version")
    jobs.offer({"appointment_id": visit, **{name: found[name] for name in named}})


def asked_now(hospital: Hospital) -> dict[int, int]:
    """Invitations to open offers: {number of the patient in the hospital: invitation}."""
    with factories.acting(hospital.accounts["reception"]):
        session = guard.session()
        found = [i for offer in waitlist.open_offers(session) for i in waitlist.invitations(session, offer.id)]
        return {hospital.patients.index(each.patient_id): each.id for each in found if each.answer is None}


def accepted(hospital: Hospital, invitation: int) -> int:
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        return waitlist.accept(session, invitation).id


def row(model: Any, key: int) -> Any:
    return factories.stored(model, key)


def test_a_freed_time_goes_to_who_is_first_in_rank(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    late = waits(hospital, kind, 3, priority=5)
    urgent = waits(hospital, kind, 4, priority=1)
    for patient in (5, 6, 7):
        waits(hospital, kind, patient, priority=6)
    freed(hospital, visit)
    invited = asked_now(hospital)
    assert set(invited) == {4, 3, 5}
    with pytest.raises(SlotTaken):
        booked(hospital, kind, start, patient=8)
    taken = accepted(hospital, invited[4])
    assert row(Appointment, taken)["patient_id"] == hospital.patients[4]
    assert row(Appointment, taken)["start_at"] == start
    assert (row(WaitlistEntry, urgent)["status"], row(WaitlistEntry, urgent)["appointment_id"]) == ("booked", taken)
    assert row(SlotOfferInvitation, invited[3])["answer"] == "late"
    with pytest.raises(OfferOver):
        accepted(hospital, invited[3])
    assert row(WaitlistEntry, late)["status"] == "waiting"


def test_the_first_of_many_at_once_has_it(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    for patient in (3, 4, 5):
        waits(hospital, kind, patient)
    freed(hospital, visit)
    invited = list(asked_now(hospital).values())
    ready, won, lost = threading.Barrier(3), [], []

    def take(invitation: int) -> None:
        ready.wait()
        try:
            won.append(accepted(hospital, invitation))
        except OfferOver:
            lost.append(invitation)

    threads = [threading.Thread(target=take, args=(each,)) for each in invited]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 2)


def test_only_who_it_fits_is_asked(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    day = start.date()
    waits(hospital, kind, 3, earliest_on=day + timedelta(days=1))
    waits(hospital, kind, 4, latest_on=day - timedelta(days=1))
    waits(hospital, kind, 5, practitioner_id=hospital.staff["nurse"])
    waits(hospital, kind, 6, earliest_on=day, latest_on=day)
    busy = Asked(hospital.patients[7], kind, hospital.staff["nurse"], start, branch_id=hospital.branches[0])
    waits(hospital, kind, 7)
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        scheduling.book(session, busy)
    freed(hospital, visit)
    assert set(asked_now(hospital)) == {6}


def test_nobody_waits_and_the_time_is_free(hospital: Hospital, kind: int, start: datetime) -> None:
    freed(hospital, booked(hospital, kind, start))
    assert asked_now(hospital) == {}
    booked(hospital, kind, start, patient=3)


def run_out(hospital: Hospital) -> None:
    """Fifteen minutes later, as the database has it."""
    del hospital
    with guard.engine().begin() as connection:
        connection.execute(text("UPDATE slot_offer SET until_at = now() - interval '1 second' WHERE status = 'open'"))


def test_what_nobody_takes_in_time_goes_to_the_next_ones(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    for patient in (3, 4, 5, 6):
        waits(hospital, kind, patient)
    freed(hospital, visit)
    first = asked_now(hospital)
    assert set(first) == {3, 4, 5}
    run_out(hospital)
    with pytest.raises(OfferOver):
        accepted(hospital, first[3])
    jobs.expire()
    second = asked_now(hospital)
    assert set(second) == {6}
    assert {row(SlotOfferInvitation, each)["answer"] for each in first.values()} == {"late"}
    run_out(hospital)
    jobs.expire()
    assert asked_now(hospital) == {}
    booked(hospital, kind, start, patient=3)


def test_a_time_that_ran_out_keeps_nobody_from_booking(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    for patient in (3, 4, 5, 6):
        waits(hospital, kind, patient)
    freed(hospital, visit)
    first = asked_now(hospital)
    run_out(hospital)  # and no job comes by
    booked(hospital, kind, start, patient=8)
    jobs.expire()
    assert {row(SlotOfferInvitation, each)["answer"] for each in first.values()} == {"late"}
    assert asked_now(hospital) == {}


def test_when_all_decline_the_next_ones_are_asked(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    for patient in (3, 4, 5, 6):
        waits(hospital, kind, patient)
    freed(hospital, visit)
    offers = [each["id"] for each in rows("SELECT id FROM slot_offer WHERE status = 'open'")]
    for invitation in asked_now(hospital).values():
        with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
            waitlist.decline(session, invitation)
    jobs.declined({"offer_id": offers[0]})
    assert set(asked_now(hospital)) == {6}


def rows(query: str, **said: Any) -> list[Any]:
    with guard.engine().connect() as connection:
        return list(connection.execute(text(query), said).mappings())


def test_the_job_told_twice_offers_once(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    waits(hospital, kind, 3)
    freed(hospital, visit)
    told(hospital, visit)
    assert len(rows("SELECT id FROM slot_offer WHERE status = 'open'")) == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"priority": 0}, "priority"),
        ({"priority": 10}, "priority"),
        ({"practitioner_id": 999_999}, "practitioner"),
        ({"latest_on": date(2020, 1, 1)}, "latest_on"),
        ({"note": "x" * 301}, "note"),
    ],
)
def test_bad_wishes_are_refused_by_name(hospital: Hospital, kind: int, change: dict[str, Any], field: str) -> None:
    before = len(rows("SELECT id FROM waitlist_entry"))
    with pytest.raises(Invalid) as refusal:
        waits(hospital, kind, 3, **change)
    assert refusal.value.field == field
    assert len(rows("SELECT id FROM waitlist_entry")) == before


@pytest.mark.parametrize("reason", ["prov", "prov-pers", "oth-room", "maint", "oth-weath"])
def test_a_time_nobody_can_come_at_is_offered_to_nobody(
    hospital: Hospital, kind: int, start: datetime, reason: str
) -> None:
    visit = booked(hospital, kind, start)
    waits(hospital, kind, 3)
    freed(hospital, visit, reason)
    assert asked_now(hospital) == {}


def test_a_time_of_leave_is_offered_to_nobody(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    waits(hospital, kind, 3)
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        leave = ScheduleException(kind="leave", practitioner_id=hospital.staff["doctor"])
        leave.starts_at, leave.ends_at = start, start + timedelta(hours=1)
        session.add(leave)
    freed(hospital, visit)
    assert asked_now(hospital) == {}


def test_a_room_that_was_retired_is_offered_to_nobody(hospital: Hospital, kind: int, start: datetime) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        room = Room(branch_id=hospital.branches[0], name=f"Retired {start.date()}")
        session.add(room)
        session.flush()
        number = room.id
    visit = booked(hospital, kind, start, room_id=number)
    waits(hospital, kind, 3)
    with guard.engine().begin() as connection:
        connection.execute(text("UPDATE room SET active = false WHERE id = :id"), {"id": number})
    freed(hospital, visit)
    assert asked_now(hospital) == {}


@pytest.mark.parametrize(("minutes", "asked"), [(40, {3}), (25, set())])
def test_a_time_that_is_too_near_is_offered_to_nobody(
    hospital: Hospital, kind: int, minutes: int, asked: set[int]
) -> None:
    soon = now().replace(second=0, microsecond=0) + timedelta(minutes=minutes)
    doctor, branch = hospital.staff["doctor"], hospital.branches[0]
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        extra = ScheduleException(kind="extra", practitioner_id=doctor, branch_id=branch)
        extra.starts_at, extra.ends_at = soon, soon + timedelta(minutes=30)
        session.add(extra)
        visit = Appointment(
            patient_id=hospital.patients[2], branch_id=branch, visit_type_id=kind, practitioner_id=doctor
        )
        visit.start_at, visit.end_at = soon, soon + timedelta(minutes=30)
        session.add(visit)
        session.flush()
        number = visit.id
    waits(hospital, kind, 3)
    freed(hospital, number)
    assert set(asked_now(hospital)) == asked
    held = rows("SELECT until_at, start_at FROM slot_offer WHERE status = 'open'")
    assert all(each["until_at"] <= each["start_at"] - waitlist.SOON / 2 for each in held)


def test_who_gave_the_time_up_is_not_asked_for_it(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start, patient=3)
    waits(hospital, kind, 3)
    waits(hospital, kind, 4)
    freed(hospital, visit)
    assert set(asked_now(hospital)) == {4}


def test_a_moved_visit_frees_its_time_too(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    waits(hospital, kind, 4)
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        near = scheduling.move(session, visit, start_at=start + timedelta(minutes=15))
    told(hospital, visit)
    assert asked_now(hospital) == {}  # half of it is taken
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        scheduling.move(session, near.id, start_at=start + timedelta(hours=2))
    told(hospital, near.id)
    assert set(asked_now(hospital)) == {4}


def test_who_died_or_left_the_list_is_not_asked(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    waits(hospital, kind, 10)
    left = waits(hospital, kind, 4)
    waits(hospital, kind, 5)
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        waitlist.withdraw(session, left)
    gone = {"id": hospital.patients[10]}
    with guard.engine().begin() as connection:
        connection.execute(text("UPDATE patient SET deceased = true WHERE id = :id"), gone)
    freed(hospital, visit)
    with guard.engine().begin() as connection:
        connection.execute(text("UPDATE patient SET deceased = false WHERE id = :id"), gone)
    assert set(asked_now(hospital)) == {5}
    assert row(WaitlistEntry, left)["status"] == "withdrawn"


def test_whoever_has_it_may_say_so_twice(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    waits(hospital, kind, 3)
    freed(hospital, visit)
    (invitation,) = asked_now(hospital).values()
    first = accepted(hospital, invitation)
    assert accepted(hospital, invitation) == first
    assert len(rows("SELECT id FROM appointment WHERE status = 'booked' AND start_at = :start", start=start)) == 1


def test_who_was_too_late_is_asked_again_when_it_is_freed_again(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    for patient in (3, 4):
        waits(hospital, kind, patient)
    freed(hospital, visit)
    freed(hospital, accepted(hospital, asked_now(hospital)[3]))
    assert set(asked_now(hospital)) == {4}


def test_once_on_the_list_for_one_thing(hospital: Hospital, kind: int, start: datetime) -> None:
    ready, got = threading.Barrier(8), []

    def join() -> None:
        ready.wait()
        try:
            got.append(waits(hospital, kind, 9))
        except Invalid as refusal:
            got.append(refusal.field)

    threads = [threading.Thread(target=join) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count("patient") == 7
    (entry,) = rows(
        "SELECT id FROM waitlist_entry WHERE status = 'waiting' AND patient_id = :p", p=hospital.patients[9]
    )
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        waitlist.withdraw(session, entry["id"])
    waits(hospital, kind, 9)


@pytest.mark.parametrize("round_", range(4))
def test_a_time_that_runs_out_is_taken_once(hospital: Hospital, kind: int, start: datetime, round_: int) -> None:
    """At the moment it runs out, those who were asked accept, the job comes by, and other desks book it."""
    visit = booked(hospital, kind, start)
    for patient in (3, 4, 5, 6):
        waits(hospital, kind, patient)
    freed(hospital, visit)
    invited = list(asked_now(hospital).values())
    due = now() + timedelta(milliseconds=120)
    with guard.engine().begin() as connection:
        connection.execute(text("UPDATE slot_offer SET until_at = :due WHERE status = 'open'"), {"due": due})
    whats: list[Callable[[], Any]] = [
        *(lambda each=each: accepted(hospital, each) for each in invited),
        *(lambda nth=nth: booked(hospital, kind, start, patient=nth) for nth in (7, 8, 9, 11)),
        jobs.expire,
    ]
    ready, got = threading.Barrier(len(whats)), []

    def run(nth: int) -> None:
        ready.wait()
        threading.Event().wait(max((due - now()).total_seconds() + (nth % 3 - 1) * 0.02, 0) + 0.02 * round_)
        try:
            got.append(whats[nth]())
        except (OfferOver, SlotTaken) as refusal:
            got.append(refusal)

    threads = [threading.Thread(target=run, args=(nth,)) for nth in range(len(whats))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(whats)  # nothing else went wrong in any of them
    holding = rows(
        "SELECT id FROM appointment WHERE status = 'booked' AND start_at = :start AND practitioner_id = :doctor",
        start=start,
        doctor=hospital.staff["doctor"],
    )
    assert [each["id"] for each in holding] == [each for each in got if isinstance(each, int)]
    assert len(holding) + len(asked_now(hospital)) <= 1


def test_who_declined_has_it_after_all_while_it_is_free(hospital: Hospital, kind: int, start: datetime) -> None:
    """On offer to others, held for the next ones, let go, and taken: the desk asks at every stage."""
    visit = booked(hospital, kind, start)
    for patient in (3, 4, 5, 6):
        waits(hospital, kind, patient)
    freed(hospital, visit)
    first = asked_now(hospital)
    for each in (3, 4, 5):
        with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
            waitlist.decline(session, first[each])
    with pytest.raises(OfferOver):
        accepted(hospital, first[3])  # by the link, say
    (offer,) = rows("SELECT offer_id AS id FROM slot_offer_invitation WHERE id = :id", id=first[3])
    jobs.declined({"offer_id": offer["id"]})
    assert set(asked_now(hospital)) == {6}
    with pytest.raises(SlotTaken):
        after_all(hospital, first[3])  # it is held for the next one
    assert row(SlotOfferInvitation, first[3])["answer"] == "declined"
    run_out(hospital)
    jobs.expire()
    taken = after_all(hospital, first[3])
    assert (row(Appointment, taken)["patient_id"], row(Appointment, taken)["start_at"]) == (hospital.patients[3], start)
    assert row(SlotOfferInvitation, first[3])["answer"] == "accepted"
    assert after_all(hospital, first[3]) == taken
    for late in (first[4], first[5]):
        with pytest.raises(OfferOver):
            after_all(hospital, late)
    assert len(rows("SELECT id FROM appointment WHERE status = 'booked' AND start_at = :start", start=start)) == 1


def test_who_declined_and_calls_while_others_are_asked_is_quicker(
    hospital: Hospital, kind: int, start: datetime
) -> None:
    visit = booked(hospital, kind, start)
    for patient in (3, 4):
        waits(hospital, kind, patient)
    freed(hospital, visit)
    invited = asked_now(hospital)
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        waitlist.decline(session, invited[3])
    taken = after_all(hospital, invited[3])
    assert row(Appointment, taken)["patient_id"] == hospital.patients[3]
    assert row(SlotOfferInvitation, invited[4])["answer"] == "late"
    with pytest.raises(OfferOver):
        accepted(hospital, invited[4])


def after_all(hospital: Hospital, invitation: int) -> int:
    with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
        return waitlist.accept(session, invitation, after_all=True).id


def test_who_could_not_see_the_others_leaves_them_to_the_job(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    for patient in (3, 4):
        waits(hospital, kind, patient)
    freed(hospital, visit)
    invited = asked_now(hospital)
    accepted(hospital, invited[3])
    with guard.engine().begin() as connection:
        connection.execute(text("UPDATE slot_offer_invitation SET answer = NULL WHERE id = :id"), {"id": invited[4]})
    jobs.expire()
    assert row(SlotOfferInvitation, invited[4])["answer"] == "late"
    assert row(SlotOfferInvitation, invited[3])["answer"] == "accepted"


def test_everything_that_happens_to_an_offer_is_made_known(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    for patient in (3, 4):
        waits(hospital, kind, patient)
    freed(hospital, visit)
    (offer,) = rows("SELECT id FROM slot_offer WHERE status = 'open'")
    told_of = "SELECT id FROM event_outbox WHERE name = 'OfferMade' AND payload ->> 'offer_id' = :id"
    assert len(rows(told_of, id=str(offer["id"]))) == 1
    accepted(hospital, asked_now(hospital)[4])
    assert len(rows(told_of, id=str(offer["id"]))) == 2


def test_who_may_not_is_refused(hospital: Hospital, kind: int, start: datetime) -> None:
    visit = booked(hospital, kind, start)
    waiting = waits(hospital, kind, 3)
    freed(hospital, visit)
    (invitation,) = asked_now(hospital).values()
    for username in ("lab", "billing", "privacy"):
        with factories.acting(hospital.accounts[username]):
            for what in (
                lambda s: waitlist.join(
                    s, patient_id=hospital.patients[4], visit_type_id=kind, branch_id=hospital.branches[0]
                ),
                lambda s: waitlist.withdraw(s, waiting),
                lambda s: waitlist.accept(s, invitation),
                lambda s: waitlist.decline(s, invitation),
            ):
                with pytest.raises(Forbidden), guard.unit_of_work() as session:
                    what(session)
    with factories.acting(hospital.accounts["patient"]), pytest.raises(NotFound), guard.unit_of_work() as session:
        waitlist.accept(session, invitation)  # somebody else's
    assert row(WaitlistEntry, waiting)["status"] == "waiting"
    assert row(SlotOfferInvitation, invitation)["answer"] is None
    assert len(rows("SELECT id FROM slot_offer WHERE status = 'open'")) == 1
