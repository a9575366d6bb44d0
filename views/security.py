"""Who is at the other end: sign-in, sessions, tokens, and Flask-AppBuilder's security pages under our matrix."""

from __future__ import annotations

import hashlib
import time
from functools import lru_cache
from typing import Any, ClassVar

import structlog
from flask import Flask, Request, current_app, flash, g, redirect, request, session, url_for
from flask_appbuilder import expose, has_access
from flask_appbuilder.security.api import SecurityApi
from flask_appbuilder.security.decorators import no_cache
from flask_appbuilder.security.forms import LoginForm_db
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
from flask_jwt_extended import decode_token
from flask_jwt_extended.exceptions import JWTExtendedException
from flask_login import UserMixin, login_user, logout_user
from flask_session.base import Serializer
from flask_wtf.csrf import CSRFProtect
from jwt import PyJWTError
from msgspec import DecodeError
from msgspec import json as msgjson
from werkzeug.security import generate_password_hash
from werkzeug.wrappers import Response

from app import guard, policy, trail
from app.actor import Actor, Origin, current, nobody
from app.errors import Invalid, NotSignedIn, Refusal
from app.services.accounts import DEMO_ACCOUNTS
from views.base import RecordInterface, RecordView

log = structlog.get_logger(__name__)

OPEN_TO_ALL_SIGNED_IN = {"ResetMyPasswordView", "OpenApi", "SwaggerView"}
"""One's own password, and the description of the API."""


class JsonSerializer(Serializer):
    """Sessions as JSON: a translated flash becomes plain text (Flask-Session's own breaks on it after the commit)."""

    def encode(self, session: Any) -> bytes:
        return msgjson.encode(dict(session), enc_hook=str)

    def decode(self, serialized_data: bytes) -> dict[str, Any]:
        try:
            decoded = msgjson.decode(serialized_data)
        except DecodeError:  # not written by us: nobody's
            return {}
        return decoded if isinstance(decoded, dict) else {}


class CookieOnlyCSRF(CSRFProtect):
    """A token is asked for wherever a browser's cookie signs in; a call that carries its own key cannot be forged."""

    def protect(self, *args: Any, **kwargs: Any) -> None:
        if not bears_token(request):
            super().protect(*args, **kwargs)


def bears_token(asked: Request) -> bool:
    """Whether the request signs in by itself; then its cookie counts for nothing."""
    return asked.headers.get("Authorization", "").startswith("Bearer ")


# ---- binding -----------------------------------------------------------------------------------------------------

UNBOUND = ("static", "appbuilder.static", "health.healthz", "health.readyz")
SIGNING_IN = ("/api/v1/security/login", "/login/")


def bind() -> None:
    """Find out who is asking, and let them act until the answer has left."""
    if request.endpoint in UNBOUND:
        return
    origin = Origin(
        channel="api" if request.path.startswith("/api/") else "web",
        address=request.remote_addr,
        user_agent=(request.headers.get("User-Agent") or "")[:200] or None,
        session_id=_session_digest(),
        request_id=g.request_id,
    )
    g.guard_token = guard.begin(nobody(origin))
    user_id: int | None
    if bears_token(request):
        user_id = _by_token()
        g.pop("_login_user", None)
    else:
        user_id = int(session["_user_id"]) if "_user_id" in session else None
    if user_id is None:
        return
    actor = guard.who_is(user_id, origin)
    if actor is None:
        session.pop("_user_id", None)
        return
    if not bears_token(request) and (chosen := session.get("branch_id")):
        actor = guard.at_branch(actor, chosen)
    guard.become(actor)


def _by_token() -> int:
    """The user a bearer token names. Raises NotSignedIn for a forged, stale or foreign one."""
    encoded = request.headers["Authorization"].removeprefix("Bearer ").strip()
    try:
        claims = _claims(encoded, current_app.config["JWT_SECRET_KEY"])
        if claims["exp"] <= time.time():
            raise NotSignedIn("This token is not valid, or no longer. Please sign in again.")
        if claims.get("type") not in ("access", "refresh"):
            raise NotSignedIn("This token is of another kind.")
        if claims["type"] == "refresh" and request.path != "/api/v1/security/refresh":
            raise NotSignedIn("This token only serves to ask for another one.")
        return int(claims["sub"])
    except (PyJWTError, JWTExtendedException, KeyError, ValueError) as error:
        guard.refuse("sign-in", "User")
        raise NotSignedIn("This token is not valid, or no longer. Please sign in again.") from error


@lru_cache(maxsize=2048)
def _claims(encoded: str, _secret: str) -> dict[str, Any]:
    """What a token says whose signature holds, checked once a token; when it ends is asked every time."""
    return dict(decode_token(encoded))


def _session_digest() -> str | None:
    sid = getattr(session, "sid", None)
    return hashlib.sha256(str(sid).encode()).hexdigest()[:16] if sid and "_user_id" in session else None


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


