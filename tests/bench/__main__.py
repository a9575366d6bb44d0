"""`make bench`: what a request costs, how that grows, and what recording, the gate and a cache have to do with it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from tests.bench import imports, live, messages, people, scheduling
from tests.bench.house import PROJECT, Crowd, House, furnish, open_house, open_web, spent
from tests.bench.rounds import Progress, measured, percentile, scenes, warmed
from tests.bench.trail import Trail

CROWDS = (1, 8, 32)
PARTS = (
    "cost",
    "recording",
    "drain",
    "statements",
    "shares",
    "cache",
    "growth",
    "import",
    "scheduling",
    "live",
    "hl7",
    "trail",
)
TARGETS = {
    "REST: open one patient": 4.0,
    "REST: search, 25 rows": 6.0,
    "List page": 12.0,
    "Chart page": 20.0,
}
"""CPU milliseconds of web, database and cache together, at most."""


class Bench:
    """All parts, and the report they write."""

    def __init__(self, house: House, crowd: Crowd, options: argparse.Namespace, progress: Progress) -> None:
        self.house = house
        self.crowd = crowd
        self.options = options
        self.progress = progress
        self.report: list[str] = []
        self.rounds = 1 if options.quick else options.rounds
        self.seconds = 1.0 if options.quick else 2.5
        self.missed: list[str] = []

    def say(self, *lines: str) -> None:
        self.report += lines

    def cost(self) -> None:
        """CPU, latency and rate of every scene at every crowd, in interleaved rounds."""
        all_scenes = scenes(self.house, self.options.patients)
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        with open_web(self.house, "wardbook") as web:
            warmed(self.crowd, web, all_scenes)
            for turn in range(self.rounds):
                for scene in all_scenes:
                    for clients in CROWDS:
                        self.progress.step(f"{scene.name}, {clients} at once, round {turn + 1}")
                        one = measured(self.crowd, web, scene, clients=clients, seconds=self.seconds)
                        found.setdefault((scene.name, clients), []).append(one)
            memory = web.memory() / 1e6
        self.say("", "### CPU of one request (8 clients)", "")
        self.say("| request | web | database | cache | **ms together** | target |", "|---|---|---|---|---|---|")
        for scene in all_scenes:
            rounds = found[scene.name, 8]
            floors = [statistics.median(one["cpu"][floor] for one in rounds) for floor in ("web", "database", "cache")]
            total = statistics.median(one["total"] for one in rounds)
            target = TARGETS.get(scene.name)
            if target and total > target:
                self.missed.append(f"{scene.name}: {total:.1f} ms, target {target:g}")
            parts = " | ".join(f"{value:.2f}" for value in floors)
            self.say(f"| {scene.name} | {parts} | **{total:.1f}** | {f'{target:g}' if target else ''} |")
        self.say("", "### Latency and rate", "", "| request | clients | p50 ms | p95 | p99 | requests/s |")
        self.say("|---|---|---|---|---|---|")
        for scene in all_scenes:
            for clients in CROWDS:
                rounds = found[scene.name, clients]
                times = [value for one in rounds for value in one["latencies"]]
                rate = statistics.median(one["rate"] for one in rounds)
                marks = " | ".join(f"{percentile(times, share):.1f}" for share in (0.5, 0.95, 0.99))
                self.say(f"| {scene.name} | {clients} | {marks} | {rate:.0f} |")
        self.say("", f"Memory of the web processes together (proportional set size): {memory:.0f} MB.")

    def recording(self) -> None:
        """The same requests with the trail, and with one that writes nothing."""
        chosen = [scene for scene in scenes(self.house, self.options.patients) if scene.name in TARGETS]
        found: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        without = ("-m", "tests.bench.instead", "nothing")
        with open_web(self.house, "wardbook") as real, open_web(self.house, "wardbook", start=without) as mute:
            for web in (real, mute):
                warmed(self.crowd, web, chosen)
            for turn in range(self.rounds):
                for scene in chosen:
                    for web in (real, mute):
                        self.progress.step(f"what recording costs, round {turn + 1}")
                        one = measured(self.crowd, web, scene, clients=8, seconds=self.seconds)
                        found.setdefault((scene.name, web is real), []).append(one)
        self.progress.step("what recording costs, by turns in one process")
        alone = self.inside("recording", 1.0 if self.options.quick else 6.0)
        self.say("", "### What recording costs", "")
        self.say("| request | ms CPU recorded | unrecorded | ratio | p50 recorded, 8 clients | p50 unrecorded |")
        self.say("|---|---|---|---|---|---|")
        for scene in chosen:
            on, off = alone[scene.name]["recorded"], alone[scene.name]["unrecorded"]
            halves = [
                percentile([value for one in found[scene.name, kind] for value in one["latencies"]], 0.5)
                for kind in (True, False)
            ]
            self.say(f"| {scene.name} | {on:.2f} | {off:.2f} | {on / off:.2f} | {halves[0]:.1f} | {halves[1]:.1f} |")

    def drain(self) -> None:
        """What it costs to move the recorded lines into PostgreSQL afterwards."""
        self.progress.step("draining the trail")
        script = (
            "import time\n"
            "import run\n"
            "run.open_house(run.read_settings())\n"
            "from jobs import trail as jobs\n"
            "begun = time.perf_counter(); start = time.process_time()\n"
            "getattr(jobs.drain, '__wrapped__', jobs.drain)()\n"
            "print(time.perf_counter() - begun, time.process_time() - start)\n"
        )
        with self.house.connect("wardbook") as database:
            had = database.execute("SELECT count(*) FROM audit_event").fetchone()
        server = psutil.Process(self.house.postmaster)
        keep = [server, *server.children(recursive=True), *map(psutil.Process, self.house.caches)]
        before = spent(keep)
        told = subprocess.run(
            [sys.executable, "-c", script],
            cwd=PROJECT,
            env={**self.house.environment("wardbook"), "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=False,
        )
        after = spent(keep)
        if told.returncode:
            self.say("", f"The drainer could not be run by itself: {told.stderr.strip().splitlines()[-1][:200]}")
            return
        elapsed, own = map(float, told.stdout.split()[-2:])
        with self.house.connect("wardbook") as database:
            has = database.execute("SELECT count(*) FROM audit_event").fetchone()
        lines = (has or [0])[0] - (had or [0])[0]
        if not lines:
            self.say("", "The drainer found nothing to move.")
            return
        each = (own + after - before) / lines * 1000
        self.say("", "### The trail's second half", "")
        self.say(
            f"{lines:,} lines moved into PostgreSQL in {elapsed:.1f} s: {lines / elapsed:,.0f} a second, at least "
            f"{each:.3f} ms of CPU each (the drainer's own database session is not in it)."
        )

    def inside(self, what: str, seconds: float) -> Any:
        """Ask a process that looks at itself."""
        pids = json.dumps({"postmaster": self.house.postmaster, "caches": self.house.caches})
        told = subprocess.run(
            [sys.executable, "-m", "tests.bench.inside", what, str(seconds)],
            cwd=PROJECT,
            env={**self.house.environment("wardbook"), "BENCH_PIDS": pids},
            capture_output=True,
            text=True,
            check=False,
        )
        if told.returncode:
            raise RuntimeError(told.stderr[-2000:])
        return json.loads(told.stdout.splitlines()[-1])

    def statements(self) -> None:
        """How many SQL statements a request takes."""
        self.progress.step("statements")
        most = {"REST: open one patient": 3, "List page": 6, "Chart page": 12}
        self.say("", "### SQL statements of a request, warm", "", "| request | statements | target |", "|---|---|---|")
        for name, count in self.inside("statements", 0).items():
            self.say(f"| {name} | {count} | {most.get(name, '')} |")
            if count > most.get(name, 99):
                self.missed.append(f"{name}: {count} statements, target {most[name]}")

    def shares(self) -> None:
        """How much of the time is spent in the gate."""
        self.progress.step("the gate's share")
        self.say("", "### The gate's share (one process, one client)", "")
        self.say(
            "| request | gate, of the CPU | gate, of the time | writing the trail, of the time | who asks, of the CPU |"
        )
        self.say("|---|---|---|---|---|")
        for name, share in self.inside("shares", 1.0 if self.options.quick else 4.0).items():
            columns = [share[key] for key in ("gate cpu", "gate time", "trail time", "who cpu")]
            self.say(f"| {name} | " + " | ".join(f"{value:.0%}" for value in columns) + " |")
            if max(columns[:2]) > 0.15:
                self.missed.append(f"{name}: {max(columns[:2]):.0%} in the gate, target 15%")

    def cache(self) -> None:
        """What a cache of searches in Valkey would save."""
        self.progress.step("a cache of searches")
        found = self.inside("cache", 0.5 if self.options.quick else 3.0)
        self.say("", "### A cache of searches, tried", "", "| 25 rows from | CPU ms, all processes |", "|---|---|")
        for name, value in found.items():
            self.say(f"| {name} | {value:.2f} |")
        asked = people.questions(4000, self.options.patients, 3)
        again = sum(text in asked[max(nth - 200, 0) : nth] for nth, text in enumerate(asked)) / len(asked)
        database, hit, miss = found["PostgreSQL"], found["cache, hit"], found["cache, miss"]
        saved = again * (database - hit) - (1 - again) * (miss - database)
        self.say(
            "",
            f"Of 4,000 mixed questions {again:.1%} had been asked among the 200 before (a minute of a busy chain): "
            f"a cache of a minute would save {saved:.2f} ms of CPU a search on average, of {database:.2f}.",
        )

    def growth(self) -> None:
        """The same kind of questions to hospitals of different size."""
        sizes = (1_000, 10_000) if self.options.quick else (10_000, 100_000, 1_000_000)
        for size in sizes:
            self.progress.step(f"writing {size:,} patients")
            furnish(self.house, size, f"grown_{size}")
        asked = {size: [quote(text) for text in people.questions(4000, size, 5)] for size in sizes}
        taken: dict[int, list[float]] = {size: [] for size in sizes}
        spending: dict[int, list[float]] = {size: [] for size in sizes}
        with contextlib.ExitStack() as stack:
            webs = {size: stack.enter_context(open_web(self.house, f"grown_{size}", workers=1)) for size in sizes}
            for size, web in webs.items():
                self.crowd.ask(web, [f"/api/v1/patient/search?text={text}" for text in asked[size][-400:]], rest=True)
            slices = 4 if self.options.quick else 24
            for turn in range(slices):
                self.progress.step(f"searching, slice {turn + 1} of {slices}")
                for size, web in webs.items():
                    some = asked[size][turn * 100 : turn * 100 + 100]
                    web.sign_in()
                    before = web.cpu()
                    answer = self.crowd.ask(web, [f"/api/v1/patient/search?text={text}" for text in some], rest=True)
                    after = web.cpu()
                    taken[size] += answer["latencies"]
                    spending[size].append(sum(after[f] - before[f] for f in after) / len(some) * 1000)
        self.say("", "### Search as the hospital grows (mixed questions, 1 client)", "")
        self.say("| patients | p50 ms | p95 | p99 | CPU ms | p95 against the smallest |", "|---|---|---|---|---|---|")
        smallest = percentile(taken[sizes[0]], 0.95)
        for size in sizes:
            marks = " | ".join(f"{percentile(taken[size], share):.1f}" for share in (0.5, 0.95, 0.99))
            times = percentile(taken[size], 0.95) / smallest
            self.say(f"| {size:,} | {marks} | {statistics.median(spending[size]):.1f} | {times:.2f} |")
        if times > 2:
            self.missed.append(f"search at {sizes[-1]:,} patients: {times:.2f} times the smallest at p95, target 2")

    def take_in(self) -> None:
        """FHIR files of growing size."""
        sizes = (100, 400) if self.options.quick else (500, 2000, 8000)
        furnish(self.house, 10, "imported")
        self.say("", "### Import of FHIR NDJSON", "", "| resources | file MB | seconds | resources/s | peak MB |")
        self.say("|---|---|---|---|---|")
        for nth, size in enumerate(sizes):
            self.progress.step(f"importing {size * imports.EACH:,} resources")
            path = imports.written(self.house.home, size, 100 + nth)
            path.chmod(0o644)
            told = imports.take_in(self.house, "imported", path)
            count = size * imports.EACH
            self.say(
                f"| {count:,} | {told['megabytes']:.1f} | {told['seconds']:.1f} | {count / told['seconds']:,.0f} "
                f"| {told['memory']:.0f} |"
            )

    def scheduling(self) -> None:
        """Finding a time, and booking it while everybody else does."""
        self.progress.step("finding and booking times")
        self.say(*scheduling.measure(self.house, "wardbook", self.options.patients, self.options.quick))

    def live(self) -> None:
        """From the commit of a booking to the pages that are open."""
        bookings = 10 if self.options.quick else 100
        pages = live.DESKS * live.EACH
        self.progress.step(f"telling {pages} open pages of {bookings} bookings")
        told = live.measure(self.house, "wardbook", bookings)
        self.say("", f"### From the commit to the screen ({pages} open pages, 2 web processes)", "")
        self.say("| told | p50 ms | p95 | p99 |", "|---|---|---|---|")
        for name, times in (("each page", told.each), ("the last page", told.last)):
            marks = " | ".join(f"{percentile(times, share):.0f}" for share in (0.5, 0.95, 0.99))
            self.say(f"| {name} | {marks} |")
        self.say("", f"Memory of the web processes together with all of them open: {told.megabytes:.0f} MB.")
        if (slow := percentile(told.each, 0.95)) > 1000:
            self.missed.append(f"commit to screen: {slow:.0f} ms at p95, target 1000")

    def hl7(self) -> None:
        """Messages of other systems, from the wire to the answer."""
        self.progress.step("taking HL7 v2 messages in")
        rounds = messages.measure(self.house, "wardbook", 400 if self.options.quick else 4000)
        self.say(*messages.report(rounds))
        if (slow := rounds[0].rate) < 200:
            self.missed.append(f"HL7 v2 in: {slow:.0f} messages/s, target 200")


def machine() -> str:
    """Where this was measured."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    return (
        f"{psutil.cpu_count()} x {name}, {memory:.0f} GB, Python {platform.python_version()}, load {load:.1f} at first"
    )


