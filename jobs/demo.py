"""The demo hospital: three branches in two time zones, their staff, and patients with believable charts.

Everything follows from `seed` and `moment`, and every patient has dice of their own, so that no chart depends on how
many others there are.  Nothing here is anybody's: names are Faker's or ours, the tables below are in our own words,
and mail addresses lie in domains that belong to nobody (RFC 2606).
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from itertools import pairwise
from typing import Any, Final
from zoneinfo import ZoneInfo

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tqdm import tqdm

from app import actor, guard
from app.services import accounts, clinical, organization, patients
from app.services.patients import Demographics
from app.services.words import fold
from models.base import now
from models.clinical import (
    AllergyIntolerance,
    Condition,
    DocumentReference,
    Encounter,
    Immunization,
    Observation,
    Procedure,
)
from models.codes import (
    AdministrativeGender,
    AllergyClinicalStatus,
    AllergyCriticality,
    AllergyType,
    AllergyVerificationStatus,
    ConditionClinicalStatus,
    ConditionVerificationStatus,
    DiagnosticReportStatus,
    DocumentReferenceStatus,
    EncounterStatus,
    EventStatus,
    MedicationRequestStatus,
    ObservationStatus,
    SexForClinicalUse,
)
from models.lab import DiagnosticReport
from models.organization import Branch, Practitioner
from models.patients import Patient
from models.prescriptions import MedicationRequest

PASSWORD: Final = "wardbook-demo"  # noqa: S105  (everybody is told it; production refuses to start with it)
LOCK: Final = 0x57_42_44_45
"""The advisory lock that keeps two plantings apart."""
BATCH: Final = 25
"""Patients whose charts are written together."""
YEARS: Final = 3
"""How far the charts reach back."""

LOINC: Final = "http://loinc.org"
ICD_10: Final = "http://hl7.org/fhir/sid/icd-10"
CVX: Final = "http://hl7.org/fhir/sid/cvx"
UCUM: Final = "http://unitsofmeasure.org"

Entry = (
    Condition
    | AllergyIntolerance
    | Observation
    | MedicationRequest
    | Immunization
    | Procedure
    | DiagnosticReport
    | DocumentReference
)

# ---- the hospital ------------------------------------------------------------------------------------------------

CHAIN: Final = "Costa Sur Hospitals"


@dataclass(frozen=True)
class Site:
    """A branch, where its patients live, and how many of a hundred bear names of which country (Faker's locales)."""

    code: str
    name: str
    time_zone: str
    languages: tuple[str, ...]
    city: str
    postal_codes: tuple[str, ...]
    area: str
    """What landlines begin with."""
    share: int
    names: dict[str, int]


SITES: Final = (
    Site(
        *("MAD", "Costa Sur Madrid", "Europe/Madrid", ("es", "en")),
        *("Madrid", ("28004", "28007", "28010", "28015", "28028"), "91", 45),
        {"es_ES": 81, "ro_RO": 8, "en_GB": 4, "it_IT": 4, "pl_PL": 3},
    ),
    Site(
        *("AGP", "Costa Sur Málaga", "Europe/Madrid", ("es", "en", "de")),
        *("Málaga", ("29001", "29006", "29010", "29016"), "952", 31),
        {"es_ES": 70, "en_GB": 15, "de_DE": 9, "it_IT": 3, "pl_PL": 3},
    ),
    Site(
        *("LPA", "Costa Sur Las Palmas", "Atlantic/Canary", ("es", "en", "de")),
        *("Las Palmas de Gran Canaria", ("35003", "35007", "35010", "35016"), "928", 24),
        {"es_ES": 74, "de_DE": 11, "en_GB": 9, "it_IT": 6},
    ),
)
ROOMS: Final = (
    ("Consulting room 1", "Consulting room", 1),
    ("Consulting room 2", "Consulting room", 1),
    ("Consulting room 3", "Consulting room", 1),
    ("Emergency bay", "Emergency", 6),
    ("Laboratory", "Laboratory", 4),
    ("Theatre", "Theatre", 1),
    ("Ward A", "Ward", 12),
)
DIALYSIS_UNIT: Final = ("Dialysis unit", "Treatment room", 8)

INTERNIST, CARDIOLOGIST, NEPHROLOGIST = "Internist", "Cardiologist", "Nephrologist"
PAEDIATRICIAN, FAMILY, EMERGENCY = "Paediatrician", "Family doctor", "Emergency physician"
SURGEON, ORTHOPAEDIC = "Surgeon", "Orthopaedic surgeon"
DOCTORS: Final = (INTERNIST, CARDIOLOGIST, NEPHROLOGIST, PAEDIATRICIAN, FAMILY, EMERGENCY, SURGEON, ORTHOPAEDIC)


@dataclass(frozen=True)
class Employee:
    """A member of staff; `account` is the user name of those who can sign in."""

    given: str
    family: str
    gender: str
    qualification: str
    home: str
    further: tuple[str, ...] = ()
    account: str = ""

    @property
    def prefix(self) -> str:
        """What doctors are addressed by."""
        return "Dr." if self.qualification in DOCTORS else ""


STAFF: Final = (
    Employee("Marta", "Ferrer", "female", "Administrator", "MAD", ("AGP", "LPA"), "admin"),
    Employee("Lucía", "Navarro", "female", "Receptionist", "MAD", (), "reception"),
    Employee("Carmen", "Ortega", "female", "Nurse", "MAD", (), "nurse"),
    Employee("Elena", "Ruiz", "female", INTERNIST, "MAD", ("AGP",), "doctor"),
    Employee("Javier", "Molina", "male", "Laboratory technician", "MAD", (), "lab"),
    Employee("Pilar", "Santos", "female", "Pharmacist", "MAD", (), "pharmacist"),
    Employee("Andrés", "Gil", "male", "Billing clerk", "MAD", ("AGP", "LPA"), "billing"),
    Employee("Teresa", "Campos", "female", "Privacy officer", "MAD", ("AGP", "LPA"), "privacy"),
    Employee("Tomás", "Herrera", "male", CARDIOLOGIST, "MAD", ("AGP",)),
    Employee("Ana", "Beltrán", "female", PAEDIATRICIAN, "MAD"),
    Employee("Radu", "Ionescu", "male", EMERGENCY, "MAD"),
    Employee("Inés", "Cano", "female", SURGEON, "MAD", ("AGP",)),
    Employee("Piotr", "Zieliński", "male", "Nurse", "MAD"),
    Employee("Miguel", "Vargas", "male", FAMILY, "AGP"),
    Employee("Sofía", "Peralta", "female", ORTHOPAEDIC, "AGP", ("MAD",)),
    Employee("Paul", "Whitaker", "male", EMERGENCY, "AGP"),
    Employee("Rocío", "Luque", "female", "Nurse", "AGP"),
    Employee("Alba", "Merino", "female", "Receptionist", "AGP"),
    Employee("Diego", "Rivas", "male", "Laboratory technician", "AGP", ("LPA",)),
    Employee("Yaiza", "Santana", "female", NEPHROLOGIST, "LPA", ("MAD",)),
    Employee("Jonay", "Quintero", "male", FAMILY, "LPA"),
    Employee("Katrin", "Vogel", "female", PAEDIATRICIAN, "LPA", ("AGP",)),
    Employee("Idaira", "Medina", "female", "Nurse", "LPA"),
    Employee("Nauzet", "Falcón", "male", "Receptionist", "LPA"),
    Employee("Candelaria", "Betancor", "female", "Pharmacist", "LPA"),
)

# ---- what people have --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Medicine:
    """A medicine by its generic name, and how it is taken; `frequency` times in `days`, 0 for as needed."""

    name: str
    dose: str
    frequency: int = 1
    days: int = 1


METFORMIN = Medicine("Metformin 850 mg tablet", "1 tablet with breakfast and 1 with dinner", 2)
GLARGINE = Medicine("Insulin glargine 100 units/mL pen", "14 units under the skin at bedtime")
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
    *("E11.9", "Type 2 diabetes", (38, 99), 15, INTERNIST, (METFORMIN,)),
    *({GLUCOSE: 68, HBA1C: 2.5, "weight": 9}, 0.45),
)
HYPERTENSION = Illness("I10", "High blood pressure", (35, 99), 30, FAMILY, (ENALAPRIL,), {"systolic": 26}, 0.6)
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
        *({"systolic": 8, CHOLESTEROL: 25}, 0.5),
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

