"""Is this prescription genuine? For whoever holds the paper, without signing in."""

from __future__ import annotations

from typing import Any

from flask import current_app, request
from flask_appbuilder import expose
from flask_babel import gettext, lazy_gettext

from app.errors import Invalid, Refusal
from app.services import credentials, dosage, signing
from app.services.signing import NOT_GENUINE, Standing, Verdict
from views.base import Page
from views.speech import spoken_day

HEADINGS = {
    Standing.VALID: lazy_gettext("Valid"),
    Standing.PARTLY: lazy_gettext("Partly dispensed"),
    Standing.DISPENSED: lazy_gettext("Dispensed"),
    Standing.ON_HOLD: lazy_gettext("On hold"),
    Standing.CANCELLED: lazy_gettext("Cancelled"),
    Standing.EXPIRED: lazy_gettext("Expired"),
    Standing.NOT_GENUINE: lazy_gettext("Not genuine"),
}
SENTENCES = {
    Standing.VALID: lazy_gettext("This prescription is genuine, and nothing was handed out on it yet."),
    Standing.PARTLY: lazy_gettext("This prescription is genuine, and some of it was handed out already."),
    Standing.DISPENSED: lazy_gettext("This prescription is genuine, and all of it was handed out."),
    Standing.ON_HOLD: lazy_gettext(
        "This prescription is genuine and was paused. Hand nothing out; ask the prescriber."
    ),
    Standing.CANCELLED: lazy_gettext("This prescription was genuine and was called off. Hand nothing out."),
    Standing.EXPIRED: lazy_gettext("This prescription is genuine, and its time is over. Hand nothing out."),
    Standing.NOT_GENUINE: lazy_gettext("We did not issue this. Hand nothing out; if you doubt it, call the hospital."),
}
TONES = {Standing.VALID: "ok", Standing.PARTLY: "ok", Standing.DISPENSED: "calm", Standing.ON_HOLD: "warn"}


class Verify(Page):
    """The public page that a QR code leads to, and the field for those that cannot be read."""

    route_base = "/rx"
    default_view = "ask"

    @expose("/", methods=["GET", "POST"])
    def ask(self) -> Any:
        """The field for the short code; a code that is sent is looked up."""
        if request.method != "POST":
            return self._page()
        return self._answer(request.form.get("code", ""))

    @expose("/<token>")
    def show(self, token: str) -> Any:
        """How it stands with the paper whose QR code was scanned."""
        return self._answer(token)

    ask.policy = ("whoever has the paper", "")
    show.policy = ("whoever has the paper", "")

    def _answer(self, said: str) -> Any:
        """The verdict. What nobody ever wrote and what was forged look alike and are counted alike."""
        try:
            credentials.may_try_links()
            with signing.at_a_paper() as session:
                verdict = signing.check(session, said)
        except Invalid as refusal:
            return self._page(typed=said[:40], refusal=gettext(str(refusal))), refusal.status
        except Refusal as refusal:
            headers = {"Retry-After": str(refusal.seconds)} if hasattr(refusal, "seconds") else {}
            return self._page(refusal=gettext(str(refusal))), refusal.status, headers
        if verdict is NOT_GENUINE:
            credentials.wrong_link()
            return self._page(verdict=verdict), 404
        return self._page(verdict=verdict)

    def _page(self, *, verdict: Verdict | None = None, typed: str = "", refusal: str | None = None) -> str:
        told = None
        if verdict is not None:
            told = {
                "heading": HEADINGS[verdict.standing],
                "sentence": SENTENCES[verdict.standing],
                "tone": TONES.get(verdict.standing, "danger"),
                "prescriber": verdict.prescriber,
                "issued": spoken_day(verdict.issued_on) if verdict.issued_on else "",
                "left": [
                    {
                        "quantity": dosage.counted(line.quantity, line.unit, "en"),
                        "until": spoken_day(line.until) if line.until else "",
                    }
                    for line in verdict.left
                ],
            }
        return self.render("verify/show.html", verdict=told, typed=typed, refusal=refusal)


def register(builder: Any) -> None:
    """The page for whoever holds a paper."""
    # It changes nothing, and the field has to work for a page that was open for a day.
    current_app.extensions["csrf"].exempt(builder.add_view_no_menu(Verify).blueprint)
