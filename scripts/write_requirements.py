"""Write the requirements files from pyproject.toml: python -m scripts.write_requirements"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from utils.exits import Exit, command, command_parser

CHECKOUT = Path(__file__).resolve().parents[1]
FILES = {  # name -> the file that it goes on from, the extras that it adds; without extras: the dependencies
    "requirements-embedded.txt": ("", ()),
    "requirements.txt": ("requirements-embedded.txt", ("full", "train")),
    "requirements-lifecycle.txt": ("requirements.txt", ("lifecycle", "cloud")),
    "requirements-dev.txt": ("requirements-lifecycle.txt", ("heic", "docs", "dev")),
}


def requirements() -> dict[str, str]:
    """The text of every requirements file, by its name."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    texts = {}
    for file, (before, extras) in FILES.items():
        groups = [project["optional-dependencies"][each] for each in extras] or [project["dependencies"]]
        ours = f"{project['name']}["  # an extra that includes another; here its file does
        wanted = [each for group in groups for each in group if not each.startswith(ours)]
        head = ["# Written from pyproject.toml, which says what each is for: python -m scripts.write_requirements"]
        texts[file] = "\n".join([*head, *([f"-r {before}"] if before else []), *wanted, ""])
    return texts


@command
def main(argv: Sequence[str] | None = None) -> int:
    command_parser("python -m scripts.write_requirements", __doc__).parse_args(argv)
    for file, text in requirements().items():
        (CHECKOUT / file).write_text(text)
        print(f"wrote {file}: {text.count(chr(10)) - 1} lines")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
