"""What others are given of a visit or a freed time: calendar files (RFC 5545), links to answer by, private feeds.

Nothing here says more of a visit than where and when, and in a practitioner's own feed which room and what kind: what
is mailed, and what a calendar subscribes to, leaves the house.
"""

from __future__ import annotations

import hashlib
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from email.utils import parseaddr
from functools import lru_cache
from uuid import UUID
from zoneinfo import ZoneInfo

from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_time
from icalendar import Calendar, Event, Timezone, vCalAddress, vText
from itsdangerous import BadData, SignatureExpired, URLSafeTimedSerializer
from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from app import guard, trail
from app.actor import current, service
from app.errors import (
    Forbidden,
    Invalid,
    LinkOver,
    LinkUnknown,
    NotAtBranch,
    NotFound,
    OfferOver,
    OutOfService,
    OutsideHours,
    SlotTaken,
)
from app.services import scheduling, waitlist
from app.services.clock import zone
from models.audit import AuditOutbox
from models.base import now
from models.codes import AppointmentStatus, CancelationReason, OfferStatus, PurposeOfUse, WaitlistStatus
from models.organization import Branch, Practitioner
from models.scheduling import BLOCKING, LONGEST, Appointment, Booking, CalendarFeed, SlotOffer, SlotOfferInvitation

PRODUCT = "-//Wardbook//Wardbook//EN"
LINK_LASTS = timedelta(days=180)
FEED_REACHES = timedelta(weeks=8)
TO_COME = (AppointmentStatus.BOOKED, AppointmentStatus.PENDING)
"""States in which a patient can still say whether they will come."""


@dataclass(frozen=True)
class Sender:
    """What this process is told: the address people type, the key links are signed with, who invitations are from."""

    public_url: str
    secret_key: str
    mail_from: str


_sender: Sender | None = None


def connect(public_url: str, secret_key: str, mail_from: str) -> None:
    """Tell this process how links begin, what signs them, and who invitations are from."""
    global _sender
    _sender = Sender(public_url, secret_key, mail_from or "Wardbook <wardbook@localhost>")


def sender() -> Sender:
    """What `connect` was told. Raises OutOfService where nothing was."""
    if _sender is None:
        raise OutOfService
    return _sender


# ---- when and where, in words ------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def locale_of(language: str, country: str) -> Locale:
    """How a language writes dates in a country (ISO 3166, or "")."""
    for name in (f"{language}_{country}" if country else language, f"{language}_001", language):
        try:
            return Locale.parse(name.replace("-", "_"))
        except (UnknownLocaleError, ValueError):
            continue
    return Locale("en")


def country_of(branch: Branch) -> str:
    """The country a branch is in (ISO 3166), or ""."""
    addresses = branch.organization.address
    return str(addresses[0].get("country") or "") if addresses else ""


def spoken(visit: Appointment | SlotOffer, language: str) -> tuple[str, str]:
    """The day and the time of a visit by the branch's clock, as its country writes them in a language."""
    return clock_shows(visit.branch, visit.start_at, language)


def clock_shows(branch: Branch, moment: datetime, language: str) -> tuple[str, str]:
    """The day and the time that a branch's clock shows at a moment."""
    here = moment.astimezone(zone(branch.time_zone))
    locale = locale_of(language, country_of(branch))
    time = format_time(here.time(), "short", locale=locale).replace("\u202f", " ")  # which would double an SMS
    return format_date(here.date(), "full", locale=locale), time


# ---- calendar files ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _zone_rules(name: str, since: int, until: int) -> bytes:
    """A VTIMEZONE of a zone, for the years between two."""
    rules = Timezone.from_tzinfo(ZoneInfo(name), name, date(since - 1, 1, 1), date(until + 2, 1, 1))
    return bytes(rules.to_ical())


def _calendar(visits: Sequence[Appointment], entries: Iterable[Event], method: str) -> Calendar:
    """A calendar of some visits, with the rules of every clock they go by."""
    calendar = Calendar()
    calendar.add("prodid", PRODUCT)
    calendar.add("version", "2.0")
    calendar.add("method", method)
    years: dict[str, list[int]] = {}
    for visit in visits:
        years.setdefault(visit.branch.time_zone, []).append(visit.start_at.year)
    for name, found in sorted(years.items()):
        if zone(name) != ZoneInfo("UTC"):
            calendar.add_component(Timezone.from_ical(_zone_rules(name, min(found), max(found)).decode()))
    for entry in entries:
        calendar.add_component(entry)
    return calendar


