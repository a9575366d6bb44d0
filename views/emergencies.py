"""Emergency access: offered where a patient is refused, shown while it lasts, and reviewed afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import Any

from flask import current_app, flash, redirect, render_template, request, url_for
from flask_appbuilder import expose
from flask_appbuilder.security.sqla.models import User
from flask_babel import format_timedelta, gettext, lazy_gettext
from sqlalchemy import select
from werkzeug.wrappers import Response
from wtforms import Form, HiddenField, RadioField, TextAreaField
from wtforms.fields.choices import SelectChoice
from wtforms.validators import InputRequired

from app import guard, policy
from app.actor import acting, current
from app.errors import NotFound, Refusal
from app.services import clinical, emergencies
from models.access import EmergencyAccess
from models.base import now
from models.codes import EmergencyReason, Finding
from models.organization import Practitioner
from models.patients import Patient
from views.audit import SPOKEN
from views.base import CommandView, Page, branch_zone, open_to, signed_in, words
from views.branches import all_branches
from views.errors import refused
from views.people import name_of

REASONS = {
    EmergencyReason.ETREAT: lazy_gettext("Treatment cannot wait"),
    EmergencyReason.COC: lazy_gettext("I was called in, or take over the care"),
    EmergencyReason.PATRQT: lazy_gettext("The patient asked for it"),
    EmergencyReason.BTG: lazy_gettext("Another emergency, described below"),
}
FINDINGS = {Finding.JUSTIFIED: lazy_gettext("Justified"), Finding.UNJUSTIFIED: lazy_gettext("Not justified")}


# ---- asking for it -----------------------------------------------------------------------------------------------


class EmergencyForm(Form):
    """Why a clinician breaks the glass, and where they wanted to go."""

    reason = RadioField(
        lazy_gettext("Why"),
        [InputRequired(lazy_gettext("Please choose why."))],
        choices=[SelectChoice(code, word) for code, word in REASONS.items()],
    )
    justification = TextAreaField(
        lazy_gettext("What has happened"),
        [InputRequired(lazy_gettext("Please say why in 15 letters or more, so that it can be reviewed."))],
        description=lazy_gettext("15 letters or more. Whoever reviews this reads it."),
    )
    next = HiddenField()


class Emergency(CommandView):
    """Emergency access to one patient: asking for it, and ending it."""

    route_base = "/patients/<int:patient_id>/emergency"
    form_class = EmergencyForm
    template = "emergency/offer.html"
    policy = ("create", "EmergencyAccess")

    @expose("/", methods=["GET", "POST"])
    def ask(self, patient_id: int) -> Any:
        """The offer, to those it would help. Raises NotFound for everybody else, whoever the patient is."""
        signed_in()
        if not emergencies.may_break():
            guard.refuse(*self.policy)
            raise NotFound
        if request.method != "POST":
            if not emergencies.closed(patient_id):
                clinical.open_chart(guard.session(), patient_id)
                return redirect(url_for("Chart.open", patient_id=patient_id))
            emergencies.refused(patient_id)
        return super().ask(patient_id=patient_id)

    def carry_out(self, session: Any, form: Form, **route: Any) -> EmergencyAccess:
        return emergencies.break_glass(
            session,
            patient_id=route["patient_id"],
            reason=form["reason"].data or "",
            justification=form["justification"].data or "",
        )

    def after(self, result: EmergencyAccess, **_route: Any) -> str:
        onwards = request.form.get("next", "")
        if onwards.startswith(f"/patients/{result.patient_id}/"):
            return onwards
        return url_for("Chart.open", patient_id=result.patient_id)

    def prefill(self, **_route: Any) -> Form:
        return EmergencyForm()

    def _page(self, form: Form, sentence: str | None, refusal: Refusal | None = None, **route: Any) -> str:
        if isinstance(refusal, NotFound):
            raise refusal
        return offer(form, route["patient_id"], sentence)

    @expose("/end", methods=["POST"])
    @open_to("create", "EmergencyAccess")
    def end(self, patient_id: int) -> Response:
        """End it before its time."""
        if emergencies.end(patient_id):
            flash(gettext("Emergency access has ended."), "success")
        else:
            flash(gettext("Emergency access to this patient had ended already."), "info")
        return redirect(url_for("Home.index"))


def offer(form: Form, patient_id: int, sentence: str | None = None) -> str:
    """The page that offers emergency access; it says nothing of the patient."""
    return render_template(
        "emergency/offer.html",
        page_title=gettext("Emergency access"),
        form=form,
        refusal=sentence,
        action=url_for("Emergency.ask", patient_id=patient_id),
    )


def not_found(error: NotFound) -> Any:
    """What is not there; but where emergency access would open the patient's record, that is offered instead."""
    patient_id = (request.view_args or {}).get("patient_id")
    programs = request.path.startswith("/api/") or request.path.endswith(".json")
    if not isinstance(patient_id, int) or programs or acting() is None or not emergencies.may_break():
        return refused(error)
    guard.session.rollback()
    if not emergencies.closed(patient_id):
        return refused(error)
    refusal = emergencies.refused(patient_id)
    wanted = request.full_path.rstrip("?") if request.method == "GET" else ""
    return offer(EmergencyForm(next=wanted), patient_id), refusal.status


