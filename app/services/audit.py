"""Reading the trail."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from flask_appbuilder.security.sqla.models import Role, User, assoc_user_role
from redis.exceptions import RedisError
from sqlalchemy import ColumnElement, and_, bindparam, false, func, or_, select
from sqlalchemy.orm import Session, defer, selectinload

from app import guard, policy, trail
from app.actor import current
from app.errors import NotFound, TooManyLines
from app.services import patients
from app.services.words import fold
from models.audit import AuditAstray, AuditBatch, AuditEvent, AuditOutbox, AuditQuarantine, DrainState
from models.base import now
from models.codes import PurposeOfUse
from models.patients import Patient

PAGE = 50
LOOK_BACK = timedelta(days=30)
STEPS = (timedelta(minutes=5), timedelta(hours=2), timedelta(days=1), timedelta(days=7))
"""How far back is looked at first, and next: lines lie in the order of their time, but no index gives them in it."""
NAMED = 20
"""Accounts or patients a name may stand for at most."""
SUMMED = 5000
"""Lines a summary is made of at most, the newest."""
LONGEST_FILE = 200_000
"""Lines of one file at most."""
FILE_PAGE = 1000
"""Lines of a file that are read at once."""
CHANGES = ("C", "U", "D")


@dataclass(frozen=True)
class Question:
    """What somebody wants to know of the trail; empty parts ask for nothing."""

    patient: str = ""
    patient_id: int | None = None
    """Exactly this patient."""
    person: str = ""
    user_id: int | None = None
    """Exactly this account."""
    by_name: bool = False
    """Look for the person's name as the lines have it, and not for accounts of that name."""
    branch_id: int | None = None
    action: str = ""
    purpose: str = ""
    outcome: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    role_id: int | None = None
    """Only changes of this role."""
    before: tuple[datetime, UUID] | None = None
    """Where the page before this one ended."""

    def told(self) -> str:
        """Which parts are asked for, without what was typed; for the trail."""
        parts = {
            "patient": self.patient or self.patient_id,
            "person": self.person or self.user_id,
            "branch": self.branch_id,
            "action": self.action,
            "purpose": self.purpose,
            "outcome": self.outcome is not None,
            "role": self.role_id,
        }
        return f"the trail by {', '.join(['time', *(name for name, asked in parts.items() if asked)])}"


@dataclass(frozen=True)
class Person:
    """Somebody with an account, as far as the actor may know of them."""

    user_id: int
    name: str
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Narrowed:
    """A question as conditions on the lines, with what its words were taken for."""

    told: str
    conditions: tuple[ColumnElement[bool], ...]
    since: datetime
    until: datetime | None
    indexed: bool
    """Whether an index gives its lines in the order of their time."""
    people: tuple[Person, ...] = ()
    patients: tuple[Patient, ...] = ()
    by_name: bool = False
    """Whether no account was meant, so that the names in the lines were looked through, of LOOK_BACK at most."""
    vague: bool = False
    """Whether more accounts or patients go by the name than are looked for."""


@dataclass(frozen=True)
class Answer:
    """A page of the trail, the patients it speaks of, and whether there is more."""

    events: Sequence[AuditEvent]
    patients: dict[int, Patient]
    more: bool
    asked: Narrowed


def search(session: Session, asked: Question) -> Answer:
    """Lines of the trail, the newest first; the last thirty days where no time is given."""
    narrowed = narrow(session, asked)
    guard.searching(narrowed.told)
    events = newest(session, narrowed, PAGE + 1, asked.before)
    shown = events[:PAGE]
    return Answer(shown, patients_of(session, shown), len(events) > PAGE, narrowed)


