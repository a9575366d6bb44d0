"""Whether a result is normal: one pure function, and what it needs to know. Codes are HL7 table 0078.

A limit itself is normal and a critical limit itself is critical. Where no limits apply there is no flag, and never N.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Literal

from dateutil.relativedelta import relativedelta

from models.codes import SexForClinicalUse

RULES = 1
"""The edition of these rules, kept with every flag."""

Comparator = Literal["", "<", "<=", ">", ">="]
SEXED = (SexForClinicalUse.MALE, SexForClinicalUse.FEMALE)


@dataclass(frozen=True)
class Limits:
    """What a number is held against, all in one unit; None for a limit nobody has set, which is no limit at infinity.

    Reference limits say what is normal, critical ones what somebody must be told of, reporting ones what the instrument
    can tell apart.
    """

    low: Decimal | None = None
    high: Decimal | None = None
    critical_low: Decimal | None = None
    critical_high: Decimal | None = None
    reporting_low: Decimal | None = None
    reporting_high: Decimal | None = None
    plausible_low: Decimal | None = None
    plausible_high: Decimal | None = None

    @property
    def judge(self) -> bool:
        """Whether they say anything about what is normal."""
        return not all(each is None for each in (self.low, self.high, self.critical_low, self.critical_high))


@dataclass(frozen=True)
class Flag:
    """What a result amounts to: `code` for whether it is normal, `scale` for one that is off the instrument's scale."""

    code: str | None = None
    """N, L, LL, H, HH, A, AA, or None where nothing can be said."""
    scale: Literal["<", ">"] | None = None

    @property
    def critical(self) -> bool:
        """Whether somebody must be told at once."""
        return self.code in ("LL", "HH", "AA")


NO_FLAG = Flag()


def interpret(value: Decimal, limits: Limits | None, comparator: Comparator = "") -> Flag:
    """The flag of a number, or of `comparator` and a number, such as < 5: of everything it may have been.

    Raises ValueError for what is no number.
    """
    if not value.is_finite():
        raise ValueError("not a number")
    if limits is None:
        return NO_FLAG
    return Flag(_code(value, limits, comparator) if limits.judge else None, _scale(value, limits, comparator))


def _code(value: Decimal, limits: Limits, comparator: Comparator) -> str | None:
    if not comparator:
        return _of_number(value, limits)
    # A flag changes only at a limit, so the limits among what it may have been, and what lies between them, tell.
    below = comparator in ("<", "<=")
    marks = {value, limits.low, limits.high, limits.critical_low, limits.critical_high} - {None}
    edges = sorted(m for m in marks if m is not None and (m <= value if below else m >= value))
    probes = {(one + other) / 2 for one, other in pairwise(edges)} | set(edges) - {value}
    probes.add(edges[0] - 1 if below else edges[-1] + 1)
    if comparator in ("<=", ">="):
        probes.add(value)
    found = {_of_number(probe, limits) for probe in probes}
    return found.pop() if len(found) == 1 else _all_of_one_side(found)


def _all_of_one_side(found: set[str]) -> str | None:
    """Low for what is low or critically low, high likewise; nothing for what may be anything."""
    if found <= {"L", "LL"}:
        return "L"
    if found <= {"H", "HH"}:
        return "H"
    return None


def _of_number(value: Decimal, limits: Limits) -> str:
    if limits.critical_high is not None and value >= limits.critical_high:
        return "HH"
    if limits.critical_low is not None and value <= limits.critical_low:
        return "LL"
    if limits.high is not None and value > limits.high:
        return "H"
    if limits.low is not None and value < limits.low:
        return "L"
    return "N"


def _scale(value: Decimal, limits: Limits, comparator: Comparator) -> Literal["<", ">"] | None:
    low, high = limits.reporting_low, limits.reporting_high
    if low is not None and (value < low if not comparator else comparator in ("<", "<=") and value <= low):
        return "<"
    if high is not None and (value > high if not comparator else comparator in (">", ">=") and value >= high):
        return ">"
    return None


def plausible(value: Decimal, limits: Limits) -> bool:
    """Whether a number can have come from somebody alive; the limits themselves can."""
    low, high = limits.plausible_low, limits.plausible_high
    return (low is None or value >= low) and (high is None or value <= high)


def interpret_code(
    code: str, normal: Collection[str], abnormal: Collection[str] = (), critical: Collection[str] = ()
) -> Flag:
    """The flag of a result that is no number; none for an answer nobody has sorted."""
    if code in critical:
        return Flag("AA")
    if code in abnormal:
        return Flag("A")
    return Flag("N") if code in normal else NO_FLAG


# ---- which limits ------------------------------------------------------------------------------------------------

AgeUnit = Literal["d", "wk", "mo", "a"]
"""UCUM."""


