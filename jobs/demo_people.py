"""Who there is in the demo: the branches, the staff, and the patients.

Nobody here exists: names are Faker's or ours, and mail addresses lie in domains that belong to nobody (RFC 2606).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cache
from itertools import count as count_up
from typing import Any, Final

from app.services.patients import Demographics
from app.services.words import fold
from jobs.demo_illness import (
    ADULT,
    CARDIOLOGIST,
    CHRONIC,
    DIABETES,
    DOCTORS,
    EMERGENCY,
    FAMILY,
    HYPERTENSION,
    INTERNIST,
    KIDNEY_FAILURE,
    LIPIDS,
    NEPHROLOGIST,
    ORTHOPAEDIC,
    PAEDIATRICIAN,
    SURGEON,
    Illness,
    befallen,
)
from models.codes import AdministrativeGender, SexForClinicalUse

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
    Employee("Tomás", "Herrera", "male", CARDIOLOGIST, "MAD", ("AGP", "LPA")),
    Employee("Ana", "Beltrán", "female", PAEDIATRICIAN, "MAD"),
    Employee("Radu", "Ionescu", "male", EMERGENCY, "MAD"),
    Employee("Inés", "Cano", "female", SURGEON, "MAD", ("AGP", "LPA")),
    Employee("Piotr", "Zieliński", "male", "Nurse", "MAD"),
    Employee("Miguel", "Vargas", "male", FAMILY, "AGP"),
    Employee("Sofía", "Peralta", "female", ORTHOPAEDIC, "AGP", ("MAD",)),
    Employee("Paul", "Whitaker", "male", EMERGENCY, "AGP", ("LPA",)),
    Employee("Rocío", "Luque", "female", "Nurse", "AGP"),
    Employee("Alba", "Merino", "female", "Receptionist", "AGP"),
    Employee("Diego", "Rivas", "male", "Laboratory technician", "AGP", ("LPA",)),
    Employee("Yaiza", "Santana", "female", NEPHROLOGIST, "LPA", ("MAD",)),
    Employee("Jonay", "Quintero", "male", FAMILY, "LPA"),
    Employee("Katrin", "Vogel", "female", PAEDIATRICIAN, "LPA", ("AGP",)),
    Employee("Idaira", "Medina", "female", "Nurse", "LPA"),
    Employee("Nauzet", "Falcón", "male", "Receptionist", "LPA"),
    Employee("Candelaria", "Betancor", "female", "Pharmacist", "LPA"),
    Employee("Noelia", "Serrano", "female", "Laboratory technician", "MAD", (), "lab2"),
    Employee("Hugo", "Prieto", "male", "Doctor in training", "MAD", (), "trainee"),
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
EITHER: Final = {
    *("Ale", "Amor", "Ariel", "Chus", "Cruz", "Guadalupe", "Guiomar", "José", "Loreto", "Lupe", "Manu", "María"),
    *("Maxi", "Nazaret", "Reyes", "Rosario", "Trinidad"),
}
"""Given names that Faker gives to women and men alike."""
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
    given = ""
    while not given or given in EITHER:
        given = str(names.first_name_female() if sex == "female" else names.first_name_male())
    family = names.last_name_female() if sex == "female" else names.last_name_male()
    return given.replace(" Del ", " del "), str(family)


def mobile(draw: random.Random) -> dict[str, str]:
    """A Spanish mobile number, in E.164."""
    return {"system": "phone", "use": "mobile", "value": f"+346{draw.randrange(10**8):08d}"}


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
    elif known < 0.07:
        told.birth_date, told.birth_precision = born.replace(day=1), "month"
    person = Person(told, site, sex, born, numbers(draw, index, site, spanish))
    age = person.age(today)
    likely = min(0.93, max(0.08, (age - 18) / 55)) if age >= ADULT else 0.12
    if draw.random() < likely:
        person.illnesses = befallen(
            draw, CHRONIC, sex, age, draw.choices((1, 2, 3), (30, 42, 28) if age > 60 else (65, 27, 8))[0]
        )
    rich = index % 8 == 0
    person.visits = draw.randint(7, 11) if rich else draw.choices((0, 1, 2, 3), (6, 40, 34, 20))[0]
    if age > 66 and draw.random() < 0.11:
        person.died = today - timedelta(days=draw.randint(20, 600))
    return person


def complete(draw: random.Random, told: Demographics, site: Site, locale: str, age: float) -> None:
    """Add where somebody lives, how they are reached, and whom to call."""
    told.address = [address(draw, site)]
    if draw.random() < 0.95:
        told.telecom.append(mobile(draw))
    if age > 45 and draw.random() < 0.4:
        line = f"{site.area}{draw.randrange(10**7):07d}"[:9]
        told.telecom.append({"system": "phone", "use": "home", "value": f"+34{line}"})
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


def everybody(seed: int, count: int, today: date) -> list[Person]:
    """The patients: those made by hand first, then the many."""
    people = [the_diabetic(seed, today), the_dialysed(seed, today)]
    for index in (2, 4):
        tries = (somebody(dice(seed, "twice", index, attempt), index, today) for attempt in count_up())
        first = next(person for person in tries if person.age(today) > 25)
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
