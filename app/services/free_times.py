"""Whose time is free: asked of the database, which answers with resources and hours, and with nobody's name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.errors import Invalid
from models.base import now
from models.patients import Patient
from models.scheduling import BLOCKING, VisitType

HORIZON = timedelta(days=120)
"""How far ahead a free time is looked for."""
QUARTER = timedelta(minutes=15)

FREE = text(
    """
    SELECT * FROM wb_free_times(:visit, :length, CAST(:places AS bigint[]), CAST(:people AS bigint[]),
      CAST(:room AS bigint), CAST(:whom AS bigint), :origin, :until, CAST(:past_start AS timestamptz),
      CAST(:past_person AS bigint), CAST(:past_place AS bigint), :most)
    """
)
CLASHING = text(
    """
    SELECT DISTINCT ON (resource) practitioner_id, room_id, equipment_id, patient_id, lower(period) AS since,
      upper(period) AS until
    FROM booking
    WHERE blocking AND coalesce(appointment_id, 0) <> ALL(CAST(:besides AS bigint[]))
      AND (resource = ANY(CAST(:resources AS bigint[])) AND period && tstzrange(:opens, :closes)
        OR resource = CAST(:patient AS bigint) AND period && tstzrange(:start, :end))
      AND (offer_id IS NULL OR EXISTS (SELECT FROM slot_offer o WHERE o.id = offer_id AND o.until_at > now()))
    ORDER BY resource, period
    """
)
WORKING = text("SELECT wb_working(:who, :place, :opens, :closes) @> tstzrange(:opens, :closes)")
ROOMS = text("SELECT * FROM wb_free_rooms(:visit, :place, tstzrange(:opens, :closes))")
EQUIPMENT = text("SELECT * FROM wb_free_equipment(:visit, :place, tstzrange(:opens, :closes))")
HOLD = text("SELECT wb_hold(CAST(:resources AS bigint[]))")
LOAD = text(
    """
    SELECT (start_at AT TIME ZONE :clock)::date AS day, count(*) AS visits
    FROM appointment
    WHERE branch_id = :place AND start_at >= :opens AND start_at < :closes AND status = ANY(:states)
      AND (cardinality(CAST(:people AS bigint[])) = 0 OR practitioner_id = ANY(CAST(:people AS bigint[])))
      AND (cardinality(CAST(:rooms AS bigint[])) = 0 OR room_id = ANY(CAST(:rooms AS bigint[])))
      AND (cardinality(CAST(:kinds AS bigint[])) = 0 OR visit_type_id = ANY(CAST(:kinds AS bigint[])))
    GROUP BY 1
    """
)
SHIFTS = text(
    """
    SELECT p AS person, lower(r) AS since, upper(r) AS until
    FROM unnest(CAST(:people AS bigint[])) AS p CROSS JOIN LATERAL unnest(wb_working(p, :place, :opens, :closes)) AS r
    ORDER BY 1, 2
    """
)


@dataclass(frozen=True)
class FreeTime:
    """A time at which a kind of visit could take place, and with what."""

    start_at: datetime
    end_at: datetime
    practitioner_id: int
    branch_id: int
    room_id: int | None
    equipment_id: int | None


@dataclass(frozen=True)
class Clash:
    """Something that is not free: `kind` is practitioner, room, equipment or patient, taken from `since` to `until`."""

    kind: str
    id: int
    since: datetime
    until: datetime


@dataclass(frozen=True)
class Wanted:
    """The time and the resources of a visit, before it is one."""

    practitioner_id: int
    patient_id: int | None
    room_id: int | None
    equipment_ids: tuple[int, ...]
    start_at: datetime
    end_at: datetime
    buffer_before: int = 0
    buffer_after: int = 0

    @property
    def opens(self) -> datetime:
        """When the doctor, the room and the equipment have to be free."""
        return self.start_at - timedelta(minutes=self.buffer_before)

    @property
    def closes(self) -> datetime:
        """Until when they have to be."""
        return self.end_at + timedelta(minutes=self.buffer_after)

    @property
    def resources(self) -> list[int]:
        """As `booking.resource` numbers them, but for the patient."""
        room = [] if self.room_id is None else [self.room_id * 4 + 1]
        return [self.practitioner_id * 4, *room, *(key * 4 + 2 for key in self.equipment_ids)]


def first_free(
    session: Session,
    visit_type: VisitType,
    *,
    branch_ids: Sequence[int],
    practitioner_ids: Sequence[int] | None = None,
    room_id: int | None = None,
    patient_id: int | None = None,
    minutes: int | None = None,
    origin: datetime | None = None,
    until: datetime | None = None,
    after: FreeTime | None = None,
    most: int = 20,
) -> list[FreeTime]:
    """The first times at which everything a kind of visit needs is free, in order, `most` of them.

    `origin` is where the search began, and stays the same from page to page; `after` is the last time of the page
    before. Times in the past are not looked for. With a `patient_id` their own visits are kept free, which tells when
    those are: raises Invalid where the patient is not the actor's to see.
    """
    if patient_id is not None and (not 0 < patient_id < 2**63 or session.get(Patient, patient_id) is None):
        raise Invalid("There is none such, or it is not open to you.", field="patient_id")
    begins = quarter(max(origin or now(), now()))
    found = session.connection().execute(
        FREE,
        {
            "visit": visit_type.id,
            "length": minutes or visit_type.minutes,
            "places": list(branch_ids),
            "people": None if practitioner_ids is None else list(practitioner_ids),
            "room": room_id,
            "whom": patient_id,
            "origin": begins,
            "until": min(until or begins + HORIZON, begins + HORIZON),
            "past_start": after.start_at if after else None,
            "past_person": after.practitioner_id if after else None,
            "past_place": after.branch_id if after else None,
            "most": most,
        },
    )
    return [FreeTime(**row._mapping) for row in found]


def quarter(when: datetime) -> datetime:
    """The next full quarter of an hour, or this one."""
    past = timedelta(minutes=when.minute % 15, seconds=when.second, microseconds=when.microsecond)
    return when if not past else when - past + QUARTER


def clashes(session: Session, wanted: Wanted, *, besides: Collection[int] = ()) -> list[Clash]:
    """What of a visit's resources is taken at its time, but by the visits `besides`."""
    found = session.connection().execute(
        CLASHING,
        {
            "resources": wanted.resources,
            "patient": None if wanted.patient_id is None else wanted.patient_id * 4 + 3,
            "besides": list(besides),
            "opens": wanted.opens,
            "closes": wanted.closes,
            "start": wanted.start_at,
            "end": wanted.end_at,
        },
    )
    taken = []
    for row in found:
        for kind in ("practitioner", "room", "equipment", "patient"):
            if (key := getattr(row, f"{kind}_id")) is not None:
                taken.append(Clash(kind, key, row.since, row.until))
    return taken


