"""What patients are told by e-mail and SMS: a visit was booked, moved, called off, is soon; a time is free, or gone.

Each is said once. A row of `Communication` for every visit or offer, occasion and medium is written first, in a
transaction of its own, and a constraint lets there be only one. Whoever sends it locks the row, puts off its next try
by ten minutes and commits; only then does the message leave, and `sent_at` is set after it has. A carrier that does
not take it now makes the row due again at once, and the next job, or the next minute, tries again. Where a process
dies after the message has left and before that is written, nobody can know: the row comes due after the ten minutes
and the message is sent again, under the same Message-ID (or Idempotency-Key for SMS), by which mail programs, gateways
and our own folder take the second for the first. So it is at least once on the way, and once where it is read.

A message says the branch, the day and the time, and nothing of who is seen or what for: telephones lie on tables.
"""

from __future__ import annotations

import os
import smtplib
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as WIRE
from email.utils import format_datetime, parseaddr
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import requests
import structlog
from babel.support import NullTranslations, Translations
from sqlalchemy import and_, or_, select, tuple_
from sqlalchemy.orm import Session, joinedload

from app import guard
from app.errors import Conflict, Invalid, OutOfService
from app.services import invitations
from app.services.invitations import TO_COME
from app.services.words import phone
from models.base import now
from models.codes import AppointmentStatus, OfferStatus, WaitlistStatus
from models.organization import Branch
from models.patients import Patient
from models.scheduling import LONGEST, Appointment, Communication, SlotOffer, SlotOfferInvitation

log = structlog.get_logger(__name__)

LEASE = timedelta(minutes=10)
"""For how long a message that somebody began to send is nobody else's."""
BATCH = 200
"""Messages at most that one run sends; the next one goes on."""
KEPT = timedelta(days=30)
"""For how long messages stay in the folder that stands in for a carrier."""
NEWS = timedelta(hours=2)
"""For how long somebody who was too late for a freed time is still told so."""
CATALOGUES = Path(__file__).resolve().parents[2] / "translations"


class Undelivered(Exception):
    """It was not taken now, and may be tried again."""


class Unreachable(Undelivered):
    """The carrier takes nothing from us at the moment, whoever it is for."""


class Refused(Exception):
    """It will never be taken: there is no such address."""


# ---- carriers ----------------------------------------------------------------------------------------------------


class Mail(Protocol):
    """What takes e-mail. Raises Undelivered, Unreachable and Refused."""

    def send(self, message: EmailMessage, key: str) -> None: ...


class Gateway(Protocol):
    """What takes SMS: `number` is E.164, and of two messages with one `key` the second is dropped."""

    def send(self, number: str, text: str, key: str) -> None: ...


