"""The laboratory, from the order to a result that a second person has verified, through its services."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from app import guard
from app.errors import Forbidden, Held, IllegalTransition, Invalid, NotFound, SecondPerson
from app.services import lab
from models.base import now
from models.clinical import Observation
from models.lab import (
    CriticalResult,
    ServiceRequest,
    Specimen,
)
from models.patients import Patient
from tests import factories
from tests.factories import Laboratory

Acting = Callable[[str], AbstractContextManager[Any]]


@pytest.fixture(scope="module")
def laboratory(database: Any) -> Laboratory:
    return factories.open_laboratory(database.hospital)


@pytest.fixture
def people(laboratory: Laboratory) -> Acting:
    known = {**laboratory.hospital.accounts, "lab2": laboratory.second}
    return lambda username: factories.acting(known[username])


def received(laboratory: Laboratory, people: Acting, test: int | None, patient: int, panel: int | None = None) -> int:
    """An order whose specimen is in the laboratory."""
    with people("doctor"), guard.unit_of_work() as session:
        number = lab.order(session, patient_id=patient, test_id=test, panel_id=panel).id
    with people("lab"), guard.unit_of_work() as session:
        specimen = lab.collect(session, [number])[0]
        lab.receive(session, specimen.accession)
    return number


def entered(people: Acting, request: int, test: int, value: str, **more: Any) -> int:
    with people("lab"), guard.unit_of_work() as session:
        return lab.enter(session, request, test, value, **more).id


def verified(people: Acting, result: int, **more: Any) -> None:
    with people("lab2"), guard.unit_of_work() as session:
        lab.verify(session, result, **more)


def stored(result: int) -> dict[str, Any]:
    return factories.stored(Observation, result)


def test_a_panel_from_the_order_to_the_release(laboratory: Laboratory, people: Acting) -> None:
    request = received(laboratory, people, None, laboratory.hospital.patients[2], laboratory.panel)
    one = entered(people, request, laboratory.potassium, "5.2")
    other = entered(people, request, laboratory.sodium, "140")
    found = stored(one)
    assert (found["status"], found["interpretation"], found["value_quantity"]) == ("preliminary", "H", Decimal("5.2"))
    assert found["reference_range"] == [
        {
            "low": {"value": "3.5", "unit": "mmol/L", "code": "mmol/L"},
            "high": {"value": "5.1", "unit": "mmol/L", "code": "mmol/L"},
        }
    ]
    assert stored(other)["interpretation"] is None, "nobody has said what is normal"
    verified(people, one)
    with people("lab"), guard.unit_of_work() as session:
        assert lab.release(session, request).status == "partial"
    verified(people, other)
    with people("lab"), guard.unit_of_work() as session:
        assert lab.release(session, request).status == "final"
    assert factories.stored(ServiceRequest, request)["status"] == "completed"
    assert stored(one)["released_at"] is not None
    assert stored(one)["portal_at"] == stored(one)["released_at"]


def test_nothing_is_ordered_for_somebody_who_has_died(laboratory: Laboratory, people: Acting) -> None:
    patient = laboratory.hospital.patients[2]

    def died(deceased: bool) -> None:
        with factories.acting(laboratory.hospital.accounts["doctor"]), guard.unit_of_work() as session:
            session.get_one(Patient, patient).deceased = deceased

    before = factories.number_of(ServiceRequest)
    died(True)
    try:
        with people("doctor"), pytest.raises(Invalid, match="has died") as refused, guard.unit_of_work() as session:
            lab.order(session, patient_id=patient, test_id=laboratory.potassium)
    finally:
        died(False)
    assert refused.value.field == "patient"
    assert factories.number_of(ServiceRequest) == before


def test_nobody_verifies_what_they_entered(laboratory: Laboratory, people: Acting) -> None:
    request = received(laboratory, people, laboratory.potassium, laboratory.hospital.patients[3])
    result = entered(people, request, laboratory.potassium, "4.0")
    with people("lab"), pytest.raises(SecondPerson), guard.unit_of_work() as session:
        lab.verify(session, result)
    assert stored(result)["status"] == "preliminary"
    with people("nurse"), pytest.raises(Forbidden), guard.unit_of_work() as session:
        lab.verify(session, result)
    verified(people, result)
    with people("lab2"), pytest.raises(IllegalTransition), guard.unit_of_work() as session:
        lab.verify(session, result)


@pytest.mark.parametrize(
    ("value", "unit", "field"),
    [
        ("high", "", "value"),
        ("", "", "value"),
        ("4.2 mmol", "", "value"),
        ("NaN", "", "value"),
        ("1e400", "", "value"),
        ("0.4", "", "value"),
        ("15.1", "", "value"),
        ("400", "", "value"),
        ("4", "g/L", "unit"),
        ("--4", "", "value"),
        ("4;DROP", "", "value"),
    ],
)
def test_what_cannot_be_a_result_is_refused_and_nothing_is_kept(
    laboratory: Laboratory, people: Acting, value: str, unit: str, field: str
) -> None:
    request = received(laboratory, people, laboratory.potassium, laboratory.hospital.patients[4])
    before = factories.number_of(Observation)
    with people("lab"), pytest.raises(Invalid) as refusal, guard.unit_of_work() as session:
        lab.enter(session, request, laboratory.potassium, value, unit=unit)
    assert refusal.value.field == field
    assert factories.number_of(Observation) == before


@pytest.mark.parametrize(
    ("value", "unit", "number", "comparator", "code", "scale"),
    [
        ("0.9", "", "0.9", "", "LL", "<"),
        ("<1", "", "1.0", "<", "LL", "<"),
        ("3.5", "", "3.5", "", "N", None),
        ("4", "", "4.0", "", "N", None),
        ("4,25", "", "4.25", "", "N", None),
        ("≥10", "", "10.0", ">=", "HH", ">"),
        ("20", "mg/dL", "5.1160", "", "H", None),
    ],
)
def test_a_result_is_flagged_as_it_is_entered(
    laboratory: Laboratory,
    people: Acting,
    value: str,
    unit: str,
    number: str,
    comparator: str,
    code: str,
    scale: str | None,
) -> None:
    request = received(laboratory, people, laboratory.potassium, laboratory.hospital.patients[5])
    found = stored(entered(people, request, laboratory.potassium, value, unit=unit))
    assert found["value_quantity"] == Decimal(number)
    assert (found["comparator"], found["interpretation"], found["off_scale"]) == (comparator, code, scale)
    assert (found["value_unit"], found["rules"]) == ("mmol/L", 1)


def test_an_answer_of_a_coded_test_and_one_that_is_not_offered(laboratory: Laboratory, people: Acting) -> None:
    request = received(laboratory, people, laboratory.pregnancy, laboratory.hospital.patients[6])
    with people("lab"), pytest.raises(Invalid), guard.unit_of_work() as session:
        lab.enter(session, request, laboratory.pregnancy, "maybe")
    result = entered(people, request, laboratory.pregnancy, "Positive")
    assert (stored(result)["value_code"], stored(result)["interpretation"]) == ("POS", "A")
    verified(people, result)
    with people("lab"), guard.unit_of_work() as session:
        lab.release(session, request)
    assert stored(result)["portal_at"] is None, "somebody talks to the patient first"


def test_a_large_change_is_held_until_somebody_says_why(laboratory: Laboratory, people: Acting) -> None:
    patient = laboratory.hospital.patients[7]
    first = entered(people, received(laboratory, people, laboratory.potassium, patient), laboratory.potassium, "4.0")
    verified(people, first)
    second = entered(people, received(laboratory, people, laboratory.potassium, patient), laboratory.potassium, "5.1")
    assert (stored(second)["delta"], stored(second)["held"]) == ("U", "delta")
    with people("lab2"), pytest.raises(Held), guard.unit_of_work() as session:
        lab.verify(session, second)
    assert stored(second)["status"] == "preliminary"
    verified(people, second, despite="Measured twice")
    assert (stored(second)["status"], stored(second)["held"]) == ("final", "")
    assert "Measured twice" in stored(second)["note"]


def test_a_critical_result_is_raised_once_it_is_verified(laboratory: Laboratory, people: Acting) -> None:
    request = received(laboratory, people, laboratory.potassium, laboratory.hospital.patients[8])
    result = entered(people, request, laboratory.potassium, "6.5")
    assert factories.number_of(CriticalResult, CriticalResult.observation_id == result) == 0
    verified(people, result)
    with guard.engine().connect() as connection:
        raised = connection.execute(select(CriticalResult.__table__).filter_by(observation_id=result)).mappings().one()
    assert (raised["flag"], raised["value"]) == ("HH", "6.5 mmol/L")
    assert raised["target_id"] == laboratory.hospital.staff["doctor"]


def test_a_corrected_result_waits_again_and_keeps_what_it_was(laboratory: Laboratory, people: Acting) -> None:
    request = received(laboratory, people, laboratory.potassium, laboratory.hospital.patients[9])
    result = entered(people, request, laboratory.potassium, "4.0")
    with people("lab2"), pytest.raises(IllegalTransition), guard.unit_of_work() as session:
        lab.correct(session, result, "4.4", reason="Wrong tube")
    verified(people, result)
    with people("lab"), guard.unit_of_work() as session:
        lab.release(session, request)
    with people("lab2"), pytest.raises(Invalid), guard.unit_of_work() as session:
        lab.correct(session, result, "4.4", reason=" ")
    with people("lab2"), guard.unit_of_work() as session:
        lab.correct(session, result, "2.4", reason="Wrong tube")
    found = stored(result)
    assert (found["status"], found["released_at"], found["interpretation"]) == ("corrected", None, "LL")
    with people("lab2"), pytest.raises(SecondPerson), guard.unit_of_work() as session:
        lab.verify(session, result)
    with people("lab"), guard.unit_of_work() as session:
        lab.verify(session, result, despite="Seen on the tube")
    found = stored(result)
    assert found["status"] == "corrected"
    assert found["released_at"] is not None
    with guard.engine().connect() as connection:
        kept = connection.execute(
            text("SELECT was FROM observation_history WHERE observation_id = :id ORDER BY id"), {"id": result}
        ).scalars()
        assert any(was.get("value_quantity") == 4.0 for was in kept)


def test_a_verified_result_is_not_overwritten_by_anybody(laboratory: Laboratory, people: Acting) -> None:
    request = received(laboratory, people, laboratory.potassium, laboratory.hospital.patients[10])
    result = entered(people, request, laboratory.potassium, "4.0")
    verified(people, result)
    for statement, rule in (
        ("UPDATE observation SET value_quantity = 9 WHERE id = :id", "observation_is_verified"),
        ("UPDATE observation SET interpretation = 'N', value_quantity = 4.1 WHERE id = :id", "observation_is_verified"),
        ("UPDATE observation SET verified_by_id = recorder_id WHERE id = :id", "observation_verified_by_another"),
    ):
        with guard.engine().connect() as connection, pytest.raises(IntegrityError) as refused:
            connection.execute(text(statement), {"id": result})
        assert refused.value.orig.diag.constraint_name == rule  # type: ignore[union-attr]
    assert stored(result)["value_quantity"] == Decimal("4.0")


def test_a_rejected_specimen_sends_its_orders_back(laboratory: Laboratory, people: Acting) -> None:
    request = received(laboratory, people, laboratory.potassium, laboratory.hospital.patients[11])
    entered(people, request, laboratory.potassium, "4.0")
    with people("lab"), guard.unit_of_work() as session:
        specimen = session.get_one(Specimen, session.get_one(ServiceRequest, request).specimen_id)
        accession = specimen.accession
    with people("lab"), pytest.raises(Invalid), guard.unit_of_work() as session:
        lab.reject(session, accession, reason="ugly")
    with people("lab"), guard.unit_of_work() as session:
        lab.reject(session, accession, reason="RH")
    assert factories.stored(ServiceRequest, request)["specimen_id"] is None
    with people("lab"), pytest.raises(IllegalTransition), guard.unit_of_work() as session:
        lab.enter(session, request, laboratory.potassium, "4.0")
    with people("lab"), pytest.raises(IllegalTransition), guard.unit_of_work() as session:
        lab.receive(session, accession)
    with people("lab"), guard.unit_of_work() as session:
        again = lab.collect(session, [request])[0]
        assert again.accession != accession
        lab.receive(session, again.accession)
    assert stored(entered(people, request, laboratory.potassium, "4.1"))["status"] == "preliminary"


def test_bad_orders_and_specimens_are_refused(laboratory: Laboratory, people: Acting) -> None:
    patient = laboratory.hospital.patients[2]
    with people("doctor"), pytest.raises(Invalid), guard.unit_of_work() as session:
        lab.order(session, patient_id=patient)
    with people("doctor"), pytest.raises(Invalid), guard.unit_of_work() as session:
        lab.order(session, patient_id=patient, test_id=laboratory.potassium, priority="now")
    with people("nurse"), pytest.raises(Forbidden), guard.unit_of_work() as session:
        lab.order(session, patient_id=patient, test_id=laboratory.potassium)
    request = received(laboratory, people, laboratory.potassium, patient)
    with people("lab"), pytest.raises(IllegalTransition), guard.unit_of_work() as session:
        lab.collect(session, [request])
    with people("lab"), pytest.raises(Invalid), guard.unit_of_work() as session:
        lab.specimen_by(session, "S1000019999")
    with people("lab"), pytest.raises(NotFound), guard.unit_of_work() as session:
        lab.specimen_by(session, "S10000000000008")
    with people("doctor"), guard.unit_of_work() as session:
        lab.revoke(session, request, reason="Ordered twice")
    with people("lab"), pytest.raises(IllegalTransition), guard.unit_of_work() as session:
        lab.enter(session, request, laboratory.potassium, "4.0")
    with people("lab"), pytest.raises(Invalid), guard.unit_of_work() as session:
        lab.collect(session, [request], collected_at=now() - timedelta(days=8))
