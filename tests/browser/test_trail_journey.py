"""The privacy officer asks who saw a patient, follows one person through their day, and takes the lines along."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from jobs import trail as drainer

SitDown = Callable[..., Page]
SHOTS = os.environ.get("WARDBOOK_SHOTS")
"""A folder for pictures of the pages on the way, wide and narrow, light and dark."""


def looked_at(page: Page, name: str) -> None:
    """Whole at every width, and a picture of it where pictures are wanted."""
    for width, scheme in ((1280, "light"), (1280, "dark"), (320, "light")):
        page.set_viewport_size({"width": width, "height": 860})
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        assert page.locator("h1").count() == 1
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{name} is {overflow} px too wide at {width}"
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}-{scheme}.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 860})
    page.emulate_media(color_scheme="light")


def test_who_saw_a_patient_and_what_else_they_saw_that_day(sit_down: SitDown, hospital: Any, tmp_path: Path) -> None:
    patient = hospital.patients[1]
    doctor = sit_down("doctor")
    for tab in ("overview", "conditions", "documents"):
        doctor.goto(f"/patients/{patient}/?tab={tab}")
    doctor.goto(f"/patients/{hospital.patients[2]}/")
    answer = doctor.goto("/trail/")
    assert answer is not None
    assert answer.status == 403
    nurse = sit_down("nurse")
    nurse.goto(f"/patients/{patient}/")
    drainer.drain()

    # From the chart, by keyboard, to the summary.
    privacy = sit_down("privacy")
    privacy.goto(f"/patients/{patient}/")
    privacy.get_by_role("link", name="Who saw this").press("Enter")
    expect(privacy.get_by_role("heading", name="Who saw this patient")).to_be_visible()
    people = privacy.get_by_role("region", name="By person").get_by_role("row")
    expect(people.filter(has_text="Dora Doctor")).to_contain_text("documents")
    expect(people.filter(has_text="Nora Nurse")).to_contain_text("allergies")
    looked_at(privacy, "trail-patient")
    privacy.get_by_role("link", name="1 year").click()
    expect(privacy.get_by_role("link", name="1 year")).to_have_attribute("aria-current", "true")

    # One person's day: patients, refusals apart, and the day before.
    privacy.get_by_role("region", name="By person").get_by_role("link", name="Dora Doctor").click()
    expect(privacy.get_by_role("heading", name="What Dora Doctor saw")).to_be_visible()
    expect(privacy.get_by_role("img", name=re.compile("looks into records over the day"))).to_be_visible()
    seen = privacy.get_by_role("region", name=re.compile("^Patients"))
    expect(seen).to_contain_text("Vandersloot")
    expect(seen).to_contain_text("Medina")
    expect(privacy.get_by_role("region", name=re.compile("^Refused"))).to_contain_text("Wanted to see: the trail")
    privacy.get_by_text("As a table").click()
    looked_at(privacy, "trail-person")
    privacy.get_by_role("link", name="The day before").click()
    expect(privacy.get_by_role("heading", name="Nothing on this day")).to_be_visible()
    privacy.get_by_role("link", name="Today", exact=True).last.click()

    # Every line, by a name that is then one person exactly, and back to anybody.
    privacy.get_by_role("link", name="Who saw what").last.click()
    privacy.get_by_label("Person").fill("dora")
    privacy.get_by_label("Why").select_option("Treatment")
    privacy.get_by_role("button", name="Search").click()
    expect(privacy.get_by_text("Only this person:")).to_be_visible()
    looked_at(privacy, "trail-search")
    privacy.get_by_role("link", name="Dora Doctor Doctor").click()
    expect(privacy.get_by_label("Person")).to_have_count(0)
    looked_at(privacy, "trail-chosen")
    with privacy.expect_download() as told:
        privacy.get_by_role("link", name=re.compile("^Spreadsheet")).click()
    told.value.save_as(tmp_path / "trail.csv")
    said = (tmp_path / "trail.csv").read_text(encoding="utf-8-sig")
    assert "Dora Doctor" in said
    assert "Nora Nurse" not in said
    assert told.value.suggested_filename.startswith("trail-")
    privacy.get_by_role("link", name="Anybody").click()
    expect(privacy.get_by_label("Person")).to_have_value("")
    privacy.goto("/trail/?person=nobody+by+that+name")
    looked_at(privacy, "trail-none")
