"""The laboratory's catalogue: tests, ranges that count from a day on, conversions, panels, and all of it as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, selectinload

from app import guard
from app.errors import Conflict, Invalid, NotFound
from models.base import now
from models.codes import AnswerKind, SexForClinicalUse
from models.lab import LabPanel, LabPanelTest, LabTest, ReferenceRange, UnitConversion

OWN = "urn:wardbook:laboratory"
"""The system of codes that are not of LOINC's shape."""
LOINC = re.compile(r"\d{1,6}-\d")
NUMBERS = ("plausible_low", "plausible_high", "reporting_low", "reporting_high", "delta_amount", "delta_share")
LIMITS = ("low", "high", "critical_low", "critical_high")
WHOM = ("sex", "since_age", "since_unit", "until_age", "until_unit", "pregnant")
TEST = (
    *("code", "method", "name", "abbreviation", "kind", "specimen_type", "unit", "decimals"),
    *(*NUMBERS, "delta_days", "sensitive", "release_hours", "active"),
)
COLUMNS = (*TEST, *WHOM, *LIMITS, "valid_from", "valid_until", "source", "panel_code", "panel_name")
"""Of the CSV: a line is a test with one of its ranges, or none; a test with many has many lines."""
ROWS = 5_000
"""A file has no more lines than this."""


# ---- finding -----------------------------------------------------------------------------------------------------


def find(session: Session, text: str = "", *, retired: bool = False) -> Sequence[LabTest]:
    """Tests with a part of their name, abbreviation or code, by name."""
    asked = select(LabTest).options(selectinload(LabTest.ranges)).order_by(LabTest.name, LabTest.id)
    if not retired:
        asked = asked.where(LabTest.active)
    if text:
        asked = asked.where(
            or_(
                LabTest.name.icontains(text, autoescape=True),
                LabTest.abbreviation.icontains(text, autoescape=True),
                LabTest.code.startswith(text, autoescape=True),
            )
        )
    return session.scalars(asked).all()


def show(session: Session, test_id: int) -> LabTest:
    """A test with its ranges and conversions. Raises NotFound."""
    asked = select(LabTest).where(LabTest.id == test_id)
    asked = asked.options(selectinload(LabTest.ranges), selectinload(LabTest.conversions))
    found = session.scalars(asked.execution_options(populate_existing=True)).first()
    if found is None:
        raise guard.refuse("read", "LabTest", NotFound)
    return found


# ---- tests -------------------------------------------------------------------------------------------------------


def add_test(session: Session, **told: Any) -> LabTest:
    """Put a test into the catalogue. Raises Invalid, and Conflict where its code and method are there already."""
    test = LabTest(**_checked(told))
    same = select(LabTest).where(LabTest.code == test.code, LabTest.method == test.method)
    if session.scalars(same).first() is not None:
        raise Conflict("There is a test with this code and method already.")
    session.add(test)
    session.flush()
    return test


def change_test(session: Session, test_id: int, *, version: int | None = None, **told: Any) -> LabTest:
    """Set a test right; what it has ranges in keeps its unit. Raises Invalid, and Conflict for an older version."""
    test = show(session, test_id)
    if version is not None and version != test.version:
        raise Conflict
    checked = _checked({**{name: getattr(test, name) for name in TEST}, **told})
    if test.ranges and checked["unit"] != test.unit:
        raise Invalid("Its ranges are in the unit it has: retire it and add another.", field="unit")
    if checked["specimen_type"] != test.specimen_type:
        in_panel = session.scalars(select(LabPanelTest).where(LabPanelTest.test_id == test.id)).first()
        if in_panel is not None:
            raise Invalid("It is part of a panel: take it out of that first.", field="specimen_type")
    for name, value in checked.items():
        setattr(test, name, value)
    session.flush()
    return test


def retire_test(session: Session, test_id: int) -> LabTest:
    """Let nobody order it any more; what was measured stays."""
    return change_test(session, test_id, active=False)


