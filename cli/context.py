"""What every command is given: the options that are common to all."""

import os
from dataclasses import dataclass
from typing import Any, Literal

Output = Literal["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The global options. Times are in seconds; `timeout_s` None is no limit."""

    store: str
    store_options: dict[str, Any]
    timeout_s: float | None
    connect_timeout_s: float
    output: Output
    debug: bool


def default_store() -> str:
    """`$DIST_STORE`, or a place among the user's data (XDG)."""
    if chosen := os.environ.get("DIST_STORE"):
        return chosen
    from platformdirs import user_data_path

    return str(user_data_path("prefect-dist", appauthor=False) / "store")
