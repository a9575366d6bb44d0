"""The settings: what is read, what is refused, and what keeps an installation out of production."""

from pathlib import Path

import pytest

from config import PROJECT, ConfigurationError, Settings

GOOD_KEY = "3f9a1c5be07d42868b1e0d7c6a5f4e3d2c1b0a99"


def read(**environ: str) -> Settings:
    return Settings.from_environment(environ)


def test_an_empty_environment_is_a_demo_at_home() -> None:
    settings = read()
    assert settings.environment == "demo"
    assert settings.home == PROJECT / "var"
    assert settings.spool_directory == PROJECT / "var" / "spool"
    assert (settings.database_url, settings.redis_url, settings.trail_redis_url) == ("", "", "")
    assert settings.host == "127.0.0.1"
    assert settings.public_url == "http://127.0.0.1:8080"
    assert settings.refusals() == []


def test_blank_values_count_as_unset() -> None:
    assert read(PORT=" ", DATABASE_URL="", WARDBOOK_HOME="") == read()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_way_to_write_a_postgres_address_means_our_driver(scheme: str) -> None:
    assert read(DATABASE_URL=f"{scheme}://u:p@db:5432/w").database_url == "postgresql+psycopg://u:p@db:5432/w"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("DATABASE_URL", "mysql://db/w", "only PostgreSQL"),
        ("DATABASE_URL", "db:5432", "only PostgreSQL"),
        ("REDIS_URL", "http://cache", "redis://"),
        ("TRAIL_REDIS_URL", "cache:6379", "redis://"),
        ("PORT", "0", "from 1 to 65535"),
        ("PORT", "65536", "from 1 to 65535"),
        ("PORT", "80x", "from 1 to 65535"),
        ("PORT", "٨٠", "from 1 to 65535"),
        ("PORT", "-1", "from 1 to 65535"),
        ("WARDBOOK_WORKERS", "0", "from 1 to 64"),
        ("WARDBOOK_TRUSTED_PROXIES", "9", "from 0 to 8"),
        ("WARDBOOK_IDLE_MINUTES", "0", "from 1 to 1440"),
        ("WARDBOOK_SESSION_HOURS", "0", "from 1 to 168"),
        ("WARDBOOK_SESSION_HOURS", "169", "from 1 to 168"),
        ("WARDBOOK_OIDC_ISSUER", "https://id.example", "must be set as well"),
        ("WARDBOOK_OIDC_CLIENT_SECRET", "s", "WARDBOOK_OIDC_ISSUER and WARDBOOK_OIDC_CLIENT_ID"),
        ("WARDBOOK_ENV", "staging", "demo, production"),
        ("WARDBOOK_DEBUG", "maybe", "1 or 0"),
        ("WARDBOOK_LOG_LEVEL", "LOUD", "DEBUG"),
        ("WARDBOOK_URL", "wardbook.example", "http://"),
    ],
)
def test_a_value_without_sense_is_refused_by_name(variable: str, value: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Settings.from_environment({variable: value})
    assert variable in str(refusal.value)
    assert says in str(refusal.value)


@pytest.mark.parametrize(("value", "number"), [("1", 1), ("65535", 65535)])
def test_the_limits_of_a_port_are_ports(value: str, number: int) -> None:
    assert read(PORT=value).port == number


def test_home_takes_the_spool_along(tmp_path: Path) -> None:
    settings = read(WARDBOOK_HOME=str(tmp_path))
    assert settings.home == tmp_path
    assert settings.spool_directory == tmp_path / "spool"
    assert read(WARDBOOK_HOME=str(tmp_path), WARDBOOK_SPOOL="/srv/in").spool_directory == Path("/srv/in")


def test_a_relative_home_is_told_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read(WARDBOOK_HOME="here").home == tmp_path / "here"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WARDBOOK_ENV": "production", "WARDBOOK_SECRET_KEY": GOOD_KEY, "HOST": "0.0.0.0", "PORT": "443"},
        {"WARDBOOK_DEBUG": "1", "WARDBOOK_URL": "https://wardbook.example/", "WARDBOOK_LOG_LEVEL": "debug"},
    ],
)
def test_settings_survive_the_way_to_a_child_process(environ: dict[str, str]) -> None:
    settings = Settings.from_environment(environ)
    assert Settings.from_environment(settings.to_environment()) == settings


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    shown = repr(
        read(DATABASE_URL="postgres://u:hidden-1@db/w", REDIS_URL="redis://:hidden-2@r", WARDBOOK_SECRET_KEY="hidden-3")
    )
    assert "hidden" not in shown


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, "is not set"),
        ({"WARDBOOK_SECRET_KEY": GOOD_KEY[:31]}, "can be guessed"),
        ({"WARDBOOK_SECRET_KEY": "change-me" * 4}, "can be guessed"),
        ({"WARDBOOK_SECRET_KEY": "a" * 64}, "can be guessed"),
        ({"WARDBOOK_SECRET_KEY": GOOD_KEY, "WARDBOOK_DEBUG": "yes"}, "WARDBOOK_DEBUG is on"),
    ],
)
def test_production_is_refused_with_a_reason(environ: dict[str, str], says: str) -> None:
    (reason,) = read(WARDBOOK_ENV="production", **environ).refusals()
    assert says in reason
    assert read(**environ).refusals() == []


