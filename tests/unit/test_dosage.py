"""How a medicine is taken: what is refused, what is stored, and the sentence in the patient's language."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import pytest

from app.errors import Invalid
from app.services import dosage
from app.services.dosage import (
    Dosage,
    from_fhir,
    is_ucum,
    number,
    per_day,
    sentence,
    sound,
    suggested,
    to_fhir,
    unit_of,
)
from models.prescriptions import Medication

ONE = Dosage(Decimal(1), "{tbl}", "TID", days=7)


def tablets(strength: int = 500) -> Medication:
    ingredient = [{"name": "amoxicillin", "value": strength, "unit": "mg"}]
    return Medication(code_system="urn:x", code="1", display="X", unit="{tbl}", ingredient=ingredient, active=True)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("no unit", {"unit": ""}, "unit"),
    ("an unknown unit", {"unit": "spoonfuls"}, "unit"),
    ("micrograms as they are misread", {"unit": "mcg"}, "unit"),
    ("nothing", {"value": Decimal(0)}, "dose"),
    ("less than nothing", {"value": Decimal(-1)}, "dose"),
    ("no number", {"value": Decimal("NaN")}, "dose"),
    ("without end", {"value": Decimal("Infinity")}, "dose"),
    ("far too much", {"value": Decimal(10) ** 9}, "dose"),
    ("too many digits", {"value": Decimal("0.12345678")}, "dose"),
    ("an unknown timing", {"timing": "QQ"}, "timing"),
    ("no timing", {"timing": ""}, "timing"),
    ("an unknown route", {"route": "psychic"}, "route"),
    ("no days", {"days": 0}, "days"),
    ("more than a year", {"days": 367}, "days"),
    ("a stop before the start", {"days": None, "start": date(2026, 5, 2), "stop": date(2026, 5, 1)}, "stop"),
    ("days and a last day", {"stop": date(2026, 5, 1)}, "days"),
    ("less a day than at once", {"most": Decimal("0.5")}, "most"),
    ("a most of nothing", {"most": Decimal(0)}, "most"),
    ("a control letter", {"as_needed_for": "pain\x07"}, "as_needed_for"),
]


@pytest.mark.parametrize(("what", "change", "field"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_nobody_could_take_is_refused_by_name(what: str, change: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        sound(replace(ONE, **change))
    assert refusal.value.field == field, what


def test_a_medicine_is_counted_in_its_own_unit() -> None:
    assert sound(ONE, tablets()).unit == "{tbl}"
    with pytest.raises(Invalid) as refusal:
        sound(replace(ONE, unit="{cap}"), tablets())
    assert refusal.value.field == "unit"
    assert sound(replace(ONE, value=Decimal(500), unit="mg"), tablets()).unit == "mg"


@pytest.mark.parametrize("text", [None, "", " ", "one", "1/2", "NaN", "inf", "0", "-3", "1e9", "1,5,5", True])
def test_a_number_is_one(text: Any) -> None:
    with pytest.raises(Invalid):
        number(text, field="dose")


def test_a_comma_is_a_point() -> None:
    assert number("0,5", field="dose") == Decimal("0.5")
    assert unit_of("ml") == "mL"


@pytest.mark.parametrize("unit", ["{tbl}", "mg", "ug", "mL", "[iU]", "g", "mg/mL", "mmol", "mg/h", "ug/min", "%", "U"])
def test_units_of_ucum(unit: str) -> None:
    assert is_ucum(unit)


@pytest.mark.parametrize(
    "unit", ["tablets", "mcg", "IU", "cc", "MG", "mg per day", "{tbl", "<b>", "m g", "mg;", "x" * 60]
)
def test_what_is_no_unit_of_ucum(unit: str) -> None:
    assert not is_ucum(unit)


@pytest.mark.parametrize(
    ("timing", "times"),
    [
        ("QD", 1),
        ("BID", 2),
        ("TID", 3),
        ("QID", 4),
        ("Q4H", 6),
        ("Q6H", 4),
        ("Q8H", 3),
        ("AM", 1),
        ("PM", 1),
        ("BED", 1),
    ],
)
def test_how_often_a_day(timing: str, times: int) -> None:
    assert per_day(timing) == times
    assert per_day("QOD") == Decimal("0.5")
    assert (per_day("WK") or 0) * 7 == 1
    assert per_day("") is None


STORED = [
    ONE,
    Dosage(Decimal("0.5"), "mL", "Q8H", route="sublingual", most=Decimal("1.5")),
    Dosage(Decimal(2), "{puff}", "", route="inhaled", as_needed=True, most=Decimal(8)),
    Dosage(Decimal(1), "{tbl}", "QID", as_needed=True, as_needed_for="headache"),
    Dosage(Decimal(20), "mg", "WK", start=date(2026, 1, 5), stop=date(2026, 3, 2)),
]


@pytest.mark.parametrize("dose", STORED)
def test_structure_and_sentence_are_both_stored_and_come_back(dose: Dosage) -> None:
    told = to_fhir(sound(dose), "en")
    assert from_fhir([json.loads(json.dumps(told))]) == sound(dose)
    assert told["text"].endswith(".")
    assert told["doseAndRate"][0]["doseQuantity"]["system"] == "http://unitsofmeasure.org"
    assert ("asNeededBoolean" in told) + ("asNeededCodeableConcept" in told) <= 1, "one or the other"
    if dose.timing:
        assert told["timing"]["code"]["coding"][0]["code"] == dose.timing


@pytest.mark.parametrize("instruction", [None, [], [{}], [{"text": "One in the morning"}], [{"doseAndRate": []}]])
def test_what_is_not_ours_is_not_guessed_at(instruction: Any) -> None:
    assert from_fhir(instruction) is None


def test_needed_for_something_is_as_needed() -> None:
    assert sound(replace(ONE, timing="", days=None, as_needed_for="pain")).as_needed


SENTENCES = {
    "en": "Take 1 tablet by mouth, 3 times a day, for 7 days.",
    "es": "Tome 1 comprimido por vía oral, 3 veces al día, durante 7 días.",
    "pl": "Przyjmować 1 tabletkę doustnie, 3 razy dziennie, przez 7 dni.",
    "fr": "Prendre 1 comprimé par voie orale, 3 fois par jour, pendant 7 jours.",
    "de": "Einnehmen: 1 Tablette durch den Mund, 3-mal täglich, 7 Tage lang.",
    "ar": "تناول 1 قرص عن طريق الفم، 3 مرات يوميًا، لمدة 7 أيام.",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_the_sentence_in_the_patients_language(language: str) -> None:
    assert sentence(ONE, language) == SENTENCES[language]


def test_every_language_has_every_word() -> None:
    english = dosage.TONGUES["en"]
    for language, tongue in dosage.TONGUES.items():
        assert set(tongue.routes) == set(dosage.ROUTES) == set(english.routes), language
        assert set(tongue.times) == set(dosage.TIMES), language
        assert set(english.units) <= set(tongue.units), language
        for value in (Decimal("0.5"), Decimal(1), Decimal(2), Decimal(5), Decimal(11), Decimal(22)):
            form = tongue.plural(value)
            assert all(form < len(words) for words in (*tongue.units.values(), tongue.days)), (language, value)
        for timing in dosage.TIMES:
            whole = Dosage(Decimal(2), "{cap}", timing, most=Decimal(9), as_needed_for="x", start=date(2026, 1, 1))
            assert "{" not in sentence(whole, language)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("1", "1 tabletkę"),
        ("2", "2 tabletki"),
        ("5", "5 tabletek"),
        ("12", "12 tabletek"),
        ("22", "22 tabletki"),
        ("0.5", "0,5 tabletki"),
    ],
)
def test_polish_counts_in_three_ways(value: str, word: str) -> None:
    assert word in sentence(replace(ONE, value=Decimal(value)), "pl")


@pytest.mark.parametrize(
    ("wishes", "language"),
    [
        (("pl", "en"), "pl"),
        (("es-MX",), "es"),
        (("vi", "fr-CA"), "fr"),
        (("xx",), "en"),
        ((), "en"),
        ((None, ""), "en"),
    ],
)
def test_whoever_speaks_another_language_is_given_english(wishes: tuple[str | None, ...], language: str) -> None:
    assert dosage.language_of(*wishes) == language


@pytest.mark.parametrize(
    ("dose", "quantity"),
    [
        (ONE, ("21", "{tbl}")),
        (replace(ONE, value=Decimal("0.5")), ("11", "{tbl}")),
        (replace(ONE, value=Decimal(1000), unit="mg"), ("42", "{tbl}")),
        (replace(ONE, value=Decimal(1), unit="g"), ("42", "{tbl}")),
        (replace(ONE, timing="", as_needed=True, most=Decimal(4)), ("28", "{tbl}")),
        (replace(ONE, timing="WK", days=28), ("4", "{tbl}")),
        (replace(ONE, days=None, start=date(2026, 1, 1), stop=date(2026, 1, 10)), ("30", "{tbl}")),
        (replace(ONE, days=None), None),
        (replace(ONE, timing="", as_needed=True), None),
        (replace(ONE, unit="mL"), None),
    ],
)
def test_how_much_is_handed_out_follows_from_dose_and_days(dose: Dosage, quantity: tuple[str, str] | None) -> None:
    meant = suggested(dose, tablets())
    assert meant == ((Decimal(quantity[0]), quantity[1]) if quantity else None)
