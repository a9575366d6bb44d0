"""What visits are made of, set up by those who run the hospital: kinds, equipment, hours, leave and holidays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from itertools import groupby
from typing import Any, ClassVar

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_appbuilder.fields import QuerySelectMultipleField
from flask_babel import get_locale, gettext, lazy_gettext, ngettext
from sqlalchemy import select
from wtforms import BooleanField, DateField, Form, IntegerField, RadioField, SelectField, StringField, TimeField
from wtforms.fields.choices import SelectChoice
from wtforms.validators import InputRequired, Length, NumberRange, Optional

from app import guard
from app.actor import current
from app.errors import Invalid, NotFound, Refusal
from app.services import schedules
from app.services.clock import instant
from app.services.schedules import Stretch
from models.base import now
from models.codes import ScheduleChange
from models.organization import Practitioner, Room
from models.scheduling import Appointment, Equipment, ScheduleException, VisitType, WorkingHours
from views.base import Page, RecordInterface, RecordView, explain, open_to
from views.branches import all_branches, zone_of
from views.people import name_of
from views.speech import ENGLISH, spoken_day

CLOCK = re.compile(r"(\d{1,2})(?:[:.h]?([0-5]\d))?")
WIDEST_DAY = 6
"""From-to pairs of one day at most."""
EXCEPTIONS = {
    ScheduleChange.LEAVE: lazy_gettext("Leave"),
    ScheduleChange.HOLIDAY: lazy_gettext("Holiday of a branch"),
    ScheduleChange.EXTRA: lazy_gettext("Extra session"),
}


# ---- kinds of visits, and equipment ------------------------------------------------------------------------------


def _staff() -> list[tuple[str, Practitioner]]:
    statement = select(Practitioner).where(Practitioner.active, Practitioner.home_branch_id.is_not(None))
    return [(str(row.id), row) for row in guard.session().scalars(statement.order_by(Practitioner.family))]


def _rooms() -> list[tuple[str, Room]]:
    found = guard.session().scalars(select(Room).where(Room.active).order_by(Room.branch_id, Room.name))
    return [(str(row.id), row) for row in found]


def _things() -> list[tuple[str, Equipment]]:
    found = guard.session().scalars(
        select(Equipment).where(Equipment.active).order_by(Equipment.branch_id, Equipment.name)
    )
    return [(str(row.id), row) for row in found]


def _placed(row: Room | Equipment) -> str:
    """A room or a thing with its branch: every branch has a Room 1."""
    return f"{row.name} ({row.branch})"


def _titled(person: Practitioner) -> str:
    return f"{person.name}, {person.qualification}" if person.qualification else person.name


class Several(QuerySelectMultipleField):
    """Some rows of a table, or none of them."""

    def __init__(self, label: Any, rows: Any, spoken: Any, description: Any, **more: Any) -> None:
        super().__init__(
            label,
            query_func=lambda: [row for _, row in rows()],
            get_pk_func=lambda row: str(row.id),
            get_label=spoken,
            description=description,
            **more,
        )


class VisitTypeView(RecordView):
    """What can be booked."""

    datamodel = RecordInterface(VisitType)
    route_base = "/visit-types"
    create = schedules.offer_kind
    update = schedules.change_kind
    list_title = lazy_gettext("Kinds of visits")
    intro = lazy_gettext("What can be booked: how long it takes, who does it, where, and with what.")
    empty = lazy_gettext("No kind of visit yet. Add the first one, and visits can be booked.")
    add_title = lazy_gettext("New kind of visit")
    add_label = lazy_gettext("New kind of visit")
    list_columns: ClassVar[list[str]] = ["name", "minutes", "practitioners", "active"]
    order_columns: ClassVar[list[str]] = ["name", "minutes"]
    show_columns: ClassVar[list[str]] = [
        *("name", "minutes", "buffer_before", "buffer_after", "practitioners", "needs_room", "rooms", "equipment"),
        "active",
    ]
    add_columns: ClassVar[list[str]] = [
        *("name", "minutes", "buffer_before", "buffer_after", "needs_room", "active"),
        *("practitioners", "rooms", "equipment"),
    ]
    edit_columns: ClassVar[list[str]] = add_columns
    search_columns: ClassVar[list[str]] = ["name", "active"]
    label_columns: ClassVar[dict[str, Any]] = {
        "name": lazy_gettext("Name"),
        "minutes": lazy_gettext("Minutes"),
        "buffer_before": lazy_gettext("Minutes kept free before"),
        "buffer_after": lazy_gettext("Minutes kept free after"),
        "needs_room": lazy_gettext("Needs a room"),
        "practitioners": lazy_gettext("Who does it"),
        "rooms": lazy_gettext("Where"),
        "equipment": lazy_gettext("With what"),
        "active": lazy_gettext("Can be booked"),
    }
    description_columns: ClassVar[dict[str, Any]] = {}
    _fields: ClassVar[dict[str, Any]] = {
        "minutes": IntegerField(lazy_gettext("Minutes"), [InputRequired(), NumberRange(5, 720)], default=20),
        "buffer_before": IntegerField(
            lazy_gettext("Minutes kept free before"), [Optional(), NumberRange(0, 120)], default=0
        ),
        "buffer_after": IntegerField(
            lazy_gettext("Minutes kept free after"), [Optional(), NumberRange(0, 120)], default=0
        ),
        "needs_room": BooleanField(lazy_gettext("Needs a room"), default=True),
        "active": BooleanField(lazy_gettext("Can be booked"), default=True),
        "practitioners": Several(
            lazy_gettext("Who does it"), _staff, _titled, lazy_gettext("Nobody chosen: everybody with working hours.")
        ),
        "rooms": Several(
            lazy_gettext("Where"), _rooms, _placed, lazy_gettext("None chosen: every room of the branch.")
        ),
        "equipment": Several(
            lazy_gettext("With what"), _things, _placed, lazy_gettext("It needs one of these; none chosen: nothing.")
        ),
    }
    add_form_extra_fields = _fields
    edit_form_extra_fields = _fields
    validators_columns: ClassVar[dict[str, Any]] = {"name": [InputRequired(), Length(max=80)]}
    base_order = ("name", "asc")

    def value_of(self, item: VisitType, column: str) -> Any:
        if column == "practitioners":
            if not item.practitioners:
                return gettext("Everybody with working hours")
            names = [person.name for person in item.practitioners]
            return ", ".join(names) if len(names) < 4 else gettext("%(count)s people", count=len(names))
        if column == "rooms":
            return ", ".join(map(_placed, item.rooms)) or gettext("Every room of the branch")
        if column == "equipment":
            return ", ".join(map(_placed, item.equipment)) or gettext("Nothing")
        return super().value_of(item, column)


class EquipmentView(RecordView):
    """Things of which there are few."""

    datamodel = RecordInterface(Equipment)
    route_base = "/equipment"
    create = schedules.install
    update = schedules.change_equipment
    list_title = lazy_gettext("Equipment")
    intro = lazy_gettext("Things of which there are few, so that visits that need them are booked one after the other.")
    empty = lazy_gettext("No equipment yet. Add what two visits cannot use at once.")
    add_title = lazy_gettext("New equipment")
    add_label = lazy_gettext("New equipment")
    list_columns: ClassVar[list[str]] = ["name", "kind", "branch", "active"]
    order_columns: ClassVar[list[str]] = ["name", "kind"]
    show_columns: ClassVar[list[str]] = ["name", "kind", "branch", "active"]
    add_columns: ClassVar[list[str]] = ["branch", "name", "kind", "active"]
    edit_columns: ClassVar[list[str]] = add_columns
    search_columns: ClassVar[list[str]] = ["name", "kind", "branch", "active"]
    label_columns: ClassVar[dict[str, Any]] = {
        "name": lazy_gettext("Name"),
        "kind": lazy_gettext("What it is"),
        "branch": lazy_gettext("Branch"),
        "active": lazy_gettext("In use"),
    }
    add_form_extra_fields: ClassVar[dict[str, Any]] = {"active": BooleanField(lazy_gettext("In use"), default=True)}
    validators_columns: ClassVar[dict[str, Any]] = {"name": [InputRequired(), Length(max=80)]}
    base_order = ("name", "asc")


# ---- words -------------------------------------------------------------------------------------------------------


def weekdays(width: str = "wide") -> dict[int, str]:
    """The days of the week by their ISO numbers, in the reader's language."""
    names = (get_locale() or ENGLISH).days["stand-alone"][width]
    return {number: str(names[number - 1]).capitalize() for number in range(1, 8)}


