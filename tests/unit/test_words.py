"""What people type, at the edges."""

from __future__ import annotations

import unicodedata
from datetime import date, timedelta

import pytest

from app.errors import Invalid
from app.services.words import birth_date, fold, line, phone, readings, spoken_phone

LATER = date.today() + timedelta(days=3)


@pytest.mark.parametrize(
    ("typed", "day", "precision"),
    [
        ("", None, "day"),
        ("   ", None, "day"),
        ("1970", date(1970, 1, 1), "year"),
        ("1970-03", date(1970, 3, 1), "month"),
        ("03/1970", date(1970, 3, 1), "month"),
        ("3.1970", date(1970, 3, 1), "month"),
        ("1970-03-05", date(1970, 3, 5), "day"),
        ("05/03/1970", date(1970, 3, 5), "day"),
        ("5.3.1970", date(1970, 3, 5), "day"),
        ("5-3-1970", date(1970, 3, 5), "day"),
        ("03/25/1970", date(1970, 3, 25), "day"),
        ("05031970", date(1970, 3, 5), "day"),
        ("19700305", date(1970, 3, 5), "day"),
        ("5 Mar 1970", date(1970, 3, 5), "day"),
        ("March 5, 1970", date(1970, 3, 5), "day"),
        ("Mar 1970", date(1970, 3, 1), "month"),
        ("29/02/2024", date(2024, 2, 29), "day"),
        (date.today().strftime("%d/%m/%Y"), date.today(), "day"),
        ("1851", date(1851, 1, 1), "year"),
        ("5/3/70", date(1970, 3, 5), "day"),
    ],
)
def test_a_birth_date_as_people_write_it(typed: str, day: date | None, precision: str) -> None:
    assert birth_date(typed) == (day, precision)


@pytest.mark.parametrize(
    "typed",
    [
        *(
            "yesterday",
            "0",
            "1",
            "32/01/1970",
            "29/02/2023",
            "1970-13-01",
            "1970-13",
            "00/00/1970",
            LATER.strftime("%d/%m/%Y"),
            str(LATER.year + 1),
        ),
        *("1850", "1066", "9" * 40, "1970-03-05T10:00", "5 Foo 1970", "1/1", "--", "12/1970/12", "１９７０x"),
    ],
)
def test_what_is_no_birth_date_is_refused_by_its_field(typed: str) -> None:
    with pytest.raises(Invalid) as refused:
        birth_date(typed)
    assert refused.value.field == "birth_date"
    assert typed not in str(refused.value) or len(typed) < 3


def test_both_readings_of_a_date_are_looked_for() -> None:
    assert readings("05/03/1970") == [(date(1970, 3, 5), "day"), (date(1970, 5, 3), "day")]
    assert readings("05/05/1970") == [(date(1970, 5, 5), "day")]
    assert readings("nonsense") == []


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("  Ana   María ", "Ana María"),
        ("Ana\tMaría\r\n", "Ana María"),
        (unicodedata.normalize("NFD", "Ångström"), "Ångström"),
        ("O'Brien-Łuć", "O'Brien-Łuć"),
        ("محمد", "محمد"),
        ("北京", "北京"),
        ("x" * 200, "x" * 200),
        (None, ""),
        ("", ""),
        ("👩‍⚕️", "👩‍⚕️"),
    ],
)
def test_a_line_is_kept_as_it_was_meant(typed: str | None, kept: str) -> None:
    assert line(typed, field="family") == kept


@pytest.mark.parametrize("typed", ["a\x00b", "a\x1bb", "a\x7fb", "a\x85b", "\ud800", "\ue000", "x" * 201, "\uffff"])
def test_a_line_that_cannot_be_kept_is_refused(typed: str) -> None:
    with pytest.raises(Invalid) as refused:
        line(typed, field="given")
    assert refused.value.field == "given"


@pytest.mark.parametrize(
    ("typed", "region", "kept"),
    [
        ("+34 611 22 33 44", None, "+34611223344"),
        ("611223344", "ES", "+34611223344"),
        ("(212) 555-0143", "US", "+12125550143"),
        ("0034611223344", "ES", "+34611223344"),
        ("+1-212-555-0143", "ES", "+12125550143"),
    ],
)
def test_a_phone_number_is_kept_in_one_form(typed: str, region: str | None, kept: str) -> None:
    assert phone(typed, region) == kept


@pytest.mark.parametrize(
    ("typed", "region"), [("611223344", None), ("12", "ES"), ("call me", "ES"), ("+34" + "1" * 20, None), ("", "ES")]
)
def test_what_is_no_phone_number_is_refused(typed: str, region: str | None) -> None:
    with pytest.raises(Invalid) as refused:
        phone(typed, region)
    assert refused.value.field == "phone"


def test_a_phone_number_is_read_out_in_groups() -> None:
    assert spoken_phone("+34611223344") == "+34 611 22 33 44"
    assert spoken_phone("extension 7") == "extension 7"


@pytest.mark.parametrize(
    ("typed", "folded"),
    [
        ("Müller", "muller"),
        ("ØSTER", "oster"),
        ("Łucja", "lucja"),
        ("Nguyễn", "nguyen"),
        ("Straße", "strasse"),
        ("Æsop", "aesop"),
        ("İpek", "ipek"),
        ("", ""),
    ],
)
def test_folding_takes_away_accents_and_case(typed: str, folded: str) -> None:
    assert fold(typed) == folded
    assert fold(folded) == folded
