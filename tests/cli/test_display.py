"""The rows of the live table in a small terminal, and the counts of its footer."""

import io
import threading

import pytest
from rich.console import Console

from prefect_dist.cli.display import Doing, LiveDisplay, PlainLines
from prefect_dist.ocispec import Descriptor, Digest
from prefect_dist.ocispec.errors import NotFound
from prefect_dist.transfer.cancellation import Stopped, describe_stop
from prefect_dist.transfer.content import Receipt
from prefect_dist.transfer.events import (
    ContentAdvanced,
    ContentFailed,
    ContentFinished,
    ContentFound,
    ImageEnded,
    ImageResolved,
    Note,
    Recording,
)
from prefect_dist.transfer.image_report import Failure, ImageReport

_HEIGHT, _MARGIN = 14, 4
LAYERS = [
    Descriptor(
        media_type="application/vnd.oci.image.layer.v1.tar+gzip",
        digest=Digest.parse("sha256:" + 32 * f"{number:02x}"),
        size=1000,
    )
    for number in range(40)
]


def lines(display: LiveDisplay, *, width: int = 120) -> list[str]:
    console = Console(width=width, height=_HEIGHT, file=io.StringIO(), force_terminal=False)
    with console.capture() as captured:
        console.print(display)
    return captured.get().splitlines()


