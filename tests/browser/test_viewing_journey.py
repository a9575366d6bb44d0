"""Looking as a role, and the figures of the start page, in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

SitDown = Callable[..., Page]


def test_an_administrator_looks_as_a_nurse_and_comes_back(sit_down: SitDown, hospital: Any) -> None:
    """From the person's menu, by keyboard, to the banner on every page, and back with one button."""
    page = sit_down("admin")
    page.goto(f"/patients/{hospital.patients[1]}/")
    page.get_by_text("My account: Agnes Admin").locator("xpath=..").focus()
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Look as a role").click()
    expect(page.get_by_role("heading", name="Look as a role")).to_be_visible()
    page.get_by_role("button", name="Look as Nurse").focus()
    page.keyboard.press("Enter")

    banner = page.get_by_role("complementary", name="Looking as a role")
    expect(banner).to_contain_text("You are looking at Wardbook as Nurse. Nothing can be changed.")
    expect(page.get_by_role("navigation", name="Main").first).not_to_contain_text("Accounts")
    expect(page.get_by_text("Vandersloot")).to_have_count(0)  # what the administrator opened is not the nurse's
    page.goto(f"/patients/{hospital.patients[1]}/")
    expect(banner).to_be_visible()
    expect(page.get_by_role("navigation", name="Parts of the record")).not_to_contain_text("Conditions")
    page.goto("/trail/")
    expect(page.get_by_role("heading", name="Not open to you")).to_be_visible()
    expect(banner).to_be_visible()

    page.get_by_role("button", name="Back to my own view").click()
    expect(page.get_by_role("heading", name="Look as a role")).to_be_visible()
    expect(banner).to_have_count(0)
    page.goto("/trail/")
    expect(page.get_by_role("heading", name="Who saw what")).to_be_visible()


@pytest.mark.parametrize("width", [320, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_banner_stays_in_sight_and_hides_nothing(sit_down: SitDown, width: int, scheme: str) -> None:
    page = sit_down("admin", width=width, scheme=scheme)
    page.goto("/view-as/")
    page.get_by_role("button", name="Look as Receptionist").click()
    banner = page.get_by_role("complementary", name="Looking as a role")
    expect(banner).to_be_visible()
    page.mouse.wheel(0, 4000)
    expect(banner).to_be_in_viewport(ratio=0.9)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_figures_can_be_read_as_a_table(sit_down: SitDown) -> None:
    page = sit_down("admin", width=320)
    plot = page.get_by_role("img", name="Every branch:")
    expect(plot).to_be_visible()
    expect(page.get_by_role("table", name="Visits a day")).to_be_hidden()
    page.get_by_text("As a table").focus()
    page.keyboard.press("Enter")
    table = page.get_by_role("table", name="Visits a day")
    expect(table).to_be_visible()
    expect(table.get_by_role("row")).to_have_count(31)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
