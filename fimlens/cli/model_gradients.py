"""fimlens lens --model: write the gradients of a trained language model, one a window of text, for the estimates."""

from collections.abc import Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32
from rich.filesize import decimal

from fimlens.cli.arguments import errors, long_progress
from fimlens.language_model import llama
from fimlens.language_model.pretrained import Pretrained, load
from fimlens.language_model.text import files_of, standard_library
from fimlens.language_model.windows import TooShort, token_windows
from fimlens.models.matrices import select_matrices
from fimlens.models.write_gradients import write_gradients


def write_model_gradients(
    path: Path, texts: Sequence[Path] | None, *, patterns: list[str], samples: int, length: int, out: Path
) -> Path:
    """Write gradients of a language model, one a window of tokens, and return their directory, a new one in `out`.

    Args:
        path: of the model, as `fimlens.language_model.pretrained.load` takes it.
        texts: files, or directories of files. Each file is a document: a sampling unit. Default: Python's standard library.
        patterns: which matrices, such as "layers/2/*".
        samples: the number of windows.
        length: tokens in a window.
        out: where the directory is made. A second run continues there.

    Raises:
        ValueError: the model cannot be loaded, no matrix has such a name, or the texts have too few windows.
    """
    model = load(path)
    files = standard_library() if texts is None else [file for text in texts for file in files_of(text)]
    leaves, directory = select_matrices("lens", model.params, patterns).leaves, out / "gradients"
    size = decimal(4 * samples * sum(leaf.size for leaf in leaves.values()))  # files have float32
    errors.print(f"{len(leaves)} matrices, {samples} gradients of each: {size} in {directory}.")
    windows, documents = choose_windows(model, files, samples, length)
    kind = f"{path.name}, one window of {length} tokens"
    with long_progress() as bar:
        task = bar.add_task("gradients, one a window", total=samples)
        write_gradients(
            partial(llama.loss, model.config),
            model.params,
            [windows],
            directory,
            matrices=patterns,
            units=documents,
            kind=kind,
            progress=lambda done, count: bar.update(task, completed=done),
        )
    return directory


def choose_windows(
    model: Pretrained, files: Sequence[Path], samples: int, length: int
) -> tuple[Int32[np.ndarray, "samples length"], Int[np.ndarray, " samples"]]:
    """Return windows and the document of each: of every document the first window, then of each the second, and so on."""
    of_each = []
    for document, file in enumerate(files):
        try:
            windows = token_windows(model, file.read_text(encoding="utf-8", errors="replace"), length=length)
        except TooShort:
            continue
        of_each.append([(window, document) for window in windows[:samples]])
        if len(of_each) >= samples:
            break  # a window of each is enough
    found = [pair for pair in chain.from_iterable(zip_longest(*of_each)) if pair is not None][:samples]
    if len(found) < samples:
        raise ValueError(
            f"--text: there are {len(found)} windows of {length} tokens, and --samples asks for {samples}. Give more text."
        )
    windows, documents = zip(*found, strict=True)
    return np.stack(windows), np.array(documents)
