"""Who is at the other end: sign-in, sessions, tokens, and Flask-AppBuilder's security pages under our matrix."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Any, ClassVar

import structlog
from flask import Flask, Request, current_app, flash, g, jsonify, redirect, request, session, url_for
from flask_appbuilder import expose, has_access
from flask_appbuilder.models.filters import BaseFilter
from flask_appbuilder.security.api import SecurityApi
from flask_appbuilder.security.decorators import no_cache
from flask_appbuilder.security.forms import LoginForm_db
from flask_appbuilder.security.schemas import login_post
from flask_appbuilder.security.sqla.manager import SecurityManager as StockSecurity
from flask_appbuilder.security.sqla.models import Role, User
from flask_appbuilder.security.views import (
    AuthDBView,
    ResetMyPasswordView,
    ResetPasswordView,
    RoleModelView,
    UserDBModelView,
)
from flask_appbuilder.utils.base import get_safe_redirect
from flask_babel import gettext, lazy_gettext
from flask_jwt_extended import create_access_token, create_refresh_token, decode_token, get_jwt_identity, jwt_required
from flask_jwt_extended.exceptions import JWTExtendedException
from flask_login import UserMixin, logout_user
from flask_wtf import FlaskForm
from flask_wtf.csrf import CSRFProtect
from jwt import PyJWTError
from marshmallow import ValidationError
from sqlalchemy import select
from werkzeug.wrappers import Response
from wtforms import PasswordField
from wtforms.validators import DataRequired, EqualTo

from app import guard, policy, trail
from app.actor import Actor, Origin, current, nobody
from app.errors import (
    CodeNeeded,
    Invalid,
    NotFound,
    NotRecorded,
    NotSignedIn,
    Refusal,
    SecondFactorOwed,
    TooManyTries,
)
from app.services import accounts, credentials
from app.services.accounts import DEMO_ACCOUNTS
from app.services.roles import check, name_for, sheet_of, to_hold
from models.access import RoleSetting
from views import sessions
from views.base import RecordInterface, RecordView, explain, words

log = structlog.get_logger(__name__)

OPEN_TO_ALL_SIGNED_IN = {"ResetMyPasswordView", "OpenApi", "SwaggerView"}
"""One's own password, and the description of the API."""


class CookieOnlyCSRF(CSRFProtect):
    """A token is asked for wherever a browser's cookie signs in; a call that carries its own key cannot be forged."""

    def protect(self, *args: Any, **kwargs: Any) -> None:
        if not bears_token(request):
            super().protect(*args, **kwargs)


def bears_token(asked: Request) -> bool:
    """Whether the request signs in by itself; then its cookie counts for nothing."""
    return asked.headers.get("Authorization", "").startswith("Bearer ")


# ---- binding -----------------------------------------------------------------------------------------------------

UNBOUND = ("static", "appbuilder.static", "package", "health.healthz", "health.readyz", "health.metrics")
WHILE_OWING = {
    *("SecondFactorPage.show", "SecondFactorPage.begin", "SecondFactorPage.prove"),
    *("SignInView.logout", "MyAccount.awake", "LocaleView.index"),
}
"""What is open to somebody whose role asks for a second step they have not set up."""
CHANGED = lazy_gettext("Your access was changed. Please sign in again.")
LONG_ENOUGH = lazy_gettext("You were signed in for a long time. Please sign in again.")
STALE = "This token is not valid, or no longer. Please sign in again."


def bind() -> Any:
    """Find out who is asking, and let them act until the answer has left."""
    if request.endpoint in UNBOUND:
        return None
    origin = Origin(
        channel="api" if request.path.startswith("/api/") else "web",
        address=where_from(request.remote_addr),
        user_agent=(request.headers.get("User-Agent") or "")[:200] or None,
        session_id=sessions.this() if "_user_id" in session else None,
        request_id=g.request_id,
    )
    g.guard_token = guard.begin(nobody(origin))
    if bears_token(request):
        user_id, generation = _by_token()
        g.pop("_login_user", None)
        actor = guard.who_is(user_id, origin)
        if actor is None or actor.generation != generation:
            guard.refuse("sign-in", "User")
            raise NotSignedIn(STALE)
    elif "_user_id" in session:
        actor, why = by_session(origin)
        if actor is None:
            return end_here(why)
    else:
        return None
    if actor.owes_second_factor and (bears_token(request) or not session.get("second_factor")):
        guard.become(replace(actor, rights=policy.NOTHING))
        return owing()
    guard.become(actor)
    return None


