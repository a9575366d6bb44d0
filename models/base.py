"""The ground every table stands on."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

import flask_appbuilder.security.sqla.models  # noqa: F401  (ab_user and its kin, which our keys point at)
from sqlalchemy import BigInteger, DateTime, ForeignKey, ForeignKeyConstraint, Identity, Integer, MetaData, Uuid
from sqlalchemy.orm import Mapped, declared_attr, mapped_column, relationship
from uuid_utils.compat import uuid7

if TYPE_CHECKING:
    from sqlalchemy.orm import DeclarativeBase

    from models.clinical import Encounter
    from models.organization import Branch, Practitioner
    from models.patients import Patient

    class Model(DeclarativeBase):
        """Flask-AppBuilder's declarative base, which carries no types of its own."""
else:
    from flask_appbuilder import Model

metadata: MetaData = Model.metadata


def now() -> datetime:
    """The present instant, aware, in UTC."""
    return datetime.now(UTC)


class Protected:
    """A table behind the gate: nobody reads or writes a row of it without an actor and a policy."""

    patient_key: ClassVar[str | None] = None
    """The attribute that names the patient a row belongs to; None where rows belong to nobody in particular."""
    kind_key: ClassVar[str | None] = None
    """The attribute by which a role may be given only some kinds of rows; None where it may not."""

    @classmethod
    def resource(cls) -> str:
        """The name the access matrix knows this table by: the FHIR resource."""
        return cls.__name__


class Record(Protected, Model):
    """A row with a number, a FHIR id and a version that refuses lost updates (StaleDataError)."""

    __abstract__ = True

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    fhir_id: Mapped[UUID] = mapped_column(Uuid, default=uuid7, unique=True)
    version: Mapped[int] = mapped_column(Integer, nullable=False)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now, onupdate=now)

    @declared_attr.directive
    def __mapper_args__(cls) -> dict[str, Any]:
        return {"version_id_col": cls.__table__.c.version} if hasattr(cls, "__table__") else {}


class InPatientCompartment:
    """A row that belongs to one patient, and is seen by whoever may see that patient (FHIR compartment)."""

    patient_key: ClassVar[str | None] = "patient_id"
    __name__: ClassVar[str]

    @declared_attr
    def patient_id(cls) -> Mapped[int]:
        return mapped_column(ForeignKey("patient.id"), index=True)

    @declared_attr
    def patient(cls) -> Mapped[Patient]:
        return relationship("Patient", foreign_keys=f"{cls.__name__}.patient_id", lazy="raise_on_sql")


class InEncounter(InPatientCompartment):
    """A row of one patient that may have come about in an encounter of that same patient; the database checks."""

    @declared_attr
    def encounter_id(cls) -> Mapped[int | None]:
        return mapped_column(BigInteger, index=True)

    @declared_attr
    def encounter(cls) -> Mapped[Encounter | None]:
        return relationship(
            "Encounter",
            primaryjoin=f"foreign({cls.__name__}.encounter_id) == Encounter.id",
            lazy="raise_on_sql",
            viewonly=True,
        )

    @staticmethod
    def same_patient(table: str) -> ForeignKeyConstraint:
        """The key that keeps a row and its encounter with one patient."""
        return ForeignKeyConstraint(
            ["encounter_id", "patient_id"],
            ["encounter.id", "encounter.patient_id"],
            name=f"{table}_encounter_same_patient",
            deferrable=True,
        )


class Written:
    """A row somebody wrote down somewhere; both are None for what came from outside the chain."""

    __name__: ClassVar[str]

    @declared_attr
    def branch_id(cls) -> Mapped[int | None]:
        return mapped_column(ForeignKey("branch.id"))

    @declared_attr
    def recorder_id(cls) -> Mapped[int | None]:
        return mapped_column(ForeignKey("practitioner.id"))

    @declared_attr
    def branch(cls) -> Mapped[Branch | None]:
        return relationship("Branch", lazy="raise_on_sql")

    @declared_attr
    def recorder(cls) -> Mapped[Practitioner | None]:
        return relationship("Practitioner", foreign_keys=f"{cls.__name__}.recorder_id", lazy="raise_on_sql")


class Coded:
    """FHIR's `code`: the first coding of the CodeableConcept; whatever else came with it stays in SourceResource."""

    code_system: Mapped[str | None]
    code: Mapped[str | None] = mapped_column(index=True)
    code_display: Mapped[str]
