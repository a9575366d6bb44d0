"""Faults of the frameworks beneath us, one regression test each; they come back with an upgrade if we do not look."""

from __future__ import annotations

import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import pytest
from flask import Flask, flash
from flask.testing import FlaskClient
from flask_appbuilder import ModelRestApi
from flask_appbuilder import api as stock_api
from flask_babel import lazy_gettext
from sqlalchemy import event, select

from app import guard
from app.actor import service
from app.services import organization, patients
from models.organization import Organization, Room
from models.patients import Patient
from tests import factories
from tests.conftest import Browser
from tests.factories import Hospital, told
from views.api import PatientApi
from views.base import LONGEST_CHOICE, LONGEST_PAGE, OwnFilters
from views.sessions import JsonSerializer

ClientAs = Callable[[str], Browser]


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is sent to the database meanwhile."""
    sent: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        sent.append(statement)

    event.listen(guard.engine(), "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(guard.engine(), "before_cursor_execute", note)


# ---- filters shared between threads ------------------------------------------------------------------------------------


def wrong_answers(app: Flask, token: str, hospital: Hospital, rounds: int) -> list[tuple[int, list[int]]]:
    """Threads that each ask for one patient of their own, over and over; what any of them was given instead."""
    wrong: list[tuple[int, list[int]]] = []
    ready = threading.Barrier(6)

    def ask(key: int) -> None:
        client = app.test_client()
        q = urllib.parse.quote(f"(filters:!((col:id,opr:eq,value:{key})))")
        ready.wait(20)
        for _ in range(rounds):
            answer = client.get(f"/api/v1/patient/?q={q}", headers={"Authorization": f"Bearer {token}"})
            ids = answer.get_json()["ids"] if answer.status_code == 200 else [-answer.status_code]
            if ids != [key]:
                wrong.append((key, ids))

    threads = [threading.Thread(target=ask, args=(key,)) for key in hospital.patients[:6]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_no_request_is_given_the_filters_of_another(
    app: Flask, token_for: Callable[..., str], hospital: Hospital
) -> None:
    assert wrong_answers(app, token_for("doctor"), hospital, rounds=12) == []


def test_two_requests_that_overlap_have_filters_of_their_own(app: Flask) -> None:
    """The same without leaving it to the scheduler: one request adds a filter while another one is at work."""
    views = [view for view in app.appbuilder.baseviews if isinstance(view, OwnFilters)]
    assert len(views) > 10
    for view in views:
        one, two = view._filters, view._filters
        column = next(iter(one.get_search_filters()))
        one.add_filter_index(column, 0, "mine")
        assert [f.column_name for f in one.filters] == [column]
        assert two.filters == []
        assert view._filters.filters == []


def test_the_framework_still_shares_them(app: Flask) -> None:
    """Shows that the tests above can fail; when this one does, Flask-AppBuilder was mended and OwnFilters may go."""
    ours = next(view for view in app.appbuilder.baseviews if isinstance(view, PatientApi))
    stock = ModelRestApi.__new__(ModelRestApi)
    stock._filters = ours._filters
    stock._filters.add_filter_index("family", 0, "of one request")
    assert [f.column_name for f in stock._filters.filters] == ["family"], "and there it is for the next one"


# ---- what leaves by default ----------------------------------------------------------------------------------------------


def test_no_resource_shows_a_column_by_default(app: Flask, api_as: Callable[[str], FlaskClient]) -> None:
    """Left alone, the framework shows created_by, and with it the hash of a password."""
    resources = [
        view for view in app.appbuilder.baseviews if hasattr(view, "columns") and hasattr(view, "list_columns")
    ]
    assert len(resources) > 10
    for view in resources:
        assert tuple(view.list_columns) == tuple(view.show_columns) == tuple(view.columns) != ()
        assert not {"password", "created_by", "changed_by"} & {*view.columns, *view.add_columns, *view.search_columns}
    admin = api_as("admin")
    for view in resources:
        answer = admin.get(f"/api/v1/{view.resource_name}/")
        assert "scrypt:" not in answer.text
        for row in answer.get_json().get("result", []):
            assert set(row) <= set(view.columns)


def test_a_column_that_is_not_offered_cannot_be_asked_for(api_as: Callable[[str], FlaskClient]) -> None:
    admin = api_as("admin")
    for q in (
        "(columns:!(password,created_by.password,search_phone,user_id))",
        "(columns:!(user.password))",
        "(keys:!(add_columns,edit_columns,filters,permissions))",
    ):
        answer = admin.get("/api/v1/patient/", query_string={"q": q})
        assert "scrypt" not in answer.text
        assert "search_phone" not in answer.text
    for column in ("user_id", "search_phone", "user.password", "identifiers.value", "photo", "password"):
        for q in (
            f"(filters:!((col:{column},opr:eq,value:x)))",
            f"(filters:!((col:{column},opr:sw,value:s)))",
            f"(order_column:{column},order_direction:asc)",
        ):
            answer = admin.get("/api/v1/patient/", query_string={"q": q})
            assert answer.status_code in (400, 422), q
            assert "result" not in answer.get_json()


def test_driver_text_never_reaches_a_person(client_as: ClientAs, api_as: Callable[[str], FlaskClient]) -> None:
    admin, desk = client_as("admin"), api_as("reception")
    fields = {"name": "Other", "code": "NOR", "time_zone": "Europe/Madrid", "currency": "EUR", "languages": "es"}
    pages = [admin.submit("/branches/add", fields)]
    assert pages[0].status_code == 409
    pages.append(
        admin.submit(
            "/users/add",
            {
                "username": "doctor",
                "first_name": "A",
                "last_name": "B",
                "email": "new@example.org",
                "active": "y",
                "roles": ["1"],
                "password": "long enough 1",
                "conf_password": "long enough 1",
            },
        )
    )
    pages.append(
        desk.post(
            "/api/v1/patient/",
            json={
                "family": "Twice",
                "given": "Told",
                "insist": True,
                "identifiers": [{"system": "passport", "value": "PASS0001"}],
            },
        )
    )
    assert pages[-1].status_code == 409
    for answer in pages:
        assert answer.status_code in (409, 422)
        for word in ("psycopg", "sqlalchemy", "INSERT INTO", "DETAIL", "duplicate key", "_key", "violates"):
            assert word not in answer.text
    assert 'value="Other"' in pages[0].text, "what was typed is kept"


# ---- sizes ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(database: Any) -> int:
    """More organizations than any page or drop-down takes."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        have = len(session.scalars(select(Organization).where(Organization.name.startswith("Many"))).all())
        for number in range(LONGEST_CHOICE + 20 - have):
            organization.found_organization(session, name=f"Many {number}")
    return LONGEST_CHOICE + 20


