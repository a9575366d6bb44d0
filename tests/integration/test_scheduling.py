"""Visits: every step from state to state, everything that is refused, and many desks at the same moment."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import errors as sql
from sqlalchemy import make_url, text

from app import guard
from app.actor import service
from app.errors import (
    Forbidden,
    IllegalTransition,
    Invalid,
    KeyReused,
    NotAtBranch,
    NotFound,
    OutsideHours,
    Refusal,
    RequestRepeated,
    SlotTaken,
)
from app.policy import may
from app.services import free_times, scheduling
from app.services.clock import day_of
from app.services.free_times import FreeTime
from app.services.scheduling import Asked
from models.base import now
from models.clinical import Encounter
from models.codes import AppointmentStatus, CancelationReason, EncounterStatus, RowScope, ScheduleChange
from models.organization import Branch, Practitioner, Room
from models.patients import Patient
from models.scheduling import (
    BLOCKING,
    Appointment,
    AppointmentHistory,
    Booking,
    Equipment,
    ScheduleException,
    SlotOffer,
    VisitType,
)
from tests import factories
from tests.conftest import Database
from tests.factories import Hospital, Practice

Acting = Callable[[str], AbstractContextManager[Any]]
S = AppointmentStatus
CROWD = 50


@pytest.fixture(scope="module")
def practice(database: Database) -> Practice:
    """A branch in Madrid where doctor and nurse work every day; with a connection for each of a crowd."""
    guard.connect(database.url, pool_size=CROWD + 5)
    return factories.open_practice(database.hospital)


_days = itertools.count(20)


@pytest.fixture
def day() -> date:
    """A day of the future that no other test uses."""
    return now().date() + timedelta(days=next(_days))


@pytest.fixture
def desk(acting: Acting) -> Iterator[Callable[..., Any]]:
    """Do something as somebody in a unit of work of its own: `desk(scheduling.cancel, 5, reason="pat")`."""

    def do(what: Callable[..., Any], *args: Any, by: str = "reception", **named: Any) -> Any:
        with acting(by), guard.unit_of_work() as session:
            return what(session, *args, **named)

    return do


Desk = Callable[..., Any]


def asked(practice: Practice, start: datetime, **more: Any) -> Asked:
    """A wish for a visit with the doctor by the third patient."""
    wish = Asked(practice.patients[2], practice.visit, practice.people[0], start, branch_id=practice.branch)
    return replace(wish, **more)


def stored(visit: Any) -> Any:
    return factories.stored(Appointment, getattr(visit, "id", visit))


def everything() -> tuple[int, int, int]:
    """How many visits, bookings that block, and lines of history there are."""
    return (
        factories.number_of(Appointment),
        factories.number_of(Booking, Booking.__table__.c.blocking),
        factories.number_of(AppointmentHistory),
    )


def bookings(visit: int) -> dict[str, tuple[datetime, datetime, bool]]:
    """What a visit holds: kind of resource -> from, to, and whether it blocks."""
    statement = text("SELECT *, lower(period) AS a, upper(period) AS b FROM booking WHERE appointment_id = :id")
    found = {}
    with guard.engine().connect() as connection:
        for row in connection.execute(statement, {"id": visit}).mappings():
            kind = next(k for k in ("practitioner", "room", "equipment", "patient") if row[f"{k}_id"] is not None)
            found[kind] = (row["a"], row["b"], row["blocking"])
    return found


@contextmanager
def refused(error: type[Exception], field: str | None = None) -> Iterator[None]:
    """It is refused by that name, and nothing has changed."""
    before = everything()
    with pytest.raises(error) as refusal:
        yield
    assert field is None or refusal.value.field == field  # type: ignore[attr-defined]
    assert everything() == before


# ---- a visit -----------------------------------------------------------------------------------------------------


def test_a_visit_holds_its_doctor_room_equipment_and_patient(practice: Practice, desk: Desk, day: date) -> None:
    start = practice.at(day, 9)
    visit = desk(scheduling.book, asked(practice, start, visit_type_id=practice.scan, reason="  Sore\nknee "))
    row = stored(visit)
    assert (row["status"], row["start_at"], row["end_at"]) == ("booked", start, start + timedelta(minutes=30))
    assert (row["room_id"] in practice.rooms, row["equipment_ids"]) == (True, [practice.scanner])
    assert (row["reason"], row["sequence"], row["moved_from_id"]) == ("Sore knee", 0, None)
    buffered = (start - timedelta(minutes=5), start + timedelta(minutes=40), True)
    assert bookings(visit.id) == {
        "practitioner": buffered,
        "room": buffered,
        "equipment": buffered,
        "patient": (start, start + timedelta(minutes=30), True),
    }


def test_touching_is_not_overlapping(practice: Practice, desk: Desk, day: date) -> None:
    desk(scheduling.book, asked(practice, practice.at(day, 10)))
    desk(scheduling.book, asked(practice, practice.at(day, 10, 30)))
    with refused(SlotTaken):
        desk(scheduling.book, asked(practice, practice.at(day, 10, 29), minutes=5))


def test_buffers_keep_the_others_away_and_not_the_patient(practice: Practice, desk: Desk, day: date) -> None:
    scan = asked(practice, practice.at(day, 10), visit_type_id=practice.scan)
    desk(scheduling.book, scan)
    other = replace(scan, patient_id=practice.patients[3], practitioner_id=practice.people[1])
    for minutes in (44, -44):  # 5 before and 10 after, of both
        with refused(SlotTaken):
            desk(scheduling.book, replace(other, start_at=scan.start_at + timedelta(minutes=minutes)))
    desk(scheduling.book, replace(other, start_at=scan.start_at + timedelta(minutes=45)))
    desk(scheduling.book, replace(other, start_at=scan.start_at - timedelta(minutes=45)))
    desk(scheduling.book, asked(practice, practice.at(day, 10, 30), practitioner_id=practice.people[1], minutes=5))


@pytest.mark.parametrize("shared", ["practitioner", "room", "equipment", "patient"])
def test_each_of_the_four_is_in_one_place_at_a_time(practice: Practice, desk: Desk, day: date, shared: str) -> None:
    first, other = apart(practice, practice.at(day, 11), shared)
    desk(scheduling.book, first)
    with guard.acting_as(service("demo")):
        taken = scheduling.what_clashes(guard.session(), other)
    assert [each.kind for each in taken] == [shared]
    with refused(SlotTaken):
        desk(scheduling.book, other)


_plain: dict[int, int] = {}


def plain_kind(practice: Practice) -> int:
    """A kind of visit that takes any equipment and any room, and neither by itself."""
    if practice.branch not in _plain:
        with guard.acting_as(service("demo")), guard.unit_of_work() as session:
            kind = VisitType(name="Plain", minutes=30, needs_room=False)
            session.add(kind)
            session.flush()
            _plain[practice.branch] = kind.id
    return _plain[practice.branch]


def apart(practice: Practice, start: datetime, shared: str) -> tuple[Asked, Asked]:
    """Two wishes for one time that have just one thing in common."""
    kind = plain_kind(practice)
    first = asked(
        practice,
        start,
        visit_type_id=kind,
        room_id=practice.rooms[0],
        equipment_ids=(practice.scanner,),
    )
    differs = {
        "practitioner": {"practitioner_id": practice.people[1]},
        "room": {"room_id": practice.rooms[1]},
        "equipment": {"equipment_ids": ()},
        "patient": {"patient_id": practice.patients[3]},
    }
    changes = {name: value for kind, part in differs.items() if kind != shared for name, value in part.items()}
    return first, replace(first, **changes)


# ---- bad input ---------------------------------------------------------------------------------------------------


BAD: list[tuple[Any, type[Refusal], str]] = [
    (lambda p, d: {"start_at": p.at(d, 9).replace(tzinfo=None)}, Invalid, "start"),
    (lambda p, d: {"minutes": 24 * 60}, Invalid, "minutes"),
    (lambda p, d: {"minutes": 12 * 60 + 1}, Invalid, "minutes"),
    (lambda p, d: {"minutes": 0}, Invalid, "minutes"),
    (lambda p, d: {"minutes": -30}, Invalid, "minutes"),
    (lambda p, d: {"start_at": p.at(d, 9) + timedelta(days=3 * 365)}, Invalid, "start"),
    (lambda p, d: {"start_at": datetime.min.replace(tzinfo=UTC), "override_reason": "Of old"}, Invalid, "start"),
    (lambda p, d: {"start_at": datetime.max.replace(tzinfo=UTC)}, Invalid, "start"),
    (lambda p, d: {"patient_id": 10**12}, Invalid, "patient"),
    (lambda p, d: {"patient_id": -1}, Invalid, "patient"),
    (lambda p, d: {"patient_id": 2**80}, Invalid, "patient"),
    (lambda p, d: {"practitioner_id": 10**12}, Invalid, "practitioner"),
    (lambda p, d: {"visit_type_id": 10**12}, Invalid, "visit_type"),
    (lambda p, d: {"room_id": 10**12}, Invalid, "room"),
    (lambda p, d: {"branch_id": 10**12}, Invalid, "branch"),
    (lambda p, d: {"equipment_ids": (p.scanner, 10**12)}, Invalid, "equipment"),
    (lambda p, d: {"reason": "x" * 501}, Invalid, "reason"),
    (lambda p, d: {"reason": "bell \x07"}, Invalid, "reason"),
    (lambda p, d: {"start_at": p.at(d, 7, 59)}, OutsideHours, "start"),
    (lambda p, d: {"start_at": p.at(d, 17, 31)}, OutsideHours, "start"),
    (lambda p, d: {"start_at": now() - timedelta(days=1)}, OutsideHours, "start"),
    (lambda p, d: {"start_at": p.at(d, 22), "override_reason": "Emergency"}, OutsideHours, "start"),
    (lambda p, d: {"visit_type_id": p.scan, "start_at": p.at(d, 8)}, OutsideHours, "start"),  # made ready at 7:55
]


@pytest.mark.parametrize(("change", "error", "field"), BAD, ids=[str(number) for number in range(len(BAD))])
def test_bad_input_is_refused_by_name(
    practice: Practice, desk: Desk, day: date, change: Any, error: type[Refusal], field: str
) -> None:
    with refused(error, field):
        desk(scheduling.book, replace(asked(practice, practice.at(day, 9)), **change(practice, day)))
    desk(scheduling.book, asked(practice, practice.at(day, 9)))


@contextmanager
def altered(kind: Any, key: int, **values: Any) -> Iterator[None]:
    """A row is otherwise for a while."""
    table = kind.__table__
    before = factories.stored(kind, key)
    with guard.engine().begin() as connection:
        connection.execute(table.update().where(table.c.id == key).values(**values))
    try:
        yield
    finally:
        with guard.engine().begin() as connection:
            connection.execute(table.update().where(table.c.id == key).values(**{n: before[n] for n in values}))


@pytest.mark.parametrize(
    ("kind", "key", "values", "field"),
    [
        (Patient, "patient", {"active": False}, "patient"),
        (Patient, "patient", {"deceased": True}, "patient"),
        (Practitioner, "practitioner", {"active": False}, "practitioner"),
        (Room, "room", {"active": False}, "room"),
        (Equipment, "scanner", {"active": False}, "equipment"),
        (VisitType, "scan", {"active": False}, "visit_type"),
        (Branch, "branch", {"active": False}, "branch"),
    ],
)
def test_what_is_out_of_use_cannot_be_booked(
    practice: Practice, desk: Desk, day: date, kind: Any, key: str, values: dict[str, Any], field: str
) -> None:
    whole = asked(
        practice,
        practice.at(day, 9),
        visit_type_id=practice.scan,
        room_id=practice.rooms[0],
        equipment_ids=(practice.scanner,),
    )
    numbers = {
        "patient": whole.patient_id,
        "practitioner": whole.practitioner_id,
        "room": practice.rooms[0],
        "scanner": practice.scanner,
        "scan": practice.scan,
        "branch": practice.branch,
    }
    standing = desk(scheduling.book, replace(whole, start_at=practice.at(day, 15)))
    with altered(kind, numbers[key], **values), refused(Invalid, field):
        desk(scheduling.book, whole)
    with altered(kind, numbers[key], **values), refused(Invalid, field):
        desk(scheduling.move, standing.id, start_at=practice.at(day, 16))
    assert stored(standing)["status"] == "booked"


def test_room_and_equipment_are_of_the_branch(practice: Practice, hospital: Hospital, desk: Desk, day: date) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        far = Room(branch_id=hospital.branches[1], name=f"Far {day}")
        thing = Equipment(branch_id=hospital.branches[1], name=f"Far {day}")
        session.add_all([far, thing])
        session.flush()
        room, equipment = far.id, thing.id
    wish = asked(practice, practice.at(day, 9))
    with refused(Invalid, "room"):
        desk(scheduling.book, replace(wish, room_id=room))
    with refused(Invalid, "equipment"):
        desk(scheduling.book, replace(wish, equipment_ids=(equipment,)))
    with refused(sql.ForeignKeyViolation), raw() as connection:
        write_raw(connection, practice, practice.at(day, 9), room=room)
    with refused(sql.ForeignKeyViolation), raw() as connection:
        write_raw(connection, practice, practice.at(day, 9), equipment=[equipment])


def test_a_doctor_of_another_branch_without_hours_there(
    practice: Practice, hospital: Hospital, desk: Desk, day: date
) -> None:
    """Not even by somebody who may book outside hours; one who belongs there is a matter of hours."""
    wish = asked(practice, practice.at(day, 9), branch_id=hospital.branches[1], override_reason="As agreed")
    with refused(NotAtBranch, "practitioner"):
        desk(scheduling.book, replace(wish, practitioner_id=hospital.staff["nurse"]), by="doctor")
    with refused(OutsideHours):
        desk(scheduling.book, wish, by="reception")
    assert desk(scheduling.book, wish, by="doctor").override_reason == "As agreed"


def test_outside_hours_and_in_the_past_ask_for_a_right_and_a_reason(practice: Practice, desk: Desk, day: date) -> None:
    for start in (practice.at(day, 22), now() - timedelta(hours=3)):
        wish = asked(practice, start)
        with refused(OutsideHours, "start"):
            desk(scheduling.book, replace(wish, override_reason="Emergency"), by="reception")
        with refused(OutsideHours, "override_reason"):
            desk(scheduling.book, replace(wish, override_reason=" x "), by="doctor")
        visit = desk(scheduling.book, replace(wish, override_reason="Emergency"), by="doctor")
        assert stored(visit)["override_reason"] == "Emergency"


def test_only_who_does_a_kind_of_visit_does_it_and_only_where_it_is_done(
    practice: Practice, desk: Desk, day: date
) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        kind = VisitType(name=f"Narrow {day}", minutes=30)
        kind.practitioners = [session.get_one(Practitioner, practice.people[0])]
        kind.rooms = [session.get_one(Room, practice.rooms[0])]
        session.add(kind)
        other = Equipment(branch_id=practice.branch, name=f"Other {day}")
        session.add(other)
        session.flush()
        number, thing = kind.id, other.id
    wish = asked(practice, practice.at(day, 9), visit_type_id=number)
    with refused(Invalid, "practitioner"):
        desk(scheduling.book, replace(wish, practitioner_id=practice.people[1]))
    with refused(Invalid, "room"):
        desk(scheduling.book, replace(wish, room_id=practice.rooms[1]))
    with refused(Invalid, "equipment"):
        desk(scheduling.book, replace(wish, visit_type_id=practice.scan, equipment_ids=(thing,)))
    assert desk(scheduling.book, wish).room_id == practice.rooms[0]
    with refused(SlotTaken, "room"):
        desk(scheduling.book, replace(wish, patient_id=practice.patients[3], start_at=wish.start_at), by="doctor")


@pytest.mark.parametrize("username", ["lab", "pharmacist", "privacy", "billing", "patient"])
def test_who_may_not_book_is_refused(practice: Practice, desk: Desk, day: date, username: str) -> None:
    with refused(Forbidden):
        desk(scheduling.book, asked(practice, practice.at(day, 9)), by=username)


# ---- raw SQL -----------------------------------------------------------------------------------------------------

RAW = """
INSERT INTO appointment (status, branch_id, visit_type_id, practitioner_id, room_id, equipment_ids, start_at, end_at,
  buffer_after, patient_id, uid, fhir_id, version, created_at, updated_at)
