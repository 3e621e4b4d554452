"""The names of images at their targets, and of backups."""

import pytest

from prefect_dist.mirror.naming import Naming, Rename, What
from prefect_dist.ocispec import Reference
from prefect_dist.ocispec.errors import InvalidInput
from tests.remotes.asking import check_message

REDIS = Reference.parse("docker.io/library/redis:7.2")
PINNED = Reference.parse(f"quay.io/team/app@sha256:{'0' * 64}")
BOTH = Reference.parse(f"quay.io/team/app:1@sha256:{'0' * 64}")


def named(text: str, what: What, *renames: tuple[str, str]) -> Naming:
    rules = [Rename(match=match, to=to) for match, to in renames]
    return Naming.read(text, at="m.yaml:3: sync[0].target", what=what, sync={"Source": "redis", "Type": what}, renames=rules)


@pytest.mark.parametrize(
    ("text", "what", "source", "target"),
    [
        ("reg.example/redis:mine", "image", REDIS, "reg.example/redis:mine"),
        ("reg.example/redis", "image", REDIS, "reg.example/redis:latest"),
        ("team/redis:1", "image", REDIS, "docker.io/team/redis:1"),
        ("reg.example/{{.Ref.Repository}}:{{.Ref.Tag}}", "image", REDIS, "reg.example/library/redis:7.2"),
        ("reg.example/{{.Sync.Source}}:x", "image", REDIS, "reg.example/redis:x"),
        ("reg:5000/hub/redis", "repository", REDIS, "reg:5000/hub/redis:7.2"),
        ("reg:5000/hub/{{.Sync.Source}}", "repository", REDIS, "reg:5000/hub/redis:7.2"),
        ("reg:5000/x", "repository", PINNED, f"reg:5000/x@sha256:{'0' * 64}"),
        ("reg:5000/x", "repository", BOTH, f"reg:5000/x:1@sha256:{'0' * 64}"),
        ("reg.example", "registry", REDIS, "reg.example/library/redis:7.2"),
        ("reg.example/hub/", "registry", REDIS, "reg.example/hub/library/redis:7.2"),
        ("localhost", "registry", PINNED, f"localhost/team/app@sha256:{'0' * 64}"),
        ("reg.example/{{.Ref.Registry}}/{{.Ref.Repository}}", "registry", REDIS, "reg.example/docker.io/library/redis:7.2"),
        ("reg:5000/{{.Ref.Repository}}", "repository", REDIS, "reg:5000/library/redis:7.2"),
        ("reg:5000/x:{{.Ref.Tag}}-copy", "repository", REDIS, "reg:5000/x:7.2-copy"),
        ("reg:5000/{{.Ref.CommonName}}", "repository", REDIS, "reg:5000/docker.io/library/redis:7.2"),
        (" reg:5000/x ", "repository", REDIS, "reg:5000/x:7.2"),
    ],
)
def test_a_naming_gives_the_name_at_a_target(text: str, what: What, source: Reference, target: str) -> None:
    assert str(named(text, what).make_name(source)) == target


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        ("oci:/srv/hub/redis:7", "redis"),
        ("oci:/srv/hub/redis/:7", "redis"),
        ("oci:s3://bucket/hub/redis:7", "redis"),
        ("oci-archive:/srv/redis.tar.gz:7", "redis"),
        ("docker-archive:/srv/redis.tgz:7", "redis"),
        ("docker-archive:/srv/hub.tar:redis:7", "library/redis"),
        ("oci-archive:/srv/hub.tar:registry.example/team/app:7", "team/app"),
        ("store:docker.io/library/redis:7", "library/redis"),
        ("store:localhost/app:7", "app"),
        ("store:team/app:7", "team/app"),
        ("store:oci:/srv/hub/redis:7", "redis"),
        ("docker.io/library/redis:7", "library/redis"),
    ],
)
def test_an_image_of_any_remote_has_a_repository_below_a_target_registry(source: str, repository: str) -> None:
    image = Reference.parse(source)
    assert str(named("reg.example/hub", "registry").make_name(image)) == f"reg.example/hub/{repository}:7"
    assert str(named("oci:/srv/all", "registry").make_name(image)) == f"oci:/srv/all/{repository}:7"


