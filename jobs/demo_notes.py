"""The demo's notes, written by its doctors under their own accounts: signed, still a draft, and one in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final

from flask_appbuilder.security.sqla.models import User
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import guard
from app.actor import Origin, current
from app.services import notes
from models.base import now
from models.notes import ClinicalNote
from models.patients import Patient

SIGNED: Final[tuple[tuple[int, str, str, dict[str, Any]], ...]] = (
    (
        0,
        "soap",
        "Diabetes, quarterly review",
        {
            "subjective": "Feels well. Checks her sugar on most mornings; forgets the evening tablet once a week.",
            "objective": "Weight unchanged. Feet without wounds, pulses felt on both sides.",
            "assessment": "Type 2 diabetes, better controlled than three months ago.",
            "plan": "Metformin as before. Eye check this quarter. HbA1c again in three months.",
        },
    ),
    (
        1,
        "admission",
        "Admission for dialysis access",
        {
            "complaint": "Swollen arm at the dialysis access since yesterday",
            "history": "Noticed after the last session. No fever, no pain at rest.",
            "past": "Kidney failure, dialysed three times a week. High blood pressure.",
            "examination": {"temperature": 36.9, "pulse": 82, "systolic": 148, "diastolic": 84, "saturation": 97},
            "impression": "Stenosis of the outflow, no sign of infection.",
            "plan": "Ultrasound of the access today. Dialysis tomorrow as planned.",
        },
    ),
    (
        4,
        "procedure",
        "Wound closed",
        {
            "procedure": "Suture of a cut, left forearm",
            "consent": True,
            "anaesthesia": ["Local"],
            "description": "Cleaned, three single stitches, sterile dressing.",
            "complications": "None",
            "aftercare": "Keep dry for two days. Stitches out after ten days.",
        },
    ),
)
"""Place among the patients, template, title and content of the notes the doctor signs."""
ADDED: Final = "The eye check is booked; the patient was called."
DRAFT: Final = {"subjective": "Short of breath on stairs for two weeks.", "objective": "Lungs clear."}
TRAINED: Final = {
    "subjective": "Sore throat and fever since the day before yesterday.",
    "objective": "Tonsils red, without coating. Temperature 38.2.",
    "assessment": "Viral infection of the throat.",
    "plan": "Fluids, paracetamol when needed. To come again if the fever lasts.",
}


def write(session: Session, patients: Sequence[Patient]) -> int:
    """Write and sign them in the transaction under way; gives how many there are."""
    session.flush()
    with acting(session, "doctor"):
        made = [
            _signed(session, patients[place], template, title, content)
            for place, template, title, content in SIGNED
            if place < len(patients)
        ]
        added = notes.addendum(session, made[0].id)
        added = notes.save_draft(session, added.id, version=added.version, content={"text": ADDED})
        notes.sign(session, added.id, version=added.version)
        draft = notes.begin(session, patient_id=patients[2].id, template="soap")
        draft.written_at = now() - timedelta(hours=30)
        session.flush()
        notes.save_draft(session, draft.id, version=draft.version, content=DRAFT)
    with acting(session, "trainee"):
        _signed(session, patients[5], "soap", "Sore throat", TRAINED)
    return len(made) + 3


def _signed(session: Session, patient: Patient, template: str, title: str, content: dict[str, Any]) -> ClinicalNote:
    note = notes.begin(session, patient_id=patient.id, template=template)
    note = notes.save_draft(session, note.id, version=note.version, content=content, title=title)
    return notes.sign(session, note.id, version=note.version)


@contextmanager
def acting(session: Session, username: str) -> Iterator[None]:
    """Go on as one of the accounts, in the same transaction: nobody writes a note for another, not even the demo."""
    before = current()
    user = session.scalars(select(User).where(User.username == username)).one()
    who = guard.who_is(user.id, Origin(channel="cli"))
    assert who is not None
    guard.become(who)
    try:
        yield
        guard.record()
    finally:
        guard.become(before)
