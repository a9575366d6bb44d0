"""Access: what a role sees of a resource, what an account signs in with, and who broke the glass."""

from __future__ import annotations

from datetime import datetime

from flask_appbuilder.security.sqla.models import Role, User
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import InPatientCompartment, Model, Record, now
from models.codes import EmergencyReason, Finding, RowScope, check


class RoleGrant(Model):
    """Which rows of one resource a role sees, and which of their fields not. What it may do stands in FAB's tables."""

    __tablename__ = "role_grant"
    __table_args__ = (CheckConstraint(check("rows", RowScope), name="role_grant_rows"),)

    role_id: Mapped[int] = mapped_column(ForeignKey("ab_role.id", ondelete="CASCADE"), primary_key=True)
    resource: Mapped[str] = mapped_column(String(64), primary_key=True)
    rows: Mapped[str] = mapped_column(String(16), default=RowScope.CHAIN)
    kinds: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list)
    """Only rows of these kinds, by the resource's `kind_key`; empty for every kind."""
    masked: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list)
    role: Mapped[Role] = relationship(Role, lazy="joined", innerjoin=True)


class RoleSetting(Model):
    """What a role asks of those who hold it, and whether it is still in use."""

    __tablename__ = "role_setting"

    role_id: Mapped[int] = mapped_column(ForeignKey("ab_role.id", ondelete="CASCADE"), primary_key=True)
    second_factor: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    """Whoever holds the role signs in with a code as well."""
    retired_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """A retired role grants nothing to anybody."""
    role: Mapped[Role] = relationship(Role, lazy="joined", innerjoin=True)


class Credential(Model):
    """What an account signs in with besides its password; made with the account by a trigger."""

    __tablename__ = "credential"

    user_id: Mapped[int] = mapped_column(ForeignKey("ab_user.id", ondelete="CASCADE"), primary_key=True)
    generation: Mapped[int] = mapped_column(Integer, default=1, server_default=text("1"))
    """Sessions and tokens of an earlier generation have ended. A trigger raises it with password, `active`, roles."""
    totp_secret: Mapped[bytes | None] = mapped_column(LargeBinary)
    """RFC 6238 secret, encrypted with a key that is not in the database."""
    totp_confirmed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """When a first code proved the secret; until then it counts for nothing."""
    totp_step: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    """The time step of the last code taken: none is taken twice."""
    recovery_codes: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list, server_default=text("'{}'"))
    """SHA-256 of the codes not used yet."""
    password_changed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class EmergencyAccess(InPatientCompartment, Record):
    """A clinician broke the glass: one patient, one hour, with a reason, to be reviewed (purpose of use `BTG`)."""

    __tablename__ = "emergency_access"
    __table_args__ = (
        CheckConstraint(check("reason", EmergencyReason), name="emergency_access_reason"),
        CheckConstraint("length(trim(justification)) BETWEEN 15 AND 1000", name="emergency_access_justified"),
        CheckConstraint(
            "ends_at > started_at AND ends_at <= started_at + interval '60 minutes'", name="emergency_access_an_hour"
        ),
        CheckConstraint(check("finding", Finding), name="emergency_access_finding"),
        CheckConstraint(
            "(reviewed_at IS NULL) = (reviewed_by_id IS NULL) AND (reviewed_at IS NULL) = (finding IS NULL)",
            name="emergency_access_review_whole",
        ),
        CheckConstraint("reviewed_by_id <> user_id", name="emergency_access_reviewed_by_another"),
        Index("emergency_access_now", "user_id", "ends_at"),
        Index("emergency_access_waiting", "started_at", postgresql_where=text("reviewed_at IS NULL")),
    )

    user_id: Mapped[int] = mapped_column(ForeignKey("ab_user.id"))
    reason: Mapped[str] = mapped_column(String(16))
    """http://terminology.hl7.org/CodeSystem/v3-ActReason"""
    justification: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    ends_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    reviewed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    reviewed_by_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    finding: Mapped[str | None] = mapped_column(String(16))
    review_note: Mapped[str] = mapped_column(Text, default="")
    escalated_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    user: Mapped[User] = relationship(User, foreign_keys=[user_id], lazy="raise_on_sql")
    reviewed_by: Mapped[User | None] = relationship(User, foreign_keys=[reviewed_by_id], lazy="raise_on_sql")


__all__ = ["Credential", "EmergencyAccess", "RoleGrant", "RoleSetting"]
