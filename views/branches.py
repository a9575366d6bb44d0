"""What every page wants to know of the branches: kept for half a minute, as it seldom changes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from sqlalchemy import select

from app import guard
from app.actor import current
from models.organization import Branch

KEPT = 30.0
"""Seconds."""
UTC = ZoneInfo("UTC")


@dataclass(frozen=True)
class BranchFacts:
    """A branch in plain values."""

    id: int
    code: str
    name: str
    zone: ZoneInfo
    currency: str
    country: str

    def __str__(self) -> str:
        return self.name


_known: dict[int, BranchFacts] = {}
_until = 0.0


def all_branches() -> dict[int, BranchFacts]:
    """The branches by id; none where the actor may not read them."""
    global _until
    if not (current().may("read", "Branch") and current().may("read", "Organization")):
        return {}
    if time.monotonic() > _until:
        found = guard.session().scalars(select(Branch).where(Branch.active).order_by(Branch.id)).all()
        _known.clear()
        for branch in found:
            addresses = branch.organization.address
            country = str(addresses[0].get("country", "")) if addresses else ""
            _known[branch.id] = BranchFacts(
                branch.id, branch.code, branch.organization.name, ZoneInfo(branch.time_zone), branch.currency, country
            )
        _until = time.monotonic() + KEPT
    return dict(_known)


def forget() -> None:
    """Read them anew at the next question, because one of them was changed here."""
    global _until
    _until = 0.0


def zone_of(branch_id: int | None) -> ZoneInfo:
    """The clock of a branch; UTC for none."""
    facts = all_branches().get(branch_id or 0)
    return facts.zone if facts else UTC
