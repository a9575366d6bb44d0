"""The screens: what they take, what they refuse, and what they say when something beneath them is gone."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask
from sqlalchemy import text
from werkzeug.datastructures import FileStorage
from werkzeug.test import encode_multipart

from app import guard, trail
from models.organization import Branch, Organization
from models.patients import Patient
from ops.servers import Servers, free_port
from tests import factories
from tests.conftest import Browser, Database, Settings, csrf_of, filled
from tests.factories import Hospital

ClientAs = Callable[[str], Browser]
REGISTER = "/patients/register/"
NASTY = "<script>alert('x')</script>\"'{{7*7}}${7*7}<img src=x onerror=alert(1)>"


def registered(family: str) -> list[Any]:
    """Everybody of that name, past the gate."""
    with guard.engine().connect() as connection:
        found = connection.execute(text("SELECT * FROM patient WHERE family = :family"), {"family": family})
        return list(found.mappings())


# ---- registering ---------------------------------------------------------------------------------------------------


def test_somebody_is_registered_at_the_branch_of_the_desk(client_as: ClientAs, hospital: Hospital) -> None:
    desk = client_as("reception")
    answer = desk.submit(
        REGISTER,
        {
            "family": "Nuevo",
            "given": "Ana",
            "birth_date": "5 Mar 1970",
            "gender": "female",
            "phone": "611 22 33 44",
            "email": "ana@example.org",
            "city": "Madrid",
            "country": "ES",
            "language": "es",
            "identifier_system": "passport",
            "identifier_value": "XN1",
        },
    )
    assert answer.status_code == 302
    (row,) = registered("Nuevo")
    assert row["birth_date"] == date(1970, 3, 5)
    assert row["telecom"][0] == {"system": "phone", "value": "+34611223344", "use": "mobile"}
    assert row["registered_at_id"] == hospital.branches[0]
    assert row["mrn"].startswith("W1")
    chart = desk.page(answer.headers["Location"])
    assert "Nuevo" in chart
    assert row["mrn"] in chart


def test_somebody_alike_is_shown_before_a_second_record_is_made(client_as: ClientAs) -> None:
    desk = client_as("reception")
    same = {"family": "Vandersloot", "given": "Xerxes", "birth_date": "1982-11-30"}
    before = factories.number_of(Patient)
    answer = desk.submit(REGISTER, same)
    assert answer.status_code == 409
    assert "Vandersloot" in answer.text
    assert factories.number_of(Patient) == before
    assert desk.submit(REGISTER, {**same, "insist": "1"}).status_code == 302
    assert factories.number_of(Patient) == before + 1


def test_an_unknown_person_needs_no_name(client_as: ClientAs) -> None:
    desk = client_as("nurse")
    assert desk.submit(REGISTER, {"family": "", "given": ""}).status_code == 422
    assert desk.submit(REGISTER, {"temporary": "y"}).status_code == 302
    assert len(registered("Unknown")) == 1


BAD: dict[str, dict[str, str]] = {
    "born in three days": {"birth_date": (date.today() + timedelta(days=3)).isoformat()},
    "born in the future by name": {"birth_date": "1 Jan 2099"},
    "born before anybody": {"birth_date": "1066"},
    "no date": {"birth_date": "the day before yesterday"},
    "no such day": {"birth_date": "31/02/1990"},
    "a very long name": {"family": "x" * 10_000},
    "a very long given name": {"given": "x" * 201},
    "a null character": {"given": "Ana\x00"},
    "a control character": {"given": "Ana\x1b[31m"},
    "an escape in reverse": {"given": "A\x85na"},
    "a number that is taken": {"identifier_system": "passport", "identifier_value": "PASS0001"},
    "a number of nobody": {"identifier_system": "", "identifier_value": "17"},
    "a system without a number": {"identifier_system": "passport", "identifier_value": ""},
    "an unknown system": {"identifier_system": "made-up", "identifier_value": "17"},
    "no phone": {"phone": "call me"},
    "too short a phone": {"phone": "12"},
    "a very long phone": {"phone": "+34" + "1" * 200},
    "no address of mail": {"email": "nowhere"},
    "an unknown gender": {"gender": "other than offered"},
    "an unknown country": {"country": "XX"},
    "an unknown sex": {"sex_for_clinical_use": "x"},
    "no name": {"family": "   ", "given": "\t"},
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_hold_is_refused_and_what_was_typed_stays(name: str, client_as: ClientAs) -> None:
    before = factories.number_of(Patient)
    fields = {"family": "Refused", "given": "Rita", "insist": "1", "city": "Typed Already", **BAD[name]}
    answer = client_as("reception").submit(REGISTER, fields)
    assert answer.status_code in (409, 422)
    assert "Typed Already" in answer.text
    assert factories.number_of(Patient) == before


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"GIF89a" + b"x" * 100, 422),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", 422),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 2_100_000, 422),
        (b"\xff\xd8\xff" + b"0" * 1000, 302),
        (b"", 302),
    ],
    ids=["gif", "svg", "two megabytes", "jpeg", "empty"],
)
def test_a_photo_is_a_picture_of_a_sensible_size(content: bytes, status: int, client_as: ClientAs) -> None:
    desk = client_as("reception")
    before = factories.number_of(Patient)
    typed = {"family": "Photo", "given": f"Of{len(content)}", "insist": "1"}
    picture_file = FileStorage(io.BytesIO(content), "x.jpg", "photo")
    boundary, body = encode_multipart({**filled(desk.page(REGISTER)), **typed, "photo": picture_file})
    answer = desk.post(REGISTER, data=body, content_type=f"multipart/form-data; boundary={boundary}")
    assert answer.status_code == status
    assert factories.number_of(Patient) - before == (status == 302)
    if status == 302 and content:
        number = answer.headers["Location"].split("/patients/")[1].split("/")[0]
        picture = desk.get(f"/patients/{number}/photo")
        assert (picture.data, picture.content_type) == (content, "image/jpeg")


def test_a_photo_that_is_no_file_counts_as_none(client_as: ClientAs) -> None:
    desk = client_as("reception")
    assert desk.submit(REGISTER, {"family": "Photo", "given": "Text", "insist": "1", "photo": "x"}).status_code == 302
    assert registered("Photo")[-1]["photo"] is None


def test_more_than_is_taken_at_once_is_refused(client_as: ClientAs) -> None:
    desk = client_as("reception")
    before = factories.number_of(Patient)
    for address, kind in ((REGISTER, "multipart/form-data; boundary=b"), ("/api/v1/patient/", "application/json")):
        token = csrf_of(desk.page(REGISTER))
        answer = desk.post(address, data=b"x" * 5_000_000, content_type=kind, headers={"X-CSRFToken": token})
        assert answer.status_code == 413
    assert factories.number_of(Patient) == before


def test_html_is_only_text_in_every_field_and_on_every_page(client_as: ClientAs) -> None:
    desk = client_as("reception")
    nasty = dict.fromkeys(
        ("family", "second_family", "given", "address_line", "city", "kin_name", "identifier_value", "name_in_use"),
        NASTY,
    )
    more = {
        "insist": "1",
        "identifier_system": "passport",
        "prefix": "<b>Dr",
        "kin_relationship": "<i>x",
        "postal_code": "<u>",
    }
    answer = desk.submit(REGISTER, {**nasty, **more})
    assert answer.status_code == 302, answer.text
    chart = answer.headers["Location"].split("?")[0]
    for client in (desk, client_as("doctor"), client_as("privacy")):
        for address in (
            chart,
            f"{chart}?tab=visits",
            "/",
            "/patients/all/list/?psize_PatientList=100",
            "/patients/?q=script",
            "/trail/",
        ):
            shown = client.get(address).text
            for bad in ("<script>alert", "<img src=x", "onerror=alert(1)>", "<b>Dr", "<i>x", "${49}", "{{49", ">49<"):
                assert bad not in shown, f"{address} shows {bad}"
    assert "&lt;script&gt;" in desk.get(chart).text
    assert "<script>alert" not in desk.get(f"{chart}edit/").text


@pytest.mark.parametrize(
    "address",
    [
        "/patients/?q={}",
        "/patients/register/?family={}",
        "/organizations/list/?_flt_0_name={}",
        "/trail/?person={}&patient={}",
        "/patients/1/?tab={}",
        "/{}",
        "/lang/{}",
        "/login/?next={}",
    ],
)
def test_html_in_an_address_is_only_text(address: str, client_as: ClientAs) -> None:
    client = client_as("admin")
    answer = client.get(address.replace("{}", "%3Cscript%3Ealert(1)%3C/script%3E%22onload=%22"))
    assert answer.status_code < 500
    assert "<script>alert(1)" not in answer.text
    assert '"onload="' not in answer.text


# ---- correcting ------------------------------------------------------------------------------------------------------


def test_of_two_changes_made_on_one_version_the_second_is_told(client_as: ClientAs, hospital: Hospital) -> None:
    key = hospital.patients[8]
    one, two = client_as("reception"), client_as("nurse")
    address = f"/patients/{key}/edit/"
    first, second = filled(one.page(address)), filled(two.page(address))
    assert first["version"] == second["version"]
    assert one.post(address, data={**first, "given": "First"}).status_code == 302
    answer = two.post(address, data={**second, "given": "Second"})
    assert answer.status_code == 409
    assert "Somebody else changed this" in answer.text
    assert factories.stored(Patient, key)["given"] == "First"


def test_a_correction_leaves_alone_what_the_form_does_not_hold(client_as: ClientAs, hospital: Hospital) -> None:
    key = hospital.patients[9]
    before = factories.stored(Patient, key)
    answer = client_as("reception").submit(f"/patients/{key}/edit/", {"given": "Percy"})
    assert answer.status_code == 302
    after = factories.stored(Patient, key)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"given", "version", "updated_at", "search_name", "sort_name"}, changed


@pytest.mark.parametrize("username", ["lab", "pharmacist", "billing", "privacy", "patient"])
def test_those_who_only_read_change_nothing(username: str, client_as: ClientAs, hospital: Hospital) -> None:
    client = client_as(username)
    before = factories.stored(Patient, hospital.patients[0])
    count = factories.number_of(Patient)
    token = csrf_of(client.page("/resetmypassword/form"))
    fields = {"family": "Changed", "given": "x", "csrf_token": token, "insist": "1"}
    for address in (f"/patients/{hospital.patients[0]}/edit/", REGISTER):
        assert client.get(address).status_code == 403
        assert client.post(address, data=fields).status_code == 403
    assert client.post("/patients/alike.json", data=fields).status_code == 403
    assert factories.stored(Patient, hospital.patients[0]) == before
    assert factories.number_of(Patient) == count


# ---- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "q",
    [
        "vandersloot",
        "xerxes vander",
        "Müller",
        "muller",
        "obrien",
        "w1000002",
        "30/11/1982",
        "PASS0001",
        "911234568",
        "vandersloor",
    ],
)
def test_the_box_finds_people_by_whatever_is_known(q: str, client_as: ClientAs) -> None:
    client = client_as("reception")
    page = client.get("/patients/", query_string={"q": q})
    assert page.status_code == 200
    found = client.get("/patients/find.json", query_string={"q": q}).get_json()["results"]
    assert found, q
    assert found[0]["mrn"] in page.text


@pytest.mark.parametrize(
    "q", ["", " ", "%", "_", "\\", "'", '"', "a" * 5000, "\x00", "%00", "0", "🙂", "))((", "W1", "1/1/1"]
)
def test_the_box_takes_anything(q: str, client_as: ClientAs) -> None:
    client = client_as("reception")
    for address in ("/patients/", "/patients/find.json"):
        assert client.get(address, query_string={"q": q}).status_code in (200, 422)


def test_a_chart_has_the_tabs_its_reader_may_see(client_as: ClientAs, hospital: Hospital) -> None:
    address = f"/patients/{hospital.patients[1]}/"
    for username, shown, hidden in (
        ("doctor", ("Diabetes", "Metformin", "Penicillin"), ()),
        ("nurse", ("Penicillin", "Metformin"), ("Diabetes", "Appendectomy", "Lipid")),
        ("pharmacist", ("Metformin", "Penicillin"), ("Diabetes", "Heart rate")),
        ("billing", ("Check-up",), ("Diabetes", "Metformin", "Penicillin", "Heart rate")),
        ("lab", ("Glucose",), ("Heart rate", "Diabetes", "Metformin")),
        ("privacy", (), ("Diabetes", "Metformin", "Penicillin", "Check-up", "Glucose")),
    ):
        client = client_as(username)
        page = client.page(address) + client.get(f"{address}?tab=observations").text
        for word in shown:
            assert word in page, f"{username} should see {word}"
        for word in hidden:
            assert word not in page, f"{username} should not see {word}"


def test_a_tab_that_is_not_granted_is_refused_and_one_that_is_not_there_is_not_found(
    client_as: ClientAs, hospital: Hospital
) -> None:
    nurse = client_as("nurse")
    for tab in ("conditions", "procedures", "reports", "documents"):
        assert nurse.get(f"/patients/{hospital.patients[1]}/?tab={tab}").status_code == 403
    for tab in ("notes", "x", "__class__", ""):
        assert nurse.get(f"/patients/{hospital.patients[1]}/?tab={tab}").status_code == 404
    for number in ("0", "999999999"):
        assert nurse.get(f"/patients/{number}/").status_code == 404
    assert nurse.get(f"/patients/{'9' * 25}/").status_code in (404, 422)
    assert nurse.get("/patients/-1/").status_code == 404


def test_two_records_are_said_to_be_of_two_people(client_as: ClientAs, hospital: Hospital) -> None:
    desk = client_as("reception")
    assert "Medina" in desk.page("/patients/duplicates/")
    token = csrf_of(desk.page("/patients/duplicates/"))
    answer = desk.post(f"/patients/duplicates/{hospital.rows['PatientLink']}/different", data={"csrf_token": token})
    assert answer.status_code == 302
    assert "Medina" not in desk.page("/patients/duplicates/")
    assert desk.post("/patients/duplicates/999999/different", data={"csrf_token": token}).status_code == 404


def test_the_hospital_is_kept_by_its_administrator(client_as: ClientAs, hospital: Hospital) -> None:
    admin = client_as("admin")
    branch = {
        "name": "New Clinic",
        "code": "NEW",
        "time_zone": "Europe/Paris",
        "currency": "EUR",
        "languages": "fr en",
        "country": "FR",
    }
    assert admin.submit("/branches/add", branch).status_code == 302
    for wrong in (
        {"code": "x!"},
        {"time_zone": "Mars/Base"},
        {"currency": "ZZZ"},
        {"languages": "klingon!"},
        {"name": ""},
        {"name": "x" * 300},
    ):
        before = factories.number_of(Branch), factories.number_of(Organization)
        answer = admin.submit("/branches/add", {**branch, "code": "OTHER", **wrong})
        assert answer.status_code == 422, wrong
        assert (factories.number_of(Branch), factories.number_of(Organization)) == before
    for username in ("reception", "doctor", "privacy"):
        client = client_as(username)
        assert client.get("/branches/add").status_code in (302, 403)
        assert client.get(f"/branches/edit/{hospital.branches[0]}").status_code in (302, 403)


def test_the_trail_page_takes_whatever_is_asked(client_as: ClientAs) -> None:
    officer = client_as("privacy")
    for query in (
        "patient=vandersloot",
        "patient=W1000002",
        "person=nora",
        "action=R",
        "outcome=4",
        "from=2026-01-01&to=2026-12-31",
        "action=X",
        "outcome=x",
        "branch=x",
        "branch=1",
        "from=yesterday",
        "before=x",
        "before=x~y",
        "person=%25",
        "patient=%00",
        "to=9999-12-31",
        "from=0001-01-01",
        "branch=99999999999999999999999",
    ):
        assert officer.get(f"/trail/?{query}").status_code in (200, 422), query
    assert officer.get("/trail/?patient=911234567").status_code in (200, 403)
    for username in ("doctor", "reception", "nurse", "patient"):
        assert client_as(username).get("/trail/").status_code == 403


# ---- what is beneath is gone -----------------------------------------------------------------------------------------------


def says_sorry(answer: Any) -> None:
    """503, a sentence, and nothing of what happened inside."""
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    for word in ("Traceback", "psycopg", "sqlalchemy", "redis", "OperationalError", 'File "', "127.0.0.1"):
        assert word not in answer.text, word


def names_nobody(said: str) -> None:
    for word in ("andersloot", "Xerxes", factories.PHONE, factories.NOTE, "scrypt"):
        assert word not in said


@pytest.fixture
def dead_port() -> int:
    return free_port()


@pytest.fixture
def elsewhere(app: Flask, database: Database) -> Iterator[Callable[[int], None]]:
    """Lets the gate look for its database where none is, for the rest of the test."""

    def move(port: int) -> None:
        guard.engine().dispose()
        guard.connect(f"postgresql+psycopg://nobody@127.0.0.1:{port}/none", pool_size=2, pool_timeout=2)

    yield move
    guard.connect(database.url, pool_size=8)


def test_without_the_database_there_is_a_sentence(
    client_as: ClientAs, elsewhere: Callable[[int], None], dead_port: int, hospital: Hospital, capfd: Any, caplog: Any
) -> None:
    client, stranger = client_as("doctor"), client_as("nurse")
    client.page(f"/patients/{hospital.patients[1]}/")
    form = csrf_of(client.page(REGISTER))
    elsewhere(dead_port)
    for address in ("/", f"/patients/{hospital.patients[1]}/", "/patients/?q=vandersloot", "/api/v1/patient/"):
        says_sorry(client.get(address))
    says_sorry(client.post(REGISTER, data={"family": "Vandersloot", "given": "Xerxes", "csrf_token": form}))
    assert stranger.get("/healthz").status_code == 200
    ready = stranger.get("/readyz")
    assert (ready.status_code, ready.get_json()["trail"]) == (503, "ok")
    assert ready.get_json()["database"] != "ok"
    spoken = capfd.readouterr()
    names_nobody(spoken.out + spoken.err + caplog.text)


def test_how_the_trail_stands_is_told_to_who_watches_from_here(
    app: Flask, browser: Callable[[], Browser], client_as: ClientAs, hospital: Hospital
) -> None:
    here, far = browser(), browser()
    here.environ_base["REMOTE_ADDR"] = "127.0.0.1"
    trail.the_trail().reader.delete(trail.STREAM)  # what other tests have left waiting is older than a minute
    guard.session.connection().execute(text("DELETE FROM audit_outbox"))
    client_as("doctor").page(f"/patients/{hospital.patients[1]}/")
    told = here.page("/metrics")
    found = dict(line.rsplit(" ", 1) for line in told.splitlines() if not line.startswith("#"))
    assert float(found["wardbook_trail_stream"]) >= 2
    assert float(found["wardbook_trail_redis_up"]) == 1
    assert {f"wardbook_trail_{name}" for name in ("size", "outbox", "quarantine", "spool_bytes")} <= set(found)
    ready = here.get("/readyz").get_json()
    assert ready["trail_stands"]["stream"] >= 2
    assert ready["trail_stands"]["late"] is False
    assert far.get("/metrics").status_code == 403
    app.config["METRICS_TOKEN"] = "a token for the watch"
    try:
        assert here.get("/metrics").status_code == 403
        assert far.get("/metrics", headers={"Authorization": "Bearer another"}).status_code == 403
        assert far.get("/metrics", headers={"Authorization": "Bearer a token for the watch"}).status_code == 200
    finally:
        app.config["METRICS_TOKEN"] = ""


def test_a_connection_that_breaks_in_the_middle_is_replaced(client_as: ClientAs, hospital: Hospital) -> None:
    client = client_as("doctor")
    address = f"/patients/{hospital.patients[1]}/"
    client.page(address)
    for _ in range(3):
        with guard.engine().connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        statuses = [client.get(address).status_code for _ in range(3)]
        assert set(statuses) <= {200, 503}
        assert statuses[-1] == 200


def test_a_unit_of_work_cut_in_the_middle_leaves_nothing(acting: Any, hospital: Hospital) -> None:
    from app.errors import OutOfService
    from app.services import patients

    before = factories.number_of(Patient)
    with acting("reception"), pytest.raises(OutOfService), guard.unit_of_work() as session:
        patients.register(session, factories.told("Cut", "Carl"), insist=True)
        own = session.connection().connection.dbapi_connection.info.backend_pid
        with guard.engine().connect() as connection:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": own})
        patients.register(session, factories.told("Cut", "Clara"), insist=True)
    assert factories.number_of(Patient) == before


def test_without_the_sessions_there_is_a_sentence(
    app: Flask,
    client_as: ClientAs,
    browser: Callable[[], Browser],
    dead_port: int,
    hospital: Hospital,
    capfd: Any,
    caplog: Any,
) -> None:
    client = client_as("doctor")
    kept = app.session_interface.client
    away = redis.Redis(port=dead_port, socket_connect_timeout=1, retry=None)
    app.session_interface.client = away
    try:
        for address in ("/", f"/patients/{hospital.patients[1]}/", "/login/", "/api/v1/patient/"):
            says_sorry(client.get(address))
        says_sorry(client.post("/login/", data={"username": "doctor", "password": factories.PASSWORD}))
        assert browser().get("/healthz").status_code == 200
        ready = browser().get("/readyz")
        assert ready.status_code in (200, 503)
    finally:
        app.session_interface.client = kept
    assert client.get("/").status_code == 200
    spoken = capfd.readouterr()
    names_nobody(spoken.out + spoken.err + caplog.text)


@pytest.fixture
def trail_at(servers: Servers, spool: Path) -> Iterator[Callable[[int, Path], None]]:
    """Lets the trail write elsewhere for the rest of the test."""
    yield lambda port, folder: trail.connect(f"redis://127.0.0.1:{port}/0", folder) and None
    trail.the_trail().spool.close()
    trail.connect(servers.trail_redis_url, spool)


def test_without_the_trail_a_page_goes_to_the_disk_first(
    client_as: ClientAs, trail_at: Callable[[int, Path], None], dead_port: int, tmp_path: Path, hospital: Hospital
) -> None:
    client = client_as("doctor")
    trail_at(dead_port, tmp_path / "spool")
    assert client.get(f"/patients/{hospital.patients[1]}/").status_code == 200
    assert b"Dora Doctor" in b"".join(path.read_bytes() for path in (tmp_path / "spool").iterdir())


def test_what_cannot_be_recorded_is_not_shown(
    client_as: ClientAs,
    trail_at: Callable[[int, Path], None],
    dead_port: int,
    tmp_path: Path,
    hospital: Hospital,
    capfd: Any,
) -> None:
    client = client_as("doctor")
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    trail_at(dead_port, blocked / "spool")
    for address in (
        f"/patients/{hospital.patients[1]}/",
        f"/api/v1/patient/{hospital.patients[1]}",
        "/patients/?q=vandersloot",
    ):
        answer = client.get(address)
        says_sorry(answer)
        assert "andersloot" not in answer.text
    spoken = capfd.readouterr()
    names_nobody(spoken.out + spoken.err)


def test_a_fault_of_ours_says_a_number_and_nothing_else(
    app: Flask, client_as: ClientAs, hospital: Hospital, capfd: Any
) -> None:
    client = client_as("doctor")
    address = f"/patients/{hospital.patients[1]}/"
    kept = app.view_functions["Chart.open"]

    def broken(patient_id: int) -> str:
        raise ValueError(f"Vandersloot, Xerxes {factories.PHONE} {patient_id}")

    app.view_functions["Chart.open"] = broken
    try:
        answer = client.get(address)
    finally:
        app.view_functions["Chart.open"] = kept
    assert answer.status_code == 500
    assert answer.headers["X-Request-Id"] in answer.text
    names_nobody(answer.text)
    spoken = capfd.readouterr()
    names_nobody(spoken.out + spoken.err)
    assert answer.headers["X-Request-Id"] in spoken.out + spoken.err


def test_the_application_does_not_start_on_a_trail_that_could_lose_lines(
    servers: Servers, database: Database, spool: Path
) -> None:
    from views import create_app

    try:
        with pytest.raises(RuntimeError, match="could lose"):
            create_app(Settings(database.url, servers.redis_url, servers.redis_url, spool))
    finally:
        trail.connect(servers.trail_redis_url, spool)
        guard.connect(database.url, pool_size=8)


def test_the_dead_port_is_dead(dead_port: int) -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", dead_port)) != 0
    assert time.monotonic() > 0
