"""The templates of notes: those that are shipped, and those an administrator makes of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import guard
from app.actor import service
from app.errors import Conflict, Invalid, NotFound
from app.services.note_shape import ORDER, UNIT, checked
from app.services.words import line
from models.codes import NoteKind
from models.notes import NoteTemplate

LOINC: Final[dict[str, tuple[str, str]]] = {
    NoteKind.PROGRESS: ("11506-3", "Progress note"),
    NoteKind.ADMISSION: ("34117-2", "History and physical note"),
    NoteKind.DISCHARGE: ("18842-5", "Discharge summary"),
    NoteKind.PROCEDURE: ("28570-0", "Procedure note"),
    NoteKind.FREE: ("34109-9", "Note"),
    NoteKind.ADDENDUM: ("55107-7", "Addendum Document"),
}
"""The LOINC document type of each kind of note, as FHIR's Composition.type."""


def _area(title: str, hint: str = "") -> dict[str, Any]:
    return {"type": "string", "format": "textarea", "title": title, **({"description": hint} if hint else {})}


def _line(title: str) -> dict[str, Any]:
    return {"type": "string", "title": title, "maxLength": 200}


def _day(title: str) -> dict[str, Any]:
    return {"type": "string", "format": "date", "title": title}


def _choice(title: str, *choices: str) -> dict[str, Any]:
    return {"type": "string", "title": title, "enum": list(choices)}


def _number(title: str, unit: str, minimum: float, maximum: float, kind: str = "integer") -> dict[str, Any]:
    return {"type": kind, "title": title, UNIT: unit, "minimum": minimum, "maximum": maximum}


def _shape(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties, ORDER: list(properties)}


SHIPPED: Final[tuple[tuple[str, str, str, dict[str, Any]], ...]] = (
    (
        "soap",
        "Progress note (SOAP)",
        NoteKind.PROGRESS,
        _shape(
            ("subjective", "assessment", "plan"),
            subjective=_area("Subjective", "What the patient says"),
            objective=_area("Objective", "What was found"),
            assessment=_area("Assessment"),
            plan=_area("Plan"),
        ),
    ),
    (
        "admission",
        "Admission note",
        NoteKind.ADMISSION,
        _shape(
            ("complaint", "history", "impression", "plan"),
            complaint=_line("Presenting complaint"),
            history=_area("History of the present illness"),
            past=_area("Past medical history"),
            family_social=_area("Family and social history"),
            examination={
                "title": "Examination",
                **_shape(
                    (),
                    temperature=_number("Temperature", "Cel", 25, 45, "number"),
                    pulse=_number("Heart rate", "/min", 0, 350),
                    systolic=_number("Systolic blood pressure", "mm[Hg]", 0, 350),
                    diastolic=_number("Diastolic blood pressure", "mm[Hg]", 0, 250),
                    saturation=_number("Oxygen saturation", "%", 0, 100),
                    findings=_area("Findings"),
                ),
            },
            impression=_area("Impression"),
            plan=_area("Plan"),
        ),
    ),
    (
        "discharge",
        "Discharge summary",
        NoteKind.DISCHARGE,
        _shape(
            ("diagnosis", "course", "condition", "instructions"),
            diagnosis=_line("Principal diagnosis"),
            course=_area("Course in hospital"),
            procedures=_area("Procedures"),
            medication=_area("Medicines at discharge"),
            condition=_choice("Condition at discharge", "Recovered", "Improved", "Unchanged", "Worse", "Died"),
            destination=_choice("Goes to", "Home", "Another hospital", "A nursing home", "Elsewhere"),
            instructions=_area("What the patient was told"),
            follow_up=_day("Follow-up on"),
        ),
    ),
    (
        "procedure",
        "Procedure note",
        NoteKind.PROCEDURE,
        _shape(
            ("procedure", "consent", "description", "complications"),
            procedure=_line("Procedure"),
            indication=_area("Indication"),
            consent={"type": "boolean", "title": "The patient has consented"},
            team=_line("Team"),
            anaesthesia={
                "type": "array",
                "title": "Anaesthesia",
                "items": {"type": "string", "enum": ["None", "Local", "Regional", "Sedation", "General"]},
                "uniqueItems": True,
            },
            description=_area("What was done"),
            blood_loss=_number("Blood loss", "mL", 0, 20000),
            complications=_area("Complications", "Write “None” where there were none"),
            aftercare=_area("Aftercare"),
        ),
    ),
    ("free", "Free text", NoteKind.FREE, _shape(("text",), text=_area("Text"))),
    ("addendum", "Addendum", NoteKind.ADDENDUM, _shape(("text",), text=_area("What is to be added"))),
)
"""Key, name, kind and schema of what a new house begins with."""
ADDENDUM: Final = "addendum"
"""The key of the template addenda are written with."""


