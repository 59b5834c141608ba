"""The layout that docs/design.md draws is the layout of the package."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("house", ROOT / "benchmarks" / "house.py")
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)


def test_no_room_imports_a_room_above_it():
    graph, floor = house.rooms(), house.floors(house.rooms())
    assert {"structure", "structures", "transforms", "derivations"} <= graph.keys()
    assert all(floor[name] > floor[other] for name, below in graph.items() for other in below)


def test_a_cycle_is_found():
    graph = {**house.rooms(), "linalg": frozenset({"optimizers"})}
    with pytest.raises(CycleError):
        house.floors(graph)


def test_imports_inside_functions_and_of_submodules_count(tmp_path):
    modules = dict.fromkeys(("fimlens", "fimlens.lens", "fimlens.lens.check", "fimlens.structures"))
    (tmp_path / "a.py").write_text(
        "from fimlens.lens import check\ndef f():\n    import fimlens.structures\n    from fimlens import lens, gap\n"
    )
    found = {"fimlens.lens.check", "fimlens.structures", "fimlens.lens", "fimlens"}
    assert set(house.imported(tmp_path / "a.py", modules)) == found


def test_no_file_is_over_250_lines():
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in house.sources().values()}
    assert not {name: count for name, count in lines.items() if count > 250}


def test_every_package_is_installed():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(packages) == sorted(name for name, path in house.sources().items() if path.name == "__init__.py")


def test_every_room_has_its_sentence_on_the_page():
    assert house.listed() in house.PAGE.read_text(), "run python benchmarks/house.py"


def test_the_protocol_on_the_page_is_that_of_the_class():
    tree = ast.parse((ROOT / "fimlens" / "structure.py").read_text())
    table = house.PAGE.read_text().split("| group | members |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == house.members([tree], "Structure")


def test_the_picture_shows_the_imports_of_today():
    assert Image.open(house.PICTURE).text["Description"] == house.described(), "run python benchmarks/house.py"


def test_every_new_name_in_the_changelog_is_there():
    tables = (ROOT / "CHANGELOG.md").read_text().split("### Old and new names")[1]
    new = [row.split(" | ")[1] for row in tables.split("\n") if row.startswith("| `")]
    paths = [path for cell in new for path in re.findall(r"`([\w./]+(?:\.py|/))`", cell)]
    assert len(paths) > 40
    assert not [path for path in paths if not (ROOT / "fimlens" / path).exists()]


def test_importing_computes_nothing():
    """JAX starts at its first computation, and several hosts must be joined before that."""
    check = "import fimlens.cli.app; from jax._src import xla_bridge; assert not xla_bridge._backends"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_importing_loads_no_package_that_few_calls_need():
    """`scipy.stats` alone would double the time of `import fimlens`, and `matplotlib` adds half."""
    check = "import sys, fimlens; print(*{'scipy.stats', 'matplotlib', 'flax', 'orbax'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True)
    assert not found.stdout.split()
