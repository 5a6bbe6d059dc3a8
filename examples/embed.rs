//! Training from within another program: a config as text, a callback at each step, and an end when it says so.
//!
//!     cargo run --example embed -- path/to/model path/to/rows.json

use qlora_engine::config::{Format, from_str};
use qlora_engine::train::{Control, Event, train};
use qlora_engine::{Error, Result};

/// Steps after which this program has seen enough.
const ENOUGH: u64 = 3;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(rows)) = (args.next(), args.next()) else {
        return Err(Error::config("embed", "needs a model folder and a data file"));
    };
    let steps = fine_tune(&model, &rows, "saves/embed")?;
    println!("stopped after {steps} steps; saves/embed holds a checkpoint to go on from");
    Ok(())
}

/// Trains an adapter on `rows`, and stops after [`ENOUGH`] steps; returns how many were made.
fn fine_tune(model: &str, rows: &str, output_dir: &str) -> Result<u64> {
    // The keys are those of the YAML files; what is not said has the same default.
    let text = "
        stage: sft
        do_train: true
        finetuning_type: lora
        lora_target: all
        num_train_epochs: 10
        overwrite_output_dir: true
    ";
    let keys = [("model_name_or_path", model), ("dataset", rows), ("output_dir", output_dir)];
    let keys = keys.map(|(key, value)| format!("{key}={value}"));
    let config = from_str(text, Format::Yaml, &keys.each_ref().map(String::as_str))?;

    // Nothing in the library prints or ends the process: all it has to say comes here.
    let mut watch = |event: &Event<'_>| match event {
        Event::Step(step) => {
            println!("step {} of {}: loss {:.4}", step.step, step.total_steps, step.loss);
            // Stopping saves a checkpoint first; `resume_from_checkpoint: true` goes on from it.
            if step.step >= ENOUGH { Control::Stop } else { Control::Continue }
        }
        _ => Control::Continue,
    };
    let outcome = train(&config, &mut watch)?;
    Ok(outcome.step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callback_stops_the_run() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let (model, rows) = (format!("{root}/models/qwen3"), format!("{root}/runs/data/plain.json"));
        let steps = fine_tune(&model, &rows, out.to_str().unwrap()).unwrap();
        assert_eq!(steps, ENOUGH);
        assert!(out.join("checkpoint-3/adapter_model.safetensors").is_file());
        // A mistake is an error to handle, not an exit.
        let e = fine_tune("no such folder", &rows, out.to_str().unwrap()).unwrap_err();
        assert!(e.to_string().contains("no such folder"), "{e}");
    }
}
