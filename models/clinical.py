"""The chart: encounters and what was found, done and written in them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Numeric,
    SmallInteger,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, deferred, mapped_column, relationship
from sqlalchemy.types import Text

from models.base import Coded, InEncounter, InPatientCompartment, Model, Protected, Record, Written
from models.codes import (
    AllergyClinicalStatus,
    AllergyCriticality,
    AllergyType,
    AllergyVerificationStatus,
    ConditionClinicalStatus,
    ConditionVerificationStatus,
    DocumentReferenceStatus,
    EncounterStatus,
    EventStatus,
    ObservationStatus,
    check,
)
from models.organization import Branch, Organization, Practitioner


class Encounter(InPatientCompartment, Record):
    """A visit, as it happened (FHIR Encounter)."""

    __tablename__ = "encounter"
    __table_args__ = (
        UniqueConstraint("id", "patient_id", name="encounter_of_patient"),
        CheckConstraint(check("status", EncounterStatus), name="encounter_status"),
        CheckConstraint("ended_at IS NULL OR ended_at >= started_at", name="encounter_ends_after_start"),
        Index("encounter_newest", "patient_id", "started_at"),
        Index("encounter_by_start", "started_at"),
    )

    status: Mapped[str]
    class_code: Mapped[str]
    """http://terminology.hl7.org/CodeSystem/v3-ActCode: AMB, EMER, IMP, ..."""
    type_code: Mapped[str | None]
    type_display: Mapped[str] = mapped_column(default="")
    reason: Mapped[str] = mapped_column(default="")
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    branch_id: Mapped[int | None] = mapped_column(ForeignKey("branch.id"), index=True)
    service_provider_id: Mapped[int | None] = mapped_column(ForeignKey("organization.id"), index=True)
    practitioner_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"), index=True)
    branch: Mapped[Branch | None] = relationship(lazy="raise_on_sql")
    service_provider: Mapped[Organization | None] = relationship(lazy="raise_on_sql")
    practitioner: Mapped[Practitioner | None] = relationship(lazy="raise_on_sql")


ENCOUNTER_TRANSITIONS: dict[EncounterStatus, frozenset[EncounterStatus]] = {
    EncounterStatus.PLANNED: frozenset(
        {EncounterStatus.ARRIVED, EncounterStatus.IN_PROGRESS, EncounterStatus.CANCELLED}
    ),
    EncounterStatus.ARRIVED: frozenset(
        {EncounterStatus.TRIAGED, EncounterStatus.IN_PROGRESS, EncounterStatus.CANCELLED}
    ),
    EncounterStatus.TRIAGED: frozenset({EncounterStatus.IN_PROGRESS, EncounterStatus.CANCELLED}),
    EncounterStatus.IN_PROGRESS: frozenset({EncounterStatus.ONLEAVE, EncounterStatus.FINISHED}),
    EncounterStatus.ONLEAVE: frozenset({EncounterStatus.IN_PROGRESS, EncounterStatus.FINISHED}),
    EncounterStatus.FINISHED: frozenset(),
    EncounterStatus.CANCELLED: frozenset(),
    EncounterStatus.ENTERED_IN_ERROR: frozenset(),
    EncounterStatus.UNKNOWN: frozenset(),
}
"""Where an encounter may go from each state; besides, any may turn out to have been entered in error."""


class EncounterHistory(InPatientCompartment, Protected, Model):
    """A state an encounter was in, and until when (FHIR Encounter.statusHistory); written by the database alone."""

    __tablename__ = "encounter_history"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    encounter_id: Mapped[int] = mapped_column(BigInteger, index=True)
    status: Mapped[str]
    until_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text("now()"))

    @classmethod
    def resource(cls) -> str:
        return "Encounter"


