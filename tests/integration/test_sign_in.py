"""Passwords, tries, the second step, sessions and tokens, and what ends them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pyotp
import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import create_engine, event, text
from werkzeug.security import generate_password_hash

from app import guard
from app.actor import service
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.services import accounts, credentials
from config import PROJECT
from ops.servers import Servers
from tests import factories
from tests.conftest import Browser, Settings, TrailLines, csrf_of, spoken
from tests.factories import PASSWORD, Hospital

ClientAs = Callable[..., Browser]
ANOTHER = "seven lamps over water"


def sql(statement: str, **values: Any) -> list[Any]:
    """Something done or asked past the application, as an administrator of the database would."""
    with guard.engine().begin() as connection:
        found = connection.execute(text(statement), values)
        return list(found.mappings()) if found.returns_rows else []


@pytest.fixture
def person(database: Any) -> Callable[..., str]:
    """An account of one's own: `person("Nurse")` gives its user name."""
    made = iter(range(1000))

    def open_one(*roles: str, prefix: str = "own") -> str:
        username = f"{prefix}{next(made)}_{time.monotonic_ns()}"
        with guard.acting_as(service("setup")), guard.unit_of_work() as session:
            accounts.open_account(
                session,
                username=username,
                password=PASSWORD,
                first_name="Olga",
                last_name="Own",
                email=f"{username}@example.org",
                roles=roles,
            )
        return username

    return open_one


def row(username: str) -> Any:
    return sql(
        "SELECT u.*, c.generation, c.totp_secret, c.totp_confirmed_at, c.totp_step, c.recovery_codes, "
        "c.password_changed_at FROM ab_user u JOIN credential c ON c.user_id = u.id WHERE username = :u",
        u=username,
    )[0]


def cookie_of(client: FlaskClient, name: str = "wardbook") -> str:
    cookie = client.get_cookie(name)
    assert cookie is not None
    return cookie.value


def kept(client: FlaskClient, servers: Servers) -> dict[str, Any]:
    """What the server keeps of a browser's session."""
    found = redis.Redis.from_url(servers.redis_url).get(f"session:{cookie_of(client)}")
    assert isinstance(found, bytes)
    return dict(json.loads(found))


def keep(client: FlaskClient, servers: Servers, **changed: Any) -> None:
    """Change what the server keeps, as time would."""
    whole = {**kept(client, servers), **changed}
    redis.Redis.from_url(servers.redis_url).set(f"session:{cookie_of(client)}", json.dumps(whole), ex=600)


def failing(client: Browser, username: str, password: str = "wrong") -> Any:
    return client.submit("/login/", {"username": username, "password": password})


def signed_in(client: FlaskClient) -> bool:
    return client.get("/me/").status_code == 200


def post(client: Browser, path: str, **data: Any) -> Any:
    return client.post(path, data={"csrf_token": csrf_of(client.page("/me/")), **data})


# ---- passwords -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("password", "says"),
    [
        ("", "12 characters"),
        ("x7#kQ9!vLp2", "12 characters"),
        ("y" * 129, "128 characters"),
        ("aaaaaaaaaaaa", "guessed"),
        ("password1234", "guessed"),
        ("qwertyuiop123", "guessed"),
        ("olga.own@example.org", "guessed"),
        ("OlgaOwn-OlgaOwn", "guessed"),
        ("hospital wardbook", "guessed"),
        ("seven lamps\x07over water", "cannot be typed"),
    ],
)
def test_a_password_that_can_be_guessed_is_refused(password: str, says: str) -> None:
    with pytest.raises(Invalid) as refusal:
        credentials.check(password, ("olga", "Olga", "Own", "olga.own@example.org"))
    assert says in str(refusal.value)
    assert refusal.value.field == "password"


@pytest.mark.parametrize(
    "password", ["x7#kQ9!vLp2w", PASSWORD, "ключ от старого дома", ("seven lamps over the water " * 5)[:128]]
)
def test_length_is_all_the_composition_there_is(password: str) -> None:
    assert 12 <= len(password) <= 128
    credentials.check(password, ("olga",))


def test_a_password_is_kept_as_argon2_and_is_the_same_from_every_keyboard() -> None:
    one, other = credentials.hashed("Ångström över allt"), credentials.hashed("A\u030angstro\u0308m över allt")
    assert one.startswith("$argon2id$")
    assert one != other
    assert credentials.holds(one, "A\u030angström över allt")
    assert credentials.holds(other, "Ångström över allt")
    assert not credentials.holds(one, "Ångström över all")
    assert not credentials.holds(None, "anything at all")
    assert not credentials.holds("not a hash", "not a hash")


def test_the_words_known_of_one_person_are_not_another_ones(app: Flask) -> None:
    """The library keeps them where another thread would find them."""
    wrong: list[str] = []
    ready = threading.Barrier(4)

    def guess(number: int) -> None:
        ready.wait(20)
        for _ in range(15):
            try:
                credentials.check("zorbulated quixel", ("zorbulated quixel",) if number == 0 else ("olga",))
                wrong.extend(["let through"] if number == 0 else [])
            except Invalid:
                wrong.extend(["refused"] if number else [])

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_old_hash_is_renewed_at_sign_in_and_nobody_is_signed_out(
    person: Callable[..., str], client_as: ClientAs, trail_lines: TrailLines
) -> None:
    username = person("Nurse")
    sql("UPDATE ab_user SET password = :p WHERE username = :u", p=generate_password_hash(PASSWORD), u=username)
    with guard.engine().begin() as connection:  # somebody who signed in before the hash was looked at
        connection.execute(text("ALTER TABLE ab_user DISABLE TRIGGER ab_user_generation"))
    try:
        first = client_as(username)
        sql("UPDATE ab_user SET password = :p WHERE username = :u", p=generate_password_hash(PASSWORD), u=username)
    finally:
        sql("ALTER TABLE ab_user ENABLE TRIGGER ab_user_generation")
    before = row(username)
    assert before["password"].startswith("scrypt:")
    second = client_as(username)
    after = row(username)
    assert after["password"].startswith("$argon2id$")
    assert (after["generation"], after["password_changed_at"]) == (before["generation"], before["password_changed_at"])
    assert signed_in(first)
    assert signed_in(second)
    assert client_as(username)


