"""The notebook in docs/ runs from top to bottom on a small sweep."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from sweeps import demo

from wattflow.collect.collect import collect

NOTEBOOK = Path(__file__).parent.parent / "docs" / "energy_per_token.ipynb"


# nbclient and the kernel's sockets warn of their own deprecations, which say nothing about the notebook
@pytest.mark.filterwarnings("default")
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Each cell runs, the table has a row for each setting, and two charts come out."""
    sweep = demo(tmp_path / "demo")
    collect(sweep)
    monkeypatch.setenv("WATTFLOW_SWEEP", str(sweep.path))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error"]
    texts = [str(out.get("data", {})) for out in outputs]
    assert sum("vega-lite" in text or "vegalite" in text for text in texts) == 2
    assert any("shape: (4, 6)" in text for text in texts)


def test_the_notebook_is_kept_without_outputs():
    """Outputs are made by running it: none are in the repository."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.get("outputs") for cell in cells)
