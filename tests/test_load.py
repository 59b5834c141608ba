"""Models of others: what `load` reads from a Hugging Face directory, a GGUF file and a run, and what it refuses."""

import json
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from fimlens.cli.app import app
from fimlens.language_model import Pretrained, bits_per_byte, encoder, encoder_files, llama, load, token_windows

pytestmark = pytest.mark.system

gguf = pytest.importorskip("gguf")
safetensors = pytest.importorskip("safetensors.numpy")
tokenizers = pytest.importorskip("tokenizers")

CONFIG = llama.Config(
    vocabulary=300, hidden=32, mlp=64, heads=4, layers=2, kv_heads=2, head_size=16, rotary_base=5e4, norm_eps=1e-5
)
TEXT = "In 2024 the 39 cafés counted 1729 guests; in 2025 they had counted the guests of 12 cafés. " * 3
SIZES = {  # a config.json of transformers 4
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 5e4,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "attention_bias": False,
    "hidden_act": "silu",
}
METADATA = {
    "llama.block_count": 2,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.context_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.key_length": 16,
    "llama.attention.value_length": 16,
    "llama.rope.dimension_count": 16,
    "llama.rope.freq_base": 5e4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def weights(config=CONFIG):
    """Parameters of distinct numbers."""
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(llama.init, config), jax.random.key(0))
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer of 280 tokens that splits digits, as SmolLM's does."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    digits, byte_level = tokenizers.pre_tokenizers.Digits(True), tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer, made.decoder = byte_level, tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<|end|>"], initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])  # only now, so that it knows pairs of digits
    return made


def hugging_face_tensors(params):
    """The parameters under the names of transformers, outputs x inputs."""
    tensors = {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["norm"]}
    for k, layer in enumerate(params["layers"]):
        at, attention = f"model.layers.{k}", layer["attention"]
        tensors |= {
            f"{at}.input_layernorm.weight": layer["attention_norm"],
            f"{at}.post_attention_layernorm.weight": layer["mlp_norm"],
            f"{at}.self_attn.q_proj.weight": attention["query"].T,
            f"{at}.self_attn.k_proj.weight": attention["key"].T,
            f"{at}.self_attn.v_proj.weight": attention["value"].T,
            f"{at}.self_attn.o_proj.weight": attention["output"].T,
        } | {f"{at}.mlp.{name}_proj.weight": leaf.T for name, leaf in layer["mlp"].items()}
    tensors |= {"lm_head.weight": params["head"].T} if "head" in params else {}
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def gguf_tensors(params):
    """The parameters under the names of llama.cpp, with the rows of queries and keys as its conversion orders them."""

    def permuted(leaf, heads):  # the formula of LlamaModel.permute in llama.cpp's convert_hf_to_gguf.py
        return leaf.reshape(heads, 2, len(leaf) // heads // 2, -1).swapaxes(1, 2).reshape(leaf.shape)

    tensors = {"token_embd.weight": params["embedding"], "output_norm.weight": params["norm"]}
    for k, layer in enumerate(params["layers"]):
        at, attention = f"blk.{k}", layer["attention"]
        tensors |= {
            f"{at}.attn_norm.weight": layer["attention_norm"],
            f"{at}.ffn_norm.weight": layer["mlp_norm"],
            f"{at}.attn_q.weight": permuted(attention["query"].T, 4),
            f"{at}.attn_k.weight": permuted(attention["key"].T, 2),
            f"{at}.attn_v.weight": attention["value"].T,
            f"{at}.attn_output.weight": attention["output"].T,
        } | {f"{at}.ffn_{name}.weight": leaf.T for name, leaf in layer["mlp"].items()}
    tensors |= {"output.weight": params["head"].T} if "head" in params else {}
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


@pytest.fixture
def directory(tmp_path, tokenizer):
    """Write a Hugging Face directory; tensors and entries of config.json may be changed, or left out by None."""

    def write(params=None, shards=1, **changes):
        tensors = hugging_face_tensors(weights()) if params is None else params
        about = {name: value for name, value in (SIZES | changes).items() if value != "absent"}
        (tmp_path / "config.json").write_text(json.dumps(about))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        if shards == 1:
            safetensors.save_file(tensors, tmp_path / "model.safetensors")
            return tmp_path
        of = {name: f"model-{k % shards + 1:05}-of-{shards:05}.safetensors" for k, name in enumerate(tensors)}
        for file in set(of.values()):
            safetensors.save_file({name: tensor for name, tensor in tensors.items() if of[name] == file}, tmp_path / file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": of}))
        return tmp_path

    return write


@pytest.fixture
def file(tmp_path, tokenizer):
    """Write a GGUF file; tensors and metadata may be changed."""

    def write(tensors=None, quantised=None, architecture="llama", pre="smollm", **changes):
        path = tmp_path / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for name, value in (METADATA | changes).items():
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(name, value)
        content = json.loads(tokenizer.to_str())
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token == "<|end|>" else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
        for name, tensor in (gguf_tensors(weights()) if tensors is None else tensors).items():
            if quantised and tensor.ndim == 2:
                writer.add_tensor(name, gguf.quantize(tensor, quantised), raw_dtype=quantised)
            else:
                writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def same(loaded, expected):
    """Whether two trees of parameters have the same names and the same numbers."""
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(expected), strict=True))


