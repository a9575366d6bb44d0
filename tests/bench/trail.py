"""The trail's figures: what it costs beside no trail and beside an insert per read, how fast it is stored, checked and asked.

What is compared is measured in the same rounds, one after the other in an order thrown anew each time. A ratio is that of
two measurements of one round, and what is reported is the median of all rounds with its quartiles.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis

from app import trail
from models.base import now
from tests.bench import kept
from tests.bench.house import Crowd, House, Web, furnish, open_house, open_web, spent
from tests.bench.rounds import Progress, Scene, measured, percentile, scenes, warmed

DELAY = 2.0
"""Milliseconds added to every sync in the second half."""
MILLION = 1_000_000
WAYS = {
    "trail": ("run.py", "serve"),
    "nothing": ("-m", "tests.bench.instead", "nothing"),
    "plain": ("-m", "tests.bench.instead", "plain"),
    "chained": ("-m", "tests.bench.instead", "chained"),
}
"""Ways to record what was seen."""
LEANEST = "REST: open one patient"
KINDS = (LEANEST, "Chart page", "REST: search, mixed")
BELOW = 0.5
"""Of the rate that is reached with all clients asking as fast as they are answered: below saturation."""


@dataclass
class Found:
    """Figures of all rounds, in the order of the rounds."""

    figures: dict[tuple[str, ...], list[float]] = field(default_factory=dict)

    def add(self, *key: str, value: float) -> None:
        """One figure more."""
        self.figures.setdefault(key, []).append(value)

    def median(self, *key: str) -> float:
        """Of all rounds."""
        return statistics.median(self.figures[key])

    def ratios(self, one: tuple[str, ...], other: tuple[str, ...]) -> list[float]:
        """One by the other, round by round."""
        return [a / b for a, b in zip(self.figures[one], self.figures[other], strict=True)]

    def differences(self, one: tuple[str, ...], other: tuple[str, ...]) -> list[float]:
        """One less the other, round by round."""
        return [a - b for a, b in zip(self.figures[one], self.figures[other], strict=True)]


def spread(values: list[float], digits: int = 2) -> str:
    """The median and the quartiles."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:,.{digits}f} [{low:,.{digits}f}–{high:,.{digits}f}]"


@dataclass(frozen=True)
class Target:
    """Something to be reached, on one kind of disk."""

    what: str
    asked: str
    disk: str
    measured: str
    reached: bool


