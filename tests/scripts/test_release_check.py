"""A checkout may be released when nothing is open; each thing that is open is told."""

import json
import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from scripts import release_check

PYPROJECT = '[project]\nversion = "{}"\ndependencies = ["Some_thing[x]>=1,<2"]\n'


def git(folder, *arguments):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=folder, check=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """One that may be released as 1.2.3."""
    files = {
        "pyproject.toml": PYPROJECT.format("1.2.3"),
        "requirements-lock.txt": "some-thing==1.5 \\\n",
        "CHANGELOG.md": "# Changelog\n\n## Unreleased\n\n## 1.2.3 - 2026-12-01\n\n- All.\n",
        "clients/python/pyproject.toml": PYPROJECT.format("1.2.3"),
        "clients/typescript/package.json": json.dumps({"version": "1.2.3"}),
        "clients/extension/manifest.json": json.dumps({"version": "1.2.3"}),
        "table.txt": "fresh",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "all")
    writes = "open('table.txt', 'w').write('fresh')"
    monkeypatch.setattr(release_check, "GENERATED", {"table.txt": ("-c", writes)})
    monkeypatch.setattr(release_check, "CHECKOUT", tmp_path)
    return tmp_path


def test_one_with_nothing_open_passes(checkout, capsys):
    assert release_check.main([]) == 0
    assert [line[:2] for line in capsys.readouterr().out.splitlines()] == ["ok"] * len(release_check.CHECKS)


@pytest.mark.parametrize(
    ("name", "old", "new", "check", "told"),
    [
        ("pyproject.toml", "1.2.3", "1.2.3.dev0", "version", "MAJOR.MINOR.PATCH"),
        ("clients/python/pyproject.toml", "1.2.3", "1.2.2", "version", "1.2.2, and 1.2.3 is released"),
        ("clients/extension/manifest.json", "1.2.3", "1.2", "version", "manifest.json"),
        ("CHANGELOG.md", " - 2026-12-01", "", "changelog", "no section"),
        ("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n- More.\n", "changelog", "below Unreleased"),
        ("pyproject.toml", "dependencies", "# dependencies", "tree", "pyproject.toml: not committed"),
        ("requirements-lock.txt", "some-thing", "other", "lock", "Some_thing is not pinned"),
    ],
)
def test_what_is_open_is_told(checkout, name, old, new, check, told):
    path = checkout / name
    path.write_text(path.read_text().replace(old, new, 1))
    (problem, *_) = getattr(release_check, check)(checkout)
    assert told in problem


def test_a_generated_file_that_is_not_fresh_and_a_tag_that_exists_are_told(checkout, capsys):
    (checkout / "table.txt").write_text("stale")
    git(checkout, "commit", "-qam", "stale")
    git(checkout, "tag", "v1.2.3")
    assert release_check.main([]) == 3
    said = capsys.readouterr().out
    assert "table.txt: not fresh" in said
    assert "tag v1.2.3" not in said  # it is this commit's
    git(checkout, "commit", "--allow-empty", "-qm", "later")
    (told,) = release_check.version(checkout)
    assert "v1.2.3 is another commit's" in told
    assert (checkout / "table.txt").read_text() == "stale"  # it changes nothing


def test_a_command_that_fails_is_told(checkout, monkeypatch):
    monkeypatch.setattr(release_check, "GENERATED", {"table.txt": ("-c", "raise SystemExit('broken')")})
    (problem,) = release_check.generated(checkout)
    assert "broken" in problem


def test_a_model_that_is_not_the_one_on_its_card_is_told(checkout, monkeypatch):
    monkeypatch.setattr(release_check, "sha256_file", lambda _: "0" * 64)
    assert any("effnet/weights.safetensors" in each for each in release_check.models(checkout))


def test_what_is_said_to_write_files_exists():
    for arguments in release_check.GENERATED.values():
        module = arguments[1] if arguments[0] == "-m" else arguments[1].split()[1]
        import_module(module)


def lines_of_the_workflow():
    """What the workflow calls this command with, by its first option."""
    path = Path(__file__).parents[2] / ".github" / "workflows" / "release.yml"
    commands = [step.get("run", "") for step in yaml.safe_load(path.read_text())["jobs"]["check"]["steps"]]
    found = [re.match(r"python -m scripts\.release_check ([^>]+)", each) for each in commands]
    return {words[0]: words for each in found if each for words in [shlex.split(each[1])]}


def test_the_workflow_checks_its_tag_and_takes_the_notes_of_the_version(checkout, capsys):
    lines = lines_of_the_workflow()
    assert set(lines) == {"--tag", "--notes"}
    git(checkout, "tag", "v1.2.3")
    assert lines["--tag"][1] == "$GITHUB_REF_NAME"
    assert release_check.main(["--tag", "v1.2.3"]) == 0
    assert release_check.main(["--tag", "v1.2.4"]) == 3
    assert "the tag is v1.2.4, and the version's is v1.2.3" in capsys.readouterr().out
    text = "## Unreleased\n\n## 1.2.3 - 2026-12-01\n\n### Added\n- All.\n\n## 1.2.2 - 2026-11-01\n\n- Old.\n"
    (checkout / "CHANGELOG.md").write_text(f"# Changelog\n\n{text}")
    assert release_check.main(lines["--notes"]) == 0
    assert capsys.readouterr().out == "### Added\n- All.\n"
    (checkout / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    assert release_check.main(lines["--notes"]) == 3
