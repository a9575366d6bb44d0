"""Attempts to learn of a result before it is out: by every page, count, order, search, file and feed there is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app import guard
from app.errors import Forbidden, NotFound
from app.policy import MATRIX, Role, RowScope, may
from app.services import clinical, lab, results
from models.base import now
from models.clinical import Observation
from models.lab import CriticalAttempt, CriticalResult, DiagnosticReport, ObservationHistory, ServiceRequest
from tests import factories
from tests.factories import Laboratory

SignIn = Callable[[str], Any]
WORD = "SENTINEL-RESULT-91ab"
"""What the unreleased result says."""


@pytest.fixture(scope="module")
def laboratory(database: Any, app: Any) -> Laboratory:
    return factories.open_laboratory(database.hospital)


def kept_back(laboratory: Laboratory, *, verified: bool, patient: int) -> tuple[int, int]:
    """An order and a result of it that is not released."""
    hospital = laboratory.hospital
    with factories.acting(hospital.accounts["doctor"]), guard.unit_of_work() as session:
        order = lab.order(session, patient_id=hospital.patients[patient], test_id=laboratory.culture).id
    with factories.acting(hospital.accounts["lab"]), guard.unit_of_work() as session:
        for specimen in lab.collect(session, [order]):
            lab.receive(session, specimen.accession)
        result = lab.enter(session, order, laboratory.culture, WORD).id
    if verified:
        with factories.acting(laboratory.second), guard.unit_of_work() as session:
            lab.verify(session, result)
    return order, result


def released(laboratory: Laboratory, test: int, value: str, patient: int) -> tuple[int, int]:
    hospital = laboratory.hospital
    with factories.acting(hospital.accounts["doctor"]), guard.unit_of_work() as session:
        order = lab.order(session, patient_id=hospital.patients[patient], test_id=test).id
    with factories.acting(hospital.accounts["lab"]), guard.unit_of_work() as session:
        for specimen in lab.collect(session, [order]):
            lab.receive(session, specimen.accession)
        result = lab.enter(session, order, test, value).id
    with factories.acting(laboratory.second), guard.unit_of_work() as session:
        lab.verify(session, result, despite="Looked at again")
        if session.get_one(Observation, result).released_at is None:
            lab.release(session, order)
    return order, result


PORTAL = {
    name: may("read", rows=RowScope.SELF)
    for name in ("Observation", "DiagnosticReport", "ServiceRequest", "Specimen", "CriticalResult", "Condition")
}
"""What a hospital may give its patients to read."""


def walked(patient: int, order: int, result: int) -> list[str]:
    """Every address by which something of a result might be read."""
    chart = f"/patients/{patient}/"
    return [
        *(f"{chart}?tab={tab}" for tab in ("overview", "timeline", "observations", "reports", "orders")),
        f"{chart}?tab=timeline&kind=observations",
        f"/results/patients/{patient}/",
        f"/results/patients/{patient}/course/?test=600-7",
        f"/results/{result}/",
        f"/results/orders/{order}/",
        f"/results/orders/{order}/report.pdf",
        "/results/",
        f"/laboratory/orders/{order}/",
        "/laboratory/verify/",
        "/critical/",
        f"/entries/observations/{result}/",
        f"/patients/entries/observations/{result}/",
        f"/api/v1/observation/{result}",
        "/api/v1/observation/?q=(order_column:issued_at,order_direction:desc,page_size:100)",
        f"/api/v1/observation/?q=(filters:!((col:value_text,opr:ct,value:{WORD})))",
        f"/find/?q={WORD}",
        "/",
    ]


@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize(
    "who", ["doctor", "nurse", "reception", "patient", "pharmacist", "billing", "admin", "privacy"]
)
def test_nobody_outside_the_laboratory_learns_of_a_result_before_its_release(
    laboratory: Laboratory, client_as: SignIn, granted: Any, who: str, verified: bool
) -> None:
    granted(Role.PATIENT, **PORTAL)
    patient = 0 if who == "patient" else 1
    client = client_as(who)
    number = laboratory.hospital.patients[patient]
    order = result = 1
    before = [client.get(address) for address in walked(number, order, result)[:5]]
    order, result = kept_back(laboratory, verified=verified, patient=patient)
    for address in walked(number, order, result):
        answer = client.get(address)
        assert answer.status_code < 500, address
        if WORD not in address:
            assert WORD not in answer.text, address
        elif address.startswith("/api/") and answer.status_code == 200:
            assert answer.json["count"] == 0
    assert client.get(f"/results/{result}/").status_code in (403, 404)
    assert client.get(f"/api/v1/observation/{result}").status_code in (401, 403, 404)
    tabs = [client.get(address).text.count('class="ob"') for address in walked(number, order, result)[:5]]
    assert tabs == [answer.text.count('class="ob"') for answer in before]


def test_the_count_of_a_chart_and_the_history_do_not_tell_of_it(laboratory: Laboratory) -> None:
    hospital = laboratory.hospital
    patient = hospital.patients[6]
    with factories.acting(hospital.accounts["doctor"]):
        before = clinical.sizes(guard.session(), patient)
    _, result = kept_back(laboratory, verified=True, patient=6)
    with factories.acting(hospital.accounts["doctor"]):
        session = guard.session()
        now_there = clinical.sizes(session, patient)
        assert (now_there["observations"], now_there["reports"]) == (before["observations"], before["reports"])
        assert lab.history(session, [result]) == {}
        assert results.cumulative(session, patient).results == ()
        with pytest.raises(NotFound):
            results.show(session, result)
        with pytest.raises(NotFound):
            results.course(session, patient, "600-7")
    with factories.acting(hospital.accounts["lab"]):
        assert lab.history(guard.session(), [result])[result]


def test_what_was_put_right_before_the_release_stays_in_the_laboratory(laboratory: Laboratory) -> None:
    hospital = laboratory.hospital
    with factories.acting(hospital.accounts["doctor"]), guard.unit_of_work() as session:
        order = lab.order(session, patient_id=hospital.patients[7], test_id=laboratory.potassium).id
    with factories.acting(hospital.accounts["lab"]), guard.unit_of_work() as session:
        for specimen in lab.collect(session, [order]):
            lab.receive(session, specimen.accession)
        lab.enter(session, order, laboratory.potassium, "14")
    with factories.acting(hospital.accounts["lab"]), guard.unit_of_work() as session:
        result = lab.enter(session, order, laboratory.potassium, "4.1").id
    with factories.acting(laboratory.second), guard.unit_of_work() as session:
        lab.verify(session, result)
        lab.release(session, order)
    with factories.acting(hospital.accounts["doctor"]):
        told = [row.was for row in guard.session().scalars(select(ObservationHistory))]
        assert not any(was.get("value_quantity") == 14 for was in told)
    with factories.acting(hospital.accounts["lab"]):
        told = [row.was for row in guard.session().scalars(select(ObservationHistory))]
        assert any(was.get("value_quantity") == 14 for was in told)
    with factories.acting(hospital.accounts["lab"]), guard.unit_of_work() as session:
        lab.correct(session, result, "4.9", reason="Wrong tube")
    with factories.acting(laboratory.second), guard.unit_of_work() as session:
        lab.verify(session, result)
    with factories.acting(hospital.accounts["doctor"]):
        session = guard.session()
        row = results.show(session, result)
        was = results.earlier(row, lab.history(session, [result])[result])
        assert [results.told_of(each.state) for each in was] == ["4.1 mmol/L"]


def test_a_doctor_whose_critical_result_is_being_put_right_goes_on_working(
    laboratory: Laboratory, client_as: SignIn
) -> None:
    order, result = released(laboratory, laboratory.potassium, "6.9", 8)
    doctor = client_as("doctor")
    assert "6.9" in doctor.page("/")
    with factories.acting(laboratory.hospital.accounts["lab"]), guard.unit_of_work() as session:
        lab.correct(session, result, "4.6", reason="Wrong tube")
        critical = session.scalars(select(CriticalResult).where(CriticalResult.observation_id == result)).one().id
    for address in ("/", "/critical/", f"/critical/{critical}/", "/results/", f"/results/orders/{order}/"):
        answer = doctor.get(address)
        assert answer.status_code == 200, address
        assert "4.6" not in answer.text.split('id="main"')[1].split("<svg")[0], address


# ---- the patient's own -------------------------------------------------------------------------------------------


def to_portal(result: int, model: Any, at: Any) -> None:
    with guard.engine().begin() as connection:
        connection.execute(update(model.__table__).where(model.__table__.c.id == result).values(portal_at=at))


def test_a_patient_is_told_when_the_delay_is_over_and_never_of_what_somebody_says_to_them(
    laboratory: Laboratory, granted: Any
) -> None:
    granted(Role.PATIENT, **PORTAL)
    hospital = laboratory.hospital
    _, delayed = released(laboratory, laboratory.sodium, "139", 0)
    _, sensitive = released(laboratory, laboratory.pregnancy, "positive", 0)
    _, critical = released(laboratory, laboratory.potassium, "7.0", 0)
    to_portal(delayed, Observation, now() + timedelta(hours=3))
    to_portal(critical, Observation, now() + timedelta(hours=3))

    def told() -> set[int]:
        with factories.acting(hospital.accounts["patient"]):
            return {row.id for row in guard.session().scalars(select(Observation))}

    assert not {delayed, sensitive, critical} & told()
    with factories.acting(hospital.accounts["patient"]):
        session = guard.session()
        assert session.scalars(select(CriticalResult)).all() == [], "each says a value"
        assert session.scalars(select(CriticalAttempt)).all() == []
        assert (
            session.scalars(select(ObservationHistory).where(ObservationHistory.category == "laboratory")).all() == []
        )
        with pytest.raises(NotFound):
            results.show(session, delayed)
        with pytest.raises(Forbidden):
            results.inbox(session)
        shown = {row.id for row in session.scalars(select(DiagnosticReport))}
        mine = session.scalars(select(ServiceRequest)).all()
        assert mine
    to_portal(delayed, Observation, now() - timedelta(minutes=1))
    assert told() >= {delayed}
    assert not {sensitive, critical} & told()
    with factories.acting(hospital.accounts["patient"]):
        assert results.show(guard.session(), delayed).value_quantity == 139
    to_portal(sensitive, Observation, None)
    assert sensitive not in told()
    with guard.engine().begin() as connection:
        reports = DiagnosticReport.__table__
        of_sensitive = connection.execute(select(reports.c.id).where(reports.c.code == "2106-3")).scalars().all()
    assert not set(of_sensitive) & shown


def test_a_patient_does_not_see_what_is_being_put_right(laboratory: Laboratory, granted: Any) -> None:
    granted(Role.PATIENT, **PORTAL)
    hospital = laboratory.hospital
    _, result = released(laboratory, laboratory.sodium, "141", 0)
    with factories.acting(hospital.accounts["lab"]), guard.unit_of_work() as session:
        lab.correct(session, result, "149", reason="Wrong tube")
    with factories.acting(hospital.accounts["patient"]), pytest.raises(NotFound):
        results.show(guard.session(), result)
    with factories.acting(laboratory.second), guard.unit_of_work() as session:
        lab.verify(session, result, despite="Repeated")
    with factories.acting(hospital.accounts["patient"]):
        assert results.show(guard.session(), result).value_quantity == 149
    with factories.acting(hospital.accounts["lab"]), guard.unit_of_work() as session:
        lab.withdraw(session, result, reason="Another patient's")
    with factories.acting(hospital.accounts["patient"]), pytest.raises(NotFound):
        results.show(guard.session(), result)


def test_nurses_are_shown_no_results_and_mark_none(laboratory: Laboratory, client_as: SignIn) -> None:
    order, result = released(laboratory, laboratory.sodium, "143", 9)
    nurse = client_as("nurse")
    number = laboratory.hospital.patients[9]
    for address in (f"/results/{result}/", f"/results/orders/{order}/", f"/results/orders/{order}/report.pdf"):
        assert nurse.get(address).status_code in (403, 404), address
    assert nurse.get(f"/results/patients/{number}/").status_code == 403
    for address in (f"/patients/{number}/", f"/patients/{number}/?tab=timeline"):
        assert "143" not in nurse.page(address).split('id="main"')[1].split("<svg")[0]
    with factories.acting(laboratory.hospital.accounts["nurse"]), pytest.raises(Forbidden), guard.unit_of_work() as s:
        results.seen(s, [(result, 1)])
    assert factories.stored(Observation, result)["read_at"] is None
    assert Role.NURSE in MATRIX
