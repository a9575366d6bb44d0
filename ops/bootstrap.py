"""Makes .venv and installs what is pinned: the first thing `make` runs, with whatever Python the machine has.

It uses the standard library only, and old Pythons can read it, so that they can be refused politely.
    python3 ops/bootstrap.py [--dev]
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys

OLDEST = (3, 11)
NEEDED_BYTES = 1000000000
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(PROJECT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
UNFINISHED = os.path.join(VENV, ".unfinished")


class Refusal(Exception):
    """One sentence on why the packages cannot be installed, with the remedy."""


def main(arguments: "list[str]") -> None:
    """Install what is missing; say nothing if nothing is."""
    if sys.version_info < OLDEST:
        raise Refusal(
            "Wardbook needs Python 3.11 or newer and found %d.%d: install one, "
            "or name it with `make run PYTHON=/path/to/python`." % sys.version_info[:2]
        )
    wanted = ["requirements.txt"] + (["requirements-dev.txt"] if "--dev" in arguments else [])
    missing = [name for name in wanted if stamped(name) != digest(name)]
    if not (missing or os.path.exists(UNFINISHED)) and usable():
        return
    if os.path.exists(VENV) and (os.path.exists(UNFINISHED) or not usable()):
        print("  - .venv was left half-made: making it anew", flush=True)
        remove_venv()
        missing = wanted
    if not os.path.exists(VENV):
        make_venv()
        missing = wanted
    write(UNFINISHED, "")
    for name in missing:
        install(name)
        write(stamp(name), digest(name))
    os.remove(UNFINISHED)


def digest(name: str) -> str:
    """What the requirements file holds, and for which Python."""
    with open(os.path.join(PROJECT, name), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def stamp(name: str) -> str:
    """The file that says that `name` has been installed to the end."""
    return os.path.join(VENV, ".installed-" + name)


def stamped(name: str) -> str:
    """The digest of what was last installed of `name`, or nothing."""
    try:
        with open(stamp(name)) as file:
            return file.read()
    except OSError:
        return ""


def usable() -> bool:
    """Whether .venv has a Python that runs and is new enough, with pip."""
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.call([PYTHON, "-c", check], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False


def remove_venv() -> None:
    """Remove .venv, which holds nothing but packages."""
    if os.path.islink(VENV):
        os.remove(VENV)
    else:
        shutil.rmtree(VENV)


def make_venv() -> None:
    """Make an empty .venv."""
    free = shutil.disk_usage(PROJECT).free
    if free < NEEDED_BYTES:
        raise Refusal(
            "Only %d MB are free on the disk of %s and the packages want %d MB: free some space."
            % (free // 1000000, PROJECT, NEEDED_BYTES // 1000000)
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise Refusal(
            "This Python cannot make virtual environments: install its venv module "
            "(Debian and Ubuntu: `apt install python3-venv`)."
        ) from None
    os.mkdir(VENV)
    write(UNFINISHED, "")
    made = subprocess.run(
        [sys.executable, "-m", "venv", VENV],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    if made.returncode:
        raise Refusal("The environment could not be made: %s" % last_line(made.stdout))


def install(name: str) -> None:
    """Install exactly what `name` pins, checking every hash."""
    with open(os.path.join(PROJECT, name)) as file:
        total = sum(1 for line in file if "==" in line and not line.startswith((" ", "#")))
    title = "Packages of %s" % name
    terminal = sys.stdout.isatty()
    if not terminal:
        print("  - %s: about %d" % (title, total), flush=True)
    pip = subprocess.Popen(
        [
            *(PYTHON, "-m", "pip", "install", "--require-hashes", "--no-deps", "--no-input"),
            *("--disable-pip-version-check", "--progress-bar", "off", "-r", os.path.join(PROJECT, name)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        env=dict(os.environ, PYTHONUNBUFFERED="1", PIP_ROOT_USER_ACTION="ignore"),
    )
    said: "list[str]" = []
    done = 0
    for line in pip.stdout or ():
        said.append(line)
        done += line.startswith(("Collecting ", "Requirement already satisfied"))
        if terminal:
            doing = "unpacking" if line.startswith("Installing collected") else "%d of %d" % (min(done, total), total)
            print("\r\x1b[2K  - %s: %s" % (title, doing), end="", flush=True)
    if terminal:
        print("\r\x1b[2K", end="", flush=True)
    if pip.wait():
        raise Refusal("The packages could not be installed: %s" % reason(said))
    print("  %s %s" % (mark(), title), flush=True)


def reason(said: "list[str]") -> str:
    """The sentence in what pip said."""
    text = "".join(said)
    if "No space left on device" in text:
        return "the disk is full. Free some space and start again."
    if "DO NOT MATCH THE HASHES" in text:
        return "a downloaded package is not the one that was pinned. Do not go on without asking why."
    errors = [line.strip() for line in said if line.startswith("ERROR:")]
    found = errors[-1][len("ERROR:") :].strip() if errors else last_line(text)
    if "No matching distribution" in found or "Could not find a version" in found:
        found += " (Is the package registry in reach, and is there a package for this Python and this machine?)"
    return found


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing."


def write(path: str, text: str) -> None:
    """Write a small file."""
    with open(path, "w") as file:
        file.write(text)


def mark() -> str:
    """A tick, where it can be shown."""
    return "\u2713" if "utf" in (sys.stdout.encoding or "").lower() else "ok"


def trouble(error: OSError) -> str:
    """Say what an operating-system error means here."""
    if error.errno == 28:
        return "The disk of %s is full: free some space and start again." % PROJECT
    return "%s cannot be written to (%s): give the folder to this account, or copy Wardbook to one of its own." % (
        error.filename or PROJECT,
        error.strerror,
    )


if __name__ == "__main__":
    try:
        with open(os.path.join(PROJECT, "requirements.txt")) as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # one at a time: `make run` and `make test` may begin together
            main(sys.argv[1:])
    except Refusal as refusal:
        sys.exit("\n  %s\n" % refusal)
    except (IOError, OSError) as error:
        sys.exit("\n  %s\n" % trouble(error))
    except KeyboardInterrupt:
        sys.exit(130)
