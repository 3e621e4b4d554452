import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_dist.remotes.headers import Challenge, parse_challenges

BEARER = {"realm": "https://auth.example/token", "service": "registry.example", "scope": "repository:a/b:pull,push"}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push"',
            [Challenge("bearer", BEARER)],
        ),
        (
            'BEARER  Realm = "https://auth.example/token" , SERVICE= registry.example ,scope ="repository:a/b:pull,push"',
            [Challenge("bearer", BEARER)],
        ),
        ('Basic realm="a b"', [Challenge("basic", {"realm": "a b"})]),
        ("Basic realm=simple", [Challenge("basic", {"realm": "simple"})]),
        ("Basic", [Challenge("basic")]),
        (" , ,Basic , ", [Challenge("basic")]),
        (
            'Bearer realm="https://a/t",scope="",service=""',
            [Challenge("bearer", {"realm": "https://a/t", "scope": "", "service": ""})],
        ),
        ("Bearer realm=,scope=x", [Challenge("bearer", {"realm": "", "scope": "x"})]),
        (r'Basic realm="say \"hi\", \\ please"', [Challenge("basic", {"realm": 'say "hi", \\ please'})]),
        ('Basic realm="a,b=c"', [Challenge("basic", {"realm": "a,b=c"})]),
        ("Basic realm=a charset=UTF-8", [Challenge("basic", {"realm": "a", "charset": "UTF-8"})]),
        ('Basic realm="a",,,charset="UTF-8"', [Challenge("basic", {"realm": "a", "charset": "UTF-8"})]),
        (
            'Bearer realm="https://a/t", error="invalid_token", Basic realm="b"',
            [Challenge("bearer", {"realm": "https://a/t", "error": "invalid_token"}), Challenge("basic", {"realm": "b"})],
        ),
        ('Negotiate, Basic realm="b"', [Challenge("negotiate"), Challenge("basic", {"realm": "b"})]),
        ("Basic,Bearer", [Challenge("basic"), Challenge("bearer")]),
        ("\tBasic\trealm=a", [Challenge("basic", {"realm": "a"})]),
        ("", []),
        (" ", []),
        ('"', []),
        ("=", []),
        ('realm="a"', []),
        ("@@@", []),
        ("Bearer @@@", [Challenge("bearer")]),
        ('Bearer realm="never closed', [Challenge("bearer", {"realm": ""})]),
        ("Bearer realm", [Challenge("bearer"), Challenge("realm")]),
    ],
)
def test_challenges_are_parsed(header: str, expected: list[Challenge]) -> None:
    assert parse_challenges([header]) == expected


def test_a_repeated_parameter_counts_once() -> None:
    assert parse_challenges(["Basic realm=a, realm=b"]) == [Challenge("basic", {"realm": "b"})]


def test_challenges_of_several_headers_are_joined() -> None:
    assert parse_challenges(["Bearer realm=a", "@@@", "Basic realm=b"]) == [
        Challenge("bearer", {"realm": "a"}),
        Challenge("basic", {"realm": "b"}),
    ]
    assert parse_challenges([]) == []


@pytest.mark.timeout(10)  # took minutes
@pytest.mark.parametrize("header", ["Bearer{}@", "Bearer a=1{}@", "Bearer a{}@", 'Bearer a="{}', "{}@"])
@pytest.mark.parametrize("filling", [" ", ",", " ,", "\\", '\\"', "a", "a=", "="])
def test_a_long_header_is_parsed_in_linear_time(header: str, filling: str) -> None:
    parse_challenges([header.format(filling * (60_000 // len(filling)))])


@given(st.text(st.characters(codec="latin-1")))
def test_any_header_can_be_parsed(header: str) -> None:
    for challenge in parse_challenges([header]):
        assert challenge.scheme == challenge.scheme.lower()


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True),
        st.text(st.characters(codec="latin-1", exclude_categories=["Cc"])),
        min_size=1,
    )
)
def test_quoted_parameters_survive(params: dict[str, str]) -> None:
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in params.items()}
    header = "Bearer " + ", ".join(f'{name}="{value}"' for name, value in quoted.items())
    assert parse_challenges([header]) == [Challenge("bearer", params)]
