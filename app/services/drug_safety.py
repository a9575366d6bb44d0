"""What stands against a medicine: allergies, other medicines, the same once more, and the dose.

The rules are rows of app/knowledge, each with its source and the day it was reviewed. Whatever is not known there is
said to be NOT CHECKED, and never passed over.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import ROUND_CEILING, Decimal
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session, joinedload

from app import guard
from app.actor import current as at_work
from app.errors import NotFound
from app.services import clinical
from app.services.words import fold, today
from models.clinical import AllergyIntolerance
from models.codes import DetectedIssueCode, DetectedIssueSeverity, MedicationRequestStatus
from models.patients import Patient
from models.prescriptions import Medication, MedicationRequest

KNOWLEDGE = Path(__file__).parents[1] / "knowledge"
Code = DetectedIssueCode
Severity = DetectedIssueSeverity
RANK = {Severity.LOW: 0, Severity.MODERATE: 1, Severity.HIGH: 2}
ADULT = 18
FAR_TOO_MUCH = 2
"""So many times the most that is given, a dose is no longer a matter of judgement."""
GRAMS = {"kg": Decimal(1000), "g": Decimal(1), "mg": Decimal("1e-3"), "ug": Decimal("1e-6"), "ng": Decimal("1e-9")}
LASTS = 90
"""Days a fill is taken for where that cannot be reckoned."""
LONGEST = 366
"""Days a fill is taken for at most."""
SAME_CLASS = "It is of the same class; whether a reaction to one forbids the other is not in our table."


@dataclass(frozen=True)
class Issue:
    """Something that stands against a medicine, in a sentence, with the address of its source."""

    code: DetectedIssueCode
    severity: DetectedIssueSeverity
    detail: str
    reference: str = ""
    checked: bool = True
    """False where it says that something could not be checked."""
    line: int = 0
    """Which of the medicines that were asked about."""
    against: str = ""
    """What it meets: an allergy, an order, a substance; with line and code it tells one issue from another."""
    of_patient: bool = False
    """True where it is about the patient, whatever the medicine."""

    @property
    def key(self) -> str:
        """By which it is overridden; the same as long as the medicine and what it meets are."""
        return f"{self.line}-{self.code}-{re.sub(r'[^a-z0-9]+', '-', fold(self.against)).strip('-')}"

    @property
    def blocks(self) -> bool:
        """Whether the medicine waits until somebody has said why it is given all the same."""
        return self.severity == Severity.HIGH


# ---- the knowledge -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """A pair of substances, classes or effects, what comes of it, and who says so."""

    a: str
    b: str
    severity: DetectedIssueSeverity
    what: str
    source: str


@dataclass(frozen=True)
class Range:
    """How much of a substance an adult is given by a route: at once, and in a period (d or wk)."""

    least: Decimal | None
    single: Decimal
    total: Decimal
    per: str
    unit: str
    source: str


@dataclass(frozen=True)
class Substance:
    """A substance with its therapeutic classes, and what it does to other medicines."""

    name: str
    classes: frozenset[str]
    effects: frozenset[str]
    source: str

    @property
    def groups(self) -> frozenset[str]:
        """Everything a rule about interactions may call it by."""
        return self.classes | self.effects | {self.name}


@dataclass(frozen=True)
class Knowledge:
    """Everything in app/knowledge."""

    substances: Mapping[str, Substance]
    classes: frozenset[str]
    terms: Mapping[str, frozenset[str]]
    """Folded word -> the substances and classes it stands for."""
    words: re.Pattern[str]
    cross: Sequence[Rule]
    interactions: Sequence[Rule]
    ranges: Mapping[tuple[str, str], Range]

    def named(self, text: str) -> frozenset[str]:
        """The substances and classes a text names, the longest words first; none where it names nothing known."""
        found: set[str] = set()
        for match in self.words.finditer(fold(text)):
            found |= self.terms[match[0]]
        return frozenset(found)

    def substances_in(self, text: str) -> tuple[Substance, ...]:
        """The substances a text names, by name."""
        return tuple(self.substances[name] for name in sorted(self.named(text)) if name in self.substances)


def rows(name: str) -> list[dict[str, str]]:
    """A file of app/knowledge."""
    with (KNOWLEDGE / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _list(text: str) -> list[str]:
    return [part for part in text.split("|") if part]


@cache
def knowledge() -> Knowledge:
    """What we know, read once."""
    substances: dict[str, Substance] = {}
    terms: dict[str, set[str]] = {}
    classes: set[str] = set()
    for row in rows("substances.csv"):
        kinds, effects = frozenset(_list(row["classes"])), frozenset(_list(row["effects"]))
        substances[row["name"]] = Substance(row["name"], kinds, effects, row["source"])
        classes |= kinds
        for word in (row["name"], *_list(row["synonyms"])):
            terms.setdefault(fold(word), set()).add(row["name"])
    for row in rows("classes.csv"):
        for word in (row["name"], *_list(row["synonyms"])):
            terms.setdefault(fold(word), set()).add(row["name"])
    for kind in classes:
        terms.setdefault(fold(kind), set()).add(kind)
    longest = sorted(terms, key=len, reverse=True)
    pattern = re.compile(r"(?<![^\W_])(?:" + "|".join(map(re.escape, longest)) + r")(?![^\W_])")
    return Knowledge(
        substances,
        frozenset(classes),
        {word: frozenset(names) for word, names in terms.items()},
        pattern,
        _rules("cross_reactivity.csv"),
        _rules("interactions.csv"),
        {
            (row["ingredient"], row["route"]): Range(
                Decimal(row["min_single"]) if row["min_single"] else None,
                Decimal(row["max_single"]),
                Decimal(row["max_total"]),
                row["per"],
                row["unit"],
                row["source"],
            )
            for row in rows("dose_ranges.csv")
        },
    )


def _rules(name: str) -> tuple[Rule, ...]:
    return tuple(Rule(row["a"], row["b"], Severity(row["severity"]), row["what"], row["source"]) for row in rows(name))


# ---- plain values --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dose:
    """How much is taken at once and how often; `unit` and `most_unit` in UCUM."""

    value: Decimal
    unit: str
    per_day: Decimal | None = None
    """How many times a day at most; None where that is not said."""
    most: Decimal | None = None
    """The most in 24 hours, in `unit`, where it is said."""
    route: str = "oral"


@dataclass(frozen=True)
class Part:
    """An ingredient of a medicine, with how much of it is in one of the medicine's unit, where that is known."""

    name: str
    value: Decimal | None = None
    unit: str = ""