@pytest.mark.parametrize(
    ("environ", "allowed"),
    [
        ({}, True),
        ({"WARDBOOK_URL": "https://wardbook.example", "HOST": "0.0.0.0"}, True),
        ({"WARDBOOK_URL": "http://127.0.0.1:8080"}, True),
        ({"WARDBOOK_URL": "http://[::1]:8080"}, True),
        ({"WARDBOOK_URL": "http://localhost:8080"}, True),
        ({"WARDBOOK_URL": "http://wardbook.example"}, False),
        ({"WARDBOOK_URL": "http://localhost.evil.example"}, False),
        ({"WARDBOOK_URL": "http://10.0.0.5"}, False),
        ({"HOST": "0.0.0.0"}, False),
        ({"HOST": "10.0.0.5"}, False),
    ],
)
def test_passwords_cross_no_network_in_the_open(environ: dict[str, str], allowed: bool) -> None:
    reasons = read(WARDBOOK_ENV="production", WARDBOOK_SECRET_KEY=GOOD_KEY, **environ).refusals()
    assert [reason.split()[0] for reason in reasons] == ([] if allowed else ["WARDBOOK_URL"])
    assert read(**environ).refusals() == []


OIDC = {"WARDBOOK_OIDC_CLIENT_ID": "wardbook", "WARDBOOK_OIDC_CLIENT_SECRET": "hidden-4"}


def test_a_provider_is_named_whole_or_not_at_all() -> None:
    settings = read(WARDBOOK_OIDC_ISSUER="https://id.example", **OIDC)
    assert (settings.oidc_issuer, settings.oidc_name) == ("https://id.example", "the hospital's account")
    assert "hidden" not in repr(settings)
    with pytest.raises(ConfigurationError) as refusal:
        read(WARDBOOK_OIDC_ISSUER="id.example", **OIDC)
    assert "must begin with https://" in str(refusal.value)
    open_one = read(
        WARDBOOK_ENV="production", WARDBOOK_SECRET_KEY=GOOD_KEY, WARDBOOK_OIDC_ISSUER="http://id.example", **OIDC
    )
    (reason,) = open_one.refusals()
    assert "WARDBOOK_OIDC_ISSUER does not begin with https://" in reason


def test_production_with_a_key_of_its_own_is_allowed() -> None:
    assert read(WARDBOOK_ENV="production", WARDBOOK_SECRET_KEY=GOOD_KEY).refusals() == []
