//! The loop: steps, logs, evaluations, checkpoints, and what is left in `output_dir` at the end.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use super::batches::{Batches, envelopes, steps};
use super::checkpoint_dir::{self, Staged, Start};
use super::engine::{Engine, StepResult};
use super::inputs::{Inputs, TrainData};
use super::log_files::{TrainerLog, speed_metrics, write_results};
use super::plan::{self, Plan};
use super::progress::{Control, Event, LogRow, Observer, Observers, RunInfo, StepReport};
use super::schedule::{Cadence, Due, Schedule, Steps};
use super::state::{BestMetric, TrainerState, to_rotate};
use super::target::{self, Target};
use super::tensorboard::TensorBoard;
use super::{card, files, fit, plot};
use crate::config::{Config, Precision, Resume, Strategy};
use crate::data::batch::Padding;
use crate::data::{Batch, Sample};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::HfConfig;
use crate::model;

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Optimizer steps done.
    pub step: u64,
    pub total_steps: u64,
    /// Mean loss over the run's steps; None if none was made.
    pub train_loss: Option<f64>,
    /// Names and values of the last evaluation.
    pub eval: Vec<(String, f64)>,
    /// Where the run was saved when an observer stopped it before its end.
    pub stopped: Option<PathBuf>,
}

/// Inputs and plan of a run on `target`: what `plan` shows, and what [`train`] starts with.
///
/// # Errors
/// Whatever is wrong with model, data or settings; [`Error::Memory`] if it does not fit.
pub fn prepare(config: &Config, target: &Target, observer: &mut dyn Observer) -> Result<(Inputs, Plan)> {
    let inputs = Inputs::prepare(config, observer)?;
    let (train, eval) = envelopes(config, &inputs);
    let plan = plan::plan(&inputs.folder, config, &train, &eval, target)?;
    if let Some(limit) = target.limit(config) {
        fit::check(&plan, limit, &inputs.folder, config, &train, &eval, target)?;
    }
    Ok((inputs, plan))
}

/// Runs what the config asks for: training, evaluation, or preprocessing alone. `observer` is told of every step and may
/// stop the run, whose state is then saved.
///
/// # Errors
/// Whatever is wrong with model, data or settings, before anything is written; [`Error::Diverged`] when the loss is no
/// longer a number; [`Error::File`] when the disk refuses. Checkpoints written before stay.
pub fn train(config: &Config, observer: &mut dyn Observer) -> Result<Outcome> {
    let (device, target) = target::pick(config)?;
    train_on(config, &device, &target, observer)
}

/// As [`train`], on a device of the caller's choice.
///
/// # Errors
/// As [`train`].
pub fn train_on(config: &Config, device: &Device, target: &Target, observer: &mut dyn Observer) -> Result<Outcome> {
    let t = &config.train;
    let resumes = t.resume_from_checkpoint != Resume::No;
    // A folder in the way is said before the long part; what overwriting removes goes only when all else is sound.
    let early = t.do_train && !t.overwrite_output_dir && !resumes;
    if early {
        checkpoint_dir::prepare(&t.output_dir, false, &Resume::No)?;
    }
    if !t.do_train && !t.do_eval {
        Inputs::prepare(config, observer)?;
        return Ok(Outcome { step: 0, total_steps: 0, train_loss: None, eval: Vec::new(), stopped: None });
    }
    let (inputs, plan) = prepare(config, target, observer)?;
    for notice in &inputs.notices {
        log::warn!("{notice}");
    }
    if t.do_train {
        positions_fit(config, &inputs)?;
    }
    if matches!(target, Target::Gpu(_)) && config.train.precision == Precision::F32 {
        log::warn!("on a GPU training is in bf16, whatever `bf16` says; `use_cpu: true` computes in f32");
    }
    observer.observe(&Event::Preparing { what: "loading the model" })?;
    let longest = longest(&inputs, config);
    let model = model::load(&inputs.folder, &plan::options(config, longest, target), device, &|_, _| {})?;
    let mut engine = Engine::new(model, &plan, config)?;
    if !t.do_train {
        let mut metrics = evaluate(config, &inputs, &mut engine, observer, 0, true)?;
        metrics.extend(perplexities(&metrics));
        metrics.push(("epoch".into(), 0.0));
        std::fs::create_dir_all(&t.output_dir).map_err(|e| Error::io(&t.output_dir, "cannot create", &e))?;
        write_results(&t.output_dir, "eval", &metrics)?;
        return Ok(Outcome { step: 0, total_steps: 0, train_loss: None, eval: metrics, stopped: None });
    }
    let start = match early {
        true => Start::Fresh,
        false => checkpoint_dir::prepare(&t.output_dir, t.overwrite_output_dir, &t.resume_from_checkpoint)?,
    };
    Run::new(config, &inputs, engine, start)?.run(observer)
}

