"""Whether the trail is whole: every line where its batch says, every batch in the tree, every checkpoint as witnessed.

The lines are hashed anew from the database and compared with the leaves kept of them, the leaves with the signed
roots, and the roots with what the witness was told.  The first thing that does not fit is named.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
import structlog

from app import guard, tree
from app.events import TrailCheckAsked, on
from app.services import checks
from app.tree import Frontier
from jobs.base import every, job
from jobs.trail import COLUMNS, PLAIN

log = structlog.get_logger(__name__)

CHUNK = 50_000
"""Lines looked at in one query, at least a batch."""

_names = ", ".join(COLUMNS)
BATCHES = """
    SELECT seq, n, tree_size, leaves, frontier, note, stored_at FROM audit_batch WHERE seq >= %s ORDER BY seq LIMIT %s
"""
LINES = f"""
    COPY (SELECT batch_seq, leaf_no, {_names} FROM audit_event WHERE batch_seq BETWEEN {{}} AND {{}}
    ORDER BY batch_seq, leaf_no) TO STDOUT
"""  # noqa: S608
EARLIER = f"""
    COPY (SELECT batch_seq, row_number() OVER (ORDER BY recorded, id) - 1, {_names} FROM audit_event
    WHERE batch_seq = 0 ORDER BY recorded, id) TO STDOUT
"""  # noqa: S608
FIRST = """
    SELECT coalesce(min(seq) FILTER (WHERE stored_at >= %s), max(seq) + 1, 0) FROM audit_batch
