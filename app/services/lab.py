"""The laboratory: ordered, collected, received, entered, verified by a second person, released."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, joinedload, selectinload
from stdnum import luhn

from app import events, guard
from app.actor import current
from app.errors import Conflict, Held, IllegalTransition, Invalid, NotAClinician, NotFound, SecondPerson
from app.services import flags
from app.services.flags import Comparator, Conversion, Delta, Flag, Limits, Range, Subject
from app.services.words import line
from models.base import now
from models.clinical import Observation
from models.codes import (
    LABORATORY,
    LABORATORY_REPORTS,
    STANDING,
    AnswerKind,
    DiagnosticReportStatus,
    ObservationStatus,
    RequestPriority,
    RequestStatus,
    SpecimenRejection,
    SpecimenStatus,
)
from models.lab import (
    CriticalResult,
    DiagnosticReport,
    LabPanel,
    LabTest,
    ObservationHistory,
    ReferenceRange,
    ServiceRequest,
    Specimen,
    accession_sequence,
)
from models.patients import Patient

NUMBER = re.compile(r"(<=|>=|<|>|≤|≥)?\s*([+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d{1,2})?)")
MARKS = {"≤": "<=", "≥": ">=", None: ""}


def _practitioner() -> int:
    """The person at work. Raises NotAClinician for an account that is nobody of the staff."""
    number = current().practitioner_id
    if number is None:
        raise NotAClinician
    return number


# ---- ordering ----------------------------------------------------------------------------------------------------


def order(
    session: Session,
    *,
    patient_id: int,
    test_id: int | None = None,
    panel_id: int | None = None,
    encounter_id: int | None = None,
    priority: str = RequestPriority.ROUTINE,
    note: str = "",
) -> ServiceRequest:
    """Order a test or a panel of the catalogue. Raises Invalid, naming the field, and NotFound."""
    guard.require("create", "ServiceRequest")
    if priority not in set(RequestPriority):
        raise Invalid("Please choose how soon it is needed.", field="priority")
    wanted = _orderable(session, test_id, panel_id)
    patient = session.get(Patient, patient_id)
    if patient is None:
        raise NotFound
    if not patient.active:
        raise Invalid("This record is closed, so nothing can be ordered for it.", field="patient")
    if patient.deceased:
        raise Invalid("This person has died, so nothing can be ordered for them.", field="patient")
    request = ServiceRequest(
        patient_id=patient_id,
        encounter_id=encounter_id,
        status=RequestStatus.ACTIVE,
        priority=priority,
        category=LABORATORY,
        code_system=wanted.code_system,
        code=wanted.code,
        code_display=wanted.name,
        test_id=wanted.id if isinstance(wanted, LabTest) else None,
        panel_id=wanted.id if isinstance(wanted, LabPanel) else None,
        authored_at=now(),
        requester_id=_practitioner(),
        branch_id=current().branch_id,
        note=line(note, field="note", longest=1000),
    )
    session.add(request)
    session.flush()
    return request


def _orderable(session: Session, test_id: int | None, panel_id: int | None) -> LabTest | LabPanel:
    if (test_id is None) == (panel_id is None):
        raise Invalid("Please choose a test or a panel.", field="test")
    found: LabTest | LabPanel | None = (
        session.get(LabTest, test_id) if test_id is not None else session.get(LabPanel, panel_id)
    )
    if found is None or not found.active:
        raise Invalid("The laboratory does not offer this.", field="test")
    return found


def revoke(session: Session, request_id: int, *, reason: str) -> ServiceRequest:
    """Call an order off, before anything of it is verified. Raises IllegalTransition."""
    guard.require("create", "ServiceRequest")
    request = _held(session, request_id)
    if request.status not in (RequestStatus.ACTIVE, RequestStatus.ON_HOLD):
        raise IllegalTransition("Only an open order can be called off.")
    if any(result.verified_at is not None for result in results_of(session, request)):
        raise IllegalTransition("Some of it is verified already.")
    request.status = RequestStatus.REVOKED
    request.status_reason = line(reason, field="reason", longest=500) or _missing("reason")
    for result in results_of(session, request):
        result.status = ObservationStatus.CANCELLED
    session.flush()
    return request


def _missing(field: str) -> str:
    raise Invalid("Please say why.", field=field)


def _held(session: Session, request_id: int) -> ServiceRequest:
    """An order, locked until the transaction ends. Raises NotFound."""
    statement = select(ServiceRequest).where(ServiceRequest.id == request_id, ServiceRequest.category == LABORATORY)
    request = session.scalars(statement.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if request is None:
        raise NotFound
    return request


def tests_of(session: Session, request: ServiceRequest) -> Sequence[LabTest]:
    """What an order asks for, in the order of its panel."""
    statement = select(LabTest).options(selectinload(LabTest.ranges), selectinload(LabTest.conversions))
    if request.test_id is not None:
        return session.scalars(statement.where(LabTest.id == request.test_id)).all()
    if request.panel_id is None:
        return []
    panel = session.scalars(
        select(LabPanel).where(LabPanel.id == request.panel_id).options(selectinload(LabPanel.tests))
    ).one()
    numbers = [test.id for test in panel.tests]
    found = {test.id: test for test in session.scalars(statement.where(LabTest.id.in_(numbers)))}
    return [found[number] for number in numbers]


def results_of(session: Session, request: ServiceRequest) -> Sequence[Observation]:
    """The results of an order that count, in order."""
    statement = select(Observation).where(
        Observation.service_request_id == request.id,
        Observation.status.not_in([ObservationStatus.ENTERED_IN_ERROR, ObservationStatus.CANCELLED]),
    )
    return session.scalars(statement.order_by(Observation.id)).all()


# ---- specimens ---------------------------------------------------------------------------------------------------


def collect(session: Session, request_ids: Iterable[int], *, collected_at: datetime | None = None) -> list[Specimen]:
    """Take the specimens for some orders of one patient: one for each type that is needed, each with a number.

    Raises IllegalTransition where an order has its specimen, and Invalid.
    """
    guard.require("create", "Specimen")
    requests = [_held(session, request_id) for request_id in sorted(set(request_ids))]
    if not requests or len({request.patient_id for request in requests}) != 1:
        raise Invalid("Choose orders of one patient.", field="orders")
    at = collected_at or now()
    if at.tzinfo is None or not now() - timedelta(days=7) <= at <= now() + timedelta(minutes=5):
        raise Invalid("A specimen was taken within the last seven days.", field="collected_at")
    branch_id = current().branch_id or requests[0].branch_id
    if branch_id is None:
        raise Invalid("Please choose a branch.", field="branch")
    by_type: dict[str, list[ServiceRequest]] = {}
    for request in requests:
        if request.status != RequestStatus.ACTIVE or request.specimen_id is not None:
            raise IllegalTransition("One of these orders has its specimen already, or is over.")
        tests = tests_of(session, request)  # those of a panel are all done on one specimen
        by_type.setdefault(tests[0].specimen_type if tests else "", []).append(request)
    taken = []
    for kind, wanted in by_type.items():
        specimen = Specimen(
            patient_id=requests[0].patient_id,
            accession=_accession(session),
            type_code=kind,
            branch_id=branch_id,
            collected_at=at,
            collector_id=current().practitioner_id,
        )
        session.add(specimen)
        session.flush()
        for request in wanted:
            request.specimen_id = specimen.id
        taken.append(specimen)
    session.flush()
    return taken


def _accession(session: Session) -> str:
    """S, the next number, its Luhn digit; given once."""
    number = session.scalars(
        select(func.nextval(accession_sequence.name)).select_from(func.generate_series(1, 1))
    ).one()
    return f"S{number}{luhn.calc_check_digit(str(number))}"


def is_accession(text: str) -> bool:
    """Whether a text is the number of a specimen, with the right check digit."""
    return bool(re.fullmatch(r"[Ss]\d{7,}", text)) and bool(luhn.is_valid(text[1:]))


def specimen_by(session: Session, accession: str, *, locked: bool = False) -> Specimen:
    """The specimen with a number, as scanned or typed. Raises Invalid for a mistyped one, and NotFound."""
    text = accession.strip().upper()
    if not is_accession(text):
        raise Invalid("This is not the number of a specimen. Please scan it again.", field="accession")
    statement = select(Specimen).where(Specimen.accession == text)
    if locked:
        statement = statement.with_for_update()
    specimen = session.scalars(statement).one_or_none()
    if specimen is None:
        raise NotFound
    return specimen


def receive(session: Session, accession: str) -> Specimen:
    """The specimen has come to the laboratory. Raises IllegalTransition for one that came already or was rejected."""
    specimen = specimen_by(session, accession, locked=True)
    if specimen.status != SpecimenStatus.AVAILABLE:
        raise IllegalTransition("This specimen was rejected.")
    if specimen.received_at is not None:
        raise IllegalTransition("This specimen was received already.")
    specimen.received_at, specimen.receiver_id = now(), current().practitioner_id
    session.flush()
    return specimen


def reject(session: Session, accession: str, *, reason: str, note: str = "") -> Specimen:
    """The specimen cannot be used; its orders wait for another one. Raises Invalid, IllegalTransition."""
    if reason not in set(SpecimenRejection):
        raise Invalid("Please choose what is wrong with it.", field="reason")
    specimen = specimen_by(session, accession, locked=True)
    if specimen.status != SpecimenStatus.AVAILABLE:
        raise IllegalTransition("This specimen was rejected already.")
    waiting = session.scalars(select(ServiceRequest).where(ServiceRequest.specimen_id == specimen.id)).all()
    for request in waiting:
        if any(result.verified_at is not None for result in results_of(session, request)):
            raise IllegalTransition("Results of this specimen are verified. Withdraw them first.")
        for result in results_of(session, request):
            result.status = ObservationStatus.CANCELLED
        request.specimen_id = None
    specimen.status, specimen.rejection = SpecimenStatus.UNSATISFACTORY, reason
    specimen.rejection_note = line(note, field="note", longest=500)
    session.flush()
    return specimen


# ---- results -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """What a result is: a number with its comparator, a coded answer, or words."""

    number: Decimal | None = None
    comparator: Comparator = ""
    code: str | None = None
    text: str | None = None


def read(test: LabTest, text: str) -> Value:
    """A result as it was typed or scanned, for a test. Raises Invalid for what the test cannot be answered with."""
    written = line(text, field="value", longest=2000)
    if not written:
        raise Invalid("Please enter a result.", field="value")
    if test.kind == AnswerKind.TEXT:
        return Value(text=written)
    if test.kind == AnswerKind.CODED:
        for answer in test.answers:
            if written.casefold() in (str(answer["code"]).casefold(), str(answer["display"]).casefold()):
                return Value(code=str(answer["code"]), text=str(answer["display"]))
        raise Invalid("Please choose one of the answers of this test.", field="value")
    found = NUMBER.fullmatch(written)
    if found is None:
        raise Invalid("This test is answered with a number, such as 4.2 or <0.5.", field="value")
    try:
        number = Decimal(found[2].replace(",", "."))
    except InvalidOperation as error:
        raise Invalid("This test is answered with a number, such as 4.2 or <0.5.", field="value") from error
    return Value(number, cast(Comparator, MARKS.get(found[1], found[1])))


def limits_of(test: LabTest, row: ReferenceRange | None = None) -> Limits:
    """The limits of a test, with those of one of its ranges."""
    mine = {
        name: getattr(test, name) for name in ("reporting_low", "reporting_high", "plausible_low", "plausible_high")
    }
    if row is not None:
        mine |= {name: getattr(row, name) for name in ("low", "high", "critical_low", "critical_high")}
    return Limits(**mine)


def ranges_of(test: LabTest) -> list[Range]:
    """The ranges of a test, as the rules know them."""
    return [
        Range(
            limits_of(test, row),
            test.unit,
            sex=row.sex,
            since=flags.Age(row.since_age, cast(flags.AgeUnit, row.since_unit)) if row.since_age is not None else None,
            until=flags.Age(row.until_age, cast(flags.AgeUnit, row.until_unit)) if row.until_age is not None else None,
            pregnant=row.pregnant,
            valid_from=row.valid_from,
            valid_until=row.valid_until,
        )
        for row in test.ranges
    ]


def subject_of(patient: Patient, collected_at: datetime) -> Subject:
    """Whose result it is, as the rules ask for it."""
    return Subject(
        collected_on=collected_at.date(),
        born=patient.birth_date,
        born_precision=cast(Any, patient.birth_precision),
        sex=patient.sex_for_clinical_use,
    )


def enter(
    session: Session,
    request_id: int,
    test_id: int,
    text: str,
    *,
    unit: str = "",
    note: str = "",
    seen: int | None = None,
) -> Observation:
    """Write a result down, flagged by the limits for this patient, for a second person to verify.

    A value in another unit is converted by the test's table, or refused. `seen` is the version of the result that was
    before the person, 0 for none. Raises Invalid, naming the field, IllegalTransition where the order is over or the
    result is verified, and Conflict where it is not the one that was seen.
    """
    guard.require("update", "Specimen")  # results of the laboratory are its alone
    guard.require("create", "Observation")
    request = _held(session, request_id)
    if request.status != RequestStatus.ACTIVE:
        raise IllegalTransition("This order is over, so no result can be entered for it.")
    specimen = session.get(Specimen, request.specimen_id) if request.specimen_id is not None else None
    if specimen is None or specimen.received_at is None:
        raise IllegalTransition("The specimen of this order has not been received yet.")
    test = next((each for each in tests_of(session, request) if each.id == test_id), None)
    if test is None:
        raise Invalid("This test is not part of the order.", field="test")
    patient = session.get_one(Patient, request.patient_id)
    before = next((each for each in results_of(session, request) if each.test_id == test_id), None)
    if before is not None and before.verified_at is not None:
        raise IllegalTransition("This result is verified. Correct it instead.")
    if seen is not None and seen != (before.version if before else 0):
        raise Conflict("Somebody else entered this result meanwhile. Look at it, then enter yours again.")
    result = before or Observation(
        patient_id=request.patient_id,
        encounter_id=request.encounter_id,
        category=LABORATORY,
        code_system=test.code_system,
        code=test.code,
        code_display=test.name,
        service_request_id=request.id,
        test_id=test.id,
    )
    result.status = ObservationStatus.PRELIMINARY
    result.specimen_id = specimen.id
    result.effective_at = specimen.collected_at
    result.branch_id, result.recorder_id = current().branch_id, _practitioner()
    result.note = line(note, field="note", longest=1000)
    _put(session, result, test, patient, read(test, text), unit)
    if before is None:
        session.add(result)
    session.flush()
    return result


def _put(session: Session, result: Observation, test: LabTest, patient: Patient, value: Value, unit: str) -> None:
    """Give a result its value, and freeze what it was held against. Raises Invalid."""
    assert result.effective_at is not None
    number = value.number
    if number is not None and unit and unit != test.unit:
        table = [Conversion(each.source, each.target, each.factor) for each in test.conversions]
        number = flags.convert(number, unit, test.unit, table)
        if number is None:
            raise Invalid(f"The laboratory cannot convert {unit} to {test.unit or 'no unit'} here.", field="unit")
    flag, chosen = Flag(), None
    if number is not None:
        if test.decimals is not None and unit in ("", test.unit):
            number = _rounded(number, test.decimals)
        if not flags.plausible(number, limits_of(test)):
            raise Invalid("Nobody can have such a value. Please check it, and the unit.", field="value")
        chosen = flags.choose(ranges_of(test), subject_of(patient, result.effective_at))
        flag = flags.interpret(number, chosen.limits if chosen else limits_of(test), value.comparator)
    elif value.code is not None:
        sorted_by = {mark: {a["code"] for a in test.answers if a.get("flag") == mark} for mark in ("N", "A", "AA")}
        flag = flags.interpret_code(value.code, sorted_by["N"], sorted_by["A"], sorted_by["AA"])
    result.value_quantity, result.value_unit = number, test.unit if number is not None else None
    result.comparator = value.comparator
    result.value_code, result.value_text = value.code, value.text
    result.interpretation, result.off_scale = flag.code, flag.scale
    result.reference_range = [printed(chosen)] if chosen is not None else []
    result.rules = flags.RULES
    result.delta = _delta(session, result, test)
    result.held = "delta" if result.delta else ""


def _rounded(number: Decimal, decimals: int) -> Decimal:
    """As many decimals as the test has; a number with more is as exact as it was sent."""
    exponent = number.as_tuple().exponent
    return (
        number.quantize(Decimal(1).scaleb(-decimals)) if isinstance(exponent, int) and -exponent < decimals else number
    )


def printed(chosen: Range) -> dict[str, Any]:
    """A range as FHIR's Observation.referenceRange."""
    limits, found = chosen.limits, {}
    for name, value in (("low", limits.low), ("high", limits.high)):
        if value is not None:
            found[name] = {"value": str(value), "unit": chosen.unit, "code": chosen.unit}
    return found


