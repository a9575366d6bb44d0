"""Critical results: pushed to whoever has to know, confirmed by repeating the value, handed on, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from sqlalchemy import select, update

from app import guard
from app.actor import service
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.events import CriticalRaised
from app.policy import Role
from app.services import accounts, critical, feed, lab, organization
from jobs import base
from jobs import critical as chores
from models.audit import EventOutbox
from models.base import now
from models.lab import CriticalAttempt, CriticalResult, OnCall
from models.organization import Branch
from tests import factories
from tests.conftest import csrf_of
from tests.factories import PASSWORD, Laboratory


@pytest.fixture(scope="module")
def laboratory(database: Any, app: Any) -> Laboratory:
    return factories.open_laboratory(database.hospital)


@pytest.fixture(scope="module")
def colleague(laboratory: Laboratory) -> tuple[int, int]:
    """A second doctor: the account, and the person."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        account = accounts.open_account(
            session,
            username="doctor2",
            password=PASSWORD,
            first_name="Olga",
            last_name="Oncall",
            email="doctor2@example.org",
            roles=[Role.DOCTOR],
        )
        home = session.get_one(Branch, laboratory.hospital.branches[0])
        person = organization.employ(session, family="Oncall", given="Olga", home_branch=home, user_id=account.id)
        return account.id, person.id


@pytest.fixture
def raised(laboratory: Laboratory) -> Callable[..., int]:
    """A critical potassium of a patient, verified just now: `raised()`."""

    def make(value: str = "6.8", patient: int = 5) -> int:
        hospital = laboratory.hospital
        with factories.acting(hospital.accounts["doctor"]), guard.unit_of_work() as session:
            order = lab.order(session, patient_id=hospital.patients[patient], test_id=laboratory.potassium).id
        with factories.acting(hospital.accounts["lab"]), guard.unit_of_work() as session:
            lab.receive(session, lab.collect(session, [order])[0].accession)
            result = lab.enter(session, order, laboratory.potassium, value).id
        with factories.acting(laboratory.second), guard.unit_of_work() as session:
            lab.verify(session, result, despite="Measured twice")
        with guard.engine().connect() as connection:
            table = CriticalResult.__table__
            return int(connection.execute(select(table.c.id).filter_by(observation_id=result)).scalar_one())

    return make


