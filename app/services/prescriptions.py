"""Prescribing: papers with orders for medicines, checked, sealed, and what becomes of each order afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload, selectinload

from app import guard
from app.actor import current
from app.errors import IllegalTransition, Invalid, NotAClinician, NotFound, Unsafe
from app.services import dosage, drug_safety, formulary
from app.services.clock import zone
from app.services.dosage import Dosage
from app.services.drug_safety import Issue
from app.services.words import line
from models.base import now
from models.clinical import Encounter
from models.codes import (
    DetectedIssueMitigation,
    DetectedIssueSeverity,
    EncounterStatus,
    MedicationRequestStatus,
)
from models.organization import Branch
from models.patients import Patient
from models.prescriptions import (
    MEDICATION_REQUEST_TRANSITIONS,
    DetectedIssue,
    Medication,
    MedicationDispense,
    MedicationRequest,
    Prescription,
)

MOST_LINES = 20
VALID_DAYS = 30
"""How long a prescription is good for where nothing else is said."""
LONGEST_VALID = 366
"""Days: a year at most."""
MOST_LISTED = 500
TWICE = timedelta(seconds=10)
"""Within this the same paper by the same hand is the same form, sent twice."""
S = MedicationRequestStatus
OVER = frozenset({EncounterStatus.CANCELLED, EncounterStatus.ENTERED_IN_ERROR})


@dataclass(frozen=True)
class Line:
    """One medicine of a paper. Where no quantity is said, it is what is taken in the days of the dosage."""

    medication_id: int
    dosage: Dosage
    quantity: Decimal | None = None
    """Of one fill, in the medicine's unit."""
    repeats: int = 0
    """Further fills after the first."""
    valid_from: date | None = None
    valid_until: date | None = None
    substitution: bool = True
    reason: str = ""


@dataclass(frozen=True)
class Override:
    """Why a medicine is given although something stands against it; `issue` is the key of an Issue."""

    issue: str
    code: str
    """DetectedIssueMitigation."""
    reason: str


@dataclass(frozen=True)
class Prepared:
    """A line as it would be written."""

    line: Line
    medication: Medication
    dosage: Dosage
    text: str
    """How it is taken, in the language of the paper."""
    quantity: Decimal
    quantity_unit: str
    valid_from: date
    valid_until: date


# ---- before it is written -----------------------------------------------------------------------------------------


def prescriber() -> int:
    """The number of the practitioner who acts. Raises NotAClinician for somebody who is none."""
    guard.require("create", "MedicationRequest")
    practitioner_id = current().practitioner_id
    if practitioner_id is None:
        raise NotAClinician
    return practitioner_id


def for_patient(patient: Patient) -> Patient:
    """The patient, if something can be prescribed for them. Raises Invalid."""
    if patient.deceased:
        raise Invalid("This patient has died, so nothing can be prescribed.", field="patient")
    if not patient.active:
        raise Invalid("This record is closed, so nothing can be prescribed for it.", field="patient")
    return patient


def language_for(patient: Patient, branch: Branch) -> str:
    """The language a paper is written in: the patient's, or the branch's where it is not known or not spoken here."""
    return dosage.language_of(*patient.languages[:3], *branch.languages[:1])


def here(session: Session, encounter: Encounter | None = None) -> Branch:
    """The branch that is prescribed at: the visit's, if the actor works there. Raises Invalid where they have none."""
    there = encounter.branch_id if encounter else None
    branch_id = there if there in current().branch_ids else current().branch_id
    branch = session.get(Branch, branch_id) if branch_id is not None else None
    if branch is None:
        raise Invalid("Please choose the branch you work at first.", field="branch")
    return branch


def today_at(branch: Branch) -> date:
    """The day it is at a branch."""
    return now().astimezone(zone(branch.time_zone)).date()


