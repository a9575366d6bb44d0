"""WHAT IS TRUE: tables, constraints, and the rules about one row. Imports nothing of ours."""

from models import (
    access,
    audit,
    clinical,
    figures,
    hl7,
    imports,
    lab,
    notes,
    organization,
    patients,
    prescriptions,
    scheduling,
)

__all__ = [
    "access",
    "audit",
    "clinical",
    "figures",
    "hl7",
    "imports",
    "lab",
    "notes",
    "organization",
    "patients",
    "prescriptions",
    "scheduling",
]