def _entry(visit: Appointment, summary: str, location: str, *, sequence: int, status: str) -> Event:
    """A visit as calendars know it."""
    clock = zone(visit.branch.time_zone)
    entry = Event()
    entry.add("uid", str(visit.uid))
    entry.add("sequence", sequence)
    entry.add("dtstamp", visit.updated_at.astimezone(UTC))
    entry.add("dtstart", visit.start_at.astimezone(clock))
    entry.add("dtend", visit.end_at.astimezone(clock))
    entry.add("summary", summary)
    entry.add("location", location)
    entry.add("status", status)
    entry.add("class", "PRIVATE")
    return entry


def invitation(visit: Appointment, method: str, summary: str, attendee: str | None = None) -> bytes:
    """The .ics of one visit: `method` REQUEST invites `attendee`, CANCEL takes it back, PUBLISH only shows it.

    The UID stays the same however often a visit is moved, and SEQUENCE rises; the time is the branch's clock's.
    """
    over = method == "CANCEL"
    # A visit that was withdrawn keeps its sequence, and calendars heed a cancellation that is newer.
    sequence = visit.sequence + (visit.status == AppointmentStatus.ENTERED_IN_ERROR)
    entry = _entry(visit, summary, str(visit.branch), sequence=sequence, status="CANCELLED" if over else "CONFIRMED")
    name, address = parseaddr(sender().mail_from)
    organizer = vCalAddress(f"mailto:{address}")
    organizer.params["cn"] = vText(name or str(visit.branch))
    entry.add("organizer", organizer)
    if attendee is not None:
        guest = vCalAddress(f"mailto:{attendee}")
        guest.params["role"] = vText("REQ-PARTICIPANT")
        guest.params["partstat"] = vText("NEEDS-ACTION")
        guest.params["rsvp"] = vText("FALSE")
        entry.add("attendee", guest)
    return bytes(_calendar([visit], [entry], method).to_ical())


# ---- links a patient answers by ----------------------------------------------------------------------------------


