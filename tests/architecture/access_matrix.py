"""The access matrix as a text, so that a change of access shows in review.

`python -m tests.architecture.access_matrix` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from app import policy

COMMITTED = Path(__file__).with_name("access-matrix.txt")
LETTERS = {"read": "r", "create": "c", "update": "u", "delete": "d"}


def columns() -> dict[str, dict[str, policy.Grant]]:
    """Every role and service, with what it is granted."""
    roles = {str(role): grants for role, grants in policy.MATRIX.items()}
    return {**roles, **{f"service:{name}": grants for name, grants in policy.SERVICES.items()}}


def rendered() -> str:
    """One line a resource and role: what may be done, with which rows, and without which fields."""
    lines = [
        "What each role and service may do: r read, c create, u update, d delete.",
        "Written by `python -m tests.architecture.access_matrix`.",
    ]
    for name, grants in columns().items():
        rights = policy.combine({name: policy.shipped(grants)}) if name in policy.MATRIX else None
        lines += ["", name]
        for resource in policy.RESOURCES:
            grant = grants.get(resource)
            if grant is None:
                continue
            actions = "".join(letter if action in grant.actions else "-" for action, letter in LETTERS.items())
            rows = rights.rows.get(resource, policy.chain) if rights else grant.rows
            masked = rights.masked.get(resource, frozenset()) if rights else grant.masked
            line = f"  {resource:<20}{actions}  {rows.__name__}"
            lines.append(line + (f", without {', '.join(sorted(masked))}" if masked else ""))
    lines += ["", "Never, whatever the role pages say"]
    for (action, resource), taboo in policy.NEVER:
        lines.append(f"  whoever may {action} {resource} has nothing on {', '.join(taboo)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    COMMITTED.write_text(rendered())
