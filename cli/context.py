"""What every command is given: the options that are common to all."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from remotes import RegistrySettings

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

    def registry_settings(self, *, plain_http: bool) -> "RegistrySettings":
        """How this command reaches registries."""
        from remotes import RegistrySettings

        return RegistrySettings(plain_http=plain_http, connect_timeout_s=self.connect_timeout_s)


def default_store() -> str:
    """`$DIST_STORE`, or a place among the user's data (XDG)."""
    if chosen := os.environ.get("DIST_STORE"):
        return chosen
    from platformdirs import user_data_path

    return str(user_data_path("prefect-dist", appauthor=False) / "store")
