"""The quick ways to say a word, a day and a number say what the slow ones say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal

import pytest
from flask import Flask, render_template_string
from flask_babel import Babel, force_locale, format_date, format_decimal, gettext

from views import speech

LANGUAGES = ("en", "es", "de", "fr", "ar", "hi", "sv", "pt_BR", "zh_Hans_CN")
NUMBERS = (
    *("0", "0.00", "5", "5.1", "5.10", "37.25", "0.004", "0.005", "99.999", "999.99", "999.999"),
    *("1000", "1234.5", "12345678.9", "-3.5", "1E+2", "7E-1"),
)


@pytest.fixture(scope="module")
def app() -> Flask:
    app = Flask(__name__)
    Babel(app)
    speech.install(app)
    return app


@pytest.fixture
def request_(app: Flask) -> Iterator[None]:
    with app.test_request_context("/"):
        yield


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.usefixtures("request_")
def test_days_and_numbers_are_those_of_babel(language: str) -> None:
    with force_locale(language):
        for month in range(1, 13):
            day = date(1931 + month * 7, month, month * 2)
            assert speech.spoken_day(day) == format_date(day, "d MMM yyyy")
        for text in NUMBERS:
            number = Decimal(text)
            assert speech.spoken_number(number) == format_decimal(round(number, 2)), text


@pytest.mark.usefixtures("request_")
def test_what_is_filled_in_is_escaped_and_a_percent_sign_stays_one() -> None:
    page = "{{ _('Hello %(name)s', name=name) }} {{ _('100 %%') }} {% trans %}Bye {{ name }}{% endtrans %}"
    assert render_template_string(page, name="<b>") == "Hello &lt;b&gt; 100 % Bye &lt;b&gt;"


@pytest.mark.usefixtures("request_")
def test_the_language_may_change_within_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from babel.support import NullTranslations
    from flask_babel import Domain, get_locale

    class Named(NullTranslations):
        def __init__(self, language: str) -> None:
            super().__init__()
            self.language = language

        def gettext(self, message: str) -> str:
            return f"{message} in {self.language}"

        ugettext = gettext

    monkeypatch.setattr(Domain, "get_translations", lambda _self: Named(str(get_locale())))
    assert gettext("Word") == "Word in en"
    with force_locale("es"):
        assert gettext("Word") == "Word in es"
        assert render_template_string("{{ _('Word') }}") == "Word in es"
    assert gettext("Word") == "Word in en"
