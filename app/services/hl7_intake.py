"""What becomes of HL7 v2 messages: results are stored, wait for a match, or are refused; nothing is guessed or dropped.

Every message is kept as it came, in one transaction with what became of it, and answered once that is committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any, cast

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, Select, func, inspect, select, union_all
from sqlalchemy.orm import Session, joinedload, selectinload, undefer

from app import events, guard
from app.actor import current
from app.errors import Conflict, IllegalTransition, Invalid, NotFound, Refusal, RequestRepeated
from app.services import flags, hl7_reading, lab, patients
from app.services.hl7_reading import Message, Person, Result, Unreadable
from app.services.words import fold, line
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
from models.lab import DiagnosticReport, LabTest, ReferenceRange, ServiceRequest, Specimen, UnitConversion
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
    error: str = ""
    """What is wrong with it, without what it holds."""
    message_id: int | None = None
    """Where it is kept; the first one's, where another of its number came."""
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
        return _dead(raw, None, Fault(str(error), error.code))
    if (fault := _fault(message)) is not None:
        return _dead(raw, message, fault)
    try:
        with guard.unit_of_work() as session:
            kept = _kept(raw, message)
            _settle(session, kept, message)
            session.flush()
            return _answered(kept, message)
    except RequestRepeated:  # it is here already, which the database says for nothing
        with guard.unit_of_work() as session:
            before = _same(session, message)
            if before is None:
                raise
            return _again(before, raw, message)


@dataclass(frozen=True)
class Fault:
    """Why a message is not taken in: a sentence, its code of table 0357, and AE or AR."""

    sentence: str
    reason: str
    code: str = "AE"


def _fault(message: Message) -> Fault | None:
    """What keeps a message that could be read from being taken in."""
    if not message.control_id:
        return Fault("MSH-10, the number of the message, is missing.", "101")
    if message.kind != "ORU^R01" and message.kind not in PROPOSALS:
        return Fault(f"Messages of the kind {message.kind} are not taken in.", "200", "AR")
    if message.person is None:
        return Fault("There is no PID segment.", "100")
    if message.stray:
        return Fault("There is an OBX that belongs to no OBR.", "100")
    if message.kind == "ORU^R01" and not message.results:
        return Fault("There is no result in it.", "101")
    if PROPOSALS.get(message.kind) == ProposalKind.MERGE and not message.given_up:
        return Fault("There is no MRG segment that says which record is to be given up.", "100")
    return None


def refuse(raw: bytes, sentence: str) -> Answer:
    """Keep what is not to be tried, with why."""
    return _dead(raw, None, Fault(sentence, "207"))


def _settle(session: Session, kept: Hl7Message, message: Message) -> None:
    """Do with a message what it is for. All of it is written in one go, which is what makes it fast."""
    if message.kind in PROPOSALS:
        _propose(session, kept, message)
        return
    assert message.person is not None
    patient, why = match(session, message.person)
    if patient is not None:
        store(session, kept, patient, message.results)
        return
    kept.state, kept.error = Hl7State.UNMATCHED, ""
    known = {line.position: line for line in kept.results}
    for result in message.results:
        line = known.get(result.position) or _line(kept, result)
        line.outcome, line.reason = Hl7Outcome.WAITING, why
    session.add(kept)


def _answered(kept: Hl7Message, message: Message | None, code: str = "204") -> Answer:
    """The answer to a message that is kept."""
    told = hl7_reading.acknowledge(message, kept.acknowledgement, kept.error, code)
    return Answer(kept.acknowledgement, kept.state, told, kept.error, kept.id)


def _same(session: Session, message: Message) -> Hl7Message | None:
    """The message of that number of that sender, where it is here already."""
    statement = select(Hl7Message).where(
        Hl7Message.sender == message.sender[:200], Hl7Message.control_id == message.control_id[:200]
    )
    return session.scalars(statement).one_or_none()