def test_every_way_to_set_a_password_follows_the_rules(client_as: ClientAs, person: Callable[..., str]) -> None:
    username = person("Nurse")
    admin, nurse = client_as("admin"), client_as(username)
    number = row(username)["id"]
    before = row(username)["password"]
    new = {"username": "weak1", "first_name": "W", "last_name": "K", "email": "weak1@example.org", "active": "y"}
    roles = [str(role["id"]) for role in sql("SELECT id FROM ab_role WHERE name = 'Nurse'")]
    weak = {"password": "password1234", "conf_password": "password1234"}
    answer = admin.submit("/users/add", {**new, "roles": roles, **weak})
    assert answer.status_code == 422
    assert "guessed too easily" in answer.text
    assert 'value="weak1"' in answer.text, "what was typed is kept"
    assert sql("SELECT 1 FROM ab_user WHERE username = 'weak1'") == []
    for client, path, more in (
        (admin, f"/resetpassword/form?pk={number}", {}),
        (nurse, "/resetmypassword/form", {"current": PASSWORD}),
    ):
        answer = client.submit(path, {**weak, **more})
        assert answer.status_code == 422
        assert "guessed too easily" in answer.text
        same = {"password": PASSWORD, "conf_password": PASSWORD}
        answer = client.submit(path, {**same, **more})
        assert answer.status_code == 422
        assert "you have already" in answer.text
        answer = client.submit(path, {"password": ANOTHER, "conf_password": ANOTHER + "!", **more})
        assert answer.status_code == 422
        assert "not the same" in answer.text
    answer = nurse.submit(
        "/resetmypassword/form", {"current": "not this one", "password": ANOTHER, "conf_password": ANOTHER}
    )
    assert answer.status_code == 422
    assert "not your password" in answer.text
    assert row(username)["password"] == before
    assert signed_in(nurse)


def test_nobody_takes_a_name_that_signs_in_somebody_else(client_as: ClientAs, person: Callable[..., str]) -> None:
    username = person("Nurse")
    fields = {"first_name": "A", "last_name": "B", "password": ANOTHER, "roles": ["Nurse"]}
    for name, mail in (
        (username.upper(), "free@example.org"),
        (f"{username}@EXAMPLE.org", "free@example.org"),
        ("free", f"{username.upper()}@example.org"),
        ("free", username),
    ):
        with (
            pytest.raises(Conflict),
            guard.acting_as(service("setup")),
            guard.unit_of_work() as session,
        ):
            accounts.open_account(session, username=name, email=mail, **fields)
    admin = client_as("admin")
    answer = admin.submit(f"/users/edit/{row(username)['id']}", {"username": "DOCTOR"})
    assert answer.status_code == 409
    assert row(username)["username"] == username


# ---- tries ---------------------------------------------------------------------------------------------------------


