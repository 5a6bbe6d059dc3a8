//! The one table of keys: every key that LLaMA-Factory accepts, and our own, as works, no effect or refused.

use std::cmp::Reverse;

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Read and obeyed.
    Works,
    /// Accepted whatever its value; nothing here depends on it. The reason is said to the user.
    NoEffect(&'static str),
    /// Asks for something that is not built. `fine` are the values that do not ask for it, `why` completes
    /// the sentence that begins with the key.
    Refused { fine: Fine, why: &'static str },
}

/// The values at which a refused key asks for nothing. `null` always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fine {
    /// `null`, an empty text or an empty list only.
    Unset,
    /// `false`.
    Off,
    /// `true`.
    On,
    /// The number 0.
    Zero,
    /// The number 1.
    One,
    /// One of these words.
    Words(&'static [&'static str]),
}

use Fine::{Off, On, One, Unset, Words, Zero};
use Status::{NoEffect, Works};

const fn refused(fine: Fine, why: &'static str) -> Status {
    Status::Refused { fine, why }
}

const PYTORCH: &str = "only for tuning PyTorch or Python";
const ONE_DEVICE: &str = "about several devices, and this program runs on one";
const TEXT_ONLY: &str = "about images, video or sound, and this program trains on text";
const GPTQ: &str = "read only with `export_quantization_bit`, which is not built";
const DECIDED_ELSEWHERE: &str = "`max_new_tokens` and `num_beams` decide, as in LLaMA-Factory";
const BEAMS: &str = "read by beam search, which is not built";
const OTHER_ENGINE: &str = "for another inference engine";
const ALL_CORES: &str = "all cores are used; set `threads` to use fewer";
const PREFERENCE: &str = "read only in the stages rm, ppo, dpo and kto, which are not built";
const UNUSED_PART: &str = "for a method that is not built, and read only with it";
const HUB_PUSH: &str = "nothing is pushed to a hub";
const OTHER_HUB: &str = "only Hugging Face's hub is read";
const OTHER_LOGGER: &str = "for a logger other than TensorBoard";
const PROFILER: &str = "for PyTorch's profiler";
const METRICS: &str = "evaluation computes the loss, and accuracy where `compute_accuracy` asks for it";
const F32_SUMS: &str = "norms and logits are always computed in f32";

