//! From files to records through the public interface: formats, order, splits, streams and what bad data gets.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
use qlora_engine::config::*;
use qlora_engine::data::source::{self, Splits};
use qlora_engine::{Config, Result};

/// A config over `dir`, with every default.
fn config(dir: &Path, dataset: &[&str]) -> Config {
    Config {
        model: ModelConfig {
            model_name_or_path: String::new(),
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
            use_cpu: true,
            max_memory: None,
        },
        data: DataConfig {
            dataset: dataset.iter().map(|name| name.to_string()).collect(),
            eval_dataset: vec![],
            dataset_dir: dir.into(),
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
        },
        tune: TuneConfig {
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
            freeze_trainable_modules: vec![],
            freeze_extra_modules: vec![],
            pure_bf16: false,
        },
        train: TrainConfig {
            do_train: true,
            do_eval: false,
            do_predict: false,
            compute_accuracy: false,
            output_dir: PathBuf::new(),
            overwrite_output_dir: false,
            resume_from_checkpoint: Resume::No,
            per_device_train_batch_size: 1,
            per_device_eval_batch_size: 1,
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
            disable_tqdm: true,
            threads: None,
        },
        generate: GenerateConfig {
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
        },
        benchmark: None,
        export: ExportConfig {
            dir: None,
            shard_bytes: 5_000_000_000,
            format: ExportFormat::Hf,
            outtype: None,
            dequantized: false,
        },
        written: vec![],
        no_effect: vec![],
    }
}

/// A folder with `a` (10 rows q0..q9, of which q3's answer is null), `b` (4 rows) and `c` (3, of which 1 is picked).
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let row = |name: &str, i: usize| match (name, i) {
        ("a", 3) => r#"{"instruction": "a3", "output": null}"#.to_string(),
        _ => format!(r#"{{"instruction": "{name}{i}", "output": "x"}}"#),
    };
    let rows = |name: &str, n: usize| (0..n).map(|i| row(name, i)).collect::<Vec<_>>();
    fs::write(dir.path().join("a.json"), format!("[{},]", rows("a", 10).join(",\n"))).unwrap();
    fs::write(dir.path().join("b.jsonl"), rows("b", 4).join("\n")).unwrap();
    fs::write(dir.path().join("c.csv"), "instruction,output\nc0,x\nc1,x\nc2,x\n").unwrap();
    fs::write(dir.path().join("t.txt"), "t0\n\nt2\n").unwrap();
    fs::write(
        dir.path().join("dataset_info.json"),
        r#"{"a": {"file_name": "a.json"}, "b": {"file_name": "b.jsonl"},
        "c": {"file_name": "c.csv", "num_samples": 5},
        "typo": {"file_name": "b.jsonl", "columns": {"prompt": "instruction", "response": "ouput"}},
        "typo2": {"file_name": "b.jsonl", "columns": {"prompt": "instruktion", "response": "output"}}}"#,
    )
    .unwrap();
    dir
}

fn load(cfg: &Config) -> Result<Splits> {
    source::load(cfg, &|_, _| {})
}

/// First turns, which name the rows.
fn shown(records: &[qlora_engine::data::Record]) -> String {
    records.iter().map(|r| r.messages[0].content.as_str()).collect::<Vec<_>>().join(" ")
}