@dataclass(frozen=True)
class Medicine:
    """A medicine somebody wants to give, or that is being taken."""

    name: str
    parts: tuple[Part, ...]
    unit: str = ""
    dose: Dose | None = None
    against: str = ""
    dose_unshown: bool = False
    """Whether its dose is kept back from whoever asks."""

    def known(self) -> tuple[Substance, ...]:
        """The substances in it that we know."""
        found = {each.name: each for part in self.parts for each in knowledge().substances_in(part.name)}
        return tuple(found.values())

    def unknown(self) -> list[str]:
        """The ingredients we know nothing of."""
        return [part.name for part in self.parts if not knowledge().substances_in(part.name)] or (
            [] if self.parts else [self.name]
        )


@dataclass(frozen=True)
class Allergy:
    """An entry of the list of allergies."""

    text: str
    clinical_status: str | None = "active"
    verification_status: str | None = "confirmed"
    type: str | None = "allergy"
    criticality: str | None = None
    severe_reaction: bool = False
    """Whether a past reaction was severe."""
    unshown: bool = False
    """Whether past reactions are kept back from whoever asks; they count as severe."""
    category: tuple[str, ...] = ()
    against: str = ""

    @property
    def counts(self) -> bool:
        """Whether it still stands: active or of unknown status, and neither refuted nor written by mistake."""
        over = self.clinical_status in ("inactive", "resolved")
        return not over and self.verification_status not in ("refuted", "entered-in-error")

    @property
    def severity(self) -> DetectedIssueSeverity:
        grave = self.criticality == "high" or self.severe_reaction or self.unshown
        return Severity.HIGH if grave else Severity.MODERATE

    @property
    def code(self) -> DetectedIssueCode:
        return Code.DRUG_INTOLERANCE if self.type == "intolerance" else Code.DRUG_ALLERGY

    @property
    def word(self) -> str:
        return "intolerance" if self.type == "intolerance" else "allergy"


