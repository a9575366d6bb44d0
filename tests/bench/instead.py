"""The same web server with another way to record what was seen, or none: the difference is what ours costs or saves.

`python -m tests.bench.instead nothing|plain|chained`, with the environment of a web process. For the bench only: the
product has no such switch.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import psycopg

import run
from app import trail
from app.actor import Actor

KINDS = ("nothing", "plain", "chained")
INSERT = "INSERT INTO naive_event SELECT * FROM json_populate_recordset(NULL::naive_event, %s::json)"
CHAIN = "SELECT naive_chain(%s::json)"
"""The same, each line with a digest of itself and of the line before it, under a lock on the last one."""
SETTING_UP = """
DROP TABLE IF EXISTS naive_event, naive_head;
DROP FUNCTION IF EXISTS naive_chain;
CREATE TABLE naive_event (LIKE audit_event INCLUDING CONSTRAINTS INCLUDING INDEXES) PARTITION BY RANGE (recorded);
ALTER TABLE naive_event DROP COLUMN batch_seq, DROP COLUMN leaf_no, ADD COLUMN chain bytea;
CREATE TABLE naive_head (id int PRIMARY KEY, hash bytea NOT NULL);
INSERT INTO naive_head VALUES (1, '');
CREATE FUNCTION naive_chain(lines json) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  head bytea;
  line naive_event;
BEGIN
  SELECT hash INTO head FROM naive_head WHERE id = 1 FOR UPDATE;
  FOR line IN SELECT * FROM json_populate_recordset(NULL::naive_event, lines) LOOP
    head := sha256(head || convert_to(line::text, 'UTF8'));
    line.chain := head;
    INSERT INTO naive_event SELECT line.*;
  END LOOP;
  UPDATE naive_head SET hash = head WHERE id = 1;
END $$;
"""
"""One call and one commit a request, and the lock is held for no round trip: as good as this way can be."""

_mine = threading.local()


def inserting(statement: str) -> Any:
    """A `Trail.write` that inserts the lines and commits, on a connection that each thread keeps."""
    url = os.environ["DATABASE_URL"].replace("+psycopg", "")

    def write(_self: trail.Trail, actor: Actor, events: list[dict[str, Any]]) -> None:
        if not hasattr(_mine, "database"):
            _mine.database = psycopg.connect(url, autocommit=True)
        who = trail.agent(actor)
        _mine.database.execute(statement, [trail.encode([{**who, **line} for line in events]).decode()])

    return write


def application() -> Any:
    """What gunicorn serves."""
    kind = os.environ["BENCH_INSTEAD"]
    if kind == "nothing":
        trail.Trail.write = lambda self, actor, events: None  # type: ignore[method-assign]
    else:
        trail.Trail.write = inserting(INSERT if kind == "plain" else CHAIN)  # type: ignore[method-assign]
    return made()


made = run.application

if __name__ == "__main__":
    os.environ["BENCH_INSTEAD"] = sys.argv[1]
    run.application = application
    sys.exit(run.main(["serve"]))
