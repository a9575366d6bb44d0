"""Visits that come again and again: booked, changed, called off; each is looked at before any is written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import format_date, gettext, lazy_gettext
from sqlalchemy import select
from wtforms import (
    BooleanField,
    DateField,
    Form,
    HiddenField,
    IntegerField,
    RadioField,
    SelectField,
    SelectMultipleField,
    StringField,
    TimeField,
)
from wtforms.fields.choices import SelectChoice
from wtforms.validators import InputRequired, Length, NumberRange, Optional

from app import guard
from app.actor import current
from app.errors import Conflict, Invalid, NotFound, Refusal, SlotTaken
from app.services import clinical, scheduling, series
from app.services.clock import instant
from app.services.scheduling import Asked
from app.services.series import Occurrence, Rule, Shift
from models.base import now
from models.organization import Room
from models.scheduling import Appointment
from views.base import Page, explain, open_to
from views.branches import BranchFacts, all_branches
from views.desk import choose_patient, doctors_of, here, number_of, offered_doctors, offered_kinds
from views.people import TOLD_AT_THE_DESK, in_short, name_of
from views.scheduling import weekdays

FREQUENCIES = {
    "daily": lazy_gettext("Every day"),
    "weekly": lazy_gettext("Every week"),
    "monthly": lazy_gettext("Every month"),
}


class SeriesForm(Form):
    """The first visit, and how it comes again."""

    patient = HiddenField(lazy_gettext("Patient"), [InputRequired(lazy_gettext("Please choose the patient."))])
    visit_type = SelectField(
        lazy_gettext("What for"),
        [InputRequired(lazy_gettext("Please choose a kind of visit."))],
        choices=offered_kinds,
    )
    practitioner = SelectField(
        lazy_gettext("Doctor"),
        [InputRequired(lazy_gettext("Please choose a doctor."))],
        choices=lambda: offered_doctors(gettext("Choose…")),
    )
    day = DateField(lazy_gettext("First day"), [InputRequired(lazy_gettext("Please say which day."))])
    time = TimeField(lazy_gettext("Time"), [InputRequired(lazy_gettext("Please say at what time, such as 09:30."))])
    second = BooleanField(
        lazy_gettext("The second time"), description=lazy_gettext("Clocks go back that day, and this hour comes twice.")
    )
    frequency = RadioField(
        lazy_gettext("How it comes again"),
        choices=[SelectChoice(code, word) for code, word in FREQUENCIES.items()],
        default="weekly",
    )
    interval = IntegerField(
        lazy_gettext("Every how many days, weeks or months"),
        [Optional(), NumberRange(1, 52, lazy_gettext("It can come every 1 to 52 days, weeks or months."))],
        default=1,
    )
    weekdays = SelectMultipleField(
        lazy_gettext("On which days of the week"),
        choices=lambda: [SelectChoice(str(number), name) for number, name in weekdays("abbreviated").items()],
        description=lazy_gettext("For every week; none chosen: the day of the first one."),
    )
    count = IntegerField(
        lazy_gettext("How often"),
        [Optional(), NumberRange(1, series.MOST)],
        description=lazy_gettext("Or say the last day beside it."),
    )
    until = DateField(lazy_gettext("Last day"), [Optional()])
    reason = StringField(
        lazy_gettext("Reason"),
        [Length(max=500)],
        description=lazy_gettext("What the patient comes for, in a few words."),
    )

    def asked(self, branch: BranchFacts) -> Asked:
        """The first visit. Raises Invalid, naming the field."""
        wall = datetime.combine(self.day.data, self.time.data or time())
        start = instant(wall, branch.zone, second=bool(self.second.data) if self.twice(branch) else None, field="time")
        return Asked(
            patient_id=number_of(self.patient.data),
            visit_type_id=number_of(self.visit_type.data),
            practitioner_id=number_of(self.practitioner.data),
            start_at=start,
            branch_id=branch.id,
            reason=self.reason.data or "",
        )

    def rule(self) -> Rule:
        """How it comes again; the service says what is wrong with it."""
        weekly = self.frequency.data == "weekly"
        return Rule(
            frequency=self.frequency.data or "",
            interval=self.interval.data or 1,
            weekdays=tuple(int(day) for day in self.weekdays.data or ()) if weekly else (),
            count=self.count.data,
            until=self.until.data,
        )

    def twice(self, branch: BranchFacts) -> bool:
        """Whether the first visit's hour comes twice that day."""
        if self.day.data is None or self.time.data is None:
            return False
        wall = datetime.combine(self.day.data, self.time.data, tzinfo=branch.zone)
        first, later = wall.utcoffset(), wall.replace(fold=1).utcoffset()
        return first is not None and later is not None and first > later


