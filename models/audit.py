"""The trail, and the two outboxes: what is to be recorded, and what is to be made known."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Identity,
    Index,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import ARRAY, INET, JSON, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Model, Protected, now


class AuditEvent(Protected, Model):
    """Who did what, to whose record, when, from where and why (FHIR AuditEvent, IHE BALP). Holds no clinical content.

    Partitioned by month of `recorded`; rows come only from the trail's drainer and are never changed.
    """

    __tablename__ = "audit_event"
    __table_args__ = (
        PrimaryKeyConstraint("id", "recorded"),
        CheckConstraint("action IN ('C', 'R', 'U', 'D', 'E')", name="audit_event_action"),
        CheckConstraint("outcome IN (0, 4, 8, 12)", name="audit_event_outcome"),
        Index("audit_event_of_patient", "patient_id", "recorded"),
        Index("audit_event_of_user", "user_id", "recorded"),
        Index("audit_event_when", "recorded", postgresql_using="brin", postgresql_with={"pages_per_range": 32}),
        {"postgresql_partition_by": "RANGE (recorded)"},
    )
    __mapper_args__ = {"primary_key": ["id"]}  # noqa: RUF012  (SQLAlchemy reads it from the class)

    id: Mapped[UUID] = mapped_column(Uuid)
    """UUIDv7, made where the event happened; it decides what a duplicate is."""
    recorded: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    type: Mapped[str]
    """`rest`, or DICOM 110114 for signing in and out."""
    subtype: Mapped[str]
    """http://hl7.org/fhir/restful-interaction, or DICOM 110122 / 110123."""
    action: Mapped[str] = mapped_column(String(1))
    outcome: Mapped[int] = mapped_column(SmallInteger)
    """0 success, 4 refused, 8 failed, 12 broken."""
    user_id: Mapped[int | None]
    agent_name: Mapped[str]
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    branch_id: Mapped[int | None] = mapped_column(BigInteger)
    purpose: Mapped[str]
    """http://terminology.hl7.org/CodeSystem/v3-ActReason"""
    channel: Mapped[str]
    """web, api, job, cli."""
    address: Mapped[str | None] = mapped_column(INET)
    user_agent: Mapped[str | None]
    session_id: Mapped[str | None]
    """A digest of the session's id, which names it without opening it."""
    request_id: Mapped[str | None]
    patient_id: Mapped[int | None] = mapped_column(BigInteger)
    entities: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """What was returned or changed: [{"type": "Observation", "ids": [1, 2], "fields": ["status"]}]."""
    query: Mapped[str | None]
    """For searches: what kind of thing was asked for, without what was typed."""
    reason: Mapped[str | None]
    """For refusals: the name of the error."""


class AuditOutbox(Model):
    """A change's line for the trail, written in the transaction of the change and taken over by the drainer."""

    __tablename__ = "audit_outbox"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    event: Mapped[dict[str, Any]] = mapped_column(JSON)


class AuditQuarantine(Model):
    """What the drainer could not make out: kept as it came, shown, never dropped."""

    __tablename__ = "audit_quarantine"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    source: Mapped[str]
    payload: Mapped[str] = mapped_column(Text)
    reason: Mapped[str]
    found_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)


class EventOutbox(Model):
    """Something that happened, to be handed to the jobs that listen, after the transaction it happened in."""

    __tablename__ = "event_outbox"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(JSONB)
    happened_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)


class PolicyVersion(Model):
    """One row: a number that rises whenever any role, permission or assignment changes, by a trigger."""

    __tablename__ = "policy_version"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)


class DrainState(Model):
    """One row: how far the drainer has come, for the status line and the health check."""

    __tablename__ = "audit_drain"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    drained_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    events: Mapped[int] = mapped_column(BigInteger)


__all__ = [
    "AuditEvent",
    "AuditOutbox",
    "AuditQuarantine",
    "DrainState",
    "EventOutbox",
    "PolicyVersion",
]