@pytest.fixture
def on_call(laboratory: Laboratory, colleague: tuple[int, int]) -> Iterator[None]:
    """The second doctor is on call at the branch, for now."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        duty = OnCall(
            branch_id=laboratory.hospital.branches[0],
            practitioner_id=colleague[1],
            starts_at=now() - timedelta(hours=1),
            ends_at=now() + timedelta(hours=1),
        )
        session.add(duty)
    yield
    with guard.engine().begin() as connection:
        connection.execute(update(OnCall.__table__).values(ends_at=now() - timedelta(minutes=1)))


@pytest.fixture(autouse=True)
def settled(laboratory: Laboratory) -> Iterator[None]:
    """Nothing of another test is still open."""
    yield
    with factories.acting(laboratory.hospital.accounts["doctor"]), guard.unit_of_work() as session:
        for each in critical.open_results(session):
            critical.acknowledge(session, each.id, read_back=each.value)


def late(number: int, quarters: int = 1) -> datetime:
    """When nobody has confirmed a result for so many quarters of an hour."""
    raised: datetime = stored(number)["raised_at"]
    return raised + quarters * critical.PATIENCE


def escalated(at: datetime) -> list[int]:
    """What the job hands on at a moment."""
    with guard.acting_as(service("critical")), guard.unit_of_work() as session:
        return critical.escalate(session, at)


def stored(number: int) -> Any:
    return factories.stored(CriticalResult, number)


def tries(number: int) -> list[Any]:
    with guard.engine().connect() as connection:
        table = CriticalAttempt.__table__
        found = select(table).filter_by(critical_result_id=number).order_by(table.c.id)
        return list(connection.execute(found).mappings())


# ---- confirming --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said", "same"),
    [
        ("6.8 mmol/L", "6.8", True),
        ("6.8 mmol/L", " 6,8 ", True),
        ("6.8 mmol/L", "6.8 MMOL/l", True),
        ("6.8 mmol/L", "8.6", False),
        ("6.8 mmol/L", "68", False),
        ("6.8 mmol/L", "", False),
        ("6.8 mmol/L", "mmol/L", False),
        ("<2 g/L", "<2", True),
        ("<2 g/L", "2", False),
        ("Gram negative rods", "gram negative rods", True),
        ("Gram negative rods", "Gram", False),
    ],
)
def test_a_value_is_repeated_as_it_is(value: str, said: str, same: bool) -> None:
    assert critical.repeats(value, said) is same


def test_the_doctor_confirms_on_the_page_by_repeating_the_value(
    laboratory: Laboratory, raised: Callable[..., int], client_as: Callable[[str], Any]
) -> None:
    number, doctor = raised(), client_as("doctor")
    path = f"/critical/{number}/"
    assert path in doctor.page("/"), "the banner is on every page"
    assert path in doctor.page("/critical/banner.html")
    page = doctor.page(path)
    assert "6.8 mmol/L" in page
    answer = doctor.post(f"{path}acknowledge", data={"csrf_token": csrf_of(page), "read_back": "8.6"})
    assert answer.status_code == 422
    assert 'value="8.6"' in answer.text
    assert stored(number)["acknowledged_at"] is None
    answer = doctor.post(f"{path}acknowledge", data={"csrf_token": csrf_of(page), "read_back": "6,8"})
    assert answer.status_code == 302
    found = stored(number)
    assert (found["acknowledged_by_id"], found["read_back"]) == (laboratory.hospital.staff["doctor"], True)
    assert path not in doctor.page("/")
    assert "Confirmed by" in doctor.page(path)
    again = doctor.post(f"{path}acknowledge", data={"csrf_token": csrf_of(page), "read_back": "6.8"})
    assert again.status_code == 409


def test_the_laboratory_does_not_confirm_its_own_results(
    laboratory: Laboratory, raised: Callable[..., int], client_as: Callable[[str], Any]
) -> None:
    number, bench = raised(), client_as("lab")
    path = f"/critical/{number}/"
    page = bench.page(path)
    assert path not in bench.page("/"), "the banner is for those who can act on it"
    answer = bench.post(f"{path}acknowledge", data={"csrf_token": csrf_of(page), "read_back": "6.8"})
    assert answer.status_code == 403
    assert stored(number)["acknowledged_at"] is None
    for username in ("nurse", "reception", "patient"):
        client = client_as(username)
        assert client.get(path).status_code in (403, 404)
        assert client.get("/critical/banner.html").status_code == 403
        assert path not in client.get("/").text


def test_calls_are_written_down_until_somebody_repeats_the_value(
    laboratory: Laboratory, raised: Callable[..., int], client_as: Callable[[str], Any]
) -> None:
    number, bench = raised(), client_as("lab")
    path, who = f"/critical/{number}/", str(laboratory.hospital.staff["doctor"])
    token = csrf_of(bench.page(path))

    def call(**fields: str) -> Any:
        return bench.post(f"{path}attempt", data={"csrf_token": token, "recipient": who, **fields})

    assert call(outcome="not-reached", note="Voice mail").status_code == 302
    assert call(outcome="reached-no-readback").status_code == 302
    assert stored(number)["acknowledged_at"] is None
    refused = call(outcome="confirmed", read_back="8.6", note="Kept")
    assert refused.status_code == 422
    assert "Kept" in refused.text or 'value="8.6"' in refused.text
    assert call(outcome="perhaps").status_code == 422
    assert call(outcome="not-reached", recipient="").status_code == 422
    assert [each["outcome"] for each in tries(number)] == ["not-reached", "reached-no-readback"]
    assert call(outcome="confirmed", read_back="6.8").status_code == 302
    found = stored(number)
    assert found["acknowledged_by_id"] == laboratory.hospital.staff["doctor"]
    assert [each["caller_id"] for each in tries(number)] == [laboratory.hospital.staff["lab"]] * 3
    assert call(outcome="not-reached").status_code == 409
    assert len(tries(number)) == 3
    page = bench.page(path)
    assert "Voice mail" in page
    assert "Not reached" in page


def test_nobody_confirms_a_call_to_themselves(laboratory: Laboratory, raised: Callable[..., int]) -> None:
    number, person = raised(), laboratory.hospital.staff["lab"]
    with (
        factories.acting(laboratory.hospital.accounts["lab"]),
        pytest.raises(Invalid),
        guard.unit_of_work() as session,
    ):
        critical.attempt(session, number, outcome="confirmed", recipient_id=person, read_back="6.8")
    assert tries(number) == []
    assert stored(number)["acknowledged_at"] is None


# ---- pushed and handed on ----------------------------------------------------------------------------------------


def test_what_is_raised_is_told_to_that_person_alone_and_says_nothing_of_anybody(
    laboratory: Laboratory, raised: Callable[..., int], servers: Any
) -> None:
    number, hospital = raised(), laboratory.hospital
    with guard.engine().connect() as connection:
        payloads = list(
            connection.execute(
                select(EventOutbox.payload).where(EventOutbox.name == CriticalRaised.__name__).order_by(EventOutbox.id)
            ).scalars()
        )
    event = payloads[-1]
    assert event == {
        "critical_result_id": number,
        "patient_id": hospital.patients[5],
        "target_id": hospital.staff["doctor"],
    }
    base.connect(servers.redis_url)
    client = redis.Redis.from_url(servers.redis_url)
    since = feed.last(client)
    chores.push(event)
    ((event_id, pointer),) = feed.wait(client, since, milliseconds=1000)
    assert pointer.told(event_id) == {"event": event_id, "resource": "CriticalResult", "id": number, "version": 1}
    told = set()
    for username, account in hospital.accounts.items():
        with factories.acting(account) as who:
            if not feed.rooms_of(who).isdisjoint(pointer.rooms()):
                told.add(username)
    assert told == {"doctor"}


def test_nobody_is_bothered_before_their_time(
    laboratory: Laboratory, raised: Callable[..., int], on_call: None
) -> None:
    number = raised()
    chores.escalate()
    assert stored(number)["escalated_at"] is None
    assert stored(number)["target_id"] == laboratory.hospital.staff["doctor"]
    assert tries(number) == []


def test_after_a_quarter_of_an_hour_it_goes_to_whoever_is_on_call(
    laboratory: Laboratory,
    colleague: tuple[int, int],
    raised: Callable[..., int],
    on_call: None,
    client_as: Callable[[str], Any],
) -> None:
    number = raised()
    assert escalated(late(number) - timedelta(seconds=1)) == []
    assert escalated(late(number)) == [number]
    assert escalated(late(number) + timedelta(minutes=1)) == []
    found = stored(number)
    assert found["target_id"] == colleague[1]
    assert found["escalated_at"] is not None
    assert [(each["recipient_id"], each["outcome"]) for each in tries(number)] == [
        (laboratory.hospital.staff["doctor"], "not-reached")
    ]
    path = f"/critical/{number}/"
    assert path in client_as("doctor2").page("/")
    assert path in client_as("doctor").page("/"), "whoever ordered it is still told"
    with factories.acting(colleague[0]), guard.unit_of_work() as session:
        critical.acknowledge(session, number, read_back="6.8 mmol/L")
    assert path not in client_as("doctor").page("/")


def test_where_nobody_is_on_call_it_stays_where_it_is_and_is_tried_again(
    laboratory: Laboratory, raised: Callable[..., int], client_as: Callable[[str], Any]
) -> None:
    number = raised()
    assert escalated(late(number)) == []
    assert escalated(late(number, 2)) == []
    assert f"/critical/{number}/" in client_as("lab").page("/critical/")
    assert stored(number)["target_id"] == laboratory.hospital.staff["doctor"]
    assert stored(number)["escalated_at"] is None


def test_whoever_is_on_call_is_asked_again_and_every_try_is_written_down(
    laboratory: Laboratory,
    colleague: tuple[int, int],
    raised: Callable[..., int],
    on_call: None,
    client_as: Callable[[str], Any],
) -> None:
    number, doctor = raised(), laboratory.hospital.staff["doctor"]
    for quarter in (1, 2, 3):
        assert escalated(late(number, quarter)) == [number]
    assert [each["recipient_id"] for each in tries(number)] == [doctor, colleague[1], colleague[1]]
    assert {each["outcome"] for each in tries(number)} == {"not-reached"}
    assert stored(number)["acknowledged_at"] is None
    assert f"/critical/{number}/" in client_as("lab").page("/critical/")


def corrected(laboratory: Laboratory, number: int, value: str) -> list[int]:
    """Give a result another value and verify it; gives the ids of all that was raised for it."""
    result = stored(number)["observation_id"]
    with factories.acting(laboratory.hospital.accounts["lab"]), guard.unit_of_work() as session:
        lab.correct(session, result, value, reason="Haemolysed")
    with factories.acting(laboratory.second), guard.unit_of_work() as session:
        lab.verify(session, result, despite="Measured twice")
    with guard.engine().connect() as connection:
        table = CriticalResult.__table__
        found = select(table.c.id).filter_by(observation_id=result).order_by(table.c.id)
        return list(connection.execute(found).scalars())


def test_a_correction_to_another_critical_value_is_raised_anew(
    laboratory: Laboratory, raised: Callable[..., int]
) -> None:
    first = raised()
    _, second = corrected(laboratory, first, "7.2")
    assert stored(second)["value"] == "7.2 mmol/L"
    with factories.acting(laboratory.hospital.accounts["doctor"]), guard.unit_of_work() as session:
        for each in (first, second):
            critical.acknowledge(session, each, read_back=stored(each)["value"])
    assert corrected(laboratory, first, "7.2") == [first, second], "nobody was told anything else meanwhile"
    assert corrected(laboratory, first, "4.0") == [first, second]
    *_, third = corrected(laboratory, first, "6.8")
    assert third not in (first, second), "who was told of it was told of another value since"
    assert stored(third)["acknowledged_at"] is None


def test_a_correction_to_a_normal_value_is_said_on_what_is_open(
    laboratory: Laboratory, raised: Callable[..., int], client_as: Callable[[str], Any]
) -> None:
    number, doctor = raised(), client_as("doctor")
    assert "corrected:" not in doctor.page("/")
    assert corrected(laboratory, number, "4.0") == [number]
    assert "corrected: 4.0 mmol/L" in doctor.page("/"), "on the banner"
    assert "It says now: 4.0 mmol/L" in doctor.page(f"/critical/{number}/")
    assert "corrected: 4.0 mmol/L" in client_as("lab").page("/critical/")


def test_the_list_shows_what_is_open_at_a_branch(
    laboratory: Laboratory, raised: Callable[..., int], client_as: Callable[[str], Any]
) -> None:
    number, bench = raised(), client_as("lab")
    here, elsewhere = laboratory.hospital.branches
    assert f"/critical/{number}/" in bench.page("/critical/")
    assert f"/critical/{number}/" in bench.page(f"/critical/?branch={here}")
    assert f"/critical/{number}/" not in bench.page(f"/critical/?branch={elsewhere}")


def test_the_report_counts_by_branch(
    laboratory: Laboratory,
    raised: Callable[..., int],
    client_as: Callable[[str], Any],
) -> None:
    quick, slow, _open = raised(), raised(), raised()
    since = min(stored(each)["raised_at"] for each in (quick, slow))
    for number, minutes in ((quick, 4), (slow, 20)):
        with guard.engine().begin() as connection:
            confirmed = {
                "acknowledged_at": stored(number)["raised_at"] + timedelta(minutes=minutes),
                "acknowledged_by_id": laboratory.hospital.staff["doctor"],
                "read_back": True,
            }
            table = CriticalResult.__table__
            connection.execute(update(table).where(table.c.id == number).values(confirmed))
    with factories.acting(laboratory.hospital.accounts["lab"]):
        (line,) = critical.times(guard.session(), since, now() + timedelta(hours=1))
    assert line.branch_id == laboratory.hospital.branches[0]
    assert (line.raised, line.confirmed, line.in_time, line.escalated) == (3, 2, 1, 0)
    assert line.median == pytest.approx(12)
    assert line.ninth == pytest.approx(20)
    bench = client_as("lab")
    page = bench.page("/critical/times/")
    assert "Hospital Norte" in page
    assert 'aria-label="Minutes of' in page
    assert bench.get("/critical/times/?since=nonsense&until=2026-01-01").status_code == 422


def test_one_that_is_not_there_or_not_theirs_is_not_found(laboratory: Laboratory, raised: Callable[..., int]) -> None:
    with (
        factories.acting(laboratory.hospital.accounts["doctor"]),
        pytest.raises(NotFound),
        guard.unit_of_work() as session,
    ):
        critical.acknowledge(session, 999_999, read_back="6.8")
    number = raised()
    with (
        factories.acting(laboratory.hospital.accounts["nurse"]),
        pytest.raises((Forbidden, NotFound)),
        guard.unit_of_work() as session,
    ):
        critical.acknowledge(session, number, read_back="6.8")
    with factories.acting(laboratory.hospital.accounts["doctor"]), guard.unit_of_work() as session:
        critical.acknowledge(session, number, read_back="6.8")
    with (
        factories.acting(laboratory.hospital.accounts["doctor"]),
        pytest.raises(Conflict),
        guard.unit_of_work() as session,
    ):
        critical.acknowledge(session, number, read_back="6.8")
