"""Prescribing: what is refused, blocked, overridden and written, who may, and what becomes of an order."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import guard
from app.actor import service
from app.errors import Forbidden, IllegalTransition, Invalid, NotAClinician, NotFound, Unsafe
from app.services import drug_safety, formulary, prescriptions
from app.services.dosage import Dosage
from app.services.prescriptions import Asked, Line, Override
from jobs.demo import FORMULARY
from models.clinical import AllergyIntolerance, Encounter
from models.patients import Patient
from models.prescriptions import DetectedIssue, Medication, MedicationRequest, Prescription
from tests.conftest import Browser, Database

Acting = Callable[[str], AbstractContextManager[Any]]
ApiAs = Callable[[str], FlaskClient]
WRITTEN = (Prescription, MedicationRequest, DetectedIssue)
API = "/api/v1/medication_request/"


@pytest.fixture(scope="module")
def medicines(database: Database) -> dict[str, int]:
    """The demo's formulary, by name."""
    with guard.acting_as(service("formulary")), guard.unit_of_work() as session:
        formulary.take_in(session, FORMULARY.read_bytes())
        return {each.display: each.id for each in formulary.find(session, "", limit=500)}


@pytest.fixture(autouse=True)
def undone(medicines: dict[str, int], savepoint: None) -> None:
    """What a test writes is gone after it."""


AMOXICILLIN, PARACETAMOL = "Amoxicillin 500 mg capsule", "Paracetamol 500 mg tablet"
WARFARIN, IBUPROFEN = "Warfarin Sodium 5 MG Oral Tablet", "Ibuprofen 400 mg tablet"


@pytest.fixture
def patient(hospital: Any) -> int:
    """The second patient: allergic to penicillin (high), on metformin."""
    return int(hospital.patients[1])


@pytest.fixture
def other(hospital: Any) -> int:
    """A patient with an empty chart, whom nobody has asked about allergies."""
    return int(hospital.patients[4])


@pytest.fixture
def line(medicines: dict[str, int]) -> Callable[..., Line]:
    """A line for a medicine of the demo's formulary, for a week."""

    def make(name: str, **change: Any) -> Line:
        unit = "{cap}" if "capsule" in name else "{tbl}"
        return replace(Line(medicines[name], Dosage(Decimal(1), unit, "TID", days=7)), **change)

    return make


def counts() -> list[int]:
    """How many papers, orders and warnings there are."""
    with guard.acting_as(service("demo")):
        session = guard.session()
        return [session.query(model).count() for model in WRITTEN]


def change(model: Any, key: int, **values: Any) -> None:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        row = session.get_one(model, key)
        for name, value in values.items():
            setattr(row, name, value)


def issued(session: Any, patient_id: int, *lines: Line, overrides: Any = ()) -> Prescription:
    return prescriptions.prescribe(session, patient_id=patient_id, lines=list(lines), overrides=list(overrides))


def row_of(patient_id: int, medication_id: int) -> MedicationRequest:
    with guard.acting_as(service("demo")):
        found = (
            guard.session().query(MedicationRequest).filter_by(patient_id=patient_id, medication_id=medication_id).all()
        )
        assert len(found) == 1
        return found[0]


# ---- writing -------------------------------------------------------------------------------------------------------


def test_a_paper_is_written_issued_and_sealed_at_once(
    acting: Acting, hospital: Any, patient: int, line: Callable[..., Line]
) -> None:
    with acting("doctor"), guard.unit_of_work() as session:
        paper = issued(session, patient, line(PARACETAMOL, repeats=2, reason="Fever", substitution=False))
        number = paper.id
    with acting("doctor"):
        paper = prescriptions.show(guard.session(), number)
        (order,) = paper.requests
        assert paper.issued_at is not None
        assert paper.short_code
        assert paper.signature
        assert paper.practitioner_id == order.requester_id == hospital.staff["doctor"]
        assert (order.status, order.quantity, order.quantity_unit, order.repeats) == ("active", 21, "{tbl}", 2)
        assert order.valid_until == (order.valid_from or date.min) + timedelta(days=prescriptions.VALID_DAYS)
        assert (order.reason, order.substitution_allowed) == ("Fever", False)
        assert order.code_display == PARACETAMOL
        told = order.dosage_instruction[0]
        assert told["text"].startswith(("Take 1 tablet", "Tome 1 comprimido"))
        assert told["timing"]["code"]["coding"][0]["code"] == "TID"
        assert prescriptions.remaining(order) == 63


