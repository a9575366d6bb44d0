"""Reading results in the browser: the table, the course, one result with what it was, the inbox, the report on paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from pypdf import PdfReader
from sqlalchemy import select

from app import guard
from app.actor import service
from app.errors import Forbidden
from app.policy import Role
from app.services import accounts, feed, lab, organization, results, turnaround
from jobs import base
from jobs import results as chores
from models.audit import EventOutbox
from models.base import now
from models.clinical import Observation
from models.lab import ServiceRequest
from models.organization import Branch
from tests import factories
from tests.conftest import csrf_of
from tests.factories import PASSWORD, Laboratory

SignIn = Callable[[str], Any]


@pytest.fixture(scope="module")
def laboratory(database: Any, app: Any) -> Laboratory:
    return factories.open_laboratory(database.hospital)


@pytest.fixture(scope="module")
def colleague(laboratory: Laboratory) -> tuple[int, int]:
    """A second doctor of the same branch: the account, and the person."""
    with guard.acting_as(service("demo")), guard.unit_of_work() as session:
        account = accounts.open_account(
            session,
            username="doctor2",
            password=PASSWORD,
            first_name="Carla",
            last_name="Cover",
            email="doctor2@example.org",
            roles=[Role.DOCTOR],
        )
        home = session.get_one(Branch, laboratory.hospital.branches[0])
        return account.id, organization.employ(
            session, family="Cover", given="Carla", home_branch=home, user_id=account.id
        ).id


@pytest.fixture
def doctor(laboratory: Laboratory, client_as: SignIn) -> Any:
    return client_as("doctor")


@pytest.fixture
def made(laboratory: Laboratory) -> Callable[..., tuple[int, dict[int, int]]]:
    """An order with results, entered, verified and released: `made({test: "4.2"}, patient=2)`; gives both numbers."""

    def make(
        values: dict[int, str], patient: int = 2, *, panel: int | None = None, released: bool = True, days: int = 0
    ) -> tuple[int, dict[int, int]]:
        hospital = laboratory.hospital
        with factories.acting(hospital.accounts["doctor"]), guard.unit_of_work() as session:
            asked: Any = {"panel_id": panel} if panel else {"test_id": next(iter(values))}
            order = lab.order(session, patient_id=hospital.patients[patient], **asked).id
        with factories.acting(hospital.accounts["lab"]), guard.unit_of_work() as session:
            for specimen in lab.collect(session, [order], collected_at=now() - timedelta(days=days)):
                lab.receive(session, specimen.accession)
            found = {test: lab.enter(session, order, test, value).id for test, value in values.items()}
        if released:
            with factories.acting(laboratory.second), guard.unit_of_work() as session:
                for number in found.values():
                    lab.verify(session, number, despite="Looked at again")
                if any(
                    result.released_at is None for result in lab.results_of(session, session.get(ServiceRequest, order))
                ):
                    lab.release(session, order)
        return order, found

    return make


def corrected(laboratory: Laboratory, number: int, value: str, *, verified: bool = True) -> None:
    with factories.acting(laboratory.hospital.accounts["lab"]), guard.unit_of_work() as session:
        lab.correct(session, number, value, reason="Wrong tube")
    if verified:
        with factories.acting(laboratory.second), guard.unit_of_work() as session:
            lab.verify(session, number, despite="Repeated")


def stored(number: int) -> dict[str, Any]:
    return factories.stored(Observation, number)


def plain(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def waiting(client: Any) -> int:
    return int(client.get("/results/count").json["count"])


# ---- the table ---------------------------------------------------------------------------------------------------


def test_the_table_has_tests_as_rows_and_times_as_columns_with_every_mark(
    laboratory: Laboratory, made: Any, doctor: Any
) -> None:
    patient = laboratory.hospital.patients[2]
    made({laboratory.potassium: "4.2", laboratory.sodium: "140"}, panel=laboratory.panel, days=3)
    _, later = made({laboratory.potassium: "<0.9"}, days=1)
    _, wrong = made({laboratory.potassium: "5.6"}, days=2)
    corrected(laboratory, wrong[laboratory.potassium], "4.6")
    page = doctor.page(f"/results/patients/{patient}/")
    text = plain(page)
    assert page.count('class="res-time"') == 3
    assert page.index(">&lt;0.9<") < page.index(">4.6<") < page.index(">4.2<"), "the newest first"
    assert "&lt;0.9" in page
    assert "critically low" in text
    assert "Corrected was 5.6 mmol/L H high" in text
    assert "mmol/L · 3.5 – 5.1" in text
    one = doctor.page(f"/results/{wrong[laboratory.potassium]}/")
    assert "Wrong tube" in one
    assert "Luis Laboratory" in one
    course = doctor.page(f"/results/patients/{patient}/course/?test=2823-3")
    assert course.count('class="dot') == 3
    assert course.count('class="band"') == 3
    assert 'class="critical"' in course
    assert re.search(r'<path class="dot danger" d="M[\d.]+ [\d.]+h8l-4 7z"', course), "below is an arrow down"
    assert stored(later[laboratory.potassium])["comparator"] == "<"


def test_the_table_is_narrowed_to_a_panel_and_paged_in_time(
    laboratory: Laboratory, made: Any, doctor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = laboratory.hospital.patients[3]
    for days in range(4):
        made({laboratory.potassium: f"4.{days}"}, 3, days=days)
    made({laboratory.culture: "No growth"}, 3, days=4)
    assert "No growth" in doctor.page(f"/results/patients/{patient}/")
    narrowed = doctor.page(f"/results/patients/{patient}/?panel={laboratory.panel}")
    assert "No growth" not in narrowed
    monkeypatch.setattr(results, "COLUMNS", 3)
    first = doctor.page(f"/results/patients/{patient}/")
    assert "4.0" in first
    assert ">4.3<" not in first
    earlier = re.search(r'href="([^"]+)" *>Earlier|rel="next" href="([^"]+)"', first)
    assert earlier is not None
    second = doctor.page((earlier[1] or earlier[2]).replace("&amp;", "&"))
    assert ">4.3<" in second
    assert "No growth" in second
    assert ">4.0<" not in second
    assert doctor.page(f"/results/patients/{patient}/?before=nonsense").count('class="res-time"') == 3


def test_a_withdrawn_result_stays_to_be_read_and_is_struck_through(
    laboratory: Laboratory, made: Any, doctor: Any
) -> None:
    order, found = made({laboratory.potassium: "4.9"}, 4)
    number = found[laboratory.potassium]
    doctor.page(f"/results/orders/{order}/")
    with factories.acting(laboratory.hospital.accounts["lab"]), guard.unit_of_work() as session:
        lab.withdraw(session, number, reason="Another patient's tube")
    assert stored(number)["read_at"] is None, "whoever read it has to read that it was wrong"
    page = plain(doctor.page(f"/results/patients/{laboratory.hospital.patients[4]}/"))
    assert "Withdrawn" in page
    assert "Another patient" in plain(doctor.page("/results/"))


# ---- the inbox ---------------------------------------------------------------------------------------------------


def test_new_results_stand_in_the_inbox_until_they_are_read_and_come_back_when_corrected(
    laboratory: Laboratory, made: Any, doctor: Any
) -> None:
    before = waiting(doctor)
    _, normal = made({laboratory.potassium: "4.4"}, 5)
    order, high = made({laboratory.potassium: "5.9"}, 6)
    assert waiting(doctor) == before + 2
    page = doctor.page("/results/")
    assert page.index(">5.9<") < page.index(">4.4<"), "the abnormal first"
    assert f'<span class="count">{before + 2}</span>' in page
    assert stored(high[laboratory.potassium])["read_at"] is None, "the inbox itself reads nothing"
    doctor.page(f"/results/orders/{order}/")
    assert stored(high[laboratory.potassium])["read_at"] is not None
    assert stored(normal[laboratory.potassium])["read_at"] is None
    assert waiting(doctor) == before + 1
    corrected(laboratory, high[laboratory.potassium], "4.1", verified=False)
    assert waiting(doctor) == before + 1, "what waits for a second person is nobody's yet"
    with factories.acting(laboratory.second), guard.unit_of_work() as session:
        lab.verify(session, high[laboratory.potassium], despite="Repeated")
    assert waiting(doctor) == before + 2
    assert "was 5.9 mmol/L H high" in plain(doctor.page("/results/"))


def test_seen_marks_what_was_on_the_screen_and_not_what_has_changed_since(
    laboratory: Laboratory, made: Any, doctor: Any
) -> None:
    _, found = made({laboratory.potassium: "5.7"}, 7)
    number = found[laboratory.potassium]
    page = doctor.page("/results/")
    shown = f"{number}.{stored(number)['version']}"
    assert shown in page
    corrected(laboratory, number, "4.7")
    send = {"csrf_token": csrf_of(page), "shown": shown}
    assert doctor.post("/results/seen", data=send).status_code == 302
    assert stored(number)["read_at"] is None
    send["shown"] = f"{number}.{stored(number)['version']}"
    assert doctor.post("/results/seen", data=send).status_code == 302
    assert stored(number)["read_at"] is not None


def test_a_colleague_covers_and_their_look_alone_marks_nothing(
    laboratory: Laboratory, made: Any, colleague: tuple[int, int], client_as: SignIn
) -> None:
    order, found = made({laboratory.potassium: "5.8"}, 8)
    number = found[laboratory.potassium]
    covering = client_as("doctor2")
    assert waiting(covering) == 0
    page = covering.page(f"/results/?of={laboratory.hospital.staff['doctor']}")
    assert "5.8" in page
    covering.page(f"/results/orders/{order}/")
    covering.page(f"/results/{number}/")
    assert stored(number)["read_at"] is None
    send = {"csrf_token": csrf_of(page), "shown": f"{number}.{stored(number)['version']}"}
    assert covering.post("/results/seen", data=send).status_code == 302
    assert stored(number)["read_at"] is not None
    assert covering.get("/results/?of=999999").status_code == 403


@pytest.fixture
def stream(servers: Any) -> Iterator[Any]:
    client = redis.Redis.from_url(servers.redis_url)
    base.connect(servers.redis_url)
    client.delete(feed.STREAM)
    yield client
    client.delete(feed.STREAM)


def test_the_release_is_told_to_whoever_ordered_and_says_nothing_else(
    laboratory: Laboratory, made: Any, stream: Any
) -> None:
    order, found = made({laboratory.potassium: "4.3"}, 9)
    with guard.engine().begin() as connection:
        table = EventOutbox.__table__
        rows = [row.payload for row in connection.execute(select(table).where(table.c.name == "ResultsReleased"))]
    payload = [row for row in rows if row["service_request_id"] == order][-1]
    chores.push(payload)
    entries = feed.wait(stream, feed.NOTHING_YET, milliseconds=10)
    assert [(p.resource, p.id, p.rooms()) for _, p in entries] == [
        ("ServiceRequest", order, [f"person:{laboratory.hospital.staff['doctor']}"])
    ]
    assert set(entries[0][1].told("x")) == {"event", "resource", "id", "version"}
    assert found


# ---- on paper ----------------------------------------------------------------------------------------------------


def test_the_report_is_a_pdf_with_only_what_is_released(laboratory: Laboratory, made: Any, doctor: Any) -> None:
    order, found = made({laboratory.potassium: "5.5", laboratory.sodium: "141"}, 10, panel=laboratory.panel)
    corrected(laboratory, found[laboratory.potassium], "5.3")
    corrected(laboratory, found[laboratory.sodium], "133", verified=False)
    answer = doctor.get(f"/results/orders/{order}/report.pdf")
    assert answer.status_code == 200
    assert answer.mimetype == "application/pdf"
    text = " ".join(" ".join(page.extract_text() for page in PdfReader(io.BytesIO(answer.data)).pages).split())
    for said in ("Laboratory report", "Electrolytes", "5.3", "high", "Corrected", "was 5.5", "3.5", "Lena Second"):
        assert said in text, said
    assert "133" not in text
    assert "141" not in text, "what is being put right is not handed out"
    assert "Not released yet: Sodium" in text


def test_the_report_of_an_order_without_a_released_result_is_not_there(
    laboratory: Laboratory, made: Any, doctor: Any, client_as: SignIn
) -> None:
    order, _ = made({laboratory.potassium: "4.0"}, 11, released=False)
    for client in (doctor, client_as("lab")):
        assert client.get(f"/results/orders/{order}/report.pdf").status_code == 404
        assert "Nothing is released yet" in client.page(f"/results/orders/{order}/")


def test_the_marks_are_past_the_pages_alone(laboratory: Laboratory, made: Any, client_as: SignIn) -> None:
    order, found = made({laboratory.potassium: "4.0"}, 11)
    number = found[laboratory.potassium]
    bench = client_as("lab")
    assert "4.0" in bench.page(f"/results/orders/{order}/")
    send = {"csrf_token": csrf_of(bench.page("/")), "shown": f"{number}.{stored(number)['version']}"}
    assert bench.post("/results/seen", data=send).status_code == 403
    assert stored(number)["read_at"] is None


# ---- the chart, and how long it takes ----------------------------------------------------------------------------


def test_the_chart_shows_comparators_and_small_numbers_as_they_are_and_leads_to_the_pages(
    laboratory: Laboratory, made: Any, doctor: Any
) -> None:
    patient = laboratory.hospital.patients[5]
    order, found = made({laboratory.potassium: "<1.2"}, 5)
    chart = f"/patients/{patient}/"
    overview = doctor.page(chart)
    assert "&lt;1.2 mmol/L" in overview
    assert f"/results/patients/{patient}/" in overview
    assert f"/laboratory/order/{patient}/" in overview
    assert f"/results/orders/{order}/" in doctor.page(f"{chart}?tab=reports")
    assert f"/results/orders/{order}/" in doctor.page(f"{chart}?tab=orders")
    observations = doctor.page(f"{chart}?tab=observations")
    assert f"/results/{found[laboratory.potassium]}/" in observations
    assert "/course/?test=2823-3" in observations
    assert f"/results/{found[laboratory.potassium]}/" in doctor.page(f"{chart}?tab=timeline")


def test_how_long_it_takes_is_told_in_numbers_and_of_few_results_to_the_laboratory_alone(
    laboratory: Laboratory, made: Any, client_as: SignIn
) -> None:
    for number in range(5):
        order, found = made({laboratory.sodium: "140"}, 1)
        with guard.engine().begin() as connection:
            orders = ServiceRequest.__table__
            done = stored(found[laboratory.sodium])["released_at"]
            connection.execute(
                orders.update().where(orders.c.id == order).values(authored_at=done - timedelta(hours=10 * number + 2))
            )
    made({laboratory.culture: "No growth"}, 1)
    bench, admin = client_as("lab"), client_as("admin")
    page = plain(bench.page("/laboratory/turnaround/?since=2020-01-01&until=2020-06-01&target=24"))
    assert "No result was released in these days" in page
    text = plain(bench.page("/laboratory/turnaround/"))
    assert "Sodium" in text
    assert "Blood culture" in text
    told = plain(admin.page("/laboratory/turnaround/"))
    assert "Fewer than 5" in told
    assert "Fewer than 5" not in text
    for name in ("Quartermain", "Vandersloot", "No growth"):
        assert name not in told
    for who in ("doctor", "nurse", "reception", "patient", "billing", "privacy", "pharmacist"):
        assert client_as(who).get("/laboratory/turnaround/").status_code == 403, who
    for wrong in ("since=2026-02-01&until=2026-01-01&target=24", "since=x&until=2026-01-01&target=24", "target=0"):
        assert bench.get(f"/laboratory/turnaround/?{wrong}").status_code == 422, wrong


def test_the_turnaround_counts_halves_ninths_and_the_late_ones(laboratory: Laboratory, made: Any) -> None:
    hours = (1, 2, 3, 40, 50)
    for each in hours:
        order, found = made({laboratory.pregnancy: "negative"}, 1)
        done = stored(found[laboratory.pregnancy])["released_at"]
        with guard.engine().begin() as connection:
            orders = ServiceRequest.__table__
            connection.execute(
                orders.update().where(orders.c.id == order).values(authored_at=done - timedelta(hours=each))
            )
    with factories.acting(laboratory.hospital.accounts["lab"]):
        lines = turnaround.report(guard.session(), now() - timedelta(days=1), now(), target_hours=24)
        (line,) = [each for each in lines if each.test_id == laboratory.pregnancy]
    assert (line.number, line.late) == (5, 2)
    assert line.whole is not None
    assert (line.whole.half, line.whole.nine) == (3.0, 46.0)
    assert len(line.stages) == 4
    with factories.acting(laboratory.hospital.accounts["doctor"]), pytest.raises(Forbidden):
        turnaround.report(guard.session(), now() - timedelta(days=1), now(), target_hours=24)
