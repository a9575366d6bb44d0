"""What becomes of HL7 v2 messages: results are stored, wait for a match, or are refused; nothing is guessed or dropped.

Every message is kept as it came, in one transaction with what became of it, and answered once that is committed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any, cast

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from app import guard
from app.errors import Conflict, IllegalTransition, NotFound, Refusal, RequestRepeated
from app.services import flags, hl7_reading, lab, patients
from app.services.hl7_reading import Message, Person, Result, Unreadable
from app.services.words import fold
from models.base import now
from models.clinical import Observation
from models.codes import (
    LABORATORY,
    LABORATORY_REPORTS,
    STANDING,
    DiagnosticReportStatus,
    Hl7Outcome,
    Hl7State,
    ObservationStatus,
    ProposalKind,
    RequestStatus,
)
from models.hl7 import Hl7Message, Hl7Result, PatientProposal
from models.lab import DiagnosticReport, LabTest, ServiceRequest, Specimen
from models.patients import Patient, PatientIdentifier

log = structlog.get_logger(__name__)

LOINC = "http://loinc.org"
PROPOSALS = {
    "ADT^A01": ProposalKind.REGISTER,
    "ADT^A04": ProposalKind.REGISTER,
    "ADT^A08": ProposalKind.UPDATE,
    "ADT^A34": ProposalKind.MERGE,
    "ADT^A40": ProposalKind.MERGE,
}
STATUS = {
    "P": ObservationStatus.PRELIMINARY,
    "F": ObservationStatus.FINAL,
    "C": ObservationStatus.CORRECTED,
    "A": ObservationStatus.AMENDED,
    "R": ObservationStatus.REGISTERED,
    "X": ObservationStatus.CANCELLED,
    "D": ObservationStatus.ENTERED_IN_ERROR,
    "W": ObservationStatus.ENTERED_IN_ERROR,
    "U": ObservationStatus.FINAL,
}
"""Table 0085 as FHIR's observation status; what is not here says nothing that can be stored."""
REPORT_STATUS = {
    "O": DiagnosticReportStatus.REGISTERED,
    "I": DiagnosticReportStatus.REGISTERED,
    "S": DiagnosticReportStatus.REGISTERED,
    "R": DiagnosticReportStatus.PARTIAL,
    "P": DiagnosticReportStatus.PRELIMINARY,
    "F": DiagnosticReportStatus.FINAL,
    "C": DiagnosticReportStatus.CORRECTED,
    "X": DiagnosticReportStatus.CANCELLED,
}
"""Table 0123, OBR-25."""
GONE = (ObservationStatus.ENTERED_IN_ERROR, ObservationStatus.CANCELLED)
FLAGS = frozenset(("N", "L", "LL", "H", "HH", "A", "AA", "<", ">", "POS", "NEG", "DET", "ND", "IND", "S", "I", "R"))
IN_WORDS = frozenset(("ST", "TX", "FT", "DT", "TM", "TS", "DTM", "CE", "CWE", "CNE", "SN", "NM", "HD", "CX", "XPN", ""))
DOCUMENTS = frozenset(("ED", "RP"))


@dataclass(frozen=True)
class Answer:
    """What a message came to."""

    code: str
    """AA, AE or AR."""
    state: str
    bytes: bytes
    repeated: bool = False


# ---- one message -------------------------------------------------------------------------------------------------


