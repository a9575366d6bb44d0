"""What patients are told of visits and times on offer, once and without a word too many; their links; private feeds."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from aiosmtpd.controller import Controller
from icalendar import Calendar
from rq import SimpleWorker
from rq.serializers import JSONSerializer
from sqlalchemy import text

from app import guard
from app.actor import service
from app.errors import OfferOver
from app.services import invitations, messages, scheduling, waitlist
from app.services.messages import MailFolder, Outbox, SmsFolder, SmtpServer
from app.services.scheduling import Asked
from jobs import base, relay, reminders
from jobs import waitlist as waiting_list
from models.base import now
from models.organization import Practitioner
from models.patients import Patient
from models.scheduling import Appointment, AppointmentSeries, VisitType, WorkingHours
from ops.servers import Servers
from tests import factories
from tests.conftest import Browser, TrailLines, csrf_of
from tests.factories import Hospital

Acting = Callable[[str], AbstractContextManager[Any]]
MADRID = ZoneInfo("Europe/Madrid")
ADDRESS = "http://localhost"
CLINICAL = ("SENTINEL-REASON", "Oncology", "Oncologist", "Dora", "Zinnia", "Quartermain", "Vandersloot", "Xerxes")
"""What must not leave the house: why, what kind, with whom, and who."""


def sql(statement: str, **values: Any) -> list[Any]:
    """Something done or asked past the application."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


def told(kind: str | None = None) -> list[Any]:
    """The messages there are, in order."""
    return sql(f"SELECT * FROM communication {'WHERE kind = :kind' if kind else ''} ORDER BY id", kind=kind)


# ---- the practice, and what carries its messages -----------------------------------------------------------------


@pytest.fixture(scope="module")
def kind(database: Any) -> int:
    """A kind of visit and a doctor whose very names say what somebody has; patients who can be reached."""
    hospital = database.hospital
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        visit = VisitType(name="Oncology follow-up", minutes=30, needs_room=False)
        session.add(visit)
        doctor = session.get(Practitioner, hospital.staff["doctor"])
        assert doctor is not None
        doctor.qualification = "Oncologist"
        for number, patient_id in enumerate(hospital.patients):
            patient = session.get(Patient, patient_id)
            assert patient is not None
            patient.telecom = [
                {"system": "phone", "use": "mobile", "value": f"+3460012345{number % 10}"},
                {"system": "email", "value": f"p{number}@example.org"},
            ]
        session.flush()
        return visit.id


@pytest.fixture(autouse=True)
def outbox(tmp_path: Path, kind: int) -> Iterator[Path]:
    """A folder for messages; what a test booked is gone after it."""
    del kind
    invitations.connect(ADDRESS, "for tests only, and long enough to be one", "Norte <visits@norte.example>")
    folder = Outbox(tmp_path / "outbox")
    messages.connect(MailFolder(folder), SmsFolder(folder), (48, 2))
    yield tmp_path / "outbox"
    guard.session.remove()
    sql("TRUNCATE appointment, communication, appointment_series, slot_offer, calendar_feed, event_outbox CASCADE")


@dataclass
class Practice:
    """Booking, as a doctor who may do so at any hour."""

    hospital: Hospital
    kind: int
    acting: Acting

    def book(
        self, start: datetime | timedelta, patient: int = 0, *, written: timedelta | None = None, **more: Any
    ) -> int:
        """The number of a visit; `written` is how long ago it was booked."""
        at = now() + start if isinstance(start, timedelta) else start
        asked = Asked(
            patient_id=self.hospital.patients[patient],
            visit_type_id=self.kind,
            practitioner_id=self.hospital.staff[more.pop("staff", "doctor")],
            start_at=at + timedelta(seconds=59),
            branch_id=self.hospital.branches[0],
            reason="SENTINEL-REASON chest pain",
            override_reason="for a test",
            **more,
        )
        with self.acting("doctor"), guard.unit_of_work() as session:
            number = scheduling.book(session, asked).id
        if written is not None:
            sql("UPDATE appointment SET created_at = now() - :ago WHERE id = :id", ago=written, id=number)
        return number

    def move(self, number: int, start: timedelta) -> int:
        with self.acting("doctor"), guard.unit_of_work() as session:
            return scheduling.move(session, number, start_at=now() + start, override_reason="for a test").id

    def cancel(self, number: int) -> None:
        with self.acting("doctor"), guard.unit_of_work() as session:
            scheduling.cancel(session, number, reason="prov")


@pytest.fixture
def practice(hospital: Hospital, kind: int, acting: Acting) -> Practice:
    return Practice(hospital, kind, acting)


def mails(outbox: Path) -> list[EmailMessage]:
    """The e-mails in the folder, the oldest first."""
    files = sorted(outbox.glob("*.eml")) if outbox.exists() else []
    return [message_from_bytes(file.read_bytes(), policy=policy.default) for file in files]  # type: ignore[misc]


def texts(outbox: Path) -> list[str]:
    """The SMS in the folder, the oldest first."""
    return [file.read_text() for file in sorted(outbox.glob("*.sms"))] if outbox.exists() else []


def event_of(message: EmailMessage) -> tuple[Calendar, Any]:
    """The calendar in an e-mail and its event; the part programs read and the file people open are the same."""
    (part,) = [each for each in message.walk() if each.get_content_type() == "text/calendar"]
    (file,) = message.iter_attachments()
    assert part.get_content().replace("\r\n", "\n") == file.get_content().decode().replace("\r\n", "\n")
    calendar = Calendar.from_ical(file.get_content())
    assert part.get_param("method") == calendar["method"]
    (event,) = calendar.walk("VEVENT")
    return calendar, event


def whole(message: EmailMessage) -> str:
    """Everything an e-mail says, decoded."""
    parts = [part.get_content() for part in message.walk() if not part.is_multipart()]
    return str(message.items()) + "".join(p if isinstance(p, str) else p.decode() for p in parts)


def link_in(said: str) -> str:
    """The path of the link in a message."""
    (found,) = set(re.findall(r"http://localhost(/(?:visit|offer)/\S+)", said))
    return str(found)


@dataclass
class Received:
    """What a mail server took, and what it answers."""

    messages: list[bytes] = field(default_factory=list)
    answer: str = "250 OK"
    refused: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    greeted: int = 0
    at: tuple[str, int] = ("", 0)

    async def handle_EHLO(self, _server: Any, session: Any, _envelope: Any, name: str, answers: list[str]) -> list[str]:
        self.greeted += 1
        session.host_name = name
        return answers

    async def handle_RCPT(self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any) -> str:
        self.asked += 1
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.answer.startswith("250"):
            self.messages.append(envelope.content)
        return self.answer


@pytest.fixture
def server() -> Iterator[Received]:
    """A mail server on a free port."""
    received = Received()
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = probe.getsockname()[1]
    controller = Controller(received, hostname="0.0.0.0", port=port)
    controller.start()
    received.at = ("127.0.0.1", port)
    yield received
    controller.stop()


# ---- booked, moved, called off -----------------------------------------------------------------------------------


