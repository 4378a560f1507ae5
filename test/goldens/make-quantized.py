"""Makes the tiny quantized golden checkpoints: random models, packed as the published formats say,
with the logits that transformers computes in float32 from the dequantized weights.

    python test/goldens/make-quantized.py [name ...]

Needs torch, transformers 5, gguf, sentencepiece; not part of the test suite. GGUF files are written,
dequantized and read by the gguf package and transformers, and their tokenizers' ids come from the
libraries that trained them: an independent implementation throughout. GPTQ, AWQ and
compressed-tensors are packed here, in numpy, from their format's description: the libraries that
write them are not to be had offline. Layout of each folder: as make.py.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent / "quantized"
COMMON = dict(
    vocab_size=160,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=2,
    attn_implementation="eager",
)
TEXT = [
    "Once upon a time, there was a little boat named Bob.",
    " two  spaces, tabs\tand\nnew lines",
    "Zahlen 1234567 und Ümläute, 日本語, emoji 🦙!",
    "don't stop; we'll see",
]


def random_model(config, model_class=LlamaForCausalLM, seed=3):
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            norm = "norm" in key
            parameter.normal_(1.0 if norm else 0.0, 0.1 if norm else 1.7 * parameter.shape[-1] ** -0.5)
    return model


def write_golden(folder, model, extra=None, greedy=True):
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randint(3, model.config.vocab_size, (n,), generator=generator) for n in (5, 24)]
    with torch.no_grad():
        logits = [model(prompt[None]).logits[0] for prompt in prompts]
    save_file({f"logits.{n}": rows.float().contiguous() for n, rows in enumerate(logits)},
              folder / "golden.safetensors")
    golden = {"prompts": [prompt.tolist() for prompt in prompts], "greedy": [], **(extra or {})}
    (folder / "golden.json").write_text(json.dumps(golden))
    print(folder.name, sum(f.stat().st_size for f in folder.iterdir()))


def fresh(name):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def linears(model):
    return {name + ".weight": module for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"}


def quantize(weight, bits, group, symmetric):
    """Codes 0 .. 2^bits - 1 [out, in], scales and zero points [out, groups]; scales are float16."""
    out, inputs = weight.shape
    parts = weight.reshape(out, inputs // group, group).double().numpy()
    most = 2**bits - 1
    if symmetric:
        scale = np.abs(parts).max(-1) * 2 / most
        zero = np.full(scale.shape, 2 ** (bits - 1))
    else:
        low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
        scale = (high - low) / most
        zero = np.rint(-low / scale)
    scale = scale.astype(np.float16)
    codes = np.clip(np.rint(parts / scale[..., None]) + zero[..., None], 0, most).astype(np.int64)
    return codes.reshape(out, inputs), scale, zero.astype(np.int64)


def dequantized(codes, scale, zero, order):
    """order: the group of each input."""
    return (codes - zero[:, order]) * scale[:, order].astype(np.float64)


def words(rows, bits):
    """Packs the last axis, lowest bits first."""
    per = 32 // bits
    pieces = rows.reshape(*rows.shape[:-1], -1, per).astype(np.uint64)
    shifts = np.arange(per, dtype=np.uint64) * np.uint64(bits)
    return torch.from_numpy((pieces << shifts).sum(-1).astype(np.uint32).view(np.int32).copy())


def plain(model, packed):
    state = {k: v for k, v in model.state_dict().items() if k not in packed}
    return {k: v.float() if "norm" in k else v.float() for k, v in state.items()}


def save(folder, model, tensors, quantization):
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    config = json.loads(model.config.to_json_string())
    config["architectures"] = [type(model).__name__]
    config["dtype"] = "float32"
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def gptq(name, bits, group, symmetric, act_order, version):
    model = random_model(LlamaConfig(**COMMON))
    tensors = plain(model, linears(model))
    for key, module in linears(model).items():
        weight = module.weight.data
        out, inputs = weight.shape
        size = inputs if group == -1 else group
        # The same order for all modules that read the same input, as calibration gives it.
        shuffle = np.random.default_rng(inputs + key.count("down") + key.count("o_proj"))
        order = shuffle.permutation(inputs) if act_order else np.arange(inputs)
        g_idx = np.empty(inputs, dtype=np.int64)
        g_idx[order] = np.arange(inputs) // size
        codes, scale, zero = quantize(weight[:, torch.from_numpy(order)], bits, size, symmetric)
        original = np.empty_like(codes)
        original[:, order] = codes
        module.weight.data = torch.from_numpy(dequantized(original, scale, zero, g_idx)).float()
        base = key.removesuffix(".weight")
        stored = zero if version == "gptq_v2" else (zero - 1) % 2**bits
        tensors[base + ".qweight"] = words(original, bits).T
        tensors[base + ".qzeros"] = words(stored.T, bits)
        tensors[base + ".scales"] = torch.from_numpy(scale.T.copy())
        tensors[base + ".g_idx"] = torch.from_numpy(g_idx.astype(np.int32))
        tensors[base + ".bias"] = torch.zeros(out, dtype=torch.float16)
    folder = fresh(name)
    save(folder, model, tensors, dict(quant_method="gptq", bits=bits, group_size=group, sym=symmetric,
                                      desc_act=act_order, checkpoint_format=version))
    write_golden(folder, model)


def awq(name):
    model = random_model(LlamaConfig(**COMMON))
    tensors = plain(model, linears(model))
    places = [0, 2, 4, 6, 1, 3, 5, 7]

    def interleaved(rows):
        return words(rows.reshape(rows.shape[0], -1, 8)[:, :, places].reshape(rows.shape), 4)

    for key, module in linears(model).items():
        weight = module.weight.data
        codes, scale, zero = quantize(weight, 4, 32, False)
        groups = np.arange(weight.shape[1]) // 32
        module.weight.data = torch.from_numpy(dequantized(codes, scale, zero, groups)).float()
        base = key.removesuffix(".weight")
        tensors[base + ".qweight"] = interleaved(codes.T)
        tensors[base + ".qzeros"] = interleaved(zero.T)
        tensors[base + ".scales"] = torch.from_numpy(scale.T.copy())
    folder = fresh(name)
    save(folder, model, tensors, dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm"))
    write_golden(folder, model)


def compressed(name, bits, group, symmetric, kind):
    model = random_model(LlamaConfig(**COMMON))
    tensors = plain(model, linears(model))
    for key, module in linears(model).items():
        weight = module.weight.data
        out, inputs = weight.shape
        size = group or inputs
        base = key.removesuffix(".weight")
        if kind == "float-quantized":
            scale = weight.abs().amax(1, keepdim=True) / 448
            eight = (weight / scale).to(torch.float8_e4m3fn)
            module.weight.data = eight.float() * scale
            tensors[key] = eight
            tensors[base + ".weight_scale"] = scale
            continue
        codes, scale, zero = quantize(weight, bits, size, symmetric)
        groups = np.arange(inputs) // size
        module.weight.data = torch.from_numpy(dequantized(codes, scale, zero, groups)).float()
        tensors[base + ".weight_scale"] = torch.from_numpy(scale.astype(np.float32))
        if kind == "int-quantized":
            tensors[key] = torch.from_numpy((codes - 2 ** (bits - 1)).astype(np.int8))
            continue
        tensors[base + ".weight_packed"] = words(codes, bits)
        tensors[base + ".weight_shape"] = torch.tensor([out, inputs])
        if not symmetric:
            tensors[base + ".weight_zero_point"] = words(zero.T, bits).T
    weights = dict(num_bits=8 if kind == "float-quantized" else bits, symmetric=symmetric,
                   type="float" if kind == "float-quantized" else "int",
                   strategy="group" if group else "channel", group_size=group or None)
    folder = fresh(name)
    save(folder, model, tensors, dict(
        quant_method="compressed-tensors", format=kind, quantization_status="compressed", ignore=["lm_head"],
        config_groups=dict(group_0=dict(targets=["Linear"], weights=weights, input_activations=None))))
    write_golden(folder, model)


def corpus():
    lines = (HERE.parent.parent.parent / "models/stories-7m/heldout-stories.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines[:60]]


def gpt2_tokenizer(writer, vocabulary):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    return [{"text": text, "ids": [1] + tokenizer.encode(text).ids} for text in TEXT]


def spm_tokenizer(writer, vocabulary):
    import io

    import sentencepiece as spm

    blob = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=blob, vocab_size=vocabulary, model_type="bpe",
        byte_fallback=True, minloglevel=2, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=1.0)
    model = spm.SentencePieceProcessor(model_proto=blob.getvalue())
    size = model.get_piece_size()
    writer.add_tokenizer_model("llama")
    writer.add_token_list([model.id_to_piece(i) for i in range(size)])
    writer.add_token_scores([model.get_score(i) for i in range(size)])
    writer.add_token_types([
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in range(size)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return [{"text": text, "ids": [1] + model.encode(text)} for text in TEXT]


def gguf_file(name, architecture, config, model_class, tokenizer, types, rope_factors=None):
    import gguf
    from gguf.quants import quantize as gguf_quantize

    folder = fresh(name)
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    head = config.head_dim
    if architecture == "llama":
        writer.add_rope_dimension_count(head)
    else:
        writer.add_key_length(head)
        writer.add_value_length(head)
    writer.add_vocab_size(config.vocab_size)
    texts = tokenizer(writer, config.vocab_size)
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q",
             "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "q_norm": "attn_q_norm",
             "k_norm": "attn_k_norm", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
             "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    random = np.random.default_rng(5)
    for key, value in random_model(config, model_class).state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module = names[key.split(".")[-2]]
        prefix = f"blk.{key.split('.')[2]}." if ".layers." in key else ""
        data = value.float().numpy()
        kind = gguf.GGMLQuantizationType[types.get(module, "F32")]
        if kind.name in ("Q4_K", "Q5_K", "Q6_K"):
            # The package cannot make these: blocks of random bits, with scales that fit.
            _, size = gguf.GGML_QUANT_SIZES[kind]
            raw = random.integers(0, 256, (data.shape[0], data.shape[1] // 256, size), dtype=np.uint8)
            d = random.uniform(0.5, 1.0, raw.shape[:2] + (1,)) * 1.7 / np.sqrt(data.shape[1])
            if kind.name == "Q6_K":
                raw[..., -2:] = (d / 2000).astype(np.float16).view(np.uint8)
            else:
                levels = 8 if kind.name == "Q4_K" else 16
                raw[..., 0:2] = (d / 32 / levels).astype(np.float16).view(np.uint8)
                raw[..., 2:4] = (d / 32).astype(np.float16).view(np.uint8)
            raw = raw.reshape(data.shape[0], -1)
        else:
            raw = gguf_quantize(data, kind)
        writer.add_tensor(f"{prefix}{module}.{key.split('.')[-1]}", raw, raw_dtype=kind)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # The config is given: transformers overlooks the head size of qwen3 files.
    model = model_class.from_pretrained(folder, gguf_file="model.gguf", config=config, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    write_golden(folder, model, {"texts": texts})


def gguf_llama(name):
    config = LlamaConfig(**{**COMMON, "vocab_size": 384, "hidden_size": 256, "num_hidden_layers": 1,
                            "intermediate_size": 256, "num_key_value_heads": 2}, head_dim=64,
                         tie_word_embeddings=True)
    gguf_file(name, "llama", config, LlamaForCausalLM, spm_tokenizer, {
        "attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q6_K", "attn_output": "Q5_K", "ffn_gate": "Q4_0",
        "ffn_up": "Q8_0", "ffn_down": "Q6_K", "token_embd": "Q4_0"})


def gguf_llama3(name):
    """Llama 3.1's rotary frequencies: what transformers divides them by stands in the file."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                  original_max_position_embeddings=8192)
    config = LlamaConfig(**{**COMMON, "vocab_size": 320}, head_dim=16, tie_word_embeddings=True,
                         rope_parameters=scaled)
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2).float() / 16)
    factors = plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    gguf_file(name, "llama", config, LlamaForCausalLM, gpt2_tokenizer, {
        "attn_q": "Q8_0", "attn_k": "Q8_0", "attn_v": "Q8_0", "attn_output": "Q8_0", "ffn_gate": "Q8_0",
        "ffn_up": "Q8_0", "ffn_down": "Q8_0", "token_embd": "Q8_0"}, factors.numpy())


