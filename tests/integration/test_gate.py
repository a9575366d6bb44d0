"""The gate against somebody who means harm: every probe is refused, shows nothing, and changes nothing.

The list only grows.  It also guards upgrades of SQLAlchemy, since the gate reads statements close to its internals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from sqlalchemy import (
    bindparam,
    case,
    cast,
    column,
    delete,
    distinct,
    exists,
    extract,
    func,
    insert,
    inspect,
    lateral,
    literal,
    literal_column,
    select,
    table,
    text,
    tuple_,
    type_coerce,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by, array, distinct_on
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    Bundle,
    aliased,
    contains_eager,
    defaultload,
    joinedload,
    load_only,
    make_transient_to_detached,
    registry,
    selectinload,
    subqueryload,
    undefer,
    with_expression,
    with_loader_criteria,
)
from sqlalchemy.types import String, Text

from app import actor, guard, policy, statements
from app.errors import Forbidden, NotFound, NotSignedIn, Ungated
from app.services import clinical, patients
from models.audit import AuditEvent, AuditOutbox
from models.clinical import AllergyIntolerance, Condition, DocumentReference, Encounter, Observation
from models.imports import SourceResource
from models.lab import DiagnosticReport
from models.notes import ClinicalNote
from models.organization import Branch, Organization, Practitioner, Room
from models.patients import NameToken, Patient, PatientIdentifier, PatientLink
from tests import factories
from tests.conftest import spoken
from tests.factories import Hospital

Acting = Callable[[str], AbstractContextManager[Any]]
REFUSED = (Forbidden, Ungated)

WATCHED = (
    *("patient", "patient_identifier", "patient_link", "encounter", "observation", "condition", "clinical_note"),
    *("diagnostic_report", "document_reference", "source_resource", "organization", "branch", "practitioner", "room"),
    *("ab_user", "ab_role", "audit_outbox"),
)


def contents() -> dict[str, Any]:
    """A digest of every table, past the gate."""
    with guard.engine().connect() as connection:
        return {
            name: connection.scalar(
                text(f"SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY id), '')) FROM {name} t")
            )
            for name in WATCHED
        }


@pytest.fixture
def unchanged(database: Any) -> Iterator[None]:
    """After the test every table is as it was before."""
    before = contents()
    yield
    guard.session.rollback()
    assert contents() == before


# ---- statements no actor may make ----------------------------------------------------------------------------------

Probe = Callable[[Any, Hospital], Any]
STATEMENTS: dict[str, tuple[str, Probe]] = {}


def probe(username: str) -> Callable[[Probe], Probe]:
    """Adds a statement that this person must not get an answer to."""

    def add(function: Probe) -> Probe:
        assert function.__name__ not in STATEMENTS
        STATEMENTS[function.__name__] = (username, function)
        return function

    return add


# Columns instead of objects


@probe("doctor")
def a_column(s: Any, h: Hospital) -> Any:
    return s.execute(select(Patient.family)).all()


@probe("doctor")
def a_table(s: Any, h: Hospital) -> Any:
    return s.execute(select(Patient.__table__)).all()


@probe("doctor")
def a_bundle(s: Any, h: Hospital) -> Any:
    return s.execute(select(Bundle("b", Patient.family, Patient.given))).all()


@probe("privacy")
def with_entities(s: Any, h: Hospital) -> Any:
    return s.query(Patient).with_entities(Patient.telecom).all()


@probe("doctor")
def a_legacy_query_of_columns(s: Any, h: Hospital) -> Any:
    return s.query(Patient.family, Patient.given).all()


@probe("doctor")
def add_columns(s: Any, h: Hospital) -> Any:
    return s.execute(select(Patient).add_columns(Patient.search_phone)).all()


@probe("doctor")
def a_maximum(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.max(Patient.family)))


@probe("doctor")
def an_aggregate_of_names(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.string_agg(Patient.family, ",")))


@probe("doctor")
def an_ordered_aggregate(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.array_agg(aggregate_order_by(Patient.family, Patient.id))))


@probe("doctor")
def an_array_of_columns(s: Any, h: Hospital) -> Any:
    return s.execute(select(array([Patient.family, Patient.given]))).all()


@probe("doctor")
def a_tuple_of_columns(s: Any, h: Hospital) -> Any:
    return s.execute(select(tuple_(Patient.family, Patient.given))).all()


@probe("doctor")
def a_cast(s: Any, h: Hospital) -> Any:
    return s.execute(select(cast(Patient.birth_date, String))).all()


@probe("doctor")
def a_coerced_type(s: Any, h: Hospital) -> Any:
    return s.execute(select(type_coerce(Patient.family, Text))).all()


@probe("doctor")
def a_case(s: Any, h: Hospital) -> Any:
    return s.execute(select(case((Patient.family != "", Patient.family), else_="x"))).all()


@probe("doctor")
def distinct_values(s: Any, h: Hospital) -> Any:
    return s.execute(select(distinct(Patient.gender))).all()


@probe("doctor")
def a_window(s: Any, h: Hospital) -> Any:
    return s.execute(select(func.row_number().over(order_by=Patient.family))).all()


@probe("doctor")
def a_count_by_name(s: Any, h: Hospital) -> Any:
    return s.execute(select(Patient.family, func.count()).group_by(Patient.family)).all()


@probe("doctor")
def a_scalar_subquery_of_a_column(s: Any, h: Hospital) -> Any:
    return s.scalar(select(select(Patient.family).limit(1).scalar_subquery()))


@probe("doctor")
def a_scalar_subquery_in_a_harmless_select(s: Any, h: Hospital) -> Any:
    return s.execute(select(Organization, select(Patient.family).limit(1).scalar_subquery())).all()


@probe("doctor")
def a_column_dressed_as_a_count(s: Any, h: Hospital) -> Any:
    return s.scalar(select(select(func.count(), Patient.family).group_by(Patient.family).limit(1).subquery().c.family))


@probe("doctor")
def a_cte(s: Any, h: Hospital) -> Any:
    stolen = select(Patient.family, Patient.given).cte("stolen")
    return s.execute(select(stolen)).all()


@probe("doctor")
def a_recursive_cte(s: Any, h: Hospital) -> Any:
    seed = select(Patient.id, Patient.family).cte("walk", recursive=True)
    return s.execute(
        select(seed.union_all(select(Patient.id, Patient.family).where(Patient.id == seed.c.id + 1)))
    ).all()


@probe("doctor")
def a_subquery(s: Any, h: Hospital) -> Any:
    return s.execute(select(select(Patient.family).subquery())).all()


@probe("doctor")
def a_lateral(s: Any, h: Hospital) -> Any:
    return s.execute(select(Organization, lateral(select(Patient.family)).c.family)).all()


@probe("doctor")
def a_union_of_columns(s: Any, h: Hospital) -> Any:
    return s.execute(union(select(Patient.family), select(Patient.given))).all()


@probe("doctor")
def a_union_of_objects(s: Any, h: Hospital) -> Any:
    return s.execute(union_all(select(Patient), select(Patient))).all()


@probe("doctor")
def a_union_of_legacy_queries(s: Any, h: Hospital) -> Any:
    return s.query(Patient.family).union(s.query(Patient.given)).all()


@probe("doctor")
def a_row_as_json(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.to_json(Patient.__table__.table_valued())))


@probe("doctor")
def the_whole_table_as_a_column(s: Any, h: Hospital) -> Any:
    return s.execute(select(Patient.__table__.table_valued())).all()


@probe("doctor")
def names_through_a_join_column(s: Any, h: Hospital) -> Any:
    return s.execute(select(Encounter, Patient.family).join(Encounter.patient)).all()


@probe("doctor")
def a_column_beside_an_object_named_like_it(s: Any, h: Hospital) -> Any:
    return s.execute(select(Patient, Patient.family.label("Patient"))).all()


@probe("doctor")
def yield_per_of_columns(s: Any, h: Hospital) -> Any:
    return s.execute(select(Patient.family).execution_options(yield_per=2)).all()


# Raw text, in every place it may stand


@probe("doctor")
def raw_text(s: Any, h: Hospital) -> Any:
    return s.execute(text("SELECT family FROM patient")).all()


@probe("doctor")
def raw_text_with_columns(s: Any, h: Hospital) -> Any:
    return s.execute(text("SELECT family FROM patient").columns(column("family"))).all()


@probe("doctor")
def raw_text_that_gives_objects(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).from_statement(text("SELECT * FROM patient"))).all()


@probe("patient")
def a_statement_that_gives_objects(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).from_statement(select(Patient.__table__))).all()


@probe("doctor")
def raw_text_in_where(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(text("1 = 1"))).all()


@probe("doctor")
def raw_text_over_a_table_of_nobody(s: Any, h: Hospital) -> Any:
    return s.scalars(select(NameToken).where(text("EXISTS (SELECT FROM clinical_note)"))).all()


@probe("doctor")
def raw_text_in_order(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).order_by(text("search_phone"))).all()


@probe("doctor")
def raw_text_in_group(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).group_by(text("id"))).all()


@probe("doctor")
def raw_text_as_a_prefix(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).prefix_with(text("ALL (SELECT 1) AS x,"))).all()


@probe("doctor")
def raw_text_as_a_string_prefix(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).prefix_with("/* raw */")).all()


@probe("doctor")
def raw_text_as_a_suffix(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).suffix_with("UNION SELECT * FROM patient")).all()


@probe("doctor")
def a_hint(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).with_hint(Patient, "TABLESAMPLE SYSTEM (100)")).all()


@probe("doctor")
def a_statement_hint(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).with_statement_hint("UNION SELECT * FROM patient")).all()


@probe("doctor")
def a_literal_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(literal_column("search_phone") != "")).all()


@probe("doctor")
def a_literal_column_shown(s: Any, h: Hospital) -> Any:
    return s.execute(select(literal_column("(SELECT family FROM patient LIMIT 1)"))).all()


@probe("doctor")
def a_table_by_name(s: Any, h: Hospital) -> Any:
    return s.execute(select(column("family")).select_from(table("patient"))).all()


@probe("doctor")
def a_table_by_name_with_columns(s: Any, h: Hospital) -> Any:
    bare = table("clinical_note", column("id"), column("content"))
    return s.execute(select(bare)).all()


@probe("privacy")
def a_column_by_bare_name(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(column("search_phone").like("%9112345%"))).all()


@probe("privacy")
def an_order_by_bare_name(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).order_by(column("search_phone"))).all()


@probe("doctor")
def an_operator_that_is_text(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(Patient.id.op("= 0 OR EXISTS (SELECT FROM ab_user) OR 0 =")(0))).all()


@probe("doctor")
def a_boolean_operator_that_is_text(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(Patient.id.bool_op("IS NOT NULL OR 0 <>")(0))).all()


@probe("doctor")
def an_extract_that_is_text(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(extract("year FROM now()) > 0 OR (0", Patient.birth_date) > 0)).all()


@probe("doctor")
def a_function_that_runs_text(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.query_to_xml("SELECT family FROM patient", True, False, "")))


@probe("doctor")
def a_function_that_reads_a_table(s: Any, h: Hospital) -> Any:
    return s.execute(select(func.ts_stat("SELECT to_tsvector(family) FROM patient"))).all()


@probe("doctor")
def a_function_that_reads_files(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.pg_read_file("postgresql.conf")))


@probe("doctor")
def a_function_that_changes_a_setting(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.set_config("session_replication_role", "replica", False)))


@probe("doctor")
def a_number_that_is_not_ours_to_set(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.setval("patient_mrn", 1)))


# What is masked, as an oracle: the privacy officer may not know phones, the receptionist not the reason of a visit


@probe("privacy")
def a_filter_on_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(Patient.search_phone.like("%9112345%"))).all()


@probe("privacy")
def an_order_by_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).order_by(Patient.search_phone)).all()


@probe("privacy")
def an_order_by_the_name_of_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).order_by("search_phone")).all()


@probe("privacy")
def a_legacy_order_by_name(s: Any, h: Hospital) -> Any:
    return s.query(Patient).order_by("telecom").all()


@probe("privacy")
def filter_by_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.query(Patient).filter_by(search_phone="34911234567").all()


@probe("privacy")
def the_length_of_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(func.length(Patient.search_phone) > 5)).all()


@probe("privacy")
def lower_of_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(func.lower(Patient.search_phone) == "34911234567")).all()


@probe("privacy")
def whether_a_masked_column_is_null(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(Patient.photo.is_not(None))).all()


@probe("privacy")
def inside_masked_json(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(Patient.telecom[0]["value"].astext == factories.PHONE)).all()


@probe("privacy")
def group_by_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).group_by(Patient.id, Patient.search_phone)).all()


@probe("privacy")
def having_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).group_by(Patient.id).having(func.max(Patient.search_phone) > "3")).all()


@probe("privacy")
def distinct_on_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).ext(distinct_on(Patient.search_phone)).order_by(Patient.id)).all()


@probe("privacy")
def a_count_over_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.count()).select_from(Patient).where(Patient.search_phone.like("%911%")))


@probe("privacy")
def a_count_of_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.count(Patient.photo)))


@probe("privacy")
def a_count_filtered_by_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.execute(select(func.count().filter(Patient.search_phone == "1")).select_from(Patient)).all()


@probe("reception")
def a_join_on_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).join(Encounter, Encounter.reason == factories.REASON)).all()


@probe("reception")
def a_masked_column_through_a_relation(s: Any, h: Hospital) -> Any:
    other = aliased(Encounter)
    return s.scalars(select(Patient).join(other, other.patient_id == Patient.id).where(other.reason != "")).all()


@probe("privacy")
def a_masked_column_through_any(s: Any, h: Hospital) -> Any:
    return s.scalars(select(AuditEvent).where(exists().where(Patient.search_phone == "1"))).all()


@probe("reception")
def a_masked_column_through_has(s: Any, h: Hospital) -> Any:
    return s.scalars(
        select(PatientIdentifier).where(
            PatientIdentifier.patient.has(
                exists().where(Encounter.patient_id == Patient.id, Encounter.reason == factories.REASON)
            )
        )
    ).all()


@probe("privacy")
def a_masked_column_in_exists(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Organization).where(exists(select(Patient.id).where(Patient.search_phone == "1")))).all()


@probe("privacy")
def a_masked_column_in_a_scalar_subquery(s: Any, h: Hospital) -> Any:
    phone = select(Patient.search_phone).limit(1).scalar_subquery()
    return s.scalars(select(Organization).where(phone.like("34%"))).all()


@probe("privacy")
def a_masked_column_in_an_alias(s: Any, h: Hospital) -> Any:
    other = aliased(Patient)
    return s.scalars(select(other).where(other.search_phone != "")).all()


@probe("privacy")
def a_masked_column_in_a_table_alias(s: Any, h: Hospital) -> Any:
    other = Patient.__table__.alias("o")
    return s.scalars(select(Patient).join(other, other.c.id == Patient.id).where(other.c.search_phone != "")).all()


@probe("privacy")
def a_masked_column_renamed_in_a_subquery(s: Any, h: Hospital) -> Any:
    inner = select(Patient.id, Patient.search_phone.label("n")).subquery()
    return s.scalars(select(Patient).join(inner, inner.c.id == Patient.id).where(inner.c.n != "")).all()


@probe("privacy")
def a_masked_column_in_a_cte(s: Any, h: Hospital) -> Any:
    inner = select(Patient.id, Patient.search_phone).cte()
    return s.scalars(select(Patient).join(inner, inner.c.id == Patient.id).order_by(inner.c.search_phone)).all()


@probe("privacy")
def a_masked_column_in_a_window(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).order_by(func.row_number().over(order_by=Patient.search_phone))).all()


@probe("privacy")
def a_masked_column_as_a_hybrid(s: Any, h: Hospital) -> Any:
    class Trick:
        @hybrid_property
        def reached(self) -> Any:
            return Patient.search_phone

    return s.scalars(select(Patient).where(Trick.reached != "")).all()


@probe("privacy")
def a_masked_column_in_values(s: Any, h: Hospital) -> Any:
    known = values(column("n", String), name="v").data([("34911234567",)])
    return s.scalars(select(Patient).join(known, known.c.n == Patient.search_phone)).all()


@probe("privacy")
def a_masked_column_against_a_tuple(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(tuple_(Patient.id, Patient.search_phone).in_([(1, "1")]))).all()


@probe("privacy")
def a_masked_row_as_json(s: Any, h: Hospital) -> Any:
    row = func.to_jsonb(Patient.__table__.table_valued())
    return s.scalars(select(Patient).where(row.op("->>")("search_phone") == "34911234567")).all()


@probe("privacy")
def a_masked_row_as_text(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(cast(Patient.__table__.table_valued(), Text).like("%9112345%"))).all()


@probe("privacy")
def a_masked_column_in_loader_criteria(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).options(with_loader_criteria(Patient, Patient.search_phone != ""))).all()


@probe("privacy")
def a_masked_column_in_a_lateral(s: Any, h: Hospital) -> Any:
    inner = lateral(select(Organization.id).where(Patient.search_phone != ""))
    return s.scalars(select(Patient).join(inner, literal(True))).all()


# Rows out of scope: the nurse sees vital signs only, the patient only themselves


@probe("nurse")
def a_resource_not_granted(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Condition)).all()


@probe("admin")
def notes_as_administrator(s: Any, h: Hospital) -> Any:
    return s.scalars(select(ClinicalNote)).all()


@probe("admin")
def a_count_of_notes(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.count()).select_from(ClinicalNote))


@probe("nurse")
def exists_in_a_resource_not_granted(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).where(exists().where(Condition.patient_id == Patient.id))).all()


@probe("nurse")
def a_join_with_a_resource_not_granted(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).join(Condition, Condition.patient_id == Patient.id)).all()


@probe("nurse")
def a_count_in_a_resource_not_granted(s: Any, h: Hospital) -> Any:
    return s.scalar(select(select(func.count()).select_from(Condition).scalar_subquery()))


@probe("nurse")
def an_order_by_a_resource_not_granted(s: Any, h: Hospital) -> Any:
    count = select(func.count()).where(Condition.patient_id == Patient.id).scalar_subquery()
    return s.scalars(select(Patient).order_by(count)).all()


@probe("nurse")
def get_of_a_resource_not_granted(s: Any, h: Hospital) -> Any:
    return s.get(Condition, h.rows["Condition"])


@probe("admin")
def get_of_a_note(s: Any, h: Hospital) -> Any:
    return s.get(ClinicalNote, h.rows["ClinicalNote"])


@probe("admin")
def a_document_with_its_text(s: Any, h: Hospital) -> Any:
    return s.scalars(select(DocumentReference).options(undefer(DocumentReference.content))).all()


@probe("admin")
def a_received_record(s: Any, h: Hospital) -> Any:
    return s.scalars(select(SourceResource).options(undefer(SourceResource.content))).all()


@probe("nurse")
def rows_by_the_bare_table(s: Any, h: Hospital) -> Any:
    bare = Observation.__table__
    return s.scalars(select(Organization).where(exists(select(bare.c.id).where(bare.c.category == "laboratory")))).all()


@probe("nurse")
def rows_by_the_bare_table_in_a_join(s: Any, h: Hospital) -> Any:
    bare = Observation.__table__
    return s.scalars(select(Patient).join(bare, bare.c.patient_id == Patient.id).where(bare.c.code == "718-7")).all()


@probe("nurse")
def rows_by_an_alias_of_the_bare_table(s: Any, h: Hospital) -> Any:
    bare = Observation.__table__.alias("bare")
    return s.scalars(
        select(Patient).where(exists().where(bare.c.patient_id == Patient.id, bare.c.code == "718-7"))
    ).all()


@probe("nurse")
def a_count_by_the_bare_table(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.count()).select_from(Observation.__table__))


@probe("nurse")
def an_entity_over_the_bare_table(s: Any, h: Hospital) -> Any:
    return s.scalars(select(aliased(Observation, select(Observation.__table__).subquery()))).all()


@probe("patient")
def a_mapping_of_ones_own(s: Any, h: Hospital) -> Any:
    class Stolen:
        pass

    own = registry()
    own.map_imperatively(Stolen, Patient.__table__)
    try:
        return [row.family for row in s.scalars(select(Stolen))]
    finally:
        own.dispose()


# Writes past the unit of work


@probe("doctor")
def a_bulk_update(s: Any, h: Hospital) -> Any:
    return s.execute(update(Patient).values(family="x"))


@probe("doctor")
def a_bulk_update_of_the_table(s: Any, h: Hospital) -> Any:
    return s.execute(update(Patient.__table__).values(family="x"))


@probe("doctor")
def a_bulk_delete(s: Any, h: Hospital) -> Any:
    return s.execute(delete(PatientIdentifier))


@probe("doctor")
def a_bulk_insert(s: Any, h: Hospital) -> Any:
    return s.execute(insert(Organization), [{"name": "x"}])


@probe("doctor")
def a_bulk_insert_that_returns(s: Any, h: Hospital) -> Any:
    return s.execute(insert(Organization).values(name="x").returning(Organization))


@probe("doctor")
def an_upsert(s: Any, h: Hospital) -> Any:
    statement = postgresql_insert(Organization).values(name="x").on_conflict_do_nothing()
    return s.execute(statement)


@probe("doctor")
def an_insert_from_a_select(s: Any, h: Hospital) -> Any:
    return s.execute(insert(NameToken).from_select(["token"], select(Patient.search_name)))


@probe("doctor")
def a_bulk_update_by_key(s: Any, h: Hospital) -> Any:
    return s.execute(update(Patient), [{"id": h.patients[0], "family": "x"}])


@probe("doctor")
def a_legacy_bulk_update(s: Any, h: Hospital) -> Any:
    return s.query(Patient).update({"family": "x"})


@probe("doctor")
def a_legacy_bulk_delete(s: Any, h: Hospital) -> Any:
    return s.query(PatientIdentifier).delete()


@probe("doctor")
def bulk_insert_mappings(s: Any, h: Hospital) -> Any:
    s.bulk_insert_mappings(Organization, [{"name": "x", "telecom": [], "address": [], "version": 1}])
    s.commit()


@probe("doctor")
def bulk_update_mappings(s: Any, h: Hospital) -> Any:
    s.bulk_update_mappings(Patient, [{"id": h.patients[0], "family": "x", "version": 1}])
    s.commit()


@probe("doctor")
def bulk_save_objects(s: Any, h: Hospital) -> Any:
    s.bulk_save_objects([Organization(name="x", telecom=[], address=[])])
    s.commit()


@probe("doctor")
def a_cte_that_writes(s: Any, h: Hospital) -> Any:
    written = update(Patient).values(family="x").returning(Patient.id).cte()
    return s.execute(select(Organization).where(exists(select(written.c.id)))).all()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_the_gate_cannot_vouch_for_gets_no_answer(name: str, acting: Acting, hospital: Hospital) -> None:
    username, statement = STATEMENTS[name]
    with acting(username):
        with pytest.raises(REFUSED):
            statement(guard.session(), hospital)
        guard.session().rollback()
        assert not [thing for thing in guard.session() if type(thing) in (Patient, Observation, ClinicalNote)]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("name", STATEMENTS)
def test_nobody_gets_an_answer_either(name: str, hospital: Hospital) -> None:
    before = contents()
    with pytest.raises((*REFUSED, NotSignedIn)):
        STATEMENTS[name][1](guard.session(), hospital)
    guard.session.remove()
    assert contents() == before


# ---- what is answered, is answered with what is theirs -------------------------------------------------------------


def observed(rows: Any) -> set[str]:
    return {row.category for row in rows}


VITAL = {"vital-signs"}
LAB = {"laboratory"}


@pytest.mark.parametrize(
    ("username", "seen"), [("nurse", VITAL), ("lab", LAB), ("doctor", VITAL | LAB), ("admin", VITAL | LAB)]
)
@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda s: s.scalars(select(Observation)).all(), id="select"),
        pytest.param(lambda s: s.query(Observation).all(), id="query"),
        pytest.param(lambda s: list(s.scalars(select(Observation).execution_options(yield_per=1))), id="yield_per"),
        pytest.param(lambda s: s.scalars(select(aliased(Observation))).all(), id="aliased"),
        pytest.param(
            lambda s: s.scalars(select(aliased(Observation, select(Observation).subquery()))).all(), id="subquery"
        ),
        pytest.param(lambda s: s.query(Observation).union(s.query(Observation)).all(), id="union"),
        pytest.param(lambda s: s.query(Observation).from_statement(select(Observation)).all(), id="from_statement"),
        pytest.param(
            lambda s: s.scalars(select(Observation).where(literal(True) | Observation.id.is_(None))).all(), id="or"
        ),
        pytest.param(lambda s: s.scalars(select(Observation).options(load_only(Observation.id))).all(), id="load_only"),
        pytest.param(
            lambda s: [o for o, _ in s.execute(select(Observation, Patient).join(Observation.patient))], id="join"
        ),
    ],
)
def test_every_way_to_read_gives_the_rows_in_scope(
    username: str, seen: set[str], read: Any, acting: Acting, hospital: Hospital
) -> None:
    with acting(username):
        try:
            found = observed(read(guard.session()))
        except Ungated:
            found = None
        if found is not None:
            assert found == seen


def test_which_ways_to_read_are_answered_at_all(acting: Acting, hospital: Hospital) -> None:
    with acting("nurse"):
        s = guard.session()
        assert observed(s.scalars(select(Observation))) == VITAL
        assert observed(s.query(Observation)) == VITAL
        assert observed(s.scalars(select(aliased(Observation)))) == VITAL
        assert observed(s.query(Observation).union(s.query(Observation))) == VITAL


def counts(username: str, model: Any, acting: Acting) -> set[int]:
    """The number of rows, asked in every way it can be."""
    with acting(username):
        s = guard.session()
        whole = select(model)
        return {
            s.scalar(select(func.count()).select_from(model)),
            s.scalar(select(func.count(model.id))),
            s.query(model).count(),
            s.scalar(select(func.count()).select_from(whole.subquery())),
            s.scalar(select(select(func.count()).select_from(model).scalar_subquery().label("n"))),
            s.scalar(select(select(func.count(model.id)).scalar_subquery())),
            s.scalar(select(func.count()).select_from(select(model.id).limit(1000).subquery())),
            s.scalar(select(func.count()).select_from(aliased(model))),
            s.execute(
                select(func.count().label("n"), select(func.count()).select_from(model).scalar_subquery()).select_from(
                    model
                )
            ).one()[1],
            len(s.scalars(whole).all()),
        }


@pytest.mark.parametrize(
    ("username", "model", "number"),
    [
        ("nurse", Observation, 2),
        ("lab", Observation, 4),
        ("doctor", Observation, 6),
        ("patient", Patient, 1),
        ("patient", Encounter, 1),
        ("patient", PatientIdentifier, 1),
        ("reception", Patient, 12),
        ("doctor", ClinicalNote, 2),
    ],
)
def test_a_count_counts_what_may_be_seen(
    username: str, model: Any, number: int, acting: Acting, hospital: Hospital
) -> None:
    assert counts(username, model, acting) == {number}


def test_the_sizes_of_a_chart_are_those_of_what_may_be_seen(acting: Acting, hospital: Hospital) -> None:
    for username, number in (("nurse", 1), ("lab", 2), ("doctor", 3)):
        with acting(username):
            assert clinical.sizes(guard.session(), hospital.patients[1])["observations"] == number
    with acting("patient"):
        assert set(clinical.sizes(guard.session(), hospital.patients[1]).values()) == {0}
        sizes = clinical.sizes(guard.session(), hospital.patients[0])
        assert [sizes[part] for part in ("visits", "allergies", "medications", "immunisations")] == [1, 1, 1, 1]


def test_exists_and_joins_are_narrowed_too(acting: Acting, hospital: Hospital) -> None:
    haemoglobin = exists().where(Observation.patient_id == Patient.id, Observation.code == "718-7")
    joined = select(Patient).join(Observation, Observation.patient_id == Patient.id).where(Observation.code == "718-7")
    counted = select(func.count()).where(Observation.patient_id == Patient.id).scalar_subquery()
    with acting("nurse"):
        s = guard.session()
        assert s.scalars(select(Patient).where(haemoglobin)).all() == []
        assert s.scalars(select(Patient).where(~haemoglobin, Patient.id == hospital.patients[1])).all() != []
        assert s.scalars(joined).all() == []
        assert s.scalars(select(Patient).where(counted > 1)).all() == []
    with acting("doctor"):
        s = guard.session()
        assert len(s.scalars(select(Patient).where(haemoglobin)).all()) == 2
        assert len(s.scalars(joined).all()) == 2


def test_a_patient_gets_nobody_else_by_key(acting: Acting, hospital: Hospital) -> None:
    with acting("patient"):
        s = guard.session()
        assert s.get(Patient, hospital.patients[0]) is not None
        for key in hospital.patients[1:]:
            assert s.get(Patient, key) is None
            with pytest.raises(NotFound):
                clinical.open_chart(s, key)
        for model in (Encounter, PatientIdentifier):
            assert {row.patient_id for row in s.scalars(select(model))} == {hospital.patients[0]}
        assert s.get(Encounter, hospital.rows["Encounter"]) is None


def test_what_is_masked_never_reaches_python(acting: Acting, hospital: Hospital) -> None:
    key = hospital.patients[0]
    with acting("privacy"):
        s = guard.session()
        patient = s.get(Patient, key)
        assert (patient.telecom, patient.address, patient.contact, patient.photo) == ([], [], [], None)
        assert patient.search_phone is None
        s.refresh(patient)
        assert patient.telecom == []
        s.refresh(patient, ["telecom", "address"])
        assert (patient.telecom, patient.address) == ([], [])
        s.expire(patient)
        assert patient.telecom == []
        s.expire(patient, ["telecom"])
        assert patient.telecom == []
        again = s.scalars(
            select(Patient).where(Patient.id == key).options(undefer(Patient.search_phone), undefer(Patient.photo)),
            execution_options={"populate_existing": True},
        ).one()
        assert (again.search_phone, again.telecom) == (None, [])
        assert factories.PHONE[1:] not in repr(again.__dict__)
        history = inspect(again).attrs.telecom.history
        assert factories.PHONE not in repr(history)


def test_the_narrative_of_a_report_is_blank_for_the_administrator(acting: Acting, hospital: Hospital) -> None:
    with acting("admin"):
        s = guard.session()
        options = (undefer(DiagnosticReport.presented_form), undefer(DiagnosticReport.conclusion))
        for report in s.scalars(select(DiagnosticReport).options(*options)):
            assert (report.presented_form, report.conclusion) == ([], None)
        report = s.scalars(select(DiagnosticReport), execution_options={"populate_existing": True}).first()
        s.expunge_all()
        report = s.get(DiagnosticReport, hospital.rows["DiagnosticReport"])
        assert (report.presented_form, report.conclusion) == ([], None)
    with acting("doctor"):
        report = guard.session().get(DiagnosticReport, hospital.rows["DiagnosticReport"])
        assert report.conclusion == factories.CONCLUSION


def test_the_reason_of_a_visit_is_blank_at_the_desk_in_every_load(acting: Acting, hospital: Hospital) -> None:
    with acting("reception"):
        s = guard.session()
        for statement in (
            select(Encounter),
            select(Encounter).options(joinedload(Encounter.patient)),
            select(Encounter).join(Encounter.patient).options(contains_eager(Encounter.patient)),
            select(aliased(Encounter)),
        ):
            s.expunge_all()
            assert {visit.reason for visit in s.scalars(statement)} == {None}


LOADS = {
    "joined": lambda: joinedload(Observation.encounter),
    "inner": lambda: joinedload(Observation.encounter, innerjoin=True),
    "selectin": lambda: selectinload(Observation.encounter),
    "subquery": lambda: subqueryload(Observation.encounter),
    "joined by way of the patient's numbers": lambda: joinedload(Observation.patient).joinedload(Patient.identifiers),
}


@pytest.mark.parametrize("load", LOADS)
def test_a_relation_leads_into_nothing_that_is_not_granted(load: str, acting: Acting, hospital: Hospital) -> None:
    """The laboratory may not see visits; nobody gets there by way of an observation."""
    if "numbers" in load:
        with acting("lab"):
            for row in guard.session().scalars(select(Observation).options(LOADS[load]())).unique():
                assert [number.patient_id for number in row.patient.identifiers] == [row.patient_id]
        return
    with acting("lab"):
        with pytest.raises(Forbidden):
            guard.session().scalars(select(Observation).options(LOADS[load]())).all()
        assert not [thing for thing in guard.session() if isinstance(thing, Encounter)]


def test_a_lazy_relation_leads_into_nothing_that_is_not_granted(acting: Acting, hospital: Hospital) -> None:
    with acting("lab"):
        row = guard.session().scalars(select(Observation).options(defaultload(Observation.encounter))).first()
        guard.session().expunge_all()
        lazily = select(Observation).options(
            *(option for option in (selectinload(Observation.patient).lazyload(Patient.identifiers),))
        )
        row = guard.session().scalars(lazily).first()
        assert [number.patient_id for number in row.patient.identifiers] == [row.patient_id]


def test_a_relation_leads_to_no_row_out_of_scope(acting: Acting, hospital: Hospital) -> None:
    """The patient's own identifiers, by every kind of load, and no criterion may come along with one."""
    with acting("patient"):
        s = guard.session()
        for option in (joinedload, selectinload, subqueryload):
            s.expunge_all()
            found = s.scalars(select(Patient).options(option(Patient.identifiers))).unique().all()
            assert [patient.id for patient in found] == [hospital.patients[0]]
    with acting("privacy"), pytest.raises(REFUSED):
        guard.session().scalars(
            select(Patient).options(joinedload(Patient.registered_at.and_(Patient.search_phone != "")))
        ).all()


