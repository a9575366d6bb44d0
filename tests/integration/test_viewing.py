"""Looking as a role: what is shown, that nothing is changed, that no note is ever seen, and how it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from app import guard, policy, trail
from app.policy import Role, may
from app.services import roles
from jobs import trail as drainer
from models.base import metadata
from models.codes import RowScope
from ops.servers import Servers, free_port
from tests import factories
from tests.architecture.test_routes import SENTINELS, addresses, everything_to_read, values_of
from tests.conftest import Browser, TrailLines, csrf_of
from tests.factories import PASSWORD, Hospital

ClientAs = Callable[[str], Browser]
BANNER = "You are looking at Wardbook as"
FOR_WHOEVER_HAS_THE_PAPER = {"/rx/"}
"""What needs no sign-in and shows nothing by role."""
REFUSED = "Nothing can be changed until you go back to your own view."
OWN_WRITING = ("audit_event", "audit_outbox", "drain_state")


def sql(statement: str, **values: Any) -> list[Any]:
    """Something done or asked past the application."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


def everything() -> dict[str, str]:
    """A digest of every table, but for the trail's own."""
    tables = [t.name for t in metadata.sorted_tables if t.name not in OWN_WRITING and not t.info.get("view")]
    found = {}
    for name in tables:
        rows = sql(f"SELECT t::text AS row FROM {name} t ORDER BY 1")
        found[name] = hashlib.sha256("\n".join(row["row"] for row in rows).encode()).hexdigest()
    return found


@pytest.fixture
def viewing(client_as: ClientAs) -> Callable[[str], Browser]:
    """The administrator's browser, looking as a role."""

    def look(role: str) -> Browser:
        client = client_as("admin")
        answer = client.submit("/view-as/", {"role": role})
        assert answer.status_code == 302, answer.text
        return client

    return look


def end(client: Browser) -> Any:
    """The button of the banner."""
    return client.post("/view-as/end", data={"csrf_token": csrf_of(client.get("/nothing-here").text)})


@pytest.fixture
def role_named(hospital: Hospital) -> Any:
    """Make a role for one test, and take it away afterwards."""
    made: list[int] = []

    def make(name: str, **grants: policy.Grant) -> int:
        with factories.acting(hospital.accounts["admin"]), guard.unit_of_work() as session:
            made.append(roles.create_role(session, name=name, reason="for a test").id)
        factories.rewrite(hospital, name, grants)
        return made[-1]

    yield make
    for key in made:
        sql("DELETE FROM ab_user_role WHERE role_id = :r", r=key)
        sql("DELETE FROM ab_permission_view_role WHERE role_id = :r", r=key)
        sql("DELETE FROM ab_role WHERE id = :r", r=key)


# ---- what is shown -------------------------------------------------------------------------------------------------


def test_every_page_says_so_and_leads_back(viewing: Callable[[str], Browser], hospital: Hospital) -> None:
    client = viewing("Nurse")
    for path, status in (
        ("/", 200),
        ("/patients/", 200),
        (f"/patients/{hospital.patients[1]}/", 200),
        ("/me/", 200),
        ("/trail/", 403),
        ("/patients/duplicates/", 403),
        ("/nothing-here", 404),
        ("/patients/999999/", 404),
    ):
        answer = client.get(path)
        assert answer.status_code == status, path
        assert f"{BANNER} Nurse." in answer.text, path
        assert "Nothing can be changed." in answer.text
        assert 'action="/view-as/end"' in answer.text
    assert end(client).status_code == 302
    for path in ("/", "/trail/", "/nothing-here"):
        assert BANNER not in client.get(path).text


def test_nobody_else_sees_a_banner(client_as: ClientAs) -> None:
    for username in ("admin", "nurse"):
        assert BANNER not in client_as(username).page("/")


def test_the_way_in_is_offered_to_who_configures_roles_only(client_as: ClientAs) -> None:
    page = client_as("admin").page("/")
    assert 'href="/view-as/"' in page
    assert 'href="/view-as/"' not in client_as("nurse").page("/")
    offered = client_as("admin").page("/view-as/")
    for spoken in policy.SPOKEN.values():
        assert spoken in offered


