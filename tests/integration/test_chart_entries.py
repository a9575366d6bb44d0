"""What is written into a chart by hand: who may, what is refused by name, and that a refusal leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import event, select

from app import guard
from app.actor import service
from app.errors import Conflict, Forbidden, IllegalTransition, Invalid, NotAClinician, NotFound, Refusal
from app.policy import Role, may
from app.services import clinical, codes, encounters
from app.services.clinical import DIAGNOSIS, Reaction
from models.base import now
from models.clinical import AllergyIntolerance, Condition, Encounter, Immunization, Observation, Procedure
from models.lab import ServiceRequest
from models.organization import Organization
from models.patients import Patient
from tests.conftest import Browser, csrf_of
from tests.factories import Hospital

pytestmark = pytest.mark.usefixtures("savepoint")
ClientAs = Callable[[str], Browser]
WRITTEN = (Condition, AllergyIntolerance, Observation, Procedure, Immunization, ServiceRequest)
SOMEBODY = 4
"""A patient without a chart."""


def do(step: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    with guard.unit_of_work() as session:
        return step(session, *arguments, **more)


def counts(patient_id: int) -> dict[str, int]:
    """How much there is of everything, as the test's own transaction has it."""
    found = {}
    for model in WRITTEN:
        table = model.__table__
        rows = guard.session().connection().execute(select(table.c.id).where(table.c.patient_id == patient_id))
        found[model.__name__] = len(rows.all())
    return found


def row(model: Any, key: int) -> Any:
    table = model.__table__
    return guard.session().connection().execute(select(table).where(table.c.id == key)).mappings().one()


def none_known(patient_id: int) -> bool | None:
    return row(Patient, patient_id)["no_known_allergies"]  # type: ignore[no-any-return]


@pytest.fixture
def refuses(hospital: Hospital) -> Callable[..., Refusal]:
    """Something is refused, and nothing is written: `refuses(Invalid, clinical.measure, values={...})`."""

    def check(kind: type[Refusal], step: Callable[..., Any], *arguments: Any, **more: Any) -> Refusal:
        before = counts(hospital.patients[SOMEBODY])
        with pytest.raises(kind) as refused:
            do(step, *arguments, **more)
        assert counts(hospital.patients[SOMEBODY]) == before
        return refused.value

    return check


# ---- vital signs -------------------------------------------------------------------------------------------------


def test_vital_signs_are_written_as_they_are_coded(acting: Any, hospital: Hospital) -> None:
    patient = hospital.patients[SOMEBODY]
    typed = {
        "systolic": "128",
        "diastolic": " 82 ",
        "pulse": "0072",
        "temperature": "36,8",
        "saturation": "97",
        "weight": "81.5",
        "height": "180",
        "respiration": "",
    }
    typed["pulse"] = "72"
    with acting("nurse"):
        rows = do(clinical.measure, patient_id=patient, values=typed)
        by_code = {each.code: each for each in rows}
        assert set(by_code) == {"85354-9", "8867-4", "8310-5", "59408-5", "29463-7", "8302-2", "39156-5"}
        pressure = by_code["85354-9"]
        assert pressure.value_quantity is None
        assert [
            (part["code"]["coding"][0]["code"], part["valueQuantity"]["value"], part["valueQuantity"]["code"])
            for part in pressure.component
        ] == [("8480-6", 128, "mm[Hg]"), ("8462-4", 82, "mm[Hg]")]
        assert (by_code["8310-5"].value_quantity, by_code["8310-5"].value_unit) == (Decimal("36.8"), "Cel")
        assert (by_code["39156-5"].value_quantity, by_code["39156-5"].value_unit) == (Decimal("25.2"), "kg/m2")
        for each in rows:
            assert (each.category, each.status, each.interpretation) == ("vital-signs", "final", None)
            assert (each.branch_id, each.recorder_id) == (hospital.branches[0], hospital.staff["nurse"])
            assert each.code_system == "http://loinc.org"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({}, "systolic"),
        ({"pulse": "  "}, "systolic"),
        ({"pulse": "900"}, "pulse"),
        ({"pulse": "0"}, "pulse"),
        ({"pulse": "-72"}, "pulse"),
        ({"pulse": "72 bpm"}, "pulse"),
        ({"pulse": "1e2"}, "pulse"),
        ({"pulse": "NaN"}, "pulse"),
        ({"pulse": "7²"}, "pulse"),
        ({"temperature": "98.6"}, "temperature"),
        ({"temperature": "3.68"}, "temperature"),
        ({"saturation": "101"}, "saturation"),
        ({"systolic": "120"}, "diastolic"),
        ({"diastolic": "80"}, "systolic"),
        ({"systolic": "80", "diastolic": "120"}, "systolic"),
        ({"systolic": "120", "diastolic": "80", "weight": "9999"}, "weight"),
        ({"height": "1.80"}, "height"),
        ({"weight": "600", "height": "20"}, "weight"),
        ({"mood": "5"}, "mood"),
    ],
)
def test_what_no_living_person_has_is_refused_whole(
    acting: Any, hospital: Hospital, refuses: Any, values: dict[str, str], field: str
) -> None:
    with acting("nurse"):
        refusal = refuses(Invalid, clinical.measure, patient_id=hospital.patients[SOMEBODY], values=values)
        assert refusal.field == field


