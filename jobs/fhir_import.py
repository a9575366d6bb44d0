"""Taking over records from elsewhere: FHIR R4 Bundles, NDJSON and single resources, once each however often they come.

Resources are written in chunks, each one unit of work. One that refers to something not seen yet waits in a spill file
until the rest has been read; what then still refers to no patient or encounter is refused. A second run, after a kill
or not, passes over whatever is already here by its digest.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from enum import IntEnum, StrEnum
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, TextIO
from zoneinfo import ZoneInfo

import msgspec
from psycopg.types.json import set_json_dumps
from sqlalchemy import Engine, event, func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, undefer
from tqdm import tqdm

from app import actor, events, guard
from app.errors import DuplicateIdentifier, Invalid, NotRecorded, OutOfService, Refusal
from app.services.patients import next_mrns
from jobs.fhir_files import Broken, Received, files_of, first_type, received
from jobs.fhir_records import (
    SHAPES,
    Json,
    NotForTheChart,
    Reading,
    Reference,
    medicine,
    patients_of,
    points_at,
    read,
    targets_of,
)
from models.base import Record
from models.codes import IdentifierUse
from models.imports import SourceResource
from models.organization import Organization, Practitioner
from models.patients import Patient, PatientIdentifier

Key = tuple[str, str]
"""Type and id of a resource at its source."""

CHUNK = 500
"""Resources of one unit of work."""
CHUNK_BYTES = 8 * 1024 * 1024
SPILL_IN_MEMORY = 8 * 1024 * 1024
"""Bytes of waiting resources before they go to a file, which has no name and is gone with the process."""
REMEMBERED = 50_000
"""Resources whose rows are remembered between chunks."""
LOCK = 0x57_42_46_48
"""First half of the advisory lock that keeps two imports of one source apart."""

RANKS = (("Organization", "Location", "Medication"), ("Practitioner", "PractitionerRole"), ("Patient",), ("Encounter",))
ORDER = {kind: rank for rank, kinds in enumerate(RANKS) for kind in kinds}
"""Who is referred to comes first."""
LAST = len(RANKS)
REFERRED_TO = frozenset(ORDER)
"""Types whose address in a Bundle is remembered, where it is not their id anyway."""
DIRECTORY = frozenset({"Organization", "Practitioner", "PractitionerRole", "Location"})
"""Types that many files bring along in more or less detail: less detail than is known is no change."""
NEEDED = frozenset({"patient_id", "encounter_id", "medication"})
"""What a resource cannot do without where it names it; any other reference to nobody stays empty."""

_exact = msgspec.json.Encoder(decimal_format="number", order="sorted").encode
_restored = msgspec.json.Decoder(float_hook=Decimal).decode
_nul = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class Verdict(StrEnum):
    """What became of a resource."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    KEPT = "kept as received"
    REFUSED = "refused"


class Patience(IntEnum):
    """What is done about a reference to something that is not here (yet)."""

    WAIT = 0
    DO_WITHOUT = 1
    """Leave it empty where it may be, wait where it may not."""
    REFUSE = 2


@dataclass(frozen=True, slots=True)
class Item:
    """A resource on its way in."""

    file: str
    place: str
    kind: str
    id: str
    digest: bytes
    size: int
    resource: Json

    @property
    def key(self) -> Key:
        """Type and id at its source."""
        return self.kind, self.id


@dataclass(frozen=True, slots=True)
class Known:
    """The row a resource became, if it became one, and whose it is."""

    record_id: int | None
    patient_id: int | None


@dataclass
class Work:
    """What one unit of work came to; counts only once it is committed."""

    verdicts: list[tuple[Item, Verdict, str]] = field(default_factory=list)
    waiting: list[Item] = field(default_factory=list)
    met: dict[Key, Known] = field(default_factory=dict)
    left: Counter[str] = field(default_factory=Counter)
    nobody: Counter[str] = field(default_factory=Counter)


class Missing(Exception):
    """A reference points at nothing that is here."""