/// Longest row of a run.
fn longest(inputs: &Inputs, config: &Config) -> usize {
    let eval = inputs.eval.iter().flat_map(|(_, samples)| samples);
    let known = inputs.train.samples().iter().chain(eval).map(|s| s.ids.len()).max().unwrap_or(1);
    match inputs.train {
        TrainData::Whole(_) => known,
        TrainData::Streamed => known.max(config.data.cutoff_len),
    }
}

/// Sequences beyond what the model was made for are said, not refused: LLaMA-Factory trains them too.
fn positions_fit(config: &Config, inputs: &Inputs) -> Result<()> {
    let made_for = HfConfig::open(&inputs.folder)?.max_position_embeddings;
    let longest = longest(inputs, config);
    if longest > made_for && config.model.rope_scaling.is_none() {
        log::warn!("the longest row has {longest} tokens, the model was made for {made_for}; see rope_scaling");
    }
    Ok(())
}

/// A training run under way.
struct Run<'a> {
    config: &'a Config,
    inputs: &'a Inputs,
    engine: Engine,
    steps: Steps,
    schedule: Schedule,
    cadence: Cadence,
    best: Option<BestMetric>,
    state: TrainerState,
    /// Metrics of the last evaluation.
    eval: Vec<(String, f64)>,
    last: Option<StepReport>,
    /// Steps that were handed to the device and have not been reported, the oldest first: all but their results.
    under_way: VecDeque<StepReport>,
}

impl<'a> Run<'a> {
    fn new(config: &'a Config, inputs: &'a Inputs, mut engine: Engine, start: Start) -> Result<Self> {
        let steps = steps(config, inputs)?;
        let state = match &start {
            Start::Fresh => TrainerState::new(&config.train, &steps),
            Start::Resume(checkpoint) => {
                let state = TrainerState::read(checkpoint)?;
                state.check_resume(&config.train, &steps)?;
                files::read(checkpoint, config, &mut engine.model.params)?;
                files::read_optimizer(checkpoint, config, &mut engine.model.params, &mut engine.moments)?;
                TrainerState { max_steps: steps.total, num_train_epochs: steps.epochs, ..state }
            }
        };
        Ok(Run {
            config,
            inputs,
            engine,
            schedule: Schedule::of(&config.train, steps.total)?,
            cadence: Cadence::of(&config.train, steps.total),
            best: BestMetric::of(&config.train),
            steps,
            state,
            eval: Vec::new(),
            last: None,
            under_way: VecDeque::new(),
        })
    }

