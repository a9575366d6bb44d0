"""Masked fields and narrowed rows on every screen and over REST: nothing breaks, nothing misleads, nothing can be guessed.

Roles here are as an administrator can make them: one that is given everything without every field that can be hidden,
and ones that reach the patients of a branch, or those in somebody's care.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import prison
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from app import guard, policy
from app.actor import service
from app.errors import Forbidden
from app.policy import Grant, may
from app.services import patients
from models.base import now
from models.codes import RowScope
from models.patients import Patient
from models.scheduling import Appointment, VisitType, WaitlistEntry
from tests import factories
from tests.architecture.test_routes import everything_to_read
from tests.conftest import Browser, TrailLines, csrf_of, filled
from tests.factories import Hospital

ClientAs = Callable[[str], Browser]
ApiAs = Callable[[str], FlaskClient]
Acting = Callable[[str], Any]
UNSHOWN = "not shown to your role"


def sql(statement: str, **values: Any) -> list[Any]:
    """Something done or asked past the application."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


# ---- a house with something to hide ----------------------------------------------------------------------------------

PHONE = "+34699887766"
SAID = "SENTINEL-MASK-91c4"
MAIDEN = "Featherstonehaugh"
NUMBER = "ZX-778899-Q"
JPEG = b"\xff\xd8\xff" + SAID.encode()

HIDDEN = (SAID, MAIDEN, MAIDEN.lower(), NUMBER, "699887766", "699 88 77 66", "Klingon")


@pytest.fixture(scope="module", autouse=True)
def house(database: Any) -> None:
    """Every field that can be hidden says something that can be looked for, in the chart of the second patient."""
    h = database.hospital
    key = {"p": h.patients[1]}
    sql(
        "UPDATE patient SET photo = :photo, marital_status = :s, languages = ARRAY['tlh'], "
        "telecom = cast(:telecom AS jsonb), address = cast(:address AS jsonb), contact = cast(:contact AS jsonb), "
        "other_names = cast(:names AS jsonb) WHERE id = :p",
        photo=JPEG,
        s=SAID,
        telecom=f'[{{"system": "phone", "value": "{PHONE}"}}, {{"system": "email", "value": "{SAID}@example.org"}}]',
        address=f'[{{"line": ["{SAID}"], "city": "{SAID}", "country": "ES"}}]',
        contact=f'[{{"name": {{"text": "{SAID}"}}, "telecom": [{{"system": "phone", "value": "{PHONE}"}}]}}]',
        names=f'[{{"use": "maiden", "family": "{MAIDEN}"}}]',
        **key,
    )
    sql("UPDATE patient_identifier SET value = :v WHERE patient_id = :p", v=NUMBER, **key)
    sql("UPDATE encounter SET reason = :s, type_display = :s WHERE patient_id = :p", s=SAID, **key)
    sql("UPDATE procedure SET reason = :s WHERE patient_id = :p", s=SAID, **key)
    sql("UPDATE diagnostic_report SET conclusion = :s WHERE patient_id = :p", s=SAID, **key)
    said = f'[{{"text": "{SAID}"}}]'
    sql("UPDATE medication_request SET dosage_instruction = cast(:d AS jsonb) WHERE patient_id = :p", d=said, **key)
    reaction = f'[{{"manifestation": [{{"text": "{SAID}"}}]}}]'
    sql("UPDATE allergy_intolerance SET reaction = cast(:r AS jsonb) WHERE patient_id = :p", r=reaction, **key)
    sql(
        "INSERT INTO emergency_access (patient_id, user_id, reason, justification, started_at, ends_at, review_note, "
        "fhir_id, version, created_at, updated_at) VALUES (:p, :u, 'BTG', :s, now() - interval '2 hours', "
        "now() - interval '1 hour', :s, gen_random_uuid(), 1, now(), now())",
        u=h.accounts["doctor"],
        s=f"{SAID} as long as it has to be",
        **key,
    )
    for branch in h.branches:
        sql(
            "INSERT INTO audit_event (id, recorded, type, subtype, action, outcome, user_id, agent_name, roles, branch_id, "
            "purpose, channel, address, user_agent, session_id, patient_id, entities, batch_seq, leaf_no) VALUES (gen_random_uuid(), "
            "now() - interval '1 minute', 'rest', 'read', 'R', 0, :u, :name, '{Doctor}', :b, 'TREAT', 'web', "
            "'203.0.113.77', :s, :s, :p, '[]', 0, 0)",
            u=h.accounts["doctor"],
            name=f"Seen at {branch}",
            b=branch,
            s=SAID,
            **key,
        )


WITHOUT: dict[str, Grant] = {
    resource: Grant(frozenset(actions), masked=frozenset(policy.MASKABLE.get(resource, ())))
    for resource, actions in policy.POSSIBLE.items()
    if resource not in ("User", "Role")
}
"""Everything a role may be granted, without every field it may be made to do without."""


@pytest.fixture
def blinkered(granted: Any) -> None:
    """Nurses are given everything, and shown no field that can be hidden."""
    granted("Nurse", **WITHOUT)


@pytest.fixture
def sighted(granted: Any) -> None:
    """Doctors are given everything with every field: what is found there is there to be found."""
    granted("Doctor", **{name: Grant(grant.actions) for name, grant in WITHOUT.items()})


def whole() -> dict[str, Any]:
    """What may not be changed by accident: the second patient with their numbers, and how many there are."""
    patient = sql(
        "SELECT *, xmin::text FROM patient WHERE mrn = (SELECT mrn FROM patient WHERE family = 'Vandersloot')"
    )
    numbers = sql("SELECT * FROM patient_identifier ORDER BY id")
    counted = sql("SELECT count(*), max(version) FROM patient")
    return {
        "patient": [dict(row) for row in patient],
        "numbers": [dict(row) for row in numbers],
        "all": dict(counted[0]),
    }


QUESTIONS = (
    *(PHONE, "699887766", "699 88 77 66", "887766", NUMBER, MAIDEN, f"{MAIDEN} xerxes", SAID, f"{SAID}@example.org"),
    *("Vandersloot", "Medina", "1982", "W1"),
)


