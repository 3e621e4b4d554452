"""Imports point one way: ocispec <- storage, remotes <- tasks <- flows <- cli. Every import of the source is read."""

import importlib
import re
import sys
import tomllib
from functools import cache
from importlib import metadata

import pytest

from tests import source
from tests.source import PACKAGES, ROOT, Import

BELOW: dict[str, set[str]] = {
    "ocispec": set(),
    "storage": {"ocispec"},
    "remotes": {"ocispec"},
    "tasks": {"ocispec", "storage", "remotes"},
    "flows": {"ocispec", "storage", "remotes", "tasks"},
    "cli": {"ocispec", "storage", "remotes", "tasks", "flows"},
}
MODULES = source.read()
PREFECT_FREE = sorted(
    {name for name in MODULES if name.partition(".")[0] in ("ocispec", "storage", "remotes")}
    | {"tasks.transfer", "tasks.session", "flows.config", "flows.golang", "flows.progress", "flows.report", "flows.sections"}
    | {"flows.templates", "flows.yamlfile"}
    | {f"flows.mirroring.{name}" for name in ("access", "config", "constraints", "entries", "entry", "naming", "schedule")}
    | {f"flows.mirroring.{name}" for name in ("sections", "selection", "semver", "skopeo")}
)
# A process of its own, which is Prefect's server and which nothing imports.
SERVER = "cli._server"
# Prefect's client raises the errors of httpx; this module names them for all others.
PREFECT_CLIENT = "flows.api"
# A dotted name up to its first part that begins with an underscore.
PRIVATE = re.compile(r"(?:[^_.][^.]*\.)*_[^.]*")
# `flows` submits what `tasks` binds to Prefect; nobody else has to know how that is done.
SHARED_PRIVATE = {("flows", "tasks._task")}
NEVER_IMPORTED = {"fastapi", "sqlalchemy"}  # pyproject.toml says why it is there


def of(module: str) -> list[Import]:
    return list(source.imports(MODULES[module]))


def root(module: str) -> str:
    return module.partition(".")[0]


def module_of(target: str) -> str | None:
    """The module of ours that an import loads, None for foreign ones."""
    return next((name for name in (target, target.rpartition(".")[0]) if name in MODULES), None)


def loaded_by(module: str, *, deferred: bool) -> set[str]:
    """The roots of everything that importing a module imports, with or without what its functions import later."""
    seen: set[str] = set()
    roots: set[str] = set()
    waiting = {module, root(module)}
    while waiting:
        seen.add(name := waiting.pop())
        followed = [found for found in of(name) if deferred or not found.deferred]
        roots.update(found.root for found in followed)
        ours = {own for found in followed if (own := module_of(found.target))}
        waiting |= (ours | {root(own) for own in ours}) - seen
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


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {named(requirement) for requirement in project["dependencies"]}


def foreign() -> dict[str, set[str]]:
    """Every third-party package that is imported, with the modules that import it."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        for name in {imported.root for imported in of(module)} - {*PACKAGES, *sys.stdlib_module_names}:
            found.setdefault(name, set()).add(module)
    return found


def test_every_package_is_read() -> None:
    assert {root(module) for module in MODULES} == set(PACKAGES) == set(BELOW)
    assert {"ocispec.errors", "storage.store", "remotes.registry", "flows.walk", *PREFECT_FREE} <= MODULES.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    up = [
        found.target
        for found in of(module)
        if found.root in PACKAGES and found.root not in {root(module), *BELOW[root(module)]}
    ]
    assert up == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute_and_never_of_tests(module: str) -> None:
    assert [found.target for found in of(module) if found.root in ("", "tests", "examples", "benchmarks", "scripts")] == []


@pytest.mark.parametrize("module", MODULES)
def test_private_names_stay_in_their_package(module: str) -> None:
    taken = [found.target for found in of(module) if found.root in PACKAGES and found.root != root(module)]
    private = {(root(module), match[0]) for target in taken if (match := PRIVATE.match(target))}
    assert private <= SHARED_PRIVATE


@pytest.mark.parametrize("module", PREFECT_FREE)
def test_what_is_below_prefect_does_not_load_it(module: str) -> None:
    assert "prefect" not in loaded_by(module, deferred=True)


@pytest.mark.parametrize("module", [module for module in MODULES if root(module) == "cli" and module != SERVER])
def test_the_command_line_imports_prefect_inside_functions_only(module: str) -> None:
    assert [found.target for found in of(module) if found.root == "prefect" and not found.deferred] == []


def test_the_command_line_starts_without_prefect() -> None:
    assert {"cyclopts", "ocispec"} <= (loaded := loaded_by("cli.main", deferred=False))
    assert "prefect" not in loaded


def test_the_server_process_is_imported_by_nobody() -> None:
    assert [module for module in MODULES if SERVER in {found.target for found in of(module)}] == []


@pytest.mark.parametrize("module", [module for module in MODULES if root(module) != "remotes" and module != PREFECT_CLIENT])
def test_only_remotes_know_http(module: str) -> None:
    assert {"httpx", "urllib3"}.isdisjoint(found.root for found in of(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_exported_names_are_sorted_and_there(package: str) -> None:
    loaded = importlib.import_module(package)
    names: list[str] = getattr(loaded, "__all__", [])
    assert names == sorted(set(names))
    assert [name for name in names if not hasattr(loaded, name)] == []
    assert {found.target.rpartition(".")[2] for found in of(package)} == set(names)


@pytest.mark.parametrize(("name", "modules"), sorted(foreign().items()))
def test_what_is_imported_is_declared(name: str, modules: set[str]) -> None:
    distributions = set(providers().get(name, []))
    assert distributions, f"{name}, imported by {sorted(modules)}, is not installed"
    assert distributions & declared(), f"{name}, imported by {sorted(modules)}"


@pytest.mark.parametrize("dependency", sorted(declared() - NEVER_IMPORTED))
def test_what_is_declared_is_imported(dependency: str) -> None:
    assert dependency in {distribution for name in foreign() for distribution in providers().get(name, [])}


@pytest.mark.parametrize("dependency", sorted(NEVER_IMPORTED))
def test_what_is_declared_for_another_stays_unused(dependency: str) -> None:
    assert dependency in declared()
    assert dependency not in foreign()
