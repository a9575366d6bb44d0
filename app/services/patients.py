"""Registering patients once, and finding them again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from rapidfuzz import fuzz
from sqlalchemy import ColumnElement, Select, and_, case, func, literal, or_, select
from sqlalchemy.orm import Session, joinedload, selectinload
from stdnum import luhn

from app import events, guard
from app.actor import current
from app.errors import Invalid, NotFound, PossibleDuplicate
from app.services.words import fold, line, phone, readings, today
from models.base import now
from models.codes import AdministrativeGender, IdentifierUse, LinkType, SexForClinicalUse
from models.patients import NameToken, Patient, PatientIdentifier, PatientLink, mrn_sequence

ALIKE = 0.6
"""From this likeness on two records are shown to a person as possibly one."""


@dataclass
class Demographics:
    """Who somebody is, as it is told at a desk; `birth_precision` says how much of the date is known."""

    family: str = ""
    second_family: str = ""
    given: str = ""
    prefix: str = ""
    name_in_use: str = ""
    other_names: list[dict[str, Any]] = field(default_factory=list)
    birth_date: date | None = None
    birth_precision: str = "day"
    gender: str = AdministrativeGender.UNKNOWN
    sex_for_clinical_use: str = SexForClinicalUse.UNKNOWN
    multiple_birth_order: int | None = None
    telecom: list[dict[str, Any]] = field(default_factory=list)
    address: list[dict[str, Any]] = field(default_factory=list)
    contact: list[dict[str, Any]] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    marital_status: str | None = None
    photo: bytes | None = None
    temporary: bool = False
    confidential: bool = False
    active: bool = True
    deceased: bool = False
    deceased_at: datetime | None = None

    def cleaned(self, region: str | None = None) -> Demographics:
        """The same, as it is stored. Raises Invalid, naming the field."""
        told = Demographics(**self.__dict__)
        for name in ("family", "second_family", "given"):
            setattr(told, name, line(getattr(told, name), field=name))
        told.prefix = line(told.prefix, field="prefix", longest=40)
        told.name_in_use = line(told.name_in_use, field="name_in_use", longest=100)
        if not (told.family or told.given):
            if not told.temporary:
                raise Invalid("Please enter a family name or a given name.", field="family")
            told.family = "Unknown"
        if told.birth_date is not None and told.birth_date > today() + timedelta(days=1):
            raise Invalid("A birth date cannot lie in the future.", field="birth_date")
        if told.gender not in set(AdministrativeGender):
            raise Invalid("Please choose one of the genders offered.", field="gender")
        if told.sex_for_clinical_use not in set(SexForClinicalUse):
            raise Invalid("Please choose one of the values offered.", field="sex_for_clinical_use")
        told.telecom = [
            {**point, "value": phone(point["value"], region) if point.get("system") == "phone" else point["value"]}
            for point in told.telecom
        ]
        if told.deceased_at is not None:
            told.deceased = True
            if told.deceased_at > now() + timedelta(days=1):
                raise Invalid("A date of death cannot lie in the future.", field="deceased_on")
            if told.birth_date is not None and told.deceased_at.date() < told.birth_date:
                raise Invalid("A date of death cannot lie before the birth date.", field="deceased_on")
        if told.photo is not None and len(told.photo) > 2_000_000:
            raise Invalid("A photo can have up to 2 MB.", field="photo")
        return told


@dataclass(frozen=True)
class Likeness:
    """A patient who may be the one in question, how likely (0 to 1), and why."""

    patient: Patient
    score: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    patients: Sequence[Patient]
    more: bool
    meant: tuple[str, ...] = ()
    """The words looked for in place of what was typed, where nothing was found by that."""


def next_mrns(session: Session, count: int = 1) -> list[str]:
    """Fresh chain-wide numbers: W, the sequence's number, its Luhn digit. None of them is ever given twice."""
    numbers = session.scalars(select(func.nextval(mrn_sequence.name)).select_from(func.generate_series(1, count)))
    return [f"W{number}{luhn.calc_check_digit(str(number))}" for number in numbers]


