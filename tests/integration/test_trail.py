"""The trail from the gate to the table: every line arrives, once, whoever is killed on the way."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import select

from app import actor, guard, policy, trail, tree
from app.errors import Forbidden
from app.services import audit
from app.services.patients import Demographics, register
from jobs import trail as drainer
from models.migrations import migrate
from models.patients import Patient
from ops.servers import Server, Servers, started

PROJECT = Path(__file__).resolve().parents[2]
fresh = itertools.count(1_000_000)

DOCTOR = actor.Actor(
    name="Ada Doctor",
    roles=("Doctor",),
    rights=policy.combine({"Doctor": policy.MATRIX["Doctor"]}),
    user_id=7,
    branch_id=3,
    branch_ids=(3,),
    origin=actor.Origin("web", "10.1.2.3", "Browser/1.0", "session-digest", "request-1"),
)


@pytest.fixture(scope="module")
def database_url(servers: Servers) -> Iterator[str]:
    """A migrated database of this module's own."""
    name = f"trail_{os.getpid()}"
    plain = servers.database_url.replace("+psycopg", "")
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        url = servers.database_url.rpartition("/")[0] + f"/{name}"
        migrate(url)
        yield url
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


class House:
    """A process of Wardbook, as far as the trail needs one."""

    def __init__(self, database_url: str, trail_url: str, spool: Path) -> None:
        self.database_url, self.trail_url, self.spool = database_url, trail_url, spool
        self.seal = (str(spool.parent / "key.pem"), f"file:{spool.parent / 'witness'}")
        tree.connect(Path(self.seal[0]), self.seal[1])
        self.engine = guard.connect(database_url)
        self.trail = trail.connect(trail_url, spool)
        self.redis = self.trail.reader
        self.database = psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True, row_factory=dict_row)

    def close(self) -> None:
        guard.session.remove()
        self.engine.dispose()
        self.redis.close()
        self.trail.redis.close()
        self.database.close()

    def lines(self, **wanted: Any) -> list[dict[str, Any]]:
        """Rows of audit_event with these values, oldest first."""
        condition = " AND ".join(f"{name} = %({name})s" for name in wanted)
        return self.database.execute(
            f"SELECT *, host(address) AS host FROM audit_event WHERE {condition} ORDER BY id", wanted
        ).fetchall()

    def number(self, statement: str) -> int:
        row = self.database.execute(statement).fetchone()
        assert row is not None
        return int(next(iter(row.values())))

    def in_a_process(self, program: str) -> subprocess.Popen[str]:
        """Another process of the same house, which runs `program`."""
        beginning = (
            "import sys\nfrom pathlib import Path\nfrom app import guard, trail, tree\nfrom jobs import trail as drainer\n"
            "guard.connect(sys.argv[1]); trail.connect(sys.argv[2], Path(sys.argv[3]))\n"
            "tree.connect(Path(sys.argv[4]), sys.argv[5])\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", beginning + program, self.database_url, self.trail_url, str(self.spool), *self.seal],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def house(database_url: str, servers: Servers, tmp_path: Path) -> Iterator[House]:
    """Nothing on its way anywhere."""
    house = House(database_url, servers.trail_redis_url, tmp_path / "spool")
    house.redis.delete(trail.STREAM)
    house.database.execute("DELETE FROM audit_outbox")
    house.database.execute("DELETE FROM audit_quarantine")
    yield house
    house.redis.delete(trail.STREAM)
    house.close()


def seen(patient_id: int | None = None) -> dict[str, Any]:
    """A line about a patient nobody else has."""
    return trail.event("R", "read", patient_id=patient_id or next(fresh), entities=[{"type": "Patient", "ids": [1]}])


def entry(*lines: dict[str, Any], **changed: Any) -> bytes:
    """What one write to the trail holds, with some of the agent's values changed."""
    return trail.encode(trail.entry({**trail.agent(DOCTOR), **changed}, list(lines)))


# ---- the way there -----------------------------------------------------------------------------------------------


