"""The fields of every other method's configuration in PEFT 0.21, by `peft_type`: each must be equal in adapters that are combined.

Fields that say only where a method is applied (`target_modules` ...) or belong to every configuration are in `peft_fields.LORA`.
"""

from collections.abc import Mapping

OTHER_TYPES: Mapping[str, str] = {
    "ADALORA": "beta1 beta2 deltaT init_r orth_reg_weight target_r tfinal tinit total_step",
    "ADAMSS": (
        "asa_importance_beta asa_schedule_exponent asa_target_subspaces asa_uncertainty_beta final_warmup "
        "init_warmup init_weights mask_interval num_subspaces r random_seed subspace_rank svd_threshold use_asa "
        "use_dynamic_rank"
    ),
    "ADAPTION_PROMPT": "adapter_layers adapter_len",
    "BEFT": "init_weights",
    "BOFT": "bias boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor fan_in_fan_out init_weights",
    "C3A": "bias block_size block_size_pattern init_weights",
    "CARTRIDGE": "num_attention_heads num_frozen_tokens num_layers num_transformer_submodules num_virtual_tokens token_dim",
    "CPT": (
        "cpt_mask cpt_token_ids cpt_tokens_type_mask num_attention_heads num_layers num_transformer_submodules "
        "num_virtual_tokens opt_loss_decay_factor opt_projection_epsilon opt_projection_format_epsilon "
        "opt_weighted_loss_type token_dim tokenizer_name_or_path"
    ),
    "DEFT": "alpha bias decomposition_method deft_dropout fan_in_fan_out init_scale init_weights para r",
    "DELORA": "bias delora_lambda init_weights lambda_pattern module_dropout r rank_pattern",
    "FOURIERFT": "bias fan_in_fan_out init_weights n_frequency n_frequency_pattern random_loc_seed scaling",
    "FROD": (
        "bias fan_in_fan_out frod_dropout init_weights progressbar projection_prng_key regularization_alpha "
        "runtime_offload_base_weight save_projection sparse_rate"
    ),
    "GLORA": "bias config_A_B config_C config_D_E init_weights r",
    "GRALORA": "alpha bias fan_in_fan_out gralora_dropout gralora_k hybrid_r init_weights r",
    "HIRA": "fan_in_fan_out hira_dropout init_weights r rank_pattern",
    "HRA": "apply_GS bias init_weights r",
    "IA3": "fan_in_fan_out feedforward_modules init_ia3_weights",
    "LILY": "init_weights num_B r scaling stride_A",
    "LN_TUNING": "",
    "LOHA": "alpha alpha_pattern init_weights module_dropout r rank_dropout rank_pattern use_effective_conv2d",
    "LOKR": (
        "alpha alpha_pattern decompose_both decompose_factor init_weights module_dropout r rank_dropout "
        "rank_dropout_scale rank_pattern use_effective_conv2d"
    ),
    "MISS": "bias init_weights mini_r miss_dropout r",
    "MULTITASK_PROMPT_TUNING": (
        "num_attention_heads num_layers num_ranks num_tasks num_transformer_submodules num_virtual_tokens "
        "prompt_tuning_init prompt_tuning_init_state_dict_path prompt_tuning_init_task prompt_tuning_init_text "
        "token_dim tokenizer_kwargs tokenizer_name_or_path"
    ),
    "OFT": (
        "bias block_share coft eps fan_in_fan_out init_weights module_dropout num_cayley_neumann_terms "
        "oft_block_size r use_cayley_neumann"
    ),
    "OSF": "effective_rank init_weights rank_pattern target_svd_config",
    "PEANUT": "act_fn depth init_weights r scaling",
    "POLY": "init_weights n_skills n_splits n_tasks poly_type r",
    "PREFIX_TUNING": (
        "encoder_hidden_size init_weights num_attention_heads num_layers num_transformer_submodules "
        "num_virtual_tokens prefix_projection token_dim"
    ),
    "PROMPT_TUNING": (
        "num_attention_heads num_layers num_transformer_submodules num_virtual_tokens prompt_tuning_init "
        "prompt_tuning_init_text token_dim tokenizer_kwargs tokenizer_name_or_path"
    ),
    "PSOFT": (
        "ab_svd_init cayley_neumann_eps fan_in_fan_out init_weights num_cayley_neumann_terms psoft_alpha "
        "psoft_dropout psoft_mag_a psoft_mag_b psoft_orth psoft_svd psoft_svd_lowrank_niter r random_seed "
        "use_cayley_neumann"
    ),
    "PVERA": (
        "bias d_initial fan_in_fan_out generator_seed init_weights projection_prng_key pvera_dropout r "
        "sample_at_inference save_projection"
    ),
    "P_TUNING": (
        "encoder_dropout encoder_hidden_size encoder_num_layers encoder_reparameterization_type "
        "num_attention_heads num_layers num_transformer_submodules num_virtual_tokens token_dim"
    ),
    "RANDLORA": (
        "bias fan_in_fan_out init_weights projection_prng_key r randlora_alpha randlora_dropout save_projection "
        "sparse very_sparse"
    ),
    "ROAD": "group_size init_weights variant",
    "SHADOW": (
        "auxiliary_loss_weight init_weights r shadow_alpha shadow_dropout shadow_hidden_size "
        "shadow_intermediate_size shadow_model shadow_num_attention_heads shadow_num_hidden_layers "
        "share_embeddings update_hidden_size"
    ),
    "SHIRA": "fan_in_fan_out init_weights mask_type r random_seed",
    "SUPERTUNING": "init_weights lora_alpha lora_dropout r save_precomputed_indices select_top sparsity",
    "TINYLORA": (
        "bias fan_in_fan_out init_v_bound init_weights projection_seed r save_projection tinylora_dropout u weight_tying"
    ),
    "TRAINABLE_TOKENS": "init_weights token_indices",
    "UNILORA": ("bias fan_in_fan_out init_theta_d_bound init_weights proj_seed r save_indices theta_d_length unilora_dropout"),
    "VBLORA": (
        "bias fan_in_fan_out init_logits_std init_vector_bank_bound num_vectors r save_only_topk_weights topk "
        "vblora_dropout vector_length"
    ),
    "VERA": "bias d_initial fan_in_fan_out init_weights projection_prng_key r save_projection vera_dropout",
    "WAVEFT": (
        "bias fan_in_fan_out init_weights n_frequency n_frequency_pattern proportional_parameters random_loc_seed "
        "scaling use_idwt wavelet_family"
    ),
    "XLORA": (
        "adapters enable_softmax enable_softmax_topk global_scaling_weight hidden_size layerwise_scalings "
        "scaling_pass_value softmax_temperature top_k_lora use_trainable_adapters xlora_depth xlora_dropout_p "
        "xlora_size"
    ),
}

NOT_AVERAGED: Mapping[str, str] = {
    "ADALORA": "each site prunes other ranks of P, E and Q",
    "ADAMSS": "each site masks other subspaces",
    "OSF": "it starts from a decomposition of the base model, which each site computes itself",
    "PSOFT": "it starts from a decomposition of the base model, which each site computes itself",
    "SUPERTUNING": "each site selects other entries",
    "XLORA": "it routes between adapters",
}
"""Methods whose arrays have no meaningful average over sites, and why."""
NEEDED_IN_ROUNDS: Mapping[str, tuple[str, object, str]] = {
    "SHIRA": ("random_seed", None, "each site draws other entries without a common random_seed"),
    "VBLORA": ("save_only_topk_weights", True, "the saved indices of vectors are integers, which have no average"),
}
"""Method -> the field, the value of it that cannot be averaged, and why."""
