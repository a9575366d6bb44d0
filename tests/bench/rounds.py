"""One round of questions, and what one needs for it: kinds of questions, CPU by floor, latencies, a progress bar."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.bench import people
from tests.bench.house import Crowd, House, Web


@dataclass
class Progress:
    """A bar on standard error."""

    total: int
    done: int = 0
    begun: float = field(default_factory=time.monotonic)

    def step(self, what: str) -> None:
        """One more step begins."""
        share = min(self.done / self.total, 1.0)
        self.done += 1
        if sys.stderr.isatty():
            filled = round(share * 30)
            sys.stderr.write(f"\r[{'#' * filled}{'.' * (30 - filled)}] {share:4.0%} {what:<48.48}")
            sys.stderr.flush()

    def end(self) -> None:
        """Nothing more to come."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{' ' * 90}\r")
        sys.stderr.write(f"measured in {time.monotonic() - self.begun:.0f} s\n")


@dataclass(frozen=True)
class Scene:
    """One kind of request, and the addresses it goes to in turn."""

    name: str
    paths: list[str]
    rest: bool


def scenes(house: House, count: int) -> list[Scene]:
    """What is asked for."""
    with house.connect("wardbook") as database:
        keys = [row[0] for row in database.execute("SELECT id FROM patient ORDER BY id LIMIT 20000").fetchall()]
    found = [quote(name) for name in people.surnames(40)]
    mixed = [quote(text) for text in people.questions(1000, count, 11)]
    return [
        Scene("REST: open one patient", [f"/api/v1/patient/{key}" for key in keys[:: max(len(keys) // 3000, 1)]], True),
        Scene("REST: search, 25 rows", [f"/api/v1/patient/search?text={text}" for text in found], True),
        Scene("REST: search, mixed", [f"/api/v1/patient/search?text={text}" for text in mixed], True),
        Scene("List page", [f"/patients/all/list/?page_PatientList={page}" for page in range(40)], False),
        Scene("Chart page", [f"/patients/{keys[0]}/"], False),
        Scene("Chart page, 500 values", [f"/patients/{keys[0]}/?tab=observations"], False),
    ]


def measured(
    crowd: Crowd, web: Web, scene: Scene, *, clients: int, seconds: float, rate: float | None = None
) -> dict[str, Any]:
    """One round: CPU of every floor, and the latencies. A round in which a worker was replaced is asked again."""
    while True:
        web.sign_in()
        who, before = {worker.pid for worker in web.workers()}, web.cpu()
        answer = crowd.ask(web, scene.paths, rest=scene.rest, clients=clients, seconds=seconds, rate=rate)
        after = web.cpu()
        if {worker.pid for worker in web.workers()} == who:
            break
    count = len(answer["latencies"])
    cpu = {floor: (after[floor] - before[floor]) / count * 1000 for floor in after}
    return {
        "cpu": cpu,
        "total": sum(cpu.values()),
        "rate": count / answer["elapsed"],
        "latencies": answer["latencies"],
    }


def percentile(values: list[float], share: float) -> float:
    """In milliseconds."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000


def warmed(crowd: Crowd, web: Web, all_scenes: list[Scene]) -> None:
    """Every worker has seen every kind of request before anything counts."""
    for scene in all_scenes:
        crowd.ask(web, (scene.paths * 60)[:240], rest=scene.rest, clients=8)