def spoken_stretch(stretch: Stretch) -> str:
    """A stretch such as "Monday 08:00 to 15:00"."""
    text = gettext(
        "%(day)s %(starts)s to %(ends)s",
        day=weekdays()[stretch.weekday],
        starts=f"{stretch.starts:%H:%M}",
        ends=f"{stretch.ends:%H:%M}",
    )
    return str(gettext("%(text)s the next day", text=text) if stretch.ends < stretch.starts else text)


def spoken_week(rows: Sequence[WorkingHours]) -> list[str]:
    """A week in a few words, days of the same hours together: "Mon-Fri 08:00-15:00"."""
    names = weekdays("abbreviated")
    by_day: dict[int, list[str]] = {}
    for row in sorted(rows, key=lambda row: (row.weekday, row.starts)):
        by_day.setdefault(row.weekday, []).append(f"{row.starts:%H:%M}-{row.ends:%H:%M}")
    lines: list[tuple[list[int], str]] = []
    for weekday, hours in by_day.items():
        text = ", ".join(hours)
        if lines and lines[-1][1] == text and lines[-1][0][-1] == weekday - 1:
            lines[-1][0].append(weekday)
        else:
            lines.append(([weekday], text))
    return [f"{names[days[0]]}{'-' + names[days[-1]] if len(days) > 1 else ''} {text}".strip() for days, text in lines]


