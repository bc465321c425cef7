"""The notebook runs from the first cell to the last, and is kept without outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "exploratory_analysis.ipynb"


def test_it_is_kept_without_outputs():
    code = [each for each in json.loads(NOTEBOOK.read_text())["cells"] if each["cell_type"] == "code"]
    assert code
    assert all(each["outputs"] == [] and each["execution_count"] is None for each in code)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the client's sockets
def test_every_cell_runs(monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="pip install nbclient ipykernel un-skips it")
    pytest.importorskip("ipykernel", reason="pip install nbclient ipykernel un-skips it")
    import nbformat

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(ROOT))
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [each for each in shown if each.output_type == "error"]
    assert sum("text/html" in each.get("data", {}) for each in shown) >= 6  # tables
