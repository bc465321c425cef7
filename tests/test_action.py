"""The action and the hook judge a repository's images: action.yml and .pre-commit-hooks.yaml, run as they stand."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image, PngImagePlugin

import img_ml_verify as cli
from ingress.sources import IMAGE_SUFFIXES

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
DEFAULTS = {name: given["default"] for name, given in ACTION["inputs"].items()}
STEPS = {step.get("name"): step for step in ACTION["runs"]["steps"]}
GUIDE = (ROOT / "docs" / "guide.md").read_text()
WORKFLOW, HOOKS = map(yaml.safe_load, re.findall(r"^```yaml[^\n]*\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
needs_git = pytest.mark.skipif(shutil.which("git") is None or os.name == "nt", reason="needs git and bash")


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """A photograph on main, and a pull request with a picture that a generator marked, merged as GitHub does."""
    folder = tmp_path / "a repository"
    (folder / "docs").mkdir(parents=True)
    with Image.open(cli.demo_photograph()) as image:
        image.crop((0, 0, 160, 120)).save(folder / "docs" / "photo.JPG", "JPEG")
        (folder / "text.md").write_text("no image")
        git(folder, "init", "-q")
        git(folder, "add", ".")
        git(folder, "commit", "-qm", "a photograph")
        git(folder, "checkout", "-qb", "change")
        mark = PngImagePlugin.PngInfo()
        mark.add_text(
            "parameters", "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64, Model: sd15"
        )
        image.crop((160, 0, 320, 120)).save(folder / "docs" / "a cat.png", pnginfo=mark)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "a cat")
    git(folder, "checkout", "-q", "main")
    git(folder, "merge", "-q", "--no-ff", "-m", "merge", "change")
    (folder / "not added.png").write_text("of no commit")
    return folder


def step(name, folder, event="pull_request", **inputs):
    """Run a step of the action as GitHub does, with an installation that is this interpreter."""
    given = DEFAULTS | inputs
    temporary = folder.parent / "runner"
    python = temporary / "img_ml_verify" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    environment = {
        variable: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], text)
        for variable, text in STEPS[name]["env"].items()
    }
    environment |= {"GITHUB_EVENT_NAME": event, "GITHUB_ACTION_PATH": str(ROOT), "RUNNER_TEMP": str(temporary)}
    script = folder.parent / "script.sh"
    script.write_text(STEPS[name]["run"])
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", script],
        cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip


def test_every_input_is_described_has_a_default_and_reaches_its_step():
    assert set(DEFAULTS) == {"paths", "fail-on", "profile", "only-changed"}
    assert all(given["description"].endswith(".") for given in ACTION["inputs"].values())
    used = re.findall(r"inputs\.([\w-]+)", " ".join(STEPS["Judge"]["env"].values()))
    assert sorted(used) == sorted(DEFAULTS)
    for name, each in STEPS.items():
        assert "${{" not in each.get("run", ""), f"{name}: a value in a script could be a command"
        assert "uses" in each or each["shell"] == "bash"


def test_action_and_hook_fail_on_the_same_tiers_and_know_the_same_images():
    assert HOOK["args"] == ["--fail-on", DEFAULTS["fail-on"]]
    assert cli.parse([*HOOK["args"], "x.jpg"]).fail_on == {"ai", "likely_ai"}
    suffixes = sorted(each.removeprefix(".") for each in IMAGE_SUFFIXES)
    for text in (STEPS["Judge"]["run"], HOOK["files"]):
        listed = re.search(r"\\\.\(([\w|]+)\)\$", text)
        assert listed and sorted(listed[1].split("|")) == suffixes


def test_the_hook_calls_a_command_that_the_package_installs():
    command, *options = HOOK["entry"].split()
    assert command in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert options == ["--summary"]
    assert HOOK["language"] == "python"
    assert re.search(HOOK["files"], "a/B.JPEG") and not re.search(HOOK["files"], "a.svg")


def test_the_hook_fails_on_what_it_is_given(capsys, repository, monkeypatch):
    monkeypatch.chdir(repository)
    words = [*HOOK["entry"].split()[1:], *HOOK["args"], "--profile", "light"]
    assert cli.main([*words, "docs/photo.JPG"]) == 0
    assert cli.main([*words, "docs/photo.JPG", "docs/a cat.png"]) == 5
    assert "docs/a cat.png (by provenance)" in capsys.readouterr().out


@needs_git
def test_the_installation_is_the_pinned_one(repository, monkeypatch):
    pip = repository.parent / "pip"
    pip.write_text('#!/bin/sh\necho "$@"\n')
    pip.chmod(0o755)
    venv = repository.parent / "venv.sh"
    venv.write_text(f'#!/bin/sh\nmkdir -p "$3/bin" && cp {shlex.quote(str(pip))} "$3/bin/pip"\n')
    venv.chmod(0o755)
    monkeypatch.setitem(STEPS["Install"], "env", {"PYTHON": str(venv)})
    done = step("Install", repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "install"
    assert done.stdout.split()[-3:-1] == ["--require-hashes", "-r"]
    assert Path(done.stdout.split()[-1]) == ROOT / "requirements-lock.txt"


@needs_git
def test_of_a_pull_request_the_images_that_it_changes_are_judged(repository):
    done = step("Judge", repository, **WORKFLOW["jobs"]["images"]["steps"][1]["with"])
    assert done.returncode == 5, done.stderr
    assert "./docs/a cat.png (by provenance)" in done.stdout
    assert re.findall(r"^ +(\d+)  ", done.stdout, re.MULTILINE)[:5] == ["0", "1", "0", "0", "0"]


@needs_git
@pytest.mark.parametrize("inputs", [{"event": "push"}, {"only-changed": "false"}])
def test_otherwise_every_image_of_the_repository_is_judged(repository, inputs):
    done = step("Judge", repository, profile="light", **inputs | {"fail-on": ""})
    assert done.returncode == 0, done.stderr
    assert "not added.png" not in done.stdout
    assert sum(map(int, re.findall(r"^ +(\d+)  ", done.stdout, re.MULTILINE))) == 2


@needs_git
def test_paths_are_patterns_of_git(repository):
    done = step("Judge", repository, paths="docs\n:!docs/*.png\n")
    assert (done.returncode, done.stdout) == (0, "No image to judge.\n")


@needs_git
def test_a_checkout_without_the_parents_of_the_merge_is_told_what_to_do(repository):
    clone = repository.parent / "shallow"
    git(repository, "clone", "-q", "--depth=1", repository.as_uri(), str(clone))
    done = step("Judge", clone)
    assert done.returncode == 2
    assert "fetch-depth: 2" in done.stdout
    deep = repository.parent / "deep"
    git(repository, "clone", "-q", "--depth=2", repository.as_uri(), str(deep))
    assert step("Judge", deep, paths="text.md").returncode == 0


@needs_git
def test_what_git_does_not_understand_fails_the_step(repository):
    assert step("Judge", repository, paths=":(nonsense)x").returncode == 128


def test_the_guide_shows_the_inputs_and_the_hook_that_there_are():
    checkout, action = WORKFLOW["jobs"]["images"]["steps"]
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert checkout["with"]["fetch-depth"] == 2
    assert action["with"].keys() <= DEFAULTS.keys()
    (hook,) = HOOKS["repos"][0]["hooks"]
    assert hook["id"] == HOOK["id"]
    cli.parse([*hook["args"], "x.jpg"])
