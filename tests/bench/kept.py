"""A trail that has been kept for years, lines that wait, and what processes of their own do with them; for the bench."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import event

from app import actor, guard, policy, trail, tree
from app.services import audit
from jobs import trail as drainer
from jobs.verify import LINES
from models.base import now
from tests.bench.house import PROJECT, House
from tests.bench.instead import SETTING_UP

DATABASE = "wardbook"
MONTHS = 12
PEOPLE = 400
A_BATCH = 5000
CHUNK = 100
"""Batches generated at once."""

SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
#define SLOWER(name) int name(int file) { \\
  static int (*real)(int); \\
  if (!real) real = (int (*)(int)) dlsym(RTLD_NEXT, #name); \\
  usleep(MICROSECONDS); return real(file); }
SLOWER(fsync)
SLOWER(fdatasync)
"""

PARTITIONS = """
DO $$
DECLARE
  month timestamptz;
BEGIN
  FOR i IN -{months}..2 LOOP
    month := date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' + make_interval(months => i);
    EXECUTE format('CREATE TABLE IF NOT EXISTS {table}_%s PARTITION OF {table} FOR VALUES FROM (%L) TO (%L)',
      to_char(month AT TIME ZONE 'UTC', 'YYYYMM'), month, month + interval '1 month');
  END LOOP;
END $$
"""

TABLES = """
SELECT oid::regclass::text, relispartition FROM pg_class
WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace
"""

GENERATE = f"""
INSERT INTO audit_event ({", ".join(drainer.COLUMNS)}, batch_seq, leaf_no)
SELECT uuidv7(recorded - now()), recorded, 'rest', kind, CASE kind WHEN 'read' THEN 'R' ELSE 'E' END, 0,
  person, 'Doctor ' || person, '{{Doctor}}', person %% 2 + 1, 'web',
  ('10.1.' || person %% 250 || '.7')::inet,
  'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36',
  substr(md5(person::text), 1, 16), md5(n::text),
  CASE WHEN n %% 10000 = 0 THEN 'BTG' ELSE 'TREAT' END, patient,
  json_build_array(json_build_object('type', 'Patient', 'ids', json_build_array(patient)),
    json_build_object('type', 'Encounter', 'ids', json_build_array(n %% 900000, n %% 900000 + 1))),
  CASE kind WHEN 'search' THEN 'patients by name' END, NULL,
  %(seq)s + (n - %(low)s) / {A_BATCH} + 1, (n - %(low)s) %% {A_BATCH}
FROM (
  SELECT n, %(from)s::timestamptz + (n - %(low)s) * %(each)s::interval AS recorded,
    CASE WHEN n %% 4 = 0 THEN 'search' ELSE 'read' END AS kind,
    ceil({PEOPLE} * power(random(), 1.5))::int AS person,
    ceil(%(patients)s * power(random(), 1.5))::bigint AS patient
  FROM generate_series(%(low)s::bigint, %(high)s::bigint) AS n
) AS made
"""


# ---- a trail that has been kept for years ------------------------------------------------------------------------


