"""The tokenizer of a model: from a tokenizer.json, or from the metadata of a GGUF file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# How GGUF's kinds of byte-level tokenizer cut a text before they merge. `gpt-2` keeps numbers whole.
CUTS = {
    "gpt-2": (),
    "smollm": (pre_tokenizers.Digits(individual_digits=True),),
}
CONTROL, USER_DEFINED = 3, 4  # kinds of token in GGUF that stand for themselves and are never merged


def read(path: Path, vocabulary: int) -> Tokenizer:
    """Read a tokenizer.json.

    Args:
        path: the file.
        vocabulary: number of tokens of the model.

    Raises:
        ValueError: the file cannot be read, or it has tokens beyond the vocabulary.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises no narrower class
        raise ValueError(f"load: tokenizer {path} cannot be read ({error}). Give the path of a tokenizer.json.") from error
    # A tokenizer.json may store truncation and padding for other uses; both would change the text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _fitting(tokenizer, path, vocabulary)


def from_gguf(path: Path, metadata: Mapping[str, Any], vocabulary: int) -> Tokenizer:
    """Make the byte-level tokenizer that the metadata of a GGUF file describe.

    Args:
        path: the file, for messages.
        metadata: the metadata of the file.
        vocabulary: number of tokens of the model.

    Raises:
        ValueError: there is none, or one of another kind, or it has tokens beyond the vocabulary.
    """
    kind = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind[0] != "gpt2" or kind[1] not in CUTS:
        known = " or ".join(map(repr, CUTS))
        raise ValueError(
            f"load: {path} has a tokenizer of the kind {kind}; of those in GGUF files, ('gpt2', {known}) is supported. "
            "Give its tokenizer.json by tokenizer=."
        )
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    ids = {token: k for k, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, [tuple(merge.split(" ")) for merge in merges]))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*CUTS[kind[1]], byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    for token, of in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True):
        if of in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=of == CONTROL)])
    return _fitting(tokenizer, path, vocabulary)


def _fitting(tokenizer: Tokenizer, path: Path, vocabulary: int) -> Tokenizer:
    """Return the tokenizer if the model has an embedding for each of its tokens."""
    # JAX clamps an index that is out of bounds: the model would read wrong tokens without an error.
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= vocabulary:
        raise ValueError(f"load: the tokenizer of {path} has token {largest}, and the model knows {vocabulary} tokens.")
    return tokenizer
