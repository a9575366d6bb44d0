"""The laboratory: what it can measure, what was ordered of it, the specimens, the reports, and who was told."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Date,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Numeric,
    Sequence,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, deferred, mapped_column, relationship

from models.base import Coded, InEncounter, InPatientCompartment, Model, Protected, Record, metadata
from models.clinical import Observation
from models.codes import (
    AnswerKind,
    AttemptOutcome,
    DiagnosticReportStatus,
    RequestPriority,
    RequestStatus,
    SexForClinicalUse,
    SpecimenRejection,
    SpecimenStatus,
    check,
)
from models.organization import Branch, Practitioner

accession_sequence = Sequence("accession_number", start=100_001, metadata=metadata)
"""Where the numbers of specimens come from; one once drawn never comes again."""
AGE_UNITS = "('d', 'wk', 'mo', 'a')"
"""UCUM."""


# ---- the catalogue -----------------------------------------------------------------------------------------------


class LabPanelTest(Model):
    """A test of a panel, and where it stands in it."""

    __tablename__ = "lab_panel_test"

    panel_id: Mapped[int] = mapped_column(ForeignKey("lab_panel.id", ondelete="CASCADE"), primary_key=True)
    test_id: Mapped[int] = mapped_column(ForeignKey("lab_test.id"), primary_key=True)
    position: Mapped[int] = mapped_column(SmallInteger, default=0)


class LabTest(Record):
    """Something the laboratory measures (FHIR ObservationDefinition)."""

    __tablename__ = "lab_test"
    __table_args__ = (
        UniqueConstraint("code", "method", name="lab_test_code"),
        CheckConstraint("length(name) BETWEEN 1 AND 120", name="lab_test_name_length"),
        CheckConstraint(check("kind", AnswerKind), name="lab_test_kind"),
        CheckConstraint("kind <> 'numeric' OR decimals BETWEEN 0 AND 6", name="lab_test_decimals"),
        CheckConstraint("plausible_low < plausible_high", name="lab_test_plausible"),
        CheckConstraint("reporting_low < reporting_high", name="lab_test_reporting"),
        CheckConstraint("delta_days BETWEEN 1 AND 3650", name="lab_test_delta_days"),
        CheckConstraint("release_hours BETWEEN 0 AND 8760", name="lab_test_release_hours"),
    )

    code: Mapped[str]
    """LOINC, or the laboratory's own where LOINC has none."""
    code_system: Mapped[str] = mapped_column(default="http://loinc.org")
    name: Mapped[str]
    abbreviation: Mapped[str] = mapped_column(default="", server_default=text("''"))
    kind: Mapped[str] = mapped_column(default=AnswerKind.NUMERIC)
    specimen_type: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """http://terminology.hl7.org/CodeSystem/v2-0487, such as BLD, SER, UR."""
    unit: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """UCUM."""
    decimals: Mapped[int | None] = mapped_column(SmallInteger)
    method: Mapped[str] = mapped_column(default="", server_default=text("''"))
    answers: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """Of a coded test: `code`, `display`, and `flag` N, A or AA, or none."""
    plausible_low: Mapped[Decimal | None] = mapped_column(Numeric)
    """What nobody alive is beyond: such a value is not taken."""
    plausible_high: Mapped[Decimal | None] = mapped_column(Numeric)
    reporting_low: Mapped[Decimal | None] = mapped_column(Numeric)
    """What the instrument can tell apart."""
    reporting_high: Mapped[Decimal | None] = mapped_column(Numeric)
    delta_amount: Mapped[Decimal | None] = mapped_column(Numeric)
    """By how much it may differ from the one before, within `delta_days`."""
    delta_share: Mapped[Decimal | None] = mapped_column(Numeric)
    """The same as a share of the one before."""
    delta_days: Mapped[int] = mapped_column(default=30, server_default=text("30"))
    sensitive: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    """Whether somebody talks to the patient before the portal shows it."""
    release_hours: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    """How long after release the portal shows it."""
    active: Mapped[bool] = mapped_column(default=True)
    ranges: Mapped[list[ReferenceRange]] = relationship(
        back_populates="test", order_by="ReferenceRange.id", lazy="raise_on_sql"
    )
    conversions: Mapped[list[UnitConversion]] = relationship(
        back_populates="test", order_by="UnitConversion.id", lazy="raise_on_sql"
    )

    def __str__(self) -> str:
        return self.name


