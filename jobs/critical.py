"""Critical results: told to the open pages of whoever has to know, and handed on when nobody answers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from app import guard
from app.events import CriticalRaised, on
from app.services import critical, feed
from jobs.base import connection, every, job
from models.base import now
from models.lab import CriticalResult


@on(CriticalRaised)
@job(queue="realtime", service="critical")
def push(event: dict[str, Any]) -> None:
    """Tell whoever has to know, and whoever had to before it was handed on, that there is something to look at."""
    raised = CriticalRaised(**event)
    session = guard.session()
    found = session.scalars(select(CriticalResult).where(CriticalResult.id == raised.critical_result_id)).one_or_none()
    if found is None:
        return
    people = {raised.target_id, *(tried.recipient_id for tried in critical.attempts(session, found.id))}
    for person in sorted(key for key in people if key is not None):
        feed.append(connection(), feed.Pointer("CriticalResult", found.id, None, found.version, person))


@every(seconds=60)
@job(queue="events", retry=None, service="critical")
def escalate() -> None:
    """Hand what nobody has confirmed in a quarter of an hour to whoever is on call."""
    with guard.unit_of_work() as session:
        critical.escalate(session, now())


__all__ = ["escalate", "push"]
