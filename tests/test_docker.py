"""The build context of docker/Dockerfile has the files that the package needs."""

from pathlib import Path

TOP = Path(__file__).parents[1]


def test_the_build_context_has_every_file_that_the_package_links_to() -> None:
    allowed = {line[1:] for line in (TOP / "docker" / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"}
    links = [path for path in (TOP / "prefect_dist").rglob("*") if path.is_symlink()]
    needed = {path.resolve().relative_to(TOP.resolve()).as_posix() for path in links}

    assert needed
    assert needed | {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "prefect_dist"} <= allowed