"""
ARCHIVES = "SELECT month, lines, sha256, leaves, note FROM audit_archive"
TOTAL = "SELECT coalesce(sum(n), 0) FROM audit_batch WHERE seq >= %s"
BEYOND = "SELECT id::text FROM audit_event WHERE batch_seq > %s OR batch_seq < %s ORDER BY batch_seq, leaf_no LIMIT 1"

Progress = Callable[[int, int], None]
"""Told how many lines have been looked at, of how many."""


@dataclass(frozen=True)
class Fault:
    """The first thing that does not fit."""

    kind: str
    """altered, missing, reordered, added, batch, signature, rewritten, truncated, archive."""
    sentence: str
    batch: int | None = None
    place: int | None = None
    """In the batch, from 0."""
    event_id: str | None = None


@dataclass
class Report:
    """What was looked at, and what was found."""

    lines: int = 0
    batches: int = 0
    archived: int = 0
    """Lines that were archived, and are not looked for here."""
    size: int = 0
    """Leaves of the whole tree."""
    root: bytes = b""
    witnessed: int = 0
    """Checkpoints that agreed with the witness."""
    fault: Fault | None = None


@dataclass(frozen=True)
class Stored:
    """A batch as the database has it."""

    seq: int
    n: int
    tree_size: int
    leaves: bytes
    frontier: bytes
    note: str
    stored_at: datetime


class Broken(Exception):
    """Carries the first fault out of the search."""

    def __init__(self, kind: str, sentence: str, **more: Any) -> None:
        super().__init__(sentence)
        self.fault = Fault(kind, sentence, **more)


@dataclass
class Search:
    """One run through the trail, in one snapshot of the database."""

    database: psycopg.Connection[Any]
    seal: tree.Seal
    progress: Progress
    report: Report = field(default_factory=Report)
    frontier: Frontier = field(default_factory=Frontier)
    archived: list[tuple[int, int]] = field(default_factory=list)
    told: dict[int, bytes] = field(default_factory=dict)
    """What the witness was told: size of the tree -> root."""

    def run(self, since: datetime | None) -> None:
        """Look through everything from the batch that was stored at `since`. Raises Broken."""
        self.database.execute(PLAIN)
        # Before the first look into the database, or it would be told of batches that this snapshot does not have.
        self._hear_the_witness()
        first = self._begin(since)
        self._load_archives()
        (total,) = self._one(TOTAL, first)
        expected, lowest, together = first, -1, 0
        batches: list[Stored] = []
        for batch in self._batches(first):
            if batch.seq != expected and not (expected == 0 and batch.seq == 1):
                raise Broken("batch", f"Batch {expected} is missing, with every line in it.", batch=expected)
            lowest = batch.seq if lowest < 0 else lowest
            expected = batch.seq + 1
            batches.append(batch)
            together += batch.n
            if together >= CHUNK:
                self._look(batches, total)
                batches, together = [], 0
        self._look(batches, total)
        self._end(lowest if since is None else 0, expected - 1, whole=since is None)

    def _one(self, query: str, *values: object) -> Any:
        return self.database.execute(query.encode(), values).fetchone()

    def _begin(self, since: datetime | None) -> int:
        """The number of the first batch to look at; the tree before it is taken from its predecessor's checkpoint."""
        if since is None:
            if (odd := self._one("SELECT min(seq) FROM audit_batch WHERE seq < 0")[0]) is not None:
                raise Broken("batch", f"Batch {odd} was put before the first one.", batch=odd)
            return 0
        (first,) = self._one(FIRST, since)
        before = self._one("SELECT tree_size, frontier, note FROM audit_batch WHERE seq = %s", first - 1)
        if before is not None:
            said = self._read(before[2], first - 1)
            other = f"The tree before batch {first} is not the one that was signed."
            try:
                self.frontier = Frontier.from_bytes(before[0], bytes(before[1]))
            except ValueError as error:
                raise Broken("batch", other, batch=first - 1) from error
            if (said.size, said.root) != (before[0], self.frontier.root()):
                raise Broken("batch", other, batch=first - 1)
        return int(first)

    def _batches(self, first: int) -> Iterator[Stored]:
        while True:
            found = self.database.execute(BATCHES, [first, 200]).fetchall()
            yield from (Stored(*row) for row in found)
            if len(found) < 200:
                return
            first = found[-1][0] + 1

    def _hear_the_witness(self) -> None:
        for note in self.seal.witness.notes():
            try:
                said = self.seal.signer.read(note)
            except ValueError as error:
                raise Broken("signature", f"The witness has a checkpoint that is not ours: {error}.") from error
            if self.told.setdefault(said.size, said.root) != said.root:
                raise Broken("rewritten", f"The witness was told two different trees of {said.size} lines.")

    def _load_archives(self) -> None:
        for month, lines, digest, ranges, note in self.database.execute(ARCHIVES):
            places = [(each.lower, each.upper) for each in ranges]
            other = f"What is noted of the archive of {month:%Y-%m} is not what was signed."
            try:
                signed = self.seal.signer.opened(note)
            except ValueError as error:
                raise Broken("archive", other) from error
            if any(None in place for place in places) or signed != tree.text_of_archive(month, lines, digest, places):
                raise Broken("archive", other)
            self.archived += places
        self.archived.sort()

    def _is_archived(self, place: int) -> bool:
        at = bisect_right(self.archived, (place, 2**63)) - 1
        return at >= 0 and self.archived[at][0] <= place < self.archived[at][1]

    def _read(self, note: str, seq: int) -> tree.Checkpoint:
        try:
            return self.seal.signer.read(note)
        except ValueError as error:
            raise Broken("signature", f"The checkpoint of batch {seq} does not hold: {error}.", batch=seq) from error

    def _look(self, batches: list[Stored], total: int) -> None:
        """Compare some batches with their lines and with the tree."""
        if not batches:
            return
        if batches[0].seq == 0:
            self._look_at(batches[:1], EARLIER)
            batches = batches[1:]
        if batches:
            self._look_at(batches, LINES.format(batches[0].seq, batches[-1].seq))
        self.progress(self.report.lines + self.report.archived, total)

    def _look_at(self, batches: list[Stored], query: str) -> None:
        with self.database.cursor() as cursor, cursor.copy(query.encode()) as copy:
            lines = (bytes(line).split(b"\t", 2) for line in copy)
            line = next(lines, None)
            for batch in batches:
                leaves = self._leaves_of(batch)
                start = self.frontier.size
                at = 0
                while line is not None and int(line[0]) == batch.seq:
                    place = int(line[1])
                    self._nothing_missing(batch, at, min(place, batch.n), start)
                    self._fits(batch, leaves, place, line[2], seen=place < at)
                    at = place + 1
                    self.report.lines += 1
                    line = next(lines, None)
                self._nothing_missing(batch, at, batch.n, start)
                self._in_the_tree(batch, leaves)
                self.report.batches += 1
            if line is not None:
                raise Broken(
                    "added",
                    f"A line stands in batch {int(line[0])}, which does not exist.",
                    batch=int(line[0]),
                    event_id=identity(line[2])[0],
                )

    def _leaves_of(self, batch: Stored) -> list[bytes]:
        try:
            leaves = list(tree.split(bytes(batch.leaves)))
        except ValueError:
            leaves = []
        if len(leaves) != batch.n:
            raise Broken("batch", f"Batch {batch.seq} is not the one that was signed.", batch=batch.seq)
        return leaves

    def _nothing_missing(self, batch: Stored, at: int, until: int, start: int) -> None:
        for place in range(at, until):
            if not self._is_archived(start + place):
                raise Broken(
                    "missing",
                    f"Line {place + 1} of batch {batch.seq}, stored {batch.stored_at:%Y-%m-%d %H:%M:%S}, is missing.",
                    batch=batch.seq,
                    place=place,
                )
            self.report.archived += 1

    def _fits(self, batch: Stored, leaves: list[bytes], place: int, canonical: bytes, *, seen: bool) -> None:
        """Raises Broken where a line is not the one that was stored in its place."""
        leaf = tree.leaf_of(canonical)
        if not seen and place < batch.n and leaf == leaves[place]:
            return
        event_id, recorded = identity(canonical)
        of = f"The line {event_id} of {recorded}"
        more = {"batch": batch.seq, "place": place, "event_id": event_id}
        if seen or place >= batch.n:
            raise Broken("added", f"{of} was added to batch {batch.seq} afterwards.", **more)
        if leaf in leaves:
            raise Broken("reordered", f"{of} is not in its own place in batch {batch.seq}.", **more)
        raise Broken("altered", f"{of} was altered after it was stored.", **more)

    def _in_the_tree(self, batch: Stored, leaves: list[bytes]) -> None:
        """Raises Broken where a batch's leaves do not lead to the root that was signed and witnessed."""
        for leaf in leaves:
            self.frontier.add(leaf)
        root, size = self.frontier.root(), self.frontier.size
        said = self._read(batch.note, batch.seq)
        if (size, root) != (batch.tree_size, said.root) or said.size != size:
            raise Broken("batch", f"Batch {batch.seq} is not the one that was signed.", batch=batch.seq)
        if self.frontier.to_bytes() != bytes(batch.frontier):
            raise Broken("batch", f"The edge of the tree kept with batch {batch.seq} was altered.", batch=batch.seq)
        if size in self.told:
            if self.told.pop(size) != root:
                raise Broken(
                    "rewritten",
                    f"The witness knows another tree at batch {batch.seq}: the trail was written anew there or before.",
                    batch=batch.seq,
                )
            self.report.witnessed += 1
        self.report.size, self.report.root = size, root

    def _end(self, lowest: int, highest: int, *, whole: bool) -> None:
        """Raises Broken where lines belong to no batch, or the witness knows of more than there is."""
        if highest >= 0 and (beyond := self._one(BEYOND, highest, lowest)) is not None:
            raise Broken("added", f"The line {beyond[0]} belongs to no batch.", event_id=beyond[0])
        size = self.frontier.size
        if whole and any(told <= size for told in self.told):
            raise Broken("rewritten", "The witness knows of a batch that is not there: the trail was written anew.")
        if self.told and max(self.told) > size:
            raise Broken(
                "truncated",
                f"The trail ends after {size} lines, and the witness knows of {max(self.told)}: its end was cut off.",
            )


