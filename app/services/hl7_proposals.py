"""What other systems say of who somebody is: beside what is known here, for a person to take over or not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, selectinload

from app import guard
from app.actor import current
from app.errors import Conflict, IllegalTransition, Invalid, NotFound
from app.services import merging, patients
from app.services.patients import Demographics
from app.services.words import line
from models.base import now
from models.codes import AdministrativeGender, ProposalKind, ProposalState
from models.hl7 import PatientProposal
from models.patients import Patient, PatientMerge

MOST = 200
"""Proposals of one list."""
GENDERS = {
    "M": AdministrativeGender.MALE,
    "F": AdministrativeGender.FEMALE,
    "O": AdministrativeGender.OTHER,
    "A": AdministrativeGender.OTHER,
}
"""Table 0001; what is not here says nothing."""
COLUMNS = {
    "name": ("family", "given"),
    "birth_date": ("birth_date", "birth_precision"),
    "gender": ("gender",),
    "telecom": ("telecom",),
    "address": ("address",),
}
"""What can be taken over, with what of a patient it is kept in."""


@dataclass(frozen=True)
class Difference:
    """Something that a proposal says of a person."""

    name: str
    """One of COLUMNS."""
    told: dict[str, Any]
    """By column, as it would be stored."""
    differs: bool


def opened(session: Session) -> Sequence[PatientProposal]:
    """The proposals nobody has decided about, the oldest first."""
    statement = select(PatientProposal).where(PatientProposal.state == ProposalState.OPEN)
    return session.scalars(_with_patients(statement).order_by(PatientProposal.id).limit(MOST)).all()


def waiting() -> dict[str, Select[Any]]:
    """The count of those nobody has decided about, up to MOST; nothing where that is not theirs."""
    if not (current().may("update", "PatientProposal") and current().may("read", "PatientProposal")):
        return {}
    few = select(PatientProposal.id).where(PatientProposal.state == ProposalState.OPEN).limit(MOST).subquery()
    return {"open": select(func.count()).select_from(few)}


def show(session: Session, proposal_id: int) -> PatientProposal:
    """One proposal, with the records it is about as they stand now. Raises NotFound."""
    found = session.scalars(
        _with_patients(select(PatientProposal).where(PatientProposal.id == proposal_id))
    ).one_or_none()
    if found is None:
        raise NotFound
    return found


def _with_patients(statement: Select[PatientProposal]) -> Select[PatientProposal]:
    return statement.options(
        selectinload(PatientProposal.patient),
        selectinload(PatientProposal.other),
        selectinload(PatientProposal.decided_by),
    )


def standing(session: Session, patient: Patient | None) -> Patient | None:
    """The record that stands for a patient now, where theirs was merged into another."""
    return next(iter(patients.standing(session, [patient])), None) if patient is not None else None


def told(wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a proposal says, by COLUMNS; what it does not say is left out."""
    found: dict[str, dict[str, Any]] = {}
    if wanted.get("family") or wanted.get("given"):
        found["name"] = {"family": wanted.get("family", ""), "given": wanted.get("given", "")}
    if wanted.get("born"):
        found["birth_date"] = {"birth_date": date.fromisoformat(wanted["born"]), "birth_precision": "day"}
    if wanted.get("sex") in GENDERS:
        found["gender"] = {"gender": GENDERS[wanted["sex"]]}
    if wanted.get("phones"):
        found["telecom"] = {"telecom": [{"system": "phone", "value": each} for each in wanted["phones"]]}
    street, further, city, state, code, country = [*wanted.get("address", []), *[""] * 6][:6]
    place = {
        "line": [part for part in (street, further) if part],
        "city": city,
        "state": state,
        "postalCode": code,
        "country": country,
    }
    if said := {name: value for name, value in place.items() if value}:
        found["address"] = {"address": [said]}
    return found


