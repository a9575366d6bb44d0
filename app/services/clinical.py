"""The chart: reading it, and what is written into it by hand. All of it is one patient's, and comes by the gate."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, defer, joinedload, selectinload, undefer

from app import guard
from app.actor import current
from app.errors import Conflict, Forbidden, IllegalTransition, Invalid, NotAClinician, NotFound, Replaced
from app.services import codes, lab
from app.services.words import fold, line, today
from models.base import Record, Written, now
from models.clinical import (
    AllergyIntolerance,
    Condition,
    DocumentReference,
    Encounter,
    Immunization,
    Observation,
    Procedure,
)
from models.codes import (
    AllergyClinicalStatus,
    AllergyCriticality,
    AllergyType,
    AllergyVerificationStatus,
    ConditionClinicalStatus,
    ConditionVerificationStatus,
    EncounterStatus,
    EventStatus,
    ObservationStatus,
    RequestPriority,
    RequestStatus,
)
from models.lab import DiagnosticReport, ServiceRequest
from models.notes import ClinicalNote
from models.patients import Patient
from models.prescriptions import MedicationDispense, MedicationRequest

CHART: dict[str, tuple[type[Any], InstrumentedAttribute[Any]]] = {
    "conditions": (Condition, Condition.recorded_at),
    "allergies": (AllergyIntolerance, AllergyIntolerance.recorded_at),
    "medications": (MedicationRequest, MedicationRequest.authored_at),
    "observations": (Observation, Observation.effective_at),
    "visits": (Encounter, Encounter.started_at),
    "immunisations": (Immunization, Immunization.occurrence_at),
    "procedures": (Procedure, Procedure.performed_at),
    "orders": (ServiceRequest, ServiceRequest.authored_at),
    "reports": (DiagnosticReport, DiagnosticReport.effective_at),
    "documents": (DocumentReference, DocumentReference.written_at),
}
"""The chart's parts, each a table and the time it is read by, the newest first."""

STANDING: dict[str, tuple[InstrumentedAttribute[Any], tuple[str, ...]]] = {
    "conditions": (Condition.clinical_status, ("active", "recurrence", "relapse")),
    "medications": (MedicationRequest.status, ("active", "on-hold")),
    "orders": (ServiceRequest.status, ("active", "on-hold")),
}
"""What still matters today comes before what is over."""

TIMELINE: dict[str, tuple[type[Any], InstrumentedAttribute[Any]]] = {
    "visits": CHART["visits"],
    "notes": (ClinicalNote, ClinicalNote.written_at),
    "conditions": CHART["conditions"],
    "allergies": CHART["allergies"],
    "medications": CHART["medications"],
    "dispenses": (MedicationDispense, MedicationDispense.handed_over_at),
    "orders": CHART["orders"],
    "observations": CHART["observations"],
    "reports": CHART["reports"],
    "procedures": CHART["procedures"],
    "immunisations": CHART["immunisations"],
    "documents": CHART["documents"],
}
"""Everything of a patient in order of time, by kind; the order of the kinds tells what comes first at one instant."""

LONGEST_PART = 500
PAGE = 40
"""Entries of the timeline a page holds."""
TREND = 80
"""The newest vital signs: ten of each, where they are taken together."""


def open_chart(session: Session, patient_id: int) -> Patient:
    """A patient with their numbers. Raises NotFound for nobody and for somebody outside the actor's rows; Replaced."""
    statement = select(Patient).where(Patient.id == patient_id)
    if current().may("read", "PatientIdentifier"):
        statement = statement.options(selectinload(Patient.identifiers))
    patient = session.scalars(statement).one_or_none()
    if patient is None:
        raise NotFound
    if patient.replaced_by_id is not None:
        raise Replaced
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
    if current().may("read", "ClinicalNote"):
        wanted["notes"] = select(func.count()).select_from(ClinicalNote).where(ClinicalNote.patient_id == patient_id)
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
    statement = statement.options(*_people(model))
    if model is Encounter:
        statement = statement.options(joinedload(Encounter.service_provider))
    if model is DocumentReference:
        statement = statement.options(undefer(DocumentReference.content))
    return session.scalars(statement.limit(limit)).all()


def _people(model: type[Any]) -> list[Any]:
    """Who wrote it, loaded along, where the actor may know."""
    named = {Encounter: "practitioner", MedicationRequest: "requester", ServiceRequest: "requester"}
    name = named.get(model) or ("recorder" if issubclass(model, Written) else None)
    return [joinedload(getattr(model, name))] if name and current().may("read", "Practitioner") else []


