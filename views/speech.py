"""Translating quickly: a page asks for hundreds of words, and each of them used to ask anew which language it is in."""

from __future__ import annotations

from typing import Any

from babel.support import NullTranslations
from flask import Flask, g
from flask_babel import Domain, get_babel, get_locale
from markupsafe import Markup


class Spoken(Domain):  # type: ignore[misc]
    """Flask-Babel's catalogues, looked up once a request."""

    def get_translations(self) -> NullTranslations:
        try:
            language, found = g._spoken
        except (AttributeError, RuntimeError):
            return self._looked_up()
        # `refresh` and `force_locale` replace the locale in the middle of a request.
        known = getattr(g._flask_babel, "babel_locale", None)
        return found if language is known else self._looked_up()

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
