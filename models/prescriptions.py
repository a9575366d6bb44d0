"""Medicines: what there is, what was prescribed on which paper, what was handed out, and what stood against it."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Date,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    Numeric,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Coded, InEncounter, InPatientCompartment, Record
from models.codes import (
    DetectedIssueCode,
    DetectedIssueMitigation,
    DetectedIssueSeverity,
    MedicationDispenseStatus,
    MedicationRequestStatus,
    check,
)
from models.organization import Branch, Practitioner


class Medication(Record):
    """A medicine of the formulary (FHIR Medication, RxNorm)."""

    __tablename__ = "medication"
    __table_args__ = (
        UniqueConstraint("code_system", "code", name="medication_code"),
        CheckConstraint("length(display) BETWEEN 1 AND 300", name="medication_display_length"),
        Index("medication_alike", "search", postgresql_using="gin", postgresql_ops={"search": "gin_trgm_ops"}),
    )

    code_system: Mapped[str]
    code: Mapped[str]
    display: Mapped[str]
    """Name, strength and form, as prescribed: Amoxicillin 250 MG Oral Capsule."""
    dose_form: Mapped[str] = mapped_column(default="", server_default=text("''"))
    unit: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """UCUM: what doses and amounts are counted in, such as {tbl}, mL or mg."""
    ingredient: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """Each `name`, as app/knowledge knows it, and where known `value` and `unit` (UCUM) in one of `unit`."""
    active: Mapped[bool] = mapped_column(default=True)
    search: Mapped[str] = mapped_column(Text, default="", server_default=text("''"))
    """Folded name and ingredients, kept by a trigger."""

    def __str__(self) -> str:
        return self.display


class SigningKey(Record):
    """The public half of a key that prescriptions are signed with (Ed25519)."""

    __tablename__ = "signing_key"
    __table_args__ = (
        CheckConstraint("octet_length(public_key) = 32", name="signing_key_size"),
        CheckConstraint("(revoked_at IS NULL) = (revoked_reason = '')", name="signing_key_revoked_with_reason"),
        Index("signing_key_current", text("(true)"), unique=True, postgresql_where=text("retired_at IS NULL")),
    )

    kid: Mapped[str] = mapped_column(String(16), unique=True)
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    retired_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """From when on nothing new is signed with it; what was signed still holds."""
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """From when on nothing that it signed holds any longer."""
    revoked_reason: Mapped[str] = mapped_column(default="", server_default=text("''"))

    def __str__(self) -> str:
        return self.kid


class Prescription(InEncounter, Record):
    """The paper that some orders for medicines share (FHIR groupIdentifier), signed when it is issued."""

    __tablename__ = "prescription"
    __table_args__ = (
        InEncounter.same_patient("prescription"),
        UniqueConstraint("id", "patient_id", name="prescription_of_patient"),
        CheckConstraint(
            "(issued_at IS NULL) = (short_code IS NULL) AND (issued_at IS NULL) = (signature IS NULL)"
            " AND (issued_at IS NULL) = (signing_key_id IS NULL)",
            name="prescription_issued_signed",
        ),
    )

    practitioner_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id"), index=True)
    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"))
    language: Mapped[str]
    """BCP 47, in which it is printed: the patient's."""
    issued_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    short_code: Mapped[str | None] = mapped_column(String(16), unique=True)
    """What is typed where the QR code cannot be read."""
    signing_key_id: Mapped[int | None] = mapped_column(ForeignKey("signing_key.id"))
    signature: Mapped[bytes | None] = mapped_column(LargeBinary)
    """Ed25519, over what the QR code says and a digest of the orders."""
    practitioner: Mapped[Practitioner] = relationship(lazy="raise_on_sql")
    branch: Mapped[Branch] = relationship(lazy="raise_on_sql")
    signing_key: Mapped[SigningKey | None] = relationship(lazy="raise_on_sql")
    requests: Mapped[list[MedicationRequest]] = relationship(
        primaryjoin="Prescription.id == foreign(MedicationRequest.prescription_id)",
        order_by="MedicationRequest.id",
        lazy="raise_on_sql",
        viewonly=True,
    )

    @classmethod
    def resource(cls) -> str:
        return "MedicationRequest"