@pytest.mark.parametrize(
    ("text", "backup"),
    [
        ("backup-{{.Ref.Tag}}", "reg.example/app:backup-1"),
        ("old", "reg.example/app:old"),
        ("{{.Ref.Registry}}/backups/{{.Ref.Repository}}:{{.Ref.Tag}}", "reg.example/backups/app:1"),
        ("other.example/app:{{.Ref.Tag}}", "other.example/app:1"),
        ("team/app", "docker.io/team/app:latest"),
    ],
)
def test_a_backup_is_named_after_the_overwritten_image(text: str, backup: str) -> None:
    assert str(named(text, "backup").make_name(REDIS, Reference.parse("reg.example/app:1"))) == backup


@pytest.mark.parametrize(
    ("renames", "target"),
    [
        ([("library/(.*)", "$1")], "reg.example/redis:7.2"),
        ([("library/(.*)", r"\1")], "reg.example/redis:7.2"),
        ([("library/(?P<rest>.*)", "hub/${rest}")], "reg.example/hub/redis:7.2"),
        ([("library/(?P<rest>.*)", r"hub/\g<rest>")], "reg.example/hub/redis:7.2"),
        ([("(.*)/(.*):(.*)", "$1-$2:v$3")], "reg.example/library-redis:v7.2"),
        ([("library/redis", "x")], "reg.example/library/redis:7.2"),
        ([("none/(.*)", "x/$1"), ("library/(.*)", "y/$1"), ("(.*)", "z/$1")], "reg.example/y/redis:7.2"),
        ([("library/(x)?(.*)", "a$1/$2")], "reg.example/a/redis:7.2"),
        ([("(.*):7.2", "$1")], "reg.example/library/redis"),
    ],
)
def test_the_first_matching_rename_applies(renames: list[tuple[str, str]], target: str) -> None:
    assert str(named("reg.example", "registry", *renames).make_name(REDIS)) == target


def test_a_rename_keeps_the_digest() -> None:
    assert str(named("reg.example", "registry", ("team/(.*)", "$1")).make_name(PINNED)) == f"reg.example/app@sha256:{'0' * 64}"


@pytest.mark.parametrize(("match", "to", "message"), [("(a)", "$2", "'$2'"), ("a", "${x}", "'${x}'"), ("a", r"\1", r"'\\1'")])
def test_a_rename_with_an_unknown_group_or_a_bad_pattern_is_rejected(match: str, to: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Rename(match=match, to=to)
    check_message(caught.value, "expected only groups of", message)


@pytest.mark.parametrize(
    ("text", "what", "message"),
    [
        ("reg.example/App", "repository", "'reg.example/App': reference 'reg.example/App:tag': bad path"),
        ("reg.example/app:1", "repository", "bad tag '1:tag'"),
        ("https://reg.example/app", "repository", "leave out the scheme https://"),
        ("ocidir://path", "image", "ocidir: is another program's name for an image layout; write oci:path"),
        ("a b", "backup", "expected printable ASCII without spaces"),
        ("{{.Sync.Source}} {{.Sync.Type}}", "image", "which gives 'redis image': reference"),
        ("", "image", "''"),
        ("oci:", "registry", "expected a location after oci:"),
        ("oci:/", "registry", "expected a location after oci:"),
        ("store:", "registry", "expected a location after store:"),
        (f"oci:/srv/layout@sha256:{'0' * 64}", "image", "expected a tag, as in oci:/srv/layout:latest; a digest alone"),
    ],
)
def test_an_invalid_name_without_ref_is_rejected_when_it_is_read(text: str, what: What, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        named(text, what)
    check_message(caught.value, "m.yaml:3: sync[0].target: ", message)


def test_an_invalid_result_has_a_message_with_its_image() -> None:
    naming = named("reg.example/x:{{.Ref.Tag}}", "repository")
    with pytest.raises(InvalidInput) as caught:
        naming.make_name(PINNED)
    check_message(caught.value, "m.yaml:3: sync[0].target", "'reg.example/x:'", f"for {PINNED}")