# ---- the checks ----------------------------------------------------------------------------------------------------


def assess(
    medicines: Sequence[Medicine],
    *,
    allergies: Sequence[Allergy] = (),
    state: str = "none",
    taken: Sequence[Medicine] | None = (),
    adult: bool | None = True,
) -> list[Issue]:
    """Everything that stands against giving the medicines, the gravest first.

    `state` says what is known of allergies (listed, none, unasked, hidden), `taken` is what the patient is on already,
    None where that is hidden; `adult` is None where the age is not known.
    """
    found: list[Issue] = []
    standing = [allergy for allergy in allergies if allergy.counts and not _says_none(allergy)]
    if state == "listed" and allergies and all(_says_little(allergy) for allergy in allergies if allergy.counts):
        state = "unasked" if any(allergy.counts for allergy in allergies) else state
    if state == "hidden":
        found.append(
            Issue(
                Code.DRUG_ALLERGY,
                Severity.HIGH,
                "NOT CHECKED against allergies: this patient's list is not open to you.",
                checked=False,
                against="allergies hidden",
                of_patient=True,
            )
        )
    if taken is None:
        found.append(
            Issue(
                Code.INTERACTION,
                Severity.HIGH,
                "NOT CHECKED against other medicines: this patient's orders are not open to you.",
                checked=False,
                against="orders hidden",
                of_patient=True,
            )
        )
        taken = ()
    if state == "unasked":
        found.append(
            Issue(
                Code.DRUG_ALLERGY,
                Severity.MODERATE,
                "NOT CHECKED against allergies: nobody has asked this patient yet.",
                checked=False,
                against="unasked",
                of_patient=True,
            )
        )
    found += _allergies_unchecked(standing)
    if unread := [medicine for medicine in taken if medicine.unknown()]:
        names = ", ".join(dict.fromkeys(medicine.name for medicine in unread))
        found.append(
            Issue(
                Code.INTERACTION,
                Severity.MODERATE,
                f"NOT CHECKED against these current medicines, of which we know nothing: {names}.",
                checked=False,
                against="taken unknown",
                of_patient=True,
            )
        )
    for line, medicine in enumerate(medicines):
        mine = [
            *_unmapped(medicine),
            *_allergic(medicine, standing),
            *_together(medicine, taken),
            *_twice(medicine, taken),
            *_dosed(medicine, adult=adult),
        ]
        found += [replace(issue, line=line) for issue in mine]
    for first, second in combinations(range(len(medicines)), 2):
        other = [replace(medicines[first], against=f"line {first}")]
        pair = [*_together(medicines[second], other), *_twice(medicines[second], other)]
        found += [replace(issue, line=second) for issue in pair]
    return sorted(_once(found), key=lambda issue: (-RANK[issue.severity], issue.line))


def _once(found: Iterable[Issue]) -> list[Issue]:
    """Of several that one thing says about one medicine, the gravest."""
    kept: dict[str, Issue] = {}
    for issue in found:
        before = kept.get(issue.key)
        if before is None or RANK[issue.severity] > RANK[before.severity]:
            kept[issue.key] = issue
    return list(kept.values())


_NONE = re.compile(
    r"\W*(?:patient )?(?:has )?(?:no known (?:(?:active|drug|medication|medicine) )*allerg(?:y|ies)|nkd?a"
    r"|(?:drug |medication )?allergies denied|denies (?:any )?(?:drug )?allergies"
    r"|(?:sin|no|niega) alergias(?: conocidas)?(?: a medicamentos)?)(?: \(?(?:situation|finding)\)?)?\W*"
)
"""The whole of an entry that says there is none; a word more, and it may say that there is one after all."""
_LITTLE = re.compile(
    r"\W*(?:patient )?(?:has )?no known (?:food|environmental|latex|insect|animal)(?: and environmental)?"
    r" allerg(?:y|ies)(?: \(?(?:situation|finding)\)?)?\W*"
)
"""The same of what is no medicine."""


