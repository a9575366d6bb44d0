"""Notes: written as drafts, signed for good, added to, replaced and withdrawn; never deleted."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import rfc8785
from sqlalchemy import ColumnElement, Select, cast, func, select
from sqlalchemy.dialects.postgresql import REGCONFIG
from sqlalchemy.orm import Session, joinedload

from app import guard
from app.actor import current, service
from app.errors import (
    Conflict,
    Forbidden,
    IllegalTransition,
    Invalid,
    NotAClinician,
    NotAuthor,
    NoteBroken,
    NoteSigned,
    NotFound,
    Unsigned,
)
from app.services import clinical, note_shape, note_templates
from app.services.words import fold, line
from models.base import now
from models.clinical import Encounter
from models.codes import CompositionStatus, Confidentiality
from models.notes import ClinicalNote, NoteTemplate
from models.organization import Branch, Practitioner

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LATE: Final = timedelta(hours=24)
"""A draft older than this is asked about."""
LONGEST_LIST: Final = 200
LONGEST_FIND: Final = 50
LONGEST_QUERY: Final = 200
STANDING: Final = (CompositionStatus.FINAL, CompositionStatus.AMENDED)
OPEN: Final = ("arrived", "triaged", "in-progress", "onleave")
"""States in which a visit is under way."""


# ---- reading -----------------------------------------------------------------------------------------------------


def _wide() -> list[Any]:
    """What is told with a note."""
    return [joinedload(getattr(ClinicalNote, name)) for name in ("author", "cosigner", "branch", "template", "patient")]


def open_note(session: Session, note_id: int) -> ClinicalNote:
    """A note with those who signed it. Raises NotFound, also for one that is not open to the actor."""
    note = session.scalars(select(ClinicalNote).where(ClinicalNote.id == note_id).options(*_wide())).one_or_none()
    if note is None:
        raise guard.refuse("read", "ClinicalNote", NotFound)
    return note


def of_patient(session: Session, patient_id: int) -> Sequence[ClinicalNote]:
    """A patient's notes as far as they are open to the actor, the newest first."""
    return session.scalars(
        select(ClinicalNote)
        .where(ClinicalNote.patient_id == patient_id)
        .options(*_wide())
        .order_by(ClinicalNote.written_at.desc(), ClinicalNote.id.desc())
        .limit(LONGEST_LIST)
    ).all()


def addenda(session: Session, note: ClinicalNote) -> list[ClinicalNote]:
    """What was added to a note or to an earlier version of it, each in its newest version, the oldest first."""
    ids = [version.id for version in versions(session, note)]
    first = session.scalars(
        select(ClinicalNote).where(ClinicalNote.addendum_to_id.in_(ids)).options(*_wide()).order_by(ClinicalNote.id)
    ).all()
    return [versions(session, one)[-1] for one in first]


def versions(session: Session, note: ClinicalNote) -> list[ClinicalNote]:
    """A note's versions as far as they are open to the actor, the oldest first; those begun and given up left out."""
    found = [note]
    while (before := found[0].replaces_id) is not None:
        older = session.scalars(select(ClinicalNote).where(ClinicalNote.id == before).options(*_wide())).one_or_none()
        if older is None:
            break
        found.insert(0, older)
    while True:
        newer = session.scalars(
            select(ClinicalNote)
            .where(
                ClinicalNote.replaces_id == found[-1].id,
                (ClinicalNote.status != CompositionStatus.ENTERED_IN_ERROR) | ClinicalNote.signed_at.is_not(None),
            )
            .options(*_wide())
            .order_by(ClinicalNote.id.desc())
            .limit(1)
        ).one_or_none()
        if newer is None:
            return found
        found.append(newer)


def printable(session: Session, note_id: int) -> ClinicalNote:
    """A note that may go on paper. Raises NotFound, and Unsigned for a draft."""
    note = open_note(session, note_id)
    if note.signed_at is None:
        raise Unsigned("A draft is not printed. Sign it first.")
    return note


@dataclass(frozen=True)
class Waiting:
    """What waits for somebody's signature, the oldest first."""

    drafts: Sequence[ClinicalNote]
    """Their own drafts, of whatever age."""
    late: Sequence[ClinicalNote]
    """Those of them that are older than LATE."""
    cosign: Sequence[ClinicalNote]


