//! Command line: argv -> library call -> exit code. Errors are one line on stderr; results go to stdout.

mod api;
mod args;
mod bench_serve;
pub mod chat;
mod env;
mod eval;
pub mod export;
mod generate;
mod health;
pub mod inspect;
mod loaded;
pub mod plan;
mod predict;
pub mod train;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use self::args::{Args, Raw, Subcommand};
use crate::config::{self, Command, Config};
use crate::error::{Error, Result};

/// What a shell reports of a program that Ctrl-C ended: 128 + SIGINT.
const STOPPED: u8 = 130;

/// Runs the program and returns its exit code: 0, 1 after an error, 130 after a run that was stopped.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => return usage(&e),
    };
    start_log(matches!(args.command, Subcommand::Api(_)));
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            match e {
                Error::Stopped { .. } => ExitCode::from(STOPPED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(args: Args) -> Result<()> {
    match args.command {
        Subcommand::Train(raw) => with_config("train", &raw, Command::Train, train::run),
        Subcommand::Inspect(raw) => with_config("inspect", &raw, Command::Inspect, inspect::run),
        Subcommand::Plan(mut raw) => {
            let card = plan::take_device(&mut raw.args)?;
            with_config("plan", &raw, Command::Plan, |config| plan::run(config, card))
        }
        Subcommand::Env => {
            say(&env::report());
            Ok(())
        }
        Subcommand::Version => {
            say(&format!("qlora-engine {}\n", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Subcommand::Chat(raw) => chat(raw),
        Subcommand::Export(raw) => with_config("export", &raw, Command::Export, export::run),
        Subcommand::Api(raw) => api(raw),
        Subcommand::Webui(_) => Err(Error::NotYet("`webui` is not built yet".to_string())),
        Subcommand::Webchat(_) => Err(Error::NotYet("`webchat` is not built yet".to_string())),
        Subcommand::Eval(raw) => with_config("eval", &raw, Command::Eval, eval::run),
        Subcommand::Predict(mut raw) if !raw.asks_for_help() => {
            let asked = predict::take_flags(&mut raw.args)?;
            raw.take_adapter()?;
            match asked.scores {
                Some(sheet) => predict::scores(&sheet),
                None => with_config("predict", &raw, Command::Predict, |c| predict::run(c, asked.compare)),
            }
        }
        Subcommand::Predict(raw) => with_config("predict", &raw, Command::Predict, |c| predict::run(c, false)),
        Subcommand::Generate(raw) => generate(raw),
        Subcommand::BenchServe(options) => bench_serve::run(&options),
        Subcommand::Health(options) => health::run(&options),
    }
}

fn chat(mut raw: Raw) -> Result<()> {
    if raw.asks_for_help() {
        say(&help_of("chat"));
        return Ok(());
    }
    let adapters: Vec<PathBuf> = raw.take_values("--adapter")?.into_iter().map(PathBuf::from).collect();
    chat::run(&config_of("chat", &raw)?, &adapters)
}

fn api(mut raw: Raw) -> Result<()> {
    if raw.asks_for_help() {
        say(&help_of("api"));
        return Ok(());
    }
    let options = api::take_options(&mut raw, &|name| std::env::var(name).ok())?;
    api::run(&config_of("api", &raw)?, options)
}

fn generate(mut raw: Raw) -> Result<()> {
    if raw.asks_for_help() {
        say(&help_of("generate"));
        return Ok(());
    }
    // Before the prompts, of which some may be waited for on standard input.
    if raw.args.is_empty() {
        config_of("generate", &raw)?;
    }
    let asked = generate::take_options(&mut raw)?;
    generate::run(&config_of("generate", &raw)?, &asked)
}

/// Loads the config from a command's arguments, says what of it has no effect, and hands it over.
fn with_config(name: &str, raw: &Raw, command: Command, run: impl FnOnce(Config) -> Result<()>) -> Result<()> {
    if raw.asks_for_help() {
        say(&help_of(name));
        return Ok(());
    }
    let config = config_of(name, raw)?;
    config.validate_for(command)?;
    for line in no_effect_lines(&config.no_effect) {
        eprintln!("note: {line}");
    }
    run(config)
}

/// The config that a command's arguments name.
fn config_of(name: &str, raw: &Raw) -> Result<Config> {
    if raw.args.is_empty() {
        let why = format!("needs a config: qlora-engine {name} file.yaml");
        return Err(Error::config(name, why));
    }
    let mut config = config::load(&raw.args)?;
    if matches!(name, "chat" | "generate" | "predict" | "export") {
        loaded::travelling(&mut config)?;
    }
    Ok(config)
}

/// Keys without effect, grouped by reason: a usual file has several of a kind.
fn no_effect_lines(keys: &[(String, String)]) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (key, why) in keys {
        let key = format!("`{key}`");
        match reasons.iter_mut().find(|(reason, _)| reason == why) {
            Some((_, keys)) => keys.push(key),
            None => reasons.push((why, vec![key])),
        }
    }
    reasons.into_iter().map(|(why, keys)| format!("no effect here: {}: {why}", keys.join(", "))).collect()
}

/// Prints to stdout. A reader that left early (`| head`) is no error.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn help_of(name: &str) -> String {
    let mut app = Args::command();
    app.build();
    match app.find_subcommand_mut(name) {
        Some(sub) => sub.render_long_help().to_string(),
        None => app.render_long_help().to_string(),
    }
}

/// Help and version are results; a misuse is one line, like every error.
fn usage(e: &clap::Error) -> ExitCode {
    match e.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            say(&e.to_string());
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprint!("{e}");
            ExitCode::FAILURE
        }
        _ => {
            let text = e.to_string();
            let line =
                |start: &str| text.lines().map(str::trim).find_map(|l| l.strip_prefix(start).map(str::to_string));
            let what = line("error: ").unwrap_or_else(|| "the arguments are not understood".to_string());
            match line("tip: ") {
                Some(tip) => eprintln!("error: {what}: {tip}"),
                None => eprintln!("error: {what}: see qlora-engine --help"),
            }
            ExitCode::FAILURE
        }
    }
}

/// Log lines go to stderr as `warning: ...`; those of a server as JSON, its requests among them. QLORA_LOG sets the level
/// (error, warn, info, debug, trace, off).
fn start_log(server: bool) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(log::LevelFilter::Warn);
    if server {
        builder.filter_module("qlora_engine::serve", log::LevelFilter::Info);
    }
    builder.parse_env("QLORA_LOG").format(move |out, record| {
        let level = match record.level() {
            log::Level::Error => "error",
            log::Level::Warn => "warning",
            log::Level::Info => "info",
            log::Level::Debug => "debug",
            log::Level::Trace => "trace",
        };
        match server {
            true => writeln!(out, "{}", api::log_line(level, record.target(), &record.args().to_string())),
            false => writeln!(out, "{level}: {}", record.args()),
        }
    });
    // Another program that embeds this one has a logger of its own, and keeps it.
    drop(builder.try_init());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn everything_after_a_command_is_the_configs() {
        let line = "qlora-engine train a.yaml learning_rate=1e-4 --output_dir x --do_train --max_steps -1";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let Subcommand::Train(raw) = args.command else { panic!("another command") };
        assert_eq!(raw.args, line.split(' ').skip(2).collect::<Vec<_>>());
        let args = Args::try_parse_from(["qlora-engine", "train", "--config", "a.yaml"]).unwrap();
        let Subcommand::Train(raw) = args.command else { panic!("another command") };
        assert_eq!(raw.args, ["--config", "a.yaml"]);
        assert!(!raw.asks_for_help());
    }

    #[test]
    fn keys_without_effect_are_grouped() {
        let keys = [("a", "x"), ("b", "y"), ("c", "x")].map(|(k, why)| (k.to_string(), why.to_string()));
        assert_eq!(no_effect_lines(&keys), ["no effect here: `a`, `c`: x", "no effect here: `b`: y"]);
    }

    #[test]
    fn help_names_an_example() {
        for name in ["train", "inspect", "plan", "chat", "generate", "api", "bench-serve"] {
            assert!(help_of(name).contains(&format!("qlora-engine {name} ")), "{name}");
        }
    }
}
