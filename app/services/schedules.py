"""What visits are made of: their kinds, the equipment, when people work, and the days that are not as usual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session, joinedload

from app import guard
from app.errors import Invalid, NotFound
from app.services import free_times
from app.services.clock import day_of, zone
from app.services.scheduling import whole
from app.services.words import line
from models.base import now
from models.codes import AppointmentStatus, ScheduleChange
from models.organization import Branch, Practitioner, Room
from models.scheduling import BLOCKING, Appointment, Equipment, ScheduleException, VisitType, WorkingHours

AHEAD = timedelta(days=400)
"""How far visits are looked at that a change of hours would leave outside them."""
MOST_ABOUT = 200
"""Visits named at most."""
LONGEST_EXCEPTION = timedelta(days=366)

# ---- kinds of visits ---------------------------------------------------------------------------------------------


def offer_kind(
    session: Session,
    *,
    name: str,
    minutes: int | None,
    buffer_before: int | None = 0,
    buffer_after: int | None = 0,
    needs_room: bool = True,
    practitioners: Sequence[Practitioner] = (),
    rooms: Sequence[Room] = (),
    equipment: Sequence[Equipment] = (),
    active: bool = True,
) -> VisitType:
    """Offer a kind of visit. Raises Invalid, naming the field, and Conflict for a name in use."""
    kind = VisitType(needs_room=needs_room, active=active)
    _kind_told(kind, name, minutes, buffer_before, buffer_after)
    _kind_made_of(kind, practitioners, rooms, equipment)
    session.add(kind)
    session.flush()
    return kind


def change_kind(
    session: Session,
    kind: VisitType,
    *,
    name: str,
    minutes: int | None,
    buffer_before: int | None = 0,
    buffer_after: int | None = 0,
    needs_room: bool = True,
    practitioners: Sequence[Practitioner] = (),
    rooms: Sequence[Room] = (),
    equipment: Sequence[Equipment] = (),
    active: bool = True,
) -> None:
    """Set a kind of visit right; visits that are booked stay as they are. Raises as `offer_kind` does."""
    del session
    _kind_told(kind, name, minutes, buffer_before, buffer_after)
    _kind_made_of(kind, practitioners, rooms, equipment)
    kind.needs_room, kind.active = needs_room, active


def _kind_told(kind: VisitType, name: str, minutes: int | None, before: int | None, after: int | None) -> None:
    kind.name = _named(name)
    if minutes is None or not 5 <= minutes <= 720:
        raise Invalid("A visit lasts 5 minutes to 12 hours.", field="minutes")
    for field, kept in (("buffer_before", before or 0), ("buffer_after", after or 0)):
        if not 0 <= kept <= 120:
            raise Invalid("At most two hours can be kept free.", field=field)
        setattr(kind, field, kept)
    kind.minutes = minutes


def _kind_made_of(
    kind: VisitType, practitioners: Sequence[Practitioner], rooms: Sequence[Room], equipment: Sequence[Equipment]
) -> None:
    kind.practitioners, kind.rooms, kind.equipment = list(practitioners), list(rooms), list(equipment)


def _named(name: str | None) -> str:
    name = line(name, field="name", longest=80)
    if not name:
        raise Invalid("Please enter a name.", field="name")
    return name


# ---- equipment ---------------------------------------------------------------------------------------------------


def install(session: Session, *, branch: Branch | None, name: str, kind: str = "", active: bool = True) -> Equipment:
    """Add a piece of equipment to a branch. Raises Invalid, and Conflict for a name the branch has already."""
    if branch is None:
        raise Invalid("Please choose the branch.", field="branch")
    thing = Equipment(branch_id=branch.id, name=_named(name), kind=line(kind, field="kind", longest=80), active=active)
    thing.branch = branch
    session.add(thing)
    session.flush()
    return thing


def change_equipment(
    session: Session, thing: Equipment, *, branch: Branch | None, name: str, kind: str = "", active: bool = True
) -> None:
    """Set a piece of equipment right. Raises as `install` does; what visits are booked with does not move away."""
    if branch is None:
        raise Invalid("Please choose the branch.", field="branch")
    if branch.id != thing.branch_id and _booked_with(session, thing):
        raise Invalid("Visits are booked with it at its branch, so it has to stay there.", field="branch")
    thing.name, thing.kind, thing.active = _named(name), line(kind, field="kind", longest=80), active
    thing.branch_id, thing.branch = branch.id, branch


def _booked_with(session: Session, thing: Equipment) -> bool:
    coming = select(Appointment).where(
        Appointment.equipment_ids.contains([thing.id]),
        Appointment.end_at > now(),
        Appointment.status.in_(BLOCKING),
    )
    return session.scalars(coming.limit(1)).first() is not None


# ---- working hours -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Stretch:
    """A stretch of a working week by the branch's clock: `weekday` 1 is Monday; `ends` on the next day if not later."""

    weekday: int
    starts: time
    ends: time

    @property
    def minutes(self) -> tuple[int, int]:
        """From when to when, in minutes since Monday began."""
        since = (self.weekday - 1) * 1440 + self.starts.hour * 60 + self.starts.minute
        length = (self.ends.hour - self.starts.hour) * 60 + self.ends.minute - self.starts.minute
        return since, since + (length if length > 0 else length + 1440)


