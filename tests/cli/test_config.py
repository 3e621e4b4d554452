"""The command config prints a configuration as tables and JSON, without secrets."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.dist import Result, dist

FULL = """\
name: nightly
store: s3://bucket/cache
concurrency: 4
registries:
  registry.example: {user: robot, pass: '{{env "ROBOT"}}', tls: insecure, reqPerSec: 2, headers: {X-Key: topsecret}}
defaults: {schedule: 0 3 * * *}
sync:
- {source: redis, target: registry.example/redis, type: repository, platforms: [linux/amd64], rewriteIndex: true,
   tags: {allow: ['7.*'], semverRange: ['>=7.2 <8'], latest: {count: 2, per: minor}, created: {within: 90d}}}
- {source: "ghcr.io/a/b:v1", targets: [registry.example/b, other.example/b], type: image, platform: linux/arm64,
   gate: {command: [cosign, verify]}, prune: {after: 7d, most: 3}, backup: 'old-{{.Ref.Tag}}',
   referrers: true, digestTags: true}
seed: {images: [alpine:3], to: registry.example/seeded, fastCheck: true}
"""


def config(tmp_path: Path, text: str, *arguments: str) -> Result:
    path = tmp_path / "mirror.yaml"
    path.write_text(text)
    return dist(*arguments[:2], "config", path, *arguments[2:], ROBOT="topsecret2")


def test_config_prints_tables_and_warnings(tmp_path: Path) -> None:
    shown = config(tmp_path, FULL)
    assert shown.code == 0, shown.err
    cells = [re.split(r" {2,}", line) for line in shown.lines]
    assert cells == [
        ["NAME", "STORE", "LOCK FILE", "CONCURRENCY", "GRAIN", "SCHEDULES"],
        ["nightly", "s3://bucket/cache", str(tmp_path / "mirror.lock.json"), "4", "descriptor", "0 3 * * *"],
        [""],
        ["REGISTRY", "SETTINGS"],
        ["registry.example", "https; certificate not verified; headers X-Key; 2 requests per second; credentials"],
        [""],
        ["SOURCE", "TYPE", "TARGETS", "SETTINGS"],
        [
            "docker.io/library/redis",
            "repository",
            "registry.example/redis",
            (
                "tags versions >=7.2 <8, allow 7.*, the newest 2 of each minor version; created within 3 months; "
                "platforms linux/amd64 (new index)"
            ),
        ],
        [
            "ghcr.io/a/b:v1",
            "image",
            "registry.example/b:latest, other.example/b:latest",
            (
                "only the image for linux/arm64, without the index; with referrers and digest tags; backup old-{{.Ref.Tag}}; "
                "gate cosign verify; prune after 7 days, at most 3 per run"
            ),
        ],
        ["docker.io/library/alpine:3", "seed", "registry.example/seeded/library/alpine:3", "-"],
    ]
    idle, schedule = shown.err.splitlines()
    assert idle.startswith(f"dist: warning: {tmp_path}/mirror.yaml:13: seed.fastCheck: has no effect")
    assert schedule == (
        f"dist: warning: {tmp_path}/mirror.yaml:6: defaults.schedule: has no effect: only the schedule of a deployment "
        "starts runs; to create one: prefect deployment schedule create mirror/mirror --cron '0 3 * * *'"
    )


def test_config_shows_filters_of_referrers_and_warns_of_unused_filters(tmp_path: Path) -> None:
    filters = (
        "referrerFilters: [{artifactType: a/b, annotations: {org.example.key:, org.example.level: 1}}, {artifactType: c/d}]"
    )
    text = (
        f"sync:\n- {{source: redis, target: x.example/redis, type: image, referrers: true, digestTags: false, {filters}}}\n"
        f"- {{source: alpine, target: x.example/alpine, type: image, digestTags: true,\n   {filters}}}\n"
    )
    shown = config(tmp_path, text, "--output", "json")
    assert [entry["settings"] for entry in shown.json["sync"]] == [
        ["with referrers (a/b org.example.key=* org.example.level=1, or c/d)"],
        ["with digest tags"],
    ]
    assert f"{tmp_path}/mirror.yaml:4: sync[1].referrerFilters: has no effect: referrers is not true" in shown.json["warnings"]


def test_config_shows_the_sizes_of_uploads(tmp_path: Path) -> None:
    file = tmp_path / "mirror.yaml"
    registries = {"r.example": {"blobChunk": 1048576, "blobMax": -1}}
    file.write_text(
        json.dumps(
            {"registries": registries, "sync": [{"type": "image", "source": "a.example/b:1", "target": "r.example/b:1"}]}
        )
    )

    shown = dist("--output", "json", "config", file)

    assert shown.json["registries"] == [{"host": "r.example", "settings": ["blobChunk 1048576", "blobMax -1"]}]


def test_config_writes_the_same_as_json(tmp_path: Path) -> None:
    found = config(tmp_path, FULL, "--output", "json").json
    assert [entry["source"] for entry in found["sync"]] == ["docker.io/library/redis", "ghcr.io/a/b:v1"]
    assert found["sync"][1]["at"] == f"{tmp_path}/mirror.yaml:10: sync[1]"
    assert (found["concurrency"], found["schedules"], len(found["warnings"])) == (4, ["0 3 * * *"], 2)


@pytest.mark.parametrize("output", ["text", "json"])
def test_config_shows_no_secret(tmp_path: Path, output: str) -> None:
    shown = config(tmp_path, FULL, "--output", output)
    assert shown.code == 0
    assert b"topsecret" not in shown.out
    assert "topsecret" not in shown.err


def test_a_mistake_is_reported_with_file_line_and_key(tmp_path: Path) -> None:
    wrong = config(tmp_path, FULL.replace("rewriteIndex: true", "rewriteIndx: true"))
    assert wrong.code == 2
    assert wrong.line == f"dist: {tmp_path}/mirror.yaml:8: sync[0].rewriteIndx: unknown key; did you mean rewriteIndex"


def test_each_mistake_has_a_line(tmp_path: Path) -> None:
    wrong = config(tmp_path, FULL.replace("most: 3", "most: 0").replace("rewriteIndex: true", "rewriteIndx: true"))
    assert (wrong.code, wrong.out) == (2, b"")
    assert wrong.err.splitlines() == [
        f"dist: {tmp_path}/mirror.yaml:8: sync[0].rewriteIndx: unknown key; did you mean rewriteIndex",
        f"dist: {tmp_path}/mirror.yaml:11: sync[1].prune.most: expected greater than or equal to 1, got 0",
    ]


def test_mistakes_of_all_kinds_are_reported_at_once(tmp_path: Path) -> None:
    wrong = config(
        tmp_path,
        """\
