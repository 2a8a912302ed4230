# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""The notebook: it runs, and is small and whole as it is stored."""

import json

import pytest
from documents import ROOT, read


NOTEBOOK = ROOT / "recipes" / "quickstart.ipynb"


@pytest.fixture
def cells():
    return [cell for cell in json.loads(read(NOTEBOOK))["cells"] if cell["cell_type"] == "code"]


def test_the_stored_notebook_is_small_and_has_run_in_order(cells):
    assert NOTEBOOK.stat().st_size < 400_000
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert all(output["output_type"] != "error" and output.get("name") != "stderr" for output in outputs)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the extra 'slow' installs nbformat")
    nbclient = pytest.importorskip("nbclient", reason="the extra 'slow' installs nbclient")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    [right] = [text for text in printed if "of the pixels" in text]
    assert float(right.partition("%")[0]) > 95  # background alone is about 85 %