def take_in(raw: bytes) -> Answer:
    """Store a message and what it says, all or nothing, and give the answer to it.

    The same message twice changes nothing the second time, and is answered as before. Raises OutOfService where the
    database is away: then nothing is answered, and the sender sends again.
    """
    try:
        message = hl7_reading.read(raw)
    except Unreadable as error:
        return _dead(raw, None, str(error), error.code)
    if not message.control_id:
        return _dead(raw, message, "MSH-10, the number of the message, is missing.", "101")
    if message.kind != "ORU^R01" and message.kind not in PROPOSALS:
        return _dead(raw, message, f"Messages of the kind {message.kind} are not taken in.", "200", code="AR")
    if message.person is None:
        return _dead(raw, message, "There is no PID segment.", "100")
    if message.stray:
        return _dead(raw, message, "There is an OBX that belongs to no OBR.", "100")
    if message.kind == "ORU^R01" and not message.results:
        return _dead(raw, message, "There is no result in it.", "101")
    try:
        with guard.unit_of_work() as session:
            if (before := _same(session, message)) is not None:
                return _again(before, raw, message)
            kept = _kept(session, raw, message, Hl7State.STORED)
            if message.kind == "ORU^R01":
                _results(session, kept, message)
            else:
                _propose(session, kept, message)
            session.flush()
            return _answered(kept, message)
    except RequestRepeated:  # the same came by another line at the same moment, and was faster
        with guard.unit_of_work() as session:
            before = _same(session, message)
            if before is None:
                raise
            return _again(before, raw, message)


def _answered(kept: Hl7Message, message: Message | None, code: str = "204") -> Answer:
    """The answer to a message that is kept."""
    told = hl7_reading.acknowledge(message, kept.acknowledgement, kept.error, code)
    return Answer(kept.acknowledgement, kept.state, told)


def _same(session: Session, message: Message) -> Hl7Message | None:
    """The message of that number of that sender, where it is here already."""
    statement = select(Hl7Message).where(
        Hl7Message.sender == message.sender[:200], Hl7Message.control_id == message.control_id[:200]
    )
    return session.scalars(statement).one_or_none()


def _again(before: Hl7Message, raw: bytes, message: Message) -> Answer:
    """What was answered the first time; another message of the same number is refused, and the first one stands."""
    if before.digest == sha256(raw).digest():
        answer = _answered(before, message)
        return Answer(answer.code, answer.state, answer.bytes, repeated=True)
    sentence = "Another message of this number was taken in already."
    return Answer("AE", Hl7State.DEAD, hl7_reading.acknowledge(message, "AE", sentence, "103"), repeated=True)


def _kept(session: Session, raw: bytes, message: Message | None, state: str) -> Hl7Message:
    """The message, written down as it came."""
    person = message.person if message else None
    row = Hl7Message(
        sender=message.sender[:200] if message else "",
        control_id=message.control_id[:200] if message else "",
        kind=message.kind[:20] if message else "",
        state=state,
        acknowledgement="AA",
        received_at=now(),
        digest=sha256(raw).digest(),
        raw=raw,
        named=person.plain() if person else {},
    )
    session.add(row)
    session.flush()
    return row


def _dead(raw: bytes, message: Message | None, error: str, reason: str, *, code: str = "AE") -> Answer:
    """Keep what cannot be taken in, with what is wrong with it, and say so; the same thing again is kept once."""
    log.warning("hl7.dead", reason=reason, kind=message.kind if message else "")
    with guard.unit_of_work() as session:
        if message is not None and message.control_id:
            before = _same(session, message)
        else:
            unread = select(Hl7Message).where(Hl7Message.digest == sha256(raw).digest(), Hl7Message.control_id == "")
            before = session.scalars(unread.limit(1)).first()
        kept = before or _kept(session, raw, message, Hl7State.DEAD)
        if before is None:
            kept.acknowledgement, kept.error = code, error
            _refuse_all(session, kept, message, error)
            session.flush()
        elif message is not None and message.control_id:
            return _again(before, raw, message)
        return _answered(kept, message, reason)


def _refuse_all(session: Session, kept: Hl7Message, message: Message | None, error: str) -> None:
    """Every OBX of a message that is not taken in, with the reason."""
    for result in message.results if message else ():
        session.add(_line(kept, result, Hl7Outcome.REFUSED, reason=error))


def _line(
    kept: Hl7Message, result: Result, outcome: str, *, reason: str = "", observation_id: int | None = None
) -> Hl7Result:
    return Hl7Result(
        message_id=kept.id,
        position=result.position,
        order_number=result.order[:100],
        code=result.code[:100],
        sub_id=result.sub_id[:100],
        outcome=outcome,
        reason=reason,
        observation_id=observation_id,
        patient_id=kept.patient_id,
    )


