"""How a medicine is taken: a dose as structure (FHIR Dosage), and the sentence that is made from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from app.errors import Invalid
from app.services import drug_safety
from app.services.words import line
from models.prescriptions import Medication

UCUM = "http://unitsofmeasure.org"
TIMING = "http://terminology.hl7.org/CodeSystem/v3-GTSAbbreviation"
SNOMED = "http://snomed.info/sct"

LARGEST = Decimal(100_000)
LONGEST_COURSE = 366
"""Days."""

TIMES: dict[str, tuple[int, int, str]] = {
    "QD": (1, 1, "d"),
    "BID": (2, 1, "d"),
    "TID": (3, 1, "d"),
    "QID": (4, 1, "d"),
    "Q4H": (1, 4, "h"),
    "Q6H": (1, 6, "h"),
    "Q8H": (1, 8, "h"),
    "QOD": (1, 2, "d"),
    "AM": (1, 1, "d"),
    "PM": (1, 1, "d"),
    "BED": (1, 1, "d"),
    "WK": (1, 1, "wk"),
    "MO": (1, 1, "mo"),
}
"""v3-GTSAbbreviation: how often, in how many, of which unit of time."""
DAYS = {"h": Fraction(1, 24), "d": Fraction(1), "wk": Fraction(7), "mo": Fraction(30)}
ROUTES: dict[str, str] = {
    "oral": "26643006",
    "sublingual": "37839007",
    "inhaled": "447694001",
    "topical": "6064005",
    "rectal": "37161004",
    "vaginal": "16857009",
    "nasal": "46713006",
    "ocular": "54485002",
    "otic": "10547007",
    "transdermal": "45890007",
    "subcutaneous": "34206005",
    "intramuscular": "78421000",
    "intravenous": "47625008",
}
"""SNOMED CT, the routes we offer."""


@dataclass(frozen=True)
class Dosage:
    """How a medicine is taken. `timing` is a key of TIMES, or empty where it is taken as needed only."""

    value: Decimal
    unit: str
    """UCUM, such as {tbl}, mL or mg."""
    timing: str = ""
    route: str = "oral"
    as_needed: bool = False
    as_needed_for: str = ""
    """What for; it is then as needed, whatever else is said."""
    days: int | None = None
    start: date | None = None
    stop: date | None = None
    most: Decimal | None = None
    """In 24 hours, in `unit`."""


# ---- what is refused ----------------------------------------------------------------------------------------------

ATOMS = (
    "g|L|l|m|mol|eq|osm|U|kat|bar|Pa|J|cal|Cel|K|s|min|h|d|wk|mo|a|%|\\[iU\\]|\\[IU\\]|\\[drp\\]|\\[tsp_us\\]|\\[arb'U\\]"
    "|\\[CFU\\]|\\[pfu\\]|\\[mEq\\]"
)
_SIMPLE = rf"(?:(?:[YZEPTGMkhdcmunpfazy]|da)?(?:{ATOMS})(?:[+-]?\d+)?(?:\{{[!-z|~]*\}})?|\{{[!-z|~]+\}}|10\*-?\d+|\d+)"
_UNIT = re.compile(rf"^/?{_SIMPLE}(?:[./]{_SIMPLE})*$")
_MEANT = {
    "mcg": "ug",
    "µg": "ug",
    "cc": "mL",
    "ml": "mL",
    "tablet": "{tbl}",
    "tablets": "{tbl}",
    "tab": "{tbl}",
    "capsule": "{cap}",
    "capsules": "{cap}",
    "puff": "{puff}",
    "puffs": "{puff}",
    "IU": "[iU]",
    "units": "[iU]",
    "drops": "{drop}",
    "drop": "{drop}",
    "gr": "g",
}


def is_ucum(unit: str) -> bool:
    """Whether a text is a unit of UCUM (case-sensitive), as far as medicines need it."""
    return len(unit) <= 40 and _UNIT.match(unit) is not None


def unit_of(text: str, *, field: str = "unit") -> str:
    """A unit as it is stored. Raises Invalid for none, and for what is no unit of UCUM, naming the one meant."""
    said = text.strip()
    if not said:
        raise Invalid("A dose needs a unit, such as {tbl} for tablets, mL or mg.", field=field)
    if said == "ml":
        return "mL"
    if not is_ucum(said):
        meant = _MEANT.get(said) or _MEANT.get(said.lower())
        hint = f" Write {meant}." if meant else " Write {tbl} for tablets, mL, mg, ug or [iU]."
        raise Invalid(f"This unit is not known (UCUM).{hint}", field=field)
    return said


def number(text: str | int | float | Decimal | None, *, field: str, what: str = "the dose") -> Decimal:
    """A number above nothing and within reason. Raises Invalid."""
    if text is None or isinstance(text, bool) or not str(text).strip():
        raise Invalid(f"Please say {what} as a number.", field=field)
    said = str(text).strip()
    if isinstance(text, str) and re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3}|\.000)", said):
        raise Invalid(f"Please write {what} without a mark between the thousands.", field=field)
    said = said.replace(",", ".")
    try:
        found = Decimal(said)
    except InvalidOperation as error:
        raise Invalid(f"Please say {what} as a number.", field=field) from error
    if not found.is_finite():
        raise Invalid(f"Please say {what} as a number.", field=field)
    if found <= 0:
        raise Invalid(f"Please check {what}: it has to be more than nothing.", field=field)
    if found > LARGEST:
        raise Invalid(f"Please check {what}: that is far too much.", field=field)
    exponent = found.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -6:
        raise Invalid(f"Please check {what}: six digits after the point are the most.", field=field)
    return found


def sound(dose: Dosage, medication: Medication | None = None) -> Dosage:
    """The dosage as it is stored. Raises Invalid, naming the field, for what nobody could take."""
    value = number(dose.value, field="dose")
    unit = unit_of(dose.unit)
    if medication is not None and medication.unit and unit.startswith("{") and unit != medication.unit:
        raise Invalid(f"This medicine is counted in {medication.unit}.", field="unit")
    if dose.timing and dose.timing not in TIMES:
        raise Invalid("Please choose how often it is taken.", field="timing")
    reason = line(dose.as_needed_for, field="as_needed_for", longest=120)
    as_needed = dose.as_needed or bool(reason)
    if not dose.timing and not as_needed:
        raise Invalid("Please choose how often it is taken.", field="timing")
    if dose.route not in ROUTES:
        raise Invalid("Please choose how it is given.", field="route")
    if dose.days is not None and not 1 <= dose.days <= LONGEST_COURSE:
        raise Invalid(f"It can be taken for 1 to {LONGEST_COURSE} days.", field="days")
    if dose.stop is not None and dose.start is not None and dose.stop < dose.start:
        raise Invalid("It cannot stop before it starts.", field="stop")
    if dose.stop is not None and dose.start is not None and (dose.stop - dose.start).days >= LONGEST_COURSE:
        raise Invalid(f"It can be taken for 1 to {LONGEST_COURSE} days.", field="stop")
    if dose.stop is not None and dose.days is not None:
        raise Invalid("Say for how many days, or until when, and not both.", field="days")
    most = None if dose.most is None else number(dose.most, field="most", what="the most in 24 hours")
    if most is not None and most < value:
        raise Invalid("The most in 24 hours cannot be less than one dose.", field="most")
    return replace(dose, value=value, unit=unit, as_needed=as_needed, as_needed_for=reason, most=most)


# ---- structure -----------------------------------------------------------------------------------------------------


def often(timing: str) -> Fraction | None:
    """How many times a day a timing means on average; None for none."""
    if timing not in TIMES:
        return None
    frequency, period, unit = TIMES[timing]
    return Fraction(frequency, period) / DAYS[unit]


def per_day(timing: str) -> Decimal | None:
    """As `often`, as a number with a point."""
    times = often(timing)
    return None if times is None else _decimal(times)


def _decimal(value: Fraction) -> Decimal:
    return Decimal(value.numerator) / Decimal(value.denominator)


def length(dose: Dosage) -> int | None:
    """For how many days it is taken, where that is said."""
    if dose.days is not None:
        return dose.days
    if dose.start is not None and dose.stop is not None:
        return (dose.stop - dose.start).days + 1
    return None


def checked_dose(dose: Dosage) -> drug_safety.Dose:
    """What the checks of app/services/drug_safety.py want to know of it."""
    return drug_safety.Dose(dose.value, dose.unit, per_day(dose.timing), dose.most, dose.route)


def suggested(dose: Dosage, medication: Medication) -> tuple[Decimal, str] | None:
    """How much one fill is, with its unit: what is taken in the days that are said; None where that cannot be told."""
    days, times = length(dose), often(dose.timing)
    if days is None:
        return None
    if times is not None:
        taken = _decimal(Fraction(dose.value) * times * days)
        if dose.most is not None:
            taken = min(taken, dose.most * days)
    elif dose.most is not None:
        taken = dose.most * days
    else:
        return None
    taken = max(taken, dose.value)
    unit = medication.unit or dose.unit
    if dose.unit != unit:
        parts = drug_safety.parts_of(medication.ingredient)
        if len(parts) != 1 or parts[0].value is None:
            return None
        in_part = drug_safety.converted(taken, dose.unit, parts[0].unit)
        if in_part is None:
            return None
        taken = in_part / parts[0].value
    step = Decimal(1) if unit.startswith("{") else Decimal("0.01")
    return taken.quantize(step, rounding=ROUND_CEILING).normalize() + 0, unit


def _json(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _quantity(value: Decimal, unit: str) -> dict[str, Any]:
    return {"value": _json(value), "unit": unit.strip("{}[]"), "system": UCUM, "code": unit}


def to_fhir(dose: Dosage, language: str) -> dict[str, Any]:
    """A FHIR Dosage: the structure, and its sentence in a language."""
    told: dict[str, Any] = {"text": sentence(dose, language)}
    repeat: dict[str, Any] = {}
    if dose.timing:
        frequency, period, unit = TIMES[dose.timing]
        repeat = {"frequency": frequency, "period": period, "periodUnit": unit}
    if dose.days is not None:
        repeat["boundsDuration"] = {"value": dose.days, "unit": "d", "system": UCUM, "code": "d"}
    elif dose.start is not None or dose.stop is not None:
        bounds = {"start": dose.start, "end": dose.stop}
        repeat["boundsPeriod"] = {key: day.isoformat() for key, day in bounds.items() if day is not None}
    if repeat:
        told["timing"] = {"repeat": repeat}
        if dose.timing:
            told["timing"]["code"] = {"coding": [{"system": TIMING, "code": dose.timing}]}
    if dose.as_needed_for:
        told["asNeededCodeableConcept"] = {"text": dose.as_needed_for}
    elif dose.as_needed:
        told["asNeededBoolean"] = True
    told["route"] = {"coding": [{"system": SNOMED, "code": ROUTES[dose.route]}], "text": dose.route}
    told["doseAndRate"] = [{"doseQuantity": _quantity(dose.value, dose.unit)}]
    if dose.most is not None:
        day = {"value": 1, "unit": "d", "system": UCUM, "code": "d"}
        told["maxDosePerPeriod"] = {"numerator": _quantity(dose.most, dose.unit), "denominator": day}
    return told


def from_fhir(instruction: Sequence[Mapping[str, Any]] | None) -> Dosage | None:
    """The dosage a stored instruction holds; None where it is not one of ours."""
    if not instruction or len(instruction) != 1:
        return None
    told = instruction[0]
    try:
        quantity = told["doseAndRate"][0]["doseQuantity"]
        value, unit = Decimal(str(quantity["value"])), str(quantity["code"])
    except (KeyError, IndexError, TypeError, InvalidOperation):
        return None
    timing = told.get("timing") or {}
    coding = ((timing.get("code") or {}).get("coding") or [{}])[0]
    repeat = timing.get("repeat") or {}
    period = repeat.get("boundsPeriod") or {}
    most = ((told.get("maxDosePerPeriod") or {}).get("numerator") or {}).get("value")
    reason = str((told.get("asNeededCodeableConcept") or {}).get("text") or "")
    return Dosage(
        value=value,
        unit=unit,
        timing=str(coding.get("code") or ""),
        route=str((told.get("route") or {}).get("text") or "oral"),
        as_needed=bool(told.get("asNeededBoolean")) or bool(reason),
        as_needed_for=reason,
        days=(repeat.get("boundsDuration") or {}).get("value"),
        start=date.fromisoformat(period["start"]) if period.get("start") else None,
        stop=date.fromisoformat(period["end"]) if period.get("end") else None,
        most=Decimal(str(most)) if most is not None else None,
    )


# ---- the sentence --------------------------------------------------------------------------------------------------

Plural = Callable[[Decimal], int]
"""Which of a word's forms goes with a number."""