def by_session(origin: Origin) -> tuple[Actor | None, Any]:
    """The actor of this request's session; None and the sentence that says why where the session is over."""
    actor = guard.who_is(int(session["_user_id"]), origin, viewing_as=session.get("view_as"))
    if actor is None or session.get("generation") != actor.generation:
        return None, CHANGED
    if ends_at() <= time.time():
        return None, LONG_ENOUGH
    if actor.second_factor and not session.get("second_factor"):
        return None, CHANGED
    return guard.at_branch(actor, session.get("branch_id")), None


def ends_at() -> float:
    """When this request's session ends in any case, in seconds since the epoch."""
    return float(session.get("since", 0) + current_app.config["SESSION_HOURS"] * 3600)


@lru_cache(maxsize=2048)
def where_from(said: str | None) -> str | None:
    """A network address as the trail keeps it, without the zone or port a proxy may add; None where it is none."""
    text = (said or "").strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ip_address(text.partition("%")[0]))
    except ValueError:
        return None


def owing() -> Any:
    """Lead somebody to what their role asks for. Raises SecondFactorOwed where there is no page to lead to."""
    if request.endpoint in WHILE_OWING and not bears_token(request):
        return None
    page = not request.path.startswith("/api/") and not request.path.endswith(".json") and not bears_token(request)
    if page and request.method in ("GET", "HEAD"):
        return redirect(url_for("SecondFactorPage.show"))
    raise guard.refuse("sign-in", "User", SecondFactorOwed)


def end_here(sentence: Any) -> None:
    """The session of this request is over; the sign-in page will say why."""
    user_id, digest = int(session["_user_id"]), sessions.this()
    session.clear()
    flash(sentence, "warning")
    sessions.renumber()
    sessions.end(user_id, digest)


def admit(user: User, *, second_factor: bool) -> Actor:
    """Complete a sign-in: a session of a new number, listed among the account's own, and a line in the trail.

    `second_factor` says whether a second step was taken.  Raises NotSignedIn where the account was closed meanwhile.
    """
    actor = guard.who_is(user.id, current().origin)
    if actor is None:
        raise NotSignedIn
    credentials.entered(user.id)
    session.clear()
    session.update(
        {
            "_user_id": str(user.id),
            "_fresh": True,
            "generation": actor.generation,
            "since": int(time.time()),
            "second_factor": second_factor,
        }
    )
    sessions.renumber()
    try:
        enter(replace(actor, origin=replace(actor.origin, session_id=sessions.this())), "110122")
    except NotRecorded:
        session.clear()
        raise
    sessions.note(user.id)
    return actor


def stay(user_id: int) -> None:
    """Go on in this session, under another number, after something ended all of the account's."""
    before, actor = sessions.this(), guard.who_is(user_id, current().origin)
    if actor is None:
        raise NotSignedIn
    session["generation"] = actor.generation
    sessions.renumber()
    sessions.end(user_id, before)
    sessions.note(user_id)


def _by_token() -> tuple[int, int]:
    """The user a bearer token names, and the generation of the account. Raises NotSignedIn for any token but ours."""
    encoded = request.headers["Authorization"].removeprefix("Bearer ").strip()
    try:
        claims = _claims(encoded, current_app.config["JWT_SECRET_KEY"])
        if claims["exp"] <= time.time():
            raise NotSignedIn(STALE)
        if claims.get("type") not in ("access", "refresh"):
            raise NotSignedIn("This token is of another kind.")
        if claims["type"] == "refresh" and request.path != "/api/v1/security/refresh":
            raise NotSignedIn("This token only serves to ask for another one.")
        return int(claims["sub"]), int(claims["gen"])
    except (PyJWTError, JWTExtendedException, KeyError, ValueError, TypeError) as error:
        guard.refuse("sign-in", "User")
        raise NotSignedIn(STALE) from error


@lru_cache(maxsize=2048)
def _claims(encoded: str, _secret: str) -> dict[str, Any]:
    """What a token says whose signature holds, checked once a token; when it ends is asked every time."""
    return dict(decode_token(encoded))