def plant() -> None:
    """Write the shipped templates that no edition is there of yet. Safe to call at every start."""
    with guard.acting_as(service("setup")), guard.unit_of_work() as session:
        known = {template.key for template in session.scalars(select(NoteTemplate))}
        for key, name, kind, schema in SHIPPED:
            if key not in known:
                session.add(NoteTemplate(key=key, edition=1, name=name, kind=kind, schema=checked(schema)))


def templates(session: Session) -> Sequence[NoteTemplate]:
    """The editions notes are written with now: by what they are for, as NoteKind has it, and then by name."""
    kinds = list(NoteKind)
    found = session.scalars(select(NoteTemplate).where(NoteTemplate.active)).all()
    return sorted(found, key=lambda template: (kinds.index(NoteKind(template.kind)), template.name.casefold()))


def newest(session: Session) -> list[NoteTemplate]:
    """The newest edition of every template, retired ones too, by name."""
    latest: dict[str, NoteTemplate] = {}
    for template in session.scalars(select(NoteTemplate).order_by(NoteTemplate.key, NoteTemplate.edition)):
        latest[template.key] = template
    return sorted(latest.values(), key=lambda template: template.name.casefold())


def editions(session: Session, key: str) -> Sequence[NoteTemplate]:
    """Every edition of a template, the newest first. Raises NotFound."""
    found = session.scalars(
        select(NoteTemplate).where(NoteTemplate.key == key).order_by(NoteTemplate.edition.desc())
    ).all()
    if not found:
        raise NotFound
    return found


def current_edition(session: Session, key: str) -> NoteTemplate:
    """The edition notes are written with now. Raises NotFound where there is none, or it is retired."""
    found = session.scalars(select(NoteTemplate).where(NoteTemplate.key == key, NoteTemplate.active)).one_or_none()
    if found is None:
        raise NotFound("This template is not in use any more. Please choose another.")
    return found


def save_template(
    session: Session, *, name: str, kind: str, schema: Any, key: str = "", seen: int | None = None
) -> NoteTemplate:
    """A new template, or with `key` a new edition of one, used from now on; `seen` is the edition it was made from.

    Raises Invalid, SchemaUnsupported naming the part a form cannot show, NotFound, and Conflict where somebody has
    saved another edition meanwhile.
    """
    name = line(name, field="name", longest=80)
    if not name:
        raise Invalid("A template needs a name.", field="name")
    if kind not in set(NoteKind):
        raise Invalid("Please choose what the note is for.", field="kind")
    shape = checked(schema)
    edition = 1
    if key:
        before = editions(session, key)
        if seen is not None and seen != before[0].edition:
            raise Conflict("Somebody has changed this template meanwhile. Look at the newest edition first.")
        edition = before[0].edition + 1
        for old in before:
            if old.active:
                old.active = False
    else:
        key = _key(session, name)
    session.flush()  # the old edition is out of use before the new one comes into it
    template = NoteTemplate(key=key, edition=edition, name=name, kind=kind, schema=shape)
    session.add(template)
    session.flush()
    return template


def retire(session: Session, key: str) -> None:
    """No new notes are written with a template; those that were stay. Raises NotFound, and Invalid for addenda's."""
    if key == ADDENDUM:
        raise Invalid("Addenda are written with this template, so it stays in use.")
    for template in editions(session, key):
        if template.active:
            template.active = False
    session.flush()


def _key(session: Session, name: str) -> str:
    """A short name no other template has."""
    plain = unicodedata.normalize("NFKD", name.casefold()).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40] or "template"
    taken = {template.key for template in session.scalars(select(NoteTemplate))}
    return next(key for key in (stem, *(f"{stem}-{n}" for n in range(2, len(taken) + 3))) if key not in taken)
