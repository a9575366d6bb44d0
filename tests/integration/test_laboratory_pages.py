"""The laboratory's bench in the browser: from the order to the released result, and what is refused on the way."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from app import guard
from app.services import lab
from models.clinical import Observation
from models.lab import ServiceRequest, Specimen
from tests import factories
from tests.conftest import Forms, csrf_of
from tests.factories import Laboratory, stored

SignIn = Callable[[str], Any]


@pytest.fixture(scope="module")
def laboratory(database: Any, app: Any) -> Laboratory:
    return factories.open_laboratory(database.hospital)


@pytest.fixture
def doctor(laboratory: Laboratory, client_as: SignIn) -> Any:
    return client_as("doctor")


@pytest.fixture
def bench(laboratory: Laboratory, client_as: SignIn) -> Any:
    return client_as("lab")


@pytest.fixture
def second(laboratory: Laboratory, client_as: SignIn) -> Any:
    return client_as("lab2")


def rows(model: Any, **having: Any) -> list[Any]:
    """Rows of a table as they are in the database, in order."""
    with guard.engine().connect() as connection:
        table = model.__table__
        return list(connection.execute(select(table).filter_by(**having).order_by(table.c.id)).mappings())


def newest(model: Any, **having: Any) -> Any:
    return rows(model, **having)[-1]


def ordered(laboratory: Laboratory, patient: int, *tests: int, panel: int | None = None) -> list[int]:
    """Orders of the doctor, made past the pages."""
    with factories.acting(laboratory.hospital.accounts["doctor"]), guard.unit_of_work() as session:
        asked: list[dict[str, Any]] = [{"test_id": test} for test in tests] + ([{"panel_id": panel}] if panel else [])
        return [lab.order(session, patient_id=patient, **each).id for each in asked]


def received(laboratory: Laboratory, patient: int, *tests: int, panel: int | None = None) -> list[int]:
    """Orders whose specimens are in the laboratory."""
    numbers = ordered(laboratory, patient, *tests, panel=panel)
    with factories.acting(laboratory.hospital.accounts["lab"]), guard.unit_of_work() as session:
        for specimen in lab.collect(session, numbers):
            lab.receive(session, specimen.accession)
    return numbers


def entered(laboratory: Laboratory, order: int, test: int, value: str) -> int:
    with factories.acting(laboratory.hospital.accounts["lab"]), guard.unit_of_work() as session:
        return lab.enter(session, order, test, value).id


def sent(client: FlaskClient, page: str, path: str, **fields: Any) -> Any:
    """Send a form, with the token of a page."""
    return client.post(path, data={"csrf_token": csrf_of(page), **fields})


# ---- ordering ----------------------------------------------------------------------------------------------------


def test_a_doctor_orders_a_panel_and_a_test_at_once(laboratory: Laboratory, doctor: Any) -> None:
    patient = laboratory.hospital.patients[2]
    path = f"/laboratory/order/{patient}/"
    before = len(rows(ServiceRequest))
    page = doctor.page(path)
    assert "Panel Electrolytes: Potassium, Sodium" in page
    chosen = {
        "what": [f"p{laboratory.panel}", f"t{laboratory.culture}"],
        "priority": "stat",
        "note": "On heparin",
    }
    answer = doctor.submit(path, chosen)
    assert answer.status_code == 302
    made = rows(ServiceRequest)[before:]
    assert [(each["panel_id"], each["test_id"]) for each in made] == [
        (laboratory.panel, None),
        (None, laboratory.culture),
    ]
    assert {(each["priority"], each["note"], each["patient_id"]) for each in made} == {("stat", "On heparin", patient)}
    assert "Ordered already" in doctor.page(path)


def test_an_order_without_a_test_or_for_what_is_not_offered_is_refused_and_keeps_what_was_typed(
    laboratory: Laboratory, doctor: Any
) -> None:
    path = f"/laboratory/order/{laboratory.hospital.patients[2]}/"
    before = len(rows(ServiceRequest))
    for chosen in (
        {"note": "On heparin"},
        {"note": "On heparin", "what": ["t999999"]},
        {"note": "On heparin", "what": ["x"]},
    ):
        answer = doctor.submit(path, chosen)
        assert answer.status_code == 422
        assert "On heparin" in answer.text
    assert len(rows(ServiceRequest)) == before


def test_nobody_but_those_who_may_orders_or_works_at_the_bench(
    laboratory: Laboratory, client_as: SignIn, bench: Any
) -> None:
    patient = laboratory.hospital.patients[2]
    before = len(rows(ServiceRequest))
    assert (
        sent(bench, bench.page("/laboratory/receive/"), f"/laboratory/order/{patient}/", what="t1").status_code == 403
    )
    for username in ("nurse", "reception", "pharmacist", "billing", "privacy", "patient"):
        client = client_as(username)
        collects = username == "nurse"
        for path in ("", "collect/", "receive/", "worklist/", "verify/", f"order/{patient}/"):
            if path == "collect/" and collects:
                continue
            assert client.get(f"/laboratory/{path}").status_code in (403, 404), (username, path)
    assert len(rows(ServiceRequest)) == before


@pytest.mark.parametrize("username", ["nurse", "doctor"])
def test_whoever_cares_takes_specimens_and_does_nothing_else_at_the_bench(
    laboratory: Laboratory, client_as: SignIn, username: str
) -> None:
    patient = laboratory.hospital.patients[3]
    numbers = ordered(laboratory, patient, laboratory.sodium, laboratory.potassium)
    client = client_as(username)
    page = client.page(f"/laboratory/collect/?patient={patient}")
    assert "Enter results" not in client.page("/laboratory/collect/"), "a way they may not go"
    answer = client.post(
        "/laboratory/collect/",
        data={"csrf_token": csrf_of(page), "patient": str(patient), "order": [str(each) for each in numbers]},
    )
    assert answer.status_code == 302, answer.text
    taken = {stored(ServiceRequest, number)["specimen_id"] for number in numbers}
    assert len(taken) == 1, "one tube for one kind of specimen"
    specimen = stored(Specimen, taken.pop())
    assert specimen["collector_id"] == laboratory.hospital.staff[username]
    assert specimen["accession"] in client.page(answer.headers["Location"])
    for path in ("receive/", "worklist/", "verify/"):
        assert client.get(f"/laboratory/{path}").status_code == 403
    if username == "nurse":
        called_off = client.post(
            f"/laboratory/orders/{numbers[0]}/revoke", data={"csrf_token": csrf_of(page), "reason": "not needed"}
        )
        assert called_off.status_code == 403
        assert stored(ServiceRequest, numbers[0])["status"] == "active"


# ---- specimens ---------------------------------------------------------------------------------------------------


def test_open_orders_stand_by_urgency_with_what_is_next(laboratory: Laboratory, bench: Any) -> None:
    patient = laboratory.hospital.patients[3]
    (routine,) = ordered(laboratory, patient, laboratory.sodium)
    with factories.acting(laboratory.hospital.accounts["doctor"]), guard.unit_of_work() as session:
        urgent = lab.order(session, patient_id=patient, test_id=laboratory.culture, priority="stat").id
    page = bench.page("/laboratory/")
    assert page.index(f"/laboratory/orders/{urgent}/") < page.index(f"/laboratory/orders/{routine}/")
    assert f"/laboratory/collect/?patient={patient}" in page
    only = bench.page("/laboratory/?step=verify")
    assert f"/laboratory/orders/{routine}/" not in only


def test_collecting_gives_a_number_and_a_label_for_each_kind_of_specimen(laboratory: Laboratory, bench: Any) -> None:
    patient = laboratory.hospital.patients[4]
    orders = ordered(laboratory, patient, laboratory.potassium, laboratory.sodium, laboratory.culture)
    path = f"/laboratory/collect/?patient={patient}"
    page = bench.page(path)
    assert page.count('name="order"') == 3
    answer = sent(bench, page, "/laboratory/collect/", patient=patient, order=orders)
    assert answer.status_code == 302
    taken = rows(Specimen, patient_id=patient)
    assert sorted(each["type_code"] for each in taken) == ["BLD", "SER"]
    labels = bench.page(answer.location)
    for specimen in taken:
        assert lab.is_accession(specimen["accession"])
        assert specimen["accession"] in labels
    assert labels.count("data:image/png;base64,") == 2
    again = sent(bench, page, "/laboratory/collect/", patient=patient, order=orders)
    assert again.status_code == 409
    assert len(rows(Specimen, patient_id=patient)) == 2


def test_orders_of_two_patients_are_never_collected_at_once(laboratory: Laboratory, bench: Any) -> None:
    one, other = laboratory.hospital.patients[4], laboratory.hospital.patients[5]
    orders = [*ordered(laboratory, one, laboratory.sodium), *ordered(laboratory, other, laboratory.sodium)]
    before = len(rows(Specimen))
    answer = sent(bench, bench.page("/laboratory/receive/"), "/laboratory/collect/", patient=one, order=orders)
    assert answer.status_code == 422
    assert "Choose orders of one patient" in answer.text
    assert len(rows(Specimen)) == before


def test_a_specimen_is_received_by_its_number_once_and_a_mistyped_one_is_refused(
    laboratory: Laboratory, bench: Any
) -> None:
    patient = laboratory.hospital.patients[5]
    orders = ordered(laboratory, patient, laboratory.potassium)
    with factories.acting(laboratory.hospital.accounts["lab"]), guard.unit_of_work() as session:
        number = lab.collect(session, orders)[0].accession
    page = bench.page("/laboratory/receive/")
    assert number in page, "it is on the way"
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    answer = sent(bench, page, "/laboratory/receive/", number=wrong)
    assert answer.status_code == 422
    assert wrong in answer.text
    assert newest(Specimen, accession=number)["received_at"] is None
    assert sent(bench, page, "/laboratory/receive/", number=f" {number.lower()} ").status_code == 302
    assert newest(Specimen, accession=number)["received_at"] is not None
    assert sent(bench, page, "/laboratory/receive/", number=number).status_code == 409


def test_a_rejected_specimen_leads_to_taking_it_again(laboratory: Laboratory, bench: Any) -> None:
    patient = laboratory.hospital.patients[6]
    (order,) = received(laboratory, patient, laboratory.potassium)
    entered(laboratory, order, laboratory.potassium, "4.0")
    specimen = newest(Specimen, patient_id=patient)
    page = bench.page("/laboratory/receive/")
    bad = {"word": "reject", "number": specimen["accession"], "note": "pink"}
    answer = sent(bench, page, "/laboratory/receive/", **bad, reason="")
    assert answer.status_code == 422
    assert "pink" in answer.text
    assert newest(Specimen, patient_id=patient)["status"] == "available"
    answer = sent(bench, page, "/laboratory/receive/", **bad, reason="RH")
    assert answer.location.endswith(f"/laboratory/collect/?patient={patient}")
    assert newest(Specimen, patient_id=patient)["rejection"] == "RH"
    assert newest(Observation, service_request_id=order)["status"] == "cancelled"
    assert f'value="{order}"' in bench.page(answer.location)


# ---- results -----------------------------------------------------------------------------------------------------


def test_a_grid_saves_each_row_by_itself_and_loses_nothing_that_was_typed(laboratory: Laboratory, bench: Any) -> None:
    patient = laboratory.hospital.patients[7]
    good, bad, left = received(laboratory, patient, laboratory.potassium, laboratory.potassium, laboratory.sodium)
    page = bench.page("/laboratory/worklist/")
    fields = next(form for form in Forms(page).forms if f"value-{good}-{laboratory.potassium}" in form)
    fields[f"value-{good}-{laboratory.potassium}"] = "6.5"
    fields[f"value-{bad}-{laboratory.potassium}"] = "haemolysed"
    answer = bench.post("/laboratory/worklist/", data=fields)
    assert answer.status_code == 422
    assert "critically high" in answer.text
    assert 'value="haemolysed"' in answer.text
    assert "answered with a number" in answer.text
    assert newest(Observation, service_request_id=good)["interpretation"] == "HH"
    assert rows(Observation, service_request_id=bad) == []
    assert rows(Observation, service_request_id=left) == []


def test_a_row_of_an_open_page_is_saved_alone_and_shows_its_flag(laboratory: Laboratory, bench: Any) -> None:
    (order,) = received(laboratory, laboratory.hospital.patients[7], laboratory.potassium)
    page, key = bench.page("/laboratory/worklist/"), f"{order}-{laboratory.potassium}"
    told = sent(bench, page, "/laboratory/worklist/row", key=key, value="3,4", seen="0").get_json()
    assert (told["value"], told["range"]) == ("3.4", "3.5 – 5.1")
    assert "low" in told["state"]
    stale = sent(bench, page, "/laboratory/worklist/row", key=key, value="3.9", seen="0")
    assert stale.status_code == 409
    assert "Somebody else" in stale.get_json()["error"]
    assert str(newest(Observation, service_request_id=order)["value_quantity"]) == "3.4"
    refused = sent(bench, page, "/laboratory/worklist/row", key=key, value="400", seen=str(told["version"]))
    assert refused.status_code == 422
    assert str(newest(Observation, service_request_id=order)["value_quantity"]) == "3.4"
    assert sent(bench, page, "/laboratory/worklist/row", key="x", value="4", seen="0").status_code == 404


def test_one_result_is_entered_in_another_unit_or_refused_with_what_was_typed(
    laboratory: Laboratory, bench: Any
) -> None:
    (order,) = received(laboratory, laboratory.hospital.patients[8], laboratory.potassium)
    path = f"/laboratory/orders/{order}/"
    page = bench.page(path)
    answer = sent(bench, page, f"{path}enter/{laboratory.potassium}", value="20", unit="g/L", note="twice", seen="0")
    assert answer.status_code == 422
    assert 'value="g/L"' in answer.text
    assert 'value="twice"' in answer.text
    assert rows(Observation, service_request_id=order) == []
    answer = sent(bench, page, f"{path}enter/{laboratory.potassium}", value="20", unit="mg/dL", note="twice", seen="0")
    assert answer.status_code == 302
    assert "5.1160 mmol/L" in bench.page(path)


def test_a_second_person_verifies_and_what_is_whole_is_released(
    laboratory: Laboratory, bench: Any, second: Any, doctor: Any
) -> None:
    (order,) = received(laboratory, laboratory.hospital.patients[9], panel=laboratory.panel)
    one = entered(laboratory, order, laboratory.potassium, "5.2")
    other = entered(laboratory, order, laboratory.sodium, "140")
    mine = bench.page("/laboratory/verify/")
    assert f'name="ok" value="{one}"' not in mine
    alone = sent(bench, mine, "/laboratory/verify/", ok=[one], **{f"seen-{one}": "1"})
    assert alone.status_code == 422
    assert newest(Observation, id=one)["verified_at"] is None
    page = second.page("/laboratory/verify/")
    assert sent(second, page, "/laboratory/verify/").status_code == 422
    stale = sent(second, page, "/laboratory/verify/", ok=[one], **{f"seen-{one}": "99"})
    assert stale.status_code == 422
    assert "changed meanwhile" in stale.text
    assert newest(Observation, id=one)["verified_at"] is None
    seen = {f"seen-{one}": "1", f"seen-{other}": "1"}
    answer = sent(second, page, "/laboratory/verify/", ok=[one, other], release="y", **seen)
    assert answer.status_code == 302
    assert newest(ServiceRequest, id=order)["status"] == "completed"
    assert newest(Observation, id=one)["released_at"] is not None
    shown = doctor.page(f"/laboratory/orders/{order}/")
    assert "5.2 mmol/L" in shown
    assert "Verified by" in shown


def test_a_held_result_needs_a_reason(laboratory: Laboratory, second: Any) -> None:
    patient = laboratory.hospital.patients[10]
    (first,) = received(laboratory, patient, laboratory.potassium)
    before = entered(laboratory, first, laboratory.potassium, "4.0")
    with factories.acting(laboratory.second), guard.unit_of_work() as session:
        lab.verify(session, before)
    (order,) = received(laboratory, patient, laboratory.potassium)
    held = entered(laboratory, order, laboratory.potassium, "5.6")
    page = second.page("/laboratory/verify/")
    assert f"despite-{held}" in page
    answer = sent(second, page, "/laboratory/verify/", ok=[held], **{f"seen-{held}": "1"})
    assert answer.status_code == 422
    assert newest(Observation, id=held)["verified_at"] is None
    answer = sent(
        second, page, "/laboratory/verify/", ok=[held], **{f"seen-{held}": "1", f"despite-{held}": "Measured twice"}
    )
    assert answer.status_code == 302
    assert newest(Observation, id=held)["status"] == "final"
    assert newest(ServiceRequest, id=order)["status"] == "active", "nobody asked to release it"
    path = f"/laboratory/orders/{order}/"
    assert sent(second, second.page(path), f"{path}release").status_code == 302
    assert newest(ServiceRequest, id=order)["status"] == "completed"


def test_what_was_corrected_and_what_was_withdrawn_stays_readable(
    laboratory: Laboratory, bench: Any, second: Any
) -> None:
    (order,) = received(laboratory, laboratory.hospital.patients[11], laboratory.sodium)
    result = entered(laboratory, order, laboratory.sodium, "140")
    path = f"/laboratory/orders/{order}/"
    page = second.page(path)
    assert sent(second, page, f"{path}results/{result}/verify", seen="1").status_code == 302
    assert sent(bench, bench.page(path), f"{path}release").status_code == 302
    answer = sent(second, page, f"{path}results/{result}/correct", value="131", reason="")
    assert answer.status_code == 422
    assert 'value="131"' in answer.text
    assert newest(Observation, id=result)["status"] == "final"
    assert sent(second, page, f"{path}results/{result}/correct", value="131", reason="Wrong tube").status_code == 302
    assert newest(Observation, id=result)["released_at"] is None
    shown = bench.page(path)
    assert re.search(r"<b class=\"num\">140(\.0)?</b>", shown), "what it was is in its history"
    assert "Wrong tube" in shown
    assert "131" in bench.page("/laboratory/verify/"), "it waits for a second person again"
    assert sent(bench, shown, f"{path}results/{result}/withdraw", reason="Not this patient").status_code == 302
    shown = bench.page(path)
    assert "Not this patient" in shown
    assert newest(Observation, id=result)["status"] == "entered-in-error"
    other = ordered(laboratory, laboratory.hospital.patients[3], laboratory.sodium)[0]
    assert sent(bench, shown, f"/laboratory/orders/{other}/results/{result}/verify", seen="1").status_code == 404
    assert sent(bench, shown, f"{path}results/{result}/burn").status_code == 404


def test_an_order_is_called_off_with_a_reason(laboratory: Laboratory, doctor: Any) -> None:
    (order,) = ordered(laboratory, laboratory.hospital.patients[3], laboratory.sodium)
    path = f"/laboratory/orders/{order}/"
    page = doctor.page(path)
    assert sent(doctor, page, f"{path}revoke", reason=" ").status_code == 422
    assert newest(ServiceRequest, id=order)["status"] == "active"
    assert sent(doctor, page, f"{path}revoke", reason="Ordered twice").status_code == 302
    assert "Ordered twice" in doctor.page(path)
    assert sent(doctor, page, f"{path}revoke", reason="again").status_code == 409
