"""Roles: what each may do, with which rows and without which fields, as an administrator sees and changes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import msgspec
from flask_appbuilder.security.sqla.models import (
    Permission,
    PermissionView,
    Role,
    User,
    ViewMenu,
    assoc_group_role,
    assoc_permissionview_role,
    assoc_user_group,
    assoc_user_role,
)
from sqlalchemy import Select, func, select, union
from sqlalchemy.orm import Session, joinedload, selectinload

from app import guard, policy
from app.actor import current
from app.errors import Conflict, Invalid, NotFound, OwnRoles, Separated
from app.policy import Grant
from app.services.words import line
from models.access import RoleGrant, RoleSetting
from models.audit import PolicyVersion
from models.base import now
from models.codes import RowScope

OF_PATIENTS = frozenset(name for name in policy.RESOURCES if RowScope.SELF in policy.scopes_of(name))
"""What can be somebody's own record."""
KEPT = (policy.Role.ADMIN, policy.Role.PATIENT)
"""Roles that cannot be retired: the house and the portal stand on them."""
LONGEST_NAME = 64
OUTGROWN = "This page does not fit the house any more. Please open it again."


@dataclass(frozen=True)
class RoleLine:
    """A role in a list of them."""

    id: int
    name: str
    holders: int
    """People with an open account who hold it, by themselves or through a group."""
    retired: bool
    second_factor: bool


@dataclass(frozen=True)
class Sheet:
    """Everything that is said of one role."""

    id: int
    name: str
    retired: bool = False
    second_factor: bool = False
    grants: Mapping[str, Grant] = field(default_factory=dict)
    """By resource; one that is not named, or has no action, is not granted."""

    @property
    def digest(self) -> str:
        """What the sheet says in a few letters: it differs where the sheet does."""
        said = {
            resource: [sorted(grant.actions), grant.rows, sorted(grant.kinds), sorted(grant.masked)]
            for resource, grant in self.grants.items()
            if grant.actions
        }
        ordered = msgspec.json.encode([self.name, self.retired, self.second_factor, said], order="sorted")
        return sha256(ordered).hexdigest()[:24]


@dataclass(frozen=True)
class Change:
    """One thing that differs between two sheets; `before` and `after` as the policy writes them."""

    resource: str
    what: str
    """An action, or `rows`, `kinds`, `masked`; `second_factor` of no resource."""
    before: object
    after: object


def all_roles(session: Session) -> list[RoleLine]:
    """Every role, with how many people hold it, in two statements; retired ones last. Raises Forbidden."""
    guard.require("read", "Role")
    settings = {setting.role_id: setting for setting in session.scalars(select(RoleSetting))}
    held = _held()
    counted = session.execute(
        select(Role.id, Role.name, func.count(User.id))
        .outerjoin(held, held.c.role_id == Role.id)
        .outerjoin(User, (User.id == held.c.user_id) & User.active)
        .group_by(Role.id, Role.name)
        .order_by(func.lower(Role.name))
    )
    lines = []
    for key, name, holders in counted:
        setting = settings.get(key)
        lines.append(
            RoleLine(
                key,
                name,
                holders,
                retired=setting is not None and setting.retired_at is not None,
                second_factor=setting is not None and setting.second_factor,
            )
        )
    order = [str(role) for role in policy.Role]
    return sorted(lines, key=lambda role: (role.retired, order.index(role.name) if role.name in order else len(order)))


def in_use(session: Session, name: str) -> bool:
    """Whether there is a role of that name which is not retired."""
    retired = select(RoleSetting.role_id).where(RoleSetting.retired_at.is_not(None))
    return session.scalar(select(Role.id).where(Role.name == name, Role.id.not_in(retired))) is not None


def sheet_of(session: Session, role_id: int) -> Sheet:
    """What is said of one role, as the database has it now. Raises Forbidden and NotFound."""
    guard.require("read", "Role")
    role = session.get(Role, role_id, populate_existing=True)
    if role is None:
        raise NotFound
    setting = session.get(RoleSetting, role_id, populate_existing=True)
    said = session.scalars(
        select(RoleGrant).where(RoleGrant.role_id == role_id), execution_options={"populate_existing": True}
    )
    pairs = session.execute(_pairs().where(assoc_permissionview_role.c.role_id == role_id))
    granted = [(action, resource) for _, action, resource in pairs]
    return _sheet(role.id, role.name, setting, granted, {grant.resource: grant for grant in said})


