"""Who we are to one registry, and what its user is told if that is not enough. No secret is in any of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefect_dist.remotes.credentials import Credentials, log_in
from prefect_dist.remotes.errors import CredentialsRefused, Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Credentials for a registry, if there are any.

    `ways` say in which other ways than by docker's and podman's files the user could give some: "give --username and
    --password-stdin".
    """

    host: str
    credentials: Credentials | None = None
    ways: Sequence[str] = ()

    @property
    def advice(self) -> str:
        """What to do for who is not let in, although nothing is known to be wrong with the credentials."""
        if self.credentials is not None:
            return f"{self.credentials.told} is not enough; have this user allowed, or give another"
        *most, last = (*self.ways, f"log in with {log_in(self.host)}")
        return f"{', '.join(most)}, or {last}" if most else last

    def refused(self, credentials: Credentials, exchange: Exchange, *, by: str = "") -> CredentialsRefused:
        """The error for credentials that are wrong; `by` names who says so, if it is not the registry."""
        answer = f"{by}: {exchange.answer}" if by else exchange.answer
        told = f"{self.host}: {credentials.told} is refused; {credentials.origin.remedy} ({answer})"
        return CredentialsRefused(told, exchange)
