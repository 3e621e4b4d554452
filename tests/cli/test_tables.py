"""Tables: aligned where there is room, folded between cells on a terminal that is too narrow, and never cut."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.cli.output import format_rows
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.storage import open_store
from tests.cli.dist import dist
from tests.cli.terminal import at_terminal

ROWS = [("IMAGE", "RESULT", "NOTE"), ("a.example/app:v1", "failed", "not found (404)"), ("b.example/b:v2", "", "")]
ALIGNED = [
    "IMAGE             RESULT  NOTE",
    "a.example/app:v1  failed  not found (404)",
    "b.example/b:v2",
]


@pytest.mark.parametrize("width", [None, 80, 41])
def test_columns_are_aligned_if_they_fit(width: int | None) -> None:
    assert list(format_rows(ROWS, width)) == ALIGNED


def test_a_long_last_cell_continues_on_the_next_line() -> None:
    assert list(format_rows(ROWS, 40)) == [ALIGNED[0], "a.example/app:v1  failed", "    not found (404)", ALIGNED[2]]


def test_rows_are_folded_if_their_columns_do_not_fit() -> None:
    assert list(format_rows(ROWS, 22)) == [
        "IMAGE  RESULT  NOTE",
        "a.example/app:v1",
        "    failed",
        "    not found (404)",
        "b.example/b:v2",
    ]


def test_folded_rows_mark_empty_cells() -> None:
    rows = [("IMAGE", "FROM", "TO"), ("a.example/app:v1", "", "sha256:0123"), ("b.example/b:v2", "sha256:4567", "")]
    assert list(format_rows(rows, 20))[1:] == ["a.example/app:v1  -", "    sha256:0123", "b.example/b:v2", "    sha256:4567"]


@given(rows=st.lists(st.tuples(*[st.text("ab", max_size=9)] * 3), min_size=1), width=st.integers(1, 40))
def test_folding_keeps_all_cells_in_order(rows: list[tuple[str, str, str]], width: int) -> None:
    shown = list(format_rows(rows, width))
    assert [word for word in " ".join(shown).split() if word != "-"] == [cell for row in rows for cell in row if cell]
    assert all(len(line) <= width or len(line.split()) == 1 for line in shown)


def test_a_pipe_gets_a_line_per_row_and_a_terminal_folds_rows(tmp_path: Path) -> None:
    name, digest = "registry.example/team/backend/service:v1", Digest.of(b"{}")
    root = Descriptor(media_type="application/vnd.oci.image.manifest.v1+json", digest=digest, size=2)
    with open_store(str(tmp_path)) as store:
        store.prepare()
        store.names.put(name, root, source="registry.example/team/backend/service")

    piped = dist("--store", tmp_path, "names").lines
    at = at_terminal("", "--store", str(tmp_path), "names").shown.splitlines()

    assert [line.split()[:2] for line in piped] == [["NAME", "DIGEST"], [name, str(digest)]]
    assert at[1] == name
    assert at[2].startswith(f"    {digest}")
    assert max(map(len, at)) <= 80
