"""What happened is made known: rows of the outbox become jobs, one for each that listens, after the commit."""

from __future__ import annotations

import time
from typing import Any

import redis
import structlog
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from app import events, guard
from jobs.base import Job, connection, every, job, named
from models.audit import EventOutbox

log = structlog.get_logger(__name__)

BATCH = 500
ATTENDED, PAUSE = 1.5, 0.1
"""Seconds one run looks out for events, and between two looks: a page that is open shows them within a second."""


@every(seconds=1)
@job(queue="relay", retry=None)
def attend() -> None:
    """Relay again and again for a while; the next run waits already, so that somebody always looks."""
    until = time.monotonic() + ATTENDED
    while time.monotonic() < until:
        relay()
        time.sleep(PAUSE)


@job(queue="relay", retry=None)
def relay() -> None:
    """Hand over everything there is. Whatever fails stays in the outbox until the next run."""
    try:
        while hand_over() == BATCH:
            pass
    except (redis.RedisError, SQLAlchemyError) as error:
        log.warning("relay.failed", error=type(error).__name__)


def hand_over() -> int:
    """Queue the oldest events, in order, and take them out of the outbox; gives how many there were.

    The queue has them before the outbox forgets them, so one may be handed over twice but none is lost.  An event of a
    kind nobody knows here stays where it is.
    """
    with guard.engine().begin() as database:
        found = database.execute(
            select(EventOutbox.id, EventOutbox.name, EventOutbox.payload)
            .where(EventOutbox.name.in_(events.KINDS))
            .order_by(EventOutbox.id)
            .limit(BATCH)
            .with_for_update(skip_locked=True)
        ).all()
        if not found:
            return 0
        with connection().pipeline() as pipeline:
            for event in found:
                for listener in events.listeners(event.name)[1]:
                    if isinstance(listener, Job):  # it has a queue of its own
                        listener.put((event.payload,), pipeline=pipeline)
                    else:
                        deliver.put((named(listener), event.name, event.payload), pipeline=pipeline)
            pipeline.execute()
        database.execute(delete(EventOutbox).where(EventOutbox.id.in_([event.id for event in found])))
    return len(found)


@job(queue="events")
def deliver(listener: str, name: str, payload: dict[str, Any]) -> None:
    """Tell one listener of one event. Raises KeyError for an event or a listener that is not known any more."""
    kind, listeners = events.listeners(name)
    {named(known): known for known in listeners}[listener](kind(**payload))


__all__ = ["attend", "relay"]
