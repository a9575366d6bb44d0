"""Results that may be read: told to the open pages of whoever ordered them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from app import guard
from app.events import ResultsReleased, on
from app.services import feed
from jobs.base import connection, job
from models.lab import ServiceRequest


@on(ResultsReleased)
@job(queue="realtime", service="results")
def push(event: dict[str, Any]) -> None:
    """Tell whoever ordered them that there is something to read."""
    released = ResultsReleased(**event)
    statement = select(ServiceRequest).where(ServiceRequest.id == released.service_request_id)
    order = guard.session().scalars(statement).one_or_none()
    if order is not None:
        feed.append(connection(), feed.Pointer("ServiceRequest", order.id, None, order.version, order.requester_id))


__all__ = ["push"]
