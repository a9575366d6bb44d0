"""Patients no message has reached, and what reception does about each of them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flask import flash, redirect, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext

from app import guard
from app.actor import current
from app.errors import Refusal
from app.services import scheduling, unreached
from app.services.unreached import Unreached
from models.codes import AppointmentStatus
from models.scheduling import Appointment, SlotOffer, SlotOfferInvitation
from views.base import Page, open_to
from views.branches import BranchFacts
from views.desk import here
from views.people import name_of, phones
from views.speech import spoken_day

TOLD: dict[str, Any] = {
    "booked": lazy_gettext("The news that it is booked could not be delivered."),
    "moved": lazy_gettext("The news that it was moved could not be delivered."),
    "reminder": lazy_gettext("The reminder could not be delivered."),
    "cancelled": lazy_gettext("The news that it was called off could not be delivered: they may come in vain."),
    "offer": lazy_gettext("The offer of this time could not be delivered."),
}
"""What a patient was not told, by the kind of the message."""


class NotReached(Page):
    """The list, and that somebody was told by telephone."""

    route_base = "/desk/not-reached"
    default_view = "list"

    @expose("/")
    @open_to("update", "Appointment")
    def list(self) -> str:
        """Everybody at this branch whom no message has reached."""
        return self._page()

    def _page(self, refusal: str | None = None) -> str:
        branch = here()
        if branch is None:
            return self.render("desk/nowhere.html", page_title=gettext("Not reached"))
        session = guard.session()
        return self.render(
            "desk/not_reached.html",
            page_title=gettext("Not reached"),
            branch_facts=branch,
            visits=[line_of(each, branch) for each in unreached.visits(session, branch.id)],
            offers=[line_of(each, branch) for each in unreached.offers(session, branch.id)],
            days=unreached.AHEAD.days,
            phones_hidden="telecom" in current().rights.hidden("Patient"),
            may_edit=current().may("update", "Patient")
            and "telecom" not in current().rights.hidden("Patient", "update"),
            refusal=refusal,
        )

    @expose("/<int:visit_id>/told", methods=["POST"])
    @open_to("update", "Appointment")
    def told(self, visit_id: int) -> Any:
        """The patient was told, and says that they will come."""
        try:
            with guard.unit_of_work() as session:
                scheduling.confirm(session, scheduling.held(session, visit_id))
        except Refusal as refusal:
            if refusal.status in (403, 404):
                raise
            guard.session.rollback()
            return self._page(str(refusal)), refusal.status
        flash(gettext("Noted: they will come."), "success")
        return redirect(url_for("NotReached.list"))


def line_of(found: Unreached, branch: BranchFacts) -> dict[str, Any]:
    """Somebody who was not reached: about what, why, and by which number they can be."""
    about, patient = found.about, found.about.patient
    what: Appointment | SlotOffer = about.offer if isinstance(about, SlotOfferInvitation) else about
    visit = about if isinstance(about, Appointment) else None
    return {
        "id": about.id,
        "name": name_of(patient) if patient else gettext("Name not shown"),
        "href": url_for("Chart.open", patient_id=about.patient_id),
        "edit_href": url_for("Correction.ask", patient_id=about.patient_id),
        "when": clock_words(what.start_at, branch),
        "what": f"{what.visit_type.name}, {what.practitioner.name}",
        "visit_href": url_for("Visits.show", appointment_id=visit.id) if visit else None,
        "to_come": visit is not None and visit.status != AppointmentStatus.CANCELLED,
        "called_off": visit is not None and visit.status == AppointmentStatus.CANCELLED,
        "phone": (phones(patient) or [""])[0] if patient else "",
        "why": str(TOLD[found.failed[0].kind]) if found.failed else gettext("No phone number and no e-mail address."),
    }


def clock_words(when: datetime, branch: BranchFacts) -> str:
    """A day and time by the branch's clock."""
    there = when.astimezone(branch.zone)
    return f"{spoken_day(there.date())}, {there:%H:%M}"


def register(builder: Any) -> None:
    """Those who were not reached."""
    builder.add_view_no_menu(NotReached)
