"""Configurations of seeds that are given by options instead of a file."""

from collections.abc import Sequence
from typing import Any

from prefect_dist.mirror.config import Mirror, parse_mirror
from prefect_dist.mirror.locked import without_file
from prefect_dist.mirror.yamlfile import Document

_NAME = "seed"


def make_seed_mirror(
    to: Sequence[str],
    *,
    images: Sequence[str] = (),
    file: str | None = None,
    platforms: Sequence[str] | None = None,
    rewrite_index: bool = False,
    referrers: bool = False,
    lock: str | None = None,
) -> Mirror:
    """Return a configuration with only a `seed` section. Its results go to the lock file, if one is named.

    `to` are registries, each with or without a path that comes before the repositories; `file` has more images, one in a line.

    Raises:
        InvalidInput: it cannot be meant so, or the file cannot be read.
    """
    section: dict[str, Any] = {"images": list(images), "to": list(to), "referrers": referrers}
    section |= {"list": file} if file is not None else {}
    section |= {"platforms": list(platforms)} if platforms is not None else {}
    section |= {"rewriteIndex": True} if rewrite_index else {}
    data = {"name": _NAME, "seed": section} | ({} if lock is None else {"lock": lock})
    return without_file(parse_mirror(Document(path=_NAME, data=data, lines={}), is_remembered=lock is not None))
