"""Count the size and the indirection of the source: `make figures`.

    python -m scripts.figures            the figures of the syntax trees and of the traces
    python -m scripts.figures --static   without the traces

A module counts in a trace if one of its functions is called outside of imports. The traced image has two platforms, in a fake
registry on loopback.
"""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.fakes.registry import FakeRegistry
from tests.images import image, index, load
from tests.source import ROOT, read_modules

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_FEW_STATEMENTS, _FEW_LINES = 2, 6
_TIMEOUT_S = 180


def main() -> None:
    """Print each figure on a line."""
    modules = read_modules()
    paths = [ROOT / f"{name.replace('.', '/')}.py" for name in modules]
    paths = [path if path.exists() else path.with_suffix("") / "__init__.py" for path in paths]
    functions = [(name, node) for name, tree in modules.items() for node in _walk(tree)]
    show("lines", sum(count_lines(path) for path in paths))
    show("modules", len(modules))
    show("functions", len(functions))
    show("functions of at most two statements", sum(len(_body(node)) <= _FEW_STATEMENTS for _, node in functions))
    show("functions referenced once, of at most six lines", sum(1 for _ in find_small_single_use(modules)))
    show("pure forwards", sum(is_forward(node) for _, node in functions))
    show("ContextVars", sum(_calls(tree, "ContextVar") for tree in modules.values()))
    show("memo classes", len({ast.unparse(kind) for tree in modules.values() for kind in _memo_kinds(tree)}))
    show("lines of tests", sum(count_lines(path) for path in (ROOT / "tests").rglob("*.py")))
    if "--static" not in sys.argv:
        print_traces()


def show(measure: str, value: object) -> None:
    """Print a figure."""
    print(f"{measure:<55}{value:>10}", flush=True)


def count_lines(path: Path) -> int:
    """Return the number of lines of a file."""
    return path.read_text().count("\n")


def find_small_single_use(modules: dict[str, ast.Module]) -> Iterator[str]:
    """Yield the functions of at most six lines that the source mentions once.

    Commands, validators and other decorated functions, methods of protocols and special methods are left out: others call them.
    """
    mentions = Counter(
        name
        for tree in modules.values()
        for node in ast.walk(tree)
        if (name := node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None)
    )
    for module, tree in modules.items():
        abstract = {
            child
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)
            for child in node.body
        }
        for node in _walk(tree):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            others = node in abstract or node.name.startswith("__") or any(not _is_plain(item) for item in node.decorator_list)
            if not others and lines <= _FEW_LINES and mentions[node.name] == 1:
                yield f"{module}.{node.name}"


def is_forward(node: _Function) -> bool:
    """Return whether the body is one call whose arguments are names or attributes."""
    body = _body(node)
    if len(body) != 1 or not isinstance(body[0], ast.Return | ast.Expr) or not isinstance(body[0].value, ast.Call):
        return False
    call = body[0].value
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    return all(
        isinstance(value.value if isinstance(value, ast.Starred) else value, ast.Name | ast.Attribute) for value in values
    )


def print_traces() -> None:
    """Run the commands under a profiler, and print the modules on their way."""
    with tempfile.TemporaryDirectory() as directory, FakeRegistry() as fake:
        built = index([image(1), image(2, platform="linux/arm64")])
        load(fake, "team/app", built, "v1")
        home = Path(directory)
        reference = f"{fake.host}/team/app:v1"
        config = home / "mirror.yaml"
        target = f"{fake.host}/copy/app"
        config.write_text(f"version: 1\nsync:\n- source: {fake.host}/team/app\n  target: {target}\n  type: repository\n")
        environment = os.environ | {"PREFECT_HOME": str(home / "prefect"), "DIST_SERVER_IDLE": "60s"}
        environment.pop("PREFECT_API_URL", None)
        try:
            for measure, arguments in (
                ("fetch", ["fetch", reference]),
                ("fetch --direct", ["fetch", reference, "--direct"]),
                ("mirror", ["mirror", str(config)]),
                ("mirror --direct", ["mirror", str(config), "--direct"]),
            ):
                store, result = home / f"store {measure}", home / "result.json"
                target_options = ["--store", str(store)]
                config.write_text(config.read_text().replace("copy/app", f"copy/{measure.replace(' ', '')}/app"))
                argv = [sys.executable, "-m", "scripts.traced", str(result), *target_options, *arguments]
                subprocess.run(argv, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=_TIMEOUT_S)
                found = json.loads(result.read_text())
                show(f"modules with a called function: {measure}", len(found["modules"]))
                if measure == "fetch":
                    show("modules with a called function: a blob in its task", found["blob"])
        finally:
            stop = [sys.executable, "-m", "prefect_dist.cli.main", "server", "stop", "--force"]
            subprocess.run(stop, cwd=ROOT, env=environment, check=False, capture_output=True, timeout=_TIMEOUT_S)


def _walk(tree: ast.AST) -> Iterator[_Function]:
    return (node for node in ast.walk(tree) if isinstance(node, _Function))


def _body(node: _Function) -> list[ast.stmt]:
    return node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body


def _is_plain(decorator: ast.expr) -> bool:
    return ast.unparse(decorator) in {"property", "staticmethod", "classmethod", "cached_property"}


def _calls(tree: ast.AST, name: str) -> int:
    return sum(isinstance(node, ast.Call) and ast.unparse(node.func) == name for node in ast.walk(tree))


def _memo_kinds(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "memo":
            yield node.args[0]


if __name__ == "__main__":
    main()
