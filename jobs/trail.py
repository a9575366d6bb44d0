"""The audit trail's second half: lines move from the stream, the outbox and the spool into audit_event.

One drainer at a time, by a lock of PostgreSQL.  Rows are committed first and let go of at their source afterwards, so
a drainer may be killed anywhere: what comes twice is told by its id.  What cannot be read is kept in quarantine.
"""

from __future__ import annotations

import fcntl
import ipaddress
import mmap
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID
from zlib import crc32

import msgspec
import psycopg
import redis
import structlog
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError

from app import guard, trail, tree
from app.tree import Checkpoint, Frontier
from jobs.base import every, job
from models.base import now

log = structlog.get_logger(__name__)

BATCH = 5000
"""Lines moved in one transaction."""
CHUNK = 500
"""Entries asked of Redis at once."""
LOCK = 0x5761726462_01
"""The advisory lock of the one drainer."""
BUDGET = 60.0
"""Seconds one run goes on while there is a backlog; the next tick continues."""
SETTLED = 10.0
"""Seconds an abandoned spool file has been left alone before it is taken, so that none is taken while being made."""
MONTHS_AHEAD = 2

Small = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Big = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class Agent(msgspec.Struct, rename=trail.AGENT):
    """Who, from where and why: shared by the lines of one entry (app.trail.agent)."""

    agent_name: str
    roles: list[str]
    purpose: str
    channel: str
    user_id: Small | None = None
    branch_id: Big | None = None
    address: str | None = None
    user_agent: str | None = None
    session_id: str | None = None
    request_id: str | None = None


class Line(msgspec.Struct, rename=trail.LINE):
    """One line (app.trail.event)."""

    id: UUID
    recorded: Annotated[datetime, msgspec.Meta(tz=True)]
    type: str
    subtype: str
    action: Literal["C", "R", "U", "D", "E"]
    outcome: Literal[0, 4, 8, 12]
    entities: list[dict[str, Any]]
    patient_id: Big | None = None
    query: str | None = None
    reason: str | None = None
    purpose: str | None = None
    """Where it is another one than the agent's."""


class Entry(msgspec.Struct):
    """What one write to the trail holds, unread but for its two halves."""

    agent: msgspec.Raw
    events: list[msgspec.Raw]


read_entry = msgspec.json.Decoder(Entry).decode
read_agent = msgspec.json.Decoder(Agent).decode
read_line = msgspec.json.Decoder(Line).decode
to_json = msgspec.json.Encoder().encode

