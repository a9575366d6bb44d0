"""What FHIR resources amount to in our tables, element by element."""

import base64
import io
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from app.errors import Invalid
from jobs import fhir_files
from jobs.fhir_files import Broken, Received, received
from jobs.fhir_records import NotForTheChart, Reading, patients_of, plain, points_at, read, targets_of

ANA = {"reference": "Patient/ana"}


def reading(kind: str, **elements: Any) -> Reading:
    """A resource of a kind, read."""
    return read({"resourceType": kind, "id": "1", **elements}, UTC)


def patient(**elements: Any) -> dict[str, Any]:
    """The columns of a patient with a name and these elements."""
    return reading("Patient", **{"name": [{"family": "Vargas"}], **elements}).values


def observation(**elements: Any) -> dict[str, Any]:
    """The columns of an observation with these elements."""
    return reading("Observation", **{"status": "final", "code": {"text": "x"}, "subject": ANA, **elements}).values


# ---- people ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "family", "second_family", "given", "others"),
    [
        ([{"family": "Vargas Alonso", "given": ["Carlos", "José"]}], "Vargas Alonso", "", "Carlos José", 0),
        ([{"family": "Roe"}, {"use": "official", "family": "Doe"}], "Doe", "", "", 1),
        ([{"use": "maiden", "family": "Roe"}, {"family": "Doe"}], "Doe", "", "", 1),
        ([{"use": "old", "family": "Roe"}], "Roe", "", "", 0),
        ([{"text": "Whole Name"}], "Whole Name", "", "", 0),
        ([{"family": "Anderson154", "given": ["Antony83"]}], "Anderson154", "", "Antony83", 0),
        ([{"family": "Nun\u0303ez"}], "Nu\u00f1ez", "", "", 0),
        (
            [
                {
                    "family": "Vargas Alonso",
                    "_family": {
                        "extension": [
                            {
                                "url": "http://hl7.org/fhir/StructureDefinition/humanname-fathers-family",
                                "valueString": "Vargas",
                            },
                            {
                                "url": "http://hl7.org/fhir/StructureDefinition/humanname-mothers-family",
                                "valueString": "Alonso",
                            },
                        ]
                    },
                }
            ],
            "Vargas",
            "Alonso",
            "",
            0,
        ),
    ],
)
def test_a_name_is_filed_under_the_official_one(
    names: list[dict[str, Any]], family: str, second_family: str, given: str, others: int
) -> None:
    values = patient(name=names)
    assert (values["family"], values["second_family"], values["given"]) == (family, second_family, given)
    assert len(values["other_names"]) == others


def test_somebody_without_a_name_is_temporary() -> None:
    values = patient(name=[])
    assert values["family"]
    assert values["temporary"] is True


@pytest.mark.parametrize(
    ("said", "first", "precision"),
    [
        ("1970", date(1970, 1, 1), "year"),
        ("1970-05", date(1970, 5, 1), "month"),
        ("1970-05-17", date(1970, 5, 17), "day"),
        ("2000-02-29", date(2000, 2, 29), "day"),
    ],
)
def test_a_birth_date_may_be_known_in_part(said: str, first: date, precision: str) -> None:
    values = patient(birthDate=said)
    assert (values["birth_date"], values["birth_precision"]) == (first, precision)


@pytest.mark.parametrize("said", ["1900-02-29", "70", "1970-13", "17 May 1970", "1850-01-01", "1970-05-17T10:00:00Z"])
def test_what_is_no_birth_date_is_refused(said: str) -> None:
    with pytest.raises(Invalid, match="birthDate"):
        patient(birthDate=said)


def test_death_is_a_moment_or_a_fact() -> None:
    assert patient()["deceased"] is False
    assert patient(deceasedBoolean=True)["deceased"] is True
    values = patient(deceasedDateTime="2011-01-19T03:40:42.908526+00:00")
    assert values["deceased"] is True
    assert values["deceased_at"] == datetime(2011, 1, 19, 3, 40, 42, 908526, UTC)


@pytest.mark.parametrize(
    ("extensions", "sex"),
    [
        ([], "unknown"),
        (
            [{"url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex", "valueCode": "F"}],
            "female-typical",
        ),
        ([{"url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-birthsex", "valueCode": "UNK"}], "unknown"),
        (
            [
                {
                    "url": "http://hl7.org/fhir/StructureDefinition/patient-sexParameterForClinicalUse",
                    "extension": [{"url": "value", "valueCodeableConcept": {"coding": [{"code": "specified"}]}}],
                }
            ],
            "specified",
        ),
    ],
)
def test_sex_for_clinical_use_is_never_guessed_from_gender(extensions: list[dict[str, Any]], sex: str) -> None:
    assert patient(gender="male", extension=extensions)["sex_for_clinical_use"] == sex