def narrow(session: Session, asked: Question) -> Narrowed:
    """What a question comes to: names are looked up first, so that the lines are found by number."""
    since = asked.since or (asked.until or now()) - LOOK_BACK
    wanted: list[ColumnElement[bool]] = []
    indexed = by_name = vague = False
    meant: tuple[Patient, ...] = ()
    people: tuple[Person, ...] = ()
    if asked.patient_id is not None:
        whose = _with_former(session, [asked.patient_id]) if _may_be(asked.patient_id) else []
        wanted.append(AuditEvent.patient_id == whose[0] if len(whose) == 1 else AuditEvent.patient_id.in_(whose))
        indexed = len(whose) <= 1
    elif asked.patient:
        if current().may("read", "Patient"):
            found = patients.find(session, asked.patient, limit=NAMED)
            meant, vague = tuple(found.patients), found.more
        whose = _with_former(session, [patient.id for patient in meant])
        wanted.append(AuditEvent.patient_id.in_(whose))
        indexed = len(whose) <= 1
    if asked.user_id is not None:
        wanted.append(AuditEvent.user_id == asked.user_id if _may_be(asked.user_id, 31) else false())
        indexed = True
        people = accounts(session, [asked.user_id])
    elif asked.person:
        services = [] if asked.by_name else _services(asked.person)
        if not asked.by_name:
            people, more = accounts_by_name(session, asked.person)
            vague = vague or more
        if people or services:
            theirs = AuditEvent.user_id.in_([person.user_id for person in people])
            service = and_(AuditEvent.user_id.is_(None), AuditEvent.agent_name.in_(services))
            wanted.append(or_(theirs, service) if services else theirs)
            indexed = indexed or (len(people) == 1 and not services)
        else:
            by_name = True
            since = max(since, min(asked.until or now(), now()) - LOOK_BACK)
            wanted.append(AuditEvent.agent_name.ilike(f"%{_escaped(asked.person)}%"))
    if asked.branch_id is not None:
        wanted.append(AuditEvent.branch_id == asked.branch_id)
    if asked.action:
        wanted.append(AuditEvent.action == asked.action)
    if asked.purpose:
        wanted.append(AuditEvent.purpose == asked.purpose)
        indexed = indexed or asked.purpose == PurposeOfUse.BTG
    if asked.outcome is not None:
        wanted.append(AuditEvent.outcome == asked.outcome)
    if asked.outcome:
        # Said besides, and as a constant, so that the index of refusals is used.
        wanted.append(AuditEvent.outcome > bindparam(None, 0, literal_execute=True))
    if asked.role_id is not None:
        changed = AuditEvent.entities[0]
        wanted += [
            AuditEvent.action.in_(CHANGES),
            AuditEvent.patient_id.is_(None),
            changed["type"].as_string().in_(("Role", "RoleGrant", "RoleSetting")),
            changed["ids"][0].as_string() == str(asked.role_id),
        ]
        indexed = True
    return Narrowed(asked.told(), tuple(wanted), since, asked.until, indexed, people, meant, by_name, vague)


def _with_former(session: Session, patient_ids: list[int]) -> list[int]:
    """These patients' numbers, and those of the records that were merged into theirs: the trail keeps the old ones."""
    if not patient_ids or not current().may("read", "Patient"):
        return patient_ids
    return [*patient_ids, *patients.former(session, patient_ids)]


def newest(
    session: Session, narrowed: Narrowed, size: int, before: tuple[datetime, UUID] | None = None
) -> Sequence[AuditEvent]:
    """The newest lines of a question, or the newest before a line, `size` at most."""
    statement = select(AuditEvent).where(*narrowed.conditions)
    until, end = narrowed.until, min(narrowed.until or now(), now())
    if before is not None:
        when, key = before
        earlier = or_(AuditEvent.recorded < when, and_(AuditEvent.recorded == when, AuditEvent.id < key))
        statement = statement.where(AuditEvent.recorded <= when, earlier)
        end = min(end, when)
    statement = statement.order_by(AuditEvent.recorded.desc(), AuditEvent.id.desc())
    found: list[AuditEvent] = []
    for step in (None,) if narrowed.indexed else (*STEPS, None):
        since = narrowed.since if step is None or end - narrowed.since <= step else end - step
        part = statement.where(AuditEvent.recorded >= since)
        if until is not None:
            part = part.where(AuditEvent.recorded < until)
        found += session.scalars(part.limit(size - len(found)))
        if len(found) >= size or since <= narrowed.since:
            break
        until = since
    return found


