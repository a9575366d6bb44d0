"""Watching the trail as it is lived through: a check asked for and seen to its end, an alarm, and an unusual look."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app import guard, tree
from jobs import trail as drainer
from jobs.unusual import find
from jobs.verify import check
from tests.browser.test_emergency_journey import looked_at
from tests.conftest import Database
from views.watch import watchman

SitDown = Callable[..., Page]


@pytest.fixture(scope="module", autouse=True)
def sealed(seal: Path, database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A key and a witness of this module's own, as the database is its own."""
    folder = tmp_path_factory.mktemp("watch")
    tree.connect(folder / "key.pem", f"file:{folder / 'witness'}")
    yield
    tree.connect(seal / "key.pem", f"file:{seal / 'witness'}")


def sql(*statements: str) -> list[Any]:
    with guard.engine().begin() as connection:
        for statement in statements:
            found = connection.exec_driver_sql(statement)
        return list(found.mappings()) if found.returns_rows else []


def checked() -> None:
    """The worker does the check that waits; in a thread of its own, as the browser's has an event loop."""
    thread = threading.Thread(target=check, args=(sql("SELECT max(id) AS id FROM audit_check")[0]["id"],))
    thread.start()
    thread.join()


def test_the_trail_is_checked_and_a_fault_is_seen_everywhere(sit_down: SitDown, hospital: Any) -> None:
    privacy = sit_down("privacy")
    drainer.drain()
    privacy.get_by_role("link", name="The trail").first.click()
    expect(privacy.get_by_role("heading", name="The trail", exact=True)).to_be_visible()
    expect(privacy.get_by_text("Everything is stored in time.")).to_be_visible()
    expect(privacy.get_by_role("heading", name="Nobody has checked the trail yet")).to_be_visible()
    looked_at(privacy, "watch")
    privacy.get_by_role("button", name="Check the whole trail").click()
    expect(privacy.locator("[data-now-check]")).to_contain_text("waits for the worker")
    sql("UPDATE audit_check SET beat_at = now(), done = 500000, total = 2000000")
    expect(privacy.locator("[data-now-check]")).to_contain_text("500,000 of 2,000,000 lines, 25 %", timeout=15_000)
    assert privacy.get_by_role("progressbar").evaluate("bar => bar.value / bar.max") == 0.25
    looked_at(privacy, "watch-running")
    checked()
    expect(privacy.get_by_text("are as they were written")).to_be_visible(timeout=15_000)
    expect(privacy.locator("[data-now-check]")).to_be_hidden()

    sql(
        "ALTER TABLE audit_event DISABLE TRIGGER USER",
        "UPDATE audit_event SET agent_name = 'Nobody' WHERE id = (SELECT min(id::text)::uuid FROM audit_event)",
        "ALTER TABLE audit_event ENABLE TRIGGER USER",
        "INSERT INTO audit_quarantine (source, payload, reason, found_at) "
        "VALUES ('stream 1732-0', '{\"agent\": 7', 'DecodeError: Input data was truncated', now())",
    )
    privacy.get_by_role("button", name="Check the whole trail").click()
    checked()
    expect(privacy.get_by_text("was altered after it was stored").first).to_be_visible(timeout=15_000)
    looked_at(privacy, "watch-fault")
    watchman.forget()
    admin = sit_down("admin")
    expect(admin.locator(".alarm")).to_contain_text("The trail is not whole")
    looked_at(admin, "watch-alarm")
    admin.get_by_role("link", name="Look at the trail").click()
    admin.get_by_text("What it holds").click()
    expect(admin.locator(".watch-list pre")).to_have_count(0)
    admin.get_by_role("link", name="Show it. That is written down").click()
    expect(admin.locator(".watch-list pre")).to_have_text('{"agent": 7')
    expect(sit_down("doctor").locator(".alarm")).to_have_count(0)


def test_an_unusual_look_is_asked_about_and_explained(sit_down: SitDown, hospital: Any) -> None:
    first, second = hospital.patients[6], hospital.patients[9]
    sql(
        f"UPDATE patient SET confidential = true WHERE id = {first}",
        f"UPDATE patient SET created_at = '2020-01-01Z' WHERE id IN ({first}, {second})",
    )
    nurse, privacy = sit_down("nurse"), sit_down("privacy")
    for key in (first, second):
        nurse.goto(f"/patients/{key}/")
    expect(nurse.get_by_role("heading", level=1)).to_have_text("Fitzgerald-Jones, Persephone")
    privacy.goto("/unusual/")
    expect(privacy.get_by_role("heading", name="Nothing is to be looked at")).to_be_visible()
    looked_at(privacy, "unusual-none")
    drainer.drain()
    find()
    privacy.goto("/")
    privacy.get_by_role("link", name=re.compile("Unusual access to be looked at")).click()
    expect(privacy.get_by_role("heading", name=re.compile("Nora Nurse"))).to_be_visible()
    looked_at(privacy, "unusual")
    privacy.get_by_role("checkbox").first.focus()
    privacy.keyboard.press("Space")
    privacy.get_by_role("radio", name="Not explained").check()
    privacy.get_by_role("button", name=re.compile("^Save for what is ticked")).click()
    expect(privacy.locator("p.error")).to_contain_text("15 letters or more")
    assert privacy.get_by_role("checkbox").first.is_checked()
    looked_at(privacy, "unusual-refused")
    privacy.get_by_label("Note").fill("She could not say why she opened it")
    privacy.get_by_role("button", name=re.compile("^Save for what is ticked")).click()
    expect(privacy.get_by_text("The review is saved.")).to_be_visible()
    expect(privacy.get_by_text("She could not say why she opened it")).to_be_visible()
    looked_at(privacy, "unusual-reviewed")
    privacy.get_by_role("link", name=re.compile("^Every line of it")).first.click()
    expect(privacy.get_by_role("heading", name="Who saw what")).to_be_visible()
    expect(privacy.locator("main")).to_contain_text("Nora Nurse")
