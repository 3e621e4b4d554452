from pathlib import Path

import pytest

from ocispec.errors import InvalidInput
from storage import open_store
from storage.options import parse


def test_options_nest_and_have_the_types_of_json() -> None:
    assert parse(["endpoint_url=http://x:1", "client_kwargs.region_name=eu", "client_kwargs.n=3", "anon=true"]) == {
        "endpoint_url": "http://x:1",
        "client_kwargs": {"region_name": "eu", "n": 3},
        "anon": True,
    }


@pytest.mark.parametrize("text", ["", "name", "=value", "a.=1", ".a=1"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected name=value"):
        parse([text])


def test_one_name_for_two_things_is_refused() -> None:
    with pytest.raises(InvalidInput, match="a has a value already"):
        parse(["a=1", "a.b=2"])


@pytest.mark.parametrize("name", ["key", "secret", "token", "account_key", "client_kwargs.aws_secret_access_key", "sas_token"])
def test_a_secret_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse([f"{name}=hunter2"])
    assert name.rpartition(".")[2] in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_name_that_only_sounds_like_a_secret_is_none() -> None:
    assert parse(["s3_additional_kwargs.SSEKMSKeyId=alias/mine"])


@pytest.mark.parametrize("url", ["", "file://"])
def test_a_local_disk_has_no_options(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidInput, match=r"^store .*: a local disk has no store options, got endpoint_url, anon; leave them"):
        open_store(f"{url}{tmp_path}", options={"endpoint_url": "http://x", "anon": True})


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(["endpoint_url=http://user:hunter2@host"])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InvalidInput, match=r"store s3://…@bucket/x: ") as caught:
        open_store("s3://AK:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)
