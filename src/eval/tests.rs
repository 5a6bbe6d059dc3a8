//! Against the original Python packages; see tests/golden/eval/make.py.

use serde_json::Value;

use super::*;

const GOLDEN: &str = include_str!("../../tests/golden/eval/scores.jsonl");

fn rows() -> Vec<Value> {
    let rows: Vec<Value> = GOLDEN.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.len() >= 200, "{} rows", rows.len());
    rows
}

fn text<'v>(row: &'v Value, key: &str) -> &'v str {
    row[key].as_str().unwrap()
}

#[test]
fn words_are_those_of_jieba() {
    for row in rows() {
        for (key, cut) in [("predict", "predict_words"), ("label", "label_words")] {
            let want: Vec<&str> = row[cut].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
            // "\r\n" is one word there; no score can tell.
            assert_eq!(words::cut(text(&row, key)).join("|"), want.join("|").replace("\r\n", "\r|\n"), "{row}");
        }
    }
}

#[test]
fn scores_are_llama_factorys() {
    let rows = rows();
    let mut sums = [0.0; 4];
    for row in &rows {
        for (i, (name, got)) in Scores::of(text(row, "predict"), text(row, "label")).named().into_iter().enumerate() {
            let want = row[name].as_f64().unwrap();
            assert_eq!(got, want, "{name} of {row}");
            sums[i] += want;
        }
    }
    let all = score(rows.iter().map(|r| (text(r, "predict"), text(r, "label")))).unwrap();
    for ((name, got), sum) in all.named().into_iter().zip(sums) {
        let want = sum / rows.len() as f64;
        assert!((got - want).abs() < 1e-9, "{name}: {got} {want}");
    }
    assert_eq!(score([]), None);
}