@pytest.mark.parametrize("size", ["100000", "-1", "0", "x", "99999999999999999999", "1e9", ""])
def test_a_page_has_bounds(size: str, many: int, client_as: ClientAs, api_as: Callable[[str], FlaskClient]) -> None:
    page = client_as("admin").get(f"/organizations/list/?psize_OrganizationView={size}&page_OrganizationView=0")
    assert page.status_code == 200
    assert page.text.count("/organizations/show/") <= 2 * LONGEST_PAGE
    for query in ({"q": f"(page_size:{size},page:0)"}, {"q": f"(page_size:{size},page:-5)"}):
        answer = api_as("admin").get("/api/v1/organization/", query_string=query)
        assert answer.status_code in (200, 400)
        if answer.status_code == 200:
            assert 0 < len(answer.get_json()["result"]) <= 100


@pytest.mark.parametrize("page", ["-1", "x", "99999999999", "1.5"])
def test_a_page_number_has_bounds(page: str, client_as: ClientAs) -> None:
    assert client_as("admin").get(f"/organizations/list/?page_OrganizationView={page}").status_code == 200


def test_a_drop_down_does_not_load_every_row(many: int, client_as: ClientAs, app: Flask) -> None:
    with app.test_request_context(), guard.acting_as(service("demo")):
        interface = next(v for v in app.appbuilder.baseviews if type(v).__name__ == "OrganizationView").datamodel
        count, rows = interface.query()
        assert (count, len(rows)) == (many + 3, LONGEST_CHOICE)
    admin = client_as("admin")
    form = admin.page("/rooms/add")
    assert form.count("<option") < LONGEST_CHOICE


def test_a_list_is_counted_only_so_far(client_as: ClientAs) -> None:
    with statements() as sent:
        client_as("admin").page("/organizations/list/")
    counting = [statement for statement in sent if "count(" in statement]
    assert counting
    assert all("LIMIT" in statement for statement in counting)


# ---- sessions and flashes --------------------------------------------------------------------------------------------------


def test_a_translated_flash_survives_the_session(app: Flask, client_as: ClientAs) -> None:
    """Stock Flask-Session cannot write a lazy text: the change was committed, and the person was shown an error."""
    kept = JsonSerializer()
    assert kept.decode(kept.encode({"_flashes": [("success", lazy_gettext("Saved."))]})) == {
        "_flashes": [["success", "Saved."]]
    }
    with app.test_request_context():
        flash(lazy_gettext("Saved."))
    admin = client_as("admin")
    answer = admin.submit("/organizations/add", {"name": "With a flash"}, follow_redirects=True)
    assert answer.status_code == 200
    assert "Saved." in answer.text
    assert factories.number_of(Organization, Organization.name == "With a flash") == 1


def test_a_session_that_is_no_json_is_nobody(app: Flask, browser: Callable[[], Browser], servers: Any) -> None:
    import redis

    client = browser()
    client.get("/login/")
    cookie = client.get_cookie("wardbook")
    assert cookie is not None
    redis.Redis.from_url(servers.redis_url).set(f"session:{cookie.value}", b"\x80\x04cos\nsystem\n.")
    assert client.get("/patients/").status_code in (302, 400)