VALUES (%(status)s, %(branch)s, %(kind)s, %(doctor)s, %(room)s, %(equipment)s, %(start)s, %(end)s,
  %(buffer)s, %(patient)s, gen_random_uuid(), gen_random_uuid(), 1, now(), now()) RETURNING id
"""


@contextmanager
def raw() -> Iterator[psycopg.Connection[Any]]:
    """A connection of its own, as somebody at psql has it; committed at the end."""
    url = make_url(guard.engine().url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        yield connection


def write_raw(connection: psycopg.Connection[Any], practice: Practice, start: datetime, **more: Any) -> int:
    said = {
        "status": "booked",
        "branch": practice.branch,
        "kind": practice.visit,
        "doctor": practice.people[0],
        "room": None,
        "equipment": [],
        "start": start,
        "end": start + timedelta(minutes=30),
        "buffer": 0,
        "patient": practice.patients[2],
    }
    row = connection.execute(RAW, {**said, **more}).fetchone()
    assert row is not None
    return int(row[0])


def test_raw_sql_cannot_write_what_makes_no_sense(practice: Practice, day: date) -> None:
    start = practice.at(day, 9)
    for more in (
        {"end": start},
        {"end": start - timedelta(minutes=1)},
        {"end": start + timedelta(hours=12, seconds=1)},
        {"buffer": 121},
        {"buffer": -1},
        {"status": "perhaps"},
    ):
        with refused(sql.CheckViolation), raw() as connection:
            write_raw(connection, practice, start, **more)
    with refused(sql.CheckViolation), raw() as connection:
        connection.execute("UPDATE appointment SET cancelation_reason = 'pat' WHERE status = 'booked'")
        write_raw(connection, practice, start)
        connection.execute("UPDATE appointment SET cancelation_reason = 'pat' WHERE status = 'booked'")


@pytest.mark.parametrize("shared", ["practitioner", "room", "equipment", "patient"])
def test_raw_sql_cannot_overlap(practice: Practice, day: date, shared: str) -> None:
    start = practice.at(day, 9)
    with raw() as connection:
        write_raw(connection, practice, start, room=practice.rooms[0], equipment=[practice.scanner])
    other: dict[str, Any] = {
        "doctor": practice.people[shared != "practitioner"],
        "room": practice.rooms[shared != "room"],
        "equipment": [practice.scanner] if shared == "equipment" else [],
        "patient": practice.patients[2 if shared == "patient" else 3],
    }
    with refused(sql.ExclusionViolation), raw() as connection:
        write_raw(connection, practice, start + timedelta(minutes=29), **other)
    with raw() as connection:
        write_raw(connection, practice, start + timedelta(minutes=30), **other)


def test_raw_sql_cannot_come_back_or_move_into_a_taken_time(practice: Practice, day: date) -> None:
    start = practice.at(day, 9)
    with raw() as connection:
        write_raw(connection, practice, start)
        waiting = write_raw(connection, practice, start, status="waitlist")
        later = write_raw(connection, practice, start + timedelta(hours=1))
    with refused(sql.ExclusionViolation), raw() as connection:
        connection.execute("UPDATE appointment SET status = 'booked' WHERE id = %s", [waiting])
    with refused(sql.ExclusionViolation), raw() as connection:
        connection.execute("UPDATE appointment SET start_at = start_at - interval '45 minutes' WHERE id = %s", [later])
    with refused(sql.ExclusionViolation), raw() as connection:
        connection.execute("UPDATE appointment SET buffer_before = 31 WHERE id = %s", [later])
    assert stored(waiting)["status"] == "waitlist"


def test_the_past_of_a_visit_is_not_rewritten(practice: Practice, desk: Desk, day: date) -> None:
    visit = desk(scheduling.book, asked(practice, practice.at(day, 9)))
    for statement in ("UPDATE appointment_history SET status = 'noshow'", "DELETE FROM appointment_history"):
        with refused(sql.RestrictViolation), raw() as connection:
            connection.execute(f"{statement} WHERE appointment_id = %s", [visit.id])


# ---- from state to state -----------------------------------------------------------------------------------------

LAWFUL: dict[str, set[str]] = {
    "proposed": {"pending", "booked", "cancelled"},
    "waitlist": {"booked", "cancelled"},
    "pending": {"booked", "cancelled"},
    "booked": {"arrived", "noshow", "cancelled"},
    "arrived": {"checked-in", "cancelled", "booked"},
    "checked-in": {"fulfilled"},
    "fulfilled": set(),
    "cancelled": set(),
    "noshow": set(),
    "entered-in-error": set(),
}
"""The house's table, written down a second time on purpose."""
OVER = ["fulfilled", "cancelled", "noshow", "entered-in-error"]


