"""Two records of one person become one, and can be parted again: looked at side by side first, moved by the database.

Whoever merges need not be able to read what is moved: a function of the database moves it without showing it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Select, func, insert, or_, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session, joinedload, selectinload, undefer

from app import events, guard, trail
from app.actor import current
from app.errors import (
    Conflict,
    Invalid,
    LookedAtAnother,
    MergedOn,
    NotFound,
    Replaced,
    SameRecord,
    SlotTaken,
    TwoAccounts,
    Unconfirmed,
    Undone,
    UndoOver,
    VisitsClash,
    from_database,
)
from app.services import patients
from app.services.words import line
from models.audit import AuditOutbox
from models.base import now
from models.clinical import AllergyIntolerance
from models.codes import AdministrativeGender, LinkType, SexForClinicalUse
from models.lab import ServiceRequest
from models.patients import Patient, PatientLink, PatientMerge, PatientMergeRow
from models.prescriptions import MedicationRequest
from models.scheduling import BLOCKING, Appointment

UNDONE_WITHIN = timedelta(days=30)
FAR_APART = timedelta(days=366)
"""Birth dates further apart than this are no slip of the pen."""

FIELDS: dict[str, tuple[str, ...]] = {
    "name": ("family", "second_family", "given", "prefix"),
    "name_in_use": ("name_in_use",),
    "other_names": ("other_names",),
    "birth_date": ("birth_date", "birth_precision"),
    "gender": ("gender",),
    "sex_for_clinical_use": ("sex_for_clinical_use",),
    "multiple_birth_order": ("multiple_birth_order",),
    "deceased": ("deceased", "deceased_at"),
    "telecom": ("telecom",),
    "address": ("address",),
    "contact": ("contact",),
    "languages": ("languages",),
    "marital_status": ("marital_status",),
    "photo": ("photo",),
}
"""What a person chooses of either record, each with the columns that belong together."""
SETTLED = ("confidential", "temporary", "no_known_allergies")
"""What is settled without asking: what is confidential stays so, who is known is known, what was asked was asked."""
EMPTY: tuple[Any, ...] = (None, "", [], False, AdministrativeGender.UNKNOWN, SexForClinicalUse.UNKNOWN)

OPEN = ("active", "on-hold")

ROWS = text("SELECT of_table, of_column, number, newest FROM wb_rows_of_patient(:whose)")
STAYING = text("SELECT of_table, of_column, stays FROM wb_of_patients()")
MERGE = text("SELECT wb_merge_patients(:merge)")
UNMERGE = text("SELECT wb_unmerge_patients(:merge)")


@dataclass(frozen=True)
class Field:
    """Something of who a person is, as both records have it."""

    name: str
    differs: bool
    of_loser: bool
    """Whether the loser's is the likelier one: the survivor has none."""
    shown: bool
    """Whether the actor is shown it, and may change it."""


@dataclass(frozen=True)
class Count:
    """How many rows of a table name each of the two, and why they stay where they are, if they do."""

    table: str
    column: str
    stays: str | None
    survivor: int
    loser: int


@dataclass(frozen=True)
class Preview:
    """The two side by side, as somebody looks at them before they become one."""

    survivor: Patient
    loser: Patient
    fields: Sequence[Field]
    allergies: Mapping[int, Sequence[AllergyIntolerance]] | None
    """By patient; None where the actor is not shown any."""
    orders: Mapping[int, Sequence[MedicationRequest | ServiceRequest]] | None
    """The open ones by patient; None where the actor is not shown any."""
    counts: Sequence[Count]
    warnings: Sequence[str]
    """What speaks against the two being one person; each is confirmed by name: deceased, sex, born, different."""
    clashes: Sequence[tuple[Appointment, Appointment]]
    account: bool
    """Whether the loser's portal account comes along."""
    digest: str
    """Of all that was looked at: `merge` is told it, so that nothing else is merged."""