def test_of_forty_guesses_at_once_no_more_are_looked_at_than_the_limit(
    app: Flask, browser: Callable[[], Browser], person: Callable[..., str]
) -> None:
    username = person("Nurse")
    clients = [browser() for _ in range(40)]
    found: list[int] = []
    ready = threading.Barrier(len(clients))

    def guess(client: Browser, number: int) -> None:
        ready.wait(60)
        body = {"username": username, "password": f"wrong {number}", "provider": "db"}
        found.append(client.post("/api/v1/security/login", json=body).status_code)

    threads = [threading.Thread(target=guess, args=(client, n)) for n, client in enumerate(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [401] * 5 + [429] * 35
    assert row(username)["fail_login_count"] <= 5
    assert failing(browser(), username, PASSWORD).status_code == 429, "the right one is not looked at either"


def test_a_name_that_is_nobodys_is_locked_alike(browser: Callable[[], Browser], person: Callable[..., str]) -> None:
    def told(name: str) -> list[tuple[int, str]]:
        client = browser()
        pages = []
        for n in range(7):
            answer = failing(client, name.swapcase() if n % 2 else name)
            said = re.search(r'<div class="flash.*?</div>', answer.text, re.DOTALL)
            pages.append((answer.status_code, re.sub(r"\d+ seconds", "N seconds", said[0]) if said else ""))
        return pages

    known, unknown = told(person("Nurse")), told("nobody of this name")
    assert known == unknown
    assert [status for status, _ in known] == [401] * 5 + [429] * 2
    assert "N seconds" in known[-1][1]


def test_a_name_that_is_nobodys_costs_as_many_statements(
    browser: Callable[[], Browser], person: Callable[..., str]
) -> None:
    """The hash, which costs the most, is worked out in either case; no test asserts a duration."""
    closed = person("Nurse")
    sql("UPDATE ab_user SET active = false WHERE username = :u", u=closed)
    counted = []
    for name in (person("Nurse"), "nobody of this name either", closed):
        sent: list[str] = []

        def note(_c: Any, _u: Any, statement: str, *_: Any, sent: list[str] = sent) -> None:
            sent.append(statement.split(maxsplit=1)[0])

        client = browser()
        client.page("/login/")
        event.listen(guard.engine(), "before_cursor_execute", note)
        try:
            assert failing(client, name).status_code == 401
        finally:
            event.remove(guard.engine(), "before_cursor_execute", note)
        counted.append(sent)
    assert counted[0] == counted[1] == counted[2]


def test_a_locked_door_keeps_the_form_and_is_recorded_once(
    browser: Callable[[], Browser], person: Callable[..., str], trail_lines: TrailLines
) -> None:
    username = person("Nurse")
    client = browser()
    for _ in range(5):
        failing(client, username)
    trail_lines.forget()
    for _ in range(4):
        answer = failing(client, username, PASSWORD)
        assert answer.status_code == 429
        assert f'value="{username}"' in answer.text
        assert int(answer.headers["Retry-After"]) > 0
    assert [(e["subtype"], e["outcome"], e["reason"]) for e in trail_lines.events()] == [("110122", 4, "TooManyTries")]
    assert trail_lines.entries()[0]["agent"]["agent_name"] == username


def test_tries_are_forgotten_when_one_holds(browser: Callable[[], Browser], person: Callable[..., str]) -> None:
    username = person("Nurse")
    for _ in range(3):
        client = browser()
        for _ in range(4):
            assert failing(client, username).status_code == 401
        assert failing(client, username, PASSWORD).status_code == 302


def test_an_address_that_fails_too_often_is_locked_and_one_that_succeeds_never(
    browser: Callable[[], Browser], person: Callable[..., str]
) -> None:
    username = person("Nurse")
    desk = browser()
    for _ in range(35):
        body = {"username": username, "password": PASSWORD, "provider": "db"}
        assert desk.post("/api/v1/security/login", json=body).status_code == 200
    client = browser()
    client.environ_base["REMOTE_ADDR"] = "2001:db8:1:2::1"
    for number in range(30):
        body = {"username": f"guess {number}", "password": "wrong", "provider": "db"}
        assert client.post("/api/v1/security/login", json=body).status_code == 401
    client.environ_base["REMOTE_ADDR"] = "2001:db8:1:2:ffff::1"
    body = {"username": username, "password": PASSWORD, "provider": "db"}
    assert client.post("/api/v1/security/login", json=body).status_code == 429, "the same subscriber's network"
    assert desk.post("/api/v1/security/login", json=body).status_code == 200, "another one is not concerned"


def test_an_administrator_sees_the_lock_and_opens_it(
    client_as: ClientAs, browser: Callable[[], Browser], person: Callable[..., str]
) -> None:
    username = person("Nurse")
    number = row(username)["id"]
    admin = client_as("admin")
    assert "Unlock" not in admin.page(f"/users/show/{number}")
    for _ in range(6):
        failing(browser(), username)
    page = admin.page(f"/users/show/{number}")
    assert "after too many tries" in page
    assert f"/users/{number}/unlock" in page
    assert admin.submit(f"/users/{number}/unlock", {"reason": "no"}).status_code == 422
    assert failing(browser(), username, PASSWORD).status_code == 429
    assert admin.submit(f"/users/{number}/unlock", {"reason": "It was herself"}).status_code == 302
    assert failing(browser(), username, PASSWORD).status_code == 302
    lines = [line for line in outbox() if line["subtype"] == "unlock"]
    assert [(line["reason"], line["entities"][0]["ids"]) for line in lines] == [("It was herself", [number])]


def outbox() -> list[Any]:
    return [event for found in sql("SELECT event FROM audit_outbox") for event in spoken(found["event"])["events"]]


@pytest.mark.parametrize("deed", ["unlock", "end-sessions", "reset-second-factor"])
def test_what_is_done_to_accounts_is_the_administrators(
    deed: str, client_as: ClientAs, person: Callable[..., str], hospital: Hospital
) -> None:
    username = person("Nurse")
    before = row(username)
    doctor = client_as("doctor")
    number = row(username)["id"]
    assert doctor.get(f"/users/{number}/{deed}").status_code == 403
    assert post(doctor, f"/users/{number}/{deed}", reason="because I can").status_code == 403
    admin = client_as("admin")
    for nobody in ("0", "999999", "nonsense", "9" * 30):
        assert admin.get(f"/users/{nobody}/{deed}").status_code == 404
    assert row(username) == before


# ---- the second step -----------------------------------------------------------------------------------------------


def secret_on(page: str) -> str:
    found = re.search(r'<code class="secret">([A-Z2-7 ]+)</code>', page)
    assert found is not None
    return found[1].replace(" ", "")


def enrol(client: Browser) -> tuple[str, list[str]]:
    """Set up the second step through the pages; gives the secret and the recovery codes."""
    page = client.page("/me/second-factor/")
    token = csrf_of(page)
    assert client.post("/me/second-factor/begin", data={"csrf_token": token}).status_code == 302
    page = client.page("/me/second-factor/")
    secret = secret_on(page)
    assert '<svg class="square"' in page
    answer = client.post("/me/second-factor/prove", data={"csrf_token": token, "code": pyotp.TOTP(secret).now()})
    assert answer.status_code == 200, answer.text
    codes = re.findall(r"<li><code>([a-z0-9-]{19})</code></li>", answer.text)
    assert len(codes) == 10
    return secret, codes


def later(username: str) -> None:
    """Half a minute goes by for the account's codes."""
    sql(
        "UPDATE credential SET totp_step = totp_step - 10 WHERE user_id = (SELECT id FROM ab_user WHERE username = :u)",
        u=username,
    )


def half_way(browser: Callable[[], Browser], username: str) -> Browser:
    """A browser in which the password has been given, and the code is asked for."""
    client = browser()
    answer = failing(client, username, PASSWORD)
    assert answer.headers["Location"] == "/login/code"
    return client


@pytest.fixture
def owing(database: Any) -> str:
    """A role that asks for a second step, besides what a nurse may."""
    name = f"Careful {time.monotonic_ns()}"
    sql("INSERT INTO ab_role (name) VALUES (:n)", n=name)
    sql("INSERT INTO role_setting (role_id, second_factor) SELECT id, true FROM ab_role WHERE name = :n", n=name)
    return name


def test_a_second_step_is_set_up_asked_for_and_no_code_is_taken_twice(
    client_as: ClientAs, browser: Callable[[], Browser], person: Callable[..., str], trail_lines: TrailLines
) -> None:
    username = person("Nurse")
    secret, _ = enrol(client_as(username))
    used = pyotp.TOTP(secret).now()
    client = half_way(browser, username)
    before = cookie_of(client)
    assert not signed_in(client)
    assert client.submit("/login/code", {"code": used}).status_code == 401, "the code that proved it was taken"
    later(username)
    trail_lines.forget()
    answer = client.submit("/login/code", {"code": f" {used[:3]} {used[3:]} "})
    assert answer.status_code == 302
    assert cookie_of(client) != before
    assert signed_in(client)
    assert next((e["subtype"], e["outcome"]) for e in trail_lines.events()) == ("110122", 0)
    again = half_way(browser, username)
    assert again.submit("/login/code", {"code": used}).status_code == 401
    assert not signed_in(again)


def test_of_one_code_sent_ten_times_at_once_one_is_taken(
    client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser]
) -> None:
    username = person("Nurse")
    secret, _ = enrol(client_as(username))
    later(username)
    code = pyotp.TOTP(secret).now()
    clients = [half_way(browser, username) for _ in range(5)]
    pages = [csrf_of(client.page("/login/code")) for client in clients]
    found: list[int] = []
    ready = threading.Barrier(len(clients))

    def send(client: Browser, token: str) -> None:
        ready.wait(60)
        found.append(client.post("/login/code", data={"csrf_token": token, "code": code}).status_code)

    threads = [threading.Thread(target=send, args=pair) for pair in zip(clients, pages, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [302, 401, 401, 401, 401]


@pytest.mark.parametrize(("steps", "good"), [(-3, False), (-2, False), (0, True), (2, False), (3, False)])
def test_a_code_is_good_around_its_moment(
    steps: int, good: bool, client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser]
) -> None:
    username = person("Nurse")
    secret, _ = enrol(client_as(username))
    later(username)
    client = half_way(browser, username)
    # The clock may go on by one step between here and there: two away is one or two away from any moment after.
    away = steps * 30 + (30 if steps > 0 else 0)
    code = pyotp.TOTP(secret).at(int(time.time()) + away)
    assert client.submit("/login/code", {"code": code}).status_code == (302 if good else 401)
    assert signed_in(client) is good


def test_a_recovery_code_stands_in_once(
    client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser]
) -> None:
    username = person("Nurse")
    _, codes = enrol(client_as(username))
    assert not any(code.replace("-", "") in str(row(username)["recovery_codes"]) for code in codes)
    client = half_way(browser, username)
    assert client.submit("/login/code", {"code": codes[3].upper().replace("-", " ")}).status_code == 302
    assert len(row(username)["recovery_codes"]) == 9
    assert half_way(browser, username).submit("/login/code", {"code": codes[3]}).status_code == 401
    assert half_way(browser, username).submit("/login/code", {"code": codes[4]}).status_code == 302


def test_codes_are_guessed_no_more_often_than_passwords_and_knowing_the_password_does_not_help(
    client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser]
) -> None:
    username = person("Nurse")
    secret, codes = enrol(client_as(username))
    later(username)
    found = []
    for number in range(7):
        client = half_way(browser, username)  # the password holds, and its tries are forgotten
        found.append(client.submit("/login/code", {"code": f"00000{number}"}).status_code)
    assert found == [401] * 5 + [429] * 2
    assert half_way(browser, username).submit("/login/code", {"code": codes[0]}).status_code == 429
    assert len(row(username)["recovery_codes"]) == 10
    body = {"username": username, "password": PASSWORD, "provider": "db", "code": pyotp.TOTP(secret).now()}
    assert browser().post("/api/v1/security/login", json=body).status_code == 429


