"""Write the generated tables of docs/reference: options of commands, keys of configurations, parameters of flows.

A page has each table between `<!-- generated: KIND NAME -->` and `<!-- end -->`. The text between these lines is replaced.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cyclopts import App
from cyclopts.argument import Argument
from pydantic import BaseModel
from rich.console import Console

from prefect_dist.cli.app import app
from prefect_dist.cli.options import LoginOptions, RunNetworkOptions
from prefect_dist.flows.parameters import Network
from prefect_dist.mirror import hosts_file, sections
from scripts.mirror_schema import schema_of

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
PAGES = [FOLDER / f"{name}.md" for name in ("cli", "configuration", "flows", "hosts-file")]
_REGION = re.compile(r"(<!-- generated: (\w+) ?(\S*) -->\n).*?(<!-- end -->)", re.DOTALL)
_DEFAULT = re.compile(r"(?:; by default |[;.] [Dd]efault: )([^;]+?)(?=;|\.?$|\. )")
# Variables, templates and options, which a page shows as code.
_CODE = re.compile(r"(?<![\w`{-])(\$\w+|\$\{\w+\}|[\w-]*\{\{.*?\}\}|--[a-z][a-z-]*)(?![\w`])")
_TYPES = {
    "string": "text",
    "integer": "number",
    "number": "number",
    "boolean": "true or false",
    "object": "map",
    "section": "section",
}
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_CONNECTION = {
    f"--{field.name.replace('_', '-')}": None for section in (RunNetworkOptions, LoginOptions) for field in fields(section)
}.keys()
# Sections of a configuration that have a table of their own. The keys of other sections are in the table of their parent.
_CHAPTERS = {
    "StoreSection": "store",
    "MirrorRegistry": "registries",
    "Creds": "creds",
    "Defaults": "defaults",
    "SyncEntry": "sync",
    "SeedSection": "seed",
    "Tags": "tags",
    "TagFilter": "tags",
    "RenameRule": "rename",
    "GateSection": "gate",
    "PruneSection": "prune",
}
# Options of the commands for parameters of flows with other names. A key can begin with the name of one flow.
_OPTIONS = {
    "references": "`REF…`",
    "reference": "`REF`",
    "directory": "`DIR`",
    "platforms": "`--platform`",
    "name": "`NAME`",
    "target": "`REF`",
    "config": "`FILE`",
    "file": "`FILE`",
    "images": "lines of `FILE`",
    "store_options": "`--store-option`",
    "network": "[see below](#network)",
    "copy.source": "`SRC`",
    "copy.target": "`DST`",
}


def render(text: str) -> str:
    """Return the text of a page with current tables."""
    return _REGION.sub(lambda found: f"{found[1]}\n{_KINDS[found[2]](found[3])}\n\n{found[4]}", text)


def _table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows))
    first, *rest = lines
    return "\n".join([first, "|---" * len(head) + "|", *rest])


def _split_default(text: str) -> tuple[str, str | None]:
    """Return a description without its remark on the default, and the default of the remark."""
    if found := _DEFAULT.search(text):
        return text[: found.start()] + text[found.end() :], _mark_code(found[1])
    return text, None


def _mark_code(text: str) -> str:
    return _CODE.sub(r"`\1`", text)


def _sentence(text: str) -> str:
    return _mark_code(text) if text.endswith((".", "…")) else _mark_code(text) + "."


# -- commands


def _command(name: str) -> str:
    """Return the usage of a command, its aliases, and the table of its arguments and options."""
    command = app[name]
    stream = StringIO()
    app.help_print([name], console=Console(file=stream, width=500, color_system=None))
    usage = stream.getvalue().strip().splitlines()[0].removeprefix("Usage: ").strip()
    arguments = _visible(command)
    names = {argument.name for argument in arguments}
    rows = [_option(argument) for argument in arguments if argument.name not in _CONNECTION]
    summary = str(command.help).partition("\n\n")[0]
    parts = [f"```text\n{usage}\n```", summary]
    if aliases := [alias for alias in app if alias != name and app[alias] is command]:
        parts.append(f"Alias: {', '.join(f'`dist {alias}`' for alias in aliases)}.")
    if rows:
        parts.append(_table(("argument or option", "default", "meaning"), rows))
    if names & _CONNECTION:
        without = "" if "--credentials" in names else ", except `--credentials`"
        parts.append(f"The [connection options](#connection-options) apply{without}.")
    return "\n\n".join(parts)


def _global_options(_: str) -> str:
    return _table(("option", "default", "meaning"), map(_option, _visible(app.meta)))


def _connection_options(_: str) -> str:
    found = {one.name: one for one in _visible(app["fetch"])}
    return _table(("option", "default", "meaning"), (_option(found[name]) for name in _CONNECTION))


def _visible(command: App) -> list[Argument]:
    arguments = command.assemble_argument_collection(parse_docstring=False)
    return [argument for argument in arguments if argument.show and argument.name != "*"]


def _option(argument: Argument) -> list[str]:
    meaning, default = _split_default(str(argument.parameter.help))
    value = argument.field_info.default
    if argument.required:
        default = "required"
    elif default is None:
        default = "none" if value in (None, ()) else "off" if value is False else f"`{value}`"
    names = ", ".join(f"`{name}{_placeholder(argument)}`" for name in argument.names)
    return [names, default, _sentence(meaning)]


def _placeholder(argument: Argument) -> str:
    """Return the placeholder for the value of an option: its choices, or the type as the help shows it."""
    if not argument.name.startswith("-"):
        return ""
    hint = str(argument.hint)
    if "bool" in hint:
        return ""
    if get_origin(argument.hint) is Literal:
        return f" {'|'.join(get_args(argument.hint))}"
    kind = " INT" if "int" in hint else " DURATION" if "float" in hint else " STR"
    return kind + ("…" if "list" in hint or "tuple" in hint else "")


# -- configuration


def _section(name: str) -> str:
    """Return the table of the keys of a section. With `NAME-own`, without the keys that `defaults` may set."""
    model_name, _, part = name.partition("-")
    model: type[BaseModel] = getattr(sections, model_name, None) or getattr(hosts_file, model_name)
    left_out = set(sections.Options.model_fields) if part == "own" else set()
    rows = _keys(model, "", left_out)
    return _table(("key", "type", "default", "meaning"), rows)


def _keys(model: type[BaseModel], prefix: str, left_out: set[str]) -> Iterator[list[str]]:
    properties = schema_of(model)["properties"]
    names = [name for name in model.model_fields if name not in left_out]
    for name in sorted(names, key=lambda name: name not in model.__annotations__):  # keys of the section precede inherited keys
        field, key = model.model_fields[name], model.model_fields[name].alias or name
        part = properties[key]
        meaning, default = _split_default(field.description or "")
        inner = _find_section(part)
        own_table = inner in _CHAPTERS
        yield [
            f"`{prefix}{key}`",
            f"[{_type(part)}](#{_CHAPTERS[inner]})" if own_table else _type(part),
            "required" if field.is_required() else default or _default(field.default, part),
            _sentence(meaning),
        ]
        if inner and not own_table:
            step = "[]." if part.get("type") == "array" else "."
            yield from _keys(getattr(sections, inner), f"{prefix}{key}{step}", set())


def _find_section(part: dict[str, Any]) -> str:
    """Return the name of the section that is the value, an alternative for the value, or an item of the value."""
    found = re.search(r"#/\$defs/(\w+)", str(part))
    return found[1] if found else ""


def _default(value: Any, part: dict[str, Any]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value in (None, "", [], {}) or isinstance(value, BaseModel):
        return "none"
    if "duration" in _type(part):
        unit = next(unit for unit, seconds in _UNITS.items() if value % seconds == 0)
        value = f"{value // _UNITS[unit]}{unit}"
    return f"`{value}`"


def _type(part: dict[str, Any]) -> str:
    """Return the type of a value in the words of YAML."""
    if "anyOf" in part:
        kinds = dict.fromkeys(_type(one) for one in part["anyOf"] if one.get("type") != "null")
        if "text" in kinds:
            kinds.pop("number", None)  # the text of a number is the number as written
        return " or ".join(kinds)
    if values := part.get("enum") or ("const" in part and [part["const"]]):
        return ", ".join(f"`{value}`" for value in values if value)
    if part.get("type") == "array":
        kind = _type(part["items"])
        return f"list of {kind}s" if kind in ("section", "number") else f"list of {kind}"
    return "duration" if "smhd" in part.get("pattern", "") else _TYPES[part.get("type", "section")]


# -- flows


def _flow(name: str) -> str:
    flow = getattr(import_module(f"prefect_dist.flows.{name}"), name)
    rows = [
        [*_parameter(key, part, is_required=key in flow.parameters.required), _find_option(name, key)]
        for key, part in flow.parameters.properties.items()
    ]
    return _table(("parameter", "label", "type", "default", "meaning", "option"), rows)


def _find_option(flow: str, key: str) -> str:
    """Return the option or argument of the command for a parameter of the flow, or `none`."""
    if (known := _OPTIONS.get(f"{flow}.{key}") or _OPTIONS.get(key)) is not None:
        return known
    option = f"--{key.replace('_', '-')}"
    existing = {name for command in (app[flow], app.meta) for argument in _visible(command) for name in argument.names}
    return f"`{option}`" if option in existing else "none"


def _network(_: str) -> str:
    properties = Network.model_json_schema()["properties"]
    rows = (_parameter(key, part, is_required=False) for key, part in properties.items())
    return _table(("key", "label", "type", "default", "meaning"), rows)


def _parameter(key: str, part: dict[str, Any], *, is_required: bool) -> list[str]:
    meaning, default = _split_default(part.get("description", ""))
    return [
        f"`{key}`",
        part["title"],
        _type(part).replace("section", "object").replace("map", "object"),
        "required" if is_required else default or _default(part.get("default"), part),
        _sentence(meaning),
    ]


_KINDS: dict[str, Callable[[str], str]] = {
    "command": _command,
    "global": _global_options,
    "connection": _connection_options,
    "section": _section,
    "flow": _flow,
    "network": _network,
}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text()))