def unsigned_for(session: Session) -> Waiting:
    """What waits for the actor's signature."""
    me = _author()
    mine = session.scalars(
        select(ClinicalNote).where(*_draft_of(me)).options(*_wide()).order_by(ClinicalNote.written_at)
    ).all()
    theirs = session.scalars(
        select(ClinicalNote).where(*_to_cosign(me)).options(*_wide()).order_by(ClinicalNote.signed_at)
    ).all()
    since = now() - LATE
    return Waiting(mine, [note for note in mine if note.written_at < since], theirs)


def waiting_count(session: Session) -> int:
    """How many of the actor's drafts are late, and notes wait for their co-signature."""
    counts = waiting()
    if not counts:
        return 0
    return sum(session.execute(select(*(each.scalar_subquery().label(name) for name, each in counts.items()))).one())


def waiting() -> dict[str, Select[int]]:
    """What `waiting_count` adds up, to be asked with other counts; nothing where the actor writes no notes."""
    me = current().practitioner_id
    if me is None or not (current().may("update", "ClinicalNote") and current().may("read", "ClinicalNote")):
        return {}
    late = select(func.count()).select_from(ClinicalNote).where(*_draft_of(me), ClinicalNote.written_at < now() - LATE)
    theirs = select(func.count()).select_from(ClinicalNote).where(*_to_cosign(me))
    return {"late": late, "theirs": theirs}


def _draft_of(me: int) -> tuple[ColumnElement[bool], ...]:
    return (ClinicalNote.author_id == me, ClinicalNote.status == CompositionStatus.PRELIMINARY)


def _to_cosign(me: int) -> tuple[ColumnElement[bool], ...]:
    return (
        ClinicalNote.cosigner_id == me,
        ClinicalNote.cosigned_at.is_(None),
        ClinicalNote.signed_at.is_not(None),
        ClinicalNote.status.in_(STANDING),
    )


# ---- writing -----------------------------------------------------------------------------------------------------


def begin(
    session: Session,
    *,
    patient_id: int,
    template: str,
    encounter_id: int | None = None,
    confidentiality: str = Confidentiality.NORMAL,
) -> ClinicalNote:
    """A draft by the actor from a template (its key), in the visit given or the one the actor has open.

    Raises NotFound for a patient or template there is none of, Invalid for a visit of somebody else, NotAClinician.
    """
    patient = clinical.open_chart(session, patient_id)
    shape = note_templates.current_edition(session, template)
    if encounter_id is None:
        encounter = _open_visit(session, patient_id)
    else:
        encounter = session.get(Encounter, encounter_id)
        if encounter is None or encounter.patient_id != patient_id:
            raise Invalid("This visit is not one of this patient's.", field="encounter")
    return _draft(
        session,
        patient_id=patient.id,
        template_id=shape.id,
        title=shape.name,
        encounter_id=encounter.id if encounter else None,
        confidentiality=_level(confidentiality),
        content={},
    )


def _open_visit(session: Session, patient_id: int) -> Encounter | None:
    """The actor's visit with this patient that is under way, the one begun last."""
    return session.scalars(
        select(Encounter)
        .where(
            Encounter.patient_id == patient_id,
            Encounter.practitioner_id == _author(),
            Encounter.status.in_(OPEN),
        )
        .order_by(Encounter.started_at.desc().nulls_last(), Encounter.id.desc())
        .limit(1)
    ).one_or_none()


def addendum(session: Session, note_id: int) -> ClinicalNote:
    """A draft by the actor that adds to a signed note. Raises Unsigned, NotFound, and IllegalTransition."""
    note = _standing(session, note_id)
    root = session.get(ClinicalNote, versions(session, note)[0].addendum_to_id or 0) or note
    shape = note_templates.current_edition(session, note_templates.ADDENDUM)
    return _draft(
        session,
        patient_id=root.patient_id,
        template_id=shape.id,
        title=line(f"Addendum: {root.title}"[:200], field="title"),
        encounter_id=None,
        confidentiality=root.confidentiality,
        content={},
        addendum_to_id=root.id,
    )