def test_what_was_read_arrives_with_patient_entities_and_agent(house: House) -> None:
    with guard.acting_as(actor.service("demo")), guard.unit_of_work() as session:
        patient_id = register(session, Demographics(family="Arrivals", given="Rita"), insist=True).id
    with guard.acting_as(DOCTOR):
        assert guard.session.scalars(select(Patient).where(Patient.id == patient_id)).one().family == "Arrivals"
    assert not house.lines(patient_id=patient_id, action="R")

    drainer.drain()

    (line,) = house.lines(patient_id=patient_id, action="R")
    assert line["entities"] == [{"type": "Patient", "ids": [patient_id]}]
    assert (line["subtype"], line["outcome"], line["type"]) == ("read", 0, "rest")
    assert (line["user_id"], line["agent_name"], line["roles"]) == (7, "Ada Doctor", ["Doctor"])
    assert (line["branch_id"], line["purpose"], line["channel"]) == (3, "TREAT", "web")
    assert (line["host"], line["user_agent"]) == ("10.1.2.3", "Browser/1.0")
    assert (line["session_id"], line["request_id"]) == ("session-digest", "request-1")
    assert house.redis.xlen(trail.STREAM) == 0


def test_a_change_arrives_once_and_leaves_the_outbox(house: House) -> None:
    with guard.acting_as(actor.service("demo")), guard.unit_of_work() as session:
        patient_id = register(session, Demographics(family="Changes", given="Carl"), insist=True).id
    assert house.number("SELECT count(*) FROM audit_outbox") > 0

    drainer.drain()
    drainer.drain()

    (line,) = house.lines(patient_id=patient_id, action="C")
    assert line["entities"] == [{"type": "Patient", "ids": [patient_id]}]
    assert (line["agent_name"], line["channel"]) == ("demo", "job")
    assert house.number("SELECT count(*) FROM audit_outbox") == 0


def test_a_change_that_was_rolled_back_leaves_no_line(house: House) -> None:
    with guard.acting_as(actor.service("demo")):
        session = guard.session()
        patient_id = register(session, Demographics(family="Never", given="Nell"), insist=True).id
        session.flush()
        session.rollback()
    drainer.drain()
    assert not house.lines(patient_id=patient_id, action="C")


def test_one_line_for_each_patient_of_one_request(house: House) -> None:
    lines = [seen() for _ in range(3)]
    house.trail.write(DOCTOR, lines)
    assert house.redis.xlen(trail.STREAM) == 1
    drainer.drain()
    for line in lines:
        (arrived,) = house.lines(patient_id=line["patient_id"])
        assert str(arrived["id"]) == line["id"]


def test_more_than_a_batch_is_moved_in_one_run(house: House) -> None:
    before = house.number("SELECT count(*) FROM audit_event")
    with house.redis.pipeline(transaction=False) as pipeline:
        for _ in range(drainer.BATCH + drainer.CHUNK + 1):
            pipeline.xadd(trail.STREAM, {"e": entry(seen())})
        pipeline.execute()
    drainer.drain()
    assert house.redis.xlen(trail.STREAM) == 0
    assert house.number("SELECT count(*) FROM audit_event") == before + drainer.BATCH + drainer.CHUNK + 1


def test_the_same_line_twice_is_one_row(house: House) -> None:
    line = seen()
    house.trail.write(DOCTOR, [line])
    house.trail.write(DOCTOR, [line, line])
    house.trail.spool.write(entry(line))
    house.trail.spool.close()
    drainer.drain()
    house.trail.write(DOCTOR, [line])
    drainer.drain()
    assert len(house.lines(patient_id=line["patient_id"])) == 1
    assert house.redis.xlen(trail.STREAM) == 0
    assert not list(house.spool.iterdir())


def test_a_line_from_another_century_arrives_too(house: House) -> None:
    line = {**seen(), "recorded": datetime(1970, 1, 1, tzinfo=UTC).isoformat()}
    house.trail.write(DOCTOR, [line])
    drainer.drain()
    (arrived,) = house.lines(patient_id=line["patient_id"])
    assert arrived["recorded"] == datetime(1970, 1, 1, tzinfo=UTC)


# ---- what cannot be read -----------------------------------------------------------------------------------------