class Condition(InEncounter, Coded, Written, Record):
    """A problem or diagnosis (FHIR Condition)."""

    __tablename__ = "condition"
    __table_args__ = (
        InEncounter.same_patient("condition"),
        CheckConstraint(check("clinical_status", ConditionClinicalStatus), name="condition_clinical_status"),
        CheckConstraint(
            check("verification_status", ConditionVerificationStatus), name="condition_verification_status"
        ),
        CheckConstraint(
            "clinical_status IS NULL OR verification_status IS DISTINCT FROM 'entered-in-error'", name="condition_con_5"
        ),
    )

    clinical_status: Mapped[str | None]
    verification_status: Mapped[str | None]
    category: Mapped[str] = mapped_column(default="")
    """problem-list-item or encounter-diagnosis."""
    onset_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    abatement_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    recorded_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class AllergyIntolerance(InEncounter, Coded, Written, Record):
    """What a patient must not be given, and what it did (FHIR AllergyIntolerance)."""

    __tablename__ = "allergy_intolerance"
    __table_args__ = (
        InEncounter.same_patient("allergy_intolerance"),
        CheckConstraint(check("clinical_status", AllergyClinicalStatus), name="allergy_clinical_status"),
        CheckConstraint(check("verification_status", AllergyVerificationStatus), name="allergy_verification_status"),
        CheckConstraint(check("type", AllergyType), name="allergy_type"),
        CheckConstraint(check("criticality", AllergyCriticality), name="allergy_criticality"),
        CheckConstraint(
            "(clinical_status IS NULL) = (verification_status IS NOT DISTINCT FROM 'entered-in-error')",
            name="allergy_ait_1_2",
        ),
    )

    clinical_status: Mapped[str | None]
    verification_status: Mapped[str | None]
    type: Mapped[str | None]
    category: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list)
    """food, medication, environment, biologic."""
    criticality: Mapped[str | None]
    reaction: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """FHIR AllergyIntolerance.reaction: manifestation, severity (of one past event), onset."""
    onset_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    recorded_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Observation(InEncounter, Coded, Written, Record):
    """Something measured or found: vital sign, laboratory value, social history (FHIR Observation, LOINC)."""

    __tablename__ = "observation"
    __table_args__ = (
        InEncounter.same_patient("observation"),
        CheckConstraint(check("status", ObservationStatus), name="observation_status"),
        CheckConstraint("value_quantity IS NULL OR value_text IS NULL", name="observation_one_value"),
        CheckConstraint("comparator IN ('', '<', '<=', '>', '>=')", name="observation_comparator"),
        CheckConstraint("off_scale IN ('<', '>') AND delta IN ('U', 'D')", name="observation_marks"),
        CheckConstraint(
            "(verified_at IS NULL) = (verified_by_id IS NULL)"
            " AND (verified_by_id IS NULL OR verified_by_id IS DISTINCT FROM recorder_id)",
            name="observation_verified_by_another",
        ),
        CheckConstraint("released_at IS NULL OR verified_at IS NOT NULL", name="observation_released_verified"),
        ForeignKeyConstraint(
            ["service_request_id", "patient_id"],
            ["service_request.id", "service_request.patient_id"],
            name="observation_request_same_patient",
            use_alter=True,
            deferrable=True,
        ),
        ForeignKeyConstraint(
            ["specimen_id", "patient_id"],
            ["specimen.id", "specimen.patient_id"],
            name="observation_specimen_same_patient",
            use_alter=True,
            deferrable=True,
        ),
        Index("observation_trend", "patient_id", "code", "effective_at"),
        Index("observation_newest", "patient_id", "effective_at"),
    )

    kind_key: ClassVar[str | None] = "category"

    status: Mapped[str]
    category: Mapped[str] = mapped_column(default="")
    """http://terminology.hl7.org/CodeSystem/observation-category, such as vital-signs or laboratory."""
    effective_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    issued_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    value_quantity: Mapped[Decimal | None] = mapped_column(Numeric)
    value_unit: Mapped[str | None]
    """UCUM."""
    value_text: Mapped[str | None]
    """What was found, in words, where it is no quantity."""
    value_code: Mapped[str | None]
    interpretation: Mapped[str | None]
    """http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation; None where no range applies."""
    reference_range: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    component: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """FHIR Observation.component, such as the two numbers of a blood pressure."""
    service_request_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    """The order it answers."""
    specimen_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    test_id: Mapped[int | None] = mapped_column(ForeignKey("lab_test.id"))
    """The test of the catalogue."""
    comparator: Mapped[str] = mapped_column(String(2), default="", server_default=text("''"))
    """http://hl7.org/fhir/quantity-comparator: the true value lies below or above the one that is written."""
    off_scale: Mapped[str | None] = mapped_column(String(1))
    """Table 0078 < or >: beyond what the instrument can tell apart."""
    delta: Mapped[str | None] = mapped_column(String(1))
    """Table 0078 U or D: significantly changed since the one before."""
    rules: Mapped[int | None] = mapped_column(SmallInteger)
    """The edition of the rules it was flagged by (app/services/flags.py)."""
    held: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """Why it waits for somebody before it can be verified: delta, unit, limits."""
    note: Mapped[str] = mapped_column(default="", server_default=text("''"))
    verified_by_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    verified_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    released_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """From when on those who ordered it see it."""
    portal_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """From when on the patient does; None for never."""
    read_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When whoever ordered it had it before them."""
    verified_by: Mapped[Practitioner | None] = relationship(foreign_keys=[verified_by_id], lazy="raise_on_sql")


class Procedure(InEncounter, Coded, Written, Record):
    """Something done to a patient (FHIR Procedure)."""

    __tablename__ = "procedure"
    __table_args__ = (
        InEncounter.same_patient("procedure"),
        CheckConstraint(check("status", EventStatus), name="procedure_status"),
    )

    status: Mapped[str]
    performed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    performed_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    reason: Mapped[str] = mapped_column(default="")


class Immunization(InEncounter, Coded, Written, Record):
    """A vaccine given, or not given (FHIR Immunization, CVX)."""

    __tablename__ = "immunization"
    __table_args__ = (
        InEncounter.same_patient("immunization"),
        CheckConstraint("status IN ('completed', 'entered-in-error', 'not-done')", name="immunization_status"),
    )

    status: Mapped[str]
    occurrence_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    primary_source: Mapped[bool | None]
    lot_number: Mapped[str | None]


class DocumentReference(InEncounter, Coded, Record):
    """A document about a patient, kept as it came (FHIR DocumentReference; Composition of a received document)."""

    __tablename__ = "document_reference"
    __table_args__ = (
        InEncounter.same_patient("document_reference"),
        CheckConstraint(check("status", DocumentReferenceStatus), name="document_reference_status"),
    )

    status: Mapped[str]
    category: Mapped[str] = mapped_column(default="")
    title: Mapped[str] = mapped_column(default="")
    written_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    author: Mapped[str] = mapped_column(default="")
    content_type: Mapped[str] = mapped_column(default="text/plain")
    content: Mapped[str] = deferred(mapped_column(Text, default=""))
    """The text itself."""