def _says_none(allergy: Allergy) -> bool:
    """Whether it is the statement that there is none."""
    return _NONE.fullmatch(fold(allergy.text)) is not None or _says_little(allergy)


def _says_little(allergy: Allergy) -> bool:
    """Whether it is the statement that there is none, but says nothing of medicines."""
    return _LITTLE.fullmatch(fold(allergy.text)) is not None


def _allergies_unchecked(standing: Sequence[Allergy]) -> list[Issue]:
    """Entries that name nothing we know; food and surroundings weigh less than what may be a medicine."""
    found = []
    for severity, about in ((Severity.MODERATE, False), (Severity.LOW, True)):
        names = [
            allergy.text.strip() or "an entry without a name"
            for allergy in standing
            if not knowledge().named(allergy.text)
            and (bool(allergy.category) and set(allergy.category) <= {"food", "environment"}) is about
        ]
        if names:
            found.append(
                Issue(
                    Code.DRUG_ALLERGY,
                    severity,
                    f"NOT CHECKED against: {', '.join(dict.fromkeys(names))}.",
                    checked=False,
                    against=f"allergies unknown {severity}",
                    of_patient=True,
                )
            )
    return found


def _unmapped(medicine: Medicine) -> list[Issue]:
    names = medicine.unknown()
    if not names:
        return []
    return [
        Issue(
            Code.DRUG_ALLERGY,
            Severity.MODERATE,
            f"NOT CHECKED: of {', '.join(names)} nothing is known here, so neither allergies nor other medicines were"
            " compared with it.",
            checked=False,
            against="unmapped",
        )
    ]


def _allergic(medicine: Medicine, standing: Sequence[Allergy]) -> list[Issue]:
    """What the list of allergies has against a medicine: its substance, its class, and what cross-reacts."""
    found = []
    for allergy in standing:
        named = knowledge().named(allergy.text)
        best: tuple[DetectedIssueSeverity, str, str] | None = None
        for substance in medicine.known():
            met = _met(substance, named, allergy)
            if met and (best is None or RANK[met[0]] > RANK[best[0]]):
                best = met
        if best is not None:
            severity, why, source = best
            detail = f"{allergy.word.capitalize()} to {allergy.text.strip()}: {medicine.name}. {why}"
            if allergy.unshown:
                detail += " NOT CHECKED: how bad a past reaction was is not shown to you."
            found.append(
                Issue(allergy.code, severity, detail, source, against=allergy.against or f"allergy {allergy.text}")
            )
    return found


def _met(
    substance: Substance, named: frozenset[str], allergy: Allergy
) -> tuple[DetectedIssueSeverity, str, str] | None:
    """How an allergy to what is named touches a substance: how badly, why, and who says so."""
    if substance.name in named:
        return allergy.severity, f"It contains {substance.name}.", substance.source
    if shared := substance.classes & named:
        return allergy.severity, f"{substance.name.capitalize()} is one of the {min(shared)}.", substance.source
    met: tuple[DetectedIssueSeverity, str, str] | None = None
    for name in named:
        origin = knowledge().substances.get(name)
        groups = {name} | (origin.classes if origin else frozenset())
        for rule in knowledge().cross:
            if rule.a in groups and rule.b in {substance.name, *substance.classes}:
                severity = min(allergy.severity, rule.severity, key=RANK.__getitem__)
                if met is None or RANK[severity] > RANK[met[0]]:
                    met = severity, rule.what, rule.source
        if met is None and origin and substance.classes & origin.classes:
            met = Severity.MODERATE, SAME_CLASS, substance.source
    return met


def _together(medicine: Medicine, taken: Sequence[Medicine]) -> list[Issue]:
    """What happens when it is taken with the others."""
    found = []
    for other in taken:
        for mine in medicine.known():
            for theirs in other.known():
                if mine.name == theirs.name:
                    continue
                for rule in knowledge().interactions:
                    if (rule.a in mine.groups and rule.b in theirs.groups) or (
                        rule.b in mine.groups and rule.a in theirs.groups
                    ):
                        detail = f"{medicine.name} with {other.name}: {rule.what}"
                        found.append(Issue(Code.INTERACTION, rule.severity, detail, rule.source, against=other.against))
    return found