POISON: dict[str, dict[str, Any]] = {
    "no address": {"agent": {"address": "10.0.0.999"}},
    "an address with a zone": {"agent": {"address": "fe80::1%eth0"}},
    "a null in a name": {"agent": {"agent_name": "Ada\0"}},
    "a null in a role": {"agent": {"roles": ["\0"]}},
    "a user who is a word": {"agent": {"user_id": "seven"}},
    "a user number too large": {"agent": {"user_id": 2**31}},
    "no such action": {"line": {"action": "X"}},
    "no such outcome": {"line": {"outcome": 5}},
    "an id that is none": {"line": {"id": "7"}},
    "a time of nowhere": {"line": {"recorded": "2026-11-22T10:00:00"}},
    "a patient number too large": {"line": {"patient_id": 2**63}},
    "entities that are no list": {"line": {"entities": {"type": "Patient"}}},
    "a null in the entities": {"line": {"entities": [{"type": "Patient\0"}]}},
    "a null in the query": {"line": {"query": "\0"}},
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON.keys())
def test_poison_is_set_aside_and_the_rest_arrives(house: House, poison: dict[str, dict[str, Any]]) -> None:
    before, beside, after = seen(), seen(), seen()
    bad = {**seen(), **poison.get("line", {})}
    house.redis.xadd(trail.STREAM, {"e": entry(before)})
    if "agent" in poison:
        payload = entry(bad, **poison["agent"])
        house.redis.xadd(trail.STREAM, {"e": payload})
        house.redis.xadd(trail.STREAM, {"e": entry(beside)})
    else:
        payload = entry(bad)
        house.redis.xadd(trail.STREAM, {"e": entry(beside, bad)})
    house.redis.xadd(trail.STREAM, {"e": entry(after)})

    drainer.drain()

    for line in (before, beside, after):
        assert len(house.lines(patient_id=line["patient_id"])) == 1
    kept = house.database.execute("SELECT * FROM audit_quarantine").fetchall()
    assert [json.loads(row["payload"]) for row in kept] == [json.loads(payload)]
    assert kept[0]["source"].startswith("stream ")
    assert kept[0]["reason"]
    assert house.redis.xlen(trail.STREAM) == 0


@pytest.mark.parametrize("fields", [{"e": b"{"}, {"e": b"\xff\x00"}, {"e": b""}, {"e": b"[]"}, {"x": b"{}"}])
def test_what_is_no_entry_at_all_is_set_aside(house: House, fields: dict[Any, Any]) -> None:
    line = seen()
    house.redis.xadd(trail.STREAM, fields)
    house.redis.xadd(trail.STREAM, {"e": entry(line)})
    drainer.drain()
    assert len(house.lines(patient_id=line["patient_id"])) == 1
    assert house.number("SELECT count(*) FROM audit_quarantine") == 1
    assert house.redis.xlen(trail.STREAM) == 0


def test_poison_in_the_outbox_is_set_aside(house: House) -> None:
    line = seen()
    bad = trail.entry(trail.agent(DOCTOR), [{**seen(), "action": "X"}, line])
    house.database.execute("INSERT INTO audit_outbox VALUES (gen_random_uuid(), %s)", [json.dumps(bad)])
    drainer.drain()
    assert len(house.lines(patient_id=line["patient_id"])) == 1
    assert house.number("SELECT count(*) FROM audit_quarantine") == 1
    assert house.number("SELECT count(*) FROM audit_outbox") == 0


def test_a_row_only_the_database_refuses_does_not_hold_up_the_others(house: House) -> None:
    good, bad = seen(), seen()
    batch = drainer.Batch()
    batch.take(entry(good), "here")
    batch.take(entry(bad), "there")
    batch.rows[1] = tuple(
        "X" if name == "action" else value for name, value in zip(drainer.COLUMNS, batch.rows[1], strict=True)
    )
    with drainer.alone() as database:
        assert database is not None
        with database.transaction():
            assert (drainer.store(database, batch) or "").startswith("wardbook.trail\n")
    assert len(house.lines(patient_id=good["patient_id"])) == 1
    (kept,) = house.database.execute("SELECT * FROM audit_quarantine").fetchall()
    assert kept["source"] == "there"
    assert json.loads(kept["payload"])["patient_id"] == bad["patient_id"]


