"""`tidewire prompts …` on folders: what is printed, the exit code, and what becomes of the lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli import run
from server.prompts.lock import LOCK_NAME
from server.prompts.registry import Registry
from tests.prompt_files import plain, put, support


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, "support", "1.0.0", support())
    return tmp_path


def prompts(folder: Path, *arguments: str) -> int:
    return run(["prompts", *arguments, "--dir", str(folder)])


def test_an_understated_version_is_refused_and_never_released(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = (folder / LOCK_NAME).read_text()
    put(folder, "support", "1.0.1", support().replace('default = "plain"', ""), released=False)
    assert prompts(folder, "check") == 1
    printed = capsys.readouterr().out
    assert "draft   support@1.0.1, since 1.0.0: major" in printed
    assert "REFUSED support/1.0.1.toml: 1.0.1 understates what it changes since 1.0.0: it has to be 2.0.0" in printed
    assert prompts(folder, "release", "support@1.0.1") == 2
    assert "major: variables.tone: is now required" in capsys.readouterr().err
    assert (folder / LOCK_NAME).read_text() == lock
    (folder / "support" / "1.0.1.toml").rename(folder / "support" / "2.0.0.toml")
    assert prompts(folder, "check") == 0
    assert prompts(folder, "release", "support@2.0.0") == 0
    assert [str(p.version) for p in Registry.load(folder).released["support"]] == ["1.0.0", "2.0.0"]
    assert prompts(folder, "release", "support@2.0.0") == 2
    assert "is released already" in capsys.readouterr().err


def test_all_drafts_are_released_or_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(folder, "a", "1.0.0", plain("x", "rollout_percent = 5"), released=False)
    put(folder, "support", "1.0.1", plain("x"), released=False)
    assert prompts(folder, "release", "all") == 2
    assert "a" not in Registry.load(folder).released
    (folder / "support" / "1.0.1.toml").unlink()
    assert prompts(folder, "release", "all") == 0
    assert "released a@1.0.0, for 5 % of users until" in capsys.readouterr().out
    put(folder, "b", "1.0.0", "broken = ", released=False)
    assert prompts(folder, "release", "b@1.0.0") == 2
    assert prompts(folder, "release", "b@1.1.0") == 2
    assert prompts(folder, "check") == 1


def test_a_changed_released_file_is_refused_by_every_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "support" / "1.0.0.toml").write_text(support("Changed"))
    for command in (["check"], ["list"], ["release", "all"], ["show", "support"], ["render", "support"]):
        assert prompts(folder, *command) == 2
        assert "is released and was changed since; take it back" in capsys.readouterr().err


def test_list_show_and_render(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(folder, "support", "1.1.0", support("Now"), released=False)
    assert prompts(folder, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["support@1.0.0", "released", "100", "%"]
    assert lines[2].split()[:3] == ["support@1.1.0", "draft", "-"]
    assert prompts(folder, "show", "support@1.0.x") == 0
    assert '"max_length": 40' in capsys.readouterr().out
    assert prompts(folder, "render", "support", "--var", "product=tea", "--var", "tone=warm") == 0
    assert "--- system\nNow tea. Tone: warm." in capsys.readouterr().out
    for wrong in (["--var", "tone=rude"], ["--var", "product"], []):
        assert prompts(folder, "render", "support", *wrong) == 2
    assert "variable product: is missing" in capsys.readouterr().err
    assert prompts(folder, "show", "support@^9") == 2
    assert "there is no version of 'support' in ^9; there are: 1.0.0, 1.1.0" in capsys.readouterr().err


def test_without_a_folder_it_says_what_to_give(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["prompts", "check"]) == 2
    assert "give --dir FOLDER, or --config FILE" in capsys.readouterr().err
    assert prompts(tmp_path / "nothing", "check") == 2
    assert "is no folder" in capsys.readouterr().err
