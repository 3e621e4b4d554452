"""Challenges: what a server's WWW-Authenticate header asks for (RFC 9110, 11.6.1)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

# challenge ::= scheme [ param { "," param } ];  param ::= token "=" ( token | quoted-string )
# Blanks and commas are one class, for two neighbouring repetitions of blanks take quadratic time.
_SCHEME = re.compile(r"[\s,]*([A-Za-z][A-Za-z0-9._~+/-]*)(?=\s|,|$)")
_PARAM = re.compile(r'[\s,]*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """A scheme in lower case, and its parameters with their names in lower case."""

    scheme: str
    params: dict[str, str] = field(default_factory=dict)


def parse(headers: Iterable[str]) -> list[Challenge]:
    """All challenges in the values of WWW-Authenticate headers; what cannot be read is left out."""
    return [challenge for header in headers for challenge in _parse(header)]


def _parse(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    position = 0
    while match := _SCHEME.match(header, position):
        challenge = Challenge(match[1].lower())
        position = match.end()
        while param := _PARAM.match(header, position):
            challenge.params[param[1].lower()] = re.sub(r"\\(.)", r"\1", param[2]) if param[2] is not None else param[3]
            position = param.end()
        found.append(challenge)
    return found
