"""The configuration of a mirror: each key, and the message of each mistake. For files of regsync, see test_regsync.py."""

import pickle
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_dist.mirror.config import Mirror, load
from prefect_dist.mirror.entry import Prune
from prefect_dist.mirror.schedule import Schedule
from prefect_dist.mirror.selection import Window
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput, Mistakes
from prefect_dist.ocispec.platform import Platform
from prefect_dist.remotes import Credentials, HostSettings
from prefect_dist.transfer.gate import Gate
from tests.mirror.wrong import WRONG
from tests.peers.tls import CERTIFICATE, self_signed
from tests.remotes.asking import check_message

FULL = """\
name: nightly
store:
  url: cache
  options: {endpoint_url: https://s3.example}
lock: state/nightly.json
concurrency: 12
registries:
  registry.example:
    user: robot
    pass: '{{env "ROBOT"}}'
    caFile: cert.pem
    headers: {X-Key: key}
  registry.example/team: {user: other, pass: s3cret2}
  ghcr.io: {block: github, reqPerSec: 5}
  quay.io: {token: t0ken}
defaults:
  referrers: true
  platforms: [linux/amd64]
  prune: {after: 2d}
  immutableTags: ['v\\d+\\.\\d+\\.\\d+']
sync:
  - source: redis
    targets: [registry.example/hub/redis, mirror.example/redis]
    type: repository
    tags:
      semverRange: ['>=7']
      latest: {count: 2, per: minor}
      created: {after: 2026-01-31, within: 90d}
    rewriteIndex: true
    gate: {command: [cosign, verify], timeout: 30s}
    prune: {after: 12h, most: 5}
    immutableTags: []
  - source: ghcr.io
    target: registry.example/mirror
    type: registry
    repos: {deny: ['.*-cache']}
    platforms: [linux/arm64, linux/arm/v6]
    gate: {python: 'checks.images:allowed'}
    rename: [{match: 'mirror/team/(.*)', to: 'team-$1'}]
  - {source: 'quay.io/team/app@sha256:0000000000000000000000000000000000000000000000000000000000000000', target: 'registry.example/{{.Ref.Repository}}', type: image, referrers: false}
seed:
  images: [redis:7, ghcr.io/team/app:v1]
  list: images.txt
  to: [edge1.example, edge2.example:5000/pre]
  digestTags: true
"""  # noqa: E501 - a digest is long