COLUMNS = (
    *("id", "recorded", "type", "subtype", "action", "outcome"),
    *("user_id", "agent_name", "roles", "branch_id", "channel"),
    *("address", "user_agent", "session_id", "request_id"),
    *("purpose", "patient_id", "entities", "query", "reason"),
)
_names = ", ".join(COLUMNS)
PLAIN = "SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO, YMD'"
"""How PostgreSQL writes a row as text must not depend on whose session it is: that text is what is hashed."""
ARRIVING = (
    "CREATE TEMP TABLE arriving (LIKE audit_event INCLUDING CONSTRAINTS, ord int) ON COMMIT DELETE ROWS",
    "ALTER TABLE arriving DROP COLUMN batch_seq, DROP COLUMN leaf_no",
)
COPY = f"COPY arriving ({_names}, ord) FROM STDIN"
ONE = f"INSERT INTO arriving ({_names}, ord) VALUES ({', '.join(['%s'] * (len(COLUMNS) + 1))})"  # noqa: S608
KNOWN = "DELETE FROM arriving a USING audit_event e WHERE e.id = a.id AND e.recorded = a.recorded"
_said = [("{}.entities::text" if name == "entities" else f"{{}}.{name}") for name in COLUMNS]
OTHERS = f"""
    SELECT a.ord FROM arriving a JOIN audit_event e ON e.id = a.id AND e.recorded = a.recorded
    WHERE ({", ".join(each.format("a") for each in _said)}) IS DISTINCT FROM
      ({", ".join(each.format("e") for each in _said)})
"""  # noqa: S608
"""Lines that bear the id of one in the trail and say something else."""
BY_INDEX = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off"
"""What is known is looked up line by line: a plan that reads months of the trail for one batch would never do."""
CANONICAL = f"COPY (SELECT {_names} FROM arriving ORDER BY ord) TO STDOUT"  # noqa: S608
TAKE = f"""
    INSERT INTO audit_event ({_names}, batch_seq, leaf_no)
    SELECT {_names}, %s, row_number() OVER (ORDER BY ord) - 1 FROM arriving ON CONFLICT DO NOTHING
"""  # noqa: S608
EARLIER = f"""
    COPY (SELECT {_names} FROM audit_event WHERE batch_seq = 0 ORDER BY recorded, id) TO STDOUT
"""  # noqa: S608
LAST = "SELECT seq, tree_size, frontier FROM audit_batch ORDER BY seq DESC LIMIT 1"
END = """
    INSERT INTO audit_batch (seq, n, tree_size, leaves, frontier, note) VALUES (%s, %s, %s, %s, %s, %s)
"""
SET_ASIDE = """
    INSERT INTO audit_quarantine (source, payload, reason, found_at)
    SELECT %(source)s::text, %(payload)s::text, %(reason)s::text, now()
    WHERE NOT EXISTS (SELECT FROM audit_quarantine WHERE source = %(source)s AND payload = %(payload)s)
"""

REFUSED = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
)
"""What the database says of a row it will never take."""

TAKEN = "another line has this id and this instant"
NULL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""A null character in JSON, and not the six characters somebody typed."""

Row = tuple[Any, ...]
Bytes = bytes | mmap.mmap


@dataclass
class Batch:
    """Lines on their way into the database."""

    rows: list[Row] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """Where each row came from."""
    known: dict[tuple[UUID, datetime], Row] = field(default_factory=dict)
    """The rows by what they are told apart by: the same line twice is one row."""
    unreadable: list[dict[str, str]] = field(default_factory=list)

    def take(self, payload: bytes, source: str) -> None:
        """Read one entry; whatever in it cannot be read goes to quarantine, the rest of it does not."""
        try:
            entry = read_entry(payload)
            who = columns_of(read_agent(entry.agent))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self.set_aside(payload, source, error)
            return
        for raw in entry.events:
            try:
                line = read_line(raw)
                row = row_of(line, who)
                known = self.known.setdefault((line.id, line.recorded), row)
                if known is row:
                    self.rows.append(row)
                    self.sources.append(source)
                elif known != row:
                    raise ValueError(TAKEN)
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                self.set_aside(b'{"agent":' + bytes(entry.agent) + b',"events":[' + bytes(raw) + b"]}", source, error)

    def set_aside(self, payload: bytes, source: str, error: Exception) -> None:
        """Keep what could not be read."""
        text = payload.decode("utf-8", errors="backslashreplace").replace("\0", "\\x00")
        self.unreadable.append({"source": source, "payload": text, "reason": type(error).__name__ + ": " + str(error)})

    def __len__(self) -> int:
        return len(self.rows) + len(self.unreadable)


def columns_of(agent: Agent) -> Row:
    """An agent's columns, the purpose last. Raises ValueError where the database would refuse one."""
    address = agent.address
    if address is not None:
        ipaddress.ip_address(address)
        if "%" in address:
            raise ValueError("an address with a zone")
    texts = (agent.agent_name, agent.purpose, agent.channel, agent.user_agent, agent.session_id, agent.request_id)
    plain(*texts, *agent.roles)
    return (
        *(agent.user_id, agent.agent_name, agent.roles, agent.branch_id, agent.channel),
        *(address, agent.user_agent, agent.session_id, agent.request_id),
        agent.purpose,
    )


