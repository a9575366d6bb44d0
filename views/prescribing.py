"""Prescribing: the page a paper is written on, the paper on screen, the report of overrides, and the same over REST."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar

from flask import flash, redirect, request, url_for
from flask_appbuilder import expose
from flask_appbuilder.security.decorators import protect
from flask_babel import get_locale, gettext, lazy_gettext
from sqlalchemy import select
from werkzeug.wrappers import Response

from app import guard
from app.actor import current
from app.errors import Invalid, NotFound, Refusal, Unsafe
from app.services import clinical, dosage, drug_safety, formulary, prescriptions
from app.services.dosage import Dosage
from app.services.drug_safety import Background, Issue
from app.services.prescriptions import Asked, Line, Override, Prepared
from models.codes import DetectedIssueCode, DetectedIssueMitigation, MedicationRequestStatus
from models.organization import Practitioner
from models.prescriptions import DetectedIssue, Medication, MedicationRequest
from views.api import CODED, RecordApi, body_of, plain, sent
from views.base import PERMISSION_OF, Page, RecordInterface, branch_zone, open_to, words
from views.branches import all_branches
from views.chart import allergy
from views.people import in_short
from views.speech import spoken_day

# ---- words --------------------------------------------------------------------------------------------------------

TIMES = {
    "QD": lazy_gettext("once a day"),
    "AM": lazy_gettext("every morning"),
    "PM": lazy_gettext("every afternoon"),
    "BED": lazy_gettext("at bedtime"),
    "BID": lazy_gettext("2 times a day"),
    "TID": lazy_gettext("3 times a day"),
    "QID": lazy_gettext("4 times a day"),
    "Q4H": lazy_gettext("every 4 hours"),
    "Q6H": lazy_gettext("every 6 hours"),
    "Q8H": lazy_gettext("every 8 hours"),
    "QOD": lazy_gettext("every other day"),
    "WK": lazy_gettext("once a week"),
    "MO": lazy_gettext("once a month"),
}
ROUTES = {
    "oral": lazy_gettext("by mouth"),
    "sublingual": lazy_gettext("under the tongue"),
    "inhaled": lazy_gettext("inhaled"),
    "topical": lazy_gettext("on the skin"),
    "transdermal": lazy_gettext("as a patch"),
    "rectal": lazy_gettext("rectal"),
    "vaginal": lazy_gettext("vaginal"),
    "nasal": lazy_gettext("in the nose"),
    "ocular": lazy_gettext("in the eye"),
    "otic": lazy_gettext("in the ear"),
    "subcutaneous": lazy_gettext("under the skin"),
    "intramuscular": lazy_gettext("into a muscle"),
    "intravenous": lazy_gettext("into a vein"),
}
KINDS = {
    DetectedIssueCode.DRUG_ALLERGY: lazy_gettext("Allergy"),
    DetectedIssueCode.DRUG_INTOLERANCE: lazy_gettext("Intolerance"),
    DetectedIssueCode.INTERACTION: lazy_gettext("Interaction"),
    DetectedIssueCode.DUPLICATE_THERAPY: lazy_gettext("Twice the same"),
    DetectedIssueCode.HIGH_DOSE: lazy_gettext("High dose"),
    DetectedIssueCode.LOW_DOSE: lazy_gettext("Low dose"),
}
SEVERITIES = {
    "high": lazy_gettext("serious"),
    "moderate": lazy_gettext("take care"),
    "low": lazy_gettext("for your information"),
}
MITIGATIONS = {
    DetectedIssueMitigation.THERAPY_APPROPRIATE: lazy_gettext("It is the right treatment all the same"),
    DetectedIssueMitigation.ASSESSED_PATIENT: lazy_gettext("I examined the patient"),
    DetectedIssueMitigation.PATIENT_EXPLANATION: lazy_gettext("The patient explained it"),
    DetectedIssueMitigation.CONSULTED_SOURCE: lazy_gettext("I looked it up"),
    DetectedIssueMitigation.CONSULTED_PRESCRIBER: lazy_gettext("I asked the other prescriber"),
    DetectedIssueMitigation.NO_LONGER_ACTIVE: lazy_gettext("The other medicine is no longer taken"),
    DetectedIssueMitigation.OTHER_ACTION: lazy_gettext("Something else was done about it"),
    DetectedIssueMitigation.MONITORING: lazy_gettext("It will be watched closely"),
}
STATES = {
    "draft": lazy_gettext("Draft"),
    "active": lazy_gettext("Active"),
    "on-hold": lazy_gettext("On hold"),
    "cancelled": lazy_gettext("Cancelled"),
    "completed": lazy_gettext("Handed out"),
    "entered-in-error": lazy_gettext("Entered in error"),
    "stopped": lazy_gettext("Stopped"),
    "unknown": lazy_gettext("Not known"),
}
TONES = {"active": "tag-ok", "on-hold": "tag-warn", "cancelled": "tag-danger", "stopped": "tag-danger"}
VERBS = {
    "stop": (prescriptions.stop, lazy_gettext("Stopped.")),
    "hold": (prescriptions.hold, lazy_gettext("On hold.")),
    "resume": (prescriptions.resume, lazy_gettext("Goes on.")),
    "cancel": (prescriptions.cancel, lazy_gettext("Cancelled.")),
    "withdraw": (prescriptions.withdraw, lazy_gettext("Marked as entered in error.")),
}
REPORTED_DAYS = 30


def route_for(medication: Medication) -> str:
    """How a medicine is most likely given, by its form."""
    form = f"{medication.dose_form} {medication.display}".lower()
    for word, route in (
        ("sublingual", "sublingual"),
        ("inhal", "inhaled"),
        ("topical", "topical"),
        ("cream", "topical"),
        ("transdermal", "transdermal"),
        ("vaginal", "vaginal"),
        ("nasal", "nasal"),
        ("ophthalmic", "ocular"),
        ("eye", "ocular"),
        ("supposit", "rectal"),
    ):
        if word in form:
            return route
    return "subcutaneous" if "syringe" in form or "injector" in form or "insulin" in form else "oral"


def issue_words(issue: Issue, given: Mapping[str, Override]) -> dict[str, Any]:
    """A warning as it is shown, with what was typed against it."""
    told = given.get(issue.key)
    return {
        "key": issue.key,
        "kind": KINDS[issue.code] if issue.checked else gettext("Not checked"),
        "severity": issue.severity.value,
        "word": SEVERITIES[issue.severity],
        "detail": issue.detail,
        "reference": issue.reference,
        "blocks": issue.blocks,
        "code": told.code if told else "",
        "reason": told.reason if told else "",
    }


def unit_words(unit: str) -> str:
    """A unit as one says it: tablet for {tbl}."""
    return dosage.counted(Decimal(1), unit, _screen()).split(" ", 1)[1]


def _screen() -> str:
    """The language of the screen, as far as a dosage can be said in it."""
    locale = get_locale()
    return dosage.language_of(locale.language if locale else None)


def quantity_words(value: Decimal | None, unit: str) -> str:
    """An amount as one says it, such as 21 tablets."""
    return dosage.counted(value, unit, _screen()) if value is not None else "—"


# ---- what was typed -----------------------------------------------------------------------------------------------

FIELDS = (
    *("medication", "dose", "unit", "timing", "route", "prn", "prn_for", "days", "start", "stop", "most"),
    *("quantity", "repeats", "from", "until", "same", "reason"),
)
FIELD_OF = {
    "as_needed_for": "prn_for",
    "valid_until": "until",
    "valid_from": "from",
    "medication": "dose",
    "override": "",
}
"""The field of the page for a field a refusal names; every other has the name it has there."""


@dataclass
class Typed:
    """A line of the paper as it was typed, what it amounts to, and what is wrong with it."""

    values: dict[str, str]
    medication: Medication | None = None
    line: Line | None = None
    ready: Prepared | None = None
    wrong: str = ""
    """The field that is wrong."""
    sentence: str = ""
    """What is wrong with it."""
    mine: str = ""
    """How it is taken in the language of the screen, where the paper is in another."""
    issues: list[dict[str, Any]] = field(default_factory=list)

    @property
    def units(self) -> dict[str, str]:
        """What a dose of it can be counted in, with words."""
        own = [self.medication.unit] if self.medication and self.medication.unit else []
        said = [self["unit"]] if self["unit"] else []
        return {unit: unit_words(unit) for unit in (*own, "mg", "mL", "ug", "g", "[iU]", *said)}

    def __getitem__(self, name: str) -> str:
        return self.values.get(name, "")


def typed_lines() -> list[Typed]:
    """The lines of the form that was sent, in order."""
    numbers = [text for text in request.form.getlist("line")[: prescriptions.MOST_LINES] if text.isdecimal()]
    return [
        Typed({name: request.form.get(f"{number}-{name}", "").strip()[:500] for name in FIELDS}) for number in numbers
    ]


def typed_overrides() -> dict[str, Override]:
    """Why things are given all the same, by the key of what stands against them."""
    found = {}
    for name in request.form:
        if name.startswith("why-"):
            key = name.removeprefix("why-")
            found[key] = Override(key, request.form[name], request.form.get(f"because-{key}", ""))
    return found


def _whole(text: str, field: str, sentence: str) -> int:
    if not text.isdecimal() or len(text) > 6:
        raise Invalid(sentence, field=field)
    return int(text)


def _day(text: str, field: str) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise Invalid(gettext("Write the day like 2026-11-30."), field=field) from error


def line_of(typed: Typed) -> Line:
    """A line as the service wants it. Raises Invalid, naming the field."""
    say = typed.values.get
    key = say("medication", "")
    dose = Dosage(
        value=dosage.number(say("dose"), field="dose"),
        unit=dosage.unit_of(say("unit", "")),
        timing=say("timing", ""),
        route=say("route", "") or "oral",
        as_needed=bool(say("prn")),
        as_needed_for=say("prn_for", ""),
        days=_whole(say("days", ""), "days", gettext("Please say the days as a number.")) if say("days") else None,
        start=_day(say("start", ""), "start"),
        stop=_day(say("stop", ""), "stop"),
        most=dosage.number(say("most"), field="most", what="the most in 24 hours") if say("most") else None,
    )
    return Line(
        medication_id=int(key) if key.isdecimal() and len(key) < 19 else 0,
        dosage=dose,
        quantity=dosage.number(say("quantity"), field="quantity", what="how much is handed out")
        if say("quantity")
        else None,
        repeats=_whole(say("repeats", "") or "0", "repeats", gettext("Please say how often as a number.")),
        valid_from=_day(say("from", ""), "from"),
        valid_until=_day(say("until", ""), "until"),
        substitution=not say("same"),
        reason=say("reason", ""),
    )


def fresh(medication: Medication) -> Typed:
    """A new line for a medicine."""
    return Typed(
        {
            "medication": str(medication.id),
            "unit": medication.unit or "mg",
            "dose": "1" if medication.unit.startswith("{") else "",
            "route": route_for(medication),
            "repeats": "0",
        }
    )


def again(order: MedicationRequest) -> Typed:
    """A new line like an order of before."""
    if order.medication is None:
        raise Invalid(gettext("This was ordered elsewhere. Please search for the medicine."))
    line = fresh(order.medication)
    dose = dosage.from_fhir(order.dosage_instruction)
    if dose is not None:
        line.values |= {
            "dose": drug_safety.plain(dose.value),
            "unit": dose.unit,
            "timing": dose.timing,
            "route": dose.route,
            "prn": "y" if dose.as_needed else "",
            "prn_for": dose.as_needed_for,
            "days": str(dose.days or ""),
            "most": drug_safety.plain(dose.most) if dose.most is not None else "",
        }
    line.values |= {
        "quantity": drug_safety.plain(order.quantity) if order.quantity is not None else "",
        "repeats": str(order.repeats),
        "same": "" if order.substitution_allowed else "y",
        "reason": order.reason,
    }
    return line


# ---- the page -----------------------------------------------------------------------------------------------------


class Prescribing(Page):
    """Writing a prescription."""

    route_base = "/prescribing"
    default_view = "ask"

    @expose("/<int:patient_id>/", methods=["GET", "POST"])
    @open_to("create", "MedicationRequest")
    def ask(self, patient_id: int) -> Any:
        """The page: lines are added, looked at, reviewed and issued, all by sending the one form."""
        prescriptions.prescriber()
        known = drug_safety.background(guard.session(), patient_id)
        if request.method != "POST":
            lines = []
            if repeat := request.args.get("repeat", ""):
                lines = [again(order) for order in known.taken if str(order.id) == repeat]
                lines = lines or [again(_own_order(patient_id, repeat))]
            return self._page(known, lines)
        return self._answer(known, typed_lines())

    def _answer(self, known: Background, lines: list[Typed]) -> Any:
        do, q = request.form.get("do", "look"), request.form.get("q", "").strip()[:100]
        if do.startswith("add-"):
            medication = formulary.get(guard.session(), _key(do.removeprefix("add-")))
            if len(lines) < prescriptions.MOST_LINES:
                lines.append(fresh(medication))
            return self._page(known, lines, focus=len(lines) - 1)
        if do.startswith("remove-"):
            gone = _key(do.removeprefix("remove-"))
            return self._page(known, [line for number, line in enumerate(lines) if number != gone])
        if do == "find" or (do == "look" and q):
            return self._page(known, lines, q=q, found=formulary.find(guard.session(), q) if q else [])
        if do not in ("review", "issue"):
            return self._page(known, lines)
        look_at(known, lines)
        if not lines or any(line.wrong or line.ready is None for line in lines):
            sentence = (
                gettext("Please check the fields marked below.") if lines else gettext("Search a medicine first.")
            )
            return self._page(known, lines, refusal=sentence), 422
        if do == "review":
            return self._page(known, lines, review=True)
        try:
            with guard.unit_of_work() as session:
                paper = prescriptions.prescribe(
                    session,
                    patient_id=known.patient.id,
                    encounter_id=_encounter(),
                    lines=[line.line for line in lines if line.line is not None],
                    overrides=list(typed_overrides().values()),
                )
                number = paper.id
        except Refusal as refusal:
            if refusal.status == 403:
                raise
            guard.session.rollback()
            known = drug_safety.background(guard.session(), known.patient.id)
            return self._page(known, lines, refusal=str(refusal), review=True), refusal.status
        flash(gettext("The prescription is issued."), "success")
        return redirect(url_for("Prescriptions.show", prescription_id=number))

    def _page(
        self,
        known: Background,
        lines: list[Typed],
        *,
        q: str = "",
        found: Sequence[Medication] | None = None,
        refusal: str | None = None,
        review: bool = False,
        focus: int | None = None,
    ) -> str:
        of_patient, closed = look_at(known, lines), ""
        try:
            prescriptions.for_patient(known.patient)
        except Invalid as refused:
            closed = str(refused)
        patient = known.patient
        encounter = _encounter()
        return self.render(
            "prescribing/review.html" if review else "prescribing/ask.html",
            page_title=gettext("Prescribe"),
            patient={**in_short(patient), "deceased": patient.deceased},
            back_href=url_for("Chart.open", patient_id=patient.id),
            allergies=allergies_words(known),
            current=[current_words(order) for order in known.taken],
            may_change=current().may("update", "MedicationRequest"),
            lines=lines,
            of_patient=of_patient,
            q=q,
            found=[found_words(each) for each in found] if found is not None else None,
            refusal=refusal or closed or None,
            closed=closed,
            encounter=encounter or "",
            focus=focus,
            times=TIMES,
            routes=ROUTES,
            mitigations=MITIGATIONS,
            quantity_words=quantity_words,
            spoken_day=spoken_day,
        )

    @expose("/<int:patient_id>/look.json", methods=["POST"])
    @open_to("create", "MedicationRequest")
    def look(self, patient_id: int) -> Response:
        """The sentences and warnings of the lines as they are typed."""
        known = drug_safety.background(guard.session(), patient_id)
        lines = typed_lines()
        of_patient = look_at(known, lines)
        shown = {"mitigations": MITIGATIONS}
        return sent(
            {
                "patient": self.render("prescribing/_warnings.html", issues=of_patient, **shown),
                "lines": [
                    {
                        "text": line.ready.text if line.ready else "",
                        "mine": line.mine,
                        "quantity": quantity_words(line.ready.quantity, line.ready.quantity_unit) if line.ready else "",
                        "until": str(spoken_day(line.ready.valid_until)) if line.ready else "",
                        "warnings": self.render("prescribing/_warnings.html", issues=line.issues, **shown),
                    }
                    for line in lines
                ],
            }
        )

    @expose("/medicines.json", methods=["GET"])
    @open_to("create", "MedicationRequest")
    def medicines(self) -> Response:
        """Medicines by what was typed so far."""
        q = request.args.get("q", "").strip()[:100]
        found = formulary.find(guard.session(), q) if q else []
        return sent({"medicines": [found_words(each) for each in found]})


def look_at(known: Background, lines: Sequence[Typed]) -> list[dict[str, Any]]:
    """Fill in what each line amounts to and what stands against it; gives what is about the patient alone."""
    session = guard.session()
    branch = prescriptions.here(session, None)
    language = prescriptions.language_for(known.patient, branch)
    today = prescriptions.today_at(branch)
    doses: list[drug_safety.Dose | None] = []
    for line in lines:
        line.medication = formulary.get(session, _key(line["medication"]))
        line.line = line.ready = None
        line.wrong = line.sentence = line.mine = ""
        dose = None
        try:
            line.line = line_of(line)
            dose = dosage.checked_dose(dosage.sound(line.line.dosage, line.medication))
            line.ready = prescriptions.prepare(session, line.line, language=language, today=today)
            line.mine = dosage.sentence(line.ready.dosage, _screen()) if language != _screen() else ""
        except Invalid as refusal:
            line.wrong = FIELD_OF.get(refusal.field or "dose", refusal.field or "dose")
            line.sentence = gettext(str(refusal))
        doses.append(dose)
    medications = [line.medication for line in lines if line.medication is not None]
    issues = drug_safety.against(known, medications, doses)
    given = typed_overrides() if request.method == "POST" else {}
    for number, line in enumerate(lines):
        line.issues = [issue_words(each, given) for each in issues if each.line == number and not each.of_patient]
    return [issue_words(each, given) for each in issues if each.of_patient]


def _key(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def _encounter() -> int | None:
    """The visit it is prescribed in, as the link or the form says."""
    return _key(request.form.get("encounter") or request.args.get("encounter") or "") or None


def _own_order(patient_id: int, text: str) -> MedicationRequest:
    """An order of this patient. Raises NotFound."""
    order = prescriptions.order(guard.session(), _key(text))
    if order.patient_id != patient_id:
        raise NotFound
    if order.medication_id is not None:
        guard.session().refresh(order, ["medication"])
    return order


def allergies_words(known: Background) -> dict[str, Any]:
    """The list of allergies in words, and which of the three states it is in."""
    standing = [row for row in clinical.standing_allergies(known.allergies) if row.clinical_status in (None, "active")]
    return {"state": known.state, "entries": [allergy(row) for row in standing]}


def found_words(each: Medication) -> dict[str, Any]:
    """A medicine somebody searched for."""
    return {
        "id": each.id,
        "display": each.display,
        "ingredients": formulary.ingredients_text(each.ingredient),
        "known": not drug_safety.medicine_of(each).unknown(),
    }


def order_text(order: MedicationRequest) -> str:
    """How it is taken, as it was written; the actor's role may not be shown it."""
    return str((order.dosage_instruction or [{}])[0].get("text", "") or "")


