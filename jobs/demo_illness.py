"""What the demo's people may have: illnesses, what is given for them, and how they show in what is measured.

The wording is ours, codes are ICD-10's (WHO), LOINC's and CVX's, units UCUM's, and the ranges this laboratory's own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

INTERNIST, CARDIOLOGIST, NEPHROLOGIST = "Internist", "Cardiologist", "Nephrologist"
PAEDIATRICIAN, FAMILY, EMERGENCY = "Paediatrician", "Family doctor", "Emergency physician"
SURGEON, ORTHOPAEDIC = "Surgeon", "Orthopaedic surgeon"
DOCTORS: Final = (INTERNIST, CARDIOLOGIST, NEPHROLOGIST, PAEDIATRICIAN, FAMILY, EMERGENCY, SURGEON, ORTHOPAEDIC)
"""Who treats; a doctor is called this on screen."""


@dataclass(frozen=True)
class Medicine:
    """A medicine by its generic name, and how it is taken; `frequency` times in `days`, 0 for as needed."""

    name: str
    dose: str
    frequency: int = 1
    days: int = 1


METFORMIN = Medicine("Metformin 850 mg tablet", "1 tablet with breakfast and 1 with dinner", 2)
ENALAPRIL = Medicine("Enalapril 10 mg tablet", "1 tablet in the morning")
AMLODIPINE = Medicine("Amlodipine 5 mg tablet", "1 tablet in the morning")
ATORVASTATIN = Medicine("Atorvastatin 20 mg tablet", "1 tablet in the evening")
SALBUTAMOL = Medicine("Salbutamol 100 micrograms inhaler", "2 puffs when short of breath", 0)
TIOTROPIUM = Medicine("Tiotropium 18 micrograms inhaler", "1 inhalation in the morning")
LEVOTHYROXINE = Medicine("Levothyroxine 75 micrograms tablet", "1 tablet half an hour before breakfast")
OMEPRAZOLE = Medicine("Omeprazole 20 mg capsule", "1 capsule before breakfast")
PARACETAMOL = Medicine("Paracetamol 650 mg tablet", "1 tablet up to three times a day when in pain", 0)
IBUPROFEN = Medicine("Ibuprofen 400 mg tablet", "1 tablet three times a day with food for 5 days", 3)
AMOXICILLIN = Medicine("Amoxicillin 500 mg capsule", "1 capsule every 8 hours for 7 days", 3)
CLARITHROMYCIN = Medicine("Clarithromycin 500 mg tablet", "1 tablet every 12 hours for 7 days", 2)
NITROFURANTOIN = Medicine("Nitrofurantoin 100 mg capsule", "1 capsule twice a day for 5 days", 2)
SERTRALINE = Medicine("Sertraline 50 mg tablet", "1 tablet in the morning")
APIXABAN = Medicine("Apixaban 5 mg tablet", "1 tablet morning and evening", 2)
BISOPROLOL = Medicine("Bisoprolol 2.5 mg tablet", "1 tablet in the morning")
FUROSEMIDE = Medicine("Furosemide 40 mg tablet", "1 tablet in the morning")
FERROUS = Medicine("Ferrous sulfate 325 mg tablet", "1 tablet a day on an empty stomach")
SUMATRIPTAN = Medicine("Sumatriptan 50 mg tablet", "1 tablet at the first sign of an attack", 0)
HYDROCORTISONE = Medicine("Hydrocortisone 1 % cream", "A thin layer twice a day for a week", 2)
SEVELAMER = Medicine("Sevelamer 800 mg tablet", "2 tablets with each meal", 3)
EPOETIN = Medicine("Epoetin alfa 4,000 units injection", "1 injection at the end of dialysis", 3, 7)

HB, GLUCOSE, HBA1C, CREATININE = "718-7", "2345-7", "4548-4", "2160-0"
POTASSIUM, SODIUM, LEUKOCYTES, PLATELETS, CHOLESTEROL = "2823-3", "2951-2", "6690-2", "777-3", "2093-3"


@dataclass(frozen=True)
class Illness:
    """A condition: whom it befalls, what is given for it, and by how much it moves what is measured."""

    code: str
    name: str
    ages: tuple[int, int]
    weight: int
    treated_by: str
    medicines: tuple[Medicine, ...] = ()
    moves: dict[str, float] = field(default_factory=dict)
    """Laboratory codes, and `systolic`, `heart`, `oxygen`, `temperature`, `weight`."""
    eases: float = 0.0
    """What part of the move treatment takes away over the years a chart covers."""
    sex: str = ""
    ward: bool = False
    """Whether it may bring somebody into a bed."""
    done: str = ""
    """A procedure that goes with it."""


DIABETES = Illness(
    *("E11.9", "Type 2 diabetes", (38, 99), 19, INTERNIST, (METFORMIN,)),
    *({GLUCOSE: 68.0, HBA1C: 2.5, "weight": 9.0}, 0.45),
)
HYPERTENSION = Illness(
    "I10", "High blood pressure", (35, 99), 40, FAMILY, (ENALAPRIL, AMLODIPINE), {"systolic": 26}, 0.6
)
LIPIDS = Illness("E78.0", "High cholesterol", (35, 90), 20, FAMILY, (ATORVASTATIN,), {CHOLESTEROL: 68}, 0.6)
KIDNEY = Illness(
    *("N18.3", "Chronic kidney disease, stage 3", (55, 99), 6, NEPHROLOGIST, (ENALAPRIL,)),
    {CREATININE: 0.9, HB: -1.3, POTASSIUM: 0.5},
)
KIDNEY_FAILURE = Illness(
    *("N18.5", "Chronic kidney disease, stage 5", (40, 90), 0, NEPHROLOGIST, (SEVELAMER, EPOETIN, FUROSEMIDE)),
    {CREATININE: 6.4, HB: -3.4, POTASSIUM: 1.0, "systolic": 18},
)
CHRONIC: Final = (
    HYPERTENSION,
    DIABETES,
    LIPIDS,
    KIDNEY,
    Illness("J45.9", "Asthma", (4, 60), 9, FAMILY, (SALBUTAMOL,), {"oxygen": -1}, 0.5),
    Illness(
        *("J44.9", "Chronic obstructive lung disease", (50, 95), 7, INTERNIST, (TIOTROPIUM, SALBUTAMOL)),
        {"oxygen": -4.5, "heart": 6},
        ward=True,
        done="Lung function test",
    ),
    Illness("I48.9", "Atrial fibrillation", (60, 99), 6, CARDIOLOGIST, (APIXABAN, BISOPROLOL), {"heart": 16}, 0.5),
    Illness(
        *("I25.9", "Coronary heart disease", (50, 99), 6, CARDIOLOGIST, (BISOPROLOL, ATORVASTATIN)),
        *({"systolic": 8.0, CHOLESTEROL: 25.0}, 0.5),
        ward=True,
        done="Stress electrocardiogram",
    ),
    Illness(
        *("I50.9", "Heart failure", (62, 99), 5, CARDIOLOGIST, (FUROSEMIDE, BISOPROLOL)),
        *({"heart": 10, "oxygen": -2.5, "weight": 4, SODIUM: -4}, 0.5),
        ward=True,
        done="Echocardiogram",
    ),
    Illness(
        "D50.9",
        "Iron deficiency anaemia",
        (14, 70),
        8,
        INTERNIST,
        (FERROUS,),
        {HB: -3.2, PLATELETS: 60},
        0.85,
        "female",
    ),
    Illness("E03.9", "Underactive thyroid", (25, 90), 8, INTERNIST, (LEVOTHYROXINE,), {"heart": -7, "weight": 4}, 0.6),
    Illness("F41.9", "Anxiety disorder", (16, 75), 8, FAMILY, (SERTRALINE,), {"heart": 6}, 0.5),
    Illness("F32.9", "Depressive episode", (18, 85), 7, FAMILY, (SERTRALINE,)),
    Illness("G43.9", "Migraine", (14, 60), 7, FAMILY, (SUMATRIPTAN,)),
    Illness("K21.9", "Acid reflux", (25, 85), 8, FAMILY, (OMEPRAZOLE,)),
    Illness("M17.9", "Osteoarthritis of the knee", (50, 95), 9, ORTHOPAEDIC, (PARACETAMOL,), done="X-ray of the knee"),
    Illness("L20.9", "Atopic eczema", (0, 25), 7, FAMILY, (HYDROCORTISONE,)),
)
FEVER = {"temperature": 1.8, "heart": 18, LEUKOCYTES: 5.5}
PNEUMONIA = Illness(
    *("J18.9", "Pneumonia", (30, 99), 7, EMERGENCY, (AMOXICILLIN,), {**FEVER, "oxygen": -5}),
    ward=True,
    done="X-ray of the chest",
)
ACUTE: Final = (
    Illness("J06.9", "Cold with sore throat", (0, 99), 22, FAMILY, (PARACETAMOL,), {"temperature": 0.9, "heart": 8}),
    Illness("M54.5", "Low back pain", (22, 90), 16, FAMILY, (IBUPROFEN,)),
    Illness(
        "N39.0", "Urinary tract infection", (16, 99), 11, FAMILY, (NITROFURANTOIN,), {LEUKOCYTES: 3.2}, sex="female"
    ),
    Illness("A09", "Stomach flu", (0, 99), 10, EMERGENCY, (), {"temperature": 0.7, "heart": 10, POTASSIUM: -0.5}),
    Illness("H66.9", "Middle ear infection", (0, 9), 25, PAEDIATRICIAN, (AMOXICILLIN,), FEVER),
    PNEUMONIA,
    Illness(
        *("K35.8", "Appendicitis", (7, 45), 4, SURGEON, (PARACETAMOL,), FEVER),
        ward=True,
        done="Keyhole removal of the appendix",
    ),
    Illness(*("S52.5", "Broken wrist", (5, 90), 7, ORTHOPAEDIC, (PARACETAMOL,)), done="Plaster cast of the forearm"),
    Illness("S61.9", "Cut of the hand", (3, 80), 7, EMERGENCY, (), done="Stitches of the hand"),
    Illness("Z00.0", "General check-up", (16, 99), 16, FAMILY),
    Illness("Z00.1", "Well-child visit", (0, 15), 30, PAEDIATRICIAN),
)
CHECK_UPS: Final = ("Z00.0", "Z00.1")


@dataclass(frozen=True)
class Measure:
    """What the laboratory measures: where adults usually lie, and the range the laboratory states (women, men)."""

    code: str
    name: str
    unit: str
    digits: int
    usual: tuple[float, float]
    spread: float
    lows: tuple[float, float] | None
    highs: tuple[float, float] | None
    least: float = 0.1


LABORATORY: Final = {
    measure.code: measure
    for measure in (
        Measure(HB, "Haemoglobin", "g/dL", 1, (13.5, 14.9), 0.8, (12.0, 13.0), (16.0, 17.0), 5.5),
        Measure(LEUKOCYTES, "White blood cells", "10*3/uL", 1, (6.7, 6.9), 1.3, (4.0, 4.0), (11.0, 11.0), 1.5),
        Measure(PLATELETS, "Platelets", "10*3/uL", 0, (262, 240), 40, (150, 150), (400, 400), 40),
        Measure(GLUCOSE, "Glucose", "mg/dL", 0, (88, 90), 7, (70, 70), (105, 105), 45),
        Measure(HBA1C, "Glycated haemoglobin (HbA1c)", "%", 1, (5.3, 5.3), 0.25, None, (6.0, 6.0), 4.2),
        Measure(CREATININE, "Creatinine", "mg/dL", 2, (0.74, 0.94), 0.11, (0.50, 0.60), (1.10, 1.30), 0.35),
        Measure(POTASSIUM, "Potassium", "mmol/L", 1, (4.2, 4.2), 0.28, (3.5, 3.5), (5.1, 5.1), 2.7),
        Measure(SODIUM, "Sodium", "mmol/L", 0, (140, 140), 1.8, (135, 135), (145, 145), 122),
        Measure(CHOLESTEROL, "Cholesterol", "mg/dL", 0, (184, 181), 22, None, (200, 200), 95),
    )
}
BLOOD_COUNT = (HB, LEUKOCYTES, PLATELETS)
CHEMISTRY = (GLUCOSE, CREATININE, POTASSIUM, SODIUM)
ADULT = 18
"""From this age on the ranges above are stated."""

VACCINES: Final = (
    # CVX, name, years of age from and to, months in which it is given
    ("140", "Influenza vaccine, seasonal", 60, 99, (10, 11)),
    ("213", "COVID-19 vaccine", 60, 99, (10, 11, 12)),
    ("33", "Pneumococcal vaccine, 23 types", 65, 99, tuple(range(1, 13))),
    ("115", "Tetanus, diphtheria and whooping cough booster", 16, 75, tuple(range(1, 13))),
    ("08", "Hepatitis B vaccine, child", 0, 2, tuple(range(1, 13))),
    ("03", "Measles, mumps and rubella vaccine", 1, 5, tuple(range(1, 13))),
    ("21", "Chickenpox vaccine", 1, 5, tuple(range(1, 13))),
    ("130", "Diphtheria, tetanus, whooping cough and polio vaccine", 3, 7, tuple(range(1, 13))),
    ("165", "HPV vaccine, 9 types", 11, 15, tuple(range(1, 13))),
)
ALLERGIES: Final = (
    # what, category, reactions, whether it can be dangerous
    ("Penicillin", "medication", ("Hives", "Swelling of the face"), True),
    ("Ibuprofen and similar painkillers", "medication", ("Wheezing",), True),
    ("Iodinated contrast medium", "medication", ("Itching", "Flushing"), True),
    ("Sulfonamides", "medication", ("Rash",), False),
    ("Grass pollen", "environment", ("Sneezing", "Watery eyes"), False),
    ("Olive tree pollen", "environment", ("Sneezing", "Blocked nose"), False),
    ("House dust mite", "environment", ("Cough at night",), False),
    ("Latex", "environment", ("Rash of the hands",), False),
    ("Peanut", "food", ("Anaphylaxis",), True),
    ("Shellfish", "food", ("Hives", "Vomiting"), True),
    ("Egg", "food", ("Hives",), False),
    ("Cow's milk (lactose)", "food", ("Bloating",), False),
)


def befallen(
    draw: random.Random, illnesses: Sequence[Illness], sex: str, age: float, count: int
) -> tuple[Illness, ...]:
    """Up to `count` different illnesses somebody of this sex and age may have, the commoner the likelier."""
    open_to = [i for i in illnesses if i.weight and i.ages[0] <= age <= i.ages[1] and i.sex in ("", sex)]
    found: list[Illness] = []
    while open_to and len(found) < count:
        illness = draw.choices(open_to, [i.weight for i in open_to])[0]
        open_to.remove(illness)
        found.append(illness)
    return tuple(found)