class ReferenceRange(Record):
    """What is normal, and what is critical, for whom and from when (FHIR ObservationDefinition.qualifiedInterval).

    All in the unit of the test; what is None asks nothing, and limits nothing.
    """

    __tablename__ = "reference_range"
    __table_args__ = (
        CheckConstraint(f"since_unit IN {AGE_UNITS} AND until_unit IN {AGE_UNITS}", name="reference_range_age_units"),
        CheckConstraint("(since_age IS NULL) = (since_unit IS NULL)", name="reference_range_since"),
        CheckConstraint("(until_age IS NULL) = (until_unit IS NULL)", name="reference_range_until"),
        CheckConstraint("since_age >= 0 AND until_age > 0", name="reference_range_ages"),
        CheckConstraint(
            f"sex IN ('{SexForClinicalUse.MALE}', '{SexForClinicalUse.FEMALE}')", name="reference_range_sex"
        ),
        CheckConstraint("low <= high", name="reference_range_order"),
        CheckConstraint("critical_low < critical_high", name="reference_range_critical_order"),
        CheckConstraint("critical_low <= low AND critical_high >= high", name="reference_range_critical_outside"),
        CheckConstraint("valid_until >= valid_from", name="reference_range_valid"),
    )

    test_id: Mapped[int] = mapped_column(ForeignKey("lab_test.id"), index=True)
    sex: Mapped[str | None]
    since_age: Mapped[int | None]
    since_unit: Mapped[str | None] = mapped_column(String(2))
    until_age: Mapped[int | None]
    """The first age it is no longer for."""
    until_unit: Mapped[str | None] = mapped_column(String(2))
    pregnant: Mapped[bool | None]
    low: Mapped[Decimal | None] = mapped_column(Numeric)
    high: Mapped[Decimal | None] = mapped_column(Numeric)
    critical_low: Mapped[Decimal | None] = mapped_column(Numeric)
    critical_high: Mapped[Decimal | None] = mapped_column(Numeric)
    valid_from: Mapped[date] = mapped_column(Date)
    valid_until: Mapped[date | None] = mapped_column(Date)
    """The last day it counts."""
    source: Mapped[str] = mapped_column(default="", server_default=text("''"))
    test: Mapped[LabTest] = relationship(back_populates="ranges", lazy="raise_on_sql")


class UnitConversion(Record):
    """By what a value of a test in one unit becomes one in another (UCUM)."""

    __tablename__ = "unit_conversion"
    __table_args__ = (
        UniqueConstraint("test_id", "source", "target", name="unit_conversion_once"),
        CheckConstraint("factor > 0 AND source <> target", name="unit_conversion_factor"),
    )

    test_id: Mapped[int] = mapped_column(ForeignKey("lab_test.id"), index=True)
    source: Mapped[str]
    target: Mapped[str]
    factor: Mapped[Decimal] = mapped_column(Numeric)
    test: Mapped[LabTest] = relationship(back_populates="conversions", lazy="raise_on_sql")


class LabPanel(Record):
    """Tests that are ordered together (FHIR PlanDefinition, order set)."""

    __tablename__ = "lab_panel"
    __table_args__ = (CheckConstraint("length(name) BETWEEN 1 AND 120", name="lab_panel_name_length"),)

    code: Mapped[str] = mapped_column(unique=True)
    code_system: Mapped[str] = mapped_column(default="http://loinc.org")
    name: Mapped[str]
    active: Mapped[bool] = mapped_column(default=True)
    tests: Mapped[list[LabTest]] = relationship(
        secondary="lab_panel_test", order_by="LabPanelTest.position", lazy="raise_on_sql"
    )

    def __str__(self) -> str:
        return self.name


# ---- orders and specimens ----------------------------------------------------------------------------------------


