"""Critical results: the banner over every page, confirming one, writing down calls, and how long it all takes."""

from __future__ import annotations

from datetime import datetime, time, timedelta
from typing import Any

from flask import current_app, flash, g, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext
from sqlalchemy.exc import SQLAlchemyError
from wtforms import DateField, Form, RadioField, SelectField, StringField, TextAreaField
from wtforms.fields.choices import SelectChoice
from wtforms.validators import InputRequired, Length

from app import guard
from app.actor import acting, current
from app.errors import Refusal
from app.services import critical, lab
from models.base import now
from models.codes import AttemptOutcome
from models.lab import CriticalResult
from views.base import Page, branch_zone, explain, open_to, words
from views.branches import all_branches
from views.desk import number_of
from views.laboratory import FLAGS, value_of, who
from views.plots import plot

OUTCOMES = {
    AttemptOutcome.CONFIRMED: lazy_gettext("Told, and the value was repeated"),
    AttemptOutcome.NO_READ_BACK: lazy_gettext("Reached, but the value was not repeated"),
    AttemptOutcome.NOT_REACHED: lazy_gettext("Not reached"),
}
DAYS = 30
"""Of the report, where nobody says otherwise."""


class ReadBack(Form):
    """The value, as the person read it."""

    read_back = StringField(
        lazy_gettext("Repeat the value"),
        [InputRequired(lazy_gettext("Please repeat the value.")), Length(max=120)],
        description=lazy_gettext("Type it as it stands above, so that nothing is misread."),
        render_kw={"autocomplete": "off"},
    )


class Call(Form):
    """A try to tell somebody."""

    recipient = SelectField(lazy_gettext("Whom you called"), choices=[])
    recipient_name = StringField(
        lazy_gettext("Name of somebody else"),
        [Length(max=120)],
        description=lazy_gettext("Only where it is nobody of the list."),
    )
    outcome = RadioField(
        lazy_gettext("What became of it"),
        [InputRequired(lazy_gettext("Please choose what became of the call."))],
        choices=[SelectChoice(code.value, word) for code, word in OUTCOMES.items()],
    )
    read_back = StringField(
        lazy_gettext("What they repeated"),
        [Length(max=120)],
        id="call_read_back",
        description=lazy_gettext("Needed where they confirmed it."),
        render_kw={"autocomplete": "off"},
    )
    note = TextAreaField(lazy_gettext("Note"), [Length(max=500)], render_kw={"rows": 2})


class Days(Form):
    """The days of a report."""

    since = DateField(lazy_gettext("From"), [InputRequired(lazy_gettext("Please choose a day."))])
    until = DateField(lazy_gettext("To"), [InputRequired(lazy_gettext("Please choose a day."))])