@pytest.fixture
def in_state(practice: Practice, day: date) -> Callable[..., int]:
    """A visit in any state; each an hour after the one before, so that none is in another's way."""
    hours = itertools.count()

    def make(status: str, **more: Any) -> int:
        with raw() as connection:
            start = practice.at(day, 0) + timedelta(hours=next(hours))
            return write_raw(connection, practice, start, status=status, **more)

    return make


@pytest.mark.parametrize("before", list(LAWFUL))
def test_every_pair_of_states_is_lawful_or_refused(
    practice: Practice, desk: Desk, in_state: Callable[..., int], before: str
) -> None:
    assert set(LAWFUL) == set(S)
    for after in S:
        visit = in_state(before)

        def go(session: Any, number: int = visit, to: S = after) -> None:
            scheduling.advance(session, scheduling.held(session, number), to)

        if after in LAWFUL[before] or (after == "entered-in-error" != before):
            desk(go)
            assert stored(visit)["status"] == after
            assert {blocks for _, _, blocks in bookings(visit).values()} == {after in BLOCKING}
            assert [line["status"] for line in history(visit)] == [before, after]
        else:
            with refused(IllegalTransition):
                desk(go)
            assert stored(visit)["status"] == before


def history(visit: int) -> list[Any]:
    with guard.engine().connect() as connection:
        statement = text("SELECT * FROM appointment_history WHERE appointment_id = :id ORDER BY id")
        return list(connection.execute(statement, {"id": visit}).mappings())