@dataclass(frozen=True)
class WeekChange:
    """What a new week changes: stretches that come and go, and the booked visits it leaves outside the hours."""

    comes: list[Stretch]
    goes: list[Stretch]
    outside: list[Appointment]
    """At most MOST_ABOUT of them."""


def hours_of(session: Session, practitioner_id: int, *, since: date | None = None) -> Sequence[WorkingHours]:
    """Somebody's hours at every branch, in order of the week; with `since` those that still count then or later."""
    statement = select(WorkingHours).where(WorkingHours.practitioner_id == practitioner_id)
    if since is not None:
        statement = statement.where(or_(WorkingHours.valid_until.is_(None), WorkingHours.valid_until >= since))
    statement = statement.options(joinedload(WorkingHours.branch))
    ordered = statement.order_by(WorkingHours.branch_id, WorkingHours.weekday, WorkingHours.starts)
    return session.scalars(ordered).all()


def everybodys_hours(session: Session, on: date) -> Sequence[WorkingHours]:
    """The hours of everybody that count on a day."""
    statement = select(WorkingHours).where(
        WorkingHours.valid_from <= on, or_(WorkingHours.valid_until.is_(None), WorkingHours.valid_until >= on)
    )
    ordered = statement.order_by(WorkingHours.practitioner_id, WorkingHours.branch_id, WorkingHours.weekday)
    return session.scalars(ordered.order_by(WorkingHours.starts)).all()


def week_of(session: Session, practitioner_id: int, branch_id: int, on: date) -> list[Stretch]:
    """Somebody's week at a branch, as it counts on a day."""
    return sorted(
        Stretch(row.weekday, row.starts, row.ends)
        for row in hours_of(session, practitioner_id, since=on)
        if row.branch_id == branch_id and row.valid_from <= on
    )


def set_week(
    session: Session, *, practitioner_id: int, branch_id: int, week: Sequence[Stretch], valid_from: date
) -> None:
    """Have somebody work these hours at a branch from a day on; what counted from then on counts no longer.

    Raises Invalid where stretches overlap, or for a day in the past that visits were booked by.
    """
    guard.require("update", "WorkingHours")
    practitioner, branch = session.get(Practitioner, practitioner_id), session.get(Branch, branch_id)
    if practitioner is None or branch is None:
        raise NotFound
    if not practitioner.active:
        raise Invalid("This doctor does not work here any more.", field="practitioner")
    if not branch.active:
        raise Invalid("This branch is closed.", field="branch")
    today = now().astimezone(zone(branch.time_zone)).date()
    if valid_from < today:
        raise Invalid("Hours are changed from today on; days that are over stay as they were.", field="valid_from")
    if valid_from > today + AHEAD:
        raise Invalid("Hours are planned a year ahead at most.", field="valid_from")
    wanted = _lawful(week)
    kept: set[Stretch] = set()
    for row in hours_of(session, practitioner_id, since=valid_from):
        if row.branch_id != branch_id:
            continue
        stretch = Stretch(row.weekday, row.starts, row.ends)
        if stretch in wanted and row.valid_from <= valid_from and row.valid_until is None and stretch not in kept:
            kept.add(stretch)
        elif row.valid_from >= valid_from:
            session.delete(row)
        else:
            row.valid_until = valid_from - timedelta(days=1)
    for stretch in wanted:
        if stretch not in kept:
            session.add(
                WorkingHours(
                    practitioner_id=practitioner_id,
                    branch_id=branch_id,
                    weekday=stretch.weekday,
                    starts=stretch.starts,
                    ends=stretch.ends,
                    valid_from=valid_from,
                )
            )
    session.flush()


