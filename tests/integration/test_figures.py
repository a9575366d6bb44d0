"""Numbers on the start page: from the view without identities, in one statement, and only those the policy opens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, select, text

from app import guard
from app.errors import Forbidden, Ungated
from app.policy import may
from app.services.figures import figures
from models.base import now
from models.codes import RowScope
from models.figures import Figure
from models.patients import Patient
from tests.conftest import Browser
from tests.factories import Hospital

ClientAs = Callable[[str], Browser]
Acting = Callable[[str], Any]


def sql(statement: str, **values: Any) -> list[Any]:
    """Something done or asked past the application."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """What was asked of the database since the test last cleared it."""
    asked: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(guard.engine(), "before_cursor_execute", note)
    yield asked
    event.remove(guard.engine(), "before_cursor_execute", note)


@pytest.fixture
def visits(hospital: Hospital) -> Iterator[dict[int, int]]:
    """Visits of the last days: branch -> how many; one patient of each branch had them. And two unknown people."""
    made = {hospital.branches[0]: 3, hospital.branches[1]: 5}
    for number, (branch, count) in enumerate(made.items()):
        for day in range(count):
            # At noon in UTC it is the same day at both branches, at whatever hour this runs.
            started = (now() - timedelta(days=day + 1)).replace(hour=12, minute=0)
            sql(
                "INSERT INTO encounter (patient_id, branch_id, status, class_code, type_display, reason, started_at, ended_at, "
                "fhir_id, version, created_at, updated_at) VALUES (:p, :b, 'finished', 'AMB', 'of the figures', '', :s, :s, "
                "gen_random_uuid(), 1, now(), now())",
                p=hospital.patients[number],
                b=branch,
                s=started,
            )
    sql("UPDATE patient SET temporary = true WHERE id IN (:a, :b)", a=hospital.patients[4], b=hospital.patients[5])
    yield made
    sql("DELETE FROM encounter WHERE type_display = 'of the figures'")
    sql("UPDATE patient SET temporary = false")


def tiles(page: str) -> dict[str, str]:
    """The start page's numbers by title."""
    found = re.findall(r'tile-title">.*?</svg>([^<]+)</span>\s*<span class="tile-value">([^<]+)<', page, re.S)
    return {title.strip(): value for title, value in found}


def table(page: str) -> dict[str, list[int]]:
    """The table beneath the plot: place -> visits a day, the newest first."""
    head, body = re.search(r'class="bar-table".*?<thead>(.*?)</thead>\s*<tbody>(.*?)</tbody>', page, re.S).groups()  # type: ignore[union-attr]
    places = re.findall(r'<th scope="col"[^>]*>([^<]+)</th>', head)[1:]
    rows = [re.findall(r'<td class="num">(\d+)</td>', row) for row in body.split("</tr>") if "<td" in row]
    return {place: [int(row[at]) for row in rows] for at, place in enumerate(places)}


# ---- adding up -----------------------------------------------------------------------------------------------------


def test_figures_add_up_to_what_is_in_the_tables(acting: Acting, visits: dict[int, int], hospital: Hospital) -> None:
    with acting("admin"):
        told = figures(guard.session())
    month = "started_at >= now() - interval '30 days' AND started_at <= now()"
    for kind, statement in {
        "registrations": "SELECT count(*) FROM patient WHERE created_at >= now() - interval '30 days'",
        "unidentified": "SELECT count(*) FROM patient WHERE temporary AND active",
        "visits": f"SELECT count(*) FROM encounter WHERE {month}",
        "staff": "SELECT count(*) FROM practitioner WHERE active AND user_id IS NOT NULL",
        "rooms": "SELECT count(*) FROM room WHERE active",
        "looks": "SELECT count(*) FROM audit_event WHERE recorded >= now() - interval '24 hours'",
        "refusals": "SELECT count(*) FROM audit_event WHERE recorded >= now() - interval '24 hours' AND outcome > 0",
    }.items():
        number = sql(statement)[0]["count"]
        assert told.total(kind) == number, kind
        assert sum(told.total(kind, branches=[branch]) for branch in (0, *hospital.branches)) == number, kind
    assert told.total("unidentified") == 2
    assert {branch: told.total("visits", branches=[branch]) for branch in hospital.branches} == visits


def test_an_unknown_person_who_is_known_now_or_out_of_use_is_not_counted(
    acting: Acting, visits: dict[int, int], hospital: Hospital
) -> None:
    sql("UPDATE patient SET active = false WHERE id = :p", p=hospital.patients[4])
    try:
        with acting("admin"):
            assert figures(guard.session()).total("unidentified") == 1
    finally:
        sql("UPDATE patient SET active = true WHERE id = :p", p=hospital.patients[4])


