"""The formulary: found by words, kept by those who may, taken in from files and given out as one."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from app import guard
from app.actor import service
from app.errors import Conflict, Forbidden, Invalid
from app.services import formulary
from app.services.formulary import RXNORM, Told
from jobs.demo import FORMULARY
from models.prescriptions import Medication
from tests import factories
from tests.conftest import Browser, Database

Acting = Callable[[str], AbstractContextManager[Any]]
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "terminology" / "rxnorm_in_synthea.csv"
HEAD = "system,code,display,dose_form,unit,ingredients,active\n"


@pytest.fixture(autouse=True)
def undone(savepoint: None) -> None:
    """What a test writes is gone after it."""


def taken(text: str | bytes, *, write: bool = True) -> formulary.Plan:
    content = text.encode() if isinstance(text, str) else text
    with guard.acting_as(service("formulary")), guard.unit_of_work() as session:
        return (formulary.take_in if write else formulary.plan)(session, content)


def there() -> list[Medication]:
    with guard.acting_as(service("formulary")):
        return list(guard.session().scalars(select(Medication).order_by(Medication.id)))


@pytest.mark.parametrize(
    ("display", "ingredients", "unit"),
    [
        ("Amoxicillin 250 MG / Clavulanate 125 MG Oral Tablet", "amoxicillin 250 mg; clavulanic acid 125 mg", "{tbl}"),
        ("24 HR metoprolol succinate 100 MG Extended Release Oral Tablet [Toprol]", "metoprolol 100 mg", "{tbl}"),
        ("NDA020800 0.3 ML Epinephrine 1 MG/ML Auto-Injector", "epinephrine 1 mg", "mL"),
        ("200 ACTUAT Albuterol 0.09 MG/ACTUAT Metered Dose Inhaler", "salbutamol 0.09 mg", "{puff}"),
        ("72 HR Fentanyl 0.025 MG/HR Transdermal System", "fentanyl", "{patch}"),
        ("Hydrocortisone 10 MG/ML Topical Cream", "hydrocortisone", "g"),
        ("Diazepam [Valium]", "diazepam", ""),
        ("Lasix 40mg", "furosemide", ""),
        ("Jolivette 28 Day Pack", "Jolivette 28 Day Pack", "{pack}"),
        ("Penicillin G 375 MG/ML Injectable Solution", "benzylpenicillin 375 mg", "mL"),
    ],
)
def test_a_name_of_rxnorm_is_taken_apart(display: str, ingredients: str, unit: str) -> None:
    named = formulary.parse(display)
    assert (formulary.ingredients_text(named.ingredient), named.unit) == (ingredients, unit)


def test_a_look_at_a_file_writes_nothing() -> None:
    planned = taken(f"{HEAD}rxnorm,1,Ibuprofen 200 MG Oral Tablet,,,,\n", write=False)
    assert [row.what for row in planned.rows] == ["new"]
    assert there() == []


def test_a_file_is_taken_in_and_then_again_by_its_codes() -> None:
    first = taken(f"\ufeff{HEAD}rxnorm,1,Ibuprofen 200 MG Oral Tablet,,,,\nours,x,Own thing,Cream,g,own 1 mg,yes\n")
    assert str(first) == "2 new"
    again = taken(f"{HEAD}rxnorm,1,Ibuprofen 400 MG Oral Tablet,,,,\nours,x,Own thing,Cream,g,own 1 mg,yes\n")
    assert str(again) == "1 changed, 1 same"
    one, other = there()
    assert (one.code_system, one.display, one.unit) == (RXNORM, "Ibuprofen 400 MG Oral Tablet", "{tbl}")
    assert one.ingredient == [{"name": "ibuprofen", "value": 400, "unit": "mg"}]
    assert (other.version, one.version) == (1, 2), "what is the same is not written again"


def test_a_wrong_line_is_named_and_nothing_is_written() -> None:
    wrong = (
        f"{HEAD}rxnorm,1,Ibuprofen 200 MG Oral Tablet,,,,\n,2,Nothing,,,,\nrxnorm,,No code,,,,\nrxnorm,4,,,,,\n"
        "rxnorm,5,Bad unit,,tablets,,\nrxnorm,6,Bad yes,,,,perhaps\nrxnorm,7,Bad strength,,,aspirin 5 lumps,\n"
        "rxnorm,1,Again,,,,\n"
    )
    planned = taken(wrong, write=False)
    whats = ["new", "wrong", "wrong", "wrong", "wrong", "wrong", "wrong", "repeated"]
    assert [row.what for row in planned.rows] == whats
    assert [row.number for row in planned.errors] == [3, 4, 5, 6, 7, 8]
    with pytest.raises(Invalid, match="line 3"):
        taken(wrong)
    assert there() == []


@pytest.mark.parametrize(
    "content",
    [b"", b"code,display\n1,x\n", b"\xff\xfe\x00x", "caf\xe9".encode("latin-1"), b"system,code,display\n1,\x00,x\n"],
)
def test_what_is_no_such_file_is_refused(content: bytes) -> None:
    with pytest.raises(Invalid) as refusal:
        taken(content)
    assert refusal.value.field == "file"
    assert there() == []


def test_what_goes_out_comes_back_and_no_spreadsheet_reckons_with_it() -> None:
    told = Told(system="ours", code="-1+1", display="=cmd|' /C calc'!A0", ingredients="aspirin 100 mg", unit="{tbl}")
    with guard.acting_as(service("formulary")), guard.unit_of_work() as session:
        formulary.add(session, told)
        exported = formulary.export(session)
    assert exported.startswith(b"\xef\xbb\xbf")
    cells = list(csv.reader(io.StringIO(exported.decode("utf-8-sig"))))[1]
    assert not any(cell[:1] in "=+-@" for cell in cells if cell)
    assert str(taken(exported)) == "1 same"


def test_medicines_are_found_by_words_of_name_and_ingredient() -> None:
    taken(FORMULARY.read_bytes())
    with guard.acting_as(service("formulary")), guard.unit_of_work() as session:
        assert {each.ingredient[0]["name"] for each in formulary.find(session, "PARACETAMOL")} == {"paracetamol"}
        assert "Acetaminophen 325 MG Oral Tablet" in [each.display for each in formulary.find(session, "paracetamol")]
        assert [each.display for each in formulary.find(session, "tablet ibuprofen 400")] == ["Ibuprofen 400 mg tablet"]
        assert [each.display for each in formulary.find(session, "%")] == ["Hydrocortisone 1 % cream"]
        ibuprofen = formulary.find(session, "ibuprofen 400")[0]
        formulary.retire(session, ibuprofen)
        assert formulary.find(session, "ibuprofen 400") == []
        assert formulary.find(session, "ibuprofen 400", retired=True) == [ibuprofen]


def test_the_demo_formulary_is_whole_and_wholly_known() -> None:
    planned = taken(FORMULARY.read_bytes())
    assert planned.errors == []
    assert 60 <= planned.count("new") == len(planned.rows)
    from app.services.drug_safety import medicine_of

    medicines = there()
    assert [each.display for each in medicines if medicine_of(each).unknown()] == []
    assert all(each.unit for each in medicines)


def test_the_shared_terminology_is_taken_in() -> None:
    if not SHARED.exists():
        pytest.skip("needs the shared data")
    planned = taken(SHARED.read_bytes())
    assert planned.errors == []
    assert planned.count("new") > 140
    found = {each.code: each for each in there()}
    assert found["562251"].ingredient[1] == {"name": "clavulanic acid", "value": 125, "unit": "mg"}
    assert taken(SHARED.read_bytes()).count("new") == 0


def test_a_code_belongs_to_one_medicine(acting: Acting) -> None:
    with acting("pharmacist"), guard.unit_of_work() as session:
        one = formulary.add(session, Told(system="ours", code="1", display="One"))
        two = formulary.add(session, Told(system="ours", code="2", display="Two"))
        for attempt in (
            lambda: formulary.add(session, Told(system="ours", code="1", display="Once more")),
            lambda: formulary.change(session, two, Told(system="ours", code="1", display="Two")),
        ):
            with pytest.raises(Conflict) as refusal:
                attempt()
            assert refusal.value.field == "code"
        assert formulary.change(session, one, Told(system="ours", code="1", display="One, better")).display[-1] == "r"


@pytest.mark.parametrize("username", ["doctor", "nurse", "reception", "patient"])
def test_only_some_keep_the_formulary(acting: Acting, username: str) -> None:
    with acting(username):
        with pytest.raises(Forbidden), guard.unit_of_work() as session:
            formulary.add(session, Told(system="ours", code="1", display="One"))
        guard.session.rollback()
    assert there() == []


# ---- pages ---------------------------------------------------------------------------------------------------------


def test_the_pharmacist_keeps_the_formulary(
    app: Flask, client_as: Callable[[str], Browser], database: Database
) -> None:
    del app, database
    page = client_as("pharmacist")
    assert "There are no medicines yet" in page.page("/formulary/")
    answer = page.submit("/formulary/new/", {"display": "Ibuprofen 400 MG Oral Tablet", "code": "ibu"})
    assert answer.status_code == 302
    assert "ibuprofen 400 mg" in page.page("/formulary/?q=ibuprofen")
    answer = page.submit("/formulary/new/", {"display": "Again", "code": "ibu"})
    assert answer.status_code == 409
    assert "There is a medicine of that code already." in answer.text
    assert 'value="Again"' in answer.text, "what was typed stays"
    (row,) = there()
    answer = page.submit(f"/formulary/{row.id}/", {"unit": "tablets"})
    assert answer.status_code == 422
    answer = page.submit(f"/formulary/{row.id}/", {"display": "Ibuprofen 600 MG Oral Tablet", "ingredients": ""})
    assert answer.status_code == 302
    token = factories_token(page)
    assert page.post(f"/formulary/{row.id}/retire/", data={"csrf_token": token}).status_code == 302
    assert "Retired" in page.page("/formulary/?retired=y")
    assert "Ibuprofen" not in page.page("/formulary/")
    assert page.get("/formulary/export.csv").data.startswith(b"\xef\xbb\xbf")


def factories_token(page: Browser) -> str:
    from tests.conftest import csrf_of

    return csrf_of(page.page("/formulary/new/"))


def test_a_file_is_looked_at_and_then_taken_in(app: Flask, client_as: Callable[[str], Browser]) -> None:
    del app
    page = client_as("pharmacist")
    file = (io.BytesIO(f"{HEAD}ours,1,Aspirin 100 mg tablet,,,,\n".encode()), "medicines.csv")
    looked = page.submit("/formulary/import/", {"file": file, "do": "look"}, content_type="multipart/form-data")
    assert looked.status_code == 200
    assert "Aspirin 100 mg tablet" in looked.text
    assert there() == []
    content = f"{HEAD}ours,1,Aspirin 100 mg tablet,,,,\n"
    assert page.submit("/formulary/import/", {"content": content, "do": "write"}).status_code == 302
    assert [each.display for each in there()] == ["Aspirin 100 mg tablet"]
    assert page.submit("/formulary/import/", {"content": "nonsense", "do": "write"}).status_code == 422
    assert page.submit("/formulary/import/", {"do": "look"}).status_code == 422


@pytest.mark.parametrize("username", ["doctor", "nurse"])
def test_others_only_look(app: Flask, client_as: Callable[[str], Browser], username: str) -> None:
    del app
    page = client_as(username)
    assert page.get("/formulary/").status_code == 200
    for address in ("/formulary/new/", "/formulary/import/", "/formulary/1/"):
        assert page.get(address).status_code == 403
    assert factories.number_of(Medication) == 0
