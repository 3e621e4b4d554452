"""Images that are to be brought to registries in bulk, said without a file of configuration. No Prefect here."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flows.mirroring.config import Mirror, configured
from flows.yamlfile import Document

_NAME = "seed"


def seeding(
    to: Sequence[str],
    *,
    images: Sequence[str] = (),
    file: str | None = None,
    platforms: Sequence[str] | None = None,
    rewrite_index: bool = False,
    referrers: bool = False,
) -> Mirror:
    """What a configuration with nothing but such a `seed` section says; nothing is remembered of what comes of it.

    `to` are registries, each with or without a path that comes before the repositories; `file` has more images, one in a line.

    Raises:
        InvalidInput: it cannot be meant so, or the file cannot be read.
    """
    section: dict[str, Any] = {"images": list(images), "to": list(to), "referrers": referrers}
    section |= {"list": file} if file is not None else {}
    section |= {"platforms": list(platforms)} if platforms is not None else {}
    section |= {"rewriteIndex": True} if rewrite_index else {}
    found = configured(Document(path=_NAME, data={"name": _NAME, "seed": section}, lines={}), is_remembered=False)
    return replace(found, way=None, hosts=replace(found.hosts, advice=None))  # there is no file to set anything in
