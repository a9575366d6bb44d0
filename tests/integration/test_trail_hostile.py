"""Somebody means harm to the trail: what they try is found, kept, or comes to nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from app import guard, trail, tree
from app.policy import may
from jobs import trail as drainer
from jobs.verify import Search, verify
from models.base import now
from models.codes import RowScope
from tests.conftest import Browser, TrailLines
from tests.factories import Hospital
from tests.integration.test_tree import DOCTOR, Archive, archive  # noqa: F401  (a fixture)
from views.audit_files import plain
from views.security import where_from

ClientAs = Callable[[str], Browser]
FIRST_OF_ALL = "0001-01-01T00:00:00%2B00:00~00000000-0000-0000-0000-000000000000"


def kind_of(archive: Archive, *statements: str, since: Any = None) -> str | None:  # noqa: F811
    """What the check finds after this was done by somebody who owns the database."""
    archive.tamper(*statements)
    found = verify(since).fault
    return found.kind if found else None


def quarantine(archive: Archive) -> list[tuple[str, str]]:  # noqa: F811
    """Reason and content of what was set aside."""
    return archive.database.execute("SELECT reason, payload FROM audit_quarantine ORDER BY id").fetchall()


# ---- the check cannot be led astray, nor stopped -------------------------------------------------------------------


class BusyWitness(tree.FileWitness):
    """A witness whose notes take so long to read that a batch is stored meanwhile."""

    def __init__(self, path: Path, meanwhile: Callable[[], None]) -> None:
        super().__init__(path)
        self.meanwhile = meanwhile

    def notes(self) -> Iterable[str]:
        self.meanwhile()
        yield from super().notes()


@pytest.mark.parametrize("whole", [True, False])
def test_a_batch_stored_while_the_check_begins_is_no_fault(archive: Archive, whole: bool) -> None:  # noqa: F811
    third = archive.one("SELECT stored_at FROM audit_batch WHERE seq = 3")
    witness = BusyWitness(archive.folder / "witness", lambda: archive.write(5))
    with psycopg.connect(archive.url.replace("+psycopg", "")) as database, database.transaction():
        database.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        search = Search(database, tree.Seal(archive.seal.signer, witness), lambda _done, _all: None)
        search.run(None if whole else third)
    assert len(list(archive.seal.witness.notes())) == 4
    assert search.report.lines >= 40


def test_a_tree_before_the_first_batch_that_makes_no_sense_is_a_fault(archive: Archive) -> None:  # noqa: F811
    third = archive.one("SELECT stored_at FROM audit_batch WHERE seq = 3")
    assert kind_of(archive, "UPDATE audit_batch SET frontier = 'x' WHERE seq = 2", since=third) == "batch"


@pytest.mark.parametrize("leaves", ["substr(leaves, 1, 64)", "substr(leaves, 1, 65)", "''"])
def test_hashes_that_are_too_few_are_a_fault(archive: Archive, leaves: str) -> None:  # noqa: F811
    constraint = "ALTER TABLE audit_batch DROP CONSTRAINT audit_batch_leaves"
    assert kind_of(archive, constraint, f"UPDATE audit_batch SET leaves = {leaves} WHERE seq = 2") == "batch"


def test_a_batch_before_the_first_is_a_fault(archive: Archive) -> None:  # noqa: F811
    forged = "INSERT INTO audit_batch SELECT -1, now(), n, 7, leaves, frontier, note FROM audit_batch WHERE seq = 1"
    assert kind_of(archive, forged) == "batch"


@pytest.mark.parametrize("places", ["{(,)}", "{[0,)}", "{[0,1000000)}", "{}", "{[40,80)}"])
def test_a_forged_note_of_an_archive_hides_nothing(archive: Archive, places: str) -> None:  # noqa: F811
    note = (
        "INSERT INTO audit_archive (month, file, sha256, lines, leaves, archived_by, note) "
        f"SELECT '2019-05-01', 'x', '', 40, '{places}', 'x', note FROM audit_batch WHERE seq = 3"
    )
    assert kind_of(archive, note, "DELETE FROM audit_event WHERE batch_seq = 2") == "archive"


@pytest.mark.parametrize("kept", ["", "wardbook.trail Q9", "wardbook.trail " + "Q" * 91])
def test_a_note_that_was_torn_while_it_was_written_is_no_fault(archive: Archive, kept: str) -> None:  # noqa: F811
    path = archive.folder / "witness"
    path.write_text(path.read_text() + "\nwardbook.trail\n125\nx4Tn=\n\n— " + kept)
    archive.write(5)
    report = archive.look()
    assert (report.fault, report.witnessed) == (None, 4)


def test_a_note_of_another_key_in_the_witness_is_a_fault(archive: Archive) -> None:  # noqa: F811
    other = tree.key_at(archive.folder / "other.pem").note(tree.Checkpoint(500, b"x" * 32))
    archive.seal.witness.take(other)
    found = archive.look().fault
    assert found is not None
    assert found.kind == "signature"


# ---- whoever has the application's account for the database --------------------------------------------------------


def test_months_are_made_whatever_temporary_tables_the_caller_has(archive: Archive) -> None:  # noqa: F811
    months = [
        archive.one(f"SELECT to_char(now() AT TIME ZONE 'UTC' + interval '{n} months', 'YYYYMM')") for n in (3, 40)
    ]
    for month in (*months, "000000"):
        archive.database.execute(f"CREATE TEMP TABLE audit_event_{month} (i int)")
    archive.database.execute("CREATE TEMP TABLE audit_event (LIKE public.audit_event) PARTITION BY RANGE (recorded)")
    archive.database.execute("SELECT wb_audit_partitions(1000000)")
    made = "SELECT to_regclass('public.audit_event_{}') IS NOT NULL"
    assert [archive.one(made.format(month)) for month in months] == [True, False]


# ---- quarantine is no place to hide --------------------------------------------------------------------------------


def test_characters_somebody_typed_do_not_keep_a_change_out_of_the_trail(archive: Archive) -> None:  # noqa: F811
    """The six characters of an escaped null are text like any other; a null itself cannot be stored."""
    for called in ("\\u0000", "a\\\\u0000", "a\0b"):
        line = trail.event("U", "update", entities=[{"type": "Role", "ids": [1], "of": called}])
        trail.the_trail().write(DOCTOR, [line])
    drainer.drain()
    stored = archive.database.execute("SELECT entities->0->>'of' FROM audit_event WHERE action = 'U' ORDER BY leaf_no")
    assert [row[0] for row in stored] == ["\\u0000", "a\\\\u0000"]
    ((reason, _payload),) = quarantine(archive)
    assert "null" in reason
    assert verify().fault is None


@pytest.mark.parametrize("together", [True, False])
def test_a_line_whose_id_another_one_took_first_is_kept_and_shown(archive: Archive, together: bool) -> None:  # noqa: F811
    genuine = trail.event("R", "read", patient_id=4711, entities=[{"type": "Patient", "ids": [4711]}])
    forged = {**genuine, "patient_id": None, "entities": []}
    for line in (forged, genuine, genuine):
        trail.the_trail().write(DOCTOR, [line])
        if not together:
            drainer.drain()
    drainer.drain()
    assert archive.one(f"SELECT count(*) FROM audit_event WHERE id = '{genuine['id']}'") == 1
    kept = quarantine(archive)
    assert kept
    assert all(reason.endswith(drainer.TAKEN) and "4711" in payload for reason, payload in kept)
    assert verify().fault is None


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:51234", "203.0.113.9"),
        ("2001:DB8::7", "2001:db8::7"),
        ("[2001:db8::7]:51234", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
        ("unknown", None),
        ("_hidden", None),
        ("' OR 1=1", None),
        ("a\0b", None),
        ("", None),
        (None, None),
    ],
)
def test_where_somebody_comes_from_never_keeps_their_line_out(said: str | None, kept: str | None) -> None:
    assert where_from(said) == kept


def test_a_proxy_that_says_nonsense_keeps_no_line_out(
    app: Flask, client_as: ClientAs, hospital: Hospital, trail_lines: TrailLines
) -> None:
    client = client_as("nurse")
    client.environ_base["REMOTE_ADDR"] = "fe80::1%eth0"
    client.page(f"/patients/{hospital.patients[1]}/")
    assert {entry["agent"]["address"] for entry in trail_lines.entries()[-1:]} == {"fe80::1"}
    drainer.drain()
    assert not guard.session.connection().execute(text("SELECT 1 FROM audit_quarantine")).all()


def test_what_is_in_quarantine_is_open_only_to_whoever_may_see_the_whole_trail(
    client_as: ClientAs, granted: Any, hospital: Hospital
) -> None:
    with guard.engine().begin() as connection:
        key = connection.execute(
            text(
                "INSERT INTO audit_quarantine (source, payload, reason, found_at) "
                "VALUES ('stream 1-1', '{\"a\":\"198.51.100.77\"}', 'ValueError: torn', now()) RETURNING id"
            )
        ).scalar_one()
    address = f"/watch/?open={key}"
    assert "198.51.100.77" in client_as("privacy").page(address)
    for limit in ({"rows": RowScope.OWN_BRANCH}, {"masked": ["address"]}):
        granted("PrivacyOfficer", AuditEvent=may("read", **limit))
        client = client_as("privacy")
        assert f"open={key}" not in client.page("/watch/")
        answer = client.get(address)
        assert answer.status_code == 403
        assert "198.51.100.77" not in answer.text


# ---- questions and files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question", [f"before={FIRST_OF_ALL}", f"before={FIRST_OF_ALL}&from=1900-01-01", "from=2200-12-31&to=1900-01-01"]
)
def test_a_question_about_the_beginning_of_time_is_answered(client_as: ClientAs, question: str) -> None:
    client_as("privacy").page(f"/trail/?{question}")


@pytest.mark.parametrize(
    "cell", ["x;=1+1", 'x";=1+1', "x; \t@SUM(A1)", "x,+1", "x\n-1", "x|=1", "\uff1d1+1", "x;\uff1d1"]
)
def test_no_part_of_a_cell_is_a_formula_where_cells_are_parted_otherwise(cell: str) -> None:
    for parted in ";,|\t\n":
        for part in plain(cell).split(parted):
            assert not part.strip(' "').startswith(("=", "+", "-", "@", "\uff1d"))


def test_a_browsers_name_stays_as_it_is() -> None:
    said = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    assert plain(said) == said


def test_the_figures_of_the_trail_are_told_to_nobody_from_elsewhere(browser: Callable[[], Browser]) -> None:
    here, far = browser(), browser()
    here.environ_base["REMOTE_ADDR"] = "127.0.0.1"
    assert "trail_stands" in json.loads(here.page("/readyz"))
    assert json.loads(far.page("/readyz")) == {"status": "ready", "database": "ok", "sessions": "ok", "trail": "ok"}


def test_two_lines_of_one_id_are_shown_as_two(client_as: ClientAs, hospital: Hospital) -> None:
    """An id that is taken again a moment later must not stand before the line it was taken from."""
    genuine = trail.event("R", "read", patient_id=hospital.patients[1], entities=[{"type": "ClinicalNote", "ids": [1]}])
    forged = {**genuine, "recorded": now().isoformat(), "patient_id": None, "entities": [{"type": "Room", "ids": [1]}]}
    for line in (genuine, forged):
        trail.the_trail().write(DOCTOR, [line])
        drainer.drain()
    page = client_as("privacy").page("/trail/?person=Ada+Doctor&by=name")
    assert (page.count("notes"), page.count("Room")) == (1, 1)
