"""Visits as they happen: opened by the desk or directly, brought from state to state, finished for the bill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import case, select
from sqlalchemy.orm import Session, joinedload

from app import events, guard
from app.actor import current
from app.errors import Conflict, DraftsLeft, IllegalTransition, Invalid, NotAClinician, NotFound
from app.services import clinical, scheduling
from app.services.words import line
from models.base import now
from models.clinical import ENCOUNTER_TRANSITIONS, Encounter, EncounterHistory
from models.codes import AppointmentStatus, CompositionStatus, EncounterStatus
from models.notes import ClinicalNote
from models.organization import Branch
from models.scheduling import Appointment

S = EncounterStatus
CLASSES: Final = ("AMB", "EMER", "IMP", "ACUTE", "SS", "OBSENC", "VR", "HH")
"""http://terminology.hl7.org/CodeSystem/v3-ActCode: the classes a visit is opened with."""
OPEN: Final = (S.ARRIVED, S.TRIAGED, S.IN_PROGRESS, S.ONLEAVE)
"""States in which a visit is under way."""
BEGINS: Final = (S.PLANNED, S.ARRIVED, S.IN_PROGRESS)
"""States a visit may be opened in."""
FARTHEST: Final = timedelta(days=366)


@dataclass(frozen=True)
class Stretch:
    """How long a visit was in a state; `until` None for the one it is in."""

    status: str
    since: datetime
    until: datetime | None


# ---- looking -----------------------------------------------------------------------------------------------------


def show(session: Session, encounter_id: int) -> Encounter:
    """A visit with who, where and whose. Raises NotFound."""
    statement = select(Encounter).where(Encounter.id == encounter_id).options(*_wide(), joinedload(Encounter.patient))
    encounter = session.scalars(statement.execution_options(populate_existing=True)).one_or_none()
    if encounter is None:
        raise guard.refuse("read", "Encounter", NotFound)
    return encounter


def _wide() -> list[Any]:
    if not current().may("read", "Practitioner") or not current().may("read", "Organization"):
        return []
    return [joinedload(Encounter.practitioner), joinedload(Encounter.service_provider)]


def open_of(session: Session, patient_id: int) -> Sequence[Encounter]:
    """A patient's visits that are under way: the actor's first, then the one begun last."""
    mine = case((Encounter.practitioner_id == current().practitioner_id, 0), else_=1)
    return session.scalars(
        select(Encounter)
        .where(Encounter.patient_id == patient_id, Encounter.status.in_(OPEN))
        .options(*_wide())
        .order_by(mine, Encounter.started_at.desc().nulls_last(), Encounter.id.desc())
        .limit(10)
    ).all()


def open_for(session: Session, patient_id: int) -> Encounter | None:
    """The actor's own visit with this patient that is under way; None where there is none."""
    me = current().practitioner_id
    return next((each for each in open_of(session, patient_id) if me and each.practitioner_id == me), None)


def here_for(session: Session, patient_id: int) -> Encounter | None:
    """The visit that is written into where none is named: the actor's own, or one under way at their branch."""
    found = open_of(session, patient_id)
    return next(
        (
            each
            for each in found
            if each.practitioner_id == current().practitioner_id or each.branch_id == current().branch_id
        ),
        None,
    )


def history(session: Session, encounter: Encounter) -> list[Stretch]:
    """Every state a visit was in, the oldest first, and the one it is in."""
    statement = select(EncounterHistory).where(EncounterHistory.encounter_id == encounter.id)
    since = min(encounter.started_at or encounter.created_at, encounter.created_at)
    stretches = []
    for before in session.scalars(statement.order_by(EncounterHistory.id)):
        stretches.append(Stretch(before.status, since, before.until_at))
        since = before.until_at
    return [*stretches, Stretch(encounter.status, since, None)]


# ---- from one state to the next ----------------------------------------------------------------------------------


def open_directly(
    session: Session,
    *,
    patient_id: int,
    class_code: str = "AMB",
    status: str = S.IN_PROGRESS,
    reason: str = "",
    type_display: str = "",
    planned_at: datetime | None = None,
) -> Encounter:
    """Open a visit that nobody booked: planned, with the patient waiting, or under way with the actor.

    Raises Invalid, naming the field; Conflict where the actor has one under way with this patient; NotAClinician.
    """
    guard.require("create", "Encounter")
    actor = current()
    if actor.practitioner_id is None:
        raise NotAClinician
    if class_code not in CLASSES:
        raise Invalid("Please choose one of the kinds offered.", field="class_code")
    if status not in BEGINS:
        raise Invalid("Please say whether the patient is expected, waiting or with you.", field="status")
    patient = clinical.held(session, patient_id)
    if patient.deceased:
        raise Invalid("This patient has died, so no visit can be opened.", field="patient")
    branch = session.get(Branch, actor.branch_id) if actor.branch_id is not None else None
    if branch is None:
        raise Invalid("Please choose the branch you work at first.", field="branch")
    moment = now()
    if status == S.PLANNED:
        if planned_at is None or planned_at < moment:
            raise Invalid("Please say when it is to begin; the time lies ahead.", field="planned_at")
        if planned_at > moment + FARTHEST:
            raise Invalid("A visit is planned a year ahead at most.", field="planned_at")
    elif (mine := open_for(session, patient_id)) is not None:
        raise Conflict(f"You have a visit with this patient under way already, number {mine.id}.")
    encounter = Encounter(
        patient_id=patient.id,
        status=status,
        class_code=class_code,
        type_display=line(type_display, field="type_display", longest=100),
        reason=line(reason, field="reason", longest=500),
        started_at=planned_at if status == S.PLANNED else moment,
        branch_id=branch.id,
        service_provider_id=branch.organization_id,
        practitioner_id=actor.practitioner_id if status != S.ARRIVED else None,
    )
    session.add(encounter)
    session.flush()
    return encounter