def all_sheets(session: Session) -> dict[int, Sheet]:
    """What is said of every role, by its number, in four statements however many there are. Raises Forbidden."""
    guard.require("read", "Role")
    settings = {setting.role_id: setting for setting in session.scalars(select(RoleSetting))}
    said: dict[int, dict[str, RoleGrant]] = {}
    for grant in session.scalars(select(RoleGrant)):
        said.setdefault(grant.role_id, {})[grant.resource] = grant
    pairs: dict[int, list[tuple[str, str]]] = {}
    for key, action, resource in session.execute(_pairs()):
        pairs.setdefault(key, []).append((action, resource))
    return {
        role.id: _sheet(role.id, role.name, settings.get(role.id), pairs.get(role.id, []), said.get(role.id, {}))
        for role in session.scalars(select(Role))
    }


def _pairs() -> Select[int, str, str]:
    """What roles are granted, as (role_id, permission, what it is on)."""
    held = assoc_permissionview_role
    return (
        select(held.c.role_id, Permission.name, ViewMenu.name)
        .join(PermissionView, PermissionView.id == held.c.permission_view_id)
        .join(Permission, Permission.id == PermissionView.permission_id)
        .join(ViewMenu, ViewMenu.id == PermissionView.view_menu_id)
    )


def _sheet(
    key: int,
    name: str,
    setting: RoleSetting | None,
    pairs: Iterable[tuple[str, str]],
    said: Mapping[str, RoleGrant],
) -> Sheet:
    """A sheet from the tables' rows; what Patient sees are their own records, whatever the tables say."""
    actions: dict[str, set[str]] = {}
    for permission, resource in pairs:
        action = permission.removeprefix(guard.PREFIX)
        if action in policy.POSSIBLE.get(resource, ()):
            actions.setdefault(resource, set()).add(action)
    grants = {}
    for resource in policy.RESOURCES:
        if resource in actions:
            row = said.get(resource)
            base = policy.stored(resource, *((row.rows, row.kinds, row.masked) if row else (None, None, None)))
            rows = RowScope.SELF if name == policy.Role.PATIENT and resource not in policy.REFERENCE else base.rows
            grants[resource] = Grant(frozenset(actions[resource]), rows, base.kinds, base.masked)
    return Sheet(
        key,
        name,
        retired=setting is not None and setting.retired_at is not None,
        second_factor=setting is not None and setting.second_factor,
        grants=grants,
    )


def difference(before: Sheet, after: Sheet) -> list[Change]:
    """What one sheet says otherwise than another, in the order of the matrix.

    Of a resource that was not granted before, all its limits are new; of one that is granted no more, none is told.
    """
    changes = []
    if before.second_factor != after.second_factor:
        changes.append(Change("", "second_factor", before.second_factor, after.second_factor))
    nothing = Grant()
    for resource in policy.RESOURCES:
        old, new = before.grants.get(resource, nothing), after.grants.get(resource, nothing)
        changes += [
            Change(resource, action, action in old.actions, action in new.actions)
            for action in policy.ACTIONS
            if (action in old.actions) != (action in new.actions)
        ]
        if not new.actions:
            continue
        limits = old if old.actions else nothing
        changes += [
            Change(resource, what, getattr(limits, what), getattr(new, what))
            for what in ("rows", "kinds", "masked")
            if getattr(limits, what) != getattr(new, what)
        ]
    return changes


def check(sheet: Sheet) -> None:
    """Raises Invalid and Separated where a sheet says what no role may."""
    for resource, grant in sheet.grants.items():
        if (
            resource not in policy.POSSIBLE
            or not grant.actions <= set(policy.POSSIBLE[resource])
            or not grant.kinds <= set(policy.KINDS.get(resource, ()))
            or not grant.masked <= set(policy.MASKABLE.get(resource, ()))
            or (grant.rows not in policy.scopes_of(resource) and grant.rows != RowScope.SELF)
        ):
            raise Invalid(OUTGROWN)
    pairs = policy.shipped(sheet.grants)
    if policy.CONFIGURES & pairs:
        if any(resource in policy.NOTES for _, resource in pairs):
            raise Separated(
                "Whoever configures roles must not see clinical notes, or nothing would be safe. Give one or the other."
            )
        reports = sheet.grants.get("DiagnosticReport", Grant())
        if reports.actions and not reports.masked.issuperset(policy.NARRATIVE):
            raise Separated("The wording of reports stays hidden from whoever configures roles.")
    if sheet.name == policy.Role.PATIENT:
        for resource, grant in sheet.grants.items():
            if grant.actions and resource not in (*policy.REFERENCE, *OF_PATIENTS):
                raise Separated("Patients see their own records only, and this is nobody's record.")
            if grant.actions and grant.rows != RowScope.SELF and resource not in policy.REFERENCE:
                raise Separated("Patients see their own records only. This cannot be changed.")
    elif any(grant.rows not in policy.scopes_of(resource) for resource, grant in sheet.grants.items()):
        raise Invalid(OUTGROWN)