def amend(session: Session, note_id: int) -> ClinicalNote:
    """A draft of a new version of the actor's own signed note; it takes the place of the old one when it is signed.

    Raises NotAuthor, Unsigned, IllegalTransition, and Conflict where a new version has been begun already.
    """
    note = _standing(session, note_id)
    _mine(note)
    if note.template_id is None:
        raise IllegalTransition("This note was not written here, so there is no form to change it with.")
    standing = [version for version in versions(session, note) if version.withdrawn_at is None]
    if any(version.replaces_id == note.id for version in standing):
        raise Conflict("There is a new version of this note already.")
    return _draft(
        session,
        patient_id=note.patient_id,
        template_id=note.template_id,
        title=note.title,
        encounter_id=note.encounter_id,
        confidentiality=note.confidentiality,
        content=note.content,
        replaces_id=note.id,
    )


def _draft(session: Session, **told: Any) -> ClinicalNote:
    branch = session.get(Branch, current().branch_id or 0)
    note = ClinicalNote(
        **told,
        author_id=_author(),
        branch_id=branch.id if branch else None,
        language=branch.languages[0] if branch and branch.languages else "",
        written_at=now(),
    )
    session.add(note)
    session.flush()
    return note


def save_draft(
    session: Session,
    note_id: int,
    *,
    version: int,
    content: Mapping[str, Any],
    title: str | None = None,
    confidentiality: str | None = None,
) -> ClinicalNote:
    """Keep what was written so far, which may be incomplete; `version` is the draft as the actor last saw it.

    Raises NoteSigned, NotAuthor, NoteBroken for what the template has no place for, TooLarge, and Conflict where the
    draft was changed elsewhere.
    """
    note = _own_draft(session, note_id, version)
    template = _template(session, note)
    whole = note_shape.cleaned(content)
    _refuse(template, note_shape.faults(template.schema, whole, draft=True))
    if whole != note.content:
        note.content = whole
    if title is not None:
        note.title = line(title, field="title") or template.name
    if confidentiality is not None:
        note.confidentiality = _level(confidentiality)
        _as_closed_as_its_note(session, note)
    session.flush()
    return note


def _as_closed_as_its_note(session: Session, note: ClinicalNote) -> None:
    """Raises Invalid for an addendum that tells people of a note which is not open to them."""
    levels = list(Confidentiality)
    whole = session.get(ClinicalNote, note.addendum_to_id) if note.addendum_to_id is not None else None
    if whole is not None and levels.index(Confidentiality(note.confidentiality)) < levels.index(
        Confidentiality(whole.confidentiality)
    ):
        raise Invalid("An addendum is read by nobody whom the note is closed to.", field="confidentiality")


def sign(session: Session, note_id: int, *, version: int) -> ClinicalNote:
    """Sign a draft of the actor's own; from here on the database keeps it as it is.

    Who is in training names who is to sign as well. Raises NoteBroken naming what is missing, NoteSigned, NotAuthor,
    and Conflict where the draft was changed since it was seen.
    """
    note = _own_draft(session, note_id, version)
    template = _template(session, note)
    _refuse(template, note_shape.faults(template.schema, note.content, draft=False))
    author = session.get(Practitioner, note.author_id)
    if author is None:
        raise NotAClinician
    patient = clinical.open_chart(session, note.patient_id)
    note.signed_at = now()
    note.signed_for = patient.fhir_id
    note.status = CompositionStatus.AMENDED if note.replaces_id else CompositionStatus.FINAL
    note.cosigner_id = author.supervised_by_id
    note.digest = digest_of(note, author, template)
    session.flush()
    return note


def cosign(session: Session, note_id: int) -> ClinicalNote:
    """Sign a note as well that was written in training under the actor.

    Raises Forbidden for anybody else, the author among them, Unsigned, and NoteSigned for a second time.
    """
    note = open_note(session, note_id)
    me = _author()
    if note.author_id == me or note.cosigner_id != me:
        raise guard.refuse("update", "ClinicalNote", NotTheCosigner)
    if note.signed_at is None:
        raise Unsigned
    if note.status not in STANDING:
        raise IllegalTransition("This note was withdrawn.")
    if note.cosigned_at is not None:
        raise NoteSigned("You have signed this note already.")
    note.cosigned_at = now()
    session.flush()
    return note


