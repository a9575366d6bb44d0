"""A small hospital to test in, made through the services as the house makes its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import select

from app import guard
from app.actor import Actor, Origin, nobody, service
from app.policy import Grant, Role
from app.services import accounts, clinical, organization, patients, roles
from models.clinical import (
    AllergyIntolerance,
    Condition,
    DocumentReference,
    Encounter,
    Immunization,
    Observation,
    Procedure,
)
from models.imports import SourceResource
from models.lab import DiagnosticReport, LabPanel, LabPanelTest, LabTest, ReferenceRange, ServiceRequest, UnitConversion
from models.notes import ClinicalNote
from models.organization import Branch, Room
from models.patients import Patient, PatientLink
from models.prescriptions import MedicationRequest
from models.scheduling import Equipment, VisitType, WorkingHours

PASSWORD = "correct horse battery"
WHEN = datetime(2026, 3, 5, 9, 30, tzinfo=UTC)

PEOPLE = {
    "admin": (Role.ADMIN, "Agnes", "Admin"),
    "reception": (Role.RECEPTIONIST, "Rosa", "Reception"),
    "nurse": (Role.NURSE, "Nora", "Nurse"),
    "doctor": (Role.DOCTOR, "Dora", "Doctor"),
    "lab": (Role.LAB_TECHNICIAN, "Luis", "Laboratory"),
    "pharmacist": (Role.PHARMACIST, "Petra", "Pharmacist"),
    "billing": (Role.BILLING_CLERK, "Bill", "Billing"),
    "privacy": (Role.PRIVACY_OFFICER, "Priya", "Privacy"),
    "patient": (Role.PATIENT, "Zinnia", "Quartermain"),
}
"""Every shipped role has one account, under this user name."""

NOTE = "SENTINEL-NOTE-7f3a"
DOCUMENT = "SENTINEL-DOCUMENT-7f3a"
REPORT = "SENTINEL-REPORT-7f3a"
CONCLUSION = "SENTINEL-CONCLUSION-7f3a"
SOURCE = "SENTINEL-SOURCE-7f3a"
REASON = "SENTINEL-REASON-7f3a"
PHONE = "+34911234567"

NAMES = (
    ("Quartermain", "Zinnia", date(1970, 3, 5), "female"),
    ("Vandersloot", "Xerxes", date(1982, 11, 30), "male"),
    ("Medina", "Jesús", date(1990, 1, 2), "male"),
    ("Müller", "Ännchen", date(1955, 7, 19), "female"),
    ("O'Brien", "Siobhán", date(2001, 12, 24), "female"),
    ("Øster", "Åse", date(1949, 6, 6), "female"),
    ("Kowalska", "Łucja", date(1977, 4, 4), "female"),
    ("Nguyễn", "Thị Hoa", date(1988, 8, 18), "female"),
    ("Abdulrahman", "Yusuf", date(2015, 5, 5), "male"),
    ("Fitzgerald-Jones", "Persephone", date(1999, 9, 9), "female"),
    ("Baptiste", "Léon", date(1963, 2, 28), "male"),
    ("Tanaka", "Hiroshi", date(1936, 10, 10), "male"),
)


@dataclass
class Hospital:
    """Numbers of what is there; each is loaded again by whoever wants it, as themselves."""

    branches: list[int] = field(default_factory=list)
    accounts: dict[str, int] = field(default_factory=dict)
    """User name -> id of the account."""
    staff: dict[str, int] = field(default_factory=dict)
    patients: list[int] = field(default_factory=list)
    """The first one is the account `patient`; it and the second one have a chart."""
    rows: dict[str, int] = field(default_factory=dict)
    """Class -> a row of it in the second patient's chart."""
    own_rows: dict[str, int] = field(default_factory=dict)
    """Class -> a row of it in the first patient's chart."""


def told(family: str, given: str = "Test", **more: Any) -> patients.Demographics:
    """Demographics with everything a test does not care about filled in."""
    return patients.Demographics(family=family, given=given, **more)