def test_a_booking_is_told_once_by_each_medium_without_a_word_too_many(practice: Practice, outbox: Path) -> None:
    number = practice.book(timedelta(days=10))
    for _ in range(2):
        reminders.tell(number)
    (mail,), (sms,) = mails(outbox), texts(outbox)
    assert mail["To"] == "p0@example.org"
    assert mail["From"] == "Norte <visits@norte.example>"
    assert mail["Auto-Submitted"] == "auto-generated"
    visit = factories.stored(Appointment, number)
    here = visit["start_at"].astimezone(MADRID)
    body = mail.get_body(("plain",))
    assert body is not None
    for said in (body.get_content(), sms):
        assert "Your appointment at Hospital Norte" in said
        assert f"{here:%A, %-d %B %Y} at {here:%H:%M}" in said
    assert sms.startswith("To: +34600123450\n")
    calendar, event = event_of(mail)
    assert calendar["method"] == "REQUEST"
    assert (str(event["uid"]), event["sequence"]) == (str(visit["uid"]), 0)
    assert event["dtstart"].dt == visit["start_at"]
    assert (event["summary"], event["location"]) == ("Appointment at Hospital Norte", "Hospital Norte")
    for word in CLINICAL:
        assert word not in whole(mail)
        assert word not in sms
    for file in outbox.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(outbox.stat().st_mode) == 0o700
    assert [(row["kind"], row["wave"], row["medium"]) for row in told()] == [
        ("booked", 0, "email"),
        ("booked", 0, "sms"),
    ]
    assert all(row["sent_at"] and not row["failed_at"] for row in told())


def test_what_was_said_is_in_the_trail_and_its_text_is_not(practice: Practice, trail_lines: TrailLines) -> None:
    number = practice.book(timedelta(days=10))
    trail_lines.forget()
    reminders.tell(number)
    seen = [event for entry in trail_lines.entries() if "service:reminders" in str(entry) for event in entry["events"]]
    assert practice.hospital.patients[0] in {event["patient_id"] for event in seen}
    written = sql("SELECT event FROM audit_outbox ORDER BY id")
    assert any("Communication" in str(row["event"]) and "service:reminders" in str(row["event"]) for row in written)
    assert "appointment at" not in f"{seen}{written}"


def test_a_moved_visit_is_the_same_event_and_newer_and_one_called_off_is_gone(practice: Practice, outbox: Path) -> None:
    first = practice.book(timedelta(days=10))
    reminders.tell(first)
    second = practice.move(first, timedelta(days=11))
    for number in (first, second):
        reminders.tell(number)
    practice.cancel(second)
    for number in (first, second):
        reminders.tell(number)
    booked, moved, gone = [event_of(mail) for mail in mails(outbox)]
    assert [calendar["method"] for calendar, _ in (booked, moved, gone)] == ["REQUEST", "REQUEST", "CANCEL"]
    assert len({str(event["uid"]) for _, event in (booked, moved, gone)}) == 1
    assert [event["sequence"] for _, event in (booked, moved, gone)] == [0, 1, 2]
    assert gone[1]["status"] == "CANCELLED"
    assert moved[1]["dtstart"].dt - booked[1]["dtstart"].dt > timedelta(hours=23)
    assert [row["kind"] for row in told() if row["medium"] == "sms"] == ["booked", "moved", "cancelled"]
    assert "will not take place" in texts(outbox)[2]
    assert "/visit/" not in texts(outbox)[2]
    for mail in mails(outbox):
        for word in CLINICAL:
            assert word not in whole(mail)


def test_what_moved_on_before_it_was_told_is_told_as_it_is_now(practice: Practice, outbox: Path) -> None:
    first = practice.book(timedelta(days=10))
    second = practice.move(first, timedelta(days=11))
    third = practice.move(second, timedelta(days=12))
    for number in (first, second, third):
        reminders.tell(number)
    assert [(row["appointment_id"], row["kind"], row["wave"]) for row in told()] == [(third, "moved", 2)] * 2
    assert len(mails(outbox)) == 1


@pytest.mark.parametrize("state", ["arrived", "walk-in", "over"])
def test_nothing_is_said_to_whoever_stands_at_the_desk(practice: Practice, outbox: Path, state: str) -> None:
    number = practice.book(timedelta(hours=-1) if state == "over" else timedelta(hours=1), walk_in=state == "walk-in")
    if state == "arrived":
        with practice.acting("reception"), guard.unit_of_work() as session:
            scheduling.arrive(session, number)
    reminders.tell(number)
    assert told() == []
    assert mails(outbox) == []


def test_of_a_series_the_next_one_is_told(practice: Practice, outbox: Path) -> None:
    numbers = [practice.book(timedelta(days=days)) for days in (7, 14, 21)]
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        series = AppointmentSeries(
            patient_id=practice.hospital.patients[0],
            rule="FREQ=WEEKLY;COUNT=3",
            time_zone="Europe/Madrid",
            starts_on=datetime(2026, 1, 1, 9),  # noqa: DTZ001  (by the clock on the wall)
        )
        session.add(series)
        session.flush()
        for number in numbers:
            visit = session.get(Appointment, number)
            assert visit is not None
            visit.series_id = series.id
    for number in reversed(numbers):
        reminders.tell(number)
    assert {row["appointment_id"] for row in told()} == {numbers[0]}
    assert len(mails(outbox)) == 1


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        ("active = false", []),
        ("deceased = true", []),
        ("telecom = '[]'", []),
        ('telecom = \'[{"system": "phone", "value": "ask the neighbour"}]\'', [("sms", True)]),
    ],
)
def test_who_cannot_be_reached_is_not_and_a_bad_number_is_marked(
    practice: Practice, outbox: Path, change: str, rows: list[tuple[str, bool]]
) -> None:
    number = practice.book(timedelta(days=10), patient=5)
    near = practice.book(timedelta(hours=40), patient=5, written=timedelta(days=30))
    before = sql("SELECT active, deceased, telecom::text FROM patient WHERE id = :id", id=practice.hospital.patients[5])
    sql(f"UPDATE patient SET {change} WHERE id = :id", id=practice.hospital.patients[5])
    try:
        for _ in range(2):
            reminders.tell(number)
            reminders.remind()
    finally:
        sql(
            "UPDATE patient SET active = :active, deceased = :deceased, telecom = CAST(:telecom AS jsonb) WHERE id = :id",
            id=practice.hospital.patients[5],
            **before[0],
        )
    assert [(row["medium"], row["failed_at"] is not None) for row in told() if row["appointment_id"] == number] == rows
    assert [(row["medium"], row["failed_at"] is not None) for row in told() if row["appointment_id"] == near] == rows
    assert mails(outbox) == []
    assert texts(outbox) == []