class NotTheCosigner(Forbidden):
    """A co-signature is one other person's."""

    sentence = "A note is signed a second time by the supervisor of whoever wrote it, and by nobody else."


def withdraw(session: Session, note_id: int, *, reason: str) -> ClinicalNote:
    """Take a note of the actor's own back, signed or not: it stays, struck through, with the reason.

    Raises NotAuthor, Invalid without a reason, and IllegalTransition for a second time.
    """
    note = open_note(session, note_id)
    _mine(note)
    if note.status == CompositionStatus.ENTERED_IN_ERROR:
        raise IllegalTransition("This note was withdrawn already.")
    said = line(reason, field="reason", longest=500)
    if sum(map(str.isalnum, said)) < 5:
        raise Invalid("Please say in a few words why. It is kept with the note.", field="reason")
    note.status, note.withdrawn_at, note.withdrawn_reason = CompositionStatus.ENTERED_IN_ERROR, now(), said
    session.flush()
    return note


def _author() -> int:
    """Who the actor signs as. Raises NotAClinician."""
    me = current().practitioner_id
    if me is None:
        raise guard.refuse("create", "ClinicalNote", NotAClinician)
    return me


def _mine(note: ClinicalNote) -> None:
    if note.author_id != _author():
        raise guard.refuse("update", "ClinicalNote", NotAuthor)


def _own_draft(session: Session, note_id: int, version: int) -> ClinicalNote:
    """A draft of the actor's as they last saw it. Raises NotFound, NotAuthor, NoteSigned, Conflict."""
    note = open_note(session, note_id)
    _mine(note)
    if note.signed_at is not None:
        raise NoteSigned
    if note.status != CompositionStatus.PRELIMINARY:
        raise IllegalTransition("This draft was withdrawn.")
    if note.version != version:
        raise Conflict("This draft was changed in another window. Copy what you need from here, then open it again.")
    return note


def _standing(session: Session, note_id: int) -> ClinicalNote:
    """A signed note that was not withdrawn. Raises NotFound, Unsigned, IllegalTransition."""
    note = open_note(session, note_id)
    if note.status == CompositionStatus.ENTERED_IN_ERROR:
        raise IllegalTransition("This note was withdrawn.")
    if note.signed_at is None:
        raise Unsigned
    return note


def _template(session: Session, note: ClinicalNote) -> NoteTemplate:
    template = session.get(NoteTemplate, note.template_id or 0)
    if template is None:
        raise IllegalTransition("This note was not written here, so there is no form to write it with.")
    return template


def _refuse(template: NoteTemplate, faults: Mapping[str, str]) -> None:
    """Raises NoteBroken naming the fields, where there are faults."""
    if not faults:
        return
    labels = {field.path: field.label for field in note_shape.every(note_shape.fields(template.schema))}
    named = [labels[path] for path in labels if path in faults]
    raise NoteBroken(f"Please look at: {', '.join(named)}." if named else next(iter(faults.values())), faults=faults)


def _level(code: str) -> str:
    if code not in set(Confidentiality):
        raise Invalid("Please choose who may read it.", field="confidentiality")
    return code


# ---- what was signed ---------------------------------------------------------------------------------------------


def digest_of(note: ClinicalNote, author: Practitioner, template: NoteTemplate | None) -> str:
    """SHA-256, in hexadecimal, of what was signed, as JSON in the order of RFC 8785.

    The co-signature and a withdrawal come later and stand beside it.
    """
    told: dict[str, Any] = {
        "id": str(note.fhir_id),
        "title": note.title,
        "content": note.content,
        "template": {"key": template.key, "edition": template.edition} if template else None,
        "author": str(author.fhir_id),
        "patient": str(note.signed_for),
        "branch": note.branch_id,
        "encounter": note.encounter_id,
        "replaces": note.replaces_id,
        "addendum_to": note.addendum_to_id,
        "written_at": _instant(note.written_at),
        "signed_at": _instant(note.signed_at),
        "confidentiality": str(note.confidentiality),
        "language": note.language,
    }
    return hashlib.sha256(rfc8785.dumps(told)).hexdigest()


