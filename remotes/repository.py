"""One repository of one registry: where its requests go, what authorises them, and what their failures are called."""

from collections.abc import Mapping

import httpx

from ocispec.errors import Unavailable
from remotes.auth import HostAuth, RegistryAuth
from remotes.errors import from_transport, one_line


class Repository:
    """Sends the requests of a repository. Thread-safe: it has no state but its constants (containerd 2e0c92b168).

    `url` is its own, such as `https://ghcr.io/v2/a/b`; `locator` is what people call it: `ghcr.io/a/b`.
    """

    def __init__(self, client: httpx.Client, host: HostAuth, *, url: str, name: str, locator: str) -> None:
        self.url, self.name, self.locator = url, name, locator
        self._client, self._host = client, host
        self._pull = RegistryAuth(host, f"repository:{name}:pull")

    def ask(self, method: str, path: str, *, subject: str, headers: Mapping[str, str]) -> httpx.Response:
        """Send a request that reads; the answer, of whatever status, is open. Errors call what is asked for `subject`.

        Raises:
            DistError: there is no answer, see `remotes.errors.from_transport`.
        """
        try:
            request = self._client.build_request(method, f"{self.url}/{path}", headers=dict(headers))
            return self._client.send(request, auth=self._pull, stream=True)
        except httpx.RequestError as exc:
            raise from_transport(subject, exc) from exc
        except httpx.InvalidURL as exc:
            raise Unavailable(f"{subject}: the registry redirects to a bad URL ({one_line(str(exc))})") from exc
