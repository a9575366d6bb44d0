"""Pages that are open are told what changed, over Socket.IO: pointers only, to the rooms the policy allows.

A connection is let in by the session of its handshake, as a page is, before there is a connection at all.  Then one
thread a process looks after all of them every two seconds, in one statement: whoever signed out, was closed, is idle or
may see something else than at the handshake is cut off, and asks anew.  A connection holds no actor, no session of the
gate and no database connection; it costs a thread.

Nothing here is a line in the trail: a pointer shows nobody's record, and whoever fetches the row is recorded there.
"""

from __future__ import annotations

import socket as sockets_of_the_machine
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import redis
import structlog
from flask import Flask, request, session
from flask_socketio import SocketIO
from sqlalchemy.exc import SQLAlchemyError

from app import guard
from app.actor import Origin, nobody
from app.errors import Refusal
from app.services import feed
from views import security, sessions

log = structlog.get_logger(__name__)

PATH = "/socket.io/"
CONNECTION = "wardbook.connection"
"""Where the environment of a handshake, and of every message after it, has the connection."""
ROUND = 2.0
"""Seconds between two looks at the connections."""
WAIT = 1000
"""Milliseconds one question for new pointers waits: below the time limit of the sessions' Redis."""
OF_ONE = 20
"""Connections of one account in one process: somebody's many tabs leave room for everybody else's."""

StartResponse = Callable[..., Any]


@dataclass(eq=False)
class Connection:
    """Somebody's open page."""

    wire: Any
    """The socket of the machine."""
    user_id: int
    key: str
    """Of the session in Redis."""
    ends_at: float
    """When the session ends in any case, in seconds since the epoch."""
    standing: feed.Standing
    rooms: frozenset[str]

    def cut(self) -> None:
        """End it, whatever the other side does; the thread that reads from it finds out at once."""
        with suppress(OSError):
            self.wire.shutdown(sockets_of_the_machine.SHUT_RDWR)


