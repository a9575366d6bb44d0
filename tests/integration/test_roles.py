"""What roles may do: the page, what it changes and when that counts, and what nobody can grant away by any door."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient
from flask_appbuilder.security.sqla.models import Group, Role, User
from sqlalchemy import event, select, text

from app import guard, policy
from app.actor import service
from app.errors import Conflict, Forbidden, Invalid, OwnRoles
from app.policy import Grant, RowScope
from app.services import accounts, roles
from app.services.roles import Sheet
from jobs import trail as drainer
from models.access import RoleGrant, RoleSetting
from tests.conftest import Browser, Database, csrf_of, spoken
from tests.factories import PASSWORD, Hospital
from views.roles import FIELDS, GROUPS, KINDS, OF_ROWS, SCOPES, THINGS, Ticks, tell

pytestmark = pytest.mark.usefixtures("app", "as_it_was")
ClientAs = Callable[[str], Browser]
PAGE = "/access/roles/"
WHY = "Agreed with the head nurse"
NOTES_AND_ROLES = "Whoever configures roles must not see clinical notes"
BOTH_AT_ONCE = "Somebody would configure roles and see clinical notes at once"
OWN = "Nobody changes their own roles"
NOT_YOURS = "Your role does not allow this"
"""Whoever only opens accounts changes no administrator, the last one or not."""
LAST = "Somebody has to remain who can configure roles and accounts"
PATIENTS = "Patients see their own records only"

# ---- the tables, past the gate ---------------------------------------------------------------------------------------


def sql(statement: str, **values: Any) -> list[Any]:
    """Something done or asked past the application, as an administrator of the database would."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


KEPT = ("ab_role", "role_setting", "role_grant", "ab_permission_view_role", "ab_user_role")


@pytest.fixture(autouse=True)
def as_it_was(database: Database) -> Iterator[None]:
    """Every test finds the shipped roles, and each account with its own."""
    with guard.engine().begin() as connection:
        for table in KEPT:
            connection.execute(text(f"CREATE TABLE IF NOT EXISTS was_{table} AS SELECT * FROM {table}"))
        connection.execute(text("CREATE TABLE IF NOT EXISTS was_ab_user AS SELECT id, active FROM ab_user"))
    yield
    guard.session.remove()
    with guard.engine().begin() as connection:
        connection.execute(text("DELETE FROM ab_user_group"))
        connection.execute(text("DELETE FROM ab_group_role"))
        connection.execute(text("DELETE FROM ab_group"))
        for table in reversed(KEPT):
            connection.execute(text(f"DELETE FROM {table}"))
        connection.execute(text("UPDATE ab_user SET created_by_fk = NULL, changed_by_fk = NULL"))
        connection.execute(text("DELETE FROM ab_user WHERE id NOT IN (SELECT id FROM was_ab_user)"))
        connection.execute(text("UPDATE ab_user u SET active = w.active FROM was_ab_user w WHERE w.id = u.id"))
        for table in KEPT:
            connection.execute(text(f"INSERT INTO {table} SELECT * FROM was_{table}"))


def state() -> Any:
    """Everything about roles and who holds them, in one word."""
    parts = ", ".join(
        f"(SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {table} t) AS {table}" for table in KEPT
    )
    open_accounts = "(SELECT string_agg(username, ',' ORDER BY id) FROM ab_user WHERE active) AS accounts"
    return dict(sql(f"SELECT {parts}, {open_accounts}")[0])


def role_id(name: str) -> int:
    return int(sql("SELECT id FROM ab_role WHERE name = :n", n=name)[0]["id"])


def permission(pair: str) -> int:
    """The row of "update:Role" in Flask-AppBuilder's table of permissions."""
    action, resource = pair.split(":")
    found = sql(
        "SELECT pv.id FROM ab_permission_view pv JOIN ab_permission p ON p.id = permission_id "
        "JOIN ab_view_menu m ON m.id = view_menu_id WHERE p.name = :a AND m.name = :r",
        a=f"can_{action}",
        r=resource,
    )
    return int(found[0]["id"])


def held(role: str) -> set[str]:
    """What a role is granted, as "update:Role"."""
    found = sql(
        "SELECT substr(p.name, 5) || ':' || m.name AS pair FROM ab_permission_view_role pvr "
        "JOIN ab_permission_view pv ON pv.id = permission_view_id JOIN ab_permission p ON p.id = permission_id "
        "JOIN ab_view_menu m ON m.id = view_menu_id WHERE role_id = :r",
        r=role_id(role),
    )
    return {row["pair"] for row in found}


def limits(role: str, resource: str) -> tuple[str, list[str], list[str]]:
    """Rows, kinds and masked fields of a resource for a role."""
    (row,) = sql("SELECT * FROM role_grant WHERE role_id = :r AND resource = :m", r=role_id(role), m=resource)
    return row["rows"], row["kinds"], row["masked"]


def make_role(name: str, *pairs: str) -> int:
    """A further role, past the gate."""
    key = int(sql("INSERT INTO ab_role (name) VALUES (:n) RETURNING id", n=name)[0]["id"])
    sql("INSERT INTO role_setting (role_id) VALUES (:k)", k=key)
    for pair in pairs:
        sql(
            "INSERT INTO ab_permission_view_role (permission_view_id, role_id) VALUES (:p, :k)",
            p=permission(pair),
            k=key,
        )
    return key


def hand(username: str, role: str) -> None:
    """Give somebody a further role, past the gate."""
    sql(
        "INSERT INTO ab_user_role (user_id, role_id) SELECT u.id, r.id FROM ab_user u, ab_role r "
        "WHERE u.username = :u AND r.name = :r",
        u=username,
        r=role,
    )


def open_account(username: str, *names: str) -> int:
    """A further account."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        made = accounts.open_account(
            session,
            username=username,
            password=PASSWORD,
            first_name=username.title(),
            last_name="Test",
            email=f"{username}@example.org",
            roles=names,
        )
        return int(made.id)


# ---- the page, as a browser sends it ------------------------------------------------------------------------------------


class Fields(HTMLParser):
    """What a browser would send of each form of a page, every tick of it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.forms: list[dict[str, list[str]]] = []
        self.choice: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        said = dict(pairs)
        name = said.get("name") or ""
        if tag == "form":
            self.forms.append({})
        elif not self.forms or "disabled" in said:
            return
        elif tag == "input" and name and (said.get("type") != "checkbox" or "checked" in said):
            self.forms[-1].setdefault(name, []).append(said.get("value") or "")
        elif tag == "select":
            self.choice = name
        elif tag == "option" and self.choice and (self.choice not in self.forms[-1] or "selected" in said):
            self.forms[-1][self.choice] = [said.get("value") or ""]


def fields_of(page: str) -> dict[str, list[str]]:
    """The fields of the page's form that carries a role."""
    (found,) = [form for form in Fields(page).forms if "seen" in form]
    return found


def words(page: str) -> str:
    """What a page says, without its markup."""
    return unescape(re.sub(r"\s+", " ", re.sub(r"<(script|style|svg)\b.*?</\1>|<[^>]+>", " ", page, flags=re.S)))


def address(role: str) -> str:
    return f"{PAGE}?role={role_id(role)}"