@pytest.mark.parametrize("before", OVER)
def test_what_is_over_is_over_for_raw_sql_too(in_state: Callable[..., int], before: str) -> None:
    for after in S:
        visit = in_state(before)
        if after in (before, "entered-in-error"):
            with raw() as connection:
                connection.execute("UPDATE appointment SET status = %s WHERE id = %s", [after, visit])
            assert stored(visit)["status"] == after
            continue
        with refused(sql.CheckViolation), raw() as connection:
            connection.execute("UPDATE appointment SET status = %s WHERE id = %s", [after, visit])
    visit = in_state(before)
    for change in ("start_at = start_at - interval '1 minute'", "end_at = end_at + interval '1 minute'"):
        with refused(sql.CheckViolation), raw() as connection:
            connection.execute(f"UPDATE appointment SET {change} WHERE id = %s", [visit])


SERVICES: dict[str, tuple[Callable[..., Any], dict[str, Any], set[str], str]] = {
    "cancel": (
        scheduling.cancel,
        {"reason": "pat"},
        {"proposed", "waitlist", "pending", "booked", "arrived"},
        "cancelled",
    ),
    "undo_arrival": (scheduling.undo_arrival, {}, {"arrived", "proposed", "waitlist", "pending"}, "booked"),
    "check_in": (scheduling.check_in, {}, {"arrived"}, "checked-in"),
    "fulfil": (scheduling.fulfil, {}, {"checked-in"}, "fulfilled"),
    "withdraw": (scheduling.withdraw, {}, set(S) - {"entered-in-error"}, "entered-in-error"),
}


@pytest.mark.parametrize("verb", list(SERVICES))
def test_each_verb_from_each_state(desk: Desk, in_state: Callable[..., int], verb: str) -> None:
    """Days ahead, where nobody has come yet."""
    what, said, lawful, after = SERVICES[verb]
    for before in S:
        visit = in_state(before)
        if before in lawful:
            desk(what, visit, **said)
            assert stored(visit)["status"] == after
        else:
            with refused(IllegalTransition):
                desk(what, visit, **said)
            assert stored(visit)["status"] == before


def test_a_day_at_the_desk(practice: Practice, hospital: Hospital, desk: Desk) -> None:
    start = now() + timedelta(minutes=2)
    wish = asked(practice, start, patient_id=practice.patients[6], override_reason="Came by", reason="Cough")
    visit = desk(scheduling.book, wish, by="doctor").id
    with refused(IllegalTransition):
        desk(scheduling.miss, visit)  # it is still to come
    desk(scheduling.arrive, visit)
    number = stored(visit)["queue_number"]
    assert number
    assert stored(visit)["arrived_at"] is not None
    desk(scheduling.undo_arrival, visit)
    assert (stored(visit)["status"], stored(visit)["arrived_at"]) == ("booked", None)
    desk(scheduling.check_in, visit)  # arrives on the way
    row = stored(visit)
    assert (row["status"], row["queue_number"]) == ("checked-in", number)
    encounter = factories.stored(Encounter, row["encounter_id"])
    assert (encounter["status"], encounter["patient_id"]) == (EncounterStatus.ARRIVED, wish.patient_id)
    assert (encounter["branch_id"], encounter["reason"]) == (practice.branch, "Cough")
    desk(scheduling.fulfil, visit)
    assert stored(visit)["ended_at"] is not None
    told = [line["status"] for line in history(visit)]
    assert told == ["booked", "arrived", "booked", "arrived", "checked-in", "fulfilled"]
    first, second = (line["changed_by_id"] for line in history(visit)[:2])
    assert (first, second) == (hospital.accounts["doctor"], hospital.accounts["reception"])


def test_somebody_who_does_not_come(practice: Practice, desk: Desk) -> None:
    start = now() - timedelta(minutes=5)
    wish = asked(practice, start, patient_id=practice.patients[7], practitioner_id=practice.people[1])
    visit = desk(scheduling.book, replace(wish, override_reason="Called"), by="doctor").id
    desk(scheduling.miss, visit)
    assert stored(visit)["status"] == "noshow"
    assert {blocks for _, _, blocks in bookings(visit).values()} == {False}


def test_nobody_arrives_days_ahead(practice: Practice, desk: Desk, day: date) -> None:
    visit = desk(scheduling.book, asked(practice, practice.at(day, 9)))
    before = counter(practice)
    with refused(IllegalTransition):
        desk(scheduling.arrive, visit.id)
    assert counter(practice) == before


def test_a_visit_is_called_off_with_a_reason_that_is_known(practice: Practice, desk: Desk, day: date) -> None:
    visit = desk(scheduling.book, asked(practice, practice.at(day, 9)))
    with refused(Invalid, "reason"):
        desk(scheduling.cancel, visit.id, reason="boredom")
    with refused(IllegalTransition):
        desk(scheduling.cancel, visit.id, reason="pat", version=visit.version + 1)
    with refused(NotFound):
        desk(scheduling.cancel, 10**12, reason="pat")
    desk(scheduling.cancel, visit.id, reason=CancelationReason.PATIENT, version=visit.version)
    row = stored(visit)
    assert (row["status"], row["cancelation_reason"], row["sequence"]) == ("cancelled", "pat", 1)
    desk(scheduling.withdraw, visit.id)
    assert (stored(visit)["status"], stored(visit)["cancelation_reason"]) == ("entered-in-error", None)


# ---- moving ------------------------------------------------------------------------------------------------------


def test_a_moved_visit_is_the_same_for_calendars(practice: Practice, desk: Desk, day: date) -> None:
    old = desk(scheduling.book, asked(practice, practice.at(day, 9), visit_type_id=practice.scan, minutes=40))
    new = desk(scheduling.move, old.id, start_at=practice.at(day, 9, 10))  # into its own time
    before, after = stored(old), stored(new)
    assert (before["status"], after["status"], after["moved_from_id"]) == ("cancelled", "booked", old.id)
    assert (before["uid"], 0, 1) == (after["uid"], before["sequence"], after["sequence"])
    assert after["end_at"] - after["start_at"] == timedelta(minutes=40)
    for name in ("patient_id", "practitioner_id", "room_id", "equipment_ids", "visit_type_id", "branch_id"):
        assert before[name] == after[name]
    again = desk(scheduling.move, new.id, start_at=practice.at(day, 14), practitioner_id=practice.people[1])
    assert (again.uid, again.sequence, again.practitioner_id) == (old.uid, 2, practice.people[1])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda p, d: {"start_at": p.at(d, 12, 15)}, SlotTaken),
        (lambda p, d: {"start_at": p.at(d, 12).replace(tzinfo=None)}, Invalid),
        (lambda p, d: {"start_at": p.at(d, 22)}, OutsideHours),
        (lambda p, d: {"start_at": p.at(d, 14), "minutes": 24 * 60}, Invalid),
        (lambda p, d: {"start_at": p.at(d, 14), "room_id": 10**12}, Invalid),
        (lambda p, d: {"start_at": p.at(d, 14), "practitioner_id": 10**12}, Invalid),
        (lambda p, d: {"start_at": p.at(d, 14), "version": 99}, IllegalTransition),
    ],
)
def test_a_refused_move_leaves_everything_as_it_was(
    practice: Practice, desk: Desk, day: date, change: Any, error: type[Refusal]
) -> None:
    visit = desk(scheduling.book, asked(practice, practice.at(day, 9)))
    desk(scheduling.book, asked(practice, practice.at(day, 12), patient_id=practice.patients[3]))
    before, held = stored(visit), bookings(visit.id)
    with refused(error):
        desk(scheduling.move, visit.id, **change(practice, day))
    assert stored(visit) == before
    assert bookings(visit.id) == held


