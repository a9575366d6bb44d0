"""The trail's tree: every line has its place in a batch, every batch a signed checkpoint"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

RULES = """
ALTER TABLE audit_batch ALTER COLUMN leaves SET STORAGE EXTERNAL;
CREATE TRIGGER audit_batch_is_final BEFORE UPDATE OR DELETE ON audit_batch
  FOR EACH ROW EXECUTE FUNCTION wb_refuse();
CREATE TRIGGER audit_batch_is_kept BEFORE TRUNCATE ON audit_batch
  FOR EACH STATEMENT EXECUTE FUNCTION wb_refuse();
CREATE VIEW audit_astray AS SELECT id FROM audit_event_default;

-- It acts as the owner for whoever calls it: no name in it may mean a temporary table of theirs, and no number too much.
CREATE OR REPLACE FUNCTION wb_audit_partitions(months int) RETURNS void LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  first date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
  month date;
BEGIN
  FOR i IN 0..least(months, 12) LOOP
    month := first + make_interval(months => i);
    IF to_regclass(format('public.audit_event_%s', to_char(month, 'YYYYMM'))) IS NULL THEN
    -- Lines of a coming month in the default partition, from a clock that was wrong, keep only that month there.
    BEGIN
      EXECUTE format(
        'CREATE TABLE public.audit_event_%s PARTITION OF public.audit_event FOR VALUES FROM (%L) TO (%L)',
        to_char(month, 'YYYYMM'), month::text || ' 00:00:00+00',
        (month + interval '1 month')::date::text || ' 00:00:00+00');
    EXCEPTION WHEN check_violation THEN
      RAISE WARNING 'the default partition holds lines of %', to_char(month, 'YYYY-MM');
    END;
    END IF;
  END LOOP;
END $$;
CREATE TRIGGER audit_archive_is_final BEFORE UPDATE OR DELETE ON audit_archive
  FOR EACH ROW EXECUTE FUNCTION wb_refuse();
"""


def upgrade() -> None:
    op.create_table(
        "audit_batch",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("tree_size", sa.BigInteger(), nullable=False),
        sa.Column("leaves", sa.LargeBinary(), nullable=False),
        sa.Column("frontier", sa.LargeBinary(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.CheckConstraint("n > 0 AND length(leaves) = 32 * n", name="audit_batch_leaves"),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("tree_size"),
    )
    op.create_table(
        "audit_archive",
        sa.Column("month", sa.Date(), nullable=False),
        sa.Column("file", sa.String(), nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("leaves", postgresql.INT8MULTIRANGE(), nullable=False),
        sa.Column("archived_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("archived_by", sa.String(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("month"),
    )
    for name in ("batch_seq", "leaf_no"):
        kind = sa.BigInteger() if name == "batch_seq" else sa.Integer()
        op.add_column("audit_event", sa.Column(name, kind, server_default=sa.text("0"), nullable=False))
        op.alter_column("audit_event", name, server_default=None)
    op.create_index(
        "audit_event_in_batch",
        "audit_event",
        ["batch_seq"],
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32},
    )
    op.create_index(
        "audit_event_of_emergency", "audit_event", ["recorded"], postgresql_where=sa.text("purpose = 'BTG'")
    )
    op.create_index("audit_event_refused", "audit_event", ["recorded"], postgresql_where=sa.text("outcome > 0"))
    op.create_index("audit_quarantine_source", "audit_quarantine", ["source"])
    op.execute(RULES)


def downgrade() -> None:
    op.execute("DROP VIEW audit_astray")
    op.execute("ALTER FUNCTION wb_audit_partitions(int) SECURITY INVOKER RESET search_path")
    op.drop_index("audit_event_refused", "audit_event")
    op.drop_index("audit_quarantine_source", "audit_quarantine")
    op.drop_index("audit_event_of_emergency", "audit_event")
    op.drop_index("audit_event_in_batch", "audit_event")
    op.drop_column("audit_event", "leaf_no")
    op.drop_column("audit_event", "batch_seq")
    op.drop_table("audit_archive")
    op.drop_table("audit_batch")
