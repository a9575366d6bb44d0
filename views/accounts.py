"""A person's own account: who am I here, where do I sit, how and where am I signed in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar

import qrcode
from flask import flash, redirect, request, session, url_for
from flask_appbuilder import expose
from flask_appbuilder.security.sqla.models import User
from flask_babel import gettext, lazy_gettext
from flask_wtf import FlaskForm
from werkzeug.wrappers import Response
from wtforms import Form, StringField
from wtforms.validators import DataRequired

from app import guard
from app.actor import current
from app.errors import Forbidden, NotFound, Refusal
from app.services import accounts, credentials
from views import sessions
from views.base import CommandView, Page, open_to_all, words
from views.security import bears_token, enter, stay


class MyAccount(Page):
    """What a person may know of their own account."""

    route_base = "/me"
    default_view = "show"

    @expose("/")
    @open_to_all
    def show(self) -> str:
        """Name, roles, branch, password, second step, and where one is signed in."""
        return self.render(
            "account.html",
            password_href=url_for("MyPasswordView.this_form_get"),
            second_factor=credentials.second_factor(guard.session()),
            sittings=[
                {
                    "digest": sitting.digest,
                    "browser": sitting.browser,
                    "address": sitting.address,
                    "since": words(datetime.fromtimestamp(sitting.since, UTC)),
                    "used": words(datetime.fromtimestamp(sitting.used, UTC)),
                    "here": sitting.here,
                }
                for sitting in sessions.of(_me())
            ],
        )

    @expose("/awake")
    @open_to_all
    def awake(self) -> Response:
        """Somebody is still there: the session goes on."""
        return Response(status=204)

    @expose("/sessions/end", methods=["POST"])
    @open_to_all
    def end(self) -> Any:
        """End one of one's own sessions, the one named by `session`."""
        digest = request.form.get("session", "")
        if digest == sessions.this():
            return redirect(url_for("SignInView.logout"), code=307)
        if sessions.end(_me(), digest):
            enter(current(), "110123", reason="SessionEnded")
            flash(gettext("That session was ended."), "success")
        else:
            flash(gettext("That session had ended already."), "info")
        return redirect(url_for("MyAccount.show"))

    @expose("/sessions/end-others", methods=["POST"])
    @open_to_all
    def end_others(self) -> Any:
        """End every session of one's own but this one."""
        if sessions.end_all(_me(), but=sessions.this()):
            enter(current(), "110123", reason="SessionsEnded")
        flash(gettext("You are signed out everywhere else."), "success")
        return redirect(url_for("MyAccount.show"))


def _me() -> int:
    user_id = current().user_id
    assert user_id is not None
    return user_id


class SecondFactorPage(Page):
    """Setting up the second step, making new recovery codes, and turning it off."""

    route_base = "/me/second-factor"
    default_view = "show"

    @expose("/")
    @open_to_all
    def show(self) -> str:
        """How it stands, and what can be done next."""
        return self._page()

    @expose("/begin", methods=["POST"])
    @open_to_all
    def begin(self) -> Any:
        """Make a new secret, to be proved by a code."""
        with guard.unit_of_work() as db:
            credentials.begin_second_factor(db)
        session["enrolling"] = True
        return redirect(url_for("SecondFactorPage.show"))

    @expose("/prove", methods=["POST"])
    @open_to_all
    def prove(self) -> Any:
        """A first code; from here on one is asked for at sign-in. Shows the recovery codes, this once."""
        try:
            with guard.unit_of_work() as db:
                codes = credentials.prove_second_factor(db, request.form.get("code", ""))
        except Refusal as refusal:
            return self._page(refusal), refusal.status
        self._proved(True)
        if not bears_token(request):
            user_id = current().user_id
            assert user_id is not None
            session.pop("enrolling", None)
            sessions.end_all(user_id, but=sessions.this())
            stay(user_id)
        return self._codes(codes, first=True)

    @expose("/codes", methods=["POST"])
    @open_to_all
    def codes(self) -> Any:
        """New recovery codes in place of the old ones; asks for the password."""
        try:
            with guard.unit_of_work() as db:
                codes = credentials.renew_recovery_codes(db, request.form.get("current", ""))
        except Refusal as refusal:
            return self._page(refusal, "codes"), refusal.status
        return self._codes(codes, first=False)

    @expose("/off", methods=["POST"])
    @open_to_all
    def off(self) -> Any:
        """Turn it off; asks for the password."""
        try:
            with guard.unit_of_work() as db:
                credentials.turn_off_second_factor(db, request.form.get("current", ""))
        except Refusal as refusal:
            return self._page(refusal, "off"), refusal.status
        self._proved(False)
        flash(gettext("The second step is off. You sign in with your password only."), "success")
        return redirect(url_for("MyAccount.show"))

    @staticmethod
    def _proved(proved: bool) -> None:
        """Note it in the session of whoever did it; a token may come with somebody else's cookie."""
        if not bears_token(request):
            session["second_factor"] = proved

    def _codes(self, codes: list[str], *, first: bool) -> str:
        return self.render("access/sign_in_codes.html", page_title=gettext("Recovery codes"), codes=codes, first=first)

    def _page(self, refusal: Refusal | None = None, asked: str = "prove") -> str:
        db, actor = guard.session(), current()
        step = credentials.second_factor(db)
        if not session.get("enrolling"):  # begun in another session, and shown in that one only
            step = replace(step, secret=None)
        user = db.get(User, actor.user_id)
        assert user is not None
        return self.render(
            "access/sign_in_second_factor.html",
            page_title=gettext("Second step"),
            step=step,
            owed=actor.owes_second_factor,
            demanded=credentials.demanded(db),
            secret=" ".join(step.secret[at : at + 4] for at in range(0, len(step.secret), 4)) if step.secret else "",
            square=square(credentials.address_of(step.secret, user.username)) if step.secret else None,
            refusal=gettext(str(refusal)) if refusal else None,
            asked=asked if refusal else None,
        )


