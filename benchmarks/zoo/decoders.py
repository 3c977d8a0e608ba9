"""Language models on what their callers pass: ids with a mask, or with labels; nothing is said of caches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from case import Case
from transformers_nets import DECODERS, GROUPED, SEQ2SEQ, SIZES, SPECIAL, T5, ids, masked, net

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
SHARED = EXPERTS | {
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "qk_nope_head_dim": 16,
}
WIDE = GROUPED | {"head_dim": 16}
STATE = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
TINY = {"vocab_size": 120, "hidden_size": 64, "num_hidden_layers": 2}
# name, class, config
MORE: list[tuple[str, str, dict[str, Any]]] = [
    ("apertus", "ApertusForCausalLM", GROUPED),
    ("arcee", "ArceeForCausalLM", GROUPED),
    ("bamba", "BambaForCausalLM", GROUPED | STATE | {"attn_layer_indices": [1]}),
    ("bart", "BartForCausalLM", SEQ2SEQ),
    ("bitnet", "BitNetForCausalLM", GROUPED),
    ("cohere2", "Cohere2ForCausalLM", GROUPED | {"sliding_window": 8}),
    ("cwm", "CwmForCausalLM", WIDE | {"sliding_window": 8}),
    ("deepseek-v2", "DeepseekV2ForCausalLM", GROUPED | LATENT | SHARED | {"n_group": 2, "topk_method": "greedy"}),
    ("diffllama", "DiffLlamaForCausalLM", GROUPED),
    ("doge", "DogeForCausalLM", GROUPED),
    ("dots1", "Dots1ForCausalLM", GROUPED | SHARED),
    (
        "ernie4_5-moe",
        "Ernie4_5_MoeForCausalLM",
        GROUPED
        | {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 48,
            "moe_layer_start_index": 1,
            "moe_num_shared_experts": 1,
        },
    ),
    ("exaone4", "Exaone4ForCausalLM", GROUPED | {"sliding_window": 8, "sliding_window_pattern": 2}),
    ("falcon-h1", "FalconH1ForCausalLM", GROUPED | STATE | {"mamba_d_ssm": 64, "mamba_d_head": 8}),
    ("falcon-mamba", "FalconMambaForCausalLM", TINY | {"state_size": 8}),
    ("glm4", "Glm4ForCausalLM", WIDE),
    ("glm4-moe", "Glm4MoeForCausalLM", WIDE | SHARED),
    ("granite-moe", "GraniteMoeForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    (
        "granite-moe-hybrid",
        "GraniteMoeHybridForCausalLM",
        GROUPED
        | STATE
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
            "layer_types": ["mamba", "attention"],
        },
    ),
    ("helium", "HeliumForCausalLM", WIDE),
    ("hunyuan", "HunYuanDenseV1ForCausalLM", WIDE),
    ("hunyuan-moe", "HunYuanMoEV1ForCausalLM", WIDE | {"num_experts": 4, "moe_topk": 2}),
    (
        "jamba",
        "JambaForCausalLM",
        GROUPED
        | {
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    (
        "jetmoe",
        "JetMoeForCausalLM",
        TINY
        | {
            "num_key_value_heads": 2,
            "kv_channels": 16,
            "intermediate_size": 48,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
    (
        "lfm2",
        "Lfm2ForCausalLM",
        GROUPED | {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96, "block_multiple_of": 8},
    ),
    (
        "llama4",
        "Llama4ForCausalLM",
        WIDE
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 2,
        },
    ),
    (
        "minimax",
        "MiniMaxForCausalLM",
        WIDE
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "block_size": 8,
        },
    ),
    ("ministral", "MinistralForCausalLM", WIDE),
    ("modernbert", "ModernBertDecoderForCausalLM", SIZES | SPECIAL | {"local_attention": 8}),
    ("nanochat", "NanoChatForCausalLM", GROUPED),
    (
        "nemotron-h",
        "NemotronHForCausalLM",
        WIDE
        | {
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "hybrid_override_pattern": "M-*",
            "ssm_state_size": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "mamba_n_groups": 1,
            "chunk_size": 8,
        },
    ),
    ("olmo3", "Olmo3ForCausalLM", GROUPED | {"sliding_window": 8}),
    (
        "qwen3-next",
        "Qwen3NextForCausalLM",
        WIDE
        | EXPERTS
        | {
            "num_experts": 4,
            "shared_expert_intermediate_size": 48,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    ("seed-oss", "SeedOssForCausalLM", WIDE),
    ("vaultgemma", "VaultGemmaForCausalLM", WIDE | {"query_pre_attn_scalar": 16, "sliding_window": 8}),
    (
        "zamba2",
        "Zamba2ForCausalLM",
        TINY
        | {
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "mamba", "hybrid"],
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 96,
            "chunk_size": 8,
            "num_mem_blocks": 1,
            "use_shared_mlp_adapter": False,
            "adapter_rank": 8,
        },
    ),
]
TO_TEXT: list[tuple[str, str, dict[str, Any]]] = [
    ("bart-to-text", "BartForConditionalGeneration", SEQ2SEQ),
    ("mvp-to-text", "MvpForConditionalGeneration", SEQ2SEQ),
    ("t5-to-text", "T5ForConditionalGeneration", T5),
]


def labelled(b: int) -> dict[str, Any]:
    given = masked(b)
    return given | {"labels": given["input_ids"]}


def translated(b: int) -> dict[str, Any]:
    return masked(b) | {"labels": ids(b, 7)}


def given_to(k: int) -> Any:
    """A mask for most, labels too for every third."""
    return masked if k % 3 else labelled


def cases() -> Iterator[Case]:
    rows = [*((name, cls, config) for name, cls, config, _ in DECODERS), *MORE]
    for k, (name, cls, config) in enumerate(rows):
        yield Case(f"lm/{name}", "decoders as called", lambda cls=cls, c=config: net(cls, c), given_to(k), note=cls)
    for name, cls, config in TO_TEXT:
        yield Case(f"lm/{name}", "decoders as called", lambda cls=cls, c=config: net(cls, c), translated, note=cls)