def test_the_code_page_is_open_for_five_minutes_and_only_after_the_password(
    client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser], servers: Servers
) -> None:
    username = person("Nurse")
    secret, _ = enrol(client_as(username))
    later(username)
    stranger = browser()
    assert stranger.get("/login/code").headers["Location"] == "/login/"
    client = half_way(browser, username)
    token = csrf_of(client.page("/login/code"))
    waiting = kept(client, servers)["waiting"]
    keep(client, servers, waiting={**waiting, "since": waiting["since"] - 301})
    answer = client.post("/login/code", data={"csrf_token": token, "code": pyotp.TOTP(secret).now()})
    assert answer.headers["Location"] == "/login/"
    assert not signed_in(client)
    client = half_way(browser, username)
    token = csrf_of(client.page("/login/code"))
    sql("UPDATE ab_user SET active = false WHERE username = :u", u=username)
    sql("UPDATE ab_user SET active = true WHERE username = :u", u=username)
    answer = client.post("/login/code", data={"csrf_token": token, "code": pyotp.TOTP(secret).now()})
    assert answer.headers["Location"] == "/login/", "the account changed in between"
    assert not signed_in(client)


def test_the_way_on_is_kept_over_the_second_step(
    client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser]
) -> None:
    username = person("Nurse")
    _, codes = enrol(client_as(username))
    client = browser()
    token = csrf_of(client.page("/login/?next=/patients/"))
    data = {"username": username, "password": PASSWORD, "csrf_token": token}
    assert client.post("/login/?next=/patients/", data=data).headers["Location"] == "/login/code"
    assert client.submit("/login/code", {"code": codes[0]}).headers["Location"] == "/patients/"


def test_the_secret_is_unreadable_in_the_database_and_under_another_key(
    app: Flask, client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser], servers: Servers
) -> None:
    username = person("Nurse")
    secret, _ = enrol(client_as(username))
    assert secret.encode() not in bytes(row(username)["totp_secret"])
    client = half_way(browser, username)
    credentials.connect(servers.redis_url, "a quite different key of this installation")
    try:
        assert client.submit("/login/code", {"code": pyotp.TOTP(secret).now()}).status_code == 503
    finally:
        credentials.connect(servers.redis_url, app.config["SECRET_KEY"])
    assert not signed_in(client)


def test_an_unproved_secret_counts_for_nothing(
    client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser]
) -> None:
    username = person("Nurse")
    client = client_as(username)
    token = csrf_of(client.page("/me/second-factor/"))
    client.post("/me/second-factor/begin", data={"csrf_token": token})
    answer = client.post("/me/second-factor/prove", data={"csrf_token": token, "code": "000000"})
    assert answer.status_code == 422
    assert "not the code of this moment" in answer.text
    assert row(username)["totp_confirmed_at"] is None
    assert failing(browser(), username, PASSWORD).headers["Location"] == "/", "no code is asked for"


def test_turning_it_off_and_new_codes_take_the_password(
    client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser]
) -> None:
    username = person("Nurse")
    client = client_as(username)
    enrol(client)
    before = row(username)
    assert post(client, "/me/second-factor/off", current="wrong").status_code == 422
    assert post(client, "/me/second-factor/codes", current="wrong").status_code == 422
    assert post(client, "/me/second-factor/begin").status_code == 409, "nor is it replaced without it"
    assert row(username) == before
    answer = post(client, "/me/second-factor/codes", current=PASSWORD)
    assert len(re.findall(r"<li><code>", answer.text)) == 10
    assert not set(row(username)["recovery_codes"]) & set(before["recovery_codes"])
    assert post(client, "/me/second-factor/off", current=PASSWORD).status_code == 302
    assert (row(username)["totp_secret"], row(username)["recovery_codes"]) == (None, [])
    assert failing(browser(), username, PASSWORD).headers["Location"] == "/"


