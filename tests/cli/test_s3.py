"""Commands on a store in S3, with credentials from the environment and an endpoint from an option."""

from pathlib import Path

import pytest

from prefect_dist.mirror.config import parse_mirror
from prefect_dist.mirror.yamlfile import parse_yaml
from prefect_dist.ocispec.errors import InvalidInput
from prefect_dist.storage import open_store
from tests import images
from tests.cli.dist import Result, dist
from tests.fakes.registry import FakeRegistry
from tests.peers.prefect import PrefectServer
from tests.peers.seaweedfs import S3Server


def test_all_commands_on_a_store_in_s3(s3: S3Server, prefect: PrefectServer) -> None:
    assert prefect.url
    index = images.index([images.image(800), images.image(801, platform="linux/arm64", layer_bytes=9_000_000)])

    def run(*arguments: str) -> Result:
        where = ("--store", f"{s3.url}/cli", "--store-option", f"endpoint_url={s3.endpoint}", "--output", "json")
        return dist(*where, *arguments, AWS_ACCESS_KEY_ID=s3.key, AWS_SECRET_ACCESS_KEY=s3.secret, AWS_DEFAULT_REGION=s3.region)

    with FakeRegistry() as registry:
        images.load(registry, "app", index, "v1")
        name = f"{registry.host}/app:v1"
        first = run("fetch", name)
        before = len(registry.requests)
        second = run("fetch", "--direct", name)
        again = registry.requests[before:]

    assert (first.code, first.err, first.json["images"][0]["fetched"]) == (0, "", len(index.descriptors))
    assert (second.json["images"][0]["existed"], [request.method for request in again]) == (len(index.descriptors), ["HEAD"])
    assert {blob["digest"] for blob in run("ls").json} == set(index.descriptors)
    assert [(known["name"], known["descriptor"]["digest"]) for known in run("names").json] == [(name, index.root.digest)]
    assert run("names", "--check").code == 0
    assert run("verify", "--direct").json["counts"]["ok"] == len(index.descriptors)
    assert run("rm", name).code == 0
    assert not run("gc", "--direct").json["blobs"]  # younger than a day
    assert s3.secret not in first.err + second.err


def test_a_secret_on_the_command_line_is_refused(s3: S3Server) -> None:
    result = dist("--store", s3.url, "--store-option", f"secret={s3.secret}", "ls")
    assert result.code == 2
    assert s3.secret not in result.err


def test_wrong_credentials_of_a_store_fail_before_prefect_starts(s3: S3Server) -> None:
    result = dist(
        *("--store", f"{s3.url}/x", "--store-option", f"endpoint_url={s3.endpoint}", "fetch", "redis"),
        AWS_ACCESS_KEY_ID=s3.key,
        AWS_SECRET_ACCESS_KEY="wrong-secret",
        AWS_DEFAULT_REGION=s3.region,
        PREFECT_API_URL=None,
    )
    assert result.code == 1
    assert result.line == f"dist: store {s3.url}/x: Forbidden; check the credentials and their permissions"
    assert "wrong-secret" not in result.err


def test_a_configuration_has_the_credentials_of_its_store(s3: S3Server, prefect: PrefectServer, tmp_path: Path) -> None:
    built = images.image(803, layers=1)
    with FakeRegistry() as source, FakeRegistry() as target:
        images.load(source, "app", built, "v1")
        (tmp_path / "mirror.yaml").write_text(f"""\
store:
  url: {s3.url}/configured
  options:
    endpoint_url: {s3.endpoint}
    key: '{{{{env "STORE_KEY"}}}}'
    secret: '{{{{env "STORE_SECRET"}}}}'
    client_kwargs: {{region_name: {s3.region}}}
sync: [{{source: "{source.host}/app:v1", target: "{target.host}/copy:v1", type: image}}]
""")

        def run(*arguments: str) -> Result:
            return dist(*arguments, str(tmp_path / "mirror.yaml"), STORE_KEY=s3.key, STORE_SECRET=s3.secret, DIST_STORE=None)

        result = run("--debug", "mirror")
        assert target.manifest("copy", "v1") is not None
        shown = run("--output", "json", "config")

    assert (result.code, shown.code) == (0, 0), result.err
    store = open_store(f"{s3.url}/configured", options=s3.storage_options)
    assert {str(info.digest) for info in store.walk()} == set(built.descriptors)
    runs = str(prefect.post("/flow_runs/filter", {}))
    assert not [text for text in (str(result.out), result.err, str(shown.out), shown.err, runs) if s3.secret in text]


def test_a_configuration_that_prefect_keeps_may_not_hold_a_secret_itself() -> None:
    text = (
        "store: {url: 's3://x', options: {secret: topsecret}}\nsync: [{source: redis:1, target: 'a.example/b:1', type: image}]"
    )
    with pytest.raises(InvalidInput, match=r"store\.options\.secret: expected \{\{env") as caught:
        parse_mirror(parse_yaml(text.encode(), "block:x", is_file=False))
    assert "topsecret" not in str(caught.value)
