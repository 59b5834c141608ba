"""The rooms of the package: what each imports, as a picture; and the package's sizes beside those of other libraries.

    python benchmarks/house.py                                           # write docs/rooms.png and its table in docs/design.md
    python benchmarks/house.py --beside lineax optimistix optax matfree  # print a Markdown table

A room is a subpackage, or a module at the top of the package. Its floor is the longest path of imports below it, so that
every import goes down. A cycle between rooms has no floors and raises an error. Imports inside functions count too. Every
number is read from source files with `ast` and `tokenize`: no library is imported.
"""

import argparse
import ast
import importlib.metadata
import importlib.util
import io
import json
import re
import statistics
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fimlens.plotting import BASIS, sheet

ROOT = Path(__file__).parent.parent
PICTURE, PAGE = ROOT / "docs" / "rooms.png", ROOT / "docs" / "design.md"
PROTOCOL = {
    "fimlens": "Structure",
    "lineax": "AbstractLinearOperator",
    "optimistix": "AbstractIterativeSolver",
    "optax": "GradientTransformation",
}
TEST = re.compile(r"(^|/)test_|_test\.py$")
PRAGMA = re.compile(r"#\s*(type:|noqa|pylint|pyright|pragma|fmt:)")

Rooms = Mapping[str, frozenset[str]]  # a room, and the rooms that it imports


def sources() -> dict[str, Path]:
    """Return the file of each module of fimlens, by its dotted name; derivations/ is the package fimlens.derivations."""
    files = {path: path.relative_to(ROOT) for path in (ROOT / "fimlens").rglob("*.py")}
    files |= {path: "fimlens" / path.relative_to(ROOT) for path in (ROOT / "derivations").rglob("*.py")}
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for path, name in files.items()}


def room(module: str) -> str:
    """Return the room of a module: the first name below the package, or the package for its `__init__`."""
    return module.split(".")[1] if "." in module else module


def imported(path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of fimlens that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names)


def rooms() -> Rooms:
    """Return each room with the other rooms that it imports."""
    modules = sources()
    found = {room(module): set() for module in modules}
    for module, path in modules.items():
        found[room(module)] |= {room(name) for name in imported(path, modules)} - {room(module)}
    return {name: frozenset(below) for name, below in found.items()}


def floors(graph: Rooms) -> dict[str, int]:
    """Return the floor of each room, 0 for one that imports none.

    Raises:
        graphlib.CycleError: rooms import each other; its second argument lists them.
    """
    floor = {}
    for name in TopologicalSorter(graph).static_order():
        floor[name] = max((floor[below] + 1 for below in graph[name]), default=0)
    return floor


def needed(graph: Rooms) -> Rooms:
    """Return the imports that no path through another room implies: those that the picture shows."""
    reached = {}
    for name in TopologicalSorter(graph).static_order():
        reached[name] = graph[name].union(*(reached[below] for below in graph[name]))
    return {name: below.difference(*(reached[other] for other in below)) for name, below in graph.items()}


def sentence(name: str) -> str:
    """Return the first line of a room's docstring."""
    path = sources()["fimlens" if name == "fimlens" else f"fimlens.{name}"]
    return ast.get_docstring(ast.parse(path.read_text())).split("\n")[0]


def listed() -> str:
    """Return the rooms and their sentences as a Markdown table, the highest floor first."""
    floor = floors(rooms())
    rows = [f"| {floor[name]} | `{label(name)}` | {sentence(name)} |" for name in from_below(floor)[::-1]]
    return "\n".join(["| floor | room | what it is for |", "|---|---|---|", *rows])


def label(name: str) -> str:
    """Return the path of a room: a folder, or a file at the top of the package."""
    return "__init__.py" if name == "fimlens" else name + (".py" if sources()[f"fimlens.{name}"].stem == name else "/")


def from_below(floor: Mapping[str, int]) -> list[str]:
    """Return the rooms from the lowest floor to the highest."""
    return sorted(floor, key=lambda name: (floor[name], name))


def drawn() -> Figure:
    """Draw one line a room, the highest floor on top, and an arc from each room down to those that it imports."""
    graph = rooms()
    floor = floors(graph)
    ordered = from_below(floor)
    place = {name: y for y, name in enumerate(ordered)}
    figure = sheet(width=4.5, height=0.27 * len(ordered))
    axes = figure.axes[0]
    for name, y in place.items():
        axes.axhspan(y - 0.5, y + 0.5, color=BASIS, alpha=0.08 * (floor[name] % 2), linewidth=0)
        axes.text(0.3, y, label(name), va="center", fontsize=9)
    for level in set(floor.values()):
        places = [place[name] for name in ordered if floor[name] == level]
        axes.text(5.5, statistics.fmean(places), f"floor {level}", ha="right", va="center", fontsize=8, color="0.4")
    angle = np.linspace(-np.pi / 2, np.pi / 2)
    for name, below in sorted(needed(graph).items()):
        for other in sorted(below):
            middle, radius = (place[name] + place[other]) / 2, (place[name] - place[other]) / 2
            axes.plot(-0.3 * radius * np.cos(angle), middle + radius * np.sin(angle), color=BASIS, linewidth=0.9)
    axes.plot(np.zeros(len(ordered)), list(place.values()), "o", color=BASIS, markersize=4)
    axes.set(xlim=(-3.2, 5.6), ylim=(-0.5, len(ordered) - 0.5))
    axes.axis("off")
    return figure