def _again(before: Hl7Message, raw: bytes, message: Message) -> Answer:
    """What was answered the first time; another message of the same number is refused, and the first one stands."""
    if before.digest == sha256(raw).digest():
        return replace(_answered(before, message), repeated=True)
    sentence = "Another message of this number was taken in already."
    told = hl7_reading.acknowledge(message, "AE", sentence, "103")
    return Answer("AE", Hl7State.DEAD, told, sentence, before.id, repeated=True)


def _kept(raw: bytes, message: Message | None) -> Hl7Message:
    """The message as it came, to be written down."""
    person = message.person if message else None
    return Hl7Message(
        sender=message.sender[:200] if message else "",
        control_id=message.control_id[:200] if message else "",
        kind=message.kind[:20] if message else "",
        state=Hl7State.DEAD,
        acknowledgement="AA",
        received_at=now(),
        digest=sha256(raw).digest(),
        raw=raw,
        named=person.plain() if person else {},
    )


def _dead(raw: bytes, message: Message | None, fault: Fault) -> Answer:
    """Keep what cannot be taken in, with what is wrong with it, and say so; the same thing again is kept once."""
    log.warning("hl7.dead", reason=fault.reason, kind=message.kind if message else "")
    with guard.unit_of_work() as session:
        if message is not None and message.control_id:
            before = _same(session, message)
            if before is not None:
                return _again(before, raw, message)
        else:
            unread = select(Hl7Message).where(Hl7Message.digest == sha256(raw).digest(), Hl7Message.control_id == "")
            before = session.scalars(unread.limit(1)).first()
        kept = before or _kept(raw, message)
        if before is None:
            kept.acknowledgement, kept.error = fault.code, fault.sentence
            for result in message.results if message else ():
                line = _line(kept, result)
                line.outcome, line.reason = Hl7Outcome.REFUSED, fault.sentence
            session.add(kept)
            session.flush()
        return _answered(kept, message, fault.reason)


