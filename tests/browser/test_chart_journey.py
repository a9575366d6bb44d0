"""A visit from the chart: the nurse takes vital signs and allergies, the doctor sees them, diagnoses and finishes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Page, expect
from sqlalchemy import select

from app import guard
from models.clinical import Condition, Encounter, Observation
from tests.conftest import Database

SitDown = Callable[..., Page]
SHOTS = os.environ.get("WARDBOOK_SHOTS")
"""A folder for pictures of the pages on the way, wide and narrow, light and dark."""


@pytest.fixture(scope="module")
def ward(database: Database, app: Flask) -> Any:
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


def of_patient(model: Any, patient: int) -> list[Any]:
    """Rows of a patient as they are in the database, past the gate."""
    table = model.__table__
    with guard.engine().connect() as connection:
        found = connection.execute(select(table).where(table.c.patient_id == patient).order_by(table.c.id))
        return list(found.mappings())


def test_from_vital_signs_to_a_finished_visit(sit_down: SitDown, ward: Any) -> None:
    patient = ward.patients[10]
    nurse = sit_down("nurse")
    nurse.goto(f"/patients/{patient}/")
    expect(nurse.get_by_text("Nobody has asked about allergies yet").first).to_be_visible()
    looked_at(nurse, "chart-empty")
    nurse.get_by_role("link", name="Open a visit").first.click()
    looked_at(nurse, "visit-open")
    nurse.get_by_label("What for").fill("Chest pain")
    nurse.get_by_role("button", name="Open").click()
    expect(nurse.get_by_role("heading", level=1, name="Chest pain")).to_be_visible()

    # By keyboard alone: from field to field, Enter saves. What cannot be is named, and the rest stays.
    nurse.get_by_role("link", name="Take vital signs").click()
    expect(nurse.get_by_label("Blood pressure")).to_be_focused()
    for value in ("150", "95", "88", "16", "98.6"):
        nurse.keyboard.type(value)
        nurse.keyboard.press("Tab")
    nurse.keyboard.press("Enter")
    expect(nurse.get_by_role("alert")).to_contain_text("98.6 °C cannot be")
    assert of_patient(Observation, patient) == []
    looked_at(nurse, "vitals-refused")
    expect(nurse.get_by_label("Blood pressure")).to_have_value("150")
    nurse.get_by_label("Temperature").fill("37,0")
    nurse.keyboard.press("Enter")
    expect(nurse.get_by_text("The vital signs are written down.")).to_be_visible()
    assert len(of_patient(Observation, patient)) == 4
    looked_at(nurse, "visit-nurse")

    nurse.goto(f"/patients/{patient}/")
    nurse.get_by_role("button", name="None known").first.click()
    expect(nurse.locator(".allergy.none")).to_be_visible()
    nurse.get_by_role("link", name="Add an allergy").first.click()
    nurse.get_by_label("To what").fill("penicillin")
    nurse.get_by_role("radio", name="High: could be fatal").check()
    nurse.get_by_label("What happened").fill("Could not breathe")
    nurse.get_by_label("How bad it was").select_option("severe")
    looked_at(nurse, "allergy-form")
    nurse.get_by_role("button", name="Save").click()
    expect(nurse.locator(".allergy.listed")).to_contain_text("penicillin")
    looked_at(nurse, "chart-nurse")

    doctor = sit_down("doctor")
    doctor.goto(f"/patients/{patient}/")
    bar = doctor.get_by_role("region", name="Visit under way")
    expect(bar).to_contain_text("Chest pain")
    expect(doctor.locator(".allergy.listed")).to_contain_text("high risk")
    expect(doctor.locator("[data-panel=vitals]")).to_contain_text("150 / 95 mmHg")
    bar.get_by_role("button", name="Start").click()
    bar = doctor.get_by_role("region", name="Visit under way")
    bar.get_by_role("link", name="Diagnose").click()

    # The search answers while one types; the arrow chooses, Enter goes on, Enter saves.
    expect(doctor.get_by_role("searchbox", name="Diagnosis")).to_be_focused()
    doctor.keyboard.type("essential hypertension")
    expect(doctor.locator("[data-icd-found] label").first).to_contain_text("I10", timeout=30_000)
    looked_at(doctor, "diagnosis-found")
    doctor.get_by_role("searchbox", name="Diagnosis").focus()
    doctor.keyboard.press("ArrowDown")
    doctor.keyboard.press("Enter")
    expect(doctor.get_by_role("button", name="Save")).to_be_focused()
    doctor.keyboard.press("Enter")
    expect(doctor.get_by_text("The condition is written down.")).to_be_visible()
    made = of_patient(Condition, patient)[0]
    assert (made["code"], made["category"], made["recorder_id"]) == ("I10", "encounter-diagnosis", ward.staff["doctor"])

    doctor.get_by_role("region", name="Visit under way").get_by_role("link", name="Order").click()
    doctor.get_by_label("What is to be done").fill("Troponin")
    doctor.get_by_role("radio", name="At once").check()
    doctor.get_by_role("button", name="Order").click()
    doctor.get_by_role("region", name="Visit under way").get_by_role("link", name="Chest pain").click()
    expect(doctor.locator("[data-panel=conditions]")).to_contain_text("Essential (primary) hypertension")
    expect(doctor.locator("[data-panel=orders]")).to_contain_text("Troponin")
    looked_at(doctor, "visit-doctor")
    doctor.get_by_role("button", name="Finish").click()
    expect(doctor.get_by_text("The visit is finished.")).to_be_visible()
    visit = of_patient(Encounter, patient)[0]
    assert (visit["status"], visit["practitioner_id"]) == ("finished", ward.staff["doctor"])

    doctor.goto(f"/patients/{patient}/")
    expect(doctor.get_by_role("region", name="Visit under way")).to_have_count(0)
    looked_at(doctor, "chart-after")
    doctor.get_by_role("link", name="Timeline").click()
    looked_at(doctor, "timeline")
    doctor.get_by_role("checkbox", name="Conditions").check(force=True)
    doctor.get_by_role("button", name="Show", exact=True).click()
    expect(doctor.locator(".line-entry")).to_have_count(1)
    doctor.locator(".line-entry").get_by_role("link").click()
    looked_at(doctor, "entry")
    doctor.get_by_role("button", name="Ruled out").click()
    expect(doctor.locator("tbody")).to_contain_text("Ruled out")
    assert of_patient(Condition, patient)[0]["verification_status"] == "refuted"


def test_a_diagnosis_is_found_without_script(engine: Any, address: str, ward: Any) -> None:
    from tests.factories import PASSWORD

    window = engine.new_context(base_url=address, java_script_enabled=False)
    page = window.new_page()
    page.goto("/login/")
    page.get_by_label("User name").fill("doctor")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(address + "/")
    page.goto(f"/patients/{ward.patients[11]}/conditions/new/")
    page.get_by_role("searchbox", name="Diagnosis").fill("asthma")
    page.keyboard.press("Enter")
    page.get_by_role("radio", name=re.compile("J45.909")).check()
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("The condition is written down.")).to_be_visible()
    assert of_patient(Condition, ward.patients[11])[0]["code"] == "J45.909"
    window.close()