@pytest.mark.parametrize(
    ("country", "said", "stored"),
    [
        ("US", "617-555-0123", "+16175550123"),
        ("ES", "912 34 56 78", "+34912345678"),
        ("", "(617) 555-0123", "+16175550123"),
        ("US", "+34 301 459 826", "+34301459826"),
        ("US", "call my sister", "call my sister"),
        ("US", "12", "12"),
    ],
)
def test_phone_numbers_are_e164_where_they_can_be(country: str, said: str, stored: str) -> None:
    values = patient(telecom=[{"system": "phone", "value": said}], address=[{"country": country}])
    assert values["telecom"] == [{"system": "phone", "value": stored}]


def test_the_preferred_language_comes_first() -> None:
    said = [
        {"language": {"coding": [{"code": "en"}]}},
        {"language": {"coding": [{"code": "es"}]}, "preferred": True},
    ]
    assert patient(communication=said)["languages"] == ["es", "en"]


def test_a_number_is_taken_once_and_an_ended_one_is_old() -> None:
    tokens = [
        {"system": "s", "value": "1", "use": "usual", "type": {"coding": [{"code": "MR"}]}},
        {"system": "s", "value": "1"},
        {"system": "s", "value": "2", "period": {"end": "1999"}},
        {"system": "s"},
        {"value": "3"},
    ]
    found = reading("Patient", name=[{"family": "A"}], identifier=tokens).identifiers
    assert [(n["system"], n["value"], n["use"], n["type_code"]) for n in found] == [
        ("s", "1", "usual", "MR"),
        ("s", "2", "old", None),
        ("", "3", "secondary", None),
    ]


# ---- the chart ---------------------------------------------------------------------------------------------------

EMPTY = {"value_quantity": None, "value_unit": None, "value_text": None, "value_code": None}


@pytest.mark.parametrize(
    ("element", "value", "expected"),
    [
        (
            "valueQuantity",
            {"value": Decimal("1.20"), "unit": "mg", "code": "mg/dL"},
            {"value_quantity": Decimal("1.20"), "value_unit": "mg/dL"},
        ),
        ("valueQuantity", {"value": 0, "unit": "score"}, {"value_quantity": Decimal(0), "value_unit": "score"}),
        ("valueQuantity", {"value": 5, "comparator": "<", "unit": "mg/L"}, {"value_text": "<5 mg/L"}),
        ("valueQuantity", {"unit": "mg"}, {"value_text": "mg"}),
        ("valueInteger", 0, {"value_quantity": Decimal(0)}),
        ("valueString", "clear", {"value_text": "clear"}),
        ("valueBoolean", False, {"value_text": "false"}),
        ("valueDateTime", "2020-05", {"value_text": "2020-05"}),
        (
            "valueCodeableConcept",
            {"coding": [{"code": "8517006", "display": "Former smoker"}]},
            {"value_text": "Former smoker", "value_code": "8517006"},
        ),
        ("valueRatio", {"numerator": {"value": 1}, "denominator": {"value": 128}}, {"value_text": "1 : 128"}),
        (
            "valueRange",
            {"low": {"value": 1, "unit": "g"}, "high": {"value": 2, "unit": "g"}},
            {"value_text": "1 g – 2 g"},
        ),
    ],
)
def test_a_value_is_a_number_or_words_never_both(element: str, value: Any, expected: dict[str, Any]) -> None:
    values = observation(**{element: value})
    assert {name: values[name] for name in EMPTY} == EMPTY | expected


def test_a_value_no_column_holds_is_counted() -> None:
    found = reading("Observation", status="final", code={"text": "x"}, subject=ANA, valueSampledData={"period": 1})
    assert found.left == ["valueSampledData"]


