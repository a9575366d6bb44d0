"""Who is on call at a branch: asked when whoever ordered a critical result does not answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from app import guard
from app.errors import IllegalTransition, Invalid, NotFound
from models.base import now
from models.lab import OnCall
from models.organization import Branch, Practitioner

LONGEST = timedelta(days=14)
"""Nobody is on call for longer without a break."""


def coming(session: Session, branch_id: int | None = None, *, most: int = 100) -> Sequence[OnCall]:
    """Who is and will be on call, the next ones first."""
    asked = select(OnCall).where(OnCall.ends_at > now())
    if branch_id is not None:
        asked = asked.where(OnCall.branch_id == branch_id)
    wide = (joinedload(OnCall.practitioner), joinedload(OnCall.branch))
    return session.scalars(asked.options(*wide).order_by(OnCall.starts_at, OnCall.id).limit(most)).all()


def begin(session: Session, *, branch_id: int, practitioner_id: int, starts_at: datetime, ends_at: datetime) -> OnCall:
    """Say who is on call from when to when; two at once may be. Raises Invalid, naming the field."""
    guard.require("create", "OnCall")
    person, branch = session.get(Practitioner, practitioner_id), session.get(Branch, branch_id)
    if branch is None or not branch.active:
        raise Invalid("Please choose a branch.", field="branch")
    if person is None or not person.active or person.user_id is None:
        raise Invalid("Please choose somebody who can sign in.", field="practitioner")
    if ends_at <= starts_at:
        raise Invalid("It cannot end before it begins.", field="ends_at")
    if ends_at <= now():
        raise Invalid("This time is over already.", field="ends_at")
    if ends_at - starts_at > LONGEST:
        raise Invalid("Nobody is on call for longer than 14 days.", field="ends_at")
    row = OnCall(branch_id=branch_id, practitioner_id=practitioner_id, starts_at=starts_at, ends_at=ends_at)
    session.add(row)
    session.flush()
    return row


def end(session: Session, on_call_id: int) -> OnCall:
    """Let it end now, or, where it has not begun, never be. Raises IllegalTransition for what is over, NotFound."""
    guard.require("update", "OnCall")
    row = session.scalars(select(OnCall).where(OnCall.id == on_call_id).with_for_update()).one_or_none()
    if row is None:
        raise NotFound
    moment = now()
    if row.ends_at <= moment:
        raise IllegalTransition("This is over already.")
    if row.starts_at >= moment:
        row.starts_at = moment - timedelta(microseconds=1)
    row.ends_at = moment
    session.flush()
    return row
