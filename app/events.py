"""What happened, made known after the fact: `emit` in the transaction, the relay in `jobs/` after the commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from models.audit import EventOutbox


@dataclass(frozen=True)
class Event:
    """Something that happened; carries ids only, so that whoever listens asks the gate for the rest."""


@dataclass(frozen=True)
class PatientRegistered(Event):
    """A patient was registered, or who they are was changed."""

    patient_id: int


@dataclass(frozen=True)
class TrailCheckAsked(Event):
    """Somebody wants the trail looked through."""

    check_id: int


@dataclass(frozen=True)
class AppointmentChanged(Event):
    """A visit was booked, moved, called off, or went on to another state; `version` tells one change from the next."""

    appointment_id: int
    branch_id: int
    practitioner_id: int
    patient_id: int
    version: int


@dataclass(frozen=True)
class OfferMade(Event):
    """A freed time was offered to those who wait, or is not any longer."""

    offer_id: int


@dataclass(frozen=True)
class EncounterFinished(Event):
    """A visit is over, with everything done in it: what is to be billed can be."""

    encounter_id: int
    patient_id: int


@dataclass(frozen=True)
class CriticalRaised(Event):
    """A verified result somebody must be told of at once."""

    critical_result_id: int
    patient_id: int
    target_id: int | None


@dataclass(frozen=True)
class ResultsReleased(Event):
    """Results of an order may be read by whoever ordered them, or have changed since."""

    service_request_id: int
    patient_id: int
    requester_id: int | None


KINDS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        PatientRegistered,
        TrailCheckAsked,
        AppointmentChanged,
        OfferMade,
        EncounterFinished,
        CriticalRaised,
        ResultsReleased,
    )
}
Listener = Callable[[Any], None]
_listeners: dict[type[Event], list[Listener]] = {}


def emit(session: Session, event: Event) -> None:
    """Write the event down in the caller's transaction; it is made known once that is committed."""
    session.execute(insert(EventOutbox).values(name=type(event).__name__, payload=asdict(event)))


def on(kind: type[Event]) -> Callable[[Listener], Listener]:
    """Register a listener for a kind of event. It may be called twice for one event and must not mind.

    A job that listens is queued where it belongs, with the event's fields as a dictionary.
    """

    def register(listener: Listener) -> Listener:
        _listeners.setdefault(kind, []).append(listener)
        return listener

    return register


def listeners(name: str) -> tuple[type[Event], list[Listener]]:
    """The kind of an event by name and those who listen. Raises KeyError for a name nobody knows."""
    kind = KINDS[name]
    return kind, _listeners.get(kind, [])
