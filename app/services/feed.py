"""The feed of what changed: pointers in a bounded Redis stream, and who is told of which.

A pointer says that a row is not what it was, and nothing of the row: whoever is told of it asks the gate.  So it shows
nobody's record, and being told of one is no line in the trail; asking for the row is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
from redis import Redis
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.actor import Actor
from app.services.critical import acts_on_them
from app.services.results import reads_results
from models.codes import RowScope

STREAM = "live:pointers"
KEPT = 10_000
"""Pointers the stream holds, more or less."""
MOST_MISSED = 200
"""Whoever missed more than so many asks for everything anew, which is less work."""
NOTHING_YET = "0-0"
CHAIN = "chain"
"""The room of those who see every branch."""
PERSON = "person:"
"""The room of one person begins so: what is for nobody else, and tells of no visit."""


@dataclass(frozen=True)
class Pointer:
    """A row that is not what it was: which one, since which version, and what decides who is told."""

    resource: str
    id: int
    branch_id: int | None
    version: int
    practitioner_id: int | None = None
    patient_id: int | None = None

    def rooms(self) -> list[str]:
        """Where it is told: what has no branch only to the person it is for."""
        if self.branch_id is None:
            return [f"{PERSON}{self.practitioner_id}"]
        whose = {"branch": self.branch_id, "practitioner": self.practitioner_id, "patient": self.patient_id}
        return [CHAIN, *(f"{kind}:{key}" for kind, key in whose.items() if key is not None)]

    def told(self, event: str) -> dict[str, Any]:
        """What a browser is told: no names, no times, and not whose it is."""
        told = {"event": event, "resource": self.resource, "id": self.id, "version": self.version}
        return told if self.branch_id is None else {**told, "branch_id": self.branch_id}


Entry = tuple[str, Pointer]
"""A pointer with the id of its event, which rises."""


# ---- the stream --------------------------------------------------------------------------------------------------


def append(client: Redis, pointer: Pointer) -> str:
    """Make a change known to every web process; gives the id of the event. Raises redis.RedisError."""
    fields: Any = {"p": msgspec.json.encode(pointer)}
    event: Any = client.xadd(STREAM, fields, maxlen=KEPT, approximate=True)
    return _text(event)


def last(client: Redis) -> str:
    """The id of the newest event. Raises redis.RedisError."""
    found: Any = client.xrevrange(STREAM, count=1)
    return _text(found[0][0]) if found else NOTHING_YET


def wait(client: Redis, after: str, *, milliseconds: int) -> list[Entry]:
    """The events after one, as soon as there are any; empty where none comes in time. Raises redis.RedisError."""
    found: Any = client.xread({STREAM: after}, count=100, block=milliseconds)
    streams = found.values() if isinstance(found, dict) else [entries for _, entries in found or ()]
    return [_read(entry) for entries in streams for entry in _flat(entries)]


def missed(client: Redis, since: object, until: str) -> list[Entry] | None:
    """The events after one up to another; None where not all of them are there, or too many. Raises RedisError."""
    if not isinstance(since, str) or not re.fullmatch(r"[0-9]{1,19}-[0-9]{1,19}", since):
        return None
    if order(since) >= order(until):
        return [] if order(since) <= order(last(client)) else None
    found: Any = client.xrange(STREAM, f"({since}", until, count=MOST_MISSED + 1)
    oldest: Any = client.xrange(STREAM, count=1)  # asked last, so that nothing is cut off in between
    if not oldest or order(_text(oldest[0][0])) > order(since) or len(found) > MOST_MISSED:
        return None
    return [_read(entry) for entry in found]


def order(event: str) -> tuple[int, int]:
    """What an id is compared by."""
    moment, _, number = event.partition("-")
    return int(moment), int(number)


def _flat(entries: Any) -> Any:
    """A stream's entries, whichever protocol the client speaks (RESP3 has them in one more list)."""
    return entries[0] if entries and isinstance(entries[0], list) else entries


def _read(entry: Any) -> Entry:
    return _text(entry[0]), msgspec.json.decode(entry[1][b"p"], type=Pointer)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# ---- who is told -------------------------------------------------------------------------------------------------