@pytest.mark.parametrize(("name", "vital"), clinical.VITALS.items())
def test_the_limits_themselves_are_possible(acting: Any, hospital: Hospital, name: str, vital: Any) -> None:
    with acting("nurse"):
        for value in (vital.low, vital.high):
            values = {name: str(value)}
            if name == "systolic":
                values["diastolic"] = "20"
            if name == "diastolic":
                values["systolic"] = "300"
            assert do(clinical.measure, patient_id=hospital.patients[SOMEBODY], values=values)


def test_an_impossible_value_is_named_in_the_sentence(acting: Any, hospital: Hospital, refuses: Any) -> None:
    with acting("nurse"):
        values = {"temperature": "98.6"}
        refusal = refuses(Invalid, clinical.measure, patient_id=hospital.patients[SOMEBODY], values=values)
        assert str(refusal) == "Body temperature: 98.6 °C cannot be. Between 20 and 45 it can."


def test_what_was_not_yet_measured_is_refused(acting: Any, hospital: Hospital, refuses: Any) -> None:
    with acting("nurse"):
        for at in (now() + timedelta(hours=2), datetime(1801, 1, 1, tzinfo=UTC)):
            refusal = refuses(
                Invalid, clinical.measure, patient_id=hospital.patients[SOMEBODY], values={"pulse": "70"}, at=at
            )
            assert refusal.field == "at"


def test_the_height_of_before_counts_for_somebody_grown_up(acting: Any, hospital: Hospital) -> None:
    grown, child = hospital.patients[4], hospital.patients[8]  # born 2001 and 2015
    with acting("nurse"):
        for patient, expected in ((grown, {"29463-7", "39156-5"}), (child, {"29463-7"})):
            do(clinical.measure, patient_id=patient, values={"height": "160"})
            rows = do(clinical.measure, patient_id=patient, values={"weight": "50"})
            assert {each.code for each in rows} == expected
        height = next(iter(clinical.measured_lately(guard.session(), child, "vital-signs")))
        assert height.code == "29463-7"


def test_a_vital_sign_is_withdrawn_and_a_result_is_not(acting: Any, hospital: Hospital) -> None:
    with acting("doctor"):
        made = do(clinical.measure, patient_id=hospital.patients[SOMEBODY], values={"pulse": "70"})[0]
        do(clinical.withdraw, "observations", made.id)
        assert row(Observation, made.id)["status"] == "entered-in-error"
        assert clinical.measured_lately(guard.session(), hospital.patients[SOMEBODY], "vital-signs") == []
        with pytest.raises(IllegalTransition):
            do(clinical.withdraw, "observations", made.id)
        with pytest.raises(Forbidden):
            do(clinical.withdraw, "observations", hospital.rows["laboratory"])
        assert row(Observation, hospital.rows["laboratory"])["status"] == "final"


# ---- conditions --------------------------------------------------------------------------------------------------


def test_codes_are_found_by_code_and_by_words() -> None:
    assert codes.find_diagnoses("asthma")[0].code == "J45.909"
    assert codes.find_diagnoses("e11.9")[0].display == "Type 2 diabetes mellitus without complications"
    assert {each.code[:3] for each in codes.find_diagnoses("J45")} == {"J45"}
    assert len(codes.find_diagnoses("fracture")) == codes.BEST
    assert codes.find_diagnoses("HYPERTENSION essential")[0].code == "I10"
    for nothing in ("", " ", "a", "zzzzqq", "%", "'; DROP TABLE condition", "\x00", "(" * 90):
        assert codes.find_diagnoses(nothing) == []


