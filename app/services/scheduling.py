"""Visits to come: booked, moved, called off, arrived, seen. The database decides that no two of them overlap."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec
from sqlalchemy import Select, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, joinedload, selectinload

from app import events, guard
from app.actor import current
from app.errors import IllegalTransition, Invalid, KeyReused, NotAtBranch, NotFound, OutsideHours, SlotTaken
from app.services import free_times
from app.services.clock import zone
from app.services.free_times import FreeTime, Wanted
from app.services.words import line
from models.base import Protected, now
from models.clinical import Encounter
from models.codes import AppointmentStatus, CancelationReason, EncounterStatus
from models.organization import Branch, Practitioner, Room
from models.patients import Patient
from models.scheduling import (
    BLOCKING,
    LONGEST,
    TRANSITIONS,
    Appointment,
    AppointmentHistory,
    Equipment,
    QueueNumber,
    VisitType,
)

GRACE = timedelta(minutes=15)
"""A visit that began this short a time ago is still booked as one of now."""
FARTHEST = timedelta(days=2 * 366)
ALTERNATIVES = 3
S = AppointmentStatus
M = TypeVar("M", bound=Protected)


@dataclass(frozen=True)
class Asked:
    """What somebody wants booked; `branch_id` None is the room's or the actor's own, `minutes` None is the kind's."""

    patient_id: int
    visit_type_id: int
    practitioner_id: int
    start_at: datetime
    minutes: int | None = None
    room_id: int | None = None
    equipment_ids: tuple[int, ...] = ()
    branch_id: int | None = None
    reason: str = ""
    override_reason: str = ""
    walk_in: bool = False

    def digest(self) -> bytes:
        """What tells this request from another one."""
        return hashlib.sha256(msgspec.json.encode(self)).digest()


@dataclass(frozen=True)
class Taken:
    """A resource that is not free, by name: `kind` is practitioner, room, equipment or patient."""

    kind: str
    id: int
    name: str
    since: datetime
    until: datetime


# ---- booking -----------------------------------------------------------------------------------------------------


def book(session: Session, asked: Asked, *, key: str | None = None) -> Appointment:
    """Book a visit. With a `key` (Idempotency-Key) the same request books once, however often it is sent.

    Raises SlotTaken where something is not free: the database decides, so of two at once one is refused. Raises
    OutsideHours, NotAtBranch, Invalid (naming the field), NotFound, KeyReused, and RequestRepeated to be asked again.
    """
    guard.require("create", "Appointment")
    if key is not None and (before := _asked_before(session, asked, key)) is not None:
        return before
    visit = prepared(session, asked)
    visit.request_key, visit.request_digest = key, asked.digest() if key else None
    return write(session, visit)


def _asked_before(session: Session, asked: Asked, key: str) -> Appointment | None:
    """The visit that a key has booked already. Raises KeyReused where it was sent with another request."""
    if not 1 <= len(key) <= 255 or not key.isprintable():
        raise Invalid("An Idempotency-Key has 1 to 255 letters.", field="Idempotency-Key")
    mine = select(Appointment).where(Appointment.created_by_id == current().user_id, Appointment.request_key == key)
    before = session.scalars(mine).one_or_none()
    if before is not None and before.request_digest != asked.digest():
        raise KeyReused
    return before