def _instant(value: datetime | None) -> int | None:
    """Microseconds since 1970, which no time zone changes."""
    return (value - EPOCH) // timedelta(microseconds=1) if value else None


@dataclass(frozen=True)
class Checked:
    """What looking through the signed notes came to."""

    notes: int
    broken: int | None = None
    """The number of the first note whose digest does not hold."""
    title: str = ""
    patient: str = ""
    """The number of the patient the broken note belongs to."""


def check_all(show: Callable[[int, int], None], *, batch: int = 200) -> Checked:
    """Reckon the digest of every signed note anew, oldest first, until one does not hold.

    `show` is told (done, total) after each batch; what was looked at is in the trail, batch by batch.
    """
    done, last = 0, 0
    with guard.acting_as(service("note-check", channel="cli")):
        signed = select(func.count()).select_from(ClinicalNote).where(ClinicalNote.signed_at.is_not(None))
        total = guard.session().scalar(signed) or 0
    while True:
        with guard.acting_as(service("note-check", channel="cli")):
            found = (
                guard.session()
                .scalars(
                    select(ClinicalNote)
                    .where(ClinicalNote.id > last, ClinicalNote.signed_at.is_not(None))
                    .options(*(joinedload(getattr(ClinicalNote, name)) for name in ("author", "template", "patient")))
                    .order_by(ClinicalNote.id)
                    .limit(batch)
                )
                .all()
            )
            for note in found:
                if note.digest is None or not _holds(note):
                    return Checked(done, note.id, note.title, note.patient.mrn)
                done += 1
        if not found:
            return Checked(done)
        last = found[-1].id
        show(done, total)


def _holds(note: ClinicalNote) -> bool:
    try:
        return digest_of(note, note.author, note.template) == note.digest
    except rfc8785.CanonicalizationError:
        return False


# ---- comparing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """A field of two versions of a note, word by word."""

    label: str
    parts: tuple[tuple[str, str], ...]
    """("same" | "gone" | "new", text), in order."""

    @property
    def changed(self) -> bool:
        return any(kind != "same" for kind, _ in self.parts)


def diff(session: Session, older_id: int, newer_id: int) -> tuple[ClinicalNote, ClinicalNote, list[Change]]:
    """Two versions of one note with the full difference between them. Raises NotFound where they are not."""
    newer = open_note(session, newer_id)
    family = {version.id: version for version in versions(session, newer)}
    if older_id not in family:
        raise NotFound
    older = family[older_id]
    changes = [
        Change("Title", between(older.title, newer.title)),
        Change("Who may read it", between(older.confidentiality, newer.confidentiality)),
    ]
    for path, label in _labels(older, newer).items():
        said = (note_shape.spoken(note_shape.value_at(note.content, path)) for note in (older, newer))
        changes.append(Change(label, between(*said)))
    return older, newer, [change for change in changes if change.parts]


def _labels(*notes: ClinicalNote) -> dict[str, str]:
    """Every field of some notes, in order, by path."""
    found: dict[str, str] = {}
    for note in reversed(notes):
        shape = note_shape.fields(note.template.schema) if note.template else ()
        for field in shape:
            for part in field.fields or (field,):
                found.setdefault(part.path, f"{field.label}: {part.label}" if field.fields else part.label)
        for path, _ in note_shape.strangers(shape, note.content):
            found.setdefault(path, path)
    return found


MOST_COMPARED: Final = 1_000_000
"""Words of one text times those of the other; the time it takes grows with it."""
GRAINS: Final = (r"\s+|\w+|[^\w\s]", r"[^\n.]*[\n.]+\s*|[^\n.]+", r"(?s:.+)")
"""What is compared: words, where that takes too long sentences, and where even those are many the whole."""