def chart(session: Any, patient_id: int, branch: Branch, practitioner_id: int) -> dict[str, int]:
    """One row of everything a chart holds, the written ones with a word that can be looked for."""
    of = {"patient_id": patient_id}
    visit = Encounter(
        **of,
        status="finished",
        class_code="AMB",
        type_display="Check-up",
        reason=REASON,
        started_at=WHEN,
        ended_at=WHEN + timedelta(minutes=20),
        branch_id=branch.id,
        service_provider_id=branch.organization_id,
        practitioner_id=practitioner_id,
    )
    session.add(visit)
    session.flush()
    here = {**of, "encounter_id": visit.id}
    vital = {"status": "final", "effective_at": WHEN, "code_system": "http://loinc.org"}
    rows: list[Any] = [
        visit,
        Condition(
            **here,
            code="44054006",
            code_display="Diabetes",
            clinical_status="active",
            verification_status="confirmed",
            recorded_at=WHEN,
        ),
        AllergyIntolerance(
            **here,
            code="91936005",
            code_display="Penicillin",
            clinical_status="active",
            verification_status="confirmed",
            criticality="high",
            recorded_at=WHEN,
            reaction=[{"manifestation": [{"text": "Hives"}]}],
        ),
        Observation(
            **here, **vital, code="8867-4", code_display="Heart rate", category="vital-signs", value_quantity=72
        ),
        Procedure(**here, code="80146002", code_display="Appendectomy", status="completed", performed_at=WHEN),
        Immunization(**here, code="140", code_display="Influenza", status="completed", occurrence_at=WHEN),
        DiagnosticReport(
            **here,
            code="57698-3",
            code_display="Lipid panel",
            status="final",
            category="laboratory",
            effective_at=WHEN,
            portal_at=WHEN,
            conclusion=CONCLUSION,
            presented_form=[{"contentType": "text/plain", "data": REPORT}],
        ),
        ServiceRequest(
            **here,
            code="58410-2",
            code_display="Complete blood count",
            authored_at=WHEN,
            requester_id=practitioner_id,
            note="Fasting",
        ),
        MedicationRequest(
            **here,
            code="860975",
            code_display="Metformin 500 MG",
            status="active",
            authored_at=WHEN,
            requester_id=practitioner_id,
            dosage_instruction=[{"text": "One in the morning"}],
        ),
        DocumentReference(
            **here,
            code="34133-9",
            code_display="Summary",
            status="current",
            title="Letter",
            author="Dr. Doctor",
            written_at=WHEN,
            content=DOCUMENT,
        ),
        SourceResource(
            patient_id=patient_id,
            source="elsewhere",
            resource_type="Composition",
            source_id=f"c{patient_id}",
            digest=b"0" * 32,
            content={"text": SOURCE},
        ),
    ]
    for row in rows:
        clinical.enter(session, row)
    session.flush()
    numbers = {type(row).__name__: row.id for row in rows}
    for code, display, value in (("718-7", "Haemoglobin", 14), ("2345-7", "Glucose", 93)):
        result = Observation(
            **here,
            **vital,
            code=code,
            code_display=display,
            category="laboratory",
            value_quantity=value,
            portal_at=WHEN,
        )
        session.add(result)
        session.flush()
        numbers["laboratory"] = result.id
    return numbers


