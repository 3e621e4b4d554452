"""Documents, schema and examples agree with the code about the configuration of a mirror."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from prefect_dist.mirror.config import load
from prefect_dist.mirror.sections import Options
from scripts import mirror_schema
from tests.mirror.test_config import FULL

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"
SCHEMA: dict[str, Any] = json.loads(mirror_schema.schema())
SECTIONS = {
    "The file": "",
    "store": "StoreSection",
    "registries": "MirrorRegistry",
    "creds": "Creds",
    "sync": "SyncEntry",
    "tags": "Tags",
    "rename": "RenameRule",
    "gate": "GateSection",
    "prune": "PruneSection",
    "defaults": "Defaults",
    "seed": "SeedSection",
}
OPTIONS = {field.alias for field in Options.model_fields.values()}
EXAMPLES = ["mirror.yaml", "regsync.yaml"]


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HUB_USER", "HUB_TOKEN", "MIRROR_PASSWORD", "SYNC_PASSWORD"):
        monkeypatch.setenv(name, "topsecret")


def chapter(document: str, title: str) -> str:
    parts = re.split(r"^## (.+)$", (DOCS / document).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def keys(text: str) -> list[str]:
    """Return the keys in the first column of the tables in a text."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return [key for cell in cells for key in re.findall(r"`([^`]+)`", cell)]


def properties(section: str) -> dict[str, Any]:
    found: dict[str, Any] = (SCHEMA["$defs"][section] if section else SCHEMA)["properties"]
    return found


def test_the_schema_is_current() -> None:
    assert mirror_schema.PATH.read_text() == mirror_schema.schema(), "make schema"


def test_the_schema_describes_each_key() -> None:
    names = ["", *(name for name in SCHEMA["$defs"] if "properties" in SCHEMA["$defs"][name])]
    missing = [(name, key) for name in names for key, field in properties(name).items() if "description" not in field]
    assert [(name, key) for name, key in missing if "$ref" not in properties(name)[key]] == []


@pytest.mark.parametrize(("title", "section"), SECTIONS.items())
def test_the_reference_lists_exactly_the_keys_of_the_schema(title: str, section: str) -> None:
    documented = [key for key in keys(chapter("reference/configuration.md", title)) if re.fullmatch("[a-zA-Z]+", key)]
    wanted = set(properties(section)) - (OPTIONS if title in ("defaults", "seed") else set())
    assert sorted(documented) == sorted(wanted)


def test_the_guide_lists_each_key_without_effect() -> None:
    idle = {
        key for name in ("Defaults", "SyncEntry", "Creds") for key, field in properties(name).items() if field.get("deprecated")
    }
    assert sorted(keys(chapter("how-to/from-regsync.md", "What has no effect"))) == sorted(idle)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_load(name: str) -> None:
    mirror = load(str(TOP / "examples" / name))
    assert mirror.entries
    assert "topsecret" not in repr(mirror)
    assert [line.partition(": ")[2].partition(":")[0] for line in mirror.warnings] == (
        ["defaults.ratelimit", "sync[1].fastCheck", "defaults.interval"] if name == "regsync.yaml" else []
    )


@pytest.mark.parametrize("document", ["reference/configuration.md", "how-to/from-regsync.md", "how-to/from-skopeo-sync.md"])
def test_examples_in_documents_load(document: str, tmp_path: Path) -> None:
    for text in re.findall(r"```yaml\n(.*?)```", (DOCS / document).read_text(), re.DOTALL):
        path = tmp_path / "mirror.yaml"
        path.write_text(re.sub(r"/run/secrets/\w+", str(tmp_path / "secret"), text))
        (tmp_path / "secret").write_text("topsecret")
        assert load(str(path)).entries


@pytest.mark.parametrize("text", [FULL, *((TOP / "examples" / name).read_text() for name in EXAMPLES)])
def test_the_schema_accepts_valid_configurations(text: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(json.dumps(yaml.safe_load(text), default=str)), SCHEMA)


@pytest.mark.parametrize(
    "text", ["syncs: []", "sync: [{source: a, target: b, type: repo}]", "seed: {images: [a]}", "store: [a]"]
)
def test_the_schema_rejects_invalid_configurations(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), SCHEMA)