@dataclass(eq=False)
class Live:
    """The connections of this process, and the two threads behind them."""

    app: Flask
    most: int
    """Connections at the same time."""
    places: threading.BoundedSemaphore
    """One for each request that is answered at once: every one of them may want a database connection."""
    io: SocketIO = field(init=False)
    beneath: Callable[[dict[str, Any], StartResponse], Iterable[bytes]] = field(init=False)
    connections: set[Connection] = field(default_factory=set)
    position: str = ""
    """The id of the last event this process has told of; empty before the first connection."""
    closing: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while events are told and while a page catches up, so that it gets each of them once, in order."""

    # ---- at the door -------------------------------------------------------------------------------------------------

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """A request, or a handshake and all that follows it."""
        if not str(environ.get("PATH_INFO", "")).startswith(PATH):
            with self.places:
                return self.beneath(environ, start_response)
        with self.places:
            let_in = self.admit(environ)
        if isinstance(let_in, str):
            start_response(let_in, [("Content-Type", "text/plain"), ("Cache-Control", "no-store")])
            return [b""]
        environ[CONNECTION] = let_in
        try:
            return self.beneath(environ, start_response)  # comes back when the connection is over
        finally:
            with self.lock:
                self.connections.discard(let_in)

    def admit(self, environ: dict[str, Any]) -> Connection | str:
        """The connection of a handshake, among the others from now on; or the status it is refused with."""
        wire = environ.get("gunicorn.socket")
        if wire is None or environ.get("HTTP_UPGRADE", "").lower() != "websocket":
            return "400 Bad Request"
        try:
            with self.app.request_context(environ):
                found = self.whose(wire)
            if not isinstance(found, Connection):
                return found
            with self.lock:
                if not self.position:
                    self._begin()
                mine = sum(other.user_id == found.user_id for other in self.connections)
                if self.closing or len(self.connections) >= self.most or mine >= OF_ONE:
                    return "503 Service Unavailable"
                self.connections.add(found)
        except (redis.RedisError, SQLAlchemyError, Refusal) as error:
            log.warning("live.no_handshake", error=type(error).__name__)
            return "503 Service Unavailable"
        return found

    def whose(self, wire: Any) -> Connection | str:
        """Whose session the handshake comes with, by the rules for pages, and which rooms are theirs."""
        if security.bears_token(request) or "_user_id" not in session:
            return "401 Unauthorized"
        origin = Origin(channel="web", address=request.remote_addr)
        token = guard.begin(nobody(origin))
        try:
            # Before the rights are asked for: what changes in between is found by the first look.
            standing = feed.standings(guard.session(), [int(session["_user_id"])]).get(int(session["_user_id"]))
            actor, _ = security.by_session(origin)
        finally:
            guard.end(token)
        if actor is None or standing is None or actor.user_id is None:
            return "401 Unauthorized"
        if actor.owes_second_factor and not session.get("second_factor"):
            return "403 Forbidden"
        rooms = feed.rooms_of(actor)
        if not rooms:
            return "403 Forbidden"
        key = sessions.PREFIX + str(session.sid)  # type: ignore[attr-defined]
        return Connection(wire, actor.user_id, key, security.ends_at(), standing, rooms)

    # ---- what is told ------------------------------------------------------------------------------------------------

    def follow(self, sid: str, connection: Connection, asked: object) -> None:
        """Put a page into the rooms it wants and may be in, and tell it what it missed.

        `asked` is {"since": the last event it knows of, or null; "branches": numbers, or null for all}.  The answer,
        `caught-up`, is {"last", "reset", "missed", "visits"}: with `reset` the page has to fetch everything anew, and
        without `visits` it is told of none.
        """
        wants: dict[str, Any] = asked if isinstance(asked, dict) else {}
        server = self.io.server
        try:
            with self.lock:
                missed = feed.missed(self.redis, wants.get("since"), self.position)
                rooms = feed.narrowed(connection.rooms, wants.get("branches"))
                for room in set(server.rooms(sid)) - {sid} - rooms:
                    server.leave_room(sid, room)
                for room in rooms:
                    server.enter_room(sid, room)
                told = [pointer.told(event) for event, pointer in missed or () if not rooms.isdisjoint(pointer.rooms())]
                visits = any(not room.startswith(feed.PERSON) for room in connection.rooms)
                answer = {"last": self.position, "reset": missed is None, "missed": told, "visits": visits}
                server.emit("caught-up", answer, to=sid)
        except redis.RedisError:
            connection.cut()

    def _begin(self) -> None:
        """From the first connection on: read the stream, and look after the connections."""
        self.position = feed.last(self.redis)
        for work in (self._tell, self._look_after):
            threading.Thread(target=work, name=f"live-{work.__name__}", daemon=True).start()

    @property
    def redis(self) -> Any:
        """Where sessions and the stream are."""
        return self.app.config["SESSION_REDIS"]

    def _tell(self) -> None:
        """Tell of every event, in order. What comes while Redis is away is told when it is back."""
        while not self.closing:
            try:
                found = feed.wait(self.redis, self.position, milliseconds=WAIT)
            except redis.RedisError:
                time.sleep(0.5)
                continue
            with self.lock:
                for event, pointer in found:
                    self.io.server.emit("pointer", pointer.told(event), to=pointer.rooms())
                    self.position = event

    # ---- who is told no longer ---------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        while not self.closing:
            time.sleep(ROUND)
            with self.lock:
                known = list(self.connections)
            if not known:
                continue
            try:
                over = self._over(known)
            except (redis.RedisError, SQLAlchemyError, Refusal) as error:
                log.warning("live.cut_off", error=type(error).__name__, connections=len(known))
                over = known  # nobody can say what they may see, nor is there anything to be told
            for connection in over:
                connection.cut()

    def _over(self, known: list[Connection]) -> list[Connection]:
        """Those whose session has ended, or whose account does not stand as it did."""
        with guard.acting_as(nobody()):
            standings = feed.standings(guard.session(), [connection.user_id for connection in known])
        ask = self.redis.pipeline(transaction=False)
        for connection in known:
            ask.exists(connection.key)
        moment = time.time()
        return [
            connection
            for connection, alive in zip(known, ask.execute(), strict=True)
            if not alive or connection.ends_at <= moment or standings.get(connection.user_id) != connection.standing
        ]

    def close(self) -> None:
        """Cut everybody off, and let nobody in: this process is about to end."""
        with self.lock:
            self.closing = True
            known = list(self.connections)
        for connection in known:
            connection.cut()


def install(app: Flask, *, threads: int, most: int) -> Live:
    """Put the feed in front of the application: `most` connections besides `threads` requests at a time.

    Whatever else stands in front (proxies) is to be put there afterwards.
    """
    live = Live(app, most, threading.BoundedSemaphore(threads))
    live.io = SocketIO(
        app,
        async_mode="threading",
        transports=["websocket"],
        path=PATH,
        manage_session=False,
        async_handlers=False,  # a message is worked off by the connection's own thread, not by one more each
        max_http_buffer_size=4096,
        ping_interval=15,
        ping_timeout=10,
    )

    @live.io.on("follow")
    def follow(asked: object = None) -> None:
        sid = request.sid  # type: ignore[attr-defined]
        live.follow(sid, live.io.server.get_environ(sid)[CONNECTION], asked)

    live.beneath = app.wsgi_app
    app.wsgi_app = live  # type: ignore[method-assign]
    return live


__all__ = ["Connection", "Live", "install"]