def build() -> Hospital:
    """Two branches, an account for every shipped role, a dozen patients, two of them with a chart."""
    made = Hospital()
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        organization.found_organization(session, name="Chain")
        branches = [
            organization.open_branch(
                session, name=name, code=code, time_zone=zone, currency=currency, languages=languages, country=country
            )
            for name, code, zone, currency, languages, country in (
                ("Hospital Norte", "NOR", "Europe/Madrid", "EUR", "es en", "ES"),
                ("Southern General", "SOU", "America/New_York", "USD", "en", "US"),
            )
        ]
        made.branches = [branch.id for branch in branches]
        for branch in branches:
            organization.furnish_room(session, branch=branch, name="Room 1")
        for username, (role, given, family) in PEOPLE.items():
            account = accounts.open_account(
                session,
                username=username,
                password=PASSWORD,
                first_name=given,
                last_name=family,
                email=f"{username}@example.org",
                roles=[role],
            )
            made.accounts[username] = account.id
            if role != Role.PATIENT:
                person = organization.employ(
                    session,
                    family=family,
                    given=given,
                    home_branch=branches[0],
                    branches=[branches[1]] if username in ("doctor", "reception") else [],
                    user_id=account.id,
                )
                made.staff[username] = person.id
        for number, (family, given, born, gender) in enumerate(NAMES):
            patient = patients.register(
                session,
                told(
                    family,
                    given,
                    birth_date=born,
                    gender=gender,
                    telecom=[{"system": "phone", "value": f"+3491{1234567 + number}"}],
                    address=[{"line": [f"Secret Street {number}"], "city": "Madrid", "country": "ES"}],
                ),
                identifiers=[("passport", f"PASS{number:04d}")],
                branch_id=made.branches[number % 2],
                insist=True,
            )
            made.patients.append(patient.id)
        first = session.get(Patient, made.patients[0])
        assert first is not None
        first.user_id = made.accounts["patient"]
        session.flush()
        made.own_rows = chart(session, made.patients[0], branches[0], made.staff["doctor"])
        made.rows = chart(session, made.patients[1], branches[1], made.staff["doctor"])
        link = PatientLink(patient_id=made.patients[2], other_id=made.patients[3], score=0.8, reasons=["similar name"])
        session.add(link)
        session.flush()
        made.rows["PatientLink"] = link.id
    with acting(made.accounts["doctor"]), guard.unit_of_work() as session:
        for numbers, patient_id in ((made.own_rows, made.patients[0]), (made.rows, made.patients[1])):
            note = ClinicalNote(
                patient_id=patient_id,
                title="Progress",
                author_id=made.staff["doctor"],
                written_at=WHEN,
                content={"text": NOTE},
            )
            session.add(note)
            session.flush()
            numbers["ClinicalNote"] = note.id
    return made


@dataclass
class Laboratory:
    """What the laboratory offers, by number, and the account of its second person."""

    hospital: Hospital
    potassium: int
    sodium: int
    culture: int
    pregnancy: int
    panel: int
    second: int