def test_a_condition_goes_from_state_to_state(acting: Any, hospital: Hospital) -> None:
    patient = hospital.patients[SOMEBODY]
    with acting("doctor"):
        made = do(clinical.diagnose, patient_id=patient, code="e119", onset_on=date(2019, 5, 1))
        assert (made.code, made.code_system) == ("E11.9", "http://hl7.org/fhir/sid/icd-10-cm")
        assert (made.branch_id, made.recorder_id) == (hospital.branches[0], hospital.staff["doctor"])
        assert made.onset_at.date() == date(2019, 5, 1)

        def stands() -> tuple[Any, Any, Any]:
            found = row(Condition, made.id)
            return found["clinical_status"], found["verification_status"], found["abatement_at"] is not None

        assert stands() == ("active", "confirmed", False)
        with pytest.raises(Invalid) as refused:
            do(clinical.resolve, made.id, on=date(2019, 4, 30))
        assert refused.value.field == "abated_on"
        with pytest.raises(IllegalTransition):
            do(clinical.reactivate, made.id)
        assert stands() == ("active", "confirmed", False)
        do(clinical.resolve, made.id, on=date(2019, 5, 1))
        assert stands() == ("resolved", "confirmed", True)
        with pytest.raises(IllegalTransition):
            do(clinical.resolve, made.id)
        do(clinical.reactivate, made.id)
        assert stands() == ("recurrence", "confirmed", False)
        do(clinical.refute, made.id)
        assert stands() == ("inactive", "refuted", False)
        with pytest.raises(IllegalTransition):
            do(clinical.refute, made.id)
        do(clinical.reactivate, made.id)
        assert stands() == ("active", "unconfirmed", False)
        do(clinical.withdraw, "conditions", made.id)
        assert stands() == (None, "entered-in-error", False)
        for step in (clinical.resolve, clinical.reactivate, clinical.refute):
            with pytest.raises(IllegalTransition):
                do(step, made.id)


@pytest.mark.parametrize(
    ("more", "refusal", "field"),
    [
        ({"code": "Z99.99"}, Invalid, "code"),
        ({"code": "E11"}, Invalid, "code"),
        ({"code": ""}, Invalid, "code"),
        ({"code": "diabetes"}, Invalid, "code"),
        ({"onset_on": date(2020, 1, 2), "abated_on": date(2020, 1, 1)}, Invalid, "abated_on"),
        ({"onset_on": date(2999, 1, 1)}, Invalid, "onset_on"),
        ({"onset_on": date(1066, 1, 1)}, Invalid, "onset_on"),
        ({"category": "other"}, Invalid, "category"),
        ({"category": DIAGNOSIS}, Invalid, "category"),
        ({"verification": "refuted"}, Invalid, "verification"),
        ({"encounter_id": 10**9}, Invalid, "encounter"),
        ({"patient_id": 10**9}, NotFound, None),
    ],
)
def test_a_condition_that_does_not_hold_is_refused(
    acting: Any, hospital: Hospital, refuses: Any, more: dict[str, Any], refusal: type[Refusal], field: str | None
) -> None:
    with acting("doctor"):
        told = {"patient_id": hospital.patients[SOMEBODY], "code": "E11.9", **more}
        assert refuses(refusal, clinical.diagnose, **told).field == field


def test_nothing_is_written_into_another_patients_visit_or_one_that_was_not(
    acting: Any, hospital: Hospital, refuses: Any
) -> None:
    patient = hospital.patients[SOMEBODY]
    with acting("doctor"):
        mine = do(encounters.open_directly, patient_id=patient)
        do(encounters.withdraw, mine.id)
        for visit in (hospital.rows["Encounter"], mine.id):
            refusal = refuses(Invalid, clinical.diagnose, patient_id=patient, code="I10", encounter_id=visit)
            assert refusal.field == "encounter"


def test_nobody_has_a_condition_twice(acting: Any, hospital: Hospital, refuses: Any) -> None:
    patient = hospital.patients[SOMEBODY]
    with acting("doctor"):
        visit = do(encounters.open_directly, patient_id=patient)
        first = do(clinical.diagnose, patient_id=patient, code="I10")
        refuses(Conflict, clinical.diagnose, patient_id=patient, code="I10")
        told = {"patient_id": patient, "code": "I10", "category": DIAGNOSIS, "encounter_id": visit.id}
        do(clinical.diagnose, **told)
        refuses(Conflict, clinical.diagnose, **told)
        do(clinical.resolve, first.id)
        do(clinical.diagnose, patient_id=patient, code="I10")