def display(doing: Doing = "mirroring", *, images: int = 20, width: int = 120) -> LiveDisplay:
    """Return the display of a run with `images` images, and half as many waiting layers."""
    shown = LiveDisplay(Console(width=width, height=_HEIGHT, file=io.StringIO()), doing)
    for number in range(images):
        shown(ImageResolved(f"registry.example/app:v{number}", LAYERS[0]))
    for layer in LAYERS[: images // 2]:
        shown(ContentFound(layer))
    return shown


def test_moving_content_is_shown_before_waiting_images() -> None:
    shown = display()
    for layer in LAYERS[4:7]:
        shown(ContentAdvanced(layer, 100, 100))
    *rows, footer = lines(shown)
    assert len(rows) == _HEIGHT - _MARGIN
    assert [row.split()[1] for row in rows if " mirroring " in row] == [layer.digest.short for layer in LAYERS[4:7]]
    assert [row.split()[0] for row in rows[:7]] == [f"registry.example/app:v{number}" for number in range(7)]
    assert footer.startswith("0/20 images done  0/10 descriptors  ")


def test_failed_rows_stay_and_finished_rows_leave() -> None:
    shown = display()
    shown(ContentFailed(LAYERS[9], NotFound("gone")))
    failure = Failure(descriptor=LAYERS[9], error=NotFound("gone"))
    for number, failures in ((18, (failure,)), (19, ())):
        shown(ImageEnded(ImageReport(name=f"registry.example/app:v{number}", root=LAYERS[0], failures=failures)))
    shown(ContentFinished(LAYERS[0], Receipt("existed")))
    *rows, footer = lines(shown)
    assert [row.split()[0] for row in rows if " failed" in row] == ["registry.example/app:v18", "layer"]
    assert not [row for row in rows if "app:v19 " in row or LAYERS[0].digest.short in row]
    assert footer.startswith("1/20 images done, 1 failed  1/10 descriptors  ")


def test_no_image_counts_as_done_while_results_are_recorded() -> None:
    shown = display(images=2)
    for number in range(2):
        shown(ImageEnded(ImageReport(name=f"registry.example/app:v{number}", root=LAYERS[0])))
    shown(ContentFinished(LAYERS[0], Receipt("existed")))
    assert lines(shown)[-1].startswith("2/2 images done  1/1 descriptor  ")
    shown(Recording())
    *_, footer = lines(shown)
    assert footer.startswith("2/2 images  1/1 descriptor  ")
    assert footer.endswith("  recording results")


@pytest.mark.parametrize(("doing", "then"), [("mirroring", "1000 B/1000 B"), ("downloading", "200 B/1000 B")])
def test_a_bar_goes_back_only_if_content_is_fetched_again(doing: Doing, then: str) -> None:
    shown = display(doing, images=2)
    shown(ContentAdvanced(LAYERS[0], 1000, 1000))
    shown(ContentAdvanced(LAYERS[0], 200, 200))
    assert then in lines(shown)[2]


def test_existing_content_stays_done_during_its_upload() -> None:
    shown = display(images=2)
    shown(ContentFinished(LAYERS[0], Receipt("fetched", transferred=1000, seconds=1)))
    shown(ContentAdvanced(LAYERS[0], 500, 500))
    *rows, footer = lines(shown)
    assert rows[2].split()[2:] == ["done", "1000", "B"]
    assert footer.startswith("0/2 images done  1/1 descriptor  ")
    assert "500 B" in footer


def test_a_narrow_terminal_shortens_only_the_bars() -> None:
    shown = display("downloading", images=2, width=80)
    name = "127.0.0.1:5104/team/bigimage:v1.2.3-rc1"
    shown(ImageResolved(name, LAYERS[1]))
    before = lines(shown, width=80)
    shown(ContentAdvanced(LAYERS[0], 500, 500))
    after = lines(shown, width=80)
    shown(ContentFinished(LAYERS[0], Receipt("fetched", 1000, seconds=1)))
    bars = [line.count("━") + line.count("╸") + line.count("╺") for line in after]
    assert sum(bars) == bars[2] > 0
    for shown_lines in (before, after, lines(shown, width=80)):
        assert len(shown_lines) == 5  # no row continues on the next line
        assert shown_lines[3].startswith(f"{name} in progress")
        assert shown_lines[2][: len(name)].split() == ["layer", LAYERS[0].digest.short]
        assert shown_lines[2].index(shown_lines[2].split()[2]) == len(name) + 1


def test_long_names_keep_their_tags() -> None:
    shown = display(images=2, width=80)
    shown(ImageResolved(f"registry.example/{'team/' * 12}app:v1", LAYERS[1]))
    shown_lines = lines(shown, width=80)
    assert shown_lines[3].startswith("…")
    assert "/team/app:v1 in progress" in shown_lines[3]
    assert LAYERS[0].digest.short in shown_lines[2]


def test_the_footer_is_one_line_that_ends_with_the_note() -> None:
    shown = display(width=80)
    for number in range(2):
        failure = Failure(descriptor=None, error=NotFound("gone"))
        shown(ImageEnded(ImageReport(name=f"registry.example/app:v{number}", root=LAYERS[0], failures=(failure,))))
    *_, footer = lines(shown, width=80)
    assert footer.startswith("0/20 images done, 2 failed  0/10 descriptors  0.")
    assert footer.endswith("B/s")
    counts = "0/20 images done, 2 failed  0/10 descriptors"
    note = "x" * (80 - len("^C") - len(f"{counts}  "))
    shown(Note(note))
    *rows, footer = lines(shown, width=80)
    assert len(rows) == _HEIGHT - _MARGIN
    assert footer == f"{counts}  {note}"
    shown(Note(f"{note}x"))
    assert lines(shown, width=80)[-1] == f"0/20 images done, 2 failed  {note}x"
    assert lines(display(width=20), width=20)[-1] == "0/20 images done"


def test_stopped_content_is_interrupted_and_not_failed() -> None:
    shown = display(images=4)
    stopped = Stopped(describe_stop("interrupted"))
    shown(ContentFailed(LAYERS[0], stopped))
    shown(ContentFailed(LAYERS[1], NotFound("gone")))
    for number, errors in ((0, [stopped]), (1, [stopped, NotFound("gone")])):
        failures = tuple(Failure(descriptor=None, error=error) for error in errors)
        shown(ImageEnded(ImageReport(name=f"registry.example/app:v{number}", root=LAYERS[0], failures=failures)))
    *rows, footer = lines(shown)
    assert [row.split()[1] for row in rows[:2]] == ["interrupted", "failed"]
    assert [row.split()[2] for row in rows[4:]] == ["interrupted", "failed"]
    assert footer.startswith("0/4 images done, 1 failed, 1 interrupted  ")


def test_an_image_can_be_interrupted_before_its_start() -> None:
    shown = display(images=1)
    failure = Failure(descriptor=None, error=Stopped(describe_stop("interrupted")))
    shown(ImageEnded(ImageReport(name="registry.example/app:v9", root=None, failures=(failure,))))
    *rows, footer = lines(shown)
    assert ["registry.example/app:v9", "interrupted"] in [row.split() for row in rows]
    assert footer.startswith("0/2 images done, 1 interrupted  ")


def test_an_existing_manifest_fails_if_its_referrers_cannot_be_listed() -> None:
    shown = display(images=2)
    shown(ContentFailed(LAYERS[9], NotFound("gone")))
    assert lines(shown)[3].split() == ["layer", LAYERS[9].digest.short, "failed", "1000", "B"]


def test_a_note_of_a_signal_handler_waits_for_no_lock() -> None:
    shown = display(images=1)
    note = threading.Thread(target=shown, args=(Note("stopping; press Ctrl-C again to exit immediately"),), daemon=True)
    with shown._guard:  # the main thread may hold the lock when the signal arrives
        note.start()
        note.join(timeout=5)
        assert not note.is_alive()
    assert lines(shown)[-1].endswith("stopping; press Ctrl-C again to exit immediately")


def test_plain_lines_show_names_unchanged() -> None:
    output = io.StringIO()
    PlainLines(Console(file=output))(Note("oci:a:v1 [red] is not oci:b:v1"))  # rich knows `:a:` and `:b:` as emoji
    assert output.getvalue() == "oci:a:v1 [red] is not oci:b:v1\n"