def candidates(session: Session, patient_id: int) -> list[patients.Likeness]:
    """The records most like a patient's in what the actor is shown. Raises NotFound."""
    patient = session.scalars(
        select(Patient).where(Patient.id == patient_id).options(selectinload(Patient.identifiers))
        if current().may("read", "PatientIdentifier")
        else select(Patient).where(Patient.id == patient_id)
    ).one_or_none()
    if patient is None:
        raise NotFound
    numbers = patient.identifiers if current().may("read", "PatientIdentifier") else []
    return patients.likely_duplicates(
        session,
        family=patient.family,
        second_family=patient.second_family,
        given=patient.given,
        birth_date=patient.birth_date if patient.birth_precision == "day" else None,
        phones=[point["value"] for point in patient.telecom if point.get("system") == "phone"],
        identifiers=[(number.system, number.value) for number in numbers],
        exclude_id=patient.id,
        limit=10,
    )


def survivor_of(one: Patient, other: Patient) -> Patient:
    """The one of two records that had better stay: whose identity is known, who is not put away, who was seen last."""
    return max(
        (one, other),
        key=lambda patient: (
            not patient.temporary,
            patient.active,
            patient.last_visit_at.timestamp() if patient.last_visit_at else 0.0,
            -patient.id,
        ),
    )


def preview(session: Session, survivor_id: int, loser_id: int) -> Preview:
    """What merging the second record into the first would come to. Raises NotFound, SameRecord, Replaced."""
    guard.require("create", "PatientMerge")
    survivor, loser = _both(session, survivor_id, loser_id)
    counts = _counts(session, survivor.id, loser.id)
    hidden = _kept_back()
    return Preview(
        survivor,
        loser,
        [
            Field(
                name,
                differs=any(getattr(survivor, column) != getattr(loser, column) for column in columns),
                of_loser=_unsaid(survivor, name) and not _unsaid(loser, name),
                shown=hidden.isdisjoint(columns),
            )
            for name, columns in FIELDS.items()
        ],
        _allergies(session, survivor.id, loser.id),
        _orders(session, survivor.id, loser.id),
        [found for found, _ in counts],
        _warnings(session, survivor, loser),
        _clashes(session, survivor.id, loser.id),
        loser.user_id is not None and survivor.user_id is None,
        _digest(survivor, loser, counts),
    )


def merge(
    session: Session,
    survivor_id: int,
    loser_id: int,
    *,
    reason: str,
    taken: Collection[str],
    counts: str,
    confirmed: Collection[str] = (),
) -> PatientMerge:
    """Move everything of the loser to the survivor; `taken` names the FIELDS in which the loser is right.

    `counts` is the digest of the preview that was looked at. Raises NotFound, SameRecord, Replaced, TwoAccounts,
    VisitsClash, LookedAtAnother, and Unconfirmed with the warnings nobody has confirmed.
    """
    guard.require("create", "PatientMerge")
    survivor, loser = _both(session, survivor_id, loser_id, hold=True)
    guard.require_of("update", Patient, survivor, loser)
    guard.require_of("create", PatientMerge, survivor, loser)
    if survivor.user_id is not None and loser.user_id is not None:
        raise TwoAccounts
    if counts != _digest(survivor, loser, _counts(session, survivor.id, loser.id)):
        raise LookedAtAnother
    if unsaid := [warning for warning in _warnings(session, survivor, loser) if warning not in confirmed]:
        raise Unconfirmed(unsaid)
    if clashes := _clashes(session, survivor.id, loser.id):
        raise VisitsClash(clashes)
    made = PatientMerge(
        survivor_id=survivor.id,
        loser_id=loser.id,
        merged_by_id=current().user_id,
        reason=_said(reason),
        merged_at=now(),
        undo_until=now() + UNDONE_WITHIN,
        loser_was_active=loser.active,
        account_id=loser.user_id,
        taken=_take(survivor, loser, taken),
    )
    guard.because("two records of one person were merged")
    session.add(made)
    session.flush()
    try:
        session.connection().execute(MERGE, {"merge": made.id})
    except IntegrityError as error:
        if isinstance(from_database(error), SlotTaken):
            raise VisitsClash from error
        raise
    except OperationalError as error:
        raise _met(error) from error
    _note_in_trail(session, loser, "this record was merged into another")
    _look_again(session, survivor, loser)
    events.emit(session, events.PatientRegistered(survivor.id))
    return made


