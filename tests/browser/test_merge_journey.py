"""A receptionist finds somebody registered twice, compares the two, merges them by keyboard, and parts them again."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Page, expect

from app import guard
from app.actor import service
from app.services import patients
from models.clinical import AllergyIntolerance, Observation
from models.patients import Patient, PatientLink
from tests import factories
from tests.conftest import Database

SitDown = Callable[..., Page]
SHOTS = os.environ.get("WARDBOOK_SHOTS")
"""A folder for pictures of the pages on the way, wide and narrow, light and dark."""


@pytest.fixture(scope="module")
def twins(database: Database, app: Flask) -> tuple[int, int]:
    """One person with two records, which were noticed to be alike; the second has something in it."""
    del app
    hospital = database.hospital
    born, keys = date(1984, 5, 6), []
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for family, given, more in (
            ("Doppelgänger", "Maria Magdalena", {"telecom": [{"system": "phone", "value": "+34911000111"}]}),
            ("Doppelganger", "Maria", {"address": [{"line": ["Long Street 17"], "city": "Villanueva de la Cañada"}]}),
        ):
            told = factories.told(family, given, birth_date=born, gender="female", **more)
            numbers = [("passport", f"DOPPEL{len(keys)}")]
            patient = patients.register(session, told, identifiers=numbers, branch_id=hospital.branches[0], insist=True)
            keys.append(patient.id)
        vital = {"status": "final", "category": "vital-signs", "code_display": "Pulse"}
        session.add_all(
            [
                *(Observation(patient_id=keys[1], value_quantity=60 + beat, **vital) for beat in range(3)),
                AllergyIntolerance(
                    patient_id=keys[1],
                    code_display="Penicillin",
                    clinical_status="active",
                    verification_status="confirmed",
                ),
                PatientLink(
                    patient_id=keys[0], other_id=keys[1], score=0.93, reasons=["similar name", "same birth date"]
                ),
            ]
        )
    return keys[0], keys[1]


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


def number(key: int) -> str:
    return str(factories.stored(Patient, key)["mrn"])


def test_two_records_become_one_and_are_parted_again(sit_down: SitDown, twins: tuple[int, int]) -> None:
    survivor, loser = twins
    new, old = number(survivor), number(loser)
    desk = sit_down("reception")
    desk.goto("/patients/duplicates/")
    row = desk.locator("li.panel", has_text=new)
    looked_at(desk, "merge-pairs")
    row.get_by_role("link", name="Compare and merge").click()

    # The likelier one to stay is proposed, and the other way round is one step away.
    desk.get_by_role("link", name="Keep the other one instead").click()
    expect(desk.get_by_label("The record that stays")).to_contain_text(old)
    desk.get_by_role("link", name="Keep the other one instead").click()
    expect(desk.get_by_label("The record that stays")).to_contain_text(new)
    expect(desk.get_by_text("4 entries go", exact=False)).to_be_visible()
    looked_at(desk, "merge-compare")

    # Nothing happens unsaid, and what was chosen is still there.
    desk.get_by_label(f"Doppelganger, Maria {old}").check()
    desk.get_by_role("button", name="Merge the two records").click()
    expect(desk.get_by_role("alert")).to_contain_text("Tick that the two are one person")
    expect(desk.get_by_label(f"Doppelganger, Maria {old}")).to_be_checked()
    looked_at(desk, "merge-refused")
    assert factories.stored(Patient, loser)["replaced_by_id"] is None

    # By keyboard alone.
    desk.get_by_label("How do you know?").focus()
    desk.keyboard.type("Same passport at the desk")
    desk.keyboard.press("Tab")
    desk.keyboard.press("Space")
    desk.keyboard.press("Enter")
    expect(desk.get_by_role("heading", level=1)).to_have_text("One record")
    looked_at(desk, "merge-done")
    assert factories.stored(Patient, loser)["replaced_by_id"] == survivor

    # The old number finds, and the old page leads to, the record that stayed.
    desk.goto(f"/patients/?q={old}")
    expect(desk.locator("main").get_by_text(new)).to_be_visible()
    desk.goto(f"/patients/{loser}/")
    desk.wait_for_url(f"**/patients/{survivor}/*")
    expect(desk.get_by_text(f"{old} is an old number of this patient")).to_be_visible()

    # Undone, with what was written since left where it is.
    desk.goto("/patients/merges/")
    looked_at(desk, "merge-list")
    desk.get_by_role("link", name="Doppelganger").click()
    desk.get_by_label("How do you know?").fill("They came together")
    desk.get_by_role("button", name="Make them two records again").click()
    expect(desk.get_by_role("heading", level=1)).to_have_text("Two records again")
    looked_at(desk, "merge-undone")
    assert factories.stored(Patient, loser)["replaced_by_id"] is None
    assert factories.stored(Patient, loser)["active"] is True
    desk.goto(f"/patients/{loser}/alike/")
    looked_at(desk, "merge-alike")
    expect(desk.locator("main").get_by_text(new, exact=True)).to_be_visible()


def test_two_people_are_still_two_people(sit_down: SitDown, twins: tuple[int, int]) -> None:
    desk = sit_down("reception")
    desk.goto("/patients/duplicates/")
    row = desk.locator("li.panel", has_text=number(twins[0]))
    row.get_by_role("button", name="Two different people").click()
    desk.get_by_role("dialog").get_by_role("button", name="Two different people").click()
    expect(row).to_have_count(0)


def test_a_nurse_is_shown_no_way_to_merge(sit_down: SitDown, twins: Any) -> None:
    nurse = sit_down("nurse")
    nurse.goto(f"/patients/{twins[0]}/edit/")
    expect(nurse.get_by_role("link", name="Registered twice?")).to_have_count(0)
    nurse.goto(f"/patients/{twins[0]}/merge/{twins[1]}/")
    expect(nurse.get_by_text("Your role does not allow this")).to_be_visible()
