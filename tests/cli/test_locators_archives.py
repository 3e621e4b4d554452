"""Commands with archives and the content store as sources and targets. Other tools read the written archives."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import cosign_tags
from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import Result, dist, dist_direct
from tests.fakes.registry import FakeRegistry
from tests.flows.mirrors import find_missing
from tests.peers import skopeo
from tests.peers.prefect import PrefectServer
from tests.remotes.archive_remotes import content_of, read_image

ONE, OTHER = images.image(8500, layers=2), images.image(8501, layers=1, platform="linux/arm64/v8")
INDEX = images.index([ONE, OTHER])
BILL = images.artifact(8502, subject=INDEX)
SIGNATURE = images.artifact(8503)
SIGNATURE_TAG = cosign_tags(Digest.parse(INDEX.root.digest))[0]
ARCHIVES = ["oci-archive", "docker-archive"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A registry with `app:v1` (an index with referrers) and `app:one` (one platform), an empty registry, and a directory."""

    source: FakeRegistry
    target: FakeRegistry
    directory: Path

    @property
    def app(self) -> str:
        """The repository of the images."""
        return f"{self.source.host}/app"

    def run(self, *arguments: str | Path) -> str:
        """Run a command that has to succeed, and return its standard output."""
        result = self.attempt(*arguments)
        assert result.code == 0, result.err
        return result.out.decode()

    def attempt(self, *arguments: str | Path) -> Result:
        """Run a command, without Prefect if it is a run."""
        is_run = arguments[0] in ("fetch", "pull", "push", "copy", "mirror", "seed", "check")
        return (dist_direct if is_run else dist)("--store", self.directory / "store", *arguments)

    def export(self, scheme: str) -> str:
        """Write an archive of `app:one` with the tag `v1` and return its locator."""
        path = self.directory / "source.tar"
        skopeo.copy(f"docker://{self.app}:one", f"{scheme}:{path}:registry.example/app:v1")
        return f"{scheme}:{path}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with FakeRegistry() as source, FakeRegistry() as target:
        for image, tag in ((INDEX, "v1"), (ONE, "one")):
            images.load(source, "app", image, tag)
        images.load(source, "app", BILL)
        images.load(source, "app", SIGNATURE, SIGNATURE_TAG)
        yield Site(source=source, target=target, directory=tmp_path)


# Archives as sources


@pytest.mark.parametrize("scheme", ARCHIVES)
def test_resolve_tags_fetch_object_fetch_and_pull(site: Site, scheme: str) -> None:
    locator = site.export(scheme)
    name = f"{locator}:v1" if scheme == "docker-archive" else f"{locator}:registry.example/app:v1"
    digest = json.loads(site.run("--output", "json", "resolve", name))["descriptor"]["digest"]
    assert site.run("tags", locator).split() == ["v1"]
    manifest = site.run("fetch-object", name)
    assert images.digest_of(manifest.encode()) == digest
    layer = json.loads(manifest)["layers"][0]["digest"]
    assert images.digest_of(_raw(site, "fetch-object", f"{locator}@{layer}")) == layer
    if scheme == "oci-archive":
        assert digest == ONE.root.digest
    site.run("fetch", name)
    assert digest in site.run("names", name)
    assert "unchanged" in site.run("fetch", name)
    site.run("pull", name, site.directory / "root")
    assert len([file for file in (site.directory / "root").rglob("*") if file.is_file()]) == 2


def _raw(site: Site, *arguments: str) -> bytes:
    return site.attempt(*arguments).out


@pytest.mark.parametrize("scheme", ARCHIVES)
def test_a_fetch_and_an_import_of_one_archive_give_the_same_image(site: Site, scheme: str) -> None:
    locator = site.export(scheme)
    site.run("fetch", f"{locator}:registry.example/app:v1")
    site.run("import", locator.partition(":")[2])
    listed = json.loads(site.run("--output", "json", "names"))
    names = {one["name"]: one["descriptor"]["digest"] for one in listed}
    assert set(names) == {f"{locator}:registry.example/app:v1", "registry.example/app:v1"}
    assert len(set(names.values())) == 1


@pytest.mark.parametrize("scheme", ARCHIVES)
def test_copy_from_an_archive_to_a_registry_and_to_a_layout(site: Site, scheme: str) -> None:
    name = f"{site.export(scheme)}:registry.example/app:v1"
    site.run("copy", name, f"{site.target.host}/app:v1")
    found = skopeo.raw(f"docker://{site.target.host}/app:v1")
    site.run("copy", name, f"oci:{site.directory}/layout:v1")
    assert skopeo.raw(f"oci:{site.directory}/layout:v1") == found
    if scheme == "oci-archive":
        assert find_missing(site.target, "app", ONE, "v1") == []


