"""Write cli/prefect_schema.sql: the SQLite schema of Prefect at the last migration of the oldest supported version.

The migrations of an empty database take 7 s of CPU time. A new local server begins with this schema, and Prefect applies the
later migrations (`cli.local_database`). Change `REVISION` together with the oldest version of Prefect in pyproject.toml.
"""

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import anyio.to_thread

# The head of Prefect 3.8.4: the last file of prefect/server/database/_migrations/versions/sqlite in that version.
REVISION = "f416ea180ae1"
FILE = Path(__file__).parents[1] / "cli" / "prefect_schema.sql"


def dump_schema(home: Path, revision: str) -> list[str]:
    """Migrate a new database in `home` up to a revision with the installed Prefect, and return the statements of its schema."""
    os.environ["PREFECT_HOME"] = str(home)
    from prefect.server.database.alembic_commands import alembic_upgrade  # noqa: PLC0415 - Prefect reads PREFECT_HOME when it is imported

    async def migrate() -> None:
        await anyio.to_thread.run_sync(alembic_upgrade, revision)

    anyio.run(migrate)
    return read_schema(home / "prefect.db")


def read_schema(database: Path) -> list[str]:
    """Return the statements that create the tables and indexes of a database, sorted by kind and name."""
    query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type = 'index', name"
    with closing(sqlite3.connect(database)) as found:
        return [sql for (sql,) in found.execute(query)]


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as home:
        statements = dump_schema(Path(home), REVISION)
    version = f"INSERT INTO alembic_version VALUES ('{REVISION}')"  # noqa: S608 - our own constant
    FILE.write_text("".join(f"{statement};\n" for statement in (*statements, version)))


if __name__ == "__main__":
    main()
