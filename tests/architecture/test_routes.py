"""A walk of every address: what is open to nobody, what breaks for anybody, and what may never be read by some."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import policy
from app.services import clinical
from tests import factories
from tests.factories import Hospital

OPEN = {"SignInView.login", "health.healthz", "health.readyz", "static", "appbuilder.static", "Verify.ask"}
"""What anybody may open. `/lang/<locale>` sends back to where one was."""


def addresses(app: Flask, values: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(method, endpoint, address) of every rule and method, with the arguments filled in."""
    adapter = app.url_map.bind("localhost")
    for rule in app.url_map.iter_rules():
        if rule.endpoint in ("static", "appbuilder.static"):
            continue
        filled = {name: values.get(name, "en" if name == "locale" else 1) for name in rule.arguments}
        methods = sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
        address = adapter.build(rule.endpoint, filled, method=methods[0])
        for method in methods:
            yield method, rule.endpoint, address


def values_of(hospital: Hospital, number: int = 1) -> dict[str, Any]:
    """Arguments that lead to something: a patient's number, and one row of everything."""
    rows = hospital.rows if number else hospital.own_rows
    return {
        "patient_id": hospital.patients[number],
        "pk": hospital.patients[number],
        "link_id": rows.get("PatientLink", 1),
        "encounter_id": rows["Encounter"],
    }


def asked(client: FlaskClient, method: str, address: str) -> Any:
    """One request, with a body where a body belongs."""
    more = {"json": {}} if method in ("POST", "PUT", "PATCH") and address.startswith("/api/") else {}
    return client.open(address, method=method, **more)


def test_nobody_gets_an_answer_without_signing_in(app: Flask, browser: Callable[[], Any], hospital: Hospital) -> None:
    walked = 0
    for method, endpoint, address in addresses(app, values_of(hospital)):
        answer = asked(browser(), method, address)
        walked += 1
        if endpoint in OPEN and method == "GET":
            assert answer.status_code == 200, address
            continue
        assert answer.status_code != 200, f"{method} {address} is open to everybody"
        assert answer.status_code < 500, f"{method} {address}: {answer.status_code}"
        for word in ("Vandersloot", "Quartermain", "scrypt:", factories.NOTE, factories.PHONE):
            assert word not in answer.text, f"{method} {address}"
        if answer.status_code in (301, 302, 303, 308):
            assert re.search(r"/login/|^/$|/static/|/lang/", answer.headers["Location"]) or endpoint == "Home.index", (
                f"{address} leads to {answer.headers['Location']}"
            )
    assert walked > 50


SENTINELS = {
    "admin": (factories.NOTE, factories.DOCUMENT, factories.SOURCE, factories.REPORT, factories.CONCLUSION),
    "nurse": (factories.NOTE, factories.DOCUMENT, factories.SOURCE, factories.REPORT, factories.CONCLUSION),
    "reception": (
        *(factories.NOTE, factories.DOCUMENT, factories.SOURCE, factories.REPORT, factories.CONCLUSION),
        factories.REASON,
    ),
    "lab": (factories.NOTE, factories.DOCUMENT, factories.SOURCE, factories.REPORT, factories.REASON),
    "pharmacist": (factories.NOTE, factories.DOCUMENT, factories.SOURCE, factories.REPORT, factories.CONCLUSION),
    "billing": (factories.NOTE, factories.DOCUMENT, factories.SOURCE, factories.REPORT, factories.CONCLUSION),
    "privacy": (
        *(factories.NOTE, factories.DOCUMENT, factories.SOURCE, factories.REPORT, factories.CONCLUSION),
        *(factories.REASON, factories.PHONE, "+34 911", "Secret Street"),
    ),
    "patient": (
        *(factories.NOTE, factories.DOCUMENT, factories.SOURCE, factories.REPORT, factories.CONCLUSION),
        *("Vandersloot", "Medina", "Kowalska", "PASS0001"),
    ),
    "doctor": (),
}
"""What a person must not find, however they go about it."""

TABS = (
    *("overview", "conditions", "allergies", "medications", "observations", "visits", "immunisations", "procedures"),
    *("reports", "documents", "timeline", "orders"),
)


