"""What waits for the person at work, counted in one statement for every page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.services import critical, hl7_intake, hl7_proposals, notes, results

KINDS: dict[str, Callable[[], dict[str, Select[Any]]]] = {
    "notes": notes.waiting,
    "results": results.waiting,
    "critical": critical.waiting,
    "messages": hl7_intake.undecided,
    "proposals": hl7_proposals.waiting,
}
"""What is counted, each as statements that are added up; none of them where it is not the person's to do."""


def counts(session: Session) -> dict[str, int]:
    """How much of each kind waits; a kind that is not theirs is not there."""
    wanted = {(kind, name): each for kind, asked in KINDS.items() for name, each in asked().items()}
    if not wanted:
        return {}
    columns = (each.scalar_subquery().label(f"{kind}_{name}") for (kind, name), each in wanted.items())
    found: dict[str, int] = {}
    for (kind, _), number in zip(wanted, session.execute(select(*columns)).one(), strict=True):
        found[kind] = found.get(kind, 0) + number
    return found
