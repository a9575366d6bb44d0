"""The calendar: a branch's day, week and month, booking a visit, and everything that can be done with one."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from typing import Any, ClassVar

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import format_date, gettext, lazy_gettext
from sqlalchemy import select
from sqlalchemy.orm import selectinload
from wtforms import BooleanField, Form, HiddenField, IntegerField, SelectField, StringField
from wtforms.validators import Length, NumberRange, Optional
from wtforms.widgets import DateInput, SearchInput, TimeInput

from app import guard
from app.actor import current
from app.errors import Invalid, NotFound, OutsideHours, Refusal, SlotTaken
from app.services import free_times, patients, scheduling
from app.services.clock import day_of, instant, spoken_instant
from app.services.free_times import FreeTime
from app.services.scheduling import Asked
from models.base import now
from models.codes import AppointmentStatus, ScheduleChange
from models.organization import Practitioner, Room
from models.patients import Patient
from models.scheduling import TRANSITIONS, Appointment, ScheduleException, VisitType, WorkingHours
from views.appointments import booked, cursor_of, past
from views.base import Page, explain, open_to
from views.branches import BranchFacts, all_branches, zone_of
from views.patients import offered
from views.people import BECAUSE, TOLD_AT_THE_DESK, in_short, name_of
from views.speech import spoken_day

S = AppointmentStatus
WEEK = timedelta(days=7)
OF_A_WEEK = 4
"""Doctors or rooms a week shows beside each other where none is chosen: more could not be read."""
TIMES = 6
"""Free times offered at once."""
EARLIEST, LATEST = 7, 19
"""The hours a day shows at least."""

VIEWS: dict[str, Any] = {
    "day": lazy_gettext("Day"),
    "week": lazy_gettext("Week"),
    "month": lazy_gettext("Month"),
    "list": lazy_gettext("List"),
}
COLUMNS: dict[str, Any] = {"doctor": lazy_gettext("Doctors"), "room": lazy_gettext("Rooms")}

STATES: dict[str, tuple[Any, str, str]] = {
    S.PROPOSED: (lazy_gettext("Proposed"), "clock", "calm"),
    S.PENDING: (lazy_gettext("Not confirmed"), "clock", "calm"),
    S.BOOKED: (lazy_gettext("Booked"), "calendar", "calm"),
    S.ARRIVED: (lazy_gettext("Here"), "patient", "warn"),
    S.CHECKED_IN: (lazy_gettext("Checked in"), "check", "accent"),
    S.FULFILLED: (lazy_gettext("Seen"), "ok", "ok"),
    S.NOSHOW: (lazy_gettext("Missed"), "warn", "danger"),
    S.CANCELLED: (lazy_gettext("Called off"), "close", "plain"),
    S.ENTERED_IN_ERROR: (lazy_gettext("Written by mistake"), "close", "plain"),
    S.WAITLIST: (lazy_gettext("Waiting list"), "clock", "plain"),
}
"""What a state is called, its drawing, and the colour of its tag."""
SHOWN = (S.PROPOSED, S.PENDING, S.BOOKED, S.ARRIVED, S.CHECKED_IN, S.FULFILLED, S.NOSHOW)

KINDS: dict[str, Any] = {
    "practitioner": lazy_gettext("the doctor"),
    "room": lazy_gettext("the room"),
    "equipment": lazy_gettext("the equipment"),
    "patient": lazy_gettext("the patient"),
}
FIELDS = {"patient": "who", "start": "time", "equipment": "visit_type", "Idempotency-Key": "who"}
"""Where a refusal's field stands in our forms, where it has another name there."""


# ---- what is there to be booked ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Practice:
    """Who and what can be booked at a branch."""

    branch: BranchFacts
    doctors: Sequence[Practitioner]
    """Whoever has working hours there, by name."""
    rooms: Sequence[Room]
    kinds: Sequence[VisitType]


def practice_at(branch: BranchFacts) -> Practice:
    """What a branch has to book, as far as the actor may see it."""
    session, may = guard.session(), current().may
    people: set[int] = set()
    if may("read", "WorkingHours"):
        people |= {row.practitioner_id for row in session.scalars(select(WorkingHours).filter_by(branch_id=branch.id))}
    if may("read", "ScheduleException"):
        extra = select(ScheduleException).filter_by(branch_id=branch.id, kind=ScheduleChange.EXTRA)
        people |= {row.practitioner_id for row in session.scalars(extra) if row.practitioner_id}
    doctors: Sequence[Practitioner] = ()
    if people and may("read", "Practitioner"):
        doctors = session.scalars(
            select(Practitioner)
            .where(Practitioner.id.in_(people), Practitioner.active)
            .order_by(Practitioner.family, Practitioner.given, Practitioner.id)
        ).all()
    rooms: Sequence[Room] = ()
    if may("read", "Room"):
        rooms = session.scalars(select(Room).filter_by(branch_id=branch.id, active=True).order_by(Room.name)).all()
    return Practice(branch, doctors, rooms, kinds_of_visit())


def kinds_of_visit() -> Sequence[VisitType]:
    """The kinds of visits that are offered, with who does them and where."""
    if not current().may("read", "VisitType"):
        return ()
    offered_now = select(VisitType).where(VisitType.active).order_by(VisitType.name)
    return (
        guard.session()
        .scalars(offered_now.options(selectinload(VisitType.practitioners), selectinload(VisitType.rooms)))
        .all()
    )