def _line(kept: Hl7Message, result: Result) -> Hl7Result:
    """An OBX of a message, of which nobody has said yet what becomes of it."""
    return Hl7Result(
        message=kept,
        position=result.position,
        order_number=result.order[:100],
        code=result.code[:100],
        sub_id=result.sub_id[:100],
        outcome=Hl7Outcome.WAITING,
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
    known = select(PatientIdentifier).where(func.upper(PatientIdentifier.value).in_([each.upper() for each in numbers]))
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


def store(session: Session, kept: Hl7Message, patient: Patient, results: Sequence[Result]) -> int:
    """Put results into a patient's record, each with what became of it; gives how many were stored."""
    tests = _tests(session, {result.code for result in results})
    orders = _orders(session, {result.placer for result in results})
    earlier = _earlier(session, kept, patient, results)
    lines = {line.position: line for line in kept.results}
    kept.patient_id = patient.id
    stored: list[tuple[Result, Observation, ServiceRequest | None]] = []
    for result in results:
        line = lines.get(result.position) or _line(kept, result)
        line.patient_id = patient.id
        try:
            before = earlier.get(_key(result)) if result.order else None
            order = _answered_order(orders.get(result.placer, []), result, patient)
            row = _stored(patient, result, tests.get(result.code), before)
        except Refusal as refusal:
            line.outcome, line.reason = Hl7Outcome.REFUSED, str(refusal)
            continue
        if order is not None:
            row.service_request_id, row.specimen_id = order.id, order.specimen_id
        row.branch_id = row.branch_id or (order.branch_id if order else None) or patient.registered_at_id
        line.outcome, line.reason, line.observation = Hl7Outcome.STORED, "", row
        stored.append((result, row, order))
    refused = sum(line.outcome == Hl7Outcome.REFUSED for line in kept.results)
    kept.state = Hl7State.STORED
    if not stored and not inspect(kept).persistent:  # what was answered once stays so
        kept.acknowledgement = "AE"
    kept.error = f"{refused} of {len(kept.results)} results were not stored." if refused else ""
    session.add(kept)
    _reports(session, patient, results, stored)
    session.flush()
    _tell(session, stored)
    return len(stored)


def _tell(session: Session, stored: Sequence[tuple[Result, Observation, ServiceRequest | None]]) -> None:
    """Make critical results known, once for each value, and orders that have results since."""
    standing = [(row, order) for _, row, order in stored if row.status in STANDING]
    for row, _ in standing:
        if flags.Flag(row.interpretation).critical:
            lab.make_known(session, row)
    for order in {order.id: order for _, order in standing if order is not None}.values():
        events.emit(session, events.ResultsReleased(order.id, order.patient_id, order.requester_id))


SETTLED = timedelta(minutes=1)
"""No change of the catalogue takes longer from its moment to its commit."""


@dataclass(frozen=True)
class Catalogue:
    """The tests by code, with ranges and conversions, as they were read."""

    tests: Mapping[str, LabTest]
    read_at: datetime


_catalogues: dict[Engine | Connection | None, Catalogue] = {}
"""Of each database this process is connected to; of the last one only."""


def _tests(session: Session, codes: set[str]) -> dict[str, LabTest]:
    """The tests of the catalogue; it is read again only where it was changed since, or shortly before."""
    known = _catalogues.get(session.bind)
    if known is None or _changed(session, known.read_at - SETTLED):
        read_at = now()
        options = (selectinload(LabTest.ranges), selectinload(LabTest.conversions))
        found = session.scalars(select(LabTest).where(LabTest.active).options(*options)).all()
        known = Catalogue({test.code: test for test in found}, read_at)
        _catalogues.clear()
        _catalogues[session.bind] = known
    return {code: known.tests[code] for code in codes if code in known.tests}


def _changed(session: Session, since: datetime) -> bool:
    """Whether anything of the catalogue was added or changed; nothing is ever taken out of it."""
    kinds = (LabTest, ReferenceRange, UnitConversion)
    rows = union_all(*(select(kind.id).where(kind.updated_at > since) for kind in kinds)).subquery()
    return bool(session.scalar(select(func.count()).select_from(rows)))


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
        said = {"read_at": None} | ({"note": "Wrong patient."} if result.status == "W" else {})
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


def _orders(session: Session, placers: set[str]) -> dict[str, list[ServiceRequest]]:
    """Our orders on a specimen, by its number, where OBR-2 is one."""
    wanted = {placer: placer.upper() for placer in placers if lab.is_accession(placer)}
    if not wanted:
        return {}
    specimens = session.scalars(select(Specimen).where(Specimen.accession.in_(sorted(wanted.values())))).all()
    by_number = {specimen.accession: specimen.id for specimen in specimens}
    statement = select(ServiceRequest).where(ServiceRequest.specimen_id.in_(sorted(by_number.values())))
    found = session.scalars(statement.order_by(ServiceRequest.id)).all()
    return {
        placer: [order for order in found if order.specimen_id == by_number.get(number)]
        for placer, number in wanted.items()
    }


def _answered_order(orders: Sequence[ServiceRequest], result: Result, patient: Patient) -> ServiceRequest | None:
    """The order of a specimen that a result answers. Raises a Refusal where it was called off, or is another's."""
    if not orders:
        return None
    order = next((each for each in orders if each.code in (result.panel, result.code)), orders[0])
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
        "read_at": None,
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
    """A number held against our limits, in our unit; none of them has no flag. Raises a Refusal for an impossible one.

    The sender's flag stays where we have no such test, and where nobody can convert the unit: then the result is held.
    """
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
    limits = chosen.limits if chosen is not None else lab.limits_of(test)
    flag = flags.interpret(number, limits, cast(flags.Comparator, comparator))
    return {
        "value_quantity": number,
        "value_unit": test.unit or None,
        "interpretation": flag.code,
        "off_scale": flag.scale,
        "rules": flags.RULES,
        "reference_range": [lab.printed(chosen)] if chosen is not None else [],
    }


def _reports(
    session: Session,
    patient: Patient,
    results: Sequence[Result],
    stored: Sequence[tuple[Result, Observation, ServiceRequest | None]],
) -> None:
    """One report for each OBR, as the sender says it stands."""
    for number, panel in dict.fromkeys((result.order, result.panel) for result in results if result.panel):
        first = next(result for result in results if (result.order, result.panel) == (number, panel))
        mine = [(row, order) for result, row, order in stored if (result.order, result.panel) == (number, panel)]
        outs = [row.portal_at for row, _ in mine if row.portal_at is not None]
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
                service_request_id=next((order.id for _, order in mine if order is not None), None),
            )
        )


