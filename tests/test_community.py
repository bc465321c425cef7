"""The files for contributors name what exists: commands, forms, and lists that CI and the Makefile share."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_every_target_of_the_makefile_is_told_to_contributors_and_every_file_in_it_exists():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert targets
    assert set(targets[1].split()) == set(re.findall(r"^([\w-]+):$", text, re.MULTILINE))
    for path in re.findall(r"\b(?:tests|docs)/[\w/.]+", text):
        assert (ROOT / path).exists(), path
    named = re.findall(r"make ([\w-]+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert {"setup", "test-fast", "test", "lint"} <= set(named) <= set(targets[1].split())


def test_the_fast_tests_leave_out_what_is_marked_slow():
    recipe = re.search(r"^test-fast:\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    assert '-m "not slow"' in recipe[1]


def test_issue_forms_are_forms():
    assert {path.stem for path in FORMS} == {"bug", "misjudged"}
    for path in FORMS:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        for field in form["body"]:
            assert field["type"] in ("markdown", "input", "textarea", "dropdown", "checkboxes")
            assert field["type"] == "markdown" or field["id"]
            if field["type"] == "dropdown":
                assert len(set(field["attributes"]["options"])) == len(field["attributes"]["options"]) > 1


def test_the_form_that_security_and_contributing_name_is_there():
    name = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "misjudged.yml").read_text())["name"]
    for page in ("CONTRIBUTING.md", "SECURITY.md", "docs/verdict.md"):
        assert f'"{name}"' in " ".join((ROOT / page).read_text().split()), page


def test_workflows_use_no_more_rights_than_they_need_and_name_files_that_exist():
    writes = {}
    for path in WORKFLOWS:
        flow = yaml.safe_load(path.read_text())
        assert flow["permissions"] == {"contents": "read"}
        for name, job in flow["jobs"].items():
            assert job["timeout-minutes"] > 0
            rights = job.get("permissions", {})
            assert set(rights.values()) <= {"read", "write"}
            writes[path.stem, name] = {right for right, given in rights.items() if given == "write"}
            for step in job["steps"]:
                for file in re.findall(
                    r"\b(?:requirements[\w-]*\.txt|deploy/\w+(?:\.yaml)?|\.ci/run)", step.get("run", "")
                ):
                    assert (ROOT / file).exists(), file
    signs = {"id-token", "attestations"}
    assert {job: rights for job, rights in writes.items() if rights} == {
        ("release", "package"): signs,
        ("release", "container"): {*signs, "packages"},
        ("release", "release"): {"contents"},
    }


def steps():
    """Of every job of every workflow, and of the action, with its file's name."""
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            yield from ((path.name, step) for step in job["steps"])
    yield from (("action.yml", step) for step in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"])


def test_every_foreign_action_is_githubs_own_and_pinned_and_every_script_is_one_of_bash():
    for name, step in steps():
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@(v\d+(\.\d+)*|[0-9a-f]{40})", step["uses"]), (name, step["uses"])
        elif shutil.which("bash"):
            done = subprocess.run(["bash", "-n"], input=step["run"], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), (name, step["run"])


def test_a_checkout_leaves_no_token_behind():
    checkouts = [step for _, step in steps() if "/checkout@" in step.get("uses", "")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_a_release_names_images_of_the_dockerfile_and_waits_for_all_that_it_names():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for each in jobs["container"]["strategy"]["matrix"]["include"]:
        assert f" AS {each['target']}\n" in dockerfile
        assert f"image: {each['image']}:" in (ROOT / "deploy" / "kubernetes.yaml").read_text()
    assert jobs["package"]["needs"] == jobs["container"]["needs"] == "check"
    assert set(jobs["release"]["needs"]) == {"package", "container"}
    kept = {
        step["with"]["name"]: step["with"]["path"]
        for name in ("check", "package")
        for step in jobs[name]["steps"]
        if "upload-artifact" in step.get("uses", "")
    }
    assert kept == {"notes": "notes.md", "packages": "dist/"}
    assert "--notes-file release/notes.md" in jobs["release"]["steps"][-1]["run"]


def test_what_ci_installs_before_the_tests_goes_into_their_environment():
    """Into another interpreter's it would be in vain: torch with CUDA would be downloaded after all."""
    assert "python3 -m venv .venv" in (ROOT / ".ci" / "run").read_text()
    for path in WORKFLOWS:
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            commands = [step.get("run", "") for step in job["steps"]]
            if any(".ci/run" in each for each in commands):
                installs = [each for each in commands if "pip install" in each]
                assert all(each.startswith(".venv/bin/pip ") for each in installs), installs


def test_ci_covers_the_pythons_that_the_package_promises():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    versions = flow["jobs"]["embedded"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={versions[0]}"


def test_hooks_run_the_tools_of_the_requirements():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]  # one version of each tool, nothing fetched
    developers = (ROOT / "requirements-dev.txt").read_text()
    for hook in config["repos"][0]["hooks"]:
        tool = hook["entry"].split()[0]
        assert tool == "python" or f"\n{tool}" in developers
