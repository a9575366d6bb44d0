"""The laboratory under attack: wrong roles, one person twice, forged columns, plain SQL, and two at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from app import guard
from app.actor import service
from app.errors import Refusal
from app.services import critical, lab
from models.base import now
from models.clinical import Observation
from models.lab import (
    CriticalAttempt,
    CriticalResult,
    DiagnosticReport,
    ObservationHistory,
    OnCall,
    ServiceRequest,
    Specimen,
)
from models.migrations import grant
from tests import factories
from tests.conftest import Database, csrf_of
from tests.factories import Laboratory, number_of, stored

Acting = Callable[[str], AbstractContextManager[Any]]
OUTSIDERS = ("nurse", "doctor", "reception", "patient", "pharmacist", "admin")


@pytest.fixture(scope="module")
def laboratory(database: Database, app: Any) -> Laboratory:
    return factories.open_laboratory(database.hospital)


@pytest.fixture(scope="module")
def people(laboratory: Laboratory) -> Acting:
    known = {**laboratory.hospital.accounts, "lab2": laboratory.second}
    return lambda username: factories.acting(known[username])


@pytest.fixture(scope="module")
def doors(database: Database, laboratory: Laboratory) -> Iterator[dict[str, str]]:
    """The database as its owner, and as the account the application has in production."""
    owner = make_url(database.url).set(drivername="postgresql")
    role = f"wb_hostile_{owner.database}"
    account = owner.set(username=role, password="hostile")
    with psycopg.connect(owner.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hostile'".encode())
        grant(database.url, account.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))
        yield {
            "owner": owner.render_as_string(hide_password=False),
            "application": account.render_as_string(hide_password=False),
        }
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def do(work: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    with guard.unit_of_work() as session:
        return work(session, *arguments, **more)


class Case:
    """An order of one patient on its way through the laboratory."""

    def __init__(self, laboratory: Laboratory, people: Acting, patient: int = 4) -> None:
        self.laboratory, self.people = laboratory, people
        self.patient = laboratory.hospital.patients[patient]
        with people("doctor"):
            self.order = do(lambda s: lab.order(s, patient_id=self.patient, test_id=laboratory.potassium).id)
        self.accession, self.specimen, self.result, self.critical = "", 0, 0, 0

    def collected(self) -> Case:
        with self.people("lab"):
            self.specimen, self.accession = do(
                lambda s: next((each.id, each.accession) for each in lab.collect(s, [self.order]))
            )
        return self

    def received(self) -> Case:
        self.collected()
        with self.people("lab"):
            do(lab.receive, self.accession)
        return self

    def entered(self, value: str = "6.8") -> Case:
        self.received()
        with self.people("lab"):
            self.result = do(lambda s: lab.enter(s, self.order, self.laboratory.potassium, value).id)
        return self

    def verified(self, value: str = "6.8") -> Case:
        self.entered(value)
        with self.people("lab2"):
            do(lab.verify, self.result, despite="Measured twice")
        with guard.acting_as(service("critical")):
            found = guard.session().query(CriticalResult).filter_by(observation_id=self.result).one_or_none()
            self.critical = found.id if found else 0
        return self

    def state(self) -> list[Any]:
        """All that may have changed."""
        rows: list[Any] = [stored(ServiceRequest, self.order)]
        for model, key in ((Specimen, self.specimen), (Observation, self.result), (CriticalResult, self.critical)):
            rows.append(stored(model, key) if key else None)
        counted = (ServiceRequest, Specimen, Observation, ObservationHistory, DiagnosticReport)
        return rows + [number_of(each) for each in (*counted, CriticalResult, CriticalAttempt)]


# ---- the wrong role ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("username", OUTSIDERS)
def test_nobody_else_does_the_work_of_the_laboratory(
    laboratory: Laboratory, people: Acting, client_as: Callable[[str], Any], username: str
) -> None:
    bare, taken = Case(laboratory, people), Case(laboratory, people).collected()
    entered, known = Case(laboratory, people).entered("4.4"), Case(laboratory, people).verified()
    client, test = client_as(username), laboratory.potassium
    token = csrf_of(client.page("/"))
    posts: list[tuple[str, dict[str, Any]]] = [
        ("/laboratory/receive/", {"number": taken.accession}),
        ("/laboratory/receive/", {"number": taken.accession, "word": "reject", "reason": "RC"}),
        ("/laboratory/worklist/", {f"value-{entered.order}-{test}": "5.0", f"seen-{entered.order}-{test}": "1"}),
        ("/laboratory/worklist/row", {"key": f"{entered.order}-{test}", "value": "5.0"}),
        (f"/laboratory/orders/{entered.order}/enter/{test}", {"value": "5.0"}),
        (f"/laboratory/orders/{entered.order}/release", {}),
        (f"/laboratory/orders/{entered.order}/results/{entered.result}/verify", {}),
        (f"/laboratory/orders/{known.order}/results/{known.result}/correct", {"value": "4", "reason": "x"}),
        (f"/laboratory/orders/{known.order}/results/{known.result}/withdraw", {"reason": "x"}),
        ("/laboratory/verify/", {"ok": str(entered.result), "release": "y"}),
        (f"/critical/{known.critical}/attempt", {"recipient_name": "Me", "outcome": "not-reached"}),
    ]
    if username not in ("nurse", "doctor"):  # they take specimens
        posts.append(("/laboratory/collect/", {"patient": str(bare.patient), "order": str(bare.order)}))
    if username != "doctor":
        posts += [
            (f"/laboratory/order/{bare.patient}/", {"what": f"t{test}", "priority": "routine"}),
            (f"/laboratory/orders/{bare.order}/revoke", {"reason": "x"}),
            (f"/critical/{known.critical}/acknowledge", {"read_back": "6.8"}),
        ]
    cases = (bare, taken, entered, known)
    before = [case.state() for case in cases]
    for path, fields in posts:
        answer = client.post(path, data={"csrf_token": token, **fields})
        done = answer.status_code < 400
        assert not done, (path, answer.status_code)
        assert [case.state() for case in cases] == before, path


@pytest.mark.parametrize("username", [*OUTSIDERS, "lab"])
def test_the_api_takes_no_forged_columns(
    laboratory: Laboratory, people: Acting, api_as: Callable[[str], Any], username: str
) -> None:
    case = Case(laboratory, people).entered("4.4")
    client, before = api_as(username), case.state()
    forged = {
        "released_at": "2026-01-01T00:00:00Z",
        "portal_at": "2026-01-01T00:00:00Z",
        "verified_at": "2026-01-01T00:00:00Z",
        "verified_by_id": laboratory.hospital.staff["doctor"],
        "status": "final",
    }
    for path in ("observation", "service_request", "specimen", "diagnostic_report", "critical_result"):
        key = case.order if path == "service_request" else case.specimen if path == "specimen" else case.result
        for answer in (
            client.put(f"/api/v1/{path}/{key}", json=forged),
            client.post(f"/api/v1/{path}/", json={"patient_id": case.patient, **forged}),
            client.delete(f"/api/v1/{path}/{key}"),
        ):
            assert answer.status_code >= 400, (path, answer.status_code)
    assert case.state() == before


def test_forms_take_no_forged_columns(laboratory: Laboratory, people: Acting, client_as: Callable[[str], Any]) -> None:
    case, bench = Case(laboratory, people).received(), client_as("lab")
    forged = {"released_at": "2026-01-01", "portal_at": "2026-01-01", "verified_by_id": "1", "status": "final"}
    path = f"/laboratory/orders/{case.order}/enter/{laboratory.potassium}"
    answer = bench.post(path, data={"csrf_token": csrf_of(bench.page("/")), "value": "4.4", **forged})
    assert answer.status_code == 302
    with guard.acting_as(service("demo")):
        (found,) = guard.session().query(Observation).filter_by(service_request_id=case.order)
        assert (found.status, found.released_at, found.portal_at, found.verified_by_id) == (
            "preliminary",
            None,
            None,
            None,
        )


# ---- the right role, wrongly -------------------------------------------------------------------------------------


def refused(case: Case, work: Callable[..., Any], *arguments: Any, **more: Any) -> None:
    before = case.state()
    with pytest.raises(Refusal):
        do(work, *arguments, **more)
    guard.session().expire_all()
    assert case.state() == before


def test_one_does_not_verify_ones_own_nor_release_what_nobody_verified(
    laboratory: Laboratory, people: Acting, client_as: Callable[[str], Any]
) -> None:
    case = Case(laboratory, people).entered("4.4")
    with people("lab"):
        refused(case, lab.verify, case.result)
        refused(case, lab.release, case.order)
    bench, before = client_as("lab"), case.state()
    token = csrf_of(bench.page("/"))
    for path, fields in (
        ("/laboratory/verify/", {"ok": str(case.result), "release": "y"}),
        (f"/laboratory/orders/{case.order}/results/{case.result}/verify", {"despite": "x"}),
        (f"/laboratory/orders/{case.order}/release", {}),
    ):
        assert bench.post(path, data={"csrf_token": token, **fields}).status_code >= 400
        assert case.state() == before
    with people("lab2"):  # entered anew, it is hers; whoever entered it first may verify it, and she may not
        do(lambda s: lab.enter(s, case.order, laboratory.potassium, "4.5").id)
        refused(case, lab.verify, case.result)


def test_a_result_is_changed_at_its_own_order_alone(
    laboratory: Laboratory, people: Acting, client_as: Callable[[str], Any]
) -> None:
    mine, other = Case(laboratory, people).entered("4.4"), Case(laboratory, people, patient=3).entered("4.6")
    bench = client_as("lab2")
    token, before = csrf_of(bench.page("/")), (mine.state(), other.state())
    for word in ("verify", "correct", "withdraw"):
        path = f"/laboratory/orders/{mine.order}/results/{other.result}/{word}"
        answer = bench.post(path, data={"csrf_token": token, "value": "5", "reason": "x"})
        assert answer.status_code == 404
    with people("lab"):
        refused(mine, lab.collect, [mine.order, other.order])
        refused(mine, lab.enter, mine.order, laboratory.sodium, "140")
    assert (mine.state(), other.state()) == before


def test_nothing_is_entered_for_an_order_that_was_called_off(laboratory: Laboratory, people: Acting) -> None:
    case = Case(laboratory, people).entered("4.4")
    with people("doctor"):
        do(lab.revoke, case.order, reason="Not needed")
    with people("lab"):
        refused(case, lab.enter, case.order, laboratory.potassium, "4.4")
        refused(case, lab.release, case.order)
        refused(case, lab.collect, [case.order])
    with people("lab2"):
        refused(case, lab.verify, case.result)


# ---- plain SQL ---------------------------------------------------------------------------------------------------

REFUSED = (
    psycopg.errors.CheckViolation,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ForeignKeyViolation,
    psycopg.errors.RestrictViolation,
)
ATTEMPTS = {
    "another value": "UPDATE observation SET value_quantity = 4 WHERE id = %(result)s",
    "another flag": "UPDATE observation SET interpretation = 'N' WHERE id = %(result)s",
    "another test": "UPDATE observation SET code = '1-1' WHERE id = %(result)s",
    "the result is gone": "DELETE FROM observation WHERE id = %(result)s",
    "verified by whoever entered it": "UPDATE observation SET verified_by_id = recorder_id WHERE id = %(result)s",
    "released, unverified": "UPDATE observation SET released_at = now() WHERE id = %(unverified)s",
    "verified by nobody": "UPDATE observation SET verified_at = now() WHERE id = %(unverified)s",
    "another patient's result": "UPDATE observation SET patient_id = %(other)s WHERE id = %(result)s",
    "another patient's specimen": "UPDATE specimen SET patient_id = %(other)s WHERE id = %(specimen)s",
    "another patient's specimen, said by merging": (
        "SET wardbook.merging = 'yes'; SET CONSTRAINTS ALL DEFERRED;"
        "UPDATE specimen SET patient_id = %(other)s WHERE id = %(specimen)s"
    ),
    "the specimen of another patient": (
        "UPDATE service_request SET specimen_id = %(foreign)s WHERE id = %(order)s; SET CONSTRAINTS ALL IMMEDIATE"
    ),
    "the specimen is gone": "DELETE FROM specimen WHERE id = %(specimen)s",
    "no history": "DELETE FROM observation_history WHERE observation_id = %(result)s",
    "another history": "UPDATE observation_history SET was = '{}' WHERE observation_id = %(result)s",
    "an invented history": (
        "INSERT INTO observation_history (observation_id, patient_id, category, was)"
        " VALUES (%(result)s, %(patient)s, 'laboratory', '{}')"
    ),
    "another critical value": "UPDATE critical_result SET value = '4' WHERE id = %(critical)s",
    "the critical result is gone": "DELETE FROM critical_result WHERE id = %(critical)s",
    "confirmed by somebody else": "UPDATE critical_result SET acknowledged_by_id = %(nurse)s WHERE id = %(critical)s",
    "never confirmed": (
        "UPDATE critical_result SET acknowledged_at = NULL, acknowledged_by_id = NULL WHERE id = %(critical)s"
    ),
    "confirmed unread": "UPDATE critical_result SET read_back = false WHERE id = %(critical)s",
    "never tried": "DELETE FROM critical_attempt WHERE critical_result_id = %(critical)s",
    "tried otherwise": "UPDATE critical_attempt SET note = 'x' WHERE critical_result_id = %(critical)s",
    "a false history beside ours": (
        "CREATE TEMP TABLE observation_history AS SELECT * FROM public.observation_history LIMIT 0;"
        "UPDATE public.observation SET value_quantity = 4 WHERE id = %(result)s"
    ),
}


@pytest.fixture(scope="module")
def attacked(laboratory: Laboratory, people: Acting) -> tuple[Case, dict[str, int]]:
    """A critical result that was called and confirmed, one that nobody verified, and another patient's specimen."""
    case = Case(laboratory, people).verified()
    with people("lab"):
        do(critical.attempt, case.critical, outcome="not-reached", recipient_name="Ward 3")
    with people("doctor"):
        do(critical.acknowledge, case.critical, read_back="6.8")
    hospital = laboratory.hospital
    return case, {
        "result": case.result,
        "specimen": case.specimen,
        "order": case.order,
        "critical": case.critical,
        "patient": case.patient,
        "other": hospital.patients[0],
        "nurse": hospital.staff["nurse"],
        "unverified": Case(laboratory, people).entered("4.4").result,
        "foreign": Case(laboratory, people, patient=3).collected().specimen,
    }


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_sql_rewrites_nothing(attacked: tuple[Case, dict[str, int]], doors: dict[str, str], attempt: str) -> None:
    case, values = attacked
    before = case.state(), stored(Observation, values["unverified"])
    with psycopg.connect(doors["application"]) as connection:
        connection.cursor_factory = psycopg.ClientCursor
        with pytest.raises(REFUSED):
            connection.execute(ATTEMPTS[attempt].encode(), values)
            connection.commit()
        connection.rollback()
    assert (case.state(), stored(Observation, values["unverified"])) == before


