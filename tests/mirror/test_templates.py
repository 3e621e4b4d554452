"""Templates in configuration files: results, and the errors of invalid templates."""

from pathlib import Path

import pytest

from prefect_dist.mirror.templates import Template
from prefect_dist.ocispec.errors import InvalidInput
from tests.remotes.asking import check_message

OBJECTS = {"Ref": ("Tag", "Repository"), "Sync": ("Source",)}
VALUES = {"Ref": {"Tag": "7.2", "Repository": "library/redis"}, "Sync": {"Source": "gcr.io/example/repo"}}


def read(text: str) -> Template:
    return Template.read(text, at="f.yaml:1: key", objects=OBJECTS, environ={"HOME_OF": "registry.example", "EMPTY": ""})


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{ {}} }", "{ {}} }"),
        ("backup-{{.Ref.Tag}}", "backup-7.2"),
        ("{{ .Ref.Repository }}:{{ .Ref.Tag }}", "library/redis:7.2"),
        ('{{env "HOME_OF"}}/x', "registry.example/x"),
        ("{{env `HOME_OF`}}", "registry.example"),
        ('{{ env "ABSENT" | default "other" }}', "other"),
        ('{{ env "EMPTY" | default "other" }}', "other"),
        ('{{ env "HOME_OF" | default "other" }}', "registry.example"),
        ('{{ default "other" (env "ABSENT") }}', "other"),
        ('{{ index (split .Sync.Source "gcr.io/") 1 }}', "example/repo"),
        ('{{ join (split .Ref.Repository "/") "-" }}', "library-redis"),
        ("{{ .Ref.Tag | upper | lower | trimSpace }}", "7.2"),
        ('{{ printf "%s_%03d%%|%-3s|%3v" .Ref.Tag 7 "a" 1 }}', "7.2_007%|a  |  1"),
        ('{{ .Ref.Tag | printf "%s.%s" "v" }}', "v.7.2"),
        ("{{ $tag := .Ref.Tag }}a{{ $tag }}", "a7.2"),
        ("a {{- .Ref.Tag -}} b", "a7.2b"),
        ("a {{ .Ref.Tag }} b", "a 7.2 b"),
        ("a {{- .Ref.Tag -}}\n\n b {{ .Ref.Tag }}", "a7.2b 7.2"),
        ("{{ .Ref.Tag -}}  }}", "7.2}}"),
        ('{{ "a}}\\"b" }}{{`{{`}}', 'a}}"b{{'),
        ("{{ ((.Ref.Tag)) }}", "7.2"),
    ],
)
def test_a_template_renders_its_values(text: str, result: str) -> None:
    assert read(text).render(VALUES) == result


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{{ $t := time.Now }}{{printf "%d%02d%02d" $t.Year $t.Month $t.Day}}', r"\d{8}"),
        ('{{ time.Now.UTC.Format "20060102-150405" }}', r"\d{8}-\d{6}"),
        ('{{ time.Now.Format "Jan Mon 002 MST" }}', r"\w{3} \w{3} \d{3} \S+"),
        ("{{ time.Now.Hour }}.{{ time.Now.Minute }}.{{ time.Now.Second }}", r"\d+(\.\d+){2}"),
        ('{{ (time.Now | printf "%s") }}', r"\d{4}-.*"),
    ],
)
def test_a_template_renders_the_current_time(text: str, form: str) -> None:
    import re

    assert re.fullmatch(form, read(text).render(VALUES))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{.Ref.Tagg}}", "unknown field .Ref.Tagg; did you mean .Ref.Tag"),
        ("{{.Ref}}", "unknown field .Ref; did you mean .Ref.Tag"),
        ("{{.Nothing.AtAll}}", "unknown field .Nothing.AtAll; known fields: .Ref.Tag, .Ref.Repository, .Sync.Source"),
        ("{{if .Ref.Tag}}x{{end}}", "unknown function if; known functions: default, env, file, index"),
        ("{{", "'{{' has no closing '}}'"),
        ("a {{.Ref.Tag", "'{{' has no closing '}}'"),
        ("{{ (.Ref.Tag }}", "an action ends too early"),
        ("{{ .Ref.Tag ) }}", "unexpected ')'"),
        ("{{ }}", "an action ends too early"),
        ("{{ .Ref.Tag | }}", "an action ends too early"),
        ("{{ 1.5 }}", "cannot parse '1.5'"),
        ('{{ "\\q" }}', "cannot parse '\"\\\\q\"'"),
        ("{{ .Ref.Tag 3 }}", "expected a function before its arguments, got '.Ref.Tag'"),
        ('{{ "a" "b" }}', "expected a function before its arguments, got '\"a\"'"),
        ("{{ env .Ref.Tag }}", "function env: expected one quoted NAME"),
        ("{{ env }}", "function env: expected one quoted NAME"),
        ('{{ env "A" "B" }}', "function env: expected one quoted NAME"),
        ("{{ .Ref.Tag" + " | lower" * 99 + " }}", "an action has more than 100 words"),
        ("{{ " + "(" * 200 + " }}", "an action has more than 100 words"),
        ('{{ "a }}', "'{{' has no closing '}}'"),
        ("{{/* a */}}", "cannot parse '/* a */'"),
        ("{{time}}", "unknown function time; known functions: default"),
        (f"{{{{{'x' * 300}}}}}", f"unknown function '{'x' * 255}'…; known functions"),
        ("{{time.Then}}", "unknown function time.Then; known functions: default"),
        ("{{time.Now.Nanosecond}}", "unknown function .Nanosecond; known functions: default"),
        ("{{ := 3 }}", "expected a function before its arguments, got ':='"),
    ],
)
def test_an_invalid_template_is_rejected_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    check_message(caught.value, f"f.yaml:1: key: template {text[:9]!r}"[:-1], message)


