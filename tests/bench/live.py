"""From the commit of a booking to the pages that are open: how long until each of 200 of them is told."""

from __future__ import annotations

import contextlib
import json
import random
import re
import selectors
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from http.cookiejar import CookieJar
from typing import Any
from urllib.parse import urlencode

import psycopg
import websocket
from sqlalchemy import select

from app import guard, trail
from app.actor import service
from app.policy import Role
from app.services import accounts
from app.services.scheduling import Asked, book
from models.base import now
from models.organization import Branch, Practitioner
from models.patients import Patient
from models.scheduling import VisitType, WorkingHours
from ops.processes import Process
from tests.bench.house import PASSWORD, PROJECT, House, Web, open_web

DESKS = 20
EACH = 10
"""Pages of one desk: together 200."""
LIMIT = 30.0
"""Seconds after which a pointer that did not come is an error."""


@dataclass
class Screens:
    """Open pages, all read by one thread: many would take the CPU that is measured."""

    port: int
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    count: int = 0

    def open(self, cookie: str) -> None:
        """One more page, which follows every branch."""
        wire = websocket.create_connection(
            f"ws://127.0.0.1:{self.port}/socket.io/?EIO=4&transport=websocket", timeout=LIMIT, cookie=cookie
        )
        wire.recv()
        wire.send("40")
        wire.recv()
        wire.send('42["follow",{"since":null,"branches":null}]')
        assert "caught-up" in wire.recv()
        self.selector.register(wire.sock, selectors.EVENT_READ, wire)
        self.count += 1

    def told(self, visit_id: int) -> list[float]:
        """When each page was told of a visit, once all of them were."""
        moments: list[float] = []
        deadline = time.monotonic() + LIMIT
        while len(moments) < self.count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.count - len(moments)} of {self.count} pages were not told")
            for key, _ in self.selector.select(1.0):
                said = key.data.recv()
                moment = time.monotonic()
                if said == "2":
                    key.data.send("3")
                elif said.startswith('42["pointer"') and json.loads(said[2:])[1]["id"] == visit_id:
                    moments.append(moment)
        return moments

    def close(self) -> None:
        for key in list(self.selector.get_map().values()):
            key.data.close()
        self.selector.close()


@dataclass(frozen=True)
class Practice:
    """What is booked."""

    branch_id: int
    visit_type_id: int
    practitioner_id: int
    patient_ids: list[int]


def opened(house: House, database: str) -> Practice:
    """A practice that is open around the clock, and an account for every desk."""
    guard.connect(house.url(database))
    trail.connect(house.servers.trail_redis_url, house.home / "spool")
    with guard.acting_as(service("setup")), guard.unit_of_work() as session:
        for number in range(DESKS):
            accounts.open_account(
                session,
                username=f"desk{number}",
                password=PASSWORD,
                first_name="Rosa",
                last_name=f"Desk {number}",
                email=f"desk{number}@bench.example",
                roles=[Role.RECEPTIONIST],
            )
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        branch = session.scalars(select(Branch).order_by(Branch.id).limit(1)).one()
        doctor = session.scalars(select(Practitioner).where(Practitioner.user_id.is_not(None)).limit(1)).one()
        visit = VisitType(name="Follow-up", minutes=10, needs_room=False)
        session.add(visit)
        for weekday in range(1, 8):
            place = {"practitioner_id": doctor.id, "branch_id": branch.id, "weekday": weekday}
            hours = {"starts": time_of_day(6), "ends": time_of_day(20), "valid_from": date(2020, 1, 1)}
            session.add(WorkingHours(**place, **hours))
        session.flush()
        patients = session.scalars(select(Patient).where(Patient.active).order_by(Patient.id).limit(100)).all()
        return Practice(branch.id, visit.id, doctor.id, [patient.id for patient in patients])


def cookie_of(web: Web, username: str) -> str:
    """What the browser of somebody who has signed in sends along."""
    jar = CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    address = f"http://127.0.0.1:{web.port}/login/"
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', browser.open(address).read().decode())
    form = {"username": username, "password": PASSWORD, "csrf_token": found[1] if found else ""}
    browser.open(address, urlencode(form).encode())
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)


@contextlib.contextmanager
def at_work(house: House, database: str) -> Iterator[None]:
    """The worker and the scheduler, as `run.py run` starts them."""
    with contextlib.ExitStack() as stack:
        for command in ("worker", "scheduler"):
            process = Process(
                name=command,
                command=[sys.executable, "run.py", command],
                log=house.home / "log" / f"{command}.log",
                environment=house.environment(database),
                directory=str(PROJECT),
                patience=15.0,
            )
            process.start()
            stack.callback(process.stop)
        yield


@dataclass(frozen=True)
class Told:
    """Seconds from the commit."""

    each: list[float]
    """Of every page, for every booking."""
    last: list[float]
    """Of the page that was told last, for every booking."""
    megabytes: float
    """Of the web processes with all pages open."""


def measure(house: House, database: str, bookings: int) -> Told:
    """Book visits at irregular moments, with all pages open. Raises RuntimeError where one is not told."""
    with psycopg.connect(house.owner_url(database).replace("+psycopg", "")) as connection:
        connection.execute("DELETE FROM event_outbox")
    practice = opened(house, database)
    chance = random.Random(5)
    with open_web(house, database) as web, at_work(house, database):
        screens = Screens(web.port)
        try:
            for number in range(DESKS):
                cookie = cookie_of(web, f"desk{number}")
                for _ in range(EACH):
                    screens.open(cookie)
            each: list[float] = []
            last: list[float] = []
            start = datetime.combine(now().date() + timedelta(days=200), time_of_day(7), tzinfo=UTC)
            for nth in range(bookings + 2):
                time.sleep(chance.uniform(0.1, 1.0))
                asked: dict[str, Any] = {
                    "branch_id": practice.branch_id,
                    "visit_type_id": practice.visit_type_id,
                    "practitioner_id": practice.practitioner_id,
                    "patient_id": practice.patient_ids[nth % len(practice.patient_ids)],
                    "start_at": start + timedelta(days=nth // 60, minutes=nth % 60 * 10),
                }
                with guard.acting_as(service("demo")):
                    with guard.unit_of_work() as session:
                        visit_id = book(session, Asked(**asked)).id
                    committed = time.monotonic()
                moments = [moment - committed for moment in screens.told(visit_id)]
                if nth >= 2:  # until then the worker has only just started
                    each += moments
                    last.append(max(moments))
            return Told(each, last, web.memory() / 1e6)
        finally:
            screens.close()
            guard.session.remove()
            guard.engine().dispose()


__all__ = ["DESKS", "EACH", "Told", "measure"]
