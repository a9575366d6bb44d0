"""The audit trail's write-ahead half: a line is on disk in two places' stead before anything is shown.

An entry goes to a Redis stream that fsyncs every write; if Redis cannot take it, to a local file that is fsynced;
if that fails too, NotRecorded is raised and nothing is shown.  `jobs/trail.py` moves the entries into PostgreSQL.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from zlib import crc32

import msgspec
import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry
from uuid_utils import uuid7

from app.actor import Acting, Actor
from app.errors import NotRecorded
from models.base import now

log = structlog.get_logger(__name__)

STREAM = "audit:v1"
TIMEOUT = 0.5
"""Seconds Redis may take for a line before the spool is used instead."""
PATIENCE = 20.0
"""Seconds Redis may take to give or forget a batch of lines."""
REST_AFTER_FAILURE = 1.0
"""Seconds Redis is left alone after it failed (circuit breaker)."""
HELD = 2.0
"""Seconds until a spool file goes to the drainer, whether or not Redis is back or anybody asks anything more."""

REQUIRED = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
"""Redis settings without which an acknowledged line could still be lost."""

encode = msgspec.json.Encoder().encode

AGENT = {
    "user_id": "u",
    "agent_name": "n",
    "roles": "r",
    "branch_id": "b",
    "purpose": "p",
    "channel": "c",
    "address": "a",
    "user_agent": "ua",
    "session_id": "s",
    "request_id": "q",
}
LINE = {
    "id": "i",
    "recorded": "t",
    "type": "y",
    "subtype": "s",
    "action": "a",
    "outcome": "o",
    "patient_id": "p",
    "entities": "e",
    "query": "q",
    "reason": "r",
    "purpose": "u",
}
"""What the parts of an entry are called while it waits, maybe with a million others; what is None is left out."""


def entry(agent: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    """Lines that share an agent, as they wait for the drainer in the stream, the spool or the outbox."""
    return {
        "agent": {AGENT[name]: value for name, value in agent.items() if value is not None},
        "events": [{LINE[name]: value for name, value in line.items() if value is not None} for line in events],
    }


def agent(actor: Actor) -> dict[str, Any]:
    """The part of an event that says who, from where and why; shared by all events of one request."""
    origin = actor.origin
    return {
        "user_id": actor.user_id,
        "agent_name": actor.name,
        "roles": (*actor.roles, f"as:{actor.viewing_as}") if actor.viewing_as else actor.roles,
        "branch_id": actor.branch_id,
        "purpose": actor.purpose,
        "channel": origin.channel,
        "address": origin.address,
        "user_agent": origin.user_agent,
        "session_id": origin.session_id,
        "request_id": origin.request_id,
    }


def event(
    action: str,
    subtype: str,
    *,
    kind: str = "rest",
    outcome: int = 0,
    patient_id: int | None = None,
    entities: list[dict[str, Any]] | None = None,
    query: str | None = None,
    reason: str | None = None,
    purpose: str | None = None,
    recorded: str | None = None,
) -> dict[str, Any]:
    """One line of the trail but for its agent (FHIR AuditEvent; see models.audit for the columns).

    `purpose` is given where it is another one than the agent's, `recorded` where several lines share an instant.
    """
    line = {
        "id": str(uuid7()),
        "recorded": recorded or instant(),
        "type": kind,
        "subtype": subtype,
        "action": action,
        "outcome": outcome,
        "patient_id": patient_id,
        "entities": entities or [],
        "query": query,
        "reason": reason,
    }
    return line if purpose is None else {**line, "purpose": purpose}


def instant() -> str:
    """The present, as a line has it while it waits."""
    return now().isoformat()[:-6] + "Z"


def purpose_of(actor: Actor, patient_id: int | None) -> str | None:
    """The purpose of one line, where it is another one than the actor's own."""
    why = actor.purpose_with(patient_id)
    return None if why == actor.purpose else why


