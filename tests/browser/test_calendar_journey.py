"""The calendar in a real browser: booking, dragging, the keyboard, paper and a narrow screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Locator, Page, expect
from sqlalchemy import select

from app import guard
from app.services import scheduling, series
from models.base import now
from models.scheduling import Appointment
from tests import factories
from tests.integration.test_calendar import Practice, opened

SitDown = Callable[..., Page]
MADRID = ZoneInfo("Europe/Madrid")


@pytest.fixture(scope="module")
def practice(database: Any) -> Practice:
    return opened(database.hospital)


_days = iter(range(3, 300))


@pytest.fixture
def day() -> date:
    """A day of the future that no other test uses."""
    return now().astimezone(MADRID).date() + timedelta(days=next(_days))


def booked(practice: Practice, day: date, at: time, patient: int = 2, **more: Any) -> int:
    """A visit that is there already."""
    asked = {"patient_id": practice.patients[patient], "visit_type_id": practice.visit} | more
    start = datetime.combine(day, at, tzinfo=MADRID)
    asked = {"practitioner_id": practice.doctor, "start_at": start, "branch_id": practice.branch, **asked}
    with factories.acting(practice.desk), guard.unit_of_work() as session:
        return scheduling.book(session, scheduling.Asked(**asked)).id


def address(practice: Practice, day: date, **more: Any) -> str:
    return "/calendar/?" + urlencode({"date": day, "branch": practice.branch, **more})


def face(page: Page, name: str, start: str = "") -> Locator:
    """A card in the columns."""
    return page.locator(".ec-event", has=page.locator(f".cal-card:has-text('{name}')")).filter(has_text=start)


def middle(place: Locator, dy: float = 0.5) -> tuple[float, float]:
    box = place.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] * dy


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Press, move in steps as a hand does, let go."""
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(start[0], start[1] + 8, steps=2)
    page.mouse.move(*end, steps=8)
    page.mouse.up()


def start_of(number: int) -> datetime:
    start: datetime = factories.stored(Appointment, number)["start_at"]
    return start.astimezone(MADRID)


def test_a_visit_is_booked_in_the_dialog_from_empty_time_in_a_column(
    sit_down: SitDown, practice: Practice, day: date
) -> None:
    booked(practice, day, time(10))
    page = sit_down("reception")
    page.goto(address(practice, day))
    expect(face(page, "Medina")).to_be_visible()
    x, y = middle(face(page, "Medina"))
    before = factories.number_of(Appointment)
    drag(page, (x, y + 60), (x, y + 112))
    dialog = page.get_by_role("dialog", name="New appointment")
    expect(dialog.get_by_role("combobox", name="Patient")).to_be_focused()
    assert dialog.get_by_label("Doctor", exact=True).input_value() == str(practice.doctor)
    assert dialog.get_by_label("Day").input_value() == day.isoformat()
    assert dialog.get_by_label("Time", exact=True).input_value() > "10:30"
    page.keyboard.type("kowal")
    dialog.get_by_role("option", name="Kowalska").click()
    dialog.get_by_label("Kind of visit").select_option(label="Follow-up (30 min)")
    dialog.get_by_label("Reason").fill("Results")
    dialog.get_by_role("button", name="Book", exact=True).last.click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_text("Booked: Kowalska, Łucja")).to_be_visible()
    expect(face(page, "Kowalska")).to_be_visible()
    assert factories.number_of(Appointment) == before + 1