@pytest.mark.parametrize("shards", [1, 3])
def test_a_hugging_face_directory(directory, tokenizer, shards):
    model = load(directory(shards=shards))
    assert model.config == CONFIG
    assert same(model.params, weights())
    assert model.tokenizer.encode(TEXT).ids == tokenizer.encode(TEXT).ids


def test_a_tied_head_of_transformers_5_with_buffers_and_a_copy_of_the_embedding(directory):
    params = weights(replace(CONFIG, tied=True))
    tensors = hugging_face_tensors(params)
    tensors |= {"lm_head.weight": params["embedding"], "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    rotary = {"rope_theta": 5e4, "rope_type": "default"}
    model = load(
        directory(tensors, tie_word_embeddings=True, rope_parameters=rotary, rope_theta="absent", rope_scaling="absent")
    )
    assert model.config == replace(CONFIG, tied=True)
    assert same(model.params, params)


def test_bfloat16_on_disk_and_in_memory(directory):
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights())
    path = directory(hugging_face_tensors(rounded))
    assert same(load(path).params, jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded))
    assert same(load(path, dtype=jnp.bfloat16).params, rounded)


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file(file, tokenizer, tied):
    config = replace(CONFIG, tied=tied)
    model = load(file(gguf_tensors(weights(config))))
    assert replace(model.config, norm_eps=1e-5) == config
    assert model.config.norm_eps == np.float32(1e-5)
    assert same(model.params, weights(config))
    assert model.tokenizer.encode(TEXT + "<|end|>").ids == tokenizer.encode(TEXT + "<|end|>").ids
    assert model.tokenizer.decode(tokenizer.encode(TEXT).ids) == TEXT


@pytest.mark.parametrize("kind", ["Q8_0", "BF16"])
def test_quantised_weights_are_dequantised(file, kind):
    quantised = gguf.GGMLQuantizationType[kind]
    for loaded, exact in zip(jax.tree.leaves(load(file(quantised=quantised)).params), jax.tree.leaves(weights()), strict=True):
        np.testing.assert_allclose(loaded, exact, atol=0.02)
        assert exact.ndim == 1 or not np.array_equal(loaded, exact)


@pytest.fixture
def run(tmp_path):
    """Write a run of `fimlens pretrain` with checkpoints after steps 2 and 4; return it and the weights of both."""
    pretrain = pytest.importorskip("fimlens.pretrain.run_directory")
    from fimlens.pretrain import data, plan, step

    def write(**options):
        each = plan.Plan(model="cpu-1m", optimizer="adam", steps=4, **options)
        corpus = data.Corpus([np.zeros(9, np.uint8)], [np.zeros(9, np.uint8)], 256)
        params = llama.stack_layers(weights(each.config)) if each.scan else weights(each.config)
        with pretrain.RunDirectory(each, corpus, tmp_path / "run", 2, 2) as writer:
            for k in (2, 4):
                now = jax.tree.map(lambda leaf, k=k: leaf + k, params)
                writer.save(k, step.TrainState(np.asarray(k), now, each.transform().init(now)))
        return tmp_path / "run", weights(each.config)

    return write