def _lawful(week: Sequence[Stretch]) -> list[Stretch]:
    """The stretches in order. Raises Invalid, naming the day (`day1` is Monday), where one is none or two overlap."""
    ordered = sorted(set(week), key=lambda stretch: stretch.minutes)
    for stretch in ordered:
        if stretch.starts == stretch.ends:
            raise Invalid("Working hours end at another time than they begin.", field=f"day{stretch.weekday}")
    for before, after in zip(ordered, [*ordered[1:], *ordered[:1]], strict=True):
        ends = before.minutes[1]
        begins = after.minutes[0] + (7 * 1440 if after is ordered[0] else 0)
        if len(ordered) > 1 and begins < ends:
            raise Invalid("These hours overlap.", field=f"day{after.weekday}")
    return ordered


def week_change(
    session: Session, *, practitioner_id: int, branch_id: int, week: Sequence[Stretch], valid_from: date
) -> WeekChange:
    """What `set_week` would change, with nothing changed. Raises as it does."""
    before = week_of(session, practitioner_id, branch_id, valid_from)
    visits = _coming(session, practitioner_id, branch_id, valid_from)
    inside = _within(session, visits, practitioner_id, branch_id)
    trying = session.begin_nested()
    try:
        set_week(session, practitioner_id=practitioner_id, branch_id=branch_id, week=week, valid_from=valid_from)
        still = _within(session, visits, practitioner_id, branch_id)
    finally:
        trying.rollback()
    return WeekChange(
        comes=sorted(set(week) - set(before)),
        goes=sorted(set(before) - set(week)),
        outside=[visit for visit in visits if visit.id in inside - still],
    )


def _coming(session: Session, practitioner_id: int, branch_id: int, since: date) -> Sequence[Appointment]:
    """Somebody's booked visits at a branch from a day on."""
    branch = session.get(Branch, branch_id)
    begins = max(day_of(since, zone(branch.time_zone))[0], now()) if branch else now()
    statement = select(Appointment).where(
        Appointment.practitioner_id == practitioner_id,
        Appointment.branch_id == branch_id,
        Appointment.status.in_((AppointmentStatus.BOOKED, AppointmentStatus.PENDING)),
        Appointment.start_at >= begins,
        Appointment.start_at < begins + AHEAD,
    )
    return session.scalars(whole(statement.order_by(Appointment.start_at).limit(MOST_ABOUT))).all()


def _within(session: Session, visits: Sequence[Appointment], practitioner_id: int, branch_id: int) -> set[int]:
    """Which of the visits, with their buffers, lie within the hours as they are now."""
    if not visits:
        return set()
    buffer = timedelta(minutes=120)
    shifts = free_times.shifts(
        session, [practitioner_id], branch_id, visits[0].start_at - buffer, max(v.end_at for v in visits) + buffer
    )
    found = set()
    for visit in visits:
        opens = visit.start_at - timedelta(minutes=visit.buffer_before)
        closes = visit.end_at + timedelta(minutes=visit.buffer_after)
        if any(shift.since <= opens and closes <= shift.until for shift in shifts):
            found.add(visit.id)
    return found


# ---- leave, holidays, extra sessions -----------------------------------------------------------------------------


