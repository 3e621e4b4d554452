"""What every command is given: the options that are common to all."""

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

Output = Literal["text", "json"]
Origin = Literal["option", "environment", "default"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The global options. Times are in seconds; `timeout_s` None is no limit. `store_from` says where the store was named.

    `quiet` is an option of commands that are runs: no progress is shown, and of the result only the last line.
    """

    store: str
    store_from: Origin
    store_options: dict[str, Any]
    timeout_s: float | None
    connect_timeout_s: float
    output: Output
    debug: bool
    quiet: bool = False

    def with_quiet(self, *, quiet: bool) -> "Context":
        """The same options with `quiet`."""
        return replace(self, quiet=quiet)


def choose_store(option: str | None) -> tuple[str, Origin]:
    """The store of the option, else of `$DIST_STORE`, else a directory among the user's data (XDG)."""
    if option is not None:
        return option, "option"
    if named := os.environ.get("DIST_STORE"):
        return named, "environment"
    from platformdirs import user_data_path

    return str(user_data_path("prefect-dist", appauthor=False) / "store"), "default"