def offered(patient_id: int) -> str | None:
    """Where emergency access to a patient is offered, where it would help."""
    if not emergencies.may_break() or not emergencies.closed(patient_id):
        return None
    emergencies.refused(patient_id)
    return url_for("Emergency.ask", patient_id=patient_id)


# ---- while it lasts, and afterwards ------------------------------------------------------------------------------


def here() -> dict[str, Any] | None:
    """The emergency access under which a page of a patient is shown, for the banner; None where there is none."""
    patient_id = (request.view_args or {}).get("patient_id")
    at_work = acting()
    if at_work is None or patient_id not in at_work.actor.emergencies:
        return None
    access = emergencies.running(guard.session(), patient_id)
    if access is None:
        return None
    return {
        "until": f"{access.ends_at.astimezone(branch_zone()):%H:%M}",
        "reason": REASONS[EmergencyReason(access.reason)],
        "justification": access.justification,
        "end_href": url_for("Emergency.end", patient_id=patient_id),
    }


def of_patient(patient_id: int) -> list[dict[str, Any]]:
    """The last emergency accesses to a patient in words, for the chart."""
    return [
        {
            "who": called(access.user),
            "when": words(access.started_at),
            "state": gettext("Reviewed") if access.reviewed_at else gettext("Awaiting review"),
            "tone": "ok" if access.reviewed_at else "warn",
        }
        for access in emergencies.of_patient(guard.session(), patient_id)
    ]


def called(user: User | None) -> str:
    """A colleague's name."""
    return f"{user.first_name} {user.last_name}" if user else str(gettext("Somebody who has no account any more"))


# ---- reviewing ---------------------------------------------------------------------------------------------------


class ReviewForm(Form):
    """What a review came to."""

    finding = RadioField(
        lazy_gettext("Finding"),
        [InputRequired(lazy_gettext("Please say whether it was justified."))],
        choices=[SelectChoice(code, word) for code, word in FINDINGS.items()],
    )
    note = TextAreaField(lazy_gettext("Note"))


class Emergencies(Page):
    """Emergency accesses: those that wait for a review, and those that were reviewed."""

    route_base = "/emergencies"
    default_view = "list"

    @expose("/")
    @open_to("read", "EmergencyAccess")
    def list(self) -> str:
        """Both lists."""
        return self._page()

    @expose("/<int:access_id>/review", methods=["POST"])
    @open_to("update", "EmergencyAccess")
    def review(self, access_id: int) -> Any:
        """Save a review; a refused one keeps what was typed."""
        form = ReviewForm(request.form)
        if not form.validate():
            return self._page((access_id, form)), 422
        try:
            with guard.unit_of_work() as session:
                emergencies.review(session, access_id, finding=form.finding.data, note=form.note.data or "")
        except NotFound:
            raise
        except Refusal as refusal:
            if refusal.field and refusal.field in form:
                form[refusal.field].errors = [str(refusal)]
                return self._page((access_id, form)), refusal.status
            return self._page((access_id, form), str(refusal)), refusal.status
        flash(gettext("The review is saved."), "success")
        return redirect(url_for("Emergencies.list"))

    def _page(self, tried: tuple[int, Form] | None = None, sentence: str | None = None) -> str:
        session, asked = guard.session(), question()
        waiting = emergencies.awaiting(session)
        done, more = emergencies.reviewed(session, asked)
        accesses = [*waiting, *done]
        known = Known(
            emergencies.patients_of(session, accesses), emergencies.looked_at(session, accesses), staff(accesses)
        )
        args: dict[str, Any] = {name: value for name, value in request.args.items() if value}
        return self.render(
            "emergency/review.html",
            page_title=gettext("Emergency access"),
            waiting=[known.told(access) for access in waiting],
            done=[known.told(access) for access in done],
            reviews=current().may("update", "EmergencyAccess"),
            tried=tried[0] if tried else None,
            form=tried[1] if tried else ReviewForm(),
            refusal=sentence,
            findings=[(str(code), word) for code, word in FINDINGS.items()],
            asked=asked,
            args=args,
            newer_href=url_for("Emergencies.list", **{**args, "page": asked.page - 1}) if asked.page else None,
            older_href=url_for("Emergencies.list", **{**args, "page": asked.page + 1}) if more else None,
        )


