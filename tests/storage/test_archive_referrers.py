"""Referrers and digest tags of images in exported and imported archives, in the forms that other tools use."""

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import InvalidInput, NotFound
from prefect_dist.ocispec.referrers import Referrer, cosign_tags, fallback_tag
from prefect_dist.storage import ContentStore, Name, gc, open_store
from tests import images
from tests.peers import skopeo
from tests.peers.processes import PATIENCE_S
from tests.storage.archives import (
    Entry,
    content,
    descriptor,
    document,
    entries_of,
    export_to_bytes,
    import_archive,
    memory_store,
    put,
    tar_of,
)
from tests.storage.conformance import ingest

REPOSITORY = "registry.example/team/app"
NAME = f"{REPOSITORY}:1"
REF_NAME = "org.opencontainers.image.ref.name"
ONE, ARM = images.image(880), images.image(881, platform="linux/arm64")
IMAGE = images.index([ONE, ARM])
BILL = images.artifact(882, subject=ONE)
SIGNED_BILL = images.artifact(883, subject=BILL)
ATTESTED = images.artifact(884, subject=IMAGE)
SIGNATURE = images.artifact(885)  # without a subject, as in cosign's signatures
SIGNATURE_TAG = cosign_tags(Digest.parse(IMAGE.root.digest))[0]
LISTED = (BILL, SIGNED_BILL, ATTESTED)
LISTINGS = [fallback_tag(Digest.parse(one.root.digest)) for one in (ONE, BILL, IMAGE)]


def entry_of(image: images.BuiltImage) -> Descriptor:
    """Return the descriptor with which a registry lists a referrer."""
    return Descriptor.from_json({**descriptor(image).to_json(), "artifactType": images.ARTIFACT}, at="test")


def fill(store: ContentStore, image: images.BuiltImage) -> None:
    content = image.blobs | {manifest.digest: manifest.raw for manifest in image.manifests}
    for digest in content.keys() - {str(info.digest) for info in store.walk()}:
        ingest(store, content[digest])


def filled_store() -> ContentStore:
    store = memory_store()
    put(store, IMAGE, NAME)
    referrers = [Referrer(entry_of(one)) for one in LISTED] + [Referrer(descriptor(SIGNATURE), SIGNATURE_TAG)]
    for one in (*LISTED, SIGNATURE):
        fill(store, one)
    ordered = tuple(sorted(referrers, key=lambda one: str(one.descriptor.digest)))
    store.names.put(NAME, descriptor(IMAGE), source=REPOSITORY, referrers=ordered)
    return store


def recorded_referrers(name: Name) -> set[tuple[str, str | None]]:
    return {(str(referrer.descriptor.digest), referrer.tag) for referrer in name.referrers}


ALL: set[tuple[str, str | None]] = {(one.root.digest, None) for one in LISTED} | {(SIGNATURE.root.digest, SIGNATURE_TAG)}


def archive(*listed: tuple[images.BuiltImage, str | None], more: Sequence[images.BuiltImage] = ()) -> bytes:
    """Return an image layout whose index.json lists these images by reference name. `more` images are not in the index."""
    files: dict[str, bytes] = {}
    for image in (*(image for image, _ in listed), *more):
        for digest, data in (image.blobs | {manifest.digest: manifest.raw for manifest in image.manifests}).items():
            files[f"blobs/{digest.replace(':', '/')}"] = data
    manifests: list[dict[str, Any]] = [
        {**descriptor(image).to_json(), **({"annotations": {REF_NAME: tag}} if tag else {})} for image, tag in listed
    ]
    entries: list[Entry] = list(files.items())
    return tar_of([*entries, ("index.json", document({"schemaVersion": 2, "manifests": manifests}))])


def test_an_export_followed_by_an_import_keeps_the_referrers() -> None:
    store, target = filled_store(), memory_store()
    data = export_to_bytes(store, NAME)
    (outcome,) = import_archive(target, data)
    assert (outcome.name, outcome.error, outcome.referrers) == (NAME, None, 4)
    assert target.names.get(NAME).referrers == store.names.get(NAME).referrers
    assert [name.name for name in target.names] == [NAME]
    assert content(store).items() <= content(target).items()
    assert export_to_bytes(target, NAME) == data