def test_a_taken_time_names_the_doctor_and_one_press_books_another(
    sit_down: SitDown, practice: Practice, day: date
) -> None:
    booked(practice, day, time(9))
    page = sit_down("reception")
    page.goto(address(practice, day))
    page.keyboard.press("n")
    dialog = page.get_by_role("dialog", name="New appointment")
    expect(dialog.get_by_role("combobox", name="Patient")).to_be_focused()
    page.keyboard.type("oster")
    expect(dialog.locator("#who-list [role=option]")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(dialog.locator(".chosen").get_by_text("Øster, Åse")).to_be_visible()
    dialog.get_by_label("Kind of visit").select_option(label="Follow-up (30 min)")
    dialog.get_by_label("Doctor", exact=True).select_option(str(practice.doctor))
    dialog.get_by_label("Day").fill(day.isoformat())
    dialog.get_by_label("Time", exact=True).fill("09:10")
    dialog.get_by_label("Reason").fill("Back pain")
    page.keyboard.press("Enter")
    expect(dialog.get_by_text("Dora Doctor is taken from 09:00 to 09:30.")).to_be_visible()
    assert dialog.get_by_label("Reason").input_value() == "Back pain"
    others = dialog.locator("button[name=take]")
    expect(others).to_have_count(3)
    others.first.click()
    expect(dialog).to_be_hidden()
    expect(face(page, "Øster", "09:30")).to_be_visible()


def test_a_card_dragged_onto_a_taken_time_goes_back_and_offers_three_others(
    sit_down: SitDown, practice: Practice, day: date
) -> None:
    first, _ = booked(practice, day, time(9)), booked(practice, day, time(10, 30), patient=3)
    page = sit_down("reception")
    page.goto(address(practice, day))
    expect(face(page, "Medina", "09:00")).to_be_visible()
    drag(page, middle(face(page, "Medina"), 0.3), middle(face(page, "Müller"), 0.6))
    dialog = page.get_by_role("dialog", name="Medina")
    expect(dialog.get_by_text("That time is taken.")).to_be_visible()
    expect(dialog.get_by_text("Dora Doctor is taken from 10:30 to 11:00.")).to_be_visible()
    expect(dialog.locator("button[name=take]")).to_have_count(3)
    expect(face(page, "Medina", "09:00")).to_be_visible()
    assert start_of(first).hour == 9
    dialog.locator("button[name=take]").first.click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_text("Moved to")).to_be_visible()
    expect(face(page, "Medina", "11:00")).to_be_visible()
    assert factories.number_of(Appointment, Appointment.moved_from_id == first) == 1


def test_a_card_is_dragged_to_another_doctor_and_stretched(sit_down: SitDown, practice: Practice, day: date) -> None:
    number = booked(practice, day, time(9), room_id=practice.room)
    page = sit_down("reception")
    page.goto(address(practice, day))
    card = face(page, "Medina", "09:00")
    expect(card).to_be_visible()
    column = page.locator(".ec-col-head", has_text="Nora Nurse")
    drag(page, middle(card, 0.3), (middle(column)[0], middle(card, 0.3)[1]))
    expect(page.locator(".cal-card[title*='Medina']")).to_have_count(1)
    page.wait_for_function(f"() => !document.querySelector('[data-visit=\"{number}\"]')")
    moved = next(row for row in rows_after(number))
    assert (moved["practitioner_id"], moved["start_at"].astimezone(MADRID).hour) == (practice.nurse, 9)
    card = face(page, "Medina", "09:00")
    box = card.bounding_box()
    assert box is not None
    edge = (box["x"] + box["width"] / 2, box["y"] + box["height"] - 3)
    card.hover()
    drag(page, edge, (edge[0], edge[1] + 52))
    page.wait_for_function(f"() => !document.querySelector('[data-visit=\"{moved['id']}\"]')")
    longer = next(row for row in rows_after(moved["id"]))
    assert longer["end_at"] - longer["start_at"] > timedelta(minutes=40)


def rows_after(number: int) -> list[Any]:
    """The visit that stands for another one now."""
    table = Appointment.__table__
    with guard.engine().connect() as connection:
        return list(connection.execute(select(table).where(table.c.moved_from_id == number)).mappings())


def test_everything_goes_by_keyboard(sit_down: SitDown, practice: Practice, day: date) -> None:
    booked(practice, day, time(9))
    number = booked(practice, day, time(10), patient=3)
    page = sit_down("reception")
    page.goto(address(practice, day, view="list"))
    links = page.locator("[data-visit]")
    expect(links).to_have_count(2)
    links.first.focus()
    page.keyboard.press("ArrowDown")
    expect(links.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Müller")
    expect(dialog).to_be_visible()
    dialog.locator("summary", has_text="Move").press("Enter")
    dialog.get_by_label("Time", exact=True).fill("11:00")
    dialog.get_by_label("Minutes").press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("tr", has_text="Müller").get_by_text("11:00")).to_be_visible()
    new = rows_after(number)[0]["id"]
    page.locator(f"[data-visit='{new}']").press("Enter")
    dialog.locator("summary", has_text="Call off").press("Enter")
    dialog.get_by_label("Why").select_option("pat")
    dialog.get_by_role("button", name="Call it off").press("Enter")
    expect(page.locator(f"[data-visit='{new}']")).to_have_count(0)
    assert factories.stored(Appointment, new)["status"] == "cancelled"


