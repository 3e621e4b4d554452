"""The keys of `--output json`: the keys in docs/reference/json.md, and the keys of documents."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_DESCRIPTOR = {"mediaType", "digest", "size"}
_DESCRIPTOR_TOO = {"urls", "annotations", "data", "artifactType", "platform"}

Keys = dict[tuple[str, str], set[str]]


def read_documented_keys() -> tuple[Keys, set[tuple[str, str]]]:
    """Return the documented keys of each object of each command, and the objects whose row is for several commands."""
    manual = (Path(__file__).parents[2] / "docs" / "reference" / "json.md").read_text()
    keys, shared = defaultdict[tuple[str, str], set[str]](set), set[tuple[str, str]]()
    for names, place, named in re.findall(r"^\| (`[^|]+`) \| `([^`]+)` \| (.+) \|$", manual, re.MULTILINE):
        commands = re.findall(r"`([^`]+)`", names)
        for command in commands:
            keys[command, place] |= set(re.findall(r"`([^`]+)`", named))
            shared |= {(command, place)} if len(commands) > 1 else set()
    return dict(keys), shared


def find_objects(document: Any, at: str = ".") -> Iterator[tuple[str, set[str]]]:
    """Yield the place, as in the table, and the keys of each object except descriptors, which the OCI specification defines."""
    if isinstance(document, list):
        for item in document:
            yield from find_objects(item, f"{at}[]")
    elif isinstance(document, dict):
        if document.keys() >= _DESCRIPTOR:
            assert document.keys() <= _DESCRIPTOR | _DESCRIPTOR_TOO
            return
        keyed_by_host = at.endswith(".quotas")
        if not keyed_by_host:
            yield at, set(document)
        for key, value in document.items():
            yield from find_objects(value, f"{at}[]" if keyed_by_host else f"{at.removesuffix('.')}.{key}")
