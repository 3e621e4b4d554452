"""One repository of one registry: sends requests with authorisation, and converts failures to errors."""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import httpx

from prefect_dist.ocispec.errors import Unavailable, Unsupported
from prefect_dist.remotes.auth import HostAuth, RegistryAuth, is_same_server
from prefect_dist.remotes.errors import ADVICE, from_response, from_transport, one_line, redact
from prefect_dist.remotes.guard import GUARD, Guard, GuardedOrigin
from prefect_dist.remotes.hosts import Capability
from prefect_dist.remotes.sizes import RegistrySizes
from prefect_dist.remotes.token import delete_scope, pull_scope, push_scope

_NONE: Mapping[str, str] = MappingProxyType({})
# So answer object stores when the time of a signed URL is up: Amazon's, Azure's and CloudFront 403, Google's 400.
_EXPIRED = frozenset({400, 403})


class Repository:
    """Sends the requests of a repository. Thread-safe: it is immutable (containerd 2e0c92b168).

    `url` is its own, such as `https://ghcr.io/v2/a/b`; `locator` is the name for people: `ghcr.io/a/b`. `unsupported` are the
    features that the registry lacks. `scope` is the token scope for reading, if not that of a pull from `name`. `origin` is the
    registry as the source of redirects, and `sizes` are its limits; the repositories of a registry share both.
    """

    def __init__(
        self,
        client: httpx.Client,
        host: HostAuth,
        *,
        url: str,
        name: str,
        locator: str,
        unsupported: frozenset[Capability] = frozenset(),
        scope: str | None = None,
        origin: GuardedOrigin | None = None,
        sizes: RegistrySizes | None = None,
    ) -> None:
        self.sizes = sizes or RegistrySizes()
        self.url, self.name, self.locator, self.unsupported = url, name, locator, unsupported
        self._client, self._host = client, host
        self._own = httpx.URL(url)
        self._origin = origin or GuardedOrigin(self._own, name=locator.partition("/")[0])
        self._pull, self._push = RegistryAuth(host, scope or pull_scope(name)), RegistryAuth(host, push_scope(name))
        self._delete = RegistryAuth(host, delete_scope(name))

    def send_read(self, method: str, target: str | httpx.URL, *, subject: str, headers: Mapping[str, str]) -> httpx.Response:
        """Send a request that reads: a path of this repository, or a URL of its registry, see `owns`.

        The answer, of whatever status, is open. Errors call what is asked for `subject`. What a redirect's target refuses is
        asked for once more: the registry may have kept a URL until its time was up.

        Raises:
            DistError: there is no answer, see `remotes.errors.from_transport`.
        """
        url = target if isinstance(target, httpx.URL) else self.url_of(target)
        auth = self._pull if self.owns(url) else None
        response = self._send(method, url, auth, subject=subject, headers=headers)
        if response.status_code in _EXPIRED and response.history and not is_same_server(response.request.url, url):
            response.close()
            response = self._send(method, url, auth, subject=subject, headers=headers)
        return response

    def get_foreign_url(self, url: httpx.URL, *, subject: str, headers: Mapping[str, str]) -> httpx.Response:
        """Send a GET to a URL that a document names: without credentials of any kind, see `remotes.guard.Guard`.

        Raises:
            Denied: the URL, or one that it redirects to, is not at a public address.
            DistError: as `ask`.
        """
        return self._send("GET", url, None, subject=subject, headers=headers, guard=Guard())

    def url_of(self, path: str) -> httpx.URL:
        """Return the URL of a path in this repository."""
        return httpx.URL(f"{self.url}/{path}")

    def owns(self, url: httpx.URL) -> bool:
        """Return True if a URL from a response is at this registry, and not less safe."""
        return is_same_server(url, self._own)

    def send_write(
        self,
        method: str,
        target: str | httpx.URL,
        *,
        expected: Collection[int],
        subject: str,
        headers: Mapping[str, str] = _NONE,
        body: Iterable[bytes] | bytes = b"",
        source: str | None = None,
    ) -> httpx.Response:
        """Send a request of somebody who pushes or deletes: to a path of this repository, or to a URL that the registry named.

        The answer is closed, its status one of those `expected`. A `body` in pieces needs its Content-Length in `headers`, and
        is iterated anew whenever it is sent again: after a 401, after a redirect. Who mounts names the `source` repository.

        Raises:
            RegistryError: the registry answers with another status, see `remotes.errors.from_response`.
            Unsupported: a redirect of a kind that only reading can follow.
            Denied: a redirect to an address that the registry may not name, or of a deletion or manifest to another server.
            DistError: there is no answer, see `remotes.errors.from_transport`; or what iterating `body` raises.
        """
        url = target if isinstance(target, httpx.URL) else self.url_of(target)
        auth = self._delete if method == "DELETE" else self._push
        if source:
            auth = RegistryAuth(self._host, push_scope(self.name), pull_scope(source))
        # What a registry names may be anywhere: its credentials are for it alone.
        # A registry has no reason to send deletions and manifests elsewhere, where they would change another registry.
        guard = Guard(self._origin, same_server=method == "DELETE" or (method == "PUT" and not isinstance(target, httpx.URL)))
        own_auth = auth if self.owns(url) else None
        response = self._send(method, url, own_auth, subject=subject, headers=headers, body=body, guard=guard)
        try:
            if response.request.method != method:  # RFC 9110, 15.4: the answer says nothing of what was to be done
                raise Unsupported(
                    f"{subject}: {method} is redirected to {redact(response.request.url)}, which makes a GET of it"
                )
            if response.status_code not in expected:
                raise from_response(subject, response)
        finally:
            response.close()
        return response

    def _send(
        self,
        method: str,
        url: httpx.URL,
        auth: RegistryAuth | None,
        *,
        subject: str,
        headers: Mapping[str, str],
        body: Iterable[bytes] | bytes = b"",
        guard: Guard | None = None,
    ) -> httpx.Response:
        extensions: dict[str, Any] = {GUARD: guard or Guard(self._origin)}
        if auth:
            extensions[ADVICE] = self._host.login.advice
        try:
            request = self._client.build_request(
                method, url, headers=dict(headers), content=body or None, extensions=extensions
            )
            return self._client.send(request, auth=auth, stream=True)
        except httpx.RequestError as exc:
            raise from_transport(subject, exc) from exc
        except httpx.InvalidURL as exc:
            raise Unavailable(f"{subject}: the server redirects to a bad URL ({one_line(str(exc))})") from exc