def _two(value: Decimal) -> int:
    return 0 if value == 1 else 1


def _french(value: Decimal) -> int:
    return 0 if value < 2 else 1


def _polish(value: Decimal) -> int:
    """1 tabletkę, 2 tabletki, 5 tabletek, 0,5 tabletki."""
    if value == 1:
        return 0
    if value != value.to_integral_value():
        return 1
    whole = int(value)
    return 1 if whole % 10 in (2, 3, 4) and whole % 100 not in (12, 13, 14) else 2


def _arabic(value: Decimal) -> int:
    """One, two, three to ten; above that the noun stands in the singular again, as with a fraction."""
    if value == 2:
        return 1
    if value == value.to_integral_value() and 3 <= int(value) % 100 <= 10:
        return 2
    return 0


@dataclass(frozen=True)
class Tongue:
    """The words a dosage is said with in one language; each word has as many forms as its plural asks for."""

    plural: Plural
    point: str
    verbs: Mapping[str, str]
    """By route; "" for every other."""
    units: Mapping[str, tuple[str, ...]]
    routes: Mapping[str, str]
    times: Mapping[str, str]
    as_needed: str
    as_needed_for: str
    days: tuple[str, ...]
    since: str
    until: str
    most: str
    comma: str = ", "


def _same(word: str, forms: int) -> tuple[str, ...]:
    return (word,) * forms


