"""Visits as they happen: every way from state to state, who may, and what finishing one causes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from app import guard
from app.actor import service
from app.errors import (
    Conflict,
    DraftsLeft,
    Forbidden,
    IllegalTransition,
    Invalid,
    NotAClinician,
    NotFound,
    Refusal,
)
from app.policy import Role, may
from app.services import encounters, notes, scheduling
from app.services.scheduling import Asked
from models.audit import EventOutbox
from models.base import now
from models.clinical import ENCOUNTER_TRANSITIONS, Encounter, EncounterHistory
from models.codes import AppointmentStatus, EncounterStatus
from models.notes import ClinicalNote
from models.patients import Patient
from models.scheduling import Appointment
from tests import factories
from tests.conftest import Browser, csrf_of
from tests.factories import Hospital

pytestmark = pytest.mark.usefixtures("savepoint")
ClientAs = Callable[[str], Browser]
S = EncounterStatus
STEPS: dict[str, Callable[..., Encounter]] = {
    "triage": encounters.triage,
    "start": encounters.start,
    "leave": encounters.on_leave,
    "finish": encounters.finish,
    "cancel": encounters.cancel,
    "withdraw": encounters.withdraw,
}
LEADS = {
    "triage": S.TRIAGED,
    "start": S.IN_PROGRESS,
    "leave": S.ONLEAVE,
    "finish": S.FINISHED,
    "cancel": S.CANCELLED,
    "withdraw": S.ENTERED_IN_ERROR,
}


def do(step: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    with guard.unit_of_work() as session:
        return step(session, *arguments, **more)


def opened(patient_id: int, **more: Any) -> int:
    return int(do(encounters.open_directly, patient_id=patient_id, **more).id)


def state(encounter_id: int) -> str:
    """As the database has it, inside the test's own transaction."""
    found = (
        guard.session()
        .connection()
        .execute(select(Encounter.__table__.c.status).where(Encounter.__table__.c.id == encounter_id))
    )
    return str(found.scalar_one())


def counted(model: Any, *criteria: Any) -> int:
    """Rows as the test's own transaction has them."""
    table = model.__table__
    return len(guard.session().connection().execute(select(table.c.id).where(*criteria)).all())