def test_it_is_written_in_the_patients_language(acting: Acting, patient: int, line: Callable[..., Line]) -> None:
    for languages, begins in ((["pl"], "Przyjmować 1 tabletkę"), (["vi", "fr"], "Prendre"), ([], "T")):
        change(Patient, patient, languages=languages)
        with acting("doctor"), guard.unit_of_work() as session:
            paper = issued(session, patient, line(PARACETAMOL))
            session.refresh(paper, ["requests"])
            assert paper.requests[0].dosage_instruction[0]["text"].startswith(begins)
            assert paper.language == (languages[-1] if languages else paper.language)


def test_an_allergy_blocks_until_somebody_says_why(acting: Acting, patient: int, line: Callable[..., Line]) -> None:
    before = counts()
    with acting("doctor"), pytest.raises(Unsafe) as refusal, guard.unit_of_work() as session:
        issued(session, patient, line(PARACETAMOL), line(AMOXICILLIN))
    assert refusal.value.status == 422
    (issue,) = [each for each in refusal.value.issues if isinstance(each, drug_safety.Issue) and each.blocks]
    assert (issue.code, issue.line) == ("DALG", 1)
    assert "Penicillin" in issue.detail
    assert counts() == before, "not even the harmless line"
    for code, reason in (
        ("2", ""),
        ("2", "  "),
        ("2", "ok"),
        ("", "The patient takes it every year"),
        ("6", "Because"),
    ):
        with acting("doctor"), pytest.raises(Unsafe), guard.unit_of_work() as session:
            told = [Override(issue.key, code, reason)]
            issued(session, patient, line(PARACETAMOL), line(AMOXICILLIN), overrides=told)
        guard.session.rollback()
    with acting("doctor"), pytest.raises(Unsafe), guard.unit_of_work() as session:
        issued(session, patient, line(AMOXICILLIN), overrides=[Override("9-DALG-other", "2", "Of something else")])
    assert counts() == before
    told = [Override(issue.key, "2", "Took amoxicillin in May without a reaction")]
    with acting("doctor"), guard.unit_of_work() as session:
        paper = issued(session, patient, line(PARACETAMOL), line(AMOXICILLIN), overrides=told)
        (kept,) = [each for each in prescriptions.issues_of(session, paper) if each.mitigation]
        assert (kept.code, kept.severity, kept.mitigation) == ("DALG", "high", "2")
        assert kept.mitigation_note.startswith("Took amoxicillin")
        assert kept.reference.startswith("https://")
        assert kept.medication_request_id == max(order.id for order in prescriptions.show(session, paper.id).requests)
        assert kept.author_id == paper.practitioner_id


def test_a_refuted_allergy_never_fires(acting: Acting, hospital: Any, patient: int, line: Callable[..., Line]) -> None:
    key = hospital.rows["AllergyIntolerance"]
    change(AllergyIntolerance, key, verification_status="refuted")
    with acting("doctor"):
        assert prescriptions.preview(guard.session(), patient_id=patient, lines=[line(AMOXICILLIN)])[0].checked is False
    change(AllergyIntolerance, key, verification_status="entered-in-error", clinical_status=None)
    with acting("doctor"), guard.unit_of_work() as session:
        issued(session, patient, line(AMOXICILLIN))


def test_nobody_asked_is_written_down_and_does_not_block(acting: Acting, other: int, line: Callable[..., Line]) -> None:
    with acting("doctor"), guard.unit_of_work() as session:
        paper = issued(session, other, line(AMOXICILLIN))
        (kept,) = prescriptions.issues_of(session, paper)
        assert (kept.severity, kept.mitigation) == ("moderate", None)
        assert kept.detail.startswith("NOT CHECKED")
    change(Patient, other, no_known_allergies=True)
    with acting("doctor"), guard.unit_of_work() as session:
        paper = issued(session, other, line(IBUPROFEN))
        assert prescriptions.issues_of(session, paper) == []


