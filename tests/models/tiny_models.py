"""A tiny model of any family of transformers, built from nothing but its configuration class."""

from __future__ import annotations

import re
from typing import Any

import torch

VOCAB = 96
PAD = 1  # RoBERTa's family starts its positions behind it

# First match decides. Sizes that must divide one another do.
_SIZES: list[tuple[str, int]] = [
    (r"index_topk", 64),  # as in life: more keys than a short sequence has
    (r"vocab_size_per_layer_input|entity_vocab|pronunciation_vocab|shape_vocab", VOCAB),
    (r"^vocab_size$|^n_words$|^padded_vocab_size$", VOCAB),
    (r"^(type_vocab_size|n_langs)$", 2),
    (r"max_.*position|^n_positions$|^n_ctx$|^max_seq_len|^context_length$|^seq_length$|target_positions", 64),
    (r"(num|n)_(hidden_|encoder_|decoder_)?layers?$|^(encoder|decoder)_layers$|_n_layers$", 2),
    (r"n_groups?$|mamba_n_groups|topk_group", 1),
    (r"(attention_|num_|n_|q_|key_|value_|kv_)heads?$|^n_head$|mamba_n_heads|mamba_num_heads", 2),
    (r"(n_routed|num(_local)?|moe_num|num_total|n)_experts?$|routed_experts|num_experts", 4),
    (r"experts_per_tok|top_?k$|experts_per_token|num_selected", 2),
    (r"shared_experts?$", 1),
    (r"head_dim$|^d_kv$|qk_nope|qk_rope|v_head_dim|head_width|mamba_d_head|mamba_head_dim|attention_head_size", 16),
    (r"lora_rank$|_rank$", 8),
    (r"hidden_size_per_layer_input", 8),
    (
        r"^(hidden_size|d_model|n_embd|dim|embed_dim|emb_dim|word_embed_proj_dim|embedding_size|d_embed|lru_width"
        r"|attention_hidden_size|model_dim|dim_model|embedding_dim)$",
        32,
    ),
    (r"intermediate_size|ffn_dim|_ffn_|d_ff|^dim_ff$|d_inner|inner_dim|ffn_hidden|^n_inner$|feed_forward_size", 64),
    (r"sliding_window$|chunk_size$|attention_window|window_size", 16),
    (r"state_size|d_state", 8),
]
# What a model may do to its logits, and what only few do; none may be 1.
_NUMBERS: list[tuple[str, float]] = [
    (r"^logit_scale$|^lm_head_multiplier$", 0.37),
    (r"^logits_scaling$|^logits_scale$|^output_multiplier|^final_logit_scale", 1.7),
    (r"final_logit_softcapping|logits_soft_cap|output_logit_soft_cap|logit_softcap", 3.0),
    (r"embedding_multiplier|residual_multiplier|scale_emb|scale_depth", 0.9),
]


_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_MAMBA2 = {"mamba_d_head": 32, "mamba_n_heads": 2, "mamba_expand": 2, "mamba_d_ssm": 64}
# What a family wants besides: sizes that must fit together, and what is required.
_SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], **_MAMBA2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "codegen": {"n_head": 4, "n_embd": 64, "rotary_dim": 8},
    "cohere_compass_text": {"logit_scale": 0.37, "layer_types": ["full_attention"] * 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "ernie4_5_moe": {"moe_k": 2, "moe_num_shared_experts": 1},
    "falcon_h1": _MAMBA2,
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "intermediate_size": [64, 64],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {**_HYBRID, **_MAMBA2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": [2, 2]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"qk_rope_head_dim": 16, "qk_head_dim": 32, "head_dim": 16, "moe_topk": 2, "zero_expert_num": 2},
    "mimo_v2_flash": {"num_key_value_heads": 1},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "num_blocks": 2},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "attention_hidden_size": 64,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "hybrid_layer_ids": [1],
        "attention_hidden_size": 64,
        "attention_head_dim": 32,
        "mamba_headdim": 32,
        "n_mamba_heads": 2,
    },
}


def shrink(config_class: Any, **settings: Any) -> Any:
    """A tiny configuration of `config_class`."""
    chosen = {**_overrides(config_class()), **_SETTINGS.get(config_class.model_type, {}), **settings}
    return config_class(**chosen)


def _overrides(config: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, bool) or name.startswith("_"):
            continue
        if hasattr(value, "to_dict"):
            chosen[name] = type(value)(**_overrides(value))
            continue
        for pattern, size in [*_SIZES, *_NUMBERS]:
            if re.search(pattern, name) and (value is None or isinstance(value, int | float)):
                if value is not None or isinstance(size, float):
                    chosen[name] = size
                break
    ids = {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
    chosen.update({name: value for name, value in ids.items() if hasattr(config, name)})
    if isinstance(vars(config).get("layer_types"), list):
        kinds = list(dict.fromkeys(config.layer_types))[-2:]
        chosen["layer_types"] = (kinds * 2)[:2]
    return chosen


def randomise(model: Any) -> Any:
    """Random biases and a head that gives logits of ordinary size: what starts at 0 or 1 hides mistakes."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        with torch.no_grad():
            if name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif parameter.ndim == 2:
                parameter.add_(0.05 * noise)
    return model.eval()
