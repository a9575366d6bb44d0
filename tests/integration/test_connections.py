"""Reading goes on without a transaction, writing never; and a connection the server has ended is not used again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from flask.testing import FlaskClient
from psycopg.pq import TransactionStatus
from sqlalchemy import func, select

from app import guard
from app.errors import Invalid
from models.audit import AuditOutbox
from models.organization import Organization
from models.patients import Patient
from tests import factories
from tests.conftest import Database
from tests.factories import Hospital

pytestmark = pytest.mark.usefixtures("app")

Acting = Callable[[str], AbstractContextManager[Any]]


def state() -> TransactionStatus:
    """What the session's connection is in the middle of."""
    connection = guard.session().connection().connection.dbapi_connection
    assert isinstance(connection, psycopg.Connection)
    return connection.info.transaction_status


def outbox() -> int:
    with guard.engine().connect() as connection:
        return connection.execute(select(func.count()).select_from(AuditOutbox.__table__)).scalar_one()


def give_up_half_way() -> None:
    with guard.unit_of_work() as session:
        session.add(Organization(name="Half done"))
        session.flush()
        assert state() == TransactionStatus.INTRANS
        raise Invalid


def test_reading_opens_no_transaction(acting: Acting, hospital: Hospital) -> None:
    with acting("doctor"):
        assert guard.session().get(Patient, hospital.patients[0])
        assert state() == TransactionStatus.IDLE


def test_a_unit_of_work_is_one_transaction(acting: Acting) -> None:
    before = outbox()
    with acting("admin"):
        guard.session().scalars(select(Organization)).all()
        with pytest.raises(Invalid):
            give_up_half_way()
        assert state() == TransactionStatus.IDLE
    assert factories.number_of(Organization, Organization.name == "Half done") == 0
    assert outbox() == before


def test_a_flush_outside_a_unit_of_work_can_still_be_taken_back(acting: Acting) -> None:
    before = outbox()
    with acting("admin"):
        guard.session().add(Organization(name="Not yet"))
        guard.session().flush()
        assert state() == TransactionStatus.INTRANS
        guard.session().rollback()
    assert factories.number_of(Organization, Organization.name == "Not yet") == 0
    assert outbox() == before


def test_after_a_unit_of_work_reading_is_without_a_transaction_again(acting: Acting) -> None:
    with acting("admin"):
        for name in ("First", "Second"):
            with guard.unit_of_work() as session:
                session.add(Organization(name=name))
            guard.session().scalars(select(Organization).where(Organization.name == name)).one()
            assert state() == TransactionStatus.IDLE


def test_connections_the_server_has_ended_are_replaced_unseen(
    database: Database, api_as: Callable[[str], FlaskClient], hospital: Hospital
) -> None:
    program = api_as("doctor")
    address = f"/api/v1/patient/{hospital.patients[0]}"
    assert program.get(address).status_code == 200
    with psycopg.connect(database.url.replace("+psycopg", ""), autocommit=True) as server:
        ended = server.execute(
            "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    assert ended is not None
    assert ended[0] > 0
    assert program.get(address).status_code == 200


def test_a_connection_that_has_rested_is_asked_before_it_is_used(
    acting: Acting, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "RESTED", -1.0)
    with acting("doctor"):
        assert guard.session().get(Patient, hospital.patients[0])
        assert state() == TransactionStatus.IDLE


def test_a_token_known_already_still_ends(
    api_as: Callable[[str], FlaskClient], hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    from views import security

    program = api_as("doctor")
    address = f"/api/v1/patient/{hospital.patients[0]}"
    assert program.get(address).status_code == 200
    later = time.time() + 16 * 60
    monkeypatch.setattr(security, "time", SimpleNamespace(time=lambda: later))
    assert program.get(address).status_code == 401
