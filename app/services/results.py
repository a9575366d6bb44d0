"""Reading results: the table over time, the course of a test, one result with what it was, and the inbox."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session, joinedload, selectinload

from app import guard
from app.actor import Actor, current
from app.errors import NotFound
from app.services import clinical, flags, lab
from models.base import now
from models.clinical import Observation
from models.codes import LABORATORY, ObservationStatus
from models.lab import DiagnosticReport, LabPanel, LabTest, ObservationHistory, ServiceRequest, Specimen
from models.organization import Practitioner
from models.patients import Patient

COLUMNS = 7
"""Times of collection on a page of the table."""
MOST = 600
"""Results that are loaded for a page of the table, or drawn in one course."""
INBOX = 200
"""Unread results that are shown at once."""
WHEN = func.coalesce(Observation.effective_at, Observation.created_at)


def may_read() -> None:
    """Raises Forbidden for whoever is shown no results of a laboratory, as a nurse is shown only vital signs."""
    guard.require("read", "Observation")
    if not clinical.sees_kind(LABORATORY):
        raise guard.refuse("read", "Observation")


def _out() -> ColumnElement[bool]:
    """What has left the laboratory, whoever asks: a result of another one has left it by coming here."""
    return or_(Observation.test_id.is_(None), Observation.released_at.is_not(None))


def _of(patient_id: int) -> Select[Observation]:
    """The results of a patient that were not called off."""
    return select(Observation).where(
        Observation.patient_id == patient_id,
        Observation.category == LABORATORY,
        Observation.status != ObservationStatus.CANCELLED,
        _out(),
    )


def when(result: Observation) -> datetime:
    """When the specimen was taken, as far as that is known."""
    return result.effective_at or result.created_at


def out_at(result: Observation) -> datetime:
    """Since when it can be read."""
    return result.released_at or result.issued_at or result.created_at


# ---- the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """Some times of collection, the newest first, with each result; `earlier` is where the next page begins."""

    times: tuple[datetime, ...]
    results: tuple[Observation, ...]
    earlier: datetime | None


def cumulative(
    session: Session, patient_id: int, *, codes: Collection[str] | None = None, before: datetime | None = None
) -> Page:
    """A page of a patient's results, of some tests by code or of all, taken before a moment."""
    may_read()
    statement = _of(patient_id)
    if codes is not None:
        statement = statement.where(Observation.code.in_(list(codes)))
    if before is not None:
        statement = statement.where(before > WHEN)
    found = session.scalars(statement.order_by(WHEN.desc(), Observation.id).limit(MOST + 1)).all()
    times = list(dict.fromkeys(when(each) for each in found))
    more = len(times) > COLUMNS or len(found) > MOST
    if len(found) > MOST and len(times) > 1:
        times.pop()  # the last one may have more results than were loaded
    times = times[:COLUMNS]
    shown = tuple(each for each in found if when(each) in times)
    return Page(tuple(times), shown, times[-1] if more and times else None)


def codes_of(session: Session, panel_id: int) -> list[str]:
    """The codes of a panel's tests, in its order. Raises NotFound."""
    panel = session.scalars(
        select(LabPanel).where(LabPanel.id == panel_id).options(selectinload(LabPanel.tests))
    ).one_or_none()
    if panel is None:
        raise NotFound
    return [test.code for test in panel.tests]


def panels(session: Session) -> Sequence[LabPanel]:
    """The panels a table is narrowed by, by name."""
    return session.scalars(select(LabPanel).order_by(LabPanel.name)).all()


# ---- one test, one result ----------------------------------------------------------------------------------------


def course(session: Session, patient_id: int, code: str, *, most: int = 100) -> Sequence[Observation]:
    """The newest results of one test, the oldest first, withdrawn ones among them. Raises NotFound for none."""
    may_read()
    newest = _of(patient_id).where(Observation.code == code).order_by(WHEN.desc(), Observation.id.desc())
    found = list(reversed(session.scalars(newest.limit(most)).all()))
    if not found:
        raise NotFound
    return found


def critical_limits(
    session: Session, patient: Patient, results: Iterable[Observation]
) -> dict[int, tuple[Decimal | None, Decimal | None]]:
    """By result, what was critical for this patient when its specimen was taken; none where that is not known."""
    results = list(results)
    wanted = {each.test_id for each in results if each.test_id is not None}
    if not wanted:
        return {}
    statement = select(LabTest).where(LabTest.id.in_(wanted)).options(selectinload(LabTest.ranges))
    tests = {test.id: test for test in session.scalars(statement)}
    found = {}
    for each in results:
        test = tests.get(each.test_id or 0)
        if test is None or each.value_unit != test.unit:
            continue
        chosen = flags.choose(lab.ranges_of(test), lab.subject_of(patient, when(each)))
        if chosen is not None:
            found[each.id] = (chosen.limits.critical_low, chosen.limits.critical_high)
    return found