def _real(value: Decimal | None, name: str) -> None:
    """Raises Invalid for what no instrument shows: infinite, no number, or beyond 12 digits on either side."""
    if value is not None and not (value.is_finite() and value.copy_abs() < 10**12 and value == round(value, 12)):
        raise Invalid("This is no number of a laboratory.", field=name)


def _checked(told: Mapping[str, Any]) -> dict[str, Any]:
    found = {"method": "", "kind": AnswerKind.NUMERIC, "unit": "", "active": True, **told}
    for name in ("code", "name"):
        found[name] = str(found.get(name) or "").strip()
        if not found[name]:
            raise Invalid("This is needed.", field=name)
    found["code_system"] = "http://loinc.org" if LOINC.fullmatch(found["code"]) else OWN
    if len(found["name"]) > 120:
        raise Invalid("This is longer than 120 letters.", field="name")
    if found["kind"] not in list(AnswerKind):
        raise Invalid("There is no such kind of answer.", field="kind")
    if found["kind"] == AnswerKind.NUMERIC and found.get("decimals") is None:
        found["decimals"] = 0
    if found.get("decimals") is not None and not 0 <= found["decimals"] <= 6:
        raise Invalid("Decimals are 0 to 6.", field="decimals")
    for name in NUMBERS:
        _real(found.get(name), name)
    for kind in ("plausible", "reporting"):
        low, high = found.get(f"{kind}_low"), found.get(f"{kind}_high")
        if low is not None and high is not None and low >= high:
            raise Invalid("The upper limit is not above the lower one.", field=f"{kind}_high")
    for name, most in (("delta_days", 3650), ("release_hours", 8760)):
        value = found.get(name)
        if value is not None and not (1 if name == "delta_days" else 0) <= value <= most:
            raise Invalid(f"This is at most {most}.", field=name)
    return found


# ---- ranges ------------------------------------------------------------------------------------------------------


def add_range(session: Session, test_id: int, **told: Any) -> ReferenceRange:
    """Give a test a range from a day on. Raises Invalid, and Conflict where the same people have one on that day."""
    test = show(session, test_id)
    checked = _checked_range(told)
    for other in test.ranges:
        if _whom(other) == _whom(checked) and _meet(other, checked["valid_from"], checked.get("valid_until")):
            raise Conflict("There is a range for the same people at that time: change that one.")
    row = ReferenceRange(test_id=test.id, **checked)
    session.add(row)
    session.flush()
    return row


def change_range(session: Session, range_id: int, *, since: date, **told: Any) -> ReferenceRange:
    """Other limits from a day on: the old range ends the day before, so that older results keep what they stood on.

    Raises Invalid where the day is not after the old one's first, and for one that ended before.
    """
    old = _range(session, range_id)
    if since <= old.valid_from:
        raise Invalid("Choose a day after the one it counts from.", field="valid_from")
    if old.valid_until is not None and old.valid_until < since:
        raise Invalid("This range has ended before that day.", field="valid_from")
    kept = {name: getattr(old, name) for name in (*WHOM, *LIMITS, "source", "valid_until")}
    checked = _checked_range({**kept, **told, "valid_from": since})
    old.valid_until = since - timedelta(days=1)
    session.flush()
    return add_range(session, old.test_id, **checked)


def end_range(session: Session, range_id: int, *, last_day: date) -> ReferenceRange:
    """Let a range count no longer than a day. Raises Invalid where that is before its first or after its last."""
    row = _range(session, range_id)
    if last_day < row.valid_from or (row.valid_until is not None and last_day > row.valid_until):
        raise Invalid("This day is outside the days it counts.", field="valid_until")
    row.valid_until = last_day
    session.flush()
    return row


def _range(session: Session, range_id: int) -> ReferenceRange:
    row = session.scalars(select(ReferenceRange).where(ReferenceRange.id == range_id).with_for_update()).first()
    if row is None:
        raise guard.refuse("read", "ReferenceRange", NotFound)
    return row


