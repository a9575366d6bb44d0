"""The patient index of the whole chain."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, ClassVar

from flask_appbuilder.security.sqla.models import User
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    Date,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    Numeric,
    Sequence,
    SmallInteger,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, deferred, mapped_column, relationship
from sqlalchemy.types import Text

from models.base import InPatientCompartment, Model, Record, metadata, now
from models.codes import AdministrativeGender, IdentifierUse, LinkType, SexForClinicalUse, check
from models.organization import Branch, Organization

mrn_sequence = Sequence("patient_mrn", start=1_000_001, metadata=metadata)
"""Where chain-wide numbers come from; a number once drawn never comes again."""


class Patient(Record):
    """A person the chain cares for (FHIR Patient), known by one number at every branch."""

    __tablename__ = "patient"
    __table_args__ = (
        CheckConstraint(check("gender", AdministrativeGender), name="patient_gender"),
        CheckConstraint(check("sex_for_clinical_use", SexForClinicalUse), name="patient_sex_for_clinical_use"),
        CheckConstraint("length(family) <= 200 AND length(given) <= 200", name="patient_name_length"),
        CheckConstraint("family <> '' OR given <> ''", name="patient_has_a_name"),
        CheckConstraint("birth_precision IN ('day', 'month', 'year')", name="patient_birth_precision"),
        CheckConstraint("birth_date > '1850-01-01'", name="patient_birth_date_believable"),
        CheckConstraint("multiple_birth_order BETWEEN 1 AND 12", name="patient_multiple_birth_order"),
        Index("patient_by_name", "search_name", postgresql_using="gin", postgresql_ops={"search_name": "gin_trgm_ops"}),
        Index(
            "patient_by_phone", "search_phone", postgresql_using="gin", postgresql_ops={"search_phone": "gin_trgm_ops"}
        ),
        Index("patient_by_birth_date", "birth_date"),
        Index("patient_by_registration", "created_at"),
        Index("patient_in_order", "sort_name", "id"),
        CheckConstraint(
            "replaced_by_id IS NULL OR replaced_by_id <> id AND NOT active", name="patient_replaced_by_another"
        ),
        Index("patient_replaced", "replaced_by_id", postgresql_where=text("replaced_by_id IS NOT NULL")),
    )
    patient_key: ClassVar[str | None] = "id"

    mrn: Mapped[str] = mapped_column(String(16), unique=True)
    """The chain-wide medical record number: W, a number, a check digit (Luhn)."""
    family: Mapped[str] = mapped_column(default="")
    second_family: Mapped[str] = mapped_column(default="")
    given: Mapped[str] = mapped_column(default="")
    prefix: Mapped[str] = mapped_column(default="")
    name_in_use: Mapped[str] = mapped_column(default="")
    """What the person wants to be called."""
    other_names: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """Further FHIR HumanName: maiden, former, in another script."""
    birth_date: Mapped[date | None] = mapped_column(Date)
    """The first day of what is known."""
    birth_precision: Mapped[str] = mapped_column(String(5), default="day")
    """How much of birth_date is known: day, month or year."""
    gender: Mapped[str] = mapped_column(default=AdministrativeGender.UNKNOWN)
    sex_for_clinical_use: Mapped[str] = mapped_column(default=SexForClinicalUse.UNKNOWN)
    multiple_birth_order: Mapped[int | None] = mapped_column(SmallInteger)
    deceased_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    deceased: Mapped[bool] = mapped_column(default=False)
    active: Mapped[bool] = mapped_column(default=True)
    temporary: Mapped[bool] = mapped_column(default=False)
    """Registered without a known identity, to be settled later."""
    confidential: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    """Every look into the record is brought before the privacy officer (FHIR meta.security R, restricted)."""
    telecom: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """FHIR ContactPoint; phone values in E.164."""
    address: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """FHIR Address."""
    contact: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, default=list)
    """Next of kin: name, relationship, telecom (FHIR Patient.contact)."""
    languages: Mapped[list[str]] = mapped_column(ARRAY(Text), default=list)
    """BCP 47, the preferred one first."""
    marital_status: Mapped[str | None]
    photo: Mapped[bytes | None] = deferred(mapped_column(LargeBinary), raiseload=False)
    no_known_allergies: Mapped[bool | None] = mapped_column(default=None)
    """True where somebody asked and there are none; None where nobody asked."""
    user_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"), unique=True)
    """The portal account of this patient."""
    registered_at_id: Mapped[int | None] = mapped_column(ForeignKey("branch.id"))
    last_visit_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    last_visit_place_id: Mapped[int | None] = mapped_column(ForeignKey("organization.id"))
    """Kept by a trigger on encounter, so that lists need no look into the chart."""
    replaced_by_id: Mapped[int | None] = mapped_column(ForeignKey("patient.id"))
    """The record this one was merged into: nothing is written here any more. Only wb_merge_patients sets it."""

    search_name: Mapped[str] = deferred(
        mapped_column(
            Text,
            Computed(
                "' ' || wb_names(family, second_family, given, name_in_use, other_names) || ' ' || lower(mrn)",
                persisted=True,
            ),
        )
    )
    search_phone: Mapped[str] = deferred(mapped_column(Text, Computed("wb_phones(telecom)", persisted=True)))
    sort_name: Mapped[str] = deferred(
        mapped_column(Text, Computed("wb_fold(family || ' ' || second_family || ' ' || given)", persisted=True))
    )

    identifiers: Mapped[list[PatientIdentifier]] = relationship(
        back_populates="patient", lazy="raise_on_sql", cascade="save-update, merge", order_by="PatientIdentifier.id"
    )
    registered_at: Mapped[Branch | None] = relationship(lazy="raise_on_sql")
    last_visit_place: Mapped[Organization | None] = relationship(lazy="raise_on_sql")

    @property
    def name(self) -> str:
        """Family names first, as on a wristband: MEDINA would be found under M."""
        family = " ".join(part for part in (self.family, self.second_family) if part)
        given = " ".join(part for part in (self.prefix, self.given) if part)
        return ", ".join(part for part in (family, given) if part)

    def __str__(self) -> str:
        return self.name


class PatientIdentifier(InPatientCompartment, Record):
    """A number some system or branch knows a patient by (FHIR Identifier)."""

    __tablename__ = "patient_identifier"
    __table_args__ = (
        CheckConstraint(check("use", IdentifierUse), name="patient_identifier_use"),
        CheckConstraint("length(value) BETWEEN 1 AND 100", name="patient_identifier_value_length"),
        Index("patient_identifier_once", "system", "value", unique=True, postgresql_where=text("use <> 'old'")),
        Index("patient_identifier_value", text("upper(value)")),
    )

    system: Mapped[str]
    """Who gave the number: a URI, or a short name of our own such as `passport`."""
    value: Mapped[str]
    use: Mapped[str] = mapped_column(default=IdentifierUse.SECONDARY)
    type_code: Mapped[str | None]
    """http://terminology.hl7.org/CodeSystem/v2-0203, such as MR, SS, PPN."""
    patient: Mapped[Patient] = relationship(back_populates="identifiers", lazy="raise_on_sql")

    def __str__(self) -> str:
        return self.value