# ---- whose it is -------------------------------------------------------------------------------------------------


def match(session: Session, person: Person) -> tuple[Patient | None, str]:
    """Whose record a message is about, and why nobody's is where it is not certain.

    Certain is a number that one patient has, and a birth date or family name that says the same. Never guessed.
    """
    numbers = [value for value, _, _ in person.identifiers]
    if not numbers:
        return None, "It names no number of a patient."
    named: list[Patient] = []
    named += session.scalars(select(Patient).where(Patient.mrn.in_([value.upper() for value in numbers])))
    known = select(PatientIdentifier).where(PatientIdentifier.value.in_(numbers))
    for row in session.scalars(known.options(selectinload(PatientIdentifier.patient))):
        if any(value == row.value and _says(row.system, *whose) for value, *whose in person.identifiers):
            named.append(row.patient)
    found = patients.standing(session, named)
    if not found:
        return None, "No patient has one of its numbers."
    if len(found) > 1:
        return None, "Its numbers are those of several patients."
    (patient,) = found
    born = person.born is not None and patient.birth_date is not None
    if born and patient.birth_precision == "day" and patient.birth_date != person.born:
        return None, "The birth date is not that of the patient with this number."
    same = fold(person.family) in (fold(patient.family), fold(f"{patient.family} {patient.second_family}".strip()))
    if person.family and not same and not born:
        return None, "The name is not that of the patient with this number."
    if not patient.active:
        return None, "The record of this patient is not in use."
    return patient, ""


def _says(system: str, authority: str, kind: str) -> bool:
    """Whether a number of ours is of the system that a message names: by authority, or by type where it has none."""
    return fold(system) == fold(authority) if authority else fold(system) == fold(kind)


# ---- results -----------------------------------------------------------------------------------------------------


def _results(session: Session, kept: Hl7Message, message: Message) -> None:
    """Store every result, or say of each why not; all of them wait where it is not certain whose they are."""
    assert message.person is not None
    patient, why = match(session, message.person)
    if patient is None:
        kept.state, kept.error = Hl7State.UNMATCHED, ""
        for result in message.results:
            session.add(_line(kept, result, Hl7Outcome.WAITING, reason=why))
        return
    kept.patient_id = patient.id
    store(session, kept, patient, message.results)


def store(session: Session, kept: Hl7Message, patient: Patient, results: Sequence[Result]) -> None:
    """Put results into a patient's record, each with what became of it; the answer says what was refused."""
    tests = _tests(session, {result.code for result in results})
    orders = _orders(session, {result.placer for result in results})
    earlier = _earlier(session, kept, patient, results)
    lines = {line.position: line for line in kept.__dict__.get("results", ())}
    stored: list[tuple[Hl7Result, Observation, Result]] = []
    for result in results:
        line = lines.get(result.position) or _line(kept, result, Hl7Outcome.WAITING)
        line.patient_id = patient.id
        try:
            before = earlier.get(_key(result)) if result.order else None
            order = _not_called_off(orders.get(result.placer), patient)
            row = _stored(patient, result, tests.get(result.code), before)
            row.service_request_id = order.id if order else row.service_request_id
            session.add(row)
            stored.append((line, row, result))
        except Refusal as refusal:
            line.outcome, line.reason = Hl7Outcome.REFUSED, str(refusal)
            session.add(line)
    session.flush()
    for line, row, _ in stored:
        line.outcome, line.observation_id, line.reason = Hl7Outcome.STORED, row.id, ""
        session.add(line)
    _reports(session, patient, results, [(result, row) for _, row, result in stored])
    refused = len(results) - len(stored)
    kept.state = Hl7State.STORED
    kept.acknowledgement = "AE" if not stored else "AA"
    kept.error = f"{refused} of {len(results)} results were not stored." if refused else ""


