"""Handing out: once per fill whoever tries, in parts, given back, refused by name, and on paper."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from app import guard
from app.errors import (
    AlreadyDispensed,
    Forbidden,
    IllegalTransition,
    Invalid,
    NotAClinician,
    NotDispensable,
    NotFound,
    Refusal,
    Unsafe,
)
from app.services import dispensing, signing
from app.services.prescriptions import Override
from models.clinical import AllergyIntolerance
from models.codes import MedicationDispenseStatus
from models.prescriptions import DetectedIssue, MedicationDispense, MedicationRequest
from tests import factories
from tests.conftest import csrf_of
from tests.dispensary import Paper, beside, issue, medicines, pictures, squares, text_of, yesterday
from tests.factories import Hospital, number_of, stored

S = MedicationDispenseStatus


@pytest.fixture(scope="module")
def shelf(database: Any) -> tuple[int, int, int]:
    return medicines()


@pytest.fixture
def paper(hospital: Hospital, shelf: tuple[int, int, int]) -> Paper:
    return issue(hospital, shelf[0])


@pytest.fixture
def at_the_counter(acting: Any) -> Callable[[Callable[[Any], Any]], Any]:
    """Do something as the pharmacist, in one unit of work."""

    def do(action: Callable[[Any], Any]) -> Any:
        try:
            with acting("pharmacist"), guard.unit_of_work() as session:
                return action(session)
        finally:
            guard.session.remove()

    return do


def given(paper: Paper) -> Decimal:
    return Decimal(stored(MedicationRequest, paper.orders[0])["dispensed"])


def state(paper: Paper) -> str:
    return str(stored(MedicationRequest, paper.orders[0])["status"])


def fills(paper: Paper) -> int:
    return number_of(MedicationDispense, MedicationDispense.medication_request_id == paper.orders[0])


def fill(paper: Paper, quantity: int = 21, already: int = 0, **more: Any) -> Callable[[Any], int]:
    def act(session: Any) -> int:
        return dispensing.dispense(
            session, paper.orders[0], quantity=Decimal(quantity), already=Decimal(already), **more
        ).id

    return act


# ---- once ----------------------------------------------------------------------------------------------------------


def test_a_whole_fill_is_counted(paper: Paper, at_the_counter: Any, hospital: Hospital) -> None:
    key = at_the_counter(fill(paper))
    row = stored(MedicationDispense, key)
    assert row["status"] == "completed"
    assert row["performer_id"] == hospital.staff["pharmacist"]
    assert row["branch_id"] == hospital.branches[0]
    assert given(paper) == 21
    assert state(paper) == "completed"


def test_a_second_pharmacist_is_refused(paper: Paper, at_the_counter: Any) -> None:
    at_the_counter(fill(paper))
    with pytest.raises(AlreadyDispensed):
        at_the_counter(fill(paper))
    with pytest.raises(AlreadyDispensed):
        at_the_counter(fill(paper, already=21))
    assert fills(paper) == 1


@pytest.mark.parametrize("again", [1, 21])
def test_twenty_at_once_hand_the_last_unit_out_once(
    again: int, hospital: Hospital, shelf: tuple[int, int, int], at_the_counter: Any
) -> None:
    paper = issue(hospital, shelf[0], quantity=Decimal(21))
    if again == 1:
        at_the_counter(fill(paper, 20))
    start, outcomes = threading.Barrier(20), []

    def one() -> None:
        start.wait()
        try:
            with factories.acting(hospital.accounts["pharmacist"]), guard.unit_of_work() as session:
                fill(paper, again, 21 - again)(session)
            outcomes.append(200)
        except Refusal as refusal:
            outcomes.append(refusal.status)
        finally:
            guard.session.remove()

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [200] + [409] * 19
    assert given(paper) == 21
    assert fills(paper) == (2 if again == 1 else 1)


def test_parts_of_a_fill_in_order(hospital: Hospital, shelf: tuple[int, int, int], at_the_counter: Any) -> None:
    paper = issue(hospital, shelf[0], quantity=Decimal(20), repeats=1)
    at_the_counter(fill(paper, 12))
    with pytest.raises(AlreadyDispensed):
        at_the_counter(fill(paper, 12, 12))
    at_the_counter(fill(paper, 8, 12))
    assert state(paper) == "active"
    at_the_counter(fill(paper, 20, 20))
    assert given(paper) == 40
    assert state(paper) == "completed"
    with pytest.raises(AlreadyDispensed):
        at_the_counter(fill(paper, 1, 40))


@pytest.mark.parametrize("quantity", [0, -1, "0.5", "nonsense", None, "NaN"])
def test_what_is_no_amount_is_refused(quantity: Any, paper: Paper, at_the_counter: Any) -> None:
    with pytest.raises(Invalid) as refused:
        at_the_counter(
            lambda session: dispensing.dispense(session, paper.orders[0], quantity=quantity, already=Decimal(0))
        )
    assert refused.value.field == "quantity"
    assert fills(paper) == 0


def test_raw_sql_cannot_hand_out_too_much(paper: Paper, hospital: Hospital, shelf: tuple[int, int, int]) -> None:
    address = guard.engine().url.set(drivername="postgresql").render_as_string(hide_password=False)
    insert = (
        "INSERT INTO medication_dispense (fhir_id, patient_id, status, medication_request_id, medication_id, quantity,"
        " quantity_unit, already, handed_over_at, status_reason, version, created_at, updated_at)"
        " VALUES (gen_random_uuid(), %s, 'completed', %s, %s, %s, %s, %s, now(), '', 1, now(), now())"
    )
    patient = hospital.patients[4]

    def raw(quantity: Any, unit: str, already: int) -> None:
        with psycopg.connect(address) as connection:
            connection.execute(insert.encode(), (patient, paper.orders[0], shelf[0], quantity, unit, already))

    for wrong in ((22, "{tbl}", 0), (21, "mg", 0), (21, "{tbl}", 5), (-1, "{tbl}", 0)):
        with pytest.raises(psycopg.errors.CheckViolation):
            raw(*wrong)
    raw(20, "{tbl}", 0)
    with pytest.raises(psycopg.errors.CheckViolation):
        raw(2, "{tbl}", 20)
    with psycopg.connect(address) as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute("UPDATE medication_request SET dispensed = 50 WHERE id = %s", [paper.orders[0]])
    for statement in (
        "UPDATE medication_dispense SET quantity = 1 WHERE medication_request_id = %s",
        "DELETE FROM medication_dispense WHERE medication_request_id = %s",
    ):
        with psycopg.connect(address) as connection, pytest.raises(psycopg.errors.CheckViolation):
            connection.execute(statement.encode(), [paper.orders[0]])
    assert given(paper) == 20


# ---- states --------------------------------------------------------------------------------------------------------


def test_put_by_made_ready_and_handed_over(paper: Paper, at_the_counter: Any) -> None:
    key = at_the_counter(fill(paper, handed_over=False))
    assert stored(MedicationDispense, key)["status"] == "preparation"
    assert given(paper) == 21
    at_the_counter(lambda session: dispensing.ready(session, key).id)
    assert stored(MedicationDispense, key)["status"] == "in-progress"
    at_the_counter(lambda session: dispensing.hand_over(session, key).id)
    row = stored(MedicationDispense, key)
    assert row["status"] == "completed"
    assert row["handed_over_at"] >= row["prepared_at"]
    with pytest.raises(IllegalTransition):
        at_the_counter(lambda session: dispensing.hand_over(session, key))


def test_what_is_given_back_can_be_handed_out_again(paper: Paper, at_the_counter: Any) -> None:
    key = at_the_counter(fill(paper))
    with pytest.raises(Invalid):
        at_the_counter(lambda session: dispensing.give_back(session, key, reason=" "))
    assert given(paper) == 21
    at_the_counter(lambda session: dispensing.give_back(session, key, reason="Wrong patient").id)
    assert given(paper) == 0
    assert state(paper) == "active"
    assert stored(MedicationDispense, key)["status_reason"] == "Wrong patient"
    with pytest.raises(IllegalTransition):
        at_the_counter(lambda session: dispensing.give_back(session, key, reason="Once more"))
    assert given(paper) == 0
    at_the_counter(fill(paper))
    assert given(paper) == 21


def test_called_off_goes_back_and_lost_does_not(
    hospital: Hospital, shelf: tuple[int, int, int], at_the_counter: Any
) -> None:
    for verb, left in ((dispensing.call_off, 0), (dispensing.stop, 21)):
        paper = issue(hospital, shelf[0])
        key = at_the_counter(fill(paper, handed_over=False))
        at_the_counter(lambda session, key=key: dispensing.ready(session, key).id)
        at_the_counter(lambda session, key=key, verb=verb: verb(session, key, reason="Never fetched").id)
        assert given(paper) == left
        with pytest.raises(IllegalTransition):
            at_the_counter(lambda session, key=key: dispensing.hand_over(session, key))


def test_declining_leaves_everything_as_it_is(paper: Paper, at_the_counter: Any) -> None:
    key = at_the_counter(lambda session: dispensing.decline(session, paper.orders[0], reason="Not in stock").id)
    assert stored(MedicationDispense, key)["status"] == "declined"
    assert (given(paper), state(paper)) == (0, "active")
    at_the_counter(fill(paper))


def test_only_these_ways_lead_on() -> None:
    for start in S:
        for end in S:
            allowed = end in dispensing.TRANSITIONS.get(start, frozenset())
            if allowed:
                assert start not in (S.CANCELLED, S.DECLINED, S.ENTERED_IN_ERROR)
    assert dispensing.TRANSITIONS[S.COMPLETED] == {S.ENTERED_IN_ERROR}


# ---- refused by name -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "word"),
    [("on-hold", "on hold"), ("cancelled", "cancelled"), ("stopped", "stopped"), ("entered-in-error", "in error")],
)
def test_orders_that_do_not_run_are_refused_by_name(status: str, word: str, paper: Paper, at_the_counter: Any) -> None:
    beside("UPDATE medication_request SET status = %s WHERE id = %s", status, paper.orders[0])
    with pytest.raises(NotDispensable, match=word):
        at_the_counter(fill(paper))
    assert fills(paper) == 0


def test_an_expired_and_an_early_paper_are_refused_by_name(
    hospital: Hospital, shelf: tuple[int, int, int], at_the_counter: Any
) -> None:
    old = issue(hospital, shelf[0], valid_from=yesterday(), valid_until=yesterday())
    with pytest.raises(NotDispensable, match="expired"):
        at_the_counter(fill(old))
    later = yesterday() + timedelta(days=20)
    early = issue(hospital, shelf[0], valid_from=later, valid_until=later)
    with pytest.raises(NotDispensable, match="not valid before"):
        at_the_counter(fill(early))
    assert fills(old) == fills(early) == 0


def test_what_was_put_by_is_not_handed_over_once_it_was_stopped(paper: Paper, at_the_counter: Any) -> None:
    key = at_the_counter(fill(paper, 5, handed_over=False))
    beside("UPDATE medication_request SET status = 'stopped' WHERE id = %s", paper.orders[0])
    with pytest.raises(NotDispensable, match="stopped"):
        at_the_counter(lambda session: dispensing.hand_over(session, key))
    assert stored(MedicationDispense, key)["status"] == "preparation"


def test_a_paper_that_was_altered_is_not_dispensed(paper: Paper, at_the_counter: Any) -> None:
    beside("UPDATE medication_request SET quantity = 210 WHERE id = %s", paper.orders[0])
    with pytest.raises(NotDispensable, match="not as it was signed"):
        at_the_counter(fill(paper, 210))
    assert fills(paper) == 0


def test_drafts_and_orders_from_elsewhere_are_refused(
    hospital: Hospital, shelf: tuple[int, int, int], at_the_counter: Any
) -> None:
    draft = issue(hospital, shelf[0], draft=True)
    with pytest.raises(NotDispensable):
        at_the_counter(fill(draft))
    elsewhere = Paper(0, [hospital.rows["MedicationRequest"]], "", "")
    with pytest.raises(NotDispensable):
        at_the_counter(fill(elsewhere))


def test_another_make_only_where_it_is_the_same(
    hospital: Hospital, shelf: tuple[int, int, int], at_the_counter: Any
) -> None:
    first, same, other = shelf
    paper = issue(hospital, first)
    with pytest.raises(Invalid, match="not the same medicine"):
        at_the_counter(fill(paper, medication_id=other))
    key = at_the_counter(fill(paper, medication_id=same))
    assert stored(MedicationDispense, key)["medication_id"] == same
    strict = issue(hospital, first, substitution_allowed=False)
    with pytest.raises(Invalid, match="this make"):
        at_the_counter(fill(strict, medication_id=same))
    assert fills(strict) == 0


def test_what_stands_against_it_is_answered_first(
    hospital: Hospital, shelf: tuple[int, int, int], at_the_counter: Any, acting: Any
) -> None:
    patient = hospital.patients[6]
    with acting("doctor"), guard.unit_of_work() as session:
        session.add(
            AllergyIntolerance(
                patient_id=patient,
                code="1",
                code_display="Loratadine",
                clinical_status="active",
                verification_status="confirmed",
                criticality="high",
                recorded_at=factories.WHEN,
                reaction=[],
            )
        )
    guard.session.remove()
    paper = issue(hospital, shelf[0], patient=6)
    with pytest.raises(Unsafe) as unsafe:
        at_the_counter(fill(paper))
    assert fills(paper) == 0
    blocking = [found for found in unsafe.value.issues if found.blocks]  # type: ignore[attr-defined]
    assert blocking
    answers = [Override(found.key, "1", "Asked the doctor") for found in blocking]
    with pytest.raises(Unsafe):
        at_the_counter(fill(paper, overrides=[Override(found.key, "no-such-code", "Asked") for found in blocking]))
    with pytest.raises(Unsafe):
        at_the_counter(fill(paper, overrides=[Override(found.key, "1", "") for found in blocking]))
    key = at_the_counter(fill(paper, overrides=answers))
    written = number_of(DetectedIssue, DetectedIssue.medication_dispense_id == key)
    assert written >= len(blocking)


# ---- who -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("username", ["doctor", "nurse", "admin", "reception", "billing", "lab", "patient", "privacy"])
def test_only_the_pharmacy_hands_out(username: str, paper: Paper, acting: Any) -> None:
    with acting(username), pytest.raises(Forbidden), guard.unit_of_work() as session:
        fill(paper)(session)
    guard.session.remove()
    assert fills(paper) == 0


def test_an_account_of_nobody_hands_nothing_out(paper: Paper, hospital: Hospital) -> None:
    from dataclasses import replace

    from app.actor import Origin, nobody

    with guard.acting_as(nobody()):
        who = guard.who_is(hospital.accounts["pharmacist"], Origin())
    assert who is not None
    unnamed = guard.acting_as(replace(who, practitioner_id=None))
    with unnamed, pytest.raises(NotAClinician), guard.unit_of_work() as session:
        fill(paper)(session)
    guard.session.remove()
    assert fills(paper) == 0


def test_a_paper_is_found_by_whatever_is_on_it(paper: Paper, acting: Any) -> None:
    with acting("pharmacist"):
        for said in (paper.address, paper.code, signing.spelled(paper.code).lower()):
            assert dispensing.by_paper(guard.session(), said).id == paper.id
        with pytest.raises(NotFound):
            dispensing.by_paper(guard.session(), paper.address[:-3] + "AAA")
        with pytest.raises(Invalid):
            dispensing.by_paper(guard.session(), paper.code[:-1] + ("A" if paper.code[-1] != "A" else "B"))
    guard.session.remove()
    with acting("nurse"), pytest.raises(Forbidden):
        dispensing.by_paper(guard.session(), paper.code)
    guard.session.remove()


# ---- the pages -----------------------------------------------------------------------------------------------------


def test_the_pharmacist_scans_and_hands_out(paper: Paper, client_as: Callable[[str], Any]) -> None:
    client = client_as("pharmacist")
    found = client.submit("/pharmacy/", {"code": paper.address})
    assert found.status_code == 302
    where = found.headers["Location"]
    page = client.page(where)
    assert "21 tablets" in page
    fields = {
        "csrf_token": csrf_of(page),
        "order": str(paper.orders[0]),
        "already": "0",
        "quantity": "5",
        "do": "hand-over",
    }
    assert client.post(where, data=fields).status_code == 302
    assert given(paper) == 5
    late = client.post(where, data=fields)
    assert late.status_code == 409
    assert "Some of this was handed out meanwhile" in late.text
    assert given(paper) == 5
    page = client.page(where)
    assert 'value="16"' in page
    assert "Partly dispensed" in page
    key = re.search(r"/pharmacy/fills/(\d+)/label.pdf", page)
    assert key is not None
    label = client.get(key[0])
    assert label.mimetype == "application/pdf"
    assert "Loratadine" in text_of(label.data)
    assert len(pictures(label.data, 30)) == 1, "the label does not fit on one"
    back = client.post(f"/pharmacy/fills/{key[1]}/give-back", data={"csrf_token": csrf_of(page), "reason": "Wrong box"})
    assert back.status_code == 302
    assert given(paper) == 0


def test_a_forged_square_is_refused_at_the_counter(paper: Paper, client_as: Callable[[str], Any]) -> None:
    client = client_as("pharmacist")
    refused = client.submit("/pharmacy/", {"code": paper.address[:-3] + "AAA"})
    assert refused.status_code == 404
    assert "not genuine" in refused.text
    mistyped = client.submit("/pharmacy/", {"code": paper.code[:5]})
    assert mistyped.status_code == 422


def test_papers_of_a_patient_are_listed(paper: Paper, hospital: Hospital, client_as: Callable[[str], Any]) -> None:
    client = client_as("pharmacist")
    page = client.page(f"/pharmacy/patients/{hospital.patients[4]}/")
    assert signing.spelled(paper.code) in page
    assert "Nothing is left" in client.page(f"/pharmacy/patients/{hospital.patients[8]}/")
    assert client_as("nurse").get("/pharmacy/").status_code == 403


def test_an_order_of_another_paper_is_not_handed_out_here(
    paper: Paper, hospital: Hospital, shelf: tuple[int, int, int], client_as: Callable[[str], Any]
) -> None:
    other = issue(hospital, shelf[0])
    client = client_as("pharmacist")
    where = f"/pharmacy/{paper.id}/"
    fields = {"csrf_token": csrf_of(client.page(where)), "order": str(other.orders[0]), "quantity": "1"}
    assert client.post(where, data=fields).status_code == 404
    assert fills(other) == 0


# ---- on paper ------------------------------------------------------------------------------------------------------


def test_the_square_on_the_printed_paper_is_read(paper: Paper, client_as: Callable[[str], Any]) -> None:
    client = client_as("doctor")
    answer = client.get(f"/prescriptions/{paper.id}/paper.pdf")
    assert answer.status_code == 200
    assert answer.mimetype == "application/pdf"
    assert squares(answer.data) == [paper.address]
    words = text_of(answer.data)
    for word in ("Prescription", "21 tablets", "two, one", signing.spelled(paper.code), "Page 1 of 1", "Loratadine"):
        assert word in words
    import zxingcpp

    found = zxingcpp.read_barcodes(pictures(answer.data, 150)[0])[0].position
    width = (found.top_right.x - found.top_left.x) / 150 * 25.4
    assert width >= 25, "the square is smaller than 25 mm"


def test_a_draft_is_not_printed(
    hospital: Hospital, shelf: tuple[int, int, int], client_as: Callable[[str], Any]
) -> None:
    draft = issue(hospital, shelf[0], draft=True)
    refused = client_as("doctor").get(f"/prescriptions/{draft.id}/paper.pdf")
    assert refused.status_code == 409
    assert "draft" in refused.text


@pytest.mark.parametrize("language", ["en", "es", "pl", "fr", "de", "ar"])
def test_it_prints_in_the_language_of_the_paper(
    language: str, hospital: Hospital, shelf: tuple[int, int, int], client_as: Callable[[str], Any]
) -> None:
    from views.papers import WORDS

    paper = issue(hospital, shelf[0], language=language)
    answer = client_as("doctor").get(f"/prescriptions/{paper.id}/paper.pdf")
    assert answer.status_code == 200
    assert squares(answer.data) == [paper.address]
    if language != "ar":
        assert WORDS[language]["prescription"] in text_of(answer.data)


@pytest.mark.parametrize(
    ("family", "status"),
    [("Żółć-Nguyễn", 200), ("السيد", 200), ("शर्मा", 422), ("<b>Bold</b> & Sons", 200)],
)
def test_names_print_or_are_refused(
    family: str, status: int, hospital: Hospital, shelf: tuple[int, int, int], client_as: Callable[[str], Any]
) -> None:
    from tests import dispensary

    dispensary.name(hospital, 9, family, "Ana")
    paper = issue(hospital, shelf[0], patient=9)
    answer = client_as("doctor").get(f"/prescriptions/{paper.id}/paper.pdf")
    assert answer.status_code == status
    if status == 422:
        assert "DEVANAGARI" in answer.text
    elif family.isascii():
        assert "<b>Bold</b>" in text_of(answer.data)


def test_who_may_print(paper: Paper, client_as: Callable[[str], Any]) -> None:
    for username, status in (("pharmacist", 200), ("nurse", 200), ("reception", 403), ("lab", 403)):
        assert client_as(username).get(f"/prescriptions/{paper.id}/paper.pdf").status_code == status, username
    assert client_as("patient").get(f"/prescriptions/{paper.id}/paper.pdf").status_code in (403, 404)