# ---- who the patients are ----------------------------------------------------------------------------------------

AGES: Final = {(0, 14): 13, (15, 29): 12, (30, 44): 17, (45, 64): 27, (65, 79): 21, (80, 97): 10}
STREETS: Final = (
    *("Calle Mayor", "Calle del Sol", "Calle de la Luna", "Calle Real", "Calle Nueva", "Calle de los Olivos"),
    *("Calle del Carmen", "Calle San Juan", "Calle Santa Ana", "Calle de la Fuente", "Calle Huertas"),
    *("Avenida de la Constitución", "Avenida de Andalucía", "Avenida del Mar", "Paseo del Prado", "Paseo Marítimo"),
    *("Plaza de la Iglesia", "Plaza de España", "Camino Viejo", "Travesía del Pozo", "Ronda de Levante"),
)
CALLED: Final = {
    "Francisco": "Paco",
    "José": "Pepe",
    "Dolores": "Lola",
    "María Dolores": "Lola",
    "Manuel": "Manolo",
    "Ignacio": "Nacho",
    "Concepción": "Concha",
    "Rosario": "Charo",
    "Jesús": "Chus",
    "Antonio": "Toni",
    "Isabel": "Isa",
    "Maria Teresa": "Maite",
    "María Teresa": "Maite",
    "Katharina": "Kathi",
    "Elizabeth": "Liz",
}
FROM_AFAR: Final = (
    # family, given, gender, year of birth, language, the name in the other script
    ("Kovalenko", "Hanna", "female", 1984, "uk", ("Коваленко", "Ганна")),
    ("Шевчук", "Дмитро", "male", 1971, "uk", ("Shevchuk", "Dmytro")),
    ("Volkova", "Natalia", "female", 1966, "ru", ("Волкова", "Наталья")),
    ("El Amrani", "Youssef", "male", 1979, "ar", ("العمراني", "يوسف")),
    ("بنعلي", "كريم", "male", 1993, "ar", ("Benali", "Karim")),
    ("Haddad", "Leila", "female", 1991, "ar", ("حداد", "ليلى")),
    ("Nguyễn", "Thị Lan", "female", 1988, "vi", None),
    ("Trần", "Văn Minh", "male", 1962, "vi", None),
    ("Wang", "Xiaomei", "female", 1995, "zh", ("王", "晓梅")),
)
UNKNOWN: Final = (
    # given, gender, about how old
    ("Man, grey beard", "male", 70),
    ("", "female", 30),
    ("Man, blue jacket", "male", 45),
)


@dataclass
class Person:
    """Somebody to be registered, and what cannot be told at a desk."""

    told: Demographics
    site: Site
    sex: str
    born: date
    """Even where the record does not know."""
    numbers: list[tuple[str, str]] = field(default_factory=list)
    illnesses: tuple[Illness, ...] = ()
    visits: int = 2
    dialysis: bool = False
    account: str = ""
    died: date | None = None

    def age(self, on: date) -> float:
        """Years, with their fraction."""
        return (on - self.born).days / 365.25


def dice(*names: object) -> random.Random:
    """Dice that fall alike for the same names."""
    return random.Random(":".join(map(str, names)))  # noqa: S311  (believable, not secret)


@cache
def namer(locale: str) -> Any:
    """Faker's names of one country."""
    from faker import Faker

    return Faker(locale)


def called(draw: random.Random, locale: str, sex: str) -> tuple[str, str]:
    """A given and a family name."""
    names = namer(locale)
    names.seed_instance(draw.getrandbits(32))
    if sex == "female":
        return names.first_name_female(), names.last_name_female()
    return names.first_name_male(), names.last_name_male()


def mobile(draw: random.Random) -> dict[str, str]:
    """A Spanish mobile number."""
    return {"system": "phone", "use": "mobile", "value": f"+34 6{draw.randrange(10**8):08d}"}


def address(draw: random.Random, site: Site) -> dict[str, Any]:
    """A home in the town of a branch."""
    door = draw.choice(("", f", {draw.randint(1, 7)}.º {draw.choice('ABCD')}"))
    return {
        "use": "home",
        "line": [f"{draw.choice(STREETS)} {draw.randint(1, 120)}{door}"],
        "city": site.city,
        "postalCode": draw.choice(site.postal_codes),
        "country": "ES",
    }


def next_of_kin(draw: random.Random, locale: str, told: Demographics, age: float) -> dict[str, Any]:
    """Whom to call: a parent of a child, a child of the old, a partner of the others."""
    if age < ADULT:
        kin, sex = draw.choice((("Mother", "female"), ("Father", "male")))
        family = told.second_family if kin == "Mother" and told.second_family else told.family
    elif age > 70:
        kin, sex = draw.choice((("Daughter", "female"), ("Son", "male")))
        family = told.family
    else:
        kin, sex = draw.choice(
            (("Partner", draw.choice(("female", "male"))), ("Sister", "female"), ("Brother", "male"))
        )
        family = called(draw, locale, sex)[1] if kin == "Partner" else told.family
    return {
        "name": {"text": f"{called(draw, locale, sex)[0]} {family}"},
        "relationship": [{"text": kin}],
        "telecom": [mobile(draw)],
    }