def sees_kind(kind: str) -> bool:
    """Whether the actor is shown observations of a kind: a nurse the vital signs, not the laboratory's."""
    if not current().may("read", "Observation"):
        return False
    reached = current().rights.reach.get(("read", "Observation"), ())
    return not reached or any(reach.kinds is None or kind in reach.kinds for reach in reached)


def measured_lately(session: Session, patient_id: int, category: str, limit: int = TREND) -> Sequence[Observation]:
    """The newest observations of a category that stand, the newest first."""
    statement = (
        select(Observation)
        .where(
            Observation.patient_id == patient_id,
            Observation.category == category,
            Observation.status.not_in([ObservationStatus.ENTERED_IN_ERROR, ObservationStatus.CANCELLED]),
        )
        .options(*_people(Observation))
        .order_by(Observation.effective_at.desc().nulls_last(), Observation.id.desc())
    )
    return session.scalars(statement.limit(limit)).all()


def latest_notes(session: Session, patient_id: int, limit: int = 5) -> Sequence[ClinicalNote]:
    """A patient's newest notes, as far as they are open to the actor."""
    return session.scalars(
        select(ClinicalNote)
        .where(ClinicalNote.patient_id == patient_id)
        .options(joinedload(ClinicalNote.author), defer(ClinicalNote.content))
        .order_by(ClinicalNote.written_at.desc(), ClinicalNote.id.desc())
        .limit(limit)
    ).all()


def providers(session: Session, rows: Collection[Any]) -> dict[int, str]:
    """By encounter, where what came from outside the chain was written down, as far as it is told."""
    asked = {row.encounter_id for row in rows if getattr(row, "branch_id", None) is None and _of_visit(row)}
    if not asked or not (current().may("read", "Encounter") and current().may("read", "Organization")):
        return {}
    visits = session.scalars(
        select(Encounter).where(Encounter.id.in_(asked)).options(joinedload(Encounter.service_provider))
    )
    return {visit.id: visit.service_provider.name for visit in visits if visit.service_provider}


def _of_visit(row: Any) -> bool:
    return getattr(row, "encounter_id", None) is not None


# ---- everything in order of time ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cursor:
    """The last entry of a page of the timeline."""

    at: datetime
    kind: str
    id: int


@dataclass(frozen=True)
class Moment:
    """An entry of the timeline."""

    at: datetime
    kind: str
    row: Any

    @property
    def cursor(self) -> Cursor:
        """Where the next page goes on."""
        return Cursor(self.at, self.kind, self.row.id)


def on_timeline() -> list[str]:
    """The kinds of entries the actor may read."""
    return [kind for kind, (model, _) in TIMELINE.items() if current().may("read", model.resource())]


def timeline(
    session: Session,
    patient_id: int,
    kinds: Collection[str] = (),
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    after: Cursor | None = None,
    limit: int = PAGE,
) -> tuple[list[Moment], Cursor | None]:
    """A page of everything about a patient, the newest first, and where the next one goes on; None at the end.

    `kinds` empty is all of them; entries are between `since` and before `until`. What was withdrawn is among them.
    """
    found: list[Moment] = []
    rank = {kind: number for number, kind in enumerate(TIMELINE)}
    for kind in on_timeline():
        if kinds and kind not in kinds:
            continue
        model, column = TIMELINE[kind]
        when = func.coalesce(column, model.created_at)
        statement = select(model).where(model.patient_id == patient_id).options(*told_with(model))
        if since is not None:
            statement = statement.where(when >= since)
        if until is not None:
            statement = statement.where(when < until)
        if after is not None:
            statement = statement.where(_after(when, model, rank[kind], after, rank[after.kind]))
        statement = statement.order_by(when.desc(), model.id.desc()).limit(limit + 1)
        found += [
            Moment(getattr(row, column.key) or row.created_at, kind, row) for row in session.scalars(statement).all()
        ]
    found.sort(key=lambda moment: (-moment.at.timestamp(), rank[moment.kind], -moment.row.id))
    page = found[:limit]
    return page, page[-1].cursor if len(found) > limit else None


