"""WHAT IS TRUE: tables, constraints, and the rules about one row. Imports nothing of ours."""

from models import audit, clinical, imports, lab, organization, patients, prescriptions

__all__ = ["audit", "clinical", "imports", "lab", "organization", "patients", "prescriptions"]
