"""What clinicians write: templates, notes, their signatures; a signed note is never changed again."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import Mapped, deferred, mapped_column, relationship

from models.base import InEncounter, Record
from models.codes import CompositionStatus, Confidentiality, NoteKind, check
from models.organization import Branch, Practitioner


class NoteTemplate(Record):
    """The shape of a kind of note, as JSON Schema; an edition that has been used never changes."""

    __tablename__ = "note_template"
    __table_args__ = (
        UniqueConstraint("key", "edition", name="note_template_edition"),
        Index("note_template_current", "key", unique=True, postgresql_where=text("active")),
        CheckConstraint(check("kind", NoteKind), name="note_template_kind"),
        CheckConstraint("length(name) BETWEEN 1 AND 80", name="note_template_name_length"),
        CheckConstraint("edition > 0", name="note_template_edition_positive"),
    )

    key: Mapped[str]
    """What all editions of one template have in common."""
    edition: Mapped[int]
    name: Mapped[str]
    kind: Mapped[str]
    schema: Mapped[dict[str, Any]] = mapped_column(JSONB)
    """JSON Schema 2020-12, of the part the form can show."""
    active: Mapped[bool] = mapped_column(default=True)
    """Whether new notes are written with this edition; one of a key at most."""

    def __str__(self) -> str:
        return self.name


class ClinicalNote(InEncounter, Record):
    """What a clinician wrote about a patient (FHIR Composition), as JSON of a template's shape.

    A draft until it is signed; from then on the database lets nothing be changed but to co-sign or to withdraw it.
    """

    __tablename__ = "clinical_note"
    __table_args__ = (
        InEncounter.same_patient("clinical_note"),
        CheckConstraint(check("status", CompositionStatus), name="clinical_note_status"),
        CheckConstraint(check("confidentiality", Confidentiality), name="clinical_note_confidentiality"),
        CheckConstraint(
            "status NOT IN ('final', 'amended')"
            " OR signed_at IS NOT NULL AND digest IS NOT NULL AND signed_for IS NOT NULL",
            name="clinical_note_signed",
        ),
        CheckConstraint("status <> 'preliminary' OR signed_at IS NULL", name="clinical_note_draft_unsigned"),
        CheckConstraint(
            "cosigned_at IS NULL OR signed_at IS NOT NULL AND cosigner_id IS NOT NULL AND cosigner_id <> author_id",
            name="clinical_note_cosigned_by_another",
        ),
        CheckConstraint(
            "(status = 'entered-in-error') = (withdrawn_at IS NOT NULL)"
            " AND (withdrawn_at IS NULL) = (withdrawn_reason = '')",
            name="clinical_note_withdrawn_with_reason",
        ),
        CheckConstraint("replaces_id IS NULL OR addendum_to_id IS NULL", name="clinical_note_one_origin"),
        UniqueConstraint("id", "patient_id", name="clinical_note_of_patient"),
        ForeignKeyConstraint(
            ["replaces_id", "patient_id"],
            ["clinical_note.id", "clinical_note.patient_id"],
            name="clinical_note_replaces_same_patient",
            deferrable=True,
        ),
        ForeignKeyConstraint(
            ["addendum_to_id", "patient_id"],
            ["clinical_note.id", "clinical_note.patient_id"],
            name="clinical_note_addendum_same_patient",
            deferrable=True,
        ),
        Index(
            "clinical_note_replaced_once",
            "replaces_id",
            unique=True,
            postgresql_where=text("status <> 'entered-in-error'"),
        ),
        Index("clinical_note_addenda", "addendum_to_id", postgresql_where=text("addendum_to_id IS NOT NULL")),
        Index("clinical_note_search", "search", postgresql_using="gin"),
        Index("clinical_note_newest", "patient_id", "written_at"),
        Index("clinical_note_drafts", "author_id", "written_at", postgresql_where=text("status = 'preliminary'")),
        Index(
            "clinical_note_to_cosign",
            "cosigner_id",
            postgresql_where=text("cosigned_at IS NULL AND signed_at IS NOT NULL"),
        ),
    )

    status: Mapped[str] = mapped_column(default=CompositionStatus.PRELIMINARY)
    template_id: Mapped[int | None] = mapped_column(ForeignKey("note_template.id"), index=True)
    """None for what was not written here."""
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("practitioner.id"), index=True)
    branch_id: Mapped[int | None] = mapped_column(ForeignKey("branch.id"))
    written_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    """When it was begun."""
    content: Mapped[dict[str, Any]] = mapped_column(JSONB)
    language: Mapped[str] = mapped_column(default="", server_default=text("''"))
    """BCP 47: the language of the branch it was written at, in which it is searched."""
    confidentiality: Mapped[str] = mapped_column(default=Confidentiality.NORMAL, server_default=text("'N'"))
    replaces_id: Mapped[int | None] = mapped_column(BigInteger)
    """The signed note this one is a new version of."""
    addendum_to_id: Mapped[int | None] = mapped_column(BigInteger)
    """The signed note this one adds to."""
    signed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    signed_for: Mapped[UUID | None] = mapped_column(Uuid)
    """Patient.fhir_id when it was signed."""
    digest: Mapped[str | None]
    """SHA-256 in hexadecimal of what was signed, in the order of RFC 8785."""
    cosigner_id: Mapped[int | None] = mapped_column(ForeignKey("practitioner.id"))
    """Who is to sign it as well, or has."""
    cosigned_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    withdrawn_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    withdrawn_reason: Mapped[str] = mapped_column(Text, default="", server_default=text("''"))
    search: Mapped[str | None] = deferred(mapped_column(TSVECTOR))
    """Kept by a trigger."""
    author: Mapped[Practitioner] = relationship(foreign_keys=[author_id], lazy="raise_on_sql")
    cosigner: Mapped[Practitioner | None] = relationship(foreign_keys=[cosigner_id], lazy="raise_on_sql")
    branch: Mapped[Branch | None] = relationship(lazy="raise_on_sql")
    template: Mapped[NoteTemplate | None] = relationship(lazy="raise_on_sql")


__all__ = ["ClinicalNote", "NoteTemplate"]
