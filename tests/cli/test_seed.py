"""The command seed with lists and configurations, followed by the command check."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import dist, dist_direct
from tests.fakes.faults import Answer, Fault
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.storage.archives import put

ONE, TWO = images.image(1210, layers=1), images.image(1211, layers=1)
PLACE = "127.0.0.1:1"


@pytest.fixture
def source() -> Iterator[FakeRegistry]:
    with FakeRegistry() as source:
        images.load(source, "team/one", ONE, "v1")
        images.load(source, "two", TWO, "v1")
        yield source


def test_an_offline_seed_copies_a_list_to_each_registry(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    put(store, ONE, "docker.io/library/one:latest")
    put(store, TWO, "ghcr.io/a/two:2")
    listed = b"# what the site needs\n\none   # a short name\nghcr.io/a/two:2\n"
    with FakeRegistry() as target, FakeRegistry() as other:
        result = dist_direct(
            *("--store", store.url, "--output", "json", "seed", "-", "--offline"),
            *("--to", target.host, "--to", f"{other.host}/edge/site"),
            stdin=listed,
        )

        assert (result.code, result.err) == (0, "")
        assert [(one["source"], one["target"], one["outcome"]) for one in result.json["targets"]] == [
            ("docker.io/library/one:latest", f"{target.host}/library/one:latest", "added"),
            ("docker.io/library/one:latest", f"{other.host}/edge/site/library/one:latest", "added"),
            ("ghcr.io/a/two:2", f"{target.host}/a/two:2", "added"),
            ("ghcr.io/a/two:2", f"{other.host}/edge/site/a/two:2", "added"),
        ]
        assert find_missing(target, "library/one", ONE, "latest") + find_missing(other, "edge/site/a/two", TWO, "2") == []


def test_failed_images_are_a_list_for_the_next_run(source: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text(f"{source.host}/team/one:v1\n{source.host}/two:v1\n")
    failed = tmp_path / "failed.txt"
    with FakeRegistry() as target:
        target.inject(Fault(method="PUT", path=".*/two/manifests/v1", action=Answer(403)))
        run = "--store", tmp_path / "store", "seed"
        first = dist_direct(*run, tmp_path / "all.txt", "--to", target.host, "--failed", failed, "--retries", "0")
        listed = failed.read_text()
        second = dist_direct(*run, failed, "--to", target.host, "--failed", failed)

        assert (first.code, second.code) == (1, 0), second.err
        assert listed == f"{source.host}/two:v1\n"
        assert f"{source.host}/two:v1 to {target.host}/two:v1: " in first.err
        assert failed.read_text() == ""
        assert find_missing(target, "team/one", ONE, "v1") + find_missing(target, "two", TWO, "v1") == []


def test_a_vetoed_image_is_not_on_the_list_of_failed_images(source: FakeRegistry, tmp_path: Path) -> None:
    failed, seeding = tmp_path / "failed.txt", tmp_path / "seeding.yaml"
    with FakeRegistry() as target:
        gate = {"command": ["sh", "-c", 'test "${DIST_REFERENCE##*/}" != two:v1']}
        section = {"images": [f"{source.host}/team/one:v1", f"{source.host}/two:v1"], "to": target.host}
        seeding.write_text(json.dumps({"store": "store", "defaults": {"gate": gate}, "seed": section}))
        result = dist_direct("seed", seeding, "--failed", failed)

        assert (result.code, failed.read_text()) == (3, ""), result.err
        assert find_missing(target, "team/one", ONE, "v1") == []
        assert target.manifest("two", "v1") is None


def test_a_seed_section_is_locked_checked_and_repaired(source: FakeRegistry, tmp_path: Path) -> None:
    config = tmp_path / "site.yaml"
    layer = list(ONE.blobs)[-1]
    with FakeRegistry() as target:
        config.write_text(
            f"store: store\nseed:\n  images: ['{source.host}/team/one:v1']\n  list: more.txt\n  to: {target.host}/edge\n"
        )
        (tmp_path / "more.txt").write_text(f"{source.host}/two:v1\n")
        unlocked = dist_direct("check", config)
        seeded = dist_direct("seed", config)
        locked = json.loads((tmp_path / "site.lock.json").read_text())["images"]
        right = dist_direct("check", config)
        target.lose("edge/team/one", layer)
        damaged = dist_direct("--output", "json", "check", config)
        repaired = dist_direct("check", config, "--repair")
        assert find_missing(target, "edge/team/one", ONE, "v1") == []

    assert (unlocked.code, "run mirror or seed first" in unlocked.err) == (1, True)
    assert (seeded.code, right.code, damaged.code, repaired.code) == (0, 0, 1, 0), repaired.err
    name = f"{target.host}/edge/team/one:v1"
    assert set(locked) == {name, f"{target.host}/edge/two:v1"}
    faults = [f"layer {layer} is missing"]
    assert damaged.json["targets"] == [{"target": name, "outcome": "damaged", "faults": faults, "errors": faults}]
    assert damaged.err == f"dist: {name}: layer {layer} is missing\n"
    assert any(line.startswith(name) and " repaired " in line for line in repaired.lines)


def test_an_unwritable_list_of_failed_images_is_reported(source: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text(f"{source.host}/two:v1\n")
    (tmp_path / "file").touch()
    with FakeRegistry() as target:
        failed = tmp_path / "file" / "failed.txt"
        result = dist_direct(
            *("--store", tmp_path / "store", "--output", "json"),
            *("seed", tmp_path / "all.txt", "--to", target.host, "--failed", failed),
        )
    assert (result.code, result.json["status"]) == (1, "failed")
    assert [one["outcome"] for one in result.json["targets"]] == ["added"]
    assert result.err.startswith(f"dist: list of failed images: {failed}: ")


LISTS = {"wrong.txt": "redis:7\n\nNO NAME # here\n", "none.txt": "# nothing\n", "mirror.yaml": "sync: []\n"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wrong.txt", "--to", PLACE), "{here}/wrong.txt:3: reference 'docker.io/library/NO NAME:latest': expected"),
        (("none.txt", "--to", PLACE), "{here}/none.txt: expected one image reference per line, got an empty list"),
        (("missing.txt", "--to", PLACE), "seed: seed.list: {here}/missing.txt: No such file or directory"),
        (("wrong.txt",), "seed: a list of images requires --to REGISTRY"),
        (("-", "--to", PLACE), "standard input:2: reference 'docker.io/library/NO NAME:latest': expected"),
        (("-", "--to", "http://r.example"), "standard input:2: "),
        (("none.txt", "--to", PLACE, "--rewrite-index"), "--rewrite-index requires --platform"),
        (("none.txt", "--to", PLACE, "--platform", "x"), "platform 'x'"),
        (("mirror.yaml", "--to", PLACE), "{here}/mirror.yaml: the configuration defines targets, platforms and lock file"),
        (
            ("mirror.yaml", "--platform", "linux/amd64"),
            "{here}/mirror.yaml: the configuration defines targets, platforms and lock file",
        ),
        (("mirror.yaml",), "{here}/mirror.yaml:1: expected sync or seed"),
    ],
)
def test_contradicting_arguments_fail_before_prefect_starts(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    file, *options = arguments
    path = file if file == "-" else tmp_path / file

    result = dist("--store", tmp_path / "store", "seed", path, *options, stdin=b"redis\nNO NAME\n")

    assert (result.code, result.out) == (2, b"")
    assert result.line.startswith(f"dist: {message.format(here=tmp_path)}")
    assert not (tmp_path / "store").exists()


def test_a_wrong_target_registry_is_named(tmp_path: Path) -> None:
    for place in ("http://r.example", "UPPER/", "r.example/path:tag"):
        result = dist("--store", tmp_path / "store", "seed", "-", "--to", PLACE, "--to", place, stdin=b"redis\n")
        assert (result.code, f"seed.to[1]: {place!r}: " in result.line) == (2, True), result.err


def test_a_list_with_a_lock_file_can_be_checked_and_repaired(source: FakeRegistry, tmp_path: Path) -> None:
    listed, lock, store = tmp_path / "all.txt", tmp_path / "site.lock.json", ("--store", tmp_path / "store")
    listed.write_text(f"{source.host}/team/one:v1\n{source.host}/two:v1\n")
    layer = list(ONE.blobs)[-1]
    with FakeRegistry() as target:
        seeded = dist_direct(*store, "seed", listed, "--to", target.host, "--lock", lock)
        right = dist_direct(*store, "--output", "json", "check", lock)
        target.lose("team/one", layer)
        damaged = dist_direct(*store, "check", lock)
        without_store = dist_direct("check", lock, DIST_STORE=None, XDG_DATA_HOME=str(tmp_path))
        repaired = dist_direct(*store, "check", lock, "--repair")
        assert find_missing(target, "team/one", ONE, "v1") == []

    assert [result.code for result in (seeded, right, damaged, repaired)] == [0, 0, 1, 0], repaired.err
    assert (right.json["counts"]["ok"], right.json["counts"]["unchecked"]) == (2, 0)
    assert f"layer {layer} is missing" in damaged.err
    assert without_store.err.splitlines()[0] == (
        f"dist: warning: {lock}: no store is set, so a repair reads images from {tmp_path}/prefect-dist/store; "
        "set --store or DIST_STORE"
    )
    assert dist("mirror", lock).code == 2  # only a check accepts a lock file
