"""The files of other people's front-end packages that the browser is sent: those listed here, and no others.

`ops/bootstrap.py` installs them into node_modules/ from package-lock.json, which holds their digests.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, request, url_for

INSTALLED = Path(__file__).parent.parent / "node_modules"
YEAR = 365 * 24 * 3600
LISTED = {
    "@event-calendar/build/dist/event-calendar.min.css": "text/css",
    "@event-calendar/build/dist/event-calendar.min.js": "text/javascript",
    "socket.io-client/dist/socket.io.min.js": "text/javascript",
}
"""Path within node_modules -> what it is."""


def install(app: Flask) -> None:
    """Serve the listed files, and let templates ask for their address: `package("socket.io-client/...")`.

    Raises RuntimeError, in a sentence, where one of them is not installed.
    """
    contents = {name: content(name) for name in LISTED}
    digests = {name: hashlib.sha256(found).hexdigest()[:16] for name, found in contents.items()}

    def package(name: str) -> str:
        """The address of a listed file, which changes whenever its content does. Raises KeyError for another one."""
        return url_for("package", digest=digests[name], name=name)

    def serve(digest: str, name: str) -> Any:
        """A listed file, kept by browsers for a year: another content has another address."""
        if digests.get(name) != digest:
            abort(404)
        answer = Response(contents[name], mimetype=LISTED[name])
        answer.cache_control.public = answer.cache_control.immutable = True
        answer.cache_control.max_age = YEAR
        answer.set_etag(digest)
        return answer.make_conditional(request)

    serve.policy = ("anybody", "")  # type: ignore[attr-defined]
    app.add_url_rule("/packages/<digest>/<path:name>", "package", serve)
    app.jinja_env.globals["package"] = package


def content(name: str) -> bytes:
    """What a listed file holds. Raises RuntimeError where it is not there."""
    try:
        return (INSTALLED / name).read_bytes()
    except OSError as error:
        raise RuntimeError(
            f"{name} is not installed in node_modules: start with `make run` or `make test`, which installs it."
        ) from error
