"""The trail under load, over HTTP, while something is killed, stopped, full or doubled.

Each test ends with the same reckoning: every request that was answered whole is one row of audit_event, no request is two,
and the tree has no fault.  Requests are known by the number their answer carries; each opens one patient and so is one line.
"""

from __future__ import annotations

import http.client
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app import actor, guard, trail, tree
from jobs import trail as drainer
from jobs.verify import verify
from ops.processes import Process
from ops.servers import Server
from tests.bench.house import PROJECT, House, Web, furnish, open_house, open_web

PATIENTS = 40
CLIENTS = 6


@dataclass
class Reckoning:
    """What the people at the desks were told, over all tests."""

    acknowledged: list[str] = field(default_factory=list)
    """Numbers of the requests that were answered whole, with 200."""
    unanswered: int = 0
    """Requests that were not: they may have been recorded, or not."""


@dataclass
class Load:
    """Some minutes at the desks."""

    web: Web
    all: Reckoning
    statuses: Counter[int] = field(default_factory=Counter)
    """How many answers there were of each kind; 0 is none."""
    shown: list[bytes] = field(default_factory=list)
    """What was said with an answer that was not 200."""
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, connection: http.client.HTTPConnection, patient_id: int) -> int:
        """Open a patient; gives the status, 0 where the answer did not come whole."""
        number, body = "", b""
        try:
            connection.request("GET", f"/api/v1/patient/{patient_id}", headers=self.web.headers(rest=True))
            answer = connection.getresponse()
            status, number, body = answer.status, answer.headers.get("X-Request-Id", ""), answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            status = 0
        with self.lock:
            self.statuses[status] += 1
            if status == 200:
                assert b'"mrn"' in body
                self.all.acknowledged.append(number)
            else:
                self.all.unanswered += 1
                self.shown.append(body)
        return status

    def work(self, nth: int) -> None:
        """One person, until it is over."""
        connection = http.client.HTTPConnection("127.0.0.1", self.web.port, timeout=30)
        turn = nth
        while not self.over.is_set():
            turn += 1
            if not self.ask(connection, turn % PATIENTS + 1):
                time.sleep(0.02)
        connection.close()

    def answered(self, wanted: int, *, status: int = 200) -> None:
        """Wait until there are so many more answers of a kind; the limit is only there so that a failure ends."""
        enough, deadline = self.statuses[status] + wanted, time.monotonic() + 60
        while self.statuses[status] < enough:
            assert time.monotonic() < deadline, f"answers so far: {dict(self.statuses)}"
            time.sleep(0.01)


