"""Emergency access as it is lived through: refused, opened, ended, reviewed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from app import guard, policy
from app.services import roles
from jobs import trail as drainer
from models.codes import RowScope
from tests import factories

SitDown = Callable[..., Page]
SHOTS = os.environ.get("WARDBOOK_SHOTS")
"""A folder for pictures of the pages on the way, wide and narrow, light and dark."""


def narrow_nurses(hospital: Any) -> None:
    """An administrator has nurses see the patients of their own branch only."""
    with factories.acting(hospital.accounts["admin"]), guard.unit_of_work() as session:
        nurse = next(role for role in roles.all_roles(session) if role.name == "Nurse")
        before = roles.sheet_of(session, nurse.id)
        grants = {
            name: replace(grant, rows=RowScope.OWN_BRANCH)
            if RowScope.CARE_TEAM in policy.scopes_of(name) and name != "EmergencyAccess"
            else grant
            for name, grant in before.grants.items()
        }
        roles.change_role(session, replace(before, grants=grants), seen=before.digest, reason="by branch from now on")


def looked_at(page: Page, name: str) -> None:
    """Whole at every width, and a picture of it where pictures are wanted."""
    for width, scheme in ((1280, "light"), (320, "dark")):
        page.set_viewport_size({"width": width, "height": 860})
        page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
        assert page.locator("h1").count() == 1
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{name} is {overflow} px too wide at {width}"
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"{name}-{width}-{scheme}.png", full_page=True)
    page.set_viewport_size({"width": 1280, "height": 860})
    page.emulate_media(color_scheme="light")


def test_a_nurse_opens_a_record_in_an_emergency_and_the_privacy_officer_reviews_it(
    sit_down: SitDown, hospital: Any
) -> None:
    narrow_nurses(hospital)
    nurse, number = sit_down("nurse"), hospital.patients[1]
    with guard.engine().connect() as connection:
        mrn = connection.exec_driver_sql("SELECT mrn FROM patient WHERE id = %s", (number,)).scalar_one()

    # The number on a wristband, typed in the box on every page: nobody of theirs, but the way on.
    nurse.goto("/me/")
    nurse.keyboard.press("/")
    nurse.keyboard.type(mrn)
    expect(nurse.locator(".find-pop a.find-more")).to_have_text(
        "This number belongs to a patient outside your patients"
    )
    nurse.keyboard.press("Enter")
    expect(nurse.locator(".find-outside a")).to_be_visible()
    expect(nurse.get_by_role("heading", name="Nobody found by that")).to_be_hidden()
    looked_at(nurse, "finder")
    nurse.locator(".find-page input[type=search]").fill("Vandersloot")
    expect(nurse.get_by_role("heading", name="Nobody found by that")).to_be_visible()
    expect(nurse.locator(".find-outside")).to_be_hidden()
    nurse.locator(".find-page input[type=search]").fill(mrn)
    nurse.locator(".find-outside a").click()
    expect(nurse.get_by_role("heading", name="This patient is not among yours")).to_be_visible()

    # A link from elsewhere leads to the same offer, and afterwards to where one wanted to go.
    answer = nurse.goto(f"/patients/{number}/?tab=allergies")
    assert answer is not None
    assert answer.status == 403
    assert "Vandersloot" not in nurse.content()
    looked_at(nurse, "offer")
    nurse.get_by_role("button", name="Open the record").click()
    expect(nurse.get_by_role("link", name="Why")).to_be_visible()
    nurse.get_by_label("Treatment cannot wait").check()
    nurse.get_by_label("What has happened").fill("too short")
    nurse.get_by_role("button", name="Open the record").click()
    expect(nurse.get_by_text("in 15 letters or more, so that").first).to_be_visible()
    assert nurse.get_by_label("Treatment cannot wait").is_checked()
    assert nurse.get_by_label("What has happened").input_value() == "too short"
    looked_at(nurse, "offer-refused")
    nurse.get_by_label("What has happened").fill("Carried in unconscious after a fall; needs an antibiotic")
    nurse.get_by_role("button", name="Open the record").click()
    nurse.wait_for_url(f"**/patients/{number}/?tab=allergies")
    expect(nurse.get_by_role("heading", name="Vandersloot, Xerxes")).to_be_visible()
    expect(nurse.get_by_text("Penicillin").first).to_be_visible()
    banner = nurse.get_by_role("region", name="Emergency access")
    expect(banner).to_contain_text(re.compile(r"Emergency access until \d\d:\d\d"))
    nurse.get_by_role("link", name="Overview").click()
    expect(banner).to_contain_text("Treatment cannot wait")
    expect(nurse.get_by_role("heading", name="Opened by emergency access")).to_be_visible()
    looked_at(nurse, "chart")
    nurse.goto(f"/patients/{number}/edit/")
    expect(banner).to_be_visible()
    nurse.goto(f"/patients/{number}/")

    privacy = sit_down("privacy")
    privacy.get_by_role("link", name=re.compile("Emergency accesses wait for review")).click()
    expect(privacy.get_by_text(re.compile("Still open, until"))).to_be_visible()

    banner.get_by_role("button", name="End it now").click()
    expect(nurse.get_by_text("Emergency access has ended.")).to_be_visible()
    answer = nurse.goto(f"/patients/{number}/")
    assert answer is not None
    assert answer.status == 403

    drainer.drain()
    privacy.reload()
    review = privacy.locator("main")
    expect(review).to_contain_text("Carried in unconscious after a fall")
    expect(review).to_contain_text("registration, numbers, visits, allergies")
    looked_at(privacy, "review")
    privacy.get_by_role("radio", name="Not justified").check()
    privacy.get_by_role("button", name=re.compile("^Save the review")).click()
    expect(privacy.locator("p.error")).to_contain_text("15 letters or more")
    looked_at(privacy, "review-refused")
    privacy.get_by_role("radio", name="Justified", exact=True).check()
    privacy.get_by_role("button", name=re.compile("^Save the review")).click()
    expect(privacy.get_by_text("The review is saved.")).to_be_visible()
    expect(privacy.get_by_role("heading", name="Nothing waits for a review")).to_be_visible()
    looked_at(privacy, "reviewed")

    admin = sit_down("admin")
    admin.goto(f"/patients/{number}/")
    expect(admin.get_by_text("Nora Nurse")).to_be_visible()
    expect(admin.get_by_text("Reviewed", exact=True)).to_be_visible()
