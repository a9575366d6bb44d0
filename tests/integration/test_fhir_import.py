"""Taking over records from elsewhere: everything arrives, once, and what does not is said."""

import io
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import set_json_loads
from sqlalchemy import make_url

from app import guard, trail
from jobs.fhir_import import alone, main
from ops.servers import Servers
from tests.conftest import spoken

PROJECT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("WARDBOOK_SHARED_DATA") or PROJECT.parent / "shared" / "data")
SETS = [SHARED / "synthea" / name for name in ("r4-bundles", "uscore-2026", "ehds-es-2026")]
NOBODYS = {"Organization", "Practitioner", "Location", "PractitionerRole"}
TABLES = {
    "Patient": "patient",
    "Encounter": "encounter",
    "Condition": "condition",
    "AllergyIntolerance": "allergy_intolerance",
    "Observation": "observation",
    "Procedure": "procedure",
    "Immunization": "immunization",
    "DiagnosticReport": "diagnostic_report",
    "MedicationRequest": "medication_request",
    "Organization": "organization",
    "Practitioner": "practitioner",
}

needs_shared_data = pytest.mark.skipif(
    not (SHARED / "synthea" / "expected.jsonl").is_file(),
    reason="needs the shared data: set WARDBOOK_SHARED_DATA to where it is",
)


@dataclass(frozen=True)
class Said:
    """How an import ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What was refused, without the progress bar."""
        lines = [line.rpartition("\r")[2].strip() for line in self.err.splitlines()]
        return [line for line in lines if line and not line.startswith("import:")]


@dataclass(frozen=True)
class Records:
    """A database of a test's own, and what it holds."""

    url: str
    trail_url: str
    spool: Path

    def take_in(self, *paths: Path, source: str = "test", time_zone: str = "UTC") -> Said:
        """Import, in this process."""
        out, err = io.StringIO(), io.StringIO()
        status = main([str(path) for path in paths], source, time_zone=time_zone, out=out, err=err)
        return Said(status, out.getvalue(), err.getvalue())

    def command(self, *paths: Path, source: str = "test") -> list[str]:
        """The same in a process of its own, which says its peak of memory in the end."""
        code = (
            "import sys; from pathlib import Path; from app import guard, trail; from jobs.fhir_import import main;"
            f"guard.connect({self.url!r}); trail.connect({self.trail_url!r}, Path({str(self.spool)!r}));"
            f"status = main({[str(path) for path in paths]!r}, {source!r});"
            "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1]); sys.exit(status)"
        )
        return [sys.executable, "-c", code]

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """What a query finds; decimals in JSON keep their digits."""
        address = make_url(self.url).set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(address) as connection:
            set_json_loads(partial(json.loads, parse_float=Decimal), connection)
            return connection.execute(query.encode(), parameters).fetchall()

    def one(self, query: str, *parameters: object) -> Any:
        """The single value a query finds."""
        ((value,),) = self.rows(query, *parameters)
        return value

    def everything(self) -> dict[str, Any]:
        """All that was taken over, without what differs from one run to the next."""
        source = "source, resource_type, source_id, digest, content::text, record_id IS NULL, patient_id IS NULL"
        found: dict[str, Any] = {"received": set(self.rows(f"SELECT {source} FROM source_resource"))}
        for table in (*TABLES.values(), "document_reference", "patient_identifier"):
            found[table] = self.one(f"SELECT count(*) FROM {table}")
        return found


@pytest.fixture
def records(servers: Servers, fresh_database: Callable[..., str], migrated: str, tmp_path: Path) -> Iterator[Records]:
    """A fresh database, with the gate and the trail connected to it."""
    url = fresh_database(make_url(migrated).database)
    guard.connect(url)
    trail.connect(servers.trail_redis_url, tmp_path / "spool")
    yield Records(url, servers.trail_redis_url, tmp_path / "spool")
    guard.session.remove()
    guard.engine().dispose()


# ---- small resources of our own ----------------------------------------------------------------------------------