def undo(session: Session, merge_id: int, *, reason: str) -> PatientMerge:
    """Part two records that were merged, row for row.

    What was written since stays with the survivor, but for what hangs on a row that goes back. Raises NotFound, Undone,
    UndoOver, MergedOn, Tangled.
    """
    guard.require("update", "PatientMerge")
    statement = select(PatientMerge).where(PatientMerge.id == merge_id).options(undefer(PatientMerge.taken))
    made = session.scalars(statement.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if made is None:
        raise NotFound
    if made.undone_at is not None:
        raise Undone
    if now() > made.undo_until:
        raise UndoOver
    survivor, loser = _held(session, made.survivor_id, made.loser_id)
    if survivor.replaced_by_id is not None:
        raise MergedOn
    guard.require_of("update", Patient, survivor, loser)
    guard.require_of("update", PatientMerge, survivor, loser)
    _put_back(survivor, loser, made.taken)
    made.undone_at, made.undone_by_id, made.undone_reason = now(), current().user_id, _said(reason)
    guard.because("two records that were merged were parted")
    session.flush()
    try:
        session.connection().execute(UNMERGE, {"merge": made.id})
    except OperationalError as error:
        raise _met(error) from error
    _note_in_trail(session, loser, "this record was parted from another again")
    _look_again(session, survivor, loser)
    for patient in (survivor, loser):
        events.emit(session, events.PatientRegistered(patient.id))
    return made


def opened(session: Session, merge_id: int) -> PatientMerge:
    """One merge, with both records. Raises NotFound."""
    made = session.scalars(_merges().where(PatientMerge.id == merge_id)).one_or_none()
    if made is None:
        raise NotFound
    return made


def merges(session: Session, limit: int = 50) -> Sequence[PatientMerge]:
    """What was merged, the newest first."""
    return session.scalars(_merges().order_by(PatientMerge.merged_at.desc(), PatientMerge.id.desc()).limit(limit)).all()


def moved(session: Session, merge_id: int) -> dict[str, tuple[int, int]]:
    """How many rows of each table a merge moved or made, and how many have gone back with them besides."""
    row = PatientMergeRow
    counted = (
        select(row.table_name, func.count().filter(~row.followed), func.count().filter(row.followed))
        .where(row.merge_id == merge_id)
        .group_by(row.table_name)
    )
    return {table: (count, followed) for table, count, followed in session.execute(counted)}


def taken_over(session: Session, merge_id: int) -> list[str]:
    """Which FIELDS the survivor took of the loser, by name and without what they say."""
    made = session.get_one(PatientMerge, merge_id, options=[undefer(PatientMerge.taken)], populate_existing=True)
    return [name for name, columns in FIELDS.items() if columns[0] in made.taken]


def _merges() -> Select[PatientMerge]:
    return select(PatientMerge).options(
        selectinload(PatientMerge.survivor),
        selectinload(PatientMerge.loser),
        selectinload(PatientMerge.merged_by),
        selectinload(PatientMerge.undone_by),
    )


# ---- the two of them -----------------------------------------------------------------------------------------------


def _both(session: Session, survivor_id: int, loser_id: int, *, hold: bool = False) -> tuple[Patient, Patient]:
    """Both records, held until the end of the transaction if so wanted. Raises SameRecord, NotFound, Replaced."""
    if survivor_id == loser_id:
        raise SameRecord
    survivor, loser = _held(session, survivor_id, loser_id) if hold else _seen(session, survivor_id, loser_id)
    if survivor.replaced_by_id is not None or loser.replaced_by_id is not None:
        raise Replaced
    return survivor, loser


def _seen(session: Session, survivor_id: int, loser_id: int, *, hold: bool = False) -> tuple[Patient, Patient]:
    wanted = select(Patient).where(Patient.id.in_((survivor_id, loser_id))).order_by(Patient.id)
    wanted = wanted.options(undefer(Patient.photo))
    if hold:
        wanted = wanted.with_for_update()
    known = {patient.id: patient for patient in session.scalars(wanted.execution_options(populate_existing=True))}
    if len(known) < 2:
        raise NotFound
    return known[survivor_id], known[loser_id]


def _held(session: Session, survivor_id: int, loser_id: int) -> tuple[Patient, Patient]:
    """Both, the one of the lower number first whoever asks, so that two who meet do not wait for each other."""
    return _seen(session, survivor_id, loser_id, hold=True)


def _look_again(session: Session, *both: Patient) -> None:
    """The database has changed them by itself."""
    for patient in both:
        session.refresh(patient)


def _counts(session: Session, survivor_id: int, loser_id: int) -> list[tuple[Count, tuple[int | None, int | None]]]:
    """Rows of every table for both, each with the newest of either."""
    connection = session.connection()
    stays = {(row.of_table, row.of_column): row.stays for row in connection.execute(STAYING)}
    ours, theirs = (
        {(row.of_table, row.of_column): row for row in connection.execute(ROWS, {"whose": whose})}
        for whose in (survivor_id, loser_id)
    )
    return [
        (Count(*key, why, ours[key].number, theirs[key].number), (ours[key].newest, theirs[key].newest))
        for key, why in stays.items()
    ]


def _digest(survivor: Patient, loser: Patient, counts: Sequence[tuple[Count, tuple[int | None, int | None]]]) -> str:
    """What the two amount to now, so that it can be told whether it is what was looked at."""
    said = [[p.id, p.version] for p in (survivor, loser)]
    rows = [[c.table, c.column, c.survivor, c.loser, *newest] for c, newest in counts]
    return hashlib.sha256(msgspec.json.encode([said, rows])).hexdigest()


def _warnings(session: Session, survivor: Patient, loser: Patient) -> list[str]:
    """What speaks against the two being one person."""
    found = []
    if survivor.deceased != loser.deceased:
        found.append("deceased")
    genders = {survivor.gender, loser.gender} - {AdministrativeGender.UNKNOWN}
    sexes = {survivor.sex_for_clinical_use, loser.sex_for_clinical_use} - {SexForClinicalUse.UNKNOWN}
    if len(genders) > 1 or len(sexes) > 1:
        found.append("sex")
    if survivor.birth_date and loser.birth_date and abs(survivor.birth_date - loser.birth_date) > FAR_APART:
        found.append("born")
    pair = (survivor.id, loser.id)
    reviewed = select(PatientLink).where(
        PatientLink.type == LinkType.SEEALSO,
        PatientLink.reviewed_at.is_not(None),
        PatientLink.patient_id.in_(pair),
        PatientLink.other_id.in_(pair),
    )
    if current().may("read", "PatientLink") and session.scalars(reviewed).first() is not None:
        found.append("different")
    return found


def _clashes(session: Session, survivor_id: int, loser_id: int) -> list[tuple[Appointment, Appointment]]:
    """Visits of the two that overlap, as far as the actor is shown visits; the database refuses them in any case."""
    if not current().may("read", "Appointment"):
        return []
    visits = session.scalars(
        select(Appointment)
        .where(Appointment.patient_id.in_((survivor_id, loser_id)), Appointment.status.in_(BLOCKING))
        .options(joinedload(Appointment.practitioner))
        .order_by(Appointment.start_at)
    ).all()
    ours = [visit for visit in visits if visit.patient_id == survivor_id]
    theirs = [visit for visit in visits if visit.patient_id == loser_id]
    return [(a, b) for a in ours for b in theirs if a.start_at < b.end_at and b.start_at < a.end_at]


def _allergies(session: Session, *whose: int) -> dict[int, list[AllergyIntolerance]] | None:
    if not current().may("read", "AllergyIntolerance"):
        return None
    found: dict[int, list[AllergyIntolerance]] = {key: [] for key in whose}
    standing = or_(
        AllergyIntolerance.verification_status.is_(None),
        AllergyIntolerance.verification_status.not_in(("refuted", "entered-in-error")),
    )
    for row in session.scalars(
        select(AllergyIntolerance)
        .where(AllergyIntolerance.patient_id.in_(whose), standing)
        .order_by(AllergyIntolerance.code_display, AllergyIntolerance.id)
    ):
        found[row.patient_id].append(row)
    return found


def _orders(session: Session, *whose: int) -> dict[int, list[MedicationRequest | ServiceRequest]] | None:
    may = current().may
    if not (may("read", "MedicationRequest") or may("read", "ServiceRequest")):
        return None
    found: dict[int, list[MedicationRequest | ServiceRequest]] = {key: [] for key in whose}
    if may("read", "MedicationRequest"):
        medicine = MedicationRequest
        medicines = select(medicine).where(medicine.patient_id.in_(whose), medicine.status.in_(OPEN))
        for order in session.scalars(medicines.order_by(medicine.code_display, medicine.id)):
            found[order.patient_id].append(order)
    if may("read", "ServiceRequest"):
        test = ServiceRequest
        tests = select(test).where(test.patient_id.in_(whose), test.status.in_(OPEN))
        for asked in session.scalars(tests.order_by(test.code_display, test.id)):
            found[asked.patient_id].append(asked)
    return found


# ---- what is taken over --------------------------------------------------------------------------------------------


def _kept_back() -> frozenset[str]:
    """The columns of a patient the actor is not shown, or cannot change."""
    rights = current().rights
    return rights.hidden("Patient") | rights.hidden("Patient", "update")


def _unsaid(patient: Patient, name: str) -> bool:
    if name == "name" and patient.temporary:
        return True
    return all(getattr(patient, column) in EMPTY for column in FIELDS[name] if column != "birth_precision")


def _take(survivor: Patient, loser: Patient, wanted: Collection[str]) -> dict[str, Any]:
    """Give the survivor what is taken of the loser; gives what the survivor had before, as JSON. Raises Invalid."""
    if unknown := set(wanted) - set(FIELDS):
        raise Invalid(f"There is nothing called {min(unknown)[:40]} to take over.", field="taken")
    columns = [column for name in FIELDS if name in wanted for column in FIELDS[name]]
    if touched := _kept_back().intersection(columns):
        raise guard.refuse("update", f"Patient.{min(touched)}")
    if loser.confidential and not survivor.confidential:
        columns.append("confidential")
    if survivor.temporary and not loser.temporary:
        columns.append("temporary")
    if survivor.no_known_allergies is None and loser.no_known_allergies is not None:
        columns.append("no_known_allergies")
    before = {}
    for column in columns:
        if getattr(survivor, column) != getattr(loser, column):
            before[column] = getattr(survivor, column)
            setattr(survivor, column, getattr(loser, column))
    return {
        column: _plain(getattr(survivor, column) if column not in before else before[column])
        for name in (*FIELDS.values(), *((column,) for column in SETTLED))
        if before.keys() & set(name)
        for column in name
    }


def _put_back(survivor: Patient, loser: Patient, taken: Mapping[str, Any]) -> None:
    """Give the survivor back what it had before, where nobody has changed it since."""
    if touched := _kept_back().intersection(taken):
        raise guard.refuse("update", f"Patient.{min(touched)}")
    for columns in (*FIELDS.values(), *((column,) for column in SETTLED)):
        if not taken.keys() >= set(columns):
            continue
        if all(getattr(survivor, column) == getattr(loser, column) for column in columns):
            for column in columns:
                setattr(survivor, column, _read(column, taken[column]))


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, date) else value


