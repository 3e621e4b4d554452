"""Files of regsync, version 1, load unchanged and keep their meaning."""

from pathlib import Path

import pytest

from prefect_dist.mirror.config import Mirror, load
from prefect_dist.mirror.selection import Patterns
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.platform import Platform
from prefect_dist.ocispec.referrers import ReferrerFilter
from prefect_dist.remotes import Credentials, HostSettings, Tls
from tests.peers.tls import self_signed

FILES = Path(__file__).parent / "regsync"


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.chdir(FILES)  # as with regsync, the path of a template's file starts at the working directory
    monkeypatch.setenv("HUB_USER", "hubuser")
    return load("everything.yaml")


@pytest.fixture
def anchors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Mirror:
    self_signed(tmp_path)
    (tmp_path / "cert.pem").rename(tmp_path / "ca.pem")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_REGISTRY", "source.example")
    monkeypatch.delenv("ABSENT", raising=False)
    return load(str(FILES / "anchors.yaml"))


def targets(mirror: Mirror, number: int, source: str) -> list[str]:
    return [str(target) for target in mirror.entries[number].list_targets(Reference.parse(source))]


def backup(mirror: Mirror, number: int, target: str) -> str:
    return str(mirror.entries[number].make_backup_name(Reference.parse("source.example/x:1"), Reference.parse(target)))


WARNINGS = """\
everything.yaml:11: creds[0].repoAuth: has no effect: a run requests a token for each repository
everything.yaml:31: creds[4].credHelper: has no effect: configure credential helpers under credHelpers in docker's config.json
everything.yaml:32: creds[4].credExpire: has no effect: configure credential helpers in docker's config.json
everything.yaml:33: creds[4].credHost: has no effect: configure credential helpers in docker's config.json
everything.yaml:38: creds[4].api: has no effect: there is only one API
everything.yaml:39: creds[4].scheme: has no effect: tls sets the scheme
everything.yaml:46: defaults.ratelimit: has no effect: the plan shows how much of a quota the run needs, and requests wait as long as a registry demands
everything.yaml:56: defaults.referrerSource: has no effect: a run reads referrers from the repository of their image
everything.yaml:57: defaults.referrerTarget: has no effect: a run publishes referrers in the repository of their image
everything.yaml:58: defaults.referrerSlow: has no effect: a run uses the referrers API, or the fallback tag if there is no API
everything.yaml:59: defaults.fastCheck: has no effect: a run never sends content again that a target has
everything.yaml:60: defaults.forceRecursive: has no effect: `dist check --repair` sends missing content
everything.yaml:61: defaults.includeExternal: has no effect: non-distributable layers stay at the URLs in their descriptors
everything.yaml:62: defaults.mediaTypes: has no effect: a run mirrors images of all media types
everything.yaml:64: defaults.hooks: has no effect: regsync ignores hooks, too; `gate` checks images before publication
everything.yaml:68: defaults.blobLimit: has no effect: the size of manifests has a fixed limit, and the size of blobs has no limit
everything.yaml:69: defaults.cacheCount: has no effect: a run keeps the answers of registries until it ends
everything.yaml:70: defaults.cacheTime: has no effect: a run keeps the answers of registries until it ends
everything.yaml:71: defaults.skipDockerConfig: has no effect: credentials in the configuration take precedence over `docker login`
everything.yaml:72: defaults.userAgent: has no effect: requests name this program and its version
everything.yaml:78: sync[0].fastCopy: has no effect: a run never sends content again that a target has
everything.yaml:91: sync[1].ratelimit: has no effect: the plan shows how much of a quota the run needs, and requests wait as long as a registry demands
everything.yaml:77: sync[0].schedule and 2 more: have no effect: only the schedule of a deployment starts runs; to create one: prefect deployment schedule create mirror/mirror --cron '15 01 * * *'
"""  # noqa: E501 - lines of output


def test_each_key_without_effect_has_a_warning(everything: Mirror) -> None:
    assert "".join(f"{line}\n" for line in everything.warnings) == WARNINGS


def test_creds_become_settings_and_credentials(everything: Mirror) -> None:
    assert everything.hosts.named == {
        "registry.example:5000": HostSettings(scheme="http", in_flight=4, per_second=10, chunk_bytes=1048576, whole_bytes=-1),
        "docker.io": HostSettings(mirrors=("high.example", "low.example")),
        "low.example": HostSettings(path_prefix="hub/"),
        "high.example": HostSettings(scheme="https", tls=Tls(verify=False), avoid=frozenset({"head"})),
        "ecr.example": HostSettings(),
        "elsewhere.example": HostSettings(hostname="internal.example:8443"),
    }
    assert everything.hosts.url("docker.io") == "https://registry-1.docker.io"
    assert everything.credentials == {
        "registry.example:5000": Credentials("syncuser", "Pa$$w0rd"),
        "docker.io": Credentials("hubuser", "hubsecret"),
        "ecr.example": Credentials("", "", "12345"),
    }