def visit_line(visit: Appointment) -> dict[str, Any]:
    """A booked visit as a line of a list, by the clock of its branch."""
    starts = visit.start_at.astimezone(zone_of(visit.branch_id))
    return {
        "when": f"{spoken_day(starts.date())}, {starts:%H:%M}",
        "patient": name_of(visit.patient) if visit.patient else gettext("Name not shown"),
        "what": f"{visit.visit_type}, {visit.practitioner}",
        "branch": str(all_branches().get(visit.branch_id, "")),
        "href": url_for("Visits.show", appointment_id=visit.id),
    }


# ---- working hours -----------------------------------------------------------------------------------------------


class Hours(Page):
    """Who works when: everybody in short, and one person's week as a form."""

    route_base = "/hours"
    default_view = "list"

    @expose("/")
    @open_to("read", "WorkingHours")
    def list(self) -> str:
        """Everybody's hours as they count today."""
        session = guard.session()
        branches = all_branches()
        today = now().date()
        counted: dict[int, dict[int, list[WorkingHours]]] = {}
        for row in schedules.everybodys_hours(session, today):
            counted.setdefault(row.practitioner_id, {}).setdefault(row.branch_id, []).append(row)
        chosen = _number(request.args.get("branch"))
        people = []
        for _, person in _staff():
            weeks = counted.get(person.id, {})
            if chosen and chosen not in weeks and person.home_branch_id != chosen:
                continue
            people.append(
                {
                    "name": person.name,
                    "title": person.qualification,
                    "href": url_for("Hours.week", practitioner_id=person.id, branch=chosen or None),
                    "weeks": [
                        {"branch": str(branches.get(branch_id, "")), "lines": spoken_week(rows)}
                        for branch_id, rows in weeks.items()
                        if not chosen or branch_id == chosen
                    ],
                }
            )
        return self.render(
            "scheduling/hours.html",
            page_title=gettext("Working hours"),
            people=[person for person in people if person["weeks"]],
            others=[person for person in people if not person["weeks"]],
            places=branches.values(),
            chosen=chosen,
            may_change=current().may("update", "WorkingHours"),
        )

    @expose("/<int:practitioner_id>/", methods=["GET"])
    @open_to("read", "WorkingHours")
    def week(self, practitioner_id: int) -> str:
        """One person's week at one branch."""
        person = _person(practitioner_id)
        branch_id = _branch_for(person)
        valid_from = _today(branch_id)
        week = schedules.week_of(guard.session(), person.id, branch_id, valid_from)
        return self._grid(person, branch_id, week, valid_from.isoformat())

    @expose("/<int:practitioner_id>/", methods=["POST"])
    @open_to("update", "WorkingHours")
    def change(self, practitioner_id: int) -> Any:
        """Look at what a week would change, or save it; with visits outside of it only after looking."""
        person, branch_id = _person(practitioner_id), _branch_for(None)
        typed = request.form.get("valid_from", "")
        asked: dict[str, Any] = {"practitioner_id": person.id, "branch_id": branch_id}
        try:
            asked["week"], asked["valid_from"] = _submitted_week(), _day(typed)
            with guard.unit_of_work() as session:
                change = schedules.week_change(session, **asked)
                outside = len(change.outside)
                looked = request.form.get("seen") == str(outside)
                if request.form.get("step") == "save" and (looked or not outside):
                    schedules.set_week(session, **asked)
                    saved = True
                else:
                    saved = False
        except Refusal as refusal:
            guard.session.rollback()
            return self._grid(_person(practitioner_id), branch_id, None, typed, refusal=refusal), refusal.status
        if not saved:
            page = self._grid(person, branch_id, None, typed, change=change)
            return page, 409 if request.form.get("step") == "save" else 200
        flash(gettext("The hours are saved."), "success")
        return redirect(url_for("Hours.week", practitioner_id=person.id, branch=branch_id))

    def _grid(
        self,
        person: Practitioner,
        branch_id: int,
        week: Sequence[Stretch] | None,
        valid_from: str,
        *,
        change: schedules.WeekChange | None = None,
        refusal: Refusal | None = None,
    ) -> str:
        """The form: `week` as it is, or None for as it was typed."""
        days = []
        for number, name in weekdays().items():
            if week is None:
                pairs = _typed_pairs(number)
            else:
                pairs = [(f"{s.starts:%H:%M}", f"{s.ends:%H:%M}") for s in week if s.weekday == number]
            blank = min(max(2 - len(pairs), 1), WIDEST_DAY - len(pairs)) if len(pairs) < WIDEST_DAY else 0
            wrong = str(refusal) if refusal is not None and refusal.field == f"day{number}" else ""
            days.append({"number": number, "name": name, "pairs": [*pairs, *[("", "")] * blank], "error": wrong})
        session, branches = guard.session(), all_branches()
        rows = schedules.hours_of(session, person.id, since=_today(branch_id))
        here = [row for row in rows if row.branch_id == branch_id]
        planned = sorted({row.valid_from for row in here if row.valid_from > _today(branch_id)})
        elsewhere = [
            {"branch": str(branches.get(key, "")), "lines": spoken_week(list(found))}
            for key, found in groupby((row for row in rows if row.branch_id != branch_id), lambda row: row.branch_id)
        ]
        told = None
        if change is not None:
            told = {
                "comes": [spoken_stretch(stretch) for stretch in change.comes],
                "goes": [spoken_stretch(stretch) for stretch in change.goes],
                "outside": [visit_line(visit) for visit in change.outside],
                "from": valid_from,
            }
        return self.render(
            "scheduling/week.html",
            page_title=gettext("Working hours of %(name)s", name=person.name),
            person=person,
            person_title=person.qualification,
            days=days,
            valid_from=valid_from,
            earliest=_today(branch_id).isoformat(),
            places=_places_of(person, branch_id),
            branch_id=branch_id,
            elsewhere=elsewhere,
            planned=[spoken_day(day) for day in planned],
            told=told,
            refusal=refusal,
            date_wrong=refusal is not None and refusal.field == "valid_from",
            may_change=current().may("update", "WorkingHours"),
            longest=WIDEST_DAY,
        )