def branch_asked_for(text: str | None) -> BranchFacts | None:
    """The branch an address or a form names, or the actor's own, or the first one there is."""
    known = all_branches()
    asked = _number(text)
    mine = current().branch_id or next(iter(current().branch_ids), 0)
    return known.get(asked or 0) or known.get(mine) or next(iter(known.values()), None)


def branches_in_order() -> list[BranchFacts]:
    """Every branch, those the person works at first."""
    mine = current().branch_ids
    return sorted(all_branches().values(), key=lambda branch: (branch.id not in mine, branch.name))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 19 else None


def _numbers(name: str) -> tuple[int, ...]:
    """The numbers an address names, nonsense left out."""
    return tuple(found for text in request.args.getlist(name)[:50] if (found := _number(text)))


# ---- what is shown -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """What the address asks to see of a branch."""

    branch: BranchFacts
    view: str = "day"
    by: str = "doctor"
    day: date = field(default_factory=date.today)
    doctors: tuple[int, ...] = ()
    rooms: tuple[int, ...] = ()
    kinds: tuple[int, ...] = ()
    off: bool = False
    """Whether visits that were called off are shown."""

    def href(self, **changed: Any) -> str:
        """The address of this, or of something a little different."""
        other = replace(self, **changed)
        said: dict[str, Any] = {"date": other.day.isoformat(), "branch": other.branch.id}
        said |= {"view": other.view} if other.view != "day" else {}
        said |= {"by": other.by} if other.by != "doctor" else {}
        said |= {name: list(chosen) for name, chosen in self._chosen(other) if chosen}
        said |= {"off": 1} if other.off else {}
        return url_for("Calendar.show", **said)

    @staticmethod
    def _chosen(shown: Shown) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return ("doctor", shown.doctors), ("room", shown.rooms), ("type", shown.kinds)

    @property
    def first(self) -> date:
        """The first day that is shown."""
        if self.view == "week":
            return self.day - timedelta(days=self.day.weekday())
        return self.day.replace(day=1) if self.view == "month" else self.day

    @property
    def last(self) -> date:
        """The last one."""
        if self.view == "week":
            return self.first + timedelta(days=6)
        if self.view == "month":
            return (self.first + timedelta(days=32)).replace(day=1) - timedelta(days=1)
        return self.day

    @property
    def span(self) -> tuple[datetime, datetime]:
        """The instants between which it is any of the days shown."""
        return day_of(self.first, self.branch.zone)[0], day_of(self.last, self.branch.zone)[1]

    def stepped(self, steps: int) -> date:
        """The day to show so many days, weeks or months away."""
        if self.view == "month":
            months = self.day.year * 12 + self.day.month - 1 + steps
            return date(months // 12, months % 12 + 1, 1)
        return self.day + steps * (WEEK if self.view == "week" else timedelta(days=1))

    @property
    def title(self) -> str:
        """The days in words."""
        if self.view == "month":
            return str(format_date(self.first, "MMMM yyyy"))
        if self.view == "week":
            return f"{spoken_day(self.first)} – {spoken_day(self.last)}"
        return str(format_date(self.day, "EEEE, d MMMM yyyy"))


def asked_to_show(branch: BranchFacts) -> Shown:
    """What the address asks for; what makes no sense in it counts as not said."""
    today = now().astimezone(branch.zone).date()
    try:
        day = date.fromisoformat(request.args.get("date", ""))
    except ValueError:
        day = today
    view, by = request.args.get("view", "day"), request.args.get("by", "doctor")
    return Shown(
        branch,
        view=view if view in VIEWS else "day",
        by=by if by in COLUMNS else "doctor",
        day=min(max(day, date(2000, 1, 3)), date(2100, 1, 3)),
        doctors=_numbers("doctor"),
        rooms=_numbers("room"),
        kinds=_numbers("type"),
        off=request.args.get("off") == "1",
    )


def word_of(visit: Appointment) -> dict[str, Any]:
    """A visit as the list shows it."""
    zone = zone_of(visit.branch_id)
    start, end = visit.start_at.astimezone(zone), visit.end_at.astimezone(zone)
    said, drawing, tone = STATES[visit.status]
    return {
        "id": visit.id,
        "href": url_for("Visits.show", appointment_id=visit.id),
        "day": start.date(),
        "start": f"{start:%H:%M}",
        "end": f"{end:%H:%M}",
        "when": f"{spoken_day(start)}, {start:%H:%M}–{end:%H:%M}",
        "minutes": round((visit.end_at - visit.start_at).total_seconds() / 60),
        "patient": name_of(visit.patient) if visit.patient else gettext("Name not shown"),
        "mrn": visit.patient.mrn if visit.patient else "",
        "doctor": str(visit.practitioner),
        "doctor_id": visit.practitioner_id,
        "room": str(visit.room) if visit.room else "",
        "room_id": visit.room_id or 0,
        "kind": str(visit.visit_type),
        "status": visit.status,
        "state": said,
        "icon": drawing,
        "tone": tone,
        "walk_in": visit.walk_in,
        "queue_number": visit.queue_number,
    }


def grouped(visits: Iterable[dict[str, Any]], by: str, columns: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Visits by day, and within it by doctor or room, in the order of the columns."""
    place = {column["id"]: at for at, column in enumerate(columns)}
    groups: dict[tuple[date, int, str, int], list[dict[str, Any]]] = {}
    for visit in visits:
        name, key = (visit["doctor"], visit["doctor_id"]) if by == "doctor" else (visit["room"], visit["room_id"])
        where = (visit["day"], place.get(key, len(place)), name or gettext("No room"), key)
        groups.setdefault(where, []).append(visit)
    return [{"day": where[0], "name": where[2], "visits": groups[where]} for where in sorted(groups)]


# ---- the page ------------------------------------------------------------------------------------------------------


class Calendar(Page):
    """A branch's days: as columns of doctors or rooms, as a list, and a month at a glance."""

    route_base = "/calendar"
    default_view = "show"

    @expose("/")
    @open_to("read", "Appointment")
    def show(self) -> str:
        """The days the address asks for."""
        branch = branch_asked_for(request.args.get("branch"))
        if branch is None:
            return self.render("calendar/nowhere.html", page_title=gettext("Calendar"))
        shown = asked_to_show(branch)
        practice = practice_at(branch)
        opens, closes = shown.span
        people = [person.id for person in practice.doctors]
        shifts = free_times.shifts(guard.session(), people, branch.id, opens, closes) if people else []
        columns, left_out = columns_of(shown, practice, shifts)
        looked = narrowed(shown, columns) if left_out else shown
        days: list[dict[str, Any]] = []
        groups: list[dict[str, Any]] = []
        if shown.view == "month":
            days = month_of(shown, shifts)
        else:
            groups = grouped([word_of(visit) for visit in visits_of(looked)], shown.by, columns)
        return self.render(
            "calendar/show.html",
            page_title=gettext("Calendar"),
            shown=shown,
            practice=practice,
            places=branches_in_order(),
            views=VIEWS,
            columns_by=COLUMNS,
            groups=groups,
            days=days,
            weeks=[days[at : at + 7] for at in range(0, len(days), 7)],
            weekdays=[format_date(date(2026, 6, 1) + timedelta(days=n), "EEE") for n in range(7)],
            today=now().astimezone(branch.zone).date(),
            left_out=left_out,
            named=spoken_day,
            settings=settings_of(looked, columns, shifts),
        )


def columns_of(
    shown: Shown, practice: Practice, shifts: Sequence[free_times.Shift]
) -> tuple[list[dict[str, Any]], int]:
    """The columns of a day or a week, and how many more a week would have."""
    if shown.by == "room":
        asked = [room for room in practice.rooms if not shown.rooms or room.id in shown.rooms]
        found = [{"id": room.id, "title": room.name} for room in asked]
    else:
        at_work = {shift.practitioner_id for shift in shifts}
        wanted = shown.doctors or at_work
        found = [{"id": who.id, "title": str(who)} for who in practice.doctors if who.id in wanted]
    chosen = shown.rooms if shown.by == "room" else shown.doctors
    if shown.view != "week" or chosen or len(found) <= OF_A_WEEK:
        return found, 0
    me = current().practitioner_id
    if shown.by == "doctor" and any(column["id"] == me for column in found):
        return [column for column in found if column["id"] == me], len(found) - 1
    return found[:OF_A_WEEK], len(found) - OF_A_WEEK


def narrowed(shown: Shown, columns: Sequence[dict[str, Any]]) -> Shown:
    """The same for these columns only."""
    keys = tuple(column["id"] for column in columns)
    return replace(shown, rooms=keys) if shown.by == "room" else replace(shown, doctors=keys)


def visits_of(shown: Shown) -> Sequence[Appointment]:
    """The visits of the days shown."""
    opens, closes = shown.span
    guard.searching("Appointment by time")
    return scheduling.between(
        guard.session(),
        opens,
        closes,
        branch_ids=[shown.branch.id],
        practitioner_ids=shown.doctors,
        room_ids=shown.rooms,
        visit_type_ids=shown.kinds,
        statuses=[*SHOWN, *([S.CANCELLED] if shown.off else [])],
    )


def month_of(shown: Shown, shifts: Sequence[free_times.Shift]) -> list[dict[str, Any]]:
    """The days of a month, in whole weeks: how many visits there are, and how many people are at work."""
    zone, (opens, closes) = shown.branch.zone, shown.span
    if current().rights.reach.get(("read", "Appointment")):
        # Some rows only: what is counted is what they are shown.
        counts: dict[date, int] = {}
        for visit in visits_of(replace(shown, off=False)):
            day = visit.start_at.astimezone(zone).date()
            counts[day] = counts.get(day, 0) + 1
    else:
        chosen = {"practitioner_ids": shown.doctors, "room_ids": shown.rooms, "visit_type_ids": shown.kinds}
        counts = free_times.load(guard.session(), shown.branch.id, zone.key, opens, closes, **chosen)
    at_work: dict[date, set[int]] = {}
    for shift in shifts:
        if not shown.doctors or shift.practitioner_id in shown.doctors:
            at_work.setdefault(shift.since.astimezone(zone).date(), set()).add(shift.practitioner_id)
    begins = shown.first - timedelta(days=shown.first.weekday())
    length = -(-((shown.last - begins).days + 1) // 7) * 7
    most = max(counts.values(), default=1)
    return [
        {
            "day": day,
            "inside": shown.first <= day <= shown.last,
            "visits": counts.get(day, 0),
            "share": round(100 * counts.get(day, 0) / most),
            "people": len(at_work.get(day, ())),
            "href": shown.href(view="day", day=day),
        }
        for day in (begins + timedelta(days=n) for n in range(length))
    ]


def settings_of(shown: Shown, columns: Sequence[dict[str, Any]], shifts: Sequence[free_times.Shift]) -> dict[str, Any]:
    """What the calendar's script is told; times are the branch's clock."""
    zone, (opens, closes) = shown.branch.zone, shown.span
    may = current().may
    hours = [(shift.practitioner_id, shift.since.astimezone(zone), shift.until.astimezone(zone)) for shift in shifts]
    same_day = [(since, until) for _, since, until in hours if since.date() == until.date()]
    return {
        "view": shown.view,
        "by": shown.by,
        "date": shown.first.isoformat(),
        "days": (shown.last - shown.first).days + 1,
        "from": opens.isoformat(),
        "to": closes.isoformat(),
        "zone": zone.key,
        "branch": shown.branch.id,
        "doctors": list(shown.doctors),
        "rooms": list(shown.rooms),
        "kinds": list(shown.kinds),
        "statuses": [*SHOWN, *([S.CANCELLED] if shown.off else [])],
        "columns": list(columns),
        "hours": [
            {"id": person, "start": f"{since:%Y-%m-%dT%H:%M}", "end": f"{until:%Y-%m-%dT%H:%M}"}
            for person, since, until in hours
        ],
        "earliest": min([EARLIEST, *(since.hour for since, _ in same_day)]),
        "latest": max([LATEST, *(until.hour + bool(until.minute) for _, until in same_day)]),
        "create": may("create", "Appointment") and not current().viewing_as,
        "update": may("update", "Appointment") and not current().viewing_as,
        "states": {status: [str(word), drawing, tone] for status, (word, drawing, tone) in STATES.items()},
        "api": url_for("AppointmentApi.between").removesuffix("between"),
        "visit": url_for("Visits.show", appointment_id=0),
        "new": url_for("Booking.ask"),
    }


# ---- forms ---------------------------------------------------------------------------------------------------------


class WhenForm(Form):
    """A day and an hour by the branch's clock, with whom and where."""

    day = StringField(lazy_gettext("Day"), [Length(max=30)], widget=DateInput())
    time = StringField(lazy_gettext("Time"), [Length(max=30)], widget=TimeInput(), render_kw={"step": "300"})
    second = BooleanField(
        lazy_gettext("The second time"), description=lazy_gettext("Clocks go back that day, and this hour comes twice.")
    )
    minutes = IntegerField(
        lazy_gettext("Minutes"),
        [Optional(), NumberRange(5, 720, lazy_gettext("A visit lasts 5 minutes to 12 hours."))],
    )
    practitioner = SelectField(lazy_gettext("Doctor"), choices=[], validate_choice=False)
    room = SelectField(lazy_gettext("Room"), choices=[], validate_choice=False)
    override_reason = StringField(
        lazy_gettext("Why outside working hours"),
        [Length(max=500)],
        description=lazy_gettext("Only asked for where the time is outside working hours, or has passed."),
    )

    def starts(self, branch: BranchFacts) -> datetime:
        """When, as an instant. Raises Invalid, naming the field."""
        try:
            day = date.fromisoformat((self.day.data or "").strip())
        except ValueError as error:
            raise Invalid(gettext("Please say which day."), field="day") from error
        try:
            hour = time.fromisoformat((self.time.data or "").strip())
        except ValueError as error:
            raise Invalid(gettext("Please say at what time, such as 09:30."), field="time") from error
        wall = datetime.combine(day, hour.replace(tzinfo=None))
        first, later = (wall.replace(tzinfo=branch.zone, fold=fold) for fold in (0, 1))
        twice = first.utcoffset() > later.utcoffset()  # type: ignore[operator]
        return instant(wall, branch.zone, second=bool(self.second.data) if twice else None, field="time")

    def put(self, start: datetime, branch: BranchFacts) -> None:
        """Fill in an instant by the branch's clock."""
        here = start.astimezone(branch.zone)
        self.day.data, self.time.data, self.second.data = f"{here:%Y-%m-%d}", f"{here:%H:%M}", bool(here.fold)

    def comes_twice(self, branch: BranchFacts) -> bool:
        """Whether clocks are put back then, so that the hour alone does not say which one is meant."""
        try:
            wall = datetime.fromisoformat(f"{self.day.data}T{self.time.data}").replace(tzinfo=branch.zone)
        except ValueError:
            return False
        return wall.utcoffset() > wall.replace(fold=1).utcoffset()  # type: ignore[operator]


class BookingForm(WhenForm):
    """What is asked to book a visit."""

    who = StringField(lazy_gettext("Patient"), [Length(max=100)], widget=SearchInput())
    patient_id = HiddenField()
    branch = SelectField(lazy_gettext("Branch"), choices=[], validate_choice=False)
    visit_type = SelectField(lazy_gettext("Kind of visit"), choices=[], validate_choice=False)
    reason = StringField(
        lazy_gettext("Reason"),
        [Length(max=500)],
        description=lazy_gettext("What the patient comes for, in a few words."),
    )
    key = HiddenField()


@dataclass(frozen=True)
class Place:
    """A time and place that can be taken with one press: what a button carries."""

    start: datetime
    practitioner_id: int
    branch_id: int
    room_id: int | None

    def __str__(self) -> str:
        return f"{self.start.isoformat()}|{self.practitioner_id}|{self.branch_id}|{self.room_id or ''}"

    @classmethod
    def read(cls, text: str) -> Place:
        """The place a button carries. Raises Invalid."""
        parts = text.split("|")
        if len(parts) != 4 or _number(parts[1]) is None or _number(parts[2]) is None:
            raise Invalid(gettext("This time cannot be read. Please choose another one."), field="time")
        return cls(spoken_instant(parts[0], field="time"), int(parts[1]), int(parts[2]), _number(parts[3]))


def place_words(free: FreeTime) -> dict[str, Any]:
    """A free time as it is offered."""
    session = guard.session()
    branch = all_branches().get(free.branch_id)
    here = free.start_at.astimezone(zone_of(free.branch_id))
    room = session.get(Room, free.room_id) if free.room_id else None
    return {
        "value": str(Place(free.start_at, free.practitioner_id, free.branch_id, free.room_id)),
        "day": format_date(here.date(), "EEE d MMM"),
        "time": f"{here:%H:%M}",
        "doctor": str(session.get(Practitioner, free.practitioner_id)),
        "room": str(room) if room else "",
        "branch": str(branch) if branch else "",
    }


def clash_words(asked: Asked, branch: BranchFacts, *, besides: int | None = None) -> dict[str, Any]:
    """What is taken at the time asked for, by name, and three other times."""
    session = guard.session()
    told = []
    for each in scheduling.what_clashes(session, asked, besides=() if besides is None else [besides]):
        since, until = each.since.astimezone(branch.zone), each.until.astimezone(branch.zone)
        told.append(
            gettext(
                "%(name)s is taken from %(since)s to %(until)s.",
                name=each.name or str(KINDS.get(each.kind, each.kind)).capitalize(),
                since=f"{since:%H:%M}",
                until=f"{until:%H:%M}",
            )
        )
    return {"told": told, "others": [place_words(free) for free in scheduling.alternatives(session, asked)]}


def tell(refusal: Refusal, form: Form) -> str:
    """The sentence for the top of the form, with the field marked that it is about; what is taken is told apart."""
    if isinstance(refusal, SlotTaken):
        return str(refusal)
    refusal.field = FIELDS.get(refusal.field or "", refusal.field)
    return explain(refusal, form)


class Booking(Page):
    """The form that books a visit: a page of its own, and what the calendar's dialog shows."""

    route_base = "/calendar/new"
    default_view = "ask"

    @expose("/", methods=["GET", "POST"])
    @open_to("create", "Appointment")
    def ask(self) -> Any:
        """The form, as it is first shown or as it was filled in."""
        if request.method == "POST":
            return Desk(self, BookingForm(request.form)).answer()
        form = BookingForm()
        said = request.args
        branch = branch_asked_for(said.get("branch_id"))
        for name in ("patient_id", "visit_type", "practitioner", "room"):
            form[name].data = said.get(name) or said.get(f"{name}_id") or ""
        if branch is not None:
            form.branch.data = str(branch.id)
            form.minutes.data = _number(said.get("minutes"))
            try:
                form.put(spoken_instant(said.get("start", "").replace(" ", "+")), branch)
            except Invalid:
                form.day.data = f"{now().astimezone(branch.zone):%Y-%m-%d}"
        form.key.data = uuid.uuid4().hex
        return Desk(self, form).shown()


class Desk:
    """One sending of the booking form: what was pressed, and what is answered."""

    def __init__(self, page: Page, form: BookingForm) -> None:
        self.page, self.form = page, form
        self.branch = branch_asked_for(form.branch.data)
        self.patient: Patient | None = None
        self.candidates: list[dict[str, Any]] = []
        self.times: list[dict[str, Any]] | None = None
        self.more = ""
        self.clash: dict[str, Any] | None = None
        self.sentence: str | None = None
        self.status = 200
        self.asks_why = bool(form.override_reason.data)

    def answer(self) -> Any:
        """Do what was pressed; a refusal keeps everything that was typed."""
        if self.branch is None:
            raise NotFound
        pressed = request.form
        try:
            if "other" in pressed:
                self.form.patient_id.data = ""
            if "other" in pressed or "again" in pressed:
                return self.shown()
            if "find" in pressed or "more" in pressed:
                self._find(pressed.get("more", ""))
                return self.shown()
            if (value := pressed.get("pick") or pressed.get("take")) is not None:
                self._settle(Place.read(value))
                if "pick" in pressed:
                    return self.shown()
            return self._book()
        except Refusal as refusal:
            self.sentence, self.status = tell(refusal, self.form), refusal.status
            return self.shown()

    def _settle(self, place: Place) -> None:
        """Fill in a time that was offered."""
        self.branch = all_branches().get(place.branch_id) or self.branch
        assert self.branch is not None
        self.form.branch.data, self.form.practitioner.data = str(self.branch.id), str(place.practitioner_id)
        self.form.room.data = str(place.room_id or "")
        self.form.put(place.start, self.branch)

    def _kind(self) -> VisitType:
        kind = guard.session().get(VisitType, _number(self.form.visit_type.data) or 0)
        if kind is None or not kind.active:
            raise Invalid(gettext("Please choose a kind of visit."), field="visit_type")
        return kind

    def _find(self, cursor: str) -> None:
        """Look for the first free times: of the doctor chosen or of anybody, here or anywhere."""
        assert self.branch is not None
        self.form.validate()
        if self.form.minutes.errors:
            raise Invalid(str(self.form.minutes.errors[0]), field="minutes")
        kind = self._kind()
        if cursor:
            origin, after = past(cursor)
        else:
            origin, after = self._from_then(), None
        doctor, room = _number(self.form.practitioner.data), _number(self.form.room.data)
        everywhere = "everywhere" in request.form
        begins = free_times.quarter(origin)
        found = free_times.first_free(
            guard.session(),
            kind,
            branch_ids=list(all_branches()) if everywhere else [self.branch.id],
            practitioner_ids=[doctor] if doctor and not everywhere else None,
            room_id=None if everywhere else room,
            patient_id=_number(self.form.patient_id.data),
            minutes=self.form.minutes.data,
            origin=begins,
            after=after,
            most=TIMES,
        )
        self.times = [place_words(free) for free in found]
        self.more = cursor_of(found[-1], begins) if len(found) == TIMES else ""

    def _from_then(self) -> datetime:
        """From when to look: the day chosen, at the hour chosen if there is one, and never the past."""
        assert self.branch is not None
        try:
            day = date.fromisoformat((self.form.day.data or "").strip())
            return max(day_of(day, self.branch.zone)[0], now())
        except ValueError:
            return now()

    def _whom(self) -> int:
        """The patient who was chosen. Raises Invalid, with those it could be beside the field."""
        if (chosen := _number(self.form.patient_id.data)) is not None:
            return chosen
        text = (self.form.who.data or "").strip()
        if not text:
            raise Invalid(gettext("Please say who the visit is for."), field="who")
        if not current().may("read", "Patient"):
            raise Invalid(gettext("Your role cannot look for patients."), field="who")
        found = patients.find(guard.session(), text, limit=8)
        self.candidates = [in_short(patient) for patient in found.patients]
        if not self.candidates:
            raise Invalid(gettext("Nobody found by that. Register the patient first."), field="who")
        raise Invalid(gettext("Please choose the patient from the list."), field="who")

    def _book(self) -> Any:
        """Book it. Raises Refusal; a time that is taken is answered with others."""
        form, branch = self.form, self.branch
        assert branch is not None
        if not form.validate():
            self.sentence, self.status = gettext("Please check the fields marked below."), 422
            return self.shown()
        patient_id, kind = self._whom(), self._kind()
        doctor = _number(form.practitioner.data)
        if doctor is None:
            raise Invalid(gettext("Please choose a doctor, or find a time."), field="practitioner")
        asked = Asked(
            patient_id=patient_id,
            visit_type_id=kind.id,
            practitioner_id=doctor,
            start_at=form.starts(branch),
            minutes=form.minutes.data,
            room_id=_number(form.room.data),
            branch_id=branch.id,
            reason=form.reason.data or "",
            override_reason=form.override_reason.data or "",
        )
        try:
            visit_id = booked(asked, form.key.data or None)
        except SlotTaken as refusal:
            self.sentence, self.status = str(refusal), refusal.status
            self.clash = clash_words(asked, branch)
            return self.shown()
        except OutsideHours as refusal:
            self.asks_why = refusal.field == "override_reason"
            raise
        visit = word_of(scheduling.show(guard.session(), visit_id))
        told = gettext(
            "Booked: %(patient)s, %(when)s, %(doctor)s.", **{k: visit[k] for k in ("patient", "when", "doctor")}
        )
        flash(told, "success")
        return redirect(visit["href"])

    def shown(self) -> Any:
        """The form with everything that was typed."""
        form = self.form
        if self.branch is None:
            return self.page.render("calendar/nowhere.html", page_title=gettext("New appointment"))
        practice = practice_at(self.branch)
        chosen = _number(form.patient_id.data)
        if chosen is not None and current().may("read", "Patient"):
            self.patient = guard.session().get(Patient, chosen)
        if self.patient is None:
            form.patient_id.data = ""
        fill_choices(form, practice, anybody=True)
        form.branch.choices = offered({str(each.id): each.name for each in branches_in_order()})
        form.branch.data = str(self.branch.id)
        form.visit_type.choices = offered(
            {"": gettext("Choose…"), **{str(kind.id): f"{kind.name} ({kind.minutes} min)" for kind in practice.kinds}}
        )
        page = self.page.render(
            "calendar/new.html",
            page_title=gettext("New appointment"),
            form=form,
            refusal=self.sentence,
            patient=in_short(self.patient) if self.patient else None,
            candidates=self.candidates,
            times=self.times,
            more=self.more,
            everywhere="everywhere" in request.form,
            clash=self.clash,
            asks_why=self.asks_why,
            twice=form.comes_twice(self.branch),
            kinds={kind.id: {"minutes": kind.minutes} for kind in practice.kinds},
            nothing=not practice.kinds,
        )
        return page, self.status


def fill_choices(form: WhenForm, practice: Practice, *, anybody: bool) -> None:
    """Offer the doctors and rooms of a branch, and whoever is chosen already."""
    session = guard.session()
    doctors = {str(person.id): str(person) for person in practice.doctors}
    rooms = {str(room.id): room.name for room in practice.rooms}
    for chosen, known, model in ((form.practitioner.data, doctors, Practitioner), (form.room.data, rooms, Room)):
        key = _number(chosen)
        if key and str(key) not in known and (row := session.get(model, key)) is not None:
            known[str(key)] = str(row)
    form.practitioner.choices = offered({"": gettext("Anybody"), **doctors} if anybody else doctors)
    form.room.choices = offered({"": gettext("Any free room"), **rooms} if anybody or not form.room.data else rooms)


# ---- one visit -----------------------------------------------------------------------------------------------------

STEPS: dict[str, tuple[Any, Any, str, str]] = {
    "arrive": (scheduling.arrive, lazy_gettext("The patient is here"), "patient", S.ARRIVED),
    "check-in": (scheduling.check_in, lazy_gettext("Check in"), "check", S.CHECKED_IN),
    "fulfil": (scheduling.fulfil, lazy_gettext("The patient was seen"), "ok", S.FULFILLED),
    "no-show": (scheduling.miss, lazy_gettext("The patient did not come"), "warn", S.NOSHOW),
    "undo-arrival": (scheduling.undo_arrival, lazy_gettext("Not here after all"), "swap", S.BOOKED),
    "withdraw": (scheduling.withdraw, lazy_gettext("Written by mistake"), "close", S.ENTERED_IN_ERROR),
}
"""Word in the address -> service, what the button says, its drawing, the state it leads to."""


class Visits(Page):
    """One visit: what it is, what can be done with it, what happened to it."""

    route_base = "/appointments"
    default_view = "show"
    MOVABLE: ClassVar[tuple[str, ...]] = (S.BOOKED, S.PENDING)

    @expose("/<int:appointment_id>/")
    @open_to("read", "Appointment")
    def show(self, appointment_id: int) -> Any:
        """The visit."""
        return self._page(scheduling.show(guard.session(), appointment_id))

    @expose("/<int:appointment_id>/move", methods=["POST"])
    @open_to("update", "Appointment")
    def move(self, appointment_id: int) -> Any:
        """Book it at another time, with another doctor or in another room; a refusal leaves it where it is."""
        visit = scheduling.show(guard.session(), appointment_id)
        form, branch = WhenForm(request.form), self._branch(visit)
        clash: dict[str, Any] | None = None
        try:
            if (value := request.form.get("take")) is not None:
                place = Place.read(value)
                form.practitioner.data, form.room.data = str(place.practitioner_id), str(place.room_id or "")
                form.put(place.start, branch)
            if not form.validate():
                raise Invalid(gettext("Please check the fields marked below."))
            start, doctor, room = form.starts(branch), _number(form.practitioner.data), _number(form.room.data)
            asked = Asked(
                patient_id=visit.patient_id,
                visit_type_id=visit.visit_type_id,
                practitioner_id=doctor or visit.practitioner_id,
                start_at=start,
                minutes=form.minutes.data or word_of(visit)["minutes"],
                room_id=room or visit.room_id,
                equipment_ids=tuple(visit.equipment_ids),
                branch_id=visit.branch_id,
            )
            try:
                with guard.unit_of_work() as session:
                    new = scheduling.move(
                        session,
                        appointment_id,
                        start_at=start,
                        minutes=form.minutes.data,
                        practitioner_id=doctor,
                        room_id=room,
                        override_reason=form.override_reason.data or "",
                        version=_number(request.form.get("version")),
                    ).id
            except SlotTaken:
                clash = clash_words(asked, branch, besides=appointment_id)
                raise
        except Refusal as refusal:
            sentence = tell(refusal, form)
            visit = scheduling.show(guard.session(), appointment_id)
            return self._page(visit, form=form, sentence=sentence, clash=clash), refusal.status
        moved = word_of(scheduling.show(guard.session(), new))
        flash(gettext("Moved to %(when)s, %(doctor)s.", when=moved["when"], doctor=moved["doctor"]), "success")
        return redirect(moved["href"])

    @expose("/<int:appointment_id>/call-off", methods=["POST"])
    @open_to("update", "Appointment")
    def call_off(self, appointment_id: int) -> Any:
        """Call it off, with a reason."""

        def off(session: Any) -> Any:
            version = _number(request.form.get("version"))
            return scheduling.cancel(session, appointment_id, reason=request.form.get("reason", ""), version=version)

        return self._done(appointment_id, off, gettext("Called off."))

    @expose("/<int:appointment_id>/<step>", methods=["POST"])
    @open_to("update", "Appointment")
    def step(self, appointment_id: int, step: str) -> Any:
        """The next step of its day."""
        if step not in STEPS:
            raise NotFound
        service, _, _, state = STEPS[step]
        said = STATES[state][0]
        return self._done(appointment_id, lambda session: service(session, appointment_id), f"{said}.")

    def _done(self, appointment_id: int, act: Any, told: str) -> Any:
        """Do it, or show the visit again with the reason why not."""
        try:
            with guard.unit_of_work() as session:
                act(session)
        except NotFound:
            raise
        except Refusal as refusal:
            visit = scheduling.show(guard.session(), appointment_id)
            return self._page(visit, sentence=str(refusal)), refusal.status
        flash(told, "success")
        return redirect(url_for("Visits.show", appointment_id=appointment_id))

    @staticmethod
    def _branch(visit: Appointment) -> BranchFacts:
        branch = all_branches().get(visit.branch_id)
        if branch is None:
            raise NotFound
        return branch

    def _page(
        self,
        visit: Appointment,
        *,
        form: WhenForm | None = None,
        sentence: str | None = None,
        clash: dict[str, Any] | None = None,
    ) -> str:
        session, branch = guard.session(), self._branch(visit)
        zone = branch.zone
        may_update = current().may("update", "Appointment") and not current().viewing_as
        next_states = TRANSITIONS[S(visit.status)]
        movable = may_update and visit.status in self.MOVABLE
        wants_why = form is not None and bool(form.override_reason.data or form.override_reason.errors)
        if movable:
            if form is None:
                form = WhenForm()
                form.put(visit.start_at, branch)
                form.minutes.data = word_of(visit)["minutes"]
                form.practitioner.data, form.room.data = str(visit.practitioner_id), str(visit.room_id or "")
            fill_choices(form, practice_at(branch), anybody=False)
        successor = None
        if visit.status == S.CANCELLED:
            follows = select(Appointment).where(Appointment.moved_from_id == visit.id)
            successor = session.scalars(follows).one_or_none()
        return self.render(
            "calendar/visit.html",
            page_title=gettext("Visit"),
            visit=word_of(visit),
            row=visit,
            branch=branch,
            reason_shown="reason" not in current().rights.hidden("Appointment"),
            patient_href=url_for("Chart.open", patient_id=visit.patient_id) if visit.patient else None,
            back_href=url_for(
                "Calendar.show", date=f"{visit.start_at.astimezone(zone):%Y-%m-%d}", branch=visit.branch_id
            ),
            steps=steps_of(visit) if may_update else [],
            movable=movable,
            can_call_off=may_update and S.CANCELLED in next_states,
            reasons=TOLD_AT_THE_DESK,
            form=form,
            refusal=sentence,
            moving=form is not None and (sentence is not None) and request.endpoint == "Visits.move",
            clash=clash,
            asks_why=wants_why,
            twice=form is not None and form.comes_twice(branch),
            called_off=BECAUSE.get(visit.cancelation_reason or ""),
            successor=url_for("Visits.show", appointment_id=successor.id) if successor else None,
            before=url_for("Visits.show", appointment_id=visit.moved_from_id) if visit.moved_from_id else None,
            series_href=url_for("SeriesChange.ask", appointment_id=visit.id)
            if movable and visit.series_id is not None and visit.start_at > now()
            else None,
            history=history_of(visit, branch),
        )


def steps_of(visit: Appointment) -> list[dict[str, Any]]:
    """What can be done with a visit now, the likeliest first."""
    allowed = TRANSITIONS[S(visit.status)]
    found = []
    for word, (_, label, drawing, state) in STEPS.items():
        lawful = state in allowed
        if word == "check-in":
            lawful = visit.status in (S.BOOKED, S.ARRIVED) and current().may("create", "Encounter")
        if word == "no-show":
            lawful = lawful and visit.start_at <= now()
        if word == "undo-arrival":
            lawful = visit.status == S.ARRIVED
        if word in ("arrive", "check-in") and visit.status == S.BOOKED:
            lawful = lawful and visit.start_at <= now() + timedelta(hours=12)
        if word == "withdraw":
            lawful = visit.status != S.ENTERED_IN_ERROR
        if lawful:
            href = url_for("Visits.step", appointment_id=visit.id, step=word)
            found.append({"word": word, "label": label, "icon": drawing, "href": href})
    return found


def history_of(visit: Appointment, branch: BranchFacts) -> list[dict[str, Any]]:
    """Every state the visit was in, in words."""
    told = []
    for row in scheduling.history(guard.session(), visit.id):
        start, changed = row.start_at.astimezone(branch.zone), row.changed_at.astimezone(branch.zone)
        word, drawing, tone = STATES[row.status]
        told.append(
            {
                "changed": f"{spoken_day(changed)}, {changed:%H:%M}",
                "state": word,
                "icon": drawing,
                "tone": tone,
                "when": f"{spoken_day(start)}, {start:%H:%M}",
                "why": BECAUSE.get(row.cancelation_reason or "", ""),
            }
        )
    return told


def register(builder: Any) -> None:
    """The calendar, the form that books, and the page of a visit."""
    for view in (Calendar, Booking, Visits):
        builder.add_view_no_menu(view)


__all__ = ["STATES", "Booking", "Calendar", "Visits", "register"]
