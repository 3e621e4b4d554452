"""Attestation manifests of BuildKit: runs select the attestations of the selected platforms only."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.mirror.report import AuditRow, RunReport
from prefect_dist.ocispec import Platform
from prefect_dist.storage import open_store
from prefect_dist.storage.archive import import_images
from prefect_dist.storage.presence import check_name
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, find_missing, image, results
from tests.flows.reports import document, error_lines, result_of
from tests.images import BuiltImage
from tests.peers.prefect import PrefectServer

AMD, ARM = images.image(1300, layers=1), images.image(1301, layers=1, platform="linux/arm64")
ABOUT_AMD, ABOUT_ARM = images.attestation(1302, AMD), images.attestation(1303, ARM)
# The attestation of the selected image comes first, unlike in indexes of builders, because the order must not matter.
INDEX = images.index([ABOUT_ARM, AMD, ARM, ABOUT_AMD])
SELECTED = {INDEX.root.digest, *ARM.descriptors, *ABOUT_ARM.descriptors}


@pytest.fixture
def name(source: FakeRegistry) -> str:
    images.load(source, "app", INDEX, "v1")
    return f"{source.host}/app:v1"


def stored_digests(store: Path) -> set[str]:
    return {f"sha256:{path.name}" for path in (store / "blobs" / "sha256").iterdir()}


def run_flow(prefect: PrefectServer, flow: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        return result_of(flow(*arguments, return_state=True, **options))


def children(registry: FakeRegistry, tag: str) -> list[str]:
    found = registry.manifest("app", tag)
    assert found is not None
    return [one["digest"] for one in json.loads(found[1])["manifests"]]


def test_fetch_keeps_the_attestation_of_the_selected_platform(prefect: PrefectServer, tmp_path: Path, name: str) -> None:
    from prefect_dist.flows.fetch import fetch

    report = run_flow(prefect, fetch, [name], str(tmp_path / "store"), platforms=["linux/arm64"])

    assert isinstance(report, RunReport)
    assert not error_lines(report)
    assert stored_digests(tmp_path / "store") == SELECTED
    store = open_store(str(tmp_path / "store"))
    assert check_name(store, store.names.get(name)).is_complete
    (tmp_path / "store" / "blobs" / "sha256" / ABOUT_ARM.root.digest.removeprefix("sha256:")).unlink()
    assert [str(one.digest) for one in check_name(store, store.names.get(name)).missing] == [ABOUT_ARM.root.digest]


def test_pull_keeps_the_attestation_and_unpacks_the_image(prefect: PrefectServer, tmp_path: Path, name: str) -> None:
    from prefect_dist.flows.pull import pull

    report = run_flow(prefect, pull, name, str(tmp_path / "root"), str(tmp_path / "store"), "linux/arm64")

    assert error_lines(report) == []
    assert stored_digests(tmp_path / "store") == SELECTED
    assert [one["manifest"] for one in document(report)["unpacked"]] == [ARM.root.digest]


@pytest.mark.parametrize("rewrite", [False, True], ids=["sparse index", "rewritten index"])
def test_mirror_publishes_and_check_repairs_the_attestation(
    mirrors: Mirrors, source: FakeRegistry, name: str, *, rewrite: bool
) -> None:
    assert name == f"{source.host}/app:v1"
    with FakeRegistry(sparse=not rewrite) as target:
        entry = image(source, target, "app:v1", platforms=["linux/arm64"], rewriteIndex=rewrite)
        assert results(mirrors.run(entry)) == {"app:v1": "added"}
        assert find_missing(target, "app", ARM) + find_missing(target, "app", ABOUT_ARM) == []
        assert [target.manifest("app", one.root.digest) for one in (AMD, ABOUT_AMD)] == [None, None]
        assert (children(target, "v1") == [ABOUT_ARM.root.digest, ARM.root.digest]) is rewrite
        assert results(mirrors.run(entry)) == {"app:v1": "unchanged"}
        assert mirrors.check().status == "complete"

        target.lose("app", ABOUT_ARM.root.digest)
        damaged = mirrors.check()
        assert [fault for row in damaged.select(AuditRow) for fault in row.faults] == [
            f"manifest {ABOUT_ARM.root.digest} is missing"
        ]
        assert mirrors.check(repair=True).status == "complete"
        assert find_missing(target, "app", ABOUT_ARM) == []


def test_seed_publishes_the_attestation_online_and_offline(mirrors: Mirrors, source: FakeRegistry, name: str) -> None:
    with FakeRegistry(sparse=True) as first, FakeRegistry() as second:
        assert mirrors.seed(name, to=[first], platforms=["linux/arm64"]).status == "complete"
        mirrors.take_requests(source)
        seeded = mirrors.seed(name, to=[second], platforms=["linux/arm64"], rewrite_index=True, offline=True)
        assert seeded.status == "complete", error_lines(seeded)
        assert mirrors.take_requests(source) == []
        for target in (first, second):
            assert find_missing(target, "app", ARM) + find_missing(target, "app", ABOUT_ARM) == []
            assert target.manifest("app", ABOUT_AMD.root.digest) is None
        assert children(second, "v1") == [ABOUT_ARM.root.digest, ARM.root.digest]


def test_a_single_platform_selects_the_image_and_not_its_attestation(
    mirrors: Mirrors, source: FakeRegistry, target: FakeRegistry, name: str
) -> None:
    assert name == f"{source.host}/app:v1"
    assert results(mirrors.run(image(source, target, "app:v1", platform="linux/arm64"))) == {"app:v1": "added"}
    assert not find_missing(target, "app", ARM, "v1")


@pytest.mark.parametrize("rewrite", [False, True], ids=["sparse index", "rewritten index"])
def test_an_archive_without_attestations_is_complete_and_can_be_seeded(
    mirrors: Mirrors, tmp_path: Path, *, rewrite: bool
) -> None:
    """An archive of `docker save` has the whole index, but only the image of one platform."""
    name = "registry.example/app:v1"
    archive = save_archive(tmp_path, name, INDEX, ARM)
    store = open_store(str(mirrors.store))
    with archive.open("rb") as stream:
        assert [one.error for one in import_images(store, stream, source="archive")] == [None]
    recorded = store.names.get(name)
    assert recorded.platforms == (Platform.parse("linux/arm64"),)
    assert check_name(store, recorded).is_complete

    with FakeRegistry(sparse=not rewrite) as target:
        report = mirrors.seed(name, to=[target], platforms=["linux/arm64"], rewrite_index=rewrite, offline=True)
        assert report.status == "complete", error_lines(report)
        assert not find_missing(target, "app", ARM)
        assert (children(target, "v1") == [ARM.root.digest]) is rewrite
    assert check_name(store, store.names.get(name)).is_complete


def save_archive(directory: Path, name: str, index: BuiltImage, image: BuiltImage) -> Path:
    """Write an OCI layout as an archive, with an index and one of its images."""
    root = {"mediaType": index.root.media_type, "digest": index.root.digest, "size": index.root.size}
    named = {**root, "annotations": {"io.containerd.image.name": name}}
    blobs = {**image.blobs, image.root.digest: image.manifests[-1].raw, index.root.digest: index.manifests[-1].raw}
    files = {f"blobs/sha256/{digest.removeprefix('sha256:')}": data for digest, data in blobs.items()}
    files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    path = directory / "saved.tar"
    with tarfile.open(path, "w") as tar:
        for file, data in files.items():
            (directory / "file").write_bytes(data)
            tar.add(directory / "file", arcname=file)
    return path