def is_mrn(text: str) -> bool:
    """Whether a text is a chain-wide number with the right check digit."""
    match = re.fullmatch(r"[Ww](\d{8,})", text.strip())
    return bool(match) and luhn.is_valid(match[1])  # type: ignore[index]


def register(
    session: Session,
    told: Demographics,
    *,
    identifiers: Sequence[tuple[str, str]] = (),
    branch_id: int | None = None,
    region: str | None = None,
    insist: bool = False,
) -> Patient:
    """Give a person a record and a number.

    Raises PossibleDuplicate where somebody alike is registered and `insist` is not said; Invalid and
    DuplicateIdentifier name the field.
    """
    told = told.cleaned(region)
    _nothing_unseen(told)
    numbers = [_identifier(system, value) for system, value in identifiers]
    if not insist and not told.temporary and likely_duplicates(session, **_likeness(told, numbers)):
        raise PossibleDuplicate
    patient = Patient(mrn=next_mrns(session)[0], registered_at_id=branch_id or current().branch_id, **told.__dict__)
    session.add(patient)
    session.flush()
    for number in numbers:
        session.add(PatientIdentifier(patient_id=patient.id, **number))
    events.emit(session, events.PatientRegistered(patient.id))
    return patient


def change(
    session: Session,
    patient: Patient,
    told: Demographics,
    *,
    identifiers: Sequence[tuple[str, str]] = (),
    region: str | None = None,
) -> Patient:
    """Set right who a patient is; further identifiers are added, none is taken away. Raises as `register` does."""
    told = told.cleaned(region)
    for name, value in told.__dict__.items():
        if name == "photo" and value is None:
            continue
        if getattr(patient, name) != value:
            setattr(patient, name, value)
    numbers = [_identifier(system, value) for system, value in identifiers]
    known = {(number.system, number.value) for number in patient.identifiers} if numbers else set()
    for number in numbers:
        if (number["system"], number["value"]) not in known:
            session.add(PatientIdentifier(patient_id=patient.id, **number))
    events.emit(session, events.PatientRegistered(patient.id))
    return patient


def _unseen() -> frozenset[str]:
    """The fields of a patient the actor is not shown, and so cannot search by either."""
    return current().rights.hidden("Patient")


def _by_phone() -> bool:
    return _unseen().isdisjoint({"telecom", "search_phone"})


def _by_number() -> bool:
    """Whether the actor may know the numbers of other systems."""
    rights = current().rights
    return rights.may("read", "PatientIdentifier") and "value" not in rights.hidden("PatientIdentifier")


def _nothing_unseen(told: Demographics) -> None:
    """Raises Forbidden for a field the actor is not shown: who is alike by it would tell of the others' values."""
    for name in sorted(_unseen() | current().rights.hidden("Patient", "create")):
        if getattr(told, name, None):
            raise guard.refuse("create", f"Patient.{name}")


def _identifier(system: str, value: str) -> dict[str, str]:
    """A number as it is kept. Raises Invalid, and Forbidden where the actor may not know whose it is already."""
    if not _by_number():
        raise guard.refuse("create", "PatientIdentifier.value")
    system = line(system, field="identifier_system", longest=200)
    value = line(value, field="identifier_value", longest=100)
    if not system:
        raise Invalid("Please choose who gave this number.", field="identifier_system")
    if not value:
        raise Invalid("Please enter the number.", field="identifier_value")
    return {"system": system, "value": value, "use": IdentifierUse.SECONDARY}


def _likeness(told: Demographics, numbers: Sequence[dict[str, str]]) -> dict[str, Any]:
    return {
        "family": told.family,
        "second_family": told.second_family,
        "given": told.given,
        "birth_date": told.birth_date if told.birth_precision == "day" else None,
        "phones": [point["value"] for point in told.telecom if point.get("system") == "phone"],
        "identifiers": [(number["system"], number["value"]) for number in numbers],
    }


