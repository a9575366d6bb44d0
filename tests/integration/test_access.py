"""Rows, kinds, masks and accounts at the gate, under roles as an administrator makes them; and what nobody grants away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from flask_appbuilder.security.sqla.models import Group, Permission, PermissionView, Role, User, ViewMenu
from sqlalchemy import event, func, make_url, select, text
from sqlalchemy.exc import IntegrityError

from app import guard, policy
from app.actor import Origin, current, nobody, service
from app.errors import Forbidden, OwnRoles, Refusal, Separated
from app.policy import Grant, may
from app.services import accounts, roles
from models.access import Credential, EmergencyAccess, RoleGrant, RoleSetting
from models.base import now
from models.clinical import Encounter, Observation
from models.codes import RowScope
from models.figures import Figure
from models.notes import ClinicalNote
from models.organization import Practitioner
from models.patients import Patient, PatientIdentifier
from tests import factories
from tests.factories import Hospital

Acting = Callable[[str], AbstractContextManager[Any]]
pytestmark = pytest.mark.usefixtures("database")


def sql(statement: str, **values: Any) -> list[Any]:
    """Something done or asked past the application, as an administrator of the database would."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


def rewrite(name: str, grants: dict[str, Grant]) -> None:
    """Have a role grant this and no more, as the shipped administrator would."""
    key = sql("SELECT id FROM ab_role WHERE name = :name", name=name)[0]["id"]
    with factories.acting(sql("SELECT id FROM ab_user WHERE username = 'admin'")[0]["id"]), guard.unit_of_work() as s:
        before = roles.sheet_of(s, key)
        if dict(before.grants) != grants:
            sheet = roles.Sheet(key, name, grants=grants)
            roles.change_role(s, sheet, seen=before.digest, reason="for a test")


@pytest.fixture
def granted() -> Iterator[Callable[..., None]]:
    """Change what a shipped role grants for one test: `granted("Nurse", Patient=may("read", rows=...))`."""
    touched: set[str] = set()

    def change(name: str, **grants: Grant | None) -> None:
        touched.add(name)
        now_granted = {**policy.MATRIX[name], **grants}
        rewrite(name, {resource: grant for resource, grant in now_granted.items() if grant is not None})

    yield change
    for name in touched:
        rewrite(name, policy.MATRIX[name])


def seen(model: Any, *criteria: Any) -> list[Any]:
    """What the actor at work is given of a table."""
    return list(guard.session().scalars(select(model).where(*criteria).order_by(model.id)))


# ---- rows ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_own_branch(granted: Any) -> None:
    """Nurses of the first branch see that branch only."""
    everything = {
        resource: Grant(grant.actions, RowScope.OWN_BRANCH, grant.kinds, grant.masked)
        for resource, grant in policy.MATRIX["Nurse"].items()
        if resource not in policy.REFERENCE and RowScope.OWN_BRANCH in policy.scopes_of(resource)
    }
    granted("Nurse", **{name: grant for name, grant in everything.items() if name != "EmergencyAccess"})


@pytest.mark.usefixtures("at_own_branch")
def test_own_branch_is_where_a_patient_was_registered_or_seen(acting: Acting, hospital: Hospital) -> None:
    here = {key for number, key in enumerate(hospital.patients) if number % 2 == 0}
    with acting("nurse"):
        assert {patient.id for patient in seen(Patient)} == here
        assert {number.patient_id for number in seen(PatientIdentifier)} == here
        assert guard.session().scalar(select(func.count()).select_from(Patient)) == len(here)
        assert guard.session().get(Patient, hospital.patients[1]) is None
        assert {row.patient_id for row in seen(Observation)} == {hospital.patients[0]}
    sql("UPDATE encounter SET branch_id = :b WHERE id = :e", b=hospital.branches[0], e=hospital.rows["Encounter"])
    try:
        with acting("nurse"):
            assert guard.session().get(Patient, hospital.patients[1]) is not None
            assert {row.patient_id for row in seen(Observation)} == {hospital.patients[0], hospital.patients[1]}
    finally:
        sql("UPDATE encounter SET branch_id = :b WHERE id = :e", b=hospital.branches[1], e=hospital.rows["Encounter"])


