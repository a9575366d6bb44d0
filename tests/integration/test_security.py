"""Signing in and out, sessions, tokens, forged requests, and rights that change while somebody is at work."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urljoin, urlsplit

import jwt
import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from app import guard
from app.services import credentials
from models.clinical import Encounter
from models.patients import Patient, PatientLink
from ops.servers import Servers
from tests import factories
from tests.conftest import Browser, TrailLines, csrf_of
from tests.factories import PASSWORD, Hospital

ClientAs = Callable[[str], Browser]


def sql(statement: str, **values: Any) -> list[Any]:
    """Something done or asked past the application, as an administrator of the database would."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


def close(username: str, *, active: bool = False) -> None:
    sql("UPDATE ab_user SET active = :active WHERE username = :username", active=active, username=username)


@pytest.fixture
def set_roles() -> Any:
    """Give an account other roles for one test."""
    before: dict[str, list[int]] = {}

    def change(username: str, *roles: str) -> None:
        user = sql("SELECT id FROM ab_user WHERE username = :u", u=username)[0]["id"]
        held = [row["role_id"] for row in sql("SELECT role_id FROM ab_user_role WHERE user_id = :u", u=user)]
        before.setdefault(username, held)
        sql("DELETE FROM ab_user_role WHERE user_id = :u", u=user)
        for role in roles:
            sql(
                "INSERT INTO ab_user_role (user_id, role_id) SELECT :u, id FROM ab_role WHERE name = :r", u=user, r=role
            )

    yield change
    for username, held in before.items():
        change(username)
        for role in held:
            sql(
                "INSERT INTO ab_user_role (user_id, role_id) SELECT id, :r FROM ab_user WHERE username = :u",
                u=username,
                r=role,
            )


def cookie_of(client: FlaskClient) -> str:
    cookie = client.get_cookie("wardbook")
    assert cookie is not None
    return cookie.value


# ---- signing in and out --------------------------------------------------------------------------------------------


def test_the_session_gets_another_number_at_sign_in(browser: Callable[[], Browser], servers: Servers) -> None:
    client = browser()
    token = csrf_of(client.page("/login/"))
    before = cookie_of(client)
    client.post("/login/", data={"username": "doctor", "password": PASSWORD, "csrf_token": token})
    after = cookie_of(client)
    assert after != before
    thief = browser()
    thief.set_cookie("wardbook", before)
    assert thief.get("/").status_code == 302
    assert redis.Redis.from_url(servers.redis_url).get(f"session:{before}") is None


def test_signing_out_ends_the_session_on_the_server(client_as: ClientAs, browser: Callable[[], Browser]) -> None:
    client = client_as("doctor")
    stolen = cookie_of(client)
    client.get("/logout/")
    assert client.get("/patients/").status_code == 302
    thief = browser()
    thief.set_cookie("wardbook", stolen)
    assert thief.get("/patients/").status_code == 302


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("doctor", "wrong"),
        ("nobody-here", PASSWORD),
        ("", ""),
        ("doctor\x00", PASSWORD),
        ("d" * 10_000, "x"),
        ("' OR 1=1 --", "x"),
    ],
)
def test_a_failed_sign_in_says_nothing_about_why(
    username: str, password: str, browser: Callable[[], Browser], trail_lines: TrailLines
) -> None:
    client = browser()
    nobody = {"username": f"nobody {password[:9]}", "password": "also wrong"}
    reference = browser().submit("/login/", nobody, follow_redirects=True)
    trail_lines.forget()
    answer = client.submit("/login/", {"username": username, "password": password}, follow_redirects=True)
    assert answer.status_code < 500
    assert client.get("/patients/").status_code == 302
    assert "Traceback" not in answer.text
    if username and password:
        said = [line for line in reference.text.splitlines() if "alert" in line or "flash" in line]
        assert all(line in answer.text for line in said)
    for entry in trail_lines.entries():
        assert entry["agent"]["agent_name"] in ("", "doctor")
        assert password not in json.dumps(entry) or not password