@pytest.mark.parametrize("role", [*Role])
def test_nothing_is_shown_that_the_role_or_the_administrator_is_not_shown(
    role: str, app: Flask, viewing: Callable[[str], Browser], hospital: Hospital
) -> None:
    """The walk of every address and every API, with the sentinels of both; a note never comes."""
    client = viewing(role)
    username = next(name for name, (held, _, _) in factories.PEOPLE.items() if held == role)
    kept = {*SENTINELS["admin"], *SENTINELS[username], factories.NOTE, factories.DOCUMENT, factories.SOURCE}
    if role == Role.PATIENT:
        kept |= {"Vandersloot", "Medina", "Kowalska", "Zinnia", "PASS0000"}
    shown = 0
    for address in everything_to_read(app, hospital):
        if "/view-as/end" in address:
            continue
        answer = client.get(address)
        assert answer.status_code < 500, f"{address} answered {answer.status_code}"
        for word in (*kept, "scrypt:", "Traceback", "psycopg"):
            assert word not in answer.text, f"{address} shows {word} as {role}"
        if answer.status_code == 200 and answer.mimetype == "text/html" and address not in FOR_WHOEVER_HAS_THE_PAPER:
            assert BANNER in answer.text, address
            shown += 1
    assert shown >= 3


def test_it_is_the_same_house_the_role_is_shown(
    viewing: Callable[[str], Browser], client_as: ClientAs, hospital: Hospital
) -> None:
    """Tabs of a chart and columns of the API: an administrator looking as a nurse sees what a nurse sees."""
    mine, theirs = viewing("Nurse"), client_as("nurse")
    chart = f"/patients/{hospital.patients[1]}/"
    for tab in ("allergies", "medications", "observations", "visits", "immunisations"):
        assert (mine.get(f"{chart}?tab={tab}").status_code, theirs.get(f"{chart}?tab={tab}").status_code) == (200, 200)
    for tab in ("conditions", "procedures", "reports", "documents"):
        assert (mine.get(f"{chart}?tab={tab}").status_code, theirs.get(f"{chart}?tab={tab}").status_code) == (403, 403)
    for resource in ("patient", "encounter", "observation", "allergy_intolerance"):
        path = f"/api/v1/{resource}/?q=(page_size:100)"
        assert mine.get(path).get_json() == theirs.get(path).get_json(), resource
    assert "Haemoglobin" not in mine.get(f"{chart}?tab=observations").text


def test_masks_of_a_role_hold_for_who_looks_as_it(
    viewing: Callable[[str], Browser], client_as: ClientAs, hospital: Hospital
) -> None:
    path = f"/api/v1/patient/{hospital.patients[1]}"
    assert client_as("admin").get(path).get_json()["result"]["telecom"]
    client = viewing("PrivacyOfficer")
    assert client.get(path).get_json()["result"]["telecom"] is None
    assert "Vandersloot" not in client.get("/patients/?q=34911234568").text


def test_rows_of_a_role_hold_for_who_looks_as_it(
    viewing: Callable[[str], Browser], granted: Any, hospital: Hospital
) -> None:
    granted("Nurse", Patient=may("read", rows=RowScope.OWN_BRANCH))
    client = viewing("Nurse")
    assert client.get(f"/patients/{hospital.patients[2]}/").status_code == 200  # of the administrator's branch
    assert client.get(f"/patients/{hospital.patients[3]}/").status_code in (403, 404)
    granted("Nurse", Patient=may("read", rows=RowScope.CARE_TEAM))
    assert client.get(f"/patients/{hospital.patients[2]}/").status_code in (403, 404)
    assert client.get("/api/v1/patient/").get_json()["count"] == 0


def test_the_house_of_a_patient_is_empty_and_says_why(viewing: Callable[[str], Browser]) -> None:
    client = viewing("Patient")
    page = client.page("/")
    assert "A patient sees their own record only" in page
    assert "Find a patient" not in page
    assert client.get("/api/v1/patient/").get_json()["count"] == 0
    assert client.get("/patients/find.json?q=quartermain").get_json()["results"] == []


def test_a_role_that_is_granted_nothing_shows_an_empty_house(
    viewing: Callable[[str], Browser], role_named: Any
) -> None:
    role_named("Volunteer")
    client = viewing("Volunteer")
    for _ in range(2):
        assert f"{BANNER} Volunteer." in client.page("/")
    assert client.get("/patients/").status_code == 403