def gguf_qwen3(name):
    config = Qwen3Config(**{**COMMON, "vocab_size": 320}, head_dim=16, tie_word_embeddings=False)
    gguf_file(name, "qwen3", config, Qwen3ForCausalLM, gpt2_tokenizer, {
        "attn_q": "Q8_0", "attn_k": "Q8_0", "attn_v": "Q8_0", "attn_output": "Q4_0", "ffn_gate": "Q4_0",
        "ffn_up": "Q4_0", "ffn_down": "BF16", "token_embd": "F16", "output": "Q8_0"})


MODELS = {
    "gptq-act-order": lambda n: gptq(n, 4, 32, True, True, "gptq"),
    "gptq-int4-asym": lambda n: gptq(n, 4, 32, False, False, "gptq"),
    "gptq-int8-v2": lambda n: gptq(n, 8, -1, False, False, "gptq_v2"),
    "awq": awq,
    "compressed-int8": lambda n: compressed(n, 8, None, True, "int-quantized"),
    "compressed-int4-asym": lambda n: compressed(n, 4, 32, False, "pack-quantized"),
    "compressed-int4": lambda n: compressed(n, 4, None, True, "pack-quantized"),
    "compressed-fp8": lambda n: compressed(n, 8, None, True, "float-quantized"),
    "gguf-llama": gguf_llama,
    "gguf-llama3": gguf_llama3,
    "gguf-qwen3": gguf_qwen3,
}

for name in sys.argv[1:] or MODELS:
    MODELS[name](name)
