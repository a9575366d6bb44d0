"""What leaves the house and leads back: the page a patient answers on, calendar files, a practitioner's own feed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import current_app, flash, make_response, redirect, request, url_for
from flask_appbuilder import expose
from flask_babel import get_locale, gettext, lazy_gettext
from werkzeug.wrappers import Response

from app import guard
from app.actor import current, service
from app.errors import NotFound, OfferOver, Refusal, SlotTaken
from app.services import credentials, invitations, scheduling
from views.base import Page, open_to, open_to_all, words

CALENDAR = "text/calendar; charset=utf-8"
HEADINGS: dict[type[Refusal], Any] = {
    OfferOver: lazy_gettext("This time is gone"),
    SlotTaken: lazy_gettext("You are expected elsewhere then"),
}
"""What stands above the sentence of a refusal, where it is not that the link does not help."""
FARTHEST = 200
"""Letters of a link at most: ours have half of that."""


def open_to_whoever_has_it(method: Callable[..., Any]) -> Callable[..., Any]:
    """Open an address to whoever was given it: what is in it is the right to it. Wrong ones are counted."""

    def opened(self: Any, token: str) -> Any:
        credentials.may_try_links()
        try:
            if len(token) > FARTHEST or not token.isascii():
                raise NotFound
            return method(self, token)
        except NotFound:
            credentials.wrong_link()
            raise

    opened.__name__ = method.__name__
    opened.__doc__ = method.__doc__
    opened.__dict__.update(method.__dict__)
    opened.policy = ("whoever has the address", "")  # type: ignore[attr-defined]
    return opened


class LinkPage(Page):
    """Where the link in a message leads, for whoever holds it."""

    def answered(self, asked: Callable[[str], str], token: str) -> Any:
        """The page, or a friendly one that says why there is none."""
        try:
            return asked(token)
        except Refusal as refusal:
            page = self.render(
                "invitations/over.html", sentence=gettext(str(refusal)), heading=HEADINGS.get(type(refusal))
            )
            headers = {"Retry-After": str(refusal.seconds)} if hasattr(refusal, "seconds") else {}
            return page, refusal.status, headers


class VisitAnswer(LinkPage):
    """Will you come?"""

    route_base = "/visit"
    default_view = "ask"

    @expose("/<token>", methods=["GET", "POST"])
    def ask(self, token: str) -> Any:
        """Branch, day and time, and the question. Opening it changes nothing: mail scanners open every link."""
        return self.answered(self._asked, token)

    ask.policy = ("whoever has the address", "")

    @open_to_whoever_has_it
    def _asked(self, token: str) -> str:
        said = request.form.get("answer") if request.method == "POST" else None
        with invitations.at_a_link() as session:
            visit = invitations.by_link(session, token)
            place = str(visit.branch)
            day, time = invitations.spoken(visit, getattr(get_locale(), "language", "en"))
            if said == "come":
                invitations.confirm(session, visit)
            elif said == "cancel":
                invitations.call_off(session, visit)
            confirmed = visit.confirmed_at is not None
        return self.render(
            "invitations/visit.html",
            place=place,
            day=day,
            time=time,
            confirmed=confirmed,
            answered=said if said in ("come", "cancel") else None,
        )


class OfferAnswer(LinkPage):
    """Do you want this time?"""

    route_base = "/offer"
    default_view = "ask"

    @expose("/<token>", methods=["GET", "POST"])
    def ask(self, token: str) -> Any:
        """Branch, day, time and until when it is held. Opening it changes nothing."""
        return self.answered(self._asked, token)

    ask.policy = ("whoever has the address", "")

    @open_to_whoever_has_it
    def _asked(self, token: str) -> str:
        said = request.form.get("answer") if request.method == "POST" else None
        language = getattr(get_locale(), "language", "en")
        with invitations.at_an_offer() as session:
            invitation = invitations.by_offer_link(session, token)
            answer, offer = invitation.answer, invitation.offer
            place = str(offer.branch)
            day, time = invitations.spoken(offer, language)
            _, until = invitations.clock_shows(offer.branch, offer.until_at, language)
            if said == "take" and answer is None:
                invitations.take(session, invitation)
                answer = "accepted"
            elif said == "pass" and answer is None:
                invitations.let_pass(session, invitation)
                answer = "declined"
        return self.render("invitations/offer.html", place=place, day=day, time=time, until=until, answer=answer)


class FeedFile(Page):
    """A practitioner's calendar, as calendar programs fetch it."""

    route_base = "/calendar"
    default_view = "fetch"

    @expose("/<token>.ics")
    @open_to_whoever_has_it
    def fetch(self, token: str) -> Response:
        """The feed, or that nothing has changed. A revoked address is nobody's."""
        whose = invitations.whose_feed(guard.session(), token)
        mark = invitations.feed_mark(guard.session(), whose)
        if request.if_none_match.contains_weak(mark):
            response = make_response("", 304)
        else:
            with guard.acting_as(service("calendar", channel=current().origin.channel)):
                response = make_response(invitations.feed_file(guard.session(), whose))
            response.headers["Content-Type"] = CALENDAR
        response.set_etag(mark)
        response.headers["Cache-Control"] = "private, no-cache"
        return response


class MyFeed(Page):
    """One's own calendar feed: making its address, making another one, and ending it."""

    route_base = "/calendar-feed"
    default_view = "show"

    @expose("/")
    @open_to_all
    def show(self) -> str:
        """Whether there is one, and what it shows."""
        return self._page()

    @expose("/open", methods=["POST"])
    @open_to_all
    def open(self) -> str:
        """A new address, shown this once; the one before is good no more."""
        with guard.unit_of_work() as session:
            address = invitations.open_feed(session)
        return self._page(address)

    @expose("/close", methods=["POST"])
    @open_to_all
    def close(self) -> Any:
        """Nobody gets anything by the address any more."""
        with guard.unit_of_work() as session:
            invitations.close_feed(session)
        flash(gettext("The address is no longer good."), "success")
        return redirect(url_for("MyFeed.show"))

    def _page(self, address: str | None = None) -> str:
        mine = invitations.feed(guard.session())
        return self.render(
            "invitations/feed.html",
            page_title=gettext("My calendar feed"),
            address=address,
            subscribe=f"webcal://{address.partition('://')[2]}" if address else None,
            since=words(mine.made_at) if mine else None,
        )


class VisitFile(Page):
    """One visit as a file for a calendar."""

    route_base = "/appointments"
    default_view = "file"

    @expose("/<int:appointment_id>/visit.ics")
    @open_to("read", "Appointment")
    def file(self, appointment_id: int) -> Response:
        """When and where; whose it is, what for and with whom are not in it."""
        if appointment_id >= 2**63:
            raise NotFound
        visit = scheduling.show(guard.session(), appointment_id)
        summary = gettext("Appointment at %(branch)s", branch=str(visit.branch))
        response = make_response(invitations.invitation(visit, "PUBLISH", summary))
        response.headers["Content-Type"] = CALENDAR
        response.headers["Content-Disposition"] = "attachment; filename=visit.ics"
        return response


def register(builder: Any) -> None:
    """The answers of patients, and calendars."""
    for view in (FeedFile, MyFeed, VisitFile):
        builder.add_view_no_menu(view)
    # The token in its address is what a forger lacks; a session's would be gone before the patient has answered.
    for answer in (VisitAnswer, OfferAnswer):
        current_app.extensions["csrf"].exempt(builder.add_view_no_menu(answer).blueprint)