def reads(acting: Acting) -> list[dict[str, Any]]:
    """The lines that what an actor has seen amounts to: one a patient, and one a refusal."""
    seen = acting.seen
    subtype, action = ("search", "E") if seen.query else ("read", "R")
    at_once = instant()
    events = [
        event(
            action,
            subtype,
            patient_id=patient_id,
            entities=[{"type": resource, "ids": keys} for resource, keys in found.items()],
            query=seen.query,
            purpose=purpose_of(acting.actor, patient_id),
            recorded=at_once,
        )
        for patient_id, found in seen.loaded.items()
    ]
    if seen.query and not events:
        events.append(event("E", "search", query=seen.query))
    events += [
        event("E" if verb == "sign-in" else "R", verb, outcome=4, entities=[{"type": resource}], reason=reason)
        for verb, resource, reason in seen.refused
    ]
    return events


def sign_in_event(subtype: str, outcome: int = 0, reason: str | None = None) -> dict[str, Any]:
    """A line for signing in (DICOM 110122) or out (110123)."""
    return event("E", subtype, kind="110114", outcome=outcome, reason=reason)


@dataclass
class Spool:
    """Where lines go while Redis is away: frames of [length, crc32, payload] in files of one process each."""

    directory: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    file: IO[bytes] | None = None

    def write(self, payload: bytes) -> None:
        """Append one frame and fsync it, whole or not at all. Raises OSError where the disk does not take it."""
        frame = len(payload).to_bytes(4, "big") + crc32(payload).to_bytes(4, "big") + payload
        with self.lock:
            if self.file is None:
                self.file = self._open()
                # Nobody may ask this process anything more, and Redis may stay away: the lines are stored all the same.
                timer = threading.Timer(HELD, self.close)
                timer.daemon = True
                timer.start()
            before = os.fstat(self.file.fileno()).st_size
            try:
                while frame:
                    frame = frame[self.file.write(frame) :]
                os.fsync(self.file.fileno())
            except OSError:
                with suppress(OSError):
                    self.file.truncate(before)
                raise

    def _open(self) -> IO[bytes]:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        while True:
            path = self.directory / f"{uuid7()}.open"
            file = path.open("ab", buffering=0)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The drainer takes a file nobody has locked for a dead writer's; if it was quicker, this one is gone.
            if path.exists():
                break
            file.close()
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return file

    def close(self) -> None:
        """Hand the file over to the drainer, which takes it as a dead writer's if it cannot be renamed."""
        with self.lock:
            file, self.file = self.file, None
            if file is not None:
                path = Path(file.name)
                try:
                    path.rename(path.with_suffix(".done"))
                except OSError as error:
                    log.warning("trail.spool_not_handed_over", error=type(error).__name__)
                file.close()


class Trail:
    """The write-ahead log of one process."""

    def __init__(self, url: str, spool: Path) -> None:
        self.redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
        )
        # Moving thousands of lines may take its time; only writing one must not.
        self.reader = redis.Redis.from_url(url, socket_timeout=PATIENCE, socket_connect_timeout=TIMEOUT)
        self.spool = Spool(spool)
        self.rests_until = 0.0

    def write(self, actor: Actor, events: list[dict[str, Any]]) -> None:
        """Make the lines durable, in one round trip. Raises NotRecorded where neither Redis nor the disk takes them."""
        payload = encode(entry(agent(actor), events))
        if time.monotonic() >= self.rests_until:
            try:
                self.redis.xadd(STREAM, {"e": payload})
            except redis.RedisError as error:
                self.rests_until = time.monotonic() + REST_AFTER_FAILURE
                log.warning("trail.redis_failed", error=type(error).__name__)
            else:
                if self.spool.file is not None:
                    self.spool.close()
                return
        try:
            self.spool.write(payload)
        except OSError as error:
            log.error("trail.spool_failed", error=type(error).__name__)
            raise NotRecorded from error

    def weaknesses(self) -> list[str]:
        """The settings of the trail's Redis that could lose an acknowledged line, in words. Raises redis.RedisError."""
        found = self.redis.config_get(*REQUIRED)
        return [
            f"{name} is {found.get(name)!r} and must be {wanted!r}"
            for name, wanted in REQUIRED.items()
            if found.get(name) != wanted
        ]


_trail: Trail | None = None


def connect(url: str, spool: Path) -> Trail:
    """Open the trail of this process; every process does so once, before it shows anything."""
    global _trail
    _trail = Trail(url, spool)
    return _trail


def the_trail() -> Trail:
    """The trail of this process. Raises NotRecorded where it was never opened."""
    if _trail is None:
        raise NotRecorded
    return _trail
