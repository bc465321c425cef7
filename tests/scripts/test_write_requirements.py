"""pyproject.toml is where dependencies and commands are written; the requirements files follow it."""

import re
import subprocess
import sys
import tomllib
from importlib import import_module

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts.write_requirements import CHECKOUT, requirements

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def test_the_requirements_files_are_what_pyproject_says():
    for file, text in requirements().items():
        assert (CHECKOUT / file).read_text() == text, "run: python -m scripts.write_requirements"


def test_every_dependency_of_every_extra_is_in_one_requirements_file():
    lines = [line for text in requirements().values() for line in text.splitlines() if line[0] not in "-#"]
    extras = PROJECT["optional-dependencies"].values()
    wanted = [*PROJECT["dependencies"], *(each for extra in extras for each in extra)]
    assert sorted(lines) == sorted(each for each in wanted if not each.startswith("img_ml_verify["))


def test_the_small_requirements_bring_no_pytorch():
    names = {re.split(r"[\[><=;]", each)[0] for each in PROJECT["dependencies"]}
    assert names & {"torch", "torchvision", "timm", "transformers", "open_clip_torch"} == set()
    assert "scikit-learn" in names  # it carries the photograph of --demo


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_every_console_command_is_there_and_helps(name):
    module, function = PROJECT["scripts"][name].split(":")
    assert callable(getattr(import_module(module), function))
    program = f"from {module} import {function} as main; import sys; sys.argv[1:] = ['--help']; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_the_lock_pins_every_dependency_within_its_range_and_with_hashes():
    text = (CHECKOUT / "requirements-lock.txt").read_text()
    entries = re.findall(r"^([\w.-]+)==(\S+)[^\n]*\\\n((?: +--hash=sha256:[0-9a-f]{64}[ \\]*\n)+)", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^[\w.-]+==", text, re.MULTILINE)) > len(PROJECT["dependencies"])
    for each in map(Requirement, PROJECT["dependencies"]):
        versions = [version for name, version, _ in entries if name == canonicalize_name(each.name)]
        assert versions, each
        assert all(version in each.specifier for version in versions), "run the command in the lock's first lines"