def square(text: str) -> dict[str, Any]:
    """A QR code as the path of an SVG: its width in modules, and one stroke a run of dark ones."""
    code = qrcode.QRCode(error_correction=qrcode.constants.ERROR_CORRECT_M, border=4)
    code.add_data(text)
    rows = code.get_matrix()
    strokes = []
    for y, row in enumerate(rows):
        start = None
        for x, dark in enumerate([*row, False]):
            if dark and start is None:
                start = x
            elif not dark and start is not None:
                strokes.append(f"M{start} {y}h{x - start}v1h-{x - start}z")
                start = None
    return {"size": len(rows), "path": "".join(strokes)}


class BranchChoice(Page):
    """Sitting down at another of one's branches."""

    route_base = "/branch"
    default_view = "choose"

    @expose("/", methods=["POST"])
    @open_to_all
    def choose(self) -> Any:
        """From here on the person works at this branch. Raises Forbidden for one they do not work at."""
        chosen = request.form.get("branch_id", "")
        if not chosen.isdecimal() or int(chosen) not in current().branch_ids:
            raise guard.refuse("read", "Branch", Forbidden)
        session["branch_id"] = int(chosen)
        return redirect(url_for("Home.index"))


# ---- what an administrator does to somebody's signing in -------------------------------------------------------------


class ReasonForm(FlaskForm):
    """Why."""

    reason = StringField(
        lazy_gettext("Reason"),
        description=lazy_gettext("In a few words; it is kept with the change."),
        validators=[DataRequired()],
    )


def number(pk: str) -> int:
    """The number of an account from an address. Raises NotFound."""
    if not pk.isdecimal() or len(pk) > 9:
        raise NotFound
    return int(pk)


class OnAccount(CommandView):
    """One deed on somebody's account, with a reason."""

    route_base = "/users"
    form_class = ReasonForm
    policy = ("update", "User")
    told: ClassVar[Any]
    intro: ClassVar[Any]

    def prefill(self, **_route: Any) -> Form:
        return self.form_class()

    def after(self, result: Any, **route: Any) -> str:
        del result
        flash(str(self.told), "success")
        return url_for("AccountView.show", pk=route["pk"])

    def _page(self, form: Form, sentence: str | None, refusal: Refusal | None = None, **route: Any) -> str:
        del refusal
        user = guard.session().get(User, route["pk"])
        if user is None:
            raise NotFound
        return self.render(
            "form.html",
            title=f"{self.title}: {user.first_name} {user.last_name}",
            intro=self.intro,
            form=form,
            action_label=self.action_label,
            cancel_href=url_for("AccountView.show", pk=user.id),
            refusal=sentence,
        )


class UnlockAccount(OnAccount):
    """Letting somebody try again at once."""

    title = lazy_gettext("Unlock")
    action_label = lazy_gettext("Unlock")
    intro = lazy_gettext("There were too many tries. Make sure that it was the person themselves before you unlock.")
    told = lazy_gettext("They can try again now.")

    @expose("/<pk>/unlock", methods=["GET", "POST"])
    def ask(self, pk: str) -> Any:
        """The form."""
        return super().ask(pk=number(pk))

    def carry_out(self, session: Any, form: Form, **route: Any) -> None:
        accounts.unlock(session, route["pk"], reason=form["reason"].data)


class EndSessions(OnAccount):
    """Signing somebody out everywhere."""

    title = lazy_gettext("Sign out everywhere")
    action_label = lazy_gettext("Sign them out")
    intro = lazy_gettext("Every browser and program that is signed in to this account has to sign in again.")
    told = lazy_gettext("They are signed out everywhere.")

    @expose("/<pk>/end-sessions", methods=["GET", "POST"])
    def ask(self, pk: str) -> Any:
        """The form."""
        return super().ask(pk=number(pk))

    def carry_out(self, session: Any, form: Form, **route: Any) -> None:
        accounts.end_sessions(session, route["pk"], reason=form["reason"].data)

    def after(self, result: Any, **route: Any) -> str:
        sessions.end_all(route["pk"])
        return super().after(result, **route)


class ResetSecondFactor(OnAccount):
    """Taking the second step from somebody who has lost it."""

    title = lazy_gettext("Reset the second step")
    action_label = lazy_gettext("Reset it")
    intro = lazy_gettext(
        "For somebody who has lost their phone and their recovery codes. Make sure that it is the person themselves: "
        "until they set it up again, their password is enough. They are signed out everywhere."
    )
    told = lazy_gettext("The second step was reset. They are signed out everywhere.")

    @expose("/<pk>/reset-second-factor", methods=["GET", "POST"])
    def ask(self, pk: str) -> Any:
        """The form."""
        return super().ask(pk=number(pk))

    def carry_out(self, session: Any, form: Form, **route: Any) -> None:
        accounts.reset_second_factor(session, route["pk"], reason=form["reason"].data)

    def after(self, result: Any, **route: Any) -> str:
        sessions.end_all(route["pk"])
        return super().after(result, **route)


def register(builder: Any) -> None:
    """One's own account, and what an administrator does to another one's."""
    for view in (MyAccount, SecondFactorPage, BranchChoice, UnlockAccount, EndSessions, ResetSecondFactor):
        builder.add_view_no_menu(view)
