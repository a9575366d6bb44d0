"""Looks over an installation and says, a sentence each, what is wrong and what to do about it."""

import os
import re
import shutil
import sys
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

POSTGRES_OLDEST = 18
EXTENSIONS = ("btree_gist", "pg_trgm", "unaccent")
ROOM_BYTES = 2_000_000_000
OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was seen, and, unless it is well, the remedy. A warning does not fail the check."""

    seen: str
    remedy: str = ""
    warning: bool = False

    @property
    def wrong(self) -> bool:
        return bool(self.remedy) and not self.warning


def python_version() -> Iterator[Finding]:
    seen = "Python " + ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Finding(f"{seen} is too old.", "Install Python 3.11 or newer and run `make run`.")
    else:
        yield Finding(seen)


def packages(requirements: Path) -> Iterator[Finding]:
    """Compare what is installed with the exact versions of requirements.txt."""
    from packaging.markers import Marker
    from packaging.version import Version

    wrong, counted = [], 0
    for line in requirements.read_text().splitlines():
        pinned = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^\s;]+)\s*(?:;\s*(.*?))?\s*\\?$", line)
        if not pinned or (pinned[3] and not Marker(pinned[3]).evaluate()):
            continue
        counted += 1
        try:
            installed = version(pinned[1])
        except PackageNotFoundError:
            wrong.append(f"{pinned[1]} is missing")
            continue
        if Version(installed) != Version(pinned[2]):  # 2.012 and 2.12 are the same one
            wrong.append(f"{pinned[1]} is {installed}, not {pinned[2]}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        yield Finding(
            f"{', '.join(wrong[:3])}{more}.", "Delete .venv and run `make run`, which installs what is pinned."
        )
    else:
        yield Finding(f"{counted} packages as pinned in {requirements.name}")


def folders(home: Path, spool: Path) -> Iterator[Finding]:
    for folder in dict.fromkeys((home, spool)):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            yield Finding(
                f"{existing} cannot be written to.", "Give it to this account, or set WARDBOOK_HOME elsewhere."
            )
            continue
        free = shutil.disk_usage(existing).free
        if free < ROOM_BYTES:
            yield Finding(
                f"Only {free // 1_000_000} MB are free on the disk of {folder}.",
                f"Free some space: with less than {ROOM_BYTES // 1_000_000_000} GB the database will soon stop.",
            )
        else:
            yield Finding(f"{folder} can be written to, {free / 1e9:,.0f} GB free")


def postgres(url: str) -> Iterator[Finding]:
    """Version, encoding, clock and extensions of the database server."""
    try:
        with psycopg.connect(url.replace("+psycopg", "", 1), connect_timeout=5) as connection:
            number = connection.info.server_version
            encoding = connection.info.parameter_status("server_encoding")
            available = {name for (name,) in connection.execute("SELECT name FROM pg_available_extensions")}
            asked = connection.execute("SELECT current_setting('max_connections')::int, current_setting('fsync')")
            connections, fsync = asked.fetchone() or (0, "")
    except psycopg.Error as error:
        why = str(error).strip().splitlines()[-1]
        yield Finding(f"PostgreSQL does not answer: {why}.", "Start it, or correct DATABASE_URL.")
        return
    seen = f"PostgreSQL {number // 10000}.{number % 10000}"
    if number // 10000 < POSTGRES_OLDEST:
        yield Finding(f"{seen} is too old.", f"Use PostgreSQL {POSTGRES_OLDEST} or newer.")
    else:
        yield Finding(seen)
    if encoding != "UTF8":
        yield Finding(f"The database keeps its text as {encoding}.", "Create it with ENCODING 'UTF8'.")
    if missing := [name for name in EXTENSIONS if name not in available]:
        yield Finding(
            f"PostgreSQL lacks the extensions {', '.join(missing)}.",
            "Install the package with its contrib modules (Debian has them in `postgresql`).",
        )
    if connections < 100:
        yield Finding(
            f"PostgreSQL takes {connections} connections.", "Set max_connections to 100 or more.", warning=True
        )
    if fsync != "on":
        yield Finding("PostgreSQL runs with fsync off: a power cut may destroy the database.", "Turn fsync on.")


def migrations(url: str, folder: Path) -> Iterator[Finding]:
    """Compare the database with the newest migration in `folder`."""
    from alembic.script import ScriptDirectory

    newest = set(ScriptDirectory(str(folder)).get_heads())
    try:
        with psycopg.connect(url.replace("+psycopg", "", 1), connect_timeout=5) as connection:
            applied = {name for (name,) in connection.execute("SELECT version_num FROM alembic_version")}
    except psycopg.errors.UndefinedTable:
        applied = set()
    except psycopg.Error:
        return  # `postgres` has said so
    if not applied:
        yield Finding("The database is empty.", "Run `run.py migrate`; `make run` does it by itself.", warning=True)
    elif applied != newest:
        yield Finding(
            f"The database is at {', '.join(sorted(applied))}, the code at {', '.join(sorted(newest))}.",
            "Run `run.py migrate`; if the database is the newer one, run the newer code.",
        )
    else:
        yield Finding(f"The database is at the newest migration ({', '.join(sorted(newest))})")


def administrators(url: str) -> Iterator[Finding]:
    """Whether there is anybody who can open accounts."""
    try:
        with psycopg.connect(url.replace("+psycopg", "", 1), connect_timeout=5) as connection:
            found = connection.execute("SELECT count(*) FROM account_power WHERE administers").fetchone()
    except psycopg.Error:
        return  # empty or away, which was said already
    if found and not found[0]:
        yield Finding(
            "Nobody can open accounts yet.",
            'Run `run.py administrator USERNAME --email ADDRESS --name "Given Family"`.',
            warning=True,
        )


def queue(url: str, trail_url: str) -> Iterator[Finding]:
    """The Redis of queues, sessions, cache and events."""
    settings = yield from _redis(url, "Redis", "REDIS_URL")
    if settings.get("maxmemory-policy", "noeviction") != "noeviction":
        yield Finding(
            f"Redis drops entries when memory is short ({settings['maxmemory-policy']}): jobs would get lost.",
            "Set maxmemory-policy to noeviction.",
        )
    if url == trail_url:
        yield Finding(
            "The audit trail shares its server with the queues.",
            "Give the trail one of its own in TRAIL_REDIS_URL: a full cache must not stop the trail.",
            warning=True,
        )


def trail(url: str) -> Iterator[Finding]:
    """The trail's Redis, which must have every line on disk before a record is shown."""
    settings = yield from _redis(url, "The trail's Redis", "TRAIL_REDIS_URL")
    wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    for name, value in wanted.items():
        if settings and settings.get(name, value) != value:
            yield Finding(
                f"The trail's Redis has {name} {settings[name]}: lines of the audit trail could get lost.",
                f"Set {name} to {value}.",
            )