/// Every key, once. LLaMA-Factory's come in the order of its own argument classes.
pub const KEYS: &[(&str, Status)] = &[
    // The model.
    ("model_name_or_path", Works),
    ("adapter_name_or_path", Works),
    (
        "adapter_folder",
        refused(Unset, "asks for a subfolder of a hub adapter, which is not built; give its local path"),
    ),
    ("cache_dir", Works),
    ("use_fast_tokenizer", NoEffect("tokenizer.json is always used")),
    ("resize_vocab", refused(Off, "asks for a resized vocabulary, which is not built")),
    ("split_special_tokens", Works),
    ("add_tokens", refused(Unset, "asks for new tokens, which is not built")),
    ("add_special_tokens", refused(Unset, "asks for new tokens, which is not built")),
    ("new_special_tokens_config", refused(Unset, "asks for new tokens, which is not built")),
    ("init_special_tokens", NoEffect("no tokens are added")),
    ("model_revision", Works),
    ("low_cpu_mem_usage", NoEffect("weights are always read through a memory map")),
    ("rope_scaling", Works),
    ("flash_attn", NoEffect("there is one attention, exact and without a score matrix")),
    ("shift_attn", refused(Off, "asks for shifted sparse attention (LongLoRA), which is not built")),
    ("mixture_of_depths", refused(Unset, "asks for mixture of depths, which is not built")),
    ("use_unsloth", NoEffect(PYTORCH)),
    ("use_unsloth_gc", NoEffect(PYTORCH)),
    ("enable_liger_kernel", NoEffect(PYTORCH)),
    ("moe_aux_loss_coef", refused(Unset, "asks for a mixture-of-experts loss, and only dense models are built")),
    ("disable_gradient_checkpointing", Works),
    ("use_reentrant_gc", NoEffect(PYTORCH)),
    ("upcast_layernorm", NoEffect(F32_SUMS)),
    ("upcast_lmhead_output", NoEffect(F32_SUMS)),
    ("train_from_scratch", Works),
    (
        "infer_backend",
        refused(Words(&["huggingface"]), "asks for another inference engine; only `huggingface` is accepted"),
    ),
    ("offload_folder", NoEffect("weights are never offloaded to disk")),
    ("use_kv_cache", NoEffect("generation always keeps a cache")),
    ("use_v1_kernels", NoEffect(PYTORCH)),
    ("infer_dtype", NoEffect("`bf16` decides, as in training")),
    ("hf_hub_token", Works),
    ("ms_hub_token", NoEffect(OTHER_HUB)),
    ("om_hub_token", NoEffect(OTHER_HUB)),
    ("print_param_status", NoEffect("`plan` prints what is trained")),
    ("trust_remote_code", NoEffect("no code is ever loaded from a model folder")),
    ("quantization_method", refused(Words(&["bnb"]), "asks for a quantisation that is not built; `bnb` (NF4) is")),
    ("quantization_bit", Works),
    ("quantization_type", refused(Words(&["nf4"]), "asks for a 4-bit code that is not built; `nf4` is")),
    ("double_quantization", Works),
    ("quantization_device_map", refused(Unset, "asks for a model spread over devices, which is not built")),
    ("image_max_pixels", NoEffect(TEXT_ONLY)),
    ("image_min_pixels", NoEffect(TEXT_ONLY)),
    ("image_do_pan_and_scan", NoEffect(TEXT_ONLY)),
    ("crop_to_patches", NoEffect(TEXT_ONLY)),
    ("video_max_pixels", NoEffect(TEXT_ONLY)),
    ("video_min_pixels", NoEffect(TEXT_ONLY)),
    ("video_fps", NoEffect(TEXT_ONLY)),
    ("video_maxlen", NoEffect(TEXT_ONLY)),
    ("use_audio_in_video", NoEffect(TEXT_ONLY)),
    ("audio_sampling_rate", NoEffect(TEXT_ONLY)),
    ("export_dir", Works),
    ("export_size", Works),
    ("export_device", NoEffect("models are merged on the CPU, a tensor at a time")),
    ("export_quantization_bit", refused(Unset, "asks for GPTQ quantisation of an exported model, which is not built")),
    ("export_quantization_dataset", NoEffect(GPTQ)),
    ("export_quantization_nsamples", NoEffect(GPTQ)),
    ("export_quantization_maxlen", NoEffect(GPTQ)),
    ("export_legacy_format", refused(Off, "asks for .bin files, which are pickles; safetensors are written")),
    ("export_hub_model_id", NoEffect(HUB_PUSH)),
    ("use_kt", refused(Off, "asks for KTransformers, which is not built")),
    ("kt_weight_path", NoEffect(UNUSED_PART)),
    ("kt_expert_checkpoint_path", NoEffect(UNUSED_PART)),
    ("kt_use_lora_experts", NoEffect(UNUSED_PART)),
    ("kt_lora_expert_num", NoEffect(UNUSED_PART)),
    ("kt_lora_expert_intermediate_size", NoEffect(UNUSED_PART)),
    ("vllm_maxlen", NoEffect(OTHER_ENGINE)),
    ("vllm_gpu_util", NoEffect(OTHER_ENGINE)),
    ("vllm_enforce_eager", NoEffect(OTHER_ENGINE)),
    ("vllm_max_lora_rank", NoEffect(OTHER_ENGINE)),
    ("vllm_config", NoEffect(OTHER_ENGINE)),
    ("sglang_maxlen", NoEffect(OTHER_ENGINE)),
    ("sglang_mem_fraction", NoEffect(OTHER_ENGINE)),
    ("sglang_tp_size", NoEffect(OTHER_ENGINE)),
    ("sglang_config", NoEffect(OTHER_ENGINE)),
    ("sglang_lora_backend", NoEffect(OTHER_ENGINE)),
    // The data.
    ("template", Works),
    ("dataset", Works),
    ("eval_dataset", Works),
    ("dataset_dir", Works),
    ("media_dir", NoEffect(TEXT_ONLY)),
    ("cutoff_len", Works),
    ("train_on_prompt", Works),
    ("mask_history", Works),
    ("streaming", Works),
    ("buffer_size", Works),
    ("mix_strategy", Works),
    ("interleave_probs", Works),
    ("overwrite_cache", Works),
    ("preprocessing_batch_size", Works),
    ("preprocessing_num_workers", NoEffect(ALL_CORES)),
    ("max_samples", Works),
    ("eval_num_beams", NoEffect(DECIDED_ELSEWHERE)),
    ("ignore_pad_token_for_loss", refused(On, "must be true: batches hold no padding, so none can be trained on")),
    ("val_size", Works),
    ("eval_on_each_dataset", Works),
    ("packing", Works),
    ("neat_packing", Works),
    ("tool_format", Works),
    ("default_system", Works),
    ("enable_thinking", Works),
    ("preserve_thinking", Works),
    ("tokenized_path", Works),
    ("data_shared_file_system", NoEffect(ONE_DEVICE)),
    // The loop.
    ("output_dir", Works),
    ("per_device_train_batch_size", Works),
    ("num_train_epochs", Works),
    ("max_steps", Works),
    ("learning_rate", Works),
    ("lr_scheduler_type", Works),
    ("lr_scheduler_kwargs", Works),
    ("warmup_steps", Works),
    ("optim", Works),
    ("optim_args", refused(Unset, "asks for arguments of an optimizer that is not built; AdamW has its own keys")),
    ("weight_decay", Works),
    ("adam_beta1", Works),
    ("adam_beta2", Works),
    ("adam_epsilon", Works),
    ("optim_target_modules", refused(Unset, "asks for GaLore or APOLLO, which are not built")),
    ("gradient_accumulation_steps", Works),
    ("average_tokens_across_devices", NoEffect(ONE_DEVICE)),
    ("max_grad_norm", Works),
    ("label_smoothing_factor", refused(Zero, "asks for label smoothing, which is not built")),
    ("bf16", Works),
    ("fp16", Works),
    ("bf16_full_eval", NoEffect("evaluation runs in the precision of the training")),
    ("fp16_full_eval", NoEffect("evaluation runs in the precision of the training")),
    ("tf32", NoEffect(PYTORCH)),
    ("gradient_checkpointing", NoEffect("it is on unless `disable_gradient_checkpointing` is true")),
    ("gradient_checkpointing_kwargs", NoEffect(PYTORCH)),
    ("torch_compile", NoEffect(PYTORCH)),
    ("torch_compile_backend", NoEffect(PYTORCH)),
    ("torch_compile_mode", NoEffect(PYTORCH)),
    ("use_liger_kernel", NoEffect(PYTORCH)),
    ("liger_kernel_config", NoEffect(PYTORCH)),
    ("use_cache", NoEffect(PYTORCH)),
    ("neftune_noise_alpha", Works),
    ("torch_empty_cache_steps", NoEffect(PYTORCH)),
    (
        "auto_find_batch_size",
        NoEffect("memory is planned before step 1, and a plan that does not fit names one that does"),
    ),
    ("logging_strategy", Works),
    ("logging_steps", Works),
    ("logging_first_step", Works),
    ("log_on_each_node", NoEffect(ONE_DEVICE)),
    ("logging_nan_inf_filter", NoEffect("a loss that is not finite stops the run")),
    ("include_num_input_tokens_seen", Works),
    ("log_level", NoEffect("the environment variable QLORA_LOG sets it")),
    ("log_level_replica", NoEffect(ONE_DEVICE)),
    ("disable_tqdm", Works),
    ("report_to", Works),
    ("run_name", Works),
    ("project", NoEffect(OTHER_LOGGER)),
    ("trackio_space_id", NoEffect(OTHER_LOGGER)),
    ("trackio_bucket_id", NoEffect(OTHER_LOGGER)),
    ("trackio_static_space_id", NoEffect(OTHER_LOGGER)),
    ("eval_strategy", Works),
    ("eval_steps", Works),
    ("eval_delay", refused(Zero, "asks for a delayed first evaluation, which is not built")),
    ("per_device_eval_batch_size", Works),
    ("prediction_loss_only", NoEffect(METRICS)),
    ("eval_on_start", Works),
    ("eval_do_concat_batches", NoEffect(METRICS)),
    ("eval_use_gather_object", NoEffect(ONE_DEVICE)),
    ("eval_accumulation_steps", NoEffect(METRICS)),
    ("include_for_metrics", NoEffect(METRICS)),
    ("batch_eval_metrics", NoEffect(METRICS)),
    ("save_only_model", Works),
    ("save_strategy", Works),
    ("save_steps", Works),
    ("save_on_each_node", NoEffect(ONE_DEVICE)),
    ("save_total_limit", Works),
    ("enable_jit_checkpoint", NoEffect("Ctrl-C always saves a checkpoint")),
    ("push_to_hub", refused(Off, "asks to push the result to a hub, which is not built")),
    ("hub_token", NoEffect(HUB_PUSH)),
    ("hub_private_repo", NoEffect(HUB_PUSH)),
    ("hub_model_id", NoEffect(HUB_PUSH)),
    ("hub_strategy", NoEffect(HUB_PUSH)),
    ("hub_always_push", NoEffect(HUB_PUSH)),
    ("hub_revision", NoEffect(HUB_PUSH)),
    ("load_best_model_at_end", Works),
    ("metric_for_best_model", Works),
    ("greater_is_better", Works),
    (
        "ignore_data_skip",
        refused(Off, "asks to see rows again after a resume; a resumed run goes on with the next row"),
    ),
    ("restore_callback_states_from_checkpoint", NoEffect("a resumed run always restores its whole state")),
    ("full_determinism", NoEffect("every run is deterministic")),
    ("seed", Works),
    ("data_seed", Works),
    ("use_cpu", Works),
    ("accelerator_config", NoEffect(PYTORCH)),
    ("parallelism_config", NoEffect(ONE_DEVICE)),
    ("dataloader_drop_last", Works),
    ("dataloader_num_workers", NoEffect(ALL_CORES)),
    ("dataloader_pin_memory", NoEffect(PYTORCH)),
    ("dataloader_persistent_workers", NoEffect(PYTORCH)),
    ("dataloader_prefetch_factor", NoEffect(PYTORCH)),
    ("remove_unused_columns", NoEffect("only the columns that are needed are read")),
    ("label_names", NoEffect(PYTORCH)),
    (
        "train_sampling_strategy",
        refused(
            Words(&["random"]),
            "asks for an order that is not built; for file order set `disable_shuffling: true`",
        ),
    ),
    ("length_column_name", NoEffect("rows are not grouped by length")),
    ("ddp_find_unused_parameters", NoEffect(ONE_DEVICE)),
    ("ddp_bucket_cap_mb", NoEffect(ONE_DEVICE)),
    ("ddp_broadcast_buffers", NoEffect(ONE_DEVICE)),
    ("ddp_static_graph", NoEffect(ONE_DEVICE)),
    ("ddp_backend", NoEffect(ONE_DEVICE)),
    ("ddp_timeout", NoEffect(ONE_DEVICE)),
    ("fsdp", NoEffect(ONE_DEVICE)),
    ("fsdp_config", NoEffect(ONE_DEVICE)),
    ("deepspeed", NoEffect(ONE_DEVICE)),
    ("debug", NoEffect(PYTORCH)),
    ("skip_memory_metrics", NoEffect(PYTORCH)),
    ("do_train", Works),
    ("do_eval", Works),
    ("do_predict", Works),
    ("resume_from_checkpoint", Works),
    ("warmup_ratio", Works),
    ("logging_dir", Works),
    ("local_rank", NoEffect(ONE_DEVICE)),
    ("sortish_sampler", NoEffect(PYTORCH)),
    ("predict_with_generate", Works),
    ("generation_max_length", NoEffect(DECIDED_ELSEWHERE)),
    ("generation_num_beams", NoEffect(DECIDED_ELSEWHERE)),
    ("generation_config", NoEffect("the generation keys of the config decide")),
    ("ray_num_workers", NoEffect(ONE_DEVICE)),
    ("ray_init_kwargs", NoEffect(ONE_DEVICE)),
    ("master_addr", NoEffect(ONE_DEVICE)),
    ("master_port", NoEffect(ONE_DEVICE)),
    ("fp8", refused(Off, "asks for 8-bit floating-point training, which is not built")),
    ("fp8_backend", NoEffect(UNUSED_PART)),
    ("fp8_enable_fsdp_float8_all_gather", NoEffect(UNUSED_PART)),
    ("enable_torch_profiler", NoEffect(PROFILER)),
    ("profiler_output_dir", NoEffect(PROFILER)),
    ("profiler_wait_steps", NoEffect(PROFILER)),
    ("profiler_warmup_steps", NoEffect(PROFILER)),
    ("profiler_active_steps", NoEffect(PROFILER)),
    ("profiler_repeat", NoEffect(PROFILER)),
    ("profiler_record_shapes", NoEffect(PROFILER)),
    ("profiler_profile_memory", NoEffect(PROFILER)),
    ("profiler_with_stack", NoEffect(PROFILER)),
    ("profile_modules", NoEffect(PROFILER)),
    ("overwrite_output_dir", Works),
    // The method.
    ("freeze_trainable_layers", Works),
    ("freeze_trainable_modules", Works),
    ("freeze_extra_modules", Works),
    ("additional_target", Works),
    ("module_dropout", NoEffect(UNUSED_PART)),
    ("oft_rank", NoEffect(UNUSED_PART)),
    ("oft_block_size", NoEffect(UNUSED_PART)),
    ("oft_target", NoEffect(UNUSED_PART)),
    ("create_new_adapter", Works),
    ("lora_alpha", Works),
    ("lora_dropout", Works),
    ("lora_rank", Works),
    ("lora_target", Works),
    ("loraplus_lr_ratio", refused(Unset, "asks for LoRA+, which is not built")),
    ("loraplus_lr_embedding", NoEffect(UNUSED_PART)),
    ("use_rslora", Works),
    ("use_dora", refused(Off, "asks for DoRA, which is not built")),
    ("pissa_init", refused(Off, "asks for PiSSA, which is not built")),
    ("pissa_iter", NoEffect(UNUSED_PART)),
    ("pissa_convert", refused(Off, "asks for PiSSA, which is not built")),
    ("pref_beta", NoEffect(PREFERENCE)),
    ("pref_ftx", NoEffect(PREFERENCE)),
    ("pref_bco_weight", NoEffect(PREFERENCE)),
    ("pref_loss", NoEffect(PREFERENCE)),
    ("dpo_label_smoothing", NoEffect(PREFERENCE)),
    ("kto_chosen_weight", NoEffect(PREFERENCE)),
    ("kto_rejected_weight", NoEffect(PREFERENCE)),
    ("simpo_gamma", NoEffect(PREFERENCE)),
    ("ppo_buffer_size", NoEffect(PREFERENCE)),
    ("ppo_epochs", NoEffect(PREFERENCE)),
    ("ppo_score_norm", NoEffect(PREFERENCE)),
    ("ppo_target", NoEffect(PREFERENCE)),
    ("ppo_whiten_rewards", NoEffect(PREFERENCE)),
    ("ref_model", NoEffect(PREFERENCE)),
    ("ref_model_adapters", NoEffect(PREFERENCE)),
    ("ref_model_quantization_bit", NoEffect(PREFERENCE)),
    ("reward_model", NoEffect(PREFERENCE)),
    ("reward_model_adapters", NoEffect(PREFERENCE)),
    ("reward_model_quantization_bit", NoEffect(PREFERENCE)),
    ("reward_model_type", NoEffect(PREFERENCE)),
    ("ld_alpha", NoEffect(PREFERENCE)),
    ("use_galore", refused(Off, "asks for GaLore, which is not built")),
    ("galore_target", NoEffect(UNUSED_PART)),
    ("galore_rank", NoEffect(UNUSED_PART)),
    ("galore_update_interval", NoEffect(UNUSED_PART)),
    ("galore_scale", NoEffect(UNUSED_PART)),
    ("galore_proj_type", NoEffect(UNUSED_PART)),
    ("galore_layerwise", NoEffect(UNUSED_PART)),
    ("use_apollo", refused(Off, "asks for APOLLO, which is not built")),
    ("apollo_target", NoEffect(UNUSED_PART)),
    ("apollo_rank", NoEffect(UNUSED_PART)),
    ("apollo_update_interval", NoEffect(UNUSED_PART)),
    ("apollo_scale", NoEffect(UNUSED_PART)),
    ("apollo_proj", NoEffect(UNUSED_PART)),
    ("apollo_proj_type", NoEffect(UNUSED_PART)),
    ("apollo_scale_type", NoEffect(UNUSED_PART)),
    ("apollo_layerwise", NoEffect(UNUSED_PART)),
    ("apollo_scale_front", NoEffect(UNUSED_PART)),
    ("use_badam", refused(Off, "asks for BAdam, which is not built")),
    ("badam_mode", NoEffect(UNUSED_PART)),
    ("badam_start_block", NoEffect(UNUSED_PART)),
    ("badam_switch_mode", NoEffect(UNUSED_PART)),
    ("badam_switch_interval", NoEffect(UNUSED_PART)),
    ("badam_update_ratio", NoEffect(UNUSED_PART)),
    ("badam_mask_mode", NoEffect(UNUSED_PART)),
    ("badam_verbose", NoEffect(UNUSED_PART)),
    ("use_swanlab", refused(Off, "asks for SwanLab; set `report_to: tensorboard` for curves")),
    ("swanlab_project", NoEffect(OTHER_LOGGER)),
    ("swanlab_workspace", NoEffect(OTHER_LOGGER)),
    ("swanlab_run_name", NoEffect(OTHER_LOGGER)),
    ("swanlab_mode", NoEffect(OTHER_LOGGER)),
    ("swanlab_api_key", NoEffect(OTHER_LOGGER)),
    ("swanlab_logdir", NoEffect(OTHER_LOGGER)),
    ("swanlab_lark_webhook_url", NoEffect(OTHER_LOGGER)),
    ("swanlab_lark_secret", NoEffect(OTHER_LOGGER)),
    ("pure_bf16", Works),
    ("stage", Works),
    ("finetuning_type", Works),
    ("use_llama_pro", refused(Off, "asks for LLaMA Pro blocks, which are not built")),
    ("use_adam_mini", refused(Off, "asks for Adam-mini, which is not built")),
    ("use_mca", refused(Off, "asks for Megatron, which is not built")),
    ("use_hyper_parallel", refused(Off, "asks for HyperParallel, which is not built")),
    ("hyper_parallel_args", NoEffect(UNUSED_PART)),
    ("use_muon", refused(Off, "asks for Muon, which is not built")),
    ("use_dft_loss", refused(Off, "asks for the DFT loss, which is not built")),
    ("use_asft_loss", refused(Off, "asks for the ASFT loss, which is not built")),
    ("asft_alpha", NoEffect(UNUSED_PART)),
    ("use_eaft_loss", refused(Off, "asks for the EAFT loss, which is not built")),
    ("eaft_alpha", NoEffect(UNUSED_PART)),
    ("freeze_vision_tower", NoEffect(TEXT_ONLY)),
    ("freeze_multi_modal_projector", NoEffect(TEXT_ONLY)),
    ("freeze_language_model", refused(Off, "would leave nothing to train in a text model")),
    ("compute_accuracy", Works),
    ("disable_shuffling", Works),
    ("early_stopping_steps", Works),
    ("plot_loss", Works),
    ("include_effective_tokens_per_second", NoEffect("tokens per second are always counted without padding")),
    // Generation.
    ("do_sample", Works),
    ("temperature", Works),
    ("top_p", Works),
    ("top_k", Works),
    ("num_beams", refused(One, "asks for beam search, which is not built; 1 is sampling or greedy")),
    ("max_length", Works),
    ("max_new_tokens", Works),
    ("repetition_penalty", Works),
    ("length_penalty", NoEffect(BEAMS)),
    ("skip_special_tokens", Works),
    // The benchmarks of `eval`.
    ("task", Works),
    ("task_dir", Works),
    ("lang", Works),
    ("n_shot", Works),
    ("save_dir", Works),
    ("download_mode", NoEffect("benchmarks are read from a local folder")),
    // Our own.
    ("min_p", Works),
    ("presence_penalty", Works),
    ("frequency_penalty", Works),
    ("export_format", Works),
    ("export_outtype", Works),
    ("export_dequantized", Works),
    ("max_memory", Works),
    ("threads", Works),
    // The dialect of small tutorials (see `dialect`).
    ("base_model", Works),
    ("train_data_dir", Works),
    ("metadata_path", Works),
    ("batch_size", Works),
    ("epochs", Works),
    ("task_type", Works),
];

