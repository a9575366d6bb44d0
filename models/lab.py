"""The laboratory's reports."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import CheckConstraint, DateTime, Text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, deferred, mapped_column

from models.base import Coded, InEncounter, Record
from models.codes import DiagnosticReportStatus, check


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