def test_where_a_role_asks_for_it_nothing_else_is_open_until_it_is_done(
    client_as: ClientAs, person: Callable[..., str], owing: str, browser: Callable[[], Browser], hospital: Hospital
) -> None:
    username = person("Nurse", owing)
    client = client_as(username)
    patient = f"/patients/{hospital.patients[1]}/"
    for address in ("/", "/patients/", patient, "/me/", "/resetmypassword/form", "/view-as/", "/nothing/here"):
        answer = client.get(address)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/me/second-factor/"), address
    for address in ("/api/v1/patient/", "/patients/find.json?q=vander"):
        answer = client.get(address)
        assert answer.status_code == 403
        assert answer.get_json()["error"] == "SecondFactorOwed"
        assert "Vandersloot" not in answer.text
    token = csrf_of(client.page("/me/second-factor/"))
    assert client.post("/patients/register/", data={"csrf_token": token, "family": "Owing"}).status_code == 403
    body = {"username": username, "password": PASSWORD, "provider": "db"}
    answer = browser().post("/api/v1/security/login", json=body)
    assert (answer.status_code, answer.get_json()["error"]) == (403, "SecondFactorOwed")
    assert "access_token" not in answer.text
    enrol(client)
    assert client.get(patient).status_code == 200
    answer = post(client, "/me/second-factor/off", current=PASSWORD)
    assert answer.status_code == 403
    assert row(username)["totp_confirmed_at"] is not None
    other = client_as(person("Nurse", owing))
    assert other.get("/logout/").headers["Location"] == "/login/"
    assert not signed_in(other)


def test_a_debt_is_not_paid_by_somebody_elses_token(
    client_as: ClientAs, person: Callable[..., str], owing: str, token_for: Callable[..., str]
) -> None:
    other = {"Authorization": f"Bearer {token_for(person('Nurse'))}"}
    client = client_as(person("Nurse", owing))
    client.post("/me/second-factor/begin", headers=other)
    secret = secret_on(client.page("/me/second-factor/", headers=other))
    answer = client.post("/me/second-factor/prove", headers=other, data={"code": pyotp.TOTP(secret).now()})
    assert answer.status_code == 200
    assert client.get("/patients/").headers["Location"] == "/me/second-factor/"


def test_a_role_that_begins_to_ask_counts_for_whoever_holds_it_and_their_tokens(
    client_as: ClientAs, person: Callable[..., str], owing: str, api_as: Callable[[str], FlaskClient]
) -> None:
    sql(
        "UPDATE role_setting SET second_factor = false WHERE role_id = (SELECT id FROM ab_role WHERE name = :r)",
        r=owing,
    )
    username = person("Nurse", owing)
    page, program = client_as(username), api_as(username)
    assert page.get("/patients/").status_code == program.get("/api/v1/patient/").status_code == 200
    sql(
        "UPDATE role_setting SET second_factor = true WHERE role_id = (SELECT id FROM ab_role WHERE name = :r)", r=owing
    )
    assert page.get("/patients/").headers["Location"] == "/me/second-factor/"
    assert program.get("/api/v1/patient/").status_code == 403


def test_an_administrator_resets_a_lost_second_step_but_not_their_own(
    client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser]
) -> None:
    username = person("Nurse")
    client = client_as(username)
    enrol(client)
    admin = client_as("admin")
    number = row(username)["id"]
    generation = row(username)["generation"]
    assert "Reset the second step" in admin.page(f"/users/show/{number}")
    answer = admin.submit(f"/users/{number}/reset-second-factor", {"reason": "Phone lost on the ward"})
    assert answer.status_code == 302
    assert (row(username)["totp_secret"], row(username)["totp_confirmed_at"]) == (None, None)
    assert row(username)["generation"] == generation + 1
    assert not signed_in(client)
    assert failing(browser(), username, PASSWORD).headers["Location"] == "/"
    assert admin.submit(f"/users/{number}/reset-second-factor", {"reason": "once more"}).status_code == 409
    (line,) = [line for line in outbox() if line["reason"] == "Phone lost on the ward"]
    assert set(line["entities"][0]["fields"]) >= {"totp_secret", "totp_confirmed_at", "recovery_codes"}
    assert row(username)["username"] not in json.dumps(line)
    admin_row = sql("SELECT id FROM ab_user WHERE username = 'admin'")[0]["id"]
    answer = admin.submit(f"/users/{admin_row}/reset-second-factor", {"reason": "my own"})
    assert answer.status_code == 403


# ---- tokens --------------------------------------------------------------------------------------------------------


def test_a_token_for_an_account_with_a_second_step_takes_the_code(
    client_as: ClientAs, person: Callable[..., str], browser: Callable[[], Browser]
) -> None:
    username = person("Nurse")
    secret, codes = enrol(client_as(username))
    later(username)
    body = {"username": username, "password": PASSWORD, "provider": "db"}
    answer = browser().post("/api/v1/security/login", json=body)
    assert (answer.status_code, answer.get_json()["error"]) == (401, "CodeNeeded")
    assert "access_token" not in answer.text
    for wrong in ("000000", 123456, {"a": 1}, "\ud800"):
        answer = browser().post("/api/v1/security/login", json={**body, "code": wrong})
        assert answer.status_code in (400, 401)
    for right in (pyotp.TOTP(secret).now(), codes[0]):
        answer = browser().post("/api/v1/security/login", json={**body, "code": right})
        assert answer.status_code == 200
        token = {"Authorization": f"Bearer {answer.get_json()['access_token']}"}
        assert browser().get("/api/v1/patient/", headers=token).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"username": "doctor"},
        {"username": ["doctor"], "password": PASSWORD, "provider": "db"},
        {"username": "doctor", "password": PASSWORD, "provider": "ldap"},
        {"username": "doctor", "password": PASSWORD, "provider": "db", "admin": True},
        [],
        "text",
        None,
    ],
)
def test_a_body_that_is_none_is_refused(body: Any, browser: Callable[[], Browser]) -> None:
    answer = browser().post("/api/v1/security/login", json=body)
    assert answer.status_code == 400
    assert "access_token" not in answer.text