def last_before(session: Session, result: Observation) -> Observation | None:
    """The last number of the same patient and test before a result, verified and in the same unit; None for none."""
    earlier = select(Observation).where(
        Observation.patient_id == result.patient_id,
        Observation.code == result.code,
        Observation.effective_at < result.effective_at,
        Observation.status.in_(STANDING),
        or_(Observation.verified_at.is_not(None), Observation.test_id.is_(None)),
        Observation.value_quantity.is_not(None),
        Observation.value_unit == result.value_unit,
        Observation.comparator == "",
    )
    with session.no_autoflush:
        return session.scalars(
            earlier.order_by(Observation.effective_at.desc(), Observation.id.desc()).limit(1)
        ).first()


def _delta(session: Session, result: Observation, test: LabTest) -> str | None:
    """Whether a number has changed significantly since the last one that compares."""
    if result.value_quantity is None or result.comparator or (test.delta_amount is None and test.delta_share is None):
        return None
    assert result.effective_at is not None
    last = last_before(session, result)
    if last is None or last.value_quantity is None or last.effective_at is None:
        return None
    rule = Delta(timedelta(days=test.delta_days), test.delta_amount, test.delta_share)
    return flags.change(result.value_quantity, last.value_quantity, result.effective_at - last.effective_at, rule)