def _read(column: str, value: Any) -> Any:
    if value is None:
        return None
    if column == "photo":
        return base64.b64decode(value)
    if column == "birth_date":
        return date.fromisoformat(value)
    return datetime.fromisoformat(value) if column == "deceased_at" else value


def _said(reason: str) -> str:
    said = line(reason, field="reason", longest=500)
    if len(said) < 3:
        raise Invalid("Please say in a few words why.", field="reason")
    return said


# ---- beside --------------------------------------------------------------------------------------------------------


def _note_in_trail(session: Session, loser: Patient, why: str) -> None:
    """The line of the record that is merged or parted, in the same transaction; the survivor has the gate's own."""
    actor = current()
    entities = [{"type": "Patient", "ids": [loser.id], "fields": ["active", "replaced_by_id"]}]
    purpose = trail.purpose_of(actor, loser.id)
    told = trail.event("U", "update", patient_id=loser.id, entities=entities, purpose=purpose, reason=why)
    entry = trail.entry(trail.agent(actor), [told])
    session.execute(insert(AuditOutbox).values(id=UUID(told["id"]), event=entry))


def _met(error: OperationalError) -> Exception:
    """What it means that the database gave up: two who wrote at once waited for each other."""
    if getattr(error.orig, "sqlstate", "") == "40P01":
        return Conflict("Somebody wrote in one of the records at the same moment. Please try again.")
    return error