def question() -> emergencies.Reviewed:
    """Which of the reviewed ones are asked for; nonsense counts as not asked."""
    zone = branch_zone()

    def day(name: str) -> datetime | None:
        try:
            asked = datetime.fromisoformat(request.args.get(name, "")).date()
        except ValueError:
            return None
        return datetime.combine(asked, time(), zone) if 1900 <= asked.year <= 2200 else None

    until, page = day("to"), request.args.get("page", "")
    finding = request.args.get("finding", "")
    return emergencies.Reviewed(
        finding=finding if finding in set(Finding) else "",
        since=day("from"),
        until=until + timedelta(days=1) if until else None,
        page=int(page) if page.isascii() and page.isdecimal() and len(page) < 5 else 0,
    )


def staff(accesses: Sequence[EmergencyAccess]) -> dict[int, Practitioner]:
    """Those who broke the glass, as staff, by the number of their account."""
    users = {access.user_id for access in accesses}
    if not users or not current().may("read", "Practitioner"):
        return {}
    found = guard.session().scalars(select(Practitioner).where(Practitioner.user_id.in_(users)))
    return {person.user_id: person for person in found if person.user_id is not None}


class Known:
    """What has been found out about some emergency accesses, to tell of each."""

    def __init__(
        self,
        patients: dict[int, Patient],
        looked: dict[int, emergencies.Looked],
        people: dict[int, Practitioner],
    ) -> None:
        self.patients, self.looked, self.people = patients, looked, people
        self.branches = all_branches() if current().may("read", "Branch") else {}

    def told(self, access: EmergencyAccess) -> dict[str, Any]:
        """One emergency access in words."""
        patient = self.patients.get(access.patient_id)
        person = self.people.get(access.user_id)
        branch = self.branches.get(person.home_branch_id or 0) if person else None
        looked = self.looked.get(access.id)
        zone, moment = branch_zone(), now()
        return {
            "id": access.id,
            "who": called(access.user),
            "roles": ", ".join(gettext(policy.SPOKEN.get(role.name, role.name)) for role in access.user.roles),
            "branch": branch.name if branch else "",
            "patient": name_of(patient) if patient else gettext("A patient who is not among yours"),
            "mrn": patient.mrn if patient else "",
            "trail_href": trail_href(access, patient) if patient and current().may("read", "AuditEvent") else None,
            "from": words(access.started_at),
            "until": f"{access.ends_at.astimezone(zone):%H:%M}",
            "runs": access.ends_at > moment,
            "waits": format_timedelta(moment - access.started_at, granularity="minute", threshold=1),
            "overdue": access.reviewed_at is None and moment - access.started_at > emergencies.OVERDUE,
            "reason": REASONS[EmergencyReason(access.reason)],
            "justification": access.justification,
            "seen": told_of(looked.seen) if looked else "",
            "changed": told_of(looked.changed) if looked else "",
            "known": looked is not None,
            "own": access.user_id == current().user_id,
            "justified": access.finding == Finding.JUSTIFIED,
            "finding": FINDINGS[Finding(access.finding)] if access.finding else "",
            "note": access.review_note,
            "reviewed_by": called(access.reviewed_by) if access.reviewed_at else "",
            "reviewed": words(access.reviewed_at) if access.reviewed_at else "",
        }


def trail_href(access: EmergencyAccess, patient: Patient) -> str:
    """The lines of the trail about a patient, of the days of an emergency access to them."""
    zone = branch_zone()
    days: dict[str, Any] = {
        "from": f"{access.started_at.astimezone(zone):%Y-%m-%d}",
        "to": f"{access.ends_at.astimezone(zone):%Y-%m-%d}",
    }
    return url_for("TrailView.list", patient=patient.mrn, **days)


def told_of(found: dict[str, set[Any]]) -> str:
    """Kinds of record and how many of each, such as "registration, visits (3)"."""
    parts = []
    for resource in emergencies.RECORD:
        if ids := found.get(resource):
            word = str(SPOKEN.get(resource, resource))
            parts.append(f"{word} ({len(ids)})" if len(ids) > 1 else word)
    return ", ".join(parts)


def register(builder: Any) -> None:
    """The offer, the banner and the reviews."""
    builder.add_view_no_menu(Emergency)
    builder.add_view_no_menu(Emergencies)
    current_app.register_error_handler(NotFound, not_found)
    current_app.jinja_env.globals["emergency_here"] = here