def recorded(response: Response) -> Response:
    """Before the answer leaves: what was seen is in the trail, or the answer does not leave."""
    if "guard_token" in g:
        try:
            guard.record()
        except Refusal as refusal:
            from views.errors import answer

            return answer(refusal)
    return response


def unbind(_error: BaseException | None = None) -> None:
    """The actor is done."""
    token = g.pop("guard_token", None)
    if token is not None:
        guard.end(token)


def enter(actor: Actor | None, subtype: str, *, outcome: int = 0, reason: str | None = None, name: str = "") -> None:
    """A line in the trail for signing in or out, well or badly."""
    who = actor or Actor(name=name, roles=(), rights=policy.NOTHING, origin=current().origin)
    trail.the_trail().write(who, [trail.sign_in_event(subtype, outcome, reason)])


# ---- Flask-AppBuilder's security under our matrix ------------------------------------------------------------------


class SignedIn(UserMixin):
    """What Flask-Login and Flask-AppBuilder need of a user, from the actor at hand: no statement of its own."""

    def __init__(self, actor: Actor) -> None:
        self.id = actor.user_id
        self.username = actor.name
        self.roles: list[str] = list(actor.roles)

    def get_full_name(self) -> str:
        """The person's name."""
        return str(self.username)


def way_on() -> str:
    """Where to go after signing in: a page of our own, by an address that can be one."""
    asked = request.args.get("next", "")
    return str(get_safe_redirect(asked if asked.isprintable() else ""))


CODE_SECONDS = 300
"""How long a password is good for while the code is asked for."""


class SignInView(AuthDBView):
    """The sign-in page; a failed try shows the form again with what was typed and says nothing about why."""

    code_template = "access/sign_in_code.html"

    def render_template(self, template: str, **kwargs: Any) -> str:
        demo = bool(current_app.config["DEMO"])
        offered = [{"username": name, "role_word": policy.SPOKEN[role]} for name, role in DEMO_ACCOUNTS.items() if demo]
        oidc = current_app.config["OIDC"]
        return str(
            super().render_template(
                template,
                demo_accounts=offered,
                oidc_name=oidc["name"] if oidc else None,
                next=request.args.get("next", ""),
                nobody_yet=not demo and not someone_administers(),
                idled=request.args.get("ended") == "idle",
                **kwargs,
            )
        )

    @expose("/login/", methods=["GET", "POST"])
    @no_cache
    def login(self) -> Any:
        """Ask for name and password; on the way back only to pages of our own."""
        onwards = way_on()
        if current().user_id is not None:
            return redirect(onwards)
        form = LoginForm_db()
        if not form.validate_on_submit():
            return self.render_template(self.login_template, title=self.title, form=form)
        try:
            user = credentials.with_password(guard.session(), form.username.data, form.password.data)
        except (NotSignedIn, TooManyTries) as refusal:
            refused_at_the_door(form.username.data, refusal)
            return self._again(self.login_template, refusal, form=form)
        return second_step(user, onwards) or enter_by(user, onwards)

    @expose("/login/code", methods=["GET", "POST"])
    @no_cache
    def code(self) -> Any:
        """Ask for the code, for as long as the password given before is good."""
        waiting: dict[str, Any] = session.get("waiting") or {}
        actor = guard.who_is(waiting["user_id"], current().origin) if waiting else None
        if (
            actor is None
            or actor.generation != waiting["generation"]
            or waiting["since"] + CODE_SECONDS < time.time()
            or current().user_id is not None
        ):
            if session.pop("waiting", None):
                flash(gettext("That took too long. Please begin again."), "warning")
            return redirect(url_for("SignInView.login"))
        if request.method != "POST":
            return self.render_template(self.code_template, title=self.title)
        user = guard.session().get(User, actor.user_id)
        assert user is not None
        try:
            credentials.with_code(user.id, request.form.get("code", ""))
        except (NotSignedIn, TooManyTries) as refusal:
            refused_at_the_door(user.username, refusal)
            return self._again(self.code_template, refusal)
        return enter_by(user, waiting["next"], second_factor=True)

    def _again(self, template: str, refusal: Refusal, **more: Any) -> Any:
        flash(gettext(str(refusal)), "warning")
        headers = {"Retry-After": str(refusal.seconds)} if isinstance(refusal, TooManyTries) else {}
        return self.render_template(template, title=self.title, **more), refusal.status, headers

    @expose("/logout/", methods=["GET", "POST"])
    def logout(self) -> Response:
        """End the session here and on the server."""
        actor = current()
        if actor.user_id is not None:
            enter(actor, "110123")
            sessions.end(actor.user_id, sessions.this())
        logout_user()
        session.clear()
        return redirect(url_for("SignInView.login"))