def likely_duplicates(
    session: Session,
    *,
    family: str = "",
    second_family: str = "",
    given: str = "",
    birth_date: date | None = None,
    phones: Sequence[str] = (),
    identifiers: Sequence[tuple[str, str]] = (),
    exclude_id: int | None = None,
    limit: int = 5,
) -> list[Likeness]:
    """The registered patients most like this one in what the actor is shown, the likeliest first, with reasons."""
    clauses: list[ColumnElement[bool]] = []
    birth_date = None if "birth_date" in _unseen() else birth_date
    phones = phones if _by_phone() else ()
    identifiers = identifiers if _by_number() else ()
    words = [word for word in re.split(r"[^\w]+", fold(f"{family} {given}")) if len(word) > 1]
    if birth_date and words:
        clauses.append(Patient.birth_date == birth_date)
    if len(words) > 1:
        meant = [{word, *_alike(session, word)} for word in words]
        clauses.append(and_(*(or_(*(_has(word) for word in choice)) for choice in meant)))
    digits = [re.sub(r"\D", "", number)[-9:] for number in phones]
    clauses += [Patient.search_phone.like(f"%{number}%") for number in digits if len(number) >= 6]
    same: set[int] = set()
    if identifiers:
        wanted = [and_(PatientIdentifier.system == s, PatientIdentifier.value == v) for s, v in identifiers]
        same = {number.patient_id for number in session.scalars(select(PatientIdentifier).where(or_(*wanted)))}
        if same:
            clauses.append(Patient.id.in_(same))
    if not clauses:
        return []
    near = select(Patient.id).where(or_(*clauses), Patient.active).limit(200).scalar_subquery()
    guard.searching("patients alike: name, birth date, phone, identifier")
    statement = (
        select(Patient).where(Patient.id.in_(near)).options(joinedload(Patient.last_visit_place)).order_by(Patient.id)
    )
    likenesses = []
    for patient in session.scalars(statement):
        if patient.id == exclude_id:
            continue
        score, reasons = _compare(patient, words, birth_date, digits)
        if patient.id in same:
            score, reasons = 1.0, ["same identifier", *reasons]
        if score >= ALIKE:
            likenesses.append(Likeness(patient, round(score, 3), tuple(reasons)))
    return sorted(likenesses, key=lambda like: -like.score)[:limit]


def _compare(
    patient: Patient, words: Sequence[str], birth_date: date | None, digits: Sequence[str]
) -> tuple[float, list[str]]:
    """Name counts for half, birth date for three tenths, phone for two; what neither side knows is left out."""
    reasons: list[str] = []
    theirs = fold(f"{patient.family} {patient.given}")
    name = fuzz.token_sort_ratio(" ".join(sorted(words)), theirs) / 100
    if name >= 0.95:
        reasons.append("same name")
    elif name >= 0.75:
        reasons.append("similar name")
    weights = [(0.5, name)]
    if birth_date and patient.birth_date:
        other = patient.birth_date
        if birth_date == other:
            weights.append((0.3, 1.0))
            reasons.append("same birth date")
        elif (birth_date.year, birth_date.month, birth_date.day) in (
            (other.year, other.day, other.month),
            (other.year, other.month, birth_date.day),
        ):
            weights.append((0.3, 0.6))
            reasons.append("similar birth date")
        else:
            weights.append((0.3, 0.0))
    theirs_digits = " ".join(re.sub(r"\D", "", str(p.get("value", ""))) for p in patient.telecom or [])
    if digits and theirs_digits:
        shared = any(len(number) >= 6 and number in theirs_digits for number in digits)
        if shared:
            weights.append((0.2, 1.0))
            reasons.append("same phone")
        elif len(weights) == 1:
            weights.append((0.2, 0.0))
    total = sum(weight for weight, _ in weights)
    score = sum(weight * value for weight, value in weights) / total
    return (score if name >= 0.6 else score * 0.5), reasons


def _has(word: str) -> ColumnElement[bool]:
    """The name has this word in it; a short one only at the beginning of a word, so that the index can be used."""
    escaped = re.sub(r"([\\%_])", r"\\\1", word)
    pattern = f"% {escaped}%" if len(word) < 3 else f"%{escaped}%"
    if "other_names" not in _unseen():
        return Patient.search_name.like(pattern)
    return and_(Patient.search_name.like(pattern), _shown_name().like(pattern))


