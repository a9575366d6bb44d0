"""Calendar files as calendars read them, days and times as people do, and what the settings of messages may be."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from icalendar import Calendar

from app.services import invitations, messages
from config import ConfigurationError, Settings
from models.organization import Branch, Organization
from models.patients import Patient
from models.scheduling import Appointment

UID = UUID("01988d1e-0000-7000-8000-000000000001")


@pytest.fixture(autouse=True)
def told() -> None:
    """This process knows its address and its key."""
    invitations.connect("https://wardbook.example", "for tests only, and long enough", "Norte <visits@example.org>")


def branch(zone: str = "Europe/Madrid", country: str = "ES", name: str = "Hospital Norte") -> Branch:
    there = Organization(name=name, address=[{"country": country}] if country else [])
    return Branch(time_zone=zone, languages=["en"], organization=there)


def visit(start: datetime, **more: Any) -> Appointment:
    where = more.pop("branch", None) or branch()
    said = {"uid": UID, "sequence": 0, "status": "booked", "updated_at": datetime(2026, 1, 1, tzinfo=UTC), **more}
    return Appointment(branch=where, start_at=start, end_at=start + timedelta(minutes=30), reason="Chest pain", **said)


def read(file: bytes) -> tuple[Calendar, Any]:
    """What a calendar program finds: the calendar and its one event."""
    calendar = Calendar.from_ical(file)
    (event,) = calendar.walk("VEVENT")
    return calendar, event


def test_an_invitation_says_when_and_where_by_the_clock_of_the_branch() -> None:
    start = datetime(2026, 7, 6, 7, 0, tzinfo=UTC)
    file = invitations.invitation(visit(start), "REQUEST", "Appointment at Hospital Norte", "zoe@example.org")
    calendar, event = read(file)
    assert calendar["method"] == "REQUEST"
    assert event["dtstart"].params["tzid"] == "Europe/Madrid"
    assert event["dtstart"].dt == start
    assert event["dtstart"].dt.hour == 9
    assert event["dtend"].dt - event["dtstart"].dt == timedelta(minutes=30)
    assert (str(event["uid"]), event["sequence"], event["status"]) == (str(UID), 0, "CONFIRMED")
    assert (event["summary"], event["location"]) == ("Appointment at Hospital Norte", "Hospital Norte")
    assert event["organizer"] == "mailto:visits@example.org"
    assert event["attendee"] == "mailto:zoe@example.org"
    assert [str(zone["tzid"]) for zone in calendar.walk("VTIMEZONE")] == ["Europe/Madrid"]
    assert b"Chest" not in file
    assert all(len(line) <= 75 for line in file.split(b"\r\n"))


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("Europe/Madrid", date(2026, 3, 30)),  # clocks went forward the night before
        ("Europe/Madrid", date(2026, 10, 26)),  # and back
        ("America/New_York", date(2026, 3, 9)),
        ("America/New_York", date(2026, 11, 2)),
        ("Europe/Dublin", date(2026, 12, 1)),  # winter is the time that is saved there
        ("Asia/Kathmandu", date(2026, 5, 1)),
        ("Australia/Lord_Howe", date(2026, 10, 5)),  # by half an hour
    ],
)
def test_nine_in_the_morning_is_nine_by_the_rules_the_file_carries(zone: str, day: date) -> None:
    """Read by the VTIMEZONE alone, as a program does that has no list of zones of its own."""
    wall = datetime.combine(day, time(9))
    start = wall.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    file = invitations.invitation(visit(start, branch=branch(zone, "")), "REQUEST", "Appointment", "zoe@example.org")
    calendar, event = read(file)
    assert f"DTSTART;TZID={zone}:{wall:%Y%m%dT%H%M%S}".encode() in file
    (rules,) = calendar.walk("VTIMEZONE")
    rules["tzid"] = "Somewhere"  # so that it is not looked up by its name
    there = rules.to_tz(lookup_tzid=False)
    assert wall.replace(tzinfo=there).astimezone(UTC) == start
    assert event["dtstart"].dt == start


def test_utc_needs_no_rules() -> None:
    start = datetime(2026, 7, 6, 7, 0, tzinfo=UTC)
    calendar, event = read(invitations.invitation(visit(start, branch=branch("UTC", "")), "PUBLISH", "Appointment"))
    assert calendar.walk("VTIMEZONE") == []
    assert event["dtstart"].dt == start


def test_a_cancellation_is_of_the_same_event_and_newer() -> None:
    start = datetime(2026, 7, 6, 7, 0, tzinfo=UTC)
    calendar, event = read(
        invitations.invitation(visit(start, sequence=2, status="cancelled"), "CANCEL", "A", "z@x.org")
    )
    assert (calendar["method"], event["status"], event["sequence"]) == ("CANCEL", "CANCELLED", 2)
    assert str(event["uid"]) == str(UID)
    _, withdrawn = read(invitations.invitation(visit(start, status="entered-in-error"), "CANCEL", "A", "z@x.org"))
    assert withdrawn["sequence"] == 1


def test_a_name_cannot_put_lines_into_the_file() -> None:
    start = datetime(2026, 7, 6, 7, 0, tzinfo=UTC)
    nasty = 'Norte; the "old" one,\r\nBEGIN:VALARM\nATTENDEE:mailto:x@example.org'
    _, event = read(invitations.invitation(visit(start, branch=branch(name=nasty)), "REQUEST", nasty, "z@x.org"))
    assert event["attendee"] == "mailto:z@x.org"
    assert event.subcomponents == []


@pytest.mark.parametrize(
    ("language", "country", "zone", "said"),
    [
        ("en", "US", "America/New_York", ("Monday, July 6, 2026", "3:00 AM")),
        ("en", "ES", "Europe/Madrid", ("Monday, 6 July 2026", "09:00")),
        ("es", "ES", "Europe/Madrid", ("lunes, 6 de julio de 2026", "9:00")),
        ("de", "", "Europe/Berlin", ("Montag, 6. Juli 2026", "09:00")),
        ("tlh", "ZZ", "UTC", ("Monday, July 6, 2026", "7:00 AM")),
    ],
)
def test_a_day_and_a_time_are_said_as_the_country_says_them(
    language: str, country: str, zone: str, said: tuple[str, str]
) -> None:
    day, time = invitations.spoken(visit(datetime(2026, 7, 6, 7, tzinfo=UTC), branch=branch(zone, country)), language)
    assert (day, time) == said


@pytest.mark.parametrize(
    ("telecom", "reached"),
    [
        ([], {}),
        ([{"system": "fax", "value": "+34911234567"}], {}),
        ([{"system": "phone", "value": "600 123 456"}], {"sms": "+34600123456"}),
        ([{"system": "phone", "value": "call my son"}], {"sms": None}),
        (
            [
                {"system": "phone", "use": "home", "value": "+34911234567"},
                {"system": "phone", "use": "mobile", "value": "+34600123456"},
            ],
            {"sms": "+34600123456"},
        ),
        ([{"system": "email", "value": "zoe@example.org"}], {"email": "zoe@example.org"}),
        ([{"system": "email", "value": "zoe@example.org\r\nBcc: all@example.org"}], {"email": None}),
        ([{"system": "email", "value": "zoe@example.org, all@example.org"}], {"email": None}),
        ([{"system": "email", "value": "not one"}], {"email": None}),
        (
            [{"system": "phone", "value": "+34911234567"}, {"system": "sms", "use": "mobile", "value": "+34600123456"}],
            {"sms": "+34600123456"},
        ),
        ([{"system": "email", "use": "old", "value": "zoe@example.org"}], {"email": None}),
        (
            [
                {"system": "email", "rank": 2, "value": "b@example.org"},
                {"system": "email", "rank": 1, "value": "a@example.org"},
            ],
            {"email": "a@example.org"},
        ),
    ],
)
def test_who_can_be_reached_how(telecom: list[dict[str, Any]], reached: dict[str, str | None]) -> None:
    somebody = Patient(telecom=telecom, active=True, deceased=False)
    assert messages.reached(somebody, branch()) == reached
    assert messages.reached(Patient(telecom=telecom, active=True, deceased=True), branch()) == {}
    assert messages.reached(Patient(telecom=telecom, active=False, deceased=False), branch()) == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WARDBOOK_SMTP", "mail.example.org"),
        ("WARDBOOK_SMTP", "smtp://"),
        ("WARDBOOK_SMTP", "smtp://mail.example.org"),  # nobody to be from
        ("WARDBOOK_MAIL_FROM", "somebody"),
        ("WARDBOOK_SMS_URL", "http://sms.example.org/send"),
        ("WARDBOOK_SMS_URL", "sms.example.org"),
        ("WARDBOOK_REMINDER_HOURS", "two"),
        ("WARDBOOK_REMINDER_HOURS", "48,"),
        ("WARDBOOK_REMINDER_HOURS", "-2"),
        ("WARDBOOK_REMINDER_HOURS", "1,2,3,4,5,6"),
        ("WARDBOOK_REMINDER_HOURS", "100000"),
    ],
)
def test_settings_that_make_no_sense_are_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"WARDBOOK_(SMTP|MAIL_FROM|SMS_URL|REMINDER_HOURS)"):
        Settings.from_environment({variable: value})


def test_settings_of_messages() -> None:
    assert Settings.from_environment({}).reminders == (2, 48)
    assert Settings.from_environment({"WARDBOOK_REMINDER_HOURS": "0"}).reminders == ()
    settings = Settings.from_environment(
        {"WARDBOOK_SMTP": "smtps://u:p@mail.example.org", "WARDBOOK_MAIL_FROM": "Norte <v@example.org>"}
    )
    again = Settings.from_environment(settings.to_environment())
    assert again == settings
    assert "u:p" not in repr(settings)
