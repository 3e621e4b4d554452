"""The layers import each other in one direction only. The tests read every import of the source.

The order is ocispec <- storage <- remotes <- transfer <- mirror <- tasks <- flows <- cli.
"""

import importlib
import re
import sys
import tomllib
from functools import cache
from importlib import metadata

import pytest

from tests import source
from tests.source import LAYERS, ROOT, TOP, Import, layer_of

BELOW: dict[str, set[str]] = {
    "ocispec": set(),
    "storage": {"ocispec"},
    "remotes": {"ocispec", "storage"},
    "transfer": {"ocispec", "storage", "remotes"},
    "mirror": {"ocispec", "storage", "remotes", "transfer"},
    "tasks": {"ocispec", "storage", "remotes", "transfer", "mirror"},
    "flows": {"ocispec", "storage", "remotes", "transfer", "mirror", "tasks"},
    "cli": {"ocispec", "storage", "remotes", "transfer", "mirror", "tasks", "flows"},
    TOP: {"flows", "mirror", "ocispec", "transfer"},
}
MODULES = source.read_modules()
PREFECT_FREE = ("ocispec", "storage", "remotes", "transfer", "mirror")
# This module is the process of the Prefect server. No module imports it.
SERVER = "prefect_dist.cli._server"
# The client of Prefect raises the errors of httpx. This module names these errors for the others.
PREFECT_CLIENT = "prefect_dist.flows.api"
# A dotted name, up to the first part that starts with an underscore.
PRIVATE = re.compile(r"(?:[^_.][^.]*\.)*_[^.]*")
# `flows` submits the tasks that `tasks` binds to Prefect. No other layer needs this binding.
SHARED_PRIVATE = {("flows", "prefect_dist.tasks._task")}
# Modules that import packages of the extra `s3`.
NEEDS_S3 = {"prefect_dist.storage.roles"}
NEVER_IMPORTED = {"fastapi", "sqlalchemy"}  # pyproject.toml has the reasons
FOLDERS = ("benchmarks", "examples", "fuzz", "scripts", "tests")


@cache
def imports_of(module: str) -> list[Import]:
    return list(source.find_imports(MODULES[module]))


def module_of(target: str) -> str | None:
    """Return the module of this package that an import loads, or None."""
    return next((name for name in (target, target.rpartition(".")[0]) if name in MODULES), None)


def find_loaded_packages(module: str, *, deferred: bool) -> set[str]:
    """Return the top-level packages that a module imports, directly or not. With `deferred`, include imports in functions."""
    seen: set[str] = set()
    roots: set[str] = set()
    waiting = {module, f"{TOP}.{layer_of(module)}"}
    while waiting:
        seen.add(name := waiting.pop())
        followed = [found for found in imports_of(name) if deferred or not found.deferred]
        roots.update(found.root for found in followed)
        ours = {own for found in followed if (own := module_of(found.target))}
        waiting |= (ours | {f"{TOP}.{layer_of(own)}" for own in ours if own != TOP}) - seen
    return roots


@cache
def distributions_by_package() -> dict[str, list[str]]:
    return {name: [canonical_name(d) for d in dists] for name, dists in metadata.packages_distributions().items()}


