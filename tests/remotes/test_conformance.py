"""The conformance suite runs against each built-in remote: registries, layouts, archives and the content store."""

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.referrers import Referrer
from prefect_dist.remotes import Registries, Remotes
from prefect_dist.remotes.conformance import RemoteConformance, RemoteSample
from prefect_dist.remotes.plugins import GuardedRemote, Plugin
from prefect_dist.storage import ContentStore, open_store
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.peers.registry import CncfRegistry, cncf_registry
from tests.remotes.asking import SETTINGS, anonymous
from tests.remotes.web import web_server
from tests.storage.archives import tar_of

ONE, TWO = images.image(9300, layers=2, layer_bytes=5_000_000), images.image(9301, layers=1)
BILL = images.artifact(9302, subject=ONE)
REF_NAME = "org.opencontainers.image.ref.name"
REPOSITORY = "team/app"


def root_of(image: images.BuiltImage) -> Descriptor:
    return Descriptor(media_type=image.root.media_type, digest=Digest.parse(image.root.digest), size=image.root.size)


def content_of(image: images.BuiltImage) -> dict[Descriptor, bytes]:
    """Return all content of an image with one platform, by descriptor, the blobs first."""
    document = json.loads(image.manifests[-1].raw)
    listed = [Descriptor.from_json(one, at="test") for one in (document["config"], *document["layers"])]
    return {**{one: image.blobs[str(one.digest)] for one in listed}, root_of(image): image.manifests[-1].raw}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentStore]:
    with open_store(str(tmp_path / "store")) as store:
        yield store


@pytest.fixture
def remotes(store: ContentStore) -> Iterator[Remotes]:
    with Remotes(Registries(SETTINGS, credentials=anonymous), credentials=anonymous, open_store=lambda: store) as remotes:
        yield remotes


def make_sample(remotes: Remotes, image: str, missing: str) -> RemoteSample:
    """Return the sample of a place with ONE, which has no optional ability."""
    return RemoteSample(
        remote=remotes,
        image=Reference.parse(image),
        missing=Reference.parse(missing),
        root=root_of(ONE),
        content=content_of(ONE),
    )


class TestFakeRegistry(RemoteConformance):
    @pytest.fixture
    def sample(self, remotes: Remotes, registry: FakeRegistry) -> RemoteSample:
        images.load(registry, REPOSITORY, ONE, "v1")
        images.load(registry, REPOSITORY, TWO, "v2")
        images.load(registry, REPOSITORY, BILL)
        place = f"{registry.host}/{REPOSITORY}"

        def damage(descriptor: Descriptor) -> None:
            registry._blobs[REPOSITORY, str(descriptor.digest)] = bytes(descriptor.size)

        return replace(
            make_sample(remotes, f"{place}:v1", f"{place}:none"),
            other=root_of(TWO),
            tags=frozenset({"v1", "v2"}),
            repositories=(registry.host, frozenset({REPOSITORY})),
            referrers=frozenset({root_of(BILL).digest}),
            target=Reference.parse(f"{registry.host}/copy:new"),
            damage=damage,
        )


@pytest.fixture(scope="module")
def cncf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CncfRegistry]:
    with cncf_registry(tmp_path_factory.mktemp("cncf")) as running:
        yield running


class TestCncfRegistry(RemoteConformance):
    @pytest.fixture
    def sample(self, remotes: Remotes, cncf: CncfRegistry) -> RemoteSample:
        name = f"conformance/{uuid.uuid4().hex}"
        images.push(cncf.host, name, ONE, "v1")
        images.push(cncf.host, name, TWO, "v2")
        place = f"{cncf.host}/{name}"
        return replace(
            make_sample(remotes, f"{place}:v1", f"{place}:none"),
            other=root_of(TWO),
            tags=frozenset({"v1", "v2"}),
            repositories=(cncf.host, frozenset(remotes.list_repositories(cncf.host))),
            referrers=frozenset(),
            target=Reference.parse(f"{place}/copy:new"),
        )


def layout_of(*tagged: tuple[images.BuiltImage, str | None]) -> dict[str, bytes]:
    """Return the files of a layout, with a tag for each image that has one."""
    files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    entries = []
    for image, tag in tagged:
        for digest, raw in (*image.blobs.items(), *((one.digest, one.raw) for one in image.manifests)):
            files[f"blobs/{digest.replace(':', '/')}"] = raw
        entries.append(root_of(image).to_json() | ({"annotations": {REF_NAME: tag}} if tag else {}))
    return files | {"index.json": json.dumps({"schemaVersion": 2, "manifests": entries}).encode()}


