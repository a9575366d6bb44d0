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
from dataclasses import replace
from typing import Any, NoReturn
from uuid import UUID

import msgspec
import psycopg
import structlog
from sqlalchemy import Engine, create_engine, event, insert, inspect, select, text
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
from app.errors import Forbidden, NotSignedIn, OutOfService, Ungated, from_database
from app.statements import BARE, LOOSE, OURS, verdict_on
from models.audit import AuditOutbox
from models.base import Protected

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


def refuse(action: str, resource: str, error: type[Forbidden] = Forbidden) -> Forbidden:
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
      v.number AS policy_number,
      array(SELECT branch_id FROM practitioner_branch b WHERE b.practitioner_id = pr.id) AS further,
      array(SELECT r.name FROM ab_role r WHERE r.id IN (
        SELECT role_id FROM ab_user_role WHERE user_id = u.id
        UNION SELECT gr.role_id FROM ab_group_role gr JOIN ab_user_group ug USING (group_id) WHERE ug.user_id = u.id)
        ORDER BY r.name) AS roles
    FROM ab_user u CROSS JOIN policy_version v
    LEFT JOIN practitioner pr ON pr.user_id = u.id
    LEFT JOIN patient pt ON pt.user_id = u.id
    WHERE u.id = :user_id
    """
)
GRANTED = text(
    """
    SELECT r.name AS role, p.name AS action, m.name AS resource
    FROM ab_role r JOIN ab_permission_view_role pvr ON pvr.role_id = r.id
    JOIN ab_permission_view pv ON pv.id = pvr.permission_view_id
    JOIN ab_permission p ON p.id = pv.permission_id JOIN ab_view_menu m ON m.id = pv.view_menu_id
    WHERE r.name = ANY(:roles)
    """
)
PREFIX = "can_"
"""Flask-AppBuilder's prefix of every permission name."""

_rights: dict[tuple[int, tuple[str, ...]], policy.Rights] = {}


def who_is(user_id: int, origin: Origin) -> Actor | None:
    """The actor a user amounts to right now, in one statement; None where the account is gone or closed.

    Rights are remembered by the number of the policy, which a trigger raises with every change of a role: a change
    counts from the next request on, in every process, and costs no statement until then.
    """
    connection = session().connection()
    row = connection.execute(WHO, {"user_id": user_id}).one_or_none()
    if row is None or not row.active:
        return None
    key = (row.policy_number, tuple(row.roles))
    if key not in _rights:
        granted: dict[str, set[tuple[str, str]]] = {role: set() for role in row.roles}
        for role, action, resource in connection.execute(GRANTED, {"roles": row.roles}):
            granted[role].add((action.removeprefix(PREFIX), resource))
        if len(_rights) > 500:
            _rights.clear()
        _rights[key] = policy.combine({role: frozenset(pairs) for role, pairs in granted.items()})
    home = row.home_branch_id
    purpose = policy.PURPOSE.get(row.roles[0], "TREAT") if row.roles else "TREAT"
    return Actor(
        name=row.name,
        roles=tuple(row.roles),
        rights=_rights[key],
        user_id=row.id,
        practitioner_id=row.practitioner_id,
        patient_id=row.patient_id,
        branch_id=home,
        branch_ids=tuple(dict.fromkeys([*([home] if home else []), *row.further])),
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
        scope = rights.rows.get(resource)
        if scope is not None:
            criterion = scope(mapper.class_, actor)
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
            if attribute in rights.masked.get(resource, ()):
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
    masked = at_work.actor.rights.masked.get(resource)
    if masked:
        loaded = target.__dict__
        for name in masked:
            if name in loaded and loaded[name] is not None:
                set_committed_value(target, name, [] if isinstance(loaded[name], list) else None)
    if attributes is not None or resource in policy.REFERENCE:
        return
    if kind.patient_key is None:
        at_work.seen.note(resource, str(target.__dict__.get("id")), None)
    elif kind.patient_key in target.__dict__:
        at_work.seen.note(resource, target.__dict__.get("id"), target.__dict__[kind.patient_key])
    else:
        at_work.seen.unresolved.append(target)


# ---- writing -----------------------------------------------------------------------------------------------------

UNRECORDED = ("version", "created_at", "updated_at", "fhir_id")
ACCOUNTS = {"User", "Role"}
"""Flask-AppBuilder's own tables whose changes belong in the trail."""
LETTER = {"create": "C", "update": "U", "delete": "D"}
QUIET = {"last_login", "login_count", "fail_login_count", "changed_on", "changed_by"}
"""What signing in writes to an account, which has lines of its own."""


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
                fields = changed_fields(target)
                _authorise(current, action, target, fields)
                changes.append((action, target, fields))
            elif name in ACCOUNTS:
                fields = [f for f in changed_fields(target) if f not in QUIET]
                if fields or action != "update":
                    changes.append((action, target, fields))


def _authorise(current: Session, action: str, target: Any, fields: list[str]) -> None:
    """Raises Forbidden where the action, a field or the row itself is not the actor's to write."""
    rights = actors.current().rights
    resource = target.resource()
    if (action, resource) not in rights.actions:
        raise refuse(action, resource)
    if touched := rights.masked.get(resource, frozenset()).intersection(fields):
        raise refuse(action, f"{resource}.{min(touched)}")
    if action != "create":
        _within_rows(current, action, target)


def _within_rows(current: Session, action: str, target: Any) -> None:
    """Raises Forbidden where the row, as the database has it in this transaction, is outside the actor's scope."""
    actor = actors.current()
    kind = type(target)
    scope = actor.rights.rows.get(kind.resource())
    criterion = scope(kind, actor) if scope else None
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
    who = trail.agent(at_work.actor if at_work else actors.nobody())
    grouped: dict[tuple[str, int | None], dict[str, dict[str, Any]]] = {}
    for action, target, fields in changes:
        resource = target.resource() if isinstance(target, Protected) else type(target).__name__
        key = getattr(target, "patient_key", None)
        whose = {getattr(target, key)} if key else {None}
        if key in fields and action == "update":
            whose.update(inspect(target).attrs[key].history.deleted)  # it was taken away from somebody
        named = {"fields": fields} if action == "update" else {}
        for patient_id in whose:
            entity = grouped.setdefault((action, patient_id), {}).setdefault(
                f"{resource}:{','.join(named.get('fields', ()))}", {"type": resource, "ids": [], **named}
            )
            entity["ids"].append(target.id)
    rows = []
    for (action, patient_id), entities in grouped.items():
        line = trail.event(LETTER[action], action, patient_id=patient_id, entities=list(entities.values()))
        rows.append({"id": UUID(line["id"]), "event": {"agent": who, "events": [line]}})
    current.connection().execute(insert(AuditOutbox), rows)


@event.listens_for(GuardedSession, "after_soft_rollback")
def _forgotten(current: Session, _previous: Any) -> None:
    current.info.pop("changes", None)