class Series(Page):
    """The form, the report of every visit, and the booking of those that were ticked."""

    route_base = "/series"
    default_view = "ask"

    @expose("/new/", methods=["GET", "POST"])
    @open_to("create", "Appointment")
    def ask(self) -> Any:
        """First who it is; then the rule; then what it amounts to."""
        branch = here()
        if branch is None:
            return self.render("desk/nowhere.html", page_title=gettext("Repeated visits"))
        if request.method == "POST":
            return self._answer(SeriesForm(request.form), branch)
        if not number_of(request.args.get("patient")):
            return choose_patient(
                self,
                title=gettext("Repeated visits"),
                back=(url_for("Desk.today"), gettext("Front desk")),
                onwards=lambda patient_id: url_for("Series.ask", patient=patient_id),
            )
        return self._form(SeriesForm(request.args), branch)

    def _answer(self, form: SeriesForm, branch: BranchFacts) -> Any:
        """Look at every visit, or book those that were ticked: all of them or none."""
        if not form.validate():
            return self._form(form, branch, gettext("Please check the fields marked below.")), 422
        plan: list[Occurrence] | None = None
        try:
            asked, rule = form.asked(branch), form.rule()
            with guard.unit_of_work() as session:
                plan = series.plan(session, asked, rule)
            if request.form.get("step") != "book":
                return self._form(form, branch, plan=plan)
            if request.form.get("rule") != digest(asked, rule):
                raise SlotTaken(gettext("You changed something. Look at the visits again before they are booked."))
            ticked = {number_of(text) - 1 for text in request.form.getlist("take")}
            if not ticked:
                raise Invalid(gettext("Tick the visits to be booked."))
            with guard.unit_of_work() as session:
                made = series.book_series(
                    session, asked, rule, skip={each.nth for each in plan if each.nth not in ticked}
                )
                number = made.id
        except Refusal as refusal:
            if refusal.status == 403:
                raise
            guard.session.rollback()
            return self._form(form, branch, explain(refusal, form), plan=plan), refusal.status
        flash(gettext("%(count)s visits are booked.", count=len(ticked)), "success")
        visits = series.of(guard.session(), number)
        return redirect(url_for("Visits.show", appointment_id=visits[0].id))

    def _form(
        self, form: SeriesForm, branch: BranchFacts, refusal: str | None = None, plan: list[Occurrence] | None = None
    ) -> str:
        patient = clinical.open_chart(guard.session(), number_of(form.patient.data))
        ticked = set(request.form.getlist("take")) if request.form.get("step") == "book" else None
        lines = [occurrence_words(each, branch, ticked) for each in plan or ()]
        return self.render(
            "desk/series.html",
            page_title=gettext("Repeated visits"),
            form=form,
            refusal=refusal,
            patient=in_short(patient),
            branch_facts=branch,
            lines=lines,
            free=sum(1 for line in lines if line["free"]),
            rule=digest(form.asked(branch), form.rule()) if plan else "",
            twice=form.twice(branch),
            chosen_days=set(form.weekdays.data or ()),
        )


def digest(asked: Asked, rule: Rule) -> str:
    """What tells this rule from another one, so that nothing is booked that was not looked at."""
    return f"{asked.digest().hex()[:16]}-{rule.frequency}-{rule.interval}-{rule.weekdays}-{rule.count}-{rule.until}"


def occurrence_words(each: Occurrence, branch: BranchFacts, ticked: set[str] | None) -> dict[str, Any]:
    """One visit of the report: when, and what stands in its way by name."""
    told = [
        gettext(
            "%(name)s is taken from %(since)s to %(until)s.",
            name=clash.name or gettext("The patient"),
            since=f"{clash.since.astimezone(branch.zone):%H:%M}",
            until=f"{clash.until.astimezone(branch.zone):%H:%M}",
        )
        for clash in each.taken
    ]
    number = str(each.nth + 1)
    return {
        "number": number,
        "day": format_date(each.wall.date(), "EEEE, d MMM yyyy"),
        "time": f"{each.wall:%H:%M}",
        "free": not each.obstacle,
        "told": told or ([each.obstacle] if each.obstacle else []),
        "ticked": not each.obstacle and (ticked is None or number in ticked),
    }


# ---- changing those there are --------------------------------------------------------------------------------------


