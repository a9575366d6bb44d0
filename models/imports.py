"""What came from outside, word for word."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import ForeignKey, Index, LargeBinary
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, deferred, mapped_column

from models.base import Record


class SourceResource(Record):
    """A FHIR resource as it was received, and the row it became, if it became one.

    Nothing that arrives is dropped: elements and types without a column of their own live on here.
    """

    __tablename__ = "source_resource"
    __table_args__ = (
        Index("source_resource_once", "source", "resource_type", "source_id", unique=True),
        Index("source_resource_of_patient", "patient_id", "resource_type"),
    )
    patient_key: ClassVar[str | None] = "patient_id"

    source: Mapped[str]
    """Who sent it: a system's name or URI, given at import."""
    resource_type: Mapped[str]
    source_id: Mapped[str]
    """The resource's own id at its source."""
    patient_id: Mapped[int | None] = mapped_column(ForeignKey("patient.id"))
    record_id: Mapped[int | None]
    """The row of the table of that resource type; None for types that have no table yet."""
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    """SHA-256 of the canonical JSON, by which a second import knows what it already has."""
    content: Mapped[dict[str, Any]] = deferred(mapped_column(JSONB))