@pytest.mark.parametrize("options", [{}, {"tied": True, "scan": True}], ids=["plain", "tied and scanned"])
def test_a_run_and_each_of_its_checkpoints(run, options):
    path, drawn = run(**options)
    for where, added in ((path, 4), (path / "checkpoints" / "2", 2)):
        model = load(where)
        assert model.config == replace(llama.CPU_CONFIGS["cpu-1m"], tied="tied" in options)
        assert model.tokenizer is None
        assert same(model.params, jax.tree.map(lambda leaf, added=added: leaf + added, drawn))


def test_a_run_is_given_the_tokenizer_of_its_shards(run, directory):
    tokenizer = directory() / "tokenizer.json"
    with pytest.raises(ValueError, match="has token 279, and the model knows 256 tokens"):
        load(run()[0], tokenizer=tokenizer)


def test_shared_heads_are_heads_with_equal_keys_and_values():
    grouped = replace(CONFIG, vocabulary=20, head_size=None)
    params = jax.tree.map(jnp.asarray, weights(grouped))
    tokens = jnp.arange(6)[None]

    def repeated(leaf):
        return jnp.repeat(leaf.reshape(32, 2, 8), 2, axis=1).reshape(32, 32)

    layers = [
        layer | {"attention": layer["attention"] | {name: repeated(layer["attention"][name]) for name in ("key", "value")}}
        for layer in params["layers"]
    ]
    whole = llama.logits(replace(grouped, kv_heads=None), params | {"layers": layers}, tokens)
    np.testing.assert_allclose(llama.logits(grouped, params, tokens), whole, rtol=1e-4, atol=1e-4)


def uniform(config, tokenizer=None):
    """A model that predicts every token with the same probability."""
    return Pretrained(config, jax.tree.map(np.zeros_like, weights(config)), tokenizer)