def current_words(order: MedicationRequest) -> dict[str, Any]:
    """A medicine that is being taken."""
    branch = all_branches().get(order.branch_id or 0)
    return {
        "id": order.id,
        "display": order.code_display,
        "text": order_text(order),
        "status": order.status,
        "state": STATES[order.status],
        "tone": TONES.get(order.status, ""),
        "by": ", ".join(str(each) for each in (order.requester, branch) if each),
        "when": str(spoken_day(order.authored_at.astimezone(branch_zone()).date())) if order.authored_at else "",
        "paper": order.prescription_id,
        "repeatable": order.medication_id is not None,
        "verbs": verbs_for(order),
    }


def verbs_for(order: MedicationRequest) -> list[tuple[str, str]]:
    """What can be done with an order now: verb and word."""
    found = []
    if order.status == MedicationRequestStatus.ACTIVE:
        found = [("stop", gettext("Stop")), ("hold", gettext("Hold"))]
    elif order.status == MedicationRequestStatus.ON_HOLD:
        found = [("resume", gettext("Go on")), ("stop", gettext("Stop"))]
    if found and not order.dispensed and order.prescription_id is not None:
        found.append(("cancel", gettext("Cancel")))
    return found


# ---- the paper on screen ------------------------------------------------------------------------------------------


