"""A word in a clinical note, and every way of asking for it: it reaches nobody whom the policy does not give it to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import inspect

from app import guard, policy
from jobs import trail as drainer
from models.base import Model, Protected
from tests import factories
from tests.architecture.test_routes import SENTINELS, addresses, asked, everything_to_read, values_of
from tests.factories import Hospital

HELD_BACK = ("admin", "nurse", "reception", "patient")
WORDS = (factories.NOTE, factories.DOCUMENT, factories.SOURCE, factories.REPORT)
OPERATIONS = ("eq", "ct", "gt", "rel_o_m")


def resources() -> Iterator[tuple[str, type[Any]]]:
    """Every class behind the gate, with the address its resource would have."""
    for mapper in Model.registry.mappers:
        if issubclass(mapper.class_, Protected):
            yield f"/api/v1/{mapper.class_.__tablename__}/", mapper.class_


def questions(word: str) -> Iterator[str]:
    """Every filter and order of every column of every resource, its relations' columns too, as REST and as a list page."""
    for address, kind in resources():
        names = [*inspect(kind).column_attrs.keys(), *inspect(kind).relationships.keys()]
        names += [f"patient.{name}" for name in ("family", "telecom", "search_phone")] + ["author.family", "password"]
        for name in names:
            for way in ("asc", "desc"):
                yield f"{address}?q=(order_column:{name},order_direction:{way})"
            for operation in OPERATIONS:
                yield f"{address}?q=(filters:!((col:{name},opr:{operation},value:'{quote(word)}')))"
            yield f"{address}?q=(columns:!({name}))"
        yield f"{address}_info?q=(keys:!(permissions,filters,add_columns,edit_columns))"
        yield f"{address}related/patient?q=(filter:'{quote(word)}')"
    for page in ("/users/list/", "/roles/list/", "/practitioners/list/", "/patients/list/"):
        for number in range(4):
            yield f"{page}?_flt_{number}_content={quote(word)}&_oc_PatientList=content&_od_PatientList=asc"
    for page in ("/patients/", "/patients/find.json", "/trail/", "/api/v1/patient/search", "/emergencies/"):
        for name in ("q", "text", "patient", "person"):
            yield f"{page}?{name}={quote(word)}"


@pytest.mark.parametrize("username", HELD_BACK)
def test_no_question_answers_with_what_a_note_says(
    username: str, app: Flask, client_as: Callable[[str], FlaskClient], hospital: Hospital
) -> None:
    client = client_as(username)
    secret = set(WORDS) & set(SENTINELS[username])
    assert secret
    refused = 0
    for address in questions(factories.NOTE[:13]):
        answer = client.get(address)
        assert answer.status_code < 500, f"{address}: {answer.status_code}"
        refused += answer.status_code in (400, 403, 404, 422)
        for word in secret:
            assert word not in answer.text, f"{address} shows {word}"
    assert refused > 100


@pytest.mark.parametrize("username", HELD_BACK)
@pytest.mark.parametrize("table", ["clinical_note", "document_reference", "source_resource"])
def test_notes_answer_nothing_at_all(username: str, table: str, client_as: Callable[[str], FlaskClient]) -> None:
    client = client_as(username)
    for question in ("", f"?q=(filters:!((col:title,opr:ct,value:'{factories.NOTE}')))", "?q=(order_column:id)", "1"):
        answer = client.get(f"/api/v1/{table}/{question}")
        assert answer.status_code in (403, 404), question
        assert "count" not in (answer.get_json() or {})


@pytest.mark.parametrize("username", HELD_BACK)
def test_no_refused_change_tells_what_a_note_says(
    username: str, app: Flask, client_as: Callable[[str], FlaskClient], hospital: Hospital
) -> None:
    """Every address that takes something, with nothing in it, with a forged form, and with a note's number."""
    client = client_as(username)
    secret = set(WORDS) & set(SENTINELS[username])
    for values in (values_of(hospital), {"pk": hospital.rows["ClinicalNote"], "patient_id": hospital.patients[1]}):
        for method, endpoint, address in addresses(app, values):
            if method == "GET" or "logout" in address:
                continue
            answer = asked(client, method, address)
            assert answer.status_code < 500, f"{method} {address}: {answer.status_code}"
            for word in secret:
                assert word not in answer.text, f"{method} {address} ({endpoint}) shows {word}"


@pytest.mark.parametrize("role", [role for role in policy.Role if role != policy.Role.ADMIN])
def test_looking_as_a_role_shows_no_note(
    role: policy.Role, app: Flask, client_as: Callable[[str], Any], hospital: Hospital
) -> None:
    client = client_as("admin")
    token = client.page("/view-as/").split('name="csrf_token"', 1)[1].split('value="', 1)[1].split('"', 1)[0]
    answer = client.post("/view-as/", data={"role": str(role), "csrf_token": token})
    assert answer.status_code == 302, answer.text[:300]
    shown = 0
    for address in everything_to_read(app, hospital):
        if "/view-as" in address:
            continue
        answer = client.get(address)
        assert answer.status_code < 500, address
        shown += answer.status_code == 200
        for word in (*WORDS, factories.CONCLUSION):
            assert word not in answer.text, f"{address} shows {word} to somebody who looks as {role}"
    assert shown > 3


def test_the_trail_of_a_doctor_s_reading_says_nothing_of_what_was_read(
    client_as: Callable[[str], Any], hospital: Hospital
) -> None:
    doctor = client_as("doctor")
    for tab in ("documents", "reports"):
        doctor.page(f"/patients/{hospital.patients[1]}/?tab={tab}")
    doctor.get(f"/patients/?q={factories.NOTE}")
    drainer.drain()
    with guard.engine().connect() as connection:
        lines = connection.exec_driver_sql("SELECT count(*), string_agg(audit_event::text, ' ') FROM audit_event").one()
        waiting = connection.exec_driver_sql(
            "SELECT coalesce(string_agg(event::text, ' '), '') FROM audit_outbox"
        ).scalar()
    assert lines[0] > 2
    for word in (*WORDS, factories.CONCLUSION, factories.REASON, factories.PHONE, "Vandersloot"):
        assert word not in lines[1]
        assert word not in str(waiting)
    for username in ("admin", "privacy"):
        page = client_as(username).page("/trail/")
        assert not [word for word in WORDS if word in page]
