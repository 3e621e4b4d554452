"""What the live table shows where there is no room for all, and what it counts."""

import io

import pytest
from rich.console import Console

from cli.display import Doing, LiveDisplay
from flows.report import Failure, ImageReport
from ocispec import Descriptor, Digest
from tasks.transfer import Receipt

_HEIGHT, _MARGIN = 14, 4
LAYERS = [
    Descriptor(
        media_type="application/vnd.oci.image.layer.v1.tar+gzip",
        digest=Digest.parse("sha256:" + 32 * f"{number:02x}"),
        size=1000,
    )
    for number in range(40)
]


def lines(display: LiveDisplay) -> list[str]:
    console = Console(width=120, height=_HEIGHT, file=io.StringIO(), force_terminal=False)
    with console.capture() as captured:
        console.print(display)
    return captured.get().splitlines()


def display(doing: Doing = "mirroring", *, images: int = 20) -> LiveDisplay:
    """A run with some images, and half as many layers that wait for their turn."""
    shown = LiveDisplay(Console(width=120, height=_HEIGHT, file=io.StringIO()), doing)
    for number in range(images):
        shown.resolved(f"registry.example/app:v{number}", LAYERS[0])
    for layer in LAYERS[: images // 2]:
        shown.waiting(layer)
    return shown


def test_what_moves_is_shown_before_the_images_that_it_is_for() -> None:
    shown = display()
    for layer in LAYERS[4:7]:
        shown.advanced(layer, 100, 100)
    *rows, footer = lines(shown)
    assert len(rows) == _HEIGHT - _MARGIN
    assert [row.split()[1] for row in rows if " mirroring " in row] == [layer.digest.short for layer in LAYERS[4:7]]
    assert [row.split()[0] for row in rows[:7]] == [f"registry.example/app:v{number}" for number in range(7)]
    assert footer.startswith("0 of 20 images, 0 of 10 descriptors done  ")


def test_what_failed_stays_and_what_is_done_leaves() -> None:
    shown = display()
    shown.failed(LAYERS[9], "gone")
    failure = Failure(descriptor=LAYERS[9], message="gone")
    for number, failures in ((18, (failure,)), (19, ())):
        shown.finished(ImageReport(name=f"registry.example/app:v{number}", root=LAYERS[0], failures=failures))
    shown.ended(LAYERS[0], Receipt("existed"))
    *rows, footer = lines(shown)
    assert [row.split()[0] for row in rows if " failed" in row] == ["registry.example/app:v18", "layer"]
    assert not [row for row in rows if "app:v19 " in row or LAYERS[0].digest.short in row]
    assert footer.startswith("1 of 20 images, 1 of 10 descriptors done, 1 image failed  ")


@pytest.mark.parametrize(("doing", "then"), [("mirroring", "1000 B/1000 B"), ("downloading", "200 B/1000 B")])
def test_a_bar_goes_back_only_where_something_is_fetched_anew(doing: Doing, then: str) -> None:
    shown = display(doing, images=2)
    shown.advanced(LAYERS[0], 1000, 1000)
    shown.advanced(LAYERS[0], 200, 200)
    assert then in lines(shown)[2]


def test_what_is_there_stays_done_while_it_is_sent_on() -> None:
    shown = display(images=2)
    shown.ended(LAYERS[0], Receipt("fetched", transferred=1000, seconds=1))
    shown.advanced(LAYERS[0], 500, 500)
    *rows, footer = lines(shown)
    assert rows[2].split()[2:] == ["done", "1000", "B"]
    assert footer.startswith("0 of 2 images, 1 of 1 descriptor done  ")
    assert "500 B" in footer