@pytest.mark.parametrize("load", [joinedload, selectinload, subqueryload], ids=lambda load: load.__name__)
def test_a_link_leads_a_patient_to_nobody_else(load: Any, database: Any, hospital: Hospital) -> None:
    """Were the links opened to patients, the other end would still be another patient."""
    mine, theirs = hospital.patients[2], hospital.patients[3]
    own = policy.combine({"Patient": {"Patient": policy.may("read"), "PatientLink": policy.may("read")}})
    with guard.acting_as(actor.Actor(name="x", roles=("Patient",), rights=own, user_id=1, patient_id=mine)):
        s = guard.session()
        link = s.scalars(select(PatientLink).options(load(PatientLink.other), load(PatientLink.patient))).one()
        assert (link.patient.id, link.other_id) == (mine, theirs)
        assert link.other is None
        assert [thing.id for thing in s if isinstance(thing, Patient)] == [mine]


def test_what_comes_along_with_an_object_is_asked_for_too() -> None:
    touched = {mapper.class_ for mapper in statements.walk(select(Room)).mappers}
    assert touched == {Room, Branch, Organization}


@pytest.mark.parametrize(
    "bring",
    [
        pytest.param(lambda s, row: s.add(row), id="add"),
        pytest.param(lambda s, row: s.merge(row, load=False), id="merge without a load"),
    ],
)
def test_an_object_that_was_never_shown_does_not_fill_itself(bring: Any, acting: Acting, hospital: Hospital) -> None:
    with acting("patient"):
        s = guard.session()
        row = Patient(id=hospital.patients[1])
        make_transient_to_detached(row)
        row = bring(s, row) or row
        for ask in (lambda: row.family, lambda: s.refresh(row), lambda: s.refresh(row, ["family"])):
            with pytest.raises(REFUSED):
                ask()
        assert "family" not in row.__dict__