@dataclass
class Hospital:
    """A whole house under load, with servers that may be killed."""

    house: House
    web: Web
    all: Reckoning = field(default_factory=Reckoning)

    @property
    def database(self) -> Server:
        return self.house.members[0]

    @property
    def redis(self) -> Server:
        return self.house.members[2]

    @property
    def spool(self) -> Path:
        return self.house.home / "spool"

    def pid(self, server: Server) -> int:
        assert server.process is not None
        assert server.process.pid is not None
        return server.process.pid

    def kill(self, server: Server) -> None:
        """kill -9, and nothing else."""
        os.kill(self.pid(server), signal.SIGKILL)
        server.stop()

    @contextmanager
    def at_work(self, web: Web | None = None, clients: int = CLIENTS) -> Iterator[Load]:
        """People open patients, as fast as they are answered."""
        (web or self.web).sign_in()
        load = Load(web or self.web, self.all)
        threads = [threading.Thread(target=load.work, args=(nth,)) for nth in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield load
        finally:
            load.over.set()
            for thread in threads:
                thread.join()

    def number(self, statement: str) -> int:
        with self.house.connect("wardbook") as database:
            row = database.execute(statement.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def waiting(self) -> int:
        """What is not stored yet: entries of the stream, files of the spool, rows of the outbox."""
        stream: Any = trail.the_trail().reader.xlen(trail.STREAM)
        files = len(list(self.spool.iterdir())) if self.spool.exists() else 0
        return stream + files + self.number("SELECT count(*) FROM audit_outbox")

    def settle(self) -> None:
        """Let everything be stored, and reckon."""
        deadline = time.monotonic() + 60
        while self.waiting():
            assert time.monotonic() < deadline, f"still waiting: {self.waiting()}"
            drainer.drain()
            time.sleep(0.05)
        with self.house.connect("wardbook") as database:
            rows = dict(
                database.execute(
                    "SELECT request_id, count(*) FROM audit_event"
                    " WHERE subtype = 'read' AND request_id IS NOT NULL AND patient_id IS NOT NULL GROUP BY 1"
                ).fetchall()
            )
            ids = database.execute("SELECT count(*), count(DISTINCT id) FROM audit_event").fetchone()
        acknowledged = set(self.all.acknowledged)
        assert len(acknowledged) == len(self.all.acknowledged), "two answers with one number"
        assert not acknowledged - rows.keys(), "shown, and not in the trail"
        assert set(rows.values()) == {1}, "one request, two rows"
        assert ids is not None
        assert ids[0] == ids[1], "one line, two rows"
        assert len(rows.keys() - acknowledged) <= self.all.unanswered, "recorded, and never asked"
        report = verify()
        assert report.fault is None, report.fault
        assert report.lines == ids[0]
        assert self.number("SELECT count(*) FROM audit_quarantine") == 0


@pytest.fixture(scope="module")
def hospital(seal: Path) -> Iterator[Hospital]:
    """A house of this module's own that syncs to disk, with two web processes and everybody's key."""
    home = Path(tempfile.mkdtemp(prefix="wardbook-test-"))
    home.chmod(0o711)
    try:
        with open_house(home) as house:
            furnish(house, PATIENTS, "wardbook")
            engine = guard.connect(house.url("wardbook"))
            own = trail.connect(house.servers.trail_redis_url, home / "spool")
            tree.connect(home / "trail.key", f"file:{home / 'trail.witness'}")
            with open_web(house, "wardbook") as web:
                yield Hospital(house, web)
            guard.session.remove()
            engine.dispose()
            own.redis.close()
            own.reader.close()
    finally:
        tree.connect(seal / "key.pem", f"file:{seal / 'witness'}")
        shutil.rmtree(home, ignore_errors=True)


# ---- the web server ----------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
import redis
import run
xadd, count = redis.Redis.xadd, 0
def last_words(*arguments, **options):
    global count
    xadd(*arguments, **options)
    count += 1
    if count == 15:
        os.kill(os.getpid(), signal.SIGKILL)
redis.Redis.xadd = last_words
sys.exit(run.main(["serve"]))
"""


def test_web_processes_killed_between_record_and_answer(hospital: Hospital) -> None:
    """Each process dies when Redis has its 15th line and nobody has the answer."""
    with open_web(hospital.house, "wardbook", start=("-c", DYING)) as web, hospital.at_work(web) as load:
        load.answered(60)
    assert load.statuses[0] >= 4, "requests that died with their process"
    hospital.settle()


# ---- the trail's Redis -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("politely", [False, True], ids=["kill -9", "stopped"])
def test_redis_goes_under_load_and_comes_back_from_its_file(hospital: Hospital, politely: bool) -> None:
    with hospital.at_work() as load:
        load.answered(30)
        if politely:
            hospital.redis.stop()
        else:
            hospital.kill(hospital.redis)
        try:
            load.answered(60)
            assert list(hospital.spool.iterdir())
        finally:
            hospital.redis.start()
        load.answered(60)
    assert set(load.statuses) == {200}, "nobody noticed"
    hospital.settle()


def test_what_was_spooled_is_stored_while_redis_is_away(hospital: Hospital) -> None:
    """However long it stays away, and though nobody asks this web process anything more."""
    hospital.redis.stop()
    try:
        with hospital.at_work() as load:
            load.answered(20)
        deadline = time.monotonic() + 60
        while any(hospital.spool.iterdir()):
            assert time.monotonic() < deadline
            drainer.drain()
            time.sleep(0.1)
    finally:
        hospital.redis.start()
    hospital.settle()


def test_a_redis_that_hangs_takes_a_line_and_so_does_the_spool(hospital: Hospital) -> None:
    """It answers too late, so the line is spooled; but it had taken it: the same line is delivered twice."""
    with hospital.at_work() as load:
        load.answered(30)
        os.kill(hospital.pid(hospital.redis), signal.SIGSTOP)
        try:
            load.answered(60)
        finally:
            os.kill(hospital.pid(hospital.redis), signal.SIGCONT)
        load.answered(30)
    assert set(load.statuses) == {200}
    in_stream, in_spool = lines_of_stream(), lines_of_spool(hospital.spool)
    assert in_spool
    assert in_stream & in_spool, "no line came both ways"
    hospital.settle()


def lines_of_stream() -> set[str]:
    """The ids of the lines that wait in the stream."""
    found: Any = trail.the_trail().reader.xrange(trail.STREAM)
    return {str(drainer.read_line(raw).id) for _, entry in found for raw in drainer.read_entry(entry[b"e"]).events}


def lines_of_spool(folder: Path) -> set[str]:
    """The ids of the lines that wait in the spool."""
    return {
        str(drainer.read_line(raw).id)
        for path in folder.iterdir()
        for _, payload, whole in drainer.frames(path.read_bytes())
        if whole
        for raw in drainer.read_entry(payload).events
    }


def test_a_redis_that_is_full(hospital: Hospital) -> None:
    redis = trail.the_trail().reader
    with hospital.at_work() as load:
        load.answered(30)
        redis.config_set("maxmemory", "1mb")
        try:
            stuck: Any = redis.xlen(trail.STREAM)
            load.answered(60)
            assert redis.xlen(trail.STREAM) <= stuck + 2 * CLIENTS
            assert list(hospital.spool.iterdir())
            drainer.drain()
            assert redis.xlen(trail.STREAM) == 0, "what it has, it gives back though it is full"
        finally:
            redis.config_set("maxmemory", "0")
        load.answered(60)
    assert set(load.statuses) == {200}
    hospital.settle()


# ---- the disk ----------------------------------------------------------------------------------------------------


def test_a_full_disk_shows_nothing_until_there_is_a_place_for_the_line(hospital: Hospital) -> None:
    """Neither Redis nor the spool takes a line: 503. Then Redis is back while the disk is full, then the disk is not."""
    workers = [worker.pid for worker in hospital.web.workers()[1:]]
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with hospital.at_work() as load:
        load.answered(10)
        hospital.redis.stop()
        try:
            load.answered(20)
            for pid in workers:  # no file of theirs may be longer than 2,000 bytes from here on, nor their log
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (2000, hard))
            load.answered(60, status=503)
            before = load.statuses[200]
            load.answered(20, status=503)
            assert load.statuses[200] == before
        finally:
            hospital.redis.start()
        load.answered(60)
        for pid in workers:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
        hospital.redis.stop()
        try:
            load.answered(60)
        finally:
            hospital.redis.start()
        load.answered(20)
    assert set(load.statuses) == {200, 503}
    assert not [body for body in load.shown if b'"mrn"' in body or b'"family"' in body]
    settle_with_torn_frames(hospital)


def settle_with_torn_frames(hospital: Hospital) -> None:
    """As `settle`; frames the disk took only half of were never acknowledged, and are kept in quarantine."""
    deadline = time.monotonic() + 60
    while hospital.waiting():
        assert time.monotonic() < deadline
        drainer.drain()
        time.sleep(0.05)
    with hospital.house.connect("wardbook") as database:
        torn = database.execute("SELECT source, reason FROM audit_quarantine").fetchall()
        assert [source for source, reason in torn if not source.startswith("spool ") or "torn" not in reason] == []
        database.execute("DELETE FROM audit_quarantine")
    hospital.settle()


# ---- the drainer -------------------------------------------------------------------------------------------------

MOMENTS = ("batch written, not committed", "committed, witness not told", "witness told, stream not let go")
VICTIMS = """
import os, signal, sys
import redis
import run
from jobs import trail as drainer

store = drainer.store

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

for moment in range(3):
    sys.stdin.readline()
    if not os.fork():
        run.open_house(run.read_settings())
        if moment == 0:
            drainer.store = lambda *arguments: die(store(*arguments))
        elif moment == 1:
            drainer.witnessed = lambda note: note and die()
        else:
            redis.Redis.xdel = die
        drainer.drain()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


def test_drainers_killed_at_every_moment(hospital: Hospital) -> None:
    victims = subprocess.Popen(
        [sys.executable, "-c", VICTIMS],
        cwd=PROJECT,
        env=hospital.house.environment("wardbook"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert victims.stdout is not None
    assert victims.stdin is not None
    with hospital.at_work() as load, victims:
        for moment in MOMENTS:
            load.answered(20)
            batches = hospital.number("SELECT count(*) FROM audit_batch")
            victims.stdin.write("go\n")
            victims.stdin.flush()
            assert victims.stdout.readline() == f"{-signal.SIGKILL}\n", moment
            committed = hospital.number("SELECT count(*) FROM audit_batch") - batches
            assert bool(committed) == (moment != MOMENTS[0]), moment
            while hospital.number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"):
                time.sleep(0.01)  # until the server has noticed
    assert set(load.statuses) == {200}
    hospital.settle()


# ---- workers, schedulers, and a database that goes away ----------------------------------------------------------


@pytest.fixture(scope="module")
def crew(hospital: Hospital) -> Iterator[list[Process]]:
    """Three workers and two schedulers of one house."""
    names = ["worker"] * 3 + ["scheduler"] * 2
    crew = [
        Process(
            name=name,
            command=[sys.executable, "run.py", name],
            log=hospital.house.home / "log" / f"{name}-{nth}.log",
            environment=hospital.house.environment("wardbook"),
            directory=str(PROJECT),
        )
        for nth, name in enumerate(names)
    ]
    for process in crew:
        process.start()
    yield crew
    for process in crew:
        process.stop()


def stored(hospital: Hospital, crew: list[Process]) -> None:
    """Wait until the crew has stored something more."""
    statement = "SELECT events FROM audit_drain"
    before, deadline = hospital.number(statement), time.monotonic() + 60
    while hospital.number(statement) == before:
        assert time.monotonic() < deadline, [process.last_words(20) for process in crew]
        time.sleep(0.05)


def test_three_workers_and_two_schedulers_some_of_them_killed(hospital: Hospital, crew: list[Process]) -> None:
    with hospital.at_work() as load:
        stored(hospital, crew)
        for nth in (0, 3):  # a worker, and the first scheduler
            os.kill(crew[nth].pid or 0, signal.SIGKILL)
            crew[nth].stop()
            stored(hospital, crew)
        crew[0].start()
        load.answered(50)
    assert set(load.statuses) == {200}
    hospital.settle()


def test_postgresql_stops_under_load_and_comes_back(hospital: Hospital, crew: list[Process]) -> None:
    """Three seconds of it. Records cannot be opened meanwhile, and whatever was shown before is stored afterwards."""
    with hospital.at_work() as load:
        load.answered(50)
        hospital.database.stop()
        try:
            load.answered(20, status=503)
            time.sleep(3)
        finally:
            hospital.database.start()
        load.answered(50)
        stored(hospital, crew)
    assert set(load.statuses) <= {200, 503}
    hospital.settle()


# ---- clocks ------------------------------------------------------------------------------------------------------


def test_clocks_that_step_back(hospital: Hospital) -> None:
    """That of Redis, by which entries are numbered, and those of web processes, which the lines carry."""
    redis = trail.the_trail().reader
    hour = int(time.time() * 1000) + 3_600_000
    early = [datetime.now(UTC) - timedelta(days=days) for days in (0, 1, 40, 400)]
    lines = [{**trail.event("R", "read"), "recorded": when.isoformat()} for when in early]
    with hospital.at_work() as load:
        load.answered(10)
        ahead = trail.encode(trail.entry(trail.agent(actor.nobody()), [trail.event("R", "read")]))
        redis.xadd(trail.STREAM, {"e": ahead}, id=f"{hour}-0")  # an hour ahead, and then set right
        for line in lines:
            trail.the_trail().write(actor.nobody(), [line])
        load.answered(30)
        assert min(key for key, _ in last_entries(redis)) > f"{hour}-0".encode()
        drainer.drain()
        hospital.kill(hospital.redis)
        hospital.redis.start()
        load.answered(30)
        assert int(last_entries(redis)[0][0].partition(b"-")[0]) >= hour, "it still knows its last number"
    assert set(load.statuses) == {200}
    hospital.settle()
    with hospital.house.connect("wardbook") as database:
        found = database.execute(
            "SELECT recorded FROM audit_event WHERE id = ANY(%s) ORDER BY recorded DESC",
            [[line["id"] for line in lines]],
        ).fetchall()
    assert [when for (when,) in found] == early


def last_entries(redis: Any) -> list[tuple[bytes, Any]]:
    """The newest entries of the stream."""
    found: list[tuple[bytes, Any]] = redis.xrevrange(trail.STREAM, count=10)
    assert found
    return found
