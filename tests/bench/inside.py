"""What can only be seen from within one process: statements, the gate's share, and a cache that is not in the product.

`python -m tests.bench.inside statements|shares|recording|cache SECONDS`, with the environment of a web process; answers in JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil
import redis
from sqlalchemy import event

import run
from app import actor as actors
from app import guard, trail
from app.services import patients
from tests.bench import people
from tests.bench.house import PASSWORD, spent
from views.api import PatientApi, plain

BESIDE = {"who_is", "become", "begin", "end", "connect", "engine", "transact", "_still_there"}
"""Functions of the gate's file that connect, or find out who asks; the rest scopes, masks, authorises and records."""


class Desk:
    """Somebody signed in to an application in this very process."""

    def __init__(self) -> None:
        self.app = run.application()
        browser = self.app.test_client()
        page = browser.get("/login/").get_data(as_text=True)
        found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
        form = {"username": "doctor", "password": PASSWORD, "csrf_token": found[1] if found else ""}
        assert browser.post("/login/", data=form).status_code == 302
        program = self.app.test_client(use_cookies=False)
        told = {"username": "doctor", "password": PASSWORD, "provider": "db"}
        token = program.post("/api/v1/security/login", json=told).get_json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        with guard.engine().connect() as connection:
            first = connection.exec_driver_sql("SELECT min(id) FROM patient").scalar()
        surname = people.surnames(1)[0]
        self.pages: dict[str, Callable[[], Any]] = {
            "REST: open one patient": lambda: program.get(f"/api/v1/patient/{first}", headers=headers),
            "REST: search, 25 rows": lambda: program.get(f"/api/v1/patient/search?text={surname}", headers=headers),
            "List page": lambda: browser.get("/patients/all/list/"),
            "Chart page": lambda: browser.get(f"/patients/{first}/"),
            "Chart page, 500 values": lambda: browser.get(f"/patients/{first}/?tab=observations"),
        }
        for page_ in self.pages.values():
            for _ in range(12):
                assert page_().status_code == 200


def statements(_seconds: float) -> dict[str, int]:
    """SQL statements of one request, when everything is warm."""
    desk = Desk()
    log: list[str] = []
    event.listen(guard.engine(), "before_cursor_execute", lambda *arguments: log.append(arguments[2]))
    found = {}
    for name, ask in desk.pages.items():
        log.clear()
        ask()
        found[name] = len(log)
    return found


def shares(seconds: float) -> dict[str, dict[str, float]]:
    """Where the time goes, by looking every millisecond at what is being done.

    `gate` scopes, masks, authorises and notes; `trail` makes what was noted durable; `who` finds out who asks.
    """
    desk = Desk()
    seen: Counter[str] = Counter()

    def look(_number: int, frame: Any) -> None:
        place = "rest"
        while frame is not None:
            name = frame.f_code.co_name
            if frame.f_code.co_filename.endswith("app/trail.py") and name == "write":
                place = "trail"
                break
            if frame.f_code.co_filename.endswith("app/guard.py"):
                if name not in BESIDE:
                    place = "gate"
                    break
                if name == "who_is":
                    place = "who"
            frame = frame.f_back
        seen[place] += 1

    found = {}
    for kind, number, timer in (
        ("time", signal.SIGALRM, signal.ITIMER_REAL),
        ("cpu", signal.SIGPROF, signal.ITIMER_PROF),
    ):
        signal.signal(number, look)
        for name, ask in desk.pages.items():
            seen.clear()
            signal.setitimer(timer, 0.001, 0.001)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                ask()
            signal.setitimer(timer, 0)
            total = sum(seen.values()) or 1
            part = {f"{place} {kind}": seen[place] / total for place in ("gate", "trail", "who")}
            found.setdefault(name, {}).update(part)
    return found


