"""LLaMA, BERT and RoBERTa in plain JAX, weights and tokenizers of others for them, and text to train on."""

from fimlens.language_model.pretrained import Pretrained as Pretrained
from fimlens.language_model.pretrained import load as load
from fimlens.language_model.windows import bits_per_byte as bits_per_byte
from fimlens.language_model.windows import token_windows as token_windows
