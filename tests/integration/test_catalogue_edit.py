"""The catalogue changed by hand: tests, ranges, conversions, panels, who is on call; and by nobody who may not."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from app import guard
from app.actor import service
from models.base import now
from models.lab import LabPanel, LabTest, OnCall, ReferenceRange, UnitConversion
from tests.conftest import Browser, csrf_of
from tests.factories import Hospital

ClientAs = Callable[[str], Browser]
EDIT = "/laboratory/catalogue/edit"
ZINC = {
    "name": "Zinc",
    "code": "8245-5",
    "kind": "numeric",
    "specimen_type": "SER",
    "unit": "umol/L",
    "decimals": "1",
    "delta_days": "30",
    "release_hours": "0",
    "active": "y",
}
RANGE = {"sex": "", "since_unit": "", "until_unit": "", "pregnant": "", "valid_from": "2026-01-01", "source": "Book"}


def rows(kind: Any, *where: Any) -> list[Any]:
    with guard.acting_as(service("demo")):
        return list(guard.session().scalars(select(kind).where(*where).order_by(kind.id)).all())


def sent(client: Browser, address: str, fields: dict[str, Any] | None = None) -> Any:
    """A form sent with the token of a page, whether the page with the form is shown or not."""
    token = csrf_of(client.get("/me/").text)
    return client.post(address, data={"csrf_token": token, **(fields or {})})


def zinc(client: Browser, code: str, **more: str) -> int:
    """A test of its own, by its number."""
    answer = sent(client, f"{EDIT}/test/", {**ZINC, "code": code, **more})
    assert answer.status_code == 302, answer.text
    return int(rows(LabTest, LabTest.code == code)[0].id)


def test_a_test_is_added_changed_and_retired(client_as: ClientAs, hospital: Hospital) -> None:
    lab = client_as("lab")
    assert "Add a test" in lab.page("/laboratory/catalogue/")
    key = zinc(lab, "8245-5")
    (test,) = rows(LabTest, LabTest.id == key)
    assert (test.name, test.unit, test.decimals, test.code_system) == ("Zinc", "umol/L", 1, "http://loinc.org")
    page = lab.page(f"{EDIT}/test/{key}/")
    assert 'value="umol/L"' in page
    assert re.search(r'name="active"[^>]* checked', page), "saving it as it is shown would retire it"
    changed = {**ZINC, "name": "Zinc in serum", "version": str(test.version)}
    assert sent(lab, f"{EDIT}/test/{key}/", changed).status_code == 302
    late = sent(lab, f"{EDIT}/test/{key}/", {**changed, "name": "Zn"})
    assert late.status_code == 409
    assert 'value="Zn"' in late.text, "what was typed is kept"
    assert rows(LabTest, LabTest.id == key)[0].name == "Zinc in serum"
    retired = {name: value for name, value in changed.items() if name not in ("active", "version")}
    assert sent(lab, f"{EDIT}/test/{key}/", retired).status_code == 302
    assert rows(LabTest, LabTest.id == key)[0].active is False
    assert "Zinc in serum" not in lab.page("/laboratory/catalogue/")
    assert "Zinc in serum" in lab.page("/laboratory/catalogue/?retired=yes")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"name": ""}, "This is needed"),
        ({"name": "n" * 121}, "120"),
        ({"decimals": "9"}, "between 0 and 6"),
        ({"decimals": "1.5"}, "Not a valid integer"),
        ({"plausible_low": "NaN"}, "number"),
        ({"plausible_low": "5", "plausible_high": "4"}, "upper limit is not above"),
        ({"release_hours": "99999"}, "8760"),
        ({"kind": "magic"}, "choice"),
    ],
)
def test_what_is_wrong_with_a_test_is_said_beside_it(
    client_as: ClientAs, hospital: Hospital, wrong: dict[str, str], sentence: str
) -> None:
    answer = sent(client_as("lab"), f"{EDIT}/test/", {**ZINC, "code": "1-8", **wrong})
    assert answer.status_code == 422
    assert sentence in answer.text
    assert rows(LabTest, LabTest.code == "1-8") == []


def test_the_same_code_is_not_there_twice(client_as: ClientAs, hospital: Hospital) -> None:
    lab = client_as("lab")
    zinc(lab, "77-7")
    answer = sent(lab, f"{EDIT}/test/", {**ZINC, "code": "77-7"})
    assert answer.status_code == 409
    assert "already" in answer.text
    assert len(rows(LabTest, LabTest.code == "77-7")) == 1


def test_ranges_are_added_and_end_and_none_counts_twice(client_as: ClientAs, hospital: Hospital) -> None:
    lab = client_as("lab")
    key = zinc(lab, "78-5")
    women = {**RANGE, "sex": "female-typical", "since_age": "18", "since_unit": "a", "low": "10", "high": "18"}
    assert sent(lab, f"{EDIT}/test/{key}/range/", {**women, "critical_low": "4"}).status_code == 302
    twice = sent(lab, f"{EDIT}/test/{key}/range/", women)
    assert twice.status_code == 409
    assert "same people" in twice.text
    assert sent(lab, f"{EDIT}/test/{key}/range/", {**RANGE, "low": "9", "high": "20"}).status_code == 302
    first, second = rows(ReferenceRange, ReferenceRange.test_id == key)
    page = lab.page(f"/laboratory/catalogue/{key}/")
    assert page.count('class="lab-band ') == 2
    assert "lab-critical" in page
    last = date.today() - timedelta(days=1)
    end = f"{EDIT}/test/{key}/range/{second.id}/end"
    assert sent(lab, end, {"valid_until": "2020-01-01"}).status_code == 422
    assert sent(lab, end, {"valid_until": last.isoformat()}).status_code == 302
    assert rows(ReferenceRange, ReferenceRange.id == second.id)[0].valid_until == last
    assert rows(ReferenceRange, ReferenceRange.id == first.id)[0].valid_until is None
    assert lab.page(f"/laboratory/catalogue/{key}/").count('class="lab-band ') == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"low": "9", "high": "2"}, "not in order"),
        ({"low": "", "high": ""}, "at least one limit"),
        ({"low": "9", "critical_low": "10"}, "not in order"),
        ({"low": "9", "since_age": "3"}, "An age is a number"),
        ({"low": "9", "since_age": "-1", "since_unit": "a"}, "between 0 and 200"),
        ({"low": "9", "valid_until": "2020-01-01"}, "before it begins"),
        ({"low": "9", "source": ""}, "This is needed"),
        ({"low": "1e400"}, "."),
    ],
)
def test_what_is_wrong_with_a_range_is_said_beside_it(
    client_as: ClientAs, hospital: Hospital, wrong: dict[str, str], sentence: str
) -> None:
    key = rows(LabTest, LabTest.active)[0].id
    before = len(rows(ReferenceRange))
    answer = sent(client_as("lab"), f"{EDIT}/test/{key}/range/", {**RANGE, **wrong})
    assert answer.status_code == 422
    assert sentence in answer.text
    assert len(rows(ReferenceRange)) == before


def test_conversions_and_panels(client_as: ClientAs, hospital: Hospital) -> None:
    lab = client_as("lab")
    one, two = zinc(lab, "80-1"), zinc(lab, "81-9")
    other = zinc(lab, "82-7", specimen_type="UR")
    address = f"{EDIT}/test/{one}/conversion/"
    assert sent(lab, address, {"source": "ug/dL", "target": "umol/L", "factor": "0.153"}).status_code == 302
    assert sent(lab, address, {"source": "ug/dL", "target": "umol/L", "factor": "0.2"}).status_code == 409
    assert sent(lab, address, {"source": "g", "target": "umol/L", "factor": "-1"}).status_code == 422
    assert [str(row.factor) for row in rows(UnitConversion, UnitConversion.test_id == one)] == ["0.153"]
    assert "1 ug/dL = 0.153 umol/L" in lab.page(f"/laboratory/catalogue/{one}/")
    panel = {"name": "Metals", "code": "METALS", "active": "y"}
    assert sent(lab, f"{EDIT}/panel/", {**panel, "tests": [one, two]}).status_code == 302
    assert sent(lab, f"{EDIT}/panel/", {**panel, "tests": [one]}).status_code == 409
    (found,) = rows(LabPanel, LabPanel.code == "METALS")
    page = lab.page(f"{EDIT}/panel/{found.id}/")
    assert page.count(" selected") == 2, "what is in it is chosen"
    assert re.search(r'name="active"[^>]* checked', page)
    mixed = sent(lab, f"{EDIT}/panel/{found.id}/", {**panel, "tests": [one, other]})
    assert mixed.status_code == 422
    assert "one kind of specimen" in mixed.text
    assert sent(lab, f"{EDIT}/panel/{found.id}/", {"name": "Zinc only", "tests": [two]}).status_code == 302
    page = lab.page(f"{EDIT}/panels/")
    assert "Zinc only" in page
    assert "Retired" in page


def test_who_is_on_call_is_written_down_and_ended(client_as: ClientAs, hospital: Hospital) -> None:
    lab = client_as("lab")
    assert "Nobody is on call" in lab.page("/laboratory/on-call/")
    told = {
        "branch": str(hospital.branches[0]),
        "practitioner": str(hospital.staff["doctor"]),
        "starts_at": "2026-01-01T08:00",
        "ends_at": (now() + timedelta(days=2)).strftime("%Y-%m-%dT%H:%M"),
    }
    long = sent(lab, "/laboratory/on-call/add/", told)
    assert long.status_code == 422
    assert "14 days" in long.text
    told["starts_at"] = (now() - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    assert sent(lab, "/laboratory/on-call/add/", told).status_code == 302
    assert sent(lab, "/laboratory/on-call/add/", {**told, "ends_at": told["starts_at"]}).status_code == 422
    (row,) = rows(OnCall)
    assert "Now" in lab.page("/laboratory/on-call/")
    assert sent(lab, f"/laboratory/on-call/{row.id}/end").status_code == 302
    assert rows(OnCall)[0].ends_at <= now()
    assert sent(lab, f"/laboratory/on-call/{row.id}/end").status_code == 409


@pytest.mark.parametrize("username", ["reception", "nurse", "doctor", "pharmacist", "billing", "privacy", "patient"])
def test_nobody_else_changes_it(client_as: ClientAs, hospital: Hospital, username: str) -> None:
    client = client_as(username)
    test = rows(LabTest, LabTest.active)[0]
    (one, *_) = rows(ReferenceRange, ReferenceRange.test_id == test.id) or rows(ReferenceRange)
    with guard.engine().connect() as connection:
        of = text(
            "SELECT (SELECT sum(version) FROM lab_test), (SELECT count(*) FROM reference_range), (SELECT count(*) FROM on_call)"
        )
        before = connection.execute(of).one()
        for address, data in (
            (f"{EDIT}/test/", {**ZINC, "code": "9-9"}),
            (f"{EDIT}/test/{test.id}/", {**ZINC, "version": str(test.version)}),
            (f"{EDIT}/test/{test.id}/range/", {**RANGE, "low": "1"}),
            (f"{EDIT}/test/{one.test_id}/range/{one.id}/end", {"valid_until": "2030-01-01"}),
            (f"{EDIT}/test/{test.id}/conversion/", {"source": "a", "target": "b", "factor": "2"}),
            (f"{EDIT}/panel/", {"name": "X", "code": "X", "tests": [str(test.id)]}),
            ("/laboratory/on-call/add/", {"branch": "1", "practitioner": "1"}),
        ):
            assert sent(client, address, data).status_code in (403, 404), address
        assert connection.execute(of).one() == before