def row_of(line: Line, who: Row) -> Row:
    """A row of audit_event, in the order of COLUMNS. Raises ValueError where the database would refuse it."""
    plain(line.type, line.subtype, line.query, line.reason, line.purpose)
    entities = to_json(line.entities).decode()
    if NULL.search(entities):
        raise ValueError("a null character")
    return (
        *(line.id, line.recorded, line.type, line.subtype, line.action, line.outcome),
        *who[:-1],
        line.purpose or who[-1],
        *(line.patient_id, entities, line.query, line.reason),
    )


def plain(*texts: str | None) -> None:
    """Raises ValueError where a text has a character PostgreSQL does not take."""
    if any(text is not None and "\0" in text for text in texts):
        raise ValueError("a null character")


# ---- into the database -------------------------------------------------------------------------------------------


def store(database: psycopg.Connection[Any], batch: Batch) -> str | None:
    """Write a batch within the caller's transaction, with its leaves; gives the signed checkpoint, if a line is new."""
    for unreadable in batch.unreadable:
        database.execute(SET_ASIDE, unreadable)
    if batch.unreadable:
        log.error("trail.quarantined", entries=len(batch.unreadable), first=batch.unreadable[0]["source"])
    note, new = None, 0
    if batch.rows:
        database.execute(PLAIN)
        arrive(database, batch)
        note, new = take(database)
        if note is None and new:  # some of them are here already
            database.execute(BY_INDEX)
            for (number,) in database.execute(OTHERS).fetchall():
                set_aside(database, batch, number, TAKEN)
            database.execute(KNOWN)
            note, new = take(database)
        database.execute("DELETE FROM arriving")
    database.execute("UPDATE audit_drain SET drained_at = now(), events = events + %s WHERE id = 1", [new])
    return note


def take(database: psycopg.Connection[Any]) -> tuple[str | None, int]:
    """Make the lines that have arrived a batch: gives its checkpoint, and how many they are.

    If only one of them is in the trail already, nothing is done and there is no checkpoint: leaves stand for new lines.
    """
    note: str | None = None
    with database.transaction() as attempt:
        seq, frontier = anchored(database)
        leaves = hashed(database, CANONICAL)
        if leaves:
            note = end_batch(database, seq + 1, frontier, leaves)
            if database.execute(TAKE, [seq + 1]).rowcount < len(leaves):
                note = None
                raise psycopg.Rollback(attempt)
    return note, len(leaves)


def arrive(database: psycopg.Connection[Any], batch: Batch) -> None:
    """Have the rows of a batch in the temporary table, each once."""
    there = database.execute("SELECT to_regclass('pg_temp.arriving')").fetchone()
    if there is None or there[0] is None:
        for statement in ARRIVING:
            database.execute(statement)
    try:
        with database.transaction(), database.cursor() as cursor, cursor.copy(COPY) as copy:
            for number, row in enumerate(batch.rows):
                copy.write_row((*row, number))
    except REFUSED as error:
        log.error("trail.batch_refused", error=type(error).__name__)
        arrive_singly(database, batch)


def arrive_singly(database: psycopg.Connection[Any], batch: Batch) -> None:
    """Let a batch arrive row by row, for there is one in it the database refuses: that one goes to quarantine."""
    for number, row in enumerate(batch.rows):
        try:
            with database.transaction():
                database.execute(ONE, (*row, number))
        except REFUSED as error:
            set_aside(database, batch, number, f"{type(error).__name__}: {error.diag.message_primary or ''}")


def set_aside(database: psycopg.Connection[Any], batch: Batch, number: int, reason: str) -> None:
    """Keep a row of a batch that does not go into the trail."""
    source = batch.sources[number]
    payload = to_json(dict(zip(COLUMNS, batch.rows[number], strict=True))).decode()
    database.execute(SET_ASIDE, {"source": source, "payload": payload, "reason": reason})
    log.error("trail.quarantined", source=source)


