"""Emergency accesses nobody has reviewed in time are brought before the administrators."""

from __future__ import annotations

from app import guard
from app.services import emergencies
from jobs.base import every, job


@every(seconds=3600)
@job(queue="events", retry=None, service="emergencies")
def escalate() -> None:
    """Mark those that have waited for more than 72 hours; whoever is at it already is left at it."""
    with guard.unit_of_work() as session:
        emergencies.escalate(session)


__all__ = ["escalate"]
