"""Old months of the trail, on request: written to a file, read back and checked, then detached from the table.

Never by itself: somebody types the command, as the owner of the database, and the trail says so.  The file holds a line
for each event: its place in the tree, a tab, and the text its leaf is the hash of, so it can be checked for ever.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from app import tree
from app.errors import Conflict, Invalid, NotFound
from app.services.checks import oldest_kept
from jobs.trail import COLUMNS, LOCK, PLAIN
from models.base import now

_names = ", ".join(f"e.{name}" for name in COLUMNS)
LINES = f"""
    COPY (SELECT b.tree_size - b.n + e.leaf_no, {_names} FROM {{table}} e JOIN audit_batch b ON b.seq = e.batch_seq
    ORDER BY 1) TO STDOUT
"""  # noqa: S608
PLACES = """
    SELECT coalesce(range_agg(int8range(b.tree_size - b.n + e.leaf_no, b.tree_size - b.n + e.leaf_no + 1)),
      '{{}}'::int8multirange), count(*) FROM {table} e JOIN audit_batch b ON b.seq = e.batch_seq
"""
BATCH_AT = "SELECT tree_size - n, leaves FROM audit_batch WHERE tree_size > %s ORDER BY tree_size LIMIT 1"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Archive:
    """A month on its way out."""

    month: date
    table: str
    file: Path
    lines: int
    digest: bytes


def archive(
    owner_url: str, month: date, folder: Path, *, by: str, keep_months: int, progress: Progress = lambda _d, _a: None
) -> Archive:
    """Write a month to `folder`, check what was written, and detach it from the trail.

    `keep_months` is how many whole months must stay. Raises Invalid for a month that must stay, NotFound for one that
    is not there, Conflict where the file exists or does not hold what the tree says; then nothing has changed.
    """
    month = month.replace(day=1)
    if month > oldest_kept(keep_months, now()):
        raise Invalid(f"The last {keep_months} whole months stay: {month:%Y-%m} cannot be archived yet.")
    table = f"audit_event_{month:%Y%m}"
    path = folder / f"wardbook-trail-{month:%Y-%m}.txt.gz"
    with psycopg.connect(owner_url.replace("+psycopg", ""), autocommit=True) as database:
        attached = "SELECT 1 FROM pg_inherits WHERE inhrelid = to_regclass(%s) AND inhparent = 'audit_event'::regclass"
        if database.execute(attached, [table]).fetchone() is None:
            raise NotFound(f"The trail has no month {month:%Y-%m}.")
        if path.exists():
            raise Conflict(f"{path} is there already: move it away first.")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        database.execute("SELECT pg_advisory_lock(%s)", [LOCK])  # no line comes in meanwhile
        total = _one(database, sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))[0]
        unfinished = path.with_name(f".{path.name}.part")
        try:
            with database.transaction():
                database.execute(PLAIN)
                lines = _write(database, table, unfinished, total, progress)
            if lines != total:
                raise Conflict(f"{total - lines} lines of {month:%Y-%m} belong to no batch yet: archive it later.")
            _check(database, unfinished)
            unfinished.replace(path)
            digest = hashlib.sha256(path.read_bytes()).digest()
            manifest = {
                "month": f"{month:%Y-%m}",
                "columns": ["place", *COLUMNS],
                "lines": lines,
                "sha256": digest.hex(),
                "archived_at": now().isoformat(),
                "archived_by": by,
                "checkpoint": _one(database, sql.SQL("SELECT note FROM audit_batch ORDER BY seq DESC LIMIT 1"))[0],
                "key": tree.the_seal().signer.text,
            }
            path.with_suffix("").with_suffix(".json").write_text(json.dumps(manifest, indent=2) + "\n")
            made = Archive(month, table, path, lines, digest)
            with database.transaction():
                _let_go(database, made, by)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    return made


def _one(database: psycopg.Connection[Any], query: sql.SQL | sql.Composed) -> Any:
    row = database.execute(query).fetchone()
    return row if row is not None else (None,)


def _write(database: psycopg.Connection[Any], table: str, path: Path, total: int, progress: Progress) -> int:
    """Write the lines, and have them on disk; gives how many there were."""
    count = 0
    with path.open("wb") as raw:
        os.fchmod(raw.fileno(), 0o600)
        with (
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file,
            database.cursor() as cursor,
            cursor.copy(sql.SQL(LINES).format(table=sql.Identifier(table))) as copy,
        ):
            for line in copy:
                file.write(bytes(line))
                count += 1
                if count % 10_000 == 0:
                    progress(count, total)
        raw.flush()
        os.fsync(raw.fileno())
    progress(count, total)
    return count


def read(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of an archive: (place in the tree, leaf). Raises OSError where the file is torn."""
    with gzip.open(path, "rb") as file:
        for line in file:
            place, _, canonical = line.partition(b"\t")
            yield int(place), tree.leaf_of(canonical)


def _check(database: psycopg.Connection[Any], path: Path) -> None:
    """Read the file back, and compare every line with its leaf in the tree. Raises Conflict where one differs."""
    start, leaves = 0, b""
    for place, leaf in read(path):
        if not start <= place < start + len(leaves) // tree.HASH:
            found = database.execute(BATCH_AT, [place]).fetchone()
            start, leaves = (0, b"") if found is None else (found[0], bytes(found[1]))
        at = (place - start) * tree.HASH
        if leaves[at : at + tree.HASH] != leaf:
            raise Conflict(f"Line {place} is not what the tree says: verify the trail. Nothing was detached.")


def _let_go(database: psycopg.Connection[Any], made: Archive, by: str) -> None:
    """Note the archive, and detach the month; its table stays under another name until somebody drops it."""
    table = sql.Identifier(made.table)
    places, lines = _one(database, sql.SQL(PLACES).format(table=table))
    said = tree.text_of_archive(made.month, lines, made.digest, [(each.lower, each.upper) for each in places])
    note = tree.the_seal().signer.signed(said)
    database.execute(
        "INSERT INTO audit_archive (month, file, sha256, lines, leaves, archived_by, note) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [made.month, made.file.name, made.digest, lines, places, by, note],
    )
    database.execute(sql.SQL("ALTER TABLE audit_event DETACH PARTITION {}").format(table))
    archived = sql.Identifier(made.table.replace("audit_event_", "audit_archived_"))
    database.execute(sql.SQL("ALTER TABLE {} RENAME TO {}").format(table, archived))


__all__ = ["Archive", "archive", "oldest_kept", "read"]
