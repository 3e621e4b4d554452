"""Import of archives of `docker save` and of skopeo's `docker-archive:`, which have no manifests, so that one is created."""

import gzip
import io
import json
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, NotFound
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.storage.archive import import_images
from tests import images
from tests.peers import skopeo
from tests.storage.archives import (
    Entry,
    content,
    document,
    export_to_bytes,
    import_archive,
    link,
    memory_store,
    names,
    put,
    tar_of,
)
from tests.storage.conformance import noise

NAME = "docker.io/library/one:1"
LAYERS = [tar_of([(f"file-{number}", noise(700, seed=number))]) for number in range(2)]
PLAIN, GZIP = "application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip"


def config_of(layers: list[bytes]) -> bytes:
    diff_ids = [images.digest_of(layer) for layer in layers]
    return document({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}})


CONFIG = config_of(LAYERS)
CONFIG_NAME = f"{images.digest_of(CONFIG).removeprefix('sha256:')}.json"
ITEM = {"Config": CONFIG_NAME, "RepoTags": ["one:1"], "Layers": ["aa/layer.tar", "bb/layer.tar"]}


def old_docker_archive(change: Mapping[str, Any] | None = None, *, files: Mapping[str, bytes] | None = None) -> bytes:
    """Return an archive as old versions of Docker wrote it, with a changed item or changed files."""
    entries = {
        "aa/VERSION": b"1.0",
        "aa/json": b"{}",
        "aa/layer.tar": LAYERS[0],
        "bb/layer.tar": LAYERS[1],
        CONFIG_NAME: CONFIG,
        "manifest.json": document([ITEM | dict(change or {})]),
        "repositories": b"{}",
        **(files or {}),
    }
    return tar_of(list(entries.items()))


def manifest_of(store: ContentStore, name: str = NAME) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(store.manifest(store.names.get(name).descriptor))
    return document


def assert_manifest_created(store: ContentStore, *, layer_type: str = PLAIN) -> None:
    made = manifest_of(store)
    assert made["mediaType"] == store.names.get(NAME).descriptor.media_type == images.OCI_MANIFEST
    assert (made["config"]["mediaType"], made["config"]["digest"]) == (images.OCI_CONFIG, images.digest_of(CONFIG))
    assert [layer["mediaType"] for layer in made["layers"]] == [layer_type] * 2
    found = [b"".join(store.chunks(Digest.parse(layer["digest"]))) for layer in made["layers"]]
    assert [gzip.decompress(layer) if layer_type == GZIP else layer for layer in found] == LAYERS


def test_an_archive_of_an_old_docker_becomes_an_image_with_a_manifest(store: ContentStore) -> None:
    (outcome,) = import_archive(store, old_docker_archive())
    assert (outcome.name, outcome.error) == (NAME, None)
    assert outcome.descriptor == store.names.get(NAME).descriptor
    assert_manifest_created(store)
    assert len(content(store)) == 4  # nothing of VERSION and json


def test_the_same_archive_gives_the_same_manifest() -> None:
    first, second = memory_store(), memory_store()
    import_archive(first, old_docker_archive())
    import_archive(second, old_docker_archive())
    import_archive(second, old_docker_archive())
    assert (names(first), content(first)) == (names(second), content(second))


@pytest.mark.parametrize(
    "entry",
    [
        link("bb/layer.tar", "../cc.tar"),
        link("bb/layer.tar", "cc.tar", kind=tarfile.LNKTYPE),
        link("./bb/layer.tar", ".././bb/../cc.tar"),
    ],
)
@pytest.mark.parametrize("first", [True, False], ids=["link first", "file first"])
def test_a_layer_may_be_a_link_to_another_entry(entry: Entry, *, first: bool) -> None:
    layers: list[Entry] = [entry, ("cc.tar", LAYERS[1])]
    others: list[Entry] = [("aa/layer.tar", LAYERS[0]), (CONFIG_NAME, CONFIG), ("manifest.json", document([ITEM]))]
    store = memory_store()
    (outcome,) = import_archive(store, tar_of([*(layers if first else layers[::-1]), *others]))
    assert outcome.error is None
    assert_manifest_created(store)


