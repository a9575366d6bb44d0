"""Patients no message has reached: what reception tells them by telephone, or by putting their record right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select, tuple_
from sqlalchemy.orm import Session, joinedload

from app.actor import current
from app.services.invitations import TO_COME
from app.services.messages import MEANS
from models.base import now
from models.codes import AppointmentStatus, CancelationReason, OfferStatus
from models.patients import Patient
from models.scheduling import Appointment, Communication, SlotOffer, SlotOfferInvitation

AHEAD = timedelta(days=7)
"""How far ahead visits are looked at: a message that failed for a later one is in time then."""
MOST = 200
OWN_DOING = tuple(code for code in CancelationReason if code.startswith("pat"))
"""Reasons for calling a visit off that the patient gave, and need not be told of."""


@dataclass(frozen=True)
class Unreached:
    """A visit, or a time on offer, of which the patient was not told.

    `failed` are the messages that were given up; none where there is neither a phone number nor an e-mail address.
    """

    about: Appointment | SlotOfferInvitation
    failed: tuple[Communication, ...]


def visits(session: Session, branch_id: int) -> list[Unreached]:
    """The visits of the coming days at a branch whose patients were not reached, in order.

    Left out are those whose patients have said that they will come.
    """
    ordered = _visits(branch_id).order_by(Appointment.start_at, Appointment.id).limit(MOST)
    whole = ordered.options(
        joinedload(Appointment.patient), joinedload(Appointment.practitioner), joinedload(Appointment.visit_type)
    )
    found = session.scalars(whole).all()
    rows = _failures(session, Communication.appointment_id.in_([visit.id for visit in found]))
    return [Unreached(visit, tuple(row for row in rows if row.appointment_id == visit.id)) for visit in found]


def offers(session: Session, branch_id: int) -> list[Unreached]:
    """Those who were to be offered a time that is still held for them, and were not reached."""
    ordered = _offers(branch_id).order_by(SlotOffer.until_at, SlotOfferInvitation.id).limit(MOST)
    whole = ordered.options(
        joinedload(SlotOfferInvitation.patient),
        joinedload(SlotOfferInvitation.offer).joinedload(SlotOffer.practitioner),
        joinedload(SlotOfferInvitation.offer).joinedload(SlotOffer.visit_type),
    )
    found = session.scalars(whole).all()
    rows = _failures(session, Communication.invitation_id.in_([each.id for each in found]))
    return [Unreached(each, tuple(row for row in rows if row.invitation_id == each.id)) for each in found]


def count(session: Session, branch_id: int) -> int:
    """How many there are of both; a number and nobody's name."""
    total = 0
    for statement, key in ((_visits(branch_id), Appointment.id), (_offers(branch_id), SlotOfferInvitation.id)):
        few = statement.with_only_columns(key).limit(MOST).subquery()
        total += session.scalar(select(func.count()).select_from(few)) or 0
    return total


def _failures(session: Session, criterion: ColumnElement[bool]) -> Sequence[Communication]:
    """The messages that were given up, the newest first."""
    statement = select(Communication).where(criterion, Communication.failed_at.is_not(None))
    return session.scalars(statement.order_by(Communication.id.desc())).all()


def _given_up(key: Any, *kinds: str) -> Select[Any]:
    """What a message was given up about, on an occasion of which no other one has left or may yet."""
    occasion = (key, Communication.kind, Communication.wave)
    others = select(*occasion).where(key.is_not(None), Communication.failed_at.is_(None)).correlate(None)
    return select(key).where(
        Communication.kind.in_(kinds), Communication.failed_at.is_not(None), tuple_(*occasion).not_in(others)
    )


def _no_address() -> ColumnElement[bool]:
    """That a patient's record has neither a phone number nor an e-mail address."""
    systems = [system for each in MEANS.values() for system in each]
    return and_(*(~Patient.telecom.contains([{"system": system}]) for system in systems))


def _visits(branch_id: int) -> Select[Appointment]:
    told = Communication.appointment_id
    reminded = select(told).where(
        told.is_not(None), Communication.kind == "reminder", Communication.failed_at.is_(None)
    )
    missed = [
        and_(
            Appointment.id.in_(_given_up(told, "booked", "moved", "reminder").scalar_subquery()),
            Appointment.id.not_in(reminded.scalar_subquery()),
        )
    ]
    if "telecom" not in current().rights.hidden("Patient"):
        missed.append(_no_address())
    return (
        select(Appointment)
        .join(Appointment.patient)
        .where(
            Appointment.branch_id == branch_id,
            Appointment.start_at > now(),
            Appointment.start_at <= now() + AHEAD,
            ~Appointment.walk_in,
            Patient.active,
            ~Patient.deceased,
            or_(
                and_(Appointment.status.in_(TO_COME), Appointment.confirmed_at.is_(None), or_(*missed)),
                and_(
                    Appointment.status == AppointmentStatus.CANCELLED,
                    Appointment.cancelation_reason.not_in(OWN_DOING),
                    Appointment.id.in_(_given_up(told, "cancelled").scalar_subquery()),
                ),
            ),
        )
    )


def _offers(branch_id: int) -> Select[SlotOfferInvitation]:
    return (
        select(SlotOfferInvitation)
        .join(SlotOfferInvitation.offer)
        .where(
            SlotOffer.branch_id == branch_id,
            SlotOffer.status == OfferStatus.OPEN,
            SlotOffer.until_at > now(),
            SlotOfferInvitation.answer.is_(None),
            SlotOfferInvitation.id.in_(_given_up(Communication.invitation_id, "offer").scalar_subquery()),
        )
    )


__all__ = ["AHEAD", "Unreached", "count", "offers", "visits"]