class Trail:
    """The part `trail` of the bench, which opens houses of its own."""

    def __init__(self, home: Path, crowd: Crowd, options: Any, progress: Progress) -> None:
        self.home = home
        self.crowd = crowd
        self.progress = progress
        self.patients: int = options.patients
        self.rounds: int = 2 if options.quick else max(options.rounds, 5)
        self.seconds = 1.0 if options.quick else 2.0
        self.lines: int = options.lines or (100_000 if options.quick else 5 * MILLION)
        self.piled = 20_000 if options.quick else MILLION
        self.asks = 20 if options.quick else 200
        self.dice = random.Random(4)
        self.report: list[str] = []
        self.targets: list[Target] = []
        self.loads: list[float] = []
        self.disk = ""

    def say(self, *lines: str) -> None:
        """Add to the report."""
        self.report += lines

    def hold(self, what: str, asked: str, measured: str, reached: bool) -> None:
        """Note a target, and whether it is reached."""
        self.targets.append(Target(what, asked, self.disk, measured, reached))

    def step(self, what: str) -> None:
        """One more step begins."""
        self.progress.step(what)
        self.loads.append(os.getloadavg()[0])

    def measure(self) -> None:
        """Everything, on the machine's own disk and on a slower one."""
        with open_house(self.home) as house:
            self.step(f"writing {self.patients:,} patients")
            furnish(house, self.patients, kept.DATABASE)
            kept.founded(house, self.patients, self.lines, self.step)
            self.disk = "own fsync"
            self.on(house)
        library = kept.slower(self.home, DELAY)
        if library is None:
            self.say("", "There is no C compiler here: nothing was measured with slower syncs.")
        else:
            with open_house(self.home, library) as house:
                self.disk = f"+{DELAY:g} ms"
                self.on(house)
        self.disk = "own fsync"
        self.asked()
        self.say("", "### The trail's targets", "", "| | asked for | disk | measured | |", "|---|---|---|---|---|")
        for each in self.targets:
            verdict = "reached" if each.reached else "**missed**"
            self.say(f"| {each.what} | {each.asked} | {each.disk} | {each.measured} | {verdict} |")
        self.say("", f"Load of the machine meanwhile: {min(self.loads):.1f} to {max(self.loads):.1f}.")

    def on(self, house: House) -> None:
        """What there is to measure on one kind of disk."""
        self.step("a second table of the same lines, for an insert per read")
        kept.with_naive_table(house)
        self.say("", f"### The trail, disk: {self.disk}", "")
        self.say(
            f"A line written to Redis takes {line_ms(house):.2f} ms, synced; a row inserted into PostgreSQL "
            f"{row_ms(house):.2f} ms, committed."
        )
        with house.connect(kept.DATABASE) as database:
            charts = [row[0] for row in database.execute("SELECT DISTINCT patient_id FROM encounter").fetchall()]
        by_name = {scene.name: scene for scene in scenes(house, self.patients)}
        by_name["Chart page"] = Scene("Chart page", [f"/patients/{key}/" for key in charts], False)
        kinds = [by_name[name] for name in KINDS]
        with contextlib.ExitStack() as stack:
            webs = {
                way: stack.enter_context(open_web(house, kept.DATABASE, start=start)) for way, start in WAYS.items()
            }
            for way, web in webs.items():
                self.step(f"warming up: {way}")
                warmed(self.crowd, web, kinds)
            kept.drained(house)
            self.throughput(webs, kinds)
            self.latency(webs, kinds)
            self.written(house, webs, kinds[0])
            self.drain(house, webs["trail"], kinds[:2])

    def throughput(self, webs: dict[str, Web], kinds: list[Scene]) -> None:
        """Rate and CPU with 32 clients, every way in every round."""
        found = Found()
        for turn in range(self.rounds):
            for scene in kinds:
                for way in self.dice.sample(list(webs), len(webs)):
                    self.step(f"{scene.name}, 32 clients, {way}, round {turn + 1}")
                    one = measured(self.crowd, webs[way], scene, clients=32, seconds=self.seconds)
                    found.add(scene.name, way, "rate", value=one["rate"])
                    found.add(scene.name, way, "cpu", value=one["total"])
                    for floor in ("web", "database", "cache"):
                        found.add(scene.name, way, floor, value=one["cpu"][floor])
        self.say("", f"#### 32 clients, as fast as they are answered ({self.disk})", "")
        self.say(
            "| request | recorded by | requests/s | against nothing | trail against it | CPU ms (web, database, cache) "
            "| against nothing |"
        )
        self.say("|---|---|---|---|---|---|---|")
        for name in (scene.name for scene in kinds):
            for way in webs:
                floors = ", ".join(f"{found.median(name, way, floor):.2f}" for floor in ("web", "database", "cache"))
                self.say(
                    f"| {name} | {way} | {found.median(name, way, 'rate'):.0f} "
                    f"| {spread(found.ratios((name, way, 'rate'), (name, 'nothing', 'rate')))} "
                    f"| {spread(found.ratios((name, 'trail', 'rate'), (name, way, 'rate')))} "
                    f"| {found.median(name, way, 'cpu'):.2f} ({floors}) "
                    f"| {spread(found.ratios((name, way, 'cpu'), (name, 'nothing', 'cpu')))} |"
                )
            rate = found.ratios((name, "trail", "rate"), (name, "nothing", "rate"))
            least = 0.70 if name == LEANEST else 0.85
            self.hold(
                f"{name}: throughput against no trail", f"≥ {least}", spread(rate), statistics.median(rate) >= least
            )
            cpu = found.ratios((name, "trail", "cpu"), (name, "nothing", "cpu"))
            if name != LEANEST:
                self.hold(f"{name}: CPU against no trail", "≤ 1.10", spread(cpu), statistics.median(cpu) <= 1.10)
        times = 2 if self.disk == "own fsync" else 3
        for name in (scene.name for scene in kinds):
            chained = found.ratios((name, "trail", "rate"), (name, "chained", "rate"))
            if name == LEANEST:
                reached = statistics.median(chained) >= times
                self.hold(f"{name}: throughput against a chained insert", f"≥ {times}", spread(chained), reached)
            plain = found.ratios((name, "trail", "rate"), (name, "plain", "rate"))
            self.hold(f"{name}: throughput against a plain insert", "whatever it is", spread(plain), True)

    def latency(self, webs: dict[str, Web], kinds: list[Scene]) -> None:
        """p50 of one client with and without the trail, and p95 of 32 who do not fill the machine."""
        found, marks, rates = Found(), dict[tuple[str, str], list[float]](), dict[str, float]()
        two = ("trail", "nothing")
        for turn in range(self.rounds):
            for scene in kinds:
                for way in self.dice.sample(two, 2):
                    self.step(f"{scene.name}, 1 client, {way}, round {turn + 1}")
                    one = measured(self.crowd, webs[way], scene, clients=1, seconds=self.seconds)
                    found.add(scene.name, way, "p50", value=percentile(one["latencies"], 0.5))
        for scene in kinds:
            full = [
                measured(self.crowd, webs["nothing"], scene, clients=32, seconds=self.seconds)["rate"] for _ in range(3)
            ]
            rates[scene.name] = statistics.median(full) * BELOW
        for turn in range(self.rounds):
            for scene in kinds:
                for way in self.dice.sample(two, 2):
                    self.step(f"{scene.name}, 32 clients below saturation, {way}, round {turn + 1}")
                    rate = rates[scene.name]
                    one = measured(self.crowd, webs[way], scene, clients=32, seconds=self.seconds, rate=rate)
                    marks.setdefault((scene.name, way), []).extend(one["latencies"])
        self.say("", f"#### Latency ({self.disk})", "")
        self.say(
            "| request | p50 ms, 1 client, trail | nothing | added | 32 clients at requests/s | p50, trail | p95, trail "
            "| p95, nothing |"
        )
        self.say("|---|---|---|---|---|---|---|---|")
        for name in (scene.name for scene in kinds):
            added = found.differences((name, "trail", "p50"), (name, "nothing", "p50"))
            ours, none = marks[name, "trail"], marks[name, "nothing"]
            self.say(
                f"| {name} | {found.median(name, 'trail', 'p50'):.2f} | {found.median(name, 'nothing', 'p50'):.2f} "
                f"| {spread(added)} | {rates[name]:.0f} | {percentile(ours, 0.5):.1f} | {percentile(ours, 0.95):.1f} "
                f"| {percentile(none, 0.95):.1f} |"
            )
            if self.disk == "own fsync":
                middle = statistics.median(added)
                self.hold(f"{name}: added p50, 1 client", "≤ 1 ms", f"{spread(added)} ms", middle <= 1)
            p95 = percentile(ours, 0.95)
            self.hold(
                f"{name}: p95, 32 clients below saturation",
                "< 100 ms",
                f"{p95:.0f} ms at {rates[name]:.0f}/s",
                p95 < 100,
            )

    def written(self, house: House, webs: dict[str, Web], scene: Scene) -> None:
        """What PostgreSQL writes for a read: bytes of its log, and transactions. The drainer's are in it."""
        found = Found()
        for turn in range(2 if self.asks == 20 else 3):
            for way in self.dice.sample(list(webs), len(webs)):
                self.step(f"what PostgreSQL writes, {way}, round {turn + 1}")
                kept.drained(house)
                with house.connect(kept.DATABASE) as database:
                    database.autocommit = True
                    database.execute("CHECKPOINT")
                    before = log_of(database)
                    asked = self.crowd.ask(
                        webs[way], scene.paths, rest=scene.rest, clients=32, seconds=4 * self.seconds
                    )
                    kept.drained(house)
                    after = log_of(database)
                for name, less, more in zip(("bytes", "transactions"), before, after, strict=True):
                    found.add(way, name, value=(more - less) / len(asked["latencies"]))
        self.say("", f"#### What PostgreSQL writes for a read of one patient, from a checkpoint on ({self.disk})", "")
        self.say("| recorded by | bytes of write-ahead log | write transactions |", "|---|---|---|")
        for way in webs:
            self.say(f"| {way} | {spread(found.figures[way, 'bytes'], 0)} | {found.median(way, 'transactions'):.5f} |")
        log = found.ratios(("plain", "bytes"), ("trail", "bytes"))
        self.hold(
            "write-ahead log against a plain insert", "≥ 2.5 times less", spread(log), statistics.median(log) >= 2.5
        )
        writes = statistics.median(found.ratios(("plain", "transactions"), ("trail", "transactions")))
        self.hold(
            "write transactions against a plain insert", "≥ 500 times fewer", f"{writes:,.0f} times", writes >= 500
        )

    def drain(self, house: House, web: Web, kinds: list[Scene]) -> None:
        """How fast what waits is stored and verified, how much room it takes, and what the web notices of it."""
        client = redis.Redis.from_url(house.servers.trail_redis_url)
        self.step(f"{self.piled:,} lines wait")
        kept.drained(house)
        empty = memory_of(client)
        kept.pile(house, self.piled)
        room = (memory_of(client) - empty) / self.piled
        since = now()
        self.step(f"{self.piled:,} lines are stored")
        server = psutil.Process(house.postmaster)
        others = [*map(psutil.Process, house.caches), server]
        with house.connect(kept.DATABASE) as database:
            before, log = spent([*others, *server.children(recursive=True)]), log_of(database)[0]
            told = kept.drained(house)
            after, log = spent([*others, *server.children(recursive=True)]), log_of(database)[0] - log
        rate = self.piled / told["elapsed"]
        self.say("", f"#### Storing ({self.disk})", "")
        self.say(
            f"{self.piled:,} waiting lines took {room:.0f} bytes of Redis each and were stored in {told['elapsed']:.1f} s: "
            f"{rate:,.0f} a second with tree, signatures and witness; {log / self.piled:.0f} bytes of write-ahead log and "
            f"{told['cpu'] / self.piled * 1e6:.1f} µs of CPU each in the drainer, {(after - before) / self.piled * 1e6:.1f} µs "
            "in Redis and in PostgreSQL but for the drainer's own session."
        )
        self.hold("storing", "≥ 20,000 lines/s", f"{rate:,.0f}", rate >= 20_000)
        whole = told["elapsed"] / self.piled * MILLION
        self.hold("a million waiting lines are stored", "< 60 s", f"{whole:.0f} s", whole < 60)
        self.hold("a million waiting lines in Redis", "≤ 450 MB", f"{room * MILLION / 1e6:.0f} MB", room <= 450)
        self.step(f"{self.piled:,} lines are verified")
        seen = kept.told_by(house, kept.VERIFY, since.isoformat())
        took = seen["elapsed"] / seen["lines"] * MILLION
        self.say(
            "",
            f"`verify` looked through {seen['lines']:,} lines in {seen['elapsed']:.1f} s ({took:.1f} s a million), "
            f"{seen['cpu'] / seen['lines'] * 1e6:.1f} µs of CPU each besides PostgreSQL's.",
        )
        self.hold("a million lines are verified", "< 60 s", f"{took:.0f} s", took < 60)
        self.meanwhile(house, web, kinds, client)
        client.close()

    def meanwhile(self, house: House, web: Web, kinds: list[Scene], client: redis.Redis) -> None:
        """The web while the drainer works and while it is held still, by turns."""
        self.step("another million lines wait")
        kept.pile(house, self.piled)
        rates = {
            scene.name: measured(self.crowd, web, scene, clients=32, seconds=self.seconds)["rate"] * BELOW
            for scene in kinds
        }
        found, stored = Found(), list[float]()
        with kept.drainer_process(house) as process:
            try:
                for turn in range(self.rounds):
                    for scene in kinds:
                        for crowd, rate in (("full", None), ("below", rates[scene.name])):
                            for state in self.dice.sample(("storing", "still"), 2):
                                self.step(f"{scene.name} while the drainer is {state}, round {turn + 1}")
                                self.pile_up(house, client, process.pid)
                                os.kill(process.pid, signal.SIGCONT if state == "storing" else signal.SIGSTOP)
                                waits, begun = waiting(client), time.perf_counter()
                                one = measured(self.crowd, web, scene, clients=32, seconds=self.seconds, rate=rate)
                                taken = (waits - waiting(client)) / (time.perf_counter() - begun) + one["rate"]
                                if state == "storing":
                                    stored.append(taken)
                                found.add(scene.name, crowd, state, "rate", value=one["rate"])
                                found.add(scene.name, crowd, state, "p95", value=percentile(one["latencies"], 0.95))
            finally:
                process.kill()
        self.say("", f"#### The web while a backlog is stored ({self.disk})", "")
        self.say("| request | 32 clients | requests/s, storing | not | ratio | p95 ms, storing | not |")
        self.say("|---|---|---|---|---|---|---|")
        for name in (scene.name for scene in kinds):
            for crowd, words in (("full", "as fast as they are answered"), ("below", "below saturation")):
                ratio = found.ratios((name, crowd, "storing", "rate"), (name, crowd, "still", "rate"))
                rate, p95 = (
                    " | ".join(f"{found.median(name, crowd, state, what):.0f}" for state in ("storing", "still"))
                    for what in ("rate", "p95")
                )
                self.say(f"| {name} | {words} | {rate} | {spread(ratio)} | {p95} |")
                what = f"{name} while a backlog is stored, {words}"
                self.hold(what, "> 0.8", spread(ratio), statistics.median(ratio) > 0.8)
        self.say("", f"Stored meanwhile: {spread(stored, 0)} lines a second.")
        kept.drained(house)

    def pile_up(self, house: House, client: redis.Redis, drainer: int) -> None:
        """Have enough waiting for one round more."""
        enough = self.piled // 4
        if waiting(client) < enough:
            os.kill(drainer, signal.SIGSTOP)
            kept.pile(house, self.piled - waiting(client))

    def asked(self) -> None:
        """Who saw this patient, and what did this person see, in a trail twice as long, with no backlog's lines in it."""
        home = self.home / "asked"
        home.mkdir(mode=0o711)
        with open_house(home) as house:
            self.step(f"writing {self.patients:,} patients")
            furnish(house, self.patients, kept.DATABASE)
            kept.founded(house, self.patients, 2 * self.lines, self.step)
            self.step("asking the trail")
            found = kept.told_by(house, kept.ASK, str(self.asks))
        self.say("", f"### Asking a trail of {found['lines']:,} lines", "")
        self.say("| question | lines, p50 and most | statements, ms p50 | p95 | with everything, ms p50 | p95 |")
        self.say("|---|---|---|---|---|---|")
        for name, one in found["questions"].items():
            marks = " | ".join(
                f"{percentile(one[kind], share) / 1000:.2f}" for kind in ("database", "whole") for share in (0.5, 0.95)
            )
            self.say(f"| {name} | {statistics.median(one['lines']):.0f}, {max(one['lines']):.0f} | {marks} |")
            p50, p95 = (percentile(one["database"], share) / 1000 for share in (0.5, 0.95))
            self.hold(f"{name}, warm", "< 10 ms", f"p50 {p50:.1f}, p95 {p95:.1f} ms", p95 < 10)
        self.say("", "#### How it is found, for the patient and the person with the most lines")
        for name, plan in found["plans"].items():
            self.say("", f"{name}:", "", "```", *plan, "```")