@dataclass(frozen=True)
class Outbox:
    """A folder messages are laid into, where nothing is set up to carry them."""

    folder: Path

    def keep(self, name: str, content: bytes) -> None:
        """Write a file nobody but its owner can read, whole or not at all; the same name again replaces it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.folder / f".{name}.{os.getpid()}"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        draft.replace(self.folder / name)

    def prune(self, before: datetime) -> int:
        """Remove what was laid down before a moment, and give how many files that were."""
        old = [
            path
            for path in (self.folder.iterdir() if self.folder.is_dir() else ())
            if path.is_file() and not path.is_symlink() and path.stat().st_mtime < before.timestamp()
        ]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


@dataclass(frozen=True)
class MailFolder:
    """E-mail as files that mail programs open."""

    outbox: Outbox

    def send(self, message: EmailMessage, key: str) -> None:
        self.outbox.keep(f"{key}.eml", message.as_bytes())


@dataclass(frozen=True)
class SmsFolder:
    """SMS as text files."""

    outbox: Outbox

    def send(self, number: str, text: str, key: str) -> None:
        self.outbox.keep(f"{key}.sms", f"To: {number}\n\n{text}\n".encode())


@dataclass(frozen=True)
class SmtpServer:
    """A mail server: `smtp://user:password@host:587` (STARTTLS) or `smtps://host:465`; to this machine also without."""

    url: str

    def send(self, message: EmailMessage, key: str) -> None:
        del key  # the message has it as its Message-ID
        parts = urlsplit(self.url)
        try:
            server = self._connected()
            try:
                if parts.username:
                    server.login(unquote(parts.username), unquote(parts.password or ""))
                self._hand_over(server, message)
            finally:
                with suppress(OSError, smtplib.SMTPException):  # it was taken by now, however they part
                    server.quit()
        except (OSError, smtplib.SMTPException) as error:
            raise Unreachable(type(error).__name__) from error

    def _connected(self) -> smtplib.SMTP:
        parts, secure = urlsplit(self.url), ssl.create_default_context()
        host = parts.hostname or ""
        if parts.scheme == "smtps":
            return smtplib.SMTP_SSL(host, parts.port or 465, timeout=20, context=secure)
        server = smtplib.SMTP(host, parts.port or 587, timeout=20)
        server.ehlo()
        if server.has_extn("starttls") and not here(host):
            server.starttls(context=secure)
            server.ehlo()
        elif not here(host):
            server.close()
            raise Unreachable("it offers no STARTTLS, and patients' addresses do not cross a network in the open")
        return server

    @staticmethod
    def _hand_over(server: smtplib.SMTP, message: EmailMessage) -> None:
        """Raises Undelivered or Refused for what is about this message only."""
        try:
            server.send_message(message)
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            raise (Refused if min(codes, default=0) >= 500 else Undelivered)(str(codes)) from error
        except smtplib.SMTPDataError as error:
            raise (Refused if error.smtp_code >= 500 else Undelivered)(str(error.smtp_code)) from error
        except (smtplib.SMTPNotSupportedError, MessageError, UnicodeError, ValueError) as error:
            raise Refused(type(error).__name__) from error


def here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class HttpGateway:
    """An SMS gateway that takes `{"to", "text"}` as JSON, with a bearer token and an Idempotency-Key."""

    url: str
    token: str

    def send(self, number: str, text: str, key: str) -> None:
        headers = {"Idempotency-Key": key, **({"Authorization": f"Bearer {self.token}"} if self.token else {})}
        try:
            answer = requests.post(
                self.url, json={"to": number, "text": text}, headers=headers, timeout=(5, 20), allow_redirects=False
            )
        except requests.RequestException as error:
            raise Unreachable(type(error).__name__) from error
        if answer.ok and answer.status_code < 300:
            return
        if answer.status_code in (400, 410, 422):
            raise Refused(str(answer.status_code))
        if answer.status_code in (409, 429):
            raise Undelivered(str(answer.status_code))
        raise Unreachable(str(answer.status_code))


# ---- what this process is told -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Post:
    """What carries messages, and how many hours before a visit patients are reminded."""

    mail: Mail
    sms: Gateway
    hours: tuple[int, ...]
    outbox: Outbox | None = None
    """The folder that stands in for a carrier, or once did."""


_post: Post | None = None


def connect(mail: Mail, sms: Gateway, hours: Sequence[int], outbox: Path | None = None) -> None:
    """Tell this process what carries its messages; `hours` before a visit patients are reminded.

    `outbox` is the folder that is kept tidy whatever carries them now.
    """
    global _post
    _post = Post(mail, sms, tuple(sorted(hours)), Outbox(outbox) if outbox else None)


def carriers(smtp: str, sms_url: str, sms_token: str, outbox: Path) -> tuple[Mail, Gateway]:
    """What is set up to carry messages, or the folder in its place."""
    folder = Outbox(outbox)
    return (
        SmtpServer(smtp) if smtp else MailFolder(folder),
        HttpGateway(sms_url, sms_token) if sms_url else SmsFolder(folder),
    )


def post() -> Post:
    """What `connect` was told. Raises OutOfService where nothing was."""
    if _post is None:
        raise OutOfService
    return _post


# ---- to whom -----------------------------------------------------------------------------------------------------

MEANS: dict[str, tuple[str, ...]] = {"email": ("email",), "sms": ("phone", "sms")}
"""The kinds of contact point (FHIR ContactPoint.system) that a medium reaches."""
PREFERRED = ("mobile", "home", "work", "temp")


def reached(patient: Patient, branch: Branch) -> dict[str, str | None]:
    """The media by which a patient can be told something, each with the address; None for one that cannot be used.

    Nothing at all for somebody who has died or whose record is closed.
    """
    if patient.deceased or not patient.active:
        return {}
    found: dict[str, str | None] = {}
    for medium, systems in MEANS.items():
        points = [p for p in patient.telecom if p.get("system") in systems]
        points.sort(key=_rank)
        current = (str(point.get("value") or "") for point in points if point.get("use") != "old")
        usable = (_usable(medium, value, invitations.country_of(branch)) for value in current)
        if points:
            found[medium] = next((address for address in usable if address), None)
    return found


def _rank(point: dict[str, Any]) -> tuple[int, int]:
    """Where a contact point stands among others: by its own rank (FHIR), then by its use."""
    rank, use = point.get("rank"), point.get("use")
    return rank if isinstance(rank, int) else 99, PREFERRED.index(use) if use in PREFERRED else len(PREFERRED)


def _usable(medium: str, value: str, country: str) -> str | None:
    """An address as carriers take it; None for one they would not."""
    if medium == "sms":
        try:
            return phone(value, country or None)
        except Invalid:
            return None
    try:
        parsed = Address(addr_spec=value.strip())
    except (MessageError, ValueError, IndexError):
        return None
    return parsed.addr_spec if parsed.username and "." in parsed.domain else None


# ---- what is said ------------------------------------------------------------------------------------------------


Subject = Appointment | SlotOfferInvitation
"""What a message is about."""


@dataclass(frozen=True)
class Letter:
    """A message in both lengths, with the calendar's view of it where there is something for a calendar."""

    subject: str
    text: str
    short: str
    method: str | None
    summary: str