class ChangeForm(Form):
    """Which visits of a series, and what becomes of them."""

    scope = RadioField(lazy_gettext("Which visits"), choices=[], default="following")
    what = RadioField(
        lazy_gettext("What to do"),
        choices=[SelectChoice("move", lazy_gettext("Move")), SelectChoice("off", lazy_gettext("Call off"))],
        default="move",
    )
    day = DateField(
        lazy_gettext("New day of this visit"),
        [Optional()],
        description=lazy_gettext("The others move by as many days."),
    )
    time = TimeField(
        lazy_gettext("New time"), [Optional()], description=lazy_gettext("The same for all, by the branch’s clock.")
    )
    practitioner = SelectField(lazy_gettext("Doctor"), choices=[], validate_choice=False)
    room = SelectField(lazy_gettext("Room"), choices=[], validate_choice=False)
    override_reason = StringField(
        lazy_gettext("Why outside working hours"),
        [Length(max=500)],
        description=lazy_gettext("Only asked for where a time is outside working hours."),
    )
    reason = SelectField(lazy_gettext("Why"), choices=[SelectChoice(code, word) for code, word in TOLD_AT_THE_DESK])

    def offer(self, visit: Appointment, branch: BranchFacts) -> None:
        """Fill in how many visits each choice is about, and who and where there is at the branch."""
        following, every = (len(series.chosen(guard.session(), visit.id, scope)) for scope in ("following", "all"))
        self.scope.choices = [
            SelectChoice("one", gettext("Only this one")),
            SelectChoice("following", gettext("This and the following (%(count)s)", count=following)),
            SelectChoice("all", gettext("All that are still to come (%(count)s)", count=every)),
        ]
        rooms = select(Room).filter_by(branch_id=branch.id, active=True).order_by(Room.name)
        as_it_is = SelectChoice("", gettext("As it is"))
        self.practitioner.choices = [as_it_is, *(SelectChoice(str(who.id), who.name) for who in doctors_of(branch))]
        self.room.choices = [
            as_it_is,
            *(SelectChoice(str(room.id), room.name) for room in guard.session().scalars(rooms)),
        ]

    def wishes(self) -> dict[str, Any]:
        """What is asked of the service that moves. Raises Invalid, naming the field."""
        if self.day.data is None:
            raise Invalid(gettext("Please say which day."), field="day")
        if self.time.data is None:
            raise Invalid(gettext("Please say at what time, such as 09:30."), field="time")
        return {
            "wall": datetime.combine(self.day.data, self.time.data),
            "practitioner_id": number_of(self.practitioner.data) or None,
            "room_id": number_of(self.room.data) or None,
            "override_reason": self.override_reason.data or "",
        }


@dataclass(frozen=True)
class Look:
    """What was looked at: the visits as they are, and where each would go if they are to be moved."""

    visits: Sequence[Appointment]
    shifts: dict[int, Shift]
    wishes: dict[str, Any]

    def digest(self, form: ChangeForm) -> str:
        """What tells it from another look, so that nothing is done to a visit that was not looked at."""
        seen = [(visit.id, visit.version) for visit in self.visits]
        said = (form.scope.data, form.what.data, sorted(self.wishes.items()), seen)
        return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