def works_then(session: Session, wanted: Wanted, branch_id: int) -> bool:
    """Whether all of a visit, with its buffers, lies within the working hours of its practitioner at a branch."""
    asked = {"who": wanted.practitioner_id, "place": branch_id, "opens": wanted.opens, "closes": wanted.closes}
    return bool(session.connection().execute(WORKING, asked).scalar_one())


def free_rooms(session: Session, visit_type_id: int, branch_id: int, wanted: Wanted) -> list[int]:
    """The rooms of a branch in which a kind of visit can take place and which are free then."""
    asked = {"visit": visit_type_id, "place": branch_id, "opens": wanted.opens, "closes": wanted.closes}
    return list(session.connection().execute(ROOMS, asked).scalars())


def free_equipment(session: Session, visit_type_id: int, branch_id: int, wanted: Wanted) -> list[int]:
    """The pieces of equipment a kind of visit can do with that are free then."""
    asked = {"visit": visit_type_id, "place": branch_id, "opens": wanted.opens, "closes": wanted.closes}
    return list(session.connection().execute(EQUIPMENT, asked).scalars())


def hold(session: Session, *wanted: Wanted) -> None:
    """Wait until nobody else is booking any of these resources, and let nobody until the transaction ends."""
    resources = [number for each in wanted for number in each.resources]
    resources += [each.patient_id * 4 + 3 for each in wanted if each.patient_id is not None]
    session.connection().execute(HOLD, {"resources": resources})


def choosing(session: Session, branch_id: int) -> None:
    """Wait until nobody else is choosing a room or equipment of a branch, so that two do not choose the same one."""
    session.connection().execute(HOLD, {"resources": [-branch_id]})


@dataclass(frozen=True)
class Shift:
    """A stretch of somebody's working time."""

    practitioner_id: int
    since: datetime
    until: datetime


def shifts(
    session: Session, practitioner_ids: Sequence[int], branch_id: int, opens: datetime, closes: datetime
) -> list[Shift]:
    """When these people work at a branch between two instants."""
    asked = {"people": list(practitioner_ids), "place": branch_id, "opens": opens, "closes": closes}
    return [Shift(row.person, row.since, row.until) for row in session.connection().execute(SHIFTS, asked)]


def load(
    session: Session,
    branch_id: int,
    clock: str,
    opens: datetime,
    closes: datetime,
    *,
    practitioner_ids: Sequence[int] = (),
    room_ids: Sequence[int] = (),
    visit_type_ids: Sequence[int] = (),
) -> dict[date, int]:
    """How many visits each day of a branch has, by its clock (an IANA name); a number and nobody's name."""
    found = session.connection().execute(
        LOAD,
        {
            "clock": clock,
            "place": branch_id,
            "opens": opens,
            "closes": closes,
            "states": sorted(BLOCKING),
            "people": list(practitioner_ids),
            "rooms": list(room_ids),
            "kinds": list(visit_type_ids),
        },
    )
    return {row.day: row.visits for row in found}
