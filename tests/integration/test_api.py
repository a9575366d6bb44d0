"""REST: what programs may read and write, and what they are told when they may not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from models.patients import Patient
from tests import factories
from tests.conftest import Browser
from tests.factories import Hospital

ApiAs = Callable[[str], FlaskClient]
PATIENTS = "/api/v1/patient/"

RESOURCES = {
    "patient": "Patient",
    "encounter": "Encounter",
    "condition": "Condition",
    "allergy_intolerance": "AllergyIntolerance",
    "observation": "Observation",
    "procedure": "Procedure",
    "immunization": "Immunization",
    "diagnostic_report": "DiagnosticReport",
    "medication_request": "MedicationRequest",
    "document_reference": "DocumentReference",
    "clinical_note": "ClinicalNote",
    "organization": "Organization",
    "branch": "Branch",
    "practitioner": "Practitioner",
    "room": "Room",
}


@pytest.mark.parametrize("username", factories.PEOPLE)
def test_every_resource_is_open_to_whom_the_matrix_says(username: str, api_as: ApiAs, hospital: Hospital) -> None:
    from app.policy import MATRIX

    program, grants = api_as(username), MATRIX[factories.PEOPLE[username][0]]
    for path, resource in RESOURCES.items():
        granted = resource in grants and "read" in grants[resource].actions
        for address in (f"/api/v1/{path}/", f"/api/v1/{path}/1", f"/api/v1/{path}/_info"):
            answer = program.get(address)
            assert answer.status_code in ((200, 404) if granted else (403,)), address
            if not granted:
                assert set(answer.get_json()) == {"error", "message", "request_id"}


def test_a_program_without_a_token_is_told_so(browser: Callable[[], Browser], hospital: Hospital) -> None:
    for address in (PATIENTS, f"{PATIENTS}1", f"{PATIENTS}search?text=x", f"{PATIENTS}_info"):
        answer = browser().get(address)
        assert answer.status_code == 401
        assert answer.get_json()["error"] == "NotSignedIn"


def test_a_patient_is_registered_read_found_and_changed(api_as: ApiAs, hospital: Hospital) -> None:
    desk = api_as("reception")
    body = {
        "family": "Api",
        "given": "Ada",
        "birth_date": "1970-03-05",
        "gender": "female",
        "identifiers": [{"system": "passport", "value": "API1"}],
    }
    made = desk.post(PATIENTS, json=body)
    assert made.status_code == 201
    row = made.get_json()["result"]
    assert (row["family"], row["birth_date"], row["birth_precision"]) == ("Api", "1970-03-05", "day")
    key = made.get_json()["id"]
    assert desk.get(f"{PATIENTS}{key}").get_json()["result"]["mrn"] == row["mrn"]
    assert [found["id"] for found in desk.get(f"{PATIENTS}search?text=API1").get_json()["result"]] == [key]
    changed = desk.put(f"{PATIENTS}{key}", json={"given": "Adele", "version": row["version"]})
    assert changed.status_code == 200
    assert (changed.get_json()["result"]["given"], changed.get_json()["result"]["family"]) == ("Adele", "Api")
    again = desk.put(f"{PATIENTS}{key}", json={"given": "Agnes", "version": row["version"]})
    assert again.status_code == 409
    assert factories.stored(Patient, key)["given"] == "Adele"


def test_somebody_alike_is_a_conflict_that_names_who(api_as: ApiAs, hospital: Hospital) -> None:
    before = factories.number_of(Patient)
    answer = api_as("reception").post(
        PATIENTS, json={"family": "Vandersloot", "given": "Xerxes", "birth_date": "1982-11-30"}
    )
    assert answer.status_code == 409
    assert answer.get_json()["duplicates"][0]["id"] == hospital.patients[1]
    assert factories.number_of(Patient) == before


BROKEN: dict[str, dict[str, Any]] = {
    "no json": {"data": b"family=x", "content_type": "application/x-www-form-urlencoded"},
    "half a body": {"data": b'{"family": "x"', "content_type": "application/json"},
    "nothing": {"data": b"", "content_type": "application/json"},
    "no text at all": {"data": b"\xff\xfe\x00", "content_type": "application/json"},
    "a list": {"json": [1, 2]},
    "a text": {"json": "family"},
    "nothing told": {"json": None},
    "very deep": {"data": b'{"address":' * 2000 + b"1" + b"}" * 2000, "content_type": "application/json"},
    "unknown fields": {"json": {"family": "x", "mrn": "W10000017"}},
    "a version of its own": {"json": {"family": "x", "id": 1}},
    "a column that is not offered": {"json": {"family": "x", "user_id": 1}},
    "another's branch": {"json": {"family": "x", "registered_at_id": 2}},
    "a number for a name": {"json": {"family": 7}},
    "a list for a name": {"json": {"family": ["x"]}},
    "null for a name": {"json": {"family": None}},
    "a long name": {"json": {"family": "x" * 10_000}},
    "a longer name": {"json": {"family": "x" * 30_000}},
    "a null character": {"json": {"family": "a\x00b"}},
    "a lone surrogate": {"data": b'{"family": "\\ud800"}', "content_type": "application/json"},
    "born tomorrow": {"json": {"family": "x", "birth_date": "2199-01-01"}},
    "born never": {"json": {"family": "x", "birth_date": "2024-02-30"}},
    "a date that is a number": {"json": {"family": "x", "birth_date": 19700305}},
    "an unknown gender": {"json": {"family": "x", "gender": "x"}},
    "no phone": {"json": {"family": "x", "telecom": [{"system": "phone", "value": "x"}]}},
    "an unknown kind of phone": {"json": {"family": "x", "telecom": [{"system": "carrier pigeon", "value": "x"}]}},
    "a phone without a number": {"json": {"family": "x", "telecom": [{"system": "phone"}]}},
    "an empty identifier": {"json": {"family": "x", "identifiers": [{"system": "passport", "value": ""}]}},
    "an identifier of nobody": {"json": {"family": "x", "identifiers": [{"system": "", "value": "1"}]}},
    "a null character in an identifier": {"json": {"family": "x", "identifiers": [{"system": "p", "value": "\x00"}]}},
    "a null character in a mail": {"json": {"family": "x", "telecom": [{"system": "email", "value": "a\x00"}]}},
    "a null character in an address": {"json": {"family": "x", "address": [{"city": "a\x00"}]}},
    "a null character in a contact": {"json": {"family": "x", "contact": [{"name": {"text": "a\x00"}}]}},
    "a null character in a language": {"json": {"family": "x", "languages": ["a\x00"]}},
    "too many addresses": {"json": {"family": "x", "address": [{}] * 21}},
    "insisting by a word": {"json": {"family": "x", "insist": "yes"}},
    "no name": {"json": {}},
    "infinity": {"data": b'{"family": Infinity}', "content_type": "application/json"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_body_that_does_not_hold_is_refused_with_a_sentence(name: str, api_as: ApiAs, hospital: Hospital) -> None:
    desk = api_as("reception")
    before, row = factories.number_of(Patient), factories.stored(Patient, hospital.patients[3])
    for method, address in (("POST", PATIENTS), ("PUT", f"{PATIENTS}{hospital.patients[3]}")):
        if method == "PUT" and name == "no name":
            continue
        answer = desk.open(address, method=method, **BROKEN[name])
        assert answer.status_code in (400, 415, 422), f"{method}: {answer.status_code} {answer.text[:200]}"
        said = answer.get_json()
        assert said["message"]
        assert set(said) <= {"error", "message", "request_id", "field"}
    assert factories.number_of(Patient) == before
    assert factories.stored(Patient, hospital.patients[3]) == row


@pytest.mark.parametrize("username", ["lab", "pharmacist", "billing", "privacy", "patient"])
def test_those_who_only_read_write_nothing(username: str, api_as: ApiAs, hospital: Hospital) -> None:
    program = api_as(username)
    before, row = factories.number_of(Patient), factories.stored(Patient, hospital.patients[0])
    assert program.post(PATIENTS, json={"family": "x", "insist": True}).status_code == 403
    assert program.put(f"{PATIENTS}{hospital.patients[0]}", json={"family": "x"}).status_code == 403
    assert program.delete(f"{PATIENTS}{hospital.patients[0]}").status_code in (403, 404, 405)
    assert factories.number_of(Patient) == before
    assert factories.stored(Patient, hospital.patients[0]) == row


@pytest.mark.parametrize("path", [path for path in RESOURCES if path not in ("patient", "medication_request")])
def test_what_is_read_only_takes_no_writing(path: str, api_as: ApiAs, hospital: Hospital) -> None:
    for username in ("admin", "doctor"):
        program = api_as(username)
        assert program.post(f"/api/v1/{path}/", json={}).status_code == 405
        for method in ("put", "delete", "patch"):
            assert getattr(program, method)(f"/api/v1/{path}/1", json={}).status_code == 405


def test_nothing_is_removed_over_rest(app: Flask) -> None:
    removing = [rule.rule for rule in app.url_map.iter_rules() if "DELETE" in (rule.methods or ())]
    assert removing == []


@pytest.mark.parametrize(
    "q",
    [
        *(
            "(",
            "!",
            "(((((",
            "'",
            "(filters:x)",
            "(filters:!(x))",
            "(filters:!((col:family)))",
            "(filters:!((opr:eq,value:x)))",
        ),
        *(
            "(order_column:!(x))",
            "(page:x)",
            "(page_size:x)",
            "(columns:x)",
            "\x00",
            "(page:99999999999999999999)",
            "(keys:x)",
        ),
        *("(filters:!((col:id,opr:eq,value:x)))", "(filters:!((col:birth_date,opr:gt,value:yesterday)))"),
        *("(filters:!((col:id,opr:eq,value:99999999999999999999)))", "(filters:!((col:family,opr:rel_o_m,value:1)))"),
        *("(filters:!((col:family,opr:eq,value:!(x))))", "(filters:!((col:__class__,opr:eq,value:1)))"),
        *("(order_column:__class__,order_direction:asc)", "(order_column:family,order_direction:sideways)"),
        *("(order_column:'family;DROP TABLE patient',order_direction:asc)", "(select_columns:!(user.password))"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_or_left_aside(q: str, api_as: ApiAs, hospital: Hospital) -> None:
    answer = api_as("reception").get(PATIENTS, query_string={"q": q})
    assert answer.status_code in (200, 400, 422), f"{answer.status_code} {answer.text[:200]}"
    if answer.status_code != 200:
        assert answer.get_json()["message"]
        assert "Vandersloot" not in answer.text
    assert "scrypt" not in answer.text


@pytest.mark.parametrize(
    ("size", "most"), [(1, 1), (100, 100), (101, 100), (1_000_000, 100), (0, 100), (-1, 100), (-2, 100)]
)
def test_a_page_holds_a_hundred_at_most(size: int, most: int, api_as: ApiAs, hospital: Hospital) -> None:
    answer = api_as("reception").get(PATIENTS, query_string={"q": f"(page_size:{size})"})
    assert answer.status_code == 200
    assert 0 < len(answer.get_json()["result"]) <= most


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1000", "", "99999999999", "1e3"])
def test_a_search_gives_a_hundred_at_most(limit: str, api_as: ApiAs, hospital: Hospital) -> None:
    answer = api_as("reception").get(f"{PATIENTS}search", query_string={"text": "a", "limit": limit})
    assert answer.status_code == 200
    assert len(answer.get_json()["result"]) <= 100


@pytest.mark.parametrize("key", ["0", "-1", "x", "1.5", "9" * 30, "1;2", "%00", "1%20OR%201=1", "None", "null", "０"])
def test_a_key_that_is_none_is_not_found(key: str, api_as: ApiAs, hospital: Hospital) -> None:
    for path in ("patient", "observation", "organization"):
        answer = api_as("doctor").get(f"/api/v1/{path}/{key}")
        assert answer.status_code == 404, answer.text


def test_the_info_route_gives_no_rows_away(api_as: ApiAs, hospital: Hospital) -> None:
    for username in ("admin", "reception", "patient"):
        program = api_as(username)
        for path in RESOURCES:
            said = program.get(f"/api/v1/{path}/_info").text
            for word in ("Vandersloot", "Quartermain", "Secret Street", "SENTINEL", "scrypt"):
                assert word not in said, f"{path}: {word}"


@pytest.mark.parametrize("path", ["related/registered_at", "related/identifiers", "related/user_id", "distinct/family"])
def test_there_are_no_related_lists(path: str, api_as: ApiAs, hospital: Hospital) -> None:
    answer = api_as("admin").get(f"{PATIENTS}{path}")
    assert answer.status_code == 404
    assert "result" not in answer.get_json()


def test_what_is_masked_is_blank_for_the_one_and_there_for_the_other(api_as: ApiAs, hospital: Hospital) -> None:
    key = hospital.patients[1]
    seen = api_as("reception").get(f"{PATIENTS}{key}").get_json()["result"]
    blank = api_as("privacy").get(f"{PATIENTS}{key}").get_json()["result"]
    assert seen["telecom"]
    assert seen["address"]
    assert (blank["telecom"], blank["address"], blank["contact"]) == (None, None, None)
    assert blank["family"] == seen["family"]


def test_of_two_changes_at_once_one_is_a_conflict(
    app: Flask, token_for: Callable[..., str], hospital: Hospital
) -> None:
    key = hospital.patients[10]
    headers = {"Authorization": f"Bearer {token_for('reception')}"}
    version = app.test_client().get(f"{PATIENTS}{key}", headers=headers).get_json()["result"]["version"]
    statuses: list[int] = []
    ready = threading.Barrier(2)

    def change(given: str) -> None:
        client = app.test_client()
        ready.wait(20)
        answer = client.put(f"{PATIENTS}{key}", json={"given": given, "version": version}, headers=headers)
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=change, args=(given,)) for given in ("One", "Two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, 409]
    assert factories.stored(Patient, key)["version"] == version + 1


def test_the_description_of_the_api_names_no_secret(api_as: ApiAs, browser: Callable[[], Browser]) -> None:
    described = api_as("doctor").get("/api/v1/_openapi")
    assert described.status_code == 200
    schemas = described.get_json()["components"]["schemas"]
    named = {kind: set(schema.get("properties", {})) for kind, schema in schemas.items()}
    of_patients = set().union(*(names for kind, names in named.items() if kind.startswith("PatientApi")))
    assert "family" in of_patients
    assert not of_patients & {"password", "search_phone", "created_by", "changed_by", "user_id", "photo"}
    assert not [kind for kind, names in named.items() if names & {"password", "created_by", "changed_by"}]
    assert browser().get("/api/v1/_openapi").status_code in (401, 403)
