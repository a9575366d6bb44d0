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
from sqlalchemy.dialects.postgresql import aggregate_order_by, array
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

from app import actor, guard
from app.errors import Forbidden, NotFound, NotSignedIn, Ungated
from app.services import clinical, patients
from models.audit import AuditEvent
from models.clinical import ClinicalNote, Condition, DocumentReference, Encounter, Observation
from models.imports import SourceResource
from models.lab import DiagnosticReport
from models.organization import Branch, Organization, Practitioner
from models.patients import NameToken, Patient, PatientIdentifier, PatientLink
from tests import factories
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
            name: connection.scalar(text(f"SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY id), '')) FROM {name} t"))
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
    return s.execute(select(seed.union_all(select(Patient.id, Patient.family).where(Patient.id == seed.c.id + 1)))).all()


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
    return s.scalar(select(func.row_to_json(Patient.__table__.table_valued())))


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
    return s.scalars(select(Patient).distinct(Patient.search_phone).order_by(Patient.search_phone)).all()


@probe("privacy")
def a_count_over_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.count()).select_from(Patient).where(Patient.search_phone.like("%911%")))


@probe("privacy")
def a_count_of_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalar(select(func.count(Patient.photo)))


@probe("privacy")
def a_count_filtered_by_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.execute(select(func.count().filter(Patient.search_phone == "1")).select_from(Patient)).all()


@probe("receptionist")
def a_join_on_a_masked_column(s: Any, h: Hospital) -> Any:
    return s.scalars(select(Patient).join(Encounter, Encounter.reason == factories.REASON)).all()


@probe("receptionist")
def a_masked_column_through_a_relation(s: Any, h: Hospital) -> Any:
    other = aliased(Encounter)
    return s.scalars(select(Patient).join(other, other.patient_id == Patient.id).where(other.reason != "")).all()


@probe("privacy")
def a_masked_column_through_any(s: Any, h: Hospital) -> Any:
    return s.scalars(select(AuditEvent).where(exists().where(Patient.search_phone == "1"))).all()


@probe("receptionist")
def a_masked_column_through_has(s: Any, h: Hospital) -> Any:
    return s.scalars(select(PatientIdentifier).where(PatientIdentifier.patient.has(
        exists().where(Encounter.patient_id == Patient.id, Encounter.reason == factories.REASON)
    ))).all()


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
    return s.scalars(select(Patient).where(exists().where(bare.c.patient_id == Patient.id, bare.c.code == "718-7"))).all()


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
    return s.execute(insert(Room := Organization), [{"name": f"x{Room}"[:9]}])


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
    with acting({"receptionist": "reception"}.get(username, username)):
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