@pytest.mark.usefixtures("at_own_branch")
def test_figures_of_other_branches_are_not_shown(acting: Acting, hospital: Hospital) -> None:
    with acting("nurse"):
        assert {figure.branch_id for figure in guard.session().scalars(select(Figure))} <= {hospital.branches[0]}
    with acting("admin"):
        figures = list(guard.session().scalars(select(Figure).where(Figure.name == "registrations")))
        assert {figure.branch_id for figure in figures} == set(hospital.branches)
        assert sum(figure.count for figure in figures) == len(hospital.patients)


@pytest.mark.parametrize("days", [89, 91])
def test_a_patient_is_in_ones_care_for_ninety_days(acting: Acting, granted: Any, hospital: Hospital, days: int) -> None:
    granted("Doctor", **{name: may("read update", rows=RowScope.CARE_TEAM) for name in ("Patient", "Condition")})
    ended = now() - timedelta(days=days)
    sql(
        "UPDATE encounter SET started_at = :e, ended_at = :e WHERE id IN (:one, :two)",
        e=ended,
        one=hospital.rows["Encounter"],
        two=hospital.own_rows["Encounter"],
    )
    with acting("doctor"):
        found = {patient.id for patient in seen(Patient)}
    assert found == ({hospital.patients[0], hospital.patients[1]} if days == 89 else set())
    sql("UPDATE encounter SET ended_at = NULL WHERE id = :one", one=hospital.rows["Encounter"])
    with acting("doctor"):
        assert hospital.patients[1] in {patient.id for patient in seen(Patient)}


def test_nobody_makes_a_patient_theirs_by_writing_a_visit(acting: Acting, granted: Any, hospital: Hospital) -> None:
    mine, theirs = hospital.patients[0], hospital.patients[7]
    granted(
        "Doctor",
        Patient=may("read update", rows=RowScope.CARE_TEAM),
        Encounter=may("read create update", rows=RowScope.CARE_TEAM),
    )
    sql("UPDATE encounter SET ended_at = NULL WHERE id = :one", one=hospital.own_rows["Encounter"])
    visit = {"class_code": "AMB", "status": "in-progress", "practitioner_id": hospital.staff["doctor"]}
    with acting("doctor"), pytest.raises(Forbidden), guard.unit_of_work() as s:
        s.add(Encounter(patient_id=theirs, **visit))
    with acting("doctor"), pytest.raises(Forbidden), guard.unit_of_work() as s:
        s.get(Encounter, hospital.own_rows["Encounter"]).patient_id = theirs
    assert factories.number_of(Encounter, Encounter.patient_id == theirs) == 0
    with acting("doctor"), guard.unit_of_work() as s:
        further = Encounter(patient_id=mine, **visit)
        s.add(further)
        s.flush()
        key = further.id
    sql("DELETE FROM encounter WHERE id = :e", e=key)


@pytest.mark.usefixtures("at_own_branch")
@pytest.mark.parametrize("by", ["number", "object"])
def test_nobody_writes_to_a_patient_of_another_branch(acting: Acting, hospital: Hospital, by: str) -> None:
    theirs = hospital.patients[1]
    before = factories.number_of(Observation)
    vital = {"status": "final", "category": "vital-signs", "code_display": "Pulse", "value_quantity": 60}
    with acting("nurse"), pytest.raises((Forbidden, IntegrityError)), guard.unit_of_work() as s:
        whose = {"patient_id": theirs} if by == "number" else {"patient": Patient(id=theirs, version=1)}
        s.add(Observation(**whose, **vital))
    assert factories.number_of(Observation) == before


def test_the_kinds_of_two_roles_add_up(acting: Acting, hospital: Hospital) -> None:
    user = hospital.accounts["nurse"]
    sql("INSERT INTO ab_user_role (user_id, role_id) SELECT :u, id FROM ab_role WHERE name = 'LabTechnician'", u=user)
    try:
        with acting("nurse"):
            assert {row.category for row in seen(Observation)} == {"vital-signs", "laboratory"}
    finally:
        sql(
            "DELETE FROM ab_user_role WHERE user_id = :u "
            "AND role_id = (SELECT id FROM ab_role WHERE name = 'LabTechnician')",
            u=user,
        )
    with acting("nurse"):
        assert {row.category for row in seen(Observation)} == {"vital-signs"}