def _checked_range(told: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(told)
    if not isinstance(found.get("valid_from"), date):
        raise Invalid("Say from which day it counts.", field="valid_from")
    until = found.get("valid_until")
    if until is not None and until < found["valid_from"]:
        raise Invalid("It would end before it begins.", field="valid_until")
    if found.get("sex") not in (None, SexForClinicalUse.MALE, SexForClinicalUse.FEMALE):
        raise Invalid("Choose one of the sexes, or none for everybody.", field="sex")
    for edge in ("since", "until"):
        age, unit = found.get(f"{edge}_age"), found.get(f"{edge}_unit")
        if (age is None) != (unit is None) or (unit is not None and unit not in ("d", "wk", "mo", "a")):
            raise Invalid("An age is a number and d, wk, mo or a.", field=f"{edge}_age")
        if age is not None and age < (0 if edge == "since" else 1):
            raise Invalid("This is no age.", field=f"{edge}_age")
    for name in LIMITS:
        _real(found.get(name), name)
    limits = [found.get(name) for name in ("critical_low", "low", "high", "critical_high")]
    known = [value for value in limits if value is not None]
    if not known:
        raise Invalid("Say at least one limit.", field="low")
    if known != sorted(known):
        raise Invalid("The limits are not in order, from critically low to critically high.", field="low")
    critical = found.get("critical_low"), found.get("critical_high")
    if None not in critical and critical[0] == critical[1]:
        raise Invalid("The critical limits are the same.", field="critical_low")
    return found


def _whom(row: ReferenceRange | Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) if isinstance(row, Mapping) else getattr(row, name) for name in WHOM)


def _meet(row: ReferenceRange, since: date, until: date | None) -> bool:
    return (row.valid_until is None or row.valid_until >= since) and (until is None or row.valid_from <= until)


# ---- conversions and panels --------------------------------------------------------------------------------------


def add_conversion(session: Session, test_id: int, *, source: str, target: str, factor: Decimal) -> UnitConversion:
    """Say by what a value in one unit becomes one in another (UCUM). Raises Invalid and Conflict."""
    test = show(session, test_id)
    if not source or not target or source == target:
        raise Invalid("A conversion is between two units.", field="target")
    if not factor.is_finite() or factor <= 0:
        raise Invalid("The factor is a number above 0.", field="factor")
    if any({each.source, each.target} == {source, target} for each in test.conversions):
        raise Conflict("There is a conversion between these units already.")
    row = UnitConversion(test_id=test.id, source=source, target=target, factor=factor)
    session.add(row)
    session.flush()
    return row


def panels(session: Session) -> Sequence[LabPanel]:
    """Every panel with its tests, by name."""
    asked = select(LabPanel).options(selectinload(LabPanel.tests)).order_by(LabPanel.name, LabPanel.id)
    return session.scalars(asked.execution_options(populate_existing=True)).all()


def panel(session: Session, panel_id: int) -> LabPanel:
    """A panel with its tests. Raises NotFound."""
    asked = select(LabPanel).where(LabPanel.id == panel_id).options(selectinload(LabPanel.tests))
    found = session.scalars(asked.execution_options(populate_existing=True)).first()
    if found is None:
        raise guard.refuse("read", "LabPanel", NotFound)
    return found


def free_code(session: Session, code: str) -> None:
    """Raises Conflict where a panel has a code already."""
    if session.scalars(select(LabPanel).where(LabPanel.code == code)).first() is not None:
        raise Conflict("There is a panel with this code already.")


