"""A real browser on the real application, wherever a Chromium is found."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask import Flask
from playwright.sync_api import Browser, Page, sync_playwright
from werkzeug.serving import make_server

from tests.factories import PASSWORD

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOW = "no Chromium found: install one (Debian: apt-get install chromium) or name it in WARDBOOK_CHROMIUM"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


def chromium() -> str | None:
    """Where a Chromium is, if there is one."""
    return os.environ.get("WARDBOOK_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)


@pytest.fixture(scope="session")
def engine() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip(HOW)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(app: Flask) -> Iterator[str]:
    """The application served on a free port of this machine."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


class Complaints:
    """What a page complained of: script errors, refused styles, assets from elsewhere."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def listen(self, page: Page, address: str) -> None:
        """Note what a page of the application at an address complains of."""
        page.on("pageerror", lambda error: self.found.append(f"script: {error}"))
        page.on(
            "console",
            lambda line: (
                self.found.append(f"console: {line.text}")
                # This server speaks no WebSocket (tests/live.py has some that do), and connections are meant to break.
                if line.type == "error" and "status of 4" not in line.text and "/socket.io/" not in line.text
                else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                self.found.append(f"elsewhere: {request.url}")
                if not request.url.startswith((address, "data:", "blob:"))
                else None
            ),
        )


@pytest.fixture
def sit_down(engine: Browser, address: str, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Sign in as somebody in a browser window of their own; at the end no page may have complained.

    Where several web processes serve one place, `at` is the address of the one to go to.
    """
    complaints = Complaints()
    windows = []

    def sign_in(username: str, *, width: int = 1280, scheme: str = "light", at: str = address) -> Page:
        window = engine.new_context(
            viewport={"width": width, "height": 860},
            color_scheme="dark" if scheme == "dark" else "light",
            base_url=at,
        )
        windows.append(window)
        page = window.new_page()
        complaints.listen(page, at)
        page.goto("/login/")
        page.get_by_label("User name").fill(username)
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(at + "/")
        return page

    yield sign_in
    for window in windows:
        window.close()
    assert complaints.found == []