class SignInView(AuthDBView):
    """The sign-in page; a failed try shows the form again with what was typed and says nothing about why."""

    def render_template(self, template: str, **kwargs: Any) -> str:
        demo = bool(current_app.config["DEMO"])
        accounts = [
            {"username": name, "role_word": policy.SPOKEN[role]} for name, role in DEMO_ACCOUNTS.items() if demo
        ]
        return str(super().render_template(template, demo_accounts=accounts, **kwargs))

    @expose("/login/", methods=["GET", "POST"])
    @no_cache
    def login(self) -> Any:
        """Ask for name and password; on the way back only to pages of our own."""
        onwards = get_safe_redirect(request.args.get("next", ""))
        if current().user_id is not None:
            return redirect(onwards)
        form = LoginForm_db()
        if not form.validate_on_submit():
            return self.render_template(self.login_template, title=self.title, form=form)
        user = self.appbuilder.sm.auth_user_db(form.username.data, form.password.data)
        if user is None:
            flash(gettext("This name and password do not belong together. Please try again."), "warning")
            return self.render_template(self.login_template, title=self.title, form=form), 401
        login_user(user, remember=False)
        return redirect(onwards)

    @expose("/logout/", methods=["GET", "POST"])
    def logout(self) -> Response:
        """End the session here and on the server."""
        actor = current()
        if actor.user_id is not None:
            enter(actor, "110123")
        logout_user()
        session.clear()
        return redirect(url_for("SignInView.login"))


def new_account(_session: Any, *, password: str, conf_password: str, **values: Any) -> User:
    """An account; the password is kept only as a hash."""
    del conf_password
    user = User(**values, password=generate_password_hash(password))
    _session.add(user)
    _session.flush()
    return user


def change_account(_session: Any, user: User, **values: Any) -> None:
    """What an account is called, may do, and whether it is open."""
    for name, value in values.items():
        if getattr(user, name) != value:
            setattr(user, name, value)
    user.changed_by_fk = current().user_id


def new_role(_session: Any, **values: Any) -> Role:
    """A role with the permissions chosen for it."""
    role = Role(**values)
    _session.add(role)
    _session.flush()
    return role


def change_role(_session: Any, role: Role, *, name: str, permissions: list[Any]) -> None:
    """A role's name and permissions. Raises Invalid for renaming one that the product counts on."""
    if role.name != name and role.name in set(policy.Role):
        raise Invalid("The roles that come with Wardbook keep their names.", field="name")
    role.name = name
    role.permissions = permissions


def remove_role(_session: Any, role: Role) -> None:
    """Take a role away that nobody holds. Raises Invalid otherwise."""
    if role.name in set(policy.Role):
        raise Invalid("The roles that come with Wardbook stay.")
    if role.user:
        raise Invalid("People still hold this role. Give them another one first.")
    _session.delete(role)


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
    ]
    add_columns: ClassVar[list[str]] = [
        *["first_name", "last_name", "username", "email", "active", "roles", "password", "conf_password"]
    ]
    edit_columns: ClassVar[list[str]] = ["first_name", "last_name", "username", "email", "active", "roles"]
    base_order = ("username", "asc")
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
        return super().value_of(item, column)

    def actions_for(self, item: User) -> Any:
        if not current().may("update", "User"):
            return []
        href = url_for("SetPasswordView.this_form_get", pk=item.id)
        return [{"label": gettext("Set a new password"), "href": href}]


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


class SetPasswordView(ResetPasswordView):
    """An administrator gives somebody a new password."""

    form_title = lazy_gettext("Set a new password")
    class_permission_name = "User"
    method_permission_name: ClassVar[dict[str, str]] = {"this_form_get": "update", "this_form_post": "update"}
    base_permissions: ClassVar[list[str]] = ["can_update"]

    @expose("/form", methods=["GET"])
    @has_access
    def this_form_get(self) -> Any:
        """The form; whose password it is stands in `pk`."""
        return super().this_form_get()


class MyPasswordView(ResetMyPasswordView):
    """A person changes their own password."""

    form_title = lazy_gettext("Change my password")
    class_permission_name = "ResetMyPasswordView"


class TokenApi(SecurityApi):
    """Signing in for programs: POST /api/v1/security/login gives a token."""


class Security(StockSecurity):
    """Flask-AppBuilder's security with our gate behind it."""

    authdbview = SignInView
    security_api = TokenApi
    userdbmodelview = AccountView
    rolemodelview = RoleView
    resetpasswordview = SetPasswordView
    resetmypasswordview = MyPasswordView

    def register_views(self) -> None:
        """Only the pages we answer for."""
        self.appbuilder.add_api(self.security_api)
        self.auth_view = self.appbuilder.add_view_no_menu(self.authdbview)
        self.user_view = self.appbuilder.add_view_no_menu(self.userdbmodelview)
        for view in (self.resetpasswordview, self.resetmypasswordview, self.rolemodelview):
            self.appbuilder.add_view_no_menu(view)

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
        actor = current()
        return SignedIn(actor) if actor.user_id == int(pk) else None

    def auth_user_db(self, username: str, password: str) -> Any:
        """Check a name and password; a failure is a line in the trail that names an account only if there is one."""
        if username and ("\x00" in username or len(username) > 128):
            username = ""
        user = super().auth_user_db(username, password)
        if user is None:
            known = self.find_user(username=username) if username else None
            enter(None, "110122", outcome=4, reason="NotSignedIn", name=known.username if known else "")
        return user

    def on_user_login(self, user: Any) -> None:
        """A new session id for a new person in the chair, and a line in the trail."""
        actor = guard.who_is(user.id, current().origin)
        if not request.path.startswith("/api/"):
            keep = dict(session)
            current_app.session_interface.regenerate(session)  # type: ignore[attr-defined]
            session.update(keep)
        enter(actor, "110122")

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


def limit_sign_in(app: Flask, security: Any) -> None:
    """Slow down guessing, on the form and on the API alike: per address, kept in Redis."""
    limiter = security.limiter
    rate = app.config["SIGN_IN_RATE"]
    for endpoint in ("SignInView.login", "TokenApi.login"):
        view = app.view_functions[endpoint]
        app.view_functions[endpoint] = limiter.limit(rate, methods=["POST"])(view)


__all__ = ["Security", "bind", "limit_sign_in", "recorded", "unbind"]