def verify(session: Session, observation_id: int, *, despite: str = "", seen: int | None = None) -> Observation:
    """Say as a second person that a result is right. One that is held needs a reason to go on.

    `seen` is the version of it that was before the person. Raises SecondPerson for whoever entered it, Held,
    IllegalTransition, and Conflict where it is not the one that was seen. A critical one is made known at once.
    """
    guard.require("update", "Specimen")
    guard.require("update", "Observation")
    result = _result(session, observation_id)
    corrected = result.status == ObservationStatus.CORRECTED and result.verified_at is None
    if result.status != ObservationStatus.PRELIMINARY and not corrected:
        raise IllegalTransition("Only a result that was entered and not verified yet can be verified.")
    if seen is not None and seen != result.version:
        raise Conflict("This result was changed meanwhile. Look at it again.")
    me = _practitioner()
    if result.recorder_id == me:
        raise guard.refuse("update", "Observation", SecondPerson)
    reason = line(despite, field="despite", longest=500)
    if result.held and not reason:
        raise Held
    if result.held:
        result.note = f"{result.note} {reason}".strip()
    result.held = ""
    result.status = ObservationStatus.CORRECTED if corrected else ObservationStatus.FINAL
    result.verified_at, result.verified_by_id = now(), me
    if result.issued_at is not None:  # it was out already, so whoever read the wrong one reads this one at once
        result.issued_at = result.released_at = now()
        events.emit(session, events.ResultsReleased(result.service_request_id or 0, result.patient_id, None))
    session.flush()
    if Flag(result.interpretation).critical:
        if result.released_at is None and result.service_request_id is not None:
            release(session, result.service_request_id)  # whoever is told of it at once may look at it at once
        make_known(session, result)
    return result