def test_current_medicines_count_whatever_they_are_called(
    acting: Acting, other: int, line: Callable[..., Line]
) -> None:
    change(Patient, other, no_known_allergies=True)
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        for name, status in (
            ("Warfarin 5 mg tablet", "active"),
            ("Lithium carbonate", "stopped"),
            ("Xyz drops", "active"),
        ):
            session.add(MedicationRequest(patient_id=other, status=status, code_display=name))
    with acting("doctor"):
        issues = prescriptions.preview(guard.session(), patient_id=other, lines=[line(IBUPROFEN)])
        assert [(each.code.value, each.severity.value, each.checked) for each in issues] == [
            ("DRG", "high", True),
            ("DRG", "moderate", False),
        ]
        assert "Warfarin 5 mg tablet" in issues[0].detail
        assert "Xyz drops" in issues[1].detail


def test_two_lines_of_one_paper_meet_each_other(acting: Acting, other: int, line: Callable[..., Line]) -> None:
    before = counts()
    with acting("doctor"), pytest.raises(Unsafe), guard.unit_of_work() as session:
        issued(session, other, line(WARFARIN), line(IBUPROFEN))
    assert counts() == before


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("no unit", {"dosage": Dosage(Decimal(1), "", "TID", days=7)}, "unit"),
    ("an unknown unit", {"dosage": Dosage(Decimal(1), "pieces", "TID", days=7)}, "unit"),
    ("no number", {"dosage": Dosage(Decimal("NaN"), "{tbl}", "TID", days=7)}, "dose"),
    ("nothing", {"dosage": Dosage(Decimal(0), "{tbl}", "TID", days=7)}, "dose"),
    ("far too much", {"dosage": Dosage(Decimal(10) ** 9, "{tbl}", "TID", days=7)}, "dose"),
    (
        "a stop before the start",
        {"dosage": Dosage(Decimal(1), "{tbl}", "TID", start=date(2026, 5, 2), stop=date(2026, 5, 1))},
        "stop",
    ),
    ("no quantity to be told", {"dosage": Dosage(Decimal(1), "{tbl}", "TID")}, "quantity"),
    ("a quantity of nothing", {"quantity": Decimal(0)}, "quantity"),
    ("half a tablet handed out", {"quantity": Decimal("2.5")}, "quantity"),
    ("too many repeats", {"repeats": 100}, "repeats"),
    ("fewer than none", {"repeats": -1}, "repeats"),
    ("a day gone by", {"valid_from": date(2020, 1, 1), "valid_until": date(2020, 2, 1)}, "valid_until"),
    ("an end before the beginning", {"valid_until": date(2020, 1, 1)}, "valid_until"),
    ("a beginning nobody lives to see", {"valid_from": date.max}, "valid_from"),
    ("more than a year", {"valid_until": date.today() + timedelta(days=400)}, "valid_until"),
    ("a medicine there is not", {"medication_id": 0}, ""),
]


