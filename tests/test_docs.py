"""What the documents say is there, is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from prefect_dist.cli.app import app

TOP = Path(__file__).parents[1]
DOCUMENTS = [TOP / "README.md", TOP / "CONTRIBUTING.md", *sorted((TOP / "docs").rglob("*.md"))]


def test_every_command_is_in_the_manual() -> None:
    manual = (TOP / "docs" / "reference" / "cli.md").read_text()

    assert not [name for name in app if not name.startswith("-") and f"dist {name}" not in manual]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_is_linked_to_exists(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())

    assert not [link for link in links if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_source_file_that_is_named_exists(document: Path) -> None:
    named = re.findall(r"`([a-z_]+/[a-z0-9_/]+\.py)`", document.read_text())

    assert not [path for path in named if not (TOP / path).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (TOP / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"(?:`|\$ )make ([a-z]+)", document.read_text())) <= targets


def test_every_entrypoint_of_a_deployment_is_a_flow() -> None:
    from prefect import Flow

    entrypoints = re.findall(r"entrypoint: (\S+)\.(\w+)", (TOP / "prefect.yaml").read_text())

    assert entrypoints
    assert all(isinstance(getattr(import_module(module), name), Flow) for module, name in entrypoints)
