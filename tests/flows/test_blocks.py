"""Blocks on a real Prefect server: what is kept there is found by name, and is nobody's parameter."""

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from ocispec.errors import InvalidInput
from remotes import Credentials
from tests.peers.prefect import PrefectServer


@pytest.fixture(autouse=True)
def _api(prefect: PrefectServer) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        yield


def test_credentials_of_our_own_block() -> None:
    from flows.blocks import RegistryCredentials, credentials_in

    by_password = RegistryCredentials(registry="ghcr.io/team", username="me", password=SecretStr("secret"))
    by_password.save("team", overwrite=True)
    RegistryCredentials(registry="a:5000", identity_token=SecretStr("token")).save("token", overwrite=True)
    found = credentials_in(["team", "registry-credentials/token"])
    assert found == {"ghcr.io/team": Credentials("me", "secret"), "a:5000": Credentials("", "", "token")}
    assert "secret" not in repr(found)


def test_credentials_of_another_blocks_type() -> None:
    """prefect-docker's, made here as it makes it: its class is not needed to read it."""
    from prefect.blocks.core import Block
    from pydantic import Field

    from flows.blocks import credentials_in

    class DockerRegistryCredentials(Block):
        _block_type_name = "Docker Registry Credentials"
        _block_type_slug = "docker-registry-credentials"
        username: str
        password: SecretStr
        registry_url: str
        reauth: bool = Field(default=True)

    block = DockerRegistryCredentials(username="me", password=SecretStr("secret"), registry_url="https://index.docker.io/v1/")
    block.save("hub", overwrite=True)
    assert credentials_in(["docker-registry-credentials/hub"]) == {"https://index.docker.io/v1/": Credentials("me", "secret")}


@pytest.mark.parametrize("name", ["none", "no-type/none"])
def test_a_block_that_is_not_there(name: str) -> None:
    from flows.blocks import credentials_in

    with pytest.raises(InvalidInput, match=f"credentials {name}: there is no such block"):
        credentials_in([name])


def test_a_block_without_credentials() -> None:
    from flows.blocks import ContentStore, credentials_in

    ContentStore(url="memory://x").save("a-store", overwrite=True)
    with pytest.raises(InvalidInput, match="expected a block with a registry"):
        credentials_in(["content-store/a-store"])
