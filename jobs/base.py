"""Jobs: how they are declared, queued, set off by the clock, worked off, and seen when they give up.

A job is a function with a queue, a retry rule and, where it touches records, the name of a service with a policy row
of its own.  Arguments are ids, written as JSON.  A job may be started twice and must not mind.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Any, Generic, NoReturn, ParamSpec

import redis
import structlog
from redis.client import Pipeline
from rq import Queue, Retry, SimpleWorker
from rq.job import Job as Queued
from rq.job import JobStatus
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

import jobs
from app import actor, guard
from app.errors import OutOfService

log = structlog.get_logger(__name__)

P = ParamSpec("P")

BACKOFF = Retry(max=6, interval=[5, 30, 120, 600, 3600, 4 * 3600])
"""Seconds between attempts, where a job does not say otherwise."""
KEPT = 30 * 24 * 3600
"""Seconds a job that gave up stays in sight."""
TICK_KEPT = 3600
"""The same for a job by the clock, which comes again anyway."""
TICK_LIFE = 30
"""Seconds after which a tick nobody took is forgotten."""
LONGEST_PAUSE = 15.0
"""Seconds at most between two attempts to start a worker that keeps ending."""

CLOCK = "wardbook:clock"
"""The Redis lock of the one scheduler that ticks."""


# ---- declaring ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Job(Generic[P]):
    """Something the application does by itself. Calling it does it here and now, `later` leaves it to a worker."""

    function: Callable[P, None]
    queue: str
    retry: Retry | None
    service: str | None
    timeout: int

    @property
    def name(self) -> str:
        """Where a worker finds it."""
        return named(self.function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.service is None:
            self.function(*args, **kwargs)
        else:
            acting(self.service)(self.function)(*args, **kwargs)

    def later(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Leave it to a worker. Raises redis.RedisError."""
        self.put(args, kwargs)

    def put(
        self, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None, *, pipeline: Pipeline | None = None
    ) -> None:
        """`later`, as part of a pipeline."""
        queue_named(self.queue).enqueue_call(
            self.name,
            args=args,
            kwargs=kwargs or {},
            timeout=self.timeout,
            result_ttl=0,
            failure_ttl=KEPT,
            retry=self.retry,
            description=self.name,
            pipeline=pipeline,
        )

    def tick(self) -> Queued:
        """Have it done as soon as a worker is free, ahead of what waits, once and without a second attempt."""
        return queue_named(self.queue).enqueue_call(
            self.name,
            timeout=self.timeout,
            ttl=TICK_LIFE,
            result_ttl=0,
            failure_ttl=TICK_KEPT,
            description=self.name,
            at_front=True,
        )


JOBS: dict[str, Job[Any]] = {}
"""Every job declared, by name."""
CLOCKED: dict[str, float] = {}
"""Seconds between two ticks, by the name of the job."""


def named(function: Callable[..., Any]) -> str:
    """The dotted name of a function."""
    return f"{function.__module__}.{function.__qualname__}"


def job(
    *, queue: str = "default", retry: Retry | None = BACKOFF, service: str | None = None, timeout: int = 180
) -> Callable[[Callable[P, None]], Job[P]]:
    """Declare a function a job; `service` names the row of app.policy.SERVICES it acts under, `timeout` is seconds."""

    def declare(function: Callable[P, None]) -> Job[P]:
        declared = Job(function, queue, retry, service, timeout)
        functools.update_wrapper(declared, function, updated=())
        JOBS[declared.name] = declared
        return declared

    return declare


def every(*, seconds: float) -> Callable[[Job[[]]], Job[[]]]:
    """Have a job done by the clock. A tick is a wake-up and no more: it may be missed, and it may come twice."""

    def declare(declared: Job[[]]) -> Job[[]]:
        CLOCKED[declared.name] = seconds
        return declared

    return declare


