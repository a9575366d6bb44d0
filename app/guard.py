"""The gate: one session class beneath every channel, which scopes, masks, authorises and records.

Select objects, never columns; no raw text; a masked column may not be mentioned at all.  What the gate cannot vouch
for, it refuses (Ungated), so a new kind of statement fails closed.
"""

from __future__ import annotations

import select as select_ready
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import msgspec
import psycopg
import structlog
from sqlalchemy import Engine, create_engine, event, insert, inspect, or_, select, text
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.orm import (
    ORMExecuteState,
    QueryContext,
    Session,
    UOWTransaction,
    scoped_session,
    sessionmaker,
    with_loader_criteria,
)
from sqlalchemy.orm.attributes import set_committed_value

from app import actor as actors
from app import policy, trail
from app.actor import Acting, Actor, Origin, Seen
from app.errors import Forbidden, NotSignedIn, OutOfService, OwnRoles, Refusal, Ungated, from_database
from app.policy import Reach
from app.statements import BARE, LOOSE, OURS, verdict_on
from models.audit import AuditOutbox
from models.base import Protected
from models.codes import PurposeOfUse, RowScope
from models.patients import Patient

log = structlog.get_logger(__name__)


class GuardedSession(Session):
    """A session that knows whose it is."""

    def _past_the_flush(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """SQLAlchemy's bulk methods write without a flush, and so without the gate."""
        raise Ungated

    bulk_save_objects = _past_the_flush
    bulk_insert_mappings = _past_the_flush
    bulk_update_mappings = _past_the_flush


session: scoped_session[GuardedSession] = scoped_session(
    sessionmaker(class_=GuardedSession, expire_on_commit=False),
    scopefunc=lambda: (threading.get_ident(), id(actors.acting())),
)
"""The session of the actor at work; Flask-AppBuilder is given this one too."""

_engine: Engine | None = None


def connect(database_url: str, **options: Any) -> Engine:
    """Open the database for this process. Bind values never reach a log or an error text."""
    global _engine
    session.remove()
    _standings.clear()
    if _engine is not None:
        _engine.dispose()
    _engine = create_engine(database_url, hide_parameters=True, json_deserializer=msgspec.json.decode, **options)
    event.listen(_engine, "checkout", _still_there)
    # Reading needs no transaction: every statement sees what is committed, as it would within one (READ COMMITTED).
    session.configure(bind=_engine.execution_options(isolation_level="AUTOCOMMIT"))
    return _engine


RESTED = 30.0
"""Seconds after which a connection is asked whether it is still there before it is used."""


def _still_there(connection: Any, record: Any, _proxy: Any) -> None:
    """A connection the server has ended is noticed before it is used, without a question to the server.

    A server that ends says so, which makes the idle connection readable; one that vanished is found out by asking.
    """
    now = time.monotonic()
    waiting = select_ready.poll()
    waiting.register(connection.pgconn.socket, select_ready.POLLIN)
    if waiting.poll(0) or now - record.info.get("used", 0.0) > RESTED:
        try:
            connection.rollback()
            connection.execute("SELECT 1")
            connection.rollback()
        except psycopg.Error as error:
            raise DisconnectionError from error
    record.info["used"] = now


def transact(current: Session) -> None:
    """Begin a transaction, where reading has gone on without one: for whatever writes, or holds a row."""
    connection = current.connection().connection.dbapi_connection
    assert connection is not None
    if connection.autocommit:
        connection.autocommit = False


def engine() -> Engine:
    """The process's engine, which passes beside the gate: for migrations, the trail, jobs and health only."""
    if _engine is None:
        raise OutOfService
    return _engine


# ---- at the edge: who acts, and what happens when they are done --------------------------------------------------


def begin(actor: Actor) -> Any:
    """Let an actor act from here on; gives what `end` wants back."""
    return actors._acting.set(Acting(actor))


def become(actor: Actor) -> None:
    """It is known now who acts here: the same session goes on as theirs, in one transaction."""
    at_work = actors.acting()
    if at_work is None:
        raise NotSignedIn
    at_work.actor = actor


def record() -> None:
    """Make durable what the actor has seen so far. Raises NotRecorded; then nothing of it may be shown."""
    at_work = actors.acting()
    if at_work is None or not at_work.seen:
        return
    for target in at_work.seen.unresolved:
        key = getattr(target, type(target).patient_key)  # type: ignore[attr-defined]
        at_work.seen.note(type(target).resource(), target.id, key)  # type: ignore[attr-defined]
    at_work.seen.unresolved = []
    events = trail.reads(at_work)
    trail.the_trail().write(at_work.actor, events)
    at_work.seen = Seen()


def end(token: Any) -> None:
    """The actor is done: its session is closed."""
    session.remove()
    actors._acting.reset(token)


@contextmanager
def acting_as(actor: Actor) -> Iterator[Actor]:
    """Act as somebody for a block; what was seen is recorded before the block is left, however it is left."""
    token = begin(actor)
    try:
        try:
            yield actor
        finally:
            record()
    finally:
        end(token)


@contextmanager
def unit_of_work() -> Iterator[GuardedSession]:
    """All of a block or nothing of it: committed once at the end, rolled back on any error.

    A database error becomes the refusal it means; a unit of work within another joins it.
    """
    current = session()
    if current.info.get("in_unit_of_work"):
        yield current
        return
    current.info["in_unit_of_work"] = True
    try:
        transact(current)
        yield current
        current.commit()
    except SQLAlchemyError as error:
        current.rollback()
        if refusal := from_database(error):
            raise refusal from error
        raise
    except BaseException:
        current.rollback()
        raise
    finally:
        current.info.pop("in_unit_of_work", None)


def shown(resource: str, key: object) -> None:
    """Note for the trail a row that is nobody's record and was shown all the same."""
    at_work = actors.acting()
    if at_work is not None:
        at_work.seen.note(resource, key, None)


def asked_about(patient_id: int) -> None:
    """Note for the trail whose record was asked about: that there is nothing is an answer too."""
    at_work = actors.acting()
    if at_work is not None:
        at_work.seen.loaded.setdefault(patient_id, {})


R = TypeVar("R", bound=Refusal)


def refuse(action: str, resource: str, error: type[R] = Forbidden) -> R:  # type: ignore[assignment]
    """The refusal of an action, noted for the trail; the caller raises it."""
    at_work = actors.acting()
    noted = (action, resource, error.__name__)
    if at_work is not None and noted not in at_work.seen.refused:
        at_work.seen.refused.append(noted)
    return error()


def require(action: str, resource: str) -> None:
    """Raises Forbidden where the policy does not grant the actor this action on the resource."""
    if not actors.current().may(action, resource):
        raise refuse(action, resource)


def require_of(action: str, kind: type[Protected], *patients: Patient) -> None:
    """Raises Forbidden where the policy does not grant the actor this action on a kind of row of each of these."""
    require(action, kind.resource())
    for patient in patients:
        _of_a_patient_within(session(), action, kind, patient.id)


def reaches(action: str, kind: type[Protected], patient_id: int) -> bool:
    """Whether the policy grants the actor this action on a kind of row of a patient; one's own rows aside."""
    return actors.current().may(action, kind.resource()) and _of_reach(session(), action, kind, patient_id)


def because(reason: str) -> None:
    """Say for the trail why the unit of work under way changes what it changes. Nothing clinical."""
    session().info["reason"] = reason


def searching(query: str) -> None:
    """Say for the trail that what is loaded next was searched for; `query` says how, without what was typed."""
    at_work = actors.acting()
    if at_work is not None:
        at_work.seen.query = query


# ---- who a signed-in user is -------------------------------------------------------------------------------------

WHO = text(
    """
    SELECT u.id, u.active, u.username, u.first_name || ' ' || u.last_name AS name, pr.id AS practitioner_id,
      coalesce(pr.home_branch_id, pt.registered_at_id) AS home_branch_id, pt.id AS patient_id,
      v.number AS policy_number, c.generation, c.totp_confirmed_at IS NOT NULL AS second_factor,
      array(SELECT branch_id FROM practitioner_branch b WHERE b.practitioner_id = pr.id) AS further,
      array(SELECT patient_id FROM emergency_access e WHERE e.user_id = u.id AND e.ends_at > now()) AS emergencies,
      array(SELECT r.name FROM ab_role r WHERE r.id IN (
        SELECT role_id FROM ab_user_role WHERE user_id = u.id
        UNION SELECT gr.role_id FROM ab_group_role gr JOIN ab_user_group ug USING (group_id) WHERE ug.user_id = u.id)
        ORDER BY r.name) AS roles
    FROM ab_user u CROSS JOIN policy_version v
    JOIN credential c ON c.user_id = u.id
    LEFT JOIN practitioner pr ON pr.user_id = u.id
    LEFT JOIN patient pt ON pt.user_id = u.id
    WHERE u.id = :user_id
    """
)
GRANTED = text(
    """
    SELECT r.name AS role, coalesce(s.second_factor, false) AS second_factor, p.name AS action, m.name AS resource,
      g.rows, g.kinds, g.masked
    FROM ab_role r LEFT JOIN role_setting s ON s.role_id = r.id
    LEFT JOIN ab_permission_view_role pvr ON pvr.role_id = r.id
    LEFT JOIN ab_permission_view pv ON pv.id = pvr.permission_view_id
    LEFT JOIN ab_permission p ON p.id = pv.permission_id LEFT JOIN ab_view_menu m ON m.id = pv.view_menu_id
    LEFT JOIN role_grant g ON g.role_id = r.id AND g.resource = m.name
    WHERE r.name = ANY(:roles) AND s.retired_at IS NULL
    """
)
PREFIX = "can_"
"""Flask-AppBuilder's prefix of every permission name."""


@dataclass(frozen=True)
class Standing:
    """What a set of roles comes to under the policy of one number."""

    roles: tuple[str, ...]
    """Those of them that are not retired."""
    rights: policy.Rights
    second_factor: bool


_standings: dict[tuple[int, tuple[str, ...]], Standing] = {}


def standing_of(roles: tuple[str, ...], policy_number: int) -> Standing:
    """What roles come to, remembered by the number of the policy, which a trigger raises with every change of one.

    So a change counts from the next request on, in every process, and costs no statement until then.
    """
    known = _standings.get((policy_number, roles))
    if known is not None:
        return known
    grants: dict[str, dict[str, policy.Grant]] = {}
    second_factor = False
    for found in session().connection().execute(GRANTED, {"roles": list(roles)}):
        held = grants.setdefault(found.role, {})
        second_factor = second_factor or found.second_factor
        if found.resource not in policy.POSSIBLE:
            continue
        grant = held.get(found.resource) or policy.stored(found.resource, found.rows, found.kinds, found.masked)
        held[found.resource] = replace(grant, actions=grant.actions | {found.action.removeprefix(PREFIX)})
    if len(_standings) > 500:
        _standings.clear()
    standing = Standing(tuple(role for role in roles if role in grants), policy.combine(grants), second_factor)
    _standings[policy_number, roles] = standing
    return standing


def who_is(user_id: int, origin: Origin, viewing_as: str | None = None) -> Actor | None:
    """The actor a user amounts to right now, in one statement; None where the account is gone or closed.

    With `viewing_as`, what they are shown when they look at the house as that role, if they may configure roles.
    """
    row = session().connection().execute(WHO, {"user_id": user_id}).one_or_none()
    if row is None or not row.active:
        return None
    standing = standing_of(tuple(row.roles), row.policy_number)
    rights, purpose = standing.rights, PurposeOfUse.TREAT
    emergencies = tuple(row.emergencies) if rights.may("create", "EmergencyAccess") else ()
    if standing.roles:
        purpose = policy.PURPOSE.get(standing.roles[0], PurposeOfUse.TREAT)
    if viewing_as is not None and not rights.may("update", "Role"):
        viewing_as = None
    if viewing_as is not None:
        rights = policy.as_role(standing_of((viewing_as,), row.policy_number).rights, rights)
        emergencies, purpose = (), PurposeOfUse.HSYSADMIN
    home = row.home_branch_id
    return Actor(
        name=row.name,
        roles=standing.roles,
        rights=rights,
        user_id=row.id,
        practitioner_id=row.practitioner_id,
        patient_id=row.patient_id,
        branch_id=home,
        branch_ids=tuple(dict.fromkeys([*([home] if home else []), *row.further])),
        emergencies=emergencies,
        viewing_as=viewing_as,
        generation=row.generation,
        second_factor=row.second_factor,
        owes_second_factor=standing.second_factor and not row.second_factor,
        purpose=purpose,
        origin=origin,
    )


def at_branch(actor: Actor, branch_id: int | None) -> Actor:
    """The same actor at another of its branches; unchanged where it does not work there."""
    return replace(actor, branch_id=branch_id) if branch_id in actor.branch_ids else actor


# ---- reading -----------------------------------------------------------------------------------------------------


@event.listens_for(GuardedSession, "do_orm_execute")
def _read(state: ORMExecuteState) -> None:
    """Scope every select to what the actor may see, and refuse every statement the gate cannot vouch for."""
    held = getattr(state.statement, "_for_update_arg", None) is not None or "yield_per" in state.execution_options
    if held or not state.is_select:
        transact(state.session)
    if state.is_column_load:
        # More of an object that this actor was shown or made; one that came in any other way is not vouched for.
        target = state.load_options._refresh_state.obj()  # type: ignore[attr-defined]
        if isinstance(target, Protected) and getattr(target, "_shown_to", None) is not actors.acting():
            raise Ungated
        return
    verdict = verdict_on(state.statement)
    # A relationship's own loader selects the key it joins by beside the objects; nobody else can make such a statement.
    loading = state.is_relationship_load and verdict.fault in (LOOSE, BARE)
    if verdict.fault and not loading and (verdict.mappers or verdict.fault != LOOSE):
        log.error("guard.ungated", fault=verdict.fault)
        raise Ungated
    if not verdict.mappers:
        return
    at_work = actors.acting()
    if at_work is None:
        raise NotSignedIn
    actor = at_work.actor
    rights = actor.rights
    for mapper in verdict.mappers:
        resource = mapper.class_.resource()
        if ("read", resource) not in rights.actions:
            raise refuse("read", resource)
        criterion = rights.condition("read", mapper.class_, actor)
        if criterion is not None:
            state.statement = state.statement.options(
                with_loader_criteria(
                    mapper.class_,
                    criterion._annotate({OURS: True}),
                    include_aliases=True,
                    propagate_to_loaders=True,  # or a joined load would go unscoped; the others come by here again
                )
            )
    if rights.masked:
        for resource, attribute in verdict.mentioned:
            if attribute in rights.hidden(resource):
                raise refuse("read", f"{resource}.{attribute}")


@event.listens_for(Protected, "load", propagate=True)
def _loaded(target: Any, context: QueryContext) -> None:
    at_work = actors.acting()
    if at_work is not None and ("read", target.resource()) not in at_work.actor.rights.actions:
        raise refuse("read", target.resource())
    if context is not None:  # a merge without a load comes by here too, with nothing from the database
        target._shown_to = at_work
    _blank_and_note(target, None)


@event.listens_for(Protected, "refresh", propagate=True)
def _refreshed(target: Any, context: QueryContext, attributes: Any) -> None:
    _blank_and_note(target, attributes)


def _blank_and_note(target: Any, attributes: Any) -> None:
    """Blank what is masked before Python sees it, and note that the row was shown."""
    at_work = actors.acting()
    if at_work is None:
        raise NotSignedIn
    kind = type(target)
    resource = kind.resource()
    masked = at_work.actor.rights.hidden(resource)
    if masked:
        loaded = target.__dict__
        for name in masked:
            if name in loaded and loaded[name] is not None:
                set_committed_value(target, name, [] if isinstance(loaded[name], list) else None)
    if attributes is not None or resource in policy.UNRECORDED:
        return
    if kind.patient_key is None:
        at_work.seen.note(resource, str(target.__dict__.get("id")), None)
    elif kind.patient_key in target.__dict__:
        at_work.seen.note(resource, target.__dict__.get("id"), target.__dict__[kind.patient_key])
    else:
        at_work.seen.unresolved.append(target)


# ---- writing -----------------------------------------------------------------------------------------------------

UNRECORDED = ("version", "created_at", "updated_at", "fhir_id")
ACCOUNTS = {
    "User": "User",
    "Credential": "User",
    "Role": "Role",
    "RoleGrant": "Role",
    "RoleSetting": "Role",
    "Group": "Group",
    "Permission": "Role",
    "ViewMenu": "Role",
    "PermissionView": "Role",
}
"""The tables of accounts and roles, Flask-AppBuilder's own among them, and the resource that changing each is about.

Groups count where the database has any, but nobody is granted to change them here: roles are given one by one.
"""
LETTER = {"create": "C", "update": "U", "delete": "D"}
QUIET = {
    *("last_login", "login_count", "fail_login_count", "changed_on", "changed_by", "changed_by_fk"),
    *("generation", "totp_step"),
}
"""What signing in writes to an account, which has lines of its own."""
SECRET = {"password", "totp_secret", "recovery_codes"}
"""Fields whose change is in the trail, and whose value is not."""
OWN = {"password", *SECRET, "totp_confirmed_at", "password_changed_at"}
"""What a person may change of their own account."""
HELD = {"roles", "groups", "permissions", "user", "users"}
"""The relations of accounts, roles and groups that give somebody something."""


def changed_fields(target: Any) -> list[str]:
    """Names of the attributes a flush is about to write."""
    state = inspect(target)
    return sorted(
        attribute.key
        for attribute in state.attrs
        if attribute.key in state.mapper.column_attrs
        and attribute.history.has_changes()
        and attribute.key not in UNRECORDED
    )


@event.listens_for(GuardedSession, "before_flush")
def _write(current: Session, _context: UOWTransaction, _instances: Any) -> None:
    """Every row written is granted, in scope, and touches nothing masked; otherwise all of it is refused."""
    transact(current)
    changes: list[tuple[str, Any, list[str]]] = current.info.setdefault("changes", [])
    for action, targets in (("create", current.new), ("update", current.dirty), ("delete", current.deleted)):
        for target in targets:
            if action == "update" and not current.is_modified(target):
                continue
            name = type(target).__name__
            if isinstance(target, Protected):
                fields = changed_fields(target) if action == "update" else []
                _authorise(current, action, target, fields)
                changes.append((action, target, fields))
            elif name in ACCOUNTS:
                fields = [f for f in (*changed_fields(target), *changed_relations(target)) if f not in QUIET]
                if fields or action != "update":
                    _authorise_account(current, action, target, fields)
                    changes.append((action, target, fields))


def changed_relations(target: Any) -> list[str]:
    """Names of the relations of an account or role that a flush is about to write."""
    state = inspect(target)
    return sorted(
        name for name in HELD & set(state.mapper.relationships.keys()) if state.attrs[name].history.has_changes()
    )


def _authorise_account(current: Session, action: str, target: Any, fields: list[str]) -> None:
    """Raises Forbidden where the change of an account or role is not the actor's to make; OwnRoles for their own."""
    actor, name = actors.current(), type(target).__name__
    resource = ACCOUNTS[name]
    owner = {"User": "id", "Credential": "user_id"}.get(name)
    own = owner is not None and actor.user_id is not None and getattr(target, owner) == actor.user_id
    if own and action == "update" and OWN.issuperset(fields):
        return
    if (action, resource) not in actor.rights.actions and not (
        name != resource and ("update", resource) in actor.rights.actions
    ):
        raise refuse(action, resource)
    if "groups" in fields:
        raise refuse(action, "Group")
    person = actor.user_id is not None and ("update", "Role") not in actor.rights.actions
    if person and name in ("User", "Credential") and of_power(current, target):
        raise refuse(action, "Role")
    changed = inspect(target).attrs
    own = own and bool(HELD.intersection(fields))
    for side in {"user", "users"}.intersection(fields):  # the same from the other end
        history = changed[side].history
        own = own or any(user.id == actor.user_id for user in (*history.added, *history.deleted))
    if own:
        raise refuse(action, "User.roles", OwnRoles)
    if name in ("RoleGrant", "RoleSetting"):
        own = target.role.name in actor.roles
    elif name == "Role" and "name" in fields and action == "update":
        was = changed["name"].history.deleted
        own = not was or was[0] in actor.roles
    elif name == "Role":
        own = target.name in actor.roles and bool(changed["permissions"].history.added)
    if own:
        raise refuse(action, "Role.permissions", OwnRoles)


POWER = text("SELECT 1 FROM role_power WHERE (configures OR changes_accounts) AND role_id = ANY(:roles)")
HOLDER = text("SELECT 1 FROM account_power WHERE (configures OR changes_accounts) AND user_id = :user_id")


def of_power(current: Session, target: Any) -> bool:
    """Whether an account configures roles or accounts, or is about to: whoever configures roles changes such a one."""
    connection, user = current.connection(), type(target).__name__ == "User"
    gained = [role.id for role in inspect(target).attrs["roles"].history.added] if user else []
    if gained and connection.execute(POWER, {"roles": gained}).first():
        return True
    key = target.id if user else target.user_id
    return key is not None and connection.execute(HOLDER, {"user_id": key}).first() is not None


def _authorise(current: Session, action: str, target: Any, fields: list[str]) -> None:
    """Raises Forbidden where the action, a field or the row itself is not the actor's to write."""
    rights = actors.current().rights
    resource = target.resource()
    if (action, resource) not in rights.actions:
        raise refuse(action, resource)
    if action != "create" and (touched := rights.hidden(resource, action).intersection(fields)):
        raise refuse(action, f"{resource}.{min(touched)}")
    if action != "create":
        _within_rows(current, action, target)
    if target.patient_key == "patient_id" and (action == "create" or "patient_id" in fields):
        whose = target.patient_id or getattr(target.__dict__.get("patient"), "id", None)
        if whose is not None:  # None: of a patient who is registered in this very flush
            _of_a_patient_within(current, action, target, whose)
    if resource == "Practitioner":
        _not_their_own_place(target, changed_fields(target))


def _of_a_patient_within(current: Session, action: str, target: Any, patient_id: int) -> None:
    """Raises Forbidden where a row is to be given to a patient out of reach; asked before it is there.

    A visit makes a patient one's own, so afterwards it would answer for itself.
    """
    if not _of_reach(current, action, target, patient_id):
        raise refuse(action, target.resource())


def _of_reach(current: Session, action: str, target: Any, patient_id: int) -> bool:
    """Whether a patient is within the rows that an action on a kind of row reaches."""
    actor = actors.current()
    reach = actor.rights.reach.get((action, target.resource()))
    if reach is None:
        return True
    found = [Reach(each.scopes - {RowScope.OWN}).condition(Patient, actor) for each in reach]
    conditions = [condition for condition in found if condition is not None]
    if len(conditions) < len(found):
        return True
    whose = Patient.__table__
    within = select(whose.c.id).where(whose.c.id == patient_id, or_(*conditions))
    return current.connection().execute(within).first() is not None


def _not_their_own_place(target: Any, fields: list[str]) -> None:
    """Raises OwnRoles where somebody takes a clinician's place, or moves themselves to where they would see more."""
    actor = actors.current()
    if actor.user_id is None or target.user_id != actor.user_id:
        return
    moved = "home_branch_id" in fields or inspect(target).attrs["branches"].history.has_changes()
    if "user_id" in fields or (moved and ("read", "Patient") in actor.rights.reach):
        raise refuse("update", "Practitioner.branches", OwnRoles)


def _within_rows(current: Session, action: str, target: Any) -> None:
    """Raises Forbidden where the row, as the database has it in this transaction, is outside the actor's scope."""
    actor = actors.current()
    kind = type(target)
    criterion = actor.rights.condition(action, kind, actor)
    if criterion is None:
        return
    table = kind.__table__
    found = current.connection().execute(select(table.c.id).where(table.c.id == target.id, criterion)).first()
    if found is None:
        raise refuse(action, kind.resource())


@event.listens_for(GuardedSession, "after_flush")
def _recorded(current: Session, _context: UOWTransaction) -> None:
    """Write the changes' lines into the outbox, in the transaction of the change: no line, no change."""
    changes: list[tuple[str, Any, list[str]]] = current.info.pop("changes", [])
    if not changes:
        return
    for action, target, _fields in changes:
        if isinstance(target, Protected) and action != "delete":
            _within_rows(current, action, target)
            target._shown_to = actors.acting()  # type: ignore[attr-defined]
    at_work = actors.acting()
    actor = at_work.actor if at_work else actors.nobody()
    who, reason = trail.agent(actor), current.info.get("reason")
    grouped: dict[tuple[str, int | None], dict[str, dict[str, Any]]] = {}
    for action, target, fields in changes:
        resource = target.resource() if isinstance(target, Protected) else type(target).__name__
        key = getattr(target, "patient_key", None)
        whose = {getattr(target, key)} if key else {None}
        if key in fields and action == "update":
            whose.update(inspect(target).attrs[key].history.deleted)  # it was taken away from somebody
        named: dict[str, Any] = {"fields": fields} if action == "update" else {}
        if not isinstance(target, Protected):
            named |= called(target) | old_and_new(target, fields)
        for patient_id in whose:
            entity = grouped.setdefault((action, patient_id), {}).setdefault(
                f"{resource}:{named}", {"type": resource, "ids": [], **named}
            )
            entity["ids"].append(inspect(target).mapper.primary_key_from_instance(target)[0])
    rows = []
    for (action, patient_id), entities in grouped.items():
        line = trail.event(
            LETTER[action],
            action,
            patient_id=patient_id,
            entities=list(entities.values()),
            purpose=trail.purpose_of(actor, patient_id),
            reason=reason,
        )
        rows.append({"id": UUID(line["id"]), "event": trail.entry(who, [line])})
    current.connection().execute(insert(AuditOutbox), rows)


def called(target: Any) -> dict[str, str]:
    """What a changed account or role goes by, and which resource a limit of a role is on."""
    kind = type(target).__name__
    whose = target.role if kind in ("RoleGrant", "RoleSetting") else target
    name = getattr(whose, "name", None) or getattr(whose, "username", None)
    return {**({"of": name} if name else {}), **({"resource": target.resource} if kind == "RoleGrant" else {})}


def old_and_new(target: Any, fields: list[str]) -> dict[str, Any]:
    """What an account or role was and is, field by field; of a relation what it lost and gained. No secret's value."""
    old: dict[str, Any] = {}
    new: dict[str, Any] = {}
    for name in fields:
        if name in SECRET:
            continue
        history = inspect(target).attrs[name].history
        if name in HELD:
            old[name], new[name] = sorted(map(str, history.deleted)), sorted(map(str, history.added))
        else:
            old[name], new[name] = (
                plain(next(iter(values or ()), None)) for values in (history.deleted, history.added)
            )
    return {"old": old, "new": new} if new else {}


def plain(value: Any) -> Any:
    """A value as the trail's JSON can hold it."""
    return value if value is None or isinstance(value, str | int | list) else str(value)


@event.listens_for(GuardedSession, "after_soft_rollback")
def _forgotten(current: Session, _previous: Any) -> None:
    current.info.pop("changes", None)
    current.info.pop("reason", None)


@event.listens_for(GuardedSession, "after_commit")
def _done(current: Session) -> None:
    current.info.pop("reason", None)