def hashed(database: psycopg.Connection[Any], query: str) -> list[bytes]:
    """The leaves of the lines a COPY gives, in its order; PostgreSQL sends a line a message."""
    with database.cursor() as cursor, cursor.copy(query.encode()) as copy:
        return [tree.leaf_of(bytes(line)) for line in copy]


def anchored(database: psycopg.Connection[Any]) -> tuple[int, Frontier]:
    """The last batch's number, and the tree as it was with it. Lines from before there were batches become batch 0."""
    last = database.execute(LAST).fetchone()
    if last is not None:
        return last[0], Frontier.from_bytes(last[1], last[2])
    frontier, leaves = Frontier(), hashed(database, EARLIER)
    if leaves:
        end_batch(database, 0, frontier, leaves)
    return 0, frontier


def end_batch(database: psycopg.Connection[Any], seq: int, frontier: Frontier, leaves: list[bytes]) -> str:
    """Add a batch's leaves to the tree and write down the batch; gives the signed checkpoint."""
    for leaf in leaves:
        frontier.add(leaf)
    note = tree.the_seal().signer.note(Checkpoint(frontier.size, frontier.root()))
    edge = frontier.to_bytes()
    database.execute(END, [seq, len(leaves), frontier.size, b"".join(leaves), edge, note])
    return note


def witnessed(note: str | None) -> None:
    """Give a checkpoint to the witness, after the commit. One that cannot take it is told again with the next."""
    if note is not None:
        try:
            tree.the_seal().witness.take(note)
        except OSError as error:
            log.error("trail.witness_away", error=type(error).__name__)


@contextmanager
def alone() -> Iterator[psycopg.Connection[Any] | None]:
    """A connection that holds the drainer's lock, or None where another drainer has it."""
    with guard.engine().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        database = connection.connection.driver_connection
        assert database is not None
        try:
            row = database.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone()
            if not row[0]:
                yield None
                return
            yield database
            database.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
        except BaseException:
            connection.invalidate()  # the lock goes with the connection
            raise


_partitions_made: dict[Any, str] = {}


def ensure_partitions(database: psycopg.Connection[Any]) -> None:
    """Have a partition for this month and the next, once a day. Without one, lines go to the default partition."""
    today = f"{now():%Y-%m-%d}"
    if _partitions_made.get(database.info.dsn) == today:
        return
    try:
        database.execute("SELECT wb_audit_partitions(%s)", [MONTHS_AHEAD])
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        log.error("trail.partitions_failed", error=type(error).__name__)
    _partitions_made[database.info.dsn] = today


# ---- from the three sources --------------------------------------------------------------------------------------


def drain_outbox(database: psycopg.Connection[Any]) -> int:
    """Move the lines of changes; gives how many were there."""
    note = None
    with database.transaction():
        found = database.execute("SELECT id, event::text FROM audit_outbox ORDER BY id LIMIT %s", [BATCH]).fetchall()
        if found:
            batch = Batch()
            for key, payload in found:
                batch.take(payload.encode(), f"outbox {key}")
            note = store(database, batch)
            database.execute("DELETE FROM audit_outbox WHERE id = ANY(%s)", [[key for key, _ in found]])
    witnessed(note)
    return len(found)


def drain_stream(database: psycopg.Connection[Any]) -> int:
    """Move the oldest lines of the stream; gives how many were there. They leave it once they are committed."""
    stream = trail.the_trail().reader
    batch, keys = Batch(), list[bytes]()
    start = "-"
    while len(batch) < BATCH:
        entries: Any = stream.xrange(trail.STREAM, min=start, count=CHUNK)
        for key, fields in entries:
            source = f"stream {key.decode()}"
            if set(fields) == {b"e"}:
                batch.take(fields[b"e"], source)
            else:
                batch.set_aside(repr(fields).encode(), source, ValueError("not an entry of the trail"))
            keys.append(key)
        if len(entries) < CHUNK:
            break
        start = f"({entries[-1][0].decode()}"
    if keys:
        with database.transaction():
            note = store(database, batch)
        witnessed(note)
        stream.xdel(trail.STREAM, *keys)
    return len(keys)