def _after(when: Any, model: Any, rank: int, after: Cursor, its: int) -> ColumnElement[bool]:
    """What comes after an entry: earlier, or of the same instant and later in the order of kinds and numbers."""
    if rank > its:
        return when <= after.at  # type: ignore[no-any-return]
    if rank < its:
        return when < after.at  # type: ignore[no-any-return]
    return or_(when < after.at, and_(when == after.at, model.id < after.id))


def told_with(model: type[Any]) -> list[Any]:
    """What is loaded along with a row that is told in a line or two: who and where, and of a note not what it says."""
    people = _people(model)
    if model is Encounter:
        return [*people, joinedload(Encounter.service_provider)]
    if model is ClinicalNote:
        return [joinedload(ClinicalNote.author), defer(ClinicalNote.content)]
    if model is MedicationDispense:
        return [joinedload(MedicationDispense.medication), joinedload(MedicationDispense.performer)]
    return people


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


# ---- writing: what every entry has -------------------------------------------------------------------------------

KEPT_OUT: Final = (EncounterStatus.CANCELLED, EncounterStatus.ENTERED_IN_ERROR)
"""Nothing is written into a visit that did not take place."""
ENTRIES: dict[str, type[Any]] = {
    "conditions": Condition,
    "allergies": AllergyIntolerance,
    "observations": Observation,
    "procedures": Procedure,
    "immunisations": Immunization,
    "orders": ServiceRequest,
}
"""What is written into a chart by hand, entry by entry."""
WITHDRAWN: Final = "entered-in-error"


def held(session: Session, patient_id: int) -> Patient:
    """A patient in whose chart something is written, locked until the transaction ends.

    Raises NotFound, and Invalid where the record is closed.
    """
    statement = select(Patient).where(Patient.id == patient_id).with_for_update(key_share=True)
    patient = session.scalars(statement.execution_options(populate_existing=True)).one_or_none()
    if patient is None:
        raise guard.refuse("read", "Patient", NotFound)
    if not patient.active:
        raise Invalid("This record is closed, so nothing is written into it.", field="patient")
    return patient


def _writer() -> int:
    """The number of who writes. Raises NotAClinician for somebody who is nobody of the staff."""
    practitioner_id = current().practitioner_id
    if practitioner_id is None:
        raise NotAClinician
    return practitioner_id


def _written(session: Session, resource: str, patient_id: int, encounter_id: int | None) -> dict[str, Any]:
    """What every entry says of itself: whose, in which visit, where and by whom. Raises as `held` does, and Invalid."""
    guard.require("create", resource)
    writer = _writer()
    held(session, patient_id)
    if encounter_id is not None:
        visit = session.get(Encounter, encounter_id)
        if visit is None or visit.patient_id != patient_id:
            raise Invalid("This visit is not one of this patient's.", field="encounter")
        if visit.status in KEPT_OUT:
            raise Invalid("This visit did not take place, so nothing is written into it.", field="encounter")
    return {
        "patient_id": patient_id,
        "encounter_id": encounter_id,
        "branch_id": current().branch_id,
        "recorder_id": writer,
    }


def _put(session: Session, row: Any) -> Any:
    session.add(row)
    session.flush()
    return row


def _past(moment: datetime | None, *, field: str) -> datetime:
    """When something was done; now, where nothing is said. Raises Invalid for what lies ahead."""
    if moment is None:
        return now()
    if moment > now() + timedelta(minutes=5):
        raise Invalid("This lies in the future.", field=field)
    if moment.year < 1900:
        raise Invalid("Please check the year.", field=field)
    return moment


def _day(value: date | None, *, field: str) -> datetime | None:
    """A day as an instant: noon in UTC, which is the same day on nearly every clock. Raises Invalid."""
    if value is None:
        return None
    if value > today() + timedelta(days=1):
        raise Invalid("This day lies in the future.", field=field)
    if value.year < 1900:
        raise Invalid("Please check the year.", field=field)
    return datetime.combine(value, time(12), tzinfo=UTC)


def _one_of(value: str, offered: Collection[str], *, field: str) -> str:
    if value not in set(offered):
        raise Invalid("Please choose one of those offered.", field=field)
    return value


def entry(session: Session, kind: str, entry_id: int, *, hold: bool = False) -> Any:
    """An entry of a chart, locked where it is to change. Raises NotFound."""
    model = ENTRIES.get(kind)
    if model is None:
        raise NotFound
    statement = select(model).where(model.id == entry_id)
    if hold:
        statement = statement.with_for_update()
    else:
        statement = statement.options(*_people(model), joinedload(model.patient))
    row = session.scalars(statement.execution_options(populate_existing=True)).one_or_none()
    if row is None:
        raise guard.refuse("read", model.resource(), NotFound)
    return row


