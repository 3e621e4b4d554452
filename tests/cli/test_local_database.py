"""The schema with which a new local server begins is that of Prefect's own migrations."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from prefect_dist.cli.local_database import SCHEMA, create_database
from scripts.prefect_schema import REVISION, read_schema

PREFECT = find_spec("prefect")
assert PREFECT is not None
assert PREFECT.origin is not None
MIGRATIONS = Path(PREFECT.origin).parent / "server" / "database" / "_migrations" / "versions" / "sqlite"
_MIGRATE = """
import sys
from pathlib import Path
from scripts.prefect_schema import dump_schema
dump_schema(Path(sys.argv[1]), "head")
"""


def migrate(home: Path) -> list[list[str]]:
    """Apply all migrations of the installed Prefect to the database in `home`, and return its schema.

    Each statement is a sorted list of lines: the migrations write the constraints of a table in random order.
    """
    home.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-c", _MIGRATE, home], env={**os.environ, "PREFECT_LOGGING_LEVEL": "ERROR"}, check=True)
    return [sorted(line.strip(" ,") for line in sql.splitlines()) for sql in read_schema(home / "prefect.db")]


def test_later_migrations_lead_to_the_schema_of_all_migrations(tmp_path: Path) -> None:
    quick = tmp_path / "quick"
    quick.mkdir()

    assert create_database(quick / "prefect.db", MIGRATIONS)

    assert migrate(quick) == migrate(tmp_path / "slow")


def test_an_existing_database_is_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "prefect.db"
    path.touch()

    assert not create_database(path, MIGRATIONS)
    assert path.stat().st_size == 0


def test_without_the_revision_prefect_creates_the_database(tmp_path: Path) -> None:
    assert f"'{REVISION}'" in SCHEMA.read_text()

    assert not create_database(tmp_path / "prefect.db", tmp_path)
    assert not (tmp_path / "prefect.db").exists()


def test_a_database_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "prefect.db"

    with pytest.raises(Exception, match="unable to open database file"):
        create_database(path, MIGRATIONS)