def _redis(url: str, title: str, variable: str) -> Generator[Finding, None, dict[str, str]]:
    client = redis.Redis.from_url(
        url, socket_timeout=5, socket_connect_timeout=5, decode_responses=True, retry=Retry(NoBackoff(), 0)
    )
    try:
        about = client.info("server")
        yield Finding(f"{title} answers ({version_of(about)})")
    except redis.RedisError as error:
        yield Finding(f"{title} does not answer: {error}.", f"Start it, or correct {variable}.")
        return {}
    try:
        told = client.config_get("append*", "maxmemory-policy")
        return {str(name): str(value) for name, value in told.items()}
    except redis.ResponseError:  # hosted ones keep CONFIG to themselves
        yield Finding(
            f"{title} does not show its settings.",
            "Make sure that it keeps an append-only file and evicts nothing.",
            warning=True,
        )
        return {}
    finally:
        client.close()


def version_of(about: dict[str, str]) -> str:
    """Valkey tells two versions, the Redis it can stand in for being one."""
    if "valkey_version" in about:
        return f"Valkey {about['valkey_version']}"
    return f"Redis {about['redis_version']}"


def report(findings: Iterable[Finding]) -> tuple[list[str], bool]:
    """The lines to print, and whether all is well."""
    lines, well = [], True
    for finding in findings:
        well = well and not finding.wrong
        sign = "✗" if finding.wrong else "!" if finding.remedy else "✓"
        lines.append(f"  {sign} {finding.seen}")
        if finding.remedy:
            lines.append(f"      → {finding.remedy}")
    return lines, well