    fn run(mut self, caller: &mut dyn Observer) -> Result<Outcome> {
        let t = &self.config.train;
        let mut observers = Observers::default();
        observers.0.push(Box::new(TrainerLog::new(&t.output_dir)));
        if t.report_to_tensorboard {
            let args: serde_json::Map<_, _> = self.config.written.iter().cloned().collect();
            let args = serde_json::Value::Object(args).to_string();
            observers.0.push(Box::new(TensorBoard::new(&t.output_dir, t.logging_dir.as_deref(), args)));
        }
        let mut told = Told { files: observers, caller };
        let began = Instant::now();
        let history = self.state.log_history.clone();
        let info = RunInfo {
            total_steps: self.steps.total,
            start_step: self.state.global_step,
            start_tokens: self.state.num_input_tokens_seen,
            history: &history,
            count_tokens: t.include_num_input_tokens_seen,
        };
        let mut control = told.observe(&Event::Start(&info))?;
        if t.eval_on_start && self.state.global_step == 0 {
            self.evaluate(&mut told)?;
        }
        let mut batches = Batches::new(self.config, self.inputs)?;
        // A run that had stopped early, killed before it wrote its results, has only those left to do.
        let patience = t.early_stopping_steps.map(|n| n as u64);
        let mut finished_early = self.state.early_stopping.zip(patience).is_some_and(|(e, patience)| e.bad >= patience);
        while self.state.global_step < self.steps.total && control == Control::Continue && !finished_early {
            control = self.step(&mut batches, &mut told)?;
            let window = self.steps.window(self.state.global_step - 1);
            let ends_epoch = window.ends_epoch || self.state.global_step == self.steps.total;
            let due = self.cadence.at(self.state.global_step, ends_epoch);
            // What is logged, evaluated or saved is the state after a step whose result is known.
            if due.any() || control == Control::Stop || self.state.global_step == self.steps.total {
                control = self.settle(&mut told)?.or(control);
            }
            finished_early = self.due(due, &mut told)?;
        }
        if control == Control::Stop && self.state.global_step < self.steps.total && !finished_early {
            let saved = self.save(&mut told)?;
            told.observe(&Event::End { step: self.state.global_step })?;
            return Ok(self.outcome(Some(saved)));
        }
        self.finish(began, &mut told)?;
        told.observe(&Event::End { step: self.state.global_step })?;
        Ok(self.outcome(None))
    }

    fn outcome(&self, stopped: Option<PathBuf>) -> Outcome {
        let step = self.state.global_step;
        let train_loss = (step > 0).then(|| self.state.losses.mean(step));
        Outcome { step, total_steps: self.steps.total, train_loss, eval: self.eval.clone(), stopped }
    }

    /// One optimizer step. On a GPU the result of the step before is read meanwhile.
    fn step(&mut self, batches: &mut Batches, told: &mut Told) -> Result<Control> {
        let done = self.state.global_step;
        let window = self.steps.window(done);
        let lr = self.schedule.lr(done);
        let data = batches.window(window)?;
        let micro_step = window.epoch * self.steps.batches_per_epoch + window.first_batch;
        let tokens: usize = data.iter().map(|b| b.ids.len()).sum();
        self.state.global_step = done + 1;
        self.state.epoch = self.steps.epoch_at(done + 1);
        self.state.num_input_tokens_seen += tokens as u64;
        self.state.total_flos += 6.0 * tokens as f64 * self.engine.model.spec.linear_params() as f64;
        self.under_way.push_back(StepReport {
            step: done + 1,
            total_steps: self.steps.total,
            epoch: self.state.epoch,
            loss: f64::NAN,
            grad_norm: f64::NAN,
            lr,
            tokens_seen: self.state.num_input_tokens_seen,
        });
        match self.engine.step(&data, done + 1, micro_step, lr) {
            Ok(Some(result)) => self.report(result, told),
            Ok(None) => Ok(Control::Continue),
            Err(e) => Err(self.with_checkpoint(e)),
        }
    }

    /// Waits for the results of all steps under way.
    fn settle(&mut self, told: &mut Told) -> Result<Control> {
        let mut control = Control::Continue;
        while !self.under_way.is_empty() {
            let result = self.engine.settle().map_err(|e| self.with_checkpoint(e))?;
            control = self.report(result, told)?.or(control);
        }
        Ok(control)
    }

