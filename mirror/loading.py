"""Loads the configuration of a mirror run from a file, a URL, a Prefect block or text."""

import re
from pathlib import Path

from prefect_dist.mirror import yamlfile
from prefect_dist.mirror.config import Mirror, Parser, find_config_in_use, parse_mirror
from prefect_dist.mirror.locations import BLOCK
from prefect_dist.mirror.resources import BlockReader

# The name in messages of a configuration that is the text of a parameter and has no name.
_TEXT = "configuration"
_NAME = re.compile(r"^name:[ \t]*([A-Za-z0-9][A-Za-z0-9._-]*)[ \t]*(?:#.*)?$", re.MULTILINE)


def load_config(config: str, blocks: BlockReader, parse: Parser = parse_mirror) -> Mirror:
    """Return the configuration in `block:NAME`, a path, a URL, or the text itself.

    A command that starts a run in its own process has read the configuration already: see `mirror.config.use_config`.

    Raises:
        InvalidInput: the configuration is invalid or missing.
        Denied, Unavailable: an error of the file system of a URL.
    """
    if (known := find_config_in_use(config)) is not None:
        return known
    if _is_text(config):
        return parse(yamlfile.parse_yaml(config.encode(), _TEXT, is_file=False))
    if config.startswith(BLOCK):
        text = blocks.read_configuration(config.removeprefix(BLOCK))
        return parse(yamlfile.parse_yaml(text.encode(), config, is_file=False))
    return parse(yamlfile.read(config))


def display_name(config: str) -> str:
    """Return the name of a configuration for messages, before it is read."""
    if not _is_text(config):
        return Path(config.removeprefix(BLOCK)).stem
    said = _NAME.search(config)
    return said[1] if said else _TEXT


def _is_text(config: str) -> bool:
    return "\n" in config or config.lstrip().startswith("{")
