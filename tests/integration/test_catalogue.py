"""The laboratory's catalogue, through its service."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app import guard
from app.errors import Forbidden, Invalid
from app.services import catalogue
from models.lab import LabPanel, LabTest, ReferenceRange
from tests import factories
from tests.factories import Laboratory

Acting = Callable[[str], AbstractContextManager[Any]]
HEAD = b"\xef\xbb\xbfcode,name,unit,decimals,specimen_type,low,high,valid_from,panel_code\n"


@pytest.fixture(scope="module")
def laboratory(database: Any) -> Laboratory:
    return factories.open_laboratory(database.hospital)


@pytest.fixture
def people(laboratory: Laboratory) -> Acting:
    return lambda username: factories.acting(laboratory.hospital.accounts[username])


def bring(content: bytes, *, dry_run: bool = False) -> catalogue.Brought:
    with guard.unit_of_work() as session:
        return catalogue.bring(session, content, dry_run=dry_run)


def named(code: str) -> LabTest | None:
    return guard.session().scalars(select(LabTest).where(LabTest.code == code)).first()


def test_a_change_of_a_range_is_a_new_one_and_the_old_ends_the_day_before(people: Acting) -> None:
    with people("lab"):
        bring(HEAD + b"1-8,Alpha,g/L,0,SER,10,20,2020-01-01,\n")
        with guard.unit_of_work() as session:
            test = named("1-8")
            assert test is not None
            old = catalogue.show(session, test.id).ranges[0]
            catalogue.change_range(session, old.id, since=date(2026, 1, 1), low=Decimal(12))
        first, second = catalogue.show(guard.session(), test.id).ranges
        assert (first.low, first.valid_until) == (10, date(2025, 12, 31))
        assert (second.low, second.high, second.valid_from, second.valid_until) == (12, 20, date(2026, 1, 1), None)
        with pytest.raises(Invalid), guard.unit_of_work() as session:
            catalogue.change_range(session, second.id, since=date(2026, 1, 1), low=Decimal(13))
        assert [row.low for row in catalogue.show(guard.session(), test.id).ranges] == [10, 12]


def test_a_file_is_tried_then_taken_and_taken_again_changes_nothing(people: Acting) -> None:
    content = HEAD + b"2-6,Beta,g/L,0,SER,10,20,2020-01-01,\n"
    with people("lab"):
        assert bring(content, dry_run=True).added == 1
        assert named("2-6") is None
        assert bring(content).added == 1
        again = bring(content)
        assert (again.added, again.changed, again.ranges, again.errors) == (0, 0, 0, [])


def test_every_wrong_line_is_named_and_nothing_of_the_file_is_written(people: Acting) -> None:
    lines = b"3-4,Good,g/L,0,SER,1,2,2020-01-01,\n4-2,Bad,g/L,0,SER,ten,2,2020-01-01,\n5-9,,g/L,0,SER,,,,\n"
    with people("lab"):
        told = bring(HEAD + lines)
        assert [line for line, _ in told.errors] == [3, 4]
        assert named("3-4") is None


def test_a_panel_is_done_on_one_kind_of_specimen(people: Acting) -> None:
    with people("lab"):
        told = bring(HEAD + b"6-7,One,g/L,0,SER,,,,MIX\n7-5,Two,g/L,0,UR,,,,MIX\n")
        assert len(told.errors) == 1
        assert guard.session().scalars(select(LabPanel).where(LabPanel.code == "MIX")).first() is None


def test_the_demo_catalogue_goes_in_and_what_comes_out_goes_in_again(people: Acting) -> None:
    with people("lab"):
        content = Path("jobs/demo_laboratory.csv").read_bytes()
        assert bring(content.replace(b"2823-3", b"99-0").replace(b"2951-2", b"98-2")).errors == []
        text = io.StringIO(newline="")
        csv.writer(text).writerows(catalogue.rows(guard.session()))
        again = bring(text.getvalue().encode())
        assert (again.added, again.changed, again.ranges, again.errors) == (0, 0, 0, [])


def test_a_doctor_reads_it_and_changes_nothing(people: Acting) -> None:
    with people("doctor"):
        assert catalogue.find(guard.session())
        with pytest.raises(Forbidden):
            bring(HEAD + b"8-3,Theirs,g/L,0,SER,1,2,2020-01-01,\n")
        assert named("8-3") is None
        before = guard.session().scalars(select(ReferenceRange).order_by(ReferenceRange.id)).first()
        assert before is not None
        with pytest.raises(Forbidden), guard.unit_of_work() as session:
            catalogue.end_range(session, before.id, last_day=date(2026, 1, 1))
        guard.session().expire_all()
        kept = guard.session().scalars(select(ReferenceRange).where(ReferenceRange.id == before.id)).one()
        assert kept.valid_until is None


def test_the_pages_show_it_change_a_range_and_hand_it_out(laboratory: Laboratory, client_as: Any) -> None:
    with factories.acting(laboratory.hospital.accounts["lab"]):
        bring(HEAD + b"9-1,Gamma,g/L,0,SER,10,20,2020-01-01,\n")
        test = named("9-1")
        assert test is not None
        row = catalogue.show(guard.session(), test.id).ranges[0].id
        number = test.id
    bench = client_as("lab")
    assert "Gamma" in bench.get("/laboratory/catalogue/").text
    assert "10 – 20" in bench.get(f"/laboratory/catalogue/{number}/").text
    assert "9-1,Gamma" in bench.get("/laboratory/catalogue/export.csv").text.replace(",,", ",")
    path = f"/laboratory/catalogue/range/{number}/{row}/"
    assert bench.submit(path, {"since": "2026-01-01", "low": "11", "high": "20"}).status_code == 302
    assert "11 – 20" in bench.get(f"/laboratory/catalogue/{number}/").text
    assert client_as("doctor").get(path).status_code == 403
    assert bench.get("/laboratory/catalogue/upload/").status_code == 200
