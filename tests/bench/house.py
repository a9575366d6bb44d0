"""A whole Wardbook for the bench: servers that sync to disk, a filled database, and its web processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import psycopg

from app import guard, trail
from app.actor import service
from app.services import accounts, organization
from models.migrations import grant, migrate
from ops import servers as servers_module
from ops.processes import Process
from ops.servers import Server, Servers, free_port, started
from tests.bench import people

PROJECT = Path(__file__).resolve().parents[2]
PASSWORD = "measured-again-2026"


@dataclass
class House:
    """The servers, their process numbers, and what else counts when the CPU is read."""

    home: Path
    servers: Servers
    members: list[Server]
    """PostgreSQL, the queue's Valkey, the trail's Valkey."""

    @property
    def postmaster(self) -> int:
        """The number of PostgreSQL's first process."""
        return self._pid(self.members[0])

    @property
    def caches(self) -> list[int]:
        """The numbers of both Valkeys."""
        return [self._pid(member) for member in self.members[1:]]

    @staticmethod
    def _pid(member: Server) -> int:
        assert member.process is not None
        assert member.process.pid is not None
        return member.process.pid

    def url(self, database: str) -> str:
        """The address of one database of this PostgreSQL, as the application signs in."""
        return self.servers.database_url.rsplit("/", 1)[0] + f"/{database}"

    def owner_url(self, database: str) -> str:
        """The same as the owner, who may make tables and switch triggers off."""
        return self.servers.owner_url.rsplit("/", 1)[0] + f"/{database}"

    def environment(self, database: str) -> dict[str, str]:
        """What a process of ours over that database is told."""
        return {
            **os.environ,
            "DATABASE_URL": self.url(database),
            "WARDBOOK_OWNER_URL": self.owner_url(database),
            "REDIS_URL": self.servers.redis_url,
            "TRAIL_REDIS_URL": self.servers.trail_redis_url,
            "WARDBOOK_HOME": str(self.home),
            "WARDBOOK_SECRET_KEY": "bench-" * 8,
            "WARDBOOK_LOG_LEVEL": "ERROR",
        }

    def connect(self, database: str) -> psycopg.Connection[Any]:
        """A plain connection beside the gate, as the owner."""
        return psycopg.connect(self.owner_url(database).replace("+psycopg", ""))


@contextlib.contextmanager
def open_house(home: Path, preload: Path | None = None) -> Iterator[House]:
    """PostgreSQL and both Valkeys, syncing as in production, with a library loaded before theirs where one is given."""
    if preload is not None:
        servers_module._ENVIRONMENT["LD_PRELOAD"] = str(preload)
    try:
        with started(home, durable=True) as (servers, members):
            yield House(home, servers, members)
    finally:
        servers_module._ENVIRONMENT.pop("LD_PRELOAD", None)


def furnish(house: House, count: int, name: str) -> None:
    """A database with the schema, two branches, a doctor, and `count` patients."""
    with psycopg.connect(house.owner_url("postgres").replace("+psycopg", ""), autocommit=True) as server:
        if not server.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            server.execute(f'CREATE DATABASE "{name}"')
    url = house.url(name)
    migrate(house.owner_url(name))
    grant(house.owner_url(name), url)
    guard.connect(url)
    trail.connect(house.servers.trail_redis_url, house.home / "spool")
    accounts.seed()
    with guard.acting_as(service("setup")), guard.unit_of_work() as session:
        _, doctor = (
            accounts.open_account(
                session,
                username=username,
                password=PASSWORD,
                first_name="Ana",
                last_name="Ruiz",
                email=f"{username}@bench.example",
                roles=[role],
            )
            for username, role in (("admin", "Admin"), ("doctor", "Doctor"))
        )
        number = doctor.id
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        organization.found_organization(session, name="Wardbook chain")
        branches = [
            organization.open_branch(
                session, name=place, code=code, time_zone=zone, currency="EUR", languages=["es"], country="ES"
            )
            for place, code, zone in (("Sevilla", "SVQ", "Europe/Madrid"), ("Las Palmas", "LPA", "Atlantic/Canary"))
        ]
        organization.employ(
            session, family="Ruiz", given="Ana", prefix="Dr", home_branch=branches[0], branches=branches, user_id=number
        )
        places = [(branch.id, branch.organization_id) for branch in branches]
    guard.engine().dispose()
    with house.connect(name) as database:
        people.fill(database, count, places)
    with psycopg.connect(house.owner_url(name).replace("+psycopg", ""), autocommit=True) as database:
        database.execute("VACUUM ANALYZE")
        database.execute("CHECKPOINT")