def _standing(session: Session, kind: str, entry_id: int) -> Any:
    """An entry that is to change. Raises NotFound, Forbidden, and IllegalTransition for one that was withdrawn.

    Whoever carries an order out changes it too; calling it off takes who may order.
    """
    guard.require("create" if kind == "orders" else "update", ENTRIES[kind].resource())
    _writer()
    row = entry(session, kind, entry_id, hold=True)
    if withdrawn(row):
        raise IllegalTransition("This entry was withdrawn already.")
    return row


def withdrawn(row: Any) -> bool:
    """Whether an entry was written by mistake."""
    state = row.verification_status if isinstance(row, Condition | AllergyIntolerance) else row.status
    return bool(state == WITHDRAWN)


def withdraw(session: Session, kind: str, entry_id: int) -> Any:
    """It was written by mistake: it stays in the record as entered in error. Raises as `_standing` does."""
    row = _standing(session, kind, entry_id)
    if isinstance(row, Observation) and row.category != "vital-signs":
        guard.refuse("update", "Observation")
        raise Forbidden("A result is corrected by who released it.")
    if isinstance(row, Condition | AllergyIntolerance):
        row.clinical_status, row.verification_status = None, WITHDRAWN
    else:
        row.status = WITHDRAWN
    session.flush()
    return row


# ---- vital signs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vital:
    """Something that is measured at the bedside: LOINC, UCUM, and between which values a living person can be."""

    code: str
    display: str
    unit: str
    spoken_unit: str
    low: Decimal
    high: Decimal


def _vital(code: str, display: str, unit: str, spoken: str, low: str, high: str) -> Vital:
    return Vital(code, display, unit, spoken, Decimal(low), Decimal(high))


BLOOD_PRESSURE: Final = ("85354-9", "Blood pressure")
VITALS: Final[dict[str, Vital]] = {
    "systolic": _vital("8480-6", "Systolic blood pressure", "mm[Hg]", "mmHg", "30", "350"),
    "diastolic": _vital("8462-4", "Diastolic blood pressure", "mm[Hg]", "mmHg", "10", "250"),
    "pulse": _vital("8867-4", "Heart rate", "/min", "/min", "10", "350"),
    "respiration": _vital("9279-1", "Respiratory rate", "/min", "/min", "2", "120"),
    "temperature": _vital("8310-5", "Body temperature", "Cel", "°C", "20", "45"),
    "saturation": _vital("59408-5", "Oxygen saturation", "%", "%", "20", "100"),
    "weight": _vital("29463-7", "Body weight", "kg", "kg", "0.2", "650"),
    "height": _vital("8302-2", "Body height", "cm", "cm", "15", "275"),
}
"""By the name of the field they are typed into."""
BMI: Final = _vital("39156-5", "Body mass index", "kg/m2", "kg/m²", "3", "250")
HEIGHT_LASTS: Final = timedelta(days=366)
"""So long the height of somebody grown up is taken for the body mass index, where only the weight is taken."""
GROWN_UP: Final = 18


def measure(
    session: Session,
    *,
    patient_id: int,
    values: Mapping[str, str],
    encounter_id: int | None = None,
    at: datetime | None = None,
) -> list[Observation]:
    """Write down vital signs as they were typed, by the names of VITALS; the body mass index is computed.

    Raises Invalid, naming the field, for what is no number, for what no living person has, and where there is nothing.
    """
    typed = {name: text.strip() for name, text in values.items() if text.strip()}
    if not typed:
        raise Invalid("Nothing was measured yet.", field="systolic")
    found = {name: _measured(name, text) for name, text in typed.items()}
    if ("systolic" in found) != ("diastolic" in found):
        missing = "diastolic" if "systolic" in found else "systolic"
        raise Invalid("A blood pressure has two numbers.", field=missing)
    if "systolic" in found and found["systolic"] <= found["diastolic"]:
        raise Invalid("The first number of a blood pressure is the higher one.", field="systolic")
    written = _written(session, "Observation", patient_id, encounter_id)
    shared = {
        **written,
        "status": ObservationStatus.FINAL,
        "category": "vital-signs",
        "code_system": codes.LOINC,
        "effective_at": _past(at, field="at"),
        "issued_at": now(),
    }
    rows = []
    if "systolic" in found:
        code, display = BLOOD_PRESSURE
        parts = [_component(VITALS[name], found[name]) for name in ("systolic", "diastolic")]
        rows.append(Observation(**shared, code=code, code_display=display, component=parts))
    for name, value in found.items():
        if name not in ("systolic", "diastolic"):
            rows.append(_quantity(shared, VITALS[name], value))
    if "weight" in found:
        height = found.get("height") or _height_of(session, patient_id)
        if height is not None:
            mass = found["weight"] / (height / 100) ** 2
            if BMI.low <= mass <= BMI.high:
                rows.append(_quantity(shared, BMI, round(mass, 1)))
            elif "height" in found:
                raise Invalid("This weight and this height do not belong to one person.", field="weight")
    session.add_all(rows)
    session.flush()
    return rows


