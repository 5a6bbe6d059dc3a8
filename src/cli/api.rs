//! `api`: serves a model by OpenAI's protocol until it is told to stop.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::Raw;
use crate::config::{Config, parse_bytes};
use crate::data::template::utc;
use crate::error::{Error, Result};
use crate::serve::{self, LOG_TARGET, Options, Server};

/// Takes the command's own options out of the arguments, which are otherwise settings; `env` looks a variable up.
///
/// # Errors
/// [`Error::Config`] naming the option; [`Error::File`] for a key file that cannot be read or holds none.
pub(super) fn take_options(raw: &mut Raw, env: &dyn Fn(&str) -> Option<String>) -> Result<Options> {
    let mut o = Options::default();
    let mut last = |name: &str, variable: &str| -> Result<Option<String>> {
        let set = env(variable).filter(|v| !v.is_empty() && !variable.is_empty());
        Ok(raw.take_values(name)?.pop().or(set))
    };
    if let Some(host) = last("--host", "API_HOST")? {
        o.host = host;
    }
    if let Some(text) = last("--port", "API_PORT")? {
        o.port = text.parse().map_err(|_| wrong("--port", "a number from 0 to 65535", &text))?;
    }
    o.model_name = last("--model-name", "API_MODEL_NAME")?;
    o.adapters_dir = last("--adapters-dir", "")?.map(PathBuf::from);
    let mut count = |name: &str, into: &mut usize| -> Result<()> {
        if let Some(text) = last(name, "")? {
            let n = text.parse().ok().filter(|n| (1..=1 << 32).contains(n));
            *into = n.ok_or_else(|| wrong(name, "a whole number, 1 or more", &text))?;
        }
        Ok(())
    };
    count("--max-batch", &mut o.max_batch)?;
    count("--max-queue", &mut o.max_queue)?;
    count("--max-n", &mut o.max_n)?;
    let mut cache = 0;
    count("--cache-tokens", &mut cache)?;
    o.cache_tokens = (cache > 0).then_some(cache);
    if let Some(text) = last("--max-body", "")? {
        let bytes = parse_bytes(&text).filter(|b| (1.0..=1e12).contains(b));
        o.max_body =
            bytes.ok_or_else(|| wrong("--max-body", "a number of bytes such as 65536 or 2MB", &text))? as usize;
    }
    let mut seconds = |name: &str, into: &mut Duration| -> Result<()> {
        if let Some(text) = last(name, "")? {
            let parsed = text.parse().ok().filter(|s| (0.0..=1e7).contains(s)).map(Duration::from_secs_f64);
            *into = parsed.ok_or_else(|| wrong(name, "a number of seconds", &text))?;
        }
        Ok(())
    };
    seconds("--request-timeout", &mut o.request_timeout)?;
    seconds("--shutdown-timeout", &mut o.shutdown_timeout)?;
    if let Some(file) = last("--api-key-file", "")? {
        o.keys.add_file(Path::new(&file))?;
    }
    let from_env = [env("API_KEY"), env("API_KEYS")].into_iter().flatten();
    from_env.for_each(|keys| keys.split(',').for_each(|key| o.keys.add(key)));
    o.cors = raw.take_values("--cors")?;
    for text in raw.take_values("--adapter")? {
        o.adapters.push(named(&text)?);
    }
    o.log_prompts = raw.take_flag("--log-prompts");
    Ok(o)
}

fn wrong(name: &str, expected: &str, got: &str) -> Error {
    Error::config(name, format!("must be {expected}; got `{got}`"))
}

/// NAME=PATH, or a path alone, which is then named by its last part.
fn named(text: &str) -> Result<(String, PathBuf)> {
    let (name, path) = match text.split_once('=') {
        Some((name, path)) if !name.contains(std::path::MAIN_SEPARATOR) => (name.to_string(), path),
        _ => (serve::last_part(Path::new(text)), text),
    };
    match name.is_empty() || path.is_empty() {
        true => Err(wrong("--adapter", "NAME=PATH or PATH", text)),
        false => Ok((name, PathBuf::from(path))),
    }
}

