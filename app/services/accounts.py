"""Accounts and roles: seeding the shipped matrix, opening accounts, and finding the demo's."""

from __future__ import annotations

from collections.abc import Sequence

from flask_appbuilder.security.sqla.models import Permission, PermissionView, Role, User, ViewMenu
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.security import generate_password_hash

from app import guard, policy
from app.actor import service
from app.errors import Invalid
from app.services.words import line
from models.access import RoleGrant, RoleSetting

DEMO_ACCOUNTS: dict[str, str] = {
    "admin": policy.Role.ADMIN,
    "reception": policy.Role.RECEPTIONIST,
    "nurse": policy.Role.NURSE,
    "doctor": policy.Role.DOCTOR,
    "lab": policy.Role.LAB_TECHNICIAN,
    "pharmacist": policy.Role.PHARMACIST,
    "billing": policy.Role.BILLING_CLERK,
    "privacy": policy.Role.PRIVACY_OFFICER,
    "patient": policy.Role.PATIENT,
}
DEMO_MAIL = "demo.wardbook.example"
"""Demo accounts are known by their mail domain, which belongs to nobody (RFC 2606)."""


def seed() -> None:
    """Write every action x resource into the permission tables, and the shipped roles that are not there yet.

    Roles that exist already are left as an administrator made them; of a resource that is new to this house they are
    given what is shipped. Safe to call at every start.
    """
    with guard.acting_as(service("setup")), guard.unit_of_work() as session:
        actions = {p.name: p for p in session.scalars(select(Permission))}
        menus = {m.name: m for m in session.scalars(select(ViewMenu))}
        pairs = {(v.permission.name, v.view_menu.name): v for v in session.scalars(select(PermissionView))}
        fresh = {resource for resource in policy.RESOURCES if resource not in menus}
        for action in policy.ACTIONS:
            name = guard.PREFIX + action
            if name not in actions:
                actions[name] = Permission(name=name)
                session.add(actions[name])
        for resource in policy.RESOURCES:
            if resource not in menus:
                menus[resource] = ViewMenu(name=resource)
                session.add(menus[resource])
        session.flush()
        for resource, possible in policy.POSSIBLE.items():
            for action in possible:
                name = guard.PREFIX + action
                if (name, resource) not in pairs:
                    view = PermissionView(permission=actions[name], view_menu=menus[resource])
                    pairs[name, resource] = view
                    session.add(view)
        session.flush()
        roles = {role.name: role for role in session.scalars(select(Role))}
        said = {setting.role_id for setting in session.scalars(select(RoleSetting))}
        for name, grants in policy.MATRIX.items():
            role = roles.get(name)
            if role is None:
                role = Role(name=name)
                session.add(role)
            new = fresh if name in roles else set(grants)
            role.permissions += [pairs[guard.PREFIX + a, r] for a, r in sorted(policy.shipped(grants)) if r in new]
            session.flush()
            if role.id not in said:
                session.add(RoleSetting(role=role))
                new = set(grants)
            for resource in sorted(new & set(grants)):
                grant = grants[resource]
                session.add(
                    RoleGrant(
                        role=role,
                        resource=resource,
                        rows=grant.rows,
                        kinds=sorted(grant.kinds),
                        masked=sorted(grant.masked),
                    )
                )


def open_account(
    session: Session, *, username: str, password: str, first_name: str, last_name: str, email: str, roles: Sequence[str]
) -> User:
    """Open an account somebody can sign in with. Raises Invalid and Conflict."""
    username = line(username, field="username", longest=64)
    if not username or len(password) < 8:
        raise Invalid("An account needs a name and a password of 8 letters or more.", field="username")
    user = User(
        username=username,
        password=generate_password_hash(password),
        first_name=line(first_name, field="first_name", longest=64),
        last_name=line(last_name, field="last_name", longest=64),
        email=email,
        active=True,
        roles=list(session.scalars(select(Role).where(Role.name.in_(roles)))),
    )
    session.add(user)
    session.flush()
    return user


def demo_accounts_present(session: Session) -> bool:
    """Whether anybody could sign in with a password that everybody knows."""
    statement = select(User.id).where(User.email.endswith("@" + DEMO_MAIL), User.active).limit(1)
    return session.scalar(statement) is not None