def everything_to_read(app: Flask, hospital: Hospital) -> list[str]:
    """Every GET address, led to both patients with a chart and to each of their rows, and every tab of a chart."""
    found: dict[str, None] = {}
    own = hospital.own_rows
    for values in (
        values_of(hospital),
        values_of(hospital, 0),
        *({"pk": key, "patient_id": hospital.patients[1]} for key in {*hospital.rows.values(), *own.values()}),
        {"pk": hospital.accounts["doctor"], "patient_id": hospital.patients[0]},
        {"pk": "nonsense", "patient_id": 2**70},
    ):
        for method, _, address in addresses(app, values):
            if method == "GET" and "logout" not in address and "/lang/" not in address:
                found[address] = None
    for number in hospital.patients[:2]:
        for tab in TABS:
            found[f"/patients/{number}/?tab={tab}"] = None
    for kind, model in clinical.ENTRIES.items():
        for rows in (hospital.rows, own):
            found[f"/entries/{kind}/{rows[model.__name__]}/"] = None
    return list(found)


@pytest.mark.parametrize("username", factories.PEOPLE)
def test_nothing_breaks_and_nothing_leaks(
    username: str, app: Flask, client_as: Callable[[str], FlaskClient], hospital: Hospital
) -> None:
    client = client_as(username)
    shown = 0
    for address in everything_to_read(app, hospital):
        answer = client.get(address)
        assert answer.status_code < 500, f"{address} answered {answer.status_code}: {answer.text[:300]}"
        shown += answer.status_code == 200
        for word in (*SENTINELS[username], "scrypt:", "Traceback", "psycopg"):
            assert word not in answer.text, f"{address} shows {word}"
    assert shown > 5


def test_the_sentinels_are_there_to_be_found(
    app: Flask, client_as: Callable[[str], FlaskClient], hospital: Hospital
) -> None:
    """Otherwise the walk above would find nothing in an empty house."""
    client = client_as("doctor")
    text = " ".join(client.get(address).text for address in everything_to_read(app, hospital))
    for word in (factories.NOTE, factories.DOCUMENT, factories.REPORT, factories.CONCLUSION, factories.REASON):
        assert word in text
    assert "Secret Street" in text
    assert "Vandersloot" in text


def test_a_token_opens_no_more_than_a_session(
    app: Flask, api_as: Callable[[str], FlaskClient], hospital: Hospital
) -> None:
    for username in ("admin", "patient"):
        client = api_as(username)
        for address in everything_to_read(app, hospital):
            if not address.startswith("/api/"):
                continue
            answer = client.get(address)
            assert answer.status_code < 500, address
            for word in (*SENTINELS[username], "scrypt:"):
                assert word not in answer.text, f"{address} shows {word}"


def test_every_route_says_who_may_open_it(app: Flask) -> None:
    """`open_to`, `open_to_all`, a `policy` of a CommandView, `has_access` or `protect`: one of them, on every view."""
    silent = []
    for rule in app.url_map.iter_rules():
        if rule.endpoint in OPEN | {
            "SignInView.logout",
            "health.metrics",
            "SignInView.code",
            "TokenApi.login",
            "TokenApi.refresh",
            "LocaleView.index",
            "UtilView.back",
        }:
            continue
        function = app.view_functions[rule.endpoint]
        owner = getattr(function, "__self__", None)
        bare = inspect.unwrap(getattr(function, "__func__", function))
        says = (
            hasattr(function, "policy")
            or hasattr(owner, "policy")
            or hasattr(bare, "_permission_name")
            or hasattr(function, "_permission_name")
        )
        if not says:
            silent.append(rule.endpoint)
    assert silent == []


def test_every_resource_of_the_api_and_every_generated_screen_is_in_the_matrix(app: Flask) -> None:
    found = {
        type(view).__name__: view.class_permission_name
        for view in app.appbuilder.baseviews  # type: ignore[attr-defined]
        if getattr(view, "datamodel", None) is not None
    }
    assert len(found) > 20
    assert {name: resource for name, resource in found.items() if resource not in policy.RESOURCES} == {}


def test_nothing_of_the_framework_is_left_open_that_nobody_answers_for(app: Flask) -> None:
    """Bulk actions, downloads and related lists fetch past the filters; they are not routed at all."""
    for rule in app.url_map.iter_rules():
        assert not re.search(r"/(action|action_post|download|related|muldelete|copy_role)\b", rule.rule), rule.rule
        if rule.endpoint.endswith(".delete"):
            assert rule.methods is not None
            assert "GET" not in rule.methods
