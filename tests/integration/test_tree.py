"""What is done to the trail behind our back is found, and named: by the database alone, or with the witness."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from app import actor, guard, policy, trail, tree
from app.errors import Conflict, Invalid, NotFound
from app.tree import Checkpoint, Frontier
from jobs import archive as put
from jobs import trail as drainer
from jobs.verify import Report, verify
from models.base import now
from ops.servers import Servers

DOCTOR = actor.Actor("Ada Doctor", ("Doctor",), policy.NOTHING, user_id=7)


@dataclass
class Archive:
    """A trail of three batches of forty lines each, with a key and a witness of its own."""

    url: str
    seal: tree.Seal
    folder: Path
    database: psycopg.Connection[Any]

    def write(self, lines: int) -> None:
        """So many lines more, as one batch."""
        events = [
            trail.event("R", "read", patient_id=n, entities=[{"type": "Patient", "ids": [n]}]) for n in range(lines)
        ]
        trail.the_trail().write(DOCTOR, events)
        drainer.drain()

    def tamper(self, *statements: str) -> None:
        """As somebody who owns the database would: the triggers are off meanwhile."""
        tables = ("audit_event", "audit_batch")
        for table in tables:
            self.database.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for statement in statements:
            self.database.execute(statement)
        for table in tables:
            self.database.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")

    def one(self, query: str) -> Any:
        row = self.database.execute(query).fetchone()
        assert row is not None
        return row[0]

    def look(self, witness: str | None = None) -> Report:
        """Look through it, with this witness instead."""
        tree.connect(self.folder / "key.pem", witness or f"file:{self.folder / 'witness'}")
        return verify()

    def alone(self) -> Report:
        """Look through it as if there were no witness."""
        return self.look(f"file:{self.folder / 'nobody'}")


@pytest.fixture
def archive(
    servers: Servers, fresh_database: Callable[..., str], migrated: str, tmp_path: Path, seal: Path
) -> Iterator[Archive]:
    url = fresh_database(make_url(migrated).database)
    guard.connect(url)
    trail.connect(servers.trail_redis_url, tmp_path / "spool").reader.delete(trail.STREAM)
    opened = tree.connect(tmp_path / "key.pem", f"file:{tmp_path / 'witness'}")
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as database:
        made = Archive(url, opened, tmp_path, database)
        for _ in range(3):
            made.write(40)
        yield made
    guard.engine().dispose()
    tree.connect(seal / "key.pem", f"file:{seal / 'witness'}")


def test_a_trail_nobody_touched_is_whole(archive: Archive) -> None:
    told: list[tuple[int, int]] = []
    report = verify(progress=lambda done, all_: told.append((done, all_)))
    assert (report.fault, report.lines, report.batches, report.size, report.witnessed) == (None, 120, 3, 120, 3)
    assert told[-1] == (120, 120)
    assert archive.one("SELECT count(DISTINCT (batch_seq, leaf_no)) FROM audit_event") == 120
    assert len(list(archive.seal.witness.notes())) == 3


def test_an_empty_trail_is_whole(archive: Archive, fresh_database: Callable[..., str], migrated: str) -> None:
    guard.connect(fresh_database(make_url(migrated).database))
    assert archive.alone() == Report()


def test_the_same_lines_again_add_no_leaf(archive: Archive) -> None:
    line = trail.event("R", "read", patient_id=1)
    for lines in ([line], [line, trail.event("R", "read", patient_id=2), line], [line]):
        trail.the_trail().write(DOCTOR, lines)
        drainer.drain()
    report = verify()
    assert (report.fault, report.lines, report.batches) == (None, 122, 5)


def test_lines_from_before_there_were_batches_are_sealed_with_the_next(archive: Archive) -> None:
    archive.tamper("DELETE FROM audit_batch", "UPDATE audit_event SET batch_seq = 0, leaf_no = 0")
    (archive.folder / "witness").unlink()
    archive.write(5)
    report = verify()
    assert (report.fault, report.lines, report.batches) == (None, 125, 2)
    archive.tamper(
        "UPDATE audit_event SET outcome = 4 WHERE id = (SELECT id FROM audit_event WHERE batch_seq = 0 LIMIT 1)"
    )
    found = verify().fault
    assert found is not None
    assert (found.kind, found.batch) == ("altered", 0)


ROW = "(SELECT id FROM audit_event WHERE batch_seq = 2 AND leaf_no = 7)"
NEXT = "(SELECT id FROM audit_event WHERE batch_seq = 2 AND leaf_no = 8)"
WHOLE = "SELECT * FROM audit_event WHERE batch_seq = 2 AND leaf_no = 7"

ATTACKS: dict[str, tuple[list[str], str, int | None]] = {
    "a value": ([f"UPDATE audit_event SET agent_name = 'Nobody' WHERE id = {ROW}"], "altered", 7),
    "an entity": ([f"UPDATE audit_event SET entities = '[]' WHERE id = {ROW}"], "altered", 7),
    "a space in the entities": (
        [f"UPDATE audit_event SET entities = (' ' || entities::text)::json WHERE id = {ROW}"],
        "altered",
        7,
    ),
    "a microsecond": (
        [f"UPDATE audit_event SET recorded = recorded + interval '1 microsecond' WHERE id = {ROW}"],
        "altered",
        7,
    ),
    "another patient": ([f"UPDATE audit_event SET patient_id = 999 WHERE id = {ROW}"], "altered", 7),
    "another id": ([f"UPDATE audit_event SET id = gen_random_uuid() WHERE id = {ROW}"], "altered", 7),
    "a line removed": ([f"DELETE FROM audit_event WHERE id = {ROW}"], "missing", 7),
    "the first line removed": (["DELETE FROM audit_event WHERE batch_seq = 1 AND leaf_no = 0"], "missing", 0),
    "the last line removed": (["DELETE FROM audit_event WHERE batch_seq = 3 AND leaf_no = 39"], "missing", 39),
    "removed and renumbered": (
        [
            f"DELETE FROM audit_event WHERE id = {ROW}",
            "UPDATE audit_event SET leaf_no = leaf_no - 1 WHERE batch_seq = 2 AND leaf_no > 7",
        ],
        "reordered",
        7,
    ),
    "two swapped": (
        ["UPDATE audit_event SET leaf_no = 15 - leaf_no WHERE batch_seq = 2 AND leaf_no IN (7, 8)"],
        "reordered",
        7,
    ),
    "moved to another batch": (
        ["UPDATE audit_event SET batch_seq = 3, leaf_no = 40 WHERE batch_seq = 2 AND leaf_no = 39"],
        "missing",
        39,
    ),
    "a line added at the end": (
        [
            "INSERT INTO audit_event SELECT (jsonb_populate_record(e, jsonb_build_object('id', gen_random_uuid(), 'leaf_no', 40))).* FROM audit_event e WHERE batch_seq = 2 AND leaf_no = 7"
        ],
        "added",
        40,
    ),
    "a line added in a place": (
        [
            "INSERT INTO audit_event SELECT (jsonb_populate_record(e, jsonb_build_object('id', gen_random_uuid()))).* FROM audit_event e WHERE batch_seq = 2 AND leaf_no = 7"
        ],
        "",
        7,
    ),
    "a line of no batch": (
        [
            "INSERT INTO audit_event SELECT (jsonb_populate_record(e, jsonb_build_object('id', gen_random_uuid(), 'batch_seq', 9))).* FROM audit_event e WHERE batch_seq = 2 AND leaf_no = 7"
        ],
        "added",
        None,
    ),
    "a line put before the first batch": (
        [
            "INSERT INTO audit_event SELECT (jsonb_populate_record(e, jsonb_build_object('id', gen_random_uuid(), 'batch_seq', 0))).* FROM audit_event e WHERE batch_seq = 2 AND leaf_no = 7"
        ],
        "added",
        None,
    ),
    "a batch removed": (
        ["DELETE FROM audit_event WHERE batch_seq = 2", "DELETE FROM audit_batch WHERE seq = 2"],
        "batch",
        None,
    ),
    "the first batch removed": (
        ["DELETE FROM audit_event WHERE batch_seq = 1", "DELETE FROM audit_batch WHERE seq = 1"],
        "batch",
        None,
    ),
    "a leaf forged with its line": (
        [
            f"UPDATE audit_event SET agent_name = 'Nobody' WHERE id = {ROW}",
            "UPDATE audit_batch SET leaves = overlay(leaves placing sha256('x') from 225 for 32) WHERE seq = 2",
        ],
        "",
        None,
    ),
    "a signature": (
        ["UPDATE audit_batch SET note = replace(note, '— wardbook.trail ', '— wardbook.trail AAAA') WHERE seq = 2"],
        "signature",
        None,
    ),
    "a frontier": (["UPDATE audit_batch SET frontier = sha256('x') || sha256('y') WHERE seq = 2"], "batch", None),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_was_done_is_found_in_the_database_alone(archive: Archive, name: str) -> None:
    statements, kind, place = ATTACKS[name]
    archive.tamper(*statements)
    found = archive.alone().fault
    assert found is not None
    assert found.sentence
    assert not kind or found.kind == kind
    if place is not None:
        assert found.place == place


def test_the_altered_line_is_named(archive: Archive) -> None:
    key = archive.one(ROW[1:-1])
    archive.tamper(
        f"UPDATE audit_event SET user_id = 8 WHERE id = '{key}'",
        "UPDATE audit_event SET user_id = 8 WHERE batch_seq = 3",
    )
    found = archive.alone().fault
    assert found is not None
    assert (found.kind, found.batch, found.place, found.event_id) == ("altered", 2, 7, str(key))
    assert str(key) in found.sentence


CUT = ["DELETE FROM audit_event WHERE batch_seq = 3", "DELETE FROM audit_batch WHERE seq = 3"]


def test_an_end_cut_off_is_seen_by_the_witness_only(archive: Archive) -> None:
    archive.tamper(*CUT)
    assert archive.alone().fault is None
    found = archive.look().fault
    assert found is not None
    assert found.kind == "truncated"
    assert "after 80 lines" in found.sentence


def test_an_end_cut_off_and_written_over_is_seen_by_the_witness(archive: Archive) -> None:
    archive.tamper(*CUT)
    tree.connect(archive.folder / "key.pem", f"file:{archive.folder / 'nobody'}")
    archive.write(40)
    archive.write(1)
    assert archive.alone().fault is None
    found = archive.look().fault
    assert found is not None
    assert (found.kind, found.batch) == ("rewritten", 3)


def test_a_rewrite_with_the_key_is_seen_by_the_witness_only(archive: Archive) -> None:
    """Somebody with the database and the key alters a line and seals everything anew."""
    archive.tamper(f"UPDATE audit_event SET agent_name = 'Nobody' WHERE id = {ROW}")
    frontier = Frontier()
    for seq in (1, 2, 3):
        with archive.database.transaction():
            archive.database.execute(drainer.PLAIN)
            names = ", ".join(drainer.COLUMNS)
            leaves = drainer.hashed(
                archive.database,
                f"COPY (SELECT {names} FROM audit_event WHERE batch_seq = {seq} ORDER BY leaf_no) TO STDOUT",
            )
        for leaf in leaves:
            frontier.add(leaf)
        note = archive.seal.signer.note(Checkpoint(frontier.size, frontier.root()))
        archive.tamper(
            f"UPDATE audit_batch SET leaves = '\\x{b''.join(leaves).hex()}', frontier = '\\x{frontier.to_bytes().hex()}', "
            f"note = '{note}' WHERE seq = {seq}"
        )
    assert archive.alone().fault is None
    found = archive.look().fault
    assert found is not None
    assert (found.kind, found.batch) == ("rewritten", 2)


def test_a_witness_that_was_tampered_with_is_told(archive: Archive) -> None:
    path = archive.folder / "witness"
    path.write_text(path.read_text().replace("\n80\n", "\n81\n"))
    found = archive.look().fault
    assert found is not None
    assert found.kind == "signature"


def test_looking_since_an_instant_begins_with_the_batch_stored_then(archive: Archive) -> None:
    archive.tamper(f"UPDATE audit_event SET agent_name = 'Nobody' WHERE id = {ROW}")
    third = archive.one("SELECT stored_at FROM audit_batch WHERE seq = 3")
    report = verify(since=third)
    assert (report.fault, report.lines, report.batches, report.size) == (None, 40, 1, 120)
    found = verify(since=archive.one("SELECT stored_at FROM audit_batch WHERE seq = 2")).fault
    assert found is not None
    assert found.kind == "altered"
    nothing = verify(since=now())
    assert nothing.lines == 0


def test_a_witness_that_is_away_does_not_hold_up_the_trail(archive: Archive) -> None:
    tree.connect(archive.folder / "key.pem", f"file:{archive.folder / 'key.pem' / 'below-a-file'}")
    archive.write(3)
    assert archive.one("SELECT count(*) FROM audit_event") == 123
    assert archive.look().fault is None
    archive.write(1)
    assert len(list(archive.seal.witness.notes())) == 4


# ---- archives ------------------------------------------------------------------------------------------------------

OLD = date(2019, 5, 1)


def old_lines(archive: Archive, lines: int) -> None:
    """Lines of a month long ago, some of today's among them, as one batch."""
    archive.database.execute(
        "CREATE TABLE audit_event_201905 PARTITION OF audit_event FOR VALUES FROM ('2019-05-01Z') TO ('2019-06-01Z')"
    )
    events = []
    for number in range(lines):
        event = trail.event("R", "read", patient_id=number)
        if number % 5:
            event["recorded"] = f"2019-05-{1 + number % 30:02d}T10:00:00.{number:06d}+00:00"
        events.append(event)
    trail.the_trail().write(DOCTOR, events)
    drainer.drain()


