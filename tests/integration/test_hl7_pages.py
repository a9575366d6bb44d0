"""The pages of messages and proposals: matched, mended, dismissed and decided by people, and nothing by itself."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

from app import guard
from app.actor import service
from app.services import hl7_intake
from models.audit import AuditOutbox
from models.clinical import Observation
from models.hl7 import Hl7Message, Hl7Result, PatientProposal
from models.patients import Patient, PatientMerge
from tests import factories
from tests.conftest import csrf_of
from tests.integration.test_hl7 import last_result, message, potassium, rows

SignIn = Callable[[str], Any]


@pytest.fixture
def bench(app: Any, client_as: SignIn) -> Any:
    return client_as("lab")


@pytest.fixture
def desk(app: Any, client_as: SignIn) -> Any:
    return client_as("reception")


def taken(raw: bytes) -> int:
    """Where a message is kept that has come over the line."""
    with guard.acting_as(service("hl7")):
        found = hl7_intake.take_in(raw).message_id
    assert found is not None
    return found


def patient(database: Any, nth: int) -> dict[str, Any]:
    return factories.stored(Patient, database.hospital.patients[nth])


def proposal() -> dict[str, Any]:
    return max(rows(PatientProposal), key=lambda row: int(row["id"]))


def unmatched() -> int:
    return taken(message("nobody", potassium("4.4"), name="Medina^Jesús", filler="page"))


def test_a_message_is_matched_by_looking_at_both(database: Any, bench: Any) -> None:
    kept = unmatched()
    assert "Medina, Jesús" in bench.page("/laboratory/messages/")
    page = bench.page(f"/laboratory/messages/{kept}/match/")
    whose = database.hospital.patients[2]
    assert f"patient={whose}" in page, "the patient of that name and birth date is offered"
    assert "checked" not in page, "nobody is chosen beforehand"
    found = bench.page(f"/laboratory/messages/{kept}/match/?q=Vandersloot")
    assert f"patient={database.hospital.patients[1]}" in found
    chosen = f"/laboratory/messages/{kept}/match/?patient={whose}"
    token = csrf_of(bench.page(chosen))
    sent = {"csrf_token": token, "patient": str(whose)}
    refused = bench.post(f"/laboratory/messages/{kept}/assign", data=sent)
    assert (refused.status_code, factories.stored(Hl7Message, kept)["state"]) == (422, "unmatched")
    assert bench.post(f"/laboratory/messages/{kept}/assign", data={**sent, "sure": "1"}).status_code == 302
    row = factories.stored(Hl7Message, kept)
    assert (row["state"], row["patient_id"], row["acknowledgement"]) == ("stored", whose, "AA")
    assert row["decided_by_id"] == database.hospital.accounts["lab"]
    assert rows(Hl7Result, Hl7Result.message_id == kept)[0]["outcome"] == "stored"
    again = bench.post(f"/laboratory/messages/{kept}/assign", data={**sent, "sure": "1"})
    assert again.status_code in (302, 409)
    page = bench.page(f"/laboratory/messages/{kept}/")
    assert "matched by hand" in page
    assert "OBR|1|P1|page" in page


@pytest.mark.parametrize("path", ["", "{0}/", "{0}/match/", "upload/"])
@pytest.mark.parametrize("who", ["reception", "doctor", "patient"])
def test_messages_are_the_laboratory_s(database: Any, client_as: SignIn, bench: Any, who: str, path: str) -> None:
    kept = unmatched()
    answer = client_as(who).get(f"/laboratory/messages/{path.format(kept)}")
    assert answer.status_code == 403
    assert "Medina" not in answer.text


@pytest.mark.parametrize("word", ["assign", "again", "dismiss"])
def test_whoever_may_not_decide_changes_nothing(database: Any, desk: Any, word: str) -> None:
    kept = unmatched()
    before = factories.stored(Hl7Message, kept)
    token = csrf_of(desk.page("/patients/register/"))
    sent = {"csrf_token": token, "patient": str(database.hospital.patients[2]), "sure": "1", "reason": "No"}
    assert desk.post(f"/laboratory/messages/{kept}/{word}", data=sent).status_code == 403
    assert factories.stored(Hl7Message, kept) == before


def test_a_dead_letter_is_shown_safely_and_dismissed_with_a_reason(bench: Any, database: Any) -> None:
    kept = taken(b"MSH|^~\\&|<script>alert(1)</script>|B|C|D|2026||ORM^O01|EVIL1|P|2.5\rPID|1||\x07\x1b[31m")
    page = bench.page(f"/laboratory/messages/{kept}/")
    assert "<script>alert" not in page
    assert "\\x1b[31m" in page
    assert "ORM^O01 are not taken in" in page
    token = csrf_of(page)
    refused = bench.post(f"/laboratory/messages/{kept}/dismiss", data={"csrf_token": token, "reason": " "})
    assert (refused.status_code, factories.stored(Hl7Message, kept)["state"]) == (422, "dead")
    again = bench.post(f"/laboratory/messages/{kept}/again", data={"csrf_token": token})
    assert again.status_code == 422
    assert "not taken in" in again.text
    assert factories.stored(Hl7Message, kept)["state"] == "dead"
    bench.post(f"/laboratory/messages/{kept}/dismiss", data={"csrf_token": token, "reason": "Not for us"})
    row = factories.stored(Hl7Message, kept)
    assert (row["state"], row["decision"]) == ("dismissed", "Not for us")
    assert row["decided_by_id"] == database.hospital.accounts["lab"]


def test_what_was_refused_is_tried_again_after_mending(bench: Any, database: Any) -> None:
    mrn = str(patient(database, 3)["mrn"])
    correction = message(mrn, potassium("4.1", "C"), filler="LATE", name="Müller^Ännchen", born="19550719")
    kept = taken(correction)
    assert last_result()["outcome"] == "refused"
    token = csrf_of(bench.page(f"/laboratory/messages/{kept}/"))
    still = bench.post(f"/laboratory/messages/{kept}/again", data={"csrf_token": token})
    assert (still.status_code, "not known here" in still.text) == (422, True)
    taken(message(mrn, potassium("4.0"), filler="LATE", name="Müller^Ännchen", born="19550719"))
    assert bench.post(f"/laboratory/messages/{kept}/again", data={"csrf_token": token}).status_code == 302
    (line,) = rows(Hl7Result, Hl7Result.message_id == kept)
    assert line["outcome"] == "stored"
    assert factories.stored(Observation, line["observation_id"])["status"] == "corrected"
    row = factories.stored(Hl7Message, kept)
    assert (row["error"], row["decided_by_id"]) == ("", database.hospital.accounts["lab"])
    assert row["acknowledgement"] == "AE", "what was answered stays so"
    assert bench.post(f"/laboratory/messages/{kept}/again", data={"csrf_token": token}).status_code == 409


def test_a_file_is_taken_in_at_once_or_part_by_part(bench: Any, database: Any) -> None:
    mrn = str(patient(database, 2)["mrn"])
    parts = [message(mrn, potassium("4.4"), number=f"UP{nth}", filler=f"UP{nth}") for nth in range(101)]
    batch = b"\r".join([b"FHS|^~\\&|X", b"BHS|^~\\&|X", *parts, b"garbage", b"BTS|101", b"FTS|1"])
    token = csrf_of(bench.page("/laboratory/messages/upload/"))
    before = factories.number_of(Observation)

    def send(raw: bytes, **more: str) -> Any:
        data = {"csrf_token": token, "files": (io.BytesIO(raw), "a.hl7"), **more}
        return bench.post("/laboratory/messages/upload/", data=data, content_type="multipart/form-data")

    first = send(batch, begin="0").get_json()
    assert (len(first["lines"]), first["lines"][0]["state"]) == (100, "Stored")
    rest = send(batch, begin="100").get_json()
    assert first["total"] == 100 + len(rest["lines"])
    assert factories.number_of(Observation) == before + 101
    assert "here already" in send(batch).text
    assert factories.number_of(Observation) == before + 101
    empty = send(b"")
    assert (empty.status_code, "no message in it" in empty.text) == (422, True)
    assert send(b"\r".join([b"MSH|^~\\&|A|B"] * 2001)).status_code == 422


def test_a_change_is_taken_over_field_by_field(database: Any, desk: Any) -> None:
    before = patient(database, 2)
    raw = message(str(before["mrn"]), kind="ADT^A08", name="Medina^Jesús María", born="19900102")
    taken(
        raw.replace(b"|M\r", b"|M|||New Street 5^^Madrid^^28001^ES||+34600111222\r").replace(
            b"19900102|M", b"19900102|M|||New Street 5^^Madrid^^28001^ES||+34600111222", 1
        )
    )
    row = proposal()
    assert row["patient_id"] == before["id"]
    path = f"/patients/proposals/{row['id']}/"
    page = desk.page(path)
    assert "New Street 5, 28001, Madrid, ES" in page
    assert 'value="address" checked' not in page, "nothing is taken over unless it is ticked"
    token = csrf_of(page)
    sent = {"csrf_token": token, "version": str(before["version"])}
    assert desk.post(f"{path}accept", data=sent).status_code == 422
    assert desk.post(f"{path}accept", data={**sent, "version": "99", "taken": "address"}).status_code == 409
    assert patient(database, 2) == before
    assert desk.post(f"{path}accept", data={**sent, "taken": ["address", "telecom"]}).status_code == 302
    after = patient(database, 2)
    assert after["address"][0]["city"] == "Madrid"
    assert "+34600111222" in str(after["telecom"])
    assert after["given"] == before["given"]
    decided = proposal()
    assert (decided["state"], decided["decision"]) == ("accepted", "telecom, address")
    assert decided["decided_by_id"] == database.hospital.accounts["reception"]
    assert any("PatientProposal" in str(each["event"]) for each in rows(AuditOutbox))
    assert "took over" in desk.page(path)
    assert desk.post(f"{path}accept", data={**sent, "taken": "name"}).status_code == 409


def test_somebody_new_is_registered_unless_they_are_here_already(database: Any, desk: Any) -> None:
    people = factories.number_of(Patient)
    taken(message("777", kind="ADT^A04", name="Newcomer^Nadia", born="19991231"))
    path = f"/patients/proposals/{proposal()['id']}/"
    assert desk.post(f"{path}register", data={"csrf_token": csrf_of(desk.page(path))}).status_code == 302
    assert factories.number_of(Patient) == people + 1
    made = factories.stored(Patient, proposal()["patient_id"])
    assert (made["family"], made["birth_date"].isoformat()) == ("Newcomer", "1999-12-31")
    taken(message("778", kind="ADT^A04", name="Newcomer^Nadia", born="19991231"))
    path = f"/patients/proposals/{proposal()['id']}/"
    page = desk.page(path)
    assert str(made["mrn"]) in page
    refused = desk.post(f"{path}register", data={"csrf_token": csrf_of(page)})
    assert (refused.status_code, factories.number_of(Patient)) == (409, people + 1)
    desk.post(f"{path}connect", data={"csrf_token": csrf_of(page), "patient": str(made["id"])})
    assert (proposal()["kind"], proposal()["patient_id"], proposal()["state"]) == ("update", made["id"], "open")
    desk.post(f"{path}dismiss", data={"csrf_token": csrf_of(page), "reason": "Nothing new"})
    assert (proposal()["state"], proposal()["decision"]) == ("dismissed", "Nothing new")


def test_two_records_are_merged_by_a_person_who_looked_and_the_old_number_finds_the_survivor(
    database: Any, desk: Any
) -> None:
    stays, goes = patient(database, 6), patient(database, 7)
    given_up = f"MRG|{goes['mrn']}^^^WARDBOOK^MR"
    taken(message(str(stays["mrn"]), kind="ADT^A40", name="", born="", more=given_up))
    row = proposal()
    assert (row["patient_id"], row["other_id"]) == (stays["id"], goes["id"])
    page = desk.page(f"/patients/proposals/{row['id']}/")
    path = f"/patients/proposals/{row['id']}/merge/"
    assert path in page
    merge = desk.page(path)
    assert f"{path}?keep=other" in merge
    fields = {"sure": "1", "reason": "The other hospital says so", "confirmed": ["sex", "born"]}
    assert desk.submit(path, {**fields, "sure": ""}).status_code == 422
    assert factories.number_of(PatientMerge) == 0
    assert desk.submit(path, fields).status_code == 302
    assert factories.stored(Patient, goes["id"])["replaced_by_id"] == stays["id"]
    assert (proposal()["state"], proposal()["decision"]) == ("accepted", "merged")
    born = stays["birth_date"].strftime("%Y%m%d")
    kept = taken(message(str(goes["mrn"]), potassium("4.2"), name=f"{stays['family']}^X", born=born, filler="SURV"))
    assert factories.stored(Hl7Message, kept)["patient_id"] == stays["id"]
    assert factories.stored(Observation, last_result()["observation_id"])["patient_id"] == stays["id"]


@pytest.mark.parametrize("who", ["lab", "doctor", "nurse", "patient"])
def test_proposals_are_the_desk_s(database: Any, app: Any, client_as: SignIn, who: str) -> None:
    taken(message("12", kind="ADT^A04", name="Secret^Person"))
    before = proposal()
    other = client_as(who)
    assert other.get("/patients/proposals/").status_code == 403
    assert other.get(f"/patients/proposals/{before['id']}/").status_code == 403
    assert proposal() == before
