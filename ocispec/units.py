"""Sizes and durations as people read them."""

_STEP = 1024
_MINUTE_S = 60
_HOUR_S = 3600
_AGES = (("year", 365 * 86400), ("month", 30 * 86400), ("day", 86400), ("hour", _HOUR_S), ("minute", _MINUTE_S))


def size(count: float) -> str:
    """Bytes in binary units with one decimal: `0 B`, `1023 B`, `1.0 KiB`, `3.2 GiB`."""
    if round(count) < _STEP:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= _STEP
        if round(count, 1) < _STEP:
            return f"{count:.1f} {unit}"
    return f"{count / _STEP:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in the coarsest form that still says enough: `0.3 s`, `45.0 s`, `3 min 20 s`, `2 h 5 min`."""
    if round(seconds, 1) < _MINUTE_S:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def age(seconds: float) -> str:
    """How long ago something was, in its largest whole unit: `12 seconds`, `1 minute`, `3 days`."""
    for unit, length in _AGES:
        if seconds >= length:
            return counted(int(seconds // length), unit)
    return counted(max(0, int(seconds)), "second")
