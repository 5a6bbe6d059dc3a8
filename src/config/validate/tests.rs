//! Whole configs: what LLaMA-Factory users write is read as LLaMA-Factory reads it, and what is wrong is named.

use std::path::PathBuf;

use proptest::prelude::{Just, ProptestConfig, prop, prop_assert, prop_oneof, proptest};
use serde_json::json;

use crate::config::*;
use crate::error::Error;

/// A LoRA run as the examples of LLaMA-Factory write it.
const LORA: &str = "
### model
model_name_or_path: some/model-1b
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj, v_proj

### dataset
dataset: first,second
template: qwen3_nothink
cutoff_len: 1024
max_samples: 100
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: out/lora
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none  # choices: [none, tensorboard]

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
";

fn yaml(text: &str, overrides: &[&str]) -> crate::Result<Config> {
    from_str(text, Format::Yaml, overrides)
}

/// [`LORA`] with one change.
fn lora(overrides: &[&str]) -> crate::Result<Config> {
    yaml(LORA, overrides)
}

/// The key and the message with which a config is refused, after the checks every message must pass.
fn refused(result: crate::Result<Config>) -> (String, String) {
    match result {
        Err(Error::Config { key, why }) => {
            assert!(!key.contains('\n') && !why.contains('\n'), "{key}: {why}");
            (key, why)
        }
        Err(e) => panic!("another error: {e}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn a_lora_run_is_read_whole() {
    let c = lora(&[]).unwrap();
    assert_eq!(c.model.model_name_or_path, "some/model-1b");
    assert_eq!(c.model.quantization_bit, None);
    assert_eq!((c.tune.stage, c.tune.finetuning_type), (Stage::Sft, FinetuningType::Lora));
    assert_eq!((c.tune.lora_rank, c.tune.lora_alpha, c.tune.lora_dropout), (16, 32.0, 0.0));
    assert_eq!(c.tune.lora_target, ["q_proj", "v_proj"]);
    assert_eq!(c.data.dataset, ["first", "second"]);
    assert_eq!(c.data.template.as_deref(), Some("qwen3_nothink"));
    assert_eq!((c.data.cutoff_len, c.data.max_samples), (1024, Some(100)));
    assert!(!c.data.packing);
    assert_eq!((c.train.learning_rate, c.train.num_train_epochs), (1e-4, 3.0));
    assert_eq!((c.train.per_device_train_batch_size, c.train.gradient_accumulation_steps), (1, 8));
    assert_eq!((c.train.warmup_ratio, c.train.warmup_steps), (0.1, 0.0));
    assert_eq!(c.train.lr_scheduler_type, SchedulerType::Cosine);
    assert_eq!((c.train.precision, c.train.resume_from_checkpoint.clone()), (Precision::Bf16, Resume::No));
    assert_eq!((c.train.logging_steps, c.train.save_steps), (10.0, 500.0));
    assert!(c.train.plot_loss && c.train.overwrite_output_dir && !c.train.report_to_tensorboard && !c.train.do_eval);
    let keys: Vec<&str> = c.no_effect.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(keys, ["trust_remote_code", "preprocessing_num_workers", "dataloader_num_workers", "ddp_timeout"]);
    assert_eq!(c.written[0], ("model_name_or_path".to_string(), json!("some/model-1b")));
    assert_eq!(c.written.len(), LORA.lines().filter(|l| l.contains(": ") && !l.starts_with('#')).count());
    c.validate_for(Command::Train).unwrap();
}

/// Each default stands in LLaMA-Factory 0.9.5's or transformers 5's argument classes.
#[test]
fn defaults_are_llama_factorys() {
    let c = yaml("model_name_or_path: m", &[]).unwrap();
    assert_eq!(
        c.model,
        ModelConfig {
            model_name_or_path: "m".into(),
            adapter_name_or_path: vec![],
            model_revision: "main".into(),
            cache_dir: None,
            hf_hub_token: None,
            quantization_bit: None,
            double_quantization: true,
            split_special_tokens: false,
            disable_gradient_checkpointing: false,
            rope_scaling: None,
            train_from_scratch: false,
            use_cpu: false,
            max_memory: None,
        }
    );
    assert_eq!(
        c.data,
        DataConfig {
            dataset: vec![],
            eval_dataset: vec![],
            dataset_dir: "data".into(),
            template: None,
            cutoff_len: 2048,
            train_on_prompt: false,
            mask_history: false,
            streaming: false,
            buffer_size: 16384,
            mix_strategy: MixStrategy::Concat,
            interleave_probs: None,
            overwrite_cache: false,
            preprocessing_batch_size: 1000,
            max_samples: None,
            val_size: 0.0,
            eval_on_each_dataset: false,
            packing: false,
            neat_packing: false,
            tool_format: None,
            default_system: None,
            enable_thinking: Some(true),
            preserve_thinking: false,
            tokenized_path: None,
            ignore_pad_token_for_loss: true,
            tutorial: None,
        }
    );
    assert_eq!(
        c.tune,
        TuneConfig {
            stage: Stage::Sft,
            finetuning_type: FinetuningType::Lora,
            lora_rank: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            lora_target: vec!["all".into()],
            use_rslora: false,
            create_new_adapter: false,
            additional_target: vec![],
            freeze_trainable_layers: 2,
            freeze_trainable_modules: vec!["all".into()],
            freeze_extra_modules: vec![],
            pure_bf16: false,
        }
    );
    assert_eq!(
        c.train,
        TrainConfig {
            do_train: false,
            do_eval: false,
            do_predict: false,
            compute_accuracy: false,
            output_dir: "trainer_output".into(),
            overwrite_output_dir: false,
            resume_from_checkpoint: Resume::No,
            per_device_train_batch_size: 8,
            per_device_eval_batch_size: 8,
            gradient_accumulation_steps: 1,
            num_train_epochs: 3.0,
            max_steps: None,
            learning_rate: 5e-5,
            lr_scheduler_type: SchedulerType::Linear,
            lr_scheduler_kwargs: vec![],
            warmup_ratio: 0.0,
            warmup_steps: 0.0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            adam_8bit: false,
            max_grad_norm: 1.0,
            neftune_noise_alpha: None,
            precision: Precision::F32,
            seed: 42,
            data_seed: None,
            disable_shuffling: false,
            dataloader_drop_last: false,
            logging_strategy: Strategy::Steps,
            logging_steps: 500.0,
            logging_first_step: false,
            eval_strategy: Strategy::No,
            eval_steps: None,
            eval_on_start: false,
            save_strategy: Strategy::Steps,
            save_steps: 500.0,
            save_total_limit: None,
            save_only_model: false,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            early_stopping_steps: None,
            plot_loss: false,
            report_to_tensorboard: false,
            run_name: None,
            logging_dir: None,
            include_num_input_tokens_seen: false,
            disable_tqdm: false,
            threads: None,
        }
    );
    assert_eq!(
        c.generate,
        GenerateConfig {
            predict_with_generate: false,
            do_sample: true,
            temperature: 0.95,
            top_p: 0.7,
            top_k: 50,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            max_new_tokens: 1024,
            max_length: None,
            skip_special_tokens: true,
        }
    );
    assert_eq!(c.benchmark, None);
    let (format, shard_bytes) = (ExportFormat::Hf, 5_000_000_000);
    assert_eq!(c.export, ExportConfig { dir: None, shard_bytes, format, outtype: None, dequantized: false });
    assert!(c.no_effect.is_empty());
}

#[test]
fn generation_keys_that_follow_from_each_other() {
    let of = |overrides: &[&str]| yaml("model_name_or_path: m", overrides).unwrap().generate;
    assert!(!of(&["temperature=0"]).do_sample && !of(&["do_sample=false"]).do_sample);
    let g = of(&["max_new_tokens=9", "max_length=7"]);
    assert_eq!((g.max_new_tokens, g.max_length, g.room_after(100)), (9, None, 9));
    let g = of(&["max_new_tokens=-1", "max_length=70"]);
    assert_eq!((g.max_length, g.room_after(20), g.room_after(80)), (Some(70), 50, 0));
    assert_eq!(of(&["max_new_tokens=0"]).room_after(24), 1000);
}

/// As LLaMA-Factory's examples write an evaluation file.
#[test]
fn a_benchmark_file_is_read() {
    let text = "model_name_or_path: m\nfinetuning_type: lora\ntask: mmlu_test\ntemplate: fewshot\nlang: en\nn_shot: 3\n\
                save_dir: out\nbatch_size: 2\ndownload_mode: reuse_dataset_if_exists";
    let c = yaml(text, &[]).unwrap();
    c.validate_for(Command::Eval).unwrap();
    assert!(!c.train.do_train, "its batch_size is no sign of the tutorial dialect");
    let want = BenchmarkConfig {
        task: "mmlu".into(),
        split: Split::Test,
        task_dir: "evaluation".into(),
        n_shot: 3,
        lang: Lang::En,
        save_dir: Some("out".into()),
    };
    assert_eq!(c.benchmark, Some(want));
    let c = yaml("model_name_or_path: m\ntask: ceval_validation\nlang: zh", &[]).unwrap().benchmark.unwrap();
    assert_eq!((c.split, c.lang, c.n_shot), (Split::Validation, Lang::Zh, 5));
    assert_eq!(refused(lora(&["n_shot=3"])).0, "n_shot");
    assert!(lora(&[]).unwrap().validate_for(Command::Eval).unwrap_err().to_string().contains("`task`"));
}

#[test]
fn values_at_which_nothing_is_asked_are_accepted() {
    for o in [
        "use_dora=false",
        "quantization_method=bnb",
        "quantization_type=nf4",
        "infer_backend=huggingface",
        "shift_attn=false",
        "label_smoothing_factor=0.0",
        "loraplus_lr_ratio=null",
        "optim=adamw_torch",
        "optim=adamw_hf",
        "optim=adamw_8bit",
        "ignore_pad_token_for_loss=true",
        "export_quantization_bit=null",
        "report_to=[none]",
        "report_to=null",
        "eval_strategy=no",
        "max_steps=-1",
        "neftune_noise_alpha=0",
        "save_total_limit=-1",
        "lora_rank=8.0",
        "num_beams=1",
    ] {
        let c = lora(&[o]).unwrap_or_else(|e| panic!("{o}: {e}"));
        assert_eq!(c.no_effect.len(), 4, "{o}");
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    for (o, key) in [
        ("stage=rm", "stage"),
        ("stage=ppo", "stage"),
        ("stage=dpo", "stage"),
        ("stage=kto", "stage"),
        ("finetuning_type=oft", "finetuning_type"),
        ("quantization_bit=8", "quantization_bit"),
        ("quantization_bit=3", "quantization_bit"),
        ("quantization_method=hqq", "quantization_method"),
        ("quantization_method=eetq", "quantization_method"),
        ("quantization_method=gptq", "quantization_method"),
        ("quantization_type=fp4", "quantization_type"),
        ("export_quantization_bit=4", "export_quantization_bit"),
        ("use_dora=true", "use_dora"),
        ("use_galore=true", "use_galore"),
        ("shift_attn=true", "shift_attn"),
        ("infer_backend=vllm", "infer_backend"),
        ("optim=paged_adamw_8bit", "optim"),
        ("optim=paged_adamw_32bit", "optim"),
        ("report_to=wandb", "report_to"),
        ("report_to=[tensorboard, swanlab]", "report_to"),
        ("lr_scheduler_type=greedy", "lr_scheduler_type"),
        ("add_tokens=<x>", "add_tokens"),
        ("resize_vocab=true", "resize_vocab"),
        ("label_smoothing_factor=0.1", "label_smoothing_factor"),
        ("label_smoothing_factor=.nan", "label_smoothing_factor"),
        ("ignore_pad_token_for_loss=false", "ignore_pad_token_for_loss"),
        ("push_to_hub=true", "push_to_hub"),
        ("num_beams=4", "num_beams"),
        ("dataset_dir=ONLINE", "dataset_dir"),
        ("model_name_or_path=models/x.GGML", "model_name_or_path"),
    ] {
        assert_eq!(refused(lora(&[o])).0, key, "{o}");
    }
}

#[test]
fn wrong_types_and_bounds_name_the_key_and_the_value() {
    for (o, part) in [
        ("lora_rank=eight", "the text \"eight\""),
        ("lora_rank=0", "got 0"),
        ("lora_rank=-4", "got -4"),
        ("lora_rank=8.5", "got 8.5"),
        ("lora_rank=1e300", "whole number"),
        ("lora_dropout=1.0", "[0, 1)"),
        ("lora_dropout=.nan", "got .nan"),
        ("lora_alpha=-1", "above 0"),
        ("learning_rate=fast", "a number"),
        ("learning_rate=.inf", "got .inf"),
        ("learning_rate=-1e-4", "got -0.0001"),
        ("num_train_epochs=0", "above 0"),
        ("bf16=maybe", "true or false"),
        ("bf16=1", "true or false"),
        ("cutoff_len=0", "1 or more"),
        ("cutoff_len=[1]", "a list"),
        ("cutoff_len={a: 1}", "a mapping"),
        ("val_size=1", "above 1"),
        ("val_size=1.5", "above 1"),
        ("val_size=-0.1", "[0, 1)"),
        ("adam_beta1=1", "[0, 1)"),
        ("warmup_ratio=1.5", "[0, 1]"),
        ("warmup_steps=1.5", "whole number"),
        ("logging_steps=0", "whole number"),
        ("save_steps=2.5", "whole number"),
        ("seed=-1", "4294967295"),
        ("stage=stf", "one of sft, pt"),
        ("dataset=a,,b", "names"),
        ("dataset=[]", "names"),
        ("dataset=[1, 2]", "names"),
        ("max_samples=0", "1 or more"),
        ("max_memory=lots", "10GB"),
        ("max_memory=0", "10GB"),
        ("threads=0", "1 or more"),
        ("temperature=-0.1", "[0, 100]"),
        ("temperature=.nan", "got .nan"),
        ("top_p=1.1", "[0, 1]"),
        ("top_p=.nan", "got .nan"),
        ("top_k=-1", "0 or more"),
        ("min_p=2", "[0, 1]"),
        ("repetition_penalty=0", "above 0"),
        ("presence_penalty=3", "[-2, 2]"),
        ("frequency_penalty=-3", "[-2, 2]"),
        ("max_new_tokens=1.5", "whole number"),
        ("max_length=0", "1 or more"),
        ("task=mmlu", "mmlu_test"),
        ("task=mmlu_train", "mmlu_test"),
        ("task=../x_test", "mmlu_test"),
        ("lang=fr", "one of en, zh"),
        ("n_shot=-1", "0 or more"),
        ("resume_from_checkpoint=3", "path"),
        ("mix_strategy=shuffle", "concat"),
        ("template=\"\"", "not empty"),
    ] {
        let (key, why) = refused(lora(&[o]));
        assert_eq!(key, o.split('=').next().unwrap(), "{o}: {why}");
        assert!(why.contains(part), "{o}: {why}");
    }
    let (key, why) = refused(yaml("model_name_or_path: 7", &[]));
    assert!(key == "model_name_or_path" && why.contains("got 7"), "{why}");
}

#[test]
fn unknown_keys_lead_to_the_nearest() {
    let (key, why) = refused(lora(&["lora_rnk=8"]));
    assert!(key == "lora_rnk" && why.contains("`lora_rank`"), "{why}");
    let (_, why) = refused(lora(&["max_seq_length=8"]));
    assert!(why.contains("`cutoff_len`"), "{why}");
    let (key, _) = refused(yaml("\"a\\nb\": 1", &[]));
    assert_eq!(key, "a\\nb");
    assert_eq!(refused(yaml("", &[])).0, "model_name_or_path");
}

#[test]
fn settings_that_contradict_each_other() {
    for (overrides, key) in [
        (vec!["finetuning_type=full", "quantization_bit=4"], "quantization_bit"),
        (vec!["finetuning_type=freeze", "adapter_name_or_path=a"], "adapter_name_or_path"),
        (vec!["finetuning_type=full", "use_rslora=true"], "use_rslora"),
        (vec!["quantization_bit=4", "adapter_name_or_path=a,b"], "adapter_name_or_path"),
        (vec!["quantization_bit=4", "adapter_name_or_path=a", "create_new_adapter=true"], "create_new_adapter"),
        (vec!["stage=pt", "neat_packing=true"], "neat_packing"),
        (vec!["stage=pt", "train_on_prompt=true"], "train_on_prompt"),
        (vec!["mask_history=true", "train_on_prompt=true"], "mask_history"),
        (vec!["fp16=true"], "fp16"),
        (vec!["val_size=0.1", "eval_dataset=e"], "val_size"),
        (vec!["val_size=0.1", "dataset=null"], "val_size"),
        (vec!["eval_strategy=steps"], "eval_strategy"),
        (vec!["do_eval=true"], "do_eval"),
        (vec!["do_predict=true", "eval_dataset=e"], "do_predict"),
        (vec!["streaming=true", "max_samples=null"], "max_steps"),
        (vec!["streaming=true", "max_steps=10"], "max_samples"),
        (vec!["streaming=true", "max_steps=10", "max_samples=null", "val_size=0.1"], "val_size"),
        (vec!["interleave_probs=0.5,0.5"], "interleave_probs"),
        (vec!["interleave_probs=0.5,0.6", "mix_strategy=interleave_over"], "interleave_probs"),
        (vec!["interleave_probs=[0.2, 0.3, 0.5]", "mix_strategy=interleave_over"], "interleave_probs"),
        (vec!["load_best_model_at_end=true"], "load_best_model_at_end"),
        (
            vec!["load_best_model_at_end=true", "val_size=0.1", "eval_strategy=steps", "eval_steps=300"],
            "load_best_model_at_end",
        ),
        (
            vec!["load_best_model_at_end=true", "val_size=0.1", "eval_strategy=steps", "eval_steps=0.1"],
            "load_best_model_at_end",
        ),
        (vec!["early_stopping_steps=3", "val_size=0.1", "eval_strategy=steps"], "early_stopping_steps"),
        (vec!["metric_for_best_model=rouge-l"], "metric_for_best_model"),
        (vec!["save_strategy=best"], "save_strategy"),
        (vec!["lr_scheduler_kwargs={power: 2}"], "lr_scheduler_kwargs"),
        (vec!["lr_scheduler_type=cosine_with_min_lr"], "lr_scheduler_kwargs"),
        (vec!["train_data_dir=d"], "dataset"),
    ] {
        assert_eq!(refused(lora(&overrides)).0, key, "{overrides:?}");
    }
}

#[test]
fn settings_that_follow_from_each_other() {
    assert!(lora(&["neat_packing=true"]).unwrap().data.packing);
    assert!(lora(&["stage=pt"]).unwrap().data.packing);
    assert!(!lora(&["stage=pt", "packing=false"]).unwrap().data.packing);

    let c = lora(&["eval_strategy=steps", "val_size=0.1"]).unwrap();
    assert_eq!((c.train.do_eval, c.train.eval_steps), (true, Some(10.0)));

    let c = lora(&["val_size=20", "eval_strategy=steps", "eval_steps=100", "load_best_model_at_end=on"]).unwrap();
    assert_eq!(c.train.metric_for_best_model.as_deref(), Some("loss"));
    assert_eq!(c.train.greater_is_better, Some(false));
    lora(&["val_size=20", "eval_strategy=steps", "eval_steps=0.1", "save_steps=0.3", "load_best_model_at_end=on"])
        .unwrap();

    let c = lora(&["warmup_ratio=null", "warmup_steps=20"]).unwrap();
    assert_eq!((c.train.warmup_ratio, c.train.warmup_steps), (0.0, 20.0));
    let c = lora(&["warmup_ratio=0", "warmup_steps=20"]).unwrap();
    assert_eq!((c.train.warmup_ratio, c.train.warmup_steps), (0.0, 0.0));

    let c = lora(&["bf16=false", "fp16=true"]).unwrap();
    assert_eq!(c.train.precision, Precision::Bf16);
    assert!(c.no_effect.iter().any(|(k, why)| k == "fp16" && why.contains("bf16")));

    let c = lora(&["enable_thinking=null"]).unwrap();
    assert_eq!(c.data.enable_thinking, None);
    let c = lora(&["lora_target=[all]", "lora_alpha=4", "max_memory=2GB"]).unwrap();
    assert_eq!((c.tune.lora_target, c.tune.lora_alpha), (vec!["all".to_string()], 4.0));
    assert_eq!(c.model.max_memory, Some(2_000_000_000));
    let c = lora(&["lr_scheduler_type=polynomial", "lr_scheduler_kwargs={power: 2, lr_end: 1e-6}"]).unwrap();
    assert_eq!(c.train.lr_scheduler_kwargs, [("power".to_string(), 2.0), ("lr_end".to_string(), 1e-6)]);
    assert_eq!(lora(&["save_steps=0"]).unwrap().train.save_strategy, Strategy::No);
}

#[test]
fn arguments_as_llama_factorys_users_type_them() {
    let c =
        lora(&["learning_rate=5e-6", "--output-dir", "elsewhere", "--do_eval=off", "run_name=2024", "seed=7"]).unwrap();
    assert_eq!((c.train.learning_rate, c.train.seed), (5e-6, 7));
    assert_eq!(c.train.output_dir, PathBuf::from("elsewhere"));
    assert_eq!(c.train.run_name.as_deref(), Some("2024"));
    assert_eq!(lora(&["default_system=You are: kind"]).unwrap().data.default_system.as_deref(), Some("You are: kind"));
    assert!(matches!(lora(&["resume_from_checkpoint=true"]).unwrap().train.resume_from_checkpoint, Resume::Latest));
    assert_eq!(
        lora(&["--resume_from_checkpoint", "out/checkpoint-5"]).unwrap().train.resume_from_checkpoint,
        Resume::From("out/checkpoint-5".into())
    );
    let json = r#"{"model_name_or_path": "m", "lora_target": ["q_proj"], "learning_rate": 1e-4}"#;
    assert_eq!(from_str(json, Format::Json, &[]).unwrap().tune.lora_target, ["q_proj"]);
}

#[test]
fn yaml_for_other_commands_parses() {
    let merge = "
model_name_or_path: some/model
adapter_name_or_path: saves/one
template: qwen3_nothink
trust_remote_code: true
export_dir: merged
export_size: 5
export_device: cpu  # choices: [cpu, auto]
export_legacy_format: false
";
    let c = yaml(merge, &[]).unwrap();
    assert_eq!(c.model.adapter_name_or_path, [PathBuf::from("saves/one")]);
    c.validate_for(Command::Export).unwrap();
    assert_eq!((c.export.dir, c.export.shard_bytes), (Some(PathBuf::from("merged")), 5_000_000_000));
    assert_eq!(refused(yaml(merge, &["export_quantization_bit=4"])).0, "export_quantization_bit");
    assert_eq!(refused(yaml(merge, &["export_legacy_format=true"])).0, "export_legacy_format");
    assert_eq!(refused(yaml(merge, &["export_outtype=f16"])).0, "export_outtype");
    assert_eq!(refused(yaml(merge, &["export_format=gguf-lora", "export_outtype=q8_0"])).0, "export_outtype");
    let c = yaml(merge, &["export_format=gguf", "export_outtype=q4_k_m", "export_size=2"]).unwrap();
    let wanted = (ExportFormat::Gguf, Some(OutType::Q4KM), 2_000_000_000);
    assert_eq!((c.export.format, c.export.outtype, c.export.shard_bytes), wanted);
    let for_export = |more: &[&str]| yaml(merge, more).unwrap().validate_for(Command::Export);
    for (more, key) in [
        (&["quantization_bit=4"][..], "`quantization_bit`"),
        (&["export_dir=null"], "`export_dir`"),
        (&["export_format=gguf-lora", "adapter_name_or_path=a,b"], "`adapter_name_or_path`"),
    ] {
        assert!(for_export(more).unwrap_err().to_string().contains(key), "{more:?}");
    }
    for_export(&["quantization_bit=4", "export_dequantized=true"]).unwrap();
    yaml("model_name_or_path: m\ntemplate: qwen3\ninfer_backend: huggingface\ntrust_remote_code: yes", &[]).unwrap();
    let predict =
        "model_name_or_path: m\ndo_predict: true\neval_dataset: e\npredict_with_generate: true\nmax_new_tokens: 9";
    let c = yaml(predict, &[]).unwrap();
    assert!(c.validate_for(Command::Train).unwrap_err().to_string().contains("output_dir"));
    let c = yaml(predict, &["output_dir=o"]).unwrap();
    c.validate_for(Command::Train).unwrap();
    c.validate_for(Command::Predict).unwrap();
    assert_eq!((c.generate.predict_with_generate, c.generate.max_new_tokens), (true, 9));
}

const TUTORIAL: &str = "
base_model: models/tiny
train_data_dir: data/train
metadata_path: data/train/rows.jsonl
lora_rank: 4
batch_size: 2
epochs: 5
learning_rate: 2e-4
output_dir: out
save_steps: 100
task_type: text-generation
";

#[test]
fn the_small_tutorial_dialect() {
    let c = yaml(TUTORIAL, &[]).unwrap();
    c.validate_for(Command::Train).unwrap();
    assert_eq!(c.model.model_name_or_path, "models/tiny");
    let data = c.data.tutorial.unwrap();
    assert_eq!(data.train_data_dir, PathBuf::from("data/train"));
    assert_eq!(data.metadata_path, Some(PathBuf::from("data/train/rows.jsonl")));
    assert_eq!((c.data.template, c.tune.lora_rank, c.tune.lora_alpha), (None, 4, 8.0));
    assert_eq!(c.tune.lora_target, ["all"]);
    assert_eq!((c.train.per_device_train_batch_size, c.train.num_train_epochs), (2, 5.0));
    assert!(c.train.do_train && c.train.report_to_tensorboard);
    assert_eq!(c.train.logging_steps, 10.0);

    let c = yaml(TUTORIAL, &["report_to=none", "per_device_train_batch_size=1", "train_data_dir=null"]).unwrap();
    assert!(!c.train.report_to_tensorboard);
    assert_eq!(c.train.per_device_train_batch_size, 1);
    assert_eq!(c.data.tutorial.unwrap().train_data_dir, PathBuf::from("data/train"));

    // Errors speak of the keys as the user wrote them.
    assert_eq!(refused(yaml(TUTORIAL, &["batch_size=0"])).0, "batch_size");
    assert_eq!(refused(yaml(TUTORIAL, &["epochs=none"])).0, "epochs");
    assert_eq!(refused(yaml(TUTORIAL, &["base_model=models/llama.ggml"])).0, "base_model");
    assert_eq!(refused(yaml(TUTORIAL, &["task_type=text-to-image"])).0, "task_type");
    assert_eq!(refused(yaml(&format!("{TUTORIAL}model_name_or_path: m"), &[])).0, "model_name_or_path");
    // A file for LLaMA-Factory stays one.
    assert!(!yaml("model_name_or_path: m\ntrain_on_prompt: no", &[]).unwrap().train.do_train);
}

#[test]
fn commands_say_what_they_miss() {
    let missing = |overrides: &[&str], command| match lora(overrides).unwrap().validate_for(command) {
        Err(Error::Config { key, .. }) => key,
        other => panic!("{overrides:?}: {other:?}"),
    };
    assert_eq!(missing(&["dataset=null"], Command::Train), "dataset");
    assert_eq!(missing(&["output_dir=null"], Command::Train), "output_dir");
    assert_eq!(missing(&["do_train=false"], Command::Train), "do_train");
    assert_eq!(missing(&["dataset=null"], Command::Plan), "dataset");
    assert_eq!(missing(&[], Command::Predict), "eval_dataset");
    assert_eq!(missing(&["eval_dataset=e", "stage=pt"], Command::Predict), "stage");
    assert_eq!(missing(&["eval_dataset=e", "output_dir=null"], Command::Predict), "output_dir");
    lora(&["output_dir=null"]).unwrap().validate_for(Command::Inspect).unwrap();
    lora(&["do_train=false", "output_dir=null", "tokenized_path=t"]).unwrap().validate_for(Command::Train).unwrap();
}

#[test]
fn secrets_are_not_recorded() {
    let c = lora(&["hf_hub_token=hf_abc"]).unwrap();
    assert_eq!(c.model.hf_hub_token.as_deref(), Some("hf_abc"));
    assert!(!format!("{:?}", c.written).contains("hf_abc"));
}

#[test]
fn a_file_is_read_by_its_extension() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.yml");
    std::fs::write(&path, LORA).unwrap();
    let path = path.to_str().unwrap().to_string();
    assert_eq!(load(std::slice::from_ref(&path)).unwrap().tune.lora_rank, 16);
    let c = load(&["--config".to_string(), path, "lora_rank=2".to_string()]).unwrap();
    assert_eq!(c.tune.lora_rank, 2);
    let bad = dir.path().join("run.json");
    std::fs::write(&bad, [0xff, 0xfe, 0]).unwrap();
    for name in [bad, dir.path().join("none.yaml"), dir.path().join("run.txt"), dir.path().join("a/b.json")] {
        let said = load(&[name.to_str().unwrap().to_string()]).unwrap_err().to_string();
        assert!(said.starts_with(name.to_str().unwrap()) && !said.contains('\n'), "{said}");
    }
}

fn any_value() -> impl proptest::strategy::Strategy<Value = String> {
    prop_oneof![
        "[-0-9.e]{0,8}",
        Just("true".to_string()),
        Just("null".to_string()),
        Just(".nan".to_string()),
        Just("[a, 1]".to_string()),
        Just("{a: 1}".to_string()),
        "[a-z_,]{0,12}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any known key with any value: a config within its bounds or one line, never a panic.
    #[test]
    fn no_value_panics(picks in prop::collection::vec((0..table::KEYS.len(), any_value()), 1..4)) {
        let overrides: Vec<String> = picks.iter().map(|(i, v)| format!("{}={v}", table::KEYS[*i].0)).collect();
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        match lora(&overrides) {
            Err(e) => prop_assert!(!e.to_string().contains('\n'), "{e}"),
            Ok(c) => {
                prop_assert!(c.train.learning_rate >= 0.0 && c.train.learning_rate.is_finite());
                prop_assert!(c.tune.lora_rank >= 1 && c.tune.lora_alpha > 0.0 && c.data.cutoff_len >= 1);
                prop_assert!((0.0..1.0).contains(&c.tune.lora_dropout));
                prop_assert!(c.data.packing || !c.data.neat_packing);
            }
        }
    }
}