def set_panel(session: Session, *, code: str, name: str, test_ids: Iterable[int], active: bool = True) -> LabPanel:
    """Make a panel, or say anew what it is made of, in this order; all of one kind of specimen. Raises Invalid."""
    wanted = list(dict.fromkeys(test_ids))
    known = {test.id: test for test in session.scalars(select(LabTest).where(LabTest.id.in_(wanted)))}
    if not wanted or len(known) < len(wanted):
        raise Invalid("Choose the tests of the panel.", field="tests")
    if len({test.specimen_type for test in known.values()}) > 1:
        raise Invalid("The tests of a panel are done on one kind of specimen.", field="tests")
    if not code.strip() or not 1 <= len(name.strip()) <= 120:
        raise Invalid("A panel has a code, and a name of at most 120 letters.", field="name")
    panel = session.scalars(select(LabPanel).where(LabPanel.code == code)).first()
    guard.require("create" if panel is None else "update", "LabPanel")
    if panel is None:
        system = "http://loinc.org" if LOINC.fullmatch(code) else OWN
        panel = LabPanel(code=code, code_system=system, name=name.strip(), active=active)
        session.add(panel)
        session.flush()
    panel.name, panel.active = name.strip(), active
    there = {row.test_id: row for row in session.scalars(select(LabPanelTest).where(LabPanelTest.panel_id == panel.id))}
    for test_id, row in there.items():
        if test_id not in known:
            session.delete(row)
    for place, test_id in enumerate(wanted):
        if test_id in there:
            there[test_id].position = place
        else:
            session.add(LabPanelTest(panel_id=panel.id, test_id=test_id, position=place))
    session.flush()
    return panel


# ---- CSV ---------------------------------------------------------------------------------------------------------


@dataclass
class Brought:
    """What a file did, or would do."""

    added: int = 0
    changed: int = 0
    ranges: int = 0
    errors: list[tuple[int, str]] = field(default_factory=list)
    """The line of the file, the heading being the first, and what is wrong with it."""


def bring(session: Session, content: bytes, *, dry_run: bool = False) -> Brought:
    """Take a catalogue from CSV (UTF-8): tests go by code and method; all of it is taken, or nothing with an error.

    Raises Invalid for what is no such file.
    """
    for action in ("create", "update"):
        for resource in ("LabTest", "ReferenceRange"):
            guard.require(action, resource)
    told = Brought()
    lines = _lines(content)
    with session.begin_nested() as trial:
        panels: dict[str, tuple[str, list[int]]] = {}
        seen: dict[tuple[str, str], dict[str, Any]] = {}
        for number, cells in lines:
            try:
                with session.begin_nested():
                    _take(session, cells, told, seen, panels)
            except (Invalid, Conflict) as refusal:
                told.errors.append((number, f"{refusal.field}: {refusal}" if refusal.field else str(refusal)))
        for code, (name, members) in panels.items():
            kept = select(LabPanelTest).join(LabPanel, LabPanel.id == LabPanelTest.panel_id)
            kept = kept.where(LabPanel.code == code).order_by(LabPanelTest.position)
            before = [row.test_id for row in session.scalars(kept)]
            try:
                with session.begin_nested():
                    set_panel(session, code=code, name=name, test_ids=[*before, *members])
            except Invalid as refusal:
                told.errors.append((1, f"{name}: {refusal}"))
        if dry_run or told.errors:
            trial.rollback()
    return told


