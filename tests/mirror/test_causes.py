"""Failures with one cause are reported once, with the objects that failed."""

from prefect_dist.mirror.render import Cause, group_causes
from prefect_dist.mirror.report import RunError
from prefect_dist.ocispec.errors import Unavailable

DOWN = "Connection refused (HEAD http://registry.example:5000/v2/{0}/manifests/v1)"


def error(name: str | None, message: str) -> RunError:
    return RunError(object=name, error=Unavailable(message))


def test_images_of_a_registry_that_is_down_have_one_cause() -> None:
    errors = [error(f"registry.example:5000/{name}:v1", DOWN.format(name)) for name in ("a", "b")]
    (cause,) = group_causes(errors)
    assert cause.text == "Connection refused (HEAD http://registry.example:5000/…)"
    assert cause.objects == ("registry.example:5000/a:v1", "registry.example:5000/b:v1")


def test_a_single_failure_keeps_its_whole_message() -> None:
    line = f"registry.example:5000/a:v1: {DOWN.format('a')}"
    assert group_causes([error("registry.example:5000/a:v1", line)]) == [Cause(text=line)]
    assert group_causes([error("registry.example:5000/a:v1", DOWN.format("a"))]) == [Cause(text=line)]


def test_a_line_names_its_object_once() -> None:
    assert str(error("a.example/x:1 to b.example/x:1", "b.example/x:1: denied")) == ("a.example/x:1 to b.example/x:1: denied")
    assert str(error("a.example/x:1", "a.example/x@sha256:1: not found")) == ("a.example/x:1: a.example/x@sha256:1: not found")
    assert str(error(None, "a.example/x:1: not found")) == "a.example/x:1: not found"


def test_registries_that_are_down_are_causes_of_their_own() -> None:
    other = DOWN.replace("registry.example", "other.example").format("a")
    assert len(group_causes([error("r.example/a", DOWN.format("a")), error("r.example/b", other)])) == 2


def test_a_message_without_a_name_lists_the_images_that_failed() -> None:
    refused = "registry.example: the password of user 'me' is refused (401)"
    (cause,) = group_causes([error("registry.example/a:v1", refused), error("registry.example/b:v1", refused)])
    assert (cause.text, cause.objects) == (refused, ("registry.example/a:v1", "registry.example/b:v1"))


def test_layers_of_one_image_are_listed_by_their_digests() -> None:
    name = "registry.example/a:v1"
    messages = [f"registry.example/a@sha256:{n}: the registry failed (GET https://registry.example/v2/{n}: 500)" for n in "12"]
    (cause,) = group_causes(error(name, message) for message in messages)
    assert cause.text == "the registry failed (GET https://registry.example/…: 500)"
    assert cause.objects == ("registry.example/a@sha256:1", "registry.example/a@sha256:2")


def test_sources_targets_and_places_in_files_are_objects() -> None:
    why = "registry.example: access denied (403)"
    names = ("a.example/x:1 to b.example/x:1", "conf/mirror.yaml:4: sync[0]")
    assert group_causes(error(name, why) for name in names) == [Cause(text=why, objects=names)]


def test_a_cause_names_the_first_objects_and_counts_the_rest() -> None:
    cause = Cause(text="down", objects=tuple(f"image {number}" for number in range(5)))
    assert list(cause.object_lines(3)) == ["image 0", "image 1", "image 2", "and 2 more"]
    assert list(cause.object_lines(5))[-1] == "image 4"
