"""What is ordered of the laboratory and others, and the reports."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, Index, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, deferred, mapped_column, relationship

from models.base import Coded, InEncounter, Record
from models.codes import DiagnosticReportStatus, RequestPriority, RequestStatus, check
from models.organization import Branch, Practitioner


class ServiceRequest(InEncounter, Coded, Record):
    """An order for a test, an image or a referral (FHIR ServiceRequest)."""

    __tablename__ = "service_request"
    __table_args__ = (
        InEncounter.same_patient("service_request"),
        CheckConstraint(check("status", RequestStatus), name="service_request_status"),
        CheckConstraint(check("priority", RequestPriority), name="service_request_priority"),
        CheckConstraint("length(note) <= 1000", name="service_request_note_length"),
        Index("service_request_newest", "patient_id", "authored_at"),
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
    requester: Mapped[Practitioner] = relationship(lazy="raise_on_sql")
    branch: Mapped[Branch | None] = relationship(lazy="raise_on_sql")


class DiagnosticReport(InEncounter, Coded, Record):
    """A set of results released together (FHIR DiagnosticReport)."""

    __tablename__ = "diagnostic_report"
    __table_args__ = (
        InEncounter.same_patient("diagnostic_report"),
        CheckConstraint(check("status", DiagnosticReportStatus), name="diagnostic_report_status"),
    )

    kind_key: ClassVar[str | None] = "category"

    status: Mapped[str]
    category: Mapped[str] = mapped_column(default="")
    effective_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    issued_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    conclusion: Mapped[str | None] = deferred(mapped_column(Text))
    presented_form: Mapped[list[dict[str, Any]]] = deferred(mapped_column(JSONB, default=list))
    """FHIR Attachment: the report as it was written, which may be a note in all but name."""