def prepare(session: Session, wanted: Line, *, language: str, today: date) -> Prepared:
    """A line as it would be written. Raises Invalid, naming the field, and NotFound."""
    medication = formulary.get(session, wanted.medication_id)
    if not medication.active:
        raise Invalid("This medicine is no longer in the formulary. Please choose another.", field="medication")
    dose = dosage.sound(wanted.dosage, medication)
    if not 0 <= wanted.repeats <= 99:
        raise Invalid("A prescription is repeated 0 to 99 times.", field="repeats")
    if dose.stop is not None and dose.stop < today:
        raise Invalid("This day has passed.", field="stop")
    begins = wanted.valid_from or today
    if begins > today + timedelta(days=LONGEST_VALID):
        raise Invalid("A prescription begins within a year.", field="valid_from")
    ends = wanted.valid_until or begins + timedelta(days=VALID_DAYS)
    if ends < begins:
        raise Invalid("It cannot end before it begins.", field="valid_until")
    if ends < today:
        raise Invalid("This day has passed.", field="valid_until")
    if ends > begins + timedelta(days=LONGEST_VALID):
        raise Invalid("A prescription is good for a year at most.", field="valid_until")
    unit = medication.unit or dose.unit
    if wanted.quantity is None:
        meant = dosage.suggested(dose, medication)
        if meant is None:
            raise Invalid("Please say how much is to be handed out.", field="quantity")
        quantity, unit = meant
        if quantity > dosage.LARGEST:
            raise Invalid("Please check how much is handed out: that is far too much.", field="quantity")
    else:
        quantity = dosage.number(wanted.quantity, field="quantity", what="how much is handed out")
        if unit.startswith("{") and quantity != quantity.to_integral_value():
            raise Invalid("Only whole ones can be handed out.", field="quantity")
    line(wanted.reason, field="reason", longest=500)
    text = dosage.sentence(dose, language)
    return Prepared(wanted, medication, dose, text, quantity, unit, begins, ends)


def preview(session: Session, *, patient_id: int, lines: Sequence[Line]) -> list[Issue]:
    """Everything that stands against some lines, the gravest first; nothing is written.

    Raises NotFound, and Invalid for a line that could not be prescribed at all.
    """
    guard.require("create", "MedicationRequest")
    known = drug_safety.background(session, patient_id)
    _countable(lines)
    medications = [formulary.get(session, each.medication_id) for each in lines]
    doses = [
        dosage.checked_dose(dosage.sound(each.dosage, medication))
        for each, medication in zip(lines, medications, strict=True)
    ]
    return drug_safety.against(known, medications, doses)


def _countable(lines: Sequence[Line]) -> None:
    if not lines:
        raise Invalid("Please choose a medicine first.", field="medication")
    if len(lines) > MOST_LINES:
        raise Invalid(f"A prescription holds {MOST_LINES} medicines at most.", field="medication")


# ---- writing it ---------------------------------------------------------------------------------------------------


def prescribe(
    session: Session,
    *,
    patient_id: int,
    encounter_id: int | None = None,
    lines: Sequence[Line],
    overrides: Sequence[Override] = (),
) -> Prescription:
    """Write a paper with its orders, checked, issued and sealed, all of it or nothing; sent twice, it is one paper.

    Raises Unsafe, with everything that stands against it, where something serious has no override; Invalid, naming the
    field; NotAClinician for somebody who is no practitioner; NotFound.
    """
    practitioner_id = prescriber()
    _countable(lines)
    # One at a time for a patient, or two that do not go together would each be written without the other.
    session.get(Patient, patient_id, with_for_update={"key_share": True})
    known = drug_safety.background(session, patient_id)
    patient = for_patient(known.patient)
    encounter = _encounter(session, patient_id, encounter_id)
    branch = here(session, encounter)
    language = language_for(patient, branch)
    today = today_at(branch)
    ready = [prepare(session, each, language=language, today=today) for each in lines]
    if (sent := _sent_already(known, practitioner_id, ready)) is not None:
        return show(session, sent)
    issues = drug_safety.against(
        known, [each.medication for each in ready], [dosage.checked_dose(each.dosage) for each in ready]
    )
    answered = _answered(issues, overrides)
    paper = Prescription(
        patient_id=patient_id,
        encounter_id=encounter.id if encounter else None,
        practitioner_id=practitioner_id,
        branch_id=branch.id,
        language=language,
    )
    session.add(paper)
    session.flush()
    moment = now()
    orders = [_order(paper, each, moment) for each in ready]
    session.add_all(orders)
    session.flush()
    for issue in issues:
        told = answered.get(issue.key)
        if issue.severity == DetectedIssueSeverity.LOW and told is None:
            continue
        session.add(_written(issue, orders[issue.line], told, moment, branch.id))
    session.flush()
    from app.services import signing

    signing.seal(session, paper)
    return paper