def every_address(app: Flask, hospital: Hospital) -> list[str]:
    """The walk of the house, every search, and the lists narrowed and sorted every way the screens offer."""
    found = everything_to_read(app, hospital)
    for asked in QUESTIONS:
        quoted = asked.replace("+", "%2B").replace(" ", "+")
        found += [f"/patients/?q={quoted}", f"/patients/find.json?q={quoted}", f"/api/v1/patient/search?text={quoted}"]
        found += [f"/trail/?patient={quoted}", f"/trail/?person={quoted}"]
    for name in ("mrn", "birth_date", "last_visit_at", "telecom", "search_phone", "address", "photo"):
        found += [f"/patients/all/list/?_oc_PatientList={name}&_od_PatientList=desc"]
        found += [f"/patients/all/list/?_flt_{index}_{name}=something" for index in range(3)]
    return found


# ---- every field hidden ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("blinkered")
def test_a_role_without_every_field_walks_the_house(app: Flask, client_as: ClientAs, hospital: Hospital) -> None:
    client = client_as("nurse")
    shown = 0
    for address in every_address(app, hospital):
        answer = client.get(address)
        assert answer.status_code < 500, f"{address} answered {answer.status_code}"
        body = re.sub(r'(value="|"q":"|family=)[^"]*"', "", answer.text)  # what was asked is said again
        for word in (*HIDDEN, "203.0.113.77"):
            assert word not in body, f"{address} shows {word}"
        shown += answer.status_code == 200
    assert shown > 100
    assert ">None<" not in client.page(f"/patients/{hospital.patients[1]}/")


@pytest.mark.usefixtures("sighted")
def test_what_is_hidden_there_is_found_here(app: Flask, client_as: ClientAs, hospital: Hospital) -> None:
    """Otherwise the walk would find nothing in an empty house."""
    client = client_as("doctor")
    walked = everything_to_read(app, hospital)
    text_shown = " ".join(client.get(address).get_data().decode("utf-8", "replace") for address in walked)
    for word in (SAID, MAIDEN, NUMBER, "699 88 77 66", "Klingon", "203.0.113.77"):
        assert word in text_shown, word
    assert client.get(f"/patients/{hospital.patients[1]}/photo").data == JPEG


@pytest.mark.usefixtures("blinkered")
def test_pages_say_that_something_is_not_shown_and_never_that_there_is_nothing(
    client_as: ClientAs, hospital: Hospital
) -> None:
    client = client_as("nurse")
    chart = f"/patients/{hospital.patients[1]}/"
    page = client.page(chart)
    assert "Nothing noted" not in page
    assert "Not shown to your role" in page
    assert "phone and e-mail, address, next of kin, languages, other names, photo" in page
    assert re.search(rf"<dt>Passport</dt><dd class=\"num\">\s*<span class=\"unshown\">{UNSHOWN}", page)
    for tab, label in (
        ("visits", "Reason"),
        ("procedures", "Reason"),
        ("medications", "How to take it"),
        ("allergies", "Reaction"),
    ):
        page = client.page(f"{chart}?tab={tab}")
        assert f"{label}: {UNSHOWN}" in page, tab
        assert f'<th scope="col">{label}</th>' not in page, tab
    assert UNSHOWN in client.page("/patients/all/list/")
    assert f"Network address: {UNSHOWN}" in client.page("/trail/")
    assert client.get(f"{chart}photo").status_code == 404


def test_who_is_shown_everything_reads_nothing_of_it(client_as: ClientAs, hospital: Hospital) -> None:
    client = client_as("doctor")
    chart = f"/patients/{hospital.patients[1]}/"
    for path in (chart, f"{chart}?tab=visits", f"{chart}?tab=medications", "/patients/all/list/", "/patients/"):
        assert UNSHOWN not in client.page(path).lower()
    assert "number or phone" in client.page("/patients/")


@pytest.mark.usefixtures("blinkered")
def test_the_search_box_does_not_offer_what_it_does_not_search(client_as: ClientAs) -> None:
    client = client_as("nurse")
    for path in ("/", "/patients/", "/trail/", "/patients/?q=nobodyatall"):
        page = client.page(path)
        assert "phone" not in page.lower().replace("data-say", ""), path


@pytest.fixture
def expected(hospital: Hospital) -> Iterator[None]:
    """A visit to come and a place on the waiting list, with words that are not for everybody."""
    whose = {"patient_id": hospital.patients[1], "branch_id": hospital.branches[0]}
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        kind = VisitType(name="Of the masks", minutes=20, needs_room=False)
        session.add(kind)
        session.flush()
        start = now() + timedelta(days=3)
        visit = Appointment(
            **whose,
            visit_type_id=kind.id,
            practitioner_id=hospital.staff["doctor"],
            start_at=start,
            end_at=start + timedelta(minutes=20),
            reason="Secret",
        )
        entry = WaitlistEntry(**whose, visit_type_id=kind.id, earliest_on=start.date(), note="Secret")
        session.add_all([visit, entry])
    yield
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.get_one(Appointment, visit.id).status = "entered-in-error"
        session.get_one(WaitlistEntry, entry.id).status = "withdrawn"


@pytest.mark.usefixtures("blinkered", "expected")
def test_masked_columns_are_null_over_rest(api_as: ApiAs, hospital: Hospital) -> None:
    client = api_as("nurse")
    looked = 0
    for resource, fields in policy.MASKABLE.items():
        path = f"/api/v1/{re.sub(r'(?<!^)(?=[A-Z])', '_', resource).lower()}/"
        listed = client.get(path)
        if listed.status_code == 404:
            continue
        result = listed.get_json()["result"]
        assert result, resource
        for field in set(fields) & result[0].keys():
            asked = client.get(f"{path}?q={prison.dumps({'columns': ['id', field]})}").get_json()["result"]
            for row in (*result, *asked):
                assert row[field] is None, f"{resource}.{field}"
            one = client.get(f"{path}{result[0]['id']}")
            assert one.status_code in (200, 404)
            assert one.status_code == 404 or one.get_json()["result"][field] is None
            looked += 1
    assert looked >= 12


# ---- forms -----------------------------------------------------------------------------------------------------------

MASKED_FIELDS = {
    *("phone", "email", "address_line", "city", "postal_code", "country", "identifier_system", "identifier_value"),
    *("language", "kin_name", "kin_relationship", "kin_phone", "photo"),
}


