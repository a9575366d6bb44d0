"""Handing out what was prescribed: looking a paper up, filling an order in whole or in part, giving back, declining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from app import guard
from app.actor import current
from app.errors import AlreadyDispensed, IllegalTransition, Invalid, NotAClinician, NotDispensable, NotFound, Unsafe
from app.services import dosage, drug_safety, signing
from app.services.drug_safety import Issue
from app.services.prescriptions import Override
from app.services.words import line
from models.base import now
from models.codes import (
    DetectedIssueMitigation,
    DetectedIssueSeverity,
    MedicationDispenseStatus,
    MedicationRequestStatus,
)
from models.prescriptions import DetectedIssue, Medication, MedicationDispense, MedicationRequest, Prescription

S = MedicationDispenseStatus
R = MedicationRequestStatus
TRANSITIONS: dict[MedicationDispenseStatus, frozenset[MedicationDispenseStatus]] = {
    S.PREPARATION: frozenset({S.IN_PROGRESS, S.COMPLETED, S.CANCELLED, S.ENTERED_IN_ERROR}),
    S.IN_PROGRESS: frozenset({S.COMPLETED, S.CANCELLED, S.STOPPED, S.ENTERED_IN_ERROR}),
    S.STOPPED: frozenset({S.ENTERED_IN_ERROR}),
    S.COMPLETED: frozenset({S.ENTERED_IN_ERROR}),
}
"""Where a dispense may go. What is called off or was an error is given back to the order; what is stopped is not."""
REFUSED: dict[str, str] = {
    R.DRAFT: "This prescription is a draft. Nothing is handed out before it is issued.",
    R.ON_HOLD: "This prescription is on hold. Ask the prescriber.",
    R.CANCELLED: "This prescription was cancelled.",
    R.STOPPED: "This prescription was stopped.",
    R.ENTERED_IN_ERROR: "This prescription was entered in error.",
    R.UNKNOWN: "It is not known how it stands with this prescription. Ask the prescriber.",
}


# ---- looking it up -------------------------------------------------------------------------------------------------


def by_paper(session: Session, text: str) -> Prescription:
    """The paper whose QR code was scanned or whose short code was typed, with its orders.

    Raises NotFound for what is not genuine, and Invalid for a short code that was mistyped.
    """
    guard.require("create", "MedicationDispense")
    paper = signing.find(session, text)
    if paper is None:
        raise guard.refuse("read", "MedicationRequest", NotFound)
    return paper


def papers_of(session: Session, patient_id: int) -> list[Prescription]:
    """The issued papers of a patient with something left on them, the newest first."""
    guard.require("create", "MedicationDispense")
    running = select(MedicationRequest.prescription_id).where(
        MedicationRequest.patient_id == patient_id, MedicationRequest.status.in_([R.ACTIVE, R.ON_HOLD])
    )
    statement = (
        select(Prescription)
        .where(
            Prescription.patient_id == patient_id,
            Prescription.issued_at.is_not(None),
            Prescription.id.in_(running.scalar_subquery()),
        )
        .options(joinedload(Prescription.practitioner), joinedload(Prescription.branch))
        .order_by(Prescription.id.desc())
        .limit(50)
    )
    return list(session.scalars(statement))


def same_again(session: Session, order: MedicationRequest) -> list[Medication]:
    """Other makes an order may be filled with: same ingredients, strengths, form and unit."""
    ordered = order.medication
    if not order.substitution_allowed or ordered is None or not ordered.ingredient:
        return []
    statement = select(Medication).where(
        Medication.ingredient.contains(ordered.ingredient), Medication.unit == ordered.unit, Medication.active
    )
    return [
        other for other in session.scalars(statement.limit(200)) if other.id != ordered.id and _same(ordered, other)
    ]


def _same(one: Medication, other: Medication) -> bool:
    def told(medication: Medication) -> tuple[Any, ...]:
        parts = sorted(str((part.get("name"), part.get("value"), part.get("unit"))) for part in medication.ingredient)
        return parts, medication.unit, medication.dose_form.casefold()

    return bool(one.ingredient) and told(one) == told(other)


def of_this_fill(order: MedicationRequest) -> Decimal:
    """How much may be handed out now: a fill is finished before the next is begun."""
    whole = order.quantity or Decimal(0)
    left = whole * (order.repeats + 1) - order.dispensed
    return Decimal(0) if left <= 0 else whole - order.dispensed % whole


def against(session: Session, order: MedicationRequest, medication: Medication | None = None) -> list[Issue]:
    """What stands against handing an order out today, the gravest first; the order itself does not count."""
    given = medication or order.medication
    if given is None:
        return []
    dose = dosage.from_fhir(order.dosage_instruction)
    doses = [dosage.checked_dose(dose) if dose else None]
    return drug_safety.check(session, order.patient_id, [given], doses, besides=[order.id])


# ---- handing out ---------------------------------------------------------------------------------------------------


def dispense(
    session: Session,
    request_id: int,
    *,
    quantity: Decimal,
    already: Decimal,
    medication_id: int | None = None,
    handed_over: bool = True,
    overrides: Sequence[Override] = (),
) -> MedicationDispense:
    """Fill an order, whole or in part: hand it over, or put it by to be prepared. Counted once, whoever else tries.

    `already` is how much was dispensed when this was decided. Raises AlreadyDispensed where it is no longer so,
    NotDispensable with the reason, Unsafe with what stands against it, Invalid, NotAClinician, NotFound.
    """
    performer = _performer("create")
    order, paper = _order(session, request_id)
    dispensable(order, paper)
    amount = _amount(order, quantity)
    given = _given(session, order, medication_id)
    issues = against(session, order, given)
    answered = _answered(issues, overrides)
    moment = now()
    fill = MedicationDispense(
        patient_id=order.patient_id,
        status=S.COMPLETED if handed_over else S.PREPARATION,
        medication_request_id=order.id,
        medication_id=given.id,
        quantity=amount,
        quantity_unit=order.quantity_unit,
        already=already,
        prepared_at=moment,
        handed_over_at=moment if handed_over else None,
        performer_id=performer,
        branch_id=current().branch_id,
    )
    session.add(fill)
    session.flush()
    for issue in issues:
        told = answered.get(issue.key)
        if told is None and issue.severity == DetectedIssueSeverity.LOW:
            continue
        session.add(
            DetectedIssue(
                patient_id=order.patient_id,
                medication_request_id=order.id,
                medication_dispense_id=fill.id,
                code=issue.code,
                severity=issue.severity,
                detail=issue.detail,
                reference=issue.reference,
                identified_at=moment,
                mitigation=told.code if told else None,
                mitigation_note=told.reason if told else "",
                author_id=performer,
                branch_id=fill.branch_id,
            )
        )
    session.flush()
    session.refresh(order)
    return fill


def decline(session: Session, request_id: int, *, reason: str) -> MedicationDispense:
    """Nothing is handed out on an order this time, and why; it stays as it is. Raises Invalid, NotDispensable."""
    performer = _performer("create")
    order, paper = _order(session, request_id)
    dispensable(order, paper)
    fill = MedicationDispense(
        patient_id=order.patient_id,
        status=S.DECLINED,
        medication_request_id=order.id,
        medication_id=order.medication_id,
        quantity=of_this_fill(order),
        quantity_unit=order.quantity_unit,
        already=order.dispensed,
        performer_id=performer,
        branch_id=current().branch_id,
        status_reason=_reason(reason),
    )
    session.add(fill)
    session.flush()
    return fill


def ready(session: Session, dispense_id: int) -> MedicationDispense:
    """What was put by is packed and waits to be fetched. Raises IllegalTransition."""
    return _advance(session, dispense_id, S.IN_PROGRESS)


def hand_over(session: Session, dispense_id: int) -> MedicationDispense:
    """The patient has it. Raises NotDispensable where the order was stopped meanwhile, IllegalTransition."""
    fill = _fill(session, dispense_id)
    order, paper = _order(session, fill.medication_request_id)
    if order.status != R.COMPLETED:  # by this very fill
        dispensable(order, paper)
    else:
        in_time(order, paper)
    return _advance(session, dispense_id, S.COMPLETED, handed_over_at=now())


def call_off(session: Session, dispense_id: int, *, reason: str) -> MedicationDispense:
    """What was put by is not handed over, and may be handed out again. Raises Invalid, IllegalTransition."""
    return _advance(session, dispense_id, S.CANCELLED, status_reason=_reason(reason))


def stop(session: Session, dispense_id: int, *, reason: str) -> MedicationDispense:
    """What was packed is not handed over, nor given back: it is lost. Raises Invalid, IllegalTransition."""
    return _advance(session, dispense_id, S.STOPPED, status_reason=_reason(reason))


def give_back(session: Session, dispense_id: int, *, reason: str) -> MedicationDispense:
    """It was entered in error: what it took counts as never handed out. Raises Invalid, IllegalTransition."""
    return _advance(session, dispense_id, S.ENTERED_IN_ERROR, status_reason=_reason(reason))


def fills_of(session: Session, paper: Prescription) -> list[MedicationDispense]:
    """What was done on a paper, the newest first."""
    if not paper.requests:
        return []
    statement = (
        select(MedicationDispense)
        .where(
            MedicationDispense.patient_id == paper.patient_id,
            MedicationDispense.medication_request_id.in_([order.id for order in paper.requests]),
        )
        .options(
            joinedload(MedicationDispense.performer),
            joinedload(MedicationDispense.branch),
            joinedload(MedicationDispense.medication),
        )
        .order_by(MedicationDispense.id.desc())
    )
    return list(session.scalars(statement))


# ---- what is refused -----------------------------------------------------------------------------------------------


def dispensable(order: MedicationRequest, paper: Prescription | None) -> None:
    """Raises NotDispensable, saying why, for an order nothing is handed out on, and AlreadyDispensed."""
    if paper is None or paper.issued_at is None:
        raise NotDispensable("This was not prescribed on a paper of this house, so nothing is handed out on it here.")
    if order.status == R.COMPLETED:
        raise AlreadyDispensed("All of this was handed out already.")
    if order.status != R.ACTIVE:
        raise NotDispensable(REFUSED[order.status])
    in_time(order, paper)
    if not signing.genuine(paper):
        raise NotDispensable("This prescription is not as it was signed, or its key was revoked. Ask the prescriber.")


def in_time(order: MedicationRequest, paper: Prescription | None) -> None:
    """Raises NotDispensable before the first and after the last day of an order, by its branch's clock."""
    if paper is None:
        return
    today = signing.today_at(paper.branch)
    if order.valid_until is not None and order.valid_until < today:
        raise NotDispensable(f"This prescription expired: it was valid until {order.valid_until.isoformat()}.")
    if order.valid_from is not None and order.valid_from > today:
        raise NotDispensable(f"This prescription is not valid before {order.valid_from.isoformat()}.")


