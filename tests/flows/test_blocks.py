"""Blocks on a real Prefect server: what is kept there is found by name, and is nobody's parameter."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from ocispec.errors import InvalidInput
from remotes import Credentials
from storage import open_store
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer
from tests.peers.seaweedfs import S3Server


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
    assert [one.origin.place for one in found.values()] == [
        "Prefect's block team",
        "Prefect's block registry-credentials/token",
    ]
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


def test_one_command_registers_them(prefect: PrefectServer) -> None:
    argv = [sys.executable, "-m", "prefect", "block", "register", "-m", "flows.blocks"]
    environment = {**os.environ, "PREFECT_API_URL": prefect.url}
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr
    for slug, secret in (("content-store", "secrets.*"), ("registry-credentials", "password")):
        block_type = prefect.get(f"/block_types/slug/{slug}")
        assert block_type["description"]
        found = prefect.post("/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [block_type["id"]]}}})
        assert any(secret in schema["fields"]["secret_fields"] for schema in found)


@cache
def aws() -> type[Any]:
    """The type of block that prefect-aws has, made here as it makes it: its class is not needed to read it."""
    from prefect.blocks.core import Block

    class AwsClientParameters(BaseModel):
        endpoint_url: str | None = None

    class AwsCredentials(Block):
        _block_type_name = "AWS Credentials"
        aws_access_key_id: str | None = None
        aws_secret_access_key: SecretStr | None = None
        aws_session_token: str | None = None
        profile_name: str | None = None
        region_name: str | None = None
        aws_client_parameters: AwsClientParameters = AwsClientParameters()
        assume_role_arn: str | None = None

    return AwsCredentials


def test_a_store_in_s3_with_the_credentials_of_another_block(prefect: PrefectServer, s3: S3Server) -> None:
    from flows.blocks import ContentStore
    from flows.fetch import fetch

    block = aws()(
        aws_access_key_id=s3.key,
        aws_secret_access_key=s3.secret,
        region_name=s3.region,
        aws_client_parameters={"endpoint_url": s3.endpoint},
    )
    block.save("s3", overwrite=True)
    ContentStore(url=f"{s3.url}/by-aws", credentials="s3").save("by-aws", overwrite=True)
    built = images.image(3700, layers=1)
    with FakeRegistry() as registry:
        images.load(registry, "app", built, "v1")
        state: Any = fetch([f"{registry.host}/app:v1"], "block:by-aws", return_state=True)

    assert state.is_completed()
    store = open_store(f"{s3.url}/by-aws", options=s3.storage_options)
    assert {str(info.digest) for info in store.walk()} == set(built.descriptors)
    assert s3.secret not in str(prefect.get(f"/flow_runs/{state.state_details.flow_run_id}"))


def test_what_is_said_nearer_counts() -> None:
    from prefect.types import SecretDict

    from flows.blocks import ContentStore, located

    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_session_token": "c"}
    block = aws()(**keys, region_name="eu-west-1", aws_client_parameters={"endpoint_url": "http://a"})
    block.save("layers", overwrite=True)
    ContentStore(
        url="s3://bucket",
        credentials="aws-credentials/layers",
        options={"endpoint_url": "http://b", "client_kwargs": {"verify": False}},
        secrets=SecretDict({"token": "d"}),
    ).save("layers", overwrite=True)
    assert located("block:layers", {"endpoint_url": "http://c"}) == (
        "s3://bucket",
        {
            "key": "a",
            "secret": "b",
            "token": "d",
            "endpoint_url": "http://c",
            "client_kwargs": {"region_name": "eu-west-1", "verify": False},
        },
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "expected a block with keys or a profile"),
        ({"assume_role_arn": "arn:aws:iam::1:role/x"}, "a role to be assumed cannot be used"),
        (None, "there is no such block"),
    ],
)
def test_credentials_of_aws_that_cannot_be_used(fields: dict[str, str] | None, told: str) -> None:
    from flows.blocks import ContentStore, located

    name = "none" if fields is None else "odd"
    if fields is not None:
        aws()(**fields).save(name, overwrite=True)
    ContentStore(url="s3://bucket", credentials=name).save("odd", overwrite=True)
    with pytest.raises(InvalidInput, match=f"credentials {name}: {told}"):
        located("block:odd", {})