@pytest.mark.parametrize(("what", "wrong", "field"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_named_and_nothing_half_written(
    acting: Acting, other: int, line: Callable[..., Line], what: str, wrong: dict[str, Any], field: str
) -> None:
    before = counts()
    with acting("doctor"), pytest.raises((Invalid, NotFound)) as refusal, guard.unit_of_work() as session:
        issued(session, other, line(AMOXICILLIN), line(PARACETAMOL, **wrong))
    assert (refusal.value.field or "") == field, what
    assert counts() == before


def test_no_medicine_or_too_many_are_refused(acting: Acting, other: int, line: Callable[..., Line]) -> None:
    for lines in ([], [line(PARACETAMOL)] * 21):
        with acting("doctor"), pytest.raises(Invalid), guard.unit_of_work() as session:
            issued(session, other, *lines)


def test_a_retired_medicine_is_prescribed_no_more(
    acting: Acting, other: int, line: Callable[..., Line], medicines: dict[str, int]
) -> None:
    change(Medication, medicines[PARACETAMOL], active=False)
    with acting("doctor"), pytest.raises(Invalid) as refusal, guard.unit_of_work() as session:
        issued(session, other, line(PARACETAMOL))
    assert refusal.value.field == "medication"


@pytest.mark.parametrize("closed", [{"deceased": True}, {"active": False}])
def test_nothing_is_prescribed_for_a_closed_record(
    acting: Acting, other: int, line: Callable[..., Line], closed: dict[str, Any]
) -> None:
    change(Patient, other, **closed)
    before = counts()
    with acting("doctor"), pytest.raises(Invalid) as refusal, guard.unit_of_work() as session:
        issued(session, other, line(PARACETAMOL))
    assert refusal.value.field == "patient"
    assert counts() == before


def test_the_page_of_a_closed_record_offers_nothing(
    app: Flask, client_as: Callable[[str], Browser], other: int, medicines: dict[str, int]
) -> None:
    del app
    page, address = client_as("doctor"), f"/prescribing/{other}/"
    change(Patient, other, deceased=True)
    assert "Which medicine?" not in page.page(address)
    before = counts()
    shown = page.submit(address, {"do": "issue", **fields(medicines, PARACETAMOL)})
    assert shown.status_code == 422
    assert "This patient has died" in shown.text
    assert counts() == before


def test_the_visit_is_one_of_this_patient(
    acting: Acting, hospital: Any, patient: int, other: int, line: Callable[..., Line]
) -> None:
    visit = hospital.rows["Encounter"]
    with acting("doctor"), guard.unit_of_work() as session:
        paper = prescriptions.prescribe(session, patient_id=patient, encounter_id=visit, lines=[line(PARACETAMOL)])
        assert paper.encounter_id == visit
        assert paper.branch_id == session.get_one(Encounter, visit).branch_id
    for patient_id, encounter_id in ((other, visit), (patient, 2**40)):
        with acting("doctor"), pytest.raises(Invalid) as refusal, guard.unit_of_work() as session:
            prescriptions.prescribe(
                session, patient_id=patient_id, encounter_id=encounter_id, lines=[line(PARACETAMOL)]
            )
        assert refusal.value.field == "encounter"


@pytest.mark.parametrize("username", ["nurse", "pharmacist", "reception", "admin", "patient", "billing"])
def test_only_a_doctor_prescribes(acting: Acting, other: int, line: Callable[..., Line], username: str) -> None:
    before = counts()
    with acting(username), pytest.raises(Forbidden), guard.unit_of_work() as session:
        issued(session, other, line(PARACETAMOL))
    with acting(username), pytest.raises(Forbidden):
        prescriptions.preview(guard.session(), patient_id=other, lines=[line(PARACETAMOL)])
    assert counts() == before


def test_somebody_who_is_no_practitioner_prescribes_nothing(other: int, line: Callable[..., Line]) -> None:
    before = counts()
    with guard.acting_as(service("demo")), pytest.raises(NotAClinician), guard.unit_of_work() as session:
        issued(session, other, line(PARACETAMOL))
    assert counts() == before


# ---- afterwards ----------------------------------------------------------------------------------------------------


def test_an_order_is_held_resumed_and_stopped_with_a_reason(
    acting: Acting, other: int, line: Callable[..., Line]
) -> None:
    with acting("doctor"), guard.unit_of_work() as session:
        paper = issued(session, other, line(PARACETAMOL), line(AMOXICILLIN))
        first, second = [order.id for order in prescriptions.show(session, paper.id).requests]
        for step in (prescriptions.stop, prescriptions.hold, prescriptions.cancel, prescriptions.withdraw):
            with pytest.raises(Invalid) as refusal:
                step(session, first, reason=" x ")
            assert refusal.value.field == "reason"
        assert prescriptions.hold(session, first, reason="Operation tomorrow").status == "on-hold"
        with pytest.raises(IllegalTransition):
            prescriptions.hold(session, first, reason="Once more")
        assert prescriptions.resume(session, first, reason="It went well").status == "active"
        with pytest.raises(IllegalTransition):
            prescriptions.resume(session, first, reason="It is active")
        ended = prescriptions.stop(session, first, reason="A rash")
        assert (ended.status, ended.status_reason, ended.ended_at is not None) == ("stopped", "A rash", True)
        for step in (prescriptions.hold, prescriptions.cancel, prescriptions.stop):
            with pytest.raises(IllegalTransition):
                step(session, first, reason="It is over")
        assert prescriptions.withdraw(session, second, reason="Wrong patient").status == "entered-in-error"
        with pytest.raises(IllegalTransition):
            prescriptions.cancel_paper(session, paper.id, reason="Nothing left")


def test_a_paper_is_cancelled_as_a_whole(acting: Acting, other: int, line: Callable[..., Line]) -> None:
    with acting("doctor"), guard.unit_of_work() as session:
        paper = issued(session, other, line(PARACETAMOL), line(AMOXICILLIN))
        prescriptions.cancel_paper(session, paper.id, reason="The patient has it at home")
        assert {order.status for order in prescriptions.show(session, paper.id).requests} == {"cancelled"}


def test_a_nurse_stops_nothing(
    acting: Acting, other: int, line: Callable[..., Line], medicines: dict[str, int]
) -> None:
    with acting("doctor"), guard.unit_of_work() as session:
        issued(session, other, line(PARACETAMOL))
    order = row_of(other, medicines[PARACETAMOL])
    with acting("nurse"), pytest.raises(Forbidden), guard.unit_of_work() as session:
        prescriptions.stop(session, order.id, reason="I think so")
    assert row_of(other, medicines[PARACETAMOL]).status == "active"


def test_overrides_are_a_report(
    acting: Acting, hospital: Any, patient: int, other: int, line: Callable[..., Line]
) -> None:
    told = [Override(f"0-DALG-allergy-{hospital.rows['AllergyIntolerance']}", "9", "Given under observation")]
    with acting("doctor"), guard.unit_of_work() as session:
        issued(session, patient, line(AMOXICILLIN), overrides=told)
        issued(session, other, line(AMOXICILLIN))
    today = date.today()
    near = Asked(today - timedelta(days=2), today + timedelta(days=2))
    with acting("pharmacist"):
        session = guard.session()
        (one,) = prescriptions.overridden(session, near)
        assert (one.code, str(one.author)) == ("DALG", "Dora Doctor")
        assert one.request.code_display == AMOXICILLIN
        assert prescriptions.overridden(session, replace(near, code="DRG")) == []
        assert prescriptions.overridden(session, replace(near, practitioner_id=hospital.staff["nurse"])) == []
        assert prescriptions.overridden(session, Asked(date(2020, 1, 1), date(2020, 2, 1))) == []
    for username in ("nurse", "reception", "patient"):
        with acting(username), pytest.raises(Forbidden):
            prescriptions.overridden(guard.session(), near)


# ---- pages ---------------------------------------------------------------------------------------------------------


def fields(medicines: dict[str, int], name: str, number: int = 0, **more: str) -> dict[str, Any]:
    """A line as the page sends it."""
    told = {"medication": str(medicines[name]), "dose": "1", "unit": "{cap}" if "capsule" in name else "{tbl}"}
    told |= {"timing": "TID", "days": "7", "route": "oral", "repeats": "0", **more}
    return {f"{number}-{key}": value for key, value in told.items()} | {"line": [str(number)]}


def test_a_doctor_prescribes_without_a_script(
    app: Flask, client_as: Callable[[str], Browser], hospital: Any, patient: int, medicines: dict[str, int]
) -> None:
    del app
    page, address = client_as("doctor"), f"/prescribing/{patient}/"
    shown = page.page(address)
    assert "Penicillin" in shown, "allergies in words"
    assert "Metformin 500 MG" in shown
    assert "The list of interactions is not complete" in shown
    found = page.submit(address, {"do": "find", "q": "amoxicillin 500"})
    assert f'value="add-{medicines[AMOXICILLIN]}"' in found.text
    added = page.submit(address, {"do": f"add-{medicines[AMOXICILLIN]}"})
    assert 'name="0-dose" value="1"' in added.text
    looked = page.submit(address, {"do": "look", **fields(medicines, AMOXICILLIN)})
    assert "3 times a day" in looked.text or "3 veces al día" in looked.text
    assert "21 capsules" in looked.text
    assert "is-high" in looked.text
    unready = page.submit(address, {"do": "review", **fields(medicines, AMOXICILLIN, timing="")})
    assert unready.status_code == 422
    assert "Please choose how often it is taken." in unready.text
    reviewed = page.submit(address, {"do": "review", **fields(medicines, AMOXICILLIN)})
    assert reviewed.status_code == 200
    key = f"0-DALG-allergy-{hospital.rows['AllergyIntolerance']}"
    assert f'name="why-{key}"' in reviewed.text
    before = counts()
    refused = page.submit(address, {"do": "issue", **fields(medicines, AMOXICILLIN)})
    assert refused.status_code == 422
    assert "Something serious stands against this medicine" in refused.text
    assert counts() == before
    told = {f"why-{key}": "2", f"because-{key}": "Tolerated it in May"}
    answer = page.submit(address, {"do": "issue", **fields(medicines, AMOXICILLIN), **told})
    assert answer.status_code == 302
    paper = page.page(answer.location)
    assert "21 capsules" in paper
    assert "Tolerated it in May" in paper
    assert "Nothing was handed out yet" in paper
    report = page.page("/overrides/")
    assert "Tolerated it in May" in report
    sheet = page.get("/overrides/overrides.csv")
    assert sheet.data.startswith(b"\xef\xbb\xbf")
    rows = list(csv.reader(io.StringIO(sheet.data.decode("utf-8-sig"))))
    assert len(rows) == 2
    assert "Tolerated it in May" in rows[1]


def test_the_page_says_sentence_and_warnings_as_one_types(
    app: Flask, client_as: Callable[[str], Browser], patient: int, medicines: dict[str, int]
) -> None:
    del app
    page = client_as("doctor")
    from tests.conftest import csrf_of

    token = csrf_of(page.page(f"/prescribing/{patient}/"))
    data = {"csrf_token": token, **fields(medicines, AMOXICILLIN)}
    told = page.post(f"/prescribing/{patient}/look.json", data=data).get_json()
    assert told["lines"][0]["quantity"] == "21 capsules"
    assert "is-high" in told["lines"][0]["warnings"]
    half = page.post(f"/prescribing/{patient}/look.json", data={**data, "0-dose": "", "0-days": ""}).get_json()
    assert half["lines"][0]["text"] == ""
    assert "is-high" in half["lines"][0]["warnings"], "an allergy is said before the dose is"
    found = page.get("/prescribing/medicines.json?q=paracet").get_json()["medicines"]
    assert PARACETAMOL in [each["display"] for each in found]


def test_several_lines_are_kept_and_removed(
    app: Flask, client_as: Callable[[str], Browser], other: int, medicines: dict[str, int]
) -> None:
    del app
    page, address = client_as("doctor"), f"/prescribing/{other}/"
    two = {**fields(medicines, PARACETAMOL), **fields(medicines, AMOXICILLIN, 1, days="5"), "line": ["0", "1"]}
    shown = page.submit(address, {"do": "look", **two})
    assert re.findall(r'name="\d-days" value="(\d)"', shown.text) == ["7", "5"]
    shown = page.submit(address, {"do": "remove-0", **two})
    assert re.findall(r'name="\d-days" value="(\d)"', shown.text) == ["5"]
    answer = page.submit(address, {"do": "issue", **two})
    assert answer.status_code == 302
    order = row_of(other, medicines[PARACETAMOL])
    paper = answer.location
    stop = f"/prescriptions/orders/{order.id}/stop/"
    from tests.conftest import csrf_of

    token = csrf_of(page.page(paper))
    assert page.post(stop, data={"csrf_token": token, "reason": ""}).status_code == 422
    assert page.post(stop, data={"csrf_token": token, "reason": "Not needed"}).status_code == 302
    assert "Not needed" in page.page(paper)
    again = page.page(f"{address}?repeat={order.id}")
    assert 'name="0-days" value="7"' in again


@pytest.mark.parametrize("username", ["nurse", "pharmacist", "reception"])
def test_others_do_not_come_to_the_page(
    app: Flask, client_as: Callable[[str], Browser], other: int, username: str
) -> None:
    del app
    page = client_as(username)
    assert page.get(f"/prescribing/{other}/").status_code == 403
    assert page.get("/prescribing/medicines.json?q=a").status_code == 403


# ---- REST ----------------------------------------------------------------------------------------------------------


def body(patient_id: int, medication_id: int, **more: Any) -> dict[str, Any]:
    dose = {"value": 1, "unit": "{cap}", "timing": "TID", "days": 7}
    return {"patient_id": patient_id, "lines": [{"medication_id": medication_id, "dose": dose}], **more}


def test_a_program_checks_and_prescribes(api_as: ApiAs, patient: int, medicines: dict[str, int]) -> None:
    program, told = api_as("doctor"), body(patient, medicines[AMOXICILLIN])
    before = counts()
    checked = program.post(f"{API}check", json=told)
    assert checked.status_code == 200
    issue = checked.get_json()["issues"][0]
    assert (issue["code"], issue["severity"], issue["needs_override"]) == ("DALG", "high", True)
    refused = program.post(API, json=told)
    assert refused.status_code == 422
    assert refused.get_json()["error"] == "Unsafe"
    assert refused.get_json()["issues"][0]["issue"] == issue["issue"]
    assert counts() == before
    overrides = [{"issue": issue["issue"], "code": "2", "reason": "Tolerated it in May"}]
    answer = program.post(API, json={**told, "overrides": overrides})
    assert answer.status_code == 201
    made = answer.get_json()
    assert made["result"][0]["status"] == "active"
    assert made["result"][0]["prescription_id"] == made["id"]
    assert made["short_code"]


def test_bad_bodies_are_refused(api_as: ApiAs, other: int, medicines: dict[str, int]) -> None:
    program, before = api_as("doctor"), counts()
    good = body(other, medicines[AMOXICILLIN])
    for path, wrong in (
        ("dose", {"value": 1e9, "unit": "{cap}", "timing": "TID", "days": 7}),
        ("unit", {"value": 1, "timing": "TID", "days": 7}),
        ("stop", {"value": 1, "unit": "{cap}", "timing": "TID", "start": "2026-05-02", "stop": "2026-05-01"}),
        ("start", {"value": 1, "unit": "{cap}", "timing": "TID", "start": "May"}),
    ):
        line = {**good["lines"][0], "dose": wrong}
        for address in (API, f"{API}check"):
            answer = program.post(address, json={**good, "lines": [line]})
            assert answer.status_code == 422, path
            assert answer.get_json()["field"] == path
    for wrong_body in ({}, {"patient_id": other, "lines": []}, {**good, "requester_id": 1}, {**good, "lines": "x"}):
        assert program.post(API, json=wrong_body).status_code == 422
    assert program.post(API, json=body(2**40, medicines[AMOXICILLIN])).status_code == 404
    for method in (program.put, program.delete):
        assert method(f"{API}1", json={}).status_code == 405, "an order is ended by its own verbs"
    assert counts() == before


@pytest.mark.parametrize("username", ["nurse", "pharmacist", "patient"])
def test_others_prescribe_nothing_over_rest(
    api_as: ApiAs, other: int, medicines: dict[str, int], username: str
) -> None:
    program, before = api_as(username), counts()
    for address in (API, f"{API}check"):
        assert program.post(address, json=body(other, medicines[AMOXICILLIN])).status_code == 403
    assert counts() == before