def test_no_representation_contains_a_secret(everything: Mirror) -> None:
    shown = f"{everything!r}{everything.warnings}"
    assert not [secret for secret in ("Pa$$w0rd", "hubsecret", "12345") if secret in shown]


def test_entries_select_as_in_regsync(everything: Mirror) -> None:
    image, repository, registry = everything.entries
    assert (image.type, image.source) == ("image", "docker.io/library/busybox:latest")
    assert (repository.type, repository.source) == ("repository", "docker.io/library/alpine")
    assert (registry.type, registry.source) == ("registry", "registry.example:5000")
    assert [one.at for one in everything.entries] == [
        f"everything.yaml:{line}: sync[{n}]" for n, line in enumerate((74, 79, 94))
    ]
    assert repository.tags.choose(["3", "3.1", "3.10", "3.1.0", "latest", "edge"]) == ["3", "3.10", "latest"]
    assert registry.tags.choose(["latest", "v3.5.1", "v3.5.0", "3.6.0", "v3.6", "v5.0.9", "v5.1.0", "edge2"]) == [
        "latest",
        "v3.5.1",
        "v5.0.9",
    ]
    assert registry.repositories == Patterns(allow=("team/.*",), deny=("team/private",))
    assert repository.platforms == (
        Platform(os="linux", architecture="amd64"),
        Platform(os="linux", architecture="arm", variant="v7").normalise(),
    )
    assert [one.platforms for one in (image, registry)] == [None, None]
    assert [one.digest_tags for one in everything.entries] == [True, False, True]
    assert [one.referrers for one in everything.entries] == [True, True, True]
    assert {one.referrer_filters for one in everything.entries} == {
        frozenset(
            {
                ReferrerFilter(
                    artifact_type="application/vnd.example.sbom", annotations=frozenset({("org.example.key", "value")})
                )
            }
        )
    }
    assert not any(one.rewrite_index or one.gate or one.prune or one.tags.created for one in everything.entries)
    assert not any(one.tags.immutable.holds("v1.0.0") for one in everything.entries)


def test_targets_and_backups_have_the_names_of_regsync(everything: Mirror) -> None:
    assert targets(everything, 0, "docker.io/library/busybox:latest") == ["registry.example:5000/library/busybox:latest"]
    assert targets(everything, 1, "docker.io/library/alpine:3.10") == ["registry.example:5000/library/alpine:3.10"]
    assert targets(everything, 2, "registry.example:5000/team/app:edge") == ["backup.example/all/team/app:edge"]
    assert backup(everything, 1, "registry.example:5000/library/alpine:3") == "registry.example:5000/library/alpine:bkup-3"


def test_further_options_of_a_run_are_read(everything: Mirror) -> None:
    assert (everything.name, everything.lock, everything.concurrency) == ("everything", "everything.lock.json", 2)
    assert (everything.store, everything.seed, everything.credential_blocks) == (None, (), ())
    assert [(one.cron, one.interval_s) for one in everything.schedules] == [("15 01 * * *", None), (None, 3600), (None, 21600)]
    assert [one.at for one in everything.schedules] == [
        "everything.yaml:77: sync[0].schedule",
        "everything.yaml:44: defaults.interval",
        "everything.yaml:106: sync[2].interval",
    ]


def test_anchors_and_templates_expand(anchors: Mirror) -> None:
    assert [warning.partition(": ")[2].partition(": ")[0] for warning in anchors.warnings] == ["sync[3].schedule"]
    assert [entry.source for entry in anchors.entries] == [
        "docker.io/library/alpine",
        "docker.io/library/debian",
        "gcr.io/team/app:v1",
        "source.example/team/app",
    ]
    assert targets(anchors, 0, "docker.io/library/alpine:v3") == ["registry.example/hub/alpine:v3"]
    assert targets(anchors, 1, "docker.io/library/debian:v2") == ["registry.example/hub/library/debian:v2"]
    assert targets(anchors, 2, "gcr.io/team/app:v1") == ["registry.example/gcr/team/app:v1"]
    assert targets(anchors, 3, "source.example/team/app:1") == ["registry.example/other/app:1"]
    assert anchors.entries[0].tags.choose(["latest", "v1.0", "v2.0"]) == ["latest", "v1.0", "v2.0"]
    assert anchors.entries[1].tags.choose(["latest", "v1.0", "v2.0"]) == ["latest", "v2.0"]
    assert backup(anchors, 1, "registry.example/hub/library/debian:v2") == "registry.example/hub/library/debian:backup-v2"
    assert anchors.entries[0].backup is None
    assert (anchors.schedules[0].cron, anchors.schedules[0].interval_s) == ("0 0 * * *", None)
    tls = anchors.hosts.settings_for("registry.example").tls
    assert tls.ca_pem is not None
    assert tls.ca_pem.strip().startswith("-----BEGIN CERTIFICATE-----")


def test_the_name_of_a_backup_may_contain_the_date(anchors: Mirror) -> None:
    name = backup(anchors, 3, "registry.example/other/app:1")
    assert name.startswith("registry.example/backup/app:2")
    assert name.endswith("-1")
    assert name.count("-") == 3
