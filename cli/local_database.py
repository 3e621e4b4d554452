"""Creates the database of a new local server from a schema in this package, which takes no time.

Prefect's migrations of an empty database take 7 s of CPU time, more than the rest of the start. Prefect only adds migrations at
the end of their chain. So the schema at a revision is the same for all versions of Prefect that have the revision, and Prefect
applies the later migrations to the schema. `scripts/prefect_schema.py` writes the schema, and a test compares it with the
migrations.
"""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

SCHEMA = Path(__file__).with_name("prefect_schema.sql")
_REVISION = re.compile(r"INSERT INTO alembic_version VALUES \('(\w+)'\)")


def create_database(path: Path, migrations: Path) -> bool:
    """Create an SQLite database for Prefect. `migrations` is the directory of Prefect's migrations.

    Returns False if the file exists, or if Prefect does not have the revision of the schema: Prefect then creates the database.

    Raises:
        sqlite3.Error: the file cannot be written.
    """
    script = SCHEMA.read_text()
    found = _REVISION.search(script)
    if found is None or path.exists() or not list(migrations.glob(f"*_{found[1]}_*.py")):
        return False
    try:
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript(f"BEGIN EXCLUSIVE;\n{script}COMMIT;")
    except sqlite3.Error:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        raise
    return True
