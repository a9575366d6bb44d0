"""The front desk's own: somebody who walks in is given the next free time today, and a number, in one step."""

from __future__ import annotations

from sqlalchemy.orm import Session

from app import guard
from app.errors import Invalid, SlotTaken
from app.services import free_times, scheduling
from app.services.clock import day_of, zone
from app.services.free_times import FreeTime
from app.services.scheduling import Asked
from models.base import now
from models.organization import Branch
from models.scheduling import Appointment, VisitType

TRIES = 3
"""How often the next free time is looked for, if somebody else takes it at the same moment."""


def walk_in(
    *, patient_id: int, visit_type_id: int, branch_id: int, practitioner_id: int | None = None, reason: str = ""
) -> Appointment:
    """Book the next free time today, of one doctor or of anybody, and mark the patient as here, all or nothing.

    Raises SlotTaken where nobody is free any more today, and as `scheduling.book` does.
    """
    guard.require("create", "Appointment")
    for attempt in range(TRIES):
        try:
            with guard.unit_of_work() as session:
                free = _next_free(session, patient_id, visit_type_id, branch_id, practitioner_id)
                if free is None:
                    break
                asked = Asked(
                    patient_id=patient_id,
                    visit_type_id=visit_type_id,
                    practitioner_id=free.practitioner_id,
                    start_at=free.start_at,
                    room_id=free.room_id,
                    equipment_ids=(free.equipment_id,) if free.equipment_id else (),
                    branch_id=branch_id,
                    reason=reason,
                    walk_in=True,
                )
                return scheduling.arrive(session, scheduling.book(session, asked).id)
        except SlotTaken:
            if attempt == TRIES - 1:
                raise
    sentence = "Nobody is free for this today. Choose another doctor or kind of visit, or book another day."
    raise SlotTaken(sentence, field="practitioner")


def _next_free(
    session: Session, patient_id: int, visit_type_id: int, branch_id: int, practitioner_id: int | None
) -> FreeTime | None:
    """The next time today, by the branch's clock; None where there is none. Raises Invalid, naming the field."""
    kind, branch = session.get(VisitType, visit_type_id), session.get(Branch, branch_id)
    if kind is None or not kind.active:
        raise Invalid("Please choose a kind of visit.", field="visit_type")
    if branch is None:
        raise Invalid("Please choose a branch.", field="branch")
    where = zone(branch.time_zone)
    found = free_times.first_free(
        session,
        kind,
        branch_ids=[branch_id],
        practitioner_ids=None if practitioner_id is None else [practitioner_id],
        patient_id=patient_id,
        until=day_of(now().astimezone(where).date(), where)[1],
        most=1,
    )
    return found[0] if found else None