def line_ms(house: House) -> float:
    """Milliseconds of one XADD to the trail's Redis, median."""
    client, taken = redis.Redis.from_url(house.servers.trail_redis_url), []
    for _ in range(200):
        begun = time.perf_counter()
        client.xadd("bench", {"e": b"x" * 400})
        taken.append(time.perf_counter() - begun)
    client.delete("bench")
    client.close()
    return statistics.median(taken) * 1000


def row_ms(house: House) -> float:
    """Milliseconds of one INSERT with its commit, median."""
    taken = []
    with house.connect(kept.DATABASE) as database:
        database.autocommit = True
        database.execute("CREATE TABLE IF NOT EXISTS bench_row (line text)")
        for _ in range(200):
            begun = time.perf_counter()
            database.execute("INSERT INTO bench_row VALUES (repeat('x', 400))")
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1000


def log_of(database: Any) -> tuple[int, int]:
    """Bytes of write-ahead log and transactions so far."""
    query = "SELECT pg_current_wal_insert_lsn() - '0/0', pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    row = database.execute(query).fetchone()
    return int(row[0]), int(row[1])


def memory_of(client: redis.Redis) -> int:
    """Bytes in use by a Redis."""
    told: Any = client.info("memory")
    return int(told["used_memory"])


def waiting(client: redis.Redis) -> int:
    """Entries that wait in the stream."""
    count: Any = client.xlen(trail.STREAM)
    return int(count)
