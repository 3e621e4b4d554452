"""Blocks on a real Prefect server: runs load blocks by name, and parameters have no secrets."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.remotes import Credentials
from prefect_dist.storage import open_store
from tests import images
from tests.fakes.aws import AwsRelay
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer
from tests.peers.processes import PATIENCE_S
from tests.peers.seaweedfs import CALLER_KEY, CALLER_SECRET, ROLE_ARN, S3Server


@pytest.fixture(autouse=True)
def _api(prefect: PrefectServer) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect.url}):
        yield


def test_registry_credentials_blocks_are_loaded_with_their_origin() -> None:
    from prefect_dist.flows.blocks import PrefectBlocks, RegistryCredentials

    by_password = RegistryCredentials(registry="ghcr.io/team", username="me", password=SecretStr("secret"))
    by_password.save("team", overwrite=True)
    RegistryCredentials(registry="a:5000", identity_token=SecretStr("token")).save("token", overwrite=True)
    found = PrefectBlocks().read_credentials(["team", "registry-credentials/token"])
    assert found == {"ghcr.io/team": Credentials("me", "secret"), "a:5000": Credentials("", "", "token")}
    assert [one.origin.place for one in found.values()] == [
        "Prefect block team",
        "Prefect block registry-credentials/token",
    ]
    assert "secret" not in repr(found)


def test_a_credentials_block_of_prefect_docker_is_loaded() -> None:
    from prefect_docker import DockerRegistryCredentials

    from prefect_dist.flows.blocks import PrefectBlocks

    block = DockerRegistryCredentials(username="me", password=SecretStr("secret"), registry_url="https://index.docker.io/v1/")
    block.save("hub", overwrite=True)
    assert PrefectBlocks().read_credentials(["docker-registry-credentials/hub"]) == {
        "https://index.docker.io/v1/": Credentials("me", "secret")
    }


@pytest.mark.parametrize("name", ["none", "no-type/none"])
def test_a_missing_credentials_block_is_an_error_that_names_it(name: str) -> None:
    from prefect_dist.flows.blocks import PrefectBlocks

    with pytest.raises(InvalidInput, match=f"credentials block '{name}' not found"):
        PrefectBlocks().read_credentials([name])


def test_a_block_without_credentials_is_refused() -> None:
    from prefect_dist.flows.blocks import ContentStore, PrefectBlocks

    ContentStore(url="memory://x").save("a-store", overwrite=True)
    with pytest.raises(InvalidInput, match="expected a registry, and a password"):
        PrefectBlocks().read_credentials(["content-store/a-store"])


def test_prefect_block_register_registers_all_block_types(prefect: PrefectServer) -> None:
    argv = [sys.executable, "-m", "prefect", "block", "register", "-m", "prefect_dist.flows.blocks"]
    environment = {**os.environ, "PREFECT_API_URL": prefect.url}
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)
    assert done.returncode == 0, done.stderr
    for slug, secret in (("content-store", "secrets.*"), ("registry-credentials", "password")):
        block_type = prefect.get(f"/block_types/slug/{slug}")
        assert block_type["description"]
        found = prefect.post("/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [block_type["id"]]}}})
        assert any(secret in schema["fields"]["secret_fields"] for schema in found)


def aws_credentials(**fields: Any) -> Any:
    """Return a block of prefect-aws."""
    from prefect_aws import AwsCredentials

    return AwsCredentials(**fields)


def test_a_store_block_uses_the_aws_keys_of_another_block(prefect: PrefectServer, s3: S3Server) -> None:
    from prefect_dist.flows.blocks import ContentStore
    from prefect_dist.flows.fetch import fetch

    block = aws_credentials(
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


def test_a_store_block_assumes_the_aws_role_of_another_block(
    prefect: PrefectServer, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect_dist.flows.blocks import ContentStore
    from prefect_dist.flows.fetch import fetch

    with FakeRegistry() as registry, AwsRelay(s3.endpoint) as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", relay.endpoint)
        block = aws_credentials(
            aws_access_key_id=CALLER_KEY,
            aws_secret_access_key=CALLER_SECRET,
            region_name="eu-west-1",
            aws_client_parameters={"endpoint_url": relay.endpoint},
            assume_role_arn=ROLE_ARN,
            assume_role_kwargs={"RoleSessionName": "mirror", "DurationSeconds": 7200, "ExternalId": "theirs"},
        )
        block.get_boto3_session()
        block.save("role", overwrite=True)
        ContentStore(url=f"{s3.url}/by-role", credentials="role").save("by-role", overwrite=True)
        built = images.image(3701, layers=1)
        images.load(registry, "app", built, "v1")
        state: Any = fetch([f"{registry.host}/app:v1"], "block:by-role", return_state=True)

        assert state.is_completed()
        by_prefect_aws, ours = relay.to_sts
        assert ours == by_prefect_aws
        assert {request.signer for request in relay.requests if not request.form} == {relay.issued[1]}
    store = open_store(f"{s3.url}/by-role", options=s3.storage_options)
    assert {str(info.digest) for info in store.walk()} == set(built.descriptors)
    assert CALLER_SECRET not in str(prefect.get(f"/flow_runs/{state.state_details.flow_run_id}"))


def test_options_of_the_run_override_the_store_block_and_its_credentials_block() -> None:
    from prefect.types import SecretDict

    from prefect_dist.flows.blocks import ContentStore, PrefectBlocks

    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_session_token": "c"}
    block = aws_credentials(**keys, region_name="eu-west-1", aws_client_parameters={"endpoint_url": "http://a"})
    block.save("layers", overwrite=True)
    ContentStore(
        url="s3://bucket",
        credentials="aws-credentials/layers",
        options={"endpoint_url": "http://b", "client_kwargs": {"verify": False}},
        secrets=SecretDict({"token": "d"}),
    ).save("layers", overwrite=True)
    assert PrefectBlocks().read_store("layers", {"endpoint_url": "http://c"}) == (
        "s3://bucket",
        {
            "key": "a",
            "secret": "b",
            "token": "d",
            "endpoint_url": "http://c",
            "client_kwargs": {"region_name": "eu-west-1", "verify": False},
        },
    )


def test_secret_options_of_a_store_block_are_merged_with_its_other_options() -> None:
    from prefect.types import SecretDict

    from prefect_dist.flows.blocks import ContentStore, PrefectBlocks

    ContentStore(
        url="s3://bucket",
        options={"client_kwargs": {"region_name": "eu-west-1", "verify": False}},
        secrets=SecretDict({"client_kwargs": {"aws_session_token": "a"}}),
    ).save("nested", overwrite=True)
    client = {"region_name": "eu-west-1", "verify": False, "aws_session_token": "a"}
    assert PrefectBlocks().read_store("nested", {}) == ("s3://bucket", {"client_kwargs": client})


def test_an_aws_block_without_keys_leaves_keys_to_the_environment() -> None:
    from prefect_dist.flows.blocks import ContentStore, PrefectBlocks

    aws_credentials(region_name="eu-west-1").save("role", overwrite=True)
    ContentStore(url="s3://bucket", credentials="role").save("role", overwrite=True)
    assert PrefectBlocks().read_store("role", {}) == ("s3://bucket", {"client_kwargs": {"region_name": "eu-west-1"}})


def test_a_block_of_another_type_without_keys_is_refused() -> None:
    from prefect_dist.flows.blocks import ContentStore, PrefectBlocks

    ContentStore(url="s3://bucket", credentials="content-store/other").save("other", overwrite=True)
    with pytest.raises(InvalidInput, match="credentials block 'content-store/other': expected a block with keys or a profile"):
        PrefectBlocks().read_store("other", {})


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, {}),
        ({"use_ssl": False}, {"use_ssl": False}),
        ({"verify": True}, {"client_kwargs": {"verify": True}}),
        ({"verify": False}, {"client_kwargs": {"verify": False}}),
        ({"verify_cert_path": __file__}, {"client_kwargs": {"verify": __file__}}),
        ({"api_version": "2006-03-01"}, {"client_kwargs": {"api_version": "2006-03-01"}}),
        ({"config": {"s3": {"addressing_style": "path"}}}, {"config_kwargs": {"s3": {"addressing_style": "path"}}}),
    ],
)
def test_the_client_parameters_of_an_aws_block_are_used(parameters: dict[str, Any], expected: dict[str, Any]) -> None:
    from prefect_dist.flows.blocks import ContentStore, PrefectBlocks

    aws_credentials(aws_access_key_id="a", aws_secret_access_key="b", aws_client_parameters=parameters).save(
        "client", overwrite=True
    )
    ContentStore(url="s3://bucket", credentials="client").save("client", overwrite=True)
    assert PrefectBlocks().read_store("client", {}) == ("s3://bucket", {"key": "a", "secret": "b", **expected})


def test_options_of_a_block_are_merged_with_the_default_options_of_the_s3_client(s3: S3Server) -> None:
    options = s3.storage_options | {"config_kwargs": {"s3": {"addressing_style": "path"}}}
    config = open_store(f"{s3.url}/config", options=options)._backend.fs.s3.meta.config
    assert (config.s3, config.retries["total_max_attempts"]) == ({"addressing_style": "path"}, 4)


def test_a_missing_credentials_block_of_a_store_block_is_named() -> None:
    from prefect_dist.flows.blocks import ContentStore, PrefectBlocks

    ContentStore(url="s3://bucket", credentials="none").save("odd", overwrite=True)
    with pytest.raises(InvalidInput, match="credentials block 'none' not found"):
        PrefectBlocks().read_store("odd", {})