def shown(text: str) -> str:
    """An id or a file name as it may stand on a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:120])


def contained_in(part: Any, whole: Any) -> bool:
    """Everything `part` says, `whole` says too."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(k in whole and contained_in(v, whole[k]) for k, v in part.items())
    return bool(part == whole)


def older(resource: Json, held: Json) -> bool:
    """Both say when they were last changed, and the resource was so before what is held."""
    moments = []
    for one in (resource, held):
        meta = one.get("meta")
        said = meta.get("lastUpdated") if isinstance(meta, dict) else None
        try:
            moments.append(datetime.fromisoformat(said))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return False
    return all(moment.tzinfo for moment in moments) and moments[0] < moments[1]


def about_whom(resource: Json) -> Iterator[Reference]:
    """What a resource without a table points at, of what is looked up."""
    yield from patients_of(resource)
    yield from targets_of(resource)


def because(refusal: Refusal) -> str:
    """A refusal's sentence, with the field where there is one."""
    return f"{refusal.field}: {refusal}" if refusal.field else str(refusal)


class Import:
    """One run: what is remembered between chunks, what waits, and the count of it all."""

    def __init__(self, source: str, zone: tzinfo, say: Callable[[str], object]) -> None:
        self.source = source
        self.zone = zone
        self.say = say
        self.known: dict[Key, Known] = {}
        self.urls: dict[str, Key] = {}
        self.names: dict[tuple[type[Record], int], str] = {}
        self.chunk: dict[Key, Item] = {}
        self.chunk_bytes = 0
        self.waiting = Spill()
        self.patience = Patience.WAIT
        self.tally: Counter[tuple[str, Verdict]] = Counter()
        self.left: Counter[str] = Counter()
        self.nobody: Counter[str] = Counter()
        self.broken = 0

    # ---- taking in ---------------------------------------------------------------------------------------------

    def offer(self, found: Received) -> None:
        """A resource as it was read; a full chunk is written."""
        try:
            item = self.item(found)
        except Invalid as refusal:
            said = found.resource if isinstance(found.resource, dict) else {}
            kind, name = (part if isinstance(part, str) else "" for part in (said.get("resourceType"), said.get("id")))
            self.refuse(found.file, found.place, kind, name, str(refusal))
            return
        self.add(item)

    def item(self, found: Received) -> Item:
        """What identifies a resource. Raises Invalid where it can be none."""
        resource = found.resource
        if not isinstance(resource, dict):
            raise Invalid("there is no resource here")
        kind, own = resource.get("resourceType"), resource.get("id")
        if not isinstance(kind, str) or not re.fullmatch(r"[A-Z][A-Za-z]{1,60}", kind):
            raise Invalid("resourceType is missing or is none")
        if own is not None and (not isinstance(own, str) or not 0 < len(own) <= 200):
            raise Invalid("id is not an id")
        try:
            exact = _exact(resource)
        except (UnicodeEncodeError, OverflowError, RecursionError, TypeError) as error:
            raise Invalid("there is a character or a number in it that cannot be stored") from error
        if b"\\u0000" in exact and _nul.search(exact):
            raise Invalid("there is a character in it that cannot be stored (NUL)")
        digest = sha256(exact).digest()
        url = found.full_url
        tail = url.rpartition(":" if url.startswith("urn:") else "/")[2]
        name = own or tail or digest.hex()
        if url and tail != name and kind in REFERRED_TO:
            self.urls[url] = kind, name
        if kind == "Composition":
            # One id for several documents of one patient was seen in the wild; what tells them apart is their type.
            kinds = resource.get("type")
            codes = kinds.get("coding") if isinstance(kinds, dict) else None
            first = codes[0] if isinstance(codes, list) and codes else None
            name += f"|{first.get('code')}" if isinstance(first, dict) else ""
        return Item(found.file, found.place, kind, name[:300], digest, len(exact), resource)

    def add(self, item: Item) -> None:
        """Put a resource into the chunk, which is written when it is full, or holds an earlier form of the same."""
        if item.key in self.chunk or len(self.chunk) >= CHUNK or self.chunk_bytes + item.size > CHUNK_BYTES:
            self.flush()
        self.chunk[item.key] = item
        self.chunk_bytes += item.size

    def flush(self) -> None:
        """Write the chunk there is."""
        items = sorted(self.chunk.values(), key=lambda item: ORDER.get(item.kind, LAST))
        self.chunk, self.chunk_bytes = {}, 0
        if items:
            self.write(items)

    def settle(self) -> None:
        """Take up what waited, over and over while that helps, then without what it can do without, then refuse it."""
        self.flush()
        while len(self.waiting):
            spill, self.waiting = self.waiting, Spill()
            with closing(spill):
                for item in spill:
                    self.add(item)
                self.flush()
                if len(self.waiting) >= len(spill) and self.patience < Patience.REFUSE:
                    self.patience = Patience(self.patience + 1)

    def close(self) -> None:
        """Give back what was spilled."""
        self.waiting.close()

    def refuse(self, file: str, place: str, kind: str, name: str, reason: str) -> None:
        """One line for what is not taken."""
        what = "/".join(shown(part) for part in (kind, name) if part)
        self.tally[shown(kind) or "(no resource)", Verdict.REFUSED] += 1
        self.say(": ".join(part for part in (shown(file), place, what, f"refused: {reason}") if part))

    def break_off(self, file: str, broken: Broken) -> None:
        """One line for where a file could not be read on."""
        self.broken += 1
        self.say(f"{shown(file)}: {broken.place}: {broken.reason}")

    # ---- writing -----------------------------------------------------------------------------------------------

    def write(self, items: list[Item]) -> None:
        """Write items in one unit of work; where the database refuses it, halve it until the culprit stands alone."""
        try:
            with guard.acting_as(actor.service("import", channel="cli")), guard.unit_of_work() as session:
                work = Chunk(self, session).write(items)
        except (NotRecorded, OutOfService):
            raise
        except (Refusal, SQLAlchemyError) as error:
            if len(items) > 1:
                half = len(items) // 2
                self.write(items[:half])
                self.write(items[half:])
                return
            reason = because(error) if isinstance(error, Refusal) else "the database does not take it"
            work = Work([(items[0], Verdict.REFUSED, reason)])
        self.count(work)

    def count(self, work: Work) -> None:
        """Take over what a committed unit of work came to."""
        for item, verdict, reason in work.verdicts:
            if verdict is Verdict.REFUSED:
                self.refuse(item.file, item.place, item.kind, item.id, reason)
            else:
                self.tally[item.kind, verdict] += 1
        for item in work.waiting:
            self.waiting.add(item)
        self.left += work.left
        self.nobody += work.nobody
        for key, known in work.met.items():
            self.known.pop(key, None)
            self.known[key] = known
        if len(self.known) > REMEMBERED:
            for key in list(self.known)[: len(self.known) - REMEMBERED * 9 // 10]:
                del self.known[key]

    # ---- the end -----------------------------------------------------------------------------------------------

    @property
    def refused(self) -> int:
        """How many were not taken."""
        return sum(number for (_, verdict), number in self.tally.items() if verdict is Verdict.REFUSED)

    def summary(self, seconds: float) -> Iterator[str]:
        """What came in, by type; what was only kept as received; how long it took."""
        kinds = sorted({kind for kind, _ in self.tally})
        width = max(map(len, [*kinds, "total"]))
        yield " ".join([f"{'':{width}}", *(f"{verdict:>{max(9, len(verdict))}}" for verdict in Verdict)])
        for kind in [*kinds, "total"]:
            numbers = [
                sum(n for (k, v), n in self.tally.items() if v is verdict and kind in (k, "total"))
                for verdict in Verdict
            ]
            yield " ".join(
                [f"{kind:{width}}", *(f"{n:>{max(9, len(v))},}" for n, v in zip(numbers, Verdict, strict=True))]
            )
        if self.left:
            yield ""
            yield "Kept as received, without a column of their own:"
            yield from (f"  {name} {number:,}" for name, number in sorted(self.left.items()))
        if self.nobody:
            yield ""
            yield "Left empty, because they point at nothing that came along:"
            yield from (f"  {name} {number:,}" for name, number in sorted(self.nobody.items()))
        total = sum(self.tally.values())
        yield ""
        yield f"{total:,} resources in {seconds:,.1f} s, {total / seconds if seconds else 0:,.0f} a second"


class Spill:
    """Resources that wait, in the order they came."""

    def __init__(self) -> None:
        self.file = SpooledTemporaryFile(max_size=SPILL_IN_MEMORY)  # noqa: SIM115 (closed below)
        self.number = 0

    def __len__(self) -> int:
        return self.number

    def add(self, item: Item) -> None:
        """Put one more behind the others."""
        self.number += 1
        self.file.write(
            _exact([item.file, item.place, item.kind, item.id, item.digest.hex(), item.size, item.resource])
        )
        self.file.write(b"\n")

    def __iter__(self) -> Iterator[Item]:
        self.file.seek(0)
        for line in self.file:
            file, place, kind, name, digest, size, resource = _restored(line)
            yield Item(file, place, kind, name, bytes.fromhex(digest), size, resource)

    def close(self) -> None:
        """Give the space back."""
        self.file.close()


class Chunk:
    """One unit of work at work."""

    def __init__(self, run: Import, session: Session) -> None:
        self.run = run
        self.session = session
        self.work = Work()
        self.held: dict[Key, SourceResource] = {}
        self.changed: dict[Key, Json] = {}
        """What is held of those resources that come in another form now."""
        self.searched: dict[tuple[str, str, str], tuple[Key, Known] | None] = {}
        self.contents: dict[Key, Json] = {}
        self.claimed: dict[tuple[str, str], int | Key] = {}

    def write(self, items: list[Item]) -> Work:
        """Write items, who is referred to before those who refer."""
        self.hold(items)
        readings: dict[Key, Reading | None] = {}
        wanted: set[Key] = set()
        for item in items:
            if self.unchanged(item):
                self.say(item, Verdict.UNCHANGED)
                continue
            try:
                reading = self.reading(item)
                pointing = reading.references.values() if reading else about_whom(item.resource)
                wanted.update(key for reference in pointing for key in self.keys(reference))
                readings[item.key] = reading
            except Invalid as refusal:
                self.say(item, Verdict.REFUSED, because(refusal))
        self.meet(wanted)
        self.claim(readings.values())
        fresh = [item for item in items if item.key in readings]
        for rank in sorted({ORDER.get(item.kind, LAST) for item in fresh}):
            self.write_rank([item for item in fresh if ORDER.get(item.kind, LAST) == rank], readings)
        return self.work

    def say(self, item: Item, verdict: Verdict, reason: str = "") -> None:
        """Note what became of an item."""
        self.work.verdicts.append((item, verdict, reason))

    # ---- what is here already ----------------------------------------------------------------------------------

    def select(self, keys: Iterable[Key], *, whole: bool = False) -> list[SourceResource]:
        """What is held under these keys."""
        names: dict[str, list[str]] = defaultdict(list)
        for kind, name in keys:
            names[kind].append(name)
        found: list[SourceResource] = []
        for kind, ids in names.items():
            statement = select(SourceResource).where(
                SourceResource.source == self.run.source,
                SourceResource.resource_type == kind,
                SourceResource.source_id.in_(ids),
            )
            found += self.session.scalars(statement.options(undefer(SourceResource.content)) if whole else statement)
        return found

    def hold(self, items: list[Item]) -> None:
        """Find out which of the items are here already, and what is held of those that changed."""
        digests = {item.key: item.digest for item in items}
        for row in self.select(digests):
            key = row.resource_type, row.source_id
            self.held[key] = row
            self.work.met[key] = Known(row.record_id, row.patient_id)
        changed = [key for key, row in self.held.items() if row.digest != digests[key]]
        for row in self.select(changed, whole=True):
            self.changed[row.resource_type, row.source_id] = row.content

    def unchanged(self, item: Item) -> bool:
        """It came in this form before, or in a newer or fuller one."""
        if item.key not in self.held:
            return False
        held = self.changed.get(item.key)
        if held is None:
            return True
        if older(item.resource, held):
            return True
        return item.kind in DIRECTORY and contained_in(json.loads(_exact(item.resource)), held)

    def reading(self, item: Item) -> Reading | None:
        """The item as columns, or None where it is kept as received only. Raises Invalid."""
        if item.kind not in SHAPES:
            return None
        try:
            reading = read(item.resource, self.run.zone)
        except NotForTheChart:
            held = self.held.get(item.key)
            if held is not None and held.record_id is not None:
                raise Invalid("this was about a patient before, and is not any more") from None
            return None
        for number in reading.identifiers:
            number["system"] = number["system"] or self.run.source
        return reading

    # ---- references --------------------------------------------------------------------------------------------

    def keys(self, reference: Reference) -> list[Key]:
        """What a reference may mean at its source."""
        if reference.address in self.run.urls:
            key = self.run.urls[reference.address]
            return [key] if key[0] in reference.types else []
        return reference.keys()

    def meet(self, keys: Iterable[Key]) -> None:
        """Look up rows that are referred to and are not remembered."""
        known, met = self.run.known, self.work.met
        for key in keys:
            if key not in met and key in known:
                met[key] = known[key]
        for row in self.select({key for key in keys if key not in met}):
            met[row.resource_type, row.source_id] = Known(row.record_id, row.patient_id)

    def find(self, reference: Reference) -> tuple[Key, Known]:
        """What a reference points at. Raises Missing."""
        for key in self.keys(reference):
            if key in self.work.met:
                return key, self.work.met[key]
        if search := reference.search():
            if search not in self.searched:
                self.searched[search] = self.by_identifier(*search)
            if found := self.searched[search]:
                return found
        raise Missing

    def by_identifier(self, kind: str, system: str, value: str) -> tuple[Key, Known] | None:
        """The one resource a number belongs to; None where there is none, or there are several."""
        if kind == "Patient":
            numbers = select(PatientIdentifier).where(
                PatientIdentifier.value == value, PatientIdentifier.use != IdentifierUse.OLD
            )
            if system:
                numbers = numbers.where(PatientIdentifier.system == system)
            owners = {number.patient_id for number in self.session.scalars(numbers.limit(2))}
            return ((kind, value), Known(*owners, *owners)) if len(owners) == 1 else None
        token = {"system": system, "value": value} if system else {"value": value}
        rows = self.session.scalars(
            select(SourceResource)
            .where(
                SourceResource.source == self.run.source,
                SourceResource.resource_type == kind,
                SourceResource.content.contains({"identifier": [token]}),
            )
            .limit(2)
        ).all()
        return ((kind, rows[0].source_id), Known(rows[0].record_id, None)) if len(rows) == 1 else None

    def content(self, key: Key) -> Json:
        """A resource as it was received. Raises Missing."""
        if key not in self.contents:
            for row in self.select([key], whole=True):
                self.contents[key] = row.content
        if key not in self.contents:
            raise Missing
        return self.contents[key]

    def practitioner(self, reference: Reference) -> int | None:
        """The practitioner meant, by themselves or in one of their roles. Raises Missing."""
        key, known = self.find(reference)
        if key[0] == "PractitionerRole":
            person = points_at(self.content(key).get("practitioner"), "practitioner", "Practitioner")
            if person is None:
                return None
            self.meet(self.keys(person))
            _, known = self.find(person)
        return known.record_id

    def resolve(self, item: Item, reading: Reading) -> Json:
        """The columns that references become. Raises Missing, naming the element; Invalid."""
        values: Json = {}
        for column, reference in reading.references.items():
            try:
                values |= self.resolved(column, reference, values)
            except Missing:
                if self.run.patience == Patience.WAIT:
                    raise
                if column == "medication" and reference.display and self.run.patience == Patience.REFUSE:
                    continue
                if column in NEEDED:
                    if self.run.patience == Patience.REFUSE:
                        whom = {"patient_id": "patient", "encounter_id": "encounter"}.get(column, "medication")
                        raise Invalid(f"{reference.element} refers to no {whom} that is known") from None
                    raise
                self.work.nobody[f"{item.kind}.{reference.element}"] += 1
                values[column] = "" if column == "author" else None
        return values

    def resolved(self, column: str, reference: Reference, values: Json) -> Json:
        """One reference as columns. Raises Missing; Invalid."""
        if column in ("practitioner_id", "requester_id"):
            return {column: self.practitioner(reference)}
        key, known = self.find(reference)
        if column == "medication":
            return medicine(self.content(key), reference)
        if column == "author":
            person = known.record_id if key[0] == "Organization" else self.practitioner(reference)
            return {"author": self.name(Organization if key[0] == "Organization" else Practitioner, person)}
        if known.record_id is None:
            raise Missing
        if column == "encounter_id" and known.patient_id != values.get("patient_id", known.patient_id):
            raise Invalid(f"{reference.element} is one of another patient")
        return {column: known.record_id}

    def name(self, model: type[Record], record_id: int | None) -> str:
        """What an author is called."""
        if record_id is None:
            return ""
        names = self.run.names
        if (model, record_id) not in names:
            if len(names) > REMEMBERED // 10:
                names.clear()
            found = self.session.get(model, record_id)
            names[model, record_id] = str(found) if found is not None else ""
        return names[model, record_id]

    def whose(self, item: Item) -> int | None:
        """The patient a resource without a table belongs to; None where it is about nobody. Raises Missing; Invalid."""
        for reference in patients_of(item.resource):
            try:
                key, known = self.find(reference)
            except Missing:
                if self.run.patience < Patience.REFUSE:
                    raise
                if not reference.contained and all(kind != "Patient" for kind, _ in self.keys(reference)):
                    continue
                raise Invalid(f"{reference.element} refers to no patient that is known") from None
            if key[0] == "Patient":
                return known.record_id
        for reference in targets_of(item.resource):
            try:
                return self.find(reference)[1].record_id
            except Missing:
                continue
        return None

    # ---- writing -----------------------------------------------------------------------------------------------

    def claim(self, readings: Iterable[Reading | None]) -> None:
        """Find out whom the numbers of incoming patients belong to."""
        values = {
            n["value"] for reading in readings if reading for n in reading.identifiers if n["use"] != IdentifierUse.OLD
        }
        if values:
            for number in self.session.scalars(
                select(PatientIdentifier).where(
                    PatientIdentifier.value.in_(sorted(values)), PatientIdentifier.use != IdentifierUse.OLD
                )
            ):
                self.claimed[number.system, number.value] = number.patient_id

    def once(self, item: Item, reading: Reading) -> None:
        """Raises DuplicateIdentifier where a number of a patient belongs to another one."""
        held = self.held.get(item.key)
        owner: int | Key = held.record_id if held is not None and held.record_id is not None else item.key
        current = [(n["system"], n["value"]) for n in reading.identifiers if n["use"] != IdentifierUse.OLD]
        for number in current:
            if self.claimed.get(number, owner) != owner:
                raise DuplicateIdentifier(
                    f"an identifier of the system {shown(number[0])} belongs to another patient already"
                )
        self.claimed.update(dict.fromkeys(current, owner))

    def write_rank(self, items: list[Item], readings: dict[Key, Reading | None]) -> None:
        """Write items that do not refer to one another."""
        ready: list[tuple[Item, Reading | None, Json]] = []
        for item in items:
            reading = readings[item.key]
            try:
                if reading is None:
                    ready.append((item, None, {"patient_id": self.whose(item)}))
                    continue
                values = reading.values | self.resolve(item, reading)
                if reading.model is Patient:
                    self.once(item, reading)
                ready.append((item, reading, values))
            except Missing:
                self.work.waiting.append(item)
            except Refusal as refusal:
                self.say(item, Verdict.REFUSED, because(refusal))
        rows = self.write_rows(ready)
        ids = self.numbers(SourceResource, sum(item.key not in self.held for item, _, _ in ready))
        for item, reading, values in ready:
            row = rows.get(item.key)
            if reading is None:
                known = Known(None, values["patient_id"])
            elif isinstance(row, Patient):
                known = Known(row.id, row.id)
            else:
                known = Known(row.id if row is not None else None, values.get("patient_id"))
            verdict = self.keep(item, known, ids)
            self.say(item, verdict if reading is not None else Verdict.KEPT)
            self.work.met[item.key] = known
            if reading is not None:
                self.work.left.update(f"{item.kind}.{name}" for name in reading.left)
        self.session.flush()

    def numbers(self, model: type[Record], count: int) -> Iterator[int]:
        """Numbers for new rows, drawn beforehand: rows that need not tell theirs are written half again as fast."""
        if not count:
            return iter(())
        sequence = func.pg_get_serial_sequence(model.__tablename__, "id")
        drawn = select(func.nextval(sequence)).select_from(func.generate_series(1, count))
        return iter(self.session.scalars(drawn).all())

    def write_rows(self, ready: list[tuple[Item, Reading | None, Json]]) -> dict[Key, Record]:
        """The rows of the items that have a table, made or changed, with their numbers."""
        rows: dict[Key, Record] = {}
        ids: dict[type[Record], dict[int, Key]] = defaultdict(dict)
        for item, reading, _ in ready:
            held = self.held.get(item.key)
            if reading is not None and held is not None and held.record_id is not None:
                ids[reading.model][held.record_id] = item.key
        for model, wanted in ids.items():
            for row in self.session.scalars(select(model).where(model.id.in_(list(wanted)))):
                rows[wanted[row.id]] = row
        patients = [item.key for item, reading, _ in ready if reading and reading.model is Patient]
        unnumbered = [key for key in patients if key not in rows]
        mrns = iter(next_mrns(self.session, len(unnumbered)) if unnumbered else [])
        new = Counter(reading.model for item, reading, _ in ready if reading is not None and item.key not in rows)
        numbers = {model: self.numbers(model, count) for model, count in new.items()}
        for item, reading, values in ready:
            if reading is None:
                continue
            if item.key not in rows:
                own = {"mrn": next(mrns)} if reading.model is Patient else {}
                rows[item.key] = reading.model(id=next(numbers[reading.model]), **values, **own)
                self.session.add(rows[item.key])
                continue
            row = rows[item.key]
            for column, value in values.items():
                if getattr(row, column) != value:
                    setattr(row, column, value)
        self.session.flush()
        if patients:
            self.write_identifiers([(item, reading, rows[item.key]) for item, reading, _ in ready if reading])
        return rows

    def write_identifiers(self, written: list[tuple[Item, Reading, Record]]) -> None:
        """The numbers of patients; one that the source does not send any more becomes an old one."""
        patients = {row.id: (item, reading) for item, reading, row in written if isinstance(row, Patient)}
        again = [patient_id for patient_id, (item, _) in patients.items() if item.key in self.held]
        here: dict[int, dict[tuple[str, str], PatientIdentifier]] = defaultdict(dict)
        if again:
            for number in self.session.scalars(
                select(PatientIdentifier).where(PatientIdentifier.patient_id.in_(again))
            ):
                here[number.patient_id][number.system, number.value] = number
        for patient_id, (item, reading) in patients.items():
            sent = {(n["system"], n["value"]): n for n in reading.identifiers}
            for key, values in sent.items():
                known = here[patient_id].get(key)
                if known is None:
                    self.session.add(PatientIdentifier(patient_id=patient_id, **values))
                elif (known.use, known.type_code) != (values["use"], values["type_code"]):
                    known.use, known.type_code = values["use"], values["type_code"]
            for token in self.changed.get(item.key, {}).get("identifier", ()):
                before = token.get("system") or self.run.source, token.get("value")
                if before not in sent and before in here[patient_id]:
                    here[patient_id][before].use = IdentifierUse.OLD
        self.session.flush()
        for patient_id in patients:
            events.emit(self.session, events.PatientRegistered(patient_id))

    def keep(self, item: Item, known: Known, ids: Iterator[int]) -> Verdict:
        """Keep a resource word for word, next to the row it became."""
        held = self.held.get(item.key)
        if held is None:
            self.session.add(
                SourceResource(
                    id=next(ids),
                    source=self.run.source,
                    resource_type=item.kind,
                    source_id=item.id,
                    patient_id=known.patient_id,
                    record_id=known.record_id,
                    digest=item.digest,
                    content=item.resource,
                )
            )
            return Verdict.CREATED
        held.patient_id, held.record_id = known.patient_id, known.record_id
        held.digest, held.content = item.digest, item.resource
        return Verdict.UPDATED


def _teach(connection: Any, _record: object, _proxy: object) -> None:
    set_json_dumps(_exact, connection)


def exact_numbers(engine: Engine) -> None:
    """Let connections write the decimals of a resource with the digits they came with."""
    if not event.contains(engine, "checkout", _teach):
        event.listen(engine, "checkout", _teach)


@contextmanager
def alone(engine: Engine, source: str) -> Iterator[bool]:
    """Keep a second import of the same source out for a block; False where one is at work."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        key = {"one": LOCK, "two": int.from_bytes(sha256(source.encode()).digest()[:4], "big", signed=True)}
        until = time.monotonic() + 5
        # A killed import's connection lives on until its last statement is done.
        while not (mine := bool(connection.execute(text("SELECT pg_try_advisory_lock(:one, :two)"), key).scalar())):
            if time.monotonic() > until:
                break
            time.sleep(0.2)
        yield mine
        if mine:
            connection.execute(text("SELECT pg_advisory_unlock(:one, :two)"), key)


def main(
    paths: list[str],
    source: str = "import",
    *,
    time_zone: str = "UTC",
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Import files and directories of FHIR R4 JSON; the database and the trail are connected already.

    `source` names who sent them: ids are unique within it. Dates without a time begin at midnight in `time_zone`.
    Gives the exit status: 0 all in, 1 some refused, 2 could not run.
    """
    out, err = out or sys.stdout, err or sys.stderr
    try:
        zone = UTC if time_zone == "UTC" else ZoneInfo(time_zone)
        files = files_of(paths)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "there is no such time zone"
        err.write(f"{shown(str(getattr(error, 'filename', None) or time_zone))}: {reason}\n")
        return 2
    if not files:
        err.write("There are no files to import; they end in .json, .ndjson or .jsonl.\n")
        return 2
    try:
        engine = guard.engine()
        exact_numbers(engine)
        with alone(engine, source) as mine:
            if not mine:
                err.write("Another import of this source is at work.\n")
                return 2
            with closing(Import(source, zone, lambda line: tqdm.write(line, file=err))) as work:
                return run(files, work, out, err)
    except (NotRecorded, OutOfService) as refusal:
        err.write(f"{refusal}\nWhat was read so far is in; run the same command again to go on.\n")
        return 2
    except SQLAlchemyError as error:
        err.write(f"The database gave up ({type(error).__name__}). Run the same command again to go on.\n")
        return 2


def run(files: list[Path], work: Import, out: TextIO, err: TextIO) -> int:
    """Read the files, those first that others refer to, and say what came of it."""
    begun = time.monotonic()
    total = sum(file.stat().st_size for file in files)
    ordered = sorted(files, key=lambda file: ORDER.get(first_type(file), LAST))
    pace = 0.2 if err.isatty() else 10.0
    with tqdm(total=total, unit="B", unit_scale=True, desc="import", file=err, mininterval=pace) as bar:
        for file in ordered:
            for found in received(file, file.name, bar.update, partial(work.break_off, file.name)):
                work.offer(found)
        work.settle()
    for line in work.summary(time.monotonic() - begun):
        out.write(line + "\n")
    out.flush()
    return 1 if work.refused or work.broken else 0