def test_the_numbers_the_plot_and_the_table_say_the_same(
    client_as: ClientAs, visits: dict[int, int], hospital: Hospital
) -> None:
    page = client_as("admin").page("/")
    shown = table(page)
    assert {place: sum(counts) for place, counts in shown.items()} == {"Hospital Norte": 3, "Every branch": 8}
    assert all(len(counts) == 30 for counts in shown.values())
    assert tiles(page)["Visits"] == "8"
    assert 'aria-label="Every branch: 8 visits in 30 days, at most 2 on one day, 0 today"' in page
    norte, every = re.findall(r'<svg class="bars".*?</svg>', page, re.S)
    assert (norte.count("<rect"), every.count("<rect")) == (3, 5)
    assert "style=" not in norte


def test_a_house_without_visits_draws_nothing_and_says_zero(client_as: ClientAs) -> None:
    page = client_as("doctor").page("/")
    assert tiles(page)["Visits"] == "0"
    assert "at most 0 a day" in page
    assert "<rect" not in re.search(r'<svg class="bars".*?</svg>', page, re.S).group()  # type: ignore[union-attr]


# ---- who is told what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("username", "expected"),
    [
        ("admin", {"Registered", "Visits", "People at work", "Rooms", "Looks into records", "Refusals"}),
        ("reception", {"Registered", "Visits"}),
        ("nurse", {"Registered", "Visits"}),
        ("doctor", {"Visits"}),
        ("billing", {"Visits"}),
        ("privacy", {"Looks into records", "Refusals"}),
        ("lab", set()),
        ("pharmacist", set()),
        ("patient", set()),
    ],
)
def test_everybody_is_told_the_kinds_of_their_role(username: str, expected: set[str], client_as: ClientAs) -> None:
    page = client_as(username).page("/")
    assert set(tiles(page)) == expected
    assert ('class="bars"' in page) == ("Visits" in expected)


def test_own_branch_narrows_figures_to_the_branches_of_the_actor(
    acting: Acting, client_as: ClientAs, granted: Any, visits: dict[int, int], hospital: Hospital
) -> None:
    granted("Nurse", Figure=may("read", rows=RowScope.OWN_BRANCH))
    with acting("nurse"):
        told = figures(guard.session())
        assert {row.branch_id for row in told.rows} == {hospital.branches[0]}
        assert told.of_the_chain == frozenset()
        assert told.total("visits") == visits[hospital.branches[0]]
        elsewhere = select(Figure).where(Figure.branch_id == hospital.branches[1])
        assert guard.session().scalars(elsewhere).all() == []
        assert guard.session().scalars(select(Figure).where(Figure.branch_id == 0)).all() == []
    page = client_as("nurse").page("/")
    assert tiles(page)["Visits"] == "3"
    assert table(page).keys() == {"Hospital Norte"}
    assert "your branches" in page
    assert "every branch" not in page
    assert "Every branch" not in page


def test_somebody_of_two_branches_is_told_of_both(client_as: ClientAs, granted: Any, visits: dict[int, int]) -> None:
    granted("Receptionist", Figure=may("read", rows=RowScope.OWN_BRANCH, kinds=["visits"]))
    page = client_as("reception").page("/")
    assert tiles(page) == {"Visits": "8"}
    assert {place: sum(counts) for place, counts in table(page).items()} == {"Hospital Norte": 3, "Your branches": 8}


def test_kinds_that_are_not_granted_are_not_in_the_answer(acting: Acting, granted: Any) -> None:
    granted("Doctor", Figure=may("read", kinds=["rooms"]))
    with acting("doctor"):
        assert {row.name for row in guard.session().scalars(select(Figure))} == {"rooms"}
        assert {row.name for row in guard.session().scalars(select(Figure).where(Figure.name == "looks"))} == set()
        assert figures(guard.session()).kinds == {"rooms"}


def test_without_the_right_there_are_no_figures_and_the_page_still_opens(
    acting: Acting, client_as: ClientAs, granted: Any
) -> None:
    granted("Nurse", Figure=None)
    with acting("nurse"), pytest.raises(Forbidden):
        guard.session().scalars(select(Figure)).all()
    page = client_as("nurse").page("/")
    assert tiles(page) == {}
    assert 'class="bars"' not in page


