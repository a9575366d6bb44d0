"""Watching the trail: checks of it, months in it, and access that is unusual"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

RULES = """
CREATE VIEW audit_month AS
  SELECT to_date(right(c.relname, 6), 'YYYYMM') AS month
  FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
  WHERE i.inhparent = 'audit_event'::regclass AND c.relname ~ '^audit_event_[0-9]{6}$';

-- What a check came to is not said again differently, nor what was found of an unusual access.
CREATE TRIGGER audit_check_is_final BEFORE UPDATE ON audit_check
  FOR EACH ROW WHEN (OLD.finished_at IS NOT NULL) EXECUTE FUNCTION wb_refuse();
CREATE TRIGGER audit_check_is_kept BEFORE DELETE ON audit_check FOR EACH ROW EXECUTE FUNCTION wb_refuse();

CREATE FUNCTION wb_unusual_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE'
    OR (NEW.user_id, NEW.patient_id, NEW.day, NEW.reason)
      IS DISTINCT FROM (OLD.user_id, OLD.patient_id, OLD.day, OLD.reason)
    OR OLD.reviewed_at IS NOT NULL AND (NEW.reviewed_at, NEW.reviewed_by_id, NEW.finding, NEW.review_note)
      IS DISTINCT FROM (OLD.reviewed_at, OLD.reviewed_by_id, OLD.finding, OLD.review_note) THEN
    RAISE EXCEPTION 'the review of an unusual access is never rewritten' USING ERRCODE = 'restrict_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER unusual_access_is_final BEFORE UPDATE OR DELETE ON unusual_access
  FOR EACH ROW EXECUTE FUNCTION wb_unusual_is_final();
INSERT INTO unusual_scan (id, batch, scanned_at) VALUES (1, 0, now());
"""


def upgrade() -> None:
    op.create_table(
        "audit_check",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("asked_by_id", sa.Integer(), nullable=True),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("beat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("whole", sa.Boolean(), nullable=True),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.CheckConstraint("whole IS NULL OR finished_at IS NOT NULL", name="audit_check_ends_with_a_finding"),
        sa.ForeignKeyConstraint(["asked_by_id"], ["ab_user.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "audit_check_one",
        "audit_check",
        [sa.text("(finished_at IS NULL)")],
        unique=True,
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_table(
        "unusual_access",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=True),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen", postgresql.JSONB(), nullable=False),
        sa.Column("patients", sa.Integer(), nullable=True),
        sa.Column("usual", sa.Float(), nullable=True),
        sa.Column("found_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("reviewed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reviewed_by_id", sa.Integer(), nullable=True),
        sa.Column("finding", sa.String(length=16), nullable=True),
        sa.Column("review_note", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.CheckConstraint(
            "reason IN ('own', 'family', 'confidential', 'no-care', 'volume')", name="unusual_access_reason"
        ),
        sa.CheckConstraint("(reason = 'volume') = (patient_id IS NULL)", name="unusual_access_whose"),
        sa.CheckConstraint("finding IN ('explained', 'not-explained')", name="unusual_access_finding"),
        sa.CheckConstraint(
            "(reviewed_at IS NULL) = (reviewed_by_id IS NULL) AND (reviewed_at IS NULL) = (finding IS NULL)",
            name="unusual_access_review_whole",
        ),
        sa.CheckConstraint("reviewed_by_id <> user_id", name="unusual_access_reviewed_by_another"),
        sa.ForeignKeyConstraint(["patient_id"], ["patient.id"]),
        sa.ForeignKeyConstraint(["reviewed_by_id"], ["ab_user.id"]),
        sa.ForeignKeyConstraint(["user_id"], ["ab_user.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(
            "user_id", "patient_id", "day", "reason", name="unusual_access_once", postgresql_nulls_not_distinct=True
        ),
    )
    op.create_index(
        "unusual_access_waiting",
        "unusual_access",
        ["user_id", "day"],
        postgresql_where=sa.text("reviewed_at IS NULL"),
    )
    op.create_index(
        "unusual_access_reviewed",
        "unusual_access",
        ["reviewed_at"],
        postgresql_where=sa.text("reviewed_at IS NOT NULL"),
    )
    op.create_table(
        "unusual_day",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("patients", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["ab_user.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("user_id", "day"),
    )
    op.create_table(
        "unusual_scan",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.Column("scanned_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("audit_batch_stored", "audit_batch", ["stored_at"])
    op.add_column("patient", sa.Column("confidential", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.execute(RULES)


def downgrade() -> None:
    op.execute("DROP VIEW audit_month")
    op.drop_column("patient", "confidential")
    op.drop_index("audit_batch_stored", "audit_batch")
    op.drop_table("unusual_scan")
    op.drop_table("unusual_day")
    op.drop_table("unusual_access")
    op.execute("DROP FUNCTION wb_unusual_is_final()")
    op.drop_table("audit_check")
