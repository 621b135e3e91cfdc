"""A folder of prompts: what is read, what is refused, and that a released version stays as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from server.prompts.lock import LOCK_NAME, read, write
from server.prompts.registry import BadRegistry, Registry
from tests.prompt_files import plain, problems, put, support


def test_released_versions_are_in_order_and_drafts_apart(tmp_path: Path) -> None:
    for version in ("1.10.0", "1.9.0", "2.0.0-rc.1", "2.0.0"):
        put(tmp_path, "a", version, plain(version))
    put(tmp_path, "a", "3.0.0", plain("draft"), released=False)
    put(tmp_path, "b", "0.1.0", support(), released=False)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "a" / "notes.md").write_text("about")
    (tmp_path / ".git").mkdir()
    registry = Registry.load(tmp_path)
    assert [str(p.version) for p in registry.released["a"]] == ["1.9.0", "1.10.0", "2.0.0-rc.1", "2.0.0"]
    assert [p.id for p in registry.versions("a")][-1] == "a@3.0.0"
    assert registry.names == ["a", "b"]
    assert "b" not in registry.released


def test_a_changed_released_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = put(tmp_path, "a", "1.0.0", plain("one"))
    path.write_text(plain("two"))
    with pytest.raises(BadRegistry) as refused:
        Registry.load(tmp_path)
    assert "a/1.0.0.toml: is released and was changed since" in str(refused.value)
    assert "a/1.0.1.toml" in str(refused.value)
    path.unlink()
    with pytest.raises(BadRegistry, match="is not there; take it back from version control"):
        Registry.load(tmp_path)


DEEP = '{"not": ' * 300 + "{}" + "}" * 300


@pytest.mark.parametrize(
    ("name", "version", "text", "expected"),
    [
        ("a", "1.0", plain("x"), "the file's name has to be its version"),
        ("a b", "1.0.0", plain("x"), "is no name for a prompt"),
        ("a", "1.0.0", "", "messages: Field required"),
        ("a", "1.0.0", "x = ", "is not valid TOML"),
        ("a", "1.0.0", plain("{{ x }}"), "`x` is used in a template and not declared"),
        ("a", "1.0.0", plain("x", "[variables.y]"), "variables.y is used in no template"),
        ("a", "1.0.0", plain("{{ self }}", "[variables.self]"), "this name has a meaning in templates"),
        ("a", "1.0.0", plain("{{ x() }}"), "messages[0].content, line 1: a call is not allowed"),
        ("a", "1.0.0", plain("x", "colour = 1"), "colour: there is no such key"),
        ("a", "1.0.0", plain("x") + "[[messages]]\nrole = 'tool'\ncontent = 'x'", "messages[1].role"),
        ("a", "1.0.0", plain("x") + "[[messages]]\ninsert = 'messages'\n" * 2, "may stand once"),
        ("a", "1.0.0", plain("x") + "[[messages]]\nrole = 'user'", "messages[1]: give `role` and `content`"),
        ("a", "1.0.0", plain("x") + "[[tools]]\nname = 'f'\n" * 2, "tools: `f` stands twice"),
        ("a", "1.0.0", plain("x") + "[output]\nschema = '{'", "output.schema: is not JSON"),
        ("a", "1.0.0", plain("x") + "[output]\nschema = {type = 'strange'}", "the schema is invalid at $.type"),
        ("a", "1.0.0", plain("x") + "[output]\nschema = {pattern = '(('}", "the `pattern` is no regular expression"),
        ("a", "1.0.0", plain("x") + f"[output]\nschema = '{DEEP}'", "output.schema: the schema is nested too deeply"),
        ("a", "1.0.0", plain("x") + "[options]\ntemperature = 9", "options.temperature"),
        (
            "a", "1.0.0", plain("{{ x|first }}", "[variables.x]\ntype = 'array'\nitems = 'string'"),
            "cannot be filled in with x = '[]'",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, name: str, version: str, text: str, expected: str) -> None:
    put(tmp_path, name, version, text, released=False)
    (found,) = problems(tmp_path)
    assert expected in found
    Registry.load(tmp_path)  # a draft keeps nobody from serving


def test_no_folder_and_a_broken_lock_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRegistry, match=r"is no folder; mend prompts\.dir"):
        Registry.load(tmp_path / "nothing")
    (tmp_path / LOCK_NAME).write_text("hello\n")
    with pytest.raises(BadRegistry, match="line 1 is not"):
        Registry.load(tmp_path)
    (tmp_path / LOCK_NAME).write_text(f"{'a' * 64}  a/1.0.0.toml\n{'b' * 64}  a/1.0.0.toml\n")
    with pytest.raises(BadRegistry, match="stands twice with different hashes"):
        Registry.load(tmp_path)
    assert Registry.load(None).names == []


def test_the_lock_is_what_sha256sum_checks(tmp_path: Path) -> None:
    path = put(tmp_path, "a", "1.0.0", plain("one"))
    put(tmp_path, "b", "1.0.0", plain("two"))
    text = (tmp_path / LOCK_NAME).read_text()
    assert write(read(text)) == text
    command = ["sha256sum", "--check", "--status", LOCK_NAME]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    path.write_text("changed")
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 1