def test_a_note_is_changed_by_nobody_but_its_author(acting: Acting, hospital: Hospital) -> None:
    key = hospital.rows["ClinicalNote"]
    sql("UPDATE clinical_note SET author_id = :other WHERE id = :n", other=hospital.staff["nurse"], n=key)
    try:
        with acting("doctor"), pytest.raises(Forbidden), guard.unit_of_work() as s:
            s.get(ClinicalNote, key).status = "final"
        with acting("doctor"), pytest.raises(Forbidden), guard.unit_of_work() as s:
            s.get(ClinicalNote, key).author_id = hospital.staff["doctor"]
    finally:
        sql("UPDATE clinical_note SET author_id = :me WHERE id = :n", me=hospital.staff["doctor"], n=key)
    assert factories.stored(ClinicalNote, key)["status"] == "preliminary"
    with acting("doctor"), guard.unit_of_work() as s:
        s.get(ClinicalNote, key).title = "Progress note"
    assert factories.stored(ClinicalNote, key)["title"] == "Progress note"


def test_nobody_breaks_the_glass_in_another_name(acting: Acting, hospital: Hospital) -> None:
    moment = now()
    with acting("doctor"), pytest.raises(Forbidden), guard.unit_of_work() as s:
        s.add(
            EmergencyAccess(
                patient_id=hospital.patients[3],
                user_id=hospital.accounts["nurse"],
                reason="BTG",
                justification="somebody else did it, not me",
                started_at=moment,
                ends_at=moment + timedelta(minutes=60),
            )
        )
    assert factories.number_of(EmergencyAccess) == 0


# ---- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resource", "field"), [(r, f) for r, fields in policy.MASKABLE.items() for f in fields])
def test_every_field_that_can_be_masked_is_a_column_that_can_be_blank(resource: str, field: str) -> None:
    from tests.architecture.test_contracts import protected

    column = protected()[resource].__mapper__.column_attrs[field].columns[0]
    assert not column.primary_key
    assert not column.foreign_keys
    assert field not in {protected()[resource].patient_key, protected()[resource].kind_key, "version"}


def test_a_masked_field_comes_back_blank_and_is_not_asked_about(
    acting: Acting, granted: Any, hospital: Hospital
) -> None:
    granted("Nurse", PatientIdentifier=may("read update", masked=["value"]))
    with acting("nurse"):
        assert {number.value for number in seen(PatientIdentifier)} == {None}
        for statement in (
            select(PatientIdentifier).where(PatientIdentifier.value == "PASS0001"),
            select(PatientIdentifier).order_by(PatientIdentifier.value),
            select(func.count()).select_from(PatientIdentifier).where(func.length(PatientIdentifier.value) > 3),
        ):
            with pytest.raises(Forbidden):
                guard.session().execute(statement)
    with acting("nurse"), pytest.raises(Forbidden), guard.unit_of_work() as s:
        s.scalars(select(PatientIdentifier).limit(1)).one().value = "X"
    assert factories.number_of(PatientIdentifier, PatientIdentifier.value == "X") == 0


# ---- accounts and roles at the gate --------------------------------------------------------------------------------


def own_password_of_another(s: Any, h: Hospital) -> None:
    s.get(User, h.accounts["lab"]).password = "x"


def a_name(s: Any, h: Hospital) -> None:
    s.get(User, h.accounts["nurse"]).first_name = "Not allowed to either"


def me(s: Any) -> User:
    """The account of whoever is at work."""
    user: User = s.get(User, current().user_id)
    return user


def a_role_for_oneself(s: Any, h: Hospital) -> None:
    user = me(s)
    user.roles.append(s.scalar(select(Role).where(Role.name == "Pharmacist")))


def a_role_for_oneself_from_the_other_side(s: Any, h: Hospital) -> None:
    role = s.scalar(select(Role).where(Role.name == "Pharmacist"))
    role.user.append(me(s))


def a_group_for_oneself(s: Any, h: Hospital) -> None:
    user, role = me(s), s.scalar(select(Role).where(Role.name == "Doctor"))
    s.add(Group(name="doctors", roles=[role], users=[user]))


def a_group_that_is_there(s: Any, h: Hospital) -> None:
    user = me(s)
    with s.no_autoflush:
        user.groups.append(s.scalar(select(Group).where(Group.name == "everybody")))


