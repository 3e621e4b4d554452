"""The links, commands, keys, messages and examples of the documentation exist in the repository."""

import ast
import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from prefect_dist.cli.app import app
from prefect_dist.mirror.config import load
from scripts import reference

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", TOP / "CHANGELOG.md", *sorted((TOP / "docs").rglob("*.md"))]
FLOWS = ("fetch", "pull", "push", "copy", "mirror", "seed", "check", "verify", "gc")
LAYERS = ("ocispec", "storage", "remotes", "transfer", "mirror", "tasks", "flows", "cli")
SOURCES = [path for layer in LAYERS for path in (TOP / layer).rglob("*.py")]
# The page, the language and the text of each block.
BLOCKS = [
    (page, *block)
    for page in PAGES
    for block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL)
]


def page_name(page: Path) -> str:
    return page.relative_to(TOP).as_posix()


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_keys(text: str) -> list[str]:
    """Return the names in the first column of the tables in a text."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return [key for cell in cells for key in re.findall(r"`([^`]+)`", cell)]


def chapters(page: Path) -> dict[str, str]:
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def literal_texts(path: Path) -> set[str]:
    """Return the texts of a module. A newline replaces each placeholder of a formatted text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.add("".join(str(part.value) if isinstance(part, ast.Constant) else "\n" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def is_in_package(name: str) -> bool:
    """Return True for a module of the package, and for a function in such a module."""
    module, _, attribute = f"prefect_dist.{name}".rpartition(".")
    return find_spec(module) is not None and (
        find_spec(f"{module}.{attribute}") is not None if is_package(module) else hasattr(import_module(module), attribute)
    )


def is_package(module: str) -> bool:
    spec = find_spec(module)
    return spec is not None and spec.submodule_search_locations is not None


def test_the_reference_has_every_command_of_dist() -> None:
    manual = (TOP / "docs" / "reference" / "cli.md").read_text()

    assert not [name for name in app if not name.startswith("-") and f"dist {name}" not in manual]


@pytest.mark.parametrize("page", reference.PAGES, ids=page_name)
def test_the_tables_of_the_reference_are_current(page: Path) -> None:
    assert page.read_text() == reference.render(page.read_text()), "make reference"


def test_every_command_and_flow_has_its_table() -> None:
    commands = {app[name].name[0] for name in app if not name.startswith("-")}
    tables = {table for page in reference.PAGES for table in re.findall(r"<!-- generated: (\w+ \S+) -->", page.read_text())}

    assert {f"command {name}" for name in commands} | {f"flow {name}" for name in FLOWS} <= tables


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_of_a_page_leads_to_an_existing_file_and_heading(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text())
    targets = [(page.parent / path if path else page, anchor) for path, anchor in links]

    assert not [str(path) for path, _ in targets if not path.exists()]
    assert not [(path.name, anchor) for path, anchor in targets if anchor and anchor not in anchors_of(path)]


def test_the_readme_links_to_every_page() -> None:
    readme = (TOP / "README.md").read_text()
    pages = [page_name(page) for page in PAGES if page.is_relative_to(TOP / "docs") and "adr" not in page.parts]

    assert not [page for page in pages if f"({page})" not in readme]


def test_the_readme_has_the_commands_make_demo_and_make_test() -> None:
    readme = (TOP / "README.md").read_text()

    assert "$ make demo" in readme
    assert "$ make test" in readme


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_source_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"`([a-z_]+/[a-z0-9_/]+\.py)`", page.read_text())

    assert not [path for path in named if not (TOP / path).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "dev"], ids=page_name)
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    pattern = rf"`((?:{'|'.join(LAYERS)})\.[a-z_.]+)(?:\.[A-Z]\w*)?`"

    assert not [name for name in re.findall(pattern, page.read_text()) if not is_in_package(name)]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", page.read_text())) <= targets


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_of_dist_that_a_page_shows_exists(page: Path) -> None:
    shown = re.findall(r"(?:`|^\$ |^)dist (?:--?[a-z-]+ [^ -]\S* )*([a-z][a-z-]+)", page.read_text(), re.MULTILINE)
    prose = {"uses", "treats", "runs", "is", "does", "needs"}

    assert not {name for name in shown if name not in app} - prose


@pytest.mark.parametrize("file", ["prefect.yaml", "docs/how-to/library.md"])
def test_the_entrypoint_of_every_deployment_is_a_flow(file: str) -> None:
    from prefect import Flow

    entrypoints = re.findall(r"entrypoint: (\S+)\.(\w+)", (TOP / file).read_text())

    assert entrypoints
    assert all(isinstance(getattr(import_module(module), name), Flow) for module, name in entrypoints)