class MedicationRequest(InEncounter, Coded, Record):
    """An order for a medicine (FHIR MedicationRequest, RxNorm)."""

    __tablename__ = "medication_request"
    __table_args__ = (
        InEncounter.same_patient("medication_request"),
        CheckConstraint(check("status", MedicationRequestStatus), name="medication_request_status"),
        UniqueConstraint("id", "patient_id", name="medication_request_of_patient"),
        ForeignKeyConstraint(
            ["prescription_id", "patient_id"],
            ["prescription.id", "prescription.patient_id"],
            name="medication_request_prescription_same_patient",
            deferrable=True,
        ),
        CheckConstraint("quantity > 0", name="medication_request_quantity"),
        CheckConstraint("repeats BETWEEN 0 AND 99", name="medication_request_repeats"),
        CheckConstraint("dispensed >= 0", name="medication_request_dispensed_some"),
        CheckConstraint(
            "dispensed <= coalesce(quantity * (repeats + 1), 0)", name="medication_request_dispensed_at_most"
        ),
        CheckConstraint("valid_until >= valid_from", name="medication_request_valid"),
        CheckConstraint(
            "prescription_id IS NULL OR medication_id IS NOT NULL AND quantity IS NOT NULL AND quantity_unit <> ''"
            " AND valid_until IS NOT NULL AND requester_id IS NOT NULL",
            name="medication_request_whole",
        ),
        Index("medication_request_of_prescription", "prescription_id"),
    )

    status: Mapped[str]
    intent: Mapped[str] = mapped_column(default="order")
    authored_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    requester_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"), index=True)
    branch_id: Mapped[int | None] = mapped_column(ForeignKey("branch.id"))
    prescription_id: Mapped[int | None] = mapped_column(BigInteger)
    """The paper it is on; None for what was ordered elsewhere."""
    medication_id: Mapped[int | None] = mapped_column(ForeignKey("medication.id"), index=True)
    dosage_instruction: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """FHIR Dosage; its `text` is made from the rest, in the language of the paper."""
    quantity: Mapped[Decimal | None] = mapped_column(Numeric)
    """Of one fill."""
    quantity_unit: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """UCUM."""
    repeats: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    """numberOfRepeatsAllowed: further fills after the first."""
    valid_from: Mapped[date | None] = mapped_column(Date)
    valid_until: Mapped[date | None] = mapped_column(Date)
    """The last day it is dispensed on."""
    substitution_allowed: Mapped[bool] = mapped_column(default=True, server_default=text("true"))
    """Whether another make of the same may be handed out."""
    dispensed: Mapped[Decimal] = mapped_column(Numeric, default=Decimal(0), server_default=text("0"))
    """How much is handed out or put by; kept by the database with every dispense."""
    reason: Mapped[str] = mapped_column(default="")
    status_reason: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """Why it was stopped, held or cancelled."""
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    requester: Mapped[Practitioner | None] = relationship(lazy="raise_on_sql")
    branch: Mapped[Branch | None] = relationship(lazy="raise_on_sql")
    medication: Mapped[Medication | None] = relationship(lazy="raise_on_sql")
    prescription: Mapped[Prescription | None] = relationship(
        primaryjoin="foreign(MedicationRequest.prescription_id) == Prescription.id", lazy="raise_on_sql", viewonly=True
    )


MEDICATION_REQUEST_TRANSITIONS: dict[MedicationRequestStatus, frozenset[MedicationRequestStatus]] = {
    MedicationRequestStatus.DRAFT: frozenset({MedicationRequestStatus.ACTIVE, MedicationRequestStatus.CANCELLED}),
    MedicationRequestStatus.ACTIVE: frozenset(
        {
            MedicationRequestStatus.ON_HOLD,
            MedicationRequestStatus.CANCELLED,
            MedicationRequestStatus.STOPPED,
            MedicationRequestStatus.COMPLETED,
        }
    ),
    MedicationRequestStatus.ON_HOLD: frozenset(
        {MedicationRequestStatus.ACTIVE, MedicationRequestStatus.CANCELLED, MedicationRequestStatus.STOPPED}
    ),
    MedicationRequestStatus.COMPLETED: frozenset({MedicationRequestStatus.ACTIVE}),
    MedicationRequestStatus.CANCELLED: frozenset(),
    MedicationRequestStatus.STOPPED: frozenset(),
    MedicationRequestStatus.ENTERED_IN_ERROR: frozenset(),
    MedicationRequestStatus.UNKNOWN: frozenset(),
}
"""Where an order may go; a completed one is active again only where a dispense is given back. Any may be an error."""


