"""The output of a run without a terminal: a line per image, each cause once, and only the summary with --quiet."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests import images
from tests.cli.dist import command, dist, dist_direct
from tests.fakes.access import Basic
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S

BUILT = {name: images.image(1240 + number, layers=2) for number, name in enumerate("abc")}


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        for name, built in BUILT.items():
            images.load(source, name, built, "v1")
        yield source


def test_a_wrong_password_is_reported_once_with_all_its_images(tmp_path: Path) -> None:
    with FakeRegistry(auth=Basic("me", "right")) as source, FakeRegistry() as target:
        names = [f"{source.host}/{name}:v1" for name in BUILT]
        for name, built in BUILT.items():
            images.load(source, name, built, "v1")
        fetch = "--store", tmp_path / "store", "fetch", "--retries", "0"
        fetched = dist_direct(*fetch, *names, DIST_USERNAME="me", DIST_PASSWORD="wrong")
        sync = [{"type": "image", "source": name, "target": f"{target.host}/{name.partition('/')[2]}"} for name in names]
        config = tmp_path / "mirror.yaml"
        said = {"store": "store", "registries": {source.host: {"user": "me", "pass": "wrong"}}, "sync": sync}
        config.write_text(json.dumps(said))
        mirrored = dist_direct("mirror", "--retries", "0", config)

    hit = {fetched: names, mirrored: [f"{one['source']} to {one['target']}" for one in sync]}
    for result, objects in hit.items():
        assert result.code == 1
        assert "was rejected" not in result.out.decode()
        assert result.err.count("the password of user 'me'") == 1
        *_, cause, one, two, three = result.err.splitlines()
        assert cause.startswith(f"dist: {source.host}: the password of user 'me'")
        assert [one, two, three] == [f"    {name}" for name in objects]


def test_progress_has_a_line_per_image_and_no_line_per_descriptor(
    source: FakeRegistry, prefect: PrefectServer, tmp_path: Path
) -> None:
    assert prefect.url
    names = [f"{source.host}/{name}:v1" for name in BUILT]
    result = dist("--store", tmp_path / "store", "fetch", *names)
    assert result.code == 0
    first, *lines = result.err.splitlines()
    assert first == "starting Prefect"
    assert sorted(lines) == [f"{name} complete: 4 fetched, 0 existed" for name in names]


def test_the_line_of_a_mirrored_image_names_its_targets(source: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text(f"{source.host}/a:v1\n")
    with FakeRegistry() as target:
        result = dist_direct("--store", tmp_path / "store", "seed", tmp_path / "all.txt", "--to", target.host)
        assert result.err.splitlines()[-1] == (
            f"{source.host}/a:v1 complete: 3 fetched, 1 existed, published at {target.host}/a:v1"
        )


def test_quiet_prints_only_the_summary_and_the_failures(source: FakeRegistry, prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    store = "--store", tmp_path / "store"
    done = dist(*store, "fetch", "--quiet", f"{source.host}/a:v1")
    failed = dist(*store, "fetch", "-q", "--retries", "0", f"{source.host}/a:v1", f"{source.host}/a:none")
    assert (done.code, done.err) == (0, "")
    assert [line.split(":")[0] for line in done.lines] == ["1 image complete"]
    assert failed.code == 1
    assert failed.line.startswith(f"dist: {source.host}/a:none: not found")
    assert [line.split(":")[0] for line in failed.lines] == ["1 of 2 images complete"]


def test_a_run_lists_orphaned_tags_and_removed_tags(source: FakeRegistry, tmp_path: Path) -> None:
    images.load(source, "a", BUILT["b"], "v2")
    config = tmp_path / "mirror.yaml"

    def mirror(*wanted: str, **said: object) -> list[list[str]]:
        entry = {"source": f"{source.host}/a", "target": f"{target.host}/a", "type": "repository"}
        config.write_text(json.dumps({"store": "store", "sync": [entry | {"tags": {"allow": wanted}} | said]}))
        result = dist_direct("mirror", config)
        assert result.code == 0, result.err
        return [line.split() for line in result.lines if f"{target.host}/a:v2" in line]

    with FakeRegistry() as target:
        mirror("v1", "v2")
        (kept,) = mirror("v1")
        (removed,) = mirror("v1", prune={"after": "0s"})

    assert (kept[2], kept[4:6]) == ("kept", ["orphaned", "since"])
    assert removed[2] == "removed"


@pytest.mark.parametrize("broken", ["full", "closed"])
def test_a_broken_standard_error_does_not_stop_a_run(
    broken: Literal["full", "closed"], source: FakeRegistry, tmp_path: Path
) -> None:
    if broken == "full":
        errors = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, errors = os.pipe()
        os.close(reader)
    names = [f"{source.host}/{name}:v1" for name in (*BUILT, "none")]
    argv = command("--store", tmp_path / "store", "fetch", "--direct", "--retries", "0", *names)
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=errors, timeout=PATIENCE_S, check=False)
    finally:
        os.close(errors)
    assert (done.returncode, b"\n3 of 4 images complete: " in done.stdout) == (1, True)
