"""Tests of sizes, durations, counts and ages in the form that people read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.ocispec import units

SIZES = [
    (0, "0 B"),
    (1, "1 B"),
    (1023, "1023 B"),
    (1023.4, "1023 B"),
    (1023.6, "1.0 KiB"),
    (1024, "1.0 KiB"),
    (1536, "1.5 KiB"),
    (1024**2 - 1, "1.0 MiB"),
    (1024**2, "1.0 MiB"),
    (1024**3 - 1, "1.0 GiB"),
    (3.2 * 1024**3, "3.2 GiB"),
    (1024**4 - 1, "1.0 TiB"),
    (1024**4, "1.0 TiB"),
    (5000 * 1024**4, "5000.0 TiB"),
]
DURATIONS = [
    (0, "0.0 s"),
    (0.26, "0.3 s"),
    (45, "45.0 s"),
    (59.94, "59.9 s"),
    (59.96, "1 min 0 s"),
    (60, "1 min 0 s"),
    (119.4, "1 min 59 s"),
    (119.6, "2 min 0 s"),
    (200, "3 min 20 s"),
    (3599.4, "59 min 59 s"),
    (3599.6, "1 h 0 min"),
    (3600, "1 h 0 min"),
    (7500, "2 h 5 min"),
    (7199.9, "2 h 0 min"),
    (360_000, "100 h 0 min"),
]
AGES = [
    (-5, "0 seconds"),
    (0, "0 seconds"),
    (1.9, "1 second"),
    (12, "12 seconds"),
    (59.9, "59 seconds"),
    (60, "1 minute"),
    (3599, "59 minutes"),
    (3600, "1 hour"),
    (3 * 86400, "3 days"),
    (30 * 86400, "1 month"),
    (364 * 86400, "12 months"),
    (365 * 86400, "1 year"),
    (800 * 86400, "2 years"),
]


@pytest.mark.parametrize(("count", "text"), SIZES)
def test_sizes_are_formatted_in_binary_units(count: float, text: str) -> None:
    assert units.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), DURATIONS)
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), AGES)
def test_ages_are_formatted_in_the_largest_whole_unit(seconds: float, text: str) -> None:
    assert units.age(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images")])
def test_counts_have_a_singular_and_a_plural(number: int, text: str) -> None:
    assert units.format_count(number, "image") == text


@given(st.integers(0, 1024**5 - 1))
def test_no_size_reaches_1024_of_its_unit(count: int) -> None:
    number, unit = units.size(count).split()
    scale = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert float(number) < 1024 or (unit == "TiB" and float(number) == 1024)
    assert float(number) * scale == pytest.approx(count, abs=0.05 * scale + 1)


@given(st.floats(0, 10**7))
def test_no_duration_reaches_sixty_of_its_unit(seconds: float) -> None:
    words = units.duration(seconds).split()
    numbers = [float(word) for word in words[::2]]
    scales = [{"s": 1, "min": 60, "h": 3600}[word] for word in words[1::2]]
    assert all(number < 60 for number, scale in zip(numbers, scales, strict=True) if scale < 3600)
    read = sum(number * scale for number, scale in zip(numbers, scales, strict=True))
    assert abs(read - seconds) <= (60 if "h" in words else 0.5 if "min" in words else 0.06)