class MedicationDispense(InPatientCompartment, Record):
    """A fill of an order, whole or in part (FHIR MedicationDispense). The database counts, so none is given twice."""

    __tablename__ = "medication_dispense"
    __table_args__ = (
        CheckConstraint(check("status", MedicationDispenseStatus), name="medication_dispense_status"),
        CheckConstraint("quantity > 0", name="medication_dispense_quantity"),
        CheckConstraint("handed_over_at >= prepared_at", name="medication_dispense_mdd_1"),
        CheckConstraint("status <> 'completed' OR handed_over_at IS NOT NULL", name="medication_dispense_handed_over"),
        ForeignKeyConstraint(
            ["medication_request_id", "patient_id"],
            ["medication_request.id", "medication_request.patient_id"],
            name="medication_dispense_request_same_patient",
            deferrable=True,
        ),
        Index("medication_dispense_of_request", "medication_request_id"),
    )

    status: Mapped[str] = mapped_column(default=MedicationDispenseStatus.COMPLETED)
    medication_request_id: Mapped[int] = mapped_column(BigInteger)
    medication_id: Mapped[int] = mapped_column(ForeignKey("medication.id"))
    """What was handed out, which may be another make than was ordered."""
    quantity: Mapped[Decimal] = mapped_column(Numeric)
    quantity_unit: Mapped[str]
    """UCUM, the order's."""
    already: Mapped[Decimal] = mapped_column(Numeric)
    """How much of the order was dispensed when this was decided; refused where it is no longer so."""
    prepared_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    handed_over_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    performer_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    branch_id: Mapped[int | None] = mapped_column(ForeignKey("branch.id"), index=True)
    status_reason: Mapped[str] = mapped_column(default="", server_default=text("''"))
    request: Mapped[MedicationRequest] = relationship(
        primaryjoin="foreign(MedicationDispense.medication_request_id) == MedicationRequest.id",
        lazy="raise_on_sql",
        viewonly=True,
    )
    medication: Mapped[Medication] = relationship(lazy="raise_on_sql")
    performer: Mapped[Practitioner | None] = relationship(lazy="raise_on_sql")
    branch: Mapped[Branch | None] = relationship(lazy="raise_on_sql")


class DetectedIssue(InPatientCompartment, Record):
    """Something that stood against an order or a dispense, and why it was done all the same (FHIR DetectedIssue)."""

    __tablename__ = "detected_issue"
    __table_args__ = (
        CheckConstraint(check("code", DetectedIssueCode), name="detected_issue_code"),
        CheckConstraint(check("severity", DetectedIssueSeverity), name="detected_issue_severity"),
        CheckConstraint(check("mitigation", DetectedIssueMitigation), name="detected_issue_mitigation"),
        CheckConstraint(
            "severity <> 'high' OR mitigation IS NOT NULL AND length(trim(mitigation_note)) >= 3",
            name="detected_issue_high_is_overridden",
        ),
        ForeignKeyConstraint(
            ["medication_request_id", "patient_id"],
            ["medication_request.id", "medication_request.patient_id"],
            name="detected_issue_request_same_patient",
            deferrable=True,
        ),
        Index("detected_issue_of_request", "medication_request_id"),
        Index("detected_issue_overrides", "identified_at", postgresql_where=text("mitigation IS NOT NULL")),
    )

    medication_request_id: Mapped[int] = mapped_column(BigInteger)
    medication_dispense_id: Mapped[int | None] = mapped_column(ForeignKey("medication_dispense.id"), index=True)
    """Set where it came up when the medicine was handed out."""
    code: Mapped[str]
    severity: Mapped[str]
    detail: Mapped[str] = mapped_column(Text)
    """In a sentence: what meets what."""
    reference: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """Address of the source of the rule."""
    identified_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    mitigation: Mapped[str | None]
    """Why it was done all the same, coded."""
    mitigation_note: Mapped[str] = mapped_column(Text, default="", server_default=text("''"))
    author_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"), index=True)
    """Who decided."""
    branch_id: Mapped[int | None] = mapped_column(ForeignKey("branch.id"))
    request: Mapped[MedicationRequest] = relationship(
        primaryjoin="foreign(DetectedIssue.medication_request_id) == MedicationRequest.id",
        lazy="raise_on_sql",
        viewonly=True,
    )
    author: Mapped[Practitioner | None] = relationship(lazy="raise_on_sql")
    branch: Mapped[Branch | None] = relationship(lazy="raise_on_sql")


__all__ = [
    "DetectedIssue",
    "Medication",
    "MedicationDispense",
    "MedicationRequest",
    "Prescription",
    "SigningKey",
]