# ---- who may -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("username", [name for name in factories.PEOPLE if name != "admin"])
def test_only_who_configures_roles_may(username: str, client_as: ClientAs, trail_lines: TrailLines) -> None:
    client = client_as(username)
    token = csrf_of(client.page("/"))
    trail_lines.forget()
    answer = client.post("/view-as/", data={"role": "Patient", "csrf_token": token})
    assert answer.status_code == 403
    assert client.get("/view-as/").status_code == 403
    assert BANNER not in client.page("/")
    assert [event["outcome"] for event in trail_lines.events() if event["subtype"] == "update"] == [4, 4]


@pytest.mark.parametrize("name", ["", "Nobody", "nurse", "service:import", "Retired one", "as:Nurse", "Nurse\x00"])
def test_a_role_that_is_not_in_use_is_refused_and_noted(
    name: str, client_as: ClientAs, role_named: Any, hospital: Hospital, trail_lines: TrailLines
) -> None:
    key = role_named("Retired one", Patient=may("read"))
    with factories.acting(hospital.accounts["admin"]), guard.unit_of_work() as session:
        roles.retire_role(session, key, reason="for a test")
    client = client_as("admin")
    assert "Retired one" not in client.page("/view-as/")
    trail_lines.forget()
    answer = client.submit("/view-as/", {"role": name})
    assert answer.status_code == 403
    assert "not in use" in answer.text
    assert BANNER not in client.page("/")
    assert [event["entities"] for event in trail_lines.events() if event["outcome"] == 4] == [[{"type": "Role"}]]


