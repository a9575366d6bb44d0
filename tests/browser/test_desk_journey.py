"""A receptionist's morning: the board, somebody comes, is checked in, somebody walks in, somebody does not come."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Page, expect

from app import guard
from app.actor import service
from app.services import schedules
from models.base import now
from models.organization import Branch
from models.scheduling import Appointment, WorkingHours
from tests import factories
from tests.conftest import Database
from views import branches

SitDown = Callable[..., Page]
SHOTS = os.environ.get("WARDBOOK_SHOTS")
"""A folder for pictures of the pages on the way, wide and narrow, light and dark."""


@pytest.fixture(scope="module")
def morning(database: Database, app: Flask) -> dict[str, int]:
    """A branch where it is noon, a doctor at work, and two visits: one now, one that was due a while ago."""
    del app
    hospital: Any = database.hospital
    start = now().replace(second=0, microsecond=0)
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        branch = session.get(Branch, hospital.branches[0])
        assert branch is not None
        branch.time_zone = f"Etc/GMT{-(12 - start.hour):+d}"  # POSIX counts westwards
        kind = schedules.offer_kind(session, name="Follow-up", minutes=20)
        for weekday in range(1, 8):
            for opens, closes in ((0, 12), (12, 0)):
                hours = WorkingHours(practitioner_id=hospital.staff["doctor"], branch_id=hospital.branches[0])
                hours.weekday, hours.starts, hours.ends = weekday, time(opens), time(closes)
                hours.valid_from = date(2020, 1, 1)
                session.add(hours)
        visits = {}
        for name, patient, minutes in (("now", 1, 0), ("late", 2, -25)):
            visit = Appointment(
                patient_id=hospital.patients[patient],
                branch_id=hospital.branches[0],
                visit_type_id=kind.id,
                practitioner_id=hospital.staff["doctor"],
                start_at=start + timedelta(minutes=minutes),
                end_at=start + timedelta(minutes=minutes + 20),
            )
            session.add(visit)
            session.flush()
            visits[name] = visit.id
    branches.forget()
    return visits


def looked_at(page: Page, name: str) -> None:
    """Whole at every width, and a picture of it where pictures are wanted."""
    for width, scheme in ((1280, "light"), (1280, "dark"), (320, "light")):
        page.set_viewport_size({"width": width, "height": 860})
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        page.wait_for_timeout(200)  # colours change slowly
        assert page.locator("h1").count() == 1
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{name} is {overflow} px too wide at {width}"
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}-{scheme}.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 860})
    page.emulate_media(color_scheme="light")


def test_a_morning_at_the_desk(sit_down: SitDown, morning: dict[str, int]) -> None:
    desk = sit_down("reception")
    desk.get_by_role("navigation").get_by_role("link", name="Front desk").first.click()
    expected, waiting = desk.get_by_role("region", name="Expected"), desk.get_by_role("region", name="Waiting")
    expect(expected.get_by_role("listitem")).to_have_count(2)
    looked_at(desk, "desk-expected")

    # Somebody comes, by keyboard: the board answers without another page, and says so.
    desk.evaluate("window.stays = true")
    arrive = expected.get_by_role("button", name="Arrive Vandersloot, Xerxes")
    arrive.focus()
    desk.keyboard.press("Enter")
    expect(waiting.get_by_role("link", name="Vandersloot, Xerxes", exact=True)).to_be_visible()
    expect(desk.get_by_role("status").filter(has_text="Vandersloot, Xerxes is here: number 1.")).to_be_attached()
    expect(waiting.locator(".desk-number")).to_contain_text("1")
    assert desk.evaluate("window.stays") is True
    assert desk.evaluate("document.activeElement.id") == f"visit-{morning['now']}", "the focus goes with the card"

    # It was somebody else after all, and then it was not.
    waiting.get_by_role("button", name="Undo Vandersloot, Xerxes").click()
    expect(waiting.get_by_text("Nobody waits.")).to_be_visible()
    expected.get_by_role("button", name="Arrive Vandersloot, Xerxes").click()
    expect(waiting.get_by_text("waits 0 min")).to_be_visible()

    # Somebody walks in.
    desk.get_by_role("link", name="Walk-in").first.click()
    desk.get_by_label("Name, birth date or number").fill("kowalska")
    desk.keyboard.press("Enter")
    expect(desk.get_by_text("Kowalska, Łucja")).to_be_visible()
    looked_at(desk, "desk-walk-in")
    desk.get_by_label("What the patient says").fill("Cut a finger")
    desk.get_by_role("button", name="Give a number").click()
    expect(desk.get_by_text(re.compile("Number 2: Kowalska, Łucja at .* with Dora Doctor, Room 1"))).to_be_visible()
    expect(waiting.get_by_role("listitem")).to_have_count(2)
    looked_at(desk, "desk-waiting")

    # The waiting room knows numbers and no names.
    room = sit_down("reception")
    room.goto("/desk/board/")
    expect(room.get_by_role("region", name="Waiting").get_by_role("listitem")).to_have_text(["1", "2"])
    assert "Vandersloot" not in room.content()

    # Checked in: the chart is a click away, and the screen follows when it is told to.
    waiting.get_by_role("button", name="Check in Vandersloot, Xerxes").click()
    inside = desk.get_by_role("region", name="Checked in")
    expect(inside.get_by_role("link", name="Open the chart")).to_be_visible()
    room.evaluate("document.dispatchEvent(new CustomEvent('wardbook:reset'))")
    expect(room.get_by_role("region", name="Please come in").get_by_role("listitem")).to_have_count(1)
    looked_at(room, "desk-screen")
    inside.get_by_role("button", name="Seen").click()
    expect(inside.get_by_text("Nobody is with a doctor.")).to_be_visible()

    # One goes home, with a reason; one never came.
    waiting.get_by_text("Left", exact=False).first.click()
    looked_at(desk, "desk-leaving")
    waiting.get_by_label("Why").select_option("pat-fb")
    waiting.get_by_role("button", name="Call the visit off").click()
    expect(waiting.get_by_text("Nobody waits.")).to_be_visible()
    expected.get_by_role("button", name="Missed Medina, Jesús").click()
    expect(expected.get_by_text("Nobody else is expected today.")).to_be_visible()
    desk.locator("#fold-gone summary").click()
    expect(desk.locator("#fold-gone")).to_contain_text("Missed")
    expect(desk.locator("#fold-gone")).to_contain_text("The patient feels better")
    assert factories.stored(Appointment, morning["late"])["status"] == "noshow"
    assert factories.stored(Appointment, morning["now"])["status"] == "fulfilled"


def test_what_changes_elsewhere_is_fetched_and_what_is_refused_is_said(
    sit_down: SitDown, hospital: Any, morning: dict[str, int]
) -> None:
    start = now().replace(second=0, microsecond=0) + timedelta(minutes=60)
    desk = sit_down("reception")
    desk.goto("/desk/")
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        old = session.get(Appointment, morning["now"])
        assert old is not None
        visit = Appointment(
            patient_id=hospital.patients[3],
            branch_id=hospital.branches[0],
            visit_type_id=old.visit_type_id,
            practitioner_id=hospital.staff["doctor"],
            start_at=start,
            end_at=start + timedelta(minutes=20),
        )
        session.add(visit)
        session.flush()
        number = visit.id
    pointer = {"resource": "Appointment", "id": number, "branch_id": hospital.branches[0]}
    desk.evaluate("detail => document.dispatchEvent(new CustomEvent('wardbook:pointer', { detail }))", pointer)
    card = desk.locator(f"#visit-{number}")
    expect(card).to_contain_text("Müller, Ännchen")
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        gone = session.get(Appointment, number)
        assert gone is not None
        gone.status, gone.cancelation_reason = "cancelled", "prov"
    card.get_by_role("button", name="Arrive").click()
    expect(desk.get_by_role("alert")).to_contain_text("has moved on in the meantime")
    expect(card).to_have_count(0)
    desk.get_by_label("Name or number").fill("zzz")
    expect(desk.get_by_role("heading", name="Nobody on the board fits")).to_be_visible()


def test_a_week_of_hours_is_set_up(sit_down: SitDown, hospital: Any, morning: dict[str, int]) -> None:
    del morning
    admin = sit_down("admin")
    admin.goto("/hours/")
    admin.get_by_text("Without hours").click()
    admin.get_by_role("link", name="Nora Nurse").click()
    admin.get_by_label("Monday, from").first.fill("8")
    admin.get_by_label("Monday, until").first.fill("15")
    admin.get_by_role("button", name="The same until Friday").click()
    assert admin.get_by_label("Friday, until").first.input_value() == "15"
    admin.get_by_role("button", name="See what changes").click()
    expect(admin.get_by_role("region", name="What changes").or_(admin.locator(".week-told"))).to_contain_text(
        "Friday 08:00 to 15:00"
    )
    looked_at(admin, "desk-week")
    admin.get_by_role("button", name="Save", exact=True).click()
    expect(admin.get_by_text("The hours are saved.")).to_be_visible()
    admin.goto("/hours/")
    expect(admin.get_by_role("row", name=re.compile("Nora Nurse"))).to_contain_text("Mon-Fri 08:00-15:00")
    looked_at(admin, "desk-hours")
    assert factories.number_of(WorkingHours, WorkingHours.practitioner_id == hospital.staff["nurse"]) == 5