@pytest.mark.usefixtures("blinkered")
def test_forms_do_not_ask_for_what_is_hidden(client_as: ClientAs, hospital: Hospital) -> None:
    client = client_as("nurse")
    for path in ("/patients/register/", f"/patients/{hospital.patients[1]}/edit/"):
        page = client.page(path)
        offered = set(re.findall(r'name="([a-z_]+)"', page))
        assert not offered & MASKED_FIELDS, path
        assert {"family", "given", "birth_date", "gender", "prefix"} <= offered
    page = client_as("reception").page("/patients/register/")
    assert set(re.findall(r'name="([a-z_]+)"', page)) >= MASKED_FIELDS


@pytest.mark.usefixtures("blinkered")
def test_saving_a_form_neither_wipes_nor_shows_what_is_hidden(client_as: ClientAs, hospital: Hospital) -> None:
    client = client_as("nurse")
    before = whole()["patient"][0]
    path = f"/patients/{hospital.patients[1]}/edit/"
    assert client.submit(path, {"prefix": "Dr."}).status_code == 302
    after = whole()["patient"][0]
    assert after["prefix"] == "Dr."
    assert filled(client.page(path))["prefix"] == "Dr."
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"prefix", "version", "updated_at", "xmin"}
    # What was forged into the form is not asked for, and so not taken; what is refused shows nothing either.
    forged = dict.fromkeys(MASKED_FIELDS, "forged") | {"country": "ES", "phone": "+34600000001", "prefix": ""}
    assert client.submit(path, forged).status_code == 302
    again = whole()["patient"][0]
    assert {name for name in before if before[name] != again[name]} <= {"version", "updated_at", "xmin"}
    refused = client.submit(path, {"birth_date": "the day before yesterday"})
    assert refused.status_code == 422
    assert not any(word in refused.text for word in HIDDEN)


@pytest.mark.usefixtures("blinkered")
def test_somebody_is_registered_without_the_fields_that_are_hidden(client_as: ClientAs) -> None:
    client = client_as("nurse")
    answer = client.submit("/patients/register/", {"family": "Newcomer", "given": "Blank", "phone": PHONE})
    assert answer.status_code == 302
    made = sql("SELECT telecom, address, contact, languages FROM patient WHERE family = 'Newcomer'")
    assert [dict(row) for row in made] == [{"telecom": [], "address": [], "contact": [], "languages": []}]