def test_who_reads_roles_but_does_not_configure_them_may_not(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    granted("BillingClerk", Role=may("read"))
    client = client_as("billing")
    assert client.post("/view-as/", data={"role": "Nurse", "csrf_token": csrf_of(client.page("/"))}).status_code == 403
    with guard.acting_as(guard.actors.nobody()):
        actor = guard.who_is(hospital.accounts["billing"], guard.Origin(), viewing_as="Nurse")
    assert actor is not None
    assert actor.viewing_as is None
    assert not actor.may("read", "AllergyIntolerance")


# ---- nothing is changed --------------------------------------------------------------------------------------------


def test_whatever_is_sent_is_refused(
    app: Flask, viewing: Callable[[str], Browser], hospital: Hospital, trail_lines: TrailLines
) -> None:
    """Every method of every address but GET, by cookie, with a good token against forgery: 403 and no change."""
    client = viewing("Admin")
    token = csrf_of(client.page("/"))
    before = everything()
    sent = 0
    for method, endpoint, address in addresses(app, values_of(hospital)):
        if method == "GET" or endpoint in ("Viewing.end", "SignInView.logout", "BranchChoice.choose"):
            continue
        trail_lines.forget()
        fields = {"csrf_token": token, "role": "Nurse", "family": "Changed", "name": "Changed"}
        body: dict[str, Any] = {"json": {"family": "Changed"}} if address.startswith("/api/") else {"data": fields}
        answer = client.open(address, method=method, headers={"X-CSRFToken": token}, **body)
        sent += 1
        assert answer.status_code == 403, f"{method} {address} answered {answer.status_code}"
        assert REFUSED in answer.text, f"{method} {address}"
        assert [event["outcome"] for event in trail_lines.events()] == [4], address
    assert sent > 20
    assert everything() == before
    assert f"{BANNER} Administrator." in client.page("/")


def test_an_unknown_address_takes_nothing_either(viewing: Callable[[str], Browser]) -> None:
    assert viewing("Nurse").post("/nothing-here").status_code == 403


def test_a_wish_to_change_by_reading_is_refused_beneath(viewing: Callable[[str], Browser], hospital: Hospital) -> None:
    """The forms are not even shown: the rights are those of reading."""
    client = viewing("Receptionist")
    for path in ("/patients/register/", f"/patients/{hospital.patients[1]}/edit/", "/patients/duplicates/"):
        assert client.get(path).status_code == 403, path
    assert 'href="/patients/register/"' not in client.page("/patients/")


def test_one_may_look_from_another_place_and_sign_out(
    viewing: Callable[[str], Browser], client_as: ClientAs, hospital: Hospital
) -> None:
    client = viewing("Nurse")
    token = csrf_of(client.page("/"))
    answer = client.post("/branch/", data={"branch_id": hospital.branches[0], "csrf_token": token})
    assert answer.status_code == 302
    assert BANNER in client.page("/")
    answer = client.post("/logout/", data={"csrf_token": token})
    assert answer.status_code == 302
    assert client.get("/").status_code == 302
    again = client.submit("/login/", {"username": "admin", "password": PASSWORD})
    assert again.status_code == 302
    assert BANNER not in client.page("/")


def test_what_one_opened_oneself_is_neither_shown_nor_changed(
    viewing: Callable[[str], Browser], client_as: ClientAs, hospital: Hospital
) -> None:
    client = client_as("admin")
    client.page(f"/patients/{hospital.patients[1]}/")
    assert "Vandersloot" in client.page("/")
    client.submit("/view-as/", {"role": "Nurse"})
    assert "Vandersloot" not in client.page("/")
    client.page(f"/patients/{hospital.patients[2]}/")
    end(client)
    page = client.page("/")
    assert "Vandersloot" in page
    assert "Medina" not in page


# ---- the API, and tokens ---------------------------------------------------------------------------------------------


def test_a_call_with_the_cookie_looks_as_the_role_too(viewing: Callable[[str], Browser], hospital: Hospital) -> None:
    client = viewing("Pharmacist")
    assert client.get("/api/v1/medication_request/").status_code == 200
    assert client.get("/api/v1/condition/").status_code == 403
    before = everything()
    token = csrf_of(client.page("/"))
    answer = client.put(
        f"/api/v1/patient/{hospital.patients[1]}", json={"family": "Changed"}, headers={"X-CSRFToken": token}
    )
    assert answer.status_code == 403
    assert answer.get_json()["error"] == "LookingOnly"
    assert everything() == before


def test_a_token_has_nothing_to_do_with_it(
    viewing: Callable[[str], Browser], token_for: Callable[..., str], hospital: Hospital
) -> None:
    client = viewing("Patient")
    carried = {"Authorization": f"Bearer {token_for('admin')}"}
    assert client.get("/api/v1/patient/", headers=carried).get_json()["count"] > 5
    key = hospital.patients[5]
    answer = client.put(f"/api/v1/patient/{key}", json={"prefix": "Dr."}, headers=carried)
    assert answer.status_code == 200
    assert sql("SELECT prefix FROM patient WHERE id = :k", k=key)[0]["prefix"] == "Dr."
    assert client.post("/view-as/end", headers=carried).status_code == 302
    assert f"{BANNER} Patient." in client.page("/")


def test_a_token_cannot_look_as_a_role(api_as: Callable[[str], FlaskClient]) -> None:
    client = api_as("admin")
    assert client.post("/view-as/", data={"role": "Nurse"}).status_code == 403
    assert client.get("/api/v1/condition/").status_code == 200


# ---- the trail -------------------------------------------------------------------------------------------------------


def test_beginning_looking_and_ending_are_in_the_trail(
    client_as: ClientAs, trail_lines: TrailLines, hospital: Hospital
) -> None:
    client = client_as("admin")
    client.page("/view-as/")
    trail_lines.forget()
    client.submit("/view-as/", {"role": "Nurse"})
    client.page(f"/patients/{hospital.patients[1]}/")
    client.get("/trail/")
    end(client)
    client.page(f"/patients/{hospital.patients[1]}/")
    told = [
        (entry["agent"]["roles"], entry["agent"]["purpose"], event["subtype"], event["outcome"], event["reason"])
        for entry in trail_lines.entries()
        for event in entry["events"]
        if event["subtype"] == "view-as" or event["outcome"] or event["patient_id"] == hospital.patients[1]
    ]
    looking = ["Admin", "as:Nurse"]
    assert told == [
        (looking, "HSYSADMIN", "view-as", 0, "began"),
        (looking, "HSYSADMIN", "read", 0, None),
        (looking, "HSYSADMIN", "read", 4, "Forbidden"),
        (looking, "HSYSADMIN", "view-as", 0, "ended"),
        (["Admin"], "HSYSADMIN", "read", 0, None),
    ]


def test_what_cannot_be_noted_does_not_begin(
    client_as: ClientAs, servers: Servers, spool: Path, tmp_path: Path
) -> None:
    client = client_as("admin")
    token = csrf_of(client.page("/"))
    nowhere = tmp_path / "a file where a folder is wanted"
    nowhere.write_text("")
    trail.connect(f"redis://127.0.0.1:{free_port()}/0", nowhere)
    try:
        assert client.post("/view-as/", data={"role": "Nurse", "csrf_token": token}).status_code == 503
    finally:
        trail.connect(servers.trail_redis_url, spool)
    assert BANNER not in client.page("/")


# ---- how it ends -----------------------------------------------------------------------------------------------------


def test_it_ends_when_the_role_is_retired(
    viewing: Callable[[str], Browser], role_named: Any, hospital: Hospital, trail_lines: TrailLines
) -> None:
    key = role_named("Passing", Patient=may("read"))
    client = viewing("Passing")
    assert f"{BANNER} Passing." in client.page("/patients/")
    token = csrf_of(client.page("/"))
    trail_lines.forget()
    with factories.acting(hospital.accounts["admin"]), guard.unit_of_work() as session:
        roles.retire_role(session, key, reason="for a test")
    before = everything()
    sent = client.post("/patients/register/", data={"csrf_token": token, "family": "Late", "given": "Change"})
    assert (sent.status_code, everything()) == (403, before)  # it was sent while one still seemed to look
    assert BANNER not in client.page("/trail/")
    ended = [event for event in trail_lines.events() if event["subtype"] == "view-as"]
    assert [(event["entities"], event["reason"]) for event in ended] == [([{"type": "Role", "of": "Passing"}], "ended")]
    with factories.acting(hospital.accounts["admin"]), guard.unit_of_work() as session:
        roles.retire_role(session, key, reason="for a test", back=True)
    assert BANNER not in client.page("/")


def test_it_ends_when_one_configures_roles_no_more(
    client_as: ClientAs, role_named: Any, hospital: Hospital, trail_lines: TrailLines
) -> None:
    role_named("Second administrator", Role=may("read update"), User=may("read update"), Room=may("read"))
    sql(
        "INSERT INTO ab_user_role (user_id, role_id) SELECT :u, id FROM ab_role WHERE name = 'Second administrator'",
        u=hospital.accounts["pharmacist"],
    )
    client = client_as("pharmacist")
    assert client.submit("/view-as/", {"role": "Receptionist"}).status_code == 302
    assert f"{BANNER} Receptionist." in client.page("/")
    assert client.get("/api/v1/medication_request/").status_code == 403
    factories.rewrite(hospital, "Second administrator", {"Room": may("read")})
    trail_lines.forget()
    assert client.get("/api/v1/medication_request/").status_code == 200
    assert BANNER not in client.page("/")
    ended = [entry["agent"] for entry in trail_lines.entries() if entry["events"][0]["subtype"] == "view-as"]
    assert [agent["roles"][-1] for agent in ended] == ["as:Receptionist"]
    factories.rewrite(hospital, "Second administrator", {"Role": may("read update"), "User": may("read update")})
    assert BANNER not in client.page("/")


def test_it_ends_with_the_session_and_the_next_person_is_themselves(
    viewing: Callable[[str], Browser], hospital: Hospital
) -> None:
    client = viewing("Nurse")
    sql("UPDATE credential SET generation = generation + 1 WHERE user_id = :u", u=hospital.accounts["admin"])
    assert client.get("/").status_code == 302
    assert client.submit("/login/", {"username": "doctor", "password": PASSWORD}).status_code == 302
    assert BANNER not in client.page("/")


def test_ending_what_has_not_begun_does_nothing(client_as: ClientAs, trail_lines: TrailLines) -> None:
    client = client_as("nurse")
    trail_lines.forget()
    assert end(client).status_code == 302
    assert not [event for event in trail_lines.events() if event["subtype"] == "view-as"]


def test_it_can_be_ended_by_nobody_else(viewing: Callable[[str], Browser]) -> None:
    """A forged request from another site carries no token."""
    client = viewing("Nurse")
    assert client.post("/view-as/end").status_code == 400
    assert BANNER in client.page("/")


def test_the_privacy_officer_reads_of_it(client_as: ClientAs) -> None:
    client = client_as("admin")
    client.submit("/view-as/", {"role": "Receptionist"})
    client.get("/trail/")
    end(client)
    drainer.drain()
    page = client_as("privacy").page("/trail/?person=Agnes")
    assert "Began to look as a role" in page
    assert "Stopped looking as a role" in page
    assert "looking as Receptionist" in page
    assert "role Receptionist" in page