def test_an_object_of_one_actor_does_not_fill_itself_for_another(acting: Acting, hospital: Hospital) -> None:
    with acting("doctor"):
        theirs = guard.session().get(DiagnosticReport, hospital.rows["DiagnosticReport"])
        guard.session().expunge(theirs)
    with acting("admin"):
        guard.session().add(theirs)
        with pytest.raises(REFUSED):
            _ = theirs.conclusion


def test_merging_asks_the_gate(acting: Acting, hospital: Hospital) -> None:
    with acting("patient"), pytest.raises(REFUSED):
        s = guard.session()
        s.merge(Patient(id=hospital.patients[1], family="Mine", version=1))
        s.flush()


# ---- writing -------------------------------------------------------------------------------------------------------


def a_field_of_somebody_else(s: Any, h: Hospital) -> None:
    s.get(Patient, h.patients[0]).family = "Changed"


def a_resource_not_granted_to_write(s: Any, h: Hospital) -> None:
    s.add(Condition(patient_id=h.patients[0], code_display="x", clinical_status="active"))


def a_branch(s: Any, h: Hospital) -> None:
    s.get(Branch, h.branches[0]).code = "XXX"


def a_link(s: Any, h: Hospital) -> None:
    s.add(PatientLink(patient_id=h.patients[4], other_id=h.patients[5], score=0.5, reasons=[]))


