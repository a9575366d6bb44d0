"""Emergency access: a clinician breaks the glass over one patient for an hour, and somebody else reviews it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from flask_appbuilder.security.sqla.models import User
from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session, selectinload

from app import guard, policy, trail
from app.actor import Actor, current, service
from app.errors import Conflict, Forbidden, Invalid, NotFound, OutsideRows
from app.policy import Reach, Rights
from app.services import patients
from app.services.words import line
from models.access import EmergencyAccess
from models.audit import AuditEvent
from models.base import now
from models.codes import EmergencyReason, Finding, PurposeOfUse, RowScope
from models.patients import Patient, PatientIdentifier

LASTS = timedelta(minutes=60)
OVERDUE = timedelta(hours=72)
"""From this wait on for a review, administrators hear of it too."""
LETTERS = 15
"""Fewer are no reason, and no finding."""
RECORD = ("Patient", "PatientIdentifier", *policy.CLINICAL, *policy.NOTES)
"""What a patient's record is made of."""
LATE = timedelta(minutes=1)
"""A page begun in the last second of an emergency access is in the trail a little later."""
PAGE = 25


# ---- whose patient it is -----------------------------------------------------------------------------------------


def may_break() -> bool:
    """Whether the actor may break the glass at all, and see that they have."""
    actor = current()
    return actor.user_id is not None and all(actor.may(action, "EmergencyAccess") for action in ("create", "read"))


def closed(patient_id: int, *, opened: bool = False) -> frozenset[str]:
    """What the actor's role shows them, but not of this patient, only because the patient is not among theirs.

    Emergency access opens just this. None of it where there is no such patient. `opened` says that the patient's own
    row has been shown, which saves asking again.
    """
    actor = current()
    reached: dict[frozenset[RowScope], bool] = {}
    helped: dict[frozenset[RowScope], bool] = {}
    whose = actor.rights.reach.get(("read", "Patient"), ())
    if opened and len(whose) == 1:
        reached[whose[0].scopes] = True

    def shut(reach: Sequence[Reach]) -> bool:
        kinds: set[str] = set()
        for each in reach:
            if each.scopes not in reached:
                reached[each.scopes] = _reaches(actor, each.scopes, patient_id)
            if reached[each.scopes] and each.kinds is None:
                return False
            if reached[each.scopes]:
                kinds.update(each.kinds or ())
        for each in reach:
            if reached[each.scopes] or not each.scopes & policy.OF_THE_PATIENT:
                continue
            if each.scopes not in helped:
                lifted = replace(actor, emergencies=(patient_id,))
                helped[each.scopes] = _reaches(lifted, each.scopes, patient_id)
            if helped[each.scopes] and (each.kinds is None or not each.kinds <= kinds):
                return True
        return False

    return frozenset(
        resource
        for resource in RECORD
        if any(each.scopes & policy.OF_THE_PATIENT for each in actor.rights.reach.get(("read", resource), ()))
        and shut(actor.rights.reach["read", resource])
    )


def _reaches(actor: Actor, scopes: frozenset[RowScope], patient_id: int) -> bool:
    """Whether a patient is within these row scopes of an actor: the gate is asked, and shows nothing but a number."""
    if not scopes:
        return True
    rights = Rights(frozenset({("read", "Patient")}), {("read", "Patient"): (Reach(scopes),)})
    with guard.acting_as(replace(actor, rights=rights)):
        found = guard.session().scalar(select(func.count()).select_from(Patient).where(Patient.id == patient_id))
    return bool(found)


def refused(patient_id: int) -> OutsideRows:
    """The refusal of a patient who is not among the actor's, in the trail with whose record it was.

    Raises NotRecorded.
    """
    entities = [{"type": "Patient", "ids": [patient_id]}]
    refusal = trail.event("R", "read", outcome=4, patient_id=patient_id, entities=entities, reason=OutsideRows.__name__)
    trail.the_trail().write(current(), [refusal])
    return OutsideRows()