    /// The result of the oldest step under way.
    fn report(&mut self, result: StepResult, told: &mut Told) -> Result<Control> {
        let Some(pending) = self.under_way.pop_front() else { unreachable!("each result belongs to a step") };
        let report = StepReport { loss: result.loss, grad_norm: result.grad_norm, ..pending };
        self.state.losses.add(result.loss);
        self.last = Some(report);
        told.observe(&Event::Step(&report))
    }

    /// A run that diverged says where its last good state is.
    fn with_checkpoint(&self, e: Error) -> Error {
        match (e, checkpoint_dir::latest(&self.config.train.output_dir)) {
            (Error::Diverged { step, why }, Ok(Some(path))) => {
                Error::Diverged { step, why: format!("{why}; the last good checkpoint is {}", path.display()) }
            }
            (e, _) => e,
        }
    }

    /// Logs, evaluates and saves as due; whether the run is to end.
    fn due(&mut self, due: Due, told: &mut Told) -> Result<bool> {
        if due.log
            && let (Some(loss), Some(last)) = (self.state.losses.take(), self.last)
        {
            self.log(LogRow::train(&last, loss), told)?;
        }
        let mut stop = false;
        let mut save = due.save;
        if due.evaluate && !self.inputs.eval.is_empty() {
            let metrics = self.evaluate(told)?;
            if let Some(best) = self.best.clone() {
                let verdict = self.state.judge(&best, &metrics)?;
                stop = verdict.stop;
                save |= verdict.new_best && self.config.train.save_strategy == Strategy::Best;
            }
        }
        if save {
            self.save(told)?;
        }
        Ok(stop)
    }

    fn log(&mut self, row: LogRow, told: &mut Told) -> Result<()> {
        self.state.log(&row, self.config.train.include_num_input_tokens_seen);
        told.observe(&Event::Log(&row)).map(drop)
    }

    fn evaluate(&mut self, told: &mut Told) -> Result<Vec<(String, f64)>> {
        let accuracy = self.config.train.compute_accuracy;
        let metrics = evaluate(self.config, self.inputs, &mut self.engine, told, self.state.global_step, accuracy)?;
        let row = LogRow {
            step: self.state.global_step,
            epoch: self.state.epoch,
            tokens_seen: self.state.num_input_tokens_seen,
            values: metrics.clone(),
        };
        self.log(row, told)?;
        self.eval = metrics.clone();
        Ok(metrics)
    }

    /// Writes `checkpoint-<step>` whole, then removes what `save_total_limit` no longer keeps.
    fn save(&mut self, told: &mut Told) -> Result<PathBuf> {
        let (t, step) = (&self.config.train, self.state.global_step);
        let staged = Staged::begin(&t.output_dir, step)?;
        let dir = staged.path().to_path_buf();
        files::write(&dir, self.config, self.inputs, &self.engine.model)?;
        if !t.save_only_model {
            files::write_optimizer(&dir, self.config, &self.engine.model.params, &self.engine.moments)?;
        }
        if let Some(best) = self.state.best_global_step {
            let path = t.output_dir.join(format!("checkpoint-{best}"));
            if best == step || path.is_dir() {
                self.state.best_model_checkpoint = Some(path.display().to_string());
            }
        }
        self.state.write(&dir)?;
        let path = staged.commit()?;
        let steps: Vec<u64> = checkpoint_dir::list(&t.output_dir)?.into_iter().map(|(n, _)| n).collect();
        for old in
            to_rotate(&steps, t.save_total_limit, self.state.best_global_step.filter(|_| t.load_best_model_at_end))
        {
            checkpoint_dir::remove(&t.output_dir.join(format!("checkpoint-{old}")))?;
        }
        told.observe(&Event::Saved { step, path: &path })?;
        Ok(path)
    }