def _number(said: str | None) -> int:
    return int(said) if said and said.isdecimal() and len(said) < 19 else 0


def _person(practitioner_id: int) -> Practitioner:
    person = guard.session().get(Practitioner, practitioner_id) if practitioner_id < 2**63 else None
    if person is None:
        raise NotFound
    return person


def _branch_for(person: Practitioner | None) -> int:
    """The branch a week is looked at for: the one named, else the person's own. Raises NotFound."""
    named = _number(request.values.get("branch"))
    chosen = named or (person.home_branch_id if person else 0) or current().branch_id or 0
    if chosen not in all_branches():
        if named or not all_branches():
            raise NotFound
        return next(iter(all_branches()))
    return chosen


def _places_of(person: Practitioner, branch_id: int) -> list[tuple[int, str, bool]]:
    return [(facts.id, facts.name, facts.id == branch_id) for facts in all_branches().values()]


def _today(branch_id: int | None) -> date:
    return now().astimezone(zone_of(branch_id)).date()


def _day(said: str) -> date:
    try:
        return date.fromisoformat(said.strip())
    except ValueError as error:
        raise Invalid(gettext("Please give the day."), field="valid_from") from error


def _typed_pairs(weekday: int) -> list[tuple[str, str]]:
    """What was typed for a day, blank pairs left out."""
    starts, ends = (request.form.getlist(f"day{weekday}-{end}")[: WIDEST_DAY + 1] for end in ("starts", "ends"))
    return [(since.strip(), until.strip()) for since, until in zip(starts, ends, strict=False) if since or until]


