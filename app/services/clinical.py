"""Reading the chart: everything here is one patient's, and comes through the gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session, joinedload, selectinload, undefer

from app.actor import current
from app.errors import NotFound
from models.base import Record
from models.clinical import (
    AllergyIntolerance,
    Condition,
    DocumentReference,
    Encounter,
    Immunization,
    Observation,
    Procedure,
)
from models.lab import DiagnosticReport
from models.patients import Patient
from models.prescriptions import MedicationRequest

CHART: dict[str, tuple[type[Any], InstrumentedAttribute[Any]]] = {
    "conditions": (Condition, Condition.recorded_at),
    "allergies": (AllergyIntolerance, AllergyIntolerance.recorded_at),
    "medications": (MedicationRequest, MedicationRequest.authored_at),
    "observations": (Observation, Observation.effective_at),
    "visits": (Encounter, Encounter.started_at),
    "immunisations": (Immunization, Immunization.occurrence_at),
    "procedures": (Procedure, Procedure.performed_at),
    "reports": (DiagnosticReport, DiagnosticReport.effective_at),
    "documents": (DocumentReference, DocumentReference.written_at),
}
"""The chart's parts, each a table and the time it is read by, the newest first."""

STANDING: dict[str, tuple[InstrumentedAttribute[Any], tuple[str, ...]]] = {
    "conditions": (Condition.clinical_status, ("active", "recurrence", "relapse")),
    "medications": (MedicationRequest.status, ("active", "on-hold")),
}
"""What still matters today comes before what is over."""

LONGEST_PART = 500


def open_chart(session: Session, patient_id: int) -> Patient:
    """A patient with their numbers. Raises NotFound for nobody, and for somebody outside the actor's rows."""
    statement = select(Patient).where(Patient.id == patient_id)
    if current().may("read", "PatientIdentifier"):
        statement = statement.options(selectinload(Patient.identifiers))
    patient = session.scalars(statement).one_or_none()
    if patient is None:
        raise NotFound
    return patient


def readable() -> list[str]:
    """The parts of a chart the actor may read."""
    return [part for part, (model, _) in CHART.items() if current().may("read", model.__name__)]


def sizes(session: Session, patient_id: int) -> dict[str, int]:
    """How much there is of each part the actor may read, and whether there is a `photo`, in one statement."""
    wanted = {
        part: select(func.count()).select_from(CHART[part][0]).where(CHART[part][0].patient_id == patient_id)
        for part in readable()
    }
    if "photo" not in current().rights.hidden("Patient"):
        pictured = select(func.count()).select_from(Patient).where(Patient.id == patient_id, Patient.photo.is_not(None))
        wanted["photo"] = pictured
    if not wanted:
        return {}
    counts = [statement.scalar_subquery().label(name) for name, statement in wanted.items()]
    return dict(zip(wanted, session.execute(select(*counts)).one(), strict=True))


def part(session: Session, name: str, patient_id: int, limit: int = LONGEST_PART) -> Sequence[Any]:
    """One part of a chart, what still stands first and then the newest. Raises Forbidden, from the gate."""
    model, when = CHART[name]
    statement = select(model).where(model.patient_id == patient_id)
    if name in STANDING:
        column, standing = STANDING[name]
        statement = statement.order_by(case((column.in_(standing), 0), else_=1))
    statement = statement.order_by(when.desc().nulls_last(), model.id.desc())
    if model is Encounter:
        statement = statement.options(joinedload(Encounter.service_provider), joinedload(Encounter.practitioner))
    if model is MedicationRequest:
        statement = statement.options(joinedload(MedicationRequest.requester))
    if model is DocumentReference:
        statement = statement.options(undefer(DocumentReference.content))
    return session.scalars(statement.limit(limit)).all()


def standing_allergies(allergies: Sequence[AllergyIntolerance]) -> list[AllergyIntolerance]:
    """Those that were neither refuted nor written down by mistake, whether they still act or not."""
    return [a for a in allergies if a.verification_status not in ("refuted", "entered-in-error")]


def allergy_state(patient: Patient, allergies: Sequence[AllergyIntolerance]) -> str:
    """`listed`, `none` (somebody asked) or `unasked`: three different things."""
    if standing_allergies(allergies):
        return "listed"
    return "none" if patient.no_known_allergies else "unasked"


def enter(session: Session, record: Record) -> Record:
    """Put a row into a chart; the gate and the database check it."""
    session.add(record)
    return record