def held(session: Session, encounter_id: int) -> Encounter:
    """A visit, locked until the transaction ends. Raises NotFound."""
    statement = select(Encounter).where(Encounter.id == encounter_id).with_for_update()
    encounter = session.scalars(statement.execution_options(populate_existing=True)).one_or_none()
    if encounter is None:
        raise guard.refuse("read", "Encounter", NotFound)
    return encounter


def advance(session: Session, encounter: Encounter, to: EncounterStatus, **also: Any) -> Encounter:
    """Bring a visit into another state: the one place where states change. Raises IllegalTransition."""
    guard.require("update", "Encounter")
    lawful = to is S.ENTERED_IN_ERROR and encounter.status != S.ENTERED_IN_ERROR
    if to not in ENCOUNTER_TRANSITIONS[S(encounter.status)] and not lawful:
        raise IllegalTransition
    encounter.status = to
    for name, value in also.items():
        setattr(encounter, name, value)
    session.flush()
    return encounter


def triage(session: Session, encounter_id: int) -> Encounter:
    """Somebody has looked how urgent it is."""
    return advance(session, held(session, encounter_id), S.TRIAGED)


def start(session: Session, encounter_id: int) -> Encounter:
    """The patient is being seen, by the actor: whoever starts a visit has it from then on."""
    encounter = held(session, encounter_id)
    also: dict[str, Any] = {}
    if encounter.status == S.PLANNED:
        also["started_at"] = now()
    if encounter.status != S.ONLEAVE and current().practitioner_id is not None:
        also["practitioner_id"] = current().practitioner_id
    return advance(session, encounter, S.IN_PROGRESS, **also)


def on_leave(session: Session, encounter_id: int) -> Encounter:
    """The patient is away for a while, and comes back into the same visit."""
    return advance(session, held(session, encounter_id), S.ONLEAVE)


def drafts(session: Session, encounter_id: int) -> Sequence[ClinicalNote]:
    """The actor's notes of a visit that are not signed yet."""
    me = current().practitioner_id
    if me is None or not current().may("read", "ClinicalNote"):
        return []
    return session.scalars(
        select(ClinicalNote).where(
            ClinicalNote.encounter_id == encounter_id,
            ClinicalNote.author_id == me,
            ClinicalNote.status == CompositionStatus.PRELIMINARY,
        )
    ).all()


def finish(session: Session, encounter_id: int, *, insist: bool = False) -> Encounter:
    """It is over: the appointment it came from is fulfilled, and what is to be billed can be.

    Raises DraftsLeft where a note of the actor's is not signed yet, unless they insist; IllegalTransition.
    """
    encounter = held(session, encounter_id)
    if not insist and S.FINISHED in ENCOUNTER_TRANSITIONS[S(encounter.status)] and drafts(session, encounter_id):
        raise DraftsLeft
    advance(session, encounter, S.FINISHED, ended_at=now())
    if current().may("update", "Appointment"):
        booked = select(Appointment).where(
            Appointment.encounter_id == encounter.id, Appointment.status == AppointmentStatus.CHECKED_IN
        )
        for visit in session.scalars(booked).all():
            scheduling.fulfil(session, visit.id)
    events.emit(session, events.EncounterFinished(encounter.id, encounter.patient_id))
    return encounter


def cancel(session: Session, encounter_id: int) -> Encounter:
    """It does not take place: the patient left before being seen, or will not come."""
    encounter = held(session, encounter_id)
    begun = encounter.status != S.PLANNED
    return advance(session, encounter, S.CANCELLED, ended_at=now() if begun else None)


def withdraw(session: Session, encounter_id: int) -> Encounter:
    """It was opened by mistake. What was written in it stays, and is withdrawn by itself."""
    return advance(session, held(session, encounter_id), S.ENTERED_IN_ERROR)


# ---- what came about in one --------------------------------------------------------------------------------------

LONGEST: Final = 200


def contents(session: Session, encounter: Encounter) -> dict[str, Sequence[Any]]:
    """What was found, done and written in a visit, by part of the chart; only the parts the actor may read."""
    found: dict[str, Sequence[Any]] = {}
    for part in clinical.on_timeline():
        model, when = clinical.TIMELINE[part]
        if part in ("visits", "dispenses", "documents"):
            continue
        statement = select(model).where(model.encounter_id == encounter.id).options(*clinical.told_with(model))
        found[part] = session.scalars(
            statement.order_by(when.desc().nulls_last(), model.id.desc()).limit(LONGEST)
        ).all()
    return found