def test_what_another_desk_does_appears_and_a_dragged_card_stays(
    sit_down: SitDown, practice: Practice, day: date
) -> None:
    first = booked(practice, day, time(9))
    page = sit_down("reception")
    page.goto(address(practice, day))
    expect(face(page, "Medina", "09:00")).to_be_visible()
    second = booked(practice, day, time(13), patient=3)

    def point(number: int, version: int) -> None:
        detail = {"resource": "Appointment", "id": number, "branch_id": practice.branch, "version": version}
        page.evaluate("detail => document.dispatchEvent(new CustomEvent('wardbook:pointer', {detail}))", detail)

    point(second, 1)
    expect(face(page, "Müller", "13:00")).to_be_visible()
    with factories.acting(practice.desk), guard.unit_of_work() as session:
        version = scheduling.cancel(session, second, reason="pat").version
    point(second, version)
    expect(face(page, "Müller")).to_have_count(0)

    x, y = middle(face(page, "Medina"), 0.3)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + 30, steps=4)
    third = booked(practice, day, time(15), patient=5)
    with page.expect_response(lambda answer: answer.url.endswith(f"/appointment/{third}")):
        point(third, 1)
    page.mouse.move(x, y + 104, steps=4)
    page.mouse.up()
    expect(face(page, "Øster", "15:00")).to_be_visible()
    expect(face(page, "Medina", "10:00")).to_be_visible()
    assert rows_after(first)[0]["start_at"].astimezone(MADRID).hour == 10

    page.evaluate("document.dispatchEvent(new CustomEvent('wardbook:reset'))")
    expect(face(page, "Øster", "15:00")).to_be_visible()


def test_the_address_remembers_day_view_and_filters(sit_down: SitDown, practice: Practice, day: date) -> None:
    booked(practice, day, time(9))
    page = sit_down("reception")
    page.goto(address(practice, day))
    expect(face(page, "Medina", "09:00")).to_be_visible()
    page.get_by_role("link", name="Rooms").click()
    expect(page.locator(".ec-col-head", has_text="Consulting 1")).to_be_visible()
    page.locator("summary", has_text="Filter").click()
    page.get_by_label("Doctor", exact=True).select_option(str(practice.nurse))
    expect(face(page, "Medina")).to_have_count(0)
    assert "by=room" in page.url
    assert f"doctor={practice.nurse}" in page.url
    page.reload()
    expect(page.locator(".ec-col-head", has_text="Consulting 1")).to_be_visible()
    page.go_back()
    expect(face(page, "Medina", "09:00")).to_be_visible()
    page.get_by_role("link", name="Month").click()
    expect(page.get_by_role("link", name="1 visits")).to_be_visible()
    page.get_by_role("link", name="1 visits").click()
    expect(face(page, "Medina", "09:00")).to_be_visible()


def test_paper_and_a_narrow_screen_show_the_list(sit_down: SitDown, practice: Practice, day: date) -> None:
    booked(practice, day, time(9))
    page = sit_down("reception")
    page.goto(address(practice, day))
    expect(face(page, "Medina", "09:00")).to_be_visible()
    expect(page.locator(".cal-list")).to_be_hidden()
    page.emulate_media(media="print")
    expect(page.locator(".cal-list").get_by_text("Medina, Jesús")).to_be_visible()
    expect(page.locator("[data-cal-grid]")).to_be_hidden()
    expect(page.locator(".cal-bar")).to_be_hidden()
    for scheme in ("light", "dark"):
        narrow = sit_down("reception", width=320, scheme=scheme)
        for view in ("month", "list", "week", "day"):
            narrow.goto(address(practice, day, view=view))
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert narrow.evaluate(wide) <= 0, view
        expect(narrow.locator(".cal-list").get_by_text("Medina, Jesús")).to_be_visible()
        narrow.get_by_role("link", name="Medina, Jesús").click()
        dialog = narrow.get_by_role("dialog", name="Medina")
        expect(dialog).to_be_visible()
        dialog.locator("summary", has_text="Move").click()
        assert dialog.evaluate("e => e.scrollWidth - e.clientWidth") <= 0


