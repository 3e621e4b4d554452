"""200 images in 20 repositories, as teams have: shared layers, indexes, artifacts, referrers and signatures."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from prefect_dist.ocispec import Digest
from prefect_dist.ocispec.referrers import cosign_tags, fallback_tag
from tests import images
from tests.images import BuiltImage

_TEAMS, _SIGNING = 4, 3
REPOSITORIES = tuple(f"team{number % _TEAMS}/app{number:02}" for number in range(20))
_PLATFORMS = ("linux/amd64", "linux/arm64/v8", "linux/s390x")
_BASES = 5

Put = Callable[[str, BuiltImage, str | None], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Images by repository and tag, and their referrers by repository and digest of the subject.

    `signatures` have digest tags of cosign. `listed` are referrers with a subject; without a referrers API, a registry lists
    them under a fallback tag.
    """

    tagged: dict[tuple[str, str], BuiltImage]
    signatures: dict[tuple[str, str], BuiltImage]
    listed: dict[tuple[str, str], BuiltImage]

    def put(self, put: Put, *, api: bool) -> None:
        """Put all images into a registry. With `api`, the registry has a referrers API."""
        for (repository, tag), built in self.tagged.items():
            put(repository, built, tag)
        for (repository, subject), built in self.signatures.items():
            put(repository, built, signature_tag(subject))
        for (repository, subject), built in self.listed.items():
            put(repository, built, None)
            if not api:
                put(repository, images.index([built]), fallback_tag(Digest.parse(subject)))

    def parts(self) -> Iterator[tuple[str, BuiltImage]]:
        """Yield each image, signature and referrer with its repository."""
        for part in (self.tagged, self.signatures, self.listed):
            for (repository, _), built in part.items():
                yield repository, built

    @property
    def blobs(self) -> dict[str, bytes]:
        """The distinct configs and layers."""
        return {digest: data for _, built in self.parts() for digest, data in built.blobs.items()}

    @property
    def manifests(self) -> dict[tuple[str, str], bytes]:
        """The manifests of each repository, by its name and their digest."""
        return {(name, manifest.digest): manifest.raw for name, built in self.parts() for manifest in built.manifests}

    @property
    def content(self) -> dict[str, bytes]:
        """All distinct content."""
        return self.blobs | {digest: raw for (_, digest), raw in self.manifests.items()}


def build_fleet(*, base_bytes: int = 20_000, layer_bytes: int = 2_000) -> Fleet:
    """Build the fleet. Equal arguments give equal images.

    Each repository has seven images for one platform, an index, an index in an index, and an artifact. Two images in each
    repository of the signing team have a signature and a referrer.
    """
    bases = [images.image(2000 + number, layers=2, layer_bytes=base_bytes) for number in range(_BASES)]
    tagged: dict[tuple[str, str], BuiltImage] = {}
    signatures: dict[tuple[str, str], BuiltImage] = {}
    listed: dict[tuple[str, str], BuiltImage] = {}
    for number, name in enumerate(REPOSITORIES):
        base, seed = bases[number % _BASES], 3000 + 100 * number
        for version in range(7):
            tagged[name, f"1.{version}"] = _image_on(base, seed + version, "linux/amd64", layer_bytes)
        platforms = [_image_on(base, seed + 10, platform, layer_bytes) for platform in _PLATFORMS]
        tagged[name, "2.0"] = images.index(platforms)
        tagged[name, "2.1"] = images.index(
            [*platforms[:2], _image_on(base, seed + 20, "linux/s390x", layer_bytes)], nested=True
        )
        tagged[name, "chart"] = images.artifact(seed + 30)
        for tag in ("1.0", "2.0") if number % _TEAMS == _SIGNING else ():
            subject = tagged[name, tag]
            signatures[name, subject.root.digest] = images.artifact(seed + 40 + len(signatures))
            listed[name, subject.root.digest] = images.artifact(seed + 60 + len(listed), subject=subject)
    return Fleet(tagged=tagged, signatures=signatures, listed=listed)


def signature_tag(subject: str) -> str:
    """Return the digest tag under which cosign stores the signature of a manifest."""
    return cosign_tags(Digest.parse(subject))[0]


def sync_entries(source: str, *targets: str, teams: Iterable[int] = range(_TEAMS)) -> list[dict[str, Any]]:
    """Return the entries that mirror the repositories of some teams, and the referrers of the signing team."""
    return [_team_entry(team, source, targets) for team in teams]


def _team_entry(team: int, source: str, targets: Iterable[str]) -> dict[str, Any]:
    return {
        "type": "registry",
        "source": source,
        "targets": [f"{target}/copy" for target in targets],
        "repos": {"allow": [f"team{team}/.*"]},
        "tags": {"deny": ["sha256-.*"]},
        "referrers": team == _SIGNING,
        "digestTags": team == _SIGNING,
    }


def _image_on(base: BuiltImage, seed: int, platform: str, layer_bytes: int) -> BuiltImage:
    """Return an image whose first layers are the layers of `base`."""
    own = images.image(seed, layers=1, layer_bytes=layer_bytes, platform=platform)
    below = json.loads(base.manifests[-1].raw)["layers"]
    layers = {layer["digest"]: base.blobs[layer["digest"]] for layer in below}
    return images.with_manifest(
        own, lambda document: document.update(layers=below + document["layers"]), blobs=own.blobs | layers
    )