def _sent_already(known: drug_safety.Background, practitioner_id: int, ready: Sequence[Prepared]) -> int | None:
    """The paper by the same hand, of a moment ago, that says the very same."""
    papers: dict[int, list[tuple[Any, ...]]] = {}
    for order in known.taken:
        fresh = order.authored_at is not None and order.authored_at > now() - TWICE
        if fresh and order.requester_id == practitioner_id and order.prescription_id is not None:
            said = (order.dosage_instruction or [{}])[0].get("text")
            told = (order.medication_id, order.quantity, order.repeats, order.valid_until, said, order.reason)
            papers.setdefault(order.prescription_id, []).append(told)
    wanted = Counter(
        (each.medication.id, each.quantity, each.line.repeats, each.valid_until, each.text, each.line.reason.strip())
        for each in ready
    )
    return next((number for number, told in papers.items() if Counter(told) == wanted), None)


def _encounter(session: Session, patient_id: int, encounter_id: int | None) -> Encounter | None:
    """The visit it is prescribed in: the one named, or the actor's open one with the patient. Raises Invalid."""
    if encounter_id is None:
        from app.services import encounters

        found: Encounter | None = encounters.open_for(session, patient_id)
        return found
    encounter = session.get(Encounter, encounter_id)
    if encounter is None or encounter.patient_id != patient_id:
        raise Invalid("This visit belongs to another patient.", field="encounter")
    if encounter.status in OVER:
        raise Invalid("This visit was called off, so nothing is prescribed in it.", field="encounter")
    return encounter


def _order(paper: Prescription, ready: Prepared, moment: datetime) -> MedicationRequest:
    told = dosage.to_fhir(ready.dosage, paper.language)
    return MedicationRequest(
        patient_id=paper.patient_id,
        encounter_id=paper.encounter_id,
        prescription_id=paper.id,
        medication_id=ready.medication.id,
        code_system=ready.medication.code_system,
        code=ready.medication.code,
        code_display=ready.medication.display,
        status=S.ACTIVE,
        authored_at=moment,
        requester_id=paper.practitioner_id,
        branch_id=paper.branch_id,
        dosage_instruction=[told],
        quantity=ready.quantity,
        quantity_unit=ready.quantity_unit,
        repeats=ready.line.repeats,
        valid_from=ready.valid_from,
        valid_until=ready.valid_until,
        substitution_allowed=ready.line.substitution,
        reason=line(ready.line.reason, field="reason", longest=500),
    )


def _answered(issues: Sequence[Issue], overrides: Sequence[Override]) -> dict[str, Override]:
    """The overrides of what stands against a paper, by issue. Raises Unsafe and Invalid."""
    given = {each.issue: each for each in overrides if each.code or each.reason.strip()}
    known = {issue.key for issue in issues}
    answered: dict[str, Override] = {}
    for key, told in given.items():
        if key not in known:
            continue
        if told.code not in [code.value for code in DetectedIssueMitigation]:
            raise Unsafe("Choose why it is given all the same.", issues=issues)
        reason = line(told.reason, field="override", longest=1000)
        if sum(map(str.isalnum, reason)) < 3:
            raise Unsafe("Say in a few words why it is given all the same.", issues=issues)
        answered[key] = Override(key, told.code, reason)
    if any(issue.blocks and issue.key not in answered for issue in issues):
        raise Unsafe(issues=issues)
    return answered