def identity(canonical: bytes) -> tuple[str, str]:
    """The id and the instant of a line, from its canonical form."""
    event_id, recorded, _ = canonical.split(b"\t", 2)
    return event_id.decode(), recorded.decode()


def verify(since: datetime | None = None, progress: Progress = lambda _done, _all: None) -> Report:
    """Look through the trail, or what was stored since an instant; the report names the first fault.

    Raises RuntimeError where this process has no key, and SQLAlchemyError where PostgreSQL does not answer.
    """
    with guard.engine().connect() as connection:
        database = connection.connection.driver_connection
        assert database is not None
        with database.transaction():
            database.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            search = Search(database, tree.the_seal(), progress)
            try:
                search.run(since)
            except Broken as broken:
                search.report.fault = broken.fault
    return search.report


# ---- as a job ------------------------------------------------------------------------------------------------------

LONGEST = 12 * 3600
"""Seconds one check may take."""
STEP = 1.0
"""Seconds between two times it says how far it has come."""


class Closed(Exception):
    """The check was closed meanwhile: nobody waits for it any more."""


@on(TrailCheckAsked)
def begin(event: TrailCheckAsked) -> None:
    """Leave it to the queue of its own, where it holds up nothing else."""
    check.later(event.check_id)


@job(queue="checks", retry=None, timeout=LONGEST, service="checks")
def check(number: int) -> None:
    """Look through the trail for a check somebody asked for, and write down what it came to."""
    with guard.unit_of_work() as session:
        asked = checks.beat(session, number)
    if asked is None:
        return
    told = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done >= total or time.monotonic() - told >= STEP:
            told = time.monotonic()
            with guard.unit_of_work() as session:
                if checks.beat(session, number, done, total) is None:
                    raise Closed

    whole: bool | None = None
    try:
        report = verify(asked.since, tell)
    except Closed:
        return
    except Exception as error:
        log.exception("trail.check_failed", error=type(error).__name__)
        said, kind = (
            "It could not be brought to its end, so it says nothing about the trail. See the worker's log.",
            None,
        )
    else:
        whole, kind = report.fault is None, report.fault.kind if report.fault else None
        said = report.fault.sentence if report.fault else in_words(report)
    with guard.unit_of_work() as session:
        checks.finish(session, number, whole=whole, sentence=said, kind=kind)


def in_words(report: Report) -> str:
    """What was looked at, where all of it was well."""
    said = f"{report.lines:,} lines in {report.batches:,} batches are as they were written"
    if report.archived:
        said += f", and {report.archived:,} archived ones were left out"
    return f"{said}. {report.witnessed:,} checkpoints agree with the witness."


@every(seconds=3600)
@job(queue="checks", retry=None, timeout=LONGEST, service="checks")
def daily() -> None:
    """The day's check, if it is due."""
    with guard.unit_of_work() as session:
        due = checks.by_the_clock(session)
        number = due.id if due else None
    if number is not None:
        check(number)


__all__ = ["Fault", "Report", "check", "daily", "verify"]
