"""A store on S3 with the credentials of a role, which a real STS server issues and a real S3 server checks."""

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_dist.ocispec.errors import Denied, DistError, InvalidInput
from prefect_dist.storage import open_store
from prefect_dist.storage.statefile import StateFile
from prefect_dist.transfer.session import SessionSpec
from tests.fakes.aws import AwsRelay
from tests.peers.seaweedfs import CALLER_KEY, CALLER_SECRET, ROLE_ARN, S3Server

KEYS = {"key": CALLER_KEY, "secret": CALLER_SECRET}


@pytest.fixture
def aws(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsRelay]:
    """Yield an S3 and STS server that records every request."""
    with AwsRelay(s3.endpoint) as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", relay.endpoint)
        yield relay


def options(aws: AwsRelay, *, role: Any = None, **login: Any) -> dict[str, Any]:
    client = {"region_name": "eu-west-1"}
    return {"endpoint_url": aws.endpoint, "client_kwargs": client, "assume_role": role or {"RoleArn": ROLE_ARN}} | login


def file_in(s3: S3Server, name: str, options: dict[str, Any]) -> StateFile:
    return StateFile(f"{s3.url}/roles/{name}", options=options)


def signers(aws: AwsRelay) -> set[str]:
    """Return the keys that signed requests to S3."""
    return {request.signer for request in aws.requests if not request.form}


def test_the_role_is_requested_once_and_signs_every_request_to_s3(s3: S3Server, aws: AwsRelay) -> None:
    role = {"RoleArn": ROLE_ARN, "RoleSessionName": "mirror", "ExternalId": "theirs", "DurationSeconds": 3600}
    file = file_in(s3, "once", options(aws, role=role | {"Tags": [{"Key": "team", "Value": "a"}]}, **KEYS))
    assert aws.requests == []
    for content in (b"1", b"2"):
        file.write(content)
        assert file.read() == content
    (request,) = aws.to_sts
    assert request.signer == CALLER_KEY
    assert request.form == {
        "Action": "AssumeRole",
        "Version": "2011-06-15",
        **{name: str(value) for name, value in role.items()},
        "Tags.member.1.Key": "team",
        "Tags.member.1.Value": "a",
    }
    assert signers(aws) == set(aws.issued)


def test_the_caller_without_the_role_is_denied(s3: S3Server, aws: AwsRelay) -> None:
    plain = {name: value for name, value in options(aws, **KEYS).items() if name != "assume_role"}
    with pytest.raises(Denied):
        file_in(s3, "plain", plain).write(b"content")
    assert signers(aws) == {CALLER_KEY}


def test_credentials_that_expire_soon_are_requested_again_before_the_next_request(s3: S3Server, aws: AwsRelay) -> None:
    aws.lifetime_s = 300
    file = file_in(s3, "soon", options(aws, **KEYS))
    for content in (b"1", b"2"):
        file.write(content)
        assert file.read() == content
    assert len(aws.issued) == len(set(aws.issued)) == 4
    assert [request.signer for request in aws.requests if not request.form] == aws.issued
    assert {request.signer for request in aws.to_sts} == {CALLER_KEY}
    assert len({request.form["RoleSessionName"] for request in aws.to_sts}) == 1
    aws.lifetime_s = None
    for _ in range(3):
        assert file.read() == b"2"
    assert len(aws.issued) == 5


def test_after_a_failed_refresh_credentials_are_used_until_shortly_before_they_expire(
    s3: S3Server, aws: AwsRelay, caplog: pytest.LogCaptureFixture
) -> None:
    aws.lifetime_s = (
        800  # botocore requests new credentials 15 minutes before the old ones expire, and requires them 10 minutes before
    )
    file = file_in(s3, "kept", options(aws, **KEYS))
    file.write(b"content")
    (first,) = aws.issued
    aws.refused = True
    assert file.read() == b"content"
    assert len(aws.to_sts) == 2
    assert signers(aws) == {first}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    aws.refused = False
    assert file.read() == b"content"
    assert signers(aws) == set(aws.issued)
    assert len(aws.issued) == 2


def test_a_profile_can_assume_the_role(s3: S3Server, aws: AwsRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    lines = ["[other]", f"aws_access_key_id = {CALLER_KEY}", f"aws_secret_access_key = {CALLER_SECRET}"]
    (tmp_path / "credentials").write_text("\n".join(lines))
    file_in(s3, "profile", options(aws, profile="other")).write(b"content")
    assert [request.signer for request in aws.to_sts] == [CALLER_KEY]
    assert aws.to_sts[0].form["RoleSessionName"].startswith("prefect-session-")


def test_credentials_of_the_environment_can_assume_the_role(
    s3: S3Server, aws: AwsRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CALLER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CALLER_SECRET)
    file_in(s3, "environment", options(aws)).write(b"content")
    assert [request.signer for request in aws.to_sts] == [CALLER_KEY]
    assert signers(aws) == set(aws.issued)


def test_the_error_of_a_refused_role_has_its_name_on_one_line(
    s3: S3Server, aws: AwsRelay, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Denied) as caught:
        file_in(s3, "denied", options(aws, role={"RoleArn": f"{ROLE_ARN}-other"}, **KEYS)).read()
    assert f"role {ROLE_ARN}-other: user caller is not authorized to assume role" in str(caught.value)
    assert CALLER_SECRET not in str(caught.value)
    assert signers(aws) == set()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("login", "message"),
    [
        ({"role": {"RoleSessionName": "x"}, **KEYS}, "store option assume_role.RoleArn: missing"),
        ({"role": "arn", **KEYS}, "store option assume_role: expected nested options as assume_role.NAME=VALUE"),
        (
            {"role": {"RoleArn": ROLE_ARN, "SerialNumber": "1", "TokenCode": "2"}, **KEYS},
            "SerialNumber and TokenCode cannot be",
        ),
        ({}, f"role {ROLE_ARN}: no credentials found to assume the role"),
        ({"key": CALLER_KEY}, f"role {ROLE_ARN}: expected a key with its secret"),
        (
            {"username": CALLER_KEY, "password": "x"},
            "store option username: to assume a role, give the credentials as key",
        ),
        ({"client_kwargs": {"aws_access_key_id": "x"}}, "store option aws_access_key_id: to assume a role"),
        ({**KEYS, "endpont_url": "x"}, "endpont_url"),
        ({**KEYS, "profile": "none"}, "none"),
    ],
)
def test_a_role_with_invalid_options_is_refused_before_any_request(
    s3: S3Server, aws: AwsRelay, login: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        open_store(f"{s3.url}/roles", options=options(aws, **login))
    assert message in str(caught.value)
    assert CALLER_SECRET not in str(caught.value)
    assert aws.requests == []


def test_a_session_specification_with_a_role_can_be_sent_to_another_process(s3: S3Server, aws: AwsRelay) -> None:
    spec = SessionSpec(store=f"{s3.url}/roles/sent", store_options=options(aws, **KEYS))
    assert CALLER_SECRET not in repr(spec)
    received = pickle.loads(pickle.dumps(spec))  # noqa: S301 - our own bytes
    assert list(open_store(received.store, options=received.store_options).walk()) == []
    assert len(aws.issued) == 1


def test_an_unreachable_sts_server_is_unavailable(s3: S3Server, aws: AwsRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    with pytest.raises(DistError, match=r"127\.0\.0\.1:1") as caught:
        file_in(s3, "unreachable", options(aws, **KEYS)).read()
    assert caught.value.retryable
