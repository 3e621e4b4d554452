from pathlib import Path

import pytest

from prefect_dist.mirror import yamlfile
from prefect_dist.ocispec.errors import InvalidInput
from tests.remotes.asking import check_message

TEXT = """\
# a comment
registries:
  ghcr.io:
    mirrors:
      - one
      - two
  "a:5000": &common
    tls: disabled
  other: *common
  merged:
    <<: *common
"""


def write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ((), "1"),
        (("registries",), "2: registries"),
        (("registries", "ghcr.io", "mirrors"), "4: registries.ghcr.io.mirrors"),
        (("registries", "ghcr.io", "mirrors", 1), "6: registries.ghcr.io.mirrors[1]"),
        (("registries", "ghcr.io", "mirrors", 7), "4: registries.ghcr.io.mirrors[7]"),
        (("registries", "a:5000", "tls"), "8: registries.a:5000.tls"),
        (("registries", "merged", "tls"), "10: registries.merged.tls"),
        (("absent",), "1: absent"),
    ],
)
def test_each_place_has_its_line(tmp_path: Path, place: tuple[str | int, ...], where: str) -> None:
    document = yamlfile.read(path := write(tmp_path, TEXT))
    assert document.where(place) == f"{path}:{where}"
    assert document.data["registries"]["merged"] == document.data["registries"]["other"] == {"tls": "disabled"}


def test_numbers_keep_their_text_and_dates_are_text(tmp_path: Path) -> None:
    read = yamlfile.read(write(tmp_path, "[3.10, 0x10, 017, 22:22, 2026-01-02, 2026-99-99]")).data
    assert [one.written for one in read[:4]] == ["3.10", "0x10", "017", "22:22"]
    assert read == [3.1, 16, 15, 1342, "2026-01-02", "2026-99-99"]


def test_only_true_and_false_are_booleans(tmp_path: Path) -> None:
    read = yamlfile.read(write(tmp_path, "[on, no, Yes, OFF, y, true, False, TRUE, trueish]")).data
    assert read == ["on", "no", "Yes", "OFF", "y", True, False, True, "trueish"]


def test_plain_data_has_plain_numbers(tmp_path: Path) -> None:
    read = yamlfile.plain(yamlfile.read(write(tmp_path, "{a: [1, 2.5], 3: {b: x}}")).data)
    assert read == {"a": [1, 2.5], 3: {"b": "x"}}
    assert [type(one) for one in read["a"]] == [int, float]


def test_an_empty_file_has_no_data(tmp_path: Path) -> None:
    assert yamlfile.read(write(tmp_path, "# nothing\n")).data is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", ":1: not YAML"),
        ("a: 1\nb: 2\na: 3\n", ":3: a: duplicate key, first in line 1"),
        ("a: {b: 1, b: 2}", ":1: a.b: duplicate key, first in line 1"),
        ("a: !!python/object:os.system x", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("a: !!int x\n", "not YAML"),
        ("a: !!int ''\n", "not YAML"),
        ("a: !!bool x\n", "not YAML"),
        ("a: !!float x\n", "not YAML"),
        ("? [1, 2]\n: x\n", "not YAML"),
        (b"\xff\xfe\xff", "expected UTF-8"),
        ("a: \x07", "not YAML"),
        ("&a [*a]", "after the expansion of aliases"),
        (
            "\n".join(["a0: &a0 [x]", *(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(9))]),
            "after the expansion of aliases",
        ),
    ],
)
def test_invalid_yaml_is_rejected(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidInput) as caught:
        yamlfile.read(path)
    check_message(caught.value, path, message)
    assert str(caught.value).count(path) == 1


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.yaml: No such file"):
        yamlfile.read(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("s3://bucket/mirrors/hub.yaml", "oci:./lay:v1", "oci:s3://bucket/mirrors/lay:v1"),
        ("s3://bucket/mirrors/hub.yaml", "oci:..:v1", "oci:s3://bucket:v1"),
        ("s3://bucket/mirrors/hub.yaml", "oci:/srv/lay:v1", "oci:/srv/lay:v1"),
        ("/srv/hub.yaml", "oci-archive:./~root/a.tar:v1", "oci-archive:/srv/~root/a.tar:v1"),
        ("/srv/hub.yaml", "redis:7", "redis:7"),
    ],
)
def test_a_relative_locator_starts_at_the_directory_of_the_file(path: str, text: str, found: str) -> None:
    assert yamlfile.Document(path=path, data=None, lines={}).resolve_locator(text, ()) == found


def test_a_locator_above_a_linked_directory_is_above_the_real_directory(tmp_path: Path) -> None:
    (tmp_path / "real" / "config").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "config")
    document = yamlfile.Document(path=str(tmp_path / "link" / "hub.yaml"), data=None, lines={})

    assert document.resolve_locator("oci:lay", ()) == f"oci:{tmp_path}/link/lay"
    for text in ("oci:../lay", "oci:./../lay"):
        assert document.resolve_locator(text, ()) == f"oci:{tmp_path}/real/lay"
    assert document.resolve_locator("oci:..:v1", ()) == f"oci:{tmp_path}/real:v1"


def test_a_block_has_no_relative_locators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    document = yamlfile.Document(path="block:hub", data=None, lines={}, is_file=False)

    assert document.resolve_locator("oci:~/lay", ()) == "oci:/home/me/lay"
    for text in ("oci:/srv/lay", "oci:s3://bucket/lay", "redis:7", "store:app:v1"):
        assert document.resolve_locator(text, ()) == text
    with pytest.raises(
        InvalidInput, match="expected a URL or an absolute path, got oci:lay: a block or a parameter has no dir"
    ):
        document.resolve_locator("oci:lay", ())