def test_quarantine_takes_the_same_thing_once(house: House) -> None:
    batch = drainer.Batch()
    batch.take(b"{", "stream 1-1")
    for _ in range(2):  # as after a drainer killed between its commit and the stream
        with drainer.alone() as database:
            assert database is not None
            with database.transaction():
                drainer.store(database, batch)
    assert house.number("SELECT count(*) FROM audit_quarantine") == 1


# ---- when something is away --------------------------------------------------------------------------------------


@pytest.fixture
def own_redis() -> Iterator[Server]:
    """A Redis of the trail's kind that a test may kill."""
    home = Path(tempfile.mkdtemp(prefix="wardbook-test-"))
    home.chmod(0o711)
    with started(home, need_database=False, need_redis=False, durable=False) as (_, (server,)):
        yield server


def test_lines_survive_a_killed_redis_by_way_of_the_spool(
    house: House, database_url: str, own_redis: Server, tmp_path: Path
) -> None:
    house.close()
    house = House(database_url, own_redis.url, tmp_path / "own")
    try:
        acknowledged = [seen() for _ in range(20)]
        for line in acknowledged:
            house.trail.write(DOCTOR, [line])
        assert own_redis.process is not None
        own_redis.process.kill()
        own_redis.stop()
        spooled = [seen() for _ in range(20)]
        for line in spooled:
            house.trail.write(DOCTOR, [line])
        assert list(house.spool.glob("*.open"))

        changed = seen()
        house.database.execute("INSERT INTO audit_outbox VALUES (gen_random_uuid(), %s)", [entry(changed).decode()])
        drainer.drain()
        assert len(house.lines(patient_id=changed["patient_id"])) == 1, "the outbox does not wait for Redis"
        assert standing().stream is None

        own_redis.start()
        house.trail.rests_until = 0.0
        last = seen()
        house.trail.write(DOCTOR, [last])
        assert list(house.spool.glob("*.done"))
        drainer.drain()
        for line in (*acknowledged, *spooled, last):
            assert len(house.lines(patient_id=line["patient_id"])) == 1
        assert not list(house.spool.iterdir())
        assert house.redis.xlen(trail.STREAM) == 0
    finally:
        house.close()


def test_lines_wait_in_the_stream_while_the_database_is_away(house: House) -> None:
    line = seen()
    house.trail.write(DOCTOR, [line])
    guard.connect("postgresql+psycopg://nobody@127.0.0.1:1/nothing").dispose()
    drainer.drain()
    assert house.redis.xlen(trail.STREAM) == 1
    house.engine.dispose()
    house.engine = guard.connect(house.database_url)
    drainer.drain()
    assert len(house.lines(patient_id=line["patient_id"])) == 1


def test_a_database_connection_that_breaks_is_replaced(house: House) -> None:
    drainer.drain()
    house.database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    line = seen()
    house.trail.write(DOCTOR, [line])
    drainer.drain()
    drainer.drain()
    assert len(house.lines(patient_id=line["patient_id"])) == 1


def settle(path: Path) -> None:
    """Make a file look as if nobody had touched it for a while."""
    os.utime(path, (0, 0))


def test_the_file_of_a_dead_writer_is_taken_up_to_its_torn_tail(house: House) -> None:
    first, second = seen(), seen()
    writer = house.in_a_process(
        f"spool = trail.the_trail().spool\nfor line in ({entry(first)!r}, {entry(second)!r}): spool.write(line)\n"
        "spool.file.write(b'\\x00\\x00\\x01\\x00torn'); spool.file.flush()\n"
        "print('written', flush=True)\nimport time; time.sleep(600)"
    )
    assert writer.stdout is not None
    with writer:
        assert writer.stdout.readline() == "written\n"
        (path,) = house.spool.iterdir()
        settle(path)
        drainer.drain()
        assert not house.lines(patient_id=first["patient_id"]), "its writer is alive"
        assert path.exists()
        writer.kill()

    drainer.drain()
    assert len(house.lines(patient_id=first["patient_id"])) == 1
    assert len(house.lines(patient_id=second["patient_id"])) == 1
    assert not list(house.spool.iterdir())
    (kept,) = house.database.execute("SELECT reason, payload FROM audit_quarantine").fetchall()
    assert "torn" in kept["reason"]
    assert kept["payload"].endswith("torn")


