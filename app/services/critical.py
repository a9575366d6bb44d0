"""Critical results: who has to be told, every try to tell them, who repeated the value, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session, joinedload

from app import events, guard
from app.actor import Actor, current
from app.errors import Conflict, Invalid, NotAClinician, NotFound
from app.services.words import line
from models.base import now
from models.clinical import Observation
from models.codes import AttemptOutcome
from models.lab import CriticalAttempt, CriticalResult, OnCall, ServiceRequest
from models.organization import Practitioner

PATIENCE = timedelta(minutes=15)
"""How long whoever ordered a result is waited for, before whoever is on call is asked."""


def acts_on_them(actor: Actor) -> bool:
    """Whether somebody can do something about a critical result, so that it is theirs to confirm."""
    return (
        actor.practitioner_id is not None
        and actor.may("update", "CriticalResult")
        and actor.may("create", "ServiceRequest")
    )


def _practitioner() -> int:
    number = current().practitioner_id
    if number is None:
        raise NotAClinician
    return number


def _open(session: Session, critical_id: int) -> CriticalResult:
    """A critical result nobody has confirmed yet, locked. Raises NotFound, Conflict."""
    statement = select(CriticalResult).where(CriticalResult.id == critical_id)
    critical = session.scalars(statement.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if critical is None:
        raise NotFound
    if critical.acknowledged_at is not None:
        raise Conflict("Somebody has confirmed this already.")
    return critical


def repeats(value: str, said: str) -> bool:
    """Whether somebody said a value as it is, with its unit or without; 6,5 is 6.5."""

    def plain(text: str) -> str:
        return "".join(text.casefold().replace(",", ".").split())

    number = value.split(" ", 1)[0] if value[:1].isdigit() or value[:1] in "<>-" else value
    return plain(said) in (plain(value), plain(number))


def acknowledge(session: Session, critical_id: int, *, read_back: str) -> CriticalResult:
    """Say that one knows of a critical result and takes it on, repeating its value.

    It is for those who can act on it, so the laboratory does not confirm its own results: it writes down its calls.
    Raises Invalid for another value, Forbidden, Conflict where somebody was first.
    """
    if not acts_on_them(current()):
        raise guard.refuse("update", "CriticalResult")
    critical = _open(session, critical_id)
    if not repeats(critical.value, line(read_back, field="read_back")):
        raise Invalid("This is not the value. Look at it again, then repeat it.", field="read_back")
    _confirmed(critical, _practitioner())
    session.flush()
    events.emit(session, events.CriticalRaised(critical.id, critical.patient_id, critical.target_id))
    return critical


def _confirmed(critical: CriticalResult, by: int) -> None:
    critical.acknowledged_at, critical.acknowledged_by_id, critical.read_back = now(), by, True


def attempt(
    session: Session,
    critical_id: int,
    *,
    outcome: str,
    recipient_id: int | None = None,
    recipient_name: str = "",
    read_back: str = "",
    note: str = "",
) -> CriticalAttempt:
    """Write down a try to tell somebody; one who repeated the value has confirmed it. Raises Invalid, Conflict."""
    guard.require("create", "CriticalResult")
    critical = _open(session, critical_id)
    if outcome not in set(AttemptOutcome):
        raise Invalid("Please choose what became of the call.", field="outcome")
    named = line(recipient_name, field="recipient_name", longest=120)
    if recipient_id is None and not named:
        raise Invalid("Please say whom you called.", field="recipient")
    if recipient_id is not None and session.get(Practitioner, recipient_id) is None:
        raise Invalid("Please choose somebody of the staff.", field="recipient")
    caller = _practitioner()
    if outcome == AttemptOutcome.CONFIRMED:
        if recipient_id == caller:
            raise Invalid("Nobody calls themselves. Choose whom you called.", field="recipient")
        if not repeats(critical.value, line(read_back, field="read_back")):
            raise Invalid(
                "This is not the value. Have them repeat it, and write down what they say.", field="read_back"
            )
    tried = CriticalAttempt(
        critical_result_id=critical.id,
        patient_id=critical.patient_id,
        caller_id=caller,
        recipient_id=recipient_id,
        recipient_name=named if recipient_id is None else "",
        outcome=outcome,
        attempted_at=now(),
        note=line(note, field="note", longest=500),
    )
    session.add(tried)
    if outcome == AttemptOutcome.CONFIRMED:
        _confirmed(critical, recipient_id or caller)
        events.emit(session, events.CriticalRaised(critical.id, critical.patient_id, critical.target_id))
    session.flush()
    return tried


# ---- nobody answers ----------------------------------------------------------------------------------------------


def on_call_at(session: Session, branch_id: int, at: datetime) -> OnCall | None:
    """Who is on call at a branch; of several whose time began last."""
    statement = select(OnCall).where(OnCall.branch_id == branch_id, OnCall.starts_at <= at, OnCall.ends_at > at)
    newest = statement.options(joinedload(OnCall.practitioner)).order_by(OnCall.starts_at.desc(), OnCall.id.desc())
    return session.scalars(newest.limit(1)).one_or_none()


def escalate(session: Session, at: datetime) -> list[int]:
    """Hand what nobody has confirmed in time to whoever is on call at its branch; gives the ids of what was.

    Each quarter of an hour without an answer is written down as a try, and whoever is on call then is told again.
    Where nobody is on call it stays with whoever it is with, open in the laboratory's list, and is tried again.
    """
    late = session.scalars(
        select(CriticalResult)
        .where(
            CriticalResult.acknowledged_at.is_(None),
            func.coalesce(CriticalResult.escalated_at, CriticalResult.raised_at) <= at - PATIENCE,
            CriticalResult.branch_id.is_not(None),
        )
        .order_by(CriticalResult.id)
        .with_for_update(skip_locked=True)
    ).all()
    handed = []
    for critical in late:
        duty = on_call_at(session, critical.branch_id or 0, at)
        if duty is None:
            continue
        if critical.target_id is not None:
            session.add(
                CriticalAttempt(
                    critical_result_id=critical.id,
                    patient_id=critical.patient_id,
                    recipient_id=critical.target_id,
                    outcome=AttemptOutcome.NOT_REACHED,
                    attempted_at=at,
                    note="On their screen for a quarter of an hour",
                )
            )
        critical.target_id, critical.escalated_at = duty.practitioner_id, at
        session.flush()
        events.emit(session, events.CriticalRaised(critical.id, critical.patient_id, critical.target_id))
        handed.append(critical.id)
    return handed


# ---- lists -------------------------------------------------------------------------------------------------------


def open_results(session: Session, *, branch_id: int | None = None, most: int = 200) -> Sequence[CriticalResult]:
    """What nobody has confirmed yet, the oldest first."""
    statement = select(CriticalResult).where(CriticalResult.acknowledged_at.is_(None))
    if branch_id is not None:
        statement = statement.where(CriticalResult.branch_id == branch_id)
    return session.scalars(
        statement.options(
            joinedload(CriticalResult.patient),
            joinedload(CriticalResult.target),
            joinedload(CriticalResult.observation),
        )
        .order_by(CriticalResult.raised_at, CriticalResult.id)
        .limit(most)
    ).all()


def _mine() -> tuple[ColumnElement[bool], ...]:
    me = current().practitioner_id
    ordered = (
        select(Observation.id)
        .join(ServiceRequest, ServiceRequest.id == Observation.service_request_id)
        .where(ServiceRequest.requester_id == me)
    )
    whose = or_(CriticalResult.target_id == me, CriticalResult.observation_id.in_(ordered))
    return CriticalResult.acknowledged_at.is_(None), whose


def waiting() -> dict[str, Select[Any]]:
    """The count of `mine`, to be asked with other counts; nothing where the person acts on none."""
    if not acts_on_them(current()):
        return {}
    return {"mine": select(func.count()).select_from(CriticalResult).where(*_mine())}


def mine(session: Session, *, most: int = 5) -> Sequence[CriticalResult]:
    """What the person at work has to confirm: results they ordered, and those that came to them; the oldest first."""
    if not acts_on_them(current()):
        return []
    statement = select(CriticalResult).where(*_mine())
    return session.scalars(
        statement.options(joinedload(CriticalResult.patient), joinedload(CriticalResult.observation))
        .order_by(CriticalResult.raised_at, CriticalResult.id)
        .limit(most)
    ).all()


def show(session: Session, critical_id: int) -> CriticalResult:
    """One critical result with all it refers to. Raises NotFound."""
    statement = select(CriticalResult).where(CriticalResult.id == critical_id)
    critical = session.scalars(
        statement.options(
            joinedload(CriticalResult.patient),
            joinedload(CriticalResult.target),
            joinedload(CriticalResult.acknowledged_by),
            joinedload(CriticalResult.observation),
        )
    ).one_or_none()
    if critical is None:
        raise NotFound
    return critical


def attempts(session: Session, critical_id: int) -> Sequence[CriticalAttempt]:
    """Every try to tell somebody of a critical result, in order."""
    statement = select(CriticalAttempt).where(CriticalAttempt.critical_result_id == critical_id)
    return session.scalars(
        statement.options(joinedload(CriticalAttempt.caller), joinedload(CriticalAttempt.recipient)).order_by(
            CriticalAttempt.attempted_at, CriticalAttempt.id
        )
    ).all()


def whom(session: Session, critical: CriticalResult) -> list[Practitioner]:
    """Whom to call: who has to be told, who ordered it, and who is on call; each once."""
    found: dict[int, Practitioner] = {}
    if critical.target is not None:
        found[critical.target.id] = critical.target
    if critical.observation is not None and critical.observation.service_request_id is not None:
        statement = select(ServiceRequest).where(ServiceRequest.id == critical.observation.service_request_id)
        order = session.scalars(statement.options(joinedload(ServiceRequest.requester))).one_or_none()
        if order is not None:
            found.setdefault(order.requester_id, order.requester)
    duty = on_call_at(session, critical.branch_id, now()) if critical.branch_id is not None else None
    if duty is not None:
        found.setdefault(duty.practitioner_id, duty.practitioner)
    return list(found.values())


# ---- how long it takes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """How long critical results of a branch took to be confirmed, in minutes."""

    branch_id: int | None
    raised: int
    confirmed: int
    in_time: int
    """Confirmed within PATIENCE."""
    escalated: int
    median: float | None
    ninth: float | None
    """What nine in ten took no longer than."""
    points: tuple[tuple[datetime, float], ...]
    """Each that was confirmed: when it was raised, and its minutes; the oldest first."""


MOST = 5000
"""Critical results one report is about."""


def times(session: Session, since: datetime, until: datetime) -> list[Times]:
    """How long it took at each branch, of the results raised in [since, until). Raises Invalid for too many."""
    statement = select(CriticalResult).where(CriticalResult.raised_at >= since, CriticalResult.raised_at < until)
    found = session.scalars(statement.order_by(CriticalResult.id).limit(MOST + 1)).all()
    if len(found) > MOST:
        raise Invalid(f"That is more than {MOST} results. Choose fewer days.", field="since")
    by_branch: dict[int | None, list[CriticalResult]] = {}
    for critical in found:
        by_branch.setdefault(critical.branch_id, []).append(critical)
    lines = []
    for branch_id, group in sorted(by_branch.items(), key=lambda each: each[0] or 0):
        points = sorted(
            (critical.raised_at, (critical.acknowledged_at - critical.raised_at).total_seconds() / 60)
            for critical in group
            if critical.acknowledged_at is not None
        )
        took = sorted(minutes for _, minutes in points)
        lines.append(
            Times(
                branch_id,
                raised=len(group),
                confirmed=len(took),
                in_time=sum(minutes <= PATIENCE.total_seconds() / 60 for minutes in took),
                escalated=sum(critical.escalated_at is not None for critical in group),
                median=median(took) if took else None,
                ninth=took[ceil(len(took) * 0.9) - 1] if took else None,
                points=tuple(points),
            )
        )
    return lines


__all__ = [
    "Times",
    "acknowledge",
    "acts_on_them",
    "attempt",
    "attempts",
    "escalate",
    "mine",
    "on_call_at",
    "open_results",
    "repeats",
    "show",
    "times",
    "waiting",
    "whom",
]
