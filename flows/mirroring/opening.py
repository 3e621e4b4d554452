"""What a run of a mirror is opened from: its configuration, and beside it what the run was told, which wins."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefect import get_run_logger

from flows.blocks import credentials_in
from flows.mirroring.config import Dialect, Mirror, load
from flows.parameters import Network, session_spec
from ocispec.errors import InvalidInput
from tasks.session import SessionSpec


def opened(
    config: str,
    store: str | None,
    store_options: Mapping[str, Any],
    network: Network | None,
    *,
    dialect: Dialect = "dist",
    to: Sequence[str] = (),
) -> tuple[Mirror, SessionSpec]:
    """The configuration in a file, whose warnings go to the run's log, and what the run's session is opened from.

    Raises:
        InvalidInput: the file is wrong, or nobody says which store.
    """
    wanted = load(config, dialect, to=to)
    for warning in wanted.warnings:
        get_run_logger().warning("%s", warning)
    return wanted, specified(wanted, store, store_options, network)


def specified(wanted: Mirror, store: str | None, store_options: Mapping[str, Any], network: Network | None) -> SessionSpec:
    """What the session of a run is opened from.

    Raises:
        InvalidInput: nobody says which store; or see `flows.parameters.session_spec`.
    """
    place = store or wanted.store
    if place is None:
        raise InvalidInput(f"{wanted.path}: store: missing, and the run was given none; say where images are kept on their way")
    spec = session_spec(place, dict(store_options or wanted.store_options), network)
    given = spec.registries.hosts
    hosts = replace(given, named={**wanted.hosts.named, **given.named})
    blocks = credentials_in(wanted.credential_blocks) if wanted.credential_blocks else {}
    return replace(
        spec,
        registries=replace(spec.registries, hosts=hosts),
        credentials={**wanted.credentials, **blocks, **spec.credentials},
    )