def rooms_of(actor: Actor) -> frozenset[str]:
    """The rooms of what an actor is told of: visits, and the results that come to them."""
    theirs = _rooms_of_visits(actor)
    if acts_on_them(actor) or reads_results(actor):
        theirs |= {f"{PERSON}{actor.practitioner_id}"}
    return theirs


def _rooms_of_visits(actor: Actor) -> frozenset[str]:
    """The rooms of whose visits an actor may see; empty where they see none.

    A room can be narrower than the rows of a role (a patient of one's own branch who is seen at another one) and is
    never wider, but for a visit that is called off: its pointer is how it goes from the screen.
    """
    if not actor.may("read", "Appointment"):
        return frozenset()
    own = {f"practitioner:{actor.practitioner_id}"} if actor.practitioner_id is not None else set()
    alternatives = actor.rights.reach.get(("read", "Appointment"))
    if alternatives is None:
        return frozenset({CHAIN, *own})
    rooms: set[str] = set()
    for reach in alternatives:
        if reach.kinds is not None or len(reach.scopes) != 1:
            continue  # rows that satisfy two scopes at once are no room's: no pointer, rather than one too many
        (scope,) = reach.scopes
        if scope is RowScope.OWN_BRANCH:
            rooms.update(f"branch:{key}" for key in actor.branch_ids)
        elif scope is RowScope.CARE_TEAM:
            rooms.update(own)
        elif scope is RowScope.SELF and actor.patient_id is not None:
            rooms.add(f"patient:{actor.patient_id}")
        if scope in (RowScope.OWN_BRANCH, RowScope.CARE_TEAM):
            rooms.update(f"patient:{key}" for key in actor.emergencies)
    return frozenset(rooms)


def narrowed(rooms: frozenset[str], branches: object) -> frozenset[str]:
    """The rooms a page wants, of those its reader may be in: `branches` is a list of numbers, or None for all."""
    if branches is None:
        return rooms
    asked = {f"branch:{key}" for key in branches if type(key) is int} if isinstance(branches, list) else set()
    if CHAIN in rooms:
        return (rooms - {CHAIN}) | asked
    return frozenset(room for room in rooms if not room.startswith("branch:") or room in asked)


@dataclass(frozen=True)
class Standing:
    """What decides about somebody's feed; where any of it changes, the feed ends and is asked for anew."""

    generation: int
    policy_number: int
    practitioner_id: int | None
    patient_id: int | None
    home_branch_id: int | None
    branch_ids: tuple[int, ...]
    emergencies: tuple[int, ...]


STANDING = text(
    """
    SELECT u.id, c.generation, v.number AS policy_number, pr.id AS practitioner_id, pt.id AS patient_id,
      coalesce(pr.home_branch_id, pt.registered_at_id) AS home_branch_id,
      array(SELECT branch_id FROM practitioner_branch b WHERE b.practitioner_id = pr.id ORDER BY 1) AS branch_ids,
      array(SELECT patient_id FROM emergency_access e WHERE e.user_id = u.id AND e.ends_at > now() ORDER BY 1)
        AS emergencies
    FROM ab_user u CROSS JOIN policy_version v
    JOIN credential c ON c.user_id = u.id
    LEFT JOIN practitioner pr ON pr.user_id = u.id
    LEFT JOIN patient pt ON pt.user_id = u.id
    WHERE u.active AND u.id = ANY(:users)
    """
)


def standings(session: Session, users: Iterable[int]) -> dict[int, Standing]:
    """How accounts stand, in one statement beside the gate: nobody acts here. One that is closed is not among them."""
    found = session.connection().execute(STANDING, {"users": sorted(set(users))})
    return {
        row.id: Standing(
            row.generation,
            row.policy_number,
            row.practitioner_id,
            row.patient_id,
            row.home_branch_id,
            tuple(row.branch_ids),
            tuple(row.emergencies),
        )
        for row in found
    }


__all__ = ["Pointer", "Standing", "append", "last", "missed", "narrowed", "rooms_of", "standings", "wait"]
