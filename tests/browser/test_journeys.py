"""What people do in a day, in a real browser."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from app import guard
from app.actor import service
from jobs import fhir_import
from jobs import trail as drainer

SHARED = Path(os.environ.get("WARDBOOK_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
MARIA = SHARED / "synthea" / "r4-bundles"

SitDown = Callable[..., Page]


def test_one_patient_from_the_desk_to_another_branch_to_the_privacy_officer(
    sit_down: SitDown, hospital: Any, tmp_path: Path
) -> None:
    """Reception registers with a duplicate warning; a doctor elsewhere opens an imported chart; privacy sees both."""
    found = sorted(MARIA.glob("María_Eugenia_Medina*.json")) if MARIA.is_dir() else []
    if not found:
        pytest.skip("needs the shared data: set WARDBOOK_SHARED_DATA to the folder that holds synthea/")
    organizations = [str(path) for path in MARIA.glob("*Information*.json")]
    assert fhir_import.main([*organizations, str(found[0])], source="journey") == 0

    desk = sit_down("reception")
    desk.keyboard.press("/")
    desk.keyboard.type("medina maria")
    desk.wait_for_selector(".hit, [role=option]")
    expect(desk.get_by_text("Medina, María Eugenia").first).to_be_visible()

    # Keyboard only: tab from field to field, Enter saves.
    desk.goto("/patients/register/")
    desk.keyboard.type("Medina")
    desk.keyboard.press("Tab")
    desk.keyboard.type("Maria Eugenia")
    desk.keyboard.press("Tab")
    desk.keyboard.type("26 Sep 2019")
    desk.keyboard.press("Enter")
    expect(desk.get_by_role("heading", name="Is it one of these?")).to_be_visible()
    expect(desk.get_by_role("button", name="None of these: register anyway")).to_be_visible()
    assert desk.locator("#family").input_value() == "Medina"
    assert desk.locator("#birth_date").input_value() == "26 Sep 2019"
    desk.get_by_role("button", name="None of these: register anyway").click()
    expect(desk.get_by_role("heading", name="Medina, Maria Eugenia")).to_be_visible()
    new_number = re.search(r"W\d{8,}", desk.locator("main").inner_text())
    assert new_number is not None

    doctor = sit_down("doctor")
    doctor.goto("/patients/?q=maria+medina")
    doctor.locator("main .hit", has_text="María Eugenia").first.click()
    expect(doctor.get_by_role("heading", name="Medina, María Eugenia")).to_be_visible()
    doctor.get_by_role("link", name=re.compile("^Conditions")).first.click()
    expect(doctor.get_by_text("Otitis media").first).to_be_visible()
    doctor.get_by_role("link", name=re.compile("^Observations")).first.click()
    expect(doctor.get_by_text("Body Height").first).to_be_visible()

    drainer.drain()
    privacy = sit_down("privacy")
    privacy.goto("/trail/?patient=medina+maria")
    table = privacy.locator("main").inner_text()
    assert "Rosa Reception" in table
    assert "Dora Doctor" in table
    assert "observations" in table


def test_the_nurse_sees_no_conditions_and_the_address_is_refused(sit_down: SitDown, hospital: Any) -> None:
    nurse = sit_down("nurse")
    number = hospital.patients[0]
    nurse.goto(f"/patients/{number}/")
    tabs = nurse.locator("nav").filter(has_text="Overview").inner_text()
    assert "Conditions" not in tabs
    assert "Documents" not in tabs
    answer = nurse.goto(f"/patients/{number}/?tab=documents")
    assert answer is not None
    assert answer.status == 403
    expect(nurse.get_by_role("heading", level=1)).to_be_visible()


def test_a_refused_form_keeps_what_was_typed(sit_down: SitDown) -> None:
    desk = sit_down("reception")
    desk.goto("/patients/register/")
    desk.locator("#family").fill("<b>Future</b>")
    desk.locator("#given").fill("Baby")
    desk.locator("#birth_date").fill("5 Mar 2199")
    desk.get_by_role("button", name="Register").click()
    expect(desk.get_by_text("cannot lie in the future").first).to_be_visible()
    assert desk.locator("#family").input_value() == "<b>Future</b>"
    assert desk.locator("#birth_date").get_attribute("aria-invalid") == "true"


@pytest.mark.parametrize(
    "username", ["admin", "reception", "nurse", "doctor", "lab", "pharmacist", "billing", "privacy"]
)
def test_every_page_of_every_role_is_whole_narrow_and_wide(sit_down: SitDown, hospital: Any, username: str) -> None:
    """No page scrolls sideways at 320 px, each has one heading of the first level and a title, none complains."""
    for width, scheme in ((320, "dark"), (1440, "light")):
        page = sit_down(username, width=width, scheme=scheme)
        paths = ["/", f"/patients/{hospital.patients[0]}/", "/patients/?q=a", "/me/", "/patients/register/", "/trail/"]
        paths += [str(a.get_attribute("href")) for a in page.locator("nav a[href^='/']").all()]
        for path in dict.fromkeys(paths):
            if "logout" in path:
                continue
            page.goto(path)
            assert page.locator("h1").count() == 1, path
            assert page.title(), path
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert overflow <= 0, f"{path} is {overflow} px too wide at {width}"
            unnamed = page.evaluate(
                """() => [...document.querySelectorAll('button, a[href], input:not([type=hidden]), select, textarea')]
                .filter(e => e.offsetParent && !(e.ariaLabel || e.title || e.textContent.trim() || e.labels?.length
                  || e.getAttribute('aria-labelledby') || e.querySelector('img[alt], svg title, .sr-only')
                  || e.getAttribute('aria-label'))).map(e => e.outerHTML.slice(0, 120))"""
            )
            assert unnamed == [], f"{path}: without a name: {unnamed}"


def test_sign_in_fails_kindly_and_sign_out_ends_the_session(engine: Any, address: str) -> None:
    window = engine.new_context(base_url=address)
    page = window.new_page()
    page.goto("/login/")
    page.get_by_label("User name").fill("reception")
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("do not belong together")).to_be_visible()
    page.goto("/patients/")
    assert "/login/" in page.url
    window.close()


def test_what_a_service_does_is_in_the_trail_too(hospital: Any) -> None:
    """The journeys above imported records: the trail names the service that did it."""
    drainer.drain()
    from sqlalchemy import select

    from models.audit import AuditEvent
    from tests.factories import acting

    with acting(hospital.accounts["privacy"]):
        lines = guard.session().scalars(select(AuditEvent).where(AuditEvent.user_id.is_(None)).limit(5)).all()
        assert {role for line in lines for role in line.roles} <= {f"service:{n}" for n in ("import", "demo", "setup")}
    assert service("import").roles == ("service:import",)