class SeriesChange(Page):
    """Several visits of a series moved or called off at once."""

    route_base = "/series/visit"
    default_view = "ask"

    @expose("/<int:appointment_id>/", methods=["GET", "POST"])
    @open_to("update", "Appointment")
    def ask(self, appointment_id: int) -> Any:
        """The form, what it amounts to for each visit, and the doing of what was looked at."""
        visit = scheduling.show(guard.session(), appointment_id)
        branch = all_branches().get(visit.branch_id)
        if branch is None:
            raise NotFound
        if not changes_with_others(visit):
            return redirect(url_for("Visits.show", appointment_id=appointment_id))
        if request.method == "POST":
            return self._answer(ChangeForm(request.form), visit, branch)
        start = visit.start_at.astimezone(branch.zone)
        form = ChangeForm(data={"scope": "following", "what": "move", "day": start.date(), "time": start.time()})
        return self._page(form, visit, branch)

    def _answer(self, form: ChangeForm, visit: Appointment, branch: BranchFacts) -> Any:
        """Look, or do what was looked at: all of it or nothing."""
        form.offer(visit, branch)
        if not form.validate():
            return self._page(form, visit, branch, gettext("Please check the fields marked below.")), 422
        look: Look | None = None
        try:
            look = self._looked(form, visit)
            if request.form.get("step") != "do":
                return self._page(form, visit, branch, look=look)
            if request.form.get("seen") != look.digest(form):
                raise Conflict(gettext("Something has changed since you looked. Look at the visits again."))
            told, onwards = self._done(form, visit, look)
        except Refusal as refusal:
            if refusal.status in (403, 404):
                raise
            guard.session.rollback()
            visit = scheduling.show(guard.session(), visit.id)
            refusal.field = {"start": "time"}.get(refusal.field or "", refusal.field)
            return self._page(form, visit, branch, explain(refusal, form), look), refusal.status
        flash(told, "success")
        return redirect(url_for("Visits.show", appointment_id=onwards))

    @staticmethod
    def _looked(form: ChangeForm, visit: Appointment) -> Look:
        """The visits that are meant, and where they would go. Raises Invalid, naming the field."""
        session = guard.session()
        wishes = form.wishes() if form.what.data == "move" else {}
        visits = series.chosen(session, visit.id, form.scope.data)
        shifts = series.plan_change(session, visit.id, form.scope.data, **wishes) if wishes else []
        return Look(visits, {shift.visit.id: shift for shift in shifts}, wishes)

    @staticmethod
    def _done(form: ChangeForm, visit: Appointment, look: Look) -> tuple[str, int]:
        """Do it, and give what to say and the visit to show then. Raises Refusal, and says in `look` why."""
        if form.what.data == "off":
            with guard.unit_of_work() as session:
                gone = series.call_off(session, visit.id, form.scope.data, reason=form.reason.data or "")
                return gettext("%(count)s visits are called off.", count=len(gone)), visit.id
        ticked = {number_of(text) for text in request.form.getlist("take")}
        skip = {each.id for each in look.visits} - ticked
        try:
            with guard.unit_of_work() as session:
                moved = series.change(session, visit.id, form.scope.data, **look.wishes, skip=skip)
                keys = {each.moved_from_id: each.id for each in moved}
        except SlotTaken:
            # Those that stay are in the way of others now.
            plan = series.plan_change(guard.session(), visit.id, form.scope.data, **look.wishes, skip=skip)
            look.shifts.update({shift.visit.id: shift for shift in plan})
            raise
        told = gettext("%(count)s visits are moved.", count=len(keys))
        return told, keys.get(visit.id) or min(keys.values())

    def _page(
        self,
        form: ChangeForm,
        visit: Appointment,
        branch: BranchFacts,
        refusal: str | None = None,
        look: Look | None = None,
    ) -> str:
        form.offer(visit, branch)
        ticked = set(request.form.getlist("take")) if request.form.get("step") == "do" else None
        lines = (
            [
                shift_words(each, look.shifts.get(each.id), branch, ticked)
                for each in scheduling.shown(guard.session(), [each.id for each in look.visits])
            ]
            if look
            else []
        )
        obstacles = [shift.occurrence for shift in look.shifts.values()] if look else []
        unheld = any(each.obstacle and each.start_at and not each.taken for each in obstacles)
        return self.render(
            "desk/series_change.html",
            page_title=gettext("Repeated visits"),
            form=form,
            refusal=refusal,
            visit=visit,
            patient=name_of(visit.patient) if visit.patient else gettext("Name not shown"),
            when=spoken_wall(visit.start_at.astimezone(branch.zone)),
            branch_facts=branch,
            lines=lines,
            free=sum(1 for line in lines if line["free"]),
            seen=look.digest(form) if look else "",
            asks_why=bool(form.override_reason.data) or (unheld and current().may("create", "ScheduleOverride")),
        )


def changes_with_others(visit: Appointment) -> bool:
    """Whether a visit is one of a series and still to come, so that it can be changed together with others."""
    return visit.series_id is not None and visit.status in series.TO_COME and visit.start_at > now()


def spoken_wall(wall: datetime) -> str:
    """A day and time as the report of a series says it."""
    return f"{format_date(wall.date(), 'EEEE, d MMM yyyy')}, {wall:%H:%M}"


def shift_words(
    visit: Appointment, shift: Shift | None, branch: BranchFacts, ticked: set[str] | None
) -> dict[str, Any]:
    """One visit of the report: when it is, where it would go, and what stands in its way by name."""
    is_now = spoken_wall(visit.start_at.astimezone(branch.zone))
    place = [visit.practitioner.name, visit.room.name if visit.room else ""]
    number = str(visit.id)
    if shift is None:
        said = {"free": True, "told": [], "ticked": True, "title": is_now, "note": ", ".join(filter(None, place))}
    else:
        said = occurrence_words(shift.occurrence, branch, None)
        said["title"] = f"{said['day']}, {said['time']}"
        said["note"] = gettext("now %(when)s", when=", ".join(filter(None, [is_now, *place])))
        said["ticked"] = said["free"] and (ticked is None or number in ticked)
    return {**said, "number": number}


def register(builder: Any) -> None:
    """Repeated visits."""
    for view in (Series, SeriesChange):
        builder.add_view_no_menu(view)