def patient(name: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": name, "name": [{"family": "Quixano", "given": [name]}], **elements}


def observation(name: str, subject: str, **elements: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": name,
        "status": "final",
        "code": {"text": "Pulse"},
        "subject": {"reference": subject},
        **elements,
    }


def encounter(name: str, subject: str, **elements: Any) -> dict[str, Any]:
    return {
        "resourceType": "Encounter",
        "id": name,
        "status": "finished",
        "class": {"code": "AMB"},
        "subject": {"reference": subject},
        **elements,
    }


def bundle(*entries: dict[str, Any], kind: str = "transaction") -> str:
    """A Bundle of resources, or of entries that have a full URL."""
    wrapped = [entry if "resource" in entry else {"resource": entry} for entry in entries]
    return json.dumps({"resourceType": "Bundle", "type": kind, "entry": wrapped})


def ndjson(*resources: dict[str, Any] | str) -> str:
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in resources)


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content)
    return path


# ---- the shared sets ---------------------------------------------------------------------------------------------


def received(*folders: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every resource in the files below, read the simple way."""
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            for entry in json.loads(path.read_text(), parse_float=Decimal)["entry"]:
                yield path, entry["resource"]


@pytest.fixture(scope="module")
def imported(
    servers: Servers, fresh_database: Callable[..., str], migrated: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Records, Said]:
    """The three shared sets, imported once for the tests that look at what arrived."""
    url = fresh_database(make_url(migrated).database)
    records = Records(url, servers.trail_redis_url, tmp_path_factory.mktemp("shared-spool"))
    guard.connect(url)
    trail.connect(servers.trail_redis_url, records.spool)
    said = records.take_in(*SETS, source="synthea")
    guard.session.remove()
    guard.engine().dispose()
    return records, said


def expected() -> list[dict[str, Any]]:
    path = SHARED / "synthea" / "expected.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@needs_shared_data
def test_nothing_of_the_shared_sets_is_refused(imported: tuple[Records, Said]) -> None:
    records, said = imported
    assert (said.status, said.lines) == (0, [])
    by_type: dict[str, set[str]] = defaultdict(set)
    for _, resource in received(*SETS):
        by_type[resource["resourceType"]].add(resource["id"])
    wanted = {kind: len(ids) for kind, ids in by_type.items()}
    wanted["Composition"] = 4  # four documents of one patient, which share an id
    assert dict(records.rows("SELECT resource_type, count(*) FROM source_resource GROUP BY 1")) == wanted
    for kind, table in TABLES.items():
        assert records.one(f"SELECT count(*) FROM {table}") == wanted[kind], kind
    assert records.one("SELECT count(*) FROM document_reference") == wanted["DocumentReference"] + 4


@needs_shared_data
def test_every_resource_is_kept_word_for_word(imported: tuple[Records, Said]) -> None:
    records, _ = imported
    kept = {(t, i): c for t, i, c in records.rows("SELECT resource_type, source_id, content FROM source_resource")}
    fuller = 0
    for _, resource in received(*SETS):
        kind, name = resource["resourceType"], resource["id"]
        if kind == "Composition":
            name += "|" + resource["type"]["coding"][0]["code"]
        if kept[kind, name] != resource:
            # Another file tells more of the same organization or practitioner.
            assert kind in NOBODYS
            assert kept[kind, name] == kept[kind, name] | resource
            fuller += 1
    assert fuller == 56


@needs_shared_data
@pytest.mark.parametrize("line", expected(), ids=lambda line: Path(line["file"]).stem.partition("_")[0])
def test_a_patient_arrives_at_the_expected_figures(imported: tuple[Records, Said], line: dict[str, Any]) -> None:
    records, _ = imported
    ((key, *who),) = records.rows(
        "SELECT p.id, p.family, p.given, p.birth_date::text, p.gender, p.deceased, p.deceased_at FROM patient p"
        " JOIN source_resource s ON s.record_id = p.id AND s.resource_type = 'Patient' WHERE s.source_id = %s",
        line["patient"],
    )
    died = datetime.fromisoformat(line["deceased"]) if line["deceased"] else None
    assert who == [line["family"], " ".join(line["given"]), line["birthDate"], line["gender"], died is not None, died]

    ours = dict(
        records.rows("SELECT resource_type, count(*) FROM source_resource WHERE patient_id = %s GROUP BY 1", key)
    )
    assert ours == {kind: count for kind, count in line["counts"].items() if kind not in NOBODYS}
    for kind in NOBODYS & line["counts"].keys():
        entries = json.loads((SHARED / "synthea" / line["file"]).read_text())["entry"]
        ids = [entry["resource"]["id"] for entry in entries if entry["resource"]["resourceType"] == kind]
        found = records.one(
            "SELECT count(*) FROM source_resource WHERE resource_type = %s AND source_id = ANY(%s)", kind, ids
        )
        assert found == line["counts"][kind]
    for kind, table in TABLES.items():
        if kind not in NOBODYS and kind != "Patient":
            assert records.one(f"SELECT count(*) FROM {table} WHERE patient_id = %s", key) == line["counts"].get(
                kind, 0
            )

    totals = records.rows(
        "SELECT content->'total' FROM source_resource WHERE resource_type = 'Claim' AND patient_id = %s", key
    )
    assert sum((total["value"] for (total,) in totals), Decimal(0)) == Decimal(line["claim_total"])
    assert sorted({total["currency"] for (total,) in totals}) == line["currency"]
    allergies = records.rows("SELECT code_display FROM allergy_intolerance WHERE patient_id = %s ORDER BY 1", key)
    assert sorted(name for (name,) in allergies) == line["allergies"]
    active = "SELECT count(*) FROM medication_request WHERE patient_id = %s AND status = 'active'"
    assert records.one(active, key) == line["active_medication_requests"]
    codes = (
        "SELECT count(DISTINCT coding->>'code') FROM source_resource s JOIN observation o ON o.id = s.record_id,"
        " jsonb_array_elements(s.content->'code'->'coding') coding"
        " WHERE s.resource_type = 'Observation' AND o.patient_id = %s AND"
        " o.code IN (SELECT jsonb_path_query(s.content, '$.code.coding[*].code')->>0)"
    )
    assert records.one(codes, key) == line["distinct_observation_codes"]


@needs_shared_data
def test_four_documents_of_one_patient_are_one_patient(imported: tuple[Records, Said]) -> None:
    records, _ = imported
    (spaniard,) = {resource["id"] for _, resource in received(SETS[2]) if resource["resourceType"] == "Patient"}
    ((key, family, given),) = records.rows(
        "SELECT p.id, family, given FROM patient p JOIN source_resource s ON s.record_id = p.id"
        " WHERE s.resource_type = 'Patient' AND s.source_id = %s",
        spaniard,
    )
    assert (family, given) == ("Vargas Alonso", "Carlos")
    wanted = Counter(kind for kind, _ in {(r["resourceType"], r["id"]) for _, r in received(SETS[2])})
    ours = dict(
        records.rows("SELECT resource_type, count(*) FROM source_resource WHERE patient_id = %s GROUP BY 1", key)
    )
    assert ours == {kind: n for kind, n in wanted.items() if kind not in NOBODYS} | {"Composition": 4}
    titles = records.rows("SELECT title FROM document_reference WHERE patient_id = %s ORDER BY 1", key)
    assert [t for (t,) in titles] == [
        "Discharge Report",
        "Laboratory Result Report",
        "Patient Summary",
        "ePrescription",
    ]
    summary = "SELECT content FROM document_reference WHERE patient_id = %s AND title = 'Patient Summary'"
    assert "No known allergies and intolerances." in records.one(summary, key)


@needs_shared_data
def test_references_lead_where_they_point(imported: tuple[Records, Said]) -> None:
    records, _ = imported
    source = {(r["resourceType"], r["id"]): r for _, r in received(*SETS)}
    linked = records.rows(
        "SELECT s.source_id, o.source_id, d.source_id FROM encounter e"
        " JOIN source_resource s ON s.resource_type = 'Encounter' AND s.record_id = e.id"
        " LEFT JOIN source_resource o ON o.resource_type = 'Organization' AND o.record_id = e.service_provider_id"
        " LEFT JOIN source_resource d ON d.resource_type = 'Practitioner' AND d.record_id = e.practitioner_id"
    )
    assert len(linked) == sum(kind == "Encounter" for kind, _ in source)
    for name, organization, practitioner in linked:
        resource = source["Encounter", name]
        assert resource["serviceProvider"]["reference"] == f"urn:uuid:{organization}"
        people = [part["individual"]["reference"] for part in resource.get("participant", []) if "individual" in part]
        assert (people[0] if people else "urn:uuid:None") == f"urn:uuid:{practitioner}"
    lost = "SELECT count(*) FROM {} r JOIN source_resource s ON s.record_id = r.id AND s.resource_type = %s"
    lost += " WHERE s.content ? 'encounter' AND r.encounter_id IS NULL"
    for kind in ("Condition", "Observation", "Procedure", "Immunization", "DiagnosticReport", "MedicationRequest"):
        assert records.one(lost.format(TABLES[kind]), kind) == 0


@needs_shared_data
def test_elements_without_a_column_are_reported(imported: tuple[Records, Said]) -> None:
    _, said = imported
    for line in ("Patient.extension(us-core-race) 23", "DiagnosticReport.result 215", "Encounter.location 183"):
        assert f"  {line}\n" in said.out


@needs_shared_data
def test_a_second_import_changes_nothing(records: Records) -> None:
    first = records.take_in(*SETS)
    before = records.everything()
    trail_lines = records.one("SELECT count(*) FROM audit_outbox")
    second = records.take_in(*SETS)
    assert (first.status, second.status) == (0, 0)
    assert records.everything() == before
    assert records.one("SELECT count(*) FROM audit_outbox") == trail_lines
    total = next(line for line in second.out.splitlines() if line.startswith("total"))
    assert total.split() == ["total", "0", "0", "7,013", "0", "0"]


@needs_shared_data
def test_the_order_of_the_files_does_not_matter(records: Records) -> None:
    """The richer form of an organization wins, whether it comes first or last; patients may precede practitioners."""
    files = sorted((SHARED / "synthea" / "r4-bundles").glob("*.json"))
    hospital, practitioners = (next(f for f in files if f.name.startswith(n)) for n in ("hospital", "practitioner"))
    for file in [f for f in files if f not in (hospital, practitioners)] + [practitioners, hospital]:
        assert records.take_in(file).status == 0
    one_by_one = records.everything()
    again = records.take_in(*SETS[:1])
    assert again.status == 0
    assert records.everything() == one_by_one


@needs_shared_data
def test_a_killed_import_is_taken_up_where_it_was(
    records: Records, fresh_database: Callable[..., str], migrated: str
) -> None:
    process = subprocess.Popen(
        records.command(*SETS), cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while records.one("SELECT count(*) FROM source_resource") < 1000:
            assert process.poll() is None, "the import ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    got_so_far = records.one("SELECT count(*) FROM source_resource")
    assert 1000 <= got_so_far < 6000

    said = records.take_in(*SETS)
    assert said.status == 0
    total = next(line for line in said.out.splitlines() if line.startswith("total")).replace(",", "").split()
    assert int(total[3]) >= got_so_far
    after_kill = records.everything()

    guard.engine().dispose()
    url = fresh_database(make_url(migrated).database)
    guard.connect(url)
    undisturbed = Records(url, records.trail_url, records.spool)
    assert undisturbed.take_in(*SETS).status == 0
    assert undisturbed.everything() == after_kill


@needs_shared_data
def test_the_official_examples_are_taken_or_refused_by_name(records: Records) -> None:
    """They refer to patients who are not among them; whoever is nobody's is taken."""
    folder = SHARED / "fhir-r4" / "official-examples"
    said = records.take_in(folder)
    assert said.status == 1
    assert all(": refused: " in line for line in said.lines)
    taken = records.one("SELECT count(*) FROM source_resource")
    assert taken + len(said.lines) == len(list(folder.glob("*.json")))
    reasons = Counter(line.rpartition("refused: ")[2] for line in said.lines)
    assert set(reasons) <= {
        "subject refers to no patient that is known",
        "patient refers to no patient that is known",
        "beneficiary refers to no patient that is known",
        "participant refers to no patient that is known",
        "encounter refers to no encounter that is known",
    }


# ---- references --------------------------------------------------------------------------------------------------


def test_entries_may_refer_to_later_ones_in_every_way(records: Records, tmp_path: Path) -> None:
    token = {"identifier": [{"system": "urn:s", "value": "7"}]}
    text = bundle(
        {
            "fullUrl": "urn:uuid:00000000-0000-0000-0000-000000000001",
            "resource": observation(
                "o1",
                "urn:uuid:00000000-0000-0000-0000-000000000003",
                encounter={"reference": "urn:uuid:00000000-0000-0000-0000-000000000002"},
            ),
        },
        {
            "fullUrl": "urn:uuid:00000000-0000-0000-0000-000000000002",
            "resource": encounter(
                "e1",
                "Patient?identifier=urn:s|7",
                participant=[{"individual": {"reference": "PractitionerRole/r1"}}],
                serviceProvider={"reference": "Organization?identifier=urn:s|7"},
            ),
        },
        {"fullUrl": "urn:uuid:00000000-0000-0000-0000-000000000003", "resource": patient("p1", **token)},
        {"resourceType": "PractitionerRole", "id": "r1", "practitioner": {"reference": "https://a.b/Practitioner/d1"}},
        {"resourceType": "Practitioner", "id": "d1", "name": [{"family": "Panza"}]},
        {"resourceType": "Organization", "id": "g1", "name": "G", "partOf": {"reference": "Organization/g2"}, **token},
        {"resourceType": "Organization", "id": "g2", "name": "H"},
        {
            "resourceType": "MedicationRequest",
            "id": "m1",
            "status": "active",
            "intent": "order",
            "subject": {"identifier": {"system": "urn:s", "value": "7"}},
            "medicationReference": {"reference": "Medication/x"},
            "requester": {"reference": "Practitioner/d1"},
        },
        {"resourceType": "Medication", "id": "x", "code": {"coding": [{"code": "1", "display": "Balm of Fierabras"}]}},
        {
            "resourceType": "DocumentReference",
            "id": "n1",
            "status": "current",
            "subject": {"reference": "Patient/p1"},
            "author": [{"reference": "Practitioner/d1"}],
            "content": [{"attachment": {"contentType": "text/plain", "data": "aGk="}}],
        },
    )
    said = records.take_in(written(tmp_path, "b.json", text))
    assert (said.status, said.lines) == (0, [])
    assert records.rows(
        "SELECT p.given, d.family, g.name, h.name FROM observation o JOIN encounter e ON e.id = o.encounter_id"
        " JOIN patient p ON p.id = e.patient_id JOIN practitioner d ON d.id = e.practitioner_id"
        " JOIN organization g ON g.id = e.service_provider_id JOIN organization h ON h.id = g.part_of_id"
    ) == [("p1", "Panza", "G", "H")]
    assert records.rows(
        "SELECT m.code_display, d.family FROM medication_request m JOIN practitioner d ON d.id = requester_id"
    ) == [("Balm of Fierabras", "Panza")]
    assert records.rows("SELECT author, content FROM document_reference") == [("Panza", "hi")]


def test_a_resource_without_an_id_has_that_of_its_full_url(records: Records, tmp_path: Path) -> None:
    somebody = patient("x")
    del somebody["id"]
    entry = {"fullUrl": "urn:uuid:00000000-0000-0000-0000-000000000009", "resource": somebody}
    path = written(tmp_path, "b.json", bundle(entry, {"resourceType": "Basic", "code": {}}))
    assert [records.take_in(path).status, records.take_in(path).status] == [0, 0]
    ids = dict(records.rows("SELECT resource_type, source_id FROM source_resource"))
    assert ids["Patient"] == "00000000-0000-0000-0000-000000000009"
    assert len(ids["Basic"]) == 64


def test_what_refers_to_nobody_is_refused_and_only_that(records: Records, tmp_path: Path) -> None:
    text = ndjson(
        observation("lost", "Patient/nobody"),
        {"resourceType": "Coverage", "id": "lost", "beneficiary": {"reference": "Patient/nobody"}},
        patient("p1"),
        patient("p2"),
        encounter("e2", "Patient/p2", participant=[{"individual": {"reference": "Practitioner/nobody"}}]),
        observation("mixed", "Patient/p1", encounter={"reference": "Encounter/e2"}),
        observation("gone", "Patient/p1", encounter={"reference": "Encounter/gone"}),
        observation("fine", "Patient/p2", encounter={"reference": "Encounter/e2"}),
        observation("herd", "Group/1"),
    )
    said = records.take_in(written(tmp_path, "a.ndjson", text))
    assert said.status == 1
    assert sorted(said.lines) == [
        "a.ndjson: line 1: Observation/lost: refused: subject refers to no patient that is known",
        "a.ndjson: line 2: Coverage/lost: refused: beneficiary refers to no patient that is known",
        "a.ndjson: line 6: Observation/mixed: refused: encounter is one of another patient",
        "a.ndjson: line 7: Observation/gone: refused: encounter refers to no encounter that is known",
    ]
    kept = records.rows("SELECT source_id, record_id IS NULL, patient_id IS NULL FROM source_resource ORDER BY 1")
    assert kept == [
        ("e2", False, False),
        ("fine", False, False),
        ("herd", True, True),
        ("p1", False, False),
        ("p2", False, False),
    ]
    assert "  Encounter.participant 1\n" in said.out

    said = records.take_in(written(tmp_path, "b.ndjson", ndjson(patient("nobody"))), tmp_path / "a.ndjson")
    assert sorted(line.split(": ")[2] for line in said.lines) == ["Observation/gone", "Observation/mixed"]


# ---- again, and changed ------------------------------------------------------------------------------------------


def test_a_changed_resource_changes_its_row(records: Records, tmp_path: Path) -> None:
    first = patient("p1", birthDate="1970", identifier=[{"system": "s", "value": "1"}, {"system": "s", "value": "2"}])
    second = patient(
        "p1", birthDate="1970-05", identifier=[{"system": "s", "value": "2"}, {"system": "t", "value": "3"}]
    )
    assert records.take_in(written(tmp_path, "1.json", json.dumps(first))).status == 0
    number = records.one("SELECT mrn FROM patient")
    said = records.take_in(written(tmp_path, "2.json", json.dumps(second)))
    assert said.status == 0
    assert records.rows("SELECT mrn, birth_precision, version FROM patient") == [(number, "month", 2)]
    assert records.rows("SELECT system, value, use FROM patient_identifier ORDER BY 2") == [
        ("s", "1", "old"),
        ("s", "2", "secondary"),
        ("t", "3", "secondary"),
    ]
    assert records.one("SELECT content->>'birthDate' FROM source_resource") == "1970-05"
    assert records.one("SELECT count(*) FROM event_outbox WHERE name = 'PatientRegistered'") == 2


def test_what_is_older_or_tells_less_is_no_change(records: Records, tmp_path: Path) -> None:
    new = patient("p1", gender="female", meta={"lastUpdated": "2024-01-02T00:00:00Z"})
    old = patient("p1", gender="male", meta={"lastUpdated": "2024-01-01T00:00:00Z"})
    rich = {"resourceType": "Organization", "id": "o1", "name": "O", "active": True, "alias": ["P"]}
    poor = {"resourceType": "Organization", "id": "o1", "name": "O"}
    assert records.take_in(written(tmp_path, "1.ndjson", ndjson(new, rich))).status == 0
    assert records.take_in(written(tmp_path, "2.ndjson", ndjson(old, poor))).status == 0
    assert records.one("SELECT gender FROM patient") == "female"
    assert records.one("SELECT content->'alias' FROM source_resource WHERE resource_type = 'Organization'") == ["P"]


def test_two_sources_may_use_the_same_ids(records: Records, tmp_path: Path) -> None:
    path = written(tmp_path, "p.json", json.dumps(patient("p1")))
    assert [records.take_in(path, source=name).status for name in ("one", "two")] == [0, 0]
    assert records.one("SELECT count(*) FROM patient") == 2


def test_a_number_of_another_patient_is_refused_by_name(records: Records, tmp_path: Path) -> None:
    token = {"identifier": [{"system": "urn:ssn", "value": "999-00-1234"}]}
    text = ndjson(patient("p1", **token), patient("p2", **token), observation("o2", "Patient/p2"), patient("p3"))
    said = records.take_in(written(tmp_path, "a.ndjson", text))
    assert said.status == 1
    assert sorted(said.lines) == [
        "a.ndjson: line 2: Patient/p2: refused: an identifier of the system urn:ssn belongs to another patient already",
        "a.ndjson: line 3: Observation/o2: refused: subject refers to no patient that is known",
    ]
    assert "999-00-1234" not in said.err + said.out
    assert records.one("SELECT count(*) FROM patient") == 2


# ---- files that are not well -------------------------------------------------------------------------------------


def test_what_stands_before_a_break_is_kept(records: Records, tmp_path: Path) -> None:
    whole = bundle(*(patient(f"p{n}") for n in range(1200)), kind="collection")
    path = written(tmp_path, "cut.json", whole[: whole.index('"p600"')])
    said = records.take_in(path)
    assert said.status == 1
    assert len(said.lines) == 1
    assert said.lines[0].startswith("cut.json: line 1, column ")
    assert said.lines[0].endswith(": the file ends too early")
    assert records.one("SELECT count(*) FROM patient") == 600
    path.write_text(whole)
    assert records.take_in(path).status == 0
    assert records.one("SELECT count(*) FROM patient") == 1200


def test_a_broken_line_and_what_the_database_refuses_cost_only_themselves(records: Records, tmp_path: Path) -> None:
    def measured(name: str, value: str) -> str:
        return json.dumps(observation(name, "Patient/p1", valueQuantity={"value": 0})).replace('": 0', f'": {value}')

    lines = [measured(f"o{n}", "1.50") for n in range(40)]
    lines[7] = '{"resourceType": "Observation", "id":'
    lines[21] = measured("huge", "1e999999")
    lines[33] = json.dumps(patient("nul", telecom=[{"value": "a\0b"}]))
    said = records.take_in(written(tmp_path, "a.ndjson", ndjson(patient("p1"), *lines)))
    assert said.status == 1
    assert [line.split(": ")[1] for line in said.lines] == ["line 9", "line 35", "line 23"]
    assert records.one("SELECT count(*) FROM observation") == 37
    assert {text for (text,) in records.rows("SELECT value_quantity::text FROM observation")} == {"1.50"}
    kept = records.rows(
        "SELECT DISTINCT content->'valueQuantity' FROM source_resource WHERE resource_type = 'Observation'"
    )
    assert [str(quantity["value"]) for (quantity,) in kept] == ["1.50"]


def test_types_and_elements_nobody_knows_are_kept_and_counted(records: Records, tmp_path: Path) -> None:
    text = bundle(
        patient("p1", favouriteColour="green"), {"resourceType": "Tomorrow", "id": "t", "x": [1, {"y": None}]}
    )
    said = records.take_in(written(tmp_path, "a.json", text))
    assert said.status == 0
    assert "  Patient.favouriteColour 1\n" in said.out
    assert "green" not in said.out + said.err
    kept = dict(records.rows("SELECT resource_type, content FROM source_resource"))
    assert kept["Patient"]["favouriteColour"] == "green"
    assert kept["Tomorrow"]["x"] == [1, {"y": None}]


def test_a_single_resource_and_a_batch_and_folders_are_taken(records: Records, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    written(tmp_path / "deep", "one.json", json.dumps(patient("p1"), indent=2))
    written(tmp_path / "deep" / "er", "batch.json", bundle(patient("p2"), kind="batch"))
    written(tmp_path / "deep" / "er", "lines.jsonl", ndjson(patient("p3"), bundle(patient("p4"))))
    written(tmp_path / "deep", "notes.txt", "not for us")
    said = records.take_in(tmp_path / "deep")
    assert (said.status, said.lines) == (0, [])
    assert records.one("SELECT count(*) FROM patient") == 4


def test_nothing_of_a_record_is_said_on_the_console(records: Records, tmp_path: Path) -> None:
    text = ndjson(
        patient("p1", gender="quixotic"), patient("p2", birthDate="17.05.1970"), {**patient("p3"), "name": "Quixano"}
    )
    said = records.take_in(written(tmp_path, "a.ndjson", text))
    assert len(said.lines) == 3
    for secret in ("Quixano", "quixotic", "17.05.1970"):
        assert secret not in said.out + said.err


@pytest.mark.parametrize("missing", ["nowhere.json", "empty folder"])
def test_what_cannot_run_says_so(records: Records, tmp_path: Path, missing: str) -> None:
    (tmp_path / "empty folder").mkdir()
    said = records.take_in(tmp_path / missing)
    assert (said.status, len(said.lines)) == (2, 1)


def test_a_database_that_is_away_is_a_sentence(records: Records, tmp_path: Path) -> None:
    guard.engine().dispose()
    guard.connect("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    said = records.take_in(written(tmp_path, "p.json", json.dumps(patient("p1"))))
    assert said.status == 2
    assert "Run the same command again" in said.err


def test_two_imports_of_one_source_keep_apart(records: Records, tmp_path: Path) -> None:
    path = written(tmp_path, "p.json", json.dumps(patient("p1")))
    with alone(guard.engine(), "test") as mine:
        assert mine
        assert records.take_in(path, source="other").status == 0
        said = records.take_in(path)
    assert (said.status, said.err) == (2, "Another import of this source is at work.\n")
    assert records.take_in(path).status == 0


# ---- the gate and the trail --------------------------------------------------------------------------------------


def test_every_row_taken_over_is_in_the_trail(records: Records, tmp_path: Path) -> None:
    text = ndjson(
        patient("p1"),
        encounter("e1", "Patient/p1"),
        observation("o1", "Patient/p1"),
        {"resourceType": "Slot", "id": "s"},
    )
    assert records.take_in(written(tmp_path, "a.ndjson", text)).status == 0
    created: Counter[str] = Counter()
    for (waiting,) in records.rows("SELECT event FROM audit_outbox"):
        event = spoken(waiting)
        assert (event["agent"]["agent_name"], event["agent"]["channel"]) == ("import", "cli")
        for line in event["events"]:
            assert line["action"] == "C"
            for entity in line["entities"]:
                created[entity["type"]] += len(entity["ids"])
    assert created == {"Patient": 1, "Encounter": 1, "Observation": 1, "SourceResource": 4}


# ---- memory ------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_file(records: Records, tmp_path: Path) -> None:
    """Sixty megabytes, half of which have to wait for a patient who comes last, against a file of one resource."""
    note = "x" * 15_000
    big = tmp_path / "big.json"
    with big.open("w") as file:
        file.write('{"resourceType":"Bundle","type":"collection","entry":[')
        for n in range(4000):
            subject = "Patient/first" if n % 2 else "Patient/last"
            resource = {"resourceType": "Basic", "id": f"b{n}", "subject": {"reference": subject}, "note": note}
            file.write(json.dumps({"resource": resource}) + ",")
            if n == 0:
                file.write(json.dumps({"resource": patient("first")}) + ",")
        file.write(json.dumps({"resource": patient("last")}) + "]}")
    assert big.stat().st_size > 60_000_000
    small = written(tmp_path, "small.json", json.dumps(patient("one")))

    def peak(path: Path, source: str) -> int:
        done = subprocess.run(
            records.command(path, source=source), cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.splitlines()[-1])

    growth = peak(big, "big") - peak(small, "small")
    assert records.one("SELECT count(*) FROM source_resource WHERE source = 'big'") == 4002
    assert growth < 60_000, f"{growth} kB more than for one resource"
