"""Scheduling's functions as 0007 makes them now, for databases that were made before they were mended"""

import re
from importlib import import_module

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MENDED = ("wb_book_appointment", "wb_book_offer", "wb_appointment_history", "wb_free_times")


def upgrade() -> None:
    rules: str = import_module("models.migrations.versions.0007_scheduling").RULES
    op.execute(
        "DROP FUNCTION IF EXISTS wb_free_times(bigint, int, bigint[], bigint[], bigint, bigint, timestamptz, "
        "timestamptz, timestamptz, bigint, int)"
    )
    for name in MENDED:
        (found,) = re.findall(rf"CREATE FUNCTION {name}\(.*?^END \$\$;", rules, re.S | re.M)
        op.execute(found.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1))
    op.execute("REVOKE ALL ON FUNCTION wb_book_appointment(), wb_book_offer(), wb_appointment_history() FROM PUBLIC")


def downgrade() -> None:
    """What 0007 makes now is what there is."""