def canonical_name(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def distribution_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return canonical_name(match[0])


def required_distributions(extra: str | None = None) -> set[str]:
    """Return the distributions that pyproject.toml requires, in general or for an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {distribution_of(requirement) for requirement in requirements}


def third_party_imports() -> dict[str, set[str]]:
    """Return each imported third-party package, with the modules that import the package."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        for name in {imported.root for imported in imports_of(module)} - {TOP, *sys.stdlib_module_names}:
            found.setdefault(name, set()).add(module)
    return found


def test_the_tests_read_every_layer() -> None:
    assert {layer_of(module) for module in MODULES} == {*LAYERS, TOP} == set(BELOW)
    assert {f"{TOP}.ocispec.errors", f"{TOP}.storage.store", f"{TOP}.remotes.registry", f"{TOP}.flows.pool"} <= MODULES.keys()


def test_the_package_has_a_symbolic_link_to_each_layer() -> None:
    for name in LAYERS:
        link = ROOT / TOP / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"


def test_no_layer_imports_a_higher_layer() -> None:
    up = [
        f"{module} imports {found.target}"
        for module in MODULES
        for found in imports_of(module)
        if found.layer is not None and found.layer not in {layer_of(module), *BELOW[layer_of(module)]}
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


def test_imports_are_absolute_and_do_not_import_tests_or_scripts() -> None:
    wrong = [(module, found.target) for module in MODULES for found in imports_of(module) if found.root in ("", *FOLDERS)]
    assert wrong == []


def test_no_layer_imports_a_private_name_of_another_layer() -> None:
    taken = [(layer_of(module), found) for module in MODULES for found in imports_of(module)]
    private = {
        (user, match[0])
        for user, found in taken
        if found.layer not in (None, user) and (match := PRIVATE.match(found.target)) is not None
    }
    assert private <= SHARED_PRIVATE


@pytest.mark.parametrize("name", PREFECT_FREE)
def test_no_layer_below_tasks_imports_prefect(name: str) -> None:
    modules = [module for module in MODULES if layer_of(module) == name]
    assert len(modules) > 1
    assert [module for module in modules if "prefect" in find_loaded_packages(module, deferred=True)] == []


def test_modules_of_the_command_line_import_prefect_only_inside_functions() -> None:
    modules = [module for module in MODULES if layer_of(module) == "cli" and module != SERVER]
    found = [
        (module, one.target) for module in modules for one in imports_of(module) if one.root == "prefect" and not one.deferred
    ]
    assert found == []


def test_the_start_of_the_command_line_loads_no_prefect() -> None:
    assert {"cyclopts", TOP} <= (loaded := find_loaded_packages(f"{TOP}.cli.main", deferred=False))
    assert "prefect" not in loaded


def test_no_module_imports_the_server_process() -> None:
    assert [module for module in MODULES if SERVER in {found.target for found in imports_of(module)}] == []


def test_only_remotes_imports_http_clients() -> None:
    others = [module for module in MODULES if layer_of(module) != "remotes" and module != PREFECT_CLIENT]
    assert [module for module in others if {"httpx", "urllib3"} & {found.root for found in imports_of(module)}] == []


@pytest.mark.parametrize("name", LAYERS)
def test_exported_names_of_a_layer_are_sorted_and_exist(name: str) -> None:
    loaded = importlib.import_module(f"{TOP}.{name}")
    names: list[str] = getattr(loaded, "__all__", [])
    assert names == sorted(set(names))
    assert [one for one in names if not hasattr(loaded, one)] == []
    assert {found.target.rpartition(".")[2] for found in imports_of(f"{TOP}.{name}")} == set(names)


def test_pyproject_requires_each_imported_package() -> None:
    for name, modules in third_party_imports().items():
        distributions = set(distributions_by_package().get(name, []))
        assert distributions, f"{name}, imported by {sorted(modules)}, is not installed"
        extra = required_distributions("s3") if modules <= NEEDS_S3 else set()
        assert distributions & (required_distributions() | extra), f"{name}, imported by {sorted(modules)}"


def test_modules_that_need_an_extra_are_imported_only_inside_functions() -> None:
    assert MODULES.keys() >= NEEDS_S3
    eager = [
        name for name in MODULES for found in imports_of(name) if module_of(found.target) in NEEDS_S3 and not found.deferred
    ]
    assert eager == []


def test_each_required_package_is_imported() -> None:
    imported = {distribution for name in third_party_imports() for distribution in distributions_by_package().get(name, [])}
    assert required_distributions() - NEVER_IMPORTED <= imported
    assert required_distributions() >= NEVER_IMPORTED
    assert not NEVER_IMPORTED & third_party_imports().keys()
