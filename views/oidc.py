"""OpenID Connect: signing in with an account of the hospital's own, on Flask-AppBuilder's OAuth machinery."""

from __future__ import annotations

from typing import Any

import structlog
from authlib.integrations.base_client import OAuthError
from authlib.integrations.flask_client import OAuth
from flask import Flask, current_app, flash, redirect, session, url_for
from flask_appbuilder import expose
from flask_appbuilder.security.decorators import no_cache
from flask_appbuilder.security.sqla.models import User
from flask_appbuilder.security.views import AuthOAuthView
from flask_babel import gettext
from joserfc.errors import JoseError
from requests import RequestException

from app import guard
from app.actor import current
from app.services import credentials
from views.security import enter, enter_by, second_step, way_on

log = structlog.get_logger(__name__)

PROVIDER = "oidc"
SIGNED_WITH = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures only the provider can make: none at all, or one of our own secret, is not among them."""
SECOND_STEPS = {"mfa", "otp", "hwk"}
"""What a provider says (RFC 8176) when it asked for more than a password itself."""
PATIENCE = 5
"""Seconds a provider may take to answer."""
LEEWAY = 30
"""Seconds its clock may be off."""


class WrongProvider(Exception):
    """The discovery document is somebody else's, or says less than is needed."""


def provider(app: Flask) -> Any:
    """The provider the settings name; what it can do is read from its discovery document when it is first used."""
    told = app.config["OIDC"]
    return OAuth(app).register(
        PROVIDER,
        client_id=told["client_id"],
        client_secret=told["client_secret"],
        server_metadata_url=told["issuer"].rstrip("/") + "/.well-known/openid-configuration",
        client_kwargs={
            "scope": "openid email profile",
            "code_challenge_method": "S256",
            "default_timeout": PATIENCE,
        },
    )


class OidcView(AuthOAuthView):
    """There to the provider, and back from it."""

    route_base = ""

    @expose("/login/oidc")
    @no_cache
    def login(self) -> Any:
        """Send the browser to the provider, with a state, a nonce and a challenge only this session can answer."""
        if current().user_id is not None:
            return redirect(way_on())
        session["oidc_next"] = way_on()
        try:
            return self._remote().authorize_redirect(url_for("OidcView.oauth_authorized", _external=True))
        except (OAuthError, RequestException, WrongProvider, RuntimeError, ValueError) as error:
            return self._back(error, gettext("The other side does not answer right now. Please use your password."))

    @expose("/oauth-authorized/oidc")
    @no_cache
    def oauth_authorized(self) -> Any:
        """Back from the provider: its answer is checked, and whom it names is let in if they have an account here."""
        onwards = session.pop("oidc_next", "/")
        told = current_app.config["OIDC"]
        try:
            remote = self._remote()
            token = remote.authorize_access_token(
                claims_options={
                    "iss": {"essential": True, "value": told["issuer"]},
                    "aud": {"essential": True, "value": told["client_id"]},
                    "exp": {"essential": True},
                },
                leeway=LEEWAY,
            )
            claims = token.get("userinfo")
            if not claims:
                raise WrongProvider("no id token")
        except RequestException as error:
            return self._back(error, gettext("The other side does not answer right now. Please use your password."))
        except (OAuthError, JoseError, WrongProvider, RuntimeError, ValueError, KeyError, TypeError) as error:
            return self._back(error, gettext("The sign-in could not be confirmed. Please try again."))
        user = person(claims)
        if user is None:
            enter(None, "110122", outcome=4, reason="NoAccount")
            flash(
                gettext("You have no account here, or it is closed. Ask your administrator to open one."),
                "warning",
            )
            return redirect(url_for("SignInView.login"))
        if SECOND_STEPS.intersection(str(way) for way in claims.get("amr") or ()):
            return enter_by(user, onwards, second_factor=True)
        return second_step(user, onwards) or enter_by(user, onwards)

    def _remote(self) -> Any:
        """The provider, once its discovery document is seen to be its own. Raises WrongProvider."""
        remote = self.appbuilder.sm.oauth_remotes[PROVIDER]
        metadata = remote.load_server_metadata()
        if metadata.get("issuer") != current_app.config["OIDC"]["issuer"]:
            metadata.pop("_loaded_at", None)
            raise WrongProvider("issuer")
        said = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        metadata["id_token_signing_alg_values_supported"] = [name for name in said if name in SIGNED_WITH]
        return remote

    def _back(self, error: Exception, sentence: str) -> Any:
        """To the sign-in page, with a sentence; what was wrong stands in the log, by its kind only."""
        log.warning("oidc.refused", error=type(error).__name__)
        enter(None, "110122", outcome=4, reason=type(error).__name__)
        flash(sentence, "warning")
        return redirect(url_for("SignInView.login"))


def person(claims: Any) -> User | None:
    """The open account somebody has here, by a verified address or by their name with the provider; never a new one.

    None as well where the two name different people.
    """
    db = guard.session()
    said = {"username": claims.get("preferred_username")}
    if claims.get("email_verified") is True:
        said["email"] = claims.get("email")
    found = {
        user.id: user
        for by, name in said.items()
        if isinstance(name, str) and (user := credentials.named(db, name, (by,)))
    }
    if len(found) != 1:
        return None
    (user,) = found.values()
    return user if user.active else None


__all__ = ["PROVIDER", "OidcView", "provider"]
