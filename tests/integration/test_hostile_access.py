"""What a hostile round found, so that it stays found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pyotp
import pytest
from flask.testing import FlaskClient
from flask_appbuilder.security.sqla.models import Role, User
from sqlalchemy import text

from app import guard
from app.errors import Forbidden, Invalid
from app.services import accounts, emergencies
from tests import factories
from tests.conftest import Browser, TrailLines
from tests.factories import Hospital

ClientAs = Callable[[str], Browser]


def sql(statement: str, **values: Any) -> list[Any]:
    """Something done or asked past the application."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


@pytest.fixture
def without_second_step(hospital: Hospital) -> Iterator[None]:
    yield
    sql("UPDATE credential SET totp_secret = NULL, totp_confirmed_at = NULL, totp_step = 0, recovery_codes = '{}'")


@pytest.mark.usefixtures("without_second_step")
def test_setting_up_the_second_step_ends_whoever_came_in_by_the_password_alone(
    client_as: ClientAs, api_as: Callable[[str], FlaskClient], hospital: Hospital
) -> None:
    here, there, program = client_as("nurse"), client_as("nurse"), api_as("nurse")
    address = "/me/second-factor/"
    here.post(f"{address}begin", data={"csrf_token": re.findall(r'csrf_token" value="([^"]+)', here.page(address))[0]})
    shown = here.page(address)
    (secret,) = set(re.findall(r"\b(?:[A-Z2-7]{4} ){7}[A-Z2-7]{4}\b", shown))
    assert secret not in there.page(address), "only the session that began it is shown the secret"
    answer = here.submit(f"{address}prove", {"code": pyotp.TOTP(secret.replace(" ", "")).now()})
    if answer.status_code == 405:
        token = re.findall(r'csrf_token" value="([^"]+)', shown)[0]
        answer = here.post(
            f"{address}prove", data={"csrf_token": token, "code": pyotp.TOTP(secret.replace(" ", "")).now()}
        )
    assert answer.status_code == 200
    assert here.get("/patients/").status_code == 200
    assert there.get("/patients/").status_code == 302
    assert program.get("/api/v1/patient/").status_code == 401


def test_a_number_of_rows_is_told_only_with_the_rows(
    api_as: Callable[[str], FlaskClient], hospital: Hospital, trail_lines: TrailLines
) -> None:
    doctor = api_as("doctor")
    trail_lines.forget()
    answer = doctor.get("/api/v1/condition/?q=(page:9000)").get_json()
    assert answer["count"] == len(answer["ids"]) == 2
    assert {event["patient_id"] for event in trail_lines.events()} == set(hospital.patients[:2])


def test_that_there_is_nothing_is_an_answer_about_the_patient(
    api_as: Callable[[str], FlaskClient], hospital: Hospital, trail_lines: TrailLines
) -> None:
    doctor, whose = api_as("doctor"), hospital.patients[5]
    trail_lines.forget()
    asked = f"/api/v1/condition/?q=(filters:!((col:patient_id,opr:eq,value:{whose}),(col:code,opr:eq,value:'J06.9')))"
    assert doctor.get(asked).get_json()["count"] == 0
    assert [event["patient_id"] for event in trail_lines.events()] == [whose]


def test_a_row_that_is_not_there_for_the_actor_leaves_a_line(
    api_as: Callable[[str], FlaskClient], hospital: Hospital, trail_lines: TrailLines
) -> None:
    patient = api_as("patient")
    trail_lines.forget()
    assert patient.get(f"/api/v1/patient/{hospital.patients[3]}").status_code == 404
    assert [(event["outcome"], event["reason"]) for event in trail_lines.events()] == [(4, "NotFound")]


def test_a_value_that_does_not_fit_is_not_dropped_in_silence(api_as: Callable[[str], FlaskClient]) -> None:
    for value in ("zzz", "2026-13-45"):
        asked = f"/api/v1/patient/?q=(filters:!((col:birth_date,opr:gt,value:'{value}')))"
        assert api_as("doctor").get(asked).status_code == 422