def test_the_outbox_keeps_messages_for_thirty_days(practice: Practice, outbox: Path, tmp_path: Path) -> None:
    practice.book(timedelta(days=10))
    messages.connect(MailFolder(Outbox(outbox)), SmsFolder(Outbox(outbox)), (48, 2), outbox)
    reminders.tidy()  # there is no such folder yet
    reminders.tell(practice.book(timedelta(days=11)))
    new = set(outbox.iterdir())
    assert len(new) == 2
    elsewhere = tmp_path / "elsewhere.eml"
    elsewhere.write_text("not ours")
    old, nearly, link = outbox / "old.eml", outbox / "nearly.sms", outbox / "link.eml"
    for path, days in ((old, 31), (nearly, 29), (elsewhere, 400)):
        path.write_text("a message")
        moment = (now() - timedelta(days=days)).timestamp()
        os.utime(path, (moment, moment))
    link.symlink_to(elsewhere)
    for _ in range(2):
        reminders.tidy()
        assert set(outbox.iterdir()) == {*new, nearly, link}
    assert elsewhere.exists()
    assert base.CLOCKED[reminders.tidy.name] == 24 * 3600


def test_the_news_comes_by_the_queue_after_the_commit(practice: Practice, servers: Servers, outbox: Path) -> None:
    base.load()
    base.connect(servers.redis_url).flushdb()
    number = practice.book(timedelta(days=10))
    assert told() == []
    relay.relay()
    work = SimpleWorker(
        [base.queue_named("events"), base.queue_named("messages")],
        connection=base.connection(),
        job_class=base.Work,
        serializer=JSONSerializer,
    )
    work.work(burst=True, logging_level="ERROR")
    assert {row["appointment_id"] for row in told()} == {number}
    assert len(mails(outbox)) == 1
    assert base.CLOCKED["jobs.reminders.remind"] == 60


# ---- by the clock ------------------------------------------------------------------------------------------------


def test_each_is_reminded_in_its_window_and_once(practice: Practice, outbox: Path) -> None:
    month = timedelta(days=30)
    far = practice.book(timedelta(hours=49), 1, written=month)
    two_days = practice.book(timedelta(hours=47), 2, written=month)
    soon = practice.book(timedelta(hours=1), 3, written=month)
    practice.book(timedelta(hours=40), 4)  # told just now
    gone = practice.book(timedelta(hours=30), 5, written=month)
    practice.cancel(gone)
    practice.book(timedelta(hours=-1), 6, written=month)
    for _ in range(3):
        reminders.remind()
    expected = {(two_days, 48), (soon, 2)}
    assert {(row["appointment_id"], row["wave"]) for row in told()} == expected
    assert len(told()) == 4
    assert sorted(mail["To"] for mail in mails(outbox)) == ["p2@example.org", "p3@example.org"]
    for mail in mails(outbox):
        assert not [part for part in mail.walk() if part.get_content_type() == "text/calendar"]
        for word in CLINICAL:
            assert word not in whole(mail)
    sql(
        "UPDATE appointment SET start_at = now() + interval '100 minutes', end_at = now() + interval '2 hours' WHERE id = :id",
        id=far,
    )
    reminders.remind()
    assert {(row["appointment_id"], row["wave"]) for row in told()} == expected | {(far, 2)}


def test_nine_in_the_morning_after_the_clocks_were_changed_is_said_as_nine(practice: Practice, outbox: Path) -> None:
    today = now().astimezone(MADRID).date()
    days = (today + timedelta(days=number) for number in range(1, 400))
    change = next(
        day
        for day in days
        if datetime.combine(day, time(0), MADRID).utcoffset() != datetime.combine(day, time(9), MADRID).utcoffset()
    )
    nine = datetime.combine(change + timedelta(days=1), time(9), MADRID)
    reminders.tell(practice.book(nine))
    (mail,), (sms,) = mails(outbox), texts(outbox)
    assert f"{nine:%A, %-d %B %Y} at 09:00" in sms
    _, event = event_of(mail)
    assert (event["dtstart"].dt.hour, event["dtstart"].params["tzid"]) == (9, "Europe/Madrid")
    assert event["dtstart"].dt == nine.astimezone(ZoneInfo("UTC"))