def test_a_file_just_being_made_is_left_alone(house: House) -> None:
    house.spool.mkdir()
    young = house.spool / "young.open"
    young.touch()
    drainer.drain()
    assert young.exists()
    settle(young)
    drainer.drain()
    assert not young.exists()


def test_what_follows_a_torn_middle_is_found() -> None:
    first, second = entry(seen()), entry(seen())
    frame = [len(p).to_bytes(4, "big") + crc32(p).to_bytes(4, "big") + p for p in (first, second)]
    damaged = frame[0][:-3] + b"???"
    found = list(drainer.frames(frame[0] + damaged + frame[1]))
    assert found == [
        (0, first, True),
        (len(frame[0]), damaged, False),
        (len(frame[0]) * 2, second, True),
    ]


# ---- killed and doubled ------------------------------------------------------------------------------------------


def test_a_drainer_killed_before_it_lets_go_of_the_stream_loses_and_doubles_nothing(house: House) -> None:
    lines = [seen() for _ in range(50)]
    for line in lines:
        house.redis.xadd(trail.STREAM, {"e": entry(line)})
    house.redis.xadd(trail.STREAM, {"e": b"{"})
    victim = house.in_a_process(
        "import os, redis, signal\nredis.Redis.xdel = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\ndrainer.drain()"
    )
    with victim:
        assert victim.wait() == -signal.SIGKILL
    assert house.redis.xlen(trail.STREAM) == 51, "killed after the commit and before the stream was told"
    assert len(house.lines(patient_id=lines[0]["patient_id"])) == 1

    drainer.drain()
    for line in lines:
        assert len(house.lines(patient_id=line["patient_id"])) == 1
    assert house.redis.xlen(trail.STREAM) == 0
    assert house.number("SELECT count(*) FROM audit_quarantine") == 1


def test_a_drainer_killed_before_its_commit_loses_nothing(house: House) -> None:
    line, changed = seen(), seen()
    house.redis.xadd(trail.STREAM, {"e": entry(line)})
    house.database.execute("INSERT INTO audit_outbox VALUES (gen_random_uuid(), %s)", [entry(changed).decode()])
    with house.database.transaction():
        house.database.execute("LOCK TABLE audit_event IN SHARE MODE")  # so that it stops in the middle
        victim = house.in_a_process("drainer.drain()")
        with victim:
            while not house.number("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert victim.poll() is None
                time.sleep(0.01)
            victim.kill()
    while house.number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"):
        time.sleep(0.01)  # until the server has noticed
    assert not house.lines(patient_id=changed["patient_id"])
    assert house.number("SELECT count(*) FROM audit_outbox") == 1
    drainer.drain()
    for arrived in (line, changed):
        assert len(house.lines(patient_id=arrived["patient_id"])) == 1


def test_one_drainer_at_a_time(house: House) -> None:
    line = seen()
    house.trail.write(DOCTOR, [line])
    with drainer.alone() as database:
        assert database is not None
        drainer.drain()
        assert house.redis.xlen(trail.STREAM) == 1, "another one has the lock"
    drainer.drain()
    assert house.redis.xlen(trail.STREAM) == 0


def test_several_drainers_at_once_move_every_line_once(house: House) -> None:
    before = house.number("SELECT count(*) FROM audit_event")
    drainers = [
        house.in_a_process(
            "import time\n"
            "while trail.the_trail().redis.get('enough') is None or trail.the_trail().redis.xlen(trail.STREAM):\n"
            "    drainer.drain(); time.sleep(0.001)\n"
        )
        for _ in range(3)
    ]
    try:
        for _ in range(2000):
            house.redis.xadd(trail.STREAM, {"e": entry(seen(), seen())})
        house.redis.set("enough", 1, ex=60)
        for process in drainers:
            assert process.wait() == 0
    finally:
        house.redis.delete("enough")
        for process in drainers:
            with process:
                process.kill()
    assert house.number("SELECT count(*) FROM audit_event") == before + 4000
    assert house.redis.xlen(trail.STREAM) == 0


# ---- never rewritten ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_event SET agent_name = 'Nobody'",
        "DELETE FROM audit_event",
        "TRUNCATE audit_event",
        "UPDATE audit_event_default SET agent_name = 'Nobody'",
        "DELETE FROM audit_event_default",
    ],
)
def test_the_database_refuses_to_rewrite_the_trail(house: House, statement: str) -> None:
    line = {**seen(), "recorded": datetime(1970, 1, 1, tzinfo=UTC).isoformat()}
    house.trail.write(DOCTOR, [line])
    drainer.drain()
    before = house.number("SELECT count(*) FROM audit_event")
    with pytest.raises(psycopg.errors.RestrictViolation, match="never rewritten"):
        house.database.execute(statement)
    assert house.number("SELECT count(*) FROM audit_event") == before
    assert house.lines(patient_id=line["patient_id"])[0]["agent_name"] == "Ada Doctor"