@lru_cache(maxsize=64)
def _catalogue(language: str) -> NullTranslations:
    return Translations.load(str(CATALOGUES), [language])


def language_for(patient: Patient, branch: Branch) -> str:
    """The first of the patient's and the branch's languages that we speak; English otherwise."""
    for name in (*patient.languages, *branch.languages):
        language = name.split("-")[0].lower()
        if language == "en" or isinstance(_catalogue(language), Translations):
            return language
    return "en"


def offer_letter(invitation: SlotOfferInvitation, kind: str) -> Letter:
    """What somebody who waits is told of a freed time: `kind` is offer, or late for one that is gone."""
    offer = invitation.offer
    language = language_for(invitation.patient, offer.branch)
    _ = _catalogue(language).gettext
    day, time = invitations.spoken(offer, language)
    until = invitations.clock_shows(offer.branch, offer.until_at, language)[1]
    said = {"branch": str(offer.branch), "day": day, "time": time, "until": until}
    if kind == "late":
        gone = _("The time at %(branch)s on %(day)s at %(time)s is gone. You stay on the waiting list.") % said
        return Letter(_("The time at %(branch)s is gone") % said, f"{gone}\n", gone, None, "")
    link = invitations.link_to_offer(invitation)
    free = _("A time is free at %(branch)s: %(day)s at %(time)s.") % said
    held = _("It is held until %(until)s; the first who takes it has it.") % said
    ask = _("Please tell us here whether you want it:")
    subject = _("A time is free at %(branch)s") % said
    return Letter(subject, f"{free} {held}\n\n{ask}\n{link}\n", f"{free} {held} {link}", None, "")


def letter(visit: Appointment, kind: str) -> Letter:
    """What a patient is told: `kind` is booked, moved, cancelled or reminder."""
    language = language_for(visit.patient, visit.branch)
    _ = _catalogue(language).gettext
    day, time = invitations.spoken(visit, language)
    said = {"branch": str(visit.branch), "day": day, "time": time}
    summary = _("Appointment at %(branch)s") % said
    if kind == "cancelled":
        gone = _("Your appointment at %(branch)s on %(day)s at %(time)s will not take place.") % said
        again = _("If you would like another time, please call us.")
        subject = _("Your appointment was called off")
        return Letter(subject, f"{gone}\n\n{again}\n", f"{gone} {again}", "CANCEL", summary)
    subject, first = {
        "booked": (
            _("Your appointment at %(branch)s"),
            _("Your appointment at %(branch)s is on %(day)s at %(time)s."),
        ),
        "moved": (
            _("Your appointment at %(branch)s was moved"),
            _("Your appointment at %(branch)s was moved. It is now on %(day)s at %(time)s."),
        ),
        "reminder": (
            _("A reminder of your appointment at %(branch)s"),
            _("A reminder: your appointment at %(branch)s is on %(day)s at %(time)s."),
        ),
    }[kind]
    link = invitations.link_to(visit)
    ask = _("Please tell us here whether you will come:")
    text = f"{first % said}\n\n{ask}\n{link}\n"
    if kind != "reminder":
        text += "\n" + _("The file that comes with this message puts it into your calendar.") + "\n"
    short = f"{first % said} {_('Will you come?')} {link}"
    return Letter(subject % said, text, short, None if kind == "reminder" else "REQUEST", summary)


