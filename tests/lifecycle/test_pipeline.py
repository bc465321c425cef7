"""dvc.yaml and params.yaml name what lifecycle.retrain has."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml

from lifecycle.gate import Bounds
from lifecycle.retrain import STEPS, Params

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())


def test_every_choice_is_in_the_file_of_parameters_and_no_other() -> None:
    assert set(PARAMS) == {field.name for field in fields(Params)}
    assert set(PARAMS["gate"]) == set(Bounds.__slots__)
    assert Bounds(**PARAMS["gate"]) == Bounds()


def test_each_stage_runs_its_step_and_gives_its_output() -> None:
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m lifecycle.retrain {name} --run ${{run}}"
        step = STEPS[name]
        assert stage["outs"][0] == f"${{run}}/{step.output}"
        assert stage["outs"][-1] == f"${{run}}/made_from/{name}.txt"
        assert stage.get("params", []) == list(step.params)
        assert ("${dataset}" in stage["deps"]) == step.data
        assert {f"${{run}}/{STEPS[each].output}" for each in step.after} == set(stage["deps"]) - {"${dataset}"}


def test_a_stage_depends_on_what_the_steps_before_it_made() -> None:
    made = {"${dataset}"}
    for stage in STAGES.values():
        assert set(stage["deps"]) <= made
        made |= set(stage["outs"])
