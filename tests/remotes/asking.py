"""Short forms for references, descriptors and reads in the tests of `remotes`, and the checks of every error message."""

import traceback
from collections.abc import Collection
from contextlib import closing

from prefect_dist.ocispec import Descriptor, Digest, Reference
from prefect_dist.ocispec.errors import DistError
from prefect_dist.remotes import Credentials, Registries, RegistrySettings, Source
from tests.fakes.registry import FakeRegistry
from tests.images import OCI_LAYER

REPOSITORY = "team/app"
BLOB = bytes(range(256)) * 1000  # 256,000 bytes
SETTINGS = RegistrySettings(connect_timeout_s=10, read_timeout_s=10)
HASTY = RegistrySettings(connect_timeout_s=10, read_timeout_s=0.2)
LONGEST_MESSAGE = 1200


class Clock:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def anonymous(_host: str, _repository: str) -> None:
    """No credentials for any registry."""


def user(name: str, password: str) -> Credentials:
    return Credentials(name, password)


def reference(host: str | FakeRegistry, named: str = ":v1") -> Reference:
    """Reference of REPOSITORY at a registry; `named` is ":tag", "@digest" or both."""
    return Reference.parse(f"{host if isinstance(host, str) else host.host}/{REPOSITORY}{named}")


def descriptor(content: bytes, media_type: str = OCI_LAYER, *, algorithm: str = "sha256") -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(content, algorithm=algorithm), size=len(content))


def fetcher(registries: Registries, host: str | FakeRegistry) -> Source:
    return registries.open_source(reference(host, ""))


def read(source: Source, wanted: Descriptor, *, offset: int = 0) -> bytes:
    return b"".join(source.fetch(wanted, offset=offset))


def read_until_error(source: Source, wanted: Descriptor, *, offset: int = 0) -> tuple[bytes, DistError | None]:
    """The bytes that arrive before the error, and the error."""
    arrived = b""
    with closing(source.fetch(wanted, offset=offset)) as pieces:  # type: ignore[type-var] # it is a generator
        try:
            for piece in pieces:
                arrived += piece
        except DistError as exc:
            return arrived, exc
    return arrived, None


def list_requests(registry: FakeRegistry) -> list[str]:
    """Every request as "METHOD path"."""
    return [f"{one.method} {one.path}" for one in registry.requests]


def ranges(registry: FakeRegistry) -> list[str | None]:
    """The Range header of each GET."""
    return [one.headers.get("range") for one in registry.requests if one.method == "GET"]


def check_message(error: BaseException, *names: str, hides: Collection[str] = ()) -> None:
    """Check that a message is one bounded, printable line without a full stop, has the `names`, and hides the secrets."""
    text = str(error)
    assert text.isprintable(), text
    assert len(text) <= LONGEST_MESSAGE, text
    assert not text.endswith(".")
    for name in names:
        assert name in text, text
    everything = "\n".join([text, repr(error), *traceback.format_exception(error)])
    for secret in hides:
        assert secret not in everything
