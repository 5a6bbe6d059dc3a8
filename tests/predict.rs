//! Prediction, comparison, benchmarks and `do_eval` on the tiny model: the files they leave, and their figures against the
//! whole passes of the model.

mod common;

use std::path::Path;

use common::Place;
use qlora_engine::config::{self, Config, Format};
use qlora_engine::data::batch::Padding;
use qlora_engine::data::{Batch, Message, Role, Sample};
use qlora_engine::eval::{predict, score};
use qlora_engine::infer::Control;
use qlora_engine::model::{self, Model};
use qlora_engine::train::{self, Event, Inputs, plan, target};
use serde_json::Value;

/// Greedy answers of at most six tokens to the ten rows, three at a time.
const PREDICT: [&str; 6] = [
    "do_train=false",
    "eval_dataset=rows",
    "predict_with_generate=true",
    "do_sample=false",
    "max_new_tokens=6",
    "per_device_eval_batch_size=3",
];

fn ran(place: &Place, args: &[&str]) -> String {
    let ran = place.run(args);
    assert_eq!(ran.code, Some(0), "{args:?}\n{}\n{}", ran.stdout, ran.stderr);
    ran.stdout
}

fn rows(place: &Place, name: &str) -> Vec<Value> {
    String::from_utf8(place.read(name)).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'v>(row: &'v Value, key: &str) -> &'v str {
    row[key].as_str().unwrap()
}

/// The config of `place` with its paths made absolute, for the library.
fn config(place: &Place, more: &[&str]) -> Config {
    let path = |name: &str| place.path(name).display().to_string();
    let paths = [
        format!("model_name_or_path={}", path("model")),
        format!("dataset_dir={}", path("data")),
        format!("output_dir={}", path("out")),
    ];
    let all: Vec<&str> = paths.iter().map(String::as_str).chain(more.iter().copied()).collect();
    config::from_str(std::str::from_utf8(&place.read("run.yaml")).unwrap(), Format::Yaml, &all).unwrap()
}

/// The model without an adapter, as it is trained and evaluated.
fn base(config: &Config) -> Model {
    let (device, target) = target::pick(config).unwrap();
    let folder = Path::new(&config.model.model_name_or_path);
    model::load(folder, &plan::options(config, 512, &target), &device, &|_, _| {}).unwrap()
}

/// Logits after each of `ids`, by one whole pass.
fn logits(model: &Model, ids: &[u32]) -> Vec<Vec<f64>> {
    let n = ids.len() as u32;
    let sample = Sample { ids: ids.to_vec(), trained: vec![false; ids.len()], pieces: vec![n], ..Sample::default() };
    let batch = Batch::collate(&[&sample], Padding { multiple_of: 1, at_least: 0 });
    let all = model.logits(&batch, &(0..n).collect::<Vec<_>>()).unwrap();
    all.to_f64().chunks(all.cols()).map(<[f64]>::to_vec).collect()
}

fn likeliest(logits: &[f64]) -> u32 {
    assert!(logits.iter().all(|x| x.is_finite()));
    (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }) as u32
}