def change_role(session: Session, sheet: Sheet, *, seen: str, reason: str) -> list[Change]:
    """Make a role what a sheet says; `seen` is the digest of the one it was made from. Gives what changed.

    Raises Forbidden, Conflict where somebody else changed the role meanwhile, Invalid, Separated and OwnRoles.
    """
    guard.require("update", "Role")
    # Every change of a role raises this number, from whichever page; whoever holds it, waits for nobody's half change.
    session.get_one(PolicyVersion, 1, with_for_update=True)
    _, changes = compare(session, sheet, seen=seen)
    guard.because(_reason(reason))
    _write(session, sheet)
    return changes


def compare(session: Session, sheet: Sheet, *, seen: str) -> tuple[Sheet, list[Change]]:
    """The role as it is, and what a sheet made from the one with the digest `seen` would change of it.

    Raises NotFound, Conflict where somebody else changed the role meanwhile, Invalid and Separated.
    """
    before = sheet_of(session, sheet.id)
    if before.digest != seen:
        raise Conflict("Somebody else changed this role in the meantime. Look at it again, then repeat your change.")
    check(sheet)
    changes = difference(before, sheet)
    if not changes:
        raise Invalid("Nothing is different from before.")
    return before, changes


def create_role(session: Session, *, name: str, reason: str, like: int | None = None) -> Role:
    """A new role with nothing granted, or with all that another one is granted. Raises Forbidden, Invalid, Conflict."""
    guard.require("create", "Role")
    name = name_for(session, name)
    guard.because(_reason(reason))
    model = sheet_of(session, like) if like is not None else Sheet(0, name)
    check(replace(model, name=name))
    role = Role(name=name, permissions=_permissions(session, _wanted(model)))
    grants = [
        RoleGrant(role=role, resource=resource, rows=grant.rows, kinds=sorted(grant.kinds), masked=sorted(grant.masked))
        for resource, grant in model.grants.items()
    ]
    session.add_all([role, RoleSetting(role=role, second_factor=model.second_factor), *grants])
    session.flush()
    return role


def name_for(session: Session, name: str) -> str:
    """The name of a new role as it is stored. Raises Invalid for none that can be one, Conflict for one that is taken.

    Neither another role nor the hospital's word for one is taken a second time, in capitals or not; and none begins
    as the trail writes services and views.
    """
    name = line(name, field="name", longest=LONGEST_NAME)
    if not name:
        raise Invalid("Please give the role a name.", field="name")
    if name.lower().startswith(("service:", "as:")):
        raise Invalid("A name cannot begin like this: the trail uses it for something else.", field="name")
    known = set(session.scalars(select(func.lower(Role.name))))
    spoken = {word.lower() for word in (*policy.SPOKEN, *policy.SPOKEN.values())}
    if name.lower() in known | spoken:
        raise Conflict("There is a role of this name already.", field="name")
    return name


def to_hold(session: Session, chosen: Iterable[Role], held: Iterable[Role] = ()) -> list[Role]:
    """The roles an account is to have: those chosen, and retired ones it has already, which no form offers.

    Raises Invalid where a retired one would be given to somebody.
    """
    retired = set(session.scalars(select(RoleSetting.role_id).where(RoleSetting.retired_at.is_not(None))))
    kept = [role for role in held if role.id in retired]
    wanted = list(chosen)
    if any(role.id in retired and role not in kept for role in wanted):
        raise Invalid("A retired role is given to nobody. Take it back into use first.", field="roles")
    return list(dict.fromkeys([*wanted, *kept]))