def test_only_what_is_still_to_come_is_moved(
    practice: Practice, desk: Desk, in_state: Callable[..., int], day: date
) -> None:
    for status in set(S) - {"booked", "pending"}:
        visit = in_state(status)
        with refused(IllegalTransition):
            desk(scheduling.move, visit, start_at=practice.at(day + timedelta(days=1), 9))


def test_a_visit_that_goes_to_another_branch_takes_what_they_have_there(
    practice: Practice, hospital: Hospital, desk: Desk, day: date
) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        room = Room(branch_id=hospital.branches[1], name=f"Scan {day}")
        thing = Equipment(branch_id=hospital.branches[1], name=f"Scanner {day}")
        session.add_all([room, thing])
        kind = VisitType(name=f"Travelling {day}", minutes=30)
        kind.equipment = [session.get_one(Equipment, practice.scanner), thing]
        session.add(kind)
        session.flush()
        for weekday in range(1, 8):
            factories.work(session, practice.people[0], hospital.branches[1], weekday, time(0), time(23, 59))
        number, far, there = kind.id, room.id, thing.id
    visit = desk(scheduling.book, asked(practice, practice.at(day, 9), visit_type_id=number))
    assert visit.equipment_ids == [practice.scanner]
    moved = desk(scheduling.move, visit.id, start_at=practice.at(day, 15), room_id=far)
    assert (moved.branch_id, moved.room_id, moved.equipment_ids) == (hospital.branches[1], far, [there])
    with guard.engine().begin() as connection:
        connection.execute(text("DELETE FROM working_hours WHERE branch_id = :id"), {"id": hospital.branches[1]})


# ---- once, however often it is asked -----------------------------------------------------------------------------


def test_a_key_books_once(practice: Practice, desk: Desk, day: date) -> None:
    wish, key = asked(practice, practice.at(day, 9)), f"key-{day}"
    first = desk(scheduling.book, wish, key=key)
    before = everything()
    assert desk(scheduling.book, wish, key=key).id == first.id
    assert everything() == before
    with refused(KeyReused):
        desk(scheduling.book, replace(wish, start_at=practice.at(day, 10)), key=key)
    with refused(SlotTaken):
        desk(scheduling.book, wish, key=key, by="nurse")  # a key is somebody's own
    for bad in ("", "x" * 256, "line\nbreak"):
        with refused(Invalid, "Idempotency-Key"):
            desk(scheduling.book, replace(wish, start_at=practice.at(day, 11)), key=bad)


def test_one_key_from_twenty_desks_at_once_books_once(practice: Practice, hospital: Hospital, day: date) -> None:
    wish, key = asked(practice, practice.at(day, 9)), f"crowd-{day}"
    answers = at_once(20, lambda nth: book_as(hospital, "reception", wish, key))
    assert {type(each) for each in answers} <= {int, RequestRepeated}
    assert len({each for each in answers if isinstance(each, int)}) == 1
    assert book_as(hospital, "reception", wish, key) in answers
    assert len(of_day(practice, day)) == 1


def book_as(hospital: Hospital, username: str, wish: Asked, key: str | None = None) -> int:
    with factories.acting(hospital.accounts[username]), guard.unit_of_work() as session:
        return scheduling.book(session, wish, key=key).id


def of_day(practice: Practice, day: date) -> list[Any]:
    """Visits of a day that hold their time."""
    statement = text(
        "SELECT * FROM appointment WHERE start_at >= :opens AND start_at < :closes AND branch_id = :branch"
        " AND wb_blocks(status) ORDER BY start_at"
    )
    opens, closes = day_of(day, practice.clock)
    with guard.engine().connect() as connection:
        return list(
            connection.execute(statement, {"opens": opens, "closes": closes, "branch": practice.branch}).mappings()
        )


# ---- many at the same moment -------------------------------------------------------------------------------------


def at_once(many: int, what: Callable[[int], Any]) -> list[Any]:
    """What so many threads get that begin at the same moment: what they are given, or the error itself."""
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


@pytest.fixture(scope="module")
def crowd(practice: Practice, hospital_of_module: Hospital) -> list[dict[str, int]]:
    """Fifty of everything: doctor, room, equipment and patient, each with hours."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        people = [
            Practitioner(family=f"Crowd {n}", given="", home_branch_id=practice.branch, active=True)
            for n in range(CROWD)
        ]
        rooms = [Room(branch_id=practice.branch, name=f"Crowd {n}") for n in range(CROWD)]
        things = [Equipment(branch_id=practice.branch, name=f"Crowd {n}") for n in range(CROWD)]
        session.add_all([*people, *rooms, *things])
        session.flush()
        registered = [
            factories.patients.register(
                session, factories.told(f"Crowd {n}", "Test"), branch_id=practice.branch, insist=True
            )
            for n in range(CROWD)
        ]
        for person in people:
            for weekday in range(1, 8):
                factories.work(session, person.id, practice.branch, weekday, time(8), time(18))
        session.flush()
        return [
            {"practitioner_id": p.id, "room_id": r.id, "equipment_id": t.id, "patient_id": w.id}
            for p, r, t, w in zip(people, rooms, things, registered, strict=True)
        ]


@pytest.fixture(scope="module")
def hospital_of_module(database: Database) -> Hospital:
    found: Hospital = database.hospital
    return found


SHARED = ["practitioner_id", "room_id", "equipment_id", "patient_id"]


def wishes(practice: Practice, crowd: list[dict[str, int]], shared: str, start: datetime) -> list[dict[str, Any]]:
    """Fifty wishes for overlapping times that have one thing in common."""
    return [
        {**each, shared: crowd[0][shared], "start": start + timedelta(minutes=nth % 6 * 5)}
        for nth, each in enumerate(crowd)
    ]


@pytest.mark.parametrize("shared", SHARED)
def test_of_fifty_desks_at_once_one_books(
    practice: Practice, hospital: Hospital, crowd: list[dict[str, int]], day: date, shared: str
) -> None:
    kind = plain_kind(practice)
    asking = [
        Asked(
            each["patient_id"],
            kind,
            each["practitioner_id"],
            each["start"],
            room_id=each["room_id"],
            equipment_ids=(each["equipment_id"],),
            branch_id=practice.branch,
        )
        for each in wishes(practice, crowd, shared, practice.at(day, 10))
    ]
    answers = at_once(CROWD, lambda nth: book_as(hospital, "reception", asking[nth]))
    assert Counter(type(each) for each in answers) == {int: 1, SlotTaken: CROWD - 1}
    assert [row["id"] for row in of_day(practice, day)] == [each for each in answers if isinstance(each, int)]


@pytest.mark.parametrize("shared", SHARED)
def test_of_fifty_who_write_raw_sql_at_once_one_books(
    practice: Practice, crowd: list[dict[str, int]], day: date, shared: str
) -> None:
    asking = wishes(practice, crowd, shared, practice.at(day, 10))

    def write(nth: int) -> int:
        each = asking[nth]
        with raw() as connection:
            return write_raw(
                connection,
                practice,
                each["start"],
                doctor=each["practitioner_id"],
                room=each["room_id"],
                equipment=[each["equipment_id"]],
                patient=each["patient_id"],
            )

    answers = at_once(CROWD, write)
    assert Counter(type(each) for each in answers) == {int: 1, sql.ExclusionViolation: CROWD - 1}
    assert [row["id"] for row in of_day(practice, day)] == [each for each in answers if isinstance(each, int)]


def test_desks_that_leave_the_room_to_us_do_not_get_the_same(
    practice: Practice, hospital: Hospital, crowd: list[dict[str, int]], day: date
) -> None:
    """Twenty ask for a visit in one of two rooms: two are booked."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        kind = VisitType(name=f"Two rooms {day}", minutes=30)
        kind.rooms = [session.get_one(Room, key) for key in practice.rooms]
        session.add(kind)
        session.flush()
        number = kind.id
    start = practice.at(day, 10)

    def book(nth: int) -> int:
        who = crowd[nth]
        wish = Asked(who["patient_id"], number, who["practitioner_id"], start, branch_id=practice.branch)
        return book_as(hospital, "reception", wish)

    answers = at_once(20, book)
    assert Counter(type(each) for each in answers) == {int: 2, SlotTaken: 18}
    assert {row["room_id"] for row in of_day(practice, day)} == set(practice.rooms)


