"""What README, docs and examples say is true: commands parse, code runs, files exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from thinktalk.__main__ import parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    pattern = rf"^```{language}\n(.*?)^```$"
    return [
        code
        for page in PAGES
        for code in re.findall(pattern, page.read_text(), flags=re.DOTALL | re.MULTILINE)
    ]


def commands() -> list[list[str]]:
    """The arguments of every `thinktalk ...` in a bash block."""
    lines = [line for code in blocks("bash") for line in code.replace("\\\n", " ").splitlines()]
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [part[1:] for part in parts if part and Path(part[0]).name == "thinktalk"]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_parse(arguments: list[str]) -> None:
    parser().parse_args(arguments)
    for argument in arguments:
        assert not argument.startswith("examples/") or (ROOT / argument).exists(), argument


def test_there_are_commands_and_code() -> None:
    assert len(commands()) >= 4 and blocks("python")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert any((base / name).exists() for base in (ROOT, ROOT / "src" / "thinktalk")), name


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder to write in that looks like the repository to a reader of the README."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def test_python_blocks_run(workplace: Path) -> None:
    """All of them, in order, as a reader goes on from one to the next."""
    code = "\n".join(blocks("python"))
    run(workplace, "-c", code, writes=saved(code))


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_run(workplace: Path, script: Path) -> None:
    assert run(workplace, str(script), writes=saved(script.read_text())).strip()


def saved(code: str) -> list[str]:
    """The sound files that code says it writes."""
    names = re.findall(r"(?:save|write_wav)\(\"([\w.]+)\"", code)
    assert names, "it should leave something to listen to"
    return names


def run(folder: Path, *arguments: str, writes: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in writes:
        assert (folder / name).stat().st_size > 10_000, name
    return done.stdout