def prepared(session: Session, asked: Asked) -> Appointment:
    """The visit as it would be written, with a room and equipment found where none is named. Raises as `book` does."""
    kind = _kind(session, asked.visit_type_id)
    patient = _found(session, Patient, asked.patient_id, "patient")
    practitioner = _found(session, Practitioner, asked.practitioner_id, "practitioner")
    room = _found(session, Room, asked.room_id, "room") if asked.room_id is not None else None
    things = [_found(session, Equipment, key, "equipment") for key in dict.fromkeys(asked.equipment_ids)]
    branch_id = asked.branch_id or (room.branch_id if room else None) or current().branch_id
    if branch_id is None:
        raise Invalid("Please choose a branch.", field="branch")
    branch = _found(session, Branch, branch_id, "branch")
    rows: tuple[tuple[Any, str, str], ...] = (
        (kind, "visit_type", "This kind of visit is no longer offered."),
        (patient, "patient", "This record is closed, so nothing can be booked for it."),
        (practitioner, "practitioner", "This doctor does not work here any more."),
        (room, "room", "This room is no longer in use."),
        (branch, "branch", "This branch is closed."),
        *((thing, "equipment", "This equipment is no longer in use.") for thing in things),
    )
    for row, field, gone in rows:
        if row is not None and not row.active:
            raise Invalid(gone, field=field)
    if patient.deceased:
        raise Invalid("This patient has died, so nothing can be booked.", field="patient")
    if room is not None and room.branch_id != branch.id:
        raise Invalid("This room belongs to another branch.", field="room")
    if any(thing.branch_id != branch.id for thing in things):
        raise Invalid("This equipment belongs to another branch.", field="equipment")
    _allowed(kind, practitioner, room, things)
    minutes = kind.minutes if asked.minutes is None else asked.minutes
    start, end = _times(asked.start_at, minutes)
    wanted = Wanted(
        practitioner.id,
        patient.id,
        room.id if room else None,
        tuple(thing.id for thing in things),
        start,
        end,
        kind.buffer_before,
        kind.buffer_after,
    )
    override = _within_hours(session, wanted, practitioner, branch, asked)
    wanted = _furnished(session, kind, branch, wanted)
    return Appointment(
        status=S.BOOKED,
        patient_id=patient.id,
        branch_id=branch.id,
        visit_type_id=kind.id,
        practitioner_id=practitioner.id,
        room_id=wanted.room_id,
        equipment_ids=list(wanted.equipment_ids),
        start_at=start,
        end_at=end,
        buffer_before=kind.buffer_before,
        buffer_after=kind.buffer_after,
        reason=line(asked.reason, field="reason", longest=500),
        walk_in=asked.walk_in,
        override_reason=override,
        sequence=0,
        created_by_id=current().user_id,
        changed_by_id=current().user_id,
    )


def _found(session: Session, kind: type[M], key: int, field: str) -> M:
    """A row by its number. Raises Invalid, naming the field, for one that is not there or not the actor's to see."""
    row = session.get(kind, key) if 0 < key < 2**63 else None
    if row is None:
        raise Invalid("There is none such, or it is not open to you.", field=field)
    return row


def _times(start: datetime, minutes: int) -> tuple[datetime, datetime]:
    """When a visit begins and ends. Raises Invalid."""
    if start.tzinfo is None:
        raise Invalid("Say the time with its offset, such as 2026-11-22T09:30:00+01:00.", field="start")
    if not 5 <= minutes <= LONGEST.total_seconds() / 60:
        raise Invalid("A visit lasts 5 minutes to 12 hours.", field="minutes")
    if not -FARTHEST < start - now() < FARTHEST:
        raise Invalid("Visits can be booked two years ahead, and written down for two years back.", field="start")
    start = start.replace(second=0, microsecond=0)
    return start, start + timedelta(minutes=minutes)


def _kind(session: Session, key: int) -> VisitType:
    """A kind of visit with who does it, where and with what. Raises Invalid."""
    kind = _found(session, VisitType, key, "visit_type")
    with_all = [selectinload(each) for each in (VisitType.practitioners, VisitType.rooms, VisitType.equipment)]
    again = select(VisitType).where(VisitType.id == kind.id).options(*with_all)
    return session.scalars(again.execution_options(populate_existing=True)).one()