@pytest.mark.parametrize(
    "text",
    [
        '{{"' * 30_000,
        "{{" + '"a"' * 30_000 + "}}",
        "{{" + "`" * 30_001,
        "{{" + "a " * 30_000,
        "{{" + "a " * 30_000 + "!}}",
        "{{" + "a" * 30_000 + "!}}",
        "{{" + '"\\"' * 30_001 + "}}",
        "{{/*" * 30_000,
    ],
)
def test_a_long_invalid_template_is_rejected_at_once(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    check_message(caught.value, "f.yaml:1: key: template ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{{env "ABSENT"}}', "environment variable ABSENT is not set"),
        ("{{env `A\nB`}}", "environment variable 'A\\nB' is not set"),
        ('{{file "/none/such"}}', "/none/such: No such file or directory"),
        ('{{index (split .Ref.Tag ".") 5}}', "function index: expected at most 1, the last item of the list, got 5"),
        ("{{split .Ref.Tag}}", "function split: expected TEXT SEPARATOR, got str"),
        ("{{split .Ref.Tag 3}}", "function split: expected TEXT SEPARATOR, got str, int"),
        ('{{printf "%q" .Ref.Tag}}', "function printf: expected only %d, %s and %v in the layout"),
        ('{{printf "%d" .Ref.Tag}}', "function printf: %d format: a real number is required, not str"),
        ("{{index .Ref.Tag 0}}", "function index: expected LIST NUMBER, got str, int"),
        ('{{printf "%s"}}', "function printf: not enough arguments for format string"),
        ('{{printf "%s" .Ref.Tag 3}}', "function printf: not all arguments converted during string formatting"),
        ('{{split .Ref.Tag "."}}', "expected each action to give text or a number, got a list or a time"),
        ("{{time.Now}}", "expected each action to give text or a number, got a list or a time"),
        ('{{time.Now.Year "x"}}', "function .Year: expected TIME, got datetime, str"),
        ("{{$absent}}", "unknown variable $absent"),
        ('{{file "/dev/zero"}}', "/dev/zero: expected at most 1048576 characters"),
        (
            '{{$a := printf "%999s" "x"}}{{$b := join (split $a " ") $a}}{{$c := join (split $b " ") $b}}',
            "function join: expected a result of at most 1048576 characters, got ",
        ),
        (
            '{{$a := printf "%999s" "x"}}{{$b := join (split $a " ") $a}}{{printf "%s%s" $b $b}}',
            "function printf: expected a result of at most 1048576 characters, got ",
        ),
    ],
)
def test_a_template_that_fails_for_its_values_is_rejected_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text).render(VALUES)
    check_message(caught.value, f"f.yaml:1: key: template {text!r}: ", message)


def test_a_file_is_read_without_its_last_line_break(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("team\n")
    assert read(f'{{{{file "{tmp_path}/name"}}}}/x').render(VALUES) == "team/x"


def test_a_large_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "large").write_text("x" * 1_048_577)
    with pytest.raises(InvalidInput) as caught:
        read(f'{{{{file "{tmp_path}/large"}}}}').render(VALUES)
    check_message(caught.value, f"{tmp_path}/large: expected at most 1048576 characters")


def test_a_template_knows_the_objects_it_refers_to() -> None:
    assert read("{{ $t := .Ref.Tag }}{{ upper $t }}").refers_to("Ref")
    assert read('{{ join (split .Ref.Tag ".") "-" }}').refers_to("Ref")
    assert not read("{{ .Sync.Source }}.Ref.Tag").refers_to("Ref")