@pytest.mark.parametrize(
    ("element", "value", "moment"),
    [
        ("effectiveDateTime", "2019-11-26T03:32:37+02:00", datetime(2019, 11, 26, 1, 32, 37, tzinfo=UTC)),
        ("effectiveDateTime", "2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC)),
        ("effectiveDateTime", "2012-05", datetime(2012, 5, 1, tzinfo=UTC)),
        ("effectivePeriod", {"start": "2012"}, datetime(2012, 1, 1, tzinfo=UTC)),
        ("effectiveInstant", "2020-01-01T00:00:00.5Z", datetime(2020, 1, 1, microsecond=500_000, tzinfo=UTC)),
        ("effectiveTiming", {"event": ["2020-01-01"]}, datetime(2020, 1, 1, tzinfo=UTC)),
    ],
)
def test_when_it_was(element: str, value: Any, moment: datetime) -> None:
    assert observation(**{element: value})["effective_at"] == moment


def test_a_date_alone_begins_at_midnight_where_it_was_written() -> None:
    resource = {"resourceType": "Condition", "code": {"text": "x"}, "subject": ANA, "recordedDate": "2020-07-01"}
    found = read(resource, ZoneInfo("America/New_York"))
    assert found.values["recorded_at"].isoformat() == "2020-07-01T00:00:00-04:00"


@pytest.mark.parametrize("said", ["2020-01-01T10:00:00", "yesterday", "2020-02-30", "2020-01-01 10:00:00Z", "20200101"])
def test_what_is_no_moment_is_refused(said: str) -> None:
    with pytest.raises(Invalid, match="effectiveDateTime"):
        observation(effectiveDateTime=said)


@pytest.mark.parametrize(
    ("clinical", "verification", "rule"),
    [
        ("active", "entered-in-error", "ait-2"),
        (None, "confirmed", "ait-1"),
        (None, None, "ait-1"),
        ("gone", None, "codes"),
    ],
)
def test_an_allergy_keeps_to_its_invariants(clinical: str | None, verification: str | None, rule: str) -> None:
    said = {
        name: {"coding": [{"code": code}]}
        for name, code in (("clinicalStatus", clinical), ("verificationStatus", verification))
        if code
    }
    with pytest.raises(Invalid, match=rule):
        reading("AllergyIntolerance", code={"text": "nuts"}, patient=ANA, **said)


def test_a_condition_in_error_has_no_clinical_status() -> None:
    said = {"verificationStatus": {"coding": [{"code": "entered-in-error"}]}, "code": {"text": "x"}, "subject": ANA}
    assert reading("Condition", **said).values["clinical_status"] is None
    with pytest.raises(Invalid, match="con-5"):
        reading("Condition", clinicalStatus={"coding": [{"code": "active"}]}, **said)


def test_a_medicine_is_found_in_the_resource_itself() -> None:
    order = {"status": "active", "intent": "order", "subject": ANA, "medicationReference": {"reference": "#m"}}
    told = [{"resourceType": "Medication", "id": "m", "code": {"coding": [{"code": "1", "display": "Aspirin"}]}}]
    assert reading("MedicationRequest", contained=told, **order).values["code_display"] == "Aspirin"
    made = [{"resourceType": "Medication", "id": "m", "ingredient": [{"itemCodeableConcept": {"text": "Dopamine"}}]}]
    assert reading("MedicationRequest", contained=made, **order).values["code_display"] == "Dopamine"
    with pytest.raises(Invalid, match="medication"):
        reading("MedicationRequest", **order)


def test_a_note_is_read_in_its_own_character_set() -> None:
    text = base64.b64encode("Señora".encode("latin-1")).decode()
    note = {"status": "current", "subject": ANA, "type": {"text": "Note"}}
    content = [{"attachment": {"contentType": "text/plain; charset=iso-8859-1", "data": text}}]
    assert reading("DocumentReference", content=content, **note).values["content"] == "Señora"
    picture = [{"attachment": {"contentType": "image/png", "data": text, "title": "X-ray"}}]
    found = reading("DocumentReference", content=picture, **note)
    assert (found.values["content_type"], found.values["content"], found.values["title"]) == ("image/png", "", "X-ray")
    assert found.left == ["content"]


def test_a_composition_is_read_section_by_section() -> None:
    found = reading(
        "Composition",
        status="final",
        type={"coding": [{"code": "60591-5", "display": "Patient Summary"}]},
        title="Summary",
        subject=ANA,
        section=[
            {
                "title": "Allergies",
                "text": {"div": "<div><p>No known<br/>allergies &amp; such.</p><script>x</script></div>"},
            },
            {"title": "Problems", "entry": [{"reference": "urn:uuid:1"}, {"reference": "urn:uuid:2"}]},
            {"title": "Empty", "emptyReason": {"text": "Nobody asked"}},
        ],
    )
    assert found.values["status"] == "current"
    assert found.values["content"].split("\n\n") == [
        "# Allergies",
        "No known\nallergies & such.",
        "# Problems",
        "(2 entries in the record)",
        "# Empty",
        "Nobody asked",
    ]


def test_plain_words_of_a_table() -> None:
    assert plain("<table><tr><td>a</td><td> b\n c</td></tr><tr><td>d</td></tr></table>") == "a\tb c\nd"


@pytest.mark.parametrize(
    ("kind", "elements"),
    [
        ("Observation", {"status": "final", "code": {"text": "x"}, "subject": {"reference": "Group/1"}}),
        ("Observation", {"status": "final", "code": {"text": "x"}}),
        (
            "Observation",
            {"status": "final", "code": {"text": "x"}, "subject": ANA, "modifierExtension": [{"url": "u"}]},
        ),
        (
            "MedicationRequest",
            {"status": "active", "doNotPerform": True, "subject": ANA, "medicationCodeableConcept": {"text": "x"}},
        ),
    ],
)
def test_what_says_it_is_no_plain_row_becomes_none(kind: str, elements: dict[str, Any]) -> None:
    with pytest.raises(NotForTheChart):
        reading(kind, **elements)


def test_what_no_column_holds_is_named() -> None:
    extension = [{"url": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-race"}]
    found = reading("Patient", name=[{"family": "A"}], text={}, _birthDate={}, somethingNew=1, extension=extension)
    assert found.left == ["_birthDate", "extension(us-core-race)", "somethingNew", "text"]


@pytest.mark.parametrize(
    "elements",
    [
        {"name": "Vargas"},
        {"name": [1]},
        {"name": {"family": "x"}},
        {"name": [{"family": 1}]},
        {"name": [{"given": "x"}]},
        {"gender": ["male"]},
        {"gender": "x"},
        {"telecom": [{"value": 1}]},
        {"communication": [{"language": "es"}]},
        {"active": "yes"},
        {"multipleBirthInteger": 0},
        {"identifier": [{"value": 5}]},
        {"photo": [{"data": "!"}]},
        {"extension": {"url": "x"}},
    ],
)
def test_what_is_not_shaped_like_fhir_is_refused_without_its_value(elements: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as refusal:
        patient(**elements)
    assert "Vargas" not in str(refusal.value)


# ---- references --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "keys", "search", "elsewhere"),
    [
        ({"reference": "Patient/1"}, [("Patient", "1")], None, False),
        ({"reference": "Patient/1/_history/2"}, [("Patient", "1")], None, False),
        ({"reference": "https://example.org/fhir/Patient/1"}, [("Patient", "1")], None, False),
        ({"reference": "urn:uuid:1-2"}, [("Patient", "1-2"), ("Group", "1-2")], None, False),
        ({"reference": "urn:uuid:1-2", "type": "Group"}, [("Group", "1-2"), ("Patient", "1-2")], None, False),
        ({"reference": "Patient?identifier=urn:s|7"}, [], ("Patient", "urn:s", "7"), False),
        ({"reference": "Patient?identifier=7"}, [], ("Patient", "", "7"), False),
        ({"identifier": {"system": "urn:s", "value": "7"}}, [], ("Patient", "urn:s", "7"), False),
        ({"reference": "#x"}, [], None, False),
        ({"reference": "Device/1"}, [], None, True),
        ({"reference": "Device?identifier=7"}, [], None, True),
        ({"reference": "nonsense"}, [], None, True),
    ],
)
def test_what_a_reference_may_mean(
    said: dict[str, Any], keys: list[tuple[str, str]], search: tuple[str, str, str] | None, elsewhere: bool
) -> None:
    found = points_at(said, "subject", "Patient", "Group")
    assert found is not None
    assert (found.keys(), found.search(), found.elsewhere) == (keys, search, elsewhere)


def test_no_reference_is_none_and_a_strange_one_is_refused() -> None:
    assert points_at(None, "subject", "Patient") is None
    assert points_at({"display": "somebody"}, "subject", "Patient") is None
    for strange in ("Patient/1", {"reference": 1}):
        with pytest.raises(Invalid):
            points_at(strange, "subject", "Patient")


def test_whom_a_resource_without_a_table_is_about() -> None:
    assert [r.address for r in patients_of({"resourceType": "Coverage", "beneficiary": ANA})] == ["Patient/ana"]
    assert [r.address for r in patients_of({"resourceType": "Account", "subject": [ANA]})] == ["Patient/ana"]
    actors = [{"actor": ANA}, {"actor": {"reference": "Location/1"}}]
    assert [r.address for r in patients_of({"resourceType": "Appointment", "participant": actors})] == ["Patient/ana"]
    assert list(patients_of({"resourceType": "Slot", "schedule": {"reference": "Schedule/1"}})) == []
    assert [r.address for r in targets_of({"target": [{"reference": "Device/1"}, ANA]})] == ["Patient/ana"]


# ---- files -------------------------------------------------------------------------------------------------------


def parts(path: Path) -> tuple[list[Received], list[Broken]]:
    """All of a file, and what could not be read of it."""
    broken: list[Broken] = []
    return list(received(path, path.name, lambda _bytes: None, broken.append)), broken


def written(folder: Path, name: str, text: str | bytes) -> Path:
    """A file with this in it."""
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


BUNDLE = (
    '{"resourceType":"Bundle","type":"transaction","entry":[{"fullUrl":"urn:uuid:1","resource":{"resourceType":"Basic","n":1.20}},'
    '\n{"resource":{"resourceType":"Basic","n":2}}]}'
)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 100_000])
def test_a_bundle_is_read_entry_by_entry_however_the_blocks_fall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(fhir_files, "BLOCK", block)
    found, broken = parts(written(tmp_path, "b.json", BUNDLE))
    assert not broken
    assert [(r.place, r.full_url, r.resource["n"]) for r in found] == [
        ("entry 1", "urn:uuid:1", Decimal("1.20")),
        ("entry 2", "", 2),
    ]
    assert str(found[0].resource["n"]) == "1.20"


def test_keys_come_in_any_order_and_a_list_is_no_bundle(tmp_path: Path) -> None:
    found, _ = parts(written(tmp_path, "a.json", '{"entry":[{"resource":{"a":1}}],"id":"x","resourceType":"Bundle"}'))
    assert [r.resource for r in found] == [{"a": 1}, {"id": "x", "resourceType": "Bundle"}]
    text = '{"entry":[{"item":{"reference":"Patient/1"}}],"resourceType":"List"}'
    found, _ = parts(written(tmp_path, "l.json", text))
    assert [r.resource for r in found] == [json.loads(text)]


def test_a_bundle_in_a_bundle_is_unpacked(tmp_path: Path) -> None:
    inner = {"resourceType": "Bundle", "entry": [{"resource": {"a": 1}, "fullUrl": "u"}]}
    found, _ = parts(
        written(tmp_path, "n.json", json.dumps({"resourceType": "Bundle", "entry": [{"resource": inner}]}))
    )
    assert [(r.resource, r.full_url, r.place) for r in found] == [({"a": 1}, "u", "entry 1, entry 1")]


@pytest.mark.parametrize(
    ("text", "read_before", "place", "reason"),
    [
        (BUNDLE[:-30], 1, "line 2", "ends too early"),
        (BUNDLE[: BUNDLE.index("{", 130)], 1, "line 2, column 1", "ends too early"),
        (BUNDLE[: BUNDLE.index("1.20") + 2], 0, "line 1", "ends too early"),
        (BUNDLE.replace('"n":2', '"n":,'), 1, "line 2, column 41", "broken JSON"),
        (BUNDLE.replace(",\n", "\n"), 1, "line 2, column 1", "expected"),
        (BUNDLE.replace("1.20", "NaN"), 0, "line 1", "cannot be"),
        ("", 0, "", ""),
        (b'{"resourceType":"Patient","id":"\xf1"}', 0, "line 1", "UTF-8"),
        ("[" * 200_000, 0, "line 1", "cannot be"),
    ],
)
def test_a_broken_file_says_where_and_keeps_what_came_before(
    tmp_path: Path, text: str | bytes, read_before: int, place: str, reason: str
) -> None:
    found, broken = parts(written(tmp_path, "x.json", text))
    assert len(found) == read_before
    assert [(b.place.startswith(place), reason in b.reason) for b in broken] == [(True, True)] * bool(place)


def test_a_broken_line_costs_that_line(tmp_path: Path) -> None:
    text = '{"a":1}\n{"a":\n\n{"a":2}\r\n"x"\n{"a":3'
    found, broken = parts(written(tmp_path, "x.ndjson", text))
    assert [(r.place, r.resource) for r in found] == [("line 1", {"a": 1}), ("line 4", {"a": 2}), ("line 5", "x")]
    assert [b.place for b in broken] == ["line 2", "line 6"]


def test_one_resource_has_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fhir_files, "LARGEST", 1000)
    monkeypatch.setattr(fhir_files, "BLOCK", 100)
    found, broken = parts(written(tmp_path, "x.json", '{"resourceType":"Basic","a":"' + "x" * 50_000 + '"}'))
    assert not found
    assert "more than 1,000 letters" in broken[0].reason


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    found, broken = parts(written(tmp_path, "x.json", b"\xef\xbb\xbf" + b'{"a":1}'))
    assert ([r.resource for r in found], broken) == ([{"a": 1}], [])


def test_bytes_are_reported_as_they_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, "b.json", BUNDLE)
    counted = io.BytesIO()
    list(received(path, "b", lambda n: counted.write(b"." * n), lambda _broken: None))
    assert counted.tell() == path.stat().st_size