def _measured(name: str, text: str) -> Decimal:
    """A value as it was typed. Raises Invalid, naming what it is."""
    vital = VITALS.get(name)
    if vital is None:
        raise Invalid("This is not measured here.", field=name)
    if not re.fullmatch(r"\d{1,3}([.,]\d{1,2})?", text):
        raise Invalid(f"{vital.display}: please enter a number, such as {vital.low} to {vital.high}.", field=name)
    value = Decimal(text.replace(",", "."))
    if not vital.low <= value <= vital.high:
        raise Invalid(
            f"{vital.display}: {text} {vital.spoken_unit} cannot be. Between {vital.low} and {vital.high} it can.",
            field=name,
        )
    return value


def _quantity(shared: Mapping[str, Any], vital: Vital, value: Decimal) -> Observation:
    return Observation(
        **shared, code=vital.code, code_display=vital.display, value_quantity=value, value_unit=vital.unit
    )


def _component(vital: Vital, value: Decimal) -> dict[str, Any]:
    number = int(value) if value == value.to_integral_value() else float(value)
    return {
        "code": {"coding": [{"system": codes.LOINC, "code": vital.code, "display": vital.display}]},
        "valueQuantity": {
            "value": number,
            "unit": vital.spoken_unit,
            "system": "http://unitsofmeasure.org",
            "code": vital.unit,
        },
    }


def _height_of(session: Session, patient_id: int) -> Decimal | None:
    """The height of somebody grown up in centimetres, where it was taken within a year."""
    patient = session.get(Patient, patient_id)
    if patient is None or patient.birth_date is None or patient.birth_date > today() - timedelta(days=GROWN_UP * 366):
        return None
    last = session.scalars(
        select(Observation)
        .where(
            Observation.patient_id == patient_id,
            Observation.code == VITALS["height"].code,
            Observation.status != ObservationStatus.ENTERED_IN_ERROR,
            Observation.effective_at > now() - HEIGHT_LASTS,
        )
        .order_by(Observation.effective_at.desc(), Observation.id.desc())
        .limit(1)
    ).one_or_none()
    return last.value_quantity if last is not None and last.value_unit == "cm" else None


# ---- conditions --------------------------------------------------------------------------------------------------

PROBLEM: Final = "problem-list-item"
DIAGNOSIS: Final = "encounter-diagnosis"
CURRENT: Final = (
    ConditionClinicalStatus.ACTIVE,
    ConditionClinicalStatus.RECURRENCE,
    ConditionClinicalStatus.RELAPSE,
)
"""States in which somebody has a condition."""
DOUBTS: Final = (
    ConditionVerificationStatus.CONFIRMED,
    ConditionVerificationStatus.PROVISIONAL,
    ConditionVerificationStatus.DIFFERENTIAL,
    ConditionVerificationStatus.UNCONFIRMED,
)
"""How sure somebody is who writes down a condition."""