def test_two_roles_add_up(acting: Acting, granted: Any, hospital: Hospital) -> None:
    granted("Nurse", Figure=may("read", rows=RowScope.OWN_BRANCH, kinds=["visits", "rooms"]))
    granted("BillingClerk", Figure=may("read", kinds=["visits"]))
    sql(
        "INSERT INTO ab_user_role (user_id, role_id) SELECT :u, id FROM ab_role WHERE name = 'BillingClerk'",
        u=hospital.accounts["nurse"],
    )
    try:
        with acting("nurse"):
            told = figures(guard.session())
        assert told.kinds == {"visits", "rooms"}
        assert told.of_the_chain == {"visits"}
        assert told.total("rooms") == 1
    finally:
        sql(
            "DELETE FROM ab_user_role WHERE user_id = :u AND role_id = (SELECT id FROM ab_role WHERE name = 'BillingClerk')",
            u=hospital.accounts["nurse"],
        )


def test_figures_are_not_written_and_not_taken_apart(acting: Acting) -> None:
    with acting("admin"):
        with pytest.raises(Ungated):
            guard.session().execute(select(Figure.count)).all()
        with pytest.raises(Forbidden), guard.unit_of_work() as session:
            session.add(Figure(name="visits", branch_id=1, day=now().date(), count=7))


# ---- what leads on -------------------------------------------------------------------------------------------------


def test_the_unknown_wait_for_who_can_say_who_they_are(
    client_as: ClientAs, granted: Any, visits: dict[int, int]
) -> None:
    waiting = re.compile(r'big-count">(\d+)</span>\s*<span class="row-text"><b>Patients without a known identity')
    desk = client_as("reception")
    assert waiting.findall(desk.page("/")) == ["2"]
    assert desk.page("/patients/all/list/?_flt_0_temporary=true").count("<tr>") == 1 + 2
    for username in ("doctor", "billing", "privacy"):
        assert waiting.findall(client_as(username).page("/")) == []
    # Whoever sees the patients of one branch is not sent to look for the other's.
    granted("Nurse", Patient=may("read update", rows=RowScope.OWN_BRANCH))
    nurse = client_as("nurse")
    assert waiting.findall(nurse.page("/")) == ["1"]
    assert nurse.page("/patients/all/list/?_flt_0_temporary=true").count("<tr>") == 1 + 1


def test_a_number_leads_only_where_one_may_go(client_as: ClientAs, granted: Any) -> None:
    granted("PrivacyOfficer", AuditEvent=None)
    page = client_as("privacy").page("/")
    assert set(tiles(page)) == {"Looks into records", "Refusals"}
    assert 'href="/trail/' not in page
    assert 'href="/trail/?outcome=4"' in client_as("admin").page("/")


# ---- cost ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("username", "before", "after"), [("admin", 11, 7), ("reception", 7, 6), ("nurse", 4, 2), ("doctor", 4, 3)]
)
def test_all_the_numbers_of_the_start_page_cost_one_statement(
    username: str, before: int, after: int, client_as: ClientAs, statements: list[str]
) -> None:
    """`before` is what the page took while it counted patients, visits and lines of the trail by itself.

    Pages of whoever has something to decide count it besides, all of it in one statement.
    """
    client = client_as(username)
    client.page("/")
    client.page("/")
    statements.clear()
    client.page("/")
    assert len(statements) == after < before
    assert len([asked for asked in statements if "FROM figure" in asked]) == 1
    # Nothing else is counted but what waits for the person; the pairs to be judged are rows, not a count.
    counted = [asked for asked in statements if re.search(r"\bcount\(", asked.lower())]
    assert not [asked for asked in counted if not re.search("emergency|clinical_note|patient_proposal", asked)]


def test_a_narrowed_actor_costs_no_more(client_as: ClientAs, granted: Any, statements: list[str]) -> None:
    granted("Nurse", Figure=may("read", rows=RowScope.OWN_BRANCH))
    client = client_as("nurse")
    client.page("/")
    client.page("/")
    statements.clear()
    client.page("/")
    assert len(statements) == 2


def test_what_is_not_asked_for_is_not_counted(hospital: Hospital) -> None:
    """PostgreSQL leaves out the parts of the view that a kind is not in."""
    plan = "\n".join(
        row["QUERY PLAN"] for row in sql("EXPLAIN SELECT * FROM figure WHERE name IN ('visits') AND branch_id IN (1)")
    )
    assert "encounter" in plan
    assert "audit_event" not in plan
    assert " on patient" not in plan


def test_nobody_is_named_in_a_figure(hospital: Hospital) -> None:
    columns = [
        row["column_name"]
        for row in sql("SELECT column_name FROM information_schema.columns WHERE table_name = 'figure'")
    ]
    assert sorted(columns) == ["branch_id", "count", "day", "name"]
    assert Patient.__tablename__ not in columns
