"""HL7 v2 messages as they came, what became of each result in them, and what somebody has to decide."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from flask_appbuilder.security.sqla.models import User
from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, LargeBinary, SmallInteger, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, deferred, mapped_column, relationship

from models.base import Record
from models.clinical import Observation
from models.codes import Hl7Outcome, Hl7State, ProposalKind, ProposalState, check
from models.patients import Patient


class Hl7Message(Record):
    """A message from another system, kept as it came; of a patient once it is known whose it is."""

    __tablename__ = "hl7_message"
    __table_args__ = (
        CheckConstraint(check("state", Hl7State), name="hl7_message_state"),
        CheckConstraint("acknowledgement IN ('AA', 'AE', 'AR')", name="hl7_message_acknowledgement"),
        Index("hl7_message_once", "sender", "control_id", unique=True, postgresql_where=text("control_id <> ''")),
        Index("hl7_message_unnumbered", "digest", postgresql_where=text("control_id = ''")),
        Index("hl7_message_waiting", "received_at", postgresql_where=text("state IN ('unmatched', 'dead')")),
    )
    patient_key: ClassVar[str | None] = "patient_id"

    sender: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """MSH-3 and MSH-4."""
    control_id: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """MSH-10."""
    kind: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """MSH-9: ORU^R01, ADT^A40."""
    state: Mapped[str]
    acknowledgement: Mapped[str]
    """What it was answered with."""
    error: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """What is wrong with it, without what it holds."""
    received_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    """SHA-256 of the bytes that came."""
    raw: Mapped[bytes] = deferred(mapped_column(LargeBinary))
    named: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    """Who it says it is about: identifiers, name, birth date, sex; to match it by hand."""
    patient_id: Mapped[int | None] = mapped_column(ForeignKey("patient.id"), index=True)
    decided_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When somebody matched it, tried it again or dismissed it, the last time."""
    decided_by_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    decision: Mapped[str] = mapped_column(default="", server_default=text("''"))
    patient: Mapped[Patient | None] = relationship(lazy="raise_on_sql")
    decided_by: Mapped[User | None] = relationship(User, lazy="raise_on_sql")
    results: Mapped[list[Hl7Result]] = relationship(
        back_populates="message", order_by="Hl7Result.position", lazy="raise_on_sql"
    )


class Hl7Result(Record):
    """An OBX of a message, and what became of it: stored, waiting, or refused with a reason. None is dropped."""

    __tablename__ = "hl7_result"
    __table_args__ = (
        CheckConstraint(check("outcome", Hl7Outcome), name="hl7_result_outcome"),
        CheckConstraint("(outcome = 'stored') = (observation_id IS NOT NULL)", name="hl7_result_stored_somewhere"),
        CheckConstraint("outcome <> 'refused' OR reason <> ''", name="hl7_result_refused_with_reason"),
        Index("hl7_result_of_message", "message_id", "position", unique=True),
        Index("hl7_result_same", "patient_id", "order_number", "code", postgresql_where=text("outcome = 'stored'")),
    )
    patient_key: ClassVar[str | None] = "patient_id"

    message_id: Mapped[int] = mapped_column(ForeignKey("hl7_message.id"))
    position: Mapped[int] = mapped_column(SmallInteger)
    """Which OBX of the message, from 1."""
    order_number: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """OBR-3, or OBR-2: with code and sub_id what tells a result from others of the patient."""
    code: Mapped[str] = mapped_column(default="", server_default=text("''"))
    sub_id: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """OBX-4."""
    outcome: Mapped[str]
    reason: Mapped[str] = mapped_column(default="", server_default=text("''"))
    observation_id: Mapped[int | None] = mapped_column(ForeignKey("observation.id"), index=True)
    patient_id: Mapped[int | None] = mapped_column(BigInteger, ForeignKey("patient.id"), index=True)
    message: Mapped[Hl7Message] = relationship(back_populates="results", lazy="raise_on_sql")
    observation: Mapped[Observation | None] = relationship(lazy="raise_on_sql")

    @classmethod
    def resource(cls) -> str:
        return "Hl7Message"


class PatientProposal(Record):
    """A change of who somebody is, or that two are one, as another system said it; somebody decides."""

    __tablename__ = "patient_proposal"
    __table_args__ = (
        CheckConstraint(check("kind", ProposalKind), name="patient_proposal_kind"),
        CheckConstraint(check("state", ProposalState), name="patient_proposal_state"),
        CheckConstraint("(state = 'open') = (decided_at IS NULL)", name="patient_proposal_decided"),
        Index("patient_proposal_open", "created_at", postgresql_where=text("state = 'open'")),
    )
    patient_key: ClassVar[str | None] = "patient_id"

    message_id: Mapped[int] = mapped_column(ForeignKey("hl7_message.id"), index=True)
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(default=ProposalState.OPEN)
    patient_id: Mapped[int | None] = mapped_column(ForeignKey("patient.id"), index=True)
    """Whom it is about, where that is known."""
    other_id: Mapped[int | None] = mapped_column(ForeignKey("patient.id"), index=True)
    """Of a merge, the record that is to be given up."""
    wanted: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    decided_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    decided_by_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    decision: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """What was taken over, or why it was dismissed."""
    message: Mapped[Hl7Message] = relationship(lazy="raise_on_sql")
    decided_by: Mapped[User | None] = relationship(User, lazy="raise_on_sql")
    patient: Mapped[Patient | None] = relationship(foreign_keys=[patient_id], lazy="raise_on_sql")
    other: Mapped[Patient | None] = relationship(foreign_keys=[other_id], lazy="raise_on_sql")


__all__ = ["Hl7Message", "Hl7Result", "PatientProposal"]