def test_half_letters_are_no_fault_of_ours(browser: Callable[[], Browser]) -> None:
    body = {"username": "doc\ud800tor", "password": "\udfff" * 20, "provider": "db"}
    assert browser().post("/api/v1/security/login", json=body).status_code == 401


# ---- what ends a session -------------------------------------------------------------------------------------------


def by_password(number: int, username: str, admin: Browser) -> None:
    fields = {"password": ANOTHER, "conf_password": ANOTHER}
    assert admin.submit(f"/resetpassword/form?pk={number}", fields).status_code == 302


def by_closing(number: int, username: str, admin: Browser) -> None:
    sql("UPDATE ab_user SET active = false WHERE id = :n", n=number)
    sql("UPDATE ab_user SET active = true WHERE id = :n", n=number)


def by_role(number: int, username: str, admin: Browser) -> None:
    roles = [str(found["id"]) for found in sql("SELECT id FROM ab_role WHERE name IN ('Nurse', 'Receptionist')")]
    assert admin.submit(f"/users/edit/{number}", {"roles": roles}).status_code == 302


def by_decree(number: int, username: str, admin: Browser) -> None:
    assert admin.submit(f"/users/{number}/end-sessions", {"reason": "Left a computer open"}).status_code == 302


@pytest.mark.parametrize("how", [by_password, by_closing, by_role, by_decree])
def test_what_ends_every_session_and_token_of_an_account(
    how: Callable[[int, str, Browser], None],
    person: Callable[..., str],
    client_as: ClientAs,
    browser: Callable[[], Browser],
    token_for: Callable[..., str],
    hospital: Hospital,
) -> None:
    username = person("Nurse")
    page, other = client_as(username), client_as(username)
    access = {"Authorization": f"Bearer {token_for(username)}"}
    refresh = {"Authorization": f"Bearer {token_for(username, 'refresh_token')}"}
    assert page.get("/patients/").status_code == other.get("/patients/").status_code == 200
    assert browser().get("/api/v1/patient/", headers=access).status_code == 200
    generation = row(username)["generation"]
    how(row(username)["id"], username, client_as("admin"))
    assert row(username)["generation"] > generation
    for client in (page, other):
        answer = client.get(f"/patients/{hospital.patients[1]}/")
        assert answer.status_code == 302
        assert "/login/" in answer.headers["Location"]
        assert not signed_in(client)
    assert browser().get("/api/v1/patient/", headers=access).status_code == 401
    assert browser().post("/api/v1/security/refresh", headers=refresh).status_code == 401, "nothing is laundered"


def test_a_session_that_is_out_of_date_says_why(
    person: Callable[..., str], client_as: ClientAs, servers: Servers
) -> None:
    username = person("Nurse")
    client = client_as(username)
    before = cookie_of(client)
    sql("UPDATE ab_user SET active = false WHERE username = :u", u=username)
    sql("UPDATE ab_user SET active = true WHERE username = :u", u=username)
    answer = client.get("/patients/", follow_redirects=True)
    assert "Your access was changed. Please sign in again." in answer.text
    assert cookie_of(client) != before
    assert redis.Redis.from_url(servers.redis_url).get(f"session:{before}") is None
    answer = client.get("/login/")
    assert "Your access was changed" not in answer.text, "it is said once"


def test_a_session_ends_after_its_hours_however_busy(
    person: Callable[..., str], client_as: ClientAs, servers: Servers
) -> None:
    client = client_as(person("Nurse"))
    since = kept(client, servers)["since"]
    keep(client, servers, since=since - 12 * 3600 + 30)
    assert signed_in(client)
    keep(client, servers, since=since - 12 * 3600)
    answer = client.get("/patients/", follow_redirects=True)
    assert "signed in for a long time" in answer.text
    assert not signed_in(client)


@pytest.mark.parametrize("lost", ["generation", "since"])
def test_a_session_of_another_making_is_no_session(
    lost: str, person: Callable[..., str], client_as: ClientAs, servers: Servers
) -> None:
    client = client_as(person("Nurse"))
    whole = kept(client, servers)
    del whole[lost]
    redis.Redis.from_url(servers.redis_url).set(f"session:{cookie_of(client)}", json.dumps(whole), ex=600)
    assert not signed_in(client)


def test_ones_own_new_password_keeps_this_session_and_ends_the_others(
    person: Callable[..., str],
    client_as: ClientAs,
    api_as: Callable[[str], FlaskClient],
    browser: Callable[[], Browser],
) -> None:
    username = person("Nurse")
    mine, other, program = client_as(username), client_as(username), api_as(username)
    before = cookie_of(mine)
    fields = {"current": PASSWORD, "password": ANOTHER, "conf_password": ANOTHER}
    answer = mine.submit("/resetmypassword/form", fields, follow_redirects=True)
    assert answer.status_code == 200
    assert "Everywhere else you are signed out" in answer.text
    assert cookie_of(mine) != before
    assert signed_in(mine)
    assert not signed_in(other)
    assert program.get("/api/v1/patient/").status_code == 401
    thief = browser()
    thief.set_cookie("wardbook", before)
    assert not signed_in(thief)
    assert failing(browser(), username, PASSWORD).status_code == 401
    assert failing(browser(), username, ANOTHER).status_code == 302
    assert mine.page("/me/").count("Sign out there") == 1


def test_signing_in_leaves_nothing_of_whoever_sat_there_before(
    client_as: ClientAs, hospital: Hospital, servers: Servers
) -> None:
    client = client_as("doctor")
    client.get(f"/patients/{hospital.patients[1]}/")
    assert kept(client, servers)["recent"] == [hospital.patients[1]]
    sql("UPDATE ab_user SET active = false WHERE username = 'doctor'")
    sql("UPDATE ab_user SET active = true WHERE username = 'doctor'")
    client.get("/")
    client.submit("/login/", {"username": "nurse", "password": PASSWORD})
    assert "recent" not in kept(client, servers)
    assert "branch_id" not in kept(client, servers)