def _signer(purpose: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(
        sender().secret_key,
        salt=f"wardbook {purpose}",
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
    )


ANSWER, OFFER = "visit answer", "offer answer"


def _shortened(uid: UUID) -> str:
    """A UUID in 22 letters."""
    return urlsafe_b64encode(uid.bytes).rstrip(b"=").decode()


def _said(purpose: str, token: str) -> tuple[UUID, str]:
    """The UUID a link is about, and what stands behind it. Raises LinkUnknown and LinkOver."""
    try:
        said = str(_signer(purpose).loads(token, max_age=int(LINK_LASTS.total_seconds())))
        return UUID(bytes=urlsafe_b64decode(f"{said[:22]}==")), said[22:]
    except SignatureExpired as error:
        raise LinkOver from error
    except (BadData, ValueError) as error:
        raise LinkUnknown from error


def link_to(visit: Appointment) -> str:
    """The address where a patient says whether they will come; good until the visit is moved, called off or begins."""
    return f"{sender().public_url}/visit/{_signer(ANSWER).dumps(f'{_shortened(visit.uid)}{visit.sequence}')}"


@contextmanager
def at_a_link(name: str = "reminders") -> Iterator[Session]:
    """Look or act on behalf of whoever holds a link, as a service by name, in one unit of work.

    The trail has it with their address.
    """
    holder = replace(service(name), origin=current().origin, purpose=PurposeOfUse.PATRQT)
    with guard.acting_as(holder), guard.unit_of_work() as session:
        yield session


def by_link(session: Session, token: str) -> Appointment:
    """The visit a link is about, locked. Raises LinkUnknown for one that is not ours, LinkOver for one of the past.

    Which of the reasons it is that ended a link is not said: whoever holds an old one learns nothing from it.
    """
    uid, sequence = _said(ANSWER, token)
    statement = select(Appointment).where(Appointment.uid == uid).order_by(Appointment.sequence.desc()).limit(1)
    visit = session.scalars(
        statement.options(joinedload(Appointment.branch))
        .with_for_update(of=Appointment)
        .execution_options(populate_existing=True)
    ).one_or_none()
    if visit is None:
        raise LinkUnknown
    if str(visit.sequence) != sequence or visit.status not in TO_COME or visit.start_at <= now():
        raise LinkOver
    return visit


def confirm(session: Session, visit: Appointment) -> None:
    """The patient will come; the first time they said so is kept."""
    guard.because("The patient confirmed by the link they were sent.")
    scheduling.confirm(session, visit)


def call_off(session: Session, visit: Appointment) -> None:
    """The patient cannot come."""
    guard.because("The patient called it off by the link they were sent.")
    scheduling.cancel(session, visit.id, reason=CancelationReason.PATIENT_REMINDER)


# ---- links to a freed time ---------------------------------------------------------------------------------------


def link_to_offer(invitation: SlotOfferInvitation) -> str:
    """The address where somebody who waits takes a freed time or lets it pass."""
    return f"{sender().public_url}/offer/{_signer(OFFER).dumps(_shortened(invitation.fhir_id))}"


@contextmanager
def at_an_offer() -> Iterator[Session]:
    """`at_a_link`, as the waiting list. Raises OfferOver for whatever keeps a time from being booked."""
    try:
        with at_a_link("waitlist") as session:
            yield session
    except SlotTaken as error:  # everything else it needs is held for those who were asked
        raise SlotTaken("You have another appointment at that time. If you would rather come then, call us.") from error
    except (Invalid, NotAtBranch, OutsideHours) as error:
        raise OfferOver from error


def still_open(invitation: SlotOfferInvitation) -> bool:
    """Whether somebody can still say what they want of a time that they were offered."""
    offer, waits = invitation.offer, invitation.entry.status == WaitlistStatus.WAITING
    return invitation.answer is None and offer.status == OfferStatus.OPEN and offer.until_at > now() and waits


def by_offer_link(session: Session, token: str) -> SlotOfferInvitation:
    """What a link offers, or has brought. Raises LinkUnknown, LinkOver, and OfferOver where it is gone."""
    uid, _ = _said(OFFER, token)
    statement = select(SlotOfferInvitation).where(SlotOfferInvitation.fhir_id == uid)
    found = session.scalars(
        statement.options(
            joinedload(SlotOfferInvitation.offer).joinedload(SlotOffer.branch), joinedload(SlotOfferInvitation.entry)
        ).execution_options(populate_existing=True)
    ).one_or_none()
    if found is None:
        raise LinkUnknown
    if found.answer == "accepted":
        visit = session.get(Appointment, found.entry.appointment_id)
        if visit is None or visit.status not in TO_COME or visit.start_at <= now():
            raise LinkOver
    elif found.answer != "declined" and not still_open(found):
        raise OfferOver
    return found


def take(session: Session, invitation: SlotOfferInvitation) -> None:
    """The patient wants the time. Raises OfferOver where somebody was quicker."""
    guard.because("The patient took it by the link they were sent.")
    waitlist.accept(session, invitation.id)


def let_pass(session: Session, invitation: SlotOfferInvitation) -> None:
    """The patient does not want the time. Raises OfferOver where it is gone anyway."""
    guard.because("The patient let it pass by the link they were sent.")
    waitlist.decline(session, invitation.id)


# ---- a practitioner's own feed -----------------------------------------------------------------------------------


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _mine() -> int:
    """The practitioner who is signed in. Raises Forbidden where it is none."""
    mine = current().practitioner_id
    if mine is None:
        raise guard.refuse("read", "CalendarFeed", NoFeed)
    return mine


class NoFeed(Forbidden):
    """Somebody who sees nobody has no calendar of their own."""

    sentence = "Only people who see patients have a calendar of their own."


def feed(session: Session) -> CalendarFeed | None:
    """One's own feed, where one has any. Raises Forbidden for whoever is no practitioner."""
    return session.get(CalendarFeed, _mine())


def _noted(session: Session, deed: str) -> None:
    """A line of the trail in the transaction of what it is about."""
    noted = trail.event("E", deed, entities=[{"type": "Practitioner", "ids": [_mine()]}])
    session.add(AuditOutbox(id=UUID(noted["id"]), event=trail.entry(trail.agent(current()), [noted])))


def open_feed(session: Session) -> str:
    """The address of one's own feed, which is shown now and never again; one there was before is good no more."""
    guard.require("read", "Appointment")
    token = secrets.token_urlsafe(32)
    mine = session.get(CalendarFeed, _mine(), with_for_update=True)
    if mine is None:
        mine = CalendarFeed(practitioner_id=_mine())
        session.add(mine)
    mine.token_digest, mine.made_at = _digest(token), now()
    _noted(session, "make-feed")
    session.flush()
    return f"{sender().public_url}/calendar/{token}.ics"


def close_feed(session: Session) -> None:
    """Whoever has the address of one's own feed gets nothing by it any more."""
    mine = session.get(CalendarFeed, _mine(), with_for_update=True)
    if mine is not None:
        session.delete(mine)
        _noted(session, "end-feed")
        session.flush()


def whose_feed(session: Session, token: str) -> int:
    """The practitioner whose feed it is. Raises NotFound for a revoked address, or one whose account was closed."""
    found = session.scalars(select(CalendarFeed).where(CalendarFeed.token_digest == _digest(token))).one_or_none()
    if found is None:
        raise NotFound
    with guard.acting_as(service("calendar")):
        person = guard.session().get(Practitioner, found.practitioner_id)
    owner = guard.who_is(person.user_id, current().origin) if person and person.user_id else None
    if person is None or not person.active or owner is None or not owner.may("read", "Appointment"):
        raise NotFound
    return person.id


def _stretch() -> tuple[datetime, datetime]:
    """What a feed shows: from yesterday, so that today is in it by every clock, to eight weeks ahead."""
    today = now().replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=1), today + FEED_REACHES


