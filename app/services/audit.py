"""Reading the trail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from redis.exceptions import RedisError
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from app import guard, trail
from app.actor import current
from app.services import patients
from models.audit import AuditEvent, DrainState
from models.base import now
from models.patients import Patient

PAGE = 50
LOOK_BACK = timedelta(days=30)


@dataclass(frozen=True)
class Question:
    """What somebody wants to know of the trail; empty parts ask for nothing."""

    patient: str = ""
    person: str = ""
    branch_id: int | None = None
    action: str = ""
    outcome: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    role_id: int | None = None
    """Only changes of this role."""
    before: tuple[datetime, UUID] | None = None
    """Where the page before this one ended."""


@dataclass(frozen=True)
class Answer:
    """A page of the trail, the patients it speaks of, and whether there is more."""

    events: Sequence[AuditEvent]
    patients: dict[int, Patient]
    more: bool


def search(session: Session, asked: Question) -> Answer:
    """Lines of the trail, the newest first; the last thirty days where no time is given."""
    since = asked.since or now() - LOOK_BACK
    statement = select(AuditEvent).where(AuditEvent.recorded >= since)
    if asked.until:
        statement = statement.where(AuditEvent.recorded < asked.until)
    names = current().may("read", "Patient")
    if asked.patient:
        keys = [patient.id for patient in patients.find(session, asked.patient, limit=50).patients] if names else []
        statement = statement.where(AuditEvent.patient_id.in_(keys))
    if asked.person:
        statement = statement.where(AuditEvent.agent_name.ilike(f"%{_escaped(asked.person)}%"))
    if asked.branch_id is not None:
        statement = statement.where(AuditEvent.branch_id == asked.branch_id)
    if asked.action:
        statement = statement.where(AuditEvent.action == asked.action)
    if asked.outcome is not None:
        statement = statement.where(AuditEvent.outcome == asked.outcome)
    if asked.role_id is not None:
        changed = AuditEvent.entities[0]
        statement = statement.where(
            AuditEvent.action.in_(("C", "U", "D")),
            AuditEvent.patient_id.is_(None),
            changed["type"].as_string().in_(("Role", "RoleGrant", "RoleSetting")),
            changed["ids"][0].as_string() == str(asked.role_id),
        )
    if asked.before:
        when, key = asked.before
        earlier = or_(AuditEvent.recorded < when, and_(AuditEvent.recorded == when, AuditEvent.id < key))
        statement = statement.where(AuditEvent.recorded <= when, earlier)
    guard.searching("the trail")
    events = session.scalars(statement.order_by(AuditEvent.recorded.desc(), AuditEvent.id.desc()).limit(PAGE + 1)).all()
    shown = events[:PAGE]
    whose = {event.patient_id for event in shown if event.patient_id is not None}
    named = session.scalars(select(Patient).where(Patient.id.in_(whose))).all() if whose and names else []
    return Answer(shown, {patient.id: patient for patient in named}, len(events) > PAGE)


@dataclass(frozen=True)
class Drain:
    """How far the batch job has come: lines that still wait, and when the last batch was stored."""

    waiting: int | None
    """None where the trail's Redis does not answer."""
    drained_at: datetime


def drain(session: Session) -> Drain:
    """Where the trail stands between the write-ahead log and the table."""
    try:
        waiting: int | None = trail.the_trail().redis.xlen(trail.STREAM)
    except RedisError:
        waiting = None
    return Drain(waiting, session.get_one(DrainState, 1).drained_at)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