def somebody(draw: random.Random, index: int, today: date) -> Person:
    """One of the many."""
    site = draw.choices(SITES, [site.share for site in SITES])[0]
    locale = draw.choices(list(site.names), list(site.names.values()))[0]
    sex = draw.choice(("female", "male"))
    youngest, oldest = draw.choices(list(AGES), list(AGES.values()))[0]
    born = today - timedelta(days=draw.randrange(int(youngest * 365.25) + 20, int((oldest + 1) * 365.25)))
    given, family = called(draw, locale, sex)
    told = Demographics(family=family, given=given, gender=sex, birth_date=born)
    spanish = locale == "es_ES"
    language = locale[:2]
    told.second_family = called(draw, locale, sex)[1] if spanish else ""
    told.sex_for_clinical_use = SexForClinicalUse.FEMALE if sex == "female" else SexForClinicalUse.MALE
    told.languages = ["es"] if spanish else [language, *(["es"] if draw.random() < 0.6 else [])]
    told.name_in_use = CALLED.get(given, "") if draw.random() < 0.6 else ""
    complete(draw, told, site, locale, (today - born).days / 365.25)
    if draw.random() < 0.015:
        told.gender = draw.choice((AdministrativeGender.OTHER, AdministrativeGender.UNKNOWN))
    known = draw.random()
    if known < 0.02:
        told.birth_date = None
    elif known < 0.05:
        told.birth_date, told.birth_precision = born.replace(month=1, day=1), "year"
    elif known < 0.06:
        told.birth_date, told.birth_precision = born.replace(day=1), "month"
    person = Person(told, site, sex, born, numbers(draw, index, site, spanish))
    age = person.age(today)
    likely = min(0.9, max(0.05, (age - 15) / 75)) if age >= ADULT else 0.12
    if draw.random() < likely:
        person.illnesses = befallen(draw, CHRONIC, sex, age, draw.choices((1, 2, 3), (55, 30, 15))[0])
    rich = index % 7 == 0
    person.visits = draw.randint(8, 13) if rich else draw.choices((0, 1, 2, 3), (6, 40, 34, 20))[0]
    if age > 66 and draw.random() < 0.07:
        person.died = today - timedelta(days=draw.randint(20, 600))
    return person


def complete(draw: random.Random, told: Demographics, site: Site, locale: str, age: float) -> None:
    """Add where somebody lives, how they are reached, and whom to call."""
    told.address = [address(draw, site)]
    if draw.random() < 0.95:
        told.telecom.append(mobile(draw))
    if age > 45 and draw.random() < 0.4:
        told.telecom.append(
            {"system": "phone", "use": "home", "value": f"+34 {site.area}{draw.randrange(10**6):06d}".ljust(13, "0")}
        )
    if ADULT <= age < 85 and draw.random() < 0.7:
        name = ".".join(fold(part).replace(" ", "").replace("'", "") for part in (told.given, told.family))
        told.telecom.append({"system": "email", "value": f"{name}{draw.randint(1, 99)}@example.org"})
    if draw.random() < 0.85:
        told.contact = [next_of_kin(draw, locale, told, age)]
    if age >= 25 and draw.random() < 0.8:
        told.marital_status = draw.choices("MSDW", (55, 25, 12, 3 if age < 65 else 35))[0]


def numbers(draw: random.Random, index: int, site: Site, spanish: bool) -> list[tuple[str, str]]:
    """What other systems know somebody by; nobody's real numbers."""
    found = []
    if draw.random() < 0.75:
        found.append(("insurance", f"CS {draw.randint(100, 999)} {index:05d} {draw.randint(10, 99)}"))
    if not spanish and draw.random() < 0.6:
        found.append(("passport", f"XX{index:04d}{draw.randint(100, 999)}"))
    if draw.random() < 0.2:
        found.append((f"branch:{site.code}", f"{site.code[0]}-{20_000 + index}"))
    return found


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


def everybody(seed: int, count: int, today: date) -> list[Person]:
    """The patients: those made by hand first, then the many."""
    people = [the_diabetic(seed, today), the_dialysed(seed, today)]
    for index in (2, 4):
        first = somebody(dice(seed, "twice", index), index, today)
        if first.told.birth_date is None or first.told.birth_precision != "day":
            first.told.birth_date, first.told.birth_precision = first.born, "day"
        first.died = None
        people += [first, again(dice(seed, "again", index), first)]
    for given, gender, age in UNKNOWN:
        people.append(nameless(dice(seed, "unknown", given), given, gender, age, today))
    for place, (family, given, gender, year, language, other) in enumerate(FROM_AFAR):
        draw = dice(seed, "afar", place)
        site = SITES[place % 3]
        born = date(year, draw.randint(1, 12), draw.randint(1, 28))
        told = Demographics(
            family=family,
            given=given,
            gender=gender,
            birth_date=born,
            sex_for_clinical_use=SexForClinicalUse.FEMALE if gender == "female" else SexForClinicalUse.MALE,
            languages=[language, "es"] if draw.random() < 0.5 else [language],
            other_names=[{"use": "usual", "family": other[0], "given": [other[1]]}] if other else [],
            address=[address(draw, site)],
            telecom=[mobile(draw)],
        )
        illnesses = befallen(draw, CHRONIC, gender, today.year - year, draw.randint(0, 2))
        people.append(Person(told, site, gender, born, [], illnesses, draw.randint(1, 4)))
    people += [somebody(dice(seed, index), index, today) for index in range(len(people), count)]
    return people[:count]


def the_diabetic(seed: int, today: date) -> Person:
    """She whose account is `patient`."""
    draw, site = dice(seed, "diabetic"), SITES[0]
    born = date(today.year - 63, 4, 17)
    told = Demographics(
        family="Moreno",
        second_family="Castro",
        given="Isabel",
        name_in_use="Isa",
        birth_date=born,
        gender=AdministrativeGender.FEMALE,
        sex_for_clinical_use=SexForClinicalUse.FEMALE,
        languages=["es", "en"],
    )
    complete(draw, told, site, "es_ES", 63)
    told.telecom = [mobile(draw), {"system": "email", "value": "isabel.moreno@example.org"}]
    told.marital_status = "M"
    mine = [("insurance", "CS 117 00000 42"), ("branch:MAD", "M-20000")]
    return Person(told, site, "female", born, mine, (DIABETES, HYPERTENSION, LIPIDS), 16, account="patient")