def written(about: Subject, said: Letter, address: str, key: str) -> EmailMessage:
    """A letter as e-mail; the same `key` gives the same Message-ID."""
    sender = invitations.sender().mail_from
    message = EmailMessage(policy=WIRE.clone(cte_type="7bit"))
    message["From"] = sender
    message["To"] = Address(addr_spec=address)
    message["Subject"] = said.subject
    message["Date"] = format_datetime(now())
    message["Message-ID"] = f"<{key}@{parseaddr(sender)[1].rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(said.text)
    if said.method and isinstance(about, Appointment):
        file = invitations.invitation(about, said.method, said.summary, address)
        message.add_alternative(
            file.decode(), subtype="calendar", params={"method": said.method}, charset="utf-8", cte="base64"
        )
        message.add_attachment(file, maintype="application", subtype="ics", filename="appointment.ics")
    return message


# ---- once --------------------------------------------------------------------------------------------------------


def _whole(statement: Any) -> Any:
    return statement.options(joinedload(Appointment.patient), joinedload(Appointment.branch)).execution_options(
        populate_existing=True
    )


def _with_offer(statement: Any) -> Any:
    return statement.options(
        joinedload(SlotOfferInvitation.patient),
        joinedload(SlotOfferInvitation.entry),
        joinedload(SlotOfferInvitation.offer).joinedload(SlotOffer.branch),
    ).execution_options(populate_existing=True)


def tell(appointment_id: int) -> None:
    """Tell the patient of a visit that was booked, moved or called off, unless they were told.

    Raises Undelivered where a carrier takes nothing; what was sent by then stays sent.
    """
    session = guard.session()
    visit = session.scalars(_whole(select(Appointment).where(Appointment.id == appointment_id))).one_or_none()
    kind = news_of(session, visit) if visit is not None else None
    if visit is not None and kind is not None:
        send_all([(key, "") for key in noted(visit, kind, visit.sequence)])


def news_of(session: Session, visit: Appointment) -> str | None:
    """What there is to say of a visit as it is now; None for nothing."""
    if visit.start_at <= now() or visit.walk_in:
        return None
    if visit.status in TO_COME:
        if visit.moved_from_id is not None:
            return "moved"
        return "booked" if visit.series_id is None or _first_to_come(session, visit) else None
    if visit.status not in (AppointmentStatus.CANCELLED, AppointmentStatus.ENTERED_IN_ERROR):
        return None
    instead = select(Appointment).where(Appointment.moved_from_id == visit.id).limit(1)
    return "cancelled" if session.scalars(instead).first() is None else None


def _first_to_come(session: Session, visit: Appointment) -> bool:
    """Whether it is the next one of its series: nobody wants fifty messages, and each of the others has a reminder."""
    others = select(Appointment).where(
        Appointment.series_id == visit.series_id,
        Appointment.status.in_(TO_COME),
        Appointment.start_at > now(),
        Appointment.start_at < visit.start_at,
    )
    return session.scalars(others.limit(1)).first() is None


def tell_offer(offer_id: int) -> None:
    """Tell those who were asked about a freed time of it, or that it is gone, unless they were told.

    Raises Undelivered where a carrier takes nothing; what was sent by then stays sent.
    """
    send_all([(key, "") for key in offers_noted(offer_id)])


