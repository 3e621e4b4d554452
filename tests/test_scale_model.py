"""The page on scale has the tables of the model, and each measured cost is on the page that the model names."""

import re
from pathlib import Path

import pytest

from scripts import scale_model
from scripts.scale_model import GRAINS, IMAGES, INPUTS, WORKERS, Input, compute_duration


def test_the_tables_of_the_page_are_current() -> None:
    page = scale_model.PAGE.read_text()

    assert page == scale_model.render(page), "make reference"


@pytest.mark.parametrize("cost", [one for one in INPUTS if one.page is not None], ids=lambda one: one.name)
def test_a_measured_cost_is_on_its_page(cost: Input) -> None:
    page = scale_model.DOCS / Path(cost.page or "")
    text = " ".join(page.read_text().split())

    assert cost.quote
    assert cost.quote in text


@pytest.mark.parametrize("grain", GRAINS)
def test_no_number_of_workers_is_faster_than_planning_and_the_prefect_server(grain: str) -> None:
    cost = GRAINS[grain]
    for images in IMAGES:
        hours = [compute_duration(images, workers, cost, new_bytes=50e6).seconds for workers in WORKERS]

        assert hours == sorted(hours, reverse=True)
        assert hours[-1] > images * cost.server_s.value


@pytest.mark.parametrize("page", [scale_model.PAGE, scale_model.DOCS / "how-to" / "operations.md"], ids=lambda page: page.name)
def test_the_sizes_and_hours_in_the_text_are_those_of_the_tables(page: Path) -> None:
    tables = "\n".join(line for make in scale_model.TABLES.values() for line in make())
    found = re.findall(
        r"([\d.]+ (?:MB|GB|h)(?:ours)?)(?= for| with|,? at| before| [a-z]+ any)", _after_tables(page.read_text())
    )
    quoted = {one.replace("hours", "h") for one in found if one not in ("50 MB", "12.5 GB")}

    assert quoted
    assert not [one for one in quoted if f" {one} " not in tables.replace("|", " ")]


def _after_tables(text: str) -> str:
    """Return the chapter of a page with figures of the tables."""
    return re.split(r"^## (?:Limits|Sizing).*$", text, flags=re.MULTILINE)[1]