class Prescriptions(Page):
    """A paper, and what becomes of its orders."""

    route_base = "/prescriptions"
    default_view = "show"

    @expose("/<int:prescription_id>/")
    @open_to("read", "MedicationRequest")
    def show(self, prescription_id: int) -> str:
        """The paper: what is left of each line, what was handed out, what was overridden."""
        return self._page(prescription_id)

    def _page(self, prescription_id: int, refusal: str | None = None) -> str:
        session = guard.session()
        paper = prescriptions.show(session, prescription_id)
        patient = clinical.open_chart(session, paper.patient_id)
        may = current().may
        given = prescriptions.dispenses(session, paper) if may("read", "MedicationDispense") else []
        issues = prescriptions.issues_of(session, paper) if may("read", "DetectedIssue") else []
        today = prescriptions.today_at(paper.branch)
        return self.render(
            "prescribing/show.html",
            page_title=gettext("Prescription"),
            patient=in_short(patient),
            paper=paper,
            issued=words(paper.issued_at),
            code=paper.short_code or "",
            refusal=refusal,
            print_href=url_for("PrescriptionPaper.pdf", prescription_id=paper.id) if paper.issued_at else None,
            repeats_open=may("create", "MedicationRequest"),
            may_change=may("update", "MedicationRequest"),
            runs=any(order.status in ("active", "on-hold") for order in paper.requests),
            orders=[
                {
                    "id": order.id,
                    "display": order.code_display,
                    "text": order_text(order),
                    "state": gettext("Run out")
                    if order.status == "active" and order.valid_until is not None and order.valid_until < today
                    else STATES[order.status],
                    "tone": TONES.get(order.status, ""),
                    "why": order.status_reason,
                    "quantity": quantity_words(order.quantity, order.quantity_unit),
                    "repeats": order.repeats,
                    "left": quantity_words(prescriptions.remaining(order), order.quantity_unit),
                    "some_given": bool(order.dispensed),
                    "until": spoken_day(order.valid_until) if order.valid_until else "",
                    "same": not order.substitution_allowed,
                    "verbs": verbs_for(order),
                    "issues": [stored_words(each) for each in issues if each.medication_request_id == order.id],
                }
                for order in paper.requests
            ],
            dispenses=[
                {
                    "what": each.medication.display,
                    "quantity": quantity_words(each.quantity, each.quantity_unit),
                    "when": words(each.handed_over_at or each.prepared_at),
                    "by": ", ".join(str(who) for who in (each.performer, each.branch) if who),
                    "status": each.status,
                }
                for each in given
            ],
        )

    @expose("/orders/<int:order_id>/<verb>/", methods=["POST"])
    @open_to("update", "MedicationRequest")
    def end(self, order_id: int, verb: str) -> Any:
        """Stop, hold, resume, cancel or withdraw an order, with a reason."""
        if verb not in VERBS:
            raise NotFound
        service, done = VERBS[verb]
        with guard.unit_of_work() as session:
            order = service(session, order_id, reason=request.form.get("reason", ""))
            paper, patient_id = order.prescription_id, order.patient_id
        flash(str(done), "success")
        if request.form.get("back") == "prescribing" or paper is None:
            return redirect(url_for("Prescribing.ask", patient_id=patient_id))
        return redirect(url_for("Prescriptions.show", prescription_id=paper))

    @expose("/<int:prescription_id>/cancel/", methods=["POST"])
    @open_to("update", "MedicationRequest")
    def cancel(self, prescription_id: int) -> Any:
        """End the whole paper, with a reason."""
        try:
            with guard.unit_of_work() as session:
                prescriptions.cancel_paper(session, prescription_id, reason=request.form.get("reason", ""))
        except Refusal as refusal:
            if refusal.status in (403, 404):
                raise
            guard.session.rollback()
            return self._page(prescription_id, str(refusal)), refusal.status
        flash(gettext("The prescription is cancelled."), "success")
        return redirect(url_for("Prescriptions.show", prescription_id=prescription_id))


