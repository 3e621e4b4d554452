"""Writes docs/reference/mirror.schema.json, by which editors check and complete the configuration of a mirror."""

import json
from pathlib import Path
from typing import Any

from prefect_dist.mirror.sections import MirrorFile

PATH = Path(__file__).parents[1] / "docs" / "reference" / "mirror.schema.json"


def schema() -> str:
    """The schema of what `mirror.sections` checks, as the file has it."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_plain(MirrorFile.model_json_schema()),
        "title": "The configuration of a mirror",
    }
    return json.dumps(document, indent=2) + "\n"


def _plain(part: Any) -> Any:
    """A part of pydantic's schema without what says nothing to people, and with what our sections allow beside it."""
    if isinstance(part, list):
        return [_plain(one) for one in part]
    if not isinstance(part, dict):
        return int(part) if isinstance(part, float) and part.is_integer() else part  # versions of pydantic differ
    told = {key: _plain(value) for key, value in part.items() if not (key == "title" and isinstance(value, str))}
    # A section's own defaults are told with its keys, and those of durations are seconds, which nobody may write.
    default = told.get("default")
    if isinstance(default, dict | list) or default is None or (told.get("type") == "string" and not isinstance(default, str)):
        told.pop("default", None)
    if told.get("additionalProperties") is True:
        del told["additionalProperties"]
    if told.get("additionalProperties") is False:
        told["patternProperties"] = {"^x-": {}}
    return told


if __name__ == "__main__":
    PATH.write_text(schema())