def open_laboratory(hospital: Hospital) -> Laboratory:
    """Have the laboratory offer four tests and a panel, and give it a second person, `lab2`."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        account = accounts.open_account(
            session,
            username="lab2",
            password=PASSWORD,
            first_name="Lena",
            last_name="Second",
            email="lab2@example.org",
            roles=[Role.LAB_TECHNICIAN],
        )
        home = session.get_one(Branch, hospital.branches[0])
        organization.employ(session, family="Second", given="Lena", home_branch=home, user_id=account.id)
        serum = {"specimen_type": "SER", "unit": "mmol/L", "decimals": 1}
        potassium = LabTest(
            code="2823-3",
            name="Potassium",
            plausible_low=Decimal("0.5"),
            plausible_high=Decimal(15),
            reporting_low=Decimal(1),
            reporting_high=Decimal(10),
            delta_amount=Decimal(1),
            **serum,
        )
        sodium = LabTest(code="2951-2", name="Sodium", **serum)
        culture = LabTest(code="600-7", name="Blood culture", kind="text", specimen_type="BLD")
        pregnancy = LabTest(
            code="2106-3",
            name="Pregnancy test",
            kind="coded",
            specimen_type="UR",
            sensitive=True,
            answers=[
                {"code": "NEG", "display": "negative", "flag": "N"},
                {"code": "POS", "display": "positive", "flag": "A"},
                {"code": "INV", "display": "invalid"},
            ],
        )
        session.add_all([potassium, sodium, culture, pregnancy])
        session.flush()
        session.add_all(
            [
                ReferenceRange(
                    test_id=potassium.id,
                    low=Decimal("3.5"),
                    high=Decimal("5.1"),
                    critical_low=Decimal("2.5"),
                    critical_high=Decimal("6.5"),
                    valid_from=date(2020, 1, 1),
                ),
                UnitConversion(test_id=potassium.id, source="mg/dL", target="mmol/L", factor=Decimal("0.2558")),
            ]
        )
        panel = LabPanel(code="24326-1", name="Electrolytes")
        session.add(panel)
        session.flush()
        session.add_all(
            [
                LabPanelTest(panel_id=panel.id, test_id=potassium.id, position=1),
                LabPanelTest(panel_id=panel.id, test_id=sodium.id, position=2),
            ]
        )
        return Laboratory(hospital, potassium.id, sodium.id, culture.id, pregnancy.id, panel.id, account.id)


@dataclass(frozen=True)
class Practice:
    """What can be booked at a branch, by number."""

    branch: int
    clock: ZoneInfo
    visit: int
    """Half an hour, without a room."""
    scan: int
    """Half an hour in one of the rooms with the scanner, which is made ready for 5 minutes and cleaned for 10."""
    rooms: list[int]
    scanner: int
    people: list[int]
    """Each works here from 8 to 18 every day."""
    patients: list[int]

    def at(self, day: date, hour: int, minute: int = 0) -> datetime:
        """A time by the clock of the branch."""
        return datetime.combine(day, time(hour, minute), tzinfo=self.clock)


def open_practice(hospital: Hospital, usernames: Iterable[str] = ("doctor", "nurse"), branch: int = 0) -> Practice:
    """Have people work at a branch every day, with two kinds of visits, two rooms and a scanner."""
    place, people = hospital.branches[branch], [hospital.staff[username] for username in usernames]
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        visit = VisitType(name=f"Visit {branch}", minutes=30, needs_room=False)
        scan = VisitType(name=f"Scan {branch}", minutes=30, buffer_before=5, buffer_after=10, needs_room=True)
        rooms = [Room(branch_id=place, name=f"Scan {number}") for number in (1, 2)]
        scanner = Equipment(branch_id=place, name="Scanner")
        session.add_all([visit, *rooms, scanner])
        scan.equipment, scan.rooms = [scanner], rooms
        session.add(scan)
        for person in people:
            for weekday in range(1, 8):
                work(session, person, place, weekday, time(8), time(18))
        session.flush()
        clock = ZoneInfo(session.get_one(Branch, place).time_zone)
        return Practice(
            place, clock, visit.id, scan.id, [room.id for room in rooms], scanner.id, people, hospital.patients
        )


def work(session: Any, person: int, branch: int, weekday: int, starts: time, ends: time) -> None:
    """Have somebody work at a branch on a day of the week (1 is Monday)."""
    hours = WorkingHours(practitioner_id=person, branch_id=branch, weekday=weekday, starts=starts, ends=ends)
    hours.valid_from = date(2020, 1, 1)
    session.add(hours)


@contextmanager
def acting(user_id: int, channel: str = "web") -> Iterator[Actor]:
    """Act as a person with an account, with what the permission tables grant them now."""
    with guard.acting_as(nobody()):
        who = guard.who_is(user_id, Origin(channel=channel))
    assert who is not None
    with guard.acting_as(who):
        yield who


def rewrite(hospital: Hospital, name: str, grants: Mapping[str, Grant]) -> None:
    """Have a role grant this and no more, as the shipped administrator would on the page of roles."""
    with acting(hospital.accounts["admin"]), guard.unit_of_work() as session:
        line = next(role for role in roles.all_roles(session) if role.name == name)
        before = roles.sheet_of(session, line.id)
        if dict(before.grants) != dict(grants):
            sheet = replace(before, grants=grants)
            roles.change_role(session, sheet, seen=before.digest, reason="for a test")


def number_of(model: Any, *criteria: Any) -> int:
    """Rows of a table as they are in the database, past the gate."""
    with guard.engine().connect() as connection:
        return len(connection.execute(select(model.__table__.c.id).where(*criteria)).all())


def stored(model: Any, key: int) -> Any:
    """A row as it is in the database, past the gate."""
    table = model.__table__
    with guard.engine().connect() as connection:
        return connection.execute(select(table).where(table.c.id == key)).mappings().one_or_none()
