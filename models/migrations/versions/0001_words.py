"""Extensions, and the functions that fold names and phones for searching"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# unaccent() is only STABLE because its dictionary could be changed; naming the dictionary makes
# the promise that an index needs (PostgreSQL manual, "unaccent", and its FAQ on immutable wrappers).
FUNCTIONS = """
CREATE FUNCTION wb_fold(words text) RETURNS text LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN lower(public.unaccent('public.unaccent'::regdictionary, words));

CREATE FUNCTION wb_names(family text, second_family text, given text, name_in_use text, other_names jsonb)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT public.wb_fold(concat_ws(' ', nullif(family, ''), nullif(second_family, ''), nullif(given, ''),
    nullif(name_in_use, ''),
    (SELECT string_agg(concat_ws(' ', n->>'family', n->>'text',
       (SELECT string_agg(g, ' ') FROM jsonb_array_elements_text(n->'given') AS g)), ' ')
     FROM jsonb_array_elements(other_names) AS n)))
$$;

CREATE FUNCTION wb_phones(telecom jsonb) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT coalesce(string_agg(regexp_replace(t->>'value', '[^0-9]', '', 'g'), ' '), '')
  FROM jsonb_array_elements(telecom) AS t WHERE t->>'system' IN ('phone', 'sms', 'fax')
$$;
"""


def upgrade() -> None:
    for extension in ("pg_trgm", "unaccent", "btree_gist"):
        op.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
    op.execute(FUNCTIONS)
    op.execute("CREATE SEQUENCE patient_mrn START 1000001")


def downgrade() -> None:
    op.execute("DROP SEQUENCE patient_mrn")
    op.execute("DROP FUNCTION wb_phones(jsonb)")
    op.execute("DROP FUNCTION wb_names(text, text, text, text, jsonb)")
    op.execute("DROP FUNCTION wb_fold(text)")
