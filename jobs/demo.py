"""The demo hospital: three branches in two time zones, their staff, and patients with believable charts.

Everything follows from `seed` and `moment`, and every patient has dice of their own, so that no chart depends on how
many others there are.  It is made through the services, so the gate, the trail and the events see all of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from sqlalchemy import func, select
from sqlalchemy.orm import Session
from tqdm import tqdm

from app import actor, guard
from app.services import accounts, catalogue, clinical, formulary, note_templates, organization, patients
from jobs import demo_laboratory, demo_notes, demo_visits
from jobs.demo_charts import Chart, Hospital
from jobs.demo_illness import DOCTORS
from jobs.demo_people import CHAIN, DIALYSIS_UNIT, ROOMS, SITES, STAFF, Person, dice, everybody
from models.base import now
from models.organization import Branch, Practitioner
from models.patients import Patient

PASSWORD: Final = "wardbook-demo"  # noqa: S105  (everybody is told it; production refuses to start with it)
LOCK: Final = 0x57_42_44_45
"""The advisory lock that keeps two plantings apart."""
BATCH: Final = 25
"""Patients whose charts are written together."""
FORMULARY: Final = Path(__file__).parent / "demo_formulary.csv"


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
    *,
    patients: int = 300,
    seed: int = 2026,
    moment: datetime | None = None,
    say: Callable[[str], None] = aloud,
) -> Planted | None:
    """Make the demo hospital, all of it or nothing; None where there is a hospital already.

    `moment` (aware) is when it is: charts end the day before, and some people come that day.
    """
    begun = time.monotonic()
    with alone(), guard.acting_as(actor.service("demo", channel="cli")), guard.unit_of_work() as session:
        if session.scalars(select(Branch).limit(1)).first() is not None:
            return None
        accounts.seed()
        note_templates.plant()
        hospital = found(session, moment or now())
        formulary.take_in(session, FORMULARY.read_bytes())
        catalogue.bring(session, Path(__file__).with_name("demo_laboratory.csv").read_bytes())
        today = hospital.moment.astimezone(ZoneInfo(SITES[0].time_zone)).date()
        people = everybody(seed, patients, today)
        visits = entries = 0
        everyone: list[tuple[Person, Patient]] = []
        with tqdm(total=len(people), desc="  Demo hospital", unit=" patients", file=sys.stderr, disable=None) as bar:
            for first, last in pairwise([*range(0, len(people), BATCH), len(people)]):
                admitted = [(person, admit(session, person, hospital)) for person in people[first:last]]
                everyone += admitted
                charts = [
                    Chart(person, patient, hospital, dice(seed, "chart", first + place))
                    for place, (person, patient) in enumerate(admitted)
                ]
                written = write(session, charts)
                visits, entries = visits + written[0], entries + written[1]
                bar.update(len(charts))
        visits += demo_visits.fill(session, hospital, everyone, seed)
        entries += demo_notes.write(session, [patient for _, patient in everyone])
        entries += demo_laboratory.write(session, [patient for _, patient in everyone])
    planted = Planted(len(SITES), len(STAFF), len(people), visits, entries, time.monotonic() - begun)
    say(f"  {planted}")
    return planted


@contextmanager
def alone() -> Iterator[None]:
    """Let nobody else plant for a block; the second one waits, and then finds a hospital there."""
    with guard.engine().begin() as connection:
        connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
        yield


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
    named: dict[str, Practitioner] = {}
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
        named[employee.account] = practitioner
        if employee.qualification in DOCTORS:
            doctors.append((employee, practitioner))
    named["trainee"].supervised_by_id = named["doctor"].id
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
        known=True,
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