# ---- proposals ---------------------------------------------------------------------------------------------------


def _propose(session: Session, kept: Hl7Message, message: Message) -> None:
    """Write down for somebody to decide what another system says of who somebody is; nothing is changed by it."""
    assert message.person is not None
    patient, why = match(session, message.person)
    kind = PROPOSALS[message.kind]
    other = match(session, Person(identifiers=message.given_up))[0] if kind == ProposalKind.MERGE else None
    if kind == ProposalKind.REGISTER and patient is not None:
        kind = ProposalKind.UPDATE
    kept.state, kept.error, kept.patient_id = Hl7State.PROPOSED, "", patient.id if patient else None
    session.add(
        PatientProposal(
            message=kept,
            kind=kind,
            patient_id=patient.id if patient else None,
            other_id=other.id if other else None,
            wanted={**message.person.plain(), "given_up": [list(each) for each in message.given_up], "why": why},
        )
    )


# ---- what somebody decides ---------------------------------------------------------------------------------------

MOST = 200
"""Messages of one list."""


def waiting(session: Session, state: str, *, most: int = MOST) -> Sequence[Hl7Message]:
    """The messages in a state, the oldest first where they wait and else the newest."""
    order = Hl7Message.id if state in (Hl7State.UNMATCHED, Hl7State.DEAD) else Hl7Message.id.desc()
    statement = select(Hl7Message).where(Hl7Message.state == state).order_by(order).limit(most)
    return session.scalars(statement.options(joinedload(Hl7Message.patient))).all()


def undecided() -> dict[str, Select[Any]]:
    """The count of messages that somebody has to match or to mend, up to MOST; nothing where that is not theirs."""
    if not (current().may("update", "Hl7Message") and current().may("read", "Hl7Message")):
        return {}
    states = Hl7Message.state.in_((Hl7State.UNMATCHED, Hl7State.DEAD))
    few = select(Hl7Message.id).where(states).limit(MOST).subquery()
    return {"waiting": select(func.count()).select_from(few)}


def show(session: Session, message_id: int) -> Hl7Message:
    """A message as it came, with what became of each result. Raises NotFound."""
    kept = session.scalars(_whole(message_id)).one_or_none()
    if kept is None:
        raise NotFound
    return kept


def _whole(message_id: int) -> Select[Hl7Message]:
    return (
        select(Hl7Message)
        .where(Hl7Message.id == message_id)
        .options(
            undefer(Hl7Message.raw),
            selectinload(Hl7Message.results),
            selectinload(Hl7Message.patient),
            selectinload(Hl7Message.decided_by),
        )
    )


def _to_decide(session: Session, message_id: int) -> Hl7Message:
    """A message, locked until the transaction ends. Raises Forbidden, NotFound."""
    guard.require("update", "Hl7Message")
    statement = _whole(message_id).with_for_update(of=Hl7Message).execution_options(populate_existing=True)
    kept = session.scalars(statement).one_or_none()
    if kept is None:
        raise NotFound
    return kept


def _decided(kept: Hl7Message, words: str, by: int | None) -> None:
    """Who decided, when and why."""
    kept.decided_at, kept.decided_by_id, kept.decision = now(), by, words


def candidates(session: Session, said: Mapping[str, Any]) -> list[patients.Likeness]:
    """The patients a message may be about (`Person.plain`), the likeliest first: by number, name and birth date."""
    numbers = [(value, authority or kind) for value, authority, kind in said.get("identifiers", [])]
    exact = select(Patient).where(Patient.mrn.in_([value.upper() for value, _ in numbers]))
    found = [
        patients.Likeness(patient, 1.0, ("same identifier",))
        for patient in patients.standing(session, session.scalars(exact).all())
    ]
    alike = patients.likely_duplicates(
        session,
        family=said.get("family", ""),
        given=said.get("given", ""),
        birth_date=date.fromisoformat(said["born"]) if said.get("born") else None,
        phones=said.get("phones", ()),
        identifiers=[(system, value) for value, system in numbers],
        limit=10,
    )
    return [*found, *(each for each in alike if each.patient.id not in {like.patient.id for like in found})]