def test_seeing_accounts_and_roles_leaves_a_line(
    client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines
) -> None:
    admin = client_as("admin")
    trail_lines.forget()
    admin.page(f"/users/show/{hospital.accounts['nurse']}")
    seen = [entity for event in trail_lines.events() for entity in event["entities"]]
    assert {"type": "User", "ids": [hospital.accounts["nurse"]]} in seen


@pytest.fixture
def desk(hospital: Hospital) -> Iterator[int]:
    """The receptionist may change accounts as well, and configures no roles."""
    sql(
        "INSERT INTO ab_permission_view_role (permission_view_id, role_id) SELECT pv.id, r.id FROM ab_permission_view pv "
        "JOIN ab_view_menu m ON m.id = pv.view_menu_id JOIN ab_role r ON r.name = 'Receptionist' WHERE m.name = 'User'"
    )
    yield hospital.accounts["reception"]
    sql(
        "DELETE FROM ab_permission_view_role WHERE role_id = (SELECT id FROM ab_role WHERE name = 'Receptionist') "
        "AND permission_view_id IN (SELECT pv.id FROM ab_permission_view pv JOIN ab_view_menu m "
        "ON m.id = pv.view_menu_id WHERE m.name = 'User')"
    )


def test_whoever_only_opens_accounts_makes_no_administrator_and_takes_none_over(desk: int, hospital: Hospital) -> None:
    from sqlalchemy import select

    def make(s: Any) -> None:
        role = s.scalar(select(Role).where(Role.name == "Admin"))
        accounts.open_account(
            s,
            username="puppet",
            password=factories.PASSWORD,
            first_name="P",
            last_name="P",
            email="p@example.org",
            roles=[role],
        )

    def promote(s: Any) -> None:
        user = s.get(User, hospital.accounts["lab"])
        user.roles = [s.scalar(select(Role).where(Role.name == "Admin"))]

    def take_over(s: Any) -> None:
        s.get(User, hospital.accounts["admin"]).password = "x"

    before = (
        sql("SELECT id, username, password FROM ab_user ORDER BY id"),
        sql("SELECT * FROM ab_user_role ORDER BY id"),
    )
    for attempt in (make, promote, take_over):
        with factories.acting(desk), pytest.raises(Forbidden), guard.unit_of_work() as s:
            attempt(s)
    after = sql("SELECT id, username, password FROM ab_user ORDER BY id"), sql("SELECT * FROM ab_user_role ORDER BY id")
    assert after == before
    with factories.acting(desk), guard.unit_of_work() as s:
        s.get(User, hospital.accounts["lab"]).first_name = "Lena"
    assert sql("SELECT first_name FROM ab_user WHERE id = :k", k=hospital.accounts["lab"])[0]["first_name"] == "Lena"


@pytest.mark.parametrize("said", ["\u3164" * 30, "\u200b" * 30, ". - . - . - . - . - .", "x" * 14])
def test_a_reason_nobody_can_read_is_none(acting: Any, hospital: Hospital, said: str) -> None:
    with acting("doctor"), pytest.raises(Invalid):
        emergencies._said(said, field="justification")


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/static/..%2f..%2fconfig.py", 404),
        ("/users/list/?_flt_0_roles=x", 422),
        ("/users/list/?_flt_0_roles=999999999999", 422),
    ],
)
def test_what_was_a_fault_is_an_answer(client_as: ClientAs, address: str, status: int) -> None:
    assert client_as("admin").get(address).status_code == status


def test_an_account_without_a_role_is_asked_for_one(client_as: ClientAs, hospital: Hospital) -> None:
    admin = client_as("admin")
    answer = admin.submit(f"/users/edit/{hospital.accounts['lab']}", {"roles": []})
    assert answer.status_code == 422
    assert "Please choose what this person may do" in answer.text


def test_an_address_that_cannot_be_one_is_not_gone_to(browser: Callable[[], Browser]) -> None:
    client = browser()
    answer = client.submit(
        "/login/?next=/patients/%0d%0aX-Evil:1", {"username": "nurse", "password": factories.PASSWORD}
    )
    assert answer.status_code == 302
    assert "Evil" not in answer.headers["Location"]