def test_a_closed_account_cannot_sign_in(browser: Callable[[], Browser]) -> None:
    close("lab")
    try:
        client = browser()
        client.submit("/login/", {"username": "lab", "password": PASSWORD})
        assert client.get("/").status_code == 302
        body = {"username": "lab", "password": PASSWORD, "provider": "db"}
        assert browser().post("/api/v1/security/login", json=body).status_code == 401
    finally:
        close("lab", active=True)


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)"]
)
def test_signing_in_leads_nowhere_else(target: str, browser: Callable[[], Browser]) -> None:
    client = browser()
    token = csrf_of(client.page("/login/", query_string={"next": target}))
    answer = client.post(
        "/login/", query_string={"next": target}, data={"username": "doctor", "password": PASSWORD, "csrf_token": token}
    )
    assert answer.status_code == 302
    place = urlsplit(urljoin("http://localhost/login/", answer.headers["Location"]))
    assert (place.scheme, place.netloc) == ("http", "localhost")


def test_guessing_is_slowed_down_on_the_form_and_on_the_api(browser: Callable[[], Browser], hospital: Hospital) -> None:
    client = browser()
    token = csrf_of(client.page("/login/"))
    tries = [
        client.post("/login/", data={"username": "billing", "password": f"x{n}", "csrf_token": token}).status_code
        for n in range(8)
    ]
    assert tries == [401] * 5 + [429] * 3
    assert client.submit("/login/", {"username": "billing", "password": PASSWORD}).status_code == 429
    body = {"username": "billing", "password": PASSWORD, "provider": "db"}
    answer = browser().post("/api/v1/security/login", json=body)
    assert (answer.status_code, answer.get_json()["error"]) == (429, "TooManyTries")
    assert 0 < int(answer.headers["Retry-After"]) <= 61
    credentials.unlock(hospital.accounts["billing"])
    assert browser().post("/api/v1/security/login", json=body).status_code == 200


def test_the_session_kept_on_the_server_names_no_patient(
    client_as: ClientAs, servers: Servers, hospital: Hospital
) -> None:
    client = client_as("reception")
    client.page(f"/patients/{hospital.patients[1]}/")
    client.get("/patients/?q=vandersloot")
    kept = redis.Redis.from_url(servers.redis_url).get(f"session:{cookie_of(client)}")
    assert kept
    assert b"andersloot" not in kept
    assert b"scrypt" not in kept


def test_what_a_browser_is_told_about_a_page(client_as: ClientAs, browser: Callable[[], Browser]) -> None:
    answer = client_as("doctor").get("/patients/")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-inline" not in policy
    assert "unsafe-eval" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    cookie = browser().get("/login/").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


# ---- forged requests -----------------------------------------------------------------------------------------------


def test_a_form_without_its_token_changes_nothing(client_as: ClientAs, hospital: Hospital) -> None:
    client = client_as("reception")
    before = factories.number_of(Patient)
    for data in ({}, {"csrf_token": "x"}, {"csrf_token": csrf_of(client_as("nurse").page("/patients/register/"))}):
        answer = client.post("/patients/register/", data={"family": "Forged", "given": "One", "insist": "1", **data})
        assert answer.status_code == 400
    assert factories.number_of(Patient) == before
    answer = client.post(f"/patients/duplicates/{hospital.rows['PatientLink']}/different")
    assert answer.status_code == 400
    assert factories.stored(PatientLink, hospital.rows["PatientLink"])["reviewed_at"] is None


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic ZG9jdG9yOng="}, {"Authorization": "bearer x"}])
def test_a_rest_call_by_cookie_needs_the_token(headers: dict[str, str], client_as: ClientAs) -> None:
    client = client_as("reception")
    before = factories.number_of(Patient)
    body = {"family": "Forged", "given": "Two", "insist": True}
    assert client.post("/api/v1/patient/", json=body, headers=headers).status_code in (400, 401)
    assert factories.number_of(Patient) == before
    token = csrf_of(client.page("/patients/register/"))
    assert client.post("/api/v1/patient/", json=body, headers={"X-CSRFToken": token}).status_code == 201


def test_a_cookie_counts_for_nothing_beside_a_token_that_is_none(client_as: ClientAs) -> None:
    client = client_as("reception")
    before = factories.number_of(Patient)
    for address in ("/api/v1/patient/", "/patients/register/"):
        answer = client.post(
            address, json={"family": "F", "given": "T", "insist": True}, headers={"Authorization": "Bearer forged"}
        )
        assert answer.status_code == 401
    assert factories.number_of(Patient) == before


def test_a_token_of_one_person_beats_the_cookie_of_another(
    client_as: ClientAs, token_for: Callable[..., str], hospital: Hospital
) -> None:
    client = client_as("doctor")
    mine = {"Authorization": f"Bearer {token_for('patient')}"}
    assert client.get(f"/api/v1/patient/{hospital.patients[1]}", headers=mine).status_code == 404
    assert client.get("/api/v1/clinical_note/", headers=mine).status_code == 403
    assert client.get(f"/api/v1/patient/{hospital.patients[1]}").status_code == 200