@pytest.mark.parametrize("name", FLOWS)
def test_the_reference_has_every_parameter_of_a_flow(name: str) -> None:
    flow = getattr(import_module(f"prefect_dist.flows.{name}"), name)
    rows = re.findall(r"^\| `(\w+)` \|", chapters(TOP / "docs" / "reference" / "flows.md")[name], re.MULTILINE)

    assert rows == list(flow.parameters.properties)


@pytest.mark.parametrize("name", FLOWS)
def test_the_command_of_a_flow_has_every_option_in_the_table_of_the_flow(name: str) -> None:
    cells = re.findall(r"^\| `\w+` \|.*\| ([^|]+) \|$", chapters(TOP / "docs" / "reference" / "flows.md")[name], re.MULTILINE)
    shown = {option for cell in cells for option in re.findall(r"--[a-z][a-z-]*", cell)}
    commands = (app[name], app.meta)
    real = {option for command in commands for one in command.assemble_argument_collection() for option in one.names}

    assert shown
    assert shown <= real


def test_the_reference_has_every_key_of_the_parameter_network() -> None:
    from prefect_dist.flows.parameters import Network

    rows = re.findall(r"^\| `(\w+)` \|", chapters(TOP / "docs" / "reference" / "flows.md")["network"], re.MULTILINE)

    assert rows == list(Network.model_fields)


def test_the_reference_has_every_key_of_the_hosts_file() -> None:
    from prefect_dist.mirror.hosts_file import Registry

    keys = table_keys((TOP / "docs" / "reference" / "hosts-file.md").read_text())

    assert sorted(keys) == sorted(str(field.alias) for field in Registry.model_fields.values())


def test_the_reference_has_every_key_of_a_lock_file() -> None:
    from datetime import UTC, datetime

    from prefect_dist.mirror.lock import Locked
    from prefect_dist.ocispec import Digest

    digest = Digest.parse("sha256:" + 64 * "0")
    record = Locked(source="a", digest=digest, mirrored=datetime.now(UTC), own=True, replaces=digest, related=()).to_json()

    assert sorted(table_keys((TOP / "docs" / "reference" / "lock-file.md").read_text())) == sorted(record)


def test_the_reference_has_every_environment_variable_that_the_code_reads() -> None:
    read = {
        name
        for path in SOURCES
        for name in re.findall(r"""environb?(?:\.get\(|\[)b?["']([A-Z_]+)["']""", path.read_text())
        if not name.startswith("PREFECT__")
    }

    assert read
    assert read <= set(table_keys((TOP / "docs" / "reference" / "environment.md").read_text()))


def test_the_code_has_every_message_of_the_page_troubleshoot() -> None:
    page = TOP / "docs" / "how-to" / "troubleshoot.md"
    messages = re.findall(r"^### `(.+)`$", page.read_text(), re.MULTILINE)
    texts = set().union(*map(literal_texts, SOURCES))
    patterns = [re.compile("\n".join(map(re.escape, message.split("…")))) for message in messages]

    assert messages
    assert not [pattern.pattern for pattern in patterns if not any(pattern.search(text) for text in texts)]


@pytest.mark.parametrize(
    ("page", "text"),
    [(page, text) for page, language, text in BLOCKS if language == "yaml"],
    ids=lambda value: str(value)[-12:],
)
def test_every_yaml_block_is_valid_and_every_mirror_configuration_loads(
    page: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = list(yaml.safe_load_all(text))

    assert documents
    assert all(isinstance(document, dict) for document in documents)
    if any(key in document for document in documents for key in ("sync", "seed")):
        for name in re.findall(r'\{\{env "(\w+)"', text):
            monkeypatch.setenv(name, "secret")
        secret = tmp_path / "secret"
        secret.write_text("secret")
        file = tmp_path / "mirror.yaml"
        file.write_text(re.sub(r"/run/secrets/\w+", str(secret), text))
        assert load(str(file)).entries, page


@pytest.mark.parametrize("text", [text for _, language, text in BLOCKS if language == "json"])
def test_every_json_block_is_valid_json(text: str) -> None:
    assert json.loads(text)


@pytest.mark.parametrize("text", [text for _, language, text in BLOCKS if language == "python"])
def test_every_python_block_is_valid_python(text: str) -> None:
    assert ast.parse(text).body
