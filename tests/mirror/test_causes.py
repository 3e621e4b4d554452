"""Failures with one cause are reported once, with the objects that failed."""

from prefect_dist.mirror.render import Cause, group_causes
from prefect_dist.mirror.report import RunError
from prefect_dist.ocispec.errors import Unavailable

DOWN = "Connection refused (HEAD http://registry.example:5000/v2/{0}/manifests/v1)"
CAUSE = "Connection refused (HEAD http://registry.example:5000/…)"


def error(name: str | None, message: str, *, subject: str | None = None, cause: str | None = None) -> RunError:
    return RunError(object=name, error=Unavailable(message, subject=subject, cause=cause))


def test_images_of_a_registry_that_is_down_have_one_cause() -> None:
    errors = [error(f"registry.example:5000/{name}:v1", DOWN.format(name), cause=CAUSE) for name in ("a", "b")]
    (cause,) = group_causes(errors)
    assert cause.text == CAUSE
    assert cause.objects == ("registry.example:5000/a:v1", "registry.example:5000/b:v1")


def test_a_single_failure_keeps_its_whole_message() -> None:
    name, message = "registry.example:5000/a:v1", DOWN.format("a")
    for subject in (None, name):
        assert group_causes([error(name, message, subject=subject, cause=CAUSE)]) == [Cause(text=f"{name}: {message}")]


def test_a_line_names_its_object_once() -> None:
    name = "a.example/x:1"
    assert str(error(f"{name} to b.example/x:1", "denied", subject="b.example/x:1")) == f"{name} to b.example/x:1: denied"
    assert str(error(name, "not found", subject="a.example/x@sha256:1")) == f"{name}: a.example/x@sha256:1: not found"
    assert str(error(None, "not found", subject=name)) == f"{name}: not found"


def test_registries_that_are_down_are_causes_of_their_own() -> None:
    causes = [CAUSE, CAUSE.replace("registry.example", "other.example")]
    assert [cause.text for cause in group_causes(error("r.example/a", cause, cause=cause) for cause in causes)] == [
        f"r.example/a: {cause}" for cause in causes
    ]


def test_a_message_without_a_name_lists_the_images_that_failed() -> None:
    refused = "registry.example: the password of user 'me' is refused (401)"
    (cause,) = group_causes([error("registry.example/a:v1", refused), error("registry.example/b:v1", refused)])
    assert (cause.text, cause.objects) == (refused, ("registry.example/a:v1", "registry.example/b:v1"))


def test_a_file_that_all_images_need_is_part_of_the_cause() -> None:
    errors = [error(name, "expected JSON", subject="config.json") for name in ("a.example/x:1", "a.example/y:1")]
    assert group_causes(errors) == [Cause(text="config.json: expected JSON", objects=("a.example/x:1", "a.example/y:1"))]


def test_layers_of_one_image_are_listed_by_their_digests() -> None:
    failed, cause = "the registry failed (GET {}: 500)", "the registry failed (GET https://registry.example/…: 500)"
    subjects = [f"registry.example/a@sha256:{number}" for number in "12"]
    errors = [error("registry.example/a:v1", failed.format(one), subject=one, cause=cause) for one in subjects]
    assert group_causes(errors) == [Cause(text=cause, objects=tuple(subjects))]


def test_sources_targets_and_places_in_files_are_objects() -> None:
    why = "registry.example: access denied (403)"
    names = ("a.example/x:1 to b.example/x:1", "conf/mirror.yaml:4: sync[0]")
    assert group_causes(error(name, why) for name in names) == [Cause(text=why, objects=names)]


def test_a_cause_names_the_first_objects_and_counts_the_rest() -> None:
    cause = Cause(text="down", objects=tuple(f"image {number}" for number in range(5)))
    assert list(cause.object_lines(3)) == ["image 0", "image 1", "image 2", "and 2 more"]
    assert list(cause.object_lines(5))[-1] == "image 4"
