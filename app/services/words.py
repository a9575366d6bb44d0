"""What people type, made into what is stored: names, dates, phone numbers."""

from __future__ import annotations

import calendar
import re
import unicodedata
from datetime import UTC, date, datetime, timedelta

import phonenumbers
from dateutil import parser

from app.errors import Invalid

CONTROL = {"Cc", "Cs", "Co", "Cn"}
UNDECOMPOSED = str.maketrans({"ł": "l", "ø": "o", "đ": "d", "æ": "ae", "œ": "oe", "ı": "i", "ħ": "h"})
"""Letters that Unicode does not take apart, as unaccent() writes them."""


def today() -> date:
    """The day it is; at most half a day off from any branch's own."""
    return datetime.now(UTC).date()


def line(value: str | None, *, field: str, longest: int = 200) -> str:
    """One line of text as it is stored: NFC, single spaces. Raises Invalid for control or too many letters."""
    text = unicodedata.normalize("NFC", value or "")
    text = re.sub(r"[\t\r\n ]+", " ", text).strip()
    if any(unicodedata.category(letter) in CONTROL for letter in text):
        raise Invalid("There are characters in this text that cannot be stored.", field=field)
    if len(text) > longest:
        raise Invalid(f"This can have up to {longest} letters.", field=field)
    return text


def birth_date(value: str, *, field: str = "birth_date") -> tuple[date | None, str]:
    """The first day of a date as people write it, and how much of it is known (day, month, year).

    Day comes before month where both readings are possible. Raises Invalid for what is no date, or lies ahead.
    """
    text = value.strip()
    if not text:
        return None, "day"
    found = readings(text)
    if not found:
        raise Invalid("Write the date like 5 Mar 1970, 05/03/1970, 1970-03-05, or just the year.", field=field)
    first, precision = found[0]
    if first > today() + timedelta(days=1):
        raise Invalid("This date cannot lie in the future.", field=field)
    if first.year <= 1850:
        raise Invalid("Please check the year.", field=field)
    return first, precision


def readings(text: str) -> list[tuple[date, str]]:
    """Every date a text may mean, the likelier first, with how much of it is said; none where it is no date."""
    text = text.strip().rstrip(".")
    if re.fullmatch(r"(18|19|20|21)\d\d", text):
        return [(date(int(text), 1, 1), "year")]
    if match := re.fullmatch(r"((?:18|19|20|21)\d\d)[-/.](\d{1,2})", text):
        year, month = int(match[1]), int(match[2])
        return [(date(year, month, 1), "month")] if 1 <= month <= 12 else []
    if match := re.fullmatch(r"(\d{1,2})[-/.]((?:18|19|20|21)\d\d)", text):
        year, month = int(match[2]), int(match[1])
        return [(date(year, month, 1), "month")] if 1 <= month <= 12 else []
    if re.fullmatch(r"\d{8}", text):
        orders = [(text[4:], text[2:4], text[:2]), (text[:4], text[4:6], text[6:]), (text[4:], text[:2], text[2:4])]
        return _valid([tuple(map(int, order)) for order in orders])
    if match := re.fullmatch(r"((?:18|19|20|21)\d\d)[-/. ](\d{1,2})[-/. ](\d{1,2})", text):
        return _valid([(int(match[1]), int(match[2]), int(match[3]))])
    if match := re.fullmatch(r"(\d{1,2})[-/. ](\d{1,2})[-/. ](\d{2}|\d{4})", text):
        one, two, year = int(match[1]), int(match[2]), int(match[3])
        if len(match[3]) == 2:
            year += 2000 if year <= today().year % 100 else 1900
        return _valid([(year, two, one), (year, one, two)])
    if re.search(r"[A-Za-z]{3}", text) and re.search(r"\b(18|19|20|21)\d\d\b", text) and len(text) <= 30:
        try:
            parsed = parser.parse(text, dayfirst=True, default=datetime(1, 1, 1, tzinfo=UTC))
            other = parser.parse(text, dayfirst=True, default=datetime(1, 1, 2, tzinfo=UTC))
        except (ValueError, OverflowError):
            return []
        return [(parsed.date(), "day" if parsed == other else "month")]
    return []


def _valid(orders: list[tuple[int, ...]]) -> list[tuple[date, str]]:
    """Those of the (year, month, day) triples that are days of the calendar, each once."""
    found: dict[date, None] = {}
    for year, month, day in orders:
        if 1800 < year < 2200 and 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]:
            found[date(year, month, day)] = None
    return [(day, "day") for day in found]


def phone(value: str, region: str | None = None, *, field: str = "phone") -> str:
    """A phone number in E.164, `region` (ISO 3166) for numbers without a country code. Raises Invalid for none."""
    text = line(value, field=field, longest=40)
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException as error:
        raise Invalid("Please check the phone number; begin with + and the country code.", field=field) from error
    if not phonenumbers.is_possible_number(number):
        raise Invalid("Please check the phone number; it has too few or too many digits.", field=field)
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def spoken_phone(value: str) -> str:
    """A stored phone number as it is read out; unchanged where it is none."""
    try:
        number = phonenumbers.parse(value, None)
    except phonenumbers.NumberParseException:
        return value
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)


def fold(text: str) -> str:
    """Small letters without accents, as the database folds names for searching (wb_fold)."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return plain.translate(UNDECOMPOSED)