def test_a_token_needs_no_csrf(api_as: Callable[[str], FlaskClient]) -> None:
    answer = api_as("reception").post("/api/v1/patient/", json={"family": "By", "given": "Token", "insist": True})
    assert answer.status_code == 201


# ---- tokens --------------------------------------------------------------------------------------------------------


def part(of: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(of).encode()).decode().rstrip("=")


@pytest.fixture
def forge(app: Flask, token_for: Callable[..., str]) -> Callable[..., str]:
    """A token made from the doctor's with other claims, another key, another algorithm."""
    genuine = token_for("doctor")
    claims = jwt.decode(genuine, options={"verify_signature": False})

    def make(key: str = "", algorithm: str = "HS256", **other: Any) -> str:
        changed = {**claims, **other}
        if algorithm == "none":
            return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(changed)}."
        return jwt.encode(changed, key or app.config["JWT_SECRET_KEY"], algorithm=algorithm)

    return make


LONG_AGO = int((datetime.now(UTC) - timedelta(days=1)).timestamp())
FORGERIES: dict[str, Callable[[Callable[..., str], str], str]] = {
    "no algorithm": lambda forge, _: forge(algorithm="none"),
    "another key": lambda forge, _: forge(key="x" * 64),
    "the secret of the application as it is": lambda forge, _: forge(key="for tests only, and long enough to be one"),
    "another algorithm": lambda forge, _: forge(algorithm="HS384"),
    "expired": lambda forge, _: forge(exp=LONG_AGO),
    "not yet": lambda forge, _: forge(nbf=2**33),
    "a subject that is nobody": lambda forge, _: forge(sub="999999"),
    "a subject that is no number": lambda forge, _: forge(sub="doctor"),
    "no type": lambda forge, _: forge(type="other"),
    "a signature cut off": lambda _, genuine: genuine.rsplit(".", 1)[0] + ".",
    "a claim changed": lambda _, genuine: ".".join(
        [genuine.split(".")[0], part({"sub": "1", "type": "access"}), genuine.split(".")[2]]
    ),
    "two dots": lambda _, _genuine: "..",
    "nothing": lambda _, _genuine: "",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_token_opens_nothing(
    name: str,
    forge: Callable[..., str],
    token_for: Callable[..., str],
    browser: Callable[[], Browser],
    hospital: Hospital,
) -> None:
    token = FORGERIES[name](forge, token_for("doctor"))
    for address in ("/api/v1/patient/", f"/patients/{hospital.patients[1]}/"):
        answer = browser().get(address, headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code in (401, 302)
        assert "Vandersloot" not in answer.text


def test_a_genuine_token_does(forge: Callable[..., str], browser: Callable[[], Browser]) -> None:
    """Otherwise the forgeries above would prove nothing."""
    answer = browser().get("/api/v1/patient/", headers={"Authorization": f"Bearer {forge()}"})
    assert answer.status_code == 200


def test_a_refresh_token_only_serves_to_refresh(token_for: Callable[..., str], browser: Callable[[], Browser]) -> None:
    refresh = {"Authorization": f"Bearer {token_for('doctor', 'refresh_token')}"}
    access = {"Authorization": f"Bearer {token_for('doctor')}"}
    assert browser().get("/api/v1/patient/", headers=refresh).status_code == 401
    assert browser().post("/api/v1/patient/", headers=refresh, json={"family": "x"}).status_code == 401
    assert browser().post("/api/v1/security/refresh", headers=access).status_code in (401, 422)
    renewed = browser().post("/api/v1/security/refresh", headers=refresh)
    assert renewed.status_code == 200
    token = {"Authorization": f"Bearer {renewed.get_json()['access_token']}"}
    assert browser().get("/api/v1/patient/", headers=token).status_code == 200


# ---- rights that change while somebody is at work --------------------------------------------------------------------


def test_a_closed_account_is_out_with_the_next_request(
    client_as: ClientAs,
    api_as: Callable[[str], FlaskClient],
    token_for: Callable[..., str],
    browser: Callable[[], Browser],
) -> None:
    page, program = client_as("pharmacist"), api_as("pharmacist")
    refresh = {"Authorization": f"Bearer {token_for('pharmacist', 'refresh_token')}"}
    assert page.get("/patients/").status_code == 200
    assert program.get("/api/v1/patient/").status_code == 200
    close("pharmacist")
    try:
        assert page.get("/patients/").status_code == 302
        assert page.get("/api/v1/patient/").status_code == 401
        assert program.get("/api/v1/patient/").status_code == 401
        assert browser().post("/api/v1/security/refresh", headers=refresh).status_code == 401
    finally:
        close("pharmacist", active=True)
    assert page.get("/patients/").status_code == 302, "a session that was ended stays ended"


def test_a_role_taken_away_counts_from_the_next_request(
    client_as: ClientAs, api_as: Callable[[str], FlaskClient], set_roles: Any, hospital: Hospital
) -> None:
    page, program = client_as("doctor"), api_as("doctor")
    assert program.get("/api/v1/clinical_note/").get_json()["count"] == 2
    set_roles("doctor", "Nurse")
    assert program.get("/api/v1/clinical_note/").status_code == 401
    assert page.get(f"/patients/{hospital.patients[1]}/?tab=conditions").status_code == 302
    page, program = client_as("doctor"), api_as("doctor")
    assert program.get("/api/v1/clinical_note/").status_code == 403
    assert page.get(f"/patients/{hospital.patients[1]}/?tab=conditions").status_code == 403
    assert program.get("/api/v1/observation/").get_json()["count"] == 2
    set_roles("doctor")
    page, program = client_as("doctor"), api_as("doctor")
    assert page.get("/patients/").status_code == 403
    assert program.get("/api/v1/patient/").status_code == 403


def permissions_of(role: str) -> list[int]:
    return [
        row["permission_view_id"]
        for row in sql(
            "SELECT permission_view_id FROM ab_permission_view_role WHERE role_id = (SELECT id FROM ab_role WHERE name = :r)",
            r=role,
        )
    ]


def permission(action: str, resource: str) -> int:
    return int(
        sql(
            "SELECT pv.id FROM ab_permission_view pv JOIN ab_permission p ON p.id = permission_id "
            "JOIN ab_view_menu m ON m.id = view_menu_id WHERE p.name = :a AND m.name = :r",
            a=f"can_{action}",
            r=resource,
        )[0]["id"]
    )


@pytest.fixture
def unguarded() -> Iterator[None]:
    """A database that no longer keeps the separation, as after a mishap: the gate still does."""
    sql("ALTER TABLE policy_version DISABLE TRIGGER policy_holds")
    yield
    sql("ALTER TABLE policy_version ENABLE TRIGGER policy_holds")


TABOO = ("ClinicalNote", "DocumentReference", "SourceResource")


def test_a_permission_ticked_on_the_role_page_counts_at_once(client_as: ClientAs) -> None:
    admin, nurse = client_as("admin"), client_as("nurse")
    role = sql("SELECT id FROM ab_role WHERE name = 'Nurse'")[0]["id"]
    held, taboo = permissions_of("Nurse"), [permission("read", name) for name in TABOO]
    assert nurse.get("/api/v1/clinical_note/").status_code == 403
    answer = admin.submit(f"/roles/edit/{role}", {"name": "Nurse", "permissions": [*held, *taboo]})
    assert answer.status_code == 302, answer.text
    assert set(permissions_of("Nurse")) == {*held, *taboo}
    assert nurse.get("/api/v1/clinical_note/").get_json()["count"] == 2
    assert admin.submit(f"/roles/edit/{role}", {"name": "Nurse", "permissions": held}).status_code == 302
    assert nurse.get("/api/v1/clinical_note/").status_code == 403


def test_notes_ticked_for_whoever_configures_roles_are_refused(client_as: ClientAs) -> None:
    admin = client_as("admin")
    role = sql("SELECT id FROM ab_role WHERE name = 'Admin'")[0]["id"]
    held = permissions_of("Admin")
    answer = admin.submit(
        f"/roles/edit/{role}", {"name": "Admin", "permissions": [*held, permission("read", TABOO[0])]}
    )
    assert answer.status_code == 403
    assert "Nobody changes their own roles" in answer.text
    assert permissions_of("Admin") == held


@pytest.mark.usefixtures("unguarded")
def test_the_gate_keeps_notes_from_whoever_configures_roles_whatever_the_tables_say(
    client_as: ClientAs, set_roles: Any, hospital: Hospital
) -> None:
    admin = client_as("admin")
    for name in TABOO:
        sql(
            "INSERT INTO ab_permission_view_role (permission_view_id, role_id) "
            "SELECT :p, id FROM ab_role WHERE name = 'Admin'",
            p=permission("read", name),
        )
    for address in (
        *("/api/v1/clinical_note/", f"/api/v1/clinical_note/{hospital.rows['ClinicalNote']}"),
        *("/api/v1/document_reference/", f"/api/v1/document_reference/{hospital.rows['DocumentReference']}"),
        f"/patients/{hospital.patients[1]}/?tab=documents",
    ):
        answer = admin.get(address)
        assert answer.status_code == 403, address
        assert "SENTINEL" not in answer.text
    sql(
        "DELETE FROM ab_permission_view_role WHERE permission_view_id = ANY(:p) "
        "AND role_id = (SELECT id FROM ab_role WHERE name = 'Admin')",
        p=[permission("read", name) for name in TABOO],
    )
    set_roles("admin", "Admin", "Doctor")
    admin = client_as("admin")
    assert admin.get("/api/v1/clinical_note/").status_code == 403
    report = admin.get(f"/api/v1/diagnostic_report/{hospital.rows['DiagnosticReport']}").get_json()["result"]
    assert (report["presented_form"], report["conclusion"]) == (None, None)
    set_roles("admin", "Admin")


def test_a_patient_with_a_second_role_still_sees_only_themselves(
    client_as: ClientAs, set_roles: Any, hospital: Hospital
) -> None:
    sql("INSERT INTO ab_role (name) VALUES ('Volunteer') ON CONFLICT DO NOTHING")
    sql(
        "INSERT INTO ab_permission_view_role (permission_view_id, role_id) SELECT :p, id FROM ab_role WHERE name = 'Patient'",
        p=permission("read", "Observation"),
    )
    set_roles("patient", "Patient", "Volunteer")
    client = client_as("patient")
    found = client.get("/api/v1/observation/").get_json()["result"]
    assert {row["patient_id"] for row in found} == {hospital.patients[0]}
    assert client.get("/api/v1/patient/").get_json()["count"] == 1


@pytest.mark.parametrize("username", ["reception", "doctor", "privacy", "patient"])
def test_accounts_and_roles_are_the_administrators(username: str, client_as: ClientAs) -> None:
    client = client_as(username)
    before = sql("SELECT md5(string_agg(u::text, '|' ORDER BY id)) FROM ab_user u WHERE username <> :u", u=username)
    token = (
        csrf_of(client.page("/me/"))
        if "csrf_token" in client.page("/me/")
        else csrf_of(client.page("/resetmypassword/form"))
    )
    for address, data in (
        ("/users/add", {"username": "x", "first_name": "x", "last_name": "x", "email": "x@x.example"}),
        ("/users/edit/1", {"username": "x", "roles": ["1"]}),
        ("/users/delete/1", {}),
        ("/roles/edit/1", {"name": "x"}),
        ("/roles/add", {"name": "x"}),
        ("/roles/delete/1", {}),
        ("/resetpassword/form?pk=1", {"password": "x" * 12, "conf_password": "x" * 12}),
    ):
        answer = client.post(address, data={"csrf_token": token, **data})
        assert answer.status_code in (403, 404, 405, 302), address
        if answer.status_code == 302:
            assert "/login" in answer.headers["Location"] or answer.headers["Location"] in ("/", "http://localhost/")
    assert (
        sql("SELECT md5(string_agg(u::text, '|' ORDER BY id)) FROM ab_user u WHERE username <> :u", u=username)
        == before
    )
    assert not sql("SELECT 1 FROM ab_role WHERE name = 'x'")


def test_nobody_sits_down_at_a_branch_they_do_not_work_at(
    client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines
) -> None:
    nurse = client_as("nurse")
    token = csrf_of(nurse.page("/patients/register/"))
    for branch in (str(hospital.branches[1]), "0", "-1", "x", "9" * 30, ""):
        assert nurse.post("/branch/", data={"branch_id": branch, "csrf_token": token}).status_code == 403
    assert [event["outcome"] for event in trail_lines.events() if event["entities"] == [{"type": "Branch"}]] == [4] * 6
    doctor = client_as("doctor")
    token = csrf_of(doctor.page("/resetmypassword/form"))
    assert doctor.post("/branch/", data={"branch_id": hospital.branches[1], "csrf_token": token}).status_code == 302


def test_a_patient_cannot_walk_the_numbers(client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines) -> None:
    client = client_as("patient")
    trail_lines.forget()
    for key in range(hospital.patients[1], hospital.patients[-1] + 5):
        for address in (f"/patients/{key}/", f"/patients/{key}/photo", f"/api/v1/patient/{key}"):
            answer = client.get(address)
            assert answer.status_code == 404, address
            assert not any(family in answer.text for family, *_ in factories.NAMES[1:])
        assert client.get(f"/patients/{key}/edit/").status_code == 403
    for key in {*hospital.rows.values()}:
        answer = client.get(f"/api/v1/encounter/{key}")
        assert answer.status_code == 404 or answer.get_json()["result"]["patient_id"] == hospital.patients[0]
    assert client.get("/patients/?q=vandersloot").text.count("Vandersloot") == 0
    assert client.get("/patients/find.json?q=vandersloot").get_json()["results"] == []
    assert client.get("/api/v1/patient/search?text=vandersloot").get_json()["result"] == []
    shown = {event["patient_id"] for event in trail_lines.events() if event["outcome"] == 0}
    assert shown <= {None, hospital.patients[0]}


def test_the_desk_reads_no_reason_by_any_filter(api_as: Callable[[str], FlaskClient], hospital: Hospital) -> None:
    desk = api_as("reception")
    visit = desk.get(f"/api/v1/encounter/{hospital.rows['Encounter']}").get_json()["result"]
    assert visit["reason"] is None
    for q in (
        "(filters:!((col:reason,opr:ct,value:SENTINEL)))",
        "(order_column:reason,order_direction:asc)",
        "(columns:!(reason),filters:!((col:reason,opr:sw,value:S)))",
    ):
        answer = desk.get("/api/v1/encounter/", query_string={"q": q})
        assert answer.status_code == 403, q
        assert "result" not in answer.get_json()
    assert factories.stored(Encounter, hospital.rows["Encounter"])["reason"] == factories.REASON


# ---- the trail -----------------------------------------------------------------------------------------------------


def test_reads_searches_refusals_and_sign_ins_leave_one_entry_a_request(
    client_as: ClientAs, trail_lines: TrailLines, hospital: Hospital
) -> None:
    client = client_as("nurse")
    assert [(e["subtype"], e["outcome"]) for e in trail_lines.events()] == [("110122", 0)]
    assert trail_lines.entries()[0]["agent"]["agent_name"] == "Nora Nurse"
    key = hospital.patients[1]

    trail_lines.forget()
    client.get(f"/patients/{key}/")
    entries = trail_lines.entries()
    assert len(entries) == 1
    (line,) = [event for event in entries[0]["events"] if event["patient_id"] == key]
    assert {entity["type"]: entity["ids"] for entity in line["entities"]}["Patient"] == [key]
    assert entries[0]["agent"]["session_id"] == hashlib.sha256(cookie_of(client).encode()).hexdigest()[:16]
    assert entries[0]["agent"]["roles"] == ["Nurse"]

    trail_lines.forget()
    client.get("/patients/?q=vandersloot")
    entries = trail_lines.entries()
    assert len(entries) == 1
    assert {event["subtype"] for event in entries[0]["events"]} == {"search"}
    assert "andersloot" not in json.dumps(entries)

    trail_lines.forget()
    client.get("/api/v1/condition/")
    assert [(e["outcome"], e["entities"], e["reason"]) for e in trail_lines.events()] == [
        (4, [{"type": "Condition"}], "Forbidden")
    ]
    assert len(trail_lines.entries()) == 1

    trail_lines.forget()
    client.get("/logout/")
    assert [e["subtype"] for e in trail_lines.events()] == ["110123"]


def test_a_failed_sign_in_is_recorded_as_refused(browser: Callable[[], Browser], trail_lines: TrailLines) -> None:
    browser().submit("/login/", {"username": "nurse", "password": "wrong"})
    (entry,) = trail_lines.entries()
    assert entry["agent"]["agent_name"] == "nurse"
    assert (entry["events"][0]["subtype"], entry["events"][0]["outcome"]) == ("110122", 4)


def test_what_names_nobody_leaves_no_line(client_as: ClientAs, trail_lines: TrailLines) -> None:
    client = client_as("reception")
    trail_lines.forget()
    client.get("/healthz")
    client.get("/patients/register/")
    assert trail_lines.entries() == []