registries:
  a.example: {user: u}
  b.example: {pas: x}
defaults: {schedule: daily, unknown: 1}
sync:
- {source: redis, target: 'r.example/{{.Ref.Tga}}', type: repository, backup: '{{nothing}}'}
- {source: Redis, target: 'r.example/a:b:c', type: image}
- {sorce: redis, target: r.example/x, type: image}
- {source: 'redis:7', target: 'r.example/redis:7', type: image}
- {source: 'valkey:7', target: 'r.example/redis:7', type: image}
seed: {images: [ok, Bad], to: r.example}
""",
    )
    assert (wrong.code, wrong.out) == (2, b"")
    at = f"dist: {tmp_path}/mirror.yaml"
    starts = [
        f"{at}:2: registries.a.example: expected pass or token in addition to user",
        f"{at}:3: registries.b.example.pas: unknown key",
        f"{at}:4: defaults.unknown: unknown key",
        f"{at}:4: defaults.schedule: expected minute, hour, day",
        f"{at}:6: sync[0].target: template 'r.example/{{{{.Ref.Tga}}}}': unknown field .Ref.Tga; did you mean .Ref.Tag",
        f"{at}:6: sync[0].backup: template '{{{{nothing}}}}': unknown function nothing",
        f"{at}:7: sync[1].source: reference 'docker.io/library/Redis:latest': bad path",
        f"{at}:7: sync[1].target: 'r.example/a:b:c': reference",
        f"{at}:8: sync[2].sorce: unknown key; did you mean source",
        f"{at}:8: sync[2].source: missing",
        "dist: r.example/redis:7: expected one source for this target, got 2: ",
        f"{at}:11: seed.images[1]: reference 'docker.io/library/Bad:latest': bad path",
    ]
    lines = wrong.err.splitlines()
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * len(starts), lines


def test_a_missing_key_does_not_hide_mistakes_in_other_sections(tmp_path: Path) -> None:
    wrong = config(
        tmp_path,
        """\