def put_away(archive: Archive, **more: Any) -> put.Archive:
    folder = archive.folder / "away"
    return put.archive(archive.url, OLD, folder, **{"by": "an owner", "keep_months": 72, **more})


def test_an_archived_month_is_a_file_that_can_be_checked_and_the_trail_is_still_whole(archive: Archive) -> None:
    old_lines(archive, 50)
    made = put_away(archive)
    assert made.lines == 40
    assert hashlib.sha256(made.file.read_bytes()).digest() == made.digest
    assert stat.S_IMODE(made.file.stat().st_mode) == 0o600
    leaves = dict(put.read(made.file))
    kept = b"".join(bytes(row[0]) for row in archive.database.execute("SELECT leaves FROM audit_batch ORDER BY seq"))
    assert len(leaves) == 40
    assert all(kept[place * 32 : place * 32 + 32] == leaf for place, leaf in leaves.items())
    manifest = json.loads(next(made.file.parent.glob("*.json")).read_text())
    assert (manifest["lines"], manifest["sha256"]) == (40, made.digest.hex())
    assert archive.one("SELECT count(*) FROM audit_event") == 130
    assert archive.one("SELECT count(*) FROM audit_archived_201905") == 40
    report = verify()
    assert (report.fault, report.lines, report.archived, report.size) == (None, 130, 40, 170)
    archive.tamper("DELETE FROM audit_event WHERE batch_seq = 4 AND leaf_no = 5")
    found = verify().fault
    assert found is not None
    assert (found.kind, found.place) == ("missing", 5)