def edited(
    fields: dict[str, list[str]],
    *,
    tick: tuple[str, ...] = (),
    untick: tuple[str, ...] = (),
    rows: dict[str, str] | None = None,
    hide: tuple[str, ...] = (),
    show: tuple[str, ...] = (),
    kinds: dict[str, tuple[str, ...]] | None = None,
) -> dict[str, list[str]]:
    """The form with some ticks set and some taken away."""
    mine = {name: [*values] for name, values in fields.items()}
    mine["may"] = [value for value in mine.get("may", []) if value not in untick] + [*tick]
    mine["mask"] = [value for value in mine.get("mask", []) if value not in show] + [*hide]
    for resource, chosen in (kinds or {}).items():
        others = [value for value in mine.get("kind", []) if not value.startswith(f"{resource}:")]
        mine["kind"] = others + [f"{resource}:{kind}" for kind in chosen]
    for resource, scope in (rows or {}).items():
        mine[f"rows:{resource}"] = [scope]
    return mine


def review(client: Browser, role: str, **edits: Any) -> Any:
    """Tick, and ask what that changes."""
    fields = edited(fields_of(client.page(address(role))), **edits)
    return client.post(address(role), data={**fields, "step": "review"})


def save(client: Browser, role: str, *, reason: str = WHY, **edits: Any) -> Any:
    """Tick, review, save; the answer of the step that was refused, or of the last one."""
    answer = review(client, role, **edits)
    if answer.status_code != 200:
        return answer
    return client.post(address(role), data={**fields_of(answer.text), "reason": reason, "step": "save"})


# ---- what the page shows -------------------------------------------------------------------------------------------


def test_every_resource_scope_kind_and_field_has_a_word_and_a_place() -> None:
    assert sorted(name for _, names in GROUPS for name in names) == sorted(policy.RESOURCES)
    assert set(THINGS) == set(policy.RESOURCES)
    assert set(SCOPES) == set(OF_ROWS) == set(RowScope)
    assert set(KINDS) == {kind for kinds in policy.KINDS.values() for kind in kinds}
    assert set(FIELDS) == {(resource, name) for resource, names in policy.MASKABLE.items() for name in names}


@pytest.mark.parametrize("role", list(policy.Role))
def test_the_grid_of_a_shipped_role_says_what_is_shipped(role: str, client_as: ClientAs) -> None:
    fields = fields_of(client_as("admin").page(address(role)))
    shipped = policy.MATRIX[role]
    assert set(fields["may"]) == {f"{action}:{name}" for name, grant in shipped.items() for action in grant.actions}
    for name, grant in shipped.items():
        if role != policy.Role.PATIENT and len(policy.scopes_of(name)) > 1:
            assert fields[f"rows:{name}"] == [grant.rows]
        ticked = {value.split(":")[1] for value in fields["kind"] if value.startswith(f"{name}:")}
        assert ticked == set(grant.kinds or policy.KINDS.get(name, ()))
        hidden = {value.split(":")[1] for value in fields.get("mask", []) if value.startswith(f"{name}:")}
        assert hidden == grant.masked


def test_a_grid_sent_back_as_it_was_changes_nothing(client_as: ClientAs) -> None:
    admin, before = client_as("admin"), state()
    for role in policy.Role:
        answer = review(admin, role)
        assert answer.status_code == 422, role
        assert "Nothing is different from before" in answer.text
    assert state() == before


def test_the_page_asks_for_headers_words_and_the_number_of_people(client_as: ClientAs) -> None:
    open_account("nurse2", "Nurse")
    page = client_as("admin").page(address("Nurse"))
    assert "held by 2 people" in words(page)
    assert '<th scope="row">' in page
    assert 'aria-label="Change: Allergies"' in page
    assert "AllergyIntolerance<" not in page
    assert "Never together with configuring roles" in words(page)


def test_what_a_group_gives_counts_as_held(client_as: ClientAs) -> None:
    with_group("lab", "Nurse")
    assert "held by 2 people" in words(client_as("admin").page(address("Nurse")))


def test_all_roles_at_a_glance(client_as: ClientAs) -> None:
    page = words(client_as("admin").page(f"{PAGE}all/"))
    assert "see, add, change some kinds" in page
    assert "Their own record" in page


# ---- reviewing and saving --------------------------------------------------------------------------------------------


def test_a_review_tells_in_sentences_and_changes_nothing(client_as: ClientAs) -> None:
    before = state()
    answer = review(
        client_as("admin"),
        "Nurse",
        tick=("read:Condition",),
        untick=("update:AllergyIntolerance",),
        rows={"Encounter": "own_branch", "Condition": "care_team"},
        hide=("Encounter:reason",),
        kinds={"Observation": ("vital-signs", "laboratory")},
    )
    assert answer.status_code == 200
    said = words(answer.text)
    gains, loses = said.split("Loses")[0], said.split("Loses")[1]
    assert "Nurse may now see conditions." in gains
    assert "Nurse sees conditions only of patients in their care." in gains
    assert "Of observations Nurse now sees: laboratory." in gains
    assert "Nurse may no longer change allergies." in loses
    assert "Nurse sees visits only of their own branch. Before: of the whole chain." in loses
    assert "Nurse no longer sees the reason of visits." in loses
    assert "It concerns 1 person" in said
    assert state() == before


def test_a_saved_change_is_exactly_what_was_reviewed(client_as: ClientAs) -> None:
    admin, before = client_as("admin"), held("Nurse")
    answer = save(
        admin,
        "Nurse",
        tick=("read:Condition", "create:Condition"),
        untick=("update:AllergyIntolerance",),
        rows={"Encounter": "own_branch", "Condition": "care_team"},
        hide=("Encounter:reason",),
        kinds={"Observation": tuple(policy.KINDS["Observation"])},
    )
    assert answer.status_code == 302
    assert held("Nurse") == before - {"update:AllergyIntolerance"} | {"read:Condition", "create:Condition"}
    assert limits("Nurse", "Encounter") == ("own_branch", [], ["reason"])
    assert limits("Nurse", "Condition") == ("care_team", [], [])
    assert limits("Nurse", "Observation") == ("chain", [], [])
    page = admin.page(answer.headers["Location"])
    assert "Saved. It counts from everybody" in page
    assert "update:AllergyIntolerance" not in fields_of(page)["may"]


def test_back_keeps_the_ticks_and_the_reason(client_as: ClientAs) -> None:
    admin = client_as("admin")
    asked = fields_of(review(admin, "Nurse", tick=("read:Condition",), rows={"Condition": "care_team"}).text)
    answer = admin.post(address("Nurse"), data={**asked, "reason": "Half a thought", "step": "back"})
    assert answer.status_code == 200
    fields = fields_of(answer.text)
    assert "read:Condition" in fields["may"]
    assert fields["rows:Condition"] == ["care_team"]
    again = admin.post(address("Nurse"), data={**fields, "step": "review"})
    assert 'value="Half a thought"' in again.text


@pytest.mark.parametrize("reason", ["", "   ", "no", "x" * 301, "a null \x00 in it"])
def test_without_a_reason_nothing_is_saved(reason: str, client_as: ClientAs) -> None:
    before = state()
    answer = save(client_as("admin"), "Nurse", tick=("read:Condition",), reason=reason)
    assert answer.status_code == 422
    assert 'id="reason-error"' in answer.text
    assert "Nurse may now see conditions" in answer.text
    assert state() == before


def test_what_was_not_reviewed_is_reviewed_first(client_as: ClientAs) -> None:
    """Other ticks than those of the sentences that were shown: the sentences are shown again."""
    admin, before = client_as("admin"), state()
    asked = fields_of(review(admin, "Nurse", tick=("read:Condition",)).text)
    asked["may"].append("read:Procedure")
    answer = admin.post(address("Nurse"), data={**asked, "reason": WHY, "step": "save"})
    assert answer.status_code == 200
    assert "Nurse may now see procedures" in answer.text
    assert state() == before