def test_who_may_see_a_field_but_not_change_it_can_save_the_rest(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    """Two roles: one reads everything, the other changes patients without knowing their phone."""
    granted("Nurse", Patient=may("read update", masked=["telecom", "languages", "contact"]))
    granted("BillingClerk", Patient=may("read"))
    sql(
        "INSERT INTO ab_user_role (user_id, role_id) SELECT :u, id FROM ab_role WHERE name = 'BillingClerk'",
        u=hospital.accounts["nurse"],
    )
    try:
        client = client_as("nurse")
        assert "699 88 77 66" in client.page(f"/patients/{hospital.patients[1]}/")
        before = whole()["patient"][0]
        path = f"/patients/{hospital.patients[1]}/edit/"
        assert "phone" not in filled(client.page(path))
        assert client.submit(path, {"name_in_use": "Xerx"}).status_code == 302
        after = whole()["patient"][0]
        assert {name for name in before if before[name] != after[name]} - {"version", "updated_at", "xmin"} == {
            "name_in_use",
            "search_name",
        }
        assert client.submit(path, {"name_in_use": ""}).status_code == 302
    finally:
        sql(
            "DELETE FROM ab_user_role WHERE user_id = :u AND role_id = "
            "(SELECT id FROM ab_role WHERE name = 'BillingClerk')",
            u=hospital.accounts["nurse"],
        )


def test_who_may_not_read_numbers_can_still_correct_a_name(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    granted("Nurse", Patient=may("read create update"), PatientIdentifier=None)
    client = client_as("nurse")
    path = f"/patients/{hospital.patients[3]}/edit/"
    assert "identifier_value" not in client.page(path)
    assert client.submit(path, {"prefix": "Prof."}).status_code == 302
    assert sql("SELECT prefix FROM patient WHERE id = :p", p=hospital.patients[3])[0]["prefix"] == "Prof."


# ---- nothing can be guessed ------------------------------------------------------------------------------------------

GUESSES = [
    (PHONE, "+34699887711"),
    ("699887766", "699887711"),
    ("699 88 77 66", "699 88 77 11"),
    ("+34 699 887 766", "+34 699 887 711"),
    ("887766", "887711"),
    ("0034699887766", "0034699887711"),
    (NUMBER, "ZX-778811-Q"),
    (NUMBER.lower(), "zx-778811-q"),
    (MAIDEN, "Bumberstonehough"),
    (MAIDEN[:9], "Bumbersto"),
    (f"{MAIDEN} xerxes", "Bumberstonehough xerxes"),
    (f"vandersloot {MAIDEN}", "vandersloot Bumberstonehough"),
    (f"vandersloot {PHONE}", "vandersloot +34699887711"),
    (f"vandersloot {NUMBER}", "vandersloot ZX-778811-Q"),
    (f"{SAID}@example.org", "SENTINEL-NONE-91c4@example.org"),
    (SAID, "SENTINEL-NONE-91c4"),
]
"""A hidden value, and one like it that nobody has."""


def answers(client: Browser, asked: str) -> list[Any]:
    """What every search says to a question, with the question taken out."""
    query = {"q": asked, "text": asked, "patient": asked}
    said: list[Any] = []
    for path in ("/patients/find.json", "/api/v1/patient/search"):
        answer = client.get(path, query_string=query)
        said.append((answer.status_code, {key: value for key, value in answer.get_json().items() if key != "q"}))
    page = client.get("/patients/", query_string={"q": asked})
    said.append((page.status_code, page.text.count('class="hit"'), "Nobody found by that" in page.text))
    trail = client.get("/trail/", query_string={"patient": asked})
    said.append((trail.status_code, trail.text.count("Seen at"), "No entry fits" in trail.text))
    return said


@pytest.mark.parametrize(("real", "made_up"), GUESSES)
def test_searching_for_a_hidden_value_is_searching_for_nothing(
    real: str, made_up: str, client_as: ClientAs, blinkered: None, trail_lines: TrailLines
) -> None:
    client = client_as("nurse")
    trail_lines.forget()
    found = answers(client, real)
    noted = [(event["query"], event["outcome"], event["patient_id"]) for event in trail_lines.events()]
    assert all(status == 200 for status, *_ in found)
    trail_lines.forget()
    assert answers(client, made_up) == found
    assert [(event["query"], event["outcome"], event["patient_id"]) for event in trail_lines.events()] == noted
    assert found[0][1]["results"] == []


@pytest.mark.usefixtures("sighted")
@pytest.mark.parametrize("real", [real for real, _ in GUESSES if SAID not in real and not real.startswith("0034")])
def test_who_is_shown_the_value_finds_by_it(real: str, client_as: ClientAs) -> None:
    client = client_as("doctor")
    found = client.get("/patients/find.json", query_string={"q": real}).get_json()["results"]
    assert [patient["name"] for patient in found] == ["Vandersloot, Xerxes"]


def test_the_privacy_officer_may_type_digits(client_as: ClientAs) -> None:
    """It used to end in a refusal, which also told that phones are searched."""
    client = client_as("privacy")
    for asked in (PHONE, "12345", "2024-13-45", "+34 699 88 77 66", NUMBER):
        assert client.get("/patients/", query_string={"q": asked}).status_code == 200, asked
        assert client.get("/trail/", query_string={"patient": asked}).status_code == 200, asked
    assert len(client.get("/patients/find.json?q=vandersloot").get_json()["results"]) == 1


@pytest.mark.parametrize("field", ["telecom", "search_phone"])
def test_either_half_of_a_phone_hidden_hides_the_search(field: str, client_as: ClientAs, granted: Any) -> None:
    granted("Nurse", Patient=may("read", masked=[field]))
    assert client_as("nurse").get(f"/patients/find.json?q={PHONE[1:]}").get_json()["results"] == []


def test_a_word_that_was_meant_is_not_told_from_a_hidden_name(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    """Words of hidden names, and of patients elsewhere, help to find nobody and are not said."""
    sql("UPDATE patient SET given = 'Featherstone' WHERE id = :p", p=hospital.patients[6])
    try:
        granted("Nurse", Patient=may("read", masked=["other_names"]))
        found = client_as("nurse").get("/patients/find.json?q=featherstonehauhg").get_json()
        assert [patient["id"] for patient in found["results"]] == [hospital.patients[6]]
        assert found["meant"] == ["featherstone"]
        granted("Nurse", Patient=may("read", rows=RowScope.OWN_BRANCH))
        found = client_as("nurse").get("/patients/find.json?q=featherstonehauhg").get_json()
        assert [patient["id"] for patient in found["results"]] == [hospital.patients[6]]
        assert found["meant"] == ["featherstone"]
        granted("Nurse", Patient=may("read"))
        found = client_as("nurse").get("/patients/find.json?q=featherstonehauhg").get_json()
        assert found["meant"] == [MAIDEN.lower()]
    finally:
        sql("UPDATE patient SET given = 'Łucja' WHERE id = :p", p=hospital.patients[6])


def test_the_order_of_what_is_found_does_not_tell_of_a_hidden_name(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    """Whose name begins with what was typed comes first; a name that is not shown brings nobody forward."""
    sql("UPDATE patient SET given = 'Unfeathered' WHERE id = ANY(:p)", p=[hospital.patients[1], hospital.patients[2]])
    try:
        for masked, first in ((["other_names"], "Medina"), ([], "Vandersloot")):
            granted("Nurse", Patient=may("read", masked=masked))
            found = client_as("nurse").get("/patients/find.json?q=feather").get_json()["results"]
            assert len(found) == 2
            assert found[0]["name"].startswith(first)
    finally:
        sql("UPDATE patient SET given = 'Xerxes' WHERE id = :p", p=hospital.patients[1])
        sql("UPDATE patient SET given = 'Jesús' WHERE id = :p", p=hospital.patients[2])


TWIN = {"family": "Vandersloat", "given": "Xerkses"}


@pytest.mark.usefixtures("blinkered")
def test_the_look_for_duplicates_does_not_tell_whose_phone_or_number_it_is(
    client_as: ClientAs, hospital: Hospital
) -> None:
    client = client_as("nurse")
    token = csrf_of(client.page("/patients/register/"))

    def likenesses(**typed: str) -> list[Any]:
        answer = client.post("/patients/alike.json", data={"csrf_token": token, **typed})
        assert answer.status_code == 200
        found: list[Any] = answer.get_json()["duplicates"]
        return found

    nobody = {"family": "Absolutely", "given": "Nobody"}
    for field, real, other in (("phone", PHONE, "+34699887711"), ("identifier_value", NUMBER, "ZX-778811-Q")):
        more = {"identifier_system": "passport"} if field == "identifier_value" else {}
        assert likenesses(**nobody, **more, **{field: real}) == []
        assert likenesses(**TWIN, **more, **{field: real}) == likenesses(**TWIN, **more, **{field: other})
    maiden, other = (likenesses(family=family, given="Xerxes") for family in (MAIDEN, "Bumberstonehough"))
    assert maiden == other
    desk = client_as("reception")
    token = csrf_of(desk.page("/patients/register/"))
    answer = desk.post("/patients/alike.json", data={"csrf_token": token, **TWIN, "phone": PHONE})
    assert "same phone" in answer.get_json()["duplicates"][0]["reasons"]


@pytest.mark.usefixtures("blinkered")
@pytest.mark.parametrize(("phone", "number"), [(PHONE, NUMBER), ("+34699887711", "ZX-778811-Q")])
def test_the_service_does_not_look_by_what_is_hidden(acting: Acting, phone: str, number: str) -> None:
    """Whoever asks it with a phone or a number of their own gets what anybody's would have given them."""
    with acting("nurse"):
        found = patients.likely_duplicates(guard.session(), **TWIN, phones=[phone], identifiers=[("passport", number)])
        assert [(like.patient.family, like.reasons) for like in found] == [("Vandersloot", ("similar name",))]
        assert not patients.likely_duplicates(
            guard.session(), family="Absolutely", phones=[phone], identifiers=[("passport", number)]
        )


def test_pairs_are_shown_without_saying_that_a_hidden_field_is_alike(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    sql("UPDATE patient_link SET reasons = ARRAY['similar name', 'same phone', 'same identifier']")
    granted("Receptionist", Patient=may("read", masked=["telecom"]), PatientIdentifier=may("read", masked=["value"]))
    page = client_as("reception").page("/patients/duplicates/")
    assert "similar name" in page
    assert "same phone" not in page
    assert "same identifier" not in page
    granted("Receptionist", Patient=may("read"))
    assert "same phone" in client_as("reception").page("/patients/duplicates/")


# ---- hostile probes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probe:
    """One try at a hidden field, and what has to become of it."""

    method: str
    path: str
    status: int
    body: Any = None


def listing(resource: str, **asked: Any) -> str:
    return f"/api/v1/{resource}/?q={prison.dumps(asked)}"


def narrowed(resource: str, column: str, opr: str, value: Any) -> str:
    return listing(resource, filters=[{"col": column, "opr": opr, "value": value}])


PROBES: dict[str, Probe] = {
    "filter on a masked document": Probe("GET", narrowed("patient", "telecom", "ct", "699"), 403),
    "filter on what a phone is searched by": Probe("GET", narrowed("patient", "search_phone", "ct", "699887766"), 403),
    "filter on a masked list": Probe("GET", narrowed("patient", "languages", "eq", "tlh"), 403),
    "filter on a masked plain column": Probe("GET", narrowed("encounter", "reason", "eq", SAID), 403),
    "filter by the beginning": Probe("GET", narrowed("encounter", "reason", "sw", SAID[:3]), 403),
    "filter by what it is not": Probe("GET", narrowed("encounter", "reason", "neq", ""), 403),
    "filter that is greater": Probe("GET", narrowed("encounter", "type_display", "gt", "S"), 403),
    "filter with an operator nobody has": Probe("GET", narrowed("encounter", "reason", "regex", ".*"), 403),
    "filter hidden among harmless ones": Probe(
        "GET",
        listing(
            "encounter",
            filters=[
                {"col": "status", "opr": "eq", "value": "finished"},
                {"col": "reason", "opr": "eq", "value": SAID},
            ],
        ),
        403,
    ),
    "filter on the reason of a procedure": Probe("GET", narrowed("procedure", "reason", "ct", SAID), 403),
    "filter on a conclusion": Probe("GET", narrowed("diagnostic_report", "conclusion", "ct", SAID), 403),
    "filter on an address of the trail": Probe("GET", narrowed("audit_event", "user_agent", "ct", SAID), 403),
    "filter on a session of the trail": Probe("GET", narrowed("audit_event", "session_id", "eq", SAID), 403),
    "order by a masked column": Probe("GET", listing("encounter", order_column="reason", order_direction="asc"), 403),
    "order by it downwards": Probe(
        "GET", listing("encounter", order_column="type_display", order_direction="desc"), 403
    ),
    "order by what a phone is searched by": Probe("GET", listing("patient", order_column="search_phone"), 403),
    "order by a photo": Probe("GET", listing("patient", order_column="photo"), 403),
    "order by a network address": Probe("GET", listing("audit_event", order_column="address"), 403),
    "order by a column of a related table": Probe("GET", listing("encounter", order_column="patient.telecom"), 422),
    "filter by a column of a related table": Probe("GET", narrowed("encounter", "patient.telecom", "ct", "699"), 422),
    "filter by the relation itself": Probe("GET", narrowed("encounter", "patient", "rel_o_m", 1), 422),
    "filter on a column that is in no list": Probe(
        "GET", narrowed("patient", "search_name", "ct", MAIDEN.lower()), 422
    ),
    "order by the words a name is found by": Probe("GET", listing("patient", order_column="search_name"), 422),
    "ask for a column of a related table": Probe(
        "GET", listing("encounter", columns=["id", "patient.telecom", "patient.contact"]), 200
    ),
    "ask for columns that are not listed": Probe(
        "GET", listing("patient", columns=["id", "photo", "marital_status", "search_phone", "search_name"]), 200
    ),
    "ask for what keys say": Probe("GET", listing("patient", keys=["list_columns", "label_columns"]), 200),
    "ask for all at once": Probe("GET", listing("patient", page_size=-1), 200),
    "narrow a list in its address": Probe("GET", f"/patients/all/list/?_flt_0_telecom={PHONE}", 200),
    "narrow it by the word": Probe("GET", f"/patients/all/list/?_flt_2_search_phone={PHONE[1:]}", 200),
    "sort a list in its address": Probe("GET", "/patients/all/list/?_oc_PatientList=telecom&_od_PatientList=asc", 200),
    "sort it by what is not even shown": Probe("GET", "/patients/all/list/?_oc_PatientList=search_phone", 200),
    "the photo": Probe("GET", "/patients/{patient}/photo", 404),
    "change a masked field": Probe(
        "PUT", "/api/v1/patient/{patient}", 403, {"telecom": [{"system": "phone", "value": "+34600000002"}]}
    ),
    "empty a masked field of what is hidden": Probe("PUT", "/api/v1/patient/{patient}", 200, {"telecom": []}),
    "change the address": Probe("PUT", "/api/v1/patient/{patient}", 403, {"address": [{"city": "Elsewhere"}]}),
    "change next of kin": Probe("PUT", "/api/v1/patient/{patient}", 403, {"contact": [{"name": {"text": "Me"}}]}),
    "give a number that may be taken": Probe(
        "PUT", "/api/v1/patient/{other}", 403, {"identifiers": [{"system": "passport", "value": NUMBER}]}
    ),
    "register with a phone that may be known": Probe(
        "POST",
        "/api/v1/patient/",
        403,
        {"family": "Probe", "given": "One", "telecom": [{"system": "phone", "value": PHONE}]},
    ),
    "register with it and insist": Probe(
        "POST",
        "/api/v1/patient/",
        403,
        {"family": "Probe", "given": "Two", "telecom": [{"system": "phone", "value": PHONE}], "insist": True},
    ),
    "register with a number that may be taken": Probe(
        "POST",
        "/api/v1/patient/",
        403,
        {"family": "Probe", "given": "Three", "identifiers": [{"system": "passport", "value": NUMBER}], "insist": True},
    ),
    "register with a number nobody has": Probe(
        "POST",
        "/api/v1/patient/",
        403,
        {"family": "Probe", "given": "Four", "identifiers": [{"system": "passport", "value": "FREE"}], "insist": True},
    ),
    "register an unknown person with next of kin": Probe(
        "POST", "/api/v1/patient/", 403, {"temporary": True, "contact": [{"name": {"text": "Me"}}]}
    ),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_at_what_is_hidden_comes_to_nothing(
    name: str, blinkered: None, api_as: ApiAs, client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines
) -> None:
    probe = PROBES[name]
    client = api_as("nurse") if probe.path.startswith("/api/") else client_as("nurse")
    plain = client.get("/patients/all/list/") if "/all/list/" in probe.path else None
    before = whole()
    trail_lines.forget()
    path = probe.path.format(patient=hospital.patients[1], other=hospital.patients[2])
    answer = client.open(path, method=probe.method, **({"json": probe.body} if probe.body is not None else {}))
    assert answer.status_code == probe.status, answer.text[:300]
    for word in (*HIDDEN, "203.0.113.77"):
        assert word not in answer.text.replace(path, ""), word
    after = whole()
    for row in (*before["patient"], *after["patient"]):  # what was said again as it stood counts as saved
        row.pop("xmin"), row.pop("version"), row.pop("updated_at")
    before["all"].pop("max"), after["all"].pop("max")
    assert after == before
    if probe.status == 403:
        assert [event["outcome"] for event in trail_lines.events()][-1] == 4
        assert SAID not in str(trail_lines.events())
        assert PHONE not in str(trail_lines.events())
    if plain is not None:  # as if nothing had been said: no row more, none less, and in no other order
        assert re.findall(r"W\d{8,}", answer.text) == re.findall(r"W\d{8,}", plain.text)


def test_a_refusal_says_the_same_whether_the_value_is_there_or_not(blinkered: None, api_as: ApiAs) -> None:
    client = api_as("nurse")
    said = []
    for number in (NUMBER, "FREE-1"):
        body = {"family": "Probe", "given": "X", "identifiers": [{"system": "passport", "value": number}]}
        answer = client.post("/api/v1/patient/", json=body)
        said.append((answer.status_code, answer.get_json()["error"], answer.get_json()["message"]))
    assert said[0] == said[1]
    assert said[0][0] == 403


def test_the_gate_says_no_even_where_a_service_forgot(acting: Acting, blinkered: None, hospital: Hospital) -> None:
    with acting("nurse"), pytest.raises(Forbidden), guard.unit_of_work() as session:
        patient = session.get(Patient, hospital.patients[1])
        assert patient is not None
        assert patient.telecom == []
        patients.change(
            session,
            patient,
            factories.told("Vandersloot", "Xerxes", telecom=[{"system": "phone", "value": "+34600000003"}]),
        )
    assert PHONE in str(whole()["patient"][0]["telecom"])


def test_no_list_offers_a_field_that_can_be_hidden(app: Flask) -> None:
    """To filter or sort by: then nothing has to be taken away from it for a role that is not shown the field."""
    for view in app.appbuilder.baseviews:  # type: ignore[attr-defined]
        model = getattr(getattr(view, "datamodel", None), "obj", None)
        if model is None or hasattr(view, "resource_name"):
            continue
        hidable = set(policy.MASKABLE.get(model.__name__, ()))
        assert not hidable & {*view.search_columns, *view.order_columns, *(view.base_order or ())}, view


# ---- narrowed rows ---------------------------------------------------------------------------------------------------

CHART = ("Patient", "PatientIdentifier", "PatientLink", *policy.CLINICAL)


def narrow(granted: Any, role: str, rows: RowScope, **more: Grant | None) -> None:
    """Give a role patients and everything in their charts, as far as one scope reaches."""
    given: dict[str, Grant | None] = {
        name: may("read create update" if name == "Patient" else "read update", rows=rows) for name in CHART
    }
    granted(role, **given, EmergencyAccess=None, **more)


@dataclass(frozen=True)
class Narrowed:
    """Somebody whose rows are narrowed, and the patients they reach."""

    username: str
    reached: tuple[int, ...]
    beyond: tuple[int, ...]


@pytest.fixture(params=[RowScope.OWN_BRANCH, RowScope.CARE_TEAM])
def narrowed_to(request: pytest.FixtureRequest, granted: Any, hospital: Hospital) -> Iterator[Narrowed]:
    """A nurse of the first branch; or a doctor with an open visit of the second patient and a recent one of the fifth."""
    everybody = [row["id"] for row in sql("SELECT id FROM patient ORDER BY id")]
    if request.param == RowScope.OWN_BRANCH:
        narrow(granted, "Nurse", RowScope.OWN_BRANCH)
        reached = [
            row["id"]
            for row in sql("SELECT id FROM patient WHERE registered_at_id = :b ORDER BY id", b=hospital.branches[0])
        ]
        username = "nurse"
    else:
        narrow(granted, "Doctor", RowScope.CARE_TEAM)
        reached, username = [hospital.patients[1], hospital.patients[4]], "doctor"
        for patient, ended in ((reached[0], None), (reached[1], now() - timedelta(days=30))):
            sql(
                "INSERT INTO encounter (patient_id, practitioner_id, branch_id, status, class_code, type_display, reason, "
                "started_at, ended_at, fhir_id, version, created_at, updated_at) VALUES (:p, :d, :b, 'in-progress', 'AMB', "
                "'of the rows', '', now() - interval '200 days', :e, gen_random_uuid(), 1, now(), now())",
                p=patient,
                d=hospital.staff["doctor"],
                b=hospital.branches[1],
                e=ended,
            )
    yield Narrowed(username, tuple(reached), tuple(key for key in everybody if key not in reached))
    sql("DELETE FROM encounter WHERE type_display = 'of the rows'")


def names(keys: tuple[int, ...]) -> list[str]:
    found = sql("SELECT family FROM patient WHERE id = ANY(:keys)", keys=list(keys))
    return [row["family"].replace("'", "&#39;") for row in found]


def test_lists_and_searches_reach_the_rows_and_count_no_others(narrowed_to: Narrowed, client_as: ClientAs) -> None:
    client = client_as(narrowed_to.username)
    page = client.page("/patients/all/list/")
    assert all(name in page for name in names(narrowed_to.reached))
    assert not [name for name in names(narrowed_to.beyond) if name in page]
    assert f"of {len(narrowed_to.reached)}</span>" in page
    found = sql("SELECT id, family, mrn, search_phone FROM patient WHERE search_phone <> ''")
    for row in found:
        for asked in (row["family"], row["mrn"], row["search_phone"].split()[0]):
            results = client.get("/patients/find.json", query_string={"q": asked}).get_json()["results"]
            keys = {patient["id"] for patient in results}
            assert (row["id"] in keys) == (row["id"] in narrowed_to.reached), asked
            assert not keys & set(narrowed_to.beyond)
            rest = client.get("/api/v1/patient/search", query_string={"text": asked}).get_json()["result"]
            assert {patient["id"] for patient in rest} == keys


def test_charts_beyond_the_rows_stay_closed_in_every_way(
    narrowed_to: Narrowed, client_as: ClientAs, hospital: Hospital
) -> None:
    client = client_as(narrowed_to.username)
    before = sql("SELECT id, version FROM patient ORDER BY id")
    token = csrf_of(client.page("/"))
    for key in narrowed_to.beyond:
        name = names((key,))[0]
        for path in (
            f"/patients/{key}/",
            f"/patients/{key}/?tab=visits",
            f"/patients/{key}/edit/",
            f"/patients/{key}/photo",
        ):
            answer = client.get(path)
            assert answer.status_code in (403, 404), path
            assert name not in answer.text, path
        assert client.get(f"/api/v1/patient/{key}").status_code == 404
        sent = client.post(f"/patients/{key}/edit/", data={"family": "Changed", "csrf_token": token})
        assert sent.status_code in (403, 404, 422)
        put = client.put(f"/api/v1/patient/{key}", json={"family": "Changed"}, headers={"X-CSRFToken": token})
        assert put.status_code == 404
    assert sql("SELECT id, version FROM patient ORDER BY id") == before
    for key in narrowed_to.reached:
        assert client.get(f"/patients/{key}/").status_code == 200


RESOURCES = (
    *("patient", "encounter", "condition", "allergy_intolerance", "observation", "procedure", "immunization"),
    *("diagnostic_report", "medication_request"),
)


def test_rest_lists_and_their_counts_stay_within_the_rows(narrowed_to: Narrowed, api_as: ApiAs) -> None:
    client = api_as(narrowed_to.username)
    for resource in RESOURCES:
        whose = "id" if resource == "patient" else "patient_id"
        every = client.get(listing(resource, page_size=100)).get_json()
        assert {row[whose] for row in every["result"]} <= set(narrowed_to.reached), resource
        assert every["count"] == len(every["result"]) == len(every["ids"]), resource
        for key in (*narrowed_to.beyond[:3], *narrowed_to.reached[:2]):
            asked = client.get(narrowed(resource, whose, "eq", key)).get_json()
            assert asked["count"] == len(asked["result"])
            assert asked["count"] == 0 or key in narrowed_to.reached, resource
            ordered = client.get(
                listing(resource, filters=[{"col": whose, "opr": "neq", "value": key}], order_column="id")
            ).get_json()
            assert {row[whose] for row in ordered["result"]} <= set(narrowed_to.reached)


def test_a_row_of_a_chart_is_not_reached_by_its_number(
    narrowed_to: Narrowed, api_as: ApiAs, hospital: Hospital
) -> None:
    client = api_as(narrowed_to.username)
    for number, rows in enumerate((hospital.own_rows, hospital.rows)):
        expected = 200 if hospital.patients[number] in narrowed_to.reached else 404
        for model in ("Condition", "AllergyIntolerance", "Procedure", "Immunization", "MedicationRequest", "Encounter"):
            path = f"/api/v1/{re.sub(r'(?<!^)(?=[A-Z])', '_', model).lower()}/{rows[model]}"
            assert client.get(path).status_code == expected, path


def test_the_parts_of_a_chart_are_counted_as_far_as_they_reach(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    """Every patient, but visits and conditions of the own branch only: the tabs count what they show."""
    granted(
        "Nurse",
        Patient=may("read"),
        Encounter=may("read", rows=RowScope.OWN_BRANCH),
        Condition=may("read", rows=RowScope.OWN_BRANCH),
        EmergencyAccess=None,
    )
    client = client_as("nurse")
    for number, counted in ((0, True), (1, False)):
        page = client.page(f"/patients/{hospital.patients[number]}/")
        tabs = re.search(r'<nav class="tabs".*?</nav>', page, re.S).group()  # type: ignore[union-attr]
        for label in ("Visits", "Conditions"):
            assert bool(re.search(rf'{label} <span class="count">1</span>', tabs)) == counted, (number, label)
        assert 'Allergies <span class="count">1</span>' in tabs
    counted_rest = client.get(narrowed("encounter", "patient_id", "eq", hospital.patients[1])).get_json()["count"]
    assert counted_rest == 0


@pytest.mark.parametrize(("days", "reached"), [(89, True), (91, False)])
def test_ninety_days_after_a_visit_a_patient_is_nobodys_any_more(
    days: int, reached: bool, client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    narrow(granted, "Doctor", RowScope.CARE_TEAM)
    key = hospital.patients[7]
    sql(
        "INSERT INTO encounter (patient_id, practitioner_id, branch_id, status, class_code, type_display, reason, "
        "started_at, ended_at, fhir_id, version, created_at, updated_at) VALUES (:p, :d, :b, 'finished', 'AMB', "
        "'of the days', '', :e - interval '1 hour', :e, gen_random_uuid(), 1, now(), now())",
        p=key,
        d=hospital.staff["doctor"],
        b=hospital.branches[0],
        e=now() - timedelta(days=days),
    )
    try:
        client = client_as("doctor")
        assert (client.get(f"/patients/{key}/").status_code == 200) == reached
        assert client.get(narrowed("patient", "id", "eq", key)).get_json()["count"] == int(reached)
        assert len(client.get("/patients/find.json?q=nguyen").get_json()["results"]) == int(reached)
        page = client.page("/patients/all/list/")
        assert ("Nguyễn" in page) == reached
    finally:
        sql("DELETE FROM encounter WHERE type_display = 'of the days'")


def test_somebody_elses_visit_makes_nobody_ones_own(client_as: ClientAs, granted: Any, hospital: Hospital) -> None:
    narrow(granted, "Nurse", RowScope.CARE_TEAM)
    client = client_as("nurse")
    assert client.get(listing("patient")).get_json()["count"] == 0
    assert "No patient is here yet" in client.page("/patients/all/list/")
    assert client.get(f"/patients/{hospital.patients[1]}/").status_code in (403, 404)


def test_a_pair_is_shown_and_judged_by_who_sees_both_only(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    """One of the two is of the other branch: half a pair is none, and is not counted on the start page."""
    narrow(granted, "Receptionist", RowScope.OWN_BRANCH)
    sql("DELETE FROM practitioner_branch WHERE practitioner_id = :r", r=hospital.staff["reception"])
    link = hospital.rows["PatientLink"]
    try:
        client = client_as("reception")
        page = client.page("/patients/duplicates/")
        assert "Medina" not in page
        assert "Müller" not in page
        assert "Possibly registered twice" not in client.page("/")
        sent = client.post(f"/patients/duplicates/{link}/different", data={"csrf_token": csrf_of(client.page("/"))})
        assert sent.status_code == 404
        assert sql("SELECT reviewed_at FROM patient_link WHERE id = :l", l=link)[0]["reviewed_at"] is None
        sql("UPDATE patient SET registered_at_id = :b WHERE id = :p", b=hospital.branches[0], p=hospital.patients[3])
        assert "Müller" in client.page("/patients/duplicates/")
        assert "Possibly registered twice" in client.page("/")
    finally:
        sql("UPDATE patient SET registered_at_id = :b WHERE id = :p", b=hospital.branches[1], p=hospital.patients[3])
        sql(
            "INSERT INTO practitioner_branch (practitioner_id, branch_id) VALUES (:r, :b)",
            r=hospital.staff["reception"],
            b=hospital.branches[1],
        )


def test_registering_does_not_tell_of_patients_beyond_the_rows(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    narrow(granted, "Nurse", RowScope.OWN_BRANCH)
    client = client_as("nurse")
    token = csrf_of(client.page("/patients/register/"))
    typed = {"family": "Vandersloot", "given": "Xerxes", "birth_date": "1982-11-30", "phone": PHONE}
    answer = client.post("/patients/alike.json", data={"csrf_token": token, **typed})
    assert answer.get_json() == {"duplicates": []}


def test_the_trail_of_the_own_branch(client_as: ClientAs, api_as: ApiAs, granted: Any, hospital: Hospital) -> None:
    granted("PrivacyOfficer", AuditEvent=may("read", rows=RowScope.OWN_BRANCH))
    here, there = hospital.branches
    client = client_as("privacy")
    for path in ("/trail/", f"/trail/?branch={there}", f"/trail/?branch={here}", "/trail/?person=Seen"):
        page = client.page(path)
        assert f"Seen at {there}" not in page, path
        assert (f"Seen at {here}" in page) == (path != f"/trail/?branch={there}"), path
    answer = api_as("privacy").get(listing("audit_event", page_size=100))
    assert answer.status_code == 200, answer.text
    listed = answer.get_json()
    assert {row["branch_id"] for row in listed["result"]} == {here}
    assert listed["count"] == len(listed["result"])
    assert api_as("privacy").get(narrowed("audit_event", "branch_id", "eq", there)).get_json()["count"] == 0


def test_the_trail_names_only_patients_its_reader_may_see(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    granted("PrivacyOfficer", Patient=may("read", rows=RowScope.OWN_BRANCH))
    page = client_as("privacy").page("/trail/?person=Seen")
    assert f"#{hospital.patients[1]}" in page
    assert "Vandersloot" not in page
    granted("PrivacyOfficer", Patient=None)
    client = client_as("privacy")
    assert f"#{hospital.patients[1]}" in client.page("/trail/?person=Seen")
    assert client.get("/trail/?patient=vandersloot").status_code == 200
    assert "Seen at" not in client.page("/trail/?patient=vandersloot")


def test_drop_downs_offer_no_patients(app: Flask) -> None:
    """Nothing of the chart is chosen from a list that could name somebody beyond the rows."""
    for view in app.appbuilder.baseviews:  # type: ignore[attr-defined]
        if not hasattr(view, "search_columns") or hasattr(view, "resource_name"):
            continue
        for name in {*view.search_columns, *view.add_columns, *view.edit_columns}:
            if view.datamodel.is_relation(name):
                related = view.datamodel.get_related_model(name)
                assert getattr(related, "patient_key", None) is None, (view, name)


# ---- odd roles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", [name for name in policy.RESOURCES if name not in ("User", "Role")])
def test_a_role_with_one_resource_alone_opens_its_pages(
    resource: str, client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    """Also one that may change what it may not read: nothing breaks, and the start page always opens."""
    nothing = dict.fromkeys(policy.MATRIX["Nurse"])
    key = hospital.patients[1]
    for actions in ("read create update", "create update"):
        able = set(actions.split()) & set(policy.POSSIBLE[resource])
        if not able:
            continue
        granted("Nurse", **{**nothing, resource: Grant(frozenset(able))})
        client = client_as("nurse")
        page = client.page("/")
        ways = set(re.findall(r'<li><a href="(/[^"]*)"', page))
        for path in (
            *ways,
            "/patients/",
            f"/patients/{key}/",
            "/patients/duplicates/",
            "/trail/",
            "/patients/all/list/",
        ):
            assert client.get(path).status_code in (200, 302, 403, 404), (path, actions)


def test_a_yes_or_no_column_narrows_a_list(client_as: ClientAs) -> None:
    client = client_as("reception")
    everybody = client.page("/patients/all/list/?_flt_0_active=true").count("<tr>")
    assert everybody > 10
    assert "Nothing matches" in client.page("/patients/all/list/?_flt_0_active=false")
    assert client.page("/patients/all/list/?_flt_0_active=perhaps").count("<tr>") == everybody
    assert client.get("/patients/all/list/?_flt_7_active=true").status_code == 422
