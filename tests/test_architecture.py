"""Imports point one way. Every import of the source is read.

The order is ocispec <- storage, remotes <- transfer <- mirror <- tasks <- flows <- cli.
"""

import importlib
import re
import sys
import tomllib
from functools import cache
from importlib import metadata

import pytest

from tests import source
from tests.source import LAYERS, ROOT, TOP, Import, layer

BELOW: dict[str, set[str]] = {
    "ocispec": set(),
    "storage": {"ocispec"},
    "remotes": {"ocispec"},
    "transfer": {"ocispec", "storage", "remotes"},
    "mirror": {"ocispec", "storage", "remotes", "transfer"},
    "tasks": {"ocispec", "storage", "remotes", "transfer", "mirror"},
    "flows": {"ocispec", "storage", "remotes", "transfer", "mirror", "tasks"},
    "cli": {"ocispec", "storage", "remotes", "transfer", "mirror", "tasks", "flows"},
    TOP: {"flows", "mirror", "ocispec", "transfer"},
}
MODULES = source.read()
PREFECT_FREE = ("ocispec", "storage", "remotes", "transfer", "mirror")
# A process of its own, which is Prefect's server and which no module imports.
SERVER = "prefect_dist.cli._server"
# Prefect's client raises the errors of httpx; this module names them for all others.
PREFECT_CLIENT = "prefect_dist.flows.api"
# A dotted name up to its first part that begins with an underscore.
PRIVATE = re.compile(r"(?:[^_.][^.]*\.)*_[^.]*")
# `flows` submits what `tasks` binds to Prefect; no other layer has to know how that is done.
SHARED_PRIVATE = {("flows", "prefect_dist.tasks._task")}
# Modules that import what only the extra `s3` installs.
NEEDS_S3 = {"prefect_dist.storage.roles"}
NEVER_IMPORTED = {"fastapi", "sqlalchemy"}  # pyproject.toml says why it is there
FOLDERS = ("benchmarks", "examples", "fuzz", "scripts", "tests")


@cache
def of(module: str) -> list[Import]:
    return list(source.imports(MODULES[module]))


def module_of(target: str) -> str | None:
    """Return the module of ours that an import loads, None for foreign ones."""
    return next((name for name in (target, target.rpartition(".")[0]) if name in MODULES), None)


def loaded_by(module: str, *, deferred: bool) -> set[str]:
    """Return the roots of everything that importing a module imports, with or without what its functions import later."""
    seen: set[str] = set()
    roots: set[str] = set()
    waiting = {module, f"{TOP}.{layer(module)}"}
    while waiting:
        seen.add(name := waiting.pop())
        followed = [found for found in of(name) if deferred or not found.deferred]
        roots.update(found.root for found in followed)
        ours = {own for found in followed if (own := module_of(found.target))}
        waiting |= (ours | {f"{TOP}.{layer(own)}" for own in ours if own != TOP}) - seen
    return roots


