"""Taking in FHIR files of growing size: how fast, and whether the memory stays the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.bench import people
from tests.bench.house import PROJECT, House

EACH = 10
"""Resources of one patient: the patient, a visit, and what was measured in it."""


def written(folder: Path, count: int, seed: int) -> Path:
    """NDJSON of `count` patients with a visit and eight measurements each."""
    path = folder / f"made-{seed}.ndjson"
    with path.open("w") as file:
        for nth, one in enumerate(people.patients(count, [(1, 1)], seed)):
            who, visit = f"p-{seed}-{nth}", f"e-{seed}-{nth}"
            moment = f"2024-0{nth % 9 + 1}-11T09:30:00Z"
            rows: list[dict[str, Any]] = [
                {
                    "resourceType": "Patient",
                    "id": who,
                    "name": [{"use": "official", "family": one["family"], "given": one["given"].split()}],
                    "gender": one["gender"],
                    "birthDate": str(one["birth_date"]),
                    "telecom": [{"system": "phone", "value": one["phone"], "use": "mobile"}],
                    "identifier": [{"system": "urn:bench", "value": f"{seed}-{nth}"}],
                },
                {
                    "resourceType": "Encounter",
                    "id": visit,
                    "status": "finished",
                    "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
                    "subject": {"reference": f"Patient/{who}"},
                    "period": {"start": moment, "end": moment},
                },
                *(
                    {
                        "resourceType": "Observation",
                        "id": f"o-{seed}-{nth}-{turn}",
                        "status": "final",
                        "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}]},
                        "subject": {"reference": f"Patient/{who}"},
                        "encounter": {"reference": f"Encounter/{visit}"},
                        "effectiveDateTime": moment,
                        "valueQuantity": {
                            "value": 60 + turn,
                            "unit": "/min",
                            "system": "http://unitsofmeasure.org",
                            "code": "/min",
                        },
                    }
                    for turn in range(EACH - 2)
                ),
            ]
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def take_in(house: House, database: str, path: Path) -> dict[str, float]:
    """Import one file; seconds it took and the most memory it held."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "run.py", "import-fhir", str(path)],
        cwd=PROJECT,
        env=house.environment(database),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watched, most = psutil.Process(process.pid), 0
    log = house.home / "log" / "import.log"
    with log.open("w") as said:
        assert process.stdout is not None
        import threading

        reader = threading.Thread(target=lambda: said.write(process.stdout.read()))  # type: ignore[union-attr]
        reader.start()
        while process.poll() is None:
            try:
                most = max(most, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        reader.join()
    if process.wait():
        raise RuntimeError(f"The import failed: {log.read_text()[-1000:]}")
    return {"seconds": time.perf_counter() - begun, "memory": most / 1e6, "megabytes": path.stat().st_size / 1e6}
