"""The trail, and the two outboxes: what is to be recorded, and what is to be made known."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, ClassVar
from uuid import UUID

from flask_appbuilder.security.sqla.models import User
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, INET, INT8MULTIRANGE, JSON, JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Model, Protected, now
from models.codes import Explanation, UnusualReason, check


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
        Index("audit_event_in_batch", "batch_seq", postgresql_using="brin", postgresql_with={"pages_per_range": 32}),
        Index("audit_event_of_emergency", "recorded", postgresql_where=text("purpose = 'BTG'")),
        Index("audit_event_refused", "recorded", postgresql_where=text("outcome > 0")),
        {"postgresql_partition_by": "RANGE (recorded)"},
    )

    id: Mapped[UUID] = mapped_column(Uuid)
    """UUIDv7, made where the event happened; it decides what a duplicate is."""
    recorded: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    type: Mapped[str]
    """`rest`, or DICOM 110114 for signing in and out."""
    subtype: Mapped[str]
    """http://hl7.org/fhir/restful-interaction, DICOM 110122 / 110123, or a word of ours such as export or view-as."""
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
    """For refusals the name of the error, for changes of roles what was said to be the reason."""
    batch_seq: Mapped[int] = mapped_column(BigInteger)
    """The batch it came in; 0 for lines from before there were any."""
    leaf_no: Mapped[int]
    """Its place in the batch, from 0."""


class AuditAstray(Model):
    """Lines of no month there is a partition for. Read from the view `audit_astray`; nothing writes it."""

    __tablename__ = "audit_astray"
    __table_args__ = {"info": {"view": True}}  # noqa: RUF012  (SQLAlchemy reads it from the class)

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)


class AuditBatch(Model):
    """Lines that were stored together, and the trail's Merkle tree as it was with them (RFC 6962, app.tree)."""

    __tablename__ = "audit_batch"
    __table_args__ = (
        CheckConstraint("n > 0 AND length(leaves) = 32 * n", name="audit_batch_leaves"),
        Index("audit_batch_stored", "stored_at"),
    )

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    stored_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text("now()"))
    n: Mapped[int]
    tree_size: Mapped[int] = mapped_column(BigInteger, unique=True)
    """Leaves of the whole tree, this batch's included."""
    leaves: Mapped[bytes] = mapped_column(LargeBinary)
    """Hashes of its lines, one after the other."""
    frontier: Mapped[bytes] = mapped_column(LargeBinary)
    """The peaks of the tree, from which the next batch goes on."""
    note: Mapped[str] = mapped_column(Text)
    """The signed checkpoint (C2SP tlog-checkpoint)."""


class AuditArchive(Model):
    """A month that was written to a file, checked, and detached from the table."""

    __tablename__ = "audit_archive"

    month: Mapped[date] = mapped_column(Date, primary_key=True)
    """Its first day, in UTC."""
    file: Mapped[str]
    sha256: Mapped[bytes] = mapped_column(LargeBinary)
    """Of the file as it was written."""
    lines: Mapped[int] = mapped_column(BigInteger)
    leaves: Mapped[Any] = mapped_column(INT8MULTIRANGE)
    """Their places in the tree, which are no longer looked for in the table."""
    archived_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text("now()"))
    archived_by: Mapped[str]
    note: Mapped[str] = mapped_column(Text)
    """All of this but when and by whom, signed with the key of the checkpoints (app.tree.text_of_archive)."""


class AuditMonth(Model):
    """A month of the trail that is in the table. Read from the view `audit_month`; nothing writes it."""

    __tablename__ = "audit_month"
    __table_args__ = {"info": {"view": True}}  # noqa: RUF012  (SQLAlchemy reads it from the class)

    month: Mapped[date] = mapped_column(Date, primary_key=True)
    """Its first day, in UTC."""