def stored_words(each: DetectedIssue) -> dict[str, Any]:
    """A warning as it was written down."""
    return {
        "kind": KINDS[DetectedIssueCode(each.code)],
        "severity": each.severity,
        "word": SEVERITIES[each.severity],
        "detail": each.detail,
        "reference": each.reference,
        "mitigation": MITIGATIONS[DetectedIssueMitigation(each.mitigation)] if each.mitigation else "",
        "note": each.mitigation_note,
        "by": str(each.author) if each.author else "",
        "dispensing": each.medication_dispense_id is not None,
    }


# ---- the report of overrides --------------------------------------------------------------------------------------


class Overrides(Page):
    """Warnings that were overridden: by whom, when, and why."""

    route_base = "/overrides"
    default_view = "list"

    @expose("/")
    @open_to("read", "DetectedIssue")
    def list(self) -> str:
        """The report of a period, by prescriber and kind."""
        asked, found = _reported()
        staff = guard.session().scalars(
            select(Practitioner)
            .where(Practitioner.user_id.is_not(None))
            .order_by(Practitioner.family, Practitioner.given)
        )
        arguments: dict[str, Any] = {name: value for name, value in request.args.items() if value}
        return self.render(
            "prescribing/overrides.html",
            page_title=gettext("Overridden warnings"),
            asked=asked,
            people=[(str(each.id), str(each)) for each in staff],
            kinds=[(code.value, word) for code, word in KINDS.items()],
            csv_href=url_for("Overrides.csv", **arguments),
            cut=len(found) >= prescriptions.MOST_LISTED,
            counts=_counted(found),
            rows=[
                {
                    **stored_words(each),
                    "when": words(each.identified_at),
                    "patient": str(each.patient),
                    "mrn": each.patient.mrn,
                    "branch": str(each.branch) if each.branch else "",
                    "what": each.request.code_display,
                    "href": url_for("Prescriptions.show", prescription_id=each.request.prescription_id)
                    if each.request.prescription_id
                    else None,
                }
                for each in found
            ],
        )

    @expose("/overrides.csv")
    @open_to("read", "DetectedIssue")
    def csv(self) -> Response:
        """The same for a spreadsheet."""
        _, found = _reported()
        text = io.StringIO(newline="")
        text.write("\ufeff")
        writer = csv.writer(text)
        headings = ("When", "Prescriber", "Branch", "Patient number", "Medicine", "Kind", "Severity", "Warning")
        writer.writerow([gettext(each) for each in (*headings, "Why", "Reason", "Source")])
        for each in found:
            told = stored_words(each)
            cells = [each.identified_at.astimezone(branch_zone()).isoformat(" ", "seconds"), told["by"], each.branch]
            cells += [each.patient.mrn, each.request.code_display, told["kind"], told["word"], told["detail"]]
            cells += [told["mitigation"], told["note"], told["reference"]]
            writer.writerow([formulary.guarded(str(cell or "")) for cell in cells])
        answer = Response(text.getvalue().encode(), content_type="text/csv; charset=utf-8")
        answer.headers["Content-Disposition"] = 'attachment; filename="overrides.csv"'
        return answer


