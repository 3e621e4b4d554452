"""Tests of the plug-in: the conformance suite of dist, and the mistakes in a pin file.

The package has to be installed, because dist finds the plug-in by its entry point.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import InvalidInput, NotFound
from prefect_dist.remotes import Registries, RegistrySettings, Remotes
from prefect_dist.remotes.conformance import RemoteConformance, RemoteSample

MANIFEST, CONFIG = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


def describe(raw: bytes, media_type: str) -> Descriptor:
    """Return the descriptor of some bytes."""
    return Descriptor(media_type=media_type, digest=Digest.of(raw), size=len(raw))


def write_image(layout: Path, layer: bytes, tag: str) -> dict[Descriptor, bytes]:
    """Write an image to a layout. Return its content, the manifest last."""
    config, rest = describe(b"{}", CONFIG), describe(layer, LAYER)
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config.to_json(), "layers": [rest.to_json()]}
    raw = json.dumps(document).encode()
    root = describe(raw, MANIFEST)
    content = {config: b"{}", rest: layer, root: raw}
    (layout / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    for descriptor, data in content.items():
        (layout / "blobs" / "sha256" / descriptor.digest.hex).write_bytes(data)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entry = root.to_json() | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return content


@pytest.fixture
def remotes() -> Iterator[Remotes]:
    """The remotes of a run without credentials and without a content store."""

    def find_credentials(_host: str, _repository: str) -> None:
        return None

    registries = Registries(RegistrySettings(), credentials=find_credentials)
    with Remotes(registries, credentials=find_credentials, open_store=lambda: pytest.fail("the store was opened")) as remotes:
        yield remotes


class TestPin(RemoteConformance):
    """The conformance suite, with a layout as the source of the pins."""

    @pytest.fixture
    def sample(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remotes: Remotes) -> RemoteSample:
        """A pin to an image whose tag has moved to another image since."""
        layout = tmp_path / "layout"
        content = write_image(layout, b"old" * 3_000_000, "v1")
        other = list(write_image(layout, b"new", "v1"))[-1]
        root = list(content)[-1]
        pins = tmp_path / "pins.toml"
        pins.write_text(f'[app]\ndigest = "{root.digest}"\nsource = "oci:{layout}:v1"\n')
        monkeypatch.setenv("DIST_PINS", str(pins))

        def damage(descriptor: Descriptor) -> None:
            (layout / "blobs" / "sha256" / descriptor.digest.hex).write_bytes(bytes(descriptor.size))

        return RemoteSample(
            remote=remotes,
            image=Reference.parse("pin:app"),
            root=root,
            content=content,
            missing=Reference.parse("pin:none"),
            other=other,
            damage=damage,
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[app", "Expected ']'"),
        ("app = 1", "app: expected the keys digest and source"),
        ('[app]\ndigest = "sha256:1"\nsource = "a.example/x"', "app: digest 'sha256:1': expected 64 characters"),
        (f'[app]\ndigest = "{Digest.of(b"")}"\nsource = "UPPER/"', "app: reference"),
        (f'[app]\ndigest = "{Digest.of(b"")}"\nsource = "pin:other"', "source pin:other is a pin"),
    ],
)
def test_a_mistake_in_the_pin_file_is_one_line_with_its_place(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remotes: Remotes
) -> None:
    """A user can find the mistake."""
    (tmp_path / "pins.toml").write_text(text)
    monkeypatch.setenv("DIST_PINS", str(tmp_path / "pins.toml"))
    with pytest.raises(InvalidInput) as caught:
        remotes.open_source(Reference.parse("pin:app"))
    assert message in str(caught.value)
    assert str(tmp_path / "pins.toml") in str(caught.value)


def test_a_missing_file_names_the_variable_and_a_missing_name_lists_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remotes: Remotes
) -> None:
    """A user knows the remedy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIST_PINS", raising=False)
    with pytest.raises(InvalidInput, match=r"^pin file pins.toml: No such file or directory; set DIST_PINS"):
        remotes.open_source(Reference.parse("pin:app"))
    (tmp_path / "pins.toml").write_text(f'[app]\ndigest = "{Digest.of(b"")}"\nsource = "a.example/x"')
    with pytest.raises(NotFound, match=r"^pin:none: pin file pins.toml does not have this name; it has app$"):
        remotes.open_source(Reference.parse("pin:none"))
    with pytest.raises(InvalidInput, match="a pin has no tags"):
        remotes.resolve(Reference.parse("pin:app:v1"))