def test_a_table_of_ones_own_does_not_take_the_history(
    laboratory: Laboratory, people: Acting, doors: dict[str, str]
) -> None:
    case = Case(laboratory, people).entered("4.4")
    before = number_of(ObservationHistory, ObservationHistory.observation_id == case.result)
    with psycopg.connect(doors["application"]) as connection:
        connection.cursor_factory = psycopg.ClientCursor
        connection.execute("CREATE TEMP TABLE observation_history AS SELECT * FROM public.observation_history LIMIT 0")
        connection.execute("UPDATE public.observation SET value_quantity = 4 WHERE id = %(id)s", {"id": case.result})
    assert number_of(ObservationHistory, ObservationHistory.observation_id == case.result) == before + 1


# ---- two at once -------------------------------------------------------------------------------------------------


def at_once(*works: tuple[Callable[[], AbstractContextManager[Any]], Callable[..., Any]]) -> list[Any]:
    """Do some things at the same moment, each in a thread and a session of its own; gives what became of each."""
    gate, outcomes = threading.Barrier(len(works)), [None] * len(works)

    def run(nth: int, who: Callable[[], AbstractContextManager[Any]], work: Callable[..., Any]) -> None:
        with who():
            gate.wait(20)
            try:
                outcomes[nth] = do(work)
            except (Refusal, SQLAlchemyError) as error:
                outcomes[nth] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=run, args=(nth, *each)) for nth, each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    return outcomes


