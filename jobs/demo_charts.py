"""What happened to the demo's patients: charts that grow visit by visit, with values that go with the illnesses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from zoneinfo import ZoneInfo

from jobs.demo_illness import (
    ACUTE,
    ADULT,
    ALLERGIES,
    AMOXICILLIN,
    BLOOD_COUNT,
    CHECK_UPS,
    CHEMISTRY,
    CHOLESTEROL,
    CLARITHROMYCIN,
    CREATININE,
    DIABETES,
    EMERGENCY,
    FAMILY,
    GLUCOSE,
    HB,
    IBUPROFEN,
    INTERNIST,
    KIDNEY_FAILURE,
    LABORATORY,
    LEUKOCYTES,
    NEPHROLOGIST,
    PAEDIATRICIAN,
    PARACETAMOL,
    PLATELETS,
    PNEUMONIA,
    POTASSIUM,
    SODIUM,
    VACCINES,
    Illness,
    Measure,
    Medicine,
    befallen,
)
from jobs.demo_people import Employee, Person, Site
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
)
from models.lab import DiagnosticReport
from models.organization import Branch, Practitioner
from models.patients import Patient
from models.prescriptions import MedicationRequest

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
    known: list[Illness] = field(default_factory=list)
    """The lasting illnesses found so far."""
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
        """Days of visits, in order and spread over the years, none before birth."""
        first = max(self.first_day, self.person.born + timedelta(days=7))
        span = (self.last_day - first).days
        if span < 1:
            return []
        return [first + timedelta(days=int(span * (place + self.draw.random()) / count)) for place in range(count)]

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
            observation("vital-signs", code, name, when, value=decimal(value, digits), unit=unit),
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
        if acute is None or young or draw.random() < 0.4:
            self.measured(visit, when, "29463-7", "Body weight", weight, "kg", 1)
        if not full and (young or draw.random() < 0.15):
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
                observation(
                    "laboratory",
                    code,
                    measure.name,
                    when,
                    issued=issued,
                    value=found,
                    unit=measure.unit,
                    flag=flag,
                    reference=stated(measure, low, high),
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
                portal_at=issued,
                conclusion=("; ".join(flagged) or "All values within their ranges") + ".",
            ),
        )

    def range_of(self, measure: Measure, when: datetime) -> tuple[Decimal | None, Decimal | None]:
        """The stated range for this person; none for children."""
        if self.person.age(when.date()) < ADULT:
            return None, None
        man = self.person.sex == "male"
        low, high = (ends and decimal(ends[man], measure.digits) for ends in (measure.lows, measure.highs))
        return low, high

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
            elif self.known and self.draw.random() < 0.65:
                self.follow_up(day, self.draw.choice(self.known))
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
        self.known.append(illness)
        self.diagnose(visit, illness, max(onset, self.at(self.person.born, 0)))
        for medicine in self.medicine_for(illness):
            self.prescribe(visit, medicine, illness.name, MedicationRequestStatus.ACTIVE)
        self.vital_signs(visit, start)
        if illness.done:
            self.do(visit, illness.done, start, 20, illness.name)
        if self.draw.random() < 0.75:
            self.laboratory(visit, start + timedelta(minutes=20), self.panel())

    def panel(self) -> tuple[str, ...]:
        """What is asked of the laboratory, knowing what somebody has."""
        moved = [code for illness in self.known for code in illness.moves if code in LABORATORY]
        return tuple(dict.fromkeys((*moved, *(BLOOD_COUNT if HB in moved else ()), *CHEMISTRY)))

    def follow_up(self, day: date, illness: Illness) -> None:
        """How it goes with a lasting illness; now and then in the emergency room, or in a bed."""
        if illness.ward and self.draw.random() < 0.2:
            self.stay(day, illness, lasting=True)
            return
        visit, start = self.consultation(day, illness, "Follow-up")
        self.vital_signs(visit, start)
        if self.person.account or self.draw.random() < 0.45:
            self.laboratory(visit, start + timedelta(minutes=20), self.panel())
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
                if self.person.age(day) >= ADULT and self.draw.random() < 0.4:
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
            self.vital_signs(visit, morning, worst, full=night == 0)
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
                if chance > (0.4 if every_year else 0.16):
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
        if self.person.age(day) < 7:
            return
        adult = self.person.age(day) >= 30
        illness = PNEUMONIA if adult else next(i for i in ACUTE if i.code == "K35.8")
        status = EncounterStatus.IN_PROGRESS
        visit = self.visit("IMP", "Inpatient stay", illness.name, illness.treated_by, start, 0, status)
        self.diagnose(visit, illness, ago(start, 2))
        for medicine in self.medicine_for(illness):
            self.prescribe(visit, medicine, illness.name, MedicationRequestStatus.ACTIVE)
        for night in range(since):
            morning = start + timedelta(hours=1) if night == 0 else self.at(day + timedelta(days=night), 8 * 60 + 10)
            self.vital_signs(visit, morning, illness if night < 3 else None, full=night == 0)
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


def observation(
    category: str,
    code: str,
    name: str,
    when: datetime,
    *,
    issued: datetime | None = None,
    value: Decimal | None = None,
    unit: str | None = None,
    flag: str | None = None,
    reference: Sequence[dict[str, Any]] = (),
    parts: Sequence[dict[str, Any]] = (),
) -> Observation:
    """A LOINC observation. Every column is said, so that all of them go into the database in one statement."""
    return Observation(
        status=ObservationStatus.FINAL,
        category=category,
        code_system=LOINC,
        code=code,
        code_display=name,
        effective_at=when,
        issued_at=issued or when,
        portal_at=issued or when,
        value_quantity=value,
        value_unit=unit,
        interpretation=flag,
        reference_range=list(reference),
        component=list(parts),
    )


def blood_pressure(when: datetime, systolic: int, diastolic: int) -> Observation:
    """The panel with its two numbers."""
    numbers = (("8480-6", "Systolic blood pressure", systolic), ("8462-4", "Diastolic blood pressure", diastolic))
    parts = [
        {
            "code": {"coding": [{"system": LOINC, "code": code, "display": name}], "text": name},
            "valueQuantity": quantity(value, "mm[Hg]"),
        }
        for code, name, value in numbers
    ]
    return observation("vital-signs", "85354-9", "Blood pressure", when, parts=parts)
