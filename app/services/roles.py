"""Roles: what each may do, with which rows and without which fields, as an administrator sees and changes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256

import msgspec
from flask_appbuilder.security.sqla.models import Permission, PermissionView, Role, User, ViewMenu, assoc_user_role
from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from app import guard, policy
from app.errors import Conflict, Invalid, NotFound, Separated
from app.policy import Grant
from app.services.words import line
from models.access import RoleGrant, RoleSetting
from models.base import now
from models.codes import RowScope

KEPT = (policy.Role.ADMIN, policy.Role.PATIENT)
"""Roles that cannot be retired: the house and the portal stand on them."""


@dataclass(frozen=True)
class RoleLine:
    """A role in a list of them."""

    id: int
    name: str
    holders: int
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
    """By resource; one that is not named is not granted."""

    @property
    def digest(self) -> str:
        """What the sheet says in a few letters: it differs where the sheet does."""
        said = {
            resource: [sorted(grant.actions), grant.rows, sorted(grant.kinds), sorted(grant.masked)]
            for resource, grant in self.grants.items()
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
    """Every role, with how many people hold it, in two statements. Raises Forbidden."""
    guard.require("read", "Role")
    settings = {setting.role_id: setting for setting in session.scalars(select(RoleSetting))}
    counted = session.execute(
        select(Role.id, Role.name, func.count(User.id))
        .outerjoin(assoc_user_role, assoc_user_role.c.role_id == Role.id)
        .outerjoin(User, (User.id == assoc_user_role.c.user_id) & User.active)
        .group_by(Role.id, Role.name)
        .order_by(Role.name)
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


def sheet_of(session: Session, role_id: int) -> Sheet:
    """What is said of one role. Raises Forbidden and NotFound."""
    guard.require("read", "Role")
    role = _role(session, role_id)
    setting = session.get(RoleSetting, role_id)
    said = {grant.resource: grant for grant in session.scalars(select(RoleGrant).where(RoleGrant.role_id == role_id))}
    actions: dict[str, set[str]] = {}
    for view in role.permissions:
        resource, action = view.view_menu.name, view.permission.name.removeprefix(guard.PREFIX)
        if action in policy.POSSIBLE.get(resource, ()):
            actions.setdefault(resource, set()).add(action)
    grants = {}
    for resource in policy.RESOURCES:
        if resource in actions:
            row = said.get(resource)
            base = policy.stored(resource, *((row.rows, row.kinds, row.masked) if row else (None, None, None)))
            grants[resource] = Grant(frozenset(actions[resource]), base.rows, base.kinds, base.masked)
    return Sheet(
        role.id,
        role.name,
        retired=setting is not None and setting.retired_at is not None,
        second_factor=setting is not None and setting.second_factor,
        grants=grants,
    )


def difference(before: Sheet, after: Sheet) -> list[Change]:
    """What one sheet says otherwise than another, in the order of the matrix."""
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
        blank = old if old.actions else policy.UNSAID.get(resource, nothing)
        changes += [
            Change(resource, what, getattr(blank, what), getattr(new, what))
            for what in ("rows", "kinds", "masked")
            if getattr(blank, what) != getattr(new, what)
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
            or grant.rows not in policy.scopes_of(resource)
        ):
            raise Invalid("This page does not fit the house any more. Please open it again.")
    pairs = policy.shipped(sheet.grants)
    if policy.CONFIGURES & pairs and any(resource in policy.NOTES for _, resource in pairs):
        raise Separated(
            "Whoever configures roles must not see clinical notes, or nothing would be safe. Give one or the other."
        )
    if sheet.name == policy.Role.PATIENT:
        for resource, grant in sheet.grants.items():
            if grant.rows != RowScope.SELF and resource not in policy.REFERENCE:
                raise Separated("Patients see their own records only. This cannot be changed.")


def change_role(session: Session, sheet: Sheet, *, seen: str, reason: str) -> list[Change]:
    """Make a role what a sheet says; `seen` is the digest of the one it was made from. Gives what changed.

    Raises Forbidden, Conflict where somebody else changed the role meanwhile, Invalid, Separated and OwnRoles.
    """
    guard.require("update", "Role")
    session.execute(select(Role.id).where(Role.id == sheet.id).with_for_update())
    before = sheet_of(session, sheet.id)
    if before.digest != seen:
        raise Conflict("Somebody else changed this role in the meantime. Look at it again, then repeat your change.")
    check(sheet)
    changes = difference(before, sheet)
    if not changes:
        raise Invalid("Nothing is different from before.")
    guard.because(_reason(reason))
    _write(session, sheet)
    return changes


def create_role(session: Session, *, name: str, reason: str, like: int | None = None) -> Role:
    """A new role with nothing granted, or with all that another one is granted. Raises Forbidden, Invalid, Conflict."""
    guard.require("create", "Role")
    name = line(name, field="name", longest=64)
    if not name:
        raise Invalid("Please give the role a name.", field="name")
    known = set(session.scalars(select(func.lower(Role.name))))
    spoken = {word.lower() for word in (*policy.SPOKEN, *policy.SPOKEN.values())}
    if name.lower() in known | spoken or name.lower().startswith(("service:", "as:")):
        raise Conflict("There is a role of this name already.", field="name")
    guard.because(_reason(reason))
    model = sheet_of(session, like) if like is not None else Sheet(0, name)
    role = Role(name=name)
    session.add(role)
    session.flush()
    session.add(RoleSetting(role=role, second_factor=model.second_factor))
    _write(session, Sheet(role.id, name, second_factor=model.second_factor, grants=model.grants))
    return role


def retire_role(session: Session, role_id: int, *, reason: str, back: bool = False) -> None:
    """Have a role grant nothing to anybody from now on, or take it back into use.

    Raises Forbidden, Invalid, and Separated where nobody would be left to configure roles.
    """
    guard.require("update", "Role")
    role = _role(session, role_id)
    if role.name in KEPT and not back:
        raise Separated("This role cannot be retired: the house stands on it.")
    setting = session.get(RoleSetting, role_id)
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
    )
    if role is None:
        raise NotFound
    return role


def _write(session: Session, sheet: Sheet) -> None:
    """A sheet into Flask-AppBuilder's tables and ours."""
    role = _role(session, sheet.id)
    wanted = {(guard.PREFIX + action, resource) for action, resource in policy.shipped(sheet.grants)}
    held = {(view.permission.name, view.view_menu.name): view for view in role.permissions}
    missing = wanted - held.keys()
    if missing:
        found = session.scalars(
            select(PermissionView)
            .join(Permission, Permission.id == PermissionView.permission_id)
            .join(ViewMenu, ViewMenu.id == PermissionView.view_menu_id)
            .where(ViewMenu.name.in_({resource for _, resource in missing}))
        )
        role.permissions += [view for view in found if (view.permission.name, view.view_menu.name) in missing]
    role.permissions = [view for view in role.permissions if (view.permission.name, view.view_menu.name) in wanted]
    setting = session.get(RoleSetting, sheet.id)
    if setting is None:
        setting = RoleSetting(role=role)
        session.add(setting)
    setting.second_factor = sheet.second_factor
    said = {grant.resource: grant for grant in session.scalars(select(RoleGrant).where(RoleGrant.role_id == sheet.id))}
    for resource, grant in sheet.grants.items():
        row = said.pop(resource, None)
        if row is None:
            row = RoleGrant(role=role, resource=resource, rows=RowScope.CHAIN, kinds=[], masked=[])
            session.add(row)
        if policy.stored(resource, row.rows, row.kinds, row.masked) != replace(grant, actions=frozenset()):
            row.rows, row.kinds, row.masked = grant.rows, sorted(grant.kinds), sorted(grant.masked)
    for row in said.values():
        session.delete(row)
    session.flush()


__all__ = [
    "Change",
    "RoleLine",
    "Sheet",
    "all_roles",
    "change_role",
    "check",
    "create_role",
    "difference",
    "retire_role",
    "sheet_of",
]
