"""What stands against a medicine: allergies, interactions, the same twice, doses, and what could not be checked."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from urllib.parse import urlparse

import pytest

from app.services.drug_safety import (
    Allergy,
    Dose,
    Issue,
    Medicine,
    Part,
    assess,
    converted,
    knowledge,
    rows,
)

AMOXICILLIN = Medicine("Amoxicillin 500 mg capsule", (Part("amoxicillin", Decimal(500), "mg"),), "{cap}")
CO_AMOXICLAV = Medicine(
    "Amoxicillin 250 MG / Clavulanate 125 MG Oral Tablet",
    (Part("amoxicillin", Decimal(250), "mg"), Part("clavulanic acid", Decimal(125), "mg")),
    "{tbl}",
)


def of(*names: str) -> Medicine:
    """A medicine of these ingredients, 100 mg of each in a tablet."""
    return Medicine(" / ".join(names), tuple(Part(name, Decimal(100), "mg") for name in names), "{tbl}")


def found(issues: list[Issue]) -> set[tuple[str, str]]:
    """Codes and severities of what was checked."""
    return {(issue.code.value, issue.severity.value) for issue in issues if issue.checked}


# ---- allergies ---------------------------------------------------------------------------------------------------

ALLERGIC: list[tuple[str, str, set[tuple[str, str]]]] = [
    # the substance itself
    ("amoxicillin", "amoxicillin", {("DALG", "high")}),
    ("Amoxicilina", "amoxicillin", {("DALG", "high")}),
    ("Acetaminophen", "paracetamol", {("DALG", "high")}),
    ("Allergy to aspirin", "aspirin", {("DALG", "high")}),
    ("Sulfamethoxazole / Trimethoprim", "trimethoprim", {("DALG", "high")}),
    # its class
    ("Penicillin", "amoxicillin", {("DALG", "high")}),
    ("Allergy to penicillin", "flucloxacillin", {("DALG", "high")}),
    ("Alergia a la penicilina", "ampicillin", {("DALG", "high")}),
    ("penicylina", "amoxicillin", {("DALG", "high")}),
    ("NSAID", "ibuprofen", {("DALG", "high")}),
    ("Beta-lactam", "cefalexin", {("DALG", "high")}),
    ("Sulfa drugs", "sulfamethoxazole", {("DALG", "high")}),
    # what cross-reacts
    ("Penicillin V", "amoxicillin", {("DALG", "high")}),
    ("amoxicillin", "cefalexin", {("DALG", "high")}),
    ("amoxicillin", "cefuroxime", {("DALG", "moderate")}),
    ("penicillin", "ceftriaxone", {("DALG", "moderate")}),
    ("penicillin", "meropenem", {("DALG", "moderate")}),
    ("aspirin", "naproxen", {("DALG", "high")}),
    ("Lisinopril", "enalapril", {("DALG", "high")}),
    ("carbamazepine", "oxcarbazepine", {("DALG", "high")}),
    ("ceftazidime", "aztreonam", {("DALG", "high")}),
    # of one class, with no rule of ours
    ("simvastatin", "atorvastatin", {("DALG", "moderate")}),
    # and nothing
    ("penicillin", "aztreonam", set()),
    ("penicillin", "azithromycin", set()),
    ("Sulfonamide", "furosemide", set()),
    ("ibuprofen", "paracetamol", set()),
    ("Allergy to mould", "amoxicillin", set()),
]


@pytest.mark.parametrize(("text", "medicine", "expected"), ALLERGIC)
def test_an_allergy_meets_substance_class_and_what_cross_reacts(
    text: str, medicine: str, expected: set[tuple[str, str]]
) -> None:
    issues = assess([of(medicine)], allergies=[Allergy(text, criticality="high")], state="listed")
    assert found(issues) == expected
    assert all(issue.reference.startswith("https://") for issue in issues if issue.checked)


def test_any_ingredient_of_a_medicine_counts() -> None:
    issues = assess([CO_AMOXICLAV], allergies=[Allergy("Clavulanate", criticality="high")], state="listed")
    assert found(issues) == {("DALG", "high")}
    assert "clavulanic acid" in issues[0].detail


@pytest.mark.parametrize(
    ("clinical", "verification", "fires"),
    [
        ("active", "confirmed", True),
        ("active", "unconfirmed", True),
        ("active", None, True),
        (None, "confirmed", True),
        (None, "unconfirmed", True),
        ("active", "refuted", False),
        (None, "entered-in-error", False),
        ("resolved", "confirmed", False),
        ("inactive", "confirmed", False),
        ("resolved", "refuted", False),
    ],
)
def test_only_what_still_stands_fires(clinical: str | None, verification: str | None, fires: bool) -> None:
    allergy = Allergy("Penicillin", clinical, verification, criticality="high")
    assert found(assess([AMOXICILLIN], allergies=[allergy], state="listed")) == ({("DALG", "high")} if fires else set())
    unknown = replace(allergy, text="Purple berries")
    told = [issue for issue in assess([AMOXICILLIN], allergies=[unknown], state="listed") if not issue.checked]
    assert bool(told) is fires, "what does not stand is not missed either"


@pytest.mark.parametrize(
    ("criticality", "severe", "severity"),
    [
        ("high", False, "high"),
        ("high", True, "high"),
        ("low", True, "high"),
        (None, True, "high"),
        ("low", False, "moderate"),
        ("unable-to-assess", False, "moderate"),
        (None, False, "moderate"),
    ],
)
def test_danger_to_come_or_a_severe_past_reaction_makes_it_serious(
    criticality: str | None, severe: bool, severity: str
) -> None:
    allergy = Allergy("Penicillin", criticality=criticality, severe_reaction=severe)
    assert found(assess([AMOXICILLIN], allergies=[allergy], state="listed")) == {("DALG", severity)}


@pytest.mark.parametrize(("kind", "code"), [("allergy", "DALG"), ("intolerance", "DINT"), (None, "DALG")])
def test_allergy_and_intolerance_are_two_things(kind: str | None, code: str) -> None:
    issues = assess([AMOXICILLIN], allergies=[Allergy("Penicillin", type=kind)], state="listed")
    assert found(issues) == {(code, "moderate")}


@pytest.mark.parametrize(
    ("state", "allergies", "severities"),
    [
        ("unasked", [], ["moderate"]),
        ("none", [], []),
        ("listed", [Allergy("Purple berries")], ["moderate"]),
        ("listed", [Allergy("House dust mite allergy", category=("environment",))], ["low"]),
        ("listed", [Allergy("Allergy to peanuts", category=("food",))], ["low"]),
        ("listed", [Allergy("")], ["moderate"]),
        ("listed", [Allergy("No known drug allergies")], []),
        ("listed", [Allergy("Loratadine")], []),
    ],
)
def test_none_known_not_asked_and_listed_are_three_things(
    state: str, allergies: list[Allergy], severities: list[str]
) -> None:
    issues = assess([AMOXICILLIN], allergies=allergies, state=state)
    assert [issue.severity.value for issue in issues] == severities
    assert all(issue.detail.startswith("NOT CHECKED") and not issue.blocks for issue in issues)


def test_what_is_unknown_is_said_by_name() -> None:
    issues = assess([Medicine("Jolivette 28 Day Pack", (Part("Jolivette"),))], state="none")
    assert [issue.checked for issue in issues] == [False]
    assert issues[0].detail.startswith("NOT CHECKED: of Jolivette")
    issues = assess([AMOXICILLIN], taken=[Medicine("Simvistatin 10 MG", (Part("simvistatin"),), against="order 1")])
    assert ["Simvistatin 10 MG" in issue.detail for issue in issues if not issue.checked] == [True]
    half = assess([Medicine("Both", (Part("amoxicillin"), Part("unobtainium")))], allergies=[Allergy("penicillin")])
    assert {issue.checked for issue in half} == {True, False}, "what is known of a half-known medicine is checked"


# ---- other medicines -----------------------------------------------------------------------------------------------

TOGETHER: list[tuple[str, str, set[tuple[str, str]]]] = [
    ("warfarin", "ibuprofen", {("DRG", "high")}),
    ("ibuprofen", "warfarin", {("DRG", "high")}),
    ("warfarin", "aspirin", {("DRG", "high")}),
    ("warfarin", "fluconazole", {("DRG", "high")}),
    ("warfarin", "azithromycin", {("DRG", "moderate")}),
    ("simvastatin", "clarithromycin", {("DRG", "high")}),
    ("atorvastatin", "clarithromycin", {("DRG", "moderate")}),
    ("rosuvastatin", "clarithromycin", set()),
    ("simvastatin", "azithromycin", set()),
    ("sildenafil", "nitroglycerin", {("DRG", "high")}),
    ("methotrexate", "trimethoprim", {("DRG", "high")}),
    ("azathioprine", "allopurinol", {("DRG", "high")}),
    ("morphine", "lorazepam", {("DRG", "high")}),
    ("sertraline", "phenelzine", {("DRG", "high")}),
    ("sertraline", "linezolid", {("DRG", "high")}),
    ("sertraline", "tramadol", {("DRG", "moderate")}),
    ("lithium", "ibuprofen", {("DRG", "high")}),
    ("bisoprolol", "verapamil", {("DRG", "high")}),
    ("lisinopril", "spironolactone", {("DRG", "moderate")}),
    ("clopidogrel", "omeprazole", {("DRG", "moderate")}),
    ("clopidogrel", "pantoprazole", set()),
    ("levothyroxine", "ferrous sulfate", {("DRG", "moderate")}),
    ("paracetamol", "ibuprofen", set()),
    ("metformin", "enalapril", set()),
    # the same once more
    ("ibuprofen", "ibuprofen", {("DUPTHPY", "moderate")}),
    ("ibuprofen", "naproxen", {("DUPTHPY", "moderate")}),
    ("sertraline", "fluoxetine", {("DUPTHPY", "moderate"), ("DRG", "moderate")}),
    ("omeprazole", "pantoprazole", {("DUPTHPY", "moderate")}),
    ("insulin human", "insulin glargine", set()),
]


@pytest.mark.parametrize(("wanted", "taken", "expected"), TOGETHER)
def test_a_medicine_meets_what_is_taken_already(wanted: str, taken: str, expected: set[tuple[str, str]]) -> None:
    issues = assess([of(wanted)], taken=[replace(of(taken), against="order 7")])
    assert found(issues) == expected
    assert all(issue.reference.startswith("https://") for issue in issues)


@pytest.mark.parametrize(("wanted", "taken", "expected"), TOGETHER)
def test_the_medicines_of_one_paper_meet_each_other(wanted: str, taken: str, expected: set[tuple[str, str]]) -> None:
    issues = assess([of(wanted), of(taken)])
    assert found(issues) == expected
    assert {issue.line for issue in issues} <= {1}, "said once, of the second"


def test_the_gravest_comes_first_and_each_thing_is_said_once() -> None:
    taken = [replace(of("aspirin"), against="order 1"), replace(of("paracetamol"), against="order 2")]
    issues = assess([of("warfarin"), of("paracetamol")], taken=taken, state="unasked")
    assert [issue.severity.value for issue in issues] == ["high", "moderate", "moderate"]
    assert len({issue.key for issue in issues}) == len(issues)


def test_a_key_stays_what_it_is_and_tells_one_thing_from_another() -> None:
    allergy = Allergy("Penicillin", criticality="high", against="allergy 12")
    first = assess([AMOXICILLIN], allergies=[allergy], state="listed")
    again = assess([AMOXICILLIN, of("paracetamol")], allergies=[allergy], state="listed")
    assert [issue.key for issue in first] == ["0-DALG-allergy-12"] == [issue.key for issue in again]
    later = assess([of("paracetamol"), AMOXICILLIN], allergies=[allergy], state="listed")
    assert [issue.key for issue in later] == ["1-DALG-allergy-12"]


# ---- doses ---------------------------------------------------------------------------------------------------------


def dosed(name: str, strength: str, dose: Dose, unit: str = "{tbl}") -> Medicine:
    return Medicine(name, (Part(name, Decimal(strength), "mg"),), unit, dose)


def tablets(number: str, per_day: str | None, most: str | None = None, unit: str = "{tbl}") -> Dose:
    return Dose(
        Decimal(number), unit, Decimal(per_day) if per_day else None, Decimal(most) if most is not None else None
    )


DOSES: list[tuple[str, Medicine, set[tuple[str, str]]]] = [
    ("the most there is", dosed("paracetamol", "1000", tablets("1", "4")), set()),
    ("too much at once", dosed("paracetamol", "1000", tablets("1.5", "2")), {("DOSEH", "moderate")}),
    ("too much a day", dosed("paracetamol", "1000", tablets("1", "6")), {("DOSEH", "moderate")}),
    ("twice as much", dosed("paracetamol", "1000", tablets("2", "4")), {("DOSEH", "high")}),
    ("held by the most a day", dosed("paracetamol", "1000", tablets("1", "6", "4")), set()),
    ("as needed with a most", dosed("paracetamol", "1000", tablets("1", None, "5")), {("DOSEH", "moderate")}),
    ("as needed without", dosed("paracetamol", "1000", tablets("1", None)), set()),
    ("too little", dosed("paracetamol", "100", tablets("1", "3")), {("DOSEL", "moderate")}),
    ("in milligrams", dosed("paracetamol", "500", tablets("1500", "2", unit="mg")), {("DOSEH", "moderate")}),
    ("in grams", dosed("paracetamol", "500", tablets("1", "4", unit="g")), set()),
    ("ten times", dosed("metformin", "850", tablets("10", "2")), {("DOSEH", "high")}),
    ("methotrexate once a week", dosed("methotrexate", "2.5", tablets("6", "0.142857142857")), set()),
    ("methotrexate every day", dosed("methotrexate", "2.5", tablets("6", "1")), {("DOSEH", "high")}),
    ("another route", dosed("ibuprofen", "400", Dose(Decimal(9), "{tbl}", Decimal(3), None, "topical")), set()),
    ("a unit nobody can turn into mg", dosed("paracetamol", "500", tablets("90", "4", unit="mL")), set()),
    ("no range known", dosed("amoxicillin", "500", tablets("40", "4")), set()),
]


@pytest.mark.parametrize(("what", "medicine", "expected"), DOSES, ids=[row[0] for row in DOSES])
def test_a_dose_is_compared_with_what_adults_are_given(
    what: str, medicine: Medicine, expected: set[tuple[str, str]]
) -> None:
    assert found(assess([medicine])) == expected, what


def test_a_child_is_not_an_adult() -> None:
    issues = assess([dosed("paracetamol", "1000", tablets("1", "4"))], adult=False)
    assert [(issue.checked, issue.severity.value) for issue in issues] == [(False, "moderate")]
    assert "those of adults" in issues[0].detail


def test_units_of_mass_are_turned_into_each_other_and_nothing_else_is() -> None:
    assert converted(Decimal(75), "ug", "mg") == Decimal("0.075")
    assert converted(Decimal(2), "g", "mg") == 2000
    assert converted(Decimal(2), "mL", "mg") is None


# ---- the knowledge -------------------------------------------------------------------------------------------------

FILES = ("substances.csv", "classes.csv", "cross_reactivity.csv", "interactions.csv", "dose_ranges.csv")
OPEN = {"synonyms", "classes", "effects", "min_single"}
"""Columns that may be empty."""


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_whole_with_a_public_source_and_the_day_it_was_reviewed(name: str) -> None:
    found = rows(name)
    assert found
    for row in found:
        assert all(value for column, value in row.items() if column not in OPEN), row
        assert None not in {*row, *row.values()}, row
        source = urlparse(row["source"])
        assert source.scheme == "https", row
        assert "." in source.netloc, row
        assert date(2024, 1, 1) <= date.fromisoformat(row["reviewed"]), row


def test_rules_speak_of_what_there_is_and_each_pair_is_there_once() -> None:
    known = knowledge()
    names = set(known.substances) | known.classes
    effects = {effect for each in known.substances.values() for effect in each.effects}
    for rules, groups in ((known.cross, names), (known.interactions, names | effects)):
        assert {side for rule in rules for side in (rule.a, rule.b)} <= groups
        pairs = [(rule.a, rule.b) for rule in rules]
        assert len(pairs) == len(set(pairs))
    both = [frozenset((rule.a, rule.b)) for rule in known.interactions]
    assert len(both) == len(set(both)), "an interaction goes both ways and is written once"
    assert {row["name"] for row in rows("classes.csv")} <= known.classes
    assert {name for name, _ in known.ranges} <= set(known.substances)
    assert all(limits.single <= limits.total and limits.unit == "mg" for limits in known.ranges.values())


def test_no_word_names_a_substance_by_accident() -> None:
    known = knowledge()
    assert known.named("Allergy to nut") == frozenset()
    assert known.named("Latex allergy") == frozenset()
    assert known.named("ibuprofenate of nothing") == frozenset()
    assert known.named("PENICILLIN G") == {"benzylpenicillin"}
    assert known.named("Pénicilline") == {"penicillins"}
