"""Options with the same meaning for several commands: logins, referrers, platforms, concurrency."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest, Platform
from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import Result, dist, dist_direct
from tests.fakes.access import Basic
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.peers.prefect import PrefectServer

HERE = Platform.local()
ONE = images.image(1260, layers=1, platform=str(HERE))
OTHER = images.image(1261, layers=1, platform="linux/s390x")
INDEX = images.index([OTHER, ONE])
BILL = images.artifact(1262, subject=ONE)
PASSWORD = b"hunter2"


@pytest.fixture
def private() -> Iterator[FakeRegistry]:
    """A registry that requires a password for each request."""
    with FakeRegistry(auth=Basic("me", PASSWORD.decode())) as private:
        yield private


def logged_in(*arguments: str | Path) -> Result:
    return dist(*arguments, "--username", "me", "--password-stdin", stdin=PASSWORD)


def test_a_login_is_for_the_target_of_a_mirror_seed_copy_or_check(
    private: FakeRegistry, prefect: PrefectServer, tmp_path: Path
) -> None:
    assert prefect.url
    store = "--store", tmp_path / "store"
    with FakeRegistry() as source:
        images.load(source, "app", ONE, "v1")
        config, listed = tmp_path / "mirror.yaml", tmp_path / "all.txt"
        entry = {"type": "image", "source": f"{source.host}/app:v1", "target": f"{private.host}/app:v1"}
        config.write_text(json.dumps({"sync": [entry]}))
        listed.write_text(f"{source.host}/app:v1\n")
        refused = dist_direct(*store, "mirror", "--retries", "0", config)
        done = [
            logged_in(*store, "mirror", config),
            logged_in(*store, "check", config, "--direct"),
            logged_in(*store, "seed", listed, "--to", f"{private.host}/seeded", "--direct"),
            logged_in(*store, "copy", f"{source.host}/app:v1", f"{private.host}/copied:v1", "--direct"),
            dist_direct(*store, "check", config, DIST_USERNAME="me", DIST_PASSWORD=PASSWORD.decode()),
        ]

    assert refused.code == 1
    assert [result.code for result in done] == [0, 0, 0, 0, 0], [result.err for result in done]
    assert [find_missing(private, name, ONE, "v1") for name in ("app", "seeded/app", "copied")] == [[], [], []]


def test_a_login_is_for_the_registry_of_a_repair(private: FakeRegistry, prefect: PrefectServer, tmp_path: Path) -> None:
    assert prefect.url
    images.load(private, "app", ONE, "v1")
    name = f"{private.host}/app:v1"
    store = "--store", tmp_path / "store"
    assert logged_in(*store, "fetch", name, "--direct").code == 0
    blob = list(ONE.blobs)[-1]
    (tmp_path / "store" / "blobs" / blob.replace(":", "/")).unlink()

    repaired = logged_in(*store, "verify", "--repair", "all")

    assert repaired.code == 0, repaired.err
    assert open_store(str(tmp_path / "store")).read(Digest.parse(blob)) == ONE.blobs[blob]


def test_a_login_for_several_targets_is_refused_and_ignored_in_the_environment(tmp_path: Path) -> None:
    with FakeRegistry() as source, FakeRegistry() as one, FakeRegistry() as other:
        images.load(source, "app", ONE, "v1")
        (tmp_path / "all.txt").write_text(f"{source.host}/app:v1\n")
        seed = "--store", tmp_path / "store", "seed", tmp_path / "all.txt", "--to", one.host, "--to", other.host
        refused = logged_in(*seed)
        done = dist_direct(*seed, DIST_USERNAME="me", DIST_PASSWORD="unused")
    assert refused.code == 2
    assert refused.line.startswith("dist: user me: expected one registry to log in to, got 127.0.0.1:")
    assert done.code == 0, done.err


def test_pull_fetches_referrers_and_defaults_to_the_platform_of_this_machine(tmp_path: Path) -> None:
    with FakeRegistry() as source:
        images.load(source, "app", INDEX, "v1")
        images.load(source, "app", BILL)
        result = dist_direct(
            *("--store", tmp_path / "store", "--output", "json", "pull", "--referrers"),
            *(f"{source.host}/app:v1", tmp_path / "root"),
        )
    assert (result.code, result.json["images"][0]["referrers"]) == (0, 1), result.err
    assert result.json["unpacked"][0]["manifest"] == ONE.root.digest


@pytest.mark.parametrize(("said", "code", "comes_to"), [("concurrency: 64", 0, 64), ("defaults: {parallel: 100}", 0, 64)])
def test_a_configuration_has_the_bounds_of_the_option_for_concurrency(
    tmp_path: Path, said: str, code: int, comes_to: int
) -> None:
    path = tmp_path / "mirror.yaml"
    path.write_text(f"store: store\n{said}\nsync: [{{type: image, source: a.example/x, target: b.example/x}}]\n")
    shown = dist("--output", "json", "config", path)
    assert (shown.code, shown.json["concurrency"]) == (code, comes_to), shown.err


def test_a_concurrency_above_the_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mirror.yaml"
    path.write_text("concurrency: 65\nsync: [{type: image, source: a.example/x, target: b.example/x}]\n")
    shown = dist("config", path)
    assert (shown.code, f"dist: {path}:1: concurrency: expected less than or equal to 64, got 65" in shown.err) == (2, True)