def failures(outcomes: list[Any]) -> list[Exception]:
    return [each for each in outcomes if isinstance(each, Exception)]


def test_of_two_who_verify_at_once_one_does(laboratory: Laboratory, people: Acting) -> None:
    case = Case(laboratory, people).entered()
    outcomes = at_once(*[(lambda: people("lab2"), lambda s: lab.verify(s, case.result, despite="x").id)] * 2)
    (lost,) = failures(outcomes)
    assert isinstance(lost, Refusal)
    assert number_of(CriticalResult, CriticalResult.observation_id == case.result) == 1


def test_of_two_who_receive_at_once_one_does(laboratory: Laboratory, people: Acting) -> None:
    case = Case(laboratory, people).collected()
    outcomes = at_once(
        *[(lambda name=name: people(name), lambda s: lab.receive(s, case.accession).id) for name in ("lab", "lab2")]
    )
    (lost,) = failures(outcomes)
    assert isinstance(lost, Refusal)
    winner = "lab" if outcomes[1] is lost else "lab2"
    with people(winner) as who:
        assert stored(Specimen, case.specimen)["receiver_id"] == who.practitioner_id


def test_what_is_entered_anew_while_it_is_verified_is_not_verified_unseen(
    laboratory: Laboratory, people: Acting
) -> None:
    case = Case(laboratory, people).entered("4.4")
    seen = stored(Observation, case.result)["version"]
    outcomes = at_once(
        (lambda: people("lab2"), lambda s: lab.verify(s, case.result, seen=seen).id),
        (lambda: people("lab"), lambda s: lab.enter(s, case.order, laboratory.potassium, "4.9", seen=seen).id),
    )
    assert len(failures(outcomes)) == 1
    found = stored(Observation, case.result)
    assert (str(found["value_quantity"]), found["verified_at"] is not None) in (("4.4", True), ("4.9", False))


