"""Two people at two desks, each connected to a web process of its own: what one does, the other sees without reloading.

Everything is as it is run: gunicorn, the socket, a worker, a scheduler. Tests wait for what has to come and never for a
time to pass; that something did not come is known when somebody else has been told of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, time, timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from models.base import now
from models.scheduling import Appointment
from ops.servers import Servers
from tests import factories
from tests.browser.test_calendar_journey import MADRID, booked, drag, face, middle, rows_after, start_of
from tests.browser.test_calendar_journey import address as page_of
from tests.integration.test_calendar import Practice, opened
from tests.live import LIMIT, two_processes


@dataclass(frozen=True)
class House:
    """The addresses of the two web processes, and what can be booked."""

    near: str
    far: str
    practice: Practice


@pytest.fixture(scope="module")
def house(engine: Browser, servers: Servers, database: Any) -> Iterator[House]:
    practice = opened(database.hospital)
    with two_processes(servers, database) as running:
        near, far = (f"http://127.0.0.1:{web.port}" for web in running.webs)
        yield House(near, far, practice)


@pytest.fixture(scope="module")
def address(house: House) -> str:
    """In place of the server that speaks no WebSocket."""
    return house.near


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """However slow the machine is, only what never comes is a failure."""
    expect.set_options(timeout=LIMIT * 1000)
    yield
    expect.set_options(timeout=5_000)


_days = iter(range(3, 300))


@pytest.fixture
def day() -> date:
    """A day of the future that no other test uses."""
    return now().astimezone(MADRID).date() + timedelta(days=next(_days))


@dataclass(frozen=True)
class Desks:
    """The calendar of one day, open at both."""

    reception: Page
    doctor: Page


def state(page: Page, name: str) -> Locator:
    """What the page says of its connection: live, connecting or offline."""
    return page.locator(f"[data-live-state={name}]:visible")


@pytest.fixture
def desks(sit_down: Callable[..., Page], house: House, day: date) -> Callable[[], Desks]:
    """Sit down at both, the reception at one web process and the doctor at the other, and wait until both are live."""

    def open_both() -> Desks:
        both = Desks(sit_down("reception", at=house.near), sit_down("doctor", at=house.far))
        for page in (both.reception, both.doctor):
            page.goto(page_of(house.practice, day))
            expect(state(page, "live")).to_have_text("Live")
            # Whoever reloads loses this, and the tests would not be about the socket.
            page.evaluate("document.documentElement.dataset.since = 'the beginning'")
        return both

    return open_both


def never_reloaded(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.dataset.since === 'the beginning'"))


def book_in_the_dialog(page: Page, practice: Practice, day: date, at: str, typed: str, name: str) -> None:
    """As the reception does."""
    page.keyboard.press("n")
    dialog = page.get_by_role("dialog", name="New appointment")
    expect(dialog.get_by_role("combobox", name="Patient")).to_be_focused()
    page.keyboard.type(typed)
    dialog.get_by_role("option", name=name).click()
    dialog.get_by_label("Kind of visit").select_option(label="Follow-up (30 min)")
    dialog.get_by_label("Doctor", exact=True).select_option(str(practice.doctor))
    dialog.get_by_label("Day").fill(day.isoformat())
    dialog.get_by_label("Time", exact=True).fill(at)
    dialog.get_by_role("button", name="Book", exact=True).last.click()
    expect(dialog).to_be_hidden()
    expect(face(page, name, at)).to_be_visible()


def test_what_the_reception_books_and_moves_is_on_the_doctors_page(
    desks: Callable[[], Desks], house: House, day: date
) -> None:
    both, practice = desks(), house.practice
    expect(both.doctor.locator(".cal-card")).to_have_count(0)
    book_in_the_dialog(both.reception, practice, day, "09:00", "kowal", "Kowalska")
    expect(face(both.doctor, "Kowalska", "09:00")).to_be_visible()

    first = int(both.reception.locator("[data-visit]").get_attribute("data-visit") or 0)
    card = face(both.reception, "Kowalska", "09:00")
    x, y = middle(card, 0.3)
    drag(both.reception, (x, y), (x, y + 104))  # an hour has 104 pixels
    expect(face(both.doctor, "Kowalska", "10:00")).to_be_visible()
    expect(face(both.doctor, "Kowalska")).to_have_count(1)
    expect(face(both.reception, "Kowalska", "10:00")).to_be_visible()
    (moved,) = rows_after(first)
    assert (moved["practitioner_id"], moved["start_at"].astimezone(MADRID).hour) == (practice.doctor, 10)
    assert never_reloaded(both.doctor)


def test_a_card_dropped_on_a_taken_time_goes_back_and_the_doctor_sees_no_change(
    desks: Callable[[], Desks], house: House, day: date
) -> None:
    practice = house.practice
    first, second = booked(practice, day, time(9)), booked(practice, day, time(10, 30), patient=3)
    both = desks()
    for page in (both.reception, both.doctor):
        expect(face(page, "Medina", "09:00")).to_be_visible()
        expect(face(page, "Müller", "10:30")).to_be_visible()
    drag(both.reception, middle(face(both.reception, "Medina"), 0.3), middle(face(both.reception, "Müller"), 0.6))
    dialog = both.reception.get_by_role("dialog", name="Medina")
    expect(dialog.get_by_text("Dora Doctor is taken from 10:30 to 11:00.")).to_be_visible()
    expect(dialog.locator("button[name=take]")).to_have_count(3)
    expect(face(both.reception, "Medina", "09:00")).to_be_visible()
    assert [start_of(number).strftime("%H:%M") for number in (first, second)] == ["09:00", "10:30"]
    expect(face(both.doctor, "Medina", "09:00")).to_be_visible()

    dialog.locator("button[name=take]").first.click()
    expect(face(both.doctor, "Medina", "11:00")).to_be_visible()
    expect(face(both.doctor, "Medina")).to_have_count(1)
    assert never_reloaded(both.doctor)


def test_a_page_that_lost_its_connection_says_so_and_catches_up(
    desks: Callable[[], Desks], house: House, day: date
) -> None:
    both = desks()
    window = both.doctor.context
    window.set_offline(True)
    expect(state(both.doctor, "offline")).to_contain_text("showing what was known at")
    book_in_the_dialog(both.reception, house.practice, day, "12:00", "oster", "Øster")
    assert both.doctor.locator(".cal-card").count() == 0
    window.set_offline(False)
    expect(state(both.doctor, "live")).to_have_text("Live")
    expect(face(both.doctor, "Øster", "12:00")).to_be_visible()
    book_in_the_dialog(both.reception, house.practice, day, "13:00", "medina", "Medina")
    expect(face(both.doctor, "Medina", "13:00")).to_be_visible()
    assert never_reloaded(both.doctor)


def told_no_longer(both: Desks, practice: Practice, day: date, watcher: Page) -> None:
    """The doctor's page says that it is not live, and is not told of what somebody else's page is told of."""
    expect(state(both.doctor, "offline")).to_contain_text("showing what was known at")
    book_in_the_dialog(both.reception, practice, day, "14:00", "medina", "Medina")
    expect(face(watcher, "Medina", "14:00")).to_be_visible()
    assert both.doctor.locator(".cal-card").count() == 0
    assert never_reloaded(both.doctor)


@pytest.fixture
def watcher(sit_down: Callable[..., Page], house: House, day: date) -> Page:
    """A nurse's page at the doctor's web process."""
    page = sit_down("nurse", at=house.far)
    page.goto(page_of(house.practice, day))
    expect(state(page, "live")).to_have_text("Live")
    return page


def test_signing_out_in_another_tab_ends_the_feed_and_the_page_says_so(
    desks: Callable[[], Desks], house: House, day: date, watcher: Page
) -> None:
    both = desks()
    tab = both.doctor.context.new_page()
    tab.goto("/logout/")
    told_no_longer(both, house.practice, day, watcher)


def test_a_role_that_no_longer_sees_visits_ends_the_feed_and_the_page_says_so(
    desks: Callable[[], Desks], house: House, day: date, watcher: Page, granted: Callable[..., None]
) -> None:
    both = desks()
    granted("Doctor", Appointment=None)
    told_no_longer(both, house.practice, day, watcher)
    both.doctor.reload()
    assert "Your role does not allow this" in both.doctor.content()
    assert factories.number_of(Appointment, Appointment.status == "booked") > 0