def by_number(text: str) -> list[int]:
    """Patients who are not among the actor's and could be by emergency access, by their exact number of any system.

    Each is in the trail as a refusal. Raises NotRecorded.
    """
    actor, number = current(), text.strip().upper()
    narrowed = any(each.scopes & policy.OF_THE_PATIENT for each in actor.rights.reach.get(("read", "Patient"), ()))
    if not narrowed or not may_break() or len(number) < 4 or not re.search(r"\d", number):
        return []
    with guard.acting_as(_service()):
        session = guard.session()
        guard.searching("a patient by number, for emergency access")
        keys = set()
        if actor.may("read", "PatientIdentifier") and "value" not in actor.rights.hidden("PatientIdentifier"):
            same = func.upper(PatientIdentifier.value) == number
            keys = {known.patient_id for known in session.scalars(select(PatientIdentifier).where(same).limit(5))}
        keys |= {patient.id for patient in session.scalars(select(Patient).where(Patient.mrn == number))}
        keys = {patient.id for patient in patients.standing(session, _all(session, keys))}
    found = [key for key in sorted(keys) if "Patient" in closed(key)]
    for key in found:
        refused(key)
    return found


def _all(session: Session, keys: set[int]) -> Sequence[Patient]:
    return session.scalars(select(Patient).where(Patient.id.in_(keys))).all()


def _service() -> Actor:
    """What the application does for the actor, from where the actor is."""
    return replace(service("emergencies"), origin=current().origin)


# ---- breaking it -------------------------------------------------------------------------------------------------


def break_glass(session: Session, *, patient_id: int, reason: str, justification: str) -> EmergencyAccess:
    """Open one patient's record to the actor for an hour, whoever's patient it is.

    Raises Forbidden, NotFound for nobody, Invalid naming the field, and Conflict where it is open already.
    """
    guard.require("create", "EmergencyAccess")
    guard.require("read", "EmergencyAccess")
    actor = current()
    if actor.user_id is None:
        raise guard.refuse("create", "EmergencyAccess")
    if reason not in set(EmergencyReason):
        raise Invalid("Please choose why.", field="reason")
    said = _said(justification, field="justification")
    # Of two at once the second waits here, and then sees the first.
    session.execute(select(User.id).where(User.id == actor.user_id).with_for_update(key_share=True))
    if running(session, patient_id) is not None:
        raise Conflict("You have emergency access to this patient already. When it ends you can ask again.")
    if not closed(patient_id):
        if session.get(Patient, patient_id) is None:
            raise NotFound
        raise Conflict("This patient is open to you already. You need no emergency access.")
    moment = now()
    access = EmergencyAccess(
        patient_id=patient_id,
        user_id=actor.user_id,
        reason=reason,
        justification=said,
        started_at=moment,
        ends_at=moment + LASTS,
    )
    session.add(access)
    session.flush()
    return access


def running(session: Session, patient_id: int) -> EmergencyAccess | None:
    """The actor's own emergency access to a patient, while it lasts."""
    return session.scalars(_running(patient_id)).first()


def _running(patient_id: int) -> Any:
    return (
        select(EmergencyAccess)
        .where(EmergencyAccess.patient_id == patient_id, EmergencyAccess.user_id == current().user_id)
        .where(EmergencyAccess.ends_at > func.now())
        .order_by(EmergencyAccess.ends_at.desc())
    )


def end(patient_id: int) -> bool:
    """End the actor's own emergency access to a patient now; gives whether there was any to end."""
    own = _running(patient_id).with_for_update()
    with guard.acting_as(_service()), guard.unit_of_work() as session:
        found = session.scalars(own).all()
        guard.because("ended by whoever it was given to")
        for access in found:
            _end(access)
    return bool(found)


def _end(access: EmergencyAccess) -> None:
    access.ends_at = max(now(), access.started_at + timedelta(milliseconds=1))


