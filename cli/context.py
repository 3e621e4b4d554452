"""What every command is given: the options that are common to all."""

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

Output = Literal["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The global options. Times are in seconds; `timeout_s` None is no limit. `store_is_default`: none was named.

    `quiet` is an option of commands that are runs: no progress is shown, and of the result only the last line.
    """

    store: str
    store_is_default: bool
    store_options: dict[str, Any]
    timeout_s: float | None
    connect_timeout_s: float
    output: Output
    debug: bool
    quiet: bool = False

    def quieted(self, *, quiet: bool) -> "Context":
        """The same options with `quiet`."""
        return replace(self, quiet=quiet)


def chosen_store(option: str | None) -> str | None:
    """The store that somebody chose: with an option, or with `$DIST_STORE`."""
    return os.environ.get("DIST_STORE") or None if option is None else option


def default_store() -> str:
    """A place among the user's data (XDG)."""
    from platformdirs import user_data_path

    return str(user_data_path("prefect-dist", appauthor=False) / "store")
