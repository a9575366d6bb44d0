"""What changed is told to the pages that are open: after the commit, as a pointer in the stream of app.services.feed.

Every web process reads that stream by itself and hands on what its own connections may know.  Redis' publish would lose
what is said while a process is away, and could mix up the order; the stream does neither.  These jobs have a queue of
their own: no mail that is being sent keeps a desk waiting.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from app import guard
from app.events import AppointmentChanged, OfferMade, on
from app.services import feed
from jobs.base import connection, job
from models.scheduling import SlotOffer


@on(AppointmentChanged)
@job(queue="realtime", service="calendar")
def push(event: dict[str, Any]) -> None:
    """Tell of a visit that changed."""
    changed = AppointmentChanged(**event)
    feed.append(
        connection(),
        feed.Pointer(
            "Appointment",
            changed.appointment_id,
            changed.branch_id,
            changed.version,
            changed.practitioner_id,
            changed.patient_id,
        ),
    )


@on(OfferMade)
@job(queue="realtime", service="waitlist")
def push_offer(event: dict[str, Any]) -> None:
    """Tell a branch of a freed time that is offered, or is not any longer."""
    offer_id = OfferMade(**event).offer_id
    offer = guard.session().scalars(select(SlotOffer).where(SlotOffer.id == offer_id)).one_or_none()
    if offer is not None:
        feed.append(connection(), feed.Pointer("SlotOffer", offer.id, offer.branch_id, offer.version))


__all__ = ["push", "push_offer"]
