"""Starting and ending: the servers we bring along, the processes we watch, and what is said when it cannot be."""

import errno
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ops import doctor
from ops.errors import CannotStart, Stopped, sentence
from ops.home import MARK, HomeTaken, Running, connected, held, kept_secret, running
from ops.processes import LINUX, Process, command_of, marked
from ops.servers import Servers, embedded, free_port, started
from ops.supervisor import BACK_OFF, Watched, check_port, stop_all, stoppable

PROJECT = Path(__file__).resolve().parents[2]
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


def silent(_line: str) -> None:
    """Say nothing."""


def open_database(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("+psycopg", ""))


def eventually(true: Callable[[], object]) -> bool:
    """Whether it becomes true; the limit is only there so that a failure ends."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def home() -> Iterator[Path]:
    """A home whose path has a blank and a quote, which the account root lends its servers can enter."""
    folder = Path(tempfile.mkdtemp(prefix="wardbook's home "))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]


def listens(pid: int, port: int) -> bool:
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in psutil.Process(pid).net_connections())


def listens_anew(supervisor: int, port: int, before: int) -> bool:
    return any(pid != before and listens(pid, port) for pid in children(supervisor))


def process(tmp_path: Path, command: list[str], patience: float = 30.0) -> Process:
    return Process("trial", command, tmp_path / "trial.log", dict(os.environ), patience=patience)


# The servers


def test_the_database_is_new_enough_and_has_what_the_models_use(servers: Servers) -> None:
    findings = list(doctor.postgres(servers.database_url))
    assert findings[0].seen.startswith("PostgreSQL 1")
    assert not [finding for finding in findings if "extensions" in finding.seen]
    with open_database(servers.database_url) as connection:
        shown = {name: connection.execute(f"SHOW {name}").fetchone() for name in ("timezone", "server_encoding")}
    assert shown == {"timezone": ("UTC",), "server_encoding": ("UTF8",)}


def test_the_trail_is_on_disk_before_it_answers(servers: Servers) -> None:
    assert not [finding for finding in doctor.trail(servers.trail_redis_url) if finding.remedy]


def test_a_trail_that_could_lose_lines_is_found(home: Path) -> None:
    with embedded(home, need_database=False, need_trail=False, durable=False) as servers:
        wrong = [finding for finding in doctor.trail(servers.redis_url) if finding.wrong]
    assert [finding.remedy for finding in wrong] == ["Set appendonly to yes.", "Set appendfsync to always."]


@pytest.mark.parametrize("password", ["", "wrong"])
def test_nobody_enters_without_the_password(home: Path, password: str) -> None:
    with embedded(home, need_redis=False, durable=False) as servers:
        parts = psycopg.conninfo.conninfo_to_dict(servers.database_url.replace("+psycopg", ""))
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(**{**parts, "password": password})
        port = int(servers.trail_redis_url.rpartition(":")[2].partition("/")[0])
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port, password=password or None, retry=Retry(NoBackoff(), 0)).ping()


def test_passwords_and_rows_are_for_one_account_only(home: Path) -> None:
    with embedded(home, durable=False):
        private = [*home.glob("*.password"), home / "redis" / "valkey.conf", home / "postgres", home / "trail"]
        assert len(private) == 7
        assert {path.name: stat.S_IMODE(path.stat().st_mode) & 0o077 for path in private} == dict.fromkeys(
            (path.name for path in private), 0
        )


def test_the_application_s_own_account_may_do_no_more_than_it_needs(home: Path) -> None:
    """It adds to the trail and reads it; what the owner's triggers refuse, it may not even try, nor end a trigger."""
    from models import migrations

    with embedded(home, need_redis=False, need_trail=False, durable=False) as servers:
        migrations.migrate(servers.owner_url)
        migrations.grant(servers.owner_url, servers.database_url)
        migrations.grant(servers.owner_url, servers.database_url)
        with open_database(servers.database_url) as door:
            assert door.execute("SELECT count(*) FROM audit_event").fetchone() == (0,)
            door.execute("SELECT wb_audit_partitions(3)")
            months = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_event'::regclass"
            assert door.execute(months).fetchone() == (5,)
            door.commit()
            for statement in (
                "UPDATE audit_event SET outcome = 0",
                "DELETE FROM audit_event",
                "TRUNCATE audit_event",
                "UPDATE audit_event_default SET outcome = 0",
                "SELECT * FROM audit_event_default",
                "UPDATE audit_batch SET n = 1",
                "DELETE FROM audit_batch",
                "DELETE FROM audit_quarantine",
                "INSERT INTO audit_archive (month) VALUES ('2019-05-01')",
                "UPDATE audit_archive SET lines = 0",
                "UPDATE audit_outbox SET event = '{}'",
                "DELETE FROM patient",
                "DELETE FROM clinical_note",
                "ALTER TABLE audit_event DISABLE TRIGGER USER",
                "ALTER TABLE audit_event DETACH PARTITION audit_event_default",
                "DROP TABLE audit_event",
                "CREATE TABLE further (n int)",
                "UPDATE alembic_version SET version_num = '0001'",
                "SET ROLE wardbook",
                "SET session_replication_role = replica",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    door.execute(statement)
                door.rollback()


def test_a_second_start_keeps_everything(home: Path) -> None:
    with embedded(home) as servers:
        with open_database(servers.owner_url) as connection:
            connection.execute("CREATE TABLE kept (word text)")
            connection.execute("INSERT INTO kept VALUES ('Zoë')")
        for url in (servers.redis_url, servers.trail_redis_url):
            redis.Redis.from_url(url).set("kept", "yes")
    with embedded(home) as servers:
        with open_database(servers.owner_url) as connection:
            assert connection.execute("SELECT word FROM kept").fetchall() == [("Zoë",)]
        assert [redis.Redis.from_url(url).get("kept") for url in (servers.redis_url, servers.trail_redis_url)] == [
            b"yes",
            b"yes",
        ]


def test_only_what_is_needed_runs_and_all_of_it_ends(home: Path) -> None:
    with started(home, need_redis=False, durable=False) as (servers, members):
        assert servers.redis_url == ""
        pids = [member.process.pid for member in members if member.process and member.process.pid]
        assert [command_of(pid) is not None for pid in pids] == [True, True]
    assert [command_of(pid) for pid in pids] == [None, None]


HOLDER = """
import sys, time
from pathlib import Path
from ops.servers import embedded
with embedded(Path(sys.argv[1])) as servers:
    print(servers.owner_url, servers.trail_redis_url, flush=True)
    time.sleep(600)
"""


def test_after_kill_nine_nothing_stays_and_the_next_start_has_every_row(home: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home)], stdout=subprocess.PIPE, text=True, cwd=PROJECT
    ) as holder:
        assert holder.stdout
        database_url, trail_url = holder.stdout.readline().split()
        with open_database(database_url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        redis.Redis.from_url(trail_url).xadd("trail", {"line": "1"})
        pids = [int((home / "postgres" / "postmaster.pid").read_text().split()[0])]
        pids += [int((home / name / "valkey.pid").read_text()) for name in ("redis", "trail")]
        holder.kill()
    if LINUX:
        assert eventually(lambda: not any(map(command_of, pids)))
    with embedded(home) as servers:
        with open_database(servers.owner_url) as connection:
            assert connection.execute("SELECT n FROM kept").fetchall() == [(7,)]
        assert redis.Redis.from_url(servers.trail_redis_url).xlen("trail") == 1


def test_servers_left_running_are_ended_by_the_next_start(home: Path) -> None:
    said: list[str] = []
    with (
        started(home, durable=False) as (_, strays),
        started(home, durable=False, say=said.append) as (servers, _),
    ):
        assert [stray.alive for stray in strays] == [False, False, False]
        with open_database(servers.database_url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert said == [
        "Ending the PostgreSQL a killed run left behind",
        "Ending the Valkey (redis) a killed run left behind",
        "Ending the Valkey (trail) a killed run left behind",
    ]


def test_a_pid_file_naming_somebody_else_is_no_obstacle(home: Path) -> None:
    with embedded(home, need_redis=False, need_trail=False, durable=False):
        told = (home / "postgres" / "postmaster.pid").read_text()
    bystander = os.getppid()
    (home / "postgres" / "postmaster.pid").write_text(told.replace(told.split()[0], str(bystander), 1))
    with embedded(home, need_redis=False, need_trail=False, durable=False) as servers:
        assert servers.database_url
    assert command_of(bystander)


def test_a_cluster_left_half_made_is_made_anew(home: Path) -> None:
    (home / "postgres.new").mkdir()
    (home / "postgres.new" / "PG_VERSION").write_text("18")
    with embedded(home, need_redis=False, need_trail=False, durable=False) as servers:
        assert servers.database_url
    assert not (home / "postgres.new").exists()


def test_data_of_another_postgresql_are_left_alone(home: Path) -> None:
    (home / "postgres").mkdir()
    (home / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(CannotStart, match="made by PostgreSQL 12"), embedded(home, need_redis=False, need_trail=False):
        pass
    assert (home / "postgres" / "PG_VERSION").read_text() == "12\n"


def test_a_lost_password_file_is_told_from_a_server_that_is_slow(home: Path) -> None:
    with embedded(home, need_redis=False, need_trail=False, durable=False):
        pass
    (home / "postgres.password").unlink()
    with (
        pytest.raises(CannotStart, match="put the right file back"),
        embedded(home, need_redis=False, need_trail=False, durable=False),
    ):
        pass


def test_a_server_that_died_comes_back_at_the_same_address(home: Path) -> None:
    with started(home, durable=False) as (servers, members):
        for member in members:
            assert member.process
            member.process.kill()
            assert eventually(lambda member=member: not member.alive)
            member.start()
        with open_database(servers.database_url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert redis.Redis.from_url(servers.trail_redis_url).ping()


# The home


def test_a_home_has_one_holder_and_tells_the_others(home: Path) -> None:
    told = Running(os.getpid(), "run", "http://127.0.0.1:8080", Servers("d", "r", "t"))
    assert running(home) is None
    with held(home) as hold:
        hold.publish(told)
        assert running(home) == told
        assert stat.S_IMODE((home / "runtime.json").stat().st_mode) == 0o600
        with pytest.raises(HomeTaken, match=r"already running at http://127\.0\.0\.1:8080"), held(home):
            pass
    assert running(home) is None
    assert not (home / "runtime.json").exists()


def test_what_a_killed_holder_told_is_not_believed(home: Path) -> None:
    (home / "lock").touch()
    stale = {"pid": 1, "command": "run", "address": "", "servers": {}}
    (home / "runtime.json").write_text(json.dumps(stale))
    assert running(home) is None


def test_a_command_uses_the_servers_it_was_told_then_the_running_ones(home: Path, tmp_path: Path) -> None:
    named = Servers("d", "r", "t")
    absent = tmp_path / "absent"
    with connected(absent, named, "doctor", silent) as servers:
        assert servers == named
    assert not absent.exists()
    with held(home) as hold:
        hold.publish(Running(os.getpid(), "run", "", Servers("d2", "r2", "t2")))
        with connected(home, Servers("d", "", ""), "doctor", silent) as servers:
            assert servers == Servers("d", "r2", "t2")


def test_a_command_brings_its_own_servers_where_nothing_runs(home: Path) -> None:
    with connected(home, Servers("", "", ""), "migrate", silent) as servers:
        found = running(home)
        assert found
        assert (found.command, found.servers) == ("migrate", servers)
        assert redis.Redis.from_url(servers.redis_url).ping()
    assert running(home) is None


def test_a_secret_is_made_once_and_refused_when_others_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "secret-key"
    key = kept_secret(path)
    assert len(key) == 64
    assert kept_secret(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(CannotStart, match="chmod 600"):
        kept_secret(path)


# The processes


def test_stopping_ends_what_a_process_had_forked(tmp_path: Path) -> None:
    parent = process(
        tmp_path, ["/bin/sh", "-c", f"'{sys.executable}' -c 'import time; time.sleep(600)' & echo $!; wait"]
    )
    parent.start()
    assert eventually(lambda: parent.last_words().strip())
    child = int(parent.last_words())
    assert command_of(child)
    stop_all([parent])
    assert not parent.alive
    assert eventually(lambda: command_of(child) is None)


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = process(tmp_path, STUBBORN, patience=0.2)
    deaf.start()
    assert eventually(deaf.last_words)
    stop_all([deaf])
    assert deaf.exit_status == -signal.SIGKILL


@pytest.mark.skipif(not LINUX, reason="the kernel's promise is Linux's")
def test_strays_are_known_by_their_mark(home: Path, tmp_path: Path) -> None:
    with held(home) as hold:
        stray = process(tmp_path, SLEEP)
        stray.environment = {**os.environ, **hold.environment}
        stray.start()
        name, value = next(iter(hold.environment.items()))
        assert eventually(lambda: marked(f"{name}={value}"))
        hold.end_strays(silent)
        assert eventually(lambda: not stray.alive)


def test_a_death_is_answered_by_a_restart_after_a_pause_that_grows(tmp_path: Path) -> None:
    short = process(tmp_path, [sys.executable, "-c", "raise LookupError('no such table')"])
    watched = Watched.process(short)
    said: list[str] = []
    now = watched.started_at
    short.start()
    for pause in BACK_OFF:
        assert eventually(lambda: not short.alive)
        watched.look(now, said.append)
        pid = short.pid
        watched.look(now + pause - 0.01, said.append)
        assert short.pid == pid
        now += pause
        watched.look(now, said.append)
        assert short.pid != pid
    assert eventually(lambda: not short.alive)
    with pytest.raises(CannotStart, match=r"7 times in a row.*no such table"):
        watched.look(now, said.append)
    assert len(said) == len(BACK_OFF)


def test_who_ran_for_long_has_his_deaths_forgiven(tmp_path: Path) -> None:
    short = process(tmp_path, [sys.executable, "-c", ""])
    watched = Watched.process(short)
    watched.deaths = len(BACK_OFF)
    short.start()
    assert eventually(lambda: not short.alive)
    watched.look(watched.started_at + 61, silent)
    assert watched.deaths == 1


def test_the_first_signal_stops_and_the_second_hurries() -> None:
    hurried: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)
    with stoppable(hurry=lambda: hurried.append(True)):
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        assert hurried == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert hurried == [True]
    assert signal.getsignal(signal.SIGTERM) == before


# What is said


def test_a_taken_port_is_told_with_another_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=f"Port {port} .* is taken .*PORT="):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", free_port())


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "The disk is full (/somewhere/x)."),
        (errno.EROFS, "/somewhere/x is on a read-only disk."),
        (errno.EACCES, "You may not write to /somewhere/x."),
        (errno.ENOTDIR, "Not a directory (/somewhere/x)."),
    ],
)
def test_trouble_with_the_disk_is_a_sentence(number: int, says: str) -> None:
    assert sentence(OSError(number, os.strerror(number), "/somewhere/x"), Path("/home")).startswith(says)