def the_dialysed(seed: int, today: date) -> Person:
    """He who comes three times a week, and has the longest chart."""
    draw, site = dice(seed, "dialysed"), SITES[2]
    born = date(today.year - 68, 9, 2)
    told = Demographics(
        family="Cabrera",
        second_family="Santana",
        given="Manuel",
        name_in_use="Manolo",
        birth_date=born,
        gender=AdministrativeGender.MALE,
        sex_for_clinical_use=SexForClinicalUse.MALE,
        languages=["es"],
    )
    complete(draw, told, site, "es_ES", 68)
    told.telecom, told.marital_status = [mobile(draw)], "W"
    mine = [("insurance", "CS 254 00001 17"), ("branch:LPA", "L-20001")]
    return Person(told, site, "male", born, mine, (KIDNEY_FAILURE, HYPERTENSION), 6, dialysis=True)


def again(draw: random.Random, first: Person) -> Person:
    """The same person, registered a second time at another branch, with another phone."""
    site = next(site for site in SITES if site is not first.site)
    told = replace(
        first.told,
        telecom=[mobile(draw)],
        address=[address(draw, site)],
        contact=[],
        name_in_use="",
        marital_status=None,
    )
    return Person(told, site, first.sex, first.born, [], (), 1)


def nameless(draw: random.Random, given: str, gender: str, age: int, today: date) -> Person:
    """Somebody brought in whom nobody knows."""
    born = date(today.year - age, 1, 1)
    told = Demographics(
        given=given,
        gender=gender,
        birth_date=born if given else None,
        birth_precision="year" if given else "day",
        temporary=True,
    )
    if given:
        told.family = "Unknown"
    return Person(told, draw.choice(SITES), gender, born, visits=1)


# ---- what happened to them ---------------------------------------------------------------------------------------


@dataclass
class Hospital:
    """The branches and doctors that charts refer to, and the moment they are written."""

    moment: datetime
    branches: dict[str, Branch]
    doctors: list[tuple[Employee, Practitioner]]

    def doctor(self, draw: random.Random, site: Site, qualification: str) -> Practitioner:
        """A doctor of the branch, of this speciality where there is one."""
        here = [(e, p) for e, p in self.doctors if site.code in (e.home, *e.further)]
        fitting = [p for e, p in here if e.qualification == qualification]
        general = [p for e, p in here if e.qualification in (FAMILY, INTERNIST)]
        return draw.choice(fitting or general)


def ago(moment: datetime, days: float) -> datetime:
    """So many days before."""
    return moment - timedelta(days=days)