@pytest.mark.parametrize("target", ["../bb/layer.tar", "../../../etc/passwd", "/etc/passwd", "../absent.tar", "../aa"])
def test_a_link_without_a_target_is_a_missing_layer(target: str) -> None:
    others: list[Entry] = [("aa/layer.tar", LAYERS[0]), (CONFIG_NAME, CONFIG), ("manifest.json", document([ITEM]))]
    store = memory_store()
    (outcome,) = import_archive(store, tar_of([link("bb/layer.tar", target), *others]))
    assert isinstance(outcome.error, NotFound)
    assert str(outcome.error) == "archive a.tar: 'bb/layer.tar' is missing in the archive, expected by its manifest.json"
    assert names(store) == {}


@pytest.mark.parametrize("members", [1, 3])
def test_a_gzip_layer_may_have_several_members(members: int) -> None:
    def pack(layer: bytes) -> bytes:
        size = -(-len(layer) // members)
        return b"".join(gzip.compress(layer[at : at + size], mtime=0) for at in range(0, len(layer), size))

    store = memory_store()
    change = {"Layers": ["0.tar.gz", "1.tar.gz"]}
    (outcome,) = import_archive(
        store, old_docker_archive(change, files={f"{n}.tar.gz": pack(layer) for n, layer in enumerate(LAYERS)})
    )
    assert outcome.error is None
    assert_manifest_created(store, layer_type=GZIP)


@pytest.mark.parametrize(
    "name", [f"sha256:{CONFIG_NAME.removesuffix('.json')}", f"blobs/sha256/{CONFIG_NAME[:64]}", "config.json"]
)
def test_the_config_may_have_the_entry_names_of_other_builders(name: str) -> None:
    store = memory_store()
    (outcome,) = import_archive(store, old_docker_archive({"Config": name}, files={name: CONFIG}))
    assert outcome.error is None
    assert_manifest_created(store)


def test_all_tags_of_an_image_are_recorded() -> None:
    store = memory_store()
    import_archive(store, old_docker_archive({"RepoTags": ["one:1", "ghcr.io/a/b:2", "docker.io/library/one:1"]}))
    assert set(names(store)) == {NAME, "ghcr.io/a/b:2"}


@pytest.mark.parametrize("tags", [None, []])
def test_an_image_without_tags_gets_the_given_name(tags: list[str] | None) -> None:
    store = memory_store()
    (outcome,) = import_archive(store, old_docker_archive({"RepoTags": tags}))
    assert isinstance(outcome.error, InvalidInput)
    assert str(outcome.error).endswith("; specify a name for the image")
    (outcome,) = import_archive(store, old_docker_archive({"RepoTags": tags}), name=NAME)
    assert outcome.error is None
    assert_manifest_created(store)


# Damage


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"Layers": ["aa/layer.tar"]},
            InvalidInput,
            r"manifest\.json\[0\]\.Layers: expected 2 layers as in the config, got 1$",
        ),
        (
            {"Layers": ["bb/layer.tar", "aa/layer.tar"]},
            Corrupt,
            r"layer sha256:\S+: expected diff ID sha256:\S+, got sha256:\S+$",
        ),
        (
            {"Layers": ["aa/layer.tar", "cc/layer.tar"]},
            NotFound,
            "'cc/layer.tar' is missing in the archive, expected by its manifest.json$",
        ),
        ({"Config": "absent.json"}, NotFound, "'absent.json' is missing in the archive"),
        ({"Config": "aa/layer.tar"}, InvalidInput, r"manifest\.json\[0\]\.Config: not JSON"),
        ({"Config": None}, InvalidInput, r"manifest\.json\[0\]\.Config: missing"),
        ({"Layers": [1]}, InvalidInput, r"manifest\.json\[0\]\.Layers\[0\]: expected a string"),
    ],
)
def test_an_image_with_contradictory_parts_is_not_recorded(
    change: Mapping[str, Any], error: type[DistError], message: str
) -> None:
    store = memory_store()
    (outcome,) = import_archive(store, old_docker_archive(change))
    assert type(outcome.error) is error
    with pytest.raises(error, match=message):
        raise outcome.error
    assert names(store) == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"[]", "expected a JSON object"),
        (b"{}", r"Config\.rootfs: missing"),
        (b'{"rootfs": {"diff_ids": ["x", "y"]}}', "digest 'x': expected algorithm:hex"),
        (bytes(4 * 2**20 + 1), "Config: expected at most 4194304 bytes"),
    ],
)
def test_an_image_with_an_unreadable_config_is_not_recorded(config: bytes, message: str) -> None:
    store = memory_store()
    (outcome,) = import_archive(store, old_docker_archive({"Config": "config.json"}, files={"config.json": config}))
    assert isinstance(outcome.error, InvalidInput)
    with pytest.raises(InvalidInput, match=message):
        raise outcome.error
    assert names(store) == {}


