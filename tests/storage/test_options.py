"""Tests of store options: their forms, secrets in them, and the file systems that they configure."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from prefect_dist.ocispec.errors import InvalidInput, Unsupported
from prefect_dist.storage import backend, open_store
from prefect_dist.storage.options import merge_options, parse
from tests.peers.processes import PATIENCE_S


def test_options_can_be_nested_and_have_json_types() -> None:
    assert parse(["endpoint_url=http://x:1", "client_kwargs.region_name=eu", "client_kwargs.n=3", "anon=true"]) == {
        "endpoint_url": "http://x:1",
        "client_kwargs": {"region_name": "eu", "n": 3},
        "anon": True,
    }


@pytest.mark.parametrize("text", ["", "name", "=value", "a.=1", ".a=1"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected name=value"):
        parse([text])


def test_a_name_with_both_a_value_and_nested_options_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a already has a single value"):
        parse(["a=1", "a.b=2"])


@pytest.mark.parametrize("name", ["key", "secret", "token", "account_key", "client_kwargs.aws_secret_access_key", "sas_token"])
def test_a_secret_is_refused_and_not_in_the_message(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse([f"{name}=hunter2"])
    assert name.rpartition(".")[2] in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        "client_kwargs.headers.Authorization=Bearer hunter2",
        "client_kwargs.headers.X-Custom=Bearer hunter2",
        'client_kwargs.headers=[["Authorization", "hunter2"]]',
        "client_kwargs.headers.Cookie=a=hunter2",
        "cookies=hunter2",
        "passphrase=hunter2",
        "passwd=hunter2",
        "client_kwargs.auth.pass=hunter2",
        "sas=hunter2",
        'auth=["u", "hunter2"]',
        'config_kwargs.x=["http://u:hunter2@proxy"]',
        'config_kwargs.x=[{"proxies": [["http://u:hunter2@proxy"]]}]',
        "config_kwargs.proxies.https=http://u:hunter2@proxy",
    ],
)
def test_secrets_at_any_depth_are_refused_and_not_in_the_message(option: str) -> None:
    with pytest.raises(InvalidInput, match="options must not contain secrets") as caught:
        parse([option])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["bypass", "author", "unauthenticated", "passive", "signature_version"])
def test_similar_names_of_other_options_are_not_secrets(name: str) -> None:
    assert parse([f'{name}=["x", "https://proxy"]']) == {name: ["x", "https://proxy"]}


def test_options_are_merged_at_every_depth() -> None:
    known = {"a": {"b": {"c": 1, "d": 2}, "e": 3}, "f": 4}
    assert merge_options(known, {"a": {"b": {"d": 5}}, "g": 6}) == {"a": {"b": {"c": 1, "d": 5}, "e": 3}, "f": 4, "g": 6}


def test_an_option_whose_name_only_resembles_a_secret_is_accepted() -> None:
    assert parse(["s3_additional_kwargs.SSEKMSKeyId=alias/mine"])


@pytest.mark.parametrize("way", ["google_default", "cloud", "anon"])
def test_the_login_method_of_google_is_not_a_secret(way: str) -> None:
    assert parse([f"token={way}"]) == {"token": way}


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [
        ("s3://bucket/x", "s3fs", "s3"),
        ("gs://bucket/x", "gcsfs", "gcs"),
        ("gcs://bucket/x", "gcsfs", "gcs"),
        ("az://container/x", "adlfs", "azure"),
        ("abfs://container/x", "adlfs", "azure"),
    ],
)
def test_the_error_of_a_missing_driver_has_its_extra(url: str, driver: str, extra: str) -> None:
    script = f"import sys; sys.modules[{driver!r}] = None; from storage import open_store; open_store({url!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    protocol = url.partition(":")[0]
    expected = f"store {url}: the driver for {protocol}:// is not installed; run pip install 'prefect-dist[{extra}]'"
    assert done.stderr.splitlines()[-1] == f"prefect_dist.ocispec.errors.InvalidInput: {expected}"


def test_every_extra_in_an_error_message_exists() -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(backend._EXTRAS.values()) <= declared.keys()


@pytest.mark.parametrize("url", ["sftp://host/x", "hdfs://host/x", "zip://x"])
def test_a_file_system_without_atomic_visibility_is_refused(url: str) -> None:
    with pytest.raises(Unsupported, match=rf"^store {url}: .* appears whole or not at all.*use one of abfs, az, file"):
        open_store(url)


@pytest.mark.parametrize("url", ["", "file://"])
def test_a_local_disk_has_no_options(tmp_path: Path, url: str) -> None:
    with pytest.raises(
        InvalidInput, match=r"^store .*: a local disk has no store options, got endpoint_url, anon; remove them"
    ):
        open_store(f"{url}{tmp_path}", options={"endpoint_url": "http://x", "anon": True})


def test_a_password_in_a_url_is_refused_and_not_in_the_message() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(["endpoint_url=http://user:hunter2@host"])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InvalidInput, match=r"store s3://…@bucket/x: ") as caught:
        open_store("s3://AK:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