@contextlib.contextmanager
def throw_away() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="wardbook-bench-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Measure, and print the tables as they stand in docs/benchmarks.md."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few minutes, small numbers: to see that it works")
    parser.add_argument("--patients", type=int, help="patients in the hospital (100,000; 5,000 with --quick)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of every measurement (5)")
    parser.add_argument("--lines", type=int, help="lines in the trail (5,000,000; 100,000 with --quick)")
    parser.add_argument("--only", help=f"parts, by comma: {', '.join(PARTS)}")
    options = parser.parse_args()
    options.patients = options.patients or (5_000 if options.quick else 100_000)
    wanted = options.only.split(",") if options.only else list(PARTS)
    rounds = 1 if options.quick else options.rounds
    steps = {
        "cost": rounds * 18,
        "recording": rounds * 8 + 1,
        "growth": 8 if options.quick else 28,
        "import": 3,
        "trail": 190 if options.quick else 80 + 80 * max(rounds, 5),
    }
    progress = Progress(1 + sum(steps.get(part, 1) for part in wanted))
    where = machine()
    report = [f"{options.patients:,} patients, 2 web processes of 16 threads, {rounds} rounds.", f"{where}."]
    missed: list[str] = []
    with contextlib.closing(Crowd()) as crowd:
        if set(wanted) - {"trail"}:
            with throw_away() as home, open_house(home) as house:
                progress.step(f"writing {options.patients:,} patients")
                furnish(house, options.patients, "wardbook")
                bench = Bench(house, crowd, options, progress)
                for part in PARTS[:-1]:
                    if part in wanted:
                        (bench.take_in if part == "import" else getattr(bench, part))()
                report, missed = [*report, *bench.report], bench.missed
        if "trail" in wanted:
            with throw_away() as home:
                trail = Trail(home, crowd, options, progress)
                try:
                    trail.measure()
                finally:
                    report += trail.report
                    if sys.exc_info()[0]:  # what was measured until then is worth its hour all the same
                        sys.stdout.write("\n".join([*report, ""]))
                missed += [f"{each.what}, {each.disk}: {each.measured}" for each in trail.targets if not each.reached]
    progress.end()
    verdict = "Missed: " + "; ".join(missed) + "." if missed else "Every target is met."
    sys.stdout.write("\n".join([*report, "", verdict, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