def acting(service: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Have a function act as a service, under the policy of that name."""

    def declare(function: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            with guard.acting_as(actor.service(service)):
                function(*args, **kwargs)

        return call

    return declare


def load() -> None:
    """Import every module of this package, so that every job and every listener is known."""
    for module in pkgutil.iter_modules(jobs.__path__):
        import_module(f"{jobs.__name__}.{module.name}")


def queues() -> list[str]:
    """The queues of all declared jobs."""
    return sorted({declared.queue for declared in JOBS.values()})


# ---- the queue's Redis -------------------------------------------------------------------------------------------

_connections: list[redis.Redis] = []
"""The one of this process, once it is opened."""


def connect(redis_url: str) -> redis.Redis:
    """Open the queue for this process; nothing is sent yet."""
    _connections[:] = [
        redis.Redis.from_url(redis_url, socket_connect_timeout=5, socket_timeout=10, health_check_interval=30)
    ]
    return _connections[0]


def connection() -> redis.Redis:
    """The queue's Redis. Raises OutOfService where it was never opened."""
    if not _connections:
        raise OutOfService
    return _connections[0]


def queue_named(name: str) -> Queue:
    """One queue."""
    return Queue(name, connection=connection(), serializer=JSONSerializer, job_class=Work)


def waiting() -> dict[str, int]:
    """How many jobs wait (retries included) and how many gave up: {"audit queued": 0, "audit failed": 0, ...}."""
    numbers: dict[str, int] = {}
    for name in queues():
        queue = queue_named(name)
        numbers[f"{name} queued"] = queue.count + queue.scheduled_job_registry.count
        numbers[f"{name} failed"] = queue.failed_job_registry.count
    return numbers


# ---- working -----------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A job did not come through; says what kind of error it was and where, and nothing of anybody's record."""


class Work(Queued):
    """A queued job, whose errors leave it without their texts: those may quote a record, and Redis would keep them."""

    def perform(self) -> Any:
        try:
            return super().perform()
        except Exception as error:  # noqa: BLE001  (whatever it was, its text stays here)
            raise Failed(trace(error)) from None


def trace(error: BaseException) -> str:
    """The kind of an error and the lines of code it passed through, without its text."""
    lines = []
    step: TracebackType | None = error.__traceback__
    while step is not None:
        name = step.tb_frame.f_globals.get("__name__", "?")
        if not name.startswith(("rq.", "sqlalchemy.", "redis.", "contextlib", "jobs.base")):
            lines.append(f"{name}:{step.tb_lineno}")
        step = step.tb_next
    return " < ".join([type(error).__name__, *reversed(lines)])


def note_failure(failed: Queued, _kind: Any, error: Any, _traceback: Any) -> None:
    """Write down that a job failed, and whether it will be tried again."""
    event = "jobs.failed" if failed.should_retry else "jobs.gave_up"
    level = log.warning if failed.should_retry else log.error
    level(event, job=failed.description, id=failed.id, queue=failed.origin, error=str(error) or type(error).__name__)


def work(redis_url: str) -> None:
    """Work off every declared queue until SIGTERM or SIGINT, then finish what is in hand and return.

    Each queue has a process of its own, forked from this one: a long job keeps no other queue waiting, RQ can recover
    a job whose worker was killed, and a worker that ends (it crashed, or Redis went away) is started anew after a
    pause.
    """
    load()
    connect(redis_url)
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stops.append(number))
    lanes = [Lane(name) for name in queues()]
    log.info("jobs.working", queues=queues())
    while not stops:
        for lane in lanes:
            lane.look_after()
        time.sleep(0.2)
    for lane in lanes:
        lane.ask_to_stop()
    for lane in lanes:
        lane.join()


