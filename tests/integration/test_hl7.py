"""HL7 v2 in: what becomes of each message and each result, that nothing is guessed, and that nothing is dropped."""

from __future__ import annotations

import threading
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app import guard
from app.actor import service
from app.errors import IllegalTransition
from app.services import hl7_intake, hl7_reading, patients
from models.clinical import Observation
from models.hl7 import Hl7Message, Hl7Result, PatientProposal
from models.lab import LabTest, ReferenceRange
from models.patients import Patient
from tests import factories

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "hl7"
_numbers = iter(range(1, 100_000))


def message(
    mrn: str,
    *results: str,
    kind: str = "ORU^R01",
    number: str = "",
    name: str = "Medina^Jesús",
    born: str = "19900102",
    placer: str = "P1",
    filler: str = "F1",
    more: str = "",
    charset: str = "UNICODE UTF-8",
) -> bytes:
    """A message about somebody, with an OBX for each of `results` (from OBX-2 on)."""
    lines = [
        f"MSH|^~\\&|LAB|EXT|WB|H|20260301120000||{kind}|{number or f'T{next(_numbers)}'}|P|2.5||||||{charset}",
        f"PID|1||{mrn}^^^WARDBOOK^MR||{name}||{born}|M",
    ]
    if results:
        lines.append(f"OBR|1|{placer}|{filler}|24326-1^Electrolytes^LN|||20260301080000|||||||||||||||||F")
    lines += [f"OBX|{nth}|{result}" for nth, result in enumerate(results, 1)]
    return "\r".join([*lines, *([more] if more else [])]).encode()


def potassium(value: str, status: str = "F", unit: str = "mmol/L") -> str:
    return f"NM|2823-3^Potassium^LN||{value}|{unit}|3.5-5.1||||{status}"


@pytest.fixture(scope="module")
def mrn(database: Any) -> str:
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        test = LabTest(code="2823-3", name="Potassium", unit="mmol/L", decimals=1, plausible_high=Decimal(15))
        session.add(test)
        session.flush()
        session.add(
            ReferenceRange(
                test_id=test.id,
                low=Decimal("3.4"),
                high=Decimal("5.0"),
                critical_high=Decimal("6.5"),
                valid_from=patients.today(),
            )
        )
        found = session.get_one(Patient, database.hospital.patients[2])
        return str(found.mrn)


def taken(raw: bytes) -> hl7_intake.Answer:
    with guard.acting_as(service("hl7")):
        return hl7_intake.take_in(raw)


def rows(model: Any, *conditions: Any) -> list[dict[str, Any]]:
    with guard.engine().connect() as connection:
        return [dict(row) for row in connection.execute(select(model.__table__).where(*conditions)).mappings()]


def last_result() -> dict[str, Any]:
    with guard.engine().connect() as connection:
        number = connection.execute(select(func.max(Hl7Result.__table__.c.id))).scalar_one()
    return rows(Hl7Result, Hl7Result.__table__.c.id == number)[0]


def observation() -> dict[str, Any]:
    """What the last result became."""
    return factories.stored(Observation, last_result()["observation_id"])


def test_a_result_is_stored_flagged_and_acknowledged(mrn: str) -> None:
    answer = taken(message(mrn, potassium("5.05"), number="A1"))
    assert (answer.code, answer.state) == ("AA", "stored")
    assert b"MSA|AA|A1" in answer.bytes
    found = observation()
    assert (found["value_quantity"], found["value_unit"], found["status"]) == (Decimal("5.05"), "mmol/L", "final")
    assert found["effective_at"].isoformat() == "2026-03-01T08:00:00+00:00"


def test_the_same_message_twice_changes_nothing_and_is_answered_alike(mrn: str) -> None:
    raw = message(mrn, potassium("4.4"), number="TWICE")
    first = taken(raw)
    before = (factories.number_of(Observation), factories.number_of(Hl7Message))
    second = taken(raw)
    assert second.repeated
    assert (second.code, factories.number_of(Observation), factories.number_of(Hl7Message)) == (first.code, *before)
    other = taken(message(mrn, potassium("9.9"), number="TWICE"))
    assert other.code == "AE"
    assert (factories.number_of(Observation), factories.number_of(Hl7Message)) == before


def test_the_same_message_at_the_same_moment_is_stored_once(mrn: str) -> None:
    raw = message(mrn, potassium("4.6"), number="ATONCE", filler="F-once")
    before = factories.number_of(Observation)
    answers: list[hl7_intake.Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(taken(raw))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.code for answer in answers] == ["AA"] * 8
    assert factories.number_of(Observation) == before + 1


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"born": "19910102"}, "birth date"),
        ({"born": "", "name": "Smith^John"}, "name"),
    ],
)
def test_who_it_is_is_never_guessed(mrn: str, more: dict[str, str], why: str) -> None:
    before = factories.number_of(Observation)
    answer = taken(message(mrn, potassium("4.4"), **more))
    assert (answer.code, answer.state) == ("AA", "unmatched")
    assert why in last_result()["reason"]
    assert last_result()["outcome"] == "waiting"
    assert factories.number_of(Observation) == before


