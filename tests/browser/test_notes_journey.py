"""A doctor's note: written, kept while it is written, signed, added to, written anew and compared."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Page, expect

from app import guard
from app.actor import service
from models.base import now
from models.notes import ClinicalNote
from models.organization import Practitioner
from tests import factories
from tests.conftest import Database

SitDown = Callable[..., Page]
SHOTS = os.environ.get("WARDBOOK_SHOTS")
"""A folder for pictures of the pages on the way, wide and narrow, light and dark."""


@pytest.fixture(scope="module")
def ward(database: Database, app: Flask) -> Any:
    """The hospital, where the nurse's account belongs to nobody in training and the doctor supervises nobody yet."""
    del app
    return database.hospital


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


def kept(page: Page) -> None:
    """Wait until the page says that what was typed is kept."""
    expect(page.locator("[data-note-state]")).to_have_text(re.compile(r"Saved \d\d:\d\d"), timeout=15_000)


def key_of(page: Page) -> int:
    return int(re.findall(r"/notes/(\d+)/", page.url)[0])


def test_a_note_is_written_signed_added_to_and_written_anew(sit_down: SitDown, ward: Any) -> None:
    doctor = sit_down("doctor")
    doctor.goto(f"/patients/{ward.patients[3]}/notes/")
    looked_at(doctor, "notes-empty")
    doctor.get_by_role("link", name="Write a note").click()
    looked_at(doctor, "notes-choose")
    doctor.get_by_role("button", name="Progress note (SOAP)").click()

    # What is typed is kept without a button, and is there after a reload.
    doctor.get_by_label("Subjective").fill("Coughs since Monday <b>badly</b>")
    expect(doctor.locator("[data-note-state]")).to_have_text("Not saved yet")
    kept(doctor)
    key = key_of(doctor)
    assert factories.stored(ClinicalNote, key)["content"] == {"subjective": "Coughs since Monday <b>badly</b>"}
    doctor.reload()
    expect(doctor.get_by_label("Subjective")).to_have_value("Coughs since Monday <b>badly</b>")
    looked_at(doctor, "notes-edit")

    # Signing says what is missing, and leads there.
    doctor.get_by_label("Assessment").fill("Bronchitis")
    doctor.keyboard.press("Control+Enter")
    expect(doctor.get_by_role("alert").filter(has_text="cannot be signed yet")).to_be_visible()
    looked_at(doctor, "notes-missing")
    doctor.get_by_role("alert").get_by_role("link", name="Plan").click()
    doctor.keyboard.type("Rest, fluids")
    doctor.keyboard.press("Control+Enter")
    expect(doctor.get_by_role("heading", name="Sign the note")).to_be_visible()
    looked_at(doctor, "notes-sign")
    doctor.get_by_role("button", name="Sign", exact=True).focus()
    doctor.keyboard.press("Enter")
    expect(doctor.get_by_text("The note is signed.")).to_be_visible()
    signed = factories.stored(ClinicalNote, key)
    assert signed["status"] == "final"
    doctor.locator(".note-digest summary").click()
    expect(doctor.get_by_text(signed["digest"], exact=True)).to_be_visible()

    # An addendum stands beneath it.
    doctor.get_by_role("button", name="Add an addendum").click()
    doctor.get_by_label("What is to be added").fill("The culture was negative.")
    kept(doctor)
    doctor.get_by_role("button", name="Sign…").click()
    doctor.get_by_role("button", name="Sign", exact=True).click()
    doctor.goto(f"/notes/{key}/")
    expect(doctor.get_by_role("heading", name="Addenda 1")).to_be_visible()
    expect(doctor.get_by_text("The culture was negative.")).to_be_visible()

    # A new version, and what changed.
    doctor.get_by_role("button", name="Write a new version").click()
    doctor.get_by_label("Plan").fill("Rest, antibiotics")
    doctor.get_by_role("button", name="Sign…").click()
    doctor.get_by_role("button", name="Sign", exact=True).click()
    expect(doctor.get_by_text("The note is signed.")).to_be_visible()
    looked_at(doctor, "notes-show")
    doctor.get_by_role("link", name="Version 1 to 2").click()
    expect(doctor.locator("del")).to_have_text("fluids")
    expect(doctor.locator("ins")).to_have_text("antibiotics")
    looked_at(doctor, "notes-diff")
    assert factories.stored(ClinicalNote, key) == signed

    # Found by its words, and withdrawn with a reason.
    doctor.goto(f"/patients/{ward.patients[3]}/notes/")
    looked_at(doctor, "notes-list")
    doctor.get_by_role("searchbox", name="Words in these notes").fill("antibiotics")
    doctor.keyboard.press("Enter")
    expect(doctor.locator("mark")).to_have_text("antibiotics")
    looked_at(doctor, "notes-found")
    doctor.get_by_role("link", name="Progress note").click()
    doctor.get_by_text("it stays in the record").click()
    doctor.get_by_label("Why").fill("Written for another patient")
    doctor.get_by_role("button", name="Withdraw the note").click()
    expect(doctor.get_by_text("Withdrawn by Dora Doctor")).to_be_visible()
    expect(doctor.locator(".note-struck").first).to_have_css("text-decoration-line", "line-through")
    looked_at(doctor, "notes-withdrawn")


