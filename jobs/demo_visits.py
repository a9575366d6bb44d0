"""The demo's calendar: who works when, the kinds of visits, and the visits of a week gone by and two to come."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.services import organization, schedules, waitlist
from jobs.demo_charts import Hospital
from jobs.demo_illness import (
    CARDIOLOGIST,
    DOCTORS,
    EMERGENCY,
    FAMILY,
    INTERNIST,
    NEPHROLOGIST,
    ORTHOPAEDIC,
    PAEDIATRICIAN,
    SURGEON,
)
from jobs.demo_people import SITES, Person, dice
from models.clinical import Encounter
from models.codes import AppointmentStatus, CancelationReason, EncounterStatus
from models.organization import Branch, Practitioner, Room
from models.patients import Patient
from models.scheduling import Appointment, Equipment, QueueNumber, VisitType, WorkingHours

NURSE: Final = "Nurse"
DAYS_BEFORE: Final = 7
DAYS_AFTER: Final = 14
FULL: Final = 0.65
"""How much of the time to come is taken."""
PAST: Final = 0.4
"""Of that, of the days gone by: the demo's charts have visits of their own then."""
STEP: Final = timedelta(minutes=10)

ROOMS: Final = (
    ("Consulting room 4", "Consulting room"),
    ("Consulting room 5", "Consulting room"),
    ("Consulting room 6", "Consulting room"),
    ("Treatment room", "Treatment room"),
    ("Ultrasound room", "Imaging"),
)
EQUIPMENT: Final = (("Ultrasound 1", "Ultrasound"), ("ECG cart", "ECG"))
CONSULTING: Final = "Consulting room"


@dataclass(frozen=True)
class Kind:
    """A kind of visit: how long it is, who does it, in which kind of room, with what, and what people say they want."""

    name: str
    minutes: int
    who: tuple[str, ...]
    room: str = CONSULTING
    equipment: str = ""
    before: int = 0
    after: int = 0
    share: int = 10
    """How often, beside the other kinds of the same people."""
    reasons: tuple[str, ...] = ("",)


SEEING: Final = tuple(title for title in DOCTORS if title != EMERGENCY)
KINDS: Final = (
    Kind("New patient", 40, SEEING, share=20, reasons=("", "Sent by another doctor", "Second opinion", "New here")),
    Kind("Follow-up", 20, SEEING, share=55, reasons=("", "", "Results", "Renew prescription", "As agreed")),
    Kind("Telephone visit", 15, SEEING, room="", share=10, reasons=("", "Results by phone", "Question")),
    Kind("Urgent visit", 20, (EMERGENCY, FAMILY, PAEDIATRICIAN), share=25, reasons=("Pain", "Fever", "Fell", "Cough")),
    Kind("Vaccination", 10, (NURSE,), room="Treatment room", share=35, reasons=("", "Influenza", "Travel")),
    Kind("Blood sample", 10, (NURSE,), room="Treatment room", share=45, reasons=("", "Fasting")),
    Kind("Dressing change", 20, (NURSE,), room="Treatment room", share=20),
    Kind(
        *("Ultrasound", 30, (CARDIOLOGIST, INTERNIST, NEPHROLOGIST), "Imaging", "Ultrasound"),
        after=10,
        share=15,
        reasons=("", "Check", "Before surgery"),
    ),
    Kind("Child check-up", 30, (PAEDIATRICIAN,), share=40),
    Kind("Minor surgery", 60, (SURGEON, ORTHOPAEDIC), "Theatre", before=10, after=20, share=20),
)

Week = dict[int, tuple[tuple[int, int], ...]]

# Weekday -> from, to (hours); shifts differ, as they do.
EARLY: Final[Week] = dict.fromkeys(range(1, 6), ((8, 15),))
LATE: Final[Week] = dict.fromkeys(range(1, 6), ((13, 20),))
SPLIT: Final[Week] = {**dict.fromkeys(range(1, 5), ((9, 13), (16, 19))), 5: ((9, 14),)}
TURNS: Final[Week] = {1: ((8, 15),), 2: ((13, 20),), 3: ((8, 15),), 4: ((13, 20),), 5: ((8, 14),)}
ALWAYS: Final[Week] = dict.fromkeys(range(1, 8), ((8, 22),))
SATURDAYS: Final[Week] = {**EARLY, 6: ((9, 13),)}
WEEKENDS: Final[Week] = {**LATE, 6: ((10, 18),), 7: ((10, 18),)}