def of_patient(session: Session, patient_id: int, *, limit: int = 5) -> Sequence[EmergencyAccess]:
    """The last emergency accesses to a patient, as far as the actor may know of them, with whose they were."""
    if not current().may("read", "EmergencyAccess"):
        return []
    return session.scalars(
        select(EmergencyAccess)
        .where(EmergencyAccess.patient_id == patient_id)
        .options(selectinload(EmergencyAccess.user))
        .order_by(EmergencyAccess.started_at.desc(), EmergencyAccess.id.desc())
        .limit(limit)
    ).all()


FILLERS = "\u3164\uffa0\u115f\u1160"
"""Hangul letters that are blank (Unicode: default ignorable)."""


def _said(text: str, *, field: str) -> str:
    """A reason as it is kept. Raises Invalid where it has too few letters; blanks at its ends or in a row do not count.

    What cannot be seen does not count either, and two thirds of the least have to be letters or digits.
    """
    said = _plain(text, field=field)
    if len(said) < LETTERS or sum(letter.isalnum() and letter not in FILLERS for letter in said) < LETTERS * 2 // 3:
        raise Invalid(f"Please say why in {LETTERS} letters or more, so that it can be reviewed.", field=field)
    return said


def _plain(text: str, *, field: str) -> str:
    return line(re.sub(r"\s+", " ", text), field=field, longest=1000)


# ---- reviewing it ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reviewed:
    """What somebody wants to know of the accesses that were reviewed; empty parts ask for nothing."""

    finding: str = ""
    since: datetime | None = None
    until: datetime | None = None
    page: int = 0


@dataclass
class Looked:
    """What of the record was looked at and changed under an emergency access: the keys of each resource."""

    seen: dict[str, set[Any]] = field(default_factory=dict)
    changed: dict[str, set[Any]] = field(default_factory=dict)


def waiting(session: Session) -> tuple[int, int]:
    """How many emergency accesses wait for a review, and how many of them were brought before administrators."""
    unreviewed = select(func.count()).select_from(EmergencyAccess).where(EmergencyAccess.reviewed_at.is_(None))
    late = unreviewed.where(EmergencyAccess.escalated_at.is_not(None))
    counted = session.execute(select(unreviewed.scalar_subquery().label("all"), late.scalar_subquery().label("late")))
    everything, escalated = counted.one()
    return everything, escalated


def awaiting(session: Session, *, limit: int = 50) -> Sequence[EmergencyAccess]:
    """Those nobody has reviewed, the oldest first."""
    unreviewed = _with_people().where(EmergencyAccess.reviewed_at.is_(None))
    return session.scalars(unreviewed.order_by(EmergencyAccess.started_at, EmergencyAccess.id).limit(limit)).all()


def reviewed(session: Session, asked: Reviewed) -> tuple[Sequence[EmergencyAccess], bool]:
    """A page of those that were reviewed, the newest first, and whether there are more."""
    statement = _with_people().where(EmergencyAccess.reviewed_at.is_not(None))
    if asked.finding:
        statement = statement.where(EmergencyAccess.finding == asked.finding)
    if asked.since:
        statement = statement.where(EmergencyAccess.started_at >= asked.since)
    if asked.until:
        statement = statement.where(EmergencyAccess.started_at < asked.until)
    newest = statement.order_by(EmergencyAccess.started_at.desc(), EmergencyAccess.id.desc())
    found = session.scalars(newest.offset(asked.page * PAGE).limit(PAGE + 1)).all()
    return found[:PAGE], len(found) > PAGE


def _with_people() -> Any:
    return select(EmergencyAccess).options(
        selectinload(EmergencyAccess.user).selectinload(User.roles), selectinload(EmergencyAccess.reviewed_by)
    )


def patients_of(session: Session, accesses: Sequence[EmergencyAccess]) -> dict[int, Patient]:
    """The patients of some accesses by number, as far as the actor may see them."""
    whose = {access.patient_id for access in accesses}
    if not whose or not current().may("read", "Patient"):
        return {}
    return {patient.id: patient for patient in session.scalars(select(Patient).where(Patient.id.in_(whose)))}