def show(session: Session, observation_id: int) -> Observation:
    """One result with who entered and verified it. Raises NotFound."""
    may_read()
    statement = select(Observation).where(Observation.id == observation_id, Observation.category == LABORATORY, _out())
    result = session.scalars(
        statement.options(
            joinedload(Observation.patient), joinedload(Observation.recorder), joinedload(Observation.verified_by)
        )
    ).one_or_none()
    if result is None:
        raise guard.refuse("read", "Observation", NotFound)
    return result


@dataclass(frozen=True)
class Was:
    """A result as it was released once, until when, and why and by whom it was changed then."""

    state: dict[str, Any]
    until_at: datetime
    why: str
    by_id: int | None


def earlier(result: Observation, changes: Iterable[ObservationHistory]) -> list[Was]:
    """What a result was each time it had been released, the newest first; `changes` are all of it, the newest first.

    What was entered and put right before anybody outside the laboratory saw it is not among them.
    """
    state: dict[str, Any] = {column.key: getattr(result, column.key) for column in Observation.__table__.columns}
    found = []
    for change in changes:
        older = {**state, **change.was}
        out = older["released_at"] is not None or (older["test_id"] is None and older["issued_at"] is not None)
        said = any(name in change.was for name in SAID)
        if out and (said or "status" in change.was):
            by_id = state["recorder_id"] if said else None
            found.append(Was(older, change.until_at, str(state["note"] or ""), by_id))
        state = older
    return found


SAID = ("value_quantity", "value_text", "value_code", "value_unit", "comparator", "interpretation", "component")
"""What a result says, apart from how it came about."""


def told_of(state: dict[str, Any]) -> str:
    """A value as it was, with its comparator and unit."""
    number = state.get("value_quantity")
    if number is not None:
        return f"{state.get('comparator') or ''}{Decimal(str(number)):f} {state.get('value_unit') or ''}".strip()
    return str(state.get("value_text") or "")


def order_of(session: Session, request_id: int | None) -> ServiceRequest | None:
    """The order a result answers, with its specimen, as far as it is told."""
    if request_id is None or not current().may("read", "ServiceRequest"):
        return None
    loads: list[Any] = [joinedload(ServiceRequest.requester)]
    if current().may("read", "Specimen"):
        loads.append(joinedload(ServiceRequest.specimen))
    statement = select(ServiceRequest).where(ServiceRequest.id == request_id)
    return session.scalars(statement.options(*loads)).one_or_none()


def specimen_of(session: Session, result: Observation) -> Specimen | None:
    """The specimen a result was found in, as far as it is told."""
    if result.specimen_id is None or not current().may("read", "Specimen"):
        return None
    return session.get(Specimen, result.specimen_id)


# ---- an order's results ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """An order with what of it was released, in the order of its panel, and when it was reported."""

    order: ServiceRequest
    results: tuple[Observation, ...]
    reports: tuple[DiagnosticReport, ...]
    missing: tuple[str, ...]
    """Tests of the order nothing was released of."""


def report(session: Session, request_id: int) -> Report:
    """What was released of an order, whoever asks: the laboratory too sees here only what is out. Raises NotFound."""
    may_read()
    guard.require("read", "ServiceRequest")
    statement = select(ServiceRequest).where(ServiceRequest.id == request_id, ServiceRequest.category == LABORATORY)
    loads: list[Any] = [joinedload(ServiceRequest.requester), joinedload(ServiceRequest.patient)]
    loads += [joinedload(ServiceRequest.branch)]
    if current().may("read", "Specimen"):
        loads.append(joinedload(ServiceRequest.specimen))
    order = session.scalars(statement.options(*loads)).one_or_none()
    if order is None or order.patient is None:
        raise guard.refuse("read", "ServiceRequest", NotFound)
    found = session.scalars(
        select(Observation)
        .where(
            Observation.service_request_id == request_id,
            Observation.category == LABORATORY,
            Observation.status != ObservationStatus.CANCELLED,
            _out(),
        )
        .options(joinedload(Observation.verified_by))
        .order_by(Observation.id)
    ).all()
    tests = lab.tests_of(session, order)
    place = {test.id: nth for nth, test in enumerate(tests)}
    reports: Sequence[DiagnosticReport] = []
    if current().may("read", "DiagnosticReport"):
        reports = session.scalars(
            select(DiagnosticReport)
            .where(DiagnosticReport.service_request_id == request_id)
            .order_by(DiagnosticReport.issued_at, DiagnosticReport.id)
        ).all()
    known = {each.test_id for each in found}
    return Report(
        order,
        tuple(sorted(found, key=lambda each: (place.get(each.test_id or 0, len(place)), each.id))),
        tuple(reports),
        tuple(test.name for test in tests if test.id not in known),
    )


# ---- the inbox ---------------------------------------------------------------------------------------------------