@dataclass
class Web:
    """The web processes over one database, and somebody signed in to them."""

    house: House
    process: Process
    port: int
    cookie: str = ""
    token: str = ""
    signed_in_at: float = field(default=-1e9)

    def sign_in(self) -> None:
        """Through the form, as a browser, and through the API, as a program; anew after some minutes."""
        if time.monotonic() - self.signed_in_at < 300:
            return
        jar = CookieJar()
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
        base = f"http://127.0.0.1:{self.port}"
        page = browser.open(f"{base}/login/").read().decode()
        found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
        form = {"username": "doctor", "password": PASSWORD, "csrf_token": found[1] if found else ""}
        browser.open(f"{base}/login/", urlencode(form).encode())
        self.cookie = "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)
        body = json.dumps({"username": "doctor", "password": PASSWORD, "provider": "db", "refresh": False}).encode()
        told = urllib.request.Request(
            f"{base}/api/v1/security/login", body, {"Content-Type": "application/json"}, method="POST"
        )
        self.token = json.loads(browser.open(told).read())["access_token"]
        self.signed_in_at = time.monotonic()

    def headers(self, rest: bool) -> dict[str, str]:
        """What a signed-in program or browser sends along."""
        self.sign_in()
        common = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) bench", "Accept-Language": "en"}
        if rest:
            return {**common, "Authorization": f"Bearer {self.token}", "Accept": "application/json"}
        return {**common, "Cookie": self.cookie, "Accept": "text/html"}

    def workers(self) -> list[psutil.Process]:
        """gunicorn and its workers."""
        master = psutil.Process(self.process.pid)
        return [master, *master.children()]

    def cpu(self) -> dict[str, float]:
        """Seconds of CPU used so far, by floor: web, database, cache."""
        return {
            "web": spent(self.workers()),
            "database": spent([(server := psutil.Process(self.house.postmaster)), *server.children(recursive=True)]),
            "cache": spent([psutil.Process(pid) for pid in self.house.caches]),
        }

    def memory(self) -> int:
        """Bytes that are the web processes' own, shared ones counted once."""
        return sum(worker.memory_full_info().pss for worker in self.workers())


def spent(processes: Iterable[psutil.Process]) -> float:
    """User and system seconds of some processes."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@contextlib.contextmanager
def open_web(
    house: House, database: str, *, workers: int = 2, start: Sequence[str] = ("run.py", "serve"), **settings: str
) -> Iterator[Web]:
    """The web server, started as `run.py serve` starts it unless by a start of the bench's own."""
    port = free_port()
    environment = {**house.environment(database), "WARDBOOK_WORKERS": str(workers), "PORT": str(port), **settings}
    process = Process(
        name=f"web-{port}",
        command=[sys.executable, *start],
        log=house.home / "log" / f"web-{port}.log",
        environment=environment,
        directory=str(PROJECT),
        patience=15.0,
    )
    process.start()
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).read()
                break
            except OSError:
                if not process.alive or time.monotonic() > deadline:
                    raise RuntimeError(f"The web server does not start: {process.last_words(20)}") from None
                time.sleep(0.2)
        yield Web(house, process, port)
    finally:
        process.stop()


class Crowd:
    """The process that asks."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("load.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(
        self,
        web: Web,
        paths: list[str],
        *,
        rest: bool,
        clients: int = 1,
        seconds: float | None = None,
        rate: float | None = None,
    ) -> dict[str, Any]:
        """Ask, for some seconds or each path once, at most `rate` times a second together; what came of it."""
        job = {
            "host": "127.0.0.1",
            "port": web.port,
            "headers": web.headers(rest),
            "paths": paths,
            "clients": clients,
            "seconds": seconds,
            "rate": rate,
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        if answer["wrong"]:
            raise RuntimeError(f"{answer['wrong']} answers to {paths[0]} were wrong, such as {answer['sample']}")
        return answer

    def close(self) -> None:
        """Send them home."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
