"""Results of other systems by our own rules: orders, critical values, units, and what is hostile or odd."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import select, update

from app import guard
from app.services import hl7_intake, hl7_reading, lab
from models.audit import EventOutbox
from models.base import now
from models.hl7 import Hl7Message, Hl7Result
from models.lab import (
    CriticalResult,
    DiagnosticReport,
    LabTest,
    ReferenceRange,
    ServiceRequest,
    Specimen,
    UnitConversion,
)
from models.patients import Patient
from tests import factories
from tests.factories import Laboratory
from tests.integration.test_hl7 import last_result, message, observation, potassium, rows, taken

CRITICAL = "NM|2823-3^Potassium^LN||{}|mmol/L|||||{}"
_numbers = iter(range(1, 100_000))


@pytest.fixture(scope="module")
def laboratory(database: Any) -> Laboratory:
    return factories.open_laboratory(database.hospital)


@pytest.fixture(scope="module")
def mrn(laboratory: Laboratory) -> str:
    return str(factories.stored(Patient, laboratory.hospital.patients[2])["mrn"])


@pytest.fixture(scope="module")
def ordered(laboratory: Laboratory) -> dict[str, Any]:
    """An order of the doctor whose specimen was taken."""
    with factories.acting(laboratory.hospital.accounts["doctor"]), guard.unit_of_work() as session:
        order = lab.order(session, patient_id=laboratory.hospital.patients[2], test_id=laboratory.potassium)
        (specimen,) = lab.collect(session, [order.id])
        return {"order": order.id, "accession": specimen.accession, "requester": order.requester_id}


def released() -> list[Any]:
    return [row["payload"] for row in rows(EventOutbox, EventOutbox.name == "ResultsReleased")]


def criticals() -> list[dict[str, Any]]:
    number = last_result()["observation_id"]
    return rows(CriticalResult, CriticalResult.observation_id == number)


def test_a_critical_result_is_told_to_whoever_ordered_it_once_for_each_value(mrn: str, ordered: dict[str, Any]) -> None:
    more = {"filler": "CRIT", "placer": ordered["accession"]}
    taken(message(mrn, CRITICAL.format("7.5", "P"), **more))
    assert criticals() == [], "a preliminary result may still change"
    before = len(released())
    taken(message(mrn, CRITICAL.format("7.5", "F"), number="CR1", **more))
    (first,) = criticals()
    assert (first["flag"], first["value"], first["target_id"]) == ("HH", "7.5 mmol/L", ordered["requester"])
    assert observation()["service_request_id"] == ordered["order"]
    assert len(released()) == before + 1
    assert released()[-1]["requester_id"] == ordered["requester"]
    taken(message(mrn, CRITICAL.format("7.5", "F"), number="CR1", **more))
    taken(message(mrn, CRITICAL.format("7.5", "C"), **more))
    assert len(criticals()) == 1, "the same value again is told once"
    taken(message(mrn, CRITICAL.format("8.0", "C"), **more))
    assert [row["value"] for row in criticals()] == ["7.5 mmol/L", "8 mmol/L"]
    taken(message(mrn, CRITICAL.format("4.0", "C"), **more))
    assert len(criticals()) == 2
    reports = rows(DiagnosticReport, DiagnosticReport.service_request_id == ordered["order"])
    assert reports
    assert {row["category"] for row in reports} == {"LAB"}


def test_without_an_order_it_is_nobody_s_yet_and_goes_to_who_is_on_call_where_they_are_registered(mrn: str) -> None:
    before = len(released())
    taken(message(mrn, CRITICAL.format("7.6", "F"), filler=f"N{next(_numbers)}"))
    (critical,) = criticals()
    assert critical["target_id"] is None
    assert critical["branch_id"] is not None, "escalation goes by branch"
    assert len(released()) == before


def test_a_result_for_an_order_that_was_called_off_or_is_another_s_is_refused_by_name(
    laboratory: Laboratory, mrn: str, ordered: dict[str, Any]
) -> None:
    other = factories.stored(Patient, laboratory.hospital.patients[3])
    raw = message(str(other["mrn"]), potassium("4"), name=other["family"], born="", placer=ordered["accession"])
    assert taken(raw).code == "AE"
    assert "another patient's" in last_result()["reason"]
    with factories.acting(laboratory.hospital.accounts["doctor"]), guard.unit_of_work() as session:
        order = lab.order(session, patient_id=laboratory.hospital.patients[2], test_id=laboratory.potassium)
        (specimen,) = lab.collect(session, [order.id])
        number = specimen.accession
        lab.revoke(session, order.id, reason="Not needed")
    assert taken(message(mrn, potassium("4"), placer=number)).code == "AE"
    assert "called off" in last_result()["reason"]


@pytest.mark.parametrize("mark", ["HH", "N", ""])
def test_without_a_range_a_number_is_converted_and_has_no_flag(laboratory: Laboratory, mrn: str, mark: str) -> None:
    sodium = f"NM|2951-2^Sodium^LN||140|mmol/L|135-145|{mark}|||F"
    taken(message(mrn, sodium, filler=f"N{next(_numbers)}"))
    found = observation()
    assert (found["interpretation"], found["value_unit"], found["rules"]) == (None, "mmol/L", 1)
    assert found["reference_range"] == []
    assert not criticals()


@pytest.mark.parametrize("mark", ["HH", "N"])
def test_the_sender_s_flag_stays_where_we_have_no_such_test(mrn: str, mark: str) -> None:
    taken(message(mrn, f"NM|99-9^Unheard^LN||5|mg/L|1-4|{mark}|||F", filler=f"N{next(_numbers)}"))
    assert observation()["interpretation"] == mark
    assert len(criticals()) == (mark == "HH")


def test_a_change_of_the_catalogue_counts_from_the_next_message_on(laboratory: Laboratory, mrn: str) -> None:
    taken(message(mrn, potassium("5.4"), filler=f"N{next(_numbers)}"))
    before = observation()["interpretation"]
    earlier = {"updated_at": now() - timedelta(hours=1)}
    with guard.engine().begin() as connection:
        for model in (LabTest, ReferenceRange, UnitConversion):
            connection.execute(update(model.__table__).values(**earlier))
    hl7_intake._catalogues.clear()
    taken(message(mrn, potassium("5.4"), filler=f"N{next(_numbers)}"))
    (known,) = hl7_intake._catalogues.values()
    taken(message(mrn, potassium("5.4"), filler=f"N{next(_numbers)}"))
    assert next(iter(hl7_intake._catalogues.values())) is known, "nothing has changed, so it is not read again"
    with factories.acting(laboratory.hospital.accounts["lab"]), guard.unit_of_work() as session:
        for row in session.scalars(select(ReferenceRange).where(ReferenceRange.test_id == laboratory.potassium)):
            row.high = Decimal("5.3") if before == "N" else Decimal("5.5")
    taken(message(mrn, potassium("5.4"), filler=f"N{next(_numbers)}"))
    assert {before, observation()["interpretation"]} == {"N", "H"}


# ---- hostile and odd ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("a\\F\\b\\S\\c\\T\\d\\R\\e\\E\\f", "a|b c&d~e\\f"),
        ("one\\X0D\\two", "one\rtwo"),
        ("one\\.br\\two", "one\ntwo"),
        ("\\E\\F\\E\\ stays", "\\F\\ stays"),
        ("caf\\XC3A9\\", "café"),
        ("unended \\E", "unended \\E"),
        ("\\Z99\\ours", None),
    ],
)
def test_escapes_are_undone_once(mrn: str, sent: str, meant: str | None) -> None:
    assert taken(message(mrn, f"ST|1-1^X^LN||{sent}||||||F", filler=f"N{next(_numbers)}")).code == "AA"
    found = observation()["value_text"]
    assert meant is None or found == meant


@pytest.mark.parametrize(
    ("charset", "encoding", "word"),
    [
        ("8859/2", "iso8859-2", "Łódź"),
        ("8859/5", "iso8859-5", "Кровь"),
        ("8859/7", "iso8859-7", "αίμα"),
        ("GB 18030-2000", "gb18030", "血液"),
        ("UNICODE UTF-8", "utf-8", "血液 é"),
        ("", "utf-8", "é"),
        ("", "latin-1", "é"),
    ],
)
def test_each_character_set_of_msh_18_is_read(mrn: str, charset: str, encoding: str, word: str) -> None:
    raw = message(mrn, f"ST|1-1^X^LN||{word}||||||F", charset=charset, filler=f"N{next(_numbers)}", name="", born="")
    assert taken(raw.decode().encode(encoding)).code == "AA"
    assert observation()["value_text"] == word


@pytest.mark.parametrize(
    "raw",
    [
        b"MSH|^~\\&|A|B|C|D|2026||ORU^R01|NUL\x00|P|2.5",
        b"MSH|^~\\&|A|B|C|D|2026||ORU^R01|W1|P|2.5||||||UNICODE UTF-8\rPID|1||1||M\xff\xfe",
        b"MSH||||||||||||||||||||||||||",
        b"MSH^~|\\&^A^B\r" * 3,
        b"MSHMSHMSHMSH",
        b"MSH|^~\\&|" + b"|" * 5000,
        b"MSH|^~\\&|A|B|C|D|2026||ORU^R01|DEEP|P|2.5\rPID|1||" + b"~" * 5000,
        b"MSH|^~\\&|A|B|C|D|2026||ADT^A40|X^Y|P|2.5\rMRG|",
        b"\xef\xbb\xbfMSH|^~\\&|A|B|C|D|2026||ORU^R01|BOM|P|2.5",
    ],
)
def test_nothing_breaks_it_and_nothing_is_lost(database: Any, raw: bytes) -> None:
    before = factories.number_of(Hl7Message)
    answer = taken(raw)
    assert answer.code in ("AE", "AR")
    assert b"ERR|" in answer.bytes
    assert factories.number_of(Hl7Message) == before + 1
    assert answer.message_id is not None
    assert bytes(factories.stored(Hl7Message, answer.message_id)["raw"]) == raw


def test_five_thousand_results_in_one_message_are_all_accounted_for(mrn: str) -> None:
    results = [f"NM|9-{nth}^Test {nth}^LN||{nth}|mg/L|||||F" for nth in range(5000)]
    before = factories.number_of(Hl7Result)
    assert taken(message(mrn, *results, filler="MANY")).code == "AA"
    assert factories.number_of(Hl7Result) == before + 5000


def test_the_same_result_twice_in_a_message_is_accounted_for_twice(mrn: str) -> None:
    taken(message(mrn, potassium("4.1"), potassium("4.1"), "|1-1^Untyped^LN||7||||||F", filler="DOUBLE"))
    found = rows(Hl7Result, Hl7Result.order_number == "DOUBLE")
    assert [row["outcome"] for row in found] == ["stored"] * 3
    assert observation()["value_text"] == "7"


@pytest.fixture
def nested() -> bytes:
    one = message("1", potassium("4"), number="NEST1")
    two = message("1", potassium("4"), number="NEST2")
    return b"\n".join([b"FHS|^~\\&", b"BHS|^~\\&", b"BHS|^~\\&", one, b"BTS|1", b"BHS|^~\\&", two, b"BTS|1", b"FTS|2"])


def test_batches_within_batches_give_their_messages_and_nothing_else(nested: bytes) -> None:
    found = [hl7_reading.read(part) for part in hl7_reading.messages_in(nested)]
    assert [each.control_id for each in found] == ["NEST1", "NEST2"]
    framed = b"".join(b"\x0b" + part + b"\x1c\r" for part in hl7_reading.messages_in(nested))
    assert [hl7_reading.read(part).control_id for part in hl7_reading.messages_in(framed)] == ["NEST1", "NEST2"]


def test_orders_and_specimens_are_left_as_they_were(ordered: dict[str, Any]) -> None:
    assert factories.stored(ServiceRequest, ordered["order"])["status"] == "active"
    assert rows(Specimen, Specimen.accession == ordered["accession"])[0]["status"] == "available"
