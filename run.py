"""The composition root and the command line of Wardbook: `run.py --help`."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("Wardbook needs Python 3.11 or newer: use `make run`, or .venv/bin/python run.py.")

import argparse
import contextlib
import dataclasses
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if find_spec("psycopg") is None:
    sys.exit("The packages are not installed here: use `make run`, or .venv/bin/python run.py.")

from config import PROJECT, ConfigurationError, Settings
from ops.errors import CannotStart, Stopped, sentence

if TYPE_CHECKING:
    from flask import Flask

    from ops.servers import Servers

DEMO_ACCOUNTS = "admin reception nurse doctor trainee lab lab2 pharmacist billing privacy patient"
DEMO_PASSWORD = "wardbook-demo"  # noqa: S105
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

Command = Callable[[Settings, argparse.Namespace], int]


def read_settings() -> Settings:
    """The settings of the environment, with the secret key a demo makes for itself."""
    from ops.home import kept_secret
    from ops.servers import make_home

    settings = Settings.from_environment(os.environ)
    if not settings.secret_key and not settings.production:
        make_home(settings.home)
        settings = dataclasses.replace(settings, secret_key=kept_secret(settings.home / "secret-key"))
    return settings


def application() -> "Flask":
    """What gunicorn serves: `gunicorn "run:application()"`."""
    import gc

    from views import create_app

    app = create_app(read_settings())
    gc.collect()
    gc.freeze()  # what is loaded now stays; looking through all of it for garbage stops every thread for a while
    return app


def run(settings: Settings, _: argparse.Namespace) -> int:
    """Start everything, look after it, and end it when told to."""
    from ops.console import Console
    from ops.home import RUN, Running, held
    from ops.processes import Process
    from ops.servers import started
    from ops.supervisor import (
        Watched,
        check_port,
        follow_make,
        kill_all,
        python,
        run_step,
        stop_all,
        stoppable,
        wait_for_web,
        watch,
    )

    follow_make(os.environ)
    console = Console()
    processes: list[Process] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(stoppable(hurry=lambda: kill_all(processes)))
        hold = stack.enter_context(held(settings.home))
        try:
            hold.end_strays(console.say)
            check_port(settings.host, settings.port)
            console.block("\n  Wardbook\n")
            stack.callback(hold.end_strays, lambda _line: None)
            with console.step("PostgreSQL and Valkey"):
                own, members = stack.enter_context(
                    started(
                        settings.home,
                        need_database=not settings.database_url,
                        need_redis=not settings.redis_url,
                        need_trail=not settings.trail_redis_url,
                        say=console.say,
                    )
                )
            settings = with_servers(settings, own)
            environment = {**os.environ, **settings.to_environment(), **hold.environment}
            title = "Schema" if settings.production else "Schema and demo hospital"
            with console.step(title, shares=True):
                run_step(python("run.py", "prepare"), environment, PROJECT)
            web, *others = (
                Process(
                    name=name,
                    command=python("run.py", command),
                    log=settings.home / "log" / f"{name}.log",
                    environment=environment,
                    directory=str(PROJECT),
                    patience=10.0,
                )
                for name, command in (("web", "serve"), ("worker", "worker"), ("scheduler", "scheduler"))
            )
            processes += [web, *others]
            stack.callback(stop_all, processes)
            with console.step("Web server"):
                web.start()
                wait_for_web(web, settings.host, settings.port)
            for process in others:  # after it, for on a small machine they would only slow each other down
                process.start()
            hold.publish(Running(os.getpid(), RUN, settings.public_url, servers_of(settings)))
            console.block(welcome(settings))
            watched = [*map(Watched.server, members), *map(Watched.process, processes)]
            watch(watched, console.say)
        except Stopped:
            console.block("")
            with console.step("Stopping", done="Stopped"):
                stack.close()
            console.block(f"  Your data are kept in {shown(settings.home)}.\n")
            return 0
    return 0


def welcome(settings: Settings) -> str:
    """What to do next, once it runs."""
    lines = ["", f"  Open      {settings.public_url}"]
    if not settings.production:
        lines += [
            f"  Sign in   {DEMO_ACCOUNTS}",
            f"            (each with the password {DEMO_PASSWORD})",
        ]
    lines += ["  Stop      Ctrl-C", f"  Files     {shown(settings.home)} (logs in {shown(settings.home / 'log')})", ""]
    return "\n".join(lines)


def shown(path: Path) -> str:
    """A path as short as it can be said to somebody in the project's folder."""
    if Path.cwd() == PROJECT and path.is_relative_to(PROJECT):
        path = path.relative_to(PROJECT)
    return f"{path}/"


