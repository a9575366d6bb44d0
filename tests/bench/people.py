"""Made-up patients by the hundred thousand, written straight into the tables."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import accumulate, islice
from typing import Any
from uuid import UUID

import psycopg
from stdnum import luhn


def listed(names: str) -> list[str]:
    """Names between blanks."""
    return names.split()


CORE_SURNAMES = listed(
    "Smith García Johnson Rodríguez Martínez Nguyen Müller Brown Fernández López González Pérez Williams Jones "
    "Kim Sánchez Romero Ivanova Kowalski Rossi Silva Santos Ferreira Davis Miller Wilson Moore Taylor Anderson "
    "Thomas Jackson White Harris Martin Thompson Clark Lewis Walker Hall Young King Wright Hill Scott Green Adams "
    "Baker Nelson Mitchell Roberts Turner Phillips Campbell Parker Evans Edwards Collins Stewart Morris Murphy "
    "Cook Rogers Cooper Reed Bailey Bell Gómez Kelly Howard Ward Cox Díaz Richardson Wood Watson Brooks Bennett "
    "Gray James Reyes Cruz Hughes Price Myers Long Foster Sanders Ross Morales Powell Sullivan Russell Ortiz "
    "Jenkins Gutiérrez Perry Butler Barnes Fisher Schmidt Weber Bauer O'Brien Haddad Hussein Khan Ali Ahmed Chen "
    "Wang Li Zhang Tanaka Sato Suzuki Medina Vega Castro Vargas Rojas Navarro"
)
CORE_GIVEN = listed(
    "María José Antonio Carmen Ana Juan James Mary John Patricia Robert Jennifer Michael Linda David Elizabeth "
    "William Barbara Richard Susan Joseph Jessica Thomas Sarah Karen Lucía Sofía Martina Hugo Mateo Pablo Daniel "
    "Alejandro Laura Elena Isabel Francisco Manuel Javier Carlos Miguel Rafael Fatima Mohammed Omar Layla Aisha "
    "Yusuf Anna Peter Katarzyna Piotr Giulia Marco Chiara Luca João Inês Tiago Beatriz Emma Noah Olivia Liam "
    "Sophie Lukas Mia Leon Hannah Felix Ngoc Minh Linh Wei Mei Yuki Haruto Sakura Olga Dmitri Natalia Sergei Zoë "
    "Chloé Léa Jules Inés Álvaro Núria Jordi Begoña"
)
STARTS = listed("Al Bar Car Dom Es Fal Gar Her Iz Jar Kor Lam Mon Nor Ol Pal Quin Ros Sal Tor Ur Vil Wer Xim Yar Zam")
MIDDLES = listed("a ba de do en er gi la li ma na ne ra ri so ta ve")
ENDS = listed("berg cia dez escu ford hart ič land lez man moto ner o ov quez ra rt sen ska son ton tti va witz ya zki")
GIVEN_ENDS = listed("a an bel da el en ia iel ina io is ka la lia lo na nia o ra ro sa ta us vi")

COLUMNS = (
    *("fhir_id", "version", "created_at", "updated_at", "mrn", "family", "second_family", "given", "prefix"),
    *("name_in_use", "other_names", "birth_date", "birth_precision", "gender", "sex_for_clinical_use", "deceased"),
    *("active", "temporary", "telecom", "address", "contact", "languages", "registered_at_id", "last_visit_at"),
    "last_visit_place_id",
)
FIRST_NUMBER = 20_000_000
OBSERVED = 500
"""Observations of the patient whose chart is opened."""
CHARTS = 300
"""Patients with a chart."""


def words(core: list[str], ends: list[str], wanted: int, dice: random.Random) -> list[str]:
    """A list of names, the core ones first and made-up ones after them."""
    found = dict.fromkeys(core)
    while len(found) < wanted:
        middle = "".join(dice.choice(MIDDLES) for _ in range(dice.choice((0, 1, 1, 2))))
        found[dice.choice(STARTS) + middle + dice.choice(ends)] = None
    return list(found)[:wanted]


def drawn(names: list[str], count: int, dice: random.Random) -> list[str]:
    """Names as they occur: the common ones are common (Zipf)."""
    weights = list(accumulate(1 / (place + 8) for place in range(len(names))))
    return dice.choices(names, cum_weights=weights, k=count)


def patients(count: int, branches: list[tuple[int, int]], seed: int = 7) -> Iterator[dict[str, Any]]:
    """Patients as plain values, the same ones every time."""
    dice = random.Random(seed)
    surnames = words(CORE_SURNAMES, ENDS, 1000, dice)
    given = words(CORE_GIVEN, GIVEN_ENDS, 500, dice)
    families = drawn(surnames, count, dice)
    seconds = drawn(surnames, count, dice)
    firsts = drawn(given, count, dice)
    middles = drawn(given, count, dice)
    oldest = date(1930, 1, 1)
    for i in range(count):
        number = str(FIRST_NUMBER + i)
        branch, place = branches[i % len(branches)]
        gender = ("female", "male")[dice.random() < 0.49]
        yield {
            "mrn": f"W{number}{luhn.calc_check_digit(number)}",
            "family": families[i],
            "second_family": seconds[i] if dice.random() < 0.2 else "",
            "given": f"{firsts[i]} {middles[i]}" if dice.random() < 0.3 else firsts[i],
            "birth_date": oldest + timedelta(days=dice.randrange(34_500)),
            "gender": gender,
            "phone": f"+346{dice.randrange(10**8):08d}",
            "fhir_id": UUID(int=dice.getrandbits(128), version=4),
            "branch": branch,
            "place": place if dice.random() < 0.6 else None,
            "visit": f"2026-0{dice.randrange(1, 10)}-1{dice.randrange(10)} 10:30+00",
        }


def fill(database: psycopg.Connection[Any], count: int, branches: list[tuple[int, int]]) -> None:
    """Write `count` patients, with their indexes built afterwards, and a few hundred charts."""
    later = database.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'patient' AND indexdef LIKE '%gin%'"
    ).fetchall()
    for name, _ in later:
        database.execute(f'DROP INDEX "{name}"')
    database.execute("ALTER TABLE patient DISABLE TRIGGER patient_name_tokens")
    moment = "2026-01-01 08:00:00+00"
    with database.cursor().copy(f"COPY patient ({', '.join(COLUMNS)}) FROM STDIN") as copy:
        lines: list[str] = []
        for one in patients(count, branches):
            telecom = f'[{{"system": "phone", "value": "{one["phone"]}", "use": "mobile"}}]'
            address = '[{"line": ["Calle Mayor 1"], "city": "Sevilla", "postalCode": "41001", "country": "ES"}]'
            lines.append(
                "\t".join(
                    (
                        *(str(one["fhir_id"]), "1", moment, moment, one["mrn"], one["family"], one["second_family"]),
                        *(one["given"], "", "", "[]", str(one["birth_date"]), "day", one["gender"]),
                        *(f"{one['gender']}-typical", "f", "t", "f", telecom, address, "[]", "{es}"),
                        str(one["branch"]),
                        *((one["visit"], str(one["place"])) if one["place"] else ("\\N", "\\N")),
                    )
                )
            )
            if len(lines) == 2000:
                copy.write("\n".join(lines) + "\n")
                lines.clear()
        if lines:
            copy.write("\n".join(lines) + "\n")
    database.execute("ALTER TABLE patient ENABLE TRIGGER patient_name_tokens")
    database.execute(
        """
        INSERT INTO name_token (token)
        SELECT DISTINCT t FROM patient, regexp_split_to_table(search_name, '[^[:alnum:]]+') AS t
        WHERE length(t) > 2 AND t !~ '[0-9]' ON CONFLICT DO NOTHING
        """
    )
    for _, definition in later:
        database.execute(definition)
    charts(database)
    database.execute("ANALYZE")
    database.commit()


def charts(database: psycopg.Connection[Any]) -> None:
    """Visits, conditions, medicines and measurements of the first patients; the very first has OBSERVED of these."""
    said = {"charts": CHARTS, "many": OBSERVED}
    common = "gen_random_uuid(), 1, now(), now()"
    columns = "fhir_id, version, created_at, updated_at"
    some = "(SELECT id, row_number() OVER (ORDER BY id) AS nth FROM patient ORDER BY id LIMIT %(charts)s) p"
    database.execute(
        f"""
        INSERT INTO encounter ({columns}, patient_id, status, class_code, type_display, reason, started_at, ended_at)
        SELECT {common}, p.id, 'finished', 'AMB', 'Consultation', 'Check-up',
          now() - n * interval '9 days', now() - n * interval '9 days' + interval '20 minutes'
        FROM {some}, generate_series(1, CASE nth WHEN 1 THEN 40 ELSE 4 END) n
        """,
        said,
    )
    database.execute(
        f"""
        INSERT INTO observation ({columns}, patient_id, status, category, code_system, code, code_display, effective_at,
          value_quantity, value_unit, interpretation, reference_range, component)
        SELECT {common}, p.id, 'final', CASE WHEN n %% 25 < 6 THEN 'vital-signs' ELSE 'laboratory' END,
          'http://loinc.org', (1000 + n %% 25) || '-4', 'Measurement ' || n %% 25, now() - n * interval '7 hours',
          round((40 + 60 * random())::numeric, 1), 'mmol/L', CASE WHEN n %% 9 = 0 THEN 'H' END,
          '[{{"low": {{"value": 45}}, "high": {{"value": 95}}}}]', '[]'
        FROM {some}, generate_series(1, CASE nth WHEN 1 THEN %(many)s ELSE 12 END) n
        """,
        said,
    )
    database.execute(
        f"""
        INSERT INTO condition ({columns}, patient_id, clinical_status, verification_status, category, code_system, code,
          code_display, onset_at, recorded_at)
        SELECT {common}, p.id, 'active', 'confirmed', 'problem-list-item', 'http://snomed.info/sct', 3800 + n || '003',
          'Condition ' || n, now() - n * interval '1 year', now() - n * interval '1 year'
        FROM {some}, generate_series(1, CASE nth WHEN 1 THEN 8 ELSE 2 END) n
        """,
        said,
    )
    database.execute(
        f"""
        INSERT INTO allergy_intolerance ({columns}, patient_id, clinical_status, verification_status, type, category,
          criticality, reaction, code_system, code, code_display, recorded_at)
        SELECT {common}, p.id, 'active', 'confirmed', 'allergy', '{{medication}}', 'high',
          '[{{"manifestation": [{{"text": "Rash"}}]}}]', 'http://snomed.info/sct', '91936005', 'Penicillin', now()
        FROM {some}, generate_series(1, CASE nth WHEN 1 THEN 3 ELSE (nth %% 2)::int END) n
        """,
        said,
    )
    database.execute(
        f"""
        INSERT INTO medication_request ({columns}, patient_id, status, intent, authored_at, dosage_instruction, reason,
          code_system, code, code_display)
        SELECT {common}, p.id, 'active', 'order', now() - n * interval '40 days',
          '[{{"text": "1 tablet in the morning"}}]', '', 'http://www.nlm.nih.gov/research/umls/rxnorm', '3140' || n,
          'Medicine ' || n || ' 10 MG'
        FROM {some}, generate_series(1, CASE nth WHEN 1 THEN 9 ELSE 3 END) n
        """,
        said,
    )


def typo(word: str, dice: random.Random) -> str:
    """The word as a hurried finger writes it."""
    at = dice.randrange(1, len(word))
    return word[:at] + dice.choice("aeinrst") + word[at + 1 :]


def questions(count: int, of: int, seed: int) -> list[str]:
    """What a desk types into the search box, about people who are there."""
    dice = random.Random(seed)
    known = list(islice(patients(of, [(1, 1)]), 0, None, max(of // 5000, 1)))
    asked = []
    for _ in range(count):
        one = dice.choice(known)
        first = one["given"].split()[0]
        family = one["family"]
        kind = dice.choices(
            ("full", "partial", "surname", "mrn", "phone", "birth date", "typo"), (30, 20, 15, 10, 10, 5, 10)
        )[0]
        asked.append(
            {
                "full": f"{first} {family}",
                "partial": f"{family[:4]} {first[:3]}",
                "surname": family,
                "mrn": one["mrn"],
                "phone": one["phone"],
                "birth date": one["birth_date"].strftime("%d/%m/%Y"),
                "typo": f"{first} {typo(family, dice)}",
            }[kind]
        )
    return asked


def surnames(count: int) -> list[str]:
    """The commonest family names: each gives more than a page of people."""
    return [name for name in CORE_SURNAMES if len(name) > 3][:count]