def test_an_archive_lists_referrers_under_the_tags_of_other_tools() -> None:
    files = entries_of(export_to_bytes(filled_store(), NAME))
    tagged = {one["annotations"][REF_NAME]: one["digest"] for one in json.loads(files["index.json"])["manifests"]}
    assert set(tagged) == {NAME, *(f"{REPOSITORY}:{tag}" for tag in (*LISTINGS, SIGNATURE_TAG))}
    assert tagged[f"{REPOSITORY}:{SIGNATURE_TAG}"] == SIGNATURE.root.digest
    listing = json.loads(files[f"blobs/{tagged[f'{REPOSITORY}:{LISTINGS[0]}'].replace(':', '/')}"])
    assert listing["manifests"] == [entry_of(BILL).to_json()]
    (item,) = json.loads(files["manifest.json"]) or [None]
    assert item is None


def test_skopeo_reads_the_referrers_of_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(export_to_bytes(filled_store(), NAME))
    for tag, expected in ((SIGNATURE_TAG, SIGNATURE), (LISTINGS[2], None)):
        raw = skopeo.raw(f"oci-archive:{tmp_path / 'a.tar'}:{REPOSITORY}:{tag}")
        assert raw == expected.manifests[-1].raw if expected else ATTESTED.root.digest.encode() in raw


def test_digest_tags_that_skopeo_copied_are_imported(tmp_path: Path) -> None:
    source = open_store(str(tmp_path / "source"))
    for image in (IMAGE, SIGNATURE):
        put(source, image, f"{REPOSITORY}:{'1' if image is IMAGE else SIGNATURE_TAG}")
    source.update_index()
    for tag in ("1", SIGNATURE_TAG):
        skopeo.copy(f"oci:{tmp_path / 'source'}:{REPOSITORY}:{tag}", f"oci:{tmp_path / 'copy'}:{REPOSITORY}:{tag}")
    files: list[Entry] = [
        (str(path.relative_to(tmp_path / "copy")), path.read_bytes())
        for path in (tmp_path / "copy").rglob("*")
        if path.is_file()
    ]
    target = memory_store()
    (outcome,) = import_archive(target, tar_of(files))
    assert (outcome.name, outcome.error) == (NAME, None)
    assert recorded_referrers(target.names.get(NAME)) == {(SIGNATURE.root.digest, SIGNATURE_TAG)}


@pytest.mark.parametrize("form", ["untagged", "bare tags"])
def test_referrers_in_the_forms_of_other_tools_are_imported(form: str) -> None:
    if form == "untagged":  # oras lists every manifest with a subject
        data = archive((IMAGE, NAME), *((one, None) for one in LISTED))
        expected = {pair for pair in ALL if pair[1] is None}
    else:  # regclient uses fallback tags
        listings = [(images.index([one]), tag) for one, tag in zip(LISTED, LISTINGS, strict=True)]
        data = archive((IMAGE, NAME), (SIGNATURE, SIGNATURE_TAG), *listings)
        expected = ALL
    store = memory_store()
    (outcome,) = import_archive(store, data)
    assert (outcome.name, outcome.error, recorded_referrers(store.names.get(NAME))) == (NAME, None, expected)
    gc.collect(store, grace=timedelta(0), dry_run=False)
    assert {digest for digest, _ in expected} <= set(content(store))


def test_a_fallback_index_does_not_make_an_unrelated_manifest_a_referrer() -> None:
    data = archive((IMAGE, NAME), (images.index([SIGNATURE, BILL]), LISTINGS[2]))
    store = memory_store()
    outcomes = import_archive(store, data)
    assert recorded_referrers(store.names.get(NAME)) == {(BILL.root.digest, None)}  # its own subject is a part of the image
    assert [outcome.error for outcome in outcomes] == [None]


BOMB = """
import resource, sys, threading
threading.stack_size(256 * 1024)
resource.setrlimit(resource.RLIMIT_DATA, (120_000_000,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (12,) * 2)
from prefect_dist.storage import open_store
from prefect_dist.storage.archive import import_images
with open(sys.argv[1], "rb") as file:
    store = open_store("memory://bomb")
    import_images(store, file, source="a.tar")
print({name.name: len(name.referrers) for name in store.names})
"""