# ---- allergies ---------------------------------------------------------------------------------------------------


def test_none_known_listed_and_not_asked_are_three_things(acting: Any, hospital: Hospital, refuses: Any) -> None:
    patient = hospital.patients[SOMEBODY]

    def stands() -> str:
        session = guard.session()
        session.expire_all()
        chart = clinical.open_chart(session, patient)
        return clinical.allergy_state(chart, clinical.part(session, "allergies", patient))

    with acting("nurse"):
        assert (stands(), none_known(patient)) == ("unasked", None)
        do(clinical.say_no_known_allergies, patient)
        assert (stands(), none_known(patient)) == ("none", True)
        do(clinical.say_no_known_allergies, patient, known=False)
        assert (stands(), none_known(patient)) == ("unasked", None)
        do(clinical.say_no_known_allergies, patient)
        made = do(
            clinical.list_allergy,
            patient_id=patient,
            substance=" Penicillin ",
            criticality="high",
            reactions=[Reaction("Hives", "moderate"), Reaction("")],
        )
        assert (stands(), none_known(patient)) == ("listed", None)
        assert made.reaction == [{"manifestation": [{"text": "Hives"}], "severity": "moderate"}]
        assert (made.branch_id, made.recorder_id) == (hospital.branches[0], hospital.staff["nurse"])
        refuses(Conflict, clinical.say_no_known_allergies, patient)
        assert none_known(patient) is None
        do(clinical.refute_allergy, made.id)
        assert stands() == "unasked"
        do(clinical.say_no_known_allergies, patient)
        assert stands() == "none"
        do(clinical.confirm_allergy, made.id)
        assert (stands(), none_known(patient)) == ("listed", None)


def test_an_allergy_goes_from_state_to_state(acting: Any, hospital: Hospital) -> None:
    with acting("nurse"):
        made = do(
            clinical.list_allergy, patient_id=hospital.patients[SOMEBODY], substance="Latex", category=["environment"]
        )

        def stands() -> tuple[Any, Any]:
            found = row(AllergyIntolerance, made.id)
            return found["clinical_status"], found["verification_status"]

        assert stands() == ("active", "unconfirmed")
        do(clinical.confirm_allergy, made.id)
        assert stands() == ("active", "confirmed")
        with pytest.raises(IllegalTransition):
            do(clinical.confirm_allergy, made.id)
        do(clinical.resolve_allergy, made.id)
        assert stands() == ("resolved", "confirmed")
        with pytest.raises(IllegalTransition):
            do(clinical.resolve_allergy, made.id)
        do(clinical.refute_allergy, made.id)
        assert stands() == ("inactive", "refuted")
        do(clinical.withdraw, "allergies", made.id)
        assert stands() == (None, "entered-in-error")
        for step in (clinical.confirm_allergy, clinical.refute_allergy, clinical.resolve_allergy):
            with pytest.raises(IllegalTransition):
                do(step, made.id)
        assert stands() == (None, "entered-in-error")


@pytest.mark.parametrize(("clinical_status", "verification"), [(None, "confirmed"), ("active", "entered-in-error")])
def test_the_database_keeps_ait_1_and_ait_2(
    hospital: Hospital, refuses: Any, clinical_status: str | None, verification: str
) -> None:
    def written(session: Any) -> None:
        session.add(
            AllergyIntolerance(
                patient_id=hospital.patients[SOMEBODY],
                code_display="x",
                clinical_status=clinical_status,
                verification_status=verification,
            )
        )
        session.flush()

    with guard.acting_as(service("demo")):
        refuses(Invalid, written)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"substance": ""}, "substance"),
        ({"substance": "a"}, "substance"),
        ({"substance": "NKDA"}, "substance"),
        ({"substance": "No known drug allergies"}, "substance"),
        ({"substance": "None"}, "substance"),
        ({"substance": "x" * 201}, "substance"),
        ({"substance": "pen\x00icillin"}, "substance"),
        ({"category": []}, "category"),
        ({"category": ["drug"]}, "category"),
        ({"type": "dislike"}, "type"),
        ({"criticality": "severe"}, "criticality"),
        ({"verification": "presumed"}, "verification"),
        ({"verification": "entered-in-error"}, "verification"),
        ({"reactions": [Reaction("Hives", "fatal")]}, "reaction"),
        ({"reactions": [Reaction("", "severe")]}, "reaction"),
    ],
)
def test_an_allergy_that_does_not_hold_is_refused(
    acting: Any, hospital: Hospital, refuses: Any, more: dict[str, Any], field: str
) -> None:
    with acting("nurse"):
        do(clinical.say_no_known_allergies, hospital.patients[SOMEBODY])
        told = {"patient_id": hospital.patients[SOMEBODY], "substance": "Peanut", **more}
        assert refuses(Invalid, clinical.list_allergy, **told).field == field
        assert none_known(hospital.patients[SOMEBODY]) is True


