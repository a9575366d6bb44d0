"""Visits that come again and again: looked at one by one before anything is written, and then all or nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Literal

from dateutil.rrule import DAILY, MONTHLY, WEEKLY, rrule, rrulestr
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import guard
from app.actor import current
from app.errors import IllegalTransition, Invalid, NotAtBranch, NotFound, OutsideHours, SlotTaken
from app.services import free_times, scheduling
from app.services.clock import instant, zone
from app.services.scheduling import Asked, Taken
from models.base import now
from models.codes import AppointmentStatus
from models.organization import Branch, Room
from models.scheduling import Appointment, AppointmentSeries

MOST = 104
"""Visits of one series."""
FREQUENCIES: dict[str, Literal[1, 2, 3]] = {"daily": DAILY, "weekly": WEEKLY, "monthly": MONTHLY}
DAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
TO_COME = (AppointmentStatus.BOOKED, AppointmentStatus.PENDING)
GONE = (AppointmentStatus.CANCELLED, AppointmentStatus.ENTERED_IN_ERROR)
SAME_TIME = "Another visit of this series would be at the same time."
Scope = Literal["one", "following", "all"]


@dataclass(frozen=True)
class Rule:
    """How visits come again; `until` is the last day, `weekdays` are ISO numbers (1 is Monday), for weekly ones."""

    frequency: str
    interval: int = 1
    weekdays: tuple[int, ...] = ()
    count: int | None = None
    until: date | None = None

    def text(self, first: datetime) -> str:
        """As RFC 5545 writes it, by the clock on the wall. Raises Invalid, naming the field."""
        if self.frequency not in FREQUENCIES:
            raise Invalid("Please choose daily, weekly or monthly.", field="frequency")
        if not 1 <= self.interval <= 52:
            raise Invalid("It can come every 1 to 52 days, weeks or months.", field="interval")
        if (self.count is None) == (self.until is None):
            raise Invalid("Say either how often, or until when.", field="count")
        if self.count is not None and not 1 <= self.count <= MOST:
            raise Invalid(f"A series has 1 to {MOST} visits.", field="count")
        if self.until is not None and self.until < first.date():
            raise Invalid("The last day cannot lie before the first.", field="until")
        if any(not 1 <= day <= 7 for day in self.weekdays) or (self.weekdays and self.frequency != "weekly"):
            raise Invalid("Please choose days of the week.", field="weekdays")
        last = datetime.combine(self.until, first.time()) if self.until else None
        made = rrule(
            FREQUENCIES[self.frequency],
            dtstart=first,
            interval=self.interval,
            count=self.count,
            until=last,
            byweekday=[day - 1 for day in sorted(set(self.weekdays))] or None,
        )
        return str(made).splitlines()[-1].removeprefix("RRULE:")


@dataclass(frozen=True)
class Occurrence:
    """One visit of a series, before it is one: when by the clock on the wall, and what stands in its way."""

    nth: int
    wall: datetime
    start_at: datetime | None
    """None where the clocks leave that hour out."""
    obstacle: str = ""
    """A sentence; empty where the visit can be booked."""
    taken: tuple[Taken, ...] = ()


def _walls(rule: str, first: datetime, field: str) -> list[datetime]:
    """Every date and time of a rule, by the clock on the wall. Raises Invalid where there are too many, or too late."""
    found: list[datetime] = []
    for wall in rrulestr(rule, dtstart=first):
        if len(found) == MOST:
            raise Invalid(f"A series has {MOST} visits at most.", field=field)
        if wall > first + scheduling.FARTHEST:
            raise Invalid("Visits can be booked two years ahead.", field=field)
        found.append(wall)
    if not found:
        raise Invalid("No day fits this rule.", field="weekdays")
    return found


def _branch_of(session: Session, asked: Asked) -> Branch:
    room = session.get(Room, asked.room_id) if asked.room_id else None
    branch_id = asked.branch_id or (room.branch_id if room else None) or current().branch_id
    branch = session.get(Branch, branch_id) if branch_id else None
    if branch is None:
        raise Invalid("Please choose a branch.", field="branch")
    return branch


def _walls_of(session: Session, asked: Asked, rule: Rule) -> tuple[Branch, datetime, list[datetime]]:
    """The branch of a series, its first visit by the clock there, and all of them. Raises Invalid."""
    if asked.start_at.tzinfo is None:
        raise Invalid("Say the time with its offset, such as 2026-11-22T09:30:00+01:00.", field="start")
    branch = _branch_of(session, asked)
    first = asked.start_at.astimezone(zone(branch.time_zone)).replace(tzinfo=None, second=0, microsecond=0)
    return branch, first, _walls(rule.text(first), first, "until" if rule.count is None else "count")


def plan(session: Session, asked: Asked, rule: Rule) -> list[Occurrence]:
    """Every visit a rule amounts to, with what stands in its way; nothing is written. Raises Invalid."""
    guard.require("create", "Appointment")
    branch, _, walls = _walls_of(session, asked, rule)
    there = replace(asked, branch_id=branch.id)
    return [_looked_at(session, there, branch, nth, wall) for nth, wall in enumerate(walls)]


def _looked_at(
    session: Session, asked: Asked, branch: Branch, nth: int, wall: datetime, besides: Collection[int] = ()
) -> Occurrence:
    """One visit, and what stands in its way. An hour that comes twice is meant the first time."""
    try:
        start = instant(wall, zone(branch.time_zone), second=False)
    except Invalid as refusal:
        return Occurrence(nth, wall, None, str(refusal))
    then = replace(asked, start_at=start)
    try:
        scheduling.prepared(session, then)
    except (OutsideHours, NotAtBranch, SlotTaken) as refusal:
        return Occurrence(nth, wall, start, str(refusal))
    taken = tuple(scheduling.what_clashes(session, then, besides=besides))
    return Occurrence(nth, wall, start, SlotTaken.sentence if taken else "", taken)


def book_series(session: Session, asked: Asked, rule: Rule, *, skip: Collection[int] = ()) -> AppointmentSeries:
    """Book every visit of a rule but those to be skipped, by their number, in the caller's transaction: all or nothing.

    Raises as `scheduling.book` does.
    """
    guard.require("create", "Appointment")
    branch, first, found = _walls_of(session, asked, rule)
    where, text = zone(branch.time_zone), rule.text(first)
    walls = [wall for nth, wall in enumerate(found) if nth not in skip]
    if not walls:
        raise Invalid("Every visit of this series would be left out.", field="skip")
    series = AppointmentSeries(patient_id=asked.patient_id, rule=text, time_zone=branch.time_zone, starts_on=first)
    session.add(series)
    session.flush()
    free_times.choosing(session, branch.id)
    visits = [
        scheduling.prepared(session, replace(asked, branch_id=branch.id, start_at=instant(wall, where, second=False)))
        for wall in walls
    ]
    free_times.hold(session, *map(scheduling.wanted_by, visits))
    for visit in visits:
        visit.series_id = series.id
        scheduling.write(session, visit)
    return series


# ---- changing one, some or all of them ---------------------------------------------------------------------------


def of(session: Session, series_id: int) -> Sequence[Appointment]:
    """The visits of a series, in order, those moved or called off among them."""
    statement = select(Appointment).where(Appointment.series_id == series_id)
    return session.scalars(scheduling.whole(statement.order_by(Appointment.start_at, Appointment.id))).all()


def chosen(
    session: Session, appointment_id: int, scope: Scope, *, locked: bool = False, version: int | None = None
) -> list[Appointment]:
    """The visits still to come that a change is about, in order; `locked` until the transaction ends.

    Raises NotFound, and IllegalTransition where there is none or the one named is not of that `version` any more.
    """
    visit = session.get(Appointment, appointment_id)
    if visit is None:
        raise NotFound
    statement = select(Appointment).where(Appointment.status.in_(TO_COME), Appointment.start_at > now())
    if scope == "one" or visit.series_id is None:
        statement = statement.where(Appointment.id == visit.id)
    else:
        statement = statement.where(Appointment.series_id == visit.series_id)
    if scope == "following":
        statement = statement.where(Appointment.start_at >= visit.start_at)
    if locked:
        statement = statement.with_for_update().execution_options(populate_existing=True)
    found = session.scalars(statement.order_by(Appointment.id)).all()  # whoever locks several does so in this order
    if version is not None and (visit not in found or visit.version != version):
        raise IllegalTransition
    if not found:
        raise IllegalTransition("Only visits that are still to come can be changed.")
    return sorted(found, key=lambda each: each.start_at)


@dataclass(frozen=True)
class Shift:
    """What becomes of a visit when it is moved."""

    visit: Appointment
    occurrence: Occurrence


def plan_change(
    session: Session,
    appointment_id: int,
    scope: Scope,
    *,
    wall: datetime,
    practitioner_id: int | None = None,
    room_id: int | None = None,
    override_reason: str = "",
    skip: Collection[int] = (),
) -> list[Shift]:
    """Where the chosen visits would go if the one named went to `wall` (naive, by its branch's clock); writes nothing.

    The others move by as many days, to the same time of day; those to `skip`, by number, stay where they are.
    """
    guard.require("update", "Appointment")
    visits = [visit for visit in chosen(session, appointment_id, scope) if visit.id not in skip]
    branch, walls = _shifted(session, appointment_id, visits, wall)
    besides, shifts = [visit.id for visit in visits], []
    for nth, (visit, then) in enumerate(zip(visits, walls, strict=True)):
        if then in walls[:nth]:
            shifts.append(Shift(visit, Occurrence(nth, then, None, SAME_TIME)))
            continue
        asked = scheduling.instead(
            session,
            visit,
            start_at=visit.start_at,
            practitioner_id=practitioner_id,
            room_id=room_id,
            override_reason=override_reason,
        )
        shifts.append(Shift(visit, _looked_at(session, asked, branch, nth, then, besides=besides)))
    return shifts


def _shifted(
    session: Session, appointment_id: int, visits: Sequence[Appointment], wall: datetime
) -> tuple[Branch, list[datetime]]:
    """Where visits go by the clock on the wall if the one named goes to `wall`, and whose clock that is."""
    visit = session.get_one(Appointment, appointment_id)
    branch = session.get_one(Branch, visit.branch_id)
    where = zone(branch.time_zone)
    by = wall.date() - visit.start_at.astimezone(where).date()
    return branch, [datetime.combine(each.start_at.astimezone(where).date() + by, wall.time()) for each in visits]


def change(
    session: Session,
    appointment_id: int,
    scope: Scope,
    *,
    wall: datetime,
    practitioner_id: int | None = None,
    room_id: int | None = None,
    override_reason: str = "",
    skip: Collection[int] = (),
    version: int | None = None,
) -> list[Appointment]:
    """Move the chosen visits but those to `skip`, by number; all or none. Gives the new ones in order.

    Several that are moved while others of their series stay become a series of their own; one alone stays in it.
    Raises as `scheduling.move` does, and Invalid for an hour that the clocks leave out.
    """
    guard.require("update", "Appointment")
    found = chosen(session, appointment_id, scope, locked=True, version=version)
    visits = [visit for visit in found if visit.id not in skip]
    if not visits:
        raise Invalid("Every visit would stay where it is.", field="take")
    branch, walls = _shifted(session, appointment_id, visits, wall)
    moves = []
    for visit, then in zip(visits, walls, strict=True):
        asked = scheduling.instead(
            session,
            visit,
            start_at=instant(then, zone(branch.time_zone), second=False),
            practitioner_id=practitioner_id,
            room_id=room_id,
            override_reason=override_reason,
        )
        moves.append((visit, asked))
    series_id = None if scope == "one" else _regrouped(session, visits, branch, walls)
    return scheduling.move_all(session, moves, series_id=series_id)


def call_off(
    session: Session, appointment_id: int, scope: Scope, *, reason: str, version: int | None = None
) -> list[Appointment]:
    """Call the chosen visits off, with a coded reason, all or none; a series that ends by it says so in its rule."""
    guard.require("update", "Appointment")
    visits = chosen(session, appointment_id, scope, locked=True, version=version)
    if scope != "one":
        _ended(session, visits)
    return [scheduling.cancel(session, visit.id, reason=reason) for visit in visits]


# ---- what the rule says afterwards -------------------------------------------------------------------------------


def _regrouped(
    session: Session, visits: Sequence[Appointment], branch: Branch, walls: Sequence[datetime]
) -> int | None:
    """The series that visits of one series belong to once they are moved to `walls`, with its rule made true.

    It is theirs still where nothing of it stays behind; otherwise a new one, and theirs ends before they began.
    """
    series = _held_series(session, visits[0].series_id)
    if series is None:
        return None
    before = _walls_at(visits, branch)
    dates = [wall for wall in _dates(series) if before[0] <= wall <= before[-1]]
    by = walls[0].date() - before[0].date()
    moved = [datetime.combine(wall.date() + by, walls[0].time()) for wall in dates]
    rule, starts_on = _true_rule(_turned(series.rule, by.days), moved, walls)
    if _ended(session, visits, series):
        made = AppointmentSeries(
            patient_id=series.patient_id, rule=rule, time_zone=branch.time_zone, starts_on=starts_on
        )
        session.add(made)
        session.flush()
        return made.id
    series.rule, series.starts_on, series.time_zone = rule, starts_on, branch.time_zone
    session.flush()
    return series.id


def _ended(session: Session, visits: Sequence[Appointment], series: AppointmentSeries | None = None) -> bool:
    """Whether anything of a series stays when these visits leave it; then its rule says no more than that."""
    series = series or _held_series(session, visits[0].series_id)
    if series is None:
        return False
    leaving = {visit.id for visit in visits}
    staying = [each for each in of(session, series.id) if each.id not in leaving and each.status not in GONE]
    if not staying:
        return False
    branch = session.get_one(Branch, staying[0].branch_id)
    begins = _walls_at(visits, branch)[0]
    dates = [wall for wall in _dates(series) if wall < begins]
    series.rule, series.starts_on = _true_rule(series.rule, dates, _walls_at(staying, branch))
    session.flush()
    return True


def _held_series(session: Session, series_id: int | None) -> AppointmentSeries | None:
    """A series, locked until the transaction ends; visits of it may be written meanwhile."""
    if series_id is None:
        return None
    statement = select(AppointmentSeries).where(AppointmentSeries.id == series_id).with_for_update(key_share=True)
    return session.scalars(statement.execution_options(populate_existing=True)).one()


def _walls_at(visits: Sequence[Appointment], branch: Branch) -> list[datetime]:
    """When visits are by the clock on a branch's wall."""
    return [visit.start_at.astimezone(zone(branch.time_zone)).replace(tzinfo=None) for visit in visits]


def _dates(series: AppointmentSeries) -> list[datetime]:
    """Every date and time a series' rule amounts to."""
    return list(rrulestr(series.rule, dtstart=series.starts_on))


def _turned(rule: str, days: int) -> str:
    """A rule whose days of the week are so many days later, its weeks beginning later too; without an end."""
    said = _parts(rule)
    said = {name: value for name, value in said.items() if name not in ("COUNT", "UNTIL")}
    if "BYDAY" in said:
        turned = [DAYS[(DAYS.index(day) + days) % 7] for day in (*said["BYDAY"].split(","), said.get("WKST", "MO"))]
        *weekdays, said["WKST"] = turned
        said["BYDAY"] = ",".join(weekdays)
    return ";".join(f"{name}={value}" for name, value in said.items())


def _parts(rule: str) -> dict[str, str]:
    """A rule as name and value; nothing of one that is a list of dates."""
    return dict(part.split("=", 1) for part in rule.split(";") if "=" in part)


def _true_rule(rule: str, dates: Sequence[datetime], walls: Sequence[datetime]) -> tuple[str, datetime]:
    """A rule with its first date on which all of `walls` lie: `rule`, where it amounts to `dates`; or else a list.

    A list is what is left where months differ in length, or where single visits were moved or left out.
    """
    said = {name: value for name, value in _parts(rule).items() if name not in ("COUNT", "UNTIL")}
    if said and dates and set(walls) <= set(dates):
        text = ";".join(f"{name}={value}" for name, value in {**said, "COUNT": str(len(dates))}.items())
        if list(rrulestr(text, dtstart=dates[0])) == list(dates):
            return text, dates[0]
    return "RDATE:" + ",".join(f"{wall:%Y%m%dT%H%M%S}" for wall in walls), walls[0]


__all__ = ["Occurrence", "Rule", "Shift", "book_series", "call_off", "change", "plan", "plan_change"]