@cache
def providers() -> dict[str, list[str]]:
    return {name: [canonical(d) for d in dists] for name, dists in metadata.packages_distributions().items()}


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def named(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return canonical(match[0])


def declared(extra: str | None = None) -> set[str]:
    """The distributions that are required always, or with an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {named(requirement) for requirement in requirements}


def foreign() -> dict[str, set[str]]:
    """Return every third-party package that is imported, with the modules that import it."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        for name in {imported.root for imported in of(module)} - {TOP, *sys.stdlib_module_names}:
            found.setdefault(name, set()).add(module)
    return found


def test_every_layer_is_read() -> None:
    assert {layer(module) for module in MODULES} == {*LAYERS, TOP} == set(BELOW)
    assert {f"{TOP}.ocispec.errors", f"{TOP}.storage.store", f"{TOP}.remotes.registry", f"{TOP}.flows.pool"} <= MODULES.keys()


def test_the_package_links_to_each_layer() -> None:
    for name in LAYERS:
        link = ROOT / TOP / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"


def test_imports_point_down() -> None:
    up = [
        f"{module} imports {found.target}"
        for module in MODULES
        for found in of(module)
        if found.layer is not None and found.layer not in {layer(module), *BELOW[layer(module)]}
    ]
    assert up == []


def test_no_file_imports_a_layer_by_its_bare_name() -> None:
    bare = []
    for path in sorted(path for folder in (*LAYERS, *FOLDERS) for path in (ROOT / folder).rglob("*.py")):
        text = path.read_text()
        bare += [
            f"{path}: {line}" for line in re.findall(rf"^\s*(?:from|import) (?:{'|'.join(LAYERS)})\b.*", text, re.MULTILINE)
        ]
    assert bare == []


def test_imports_are_absolute_and_never_of_tests() -> None:
    wrong = [(module, found.target) for module in MODULES for found in of(module) if found.root in ("", *FOLDERS)]
    assert wrong == []


def test_private_names_stay_in_their_layer() -> None:
    taken = [(layer(module), found) for module in MODULES for found in of(module)]
    private = {
        (user, match[0])
        for user, found in taken
        if found.layer not in (None, user) and (match := PRIVATE.match(found.target)) is not None
    }
    assert private <= SHARED_PRIVATE


@pytest.mark.parametrize("name", PREFECT_FREE)
def test_layers_below_tasks_load_no_prefect(name: str) -> None:
    modules = [module for module in MODULES if layer(module) == name]
    assert len(modules) > 1
    assert [module for module in modules if "prefect" in loaded_by(module, deferred=True)] == []


def test_the_command_line_imports_prefect_inside_functions_only() -> None:
    modules = [module for module in MODULES if layer(module) == "cli" and module != SERVER]
    found = [(module, one.target) for module in modules for one in of(module) if one.root == "prefect" and not one.deferred]
    assert found == []


def test_the_command_line_starts_without_prefect() -> None:
    assert {"cyclopts", TOP} <= (loaded := loaded_by(f"{TOP}.cli.main", deferred=False))
    assert "prefect" not in loaded


def test_no_module_imports_the_server_process() -> None:
    assert [module for module in MODULES if SERVER in {found.target for found in of(module)}] == []


def test_only_remotes_know_http() -> None:
    others = [module for module in MODULES if layer(module) != "remotes" and module != PREFECT_CLIENT]
    assert [module for module in others if {"httpx", "urllib3"} & {found.root for found in of(module)}] == []


@pytest.mark.parametrize("name", LAYERS)
def test_exported_names_are_sorted_and_there(name: str) -> None:
    loaded = importlib.import_module(f"{TOP}.{name}")
    names: list[str] = getattr(loaded, "__all__", [])
    assert names == sorted(set(names))
    assert [one for one in names if not hasattr(loaded, one)] == []
    assert {found.target.rpartition(".")[2] for found in of(f"{TOP}.{name}")} == set(names)


def test_imported_packages_are_declared() -> None:
    for name, modules in foreign().items():
        distributions = set(providers().get(name, []))
        assert distributions, f"{name}, imported by {sorted(modules)}, is not installed"
        extra = declared("s3") if modules <= NEEDS_S3 else set()
        assert distributions & (declared() | extra), f"{name}, imported by {sorted(modules)}"


def test_modules_that_need_an_extra_are_only_imported_inside_functions() -> None:
    assert MODULES.keys() >= NEEDS_S3
    eager = [name for name in MODULES for found in of(name) if module_of(found.target) in NEEDS_S3 and not found.deferred]
    assert eager == []


def test_declared_packages_are_imported() -> None:
    imported = {distribution for name in foreign() for distribution in providers().get(name, [])}
    assert declared() - NEVER_IMPORTED <= imported
    assert declared() >= NEVER_IMPORTED
    assert not NEVER_IMPORTED & foreign().keys()