def a_masked_field(s: Any, h: Hospital) -> None:
    s.get(Encounter, h.rows["Encounter"]).reason = "x"


def a_masked_phone(s: Any, h: Hospital) -> None:
    s.get(Patient, h.patients[0]).telecom = [{"system": "phone", "value": "+34900000000"}]


def a_laboratory_value(s: Any, h: Hospital) -> None:
    s.add(
        Observation(
            patient_id=h.patients[1], status="final", category="laboratory", code_display="Glucose", value_quantity=1
        )
    )


def a_vital_sign_moved_out_of_scope(s: Any, h: Hospital) -> None:
    s.get(Observation, h.rows["Observation"]).category = "laboratory"


def a_laboratory_value_by_a_forged_object(s: Any, h: Hospital) -> None:
    row = Observation(id=h.rows["laboratory"], version=1)
    make_transient_to_detached(row)
    s.add(row)
    row.value_quantity = 1


def a_deletion(s: Any, h: Hospital) -> None:
    s.delete(s.get(Patient, h.patients[5]))


def a_deletion_of_a_number(s: Any, h: Hospital) -> None:
    s.delete(s.scalars(select(PatientIdentifier).limit(1)).one())


def a_deletion_by_a_forged_object(s: Any, h: Hospital) -> None:
    row = Patient(id=h.patients[5], version=1)
    make_transient_to_detached(row)
    s.add(row)
    s.delete(row)