#[test]
fn answers_and_their_scores() {
    let place = Place::new();
    let said = ran(&place, &[&["predict", "run.yaml"], &PREDICT[..]].concat());
    assert!(said.contains("predict metrics") && said.contains("generated_predictions.jsonl"), "{said}");
    let rows = rows(&place, "out/generated_predictions.jsonl");
    assert_eq!(rows.len(), 10);
    assert_eq!(text(&rows[0], "prompt"), "<|im_start|>user\nWhat is 0 plus 0?<|im_end|>\n<|im_start|>assistant\n");
    assert!(text(&rows[9], "label").ends_with("It is 1.\n"), "{}", rows[9]);

    // Each answer is what whole passes choose.
    let c = config(&place, &PREDICT);
    let (_, tokenizer, template) = Inputs::model(&c, &mut |_: &Event<'_>| train::Control::Continue).unwrap();
    let (model, stops) = (base(&c), template.stop_ids(&tokenizer));
    for row in rows.iter().take(3) {
        let mut ids = tokenizer.encode(text(row, "prompt")).unwrap();
        let prompt = ids.len();
        for _ in 0..6 {
            let next = likeliest(logits(&model, &ids).last().unwrap());
            if stops.contains(&next) {
                break;
            }
            ids.push(next);
        }
        assert_eq!(text(row, "predict"), tokenizer.decode(&ids[prompt..], true).unwrap());
    }

    let results = place.json("out/predict_results.json");
    let keys: Vec<&String> = results.as_object().unwrap().keys().collect();
    let want = [
        "predict_bleu-4",
        "predict_model_preparation_time",
        "predict_rouge-1",
        "predict_rouge-2",
        "predict_rouge-l",
        "predict_runtime",
        "predict_samples_per_second",
        "predict_steps_per_second",
    ];
    assert_eq!(keys, want);
    let scores = score(rows.iter().map(|r| (text(r, "predict"), text(r, "label")))).unwrap();
    for (name, x) in scores.named() {
        assert_eq!(results[format!("predict_{name}")].as_f64(), Some(x), "{name}");
    }
    assert_eq!(place.json("out/all_results.json"), results);

    // Through `train`, as LLaMA-Factory has it.
    let before = place.read("out/generated_predictions.jsonl");
    ran(&place, &[&["train", "run.yaml", "do_predict=true", "output_dir=again"], &PREDICT[..]].concat());
    assert_eq!(place.read("again/generated_predictions.jsonl"), before);
}

/// A run that is stopped after any number of tokens goes on where it was, to the same bytes, drawn answers included.
#[test]
fn a_stopped_run_goes_on() {
    let drawn = ["do_train=false", "eval_dataset=rows", "max_new_tokens=5", "per_device_eval_batch_size=2"];
    let run = |place: &Place, more: &[&str], most: usize| {
        let mut generated = 0;
        let mut watch = |p: predict::Progress| {
            generated = generated.max(p.tokens);
            if p.tokens >= most { Control::Stop } else { Control::Continue }
        };
        let c = config(place, &[&drawn[..], more].concat());
        let result = predict::run(&c, false, &mut |_: &Event<'_>| train::Control::Continue, &mut watch);
        (result.map(|outcome| outcome.metrics[0].1), generated)
    };
    let whole = Place::new();
    let (bleu, all) = run(&whole, &[], usize::MAX);
    let want = whole.read("out/generated_predictions.jsonl");
    let place = Place::new();
    let e = run(&place, &[], all / 2).0.unwrap_err().to_string();
    assert!(e.contains("stopped") && e.contains("generated_predictions.jsonl"), "{e}");
    let half = place.read("out/generated_predictions.jsonl");
    assert!(!half.is_empty() && want.starts_with(&half) && half.len() < want.len());
    // As if the program had been killed in the middle of a line.
    place.write("out/generated_predictions.jsonl", [&half[..], b"{\"prompt\": \"to"].concat());
    let (again, left) = run(&place, &[], usize::MAX);
    assert_eq!(place.read("out/generated_predictions.jsonl"), want);
    assert_eq!(again.unwrap(), bleu.unwrap());
    assert!(left < all, "{left} of {all} tokens");
    assert!(!place.path("out/generated_predictions.jsonl.state").exists());

    // Other settings begin anew.
    assert!(run(&place, &[], 3).0.is_err());
    let (_, other) = run(&place, &["temperature=0.3"], usize::MAX);
    assert!(other > left, "{other}");
}

#[test]
fn what_was_trained_predicts_and_is_compared() {
    let place = Place::new();
    // Enough steps to say something else than the base.
    let answered = [&["eval_dataset=rows", "num_train_epochs=6", "learning_rate=0.05"], &PREDICT[2..]].concat();
    ran(&place, &[&["train", "run.yaml", "do_predict=true"], &answered[..]].concat());
    let all = place.json("out/all_results.json");
    assert!(all["train_loss"].is_f64() && all["predict_bleu-4"].is_f64(), "{all}");
    assert!(all["predict_model_preparation_time"].is_null(), "{all}");
    let tuned = rows(&place, "out/generated_predictions.jsonl");
    assert_eq!(tuned.len(), 10);

    let compare = ["predict", "run.yaml", "--compare", "base", "output_dir=cmp", "--adapter", "out"];
    let said = ran(&place, &[&compare[..], &PREDICT[..]].concat());
    assert!(said.contains("adapter") && said.contains("bleu-4"), "{said}");
    assert_eq!(rows(&place, "cmp/generated_predictions.jsonl"), tuned, "the adapter is the one that was trained");
    let base = rows(&place, "cmp/generated_predictions_base.jsonl");
    ran(&place, &[&["predict", "run.yaml", "output_dir=alone"], &PREDICT[..]].concat());
    assert_eq!(rows(&place, "alone/generated_predictions.jsonl"), base, "the base answers as it does alone");
    assert_ne!(base, tuned);
    let key = place.json("cmp/comparison_key.json");
    let mut sheet = csv::Reader::from_reader(std::io::Cursor::new(place.read("cmp/comparison.csv")));
    let mut filled = String::from("id,score A,score B\n");
    for (i, record) in sheet.records().map(Result::unwrap).enumerate() {
        let base_first = key["rows"][&record[0]]["A"] == "base";
        let answers = if base_first { [&base[i], &tuned[i]] } else { [&tuned[i], &base[i]] };
        assert_eq!([record[3].trim(), record[4].trim()], answers.map(|row| text(row, "predict").trim()));
        let scores = if base_first { "2,5" } else { "5,2" };
        filled += &format!("{},{scores}\n", &record[0]);
    }
    assert!(place.path("cmp/comparison.md").exists());

    let said = ran(&place, &["predict", "--scores", "cmp/comparison.csv"]);
    assert!(said.contains("none: no row") && said.contains("unscored      10"), "{said}");
    place.write("cmp/comparison.csv", filled);
    let said = ran(&place, &["predict", "--scores", "cmp/comparison.csv"]);
    assert!(said.contains("base 2.00, adapter 5.00") && said.contains("10 wins, 0 ties, 0 losses"), "{said}");
    // People's scores are not written over.
    let refused = place.run(&[&compare[..], &PREDICT[..]].concat());
    assert!(refused.code == Some(1) && refused.stderr.contains("holds scores"), "{}", refused.stderr);
}

#[test]
fn a_benchmark_is_answered_as_whole_passes_answer_it() {
    let place = Place::new();
    place.write("bench/toy/dev/sums_dev.csv", "1 + 1 = ?,1,2,3,4,B\n2 + 1 = ?,1,2,3,4,C\n");
    let questions = "1 + 3 = ?,1,2,3,4,D\n0 + 1 = ?,1,2,3,4,A\nWhat is 2 plus 0?,2,3,5,9,A\n";
    place.write("bench/toy/test/sums_test.csv", questions);
    let args = ["eval", "run.yaml", "task=toy_test", "task_dir=bench", "n_shot=2", "save_dir=res", "template=fewshot"];
    let said = ran(&place, &args);
    assert!(said.contains("        Average: ") && said.contains("sums: "), "{said}");
    assert!(said.contains(std::str::from_utf8(&place.read("res/results.log")).unwrap()), "{said}");

    let c = config(&place, &["template=fewshot", "task=toy_test"]);
    let (_, tokenizer, template) = Inputs::model(&c, &mut |_: &Event<'_>| train::Control::Continue).unwrap();
    let model = base(&c);
    let ask =
        |q: &str, all: [&str; 4]| format!("{q}\nA. {}\nB. {}\nC. {}\nD. {}\nAnswer:", all[0], all[1], all[2], all[3]);
    let four = ["1", "2", "3", "4"];
    let head = "The following are multiple choice questions (with answers) about sums.\n\n";
    let shots = [(head.to_string() + &ask("1 + 1 = ?", four), "B"), (ask("2 + 1 = ?", four), "C")];
    let asked = [ask("1 + 3 = ?", four), ask("0 + 1 = ?", four), ask("What is 2 plus 0?", ["2", "3", "5", "9"])];
    for (i, question) in asked.iter().enumerate() {
        let turns = shots.iter().map(|(q, a)| (q.as_str(), *a)).chain([(question.as_str(), "A")]);
        let messages: Vec<Message> = turns
            .flat_map(|(q, a)| [(Role::User, q), (Role::Assistant, a)])
            .map(|(role, content)| Message { role, content: content.into() })
            .collect();
        let ids = template.encode_oneturn(&tokenizer, &messages, "", "").unwrap().0;
        let last = logits(&model, &ids).pop().unwrap();
        let of = |letter: &str| last[*tokenizer.encode(letter).unwrap().last().unwrap() as usize];
        let best = ["A", "B", "C", "D"].into_iter().reduce(|a, b| if of(b) > of(a) { b } else { a }).unwrap();
        assert_eq!(place.json("res/results.json")["sums"][i.to_string()], best, "question {i}");
    }
    // Never over an earlier result, and a missing folder is named.
    let (again, elsewhere) = (["save_dir=res"], ["save_dir=other", "task_dir=none"]);
    for (more, words) in [(&again[..], "exists already"), (&elsewhere[..], "none/toy/test")] {
        let refused = place.run(&[&args[..], more].concat());
        assert!(refused.code == Some(1) && refused.stderr.contains(words), "{}", refused.stderr);
    }
}

#[test]
fn evaluation_alone_gives_loss_perplexity_and_accuracy() {
    let place = Place::new();
    let settings = ["do_train=false", "do_eval=true", "eval_dataset=rows", "per_device_eval_batch_size=4"];
    ran(&place, &[&["train", "run.yaml"], &settings[..]].concat());
    let results = place.json("out/eval_results.json");
    let of = |key: &str| results[key].as_f64().unwrap_or_else(|| panic!("{key}: {results}"));
    assert_eq!(of("eval_perplexity"), of("eval_loss").exp());
    let c = config(&place, &settings);
    let inputs = Inputs::prepare(&c, &mut |_: &Event<'_>| train::Control::Continue).unwrap();
    let model = base(&c);
    let mut shares = Vec::new();
    for sample in &inputs.eval[0].1 {
        let logits = logits(&model, &sample.ids);
        let places: Vec<usize> = (1..sample.ids.len()).filter(|&i| sample.trained[i]).collect();
        let right = places.iter().filter(|&&i| likeliest(&logits[i - 1]) == sample.ids[i]).count();
        shares.push(right as f64 / places.len() as f64);
    }
    let want = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!((of("eval_accuracy") - want).abs() < 1e-12, "{} {want}", of("eval_accuracy"));
}