def patients_of(session: Session, events: Sequence[AuditEvent]) -> dict[int, Patient]:
    """The patients some lines are about by number, as far as the actor may see them."""
    whose = {event.patient_id for event in events if event.patient_id is not None}
    if not whose or not current().may("read", "Patient"):
        return {}
    return {patient.id: patient for patient in session.scalars(select(Patient).where(Patient.id.in_(whose)))}


# ---- who is meant --------------------------------------------------------------------------------------------------


def accounts(session: Session, keys: Sequence[int]) -> tuple[Person, ...]:
    """The accounts of these numbers, as far as the actor may know of them."""
    known = [key for key in keys if _may_be(key, 31)]
    if not known:
        return ()
    return _known(
        session, session.scalars(select(User).where(User.id.in_(known)).options(selectinload(User.roles))).all()
    )


def accounts_by_name(session: Session, text: str) -> tuple[tuple[Person, ...], bool]:
    """The accounts whose name has all of these words in it, and whether there are more than NAMED. Staff come first."""
    words = [word for word in re.split(r"[^\w]+", fold(text)) if word]
    if not words:
        return (), False
    name = func.wb_fold(User.first_name + " " + User.last_name)
    named = and_(*(name.contains(word, autoescape=True) for word in words))
    held = assoc_user_role.c
    staff = select(held.user_id).join(Role, Role.id == held.role_id).where(Role.name != policy.Role.PATIENT)
    statement = select(User).where(or_(named, func.lower(User.username) == text.strip().lower()))
    users = session.scalars(
        statement.options(selectinload(User.roles)).order_by(User.id.in_(staff).desc(), User.id).limit(NAMED + 1)
    ).all()
    return _known(session, users[:NAMED]), len(users) > NAMED


def _known(session: Session, users: Sequence[User]) -> tuple[Person, ...]:
    """Accounts by name; that of a patient only where the actor may see the patient."""
    hidden = {user.id for user in users if any(role.name == policy.Role.PATIENT for role in user.roles)}
    if hidden and current().may("read", "Patient"):
        hidden -= {patient.user_id for patient in session.scalars(select(Patient).where(Patient.user_id.in_(hidden)))}
    return tuple(
        Person(user.id, f"{user.first_name} {user.last_name}", tuple(sorted(role.name for role in user.roles)))
        for user in users
        if user.id not in hidden
    )


def _services(text: str) -> list[str]:
    """The services by whose name the house does something itself."""
    asked = fold(text).strip()
    return [name for name in policy.SERVICES if asked and asked in name]


def _may_be(key: int, bits: int = 63) -> bool:
    """Whether a number can be that of a row at all."""
    return bool(0 < key < 1 << bits)


# ---- who saw this patient, and what this person saw ----------------------------------------------------------------


@dataclass
class Doings:
    """What was seen and changed in some lines."""

    first: datetime
    last: datetime
    times: int = 0
    seen: dict[str, set[Any]] = field(default_factory=dict)
    """Resource -> the rows of it."""
    changed: dict[str, set[Any]] = field(default_factory=dict)
    purposes: dict[str, None] = field(default_factory=dict)
    refused: int = 0

    @property
    def emergency(self) -> bool:
        """Whether any of it was done by emergency access."""
        return PurposeOfUse.BTG in self.purposes

    def add(self, event: AuditEvent) -> None:
        """Count a line in."""
        self.times += 1
        self.first, self.last = min(self.first, event.recorded), max(self.last, event.recorded)
        self.purposes[event.purpose] = None
        if event.outcome != 0:
            self.refused += 1
            return
        kinds = self.changed if event.action in CHANGES else self.seen
        for entity in event.entities:
            kinds.setdefault(str(entity.get("type", "")), set()).update(map(str, entity.get("ids") or ()))


@dataclass
class Looker(Doings):
    """What one person, or a service, did with one patient's record."""

    user_id: int | None = None
    name: str = ""
    """As in their newest line."""
    roles: dict[str, None] = field(default_factory=dict)
    branches: dict[int, None] = field(default_factory=dict)