class TestLayout(RemoteConformance):
    @pytest.fixture(params=["disk", "memory", "plug-in"])
    def sample(self, request: pytest.FixtureRequest, remotes: Remotes, tmp_path: Path) -> RemoteSample:
        place = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else str(tmp_path / "a layout")
        fs, root = fsspec.core.url_to_fs(place)

        def write(files: Mapping[str, bytes]) -> None:
            for path, raw in files.items():
                fs.makedirs(f"{root}/{path}".rpartition("/")[0], exist_ok=True)
                fs.pipe_file(f"{root}/{path}", raw)

        def damage(descriptor: Descriptor) -> None:
            write({f"blobs/sha256/{descriptor.digest.hex}": bytes(descriptor.size)})

        write(layout_of((ONE, "v1"), (TWO, "v2"), (BILL, None)))
        made = make_sample(remotes, f"oci:{place}:v1", f"oci:{place}:none")
        if request.param == "plug-in":  # the checks of plug-ins change nothing for a good remote with all abilities
            made = replace(made, remote=GuardedRemote(Plugin("plug-in"), remotes.find(made.image)))
        return replace(
            made,
            other=root_of(TWO),
            tags=frozenset({"v1", "v2"}),
            referrers=frozenset({root_of(BILL).digest}),
            target=Reference.parse(f"oci:{place}-copy:new"),
            damage=damage,
        )


class TestWebLayout(RemoteConformance):
    @pytest.fixture(params=["ranges", "no ranges"])
    def sample(self, request: pytest.FixtureRequest, remotes: Remotes, tmp_path: Path) -> Iterator[RemoteSample]:
        for path, raw in layout_of((ONE, "v1"), (TWO, "v2"), (BILL, None)).items():
            file = tmp_path / "site" / "layout" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(raw)

        def damage(descriptor: Descriptor) -> None:
            (tmp_path / "site" / "layout" / "blobs" / "sha256" / descriptor.digest.hex).write_bytes(bytes(descriptor.size))

        with web_server(tmp_path / "site") as web:
            web.ranges = request.param == "ranges"
            yield replace(
                make_sample(remotes, f"oci:{web.url}/layout:v1", f"oci:{web.url}/layout:none"),
                other=root_of(TWO),
                tags=frozenset({"v1", "v2"}),
                referrers=frozenset({root_of(BILL).digest}),
                target=Reference.parse(f"oci:{tmp_path / 'copy'}:new"),  # a web server is read-only
                damage=damage,
            )


class TestContentStore(RemoteConformance):
    @pytest.fixture
    def sample(self, remotes: Remotes, store: ContentStore) -> RemoteSample:
        for descriptor, raw in {**content_of(ONE), **content_of(BILL)}.items():
            with store.writer(str(descriptor.digest), expected=descriptor.digest, total=len(raw)) as writer:
                writer.write(raw)
                writer.commit()
        related = (Referrer(root_of(BILL)),)
        store.names.put("app:v1", root_of(ONE), source="registry.example/app", referrers=related)

        def damage(descriptor: Descriptor) -> None:
            path = Path(store.url) / "blobs" / "sha256" / descriptor.digest.hex
            path.chmod(0o600)
            path.write_bytes(bytes(descriptor.size))

        return replace(
            make_sample(remotes, "store:app:v1", "store:app:none"),
            referrers=frozenset({root_of(BILL).digest}),
            target=Reference.parse("store:copy:new"),
            damage=damage,
        )


class TestArchive(RemoteConformance):
    @pytest.fixture(params=["oci-archive", "docker-archive"])
    def sample(self, request: pytest.FixtureRequest, remotes: Remotes, tmp_path: Path) -> RemoteSample:
        path = tmp_path / "images.tar"
        files = layout_of((ONE, "v1"), (TWO, "v2"), (BILL, None))
        path.write_bytes(tar_of(list(files.items())))

        def damage(descriptor: Descriptor) -> None:
            wrong = files | {f"blobs/sha256/{descriptor.digest.hex}": bytes(descriptor.size)}
            path.write_bytes(tar_of(list(wrong.items())))

        return replace(
            make_sample(remotes, f"{request.param}:{path}:v1", f"{request.param}:{path}:none"),
            other=root_of(TWO),
            tags=frozenset({"v1", "v2"}),
            referrers=frozenset({root_of(BILL).digest}),
            target=Reference.parse(f"{request.param}:{tmp_path / 'copy.tar'}:copy:new"),
            damage=damage,
        )
