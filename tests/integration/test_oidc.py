"""Signing in with an account of the hospital's own: a real provider on this machine, honest or not."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyotp
import pytest
from flask import Flask
from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey
from sqlalchemy import text

from app import guard
from ops.servers import Servers
from tests.conftest import Browser, Settings, TrailLines, csrf_of
from tests.factories import PASSWORD, Hospital

CLIENT, SECRET = "wardbook-here", "the secret both sides know"
KEY = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": "RS256"})
STRANGE = RSAKey.generate_key(2048, {"kid": "k1", "use": "sig", "alg": "RS256"})


@dataclass
class Provider:
    """What the provider will say, and what it was asked."""

    address: str = ""
    claims: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    key: Any = field(default_factory=lambda: KEY)
    algorithm: str = "RS256"
    token: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    nonce: str = ""
    challenge: str = ""
    broken: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "issuer": self.address,
            "authorization_endpoint": f"{self.address}/authorize",
            "token_endpoint": f"{self.address}/token",
            "jwks_uri": f"{self.address}/keys",
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            "code_challenge_methods_supported": ["S256"],
            **self.metadata,
        }

    def id_token(self) -> str:
        moment = int(time.time())
        claims = {
            "iss": self.address,
            "aud": CLIENT,
            "sub": "248289761001",
            "iat": moment,
            "exp": moment + 300,
            "nonce": self.nonce,
            "email": "nurse@example.org",
            "email_verified": True,
            **self.claims,
        }
        for name in self.without:
            claims.pop(name, None)
        return str(jwt.encode({"alg": self.algorithm, "kid": "k1"}, claims, self.key, algorithms=[self.algorithm]))


@pytest.fixture(scope="module")
def standing() -> Iterator[Provider]:
    provider = Provider()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if provider.broken:
                self.send_error(500)
            elif self.path == "/.well-known/openid-configuration":
                self.reply(provider.document())
            elif self.path == "/keys":
                self.reply(KeySet([KEY]).as_dict(private=False))
            else:
                self.send_error(404)

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(sent).items()}
            provider.asked.append({**form, "authorization": self.headers.get("Authorization", "")})
            proof = urlsafe_b64encode(hashlib.sha256(form.get("code_verifier", "").encode()).digest()).decode()
            if form.get("code") != "the code" or proof.rstrip("=") != provider.challenge:
                self.reply({"error": "invalid_grant"}, 400)
                return
            body = {"access_token": "nobody needs this", "token_type": "Bearer", "expires_in": 300}
            self.reply({**body, "id_token": provider.id_token()} if provider.token else body)

        def reply(self, body: Any, status: int = 200) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    provider.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield provider
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def app(servers: Servers, database: Any, spool: Path, standing: Provider) -> Flask:
    """The application, told of the provider."""
    from views import branches, create_app

    branches.forget()
    return create_app(
        Settings(
            database.url,
            servers.redis_url,
            servers.trail_redis_url,
            spool,
            oidc_issuer=standing.address,
            oidc_client_id=CLIENT,
            oidc_client_secret=SECRET,
            oidc_name="the hospital card",
        )
    )


@pytest.fixture
def provider(standing: Provider, app: Flask) -> Provider:
    """The provider, honest again, and not remembered from the test before."""
    honest = Provider()
    for name in ("claims", "without", "key", "algorithm", "token", "metadata", "asked", "broken"):
        setattr(standing, name, getattr(honest, name))
    app.appbuilder.sm.oauth_remotes["oidc"].server_metadata.clear()
    return standing


def leave(client: Browser, provider: Provider, onwards: str = "") -> dict[str, str]:
    """Go to the provider; gives what it was told on the way."""
    answer = client.get(f"/login/oidc{onwards}")
    assert answer.status_code == 302, answer.text
    place = urlsplit(answer.headers["Location"])
    assert f"{place.scheme}://{place.netloc}" == provider.address
    told = {name: values[0] for name, values in parse_qs(place.query).items()}
    provider.nonce, provider.challenge = told["nonce"], told["code_challenge"]
    return told


def come_back(client: Browser, state: str, code: str = "the code") -> Any:
    return client.get("/oauth-authorized/oidc", query_string={"code": code, "state": state})


def there_and_back(client: Browser, provider: Provider) -> Any:
    return come_back(client, leave(client, provider)["state"])


def signed_in(client: Browser) -> bool:
    return client.get("/me/").status_code == 200


def sql(statement: str, **values: Any) -> list[Any]:
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


def test_somebody_with_an_account_here_is_let_in_with_the_roles_they_have_here(
    provider: Provider, browser: Callable[[], Browser], trail_lines: TrailLines
) -> None:
    provider.claims = {"roles": ["Admin"], "groups": ["Admin"], "email": "NURSE@example.org"}
    client = browser()
    page = client.page("/login/?next=/patients/")
    assert "Sign in with the hospital card" in page
    assert "/login/oidc?next=/patients/" in page or "/login/oidc?next=%2Fpatients%2F" in page
    told = leave(client, provider, "?next=/patients/")
    assert (told["response_type"], told["client_id"], told["code_challenge_method"]) == ("code", CLIENT, "S256")
    assert told["redirect_uri"] == "http://localhost/oauth-authorized/oidc"
    assert set(told["scope"].split()) == {"openid", "email", "profile"}
    before = client.get_cookie("wardbook")
    answer = come_back(client, told["state"])
    assert (answer.status_code, answer.headers["Location"]) == (302, "/patients/")
    after = client.get_cookie("wardbook")
    assert before is not None
    assert after is not None
    assert before.value != after.value
    assert "Nora Nurse" in client.page("/me/")
    assert client.get("/users/list/").status_code in (302, 403)
    assert client.get("/api/v1/clinical_note/").status_code == 403
    assert next((e["subtype"], e["outcome"]) for e in trail_lines.events()) == ("110122", 0)
    assert SECRET not in json.dumps([asked for asked in provider.asked if "client_secret" in asked])


def test_a_name_with_the_provider_will_do_where_it_is_a_user_name_here(
    provider: Provider, browser: Callable[[], Browser]
) -> None:
    provider.claims = {"email": "n.n@elsewhere.example", "preferred_username": "Doctor"}
    client = browser()
    assert there_and_back(client, provider).headers["Location"] == "/"
    assert "Dora Doctor" in client.page("/me/")


DISHONEST: dict[str, dict[str, Any]] = {
    "another nonce": {"claims": {"nonce": "of another session"}},
    "no nonce": {"without": ("nonce",)},
    "for somebody else": {"claims": {"aud": "another-client"}},
    "for several, none of them us": {"claims": {"aud": ["one", "two"], "azp": "one"}},
    "for nobody": {"without": ("aud",)},
    "for us and given to another": {"claims": {"aud": [CLIENT, "other"], "azp": "other"}},
    "by another issuer": {"claims": {"iss": "http://127.0.0.1:1"}},
    "by nobody": {"without": ("iss",)},
    "too late": {"claims": {"exp": 1_600_000_000, "iat": 1_599_999_000}},
    "for ever": {"without": ("exp",)},
    "signed with a strange key": {"key": STRANGE},
    "signed with our own secret": {"key": OctKey.import_key(SECRET), "algorithm": "HS256"},
    "no token": {"token": False},
    "another issuer's document": {"metadata": {"issuer": "http://127.0.0.1:1"}},
}


@pytest.mark.parametrize("name", DISHONEST)
def test_what_cannot_be_confirmed_lets_nobody_in(
    name: str, provider: Provider, browser: Callable[[], Browser], trail_lines: TrailLines
) -> None:
    for what, value in DISHONEST[name].items():
        setattr(provider, what, value)
    client = browser()
    if name == "another issuer's document":
        answer = client.get("/login/oidc")
    else:
        answer = there_and_back(client, provider)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/login/")
    assert not signed_in(client)
    page = client.page("/login/")
    assert "could not be confirmed" in page or "does not answer" in page
    assert [e["outcome"] for e in trail_lines.events() if e["subtype"] == "110122"] == [4]


def test_a_token_that_nobody_signed_lets_nobody_in(provider: Provider, browser: Callable[[], Browser]) -> None:
    def part(of: Any) -> str:
        return urlsafe_b64encode(json.dumps(of).encode()).decode().rstrip("=")

    moment = int(time.time())
    client = browser()
    told = leave(client, provider)
    claims = {"iss": provider.address, "aud": CLIENT, "sub": "1", "iat": moment, "exp": moment + 60}
    forged = f"{part({'alg': 'none'})}.{part({**claims, 'nonce': provider.nonce, 'email': 'nurse@example.org', 'email_verified': True})}."
    honest = provider.id_token
    provider.id_token = lambda: forged  # type: ignore[method-assign]
    try:
        assert come_back(client, told["state"]).headers["Location"] == "/login/"
    finally:
        provider.id_token = honest  # type: ignore[method-assign]
    assert not signed_in(client)


@pytest.mark.parametrize("state", ["", "of nobody", None])
def test_an_answer_nobody_here_asked_for_is_none(
    state: str | None, provider: Provider, browser: Callable[[], Browser]
) -> None:
    victim, thief = browser(), browser()
    told = leave(thief, provider)
    answer = come_back(victim, told["state"] if state is None else state)
    assert answer.headers["Location"] == "/login/"
    assert not signed_in(victim)
    assert provider.asked == [], "the code was not even taken to the provider"


def test_an_answer_counts_once_and_only_with_its_code(provider: Provider, browser: Callable[[], Browser]) -> None:
    client = browser()
    told = leave(client, provider)
    assert come_back(client, told["state"], "another code").headers["Location"] == "/login/"
    assert not signed_in(client)
    assert come_back(client, told["state"]).headers["Location"] == "/login/", "the state is used up"
    assert not signed_in(client)
    answer = client.get("/oauth-authorized/oidc?error=access_denied&error_description=<script>x</script>")
    assert answer.headers["Location"] == "/login/"
    assert "<script>x" not in client.page("/login/")


@pytest.mark.parametrize(
    "claims",
    [
        {"email_verified": False},
        {"email_verified": "true"},
        {"email": "stranger@elsewhere.example"},
        {"email": "stranger@elsewhere.example", "preferred_username": "nurse@example.org"},
        {"preferred_username": "doctor"},
        {"email": ["nurse@example.org"], "preferred_username": {"a": 1}},
        {"email": "nurse"},
    ],
    ids=[
        "unverified",
        "verified in words",
        "unknown",
        "an address for a name",
        "two people",
        "nonsense",
        "a name for an address",
    ],
)
def test_whoever_has_no_account_here_gets_none(
    claims: dict[str, Any], provider: Provider, browser: Callable[[], Browser], trail_lines: TrailLines
) -> None:
    before = sql("SELECT count(*) AS n FROM ab_user")[0]["n"]
    provider.claims = claims
    client = browser()
    assert there_and_back(client, provider).headers["Location"] == "/login/"
    assert "You have no account here" in client.page("/login/")
    assert not signed_in(client)
    assert sql("SELECT count(*) AS n FROM ab_user")[0]["n"] == before
    lines = [(e["outcome"], e["reason"]) for e in trail_lines.events() if e["subtype"] == "110122"]
    assert lines == [(4, "NoAccount")]
    assert "elsewhere" not in json.dumps(trail_lines.entries())


def test_a_closed_account_stays_closed(provider: Provider, browser: Callable[[], Browser]) -> None:
    sql("UPDATE ab_user SET active = false WHERE username = 'nurse'")
    try:
        client = browser()
        assert there_and_back(client, provider).headers["Location"] == "/login/"
        assert not signed_in(client)
    finally:
        sql("UPDATE ab_user SET active = true WHERE username = 'nurse'")


@pytest.fixture
def with_second_step(client_as: Callable[[str], Browser], hospital: Hospital) -> Iterator[str]:
    """The laboratory signs in with a code as well; gives the secret."""
    import re

    client = client_as("lab")
    token = csrf_of(client.page("/me/second-factor/"))
    client.post("/me/second-factor/begin", data={"csrf_token": token})
    found = re.search(r'class="secret">([A-Z2-7 ]+)<', client.page("/me/second-factor/"))
    assert found is not None
    secret = found[1].replace(" ", "")
    client.post("/me/second-factor/prove", data={"csrf_token": token, "code": pyotp.TOTP(secret).now()})
    sql("UPDATE credential SET totp_step = 0")
    yield secret
    sql("UPDATE credential SET totp_secret = NULL, totp_confirmed_at = NULL")


@pytest.mark.parametrize(
    ("amr", "asked"),
    [(None, True), (["pwd"], True), ([], True), (["pwd", "mfa"], False), (["otp"], False), (["hwk"], False)],
)
def test_the_second_step_here_is_asked_for_unless_the_provider_took_one(
    amr: list[str] | None, asked: bool, provider: Provider, browser: Callable[[], Browser], with_second_step: str
) -> None:
    provider.claims = {"email": "lab@example.org", **({} if amr is None else {"amr": amr})}
    client = browser()
    answer = there_and_back(client, provider)
    assert answer.headers["Location"] == ("/login/code" if asked else "/")
    assert signed_in(client) is not asked
    if asked:
        answer = client.submit("/login/code", {"code": pyotp.TOTP(with_second_step).now()})
        assert answer.status_code == 302
        assert signed_in(client)


def test_a_provider_that_is_away_is_said_in_a_sentence(provider: Provider, browser: Callable[[], Browser]) -> None:
    provider.broken = True
    client = browser()
    answer = client.get("/login/oidc", follow_redirects=True)
    assert answer.status_code == 200
    assert "does not answer right now" in answer.text
    assert client.submit("/login/", {"username": "nurse", "password": PASSWORD}).status_code == 302


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example", "javascript:alert(1)"])
def test_it_leads_nowhere_else(target: str, provider: Provider, browser: Callable[[], Browser]) -> None:
    client = browser()
    answer = client.get("/login/oidc", query_string={"next": target})
    told = {name: values[0] for name, values in parse_qs(urlsplit(answer.headers["Location"]).query).items()}
    provider.nonce, provider.challenge = told["nonce"], told["code_challenge"]
    place = urlsplit(come_back(client, told["state"]).headers["Location"])
    assert place.netloc in ("", "localhost")
    assert place.scheme in ("", "http")
    assert signed_in(client)