def write(tmp_path: Path, text: str, name: str = "mirror.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setenv("ROBOT", "s3cret1")
    self_signed(tmp_path)
    (tmp_path / "images.txt").write_text("# what an edge needs\nalpine:3\n\n  busybox  # tools\n")
    return load(write(tmp_path, FULL))


def targets(mirror: Mirror, number: int, source: str) -> list[str]:
    return [str(target) for target in mirror.entries[number].list_targets(Reference.parse(source))]


def test_paths_start_at_the_directory_of_the_file(full: Mirror, tmp_path: Path) -> None:
    assert full.path == str(tmp_path / "mirror.yaml")
    assert (full.name, full.concurrency, full.warnings, full.schedules) == ("nightly", 12, (), ())
    assert (full.store, full.store_options) == (str(tmp_path / "cache"), {"endpoint_url": "https://s3.example"})
    assert full.lock == str(tmp_path / "state" / "nightly.json")


def test_registries_have_settings_and_credentials(full: Mirror, tmp_path: Path) -> None:
    settings = full.hosts.named["registry.example"]
    assert (settings.tls.ca_file, settings.headers) == (str(tmp_path / CERTIFICATE), (("X-Key", "key"),))
    assert full.hosts.named["ghcr.io"] == HostSettings(per_second=5)
    assert list(full.hosts.named) == ["registry.example", "ghcr.io", "quay.io"]
    assert full.credentials == {
        "registry.example": Credentials("robot", "s3cret1"),
        "registry.example/team": Credentials("other", "s3cret2"),
        "quay.io": Credentials("", "", "t0ken"),
    }
    assert {name: found.origin.remedy for name, found in full.credentials.items()} == {
        "registry.example": "correct user and pass there",
        "registry.example/team": "correct user and pass there",
        "quay.io": "correct token there",
    }
    assert full.credentials["quay.io"].origin.place.endswith(".yaml:15: registries.quay.io")
    assert full.credential_blocks == ("github",)
    assert not [secret for secret in ("s3cret1", "s3cret2", "t0ken") if secret in repr(full)]


def test_an_entry_names_its_images_at_each_target(full: Mirror) -> None:
    assert targets(full, 0, "docker.io/library/redis:7.2") == ["registry.example/hub/redis:7.2", "mirror.example/redis:7.2"]
    assert targets(full, 1, "ghcr.io/team/app:1") == ["registry.example/team-app:1"]
    assert targets(full, 1, "ghcr.io/other/app:1") == ["registry.example/mirror/other/app:1"]
    digest = "sha256:" + 64 * "0"
    assert targets(full, 2, f"quay.io/team/app@{digest}") == [f"registry.example/team/app@{digest}"]


def test_entries_select_tags_and_repositories(full: Mirror) -> None:
    redis, ghcr, _ = full.entries
    assert redis.tags.choose(["6.0", "7.0.0", "7.0.1", "7.0.2", "7.2.0", "latest"]) == ["7.0.1", "7.0.2", "7.2.0"]
    assert redis.tags.created == Window(after=datetime(2026, 1, 31, tzinfo=UTC), within_s=timedelta(days=90).total_seconds())
    assert ghcr.repositories.choose(["team/app", "team/app-cache"]) == ["team/app"]
    assert [entry.tags.immutable.holds("v1.2.3") for entry in full.entries] == [False, True, True]
    assert [entry.tags.immutable.holds("latest") for entry in full.entries] == [False, False, False]


def test_options_of_an_entry_override_the_defaults(full: Mirror) -> None:
    redis, ghcr, app = full.entries
    amd64 = Platform(os="linux", architecture="amd64")
    assert [redis.platforms, app.platforms] == [(amd64,), (amd64,)]
    assert ghcr.platforms == (Platform.parse("linux/arm64"), Platform.parse("linux/arm/v6"))
    assert [entry.rewrite_index for entry in full.entries] == [True, False, False]
    assert [entry.referrers for entry in full.entries] == [True, True, False]
    assert redis.gate == Gate(command=("cosign", "verify"), timeout_s=30)
    assert ghcr.gate == Gate(entry_point="checks.images:allowed", timeout_s=300)
    assert app.gate is None
    assert redis.prune == Prune(grace_s=12 * 3600, most=5)
    assert ghcr.prune == Prune(grace_s=2 * 86400, most=20)


@pytest.mark.parametrize(
    ("defaults", "options", "along"),
    [
        ("", "", (False, False)),
        ("", "referrers: true", (True, True)),
        ("", "referrers: true, digestTags: false", (True, False)),
        ("", "digestTags: true", (False, True)),
        ("referrers: true", "", (True, True)),
        ("referrers: true", "digestTags: false", (True, False)),
        ("digestTags: false", "referrers: true", (True, False)),
        ("referrers: true", "referrers: false", (False, False)),
    ],
)
def test_referrers_include_digest_tags_unless_these_are_excluded(
    tmp_path: Path, defaults: str, options: str, along: tuple[bool, bool]
) -> None:
    text = f"""\
        defaults: {{{defaults}}}
        sync: [{{source: redis, target: a.example/b, type: repository, {options}}}]
        seed: {{images: [redis], to: a.example, {options}}}
        """
    found = load(write(tmp_path, text))
    assert {(entry.referrers, entry.digest_tags) for entry in (*found.entries, *found.seed)} == {along}


def test_a_seed_is_an_entry_for_each_image(full: Mirror, tmp_path: Path) -> None:
    path, listed = tmp_path / "mirror.yaml", tmp_path / "images.txt"
    assert [(entry.at, entry.source) for entry in full.seed] == [
        (f"{path}:42: seed.images[0]", "docker.io/library/redis:7"),
        (f"{path}:42: seed.images[1]", "ghcr.io/team/app:v1"),
        (f"{listed}:2", "docker.io/library/alpine:3"),
        (f"{listed}:4", "docker.io/library/busybox:latest"),
    ]
    assert [str(target) for target in full.seed[0].list_targets(Reference.parse(full.seed[0].source))] == [
        "edge1.example/library/redis:7",
        "edge2.example:5000/pre/library/redis:7",
    ]
    assert {(entry.type, entry.digest_tags, entry.referrers) for entry in full.seed} == {("image", True, True)}


def test_a_configuration_can_be_pickled(full: Mirror) -> None:
    assert pickle.loads(pickle.dumps(full)) == full  # noqa: S301 - the test's own data
    assert len(set(full.entries)) == 3


@pytest.mark.parametrize(
    ("text", "store", "lock"),
    [
        ("seed: {images: [a], to: b.example}", None, "mirror.lock.json"),
        ("store: /srv/store\nseed: {images: [a], to: b.example}", "/srv/store", "mirror.lock.json"),
        ("store: block:main\nseed: {images: [a], to: b.example}", "block:main", "mirror.lock.json"),
        (
            "store: s3://bucket/x\nlock: s3://bucket/lock\nseed: {images: [a], to: b.example}",
            "s3://bucket/x",
            "s3://bucket/lock",
        ),
        ("store: '{{env \"PLACE\"}}'\nlock: /l\nseed: {images: [a], to: b.example}", "memory://here", "/l"),
    ],
)
def test_store_and_lock_file_may_be_paths_urls_or_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, store: str | None, lock: str
) -> None:
    monkeypatch.setenv("PLACE", "memory://here")
    mirror = load(write(tmp_path, text))
    assert mirror.store == store
    assert mirror.lock in (lock, str(tmp_path / lock))
    assert mirror.name == "mirror"


