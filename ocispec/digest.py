"""Digests: identifiers of content by hash (image-spec 1.1, descriptor.md, "Digests")."""

import hashlib
import re
import sys
from dataclasses import dataclass
from typing import Self

from prefect_dist.ocispec.errors import InvalidInput, Unsupported, quote_text

# digest ::= algorithm ":" encoded; the two registered algorithms fix the length of their lower-case hex.
_HEX_LENGTHS = {"sha256": 64, "sha512": 128}
_GRAMMAR = re.compile(r"(?P<algorithm>[a-z0-9]+(?:[+._-][a-z0-9]+)*):(?P<encoded>[a-zA-Z0-9=_-]+)")
_HEX = re.compile(r"[a-f0-9]+")
_SHORT = 12


@dataclass(frozen=True, slots=True, weakref_slot=True, order=True)
class Digest:
    """An `algorithm:hex` identifier with a registered algorithm. `parse`, `of` and `Hasher` create digests."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str, *, prefix: str = "") -> Self:
        """Return the digest that `text` contains. `prefix` starts the message of an error.

        Raises:
            InvalidInput: the grammar, the alphabet or the length is wrong.
            Unsupported: the algorithm is neither sha256 nor sha512.
        """
        match = _GRAMMAR.fullmatch(text)
        if match is None:
            raise InvalidInput(f"{prefix}digest {quote_text(text)}: expected algorithm:hex")
        algorithm, encoded = sys.intern(match["algorithm"]), match["encoded"]  # a run has thousands of digests
        if algorithm not in _HEX_LENGTHS:
            raise Unsupported(
                f"{prefix}digest {quote_text(text)}: algorithm {algorithm[:_SHORT]} is not supported, use sha256 or sha512"
            )
        if len(encoded) != _HEX_LENGTHS[algorithm] or not _HEX.fullmatch(encoded):
            raise InvalidInput(f"{prefix}digest {quote_text(text)}: expected {_HEX_LENGTHS[algorithm]} characters 0-9 and a-f")
        return cls(algorithm, encoded)

    @classmethod
    def is_valid(cls, text: str) -> bool:
        """Return True if `text` is a valid digest with a supported algorithm."""
        try:
            cls.parse(text)
        except (InvalidInput, Unsupported):
            return False
        return True

    @classmethod
    def of(cls, data: bytes, *, algorithm: str = "sha256") -> Self:
        """Return the digest of `data`."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    @property
    def short(self) -> str:
        """`algorithm:` and the first 12 hex digits. For display only, never for look-ups."""
        return f"{self.algorithm}:{self.hex[:_SHORT]}"

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class Hasher:
    """Computes a digest while bytes stream past. Not thread-safe."""

    def __init__(self, algorithm: str = "sha256") -> None:
        self.algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self.update = self._hash.update

    def digest(self) -> Digest:
        """Return the digest of the bytes that `update` has received so far."""
        return Digest(self.algorithm, self._hash.hexdigest())