# ---- the list of sessions ------------------------------------------------------------------------------------------

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
EDGE = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0"


def sit(browser: Callable[[], Browser], username: str, agent: str) -> Browser:
    client = browser()
    client.environ_base["HTTP_USER_AGENT"] = agent
    assert failing(client, username, PASSWORD).status_code == 302
    return client


def test_ones_sessions_are_listed_and_ended(
    person: Callable[..., str], browser: Callable[[], Browser], servers: Servers
) -> None:
    username = person("Nurse")
    here, there = sit(browser, username, FIREFOX), sit(browser, username, EDGE)
    page = here.page("/me/")
    for word in ("Firefox on Linux", "Edge on Windows", "Here and now", there.environ_base["REMOTE_ADDR"]):
        assert word in page
    for client in (here, there):
        assert cookie_of(client) not in page, "the list opens nobody's session"
    (digest,) = re.findall(r'name="session" value="([0-9a-f]+)"', page)
    assert post(here, "/me/sessions/end", session=digest).status_code == 302
    assert not signed_in(there)
    assert signed_in(here)
    assert "Edge on Windows" not in here.page("/me/")


def test_every_other_session_is_ended_at_once(person: Callable[..., str], browser: Callable[[], Browser]) -> None:
    username = person("Nurse")
    here, *others = (sit(browser, username, FIREFOX) for _ in range(4))
    assert post(here, "/me/sessions/end-others").status_code == 302
    assert signed_in(here)
    assert not any(signed_in(other) for other in others)


def test_nobody_ends_somebody_elses_session(person: Callable[..., str], browser: Callable[[], Browser]) -> None:
    mine, theirs = sit(browser, person("Nurse"), FIREFOX), sit(browser, person("Nurse"), EDGE)
    elsewhere = sit(browser, person("Nurse"), EDGE)
    digest = hashlib.sha256(cookie_of(theirs).encode()).hexdigest()[:16]
    post(mine, "/me/sessions/end", session=digest)
    assert signed_in(theirs)
    assert signed_in(elsewhere)


def test_a_session_that_died_vanishes_from_the_list(
    person: Callable[..., str], browser: Callable[[], Browser], servers: Servers
) -> None:
    username = person("Nurse")
    here, there = sit(browser, username, FIREFOX), sit(browser, username, EDGE)
    store = redis.Redis.from_url(servers.redis_url)
    store.delete(f"session:{cookie_of(there)}")
    assert "Edge on Windows" not in here.page("/me/")
    name = f"sessions:{row(username)['id']}"
    for digest, found in store.hgetall(name).items():
        noted = json.loads(found)
        store.hset(name, digest, json.dumps({**noted, "since": noted["since"] - 120}))
    here.page("/me/")
    assert store.hlen(name) == 1
    assert 0 < store.ttl(name) <= 12 * 3600


def test_a_session_that_was_ended_is_not_written_back_by_a_request_under_way(
    app: Flask, person: Callable[..., str], client_as: ClientAs, servers: Servers
) -> None:
    client = client_as(person("Nurse"))
    cookie = cookie_of(client)
    store = redis.Redis.from_url(servers.redis_url)
    interface = app.session_interface
    with app.test_request_context("/", headers={"Cookie": f"wardbook={cookie}"}) as under_way:
        opened = interface.open_session(app, under_way.request)
        assert opened is not None
        assert opened["_user_id"]
        client.get("/logout/")
        assert store.get(f"session:{cookie}") is None
        opened["recent"] = [1]
        interface.save_session(app, opened, app.response_class())
    assert store.get(f"session:{cookie}") is None


# ---- staying, cookies, headers -------------------------------------------------------------------------------------


def test_a_page_knows_when_its_session_ends_and_how_to_stay(
    client_as: ClientAs, browser: Callable[[], Browser]
) -> None:
    client = client_as("nurse")
    page = client.page("/patients/")
    assert 'data-idle="900"' in page
    assert '<dialog id="idle"' in page
    assert client.get("/me/awake").status_code == 204
    assert browser().get("/me/awake").status_code == 302
    assert "data-idle" not in browser().page("/login/")
    page = browser().page("/login/?ended=idle&next=/patients/")
    assert "nobody used the page" in page


def other_app(servers: Servers, database: Any, spool: Any, **changed: Any) -> Flask:
    from views import create_app

    return create_app(Settings(database.url, servers.redis_url, servers.trail_redis_url, spool, **changed))


def test_under_https_the_cookie_is_this_hosts_alone(servers: Servers, database: Any, spool: Any) -> None:
    app = other_app(servers, database, spool, public_url="https://wardbook.example")
    client = Browser(app, app.response_class, use_cookies=True)
    answer = client.get("/login/", base_url="https://wardbook.example")
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("__Host-wardbook=")
    for part in ("; Secure", "; HttpOnly", "; Path=/", "; SameSite=Lax"):
        assert part in cookie
    assert "Domain" not in cookie
    assert "max-age" in answer.headers["Strict-Transport-Security"]
    token = csrf_of(answer.text)
    answer = client.post(
        "/login/",
        base_url="https://wardbook.example",
        headers={"Referer": "https://wardbook.example/login/"},
        data={"username": "nurse", "password": PASSWORD, "csrf_token": token},
    )
    assert answer.status_code == 302
    assert client.get("/me/", base_url="https://wardbook.example").status_code == 200


def test_a_hospital_without_an_administrator_is_told_how_to_make_one(
    app: Flask, servers: Servers, fresh_database: Callable[..., str], migrated: str, spool: Any
) -> None:
    from sqlalchemy import make_url

    from views import create_app, security

    restored = str(guard.engine().url.render_as_string(hide_password=False))
    url = fresh_database(make_url(migrated).database)
    security._administered = False
    empty = create_app(
        Settings(url, servers.redis_url, servers.trail_redis_url, spool, production=True, environment="production")
    )
    assert "run.py administrator" in empty.test_client().get("/login/").text
    accounts.seed()
    fields = {"username": "ada", "password": ANOTHER, "email": "ada@hospital.example", "name": "Ada King Lovelace"}
    with guard.acting_as(service("setup")), guard.unit_of_work() as session:
        accounts.make_administrator(session, **fields)
    assert "run.py administrator" not in empty.test_client().get("/login/").text
    assert (row("ada")["first_name"], row("ada")["last_name"]) == ("Ada", "King Lovelace")
    security._administered = False
    guard.connect(restored)