def _allowed(kind: VisitType, practitioner: Practitioner, room: Room | None, things: Sequence[Equipment]) -> None:
    """Raises Invalid where a kind of visit is not done by that person, in that room or with that equipment."""
    if kind.practitioners and practitioner not in kind.practitioners:
        raise Invalid("This doctor does not do this kind of visit.", field="practitioner")
    if room is not None and kind.rooms and room not in kind.rooms:
        raise Invalid("This kind of visit does not take place in that room.", field="room")
    if kind.equipment and things and not set(things) & set(kind.equipment):
        raise Invalid("This kind of visit needs other equipment.", field="equipment")


def _within_hours(session: Session, wanted: Wanted, practitioner: Practitioner, branch: Branch, asked: Asked) -> str:
    """Why the visit is outside the hours or in the past, where it is. Raises OutsideHours and NotAtBranch."""
    late = wanted.start_at < now() - GRACE
    works = free_times.works_then(session, wanted, branch.id)
    if works and not late:
        return ""
    if not works and branch.id not in _branches_of(session, practitioner):
        raise NotAtBranch(field="practitioner")
    said = line(asked.override_reason, field="override_reason", longest=500)
    sentence = "That time has passed." if late else OutsideHours.sentence
    if not current().may("create", "ScheduleOverride"):
        guard.refuse("create", "ScheduleOverride")
        raise OutsideHours(sentence, field="start")
    if len(said) < 3:
        raise OutsideHours(f"{sentence} If it has to be, say why.", field="override_reason")
    return said


def _branches_of(session: Session, practitioner: Practitioner) -> set[int | None]:
    """The branches somebody belongs to."""
    again = select(Practitioner).where(Practitioner.id == practitioner.id).options(selectinload(Practitioner.branches))
    whole = session.scalars(again.execution_options(populate_existing=True)).one()
    return {whole.home_branch_id, *(branch.id for branch in whole.branches)}


def _furnished(session: Session, kind: VisitType, branch: Branch, wanted: Wanted) -> Wanted:
    """With a free room and free equipment, where the kind of visit needs them and none is named. Raises SlotTaken."""
    if kind.needs_room and wanted.room_id is None:
        free_times.choosing(session, branch.id)
        rooms = free_times.free_rooms(session, kind.id, branch.id, wanted)
        if not rooms:
            raise SlotTaken("No room is free at that time.", field="room")
        wanted = replace(wanted, room_id=rooms[0])
    if kind.equipment and not wanted.equipment_ids:
        free_times.choosing(session, branch.id)
        things = free_times.free_equipment(session, kind.id, branch.id, wanted)
        if not things:
            raise SlotTaken("The equipment it needs is not free at that time.", field="equipment")
        wanted = replace(wanted, equipment_ids=(things[0],))
    return wanted


def write(session: Session, visit: Appointment) -> Appointment:
    """Write a visit and make it known once it is committed."""
    session.add(visit)
    session.flush()
    _made_known(session, visit)
    return visit


def _made_known(session: Session, visit: Appointment) -> None:
    events.emit(
        session,
        events.AppointmentChanged(visit.id, visit.branch_id, visit.practitioner_id, visit.patient_id, visit.version),
    )


# ---- from one state to the next ----------------------------------------------------------------------------------


def held(session: Session, appointment_id: int, *, version: int | None = None) -> Appointment:
    """A visit, locked until the transaction ends. Raises NotFound, and IllegalTransition for one that has moved on."""
    statement = select(Appointment).where(Appointment.id == appointment_id).with_for_update()
    visit = session.scalars(statement.execution_options(populate_existing=True)).one_or_none()
    if visit is None:
        raise NotFound
    if version is not None and visit.version != version:
        raise IllegalTransition
    return visit


def advance(session: Session, visit: Appointment, to: AppointmentStatus, **also: Any) -> Appointment:
    """Bring a visit into another state: the one place where states change. Raises IllegalTransition."""
    guard.require("update", "Appointment")
    lawful = to is S.ENTERED_IN_ERROR and visit.status != S.ENTERED_IN_ERROR
    if to not in TRANSITIONS[AppointmentStatus(visit.status)] and not lawful:
        raise IllegalTransition
    visit.status = to
    for name, value in also.items():
        setattr(visit, name, value)
    visit.changed_by_id = current().user_id
    session.flush()
    _made_known(session, visit)
    return visit