fn said(cfg: &Config) -> String {
    let error = load(cfg).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn data_sets_are_read_in_order_and_skips_counted() {
    let dir = folder();
    let mut cfg = config(dir.path(), &["b", "a.json", "b"]);
    let splits = load(&cfg).unwrap();
    assert_eq!(shown(&splits.train), "b0 b1 b2 b3 a0 a1 a2 a4 a5 a6 a7 a8 a9");
    assert_eq!(splits.train_rows, [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]);
    let report: Vec<_> = splits.report.iter().map(|r| (r.name.as_str(), r.rows, r.skipped.values().sum())).collect();
    assert_eq!(report, [("b", 4, 0), ("a.json", 10, 1)]);
    cfg.data.max_samples = Some(5);
    assert_eq!(shown(&load(&cfg).unwrap().train), "b0 b1 b2 b3 a0 a1 a2 a4");
    cfg.data.mix_strategy = MixStrategy::InterleaveUnder;
    assert_eq!(shown(&load(&cfg).unwrap().train), "b0 a0 b1 a1 b2 a2 b3");
}

/// np.random.seed(42); np.random.permutation(3) is [0 1 2], then np.random.choice(3, 2) is [0 1]... checked against
/// NumPy in the golden file; here, that the rows follow `order::sample`.
#[test]
fn num_samples_repeats_rows_and_max_samples_cuts_after_it() {
    let dir = folder();
    let mut cfg = config(dir.path(), &["c"]);
    let mut rng = qlora_engine::data::order::LegacyRandom::new(42);
    let order = qlora_engine::data::order::sample(&mut rng, 3, 5);
    let want: Vec<String> = order.iter().map(|i| format!("c{i}")).collect();
    assert_eq!(shown(&load(&cfg).unwrap().train), want.join(" "));
    cfg.data.max_samples = Some(2);
    assert_eq!(shown(&load(&cfg).unwrap().train), want[..2].join(" "));
}

#[test]
fn the_split_counts_rows_that_are_dropped_later() {
    let dir = folder();
    let mut cfg = config(dir.path(), &["a"]);
    cfg.data.val_size = 0.1;
    // datasets: train_test_split(0.1, seed=42) of 10 rows holds row 5 out (tests/golden/data/orders.json).
    let splits = load(&cfg).unwrap();
    assert_eq!(shown(&splits.train), "a6 a0 a7 a2 a4 a9 a1 a8");
    assert_eq!(splits.train_rows, [0, 1, 2, 4, 5, 6, 7, 8]);
    assert_eq!((splits.eval[0].0.as_str(), shown(&splits.eval[0].1).as_str()), ("", "a5"));
    cfg.data.val_size = 10.0;
    assert!(said(&cfg).contains("leaves none to train on"));
    cfg.data.eval_dataset = vec!["b".into()];
    assert!(said(&cfg).contains("together with `eval_dataset`"));
    cfg.data.val_size = 0.0;
    assert_eq!(shown(&load(&cfg).unwrap().eval[0].1), "b0 b1 b2 b3");
    cfg.data.eval_on_each_dataset = true;
    assert_eq!(load(&cfg).unwrap().eval[0].0, "b");
}

#[test]
fn bad_data_is_one_line_that_names_it() {
    let dir = folder();
    let say = |names: &[&str]| said(&config(dir.path(), names));
    assert!(say(&["typo"]).contains("no column `ouput`; it has `instruction`, `output`"), "{}", say(&["typo"]));
    assert!(say(&["typo2"]).contains("no column `instruktion`; it has `instruction`, `output`"), "{}", say(&["typo2"]));
    assert!(say(&["t.txt"]).contains("stage sft needs"));
    assert!(say(&["d"]).contains("neither in"));
    assert!(said(&config(&dir.path().join("nowhere"), &["d"])).contains("dataset_info.json: cannot read"));
    fs::write(dir.path().join("empty.json"), "[]").unwrap();
    assert!(say(&["empty.json"]).contains("is empty"));
    fs::write(dir.path().join("null.json"), r#"[{"instruction": "q", "output": null}]"#).unwrap();
    assert!(say(&["null.json"]).contains("of 1 were skipped: the answer is null (1)"));
    fs::write(dir.path().join("bad.jsonl"), "{\"instruction\": \"q\", \"output\": \"a\"}\n{\"instruction\": \n")
        .unwrap();
    assert!(say(&["bad.jsonl"]).contains("bad.jsonl: row 2: is not valid JSON"));
}

#[test]
fn text_is_pretrained_on_line_by_line() {
    let dir = folder();
    let mut cfg = config(dir.path(), &["t.txt"]);
    cfg.tune.stage = Stage::Pt;
    let train = load(&cfg).unwrap().train;
    assert_eq!((shown(&train).as_str(), train.len(), train[0].messages.len()), ("t0  t2", 3, 1));
}

#[test]
fn a_tutorials_folder_or_metadata_is_a_data_set() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rows.csv"), "prompt,completion\nq,a\n").unwrap();
    fs::write(dir.path().join("README.md"), "").unwrap();
    let mut cfg = config(dir.path(), &[]);
    assert!(said(&cfg).contains("`dataset`"));
    for metadata_path in [None, Some("rows.csv".into())] {
        cfg.data.tutorial = Some(TutorialData { train_data_dir: dir.path().into(), metadata_path });
        assert_eq!(shown(&load(&cfg).unwrap().train), "q");
    }
}

#[test]
fn the_digest_follows_contents_and_settings_only() {
    let (one, two) = (folder(), folder());
    let digest = |dir: &tempfile::TempDir, change: &dyn Fn(&mut Config)| {
        let mut cfg = config(dir.path(), &["a", "b"]);
        change(&mut cfg);
        source::digest(&cfg).unwrap()
    };
    let base = digest(&one, &|_| {});
    assert_eq!(digest(&two, &|cfg| cfg.train.learning_rate = 1.0), base);
    assert_ne!(digest(&one, &|cfg| cfg.data.max_samples = Some(3)), base);
    assert_ne!(digest(&one, &|cfg| cfg.train.seed = 3), base);
    assert_ne!(digest(&one, &|cfg| cfg.data.dataset.reverse()), base);
    fs::write(two.path().join("b.jsonl"), "{\"instruction\": \"other\", \"output\": \"x\"}").unwrap();
    assert_ne!(digest(&two, &|_| {}), base);
}

fn streamed(cfg: &Config, epoch: u64, skip: usize) -> Vec<String> {
    let rows = source::stream(cfg, epoch, skip).unwrap();
    rows.map(|r| r.unwrap().messages[0].content.clone()).collect()
}

#[test]
fn a_stream_holds_the_same_rows_out_in_every_epoch() {
    let dir = folder();
    let mut cfg = config(dir.path(), &["a", "b"]);
    cfg.data.streaming = true;
    cfg.data.buffer_size = 4;
    cfg.data.val_size = 3.0;
    let eval = source::stream_eval(&cfg).unwrap().remove(0).1;
    assert!(eval.len() >= 2, "three rows, of which a3 may be one");
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let rows = streamed(&cfg, epoch, 0);
        let mut all: Vec<_> = rows.iter().cloned().chain(eval.iter().map(|r| r.messages[0].content.clone())).collect();
        all.sort();
        assert_eq!(all.join(" "), "a0 a1 a2 a4 a5 a6 a7 a8 a9 b0 b1 b2 b3");
        orders.push(rows);
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2]);
    cfg.data.val_size = 14.0;
    let last = source::stream(&cfg, 0, 0).unwrap().last().unwrap();
    assert!(last.unwrap_err().to_string().contains("val_size"));
    cfg.data.val_size = 0.5;
    assert!(source::stream(&cfg, 0, 0).is_err());
}