def test_somebody_unknown_waits_and_is_matched_by_hand(mrn: str, database: Any) -> None:
    people = factories.number_of(Patient)
    taken(message("999", potassium("4.4"), potassium("4.5", unit="stone"), name="Nobody^Known"))
    kept = last_result()["message_id"]
    assert factories.number_of(Patient) == people, "nobody is registered by a result"
    with factories.acting(database.hospital.accounts["lab"]), guard.unit_of_work() as session:
        assert hl7_intake.assign(session, kept, database.hospital.patients[4]).state == "stored"
    assert [row["outcome"] for row in rows(Hl7Result, Hl7Result.message_id == kept)] == ["stored", "stored"]
    assert observation()["patient_id"] == database.hospital.patients[4]
    assert observation()["held"] == "unit"
    with (
        factories.acting(database.hospital.accounts["lab"]),
        pytest.raises(IllegalTransition),
        guard.unit_of_work() as session,
    ):
        hl7_intake.assign(session, kept, database.hospital.patients[5])


def test_a_correction_replaces_a_final_result_and_a_final_one_no_other(mrn: str) -> None:
    assert taken(message(mrn, potassium("4.0", "P"), filler="F20")).code == "AA"
    row = observation()
    assert row["status"] == "preliminary"
    assert taken(message(mrn, potassium("4.1", "C"), filler="F20")).code == "AE"
    assert "Only a final" in last_result()["reason"]
    assert taken(message(mrn, potassium("4.2"), filler="F20")).code == "AA"
    assert (observation()["id"], observation()["status"]) == (row["id"], "final")
    assert taken(message(mrn, potassium("4.3"), filler="F20")).code == "AE"
    assert taken(message(mrn, potassium("4.3", "P"), filler="F20")).code == "AE"
    assert taken(message(mrn, potassium("6.6", "C"), filler="F20")).code == "AA"
    found = observation()
    assert (found["id"], found["status"], found["value_quantity"]) == (row["id"], "corrected", Decimal("6.6"))


def test_a_correction_that_is_refused_leaves_the_result_as_it_was(mrn: str) -> None:
    taken(message(mrn, potassium("4.0"), filler="F21"))
    before = observation()
    answer = taken(message(mrn, potassium("four", "C"), "ST|2-2^Other^LN||fine||||||F", filler="F21"))
    assert b"1 of 2" in answer.bytes
    assert factories.stored(Observation, before["id"]) == before