@dataclass(frozen=True)
class Age:
    """An age that is reached on a day of the calendar: a year on the birthday, a month on its day."""

    value: int
    unit: AgeUnit

    def reached(self, born: date) -> date:
        """The day somebody born then reaches it."""
        by = {
            "d": relativedelta(days=self.value),
            "wk": relativedelta(weeks=self.value),
            "mo": relativedelta(months=self.value),
            "a": relativedelta(years=self.value),
        }
        return born + by[self.unit]


@dataclass(frozen=True)
class Range:
    """Limits, and whom they are for. What is None or empty is for anybody."""

    limits: Limits
    unit: str
    """UCUM."""
    sex: str | None = None
    """models.codes.SexForClinicalUse: male-typical or female-typical."""
    since: Age | None = None
    until: Age | None = None
    """The first age it is no longer for."""
    pregnant: bool | None = None
    method: str = ""
    valid_from: date | None = None
    valid_until: date | None = None
    """The last day it counts."""


@dataclass(frozen=True)
class Subject:
    """Whose result it is, on the day the specimen was taken."""

    collected_on: date
    born: date | None = None
    """The first day of what is known of the birth date."""
    born_precision: Literal["day", "month", "year"] = "day"
    sex: str = SexForClinicalUse.UNKNOWN
    pregnant: bool | None = None
    method: str = ""

    @property
    def births(self) -> tuple[date, date] | None:
        """The first and the last day they may have been born on."""
        if self.born is None:
            return None
        further = {
            "day": relativedelta(),
            "month": relativedelta(months=1, days=-1),
            "year": relativedelta(years=1, days=-1),
        }
        return self.born, self.born + further[self.born_precision]


def of_age(subject: Subject, since: Age | None, until: Age | None) -> bool:
    """Whether somebody was within [since, until) when the specimen was taken, whichever day they were born on."""
    if since is None and until is None:
        return True
    births = subject.births
    if births is None:
        return False
    first, last = births
    last = min(last, subject.collected_on)
    return (since is None or since.reached(last) <= subject.collected_on) and (
        until is None or until.reached(first) > subject.collected_on
    )


def applies(each: Range, subject: Subject) -> bool:
    """Whether a range is for this person on that day. What is not known of them keeps ranges off that ask for it."""
    return (
        (each.valid_from is None or each.valid_from <= subject.collected_on)
        and (each.valid_until is None or each.valid_until >= subject.collected_on)
        and (each.sex is None or (subject.sex in SEXED and each.sex == subject.sex))
        and (each.pregnant is None or each.pregnant == subject.pregnant)
        and (not each.method or each.method == subject.method)
        and of_age(subject, each.since, each.until)
    )


def _special(each: Range, born: date) -> tuple[int, timedelta]:
    """How special a range is: what it asks for, then how narrow its ages are."""
    asks = sum((each.pregnant is not None, bool(each.method), each.sex is not None))
    aged = each.since is not None or each.until is not None
    opens = each.since.reached(born) if each.since else born
    closes = each.until.reached(born) if each.until else date.max
    return asks + aged, opens - closes


def choose(ranges: Iterable[Range], subject: Subject) -> Range | None:
    """The most special range that is for this person; None where none is, or where two are as special and differ."""
    found = [each for each in ranges if applies(each, subject)]
    if not found:
        return None
    born = subject.born or date(1900, 1, 1)
    best = max(_special(each, born) for each in found)
    first, *others = [each for each in found if _special(each, born) == best]
    same = all((other.limits, other.unit) == (first.limits, first.unit) for other in others)
    return first if same else None


# ---- changes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delta:
    """By how much a result may differ from the one before within some days; by amount, by share, or by either."""

    within: timedelta
    amount: Decimal | None = None
    share: Decimal | None = None
    """Of the one before: 0.5 is half."""


def change(value: Decimal, before: Decimal, since: timedelta, rule: Delta) -> Literal["U", "D"] | None:
    """U or D where a result has risen or fallen by more than the rule allows; None where it has not, or nobody says."""
    if since < timedelta() or since > rule.within:
        return None
    by = value - before
    much = rule.amount is not None and abs(by) > rule.amount
    much = much or (rule.share is not None and before != 0 and abs(by) > abs(before) * rule.share)
    if not much:
        return None
    return "U" if by > 0 else "D"


# ---- units -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversion:
    """By what a number in one unit (UCUM) becomes one in another."""

    source: str
    target: str
    factor: Decimal


def convert(value: Decimal, source: str, target: str, table: Iterable[Conversion]) -> Decimal | None:
    """A number in another unit by the table, either way round; None where the table does not say."""
    if source == target:
        return value
    for each in table:
        if (each.source, each.target) == (source, target):
            return value * each.factor
        if (each.target, each.source) == (source, target):
            return value / each.factor
    return None


__all__ = [
    "Age",
    "Conversion",
    "Delta",
    "Flag",
    "Limits",
    "Range",
    "Subject",
    "applies",
    "change",
    "choose",
    "convert",
    "interpret",
    "interpret_code",
    "plausible",
]