def _twice(medicine: Medicine, taken: Sequence[Medicine]) -> list[Issue]:
    """Whether the same, or one of the same class, is taken already."""
    found = []
    for other in taken:
        same: set[str] = set()
        alike: set[str] = set()
        source = ""
        for mine in medicine.known():
            for theirs in other.known():
                if mine.name == theirs.name:
                    same.add(mine.name)
                    source = mine.source
                elif kinds := mine.classes & theirs.classes:
                    alike |= kinds
                    source = source or mine.source
        if same:
            detail = f"{medicine.name} and {other.name} both contain {', '.join(sorted(same))}."
        elif alike:
            detail = f"{medicine.name} and {other.name} are both {' and '.join(sorted(alike))}."
        else:
            continue
        found.append(Issue(Code.DUPLICATE_THERAPY, Severity.MODERATE, detail, source, against=other.against))
    return found


def _dosed(medicine: Medicine, *, adult: bool | None) -> list[Issue]:
    """Whether the dose lies within what adults are given, as far as both are known; a child is not given more."""
    found: list[Issue] = []
    untold: list[str] = []
    if medicine.dose is None:
        return [_unreckoned("the dose is not shown to you.", "unshown")] if medicine.dose_unshown else found
    reckoned = False
    for part in medicine.parts:
        for substance in knowledge().substances_in(part.name):
            limits = knowledge().ranges.get((substance.name, medicine.dose.route))
            if limits is None:
                continue
            reckoned = True
            single = amount(medicine, part, medicine.dose)
            in_range = converted(single[0], single[1], limits.unit) if single is not None else None
            if in_range is None:
                untold.append(substance.name)
                continue
            told = _compared(medicine, substance.name, in_range, limits)
            if adult is False:
                told = [replace(each, severity=Severity.HIGH) for each in told if each.code == Code.HIGH_DOSE]
            found += told
    if untold:
        names = ", ".join(dict.fromkeys(untold))
        found.append(_unreckoned(f"how much {names} is in this dose cannot be told.", "amount"))
    if adult is False:
        found.append(_unreckoned("the doses known here are those of adults, and this patient is a child.", "child"))
    elif adult is None and reckoned:
        found.append(_unreckoned("the doses known here are those of adults, and this patient's age is not.", "age"))
    return found


def _unreckoned(why: str, against: str) -> Issue:
    return Issue(Code.HIGH_DOSE, Severity.MODERATE, f"NOT CHECKED: {why}", checked=False, against=f"dose {against}")


def _compared(medicine: Medicine, name: str, single: Decimal, limits: Range) -> list[Issue]:
    dose = medicine.dose
    assert dose is not None
    total = _total(dose, single, limits.per)
    over: list[tuple[Decimal, str]] = []
    if single > limits.single:
        over.append((single / limits.single, f"{plain(single)} {limits.unit} at once, at most {plain(limits.single)}"))
    if total is not None and total > limits.total:
        period = "day" if limits.per == "d" else "week"
        over.append(
            (total / limits.total, f"{plain(total)} {limits.unit} in a {period}, at most {plain(limits.total)}")
        )
    if over:
        times, said = max(over)
        severity = Severity.HIGH if times >= FAR_TOO_MUCH else Severity.MODERATE
        detail = f"High dose of {name}: {said} {limits.unit} for adults."
        return [Issue(Code.HIGH_DOSE, severity, detail, limits.source, against=name)]
    if limits.least is not None and single < limits.least:
        detail = (
            f"Low dose of {name}: {plain(single)} {limits.unit} at once, adults are usually given {plain(limits.least)}"
            f" {limits.unit} or more."
        )
        return [Issue(Code.LOW_DOSE, Severity.MODERATE, detail, limits.source, against=name)]
    return []