def assign(session: Session, message_id: int, patient_id: int) -> Hl7Message:
    """Say whose the waiting results of a message are, and store them. Raises IllegalTransition, NotFound, Conflict."""
    kept = _to_decide(session, message_id)
    patient = session.get(Patient, patient_id)
    if patient is None:
        raise NotFound
    if kept.state != Hl7State.UNMATCHED:
        raise IllegalTransition("Somebody has decided this already.")
    if not patient.active:
        raise Conflict("This record is not in use.")
    guard.because("matched by hand")
    _decided(kept, "matched by hand", current().user_id)
    store(session, kept, patient, hl7_reading.read(kept.raw).results)
    return kept


def reread(session: Session, message_id: int, *, by: int | None = None) -> Hl7Message:
    """Try what could not be taken in once more, after what was wrong is mended: a whole message, or single results.

    `by` is the account that asks, as matching knows more numbers of patients than people of a laboratory do. Raises
    Refusal with what is still wrong, and then nothing is changed; IllegalTransition where nothing is left over.
    """
    kept = _to_decide(session, message_id)
    left = {line.position for line in kept.results if line.outcome == Hl7Outcome.REFUSED}
    if kept.state != Hl7State.DEAD and not (kept.state == Hl7State.STORED and left):
        raise IllegalTransition("Nothing of this message is left to be tried again.")
    guard.because("tried again")
    try:
        message = hl7_reading.read(kept.raw)
    except Unreadable as error:
        raise Refusal(str(error)) from error
    _decided(kept, "tried again", by)
    if kept.state == Hl7State.STORED:
        assert kept.patient_id is not None
        patient = session.get_one(Patient, kept.patient_id)
        again = [result for result in message.results if result.position in left]
        if not store(session, kept, patient, again):
            raise Refusal(next(line.reason for line in kept.results if line.position in left))
        return kept
    if (fault := _fault(message)) is not None:
        raise Refusal(fault.sentence)
    kept.kind, kept.named = message.kind[:20], message.person.plain() if message.person else {}
    _settle(session, kept, message)
    session.flush()
    return kept


def dismiss(session: Session, message_id: int, *, reason: str) -> Hl7Message:
    """Say that a message is nobody's here, or not to be mended; it stays, with the reason. Raises IllegalTransition."""
    kept = _to_decide(session, message_id)
    if kept.state not in (Hl7State.UNMATCHED, Hl7State.DEAD):
        raise IllegalTransition("Somebody has decided this already.")
    said = line(reason, field="reason", longest=500)
    if not said:
        raise Invalid("Please say why.", field="reason")
    kept.state = Hl7State.DISMISSED
    _decided(kept, said, current().user_id)
    for each in kept.results:
        if each.outcome == Hl7Outcome.WAITING:
            each.outcome, each.reason = Hl7Outcome.REFUSED, said
    session.flush()
    return kept


def balance(session: Session) -> dict[str, dict[str, int]]:
    """How many messages and results there are by what became of them: nothing is unaccounted for."""

    def counted(model: type[Hl7Message | Hl7Result], condition: ColumnElement[bool]) -> int:
        found = select(model.id).where(condition).subquery()
        return session.scalar(select(func.count()).select_from(found)) or 0

    states = {str(state): counted(Hl7Message, Hl7Message.state == state) for state in Hl7State}
    outcomes = {str(outcome): counted(Hl7Result, Hl7Result.outcome == outcome) for outcome in Hl7Outcome}
    return {
        "messages": {name: count for name, count in states.items() if count},
        "results": {name: count for name, count in outcomes.items() if count},
    }


__all__ = [
    "Answer",
    "assign",
    "balance",
    "candidates",
    "dismiss",
    "match",
    "refuse",
    "reread",
    "show",
    "store",
    "take_in",
    "undecided",
    "waiting",
]