def _lines(content: bytes) -> list[tuple[int, dict[str, str]]]:
    try:
        text = content.decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        missing = {"code", "name"} - set(reader.fieldnames or ())
        unknown = set(reader.fieldnames or ()) - set(COLUMNS)
        if missing or unknown:
            raise Invalid(f"These columns are missing or unknown: {', '.join(sorted(missing | unknown))}.")
        found = [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Invalid("This is no CSV file in UTF-8.") from error
    if len(found) > ROWS:
        raise Invalid(f"A file has at most {ROWS} lines.")
    return found


def _take(
    session: Session,
    cells: Mapping[str, str],
    told: Brought,
    seen: dict[tuple[str, str], dict[str, Any]],
    panels: dict[str, tuple[str, list[int]]],
) -> None:
    fields = {name: _value(name, cells[name]) for name in TEST if cells.get(name)}
    fields |= {name: None for name in (*NUMBERS, "decimals") if name in cells and not cells[name]}
    key = fields.get("code", ""), fields.get("method", "")
    if key in seen and seen[key] != fields:
        raise Invalid("An earlier line says something else of the same test.", field="code")
    found = select(LabTest).where(LabTest.code == key[0], LabTest.method == key[1])
    test = session.scalars(found).first()
    added = changed = ranged = 0
    if test is None:
        test, added = add_test(session, **fields), 1
    elif any(getattr(test, name) != value for name, value in fields.items()):
        test, changed = change_test(session, test.id, **fields), 1
    limits = {
        name: _value(name, cells[name])
        for name in (*WHOM, *LIMITS, "valid_from", "valid_until", "source")
        if cells.get(name)
    }
    if limits:
        ranged = _take_range(session, test.id, limits)
    if code := cells.get("panel_code"):
        members = panels.setdefault(code, (cells.get("panel_name") or code, []))[1]
        members.append(test.id)
    seen[key] = fields
    told.added, told.changed, told.ranges = told.added + added, told.changed + changed, told.ranges + ranged


def _take_range(session: Session, test_id: int, limits: dict[str, Any]) -> int:
    checked = _checked_range(limits)
    told = {name: checked.get(name) for name in LIMITS} | {"source": checked.get("source", "")}
    for row in show(session, test_id).ranges:
        if _whom(row) != _whom(checked) or not _meet(row, checked["valid_from"], checked.get("valid_until")):
            continue
        if row.valid_from == checked["valid_from"]:
            if any(getattr(row, name) != value for name, value in told.items()):
                raise Invalid("This range is there with other limits: give the day it changes.", field="valid_from")
            if row.valid_until != checked.get("valid_until"):
                raise Invalid("This range is there with another last day.", field="valid_until")
            return 0
        change_range(session, row.id, since=checked["valid_from"], valid_until=checked.get("valid_until"), **told)
        return 1
    add_range(session, test_id, **checked)
    return 1


def _value(name: str, text: str) -> Any:
    """A cell as what its column holds. Raises Invalid."""
    text = text.removeprefix("'")
    try:
        if name in (*NUMBERS, *LIMITS):
            number = Decimal(text)
            if not number.is_finite():
                raise Invalid("This is no number.", field=name)
            return number
        if name in ("decimals", "delta_days", "release_hours", "since_age", "until_age"):
            return int(text)
        if name in ("valid_from", "valid_until"):
            return date.fromisoformat(text)
    except (InvalidOperation, ValueError) as error:
        raise Invalid("This is no number, or no day such as 2026-05-31.", field=name) from error
    if name in ("sensitive", "active", "pregnant"):
        if text.lower() not in ("yes", "no"):
            raise Invalid("Write yes or no.", field=name)
        return text.lower() == "yes"
    return text


def rows(session: Session) -> Iterable[list[Any]]:
    """The catalogue as `bring` takes it, the heading first, with every range there was."""
    yield list(COLUMNS)
    panels: dict[int, list[LabPanel]] = {}
    for panel in session.scalars(select(LabPanel).options(selectinload(LabPanel.tests)).order_by(LabPanel.id)):
        for test in panel.tests:
            panels.setdefault(test.id, []).append(panel)
    for test in find(session, retired=True):
        of, ranges = panels.get(test.id, []), sorted(test.ranges, key=lambda row: row.valid_from)
        for place in range(max(len(ranges), len(of), 1)):
            row = ranges[place] if place < len(ranges) else None
            within = of[place] if place < len(of) else None
            line = [_cell(getattr(test, name)) for name in TEST]
            line += [
                _cell(getattr(row, name)) if row else ""
                for name in (*WHOM, *LIMITS, "valid_from", "valid_until", "source")
            ]
            yield [*line, within.code if within else "", within.name if within else ""]


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else format(value, "f") if isinstance(value, Decimal) else value


def counts(row: ReferenceRange) -> bool:
    """Whether a range counts today."""
    today = now().date()
    return row.valid_from <= today and (row.valid_until is None or row.valid_until >= today)
