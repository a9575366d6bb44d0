"""Accounts: seeding the shipped matrix, opening and changing accounts, and finding the demo's."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from flask_appbuilder.security.sqla.models import Permission, PermissionView, Role, User, ViewMenu
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from app import guard, policy, trail
from app.actor import current, service
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.services import credentials
from app.services.words import line
from models.access import RoleGrant, RoleSetting
from models.audit import AuditOutbox

DEMO_ACCOUNTS: dict[str, str] = {
    "admin": policy.Role.ADMIN,
    "reception": policy.Role.RECEPTIONIST,
    "nurse": policy.Role.NURSE,
    "doctor": policy.Role.DOCTOR,
    "trainee": policy.Role.DOCTOR,
    "lab": policy.Role.LAB_TECHNICIAN,
    "lab2": policy.Role.LAB_TECHNICIAN,
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
    session: Session,
    *,
    username: str,
    password: str,
    first_name: str,
    last_name: str,
    email: str,
    roles: Sequence[str] | Sequence[Role],
    active: bool = True,
    known: bool = False,
) -> User:
    """Open an account somebody can sign in with; `known` is for the demo, whose password everybody knows.

    Raises Invalid, also for a password that can be guessed, and Conflict.
    """
    username = line(username, field="username", longest=64)
    if not username:
        raise Invalid("An account needs a user name.", field="username")
    first_name = line(first_name, field="first_name", longest=64)
    last_name = line(last_name, field="last_name", longest=64)
    email = line(email, field="email", longest=320)
    unlike_others(session, username, email)
    if not known:
        credentials.check(password, (username, first_name, last_name, email))
    names = [role for role in roles if isinstance(role, str)]
    user = User(
        username=username,
        password=credentials.hashed(password),
        first_name=first_name,
        last_name=last_name,
        email=email,
        active=active,
        roles=[
            *(role for role in roles if isinstance(role, Role)),
            *(session.scalars(select(Role).where(Role.name.in_(names))) if names else ()),
        ],
    )
    session.add(user)
    session.flush()
    return user


def unlike_others(session: Session, username: str, email: str, *, but: int | None = None) -> None:
    """Raises Conflict where a user name or address is what another account signs in with, in whatever letters."""
    words = {username.lower(), email.lower()} - {""}
    for other in session.scalars(
        select(User).where(or_(func.lower(User.username).in_(words), func.lower(User.email).in_(words)))
    ):
        if other.id == but:
            continue
        if username.lower() in (other.username.lower(), other.email.lower()):
            raise Conflict("This user name is taken.", field="username")
        raise Conflict("This e-mail address is taken.", field="email")


def set_password(session: Session, user: User, password: str) -> None:
    """Give an account another password; whatever was signed in to it ends, by the database.

    Raises Invalid for one that can be guessed or is the one it has, and Forbidden by the gate.
    """
    known = (user.username, user.first_name, user.last_name, user.email)
    credentials.check(password, known, old=user.password)
    user.password = credentials.hashed(password)
    session.flush()


def give_password(session: Session, user_id: int, password: str) -> None:
    """An administrator gives somebody another password. Raises Forbidden, NotFound and Invalid."""
    user = _another(session, user_id)
    if user.id == current().user_id:
        raise Invalid("Change your own password on the page of your account.", field="password")
    set_password(session, user, password)


def change_own_password(session: Session, current_password: str, password: str) -> None:
    """The actor takes another password, and says the one they have. Raises Invalid and TooManyTries."""
    set_password(session, credentials.confirm_password(session, current_password), password)


# ---- what an administrator does to somebody's signing in -------------------------------------------------------------


def end_sessions(session: Session, user_id: int, *, reason: str) -> None:
    """End everything that is signed in to an account, tokens too. Raises Forbidden, NotFound, Invalid."""
    user = _another(session, user_id)
    _noted(session, "end-sessions", user.id, _said(reason))
    credentials.end_sessions(session, user.id)


def unlock(session: Session, user_id: int, *, reason: str) -> None:
    """Let an account try again at once after too many tries. Raises Forbidden, NotFound, Invalid."""
    user = _another(session, user_id)
    _noted(session, "unlock", user.id, _said(reason))
    session.flush()
    credentials.unlock(user.id)


def reset_second_factor(session: Session, user_id: int, *, reason: str) -> None:
    """Take the second step from an account whose owner has lost it. Raises Forbidden, NotFound, Invalid, Conflict."""
    user = _another(session, user_id)
    if user.id == current().user_id:
        raise guard.refuse("update", "User.totp_secret", OwnSecondFactor)
    guard.because(_said(reason))
    credentials.remove_second_factor(session, user.id)


class OwnSecondFactor(Forbidden):
    """Nobody resets their own second step."""

    sentence = "Nobody resets their own second step. Turn it off on the page of your account, with your password."


def _another(session: Session, user_id: int) -> User:
    guard.require("update", "User")
    user = session.get(User, user_id)
    if user is None:
        raise NotFound
    return user


def _said(reason: str) -> str:
    said = line(reason, field="reason", longest=300)
    if len(said) < 5:
        raise Invalid("Please say in a few words why. It is kept with the change.", field="reason")
    return said


def _noted(session: Session, subtype: str, user_id: int, reason: str) -> None:
    """A line of the trail in the transaction of what it is about, for what changes no field the gate looks at."""
    noted = trail.event("E", subtype, entities=[{"type": "User", "ids": [user_id]}], reason=reason)
    session.add(AuditOutbox(id=UUID(noted["id"]), event=trail.entry(trail.agent(current()), [noted])))


# ---- the first administrator -----------------------------------------------------------------------------------------


def administrators(session: Session) -> list[User]:
    """Open accounts with the shipped role of administrators, in order of user name."""
    held = select(User).join(User.roles).where(Role.name == policy.Role.ADMIN)
    return list(session.scalars(held.where(User.active).order_by(User.username)))


def make_administrator(session: Session, *, username: str, password: str, email: str, name: str) -> User:
    """An administrator's account, from the command line. Raises Invalid and Conflict."""
    first_name, _, last_name = line(name, field="name", longest=128).partition(" ")
    if not last_name:
        raise Invalid('Please give a given name and a family name, such as --name "Ada Lovelace".', field="name")
    if "@" not in email:
        raise Invalid("Please give an e-mail address, such as --email ada@hospital.example.", field="email")
    guard.because("An administrator was made on the command line.")
    return open_account(
        session,
        username=username,
        password=password,
        first_name=first_name,
        last_name=last_name.strip(),
        email=email,
        roles=[policy.Role.ADMIN],
    )


def recover_administrator(session: Session, *, username: str, password: str) -> User:
    """Let an administrator in again who cannot sign in: another password, no second step, no lock.

    Raises NotFound where there is no such administrator, and Invalid.
    """
    user = credentials.named(session, username)
    if user is None or all(role.name != policy.Role.ADMIN for role in user.roles):
        raise NotFound("There is no administrator of this user name.")
    guard.because("An administrator was let in again on the command line.")
    set_password(session, user, password)
    if not user.active:
        user.active = True
    if credentials.has_second_factor(session, user.id):
        credentials.remove_second_factor(session, user.id)
    session.flush()
    credentials.unlock(user.id)
    return user


def demo_accounts_present(session: Session) -> bool:
    """Whether anybody could sign in with a password that everybody knows."""
    statement = select(User.id).where(User.email.endswith("@" + DEMO_MAIL), User.active).limit(1)
    return session.scalar(statement) is not None