def looked_at(session: Session, accesses: Sequence[EmergencyAccess]) -> dict[int, Looked]:
    """By access, what its user saw and changed of its patient under it, as the trail has it (purpose BTG)."""
    found = {access.id: Looked() for access in accesses}
    if not found or not current().may("read", "AuditEvent"):
        return {}
    lines = session.scalars(
        select(AuditEvent)
        .where(
            AuditEvent.recorded >= min(access.started_at for access in accesses),
            AuditEvent.recorded <= max(access.ends_at for access in accesses) + LATE,
            AuditEvent.purpose == PurposeOfUse.BTG,
            AuditEvent.outcome == 0,
            or_(
                *(
                    and_(
                        AuditEvent.user_id == access.user_id,
                        AuditEvent.patient_id == access.patient_id,
                        AuditEvent.recorded >= access.started_at,
                        AuditEvent.recorded <= access.ends_at + LATE,
                    )
                    for access in accesses
                )
            ),
        )
        .limit(5000)
    )
    newest = sorted(accesses, key=lambda access: access.started_at, reverse=True)
    for entry in lines:
        access = next(
            one
            for one in newest
            if (one.user_id, one.patient_id) == (entry.user_id, entry.patient_id) and one.started_at <= entry.recorded
        )
        looked = found[access.id]
        for entity in entry.entities:
            kinds = looked.changed if entry.action in ("C", "U", "D") else looked.seen
            if entity.get("type") in RECORD:
                kinds.setdefault(entity["type"], set()).update(entity.get("ids") or ())
    return found


def review(session: Session, access_id: int, *, finding: str, note: str) -> EmergencyAccess:
    """Say what an emergency access was found to be, once and for all; not justified ends one that still runs.

    Raises Forbidden, also for one's own, NotFound, Invalid naming the field, and Conflict where it was reviewed
    already, or runs still and is to be justified.
    """
    guard.require("update", "EmergencyAccess")
    access = session.scalars(
        select(EmergencyAccess).where(EmergencyAccess.id == access_id).with_for_update()
    ).one_or_none()
    if access is None:
        raise NotFound
    if access.user_id == current().user_id:
        guard.refuse("update", "EmergencyAccess")
        raise Forbidden("Nobody reviews their own emergency access.")
    if access.reviewed_at is not None:
        raise Conflict("Somebody else has reviewed this in the meantime. A review is not changed.")
    if finding not in set(Finding):
        raise Invalid("Please say whether it was justified.", field="finding")
    said = _said(note, field="note") if finding == Finding.UNJUSTIFIED else _plain(note, field="note")
    if access.ends_at > now():
        if finding == Finding.JUSTIFIED:
            raise Conflict("It still runs. Review it when it has ended, and all of it can be seen.")
        _end(access)
    access.finding, access.review_note = finding, said
    access.reviewed_at, access.reviewed_by_id = now(), current().user_id
    session.flush()
    return access


def escalate(session: Session) -> int:
    """Bring before the administrators what nobody has reviewed in 72 hours; gives how many are new."""
    late = session.scalars(
        select(EmergencyAccess)
        .where(
            EmergencyAccess.reviewed_at.is_(None),
            EmergencyAccess.escalated_at.is_(None),
            EmergencyAccess.started_at < now() - OVERDUE,
        )
        .with_for_update(skip_locked=True)
    ).all()
    for access in late:
        access.escalated_at = now()
    session.flush()
    return len(late)


__all__ = [
    "LASTS",
    "LETTERS",
    "OVERDUE",
    "RECORD",
    "Looked",
    "Reviewed",
    "awaiting",
    "break_glass",
    "by_number",
    "closed",
    "end",
    "escalate",
    "looked_at",
    "may_break",
    "of_patient",
    "patients_of",
    "refused",
    "review",
    "reviewed",
    "running",
    "waiting",
]
