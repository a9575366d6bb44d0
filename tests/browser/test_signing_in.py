"""The second step and the clock of an unattended page, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyotp
from playwright.sync_api import Browser, Page, expect

from app import guard
from tests.factories import PASSWORD

SitDown = Callable[..., Page]


def forget_codes() -> None:
    """Half a minute goes by for every account's codes."""
    with guard.engine().begin() as connection:
        connection.exec_driver_sql("UPDATE credential SET totp_step = 0")


def test_the_second_step_by_keyboard(sit_down: SitDown, engine: Browser, address: str) -> None:
    page = sit_down("pharmacist", scheme="dark")
    page.goto("/me/")
    page.get_by_role("link", name="Set up the second step").press("Enter")
    page.get_by_role("button", name="Set it up").press("Enter")
    square = page.get_by_role("img", name="A square for your authenticator app to scan")
    expect(square).to_be_visible()
    ground = page.locator(".square-ground").evaluate("element => getComputedStyle(element).fill")
    dark = page.locator(".square-dark").evaluate("element => getComputedStyle(element).fill")
    assert (ground, dark) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)"), "dark on white, whatever the page's colours"
    totp = pyotp.TOTP(page.locator(".secret").inner_text().replace(" ", ""))
    page.get_by_label("Code of six digits").fill("000000")
    page.keyboard.press("Enter")
    expect(page.get_by_text("This is not the code of this moment")).to_be_visible()
    expect(page.get_by_label("Code of six digits")).to_be_focused()
    page.keyboard.type(totp.now())
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Your recovery codes")).to_be_visible()
    expect(page.locator(".recovery-codes li")).to_have_count(10)
    expect(page.get_by_role("button", name="Print")).to_be_visible()

    forget_codes()
    window = engine.new_context(base_url=address, viewport={"width": 320, "height": 700})
    other = window.new_page()
    other.goto("/login/")
    other.get_by_label("User name").fill("pharmacist")
    other.get_by_label("Password").fill(PASSWORD)
    other.keyboard.press("Enter")
    expect(other.get_by_role("heading", name="One more step")).to_be_visible()
    expect(other.get_by_label("Code")).to_be_focused()
    assert other.evaluate("document.documentElement.scrollWidth") <= 320
    other.keyboard.type(totp.now())
    other.keyboard.press("Enter")
    other.wait_for_url(address + "/")
    page.goto("/me/")
    expect(page.get_by_role("button", name=re.compile("Sign out there"))).to_have_count(1)
    page.get_by_role("button", name=re.compile("Sign out there")).click()
    other.goto("/patients/")
    assert "/login/" in other.url
    window.close()


def at_the_clock(sit_down: SitDown, username: str) -> Page:
    """Somebody at a page whose clock the test turns."""
    page = sit_down(username)
    page.clock.install()
    page.goto("/patients/?q=vander")
    expect(page.get_by_text("Vandersloot").first).to_be_visible()
    return page


def test_an_unattended_page_asks_stays_and_goes(sit_down: SitDown, hospital: Any) -> None:
    page = at_the_clock(sit_down, "reception")
    dialog = page.get_by_role("dialog", name="Still there?")
    page.clock.fast_forward(13 * 60 * 1000)
    expect(dialog).to_be_hidden()
    page.clock.fast_forward(65 * 1000)
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("button", name="Yes, stay signed in")).to_be_focused()
    with page.expect_response(lambda answer: answer.url.endswith("/me/awake")) as kept:
        page.keyboard.press("Enter")
    assert kept.value.status == 204
    expect(dialog).to_be_hidden()
    page.clock.fast_forward(14 * 60 * 1000 + 30 * 1000)
    expect(dialog).to_be_visible()
    page.context.clear_cookies()  # as the server forgets the session at the same moment
    page.clock.fast_forward(40 * 1000)
    page.wait_for_url(re.compile(r"/login/\?ended=idle&next=%2Fpatients%2F%3Fq%3Dvander"))
    expect(page.get_by_text("nobody used the page")).to_be_visible()
    expect(page.get_by_text("Vandersloot")).to_have_count(0)
    page.get_by_label("User name").fill("reception")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/patients/\?q=vander"))


WATCHING = """() => {
  const seen = () => sessionStorage.setItem("seen", `[${document.body.innerText.trim()}]`);
  new MutationObserver(seen).observe(document.body, { attributes: true, attributeFilter: ["class"] });
}"""


def test_a_page_is_blank_before_the_answer_comes(sit_down: SitDown) -> None:
    page = at_the_clock(sit_down, "doctor")
    page.evaluate(WATCHING)
    with page.expect_navigation():
        page.clock.fast_forward(16 * 60 * 1000)
    # The server's own clock was not turned: the session is alive, and leads back.
    expect(page.get_by_text("Vandersloot").first).to_be_visible()
    assert page.evaluate("sessionStorage.getItem('seen')") == "[]"


def test_tabs_share_one_clock(sit_down: SitDown) -> None:
    first = at_the_clock(sit_down, "nurse")
    second = first.context.new_page()
    first.clock.fast_forward(10 * 60 * 1000)  # the clock of a window is that of all its tabs
    second.goto("/patients/")
    first.clock.fast_forward(10 * 60 * 1000)
    dialog = first.get_by_role("dialog", name="Still there?")
    expect(dialog).to_be_hidden()
    first.clock.fast_forward(4 * 60 * 1000 + 20 * 1000)
    other = second.get_by_role("dialog", name="Still there?")
    expect(dialog).to_be_visible()
    expect(other).to_be_visible()
    other.get_by_role("button", name="Yes, stay signed in").click()
    expect(other).to_be_hidden()
    first.clock.run_for(2000)
    expect(dialog).to_be_hidden()