/// Names from other programs or older versions, and what they are called here.
const KNOWN_ELSEWHERE: &[(&str, &str)] = &[
    ("evaluation_strategy", "eval_strategy"),
    ("no_cuda", "use_cpu"),
    ("max_seq_length", "cutoff_len"),
    ("max_seq_len", "cutoff_len"),
    ("model_max_length", "cutoff_len"),
    ("sequence_len", "cutoff_len"),
    ("lr", "learning_rate"),
    ("r", "lora_rank"),
    ("lora_r", "lora_rank"),
    ("target_modules", "lora_target"),
    ("lora_target_modules", "lora_target"),
    ("load_in_4bit", "quantization_bit"),
    ("num_epochs", "num_train_epochs"),
    ("lr_scheduler", "lr_scheduler_type"),
    ("per_device_batch_size", "per_device_train_batch_size"),
    ("micro_batch_size", "per_device_train_batch_size"),
    ("checkpoint_dir", "adapter_name_or_path"),
];

/// What becomes of `key`; None if nobody knows it.
pub fn status(key: &str) -> Option<Status> {
    KEYS.iter().find(|(name, _)| *name == key).map(|(_, status)| *status)
}

/// The valid key most like `key`, if one is near enough to be meant.
pub fn nearest(key: &str) -> Option<&'static str> {
    // Longer than any key by far: comparing would only cost time.
    if key.len() > 64 {
        return None;
    }
    let key = key.to_lowercase().replace('-', "_");
    if let Some((_, ours)) = KNOWN_ELSEWHERE.iter().find(|(theirs, _)| *theirs == key) {
        return Some(ours);
    }
    KEYS.iter()
        .map(|(name, status)| (strsim::normalized_damerau_levenshtein(&key, name), *status == Works, *name))
        .filter(|(likeness, ..)| *likeness >= 0.6)
        .min_by(|a, b| {
            let order = |x: &(f64, bool, &str)| Reverse(((x.0 * 1e6) as u64, x.1));
            order(a).cmp(&order(b))
        })
        .map(|(_, _, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA_FACTORY: &str = include_str!("../../tests/golden/keys.txt");
    const OURS: [&str; 14] = [
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "export_format",
        "export_outtype",
        "export_dequantized",
        "max_memory",
        "threads",
        "base_model",
        "train_data_dir",
        "metadata_path",
        "batch_size",
        "epochs",
        "task_type",
    ];
    /// Of LLaMA-Factory's `EvaluationArguments`, those that no training file knows.
    const BENCHMARK: [&str; 6] = ["task", "task_dir", "lang", "n_shot", "save_dir", "download_mode"];

    #[test]
    fn every_key_stands_once() {
        let expected: Vec<&str> = LLAMA_FACTORY
            .lines()
            .filter(|l| !l.starts_with('#') && !l.is_empty())
            .chain(OURS)
            .chain(BENCHMARK)
            .collect();
        assert!(expected.len() > 340, "the list itself is cut short: {}", expected.len());
        for key in &expected {
            let times = KEYS.iter().filter(|(name, _)| name == key).count();
            assert_eq!(times, 1, "`{key}` stands {times} times in the table");
        }
        for (name, _) in KEYS {
            assert!(expected.contains(name), "`{name}` is in the table and in no list");
        }
    }

    #[test]
    fn reasons_are_one_line() {
        for (name, status) in KEYS {
            let (Status::NoEffect(why) | Status::Refused { why, .. }) = status else { continue };
            assert!(!why.is_empty() && !why.contains('\n'), "`{name}`: {why:?}");
        }
    }

    #[test]
    fn misspelt_keys_find_the_right_one() {
        let cases = [
            ("lora_rnak", Some("lora_rank")),
            ("learning_rte", Some("learning_rate")),
            ("per_device_batch_size", Some("per_device_train_batch_size")),
            ("cutof_len", Some("cutoff_len")),
            ("evaluation_strategy", Some("eval_strategy")),
            ("Lora-Rank", Some("lora_rank")),
            ("qwertyuiop", None),
        ];
        for (typed, want) in cases {
            assert_eq!(nearest(typed), want, "{typed}");
        }
        assert_eq!(nearest(&"x".repeat(100_000)), None);
    }

    #[test]
    fn names_from_elsewhere_lead_to_keys() {
        for (theirs, ours) in KNOWN_ELSEWHERE {
            assert!(status(theirs).is_none(), "`{theirs}` is a key itself");
            assert_eq!(status(ours), Some(Works), "`{ours}`");
        }
    }
}
