"""The command copy: its output, its exit codes, and wrong arguments."""

from pathlib import Path

import pytest

from tests import images
from tests.cli.dist import dist
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.peers.prefect import PrefectServer

IMAGE = images.image(670, layers=1)
PLACE = "registry.example/app"


def test_a_copy_prints_its_target_and_a_copy_from_the_store_needs_no_source(prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    store = "--store", tmp_path / "store"
    with FakeRegistry() as target:
        with FakeRegistry() as source:
            images.load(source, "app", IMAGE, "v1")
            name = f"{source.host}/app:v1"
            copied = dist(*store, "copy", name, f"{target.host}/copy:v1")
            missing = dist(*store, "copy", f"{source.host}/app:none", f"{target.host}/copy:none")
        stored = dist(*store, "--output", "json", "copy", f"store:{name}", f"{target.host}/again:v1")
        assert find_missing(target, "copy", IMAGE, "v1") + find_missing(target, "again", IMAGE, "v1") == []

    assert copied.code == 0, copied.err
    assert copied.lines[1].split()[:4] == [name, f"{target.host}/copy:v1", "add", "added"]
    assert copied.lines[2].startswith("copy complete: 1 added, 0 changed, 0 unchanged; ")
    assert (missing.code, f"dist: {name[:-2]}none to {target.host}/copy:none: not found" in missing.err) == (1, True), (
        missing.err
    )
    assert stored.code == 0, stored.err
    assert (stored.json["flow"], stored.json["targets"][0]["source"]) == ("copy", f"store:{name}")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("http://a.example/x", PLACE), 2, "leave out the scheme http://"),
        (("a.example/x", "UPPER/"), 2, "bad path"),
        (("a.example/x", PLACE, "--rewrite-index"), 2, "--rewrite-index requires --platform"),
        (("a.example/x", PLACE, "--platform", "x"), 2, "platform 'x'"),
        (("a.example/x:v1", PLACE, "--all-tags"), 2, "expected no tag or digest"),
        (("store:x", PLACE, "--all-tags"), 2, "a name in the content store is one image"),
        (("store:x", PLACE), 1, "not in the store; dist names lists all names"),
    ],
)
def test_wrong_arguments_fail_before_prefect_starts(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path
) -> None:
    result = dist("--store", tmp_path / "store", "copy", *arguments)
    assert (result.code, result.out, message in result.line) == (code, b"", True), result.err
    assert not (tmp_path / "store").exists()