def test_a_config_that_does_not_match_the_digest_in_its_name_is_refused() -> None:
    store = memory_store()
    with pytest.raises(Corrupt, match=rf"^archive a\.tar: {CONFIG_NAME} .*: expected sha256:\S+, got sha256:\S+$"):
        import_archive(store, old_docker_archive(files={CONFIG_NAME: CONFIG.replace(b"amd64", b"arm64")}))
    assert names(store) == {}


@pytest.mark.parametrize(
    "damage", [lambda packed: packed[:-20], lambda packed: packed[:20] + b"x" + packed[21:], lambda _: b"\x1f\x8b"]
)
def test_an_image_with_a_damaged_gzip_layer_is_not_recorded(damage: Any) -> None:
    store = memory_store()
    packed = gzip.compress(LAYERS[1], mtime=0)
    (outcome,) = import_archive(store, old_docker_archive(files={"bb/layer.tar": damage(packed)}))
    assert isinstance(outcome.error, Corrupt)
    assert names(store) == {}


@pytest.mark.parametrize("name", ["aa/layer.tar", "./aa/layer.tar"])
def test_a_layer_that_occurs_twice_is_refused(name: str) -> None:
    entries: list[Entry] = [("aa/layer.tar", LAYERS[0]), (name, LAYERS[1])]
    with pytest.raises(InvalidInput, match=r"^archive a\.tar: aa/layer\.tar occurs twice"):
        import_archive(memory_store(), tar_of([*entries, ("manifest.json", document([ITEM]))]))


@pytest.mark.parametrize(
    ("listed", "message"),
    [(b"{}", "expected a JSON list, got an object"), (b"[]", "expected at least one image, got an empty list")],
)
def test_a_list_of_another_form_is_refused(listed: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        import_archive(memory_store(), old_docker_archive(files={"manifest.json": listed}))


def test_more_files_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_dist.storage.archive.received._MAX_REMEMBERED", 2)
    with pytest.raises(InvalidInput, match="expected at most 2 files that are not blobs"):
        import_archive(memory_store(), old_docker_archive(files={"cc.tar": b"", "dd.tar": b""}))


def test_a_highly_compressed_layer_is_hashed_in_bounded_memory() -> None:
    layer = io.BytesIO()
    with gzip.GzipFile(fileobj=layer, mode="wb", mtime=0) as file:
        for _ in range(64):
            file.write(bytes(2**20))
    store = memory_store()
    tracemalloc.start()
    try:
        (outcome,) = import_archive(store, old_docker_archive(files={"bb/layer.tar": layer.getvalue()}))
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
    assert isinstance(outcome.error, Corrupt)


# skopeo


def test_a_docker_archive_of_skopeo_is_imported(tmp_path: Path) -> None:
    source, target = open_store(str(tmp_path / "source")), open_store(str(tmp_path / "target"))
    image = images.image(1)
    put(source, image, NAME)
    source.update_index()
    skopeo.copy(f"oci:{tmp_path / 'source'}:{NAME}", f"docker-archive:{tmp_path / 'a.tar'}:{NAME}")
    with (tmp_path / "a.tar").open("rb") as file:
        (outcome,) = import_images(target, file, source="a.tar")
    assert (outcome.name, outcome.error) == (NAME, None)
    config, *layers = image.blobs.items()
    made = manifest_of(target)
    assert made["config"]["digest"] == config[0]
    assert [layer["digest"] for layer in made["layers"]] == [images.digest_of(gzip.decompress(data)) for _, data in layers]
    assert skopeo.inspect(f"oci:{tmp_path / 'target'}:{NAME}")["Layers"] == [layer["digest"] for layer in made["layers"]]


def test_skopeo_reads_the_same_image_from_an_exported_docker_archive(tmp_path: Path) -> None:
    store, target = memory_store(), memory_store()
    put(store, images.image(2, docker=True), NAME)
    (tmp_path / "a.tar").write_bytes(export_to_bytes(store, NAME))
    skopeo.copy(f"docker-archive:{tmp_path / 'a.tar'}:{NAME}", f"docker-archive:{tmp_path / 'b.tar'}:{NAME}")
    (outcome,) = import_archive(target, (tmp_path / "b.tar").read_bytes())
    assert outcome.error is None
    config, *layers = images.image(2, docker=True).blobs.values()
    found = content(target).values()
    assert {config, *map(gzip.decompress, layers)} < set(found)