def test_nothing_is_listed_twice(acting: Any, hospital: Hospital, refuses: Any) -> None:
    patient = hospital.patients[SOMEBODY]
    with acting("doctor"):
        made = do(clinical.list_allergy, patient_id=patient, substance="Ibuprofen")
        refuses(Conflict, clinical.list_allergy, patient_id=patient, substance="IBUPROFEN ")
        do(clinical.withdraw, "allergies", made.id)
        do(clinical.list_allergy, patient_id=patient, substance="ibuprofen")


# ---- the rest ----------------------------------------------------------------------------------------------------


def test_procedures_vaccines_and_orders_are_written(acting: Any, hospital: Hospital) -> None:
    patient = hospital.patients[SOMEBODY]
    with acting("doctor"):
        visit = do(encounters.open_directly, patient_id=patient)
        done = do(clinical.record_procedure, patient_id=patient, what="Suture", code="80146002", encounter_id=visit.id)
        assert (done.code_system, done.status, done.encounter_id) == ("http://snomed.info/sct", "completed", visit.id)
        given = do(clinical.immunise, patient_id=patient, code="140", lot_number="AB12", elsewhere=True)
        assert (given.code_display, given.primary_source) == ("Influenza, seasonal, injected", False)
        named = do(clinical.immunise, patient_id=patient, vaccine="Something new")
        assert (named.code, named.code_system) == (None, None)
        wanted = do(clinical.order, patient_id=patient, what="Full blood count", code="58410-2", priority="stat")
        assert (wanted.requester_id, wanted.branch_id) == (hospital.staff["doctor"], hospital.branches[0])
        with pytest.raises(Invalid) as refused:
            do(clinical.revoke, wanted.id, reason=" ")
        assert refused.value.field == "reason"
        assert row(ServiceRequest, wanted.id)["status"] == "active"
        do(clinical.revoke, wanted.id, reason="Ordered twice")
        assert row(ServiceRequest, wanted.id)["status_reason"] == "Ordered twice"
        with pytest.raises(IllegalTransition):
            do(clinical.revoke, wanted.id, reason="Once more")
        for kind, made in (("procedures", done), ("immunisations", given)):
            do(clinical.withdraw, kind, made.id)
            assert row(type(made), made.id)["status"] == "entered-in-error"


@pytest.mark.parametrize(
    ("step", "more", "field"),
    [
        (clinical.record_procedure, {"what": ""}, "what"),
        (clinical.record_procedure, {"what": "Suture", "code": "80146003"}, "code"),
        (clinical.record_procedure, {"what": "Suture", "code": "suture"}, "code"),
        (clinical.record_procedure, {"what": "Suture", "at": datetime(2999, 1, 1, tzinfo=UTC)}, "at"),
        (clinical.immunise, {}, "vaccine"),
        (clinical.immunise, {"code": "9999"}, "code"),
        (clinical.order, {"what": " "}, "what"),
        (clinical.order, {"what": "Blood", "category": "lunch"}, "category"),
        (clinical.order, {"what": "Blood", "priority": "yesterday"}, "priority"),
        (clinical.order, {"what": "Blood", "code": "58410-3"}, "code"),
        (clinical.order, {"what": "Blood", "note": "x" * 1001}, "note"),
    ],
)
def test_what_does_not_hold_is_refused_by_name(
    acting: Any, hospital: Hospital, refuses: Any, step: Any, more: dict[str, Any], field: str
) -> None:
    with acting("doctor"):
        assert refuses(Invalid, step, patient_id=hospital.patients[SOMEBODY], **more).field == field