def test_a_mirror_entry_with_an_archive_as_its_source(site: Site) -> None:
    locator, file = f"oci-archive:{site.directory}/source.tar", site.directory / "mirror.yaml"
    site.run("copy", "--referrers", f"{site.app}:v1", f"{locator}:v1")
    entry = {"source": f"{locator}:v1", "type": "image", "target": f"{site.target.host}/app:v1", "referrers": True}
    file.write_text(json.dumps({"lock": f"{site.directory}/lock.json", "sync": [entry]}))
    assert "1 added" in site.run("mirror", file)
    assert find_missing(site.target, "app", INDEX, "v1") == []
    assert find_missing(site.target, "app", SIGNATURE, SIGNATURE_TAG) == []
    assert "0 added, 0 changed, 1 unchanged" in site.run("mirror", file)


def test_all_tags_of_an_archive_are_copied(site: Site) -> None:
    site.run("copy", f"{site.app}:v1", f"oci-archive:{site.directory}/a.tar:v1")
    site.run("copy", f"{site.app}:one", f"oci-archive:{site.directory}/a.tar:one")
    site.run("copy", "--all-tags", f"oci-archive:{site.directory}/a.tar", f"{site.target.host}/app")
    assert find_missing(site.target, "app", INDEX, "v1") + find_missing(site.target, "app", ONE, "one") == []


def test_one_platform_of_an_archive_that_has_only_this_platform(site: Site) -> None:
    """`docker save` writes the whole index, but only the content for the platform of the machine."""
    place = f"oci-archive:{site.directory}/a.tar:v1"
    site.run("copy", "--platform", "linux/amd64", f"{site.app}:v1", place)
    other = "--store", site.directory / "other"
    failed = dist_direct(*other, "fetch", place)
    assert failed.code == 1
    assert (
        "is missing in the archive; if the archive has only some platforms, select a platform, or use dist import" in failed.err
    )
    assert dist_direct(*other, "fetch", "--platform", "linux/amd64", place).code == 0


# Archives as targets


def test_copy_an_index_with_its_referrers_to_an_oci_archive(site: Site) -> None:
    place = f"oci-archive:{site.directory}/a.tar:v1"
    assert "1 added" in site.run("copy", "--referrers", f"{site.app}:v1", place)
    assert skopeo.raw(place) == INDEX.manifests[-1].raw
    assert skopeo.raw(f"oci-archive:{site.directory}/a.tar:{SIGNATURE_TAG}") == SIGNATURE.manifests[-1].raw
    assert read_image(place) == content_of(INDEX)
    before = (site.directory / "a.tar").stat()
    assert "0 added, 0 changed, 1 unchanged" in site.run("copy", "--referrers", f"{site.app}:v1", place)
    assert (site.directory / "a.tar").stat() == before


def test_copy_one_platform_to_a_docker_archive(site: Site) -> None:
    place = f"docker-archive:{site.directory}/a.tar:registry.example/app:v1"
    failed = site.attempt("copy", f"{site.app}:v1", place)
    assert failed.code == 1
    assert "docker load reads images of one platform, this content has 2 images; select one platform" in failed.err
    assert not (site.directory / "a.tar").exists()
    assert site.source.find_requests("GET", "/v2/app/blobs/.*") == []
    site.run("copy", "--platform", "linux/amd64", f"{site.app}:v1", place)
    assert skopeo.inspect(place)["Architecture"] == "amd64"
    skopeo.copy(place, f"oci:{site.directory}/layout:v1")
    assert len(skopeo.inspect(f"oci:{site.directory}/layout:v1")["Layers"]) == 2


def test_copy_all_tags_to_one_archive(site: Site) -> None:
    images.load(site.source, "two", ONE, "x")
    site.run("copy", "--all-tags", f"{site.source.host}/two", f"docker-archive:{site.directory}/a.tar:two:")
    assert read_image(f"docker-archive:{site.directory}/a.tar:two:x") == content_of(ONE)
    place = f"oci-archive:{site.directory}/b.tar"
    assert "3 added" in site.run("copy", "--all-tags", site.app, place)
    assert sorted(site.run("tags", place).split()) == sorted(["v1", "one", SIGNATURE_TAG])
    assert skopeo.raw(f"{place}:v1") == INDEX.manifests[-1].raw
    images.load(site.source, "app", OTHER, "one")
    assert "0 added, 1 changed, 2 unchanged" in site.run("copy", "--all-tags", site.app, place)
    assert read_image(f"{place}:one") == content_of(OTHER)
    assert read_image(f"{place}:v1") == content_of(INDEX)


def test_copy_within_one_archive(site: Site) -> None:
    place = f"oci-archive:{site.directory}/a.tar"
    site.run("copy", f"{site.app}:v1", f"{place}:v1")
    site.run("copy", f"{place}:v1", f"{place}:stable")
    assert sorted(site.run("tags", place).split()) == ["stable", "v1"]
    assert read_image(f"{place}:stable") == content_of(INDEX)


