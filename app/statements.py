"""Looking through a statement before it runs: what it touches, what it names, and whether the gate can vouch for it.

An allow-list: a kind of element, function or operator that is not known here is a fault, so a new one fails closed.
It leans on SQLAlchemy's internals; tests/integration/test_gate.py is to be run with every new version of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, Table, inspect
from sqlalchemy.orm import (
    Load,
    LoaderCriteriaOption,
    Mapper,
    QueryableAttribute,
    RelationshipProperty,
)
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.elements import ColumnClause, Label
from sqlalchemy.sql.functions import FunctionElement, count
from sqlalchemy.sql.operators import custom_op
from sqlalchemy.sql.selectable import Alias, ForUpdateArg, ScalarSelect, TableClause
from sqlalchemy.sql.util import surface_expressions

from models.base import Model, Protected


@dataclass(frozen=True)
class Verdict:
    """What a statement touches, found once for all statements of its shape."""

    mappers: tuple[Mapper[Any], ...] = ()
    mentioned: frozenset[tuple[str, str]] = frozenset()
    """(resource, attribute) pairs named in it."""
    fault: str | None = None


LOOSE = "columns instead of objects"
BARE = "a table without its class"
KNOWN = {
    *("select", "compound_select", "select_statement_grouping", "memoized_select_entities"),
    *("table", "join", "alias", "subquery", "cte"),
    *("column", "label", "label_reference", "bindparam", "null", "true", "false", "typeclause", "cast", "case"),
    *("binary", "unary", "grouping", "clauselist", "expression_clauselist", "tuple", "function", "over", "funcfilter"),
}
"""The kinds of element (SQLAlchemy's visit names) a statement may be built of; raw text is none of them."""
WRITES = {"insert", "update", "delete"}
"""Further kinds a statement as a whole may be, over tables that are not behind the gate."""
FUNCTIONS = {
    *("count", "min", "max", "sum", "coalesce", "greatest", "least", "row_number", "now", "date_trunc"),
    *("lower", "upper", "length", "similarity", "unaccent", "wb_fold"),
    *("nextval", "pg_get_serial_sequence", "generate_series"),
    *("websearch_to_tsquery", "ts_rank", "wb_dictionary"),
}
"""Functions of the database that only reckon, or draw a number. Others may run text, or read what they like."""
SYMBOLS = frozenset("+-*/<>=~!@#%^&|`?")
"""What an operator is made of; one with letters in it could be anything."""


OURS = "gate"
"""The annotation of the criteria the gate itself adds to a statement."""


_verdicts: dict[Any, Verdict] = {}
_by_table: dict[Table, Mapper[Any]] = {}


def protected_mappers() -> dict[Table, Mapper[Any]]:
    """Every table behind the gate, with its mapper."""
    if not _by_table:
        for mapper in Model.registry.mappers:
            if issubclass(mapper.class_, Protected) and isinstance(mapper.local_table, Table):
                _by_table[mapper.local_table] = mapper
    return _by_table


def walk(statement: ClauseElement) -> Verdict:
    """Look through a statement: which protected tables, which of their columns, and whether it is of a kind we know."""
    tables = protected_mappers()
    found: dict[Mapper[Any], None] = {}
    mentioned: set[tuple[str, str]] = set()
    fault: str | None = None
    bare = False
    narrowed = narrowed_anyway(statement)
    beside: list[RelationshipProperty[Any]] = []
    stack: list[Any] = [statement]
    visited: set[int] = set()
    while stack:
        element = stack.pop()
        if id(element) in visited:
            continue
        visited.add(id(element))
        kind = element.__visit_name__
        if isinstance(element, ForUpdateArg):
            continue  # holds the rows it is given, and gives none
        if kind not in KNOWN and not (element is statement and kind in WRITES):
            fault = f"a {kind}"
        elif isinstance(element, TableClause):
            plain = getattr(element, "_deannotate", lambda e=element: e)()
            if not isinstance(plain, Table):
                fault = "a table by its bare name"
            elif plain in tables:
                found[tables[plain]] = None
                bare = bare or not stands_for(element, tables[plain])
            continue
        elif isinstance(element, Alias) and element.element in tables:
            found[tables[element.element]] = None
            bare = bare or not stands_for(element, tables[element.element])
            continue
        elif isinstance(element, FunctionElement):
            if element.name not in FUNCTIONS or getattr(element, "packagenames", None):
                fault = f"the function {element.name}"
        elif isinstance(element, ColumnClause):
            if element.name != "*" and (element.is_literal or element.table is None):
                fault = "a literal column"
            if element.table is not None and not isinstance(element.table, Table):
                stack.append(element.table)
            for base in element.base_columns:
                owner = getattr(base, "table", None)
                owner = owner._deannotate() if owner is not None and hasattr(owner, "_deannotate") else owner
                if owner in tables:
                    mapper = tables[owner]
                    found[mapper] = None
                    mentioned.add((mapper.class_.resource(), str(base.key)))
                    if isinstance(element.table, Table | Alias) and not stands_for(element, mapper):
                        bare = bare or (id(element), mapper) not in narrowed
        operator = getattr(element, "operator", None)
        if isinstance(operator, custom_op) and not SYMBOLS.issuperset(operator.opstring):
            fault = "an operator of letters"
        if any(getattr(element, name, None) for name in ("_hints", "_statement_hints", "_prefixes", "_suffixes")):
            fault = "a hint"
        narrowed |= joined_by_relation(element)
        for option in getattr(element, "_with_options", ()):
            if isinstance(option, Load):
                for part in option.context:
                    if part._extra_criteria:
                        fault = "a criterion on the side"
                    if ("lazy", "joined") in (part.strategy or ()):
                        beside.extend(step for step in part.path.path if isinstance(step, RelationshipProperty))
            elif isinstance(option, LoaderCriteriaOption) and not of_the_gate(option):
                fault = "a criterion on the side"
        # The tables a select takes from its columns stand for whatever the columns stand for, which is looked at here.
        shown: Any = super(Select, element) if isinstance(element, Select) else element
        stack.extend(shown.get_children(omit_attrs=("_correlate", "_correlate_except")))
    fault = fault or (BARE if bare else None)
    # What is loaded along with the objects in the same statement is not named in it.
    beside.extend(r for mapper in found for r in mapper.relationships if r.lazy == "joined")
    while beside:
        mapper = beside.pop().mapper
        if mapper.local_table in tables and mapper not in found:
            found[mapper] = None
            beside.extend(r for r in mapper.relationships if r.lazy == "joined")
    if found and fault is None:
        fault = loose(statement)
    return Verdict(tuple(found), frozenset(mentioned), fault)


def narrowed_anyway(statement: Any) -> set[tuple[int, Any]]:
    """Columns a statement compares in its own WHERE, with the classes it gives: `session.get` strips them of theirs."""
    if not isinstance(statement, Select):
        return set()
    given = [getattr(wanted, "_annotations", {}).get("parententity") for wanted in statement._raw_columns]
    compared = [part for criterion in statement._where_criteria for part in surface_expressions(criterion)]  # type: ignore[no-untyped-call]
    return {(id(part), mapper) for part in compared for mapper in given if isinstance(mapper, Mapper)}


def joined_by_relation(element: Any) -> set[tuple[int, Any]]:
    """Columns by which a select joins along a relationship, which names its classes by itself."""
    steps = [step for joined in getattr(element, "_setup_joins", ()) for step in joined[:2]]
    relations = [step for step in steps if isinstance(step, QueryableAttribute)]
    return {
        (id(part), mapper)
        for relation in relations
        if isinstance(relation.property, RelationshipProperty)
        for part in surface_expressions(relation.__clause_element__())  # type: ignore[no-untyped-call]
        for mapper in (relation.property.parent, relation.property.mapper)
    }


def stands_for(element: Any, mapper: Mapper[Any]) -> bool:
    """Whether a table or column is there for our own class; only then SQLAlchemy narrows it to the actor's rows."""
    entity = getattr(element, "_annotations", {}).get("parententity")
    return getattr(entity, "mapper", None) is mapper


def of_the_gate(option: LoaderCriteriaOption) -> bool:
    """Whether a criterion beside the statement is one of the gate's own."""
    criterion = option.where_criteria
    return OURS in getattr(criterion, "_annotations", {})


def loose(statement: Any) -> str | None:
    """What keeps a statement over protected tables from giving whole objects only; None where nothing does."""
    if not isinstance(statement, Select):
        return "a bulk write"
    for described in statement.column_descriptions:
        wanted = described["expr"]
        while isinstance(wanted, Label):
            wanted = wanted.element
        if isinstance(wanted, count):
            continue
        if isinstance(wanted, ScalarSelect) and only_counts(wanted.element):
            continue
        if inspect(wanted, raiseerr=False) is None or not (
            isinstance(inspect(wanted), Mapper) or getattr(inspect(wanted), "is_aliased_class", False)
        ):
            return LOOSE
    return None


def only_counts(statement: Any) -> bool:
    """Whether a subquery gives nothing but a number of rows."""
    wanted = [described["expr"] for described in getattr(statement, "column_descriptions", ())]
    return bool(wanted) and all(isinstance(expression, count) for expression in wanted)


def verdict_on(statement: Any) -> Verdict:
    """The verdict on a statement's shape, remembered by SQLAlchemy's own cache key."""
    key = statement._generate_cache_key()
    if key is None:
        return walk(statement)
    verdict = _verdicts.get(key.key)
    if verdict is None:
        if len(_verdicts) > 2000:
            _verdicts.clear()
        verdict = _verdicts[key.key] = walk(statement)
    return verdict