@dataclass
class Chart:
    """One patient's chart while it is written: visits, and what came of each."""

    person: Person
    patient: Patient
    hospital: Hospital
    draw: random.Random
    visits: list[Encounter] = field(default_factory=list)
    entries: list[tuple[Encounter | None, Entry]] = field(default_factory=list)
    level: dict[str, float] = field(default_factory=dict)
    """Where this body usually lies."""

    def __post_init__(self) -> None:
        self.zone = ZoneInfo(self.person.site.time_zone)
        self.today = self.hospital.moment.astimezone(self.zone).date()
        self.first_day = self.today - timedelta(days=YEARS * 365)
        self.last_day = min(self.today - timedelta(days=1), self.person.died or self.today)
        woman = self.person.sex == "female"
        for code, measure in LABORATORY.items():
            self.level[code] = self.draw.gauss(measure.usual[not woman], measure.spread * 0.6)
        self.level |= {
            "systolic": self.draw.gauss(114, 6),
            "heart": self.draw.gauss(72, 6),
            "oxygen": self.draw.gauss(97.4, 0.6),
            "temperature": 36.5,
            "height": self.draw.gauss(162 if woman else 175, 6),
            "bulk": max(18.5, self.draw.gauss(25.5, 3.5)),
        }

    # -- when and where

    def at(self, day: date, minute: int) -> datetime:
        """A local minute of a day, aware."""
        return datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=self.zone)

    def days(self, count: int) -> list[date]:
        """Days of visits, in order, none before birth, the newer ones a little denser."""
        first = max(self.first_day, self.person.born + timedelta(days=7))
        span = (self.last_day - first).days
        if span < 1:
            return []
        return sorted({first + timedelta(days=int(span * self.draw.random() ** 0.8)) for _ in range(count)})

    def visit(
        self,
        kind: str,
        title: str,
        reason: str,
        qualification: str,
        start: datetime,
        minutes: int,
        status: EncounterStatus = EncounterStatus.FINISHED,
    ) -> Encounter:
        """Somebody came, or is to come; unfinished visits have no end."""
        branch = self.hospital.branches[self.person.site.code]
        finished = status == EncounterStatus.FINISHED
        visit = Encounter(
            patient_id=self.patient.id,
            status=status,
            class_code=kind,
            type_display=title,
            reason=reason,
            started_at=start,
            ended_at=start + timedelta(minutes=minutes) if finished else None,
            branch_id=branch.id,
            service_provider_id=branch.organization_id,
            practitioner_id=self.hospital.doctor(self.draw, self.person.site, qualification).id,
        )
        self.visits.append(visit)
        return visit

    def write(self, visit: Encounter | None, entry: Entry) -> None:
        """Something that came of a visit, or was known before."""
        entry.patient_id = self.patient.id
        self.entries.append((visit, entry))

    # -- what is measured

    def moved(self, name: str, when: datetime, acute: Illness | None) -> float:
        """By how much illnesses move a value on a day; treatment eases the lasting ones."""
        passed = min(1.0, max(0.0, (when.date() - self.first_day).days / (YEARS * 365)))
        lasting = sum(i.moves.get(name, 0.0) * (1 - i.eases * passed) for i in self.person.illnesses)
        return lasting + (acute.moves.get(name, 0.0) if acute else 0.0)

    def body(self, when: datetime) -> tuple[float, float]:
        """Height in cm and weight in kg; children grow."""
        age = self.person.age(when.date())
        grown = self.level["height"], self.level["bulk"] * (self.level["height"] / 100) ** 2
        if age >= ADULT:
            return grown
        if age < 1:
            return 50 + 25 * age, 3.4 + 6.2 * age
        height, weight = 70 + 6.2 * min(age, 13), 7.5 + 2.5 * min(age, 13)
        if age > 13:
            part = (age - 13) / 5
            height, weight = height + (grown[0] - height) * part, weight + (grown[1] - weight) * part
        return height, weight

    def measured(
        self, visit: Encounter, when: datetime, code: str, name: str, value: float, unit: str, digits: int
    ) -> None:
        """A vital sign."""
        self.write(
            visit,
            Observation(
                status=ObservationStatus.FINAL,
                category="vital-signs",
                code_system=LOINC,
                code=code,
                code_display=name,
                effective_at=when,
                issued_at=when,
                value_quantity=decimal(value, digits),
                value_unit=unit,
            ),
        )

    def vital_signs(
        self, visit: Encounter, when: datetime, acute: Illness | None = None, *, full: bool = False
    ) -> None:
        """Blood pressure and pulse, weight mostly; everything where it is urgent."""
        draw, age = self.draw, self.person.age(when.date())
        height, weight = self.body(when)
        weight = max(2.5, weight + self.moved("weight", when, acute) + draw.gauss(0, 0.012 * weight))
        young = max(0.0, ADULT - age)
        if age >= 3:
            systolic = self.level["systolic"] + max(0.0, age - 40) * 0.3 - young * 1.4
            systolic += self.moved("systolic", when, acute) + draw.gauss(0, 5)
            self.write(visit, blood_pressure(when, round(systolic), round(systolic * 0.62 + draw.gauss(1, 3))))
        heart = self.level["heart"] + young * 2.4 + self.moved("heart", when, acute) + draw.gauss(0, 4)
        self.measured(visit, when, "8867-4", "Heart rate", heart, "/min", 0)
        if full or acute is None or young or draw.random() < 0.5:
            self.measured(visit, when, "29463-7", "Body weight", weight, "kg", 1)
        if young or (not full and draw.random() < 0.25):
            self.measured(visit, when, "8302-2", "Body height", height, "cm", 0)
            if age >= ADULT:
                self.measured(visit, when, "39156-5", "Body mass index", weight / (height / 100) ** 2, "kg/m2", 1)
        if full or (acute and "temperature" in acute.moves):
            fever = self.level["temperature"] + self.moved("temperature", when, acute) + draw.gauss(0, 0.25)
            self.measured(visit, when, "8310-5", "Body temperature", fever, "Cel", 1)
        if full or self.moved("oxygen", when, acute):
            oxygen = min(100.0, self.level["oxygen"] + self.moved("oxygen", when, acute) + draw.gauss(0, 0.7))
            self.measured(visit, when, "2708-6", "Oxygen saturation", oxygen, "%", 0)
        if full:
            breaths = 15 + young * 0.7 - self.moved("oxygen", when, acute) + draw.gauss(0, 1.2)
            self.measured(visit, when, "9279-1", "Respiratory rate", breaths, "/min", 0)

    def laboratory(self, visit: Encounter, when: datetime, codes: Sequence[str], acute: Illness | None = None) -> None:
        """Blood values and their report, flagged where a range is stated."""
        issued = min(when + timedelta(minutes=self.draw.randint(60, 300)), self.hospital.moment)
        flagged = []
        for code in codes:
            measure = LABORATORY[code]
            value = self.level[code] + self.moved(code, when, acute) + self.draw.gauss(0, measure.spread * 0.55)
            found = decimal(max(measure.least, value), measure.digits)
            low, high = self.range_of(measure, when)
            flag = interpret(found, low, high)
            if flag in ("H", "L"):
                flagged.append(f"{measure.name} {'above' if flag == 'H' else 'below'} the range")
            self.write(
                visit,
                Observation(
                    status=ObservationStatus.FINAL,
                    category="laboratory",
                    code_system=LOINC,
                    code=code,
                    code_display=measure.name,
                    effective_at=when,
                    issued_at=issued,
                    value_quantity=found,
                    value_unit=measure.unit,
                    interpretation=flag,
                    reference_range=stated(measure, low, high),
                ),
            )
        self.write(
            visit,
            DiagnosticReport(
                status=DiagnosticReportStatus.FINAL,
                category="LAB",
                code_system=LOINC,
                code="11502-2",
                code_display="Laboratory report",
                effective_at=when,
                issued_at=issued,
                conclusion=("; ".join(flagged) or "All values within their ranges") + ".",
            ),
        )

    def range_of(self, measure: Measure, when: datetime) -> tuple[Decimal | None, Decimal | None]:
        """The stated range for this person; none for children."""
        if self.person.age(when.date()) < ADULT:
            return None, None
        man = self.person.sex == "male"
        return tuple(
            None if ends is None else decimal(ends[man], measure.digits) for ends in (measure.lows, measure.highs)
        )  # type: ignore[return-value]

    # -- what is found, given and done

    def diagnose(self, visit: Encounter, illness: Illness, onset: datetime, until: datetime | None = None) -> None:
        """An illness on the problem list, or of one visit where it ends."""
        self.write(
            visit,
            Condition(
                clinical_status=ConditionClinicalStatus.RESOLVED if until else ConditionClinicalStatus.ACTIVE,
                verification_status=ConditionVerificationStatus.CONFIRMED,
                category="encounter-diagnosis" if until else "problem-list-item",
                code_system=ICD_10,
                code=illness.code,
                code_display=illness.name,
                onset_at=onset,
                abatement_at=until,
                recorded_at=visit.started_at,
            ),
        )

    def prescribe(self, visit: Encounter, medicine: Medicine, reason: str, status: MedicationRequestStatus) -> None:
        """A medicine ordered in a visit."""
        dosage: dict[str, Any] = {"text": medicine.dose}
        if medicine.frequency:
            repeat = {"frequency": medicine.frequency, "period": medicine.days, "periodUnit": "d"}
            dosage["timing"] = {"repeat": repeat}
        else:
            dosage["asNeededBoolean"] = True
        self.write(
            visit,
            MedicationRequest(
                status=status,
                authored_at=visit.started_at,
                requester_id=visit.practitioner_id,
                code_display=medicine.name,
                dosage_instruction=[dosage],
                reason=reason,
            ),
        )

    def do(self, visit: Encounter, name: str, when: datetime, minutes: int, reason: str) -> None:
        """Something done, and over."""
        self.write(
            visit,
            Procedure(
                status=EventStatus.COMPLETED,
                code_display=name,
                performed_at=when,
                performed_until=when + timedelta(minutes=minutes),
                reason=reason,
            ),
        )

    def medicine_for(self, illness: Illness) -> tuple[Medicine, ...]:
        """What is given, but for what the chart says must not be."""
        forbidden = [entry.code_display for _, entry in self.entries if isinstance(entry, AllergyIntolerance)]
        if AMOXICILLIN in illness.medicines and "Penicillin" in forbidden:
            return (CLARITHROMYCIN,)
        if IBUPROFEN in illness.medicines and any(name.startswith("Ibuprofen") for name in forbidden):
            return (PARACETAMOL,)
        return illness.medicines

    # -- the course of things

    def grow(self) -> None:
        """Everything from the first visit to today's."""
        person = self.person
        self.ask_about_allergies()
        if person.told.temporary:
            self.brought_in()
            return
        days = self.days(person.visits)
        for place, day in enumerate(days):
            if place < len(person.illnesses):
                self.found_ill(day, person.illnesses[place])
            elif person.illnesses and self.draw.random() < 0.6:
                self.follow_up(day, self.draw.choice(person.illnesses))
            else:
                self.fall_ill(day)
        self.vaccinate()
        if person.dialysis:
            self.dialyse()
        if person.died:
            return
        chance = self.draw.random()
        if person.account or chance < 0.05:
            self.comes_today()
        elif person.visits > 4 and chance < 0.2:
            self.lies_here()

    def working_day(self, day: date) -> date:
        """The same day, or the Friday before."""
        return day - timedelta(days=max(0, day.weekday() - 4))

    def consultation(self, day: date, illness: Illness, title: str) -> tuple[Encounter, datetime]:
        """A visit by appointment."""
        start = self.at(self.working_day(day), self.draw.randrange(8 * 60, 17 * 60, 15))
        by = PAEDIATRICIAN if self.person.age(day) < 15 else illness.treated_by
        return self.visit("AMB", title, illness.name, by, start, self.draw.choice((15, 20, 30))), start

    def found_ill(self, day: date, illness: Illness) -> None:
        """A lasting illness is found, or brought along."""
        visit, start = self.consultation(day, illness, "First consultation")
        years = min(12.0, self.person.age(day) * 0.3)
        onset = self.draw.choice((start, ago(start, self.draw.uniform(20, 20 + years * 365))))
        self.diagnose(visit, illness, onset)
        for medicine in self.medicine_for(illness):
            self.prescribe(visit, medicine, illness.name, MedicationRequestStatus.ACTIVE)
        self.vital_signs(visit, start)
        if illness.done:
            self.do(visit, illness.done, start, 20, illness.name)
        if self.draw.random() < 0.75:
            self.laboratory(visit, start + timedelta(minutes=20), self.panel(illness))

    def panel(self, illness: Illness) -> tuple[str, ...]:
        """What is asked of the laboratory for an illness."""
        codes = BLOOD_COUNT if HB in illness.moves or LEUKOCYTES in illness.moves else CHEMISTRY
        own = tuple(code for code in illness.moves if code in LABORATORY)
        return tuple(dict.fromkeys((*own, *codes)))

    def follow_up(self, day: date, illness: Illness) -> None:
        """How it goes with a lasting illness; now and then in the emergency room, or in a bed."""
        if illness.ward and self.draw.random() < 0.2:
            self.stay(day, illness, lasting=True)
            return
        visit, start = self.consultation(day, illness, "Follow-up")
        self.vital_signs(visit, start)
        if self.draw.random() < 0.7:
            self.laboratory(visit, start + timedelta(minutes=20), self.panel(illness))
        if illness is DIABETES and self.draw.random() < 0.2:
            self.do(visit, "Photograph of the retina", start, 10, illness.name)

    def fall_ill(self, day: date) -> None:
        """Something that passes."""
        for illness in befallen(self.draw, ACUTE, self.person.sex, self.person.age(day), 1):
            if illness.ward:
                self.stay(day, illness)
            elif illness.code in CHECK_UPS:
                visit, start = self.consultation(day, illness, "Check-up")
                self.vital_signs(visit, start)
                if self.person.age(day) >= ADULT and self.draw.random() < 0.6:
                    self.laboratory(visit, start, (HB, GLUCOSE, CREATININE, CHOLESTEROL))
            elif illness.treated_by == EMERGENCY or self.draw.random() < 0.2:
                start = self.at(day, self.draw.randrange(7 * 60, 23 * 60))
                visit = self.visit(
                    "EMER", "Emergency visit", illness.name, EMERGENCY, start, self.draw.randint(50, 240)
                )
                self.vital_signs(visit, start + timedelta(minutes=8), illness, full=True)
                self.passed(visit, illness, start)
                if self.draw.random() < 0.4:
                    self.laboratory(visit, start + timedelta(minutes=25), (*BLOOD_COUNT, *CHEMISTRY), illness)
            else:
                visit, start = self.consultation(day, illness, "Consultation")
                self.vital_signs(visit, start, illness)
                self.passed(visit, illness, start)

    def passed(self, visit: Encounter, illness: Illness, start: datetime) -> None:
        """A diagnosis that is over by now, and what was given and done for it."""
        end = min(start + timedelta(days=self.draw.randint(4, 12)), self.hospital.moment)
        self.diagnose(visit, illness, ago(start, self.draw.uniform(0.2, 3)), end)
        for medicine in self.medicine_for(illness):
            self.prescribe(visit, medicine, illness.name, MedicationRequestStatus.COMPLETED)
        if illness.done:
            self.do(visit, illness.done, start + timedelta(minutes=30), 20, illness.name)

    def stay(self, day: date, illness: Illness, *, lasting: bool = False) -> None:
        """Some days in a bed, with a letter at the end."""
        length = self.draw.randint(2, 6)
        day = min(day, self.last_day - timedelta(days=length + 1))
        if self.person.age(day) < 0.2:
            return
        start = self.at(day, self.draw.randrange(7 * 60, 22 * 60))
        leaves = self.at(day + timedelta(days=length), self.draw.randrange(10 * 60, 14 * 60))
        minutes = int((leaves - start).total_seconds() // 60)
        visit = self.visit("IMP", "Inpatient stay", illness.name, illness.treated_by, start, minutes)
        if not lasting:
            self.passed(visit, illness, start)
        elif illness.done:
            self.do(visit, illness.done, start + timedelta(hours=3), 30, illness.name)
        for night in range(length):
            morning = start + timedelta(hours=1) if night == 0 else self.at(day + timedelta(days=night), 8 * 60 + 10)
            worst = illness if night < (length + 1) // 2 else None
            self.vital_signs(visit, morning, worst, full=True)
            if night in (0, length - 1):
                self.laboratory(visit, morning + timedelta(minutes=15), (*BLOOD_COUNT, *CHEMISTRY), worst)
        self.letter(visit, illness, start, leaves)

    def letter(self, visit: Encounter, illness: Illness, start: datetime, leaves: datetime) -> None:
        """The discharge letter."""
        person = self.person
        author = next(p for _, p in self.hospital.doctors if p.id == visit.practitioner_id)
        known = ", ".join(i.name.lower() for i in person.illnesses if i is not illness) or "nothing of note"
        given = "; ".join(f"{m.name}: {m.dose.lower()}" for m in self.medicine_for(illness)) or "none"
        done = f"{illness.done} was done without complications. " if illness.done else ""
        feverish = "temperature" in illness.moves
        course = (
            "The fever went down within two days, and the blood values followed."
            if feverish
            else "The complaints became less with treatment, and walking was possible without help from the second day."
        )
        text = f"""Discharge letter

{self.patient.name}, {self.patient.mrn}
{person.site.name}, {start:%-d %B %Y} to {leaves:%-d %B %Y}

Reason for the stay: {illness.name}
Known before: {known}

Course
Admitted {"through the emergency room" if feverish else "from the outpatient clinic"}. {done}{course}
Discharged home in good condition.

Medicines
{given}

Please
See your family doctor within a week. Come back at once if there is fever, shortness of breath or pain in the chest.

{author.name}, {author.qualification}
"""
        self.write(
            visit,
            DocumentReference(
                status=DocumentReferenceStatus.CURRENT,
                category="clinical-note",
                code_system=LOINC,
                code="18842-5",
                code_display="Discharge summary",
                title=f"Discharge letter, {illness.name}",
                written_at=leaves,
                author=author.name,
                content=text,
            ),
        )

    def ask_about_allergies(self) -> None:
        """Listed, none known, or never asked."""
        draw, chance = self.draw, self.draw.random()
        if self.person.told.temporary or (chance > 0.7 and not self.person.account):
            return
        if chance > 0.28 and not self.person.account:
            self.patient.no_known_allergies = True
            return
        found = draw.sample(ALLERGIES, draw.choices((1, 2), (75, 25))[0])
        if self.person.account and ALLERGIES[0] not in found:
            found = [ALLERGIES[0], *found]
        noted = self.at(self.first_day + timedelta(days=draw.randint(1, 90)), draw.randrange(9 * 60, 15 * 60))
        for name, category, reactions, dangerous in found:
            severity = "severe" if dangerous else draw.choice(("mild", "moderate"))
            intolerance = "lactose" in name
            self.write(
                None,
                AllergyIntolerance(
                    clinical_status=AllergyClinicalStatus.ACTIVE,
                    verification_status=AllergyVerificationStatus.CONFIRMED
                    if draw.random() < 0.8
                    else AllergyVerificationStatus.UNCONFIRMED,
                    type=AllergyType.INTOLERANCE if intolerance else AllergyType.ALLERGY,
                    category=[category],
                    criticality=AllergyCriticality.HIGH if dangerous else AllergyCriticality.LOW,
                    code_display=name,
                    reaction=[{"manifestation": [{"text": reaction} for reaction in reactions], "severity": severity}],
                    recorded_at=noted,
                ),
            )

    def vaccinate(self) -> None:
        """What was due, for most."""
        for code, name, youngest, oldest, months in VACCINES:
            for back in range(YEARS):
                month = self.draw.choice(months)
                day = date(self.today.year - back, month, self.draw.randint(1, 27))
                lot, chance = f"{self.draw.choice('ABCDEFGH')}{self.draw.randrange(10**5):05d}", self.draw.random()
                every_year = code in ("140", "213")
                if not self.first_day < day <= self.last_day or not youngest <= self.person.age(day) <= oldest:
                    continue
                if chance > (0.5 if every_year else 0.16):
                    continue
                self.write(
                    None,
                    Immunization(
                        status="completed",
                        code_system=CVX,
                        code=code,
                        code_display=name,
                        occurrence_at=self.at(self.working_day(day), 9 * 60 + 30),
                        primary_source=True,
                        lot_number=lot,
                    ),
                )
                if not every_year:
                    break

    def dialyse(self) -> None:
        """Three mornings a week for a good year, blood once a month."""
        days = [self.last_day - timedelta(days=back) for back in range(400, -1, -1)]
        month = 0
        for day in days:
            if day.weekday() not in (0, 2, 4):
                continue
            start = self.at(day, 7 * 60 + self.draw.choice((0, 5, 10, 15)))
            visit = self.visit("AMB", "Haemodialysis", KIDNEY_FAILURE.name, NEPHROLOGIST, start, 255)
            self.do(visit, "Haemodialysis", start + timedelta(minutes=10), 240, KIDNEY_FAILURE.name)
            drift = (day - days[0]).days / 400
            weight = 78.5 - 2.0 * drift + (0.9 if day.weekday() == 0 else 0.0) + self.draw.gauss(0, 0.35)
            systolic = 152 - 10 * drift + self.draw.gauss(0, 8)
            self.write(visit, blood_pressure(start, round(systolic), round(systolic * 0.55 + self.draw.gauss(0, 4))))
            self.measured(visit, start, "29463-7", "Body weight", weight, "kg", 1)
            self.measured(visit, start, "8867-4", "Heart rate", self.draw.gauss(74, 5), "/min", 0)
            if day.month != month:
                month = day.month
                codes = (HB, LEUKOCYTES, PLATELETS, CREATININE, POTASSIUM, SODIUM)
                self.laboratory(visit, start + timedelta(minutes=5), codes)

    def brought_in(self) -> None:
        """Somebody unknown, found in the street last night."""
        start = self.at(self.last_day, self.draw.randrange(20 * 60, 23 * 60))
        visit = self.visit("EMER", "Emergency visit", "Found confused in the street", EMERGENCY, start, 300)
        self.vital_signs(visit, start + timedelta(minutes=6), full=True)
        self.laboratory(visit, start + timedelta(minutes=15), (*BLOOD_COUNT, *CHEMISTRY))

    def comes_today(self) -> None:
        """An appointment today, which at this moment is over, under way or ahead."""
        start = self.at(self.today, self.draw.randrange(8 * 60, 18 * 60, 15))
        reason = self.person.illnesses[0].name if self.person.illnesses else "General check-up"
        by = self.person.illnesses[0].treated_by if self.person.illnesses else FAMILY
        by = PAEDIATRICIAN if self.person.age(self.today) < 15 else by
        if self.hospital.moment >= start + timedelta(minutes=30):
            status = EncounterStatus.FINISHED
        elif self.hospital.moment >= start:
            status = EncounterStatus.IN_PROGRESS
        else:
            status = EncounterStatus.PLANNED
        visit = self.visit("AMB", "Follow-up", reason, by, start, 20, status)
        if status == EncounterStatus.FINISHED:
            self.vital_signs(visit, start)

    def lies_here(self) -> None:
        """In a bed since some days."""
        since = self.draw.randint(1, 5)
        day = self.today - timedelta(days=since)
        start = self.at(day, self.draw.randrange(9 * 60, 20 * 60))
        adult = self.person.age(day) >= 30
        illness = PNEUMONIA if adult else next(i for i in ACUTE if i.code == "K35.8")
        status = EncounterStatus.IN_PROGRESS
        visit = self.visit("IMP", "Inpatient stay", illness.name, illness.treated_by, start, 0, status)
        self.diagnose(visit, illness, ago(start, 2))
        for medicine in self.medicine_for(illness):
            self.prescribe(visit, medicine, illness.name, MedicationRequestStatus.ACTIVE)
        for night in range(since):
            morning = start + timedelta(hours=1) if night == 0 else self.at(day + timedelta(days=night), 8 * 60 + 10)
            self.vital_signs(visit, morning, illness if night < 3 else None, full=True)
        self.laboratory(visit, start + timedelta(hours=1), (*BLOOD_COUNT, *CHEMISTRY), illness)


def decimal(value: float, digits: int) -> Decimal:
    """A value as the instrument prints it."""
    return Decimal(f"{value:.{digits}f}")


def interpret(found: Decimal, low: Decimal | None, high: Decimal | None) -> str | None:
    """H, L or N; a limit itself is normal, and no range is no flag."""
    if low is None and high is None:
        return None
    if low is not None and found < low:
        return "L"
    return "H" if high is not None and found > high else "N"


def quantity(value: float, unit: str) -> dict[str, Any]:
    """A FHIR Quantity."""
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def stated(measure: Measure, low: Decimal | None, high: Decimal | None) -> list[dict[str, Any]]:
    """A FHIR Observation.referenceRange."""
    ends = {name: quantity(float(end), measure.unit) for name, end in (("low", low), ("high", high)) if end is not None}
    return [ends] if ends else []


def blood_pressure(when: datetime, systolic: int, diastolic: int) -> Observation:
    """The panel with its two numbers."""
    parts = (("8480-6", "Systolic blood pressure", systolic), ("8462-4", "Diastolic blood pressure", diastolic))
    return Observation(
        status=ObservationStatus.FINAL,
        category="vital-signs",
        code_system=LOINC,
        code="85354-9",
        code_display="Blood pressure",
        effective_at=when,
        issued_at=when,
        component=[
            {
                "code": {"coding": [{"system": LOINC, "code": code, "display": name}], "text": name},
                "valueQuantity": quantity(value, "mm[Hg]"),
            }
            for code, name, value in parts
        ],
    )


# ---- planting ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """What there is now."""

    branches: int
    staff: int
    patients: int
    visits: int
    entries: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"Planted {self.branches} branches, {self.staff} staff and {self.patients} patients "
            f"with {self.visits:,} visits and {self.entries:,} entries in {self.seconds:.1f} s."
        )


