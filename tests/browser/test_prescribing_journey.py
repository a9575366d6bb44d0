"""A doctor prescribes against an allergy: warned while typing, blocked, overridden with a reason, issued, reported."""

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
from app.services import formulary
from jobs.demo import FORMULARY
from tests.conftest import Database

SitDown = Callable[..., Page]
SHOTS = os.environ.get("WARDBOOK_SHOTS")
"""A folder for pictures of the pages on the way, wide and narrow, light and dark."""


@pytest.fixture(scope="module")
def patient(database: Database, app: Flask) -> int:
    """The second patient, who is allergic to penicillin; the demo's formulary is there."""
    del app
    with guard.acting_as(service("formulary")), guard.unit_of_work() as session:
        formulary.take_in(session, FORMULARY.read_bytes())
    hospital: Any = database.hospital
    return int(hospital.patients[1])


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


def add(page: Page, words: str, name: str) -> None:
    """Search a medicine by keyboard and take it."""
    box = page.get_by_role("searchbox", name=re.compile("Which medicine|Add another medicine"))
    box.fill(words)
    expect(page.get_by_role("button", name=re.compile(f"^{re.escape(name)}"))).to_be_visible()
    box.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name=name)).to_be_visible()


def test_a_doctor_prescribes_against_an_allergy(sit_down: SitDown, patient: int) -> None:
    page = sit_down("doctor")
    page.goto(f"/prescribing/{patient}/")
    expect(page.get_by_text("Penicillin")).to_be_visible()
    looked_at(page, "rx-empty")

    # The warning is there as soon as the medicine is, and the sentence as soon as it can be said.
    add(page, "amoxicillin 500 mg cap", "Amoxicillin 500 mg capsule")
    line = page.get_by_role("region", name="Amoxicillin 500 mg capsule")
    expect(line.get_by_text("Amoxicillin is one of the penicillins.")).to_be_visible()
    line.get_by_label("How often").select_option("TID")
    line.get_by_label("For days").fill("7")
    expect(line.get_by_text("21 capsules")).to_be_visible()
    expect(line.locator("[data-rx-text]")).to_contain_text("7")
    add(page, "ibuprofen 400", "Ibuprofen 400 mg tablet")
    second = page.get_by_role("region", name="Ibuprofen 400 mg tablet")
    second.get_by_label("How often").select_option("QID")
    second.get_by_label("For days").fill("5")
    second.get_by_label("Dose", exact=True).fill("2")
    expect(second.get_by_text(re.compile("High dose of ibuprofen"))).to_be_visible()
    second.get_by_label("Dose", exact=True).fill("1")
    expect(second.get_by_text(re.compile("High dose of ibuprofen"))).to_be_hidden()
    looked_at(page, "rx-lines")

    # Nothing goes on before somebody says why.
    page.get_by_role("button", name="Review").click()
    expect(page.get_by_role("heading", name="Review the prescription")).to_be_visible()
    page.get_by_role("button", name="Issue the prescription").click()
    expect(page.get_by_role("alert")).to_contain_text("Something serious stands against this medicine.")
    looked_at(page, "rx-blocked")
    page.get_by_label("Why it is given all the same").select_option(label="I examined the patient")
    page.get_by_label("In a few words").fill("Tolerated amoxicillin in May")
    page.get_by_role("button", name="Issue the prescription").click()

    expect(page.get_by_text("The prescription is issued.")).to_be_visible()
    expect(page.get_by_text("Tolerated amoxicillin in May")).to_be_visible()
    looked_at(page, "rx-paper")
    paper = page.url
    order = page.get_by_role("region", name=re.compile("Ibuprofen 400 mg tablet"))
    order.locator("summary", has_text="Stop").click()
    order.get_by_label("Why?").and_(page.locator(":visible")).fill("Not needed")
    order.get_by_role("button", name="Stop").click()
    expect(
        page.get_by_role("region", name=re.compile("Ibuprofen 400 mg tablet")).get_by_text("Stopped")
    ).to_be_visible()

    page.get_by_role("navigation").get_by_role("link", name="Overridden warnings").first.click()
    expect(page.get_by_text("Tolerated amoxicillin in May")).to_be_visible()
    looked_at(page, "rx-overrides")

    page.goto(f"/prescribing/{patient}/")
    expect(page.get_by_role("region", name="Takes now").get_by_text("Amoxicillin 500 mg capsule").first).to_be_visible()
    looked_at(page, "rx-current")

    # The pharmacist reads it, and does not change it.
    pharmacist = sit_down("pharmacist")
    pharmacist.goto(paper)
    expect(pharmacist.get_by_text("Tolerated amoxicillin in May")).to_be_visible()
    expect(pharmacist.locator("summary", has_text="Stop")).to_have_count(0)


def test_the_pharmacist_looks_after_the_formulary(sit_down: SitDown, patient: int) -> None:
    del patient
    page = sit_down("pharmacist")
    page.get_by_role("navigation").get_by_role("link", name="Medicines").first.click()
    page.get_by_label("Name or ingredient").fill("paracetamol")
    page.keyboard.press("Enter")
    expect(page.get_by_role("rowheader", name="Acetaminophen 325 MG Oral Tablet")).to_be_visible()
    looked_at(page, "rx-formulary")
    page.get_by_role("link", name="Add a medicine").click()
    page.get_by_label("Name, strength and form").fill("Naproxen 250 mg tablet")
    page.get_by_label(re.compile(r"^Code( \*)?$")).fill("naproxen-250")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("naproxen 250 mg", exact=True)).to_be_visible()
    page.goto("/formulary/import/")
    text = "system,code,display\nours,naproxen-250,Naproxen 250 mg oral tablet\nours,,Nameless\n"
    file = {"name": "medicines.csv", "mimeType": "text/csv", "buffer": text.encode()}
    page.get_by_label("File").set_input_files(file)  # type: ignore[arg-type]
    page.get_by_role("button", name="Look at it first").click()
    expect(page.get_by_text("Please say the medicine's code.")).to_be_visible()
    looked_at(page, "rx-import")
