"""The commands push and push-object with the CNCF registry. Skopeo reads the result."""

from pathlib import Path

import pytest

from tests import images
from tests.cli.dist import dist, dist_direct
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer
from tests.peers.registry import CncfRegistry

IMAGE = images.image(620, layers=2)


@pytest.fixture
def store(tmp_path: Path, registry: CncfRegistry) -> Path:
    images.push(registry.host, "cli/source", IMAGE, "v1")
    store = tmp_path / "store"
    assert dist_direct("--store", store, "fetch", f"{registry.host}/cli/source:v1").code == 0
    return store


def test_push_from_the_store_to_another_repository(store: Path, registry: CncfRegistry, prefect: PrefectServer) -> None:
    assert prefect.url
    source, target = f"{registry.host}/cli/source:v1", f"{registry.host}/cli/target:v2"
    result = dist("--store", store, "--output", "json", "push", source, target)
    assert result.code == 0, result.err
    (image,) = result.json["targets"]
    assert image == {
        "source": f"store:{source}",
        "target": target,
        "action": "add",
        "outcome": "added",
        "old": None,
        "new": IMAGE.root.digest,
        "note": None,
        "errors": [],
    }
    assert result.json["counts"]["mounted"] == len(IMAGE.blobs)
    assert skopeo.raw(f"docker://{target}") == IMAGE.manifests[-1].raw


def test_push_prints_its_outcome(store: Path, registry: CncfRegistry) -> None:
    result = dist_direct("--store", store, "push", f"{registry.host}/cli/source:v1", f"{registry.host}/cli/reported")
    assert result.code == 0, result.err
    assert result.lines[0].split()[:4] == ["IMAGE", "TARGET", "ACTION", "OUTCOME"]
    assert result.lines[1].split()[1:4] == [f"{registry.host}/cli/reported:latest", "add", "added"]
    assert result.lines[2].startswith("push complete: 1 added, 0 changed, 0 unchanged; 0 B fetched, ")
    assert f"({len(IMAGE.blobs)} mounted)" in result.lines[2]


def test_push_of_a_missing_name_fails(store: Path, registry: CncfRegistry) -> None:
    result = dist_direct("--store", store, "push", "none", f"{registry.host}/cli/x")
    assert (result.code, "not in the store; dist names lists all names" in result.line) == (1, True), result.err


def test_push_object_part_by_part(store: Path, registry: CncfRegistry) -> None:
    repository = f"{registry.host}/cli/parts"
    for digest in IMAGE.blobs:
        assert dist("--store", store, "push-object", repository, digest).code == 0
    root = IMAGE.root
    result = dist("--store", store, "push-object", f"{repository}:v1", root.digest, root.media_type)
    assert result.lines == [f"pushed {root.digest} {root.media_type}"]
    assert skopeo.raw(f"docker://{repository}:v1") == IMAGE.manifests[-1].raw
    again = dist("--store", store, "--output", "json", "push-object", repository, root.digest, root.media_type)
    assert again.json["status"] == "existed"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("a.invalid/x:v1", next(iter(IMAGE.blobs))), 2, "only a manifest can have a tag"),
        (("a.invalid/x", f"sha256:{'0' * 64}"), 1, "not found"),
        (("a.invalid/x", "sha256:12"), 2, "expected 64 characters"),
        (("a.invalid/x", next(iter(IMAGE.blobs)), "nonsense"), 2, "type 'nonsense': expected type/subtype"),
        ((f"a.invalid/x@sha256:{'0' * 64}", next(iter(IMAGE.blobs))), 2, "expected the digest of the pushed object"),
    ],
)
def test_push_object_refuses_wrong_arguments(store: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    result = dist("--store", store, "push-object", *arguments)
    assert (result.code, says in result.line) == (code, True), result.err


def test_a_corrupt_blob_of_the_store_is_not_an_error_of_the_registry(store: Path, registry: CncfRegistry) -> None:
    layer = list(IMAGE.blobs)[-1]
    path = store / "blobs" / layer.replace(":", "/")
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)
    result = dist("--store", store, "push-object", f"{registry.host}/cli/corrupt", layer)
    assert (result.code, "the stored bytes have the digest sha256:" in result.line) == (1, True), result.err