def write() -> None:
    """Write docs/rooms.png and the table below it in docs/design.md.

    The picture holds the imports that it shows as text too, so that a test sees when they have changed.
    """
    drawn().savefig(PICTURE, metadata={"Description": described()})
    PAGE.write_text(re.sub(r"(?s)\| floor \|.*?(?=\n\n)", lambda _: listed(), PAGE.read_text()))


def described() -> str:
    """Return the imports that the picture shows as one text."""
    return json.dumps({name: sorted(below) for name, below in sorted(needed(rooms()).items())})


def measures(package: str) -> dict[str, str]:
    """Return the sizes of an installed package; its tests are left out."""
    home = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    files = [path for path in home.rglob("*.py") if not TEST.search(str(path.relative_to(home)))]
    subpackages = {path.relative_to(home).parts[0] for path in files if path.parent != home}
    if package == "fimlens":
        files += (ROOT / "derivations").glob("*.py")
        subpackages.add("derivations")
    texts = {path: path.read_text() for path in files}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lengths = sorted(length(node) for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    comments, code = map(sum, zip(*map(comments_and_code, texts.values()), strict=True))
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    largest = max(lines, key=lines.get)
    core = PROTOCOL.get(package)
    return {
        "version": importlib.metadata.version(package),
        "files / lines": f"{len(files)} / {sum(lines.values()):,}",
        "modules at the top level": str(sum(path.parent == home for path in files)),
        "subpackages": str(len(subpackages)),
        "function length, median / p90": f"{statistics.median(lengths):.0f} / {lengths[int(0.9 * len(lengths))]}",
        "largest file": f"{lines[largest]:,} (`{largest.name}`)",
        "public names at the root": str(len(public(trees[home / "__init__.py"]))),
        "members of the core protocol": f"{len(members(trees.values(), core))} (`{core}`)" if core else "functions alone",
        "comments per 100 lines of code": f"{100 * comments / code:.1f}",
    }


def docstring(node: ast.AST) -> ast.Expr | None:
    """Return the statement that is the docstring of a module, a class or a function."""
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) or not ast.get_docstring(node):
        return None
    return node.body[0]


def length(function: ast.FunctionDef) -> int:
    """Return the lines of a function from `def` to its end, docstring excluded."""
    text = docstring(function)
    return function.end_lineno - function.lineno + 1 - (text.end_lineno - text.lineno + 1 if text else 0)


def comments_and_code(source: str) -> tuple[int, int]:
    """Return how many comments explain, and how many lines hold code: no blank line, comment or docstring.

    A licence above the first line of code explains nothing, nor does a word to a linter.
    """
    comments, lines = 0, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += bool(lines) and not PRAGMA.match(token.string)
        elif token.string.strip():
            lines |= set(range(token.start[0], token.end[0] + 1))
    texts = filter(None, map(docstring, ast.walk(ast.parse(source))))
    return comments, len(lines.difference(*(range(text.lineno, text.end_lineno + 1) for text in texts)))


def public(root: ast.Module) -> set[str]:
    """Return the names that `__init__` imports or defines, those with an underscore and subpackages left out."""
    names = set()
    for node in root.body:
        if isinstance(node, ast.ImportFrom) and (node.module or not node.level):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def members(trees: Iterable[ast.Module], name: str) -> set[str]:
    """Return the public methods and fields that the body of a class has; operators such as `__add__` are left out."""
    body = next(node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    names |= {node.target.id for node in body if isinstance(node, ast.AnnAssign)}
    return {each for each in names if not each.startswith("_")}


def table(packages: Sequence[str]) -> str:
    """Return the sizes of packages as a Markdown table, one column a package."""
    columns = [measures(package) for package in packages]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    lines = [f"| {' | '.join(row)} |" for row in [["", *packages], *rows]]
    return "\n".join([lines[0], "|---" * (len(packages) + 1) + "|", *lines[1:]])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", nargs="+", metavar="PACKAGE", help="installed packages whose sizes stand beside fimlens's")
    beside = parser.parse_args().beside
    if beside:
        print(table(["fimlens", *beside]))
    else:
        write()