def test_a_series_is_moved_together_after_each_visit_was_looked_at(
    sit_down: SitDown, practice: Practice, day: date
) -> None:
    """From the card of one visit, by keyboard where it is quicker; the one that cannot go stays."""
    first = datetime.combine(day + timedelta(days=300), time(9), tzinfo=MADRID)
    asked = scheduling.Asked(
        practice.patients[2], practice.visit, practice.doctor, first, room_id=practice.room, branch_id=practice.branch
    )
    with factories.acting(practice.desk), guard.unit_of_work() as session:
        number = series.book_series(session, asked, series.Rule("weekly", count=4)).id
    second = of_series(number)[1]
    booked(practice, (first + timedelta(days=15)).date(), time(11), patient=3, room_id=practice.room)
    page = sit_down("reception")
    page.goto(address(practice, start_of(second["id"]).date()))
    face(page, "Medina").click()
    dialog = page.get_by_role("dialog", name="Medina")
    dialog.get_by_role("link", name="Move or call off several").click()
    expect(page.get_by_role("heading", name="Repeated visits of Medina, Jesús")).to_be_visible()
    expect(page.get_by_label("This and the following (3)")).to_be_checked()
    expect(page.get_by_label("Why", exact=True)).to_be_hidden()
    page.get_by_label("New day of this visit").fill((first + timedelta(days=8)).date().isoformat())
    page.get_by_label("New time").fill("11:00")
    page.get_by_label("New time").press("Enter")
    expect(page.get_by_role("heading", name="2 of 3 can be moved")).to_be_visible()
    expect(page.get_by_text("Dora Doctor is taken from 11:00 to 11:30.")).to_be_visible()
    assert [row["id"] for row in of_series(number)][1] == second["id"]
    page.get_by_role("button", name="Move the ticked visits").click()
    expect(page.get_by_text("2 visits are moved.")).to_be_visible()
    moved = rows_after(second["id"])[0]
    assert moved["start_at"] == second["start_at"] + timedelta(days=1, hours=2)
    expect(page).to_have_url(re.compile(f"/appointments/{moved['id']}/$"))
    assert len(of_series(number)) == 2

    page.get_by_role("link", name="Move or call off several").click()
    page.get_by_role("radio", name="Call off").check()
    expect(page.get_by_label("New time")).to_be_hidden()
    page.get_by_role("radio", name="All that are still to come (2)").check()
    page.get_by_label("Why", exact=True).select_option("prov-pers")
    page.get_by_role("button", name="Look at the visits").last.click()
    expect(page.get_by_role("heading", name="These 2 visits would be called off")).to_be_visible()
    page.get_by_role("button", name="Call these visits off").click()
    expect(page.get_by_text("2 visits are called off.")).to_be_visible()
    assert of_series(moved["series_id"]) == []
    assert len(of_series(number)) == 2


def of_series(number: int) -> list[Any]:
    """The visits of a series that are booked, in order."""
    table = Appointment.__table__
    wanted = select(table).where(table.c.series_id == number, table.c.status == "booked").order_by(table.c.start_at)
    with guard.engine().connect() as connection:
        return list(connection.execute(wanted).mappings())


def test_the_pages_of_the_desk_fit_a_narrow_screen(sit_down: SitDown, practice: Practice, day: date) -> None:
    first = datetime.combine(day + timedelta(days=300), time(14), tzinfo=MADRID)
    asked = scheduling.Asked(
        practice.patients[4], practice.visit, practice.doctor, first, room_id=practice.room, branch_id=practice.branch
    )
    with factories.acting(practice.desk), guard.unit_of_work() as session:
        number = series.book_series(session, asked, series.Rule("weekly", count=2)).id
    page = sit_down("reception", width=320, scheme="dark")
    for path in (f"/series/visit/{of_series(number)[0]['id']}/", "/desk/not-reached/", "/desk/", "/waitlist/"):
        page.goto(path)
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0, path