def put(hospital: Hospital, status: str, patient: int = 4) -> int:
    """A visit in some state, however it came there."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        visit = Encounter(
            patient_id=hospital.patients[patient],
            status=status,
            class_code="AMB",
            started_at=now() - timedelta(hours=1),
            branch_id=hospital.branches[0],
            practitioner_id=hospital.staff["doctor"],
        )
        session.add(visit)
        session.flush()
        return int(visit.id)


# ---- opening -----------------------------------------------------------------------------------------------------


def test_a_doctor_opens_a_visit_which_is_theirs_and_under_way(acting: Any, hospital: Hospital) -> None:
    with acting("doctor"):
        key = opened(hospital.patients[4], class_code="EMER", reason="  Fell   from a ladder ")
        row = encounters.show(guard.session(), key)
        assert (row.status, row.class_code, row.reason) == ("in-progress", "EMER", "Fell from a ladder")
        assert (row.practitioner_id, row.branch_id) == (hospital.staff["doctor"], hospital.branches[0])
        assert row.service_provider_id is not None
        assert row.started_at is not None
        assert abs(row.started_at - now()) < timedelta(minutes=1)
        mine = encounters.open_for(guard.session(), hospital.patients[4])
        assert mine is not None
        assert mine.id == key


def test_a_nurse_opens_one_for_whoever_starts_it_and_cannot_go_on_with_it(acting: Any, hospital: Hospital) -> None:
    with acting("nurse"):
        key = opened(hospital.patients[4], status=S.ARRIVED)
        assert encounters.open_for(guard.session(), hospital.patients[4]) is None
        here = encounters.here_for(guard.session(), hospital.patients[4])
        assert here is not None
        assert here.id == key
        for step in STEPS.values():
            with pytest.raises(Forbidden):
                do(step, key)
        assert state(key) == "arrived"
    with acting("doctor"):
        do(encounters.start, key)
        assert encounters.show(guard.session(), key).practitioner_id == hospital.staff["doctor"]


def test_a_planned_visit_begins_when_it_is_started(acting: Any, hospital: Hospital) -> None:
    with acting("doctor"):
        key = opened(hospital.patients[4], status=S.PLANNED, planned_at=now() + timedelta(days=3))
        assert list(encounters.open_of(guard.session(), hospital.patients[4])) == []
        do(encounters.start, key)
        row = encounters.show(guard.session(), key)
        assert row.started_at is not None
        assert row.started_at < now() + timedelta(minutes=1)
        do(encounters.finish, key)
        assert [stretch.status for stretch in encounters.history(guard.session(), row)] == [
            "planned",
            "in-progress",
            "finished",
        ]


@pytest.mark.parametrize(
    ("more", "refusal", "field"),
    [
        ({"class_code": "XYZ"}, Invalid, "class_code"),
        ({"status": "finished"}, Invalid, "status"),
        ({"status": "planned"}, Invalid, "planned_at"),
        ({"status": "planned", "planned_at": now() - timedelta(hours=1)}, Invalid, "planned_at"),
        ({"status": "planned", "planned_at": now() + timedelta(days=900)}, Invalid, "planned_at"),
        ({"reason": "a" * 501}, Invalid, "reason"),
        ({"type_display": "a\x00b"}, Invalid, "type_display"),
        ({"patient_id": 10**9}, NotFound, None),
    ],
)
def test_what_does_not_hold_is_refused_by_name(
    acting: Any, hospital: Hospital, more: dict[str, Any], refusal: type[Refusal], field: str | None
) -> None:
    with acting("doctor"):
        before = counted(Encounter)
        with pytest.raises(refusal) as refused:
            opened(**{"patient_id": hospital.patients[4], **more})
        assert refused.value.field == field
        assert counted(Encounter) == before


def test_nothing_is_opened_for_the_dead_or_in_a_closed_record_or_twice(acting: Any, hospital: Hospital) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.get_one(Patient, hospital.patients[6]).deceased = True
        session.get_one(Patient, hospital.patients[7]).active = False
    with acting("doctor"):
        before = counted(Encounter)
        for number in (6, 7):
            with pytest.raises(Invalid) as refused:
                opened(hospital.patients[number])
            assert refused.value.field == "patient"
        opened(hospital.patients[4])
        with pytest.raises(Conflict):
            opened(hospital.patients[4])
        assert counted(Encounter) == before + 1


@pytest.mark.parametrize("username", ["lab", "pharmacist", "billing", "privacy", "patient", "admin"])
def test_nobody_else_opens_a_visit(acting: Any, hospital: Hospital, username: str) -> None:
    with acting(username):
        with pytest.raises(Forbidden):
            opened(hospital.patients[4])
        assert counted(Encounter, Encounter.__table__.c.patient_id == hospital.patients[4]) == 0


def test_who_is_nobody_of_the_staff_opens_none(hospital: Hospital) -> None:
    with guard.acting_as(service("demo")), pytest.raises(NotAClinician):
        opened(hospital.patients[4])


# ---- states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begins", list(S))
@pytest.mark.parametrize("step", STEPS)
def test_only_lawful_ways_are_open(acting: Any, hospital: Hospital, begins: str, step: str) -> None:
    key = put(hospital, begins)
    lawful = LEADS[step] in ENCOUNTER_TRANSITIONS[S(begins)] or (step == "withdraw" and begins != S.ENTERED_IN_ERROR)
    with acting("doctor"):
        if lawful:
            do(STEPS[step], key)
            assert state(key) == LEADS[step]
            past = counted(EncounterHistory, EncounterHistory.__table__.c.encounter_id == key)
            assert past == (begins != LEADS[step])
        else:
            with pytest.raises(IllegalTransition):
                do(STEPS[step], key)
            assert state(key) == begins
            assert counted(EncounterHistory, EncounterHistory.__table__.c.encounter_id == key) == 0


def test_a_visit_there_is_none_of_is_not_found(acting: Any) -> None:
    with acting("doctor"):
        for step in STEPS.values():
            with pytest.raises(NotFound):
                do(step, 10**9)


def test_the_database_keeps_what_is_over(acting: Any, hospital: Hospital) -> None:
    key = put(hospital, S.FINISHED)
    with acting("doctor"):
        with pytest.raises(IllegalTransition), guard.unit_of_work() as session:
            session.get_one(Encounter, key).status = S.IN_PROGRESS
        guard.session().rollback()
        assert state(key) == "finished"


def test_leave_does_not_take_the_visit_from_who_has_it(acting: Any, hospital: Hospital, granted: Any) -> None:
    granted(Role.NURSE, Encounter=may("read create update"))
    key = put(hospital, S.ONLEAVE)
    with acting("nurse"):
        do(encounters.start, key)
        assert encounters.show(guard.session(), key).practitioner_id == hospital.staff["doctor"]


# ---- finishing ---------------------------------------------------------------------------------------------------


def finished_events(key: int) -> list[dict[str, Any]]:
    table = EventOutbox.__table__
    rows = guard.session().connection().execute(select(table.c.payload).where(table.c.name == "EncounterFinished"))
    return [payload for (payload,) in rows if payload["encounter_id"] == key]


def test_finishing_says_so_once_and_fulfils_the_appointment(acting: Any, hospital: Hospital) -> None:
    practice = factories.open_practice(hospital, branch=0)
    with acting("doctor"):
        start = now() + timedelta(minutes=20)
        with guard.unit_of_work() as session:
            visit = scheduling.book(
                session,
                Asked(
                    patient_id=hospital.patients[4],
                    visit_type_id=practice.visit,
                    practitioner_id=hospital.staff["doctor"],
                    start_at=start,
                    override_reason="whatever the hour is",
                ),
            )
            scheduling.check_in(session, visit.id)
        mine = encounters.open_for(guard.session(), hospital.patients[4])
        assert mine is not None
        assert (mine.id, mine.status) == (visit.encounter_id, "arrived")
        with pytest.raises(IllegalTransition):
            do(encounters.finish, mine.id)
        assert finished_events(mine.id) == []
        do(encounters.start, mine.id)
        do(encounters.finish, mine.id)
        assert finished_events(mine.id) == [{"encounter_id": mine.id, "patient_id": hospital.patients[4]}]
        again = guard.session().get_one(Appointment, visit.id)
        assert again.status == AppointmentStatus.FULFILLED
        ended = encounters.show(guard.session(), mine.id)
        assert ended.ended_at is not None
        with pytest.raises(IllegalTransition):
            do(encounters.finish, mine.id)
        assert len(finished_events(mine.id)) == 1


def test_a_note_that_is_not_signed_is_asked_about(acting: Any, hospital: Hospital) -> None:
    with acting("doctor"):
        key = opened(hospital.patients[4])
        note = do(notes.begin, patient_id=hospital.patients[4], template="free")
        assert note.encounter_id == key
        with pytest.raises(DraftsLeft):
            do(encounters.finish, key)
        assert state(key) == "in-progress"
        assert finished_events(key) == []
        do(encounters.finish, key, insist=True)
        assert state(key) == "finished"
        assert counted(ClinicalNote, ClinicalNote.__table__.c.encounter_id == key) == 1


def test_who_sees_no_notes_is_not_told_of_any(acting: Any, hospital: Hospital, granted: Any) -> None:
    granted(Role.NURSE, Encounter=may("read create update"))
    with acting("doctor"):
        key = opened(hospital.patients[4])
        do(notes.begin, patient_id=hospital.patients[4], template="free")
    with acting("nurse"):
        do(encounters.finish, key)
        assert state(key) == "finished"


# ---- on screen ---------------------------------------------------------------------------------------------------


@pytest.fixture
def doctor(app: Flask, client_as: ClientAs) -> Browser:
    del app
    return client_as("doctor")


class TestPages:
    """Through the browser."""

    def test_a_visit_is_opened_brought_on_and_finished(self, doctor: Browser, hospital: Hospital) -> None:
        patient = hospital.patients[8]
        answer = doctor.submit(f"/patients/{patient}/visits/new/", {"type_display": "Wound care"})
        assert answer.status_code == 302
        address = answer.headers["Location"]
        page = doctor.page(address)
        assert "Wound care" in page
        assert "Hospital Norte" in page
        chart = doctor.page(f"/patients/{patient}/")
        assert 'class="visit-bar"' in chart
        for word in ("Vital signs", "Diagnose", "Order", "Finish"):
            assert word in chart
        refused = doctor.submit(f"/patients/{patient}/visits/new/", {"type_display": "Once more"})
        assert refused.status_code == 409
        assert "under way already" in refused.text
        assert 'value="Once more"' in refused.text
        token = csrf_of(page)
        assert doctor.post(f"{address}triage", data={"csrf_token": token}).status_code == 409
        assert doctor.post(f"{address}dance", data={"csrf_token": token}).status_code == 404
        assert doctor.post(f"{address}finish", data={"csrf_token": token}).status_code == 302
        key = int(address.strip("/").split("/")[-1])
        assert state(key) == "finished"
        again = doctor.post(f"{address}finish", data={"csrf_token": token})
        assert again.status_code == 409
        assert 'class="visit-bar"' not in doctor.page(f"/patients/{patient}/")

    def test_finishing_past_a_draft_is_asked_once_more(self, doctor: Browser, hospital: Hospital) -> None:
        patient = hospital.patients[9]
        address = doctor.submit(f"/patients/{patient}/visits/new/").headers["Location"]
        key = int(address.strip("/").split("/")[-1])
        token = csrf_of(doctor.page(address))
        doctor.post(f"/patients/{patient}/notes/new", data={"csrf_token": token, "template": "free", "encounter": key})
        warned = doctor.post(f"{address}finish", data={"csrf_token": token})
        assert warned.status_code == 409
        assert "Finish all the same" in warned.text
        assert state(key) == "in-progress"
        done = doctor.post(f"{address}finish", data={"csrf_token": token, "insist": "1"})
        assert done.status_code == 302
        assert state(key) == "finished"

    def test_who_may_not_change_visits_has_no_buttons(self, client_as: ClientAs, hospital: Hospital) -> None:
        for username in ("nurse", "billing", "reception"):
            client = client_as(username)
            page = client.page(f"/encounters/{hospital.rows['Encounter']}/")
            assert "/finish" not in page
            assert "/withdraw" not in page
            token = csrf_of(client.page("/me/"))
            answer = client.post(f"/encounters/{hospital.rows['Encounter']}/withdraw", data={"csrf_token": token})
            assert answer.status_code == 403
        assert state(hospital.rows["Encounter"]) == "finished"
        for username in ("lab", "pharmacist", "privacy"):
            assert client_as(username).get(f"/encounters/{hospital.rows['Encounter']}/").status_code == 403

    def test_the_reason_is_kept_from_the_desk(self, client_as: ClientAs, hospital: Hospital) -> None:
        address = f"/encounters/{hospital.rows['Encounter']}/"
        assert factories.REASON in client_as("doctor").page(address)
        page = client_as("reception").page(address)
        assert factories.REASON not in page
        assert "not shown to your role" in page