def offers_noted(offer_id: int | None = None) -> list[int]:
    """The numbers of the messages that are to be sent about one freed time, or about any; written down now."""
    session = guard.session()
    asked = select(Communication.invitation_id).where(Communication.kind == "offer")
    # One may still be on its way when the time goes: whatever medium has offered it tells that it is gone.
    medium_of = (Communication.invitation_id, Communication.medium)
    informed = select(*medium_of).where(Communication.kind == "late").correlate(None)
    told = asked.where(Communication.sent_at.is_not(None), tuple_(*medium_of).not_in(informed))
    statement = (
        select(SlotOfferInvitation)
        .join(SlotOfferInvitation.offer)
        .where(
            or_(
                and_(
                    SlotOffer.status == OfferStatus.OPEN,
                    SlotOffer.until_at > now(),
                    SlotOfferInvitation.answer.is_(None),
                    SlotOfferInvitation.id.not_in(asked.scalar_subquery()),
                ),
                and_(
                    SlotOfferInvitation.answer == "late",
                    SlotOfferInvitation.answered_at > now() - NEWS,
                    SlotOffer.start_at > now(),
                    SlotOfferInvitation.id.in_(told.scalar_subquery()),
                ),
            )
        )
    )
    if offer_id is not None:
        statement = statement.where(SlotOffer.id == offer_id)
    found = session.scalars(_with_offer(statement.order_by(SlotOfferInvitation.id).limit(BATCH))).all()
    return [key for each in found for key in noted(each, "offer" if each.answer is None else "late", 0)]


def noted(about: Subject, kind: str, wave: int) -> list[int]:
    """The numbers of the messages about a visit or an offer on an occasion, written down now where they are not yet.

    None of them where somebody else writes them in this very moment: then they are theirs to send.
    """
    media, patient_id = reached(about.patient, branch_of(about)), about.patient_id
    subject = {"appointment_id" if isinstance(about, Appointment) else "invitation_id": about.id}
    try:
        with guard.unit_of_work() as session:
            if kind == "late":
                offered = select(Communication).where(
                    Communication.invitation_id == about.id,
                    Communication.kind == "offer",
                    Communication.sent_at.is_not(None),
                )
                by = {row.medium for row in session.scalars(offered)}
                media = {medium: address for medium, address in media.items() if medium in by}
            before = select(Communication).filter_by(**subject, kind=kind, wave=wave)
            rows = {row.medium: row for row in session.scalars(before)}
            for medium, address in media.items():
                if medium not in rows:
                    rows[medium] = Communication(
                        patient_id=patient_id,
                        **subject,
                        kind=kind,
                        wave=wave,
                        medium=medium,
                        failed_at=None if address else now(),
                    )
                    session.add(rows[medium])
            session.flush()
            return [row.id for row in rows.values()]
    except Conflict:
        return []


def branch_of(about: Subject) -> Branch:
    """Where a visit, or a time on offer, would be."""
    return about.branch if isinstance(about, Appointment) else about.offer.branch


def send_all(waiting: Sequence[tuple[int, str]]) -> None:
    """Send messages by number and medium, one after the other; where a carrier is out, none of its others is tried.

    Raises the first error after all of them.
    """
    out: set[str] = set()
    errors: list[Exception] = []
    for key, medium in waiting:
        if medium in out:
            continue
        try:
            send(key)
        except Exception as error:  # noqa: BLE001  (one message that cannot be made does not keep back the others)
            log.warning("messages.not_sent", medium=medium, error=type(error).__name__)
            errors.append(error)
            if isinstance(error, Unreachable) and medium:
                out.add(medium)
    if errors:
        raise errors[0]


def send(key: int) -> None:
    """Send a message that is due, unless somebody else has it in hand. Raises Undelivered and Unreachable."""
    with guard.unit_of_work() as session:
        due = select(Communication).where(
            Communication.id == key,
            Communication.sent_at.is_(None),
            Communication.failed_at.is_(None),
            Communication.again_at <= now(),
        )
        row = session.scalars(
            due.with_for_update(skip_locked=True).execution_options(populate_existing=True)
        ).one_or_none()
        if row is None:
            return
        row.again_at = now() + LEASE
    session = guard.session()
    about = _about(session, row)
    address = reached(about.patient, branch_of(about)).get(row.medium)
    if address is None or not still_so(session, about, row):
        _settled(row, failed_at=now())
        return
    said = letter(about, row.kind) if isinstance(about, Appointment) else offer_letter(about, row.kind)
    name = str(row.fhir_id)
    message = written(about, said, address, name) if row.medium == "email" else None
    guard.record()  # that somebody looked at this record is written before anything of it leaves
    try:
        if message is not None:
            post().mail.send(message, name)
        else:
            post().sms.send(address, said.short, name)
    except Undelivered:
        _settled(row, again_at=now())
        raise
    except Refused as error:
        log.info("messages.refused", medium=row.medium, error=str(error))
        _settled(row, failed_at=now())
        return
    _settled(row, sent_at=now())


