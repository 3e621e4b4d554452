"""examples/mirror.yaml works: each entry, the gate with a fake cosign, and the seed section."""

import os
from pathlib import Path

import pytest

from tests import images
from tests.cli.dist import dist
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.peers.prefect import PrefectServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "mirror.yaml"
PLATFORMS = [images.image(1270 + number, layers=1, platform=name) for number, name in enumerate(("linux/amd64", "linux/arm64"))]
APP, ETCD = images.index(PLATFORMS), images.image(1272, layers=1)
# A fake cosign, which records the images that it verifies, and refuses one image.
COSIGN = '#!/bin/sh\necho "$@" >> "$COSIGN_LOG"\ncase "$*" in *unsigned*) echo no signatures found; exit 1;; esac\n'


def test_the_example_of_a_mirror_works(prefect: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prefect.url
    (tmp_path / "cosign").write_text(COSIGN)
    (tmp_path / "cosign").chmod(0o755)
    with FakeRegistry() as source, FakeRegistry() as target, FakeRegistry() as edge:
        for repository, built, tag in (
            ("example-team/app", APP, "v1"),
            ("example-team/unsigned", PLATFORMS[0], "v1"),
            ("coreos/etcd", ETCD, "v3.5.9"),
            ("library/redis", APP, "latest"),
        ):
            images.load(source, repository, built, tag)
        text = EXAMPLE.read_text()
        for name, host in (
            ("registry.example.org", target.host),
            ("edge.example.org:5000", edge.host),
            ("build.example.org", source.host),
            ("quay.io", source.host),
            ("source: redis", f"source: {source.host}/library/redis"),
            ("store: ~/.cache", f"store: {tmp_path}"),
            ("created: {within: 365d}", "created: {within: 36500d}"),
        ):
            assert name in text
            text = text.replace(name, host)
        config = tmp_path / "mirror.yaml"
        config.write_text(text)

        log = tmp_path / "cosign.log"
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("COSIGN_LOG", str(log))
        for name in ("HUB_USER", "HUB_TOKEN", "MIRROR_PASSWORD"):
            monkeypatch.setenv(name, "secret")
        result = dist("--output", "json", "mirror", "--retries", "0", config)

        assert (result.code, result.json["status"]) == (3, "vetoed"), result.err
        assert {one["target"].partition("/")[2]: one["outcome"] for one in result.json["targets"]} == {
            "hub/redis:latest": "added",
            "redis:latest": "added",
            "team/app:v1": "added",
            "team/unsigned:v1": "vetoed",
            "etcd:stable": "added",
        }
        assert find_missing(target, "team/app", APP, "v1") + find_missing(target, "etcd", ETCD, "stable") == []
        assert find_missing(edge, "redis", APP, "latest") == []
    verify = "verify --key /etc/team-mirror/cosign.pub"
    assert sorted(log.read_text().splitlines()) == [
        f"{verify} {source.host}/example-team/app@{APP.root.digest}",
        f"{verify} {source.host}/example-team/unsigned@{PLATFORMS[0].root.digest}",
    ]
