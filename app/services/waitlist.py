"""The waiting list: a time that is freed is held for a while and offered; the first who takes it has it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session, joinedload

from app import events, guard
from app.actor import current
from app.errors import Invalid, NotFound, OfferOver
from app.services import free_times, scheduling
from app.services.clock import zone
from app.services.free_times import Wanted
from app.services.words import line
from models.base import now
from models.codes import AppointmentStatus, CancelationReason, OfferStatus, WaitlistStatus
from models.organization import Branch, Practitioner, Room
from models.patients import Patient
from models.scheduling import Appointment, Equipment, SlotOffer, SlotOfferInvitation, VisitType, WaitlistEntry

HELD = timedelta(minutes=15)
"""How long a freed time is held for those it is offered to."""
SOON = timedelta(minutes=30)
"""A time that is freed this shortly before is offered to nobody: nobody would be there."""
AT_ONCE = 3
"""People a time is offered to at the same moment."""
CONSIDERED = 200
"""People at most that are looked at for one time."""
NOT_FREE = frozenset(
    {
        CancelationReason.PRACTITIONER,
        CancelationReason.PRACTITIONER_AWAY,
        CancelationReason.ROOM,
        CancelationReason.EQUIPMENT,
        CancelationReason.WEATHER,
    }
)
"""Reasons for calling a visit off that keep anybody else from coming at that time as well."""


# ---- who waits ---------------------------------------------------------------------------------------------------


def join(
    session: Session,
    *,
    patient_id: int,
    visit_type_id: int,
    branch_id: int | None = None,
    practitioner_id: int | None = None,
    priority: int = 5,
    earliest_on: date | None = None,
    latest_on: date | None = None,
    note: str = "",
) -> WaitlistEntry:
    """Put a patient on the waiting list, once for one kind of visit at a branch. Raises Invalid, naming the field."""
    # Asked for twice at once, the second one waits here; visits of the same patient do not.
    locked = select(Patient).where(Patient.id == patient_id).with_for_update(key_share=True)
    patient, kind = session.scalars(locked).one_or_none(), session.get(VisitType, visit_type_id)
    branch = session.get(Branch, branch_id or current().branch_id or 0)
    if patient is None or not patient.active or patient.deceased:
        raise Invalid("Please choose a patient whose record is open.", field="patient")
    if kind is None or not kind.active:
        raise Invalid("Please choose a kind of visit.", field="visit_type")
    if branch is None or not branch.active:
        raise Invalid("Please choose a branch.", field="branch")
    if practitioner_id is not None:
        practitioner = session.get(Practitioner, practitioner_id)
        if practitioner is None or not practitioner.active:
            raise Invalid("This doctor does not work here any more.", field="practitioner")
    if not 1 <= priority <= 9:
        raise Invalid("The priority is 1 (highest) to 9.", field="priority")
    today = now().astimezone(zone(branch.time_zone)).date()
    earliest_on = earliest_on or today
    if latest_on is not None and latest_on < max(earliest_on, today):
        raise Invalid("The last day cannot lie before the first, nor in the past.", field="latest_on")
    before = select(WaitlistEntry).where(
        WaitlistEntry.patient_id == patient.id,
        WaitlistEntry.visit_type_id == kind.id,
        WaitlistEntry.branch_id == branch.id,
        WaitlistEntry.status == WaitlistStatus.WAITING,
    )
    if session.scalars(before.limit(1)).first() is not None:
        raise Invalid("This patient is waiting for this kind of visit already.", field="patient")
    entry = WaitlistEntry(
        patient_id=patient.id,
        branch_id=branch.id,
        visit_type_id=kind.id,
        practitioner_id=practitioner_id,
        priority=priority,
        earliest_on=earliest_on,
        latest_on=latest_on,
        note=line(note, field="note", longest=300),
        status=WaitlistStatus.WAITING,
    )
    session.add(entry)
    session.flush()
    return entry


def withdraw(session: Session, entry_id: int) -> WaitlistEntry:
    """Take somebody off the list. Raises NotFound."""
    entry = _held_entry(session, entry_id)
    if entry.status == WaitlistStatus.WAITING:
        entry.status = WaitlistStatus.WITHDRAWN
        session.flush()
    return entry


def _held_entry(session: Session, entry_id: int) -> WaitlistEntry:
    statement = select(WaitlistEntry).where(WaitlistEntry.id == entry_id).with_for_update()
    entry = session.scalars(statement.execution_options(populate_existing=True)).one_or_none()
    if entry is None:
        raise NotFound
    return entry


def waiting(session: Session, *, branch_ids: Sequence[int] = (), most: int = 200) -> Sequence[WaitlistEntry]:
    """Who waits, the first to be asked first."""
    statement = select(WaitlistEntry).where(WaitlistEntry.status == WaitlistStatus.WAITING)
    if branch_ids:
        statement = statement.where(WaitlistEntry.branch_id.in_(branch_ids))
    with_all = [
        joinedload(each)
        for each in (
            WaitlistEntry.patient,
            WaitlistEntry.visit_type,
            WaitlistEntry.practitioner,
            WaitlistEntry.branch,
        )
    ]
    return session.scalars(
        statement.options(*with_all).order_by(WaitlistEntry.priority, WaitlistEntry.id).limit(most)
    ).all()


def ranked(session: Session, offer: SlotOffer, *, most: int = AT_ONCE) -> list[WaitlistEntry]:
    """Who is asked next whether they want a time: those it fits, by priority and then by how long they wait.

    Left out are those who were asked about it already and let it pass, gave that time up themselves, or have something
    else then.
    """
    branch = session.get_one(Branch, offer.branch_id)
    day = offer.start_at.astimezone(zone(branch.time_zone)).date()
    before = select(SlotOffer.id).where(
        SlotOffer.practitioner_id == offer.practitioner_id,
        SlotOffer.start_at == offer.start_at,
        SlotOffer.status != OfferStatus.TAKEN,  # where another one was quicker, they may still want it
    )
    asked = select(SlotOfferInvitation.entry_id).where(SlotOfferInvitation.offer_id.in_(before))
    given_up = select(Appointment).where(
        Appointment.practitioner_id == offer.practitioner_id,
        Appointment.start_at == offer.start_at,
        Appointment.status == AppointmentStatus.CANCELLED,
    )
    patients = {visit.patient_id for visit in session.scalars(given_up)}
    statement = (
        select(WaitlistEntry)
        .where(
            WaitlistEntry.status == WaitlistStatus.WAITING,
            WaitlistEntry.visit_type_id == offer.visit_type_id,
            WaitlistEntry.branch_id == offer.branch_id,
            or_(WaitlistEntry.practitioner_id.is_(None), WaitlistEntry.practitioner_id == offer.practitioner_id),
            WaitlistEntry.earliest_on <= day,
            or_(WaitlistEntry.latest_on.is_(None), WaitlistEntry.latest_on >= day),
            WaitlistEntry.id.not_in(asked.scalar_subquery()),
        )
        .options(joinedload(WaitlistEntry.patient))
        .order_by(WaitlistEntry.priority, WaitlistEntry.id)
        .limit(CONSIDERED)
    )
    found: list[WaitlistEntry] = []
    for entry in session.scalars(statement):
        patient = entry.patient
        if not patient.active or patient.deceased or entry.patient_id in patients:
            continue
        theirs = Wanted(offer.practitioner_id, entry.patient_id, None, (), offer.start_at, offer.end_at)
        if any(clash.kind == "patient" for clash in free_times.clashes(session, theirs)):
            continue
        patients.add(entry.patient_id)
        found.append(entry)
        if len(found) == most:
            break
    return found


# ---- a freed time ------------------------------------------------------------------------------------------------


def offer_freed(session: Session, visit: Appointment) -> SlotOffer | None:
    """Hold the time of a visit that was called off, and offer it to those who wait; None where there is nobody.

    Raises SlotTaken where somebody was quicker: then there is nothing to offer.
    """
    if visit.status != AppointmentStatus.CANCELLED or visit.cancelation_reason in NOT_FREE:
        return None
    return _offer(
        session,
        SlotOffer(
            branch_id=visit.branch_id,
            visit_type_id=visit.visit_type_id,
            practitioner_id=visit.practitioner_id,
            room_id=visit.room_id,
            equipment_ids=list(visit.equipment_ids),
            start_at=visit.start_at,
            end_at=visit.end_at,
            buffer_before=visit.buffer_before,
            buffer_after=visit.buffer_after,
        ),
    )


def _offer(session: Session, made: SlotOffer) -> SlotOffer | None:
    """Write an offer with its invitations, where the visit could take place and there is somebody to invite."""
    if made.start_at < now() + SOON or not _bookable(session, made):
        return None
    made.status, made.until_at = OfferStatus.OPEN, min(now() + HELD, made.start_at - SOON / 2)
    invited = ranked(session, made)
    if not invited:
        return None
    session.add(made)
    session.flush()
    for entry in invited:
        session.add(SlotOfferInvitation(offer_id=made.id, entry_id=entry.id, patient_id=entry.patient_id))
    session.flush()
    events.emit(session, events.OfferMade(made.id))
    return made


def _bookable(session: Session, offer: SlotOffer) -> bool:
    """Whether everything a time needs is still there: the doctor may be on leave by now, or the room retired."""
    rows: list[VisitType | Branch | Practitioner | Room | Equipment] = [
        session.get_one(VisitType, offer.visit_type_id),
        session.get_one(Branch, offer.branch_id),
        session.get_one(Practitioner, offer.practitioner_id),
        *([session.get_one(Room, offer.room_id)] if offer.room_id is not None else []),
        *(session.get_one(Equipment, key) for key in offer.equipment_ids),
    ]
    return all(row.active for row in rows) and free_times.works_then(session, _wanted(offer, None), offer.branch_id)


def invitations(session: Session, offer_id: int) -> Sequence[SlotOfferInvitation]:
    """Who was asked about a time."""
    statement = select(SlotOfferInvitation).where(SlotOfferInvitation.offer_id == offer_id)
    return session.scalars(
        statement.options(joinedload(SlotOfferInvitation.patient), joinedload(SlotOfferInvitation.entry)).order_by(
            SlotOfferInvitation.id
        )
    ).all()


def open_offers(session: Session, *, branch_ids: Sequence[int] = ()) -> Sequence[SlotOffer]:
    """The times on offer, the soonest first."""
    statement = select(SlotOffer).where(SlotOffer.status == OfferStatus.OPEN, SlotOffer.until_at > now())
    if branch_ids:
        statement = statement.where(SlotOffer.branch_id.in_(branch_ids))
    with_all = [joinedload(each) for each in (SlotOffer.branch, SlotOffer.visit_type, SlotOffer.practitioner)]
    return session.scalars(statement.options(*with_all).order_by(SlotOffer.start_at, SlotOffer.id)).all()


def accept(session: Session, invitation_id: int, *, after_all: bool = False) -> Appointment:
    """Take an offered time: the first one who does has it, and the others are told that it is gone.

    Whoever has it may ask again, and gets the same visit. `after_all` is for whoever let it pass and calls the desk:
    they have it as long as nobody else does and it is not held for others.
    Raises OfferOver where somebody else was quicker or it is not held any longer, and as `scheduling.book` does.
    """
    invitation, offer = _held_offer(session, invitation_id)
    entry = _held_entry(session, invitation.entry_id)
    if invitation.answer == "accepted" and entry.appointment_id is not None:
        return session.get_one(Appointment, entry.appointment_id)
    held = offer.status == OfferStatus.OPEN and offer.until_at > now()
    if entry.status != WaitlistStatus.WAITING or offer.status == OfferStatus.TAKEN:
        raise OfferOver
    if not after_all and (not held or invitation.answer is not None):
        raise OfferOver
    # Whoever waits for the held time to be let go must not hold what this transaction needs next.
    free_times.hold(session, _wanted(offer, invitation.patient_id))
    offer.status = OfferStatus.TAKEN
    invitation.answer = None
    session.flush()
    asked = scheduling.Asked(
        patient_id=invitation.patient_id,
        visit_type_id=offer.visit_type_id,
        practitioner_id=offer.practitioner_id,
        start_at=offer.start_at,
        minutes=round((offer.end_at - offer.start_at).total_seconds() / 60),
        room_id=offer.room_id,
        equipment_ids=tuple(offer.equipment_ids),
        branch_id=offer.branch_id,
    )
    visit = scheduling.write(session, scheduling.prepared(session, asked))
    entry.status, entry.appointment_id = WaitlistStatus.BOOKED, visit.id
    _answered(session, offer, invitation, "accepted")
    return visit


def let_pass(session: Session, entries: Sequence[WaitlistEntry]) -> dict[int, SlotOfferInvitation]:
    """The last time on offer that those who wait let pass, where it is still to come: {number of the entry: it}."""
    statement = (
        select(SlotOfferInvitation)
        .join(SlotOfferInvitation.offer)
        .where(
            SlotOfferInvitation.entry_id.in_([entry.id for entry in entries]),
            SlotOfferInvitation.answer.in_(("declined", "late")),
            SlotOffer.status == OfferStatus.EXPIRED,
            SlotOffer.start_at > now(),
        )
        .options(joinedload(SlotOfferInvitation.offer).joinedload(SlotOffer.practitioner))
        .order_by(SlotOfferInvitation.id)
    )
    return {each.entry_id: each for each in session.scalars(statement)}


def decline(session: Session, invitation_id: int) -> None:
    """Somebody does not want an offered time; where nobody is left to answer, the next ones are asked.

    Raises OfferOver where it is not on offer any longer.
    """
    invitation, offer = _held_offer(session, invitation_id)
    if offer.status != OfferStatus.OPEN or invitation.answer is not None:
        raise OfferOver
    invitation.answer, invitation.answered_at = "declined", now()
    session.flush()
    if all(each.answer is not None for each in invitations(session, offer.id)):
        let_go(session, offer)


def _held_offer(session: Session, invitation_id: int) -> tuple[SlotOfferInvitation, SlotOffer]:
    """An invitation with its offer, which is locked until the transaction ends. Raises NotFound."""
    invitation = session.get(SlotOfferInvitation, invitation_id)
    if invitation is None:
        raise NotFound
    offer = _locked(session, invitation.offer_id)
    session.refresh(invitation)
    return invitation, offer


def _locked(session: Session, offer_id: int) -> SlotOffer:
    statement = select(SlotOffer).where(SlotOffer.id == offer_id).with_for_update()
    return session.scalars(statement.execution_options(populate_existing=True)).one()


def _answered(session: Session, offer: SlotOffer, chosen: SlotOfferInvitation | None, answer: str) -> None:
    """Write down who took it; whoever had not answered is too late, and is told so."""
    for each in invitations(session, offer.id):
        if each.answer is None:
            each.answer = answer if chosen is not None and each.id == chosen.id else "late"
            each.answered_at = now()
    session.flush()
    events.emit(session, events.OfferMade(offer.id))


# ---- what runs out -----------------------------------------------------------------------------------------------


def let_go(session: Session, offer: SlotOffer) -> None:
    """Nobody took it in time, or all have declined: whoever had not answered is too late."""
    if offer.status == OfferStatus.OPEN:
        offer.status = OfferStatus.EXPIRED
        session.flush()
    _answered(session, offer, None, "late")


def offer_again(session: Session, offer_id: int) -> SlotOffer | None:
    """Offer a time that was let go to the next ones who wait; None where there are none, or it is too near.

    Raises SlotTaken where somebody was quicker.
    """
    offer = _locked(session, offer_id)
    if offer.status != OfferStatus.EXPIRED:
        return None
    same = ("branch_id", "visit_type_id", "practitioner_id", "room_id", "start_at", "end_at")
    return _offer(
        session,
        SlotOffer(
            **{name: getattr(offer, name) for name in (*same, "buffer_before", "buffer_after")},
            equipment_ids=list(offer.equipment_ids),
        ),
    )


def _wanted(offer: SlotOffer, patient_id: int | None) -> Wanted:
    """What an offer takes of whose time."""
    return Wanted(
        offer.practitioner_id,
        patient_id,
        offer.room_id,
        tuple(offer.equipment_ids),
        offer.start_at,
        offer.end_at,
        offer.buffer_before,
        offer.buffer_after,
    )


def overdue(session: Session, *, most: int = 50) -> Sequence[SlotOffer]:
    """Offers whose time has run out, and those that are over while somebody was not told, locked until the end.

    Others may be looking at the rest.
    """
    guard.require("update", "SlotOffer")
    unanswered = select(SlotOfferInvitation.offer_id).where(SlotOfferInvitation.answer.is_(None))
    statement = (
        select(SlotOffer)
        .where(
            or_(
                and_(SlotOffer.status == OfferStatus.OPEN, SlotOffer.until_at <= now()),
                and_(SlotOffer.status != OfferStatus.OPEN, SlotOffer.id.in_(unanswered)),
            ),
        )
        .order_by(SlotOffer.until_at)
        .limit(most)
        .with_for_update(skip_locked=True)
    )
    return session.scalars(statement.execution_options(populate_existing=True)).all()
