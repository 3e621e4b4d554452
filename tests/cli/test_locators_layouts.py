"""Commands with image layouts: referrers, prune, damaged content, unusual manifests, and hostile text in an index."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import images
from tests.cli.dist import Result, dist, dist_direct
from tests.fakes.registry import FakeRegistry
from tests.remotes.layouts import (
    REF_NAME,
    blob_file,
    entry,
    names_in,
    read_index,
    write_blobs,
    write_index,
    write_layout,
)

ONE, TWO = images.image(850), images.image(851)
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `dist` without Prefect."""
    return lambda *arguments: dist_direct("--store", tmp_path / "store", *map(str, arguments))


def fallback(image: images.BuiltImage) -> str:
    return image.root.digest.replace(":", "-")


def missing(place: Path, *built: images.BuiltImage) -> list[str]:
    """Return the digests whose blobs are missing or different."""
    content = {digest: data for image in built for digest, data in image.blobs.items()}
    content |= {one.digest: one.raw for image in built for one in image.manifests}
    found = {digest: blob_file(place, digest) for digest in content}
    return [digest for digest, path in found.items() if not path.exists() or path.read_bytes() != content[digest]]


# Referrers


def test_referrers_and_digest_tags_go_along(run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    bill, scan = images.artifact(852, subject=ONE), images.artifact(853, subject=ONE, annotations={"a": "b"})
    signature, other = images.artifact(854), images.artifact(855, subject=TWO)
    named = {"v1": ONE, f"{fallback(ONE)}.sig": signature, fallback(ONE): images.index([scan])}
    write_layout(source, named, bill, scan, other, TWO)  # an entry without a name with a subject, as oras writes it

    copied = run("copy", "--referrers", f"oci:{source}:v1", f"oci:{target}:v9")
    assert copied.code == 0, copied.err
    names = names_in(target)
    assert names.keys() == {"v9", fallback(ONE), f"{fallback(ONE)}.sig"}
    assert missing(target, ONE, bill, scan, signature) == []
    listed = json.loads(blob_file(target, names[fallback(ONE)]).read_bytes())["manifests"]
    assert {one["digest"] for one in listed} == {bill.root.digest, scan.root.digest}
    assert {one["artifactType"] for one in listed} == {images.ARTIFACT}
    assert not blob_file(target, other.root.digest).exists()

    before = (target / "index.json").read_bytes()
    again = run("copy", "--referrers", f"oci:{source}:v1", f"oci:{target}:v9")
    assert "0 added, 0 changed, 1 unchanged" in again.lines[-2], again.out
    assert (target / "index.json").read_bytes() == before
    back = run("copy", "--referrers", f"oci:{target}:v9", f"oci:{tmp_path / 'third'}:v9")
    assert back.code == 0, back.err
    assert missing(tmp_path / "third", ONE, bill, scan, signature) == []


# Prune


def test_prune_removes_orphaned_tags_and_keeps_foreign_ones(run: Run, tmp_path: Path) -> None:
    place, file = tmp_path / "layout", tmp_path / "mirror.yaml"
    write_layout(place, {"foreign": TWO})
    with FakeRegistry() as source:
        for tag, image in (("v1", ONE), ("v2", images.image(856))):
            images.load(source, "app", image, tag)
        mirrored = {"source": f"{source.host}/app", "target": f"oci:{place}", "type": "repository", "prune": {"after": "0s"}}
        file.write_text(json.dumps({"lock": str(tmp_path / "lock.json"), "sync": [mirrored]}))
        first = run("mirror", file)
        assert first.code == 0, first.err
        assert names_in(place).keys() == {"foreign", "v1", "v2"}
        source.untag("app", "v2")
        second = run("mirror", file)
    assert second.code == 0, second.err
    assert names_in(place).keys() == {"foreign", "v1"}
    assert missing(place, ONE, TWO) == []


# Damaged content


def test_damaged_content_moves_no_tag_and_the_error_names_the_layout(run: Run, tmp_path: Path) -> None:
    source, target = write_layout(tmp_path / "source", {"v1": ONE}), write_layout(tmp_path / "target", {"v1": TWO})
    layer = blob_file(source, list(ONE.blobs)[-1])
    data = bytearray(layer.read_bytes())
    data[-1] ^= 1
    layer.write_bytes(data)
    failed = run("copy", f"oci:{source}:v1", f"oci:{target}:v1", "--retries", "0")
    assert failed.code == 1
    assert f"oci:{source}" in failed.err
    assert f"expected {list(ONE.blobs)[-1]}, got sha256:" in failed.err
    assert names_in(target) == {"v1": TWO.root.digest}
    layer.unlink()
    lost = run("copy", f"oci:{source}:v1", f"oci:{target}:v1", "--retries", "0")
    assert (lost.code, f"oci:{source}: blob {list(ONE.blobs)[-1]}: not found" in lost.err) == (1, True), lost.err
    assert names_in(target) == {"v1": TWO.root.digest}
    write_blobs(source, ONE)
    assert run("copy", f"oci:{source}:v1", f"oci:{target}:v1").code == 0
    assert names_in(target) == {"v1": ONE.root.digest}
    assert missing(target, ONE) == []


# Unusual manifests


def inline() -> images.BuiltImage:
    """Return an image whose config is only in its manifest, as data."""

    def embed(document: dict[str, Any]) -> None:
        config = ONE.blobs[document["config"]["digest"]]
        document["config"]["data"] = base64.b64encode(config).decode()

    return images.with_manifest(ONE, embed, blobs=ONE.blobs)


@pytest.mark.parametrize(
    "image",
    [
        images.image(860, docker=True),
        images.index([images.image(861), images.image(861, platform="linux/arm64/v8")], nested=True),
        images.artifact(862, artifact_type="application/vnd.unknown"),
        images.image(863, layers=0),
        inline(),
    ],
    ids=["docker", "nested", "artifact", "empty", "inline"],
)
def test_unusual_images_are_copied_byte_for_byte(run: Run, tmp_path: Path, image: images.BuiltImage) -> None:
    source, target = write_layout(tmp_path / "source", {"v1": image}), tmp_path / "target"
    copied = run("copy", f"oci:{source}:v1", f"oci:{target}:v1")
    assert copied.code == 0, copied.err
    assert read_index(target)["manifests"] == [entry(image, {REF_NAME: "v1"})]
    assert missing(target, image) == []


def test_inline_content_needs_no_blob(run: Run, tmp_path: Path) -> None:
    image = inline()
    source, target = write_layout(tmp_path / "source", {"v1": image}), tmp_path / "target"
    blob_file(source, next(iter(image.blobs))).unlink()
    copied = run("copy", f"oci:{source}:v1", f"oci:{target}:v1")
    assert copied.code == 0, copied.err
    assert missing(target, image) == []


def test_an_index_without_all_its_manifests_is_copied_for_the_platforms_that_exist(run: Run, tmp_path: Path) -> None:
    here, gone = images.image(864), images.image(864, platform="linux/arm64/v8")
    index = images.index([here, gone])
    source, target = write_layout(tmp_path / "source", {"v1": index}), tmp_path / "target"
    blob_file(source, gone.root.digest).unlink()
    failed = run("copy", f"oci:{source}:v1", f"oci:{target}:v1", "--retries", "0")
    assert (failed.code, gone.root.digest in failed.err) == (1, True), failed.err
    copied = run("copy", "--platform", "linux/amd64", "--rewrite-index", f"oci:{source}:v1", f"oci:{target}:v1")
    assert copied.code == 0, copied.err
    assert missing(target, here) == []


def test_schema_1_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    raw = json.dumps({"schemaVersion": 1, "name": "x", "tag": "v1", "fsLayers": []}).encode()
    media_type = "application/vnd.docker.distribution.manifest.v1+json"
    old = images.BuiltImage(blobs={}, manifests=(images.Manifest(images.digest_of(raw), media_type, raw),))
    source = write_layout(tmp_path / "source", {"v1": old})
    failed = run("fetch", f"oci:{source}:v1")
    assert (failed.code, "schema 1 is obsolete and refused" in failed.err) == (1, True), failed.err


def test_an_unknown_type_of_the_root_is_content_without_children(run: Run, tmp_path: Path) -> None:
    raw = b"hello"
    image = images.BuiltImage(blobs={}, manifests=(images.Manifest(images.digest_of(raw), "text/plain", raw),))
    source = write_layout(tmp_path / "source", {"v1": image})
    assert run("fetch", f"oci:{source}:v1").code == 0


# Hostile text

ESCAPE = "\x1b[31mred\x07"


def test_control_characters_of_an_index_reach_no_terminal(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_blobs(source, ONE, TWO)
    digest, _, size = TWO.root
    hostile = {"mediaType": f"text/{ESCAPE}", "digest": digest, "size": size}
    write_index(
        source,
        entry(ONE, {REF_NAME: f"{ESCAPE}:v1"}),
        entry(TWO, {REF_NAME: f"b{ESCAPE}:v1"}),
        {**hostile, "annotations": {REF_NAME: "v2", ESCAPE: ESCAPE}},
        {**hostile, "artifactType": ESCAPE, "platform": {"os": ESCAPE, "architecture": ESCAPE}},
    )
    for arguments in (
        ("resolve", f"oci:{source}:v1"),
        ("resolve", f"oci:{source}:v2"),
        ("resolve", f"oci:{source}"),
        ("tags", f"oci:{source}"),
        ("fetch", f"oci:{source}:v2"),
        ("copy", f"oci:{source}:v2", f"oci:{tmp_path / 'target'}:v2"),
    ):
        direct = ["--direct"] if arguments[0] in ("fetch", "copy") else []
        result = dist("--store", tmp_path / "store", *arguments, *direct)
        assert (result.out.decode() + result.err).replace("\n", "").isprintable(), arguments


@pytest.mark.parametrize("media_type", [images.OCI_LAYER, "text/plain", "a/" + "b" * 10_000])
@pytest.mark.parametrize("kind", ["registry", "oci", "store"])
def test_content_of_another_type_is_not_published_as_an_image(run: Run, tmp_path: Path, kind: str, media_type: str) -> None:
    source = write_layout(tmp_path / "source", {"v1": ONE})
    write_index(source, {**entry(ONE, {REF_NAME: "v1"}), "mediaType": media_type})
    with FakeRegistry() as registry:
        target = {"registry": f"{registry.host}/app:v1", "oci": f"oci:{tmp_path / 'target'}:v1", "store": "store:app:v1"}[kind]
        result = run("copy", f"oci:{source}:v1", target)
        assert not [one for one in registry.requests if one.method != "HEAD"]
    assert result.code == 1
    assert "expected a manifest or an index, got the type '" in result.err
    assert len(result.err) < 2000
    assert not (tmp_path / "target" / "index.json").exists()
    assert run("names").out == b""


@pytest.mark.parametrize("inside", ["ingest", "blobs/sha256", f"blobs/sha256/{'0' * 64}", "ingest/team/app"])
def test_a_repository_name_makes_no_layout_inside_the_content_of_another_layout(run: Run, tmp_path: Path, inside: str) -> None:
    """A template such as `oci:/srv/{{.Ref.Repository}}` makes directories of the names in a registry."""
    place, file = tmp_path / "layouts", tmp_path / "mirror.yaml"
    with FakeRegistry() as source:
        images.load(source, "app", ONE, "v1")
        images.load(source, "ingest", ONE, "v1")
        target = f"oci:{place}/{{{{.Ref.Repository}}}}"
        file.write_text(json.dumps({"sync": [{"source": source.host, "type": "registry", "target": target}]}))
        assert run("mirror", file).code == 0
        images.load(source, f"app/{inside}", TWO, "v1")
        images.load(source, "app", TWO, "v2")
        result = run("mirror", file)
    assert result.code == 1
    assert f"the location is inside the directory {inside.partition('/')[0]} of another layout" in result.err
    assert "1 added, 0 changed, 2 unchanged, 1 failed" in result.lines[-2], result.out
    assert names_in(place / "app") == {"v1": ONE.root.digest, "v2": TWO.root.digest}
    assert not (place / "app" / inside / "index.json").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("oci:notes:v1", "it has other files, such as 'readme'; choose another directory"),
        ("oci:notes/readme/layout:v1", "Not a directory"),
        ("oci:store:v1", "the location has a content store of dist"),
        ("oci:layout/blobs/app:v1", "inside the directory blobs of another layout"),
        ("oci:future:v1", "expected an image layout of version 1.0.0"),
    ],
)
def test_a_dry_run_refuses_a_target_that_takes_no_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_layout(tmp_path / "layout", {"v1": images.image(930)})
    write_layout(tmp_path / "future", {"v1": images.image(930)})
    (tmp_path / "future" / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme").write_text("notes of a person")
    assert dist_direct("--store", "store", "fetch", "oci:layout:v1").code == 0
    before = sorted(tmp_path.rglob("*"))

    result = dist_direct("--store", "store", "copy", "--dry-run", "oci:layout:v1", target)

    assert (result.code, message in result.err) == (1, True), result.err
    assert sorted(tmp_path.rglob("*")) == before
