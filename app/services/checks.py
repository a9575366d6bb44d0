"""Checks of the trail: asked for, watched while they go on, and kept with what they came to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import exists, func, or_, select
from sqlalchemy.orm import Session, aliased, selectinload

from app import events, guard, trail
from app.actor import current
from app.errors import UnderWay
from models.audit import AuditArchive, AuditBatch, AuditCheck, AuditEvent, AuditMonth, AuditQuarantine
from models.base import now

SILENT = timedelta(minutes=2)
"""Whoever is at a check and gives no sign of life for this long, is not at it any more."""
UNCLAIMED = timedelta(minutes=10)
"""A check nobody has begun by then never will be."""
DAILY = timedelta(hours=23, minutes=30)
WEEKLY = timedelta(days=7)
STOPPED = "It was stopped before its end, so it says nothing about the trail."
SHOWN = 10
"""Checks that are listed, the last ones."""


# ---- asking for one ------------------------------------------------------------------------------------------------


def ask(session: Session, since: datetime | None) -> AuditCheck:
    """Have the trail looked through, all of it or what was stored since an instant; the trail says who asked.

    Raises Forbidden, NotRecorded, and UnderWay where somebody is at it.
    """
    guard.require("read", "AuditEvent")
    check = _begin(session, since)
    check.asked_by_id = current().user_id
    session.flush()
    _note(0, since)
    events.emit(session, events.TrailCheckAsked(check.id))
    return check


def by_the_clock(session: Session) -> AuditCheck | None:
    """The day's check, where it is due: what was stored since the last one that found all well, once a week everything.

    The first comes a day after the first line.
    """
    last = _last(session, AuditCheck.asked_by_id.is_(None))
    first = session.scalar(select(func.min(AuditBatch.stored_at)))
    born = last.asked_at if last else first
    if born is None or now() - born < DAILY or under_way(session) is not None:
        return None
    everything = _last(session, AuditCheck.since.is_(None), AuditCheck.whole.is_not(None))
    well = _last(session, AuditCheck.whole.is_(True))
    recently = everything is not None and now() - everything.asked_at < WEEKLY
    return _begin(session, well.asked_at if recently and well else None)


def under_way(session: Session) -> AuditCheck | None:
    """The check somebody is at, or is about to be."""
    check = session.scalars(select(AuditCheck).where(AuditCheck.finished_at.is_(None)).limit(1)).first()
    return check if check is not None and lives(check) else None


def lives(check: AuditCheck) -> bool:
    """Whether a check goes on, or may still be begun."""
    if check.finished_at is not None:
        return False
    return now() - check.beat_at < SILENT if check.beat_at else now() - check.asked_at < UNCLAIMED


def _begin(session: Session, since: datetime | None) -> AuditCheck:
    """A new check. The database lets only one be under way; one nobody is at any more is closed first."""
    before = session.scalars(select(AuditCheck).where(AuditCheck.finished_at.is_(None)).with_for_update()).first()
    if before is not None:
        if lives(before):
            raise UnderWay
        before.finished_at, before.sentence = now(), STOPPED
        session.flush()
    check = AuditCheck(since=since)
    session.add(check)
    session.flush()
    return check


def _last(session: Session, *criteria: object) -> AuditCheck | None:
    statement = select(AuditCheck).where(*criteria)  # type: ignore[arg-type]
    return session.scalars(statement.order_by(AuditCheck.id.desc()).limit(1)).first()


def _note(outcome: int, since: datetime | None, reason: str | None = None) -> None:
    """Write into the trail that it is checked, or what that came to."""
    asked = "all of the trail" if since is None else f"the trail since {since.astimezone(UTC):%Y-%m-%d %H:%M}"
    entities = [{"type": "AuditEvent"}]
    line = trail.event("E", "check", outcome=outcome, entities=entities, query=asked, reason=reason)
    trail.the_trail().write(current(), [line])


# ---- while it goes on ----------------------------------------------------------------------------------------------


def beat(session: Session, number: int, done: int = 0, total: int = 0) -> AuditCheck | None:
    """Say how far a check has come; None where it was closed meanwhile, or there is none."""
    check = session.get(AuditCheck, number, populate_existing=True, with_for_update=True)
    if check is None or check.finished_at is not None:
        return None
    check.beat_at, check.done, check.total = now(), done, total
    session.flush()
    return check


def finish(session: Session, number: int, *, whole: bool | None, sentence: str, kind: str | None = None) -> None:
    """Say what a check came to, here and in the trail. Raises NotRecorded."""
    check = session.get(AuditCheck, number, populate_existing=True, with_for_update=True)
    if check is None or check.finished_at is not None:
        return
    _note(0 if whole else 8, check.since, kind)
    check.whole, check.sentence = whole, sentence
    check.finished_at = check.beat_at = now()
    if whole:
        check.done = check.total
    session.flush()


# ---- what is known of the trail ------------------------------------------------------------------------------------


def fault(session: Session) -> AuditCheck | None:
    """The last check that found a fault, unless a later one that looked at as much found all well."""
    later = aliased(AuditCheck)
    refuted = exists().where(
        later.id > AuditCheck.id, later.whole.is_(True), or_(later.since.is_(None), later.since <= AuditCheck.since)
    )
    found = select(AuditCheck).where(AuditCheck.whole.is_(False), ~refuted).order_by(AuditCheck.id.desc()).limit(1)
    return session.scalars(found).first()


def last_checks(session: Session) -> Sequence[AuditCheck]:
    """The last checks, the newest first, with who asked for them."""
    newest = select(AuditCheck).options(selectinload(AuditCheck.asked_by)).order_by(AuditCheck.id.desc())
    return session.scalars(newest.limit(SHOWN)).all()


def stored_by_hour(session: Session) -> list[tuple[datetime, int]]:
    """The last 24 hours, the one under way last: when each began (UTC), and how many lines were stored in it."""
    here = now().replace(minute=0, second=0, microsecond=0)
    hours = [here - timedelta(hours=ago) for ago in reversed(range(24))]
    hour = func.date_trunc("hour", AuditBatch.stored_at, "UTC").label("hour")
    counted = session.execute(
        select(hour, func.sum(AuditBatch.n)).where(AuditBatch.stored_at >= hours[0]).group_by(hour)
    )
    stored = {began.astimezone(UTC): int(lines) for began, lines in counted}
    return [(each, stored.get(each, 0)) for each in hours]


def quarantined(session: Session, *, limit: int = 50) -> Sequence[AuditQuarantine]:
    """The entries nobody could make out, the newest first."""
    return session.scalars(select(AuditQuarantine).order_by(AuditQuarantine.id.desc()).limit(limit)).all()


def opens() -> bool:
    """Whether the actor may see what a quarantined entry holds: it may be of any branch, with nothing masked."""
    actor = current()
    rights = actor.rights
    everything = rights.condition("read", AuditEvent, actor) is None and not rights.hidden("AuditEvent")
    return everything and rights.may("read", "AuditEvent")


def opened(entry: AuditQuarantine) -> str:
    """What a quarantined entry holds; that it was looked at, is in the trail. Raises Forbidden and NotRecorded."""
    if not opens():
        raise guard.refuse("read", "AuditQuarantine")
    line = trail.event("R", "read", entities=[{"type": "AuditQuarantine", "ids": [entry.id]}])
    trail.the_trail().write(current(), [line])
    return entry.payload


def archives(session: Session) -> Sequence[AuditArchive]:
    """The months that were put away, the newest first."""
    return session.scalars(select(AuditArchive).order_by(AuditArchive.month.desc())).all()


def overdue(session: Session, keep_months: int) -> Sequence[date]:
    """The months in the table that need not stay any longer, the oldest first."""
    limit = oldest_kept(keep_months, now())
    months = session.scalars(select(AuditMonth).where(AuditMonth.month <= limit).order_by(AuditMonth.month)).all()
    return [each.month for each in months]


def oldest_kept(keep_months: int, at: datetime) -> date:
    """The newest month that may go, if so many whole months stay besides the one under way."""
    months = at.astimezone(UTC).year * 12 + at.astimezone(UTC).month - 1 - keep_months - 1
    return date(months // 12, months % 12 + 1, 1)