def serve(settings: Settings, _: argparse.Namespace) -> int:
    """Serve the web until told to stop.

    The application is imported once and then forked, which halves the start; each worker makes its own `create_app`,
    so that none shares a connection.
    """
    from gunicorn.app.base import BaseApplication

    settings = with_running_servers(settings)
    refuse_demo_accounts(settings)
    os.environ.update(settings.to_environment())
    bind = f"[{settings.host}]" if ":" in settings.host else settings.host
    options = {
        "bind": f"{bind}:{settings.port}",
        "worker_class": "gthread",
        "workers": settings.workers,
        "threads": settings.threads + settings.sockets,  # views/sockets.py keeps the one from eating up the other
        "worker_connections": 2 * (settings.threads + settings.sockets) + 1000,
        "timeout": 120,
        "graceful_timeout": 8,
        "keepalive": 5,
        "max_requests": 20_000,
        "max_requests_jitter": 2_000,
        "forwarded_allow_ips": "*" if settings.trusted_proxies else "",
        "control_socket_disable": True,
        "loglevel": settings.log_level.lower(),
        "proc_name": "wardbook",
        "post_worker_init": let_go_in_time,
    }

    class Web(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> "Flask":
            return application()

    import views  # noqa: F401

    Web().run()
    return 0


def let_go_in_time(worker: Any) -> None:
    """Close a web process's sockets as soon as it is to end: each keeps a thread, and it would wait for all of them."""

    def watch() -> None:
        while worker.alive and worker.ppid == os.getppid():
            time.sleep(0.2)
        worker.wsgi.extensions["live"].close()

    threading.Thread(target=watch, name="let-go-in-time", daemon=True).start()


def worker(settings: Settings, _: argparse.Namespace) -> int:
    """Work off the queues until told to stop."""
    settings = with_running_servers(settings)
    refuse_demo_accounts(settings)
    open_house(settings)
    from jobs.base import work

    work(settings.redis_url)
    return 0


def scheduler(settings: Settings, _: argparse.Namespace) -> int:
    """Put what is due into the queues until told to stop."""
    settings = with_running_servers(settings)
    refuse_demo_accounts(settings)
    open_house(settings)
    from jobs.base import schedule

    schedule(settings.redis_url)
    return 0


def migrate(settings: Settings, _: argparse.Namespace) -> int:
    """Bring the database to the newest schema."""
    with connected(settings, "migrate") as ready:
        bring_up(ready)
    return 0


def bring_up(settings: Settings) -> None:
    """The newest schema, with the permissions and roles the product ships."""
    from app.services import accounts, note_templates
    from models import migrations

    owner_url = settings.owner_url or settings.database_url
    migrations.migrate(owner_url)
    migrations.grant(owner_url, settings.database_url)
    open_house(settings)
    accounts.seed()
    note_templates.plant()


def demo(settings: Settings, _: argparse.Namespace) -> int:
    """Bring the database to the newest schema and plant the demo hospital if it is not there yet."""
    if settings.production:
        raise CannotStart("The demo hospital has accounts with a known password and does not go into production.")
    with connected(settings, "demo") as ready:
        from jobs.demo import plant

        bring_up(ready)
        plant()
    return 0


def prepare(settings: Settings, arguments: argparse.Namespace) -> int:
    """What has to be done before the processes of `run` start."""
    if settings.production:
        migrate(settings, arguments)
        refuse_demo_accounts(settings)
        return 0
    return demo(settings, arguments)


def import_fhir(settings: Settings, arguments: argparse.Namespace) -> int:
    """Take FHIR bundles and NDJSON files into the record."""
    with connected(settings, "import-fhir") as ready:
        from jobs.fhir_import import main as take_in

        open_house(ready)
        return take_in(arguments.paths, arguments.source, time_zone=arguments.time_zone)


def import_formulary(settings: Settings, arguments: argparse.Namespace) -> int:
    """Say what a file of medicines would change, or change it; the exit status says whether every line is right."""
    try:
        content = arguments.file.read_bytes()
    except OSError as error:
        raise CannotStart(f"{arguments.file} cannot be read: {error.strerror}.") from error
    with connected(settings, "import-formulary") as ready:
        open_house(ready)
        from app import guard
        from app.actor import service
        from app.errors import Refusal
        from app.services import formulary

        try:
            with guard.acting_as(service("formulary", channel="cli")), guard.unit_of_work() as session:
                planned = (formulary.take_in if arguments.write else formulary.plan)(session, content)
        except Refusal as refusal:
            raise CannotStart(str(refusal)) from refusal
    for row in planned.rows:
        if row.what != "same":
            print(f"  line {row.number:<6} {row.what:<9} {row.display}" + (f" ({row.detail})" if row.detail else ""))
    print(f"\n  {planned}.")
    if planned.errors:
        print("  Nothing is written before the wrong lines are right.")
    elif not arguments.write:
        print("  Nothing was written: add --write to do it.")
    return 1 if planned.errors else 0


def hl7_listen(settings: Settings, arguments: argparse.Namespace) -> int:
    """Listen for HL7 v2 messages (MLLP) until told to stop."""
    with connected(settings, "hl7") as ready:
        from jobs import hl7

        open_house(ready)
        if arguments.authority and not arguments.certificate:
            raise CannotStart("Certificates of senders can be asked for only over TLS: name --certificate as well.")
        return hl7.listen(arguments.host, arguments.port, arguments.certificate, arguments.key, arguments.authority)


def hl7_import(settings: Settings, arguments: argparse.Namespace) -> int:
    """Take the HL7 v2 messages of files in."""
    with connected(settings, "hl7") as ready:
        from jobs import hl7

        open_house(ready)
        return hl7.take_in(arguments.paths)


def hl7_balance(settings: Settings, _: argparse.Namespace) -> int:
    """Say what became of every HL7 v2 message and result."""
    with connected(settings, "hl7") as ready:
        from jobs import hl7

        open_house(ready)
        return hl7.balance()


def administrator(settings: Settings, arguments: argparse.Namespace) -> int:
    """Make an administrator's account, or let one in again who cannot sign in."""
    if not arguments.recover and not (arguments.email and arguments.name):
        raise CannotStart('A new administrator needs --email ADDRESS and --name "Given Family".')
    with connected(settings, "administrator") as ready:
        bring_up(ready)
        from app import guard
        from app.actor import service
        from app.errors import Refusal
        from app.services import accounts, credentials

        credentials.connect(ready.redis_url, ready.secret_key)
        password = new_password()
        try:
            with guard.acting_as(service("setup", channel="cli")), guard.unit_of_work() as session:
                if arguments.recover:
                    user = accounts.recover_administrator(session, username=arguments.username, password=password)
                else:
                    user = accounts.make_administrator(
                        session,
                        username=arguments.username,
                        password=password,
                        email=arguments.email,
                        name=arguments.name,
                    )
                said = user.username
        except Refusal as refusal:
            raise CannotStart(str(refusal)) from refusal
    done = "has a new password and no second step" if arguments.recover else "is an administrator now"
    print(f"{said} {done}.\n\nNext: open {settings.public_url}, sign in as {said}, and set up the second step.")
    return 0


def new_password() -> str:
    """A password typed twice on the terminal, or the first line of what is piped in. Raises CannotStart."""
    import getpass

    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass("Password (12 characters or more): ")
    if getpass.getpass("The same again: ") != first:
        raise CannotStart("These two are not the same. Nothing was changed.")
    return first


def doctor(settings: Settings, _: argparse.Namespace) -> int:
    """Look over the installation; the exit status says whether all is well."""
    from ops import doctor as checks

    findings = [
        *checks.python_version(),
        *checks.packages(PROJECT / "requirements.txt"),
        *checks.folders(settings.home, settings.spool_directory),
        *(checks.Finding(reason.rsplit(": ", 1)[0] + ".", reason) for reason in settings.refusals()),
    ]
    if not any(finding.wrong for finding in findings):
        with connected(settings, "doctor") as ready:
            findings += [
                *checks.postgres(ready.database_url),
                *checks.migrations(ready.database_url, PROJECT / "models" / "migrations"),
                *checks.queue(ready.redis_url, ready.trail_redis_url),
                *checks.trail(ready.trail_redis_url),
                *(checks.administrators(ready.database_url) if settings.production else ()),
            ]
    lines, well = checks.report(findings)
    print("\n".join(lines))
    print("\n  All is well." if well else "\n  Not ready: see the arrows above.")
    return 0 if well else 1


def audit_verify(settings: Settings, arguments: argparse.Namespace) -> int:
    """Look through the trail for anything altered, missing, reordered, added or cut off."""
    from tqdm import tqdm

    with connected(settings, "audit") as ready:
        open_house(ready)
        from jobs.verify import verify

        with tqdm(unit=" lines", unit_scale=True, disable=None) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            report = verify(arguments.since, show)
    looked = f"{report.lines:,} lines in {report.batches:,} batches"
    if report.archived:
        looked += f", {report.archived:,} archived ones left out"
    if report.fault is not None:
        print(f"\n  NOT WHOLE after {looked}.\n  {report.fault.sentence}\n", file=sys.stderr)
        return 1
    print(f"\n  The trail is whole: {looked}; {report.witnessed:,} checkpoints agree with the witness.")
    print(f"  Tree of {report.size:,} lines, root {report.root.hex() or 'none'}\n")
    return 0


def audit_key(settings: Settings, _: argparse.Namespace) -> int:
    """Print the public key the trail's checkpoints can be checked with."""
    from app.tree import key_at

    print(key_at(settings.trail_key).text)
    return 0


def audit_archive(settings: Settings, arguments: argparse.Namespace) -> int:
    """Write an old month of the trail to a file, check it, and detach it from the database."""
    import getpass

    from tqdm import tqdm

    from app.errors import Refusal

    with connected(settings, "audit") as ready:
        open_house(ready)
        from jobs.archive import archive

        with tqdm(unit=" lines", unit_scale=True, disable=None) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            try:
                made = archive(
                    ready.owner_url or ready.database_url,
                    arguments.month,
                    arguments.folder,
                    by=getpass.getuser(),
                    keep_months=settings.trail_months,
                    progress=show,
                )
            except Refusal as refusal:
                raise CannotStart(str(refusal)) from refusal
    print(f"\n  {made.lines:,} lines of {made.month:%Y-%m} are in {made.file}, checked line by line against the tree.")
    print(f"  SHA-256 {made.digest.hex()}")
    print("  Their table is detached, under the name audit_archived_...: drop it when the file is safe.\n")
    return 0


def notes_check(settings: Settings, _: argparse.Namespace) -> int:
    """Reckon what was signed in every note anew, and name the first that is not as it was signed."""
    from tqdm import tqdm

    with connected(settings, "notes") as ready:
        open_house(ready)
        from app.services.notes import check_all

        with tqdm(unit=" notes", unit_scale=True, disable=None) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            found = check_all(show)
    if found.broken is not None:
        print(
            f"\n  NOT AS SIGNED: note {found.broken} of patient {found.patient}, after {found.notes:,} that are.\n"
            "  It was changed beneath the application: keep the database as it is, and look for who could reach it.\n",
            file=sys.stderr,
        )
        return 1
    print(f"\n  Every signed note is as it was signed: {found.notes:,} of them.\n")
    return 0


def prescription_keys(settings: Settings, _: argparse.Namespace) -> int:
    """List the keys prescriptions are signed with, the newest first."""
    with connected(settings, "prescription-keys") as ready:
        open_house(ready)
        from app import guard
        from app.actor import service
        from app.services import signing

        with guard.acting_as(service("setup", "cli")):
            for key in signing.keys(guard.session()):
                state = "revoked" if key.revoked_at else "retired" if key.retired_at else "current"
                print(f"  {key.kid}  {key.created_at:%Y-%m-%d}  {state}  {key.revoked_reason}".rstrip())
    return 0


def rotate_key(settings: Settings, _: argparse.Namespace) -> int:
    """Sign prescriptions with a new key from now on."""
    with connected(settings, "prescription-keys") as ready:
        open_house(ready)
        from app import guard
        from app.actor import service
        from app.services import signing

        with guard.acting_as(service("setup", "cli")), guard.unit_of_work() as session:
            kid = signing.rotate(session).kid
    print(f"\n  Prescriptions are signed with {kid} from now on. What was signed before still holds.\n")
    return 0


def revoke_key(settings: Settings, arguments: argparse.Namespace) -> int:
    """End what a key signed."""
    from app.errors import NotFound, Refusal

    with connected(settings, "prescription-keys") as ready:
        open_house(ready)
        from app import guard
        from app.actor import service
        from app.services import signing

        try:
            with guard.acting_as(service("setup", "cli")), guard.unit_of_work() as session:
                signing.revoke(session, arguments.kid.upper(), reason=arguments.reason)
        except NotFound as missing:
            raise CannotStart(f"There is no key {arguments.kid}: `run.py prescription-keys` lists them.") from missing
        except Refusal as refusal:
            raise CannotStart(str(refusal)) from refusal
        signing.discard(arguments.kid.upper())
    print(
        f"\n  Nothing that {arguments.kid.upper()} signed is genuine any longer. A new key is made with the next one.\n"
    )
    return 0


def open_house(settings: Settings) -> None:
    """Connect the database and the trail for a process that works with records outside the web server."""
    from app import guard, trail, tree
    from app.logs import speak
    from app.services import invitations, messages, signing

    os.environ.update(settings.to_environment())
    speak(settings.log_level)
    guard.connect(settings.database_url)
    try:
        tree.connect(settings.trail_key, settings.trail_witness)
    except (ValueError, OSError) as error:
        raise CannotStart(f"The key or the witness of the trail cannot be used: {error}.") from error
    invitations.connect(settings.public_url, settings.secret_key, settings.mail_from)
    signing.connect(settings.prescription_keys, settings.public_url)
    outbox = settings.home / "outbox"
    mail, sms = messages.carriers(settings.smtp, settings.sms_url, settings.sms_token, outbox)
    messages.connect(mail, sms, settings.reminders, outbox)
    if weaknesses := trail.connect(settings.trail_redis_url, settings.spool_directory).weaknesses():
        raise CannotStart(f"The trail's Redis could lose what it has acknowledged: {'; '.join(weaknesses)}.")


def refuse_in_production(settings: Settings) -> None:
    """Raise CannotStart where these settings are not fit for patients."""
    if reasons := settings.refusals():
        raise CannotStart(f"This may not go into production. {' '.join(reasons)}")


def refuse_demo_accounts(settings: Settings) -> None:
    """Raise CannotStart where anybody could sign in to a production database with a password everybody knows."""
    if not settings.production:
        return
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    from app.services.accounts import demo_accounts_present

    engine = create_engine(settings.database_url)
    try:
        with Session(engine) as session:
            if demo_accounts_present(session):
                raise CannotStart(
                    "This may not go into production: the database holds demo accounts, whose password everybody "
                    "knows. Point DATABASE_URL at a database of its own, or remove them."
                )
    finally:
        engine.dispose()


def servers_of(settings: Settings) -> "Servers":
    from ops.servers import Servers

    return Servers(settings.database_url, settings.redis_url, settings.trail_redis_url, settings.owner_url)


def with_servers(settings: Settings, own: "Servers") -> Settings:
    """The settings, with the addresses they left open filled in."""
    return dataclasses.replace(
        settings,
        database_url=settings.database_url or own.database_url,
        redis_url=settings.redis_url or own.redis_url,
        trail_redis_url=settings.trail_redis_url or own.trail_redis_url,
        owner_url=settings.owner_url or ("" if settings.database_url else own.owner_url),
    )


def with_running_servers(settings: Settings) -> Settings:
    """As `with_servers`, from what already runs in home. Raises CannotStart if nothing does."""
    from ops.home import running

    if settings.database_url and settings.redis_url and settings.trail_redis_url:
        return settings
    found = running(settings.home)
    if found is None:
        raise CannotStart(
            "There are no servers to work with: start everything with `make run`, "
            "or set DATABASE_URL, REDIS_URL and TRAIL_REDIS_URL."
        )
    return with_servers(settings, found.servers)


@contextlib.contextmanager
def connected(settings: Settings, command: str) -> Iterator[Settings]:
    """The settings with servers that answer, for as long as a command needs them; the environment knows them too."""
    from ops.home import connected as connected_servers
    from ops.supervisor import stoppable

    def say(line: str) -> None:
        print(f"  · {line}", file=sys.stderr)

    with (
        stoppable(hurry=lambda: None),
        connected_servers(settings.home, servers_of(settings), command, say) as servers,
    ):
        settings = with_servers(settings, servers)
        os.environ.update(settings.to_environment())
        yield settings


def instant(text: str) -> datetime:
    """The beginning of a day, in UTC. Raises ValueError."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def month(text: str) -> date:
    """The first day of a month such as 2026-01. Raises ValueError."""
    return date.fromisoformat(f"{text}-01")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    settings = "\n".join(
        f"  {field.metadata['variable']:<26}{field.metadata['about']}" for field in dataclasses.fields(Settings)
    )
    top = argparse.ArgumentParser(
        prog="run.py",
        description="Wardbook, a hospital's record.",
        epilog=f"settings, read from the environment:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, call: Command, about: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(call=call)
        return command

    add("run", run, "start everything and look after it, as `make run` does")
    add("serve", serve, "the web server only")
    add("worker", worker, "a worker only, for jobs in the queues")
    add("scheduler", scheduler, "the scheduler only, for jobs by the clock; one at a time")
    add("migrate", migrate, "bring the database to the newest schema")
    add("demo", demo, "plant the demo hospital in an empty database")
    fhir = add("import-fhir", import_fhir, "take FHIR R4 bundles or NDJSON files into the record")
    fhir.add_argument("paths", nargs="+", metavar="PATH", help="a file, or a folder of them")
    fhir.add_argument("--source", default="import", help="who sent them: ids are unique within it (import)")
    fhir.add_argument("--time-zone", default="UTC", help="where a date without a time begins (UTC)")
    medicines = add("import-formulary", import_formulary, "take a CSV file of medicines into the formulary")
    medicines.add_argument("file", type=Path, metavar="FILE.csv", help="columns system, code, display, and ours")
    medicines.add_argument("--write", action="store_true", help="do it; without this it is only said what would change")
    wire = add("hl7-listen", hl7_listen, "listen for HL7 v2 messages over MLLP")
    wire.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    wire.add_argument("--port", type=int, default=2575, help="port to listen on (2575)")
    wire.add_argument("--certificate", type=Path, help="PEM file of the certificate, to talk TLS")
    wire.add_argument("--key", type=Path, help="PEM file of its key")
    wire.add_argument("--authority", type=Path, help="PEM file of who signs the certificates senders must have")
    results = add("hl7-import", hl7_import, "take the HL7 v2 messages of files in")
    results.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, or a folder of them")
    add("hl7-balance", hl7_balance, "say what became of every HL7 v2 message and result")
    trail = add("audit", audit_verify, "check the trail, print its key, or archive an old month of it")
    ways = trail.add_subparsers(title="commands", metavar="COMMAND", required=True)
    verify = ways.add_parser("verify", help="look for anything altered, missing, reordered, added or cut off")
    verify.add_argument("--since", type=instant, help="only what was stored since this day (2026-01-31)")
    verify.set_defaults(call=audit_verify)
    ways.add_parser("key", help="print the public key of the checkpoints").set_defaults(call=audit_key)
    away = ways.add_parser("archive", help="write an old month to a file, check it, and detach it")
    away.add_argument("month", type=month, help="such as 2019-05")
    away.add_argument("--to", dest="folder", type=Path, required=True, help="folder for the file")
    away.set_defaults(call=audit_archive)
    kept = add("notes", notes_check, "check that signed notes are as they were signed")
    kept.add_subparsers(title="commands", metavar="COMMAND", required=True).add_parser(
        "check", help="reckon the SHA-256 of every signed note anew"
    ).set_defaults(call=notes_check)
    signed = add("prescription-keys", prescription_keys, "list the keys prescriptions are signed with, or change them")
    changes = signed.add_subparsers(title="commands", metavar="COMMAND")
    changes.add_parser("rotate", help="sign with a new key from now on; what was signed still holds").set_defaults(
        call=rotate_key
    )
    ended = changes.add_parser("revoke", help="nothing that a key signed holds any longer")
    ended.add_argument("kid", metavar="KID", help="as the list names it")
    ended.add_argument("--reason", required=True, help="why, for the trail and the list")
    ended.set_defaults(call=revoke_key)
    first = add("administrator", administrator, "make an administrator; the password is asked for, or read from stdin")
    first.add_argument("username", metavar="USERNAME", help="what they sign in with")
    first.add_argument("--email", help="their address")
    first.add_argument("--name", help='their given and family name, as in --name "Ada Lovelace"')
    first.add_argument(
        "--recover", action="store_true", help="they exist: a new password, and no second step until they set it up"
    )
    add("doctor", doctor, "check this installation and say what is wrong")
    commands.add_parser("prepare").set_defaults(call=prepare)  # a step of `run`
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; what can be put right by whoever typed it is said in a sentence."""
    parsed = parser().parse_args(arguments)
    home = PROJECT
    try:
        settings = read_settings()
        home = settings.home
        if parsed.call in (run, serve, worker, scheduler):
            refuse_in_production(settings)
        status: int = parsed.call(settings, parsed)
    except (CannotStart, ConfigurationError) as refusal:
        if str(refusal):
            print(f"\n  {refusal}\n", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        print(f"\n  {sentence(error, home)}\n", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Stopped):
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