def a_permission(s: Any, h: Hospital) -> None:
    role = s.scalar(select(Role).where(Role.name == "Nurse"))
    role.permissions.append(s.scalars(select(PermissionView).limit(1)).one())


def a_new_permission(s: Any, h: Hospital) -> None:
    s.add(PermissionView(permission=Permission(name="can_anything"), view_menu=ViewMenu(name="Anything")))


def wider_rows(s: Any, h: Hospital) -> None:
    s.scalars(
        select(RoleGrant).where(RoleGrant.resource == "Observation", RoleGrant.kinds.contains(["vital-signs"]))
    ).one().kinds = []


def no_masks(s: Any, h: Hospital) -> None:
    for grant in s.scalars(select(RoleGrant)):
        s.delete(grant)


def no_second_factor(s: Any, h: Hospital) -> None:
    for setting in s.scalars(select(RoleSetting)):
        setting.second_factor = not setting.second_factor


def another_ones_second_factor(s: Any, h: Hospital) -> None:
    s.get(Credential, h.accounts["admin"]).totp_secret = b"mine"


def a_new_account(s: Any, h: Hospital) -> None:
    s.add(User(username="mole", password="x", first_name="M", last_name="M", email="m@example.org", active=True))


def a_new_role(s: Any, h: Hospital) -> None:
    s.add(Role(name="Everything"))


def a_removed_account(s: Any, h: Hospital) -> None:
    s.delete(s.get(User, h.accounts["lab"]))


FORBIDDEN = [
    *(own_password_of_another, a_name, a_role_for_oneself, a_role_for_oneself_from_the_other_side),
    *(a_group_for_oneself, a_group_that_is_there),
    *(a_permission, a_new_permission, wider_rows, no_masks, no_second_factor, another_ones_second_factor),
    *(a_new_account, a_new_role, a_removed_account),
]


@pytest.fixture(scope="module", autouse=True)
def a_group(database: Any) -> None:
    """One that nobody is in."""
    sql("INSERT INTO ab_group (name) VALUES ('everybody')")


def everything_about_accounts() -> list[Any]:
    """All that says who may what."""
    tables = ("ab_role", "ab_user_role", "ab_group", "ab_permission_view", "ab_permission_view_role", "role_grant")
    return [
        *(sql(f"SELECT * FROM {table} ORDER BY 1, 2") for table in (*tables, "role_setting")),
        sql("SELECT id, username, password, first_name, active FROM ab_user ORDER BY 1"),
        sql("SELECT user_id, totp_secret FROM credential ORDER BY 1"),
    ]


@pytest.mark.parametrize("username", ["nurse", "doctor", "privacy", "patient"])
@pytest.mark.parametrize("attempt", FORBIDDEN, ids=lambda attempt: attempt.__name__)
def test_whoever_may_not_change_accounts_does_not(
    acting: Acting, hospital: Hospital, attempt: Any, username: str
) -> None:
    before = everything_about_accounts()
    with acting(username), pytest.raises(Refusal), guard.unit_of_work() as s:
        attempt(s, hospital)
    assert everything_about_accounts() == before


def test_a_person_changes_their_own_password_and_nothing_else_of_their_account(
    acting: Acting, hospital: Hospital
) -> None:
    key = hospital.accounts["nurse"]
    old = sql("SELECT password FROM ab_user WHERE id = :k", k=key)[0]["password"]
    with acting("nurse"), guard.unit_of_work() as s:
        s.get(User, key).password = "a new hash"
    assert sql("SELECT password FROM ab_user WHERE id = :k", k=key)[0]["password"] == "a new hash"
    with acting("nurse"), pytest.raises(Forbidden), guard.unit_of_work() as s:
        user = s.get(User, key)
        user.password, user.username = old, "matron"
    sql("UPDATE ab_user SET password = :p WHERE id = :k", p=old, k=key)


@pytest.mark.parametrize("attempt", [a_group_for_oneself, a_group_that_is_there], ids=lambda attempt: attempt.__name__)
def test_nobody_at_all_changes_groups(acting: Acting, hospital: Hospital, attempt: Any) -> None:
    before = everything_about_accounts()
    with acting("admin"), pytest.raises(Forbidden), guard.unit_of_work() as s:
        attempt(s, hospital)
    assert everything_about_accounts() == before


