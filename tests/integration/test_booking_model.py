"""Whatever people do with visits, in whatever order: never an overlap, never a lost booking."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app import guard
from app.actor import service
from app.errors import IllegalTransition, SlotTaken
from app.services import scheduling
from app.services.scheduling import Asked
from models.base import now
from models.codes import AppointmentStatus
from models.organization import Room
from models.scheduling import BLOCKING, VisitType, WorkingHours
from tests import factories
from tests.factories import Hospital

FIRST = datetime.combine(now().date() + timedelta(days=30), time(9), tzinfo=UTC)
QUARTERS = 12
"""Of an hour: visits begin within three hours of one day, so that most of them meet."""


@dataclass
class Ward:
    """What there is to book."""

    hospital: Hospital
    kind: int
    doctors: list[int]
    rooms: list[int]
    patients: list[int]


@dataclass
class Kept:
    """A visit as the model remembers it."""

    status: str
    doctor: int
    room: int
    patient: int
    start: int
    length: int

    def meets(self, other: Kept) -> bool:
        """Whether the two cannot both be there."""
        same = self.doctor == other.doctor or self.room == other.room or self.patient == other.patient
        return same and self.start < other.start + other.length and other.start < self.start + self.length


@pytest.fixture(scope="module")
def ward(database: Any) -> Ward:
    hospital: Hospital = database.hospital
    branch = hospital.branches[0]
    doctors = [hospital.staff["doctor"], hospital.staff["nurse"]]
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        kind = VisitType(name="Model", minutes=15)
        rooms = [Room(branch_id=branch, name=f"Model {number}") for number in (1, 2)]
        session.add_all([kind, *rooms])
        for person in doctors:
            for weekday in range(1, 8):
                hours = WorkingHours(
                    practitioner_id=person,
                    branch_id=branch,
                    weekday=weekday,
                    starts=time(0),
                    ends=time(23, 59),
                    valid_from=date(2020, 1, 1),
                )
                session.add(hours)
        session.flush()
        return Ward(hospital, kind.id, doctors, [room.id for room in rooms], hospital.patients[2:5])


def to_state(status: AppointmentStatus) -> Any:
    """Bring a visit into a state that its time has not come for: the machine's visits are all to come."""

    def go(session: Any, appointment_id: int) -> Any:
        return scheduling.advance(session, scheduling.held(session, appointment_id), status)

    return go


