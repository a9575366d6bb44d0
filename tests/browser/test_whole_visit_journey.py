"""One visit through every door: note, allergy overridden, paper printed, its square scanned and handed out once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Page, expect

from app import guard
from app.actor import service
from app.services import formulary
from jobs.demo import FORMULARY
from models.clinical import Encounter
from models.codes import CompositionStatus, EncounterStatus
from models.notes import ClinicalNote
from models.prescriptions import DetectedIssue, MedicationRequest, Prescription
from tests import factories
from tests.conftest import Database
from tests.dispensary import squares


@pytest.fixture(scope="module")
def patient(database: Database, app: Flask) -> int:
    """The second patient, who is allergic to penicillin; the demo's formulary is there."""
    del app
    with guard.acting_as(service("formulary")), guard.unit_of_work() as session:
        formulary.take_in(session, FORMULARY.read_bytes())
    hospital: Any = database.hospital
    return int(hospital.patients[1])


def test_from_the_door_to_the_counter(sit_down: Callable[..., Page], patient: int) -> None:
    doctor = sit_down("doctor")
    doctor.goto(f"/patients/{patient}/")
    expect(doctor.get_by_text("Penicillin").first).to_be_visible()

    # The visit is opened from the chart, and begun.
    doctor.goto(f"/patients/{patient}/?tab=visits")
    doctor.get_by_role("link", name=re.compile("Open a visit|Start a visit|New visit|Add a visit")).first.click()
    doctor.get_by_role("button", name=re.compile("Open|Start|Begin|Save")).first.click()
    visits = factories.number_of(Encounter, Encounter.patient_id == patient)
    assert visits == 2

    # The note is written and signed.
    doctor.goto(f"/patients/{patient}/notes/new")
    doctor.get_by_role("button", name="Free text").click()
    doctor.locator("textarea").first.fill("Sore throat, tonsils swollen. Amoxicillin for a week.")
    doctor.keyboard.press("Control+Enter")
    expect(doctor.get_by_role("heading", name="Sign the note")).to_be_visible()
    doctor.get_by_role("button", name="Sign", exact=True).click()
    expect(doctor.get_by_text("The note is signed.")).to_be_visible()
    signed = factories.stored(ClinicalNote, int(re.findall(r"/notes/(\d+)", doctor.url)[0]))
    assert signed["status"] == CompositionStatus.FINAL
    assert signed["encounter_id"] is not None

    # The allergy blocks the prescription until somebody says why.
    doctor.goto(f"/prescribing/{patient}/")
    box = doctor.get_by_role("searchbox", name=re.compile("Which medicine"))
    box.fill("amoxicillin 500 mg cap")
    expect(doctor.get_by_role("button", name=re.compile("^Amoxicillin 500 mg capsule"))).to_be_visible()
    box.press("ArrowDown")
    doctor.keyboard.press("Enter")
    line = doctor.get_by_role("region", name="Amoxicillin 500 mg capsule")
    line.get_by_label("How often").select_option("TID")
    line.get_by_label("For days").fill("7")
    expect(line.get_by_text("21 capsules")).to_be_visible()
    doctor.get_by_role("button", name="Review").click()
    doctor.get_by_role("button", name="Issue the prescription").click()
    expect(doctor.get_by_role("alert")).to_contain_text("Something serious stands against this medicine.")
    assert factories.number_of(Prescription) == 0
    doctor.get_by_label("Why it is given all the same").select_option(label="I examined the patient")
    doctor.get_by_label("In a few words").fill("Tolerated amoxicillin in May")
    doctor.get_by_role("button", name="Issue the prescription").click()
    expect(doctor.get_by_text("The prescription is issued.")).to_be_visible()
    assert factories.number_of(DetectedIssue, DetectedIssue.severity == "high") == 1

    # It is printed, and the square on the paper is what the pharmacist scans.
    href = doctor.get_by_role("link", name="Print").get_attribute("href")
    assert href is not None
    answer = doctor.request.get(href)
    assert answer.headers["content-type"] == "application/pdf"
    (scanned,) = squares(answer.body())
    first, second = sit_down("pharmacist"), sit_down("pharmacist")
    for page in (first, second):
        page.goto("/pharmacy/")
        expect(page.get_by_label("Scanned address or code")).to_be_focused()
        page.keyboard.type(scanned)
        page.keyboard.press("Enter")
        expect(page.get_by_label("How much")).to_have_value("21")
        expect(page.get_by_text("Amoxicillin is one of the penicillins.").first).to_be_visible()
    for page, said in ((first, "Handed over."), (second, "handed out")):
        page.get_by_label("Why it is handed out all the same").select_option(label="I asked the other prescriber")
        page.get_by_label("In a few words").first.fill("The prescriber knows")
        page.get_by_role("button", name="Hand over").click()
        expect(page.get_by_text(said).first).to_be_visible()
    orders = factories.number_of(MedicationRequest, MedicationRequest.dispensed == 21)
    assert orders == 1

    # The visit is over, and the paper says so to whoever checks it.
    doctor.goto(f"/patients/{patient}/")
    doctor.get_by_role("button", name=re.compile("Finish")).first.click()
    assert factories.number_of(Encounter, Encounter.status == EncounterStatus.FINISHED) >= 2
    stranger = doctor.context.browser
    assert stranger is not None
    window = stranger.new_context(base_url=doctor.url.split("/patients")[0])
    try:
        page = window.new_page()
        page.goto(scanned.removeprefix("http://localhost"))
        expect(page.get_by_role("heading", name="Dispensed")).to_be_visible()
        expect(page.get_by_text("Vandersloot")).to_have_count(0)
        expect(page.get_by_text("Amoxicillin")).to_have_count(0)
    finally:
        window.close()
