"""Patients are told of their visits and of times on offer: when something happens, and by the clock."""

from __future__ import annotations

from typing import Any

from app.events import AppointmentChanged, OfferMade, on
from app.services import messages
from jobs.base import every, job


@on(AppointmentChanged)
def note_change(event: AppointmentChanged) -> None:
    """Leave it to the queue of messages: a mail server that is away keeps no other news waiting."""
    tell.later(event.appointment_id)


@job(queue="messages", service="reminders")
def tell(appointment_id: int) -> None:
    """Tell the patient what became of a visit."""
    messages.tell(appointment_id)


@on(OfferMade)
@job(queue="messages", service="reminders")
def tell_offer(event: dict[str, Any]) -> None:
    """Tell those who wait of a time on offer, or that it is gone."""
    messages.tell_offer(OfferMade(**event).offer_id)


@every(seconds=60)
@job(queue="messages", retry=None, service="reminders", timeout=600)
def remind() -> None:
    """Remind those whose visits come near, and send again what did not leave."""
    messages.remind()


@every(seconds=24 * 3600)
@job(queue="messages", retry=None, service="reminders")
def tidy() -> None:
    """Clear away messages that have lain in the outbox folder for 30 days."""
    messages.tidy()


__all__ = ["remind", "tell", "tell_offer", "tidy"]
