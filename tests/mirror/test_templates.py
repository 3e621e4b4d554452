"""Templates as regsync's files have them: what is read and rendered, and what a wrong one is told."""

from pathlib import Path

import pytest

from prefect_dist.mirror.templates import Template
from prefect_dist.ocispec.errors import InvalidInput
from tests.remotes.asking import check_told

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
        ('{{ print .Ref.Tag "-" 3 }}', "7.2-3"),
        ('{{ printf "%s_%03d%%|%-3s|%3v" .Ref.Tag 7 "a" 1 }}', "7.2_007%|a  |  1"),
        ('{{ .Ref.Tag | printf "%s.%s" "v" }}', "v.7.2"),
        ("{{ $tag := .Ref.Tag }}a{{ $tag }}", "a7.2"),
        ("a {{- .Ref.Tag -}} b", "a7.2b"),
        ("a {{ .Ref.Tag }} b", "a 7.2 b"),
        ("a{{/* a comment */}}b", "ab"),
        ('a {{- /* with "quotes and }} */ -}} b', "ab"),
        ("{{ .Ref.Tag -}}  }}", "7.2}}"),
        ('{{ "a}}\\"b" }}{{`{{`}}', 'a}}"b{{'),
        ("{{ ((.Ref.Tag)) }}", "7.2"),
    ],
)
def test_what_a_template_gives(text: str, result: str) -> None:
    assert read(text).render(VALUES) == result


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{{ $t := time.Now }}{{printf "%d%02d%02d" $t.Year $t.Month $t.Day}}', r"\d{8}"),
        ('{{ time.Now.UTC.Format "20060102-150405" }}', r"\d{8}-\d{6}"),
        ('{{ time.Now.Format "Jan Mon 002 MST" }}', r"\w{3} \w{3} \d{3} \S+"),
        (
            "{{ time.Now.Unix }}.{{ time.Now.YearDay }}.{{ time.Now.Hour }}.{{ time.Now.Minute }}.{{ time.Now.Second }}",
            r"\d+(\.\d+){4}",
        ),
    ],
)
def test_times(text: str, form: str) -> None:
    import re

    assert re.fullmatch(form, read(text).render(VALUES))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{{.Ref.Tagg}}", "unknown .Ref.Tagg; did you mean .Ref.Tag"),
        ("{{.Ref}}", "unknown .Ref; did you mean .Ref.Tag"),
        ("{{.Nothing.AtAll}}", "unknown .Nothing.AtAll; there are .Ref.Tag, .Ref.Repository, .Sync.Source"),
        ("{{if .Ref.Tag}}x{{end}}", "unknown 'if'; there are default, env, file, index"),
        ("{{", "'{{' without its '}}'"),
        ("a {{.Ref.Tag", "'{{' without its '}}'"),
        ("{{ (.Ref.Tag }}", "an action ends too early"),
        ("{{ .Ref.Tag ) }}", "cannot read ')'"),
        ("{{ }}", "an action ends too early"),
        ("{{ .Ref.Tag | }}", "an action ends too early"),
        ("{{ 1.5 }}", "cannot read '1.5'"),
        ('{{ "\\q" }}', "cannot read"),
        ("{{ .Ref.Tag 3 }}", "has to be a function"),
        ('{{ "a" "b" }}', "has to be a function"),
        ("{{ env .Ref.Tag }}", "env expects one name"),
        ("{{ env }}", "env expects one name"),
        ('{{ env "A" "B" }}', "env expects one name"),
        ("{{ .Ref.Tag" + " | lower" * 99 + " }}", "an action has more than 100 words"),
        ("{{ " + "(" * 200 + " }}", "an action has more than 100 words"),
        ('{{ "a }}', "'{{' without its '}}'"),
        ("{{/* a }}", "cannot read '/* a'"),
    ],
)
def test_what_is_no_template(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    check_told(caught.value, f"f.yaml:1: key: template {text[:9]!r}"[:-1], told)


@pytest.mark.parametrize(
    "text", ['{{"' * 30_000, "{{" + '"a"' * 30_000 + "}}", "{{" + "`" * 30_001, "{{" + "a " * 30_000, "{{/*" * 30_000]
)
def test_a_long_template_that_is_none_is_soon_told(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    check_told(caught.value, "f.yaml:1: key: template ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{{env "ABSENT"}}', "expected ABSENT in the environment, it is not set"),
        ('{{file "/none/such"}}', "/none/such: No such file or directory"),
        ('{{index (split .Ref.Tag ".") 5}}', "index: these arguments do not do"),
        ("{{split .Ref.Tag}}", "split: these arguments do not do"),
        ("{{split .Ref.Tag 3}}", "split: expected text, got int"),
        ('{{printf "%q" .Ref.Tag}}', "printf knows %d, %s and %v, not %q"),
        ('{{printf "%d" .Ref.Tag}}', "printf expects a number for %d"),
        ('{{printf "%s" 3}}', "printf expects text for %s"),
        ('{{printf "%s"}}', "printf has no value for %s"),
        ('{{printf "%s" .Ref.Tag 3}}', "printf has 1 values too many"),
        ('{{split .Ref.Tag "."}}', "expected text or a number to come out"),
        ("{{time}}", "expected text or a number to come out"),
        ("{{time.Then}}", "unknown .Then"),
        ("{{time.Now.Nanosecond}}", "unknown .Nanosecond; of a time there are Year"),
        ('{{time.Now.Year "x"}}', "Year: these arguments do not do"),
        ("{{$absent}}", "unknown variable $absent"),
    ],
)
def test_what_cannot_be_rendered(text: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text).render(VALUES)
    check_told(caught.value, f"f.yaml:1: key: template {text!r}: ", told)


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("team\n")
    assert read(f'{{{{file "{tmp_path}/name"}}}}/x').render(VALUES) == "team/x"


def test_what_it_says_something_about() -> None:
    assert read("{{ $t := .Ref.Tag }}{{ upper $t }}").names("Ref")
    assert read('{{ join (split .Ref.Tag ".") "-" }}').names("Ref")
    assert not read("{{ .Sync.Source }}.Ref.Tag").names("Ref")