store: {options: {key: x}}
sync:
- {source: Redis, target: r.example/redis, type: image}
seed: {images: [ok], to: []}
""",
    )
    at = f"dist: {tmp_path}/mirror.yaml"
    starts = [
        f"{at}:1: store.url: missing",
        f"{at}:3: sync[0].source: reference 'docker.io/library/Redis:latest': bad path",
        f"{at}:4: seed.to: expected at least one",
    ]
    lines = wrong.err.splitlines()
    assert (wrong.code, len(lines)) == (2, 3), lines
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines


def test_entries_that_publish_the_same_image_to_one_target_have_a_warning(tmp_path: Path) -> None:
    shown = config(
        tmp_path,
        """\
store: s3://bucket/cache
sync:
- {source: quay.io/a/b, target: r.example/b, type: repository, tags: {allow: ['1.*']}}
- {source: 'alpine:3', target: 'r.example/alpine:3', type: image}
- {source: 'redis:7', target: 'r.example/redis:7', type: image}
- {source: alpine, target: r.example/alpine, type: repository}
- {source: quay.io/a/b, target: r.example/b, type: repository, tags: {allow: ['1.*']}}
- {source: quay.io/a/b, target: r.example/b, type: repository, tags: {allow: ['2.*']}}
seed: {images: ['redis:7', 'docker.io/library/redis:7'], to: other.example}
""",
        "--output",
        "json",
    )
    at = f"{tmp_path}/mirror.yaml"
    warnings = [
        f"r.example/b: 2 entries publish the same to this target: {at}:3: sync[0] and {at}:7: sync[4]; one is enough",
        f"r.example/alpine:3: 2 entries publish the same to this target: {at}:4: sync[1] and {at}:6: sync[3]; one is enough",
        (
            "other.example/library/redis:7: 2 entries publish the same to this target: "
            f"{at}:9: seed.images[0] and {at}:9: seed.images[1]; one is enough"
        ),
    ]
    assert (shown.code, shown.json["warnings"]) == (0, warnings)
    assert shown.err.splitlines() == [f"dist: warning: {warning}" for warning in warnings]


def test_entries_that_claim_one_target_are_bad_input(tmp_path: Path) -> None:
    wrong = config(
        tmp_path,
        """\
sync:
- {source: 'redis:7', target: 'r.example/redis:7', type: image}
- {source: 'valkey:7', target: 'r.example/redis:7', type: image}
- {source: 'alpine:3', target: 'r.example/alpine:3', type: image}
- {source: alpine, target: r.example/alpine, type: repository, gate: {command: [check]}}
- {source: quay.io/a/b, target: r.example/b, type: repository, tags: {allow: ['1.*']}}
- {source: quay.io/a/b, target: r.example/b, type: repository, tags: {allow: ['1.*']}, platforms: [linux/amd64]}
- {source: quay.io/a/b, target: r.example/b, type: repository, tags: {allow: ['2.*']}, referrers: true}
""",
    )
    assert (wrong.code, wrong.out) == (2, b"")
    at = f"{tmp_path}/mirror.yaml"
    assert wrong.err.splitlines() == [
        (
            "dist: r.example/redis:7: expected one source for this target, got 2: docker.io/library/redis:7 "
            f"({at}:2: sync[0]) and docker.io/library/valkey:7 ({at}:3: sync[1])"
        ),
        (
            "dist: r.example/alpine:3: expected equal options for docker.io/library/alpine:3, which several entries publish to "
            f"this target; different: gate in {at}:4: sync[2] and {at}:5: sync[3]; make them equal, or keep only one of these "
            "entries"
        ),
        (
            "dist: r.example/b: expected equal options for quay.io/a/b, which several entries publish to this target; "
            f"different: platforms in {at}:6: sync[4] and {at}:7: sync[5]; make them equal, or keep only one of these entries"
        ),
    ]


def test_a_schedule_has_a_warning_with_the_command_for_a_deployment(tmp_path: Path) -> None:
    shown = config(
        tmp_path,
        """\
store: s3://bucket/cache
defaults: {interval: 60m}
sync:
- {source: 'redis:7', target: 'r.example/redis:7', type: image}
- {source: 'alpine:3', target: 'r.example/alpine:3', type: image, schedule: '@daily'}
""",
    )
    assert shown.code == 0
    assert shown.line == (
        f"dist: warning: {tmp_path}/mirror.yaml:2: defaults.interval and 1 more: have no effect: only the "
        "schedule of a deployment starts runs; to create one: prefect deployment schedule create mirror/mirror --interval 3600"
    )


def test_config_shows_defaults(tmp_path: Path) -> None:
    assert config(tmp_path, FULL.replace("concurrency: 4\n", ""), "--output", "json").json["concurrency"] == 8