def _shown_name() -> ColumnElement[str]:
    """The text a name is searched in, without the names the actor is not shown."""
    if "other_names" not in _unseen():
        return Patient.search_name.expression
    names = Patient.family + " " + Patient.second_family + " " + Patient.given + " " + Patient.name_in_use
    return literal(" ") + func.wb_fold(names) + " " + func.lower(Patient.mrn)


def _alike(session: Session, word: str) -> list[str]:
    """Words of registered names that a word may have been meant to be, the likest first."""
    if len(word) < 3:
        return []
    statement = (
        select(NameToken)
        .where(NameToken.token.op("%")(word))
        .order_by(func.similarity(NameToken.token, word).desc(), NameToken.token)
        .limit(4)
    )
    return [known.token for known in session.scalars(statement)]


def find(session: Session, text: str, *, limit: int = 25) -> Found:
    """Patients by any part of a name in any order, number, phone or birth date; mistyped names too."""
    text = line(text, field="q", longest=100)
    clauses, words = _clauses(session, text)
    if not clauses:
        return Found([], more=False)
    found = _matching(session, clauses + [_has(word) for word in words], words, limit)
    if found.patients or not words:
        return found
    meant = [_alike(session, word) or [word] for word in words]
    if all(choice == [word] for choice, word in zip(meant, words, strict=True)):
        return found
    alternatives: list[ColumnElement[bool]] = [or_(*(_has(word) for word in choice)) for choice in meant]
    found = _matching(session, clauses + alternatives, [choice[0] for choice in meant], limit)
    return Found(found.patients, found.more, _met(meant, found.patients)) if found.patients else found


def _met(meant: Sequence[Sequence[str]], patients: Sequence[Patient]) -> tuple[str, ...]:
    """Of the words that may have been meant, those that stand in a name the actor is shown: no others are theirs."""
    names = " ".join(_all_names(patient) for patient in patients)
    met = (next((word for word in choice if word in names), None) for choice in meant)
    return tuple(word for word in met if word)


def _all_names(patient: Patient) -> str:
    parts = [patient.family, patient.second_family, patient.given, patient.name_in_use, patient.mrn]
    for name in patient.other_names:
        parts += [name.get("family") or "", name.get("text") or "", *map(str, name.get("given") or [])]
    return fold(" ".join(parts))


def _clauses(session: Session, text: str) -> tuple[list[ColumnElement[bool]], list[str]]:
    """What was typed, as conditions that hold whatever was mistyped, and the words of a name."""
    kinds: list[str] = []
    clauses: list[ColumnElement[bool]] = []
    words: list[str] = []
    by_phone, by_birth = _by_phone(), "birth_date" not in _unseen()
    days = readings(text) if by_birth else []
    rest = [] if days else text.split()
    for part in rest:
        part_days = readings(part) if by_birth else []
        if part_days and not (part.isdigit() and len(part) == 8 and len(rest) == 1):
            days += part_days
        elif re.fullmatch(r"\+?[\d()./-]{4,}", part):
            digits = re.sub(r"\D", "", part)
            phone = [Patient.search_phone.like(f"%{digits}%")] if by_phone else []
            clauses.append(or_(*phone, _has(digits), *_identified(session, part)))
            kinds.append("number")
        elif any(letter.isdigit() for letter in part):
            clauses.append(or_(_has(fold(part)), *_identified(session, part)))
            kinds.append("number")
        else:
            words += [word for word in re.split(r"[^\w]+", fold(part)) if word]
    if days:
        kinds.append("birth date")
        clauses.append(or_(*(_born(day, precision) for day, precision in days)))
    if by_phone and not days and len(text) >= 8 and re.fullmatch(r"\+?[\d ()./-]+", text) and " " in text:
        digits = re.sub(r"\D", "", text)
        clauses = [Patient.search_phone.like(f"%{digits}%")]
    if words:
        kinds.append("name")
        clauses.insert(0, Patient.active.is_not(None))
    guard.searching("patients by " + " and ".join(dict.fromkeys(kinds)))
    return clauses, words


