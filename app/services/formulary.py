"""The formulary: which medicines can be prescribed; searched, kept by hand, taken in from a file, given out as one."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import guard
from app.errors import Conflict, Invalid, NotFound
from app.services import dosage, drug_safety
from app.services.words import fold, line
from models.prescriptions import Medication

RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
OURS = "urn:wardbook:medication"
"""Our own codes, for what no other system has a code for."""
SYSTEMS = {"rxnorm": RXNORM, "ours": OURS}
COLUMNS = ("system", "code", "display", "dose_form", "unit", "ingredients", "active")
MOST_ROWS = 20_000
MOST_FOUND = 20

# ---- names ---------------------------------------------------------------------------------------------------------

UNITS = {
    "MG": "mg",
    "MCG": "ug",
    "UG": "ug",
    "NG": "ng",
    "G": "g",
    "UNT": "[iU]",
    "IU": "[iU]",
    "MEQ": "meq",
    "ML": "mL",
}
FORMS: tuple[tuple[str, str], ...] = (
    ("inhalation solution", "mL"),
    ("oral solution", "mL"),
    ("oral suspension", "mL"),
    ("injectable solution", "mL"),
    ("injectable suspension", "mL"),
    ("prefilled syringe", "mL"),
    ("auto-injector", "mL"),
    ("inhalant solution", "mL"),
    ("metered dose inhaler", "{puff}"),
    ("dry powder inhaler", "{puff}"),
    ("inhaler", "{puff}"),
    ("mucosal spray", "{spray}"),
    ("nasal spray", "{spray}"),
    ("spray", "{spray}"),
    ("tablet", "{tbl}"),
    ("capsule", "{cap}"),
    ("suppository", "{supp}"),
    ("transdermal", "{patch}"),
    ("patch", "{patch}"),
    ("sachet", "{sachet}"),
    ("drops", "{drop}"),
    ("cream", "g"),
    ("ointment", "g"),
    ("gel", "g"),
    ("implant", "{device}"),
    ("intrauterine system", "{device}"),
    ("vaginal ring", "{device}"),
    ("day pack", "{pack}"),
)
"""What a form of medicine is counted in."""
_PACK = re.compile(r"^(?:NDA\d+ |Abuse-Deterrent |[\d.]+ (?:ML|ACTUAT|HR) )+", re.IGNORECASE)
_BRAND = re.compile(r"\s*\[[^\]]*\]\s*$")
_STRENGTH = re.compile(
    r"^(?P<name>\S.*?)\s+(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>MCG|MG|NG|UG|UNT|IU|MEQ|G|%)"
    r"(?:\s*/\s*(?P<per>ML|ACTUAT|HR))?(?:\s+(?P<rest>.*))?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Named:
    """What a medicine's name says: its ingredients (Medication.ingredient), its form, and what it is counted in."""

    ingredient: list[dict[str, Any]]
    dose_form: str
    unit: str


def parse(display: str) -> Named:
    """A RxNorm name such as "Amoxicillin 250 MG / Clavulanate 125 MG Oral Tablet" taken apart.

    What it does not tell stays empty: a strength by the hour, or a pack's, is not one of a unit.
    """
    bare = _PACK.sub("", _BRAND.sub("", display)).strip()
    parts = [_STRENGTH.match(part.strip()) for part in re.split(r"\s+/\s+", bare)]
    if not all(parts):
        pack, counted = _form_in(bare)
        named = drug_safety.knowledge().substances_in(bare)
        names = [substance.name for substance in named] or [bare]
        return Named([{"name": name} for name in names], pack, counted)
    found = [part for part in parts if part]
    rest = (found[-1]["rest"] or "").strip()
    per = {(part["per"] or "").upper() for part in found}
    form, unit = _form_in(rest)
    if per == {"ML"} and unit != "g":
        unit = "mL"
    elif not unit and rest.casefold() == "injection":
        unit = "{vial}"
    ingredient = []
    for part in found:
        entry: dict[str, Any] = {"name": canonical(part["name"])}
        of = (part["per"] or "").upper()
        fits = not of or (of == "ML" and unit == "mL") or (of == "ACTUAT" and unit in ("{puff}", "{spray}"))
        if fits and unit and part["unit"] != "%" and not (unit == "g" and not of):
            entry["value"] = _json(Decimal(part["value"]))
            entry["unit"] = UNITS[part["unit"].upper()]
        ingredient.append(entry)
    return Named(ingredient, form or rest, unit)