WRITERS: dict[str, tuple[Callable[..., Any], dict[str, Any], set[str]]] = {
    "vitals": (clinical.measure, {"values": {"pulse": "70"}}, {"doctor", "nurse"}),
    "condition": (clinical.diagnose, {"code": "I10"}, {"doctor"}),
    "allergy": (clinical.list_allergy, {"substance": "Peanut"}, {"doctor", "nurse"}),
    "procedure": (clinical.record_procedure, {"what": "Suture"}, {"doctor"}),
    "immunisation": (clinical.immunise, {"code": "140"}, {"doctor"}),
    "order": (clinical.order, {"what": "Blood"}, {"doctor"}),
}


@pytest.mark.parametrize(
    "username", ["doctor", "nurse", "reception", "lab", "pharmacist", "billing", "admin", "patient"]
)
@pytest.mark.parametrize("what", WRITERS)
def test_who_writes_what(acting: Any, hospital: Hospital, refuses: Any, username: str, what: str) -> None:
    step, more, writers = WRITERS[what]
    with acting(username):
        if username in writers:
            do(step, patient_id=hospital.patients[SOMEBODY], **more)
        else:
            refuses(Forbidden, step, patient_id=hospital.patients[SOMEBODY], **more)


def test_a_service_writes_nothing_as_a_clinician(hospital: Hospital, refuses: Any) -> None:
    with guard.acting_as(service("demo")):
        refuses(NotAClinician, clinical.diagnose, patient_id=hospital.patients[SOMEBODY], code="I10")


def test_a_closed_record_is_written_in_no_more(acting: Any, hospital: Hospital, refuses: Any) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.get_one(Patient, hospital.patients[SOMEBODY]).active = False
    with acting("doctor"):
        for step, more, _ in WRITERS.values():
            assert refuses(Invalid, step, patient_id=hospital.patients[SOMEBODY], **more).field == "patient"


# ---- on screen ---------------------------------------------------------------------------------------------------


@pytest.fixture
def doctor(client_as: ClientAs) -> Browser:
    return client_as("doctor")


def test_what_one_branch_wrote_another_reads_with_its_name(
    app: Flask, client_as: ClientAs, acting: Any, hospital: Hospital
) -> None:
    del app
    patient = hospital.patients[SOMEBODY]
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        elsewhere = Organization(name="Clinic Elsewhere")
        session.add(elsewhere)
        session.flush()
        visit = Encounter(
            patient_id=patient, status="finished", class_code="AMB", service_provider_id=elsewhere.id, started_at=now()
        )
        session.add(visit)
        session.flush()
        session.add(
            Condition(
                patient_id=patient,
                encounter_id=visit.id,
                code_display="Gout",
                clinical_status="active",
                verification_status="confirmed",
                recorded_at=now(),
            )
        )
    with acting("doctor"):
        do(clinical.diagnose, patient_id=patient, code="I10")
        do(clinical.measure, patient_id=patient, values={"pulse": "70"})
        do(clinical.list_allergy, patient_id=patient, substance="Peanut", category=["food"])
        do(clinical.order, patient_id=patient, what="Blood count")
    browser = client_as("doctor")
    moved = {"csrf_token": csrf_of(browser.page("/me/")), "branch_id": hospital.branches[1]}
    assert browser.post("/branch/", data=moved).status_code == 302
    made = do_as(acting, "doctor", hospital.branches[1], patient)
    assert row(Observation, made)["branch_id"] == hospital.branches[1]
    address = f"/patients/{patient}/"
    for tab in ("", "?tab=timeline", "?tab=conditions", "?tab=observations", "?tab=allergies", "?tab=orders"):
        main = browser.page(address + tab).split("<main", 1)[1]
        assert "Hospital Norte" in main, tab
    page = browser.page(address + "?tab=conditions")
    assert "Southern General" in browser.page(address + "?tab=observations").split("<main", 1)[1]
    gout = re.search(r"<tr[^>]*>(?:(?!</tr>).)*Gout.*?</tr>", page, re.DOTALL)
    assert gout
    assert "Clinic Elsewhere" in gout[0]
    assert "Hospital Norte" not in gout[0]


def do_as(acting: Any, username: str, branch_id: int, patient: int) -> int:
    """A heart rate written by somebody at another of their branches; gives its number."""
    with acting(username) as actor, guard.acting_as(guard.at_branch(actor, branch_id)):
        return int(do(clinical.measure, patient_id=patient, values={"pulse": "71"})[0].id)