    /// What stands in `output_dir` when all is done.
    fn finish(&mut self, began: Instant, told: &mut Told) -> Result<()> {
        let (config, t) = (self.config, &self.config.train);
        let seconds = began.elapsed().as_secs_f64();
        // The final state is always a checkpoint too, unless saving is off.
        if t.save_strategy != Strategy::No && !self.saved_here() {
            self.save(told)?;
        }
        let mut metrics = speed_metrics("train", seconds, self.steps.samples_counted, self.state.global_step);
        metrics.push(("total_flos".into(), self.state.total_flos));
        metrics.push(("train_loss".into(), self.state.losses.mean(self.state.global_step)));
        let row = LogRow {
            step: self.state.global_step,
            epoch: self.state.epoch,
            tokens_seen: self.state.num_input_tokens_seen,
            values: metrics.clone(),
        };
        self.log(row, told)?;
        if let (true, Some(best)) = (t.load_best_model_at_end, self.state.best_model_checkpoint.clone()) {
            let best = PathBuf::from(best);
            checkpoint_dir::verify(&best)?;
            files::read(&best, config, &mut self.engine.model.params)?;
        }
        files::write(&t.output_dir, config, self.inputs, &self.engine.model)?;
        metrics.extend(self.whereabouts());
        write_results(&t.output_dir, "train", &metrics)?;
        self.state.write(&t.output_dir)?;
        if t.do_eval && !self.inputs.eval.is_empty() {
            let mut metrics = self.evaluate(told)?;
            metrics.extend(perplexities(&metrics));
            metrics.extend(self.whereabouts());
            write_results(&t.output_dir, "eval", &metrics)?;
        }
        if t.plot_loss {
            plot::plot_losses(&t.output_dir, &self.state, &self.plot_keys())?;
        }
        card::write_card(&t.output_dir, config, &self.state, Some(&self.inputs.template.name))
    }

    /// What every result file holds beside its metrics.
    fn whereabouts(&self) -> Vec<(String, f64)> {
        let mut all = vec![("epoch".to_string(), self.state.epoch)];
        if self.config.train.include_num_input_tokens_seen {
            all.push(("num_input_tokens_seen".to_string(), self.state.num_input_tokens_seen as f64));
        }
        all
    }

    fn plot_keys(&self) -> Vec<&str> {
        let mut keys = vec!["loss"];
        keys.extend(self.eval.iter().map(|(name, _)| name.as_str()).filter(|name| name.ends_with("_loss")));
        keys
    }

    fn saved_here(&self) -> bool {
        let path = self.config.train.output_dir.join(format!("checkpoint-{}", self.state.global_step));
        checkpoint_dir::verify(&path).is_ok()
    }
}

/// The run's own files, then the caller.
struct Told<'a> {
    files: Observers<'a>,
    caller: &'a mut dyn Observer,
}

impl Observer for Told<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<Control> {
        self.files.observe(event)?;
        self.caller.observe(event)
    }
}