def test_an_administrator_gives_themselves_nothing(acting: Acting, hospital: Hospital) -> None:
    key = hospital.accounts["admin"]

    def take(s: Any) -> None:
        user = s.get(User, key)
        user.roles.append(s.scalar(select(Role).where(Role.name == "Nurse")))

    def drop(s: Any) -> None:
        user = s.get(User, key)
        user.roles = []

    def held(s: Any) -> Any:
        return s.scalar(select(Role).where(Role.name == "Admin"))

    def gain(s: Any) -> None:
        role = held(s)
        role.permissions.append(
            next(view for view in s.scalars(select(PermissionView)) if view not in role.permissions)
        )

    attempts: list[Callable[[Any], Any]] = [
        take,
        drop,
        gain,
        lambda s: setattr(held(s), "name", "Nimda"),
        lambda s: s.delete(
            s.scalars(
                select(RoleGrant)
                .where(RoleGrant.resource == "DiagnosticReport")
                .join(Role, Role.id == RoleGrant.role_id)
                .where(Role.name == "Admin")
            ).one()
        ),
        lambda s: setattr(s.get(RoleSetting, held(s).id), "second_factor", True),
    ]
    before = everything_about_accounts()
    for attempt in attempts:
        with acting("admin"), pytest.raises(OwnRoles), guard.unit_of_work() as s:
            attempt(s)
        assert everything_about_accounts() == before


def test_nobody_takes_a_clinician_s_place_or_moves_to_where_they_would_see_more(
    acting: Acting, granted: Any, hospital: Hospital
) -> None:
    granted("Nurse", Patient=may("read", rows=RowScope.OWN_BRANCH), Practitioner=may("read update"))
    mine, theirs = hospital.staff["nurse"], hospital.staff["doctor"]

    def further(s: Any) -> None:
        from models.organization import Branch

        person = s.scalars(
            select(Practitioner).where(Practitioner.id == mine).options(guard_load(Practitioner.branches))
        ).one()
        person.branches = list(s.scalars(select(Branch)))

    attempts: list[Callable[[Any], Any]] = [
        lambda s: setattr(s.get(Practitioner, mine), "home_branch_id", hospital.branches[1]),
        lambda s: setattr(s.get(Practitioner, theirs), "user_id", hospital.accounts["nurse"]),
        further,
    ]
    for attempt in attempts:
        with acting("nurse"), pytest.raises(Refusal), guard.unit_of_work() as s:
            attempt(s)
    assert factories.stored(Practitioner, mine)["home_branch_id"] == hospital.branches[0]
    assert factories.stored(Practitioner, theirs)["user_id"] == hospital.accounts["doctor"]
    assert not sql("SELECT * FROM practitioner_branch WHERE practitioner_id = :m", m=mine)


def guard_load(relation: Any) -> Any:
    from sqlalchemy.orm import selectinload

    return selectinload(relation)


# ---- what the database keeps ---------------------------------------------------------------------------------------

GIVE = """
    INSERT INTO ab_permission_view_role (permission_view_id, role_id)
    SELECT pv.id, r.id FROM ab_permission_view pv JOIN ab_permission p ON p.id = pv.permission_id
    JOIN ab_view_menu m ON m.id = pv.view_menu_id, ab_role r
    WHERE p.name = %s AND m.name = %s AND r.name = %s
"""
HOLD = "INSERT INTO ab_user_role (user_id, role_id) SELECT u.id, r.id FROM ab_user u, ab_role r WHERE u.username = %s AND r.name = %s"
DROP = "DELETE FROM ab_user_role WHERE user_id = (SELECT id FROM ab_user WHERE username = %s)"


def plain_connection() -> psycopg.Connection[Any]:
    """A connection beside the application."""
    url = guard.engine().url.set(drivername="postgresql")
    return psycopg.connect(make_url(url).render_as_string(hide_password=False))


