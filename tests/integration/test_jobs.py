"""Jobs through real workers and a real clock: they are retried, seen when they give up, and outlive what goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import decompress

import psycopg
import pytest
from rq import Queue, Retry, SimpleWorker
from rq.job import Job as Queued
from rq.serializers import JSONSerializer
from sqlalchemy import func, select, text

from app import actor, events, guard, trail
from app.services.patients import Demographics, register
from jobs import base
from jobs.patients import link_duplicates
from jobs.relay import relay
from models.base import now
from models.migrations import migrate
from models.patients import PatientLink
from ops.processes import command_of
from ops.servers import Server, Servers, started

PROJECT = Path(__file__).resolve().parents[2]

CHORES = '''
"""Jobs that do nothing but leave a line in a file."""
import os, signal, time
from pathlib import Path
from rq import Retry
from jobs.base import every, job

HERE = Path(__file__).parent

def note(name, line=""):
    with (HERE / name).open("a") as file:
        file.write(f"{line}\\n")
    return len((HERE / name).read_text().splitlines())

@job(queue="chores", retry=Retry(max=3, interval=[1, 1, 1]))
def flaky(number: int) -> None:
    if note("flaky", number) < 3:
        raise ValueError("Jane Roe, born 1980-02-03")

@job(queue="chores", retry=Retry(max=1, interval=[1]))
def hopeless(number: int) -> None:
    note("hopeless", number)
    raise ValueError("Jane Roe, born 1980-02-03")

@job(queue="chores")
def fine(number: int) -> None:
    note("fine", number)

@job(queue="chores", retry=None)
def deadly() -> None:
    note("deadly")
    os.kill(os.getpid(), signal.SIGKILL)

@job(queue="chores")
def slow() -> None:
    note("slow begun")
    while not (HERE / "go on").exists():
        time.sleep(0.01)
    note("slow done")

@every(seconds=0.5)
@job(queue="ticks", retry=None)
def tick() -> None:
    note("ticks")
'''
MAIN = """
import sys
from pathlib import Path
from app import guard, trail, tree
from app.services import messages
from jobs import base
import chores
command, database_url, redis_url, trail_url, spool = sys.argv[1:]
guard.connect(database_url)
trail.connect(trail_url, Path(spool))
tree.connect(Path(spool).parent / "key.pem", f"file:{Path(spool).parent / 'witness'}")
messages.connect(*messages.carriers("", "", "", Path(spool).parent / "outbox"), ())
getattr(base, command)(redis_url)
print(command, "ended", flush=True)
"""


def eventually(true: Callable[[], object]) -> bool:
    """Whether it becomes true; the limit is only there so that a failure ends."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def database_url(servers: Servers) -> Iterator[str]:
    """A migrated database of this module's own."""
    name = f"jobs_{os.getpid()}"
    with psycopg.connect(servers.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        url = servers.database_url.rpartition("/")[0] + f"/{name}"
        migrate(url)
        yield url
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


class House:
    """This process as one that queues jobs, and others that work them off."""

    def __init__(self, database_url: str, redis_url: str, trail_url: str, folder: Path) -> None:
        self.arguments = [database_url, redis_url, trail_url, str(folder / "spool")]
        self.folder = folder
        (folder / "chores.py").write_text(CHORES)
        (folder / "main.py").write_text(MAIN)
        self.engine = guard.connect(database_url)
        self.trail = trail.connect(trail_url, folder / "spool")
        base.load()
        self.redis = base.connect(redis_url)
        self.redis.flushdb()
        self.processes: list[subprocess.Popen[bytes]] = []
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM event_outbox"))

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """`run.py worker` or `run.py scheduler`, but for the settings."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(self.folder / "main.py"), command, *self.arguments],
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def queue(self, name: str, *ids: int) -> Queued:
        """Have one of the chores done; as `Job.later`, but their module is only known to the others."""
        retries = {"flaky": Retry(max=3, interval=[1, 1, 1]), "hopeless": Retry(max=1, interval=[1])}
        return base.queue_named("chores").enqueue_call(
            f"chores.{name}", args=ids, result_ttl=0, retry=retries.get(name), description=f"chores.{name}"
        )

    def lines(self, name: str) -> int:
        """How many lines the chores have left in a file."""
        path = self.folder / name
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def close(self) -> None:
        for process in self.processes:
            with process:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        # Redis gives a job to a worker it has not yet seen die; RQ finds it again, but only after a minute.
        assert eventually(lambda: not any("b" in client["flags"] for client in self.redis.client_list()))
        guard.session.remove()
        self.engine.dispose()
        self.redis.close()
        self.trail.redis.close()


@pytest.fixture
def house(database_url: str, servers: Servers, tmp_path: Path) -> Iterator[House]:
    house = House(
        database_url,
        servers.redis_url.rpartition("/")[0] + "/7",
        servers.trail_redis_url.rpartition("/")[0] + "/7",
        tmp_path,
    )
    yield house
    house.close()


def recorded(house: House, patient_id: int, action: str) -> int:
    """How many lines the trail has of what the finder of duplicates did to a patient."""
    statement = (
        "SELECT count(*) FROM audit_event"
        " WHERE agent_name = 'duplicates' AND patient_id = :patient_id AND action = :action"
    )
    with house.engine.connect() as connection:
        return int(connection.execute(text(statement), {"patient_id": patient_id, "action": action}).scalar_one())


def workers(house: House) -> dict[str, int]:
    """The queues somebody works off right now, with the number of the process."""
    return {
        worker.queue_names()[0]: worker.pid or 0
        for worker in SimpleWorker.all(connection=house.redis, serializer=JSONSerializer)
        if worker.get_state() in ("idle", "busy")
    }


def every_queue() -> set[str]:
    """The queues the workers of a test have declared."""
    return {"audit", "events", *base.queues(), "chores", "ticks"}


# ---- workers -----------------------------------------------------------------------------------------------------


def test_every_declared_queue_is_worked_off(house: House) -> None:
    house.start("work")
    assert eventually(lambda: set(workers(house)) == every_queue()), house.log


def test_a_job_that_fails_is_tried_again_until_it_comes_through(house: House) -> None:
    job = house.queue("flaky", 5)
    house.start("work")
    house.start("schedule")
    assert eventually(lambda: house.lines("flaky") == 3), house.log
    assert eventually(lambda: not house.redis.exists(job.key)), "done, and nothing of it is kept"
    assert (house.folder / "flaky").read_text() == "5\n5\n5\n"
    assert Queue("chores", connection=house.redis).failed_job_registry.count == 0
    assert "jobs.gave_up" not in house.log


def test_a_job_that_gave_up_is_seen_and_says_nothing_about_anybody(house: House) -> None:
    job = house.queue("hopeless", 5)
    registry = Queue("chores", connection=house.redis, serializer=JSONSerializer).failed_job_registry
    house.start("work")
    house.start("schedule")
    assert eventually(lambda: job.id in registry), house.log
    assert house.lines("hopeless") == 2
    assert "jobs.gave_up" in house.log
    assert "chores.hopeless" in house.log
    assert "ValueError" in house.log
    assert "Jane Roe" not in house.log
    kept = b"".join(
        house.redis.dump(key) or b"" for key in house.redis.scan_iter("*") if house.redis.type(key) != b"none"
    )
    assert b"Jane Roe" not in kept
    failed = Queued.fetch(job.id, connection=house.redis, serializer=JSONSerializer)
    result = failed.latest_result()
    assert result is not None
    assert "ValueError" in str(result.exc_string)
    assert "Jane Roe" not in str(result.exc_string)


def test_waiting_counts_what_waits_and_what_gave_up(house: House) -> None:
    assert set(base.waiting().values()) == {0}
    queue = base.queue_named("events")
    queue.enqueue_call("jobs.nowhere.nothing")
    assert base.waiting()["events queued"] == 1
    SimpleWorker([queue], connection=house.redis, job_class=base.Work, serializer=JSONSerializer).execute_job(
        queue.jobs[0], queue
    )
    assert base.waiting()["events failed"] == 1


def test_nothing_is_pickled(house: House) -> None:
    assert house.queue("fine", 5).serializer is JSONSerializer
    job = house.queue("fine", 5)
    written: Any = house.redis.hget(job.key, "data")
    assert b'"chores.fine"' in decompress(written)
    with pytest.raises(TypeError, match="JSON"):
        base.queue_named("chores").enqueue_call("chores.fine", args=(object(),))


def test_a_job_that_kills_its_worker_does_not_stop_the_next_one(house: House) -> None:
    worker = house.start("work")
    house.queue("deadly")
    assert eventually(lambda: house.lines("deadly") == 1), house.log
    house.queue("fine", 1)
    assert eventually(lambda: house.lines("fine") == 1), house.log
    assert worker.poll() is None
    assert "jobs.worker_ended" in house.log


def test_a_worker_told_to_stop_finishes_what_it_has_begun(house: House) -> None:
    worker = house.start("work")
    house.queue("slow")
    house.queue("fine", 1)
    assert eventually(lambda: house.lines("slow begun") == 1), house.log
    assert eventually(lambda: set(workers(house)) == every_queue()), (house.log, workers(house))
    worker.terminate()
    assert eventually(lambda: set(workers(house)) == {"chores"}), "those without work have ended"
    assert worker.poll() is None
    (house.folder / "go on").touch()
    assert worker.wait(60) == 0
    assert house.lines("slow done") == 1
    assert house.lines("fine") == 0
    assert base.queue_named("chores").count == 1
    assert "work ended" in house.log


def test_the_workers_end_with_a_killed_parent(house: House) -> None:
    worker = house.start("work")
    assert eventually(lambda: set(workers(house)) == every_queue()), house.log
    orphans = workers(house).values()
    worker.kill()
    assert eventually(lambda: not any(command_of(orphan) for orphan in orphans))


@pytest.fixture
def own_redis() -> Iterator[Server]:
    """A Redis of the queue's kind that a test may kill."""
    home = Path(tempfile.mkdtemp(prefix="wardbook-test-"))
    home.chmod(0o711)
    with started(home, need_database=False, need_trail=False, durable=False) as (_, (server,)):
        yield server


def test_worker_and_clock_outlive_a_redis_that_goes_away(
    house: House, own_redis: Server, servers: Servers, database_url: str
) -> None:
    house.close()
    house = House(database_url, own_redis.url, servers.trail_redis_url, house.folder)
    try:
        worker, clock = house.start("work"), house.start("schedule")
        assert eventually(lambda: house.lines("ticks") > 0), house.log
        assert own_redis.process is not None
        own_redis.process.kill()
        own_redis.stop()
        assert eventually(lambda: house.log.count("jobs.redis_away") > 1)
        assert worker.poll() is None
        assert clock.poll() is None
        own_redis.start()
        before = house.lines("ticks")
        assert eventually(lambda: house.lines("ticks") > before), house.log
        house.redis.ping()
        house.queue("fine", 1)
        assert eventually(lambda: house.lines("fine") == 1), house.log
        assert worker.poll() is None
        assert clock.poll() is None
    finally:
        house.close()


# ---- the clock ---------------------------------------------------------------------------------------------------


def test_of_two_clocks_one_counts_and_the_other_takes_over(house: House) -> None:
    first, second = base.Clock(house.redis), base.Clock(house.redis)
    assert first.counts()
    assert first.counts()
    assert not second.counts()
    first.stop()
    assert second.counts()
    assert not first.counts()


def test_two_schedulers_tick_on_when_one_is_killed(house: House) -> None:
    schedulers = [house.start("schedule"), house.start("schedule")]
    house.start("work")
    assert eventually(lambda: house.lines("ticks") > 2), house.log
    for scheduler in schedulers:
        scheduler.kill()
        house.start("schedule")
        before = house.lines("ticks")
        assert eventually(lambda seen=before: house.lines("ticks") > seen), house.log  # type: ignore[misc]
    assert "Traceback" not in house.log


def test_ticks_do_not_pile_up_while_nobody_works(house: House) -> None:
    clock = base.Clock(house.redis)
    for _ in range(3):
        clock.due = dict.fromkeys(clock.due, 0.0)
        clock.tick()
    assert base.queue_named("audit").get_job_ids() == [clock.ticks["jobs.trail.drain"].id]
    assert base.queue_named("relay").get_job_ids() == [clock.ticks["jobs.relay.attend"].id]
    ticks = [tick.id for tick in clock.ticks.values() if tick.origin == "events"]
    assert sorted(base.queue_named("events").get_job_ids()) == sorted(ticks)


def test_two_clocks_that_both_tick_do_no_harm(house: House) -> None:
    """As after a pause of the machine longer than the lock: everything is queued twice and recorded once."""
    house.trail.redis.delete(trail.STREAM)
    line = trail.event("R", "read", patient_id=77_000_001)
    house.trail.write(actor.nobody(), [line])
    for clock in (base.Clock(house.redis), base.Clock(house.redis)):
        clock.tick()
    assert base.queue_named("audit").count == 2
    house.start("work")
    assert eventually(lambda: base.queue_named("audit").count == 0 and not house.trail.redis.xlen(trail.STREAM)), (
        house.log
    )
    with house.engine.connect() as connection:
        rows = connection.execute(text("SELECT count(*) FROM audit_event WHERE patient_id = 77000001")).scalar_one()
    assert rows == 1


def test_a_scheduler_told_to_stop_makes_room(house: House) -> None:
    scheduler = house.start("schedule")
    assert eventually(lambda: house.redis.exists(base.CLOCK)), house.log
    scheduler.terminate()
    assert scheduler.wait(60) == 0
    assert not house.redis.exists(base.CLOCK)


# ---- what happened, made known -----------------------------------------------------------------------------------


def registered(family: str, given: str = "Dora", **told: Any) -> int:
    """A patient on record; gives the number."""
    with guard.acting_as(actor.service("demo")), guard.unit_of_work() as session:
        return register(session, Demographics(family=family, given=given, **told), insist=True).id


def outbox(house: House) -> int:
    with house.engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM event_outbox")).scalar_one())


def test_what_happened_is_handed_over_after_the_commit(house: House) -> None:
    first, second = registered("Relay"), registered("Relay")
    assert base.queue_named("events").count == 0
    relay()
    told = [job.args for job in base.queue_named("events").jobs]
    assert told == [
        ["jobs.patients.link_duplicates", "PatientRegistered", {"patient_id": number}] for number in (first, second)
    ]
    assert outbox(house) == 0
    relay()
    assert base.queue_named("events").count == 2


def test_what_was_rolled_back_is_not_handed_over(house: House) -> None:
    with guard.acting_as(actor.service("demo")):
        session = guard.session()
        events.emit(session, events.PatientRegistered(1))
        session.flush()
        relay()
        session.rollback()
    relay()
    assert base.queue_named("events").count == 0
    assert outbox(house) == 0


def test_what_cannot_be_handed_over_stays(house: House) -> None:
    registered("Stays")
    base.connect("redis://127.0.0.1:1/0")
    relay()
    assert outbox(house) == 1
    base.connect(house.arguments[1])
    relay()
    assert outbox(house) == 0
    assert base.queue_named("events").count == 1


def test_an_event_nobody_knows_waits_and_holds_nobody_up(house: House) -> None:
    with house.engine.begin() as connection:
        connection.execute(text("INSERT INTO event_outbox (name, payload, happened_at) VALUES ('Odd', '{}', now())"))
    registered("Upheld")
    relay()
    assert base.queue_named("events").count == 1
    assert outbox(house) == 1


def test_every_listener_is_found_by_its_name() -> None:
    base.load()
    for kind in events.KINDS:
        names = [base.named(listener) for listener in events.listeners(kind)[1]]
        assert len(names) == len(set(names))


# ---- records that may be one person's ----------------------------------------------------------------------------


def links() -> list[PatientLink]:
    with guard.acting_as(actor.service("duplicates")):
        return list(guard.session.scalars(select(PatientLink).order_by(PatientLink.id)))


def test_somebody_registered_twice_is_brought_before_a_person(house: House) -> None:
    birth_date = now().date().replace(year=1970)
    first = registered("Doppelgaenger", birth_date=birth_date)
    other = registered("Doppelgaenger", birth_date=birth_date)
    registered("Einzelgaenger", "Emil", birth_date=birth_date)
    house.start("work")
    house.start("schedule")
    assert eventually(lambda: [link for link in links() if link.patient_id == first]), house.log
    (link,) = [link for link in links() if first in (link.patient_id, link.other_id)]
    assert (link.patient_id, link.other_id, link.type) == (first, other, "seealso")
    assert link.score > 0.9
    assert {"same name", "same birth date"} <= set(link.reasons)
    assert link.reviewed_at is None

    assert eventually(lambda: recorded(house, first, "C") == 1), house.log
    assert eventually(lambda: recorded(house, first, "E") > 0), "who looked for it is on record too"


def test_a_pair_is_linked_once_and_a_review_stands(house: House) -> None:
    first, other = registered("Zwilling", "Zora"), registered("Zwilling", "Zora")
    for event in (events.PatientRegistered(other), events.PatientRegistered(first), events.PatientRegistered(first)):
        link_duplicates(event)
    (link,) = [link for link in links() if first in (link.patient_id, link.other_id)]
    assert (link.patient_id, link.other_id) == (first, other)

    with guard.acting_as(actor.service("duplicates")), guard.unit_of_work() as session:
        kept = session.scalars(select(PatientLink).where(PatientLink.id == link.id)).one()
        kept.reviewed_at, kept.score, kept.reasons = now(), 0.5, ["looked at"]
    link_duplicates(events.PatientRegistered(other))
    (link,) = [link for link in links() if first in (link.patient_id, link.other_id)]
    assert (link.score, link.reasons) == (0.5, ["looked at"])
    assert link.reviewed_at is not None


def test_nobody_is_linked_who_is_gone_or_unknown(house: House) -> None:
    unknown = [registered("Unknown", "", temporary=True) for _ in range(2)]
    for number in (*unknown, 999_999_999):
        link_duplicates(events.PatientRegistered(number))
    assert not [link for link in links() if link.patient_id in unknown]
    with guard.acting_as(actor.service("duplicates")):
        assert guard.session.scalar(select(func.count()).select_from(PatientLink)) is not None
