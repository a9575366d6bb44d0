"""Clocks on the wall: what an hour of a branch's day is as an instant, when clocks are put forward and back."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from app.errors import Invalid


def zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name. Raises Invalid for one nobody knows."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Invalid("There is no such time zone. Use a name such as Europe/Madrid.", field="time_zone") from error


def instant(wall: datetime, where: ZoneInfo, *, second: bool | None = None, field: str = "start") -> datetime:
    """The instant at which clocks somewhere show a date and time (naive), in UTC.

    Raises Invalid for an hour that is left out when clocks go forward, and, unless `second` says which is meant, for
    one that comes twice when they go back.
    """
    first, later = wall.replace(tzinfo=where, fold=0), wall.replace(tzinfo=where, fold=1)
    if first.astimezone(UTC).astimezone(where).replace(tzinfo=None) != wall:
        raise Invalid("Clocks go forward then, and this hour does not exist that day.", field=field)
    if first.utcoffset() != later.utcoffset() and second is None:
        raise Invalid(
            f"Clocks go back then, and this hour comes twice. Say which one: {first:%H:%M %z} or {later:%H:%M %z}.",
            field=field,
        )
    return (later if second else first).astimezone(UTC)


def spoken_instant(text: str, *, field: str = "start") -> datetime:
    """An ISO 8601 date and time with its offset, in UTC.

    Raises Invalid for another text, one without offset, and a time so far away that nothing could be reckoned from it.
    """
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise Invalid("Write the time like 2026-11-22T09:30:00+01:00.", field=field) from error
    if found.tzinfo is None:
        raise Invalid("Say the time with its offset, such as 2026-11-22T09:30:00+01:00.", field=field)
    if not believable(found):
        raise Invalid("This time is too far away.", field=field)
    return found.astimezone(UTC)


def believable(when: datetime) -> bool:
    """Whether a time is near enough to add days to it, and to see it by any clock."""
    return 1900 <= when.year < 2200


def day_of(day: date, where: ZoneInfo) -> tuple[datetime, datetime]:
    """The instants between which it is that day somewhere: 23, 24 or 25 hours."""
    begins, ends = (
        datetime.combine(each, time(), tzinfo=where).astimezone(UTC) for each in (day, day + timedelta(days=1))
    )
    return begins, ends
