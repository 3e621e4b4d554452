"""Check and repair of content that a CNCF registry lost on its disk. Afterwards skopeo can copy the image again."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_dist.mirror.report import AuditRow
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import Mirrors, image
from tests.flows.reports import error_lines
from tests.peers import skopeo
from tests.peers.registry import CncfRegistry, cncf_registry

ONE, OTHER = images.image(1170, layers=2), images.image(1171, layers=1, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
LAYER = list(ONE.blobs)[1]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def cncf(directory: Path) -> Iterator[CncfRegistry]:
    with cncf_registry(directory) as registry:
        yield registry


def data(registry: Path, digest: str) -> Path:
    """Return the directory of content, which all repositories share."""
    algorithm, _, encoded = digest.partition(":")
    return registry / "data/docker/registry/v2/blobs" / algorithm / encoded[:2] / encoded


def link(registry: Path, kind: str, digest: str) -> Path:
    """Return the directory of the link from the repository to content."""
    return registry / "data/docker/registry/v2/repositories/app" / kind / Path(*digest.split(":"))


LOST: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a blob": (lambda registry: data(registry, LAYER), f"layer {LAYER} is missing"),
    "the link of a blob": (lambda registry: link(registry, "_layers", LAYER), f"layer {LAYER} is missing"),
    "the link of a child": (
        lambda registry: link(registry, "_manifests/revisions", OTHER.root.digest),
        f"manifest {OTHER.root.digest} is missing",
    ),
    "the link of the root": (
        lambda registry: link(registry, "_manifests/revisions", INDEX.root.digest),
        f"{INDEX.root.digest} is missing",
    ),
    "the tag": (lambda registry: registry / "data/docker/registry/v2/repositories/app/_manifests/tags/v1", "v1 does not exist"),
}


@pytest.mark.parametrize("lost", LOST)
def test_content_that_a_registry_lost_on_its_disk_is_found_and_repaired(
    mirrors: Mirrors, source: FakeRegistry, cncf: CncfRegistry, directory: Path, *, lost: str
) -> None:
    images.load(source, "app", INDEX, "v1")
    entry = {**image(source, source, "app:v1"), "target": f"{cncf.host}/app:v1"}
    assert mirrors.run(entry).status == "complete"
    assert mirrors.check().status == "complete"
    path, fault = LOST[lost]
    shutil.rmtree(path(directory))
    name = f"docker://{cncf.host}/app:v1"
    with pytest.raises(skopeo.SkopeoError):
        skopeo.copy(name, f"dir:{mirrors.directory / 'before'}")
    mirrors.take_requests(source)

    report = mirrors.check(repair=True)

    assert report.status == "complete", error_lines(report)
    (faults,) = [row.faults for row in report.select(AuditRow)]
    assert fault in faults
    assert mirrors.take_requests(source) == []
    skopeo.copy(name, f"dir:{mirrors.directory / 'after'}")
    assert skopeo.raw(name) == INDEX.manifests[-1].raw
