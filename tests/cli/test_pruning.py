"""The command mirror removes orphaned tags."""

from pathlib import Path

from tests import images
from tests.cli.dist import dist, dist_direct
from tests.fakes.registry import FakeRegistry

KEPT, DROPPED = images.image(970, layers=1), images.image(971, layers=1)


def test_orphaned_tags_are_removed(tmp_path: Path) -> None:
    config = tmp_path / "mirror.yaml"
    with FakeRegistry() as registry:
        for image, tag in ((KEPT, "v1"), (DROPPED, "v2")):
            images.load(registry, "app", image, tag)
        results = []
        for wanted in ("v1, v2", "v1"):
            config.write_text(
                f"sync: [{{source: {registry.host}/app, target: {registry.host}/copy, type: repository,"
                f" tags: {{allow: [{wanted}]}}, prune: {{after: 0s}}}}]"
            )
            results.append(dist_direct("--store", tmp_path / "store", "--output", "json", "mirror", config))
        deleted = [one.path for one in registry.requests if one.method == "DELETE"]
        left = dist("--output", "json", "tags", f"{registry.host}/copy").json["tags"]
    assert [result.code for result in results] == [0, 0], results[-1].err
    assert [[(one["target"], one["outcome"]) for one in result.json["orphaned"]] for result in results] == [
        [],
        [(f"{registry.host}/copy:v2", "removed")],
    ]
    assert deleted == ["/v2/copy/manifests/v2"]
    assert left == ["v1"]