def aloud(line: str) -> None:
    """Say a line beside whatever progress is shown."""
    tqdm.write(line, file=sys.stderr)


def plant(
    database_url: str | None = None,
    *,
    patients: int = 300,
    seed: int = 2026,
    moment: datetime | None = None,
    say: Callable[[str], None] = aloud,
) -> Planted | None:
    """Make the demo hospital, all of it or nothing, in the database connected to or in `database_url`.

    None where there is a hospital already. `moment` (aware) is when it is: charts end the day before.
    """
    if database_url is not None:
        guard.connect(database_url)
    begun = time.monotonic()
    with guard.acting_as(actor.service("demo", channel="cli")), guard.unit_of_work() as session:
        session.execute(select(func.pg_advisory_xact_lock(LOCK)))
        if session.scalars(select(Branch).limit(1)).first() is not None:
            return None
        accounts.seed()
        hospital = found(session, moment or now())
        today = hospital.moment.astimezone(ZoneInfo(SITES[0].time_zone)).date()
        people = everybody(seed, patients, today)
        visits = entries = 0
        with tqdm(total=len(people), desc="  Demo hospital", unit=" patients", file=sys.stderr, disable=None) as bar:
            for first, last in pairwise([*range(0, len(people), BATCH), len(people)]):
                charts = [
                    Chart(person, admit(session, person, hospital), hospital, dice(seed, "chart", first + place))
                    for place, person in enumerate(people[first:last])
                ]
                written = write(session, charts)
                visits, entries = visits + written[0], entries + written[1]
                bar.update(len(charts))
    planted = Planted(len(SITES), len(STAFF), len(people), visits, entries, time.monotonic() - begun)
    say(f"  {planted}")
    return planted


