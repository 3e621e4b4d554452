"""The command edit, with shell commands as editors."""

import json
import re
import stat
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.storage import ContentStore, open_store
from tests import images
from tests.cli.dist import dist
from tests.storage.archives import content, put
from tests.storage.conformance import ingest

HELLO = b"hello world\n"
DIGEST = Digest.of(HELLO)
BYE = b"bye world\n"
IMAGE = images.image(90)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    store = open_store(str(tmp_path / "store"))
    ingest(store, HELLO)
    return store


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the copies. It is empty after a test, unless a copy had to be kept."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.delenv("VISUAL", raising=False)
    return directory


def test_edit_stores_the_result_as_a_new_blob(store: ContentStore, temporary: Path) -> None:
    result = dist("--store", store.url, "edit", str(DIGEST), EDITOR="sed -i s/hello/bye/")

    assert (result.code, result.lines, result.err) == (0, [str(Digest.of(BYE))], "")
    assert content(store) == {str(DIGEST): HELLO, str(Digest.of(BYE)): BYE}
    assert list(temporary.iterdir()) == []


def test_the_option_and_the_environment_choose_the_editor(store: ContentStore) -> None:
    bye, hey = "sed -i s/hello/bye/", "sed -i s/hello/hey/"

    assert dist("--store", store.url, "edit", str(DIGEST), VISUAL=bye, EDITOR=hey).lines == [str(Digest.of(BYE))]
    assert dist("--store", store.url, "edit", str(DIGEST), "--editor", bye, VISUAL=hey).lines == [str(Digest.of(BYE))]


def test_an_unchanged_copy_keeps_the_digest(store: ContentStore) -> None:
    result = dist("--store", store.url, "--output", "json", "edit", str(DIGEST), "--editor", "true")

    assert (result.code, result.json) == (0, {"digest": str(DIGEST), "changed": False})
    assert result.line == f"dist: blob {DIGEST}: unchanged"


def test_a_result_that_exists_is_success(store: ContentStore) -> None:
    ingest(store, BYE)

    assert dist("--store", store.url, "edit", str(DIGEST), "--editor", "sed -i s/hello/bye/").lines == [str(Digest.of(BYE))]


def test_edit_keeps_the_algorithm_of_the_digest(store: ContentStore) -> None:
    digest = ingest(store, HELLO, algorithm="sha512")

    assert dist("--store", store.url, "edit", str(digest), "--editor", "sed -i s/hello/bye/").lines == [
        str(Digest.of(BYE, algorithm="sha512"))
    ]


def test_output_of_the_editor_goes_to_standard_error(store: ContentStore) -> None:
    result = dist("--store", store.url, "edit", str(DIGEST), "--editor", "cat")

    assert (result.lines, result.err.splitlines()[0]) == ([str(DIGEST)], "hello world")


def kept(message: str) -> Path:
    match = re.search(r"; the edited copy is kept in (\S+)$", message)
    assert match, message
    return Path(match[1])


def test_a_failed_editor_keeps_the_copy(store: ContentStore) -> None:
    result = dist("--store", store.url, "edit", str(DIGEST), "--editor", "sh -c 'echo more >> \"$0\"; exit 3'")

    assert (result.code, result.out) == (1, b"")
    assert "exit code 3; the copy was not ingested" in result.line
    assert kept(result.line).read_bytes() == HELLO + b"more\n"
    assert stat.S_IMODE(kept(result.line).stat().st_mode) == 0o600
    assert set(content(store)) == {str(DIGEST)}


def test_edit_of_a_missing_blob_leaves_no_copy(store: ContentStore, temporary: Path) -> None:
    missing = Digest.of(b"missing")

    result = dist("--store", store.url, "edit", str(missing), "--editor", "true")

    assert (result.code, result.line) == (1, f"dist: blob {missing}: not found")
    assert list(temporary.iterdir()) == []


def test_edit_validates_a_manifest(store: ContentStore) -> None:
    put(store, IMAGE, "app")
    config = next(iter(IMAGE.blobs))
    validated = ("--store", store.url, "edit", IMAGE.root.digest, "--validate", "--editor")

    good = dist(*validated, 'sed -i \'s/"schemaVersion"/"annotations": {"a": "b"}, &/\'')
    bad = dist(*validated, f"sed -i s/{config}/{config[:-1]}/")

    assert good.code == 0, good.err
    assert json.loads(content(store)[good.lines[0]])["annotations"] == {"a": "b"}
    assert (bad.code, bad.out) == (1, b"")
    assert "edited copy.config.digest" in bad.line
    assert config[:-1] in kept(bad.line).read_text()
    assert len(content(store)) == len(IMAGE.descriptors) + 2


def test_edit_refuses_a_result_that_is_not_a_manifest(store: ContentStore) -> None:
    result = dist("--store", store.url, "edit", str(DIGEST), "--validate", "--editor", "sed -i s/hello/bye/")

    assert (result.code, result.out) == (1, b"")
    assert "edited copy: not JSON" in result.line
    assert kept(result.line).read_bytes() == BYE


def test_a_failed_ingest_keeps_the_edited_copy(store: ContentStore, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\nsed -i s/hello/bye/ "$1"\nrm -r {store.url}/ingest\ntouch {store.url}/ingest\n')
    editor.chmod(0o755)

    result = dist("--store", store.url, "edit", str(DIGEST), "--editor", str(editor))

    assert (result.code, result.out) == (1, b"")
    assert kept(result.line).read_bytes() == BYE


def test_an_interrupt_reaches_only_the_editor(store: ContentStore, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nkill -INT $PPID\nsed -i s/hello/bye/ "$1"\n')
    editor.chmod(0o755)

    assert dist("--store", store.url, "edit", str(DIGEST), "--editor", str(editor)).lines == [str(Digest.of(BYE))]


def test_a_terminated_command_keeps_the_copy(store: ContentStore, temporary: Path, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i s/hello/bye/ "$1"\nkill -TERM $PPID\nexec sleep 60\n')
    editor.chmod(0o755)

    result = dist("--store", store.url, "edit", str(DIGEST), "--editor", str(editor))

    (copy,) = temporary.iterdir()
    assert copy.read_bytes() == BYE
    assert (result.code, result.err) == (143, f"dist: the edited copy is kept in {copy}\ndist: terminated\n")