def _written(
    issue: Issue, order: MedicationRequest, told: Override | None, moment: datetime, branch_id: int
) -> DetectedIssue:
    return DetectedIssue(
        patient_id=order.patient_id,
        medication_request_id=order.id,
        code=issue.code,
        severity=issue.severity,
        detail=issue.detail,
        reference=issue.reference,
        identified_at=moment,
        mitigation=told.code if told else None,
        mitigation_note=told.reason if told else "",
        author_id=order.requester_id,
        branch_id=branch_id,
    )


# ---- afterwards ---------------------------------------------------------------------------------------------------


def advance(
    session: Session, request: MedicationRequest, to: MedicationRequestStatus, **also: Any
) -> MedicationRequest:
    """Bring an order to another state; the one writer of it. Raises IllegalTransition."""
    allowed = MEDICATION_REQUEST_TRANSITIONS[S(request.status)]
    wrong = to == S.ENTERED_IN_ERROR and request.status != S.ENTERED_IN_ERROR
    if to not in allowed and not wrong:
        raise IllegalTransition("This order has moved on in the meantime. Look at it again.")
    request.status = to
    for name, value in also.items():
        setattr(request, name, value)
    session.flush()
    return request


def _changed(
    session: Session, request_id: int, to: MedicationRequestStatus, reason: str, *, ends: bool
) -> MedicationRequest:
    guard.require("update", "MedicationRequest")
    request = order(session, request_id)
    said = line(reason, field="reason", longest=500)
    if len(said) < 3:
        raise Invalid("Please say why, in a few words.", field="reason")
    return advance(session, request, to, status_reason=said, ended_at=now() if ends else None)


def stop(session: Session, request_id: int, *, reason: str) -> MedicationRequest:
    """It is taken no more. Raises Invalid without a reason, IllegalTransition where it is over already."""
    return _changed(session, request_id, S.STOPPED, reason, ends=True)


def hold(session: Session, request_id: int, *, reason: str) -> MedicationRequest:
    """It is paused: nothing is handed out until it is resumed. Raises Invalid, IllegalTransition."""
    return _changed(session, request_id, S.ON_HOLD, reason, ends=False)


def resume(session: Session, request_id: int, *, reason: str) -> MedicationRequest:
    """It is taken again. Raises Invalid where its paper has run out, IllegalTransition where it was not on hold."""
    guard.require("update", "MedicationRequest")
    request = order(session, request_id)
    if request.status != S.ON_HOLD:
        raise IllegalTransition("This order has moved on in the meantime. Look at it again.")
    branch = session.get(Branch, request.branch_id) if request.branch_id else None
    if request.valid_until is not None and branch is not None and request.valid_until < today_at(branch):
        raise Invalid("This prescription has run out. Please write a new one.", field="reason")
    return _changed(session, request_id, S.ACTIVE, reason, ends=False)


def cancel(session: Session, request_id: int, *, reason: str) -> MedicationRequest:
    """It is called off before any of it was handed out. Raises IllegalTransition where some was: stop it then."""
    guard.require("update", "MedicationRequest")
    if order(session, request_id).dispensed:
        raise IllegalTransition("Some of it was handed out already. Stop it instead.")
    return _changed(session, request_id, S.CANCELLED, reason, ends=True)


def withdraw(session: Session, request_id: int, *, reason: str) -> MedicationRequest:
    """It was never meant (entered-in-error). Raises IllegalTransition where some of it was handed out."""
    guard.require("update", "MedicationRequest")
    if order(session, request_id).dispensed:
        raise IllegalTransition("Some of it was handed out. The pharmacy takes that back first.")
    return _changed(session, request_id, S.ENTERED_IN_ERROR, reason, ends=True)


