"""Write docs/reference/mirror.schema.json, with which editors check and complete the configuration of a mirror."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prefect_dist.mirror.sections import MirrorFile

PATH = Path(__file__).parents[1] / "docs" / "reference" / "mirror.schema.json"


def schema() -> str:
    """Return the JSON Schema of a configuration, as the text of the file."""
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema_of(MirrorFile),
        "title": "The configuration of a mirror",
    }
    return json.dumps(document, indent=2) + "\n"


def schema_of(section: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a section."""
    found: dict[str, Any] = _plain(section.model_json_schema())
    return found


def _plain(part: Any) -> Any:
    """Return a part of the schema of pydantic without titles and unusable defaults, and with the keys `x-` of sections."""
    if isinstance(part, list):
        return [_plain(item) for item in part]
    if not isinstance(part, dict):
        return int(part) if isinstance(part, float) and part.is_integer() else part  # versions of pydantic differ
    plain = {key: _plain(value) for key, value in part.items() if not (key == "title" and isinstance(value, str))}
    # The keys of a section have the defaults of the section. The default of a duration is a number of seconds, which a file
    # may not have.
    default = plain.get("default")
    if isinstance(default, dict | list) or default is None or (plain.get("type") == "string" and not isinstance(default, str)):
        plain.pop("default", None)
    if plain.get("additionalProperties") is True:
        del plain["additionalProperties"]
    if plain.get("additionalProperties") is False:
        plain["patternProperties"] = {"^x-": {}}
    return plain


if __name__ == "__main__":
    PATH.write_text(schema())