def a_number_moved_to_somebody_else(s: Any, h: Hospital) -> None:
    number = s.scalars(select(PatientIdentifier)).first()
    number.patient_id = h.patients[1]


def a_line_of_the_trail(s: Any, h: Hospital) -> None:
    s.add(
        AuditEvent(
            type="rest",
            subtype="read",
            action="R",
            outcome=0,
            agent_name="",
            roles=[],
            purpose="",
            channel="",
            entities=[],
        )
    )


def a_note(s: Any, h: Hospital) -> None:
    s.add(
        ClinicalNote(
            patient_id=h.patients[0], title="x", author_id=h.staff["doctor"], written_at=factories.WHEN, content={}
        )
    )


def an_account_given_to_oneself(s: Any, h: Hospital) -> None:
    s.get(Patient, h.patients[0]).user_id = None


WRITES = [
    ("patient", a_field_of_somebody_else),
    ("patient", an_account_given_to_oneself),
    ("patient", a_number_moved_to_somebody_else),
    ("billing", a_field_of_somebody_else),
    ("lab", a_field_of_somebody_else),
    ("privacy", a_field_of_somebody_else),
    ("privacy", a_masked_phone),
    ("nurse", a_resource_not_granted_to_write),
    ("reception", a_resource_not_granted_to_write),
    ("admin", a_resource_not_granted_to_write),
    ("admin", a_note),
    ("nurse", a_note),
    ("doctor", a_branch),
    ("reception", a_branch),
    ("reception", a_link),
    ("reception", a_masked_field),
    ("nurse", a_laboratory_value),
    ("nurse", a_vital_sign_moved_out_of_scope),
    ("nurse", a_laboratory_value_by_a_forged_object),
    ("doctor", a_deletion),
    ("admin", a_deletion),
    ("admin", a_deletion_of_a_number),
    ("admin", a_deletion_by_a_forged_object),
    ("admin", a_line_of_the_trail),
    ("privacy", a_line_of_the_trail),
]


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(("username", "write"), WRITES, ids=lambda value: getattr(value, "__name__", value))
def test_a_write_that_is_not_granted_changes_nothing(
    username: str, write: Any, acting: Acting, hospital: Hospital
) -> None:
    with acting(username), pytest.raises(REFUSED), guard.unit_of_work() as s:
        write(s, hospital)