def numbers(wanted: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers a proposal names, as system and value; none of our own."""
    return [
        (authority or kind, value)
        for value, authority, kind in wanted.get("identifiers", [])
        if (authority or kind) and not patients.is_mrn(value)
    ]


def differences(proposal: PatientProposal, patient: Patient) -> list[Difference]:
    """What the proposal says, beside what is known; without what the actor is not shown or cannot change."""
    rights = current().rights
    hidden = rights.hidden("Patient") | rights.hidden("Patient", "update")
    return [
        Difference(name, said, any(getattr(patient, column) != value for column, value in _new(patient, said).items()))
        for name, said in told(proposal.wanted).items()
        if hidden.isdisjoint(COLUMNS[name])
    ]


def _new(patient: Patient, said: dict[str, Any]) -> dict[str, Any]:
    """What the columns would hold: a list keeps what is not replaced by it."""
    found = dict(said)
    if "telecom" in said:
        digits = {_digits(point["value"]) for point in said["telecom"]}
        others = [point for point in patient.telecom if _digits(str(point.get("value", ""))) not in digits]
        known = {_digits(str(point.get("value", ""))): point for point in patient.telecom}
        found["telecom"] = [*(known.get(_digits(each["value"]), each) for each in said["telecom"]), *others]
        if digits <= known.keys():
            found["telecom"] = patient.telecom
    if "address" in said:
        before = patient.address[0] if patient.address else {}
        found["address"] = [{**before, **said["address"][0]}, *patient.address[1:]]
    return found


def _digits(number: str) -> str:
    """What tells two ways of writing a phone number from two numbers."""
    return "".join(letter for letter in number if letter.isdigit())[-9:]


# ---- deciding ----------------------------------------------------------------------------------------------------


def connect(session: Session, proposal_id: int, patient_id: int, *, given_up: bool = False) -> PatientProposal:
    """Say whom a proposal is about; of a merge with `given_up`, which record is to be given up. Raises NotFound."""
    proposal = _to_decide(session, proposal_id)
    patient = session.get(Patient, patient_id)
    if patient is None:
        raise NotFound
    if not patient.active:
        raise Conflict("This record is not in use.")
    if given_up:
        proposal.other_id = patient.id
    else:
        proposal.patient_id = patient.id
        if proposal.kind == ProposalKind.REGISTER:
            proposal.kind = ProposalKind.UPDATE
    session.flush()
    session.refresh(proposal, ["patient", "other"])
    return proposal


def accept(
    session: Session, proposal_id: int, taken: Collection[str], *, seen: int, region: str | None = None
) -> Patient:
    """Take over what a proposal says in some COLUMNS, and its numbers where `taken` says "numbers".

    `seen` is the version of the record that was looked at. Raises Conflict where it is another now, and Invalid.
    """
    proposal = _to_decide(session, proposal_id)
    patient = standing(session, proposal.patient)
    if patient is None or proposal.kind == ProposalKind.MERGE:
        raise IllegalTransition("Say first whose record it is about.")
    if patient.version != seen:
        raise Conflict
    offered = {each.name: each.told for each in differences(proposal, patient) if each.differs}
    chosen = [name for name in offered if name in taken]
    new = numbers(proposal.wanted) if "numbers" in taken else []
    if not chosen and not new:
        raise Invalid("Choose what is to be taken over, or dismiss it.", field="taken")
    shown = [name for name in Demographics.__dataclass_fields__ if name != "photo"]
    said = Demographics(**{name: getattr(patient, name) for name in shown})
    for name in chosen:
        for column, value in _new(patient, offered[name]).items():
            setattr(said, column, value)
    guard.because("another system said so, and somebody took it over")
    if new:
        session.refresh(patient, ["identifiers"])
    patients.change(session, patient, said, identifiers=new, region=region)
    _decided(session, proposal, ProposalState.ACCEPTED, ", ".join([*chosen, *(["numbers"] if new else [])]))
    return patient


def register(session: Session, proposal_id: int, *, insist: bool = False, region: str | None = None) -> Patient:
    """Register whom a proposal is about. Raises PossibleDuplicate where somebody alike is registered, and Invalid."""
    proposal = _to_decide(session, proposal_id)
    if proposal.patient_id is not None or proposal.kind == ProposalKind.MERGE:
        raise IllegalTransition("This is about somebody who is registered.")
    said = Demographics()
    for columns in told(proposal.wanted).values():
        for column, value in columns.items():
            setattr(said, column, value)
    guard.because("another system said so, and somebody took it over")
    patient = patients.register(session, said, identifiers=numbers(proposal.wanted), region=region, insist=insist)
    proposal.patient_id = patient.id
    _decided(session, proposal, ProposalState.ACCEPTED, "registered")
    return patient


def merge(session: Session, proposal_id: int, survivor_id: int, loser_id: int, **looked_at: Any) -> PatientMerge:
    """Merge the two records of a proposal, whichever stays; the rest, and what it raises, is `merging.merge`'s."""
    proposal = _to_decide(session, proposal_id)
    if proposal.kind != ProposalKind.MERGE or {survivor_id, loser_id} != {proposal.patient_id, proposal.other_id}:
        raise IllegalTransition("The proposal is about two other records.")
    made = merging.merge(session, survivor_id, loser_id, **looked_at)
    _decided(session, proposal, ProposalState.ACCEPTED, "merged")
    return made


def dismiss(session: Session, proposal_id: int, *, reason: str) -> PatientProposal:
    """Do nothing about a proposal; it stays, with the reason. Raises Invalid."""
    proposal = _to_decide(session, proposal_id)
    said = line(reason, field="reason", longest=500)
    if not said:
        raise Invalid("Please say why.", field="reason")
    _decided(session, proposal, ProposalState.DISMISSED, said)
    return proposal


def _to_decide(session: Session, proposal_id: int) -> PatientProposal:
    """An open proposal, locked until the transaction ends. Raises Forbidden, NotFound, IllegalTransition."""
    guard.require("update", "PatientProposal")
    wanted = _with_patients(select(PatientProposal).where(PatientProposal.id == proposal_id))
    found = session.scalars(wanted.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if found is None:
        raise NotFound
    if found.state != ProposalState.OPEN:
        raise IllegalTransition("Somebody has decided this already.")
    return found


def _decided(session: Session, proposal: PatientProposal, state: str, words: str) -> None:
    proposal.state, proposal.decision = state, words
    proposal.decided_at, proposal.decided_by_id = now(), current().user_id
    session.flush()


__all__ = [
    "Difference",
    "accept",
    "connect",
    "differences",
    "dismiss",
    "merge",
    "numbers",
    "opened",
    "register",
    "show",
    "standing",
    "told",
    "waiting",
]