def at_once(number: int, work: Callable[[], None]) -> list[BaseException]:
    """The same work by many workers at the same moment; gives what went wrong."""
    gate, wrong = threading.Barrier(number), []

    def one() -> None:
        gate.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            wrong.append(error)

    threads = [threading.Thread(target=one) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.parametrize("what", ["remind", "tell"])
def test_many_workers_at_once_send_one_message_each(
    practice: Practice, server: Received, outbox: Path, what: str
) -> None:
    messages.connect(SmtpServer(f"smtp://127.0.0.1:{server.at[1]}"), SmsFolder(Outbox(outbox)), (48, 2))
    numbers = [practice.book(timedelta(hours=40, minutes=45 * n), n, written=timedelta(days=30)) for n in range(6)]

    def work() -> None:
        if what == "remind":
            reminders.remind()
        else:
            for number in numbers:
                reminders.tell(number)

    assert at_once(8, work) == []
    assert at_once(8, work) == []
    assert len(server.messages) == 6
    assert len({message_from_bytes(each)["Message-ID"] for each in server.messages}) == 6
    assert len(told()) == 12
    assert all(row["sent_at"] for row in told())


# ---- what goes wrong on the way ----------------------------------------------------------------------------------


def test_a_mail_server_that_is_away_is_tried_again_and_keeps_back_nothing_else(
    practice: Practice, outbox: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        messages.connect(SmtpServer(f"smtp://127.0.0.1:{closed.getsockname()[1]}"), SmsFolder(Outbox(outbox)), (48, 2))
        number = practice.book(timedelta(days=10))
        with pytest.raises(messages.Unreachable):
            reminders.tell(number)
        with pytest.raises(messages.Unreachable):
            reminders.remind()
    assert len(texts(outbox)) == 1
    assert [(row["medium"], row["sent_at"] is not None) for row in told()] == [("email", False), ("sms", True)]
    messages.connect(MailFolder(Outbox(outbox)), SmsFolder(Outbox(outbox)), (48, 2))
    reminders.tell(number)
    reminders.remind()
    assert len(mails(outbox)) == 1
    assert all(row["sent_at"] for row in told())
    assert len(told()) == 2


def test_messages_that_do_not_leave_are_counted_for_whoever_watches(
    app: Any, browser: Callable[[], Browser], practice: Practice, outbox: Path
) -> None:
    del app

    def waiting() -> dict[str, float]:
        page = browser().page("/metrics", environ_overrides={"REMOTE_ADDR": "127.0.0.1"})
        found = re.findall(r"^wardbook_messages_(\w+) (\S+)$", page, re.MULTILINE)
        return {name: float(value) for name, value in found}

    assert waiting() == {"waiting": 0, "oldest_seconds": 0}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        smtp = SmtpServer(f"smtp://127.0.0.1:{closed.getsockname()[1]}")
        messages.connect(smtp, SmsFolder(Outbox(outbox)), (48, 2))
        with pytest.raises(messages.Unreachable):
            reminders.tell(practice.book(timedelta(days=10)))
    sql("UPDATE communication SET created_at = created_at - interval '1 hour'")
    assert waiting()["waiting"] == 1
    assert waiting()["oldest_seconds"] >= 3600
    messages.connect(MailFolder(Outbox(outbox)), SmsFolder(Outbox(outbox)), (48, 2))
    reminders.remind()
    assert waiting()["waiting"] == 0


def test_a_carrier_that_is_out_is_asked_once_a_run(practice: Practice, server: Received, outbox: Path) -> None:
    messages.connect(SmtpServer(f"smtp://user:wrong@127.0.0.1:{server.at[1]}"), SmsFolder(Outbox(outbox)), (48, 2))
    for number in range(4):
        practice.book(timedelta(hours=40, minutes=45 * number), number, written=timedelta(days=30))
    with pytest.raises(messages.Unreachable):
        reminders.remind()
    assert (server.greeted, server.messages) == (1, [])
    assert len(texts(outbox)) == 4
    due = sql("SELECT id FROM communication WHERE medium = 'email' AND again_at > now()")
    assert due == []


def test_an_address_that_is_none_is_given_up_and_one_that_waits_is_not(
    practice: Practice, server: Received, outbox: Path
) -> None:
    messages.connect(SmtpServer(f"smtp://127.0.0.1:{server.at[1]}"), SmsFolder(Outbox(outbox)), (48, 2))
    server.refused = {"p0@example.org": "550 no such user", "p1@example.org": "451 come back later"}
    first, second, third = (practice.book(timedelta(days=10 + number), number) for number in range(3))
    reminders.tell(first)
    with pytest.raises(messages.Undelivered):
        reminders.tell(second)
    reminders.tell(third)
    state = {row["appointment_id"]: row for row in told() if row["medium"] == "email"}
    assert state[first]["failed_at"]
    assert not state[first]["sent_at"]
    assert not state[second]["failed_at"]
    assert not state[second]["sent_at"]
    assert state[third]["sent_at"]
    asked = server.asked
    server.refused = {}
    reminders.remind()
    reminders.tell(first)
    assert server.asked == asked + 1
    assert [message_from_bytes(each)["To"] for each in server.messages] == ["p2@example.org", "p1@example.org"]


def test_addresses_do_not_cross_a_network_in_the_open(practice: Practice, server: Received, outbox: Path) -> None:
    elsewhere = socket.gethostname()
    assert not messages.here(elsewhere)
    messages.connect(SmtpServer(f"smtp://{elsewhere}:{server.at[1]}"), SmsFolder(Outbox(outbox)), (48, 2))
    number = practice.book(timedelta(days=10))
    with pytest.raises(messages.Unreachable):
        reminders.tell(number)
    assert server.asked == 0
    assert server.messages == []


class Struck:
    """A carrier whose process ends when the message has just left."""

    def __init__(self, carrier: Any) -> None:
        self.carrier = carrier

    def send(self, *what: Any) -> None:
        self.carrier.send(*what)
        raise SystemExit


def test_a_death_between_sending_and_noting_it_sends_again_under_the_same_name(
    practice: Practice, server: Received, outbox: Path
) -> None:
    carrier, folder = SmtpServer(f"smtp://127.0.0.1:{server.at[1]}"), SmsFolder(Outbox(outbox))
    messages.connect(Struck(carrier), folder, (48, 2))
    number = practice.book(timedelta(days=10))
    with pytest.raises(SystemExit):
        reminders.tell(number)
    messages.connect(carrier, folder, (48, 2))
    reminders.tell(number)
    reminders.remind()
    assert len(server.messages) == 1, "for ten minutes it may still be on its way"
    assert [row["sent_at"] is None for row in told()] == [True, False]
    sql("UPDATE communication SET again_at = again_at - :lease", lease=messages.LEASE)
    for _ in range(2):
        reminders.remind()
    first, second = (message_from_bytes(each) for each in server.messages)
    assert first["Message-ID"] == second["Message-ID"]
    assert all(row["sent_at"] for row in told())
    messages.connect(MailFolder(Outbox(outbox)), folder, (48, 2))
    sql("UPDATE communication SET sent_at = NULL, again_at = now()")
    reminders.remind()
    assert len(mails(outbox)) == 1
    assert len(texts(outbox)) == 1, "the folder takes the second for the first"


def test_what_waited_until_it_was_no_longer_so_is_not_said(practice: Practice, outbox: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        messages.connect(SmtpServer(f"smtp://127.0.0.1:{closed.getsockname()[1]}"), SmsFolder(Outbox(outbox)), (48, 2))
        number = practice.book(timedelta(hours=40), written=timedelta(days=30))
        for job in (lambda: reminders.tell(number), reminders.remind):
            with pytest.raises(messages.Unreachable):
                job()
    practice.cancel(number)
    messages.connect(MailFolder(Outbox(outbox)), SmsFolder(Outbox(outbox)), (48, 2))
    reminders.remind()
    assert mails(outbox) == []
    assert [row["kind"] for row in told() if row["failed_at"]] == ["booked", "reminder"]
    reminders.tell(number)
    (mail,) = mails(outbox)
    assert event_of(mail)[0]["method"] == "CANCEL"


# ---- SMS by HTTP -------------------------------------------------------------------------------------------------


@pytest.fixture
def gateway() -> Iterator[Any]:
    """An SMS gateway: what it was sent, and what it answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            web.received.append((dict(self.headers), body))  # type: ignore[attr-defined]
            self.send_response(web.status)  # type: ignore[attr-defined]
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Not here."""

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.received, web.status = [], 202  # type: ignore[attr-defined]
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield web
    web.shutdown()
    web.server_close()


def test_an_sms_goes_to_the_gateway_with_its_key(practice: Practice, gateway: Any, outbox: Path) -> None:
    mail, sms = messages.carriers("", f"http://127.0.0.1:{gateway.server_port}/send", "s3cret", outbox)
    messages.connect(mail, sms, (48, 2))
    number = practice.book(timedelta(days=10))
    gateway.status = 503
    with pytest.raises(messages.Unreachable):
        reminders.tell(number)
    gateway.status = 202
    reminders.tell(number)
    (first, body), (second, same) = gateway.received
    assert first["Authorization"] == "Bearer s3cret"
    assert first["Idempotency-Key"] == second["Idempotency-Key"]
    assert body["to"] == "+34600123450"
    assert body == {**same, "text": body["text"]}
    assert "Your appointment at Hospital Norte" in same["text"]
    for word in CLINICAL:
        assert word not in str(gateway.received)
    assert all(row["sent_at"] for row in told())


@pytest.mark.parametrize(
    ("status", "error", "given_up"),
    [
        (422, None, True),
        (429, messages.Undelivered, False),
        (401, messages.Unreachable, False),
        (302, messages.Unreachable, False),
    ],
)
def test_what_a_gateway_says_is_heeded(
    practice: Practice, gateway: Any, outbox: Path, status: int, error: type[Exception] | None, given_up: bool
) -> None:
    mail, sms = messages.carriers("", f"http://127.0.0.1:{gateway.server_port}/send", "", outbox)
    messages.connect(mail, sms, (48, 2))
    gateway.status = status
    number = practice.book(timedelta(days=10))
    if error is None:
        reminders.tell(number)
    else:
        with pytest.raises(error):
            reminders.tell(number)
    (row,) = [row for row in told() if row["medium"] == "sms"]
    assert (row["failed_at"] is not None, row["sent_at"]) == (given_up, None)


# ---- links -------------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(app: Any, practice: Practice, outbox: Path) -> Callable[..., tuple[int, str]]:
    """A visit and the path of the link its patient was sent."""
    del app

    def make(start: timedelta = timedelta(days=10), **more: Any) -> tuple[int, str]:
        number = practice.book(start, **more)
        reminders.tell(number)
        return number, link_in(texts(outbox)[-1])

    return make


def test_a_link_shows_little_and_opening_it_changes_nothing(
    linked: Callable[..., tuple[int, str]], browser: Callable[[], Browser]
) -> None:
    number, path = linked()
    before = factories.stored(Appointment, number)
    answer = browser().get(path)
    assert answer.status_code == 200
    assert "Hospital Norte" in answer.text
    assert "Will you come?" in answer.text
    assert f"{before['start_at'].astimezone(MADRID):%H:%M}" in answer.text
    for word in CLINICAL:
        assert word not in answer.text
    assert "no-store" in answer.headers["Cache-Control"]
    browser().head(path)
    browser().post(path)
    browser().post(path, data={"answer": "delete"})
    browser().get(f"{path}?answer=cancel")
    assert factories.stored(Appointment, number) == before


def test_a_patient_confirms_and_then_cannot_come_after_all(
    linked: Callable[..., tuple[int, str]], browser: Callable[[], Browser], trail_lines: TrailLines, outbox: Path
) -> None:
    number, path = linked()
    trail_lines.forget()
    patient = browser()
    assert "we expect you" in patient.post(path, data={"answer": "come"}).text
    confirmed = factories.stored(Appointment, number)["confirmed_at"]
    assert confirmed is not None
    patient.post(path, data={"answer": "come"})
    assert factories.stored(Appointment, number)["confirmed_at"] == confirmed
    assert "You told us that you will come" in patient.page(path)
    assert "called off" in patient.post(path, data={"answer": "cancel"}).text
    visit = factories.stored(Appointment, number)
    assert (visit["status"], visit["cancelation_reason"], visit["sequence"]) == ("cancelled", "pat-crs", 1)
    assert sql("SELECT 1 FROM booking WHERE appointment_id = :id AND blocking", id=number) == []
    looks = [entry for entry in trail_lines.entries() if "service:reminders" in str(entry["agent"])]
    assert looks
    assert all(entry["agent"]["address"].startswith("10.9.") for entry in looks)
    changed = [str(row["event"]) for row in sql("SELECT event FROM audit_outbox ORDER BY id")]
    assert any("confirmed_at" in event and "service:reminders" in event for event in changed)
    assert any("cancelation_reason" in event and "by the link" in event for event in changed)
    for said in ("come", "cancel"):
        replayed = patient.post(path, data={"answer": said})
        assert replayed.status_code == 410
        assert factories.stored(Appointment, number) == visit
    reminders.tell(number)
    assert event_of(mails(outbox)[-1])[0]["method"] == "CANCEL"


def test_an_old_link_does_nothing_and_tells_nothing(
    linked: Callable[..., tuple[int, str]],
    browser: Callable[[], Browser],
    practice: Practice,
    outbox: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number, path = linked()
    moved = practice.move(number, timedelta(days=12))
    before = factories.stored(Appointment, moved)
    answers = [browser().post(path, data={"answer": "cancel"}), browser().get(path)]
    assert factories.stored(Appointment, moved) == before
    reminders.tell(moved)
    newer = link_in(texts(outbox)[-1])
    assert browser().get(newer).status_code == 200
    monkeypatch.setattr(invitations, "LINK_LASTS", timedelta(seconds=-5))
    answers.append(browser().post(newer, data={"answer": "cancel"}))
    monkeypatch.undo()
    sql(
        "UPDATE appointment SET start_at = now() - interval '1 minute', end_at = now() + interval '20 minutes' WHERE id = :id",
        id=moved,
    )
    answers.append(browser().post(newer, data={"answer": "cancel"}))
    assert factories.stored(Appointment, moved)["status"] == "booked"
    with practice.acting("reception"), guard.unit_of_work() as session:
        scheduling.arrive(session, moved)
    answers.append(browser().post(newer, data={"answer": "cancel"}))
    assert factories.stored(Appointment, moved)["status"] == "arrived"
    assert [answer.status_code for answer in answers] == [410] * 5
    for answer in answers:
        assert "no longer good" in answer.text
        assert "Norte" not in answer.text
    assert len({re.sub(r"<[^>]+>", "", answer.text) for answer in answers}) == 1, "which reason it is is not said"


def test_a_forged_link_is_nobodys(linked: Callable[..., tuple[int, str]], browser: Callable[[], Browser]) -> None:
    number, path = linked()
    before = factories.stored(Appointment, number)
    head, stamp, signature = path.removeprefix("/visit/").split(".")
    other, _ = linked(timedelta(days=11), patient=1)
    assert other != number
    elsewhere = invitations._signer("another purpose").dumps("x" * 22 + "0")
    forged = [
        f"{head}.{stamp}.{signature[:-4]}AAAA",
        f"{head[:-2]}AA.{stamp}.{signature}",
        f"{head}.{stamp}",
        head,
        elsewhere,
        invitations._signer(invitations.ANSWER).dumps("nonsense"),
        invitations._signer(invitations.ANSWER).dumps("A" * 22 + "0"),
        "1",
        "..%2F..%2Fetc",
        "x" * 5000,
        "é",
    ]
    for token in forged:
        for method in ("GET", "POST"):
            answer = browser().open(
                f"/visit/{token}", method=method, data={"answer": "cancel"} if method == "POST" else None
            )
            assert answer.status_code == 404, token[:40]
            assert "Norte" not in answer.text
    assert factories.stored(Appointment, number) == before


def test_guessing_is_stopped_and_locks_nobody_out_of_signing_in(
    linked: Callable[..., tuple[int, str]], browser: Callable[[], Browser]
) -> None:
    _, path = linked()
    guesser = browser()
    codes = [guesser.get(f"/visit/guess{number}").status_code for number in range(40)]
    assert codes == [404] * 30 + [429] * 10
    stopped = guesser.get("/calendar/guess.ics")
    assert stopped.status_code == 429
    assert int(stopped.headers["Retry-After"]) > 0
    assert guesser.get(path).status_code == 429
    assert browser().get(path).status_code == 200
    entered = guesser.submit("/login/", {"username": "nurse", "password": factories.PASSWORD})
    assert entered.status_code == 302


def test_two_answers_at_once_are_both_answered_and_one_counts(
    linked: Callable[..., tuple[int, str]], browser: Callable[[], Browser]
) -> None:
    number, path = linked()
    codes: list[int] = []
    patients = [browser() for _ in range(6)]
    assert at_once(6, lambda: codes.append(patients.pop().post(path, data={"answer": "cancel"}).status_code)) == []
    assert sorted(codes) == [200] + [410] * 5
    assert factories.stored(Appointment, number)["sequence"] == 1


# ---- times on offer ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hours(database: Any, kind: int) -> None:
    """The doctor works all day, every day: only then a freed time is offered."""
    del kind
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for weekday in range(1, 8):
            session.add(
                WorkingHours(
                    practitioner_id=database.hospital.staff["doctor"],
                    branch_id=database.hospital.branches[0],
                    weekday=weekday,
                    starts=time(8),
                    ends=time(18),
                    valid_from=date(2020, 1, 1),
                )
            )


@pytest.fixture
def offered(app: Any, practice: Practice, hours: None, outbox: Path) -> Callable[..., int]:
    """A time that somebody gave up and that is offered to patients who wait; the number of the offer."""
    del app, hours, outbox

    def make(*patients: int, days: int = 10) -> int:
        start = datetime.combine(now().astimezone(MADRID).date() + timedelta(days=days), time(10), MADRID)
        number = practice.book(start, 2)
        with practice.acting("reception"), guard.unit_of_work() as session:
            for patient in patients:
                waitlist.join(
                    session,
                    patient_id=practice.hospital.patients[patient],
                    visit_type_id=practice.kind,
                    branch_id=practice.hospital.branches[0],
                    note="SENTINEL-REASON of waiting",
                )
        with practice.acting("reception"), guard.unit_of_work() as session:
            gone = scheduling.cancel(session, number, reason="pat")
            news = (gone.id, gone.branch_id, gone.practitioner_id, gone.patient_id, gone.version)
        names = ("appointment_id", "branch_id", "practitioner_id", "patient_id", "version")
        waiting_list.offer(dict(zip(names, news, strict=True)))
        (offer,) = sql("SELECT max(id) AS id FROM slot_offer WHERE status = 'open'")
        return int(offer["id"])

    return make


def tell_offer(number: int) -> None:
    """What the queue does when it hears of an offer."""
    reminders.tell_offer({"offer_id": number})


def links_of(outbox: Path) -> dict[str, str]:
    """The path of the link each patient was sent by e-mail, by address."""
    return {str(mail["To"]): link_in(whole(mail)) for mail in mails(outbox) if "/offer/" in whole(mail)}


def state() -> tuple[list[Any], ...]:
    """Everything an answer to an offer changes."""
    return (
        sql("SELECT id, status FROM slot_offer ORDER BY id"),
        sql("SELECT id, answer FROM slot_offer_invitation ORDER BY id"),
        sql("SELECT id, status, appointment_id FROM waitlist_entry ORDER BY id"),
        sql("SELECT id, status FROM appointment ORDER BY id"),
    )


def test_a_free_time_is_offered_once_by_each_medium_without_a_word_too_many(
    offered: Callable[..., int], server: Received, outbox: Path
) -> None:
    messages.connect(SmtpServer(f"smtp://127.0.0.1:{server.at[1]}"), SmsFolder(Outbox(outbox)), (48, 2))
    number = offered(3, 4)
    for _ in range(2):
        assert at_once(2, lambda: tell_offer(number)) == []
        assert at_once(2, reminders.remind) == []
    sent = [message_from_bytes(each, policy=policy.default) for each in server.messages]
    assert sorted(mail["To"] for mail in sent) == ["p3@example.org", "p4@example.org"]
    assert len(texts(outbox)) == 2
    assert [row["kind"] for row in told()] == ["offer"] * 4
    assert all(row["sent_at"] for row in told())
    (offer,) = sql("SELECT start_at, until_at FROM slot_offer WHERE id = :id", id=number)
    here, until = (offer[name].astimezone(MADRID) for name in ("start_at", "until_at"))
    for said in (*(mail.get_content() for mail in sent), *texts(outbox)):  # type: ignore[attr-defined]
        assert f"A time is free at Hospital Norte: {here:%A, %-d %B %Y} at 10:00." in said
        assert f"It is held until {until:%H:%M}" in said
        assert link_in(said).startswith("/offer/")
        for word in CLINICAL:
            assert word not in said


def test_an_offer_comes_by_the_queue_of_messages(offered: Callable[..., int], servers: Servers, outbox: Path) -> None:
    base.load()
    base.connect(servers.redis_url).flushdb()
    offered(3)
    relay.relay()
    work = SimpleWorker(
        [base.queue_named("messages")],
        connection=base.connection(),
        job_class=base.Work,
        serializer=JSONSerializer,
    )
    work.work(burst=True, logging_level="ERROR")
    assert [mail["To"] for mail in mails(outbox)] == ["p3@example.org"]


def test_the_minute_tells_of_an_offer_that_the_queue_forgot(offered: Callable[..., int], outbox: Path) -> None:
    offered(3)
    reminders.remind()
    assert [mail["To"] for mail in mails(outbox)] == ["p3@example.org"]


def test_who_was_too_late_is_told_once_and_who_has_it_is_told_of_the_visit(
    offered: Callable[..., int], browser: Callable[[], Browser], outbox: Path
) -> None:
    number = offered(3, 4, 5)
    tell_offer(number)
    links = links_of(outbox)
    assert browser().post(links["p5@example.org"], data={"answer": "pass"}).status_code == 200
    answer = browser().post(links["p3@example.org"], data={"answer": "take"})
    assert "The time is yours" in answer.text
    for _ in range(2):
        assert at_once(2, lambda: tell_offer(number)) == []
    reminders.remind()
    late = [mail for mail in mails(outbox) if "is gone" in mail["Subject"]]
    assert [mail["To"] for mail in late] == ["p4@example.org"]
    assert "You stay on the waiting list" in whole(late[0])
    assert [row["medium"] for row in told("late")] == ["email", "sms"]
    for word in CLINICAL:
        assert word not in whole(late[0])
    (entry,) = sql("SELECT appointment_id FROM waitlist_entry WHERE status = 'booked'")
    reminders.tell(entry["appointment_id"])
    booked = [mail for mail in mails(outbox) if mail["Subject"] == "Your appointment at Hospital Norte"]
    assert [mail["To"] for mail in booked] == ["p3@example.org"]


def test_an_offer_that_did_not_leave_in_time_does_not_leave_and_nobody_is_told_it_is_gone(
    offered: Callable[..., int], outbox: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        messages.connect(SmtpServer(f"smtp://127.0.0.1:{closed.getsockname()[1]}"), SmsFolder(Outbox(outbox)), (48, 2))
        number = offered(3)
        with pytest.raises(messages.Unreachable):
            tell_offer(number)
    messages.connect(MailFolder(Outbox(outbox)), SmsFolder(Outbox(outbox)), (48, 2))
    sql("UPDATE slot_offer SET until_at = now() - interval '1 second'")
    waiting_list.expire()
    for job in (lambda: tell_offer(number), reminders.remind, reminders.remind):
        job()
    assert mails(outbox) == []
    assert [(row["kind"], row["medium"], row["sent_at"] is not None) for row in told()] == [
        ("offer", "email", False),
        ("offer", "sms", True),
        ("late", "sms", True),
    ]


def test_an_offer_that_was_on_its_way_when_the_time_went_is_followed_by_that_news(
    offered: Callable[..., int], outbox: Path
) -> None:
    number = offered(3)
    tell_offer(number)
    sql("UPDATE communication SET sent_at = NULL, again_at = now() + interval '9 minutes'")
    sql("UPDATE slot_offer SET until_at = now() - interval '1 second'")
    waiting_list.expire()
    tell_offer(number)
    assert told("late") == []
    sql("UPDATE communication SET sent_at = now()")
    reminders.remind()
    assert [row["sent_at"] is not None for row in told("late")] == [True, True]
    assert len(mails(outbox)) == 2


def test_opening_an_offer_shows_little_and_changes_nothing(
    offered: Callable[..., int], browser: Callable[[], Browser], outbox: Path
) -> None:
    tell_offer(offered(3))
    (path,) = links_of(outbox).values()
    before = state()
    answer = browser().get(path)
    assert answer.status_code == 200
    for said in ("Hospital Norte", "10:00", "Held until", "Do you want it?"):
        assert said in answer.text
    for word in CLINICAL:
        assert word not in answer.text
    assert "no-store" in answer.headers["Cache-Control"]
    browser().head(path)
    browser().post(path)
    browser().post(path, data={"answer": "delete"})
    browser().get(f"{path}?answer=take")
    assert state() == before


def test_a_time_is_taken_once_and_a_moved_visit_has_a_newer_link(
    offered: Callable[..., int],
    browser: Callable[[], Browser],
    practice: Practice,
    trail_lines: TrailLines,
    outbox: Path,
) -> None:
    tell_offer(offered(3))
    (path,) = links_of(outbox).values()
    trail_lines.forget()
    patient = browser()
    assert "The time is yours" in patient.post(path, data={"answer": "take"}).text
    taken = state()
    visits = sql("SELECT id, patient_id FROM appointment WHERE status = 'booked'")
    assert [visit["patient_id"] for visit in visits] == [practice.hospital.patients[3]]
    for said in ("take", "pass"):
        assert "The time is yours" in patient.post(path, data={"answer": said}).text
    assert "The time is yours" in patient.page(path)
    assert state() == taken
    looks = [entry for entry in trail_lines.entries() if "service:waitlist" in str(entry["agent"])]
    assert looks
    assert all(entry["agent"]["address"].startswith("10.9.") for entry in looks)
    changed = [str(row["event"]) for row in sql("SELECT event FROM audit_outbox ORDER BY id")]
    assert any("took it by the link" in event and "service:waitlist" in event for event in changed)
    practice.move(visits[0]["id"], timedelta(days=12))
    assert patient.get(path).status_code == 410


def test_of_two_who_want_it_at_once_one_has_it_and_the_other_is_told_kindly(
    offered: Callable[..., int], browser: Callable[[], Browser], outbox: Path
) -> None:
    tell_offer(offered(3, 4))
    waiting = [(browser(), path) for path in links_of(outbox).values()]
    answers: list[Any] = []

    def one() -> None:
        client, path = waiting.pop()
        answers.append(client.post(path, data={"answer": "take"}))

    paths = [path for _, path in waiting]
    assert at_once(2, one) == []
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    (lost,) = [answer.text for answer in answers if answer.status_code == 409]
    assert "This time is gone" in lost
    assert "somebody else was quicker" in lost
    assert "Hospital Norte" not in lost
    assert len(sql("SELECT id FROM appointment WHERE status = 'booked'")) == 1
    assert sorted(row["answer"] for row in state()[1]) == ["accepted", "late"]
    after = state()
    codes = [browser().open(path, method=method).status_code for path in paths for method in ("GET", "POST")]
    assert sorted(codes) == [200, 200, 409, 409]
    assert state() == after


def test_who_let_a_time_pass_does_not_have_it_after_all(
    offered: Callable[..., int], browser: Callable[[], Browser], practice: Practice, outbox: Path
) -> None:
    tell_offer(offered(3, 4))
    path = links_of(outbox)["p3@example.org"]
    assert "Thank you for telling us" in browser().post(path, data={"answer": "pass"}).text
    after = state()
    assert sorted(str(row["answer"]) for row in after[1]) == ["None", "declined"]
    assert "You do not want this time" in browser().post(path, data={"answer": "take"}).text
    (declined,) = [row["id"] for row in after[1] if row["answer"]]
    with pytest.raises(OfferOver), practice.acting("reception"), guard.unit_of_work() as session:
        waitlist.accept(session, declined)
    assert state() == after


def test_who_is_expected_elsewhere_then_is_told_so_and_keeps_the_time_from_nobody(
    offered: Callable[..., int], browser: Callable[[], Browser], practice: Practice, outbox: Path
) -> None:
    tell_offer(offered(3, 4))
    (offer,) = sql("SELECT start_at FROM slot_offer")
    practice.book(offer["start_at"], 3, staff="nurse")
    before, links = state(), links_of(outbox)
    answer = browser().post(links["p3@example.org"], data={"answer": "take"})
    assert answer.status_code == 409
    assert "You have another appointment at that time" in answer.text
    assert state() == before
    assert browser().post(links["p4@example.org"], data={"answer": "take"}).status_code == 200


def test_a_doctor_on_leave_keeps_a_time_from_being_taken(
    offered: Callable[..., int], browser: Callable[[], Browser], outbox: Path
) -> None:
    tell_offer(offered(3))
    (path,) = links_of(outbox).values()
    before = state()
    sql("UPDATE working_hours SET ends = '09:00' WHERE ends = '18:00'")
    try:
        answer = browser().post(path, data={"answer": "take"})
    finally:
        sql("UPDATE working_hours SET ends = '18:00' WHERE ends = '09:00'")
    assert answer.status_code == 409
    assert "This time is gone" in answer.text
    assert state() == before


def test_an_offer_that_is_over_or_forged_does_nothing(
    offered: Callable[..., int],
    browser: Callable[[], Browser],
    practice: Practice,
    outbox: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tell_offer(offered(3))
    (path,) = links_of(outbox).values()
    reminders.tell(practice.book(timedelta(days=20), 6))
    (visit,) = [link_in(said) for said in texts(outbox) if "/visit/" in said]
    head, stamp, signature = path.removeprefix("/offer/").split(".")
    before = state()
    forged = [
        f"{head}.{stamp}.{signature[:-4]}AAAA",
        f"{head[:-2]}AA.{stamp}.{signature}",
        head,
        visit.removeprefix("/visit/"),
        invitations._signer(invitations.OFFER).dumps("nonsense"),
        invitations._signer(invitations.OFFER).dumps("A" * 22),
        "1",
        "x" * 5000,
        "é",
    ]
    for token in forged:
        for method in ("GET", "POST"):
            data = {"answer": "take"} if method == "POST" else None
            assert browser().open(f"/offer/{token}", method=method, data=data).status_code == 404, token[:40]
    guesser = browser()
    codes = [guesser.get(f"/offer/guess{number}").status_code for number in range(31)]
    assert codes == [404] * 30 + [429]
    with monkeypatch.context() as aged:
        aged.setattr(invitations, "LINK_LASTS", timedelta(seconds=-5))
        assert browser().post(path, data={"answer": "take"}).status_code == 410
    sql("UPDATE slot_offer SET until_at = now() - interval '1 second'")
    for method in ("GET", "POST"):
        assert browser().open(path, method=method, data={"answer": "take"}).status_code == 409
    assert state() == before


# ---- feeds -------------------------------------------------------------------------------------------------------


def address_on(page: str) -> str:
    """The path of the feed a page shows."""
    (found,) = set(re.findall(r'value="http://localhost(/calendar/[^"]+\.ics)"', page))
    return str(found)


def opened(client: Browser) -> str:
    """A new feed of whoever is signed in."""
    token = csrf_of(client.page("/calendar-feed/"))
    return address_on(client.post("/calendar-feed/open", data={"csrf_token": token}).text)


@pytest.fixture
def busy(app: Any, practice: Practice) -> list[int]:
    """A doctor's visits: of next week, one called off, one too far away, one of somebody else."""
    del app
    practice.cancel(practice.book(timedelta(days=9), 3))
    practice.book(timedelta(days=70), 4)
    practice.book(timedelta(days=7), 5, staff="nurse")
    return [practice.book(timedelta(days=7 + number), number) for number in range(2)]


def test_a_feed_says_when_where_and_what_kind_and_never_who(
    busy: list[int], client_as: Callable[[str], Browser], browser: Callable[[], Browser], trail_lines: TrailLines
) -> None:
    doctor = client_as("doctor")
    path = opened(doctor)
    assert len(path) > 50
    assert path not in doctor.page("/calendar-feed/"), "it is shown once"
    (kept,) = sql("SELECT token_digest FROM calendar_feed")
    assert len(bytes(kept["token_digest"])) == 32
    trail_lines.forget()
    answer = browser().get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/calendar; charset=utf-8"
    assert answer.headers["Cache-Control"] == "private, no-cache"
    calendar = Calendar.from_ical(answer.data)
    events = calendar.walk("VEVENT")
    visits = [factories.stored(Appointment, number) for number in busy]
    assert [event["dtstart"].dt for event in events] == [visit["start_at"] for visit in visits]
    assert {str(event["summary"]) for event in events} == {"Oncology follow-up"}
    assert {str(event["location"]) for event in events} == {"Hospital Norte"}
    for word in ("SENTINEL-REASON", "Quartermain", "Zinnia", "Vandersloot", "p0@example.org", "+34600"):
        assert word not in answer.text
    (entry,) = [entry for entry in trail_lines.entries() if "service:calendar" in str(entry["agent"])]
    assert {event["patient_id"] for event in entry["events"]} >= {visit["patient_id"] for visit in visits}


def test_a_feed_that_has_not_changed_is_not_read_again(
    busy: list[int],
    practice: Practice,
    client_as: Callable[[str], Browser],
    browser: Callable[[], Browser],
    trail_lines: TrailLines,
) -> None:
    path = opened(client_as("doctor"))
    first = browser().get(path)
    trail_lines.forget()
    asking = {"If-None-Match": first.headers["ETag"]}
    again = browser().get(path, headers=asking)
    assert (again.status_code, again.data) == (304, b"")
    assert trail_lines.entries() == []
    practice.move(busy[1], timedelta(days=20))
    changed = browser().get(path, headers=asking)
    assert changed.status_code == 200
    assert changed.headers["ETag"] != first.headers["ETag"]
    assert changed.data != first.data


@pytest.mark.parametrize("how", ["replaced", "revoked", "account closed", "role taken", "left"])
def test_a_feed_ends(
    busy: list[int],
    how: str,
    hospital: Hospital,
    client_as: Callable[[str], Browser],
    browser: Callable[[], Browser],
    granted: Callable[..., None],
) -> None:
    del busy
    doctor = client_as("doctor")
    path = opened(doctor)
    etag = {"If-None-Match": browser().get(path).headers["ETag"]}
    who = {"id": hospital.accounts["doctor"], "staff": hospital.staff["doctor"]}
    newer = None
    if how == "replaced":
        newer = opened(doctor)
    elif how == "revoked":
        doctor.post("/calendar-feed/close", data={"csrf_token": csrf_of(doctor.page("/calendar-feed/"))})
        assert feeds() == 0
    elif how == "account closed":
        sql("UPDATE ab_user SET active = false WHERE id = :id", id=who["id"])
    elif how == "role taken":
        granted("Doctor", Appointment=None)
    else:
        sql("UPDATE practitioner SET active = false WHERE id = :id", id=who["staff"])
    try:
        for headers in ({}, etag):
            answer = browser().get(path, headers=headers)
            assert answer.status_code == 404
            assert "Oncology" not in answer.text
        if newer:
            assert browser().get(newer).status_code == 200
    finally:
        sql("UPDATE ab_user SET active = true WHERE id = :id AND NOT active", id=who["id"])
        sql("UPDATE practitioner SET active = true WHERE id = :id", id=who["staff"])


def test_making_and_ending_a_feed_is_in_the_trail(client_as: Callable[[str], Browser], hospital: Hospital) -> None:
    sql("DELETE FROM audit_outbox")
    doctor = client_as("doctor")
    path = opened(doctor)
    for _ in range(2):
        doctor.post("/calendar-feed/close", data={"csrf_token": csrf_of(doctor.page("/calendar-feed/"))})
    written = [row["event"] for row in sql("SELECT event FROM audit_outbox ORDER BY id")]
    lines = [(entry["agent"]["u"], line["s"], line["e"]) for entry in written for line in entry["events"]]
    about = [{"type": "Practitioner", "ids": [hospital.staff["doctor"]]}]
    feed = [line for line in lines if line[1].endswith("-feed")]
    assert feed == [(hospital.accounts["doctor"], deed, about) for deed in ("make-feed", "end-feed")]
    assert path not in str(written)


def feeds() -> int:
    """How many feeds there are."""
    return len(sql("SELECT 1 FROM calendar_feed"))


def test_who_sees_no_patients_has_no_feed(app: Any, client_as: Callable[[str], Browser]) -> None:
    del app
    patient = client_as("patient")
    assert patient.get("/calendar-feed/").status_code == 403
    assert "/calendar-feed/" not in patient.page("/me/")
    token = csrf_of(patient.page("/resetmypassword/form"))
    assert patient.post("/calendar-feed/open", data={"csrf_token": token}).status_code == 403
    lab = client_as("lab")
    token = csrf_of(lab.page("/calendar-feed/"))
    assert lab.post("/calendar-feed/open", data={"csrf_token": token}).status_code == 403
    assert feeds() == 0
    assert client_as("doctor").post("/calendar-feed/open").status_code == 400
    assert feeds() == 0


def test_one_visit_as_a_file_for_whoever_may_read_it(busy: list[int], client_as: Callable[[str], Browser]) -> None:
    answer = client_as("reception").get(f"/appointments/{busy[0]}/visit.ics")
    assert answer.status_code == 200
    calendar = Calendar.from_ical(answer.data)
    assert calendar["method"] == "PUBLISH"
    (event,) = calendar.walk("VEVENT")
    assert str(event["uid"]) == str(factories.stored(Appointment, busy[0])["uid"])
    for word in CLINICAL:
        assert word not in answer.text
    assert client_as("lab").get(f"/appointments/{busy[0]}/visit.ics").status_code == 403
    patient = client_as("patient")
    assert patient.get(f"/appointments/{busy[0]}/visit.ics").status_code == 200
    assert patient.get(f"/appointments/{busy[1]}/visit.ics").status_code == 404
    assert client_as("reception").get(f"/appointments/{2**70}/visit.ics").status_code == 404