class Desk(RuleBasedStateMachine):
    """A desk where anything may be asked, beside a model that knows what must come of it."""

    ward: ClassVar[Ward]
    visits = Bundle("visits")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[int, Kept] = {}
        with guard.engine().begin() as connection:
            connection.execute(
                text(
                    "UPDATE appointment SET status = 'entered-in-error', cancelation_reason = NULL"
                    " WHERE status <> 'entered-in-error'"
                )
            )

    def standing(self) -> list[Kept]:
        return [each for each in self.model.values() if each.status in BLOCKING]

    def at(self, quarter: int) -> datetime:
        return FIRST + timedelta(minutes=15 * quarter)

    def doing(self, what: Any, **named: Any) -> Any:
        """Do it as the desk, in a unit of work; gives the row, or the refusal."""
        with factories.acting(self.ward.hospital.accounts["reception"]):
            try:
                with guard.unit_of_work() as session:
                    return what(session, **named)
            except (SlotTaken, IllegalTransition) as refusal:
                return refusal

    @rule(
        target=visits,
        doctor=st.integers(0, 1),
        room=st.integers(0, 1),
        patient=st.integers(0, 2),
        start=st.integers(0, QUARTERS - 1),
        length=st.integers(1, 4),
    )
    def book(self, doctor: int, room: int, patient: int, start: int, length: int) -> Any:
        wanted = Kept("booked", doctor, room, patient, start, length)
        asked = Asked(
            self.ward.patients[patient],
            self.ward.kind,
            self.ward.doctors[doctor],
            self.at(start),
            minutes=15 * length,
            room_id=self.ward.rooms[room],
        )
        answer = self.doing(scheduling.book, asked=asked)
        if any(wanted.meets(other) for other in self.standing()):
            assert isinstance(answer, SlotTaken)
            return multiple()
        self.model[answer.id] = wanted
        return answer.id

    @rule(target=visits, visit=consumes(visits), doctor=st.integers(0, 1), start=st.integers(0, QUARTERS - 1))
    def move(self, visit: int, doctor: int, start: int) -> int:
        before = self.model[visit]
        wanted = Kept("booked", doctor, before.room, before.patient, start, before.length)
        answer = self.doing(
            scheduling.move,
            appointment_id=visit,
            start_at=self.at(start),
            practitioner_id=self.ward.doctors[doctor],
        )
        if before.status != "booked":
            assert isinstance(answer, IllegalTransition)
            return visit
        if any(wanted.meets(other) for other in self.standing() if other is not before):
            assert isinstance(answer, SlotTaken)
            return visit
        before.status = "cancelled"
        self.model[answer.id] = wanted
        number: int = answer.id
        return number

    def step(self, visit: int, what: Any, allowed: set[str], to: str, **named: Any) -> None:
        before = self.model[visit]
        answer = self.doing(what, appointment_id=visit, **named)
        if before.status in allowed:
            assert answer.status == to
            before.status = to
        else:
            assert isinstance(answer, IllegalTransition)

    @rule(visit=visits)
    def cancel(self, visit: int) -> None:
        self.step(visit, scheduling.cancel, {"booked", "arrived"}, "cancelled", reason="pat")

    @rule(visit=visits)
    def missed_too_early(self, visit: int) -> None:
        self.step(visit, scheduling.miss, set(), "noshow")

    @rule(visit=visits)
    def miss(self, visit: int) -> None:
        """As `scheduling.miss` does it once the visit was due."""
        self.step(visit, to_state(AppointmentStatus.NOSHOW), {"booked"}, "noshow")

    @rule(visit=visits)
    def check_in(self, visit: int) -> None:
        self.step(visit, to_state(AppointmentStatus.CHECKED_IN), {"arrived"}, "checked-in")

    @rule(visit=visits)
    def fulfil(self, visit: int) -> None:
        self.step(visit, scheduling.fulfil, {"checked-in"}, "fulfilled")

    @rule(visit=visits, status=st.sampled_from(["booked", "pending", "arrived"]))
    def come_back_by_raw_sql(self, visit: int, status: str) -> None:
        """What is over stays over; what is not may come back only where nobody else is by now."""
        before = self.model[visit]
        statement = text("UPDATE appointment SET status = :status WHERE id = :id")
        try:
            with guard.engine().begin() as connection:
                connection.execute(statement, {"status": status, "id": visit})
        except IntegrityError:
            assert before.status not in ("booked", "arrived", "checked-in")
            return
        assert before.status in ("booked", "arrived", "checked-in")
        with guard.engine().begin() as connection:
            connection.execute(statement, {"status": before.status, "id": visit})

    @rule(visit=visits)
    def withdraw(self, visit: int) -> None:
        self.step(
            visit,
            scheduling.withdraw,
            {"booked", "arrived", "checked-in", "fulfilled", "cancelled", "noshow"},
            "entered-in-error",
        )

    @rule(visit=visits)
    def arrive(self, visit: int) -> None:
        """As `scheduling.arrive` does it on the day."""
        self.step(visit, to_state(AppointmentStatus.ARRIVED), {"booked"}, "arrived")

    @rule(visit=visits)
    def undo(self, visit: int) -> None:
        self.step(visit, scheduling.undo_arrival, {"arrived"}, "booked")

    @invariant()
    def the_database_has_what_the_model_has(self) -> None:
        with guard.engine().connect() as connection:
            found = connection.execute(
                text("SELECT id, status, start_at FROM appointment WHERE id = ANY(:ids)"), {"ids": list(self.model)}
            ).all()
            overlaps = connection.execute(
                text(
                    "SELECT count(*) FROM booking a JOIN booking b ON a.resource = b.resource AND a.id < b.id"
                    " AND a.period && b.period WHERE a.blocking AND b.blocking"
                )
            ).scalar_one()
            blocking = connection.execute(
                text(
                    "SELECT count(DISTINCT appointment_id) FROM booking WHERE blocking AND appointment_id = ANY(:ids)"
                ),
                {"ids": list(self.model)},
            ).scalar_one()
        assert {row.id: (row.status, row.start_at) for row in found} == {
            key: (each.status, self.at(each.start)) for key, each in self.model.items()
        }
        assert overlaps == 0
        assert blocking == len(self.standing())


def test_whatever_is_done_nobody_is_promised_twice(ward: Ward) -> None:
    Desk.ward = ward
    run_state_machine_as_test(
        Desk,
        settings=settings(
            max_examples=15,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