# ---- saving ----------------------------------------------------------------------------------------------------------------


def test_a_refused_save_is_no_success(client_as: ClientAs, hospital: Hospital) -> None:
    """Stock views swallow what the database refuses, and say it was saved."""
    admin = client_as("admin")
    before = factories.number_of(Room)
    answer = admin.submit("/rooms/add", {"name": "Room 1", "branch": str(hospital.branches[0]), "kind": "Ward"})
    assert answer.status_code == 409
    assert "Saved." not in answer.text
    assert "already" in answer.text
    assert factories.number_of(Room) == before


@pytest.mark.parametrize("action", ["action", "action_post"])
def test_bulk_actions_are_not_there(action: str, client_as: ClientAs, hospital: Hospital) -> None:
    """They fetch by key past every filter."""
    admin = client_as("admin")
    for base in ("organizations", "branches", "rooms", "staff", "users", "roles", "patients/all"):
        for path in (f"/{base}/{action}/muldelete/1", f"/{base}/{action}/copyrole/1", f"/{base}/{action}"):
            assert admin.get(path).status_code in (404, 405), path
    assert factories.number_of(Patient) >= len(hospital.patients)


def test_address_parameters_on_columns_that_are_not_offered(client_as: ClientAs, hospital: Hospital) -> None:
    """`_flt_` and `_oc_` name any column in the stock lists: an oracle for what is masked."""
    officer = client_as("privacy")
    plain = officer.page("/patients/all/list/")
    for query in (
        "_oc_PatientList=search_phone&_od_PatientList=asc",
        "_oc_PatientList=user_id&_od_PatientList=desc",
        "_oc_PatientList=registered_at.code&_od_PatientList=asc",
        "_flt_0_search_phone=34911",
        "_flt_2_telecom=34911",
        "_flt_0_user_id=1",
        "_flt_0_registered_at.code=NOR",
        "_flt_99_family=x",
        "_flt_x_family=x",
        "_flt_0_=x",
    ):
        answer = officer.get(f"/patients/all/list/?{query}")
        assert answer.status_code in (200, 400, 403, 422), query
        if answer.status_code == 200:
            assert answer.text.count("/patients/") >= 12, query
            assert [f in answer.text for f, *_ in factories.NAMES] == [f in plain for f, *_ in factories.NAMES], query


# ---- statements ------------------------------------------------------------------------------------------------------------


def test_how_often_the_database_is_asked(
    client_as: ClientAs, api_as: Callable[[str], FlaskClient], hospital: Hospital
) -> None:
    """Stock pages ask once a menu entry: 14 to 21 statements. Ours are counted when warm."""
    doctor, program, admin = client_as("doctor"), api_as("doctor"), client_as("admin")
    for client, address, most in (
        (program, f"/api/v1/patient/{hospital.patients[1]}", 3),
        (program, "/api/v1/patient/", 4),
        (admin, "/organizations/list/", 6),
        (admin, "/staff/list/", 8),  # one of them counts the proposals that wait, for the menu
        (doctor, "/patients/all/list/", 6),
        (doctor, f"/patients/{hospital.patients[1]}/", 18),
    ):
        client.get(address)
        with statements() as sent:
            assert client.get(address).status_code == 200
        assert 0 < len(sent) <= most, f"{address}: {len(sent)}\n" + "\n".join(sent)


def test_permissions_are_asked_for_once_until_they_change(client_as: ClientAs) -> None:
    admin = client_as("admin")
    admin.get("/")
    with statements() as sent:
        admin.get("/")
    assert not [statement for statement in sent if "ab_permission_view_role" in statement]


# ---- schemas ---------------------------------------------------------------------------------------------------------------


def test_a_schema_is_checked_once_not_with_every_call(api_as: Callable[[str], FlaskClient]) -> None:
    """Half of a REST call's time went into checking the framework's own schema again."""
    from views import api

    program = api_as("doctor")
    program.get("/api/v1/patient/?q=(page_size:2)")
    known = len(api._validators)
    for size in range(3, 8):
        assert program.get(f"/api/v1/patient/?q=(page_size:{size})").status_code == 200
    assert len(api._validators) == known > 0
    assert stock_api.jsonschema.validate is api.validate
    with pytest.raises(jsonschema.ValidationError):
        api.validate({"page_size": "x"}, stock_api.get_list_schema)


def test_registering_is_one_unit(client_as: ClientAs) -> None:
    """A number that is taken undoes the patient it was given with."""
    desk = client_as("reception")
    before = factories.number_of(Patient)
    answer = desk.submit(
        "/patients/register/",
        {
            "family": "Undone",
            "given": "Una",
            "insist": "1",
            "gender": "female",
            "sex_for_clinical_use": "unknown",
            "identifier_system": "passport",
            "identifier_value": "PASS0002",
        },
    )
    assert answer.status_code == 409
    assert factories.number_of(Patient) == before
    with guard.acting_as(service("demo")):
        assert patients.find(guard.session(), "Undone").patients == []
        assert told("Undone").family == "Undone"