/// Serves what `config` names until SIGTERM or SIGINT. Where it listens goes to stderr, once it does.
///
/// # Errors
/// Whatever is wrong with model, adapters, tokenizer, template or address; [`Error::Stopped`] if answers had to be cut off.
pub(super) fn run(config: &Config, options: Options) -> Result<()> {
    let (open, locked) = (options.host.clone(), !options.keys.is_empty());
    let limit = options.shutdown_timeout;
    let app = serve::open(config, options)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::config("api", format!("cannot start: {e}")))?;
    let served = runtime.block_on(async {
        let server = Server::bind(app).await?;
        let address = server.address()?;
        if !address.ip().is_loopback() && !locked {
            log::warn!("--host {open} lets everyone in who reaches it: set keys (--api-key-file or API_KEY)");
        }
        let (mut term, mut int) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
        eprintln!("listening on http://{address} (models: {})", server.models().join(", "));
        let finished = server
            .run(async move {
                either(&mut term, &mut int).await;
                let seconds = limit.as_secs_f64();
                log::info!(target: LOG_TARGET, "stopping: what runs is finished, within {seconds} s; a second signal leaves at once");
                tokio::spawn(async move {
                    either(&mut term, &mut int).await;
                    std::process::exit(super::STOPPED.into());
                });
            })
            .await;
        match finished {
            true => Ok(()),
            false => Err(Error::config(
                "--shutdown-timeout",
                format!("answers were cut off after {} s", limit.as_secs_f64()),
            )),
        }
    });
    // What a client has left behind half done is not waited for.
    runtime.shutdown_background();
    served
}

fn on(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|e| Error::config("api", format!("cannot wait for signals: {e}")))
}

async fn either(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// A line of a server's log: JSON with time and level. What the server says of a request is JSON already.
pub(super) fn log_line(level: &str, target: &str, text: &str) -> String {
    let time = utc("%Y-%m-%dT%H:%M:%SZ");
    match text.strip_prefix('{').filter(|_| target == LOG_TARGET) {
        Some(rest) => format!("{{\"time\":\"{time}\",\"level\":\"{level}\",{rest}"),
        None => json!({"time": time, "level": level, "message": text}).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_json() {
        let line = log_line("info", LOG_TARGET, "{\"id\":\"1\",\"status\":200}");
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&parsed["id"], &parsed["level"]), (&json!("1"), &json!("info")));
        assert_eq!(parsed["time"].as_str().unwrap().len(), "2026-01-01T00:00:00Z".len());
        let line = log_line("warning", "other", "{\"quoted\"}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["message"], "{\"quoted\"}\n");
    }

    fn take(args: &[&str], env: &[(&str, &str)]) -> Result<(Options, Vec<String>)> {
        let mut raw = Raw { args: args.iter().map(|a| a.to_string()).collect() };
        let look = |name: &str| env.iter().find(|(k, _)| *k == name).map(|(_, v)| v.to_string());
        Ok((take_options(&mut raw, &look)?, raw.args))
    }

    #[test]
    fn options_stand_anywhere_and_the_line_wins_over_the_environment() {
        let (o, rest) = take(
            &["a.yaml", "--port", "0", "seed=1", "--adapter", "x=saves/a", "--adapter=saves/b", "--max-body=2MB"],
            &[],
        )
        .unwrap();
        assert_eq!(rest, ["a.yaml", "seed=1"]);
        assert_eq!((o.port, o.max_body, o.host.as_str()), (0, 2_000_000, "127.0.0.1"));
        assert_eq!(o.adapters, [("x".to_string(), "saves/a".into()), ("b".to_string(), "saves/b".into())]);
        let env = [
            ("API_HOST", "0.0.0.0"),
            ("API_PORT", "9000"),
            ("API_KEYS", "a,b"),
            ("API_KEY", "c"),
            ("API_MODEL_NAME", "m"),
        ];
        let (o, _) = take(
            &["a.yaml", "--port=9001", "--request-timeout", "1.5", "--log-prompts", "--adapters-dir", "saves"],
            &env,
        )
        .unwrap();
        assert_eq!((o.port, o.host.as_str(), o.model_name.as_deref()), (9001, "0.0.0.0", Some("m")));
        assert_eq!((format!("{:?}", o.keys), o.request_timeout), ("3 keys".to_string(), Duration::from_millis(1500)));
        assert!(o.log_prompts && o.adapters.is_empty() && o.adapters_dir == Some("saves".into()));
    }

    #[test]
    fn wrong_options_are_named() {
        for (args, word) in [
            (&["--port", "x"][..], "--port"),
            (&["--port", "70000"], "--port"),
            (&["--max-batch", "0"], "--max-batch"),
            (&["--max-body", "much"], "--max-body"),
            (&["--request-timeout", "NaN"], "--request-timeout"),
            (&["--shutdown-timeout", "-1"], "--shutdown-timeout"),
            (&["--adapter", "=x"], "--adapter"),
            (&["--adapter"], "--adapter"),
            (&["--api-key-file", "no-such-file"], "no-such-file"),
        ] {
            let e = take(args, &[]).err().unwrap().to_string();
            assert!(e.contains(word) && !e.contains('\n'), "{args:?}: {e}");
        }
    }
}