def test_the_second_factor_is_asked_for_by_a_tick(client_as: ClientAs) -> None:
    admin = client_as("admin")
    fields = {**fields_of(admin.page(address("BillingClerk"))), "second_factor": "y", "step": "review"}
    asked = admin.post(address("BillingClerk"), data=fields)
    assert "Billing has to sign in with a code as well." in asked.text
    answer = admin.post(address("BillingClerk"), data={**fields_of(asked.text), "reason": WHY, "step": "save"})
    assert answer.status_code == 302
    assert sql("SELECT second_factor FROM role_setting WHERE role_id = :r", r=role_id("BillingClerk")) == [
        {"second_factor": True}
    ]


def test_a_resource_granted_again_is_not_suddenly_open(client_as: ClientAs) -> None:
    """What was said of the rows and fields of a resource outlives the last tick on it."""
    admin = client_as("admin")
    assert save(admin, "Receptionist", untick=("read:Encounter",)).status_code == 302
    key = role_id("Receptionist")
    again = [permission(pair) for pair in {*held("Receptionist"), "read:Encounter"}]
    assert admin.submit(f"/roles/edit/{key}", {"name": "Receptionist", "permissions": again}).status_code == 302
    assert limits("Receptionist", "Encounter") == ("chain", [], ["reason"])
    assert admin.get(address("Receptionist")).text.count("Encounter:reason") == 1


# ---- what counts when ----------------------------------------------------------------------------------------------


def test_a_tick_counts_on_the_next_request_of_every_session(
    client_as: ClientAs, api_as: Callable[[str], FlaskClient], hospital: Hospital
) -> None:
    page, program, admin = client_as("nurse"), api_as("nurse"), client_as("admin")
    key = hospital.patients[1]
    assert page.get(f"/patients/{key}/?tab=conditions").status_code == 403
    assert program.get("/api/v1/condition/").status_code == 403
    assert save(admin, "Nurse", tick=("read:Condition",)).status_code == 302
    assert page.get(f"/patients/{key}/?tab=conditions").status_code == 200
    assert program.get("/api/v1/condition/").get_json()["count"] == 2
    assert save(admin, "Nurse", untick=("read:Condition",)).status_code == 302
    assert page.get(f"/patients/{key}/?tab=conditions").status_code == 403
    assert program.get("/api/v1/condition/").status_code == 403


def test_rows_kinds_and_hidden_fields_count_on_the_next_request(
    client_as: ClientAs, api_as: Callable[[str], FlaskClient], hospital: Hospital
) -> None:
    nurse, admin = api_as("nurse"), client_as("admin")
    assert nurse.get("/api/v1/encounter/").get_json()["count"] == 2
    assert nurse.get("/api/v1/observation/").get_json()["count"] == 2
    visit = f"/api/v1/encounter/{hospital.own_rows['Encounter']}"
    assert nurse.get(visit).get_json()["result"]["reason"]
    answer = save(
        admin,
        "Nurse",
        rows={"Encounter": "own_branch"},
        hide=("Encounter:reason",),
        kinds={"Observation": tuple(policy.KINDS["Observation"])},
    )
    assert answer.status_code == 302
    assert [row["id"] for row in nurse.get("/api/v1/encounter/").get_json()["result"]] == [
        hospital.own_rows["Encounter"]
    ]
    assert nurse.get(visit).get_json()["result"]["reason"] is None
    assert nurse.get(f"/api/v1/encounter/{hospital.rows['Encounter']}").status_code == 404
    assert nurse.get("/api/v1/observation/").get_json()["count"] == 6


ELSEWHERE = """
import sys
from app import guard
from app.actor import Origin, nobody
guard.connect(sys.argv[1])
for _ in sys.stdin:
    with guard.acting_as(nobody()):
        who = guard.who_is(int(sys.argv[2]), Origin())
    print("yes" if who.may("read", "Condition") else "no", flush=True)
"""