def reads_results(actor: Actor) -> bool:
    """Whether somebody orders of the laboratory, so that results come to them."""
    return (
        actor.practitioner_id is not None
        and not actor.viewing_as
        and actor.may("create", "ServiceRequest")
        and actor.may("read", "ServiceRequest")
        and actor.may("read", "Observation")
        and actor.may("update", "Observation")
    )


def _unread(order: Any, orderer: ColumnElement[bool]) -> tuple[ColumnElement[bool], ...]:
    return (
        order.id == Observation.service_request_id,
        orderer,
        Observation.category == LABORATORY,
        _out(),
        Observation.read_at.is_(None),
        Observation.status != ObservationStatus.CANCELLED,
    )


def waiting() -> dict[str, Select[Any]]:
    """The count of the person's unread results; nothing where they order none."""
    if not reads_results(current()):
        return {}
    mine = _unread(ServiceRequest, ServiceRequest.requester_id == current().practitioner_id)
    return {
        "unread": select(func.count())
        .select_from(Observation)
        .join(ServiceRequest, ServiceRequest.id == Observation.service_request_id)
        .where(*mine)
    }


RANK = {"AA": 0, "HH": 0, "LL": 0, "A": 1, "H": 1, "L": 1, "POS": 1, None: 2}


@dataclass(frozen=True)
class Fresh:
    """An order with the results of it nobody has read."""

    order: ServiceRequest
    results: tuple[Observation, ...]

    @property
    def rank(self) -> int:
        """0 where one of them is critical, 1 where one is abnormal."""
        return min(RANK.get(each.interpretation, 3) for each in self.results)


def inbox(session: Session, *, whose: int | None = None) -> tuple[list[Fresh], bool]:
    """The unread results of orders of a person, critical and abnormal ones first, and whether that is all of them.

    `whose` is the person at work or, where they are away, a colleague of one of the same branches. Raises Forbidden.
    """
    if not reads_results(current()):
        raise guard.refuse("read", "Observation")
    me = current().practitioner_id
    whose = whose or me
    if whose != me and whose not in {each.id for each in colleagues(session)}:
        raise guard.refuse("read", "Observation")
    found = session.scalars(
        select(Observation)
        .join(ServiceRequest, ServiceRequest.id == Observation.service_request_id)
        .where(*_unread(ServiceRequest, ServiceRequest.requester_id == whose))
        .order_by(func.coalesce(Observation.released_at, Observation.issued_at).desc(), Observation.id)
        .limit(INBOX + 1)
    ).all()
    whole = len(found) <= INBOX
    by_order: dict[int, list[Observation]] = {}
    for each in found[:INBOX]:
        by_order.setdefault(each.service_request_id or 0, []).append(each)
    orders = session.scalars(
        select(ServiceRequest)
        .where(ServiceRequest.id.in_(by_order))
        .options(joinedload(ServiceRequest.patient), joinedload(ServiceRequest.requester))
    )
    fresh = [
        Fresh(order, tuple(sorted(by_order[order.id], key=lambda each: (RANK.get(each.interpretation, 3), each.id))))
        for order in orders
    ]
    newest = {each.order.id: max(out_at(result) for result in each.results) for each in fresh}
    fresh.sort(key=lambda each: (each.rank, -newest[each.order.id].timestamp()))
    return fresh, whole


def colleagues(session: Session) -> Sequence[Practitioner]:
    """Those who work where the person works, whose results they may look through for them."""
    mine = current().branch_ids
    if not mine:
        return []
    return session.scalars(
        select(Practitioner)
        .where(
            Practitioner.active,
            Practitioner.id != current().practitioner_id,
            Practitioner.user_id.is_not(None),
            Practitioner.home_branch_id.in_(mine),
        )
        .order_by(Practitioner.family, Practitioner.given)
    ).all()


def seen(session: Session, shown: Iterable[tuple[int, int]]) -> int:
    """Mark results as read, each by its number and the version that was on the screen; gives how many were marked.

    What has changed since stays unread. Raises Forbidden for whoever results do not come to.
    """
    if not reads_results(current()):
        raise guard.refuse("update", "Observation")
    versions = dict(shown)
    if not versions:
        return 0
    found = session.scalars(
        select(Observation)
        .where(
            Observation.id.in_(versions),
            Observation.category == LABORATORY,
            Observation.read_at.is_(None),
            _out(),
        )
        .order_by(Observation.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    marked = [each for each in found if each.version == versions[each.id]]
    for each in marked:
        each.read_at = now()
    session.flush()
    return len(marked)


__all__ = [
    "Fresh",
    "Page",
    "Report",
    "Was",
    "codes_of",
    "colleagues",
    "course",
    "critical_limits",
    "cumulative",
    "earlier",
    "inbox",
    "may_read",
    "order_of",
    "out_at",
    "panels",
    "reads_results",
    "report",
    "seen",
    "show",
    "specimen_of",
    "told_of",
    "when",
]