def test_two_windows_do_not_overwrite_each_other(sit_down: SitDown, ward: Any) -> None:
    first = sit_down("doctor")
    first.goto(f"/patients/{ward.patients[4]}/notes/new")
    first.get_by_role("button", name="Admission note").click()
    second = first.context.new_page()
    second.goto(first.url)
    first.get_by_label("Presenting complaint").fill("From the first window")
    kept(first)
    second.get_by_label("Presenting complaint").fill("From the second window")
    alert = second.get_by_role("alert").filter(has_text="changed in another window")
    expect(alert).to_be_visible(timeout=15_000)
    expect(second.get_by_label("Presenting complaint")).to_have_value("From the second window")
    looked_at(second, "notes-conflict")
    assert factories.stored(ClinicalNote, key_of(first))["content"] == {"complaint": "From the first window"}

    # What cannot be kept is said beside the buttons, and the text stays.
    first.get_by_label("Heart rate").fill("fast")
    expect(first.locator("[data-note-state]")).to_have_text("Please look at: Heart rate.", timeout=15_000)
    first.get_by_label("Heart rate").fill("88")
    first.get_by_label("Temperature").fill("38,4")
    kept(first)
    assert factories.stored(ClinicalNote, key_of(first))["content"]["examination"] == {"temperature": 38.4, "pulse": 88}
    looked_at(first, "notes-admission")


def test_what_waits_is_a_click_away(sit_down: SitDown, ward: Any) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.get_one(Practitioner, ward.staff["doctor"]).supervised_by_id = ward.staff["nurse"]
    doctor = sit_down("doctor")
    doctor.get_by_role("navigation").get_by_role("link", name=re.compile("My notes")).first.click()
    expect(doctor.get_by_role("heading", name=re.compile("Drafts"))).to_be_visible()
    looked_at(doctor, "notes-mine")
    doctor.goto(f"/patients/{ward.patients[5]}/notes/new")
    doctor.get_by_role("button", name="Free text").click()
    doctor.locator("#f-text").fill("Seen on the ward round.")
    doctor.get_by_role("button", name="Sign…").click()
    expect(doctor.get_by_text("You are in training")).to_be_visible()
    doctor.get_by_role("button", name="Sign", exact=True).click()
    expect(doctor.get_by_text("Waits for Nora Nurse to sign")).to_be_visible()
    assert factories.stored(ClinicalNote, key_of(doctor))["signed_at"] <= now()


def test_an_administrator_changes_a_template_without_code(sit_down: SitDown, ward: Any) -> None:
    del ward
    admin = sit_down("admin")
    admin.get_by_role("navigation").get_by_role("link", name="Note templates").first.click()
    looked_at(admin, "templates-list")
    admin.get_by_role("link", name="Progress note (SOAP)").click()
    looked_at(admin, "templates-edit")
    line = admin.get_by_role("group", name="New field").first
    line.get_by_label("Field").fill("Told to come again")
    line.get_by_label("Kind").select_option("boolean")
    line.get_by_label("Place").fill("1")
    admin.get_by_role("button", name="Preview").last.click()
    expect(admin.locator(".shape-preview").get_by_text("Told to come again")).to_be_visible()
    looked_at(admin, "templates-preview")
    admin.get_by_role("button", name="Save as a new edition").click()
    expect(admin.get_by_text("Edition 2 is saved, and in use.")).to_be_visible()
    admin.get_by_role("button", name="As JSON").click()
    admin.get_by_label("JSON Schema 2020-12").fill('{"type": "object", "properties": {"a": {"type": "null"}}}')
    admin.get_by_role("button", name="Save as a new edition").click()
    expect(admin.get_by_role("alert")).to_contain_text("“a” has no type that a form can show")
    looked_at(admin, "templates-json")
