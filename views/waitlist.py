"""The waiting list: who waits for what, the times that are on offer, and the answers of those who call."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext
from wtforms import DateField, Form, HiddenField, SelectField, StringField
from wtforms.fields.choices import SelectChoice
from wtforms.validators import InputRequired, Length, Optional

from app import guard
from app.actor import current
from app.errors import NotFound, Refusal, SlotTaken
from app.services import clinical, scheduling, waitlist
from models.base import now
from models.codes import WaitlistStatus
from models.scheduling import SlotOffer, SlotOfferInvitation, WaitlistEntry
from views.base import Page, explain, open_to, words
from views.branches import BranchFacts, zone_of
from views.desk import choose_patient, here, number_of, offered_doctors, offered_kinds
from views.people import in_short, name_of, phones
from views.speech import spoken_day

PRIORITIES = {
    "1": lazy_gettext("1, as soon as can be"),
    "3": lazy_gettext("3, soon"),
    "5": lazy_gettext("5, as usual"),
    "7": lazy_gettext("7, no hurry"),
    "9": lazy_gettext("9, when nobody else wants it"),
}
ANSWERS = {
    "accepted": lazy_gettext("took it"),
    "declined": lazy_gettext("does not want it"),
    "late": lazy_gettext("too late"),
}


class WaitForm(Form):
    """Who would come sooner, for what, to whom, and on which days."""

    patient = HiddenField(lazy_gettext("Patient"), [InputRequired(lazy_gettext("Please choose the patient."))])
    visit_type = SelectField(
        lazy_gettext("What for"),
        [InputRequired(lazy_gettext("Please choose a kind of visit."))],
        choices=offered_kinds,
    )
    practitioner = SelectField(
        lazy_gettext("With whom"), choices=lambda: offered_doctors(gettext("Any doctor who does it"))
    )
    earliest_on = DateField(lazy_gettext("Not before"), [Optional()], description=lazy_gettext("Empty: from today on."))
    latest_on = DateField(lazy_gettext("Not after"), [Optional()], description=lazy_gettext("Empty: any day."))
    priority = SelectField(
        lazy_gettext("How urgent"),
        choices=[SelectChoice(code, word) for code, word in PRIORITIES.items()],
        default="5",
        description=lazy_gettext("Lower numbers are asked first; among the same, whoever waits longest."),
    )
    note = StringField(
        lazy_gettext("Note"), [Length(max=300)], description=lazy_gettext("Such as when to call. Nothing clinical.")
    )


class Waiting(Page):
    """The list, what is on offer, and everything done with them."""

    route_base = "/waitlist"
    default_view = "list"

    @expose("/")
    @open_to("update", "WaitlistEntry")
    def list(self) -> str:
        """Who waits at this branch, by rank, and the times held for some of them."""
        return self._page()

    def _page(self, refusal: str | None = None) -> str:
        branch, session = here(), guard.session()
        at = [branch.id] if branch else []
        entries = waitlist.waiting(session, branch_ids=at)
        passed = waitlist.let_pass(session, entries) if entries and current().may("read", "SlotOffer") else {}
        return self.render(
            "desk/waiting.html",
            page_title=gettext("Waiting list"),
            branch_facts=branch,
            offers=[offer_card(offer) for offer in waitlist.open_offers(session, branch_ids=at)],
            rows=[
                {**entry_card(rank, entry), "passed": passed_card(passed.get(entry.id))}
                for rank, entry in enumerate(entries, 1)
            ],
            refusal=refusal,
            may_add=current().may("create", "WaitlistEntry"),
            may_answer=current().may("update", "SlotOffer") and current().may("create", "Appointment"),
        )

    @expose("/new/", methods=["GET", "POST"])
    @open_to("create", "WaitlistEntry")
    def add(self) -> Any:
        """First who it is, then what they wait for."""
        branch = here()
        if branch is None:
            return self.render("desk/nowhere.html", page_title=gettext("Waiting list"))
        if request.method == "POST":
            return self._join(WaitForm(request.form), branch)
        if number_of(request.args.get("patient")):
            return self._form(WaitForm(request.args), branch)
        return choose_patient(
            self,
            title=gettext("Put on the waiting list"),
            back=(url_for("Waiting.list"), gettext("Waiting list")),
            onwards=lambda patient_id: url_for("Waiting.add", patient=patient_id),
        )

    def _join(self, form: WaitForm, branch: BranchFacts) -> Any:
        if not form.validate():
            return self._form(form, branch, gettext("Please check the fields marked below.")), 422
        try:
            with guard.unit_of_work() as session:
                waitlist.join(
                    session,
                    patient_id=number_of(form.patient.data),
                    visit_type_id=number_of(form.visit_type.data),
                    branch_id=branch.id,
                    practitioner_id=number_of(form.practitioner.data) or None,
                    priority=number_of(form.priority.data),
                    earliest_on=form.earliest_on.data,
                    latest_on=form.latest_on.data,
                    note=form.note.data or "",
                )
        except Refusal as refusal:
            guard.session.rollback()
            return self._form(form, branch, explain(refusal, form)), refusal.status
        flash(gettext("On the waiting list. A time that is freed is offered by itself."), "success")
        return redirect(url_for("Waiting.list"))

    def _form(self, form: WaitForm, branch: BranchFacts, refusal: str | None = None) -> str:
        patient = clinical.open_chart(guard.session(), number_of(form.patient.data))
        return self.render(
            "desk/wait.html",
            page_title=gettext("Put on the waiting list"),
            form=form,
            refusal=refusal,
            patient=in_short(patient),
            branch_facts=branch,
        )

    @expose("/<int:entry_id>/withdraw", methods=["POST"])
    @open_to("update", "WaitlistEntry")
    def withdraw(self, entry_id: int) -> Any:
        """Take somebody off the list."""
        with guard.unit_of_work() as session:
            waitlist.withdraw(session, entry_id)
        flash(gettext("Taken off the waiting list."), "success")
        return redirect(url_for("Waiting.list"))

    @expose("/offer/<int:invitation_id>/<word>", methods=["POST"])
    @open_to("update", "WaitlistEntry")
    def answer(self, invitation_id: int, word: str) -> Any:
        """What a patient who calls says to an offered time."""
        if word not in ("accept", "after-all", "decline"):
            raise NotFound
        booked = None
        try:
            with guard.unit_of_work() as session:
                if word == "decline":
                    waitlist.decline(session, invitation_id)
                else:
                    booked = waitlist.accept(session, invitation_id, after_all=word == "after-all").id
        except SlotTaken:
            guard.session.rollback()
            gone = gettext("Somebody else has this time, or it is held for others now. Find them another one.")
            return self._page(gone), SlotTaken.status
        except Refusal as refusal:
            if refusal.status in (403, 404):
                raise
            guard.session.rollback()
            return self._page(str(refusal)), refusal.status
        told = gettext("Noted. When everybody asked has declined, the next ones are asked.")
        if booked is not None:
            visit = scheduling.show(guard.session(), booked)
            name = name_of(visit.patient) if visit.patient else ""
            told = gettext("Booked: %(name)s, %(when)s.", name=name, when=moment(visit.start_at, visit.branch_id))
        flash(told, "success")
        return redirect(url_for("Waiting.list"))


def moment(when: datetime, branch_id: int) -> str:
    """A day and time by the clock of a branch."""
    told = when.astimezone(zone_of(branch_id))
    return f"{spoken_day(told.date())}, {told:%H:%M}"


def days(first: date, last: date | None, today: date) -> str:
    """From when until when somebody would come."""
    if last is None:
        return str(gettext("any day") if first <= today else gettext("from %(day)s", day=spoken_day(first)))
    if first <= today:
        return str(gettext("until %(day)s", day=spoken_day(last)))
    return str(gettext("%(first)s to %(last)s", first=spoken_day(first), last=spoken_day(last)))


def entry_card(rank: int, entry: WaitlistEntry) -> dict[str, Any]:
    """Somebody who waits, as a line of the list."""
    hidden = current().rights.hidden("WaitlistEntry")
    where = zone_of(entry.branch_id)
    numbers = phones(entry.patient) if entry.patient else []
    return {
        "id": entry.id,
        "rank": rank,
        "name": name_of(entry.patient) if entry.patient else gettext("Name not shown"),
        "href": url_for("Chart.open", patient_id=entry.patient_id),
        "phone": numbers[0] if numbers else "",
        "kind": entry.visit_type.name,
        "doctor": entry.practitioner.name if entry.practitioner else gettext("any doctor"),
        "days": days(entry.earliest_on, entry.latest_on, now().astimezone(where).date()),
        "over": entry.latest_on is not None and entry.latest_on < now().astimezone(where).date(),
        "priority": entry.priority,
        "urgent": entry.priority <= 2,
        "note": "" if "note" in hidden else entry.note,
        "since": words(entry.created_at.astimezone(where).date()),
    }


def offer_card(offer: SlotOffer) -> dict[str, Any]:
    """A time on offer, and who was asked."""
    return {
        "id": offer.id,
        "when": moment(offer.start_at, offer.branch_id),
        "kind": offer.visit_type.name,
        "doctor": offer.practitioner.name,
        "left": max(int((offer.until_at - now()).total_seconds() // 60), 0),
        "until": f"{offer.until_at.astimezone(zone_of(offer.branch_id)):%H:%M}",
        "asked": [invitation_card(each) for each in waitlist.invitations(guard.session(), offer.id)],
    }


def invitation_card(invitation: SlotOfferInvitation) -> dict[str, Any]:
    """Somebody who was asked."""
    numbers = phones(invitation.patient) if invitation.patient else []
    return {
        "id": invitation.id,
        "name": name_of(invitation.patient) if invitation.patient else gettext("Name not shown"),
        "href": url_for("Chart.open", patient_id=invitation.patient_id),
        "phone": numbers[0] if numbers else "",
        "answer": str(ANSWERS[invitation.answer]) if invitation.answer else "",
        "open": invitation.answer is None and invitation.entry.status == WaitlistStatus.WAITING,
        "declined": invitation.answer == "declined" and invitation.entry.status == WaitlistStatus.WAITING,
    }


def passed_card(invitation: SlotOfferInvitation | None) -> dict[str, Any] | None:
    """A time somebody who waits let pass, which they may have after all while it is free."""
    if invitation is None:
        return None
    offer = invitation.offer
    return {
        "id": invitation.id,
        "when": moment(offer.start_at, offer.branch_id),
        "doctor": offer.practitioner.name,
        "find_href": url_for(
            "Booking.ask",
            patient_id=invitation.patient_id,
            visit_type_id=offer.visit_type_id,
            practitioner_id=offer.practitioner_id,
            branch_id=offer.branch_id,
            start=offer.start_at.isoformat(),
        ),
    }


def register(builder: Any) -> None:
    """The waiting list."""
    builder.add_view_no_menu(Waiting)