class AuditCheck(Model):
    """A look through the trail, whole or since an instant: how far it has come, and what it came to."""

    __tablename__ = "audit_check"
    __table_args__ = (
        CheckConstraint("whole IS NULL OR finished_at IS NOT NULL", name="audit_check_ends_with_a_finding"),
        Index(
            "audit_check_one", text("(finished_at IS NULL)"), unique=True, postgresql_where=text("finished_at IS NULL")
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    asked_by_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    """None where the clock asked."""
    asked_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    since: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """Only what was stored from then on; None for all of it."""
    beat_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """The last sign of life of whoever is at it."""
    done: Mapped[int] = mapped_column(BigInteger, default=0)
    """Lines looked at."""
    total: Mapped[int] = mapped_column(BigInteger, default=0)
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    whole: Mapped[bool | None]
    """None where it did not come to its end."""
    sentence: Mapped[str] = mapped_column(Text, default="")
    """The first thing that does not fit, or why there is no finding."""
    asked_by: Mapped[User | None] = relationship(User, lazy="raise_on_sql")


class UnusualAccess(Protected, Model):
    """Looks of one person into one record on one day that are worth a question, for one reason."""

    __tablename__ = "unusual_access"
    __table_args__ = (
        UniqueConstraint(
            "user_id", "patient_id", "day", "reason", name="unusual_access_once", postgresql_nulls_not_distinct=True
        ),
        CheckConstraint(check("reason", UnusualReason), name="unusual_access_reason"),
        CheckConstraint("(reason = 'volume') = (patient_id IS NULL)", name="unusual_access_whose"),
        CheckConstraint(check("finding", Explanation), name="unusual_access_finding"),
        CheckConstraint(
            "(reviewed_at IS NULL) = (reviewed_by_id IS NULL) AND (reviewed_at IS NULL) = (finding IS NULL)",
            name="unusual_access_review_whole",
        ),
        CheckConstraint("reviewed_by_id <> user_id", name="unusual_access_reviewed_by_another"),
        Index("unusual_access_waiting", "user_id", "day", postgresql_where=text("reviewed_at IS NULL")),
        Index("unusual_access_reviewed", "reviewed_at", postgresql_where=text("reviewed_at IS NOT NULL")),
    )
    patient_key: ClassVar[str | None] = "patient_id"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("ab_user.id"))
    patient_id: Mapped[int | None] = mapped_column(ForeignKey("patient.id"))
    """None where it is the number of patients that is unusual."""
    day: Mapped[date] = mapped_column(Date)
    """By the clock of the branch the person worked at."""
    reason: Mapped[str] = mapped_column(String(16))
    lines: Mapped[int]
    """Lines of the trail it is about."""
    first_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    last_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    seen: Mapped[dict[str, int]] = mapped_column(JSONB)
    """Resource -> how many rows of it were shown."""
    patients: Mapped[int | None]
    """For the number of patients: how many there were that day."""
    usual: Mapped[float | None]
    """For the number of patients: the median of the person's last working days."""
    found_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=text("now()"))
    reviewed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    reviewed_by_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    finding: Mapped[str | None] = mapped_column(String(16))
    review_note: Mapped[str] = mapped_column(Text, default="", server_default=text("''"))
    user: Mapped[User] = relationship(User, foreign_keys=[user_id], lazy="raise_on_sql")
    reviewed_by: Mapped[User | None] = relationship(User, foreign_keys=[reviewed_by_id], lazy="raise_on_sql")


class UnusualDay(Model):
    """How many patients' records a person opened on a day: what is usual for them is reckoned from these."""

    __tablename__ = "unusual_day"

    user_id: Mapped[int] = mapped_column(ForeignKey("ab_user.id", ondelete="CASCADE"), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    patients: Mapped[int]


class UnusualScan(Model):
    """One row: up to which batch the trail was looked through for unusual access."""

    __tablename__ = "unusual_scan"

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True)
    batch: Mapped[int] = mapped_column(BigInteger)
    """Batches only ever follow one another, whatever the clocks in their lines say, so a late line is a new one."""
    scanned_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class AuditOutbox(Model):
    """A change's line for the trail, written in the transaction of the change and taken over by the drainer."""

    __tablename__ = "audit_outbox"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    event: Mapped[dict[str, Any]] = mapped_column(JSON)


class AuditQuarantine(Model):
    """What the drainer could not make out: kept as it came, shown, never dropped."""

    __tablename__ = "audit_quarantine"
    __table_args__ = (Index("audit_quarantine_source", "source"),)

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
    "AuditArchive",
    "AuditAstray",
    "AuditBatch",
    "AuditCheck",
    "AuditEvent",
    "AuditMonth",
    "AuditOutbox",
    "AuditQuarantine",
    "DrainState",
    "EventOutbox",
    "PolicyVersion",
    "UnusualAccess",
    "UnusualDay",
    "UnusualScan",
]