def diagnose(
    session: Session,
    *,
    patient_id: int,
    code: str,
    category: str = PROBLEM,
    verification: str = ConditionVerificationStatus.CONFIRMED,
    encounter_id: int | None = None,
    onset_on: date | None = None,
    abated_on: date | None = None,
) -> Condition:
    """Write a condition (ICD-10-CM) on the list of problems, or as a diagnosis of a visit.

    Raises Invalid, naming the field: a code that does not exist, an end before the beginning, a diagnosis without its
    visit. Raises Conflict where the patient has it already.
    """
    _one_of(category, (PROBLEM, DIAGNOSIS), field="category")
    _one_of(verification, DOUBTS, field="verification")
    onset, abated = _day(onset_on, field="onset_on"), _day(abated_on, field="abated_on")
    _in_order(onset, abated)
    if category == DIAGNOSIS and encounter_id is None:
        raise Invalid("A diagnosis belongs to a visit. Open one first, or add it to the problems.", field="category")
    chosen = codes.diagnosis(code)
    written = _written(session, "Condition", patient_id, encounter_id)
    again = select(Condition).where(
        Condition.patient_id == patient_id,
        Condition.code == chosen.code,
        Condition.category == category,
        Condition.clinical_status.in_(CURRENT),
    )
    if category == DIAGNOSIS:
        again = again.where(Condition.encounter_id == encounter_id)
    if abated is None and session.scalars(again.limit(1)).first() is not None:
        raise Conflict("This is on the list already.", field="code")
    return _put(  # type: ignore[no-any-return]
        session,
        Condition(
            **written,
            code_system=codes.ICD_10_CM,
            code=chosen.code,
            code_display=chosen.display,
            category=category,
            clinical_status=ConditionClinicalStatus.RESOLVED if abated else ConditionClinicalStatus.ACTIVE,
            verification_status=verification,
            onset_at=onset,
            abatement_at=abated,
            recorded_at=now(),
        ),
    )


def _in_order(onset: datetime | None, abated: datetime | None) -> None:
    if onset is not None and abated is not None and abated.date() < onset.date():
        raise Invalid("It cannot end before it began.", field="abated_on")


def resolve(session: Session, condition_id: int, *, on: date | None = None) -> Condition:
    """It is over. Raises Invalid for an end before the beginning, IllegalTransition, NotFound."""
    row: Condition = _standing(session, "conditions", condition_id)
    if row.clinical_status not in (*CURRENT, ConditionClinicalStatus.INACTIVE, ConditionClinicalStatus.REMISSION):
        raise IllegalTransition("This is over already.")
    abated = _day(on or today(), field="abated_on")
    _in_order(row.onset_at, abated)
    row.clinical_status, row.abatement_at = ConditionClinicalStatus.RESOLVED, abated
    session.flush()
    return row


def reactivate(session: Session, condition_id: int) -> Condition:
    """It has come back, or was ruled out too soon. Raises IllegalTransition, NotFound."""
    row: Condition = _standing(session, "conditions", condition_id)
    refuted = row.verification_status == ConditionVerificationStatus.REFUTED
    if row.clinical_status in CURRENT:
        raise IllegalTransition("The patient has this now.")
    row.clinical_status = ConditionClinicalStatus.ACTIVE if refuted else ConditionClinicalStatus.RECURRENCE
    row.abatement_at = None
    if refuted:
        row.verification_status = ConditionVerificationStatus.UNCONFIRMED
    session.flush()
    return row


def refute(session: Session, condition_id: int) -> Condition:
    """It was ruled out. Raises IllegalTransition, NotFound."""
    row: Condition = _standing(session, "conditions", condition_id)
    if row.verification_status == ConditionVerificationStatus.REFUTED:
        raise IllegalTransition("This was ruled out already.")
    row.clinical_status = ConditionClinicalStatus.INACTIVE  # con-3: a problem that stands in the list has a status
    row.verification_status = ConditionVerificationStatus.REFUTED
    session.flush()
    return row


# ---- allergies ---------------------------------------------------------------------------------------------------

ALLERGY_CATEGORIES: Final = ("medication", "food", "environment", "biologic")
SEVERITIES: Final = ("mild", "moderate", "severe")
"""http://hl7.org/fhir/reaction-event-severity: of one reaction that has been."""
MOST_REACTIONS: Final = 5


@dataclass(frozen=True)
class Reaction:
    """What something did once; `severity` of SEVERITIES, or empty where nobody knows."""

    manifestation: str
    severity: str = ""