TONGUES: dict[str, Tongue] = {
    "en": Tongue(
        _two,
        ".",
        {"oral": "Take", "inhaled": "Inhale", "topical": "Apply", "transdermal": "Apply", "": "Use"},
        {
            "{tbl}": ("tablet", "tablets"),
            "{cap}": ("capsule", "capsules"),
            "{puff}": ("puff", "puffs"),
            "{drop}": ("drop", "drops"),
            "{patch}": ("patch", "patches"),
            "{supp}": ("suppository", "suppositories"),
            "{sachet}": ("sachet", "sachets"),
            "{spray}": ("spray", "sprays"),
            "{vial}": ("vial", "vials"),
            "{syringe}": ("syringe", "syringes"),
            "{application}": ("application", "applications"),
            "{pack}": ("pack", "packs"),
            "{dose}": ("dose", "doses"),
            "[iU]": ("unit", "units"),
            "ug": ("microgram", "micrograms"),
        },
        {
            "oral": "by mouth",
            "sublingual": "under the tongue",
            "inhaled": "by inhaler",
            "topical": "to the skin",
            "rectal": "into the rectum",
            "vaginal": "into the vagina",
            "nasal": "into the nose",
            "ocular": "into the eye",
            "otic": "into the ear",
            "transdermal": "to the skin",
            "subcutaneous": "under the skin",
            "intramuscular": "into a muscle",
            "intravenous": "into a vein",
        },
        {
            "QD": "once a day",
            "BID": "2 times a day",
            "TID": "3 times a day",
            "QID": "4 times a day",
            "Q4H": "every 4 hours",
            "Q6H": "every 6 hours",
            "Q8H": "every 8 hours",
            "QOD": "every other day",
            "AM": "every morning",
            "PM": "every afternoon",
            "BED": "at bedtime",
            "WK": "once a WEEK",
            "MO": "once a MONTH",
        },
        "when needed",
        "when needed for {what}",
        ("for {n} day", "for {n} days"),
        "from {day}",
        "until {day}",
        "at most {n} {unit} in 24 hours",
    ),
    "es": Tongue(
        _two,
        ",",
        {"oral": "Tome", "inhaled": "Inhale", "topical": "Aplique", "transdermal": "Aplique", "": "Use"},
        {
            "{tbl}": ("comprimido", "comprimidos"),
            "{cap}": ("cápsula", "cápsulas"),
            "{puff}": ("inhalación", "inhalaciones"),
            "{drop}": ("gota", "gotas"),
            "{patch}": ("parche", "parches"),
            "{supp}": ("supositorio", "supositorios"),
            "{sachet}": ("sobre", "sobres"),
            "{spray}": ("pulverización", "pulverizaciones"),
            "{vial}": ("vial", "viales"),
            "{syringe}": ("jeringa", "jeringas"),
            "{application}": ("aplicación", "aplicaciones"),
            "{pack}": ("envase", "envases"),
            "{dose}": ("dosis", "dosis"),
            "[iU]": ("unidad", "unidades"),
            "ug": ("microgramo", "microgramos"),
        },
        {
            "oral": "por vía oral",
            "sublingual": "debajo de la lengua",
            "inhaled": "por vía inhalatoria",
            "topical": "sobre la piel",
            "rectal": "por vía rectal",
            "vaginal": "por vía vaginal",
            "nasal": "en la nariz",
            "ocular": "en el ojo",
            "otic": "en el oído",
            "transdermal": "sobre la piel",
            "subcutaneous": "por vía subcutánea",
            "intramuscular": "por vía intramuscular",
            "intravenous": "por vía intravenosa",
        },
        {
            "QD": "1 vez al día",
            "BID": "2 veces al día",
            "TID": "3 veces al día",
            "QID": "4 veces al día",
            "Q4H": "cada 4 horas",
            "Q6H": "cada 6 horas",
            "Q8H": "cada 8 horas",
            "QOD": "en días alternos",
            "AM": "cada mañana",
            "PM": "cada tarde",
            "BED": "al acostarse",
            "WK": "1 vez por SEMANA",
            "MO": "1 vez al MES",
        },
        "si lo necesita",
        "si lo necesita para: {what}",
        ("durante {n} día", "durante {n} días"),
        "desde el {day}",
        "hasta el {day}",
        "como máximo {n} {unit} en 24 horas",
    ),
    "pl": Tongue(
        _polish,
        ",",
        {"oral": "Przyjmować", "": "Stosować"},
        {
            "{tbl}": ("tabletkę", "tabletki", "tabletek"),
            "{cap}": ("kapsułkę", "kapsułki", "kapsułek"),
            "{puff}": ("inhalację", "inhalacje", "inhalacji"),
            "{drop}": ("kroplę", "krople", "kropli"),
            "{patch}": ("plaster", "plastry", "plastrów"),
            "{supp}": ("czopek", "czopki", "czopków"),
            "{sachet}": ("saszetkę", "saszetki", "saszetek"),
            "{spray}": ("rozpylenie", "rozpylenia", "rozpyleń"),
            "{vial}": ("fiolkę", "fiolki", "fiolek"),
            "{syringe}": ("strzykawkę", "strzykawki", "strzykawek"),
            "{application}": ("aplikację", "aplikacje", "aplikacji"),
            "{pack}": ("opakowanie", "opakowania", "opakowań"),
            "{dose}": ("dawkę", "dawki", "dawek"),
            "[iU]": ("jednostkę", "jednostki", "jednostek"),
            "ug": ("mikrogram", "mikrogramy", "mikrogramów"),
        },
        {
            "oral": "doustnie",
            "sublingual": "pod język",
            "inhaled": "wziewnie",
            "topical": "na skórę",
            "rectal": "doodbytniczo",
            "vaginal": "dopochwowo",
            "nasal": "do nosa",
            "ocular": "do oka",
            "otic": "do ucha",
            "transdermal": "na skórę",
            "subcutaneous": "podskórnie",
            "intramuscular": "domięśniowo",
            "intravenous": "dożylnie",
        },
        {
            "QD": "1 raz dziennie",
            "BID": "2 razy dziennie",
            "TID": "3 razy dziennie",
            "QID": "4 razy dziennie",
            "Q4H": "co 4 godziny",
            "Q6H": "co 6 godzin",
            "Q8H": "co 8 godzin",
            "QOD": "co drugi dzień",
            "AM": "rano",
            "PM": "po południu",
            "BED": "przed snem",
            "WK": "1 raz w TYGODNIU",
            "MO": "1 raz w MIESIĄCU",
        },
        "w razie potrzeby",
        "w razie potrzeby: {what}",
        ("przez {n} dzień", "przez {n} dni", "przez {n} dni"),
        "od {day}",
        "do {day}",
        "nie więcej niż {n} {unit} w ciągu 24 godzin",
    ),
    "fr": Tongue(
        _french,
        ",",
        {"oral": "Prendre", "inhaled": "Inhaler", "topical": "Appliquer", "transdermal": "Appliquer", "": "Utiliser"},
        {
            "{tbl}": ("comprimé", "comprimés"),
            "{cap}": ("gélule", "gélules"),
            "{puff}": ("bouffée", "bouffées"),
            "{drop}": ("goutte", "gouttes"),
            "{patch}": ("patch", "patchs"),
            "{supp}": ("suppositoire", "suppositoires"),
            "{sachet}": ("sachet", "sachets"),
            "{spray}": ("pulvérisation", "pulvérisations"),
            "{vial}": ("flacon", "flacons"),
            "{syringe}": ("seringue", "seringues"),
            "{application}": ("application", "applications"),
            "{pack}": ("boîte", "boîtes"),
            "{dose}": ("dose", "doses"),
            "[iU]": ("unité", "unités"),
            "ug": ("microgramme", "microgrammes"),
        },
        {
            "oral": "par voie orale",
            "sublingual": "sous la langue",
            "inhaled": "par inhalation",
            "topical": "sur la peau",
            "rectal": "par voie rectale",
            "vaginal": "par voie vaginale",
            "nasal": "dans le nez",
            "ocular": "dans l'œil",
            "otic": "dans l'oreille",
            "transdermal": "sur la peau",
            "subcutaneous": "par voie sous-cutanée",
            "intramuscular": "par voie intramusculaire",
            "intravenous": "par voie intraveineuse",
        },
        {
            "QD": "1 fois par jour",
            "BID": "2 fois par jour",
            "TID": "3 fois par jour",
            "QID": "4 fois par jour",
            "Q4H": "toutes les 4 heures",
            "Q6H": "toutes les 6 heures",
            "Q8H": "toutes les 8 heures",
            "QOD": "un jour sur deux",
            "AM": "le matin",
            "PM": "l'après-midi",
            "BED": "au coucher",
            "WK": "1 fois par SEMAINE",
            "MO": "1 fois par MOIS",
        },
        "si besoin",
        "si besoin : {what}",
        ("pendant {n} jour", "pendant {n} jours"),
        "à partir du {day}",
        "jusqu'au {day}",
        "au maximum {n} {unit} par 24 heures",
    ),
    "de": Tongue(
        _two,
        ",",
        {"oral": "Einnehmen:", "inhaled": "Inhalieren:", "topical": "Auftragen:", "": "Anwenden:"},
        {
            "{tbl}": ("Tablette", "Tabletten"),
            "{cap}": ("Kapsel", "Kapseln"),
            "{puff}": ("Hub", "Hübe"),
            "{drop}": ("Tropfen", "Tropfen"),
            "{patch}": ("Pflaster", "Pflaster"),
            "{supp}": ("Zäpfchen", "Zäpfchen"),
            "{sachet}": ("Beutel", "Beutel"),
            "{spray}": ("Sprühstoß", "Sprühstöße"),
            "{vial}": ("Durchstechflasche", "Durchstechflaschen"),
            "{syringe}": ("Spritze", "Spritzen"),
            "{application}": ("Anwendung", "Anwendungen"),
            "{pack}": ("Packung", "Packungen"),
            "{dose}": ("Dosis", "Dosen"),
            "[iU]": ("Einheit", "Einheiten"),
            "ug": ("Mikrogramm", "Mikrogramm"),
        },
        {
            "oral": "durch den Mund",
            "sublingual": "unter die Zunge",
            "inhaled": "zum Inhalieren",
            "topical": "auf die Haut",
            "rectal": "in den Enddarm",
            "vaginal": "in die Scheide",
            "nasal": "in die Nase",
            "ocular": "ins Auge",
            "otic": "ins Ohr",
            "transdermal": "auf die Haut",
            "subcutaneous": "unter die Haut",
            "intramuscular": "in den Muskel",
            "intravenous": "in die Vene",
        },
        {
            "QD": "1-mal täglich",
            "BID": "2-mal täglich",
            "TID": "3-mal täglich",
            "QID": "4-mal täglich",
            "Q4H": "alle 4 Stunden",
            "Q6H": "alle 6 Stunden",
            "Q8H": "alle 8 Stunden",
            "QOD": "jeden zweiten Tag",
            "AM": "morgens",
            "PM": "nachmittags",
            "BED": "vor dem Schlafengehen",
            "WK": "1-mal pro WOCHE",
            "MO": "1-mal im MONAT",
        },
        "bei Bedarf",
        "bei Bedarf gegen: {what}",
        ("{n} Tag lang", "{n} Tage lang"),
        "ab {day}",
        "bis {day}",
        "höchstens {n} {unit} in 24 Stunden",
    ),
    "ar": Tongue(
        _arabic,
        ".",
        {"oral": "تناول", "inhaled": "استنشق", "": "استعمل"},
        {
            "{tbl}": ("قرص", "قرص", "أقراص"),
            "{cap}": ("كبسولة", "كبسولة", "كبسولات"),
            "{puff}": ("بخة", "بخة", "بخات"),
            "{drop}": ("قطرة", "قطرة", "قطرات"),
            "{patch}": ("لصقة", "لصقة", "لصقات"),
            "{supp}": ("تحميلة", "تحميلة", "تحاميل"),
            "{sachet}": ("كيس", "كيس", "أكياس"),
            "{spray}": ("بخة", "بخة", "بخات"),
            "{vial}": ("قارورة", "قارورة", "قوارير"),
            "{syringe}": ("حقنة", "حقنة", "حقن"),
            "{application}": ("دهنة", "دهنة", "دهنات"),
            "{pack}": ("علبة", "علبة", "علب"),
            "{dose}": ("جرعة", "جرعة", "جرعات"),
            "[iU]": ("وحدة", "وحدة", "وحدات"),
            "ug": ("ميكروغرام", "ميكروغرام", "ميكروغرام"),
            "mg": _same("ملغ", 3),
            "g": _same("غ", 3),
            "mL": _same("مل", 3),
        },
        {
            "oral": "عن طريق الفم",
            "sublingual": "تحت اللسان",
            "inhaled": "بالاستنشاق",
            "topical": "على الجلد",
            "rectal": "عن طريق الشرج",
            "vaginal": "عن طريق المهبل",
            "nasal": "في الأنف",
            "ocular": "في العين",
            "otic": "في الأذن",
            "transdermal": "على الجلد",
            "subcutaneous": "تحت الجلد",
            "intramuscular": "في العضل",
            "intravenous": "في الوريد",
        },
        {
            "QD": "مرة واحدة يوميًا",
            "BID": "مرتين يوميًا",
            "TID": "3 مرات يوميًا",
            "QID": "4 مرات يوميًا",
            "Q4H": "كل 4 ساعات",
            "Q6H": "كل 6 ساعات",
            "Q8H": "كل 8 ساعات",
            "QOD": "يومًا بعد يوم",
            "AM": "كل صباح",
            "PM": "بعد الظهر",
            "BED": "عند النوم",
            "WK": "مرة واحدة في الأسبوع",
            "MO": "مرة واحدة في الشهر",
        },
        "عند الحاجة",
        "عند الحاجة: {what}",
        ("لمدة {n} يوم", "لمدة يومين", "لمدة {n} أيام"),
        "من {day}",
        "حتى {day}",
        "بحد أقصى {n} {unit} خلال 24 ساعة",
        "، ",
    ),
}
"""The languages a dosage can be said in; whoever speaks another one is given English."""


