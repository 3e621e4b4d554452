"""Reads the source files of the package without running them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TOP = "prefect_dist"
LAYERS = ("ocispec", "storage", "remotes", "transfer", "mirror", "tasks", "flows", "cli")


class Import(NamedTuple):
    """An imported name, such as `prefect_dist.tasks.units.fetch`. `deferred` is true for an import inside a function."""

    target: str
    deferred: bool

    @property
    def root(self) -> str:
        """The top-level package."""
        return self.target.partition(".")[0]

    @property
    def layer(self) -> str | None:
        """The layer of the name, or None for another package."""
        return layer_of(self.target) if self.root == TOP else None


def layer_of(module: str) -> str:
    """Return the layer of a module. The layer of the package `prefect_dist` is `prefect_dist`."""
    return module.split(".")[1] if module.startswith(f"{TOP}.") else module


@cache
def read_modules() -> dict[str, ast.Module]:
    """Return the syntax tree of each module by the name of the module."""
    paths = [ROOT / TOP / "__init__.py", *sorted(path for name in LAYERS for path in (ROOT / name).rglob("*.py"))]
    return {_module_name(path): ast.parse(path.read_text(), str(path)) for path in paths}


def find_imports(node: ast.AST, *, deferred: bool = False) -> Iterator[Import]:
    """Yield every import below `node`."""
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, deferred) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        prefix = "." * node.level + (node.module or "")
        yield from (Import(f"{prefix}.{alias.name}", deferred) for alias in node.names)
    inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from find_imports(child, deferred=inside)


def find_subclasses(modules: dict[str, ast.Module], base: str) -> dict[str, str]:
    """Return the module of each subclass of the class `base`, by the name of the subclass."""
    found = {base: ""}
    classes = [(name, node) for name, tree in modules.items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while new := {node.name: module for module, node in classes if node.name not in found and _base_names(node) & found.keys()}:
        found |= new
    del found[base]
    return found


def _base_names(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).rpartition(".")[2] for base in node.bases}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == TOP else (TOP, *parts)).removesuffix(".__init__")
