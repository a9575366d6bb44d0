"""The pharmacy: a paper is scanned, checked once more and handed out; and the keys papers are signed with."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext

from app import guard
from app.errors import Invalid, NotFound, Refusal
from app.services import clinical, dispensing, dosage, drug_safety, prescriptions, signing
from app.services.drug_safety import Issue
from app.services.prescriptions import Override
from models.codes import MedicationDispenseStatus
from models.prescriptions import MedicationDispense, MedicationRequest, Prescription
from views.base import Page, open_to, words
from views.desk import choose_patient
from views.people import in_short
from views.prescribing import MITIGATIONS, STATES, allergies_words, issue_words, order_text, quantity_words
from views.speech import spoken_day

S = MedicationDispenseStatus
FILLS = {
    S.PREPARATION: lazy_gettext("Being prepared"),
    S.IN_PROGRESS: lazy_gettext("Ready to be fetched"),
    S.COMPLETED: lazy_gettext("Handed over"),
    S.CANCELLED: lazy_gettext("Back on the shelf"),
    S.STOPPED: lazy_gettext("Not handed over, lost"),
    S.DECLINED: lazy_gettext("Not handed out"),
    S.ENTERED_IN_ERROR: lazy_gettext("Entered in error"),
}
TONES = {S.COMPLETED: "tag-ok", S.PREPARATION: "tag-warn", S.IN_PROGRESS: "tag-warn", S.ENTERED_IN_ERROR: "tag-danger"}
VERBS = {
    "ready": (dispensing.ready, False, lazy_gettext("It waits to be fetched.")),
    "hand-over": (dispensing.hand_over, False, lazy_gettext("Handed over.")),
    "call-off": (dispensing.call_off, True, lazy_gettext("It is back on the shelf, and may be handed out again.")),
    "stop": (dispensing.stop, True, lazy_gettext("Written down as lost; it counts as handed out.")),
    "give-back": (dispensing.give_back, True, lazy_gettext("Entered in error: it counts as never handed out.")),
}
"""What is done with a fill: the service, whether it takes a reason, and what is said then."""


class Pharmacy(Page):
    """Finding a paper and handing out what is on it."""

    route_base = "/pharmacy"
    default_view = "find"

    @expose("/", methods=["GET", "POST"])
    @open_to("create", "MedicationDispense")
    def find(self) -> Any:
        """Where the square is scanned or the code typed."""
        if request.method != "POST":
            return self._find()
        said = request.form.get("code", "")
        try:
            paper = dispensing.by_paper(guard.session(), said)
        except NotFound:
            sentence = gettext("This prescription is not genuine, or not from this hospital. Hand nothing out.")
            return self._find(said, sentence), 404
        except Invalid as refusal:
            return self._find(said, gettext(str(refusal))), refusal.status
        return redirect(url_for("Pharmacy.show", prescription_id=paper.id))

    def _find(self, typed: str = "", refusal: str | None = None) -> str:
        return self.render(
            "pharmacy/find.html", page_title=gettext("Pharmacy"), typed=typed[: signing.FARTHEST], refusal=refusal
        )

    @expose("/patients/")
    @open_to("create", "MedicationDispense")
    def choose(self) -> Any:
        """Whose prescriptions?"""
        return choose_patient(
            self,
            title=gettext("Prescriptions of a patient"),
            back=(url_for("Pharmacy.find"), gettext("Pharmacy")),
            onwards=lambda patient_id: url_for("Pharmacy.papers", patient_id=patient_id),
        )

    @expose("/patients/<int:patient_id>/")
    @open_to("create", "MedicationDispense")
    def papers(self, patient_id: int) -> str:
        """The papers of a patient that something is left on."""
        session = guard.session()
        patient = clinical.open_chart(session, patient_id)
        return self.render(
            "pharmacy/papers.html",
            page_title=gettext("Prescriptions"),
            patient=in_short(patient),
            papers=[
                {
                    "href": url_for("Pharmacy.show", prescription_id=paper.id),
                    "code": signing.spelled(paper.short_code or ""),
                    "issued": words(paper.issued_at),
                    "who": str(paper.practitioner),
                    "where": str(paper.branch),
                }
                for paper in dispensing.papers_of(session, patient_id)
            ],
        )

    @expose("/<int:prescription_id>/", methods=["GET", "POST"])
    @open_to("create", "MedicationDispense")
    def show(self, prescription_id: int) -> Any:
        """The paper with what is left of each line, and the forms that hand it out."""
        if request.method != "POST":
            return self._page(prescription_id)
        order = _number(request.form.get("order", ""))
        try:
            said = self._hand_out(prescription_id, order)
        except Refusal as refusal:
            if refusal.status in (403, 404):
                raise
            guard.session.rollback()
            return self._page(prescription_id, refusal, order), refusal.status
        flash(said, "success")
        return redirect(url_for("Pharmacy.show", prescription_id=prescription_id))

    def _hand_out(self, prescription_id: int, order: int) -> str:
        form, do = request.form, request.form.get("do", "")
        with guard.unit_of_work() as session:
            paper = signing.paper_of(session, prescription_id)
            if order not in [each.id for each in paper.requests]:
                raise NotFound
            if do == "decline":
                dispensing.decline(session, order, reason=form.get("reason", ""))
                return str(gettext("Written down that nothing was handed out."))
            overrides = [
                Override(name.removeprefix("why-"), form[name], form.get(f"because-{name.removeprefix('why-')}", ""))
                for name in form
                if name.startswith("why-")
            ]
            dispensing.dispense(
                session,
                order,
                quantity=dosage.number(form.get("quantity"), field="quantity", what="how much is handed out"),
                already=_already(form.get("already", "")),
                medication_id=_number(form.get("medication", "")) or None,
                handed_over=do != "put-by",
                overrides=overrides,
            )
        return str(gettext("Put by, to be prepared.") if do == "put-by" else gettext("Handed over."))

    @expose("/fills/<int:dispense_id>/<verb>", methods=["POST"])
    @open_to("update", "MedicationDispense")
    def advance(self, dispense_id: int, verb: str) -> Any:
        """What was put by is made ready, handed over, called off; what was an error is given back."""
        if verb not in VERBS:
            raise NotFound
        service, asks, said = VERBS[verb]
        prescription_id = self._paper_of(dispense_id)
        try:
            with guard.unit_of_work() as session:
                if asks:
                    service(session, dispense_id, reason=request.form.get("reason", ""))  # type: ignore[operator]
                else:
                    service(session, dispense_id)  # type: ignore[operator]
        except Refusal as refusal:
            if refusal.status in (403, 404):
                raise
            guard.session.rollback()
            return self._page(prescription_id, refusal), refusal.status
        flash(str(said), "success")
        return redirect(url_for("Pharmacy.show", prescription_id=prescription_id))

    def _paper_of(self, dispense_id: int) -> int:
        fill = guard.session().get(MedicationDispense, dispense_id)
        order = prescriptions.order(guard.session(), fill.medication_request_id) if fill else None
        if order is None or order.prescription_id is None:
            raise NotFound
        return order.prescription_id

    def _page(self, prescription_id: int, refusal: Refusal | None = None, at: int = 0) -> str:
        session = guard.session()
        paper = signing.paper_of(session, prescription_id)
        known = drug_safety.background(session, paper.patient_id)
        today = signing.today_at(paper.branch)
        standing = signing.standing(paper.requests, today) if signing.genuine(paper) else signing.Standing.NOT_GENUINE
        return self.render(
            "pharmacy/show.html",
            page_title=gettext("Hand out"),
            paper=paper,
            code=signing.spelled(paper.short_code or ""),
            issued=words(paper.issued_at),
            patient={**in_short(known.patient), "deceased": known.patient.deceased},
            allergies=allergies_words(known),
            standing=standing,
            refusal=gettext(str(refusal)) if refusal else None,
            refused_order=at,
            wrong=refusal.field if refusal else None,
            orders=[self._order(session, paper, order, at) for order in paper.requests],
            fills=[_fill(fill) for fill in dispensing.fills_of(session, paper)],
            mitigations=MITIGATIONS,
        )

    def _order(self, session: Any, paper: Prescription, order: MedicationRequest, at: int) -> dict[str, Any]:
        """A line of the paper, with its form where something can be handed out."""
        closed = closed_because(paper, order)
        typed = request.form if at == order.id else {}
        given = {
            name.removeprefix("why-"): Override(
                name, typed[name], typed.get(f"because-{name.removeprefix('why-')}", "")
            )
            for name in typed
            if name.startswith("why-")
        }
        issues = [] if closed else dispensing.against(session, order)
        left = dispensing.of_this_fill(order)
        return {
            "id": order.id,
            "display": order.code_display,
            "text": order_text(order),
            "state": STATES[order.status],
            "closed": closed,
            "fill": quantity_words(order.quantity, order.quantity_unit),
            "repeats": order.repeats,
            "left": quantity_words(prescriptions.remaining(order), order.quantity_unit),
            "this_fill": quantity_words(left, order.quantity_unit),
            "quantity": typed.get("quantity") or drug_safety.plain(left),
            "unit": order.quantity_unit.strip("{}[]"),
            "already": drug_safety.plain(order.dispensed),
            "until": spoken_day(order.valid_until) if order.valid_until else "",
            "same": not order.substitution_allowed,
            "others": [] if closed else dispensing.same_again(session, order),
            "chosen": _number(typed.get("medication", "")),
            "reason": typed.get("reason", ""),
            "issues": [issue_words(issue, given) for issue in _told_once(issues)],
        }


def closed_because(paper: Prescription, order: MedicationRequest) -> str:
    """Why nothing is handed out on a line now; empty where it is."""
    try:
        dispensing.dispensable(order, paper)
    except Refusal as refusal:
        return str(gettext(str(refusal)))
    return ""


def _told_once(issues: list[Issue]) -> list[Issue]:
    """Warnings without those that say the same once more; what has to be answered stays."""
    kept: dict[tuple[str, str], Issue] = {}
    for issue in issues:
        kept.setdefault((issue.key if issue.blocks else "", issue.detail), issue)
    return list(kept.values())


def _fill(fill: MedicationDispense) -> dict[str, Any]:
    status = S(fill.status)
    return {
        "id": fill.id,
        "what": fill.medication.display,
        "quantity": quantity_words(fill.quantity, fill.quantity_unit),
        "when": words(fill.handed_over_at or fill.prepared_at or fill.created_at),
        "by": ", ".join(str(part) for part in (fill.performer, fill.branch) if part),
        "status": FILLS.get(status, status),
        "tone": TONES.get(status, ""),
        "why": fill.status_reason,
        "ready": status == S.PREPARATION,
        "hand_over": status in (S.PREPARATION, S.IN_PROGRESS),
        "call_off": status in (S.PREPARATION, S.IN_PROGRESS),
        "stop": status == S.IN_PROGRESS,
        "give_back": status == S.COMPLETED,
        "label": status in (S.PREPARATION, S.IN_PROGRESS, S.COMPLETED),
    }


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def _already(text: str) -> Decimal:
    """How much was handed out when the page was made; nothing is a number as well."""
    return Decimal(0) if text.strip() in ("", "0") else dosage.number(text, field="quantity", what="how much it was")


# ---- keys ----------------------------------------------------------------------------------------------------------


class SigningKeys(Page):
    """The keys prescriptions are signed with."""

    route_base = "/signing-keys"
    default_view = "list"

    @expose("/")
    @open_to("update", "SigningKey")
    def list(self) -> str:
        """Every key, and what can be done with it."""
        return self._page()

    @expose("/rotate", methods=["POST"])
    @open_to("update", "SigningKey")
    def rotate(self) -> Any:
        """A new key from now on."""
        try:
            with guard.unit_of_work() as session:
                kid = signing.rotate(session).kid
        except Refusal as refusal:
            guard.session.rollback()
            return self._page(refusal), refusal.status
        flash(gettext("Prescriptions are signed with %(kid)s from now on.", kid=kid), "success")
        return redirect(url_for("SigningKeys.list"))

    @expose("/<kid>/revoke", methods=["POST"])
    @open_to("update", "SigningKey")
    def revoke(self, kid: str) -> Any:
        """Nothing it signed holds any longer."""
        try:
            with guard.unit_of_work() as session:
                signing.revoke(session, kid, reason=request.form.get("reason", ""))
        except Refusal as refusal:
            if refusal.status in (403, 404):
                raise
            guard.session.rollback()
            return self._page(refusal, kid), refusal.status
        signing.discard(kid)
        flash(gettext("Nothing that %(kid)s signed is genuine any longer.", kid=kid), "success")
        return redirect(url_for("SigningKeys.list"))

    def _page(self, refusal: Refusal | None = None, at: str = "") -> str:
        return self.render(
            "pharmacy/keys.html",
            page_title=gettext("Signing keys"),
            refusal=gettext(str(refusal)) if refusal else None,
            at=at,
            keys=[
                {
                    "kid": key.kid,
                    "made": words(key.created_at),
                    "retired": words(key.retired_at) if key.retired_at else "",
                    "revoked": words(key.revoked_at) if key.revoked_at else "",
                    "reason": key.revoked_reason,
                }
                for key in signing.keys(guard.session())
            ],
        )


def register(builder: Any) -> None:
    """The pharmacy and the keys."""
    for view in (Pharmacy, SigningKeys):
        builder.add_view_no_menu(view)
