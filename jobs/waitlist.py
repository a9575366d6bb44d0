"""A visit that is called off is offered to those who wait, and to the next ones when nobody takes it in time."""

from __future__ import annotations

from typing import Any

import structlog

from app import guard
from app.errors import Refusal
from app.events import AppointmentChanged, OfferMade, on
from app.services import waitlist
from jobs.base import every, job
from models.codes import AppointmentStatus
from models.scheduling import Appointment

log = structlog.get_logger(__name__)


@on(AppointmentChanged)
@job(queue="waitlist", service="waitlist")
def offer(event: dict[str, Any]) -> None:
    """Offer the time of a visit that was called off. Told twice, the second time finds it held or taken."""
    changed = AppointmentChanged(**event)
    try:
        with guard.unit_of_work() as session:
            visit = session.get(Appointment, changed.appointment_id)
            if visit is not None and visit.status == AppointmentStatus.CANCELLED and visit.version == changed.version:
                waitlist.offer_freed(session, visit)
    except Refusal as refusal:
        log.info("waitlist.not_offered", error=type(refusal).__name__)


@every(seconds=15)
@job(queue="waitlist", retry=None, service="waitlist")
def expire() -> None:
    """Let go of times that nobody took, and offer them to the next ones."""
    with guard.unit_of_work() as session:
        over = waitlist.overdue(session)
        for found in over:
            waitlist.let_go(session, found)
        numbers = [found.id for found in over]
    for number in numbers:
        try_again(number)


@on(OfferMade)
@job(queue="waitlist", service="waitlist")
def declined(event: dict[str, Any]) -> None:
    """All who were asked about a time do not want it: ask the next ones."""
    try_again(OfferMade(**event).offer_id)


def try_again(offer_id: int) -> None:
    """Offer a time that was let go once more; where somebody was quicker, that is the end of it."""
    try:
        with guard.unit_of_work() as session:
            waitlist.offer_again(session, offer_id)
    except Refusal as refusal:
        log.info("waitlist.not_offered", error=type(refusal).__name__)


__all__ = ["declined", "expire", "offer"]