def _performer(action: str) -> int:
    guard.require(action, "MedicationDispense")
    found = current().practitioner_id
    if found is None:
        raise NotAClinician
    return found


def _order(session: Session, request_id: int) -> tuple[MedicationRequest, Prescription | None]:
    """An order, held until the end of the transaction, and its paper. Raises NotFound."""
    statement = (
        select(MedicationRequest)
        .where(MedicationRequest.id == request_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    order = session.scalars(statement).one_or_none()
    if order is None:
        raise guard.refuse("read", "MedicationRequest", NotFound)
    return order, signing.paper_of(session, order.prescription_id) if order.prescription_id is not None else None


def _amount(order: MedicationRequest, quantity: Decimal) -> Decimal:
    amount = dosage.number(quantity, field="quantity", what="how much is handed out")
    if order.quantity_unit.startswith("{") and amount != amount.to_integral_value():
        raise Invalid("Only whole ones can be handed out.", field="quantity")
    return amount


def _given(session: Session, order: MedicationRequest, medication_id: int | None) -> Medication:
    """What is handed out: what was ordered, or another make where that is allowed. Raises Invalid, NotFound."""
    ordered = order.medication
    if ordered is None:
        raise NotDispensable("This order names no medicine of the formulary. Ask the prescriber.")
    if medication_id is None or medication_id == ordered.id:
        return ordered
    other = session.get(Medication, medication_id)
    if other is None or not other.active:
        raise Invalid("Please choose one of the medicines offered.", field="medication")
    if not order.substitution_allowed:
        raise Invalid("The prescriber wants this make and no other.", field="medication")
    if not _same(ordered, other):
        raise Invalid("This is not the same medicine in the same strength and form.", field="medication")
    return other


def _answered(issues: Sequence[Issue], overrides: Sequence[Override]) -> Mapping[str, Override]:
    """The overrides of what stands against it, by issue. Raises Unsafe."""
    known = {issue.key for issue in issues}
    answered = {}
    for told in overrides:
        if told.issue not in known or not (told.code or told.reason.strip()):
            continue
        if told.code not in [code.value for code in DetectedIssueMitigation]:
            raise Unsafe("Choose why it is given all the same.", issues=issues)
        reason = line(told.reason, field="override", longest=1000)
        if len(reason) < 3:
            raise Unsafe("Say in a few words why it is given all the same.", issues=issues)
        answered[told.issue] = Override(told.issue, told.code, reason)
    if any(issue.blocks and issue.key not in answered for issue in issues):
        raise Unsafe(issues=issues)
    return answered


def _reason(text: str) -> str:
    said = line(text, field="reason", longest=300)
    if len(said) < 3:
        raise Invalid("Please say why, in a few words.", field="reason")
    return said


def _fill(session: Session, dispense_id: int) -> MedicationDispense:
    _performer("update")
    statement = (
        select(MedicationDispense)
        .where(MedicationDispense.id == dispense_id)
        .with_for_update(of=MedicationDispense)
        .execution_options(populate_existing=True)
    )
    fill = session.scalars(statement).one_or_none()
    if fill is None:
        raise guard.refuse("read", "MedicationDispense", NotFound)
    return fill


def _advance(session: Session, dispense_id: int, to: MedicationDispenseStatus, **also: Any) -> MedicationDispense:
    """Bring a dispense to another state; the one writer of it. Raises IllegalTransition."""
    fill = _fill(session, dispense_id)
    if to not in TRANSITIONS.get(S(fill.status), frozenset()):
        raise IllegalTransition("This has moved on in the meantime. Look at it again.")
    fill.status = to
    for name, value in also.items():
        setattr(fill, name, value)
    session.flush()
    return fill