@dataclass(frozen=True)
class WhoSaw:
    """Who saw a patient's record in a time, the last one first, and the newest of the lines."""

    patient: Patient
    lookers: Sequence[Looker]
    events: Sequence[AuditEvent]
    more: bool
    """Whether there are more lines than those."""
    cut: bool
    """Whether there are more than SUMMED lines, so that the oldest are not summed up."""


def who_saw(session: Session, patient_id: int, since: datetime) -> WhoSaw:
    """Who saw a patient's record from `since` on. Raises NotFound for a patient the actor may not see, or nobody."""
    guard.require("read", "Patient")
    patient = session.get(Patient, patient_id) if _may_be(patient_id) else None
    if patient is None:
        raise NotFound
    narrowed = narrow(session, Question(patient_id=patient_id, since=since))
    guard.searching(narrowed.told)
    events = newest(session, narrowed, SUMMED + 1)
    lookers: dict[tuple[int | None, str], Looker] = {}
    for event in events[:SUMMED]:
        key = (event.user_id, "" if event.user_id is not None else event.agent_name)
        looker = lookers.setdefault(
            key, Looker(event.recorded, event.recorded, user_id=event.user_id, name=event.agent_name)
        )
        looker.add(event)
        looker.roles.update(dict.fromkeys(event.roles))
        if event.branch_id is not None:
            looker.branches[event.branch_id] = None
    return WhoSaw(patient, list(lookers.values()), events[:PAGE], len(events) > PAGE, len(events) > SUMMED)


@dataclass(frozen=True)
class Day:
    """What a person did between two instants."""

    name: str
    """As in their newest line, or as the account has it; empty where the actor may not know."""
    roles: Sequence[str]
    seen: Sequence[tuple[int, Doings]]
    """By patient, the last one first."""
    patients: dict[int, Patient]
    refused: Sequence[AuditEvent]
    others: Sequence[AuditEvent]
    """Lines about nobody: signing in, searches that found nobody, looking into the trail."""
    hours: Sequence[int]
    """Looks into records in each hour from the first instant on."""
    cut: bool
    """Whether there were more than SUMMED lines, so that the earliest are not in here."""