def _tests(session: Session, codes: set[str]) -> dict[str, LabTest]:
    statement = select(LabTest).where(LabTest.code.in_(sorted(codes)), LabTest.active)
    options = (selectinload(LabTest.ranges), selectinload(LabTest.conversions))
    return {test.code: test for test in session.scalars(statement.options(*options))}


def _stored(patient: Patient, result: Result, test: LabTest | None, before: Observation | None) -> Observation:
    """A result as a row, new or the one that it changes. Raises a Refusal that says why not, and then changes none."""
    if result.status not in STATUS:
        raise Refusal(f"OBX-11 is {result.status or 'missing'}, which says nothing that can be stored.")
    status = STATUS[result.status]
    if result.kind in DOCUMENTS:
        raise Refusal("Documents within a result are not taken in.")
    if result.kind not in IN_WORDS:
        raise Refusal(f"Values of the type {result.kind} are not taken in.")
    if not result.code:
        raise Refusal("OBX-3 does not say what was measured.")
    if before is None and status in (ObservationStatus.CORRECTED, ObservationStatus.AMENDED, *GONE):
        raise Refusal("It changes a result that is not known here.")
    if before is None and result.status == "U":
        raise Refusal("It says that a result is final that is not known here.")
    if before is not None:
        _may_follow(before, status, result.status)
    row = before or Observation(patient_id=patient.id, category=LABORATORY)
    if status in GONE:
        said = {"note": "Wrong patient."} if result.status == "W" else {}
    else:
        said = {} if result.status == "U" else _said(patient, result, test, row.effective_at)
    for name, value in {**said, "status": status}.items():
        setattr(row, name, value)
    if status in STANDING and row.issued_at is not None and row.portal_at is None:
        row.portal_at = lab.told_at(test, row.issued_at)
    return row


def _may_follow(row: Observation, status: str, code: str) -> None:
    """Raises a Refusal where table 0085 does not let one status follow another."""
    if row.status == ObservationStatus.ENTERED_IN_ERROR:
        raise Refusal("The result was withdrawn already.")
    if status == ObservationStatus.CORRECTED and row.status not in STANDING:
        raise Refusal("Only a final result is corrected.")
    if row.status in STANDING and status in (ObservationStatus.PRELIMINARY, ObservationStatus.REGISTERED):
        raise Refusal("The result is final already.")
    if row.status in STANDING and code == "F":
        raise Refusal("The result is final already; a change of it is sent as a correction.")


def _key(result: Result) -> tuple[str, str, str]:
    """What tells a result from others of the patient."""
    return result.order[:100], result.code[:100], result.sub_id[:100]


def _earlier(
    session: Session, kept: Hl7Message, patient: Patient, results: Sequence[Result]
) -> dict[tuple[str, str, str], Observation]:
    """The results of earlier messages that these may speak of, locked until the transaction ends."""
    statement = select(Hl7Result).where(
        Hl7Result.patient_id == patient.id,
        Hl7Result.message_id != kept.id,
        Hl7Result.order_number.in_(sorted({result.order[:100] for result in results if result.order})),
        Hl7Result.outcome == Hl7Outcome.STORED,
    )
    lines = session.scalars(statement.order_by(Hl7Result.id)).all()
    if not lines:
        return {}
    numbers = sorted({line.observation_id for line in lines if line.observation_id is not None})
    held = select(Observation).where(Observation.id.in_(numbers)).order_by(Observation.id).with_for_update()
    rows = {row.id: row for row in session.scalars(held.execution_options(populate_existing=True))}
    return {
        (line.order_number, line.code, line.sub_id): rows[line.observation_id]
        for line in lines
        if line.observation_id in rows
    }