def list_allergy(
    session: Session,
    *,
    patient_id: int,
    substance: str,
    type: str | None = AllergyType.ALLERGY,
    category: Sequence[str] = ("medication",),
    criticality: str | None = None,
    verification: str = AllergyVerificationStatus.UNCONFIRMED,
    reactions: Sequence[Reaction] = (),
    encounter_id: int | None = None,
) -> AllergyIntolerance:
    """Write down what a patient does not bear. That there are none known is taken back with it.

    Raises Invalid, naming the field, and Conflict for what is listed already.
    """
    text = line(substance, field="substance", longest=200)
    if len(text) < 2:
        raise Invalid("Please say what the patient does not bear.", field="substance")
    if re.fullmatch(r"(no|none|nil|nkd?a|no (known )?(drug )?allerg\w*|not known|unknown)\.?", fold(text)):
        raise Invalid("That there are none is said with its own button.", field="substance")
    if type is not None:
        _one_of(type, set(AllergyType), field="type")
    if not category:
        raise Invalid("Please choose what kind of thing it is.", field="category")
    for each in category:
        _one_of(each, ALLERGY_CATEGORIES, field="category")
    if criticality is not None:
        _one_of(criticality, set(AllergyCriticality), field="criticality")
    sure = (AllergyVerificationStatus.UNCONFIRMED, AllergyVerificationStatus.CONFIRMED)
    _one_of(verification, sure, field="verification")
    told = [_reaction(each) for each in reactions[:MOST_REACTIONS] if each.manifestation.strip() or each.severity]
    written = _written(session, "AllergyIntolerance", patient_id, encounter_id)
    known = session.scalars(select(AllergyIntolerance).where(AllergyIntolerance.patient_id == patient_id)).all()
    active = [each for each in standing_allergies(known) if each.clinical_status == AllergyClinicalStatus.ACTIVE]
    if any(fold(each.code_display) == fold(text) for each in active):
        raise Conflict("This is on the list already.", field="substance")
    patient = session.get_one(Patient, patient_id)
    if patient.no_known_allergies is not None:
        patient.no_known_allergies = None
    return _put(  # type: ignore[no-any-return]
        session,
        AllergyIntolerance(
            **written,
            code_display=text,
            type=type,
            category=list(dict.fromkeys(category)),
            criticality=criticality,
            clinical_status=AllergyClinicalStatus.ACTIVE,
            verification_status=verification,
            reaction=told,
            recorded_at=now(),
        ),
    )


def _reaction(told: Reaction) -> dict[str, Any]:
    text = line(told.manifestation, field="reaction", longest=200)
    if not text:
        raise Invalid("Please say what happened.", field="reaction")
    if told.severity:
        return {
            "manifestation": [{"text": text}],
            "severity": _one_of(told.severity, SEVERITIES, field="reaction"),
        }
    return {"manifestation": [{"text": text}]}


def confirm_allergy(session: Session, allergy_id: int) -> AllergyIntolerance:
    """It is so, now; also of one that was ruled out, or was thought to be over. Raises IllegalTransition, NotFound."""
    row: AllergyIntolerance = _standing(session, "allergies", allergy_id)
    if (row.clinical_status, row.verification_status) == ("active", "confirmed"):
        raise IllegalTransition("This is confirmed already.")
    patient = held(session, row.patient_id)
    if patient.no_known_allergies is not None:
        patient.no_known_allergies = None
    row.clinical_status = AllergyClinicalStatus.ACTIVE
    row.verification_status = AllergyVerificationStatus.CONFIRMED
    session.flush()
    return row


def refute_allergy(session: Session, allergy_id: int) -> AllergyIntolerance:
    """It was ruled out, and warns of nothing any more. Raises IllegalTransition, NotFound."""
    row: AllergyIntolerance = _standing(session, "allergies", allergy_id)
    if row.verification_status == AllergyVerificationStatus.REFUTED:
        raise IllegalTransition("This was ruled out already.")
    row.clinical_status = AllergyClinicalStatus.INACTIVE
    row.verification_status = AllergyVerificationStatus.REFUTED
    session.flush()
    return row


def resolve_allergy(session: Session, allergy_id: int) -> AllergyIntolerance:
    """The patient bears it again. Raises IllegalTransition, NotFound."""
    row: AllergyIntolerance = _standing(session, "allergies", allergy_id)
    if row.clinical_status != AllergyClinicalStatus.ACTIVE:
        raise IllegalTransition("This is not active any more.")
    row.clinical_status = AllergyClinicalStatus.RESOLVED
    session.flush()
    return row


def say_no_known_allergies(session: Session, patient_id: int, *, known: bool = True) -> Patient:
    """Somebody asked, and the patient knows of none; with `known` False nobody has asked after all.

    Raises Conflict while some are listed.
    """
    for action, resource in (("create", "AllergyIntolerance"), ("read", "AllergyIntolerance")):
        guard.require(action, resource)
    _writer()
    patient = held(session, patient_id)
    listed = session.scalars(select(AllergyIntolerance).where(AllergyIntolerance.patient_id == patient_id)).all()
    if known and standing_allergies(listed):
        raise Conflict("There are allergies on the list. Rule them out or withdraw them first.")
    patient.no_known_allergies = True if known else None
    session.flush()
    return patient