HOURS: Final[dict[str, tuple[tuple[str, Week], ...]]] = {
    "Ruiz": (("MAD", {1: ((8, 15),), 2: ((8, 15),), 3: ((8, 15),), 4: ((8, 15),)}), ("AGP", {5: ((10, 15),)})),
    "Herrera": (("MAD", TURNS),),
    "Beltrán": (("MAD", SPLIT),),
    "Ionescu": (("MAD", ALWAYS),),
    "Cano": (("MAD", {1: ((8, 15),), 3: ((8, 15),), 5: ((8, 15),)}), ("AGP", {2: ((9, 15),)})),
    "Vargas": (("AGP", WEEKENDS),),
    "Peralta": (("AGP", EARLY),),
    "Whitaker": (("AGP", ALWAYS),),
    "Santana": (("LPA", SPLIT),),
    "Quintero": (("LPA", WEEKENDS),),
    "Vogel": (("LPA", EARLY),),
    "Ortega": (("MAD", EARLY),),
    "Zieliński": (("MAD", WEEKENDS),),
    "Luque": (("AGP", SATURDAYS),),
    "Medina": (("LPA", SATURDAYS),),
}
"""Family name -> branch and week, of everybody who sees patients."""
ON_LEAVE: Final = "Herrera"

S = AppointmentStatus


@dataclass
class Diary:
    """What is taken, while the visits are made: by doctor, room, equipment and patient."""

    taken: dict[tuple[str, int], list[tuple[datetime, datetime]]] = field(default_factory=lambda: defaultdict(list))

    def free(self, whose: tuple[str, int], since: datetime, until: datetime) -> bool:
        """Whether somebody or something is free for a stretch of time."""
        return all(ends <= since or begins >= until for begins, ends in self.taken[whose])

    def take(self, whose: tuple[str, int], since: datetime, until: datetime) -> None:
        """It is not free any longer."""
        self.taken[whose].append((since, until))


@dataclass
class House:
    """What visits are made of, found once."""

    kinds: dict[str, VisitType]
    rooms: dict[tuple[int, str], list[Room]]
    equipment: dict[tuple[int, str], list[Equipment]]
    staff: dict[str, Practitioner]
    patients: dict[int, list[tuple[Person, Patient]]]
    """By the branch that registered them, but those who have died or are not known."""


def fill(session: Session, hospital: Hospital, people: Sequence[tuple[Person, Patient]], seed: int) -> int:
    """Hours, kinds of visits, and visits around the hospital's moment; gives how many of them became encounters."""
    house = furnish(session, hospital, people)
    today = hospital.moment.astimezone(ZoneInfo(SITES[0].time_zone)).date()
    away = set_hours(session, hospital, house, today)
    made: list[tuple[Appointment, Encounter | None]] = []
    diary = Diary()
    for family, places in HOURS.items():
        practitioner = house.staff.get(family)
        if practitioner is None:
            continue
        for code, week in places:
            branch = hospital.branches[code]
            for ago in range(-DAYS_BEFORE, DAYS_AFTER + 1):
                day = today + timedelta(days=ago)
                if away(practitioner, branch, day):
                    continue
                draw = dice(seed, "visits", family, code, ago)
                for since, until in shifts(week, day, branch):
                    made += list(_shift(draw, house, diary, practitioner, branch, since, until, hospital.moment))
    _number(session, hospital, [visit for visit, _ in made])
    encounters = [encounter for _, encounter in made if encounter is not None]
    session.add_all(encounters)
    session.flush()
    for visit, encounter in made:
        visit.encounter_id = encounter.id if encounter is not None else None
    session.add_all([visit for visit, _ in made])
    session.flush()
    queue_up(session, hospital, house, seed)
    return len(encounters)


