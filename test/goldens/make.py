"""Makes the tiny golden checkpoints that are not part of the first set: random models with the
logits and greedy continuations that transformers computes in float32 on a CPU.

    python test/goldens/make.py [name ...]

Needs torch and transformers 5; not part of the test suite. Layout of each folder: config.json and
safetensors as on the hub; golden.json with `prompts` (lengths 5, 33, 129) and `greedy` (32 tokens of
each of the first two, with the margin of each: largest logit minus the second); golden.safetensors
with `logits.N` of prompt N, of every position, or of every 16th where the prompt is long.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

HERE = Path(__file__).parent
COMMON = dict(
    vocab_size=160,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=112,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    attn_implementation="eager",
)


def rope(**parameters):
    return dict(rope_theta=10000.0, **parameters)


# name: (model class, config, options of `make`)
MODELS = {
    "mixtral-tiny": (
        MixtralForCausalLM,
        MixtralConfig(**{**COMMON, "intermediate_size": 32, "vocab_size": 128, "num_local_experts": 4,
                         "num_experts_per_tok": 2, "sliding_window": None}),
        {},
    ),
    "mistral-window": (
        MistralForCausalLM,
        MistralConfig(**COMMON, sliding_window=21, head_dim=16),
        {},
    ),
    "llama-linear": (
        LlamaForCausalLM,
        LlamaConfig(**COMMON, rope_parameters=rope(rope_type="linear", factor=4.0)),
        {"older_layout": True},
    ),
    "llama-yarn": (
        LlamaForCausalLM,
        LlamaConfig(**COMMON, rope_parameters=rope(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
        {},
    ),
    "llama-yarn-mscale": (
        LlamaForCausalLM,
        LlamaConfig(**COMMON, rope_parameters=rope(
            rope_type="yarn", factor=8.0, original_max_position_embeddings=64, truncate=False,
            beta_fast=16.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.7)),
        {},
    ),
    "llama-bias": (
        LlamaForCausalLM,
        LlamaConfig(**COMMON, attention_bias=True, mlp_bias=True),
        {},
    ),
    "qwen2-window": (
        Qwen2ForCausalLM,
        Qwen2Config(**{**COMMON, "num_hidden_layers": 3, "intermediate_size": 48}, use_sliding_window=True,
                    sliding_window=19, max_window_layers=1),
        {"drop": ["layer_types"]},
    ),
    "qwen3-moe-mixed": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**{**COMMON, "num_hidden_layers": 3, "intermediate_size": 48, "vocab_size": 128}, head_dim=16,
                       moe_intermediate_size=20, num_experts=5, num_experts_per_tok=3,
                       norm_topk_prob=False, decoder_sparse_step=2, mlp_only_layers=[0]),
        {},
    ),
    "llama-sharded": (LlamaForCausalLM, LlamaConfig(**COMMON), {"shards": "150KB"}),
    "llama-f16": (LlamaForCausalLM, LlamaConfig(**COMMON), {"dtype": torch.float16}),
    "llama-bf16": (LlamaForCausalLM, LlamaConfig(**COMMON), {"dtype": torch.bfloat16}),
}


def make(name, model_class, config, dtype=torch.float32, shards="1GB", older_layout=False, drop=()):
    torch.manual_seed(sum(name.encode()))
    model = model_class(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            norm = "norm" in key
            spread = 0.1 if norm else 0.3 if key.endswith("bias") else 1.7 * parameter.shape[-1] ** -0.5
            parameter.normal_(1.0 if norm else 0.0, spread)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, max_shard_size=shards)
    # The 16-bit checkpoints: their rounded weights, computed in float32. Not model.to(float32), which
    # would leave the rotary frequencies rounded as well.
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    edit_config(folder / "config.json", older_layout, drop)

    generator = torch.Generator().manual_seed(7)
    lengths = (5, 33, 129)
    prompts = [torch.randint(3, config.vocab_size, (n,), generator=generator) for n in lengths]
    with torch.no_grad():
        logits = [model(prompt[None]).logits[0] for prompt in prompts]
        greedy = [continue_greedily(model, prompt) for prompt in prompts[:2]]
    save_file(
        {f"logits.{n}": (rows if len(rows) < 100 else rows[::16]).contiguous()
         for n, rows in enumerate(logits)},
        folder / "golden.safetensors",
    )
    golden = {"prompts": [prompt.tolist() for prompt in prompts], "greedy": greedy}
    (folder / "golden.json").write_text(json.dumps(golden))
    print(name, sum(f.stat().st_size for f in folder.iterdir()), sorted(tensor_names(folder))[:3])


def continue_greedily(model, prompt, count=32):
    tokens, margins = [], []
    sequence = prompt
    for _ in range(count):
        best, second = model(sequence[None]).logits[0, -1].topk(2).values.tolist()
        token = int(model(sequence[None]).logits[0, -1].argmax())
        tokens.append(token)
        margins.append(round(best - second, 5))
        sequence = torch.cat([sequence, torch.tensor([token])])
    return {"tokens": tokens, "margin": margins}


def edit_config(path, older_layout, drop):
    """The layout of transformers 4, and configs from before a field existed."""
    config = json.loads(path.read_text())
    for field in drop:
        del config[field]
    if older_layout:
        parameters = config.pop("rope_parameters")
        config["rope_theta"] = parameters.pop("rope_theta")
        config["rope_scaling"] = {"type": parameters.pop("rope_type"), **parameters}
        config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2))


def tensor_names(folder):
    return [name for file in folder.glob("model*.safetensors") for name in load_file(file)]


for name in sys.argv[1:] or MODELS:
    model_class, config, options = MODELS[name]
    make(name, model_class, config, **options)
