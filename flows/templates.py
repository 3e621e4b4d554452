"""Secrets that a configuration refers to instead of holding: `{{env "NAME"}}` and `{{file "PATH"}}`, as in regsync's files."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ocispec.errors import InvalidInput

# template ::= "{{" blanks verb blanks quoted blanks "}}";  blanks may hold the dashes that trim in Go's templates
_TEMPLATE = re.compile(r'\{\{-?\s*(env|file)\s+(?:"([^"]+)"|`([^`]+)`)\s*-?\}\}')


def resolved(text: str, *, at: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text with what it refers to in its place; a file's last line break is left out.

    Raises:
        InvalidInput: nothing is there, or it is another template. The text is not shown: it may hold a secret.
    """

    def value(match: re.Match[str]) -> str:
        name = match[2] or match[3]
        if match[1] == "file":
            return _content(name, at)
        if name not in environ:
            raise InvalidInput(f"{at}: expected {name} in the environment, it is not set")
        return environ[name]

    done = _TEMPLATE.sub(value, text)
    if "{{" in _TEMPLATE.sub("", text):
        raise InvalidInput(f'{at}: expected {{{{env "NAME"}}}} or {{{{file "PATH"}}}}, got another template')
    return done


def _content(path: str, at: str) -> str:
    try:
        return Path(path).expanduser().read_text().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInput(f"{at}: {path}: {getattr(exc, 'strerror', None) or 'expected text'}") from exc
