"""Parameters that several flows have, as their forms show them."""

from typing import Annotated, Any

from pydantic import Field

Store = Annotated[str, Field(description="The content store: a path, an fsspec URL such as s3://bucket/prefix, or block:NAME")]
StoreOptions = Annotated[
    dict[str, Any], Field(description="Options of the store's file system that are no secrets, such as endpoint_url")
]