class ServiceRequest(InEncounter, Coded, Record):
    """An order for a test, an image or a referral (FHIR ServiceRequest)."""

    __tablename__ = "service_request"
    __table_args__ = (
        InEncounter.same_patient("service_request"),
        CheckConstraint(check("status", RequestStatus), name="service_request_status"),
        CheckConstraint(check("priority", RequestPriority), name="service_request_priority"),
        CheckConstraint("length(note) <= 1000", name="service_request_note_length"),
        CheckConstraint("test_id IS NULL OR panel_id IS NULL", name="service_request_test_or_panel"),
        UniqueConstraint("id", "patient_id", name="service_request_of_patient"),
        ForeignKeyConstraint(
            ["specimen_id", "patient_id"],
            ["specimen.id", "specimen.patient_id"],
            name="service_request_specimen_same_patient",
            deferrable=True,
        ),
        Index("service_request_newest", "patient_id", "authored_at"),
        Index("service_request_open", "authored_at", postgresql_where=text("status = 'active'")),
    )

    status: Mapped[str] = mapped_column(default=RequestStatus.ACTIVE)
    intent: Mapped[str] = mapped_column(default="order", server_default=text("'order'"))
    priority: Mapped[str] = mapped_column(default=RequestPriority.ROUTINE)
    category: Mapped[str] = mapped_column(default="laboratory")
    """laboratory, imaging or referral."""
    authored_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    requester_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id"), index=True)
    branch_id: Mapped[int | None] = mapped_column(ForeignKey("branch.id"))
    note: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """What whoever does it should know."""
    status_reason: Mapped[str] = mapped_column(default="", server_default=text("''"))
    test_id: Mapped[int | None] = mapped_column(ForeignKey("lab_test.id"))
    panel_id: Mapped[int | None] = mapped_column(ForeignKey("lab_panel.id"))
    specimen_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    """The specimen it is done on, once it was taken."""
    released_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When the last of its results was."""
    requester: Mapped[Practitioner] = relationship(lazy="raise_on_sql")
    branch: Mapped[Branch | None] = relationship(lazy="raise_on_sql")
    test: Mapped[LabTest | None] = relationship(lazy="raise_on_sql")
    panel: Mapped[LabPanel | None] = relationship(lazy="raise_on_sql")
    specimen: Mapped[Specimen | None] = relationship(
        primaryjoin="foreign(ServiceRequest.specimen_id) == Specimen.id", lazy="raise_on_sql", viewonly=True
    )


class Specimen(InPatientCompartment, Record):
    """What was taken of a patient to be looked at (FHIR Specimen)."""

    __tablename__ = "specimen"
    __table_args__ = (
        CheckConstraint(check("status", SpecimenStatus), name="specimen_status"),
        CheckConstraint(check("rejection", SpecimenRejection), name="specimen_rejection"),
        CheckConstraint("(status = 'unsatisfactory') = (rejection IS NOT NULL)", name="specimen_rejected_with_reason"),
        CheckConstraint("received_at >= collected_at", name="specimen_received_after_collected"),
        UniqueConstraint("id", "patient_id", name="specimen_of_patient"),
    )

    accession: Mapped[str] = mapped_column(String(16), unique=True)
    """What its label says: S, a number, a check digit (Luhn)."""
    type_code: Mapped[str]
    """http://terminology.hl7.org/CodeSystem/v2-0487."""
    status: Mapped[str] = mapped_column(default=SpecimenStatus.AVAILABLE)
    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"), index=True)
    collected_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    collector_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    received_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    receiver_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    rejection: Mapped[str | None]
    """http://terminology.hl7.org/CodeSystem/v2-0490."""
    rejection_note: Mapped[str] = mapped_column(default="", server_default=text("''"))
    branch: Mapped[Branch] = relationship(lazy="raise_on_sql")
    requests: Mapped[list[ServiceRequest]] = relationship(
        primaryjoin="Specimen.id == foreign(ServiceRequest.specimen_id)",
        order_by="ServiceRequest.id",
        lazy="raise_on_sql",
        viewonly=True,
    )


# ---- results -----------------------------------------------------------------------------------------------------


class DiagnosticReport(InEncounter, Coded, Record):
    """A set of results released together (FHIR DiagnosticReport)."""

    __tablename__ = "diagnostic_report"
    __table_args__ = (
        InEncounter.same_patient("diagnostic_report"),
        CheckConstraint(check("status", DiagnosticReportStatus), name="diagnostic_report_status"),
        ForeignKeyConstraint(
            ["service_request_id", "patient_id"],
            ["service_request.id", "service_request.patient_id"],
            name="diagnostic_report_request_same_patient",
            deferrable=True,
        ),
    )

    kind_key: ClassVar[str | None] = "category"

    status: Mapped[str]
    category: Mapped[str] = mapped_column(default="")
    effective_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    issued_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    portal_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """Of the laboratory's, from when on the patient sees it; None for never."""
    service_request_id: Mapped[int | None] = mapped_column(BigInteger, index=True)
    """The order it answers."""
    conclusion: Mapped[str | None] = deferred(mapped_column(Text))
    presented_form: Mapped[list[dict[str, Any]]] = deferred(mapped_column(JSONB, default=list))
    """FHIR Attachment: the report as it was written, which may be a note in all but name."""


