"""A model in a Hugging Face directory: config.json, *.safetensors and tokenizer.json. Nothing is unpickled."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import DTypeLike, PyTree
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from fimlens.language_model import encoder_files, llama_files, tokenizer
from fimlens.language_model.weights import Stored, assemble

FAMILIES = {name: files for files in (llama_files, encoder_files) for name in files.ARCHITECTURES}
FLOATS = ("F64", "F32", "F16", "BF16")
# What early versions of transformers stored and later ones compute: rotary angles, and the numbers of positions.
COMPUTED = ("rotary_emb.inv_freq", "embeddings.position_ids")


def read(path: Path, tokenizer_file: Path | None, dtype: DTypeLike) -> tuple[Any, PyTree, Tokenizer]:
    """Read a directory; arguments and errors are those of `load`."""
    about = _read_json(path / "config.json")
    files = FAMILIES.get(about.get("model_type"))
    if files is None:
        raise ValueError(
            f"load: {path / 'config.json'} is of the architecture {about.get('model_type')!r}. Supported are "
            f"{' and '.join(llama_files.ARCHITECTURES)}, and the encoders {' and '.join(encoder_files.ARCHITECTURES)}."
        )
    about = files.stated(about)
    for name, value in files.IMPLEMENTED.items():
        if about.get(name, value) != value:
            raise ValueError(f"load: {path / 'config.json'} has {name} = {about[name]!r}, and only {value!r} is implemented.")
    stored = files.own(about, dict(_tensors(path)))
    try:
        config = files.config(about, stored)
    except KeyError as error:
        raise ValueError(f"load: {path / 'config.json'} has no {error}.") from error
    found = tokenizer.read(tokenizer_file or path / "tokenizer.json", config.vocabulary)
    return config, assemble(path, config, files.init, files.names(config), stored, dtype), found


def _tensors(path: Path) -> Iterator[tuple[str, Stored]]:
    """Yield the tensors of all shards by name, none of them read yet."""
    index = path / "model.safetensors.index.json"
    files = sorted(set(_read_json(index).get("weight_map", {}).values())) if index.is_file() else ["model.safetensors"]
    for file in files:
        if not (path / file).is_file():
            raise ValueError(
                f"load: there is no {path / file}. Other formats, such as .bin and .pt, are not read, since unpickling runs "
                "code; save_pretrained(..., safe_serialization=True) of transformers writes safetensors."
            )
        try:
            tensors = safe_open(path / file, framework="np")
        except SafetensorError as error:
            raise ValueError(f"load: {path / file} cannot be read ({error}).") from error
        for name in tensors.keys():  # noqa: SIM118  (it cannot be iterated itself)
            if name.endswith(COMPUTED):
                continue
            about = tensors.get_slice(name)
            if about.get_dtype() not in FLOATS:
                raise ValueError(f"load: {name} in {path / file} is {about.get_dtype()}; weights are {', '.join(FLOATS)}.")
            yield name, Stored(tuple(about.get_shape()), partial(tensors.get_tensor, name))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__} in place of an object")
    except (OSError, ValueError) as error:
        raise ValueError(f"load: {path} cannot be read ({error}).") from error
    return found
