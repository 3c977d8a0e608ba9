"""transformers: text encoders, decoders, sequence to sequence, speech, vision, and both together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers as T
from case import Case, Make

SIZES = {
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 144,
    "max_position_embeddings": 48,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = SIZES | SPECIAL | {"num_key_value_heads": 2}
VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 144,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {
    "embed_dim": 24,
    "depths": [1, 1, 2],
    "num_heads": [2, 4, 8],
    "window_size": 4,
    "image_size": 64,
    "patch_size": 4,
}
TEXT = SIZES | SPECIAL
SPEECH = {
    "vocab_size": 40,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 144,
    "conv_dim": (32, 48, 48),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
SEQ2SEQ = {
    "vocab_size": 120,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 144,
    "decoder_ffn_dim": 144,
    "max_position_embeddings": 48,
    "decoder_start_token_id": 0,
    **SPECIAL,
}
T5 = {
    "vocab_size": 120,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 144,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}


def ids(b: int, n: int = 10) -> torch.Tensor:
    return torch.randint(3, 118, (b, n))


def masked(b: int) -> dict[str, Any]:
    return {"input_ids": ids(b), "attention_mask": torch.ones(b, 10, dtype=torch.long)}


def decoder(b: int) -> dict[str, Any]:
    return {"input_ids": ids(b), "use_cache": False}


def both(b: int) -> dict[str, Any]:
    return {"input_ids": ids(b), "decoder_input_ids": ids(b, 7), "use_cache": False}


def image(side: int = 32) -> Make:
    return lambda b: {"pixel_values": torch.randn(b, 3, side, side)}


def wave(b: int) -> dict[str, Any]:
    return {"input_values": torch.randn(b, 800)}


def paired(b: int) -> dict[str, Any]:
    return {"input_ids": ids(b), "pixel_values": torch.randn(b, 3, 32, 32)}


def boxes(b: int) -> dict[str, Any]:
    return {"input_ids": ids(b), "bbox": torch.randint(0, 30, (b, 10, 4)).sort(-1).values}


Row = tuple[str, str, dict[str, Any], Make]

# name, class of the model (its config class follows from it), config, inputs
ENCODERS: list[Row] = [
    ("bert", "BertModel", SIZES, masked),
    ("bert-mlm", "BertForMaskedLM", SIZES, masked),
    ("bert-token", "BertForTokenClassification", SIZES, masked),
    ("bert-qa", "BertForQuestionAnswering", SIZES, masked),
    ("roberta-mlm", "RobertaForMaskedLM", SIZES, masked),
    ("xlm-roberta", "XLMRobertaForSequenceClassification", SIZES, masked),
    ("camembert", "CamembertModel", SIZES, masked),
    (
        "distilbert",
        "DistilBertForSequenceClassification",
        {"vocab_size": 120, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 144, "max_position_embeddings": 48},
        masked,
    ),
    ("albert", "AlbertForSequenceClassification", SIZES | {"embedding_size": 32}, masked),
    (
        "albert-groups",
        "AlbertModel",
        SIZES | {"embedding_size": 32, "num_hidden_layers": 4, "num_hidden_groups": 2},
        masked,
    ),
    ("electra", "ElectraForPreTraining", SIZES | {"embedding_size": 32}, masked),
    ("electra-cls", "ElectraForSequenceClassification", SIZES | {"embedding_size": 64}, masked),
    ("deberta", "DebertaModel", SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}, masked),
    ("deberta-plain", "DebertaModel", SIZES, masked),
    (
        "deberta-v2",
        "DebertaV2ForSequenceClassification",
        SIZES
        | {
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "max_relative_positions": 16,
        },
        masked,
    ),
    (
        "deberta-v3-mlm",
        "DebertaV2ForMaskedLM",
        SIZES | {"relative_attention": True, "pos_att_type": ["p2c"], "conv_kernel_size": 3},
        masked,
    ),
    ("mpnet", "MPNetModel", SIZES, masked),
    ("mpnet-cls", "MPNetForSequenceClassification", SIZES, masked),
    (
        "mobilebert",
        "MobileBertForSequenceClassification",
        SIZES | {"embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2},
        masked,
    ),
    (
        "squeezebert",
        "SqueezeBertForSequenceClassification",
        SIZES | {"embedding_size": 64, "q_groups": 2, "k_groups": 2, "v_groups": 2},
        masked,
    ),
    ("fnet", "FNetForSequenceClassification", SIZES, lambda b: {"input_ids": ids(b)}),
    ("convbert", "ConvBertForSequenceClassification", SIZES | {"embedding_size": 64}, masked),
    (
        "funnel",
        "FunnelModel",
        {
            "vocab_size": 120,
            "d_model": 64,
            "n_head": 4,
            "d_head": 16,
            "d_inner": 144,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
        },
        masked,
    ),
    ("xlnet", "XLNetModel", {"vocab_size": 120, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 144}, decoder),
    (
        "xlm",
        "XLMModel",
        {"vocab_size": 120, "emb_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 48},
        masked,
    ),
    (
        "flaubert",
        "FlaubertModel",
        {"vocab_size": 120, "emb_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 48},
        masked,
    ),
    ("roformer", "RoFormerModel", SIZES, masked),
    ("megatron-bert", "MegatronBertModel", SIZES, masked),
    ("ernie", "ErnieForSequenceClassification", SIZES, masked),
    (
        "nystromformer",
        "NystromformerModel",
        SIZES | {"segment_means_seq_len": 10, "num_landmarks": 10},
        lambda b: {"input_ids": ids(b)},
    ),
    ("yoso", "YosoModel", SIZES | {"use_expectation": True}, masked),
    ("ibert", "IBertModel", SIZES | {"quant_mode": False}, masked),
    ("splinter", "SplinterModel", SIZES, masked),
    ("layoutlm", "LayoutLMForTokenClassification", SIZES, boxes),
    (
        "modernbert",
        "ModernBertForSequenceClassification",
        SIZES | SPECIAL | {"cls_token_id": 1, "sep_token_id": 2},
        masked,
    ),
    ("nomic-bert", "NomicBertModel", SIZES, masked),
    ("esm", "EsmModel", SIZES | {"pad_token_id": 1, "mask_token_id": 3, "position_embedding_type": "rotary"}, masked),
    ("bert-generation", "BertGenerationEncoder", SIZES, masked),
    (
        "canine",
        "CanineModel",
        SIZES | {"max_position_embeddings": 128, "local_transformer_stride": 16},
        lambda b: {"input_ids": torch.randint(1, 999, (b, 64)), "attention_mask": torch.ones(b, 64, dtype=torch.long)},
    ),
    ("t5-encoder", "T5EncoderModel", T5, masked),
    ("umt5-encoder", "UMT5EncoderModel", T5 | {"feed_forward_proj": "gated-gelu"}, masked),
]
NEOX = SIZES | {"rotary_pct": 0.5}
GPT2 = {"vocab_size": 120, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 48, "n_inner": 144}
DECODERS: list[Row] = [
    ("gpt2", "GPT2Model", GPT2, decoder),
    ("gpt2-cls", "GPT2ForTokenClassification", GPT2, decoder),
    (
        "openai-gpt",
        "OpenAIGPTLMHeadModel",
        {k: v for k, v in GPT2.items() if k != "n_inner"},
        lambda b: {"input_ids": ids(b)},
    ),
    (
        "gpt-neo",
        "GPTNeoForCausalLM",
        {
            "vocab_size": 120,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 144,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 48,
            "window_size": 8,
        },
        decoder,
    ),
    ("gpt-neox", "GPTNeoXForCausalLM", NEOX, decoder),
    ("gpt-j", "GPTJForCausalLM", GPT2 | {"rotary_dim": 8}, decoder),
    ("gpt-bigcode", "GPTBigCodeForCausalLM", GPT2 | {"multi_query": True}, decoder),
    ("codegen", "CodeGenForCausalLM", GPT2 | {"rotary_dim": 8}, decoder),
    (
        "opt",
        "OPTModel",
        {
            "vocab_size": 120,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 144,
            "max_position_embeddings": 48,
            "word_embed_proj_dim": 32,
        },
        decoder,
    ),
    (
        "opt-350-like",
        "OPTForCausalLM",
        {
            "vocab_size": 120,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 144,
            "max_position_embeddings": 48,
            "word_embed_proj_dim": 32,
            "do_layer_norm_before": False,
        },
        decoder,
    ),
    ("bloom", "BloomForCausalLM", {"vocab_size": 120, "hidden_size": 64, "n_layer": 2, "n_head": 4}, decoder),
    ("falcon", "FalconForCausalLM", SIZES | {"new_decoder_architecture": False, "multi_query": True}, decoder),
    ("falcon-new", "FalconForCausalLM", SIZES | {"new_decoder_architecture": True, "num_kv_heads": 2}, decoder),
    ("falcon-alibi", "FalconForCausalLM", SIZES | {"alibi": True, "multi_query": False}, decoder),
    ("llama", "LlamaForCausalLM", GROUPED, decoder),
    ("llama-mha", "LlamaModel", GROUPED | {"num_key_value_heads": 4, "attention_bias": True}, decoder),
    ("llama-tied", "LlamaForCausalLM", GROUPED | {"tie_word_embeddings": True, "mlp_bias": True}, decoder),
    ("mistral", "MistralForCausalLM", GROUPED, decoder),
    ("mixtral", "MixtralModel", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, decoder),
    ("qwen2", "Qwen2ForCausalLM", GROUPED, decoder),
    (
        "qwen2-moe",
        "Qwen2MoeForCausalLM",
        GROUPED
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
        },
        decoder,
    ),
    ("qwen3", "Qwen3Model", GROUPED | {"head_dim": 16}, decoder),
    (
        "qwen3-moe",
        "Qwen3MoeForCausalLM",
        GROUPED | {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
        decoder,
    ),
    ("gemma", "GemmaForCausalLM", GROUPED | {"head_dim": 24}, decoder),
    (
        "gemma2",
        "Gemma2ForCausalLM",
        GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
        decoder,
    ),
    (
        "gemma3",
        "Gemma3ForCausalLM",
        GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
        decoder,
    ),
    ("phi", "PhiForCausalLM", SIZES | {"partial_rotary_factor": 0.5}, decoder),
    ("phi-norm", "PhiForCausalLM", SIZES | {"qk_layernorm": True}, decoder),
    ("phi3", "Phi3Model", GROUPED, decoder),
    ("phimoe", "PhimoeForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}, decoder),
    ("stablelm", "StableLmForCausalLM", GROUPED | {"partial_rotary_factor": 0.25}, decoder),
    ("stablelm-2", "StableLmForCausalLM", GROUPED | {"use_parallel_residual": True, "qk_layernorm": True}, decoder),
    (
        "mamba",
        "MambaForCausalLM",
        {"vocab_size": 120, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
        lambda b: {"input_ids": ids(b), "use_cache": False},
    ),
    (
        "mamba2",
        "Mamba2ForCausalLM",
        {
            "vocab_size": 120,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 16,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 8,
        },
        lambda b: {"input_ids": ids(b), "use_cache": False},
    ),
    ("olmo", "OlmoForCausalLM", GROUPED, decoder),
    ("olmo2", "Olmo2ForCausalLM", GROUPED, decoder),
    ("olmoe", "OlmoeForCausalLM", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}, decoder),
    ("cohere", "CohereForCausalLM", GROUPED | {"use_qk_norm": True}, decoder),
    ("granite", "GraniteForCausalLM", GROUPED, decoder),
    ("starcoder2", "Starcoder2ForCausalLM", GROUPED, decoder),
    ("glm", "GlmForCausalLM", GROUPED | {"head_dim": 16}, decoder),
    ("nemotron", "NemotronForCausalLM", GROUPED | {"head_dim": 16}, decoder),
    ("persimmon", "PersimmonForCausalLM", SIZES, decoder),
    (
        "mpt",
        "MptForCausalLM",
        {"vocab_size": 120, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 48},
        decoder,
    ),
    (
        "xglm",
        "XGLMForCausalLM",
        {
            "vocab_size": 120,
            "d_model": 64,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 144,
            "max_position_embeddings": 48,
        },
        decoder,
    ),
    ("biogpt", "BioGptForCausalLM", SIZES, decoder),
    (
        "ctrl",
        "CTRLModel",
        {"vocab_size": 120, "n_embd": 64, "n_layer": 2, "n_head": 4, "dff": 144, "n_positions": 48},
        decoder,
    ),
    ("smollm3", "SmolLM3ForCausalLM", GROUPED, decoder),
    ("ernie4_5", "Ernie4_5ForCausalLM", GROUPED, decoder),
    (
        "deepseek-v3",
        "DeepseekV3ForCausalLM",
        GROUPED
        | {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "qk_nope_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
        },
        decoder,
    ),
    (
        "gpt-oss",
        "GptOssForCausalLM",
        GROUPED | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
        decoder,
    ),
    (
        "recurrent-gemma",
        "RecurrentGemmaForCausalLM",
        SIZES
        | SPECIAL
        | {
            "lru_width": 64,
            "attention_window_size": 8,
            "conv1d_width": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
        },
        decoder,
    ),
    (
        "rwkv",
        "RwkvForCausalLM",
        {"vocab_size": 120, "hidden_size": 64, "num_hidden_layers": 2, "context_length": 48},
        lambda b: {"input_ids": ids(b), "use_cache": False},
    ),
]
SEQ: list[Row] = [
    ("t5", "T5ForConditionalGeneration", T5, both),
    ("t5-gated", "T5Model", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, both),
    ("mt5", "MT5ForConditionalGeneration", T5, both),
    ("longt5", "LongT5Model", T5 | {"local_radius": 4}, lambda b: both(b) | {"attention_mask": torch.ones(b, 10)}),
    ("bart", "BartForConditionalGeneration", SEQ2SEQ, both),
    ("bart-model", "BartModel", SEQ2SEQ, both),
    ("mbart", "MBartForConditionalGeneration", SEQ2SEQ, both),
    ("m2m100", "M2M100ForConditionalGeneration", SEQ2SEQ, both),
    ("pegasus", "PegasusForConditionalGeneration", SEQ2SEQ, both),
    ("pegasus-x", "PegasusXForConditionalGeneration", SEQ2SEQ | {"num_global_tokens": 4, "block_size": 8}, both),
    ("marian", "MarianMTModel", SEQ2SEQ | {"decoder_vocab_size": 120}, both),
    ("blenderbot", "BlenderbotForConditionalGeneration", SEQ2SEQ, both),
    ("blenderbot-small", "BlenderbotSmallForConditionalGeneration", SEQ2SEQ, both),
    ("plbart", "PLBartForConditionalGeneration", SEQ2SEQ, both),
    (
        "prophetnet",
        "ProphetNetForConditionalGeneration",
        {
            "vocab_size": 120,
            "hidden_size": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 144,
            "decoder_ffn_dim": 144,
            "ngram": 2,
            "max_position_embeddings": 48,
            **SPECIAL,
        },
        both,
    ),
    (
        "whisper",
        "WhisperForConditionalGeneration",
        {k: v for k, v in SEQ2SEQ.items() if k != "max_position_embeddings"}
        | {"num_mel_bins": 24, "max_source_positions": 20, "max_target_positions": 24},
        lambda b: {"input_features": torch.randn(b, 24, 40), "decoder_input_ids": ids(b, 7), "use_cache": False},
    ),
    (
        "whisper-encoder",
        "WhisperForAudioClassification",
        {k: v for k, v in SEQ2SEQ.items() if k != "max_position_embeddings"}
        | {"num_mel_bins": 24, "max_source_positions": 20, "max_target_positions": 24, "classifier_proj_size": 48},
        lambda b: {"input_features": torch.randn(b, 24, 40)},
    ),
    (
        "speech-to-text",
        "Speech2TextForConditionalGeneration",
        {k: v for k, v in SEQ2SEQ.items() if k != "max_position_embeddings"}
        | {"input_feat_per_channel": 24, "conv_channels": 48, "max_source_positions": 40, "max_target_positions": 24},
        lambda b: {"input_features": torch.randn(b, 32, 24), "decoder_input_ids": ids(b, 7), "use_cache": False},
    ),
    (
        "time-series",
        "TimeSeriesTransformerModel",
        {
            "prediction_length": 4,
            "context_length": 12,
            "lags_sequence": [1, 2],
            "num_time_features": 2,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 144,
            "decoder_ffn_dim": 144,
        },
        lambda b: {
            "past_values": torch.randn(b, 14),
            "past_time_features": torch.randn(b, 14, 2),
            "past_observed_mask": torch.ones(b, 14),
            "future_values": torch.randn(b, 4),
            "future_time_features": torch.randn(b, 4, 2),
            "use_cache": False,
        },
    ),
    (
        "patchtst",
        "PatchTSTForPrediction",
        {
            "num_input_channels": 3,
            "context_length": 32,
            "patch_length": 4,
            "patch_stride": 4,
            "d_model": 64,
            "ffn_dim": 144,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "prediction_length": 8,
        },
        lambda b: {"past_values": torch.randn(b, 32, 3)},
    ),
]
SOUND: list[Row] = [
    ("wav2vec2", "Wav2Vec2ForCTC", SPEECH, wave),
    (
        "wav2vec2-layer",
        "Wav2Vec2ForSequenceClassification",
        SPEECH
        | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True, "classifier_proj_size": 48},
        wave,
    ),
    ("hubert", "HubertModel", SPEECH, wave),
    ("hubert-ctc", "HubertForCTC", SPEECH | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}, wave),
    ("wavlm", "WavLMForCTC", SPEECH, wave),
    ("unispeech", "UniSpeechForCTC", SPEECH, wave),
    ("data2vec-audio", "Data2VecAudioModel", SPEECH | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 7}, wave),
    ("sew", "SEWForCTC", SPEECH | {"squeeze_factor": 2}, wave),
    ("wav2vec2-conformer", "Wav2Vec2ConformerModel", SPEECH | {"position_embeddings_type": "rotary"}, wave),
    (
        "ast",
        "ASTForAudioClassification",
        {k: v for k, v in VISION.items() if k != "image_size"}
        | {"max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
        lambda b: {"input_values": torch.randn(b, 32, 16)},
    ),
    (
        "speecht5-hifigan",
        "SpeechT5HifiGan",
        {"model_in_dim": 20, "upsample_initial_channel": 32, "upsample_rates": [2, 2], "upsample_kernel_sizes": [4, 4]},
        lambda b: {"spectrogram": torch.randn(b, 12, 20)},
    ),
]
CONV = {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 2, 1]}
SIGHT: list[Row] = [
    ("vit", "ViTForImageClassification", VISION, image()),
    ("vit-pooled", "ViTModel", VISION | {"qkv_bias": False}, image()),
    ("vit-masked", "ViTForMaskedImageModeling", VISION | {"encoder_stride": 8}, image()),
    ("vit-msn", "ViTMSNForImageClassification", VISION, image()),
    ("deit", "DeiTForImageClassificationWithTeacher", VISION, image()),
    ("deit-model", "DeiTModel", VISION, image()),
    (
        "beit",
        "BeitModel",
        VISION | {"use_relative_position_bias": True, "use_absolute_position_embeddings": False},
        image(),
    ),
    ("beit-shared", "BeitForImageClassification", VISION | {"use_shared_relative_position_bias": True}, image()),
    ("data2vec-vision", "Data2VecVisionForImageClassification", VISION | {"use_relative_position_bias": True}, image()),
    ("dinov2", "Dinov2Model", VISION | {"mlp_ratio": 2}, image()),
    ("dinov2-swiglu", "Dinov2ForImageClassification", VISION | {"mlp_ratio": 4, "use_swiglu_ffn": True}, image()),
    ("dinov2-registers", "Dinov2WithRegistersModel", VISION | {"mlp_ratio": 2, "num_register_tokens": 3}, image()),
    ("dinov3", "DINOv3ViTModel", VISION, image()),
    ("ijepa", "IJepaModel", VISION, image()),
    (
        "hiera",
        "HieraForImageClassification",
        {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "image_size": [64, 64]},
        image(64),
    ),
    ("swin", "SwinForImageClassification", STAGES, image(64)),
    ("swin-model", "SwinModel", STAGES | {"use_absolute_embeddings": True}, image(64)),
    ("swin-v2", "Swinv2ForImageClassification", STAGES, image(64)),
    (
        "swin2sr",
        "Swin2SRForImageSuperResolution",
        {"embed_dim": 32, "depths": [2, 2], "num_heads": [4, 4], "window_size": 8, "image_size": 32, "upscale": 2},
        image(32),
    ),
    ("donut-swin", "DonutSwinModel", STAGES, image(64)),
    ("convnext", "ConvNextForImageClassification", CONV, image(64)),
    ("convnext-v2", "ConvNextV2Model", CONV, image(64)),
    ("resnet", "ResNetForImageClassification", {"embedding_size": 24, **CONV}, image(64)),
    ("resnet-basic", "ResNetModel", {"embedding_size": 24, **CONV, "layer_type": "basic"}, image(64)),
    ("regnet", "RegNetForImageClassification", {"embedding_size": 24, **CONV, "groups_width": 16}, image(64)),
    ("mobilenet-v1", "MobileNetV1ForImageClassification", {"depth_multiplier": 0.5}, image(64)),
    ("mobilenet-v2", "MobileNetV2ForImageClassification", {"depth_multiplier": 0.5}, image(64)),
    ("mobilenet-v2-seg", "MobileNetV2ForSemanticSegmentation", {"depth_multiplier": 0.5}, image(64)),
    (
        "mobilevit",
        "MobileViTForImageClassification",
        {"hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [8, 16, 24, 32, 48, 64, 128], "image_size": 64},
        image(64),
    ),
    ("mobilevit-v2", "MobileViTV2ForImageClassification", {"width_multiplier": 0.5, "image_size": 64}, image(64)),
    (
        "efficientnet",
        "EfficientNetForImageClassification",
        {"hidden_dim": 640, "width_coefficient": 0.5, "depth_coefficient": 0.5, "image_size": 64},
        image(64),
    ),
    (
        "bit",
        "BitForImageClassification",
        {"embedding_size": 24, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1], "num_groups": 8},
        image(64),
    ),
    (
        "levit",
        "LevitForImageClassification",
        {
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "image_size": 64,
        },
        image(64),
    ),
    (
        "poolformer",
        "PoolFormerForImageClassification",
        {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1]},
        image(64),
    ),
    (
        "focalnet",
        "FocalNetForImageClassification",
        {
            "embed_dim": 24,
            "depths": [1, 1, 1],
            "focal_levels": [2, 2, 2],
            "focal_windows": [3, 3, 3],
            "hidden_sizes": [24, 48, 96],
            "image_size": 64,
        },
        image(64),
    ),
    (
        "cvt",
        "CvtForImageClassification",
        {"embed_dim": [24, 48, 96], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
        image(64),
    ),
    (
        "pvt",
        "PvtForImageClassification",
        {
            "hidden_sizes": [24, 48, 64, 96],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 8],
            "image_size": 64,
        },
        image(64),
    ),
    (
        "pvt-v2",
        "PvtV2ForImageClassification",
        {
            "hidden_sizes": [24, 48, 64, 96],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 8],
            "image_size": 64,
        },
        image(64),
    ),
    (
        "swiftformer",
        "SwiftFormerForImageClassification",
        {"depths": [1, 1, 1, 1], "embed_dims": [24, 32, 48, 64], "image_size": 64},
        image(64),
    ),
    ("textnet", "TextNetForImageClassification", {}, image(64)),
    ("hgnet-v2", "HGNetV2ForImageClassification", {}, image(64)),
    (
        "segformer-cls",
        "SegformerForImageClassification",
        {"hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8]},
        image(64),
    ),
    (
        "segformer",
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [32, 64, 96, 128],
            "depths": [2, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 8],
            "decoder_hidden_size": 48,
            "num_labels": 7,
        },
        image(64),
    ),
    (
        "glpn",
        "GLPNForDepthEstimation",
        {
            "hidden_sizes": [32, 48, 64, 96],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 4, 8],
            "decoder_hidden_size": 32,
        },
        image(64),
    ),
    (
        "dpt",
        "DPTForSemanticSegmentation",
        VISION
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 24, 32, 48],
            "fusion_hidden_size": 32,
            "is_hybrid": False,
            "num_labels": 7,
        },
        image(),
    ),
    (
        "depth-anything",
        "DepthAnythingForDepthEstimation",
        {
            "backbone_config": T.Dinov2Config(**VISION, out_indices=[1, 2], reshape_hidden_states=False),
            "reassemble_hidden_size": 64,
            "patch_size": 8,
            "neck_hidden_sizes": [24, 32],
            "reassemble_factors": [2, 1],
            "fusion_hidden_size": 32,
        },
        image(),
    ),
    (
        "vit-mae",
        "ViTMAEModel",
        VISION | {"mask_ratio": 0.0},
        lambda b: {"pixel_values": torch.randn(b, 3, 32, 32), "noise": torch.rand(b, 16)},
    ),
    (
        "vit-mae-full",
        "ViTMAEForPreTraining",
        VISION
        | {
            "decoder_hidden_size": 48,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 96,
        },
        lambda b: {"pixel_values": torch.randn(b, 3, 32, 32), "noise": torch.rand(b, 16)},
    ),
    (
        "videomae",
        "VideoMAEForVideoClassification",
        VISION | {"num_frames": 4},
        lambda b: {"pixel_values": torch.randn(b, 4, 3, 32, 32)},
    ),
    (
        "vivit",
        "VivitForVideoClassification",
        {k: v for k, v in VISION.items() if k != "patch_size"} | {"num_frames": 4, "tubelet_size": [2, 8, 8]},
        lambda b: {"pixel_values": torch.randn(b, 4, 3, 32, 32)},
    ),
    (
        "timesformer",
        "TimesformerForVideoClassification",
        VISION | {"num_frames": 4},
        lambda b: {"pixel_values": torch.randn(b, 4, 3, 32, 32)},
    ),
    (
        "yolos",
        "YolosForObjectDetection",
        VISION | {"image_size": [32, 32], "num_detection_tokens": 6, "num_labels": 5},
        image(),
    ),
    (
        "vitpose",
        "VitPoseForPoseEstimation",
        {
            "backbone_config": T.VitPoseBackboneConfig(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                mlp_ratio=2,
                image_size=[32, 32],
                patch_size=[8, 8],
            ),
            "num_labels": 5,
        },
        image(),
    ),
    (
        "upernet",
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": T.ConvNextConfig(**CONV, out_indices=[1, 2, 3, 4]),
            "hidden_size": 48,
            "num_labels": 7,
            "auxiliary_in_channels": 64,
            "auxiliary_channels": 32,
            "pool_scales": [1, 2],
        },
        image(64),
    ),
    (
        "detr",
        "DetrForObjectDetection",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 144,
            "decoder_ffn_dim": 144,
            "num_queries": 6,
            "num_labels": 5,
            "backbone_config": T.ResNetConfig(embedding_size=24, **CONV, out_features=["stage4"]),
        },
        image(64),
    ),
    (
        "conditional-detr",
        "ConditionalDetrForObjectDetection",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 144,
            "decoder_ffn_dim": 144,
            "num_queries": 6,
            "num_labels": 5,
            "backbone_config": T.ResNetConfig(embedding_size=24, **CONV, out_features=["stage4"]),
        },
        image(64),
    ),
    (
        "rt-detr-backbone",
        "RTDetrResNetBackbone",
        {"embedding_size": 24, **CONV, "out_features": ["stage3", "stage4"]},
        image(64),
    ),
    ("swin-backbone", "SwinBackbone", STAGES | {"out_features": ["stage1", "stage3"]}, image(64)),
]
CLIP_TEXT = TEXT | {"projection_dim": 32}
CLIP_VISION = VISION | {"projection_dim": 32}
PAIRED: list[Row] = [
    ("clip-text", "CLIPTextModel", CLIP_TEXT, masked),
    ("clip-text-projected", "CLIPTextModelWithProjection", CLIP_TEXT, masked),
    ("clip-vision", "CLIPVisionModel", CLIP_VISION, image()),
    ("clip-vision-projected", "CLIPVisionModelWithProjection", CLIP_VISION, image()),
    (
        "clip-cls",
        "CLIPForImageClassification",
        {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 32, "num_labels": 5},
        image(),
    ),
    ("clip", "CLIPModel", {"text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 32}, paired),
    ("siglip", "SiglipModel", {"text_config": TEXT, "vision_config": VISION}, paired),
    ("siglip-vision", "SiglipVisionModel", VISION, image()),
    ("siglip-text", "SiglipTextModel", TEXT, masked),
    ("chinese-clip", "ChineseCLIPModel", {"text_config": SIZES, "vision_config": VISION, "projection_dim": 32}, paired),
    ("altclip-vision", "AltCLIPVisionModel", CLIP_VISION, image()),
    ("clipseg-vision", "CLIPSegVisionModel", CLIP_VISION, image()),
    ("owlvit-vision", "OwlViTVisionModel", VISION, image()),
    ("blip-vision", "BlipVisionModel", VISION, image()),
    (
        "blip",
        "BlipForConditionalGeneration",
        {"text_config": SIZES | SPECIAL | {"encoder_hidden_size": 64}, "vision_config": VISION, "projection_dim": 32},
        paired,
    ),
    ("blip2-vision", "Blip2VisionModel", VISION, image()),
    ("git", "GitForCausalLM", SIZES | {"vision_config": VISION}, lambda b: paired(b) | {"use_cache": False}),
    ("vilt", "ViltModel", SIZES | {"image_size": 32, "patch_size": 8, "max_image_length": -1}, paired),
    ("align-text", "AlignTextModel", SIZES, masked),
    ("flava-text", "FlavaTextModel", SIZES, masked),
    ("flava-image", "FlavaImageModel", VISION, image()),
    (
        "groupvit-vision",
        "GroupViTVisionModel",
        {
            "hidden_size": 64,
            "depths": [1, 1],
            "num_attention_heads": 4,
            "intermediate_size": 144,
            "image_size": 32,
            "patch_size": 8,
            "num_group_tokens": [6, 0],
            "num_output_groups": [4, 0],
            "num_hidden_layers": 2,
        },
        image(),
    ),
    (
        "perceiver",
        "PerceiverForImageClassificationLearned",
        {
            "num_latents": 8,
            "d_latents": 32,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "image_size": 16,
        },
        lambda b: {"inputs": torch.randn(b, 3, 16, 16)},
    ),
    (
        "decision",
        "DecisionTransformerModel",
        {"state_dim": 5, "act_dim": 3, "hidden_size": 64, "max_ep_len": 40, "n_layer": 2, "n_head": 4},
        lambda b: {
            "states": torch.randn(b, 6, 5),
            "actions": torch.randn(b, 6, 3),
            "rewards": torch.randn(b, 6, 1),
            "returns_to_go": torch.randn(b, 6, 1),
            "timesteps": torch.arange(6).repeat(b, 1),
            "attention_mask": torch.ones(b, 6),
        },
    ),
]


def net(name: str, config: dict[str, Any]) -> torch.nn.Module:
    """A model of a class of transformers, from its own kind of config."""
    cls = getattr(T, name)
    kind = cls.config_class
    return cls(kind(**config))  # type: ignore[no-any-return]


def cases() -> Iterator[Case]:
    for name, cls, config, given in [*ENCODERS, *DECODERS, *SEQ, *SOUND, *SIGHT, *PAIRED]:
        yield Case(f"hf/{name}", "transformers", lambda cls=cls, config=config: net(cls, config), given, note=cls)