def test_packages_are_compared_with_their_pins(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    redis_now = redis.__version__
    pins.write_text(
        f"redis=={redis_now} \\\n    --hash=sha256:00\npsycopg[binary]==1.0 \\\n"
        "no-such-package==2.0\nonly-elsewhere==1.0 ; sys_platform == 'plan9' \\\n"
    )
    (finding,) = doctor.packages(pins)
    assert finding.wrong
    assert finding.seen.endswith("no-such-package is missing.")
    assert "psycopg is" in finding.seen
    assert "redis" not in finding.seen
    assert "only-elsewhere" not in finding.seen
    assert not [found for found in doctor.packages(PROJECT / "requirements.txt") if found.wrong]


def test_servers_that_do_not_answer_are_findings(home: Path) -> None:
    port = free_port()
    found = [
        *doctor.postgres(f"postgresql+psycopg://u:p@127.0.0.1:{port}/w"),
        *doctor.queue(f"redis://127.0.0.1:{port}/0", ""),
        *doctor.trail(f"redis://127.0.0.1:{port}/0"),
    ]
    assert [finding.wrong for finding in found] == [True, True, True]
    lines, well = doctor.report(found)
    assert not well
    assert sum(line.lstrip().startswith("→") for line in lines) == 3


def run_py(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    named = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    return subprocess.run(
        [sys.executable, str(PROJECT / "run.py"), *arguments],
        env={**named, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_command_and_setting() -> None:
    shown = run_py("--help").stdout
    for word in ("serve", "worker", "scheduler", "import-fhir", "doctor", "TRAIL_REDIS_URL", "WARDBOOK_HOME"):
        assert word in shown


@pytest.mark.parametrize(
    ("command", "environ", "says"),
    [
        ("run", {"PORT": "eighty"}, "PORT is 'eighty'"),
        (
            "serve",
            {"WARDBOOK_ENV": "production", "DATABASE_URL": "postgres://d", "REDIS_URL": "redis://r"},
            "WARDBOOK_SECRET_KEY",
        ),
        ("demo", {"WARDBOOK_ENV": "production"}, "does not go into production"),
        ("worker", {}, "There are no servers to work with"),
        ("scheduler", {}, "There are no servers to work with"),
    ],
)
def test_a_command_that_cannot_start_says_one_sentence(
    command: str, environ: dict[str, str], says: str, tmp_path: Path
) -> None:
    refused = run_py(command, WARDBOOK_HOME=str(tmp_path / "home"), **environ)
    assert refused.returncode == 1
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


@pytest.mark.parametrize("command", ["serve", "worker", "scheduler"])
def test_production_without_a_key_is_refused(command: str, tmp_path: Path) -> None:
    urls = {"DATABASE_URL": "postgres://d/w", "REDIS_URL": "redis://r", "TRAIL_REDIS_URL": "redis://t"}
    refused = run_py(command, WARDBOOK_HOME=str(tmp_path), WARDBOOK_ENV="production", **urls)
    assert refused.returncode == 1
    assert "WARDBOOK_SECRET_KEY is not set" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [(3, 6, 9), (3, 10, 14)])
def test_an_old_python_is_refused_politely(version: tuple[int, int, int]) -> None:
    script = str(PROJECT / "ops" / "bootstrap.py")
    pretending = f"import sys, runpy; sys.version_info = {version}; runpy.run_path({script!r}, run_name='__main__')"
    refused = subprocess.run([sys.executable, "-c", pretending], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert f"needs Python 3.11 or newer and found {version[0]}.{version[1]}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_home_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "var").touch()
    refused = run_py("doctor", WARDBOOK_HOME=str(tmp_path / "var"))
    assert refused.returncode == 1
    assert "is not a folder" in refused.stderr


# The whole house


@pytest.mark.timeout(300)  # a whole start, twice, maybe on a busy machine
def test_the_whole_house_starts_is_found_survives_a_death_and_ends_without_a_trace(home: Path) -> None:
    named = {name: value for name, value in os.environ.items() if not name.endswith("_URL")}
    port = free_port()
    environ = {
        **named,
        "WARDBOOK_HOME": str(home),
        "WARDBOOK_ENV": "production",
        "WARDBOOK_SECRET_KEY": "3f9a1c5be07d42868b1e0d7c6a5f4e3d2c1b0a99",
        "WARDBOOK_WORKERS": "1",
        "PORT": str(port),
    }
    command = [sys.executable, str(PROJECT / "run.py")]

    def ask(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    with subprocess.Popen(
        [*command, "run"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
    ) as house:
        assert house.stdout
        said: list[str] = []
        try:
            for line in house.stdout:
                said.append(line)
                if "Ctrl-C" in line:
                    break
            assert f"  Open      http://127.0.0.1:{port}\n" in said, "".join(said)
            assert not [line for line in said if "wardbook-demo" in line]
            assert ask("/healthz") == 200

            again = subprocess.run([*command, "run"], env=environ, capture_output=True, text=True, check=False)
            assert again.returncode == 1
            assert f"already running at http://127.0.0.1:{port}" in again.stderr
            look = subprocess.run([*command, "doctor"], env=environ, capture_output=True, text=True, check=False)
            assert "newest migration" in look.stdout
            assert look.returncode == 0, look.stdout

            (web,) = [pid for pid in children(house.pid) if listens(pid, port)]
            os.kill(web, signal.SIGKILL)
            assert eventually(lambda: ask("/healthz") == 200 and listens_anew(house.pid, port, web))
        finally:
            house.terminate()
            rest = house.stdout.read()
        assert "Stopped" in rest, rest
    assert house.returncode == 0
    with held(home) as hold:
        assert marked(f"{MARK}={hold.environment[MARK]}") == []
    assert not (home / "postgres" / "postmaster.pid").exists()


@pytest.mark.timeout(300)
def test_demo_accounts_do_not_go_into_production(home: Path) -> None:
    environ = {
        "WARDBOOK_HOME": str(home),
        "WARDBOOK_ENV": "production",
        "WARDBOOK_SECRET_KEY": "3f9a1c5be07d42868b1e0d7c6a5f4e3d2c1b0a99",
        "PORT": str(free_port()),
    }
    assert run_py("migrate", **environ).returncode == 0
    with embedded(home, need_redis=False, need_trail=False) as servers, open_database(servers.database_url) as door:
        door.execute(
            "INSERT INTO ab_user (id, first_name, last_name, username, email, active)"
            " VALUES (1, 'A', 'B', 'doctor', 'doctor@demo.wardbook.example', true)"
        )
    refused = run_py("run", **environ)
    assert refused.returncode == 1
    assert "the database holds demo accounts" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert running(home) is None