def queue_up(session: Session, hospital: Hospital, house: House, seed: int) -> None:
    """A few people at each branch who would come sooner."""
    for code, branch in hospital.branches.items():
        draw = dice(seed, "waiting", code)
        known = house.patients[branch.id]
        for _, patient in draw.sample(known, min(5, len(known))):
            waitlist.join(
                session,
                patient_id=patient.id,
                visit_type_id=house.kinds[draw.choice(("New patient", "Follow-up", "Ultrasound"))].id,
                branch_id=branch.id,
                priority=draw.choice((3, 5, 5, 5, 7)),
                note=draw.choice(("", "", "Mornings only", "Lives nearby, can come at once")),
            )


# ---- what there is -----------------------------------------------------------------------------------------------


def furnish(session: Session, hospital: Hospital, people: Sequence[tuple[Person, Patient]]) -> House:
    """Rooms, equipment and kinds of visits."""
    equipment: dict[tuple[int, str], list[Equipment]] = defaultdict(list)
    for branch in hospital.branches.values():
        for name, use in ROOMS:
            organization.furnish_room(session, branch=branch, name=name, kind=use)
        for name, use in EQUIPMENT:
            equipment[branch.id, use].append(schedules.install(session, branch=branch, name=name, kind=use))
    rooms: dict[tuple[int, str], list[Room]] = defaultdict(list)
    for room in session.scalars(select(Room).order_by(Room.id)):
        rooms[room.branch_id, room.kind].append(room)
    employed = session.scalars(select(Practitioner).where(Practitioner.home_branch_id.is_not(None))).all()
    kinds = {}
    for kind in KINDS:
        kinds[kind.name] = schedules.offer_kind(
            session,
            name=kind.name,
            minutes=kind.minutes,
            buffer_before=kind.before,
            buffer_after=kind.after,
            needs_room=bool(kind.room),
            practitioners=[each for each in employed if each.qualification in kind.who],
            rooms=[room for (_, use), found in rooms.items() if kind.room and use == kind.room for room in found],
            equipment=[
                thing
                for (_, use), found in equipment.items()
                if kind.equipment and use == kind.equipment
                for thing in found
            ],
        )
    patients: dict[int, list[tuple[Person, Patient]]] = defaultdict(list)
    for person, patient in people:
        if not patient.deceased and not patient.temporary and patient.registered_at_id is not None:
            patients[patient.registered_at_id].append((person, patient))
    return House(kinds, rooms, equipment, {each.family: each for each in employed}, patients)


@dataclass
class Away:
    """Who is away on which day."""

    holidays: dict[int, date]
    leave: dict[int, tuple[date, date]]

    def __call__(self, practitioner: Practitioner, branch: Branch, day: date) -> bool:
        first, last = self.leave.get(practitioner.id, (date.max, date.min))
        return self.holidays.get(branch.id) == day or first <= day <= last