def _result(session: Session, observation_id: int) -> Observation:
    """A laboratory result, locked. Raises NotFound."""
    statement = select(Observation).where(Observation.id == observation_id, Observation.category == LABORATORY)
    result = session.scalars(statement.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if result is None:
        raise NotFound
    return result


def told(result: Observation) -> str:
    """A value with its comparator and unit, as it is read out."""
    if result.value_quantity is not None:
        return f"{result.comparator}{result.value_quantity.normalize():f} {result.value_unit or ''}".strip()
    return result.value_text or ""


def make_known(session: Session, result: Observation) -> None:
    """Write down that somebody must be told, once each time a result takes a value, and say so after the commit."""
    same = (CriticalResult.observation_id == result.id, CriticalResult.value == told(result))
    last = session.scalars(select(CriticalResult).where(*same).order_by(CriticalResult.id.desc()).limit(1)).first()
    if last is not None and (last.acknowledged_at is None or not _changed_since(session, result, last.raised_at)):
        return
    request = session.get(ServiceRequest, result.service_request_id) if result.service_request_id else None
    critical = CriticalResult(
        patient_id=result.patient_id,
        observation_id=result.id,
        flag=result.interpretation or "",
        value=told(result),
        raised_at=now(),
        branch_id=request.branch_id if request else result.branch_id,
        target_id=request.requester_id if request else None,
    )
    session.add(critical)
    session.flush()
    events.emit(session, events.CriticalRaised(critical.id, critical.patient_id, critical.target_id))


def _changed_since(session: Session, result: Observation, at: datetime) -> bool:
    """Whether a result was anything else since a moment, so that whoever was told of its value knows another."""
    kept = select(ObservationHistory).where(
        ObservationHistory.observation_id == result.id,
        ObservationHistory.until_at >= at,
        or_(*(ObservationHistory.was.has_key(name) for name in ("value_quantity", "value_code", "value_text"))),
    )
    return session.scalars(kept.limit(1)).first() is not None


def release(session: Session, request_id: int) -> DiagnosticReport:
    """Let those who ordered see the verified results; the order is done once all of its tests are.

    Raises IllegalTransition where nothing new is verified.
    """
    guard.require("create", "DiagnosticReport")
    request = _held(session, request_id)
    if request.status != RequestStatus.ACTIVE:
        raise IllegalTransition("This order is over.")
    tests = {test.id: test for test in tests_of(session, request)}
    results = results_of(session, request)
    fresh = [each for each in results if each.verified_at is not None and each.released_at is None]
    if not fresh:
        raise IllegalTransition("Nothing of this order is verified and waiting for release.")
    at = now()
    for each in fresh:
        each.issued_at = each.released_at = at
        each.portal_at = told_at(tests.get(each.test_id or 0), at)
    whole = len([each for each in results if each.released_at is not None]) >= len(tests)
    report = DiagnosticReport(
        patient_id=request.patient_id,
        encounter_id=request.encounter_id,
        status=DiagnosticReportStatus.FINAL if whole else DiagnosticReportStatus.PARTIAL,
        category=LABORATORY_REPORTS[0],
        code_system=request.code_system,
        code=request.code,
        code_display=request.code_display,
        effective_at=fresh[0].effective_at,
        issued_at=at,
        service_request_id=request.id,
        portal_at=max(outs) if (outs := [each.portal_at for each in fresh if each.portal_at is not None]) else None,
    )
    session.add(report)
    if whole:
        request.status, request.released_at = RequestStatus.COMPLETED, at
    session.flush()
    events.emit(session, events.ResultsReleased(request.id, request.patient_id, request.requester_id))
    return report


def told_at(test: LabTest | None, at: datetime) -> datetime | None:
    """From when on a patient sees a result that is out at a moment; None for never, as somebody says it to them."""
    if test is None:
        return at
    return None if test.sensitive else at + timedelta(hours=test.release_hours)


def correct(session: Session, observation_id: int, text: str, *, reason: str, unit: str = "") -> Observation:
    """Give a verified result another value; what it was stays in its history.

    Nobody reads the wrong one any longer, and the new one waits for a second person. Raises IllegalTransition, Invalid.
    """
    guard.require("update", "Specimen")
    guard.require("update", "Observation")
    result = _result(session, observation_id)
    if result.status not in STANDING or result.verified_at is None:
        raise IllegalTransition("Only a verified result is corrected.")
    why = line(reason, field="reason", longest=500) or _missing("reason")
    test = session.scalars(
        select(LabTest)
        .where(LabTest.id == result.test_id)
        .options(selectinload(LabTest.ranges), selectinload(LabTest.conversions))
    ).one_or_none()
    if test is None:
        raise IllegalTransition("This result is not one of this laboratory.")
    patient = session.get_one(Patient, result.patient_id)
    result.status, result.note = ObservationStatus.CORRECTED, why
    result.verified_at = result.verified_by_id = result.released_at = result.read_at = None
    result.recorder_id = _practitioner()
    _put(session, result, test, patient, read(test, text), unit)
    session.flush()
    return result


def withdraw(session: Session, observation_id: int, *, reason: str) -> Observation:
    """Say that a result was never right; it stays to be read, and counts for nothing. Raises IllegalTransition."""
    guard.require("update", "Specimen")
    guard.require("update", "Observation")
    result = _result(session, observation_id)
    if result.status == ObservationStatus.ENTERED_IN_ERROR:
        raise IllegalTransition("This result is withdrawn already.")
    result.note = line(reason, field="reason", longest=500) or _missing("reason")
    result.status = ObservationStatus.ENTERED_IN_ERROR
    result.read_at = None
    session.flush()
    if result.released_at is not None:  # whoever read it reads at once that it was never right
        events.emit(session, events.ResultsReleased(result.service_request_id or 0, result.patient_id, None))
    return result


# ---- worklists ---------------------------------------------------------------------------------------------------


def open_orders(
    session: Session, *, branch_id: int | None = None, patient_id: int | None = None, most: int = 500
) -> Sequence[ServiceRequest]:
    """The laboratory's orders that are not done, the urgent ones first, then the oldest."""
    statement = select(ServiceRequest).where(
        ServiceRequest.category == LABORATORY, ServiceRequest.status == RequestStatus.ACTIVE
    )
    if branch_id is not None:
        statement = statement.where(ServiceRequest.branch_id == branch_id)
    if patient_id is not None:
        statement = statement.where(ServiceRequest.patient_id == patient_id)
    found = session.scalars(
        statement.options(
            joinedload(ServiceRequest.patient),
            joinedload(ServiceRequest.requester),
            joinedload(ServiceRequest.specimen),
        )
        .order_by(ServiceRequest.authored_at, ServiceRequest.id)
        .limit(most)
    ).all()
    urgency = {name: nth for nth, name in enumerate(reversed(list(RequestPriority)))}
    return sorted(found, key=lambda request: urgency[RequestPriority(request.priority)])


class Step(StrEnum):
    """What is next for an order."""

    COLLECT = "collect"
    RECEIVE = "receive"
    ENTER = "enter"
    VERIFY = "verify"
    RELEASE = "release"
    DONE = "done"


@dataclass(frozen=True)
class Standing:
    """An order with each of its tests, and the result of the test once there is one."""

    request: ServiceRequest
    lines: tuple[tuple[LabTest, Observation | None], ...]

    @property
    def entered(self) -> int:
        """How many of its tests have a result."""
        return sum(result is not None for _, result in self.lines)

    @property
    def unverified(self) -> list[Observation]:
        """The results that wait for a second person."""
        return [result for _, result in self.lines if result is not None and result.verified_at is None]

    @property
    def unreleased(self) -> list[Observation]:
        """The verified results nobody who ordered them sees yet."""
        found = [result for _, result in self.lines if result is not None and result.verified_at is not None]
        return [result for result in found if result.released_at is None]

    @property
    def step(self) -> Step:
        """What is next."""
        if self.request.status != RequestStatus.ACTIVE:
            return Step.VERIFY if self.unverified else Step.DONE
        if self.request.specimen is None:
            return Step.COLLECT
        if self.request.specimen.received_at is None:
            return Step.RECEIVE
        if self.entered < len(self.lines):
            return Step.ENTER
        return Step.VERIFY if self.unverified else Step.RELEASE


def standings(session: Session, requests: Sequence[ServiceRequest]) -> list[Standing]:
    """How orders stand, in the order given; each must have its specimen loaded."""
    panels = {request.panel_id for request in requests if request.panel_id is not None}
    of_panel = {
        panel.id: panel.tests
        for panel in session.scalars(
            select(LabPanel).where(LabPanel.id.in_(panels)).options(selectinload(LabPanel.tests))
        )
    }
    alone = {request.test_id for request in requests if request.test_id is not None}
    by_id = {test.id: test for test in session.scalars(select(LabTest).where(LabTest.id.in_(alone)))}
    found = session.scalars(
        select(Observation)
        .where(
            Observation.service_request_id.in_([request.id for request in requests]),
            Observation.status.not_in([ObservationStatus.ENTERED_IN_ERROR, ObservationStatus.CANCELLED]),
        )
        .options(joinedload(Observation.recorder), joinedload(Observation.verified_by))
        .order_by(Observation.id)
    )
    results = {(each.service_request_id, each.test_id): each for each in found}
    standing = []
    for request in requests:
        tests = of_panel.get(request.panel_id or 0, [])
        if request.test_id is not None:
            tests = [by_id[request.test_id]]
        standing.append(Standing(request, tuple((test, results.get((request.id, test.id))) for test in tests)))
    return standing


def standing_of(session: Session, request_id: int) -> Standing:
    """How one order stands, whatever became of it. Raises NotFound."""
    statement = select(ServiceRequest).where(ServiceRequest.id == request_id, ServiceRequest.category == LABORATORY)
    request = session.scalars(
        statement.options(
            joinedload(ServiceRequest.patient),
            joinedload(ServiceRequest.requester),
            joinedload(ServiceRequest.specimen),
        )
    ).one_or_none()
    if request is None:
        raise NotFound
    return standings(session, [request])[0]


def unverified(session: Session, *, most: int = 200) -> Sequence[Observation]:
    """The results that wait for a second person, the oldest first."""
    waits = or_(Observation.status == ObservationStatus.PRELIMINARY, Observation.status == ObservationStatus.CORRECTED)
    statement = select(Observation).where(
        Observation.category == LABORATORY,
        Observation.test_id.is_not(None),
        Observation.service_request_id.is_not(None),
        Observation.verified_at.is_(None),
        waits,
    )
    return session.scalars(
        statement.options(joinedload(Observation.patient), joinedload(Observation.recorder))
        .order_by(Observation.updated_at, Observation.id)
        .limit(most)
    ).all()


def history(session: Session, observation_ids: Iterable[int]) -> dict[int, list[ObservationHistory]]:
    """What results were before each change, the newest change first, by the id of the result."""
    found: dict[int, list[ObservationHistory]] = {}
    statement = select(ObservationHistory).where(ObservationHistory.observation_id.in_(list(observation_ids)))
    for row in session.scalars(statement.order_by(ObservationHistory.id.desc())):
        found.setdefault(row.observation_id, []).append(row)
    return found


def withdrawn(session: Session, request_id: int) -> Sequence[Observation]:
    """The results of an order that were never right."""
    statement = select(Observation).where(
        Observation.service_request_id == request_id, Observation.status == ObservationStatus.ENTERED_IN_ERROR
    )
    return session.scalars(statement.order_by(Observation.id)).all()


def on_the_way(session: Session, branch_id: int, *, most: int = 100) -> Sequence[Specimen]:
    """Specimens taken at a branch that have not come to the laboratory, the oldest first."""
    statement = select(Specimen).where(
        Specimen.branch_id == branch_id,
        Specimen.status == SpecimenStatus.AVAILABLE,
        Specimen.received_at.is_(None),
        Specimen.collected_at > now() - timedelta(days=14),
    )
    return session.scalars(
        statement.options(joinedload(Specimen.patient), selectinload(Specimen.requests))
        .order_by(Specimen.collected_at, Specimen.id)
        .limit(most)
    ).all()


def lately_received(session: Session, branch_id: int, *, most: int = 10) -> Sequence[Specimen]:
    """The specimens received last at a branch, within a day, the newest first."""
    statement = select(Specimen).where(
        Specimen.branch_id == branch_id, Specimen.received_at > now() - timedelta(days=1)
    )
    return session.scalars(
        statement.options(joinedload(Specimen.patient), selectinload(Specimen.requests))
        .order_by(Specimen.received_at.desc(), Specimen.id.desc())
        .limit(most)
    ).all()


def labelled(session: Session, specimen_ids: Iterable[int]) -> Sequence[Specimen]:
    """Specimens with whose they are and what is done on them, for their labels."""
    statement = select(Specimen).where(Specimen.id.in_(list(specimen_ids)))
    return session.scalars(
        statement.options(joinedload(Specimen.patient), selectinload(Specimen.requests)).order_by(Specimen.id)
    ).all()


def offered(session: Session) -> tuple[Sequence[LabPanel], Sequence[LabTest]]:
    """The panels and the tests that can be ordered, by name."""
    panels = select(LabPanel).where(LabPanel.active).options(selectinload(LabPanel.tests)).order_by(LabPanel.name)
    tests = select(LabTest).where(LabTest.active).order_by(LabTest.name, LabTest.id)
    return session.scalars(panels).all(), session.scalars(tests).all()


__all__ = [
    "Standing",
    "Step",
    "collect",
    "correct",
    "enter",
    "history",
    "labelled",
    "last_before",
    "lately_received",
    "make_known",
    "offered",
    "on_the_way",
    "open_orders",
    "order",
    "receive",
    "reject",
    "release",
    "revoke",
    "standing_of",
    "standings",
    "told",
    "unverified",
    "verify",
    "withdraw",
    "withdrawn",
]