def test_a_refused_form_keeps_what_was_typed(doctor: Browser, hospital: Hospital) -> None:
    base = f"/patients/{hospital.patients[SOMEBODY]}"
    for path, typed, said in (
        ("vitals", {"pulse": "<b>9", "temperature": "36.6"}, "please enter a number"),
        ("conditions", {"q": "Z99.99", "onset_on": "2020-02-02"}, "There is no such code"),
        ("allergies", {"substance": "NKDA", "reaction": "Hives"}, "said with its own button"),
        ("procedures", {"what": "Suture", "code": "123"}, "SNOMED CT"),
        ("immunisations", {"lot_number": "LOT-1"}, "choose a vaccine"),
        ("orders", {"what": "", "note": "Fasting"}, "what is to be done"),
    ):
        before = counts(hospital.patients[SOMEBODY])
        answer = doctor.submit(f"{base}/{path}/new/", typed)
        assert answer.status_code == 422, path
        assert said in answer.text, path
        for value in typed.values():
            assert value.replace("<b>", "&lt;b&gt;") in answer.text, (path, value)
        assert counts(hospital.patients[SOMEBODY]) == before


def test_a_diagnosis_is_found_without_script(doctor: Browser, hospital: Hospital) -> None:
    address = f"/patients/{hospital.patients[SOMEBODY]}/conditions/new/"
    found = doctor.submit(address, {"q": "asthma", "do": "find", "onset_on": "2020-02-02"})
    assert found.status_code == 200
    assert 'value="J45.909"' in found.text
    assert 'value="2020-02-02"' in found.text
    assert counts(hospital.patients[SOMEBODY])["Condition"] == 0
    answer = doctor.submit(address, {"q": "asthma", "code": "J45.909", "do": "save", "onset_on": "2020-02-02"})
    assert answer.status_code == 302
    assert counts(hospital.patients[SOMEBODY])["Condition"] == 1
    assert "Unspecified asthma" in doctor.page(f"/patients/{hospital.patients[SOMEBODY]}/?tab=conditions")


def test_codes_are_offered_to_who_diagnoses(client_as: ClientAs) -> None:
    found = client_as("doctor").get("/codes/icd-10.json?q=asthma").get_json()["found"]
    assert found[0] == {"code": "J45.909", "display": "Unspecified asthma, uncomplicated"}
    assert len(found) <= codes.BEST
    assert client_as("nurse").get("/codes/icd-10.json?q=asthma").status_code == 403


def test_an_entry_is_shown_and_changed_by_who_may(client_as: ClientAs, doctor: Browser, hospital: Hospital) -> None:
    address = f"/entries/conditions/{hospital.rows['Condition']}/"
    page = doctor.page(address)
    assert "It is over" in page
    nurse = client_as("nurse")
    assert nurse.get(address).status_code == 403
    token = csrf_of(nurse.page("/me/"))
    assert nurse.post(f"{address}resolve", data={"csrf_token": token}).status_code == 403
    assert row(Condition, hospital.rows["Condition"])["clinical_status"] == "active"
    token = csrf_of(page)
    for wrong in (f"{address}dance", "/entries/notes/1/withdraw", "/entries/conditions/999999999/resolve"):
        assert doctor.post(wrong, data={"csrf_token": token}).status_code == 404
    refused = doctor.post(f"{address}resolve", data={"csrf_token": token, "abated_on": "nonsense"})
    assert refused.status_code == 422
    assert doctor.post(f"{address}resolve", data={"csrf_token": token}).status_code == 302
    assert row(Condition, hospital.rows["Condition"])["clinical_status"] == "resolved"
    for kind in ("__class__", "visits", "documents"):
        assert doctor.get(f"/entries/{kind}/1/").status_code == 404


def test_a_nurse_is_offered_what_a_nurse_may_write(client_as: ClientAs, hospital: Hospital) -> None:
    page = client_as("nurse").page(f"/patients/{hospital.patients[1]}/")
    for offered in ("/vitals/new/", "/allergies/new/", "/visits/new/"):
        assert offered in page
    for not_offered in ("/conditions/new/", "/orders/new/", "/notes/new", "/immunisations/new/", "/prescribing/"):
        assert not_offered not in page
    for nobody in ("reception", "lab", "pharmacist", "billing", "privacy", "admin"):
        shown = client_as(nobody).page(f"/patients/{hospital.patients[1]}/")
        assert "/vitals/new/" not in shown
        assert "/allergies/new/" not in shown