def set_hours(session: Session, hospital: Hospital, house: House, today: date) -> Away:
    """The weekly hours of everybody, a holiday of each branch, one doctor's leave and an extra session."""
    begun = today - timedelta(days=365)
    for family, places in HOURS.items():
        practitioner = house.staff.get(family)
        if practitioner is None:
            continue
        for code, week in places:
            for weekday, stretches in week.items():
                for opens, closes in stretches:
                    hours = WorkingHours(practitioner_id=practitioner.id, branch_id=hospital.branches[code].id)
                    hours.weekday, hours.starts, hours.ends = weekday, time(opens), time(closes)
                    hours.valid_from = begun
                    session.add(hours)
    away = Away({}, {})
    friday = today + timedelta(days=(4 - today.weekday()) % 7 + 7)
    for branch in hospital.branches.values():
        zone = ZoneInfo(branch.time_zone)
        schedules.set_exception(
            session,
            kind="holiday",
            practitioner_id=None,
            branch_id=branch.id,
            starts_at=datetime.combine(friday, time(), tzinfo=zone),
            ends_at=datetime.combine(friday + timedelta(days=1), time(), tzinfo=zone),
            note="Local holiday",
        )
        away.holidays[branch.id] = friday
    if (resting := house.staff.get(ON_LEAVE)) is not None and resting.home_branch_id is not None:
        first, last = friday - timedelta(days=4), friday - timedelta(days=2)
        zone = ZoneInfo(hospital.branches["MAD"].time_zone)
        schedules.set_exception(
            session,
            kind="leave",
            practitioner_id=resting.id,
            branch_id=None,
            starts_at=datetime.combine(first, time(), tzinfo=zone),
            ends_at=datetime.combine(last + timedelta(days=1), time(), tzinfo=zone),
            note="Congress",
        )
        away.leave[resting.id] = first, last
    if (extra := house.staff.get("Cano")) is not None:
        saturday = friday + timedelta(days=1)
        zone = ZoneInfo(hospital.branches["MAD"].time_zone)
        schedules.set_exception(
            session,
            kind="extra",
            practitioner_id=extra.id,
            branch_id=hospital.branches["MAD"].id,
            starts_at=datetime.combine(saturday, time(9), tzinfo=zone),
            ends_at=datetime.combine(saturday, time(14), tzinfo=zone),
            note="Extra operating list",
        )
    session.flush()
    return away


def shifts(week: Week, day: date, branch: Branch) -> Iterator[tuple[datetime, datetime]]:
    """When somebody works on a day."""
    zone = ZoneInfo(branch.time_zone)
    for opens, closes in week.get(day.isoweekday(), ()):
        yield datetime.combine(day, time(opens), tzinfo=zone), datetime.combine(day, time(closes), tzinfo=zone)


# ---- the visits --------------------------------------------------------------------------------------------------


def _shift(
    draw: random.Random,
    house: House,
    diary: Diary,
    practitioner: Practitioner,
    branch: Branch,
    since: datetime,
    until: datetime,
    moment: datetime,
) -> Iterator[tuple[Appointment, Encounter | None]]:
    """The visits of one shift, one after the other with gaps between them."""
    mine = [kind for kind in KINDS if practitioner.qualification in kind.who]
    chance = FULL * (0.35 if practitioner.qualification in (NURSE, EMERGENCY) else 1)
    at = since
    while at < until and mine:
        kind = draw.choices(mine, [each.share for each in mine])[0]
        span = timedelta(minutes=kind.minutes)
        begins = at + timedelta(minutes=kind.before)
        whole = begins - timedelta(minutes=kind.before), begins + span + timedelta(minutes=kind.after)
        if whole[1] > until:
            break
        at += STEP
        if draw.random() > chance * (PAST if begins.date() < moment.astimezone(begins.tzinfo).date() else 1):
            at += timedelta(minutes=20)
            continue
        visit = _visit(draw, house, diary, kind, practitioner, branch, begins, whole)
        if visit is None:
            continue
        at = whole[1]
        yield visit, _as_it_went(draw, visit, kind, moment)


def _visit(
    draw: random.Random,
    house: House,
    diary: Diary,
    kind: Kind,
    practitioner: Practitioner,
    branch: Branch,
    begins: datetime,
    whole: tuple[datetime, datetime],
) -> Appointment | None:
    """A visit with whatever is free for it; None where something is not."""
    span = timedelta(minutes=kind.minutes)
    if not diary.free(("who", practitioner.id), *whole):
        return None
    room = next((r for r in house.rooms[branch.id, kind.room] if diary.free(("room", r.id), *whole)), None)
    thing = next((e for e in house.equipment[branch.id, kind.equipment] if diary.free(("thing", e.id), *whole)), None)
    if (kind.room and room is None) or (kind.equipment and thing is None):
        return None
    patient = None
    for _ in range(12 if house.patients[branch.id] else 0):
        person, one = draw.choice(house.patients[branch.id])
        fits = (person.age(begins.date()) < 15) == (practitioner.qualification == PAEDIATRICIAN)
        if (fits or practitioner.qualification in (NURSE, EMERGENCY, SURGEON, ORTHOPAEDIC)) and diary.free(
            ("patient", one.id), begins - timedelta(hours=3), begins + span + timedelta(hours=3)
        ):
            patient = one
            break
    if patient is None:
        return None
    diary.take(("who", practitioner.id), *whole)
    diary.take(("patient", patient.id), begins, begins + span)
    if room is not None:
        diary.take(("room", room.id), *whole)
    if thing is not None:
        diary.take(("thing", thing.id), *whole)
    return Appointment(
        status=S.BOOKED,
        patient_id=patient.id,
        branch_id=branch.id,
        visit_type_id=house.kinds[kind.name].id,
        practitioner_id=practitioner.id,
        room_id=room.id if room is not None else None,
        equipment_ids=[thing.id] if thing is not None else [],
        start_at=begins,
        end_at=begins + span,
        buffer_before=kind.before,
        buffer_after=kind.after,
        reason=draw.choice(kind.reasons),
        walk_in=False,
        override_reason="",
        sequence=0,
    )