def between(old: str, new: str) -> tuple[tuple[str, str], ...]:
    """What makes a text of another, word by word; where much of a long one differs, sentence by sentence."""
    cuts = (_cut(grain, old, new) for grain in GRAINS)
    head, before, after, tail = next(cut for cut in cuts if len(cut[1]) * len(cut[2]) <= MOST_COMPARED)
    parts = [("same", head)]
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            parts.append(("same", "".join(before[a:b])))
            continue
        parts += [("gone", "".join(before[a:b])), ("new", "".join(after[c:d]))]
    return tuple((sign, text) for sign, text in (*parts, ("same", tail)) if text)


def _cut(grain: str, old: str, new: str) -> tuple[str, list[str], list[str], str]:
    """What two texts begin with alike, the pieces of each that differ, and what they end with alike."""
    before, after = (re.findall(grain, text) for text in (old, new))
    head = _alike(before, after)
    tail = _alike(before[head:][::-1], after[head:][::-1])
    one, other = (pieces[head : len(pieces) - tail] for pieces in (before, after))
    return "".join(before[:head]), one, other, "".join(before[len(before) - tail :])


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """With how many words two texts begin alike."""
    return next(
        (number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(map(len, (one, other)))
    )


# ---- searching ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hit:
    """A note that was found, and the words around what was looked for."""

    note: ClinicalNote
    snippet: str
    marks: tuple[tuple[int, int], ...]
    """(start, length) of each word that was looked for."""


def search(session: Session, asked: str, *, patient_id: int | None = None) -> list[Hit]:
    """Notes open to the actor with these words, as written or as the language of the branch bends them, best first.

    Understands "words in quotes", or, and -without, as people know them from elsewhere.
    """
    asked = re.sub(r"[\x00-\x1f]", " ", asked)[:LONGEST_QUERY].strip()
    if not asked:
        return []
    branch = session.get(Branch, current().branch_id or 0)
    language = branch.languages[0] if branch and branch.languages else ""
    wanted = func.websearch_to_tsquery(cast("simple", REGCONFIG), asked).op("||")(
        func.websearch_to_tsquery(func.wb_dictionary(language), asked)
    )
    statement = select(ClinicalNote).where(ClinicalNote.search.op("@@")(wanted)).options(*_wide())
    if patient_id is not None:
        statement = statement.where(ClinicalNote.patient_id == patient_id)
        guard.asked_about(patient_id)
    guard.searching("ClinicalNote by words")
    ranked = statement.order_by(func.ts_rank(ClinicalNote.search, wanted).desc(), ClinicalNote.id.desc())
    return [_hit(note, asked) for note in session.scalars(ranked.limit(LONGEST_FIND))]


AROUND: Final = 90
"""Letters of a snippet on either side of the first word found."""


def _hit(note: ClinicalNote, asked: str) -> Hit:
    """A note with the piece of it that speaks of what was asked."""
    shape = note_shape.fields(note.template.schema) if note.template else ()
    said = [note_shape.value_at(note.content, field.path) for field in note_shape.every(shape)]
    said += [value for _, value in note_shape.strangers(shape, note.content)]
    text = re.sub(r"\s+", " ", " · ".join(_texts(said))) or note.title
    stems = [_stem(word) for word in re.findall(r"\w+", asked) if word.lower() != "or"]
    meant: dict[str, bool] = {}
    places: list[tuple[int, int]] = []
    for word in re.finditer(r"\w+", text):
        if places and word.start() > places[0][0] + 2 * AROUND:
            break
        if word[0] not in meant:
            mine = _stem(word[0])
            meant[word[0]] = any(mine.startswith(stem) or stem.startswith(mine) for stem in stems)
        if meant[word[0]]:
            places.append((word.start(), len(word[0])))
    middle = places[0][0] if places else 0
    first = max(0, middle - AROUND)
    first = text.find(" ", first) + 1 if first else 0
    last = min(len(text), middle + AROUND)
    last = text.rfind(" ", first, last) if last < len(text) else last
    before, after = "… " if first else "", " …" if last < len(text) else ""
    marks = tuple((s - first + len(before), length) for s, length in places if first <= s and s + length <= last)
    return Hit(note, f"{before}{text[first:last]}{after}", marks)


def _stem(word: str) -> str:
    """A word without what languages hang on to its end, about."""
    plain = fold(word)
    return plain[: max(3, len(plain) - 3)] if len(plain) > 4 else plain


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _texts(part)]
