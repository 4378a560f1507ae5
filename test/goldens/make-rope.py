"""Writes rope.json: rotary frequencies and attention factors as transformers computes them.

    python test/goldens/make-rope.py

Needs torch and transformers 5; not part of the test suite.
"""

import json
from pathlib import Path

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

CASES = {
    "default": (64, 2048, dict(rope_type="default", rope_theta=10000.0)),
    "default with another base and an odd head size": (
        80, 2048, dict(rope_type="default", rope_theta=1000000.0)),
    "linear": (64, 2048, dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
    "llama3 as in Llama 3.1": (128, 131072, dict(
        rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=8192)),
    "llama3 as in Llama 3.2": (64, 131072, dict(
        rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position_embeddings=8192)),
    "yarn as Qwen2.5 recommends": (128, 32768, dict(
        rope_type="yarn", rope_theta=1000000.0, factor=4.0,
        original_max_position_embeddings=32768)),
    "yarn without truncation": (128, 131072, dict(
        rope_type="yarn", rope_theta=150000.0, factor=32.0, beta_fast=32.0, beta_slow=1.0,
        truncate=False, original_max_position_embeddings=4096)),
    "yarn with mscale": (64, 163840, dict(
        rope_type="yarn", rope_theta=10000.0, factor=40.0, beta_fast=32, beta_slow=1, mscale=1.0,
        mscale_all_dim=0.707, original_max_position_embeddings=4096)),
    "yarn with its own attention factor": (96, 8192, dict(
        rope_type="yarn", rope_theta=10000.0, factor=2.0, attention_factor=1.25, beta_fast=8.0,
        beta_slow=2.0, original_max_position_embeddings=4096)),
    "yarn without a stated original length": (64, 4096, dict(
        rope_type="yarn", rope_theta=10000.0, factor=4.0)),
}

result = {}
for name, (head_dim, positions, parameters) in CASES.items():
    config = LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim,
        max_position_embeddings=positions, rope_parameters=dict(parameters))
    compute = ROPE_INIT_FUNCTIONS.get(
        parameters["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters)
    inv_freq, attention_factor = compute(config, "cpu")
    result[name] = dict(
        parameters=parameters, max_position_embeddings=positions, head_dim=head_dim,
        inv_freq=inv_freq.double().tolist(), attention_factor=attention_factor)
Path(__file__).with_name("rope.json").write_text(json.dumps(result))