@pytest.mark.parametrize("scheme", ARCHIVES)
def test_push_to_an_archive(site: Site, scheme: str) -> None:
    site.run("fetch", f"{site.app}:one")
    site.run("push", f"{site.app}:one", f"{scheme}:{site.directory}/a.tar:v1")
    assert read_image(f"{scheme}:{site.directory}/a.tar:v1") == content_of(ONE)


def test_seed_many_images_into_one_archive(site: Site) -> None:
    images.load(site.source, "base", ONE, "v2")
    file, place = site.directory / "images.txt", f"oci-archive:{site.directory}/a.tar:registry.example"
    file.write_text(f"{site.app}:v1\n{site.source.host}/base:v2\n")
    assert "2 added" in site.run("seed", "--to", place, file)
    assert read_image(f"{place}/app:v1") == content_of(INDEX)
    assert read_image(f"{place}/base:v2") == content_of(ONE)


@pytest.mark.parametrize("scheme", ARCHIVES)
def test_seed_from_archives(site: Site, scheme: str) -> None:
    name, file = site.export(scheme), site.directory / "images.txt"
    (site.directory / "plain.tar.gz").write_bytes(gzip.compress((site.directory / "source.tar").read_bytes()))
    file.write_text(f"{name}:registry.example/app:v1\n{scheme}:plain.tar.gz:v1\n")
    assert "2 added" in site.run("seed", "--to", f"{site.target.host}/hub", file)
    found = skopeo.raw(f"docker://{site.target.host}/hub/app:v1")
    assert found == skopeo.raw(f"docker://{site.target.host}/hub/plain:v1")
    if scheme == "oci-archive":
        assert found == ONE.manifests[-1].raw
    assert "2 added" in site.run("seed", "--to", f"{scheme}:{site.directory}/out.tar:hub.example", file)
    assert len(read_image(f"{scheme}:{site.directory}/out.tar:hub.example/plain:v1")) == len(content_of(ONE))


def test_mirror_to_an_archive_check_repair_and_prune(site: Site) -> None:
    place, file = f"oci-archive:{site.directory}/a.tar", site.directory / "mirror.yaml"
    entry = {"source": site.app, "type": "repository", "target": place, "tags": {"allow": ["v1", "one"]}, "referrers": True}
    document = {"lock": f"{site.directory}/lock.json", "defaults": {"prune": {"after": "0s"}}, "sync": [entry]}
    file.write_text(json.dumps(document))
    assert "2 added" in site.run("mirror", file)
    assert "2 ok" in site.run("check", file)
    _lose_blob(site.directory / "a.tar", next(iter(OTHER.blobs)))
    assert site.attempt("check", file).code == 1
    assert "1 repaired" in site.run("check", "--repair", file)
    assert read_image(f"{place}:v1") == content_of(INDEX)
    file.write_text(json.dumps(document | {"sync": [entry | {"tags": {"allow": ["one"]}}]}))
    assert "1 removed" in site.run("mirror", file)
    assert "v1" not in site.run("tags", place).split()
    assert read_image(f"{place}:one") == content_of(ONE)


def _lose_blob(path: Path, digest: str) -> None:
    """Rename the entry of a blob in an archive, so that no reader finds the blob."""
    name = digest.partition(":")[2].encode()
    raw = path.read_bytes()
    start = raw.index(b"blobs/sha256/" + name)
    header = bytearray(raw[start : start + 512])
    header[:5] = b"BLOBS"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(raw[:start] + bytes(header) + raw[start + 512 :])


def test_mirror_one_platform_to_a_docker_archive(site: Site) -> None:
    place, file = f"docker-archive:{site.directory}/a.tar:hub/app", site.directory / "mirror.yaml"
    entry = {"source": f"{site.app}:v1", "type": "image", "target": f"{place}:v1", "platform": "linux/amd64"}
    file.write_text(json.dumps({"lock": f"{site.directory}/lock.json", "sync": [entry]}))
    assert "1 added" in site.run("mirror", file)
    assert read_image(f"{place}:v1") == content_of(ONE)
    assert "0 added, 0 changed, 1 unchanged" in site.run("mirror", file)
    assert "1 ok" in site.run("check", file)


def test_a_prefect_run_copies_between_archives_and_names(site: Site, prefect: PrefectServer) -> None:
    assert prefect.url
    place, store = f"oci-archive:{site.directory}/a.tar:v1", ("--store", site.directory / "store")
    for source, target in ((f"{site.app}:v1", place), (place, "store:hub/app:v1")):
        result = dist(*store, "copy", "--referrers", source, target)
        assert result.code == 0, result.err
    assert read_image(place) == content_of(INDEX)
    assert INDEX.root.digest in site.run("names", "hub/app:v1")