def _clock(said: str) -> time:
    """A time as people type it: 8, 8:30, 8.30, 0830. Raises ValueError."""
    if (found := CLOCK.fullmatch(said)) is None:
        raise ValueError(said)
    return time(int(found[1]) % 24 if found[1] == "24" else int(found[1]), int(found[2] or 0))


def _submitted_week() -> list[Stretch]:
    """The week that was sent. Raises Invalid, naming the day."""
    week = []
    for weekday in range(1, 8):
        for since, until in _typed_pairs(weekday):
            try:
                week.append(Stretch(weekday, _clock(since), _clock(until)))
            except ValueError as error:
                sentence = gettext("Please give both times like 08:00, or leave both empty.")
                raise Invalid(sentence, field=f"day{weekday}") from error
    return week


# ---- leave, holidays, extra sessions -----------------------------------------------------------------------------


def _whose() -> list[SelectChoice]:
    return [SelectChoice("", gettext("Nobody in particular")), *(SelectChoice(k, _titled(p)) for k, p in _staff())]


def _where() -> list[SelectChoice]:
    places = [SelectChoice(str(facts.id), facts.name) for facts in all_branches().values()]
    return [SelectChoice("", gettext("Every branch")), *places]


TWICE = [SelectChoice("first", lazy_gettext("The first")), SelectChoice("second", lazy_gettext("The second"))]
"""Of an hour that comes twice when clocks go back."""


class ExceptionForm(Form):
    """What is not as the weekly hours have it, by the clock of the branch."""

    kind = RadioField(
        lazy_gettext("What it is"),
        [InputRequired(lazy_gettext("Please choose what it is."))],
        choices=[SelectChoice(code.value, word) for code, word in EXCEPTIONS.items()],
    )
    practitioner = SelectField(
        lazy_gettext("Whose"), choices=_whose, description=lazy_gettext("Not needed for a holiday.")
    )
    branch = SelectField(
        lazy_gettext("Branch"), choices=_where, description=lazy_gettext("Leave can be from every branch at once.")
    )
    starts_on = DateField(lazy_gettext("First day"), [InputRequired(lazy_gettext("Please give the day."))])
    starts_time = TimeField(
        lazy_gettext("From"), [Optional()], description=lazy_gettext("Empty: from the beginning of that day.")
    )
    starts_which = RadioField(
        lazy_gettext("Which of the two hours it begins in"),
        [Optional()],
        choices=TWICE,
    )
    ends_on = DateField(
        lazy_gettext("Last day"), [Optional()], description=lazy_gettext("Empty: the first day as well.")
    )
    ends_time = TimeField(
        lazy_gettext("Until"), [Optional()], description=lazy_gettext("Empty: until that day is over.")
    )
    ends_which = RadioField(lazy_gettext("Which of the two hours it ends in"), [Optional()], choices=TWICE)
    note = StringField(lazy_gettext("Note"), [Length(max=200)], description=lazy_gettext("Staff see it."))

    def values(self) -> dict[str, Any]:
        """As the service wants it. Raises Invalid for an hour that does not exist, or comes twice and is not said."""
        branch_id = _number(self.branch.data)
        practitioner_id = _number(self.practitioner.data)
        where = zone_of(branch_id or _home_of(practitioner_id) or current().branch_id)
        last = self.ends_on.data or self.starts_on.data
        opens = datetime.combine(self.starts_on.data, self.starts_time.data or time())
        closes = (
            datetime.combine(last, self.ends_time.data)
            if self.ends_time.data
            else datetime.combine(last + timedelta(days=1), time())
        )
        second = {"first": False, "second": True}
        return {
            "kind": self.kind.data,
            "practitioner_id": practitioner_id or None,
            "branch_id": branch_id or None,
            "starts_at": instant(opens, where, second=second.get(self.starts_which.data or ""), field="starts_time"),
            "ends_at": instant(closes, where, second=second.get(self.ends_which.data or ""), field="ends_time"),
            "note": self.note.data or "",
        }

    def twice(self) -> set[str]:
        """Which of the times come twice that day, so that it has to be said which is meant."""
        where = zone_of(_number(self.branch.data) or _home_of(_number(self.practitioner.data)) or current().branch_id)
        found = set()
        last = self.ends_on.data or self.starts_on.data
        for name, day, clock in (
            ("starts_which", self.starts_on.data, self.starts_time.data),
            ("ends_which", last, self.ends_time.data),
        ):
            if day is not None and clock is not None:
                wall = datetime.combine(day, clock, tzinfo=where)
                back = wall.replace(fold=0).utcoffset(), wall.replace(fold=1).utcoffset()
                if back[0] is not None and back[1] is not None and back[0] > back[1]:
                    found.add(name)
        return found