def language_of(*wishes: str | None) -> str:
    """The first of the languages wished for (BCP 47) that a dosage can be said in, and English where there is none."""
    for wish in wishes:
        primary = (wish or "").split("-", maxsplit=1)[0].lower()
        if primary in TONGUES:
            return primary
    return "en"


def sentence(dose: Dosage, language: str) -> str:
    """The dosage as the patient reads it."""
    tongue = TONGUES[language_of(language)]
    words = [f"{_verb(tongue, dose.route)} {_amount(tongue, dose.value, dose.unit)} {tongue.routes[dose.route]}"]
    if dose.timing:
        words.append(tongue.times[dose.timing])
    if dose.as_needed_for:
        words.append(tongue.as_needed_for.format(what=dose.as_needed_for))
    elif dose.as_needed:
        words.append(tongue.as_needed)
    if dose.days is not None:
        words.append(tongue.days[tongue.plural(Decimal(dose.days))].format(n=dose.days))
    if dose.start is not None:
        words.append(tongue.since.format(day=dose.start.isoformat()))
    if dose.stop is not None:
        words.append(tongue.until.format(day=dose.stop.isoformat()))
    if dose.most is not None:
        said = _amount(tongue, dose.most, dose.unit).split(" ", 1)
        words.append(tongue.most.format(n=said[0], unit=said[1]))
    return tongue.comma.join(words) + "."


def counted(value: Decimal, unit: str, language: str) -> str:
    """An amount in words, such as 21 tablets."""
    return _amount(TONGUES[language_of(language)], value, unit)


def _verb(tongue: Tongue, route: str) -> str:
    return tongue.verbs.get(route) or tongue.verbs[""]


def _amount(tongue: Tongue, value: Decimal, unit: str) -> str:
    forms = tongue.units.get(unit)
    word = forms[tongue.plural(value)] if forms else unit.strip("{}[]")
    return f"{drug_safety.plain(value).replace('.', tongue.point)} {word}"