/// Metrics of all evaluation sets: `eval_loss` is the plain mean of the batches' means, as transformers gives it,
/// `eval_token_loss` the mean over tokens; with `accuracy` also `eval_accuracy`, the share of a sample's labels that are
/// guessed right, averaged over the samples as LLaMA-Factory does.
fn evaluate(
    config: &Config,
    inputs: &Inputs,
    engine: &mut Engine,
    observer: &mut dyn Observer,
    step: u64,
    accuracy: bool,
) -> Result<Vec<(String, f64)>> {
    let size = config.train.per_device_eval_batch_size;
    let padding = Padding::of(config);
    let mut metrics = Vec::new();
    for (name, samples) in &inputs.eval {
        let split = if name.is_empty() { "eval".to_string() } else { format!("eval_{name}") };
        let began = Instant::now();
        let total = samples.len().div_ceil(size);
        let (mut means, mut counted, mut sum, mut tokens) = (0.0, 0usize, 0.0, 0usize);
        let mut right: Vec<f64> = Vec::new();
        for (i, rows) in samples.chunks(size).enumerate() {
            let batch = Batch::collate(&rows.iter().collect::<Vec<&Sample>>(), padding);
            // Labels that are predicted, unlike in training: the mean is the model's own. A batch without one has none.
            if !batch.targets.is_empty() {
                let loss = engine.evaluate(&batch)?;
                means += loss / batch.targets.len() as f64;
                counted += 1;
                sum += loss;
                tokens += batch.targets.len();
                if accuracy {
                    right.extend(shares_right(rows, &batch, &engine.model.guesses(&batch)?));
                }
            }
            observer.observe(&Event::Evaluating { done: i as u64 + 1, total: total as u64 })?;
        }
        let (loss, token_loss) = (means / counted as f64, sum / tokens as f64);
        if !loss.is_finite() {
            let why = format!("the evaluation loss of {split} is {loss}");
            return Err(Error::Diverged { step: step as usize, why });
        }
        metrics.push((format!("{split}_loss"), loss));
        metrics.push((format!("{split}_token_loss"), token_loss));
        if accuracy {
            metrics.push((format!("{split}_accuracy"), right.iter().sum::<f64>() / right.len() as f64));
        }
        metrics.extend(speed_metrics(&split, began.elapsed().as_secs_f64(), samples.len() as f64, total as u64));
    }
    Ok(metrics)
}

/// For each sample that has labels, the share of them that `guesses` hit.
fn shares_right(samples: &[Sample], batch: &Batch, guesses: &[u32]) -> Vec<f64> {
    let mut labels = batch.loss_rows.iter().zip(batch.targets.iter().zip(guesses)).peekable();
    let mut end = 0;
    let mut shares = Vec::with_capacity(samples.len());
    for sample in samples {
        end += sample.ids.len();
        let (mut right, mut all) = (0u32, 0u32);
        while let Some((_, (target, guess))) = labels.next_if(|(row, _)| (**row as usize) < end) {
            right += u32::from(target == guess);
            all += 1;
        }
        if all > 0 {
            shares.push(f64::from(right) / f64::from(all));
        }
    }
    shares
}

/// exp(loss) of each evaluation set: `eval_perplexity` for `eval_loss`.
fn perplexities(metrics: &[(String, f64)]) -> Vec<(String, f64)> {
    let of = |name: &str| name.strip_suffix("_loss").filter(|split| !split.ends_with("_token")).map(str::to_string);
    metrics.iter().filter_map(|(name, x)| Some((format!("{}_perplexity", of(name)?), x.exp()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_is_a_mean_over_samples() {
        let sample = |trained: &[bool]| {
            let n = trained.len() as u32;
            Sample { ids: (0..n).collect(), trained: trained.to_vec(), pieces: vec![n], ..Sample::default() }
        };
        // Three labels, none, and one.
        let samples = [sample(&[true, true, true, true]), sample(&[false, false]), sample(&[false, true])];
        let batch = Batch::collate(&samples.iter().collect::<Vec<_>>(), Padding { multiple_of: 1, at_least: 0 });
        assert_eq!(batch.targets, [1, 2, 3, 1]);
        assert_eq!(shares_right(&samples, &batch, &[1, 0, 3, 1]), [2.0 / 3.0, 1.0]);
        assert_eq!(shares_right(&samples, &batch, &[0, 0, 0, 0]), [0.0, 0.0]);
    }

    #[test]
    fn perplexity_is_of_the_loss_alone() {
        let metrics = [("eval_loss".to_string(), 0.0), ("eval_token_loss".into(), 1.0), ("eval_a_loss".into(), 1.0)];
        let want = [("eval_perplexity".to_string(), 1.0), ("eval_a_perplexity".into(), std::f64::consts::E)];
        assert_eq!(perplexities(&metrics), want);
    }
}
