"""The names that entries can claim at targets before their registry is listed."""

from typing import Any

import pytest

from prefect_dist.mirror.claiming import Reach
from prefect_dist.ocispec import Reference
from tests.mirror.planned import entries


def has(entry: dict[str, Any], *targets: str) -> list[bool]:
    found = Reach(entries({"source": "source.example/app", "type": "repository", **entry}))
    return [found.has(Reference.parse(target)) for target in targets]


@pytest.mark.parametrize(
    ("entry", "within", "out"),
    [
        ({"target": "t.example/app"}, ["t.example/app:v1"], ["t.example/apple:v1", "t.example/app/more:v1"]),
        ({"target": "redis"}, ["docker.io/library/redis:7"], ["docker.io/library/redis2:7"]),
        (
            {"source": "source.example", "type": "registry", "target": "t.example/all"},
            ["t.example/all/app:v1", "t.example/all/group/app:v1"],
            ["t.example/app:v1", "t.example/allowed:v1"],
        ),
        (
            {"source": "source.example", "type": "registry", "target": "docker.io"},
            ["docker.io/library/app:v1", "docker.io/group/app:v1"],
            ["t.example/app:v1"],
        ),
        (
            {"source": "source.example/app:v1", "type": "image", "target": "t.example/app:v1"},
            ["t.example/app:v1"],
            ["t.example/app:v2"],
        ),
        ({"target": "t.example/x/{{ .Ref.Repository }}"}, ["t.example/x/app:v1", "t.example/x/y:v1"], ["t.example/y:v1"]),
        ({"target": "{{ .Ref.Registry }}/copy"}, ["t.example/y:v1"], []),
        ({"target": "docker.io/re{{ .Ref.Tag }}"}, ["docker.io/library/redis:7"], ["t.example/app:v1"]),
        (
            {"target": "t.example/app", "rename": [{"match": "(.*)", "to": "new/$1"}]},
            ["t.example/new/app:v1"],
            ["other.example/new/app:v1"],
        ),
        ({"target": "oci:/srv/layout"}, ["oci:/srv/layout:v1"], ["oci:/srv/layout2:v1", "t.example/app:v1"]),
        (  # rules of `rename` do not apply to a layout
            {"target": "oci:/srv/layout", "rename": [{"match": "(.*)", "to": "new/$1"}]},
            ["oci:/srv/layout:v1"],
            ["oci:/srv/layout2:v1"],
        ),
        (
            {"source": "source.example", "type": "registry", "target": "oci:/srv/layouts"},
            ["oci:/srv/layouts/app:v1", "oci:/srv/layouts/group/app:v1"],
            ["oci:/srv/other/app:v1"],
        ),
    ],
    ids=lambda value: str(value.get("target")) if isinstance(value, dict) else "",
)
def test_names_within_and_out_of_reach(entry: dict[str, Any], within: list[str], out: list[str]) -> None:
    assert has(entry, *within) == [True] * len(within)
    assert has(entry, *out) == [False] * len(out)
