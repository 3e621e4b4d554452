"""Functions of templates as in Go 1.25: `printf`, the format of durations, and layouts of times."""

import re
from collections.abc import Sequence
from datetime import datetime

# verb ::= "%" { "-" | "0" } [ width ] ( "d" | "s" | "v" | "%" )
_VERB = re.compile(r"%([-0]*)([0-9]{0,3})([a-zA-Z%])")
# What stands for a part of a time in a layout, and how strftime writes that part. Longer ones come first.
_LAYOUT = {
    "2006": "%Y",
    "January": "%B",
    "Monday": "%A",
    "Jan": "%b",
    "Mon": "%a",
    "MST": "%Z",
    "-0700": "%z",
    "002": "%j",
    "01": "%m",
    "02": "%d",
    "03": "%I",
    "04": "%M",
    "05": "%S",
    "06": "%y",
    "15": "%H",
    "PM": "%p",
}
_PART = re.compile("|".join(_LAYOUT))


def printf(layout: str, values: Sequence[object]) -> str:
    """Return the layout with the values in it: numbers as `%d`, also `%02d`; texts as `%s`; either as `%v`.

    Raises:
        ValueError: another verb, or one that the value is none for.
    """
    remaining = list(values)

    def written(match: re.Match[str]) -> str:
        flags, width, verb = match.groups()
        if verb == "%":
            return "%"
        if verb not in "dsv":
            raise ValueError(f"printf knows %d, %s and %v, not {match[0]}")
        if not remaining:
            raise ValueError(f"printf has no value for {match[0]}")
        value = remaining.pop(0)
        if verb != "v" and isinstance(value, int) != (verb == "d"):
            raise ValueError(f"printf expects {'a number' if verb == 'd' else 'text'} for {match[0]}")
        text, fill = str(value), "0" if "0" in flags and verb == "d" else " "
        return text.ljust(int(width or 0)) if "-" in flags else text.rjust(int(width or 0), fill)

    done = _VERB.sub(written, layout)
    if remaining:
        raise ValueError(f"printf has {len(remaining)} values too many")
    return done


def duration(seconds: float) -> str:
    """Return a duration as Go formats it: `1h0m0s`, `5m0s`, `30s`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"


def format_time(moment: datetime, layout: str) -> str:
    """Return a time in a layout that is given as Go's reference time, such as 2006-01-02."""
    return _PART.sub(lambda match: moment.strftime(_LAYOUT[match[0]]), layout)