def _as_it_went(draw: random.Random, visit: Appointment, kind: Kind, moment: datetime) -> Encounter | None:
    """Bring a visit into the state it has come to by now, with its encounter from check-in on."""
    luck, early = draw.random(), timedelta(minutes=draw.randint(2, 18))
    waited, late = timedelta(minutes=draw.randint(4, 34)), timedelta(minutes=draw.randint(0, 8))
    if visit.start_at - early > moment:
        if luck < 0.05:
            _call_off(draw, visit, moment - timedelta(hours=draw.randint(1, 20)))
        return None
    if luck < 0.07 and visit.start_at < moment - timedelta(minutes=25):
        visit.status, visit.ended_at = S.NOSHOW, visit.start_at + timedelta(minutes=25)
        return None
    if luck < 0.11:
        _call_off(draw, visit, visit.start_at - timedelta(hours=draw.randint(2, 40)))
        return None
    if luck > 0.85 and visit.start_at + timedelta(minutes=20) > moment:
        return None  # not here yet
    visit.arrived_at = visit.start_at - early
    seen_at = visit.arrived_at + waited
    if luck > 0.97 and seen_at < moment:
        _call_off(draw, visit, seen_at)  # went home before it was their turn
        return None
    visit.status = S.ARRIVED
    if seen_at > moment:
        return None
    visit.status, visit.checked_in_at = S.CHECKED_IN, seen_at
    over = max(visit.end_at, seen_at + timedelta(minutes=8)) + late
    encounter = Encounter(
        patient_id=visit.patient_id,
        status=EncounterStatus.ARRIVED,
        class_code="AMB",
        branch_id=visit.branch_id,
        practitioner_id=visit.practitioner_id,
        started_at=seen_at,
        reason=visit.reason,
        type_display=kind.name,
    )
    if over <= moment:
        visit.status, visit.ended_at = S.FULFILLED, over
        encounter.status, encounter.ended_at = EncounterStatus.FINISHED, over
    return encounter


def _call_off(draw: random.Random, visit: Appointment, when: datetime) -> None:
    reasons = (CancelationReason.PATIENT, CancelationReason.PATIENT_BETTER, CancelationReason.PATIENT_TRANSPORT)
    visit.status, visit.cancelation_reason = S.CANCELLED, draw.choice(reasons)
    visit.ended_at, visit.sequence = when, 1


def _number(session: Session, hospital: Hospital, visits: Sequence[Appointment]) -> None:
    """Give everybody who came a number of the branch's day, in the order they came."""
    zones = {branch.id: ZoneInfo(branch.time_zone) for branch in hospital.branches.values()}
    last: dict[tuple[int, date], int] = defaultdict(int)
    came = [(visit.arrived_at, visit) for visit in visits if visit.arrived_at is not None]
    for arrived, visit in sorted(came, key=lambda each: (each[0], each[1].practitioner_id)):
        day = visit.branch_id, arrived.astimezone(zones[visit.branch_id]).date()
        last[day] += 1
        visit.queue_number = last[day]
    for (branch_id, on), number in last.items():
        session.add(QueueNumber(branch_id=branch_id, day=on, last=number))
