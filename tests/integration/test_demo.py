"""The demo hospital: planted once, the same every time, with something of everything."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import psycopg
import pytest
from flask_appbuilder.security.sqla.models import User
from sqlalchemy import func, select

from app import actor, guard, trail
from app.actor import Actor, Origin
from app.errors import Forbidden
from app.services import accounts, clinical, credentials, lab, notes, patients
from jobs import demo
from jobs.demo_charts import interpret
from models.clinical import AllergyIntolerance, Encounter, Observation
from models.lab import CriticalResult, ServiceRequest
from models.migrations import migrate
from models.organization import Branch, Practitioner, Room
from models.patients import Patient
from ops.servers import Servers

MOMENT = datetime(2026, 11, 18, 11, 0, tzinfo=UTC)
"""A Wednesday, late in the morning."""
_numbers = count(1)


def silent(_line: str) -> None:
    """Say nothing."""


@contextmanager
def database(servers: Servers) -> Iterator[str]:
    """A database of its own with the newest schema, connected to and gone afterwards."""
    server, _, _ = servers.database_url.rpartition("/")
    name = f"wardbook_demo_{next(_numbers)}"
    with psycopg.connect(servers.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")
        url = f"{server}/{name}"
        try:
            migrate(url)
            yield url
        finally:
            guard.session.remove()
            guard.engine().dispose()
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def another_database(servers: Servers) -> Iterator[str]:
    """The same beside the one in use, which is connected to again afterwards."""
    mine = guard.engine()
    mine.dispose()
    try:
        with database(servers) as url:
            yield url
    finally:
        guard.connect(mine.url.render_as_string(hide_password=False))


@pytest.fixture(scope="module")
def hospital(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[demo.Planted]:
    """The whole demo hospital; the doctors who write its notes look at their patients, so the trail is open."""
    with database(servers) as url:
        guard.connect(url)
        opened = trail.connect(servers.trail_redis_url, tmp_path_factory.mktemp("spool"))
        planted = demo.plant(moment=MOMENT, say=silent)
        assert planted is not None
        yield planted
        opened.redis.close()


@contextmanager
def looking() -> Iterator[guard.GuardedSession]:
    with guard.acting_as(actor.service("demo", channel="cli")), guard.unit_of_work() as session:
        yield session


def signed_in(session: guard.GuardedSession, username: str) -> Actor:
    user = session.scalars(select(User).where(User.username == username)).one()
    who = guard.who_is(user.id, Origin())
    assert who is not None
    return who


def identities(session: guard.GuardedSession, limit: int) -> list[tuple[object, ...]]:
    people = session.scalars(select(Patient).order_by(Patient.id).limit(limit))
    return [(p.mrn, p.family, p.second_family, p.given, p.birth_date, p.telecom, p.no_known_allergies) for p in people]


def values(session: guard.GuardedSession, patient_id: int) -> list[tuple[object, ...]]:
    of_chart = select(Observation).where(Observation.patient_id == patient_id, Observation.test_id.is_(None))
    rows = session.scalars(of_chart.order_by(Observation.id))  # what the laboratory does, it does today
    return [(row.code, row.effective_at, row.value_quantity, row.interpretation, row.component) for row in rows]


def number_of(session: guard.GuardedSession, model: type) -> int:
    return session.scalar(select(func.count()).select_from(model)) or 0


def test_it_is_a_chain_of_three_in_two_time_zones_with_staff_and_patients(hospital: demo.Planted) -> None:
    with looking() as session:
        branches = session.scalars(select(Branch).order_by(Branch.id)).all()
        assert {branch.time_zone for branch in branches} == {"Europe/Madrid", "Atlantic/Canary"}
        assert {branch.organization.part_of_id for branch in branches} == {branches[0].organization_id - 1}
        assert (len(branches), number_of(session, Practitioner), number_of(session, Patient)) == (3, 27, 300)
        assert number_of(session, Room) > 20
        assert number_of(session, Encounter) == hospital.visits > 600
    assert str(hospital).startswith("Planted 3 branches, 27 staff and 300 patients with ")


def test_a_second_time_changes_nothing(hospital: demo.Planted) -> None:
    with looking() as session:
        before = identities(session, 300), number_of(session, Observation), number_of(session, User)
    assert demo.plant(moment=MOMENT, say=silent) is None
    with looking() as session:
        assert (identities(session, 300), number_of(session, Observation), number_of(session, User)) == before


def test_the_same_seed_makes_the_same_hospital(hospital: demo.Planted, servers: Servers) -> None:
    with looking() as session:
        first = identities(session, 30), values(session, 1), values(session, 25)
    with another_database(servers) as url:
        guard.connect(url)
        assert demo.plant(patients=30, moment=MOMENT, say=silent) is not None
        with looking() as session:
            assert (identities(session, 30), values(session, 1), values(session, 25)) == first


def test_every_account_signs_in_with_its_role(hospital: demo.Planted) -> None:
    with looking() as session:
        assert accounts.demo_accounts_present(session)
        for username, role in accounts.DEMO_ACCOUNTS.items():
            user = session.scalars(select(User).where(User.username == username)).one()
            assert credentials.holds(user.password, demo.PASSWORD)
            who = signed_in(session, username)
            assert who.roles == (role,)
            assert who.branch_id is not None, "everybody has a clock; a patient that of the registering branch"
            assert (who.patient_id is not None) == (username == "patient")


def test_doctors_have_signed_notes_and_one_waits_for_each_kind_of_signature(hospital: demo.Planted) -> None:
    with looking() as session:
        who = signed_in(session, "doctor")
    with guard.acting_as(who):
        waiting = notes.unsigned_for(guard.session())
        assert (len(waiting.late), len(waiting.cosign)) == (1, 1)
        assert notes.waiting_count(guard.session()) == 2
        shown = notes.of_patient(guard.session(), 1)
        assert {note.title for note in shown} == {"Diabetes, quarterly review", "Addendum: Diabetes, quarterly review"}
    assert notes.check_all(lambda _done, _total: None) == notes.Checked(5)


def test_the_patient_account_sees_one_record_only(hospital: demo.Planted) -> None:
    with looking() as session:
        who = signed_in(session, "patient")
    with guard.acting_as(who), guard.unit_of_work() as session:
        assert [patient.name for patient in session.scalars(select(Patient))] == ["Moreno Castro, Isabel"]
        assert clinical.sizes(session, who.patient_id or 0)["medications"] >= 3
        with pytest.raises(Forbidden):
            session.scalars(select(Observation)).all()


def test_the_doctor_finds_people_by_what_is_told_at_a_desk(hospital: demo.Planted) -> None:
    with looking() as session:
        who = signed_in(session, "doctor")
    with guard.acting_as(who), guard.unit_of_work() as session:
        for asked in ("moreno isabel", "Шевчук", "shevchuk dmytro", "nguyen lan", "isabel morreno"):
            assert patients.find(session, asked).patients, asked
        assert len(patients.find(session, "unknown").patients) == 3


def test_all_three_answers_about_allergies_occur(hospital: demo.Planted) -> None:
    with looking() as session:
        listed: dict[int, list[AllergyIntolerance]] = {}
        for allergy in session.scalars(select(AllergyIntolerance)):
            listed.setdefault(allergy.patient_id, []).append(allergy)
        people = session.scalars(select(Patient)).all()
        states = [clinical.allergy_state(patient, listed.get(patient.id, [])) for patient in people]
        assert not [p for p in people if p.no_known_allergies and p.id in listed]
    assert min(states.count(state) for state in ("listed", "none", "unasked")) >= 40


def test_the_index_holds_what_makes_indexes_hard(hospital: demo.Planted) -> None:
    with looking() as session:
        people = session.scalars(select(Patient).order_by(Patient.id)).all()
        assert sum(patient.deceased for patient in people) >= 2
        assert sum(patient.temporary for patient in people) == 3
        assert {patient.birth_precision for patient in people} == {"day", "month", "year"}
        assert [patient for patient in people if patient.birth_date is None and not patient.temporary]
        first, second = people[2], people[3]
        alike = patients.likely_duplicates(
            session, family=first.family, given=first.given, birth_date=first.birth_date, exclude_id=first.id
        )
        assert (alike[0].patient.id, alike[0].reasons) == (second.id, ("same name", "same birth date"))


def test_one_chart_is_long_and_another_is_plausible(hospital: demo.Planted) -> None:
    with looking() as session:
        per_patient: dict[int, int] = {}
        for row in session.scalars(select(Observation).where(Observation.test_id.is_(None))):
            per_patient[row.patient_id] = per_patient.get(row.patient_id, 0) + 1
            assert row.effective_at is not None
            assert row.effective_at <= MOMENT
            assert (row.interpretation is None) == (row.reference_range == [])
        assert max(per_patient.values()) > 500
        sugar = session.scalars(
            select(Observation)
            .where(Observation.patient_id == 1, Observation.code == "4548-4")
            .order_by(Observation.effective_at)
        ).all()
    measured = [row.value_quantity for row in sugar if row.value_quantity is not None]
    assert len(measured) >= 5
    assert measured[0] > measured[-1] > 5
    assert sugar[0].interpretation == "H"


def test_visits_are_over_under_way_and_ahead(hospital: demo.Planted) -> None:
    with looking() as session:
        visits = session.scalars(select(Encounter)).all()
    assert {visit.class_code for visit in visits} == {"AMB", "EMER", "IMP"}
    assert {visit.status for visit in visits} >= {"finished", "in-progress", "planned"}
    for visit in visits:
        assert visit.started_at is not None
        assert (visit.status == "planned") == (visit.started_at > MOMENT)
        assert visit.ended_at is None or visit.ended_at <= MOMENT


def test_a_planting_that_fails_leaves_nothing(
    servers: Servers, hospital: demo.Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = demo.admit

    def lights_out(*arguments: object) -> Patient:
        if next(patience) == 5:
            raise KeyboardInterrupt
        return admit(*arguments)  # type: ignore[arg-type]

    patience = count()
    with another_database(servers) as url:
        guard.connect(url)
        monkeypatch.setattr(demo, "admit", lights_out)
        with pytest.raises(KeyboardInterrupt):
            demo.plant(patients=10, moment=MOMENT, say=silent)
        with looking() as session:
            assert number_of(session, Branch) == number_of(session, Patient) == number_of(session, User) == 0
        monkeypatch.undo()
        assert demo.plant(patients=10, moment=MOMENT, say=silent) is not None


@pytest.mark.parametrize(("found", "flag"), [("3.4", "L"), ("3.5", "N"), ("5.1", "N"), ("5.2", "H")], ids=str)
def test_a_limit_itself_is_normal(found: str, flag: str) -> None:
    from decimal import Decimal

    assert interpret(Decimal(found), Decimal("3.5"), Decimal("5.1")) == flag
    assert interpret(Decimal(found), None, None) is None


def test_nobody_is_asked_to_plant_in_the_past(tmp_path: Path) -> None:
    """Everybody is born before today, however few or many there are."""
    from jobs.demo_people import everybody

    today = MOMENT.date()
    people = everybody(7, 500, today)
    assert len(people) == 500
    assert all(person.born < today for person in people)
    assert everybody(7, 60, today) == people[:60]


def test_the_laboratory_has_work_at_every_stage(hospital: demo.Planted) -> None:
    with looking() as session:
        orders = session.scalars(select(ServiceRequest).where(ServiceRequest.category == "laboratory")).all()
        steps = {standing.step.value for standing in lab.standings(session, lab.open_orders(session))}
        assert steps == {"collect", "receive", "enter", "verify", "release"}
        assert {order.status for order in orders} == {"active", "completed"}
        (critical,) = session.scalars(select(CriticalResult)).all()
        assert critical.acknowledged_at is None
