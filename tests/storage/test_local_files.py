"""The local file system reads the same bytes, and raises the same errors, as the one of fsspec."""

from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from prefect_dist.storage.local_files import LocalFiles

CONTENT = bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("start", "end"), [(None, None), (0, 3), (5, None), (None, 7), (100, 5000), (10, 99_999), (99_999, None)]
)
def test_a_range_of_a_file_is_that_of_fsspec(tmp_path: Path, start: int | None, end: int | None) -> None:
    (tmp_path / "file").write_bytes(CONTENT)

    read = LocalFiles().cat_file(str(tmp_path / "file"), start, end)

    assert read == LocalFileSystem().cat_file(str(tmp_path / "file"), start, end)


@pytest.mark.parametrize("name", ["missing", "directory"])
def test_the_error_of_a_path_without_a_file_is_that_of_fsspec(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError, match=name) as expected:
        LocalFileSystem().cat_file(str(tmp_path / name))

    with pytest.raises(type(expected.value), match=name):
        LocalFiles().cat_file(str(tmp_path / name))


@pytest.mark.parametrize("path", ["/a/b", "/a/b/", "file:///a/b", "/"])
def test_a_path_is_stripped_as_by_fsspec(path: str) -> None:
    assert LocalFiles._strip_protocol(path) == LocalFileSystem._strip_protocol(path)
