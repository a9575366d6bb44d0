"""Booking visits that come again and again: every one of them is looked at before any is written."""

from __future__ import annotations

from datetime import datetime, time
from typing import Any

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import format_date, gettext, lazy_gettext
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
from app.errors import Invalid, Refusal, SlotTaken
from app.services import clinical, series
from app.services.clock import instant
from app.services.scheduling import Asked
from app.services.series import Occurrence, Rule
from views.base import Page, explain, open_to
from views.branches import BranchFacts
from views.desk import choose_patient, here, number_of, offered_doctors, offered_kinds
from views.people import in_short
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


def register(builder: Any) -> None:
    """Repeated visits."""
    builder.add_view_no_menu(Series)