class PatientLink(InPatientCompartment, Record):
    """Two records that may be, or are, of one person (FHIR Patient.link)."""

    __tablename__ = "patient_link"
    __table_args__ = (
        UniqueConstraint("patient_id", "other_id", "type", name="patient_link_once"),
        CheckConstraint(check("type", LinkType), name="patient_link_type"),
        CheckConstraint("patient_id <> other_id", name="patient_link_two"),
    )

    other_id: Mapped[int] = mapped_column(ForeignKey("patient.id"), index=True)
    type: Mapped[str] = mapped_column(default=LinkType.SEEALSO)
    score: Mapped[float] = mapped_column(Numeric(4, 3, asdecimal=False))
    """From 0 to 1: how alike the two are."""
    reasons: Mapped[list[str]] = mapped_column(ARRAY(Text))
    """What is alike: name, birth date, phone, identifier."""
    reviewed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    other: Mapped[Patient] = relationship(foreign_keys=[other_id], lazy="raise_on_sql")


class PatientMerge(Record):
    """Two records of one person became one: the loser's rows are the survivor's, and can go back until `undo_until`.

    The database lets it be undone once and changes nothing else of it.
    """

    __tablename__ = "patient_merge"
    __table_args__ = (
        CheckConstraint("survivor_id <> loser_id", name="patient_merge_two"),
        CheckConstraint("length(trim(reason)) BETWEEN 3 AND 500", name="patient_merge_reason"),
        CheckConstraint("undone_at <= undo_until", name="patient_merge_undone_in_time"),
        CheckConstraint("(undone_at IS NULL) = (undone_reason = '')", name="patient_merge_undone_with_reason"),
        Index("patient_merge_of_survivor", "survivor_id"),
        Index("patient_merge_once", "loser_id", unique=True, postgresql_where=text("undone_at IS NULL")),
        Index("patient_merge_newest", "merged_at"),
    )
    patient_key: ClassVar[str | None] = "survivor_id"

    survivor_id: Mapped[int] = mapped_column(ForeignKey("patient.id"))
    loser_id: Mapped[int] = mapped_column(ForeignKey("patient.id"))
    merged_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    merged_by_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    reason: Mapped[str] = mapped_column(Text)
    undo_until: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    loser_was_active: Mapped[bool]
    account_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    """The loser's portal account, which goes to the survivor."""
    taken: Mapped[dict[str, Any]] = deferred(mapped_column(JSONB, default=dict, nullable=False))
    """What the survivor took over of the loser's demographics: each column, and what the survivor had before."""
    undone_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    undone_by_id: Mapped[int | None] = mapped_column(ForeignKey("ab_user.id"))
    undone_reason: Mapped[str] = mapped_column(Text, default="", server_default=text("''"))
    survivor: Mapped[Patient] = relationship(foreign_keys=[survivor_id], lazy="raise_on_sql")
    loser: Mapped[Patient] = relationship(foreign_keys=[loser_id], lazy="raise_on_sql")
    merged_by: Mapped[User | None] = relationship(User, foreign_keys=[merged_by_id], lazy="raise_on_sql")
    undone_by: Mapped[User | None] = relationship(User, foreign_keys=[undone_by_id], lazy="raise_on_sql")


class PatientMergeRow(Model):
    """A row that a merge moved to the survivor or made; written by the database, changed by nobody."""

    __tablename__ = "patient_merge_row"

    merge_id: Mapped[int] = mapped_column(ForeignKey("patient_merge.id"), primary_key=True)
    table_name: Mapped[str] = mapped_column(Text, primary_key=True)
    row_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    followed: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    """Written since the merge, and gone back with the row it hangs on when that was undone."""


class NameToken(Model):
    """A word of some patient's name; kept by a trigger, and searched for what a mistyped word may have meant."""

    __tablename__ = "name_token"
    __table_args__ = (
        Index("name_token_alike", "token", postgresql_using="gin", postgresql_ops={"token": "gin_trgm_ops"}),
    )

    token: Mapped[str] = mapped_column(Text, primary_key=True)


__all__ = [
    "NameToken",
    "Patient",
    "PatientIdentifier",
    "PatientLink",
    "PatientMerge",
    "PatientMergeRow",
    "mrn_sequence",
]