def _total(dose: Dose, single: Decimal, per: str) -> Decimal | None:
    """How much of the ingredient in a day or a week: what the timing makes, or what is said to be the most."""
    days = 7 if per == "wk" else 1
    made = single * dose.per_day * days if dose.per_day is not None else None
    most = single / dose.value * dose.most * days if dose.most is not None else None
    told = [each for each in (made, most) if each is not None]
    total = min(told) if told else None
    # What is taken less often than once a day is compared with what a day may hold as it is taken.
    return max(total, single) if total is not None and per == "d" else total


def amount(medicine: Medicine, part: Part, dose: Dose) -> tuple[Decimal, str] | None:
    """How much of an ingredient a dose holds, with its unit; None where that cannot be told."""
    if dose.unit == medicine.unit and part.value is not None and part.unit:
        return dose.value * part.value, part.unit
    if len(medicine.parts) == 1 and (dose.unit in GRAMS or dose.unit == part.unit):
        return dose.value, dose.unit
    return None


def converted(value: Decimal, unit: str, into: str) -> Decimal | None:
    """A quantity in another unit; None where the two do not measure the same."""
    if unit == into:
        return value
    if unit in GRAMS and into in GRAMS:
        return value * GRAMS[unit] / GRAMS[into]
    return None


def plain(value: Decimal) -> str:
    """A number as it is written: no trailing zeros, no exponent."""
    text = f"{value.normalize():f}"
    return text if len(text) < 12 else f"{round(value, 3).normalize():f}"


# ---- from the record -----------------------------------------------------------------------------------------------


def medicine_of(medication: Medication, dose: Dose | None = None) -> Medicine:
    """A medicine of the formulary as plain values."""
    return Medicine(medication.display, parts_of(medication.ingredient), medication.unit, dose)


