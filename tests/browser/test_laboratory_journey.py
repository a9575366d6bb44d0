"""From the doctor's order to a critical value the doctor confirms, each at a page of their own over the real socket."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, expect

from models.clinical import Observation
from models.lab import CriticalResult, ServiceRequest
from ops.servers import Servers
from tests import factories
from tests.factories import Laboratory
from tests.live import LIMIT, two_processes


@dataclass(frozen=True)
class House:
    """The addresses of the two web processes, and what the laboratory offers."""

    near: str
    far: str
    laboratory: Laboratory


@pytest.fixture(scope="module")
def house(engine: Browser, servers: Servers, database: Any, app: Flask) -> Iterator[House]:
    laboratory = factories.open_laboratory(database.hospital)
    with two_processes(servers, database) as running:
        near, far = (f"http://127.0.0.1:{web.port}" for web in running.webs)
        yield House(near, far, laboratory)


@pytest.fixture(scope="module")
def address(house: House) -> str:
    """In place of the server that speaks no WebSocket."""
    return house.near


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """However slow the machine is, only what never comes is a failure."""
    expect.set_options(timeout=LIMIT * 1000)
    yield
    expect.set_options(timeout=5_000)


def test_a_critical_potassium_from_the_order_to_the_read_back(sit_down: Callable[..., Page], house: House) -> None:
    laboratory = house.laboratory
    patient = laboratory.hospital.patients[5]

    # The doctor orders the panel, and leaves a page open.
    doctor = sit_down("doctor", at=house.far)
    doctor.goto(f"/laboratory/order/{patient}/")
    doctor.get_by_role("checkbox", name=re.compile("Panel Electrolytes")).check()
    doctor.get_by_role("button", name="Send to the laboratory").click()
    expect(doctor.get_by_text("1 order sent to the laboratory.")).to_be_visible()
    doctor.goto("/")
    doctor.evaluate("document.documentElement.dataset.since = 'the beginning'")

    # The nurse takes the blood, and sees the label with its square.
    nurse = sit_down("nurse", at=house.near)
    nurse.goto(f"/laboratory/collect/?patient={patient}")
    nurse.get_by_role("button", name="Taken: give me the labels").click()
    expect(nurse.get_by_role("heading", name="Labels")).to_be_visible()
    found = re.search(r"S\d{7}", nurse.locator("main").inner_text())
    assert found is not None
    number = found[0]

    # The laboratory receives it by what the square says, and enters the results by keyboard.
    bench = sit_down("lab", at=house.near)
    bench.goto("/laboratory/receive/")
    expect(bench.get_by_label("Number of the specimen").first).to_be_focused()
    bench.keyboard.type(number)
    bench.keyboard.press("Enter")
    expect(bench.get_by_text("Received last")).to_be_visible()
    bench.goto(f"/laboratory/worklist/?number={number}")
    bench.get_by_label(re.compile("^Potassium,")).focus()
    bench.keyboard.type("6.9")
    bench.keyboard.press("Enter")
    expect(bench.get_by_label(re.compile("^Sodium,"))).to_be_focused()
    bench.keyboard.type("140")
    with bench.expect_response(lambda answer: answer.url.endswith("/worklist/row")):
        bench.keyboard.press("Enter")
    expect(bench.locator("[data-lab-state]").first).to_contain_text("HH")
    bench.goto("/laboratory/verify/")
    expect(bench.get_by_role("heading", name="Entered by you")).to_be_visible()
    expect(bench.locator("input[name=ok]")).to_have_count(0)
    assert factories.number_of(Observation, Observation.verified_at.is_not(None)) == 0

    # A second person verifies it; the doctor's open page says so without being loaded anew.
    second = sit_down("lab2", at=house.near)
    second.goto("/laboratory/verify/")
    for box in second.locator("input[name=ok]").all():
        box.check()
    second.get_by_role("button", name="Verify what is ticked").click()
    alarm = doctor.locator(".lab-alarm")
    expect(alarm).to_contain_text("6.9 mmol/L")
    assert doctor.evaluate("document.documentElement.dataset.since") == "the beginning"

    # The doctor repeats the value; a wrong one is not taken.
    alarm.get_by_role("link", name=re.compile("Confirm")).click()
    said = doctor.get_by_label("Repeat the value")
    said.fill("9.6")
    doctor.get_by_role("button", name="I know of it, and take it on").click()
    expect(doctor.get_by_text("This is not the value.").first).to_be_visible()
    assert factories.number_of(CriticalResult, CriticalResult.acknowledged_at.is_not(None)) == 0
    said.fill("6.9")
    doctor.keyboard.press("Enter")
    expect(doctor.get_by_text(re.compile("Confirmed by Dora Doctor"))).to_be_visible()
    assert factories.number_of(CriticalResult, CriticalResult.read_back) == 1

    # The flag stands in the chart and among the results.
    for path, flag in ((f"/patients/{patient}/", "critically high"), (f"/results/patients/{patient}/", "HH")):
        doctor.goto(path)
        expect(doctor.locator("main").get_by_text("6.9").first).to_be_visible()
        expect(doctor.locator("main").get_by_text(flag).first).to_be_visible()
        expect(doctor.locator(".lab-alarm")).to_have_count(0)
    assert factories.number_of(ServiceRequest, ServiceRequest.status == "completed") == 1
