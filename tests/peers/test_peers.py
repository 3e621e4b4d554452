"""The peers themselves: each starts, records its requests, and is gone afterwards."""

import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import images
from tests.peers import processes, skopeo
from tests.peers.registry import LOGIN, CncfRegistry, Request, cncf_registry

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[CncfRegistry]:
    with cncf_registry(tmp_path / "registry") as registry:
        yield registry


def start_download(host: str, digest: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", f"/v2/demo/blobs/{digest}", headers={**headers, "Connection": "close"})
    return connection.getresponse()


def blob_answers(registry: CncfRegistry, *, at_least: int) -> list[Request]:
    return [request for request in registry.requests(at_least=at_least) if request.method == "GET"]


def test_a_server_that_exits_early_is_reported_with_its_last_output(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "raise SystemExit('port taken')"]
    with (
        pytest.raises(processes.StartError, match=r"exited early with status 1(?s:.*)port taken"),
        processes.running(argv, ready=lambda: False, log=tmp_path / "log"),
    ):
        pass


def test_a_server_is_gone_after_its_block(tmp_path: Path) -> None:
    port = processes.free_port()
    argv = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with processes.running(argv, ready=processes.listening(port), log=tmp_path / "log") as server:
        os.kill(server.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, 0)
    assert not processes.listening(port)()


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_missing_program_skips_here_and_fails_under_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=r"no-such-program \(Debian package no-such-package\)"):
        processes.require("no-such-program", "no-such-package")


def test_random_images_depend_on_their_seed_alone() -> None:
    assert images.image(1) == images.image(1)
    assert images.image(1).root != images.image(2).root


@pytest.mark.parametrize("docker", [False, True])
def test_a_random_image_is_what_skopeo_reads_back(registry: CncfRegistry, *, docker: bool) -> None:
    image = images.image(seed=1, docker=docker)
    images.push(registry.host, "demo", image, "one")
    summary = skopeo.inspect(f"docker://{registry.host}/demo:one")
    assert summary["Digest"] == image.root.digest
    assert summary["Layers"] == list(image.blobs)[1:]


@pytest.mark.parametrize("docker", [False, True])
def test_skopeo_copies_all_of_a_random_index(registry: CncfRegistry, tmp_path: Path, *, docker: bool) -> None:
    children = [images.image(seed=1, docker=docker, platform=name) for name in ("linux/amd64", "linux/arm64/v8")]
    index = images.index(children, docker=docker)
    images.push(registry.host, "demo", index, "all")
    skopeo.copy(f"docker://{registry.host}/demo:all", f"dir:{tmp_path / 'copy'}")
    copied = {f"sha256:{file.name}" for file in (tmp_path / "copy").iterdir()}
    assert set(index.blobs) <= copied
    assert (tmp_path / "copy/manifest.json").read_bytes() == index.manifests[-1].raw


def test_the_registry_takes_nested_indexes_and_artifacts(registry: CncfRegistry) -> None:
    subject = images.image(seed=1)
    for tag, image in {
        "nested": images.index([subject, images.artifact(2)], nested=True),
        "artifact": images.artifact(3, subject=subject),
    }.items():
        images.push(registry.host, "demo", image, tag)
        assert skopeo.inspect(f"docker://{registry.host}/demo:{tag}", raw=True)["mediaType"] == image.root.media_type


def test_skopeo_says_why_it_failed(registry: CncfRegistry) -> None:
    with pytest.raises(skopeo.SkopeoError, match="manifest unknown"):
        skopeo.inspect(f"docker://{registry.host}/demo:missing")


def test_the_access_log_tells_whole_ranged_and_cut_answers_apart(registry: CncfRegistry) -> None:
    image = images.image(seed=1, layers=1, layer_bytes=30_000_000)  # far more than socket buffers hold
    images.push(registry.host, "demo", image, "big")
    digest, size = list(image.blobs)[1], len(list(image.blobs.values())[1])
    before = len(registry.requests(at_least=5))
    with start_download(registry.host, digest) as whole:
        assert len(whole.read()) == size
    with start_download(registry.host, digest, Range="bytes=100-299") as ranged:
        assert len(ranged.read()) == 200
    with start_download(registry.host, digest) as cut:
        assert len(cut.read(1000)) == 1000
    whole_log, ranged_log, cut_log = blob_answers(registry, at_least=before + 3)
    path = f"/v2/demo/blobs/{digest}"
    assert whole_log == Request(method="GET", path=path, status=200, sent=size)
    assert ranged_log == Request(method="GET", path=path, status=206, sent=200)
    assert (cut_log.path, cut_log.status) == (path, 200)
    assert 1000 <= cut_log.sent < size


def test_a_registry_with_basic_auth_lets_in_its_user_only(tmp_path: Path) -> None:
    with cncf_registry(tmp_path, basic_auth=True) as registry:
        images.push(registry.host, "demo", images.image(seed=1), "one", login=LOGIN)
        with pytest.raises(RuntimeError, match="401"):
            images.push(registry.host, "demo", images.image(seed=1), "one", login=(LOGIN[0], "wrong"))


def test_the_example_image_is_an_index_of_two_platforms(registry: CncfRegistry, tmp_path: Path) -> None:
    processes.require("umoci", "umoci")
    argv = [sys.executable, str(ROOT / "examples/image.py"), str(tmp_path / "layout"), "v1"]
    digest = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    target = f"docker://{registry.host}/demo/busybox:latest"
    skopeo.copy(f"oci:{tmp_path / 'layout'}:v1", target)
    platforms = [entry["platform"]["architecture"] for entry in skopeo.inspect(target, raw=True)["manifests"]]
    assert platforms == ["amd64", "arm64"]
    assert len(skopeo.inspect(f"docker://{registry.host}/demo/busybox@{digest}")["Layers"]) == 3


def test_another_seed_gives_another_example_image_and_the_same_seed_the_same(tmp_path: Path) -> None:
    processes.require("umoci", "umoci")

    def build(layout: str, *options: str) -> str:
        argv = [sys.executable, str(ROOT / "examples/image.py"), str(tmp_path / layout), "v1", *options]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    bare, one, again, other = build("0"), build("1", "--seed", "a"), build("2", "--seed", "a"), build("3", "--seed", "b")
    assert one == again
    assert len({bare, one, other}) == 3