def _born(day: date, precision: str) -> ColumnElement[bool]:
    if precision == "year":
        return Patient.birth_date.between(day, date(day.year, 12, 31))
    if precision == "month":
        following = date(day.year + day.month // 12, day.month % 12 + 1, 1)
        return and_(Patient.birth_date >= day, Patient.birth_date < following)
    return Patient.birth_date == day


def _identified(session: Session, value: str) -> list[ColumnElement[bool]]:
    """Patients by a number of another system, where the actor may know such numbers."""
    if not _by_number():
        return []
    numbers = session.scalars(
        select(PatientIdentifier).where(func.upper(PatientIdentifier.value) == value.upper()).limit(20)
    ).all()
    return [Patient.id.in_({number.patient_id for number in numbers})] if numbers else []


def _matching(session: Session, clauses: list[ColumnElement[bool]], words: Sequence[str], limit: int) -> Found:
    """Of at most 200 who match, those whose names begin with the words first, then by name."""
    near = select(Patient.id).where(*clauses).limit(200).scalar_subquery()
    begins = [case((_shown_name().like(f"% {word}%"), 0), else_=1) for word in words[:4]]
    statement = (
        select(Patient)
        .where(Patient.id.in_(near))
        .options(joinedload(Patient.last_visit_place))
        .order_by(*begins, Patient.sort_name, Patient.id)
        .limit(limit + 1)
    )
    found = session.scalars(statement).all()
    return Found(standing(session, found[:limit]), more=len(found) > limit)


def standing(session: Session, patients: Sequence[Patient]) -> list[Patient]:
    """The same patients, with the record that took its place for each one that was merged into another.

    None for a record whose survivor the actor may not see.
    """
    known = {patient.id: patient for patient in patients}
    asked: set[int] = set()
    while missing := {p.replaced_by_id for p in known.values() if p.replaced_by_id} - known.keys() - asked:
        asked |= missing
        followed = select(Patient).where(Patient.id.in_(missing)).options(joinedload(Patient.last_visit_place))
        known.update((patient.id, patient) for patient in session.scalars(followed))
    found: dict[int, Patient] = {}
    for patient in patients:
        last: Patient | None = patient
        while last is not None and last.replaced_by_id is not None:
            last = known.get(last.replaced_by_id)
        if last is not None:
            found.setdefault(last.id, last)
    return list(found.values())


def former(session: Session, patient_ids: Sequence[int]) -> list[int]:
    """The records that were merged into these, directly or by way of another one."""
    found: list[int] = []
    asked = list(patient_ids)
    while asked:
        merged = session.scalars(select(Patient).where(Patient.replaced_by_id.in_(asked))).all()
        asked = [patient.id for patient in merged]
        found += asked
    return found


def possible_duplicates(session: Session, limit: int = 50) -> Sequence[PatientLink]:
    """Pairs that await a person's judgement, the likeliest first."""
    return session.scalars(
        _pairs()
        .where(PatientLink.reviewed_at.is_(None))
        .options(selectinload(PatientLink.patient), selectinload(PatientLink.other))
        .order_by(PatientLink.score.desc(), PatientLink.id)
        .limit(limit)
    ).all()


def pair(session: Session, link_id: int) -> PatientLink:
    """One pair. Raises NotFound, also where the actor may see one of the two only."""
    link = session.scalar(_pairs().where(PatientLink.id == link_id))
    if link is None:
        raise NotFound
    return link


def _pairs() -> Select[PatientLink]:
    """Pairs of two patients the actor may both see, neither of which was merged into another."""
    # The gate narrows it to the actor's rows.
    seen = select(Patient.id).where(Patient.replaced_by_id.is_(None)).scalar_subquery()
    return select(PatientLink).where(
        PatientLink.type == LinkType.SEEALSO, PatientLink.patient_id.in_(seen), PatientLink.other_id.in_(seen)
    )


def are_different(session: Session, link: PatientLink) -> None:
    """A person looked at both and says they are two people."""
    link.reviewed_at = now()
