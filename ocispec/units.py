"""Sizes, counts and durations in the form that people read and write."""

import re

from prefect_dist.ocispec.errors import InvalidInput

_STEP = 1024
_MINUTE_S = 60
_HOUR_S = 3600
_AGES = (("year", 365 * 86400), ("month", 30 * 86400), ("day", 86400), ("hour", _HOUR_S), ("minute", _MINUTE_S))
# duration ::= number unit { number unit }, such as 24h or 1d12h
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?[smhd])+")
_PART = re.compile(r"([\d.]+)([smhd])")
_SECONDS = {"s": 1, "m": _MINUTE_S, "h": _HOUR_S, "d": 86400}


def size(count: float) -> str:
    """Return a number of bytes in binary units with one decimal: `0 B`, `1023 B`, `1.0 KiB`, `3.2 GiB`."""
    if round(count) < _STEP:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= _STEP
        if round(count, 1) < _STEP:
            return f"{count:.1f} {unit}"
    return f"{count / _STEP:.1f} TiB"


def duration(seconds: float) -> str:
    """Return a number of seconds in a short form: `0.3 s`, `45.0 s`, `3 min 20 s`, `2 h 5 min`."""
    if round(seconds, 1) < _MINUTE_S:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural: `1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def age(seconds: float) -> str:
    """Return a duration in its largest whole unit: `12 seconds`, `1 minute`, `3 days`."""
    for unit, length in _AGES:
        if seconds >= length:
            return format_count(int(seconds // length), unit)
    return format_count(max(0, int(seconds)), "second")


def seconds(text: str) -> float:
    """Return the seconds in a written duration: `90s`, `30m`, `24h`, `1d12h`; `0` needs no unit.

    Raises:
        InvalidInput: another form.
    """
    if text == "0":
        return 0
    if not _DURATION.fullmatch(text):
        raise InvalidInput(f"duration {text!r}: expected a number with s, m, h or d, such as 24h")
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