def cancel_paper(session: Session, prescription_id: int, *, reason: str) -> Prescription:
    """End every order of a paper that still runs: called off where nothing was handed out, stopped where some was.

    Raises IllegalTransition where none runs any more.
    """
    guard.require("update", "MedicationRequest")
    paper = show(session, prescription_id)
    running = [request for request in paper.requests if request.status in (S.ACTIVE, S.ON_HOLD)]
    if not running:
        raise IllegalTransition("Nothing on this prescription runs any more.")
    for request in running:
        (stop if request.dispensed else cancel)(session, request.id, reason=reason)
    return paper


# ---- reading ------------------------------------------------------------------------------------------------------


def order(session: Session, request_id: int) -> MedicationRequest:
    """An order. Raises NotFound."""
    found = session.get(MedicationRequest, request_id)
    if found is None:
        raise NotFound
    return found


def remaining(request: MedicationRequest) -> Decimal:
    """How much of an order is left, over all its fills."""
    return (request.quantity or Decimal(0)) * (request.repeats + 1) - request.dispensed


def show(session: Session, prescription_id: int) -> Prescription:
    """A paper with its orders and who wrote it where. Raises NotFound."""
    statement = (
        select(Prescription)
        .where(Prescription.id == prescription_id)
        .options(
            joinedload(Prescription.practitioner),
            joinedload(Prescription.branch),
            selectinload(Prescription.requests).joinedload(MedicationRequest.medication),
        )
        .execution_options(populate_existing=True)
    )
    found = session.scalars(statement).one_or_none()
    if found is None:
        raise guard.refuse("read", "MedicationRequest", NotFound)
    return found


def dispenses(session: Session, paper: Prescription) -> list[MedicationDispense]:
    """What was handed out on a paper, the newest first."""
    if not paper.requests:
        return []
    statement = (
        select(MedicationDispense)
        .where(
            MedicationDispense.patient_id == paper.patient_id,
            MedicationDispense.medication_request_id.in_([request.id for request in paper.requests]),
        )
        .options(
            joinedload(MedicationDispense.performer),
            joinedload(MedicationDispense.branch),
            joinedload(MedicationDispense.medication),
        )
    )
    return list(session.scalars(statement.order_by(MedicationDispense.id.desc())))


def issues_of(session: Session, paper: Prescription) -> list[DetectedIssue]:
    """What stood against the orders of a paper, when they were written and when they were handed out."""
    if not paper.requests:
        return []
    statement = select(DetectedIssue).where(
        DetectedIssue.patient_id == paper.patient_id,
        DetectedIssue.medication_request_id.in_([request.id for request in paper.requests]),
    )
    return list(session.scalars(statement.options(joinedload(DetectedIssue.author)).order_by(DetectedIssue.id)))


@dataclass(frozen=True)
class Asked:
    """Which overrides a report is to list."""

    since: date
    until: date
    practitioner_id: int | None = None
    code: str | None = None


def overridden(session: Session, asked: Asked, *, clock: str = "UTC", limit: int = MOST_LISTED) -> list[DetectedIssue]:
    """Warnings that somebody overrode from one day to another (both within), the newest first."""
    guard.require("read", "DetectedIssue")
    where = zone(clock)
    begins = datetime.combine(asked.since, time(), tzinfo=where)
    ends = datetime.combine(asked.until + timedelta(days=1), time(), tzinfo=where)
    statement = select(DetectedIssue).where(
        DetectedIssue.mitigation.is_not(None), DetectedIssue.identified_at >= begins, DetectedIssue.identified_at < ends
    )
    if asked.practitioner_id is not None:
        statement = statement.where(DetectedIssue.author_id == asked.practitioner_id)
    if asked.code is not None:
        statement = statement.where(DetectedIssue.code == asked.code)
    statement = statement.options(
        joinedload(DetectedIssue.author),
        joinedload(DetectedIssue.branch),
        joinedload(DetectedIssue.patient),
        joinedload(DetectedIssue.request),
    )
    return list(session.scalars(statement.order_by(DetectedIssue.identified_at.desc()).limit(limit)))