def test_desks_that_move_visits_across_each_other_come_to_an_end(
    practice: Practice, hospital: Hospital, crowd: list[dict[str, int]], day: date
) -> None:
    """Each of ten wants to go where its neighbour is: whoever moves first leaves room for another, and no two meet."""
    kind, clash = plain_kind(practice), Counter[type]()
    standing = [
        book_as(
            hospital,
            "reception",
            Asked(
                crowd[nth]["patient_id"],
                kind,
                crowd[nth % 2]["practitioner_id"],
                practice.at(day, 9) + timedelta(minutes=30 * nth),
                room_id=crowd[nth % 3]["room_id"],
                branch_id=practice.branch,
            ),
        )
        for nth in range(10)
    ]

    def move(nth: int) -> int:
        with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
            start = practice.at(day, 9) + timedelta(minutes=30 * ((nth + 1) % 10))
            other = crowd[(nth + 1) % 2]["practitioner_id"]
            return scheduling.move(session, standing[nth], start_at=start, practitioner_id=other).id

    clash.update(type(each) for each in at_once(10, move))
    assert set(clash) <= {int, SlotTaken}
    assert clash[int] + clash[SlotTaken] == 10
    assert len(of_day(practice, day)) == 10


def counter(practice: Practice) -> int:
    today = now().astimezone(practice.clock).date()
    statement = text("SELECT last FROM queue_number WHERE branch_id = :branch AND day = :day")
    with guard.engine().connect() as connection:
        return connection.execute(statement, {"branch": practice.branch, "day": today}).scalar() or 0


def test_numbers_are_given_once_and_without_gaps(
    practice: Practice, hospital: Hospital, crowd: list[dict[str, int]], in_state: Callable[..., int]
) -> None:
    """Twenty arrive at once, and five more whose visits are over and who get none."""
    start = now() + timedelta(hours=1)
    coming = []
    with raw() as connection:
        for nth, who in enumerate(crowd[:20]):
            coming.append(
                write_raw(connection, practice, start, doctor=who["practitioner_id"], patient=who["patient_id"])
            )
            assert len(coming) == nth + 1
        over = [
            write_raw(
                connection, practice, start, doctor=w["practitioner_id"], patient=w["patient_id"], status="noshow"
            )
            for w in crowd[20:25]
        ]
    before, both = counter(practice), [*coming, *over]

    def arrive(nth: int) -> int:
        with factories.acting(hospital.accounts["reception"]), guard.unit_of_work() as session:
            return scheduling.arrive(session, both[nth]).queue_number or 0

    answers = at_once(25, arrive)
    assert {type(each) for each in answers[20:]} == {IllegalTransition}
    assert sorted(answers[:20]) == list(range(before + 1, before + 21))


# ---- whose visits one sees ---------------------------------------------------------------------------------------


def seen(practice: Practice, day: date, hospital: Hospital, username: str) -> set[int]:
    opens, closes = day_of(day, practice.clock)
    with factories.acting(hospital.accounts[username]):
        return {visit.id for visit in scheduling.between(guard.session(), opens, closes)}


def test_a_role_that_sees_its_own_branch_sees_those_expected_there(
    practice: Practice, hospital: Hospital, desk: Desk, day: date, granted: Callable[..., None], acting: Acting
) -> None:
    """The nurse works at the first branch only; of two patients of the second, one is expected at the first."""
    stranger, expected = practice.patients[3], practice.patients[5]
    with guard.engine().begin() as connection:  # what other tests have left
        ids = {"ids": [stranger, expected]}
        connection.execute(
            text(
                "UPDATE appointment SET status = 'entered-in-error', cancelation_reason = NULL WHERE patient_id = ANY(:ids)"
            ),
            ids,
        )
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for weekday in range(1, 8):
            factories.work(session, hospital.staff["doctor"], hospital.branches[1], weekday, time(0), time(23, 59))
    far = desk(
        scheduling.book,
        asked(practice, practice.at(day, 19), branch_id=hospital.branches[1], patient_id=stranger),
    )
    other = desk(scheduling.book, asked(practice, practice.at(day, 9), patient_id=expected))
    assert seen(practice, day, hospital, "nurse") == {far.id, other.id}
    own = {"rows": RowScope.OWN_BRANCH}
    granted("Nurse", Appointment=may("read create update", **own), Patient=may("read", **own))
    assert far.id not in seen(practice, day, hospital, "nurse")
    assert other.id in seen(practice, day, hospital, "nurse")
    for verb, said in ((scheduling.cancel, {"reason": "pat"}), (scheduling.arrive, {}), (scheduling.withdraw, {})):
        with refused(NotFound):
            desk(verb, far.id, by="nurse", **said)
    with refused(NotFound):
        desk(scheduling.move, far.id, by="nurse", start_at=practice.at(day, 12))
    with acting("nurse"):
        assert guard.session().get(Patient, expected) is not None
    desk(scheduling.cancel, other.id, by="nurse", reason="pat")
    assert other.id in seen(practice, day, hospital, "nurse")
    with acting("nurse"):
        assert guard.session().get(Patient, expected) is None  # not expected any longer
    with guard.engine().begin() as connection:
        connection.execute(text("DELETE FROM working_hours WHERE branch_id = :id"), {"id": hospital.branches[1]})


