"""How long results take, from the order to the release, by test and branch: numbers of which none is anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.orm import Session

from app import guard
from app.actor import current
from app.errors import Invalid
from models.codes import LABORATORY

LONGEST = timedelta(days=366)
FEW = 5
"""Of fewer results than so many the times are told to the laboratory only: one of them is somebody's."""
STAGES = ("collected", "received", "verified", "released")

# Beside the gate, which lets objects through and no sums of them: what comes back are numbers by test and branch.
# A corrected result is left out, as its times are those of the correction; some are taken first and ordered after.
TURNAROUND = text(
    """
    SELECT t.id AS test_id, t.name, r.branch_id, count(*) AS number,
      percentile_cont(ARRAY[0.5, 0.9]) WITHIN GROUP (
        ORDER BY greatest(s.collected_at - r.authored_at, interval '0'))  AS collected,
      percentile_cont(ARRAY[0.5, 0.9]) WITHIN GROUP (ORDER BY s.received_at - s.collected_at) AS received,
      percentile_cont(ARRAY[0.5, 0.9]) WITHIN GROUP (ORDER BY o.verified_at - s.received_at) AS verified,
      percentile_cont(ARRAY[0.5, 0.9]) WITHIN GROUP (ORDER BY o.released_at - o.verified_at) AS released,
      percentile_cont(ARRAY[0.5, 0.9]) WITHIN GROUP (ORDER BY o.released_at - r.authored_at) AS whole,
      count(*) FILTER (WHERE o.released_at - r.authored_at > :target) AS late
    FROM observation o
    JOIN service_request r ON r.id = o.service_request_id
    JOIN specimen s ON s.id = o.specimen_id
    JOIN lab_test t ON t.id = o.test_id
    WHERE o.category = :category AND o.status = 'final' AND o.released_at >= :since AND o.released_at < :until
    GROUP BY t.id, t.name, r.branch_id
    ORDER BY t.name, r.branch_id, t.id
    """
)


@dataclass(frozen=True)
class Took:
    """How long something took in hours: what half of all took no longer than, and nine in ten."""

    half: float
    nine: float


@dataclass(frozen=True)
class Turnaround:
    """A test at a branch: how many were released, and how long each part of the way took, where that is told."""

    test_id: int
    name: str
    branch_id: int | None
    number: int
    late: int | None
    """How many took longer than the target."""
    stages: tuple[Took, ...]
    """In the order of STAGES; empty where too few are told of."""
    whole: Took | None


def report(session: Session, since: datetime, until: datetime, *, target_hours: int) -> Sequence[Turnaround]:
    """Every test of which results were released in [since, until). Raises Forbidden, and Invalid for a wrong period.

    It is for whoever runs the catalogue: the laboratory, and an administrator.
    """
    guard.require("update", "LabTest")
    if not since < until or until - since > LONGEST:
        raise Invalid("Please choose a period of a year at most, the first day before the last.", field="until")
    if not 1 <= target_hours <= 10_000:
        raise Invalid("Please give the target in hours, from 1 on.", field="target")
    asked = {"category": LABORATORY, "since": since, "until": until, "target": timedelta(hours=target_hours)}
    rows = session.connection().execute(TURNAROUND, asked).all()
    every = current().may("update", "Specimen")
    return [
        Turnaround(
            row.test_id,
            row.name,
            row.branch_id,
            row.number,
            row.late if told else None,
            tuple(_took(getattr(row, stage)) for stage in STAGES) if told else (),
            _took(row.whole) if told else None,
        )
        for row in rows
        for told in (every or row.number >= FEW,)
    ]


def _took(found: Sequence[timedelta]) -> Took:
    half, nine = (round(each.total_seconds() / 3600, 2) for each in found)
    return Took(half, nine)


__all__ = ["FEW", "STAGES", "Took", "Turnaround", "report"]