def second_step(user: User, onwards: str) -> Any:
    """Where an account signs in with a code as well: remember that its password held, and ask for the code."""
    actor = guard.who_is(user.id, current().origin)
    if actor is None or not actor.second_factor:
        return None
    session.clear()
    session["waiting"] = {
        "user_id": user.id,
        "generation": actor.generation,
        "since": int(time.time()),
        "next": onwards,
    }
    sessions.renumber()
    return redirect(url_for("SignInView.code"))


def enter_by(user: User, onwards: str, *, second_factor: bool = False) -> Response:
    """Admit somebody and lead them to where they were going."""
    admit(user, second_factor=second_factor)
    return redirect(onwards)


def refused_at_the_door(name: str, refusal: Refusal) -> None:
    """A line in the trail, which names an account only if there is one; a door that is shut is told once."""
    if isinstance(refusal, TooManyTries) and not refusal.first:
        return
    known = credentials.named(guard.session(), name)
    enter(None, "110122", outcome=4, reason=type(refusal).__name__, name=known.username if known else "")


_administered = False


def someone_administers() -> bool:
    """Whether there is an administrator; once there is, the database lets the last one never go."""
    global _administered
    _administered = _administered or bool(accounts.administrators(guard.session()))
    return _administered


def new_account(_session: Any, *, password: str, conf_password: str, roles: Any, **values: Any) -> User:
    """An account; the password is kept only as a hash. Raises Invalid and Conflict."""
    del conf_password
    return accounts.open_account(_session, password=password, roles=to_hold(_session, roles), **values)


def change_account(_session: Any, user: User, **values: Any) -> None:
    """What an account is called, may do, and whether it is open. Raises Conflict."""
    accounts.unlike_others(_session, values["username"], values["email"], but=user.id)
    values["roles"] = to_hold(_session, values["roles"], held=user.roles)
    for name, value in values.items():
        if getattr(user, name) != value:
            setattr(user, name, value)
    user.changed_by_fk = current().user_id


def new_role(_session: Any, **values: Any) -> Role:
    """A role with the permissions chosen for it. Raises Invalid, Conflict and Separated."""
    role = Role(**values | {"name": name_for(_session, values["name"])})
    _session.add(role)
    _session.flush()
    check(sheet_of(_session, role.id))
    return role


def change_role(_session: Any, role: Role, *, name: str, permissions: list[Any]) -> None:
    """A role's name and permissions. Raises Separated, and Invalid for renaming one that the product counts on."""
    if role.name != name and role.name in set(policy.Role):
        raise Invalid("The roles that come with Wardbook keep their names.", field="name")
    if role.name != name:
        role.name = name_for(_session, name)
    role.permissions = permissions
    check(sheet_of(_session, role.id))


def remove_role(_session: Any, role: Role) -> None:
    """Take a role away that nobody holds. Raises Invalid otherwise."""
    if role.name in set(policy.Role):
        raise Invalid("The roles that come with Wardbook stay.")
    if role.user:
        raise Invalid("People still hold this role. Give them another one first.")
    _session.delete(role)


class InUse(BaseFilter):
    """Roles that are not retired."""

    name = lazy_gettext("In use")
    arg_name = "in_use"

    def apply(self, query: Any, _value: Any) -> Any:
        retired = select(RoleSetting.role_id).where(RoleSetting.retired_at.is_not(None))
        return query.filter(Role.id.not_in(retired))