def drain_spool(database: psycopg.Connection[Any], directory: Path) -> int:
    """Move the lines of every file whose writer is done with it, or dead; gives how many there were."""
    count = 0
    for path in sorted([*directory.glob("*.done"), *directory.glob("*.open")]):
        # A writer may rename or end its file at any moment; the next run finds it.
        with suppress(FileNotFoundError), path.open("rb") as file:
            if path.suffix == ".open" and not abandoned(file.fileno()):
                continue
            if os.fstat(file.fileno()).st_size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    count += drain_file(database, content, path.stem)
            path.unlink()
    return count


def abandoned(file: int) -> bool:
    """Whether the writer of an open spool file is gone: nobody holds its lock, and nobody touched it of late."""
    if time.time() - os.fstat(file).st_mtime < SETTLED:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def drain_file(database: psycopg.Connection[Any], content: Bytes, name: str) -> int:
    """Move the lines of one file; gives how many there were."""
    batch, count = Batch(), 0
    for offset, payload, whole in frames(content):
        source = f"spool {name} {offset}"
        if whole:
            batch.take(payload, source)
        else:
            batch.set_aside(payload, source, ValueError("a torn frame"))
        if len(batch) >= BATCH:
            count += len(batch)
            with database.transaction():
                note = store(database, batch)
            witnessed(note)
            batch = Batch()
    with database.transaction():
        note = store(database, batch)
    witnessed(note)
    return count + len(batch)


def frames(content: Bytes) -> Iterator[tuple[int, bytes, bool]]:
    """The frames of a spool file as (offset, payload, True), and what lies between them as (offset, bytes, False).

    A torn tail was never acknowledged. Should a disk have torn the middle, what follows is found by how entries begin.
    """
    offset = 0
    while offset < len(content):
        if (payload := frame_at(content, offset)) is not None:
            yield offset, payload, True
            offset += 8 + len(payload)
            continue
        following = offset + 1
        while True:
            found = content.find(b'{"agent":', following + 8)
            if found < 0:
                yield offset, content[offset:], False
                return
            if frame_at(content, found - 8) is not None:
                yield offset, content[offset : found - 8], False
                offset = found - 8
                break
            following = found - 7


def frame_at(content: Bytes, offset: int) -> bytes | None:
    """The payload of the frame [length, crc32, payload] that begins here, or None where none does."""
    length = int.from_bytes(content[offset : offset + 4], "big")
    payload = content[offset + 8 : offset + 8 + length]
    if not length or len(payload) < length or crc32(payload) != int.from_bytes(content[offset + 4 : offset + 8], "big"):
        return None
    return payload


# ---- the job -----------------------------------------------------------------------------------------------------


@every(seconds=5)
@job(queue="audit", retry=None, timeout=600)
def drain() -> None:
    """Move everything there is to move. A source that fails keeps what it has until the next run."""
    until = time.monotonic() + BUDGET
    try:
        with alone() as database:
            if database is None:
                return
            ensure_partitions(database)
            database.execute("UPDATE audit_drain SET drained_at = now() WHERE id = 1")
            drain_spool(database, trail.the_trail().spool.directory)
            stream_answers = True
            while time.monotonic() < until:
                changes, reads = drain_outbox(database), 0
                if stream_answers:
                    try:
                        reads = drain_stream(database)
                    except redis.RedisError as error:
                        stream_answers = False
                        log.warning("trail.stream_away", error=type(error).__name__)
                if changes < BATCH and reads < CHUNK:
                    return
    except (psycopg.OperationalError, psycopg.InterfaceError, OperationalError, InterfaceError, TimeoutError) as error:
        log.warning("trail.database_away", error=type(error).__name__)


__all__ = ["drain"]