@pytest.mark.parametrize(
    ("statements", "constraint"),
    [
        ([(GIVE, ("can_read", "ClinicalNote", "Admin"))], "policy_roles_or_notes"),
        ([(GIVE, ("can_create", "Role", "Doctor"))], "policy_roles_or_notes"),
        ([(HOLD, ("admin", "Doctor"))], "policy_one_person_both"),
        ([(HOLD, ("doctor", "Admin"))], "policy_one_person_both"),
        (
            [
                ("INSERT INTO ab_group (name) VALUES ('all')", ()),
                (
                    "INSERT INTO ab_group_role (group_id, role_id) SELECT g.id, r.id FROM ab_group g, ab_role r WHERE r.name = 'Doctor'",
                    (),
                ),
                (
                    "INSERT INTO ab_user_group (group_id, user_id) SELECT g.id, u.id FROM ab_group g, ab_user u WHERE u.username = 'admin'",
                    (),
                ),
            ],
            "policy_one_person_both",
        ),
        ([(DROP, ("admin",))], "policy_last_administrator"),
        ([("UPDATE ab_user SET active = false WHERE username = 'admin'", ())], "policy_last_administrator"),
        (
            [
                (
                    "INSERT INTO role_setting SELECT id, false, now() FROM ab_role WHERE name = 'Admin' ON CONFLICT (role_id) DO UPDATE SET retired_at = now()",
                    (),
                )
            ],
            "policy_last_administrator",
        ),
        (
            [("DELETE FROM ab_permission_view_role WHERE role_id = (SELECT id FROM ab_role WHERE name = 'Admin')", ())],
            "policy_last_administrator",
        ),
        (
            [
                (
                    "UPDATE role_grant SET rows = 'chain' WHERE resource = 'Patient' AND role_id = (SELECT id FROM ab_role WHERE name = 'Patient')",
                    (),
                )
            ],
            "policy_patient_rows",
        ),
    ],
)
def test_the_database_keeps_what_nobody_may_grant_away(statements: Any, constraint: str) -> None:
    before = everything_about_accounts()
    with plain_connection() as connection, pytest.raises(psycopg.errors.CheckViolation) as refused:
        for statement, values in statements:
            connection.execute(statement, values)
        connection.commit()
    assert refused.value.diag.constraint_name == constraint
    assert everything_about_accounts() == before


def test_a_change_that_is_whole_again_at_its_end_is_taken() -> None:
    """Somebody else becomes the administrator, and the first one a nurse, in one transaction."""
    with plain_connection() as connection:
        connection.execute(DROP, ("admin",))
        connection.execute(DROP, ("nurse",))
        connection.execute(HOLD, ("nurse", "Admin"))
        connection.execute(HOLD, ("admin", "Nurse"))
        connection.commit()
        connection.execute(DROP, ("admin",))
        connection.execute(DROP, ("nurse",))
        connection.execute(HOLD, ("nurse", "Nurse"))
        connection.execute(HOLD, ("admin", "Admin"))


def test_two_administrators_who_dismiss_each_other_do_not_both_succeed() -> None:
    with plain_connection() as connection:
        connection.execute(HOLD, ("nurse", "Admin"))
    meet, outcome = threading.Barrier(2), []

    def dismiss(whom: str) -> None:
        with plain_connection() as connection:
            meet.wait()
            try:
                connection.execute(
                    "DELETE FROM ab_user_role USING ab_user u, ab_role r WHERE u.id = user_id AND r.id = role_id "
                    "AND u.username = %s AND r.name = 'Admin'",
                    (whom,),
                )
                connection.commit()
                outcome.append("done")
            except psycopg.errors.CheckViolation:
                outcome.append("refused")

    try:
        both = [threading.Thread(target=dismiss, args=(whom,)) for whom in ("admin", "nurse")]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        assert sorted(outcome) == ["done", "refused"]
    finally:
        with plain_connection() as connection:
            connection.execute(DROP, ("admin",))
            connection.execute(DROP, ("nurse",))
            connection.execute(HOLD, ("nurse", "Nurse"))
            connection.execute(HOLD, ("admin", "Admin"))


def test_the_refusal_says_why_and_who(acting: Acting, hospital: Hospital) -> None:
    with (
        acting("admin"),
        pytest.raises(Separated, match=r"two roles together. \(Dora Doctor\)"),
        guard.unit_of_work() as s,
    ):
        role = roles.create_role(s, name="Configurer", reason="for a test", like=None)
        role.permissions = [
            view
            for view in s.scalars(select(PermissionView))
            if (view.permission.name, view.view_menu.name) == ("can_update", "Role")
        ]
        doctor = s.get(User, hospital.accounts["doctor"])
        doctor.roles.append(role)
    assert not sql("SELECT * FROM ab_role WHERE name = 'Configurer'")