def _reported() -> tuple[Asked, Sequence[DetectedIssue]]:
    """What the address asks for, and what there is of it. Raises Invalid."""
    today = datetime.now(branch_zone()).date()
    until = _day(request.args.get("to", ""), "to") or today
    since = _day(request.args.get("from", ""), "from") or until - timedelta(days=REPORTED_DAYS)
    kind = request.args.get("kind", "")
    asked = Asked(
        since,
        until,
        _key(request.args.get("by", "")) or None,
        kind if kind in [code.value for code in DetectedIssueCode] else None,
    )
    guard.searching("DetectedIssue by period")
    return asked, prescriptions.overridden(guard.session(), asked, clock=str(branch_zone()))


def _counted(found: Iterable[DetectedIssue]) -> list[tuple[str, int]]:
    """How many of each kind."""
    counts: dict[str, int] = {}
    for each in found:
        word = str(KINDS[DetectedIssueCode(each.code)])
        counts[word] = counts.get(word, 0) + 1
    return sorted(counts.items(), key=lambda pair: -pair[1])


# ---- REST ---------------------------------------------------------------------------------------------------------

_NUMBER: dict[str, Any] = {"type": ["number", "string"]}
_DAY: dict[str, Any] = {"type": ["string", "null"]}
LINE: dict[str, Any] = {
    "type": "object",
    "required": ["medication_id", "dose"],
    "additionalProperties": False,
    "properties": {
        "medication_id": {"type": "integer"},
        "dose": {
            "type": "object",
            "required": ["value"],
            "additionalProperties": False,
            "properties": {
                "value": _NUMBER,
                "unit": {"type": "string"},
                **{name: {"type": "string"} for name in ("timing", "route", "as_needed_for")},
                "as_needed": {"type": "boolean"},
                "days": {"type": ["integer", "null"]},
                "start": _DAY,
                "stop": _DAY,
                "most": {"type": ["number", "string", "null"]},
            },
        },
        "quantity": {"type": ["number", "string", "null"]},
        "repeats": {"type": "integer"},
        "valid_from": _DAY,
        "valid_until": _DAY,
        "substitution": {"type": "boolean"},
        "reason": {"type": "string"},
    },
}
CHECKING: dict[str, Any] = {
    "type": "object",
    "required": ["patient_id", "lines"],
    "additionalProperties": False,
    "properties": {
        "patient_id": {"type": "integer"},
        "lines": {"type": "array", "minItems": 1, "maxItems": prescriptions.MOST_LINES, "items": LINE},
    },
}
PRESCRIBING: dict[str, Any] = {
    **CHECKING,
    "properties": {
        **CHECKING["properties"],
        "encounter_id": {"type": ["integer", "null"]},
        "overrides": {
            "type": "array",
            "maxItems": 100,
            "items": {
                "type": "object",
                "required": ["issue", "code", "reason"],
                "additionalProperties": False,
                "properties": {name: {"type": "string"} for name in ("issue", "code", "reason")},
            },
        },
    },
}