def test_the_gate_refuses_to_rewrite_the_trail(house: House) -> None:
    from models.audit import AuditEvent

    line = seen()
    house.trail.write(DOCTOR, [line])
    drainer.drain()
    officer = actor.Actor(
        "Olga Officer",
        ("PrivacyOfficer",),
        policy.combine({"PrivacyOfficer": {"AuditEvent": policy.may("read update")}}),
    )
    with guard.acting_as(officer), pytest.raises(Forbidden), guard.unit_of_work() as session:
        session.scalars(
            select(AuditEvent).where(AuditEvent.patient_id == line["patient_id"])
        ).one().agent_name = "Nobody"
    assert house.lines(patient_id=line["patient_id"])[0]["agent_name"] == "Ada Doctor"


# ---- how it stands -----------------------------------------------------------------------------------------------


def standing() -> audit.Standing:
    """How the trail stands, as the status page would say."""
    with guard.acting_as(actor.nobody()):
        return audit.standing(guard.session())


def test_the_standing_counts_what_waits_and_says_since_when(house: House) -> None:
    before = standing()
    assert (before.oldest_seconds, before.late) == (0.0, False)
    house.redis.xadd(trail.STREAM, {"e": entry(seen())}, id="1000-0")
    house.redis.xadd(trail.STREAM, {"e": b"{"})
    house.trail.spool.write(entry(seen()))
    house.trail.spool.close()
    house.database.execute("INSERT INTO audit_outbox VALUES (gen_random_uuid(), %s)", [entry(seen()).decode()])
    waiting = standing()
    assert (waiting.stream, waiting.spool_files, waiting.outbox, waiting.quarantine) == (2, 1, 1, 0)
    assert waiting.oldest_seconds is not None
    assert waiting.oldest_seconds > 1_000_000_000, "the first entry is from 1970"
    assert waiting.late
    assert waiting.spool_bytes > 100

    drainer.drain()
    done = standing()
    assert (done.stream, done.spool_files, done.outbox, done.quarantine) == (0, 0, 0, 1)
    assert (done.oldest_seconds, done.late) == (0.0, False)
    assert done.drained == before.drained + 3
    assert done.size == before.size + 3
    assert done.note.split("\n")[1] == str(done.size)
    assert done.drained_at > waiting.drained_at


@pytest.mark.parametrize("where", ["outbox", "spool"])
def test_a_line_that_waits_anywhere_makes_the_trail_late(house: House, where: str) -> None:
    if where == "outbox":
        old = "00000000-0000-7000-8000-000000000000"
        house.database.execute("INSERT INTO audit_outbox VALUES (%s, %s)", [old, entry(seen()).decode()])
    else:
        house.trail.spool.write(entry(seen()))
        house.trail.spool.close()
        (file,) = house.spool.iterdir()
        os.utime(file, (1000, 1000))
    assert standing().late
    drainer.drain()
    assert not standing().late


def test_a_line_from_another_century_is_counted_as_astray(house: House) -> None:
    before = standing().astray
    line = {**seen(), "recorded": "1970-01-01T00:00:00+00:00"}
    house.trail.write(DOCTOR, [line])
    drainer.drain()
    assert standing().astray == before + 1


def test_the_shared_redis_of_the_trail_is_fit_for_it(house: House) -> None:
    assert house.trail.weaknesses() == []