def _orders(session: Session, placers: set[str]) -> dict[str, ServiceRequest]:
    """Our orders, by the number of their specimen, where OBR-2 is one."""
    wanted = {placer: placer.upper() for placer in placers if lab.is_accession(placer)}
    if not wanted:
        return {}
    specimens = session.scalars(select(Specimen).where(Specimen.accession.in_(sorted(wanted.values())))).all()
    by_number = {specimen.accession: specimen.id for specimen in specimens}
    statement = select(ServiceRequest).where(ServiceRequest.specimen_id.in_(sorted(by_number.values())))
    found: dict[int | None, ServiceRequest] = {}
    for request in session.scalars(statement.order_by(ServiceRequest.id)):
        found.setdefault(request.specimen_id, request)
    return {
        placer: found[by_number[number]]
        for placer, number in wanted.items()
        if number in by_number and by_number[number] in found
    }


def _not_called_off(order: ServiceRequest | None, patient: Patient) -> ServiceRequest | None:
    """The order, where it stands. Raises a Refusal where it was called off, or is somebody else's."""
    if order is None:
        return None
    if order.patient_id != patient.id:
        raise Refusal("The specimen is another patient's.")
    if order.status in (RequestStatus.REVOKED, RequestStatus.ENTERED_IN_ERROR):
        raise Refusal("The order was called off.")
    return order


def _said(patient: Patient, result: Result, test: LabTest | None, known_at: datetime | None) -> dict[str, Any]:
    """The columns a result fills. Raises a Refusal for a value that cannot be."""
    read = hl7_reading.number(result.values[0]) if result.kind in ("NM", "SN") and len(result.values) == 1 else None
    if result.kind == "NM" and read is None and any(result.values):
        raise Refusal("It says that it is a number, and is none.")
    reference = hl7_reading.reference(result.reference, result.unit)
    found: dict[str, Any] = {
        "code_system": LOINC if result.code_system.upper() in ("LN", "LOINC") else result.code_system or None,
        "code": result.code,
        "code_display": result.code_display[:300],
        "effective_at": known_at or result.observed_at or now(),
        "issued_at": now(),
        "note": result.note[:4000],
        "value_quantity": None,
        "value_unit": None,
        "value_text": None,
        "value_code": None,
        "comparator": "",
        "off_scale": None,
        "rules": None,
        "held": "",
        "interpretation": result.interpretation if result.interpretation in FLAGS else None,
        "reference_range": [reference] if reference else [],
    }
    if read is not None:
        found["comparator"], found["value_quantity"] = read
        found["value_unit"] = result.unit or None
        return found | _flagged(patient, test, read, result.unit, found["effective_at"])
    if result.kind in ("CE", "CWE", "CNE") and result.values:
        parts = [*result.values[0].split("^"), ""]
        return found | {"value_code": parts[0] or None, "value_text": (parts[1] or parts[0])[:10_000] or None}
    text = "\n".join(result.values).replace("^", " ").strip()
    return found | {"value_text": text[:100_000] or None}


def _flagged(
    patient: Patient, test: LabTest | None, read: tuple[str, Decimal], unit: str, at: datetime
) -> dict[str, Any]:
    """A number held against our limits, in our unit; what is in a unit nobody can convert keeps the sender's flag."""
    if test is None:
        return {}
    comparator, value = read
    table = [flags.Conversion(each.source, each.target, each.factor) for each in test.conversions]
    number = flags.convert(value, unit, test.unit, table)
    if number is None:
        return {"held": "unit"}
    if not flags.plausible(number, lab.limits_of(test)):
        raise Refusal("Nobody can have such a value.")
    chosen = flags.choose(lab.ranges_of(test), lab.subject_of(patient, at))
    if chosen is None:
        return {}
    flag = flags.interpret(number, chosen.limits, cast(flags.Comparator, comparator))
    return {
        "value_quantity": number,
        "value_unit": test.unit or None,
        "interpretation": flag.code,
        "off_scale": flag.scale,
        "rules": flags.RULES,
        "reference_range": [lab.printed(chosen)],
    }