def move(
    session: Session,
    appointment_id: int,
    *,
    start_at: datetime,
    minutes: int | None = None,
    practitioner_id: int | None = None,
    room_id: int | None = None,
    override_reason: str = "",
    version: int | None = None,
) -> Appointment:
    """Book a visit at another time, or with somebody else, in place of the one there is, which is called off.

    What is not named stays as it is. Gives the new one; raises as `book` does, and then the old one stands.
    """
    old = held(session, appointment_id, version=version)
    asked = instead(
        session,
        old,
        start_at=start_at,
        minutes=minutes,
        practitioner_id=practitioner_id,
        room_id=room_id,
        override_reason=override_reason,
    )
    return move_all(session, [(old, asked)])[0]


def instead(
    session: Session,
    old: Appointment,
    *,
    start_at: datetime,
    minutes: int | None = None,
    practitioner_id: int | None = None,
    room_id: int | None = None,
    override_reason: str = "",
) -> Asked:
    """What is asked for when a visit is moved; what is not named stays as it is. Raises IllegalTransition."""
    if old.status not in (S.BOOKED, S.PENDING):
        raise IllegalTransition("Only a visit that is still to come can be moved.")
    branch_id = old.branch_id if room_id is None else _found(session, Room, room_id, "room").branch_id
    return Asked(
        patient_id=old.patient_id,
        visit_type_id=old.visit_type_id,
        practitioner_id=practitioner_id or old.practitioner_id,
        start_at=start_at,
        minutes=round((old.end_at - old.start_at).total_seconds() / 60) if minutes is None else minutes,
        room_id=old.room_id if room_id is None else room_id,
        # Elsewhere it is done with what they have there.
        equipment_ids=tuple(old.equipment_ids) if branch_id == old.branch_id else (),
        branch_id=branch_id,
        reason=old.reason,
        override_reason=override_reason,
        walk_in=old.walk_in,
    )


def move_all(
    session: Session, moves: Sequence[tuple[Appointment, Asked]], *, series_id: int | None = None
) -> list[Appointment]:
    """Book something else in place of each of these visits, which the caller has locked; all of them or none.

    All are called off before the first is booked again, so that one may go where another was. With a `series_id` the
    new ones belong to that series.
    """
    new = [prepared(session, asked) for _, asked in moves]
    free_times.hold(session, *(wanted_by(old) for old, _ in moves), *map(wanted_by, new))
    for old, _ in moves:
        advance(session, old, S.CANCELLED, ended_at=now())
    for visit, (old, _) in zip(new, moves, strict=True):
        visit.moved_from_id, visit.uid, visit.sequence = old.id, old.uid, old.sequence + 1
        visit.series_id = series_id or old.series_id
        visit.reason = _reason_of(old)
        write(session, visit)
    return new


def _reason_of(visit: Appointment) -> Any:
    """What a visit is for, to be written elsewhere: the database copies what the actor is not shown."""
    if "reason" not in current().rights.hidden("Appointment"):
        return visit.reason
    kept = Appointment.__table__
    return select(kept.c.reason).where(kept.c.id == visit.id).scalar_subquery()


def wanted_by(visit: Appointment) -> Wanted:
    """What a visit takes of whose time."""
    return Wanted(
        visit.practitioner_id,
        visit.patient_id,
        visit.room_id,
        tuple(visit.equipment_ids),
        visit.start_at,
        visit.end_at,
        visit.buffer_before,
        visit.buffer_after,
    )


def cancel(session: Session, appointment_id: int, *, reason: str, version: int | None = None) -> Appointment:
    """Call a visit off, with a coded reason; also of somebody who arrived and left. Raises Invalid."""
    if reason not in set(CancelationReason):
        raise Invalid("Please choose one of the reasons offered.", field="reason")
    visit = held(session, appointment_id, version=version)
    return advance(session, visit, S.CANCELLED, cancelation_reason=reason, ended_at=now(), sequence=visit.sequence + 1)