class AccountView(RecordView, UserDBModelView):
    """Flask-AppBuilder's users, under our matrix and in units of work."""

    datamodel = RecordInterface(User)
    route_base = "/users"
    create = new_account
    update = change_account
    list_title = lazy_gettext("Accounts")
    label_columns: ClassVar[dict[str, Any]] = {
        "first_name": lazy_gettext("First name"),
        "last_name": lazy_gettext("Last name"),
        "username": lazy_gettext("User name"),
        "email": lazy_gettext("E-mail"),
        "active": lazy_gettext("May sign in"),
        "roles": lazy_gettext("Roles"),
        "password": lazy_gettext("Password"),
        "conf_password": lazy_gettext("The password again"),
        "last_login": lazy_gettext("Last signed in"),
        "login_count": lazy_gettext("Times signed in"),
        "fail_login_count": lazy_gettext("Failed tries since"),
        "created_on": lazy_gettext("Opened"),
        "changed_on": lazy_gettext("Last changed"),
        "password_changed_at": lazy_gettext("Password changed"),
        "second_factor": lazy_gettext("Second step"),
        "sessions": lazy_gettext("Signed in now"),
        "locked": lazy_gettext("Locked"),
    }
    description_columns: ClassVar[dict[str, Any]] = {
        "active": lazy_gettext("An account is closed, never removed."),
        "roles": lazy_gettext("What the person may do; at least one."),
    }
    intro = lazy_gettext("Everybody who can sign in.")
    add_title = lazy_gettext("New account")
    add_label = lazy_gettext("New account")
    list_columns: ClassVar[list[str]] = [
        "username",
        "first_name",
        "last_name",
        "email",
        "active",
        "roles",
        "last_login",
    ]
    search_columns: ClassVar[list[str]] = ["username", "first_name", "last_name", "email", "active", "roles"]
    order_columns: ClassVar[list[str]] = ["username", "first_name", "last_name", "email", "last_login"]
    show_fieldsets: ClassVar[list[Any]] = [
        (lazy_gettext("Account"), {"fields": ["username", "active", "roles", "email", "first_name", "last_name"]}),
        (
            lazy_gettext("Use"),
            {"fields": ["last_login", "login_count", "fail_login_count", "created_on", "changed_on"]},
        ),
        (lazy_gettext("Signing in"), {"fields": ["password_changed_at", "second_factor", "sessions", "locked"]}),
    ]
    add_columns: ClassVar[list[str]] = [
        *["first_name", "last_name", "username", "email", "active", "roles", "password", "conf_password"]
    ]
    edit_columns: ClassVar[list[str]] = ["first_name", "last_name", "username", "email", "active", "roles"]
    base_order = ("username", "asc")
    validators_columns: ClassVar[dict[str, Any]] = {
        "roles": [DataRequired(lazy_gettext("Please choose what this person may do."))]
    }
    add_form_query_rel_fields: ClassVar[dict[str, Any]] = {"roles": [["id", InUse, None]]}
    edit_form_query_rel_fields: ClassVar[dict[str, Any]] = {"roles": [["id", InUse, None]]}
    exclude_route_methods: ClassVar[set[str]] = {
        *["action", "action_post", "download", "userinfo", "userinfoedit", "resetmypassword", "resetpasswords"]
    }
    actions: ClassVar[dict[str, Any]] = {}

    list = RecordView.list
    show = RecordView.show

    def title_of(self, item: User) -> str:
        return f"{item.first_name} {item.last_name}"

    def value_of(self, item: User, column: str) -> Any:
        if column == "roles":
            return ", ".join(policy.SPOKEN.get(role.name, role.name) for role in item.roles) or "—"
        if column == "locked":
            seconds = credentials.locked_for(item.id)
            minutes = -(-seconds // 60)
            return gettext("Yes, after too many tries, for %(n)s minutes", n=minutes) if seconds else words(False)
        if column == "sessions":
            return self._sitting(item)
        if column in ("second_factor", "password_changed_at"):
            held = credentials.state_of(guard.session(), item.id)
            if column == "password_changed_at":
                return words(held.password_changed_at)
            since = held.totp_confirmed_at
            return gettext("Since %(day)s", day=words(since)) if since else gettext("Not set up")
        return super().value_of(item, column)

    @staticmethod
    def _sitting(item: User) -> str:
        sittings = sessions.of(item.id)
        return "; ".join(f"{sitting.browser} ({sitting.address})" for sitting in sittings) or str(words(""))

    def actions_for(self, item: User) -> Any:
        if not current().may("update", "User"):
            return []
        if item.id == current().user_id:
            return [{"label": gettext("My account"), "href": url_for("MyAccount.show")}]
        actions = [(gettext("Set a new password"), url_for("SetPasswordView.this_form_get", pk=item.id))]
        if credentials.locked_for(item.id):
            actions.append((gettext("Unlock"), url_for("UnlockAccount.ask", pk=item.id)))
        if credentials.state_of(guard.session(), item.id).totp_secret:
            actions.append((gettext("Reset the second step"), url_for("ResetSecondFactor.ask", pk=item.id)))
        actions.append((gettext("Sign out everywhere"), url_for("EndSessions.ask", pk=item.id)))
        return [{"label": label, "href": href} for label, href in actions]


class RoleView(RecordView, RoleModelView):
    """Flask-AppBuilder's roles, under our matrix and in units of work."""

    datamodel = RecordInterface(Role)
    route_base = "/roles"
    create = new_role
    update = change_role
    remove = remove_role
    list_title = lazy_gettext("Roles")
    intro = lazy_gettext("What people may do. A change counts from everybody's next click.")
    add_title = lazy_gettext("New role")
    add_label = lazy_gettext("New role")
    list_columns: ClassVar[list[str]] = ["name"]
    show_columns: ClassVar[list[str]] = ["name", "permissions"]
    search_columns: ClassVar[list[str]] = ["name"]
    base_order = ("name", "asc")
    actions: ClassVar[dict[str, Any]] = {}
    exclude_route_methods: ClassVar[set[str]] = {"action", "action_post", "download", "copy_role"}

    def title_of(self, item: Role) -> str:
        return str(policy.SPOKEN.get(item.name, item.name))

    def value_of(self, item: Role, column: str) -> Any:
        if column == "name":
            return str(policy.SPOKEN.get(item.name, item.name))
        return super().value_of(item, column)


RULE = lazy_gettext("12 characters or more. A few words that have nothing to do with each other do well.")


class NewPasswordForm(FlaskForm):
    """A password, twice."""

    password = PasswordField(
        lazy_gettext("New password"),
        description=RULE,
        validators=[DataRequired()],
        render_kw={"autocomplete": "new-password"},
    )
    conf_password = PasswordField(
        lazy_gettext("The new password again"),
        validators=[EqualTo("password", message=lazy_gettext("These two are not the same."))],
        render_kw={"autocomplete": "new-password"},
    )


class OwnPasswordForm(FlaskForm):
    """One's password, and another one twice."""

    current = PasswordField(
        lazy_gettext("The password you have"),
        validators=[DataRequired()],
        render_kw={"autocomplete": "current-password"},
    )
    password = PasswordField(
        lazy_gettext("New password"),
        description=RULE,
        validators=[DataRequired()],
        render_kw={"autocomplete": "new-password"},
    )
    conf_password = PasswordField(
        lazy_gettext("The new password again"),
        validators=[EqualTo("password", message=lazy_gettext("These two are not the same."))],
        render_kw={"autocomplete": "new-password"},
    )


class PasswordPage(ABC):
    """Flask-AppBuilder's pages for a new password, with the form kept and the reason said where it is refused."""

    form: ClassVar[type[FlaskForm]]
    form_title: Any

    @abstractmethod
    def change(self, db: Any, form: Any) -> str:
        """Call the service; gives where to go."""

    @abstractmethod
    def _cancel(self) -> str: ...

    def _show(self, form: Any, sentence: str | None = None) -> str:
        return str(
            self.render_template(  # type: ignore[attr-defined]
                "form.html",
                title=self.form_title,
                form=form,
                refusal=sentence,
                cancel_href=self._cancel(),
                action_label=gettext("Change the password"),
            )
        )

    @expose("/form", methods=["GET"])
    @has_access
    def this_form_get(self) -> Any:
        """The form; whose password it is stands in `pk`, where it is not one's own."""
        return self._show(self.form())

    @expose("/form", methods=["POST"])
    @has_access
    def this_form_post(self) -> Any:
        """Change it, or say why not."""
        form = self.form()
        if not form.validate():
            return self._show(form, gettext("Please check the fields marked below.")), 422
        try:
            with guard.unit_of_work() as db:
                onwards = self.change(db, form)
        except Refusal as refusal:
            return self._show(form, explain(refusal, form)), refusal.status
        return redirect(self.done(onwards))

    def done(self, onwards: str) -> str:
        """What is to happen when it is certain."""
        return onwards


class SetPasswordView(PasswordPage, ResetPasswordView):
    """An administrator gives somebody a new password."""

    form = NewPasswordForm
    form_title = lazy_gettext("Set a new password")
    class_permission_name = "User"
    method_permission_name: ClassVar[dict[str, str]] = {"this_form_get": "update", "this_form_post": "update"}
    base_permissions: ClassVar[list[str]] = ["can_update"]

    def _whose(self) -> int:
        said = request.args.get("pk", "")
        if not said.isdecimal() or len(said) > 9:
            raise NotFound
        return int(said)

    def _cancel(self) -> str:
        return url_for("AccountView.show", pk=self._whose())

    def change(self, db: Any, form: Any) -> str:
        accounts.give_password(db, self._whose(), form.password.data)
        return self._cancel()

    def done(self, onwards: str) -> str:
        sessions.end_all(self._whose())
        flash(gettext("The password was changed. They are signed out everywhere."), "success")
        return onwards


class MyPasswordView(PasswordPage, ResetMyPasswordView):
    """A person changes their own password."""

    form = OwnPasswordForm
    form_title = lazy_gettext("Change my password")
    class_permission_name = "ResetMyPasswordView"

    def _cancel(self) -> str:
        return url_for("MyAccount.show")

    def change(self, db: Any, form: Any) -> str:
        accounts.change_own_password(db, form.current.data, form.password.data)
        return self._cancel()

    def done(self, onwards: str) -> str:
        user_id = current().user_id
        assert user_id is not None
        sessions.end_all(user_id, but=sessions.this())
        if not bears_token(request):
            stay(user_id)
        flash(gettext("Your password was changed. Everywhere else you are signed out."), "success")
        return onwards


class TokenApi(SecurityApi):
    """Signing in for programs: POST /api/v1/security/login gives a token."""

    @expose("/login", methods=["POST"])
    def login(self) -> Any:
        """A token for a name and password
        ---
        post:
          description: >-
            Signs in and gives a token, which ends with the account's sessions. An account with a second step
            sends the code as well.
          requestBody:
            required: true
            content:
              application/json:
                schema:
                  type: object
                  required: [username, password, provider]
                  properties:
                    username: {type: string, example: doctor}
                    password: {type: string}
                    provider: {type: string, enum: [db]}
                    code: {type: string, description: The code of the moment or a recovery code}
                    refresh: {type: boolean, description: Whether to give a refresh token as well}
          responses:
            200:
              description: Signed in
              content:
                application/json:
                  schema:
                    type: object
                    properties:
                      access_token: {type: string}
                      refresh_token: {type: string}
            400:
              $ref: '#/components/responses/400'
            401:
              $ref: '#/components/responses/401'
            403:
              description: A role of the account asks for a second step that is not set up
            429:
              description: Too many tries; Retry-After says for how many seconds nothing is looked at
        """
        body = request.get_json(silent=True)
        if not isinstance(body, dict):
            return self.response_400(message="Request payload is not JSON")
        body = {key: credentials.speakable(told) if isinstance(told, str) else told for key, told in body.items()}
        code = body.pop("code", None)
        try:
            told = login_post.load(body)
        except ValidationError as error:
            return self.response_400(message=error.messages)
        if told["provider"] != "db" or not (code is None or isinstance(code, str)):
            return self.response_400(message="Accounts are signed in to with provider db, and a code is a text.")
        try:
            user = credentials.with_password(guard.session(), told["username"], told["password"])
            actor = guard.who_is(user.id, current().origin)
            if actor is None:
                raise NotSignedIn
            if actor.second_factor and not code:
                raise CodeNeeded
            if actor.second_factor:
                credentials.with_code(user.id, code or "")
        except (NotSignedIn, TooManyTries) as refusal:
            refused_at_the_door(told["username"], refusal)
            raise
        if actor.owes_second_factor:
            refused_at_the_door(told["username"], SecondFactorOwed())
            raise SecondFactorOwed
        credentials.entered(user.id)
        enter(actor, "110122")
        claims = {"gen": actor.generation}
        tokens = {"access_token": create_access_token(str(user.id), fresh=True, additional_claims=claims)}
        if told.get("refresh"):
            tokens["refresh_token"] = create_refresh_token(str(user.id), additional_claims=claims)
        return jsonify(tokens)

    @expose("/refresh", methods=["POST"])
    @jwt_required(refresh=True)
    def refresh(self) -> Any:
        """Another token for a refresh token
        ---
        post:
          description: Gives another access token, until the account's sessions have ended
          responses:
            200:
              description: Refreshed
              content:
                application/json:
                  schema:
                    type: object
                    properties:
                      access_token: {type: string}
            401:
              $ref: '#/components/responses/401'
          security:
            - jwt_refresh: []
        """
        claims = {"gen": current().generation}
        return jsonify(access_token=create_access_token(get_jwt_identity(), fresh=False, additional_claims=claims))


class Security(StockSecurity):
    """Flask-AppBuilder's security with our gate behind it."""

    authdbview = SignInView
    security_api = TokenApi
    userdbmodelview = AccountView
    rolemodelview = RoleView
    resetpasswordview = SetPasswordView
    resetmypasswordview = MyPasswordView

    def __init__(self, appbuilder: Any) -> None:
        super().__init__(appbuilder)
        self.oauth_remotes: dict[str, Any] = {}
        if current_app.config["OIDC"]:
            from views import oidc

            self.oauth_remotes[oidc.PROVIDER] = oidc.provider(current_app._get_current_object())  # type: ignore[attr-defined]

    def register_views(self) -> None:
        """Only the pages we answer for, each by our own door to its table."""
        self.userdbmodelview.datamodel, self.rolemodelview.datamodel = RecordInterface(User), RecordInterface(Role)
        self.appbuilder.add_api(self.security_api)
        self.auth_view = self.appbuilder.add_view_no_menu(self.authdbview)
        self.user_view = self.appbuilder.add_view_no_menu(self.userdbmodelview)
        for view in (self.resetpasswordview, self.resetmypasswordview, self.rolemodelview):
            self.appbuilder.add_view_no_menu(view)
        if self.oauth_remotes:
            from views.oidc import OidcView

            self.appbuilder.add_view_no_menu(OidcView)

    def create_jwt_manager(self, app: Flask) -> Any:
        """Tokens that are missing, stale or forged are answered like every other refusal."""
        from views.errors import answer

        tokens = super().create_jwt_manager(app)
        for loader in (tokens.unauthorized_loader, tokens.invalid_token_loader):
            loader(lambda _reason: answer(NotSignedIn()))
        tokens.expired_token_loader(lambda _header, _claims: answer(NotSignedIn()))
        return tokens

    def has_access(self, permission_name: str, view_name: str) -> bool:
        """Ask the actor's rights: no statement, and one matrix for every channel. A refusal is noted for the trail."""
        actor = current()
        if view_name in OPEN_TO_ALL_SIGNED_IN:
            return actor.user_id is not None
        action = permission_name.removeprefix(guard.PREFIX)
        if actor.may(action, view_name):
            return True
        guard.refuse(action, view_name)
        return False

    def is_item_public(self, permission_name: str, view_name: str) -> bool:
        """Nothing is."""
        return False

    def get_user_menu_access(self, menu_names: list[str] | None = None) -> set[str]:
        """Our navigation asks the matrix itself."""
        return set()

    def load_user(self, pk: int) -> Any:
        """The signed-in user from the actor already bound; anybody else is nobody."""
        actor = current_actor_or_none()
        return SignedIn(actor) if actor is not None and actor.user_id == int(pk) else None

    def auth_user_db(self, username: str, password: str) -> Any:
        """Check a name and password the one way there is. Raises NotSignedIn and TooManyTries."""
        return credentials.with_password(guard.session(), username, password)

    def reset_password(self, userid: Any, password: str) -> None:
        """Give an account another password, by the rules. Raises Invalid and Forbidden."""
        with guard.unit_of_work() as db:
            accounts.give_password(db, int(userid), password)

    @staticmethod
    def before_request() -> None:
        """Let Flask-AppBuilder's own pages find the user where they look for it."""
        actor = current_actor_or_none()
        g.user = SignedIn(actor) if actor and actor.user_id is not None else NOBODY


class _Anonymous:
    is_authenticated = False
    is_active = False
    is_anonymous = True
    id = None
    roles: ClassVar[list[Any]] = []

    def get_id(self) -> None:
        return None


NOBODY = _Anonymous()


def current_actor_or_none() -> Actor | None:
    """The actor at work, or None where the request is bound to nobody, as for static files."""
    from app.actor import acting

    at_work = acting()
    return at_work.actor if at_work else None


__all__ = ["Security", "admit", "bears_token", "bind", "recorded", "stay", "unbind"]
