"""A lock file in place of a configuration."""

from pathlib import Path

import pytest

from prefect_dist.mirror.lock_config import from_lock
from prefect_dist.ocispec.errors import InvalidInput


def test_an_empty_lock_file_is_reported_as_one_that_names_no_image(tmp_path: Path) -> None:
    lock = tmp_path / "site.lock.json"
    lock.write_text('{"version": 1, "images": {}}')

    with pytest.raises(InvalidInput) as refused:
        from_lock(str(lock))

    assert str(refused.value) == f"{lock}: nothing to check: the lock file names no image; mirror or seed it first"