@dataclass
class Lane:
    """One queue and the process that works it off."""

    queue: str
    process: ForkProcess | None = None
    started_at: float = 0.0
    pause: float = 0.0
    not_before: float = field(default_factory=time.monotonic)

    def look_after(self) -> None:
        """Start the process where there is none, after a pause that grows as long as it keeps ending early."""
        if self.process is not None:
            if self.process.is_alive():
                return
            lived = time.monotonic() - self.started_at
            self.pause = 0.5 if lived > 60 else min(max(self.pause * 2, 0.5), LONGEST_PAUSE)
            log.warning("jobs.worker_ended", queue=self.queue, status=self.process.exitcode, pause=self.pause)
            self.process = None
            self.not_before = time.monotonic() + self.pause
        if time.monotonic() >= self.not_before:
            self.started_at = time.monotonic()
            # A signal that comes before the child listens for it would be lost: it waits.
            with_signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            try:
                self.process = get_context("fork").Process(
                    target=work_off, args=(self.queue, os.getpid(), with_signals), name=f"jobs-{self.queue}"
                )
                self.process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, with_signals)

    def ask_to_stop(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def join(self) -> None:
        if self.process is not None:
            self.process.join()


def work_off(queue: str, parent: int, signals: Iterable[int]) -> None:
    """Be the worker of one queue, until told to stop or until Redis goes away."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    end_with(parent)
    guard.engine().dispose(close=False)
    SimpleWorker.log_result_lifespan = False
    try:
        worker = SimpleWorker(
            [queue_named(queue)],
            connection=connection(),
            job_class=Work,
            serializer=JSONSerializer,
            exception_handlers=[note_failure],
            log_job_description=False,
            worker_ttl=60,
            maintenance_interval=60,
        )
        worker.work(logging_level="WARNING")
    except redis.RedisError as error:
        log.warning("jobs.redis_away", queue=queue, error=type(error).__name__)
        sys.exit(1)


def end_with(parent: int) -> None:
    """Have this process end when its parent does, however that ends (Linux; elsewhere its group is ended)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(1)


# ---- the clock ---------------------------------------------------------------------------------------------------


def schedule(redis_url: str) -> None:
    """Set off what is due, and queue again what is to be retried, until SIGTERM or SIGINT.

    Of several schedulers one ticks; should two, nothing is harmed. Redis may go away and come back.
    """
    load()
    clock = Clock(connect(redis_url))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    log.info("jobs.scheduling", jobs=sorted(CLOCKED))
    with suppress(SystemExit):
        clock.run()
    clock.stop()


def _leave(_number: int, _frame: Any) -> NoReturn:
    raise SystemExit(0)


class Clock:
    """What is due when, and the lock that says whose clock counts."""

    def __init__(self, connection: redis.Redis) -> None:
        self.lock = connection.lock(CLOCK, timeout=10, blocking=False, thread_local=False)
        self.due = dict.fromkeys(CLOCKED, 0.0)
        self.ticks: dict[str, Queued] = {}
        self.retries = RQScheduler(
            queues(), connection=connection, serializer=JSONSerializer, logging_level="WARNING", name=CLOCK
        )

    def run(self) -> NoReturn:
        """Tick for ever."""
        pause = 0.5
        while True:
            try:
                if self.counts():
                    self.tick()
                pause = 0.5
            except redis.RedisError as error:
                log.warning("jobs.redis_away", error=type(error).__name__, pause=pause)
                pause = min(pause * 2, 5.0)
            time.sleep(pause)

    def counts(self) -> bool:
        """Whether this clock is the one that ticks; raises redis.RedisError."""
        with suppress(redis.exceptions.LockError):
            return bool(self.lock.reacquire())
        return bool(self.lock.acquire(blocking=False))

    def tick(self) -> None:
        """Queue what is due, unless its last tick still waits, and what is to be tried again by now."""
        for name, seconds in CLOCKED.items():
            if time.monotonic() >= self.due[name]:
                self.due[name] = time.monotonic() + seconds
                if not self.waits(name):
                    self.ticks[name] = JOBS[name].tick()
        self.retries.prepare_registries(queues())
        self.retries.enqueue_scheduled_jobs()  # type: ignore[no-untyped-call]

    def waits(self, name: str) -> bool:
        """Whether the last tick of a job has not been taken yet."""
        last = self.ticks.get(name)
        return last is not None and connection().hget(last.key, "status") == JobStatus.QUEUED.value.encode()

    def stop(self) -> None:
        """Let another clock tick at once."""
        with suppress(redis.RedisError):
            self.lock.release()


__all__ = ["BACKOFF", "Job", "acting", "every", "job", "load", "queues", "schedule", "waiting", "work"]
