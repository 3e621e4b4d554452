"""Loads the configuration of a mirror run. Parameters of the run take precedence over the configuration."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import get_run_logger

from prefect_dist.flows.blocks import load_configuration, load_credentials
from prefect_dist.flows.parameters import Network, session_spec
from prefect_dist.mirror import yamlfile
from prefect_dist.mirror.config import Mirror, Parser, find_config_in_use, parse_mirror
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.transfer.session import SessionSpec

# The name in messages of a configuration that is the text of a parameter and has no name.
_TEXT = "configuration"
_NAME = re.compile(r"^name:[ \t]*([A-Za-z0-9][A-Za-z0-9._-]*)[ \t]*(?:#.*)?$", re.MULTILINE)


def read(config: str, parse: Parser = parse_mirror) -> Mirror:
    """Return a configuration from `block:NAME`, a path, a URL or its text.

    Raises:
        InvalidInput: the configuration is invalid or missing.
        Denied, Unavailable: an error of the file system of a URL.
    """
    if _is_text(config):
        return parse(yamlfile.parse_yaml(config.encode(), _TEXT, is_file=False))
    text = load_configuration(config)
    document = yamlfile.read(config) if text is None else yamlfile.parse_yaml(text.encode(), config, is_file=False)
    return parse(document)


def load_run_config(
    config: str,
    store: str | None,
    store_options: Mapping[str, Any],
    network: Network | None,
    *,
    parse: Parser = parse_mirror,
) -> tuple[Mirror, SessionSpec]:
    """Return a configuration and the specification of the run's session. Log the warnings of the configuration.

    A command that starts a run in its own process has read the configuration already: see `mirror.config.use_config`.

    Raises:
        InvalidInput: the configuration is invalid, or no store is given.
        Denied, Unavailable: see `read`.
    """
    wanted = find_config_in_use(config) or read(config, parse)
    for warning in wanted.warnings:
        get_run_logger().warning("%s", warning)
    return wanted, mirror_session_spec(wanted, store, store_options, network)


def display_name(config: str) -> str:
    """Return the name of a configuration for messages, before it is read."""
    if not _is_text(config):
        return Path(config.removeprefix("block:")).stem
    said = _NAME.search(config)
    return said[1] if said else _TEXT


def _is_text(config: str) -> bool:
    return "\n" in config or config.lstrip().startswith("{")


def mirror_session_spec(
    wanted: Mirror, store: str | None, store_options: Mapping[str, Any], network: Network | None
) -> SessionSpec:
    """Return the specification of the session of a mirror run.

    Raises:
        InvalidInput: no store is given; or see `flows.parameters.session_spec`.
    """
    place = store or wanted.store
    if place is None:
        raise InvalidInput(f"{wanted.path}: store: missing; set it to a path or URL, or set the parameter store of the run")
    configured = wanted.store_options if store is None else {}  # options in the file are those of its own store
    spec = session_spec(place, dict(store_options), network, configured=configured)
    given = spec.registries.hosts
    hosts = replace(given, named={**wanted.hosts.named, **given.named}, advice=wanted.hosts.advice or given.advice)
    blocks = load_credentials(wanted.credential_blocks) if wanted.credential_blocks else {}
    return replace(
        spec,
        registries=replace(spec.registries, hosts=hosts),
        credentials={**wanted.credentials, **blocks, **spec.credentials},
        ways=(*([] if wanted.way is None else [wanted.way]), *spec.ways),
    )