def feed_mark(session: Session, practitioner_id: int) -> str:
    """What changes whenever a feed does (its ETag), found without a look at anybody's visit.

    Calendars ask every few minutes: as long as nothing has changed no record is read, and none is in the trail.
    """
    opens, closes = _stretch()
    mine = select(Booking).where(Booking.practitioner_id == practitioner_id, Booking.appointment_id.is_not(None))
    taken = session.scalars(mine.where(Booking.blocking).order_by(Booking.appointment_id)).all()
    near = [b for b in taken if (b.period.upper or closes) > opens and (b.period.lower or opens) < closes]
    rooms = select(Booking).where(
        Booking.appointment_id.in_([booking.appointment_id for booking in near]), Booking.room_id.is_not(None)
    )
    places = {booking.appointment_id: booking.room_id for booking in session.scalars(rooms)}
    said = [f"{opens:%Y-%m-%d} {practitioner_id}"]
    said += [f"{b.appointment_id} {b.period.lower} {b.period.upper} {places.get(b.appointment_id)}" for b in near]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:32]


def feed_file(session: Session, practitioner_id: int) -> bytes:
    """A practitioner's visits of the next eight weeks as a calendar: when, where, in which room, of what kind.

    Whose visit it is is not in it: calendars that subscribe to it are kept on telephones and by other companies.
    """
    opens, closes = _stretch()
    mine = select(Appointment).where(
        Appointment.practitioner_id == practitioner_id,
        Appointment.start_at > opens - LONGEST,
        Appointment.start_at < closes,
        Appointment.end_at > opens,
        Appointment.status.in_(BLOCKING),
    )
    whole = [joinedload(each) for each in (Appointment.branch, Appointment.room, Appointment.visit_type)]
    visits = session.scalars(mine.options(*whole).order_by(Appointment.start_at, Appointment.id)).all()
    entries = []
    for visit in visits:
        where = f"{visit.branch}, {visit.room}" if visit.room else str(visit.branch)
        entries.append(_entry(visit, str(visit.visit_type), where, sequence=visit.sequence, status="CONFIRMED"))
    calendar = _calendar(visits, entries, "PUBLISH")
    calendar.add("x-wr-calname", "Wardbook")
    calendar.add("refresh-interval", timedelta(minutes=15), parameters={"value": "DURATION"})
    calendar.add("x-published-ttl", "PT15M")
    return bytes(calendar.to_ical())


__all__ = [
    "Sender",
    "at_a_link",
    "at_an_offer",
    "by_link",
    "by_offer_link",
    "call_off",
    "clock_shows",
    "close_feed",
    "confirm",
    "connect",
    "country_of",
    "feed",
    "feed_file",
    "feed_mark",
    "invitation",
    "let_pass",
    "link_to",
    "link_to_offer",
    "locale_of",
    "open_feed",
    "sender",
    "spoken",
    "still_open",
    "take",
    "whose_feed",
]
