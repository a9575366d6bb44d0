"""Flags of results, boundary by boundary."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.services import flags
from app.services.flags import Age, Conversion, Delta, Flag, Limits, Range, Subject
from models.codes import SexForClinicalUse


def limits(text: str) -> Limits:
    """`3.5..5.1` normal, `(2.5..6.5)` critical, `[1..9]` what the instrument can tell, `{0..20}` what is possible."""
    names = {"": ("low", "high"), "(": ("critical_low", "critical_high"), "[": ("reporting_low", "reporting_high")}
    names["{"] = ("plausible_low", "plausible_high")
    found: dict[str, Decimal] = {}
    for part in text.split():
        mark = part[0] if part[0] in "([{" else ""
        ends = part.strip("()[]{}").split("..")
        for name, end in zip(names[mark], ends, strict=True):
            if end:
                found[name] = Decimal(end)
    return Limits(**found)


POTASSIUM = "3.5..5.1 (2.5..6.5)"
CASES = [
    # value, limits, flag
    ("4.2", POTASSIUM, "N"),
    ("3.5", POTASSIUM, "N"),
    ("3.49", POTASSIUM, "L"),
    ("3.4999999", POTASSIUM, "L"),
    ("5.1", POTASSIUM, "N"),
    ("5.11", POTASSIUM, "H"),
    ("2.51", POTASSIUM, "L"),
    ("2.5", POTASSIUM, "LL"),
    ("2.49", POTASSIUM, "LL"),
    ("6.49", POTASSIUM, "H"),
    ("6.5", POTASSIUM, "HH"),
    ("6.51", POTASSIUM, "HH"),
    ("3.50", POTASSIUM, "N"),
    ("5.100", POTASSIUM, "N"),
    # nought is a number
    ("0", POTASSIUM, "LL"),
    ("0", "0..10", "N"),
    ("0", "1..10", "L"),
    ("0", "..10", "N"),
    ("0", "-5..-1", "H"),
    ("0.0", "0..0", "N"),
    ("0.1", "0..0", "H"),
    ("-0.1", "0..0", "L"),
    ("0", "(0..)", "LL"),
    ("0", "(..0)", "HH"),
    # below nought: base excess
    ("-2", "-2..2", "N"),
    ("-2.01", "-2..2", "L"),
    ("-3", "-2..2 (-10..10)", "L"),
    ("-10", "-2..2 (-10..10)", "LL"),
    ("2.01", "-2..2", "H"),
    # one limit only
    ("4.4", "..4.5", "N"),
    ("4.5", "..4.5", "N"),
    ("4.6", "..4.5", "H"),
    ("-1000", "..4.5", "N"),
    ("1.5", "1.5..", "N"),
    ("1.4", "1.5..", "L"),
    ("1000000", "1.5..", "N"),
    # critical limits only
    ("7", "(..6.5)", "HH"),
    ("6", "(..6.5)", "N"),
    ("2", "(2.5..)", "LL"),
    ("3", "(2.5..)", "N"),
    # a critical limit within the normal ones counts as critical
    ("5", "1..10 (..5)", "HH"),
    # nobody has said what is normal
    ("4.2", "", None),
    ("0", "", None),
    ("4.2", "[1..9]", None),
    ("4.2", "{0..20}", None),
    # large and small
    ("1E+6", "..1000000", "N"),
    ("1000000.0001", "..1E+6", "H"),
    ("0.0000001", "0.0000001..", "N"),
]
COMPARED = [
    # comparator, value, limits, flag
    ("<", "5", "..10", "N"),
    ("<", "5", "..5", "N"),
    ("<", "5.1", "..5", None),
    ("<=", "5", "..5", "N"),
    ("<", "5", "3..10", None),
    ("<", "3", "3..10", "L"),
    ("<=", "3", "3..10", None),
    ("<", "2.5", POTASSIUM, "LL"),
    ("<=", "2.5", POTASSIUM, "LL"),
    ("<", "2.6", POTASSIUM, "L"),
    ("<", "3.5", POTASSIUM, "L"),
    ("<", "3.6", POTASSIUM, None),
    ("<", "100", POTASSIUM, None),
    (">", "5", "3..", "N"),
    (">", "3", "3..", "N"),
    (">=", "3", "3..", "N"),
    (">", "2.9", "3..", None),
    (">", "10", "3..10", "H"),
    (">=", "10", "3..10", None),
    (">", "9", "3..10", None),
    (">", "6.5", POTASSIUM, "HH"),
    (">=", "6.5", POTASSIUM, "HH"),
    (">", "6.4", POTASSIUM, "H"),
    (">", "5.1", POTASSIUM, "H"),
    (">", "5.0", POTASSIUM, None),
    ("<", "15", "", None),
    ("<", "0", "0..10", "L"),
    (">", "0", "..10", None),
    (">", "0", "0..", "N"),
    ("<", "-1", "-1..1", "L"),
]


@pytest.mark.parametrize(("value", "against", "flag"), CASES)
def test_a_number_is_flagged_by_its_limits(value: str, against: str, flag: str | None) -> None:
    assert flags.interpret(Decimal(value), limits(against)).code == flag


@pytest.mark.parametrize(("comparator", "value", "against", "flag"), COMPARED)
def test_what_may_be_anything_beyond_a_number_is_flagged_where_it_is_certain(
    comparator: Any, value: str, against: str, flag: str | None
) -> None:
    assert flags.interpret(Decimal(value), limits(against), comparator).code == flag


@pytest.mark.parametrize(
    ("comparator", "value", "against", "flag"),
    [
        ("", "0.5", "1..3 [0.6..50]", Flag("L", "<")),
        ("", "0.6", "1..3 [0.6..50]", Flag("L")),
        ("<", "0.6", "1..3 [0.6..50]", Flag("L", "<")),
        ("<", "0.7", "1..3 [0.6..50]", Flag("L")),
        (">", "50", "1..3 [0.6..50]", Flag("H", ">")),
        ("", "50", "1..3 [0.6..50]", Flag("H")),
        ("", "50.1", "1..3 [0.6..50]", Flag("H", ">")),
        (">=", "50", "[0.6..50]", Flag(None, ">")),
        ("<", "0.6", "[0.6..50]", Flag(None, "<")),
        (">", "0.6", "1..3 [0.6..50]", Flag()),
    ],
)
def test_off_the_scale_is_not_low_or_high(comparator: Any, value: str, against: str, flag: Flag) -> None:
    assert flags.interpret(Decimal(value), limits(against), comparator) == flag


def test_without_limits_there_is_no_flag_and_never_normal() -> None:
    assert flags.interpret(Decimal(5), None) == Flag()
    assert flags.interpret(Decimal(5), None, "<") == Flag()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "sNaN"])
def test_what_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="not a number"):
        flags.interpret(Decimal(value), limits(POTASSIUM))


@pytest.mark.parametrize(
    ("code", "flag"),
    [("260385009", "N"), ("10828004", "A"), ("CRIT", "AA"), ("419984006", None), ("", None)],
)
def test_an_answer_is_flagged_by_how_it_was_sorted(code: str, flag: str | None) -> None:
    assert flags.interpret_code(code, {"260385009"}, {"10828004", "CRIT"}, {"CRIT"}).code == flag


@pytest.mark.parametrize(
    ("value", "possible"),
    [("0", True), ("-0.01", False), ("20", True), ("20.01", False), ("7", True)],
)
def test_the_limits_of_what_is_possible_are_possible(value: str, possible: bool) -> None:
    assert flags.plausible(Decimal(value), limits("{0..20}")) is possible
    assert flags.plausible(Decimal(value), Limits())


# ---- whose limits ------------------------------------------------------------------------------------------------

DAY = date(2026, 3, 1)
M, F = SexForClinicalUse.MALE, SexForClinicalUse.FEMALE


def normal(text: str, **whose: Any) -> Range:
    return Range(limits(text), "g/L", **whose)


HAEMOGLOBIN = [
    normal("135..180", sex=M, since=Age(18, "a")),
    normal("115..165", sex=F, since=Age(18, "a")),
    normal("110..150", sex=F, since=Age(18, "a"), pregnant=True),
    normal("110..145", since=Age(1, "a"), until=Age(18, "a")),
    normal("100..140", since=Age(1, "mo"), until=Age(1, "a")),
    normal("140..220", until=Age(4, "wk")),
]


@pytest.mark.parametrize(
    ("born", "sex", "more", "low"),
    [
        (date(1980, 5, 5), M, {}, "135"),
        (date(1980, 5, 5), F, {}, "115"),
        (date(1980, 5, 5), F, {"pregnant": True}, "110"),
        (date(1980, 5, 5), F, {"pregnant": False}, "115"),
        (date(1980, 5, 5), SexForClinicalUse.UNKNOWN, {}, None),
        (date(1980, 5, 5), SexForClinicalUse.SPECIFIED, {}, None),
        (date(1980, 5, 5), M, {"pregnant": True}, "135"),
        # eighteen on the day itself, and the day before
        (date(2008, 3, 1), M, {}, "135"),
        (date(2008, 3, 2), M, {}, "110"),
        (date(2025, 3, 1), M, {}, "110"),
        (date(2025, 3, 2), M, {}, "100"),
        (date(2026, 2, 1), M, {}, "100"),
        (date(2026, 2, 2), M, {}, "140"),
        (date(2026, 3, 1), M, {}, "140"),
        (None, M, {}, None),
        # only the year is known
        (date(1980, 1, 1), M, {"born_precision": "year"}, "135"),
        (date(2008, 1, 1), M, {"born_precision": "year"}, None),
        (date(2015, 1, 1), F, {"born_precision": "year"}, "110"),
        (date(2008, 3, 1), M, {"born_precision": "month"}, None),
        (date(2008, 2, 1), M, {"born_precision": "month"}, "135"),
        (date(2026, 1, 1), M, {"born_precision": "year"}, None),
    ],
)
def test_limits_are_chosen_by_sex_and_age_on_the_day_of_the_specimen(
    born: date | None, sex: str, more: dict[str, Any], low: str | None
) -> None:
    found = flags.choose(HAEMOGLOBIN, Subject(DAY, born, sex=sex, **more))
    assert (found.limits.low if found else None) == (Decimal(low) if low else None)


def test_somebody_born_on_the_29th_of_february_comes_of_age() -> None:
    assert flags.of_age(Subject(date(2026, 2, 28), date(2008, 2, 29)), Age(18, "a"), None)
    assert not flags.of_age(Subject(date(2026, 2, 27), date(2008, 2, 29)), Age(18, "a"), None)


def test_the_most_special_range_wins_and_two_that_differ_say_nothing() -> None:
    everybody, men = normal("1..2"), normal("3..4", sex=M)
    narrow = normal("5..6", since=Age(40, "a"), until=Age(50, "a"))
    wide = normal("7..8", since=Age(18, "a"))
    who = Subject(DAY, date(1980, 5, 5), sex=M)
    assert flags.choose([everybody, men], who) is men
    assert flags.choose([wide, narrow, everybody], who) is narrow
    assert flags.choose([normal("1..2", sex=M), normal("1..3", sex=M)], who) is None
    twice = normal("1..2", sex=M)
    assert flags.choose([twice, normal("1..2", sex=M)], who) is twice
    assert flags.choose([], who) is None


def test_ranges_count_within_their_days_and_for_their_method() -> None:
    old, new = normal("1..2", valid_until=date(2026, 2, 28)), normal("3..4", valid_from=date(2026, 3, 1))
    assert flags.choose([old, new], Subject(DAY)) is new
    assert flags.choose([old, new], Subject(DAY - timedelta(days=1))) is old
    optical = normal("5..6", method="optical")
    assert flags.choose([new, optical], Subject(DAY, method="optical")) is optical
    assert flags.choose([new, optical], Subject(DAY)) is new


# ---- changes and units -------------------------------------------------------------------------------------------

HALF = Delta(timedelta(days=7), share=Decimal("0.5"))


@pytest.mark.parametrize(
    ("value", "before", "days", "rule", "found"),
    [
        ("16", "10", 1, HALF, "U"),
        ("15", "10", 1, HALF, None),
        ("4", "10", 1, HALF, "D"),
        ("5", "10", 1, HALF, None),
        ("16", "10", 7, HALF, "U"),
        ("16", "10", 8, HALF, None),
        ("16", "10", -1, HALF, None),
        ("16", "0", 1, HALF, None),
        ("16", "0", 1, Delta(timedelta(days=7), amount=Decimal(5)), "U"),
        ("5", "0", 1, Delta(timedelta(days=7), amount=Decimal(5)), None),
        ("-4", "-10", 1, HALF, "U"),
        ("0", "10", 1, HALF, "D"),
        ("11", "10", 1, Delta(timedelta(days=7), amount=Decimal(5), share=Decimal("0.05")), "U"),
        ("11", "10", 1, Delta(timedelta(days=7)), None),
    ],
)
def test_a_change_is_significant_by_the_rule(
    value: str, before: str, days: int, rule: Delta, found: str | None
) -> None:
    assert flags.change(Decimal(value), Decimal(before), timedelta(days=days), rule) == found


def test_units_are_converted_by_the_table_either_way_or_not_at_all() -> None:
    glucose = [Conversion("mg/dL", "mmol/L", Decimal("0.0555"))]
    assert flags.convert(Decimal(100), "mg/dL", "mmol/L", glucose) == Decimal("5.5500")
    assert flags.convert(Decimal("5.55"), "mmol/L", "mg/dL", glucose) == Decimal(100)
    assert flags.convert(Decimal(0), "mg/dL", "mmol/L", glucose) == 0
    assert flags.convert(Decimal(5), "mmol/L", "mmol/L", []) == 5
    assert flags.convert(Decimal(5), "g/L", "mmol/L", glucose) is None


# ---- whatever the numbers ----------------------------------------------------------------------------------------

NUMBERS = st.decimals(min_value=-1000, max_value=1000, places=2)
ORDER = ["LL", "L", "N", "H", "HH"]


@st.composite
def some_limits(draw: st.DrawFn) -> Limits:
    """Limits in their order, any of them absent."""
    four = sorted(draw(st.lists(NUMBERS, min_size=4, max_size=4, unique=True)))
    names = ("critical_low", "low", "high", "critical_high")
    return Limits(**{name: each for name, each in zip(names, four, strict=True) if draw(st.booleans())})


@given(some_limits(), NUMBERS, NUMBERS)
def test_a_higher_number_is_never_flagged_lower(against: Limits, one: Decimal, other: Decimal) -> None:
    small, large = sorted((one, other))
    first, second = flags.interpret(small, against).code, flags.interpret(large, against).code
    if not against.judge:
        assert first is second is None
    else:
        assert ORDER.index(str(first)) <= ORDER.index(str(second))


@given(some_limits(), NUMBERS, st.sampled_from(["<", "<=", ">", ">="]), st.decimals(0, 500, places=3))
def test_a_comparator_says_nothing_that_one_of_its_numbers_denies(
    against: Limits, value: Decimal, comparator: Any, by: Decimal
) -> None:
    said = flags.interpret(value, against, comparator).code
    if by == 0 and comparator in ("<", ">"):
        by = Decimal("0.001")
    one = flags.interpret(value - by if comparator in ("<", "<=") else value + by, against).code
    assert said is None or said == one or (said, one) in (("L", "LL"), ("H", "HH"))


@given(some_limits())
def test_a_limit_itself_is_normal_unless_it_is_critical(against: Limits) -> None:
    for limit in (against.low, against.high):
        if limit is not None:
            assert flags.interpret(limit, against).code == "N"
    if against.critical_low is not None:
        assert flags.interpret(against.critical_low, against).code == "LL"
    if against.critical_high is not None:
        assert flags.interpret(against.critical_high, against).code == "HH"