def found(session: Session, moment: datetime) -> Hospital:
    """The chain, its branches, rooms, accounts and staff."""
    organization.found_organization(session, name=CHAIN)
    branches = {}
    for site in SITES:
        branch = organization.open_branch(
            session,
            name=site.name,
            code=site.code,
            time_zone=site.time_zone,
            currency="EUR",
            languages=site.languages,
            country="ES",
        )
        branches[site.code] = branch
        rooms = (*ROOMS, DIALYSIS_UNIT) if site.code == "LPA" else ROOMS
        for name, kind, capacity in rooms:
            organization.furnish_room(session, branch=branch, name=name, kind=kind, capacity=capacity)
    doctors = []
    for employee in STAFF:
        practitioner = organization.employ(
            session,
            family=employee.family,
            given=employee.given,
            prefix=employee.prefix,
            gender=employee.gender,
            qualification=employee.qualification,
            home_branch=branches[employee.home],
            branches=[branches[code] for code in employee.further],
            user_id=open_account(session, employee.account, employee.given, employee.family)
            if employee.account
            else None,
        )
        if employee.qualification in DOCTORS:
            doctors.append((employee, practitioner))
    return Hospital(moment, branches, doctors)


def open_account(session: Session, username: str, given: str, family: str) -> int:
    """One of the accounts everybody knows."""
    user = accounts.open_account(
        session,
        username=username,
        password=PASSWORD,
        first_name=given,
        last_name=family,
        email=f"{username}@{accounts.DEMO_MAIL}",
        roles=[accounts.DEMO_ACCOUNTS[username]],
    )
    return int(user.id)


def admit(session: Session, person: Person, hospital: Hospital) -> Patient:
    """Register somebody, and put down what happens after registering."""
    branch = hospital.branches[person.site.code]
    patient = patients.register(
        session, person.told, identifiers=person.numbers, branch_id=branch.id, region="ES", insist=True
    )
    if person.account:
        patient.user_id = open_account(session, person.account, person.told.given, person.told.family)
    if person.died:
        zone = ZoneInfo(person.site.time_zone)
        patient.deceased = True
        patient.deceased_at = datetime(person.died.year, person.died.month, person.died.day, 18, 40, tzinfo=zone)
    return patient


def write(session: Session, charts: Sequence[Chart]) -> tuple[int, int]:
    """Put charts into the database, visits first, for their numbers; gives how many visits and how many entries."""
    for chart in charts:
        chart.grow()
        for visit in chart.visits:
            clinical.enter(session, visit)
    session.flush()
    for chart in charts:
        for origin, entry in chart.entries:
            entry.encounter_id = origin.id if origin is not None else None
            clinical.enter(session, entry)
    session.flush()
    return sum(len(chart.visits) for chart in charts), sum(len(chart.entries) for chart in charts)