@pytest.mark.usefixtures("unchanged")
def test_one_refused_row_takes_the_granted_ones_with_it(acting: Acting, hospital: Hospital) -> None:
    with acting("nurse"), pytest.raises(Forbidden), guard.unit_of_work() as s:
        patient = s.get(Patient, hospital.patients[7])
        patient.family = "Granted"
        s.flush()
        a_laboratory_value(s, hospital)


@pytest.mark.usefixtures("unchanged")
def test_a_refused_change_stays_refused_when_the_refusal_is_swallowed(acting: Acting, hospital: Hospital) -> None:
    with acting("patient"):
        s = guard.session()
        s.get(Patient, hospital.patients[0]).family = "Changed"
        with pytest.raises(Forbidden):
            s.flush()
        with pytest.raises(Forbidden):
            s.commit()
        s.rollback()


def test_a_granted_change_is_made_with_its_line(acting: Acting, hospital: Hospital) -> None:
    with acting("nurse"), guard.unit_of_work() as s:
        s.get(Observation, hospital.own_rows["Observation"]).value_quantity = 80
    assert factories.stored(Observation, hospital.own_rows["Observation"])["value_quantity"] == 80
    with guard.engine().connect() as connection:
        lines = spoken(connection.scalars(text("SELECT event FROM audit_outbox ORDER BY id DESC LIMIT 1")).one())
    assert lines["agent"]["agent_name"] == "Nora Nurse"
    assert lines["events"][0]["entities"] == [
        {"type": "Observation", "ids": [hospital.own_rows["Observation"]], "fields": ["value_quantity"]}
    ]