def lines_of(body: Mapping[str, Any]) -> list[Line]:
    """The lines of a body. Raises Invalid, naming the field."""
    found = []
    for told in body["lines"]:
        dose = told["dose"]
        most = dose.get("most")
        dosed = Dosage(
            value=dosage.number(dose["value"], field="dose"),
            unit=dosage.unit_of(dose.get("unit", "")),
            timing=dose.get("timing", ""),
            route=dose.get("route", "oral"),
            as_needed=dose.get("as_needed", False),
            as_needed_for=dose.get("as_needed_for", ""),
            days=dose.get("days"),
            start=_day(dose.get("start") or "", "start"),
            stop=_day(dose.get("stop") or "", "stop"),
            most=dosage.number(most, field="most", what="the most in 24 hours") if most is not None else None,
        )
        quantity = told.get("quantity")
        found.append(
            Line(
                medication_id=told["medication_id"],
                dosage=dosed,
                quantity=dosage.number(quantity, field="quantity") if quantity is not None else None,
                repeats=told.get("repeats", 0),
                valid_from=_day(told.get("valid_from") or "", "valid_from"),
                valid_until=_day(told.get("valid_until") or "", "valid_until"),
                substitution=told.get("substitution", True),
                reason=told.get("reason", ""),
            )
        )
    return found


