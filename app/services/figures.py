"""Counts for dashboards, in one statement, with nobody named in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.actor import current
from app.policy import KINDS, Reach
from models.figures import Figure


@dataclass(frozen=True)
class Figures:
    """What the actor may be told of, by branch and day."""

    kinds: frozenset[str]
    """The kinds that may be told; one without a row is 0."""
    of_the_chain: frozenset[str]
    """Those of them that are told for every branch, and not the actor's own only."""
    rows: Sequence[Figure] = ()

    def total(self, kind: str, *, since: date | None = None, branches: Iterable[int] | None = None) -> int:
        """How many there were, from a day on, at some branches; everywhere where none are named."""
        among = None if branches is None else set(branches)
        return sum(
            row.count
            for row in self.rows
            if row.name == kind and (since is None or row.day >= since) and (among is None or row.branch_id in among)
        )

    def by_day(self, kind: str, days: Sequence[date], *, branch_id: int | None = None) -> list[int]:
        """How many there were on each of some days, at one branch or everywhere."""
        counted = dict.fromkeys(days, 0)
        for row in self.rows:
            if row.name == kind and row.day in counted and branch_id in (None, row.branch_id):
                counted[row.day] += row.count
        return list(counted.values())


def figures(session: Session) -> Figures:
    """All the figures the actor may be told, in one statement; none where they may read none."""
    rights = current().rights
    if not rights.may("read", "Figure"):
        return Figures(frozenset(), frozenset())
    every = frozenset(KINDS["Figure"])
    ways = rights.reach.get(("read", "Figure"), (Reach(),))
    kinds = frozenset[str]().union(*(every if way.kinds is None else way.kinds for way in ways))
    wide = frozenset[str]().union(*(every if way.kinds is None else way.kinds for way in ways if not way.scopes))
    rows = session.scalars(select(Figure).where(Figure.name.in_(sorted(kinds)))).all()
    return Figures(kinds, wide, rows)