# The content store as a target


def test_copy_records_a_name_with_platforms_and_referrers(site: Site) -> None:
    assert "1 added" in site.run("copy", "--referrers", f"{site.app}:v1", "store:hub/app:v1")
    assert "0 added, 0 changed, 1 unchanged" in site.run("copy", "--referrers", f"{site.app}:v1", "store:hub/app:v1")
    with open_store(str(site.directory / "store")) as store:
        name = store.names.get("hub/app:v1")
    assert (str(name.descriptor.digest), name.platforms) == (INDEX.root.digest, None)
    assert {str(one.descriptor.digest) for one in name.referrers} == {BILL.root.digest, SIGNATURE.root.digest}
    assert "unchanged" in site.run("fetch", "store:hub/app:v1")


def test_copy_one_platform_to_a_name_records_the_platform(site: Site) -> None:
    site.run("copy", "--platform", "linux/arm64", f"{site.app}:v1", "store:hub/app:v1")
    with open_store(str(site.directory / "store")) as store:
        assert [str(one) for one in store.names.get("hub/app:v1").platforms or ()] == ["linux/arm64"]


def test_push_and_seed_to_names(site: Site) -> None:
    site.run("fetch", f"{site.app}:one")
    site.run("push", f"{site.app}:one", "store:hub/app:pushed")
    file = site.directory / "images.txt"
    file.write_text(f"{site.app}:v1\n{site.app}:one\n")
    assert "2 added" in site.run("seed", "--to", "store:hub", file)
    with open_store(str(site.directory / "store")) as store:
        found = {name.name: str(name.descriptor.digest) for name in store.names if name.name.startswith("hub/")}
    assert found == {"hub/app:pushed": ONE.root.digest, "hub/app:one": ONE.root.digest, "hub/app:v1": INDEX.root.digest}


def test_copy_an_archive_to_a_name_and_a_name_to_another_name(site: Site) -> None:
    site.run("copy", f"{site.export('oci-archive')}:registry.example/app:v1", "store:hub/app:v1")
    site.run("copy", "store:hub/app:v1", "store:hub/app:stable")
    assert ONE.root.digest in site.run("names", "hub/app:stable")
    site.run("copy", "store:hub/app:stable", f"{site.target.host}/app:v1")
    assert find_missing(site.target, "app", ONE, "v1") == []


def test_mirror_to_names_check_and_prune(site: Site) -> None:
    file = site.directory / "mirror.yaml"
    entry = {
        "source": site.app,
        "type": "repository",
        "target": "store:hub/app",
        "tags": {"allow": ["v1", "one"]},
        "referrers": True,
    }
    document = {"lock": f"{site.directory}/lock.json", "defaults": {"prune": {"after": "0s"}}, "sync": [entry]}
    file.write_text(json.dumps(document))
    assert "2 added" in site.run("mirror", file)
    assert "0 added, 0 changed, 2 unchanged" in site.run("mirror", file)
    assert "2 ok" in site.run("check", file)
    file.write_text(json.dumps(document | {"sync": [entry | {"tags": {"allow": ["one"]}}]}))
    assert "1 removed" in site.run("mirror", file)
    with open_store(str(site.directory / "store")) as store:
        assert {name.name for name in store.names if name.name.startswith("hub/")} == {"hub/app:one"}


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resolve", "oci-archive:absent.tar:v1"), "no archive of images found; check the path, which ends at the first colon"),
        (("resolve", "oci-archive:{notes}:v1"), "expected a tar archive, plain or compressed with gzip, bzip2 or xz"),
        (("fetch", "oci-archive:{notes}:v1"), "expected a tar archive, plain or compressed with gzip, bzip2 or xz"),
        (("copy", "{app}:v1", "oci-archive:{notes}:v1"), "expected a tar archive, plain or compressed with gzip, bzip2 or xz"),
        (
            ("copy", "{app}:v1", "oci-archive:absent/a.tar:v1"),
            "the directory {here}/absent does not exist; create the directory",
        ),
        (("tags", "store:hub/app"), "cannot list tags; name each image with its tag, as dist names lists it"),
        (("tags", "oci-archive:s3://bucket/a.tar"), "an archive is a file on the local disk, not a URL"),
    ],
)
def test_a_wrong_locator_has_one_clear_line(
    site: Site, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(site.directory)
    (site.directory / "notes").write_text("notes of a person")
    texts = {"app": site.app, "notes": str(site.directory / "notes"), "here": str(site.directory)}
    result = site.attempt(*(argument.format_map(texts) for argument in arguments))
    assert result.code in (1, 2)
    (line,) = [one for one in result.err.splitlines() if one.startswith("dist: ")]
    assert message.format_map(texts) in line
    assert (site.directory / "notes").read_text() == "notes of a person"
