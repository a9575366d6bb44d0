"""The printed square is scanned at the counter; a second pharmacist comes too late; a stranger checks the paper."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from models.prescriptions import MedicationRequest
from tests.dispensary import Paper, issue, medicines, squares
from tests.factories import Hospital, stored


@pytest.fixture(scope="module")
def medicine(database: Any) -> int:
    return medicines()[0]


def printed(page: Page, paper: Paper) -> bytes:
    """The prescription as the doctor prints it."""
    answer = page.request.get(f"/prescriptions/{paper.id}/paper.pdf")
    assert answer.ok
    return answer.body()


def test_one_scans_and_hands_out_and_the_next_is_refused(
    sit_down: Callable[..., Page], hospital: Hospital, medicine: int
) -> None:
    paper = issue(hospital, medicine, quantity=Decimal(21))
    (scanned,) = squares(printed(sit_down("doctor"), paper))
    first, second = sit_down("pharmacist"), sit_down("pharmacist", width=320, scheme="dark")
    for page in (first, second):
        page.goto("/pharmacy/")
        expect(page.get_by_label("Scanned address or code")).to_be_focused()
        page.keyboard.type(scanned)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Prescription")).to_be_visible()
        expect(page.get_by_label("How much")).to_have_value("21")
    first.get_by_role("button", name="Hand over").click()
    expect(first.get_by_text("Handed over.")).to_be_visible()
    second.get_by_role("button", name="Hand over").click()
    expect(second.get_by_role("alert")).to_contain_text("handed out")
    assert Decimal(stored(MedicationRequest, paper.orders[0])["dispensed"]) == 21
    assert second.evaluate("document.documentElement.scrollWidth") <= 320


def test_put_by_ready_and_fetched_with_the_keyboard(
    sit_down: Callable[..., Page], hospital: Hospital, medicine: int
) -> None:
    paper = issue(hospital, medicine)
    page = sit_down("pharmacist")
    page.goto("/pharmacy/")
    expect(page.get_by_label("Scanned address or code")).to_be_focused()
    page.keyboard.type(paper.code)
    page.keyboard.press("Enter")
    page.get_by_label("How much").fill("7")
    page.get_by_role("button", name="Put by, to be prepared").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Being prepared")).to_be_visible()
    page.get_by_role("button", name="Ready").click()
    expect(page.get_by_text("Ready to be fetched")).to_be_visible()
    page.get_by_role("table").get_by_role("button", name="Hand over").click()
    expect(page.get_by_label("How much")).to_have_value("14")
    page.get_by_text("Entered in error", exact=True).first.click()
    page.get_by_label("What was wrong?").fill("Wrong box")
    page.keyboard.press("Enter")
    expect(page.get_by_label("How much")).to_have_value("21")
    assert Decimal(stored(MedicationRequest, paper.orders[0])["dispensed"]) == 0


def test_a_stranger_checks_a_paper(
    engine: Browser, address: str, sit_down: Callable[..., Page], hospital: Hospital, medicine: int
) -> None:
    paper = issue(hospital, medicine)
    (scanned,) = squares(printed(sit_down("doctor"), paper))
    window = engine.new_context(viewport={"width": 320, "height": 700}, base_url=address)
    try:
        page = window.new_page()
        page.goto(scanned.removeprefix("http://localhost"))
        expect(page.get_by_role("heading", name="Valid")).to_be_visible()
        expect(page.get_by_text("21 tablets")).to_be_visible()
        expect(page.get_by_text("Loratadine")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        page.get_by_label("Code on the paper").fill(paper.code[:-1])
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("12 letters")
        page.goto(scanned.removeprefix("http://localhost")[:-4] + "AAAA")
        expect(page.get_by_role("heading", name="Not genuine")).to_be_visible()
    finally:
        window.close()
