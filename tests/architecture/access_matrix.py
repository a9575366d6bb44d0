"""The access matrix in writing, so that a change of access shows in review.

`python -m tests.architecture.access_matrix` writes it anew: access-matrix.txt here, and docs/access.md for people.
"""

from __future__ import annotations

from pathlib import Path

from app import policy
from models.codes import RowScope

COMMITTED = Path(__file__).with_name("access-matrix.txt")
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "access.md"
LETTERS = {"read": "r", "create": "c", "update": "u", "delete": "d"}
ROWS = {
    RowScope.CHAIN: "",
    RowScope.OWN_BRANCH: "own branch",
    RowScope.CARE_TEAM: "in their care",
    RowScope.OWN: "made by themselves",
    RowScope.SELF: "their own",
}


def columns() -> dict[str, dict[str, policy.Grant]]:
    """Every role and service, with what it is granted."""
    roles = {str(role): grants for role, grants in policy.MATRIX.items()}
    return {**roles, **{f"service:{name}": grants for name, grants in policy.SERVICES.items()}}


def letters(grant: policy.Grant) -> str:
    """What may be done, a letter each."""
    return "".join(letter if action in grant.actions else "-" for action, letter in LETTERS.items())


def rendered() -> str:
    """One line a resource and role: what may be done, with which rows, of which kinds, and without which fields."""
    lines = [
        "What each role and service may do: r read, c create, u update, d delete.",
        "Written by `python -m tests.architecture.access_matrix`.",
    ]
    for name, grants in columns().items():
        rights = policy.combine({name: grants})
        lines += ["", name]
        for resource in policy.RESOURCES:
            if resource not in grants:
                continue
            actions = "".join(x if rights.may(action, resource) else "-" for action, x in LETTERS.items())
            reach = {r for action in LETTERS for r in rights.reach.get((action, resource), ())} or {policy.EVERYTHING}
            rows = " or ".join(sorted(" and ".join(sorted(each.scopes)) or "chain" for each in reach))
            line = f"  {resource:<20}{actions}  {rows}"
            if kinds := {kind for each in reach for kind in each.kinds or ()}:
                line += f", only {', '.join(sorted(kinds))}"
            if masked := {field for action in LETTERS for field in rights.hidden(resource, action)}:
                line += f", without {', '.join(sorted(masked))}"
            lines.append(line)
    lines += [
        "",
        "Never, whatever the role pages say",
        f"  whoever may {', '.join(sorted({action for action, _ in policy.CONFIGURES}))} Role has nothing on "
        f"{', '.join(policy.NOTES)}, nor {', '.join(policy.NARRATIVE)} of DiagnosticReport",
        "  Patient reaches self only",
        "  nobody changes their own roles or gives more to a role they hold, and somebody remains who may update Role and User",
    ]
    return "\n".join(lines) + "\n"


def cell(grant: policy.Grant | None) -> str:
    """A grant in a table cell: letters, then rows, kinds and hidden fields in words."""
    if grant is None:
        return ""
    said = [f"**{letters(grant).replace('-', '')}**", ROWS[grant.rows]]
    said.append("only " + ", ".join(sorted(grant.kinds)) if grant.kinds else "")
    said.append("without " + ", ".join(f"`{field}`" for field in sorted(grant.masked)) if grant.masked else "")
    return " ".join(part for part in said if part)


def document() -> str:
    """The shipped matrix as a page of the documentation."""
    roles = list(policy.MATRIX)
    lines = [
        "# Who may do what",
        "",
        "The matrix Wardbook ships with. An administrator edits it on the page *What roles may do*; it counts from everybody's",
        "next click. **r** see, **c** add, **u** change, **d** remove; an empty cell is nothing. Unless a cell says otherwise the",
        "rows are those of the whole chain. Written by `python -m tests.architecture.access_matrix` from `app/policy.py`.",
        "",
        "| | " + " | ".join(policy.SPOKEN[role] for role in roles) + " |",
        "|---" * (len(roles) + 1) + "|",
    ]
    for resource in policy.RESOURCES:
        cells = [cell(policy.MATRIX[role].get(resource)) for role in roles]
        lines.append(f"| {resource} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "## What no administrator can grant away",
        "",
        f"- Whoever may configure roles sees nothing of {', '.join(policy.NOTES)}, nor the narrative of a report, whatever further",
        "  roles they hold. The two are refused together in one role and through several roles of one person.",
        "- The Patient role reaches the patient's own record only.",
        "- Nobody changes their own roles, or gives more to a role they hold.",
        "- Somebody remains who can configure roles and accounts.",
        "- Whoever only opens accounts makes no administrator, and changes none.",
        "- Nobody deletes a record or writes the trail: there is no such permission to give.",
        "",
        "The gate keeps the first two for every request; the database refuses the first four when a change is committed, whoever",
        "makes it (own roles are known to the gate only).",
        "",
        "What this cannot keep: an administrator can open an account for somebody who sees notes, and whoever holds its password",
        "is that person to Wardbook. Opening it is in the trail, with its roles, and so is every password that is set.",
        "",
        "## Services",
        "",
        "What the application does by itself acts under a name of its own:",
        "",
        "| Service | May |",
        "|---|---|",
    ]
    for name, grants in policy.SERVICES.items():
        said = ", ".join(f"{resource} {letters(grant).replace('-', '')}" for resource, grant in grants.items())
        lines.append(f"| {name} | {said or 'nothing'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    COMMITTED.write_text(rendered())
    DOCUMENT.write_text(document())
