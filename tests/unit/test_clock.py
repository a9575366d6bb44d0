"""Clocks on the wall, on the days they are changed and on all others."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from app.errors import Invalid
from app.services.clock import day_of, instant, spoken_instant, zone

MADRID, NEW_YORK, KATHMANDU = ZoneInfo("Europe/Madrid"), ZoneInfo("America/New_York"), ZoneInfo("Asia/Kathmandu")
LORD_HOWE, APIA = ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Pacific/Apia")


def wall(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("text", "where", "utc"),
    [
        ("2026-01-15T09:00", MADRID, "2026-01-15T08:00"),
        ("2026-07-15T09:00", MADRID, "2026-07-15T07:00"),
        ("2026-01-15T09:00", NEW_YORK, "2026-01-15T14:00"),
        ("2026-01-15T09:00", KATHMANDU, "2026-01-15T03:15"),
        ("2026-03-29T01:59", MADRID, "2026-03-29T00:59"),  # the last minute before, the first one after
        ("2026-03-29T03:00", MADRID, "2026-03-29T01:00"),
        ("2026-10-25T01:59", MADRID, "2026-10-24T23:59"),
        ("2026-10-25T03:00", MADRID, "2026-10-25T02:00"),
    ],
)
def test_an_hour_on_the_wall_is_one_instant(text: str, where: ZoneInfo, utc: str) -> None:
    assert instant(wall(text), where) == wall(utc).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("2026-03-29T02:00", MADRID),
        ("2026-03-29T02:30", MADRID),
        ("2026-03-29T02:59", MADRID),
        ("2026-03-08T02:30", NEW_YORK),
        ("2026-10-04T02:15", LORD_HOWE),  # half an hour only
        ("2011-12-30T12:00", APIA),  # a whole day
    ],
)
@pytest.mark.parametrize("second", [None, False, True])
def test_an_hour_that_is_left_out_is_refused(text: str, where: ZoneInfo, second: bool | None) -> None:
    with pytest.raises(Invalid, match="does not exist") as refusal:
        instant(wall(text), where, second=second, field="starts")
    assert refusal.value.field == "starts"


@pytest.mark.parametrize(
    ("text", "where", "first", "later"),
    [
        ("2026-10-25T02:00", MADRID, "2026-10-25T00:00", "2026-10-25T01:00"),
        ("2026-10-25T02:59", MADRID, "2026-10-25T00:59", "2026-10-25T01:59"),
        ("2026-11-01T01:30", NEW_YORK, "2026-11-01T05:30", "2026-11-01T06:30"),
        ("2026-04-05T01:45", LORD_HOWE, "2026-04-04T14:45", "2026-04-04T15:15"),
    ],
)
def test_an_hour_that_comes_twice_has_to_be_told_apart(text: str, where: ZoneInfo, first: str, later: str) -> None:
    with pytest.raises(Invalid, match="comes twice"):
        instant(wall(text), where)
    assert instant(wall(text), where, second=False) == wall(first).replace(tzinfo=UTC)
    assert instant(wall(text), where, second=True) == wall(later).replace(tzinfo=UTC)


@pytest.mark.parametrize("name", ["Europe/Atlantis", "", "../../etc/passwd", "/etc/passwd", "Europe", "Mad\0rid"])
def test_a_zone_nobody_knows_is_refused(name: str) -> None:
    with pytest.raises(Invalid) as refusal:
        zone(name)
    assert refusal.value.field == "time_zone"


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-11-22T09:30:00+01:00", "2026-11-22T08:30"),
        (" 2026-11-22T09:30Z ", "2026-11-22T09:30"),
        ("2026-11-22T09:30-05:00", "2026-11-22T14:30"),
        ("20261122T093000+0530", "2026-11-22T04:00"),
    ],
)
def test_a_time_with_its_offset_is_an_instant(text: str, utc: str) -> None:
    found = spoken_instant(text)
    assert found == wall(utc).replace(tzinfo=UTC)
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "text",
    [
        *("", "tomorrow", "1795339800", "2026-11-22T09:30:00", "2026-11-22", "2026-02-30T09:00Z"),
        *("2026-11-22T25:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"),
    ],
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(Invalid) as refusal:
        spoken_instant(text, field="from")
    assert refusal.value.field == "from"


@pytest.mark.parametrize(("day", "hours"), [("2026-01-15", 24), ("2026-03-29", 23), ("2026-10-25", 25)])
def test_a_day_has_as_many_hours_as_its_clocks_say(day: str, hours: int) -> None:
    begins, ends = day_of(date.fromisoformat(day), MADRID)
    assert (ends - begins) / timedelta(hours=1) == hours
    assert begins.astimezone(MADRID).isoformat()[:16] == f"{day}T00:00"
    assert day_of(date.fromisoformat(day) + timedelta(days=1), MADRID)[0] == ends