def test_a_role_that_sees_its_own_patients_sees_those_it_expects(
    practice: Practice, hospital: Hospital, desk: Desk, day: date, granted: Callable[..., None]
) -> None:
    mine = desk(scheduling.book, asked(practice, practice.at(day, 9), patient_id=practice.patients[8]))
    nurses = desk(
        scheduling.book,
        asked(practice, practice.at(day, 9), patient_id=practice.patients[9], practitioner_id=practice.people[1]),
    )
    granted("Doctor", Appointment=may("read create update", rows=RowScope.CARE_TEAM))
    assert seen(practice, day, hospital, "doctor") == {mine.id}
    with refused(NotFound):
        desk(scheduling.show, nurses.id, by="doctor")
    with refused(NotFound):
        desk(scheduling.cancel, nurses.id, by="doctor", reason="pat")
    desk(scheduling.cancel, mine.id, by="doctor", reason="prov")
    assert stored(mine)["status"] == "cancelled"


def test_a_patient_sees_their_own(practice: Practice, hospital: Hospital, desk: Desk, day: date) -> None:
    mine = desk(scheduling.book, asked(practice, practice.at(day, 9), patient_id=practice.patients[0]))
    desk(scheduling.book, asked(practice, practice.at(day, 10), patient_id=practice.patients[1]))
    assert seen(practice, day, hospital, "patient") == {mine.id}
    with refused(Forbidden):
        desk(scheduling.cancel, mine.id, by="patient", reason="pat")


# ---- finding a time ----------------------------------------------------------------------------------------------


def free(practice: Practice, day: date, kind: int | None = None, **more: Any) -> list[FreeTime]:
    """The free times of a day with the doctor."""
    said: dict[str, Any] = {
        "branch_ids": [practice.branch],
        "practitioner_ids": [practice.people[0]],
        "origin": day_of(day, practice.clock)[0],
        "until": day_of(day, practice.clock)[1],
        "most": 500,
    }
    with guard.acting_as(service("demo")):
        session = guard.session()
        return free_times.first_free(session, session.get_one(VisitType, kind or practice.visit), **{**said, **more})


def clocks(practice: Practice, found: list[FreeTime]) -> list[str]:
    return [f"{each.start_at.astimezone(practice.clock):%H:%M}" for each in found]


def every_half_hour(opens: float = 8, closes: float = 18) -> list[str]:
    halves = range(int(opens * 2), int(closes * 2))
    return [f"{half // 2:02}:{half % 2 * 30:02}" for half in halves]


def excepted(practice: Practice, kind: ScheduleChange, since: datetime, until: datetime, **whose: Any) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.add(ScheduleException(kind=kind, starts_at=since, ends_at=until, **whose))


def test_free_times_are_the_hours_less_what_is_booked(practice: Practice, desk: Desk, day: date) -> None:
    assert clocks(practice, free(practice, day)) == every_half_hour()
    visit = desk(scheduling.book, asked(practice, practice.at(day, 10)))
    left = [each for each in every_half_hour() if each != "10:00"]
    assert clocks(practice, free(practice, day)) == left
    desk(scheduling.cancel, visit.id, reason="pat")
    assert clocks(practice, free(practice, day)) == every_half_hour()


def test_free_times_leave_out_what_the_patient_has_elsewhere(practice: Practice, desk: Desk, day: date) -> None:
    desk(scheduling.book, asked(practice, practice.at(day, 10), practitioner_id=practice.people[1]))
    found = clocks(practice, free(practice, day, patient_id=practice.patients[2]))
    assert found == [each for each in every_half_hour() if each != "10:00"]
    assert clocks(practice, free(practice, day, patient_id=practice.patients[3])) == every_half_hour()


def test_leave_holidays_and_extra_sessions(practice: Practice, day: date) -> None:
    doctor, branch = practice.people[0], practice.branch
    excepted(practice, ScheduleChange.HOLIDAY, practice.at(day, 0), practice.at(day, 12), branch_id=branch)
    assert clocks(practice, free(practice, day)) == every_half_hour(12)
    extra = {"practitioner_id": doctor, "branch_id": branch}
    excepted(practice, ScheduleChange.EXTRA, practice.at(day, 19), practice.at(day, 20), **extra)
    excepted(practice, ScheduleChange.EXTRA, practice.at(day, 9), practice.at(day, 10), **extra)
    assert clocks(practice, free(practice, day)) == [*every_half_hour(9, 10), *every_half_hour(12), "19:00", "19:30"]
    excepted(practice, ScheduleChange.LEAVE, practice.at(day, 13), practice.at(day, 19, 30), practitioner_id=doctor)
    assert clocks(practice, free(practice, day)) == [*every_half_hour(9, 10), *every_half_hour(12, 13), "19:30"]
    assert clocks(practice, free(practice, day, practitioner_ids=[practice.people[1]])) == every_half_hour(12)


def test_leave_from_one_branch_leaves_the_other(practice: Practice, hospital: Hospital, day: date) -> None:
    excepted(
        practice,
        ScheduleChange.LEAVE,
        practice.at(day, 0),
        practice.at(day, 23),
        practitioner_id=practice.people[0],
        branch_id=hospital.branches[1],
    )
    assert clocks(practice, free(practice, day)) == every_half_hour()


def test_free_times_have_a_room_and_equipment(practice: Practice, desk: Desk, day: date) -> None:
    found = free(practice, day, practice.scan, practitioner_ids=practice.people)
    assert found
    assert {each.equipment_id for each in found} == {practice.scanner}
    assert {each.room_id for each in found} <= set(practice.rooms)
    assert clocks(practice, found)[0] == "08:05"
    assert {each.end_at - each.start_at for each in found} == {timedelta(minutes=30)}
    desk(
        scheduling.book,
        asked(practice, practice.at(day, 9), visit_type_id=practice.scan, practitioner_id=practice.people[1]),
    )
    taken = (practice.at(day, 8, 55), practice.at(day, 9, 40))
    for each in free(practice, day, practice.scan, practitioner_ids=practice.people):
        opens, closes = each.start_at - timedelta(minutes=5), each.end_at + timedelta(minutes=10)
        assert closes <= taken[0] or opens >= taken[1]
    only = free(practice, day, practice.scan, room_id=practice.rooms[1])
    assert {each.room_id for each in only} == {practice.rooms[1]}


def test_every_free_time_can_be_booked_and_then_none_is_left(practice: Practice, desk: Desk, day: date) -> None:
    """A day with something in the way of everything; what is found does not overlap, and the database agrees."""
    for hour, more in (
        (9, {}),
        (11, {"practitioner_id": practice.people[1]}),
        (14, {"patient_id": practice.patients[4]}),
    ):
        desk(scheduling.book, asked(practice, practice.at(day, hour, 10), visit_type_id=practice.scan, **more))
    taken = 0
    while found := free(
        practice, day, practice.scan, practitioner_ids=practice.people, patient_id=practice.patients[5], most=1
    ):
        wish = asked(
            practice,
            found[0].start_at,
            patient_id=practice.patients[5],
            visit_type_id=practice.scan,
            practitioner_id=found[0].practitioner_id,
            room_id=found[0].room_id,
            equipment_ids=(found[0].equipment_id,),
        )
        desk(scheduling.book, wish)
        taken += 1
    assert taken >= 8
    one = replace(wish, room_id=None, equipment_ids=())
    for minute in range(0, 10 * 60, 5):
        start = practice.at(day, 8) + timedelta(minutes=minute)
        for person in practice.people:
            with pytest.raises((SlotTaken, OutsideHours)):
                desk(scheduling.book, replace(one, start_at=start, practitioner_id=person))


