"""The tree of all errors. Each class is named for the reaction of the caller.

    DistError
    ├── InvalidInput    the input is wrong: correct the input                  (also a ValueError)
    ├── NotFound        the object does not exist                              (also a LookupError)
    ├── AlreadyExists   the object exists: success if the object is content
    ├── Busy            another writer holds the object: wait and retry        retryable
    ├── Unavailable     a service or disk failed: retry                        retryable
    ├── Corrupt         bytes do not match their digest or size: fetch again   retryable
    ├── Denied          credentials or permissions are insufficient
    ├── Conflict        the object changed since it was read: read it again and start over
    └── Unsupported     a known form that this program refuses

The text of an error is one line without a full stop: what failed, on what, expected value, actual value, remedy. Only the class
decides about a retry (`retryable`); no code parses the text. Every error keeps its fields when it is pickled.
"""

from typing import ClassVar

# Foreign text in a message is cut to this length: enough for a digest or a media type (RFC 6838 allows 255 characters).
_QUOTED_CHARS = 255
_LISTED_MISTAKES = 5


def quote_text(text: str) -> str:
    """Return foreign text for a message: quoted, on one line, and cut to 255 characters."""
    return repr(text) if len(text) <= _QUOTED_CHARS else f"{text[:_QUOTED_CHARS]!r}…"


class DistError(Exception):
    """Base class of the errors of this program. `str()` is one line for the user: subject, if any, and message.

    Attributes:
        subject: the name of the object, such as a repository, an image, a blob or a file.
        cause: the message without the parts that depend on the object; errors of several objects with one cause share it.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, *args: object, subject: object = None, cause: str | None = None) -> None:
        super().__init__(*args)
        self.subject = None if subject is None else str(subject)
        self._cause = cause

    @property
    def message(self) -> str:
        """The message without the subject."""
        return super().__str__()

    @property
    def cause(self) -> str:
        """The message without the parts that depend on the object."""
        return self._cause or self.message

    def __str__(self) -> str:
        return self.message if self.subject is None else f"{self.subject}: {self.message}"


class InvalidInput(DistError, ValueError):
    """The input violates a grammar or a schema; the message contains the place in the input."""


class Mistakes(InvalidInput):
    """One input has several mistakes. `lines` has a message for each; `str()` lists the first five."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines

    @property
    def message(self) -> str:
        """The first five messages."""
        more = len(self.lines) - _LISTED_MISTAKES
        return "; ".join(self.lines[:_LISTED_MISTAKES]) + (f" (and {more} more)" if more > 0 else "")


class NotFound(DistError, LookupError):
    """A name, blob, manifest or host does not exist."""


class AlreadyExists(DistError):
    """The content exists already. A caller that adds content treats this error as success."""


class Busy(DistError):
    """Another writer holds the ref. After that writer ends, the content is probably in the store."""

    retryable = True


class Unavailable(DistError):
    """A connection, a server or a disk failed, possibly for a short time."""

    retryable = True


class Corrupt(DistError):
    """Bytes do not have the declared size or digest. The store never makes such bytes visible."""

    retryable = True


class Denied(DistError):
    """Credentials, permissions or policy refuse the operation."""


class Conflict(DistError):
    """An object changed after it was read. Writing the object now would overwrite that change."""


class Unsupported(DistError):
    """A known form, such as a schema 1 manifest, is refused on purpose."""