def on_cpu(pid: int) -> float:
    """Milliseconds a process's first thread has run (Linux)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def recording(seconds: float) -> dict[str, dict[str, float]]:
    """CPU milliseconds of a request with the trail and with one that writes nothing, by turns in one process."""
    desk = Desk()
    pids = json.loads(os.environ["BENCH_PIDS"])["caches"]
    write = trail.Trail.write
    found: dict[str, dict[str, list[float]]] = {name: {"recorded": [], "unrecorded": []} for name in desk.pages}
    for name, ask in desk.pages.items():
        until = time.monotonic() + 2 * seconds
        while time.monotonic() < until:
            for kind in ("recorded", "unrecorded"):
                trail.Trail.write = write if kind == "recorded" else lambda *_: None  # type: ignore[method-assign]
                before = time.process_time() * 1000 + sum(map(on_cpu, pids))
                for _ in range(10):
                    ask()
                found[name][kind].append((time.process_time() * 1000 + sum(map(on_cpu, pids)) - before) / 10)
    trail.Trail.write = write  # type: ignore[method-assign]
    return {name: {kind: median(figures) for kind, figures in kinds.items()} for name, kinds in found.items()}


def cache(seconds: float) -> dict[str, float]:
    """CPU milliseconds of a search of 25 rows, from PostgreSQL and from a cache in Valkey, with what a miss costs.

    Both are recorded. The key is what the asker may see and what was typed; the value is the answer as it leaves.
    """
    desk = Desk()
    store = redis.Redis.from_url(os.environ["REDIS_URL"])
    columns = PatientApi.columns
    with desk.app.app_context(), guard.engine().connect() as connection:
        number = connection.exec_driver_sql("SELECT id FROM ab_user WHERE username = 'doctor'").scalar()
        guard.begin(actors.nobody())
        who = guard.who_is(int(number or 0), actors.Origin(channel="api"))
    assert who is not None
    words = people.surnames(40)

    def key_of(text: str) -> str:
        rights = repr((sorted(who.rights.actions), who.branch_ids, who.patient_id))
        return "found:" + hashlib.sha256(f"{rights}|{text}".encode()).hexdigest()

    def looked_up(text: str) -> bytes:
        with guard.acting_as(who):
            found = patients.find(guard.session(), text, limit=25)
            return trail.encode({"result": [plain(patient, columns) for patient in found.patients], "more": found.more})

    def remembered(text: str) -> bytes:
        kept = store.get(key_of(text))
        assert isinstance(kept, bytes)
        rows = msgspec.json.decode(kept)["result"]
        with guard.acting_as(who):
            guard.searching("patients by name")
            at_work = actors.acting()
            assert at_work is not None
            for row in rows:
                at_work.seen.note("Patient", row["id"], row["id"])
        return kept

    def missed(text: str) -> bytes:
        assert store.get(key_of(text) + ":") is None
        answer = looked_up(text)
        store.set(key_of(text), answer, ex=3600)
        return answer

    for word in words:
        for _ in range(4):
            missed(word)
    others = json.loads(os.environ["BENCH_PIDS"])
    watched = [psutil.Process(), *(psutil.Process(pid) for pid in others["caches"])]

    def cpu() -> float:
        server = psutil.Process(others["postmaster"])
        return spent([*watched, server, *server.children(recursive=True)])

    spending: dict[str, list[float]] = {"PostgreSQL": [], "cache, hit": [], "cache, miss": []}
    for _ in range(5):
        for name, ask in zip(spending, (looked_up, remembered, missed), strict=True):
            before, count, until = cpu(), 0, time.monotonic() + seconds
            while time.monotonic() < until:
                ask(words[count % len(words)])
                count += 1
            spending[name].append((cpu() - before) / count * 1000)
    return {name: median(figures) for name, figures in spending.items()}


PARTS: dict[str, Callable[[float], Any]] = {
    "statements": statements,
    "shares": shares,
    "recording": recording,
    "cache": cache,
}

if __name__ == "__main__":
    json.dump(PARTS[sys.argv[1]](float(sys.argv[2])), sys.stdout)
