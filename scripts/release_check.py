"""Whether this checkout may be released: python -m scripts.release_check

Looks, and changes nothing. What it finds is told line by line, with what to do.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fusion.meta_model import FusionModel
from models.loaders import SHIPPED, cards
from utils.errors import VerifyError
from utils.exits import Exit, command, command_parser
from utils.persistence import sha256_file

CHECKOUT = Path(__file__).resolve().parents[1]
# What is written by a command -> the command; run in a copy, nothing may change.
GENERATED: Mapping[str, Sequence[str]] = {
    "requirements*.txt": ("-m", "scripts.write_requirements"),
    "the clients' types": ("-m", "scripts.write_clients"),
    "docs/signals.md": ("-c", "from scripts.signals_table import table; open('docs/signals.md', 'w').write(table())"),
}


def version_of(root: Path) -> str:
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])


def sections_of(root: Path) -> dict[str, str]:
    """The text of each section of the changelog by its title, such as ``1.0.0 - 2026-12-01``."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))


def notes(root: Path) -> str:
    """What the changelog says of this version; empty: nothing."""
    texts = [text for title, text in sections_of(root).items() if title.split()[0] == version_of(root)]
    return "".join(texts).strip()


def version(root: Path) -> Iterator[str]:
    """A final one, the same wherever it stands."""
    found = version_of(root)
    if not re.fullmatch(r"\d+\.\d+\.\d+", found):
        yield f"pyproject.toml: version {found} is none of a release; give MAJOR.MINOR.PATCH"
    python = version_of(root / "clients" / "python")
    others = {"clients/python/pyproject.toml": python}
    for name in ("clients/typescript/package.json", "clients/extension/manifest.json"):
        others[name] = json.loads((root / name).read_text())["version"]
    yield from (f"{name}: version {other}, and {found} is released" for name, other in others.items() if other != found)
    tag = ("tag", "--list", f"v{found}")
    if _git(root, *tag) != _git(root, *tag, "--points-at=HEAD"):
        yield f"the tag v{found} is another commit's; a release is never changed"


def changelog(root: Path) -> Iterator[str]:
    """A section of this version with its day, and nothing that waits."""
    sections, found = sections_of(root), version_of(root)
    if not any(re.fullmatch(rf"{re.escape(found)} - \d{{4}}-\d\d-\d\d", title) for title in sections):
        yield f"CHANGELOG.md: no section '## {found} - YYYY-MM-DD'"
    if re.search(r"^- ", sections.get("Unreleased", ""), re.MULTILINE):
        yield "CHANGELOG.md: lines stand below Unreleased; move them to this version"


def tree(root: Path) -> Iterator[str]:
    """Everything is committed."""
    for line in _git(root, "status", "--porcelain").splitlines():
        yield f"{line[3:]}: not committed"


def generated(root: Path) -> Iterator[str]:
    """What commands write is what they would write."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        _run(root, "git", "clone", "--quiet", "--no-hardlinks", str(root), str(copy))
        for name, arguments in GENERATED.items():
            try:
                _run(copy, sys.executable, *arguments)
            except subprocess.CalledProcessError as error:
                yield f"{name}: python {' '.join(arguments)} fails: {error.stderr.strip().splitlines()[-1:]}"
                continue
            if changed := _git(copy, "status", "--porcelain").split():
                yield f"{name}: not fresh ({changed[-1]}); run python {' '.join(arguments)}"
                _git(copy, "checkout", "--quiet", ".")


def models(_: Path) -> Iterator[str]:
    """Every file of a model that is shipped is the one on its card, and every fusion artifact loads."""
    for card in cards().values():
        path = SHIPPED / card.file if card.file else SHIPPED
        if path.is_file() and sha256_file(path) != card.sha256:
            yield f"{card.file}: not the file on its card (sha256 differs)"
    for manifest in sorted(SHIPPED.glob("*/manifest.json")):
        try:
            FusionModel.load(manifest.parent)
        except VerifyError as error:
            yield f"{manifest.parent.name}: {error.message}"


def lock(root: Path) -> Iterator[str]:
    """Every dependency is pinned."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    pinned = set(re.findall(r"^([\w.-]+)==", (root / "requirements-lock.txt").read_text(), re.MULTILINE))
    for wanted in project["dependencies"]:
        name = re.split(r"[\[<>=;]", wanted)[0]
        if re.sub(r"[-_.]+", "-", name).lower() not in pinned:
            yield f"requirements-lock.txt: {name} is not pinned; its first lines have the command"


CHECKS: tuple[Callable[[Path], Iterator[str]], ...] = (version, changelog, tree, lock, models, generated)


def _git(root: Path, *arguments: str) -> str:
    return _run(root, "git", *arguments)


def _run(folder: Path, *words: str) -> str:
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True, timeout=300).stdout  # noqa: S603 - our own commands


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m scripts.release_check", __doc__)
    parser.add_argument("--tag", help="the tag that is released: it must be that of the version")
    parser.add_argument("--notes", action="store_true", help="only print what the changelog says of this version")
    args = parser.parse_args(argv)
    expected = f"v{version_of(CHECKOUT)}"
    if args.tag not in (None, expected):
        print(f"no  the tag is {args.tag}, and the version's is {expected}")
        return Exit.FAILED
    if args.notes:
        print(text := notes(CHECKOUT))
        return Exit.DONE if text else Exit.FAILED
    status = Exit.DONE
    for check in CHECKS:
        problems = list(check(CHECKOUT))
        print(f"{'no' if problems else 'ok'}  {check.__name__}: {(check.__doc__ or '').strip()}")
        for problem in problems:
            print(f"      {problem}")
            status = Exit.FAILED
    return status


if __name__ == "__main__":
    sys.exit(main())
