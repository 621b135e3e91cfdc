"""The wheel has everything in it: what is installed from it serves without the repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [path] = folder.glob("tidewire-*-py3-none-any.whl")
    with zipfile.ZipFile(path) as wheel:
        yield wheel


def test_nothing_is_missing(wheel: zipfile.ZipFile) -> None:
    there = {
        str(path.relative_to(ROOT))
        for package in ("server", "protocol")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "server/http/static/index.html" in there, "make setup builds the page"
    assert there <= set(wheel.namelist())


def test_it_runs_alone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = "import server.cli; print(server.__file__, flush=True); server.cli.run(['--version'])"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, told = answer.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path), "not the one of the repository"
    assert told == f"tidewire {version('tidewire')}"
