"""The one tree of errors, named for what the caller can do about them.

    DistError
    ├── InvalidInput    the input is wrong: correct it                        (also a ValueError)
    ├── NotFound        the thing is not there                                (also a LookupError)
    ├── AlreadyExists   the thing is there: for content that is success
    ├── Busy            another writer has it: wait, it may soon be there     retryable
    ├── Unavailable     the other side did not answer as it should: try again retryable
    ├── Corrupt         bytes are not what their digest or size says          retryable
    ├── Denied          credentials or permissions do not suffice
    ├── Conflict        the other side changed since it was read: start again from what is there now
    └── Unsupported     a form that this program refuses by name

A message is one line without a full stop: what, on what, expected, got, what to do. The class alone decides whether an
attempt may be repeated (`retryable`); nothing reads the text. Every error survives pickling with its fields.
"""

from typing import ClassVar

# What a message shows of a foreign text: all of a digest or a media type (RFC 6838 allows 255 characters), not megabytes.
_SHOWN_CHARS = 255
_TOLD_MISTAKES = 5


def quote_text(text: str) -> str:
    """A foreign text as messages show it: quoted, in one line, of a long one the beginning."""
    return repr(text) if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]!r}…"


class DistError(Exception):
    """Base class of all errors of this program. The text is one line for the user."""

    retryable: ClassVar[bool] = False


class InvalidInput(DistError, ValueError):
    """The input breaks a grammar or a schema; the message names the place."""


class Mistakes(InvalidInput):
    """Several things are wrong with one input; `lines` has a message for each. As one message it is some of them."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines

    def __str__(self) -> str:
        more = len(self.lines) - _TOLD_MISTAKES
        return "; ".join(self.lines[:_TOLD_MISTAKES]) + (f" (and {more} more)" if more > 0 else "")


class NotFound(DistError, LookupError):
    """No such name, blob, manifest or host."""


class AlreadyExists(DistError):
    """The content exists already. A caller that wanted to add it treats this as success."""


class Busy(DistError):
    """Another writer holds the ref; when it ends, the content is likely there."""

    retryable = True


class Unavailable(DistError):
    """A connection, a server or a disk failed in a way that may pass."""

    retryable = True


class Corrupt(DistError):
    """Bytes whose size or digest is not the declared one. They are never made visible."""

    retryable = True


class Denied(DistError):
    """Credentials, permissions or policy refuse the operation."""


class Conflict(DistError):
    """An object was changed after it was read; writing it now would undo that change."""


class Unsupported(DistError):
    """A known form that is refused on purpose, such as a schema 1 manifest."""