def test_an_import_that_is_refused_leaves_no_line(acting: Acting, hospital: Hospital) -> None:
    before = contents()["audit_outbox"]
    with acting("patient"), pytest.raises(Forbidden), guard.unit_of_work() as s:
        s.get(Patient, hospital.patients[0]).given = "Changed"
    assert contents()["audit_outbox"] == before


# ---- the actor -----------------------------------------------------------------------------------------------------


def test_without_an_actor_nothing_is_read_or_written(database: Any, hospital: Hospital) -> None:
    before = contents()
    s = guard.session()
    for read in (lambda: s.get(Patient, 1), lambda: s.scalars(select(Organization)).all()):
        with pytest.raises(NotSignedIn):
            read()
    s.add(Organization(name="x", telecom=[], address=[]))
    with pytest.raises(NotSignedIn):
        s.flush()
    guard.session.remove()
    assert contents() == before


def test_an_actor_without_rights_sees_nothing(database: Any, hospital: Hospital) -> None:
    with guard.acting_as(actor.nobody()):
        for model in (Patient, Observation, Organization, AuditEvent):
            with pytest.raises(Forbidden):
                guard.session().scalars(select(model)).all()


def test_a_service_without_a_policy_does_not_exist() -> None:
    with pytest.raises(KeyError):
        actor.service("somebody")