def test_a_month_that_does_not_fit_its_tree_is_not_let_go(archive: Archive) -> None:
    old_lines(archive, 50)
    archive.tamper("UPDATE audit_event SET agent_name = 'Nobody' WHERE recorded < '2020-01-01' AND leaf_no = 7")
    with pytest.raises(Conflict, match="Nothing was detached"):
        put_away(archive)
    assert archive.one("SELECT count(*) FROM audit_event") == 170
    assert not archive.one("SELECT count(*) FROM audit_archive")
    assert list((archive.folder / "away").iterdir()) == []


def test_what_must_stay_stays(archive: Archive) -> None:
    old_lines(archive, 10)
    for refused, more in ((Invalid, {"keep_months": 1200}), (Conflict, {})):
        if refused is Conflict:
            put_away(archive)
            archive.database.execute("ALTER TABLE audit_archived_201905 RENAME TO audit_event_201905")
            archive.database.execute(
                "ALTER TABLE audit_event ATTACH PARTITION audit_event_201905 FOR VALUES FROM ('2019-05-01Z') TO ('2019-06-01Z')"
            )
        with pytest.raises(refused):
            put_away(archive, **more)
    with pytest.raises(NotFound):
        put.archive(archive.url, date(2018, 1, 1), archive.folder, by="x", keep_months=1)


@pytest.mark.parametrize(
    ("today", "kept", "newest"),
    [
        ((2026, 11, 22), 1, (2026, 9)),
        ((2026, 1, 1), 1, (2025, 11)),
        ((2026, 2, 28), 12, (2025, 1)),
        ((2026, 12, 31), 72, (2020, 11)),
    ],
)
def test_the_newest_month_that_may_go(today: tuple[int, ...], kept: int, newest: tuple[int, int]) -> None:
    assert put.oldest_kept(kept, datetime(*today, 23, 59, tzinfo=UTC)) == date(*newest, 1)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_batch SET n = 40",
        "DELETE FROM audit_batch",
        "TRUNCATE audit_batch",
        "UPDATE audit_event SET leaf_no = 1",
    ],
)
def test_the_database_refuses_to_rewrite_batches(archive: Archive, statement: str) -> None:
    with pytest.raises(psycopg.errors.RestrictViolation):
        archive.database.execute(statement)
    assert verify().fault is None
