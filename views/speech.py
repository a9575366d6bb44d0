"""Words and dates in the reader's language, quickly: a page asks for hundreds, and each asked anew which language."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Any

from babel import Locale
from babel.dates import get_month_names
from babel.numbers import get_decimal_symbol
from babel.support import NullTranslations
from flask import Flask, g
from flask_babel import Domain, format_decimal, get_babel, get_locale
from markupsafe import Markup

ENGLISH = Locale("en")


class Spoken(Domain):
    """Flask-Babel's catalogues, looked up once a request."""

    def get_translations(self) -> NullTranslations:
        try:
            language, found = g._spoken
        except (AttributeError, RuntimeError):
            return self._looked_up()
        # `refresh` and `force_locale` replace the locale in the middle of a request.
        return found if language is getattr(g._flask_babel, "babel_locale", None) else self._looked_up()

    def _looked_up(self) -> NullTranslations:
        found: NullTranslations = super().get_translations()
        if g:
            g._spoken = (get_locale(), found)
        return found


def install(app: Flask) -> None:
    """Let templates and Python speak through it; after Flask-AppBuilder has made its Babel."""
    with app.app_context():
        domain = get_babel().instance.domain_instance = Spoken()

    def say(text: str, **values: Any) -> Markup:
        """A text of a template in the reader's language, `%(name)s` filled in and escaped."""
        said = Markup(domain.get_translations().gettext(text))  # noqa: S704  (ours, as Jinja's own gettext does it)
        return said % values if values or "%" in said else said

    app.jinja_env.globals.update(_=say, gettext=say)


@lru_cache(maxsize=64)
def _point(language: Locale) -> str:
    return str(get_decimal_symbol(language))


def spoken_number(value: Decimal) -> str:
    """A measured number with two places at most, such as 5,1 in Spanish."""
    value = round(value, 2)
    if not 0 <= value < 1000:
        return str(format_decimal(value))
    whole, _, places = f"{value:f}".partition(".")
    places = places.rstrip("0")
    return f"{whole}{_point(get_locale() or ENGLISH)}{places}" if places else whole


@lru_cache(maxsize=64)
def _months(language: Locale) -> dict[int, str]:
    return dict(get_month_names("abbreviated", locale=language))


def spoken_day(value: date) -> str:
    """A day as it is read everywhere here, such as 5 Mar 1970 (Unicode's `d MMM yyyy`)."""
    return f"{value.day} {_months(get_locale() or ENGLISH)[value.month]} {value.year:04}"