def _reports(
    session: Session, patient: Patient, results: Sequence[Result], stored: Sequence[tuple[Result, Observation]]
) -> None:
    """One report for each OBR, as the sender says it stands."""
    for order, panel in dict.fromkeys((result.order, result.panel) for result in results if result.panel):
        first = next(result for result in results if (result.order, result.panel) == (order, panel))
        outs = [row.portal_at for result, row in stored if result.panel == panel and row.portal_at is not None]
        session.add(
            DiagnosticReport(
                patient_id=patient.id,
                status=REPORT_STATUS.get(first.panel_status, DiagnosticReportStatus.UNKNOWN),
                category=LABORATORY_REPORTS[0],
                code=panel[:100],
                code_display=first.panel_display[:300],
                effective_at=first.observed_at,
                issued_at=now(),
                portal_at=max(outs, default=None),
            )
        )


# ---- proposals and matching by hand ------------------------------------------------------------------------------


def _propose(session: Session, kept: Hl7Message, message: Message) -> None:
    """Write down for somebody to decide what another system says of who somebody is; nothing is changed by it."""
    assert message.person is not None
    patient, why = match(session, message.person)
    other: Patient | None = None
    kind = PROPOSALS[message.kind]
    if kind == ProposalKind.MERGE:
        if not message.given_up:
            kept.state, kept.acknowledgement = Hl7State.DEAD, "AE"
            kept.error = "There is no MRG segment that says which record is to be given up."
            return
        other, _ = match(session, Person(identifiers=message.given_up))
    if kind == ProposalKind.REGISTER and patient is not None:
        kind = ProposalKind.UPDATE
    kept.state, kept.patient_id = Hl7State.PROPOSED, patient.id if patient else None
    session.add(
        PatientProposal(
            message_id=kept.id,
            kind=kind,
            patient_id=patient.id if patient else None,
            other_id=other.id if other else None,
            wanted={**message.person.plain(), "given_up": [list(each) for each in message.given_up], "why": why},
        )
    )


def assign(session: Session, message_id: int, patient_id: int) -> Hl7Message:
    """Say whose the waiting results of a message are, and store them. Raises IllegalTransition, NotFound, Conflict."""
    guard.require("update", "Hl7Message")
    kept = session.scalars(
        select(Hl7Message)
        .where(Hl7Message.id == message_id)
        .options(selectinload(Hl7Message.results))
        .with_for_update()
        .execution_options(populate_existing=True)
    ).one_or_none()
    patient = session.get(Patient, patient_id)
    if kept is None or patient is None:
        raise NotFound
    if kept.state != Hl7State.UNMATCHED:
        raise IllegalTransition("Somebody has decided this already.")
    if not patient.active:
        raise Conflict("This record is not in use.")
    guard.because("matched by hand")
    kept.patient_id = patient.id
    store(session, kept, patient, hl7_reading.read(kept.raw).results)
    session.flush()
    return kept


def dismiss(session: Session, message_id: int, *, reason: str) -> Hl7Message:
    """Say that a message is nobody's here, or not to be mended; it stays, with the reason. Raises IllegalTransition."""
    guard.require("update", "Hl7Message")
    wanted = select(Hl7Message).where(Hl7Message.id == message_id).options(selectinload(Hl7Message.results))
    kept = session.scalars(wanted.with_for_update()).one_or_none()
    if kept is None:
        raise NotFound
    if kept.state not in (Hl7State.UNMATCHED, Hl7State.DEAD):
        raise IllegalTransition("Somebody has decided this already.")
    if not reason.strip():
        raise Refusal("Please say why.", field="reason")
    kept.state = Hl7State.DISMISSED
    for line in kept.results:
        if line.outcome == Hl7Outcome.WAITING:
            line.outcome, line.reason = Hl7Outcome.REFUSED, reason.strip()[:500]
    session.flush()
    return kept


def balance(session: Session) -> dict[str, Any]:
    """How many messages and results there are by what became of them: nothing is unaccounted for."""
    states = Counter(row.state for row in session.scalars(select(Hl7Message)))
    outcomes = Counter(row.outcome for row in session.scalars(select(Hl7Result)))
    return {"messages": dict(states), "results": dict(outcomes)}


__all__ = ["Answer", "assign", "balance", "dismiss", "match", "take_in"]
