"""Windows of a text in a model's own tokens, and how well the model predicts the text."""

import math

import jax
import numpy as np
from jaxtyping import Int, Int32

from fimlens.language_model import llama
from fimlens.language_model.pretrained import Pretrained


class TooShort(ValueError):
    """A text has no whole window."""


def token_windows(model: Pretrained, text: str, *, length: int = 128) -> Int32[np.ndarray, "N length"]:
    """Cut a text into windows that share no token: the batches for gradients of `llama.loss`.

    Neighbouring windows of one text are dependent. Where independent samples matter, take windows of different documents.

    Args:
        model: what `load` returned.
        text: the text. No token is added before or after it.
        length: tokens in a window; `llama.loss` predicts all of them except the first.

    Returns:
        Token ids of shape (N, length). The tokens after the last whole window are left out.

    Raises:
        TooShort: the text has fewer than `length` tokens.
        ValueError: the model predicts no next token, or it has no tokenizer and does not read bytes.
    """
    ids, _ = _encode(model, text)
    count = len(ids) // length
    _require_window(count, ids, length)
    return ids[: count * length].reshape(count, length)


def bits_per_byte(model: Pretrained, text: str, *, length: int = 128) -> float:
    """Measure how well a model predicts a text, in bits for each byte of UTF-8. It compares models of different tokenizers.

    The text is read in windows, each of which begins with the last token of the one before. So every token except the first is
    predicted once, from at most `length` tokens before it.

    Args:
        model: what `load` returned.
        text: the text; what follows the last whole window is left out.
        length: tokens that a window predicts.

    Raises:
        TooShort: the text has no more than `length` tokens.
        ValueError: the model predicts no next token, or it has no tokenizer and does not read bytes.
    """
    ids, ends = _encode(model, text)
    count = (len(ids) - 1) // length
    _require_window(count, ids, length + 1)
    windows = ids[np.arange(count)[:, None] * length + np.arange(length + 1)]
    params = llama.stack_layers(model.params)  # one layer to compile
    nats = jax.jit(lambda params: jax.lax.map(lambda row: llama.loss(model.config, params, row[None]), windows))(params)
    return float(nats.sum()) * length / math.log(2) / float(ends[count * length] - ends[0])


def _encode(model: Pretrained, text: str) -> tuple[Int32[np.ndarray, " tokens"], Int[np.ndarray, " tokens"]]:
    """Return the tokens of a text, and the bytes of UTF-8 up to the end of each."""
    if not isinstance(model.config, llama.Config):
        raise ValueError(f"text: a {model.config.family} predicts no next token. Give a LLaMA-family model.")
    if model.tokenizer is not None:
        encoding = model.tokenizer.encode(text, add_special_tokens=False)
        bytes_before = np.cumsum([0, *(len(character.encode()) for character in text)])
        return np.asarray(encoding.ids, np.int32), bytes_before[[end for _, end in encoding.offsets]]
    if model.config.vocabulary != 256:
        raise ValueError(
            f"text: a model of {model.config.vocabulary} tokens has no tokenizer. Give its tokenizer.json to load(tokenizer=)."
        )
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    return ids, np.arange(len(ids)) + 1


def _require_window(count: int, ids: Int32[np.ndarray, " tokens"], length: int) -> None:
    if not count:
        raise TooShort(f"text: {len(ids)} tokens are fewer than a window of {length}. Give more text.")