def founded(house: House, patients: int, lines: int, step: Callable[[str], None]) -> None:
    """Have `lines` lines in the trail, of twelve months, in whole batches with their leaves and signed checkpoints."""
    seal = tree.connect(house.home / "trail.key", f"file:{house.home / 'trail.witness'}")
    with house.connect(DATABASE) as database:
        database.execute(PARTITIONS.format(months=MONTHS, table="audit_event"))
        seq, frontier = drainer.anchored(database)
        done = _one(database, "SELECT count(*) FROM audit_event")
        begun = _one(database, "SELECT coalesce(max(recorded), now() - interval '364 days') FROM audit_event")
        each = (_one(database, "SELECT now()") - begun) / (lines - done)
        while done < lines:
            high = min(done + A_BATCH * CHUNK, lines)
            step(f"generating a trail, {high:,} of {lines:,} lines")
            asked = {"from": begun, "each": each, "patients": patients, "low": done + 1, "high": high, "seq": seq}
            database.execute(drainer.PLAIN)
            database.execute(GENERATE.encode(), asked)
            begun += each * (high - done)
            newest = seq + -(-(high - done) // A_BATCH)
            for first in range(seq + 1, newest + 1, 10):
                last = min(first + 9, newest)
                leaves: dict[int, list[bytes]] = {}
                with database.cursor().copy(LINES.format(first, last).encode()) as copy:
                    for row in copy:
                        batch, _, canonical = bytes(row).split(b"\t", 2)
                        leaves.setdefault(int(batch), []).append(tree.leaf_of(canonical))
                for number in range(first, last + 1):
                    note = drainer.end_batch(database, number, frontier, leaves[number])
                    seal.witness.take(note)
            seq = newest
            database.commit()
            done = high
    tidied(house)


def tidied(house: House) -> None:
    """Nothing is left for the vacuum or the checkpoint to do in the middle of a round.

    The trail itself is not vacuumed: made lines are all of one length, so the same gap would be left on every page, and new
    lines that happen to fit would go one to a page, each with a whole page in the log. Kept for years, that is one in twenty.
    """
    with house.connect(DATABASE) as database:
        database.autocommit = True
        months, others = list[str](), list[str]()
        for name, is_month in database.execute(TABLES).fetchall():
            (months if is_month else others).append(name)
        for name in months:
            database.execute(f"ALTER TABLE {name} SET (autovacuum_enabled = off)".encode())
            database.execute(f"ANALYZE {name}".encode())
        database.execute(f"VACUUM (FREEZE, ANALYZE) {', '.join(others)}".encode())
        database.execute("CHECKPOINT")


def with_naive_table(house: House) -> None:
    """A second table like the trail's, with the same indexes, months and lines, for an insert per read."""
    names = ", ".join(drainer.COLUMNS)
    with house.connect(DATABASE) as database:
        database.execute(SETTING_UP)
        database.execute(PARTITIONS.format(months=MONTHS, table="naive_event"))
        database.execute(f"INSERT INTO naive_event ({names}) SELECT {names} FROM audit_event".encode())
        database.execute("GRANT SELECT, INSERT ON naive_event TO wardbook_app")
        database.execute("GRANT SELECT, UPDATE ON naive_head TO wardbook_app")
    tidied(house)


def _one(database: Any, query: str) -> Any:
    return database.execute(query).fetchone()[0]


def slower(home: Path, milliseconds: float) -> Path | None:
    """A library that makes every sync take longer, or None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source, library = home / "slower.c", home / "slower.so"
    source.write_text(SHIM.replace("MICROSECONDS", str(int(milliseconds * 1000))))
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    library.chmod(0o644)
    return library


# ---- what processes of their own do ------------------------------------------------------------------------------

BEGIN = """
import json, sys, time
import run
run.open_house(run.read_settings())
from app import trail
"""
DRAIN = (
    BEGIN
    + """
from jobs import trail as jobs
with jobs.guard.engine().connect():
    pass
begun, cpu = time.perf_counter(), time.process_time()
while trail.the_trail().reader.xlen(trail.STREAM) or sys.argv[1:] == ["on"]:
    jobs.drain()
print(json.dumps({"elapsed": time.perf_counter() - begun, "cpu": time.process_time() - cpu}))
"""
)
VERIFY = (
    BEGIN
    + """
from datetime import datetime
from jobs.verify import verify
begun, cpu = time.perf_counter(), time.process_time()
report = verify(datetime.fromisoformat(sys.argv[1]))
assert report.fault is None, report.fault
print(json.dumps({"elapsed": time.perf_counter() - begun, "cpu": time.process_time() - cpu, "lines": report.lines}))
"""
)
ASK = (
    BEGIN
    + """
from tests.bench.kept import answers
print(json.dumps(answers(int(sys.argv[1]))))
"""
)


def told_by(house: House, program: str, *arguments: str) -> Any:
    """What a process of the house says in its last line."""
    told = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=PROJECT,
        env=house.environment(DATABASE),
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode:
        raise RuntimeError(told.stderr[-3000:])
    return json.loads(told.stdout.splitlines()[-1])


def drained(house: House) -> Any:
    """Store everything that waits; how long it took, and the drainer's CPU, in seconds."""
    return told_by(house, DRAIN)


def drainer_process(house: House) -> subprocess.Popen[bytes]:
    """A drainer that goes on until it is ended."""
    return subprocess.Popen(
        [sys.executable, "-c", DRAIN, "on"], cwd=PROJECT, env=house.environment(DATABASE), stdout=subprocess.DEVNULL
    )


def pile(house: House, count: int) -> None:
    """So many entries of one line each, as the web writes them when somebody opens a patient."""
    client = redis.Redis.from_url(house.servers.trail_redis_url)
    browser = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36"
    for first in range(0, count, 1000):
        with client.pipeline(transaction=False) as pipeline:
            for number in range(first, min(first + 1000, count)):
                origin = actor.Origin("web", "10.1.2.3", browser, "5f0c1b7ad2e94c38", secrets.token_hex(10))
                who = actor.Actor("Ana Ruiz", ("Doctor",), policy.NOTHING, user_id=2, branch_id=1, origin=origin)
                key = number % 100_000 + 1
                line = trail.event("R", "read", patient_id=key, entities=[{"type": "Patient", "ids": [key]}])
                pipeline.xadd(trail.STREAM, {"e": trail.encode(trail.entry(trail.agent(who), [line]))})
            pipeline.execute()
    client.close()


# ---- asking it ---------------------------------------------------------------------------------------------------


def answers(count: int) -> dict[str, Any]:
    """How long the trail takes to answer `count` questions of each kind, warm, in milliseconds.

    `database` is the statements on the trail alone, `whole` is everything up to the objects.
    """
    rights = policy.combine({"PrivacyOfficer": policy.MATRIX["PrivacyOfficer"]})
    officer = actor.Actor("Olga Officer", ("PrivacyOfficer",), rights, user_id=1)
    spending: list[float] = []
    engine = guard.engine()
    asked_of_trail: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def begin(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "FROM audit_event" in statement:
            asked_of_trail.append((statement, parameters))
        spending.append(-time.perf_counter() if "FROM audit_event" in statement else 0.0)

    @event.listens_for(engine, "after_cursor_execute")
    def end(*_: Any) -> None:
        if spending[-1]:
            spending[-1] += time.perf_counter()

    with engine.connect() as connection:
        total = connection.exec_driver_sql("SELECT sum(n) FROM audit_batch").scalar_one()
        drawn = connection.exec_driver_sql(
            "SELECT patient_id, user_id, recorded FROM audit_event TABLESAMPLE SYSTEM (0.2) "
            f"WHERE patient_id IS NOT NULL AND user_id IS NOT NULL ORDER BY random() LIMIT {count}"
        ).all()
    month, day = audit.LOOK_BACK, audit.STEPS[2]
    year = 12 * month

    def page(**asked: Any) -> int:
        return len(audit.search(guard.session(), audit.Question(since=now() - year, **asked)).events)

    def lookers(patient_id: int) -> int:
        return sum(each.times for each in audit.who_saw(guard.session(), patient_id, now() - month).lookers)

    def doings(user_id: int, when: Any) -> int:
        seen = audit.day_of(guard.session(), user_id, when - day / 2, when + day / 2).seen
        return sum(each.times for _, each in seen)

    ask: dict[str, Callable[[Any], int]] = {
        "who saw this patient: the newest page of a year": lambda row: page(patient_id=row[0]),
        "who saw this patient: 30 days, summed up": lambda row: lookers(row[0]),
        "what did this person see: the newest page of a year": lambda row: page(user_id=row[1]),
        "what did this person see: a day, summed up": lambda row: doings(row[1], row[2]),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for name, question in ask.items():
        figures = found.setdefault(name, {"database": [], "whole": [], "lines": []})
        for warm in (False, True):
            for row in drawn:
                with guard.acting_as(officer):
                    spending.clear()
                    begun = time.perf_counter()
                    lines = question(row)
                    if warm:
                        figures["whole"].append((time.perf_counter() - begun) * 1000)
                        figures["database"].append(sum(spending) * 1000)
                        figures["lines"].append(lines)
    plans: dict[str, list[str]] = {}
    for name, question in ask.items():
        asked_of_trail.clear()
        with guard.acting_as(officer):
            question((1, 1, now() - day))
        for nth, (statement, parameters) in enumerate(tuple(asked_of_trail), 1):
            with engine.connect() as connection:
                rows = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", parameters).scalars()
                plans[f"{name}, statement {nth}"] = list(rows)
    return {"lines": int(total), "questions": found, "plans": plans}