def test_an_emergency_access_is_not_rewritten(hospital: Hospital) -> None:
    sql(
        "INSERT INTO emergency_access (patient_id, user_id, reason, justification, started_at, ends_at, review_note, fhir_id, "
        "version, created_at, updated_at) VALUES (:p, :u, 'BTG', 'the patient was not breathing', now(), "
        "now() + interval '1 hour', '', gen_random_uuid(), 1, now(), now())",
        p=hospital.patients[3],
        u=hospital.accounts["nurse"],
    )
    for statement in (
        "UPDATE emergency_access SET justification = 'another reason, afterwards'",
        "UPDATE emergency_access SET user_id = user_id + 1",
        "UPDATE emergency_access SET ends_at = ends_at + interval '1 second'",
        "DELETE FROM emergency_access",
    ):
        with plain_connection() as connection, pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute(statement)
    sql("UPDATE emergency_access SET ends_at = started_at + interval '1 second'")
    reviewed = "UPDATE emergency_access SET reviewed_at = now(), finding = 'justified', reviewed_by_id = %s"
    with plain_connection() as connection, pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(reviewed, (hospital.accounts["nurse"],))
    with plain_connection() as connection:
        connection.execute(reviewed, (hospital.accounts["privacy"],))
    with plain_connection() as connection, pytest.raises(psycopg.errors.RestrictViolation):
        connection.execute("UPDATE emergency_access SET finding = 'unjustified'")
    sql("ALTER TABLE emergency_access DISABLE TRIGGER USER")
    sql("DELETE FROM emergency_access")
    sql("ALTER TABLE emergency_access ENABLE TRIGGER USER")


# ---- warm and cold -------------------------------------------------------------------------------------------------


def test_asking_for_rights_costs_no_statement_once_warm(hospital: Hospital) -> None:
    counted: list[str] = []

    def count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        counted.append(statement)

    event.listen(guard.engine(), "before_cursor_execute", count)
    try:
        for wanted in (2, 1, 1):
            counted.clear()
            with guard.acting_as(nobody()):
                assert guard.who_is(hospital.accounts["nurse"], Origin()) is not None
            assert len(counted) == wanted
            guard._standings.clear() if wanted == 2 and len(counted) < 2 else None
    finally:
        event.remove(guard.engine(), "before_cursor_execute", count)


def test_seeding_again_leaves_what_an_administrator_made(acting: Acting, granted: Any) -> None:
    granted("Nurse", Patient=may("read", rows=RowScope.OWN_BRANCH, masked=["address"]), Immunization=None)
    before = everything_about_accounts()
    accounts.seed()
    assert everything_about_accounts() == before


def test_a_resource_that_is_new_to_a_house_is_given_to_the_shipped_roles() -> None:
    before = everything_about_accounts()
    sql("DELETE FROM role_grant WHERE resource = 'EmergencyAccess'")
    sql(
        "DELETE FROM ab_permission_view_role WHERE permission_view_id IN (SELECT pv.id FROM ab_permission_view pv JOIN ab_view_menu m ON m.id = view_menu_id WHERE m.name = 'EmergencyAccess')"
    )
    sql(
        "DELETE FROM ab_permission_view WHERE view_menu_id = (SELECT id FROM ab_view_menu WHERE name = 'EmergencyAccess')"
    )
    sql("DELETE FROM ab_view_menu WHERE name = 'EmergencyAccess'")
    accounts.seed()
    assert len(everything_about_accounts()[5]) == len(before[5])
    with guard.acting_as(service("setup")), guard.unit_of_work() as s:
        del s
    assert roles_now("Doctor") == policy.MATRIX["Doctor"]
    assert roles_now("Nurse") == policy.MATRIX["Nurse"]


def roles_now(name: str) -> Any:
    """What a role is granted, as the matrix page would show it."""
    key = sql("SELECT id FROM ab_role WHERE name = :name", name=name)[0]["id"]
    with factories.acting(sql("SELECT id FROM ab_user WHERE username = 'admin'")[0]["id"]):
        return roles.sheet_of(guard.session(), key).grants