class ObservationHistory(InPatientCompartment, Protected, Model):
    """A result as it was before it was changed; written by the database alone."""

    __tablename__ = "observation_history"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    observation_id: Mapped[int] = mapped_column(ForeignKey("observation.id"), index=True)
    category: Mapped[str]
    was: Mapped[dict[str, Any]] = mapped_column(JSONB)
    """The columns that were changed, with what they held."""
    until_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text("now()"))

    kind_key: ClassVar[str | None] = "category"

    @classmethod
    def resource(cls) -> str:
        return "Observation"


# ---- who was told ------------------------------------------------------------------------------------------------


class OnCall(Record):
    """Who is asked at a branch when whoever ordered a result does not answer."""

    __tablename__ = "on_call"
    __table_args__ = (
        CheckConstraint("ends_at > starts_at", name="on_call_ends_after_start"),
        Index("on_call_at", "branch_id", "starts_at"),
    )

    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"))
    practitioner_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id"), index=True)
    starts_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    ends_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    branch: Mapped[Branch] = relationship(lazy="raise_on_sql")
    practitioner: Mapped[Practitioner] = relationship(lazy="raise_on_sql")


class CriticalResult(InPatientCompartment, Record):
    """A result somebody must be told of at once, and who has read it back (FHIR Flag)."""

    __tablename__ = "critical_result"
    __table_args__ = (
        CheckConstraint("flag IN ('LL', 'HH', 'AA')", name="critical_result_is_critical"),
        Index(
            "critical_result_once",
            "observation_id",
            "value",
            unique=True,
            postgresql_where=text("acknowledged_at IS NULL"),
        ),
        CheckConstraint(
            "(acknowledged_at IS NULL) = (acknowledged_by_id IS NULL)", name="critical_result_acknowledged_by_somebody"
        ),
        CheckConstraint("acknowledged_at IS NULL OR read_back", name="critical_result_read_back"),
        Index("critical_result_open", "raised_at", postgresql_where=text("acknowledged_at IS NULL")),
    )

    observation_id: Mapped[int] = mapped_column(ForeignKey("observation.id"))
    flag: Mapped[str] = mapped_column(String(2))
    value: Mapped[str]
    """As it was verified, with its unit."""
    raised_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    branch_id: Mapped[int | None] = mapped_column(ForeignKey("branch.id"), index=True)
    target_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"), index=True)
    """Who has to be told now: whoever ordered it, and after a quarter of an hour whoever is on call."""
    escalated_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    acknowledged_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    acknowledged_by_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    read_back: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    """Whether whoever was told repeated the value."""
    observation: Mapped[Observation | None] = relationship(lazy="raise_on_sql")
    """None for whoever may not see it now, as while it is being put right."""
    target: Mapped[Practitioner | None] = relationship(foreign_keys=[target_id], lazy="raise_on_sql")
    acknowledged_by: Mapped[Practitioner | None] = relationship(foreign_keys=[acknowledged_by_id], lazy="raise_on_sql")


class CriticalAttempt(InPatientCompartment, Record):
    """A try to tell somebody of a critical result; never rewritten."""

    __tablename__ = "critical_attempt"
    __table_args__ = (CheckConstraint(check("outcome", AttemptOutcome), name="critical_attempt_outcome"),)

    critical_result_id: Mapped[int] = mapped_column(ForeignKey("critical_result.id"), index=True)
    caller_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    recipient_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    recipient_name: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """Where the recipient has no account."""
    outcome: Mapped[str]
    attempted_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    note: Mapped[str] = mapped_column(default="", server_default=text("''"))
    caller: Mapped[Practitioner | None] = relationship(foreign_keys=[caller_id], lazy="raise_on_sql")
    recipient: Mapped[Practitioner | None] = relationship(foreign_keys=[recipient_id], lazy="raise_on_sql")

    @classmethod
    def resource(cls) -> str:
        return "CriticalResult"


__all__ = [
    "CriticalAttempt",
    "CriticalResult",
    "DiagnosticReport",
    "LabPanel",
    "LabPanelTest",
    "LabTest",
    "ObservationHistory",
    "OnCall",
    "ReferenceRange",
    "ServiceRequest",
    "Specimen",
    "UnitConversion",
    "accession_sequence",
]