def confirm(session: Session, visit: Appointment) -> Appointment:
    """The patient will come; the first time they said so is kept. Raises IllegalTransition where it is not to come."""
    if visit.status not in (S.BOOKED, S.PENDING):
        raise IllegalTransition
    if visit.confirmed_at is None:
        visit.confirmed_at = now()
        session.flush()
        _made_known(session, visit)
    return visit


def arrive(session: Session, appointment_id: int) -> Appointment:
    """The patient is here, and gets a number of the branch's day."""
    visit = held(session, appointment_id)
    if visit.status == S.BOOKED and visit.start_at > now() + timedelta(hours=12):
        raise IllegalTransition("This visit is on another day. Move it to today first.")
    number = visit.queue_number or _next_number(session, visit.branch_id)
    return advance(session, visit, S.ARRIVED, arrived_at=now(), queue_number=number)


def _next_number(session: Session, branch_id: int) -> int:
    """The next number of a branch's day, given once: the row is locked until the transaction ends."""
    branch = _found(session, Branch, branch_id, "branch")
    today = now().astimezone(zone(branch.time_zone)).date()
    counted = insert(QueueNumber).values(branch_id=branch_id, day=today, last=1)
    counted = counted.on_conflict_do_update(
        index_elements=["branch_id", "day"], set_={"last": QueueNumber.__table__.c.last + 1}
    )
    # The counter is nobody's record, and the gate knows no INSERT that gives something back.
    return int(session.connection().execute(counted.returning(QueueNumber.__table__.c.last)).scalar_one())


def undo_arrival(session: Session, appointment_id: int) -> Appointment:
    """It was somebody else who came."""
    return advance(session, held(session, appointment_id), S.BOOKED, arrived_at=None)


def check_in(session: Session, appointment_id: int) -> Appointment:
    """The paperwork is done and the patient can be seen: opens the encounter."""
    visit = held(session, appointment_id)
    if visit.status == S.BOOKED:
        visit = arrive(session, appointment_id)
    encounter = Encounter(
        patient_id=visit.patient_id,
        status=EncounterStatus.ARRIVED,
        class_code="AMB",
        branch_id=visit.branch_id,
        practitioner_id=visit.practitioner_id,
        started_at=now(),
        reason=_reason_of(visit),
        type_display=_found(session, VisitType, visit.visit_type_id, "visit_type").name,
    )
    session.add(encounter)
    session.flush()
    return advance(session, visit, S.CHECKED_IN, checked_in_at=now(), encounter_id=encounter.id)


def fulfil(session: Session, appointment_id: int) -> Appointment:
    """The patient was seen; from here on the encounter tells."""
    return advance(session, held(session, appointment_id), S.FULFILLED, ended_at=now())


def miss(session: Session, appointment_id: int) -> Appointment:
    """The patient did not come. Raises IllegalTransition before the visit was due."""
    visit = held(session, appointment_id)
    if visit.start_at > now():
        raise IllegalTransition("This visit is still to come.")
    return advance(session, visit, S.NOSHOW, ended_at=now())


def withdraw(session: Session, appointment_id: int) -> Appointment:
    """It was written by mistake."""
    return advance(session, held(session, appointment_id), S.ENTERED_IN_ERROR, cancelation_reason=None)


# ---- looking -----------------------------------------------------------------------------------------------------


def whole(statement: Select[Any]) -> Select[Any]:
    """With everything a page says of a visit."""
    return statement.options(
        joinedload(Appointment.patient),
        joinedload(Appointment.practitioner),
        joinedload(Appointment.visit_type),
        joinedload(Appointment.branch),
        joinedload(Appointment.room),
    )