def test_a_fallback_index_of_many_repositories_is_kept_once(tmp_path: Path) -> None:
    empty, kind = b"{}", "application/vnd.oci.image.manifest.v1+json"
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": str(Digest.of(empty)), "size": len(empty)}
    kid = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [], "subject": descriptor(IMAGE).to_json()}
    kids = [document({**kid, "annotations": {"number": str(number)}}) for number in range(300)]
    listed = [{"mediaType": kind, "digest": str(Digest.of(raw)), "size": len(raw)} for raw in kids]
    listing = document({"schemaVersion": 2, "mediaType": images.OCI_INDEX, "manifests": listed})
    root = {"mediaType": images.OCI_INDEX, "digest": str(Digest.of(listing)), "size": len(listing)}
    roots: list[dict[str, Any]] = [
        {**root, "annotations": {REF_NAME: f"registry.example/r{number}:{LISTINGS[2]}"}} for number in range(4000)
    ]
    named = {**descriptor(IMAGE).to_json(), "annotations": {REF_NAME: "registry.example/r3999:1"}}
    blobs = [*kids, listing, empty, *IMAGE.blobs.values(), *(one.raw for one in IMAGE.manifests)]
    entries: list[Entry] = [(f"blobs/{str(Digest.of(raw)).replace(':', '/')}", raw) for raw in {*blobs}]
    index = document({"schemaVersion": 2, "manifests": [named, *roots]})
    (tmp_path / "a.tar").write_bytes(tar_of([*entries, ("index.json", index)]))
    argv = [sys.executable, "-c", BOMB, str(tmp_path / "a.tar")]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.stdout == "{'registry.example/r3999:1': 300}\n", done.stderr[-300:]


def test_more_referrers_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_dist.storage.archive.related._MAX_CANDIDATES", 1)
    with pytest.raises(InvalidInput, match=r"expected at most 1 referrers in index\.json, found more"):
        import_archive(memory_store(), archive((IMAGE, NAME), (BILL, None), (ATTESTED, None)))


def test_images_of_an_archive_are_not_compared_with_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[object] = []
    monkeypatch.setattr("prefect_dist.storage.archive.reading._ListedImage.__eq__", lambda _, other: compared.append(other))
    listed = [(IMAGE, f"{REPOSITORY}:{number}") for number in range(5)] + [(BILL, LISTINGS[0]), (ATTESTED, LISTINGS[2])]
    import_archive(memory_store(), archive(*listed, (BILL, None)))
    assert compared == []


def test_a_signature_without_its_image_is_imported_as_an_image() -> None:
    store = memory_store()
    (outcome,) = import_archive(store, archive((SIGNATURE, f"{REPOSITORY}:{SIGNATURE_TAG}")))
    assert (outcome.name, outcome.error) == (f"{REPOSITORY}:{SIGNATURE_TAG}", None)


def test_a_digest_tag_of_another_repository_is_not_a_referrer() -> None:
    store, other = memory_store(), f"registry.example/other:{SIGNATURE_TAG}"
    assert {one.name for one in import_archive(store, archive((IMAGE, NAME), (SIGNATURE, other)))} == {NAME, other}
    assert store.names.get(NAME).referrers == ()


def test_an_import_without_referrers_keeps_the_recorded_referrers() -> None:
    store = filled_store()
    (outcome,) = import_archive(store, archive((IMAGE, NAME)))
    assert (outcome.error, outcome.referrers, recorded_referrers(store.names.get(NAME))) == (None, 4, ALL)


def test_an_incomplete_referrer_is_reported_and_its_image_is_imported(caplog: pytest.LogCaptureFixture) -> None:
    files = entries_of(export_to_bytes(filled_store(), NAME))
    for digest in BILL.blobs.keys() - SIGNATURE.blobs.keys() - ATTESTED.blobs.keys():
        files.pop(f"blobs/{digest.replace(':', '/')}", None)
    store = memory_store()
    outcome, *others = import_archive(store, tar_of(list(files.items())))
    assert (outcome.name, outcome.error) == (NAME, None)
    assert recorded_referrers(store.names.get(NAME)) == ALL - {(one.root.digest, None) for one in (BILL, SIGNED_BILL)}
    assert [type(one.error) for one in others if one.name == f"{REPOSITORY}:{LISTINGS[0]}"] == [NotFound]
    assert [message.startswith(f"{NAME}: an incomplete referrer is not imported: ") for message in caplog.messages] == [True]


def test_an_export_with_an_incomplete_referrer_is_refused() -> None:
    store = filled_store()
    gone = (SIGNATURE.blobs.keys() - BILL.blobs.keys()).pop()
    store.delete(Digest.parse(gone))
    with pytest.raises(NotFound, match=gone):
        export_to_bytes(store, NAME)