def test_a_tick_counts_in_another_process(client_as: ClientAs, database: Database, hospital: Hospital) -> None:
    """A process that has looked the roles up already is told by the policy's number."""
    admin = client_as("admin")
    with subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE, database.url, str(hospital.accounts["nurse"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def ask() -> str:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdin.write("?\n")
            other.stdin.flush()
            return other.stdout.readline().strip()

        assert [ask(), ask()] == ["no", "no"]
        assert save(admin, "Nurse", tick=("read:Condition",)).status_code == 302
        assert ask() == "yes"
        assert save(admin, "Nurse", untick=("read:Condition",)).status_code == 302
        assert ask() == "no"
        other.stdin.close()


# ---- the trail -------------------------------------------------------------------------------------------------------


def lines() -> list[Any]:
    """What waits for the trail: [(action, reason, entity)], whoever the entity is about."""
    found = sql("SELECT event FROM audit_outbox ORDER BY id")
    return [
        (line["action"], line["reason"], entity)
        for row in found
        for line in spoken(row["event"])["events"]
        for entity in line["entities"]
    ]


def test_the_trail_has_what_was_and_is_and_why(client_as: ClientAs) -> None:
    admin = client_as("admin")
    sql("DELETE FROM audit_outbox")
    answer = save(
        admin,
        "Nurse",
        tick=("read:Condition",),
        untick=("update:AllergyIntolerance",),
        rows={"Encounter": "own_branch"},
        hide=("Encounter:reason",),
    )
    assert answer.status_code == 302
    found = lines()
    assert {reason for _, reason, _ in found} == {WHY}
    by_type = {(action, entity["type"]): entity for action, _, entity in found}
    role = by_type["U", "Role"]
    assert role["ids"] == [role_id("Nurse")]
    assert role["old"] == {"permissions": ["can update on AllergyIntolerance"]}
    assert role["new"] == {"permissions": ["can read on Condition"]}
    limited = by_type["U", "RoleGrant"]
    assert limited["old"] == {"rows": "chain", "masked": []}
    assert limited["new"] == {"rows": "own_branch", "masked": ["reason"]}


def test_the_trail_page_shows_it_and_can_be_asked_for_one_role(client_as: ClientAs) -> None:
    admin = client_as("admin")
    assert save(admin, "Nurse", tick=("read:Condition",), untick=("read:Immunization",)).status_code == 302
    assert save(admin, "Doctor", untick=("read:Immunization",), reason="Only for this test").status_code == 302
    drainer.drain()
    privacy = client_as("privacy")
    said = words(privacy.page(f"/trail/?role={role_id('Nurse')}"))
    assert "may: + see conditions − see immunisations" in said
    assert f"Why: {WHY}" in said
    assert "Only for this test" not in said
    assert "Earlier changes" in words(admin.page(address("Nurse")))
    for nonsense in ("x", "-1", "9" * 30, "1'"):
        assert privacy.get(f"/trail/?role={nonsense}").status_code == 200


# ---- what nobody can grant away: one role ----------------------------------------------------------------------------


def refused(answer: Any, status: int, sentence: str) -> None:
    """A page with the sentence, the form still on it, and no redirect."""
    assert answer.status_code == status, answer.text[:500]
    assert sentence in words(answer.text)


@pytest.mark.parametrize("resource", policy.NOTES)
@pytest.mark.parametrize("action", ["create", "update", "delete"])
def test_no_role_configures_roles_and_has_notes(action: str, resource: str, client_as: ClientAs) -> None:
    admin, before = client_as("admin"), state()
    answer = review(admin, "Nurse", tick=(f"read:{resource}", f"{action}:Role"))
    refused(answer, 403, NOTES_AND_ROLES)
    fields = fields_of(answer.text)
    assert {f"read:{resource}", f"{action}:Role"} <= set(fields["may"]), "the ticks are kept"
    # The review is not the fence: the same ticks sent at once to be saved.
    answer = admin.post(address("Nurse"), data={**fields, "reason": WHY, "reviewed": "x", "step": "save"})
    refused(answer, 403, NOTES_AND_ROLES)
    assert state() == before


def test_nor_by_the_stock_page(client_as: ClientAs) -> None:
    admin, before = client_as("admin"), state()
    key = role_id("Nurse")
    wanted = [permission(pair) for pair in {*held("Nurse"), "update:Role", "read:ClinicalNote"}]
    refused(admin.submit(f"/roles/edit/{key}", {"name": "Nurse", "permissions": wanted}), 403, NOTES_AND_ROLES)
    both = [permission("update:Role"), permission("read:DocumentReference")]
    refused(admin.submit("/roles/add", {"name": "Both", "permissions": both}), 403, NOTES_AND_ROLES)
    assert state() == before


def test_the_wording_of_reports_stays_hidden_from_whoever_configures_roles(client_as: ClientAs) -> None:
    before = state()
    answer = review(client_as("admin"), "LabTechnician", tick=("create:Role",))
    refused(answer, 403, "The wording of reports stays hidden")
    assert state() == before


# ---- two roles on one person -----------------------------------------------------------------------------------------


def with_group(username: str, role: str) -> None:
    """Somebody in a group that has a role, past the gate."""
    key = sql("INSERT INTO ab_group (name) VALUES (:n) RETURNING id", n=f"{username} {role}")[0]["id"]
    sql(
        "INSERT INTO ab_user_group (user_id, group_id) SELECT id, :g FROM ab_user WHERE username = :u",
        g=key,
        u=username,
    )
    sql("INSERT INTO ab_group_role (group_id, role_id) VALUES (:g, :r)", g=key, r=role_id(role))


def account_form(client: Browser, user_id: int, **fields: Any) -> Any:
    """The account form of somebody, with some fields filled in otherwise."""
    (row,) = sql("SELECT * FROM ab_user WHERE id = :u", u=user_id)
    kept = {name: row[name] for name in ("first_name", "last_name", "username", "email")}
    kept["roles"] = [r["role_id"] for r in sql("SELECT role_id FROM ab_user_role WHERE user_id = :u", u=user_id)]
    kept |= {"active": "y"} if row["active"] else {}
    wanted = {name: value for name, value in {**kept, **fields}.items() if value is not None}
    token = csrf_of(client.page(f"/users/edit/{user_id}"))
    return client.post(f"/users/edit/{user_id}", data={"csrf_token": token, **wanted})


def test_nobody_holds_both_through_two_roles_of_an_account(client_as: ClientAs, hospital: Hospital) -> None:
    admin, before = client_as("admin"), state()
    both = [role_id("Doctor"), role_id("Admin")]
    answer = account_form(admin, hospital.accounts["doctor"], roles=both)
    refused(answer, 403, BOTH_AT_ONCE)
    assert "Dora Doctor" in answer.text
    assert state() == before


def test_nobody_holds_both_through_a_group(client_as: ClientAs) -> None:
    """A group gives its roles to whoever is in it, and counts like a role of their own."""
    make_role("Quality", "read:Encounter")
    open_account("second", "Admin")
    with_group("second", "Quality")
    admin, before = client_as("admin"), state()
    answer = save(admin, "Quality", tick=("read:ClinicalNote",))
    refused(answer, 403, BOTH_AT_ONCE)
    assert "Second Test" in answer.text
    assert state() == before


def test_groups_are_nobody_s_to_change(hospital: Hospital, acting: Any) -> None:
    before = state()

    def both() -> None:
        with acting("admin"), guard.unit_of_work() as session:
            doctor = session.get_one(User, hospital.accounts["doctor"])
            admins = session.scalars(select(Role).where(Role.name == "Admin")).one()
            session.add(Group(name="Committee", users=[doctor], roles=[admins]))

    with pytest.raises(Forbidden):
        both()
    assert state() == before
    assert not sql("SELECT 1 FROM ab_group")


def test_nobody_comes_to_both_by_a_tick_on_a_further_role(client_as: ClientAs) -> None:
    """The notes are ticked for a role that an administrator holds beside the other one."""
    make_role("Quality", "read:Encounter")
    open_account("second", "Admin", "Quality")
    admin, before = client_as("admin"), state()
    answer = save(admin, "Quality", tick=("read:ClinicalNote",))
    refused(answer, 403, BOTH_AT_ONCE)
    assert "Second Test" in answer.text
    assert "read:ClinicalNote" in fields_of(answer.text)["may"]
    key = role_id("Quality")
    wanted = [permission("read:Encounter"), permission("read:ClinicalNote")]
    refused(admin.submit(f"/roles/edit/{key}", {"name": "Quality", "permissions": wanted}), 403, BOTH_AT_ONCE)
    assert state() == before


def test_nobody_comes_to_both_by_a_role_taken_back_into_use(client_as: ClientAs) -> None:
    key = make_role("Reviewer", "read:ClinicalNote")
    sql("UPDATE role_setting SET retired_at = now() WHERE role_id = :k", k=key)
    open_account("second", "Admin", "Reviewer")
    admin, before = client_as("admin"), state()
    answer = admin.submit(f"{PAGE}{key}/retire/", {"reason": WHY})
    refused(answer, 403, BOTH_AT_ONCE)
    assert state() == before


def test_nobody_comes_to_both_by_an_account_opened_again(client_as: ClientAs) -> None:
    """A closed account holds whatever it holds; it is opened only if that may be."""
    user = open_account("second", "Nurse")
    sql("UPDATE ab_user SET active = false WHERE id = :u", u=user)
    hand("second", "Admin")
    hand("second", "Doctor")
    admin, before = client_as("admin"), state()
    refused(account_form(admin, user, active="y"), 403, BOTH_AT_ONCE)
    assert state() == before


# ---- one's own roles ---------------------------------------------------------------------------------------------------


def test_nobody_gives_themselves_a_role(client_as: ClientAs, hospital: Hospital) -> None:
    admin, before = client_as("admin"), state()
    me = hospital.accounts["admin"]
    refused(account_form(admin, me, roles=[role_id("Admin"), role_id("Nurse")]), 403, OWN)
    refused(account_form(admin, me, roles=[role_id("Nurse")]), 403, OWN)
    assert state() == before


@pytest.mark.parametrize(
    "edits",
    [
        {"tick": ("create:Encounter",)},
        {"rows": {"Encounter": "own_branch"}},
        {"show": ("EmergencyAccess:justification",)},
        {"tick": ("create:PatientLink",), "untick": ("read:Condition",)},
    ],
)
def test_nobody_changes_a_role_they_hold_on_the_page(edits: dict[str, Any], client_as: ClientAs) -> None:
    admin, before = client_as("admin"), state()
    assert "You hold this role yourself" in words(admin.page(address("Admin")))
    answer = save(admin, "Admin", **edits)
    refused(answer, 403, OWN)
    assert set(edits.get("tick", ())) <= set(fields_of(answer.text)["may"])
    assert state() == before


def test_nor_on_the_stock_page(client_as: ClientAs) -> None:
    admin, before = client_as("admin"), state()
    wanted = [permission(pair) for pair in {*held("Admin"), "create:Encounter"}]
    answer = admin.submit(f"/roles/edit/{role_id('Admin')}", {"name": "Admin", "permissions": wanted})
    refused(answer, 403, OWN)
    assert state() == before


def test_nor_through_a_group_of_theirs(client_as: ClientAs) -> None:
    make_role("Helper", "read:Encounter")
    with_group("admin", "Helper")
    admin, before = client_as("admin"), state()
    refused(save(admin, "Helper", tick=("read:Condition",)), 403, OWN)
    assert state() == before


def test_nor_by_filling_a_retired_role_of_theirs_and_taking_it_back(client_as: ClientAs) -> None:
    """A retired role is none of the roles somebody acts with, and still it is theirs."""
    key = make_role("Sleeper", "read:Encounter")
    sql("UPDATE role_setting SET retired_at = now() WHERE role_id = :k", k=key)
    hand("admin", "Sleeper")
    admin = client_as("admin")
    assert save(admin, "Sleeper", tick=("create:Encounter",)).status_code == 302
    before = state()
    refused(admin.submit(f"{PAGE}{key}/retire/", {"reason": WHY}), 403, OWN)
    assert state() == before


def test_something_may_be_given_up(client_as: ClientAs) -> None:
    admin = client_as("admin")
    before = held("Admin")
    assert save(admin, "Admin", untick=("read:PatientLink", "update:PatientLink")).status_code == 302
    assert held("Admin") == before - {"read:PatientLink", "update:PatientLink"}


# ---- the last administrator ----------------------------------------------------------------------------------------


@pytest.fixture
def registrar() -> None:
    """An account that may change accounts, and no roles."""
    make_role("Registrar", "read:User", "update:User", "read:Role")
    open_account("registrar", "Registrar")


@pytest.fixture
def configurer() -> None:
    """An account that may change roles, and no accounts."""
    make_role("Configurer", "read:Role", "create:Role", "update:Role", "delete:Role")
    open_account("configurer", "Configurer")


@pytest.mark.usefixtures("registrar")
def test_the_last_administrator_keeps_the_role(client_as: ClientAs, hospital: Hospital) -> None:
    client, before = client_as("registrar"), state()
    refused(account_form(client, hospital.accounts["admin"], roles=[role_id("Nurse")]), 403, NOT_YOURS)
    assert state() == before


@pytest.mark.usefixtures("registrar")
def test_the_last_administrator_s_account_stays_open(client_as: ClientAs, hospital: Hospital) -> None:
    client, before = client_as("registrar"), state()
    refused(account_form(client, hospital.accounts["admin"], active=None), 403, NOT_YOURS)
    assert state() == before


def test_the_last_administrator_does_not_lock_themselves_out(client_as: ClientAs, hospital: Hospital) -> None:
    admin, before = client_as("admin"), state()
    answer = account_form(admin, hospital.accounts["admin"], active=None)
    assert answer.status_code == 403
    assert state() == before


@pytest.mark.parametrize("pair", ["update:Role", "update:User"])
def test_what_makes_the_last_administrator_is_not_unticked(pair: str, client_as: ClientAs) -> None:
    admin, before = client_as("admin"), state()
    answer = save(admin, "Admin", untick=(pair,))
    refused(answer, 403, LAST)
    assert pair not in fields_of(answer.text)["may"]
    rest = [permission(each) for each in held("Admin") - {pair}]
    answer = admin.submit(f"/roles/edit/{role_id('Admin')}", {"name": "Admin", "permissions": rest})
    refused(answer, 403, LAST)
    assert state() == before


@pytest.mark.usefixtures("configurer")
def test_the_last_administrator_s_role_is_not_retired(client_as: ClientAs, hospital: Hospital) -> None:
    chief = make_role("Chief", "read:User", "update:User", "read:Role", "update:Role")
    hand("admin", "Chief")
    sql("DELETE FROM ab_user_role WHERE role_id = :r", r=role_id("Admin"))
    client, before = client_as("configurer"), state()
    refused(client.submit(f"{PAGE}{chief}/retire/", {"reason": WHY}), 403, LAST)
    assert state() == before
    refused(client.submit(f"{PAGE}{role_id('Admin')}/retire/", {"reason": WHY}), 403, "cannot be retired")
    refused(client.submit(f"{PAGE}{role_id('Patient')}/retire/", {"reason": WHY}), 403, "cannot be retired")
    assert state() == before
    token = csrf_of(client.page(f"/roles/edit/{chief}"))
    answer = client.post(f"/roles/delete/{chief}", data={"csrf_token": token})
    assert answer.status_code == 422
    assert "People still hold this role" in answer.text
    assert state() == before


def test_two_administrators_who_take_the_role_from_each_other(
    client_as: ClientAs, database: Database, hospital: Hospital
) -> None:
    """Both are under way before either is done: one of them succeeds."""
    second = open_account("second", "Admin")
    pairs = [(client_as("admin"), second), (client_as("second"), hospital.accounts["admin"])]
    answers: list[int] = []
    nurse = role_id("Nurse")
    url = database.url.replace("+psycopg", "")

    def take(client: Browser, user: int) -> None:
        answers.append(account_form(client, user, roles=[nurse]).status_code)

    threads = [threading.Thread(target=take, args=pair) for pair in pairs]
    with psycopg.connect(url) as gatekeeper, psycopg.connect(url, autocommit=True) as watcher:
        gatekeeper.execute("SELECT 1 FROM policy_version FOR UPDATE")
        for thread in threads:
            thread.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        for _ in range(400):
            found = watcher.execute(waiting).fetchone()
            if found == (2,):
                break
            time.sleep(0.05)
        else:
            pytest.fail("the two did not come to the same door")
        gatekeeper.rollback()
        for thread in threads:
            thread.join(60)
    assert sorted(answers) == [302, 403]
    left = sql(
        "SELECT u.username FROM ab_user u JOIN ab_user_role h ON h.user_id = u.id WHERE h.role_id = :r",
        r=role_id("Admin"),
    )
    assert len(left) == 1


# ---- patients ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["chain", "own_branch", "care_team"])
def test_the_rows_of_patients_cannot_be_changed(scope: str, client_as: ClientAs) -> None:
    admin, before = client_as("admin"), state()
    page = admin.page(address("Patient"))
    assert 'name="rows:Patient"' not in page
    assert "Their own record Cannot be changed" in words(page)
    refused(review(admin, "Patient", rows={"Encounter": scope}), 403, PATIENTS)
    refused(review(admin, "Patient", tick=("read:Condition",), rows={"Condition": scope}), 403, PATIENTS)
    assert state() == before


@pytest.mark.parametrize("pair", ["read:User", "update:Role", "read:AuditEvent", "read:Figure"])
def test_patients_are_given_nothing_that_is_nobody_s_record(pair: str, client_as: ClientAs) -> None:
    admin, before = client_as("admin"), state()
    assert f'value="{pair}"' not in admin.page(address("Patient"))
    refused(review(admin, "Patient", tick=(pair,), kinds={"Figure": ("visits",)}), 403, PATIENTS)
    assert state() == before


def test_what_patients_are_given_is_of_their_own_record(client_as: ClientAs, hospital: Hospital) -> None:
    assert save(client_as("admin"), "Patient", tick=("read:Condition",)).status_code == 302
    assert limits("Patient", "Condition") == ("self", [], [])
    found = client_as("patient").get("/api/v1/condition/").get_json()["result"]
    assert {row["patient_id"] for row in found} == {hospital.patients[0]}


# ---- the database refuses by itself ------------------------------------------------------------------------------------

GRANT = """INSERT INTO ab_permission_view_role (id, permission_view_id, role_id)
SELECT nextval(pg_get_serial_sequence('ab_permission_view_role', 'id')), pv.id, r.id
FROM ab_permission_view pv JOIN ab_permission p ON p.id = permission_id
JOIN ab_view_menu m ON m.id = view_menu_id, ab_role r WHERE p.name = '{}' AND m.name = '{}' AND r.name = '{}'"""
GIVE = """INSERT INTO ab_user_role (id, user_id, role_id)
SELECT nextval(pg_get_serial_sequence('ab_user_role', 'id')), u.id, r.id
FROM ab_user u, ab_role r WHERE u.username = '{}' AND r.name = '{}'"""
RAW: dict[str, tuple[str, ...]] = {
    "notes for Admin": ("policy_roles_or_notes", GRANT.format("can_read", "ClinicalNote", "Admin")),
    "roles for Doctor": ("policy_roles_or_notes", GRANT.format("can_delete", "Role", "Doctor")),
    "Admin for a doctor": ("policy_one_person_both", GIVE.format("doctor", "Admin")),
    "Admin for a doctor's group": (
        "policy_one_person_both",
        "INSERT INTO ab_group (id, name) VALUES (99, 'Raw')",
        "INSERT INTO ab_user_group (id, group_id, user_id) SELECT 99, 99, id FROM ab_user WHERE username = 'doctor'",
        "INSERT INTO ab_group_role (id, group_id, role_id) SELECT 99, 99, id FROM ab_role WHERE name = 'Admin'",
    ),
    "no administrator": (
        "policy_last_administrator",
        "DELETE FROM ab_user_role WHERE role_id = (SELECT id FROM ab_role WHERE name = 'Admin')",
    ),
    "the last account closed": (
        "policy_last_administrator",
        "UPDATE ab_user SET active = false WHERE username = 'admin'",
    ),
    "Admin retired": (
        "policy_last_administrator",
        "UPDATE role_setting SET retired_at = now() WHERE role_id = (SELECT id FROM ab_role WHERE name = 'Admin')",
    ),
    "nothing for Admin": (
        "policy_last_administrator",
        "DELETE FROM ab_permission_view_role WHERE role_id = (SELECT id FROM ab_role WHERE name = 'Admin')",
    ),
    "the chain for patients": (
        "policy_patient_rows",
        "UPDATE role_grant SET rows = 'chain' WHERE resource = 'Encounter' AND role_id = "
        "(SELECT id FROM ab_role WHERE name = 'Patient')",
    ),
    "the branch for patients": (
        "policy_patient_rows",
        "INSERT INTO role_grant (role_id, resource, rows, kinds, masked) "
        "SELECT id, 'Condition', 'own_branch', '{}', '{}' FROM ab_role WHERE name = 'Patient'",
    ),
}


@pytest.mark.parametrize("name", RAW)
def test_raw_sql_is_refused_at_commit(name: str, database: Database) -> None:
    constraint, *statements = RAW[name]
    before = state()
    with psycopg.connect(database.url.replace("+psycopg", "")) as connection:
        for statement in statements:
            assert connection.execute(statement.encode()).rowcount, "the statement does something"
        with pytest.raises(psycopg.errors.CheckViolation) as found:
            connection.commit()
        assert found.value.diag.constraint_name == constraint
    assert state() == before


# ---- somebody else was first --------------------------------------------------------------------------------------------


def test_of_two_changes_made_on_one_sheet_the_second_is_told(client_as: ClientAs) -> None:
    open_account("second", "Admin")
    one, two = client_as("admin"), client_as("second")
    reviewed = fields_of(review(one, "Nurse", tick=("read:Procedure",)).text)
    looking = fields_of(one.page(address("Nurse")))
    assert save(two, "Nurse", tick=("read:Condition",)).status_code == 302
    before = state()
    for step, fields in (
        ("save", reviewed),
        ("review", edited(looking, tick=("read:Procedure",))),
        ("save", reviewed),  # sent once more after it was refused
    ):
        answer = one.post(address("Nurse"), data={**fields, "reason": WHY, "step": step})
        refused(answer, 409, "Somebody else changed this role in the meantime")
        assert "read:Procedure" in fields_of(answer.text)["may"]
        assert f'href="{address("Nurse")}" target="_blank"' in answer.text
        stale = {**fields_of(answer.text), "reason": WHY, "step": "review"}
        assert one.post(address("Nurse"), data=stale).status_code == 409, "a look at the page is no look at the role"
    assert state() == before


def test_a_form_sent_twice_counts_once(client_as: ClientAs) -> None:
    admin = client_as("admin")
    fields = {**fields_of(review(admin, "Nurse", tick=("read:Condition",)).text), "reason": WHY, "step": "save"}
    assert admin.post(address("Nurse"), data=fields).status_code == 302
    before = state()
    assert admin.post(address("Nurse"), data=fields).status_code == 409
    assert state() == before


def test_a_change_on_the_stock_page_counts_as_somebody_else_s(client_as: ClientAs) -> None:
    admin = client_as("admin")
    reviewed = fields_of(review(admin, "Nurse", tick=("read:Procedure",)).text)
    wanted = [permission(pair) for pair in {*held("Nurse"), "read:Condition"}]
    answer = admin.submit(f"/roles/edit/{role_id('Nurse')}", {"name": "Nurse", "permissions": wanted})
    assert answer.status_code == 302
    assert admin.post(address("Nurse"), data={**reviewed, "reason": WHY, "step": "save"}).status_code == 409
    assert "read:Procedure" not in held("Nurse")


def test_a_change_under_way_elsewhere_is_waited_for(client_as: ClientAs, database: Database) -> None:
    """Half a change on another page is neither overlooked nor overwritten."""
    admin = client_as("admin")
    fields = {**fields_of(review(admin, "Nurse", tick=("read:Procedure",)).text), "reason": WHY, "step": "save"}
    answers: list[int] = []
    nurse = address("Nurse")
    thread = threading.Thread(target=lambda: answers.append(admin.post(nurse, data=fields).status_code))
    with psycopg.connect(database.url.replace("+psycopg", "")) as other:
        other.execute(GRANT.format("can_read", "Condition", "Nurse").encode())
        thread.start()
        time.sleep(0.3)
        assert answers == []
        other.commit()
    thread.join(60)
    assert answers == [409]
    assert "read:Procedure" not in held("Nurse")


# ---- making, copying, retiring --------------------------------------------------------------------------------------


def test_a_role_is_made_with_nothing_and_then_ticked(client_as: ClientAs, hospital: Hospital) -> None:
    admin = client_as("admin")
    answer = admin.submit(f"{PAGE}new/", {"name": "Head  nurse", "like": "", "reason": WHY})
    assert answer.status_code == 302
    assert answer.headers["Location"] == address("Head nurse")
    assert held("Head nurse") == set()
    page = admin.page(address("Head nurse"))
    assert "held by nobody" in words(page)
    assert save(admin, "Head nurse", tick=("read:Patient",)).status_code == 302
    assert held("Head nurse") == {"read:Patient"}


def test_a_copy_may_do_the_same(client_as: ClientAs) -> None:
    admin = client_as("admin")
    sql("UPDATE role_setting SET second_factor = true WHERE role_id = :r", r=role_id("LabTechnician"))
    sql("DELETE FROM audit_outbox")
    like = str(role_id("LabTechnician"))
    assert f'value="{like}" selected' in admin.page(f"{PAGE}new/?like={like}&name=Copy")
    assert admin.submit(f"{PAGE}new/", {"name": "Night lab", "like": like, "reason": WHY}).status_code == 302
    assert held("Night lab") == held("LabTechnician")
    for resource in policy.MATRIX["LabTechnician"]:
        assert limits("Night lab", resource) == limits("LabTechnician", resource)
    found = lines()
    assert {(action, reason) for action, reason, _ in found} == {("C", WHY)}
    (role,) = [entity for _, _, entity in found if entity["type"] == "Role"]
    assert role["new"]["name"] == "Night lab"
    assert "can read on Patient" in role["new"]["permissions"]


NAMES: dict[str, tuple[str, int]] = {
    "": ("", 422),
    "blank": ("   ", 422),
    "too long": ("x" * 300, 422),
    "taken": ("Nurse", 409),
    "taken in another case": ("nURSE", 409),
    "the hospital's word": ("administrator", 409),
    "the hospital's word in two": ("Privacy Officer", 409),
    "a service's": ("service:import", 422),
    "a service's in capitals": ("SERVICE:demo", 422),
    "a view's": ("as:Doctor", 422),
    "a null": ("Nu\x00rse", 422),
    "written backwards": ("Nu\x85rse", 422),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_cannot_be(name: str, client_as: ClientAs) -> None:
    typed, status = NAMES[name]
    before = state()
    answer = client_as("admin").submit(f"{PAGE}new/", {"name": typed, "like": "", "reason": WHY})
    assert answer.status_code == status
    assert 'aria-invalid="true"' in answer.text
    assert f'value="{WHY}"' in answer.text
    assert state() == before


def test_markup_in_a_name_is_only_text(client_as: ClientAs) -> None:
    admin = client_as("admin")
    name = "<img src=x onerror=alert(1)>'\"{{7*7}}"
    assert admin.submit(f"{PAGE}new/", {"name": name, "like": "", "reason": f"{name} it is"}).status_code == 302
    shown = address(name)
    asked = review(admin, name, tick=("read:Patient",))
    drainer.drain()
    for page in (
        *(admin.page(shown), asked.text, admin.page(f"{PAGE}all/"), admin.page(f"{PAGE}{role_id(name)}/retire/")),
        *(admin.page(f"{PAGE}new/"), admin.page("/roles/list/"), admin.page(f"/trail/?role={role_id(name)}")),
    ):
        assert "<img" not in page
        assert name in unescape(page)


def test_a_retired_role_grants_nothing_from_the_next_request(
    client_as: ClientAs, api_as: Callable[[str], FlaskClient]
) -> None:
    admin, page, program = client_as("admin"), client_as("nurse"), api_as("nurse")
    key = role_id("Nurse")
    assert program.get("/api/v1/encounter/").status_code == 200
    sql("DELETE FROM audit_outbox")
    assert admin.submit(f"{PAGE}{key}/retire/", {"reason": WHY}).status_code == 302
    assert program.get("/api/v1/encounter/").status_code == 403
    assert page.get("/patients/").status_code == 403
    ((action, reason, entity),) = lines()
    assert (action, reason, entity["type"]) == ("U", WHY, "RoleSetting")
    assert entity["old"] == {"retired_at": None}
    said = words(admin.page(address("Nurse")))
    assert "it grants nothing to anybody" in said
    assert "Take back into use" in said
    assert admin.submit(f"{PAGE}{key}/retire/", {"reason": WHY}).status_code == 302
    assert program.get("/api/v1/encounter/").status_code == 200


def test_of_two_who_retire_a_role_the_second_is_told(client_as: ClientAs) -> None:
    admin = client_as("admin")
    retire = f"{PAGE}{role_id('Nurse')}/retire/"
    token = csrf_of(admin.page(retire))
    data = {"csrf_token": token, "reason": WHY, "back": ""}
    assert admin.post(retire, data={**data, "reason": "x"}).status_code == 422
    assert admin.post(retire, data=data).status_code == 302
    before = state()
    assert admin.post(retire, data=data).status_code == 409
    assert state() == before


def test_a_retired_role_is_given_to_nobody_and_taken_from_nobody(acting: Any, hospital: Hospital) -> None:
    """What the account form asks: those chosen, with the retired ones that are held already."""
    sql("UPDATE role_setting SET retired_at = now() WHERE role_id = :r", r=role_id("Nurse"))
    with acting("admin"):
        session = guard.session()
        nurse, desk = (session.get_one(Role, role_id(name)) for name in ("Nurse", "Receptionist"))
        assert roles.to_hold(session, [desk]) == [desk]
        assert roles.to_hold(session, [desk], held=[nurse]) == [desk, nurse]
        assert roles.to_hold(session, [desk], held=[desk]) == [desk]
        with pytest.raises(Invalid, match="retired"):
            roles.to_hold(session, [nurse])


# ---- fifty roles -------------------------------------------------------------------------------------------------------


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is sent to the database meanwhile."""
    sent: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        sent.append(statement)

    event.listen(guard.engine(), "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(guard.engine(), "before_cursor_execute", note)


def counted(client: Browser, path: str) -> int:
    """Statements a page takes once everything about it is known already."""
    client.page(path)
    with statements() as sent:
        client.page(path)
    return len(sent)


def test_fifty_roles_take_as_many_statements_as_nine(client_as: ClientAs) -> None:
    admin = client_as("admin")
    paths = (address("Nurse"), f"{PAGE}all/", f"{PAGE}new/")
    few = [counted(admin, path) for path in paths]
    for number in range(41):
        make_role(f"Ward {number:02} nurse", "read:Patient", "read:Encounter", "update:AllergyIntolerance")
        sql(
            "INSERT INTO role_grant (role_id, resource, rows, kinds, masked) "
            "SELECT id, 'Encounter', 'own_branch', '{}', '{reason}' FROM ab_role WHERE name = :n",
            n=f"Ward {number:02} nurse",
        )
    assert [counted(admin, path) for path in paths] == few
    assert max(few) <= 8
    page = admin.page(address("Ward 17 nurse"))
    assert page.count('class="role-name"') == 50
    assert fields_of(page)["rows:Encounter"] == ["own_branch"]
    assert admin.page(f"{PAGE}all/").count('<th scope="col">') == 50


# ---- the stock pages ---------------------------------------------------------------------------------------------------


def test_the_stock_pages_make_change_and_remove_roles(client_as: ClientAs) -> None:
    admin = client_as("admin")
    assert "Nurse" in admin.page("/roles/list/")
    answer = admin.submit("/roles/add", {"name": "Porter", "permissions": [permission("read:Patient")]})
    assert answer.status_code == 302
    key = role_id("Porter")
    assert held("Porter") == {"read:Patient"}
    wanted = [permission("read:Patient"), permission("read:Room")]
    assert admin.submit(f"/roles/edit/{key}", {"name": "Porters", "permissions": wanted}).status_code == 302
    assert held("Porters") == {"read:Patient", "read:Room"}
    assert save(admin, "Porters", rows={"Patient": "own_branch"}).status_code == 302
    assert fields_of(admin.page(address("Porters")))["rows:Patient"] == ["own_branch"]
    token = csrf_of(admin.page(f"/roles/edit/{key}"))
    assert admin.post(f"/roles/delete/{key}", data={"csrf_token": token}).status_code == 302
    assert not sql("SELECT 1 FROM ab_role WHERE id = :k", k=key)
    assert not sql("SELECT 1 FROM role_grant WHERE role_id = :k", k=key)


def test_the_stock_pages_open_and_change_accounts(client_as: ClientAs) -> None:
    admin = client_as("admin")
    fields = {
        "first_name": "New",
        "last_name": "Colleague",
        "username": "newcomer",
        "email": "n@example.org",
        "active": "y",
        "roles": [role_id("Nurse")],
        "password": PASSWORD,
        "conf_password": PASSWORD,
    }
    assert admin.submit("/users/add", fields).status_code == 302
    key = int(sql("SELECT id FROM ab_user WHERE username = 'newcomer'")[0]["id"])
    assert account_form(admin, key, roles=[role_id("Receptionist")], last_name="Renamed").status_code == 302
    (row,) = sql("SELECT r.name FROM ab_user_role h JOIN ab_role r ON r.id = h.role_id WHERE h.user_id = :u", u=key)
    assert row["name"] == "Receptionist"
    assert "Renamed" in admin.page(f"/users/show/{key}")


# ---- by any means -------------------------------------------------------------------------------------------------------

FORGED: dict[str, dict[str, Any]] = {
    "a resource that is none": {"may": ["read:Secrets"]},
    "an action that is none": {"may": ["grant:Patient"]},
    "an action that is not possible": {"may": ["delete:Patient"]},
    "an action on the trail": {"may": ["update:AuditEvent"]},
    "half a pair": {"may": ["read"]},
    "a pair too many": {"may": ["read:Patient:Patient"]},
    "a kind of nothing": {"kind": ["Patient:adult"]},
    "a kind that is none": {"kind": ["Observation:gossip"]},
    "a field that is none": {"mask": ["Patient:family"]},
    "a field of nothing": {"mask": ["Room:name"]},
    "a scope that is none": {"rows:Encounter": ["universe"]},
    "a scope of another resource": {"rows:Encounter": ["own"]},
    "patients' scope on accounts": {"may": ["read:User"], "rows:User": ["self"]},
    "quotes": {"may": ["read:Patient'; DROP TABLE ab_role; --"]},
    "no kind of what is granted": {"kind": None},
}


@pytest.mark.parametrize("name", FORGED)
def test_what_the_page_never_offered_is_refused(name: str, client_as: ClientAs) -> None:
    admin, before = client_as("admin"), state()
    fields = fields_of(admin.page(address("Nurse")))
    for field, values in FORGED[name].items():
        fields[field] = (
            [] if values is None else [*(fields.get(field, []) if field in ("may", "kind", "mask") else []), *values]
        )
    for step in ("review", "save", "", "anything"):
        answer = admin.post(address("Nurse"), data={**fields, "reason": WHY, "reviewed": "x", "step": step})
        assert answer.status_code == 422
        assert "Traceback" not in answer.text
    assert admin.post(address("Nurse"), data={**fields, "step": "back"}).status_code == 200
    assert state() == before


@pytest.mark.parametrize("username", ["nurse", "doctor", "privacy", "reception", "patient"])
def test_the_page_is_for_those_who_may(username: str, client_as: ClientAs) -> None:
    before = state()
    fields = {**fields_of(client_as("admin").page(address("Nurse"))), "step": "save", "reason": WHY}
    client = client_as(username)
    fields["csrf_token"] = [csrf_of(client.page("/resetmypassword/form"))]
    fields["may"].append("read:ClinicalNote")
    key = role_id("Nurse")
    for path in (address("Nurse"), f"{PAGE}all/", f"{PAGE}new/", f"{PAGE}{key}/retire/"):
        assert client.get(path).status_code == 403, path
        if "all" not in path:
            data = {**fields, "name": "Mine", "like": "", "back": ""}
            assert client.post(path, data=data).status_code == 403, path
    assert state() == before


def test_whoever_only_reads_roles_changes_none(client_as: ClientAs) -> None:
    make_role("Auditor", "read:Role")
    open_account("auditor", "Auditor")
    client = client_as("auditor")
    page = client.page(address("Nurse"))
    assert '<fieldset class="rights-all" disabled>' in page
    assert "Review changes" not in page
    assert f"{PAGE}new/" not in page
    before = state()
    fields = edited(fields_of(page), tick=("read:Condition",))
    for step in ("review", "save", "back"):
        assert client.post(address("Nurse"), data={**fields, "step": step}).status_code == 403
    assert state() == before


def test_a_form_without_its_token_changes_nothing(client_as: ClientAs) -> None:
    admin, before = client_as("admin"), state()
    fields = {**fields_of(review(admin, "Nurse", tick=("read:Condition",)).text), "reason": WHY, "step": "save"}
    for token in ({}, {"csrf_token": "x"}):
        data = {name: value for name, value in fields.items() if name != "csrf_token"} | token
        assert admin.post(address("Nurse"), data=data).status_code == 400
    for path in (f"{PAGE}new/", f"{PAGE}{role_id('Nurse')}/retire/"):
        assert admin.post(path, data={"name": "Forged", "reason": WHY, "like": "", "back": ""}).status_code == 400
    assert state() == before


def test_a_role_that_is_not_there_is_not_found(client_as: ClientAs) -> None:
    admin = client_as("admin")
    for asked in ("0", "-1", "999999", "x", "", "1 OR 1=1", "9" * 40):
        assert admin.get(PAGE, query_string={"role": asked}).status_code == 404, asked
    assert admin.get(f"{PAGE}999999/retire/").status_code == 404
    assert admin.submit(f"{PAGE}new/", {"name": "Like nothing", "like": "999999", "reason": WHY}).status_code == 422
    assert not sql("SELECT 1 FROM ab_role WHERE name = 'Like nothing'")


# ---- the services, without a page in front ---------------------------------------------------------------------------


def test_the_services_ask_for_the_right_themselves(acting: Any) -> None:
    before = state()
    nurse = role_id("Nurse")
    with acting("admin"):
        sheet = roles.sheet_of(guard.session(), nurse)
    deeds: list[Callable[[Any], Any]] = [
        roles.all_roles,
        roles.all_sheets,
        lambda session: roles.sheet_of(session, nurse),
        lambda session: roles.change_role(session, sheet, seen=sheet.digest, reason=WHY),
        lambda session: roles.create_role(session, name="By a nurse", reason=WHY),
        lambda session: roles.retire_role(session, nurse, reason=WHY),
    ]

    def attempt(deed: Callable[[Any], Any]) -> None:
        with acting("nurse"), guard.unit_of_work() as session:
            deed(session)

    for deed in deeds:
        with pytest.raises(Forbidden):
            attempt(deed)
    assert state() == before


def test_a_service_given_a_stale_sheet_refuses(acting: Any) -> None:
    nurse = role_id("Nurse")
    before = state()

    def attempt(**changed: Any) -> None:
        with acting("admin"), guard.unit_of_work() as session:
            sheet = roles.sheet_of(session, nurse)
            grants = {**sheet.grants, "Condition": Grant(frozenset({"read"}))}
            roles.change_role(
                session, Sheet(nurse, "Nurse", grants=grants), **{"reason": WHY, "seen": sheet.digest, **changed}
            )

    with pytest.raises(Conflict):
        attempt(seen="stale")
    with pytest.raises(Invalid):
        attempt(reason="no")
    assert state() == before


def test_a_role_of_one_s_own_is_refused_below_the_service_too(acting: Any) -> None:
    """The gate itself: rows and settings of a role one holds are not one's own to write."""
    before = state()
    admin = role_id("Admin")

    def masks() -> None:
        with acting("admin"), guard.unit_of_work() as session:
            session.get_one(RoleGrant, (admin, "DiagnosticReport")).masked = []

    def setting() -> None:
        with acting("admin"), guard.unit_of_work() as session:
            session.get_one(RoleSetting, admin).second_factor = True

    for deed in (masks, setting):
        with pytest.raises(OwnRoles):
            deed()
    assert state() == before


def test_the_sentences_of_rows_and_kinds_that_are_neither_wider_nor_narrower() -> None:
    old = Sheet(1, "Porter", grants={"Patient": Grant(frozenset({"read"}), RowScope.OWN_BRANCH)})
    new = Sheet(1, "Porter", grants={"Patient": Grant(frozenset({"read"}), RowScope.CARE_TEAM)})
    told = tell(old, roles.difference(old, new))
    assert (told.gains, told.loses) == ([], [])
    assert told.other == ["Porter sees patients only of patients in their care. Before: only of their own branch."]


def test_ticks_come_back_as_they_were_sent() -> None:
    sheet = Sheet(1, "Nurse", grants=policy.MATRIX["Nurse"])
    assert Ticks.of(sheet).sheet(sheet).digest == sheet.digest