def retire_role(session: Session, role_id: int, *, reason: str, back: bool = False) -> None:
    """Have a role grant nothing to anybody from now on, or take it back into use.

    Raises Forbidden, OwnRoles, Conflict, Invalid, and Separated where nobody would be left to configure roles.
    """
    guard.require("update", "Role")
    session.get_one(PolicyVersion, 1, with_for_update=True)
    setting = session.get(RoleSetting, role_id, populate_existing=True)
    role = session.get(Role, role_id, populate_existing=True)
    if role is None:
        raise NotFound
    if role.name in KEPT and not back:
        raise Separated("This role cannot be retired: the house stands on it.")
    if _holds(session, role_id):  # one that is retired is none of the actor's roles, so the gate does not know
        raise guard.refuse("update", "Role.retired_at", OwnRoles)
    if setting is None:
        setting = RoleSetting(role=role)
        session.add(setting)
    if (setting.retired_at is None) == back:
        raise Conflict("Somebody else did this in the meantime.")
    guard.because(_reason(reason))
    setting.retired_at = None if back else now()
    session.flush()


def _reason(reason: str) -> str:
    said = line(reason, field="reason", longest=300)
    if len(said) < 5:
        raise Invalid("Please say in a few words why. It is kept with the change.", field="reason")
    return said


def _role(session: Session, role_id: int) -> Role:
    views = selectinload(Role.permissions)
    role = session.scalar(
        select(Role)
        .where(Role.id == role_id)
        .options(views.joinedload(PermissionView.permission), views.joinedload(PermissionView.view_menu))
        .execution_options(populate_existing=True)
    )
    if role is None:
        raise NotFound
    return role


def _held() -> Any:
    """Who holds which role, by themselves or through a group, as (user_id, role_id)."""
    groups = select(assoc_user_group.c.user_id, assoc_group_role.c.role_id).join(
        assoc_group_role, assoc_group_role.c.group_id == assoc_user_group.c.group_id
    )
    return union(select(assoc_user_role.c.user_id, assoc_user_role.c.role_id), groups).subquery()


def _holds(session: Session, role_id: int) -> bool:
    """Whether the actor holds a role, retired or not."""
    held = _held()
    mine = select(held.c.role_id).where(held.c.role_id == role_id, held.c.user_id == current().user_id)
    return session.scalar(mine) is not None


def _wanted(sheet: Sheet) -> set[tuple[str, str]]:
    """What a sheet grants, by the names Flask-AppBuilder gives permissions and what they are on."""
    return {(guard.PREFIX + action, resource) for action, resource in policy.shipped(sheet.grants)}


def _permissions(session: Session, wanted: set[tuple[str, str]]) -> list[PermissionView]:
    """Flask-AppBuilder's rows for pairs of a permission and what it is on."""
    if not wanted:
        return []
    found = session.scalars(
        select(PermissionView)
        .join(ViewMenu, ViewMenu.id == PermissionView.view_menu_id)
        .where(ViewMenu.name.in_({resource for _, resource in wanted}))
        .options(joinedload(PermissionView.permission), joinedload(PermissionView.view_menu))
    )
    return [view for view in found if (view.permission.name, view.view_menu.name) in wanted]


def _write(session: Session, sheet: Sheet) -> None:
    """A sheet into Flask-AppBuilder's tables and ours, in one flush.

    What was said of a resource that is granted no more stays: granted again elsewhere, it is not suddenly wide open.
    """
    setting = session.get(RoleSetting, sheet.id, populate_existing=True)
    role = _role(session, sheet.id)
    said = {grant.resource: grant for grant in session.scalars(select(RoleGrant).where(RoleGrant.role_id == sheet.id))}
    wanted = _wanted(sheet)
    held = {(view.permission.name, view.view_menu.name): view for view in role.permissions}
    new = _permissions(session, wanted - held.keys())
    if wanted != held.keys():
        role.permissions = [*(view for pair, view in held.items() if pair in wanted), *new]
    if setting is None:
        setting = RoleSetting(role=role, second_factor=False)
        session.add(setting)
    if setting.second_factor != sheet.second_factor:
        setting.second_factor = sheet.second_factor
    for resource, grant in sheet.grants.items():
        row = said.get(resource)
        before = policy.stored(resource, *((row.rows, row.kinds, row.masked) if row else (None, None, None)))
        if not grant.actions or before == replace(grant, actions=frozenset()):
            continue
        if row is None:
            row = RoleGrant(role=role, resource=resource)
            session.add(row)
        row.rows, row.kinds, row.masked = grant.rows, sorted(grant.kinds), sorted(grant.masked)
    session.flush()


__all__ = [
    "Change",
    "RoleLine",
    "Sheet",
    "all_roles",
    "all_sheets",
    "change_role",
    "check",
    "compare",
    "create_role",
    "difference",
    "in_use",
    "name_for",
    "retire_role",
    "sheet_of",
    "to_hold",
]