def _home_of(practitioner_id: int) -> int | None:
    person = guard.session().get(Practitioner, practitioner_id) if practitioner_id else None
    return person.home_branch_id if person else None


class Exceptions(Page):
    """Leave, holidays and extra sessions."""

    route_base = "/leave"
    default_view = "list"

    @expose("/")
    @open_to("read", "ScheduleException")
    def list(self) -> str:
        """What is to come."""
        chosen = _number(request.args.get("branch"))
        found = schedules.exceptions(guard.session(), since=now(), branch_id=chosen or None)
        may_see = current().may("update", "Appointment")
        return self.render(
            "scheduling/leave.html",
            page_title=gettext("Leave and holidays"),
            rows=[
                {**in_words(row), "visits": len(schedules.visits_in(guard.session(), row)) if may_see else 0}
                for row in found
            ],
            places=all_branches().values(),
            chosen=chosen,
            may_add=current().may("create", "ScheduleException"),
        )

    @expose("/<int:exception_id>/")
    @open_to("read", "ScheduleException")
    def show(self, exception_id: int) -> str:
        """One of them, and the visits that are booked in it."""
        row = _exception(exception_id)
        may_see = current().may("update", "Appointment")
        visits = schedules.visits_in(guard.session(), row) if may_see else []
        told = in_words(row)
        return self.render(
            "scheduling/exception.html",
            page_title=told["title"],
            one=told,
            visits=[visit_line(visit) for visit in visits],
            heading=ngettext(
                "%(num)s visit is booked in this time", "%(num)s visits are booked in this time", len(visits)
            ),
            may_see=may_see and row.kind != ScheduleChange.EXTRA,
            may_change=current().may("update", "ScheduleException"),
            may_lift=current().may("delete", "ScheduleException"),
        )

    @expose("/new/", methods=["GET", "POST"])
    @open_to("create", "ScheduleException")
    def add(self) -> Any:
        """The form for a new one."""
        if request.method == "POST":
            return self._save(None, ExceptionForm(request.form))
        form = ExceptionForm(request.args, kind=request.args.get("kind", ScheduleChange.LEAVE))
        return self._form(form, None)

    @expose("/<int:exception_id>/edit/", methods=["GET", "POST"])
    @open_to("update", "ScheduleException")
    def edit(self, exception_id: int) -> Any:
        """The form for one that is there."""
        row = _exception(exception_id)
        if request.method == "POST":
            return self._save(row, ExceptionForm(request.form))
        where = zone_of(row.branch_id or _home_of(row.practitioner_id or 0) or current().branch_id)
        opens, closes = row.starts_at.astimezone(where), row.ends_at.astimezone(where)
        last = closes.date() - timedelta(days=1) if closes.time() == time() else closes.date()
        form = ExceptionForm(
            data={
                "kind": row.kind,
                "practitioner": str(row.practitioner_id or ""),
                "branch": str(row.branch_id or ""),
                "starts_on": opens.date(),
                "starts_time": None if opens.time() == time() else opens.time(),
                "starts_which": "second" if opens.fold else "first",
                "ends_on": last,
                "ends_time": None if closes.time() == time() else closes.time(),
                "ends_which": "second" if closes.fold else "first",
                "note": row.note,
            }
        )
        return self._form(form, row)

    @expose("/<int:exception_id>/lift", methods=["POST"])
    @open_to("delete", "ScheduleException")
    def lift(self, exception_id: int) -> Any:
        """It is as usual after all."""
        row = _exception(exception_id)
        with guard.unit_of_work() as session:
            schedules.lift_exception(session, row)
        flash(gettext("Removed: the weekly hours count again."), "success")
        return redirect(url_for("Exceptions.list"))

    def _save(self, row: ScheduleException | None, form: ExceptionForm) -> Any:
        if not form.validate():
            return self._form(form, row, gettext("Please check the fields marked below.")), 422
        try:
            values = form.values()
            with guard.unit_of_work() as session:
                if row is None:
                    saved = schedules.set_exception(session, **values)
                else:
                    schedules.change_exception(session, row, **values)
                    saved = row
                number = saved.id
        except Refusal as refusal:
            guard.session.rollback()
            sentence = explain(refusal, form)
            again = _exception(row.id) if row is not None else None
            return self._form(form, again, sentence), refusal.status
        flash(gettext("Saved."), "success")
        return redirect(url_for("Exceptions.show", exception_id=number))

    def _form(self, form: ExceptionForm, row: ScheduleException | None, refusal: str | None = None) -> str:
        back = url_for("Exceptions.list") if row is None else url_for("Exceptions.show", exception_id=row.id)
        return self.render(
            "scheduling/exception_form.html",
            page_title=gettext("Leave, holiday or extra session"),
            title=in_words(row)["title"] if row is not None else gettext("New leave, holiday or extra session"),
            form=form,
            refusal=refusal,
            twice=form.twice(),
            cancel_href=back,
        )