def test_the_session_of_one_actor_is_not_that_of_the_next(acting: Acting, hospital: Hospital) -> None:
    with acting("doctor"):
        outer = guard.session()
        with acting("nurse"):
            assert guard.session() is not outer
        assert guard.session() is outer
        assert outer.get(ClinicalNote, hospital.rows["ClinicalNote"]) is not None


def test_searching_still_works_through_the_gate(acting: Acting, hospital: Hospital) -> None:
    for username, expected in (("reception", 1), ("patient", 0)):
        with acting(username):
            assert len(patients.find(guard.session(), "vandersloot").patients) == expected


def test_the_unused_names_of_the_imports_are_probes_too(acting: Acting, hospital: Hospital) -> None:
    """An expression hung on an object, and a bound value in place of a column."""
    with acting("privacy"), pytest.raises((*REFUSED, Exception)) as refused:
        guard.session().scalars(
            select(Patient).options(with_expression(Patient.name_in_use, Patient.search_phone))
        ).all()
    assert "34911234567" not in str(refused.value)
    with acting("privacy"):
        found = (
            guard.session().scalars(select(Practitioner).where(Practitioner.family == bindparam("f", "Nurse"))).all()
        )
        assert [person.given for person in found] == ["Nora"]


def test_a_row_moved_to_another_patient_is_a_line_for_both(acting: Acting, hospital: Hospital, savepoint: None) -> None:
    mine, theirs = hospital.patients[0], hospital.patients[1]
    with acting("doctor"):
        with guard.unit_of_work() as session:
            allergy = session.scalars(select(AllergyIntolerance).where(AllergyIntolerance.patient_id == mine)).first()
            assert allergy is not None
            allergy.patient_id, allergy.encounter_id = theirs, None
        lines = [spoken(row.event) for row in guard.session().scalars(select(AuditOutbox))]
        moved = [event for line in lines for event in line["events"] if event["action"] == "U"]
        assert {event["patient_id"] for event in moved[-2:]} == {mine, theirs}