def test_the_timeline_has_everything_once_by_pages(
    acting: Any, client_as: ClientAs, doctor: Browser, hospital: Hospital
) -> None:
    patient = hospital.patients[SOMEBODY]
    many(hospital, patient, 130)
    with acting("doctor"):
        everything, cursor, pages = [], None, 0
        while True:
            found, cursor = clinical.timeline(guard.session(), patient, after=cursor)
            everything += [(moment.kind, moment.row.id) for moment in found]
            pages += 1
            if cursor is None:
                break
        assert pages == 4
        assert len(everything) == len(set(everything)) == 130
        assert clinical.timeline(guard.session(), patient, ["notes"]) == ([], None)
    address = f"/patients/{hospital.patients[1]}/?tab=timeline"
    page = doctor.page(address)
    for word in ("Diabetes", "Penicillin", "Appendectomy", "Influenza", "Metformin", "Letter", "Check-up", "Progress"):
        assert word in page, word
    narrowed = doctor.page(f"{address}&kind=allergies").split("<main", 1)[1]
    assert "Penicillin" in narrowed
    assert "Appendectomy" not in narrowed
    assert "Nothing of that kind" in doctor.page(f"{address}&from=2031-01-01")
    assert "Appendectomy" not in doctor.page(f"{address}&until=2001-01-01")
    for nonsense in (
        "&from=x",
        "&kind=x&kind=__class__",
        "&after=x",
        "&after=2020-01-01T00:00:00~visits~1",
        "&after=~~",
    ):
        assert "Appendectomy" in doctor.page(address + nonsense)
    nurse = client_as("nurse").page(address)
    for word in ("Diabetes", "Appendectomy", "Letter", "Progress", "Haemoglobin", "Glucose"):
        assert word not in nurse, word
    assert "Penicillin" in nurse


def many(hospital: Hospital, patient: int, count: int) -> None:
    """So many observations of one patient, several at each instant."""
    kinds = [each for name, each in clinical.VITALS.items() if name not in ("systolic", "diastolic")]
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for number in range(count):
            kind = kinds[number % len(kinds)]
            session.add(
                Observation(
                    patient_id=patient,
                    status="final",
                    category="vital-signs" if number % 5 else "laboratory",
                    code_system="http://loinc.org",
                    code=kind.code,
                    code_display=kind.display,
                    value_quantity=kind.low + number % 7,
                    value_unit=kind.unit,
                    effective_at=now() - timedelta(days=1 + number // 6),
                    branch_id=hospital.branches[number % 2],
                    recorder_id=hospital.staff["nurse"],
                )
            )


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """What was asked of the database since the test last cleared it."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK")):
            asked.append(statement)

    event.listen(guard.engine(), "before_cursor_execute", note)
    yield asked
    event.remove(guard.engine(), "before_cursor_execute", note)


def test_the_first_view_asks_the_same_few_questions_however_long_the_record_is(
    doctor: Browser, hospital: Hospital, statements: list[str]
) -> None:
    short, long = hospital.patients[SOMEBODY], hospital.patients[5]
    many(hospital, short, 5)
    many(hospital, long, 500)
    told = {}
    for patient in (short, long):
        doctor.page(f"/patients/{patient}/")
        statements.clear()
        doctor.page(f"/patients/{patient}/")
        told[patient] = len(statements)
    assert told[short] == told[long] <= 14, statements
    whole = hospital.patients[1]
    many(hospital, whole, 500)
    doctor.page(f"/patients/{whole}/")
    statements.clear()
    doctor.page(f"/patients/{whole}/")
    assert len(statements) <= 18, statements


def test_what_a_nurse_may_not_see_is_not_asked_for(
    client_as: ClientAs, hospital: Hospital, statements: list[str]
) -> None:
    nurse = client_as("nurse")
    address = f"/patients/{hospital.patients[1]}/"
    nurse.page(address)
    statements.clear()
    for tab in ("", "?tab=timeline", "?tab=observations"):
        nurse.page(address + tab)
    for table in ("clinical_note", "condition", "document_reference", "diagnostic_report", "procedure"):
        asked = [each for each in statements if re.search(rf'(FROM|JOIN) "?{table}"?\b', each)]
        assert asked == [], table


def test_a_role_of_results_alone_sees_no_vital_signs(client_as: ClientAs, hospital: Hospital, granted: Any) -> None:
    granted(Role.NURSE, Observation=may("read", kinds=["laboratory"]))
    page = client_as("nurse").page(f"/patients/{hospital.patients[1]}/")
    assert 'data-panel="results"' in page
    assert 'data-panel="vitals"' not in page
    assert "Haemoglobin" in page
    assert "Heart rate" not in page