@pytest.mark.parametrize(("code", "status"), [("D", "entered-in-error"), ("W", "entered-in-error"), ("X", "cancelled")])
def test_what_is_taken_back_stays_to_be_read(mrn: str, code: str, status: str) -> None:
    order = f"F-{code}"
    assert taken(message(mrn, potassium("4.0", code), filler=order)).code == "AE"
    assert "not known" in last_result()["reason"]
    taken(message(mrn, potassium("4.0"), filler=order))
    assert taken(message(mrn, potassium("", code), filler=order)).code == "AA"
    found = observation()
    assert (found["status"], found["value_quantity"]) == (status, Decimal("4.0"))


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("NM|2823-3^Potassium^LN||high|mmol/L|||||F", "is none"),
        ("NM|2823-3^Potassium^LN||99|mmol/L|||||F", "Nobody can have"),
        ("NM|2823-3^Potassium^LN||4|mmol/L|||||I", "OBX-11 is I"),
        ("NM|2823-3^Potassium^LN||4|mmol/L|||||", "OBX-11 is missing"),
        ("ED|2823-3^Potassium^LN||x|||||| F", "Documents"),
        ("NM|||4|mmol/L|||||F", "OBX-3"),
        ("ZZ|2823-3^Potassium^LN||4||||||F", "type ZZ"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_a_reason_and_the_rest_is_stored(
    mrn: str, result: str, reason: str
) -> None:
    order = f"REFUSED-{next(_numbers)}"
    answer = taken(message(mrn, result, "ST|600-7^Culture^LN||no growth||||||F", filler=order))
    assert answer.code == "AA"
    assert b"1 of 2 results were not stored" in answer.bytes
    found = {row["position"]: row for row in rows(Hl7Result, Hl7Result.order_number == order)}
    assert (found[1]["outcome"], found[2]["outcome"]) == ("refused", "stored")
    assert reason in found[1]["reason"]


@pytest.mark.parametrize(
    ("result", "number", "comparator", "text"),
    [
        ("SN|1-1^Titre^LN||<^5|mg/L|||||F", "5", "<", None),
        ("SN|1-1^Titre^LN||^1^:^128||||||F", None, "", "1 : 128"),
        ("NM|1-1^X^LN||<0.5|mg/L|||||F", "0.5", "<", None),
        ("NM|1-1^X^LN||0|mg/L|||||F", "0", "", None),
        ("NM|1-1^X^LN||-1.5E2|mg/L|||||F", "-150", "", None),
        ("TX|1-1^X^LN||one~two||||||F", None, "", "one\ntwo"),
        ("CWE|1-1^X^LN||260385009^Negative^SCT||||||F", None, "", "Negative"),
        ("ST|1-1^X^LN||a \\T\\ b \\F\\ c||||||F", None, "", "a & b | c"),
    ],
)
def test_values_are_read_by_their_type(
    mrn: str, result: str, number: str | None, comparator: str, text: str | None
) -> None:
    taken(message(mrn, result, filler=f"F{next(_numbers)}"))
    found = observation()
    assert found["value_quantity"] == (Decimal(number) if number else None)
    assert (found["comparator"], found["value_text"]) == (comparator, text)


@pytest.mark.parametrize(
    ("raw", "answer", "said"),
    [
        (b"", "AE", b"does not begin with MSH"),
        (b"GET / HTTP/1.1", "AE", b"does not begin with MSH"),
        (b"MSH|", "AE", b"does not begin with MSH"),
        (b"MSH|^~\\&|A|B|C|D|2026||ORU^R01|X1|P|2.5||||||KLINGON", "AE", b"character set"),
        (b"MSH|^~\\&|A|B|C|D|2026||ORU^R01||P|2.5", "AE", b"MSH-10"),
        (b"MSH|^~\\&|A|B|C|D|2026||ORM^O01|X2|P|2.5", "AR", b"ORM"),
        (b"MSH|^~\\&|A|B|C|D|2026||ORU^R01|X3|P|2.5", "AE", b"PID"),
        (b"MSH|^~\\&|A|B|C|D|2026||ORU^R01|X4|P|2.5\rPID|1||1", "AE", b"no result"),
        (b"MSH|^~\\&|A|B|C|D|2026||ORU^R01|X5|P|2.5\rPID|1||1\rOBX|1|NM|a||1", "AE", b"belongs to no OBR"),
        (b"MSH|^~\\&|A|B|C|D|2026||ORU^R01|X6|P|2.5||||||ASCII\rPID|1||1||M\xfcller", "AE", b"characters"),
        (b"\x00\x01\x02", "AE", b"does not begin with MSH"),
    ],
)
def test_what_is_malformed_is_answered_with_what_is_wrong_and_kept(raw: bytes, answer: str, said: bytes) -> None:
    before = factories.number_of(Hl7Message)
    found = taken(raw)
    assert (found.code, found.state) == (answer, "dead")
    assert said in found.bytes
    assert b"ERR|" in found.bytes
    assert factories.number_of(Hl7Message) == before + 1
    taken(raw)
    assert factories.number_of(Hl7Message) == before + 1


def test_accents_come_through_in_the_set_the_message_names(mrn: str) -> None:
    text = message(mrn, "ST|1-1^X^LN||Größe ½||||||F", charset="8859/1", filler="F-latin").decode()
    taken(text.encode("latin-1"))
    assert observation()["value_text"] == "Größe ½"


def test_a_merge_and_an_update_are_proposals_and_change_nobody(mrn: str, database: Any) -> None:
    before = factories.stored(Patient, database.hospital.patients[2])
    taken(message(mrn, kind="ADT^A08", name="Changed^Name", born="19900102"))
    taken(message(mrn, kind="ADT^A40", more="MRG|777^^^WARDBOOK^MR"))
    taken(message("12345", kind="ADT^A01", name="New^Person"))
    found = Counter(row["kind"] for row in rows(PatientProposal))
    assert found == {"update": 1, "merge": 1, "register": 1}
    assert factories.stored(Patient, database.hospital.patients[2]) == before
    assert taken(message(mrn, kind="ADT^A40")).code == "AE"


def test_every_result_of_the_shared_messages_is_accounted_for(mrn: str) -> None:
    if not SHARED.is_dir():
        pytest.skip("needs the shared data: HL7 messages")
    parts = [part for path in sorted(SHARED.glob("*/*")) for part in hl7_reading.messages_in(path.read_bytes())]
    sent = sum(len(hl7_reading.read(part).results) + hl7_reading.read(part).stray for part in parts)
    before = factories.number_of(Hl7Result)
    answers = [taken(part) for part in parts]
    assert len(answers) == len(parts)
    assert {answer.code for answer in answers} <= {"AA", "AE", "AR"}
    stray = sum(hl7_reading.read(part).stray for part in parts)
    repeated = [part for part, answer in zip(parts, answers, strict=True) if answer.repeated]
    again = sum(len(hl7_reading.read(part).results) for part in repeated)
    assert factories.number_of(Hl7Result) - before == sent - stray - again
    with guard.acting_as(service("hl7")):
        told = hl7_intake.balance(guard.session())
    assert sum(told["results"].values()) == factories.number_of(Hl7Result)
    kept = (factories.number_of(Hl7Message), factories.number_of(Hl7Result), factories.number_of(Observation))
    for part in parts[:120]:
        taken(part)
    assert (factories.number_of(Hl7Message), factories.number_of(Hl7Result), factories.number_of(Observation)) == kept