@pytest.mark.parametrize(
    ("text", "cron", "interval_s"),
    [
        ("0 3 * * MON-FRI", "0 3 * * MON-FRI", None),
        ("*/15 0-6,20 ? * 7", "*/15 0-6,20 ? * 7", None),
        ("@hourly", "0 * * * *", None),
        ("@every 1d12h", None, 129600),
    ],
)
def test_schedules_are_cron_expressions_or_intervals(text: str, cron: str | None, interval_s: float | None) -> None:
    assert Schedule.parse(text, at="here") == Schedule(at="here", cron=cron, interval_s=interval_s)


@pytest.mark.parametrize(("text", "message"), WRONG, ids=lambda value: value if value.startswith(":") else "")
def test_each_mistake_has_a_message_with_its_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidInput) as caught:
        load(path)
    check_message(caught.value, hides=["topsecret"])
    assert str(caught.value) == path + message.replace("{folder}", str(tmp_path))


def test_options_shared_by_an_anchor_have_a_warning_where_they_have_no_effect(tmp_path: Path) -> None:
    text = """\
x-all: &all {tags: {allow: [on]}, tagSets: [{allow: [no]}], repos: {allow: [a]}, referrers: yes}
sync:
  - {<<: *all, source: redis, target: r.example/a, type: image}
  - {<<: *all, source: redis, target: r.example/b, type: repository}
  - {<<: *all, source: ghcr.io, target: r.example/c, type: registry}
"""
    mirror = load(path := write(tmp_path, text))
    assert mirror.warnings == (
        f"{path}:3: sync[0].tags: has no effect: source names one image",
        f"{path}:3: sync[0].tagSets: has no effect: source names one image",
        f"{path}:3: sync[0].repos: has no effect: type is not registry",
        f"{path}:4: sync[1].repos: has no effect: type is not registry",
    )
    assert mirror.entries[1].tags.choose(["on", "no", "yes"]) == ["on", "no"]
    assert [entry.referrers for entry in mirror.entries] == [True, True, True]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(one, (*at, key))


PLACES = list(places(yaml.safe_load(FULL)))
VALUES = [
    None,
    0,
    -1,
    1.5,
    True,
    "",
    "x",
    "{{",
    "(",
    "a: b\n\t\x00é",
    [],
    [1],
    {},
    {"a": 1},
    {1: {2: 3}},
    10**30,
    float("nan"),
    "0001-01-01",
]


@given(at=st.sampled_from(PLACES), value=st.sampled_from(VALUES))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_at_any_key_loads_or_is_a_mistake(tmp_path: Path, at: tuple[Any, ...], value: object) -> None:
    (tmp_path / "images.txt").write_text("redis")
    if not (tmp_path / CERTIFICATE).exists():
        self_signed(tmp_path)
    options = {"": yaml.safe_load(FULL)}
    parent: Any = options
    for key in ("", *at)[:-1]:
        parent = parent[key]
    parent[("", *at)[-1]] = value
    path = write(tmp_path, yaml.safe_dump(options[""]).replace('{{env "ROBOT"}}', "robot"))
    try:
        assert load(path).path == path
    except InvalidInput as exc:
        check_message(exc, path)


def test_an_invalid_certificate_is_a_mistake_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "creds: [{registry: a.example, regcert: topsecret}]\nsync: []\nseed: {images: [a], to: b.example}\n")
    with pytest.raises(InvalidInput) as caught:
        load(path)
    check_message(caught.value, f"{path}:1: creds[0]: CA certificates: expected a certificate", hides=["topsecret"])


def test_one_error_reports_all_mistakes(tmp_path: Path) -> None:
    path = write(
        tmp_path, "sync:\n- {typ: image, target: a.example/b}\n- {source: a, type: image, platforms: [a, linux/b, c]}\n"
    )
    with pytest.raises(Mistakes) as caught:
        load(path)
    assert [line.removeprefix(f"{path}:") for line in caught.value.lines] == [
        "2: sync[0].typ: unknown key; did you mean type",
        "2: sync[0].source: missing",
        "2: sync[0].type: missing",
        *(
            f"3: sync[1].platforms[{number}]: platform {text!r}: expected os/architecture[/variant], such as linux/amd64"
            for number, text in ((0, "a"), (2, "c"))
        ),
    ]
    assert str(caught.value) == "; ".join(caught.value.lines)


def test_relative_paths_in_locators_start_at_the_directory_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text(
        "sync:\n"
        "  - source: oci:in\n"
        "    type: repository\n"
        "    targets: ['oci:./out', 'oci-archive:all.tar:app', 'oci:/srv/x', 'r.example/x']\n"
        "  - {source: 'oci:in:v1', type: image, target: 'oci:s3://bucket/x:v1'}\n"
    )
    first, second = load(str(file)).entries
    assert (first.source, second.source) == (f"oci:{tmp_path}/in", f"oci:{tmp_path}/in:v1")
    assert [str(one) for one in first.list_targets(Reference.parse(f"{first.source}:v1"))] == [
        f"oci:{tmp_path}/out:v1",
        f"oci-archive:{tmp_path}/all.tar:app:v1",
        "oci:/srv/x:v1",
        "r.example/x:v1",
    ]
    assert [str(one) for one in second.list_targets(second.image)] == ["oci:s3://bucket/x:v1"]
