"""An administrator changes what a role may do, in a real browser: by mouse, by keyboard, on a phone, without scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import text

from app import guard
from tests.factories import PASSWORD

SitDown = Callable[..., Page]


def rows(statement: str) -> list[Any]:
    """Something done or asked past the application."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement))
        return list(found.mappings()) if found.returns_rows else []


@pytest.fixture(autouse=True)
def as_it_was(app: Any) -> Iterator[None]:
    """The nurses may afterwards what they could before."""
    tables = ("ab_permission_view_role", "role_grant")
    for table in tables:
        rows(f"CREATE TABLE IF NOT EXISTS was_{table} AS SELECT * FROM {table}")
    yield
    with guard.engine().begin() as connection:
        for table in tables:
            connection.execute(text(f"DELETE FROM {table}"))
            connection.execute(text(f"INSERT INTO {table} SELECT * FROM was_{table}"))


def nurse() -> str:
    (row,) = rows("SELECT id FROM ab_role WHERE name = 'Nurse'")
    return f"/access/roles/?role={row['id']}"


def tick(page: Page, name: str) -> Any:
    return page.get_by_role("checkbox", name=name, exact=True)


def test_a_change_is_ticked_reviewed_and_saved(sit_down: SitDown) -> None:
    page = sit_down("admin", width=1440)
    page.get_by_role("link", name="What roles may do").click()
    page.get_by_role("navigation", name="Roles").get_by_role("link", name="Nurse").click()
    expect(page.get_by_role("heading", name="Nurse")).to_be_visible()
    expect(page.get_by_text("Nothing changed yet")).to_be_visible()

    tick(page, "See: Conditions").check()
    expect(page.get_by_text("1 change, not saved yet")).to_be_visible()
    tick(page, "Change: Allergies").uncheck()
    page.get_by_label("Which ones: Conditions").select_option("Patients in their care")
    visits = page.locator("tr", has=page.get_by_role("rowheader", name="Visits", exact=True))
    visits.locator("summary").click()
    visits.get_by_role("checkbox", name="Reason").check()
    expect(visits.get_by_text("1 hidden")).to_be_visible()
    expect(page.get_by_text("4 changes, not saved yet")).to_be_visible()
    page.get_by_role("button", name="Review changes").click()

    expect(page.get_by_role("heading", level=1, name="Review changes: Nurse")).to_be_visible()
    expect(page.get_by_text("Nurse may now see conditions.")).to_be_visible()
    expect(page.get_by_text("Nurse no longer sees the reason of visits.")).to_be_visible()
    expect(page.get_by_text("It concerns 1 person")).to_be_visible()
    page.get_by_role("button", name="Back").click()
    expect(tick(page, "See: Conditions")).to_be_checked()
    expect(page.get_by_text("4 changes, not saved yet")).to_be_visible()
    page.get_by_role("button", name="Review changes").click()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Please say in a few words why").first).to_be_visible()
    page.get_by_label("Why?").fill("Ward 3 keeps the list")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved. It counts from everybody")).to_be_visible()
    expect(tick(page, "See: Conditions")).to_be_checked()
    expect(page.get_by_text("Nothing changed yet")).to_be_visible()


def test_the_grid_goes_by_the_keyboard_alone(sit_down: SitDown) -> None:
    page = sit_down("admin")
    page.goto(nurse())
    first = tick(page, "See: Patients")
    first.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    expect(tick(page, "Add: Visits")).to_be_focused()
    page.keyboard.press("Space")
    expect(tick(page, "Add: Visits")).not_to_be_checked()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Which ones: Visits")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_label("Which ones: Visits")).to_have_value("own_branch")
    page.keyboard.press("ArrowLeft")
    expect(tick(page, "Change: Visits")).to_be_focused()
    page.keyboard.press("Home")
    expect(tick(page, "See: Visits")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Review changes")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(tick(page, "See: Visits")).to_be_focused()
    expect(page.get_by_text("2 changes, not saved yet")).to_be_visible()


def test_leaving_with_unsaved_ticks_asks(sit_down: SitDown) -> None:
    page = sit_down("admin")
    page.goto(nurse())
    asked: list[str] = []

    def stay(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    tick(page, "See: Conditions").check()
    page.get_by_role("navigation", name="Roles").get_by_role("link", name="Doctor").click(no_wait_after=True)
    expect(tick(page, "See: Conditions")).to_be_checked()
    assert asked == ["beforeunload"]
    assert page.url.endswith(nurse())
    tick(page, "See: Conditions").uncheck()
    page.get_by_role("navigation", name="Roles").get_by_role("link", name="Doctor").click()
    expect(page.get_by_role("heading", name="Doctor")).to_be_visible()
    assert asked == ["beforeunload"]


def test_a_refusal_keeps_the_ticks(sit_down: SitDown) -> None:
    page = sit_down("admin")
    page.goto(nurse())
    tick(page, "See: Clinical notes").check()
    tick(page, "Change: Roles").check()
    page.get_by_role("button", name="Review changes").click()
    expect(page.get_by_role("alert")).to_contain_text("Whoever configures roles must not see clinical notes")
    expect(page.get_by_role("alert")).to_be_focused()
    expect(tick(page, "See: Clinical notes")).to_be_checked()
    expect(tick(page, "Change: Roles")).to_be_checked()


def test_a_long_list_of_roles_is_narrowed(sit_down: SitDown) -> None:
    page = sit_down("admin", width=1440)
    page.goto(nurse())
    page.get_by_label("Find a role").fill("off")
    shown = page.get_by_role("navigation", name="Roles").get_by_role("link")
    expect(shown).to_have_count(1)
    expect(shown).to_contain_text("Privacy officer")
    page.get_by_label("Find a role").fill("zzz")
    expect(page.get_by_text("No role by that name.")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_fits_on_a_phone(sit_down: SitDown, scheme: str) -> None:
    page = sit_down("admin", width=320, scheme=scheme)
    for path in (nurse(), "/access/roles/all/", "/access/roles/new/"):
        page.goto(path)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{path} is {wide} px too wide"
    page.goto(nurse())
    page.get_by_label("Role", exact=True).select_option(label="Doctor (1 person)")
    expect(page.get_by_role("heading", name="Doctor")).to_be_visible()
    page.goto(nurse())
    tick(page, "See: Conditions").check()
    page.get_by_role("button", name="Review changes").click()
    expect(page.get_by_text("Nurse may now see conditions.")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0


def test_it_works_without_scripts(engine: Browser, address: str) -> None:
    window = engine.new_context(base_url=address, java_script_enabled=False)
    page = window.new_page()
    page.goto("/login/")
    page.get_by_label("User name").fill("admin")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("Password").press("Enter")
    page.goto(nurse())
    tick(page, "See: Conditions").check()
    page.get_by_role("button", name="Review changes").click()
    page.get_by_label("Why?").fill("Ward 3 keeps the list")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved. It counts from everybody")).to_be_visible()
    expect(tick(page, "See: Conditions")).to_be_checked()
    window.close()