def show(session: Session, appointment_id: int) -> Appointment:
    """A visit with everything about it. Raises NotFound."""
    visit: Appointment | None = session.scalars(
        whole(select(Appointment).where(Appointment.id == appointment_id))
    ).one_or_none()
    if visit is None:
        raise guard.refuse("read", "Appointment", NotFound)
    return visit


def shown(session: Session, appointment_ids: Collection[int]) -> Sequence[Appointment]:
    """Visits with everything about them, in order."""
    statement = select(Appointment).where(Appointment.id.in_(appointment_ids))
    return session.scalars(whole(statement.order_by(Appointment.start_at, Appointment.id))).all()


def between(
    session: Session,
    opens: datetime,
    closes: datetime,
    *,
    branch_ids: Sequence[int] = (),
    practitioner_ids: Sequence[int] = (),
    room_ids: Sequence[int] = (),
    visit_type_ids: Sequence[int] = (),
    statuses: Sequence[str] = (),
    most: int = 2000,
) -> Sequence[Appointment]:
    """The visits that touch a stretch of time, in order; narrowed to whatever is named."""
    statement = select(Appointment).where(
        Appointment.start_at < closes, Appointment.end_at > opens, Appointment.start_at > opens - LONGEST
    )
    for column, chosen in (
        (Appointment.branch_id, branch_ids),
        (Appointment.practitioner_id, practitioner_ids),
        (Appointment.room_id, room_ids),
        (Appointment.visit_type_id, visit_type_ids),
        (Appointment.status, statuses),
    ):
        if chosen:
            statement = statement.where(column.in_(chosen))
    ordered = whole(statement.order_by(Appointment.start_at, Appointment.id).limit(most))
    return session.scalars(ordered).all()


def history(session: Session, appointment_id: int) -> Sequence[AppointmentHistory]:
    """Every state a visit was in, the oldest first."""
    statement = select(AppointmentHistory).where(AppointmentHistory.appointment_id == appointment_id)
    return session.scalars(statement.order_by(AppointmentHistory.id)).all()


def what_clashes(session: Session, asked: Asked, *, besides: Collection[int] = ()) -> list[Taken]:
    """Which of the things asked for are taken then, by name. Nothing is told of whose visit it is."""
    kind = _found(session, VisitType, asked.visit_type_id, "visit_type")
    start, end = _times(asked.start_at, asked.minutes or kind.minutes)
    wanted = Wanted(
        asked.practitioner_id,
        asked.patient_id,
        asked.room_id,
        asked.equipment_ids,
        start,
        end,
        kind.buffer_before,
        kind.buffer_after,
    )
    named: dict[str, type[Any]] = {"practitioner": Practitioner, "room": Room, "equipment": Equipment}
    taken = []
    for clash in free_times.clashes(session, wanted, besides=besides):
        row = session.get(named[clash.kind], clash.id) if clash.kind in named else None
        taken.append(Taken(clash.kind, clash.id, str(row) if row else "", clash.since, clash.until))
    return taken


def alternatives(session: Session, asked: Asked) -> list[FreeTime]:
    """Three other times: the next ones of the same doctor, then of anybody."""
    kind = _found(session, VisitType, asked.visit_type_id, "visit_type")
    room = session.get(Room, asked.room_id) if asked.room_id else None
    branch_id = asked.branch_id or (room.branch_id if room else None) or current().branch_id
    if branch_id is None or asked.start_at.tzinfo is None:
        return []
    origin = max(asked.start_at, now())

    def first(people: list[int] | None, most: int) -> list[FreeTime]:
        return free_times.first_free(
            session,
            kind,
            branch_ids=[branch_id],
            practitioner_ids=people,
            patient_id=asked.patient_id,
            minutes=asked.minutes,
            origin=origin,
            most=most,
        )

    found = first([asked.practitioner_id], ALTERNATIVES - 1)
    found += [each for each in first(None, 2 * ALTERNATIVES) if each not in found]
    return found[:ALTERNATIVES]


__all__ = ["BLOCKING", "Asked", "Taken", "advance", "book", "cancel", "move"]