def exceptions(
    session: Session, *, since: datetime, practitioner_id: int | None = None, branch_id: int | None = None
) -> Sequence[ScheduleException]:
    """Leave, holidays and extra sessions that end after an instant, in order; of a person or at a branch, if named."""
    statement = select(ScheduleException).where(ScheduleException.ends_at > since)
    if practitioner_id is not None:
        statement = statement.where(ScheduleException.practitioner_id == practitioner_id)
    if branch_id is not None:
        here = or_(ScheduleException.branch_id == branch_id, ScheduleException.branch_id.is_(None))
        statement = statement.where(here)
    return session.scalars(
        _told(statement).order_by(ScheduleException.starts_at, ScheduleException.id).limit(500)
    ).all()


def exception(session: Session, exception_id: int) -> ScheduleException:
    """One of them. Raises NotFound."""
    statement = select(ScheduleException).where(ScheduleException.id == exception_id)
    row: ScheduleException | None = session.scalars(_told(statement)).one_or_none()
    if row is None:
        raise NotFound
    return row


def _told(statement: Select[Any]) -> Select[Any]:
    return statement.options(joinedload(ScheduleException.practitioner), joinedload(ScheduleException.branch))


def set_exception(
    session: Session,
    *,
    kind: str,
    practitioner_id: int | None,
    branch_id: int | None,
    starts_at: datetime,
    ends_at: datetime,
    note: str = "",
) -> ScheduleException:
    """Write down leave, a holiday or an extra session; visits in it stay booked. Raises Invalid, naming the field."""
    row = ScheduleException()
    _exception_told(session, row, kind, practitioner_id, branch_id, starts_at, ends_at, note)
    session.add(row)
    session.flush()
    return row


def change_exception(
    session: Session,
    row: ScheduleException,
    *,
    kind: str,
    practitioner_id: int | None,
    branch_id: int | None,
    starts_at: datetime,
    ends_at: datetime,
    note: str = "",
) -> None:
    """Set one right. Raises as `set_exception` does."""
    _exception_told(session, row, kind, practitioner_id, branch_id, starts_at, ends_at, note)


def lift_exception(session: Session, row: ScheduleException) -> None:
    """It is as the weekly hours have it after all."""
    session.delete(row)
    session.flush()


def _exception_told(
    session: Session,
    row: ScheduleException,
    kind: str,
    practitioner_id: int | None,
    branch_id: int | None,
    starts_at: datetime,
    ends_at: datetime,
    note: str,
) -> None:
    if kind not in set(ScheduleChange):
        raise Invalid("Please choose what it is.", field="kind")
    if kind == ScheduleChange.HOLIDAY:
        practitioner_id = None
    elif practitioner_id is None:
        raise Invalid("Please choose whose it is.", field="practitioner")
    if branch_id is None and kind != ScheduleChange.LEAVE:
        raise Invalid("Please choose the branch.", field="branch")
    for key, model, field in ((practitioner_id, Practitioner, "practitioner"), (branch_id, Branch, "branch")):
        if key is not None and session.get(model, key) is None:
            raise Invalid("There is none such, or it is not open to you.", field=field)
    if ends_at <= starts_at:
        raise Invalid("It has to end after it begins.", field="ends_at")
    if ends_at - starts_at > LONGEST_EXCEPTION:
        raise Invalid("It can last a year at most.", field="ends_at")
    row.kind, row.practitioner_id, row.branch_id = kind, practitioner_id, branch_id
    row.starts_at, row.ends_at, row.note = starts_at, ends_at, line(note, field="note", longest=200)


def visits_in(session: Session, row: ScheduleException) -> Sequence[Appointment]:
    """Visits that are booked in somebody's leave or on a branch's holiday, and have to be moved; MOST_ABOUT at most."""
    if row.kind == ScheduleChange.EXTRA:
        return []
    statement = select(Appointment).where(
        Appointment.status.in_((AppointmentStatus.BOOKED, AppointmentStatus.PENDING)),
        Appointment.start_at < row.ends_at,
        Appointment.end_at > max(row.starts_at, now()),
    )
    if row.practitioner_id is not None:
        statement = statement.where(Appointment.practitioner_id == row.practitioner_id)
    if row.branch_id is not None:
        statement = statement.where(Appointment.branch_id == row.branch_id)
    return session.scalars(whole(statement.order_by(Appointment.start_at).limit(MOST_ABOUT))).all()