#[test]
fn a_stream_ends_at_its_first_error() {
    let dir = folder();
    fs::write(dir.path().join("bad.jsonl"), "{\"instruction\": \"q\", \"output\": \"a\"}\n{\"instruction\": \n")
        .unwrap();
    let mut cfg = config(dir.path(), &["bad.jsonl"]);
    cfg.data.buffer_size = 1;
    let got: Vec<_> = source::stream(&cfg, 0, 0).unwrap().map(|r| r.is_ok()).collect();
    assert_eq!(got, [false]);
    cfg.data.dataset = vec!["typo".into()];
    let got: Vec<_> = source::stream(&cfg, 0, 0).unwrap().collect();
    assert!(got.len() == 1 && got[0].as_ref().unwrap_err().to_string().contains("no column `ouput`"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Wherever a stream is taken up again, it goes on as if it had not stopped.
    #[test]
    fn a_stream_resumes_exactly(skip in 0usize..16, epoch in 0u64..3, buffer in 1usize..20, strategy in 0usize..3) {
        let dir = folder();
        let mut cfg = config(dir.path(), &["a", "b"]);
        cfg.data.buffer_size = buffer;
        let strategies = [MixStrategy::Concat, MixStrategy::InterleaveUnder, MixStrategy::InterleaveOver];
        cfg.data.mix_strategy = strategies[strategy];
        cfg.data.interleave_probs = (strategy > 0).then(|| vec![0.6, 0.4]);
        let whole = streamed(&cfg, epoch, 0);
        prop_assert_eq!(&streamed(&cfg, epoch, skip)[..], whole.get(skip..).unwrap_or_default());
    }
}
