"""Platforms: parse, normalise, match and select (image-spec 1.1, image-index.md, "platform").

An index lists one manifest per platform. `Platform.parse` reads the form that people write (`linux/arm/v7`). `best` selects
manifests as container engines do: the wanted variant first, then older variants that the wanted platform can run.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from platform import machine
from typing import Any, Protocol, Self, TypeVar

from prefect_dist.ocispec import fields
from prefect_dist.ocispec.errors import InvalidInput

# platform ::= os [ "(" os-version ")" ] "/" architecture [ "/" variant ]
_GRAMMAR = re.compile(
    r"(?P<os>[A-Za-z0-9_-]+)(?:\((?P<version>[A-Za-z0-9._-]*)\))?/(?P<architecture>[A-Za-z0-9_-]+)(?:/(?P<variant>[A-Za-z0-9._-]+))?"
)
_SYSTEMS = {"macos": "darwin"}
# Other common spellings of Go's architecture names, with the variant that some of them imply.
_ARCHITECTURES = {
    "i386": ("386", None),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_LEVEL = re.compile(r"v([0-9]{1,3})")
# The variant that an architecture without a variant means.
_BASELINES = {"arm": "v7", "arm64": "v8", "amd64": "v1"}


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Platform:
    """An operating system and an architecture, with optional variant, OS version and OS features."""

    os: str
    architecture: str
    variant: str | None = None
    os_version: str | None = None
    os_features: tuple[str, ...] = ()

    @classmethod
    def local(cls) -> Self:
        """Return the platform of Linux images for this machine."""
        return cls.parse(f"linux/{machine()}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the platform written as `os/architecture[/variant]`, normalised.

        Raises:
            InvalidInput: another form.
        """
        match = _GRAMMAR.fullmatch(text)
        if match is None:
            raise InvalidInput(f"platform {text!r}: expected os/architecture[/variant], such as linux/amd64")
        return cls(
            os=match["os"],
            architecture=match["architecture"],
            variant=match["variant"],
            os_version=match["version"] or None,
        ).normalise()

    @classmethod
    def from_json(cls, document: fields.Json, *, at: str) -> Self:
        """Return the platform object of a descriptor without normalising it."""
        return cls(
            os=fields.require(document, "os", str, at=at),
            architecture=fields.require(document, "architecture", str, at=at),
            variant=fields.optional(document, "variant", str, at=at) or None,
            os_version=fields.optional(document, "os.version", str, at=at) or None,
            os_features=fields.strings(document, "os.features", at=at),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form of the specification."""
        document: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.variant is not None:
            document["variant"] = self.variant
        if self.os_version is not None:
            document["os.version"] = self.os_version
        if self.os_features:
            document["os.features"] = list(self.os_features)
        return document

    def normalise(self) -> Self:
        """Return the platform in Go's spelling and without a redundant variant."""
        system, architecture = self.os.lower(), self.architecture.lower()
        architecture, implied = _ARCHITECTURES.get(architecture, (architecture, None))
        variant = (self.variant or "").lower() or implied
        if variant is not None and variant.isdecimal():
            variant = f"v{variant}"
        if variant == _BASELINES.get(architecture):
            variant = None
        return replace(self, os=_SYSTEMS.get(system, system), architecture=architecture, variant=variant)

    def rank(self, candidate: "Platform") -> int | None:
        """Return the distance of `candidate`: 0 is an exact match, n is n variants older, None cannot run on this platform."""
        wanted, offered = self.normalise(), candidate.normalise()
        if (wanted.os, wanted.architecture) != (offered.os, offered.architecture):
            return None
        if wanted.os_version and not _same_release(wanted.os_version, offered.os_version):
            return None
        return _steps_down(_variant(wanted), _variant(offered))

    def matches(self, candidate: "Platform") -> bool:
        """Return True if `candidate` is this platform, in any spelling."""
        return self.rank(candidate) == 0

    def __str__(self) -> str:
        version = f"({self.os_version})" if self.os_version else ""
        variant = f"/{self.variant}" if self.variant else ""
        return f"{self.os}{version}/{self.architecture}{variant}"


# The platforms to select from an index; None selects every platform.
Platforms = tuple[Platform, ...] | None


class HasPlatform(Protocol):
    """A candidate for `best`: any object with a platform, which may be None."""

    @property
    def platform(self) -> Platform | None:
        """The platform; None if it is unknown."""


P = TypeVar("P", bound=HasPlatform)


def best(wanted: Iterable[Platform], candidates: Sequence[P]) -> tuple[P, ...]:
    """Return the candidates that match the wanted platforms best, in the order of `candidates`.

    For each wanted platform, every candidate of the best rank is selected, since an index may list several OS versions of one
    platform. A candidate without a platform is always selected, since it may match.
    """
    chosen = {id(candidate) for candidate in candidates if candidate.platform is None}
    for wish in wanted:
        ranks = {id(c): wish.rank(c.platform) for c in candidates if c.platform is not None}
        lowest = min((rank for rank in ranks.values() if rank is not None), default=None)
        chosen.update(key for key, rank in ranks.items() if rank is not None and rank == lowest)
    return tuple(candidate for candidate in candidates if id(candidate) in chosen)


def _variant(platform: Platform) -> str | None:
    return platform.variant or _BASELINES.get(platform.architecture)


def _same_release(wanted: str, offered: str | None) -> bool:
    """Return True if Windows versions agree in the wanted parts: 10.0.17763.1000 matches the wanted version 10.0.17763."""
    return offered is not None and (offered == wanted or offered.startswith(f"{wanted}."))


def _steps_down(wanted: str | None, offered: str | None) -> int | None:
    """Return how many variants older the offer is; None if the offer is newer or not comparable."""
    if wanted == offered:
        return 0
    wanted_level, offered_level = _level(wanted), _level(offered)
    if wanted_level is None or offered_level is None or offered_level > wanted_level:
        return None
    return wanted_level - offered_level


def _level(variant: str | None) -> int | None:
    match = _LEVEL.fullmatch(variant or "")
    return int(match[1]) if match else None
