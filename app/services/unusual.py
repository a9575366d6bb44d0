"""Unusual access: what the house found in the trail that is worth a question, and what the question came to.

`jobs/unusual.py` writes the rows; here they are read, and reviewed by somebody else than whoever they are about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flask_appbuilder.security.sqla.models import User
from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from app import guard
from app.actor import current
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.services.words import line
from models.audit import UnusualAccess
from models.base import now
from models.codes import Explanation, UnusualReason
from models.patients import Patient

PAGE = 25
MOST = 200
"""Rows that are shown at once of those that wait."""
LETTERS = 15
"""Fewer are no finding, where something was not explained."""


@dataclass(frozen=True)
class Asked:
    """What somebody wants to see of unusual access; empty parts ask for nothing."""

    reason: str = ""
    user_id: int | None = None
    finding: str = ""
    since: datetime | None = None
    until: datetime | None = None
    page: int = 0


def waiting(session: Session) -> int:
    """How many wait for a review."""
    counted = select(func.count()).select_from(UnusualAccess).where(UnusualAccess.reviewed_at.is_(None))
    return session.scalar(counted) or 0


def awaiting(session: Session, asked: Asked) -> tuple[Sequence[UnusualAccess], bool]:
    """Those nobody has reviewed, a person's together and their oldest first, and whether there are more than MOST."""
    found = session.scalars(
        _wanted(asked)
        .where(UnusualAccess.reviewed_at.is_(None))
        .order_by(UnusualAccess.user_id, UnusualAccess.day, UnusualAccess.id)
        .limit(MOST + 1)
    ).all()
    return found[:MOST], len(found) > MOST


def reviewed(session: Session, asked: Asked) -> tuple[Sequence[UnusualAccess], bool]:
    """A page of those that were reviewed, the last first, and whether there are more."""
    statement = _wanted(asked).where(UnusualAccess.reviewed_at.is_not(None))
    if asked.finding:
        statement = statement.where(UnusualAccess.finding == asked.finding)
    newest = statement.order_by(UnusualAccess.reviewed_at.desc(), UnusualAccess.id.desc())
    found = session.scalars(newest.offset(asked.page * PAGE).limit(PAGE + 1)).all()
    return found[:PAGE], len(found) > PAGE


def _wanted(asked: Asked) -> Any:
    statement = select(UnusualAccess).options(
        selectinload(UnusualAccess.user).selectinload(User.roles), selectinload(UnusualAccess.reviewed_by)
    )
    if asked.reason:
        statement = statement.where(UnusualAccess.reason == asked.reason)
    if asked.user_id is not None:
        statement = statement.where(UnusualAccess.user_id == asked.user_id)
    if asked.since:
        statement = statement.where(UnusualAccess.last_at >= asked.since)
    if asked.until:
        statement = statement.where(UnusualAccess.first_at < asked.until)
    return statement


def patients_of(session: Session, found: Sequence[UnusualAccess]) -> dict[int, Patient]:
    """The patients some rows are about by number, as far as the actor may see them."""
    whose = {each.patient_id for each in found if each.patient_id is not None}
    if not whose or not current().may("read", "Patient"):
        return {}
    return {patient.id: patient for patient in session.scalars(select(Patient).where(Patient.id.in_(whose)))}


def review(session: Session, keys: Sequence[int], *, finding: str, note: str) -> Sequence[UnusualAccess]:
    """Say of some rows whether they were explained, once and for all.

    Raises Forbidden, also for one's own, NotFound, Conflict where one was reviewed already, and Invalid naming the
    field; then nothing is said of any.
    """
    guard.require("update", "UnusualAccess")
    if not keys:
        raise Invalid("Please tick what you have looked at.", field="which")
    found = session.scalars(
        select(UnusualAccess).where(UnusualAccess.id.in_(keys)).order_by(UnusualAccess.id).with_for_update()
    ).all()
    if len(found) < len(set(keys)):
        raise NotFound
    if any(each.user_id == current().user_id for each in found):
        guard.refuse("update", "UnusualAccess")
        raise Forbidden("Nobody reviews what they looked at themselves. Somebody else does.")
    if any(each.reviewed_at is not None for each in found):
        raise Conflict("Somebody else has reviewed this in the meantime. A review is not changed.")
    if finding not in set(Explanation):
        raise Invalid("Please say whether it was explained.", field="finding")
    said = line(re.sub(r"\s+", " ", note), field="note", longest=1000)
    if finding == Explanation.NOT_EXPLAINED and len(said) < LETTERS:
        raise Invalid(f"Please say in {LETTERS} letters or more what was not explained.", field="note")
    for each in found:
        each.finding, each.review_note = finding, said
        each.reviewed_at, each.reviewed_by_id = now(), current().user_id
    session.flush()
    return found


__all__ = ["Asked", "UnusualReason", "awaiting", "patients_of", "review", "reviewed", "waiting"]