def test_bits_per_byte_of_a_uniform_guess(tokenizer):
    assert bits_per_byte(uniform(llama.Config(tied=True)), TEXT, length=20) == pytest.approx(8)
    tokens = tokenizer.encode(TEXT).ids
    predicted = tokenizer.decode(tokens[1 : 1 + (len(tokens) - 1) // 20 * 20]).encode()
    assert len(predicted) > len(predicted.decode())  # a letter of two bytes is among them
    bits = bits_per_byte(uniform(CONFIG, tokenizer), TEXT, length=20)
    assert bits == pytest.approx((len(tokens) - 1) // 20 * 20 * np.log2(300) / len(predicted))


def test_windows_of_tokens(tokenizer):
    windows = token_windows(uniform(CONFIG, tokenizer), TEXT, length=7)
    tokens = tokenizer.encode(TEXT).ids
    assert windows.shape == (len(tokens) // 7, 7)
    assert windows.ravel().tolist() == tokens[: windows.size]
    assert token_windows(uniform(llama.Config()), "café", length=5).tolist() == [[99, 97, 102, 195, 169]]


@pytest.mark.parametrize("measure", [token_windows, bits_per_byte])
def test_a_text_without_a_window_or_a_tokenizer_is_refused(measure):
    with pytest.raises(ValueError, match=r"text: 4 tokens are fewer than a window of 1\d. Give more text"):
        measure(uniform(llama.Config()), "text", length=10)
    with pytest.raises(ValueError, match=r"a model of 300 tokens has no tokenizer. .*load\(tokenizer=\)"):
        measure(uniform(CONFIG), TEXT, length=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "of the architecture 'qwen2'. Supported are llama and mistral"),
        ({"model_type": "absent"}, "of the architecture None"),
        ({"num_hidden_layers": "absent"}, "has no 'num_hidden_layers'"),
        ({"num_key_value_heads": 3}, "kv_heads is a divisor of the 4 heads; got 3"),
        ({"head_dim": 15}, "the size of a head is an even number"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = 'linear', and only 'default' is implemented"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e4}}, "rope_scaling = 'llama3'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"model_type": "mistral", "sliding_window": 4096}, "sliding_window = 4096, and only None"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = "),
        ({"vocab_size": 200}, "has token 279, and the model knows 200 tokens"),
        ({"vocab_size": 310}, r"has shape \(300, 32\), and the sizes of the model say \(310, 32\)"),
        ({"num_hidden_layers": 1}, "has, beyond this model, model.layers.1.input_layernorm.weight, .* and 6 more"),
        ({"num_hidden_layers": 3}, "lacks model.layers.2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_that_is_not_this_model_is_refused(directory, change, message):
    with pytest.raises(ValueError, match=message):
        load(directory(**change))


def test_tensors_that_are_not_this_model_are_refused(directory):
    tensors = hugging_face_tensors(weights())
    norm, query = "model.norm.weight", "model.layers.0.self_attn.q_proj"
    for changed, message in (
        ({norm: np.ones(31, np.float32)}, r"norm.weight in .* has shape \(31,\), and the sizes of the model say \(32,\)"),
        ({f"{query}.bias": np.ones(64, np.float32)}, "beyond this model, model.layers.0.self_attn.q_proj.bias"),
        ({f"{query}.weight": np.ones((64, 32), np.int8)}, "q_proj.weight in .* is I8; weights are F64, F32, F16, BF16"),
    ):
        with pytest.raises(ValueError, match=message):
            load(directory(tensors | changed))
    del tensors[norm]
    with pytest.raises(ValueError, match=r"lacks model.norm.weight. A LLaMA of 2 layers has 21 tensors"):
        load(directory(tensors))


BERT = encoder.Config(vocabulary=300, hidden=8, mlp=12, heads=2, layers=2, positions=20)
BERT_SIZES = {
    "model_type": "bert",
    "vocab_size": 300,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}


@pytest.fixture
def bert(tmp_path, tokenizer):
    """Write a Hugging Face directory of an encoder; names of tensors and entries of config.json may be changed."""

    def write(rename=lambda name: name, others=None, **changes):
        params = encoder.init(BERT, jax.random.key(0))
        named = jax.tree_util.tree_leaves_with_path(encoder_files.names(BERT))
        leaves = {path: np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        tensors = {rename(name): leaves[path] if path[0].key == "embedding" else leaves[path].T for path, name in named}
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        safetensors.save_file(tensors | (others or {}), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(BERT_SIZES | changes))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return tmp_path, params

    return write


def test_an_encoder_with_the_heads_and_names_of_the_first_bert_files(bert):
    def rename(name):
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    others = {"cls.predictions.bias": np.ones(300, np.float32), "bert.embeddings.position_ids": np.arange(20)[None]}
    for path, params in (bert(), bert(rename, others)):
        model = load(path)
        assert model.config == BERT
        assert same(model.params, params)
    with pytest.raises(ValueError, match="a BERT predicts no next token"):
        token_windows(model, TEXT)


def test_an_encoder_reads_no_padding():
    params = encoder.init(BERT, jax.random.key(0))
    tokens = jnp.arange(12).reshape(2, 6)
    lengths = jnp.array([6, 4])
    states = encoder.hidden(BERT, params, tokens, lengths)
    alone = encoder.hidden(BERT, params, tokens[1:, :4], lengths[1:])
    np.testing.assert_allclose(states[1, :4], alone[0], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new', and only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
        ({"num_attention_heads": 3}, "heads is a divisor of the width, 8; got 3"),
        ({"num_hidden_layers": 3}, "lacks encoder.layer.2.* A BERT of 3 layers has 55 tensors"),
        ({"vocab_size": 200}, "has token 279, and the model knows 200 tokens"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_encoder_that_is_not_this_model_is_refused(bert, change, message):
    with pytest.raises(ValueError, match=message):
        load(bert(**change)[0])


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model-00002-of-00003.safetensors"])
def test_a_directory_without_one_of_its_files_is_refused(directory, missing):
    path = directory(shards=3)
    (path / "pytorch_model.bin").write_bytes(b"never unpickled")
    (path / missing).unlink()
    with pytest.raises(ValueError, match=f"load: .*{'no directory with a ' if missing == 'config.json' else ''}{missing}"):
        load(path)


def test_a_pickle_is_never_read(directory):
    path = directory()
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no .*model.safetensors. Other formats, such as .bin and .pt, are not read"):
        load(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "model.gguf"])
def test_a_file_of_other_content_is_refused(directory, name):
    path = directory()
    for content in (b"something else, of some length", b"[]"):
        (path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            load(path / name if name == "model.gguf" else path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "falcon"}, "of the architecture 'falcon'. Supported is llama"),
        ({"llama.expert_count": 8}, "expert_count = 8, which is not implemented"),
        ({"llama.attention.sliding_window": 4096}, "attention.sliding_window = 4096"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type = 'yarn'"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count = 8, and only that of a head, 16, is implemented"),
        ({"pre": "llama-bpe"}, r"the kind \('gpt2', 'llama-bpe'\).*Give its tokenizer.json by tokenizer="),
        ({"llama.attention.head_count": 8}, r"attn_output.weight in .* has shape \(32, 64\), .* say \(32, 128\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_gguf_file_that_is_not_this_model_is_refused(file, change, message):
    with pytest.raises(ValueError, match=message):
        load(file(**change))


def test_a_gguf_file_of_scaled_rotary_angles_or_too_few_embeddings_is_refused(file):
    tensors = gguf_tensors(weights())
    with pytest.raises(ValueError, match=r"rope_freqs.weight = 'a tensor', which is not implemented"):
        load(file(tensors | {"rope_freqs.weight": np.ones(8, np.float32)}))
    with pytest.raises(ValueError, match="has token 279, and the model knows 200 tokens"):
        load(file(tensors | {"token_embd.weight": tensors["token_embd.weight"][:200]}))
    del tensors["token_embd.weight"]
    with pytest.raises(ValueError, match=r"has no 'token_embd.weight'"):
        load(file(tensors))


def test_another_tokenizer_takes_the_place_of_one_that_is_not_supported(file, directory):
    path = file(pre="llama-bpe")
    assert load(path, tokenizer=directory() / "tokenizer.json").tokenizer.get_vocab_size() == 280


def test_a_run_without_the_checkpoint_is_refused(run, tmp_path):
    path, _ = run()
    with pytest.raises(ValueError, match=r"has no checkpoint 3. It has 2, 4"):
        load(path / "checkpoints" / "3")
    plan = json.loads((path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ValueError, match=r"has no checkpoint yet. It has none"):
        load(tmp_path)
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"model": "other"}))
    with pytest.raises(ValueError, match=r"a run of the model 'other'. Known are cpu-1m"):
        load(tmp_path)


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    for path in (tmp_path, tmp_path / "model.bin", tmp_path / "absent.gguf"):
        with pytest.raises(ValueError, match=r"is no .gguf file, and no directory with a config.json or a plan.json"):
            load(path)


def test_a_missing_package_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "fimlens.language_model.gguf_file", raising=False)
    with pytest.raises(ImportError, match=r"needs pip install 'fimlens\[models\]'"):
        load(file())


def test_the_lens_asks_about_it(directory, tmp_path):
    model, texts, out = directory(), tmp_path / "texts", tmp_path / "out"
    texts.mkdir()
    for name, text in (("a", TEXT), ("b", TEXT[::-1]), ("c", "short"), ("d", TEXT[9:])):
        (texts / f"{name}.txt").write_text(text)
    command = ["lens", "--model", str(model), "--text", str(texts), "--samples", "4", "--length", "8", "--folds", "3"]
    command += ["--matrices", "layers/1/attention/key", "--structures", "adam,sgd", "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "layers.1.attention.key (32 x 32)" in result.output
    assert json.loads((out / "gradients" / "gradients.json").read_text())["units"] == [0, 1, 3, 0]  # first windows first
    config, params, tokenizer = load(model)
    window = jnp.asarray(token_windows(Pretrained(config, params, tokenizer), TEXT, length=8)[:1])
    expected = jax.grad(partial(llama.loss, config))(params, window)["layers"][1]["attention"]["key"]
    written = np.load(out / "gradients" / "layers.1.attention.key.npy")[0]
    np.testing.assert_allclose(written, expected, rtol=1e-4, atol=1e-6)
    assert "1 matrices, 4 gradients of each: 16.4 kB" in " ".join(result.output.split())
    refused = CliRunner().invoke(app, [*command[:5], "--samples", "99", "--length", "8", "--out", str(out)])
    assert refused.exit_code == 2
    assert f"{7 * config.layers} matrices, 99 gradients" in " ".join(refused.output.split())  # not embedding and head
    assert "--samples asks for 99" in " ".join(refused.output.split())