def test_only_who_is_asked_for_and_does_it(practice: Practice, day: date) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        kind = VisitType(name=f"Nurse only {day}", minutes=30, needs_room=False)
        kind.practitioners = [session.get_one(Practitioner, practice.people[1])]
        session.add(kind)
        session.flush()
        number = kind.id
    assert free(practice, day, number) == []
    assert {each.practitioner_id for each in free(practice, day, number, practitioner_ids=None)} == {practice.people[1]}
    with altered(Practitioner, practice.people[1], active=False):
        assert free(practice, day, number, practitioner_ids=None) == []


def test_pages_have_no_gaps_and_no_doubles(practice: Practice, desk: Desk, day: date) -> None:
    """Over six weeks, so that the search goes on from one stretch of days to the next several times."""
    for later in range(0, 40, 3):
        desk(scheduling.book, asked(practice, practice.at(day + timedelta(days=later), 9, 20)))
    until = practice.at(day + timedelta(days=42), 0)
    said: dict[str, Any] = {"practitioner_ids": practice.people, "until": until}
    whole = free(practice, day, most=5000, **said)
    assert len(whole) > 1500
    paged: list[FreeTime] = []
    while page := free(practice, day, most=97, after=paged[-1] if paged else None, **said):
        paged += page
    assert paged == whole
    keys = [(each.start_at, each.practitioner_id) for each in whole]
    assert keys == sorted(set(keys))
    next(itertools.islice(_days, 45, 45), None)


def test_a_night_shift_goes_over_midnight(practice: Practice, desk: Desk, day: date, hospital: Hospital) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        factories.work(session, hospital.staff["lab"], practice.branch, day.isoweekday(), time(22), time(6))
    night = free(
        practice, day, practitioner_ids=[hospital.staff["lab"]], until=practice.at(day + timedelta(days=1), 12)
    )
    assert clocks(practice, night) == [*every_half_hour(22, 24), *every_half_hour(0, 6)]
    over = asked(practice, practice.at(day, 23, 45), practitioner_id=hospital.staff["lab"])
    desk(scheduling.book, over)
    with refused(OutsideHours):
        desk(scheduling.book, replace(over, start_at=practice.at(day + timedelta(days=1), 5, 45)))
    with guard.engine().begin() as connection:
        connection.execute(text("DELETE FROM working_hours WHERE practitioner_id = :id"), {"id": hospital.staff["lab"]})


def test_two_branches_have_two_clocks(practice: Practice, hospital: Hospital, day: date) -> None:
    new_york = ZoneInfo("America/New_York")
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for weekday in range(1, 8):
            factories.work(session, hospital.staff["admin"], hospital.branches[1], weekday, time(9), time(12))
    found = free(practice, day, practitioner_ids=[hospital.staff["admin"]], branch_ids=hospital.branches)
    assert [f"{each.start_at.astimezone(new_york):%H:%M}" for each in found] == every_half_hour(9, 12)
    assert {each.branch_id for each in found} == {hospital.branches[1]}
    both = free(practice, day, practitioner_ids=None, branch_ids=hospital.branches, most=5000)
    assert {each.branch_id for each in both} == set(hospital.branches)
    assert [each.start_at for each in both] == sorted(each.start_at for each in both)
    with guard.engine().begin() as connection:
        connection.execute(text("DELETE FROM working_hours WHERE branch_id = :id"), {"id": hospital.branches[1]})


def change_of_clocks(spring: bool) -> date:
    """The next day on which clocks in Madrid go forward, or back, that lies two months ahead at least."""
    day = now().date() + timedelta(days=60)
    while (day_of(day, ZoneInfo("Europe/Madrid"))[1] - day_of(day, ZoneInfo("Europe/Madrid"))[0]) != timedelta(
        hours=23 if spring else 25
    ):
        day += timedelta(days=1)
    return day


@pytest.mark.parametrize(("spring", "count"), [(True, 46), (False, 50)])
def test_days_on_which_clocks_are_changed(practice: Practice, hospital: Hospital, spring: bool, count: int) -> None:
    """Somebody who works around the clock has 23 or 25 hours; and a shift in the hour that is left out is none."""
    day = change_of_clocks(spring)
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for opens, closes in ((time(0), time(12)), (time(12), time(0))):
            factories.work(session, hospital.staff["lab"], practice.branch, day.isoweekday(), opens, closes)
        factories.work(session, hospital.staff["billing"], practice.branch, day.isoweekday(), time(2, 30), time(3))
        factories.work(session, hospital.staff["privacy"], practice.branch, day.isoweekday(), time(8), time(18))
    found = free(practice, day, practitioner_ids=[hospital.staff["lab"]])
    assert len(found) == count
    assert all(b.start_at - a.start_at == timedelta(minutes=30) for a, b in itertools.pairwise(found))
    short = free(practice, day, practitioner_ids=[hospital.staff["billing"]])
    assert clocks(practice, short) == ([] if spring else ["02:30"])
    assert clocks(practice, free(practice, day, practitioner_ids=[hospital.staff["privacy"]])) == every_half_hour()
    with guard.engine().begin() as connection:
        connection.execute(
            text("DELETE FROM working_hours WHERE practitioner_id = ANY(:ids)"),
            {"ids": [hospital.staff[username] for username in ("lab", "billing", "privacy")]},
        )


def test_a_held_time_is_taken_until_it_runs_out(practice: Practice, desk: Desk, day: date) -> None:
    start = practice.at(day, 9)
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        held = SlotOffer(
            branch_id=practice.branch,
            visit_type_id=practice.scan,
            practitioner_id=practice.people[0],
            room_id=practice.rooms[0],
            equipment_ids=[practice.scanner],
            start_at=start,
            end_at=start + timedelta(minutes=30),
            until_at=now() + timedelta(minutes=15),
        )
        session.add(held)
        session.flush()
        number = held.id
    wish = asked(practice, start)
    assert "09:00" not in clocks(practice, free(practice, day))
    with refused(SlotTaken):
        desk(scheduling.book, wish)
    scan = asked(practice, start, visit_type_id=practice.scan, practitioner_id=practice.people[1])
    with refused(SlotTaken):
        desk(scheduling.book, scan)  # the scanner is held
    with guard.engine().begin() as connection:
        connection.execute(text("UPDATE slot_offer SET until_at = now() WHERE id = :id"), {"id": number})
    assert "09:00" in clocks(practice, free(practice, day))
    with guard.acting_as(service("demo")):
        assert scheduling.what_clashes(guard.session(), wish) == []
    desk(scheduling.book, replace(scan, patient_id=practice.patients[3]))
    desk(scheduling.book, wish)
    assert factories.stored(SlotOffer, number)["status"] == "expired"


def test_three_alternatives_that_can_be_booked(practice: Practice, desk: Desk, day: date) -> None:
    wish = asked(practice, practice.at(day, 9))
    desk(scheduling.book, wish)
    other = replace(wish, patient_id=practice.patients[3])
    with guard.acting_as(service("demo")):
        found = scheduling.alternatives(guard.session(), other)
    assert len(found) == 3
    assert {each.practitioner_id for each in found[:2]} == {practice.people[0]}
    for each in found:
        visit = desk(scheduling.book, replace(other, start_at=each.start_at, practitioner_id=each.practitioner_id))
        desk(scheduling.cancel, visit.id, reason="pat")
