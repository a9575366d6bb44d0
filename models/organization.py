"""The chain, its branches, the people who work there and the rooms they work in."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship
from sqlalchemy.types import String, Text

from models.base import Model, Record


class Organization(Record):
    """The chain, one of its branches, or an outside organization (FHIR Organization)."""

    __tablename__ = "organization"
    __table_args__ = (CheckConstraint("length(name) BETWEEN 1 AND 200", name="organization_name_length"),)

    name: Mapped[str]
    active: Mapped[bool] = mapped_column(default=True)
    part_of_id: Mapped[int | None] = mapped_column(ForeignKey("organization.id"), index=True)
    telecom: Mapped[list[dict[str, str]]] = mapped_column(JSONB, default=list)
    address: Mapped[list[dict[str, object]]] = mapped_column(JSONB, default=list)

    def __str__(self) -> str:
        return self.name


class Branch(Record):
    """A hospital of the chain: an organization with a clock, a currency and languages of its own."""

    __tablename__ = "branch"
    __table_args__ = (CheckConstraint("code ~ '^[A-Z0-9]{2,12}$'", name="branch_code_shape"),)

    organization_id: Mapped[int] = mapped_column(ForeignKey("organization.id"), unique=True)
    code: Mapped[str] = mapped_column(String(12), unique=True)
    time_zone: Mapped[str]
    """IANA name, such as Europe/Madrid."""
    currency: Mapped[str] = mapped_column(String(3))
    """ISO 4217."""
    languages: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """BCP 47, the first one the branch's own."""
    active: Mapped[bool] = mapped_column(default=True)
    organization: Mapped[Organization] = relationship(lazy="joined", innerjoin=True)

    def __str__(self) -> str:
        return self.organization.name


class PractitionerBranch(Model):
    """A further branch a practitioner works at."""

    __tablename__ = "practitioner_branch"

    practitioner_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id", ondelete="CASCADE"), primary_key=True)
    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"), primary_key=True)


class Practitioner(Record):
    """A member of staff, or an outside clinician met in imported records (FHIR Practitioner)."""

    __tablename__ = "practitioner"
    __table_args__ = (
        Index("practitioner_name", "family", "given"),
        CheckConstraint("user_id IS NULL OR home_branch_id IS NOT NULL", name="practitioner_user_has_home"),
        CheckConstraint("supervised_by_id <> id", name="practitioner_supervised_by_another"),
    )

    user_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"), unique=True)
    """The account that signs in as this person; None for people outside the chain."""
    family: Mapped[str]
    given: Mapped[str] = mapped_column(default="")
    prefix: Mapped[str] = mapped_column(default="")
    gender: Mapped[str | None]
    qualification: Mapped[str] = mapped_column(default="")
    """What the person is called on screen, such as Cardiologist."""
    identifier: Mapped[list[dict[str, str]]] = mapped_column(JSONB, default=list)
    telecom: Mapped[list[dict[str, str]]] = mapped_column(JSONB, default=list)
    active: Mapped[bool] = mapped_column(default=True)
    home_branch_id: Mapped[int | None] = mapped_column(ForeignKey("branch.id"), index=True)
    supervised_by_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    """Who signs what this person writes as well, while they are in training."""
    home_branch: Mapped[Branch | None] = relationship(lazy="raise_on_sql")
    branches: Mapped[list[Branch]] = relationship(secondary="practitioner_branch", lazy="raise_on_sql")

    @property
    def name(self) -> str:
        """Prefix, given and family name, as spoken."""
        return " ".join(part for part in (self.prefix, self.given, self.family) if part)

    def __str__(self) -> str:
        return self.name


class Room(Record):
    """A place in a branch where patients are seen (FHIR Location)."""

    __tablename__ = "room"
    __table_args__ = (
        UniqueConstraint("branch_id", "name"),
        UniqueConstraint("id", "branch_id", name="room_of_branch"),
        CheckConstraint("length(name) BETWEEN 1 AND 80", name="room_name_length"),
        CheckConstraint("capacity > 0", name="room_capacity_positive"),
    )

    branch_id: Mapped[int] = mapped_column(ForeignKey("branch.id"), index=True)
    name: Mapped[str]
    kind: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """What it is for, such as Consulting room or Theatre."""
    capacity: Mapped[int] = mapped_column(default=1)
    active: Mapped[bool] = mapped_column(default=True)
    branch: Mapped[Branch] = relationship(lazy="joined", innerjoin=True)

    def __str__(self) -> str:
        return self.name