def day_of(session: Session, user_id: int, since: datetime, until: datetime) -> Day:
    """What a person saw, changed and was refused in [since, until)."""
    narrowed = narrow(session, Question(user_id=user_id, since=since, until=until))
    guard.searching(narrowed.told)
    events = newest(session, narrowed, SUMMED + 1)
    lines = events[:SUMMED]
    start = since.astimezone(UTC)
    hours = [0] * max(1, -(-int((until.astimezone(UTC) - start).total_seconds()) // 3600))
    seen: dict[int, Doings] = {}
    for event in lines:
        if event.outcome == 0 and event.patient_id is not None:
            seen.setdefault(event.patient_id, Doings(event.recorded, event.recorded)).add(event)
            if event.action not in CHANGES:
                hours[int((event.recorded - start).total_seconds()) // 3600] += 1
    account = next(iter(narrowed.people), None)
    return Day(
        name=lines[0].agent_name if lines else account.name if account else "",
        roles=lines[0].roles if lines else account.roles if account else (),
        seen=list(seen.items()),
        patients=patients_of(session, lines),
        refused=[event for event in lines if event.outcome != 0],
        others=[event for event in lines if event.outcome == 0 and event.patient_id is None],
        hours=hours,
        cut=len(events) > SUMMED,
    )


# ---- taking lines out of the house ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Export:
    """Lines that are written to a file: those of a question that were in the trail when it was asked."""

    narrowed: Narrowed
    count: int


def export(session: Session, asked: Question, kind: str) -> Export:
    """Begin to write the lines of a question to a file of a kind; that it is done, is in the trail from here on.

    Raises TooManyLines.
    """
    narrowed = narrow(session, replace(asked, before=None))
    # Lines come in batches, so what is in the trail by now is what is in the batches up to the last one.
    last = session.scalar(select(func.max(AuditBatch.seq))) or 0
    conditions = (*narrowed.conditions, AuditEvent.batch_seq <= last)
    statement = select(AuditEvent.id).where(*conditions, AuditEvent.recorded >= narrowed.since)
    if narrowed.until is not None:
        statement = statement.where(AuditEvent.recorded < narrowed.until)
    few = statement.limit(LONGEST_FILE + 1).subquery()
    count = session.scalar(select(func.count()).select_from(few)) or 0
    if count > LONGEST_FILE:
        raise TooManyLines
    line = trail.event(
        "R", "export", entities=[{"type": "AuditEvent", "lines": count, "as": kind}], query=narrowed.told
    )
    trail.the_trail().write(current(), [line])
    return Export(replace(narrowed, conditions=conditions), count)


def export_page(
    session: Session, export: Export, size: int, before: tuple[datetime, UUID] | None
) -> Sequence[AuditEvent]:
    """The next lines of a file, the newest first."""
    guard.searching(export.narrowed.told)
    return newest(session, export.narrowed, size, before)


# ---- how the trail stands ------------------------------------------------------------------------------------------

LATE = 60.0
"""Seconds after which a line that is still not in the table is an alarm."""


@dataclass(frozen=True)
class Standing:
    """How far the lines have come between the write-ahead log and the table. What Redis is not there to say is None."""

    stream: int | None
    """Entries in the stream."""
    oldest_seconds: float | None
    """Age of the oldest entry that is not in the table, in the stream, the spool of this machine, or the outbox."""
    spool_files: int
    spool_bytes: int
    outbox: int
    quarantine: int
    """Entries nobody could make out."""
    astray: int
    """Lines outside of every month there is a partition for: some clock is wrong."""
    drained_at: datetime
    drained: int
    """Lines stored since the house was founded."""
    batch: int
    size: int
    """Leaves of the tree."""
    note: str
    """The last checkpoint."""
    stored_at: datetime | None
    """When the last batch was."""

    @property
    def late(self) -> bool:
        """Whether somebody has to look."""
        return self.stream is None or (self.oldest_seconds or 0.0) > LATE


def standing(session: Session) -> Standing:
    """How the trail stands now. Raises SQLAlchemyError where PostgreSQL does not answer."""
    at_work = trail.the_trail()
    stream, ages = None, []
    try:
        length: Any = at_work.redis.xlen(trail.STREAM)
        oldest: Any = at_work.redis.xrange(trail.STREAM, count=1)
        seconds, microseconds = at_work.redis.time()
        stream = length
        if oldest:
            born = int(oldest[0][0].partition(b"-")[0]) / 1000
            ages.append(seconds + microseconds / 1e6 - born)
    except RedisError:
        ages.append(0.0)
    files = spooled(at_work.spool.directory)
    ages += [time.time() - born for _, born in files]
    waiting = session.scalars(select(AuditOutbox).order_by(AuditOutbox.id).limit(1)).first()
    if waiting is not None:
        ages.append(time.time() - (waiting.id.int >> 80) / 1000)  # a UUIDv7 begins with its milliseconds
    drain = session.get_one(DrainState, 1)
    batch = session.scalars(
        select(AuditBatch).order_by(AuditBatch.seq.desc()).limit(1).options(defer(AuditBatch.leaves))
    ).first()
    return Standing(
        stream=stream,
        oldest_seconds=None if stream is None else round(max(0.0, *ages, 0.0), 3),
        spool_files=len(files),
        spool_bytes=sum(size for size, _ in files),
        outbox=session.scalar(select(func.count()).select_from(AuditOutbox)) or 0,
        quarantine=session.scalar(select(func.count()).select_from(AuditQuarantine)) or 0,
        astray=session.scalar(select(func.count()).select_from(AuditAstray)) or 0,
        drained_at=drain.drained_at,
        drained=drain.events,
        batch=batch.seq if batch else 0,
        size=batch.tree_size if batch else 0,
        note=batch.note if batch else "",
        stored_at=batch.stored_at if batch else None,
    )


def spooled(directory: Path) -> list[tuple[int, float]]:
    """Size and birth of the files in the spool of this machine that have something in them."""
    found = []
    for path in [*directory.glob("*.done"), *directory.glob("*.open")]:
        with suppress(FileNotFoundError):
            state = path.stat()
            if state.st_size:
                found.append((state.st_size, state.st_mtime))
    return found


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
