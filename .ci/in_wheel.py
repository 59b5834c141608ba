"""What .ci/release asks of the sdist and the wheel: their contents, and every module."""

import importlib
import pkgutil
import re
import sys
import tarfile
import zipfile
from pathlib import Path

EXTRAS = {"flax", "grain", "orbax", "datasets", "filelock", "gguf", "safetensors", "scipy", "tokenizers"}


def contents(archive: str) -> None:
    """Refuse an archive with tests, notebooks or pictures, or without the mark that its types are for users."""
    if archive.endswith(".whl"):
        with zipfile.ZipFile(archive) as wheel:
            names = wheel.namelist()
    else:
        with tarfile.open(archive) as sdist:
            names = [name.partition("/")[2] for name in sdist.getnames()]
    strange = [name for name in names if re.search(r"(^|/)(tests?|notebooks|docs)/|\.(ipynb|png|svg|jpg)$", name)]
    assert not strange, strange
    assert {"fimlens/py.typed", "fimlens/costs/page.html", "fimlens/__init__.py"} <= set(names)


def modules() -> None:
    """Import every public name and every module; only packages of extras may be missing."""
    import fimlens

    assert "site-packages" in fimlens.__file__
    names = re.findall(r"import \w+ as (\w+)", Path(fimlens.__file__).read_text())
    assert len(names) > 100
    assert all(hasattr(fimlens, name) for name in names)
    without = {}
    for found in pkgutil.walk_packages(fimlens.__path__, "fimlens."):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            without[found.name] = error.name.partition(".")[0]
    assert set(without.values()) <= EXTRAS, without
    print(f"{len(names)} names are there; {len(without)} modules need an extra")


if __name__ == "__main__":
    {"contents": contents, "modules": modules}[sys.argv[1]](*sys.argv[2:])
