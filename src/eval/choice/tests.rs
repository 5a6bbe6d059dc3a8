//! Tiny benchmarks in each layout, with a stub for the model.

use std::fs;

use super::*;
use crate::config::{Lang, Split};

fn benchmark(dir: &Path, task: &str, split: Split, n_shot: usize) -> BenchmarkConfig {
    let (task_dir, save_dir) = (dir.to_path_buf(), None);
    BenchmarkConfig { task: task.into(), split, task_dir, n_shot, lang: Lang::En, save_dir }
}

fn write(dir: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

const MMLU: [(&str, &str); 5] = [
    ("mmlu/dev/b_dev.csv", "d1,1,2,3,4,A\nd2,1,2,3,4,B\n"),
    ("mmlu/dev/a_x_dev.csv", "d3,1,2,3,4,C\n"),
    ("mmlu/test/b_test.csv", "\"q1, with a comma\nand a line\",1,2,3,4,A\nq2,1,2,3,4,D\n"),
    ("mmlu/test/a_x_test.csv", "q3,1,2,3,4,B\n"),
    (
        "mmlu/mapping.json",
        r#"{"b": {"name": "bee", "category": "STEM"}, "gone": {"name": "g", "category": "Other"},
            "a_x": {"name": "a of x", "category": "Humanities"}}"#,
    ),
];

#[test]
fn mmlu_has_no_header_and_an_order() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &MMLU);
    let subjects = read(&benchmark(dir.path(), "mmlu", Split::Test, 5)).unwrap();
    let names: Vec<_> = subjects.iter().map(|s| (s.id.as_str(), s.name.as_str(), s.category.as_deref())).collect();
    assert_eq!(names, [("b", "bee", Some("STEM")), ("a_x", "a of x", Some("Humanities"))]);
    assert_eq!((subjects[0].shots.len(), subjects[1].shots.len()), (2, 1));
    assert_eq!(subjects[0].items[0].question, "q1, with a comma\nand a line");
    assert_eq!(subjects[0].items[1].answer, 3);
    assert_eq!(read(&benchmark(dir.path(), "mmlu", Split::Test, 1)).unwrap()[0].shots.len(), 1);
    // Without examples there need not be any.
    fs::remove_dir_all(dir.path().join("mmlu/dev")).unwrap();
    assert!(read(&benchmark(dir.path(), "mmlu", Split::Test, 0)).unwrap()[0].shots.is_empty());
    assert!(read(&benchmark(dir.path(), "mmlu", Split::Test, 1)).unwrap_err().to_string().contains("dev"));
}

#[test]
fn c_eval_and_cmmlu_name_their_columns() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        &[
            ("ceval/dev/law_dev.csv", "id,question,A,B,C,D,answer,explanation\n0,例,甲,乙,丙,丁,C,因为\n"),
            ("ceval/val/law_val.csv", "\u{feff}id,question,A,B,C,D,answer\n0,问,甲,乙,丙,丁,B\n"),
            ("ceval/test/law_test.csv", "id,question,A,B,C,D\n0,问,甲,乙,丙,丁\n"),
            ("cmmlu/data/dev/agronomy.csv", ",Question,A,B,C,D,Answer\n0,例,甲,乙,丙,丁,A\n"),
            ("cmmlu/data/test/agronomy.csv", ",Question,A,B,C,D,Answer\n0,问,甲,乙,丙,丁,D\n"),
        ],
    );
    let law = &read(&benchmark(dir.path(), "ceval", Split::Validation, 5)).unwrap()[0];
    assert_eq!((law.name.as_str(), law.shots[0].answer, law.items[0].answer), ("law", 2, 1));
    assert_eq!(law.items[0].choices, ["甲", "乙", "丙", "丁"]);
    let e = read(&benchmark(dir.path(), "ceval", Split::Test, 5)).unwrap_err().to_string();
    assert!(e.contains("law_test.csv") && e.contains("`answer`"), "{e}");
    let agronomy = &read(&benchmark(dir.path(), "cmmlu", Split::Test, 5)).unwrap()[0];
    assert_eq!((agronomy.items[0].question.as_str(), agronomy.items[0].answer), ("问", 3));
    // The folder itself may be named.
    assert!(read(&benchmark(&dir.path().join("ceval"), "any", Split::Validation, 5)).is_ok());
}

#[test]
fn what_is_wrong_is_named() {
    for (row, words) in [
        ("q,1,2,3,4,E\n", "line 1: the answer must be A, B, C or D; it is `E`"),
        ("q,1,2,3,4,A\nq,1,2,3\n", "line 2: has 4 cells"),
        ("q,1,2,3,4,A\n\"a\nb\",1,2,3,4,\n", "line 2: the answer"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("t/test/x_test.csv", row)]);
        let said = read(&benchmark(dir.path(), "t", Split::Test, 0)).unwrap_err().to_string();
        assert!(said.contains(words) && said.contains("x_test.csv") && !said.contains('\n'), "{said}");
    }
    let dir = tempfile::tempdir().unwrap();
    let said = |split| read(&benchmark(dir.path(), "t", split, 0)).unwrap_err().to_string();
    assert!(said(Split::Test).contains("task_dir"), "{}", said(Split::Test));
    write(dir.path(), &[("t/test/x_test.csv", ""), ("t/val/x_val.csv", "\"\u{0}"), ("t/mapping.json", "[1]")]);
    assert!(said(Split::Test).contains("mapping.json"));
    write(dir.path(), &[("t/mapping.json", "{}")]);
    assert!(said(Split::Test).contains("no question"));
    assert!(!said(Split::Validation).contains('\n'));
}

#[test]
fn results_by_category_by_subject_and_each() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &MMLU);
    let subjects = read(&benchmark(dir.path(), "mmlu", Split::Test, 5)).unwrap();
    // A prompt of the stub is the first byte of its question's answer; it says A to all but the last.
    let asked: Vec<Vec<Vec<u32>>> =
        subjects.iter().map(|s| s.items.iter().map(|i| vec![i.answer as u32]).collect()).collect();
    let (mut told, mut last) = (Vec::new(), None);
    let mut choose = |ids: &[u32]| Ok(if ids[0] == 1 { 1 } else { 0 });
    let results = ask_all(&subjects, &asked, &mut choose, &mut |p| {
        told.push((p.subject.to_string(), p.done, p.right));
        last = Some((p.done, p.total));
    });
    let results = results.unwrap();
    assert_eq!(told, [("bee".into(), 1, 1), ("bee".into(), 2, 1), ("a of x".into(), 3, 2)]);
    assert_eq!(last, Some((3, 3)));
    assert_eq!(
        results.log(),
        "        Average: 66.67\n           STEM: 50.00\n     Humanities: 100.00\n\n\
         bee: 50.00 (1 of 2)\na of x: 100.00 (1 of 1)\n"
    );
    let out = dir.path().join("saves/out");
    results.write(&out).unwrap();
    // As json.dump(results, indent=2) writes it.
    assert_eq!(
        fs::read_to_string(out.join("results.json")).unwrap(),
        "{\n  \"b\": {\n    \"0\": \"A\",\n    \"1\": \"A\"\n  },\n  \"a_x\": {\n    \"0\": \"B\"\n  }\n}"
    );
    assert!(results.write(&out).is_err(), "never written over");
}

#[test]
fn the_likeliest_wins_and_nan_does_not() {
    assert_eq!(likeliest([1.0, 3.0, 3.0, -1.0]).unwrap(), 1);
    assert!(likeliest([1.0, f64::NAN, 3.0, -1.0]).is_err());
}
