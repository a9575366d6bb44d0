"""What was prescribed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, DateTime, ForeignKey
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Coded, InEncounter, Record
from models.codes import MedicationRequestStatus, check
from models.organization import Practitioner


class MedicationRequest(InEncounter, Coded, Record):
    """An order for a medicine (FHIR MedicationRequest, RxNorm)."""

    __tablename__ = "medication_request"
    __table_args__ = (
        InEncounter.same_patient("medication_request"),
        CheckConstraint(check("status", MedicationRequestStatus), name="medication_request_status"),
    )

    status: Mapped[str]
    intent: Mapped[str] = mapped_column(default="order")
    authored_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    requester_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"), index=True)
    dosage_instruction: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """FHIR Dosage."""
    reason: Mapped[str] = mapped_column(default="")
    requester: Mapped[Practitioner | None] = relationship(lazy="raise_on_sql")