def test_of_two_who_confirm_at_once_one_does(laboratory: Laboratory, people: Acting) -> None:
    case = Case(laboratory, people).verified()
    say = lambda s: critical.acknowledge(s, case.critical, read_back="6.8").id  # noqa: E731
    (lost,) = failures(at_once(*[(lambda: people("doctor"), say)] * 2))
    assert isinstance(lost, Refusal)
    assert stored(CriticalResult, case.critical)["acknowledged_by_id"] == laboratory.hospital.staff["doctor"]


def test_of_two_jobs_that_escalate_at_once_one_does(laboratory: Laboratory, people: Acting) -> None:

    case = Case(laboratory, people).verified()
    hospital = laboratory.hospital
    at = stored(CriticalResult, case.critical)["raised_at"] + critical.PATIENCE
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        session.add(
            OnCall(
                branch_id=hospital.branches[0],
                practitioner_id=hospital.staff["nurse"],
                starts_at=now() - critical.PATIENCE,
                ends_at=at + critical.PATIENCE,
            )
        )
    job = lambda: guard.acting_as(service("critical"))  # noqa: E731
    outcomes = at_once(*[(job, lambda s: critical.escalate(s, at))] * 2)
    assert failures(outcomes) == []
    assert sum(case.critical in handed for handed in outcomes) == 1
    assert number_of(CriticalAttempt, CriticalAttempt.critical_result_id == case.critical) == 1