def issue_json(issue: Issue) -> dict[str, Any]:
    """Something that stands against a medicine, with the key it is overridden by."""
    return {
        "issue": issue.key,
        "line": issue.line,
        "code": issue.code.value,
        "severity": issue.severity.value,
        "checked": issue.checked,
        "detail": issue.detail,
        "reference": issue.reference,
        "needs_override": issue.blocks,
    }


class MedicationRequestApi(RecordApi):
    """Orders for medicines."""

    datamodel = RecordInterface(MedicationRequest)
    include_route_methods: ClassVar[set[str]] = {"get", "get_list", "info", "check", "post"}
    method_permission_name: ClassVar[dict[str, str]] = {**PERMISSION_OF, "check": "create"}
    columns = (
        *(*CODED, "status", "intent", "authored_at", "requester_id", "dosage_instruction", "reason", "branch_id"),
        *("prescription_id", "medication_id", "quantity", "quantity_unit", "repeats", "valid_from", "valid_until"),
        *("substitution_allowed", "dispensed", "status_reason", "ended_at"),
    )

    @expose("/check", methods=["POST"])
    @protect()
    def check(self) -> Response:
        """What stands against some medicines, before they are prescribed.
        ---
        post:
          description: Nothing is written. The list of interactions is not complete.
          requestBody:
            required: true
            content:
              application/json:
                schema:
                  type: object
          responses:
            200:
              description: "`issues`, the gravest first"
            422:
              $ref: '#/components/responses/422'
        """
        body = body_of(CHECKING)
        issues = prescriptions.preview(guard.session(), patient_id=body["patient_id"], lines=lines_of(body))
        return sent({"issues": [issue_json(each) for each in issues]})

    @expose("/", methods=["POST"])
    @protect()
    def post(self) -> Response:
        """Issue a prescription.
        ---
        post:
          description: 201 with the paper and its orders; 422 with `issues` where something serious has no override.
          requestBody:
            required: true
            content:
              application/json:
                schema:
                  type: object
          responses:
            201:
              description: The paper
            401:
              $ref: '#/components/responses/401'
            403:
              $ref: '#/components/responses/403'
            422:
              $ref: '#/components/responses/422'
        """
        body = body_of(PRESCRIBING)
        told = [Override(each["issue"], each["code"], each["reason"]) for each in body.get("overrides", [])]
        try:
            with guard.unit_of_work() as session:
                paper = prescriptions.prescribe(
                    session,
                    patient_id=body["patient_id"],
                    encounter_id=body.get("encounter_id"),
                    lines=lines_of(body),
                    overrides=told,
                )
                number = paper.id
        except Unsafe as refusal:
            issues = [issue_json(each) for each in refusal.issues if isinstance(each, Issue)]
            answer = {"error": "Unsafe", "message": str(refusal), "field": refusal.field, "issues": issues}
            return sent(answer, refusal.status)
        made = prescriptions.show(guard.session(), number)
        return sent(
            {
                "id": made.id,
                "short_code": made.short_code,
                "result": [plain(order, self.columns) for order in made.requests],
            },
            201,
        )


def register(builder: Any) -> None:
    """Prescribing, its papers, its report and its API."""
    builder.add_view_no_menu(Prescribing)
    builder.add_view_no_menu(Prescriptions)
    builder.add_view_no_menu(Overrides)
    builder.add_api(MedicationRequestApi)