def _json(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _form_in(text: str) -> tuple[str, str]:
    """The form a name ends with and what it is counted in; empty where it says none."""
    small = text.casefold()
    for word, unit in FORMS:
        if word in small:
            return _spoken_form(text, word), unit
    return "", ""


def _spoken_form(text: str, word: str) -> str:
    """The form as it is written, with what stands before it, such as Extended Release Oral Tablet."""
    found = re.search(
        rf"(?:(?:Extended Release|Delayed Release|Oral|Sublingual|Chewable|Topical|Vaginal|Drug)\s+)*(?:\d+\s+)?"
        rf"{re.escape(word)}\w*(?:\s+System)?",
        text,
        re.IGNORECASE,
    )
    return found[0].strip() if found else word


def canonical(name: str) -> str:
    """An ingredient as app/knowledge calls it, without its salt; as it was written where it is not known there."""
    found = drug_safety.knowledge().substances_in(name)
    return found[0].name if len(found) == 1 else line(name, field="ingredients").lower()


_INGREDIENT = re.compile(r"^(?P<name>\S.*?)(?:\s+(?P<value>\d+(?:[.,]\d+)?)\s*(?P<unit>[^\s\d]\S*))?$")


def ingredients_of(text: str) -> list[dict[str, Any]]:
    """Ingredients as one types them, "amoxicillin 250 mg; clavulanic acid 125 mg". Raises Invalid."""
    found = []
    for each in filter(None, (part.strip() for part in text.split(";"))):
        match = _INGREDIENT.match(each)
        if match is None:  # pragma: no cover (a name without spaces always matches)
            raise Invalid("Write ingredients like: amoxicillin 250 mg; clavulanic acid 125 mg", field="ingredients")
        entry: dict[str, Any] = {"name": canonical(line(match["name"], field="ingredients"))}
        if match["value"]:
            entry["value"] = _json(dosage.number(match["value"], field="ingredients", what="the strength"))
            entry["unit"] = dosage.unit_of(match["unit"], field="ingredients")
        found.append(entry)
    if len(found) > 20:
        raise Invalid("A medicine has 20 ingredients at most.", field="ingredients")
    return found


def ingredients_text(ingredient: Sequence[Mapping[str, Any]]) -> str:
    """The way back."""
    return "; ".join(
        f"{each['name']} {each['value']} {each['unit']}" if each.get("value") is not None else str(each["name"])
        for each in ingredient
    )


# ---- one medicine --------------------------------------------------------------------------------------------------


def find(session: Session, text: str, *, retired: bool = False, limit: int = MOST_FOUND) -> list[Medication]:
    """Medicines by words of their name or ingredients, those whose name begins with them first."""
    words = fold(line(text, field="q")).split()[:8]
    statement = select(Medication)
    if not retired:
        statement = statement.where(Medication.active)
    for word in words:
        statement = statement.where(Medication.search.contains(word, autoescape=True))
    begins = Medication.search.startswith(" ".join(words), autoescape=True)
    return list(session.scalars(statement.order_by(begins.desc(), Medication.display, Medication.id).limit(limit)))


def get(session: Session, medication_id: int) -> Medication:
    """A medicine by number. Raises NotFound."""
    found = session.get(Medication, medication_id)
    if found is None:
        raise NotFound
    return found


@dataclass(frozen=True)
class Told:
    """A medicine as a form or a file tells of it."""

    system: str
    code: str
    display: str
    dose_form: str = ""
    unit: str = ""
    ingredients: str = ""
    active: bool = True


def _values(told: Told) -> dict[str, Any]:
    """What is stored. Raises Invalid, naming the field."""
    system = SYSTEMS.get(told.system.strip().lower(), told.system.strip())
    if not re.match(r"^(?:https?://|urn:)\S+$", system) or len(system) > 200:
        raise Invalid("A code system is an address such as " + RXNORM + ".", field="system")
    code = line(told.code, field="code", longest=64)
    if not code or re.search(r"\s", code):
        raise Invalid("Please say the medicine's code.", field="code")
    display = line(told.display, field="display", longest=300)
    if not display:
        raise Invalid("Please say the medicine's name, strength and form.", field="display")
    named = parse(display)
    said = line(told.ingredients, field="ingredients", longest=2000)
    ingredient = ingredients_of(said) if said else named.ingredient
    return {
        "code_system": system,
        "code": code,
        "display": display,
        "dose_form": line(told.dose_form, field="dose_form", longest=120) or named.dose_form,
        "unit": dosage.unit_of(told.unit) if told.unit.strip() else named.unit,
        "ingredient": ingredient,
        "active": told.active,
    }


def add(session: Session, told: Told) -> Medication:
    """Put a medicine into the formulary. Raises Invalid, and Conflict where its code is there already."""
    medication = Medication(**_values(told))
    if _known(session, [(medication.code_system, medication.code)]):
        raise Conflict("There is a medicine of that code already.", field="code")
    session.add(medication)
    session.flush()
    return medication


def change(session: Session, medication: Medication, told: Told) -> Medication:
    """Say something else of a medicine. Raises Invalid and Conflict."""
    values = _values(told)
    key = (values["code_system"], values["code"])
    if key != (medication.code_system, medication.code) and _known(session, [key]):
        raise Conflict("There is a medicine of that code already.", field="code")
    _set(medication, values)
    session.flush()
    return medication


def retire(session: Session, medication: Medication, *, active: bool = False) -> Medication:
    """Let a medicine be prescribed no more, or again; what was prescribed stays so."""
    medication.active = active
    session.flush()
    return medication


def _set(medication: Medication, values: Mapping[str, Any]) -> bool:
    """Change what differs; whether anything did."""
    differs = {name: value for name, value in values.items() if getattr(medication, name) != value}
    for name, value in differs.items():
        setattr(medication, name, value)
    return bool(differs)


def _known(session: Session, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Medication]:
    """The medicines there are of some codes."""
    found: dict[tuple[str, str], Medication] = {}
    codes = sorted({code for _, code in keys})
    for start in range(0, len(codes), 1000):
        rows = session.scalars(select(Medication).where(Medication.code.in_(codes[start : start + 1000])))
        found |= {(row.code_system, row.code): row for row in rows}
    return found


# ---- files ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of a file and what would become of it: new, changed, same, repeated or wrong."""

    number: int
    what: str
    display: str
    detail: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What taking in a file would change."""

    rows: Sequence[Row]

    def count(self, what: str) -> int:
        return sum(1 for row in self.rows if row.what == what)

    @property
    def errors(self) -> list[Row]:
        return [row for row in self.rows if row.what == "wrong"]

    def __str__(self) -> str:
        told = ", ".join(
            f"{self.count(what)} {what}" for what in ("new", "changed", "same", "repeated", "wrong") if self.count(what)
        )
        return told or "nothing in it"


def plan(session: Session, content: bytes) -> Plan:
    """What a CSV file would change: our own columns, or system, code, display, n as terminology files have them.

    Raises Invalid where it is no such file at all; what is wrong with one line is said of that line.
    """
    guard.require("read", "Medication")
    lines = _read(content)
    told: list[tuple[int, dict[str, Any] | Invalid, str]] = []
    for number, cells in lines:
        try:
            told.append((number, _values(_told(cells)), cells.get("display", "")))
        except Invalid as refusal:
            told.append((number, refusal, cells.get("display", "")))
    keys = [(values["code_system"], values["code"]) for _, values, _ in told if not isinstance(values, Invalid)]
    known = _known(session, keys)
    first: dict[tuple[str, str], int] = {}
    rows = []
    for number, values, display in told:
        if isinstance(values, Invalid):
            rows.append(Row(number, "wrong", display, str(values)))
            continue
        key = (values["code_system"], values["code"])
        if key in first:
            rows.append(Row(number, "repeated", values["display"], f"This code is in line {first[key]} already."))
            continue
        first[key] = number
        before = known.get(key)
        if before is None:
            rows.append(Row(number, "new", values["display"], values=values))
            continue
        differs = [name for name, value in values.items() if getattr(before, name) != value]
        what = "changed" if differs else "same"
        rows.append(Row(number, what, values["display"], ", ".join(differs), values if differs else {}))
    return Plan(rows)


def take_in(session: Session, content: bytes) -> Plan:
    """Do what `plan` says, all of it or nothing. Raises Invalid where any line is wrong."""
    planned = plan(session, content)
    if planned.errors:
        first = planned.errors[0]
        raise Invalid(
            f"Nothing was taken in: {len(planned.errors)} of the lines are wrong, the first is line {first.number}: "
            f"{first.detail}",
            field="file",
        )
    meant = [row for row in planned.rows if row.values]
    known = _known(session, [(row.values["code_system"], row.values["code"]) for row in meant])
    for row in meant:
        before = known.get((row.values["code_system"], row.values["code"]))
        if before is None:
            session.add(Medication(**row.values))
        else:
            _set(before, row.values)
    session.flush()
    return planned


def _read(content: bytes) -> list[tuple[int, dict[str, str]]]:
    """The lines of a file by column. Raises Invalid."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid("This is no UTF-8 text: save the file as CSV (UTF-8).", field="file") from error
    if "\x00" in text:
        raise Invalid("This is no CSV file.", field="file")
    delimiter = ";" if text.split("\n", 1)[0].count(";") > text.split("\n", 1)[0].count(",") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = [(name or "").strip().lower() for name in reader.fieldnames or []]
    if missing := [name for name in ("system", "code", "display") if name not in names]:
        raise Invalid(f"The first line has to name the columns; missing: {', '.join(missing)}.", field="file")
    reader.fieldnames = names
    found = []
    try:
        for cells in reader:
            plain = {name: unguarded(value) for name, value in cells.items() if name and isinstance(value, str)}
            if any(value.strip() for value in plain.values()):
                found.append((reader.line_num, plain))
            if len(found) > MOST_ROWS:
                raise Invalid(f"A file holds {MOST_ROWS:,} medicines at most.", field="file")
    except csv.Error as error:
        raise Invalid("This is no CSV file.", field="file") from error
    return found


def _told(cells: Mapping[str, str]) -> Told:
    active = cells.get("active", "").strip().lower()
    if active not in ("", "yes", "no", "true", "false", "1", "0"):
        raise Invalid("Active is yes or no.", field="active")
    return Told(
        system=cells.get("system", ""),
        code=cells.get("code", ""),
        display=cells.get("display", ""),
        dose_form=cells.get("dose_form", ""),
        unit=cells.get("unit", ""),
        ingredients=cells.get("ingredients", ""),
        active=active not in ("no", "false", "0"),
    )


_RECKONS = "=+-@\t\r\uff1d\uff0b\uff0d\uff20"


def guarded(value: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if value[:1] in _RECKONS and value else value


def unguarded(value: str) -> str:
    """The way back, for a file of ours that comes home."""
    return value[1:] if value[:1] == "'" and value[1:2] in _RECKONS and value[1:2] else value


def export(session: Session) -> bytes:
    """The whole formulary as CSV (RFC 4180, with the mark by which spreadsheets know UTF-8), retired ones too."""
    text = io.StringIO(newline="")
    text.write("\ufeff")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for each in session.scalars(select(Medication).order_by(Medication.display, Medication.id)):
        cells = [each.code_system, each.code, each.display, each.dose_form, each.unit]
        cells += [ingredients_text(each.ingredient), "yes" if each.active else "no"]
        writer.writerow([guarded(cell) for cell in cells])
    return text.getvalue().encode()