def _exception(exception_id: int) -> ScheduleException:
    if exception_id >= 2**63:
        raise NotFound
    return schedules.exception(guard.session(), exception_id)


def in_words(row: ScheduleException) -> dict[str, Any]:
    """A line of leave, a holiday or an extra session, by the clock of its branch."""
    where = zone_of(row.branch_id or (row.practitioner.home_branch_id if row.practitioner else None))
    opens, closes = row.starts_at.astimezone(where), row.ends_at.astimezone(where)
    if opens.time() == time() == closes.time():
        first, last = opens.date(), closes.date() - timedelta(days=1)
        when = spoken_day(first)
        if last > first:
            when = gettext("%(first)s to %(last)s", first=when, last=spoken_day(last))
    elif opens.date() == closes.date():
        when = f"{spoken_day(opens.date())}, {opens:%H:%M}-{closes:%H:%M}"
    else:
        when = gettext(
            "%(first)s to %(last)s",
            first=f"{spoken_day(opens.date())}, {opens:%H:%M}",
            last=f"{spoken_day(closes.date())}, {closes:%H:%M}",
        )
    kind = str(EXCEPTIONS[ScheduleChange(row.kind)])
    place = str(all_branches().get(row.branch_id, "")) if row.branch_id else gettext("Every branch")
    whose = row.practitioner.name if row.practitioner else place
    return {
        "id": row.id,
        "kind": kind,
        "tone": {"leave": "warn", "holiday": "calm", "extra": "ok"}[row.kind],
        "whose": whose,
        "branch": place,
        "when": when,
        "note": row.note,
        "title": f"{kind}: {whose}",
        "href": url_for("Exceptions.show", exception_id=row.id),
    }


def register(builder: Any) -> None:
    """The screens that set scheduling up."""
    for view in (VisitTypeView, EquipmentView, Hours, Exceptions):
        builder.add_view_no_menu(view)