INLINE = re.compile(r"<[^>]*\s(?:on[a-z]+|style)\s*=|<style\b|javascript:", re.IGNORECASE)


def test_no_page_has_what_its_content_policy_forbids(
    app: Flask, client_as: ClientAs, browser: Callable[[], Browser], hospital: Hospital
) -> None:
    admin, doctor = client_as("admin"), client_as("doctor")
    number = hospital.accounts["nurse"]
    walked = [(browser(), address) for address in ("/login/", "/login/?ended=idle", "/nothing")]
    adapter = app.url_map.bind("localhost")
    for rule in app.url_map.iter_rules():
        if "GET" in (rule.methods or ()) and not rule.arguments and not rule.rule.startswith(("/api/", "/logout")):
            walked += [(client, adapter.build(rule.endpoint)) for client in (admin, doctor)]
    walked += [
        (admin, f"/users/show/{number}"),
        (admin, f"/users/{number}/unlock"),
        (doctor, f"/patients/{hospital.patients[1]}/"),
    ]
    shown = 0
    for client, address in walked:
        answer = client.get(address)
        if answer.mimetype != "text/html" or answer.status_code in (301, 302, 308):
            continue
        shown += 1
        assert INLINE.search(answer.text) is None, f"{address}: {INLINE.search(answer.text)}"
        policy = answer.headers["Content-Security-Policy"]
        assert "unsafe-" not in policy
        assert "default-src 'self'" in policy
        nonces = set(re.findall(r"'nonce-([^']+)'", policy))
        for tag in re.findall(r"<script\b[^>]*>", answer.text):
            assert 'type="application/json"' in tag or any(f'nonce="{nonce}"' in tag for nonce in nonces), address
    assert shown > 30


# ---- the command line ----------------------------------------------------------------------------------------------


def test_an_administrator_is_let_in_again(
    app: Flask, client_as: ClientAs, browser: Callable[[], Browser], person: Callable[..., str]
) -> None:
    username = person("Admin")
    client = client_as(username)
    enrol(client)
    for _ in range(6):
        failing(browser(), username)
    with guard.acting_as(service("setup")), guard.unit_of_work() as session:
        accounts.recover_administrator(session, username=username, password=ANOTHER)
    assert not signed_in(client)
    assert failing(browser(), username, ANOTHER).headers["Location"] == "/"
    assert row(username)["totp_secret"] is None
    nurse = person("Nurse")
    before = row(nurse)
    for name in (nurse, "nobody here"):
        with (
            pytest.raises(NotFound),
            guard.acting_as(service("setup")),
            guard.unit_of_work() as session,
        ):
            accounts.recover_administrator(session, username=name, password=ANOTHER)
    assert row(nurse) == before


def test_only_whoever_may_change_accounts_can(hospital: Hospital, app: Flask) -> None:
    number = hospital.accounts["lab"]
    before = row("lab")
    for deed in (
        lambda session: accounts.give_password(session, number, ANOTHER),
        lambda session: accounts.end_sessions(session, number, reason="because"),
        lambda session: accounts.unlock(session, number, reason="because"),
        lambda session: accounts.reset_second_factor(session, number, reason="because"),
    ):
        with (
            pytest.raises(Forbidden),
            factories.acting(hospital.accounts["doctor"]),
            guard.unit_of_work() as session,
        ):
            deed(session)
    assert row("lab") == before


@pytest.mark.timeout(300)
def test_the_first_administrator_is_made_on_the_command_line(
    servers: Servers, fresh_database: Callable[..., str], spool: Any, tmp_path: Any
) -> None:
    url = fresh_database()

    def run(*arguments: str, password: str) -> subprocess.CompletedProcess[str]:
        environ = {
            **os.environ,
            "WARDBOOK_HOME": str(tmp_path / "home"),
            "WARDBOOK_ENV": "production",
            "WARDBOOK_SECRET_KEY": "3f9a1c5be07d42868b1e0d7c6a5f4e3d2c1b0a99",
            "DATABASE_URL": url,
            "REDIS_URL": servers.redis_url,
            "TRAIL_REDIS_URL": servers.trail_redis_url,
        }
        return subprocess.run(
            [sys.executable, str(PROJECT / "run.py"), *arguments],
            input=password + "\n",
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def asked(statement: str) -> list[Any]:
        engine = create_engine(url)
        try:
            with engine.connect() as connection:
                return list(connection.execute(text(statement)).mappings())
        finally:
            engine.dispose()

    who = ("administrator", "ada", "--email", "ada@hospital.example", "--name", "Ada Lovelace")
    assert run("administrator", "ada", password=ANOTHER).returncode == 1
    refused = run(*who, password="password1234")
    assert refused.returncode == 1
    assert "guessed too easily" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert asked("SELECT 1 FROM ab_user") == []
    made = run(*who, password=ANOTHER)
    assert made.returncode == 0, made.stderr
    assert "sign in as ada" in made.stdout
    assert ANOTHER not in made.stdout + made.stderr
    (ada,) = asked("SELECT username, email, password FROM ab_user")
    assert credentials.holds(ada["password"], ANOTHER)
    assert asked("SELECT 1 FROM account_power WHERE administers")
    told = json.dumps([dict(line)["event"] for line in asked("SELECT event FROM audit_outbox")])
    assert "made on the command line" in told
    assert ANOTHER not in told
    assert "argon2" not in told
    again = run(*who, password=ANOTHER)
    assert again.returncode == 1
    assert "taken" in again.stderr
    third = "a lighthouse eats tuesdays"
    assert run("administrator", "nobody", "--recover", password=third).returncode == 1
    recovered = run("administrator", "ada", "--recover", password=third)
    assert recovered.returncode == 0, recovered.stderr
    (ada,) = asked("SELECT username, email, password FROM ab_user")
    assert credentials.holds(ada["password"], third)