def parts_of(ingredient: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    """Medication.ingredient as plain values."""
    return tuple(
        Part(
            str(each.get("name", "")),
            Decimal(str(each["value"])) if each.get("value") is not None else None,
            str(each.get("unit") or ""),
        )
        for each in ingredient
    )


def taken_of(request: MedicationRequest) -> Medicine:
    """An order as plain values; what is in no formulary goes by the substances its name tells."""
    against = f"order {request.id}"
    if request.medication is not None and request.medication.ingredient:
        return replace(medicine_of(request.medication), against=against)
    named = knowledge().substances_in(request.code_display)
    parts = tuple(Part(substance.name) for substance in named) or (Part(request.code_display),)
    return Medicine(request.code_display, parts, against=against)


def allergy_of(row: AllergyIntolerance) -> Allergy:
    """An entry of the record as plain values; a past reaction the actor is not shown counts as a severe one."""
    return Allergy(
        text=row.code_display or "",
        clinical_status=row.clinical_status,
        verification_status=row.verification_status,
        type=row.type,
        criticality=row.criticality,
        severe_reaction=any(reaction.get("severity") == "severe" for reaction in row.reaction or []),
        unshown="reaction" in at_work().rights.hidden("AllergyIntolerance"),
        category=tuple(row.category or ()),
        against=f"allergy {row.id}",
    )


@dataclass(frozen=True)
class Background:
    """What is known of a patient that matters to whoever gives a medicine."""

    patient: Patient
    allergies: list[AllergyIntolerance] = field(default_factory=list)
    state: str = "unasked"
    """As clinical.allergy_state says, or hidden where the list is not open to the actor."""
    taken: list[MedicationRequest] = field(default_factory=list)
    orders_open: bool = True
    """Whether the patient's orders are open to the actor."""


def background(session: Session, patient_id: int, *, besides: Collection[int] = ()) -> Background:
    """Allergies and current medicines of a patient, through the gate, but for the orders in `besides`.

    What was handed out in full still counts while the paper is good, and as long as the last fill lasts: it is being
    taken. What is not open to the actor is said to be hidden, and is not an empty list. Raises NotFound.
    """
    patient = session.get(Patient, patient_id)
    if patient is None:
        raise NotFound
    allergies: list[AllergyIntolerance] = []
    state = "hidden"
    if guard.reaches("read", AllergyIntolerance, patient_id):
        listed = (
            select(AllergyIntolerance)
            .where(AllergyIntolerance.patient_id == patient_id)
            .order_by(AllergyIntolerance.id)
            .limit(clinical.LONGEST_PART)
        )
        allergies = list(session.scalars(listed))
        state = clinical.allergy_state(patient, allergies)
    if not guard.reaches("read", MedicationRequest, patient_id):
        return Background(patient, allergies, state, orders_open=False)
    current = or_(
        MedicationRequest.status.in_(
            [MedicationRequestStatus.ACTIVE, MedicationRequestStatus.ON_HOLD, MedicationRequestStatus.UNKNOWN]
        ),
        and_(
            MedicationRequest.status == MedicationRequestStatus.COMPLETED,
            MedicationRequest.prescription_id.is_not(None),
            MedicationRequest.valid_until >= today() - timedelta(days=LONGEST + 1),
        ),
    )
    taken = select(MedicationRequest).where(MedicationRequest.patient_id == patient_id, current)
    if besides:
        taken = taken.where(MedicationRequest.id.not_in(list(besides)))
    orders = session.scalars(
        taken.options(joinedload(MedicationRequest.medication), joinedload(MedicationRequest.requester))
        .order_by(MedicationRequest.authored_at.desc().nulls_last(), MedicationRequest.id.desc())
        .limit(clinical.LONGEST_PART)
    )
    return Background(patient, allergies, state, [order for order in orders if _still_taken(order)])


def _still_taken(request: MedicationRequest) -> bool:
    """Whether there may be something left of it: while the paper is good, and as long as its last fill lasts."""
    if request.status != MedicationRequestStatus.COMPLETED:
        return True
    good = request.valid_until is not None and request.valid_until >= today() - timedelta(days=1)
    return good or request.updated_at.date() + timedelta(days=_lasts(request)) >= today()


def _lasts(request: MedicationRequest) -> int:
    """For how many days one fill is taken."""
    from app.services import dosage

    dose = dosage.from_fhir(request.dosage_instruction)
    if dose is None or request.quantity is None:
        return LASTS
    times = dosage.per_day(dose.timing)
    told = [each for each in (dose.value * times if times is not None else None, dose.most) if each is not None]
    if not told:
        return LASTS
    daily = min(told)
    if dose.unit != request.quantity_unit:
        parts = parts_of(request.medication.ingredient) if request.medication is not None else ()
        within = converted(daily, dose.unit, parts[0].unit) if len(parts) == 1 else None
        if within is None or not parts[0].value:
            return LASTS
        daily = within / parts[0].value
    return min(int((request.quantity / daily).to_integral_value(rounding=ROUND_CEILING)), LONGEST)


def check(
    session: Session,
    patient_id: int,
    medications: Sequence[Medication],
    doses: Sequence[Dose | None] = (),
    *,
    besides: Collection[int] = (),
) -> list[Issue]:
    """Everything that stands against giving a patient these medicines in these doses, the gravest first.

    `besides` are orders that do not count, such as those being dispensed. Raises NotFound, and Forbidden from the gate.
    """
    return against(background(session, patient_id, besides=besides), medications, doses)


def against(known: Background, medications: Sequence[Medication], doses: Sequence[Dose | None] = ()) -> list[Issue]:
    """As `check`, of a background that is there already."""
    told = [*doses, *[None] * (len(medications) - len(doses))]
    unshown = "dosage_instruction" in at_work().rights.hidden("MedicationRequest")
    return assess(
        [
            replace(medicine_of(medication, dose), dose_unshown=unshown)
            for medication, dose in zip(medications, told, strict=True)
        ],
        allergies=[allergy_of(row) for row in known.allergies],
        state=known.state,
        taken=[taken_of(request) for request in known.taken] if known.orders_open else None,
        adult=_adult(known.patient),
    )


def _adult(patient: Patient) -> bool | None:
    """Whether the patient is one; None where the age is not known."""
    born = patient.birth_date
    if born is None:
        return None
    day = today()
    return day.year - born.year - ((day.month, day.day) < (born.month, born.day)) >= ADULT
