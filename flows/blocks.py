"""Blocks: what Prefect keeps for flows by name, secrets encrypted; `prefect block register -m flows.blocks` shows them."""

from typing import Any, cast

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import Field

from ocispec.errors import InvalidInput
from storage.options import refuse_secrets

_PREFIX = "block:"


class ContentStore(Block):
    """Where a content store is, and what its file system needs to be let in."""

    _block_type_name = "Content Store"
    _block_type_slug = "content-store"
    _description = "Where images are stored: a path or fsspec URL, with the options and secrets of its file system."

    url: str = Field(description="A path or fsspec URL, such as s3://bucket/prefix")
    options: dict[str, Any] = Field(
        default_factory=dict, description="fsspec's options that are no secrets, such as endpoint_url"
    )
    secrets: SecretDict = Field(
        default_factory=lambda: SecretDict({}), description="fsspec's options that are, such as key, secret"
    )


def located(store: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Where a flow's parameter `store` leads, with all options: a path or URL itself, or what the block in `block:NAME` says.

    Raises:
        InvalidInput: a secret among the plain options, or no such block.
    """
    refuse_secrets(options)
    if not store.startswith(_PREFIX):
        return store, options
    try:
        block = cast("ContentStore", ContentStore.load(store.removeprefix(_PREFIX)))
    except ValueError as exc:
        raise InvalidInput(f"store {store}: there is no such block of type Content Store") from exc
    return block.url, block.options | options | block.secrets.get_secret_value()