def _about(session: Session, row: Communication) -> Subject:
    """The visit or the invitation a message is about, as it is now."""
    if row.invitation_id is None:
        visit: Appointment = session.scalars(
            _whole(select(Appointment).where(Appointment.id == row.appointment_id))
        ).one()
        return visit
    invited: SlotOfferInvitation = session.scalars(
        _with_offer(select(SlotOfferInvitation).where(SlotOfferInvitation.id == row.invitation_id))
    ).one()
    return invited


def _settled(row: Communication, **how: datetime) -> None:
    """Write down what became of a message."""
    with guard.unit_of_work() as session:
        for name, value in how.items():
            setattr(row, name, value)
        session.flush()


def still_so(session: Session, about: Subject, row: Communication) -> bool:
    """Whether what was to be said is still so: it may have waited, and the visit or the offer may have moved on."""
    if not isinstance(about, Appointment):
        if row.kind == "offer":
            return invitations.still_open(about)
        waits = about.entry.status == WaitlistStatus.WAITING
        return about.answer == "late" and waits and about.offer.start_at > now()
    if row.kind == "reminder":
        return about.status == AppointmentStatus.BOOKED and window_of(about) == row.wave
    return news_of(session, about) == row.kind and about.sequence == row.wave


# ---- by the clock ------------------------------------------------------------------------------------------------


def window_of(visit: Appointment) -> int | None:
    """The hours before a visit that patients are reminded by now; None before the first, and once it has begun."""
    left = visit.start_at - now()
    return next((hours for hours in post().hours if timedelta(0) < left <= timedelta(hours=hours)), None)


def remind() -> None:
    """Note down what is due, reminders and offers, then send whatever is open: these, and what did not leave at first.

    Raises the first error after everything that could be sent was.
    """
    session = guard.session()
    for hours in post().hours:
        for visit in due(session, hours):
            noted(visit, "reminder", hours)
    offers_noted()
    open_ones = select(Communication).where(
        Communication.sent_at.is_(None),
        Communication.failed_at.is_(None),
        Communication.again_at <= now(),
    )
    waiting = session.scalars(open_ones.order_by(Communication.again_at, Communication.id).limit(BATCH)).all()
    send_all([(row.id, row.medium) for row in waiting])


def tidy() -> None:
    """Remove messages from the outbox folder that have lain there for 30 days."""
    folder = post().outbox
    if folder is not None and (removed := folder.prune(now() - KEPT)):
        log.info("messages.pruned", files=removed)


def due(session: Session, hours: int) -> Sequence[Appointment]:
    """The visits whose patients are to be reminded now, so many hours before, and can be reached at all.

    A visit that was booked or moved within these hours needs none: its patient was told just then. Neither does one
    that a later reminder is due for already.
    """
    opens = now() + timedelta(hours=max((each for each in post().hours if each < hours), default=0))
    closes = now() + timedelta(hours=hours)
    told = and_(
        Communication.appointment_id == Appointment.id, Communication.kind == "reminder", Communication.wave == hours
    )
    systems = [system for each in MEANS.values() for system in each]
    statement = (
        select(Appointment)
        .join(Appointment.patient)
        .outerjoin(Communication, told)
        .where(
            Appointment.status == AppointmentStatus.BOOKED,
            Appointment.start_at > opens,
            Appointment.start_at <= closes,
            Appointment.end_at > opens,
            Appointment.end_at <= closes + LONGEST,
            Appointment.created_at <= Appointment.start_at - timedelta(hours=hours),
            Patient.active,
            ~Patient.deceased,
            or_(*(Patient.telecom.contains([{"system": system}]) for system in systems)),
            Communication.id.is_(None),
        )
    )
    found: Sequence[Appointment] = session.scalars(_whole(statement.order_by(Appointment.start_at).limit(BATCH))).all()
    return found


__all__ = [
    "BATCH",
    "LEASE",
    "Gateway",
    "HttpGateway",
    "Letter",
    "Mail",
    "MailFolder",
    "Outbox",
    "Refused",
    "SmsFolder",
    "SmtpServer",
    "Undelivered",
    "Unreachable",
    "carriers",
    "connect",
    "due",
    "letter",
    "noted",
    "offer_letter",
    "offers_noted",
    "reached",
    "remind",
    "send",
    "tell",
    "tell_offer",
    "tidy",
    "window_of",
    "written",
]