def minutes(since: datetime, until: datetime | None = None) -> int:
    """Full minutes, none below zero."""
    return max(int(((until or now()) - since).total_seconds() // 60), 0)


def was_corrected(found: CriticalResult) -> bool:
    """Whether the result is corrected, verified again, and no longer what was told."""
    result = found.observation
    return bool(
        result and result.status == "corrected" and result.verified_at is not None and lab.told(result) != found.value
    )


def line_of(found: CriticalResult) -> dict[str, Any]:
    """A critical result in a list."""
    waited = minutes(found.raised_at, found.acknowledged_at)
    return {
        "id": found.id,
        "href": url_for("Critical.show", critical_id=found.id),
        "patient": who(found.patient),
        "name": found.observation.code_display if found.observation else gettext("A result that is being put right"),
        "value": found.value,
        "flag": found.flag,
        "flag_word": str(FLAGS.get(found.flag, found.flag)),
        "raised": words(found.raised_at),
        "waited": waited,
        "late": waited >= critical.PATIENCE.total_seconds() / 60,
        "target": "",
        "stands": value_of(found.observation) if was_corrected(found) and found.observation else "",
        "escalated": words(found.escalated_at) if found.escalated_at else "",
        "branch": str(all_branches().get(found.branch_id or 0, "")),
    }


def listens() -> bool:
    """Whether critical results may come up for whoever is signed in, so that their pages listen for them."""
    at_work = acting()
    actor = at_work.actor if at_work else None
    return actor is not None and not actor.viewing_as and critical.acts_on_them(actor)


def waiting() -> list[dict[str, Any]]:
    """What the person at work has to confirm, for the banner; nothing where it cannot be asked for."""
    if not listens() or g.get("waits", {}).get("critical") == 0:  # the navigation has asked already
        return []
    try:
        return [line_of(found) for found in critical.mine(guard.session())]
    except (Refusal, SQLAlchemyError):
        return []


def course(times: critical.Times) -> dict[str, Any] | None:
    """The minutes each took, as a drawing; none for fewer than two."""
    points = [{"t": raised.timestamp() * 1000, "v": took} for raised, took in times.points]
    patience = critical.PATIENCE.total_seconds() / 60
    return {**plot([points], (0, patience)), "times": len(points)} if len(points) > 1 else None


class Critical(Page):
    """Critical results."""

    route_base = "/critical"
    default_view = "list"

    @expose("/")
    @open_to("read", "CriticalResult")
    def list(self) -> str:
        """What nobody has confirmed yet, the oldest first."""
        asked = request.args.get("branch", "")
        branch_id = None if asked in ("", "all") else number_of(asked)
        found = critical.open_results(guard.session(), branch_id=branch_id)
        return self.render(
            "lab/critical.html",
            page_title=gettext("Critical results"),
            lines=[{**line_of(each), "target": each.target.name if each.target else ""} for each in found],
            places=[(str(facts.id), facts.name) for facts in all_branches().values()],
            place=asked,
            patience=int(critical.PATIENCE.total_seconds() // 60),
        )

    @expose("/banner.html")
    @open_to("update", "CriticalResult")
    def banner(self) -> str:
        """The banner alone, for a page that is open already; asking for it is nobody's work."""
        g.by_itself = True
        return self.render("lab/_critical.html", found=waiting())

    @expose("/<int:critical_id>/")
    @open_to("read", "CriticalResult")
    def show(self, critical_id: int) -> str:
        """One of them: the value, who has to be told, and every try."""
        return self._page(critical_id)

    def _page(
        self, critical_id: int, *, read_back: ReadBack | None = None, call: Call | None = None, refusal: str = ""
    ) -> str:
        session = guard.session()
        found = critical.show(session, critical_id)
        call = call or Call()
        call.recipient.choices = self._whom(found)
        result = found.observation  # none while it is being put right: until then it is the laboratory's alone
        return self.render(
            "lab/critical_one.html",
            page_title=gettext("Critical result"),
            one={**line_of(found), "target": found.target.name if found.target else ""},
            confirmed_by=found.acknowledged_by.name if found.acknowledged_by else "",
            confirmed=words(found.acknowledged_at) if found.acknowledged_at else "",
            withdrawn=bool(result and result.status == "entered-in-error"),
            order_href=url_for("Laboratory.show", request_id=result.service_request_id)
            if result and result.service_request_id and current().may("read", "ServiceRequest")
            else None,
            chart_href=url_for("Chart.open", patient_id=found.patient_id),
            attempts=[
                {
                    "when": words(each.attempted_at),
                    "by": each.caller.name if each.caller else gettext("Wardbook"),
                    "to": each.recipient.name if each.recipient else each.recipient_name,
                    "outcome": str(OUTCOMES[AttemptOutcome(each.outcome)]),
                    "note": each.note,
                }
                for each in critical.attempts(session, critical_id)
            ],
            may_confirm=critical.acts_on_them(current()),
            may_call=current().may("create", "CriticalResult"),
            read_back=read_back or ReadBack(),
            call=call,
            refusal=refusal,
        )

    def _whom(self, found: CriticalResult) -> Any:
        people = [each for each in critical.whom(guard.session(), found) if each.id != current().practitioner_id]
        return [*(SelectChoice(str(each.id), each.name) for each in people), SelectChoice("", gettext("Somebody else"))]

    @expose("/<int:critical_id>/acknowledge", methods=["POST"])
    @open_to("update", "CriticalResult")
    def acknowledge(self, critical_id: int) -> Any:
        """Confirm it, repeating the value."""
        form = ReadBack(request.form)
        sentence, status = gettext("Please check the fields marked below."), 422
        if form.validate():
            try:
                with guard.unit_of_work() as session:
                    critical.acknowledge(session, critical_id, read_back=form.read_back.data or "")
                flash(gettext("Confirmed. The laboratory sees that you know."), "success")
                return redirect(url_for("Critical.show", critical_id=critical_id))
            except Refusal as refusal:
                if refusal.status in (403, 404):
                    raise
                sentence, status = explain(refusal, form), refusal.status
        return self._page(critical_id, read_back=form, refusal=sentence), status

    @expose("/<int:critical_id>/attempt", methods=["POST"])
    @open_to("create", "CriticalResult")
    def attempt(self, critical_id: int) -> Any:
        """Write a call down."""
        form = Call(request.form)
        form.recipient.choices = self._whom(critical.show(guard.session(), critical_id))
        sentence, status = gettext("Please check the fields marked below."), 422
        if form.validate():
            try:
                with guard.unit_of_work() as session:
                    critical.attempt(
                        session,
                        critical_id,
                        outcome=form.outcome.data or "",
                        recipient_id=number_of(form.recipient.data) or None,
                        recipient_name=form.recipient_name.data or "",
                        read_back=form.read_back.data or "",
                        note=form.note.data or "",
                    )
                flash(gettext("Written down."), "success")
                return redirect(url_for("Critical.show", critical_id=critical_id))
            except Refusal as refusal:
                if refusal.status in (403, 404):
                    raise
                sentence, status = explain(refusal, form), refusal.status
        return self._page(critical_id, call=form, refusal=sentence), status

    @expose("/times/")
    @open_to("read", "CriticalResult")
    def times(self) -> Any:
        """How long it took to confirm them, by branch."""
        zone = branch_zone()
        today = now().astimezone(zone).date()
        form = Days(request.args, since=today - timedelta(days=DAYS - 1), until=today)
        lines, refusal, status = [], None, 200
        try:
            if (request.args and not form.validate()) or form.since.data is None or form.until.data is None:
                refusal, status = gettext("Please check the fields marked below."), 422
            else:
                opens = datetime.combine(form.since.data, time(), tzinfo=zone)
                closes = datetime.combine(form.until.data + timedelta(days=1), time(), tzinfo=zone)
                lines = critical.times(guard.session(), opens, closes)
        except Refusal as refused:
            refusal, status = explain(refused, form), refused.status
        page = self.render(
            "lab/critical_times.html",
            page_title=gettext("How long critical results take"),
            form=form,
            refusal=refusal,
            patience=int(critical.PATIENCE.total_seconds() // 60),
            lines=[
                {
                    "plot": course(each),
                    "branch": str(all_branches().get(each.branch_id or 0, gettext("No branch"))),
                    "raised": each.raised,
                    "confirmed": each.confirmed,
                    "in_time": each.in_time,
                    "escalated": each.escalated,
                    "median": each.median,
                    "ninth": each.ninth,
                }
                for each in lines
            ],
        )
        return page, status


def register(builder: Any) -> None:
    """The pages, and the banner."""
    builder.add_view_no_menu(Critical)
    current_app.jinja_env.globals.update(critical_here=waiting, critical_listens=listens)