# ---- procedures, immunisations, orders -----------------------------------------------------------------------------


def record_procedure(
    session: Session,
    *,
    patient_id: int,
    what: str,
    code: str = "",
    reason: str = "",
    at: datetime | None = None,
    encounter_id: int | None = None,
) -> Procedure:
    """Write down what was done, in words and, where it is known, as a SNOMED CT code. Raises Invalid."""
    text = line(what, field="what", longest=200)
    if len(text) < 2:
        raise Invalid("Please say what was done.", field="what")
    coded = codes.snomed(code) if code.strip() else None
    because = line(reason, field="reason", longest=500)
    done = _past(at, field="at")
    written = _written(session, "Procedure", patient_id, encounter_id)
    return _put(  # type: ignore[no-any-return]
        session,
        Procedure(
            **written,
            code_system=codes.SNOMED_CT if coded else None,
            code=coded,
            code_display=text,
            status=EventStatus.COMPLETED,
            performed_at=done,
            reason=because,
        ),
    )


def immunise(
    session: Session,
    *,
    patient_id: int,
    code: str = "",
    vaccine: str = "",
    lot_number: str = "",
    at: datetime | None = None,
    elsewhere: bool = False,
    encounter_id: int | None = None,
) -> Immunization:
    """Write down a vaccine that was given: one of the list (CVX), or in words; `elsewhere` is told by the patient."""
    text = codes.vaccine(code) if code else line(vaccine, field="vaccine", longest=200)
    if len(text) < 2:
        raise Invalid("Please choose a vaccine, or write it in words.", field="vaccine")
    lot = line(lot_number, field="lot_number", longest=40)
    given = _past(at, field="at")
    written = _written(session, "Immunization", patient_id, encounter_id)
    return _put(  # type: ignore[no-any-return]
        session,
        Immunization(
            **written,
            code_system=codes.CVX if code else None,
            code=code or None,
            code_display=text,
            status="completed",
            occurrence_at=given,
            primary_source=not elsewhere,
            lot_number=lot or None,
        ),
    )


ORDER_CATEGORIES: Final = ("imaging", "referral")
"""What is ordered in words; tests are ordered from the catalogue (app/services/lab.py)."""


def order(
    session: Session,
    *,
    patient_id: int,
    what: str,
    category: str = "imaging",
    priority: str = RequestPriority.ROUTINE,
    code: str = "",
    note: str = "",
    encounter_id: int | None = None,
) -> ServiceRequest:
    """Order an image or a referral, in words and, where it is known, as a LOINC code. Raises Invalid."""
    text = line(what, field="what", longest=200)
    if len(text) < 2:
        raise Invalid("Please say what is to be done.", field="what")
    _one_of(category, ORDER_CATEGORIES, field="category")
    _one_of(priority, set(RequestPriority), field="priority")
    coded = codes.loinc(code) if code.strip() else None
    told = line(note, field="note", longest=1000)
    written = _written(session, "ServiceRequest", patient_id, encounter_id)
    written["requester_id"] = written.pop("recorder_id")
    return _put(  # type: ignore[no-any-return]
        session,
        ServiceRequest(
            **written,
            code_system=codes.LOINC if coded else None,
            code=coded,
            code_display=text,
            status=RequestStatus.ACTIVE,
            category=category,
            priority=priority,
            authored_at=now(),
            note=told,
        ),
    )


def revoke(session: Session, order_id: int, *, reason: str) -> ServiceRequest:
    """An order is not to be carried out any more. Raises Invalid without a reason, IllegalTransition, NotFound."""
    row: ServiceRequest = _standing(session, "orders", order_id)
    if row.status not in (RequestStatus.DRAFT, RequestStatus.ACTIVE, RequestStatus.ON_HOLD):
        raise IllegalTransition("This order is done, or was called off already.")
    because = line(reason, field="reason", longest=500)
    if len(because) < 3:
        raise Invalid("Please say why in a few words.", field="reason")
    if row.test_id is not None or row.panel_id is not None:
        return lab.revoke(session, row.id, reason=because)
    row.status, row.status_reason = RequestStatus.REVOKED, because
    session.flush()
    return row
