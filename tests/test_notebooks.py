"""Each notebook is in step with the script that it is made from, and is stored without outputs. `make notebooks` runs them."""

from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
PAIRS = {path.stem for path in NOTEBOOKS.iterdir() if path.suffix in (".py", ".ipynb")}


def test_there_are_some():
    assert PAIRS


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_it_is_in_step_with_its_script(name):
    import jupytext  # 5 s to import, which not every worker needs to pay

    notebook, script = (jupytext.read(NOTEBOOKS / f"{name}.{ending}") for ending in ("ipynb", "py"))
    told, written = ([(cell.cell_type, cell.source) for cell in pair.cells] for pair in (notebook, script))
    assert told == written, f"run: jupytext --sync notebooks/{name}.py"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
