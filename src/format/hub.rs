//! A model by its name: fetched from the Hugging Face hub into the hub's own cache, so that other programs find it there.
//!
//! `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` mean what they mean to `huggingface_hub`.
//! Nothing is printed: progress goes to a callback.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use serde_json::Value;

use crate::error::{Error, Result};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
/// What a model's folder needs beside its weights. Only `config.json` must be there.
const SMALL: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

/// What happens during a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// File `index` (from 0) of `files` begins: `bytes` in all. Comes again, with the count at 0, when it is retried.
    Start { file: &'a str, index: usize, files: usize, bytes: u64 },
    /// So many bytes more; what was here before the start is told first.
    Bytes(u64),
    /// The file is whole.
    Finish,
}

/// Where and how to fetch.
#[derive(Debug, Clone)]
pub struct Hub {
    /// Without a slash at the end.
    pub endpoint: String,
    /// The folder that holds `models--org--name`.
    pub cache: PathBuf,
    pub token: Option<String>,
    /// Only look into the cache.
    pub offline: bool,
    /// Attempts without a new byte before giving up.
    pub attempts: u32,
    /// Wait before the second attempt; doubles with each.
    pub wait: Duration,
}

impl Hub {
    /// As the environment says; `cache` and `token` of the config go first.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no cache folder and no home to put one in.
    pub fn from_env(cache: Option<&Path>, token: Option<&str>) -> Result<Self> {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let home = var("HF_HOME").map(PathBuf::from).or_else(|| {
            let user = var("XDG_CACHE_HOME").map(PathBuf::from);
            let user = user.or_else(|| Some(PathBuf::from(var("HOME").or(var("USERPROFILE"))?).join(".cache")));
            user.map(|c| c.join("huggingface"))
        });
        let cache = cache.map(Path::to_path_buf).or(var("HF_HUB_CACHE").map(PathBuf::from));
        let cache = cache.or(home.as_ref().map(|h| h.join("hub")));
        let cache = cache.ok_or_else(|| Error::config("cache_dir", "must be given: there is no home folder"))?;
        let stored = || {
            let path = var("HF_TOKEN_PATH").map(PathBuf::from).or(home.as_ref().map(|h| h.join("token")))?;
            fs::read_to_string(path).ok().map(|t| t.trim().to_string())
        };
        let token = token.map(str::to_string).or(var("HF_TOKEN")).or_else(stored).filter(|t| !t.is_empty());
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let on = |v: String| ["1", "ON", "YES", "TRUE"].contains(&v.to_uppercase().as_str());
        Ok(Hub {
            endpoint: endpoint.trim_end_matches('/').to_string(),
            cache,
            token,
            offline: var("HF_HUB_OFFLINE").is_some_and(on),
            attempts: 5,
            wait: Duration::from_secs(1),
        })
    }
}

/// The folder of a model: `name` itself if it is one, otherwise the hub's repository of that name, fetched as far as it
/// is not in the cache.
///
/// # Errors
/// [`Error::File`] if `name` is a path to nothing; [`Error::Download`] in words that say what to do.
pub fn resolve(
    name: &str,
    revision: &str,
    cache_dir: Option<&Path>,
    token: Option<&str>,
    progress: &mut dyn FnMut(Event<'_>),
) -> Result<PathBuf> {
    if Path::new(name).is_dir() {
        return Ok(PathBuf::from(name));
    }
    fetch(name, revision, &Hub::from_env(cache_dir, token)?, progress)
}

/// [`resolve`] with everything given.
///
/// # Errors
/// As [`resolve`].
pub fn fetch(name: &str, revision: &str, hub: &Hub, progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf> {
    let plain = |s: &str| !s.is_empty() && !s.starts_with('.') && s.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
    if name.split('/').count() > 2 || !name.split('/').all(plain) {
        return Err(Error::file(name, "is no folder, and no name of a model on the hub (organisation/name) either"));
    }
    if revision.split('/').any(|part| !plain(part)) {
        return Err(Error::config("model_revision", format!("`{revision}` is no branch, tag or commit")));
    }
    let repo = Repo::with_revision(name.to_string(), RepoType::Model, revision.to_string());
    let folder = hub.cache.join(repo.folder_name());
    if hub.offline {
        return cached(name, revision, &folder);
    }
    let api = ApiBuilder::from_cache(Cache::new(hub.cache.clone()))
        .with_endpoint(hub.endpoint.clone())
        .with_token(hub.token.clone())
        .with_progress(false)
        .build()
        .map_err(|e| Error::Download { what: name.into(), why: e.to_string() })?;
    let session = Session { name, hub, api, repo, folder };
    session.run(progress)
}

/// What the cache holds of a model, if it is whole.
fn cached(name: &str, revision: &str, folder: &Path) -> Result<PathBuf> {
    let refused = |why: String| Error::Download { what: name.into(), why: format!("HF_HUB_OFFLINE is set, and {why}") };
    let commit = fs::read_to_string(folder.join("refs").join(revision)).unwrap_or_else(|_| revision.to_string());
    let snapshot = folder.join("snapshots").join(commit.trim());
    if !snapshot.is_dir() {
        return Err(refused(format!("the cache {} does not hold it", folder.display())));
    }
    let mut needed = vec!["config.json".to_string()];
    match fs::read_to_string(snapshot.join(INDEX)) {
        Ok(index) => needed.extend(shards(&index).map_err(&refused)?),
        Err(_) => needed.push(SINGLE.into()),
    }
    match needed.iter().find(|n| !snapshot.join(n).is_file()) {
        Some(missing) => Err(refused(format!("{} lacks {missing}", snapshot.display()))),
        None => Ok(snapshot),
    }
}

/// The shards that an index names.
fn shards(index: &str) -> std::result::Result<BTreeSet<String>, String> {
    let index: Value = serde_json::from_str(index).map_err(|e| format!("{INDEX} is malformed: {e}"))?;
    let map = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| format!("{INDEX} has no `weight_map`"))?;
    let file = |v: &Value| v.as_str().filter(|s| !s.contains(['/', '\\']) && s.ends_with(".safetensors")).map(str::to_string);
    let files: Option<BTreeSet<String>> = map.values().map(file).collect();
    files.ok_or_else(|| format!("{INDEX} names a shard that is no safetensors file beside it"))
}

struct Session<'a> {
    name: &'a str,
    hub: &'a Hub,
    api: Api,
    repo: Repo,
    /// The model's folder in the cache.
    folder: PathBuf,
}

impl Session<'_> {
    fn run(&self, progress: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf> {
        let info = self.retry(&mut || 0, || self.api.repo(self.repo.clone()).info()).map_err(|e| self.explain(&e))?;
        if info.sha.is_empty() || !info.sha.bytes().all(|c| c.is_ascii_alphanumeric()) {
            return Err(self.refused(format!("the server names the commit `{}`, which is none", info.sha)));
        }
        let there: BTreeSet<&str> = info.siblings.iter().map(|s| s.rfilename.as_str()).collect();
        if !there.contains("config.json") {
            return Err(self.refused("it holds no config.json, so it is no model of transformers"));
        }
        let snapshot = self.folder.join("snapshots").join(&info.sha);
        let mut files: Vec<String> = SMALL.iter().filter(|n| there.contains(*n)).map(|n| n.to_string()).collect();
        let template = |n: &&&str| n.starts_with("chat_template") && !n.contains('/');
        files.extend(there.iter().filter(template).map(|n| n.to_string()));
        // As transformers prefers: one file before shards.
        if there.contains(SINGLE) {
            files.push(SINGLE.into());
        } else if there.contains(INDEX) {
            self.file(INDEX, &snapshot, (files.len(), files.len() + 1), progress)?;
            let index = snapshot.join(INDEX);
            let text = fs::read_to_string(&index).map_err(|e| Error::io(&index, "cannot read", &e))?;
            let shards = shards(&text).map_err(|why| self.refused(why))?;
            if let Some(missing) = shards.iter().find(|s| !there.contains(s.as_str())) {
                return Err(self.refused(format!("{INDEX} names {missing}, which the repository does not hold")));
            }
            files.extend(shards);
        } else if there.iter().any(|n| n.starts_with("pytorch_model")) {
            return Err(self.refused(format!("it holds only pytorch_model.bin; take or make one with {SINGLE}")));
        } else {
            return Err(self.refused(format!("it holds neither {SINGLE} nor {INDEX}")));
        }
        for (i, file) in files.iter().enumerate() {
            self.file(file, &snapshot, (i, files.len()), progress)?;
        }
        // So that the cache is found without the network, whatever was already there.
        let cache = Cache::new(self.hub.cache.clone()).repo(self.repo.clone());
        cache.create_ref(&info.sha).map_err(|e| Error::io(&self.folder, "cannot write", &e))?;
        Ok(snapshot)
    }

    /// Makes `file` be in the snapshot: not at all if it is, from where it broke off if part of it is here.
    fn file(&self, file: &str, snapshot: &Path, at: (usize, usize), progress: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        let path = snapshot.join(file);
        if path.is_file() {
            return Ok(());
        }
        let _ = fs::remove_file(&path); // a link to a blob that is gone would stand in the way
        let remote = self.api.repo(self.repo.clone());
        let meta = self.retry(&mut || 0, || self.api.metadata(&remote.url(file))).map_err(|e| self.explain(&e))?;
        let size = meta.size() as u64;
        let etag = meta.etag();
        if etag.is_empty() || !etag.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_') {
            return Err(self.refused(format!("the server's ETag of {file} is `{etag}`, which is none")));
        }
        let blob = self.folder.join("blobs").join(etag);
        let part = blob.with_extension("part");
        let length = |p: &Path| fs::metadata(p).map_or(0, |m| m.len());
        // A part that is already whole would be asked for from its end on, which servers refuse: give back one byte. One
        // that is longer is not of this file.
        if size > 0 && length(&part) >= size {
            let keep = if length(&part) == size { size - 1 } else { 0 };
            let opened = fs::OpenOptions::new().write(true).open(&part);
            opened.and_then(|f| f.set_len(keep)).map_err(|e| Error::io(&part, "cannot shorten", &e))?;
        }
        let result = self.retry(&mut || length(&part), || {
            let watch = Watch { progress: &mut *progress, file, at, announced: false };
            let path = remote.download_with_progress(file, watch)?;
            let got = length(&path);
            if got == size {
                return Ok(path);
            }
            // The connection ended early without an error: keep what came as the part to go on from.
            fs::remove_file(&path)?;
            if got < size { fs::rename(&blob, &part)? } else { fs::remove_file(&blob)? };
            let why = format!("{got} of {size} bytes of {file} came");
            Err(ApiError::IoError(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, why)))
        });
        result.map_err(|e| self.explain(&e))?;
        progress(Event::Finish);
        Ok(())
    }

    /// Repeats what failed on the way, as long as `have` grows, and `attempts` times when it does not.
    fn retry<T>(
        &self,
        have: &mut dyn FnMut() -> u64,
        mut act: impl FnMut() -> std::result::Result<T, ApiError>,
    ) -> std::result::Result<T, ApiError> {
        let (mut failed, mut had) = (0, have());
        loop {
            let error = match act() {
                Ok(answer) => return Ok(answer),
                Err(e) if status(&e).is_some_and(|s| s < 500 && s != 408 && s != 429) => return Err(e),
                Err(ApiError::LockAcquisition(p)) => return Err(ApiError::LockAcquisition(p)),
                Err(e) => e,
            };
            let now = have();
            failed = if now > had { 1 } else { failed + 1 };
            had = now;
            if failed >= self.hub.attempts {
                return Err(error);
            }
            log::warn!("{}: {error}; trying again", self.name);
            thread::sleep(self.hub.wait * 2u32.saturating_pow(failed - 1).min(32));
        }
    }

    fn refused(&self, why: impl Into<String>) -> Error {
        Error::Download { what: self.name.into(), why: why.into() }
    }

    fn explain(&self, e: &ApiError) -> Error {
        let host = &self.hub.endpoint;
        let likely = likely_name(self.name).map_or(String::new(), |n| format!("; did you mean `{n}`?"));
        self.refused(match (e, status(e)) {
            (_, Some(404)) => format!("{host} has no such model or revision{likely}"),
            // The hub answers 401 also for what does not exist, so as not to tell.
            (_, Some(401)) if self.hub.token.is_none() => {
                format!("{host} has no such model, or it is private or gated (then set HF_TOKEN or hf_hub_token){likely}")
            }
            (_, Some(401)) => format!("{host} does not accept the token, or has no such model{likely}"),
            (_, Some(403)) => {
                format!("it is gated: accept its licence at {host}/{} with the account of the token", self.name)
            }
            (_, Some(429)) => format!("{host} refuses more requests for now: wait, or set HF_TOKEN"),
            (_, Some(status)) => format!("{host} answers with HTTP status {status}"),
            (ApiError::LockAcquisition(_), _) => "another process is downloading it: wait for that one".into(),
            (ApiError::IoError(e), _) if e.raw_os_error().is_some() => format!("cannot write to the cache: {e}"),
            (ApiError::RequestError(_) | ApiError::IoError(_), _) => {
                format!("no connection to {host} ({e}): check the network or HF_ENDPOINT, or give a local folder")
            }
            _ => format!("{host} gives an answer that is not the hub's: {e}"),
        })
    }
}

/// The HTTP status behind an error, if the server gave one.
fn status(e: &ApiError) -> Option<u16> {
    match e {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// Hands hf-hub's progress on. It announces a file twice, then counts the bytes that were here as if they came now.
struct Watch<'a, 'b> {
    progress: &'a mut dyn FnMut(Event<'_>),
    file: &'b str,
    at: (usize, usize),
    announced: bool,
}

impl hf_hub::api::Progress for Watch<'_, '_> {
    fn init(&mut self, size: usize, _: &str) {
        let (index, files) = self.at;
        if !self.announced {
            (self.progress)(Event::Start { file: self.file, index, files, bytes: size as u64 });
        }
        self.announced = true;
    }

    fn update(&mut self, bytes: usize) {
        (self.progress)(Event::Bytes(bytes as u64));
    }

    fn finish(&mut self) {}
}

/// Names that people look for. Only for suggestions.
const KNOWN: [&str; 48] = [
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-0.6B-Base",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-1.7B-Base",
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-4B-Base",
    "Qwen/Qwen3-4B-Instruct-2507",
    "Qwen/Qwen3-4B-Thinking-2507",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-8B-Base",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen2.5-1.5B",
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-3B",
    "Qwen/Qwen2.5-3B-Instruct",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-14B-Instruct",
    "Qwen/Qwen2.5-32B-Instruct",
    "Qwen/Qwen2.5-72B-Instruct",
    "Qwen/Qwen2-0.5B-Instruct",
    "Qwen/Qwen2-1.5B-Instruct",
    "Qwen/Qwen2-7B",
    "Qwen/Qwen2-7B-Instruct",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-7b-chat-hf",
    "meta-llama/Llama-2-13b-hf",
    "meta-llama/Llama-2-13b-chat-hf",
    "meta-llama/Meta-Llama-3-8B",
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B-Instruct",
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Llama-3.2-3B",
    "meta-llama/Llama-3.2-3B-Instruct",
    "meta-llama/Llama-3.3-70B-Instruct",
    "mistralai/Mistral-7B-v0.1",
    "mistralai/Mistral-7B-v0.3",
    "mistralai/Mistral-7B-Instruct-v0.1",
    "mistralai/Mistral-7B-Instruct-v0.2",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "lmsys/vicuna-7b-v1.5",
];

/// The well-known name that `name` most likely means, if one is close. The parts between hyphens are compared: those
/// with a digit (family, size, version) must agree almost, words such as Instruct may be missing or too many.
pub fn likely_name(name: &str) -> Option<&'static str> {
    let parts = |n: &str| -> Vec<String> {
        let last = n.rsplit('/').next().unwrap_or(n).to_lowercase();
        last.split(['-', '_', ' ']).filter(|p| !p.is_empty()).map(str::to_string).collect()
    };
    let weight = |p: &str| if p.bytes().any(|c| c.is_ascii_digit()) { 2.0 } else { 0.3 };
    let wanted = parts(name);
    let score = |known: &str| {
        let mut left = parts(known);
        let mut score = 0.0;
        for part in &wanted {
            let near = left.iter().enumerate().map(|(i, k)| (strsim::normalized_levenshtein(part, k), i));
            match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
                Some((similar, i)) if similar >= 0.8 => score += weight(&left.swap_remove(i)) * similar,
                _ => score -= weight(part),
            }
        }
        score - left.iter().map(|k| weight(k)).sum::<f64>()
    };
    let best = KNOWN.iter().map(|k| (score(k), *k)).max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)));
    best.filter(|(score, known)| *score >= 1.5 && *known != name).map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

    /// What hf-hub needs of the hub: the list of files, and files by range. `cut` counts down: while above 0, a request
    /// for more than a byte of the weights ends after half of what it should bring.
    struct Server {
        url: String,
        log: Arc<Mutex<Vec<String>>>,
        cut: Arc<AtomicUsize>,
        server: Arc<tiny_http::Server>,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.server.unblock();
        }
    }

    fn weights() -> Vec<u8> {
        (0..200_000u32).map(|i| (i * 7 % 251) as u8).collect()
    }

    fn serve(extra: &[(&str, &[u8])]) -> Server {
        let mut files: HashMap<String, Vec<u8>> = HashMap::new();
        files.insert("config.json".into(), b"{}".to_vec());
        files.insert("tokenizer.json".into(), b"{\"t\":1}".to_vec());
        files.insert("chat_template.jinja".into(), b"{{ x }}".to_vec());
        files.insert("model.safetensors".into(), weights());
        files.insert("consolidated.safetensors".into(), b"not wanted".to_vec());
        files.insert("onnx/model.onnx".into(), b"not wanted".to_vec());
        for (name, bytes) in extra {
            match bytes.is_empty() {
                true => files.remove(*name),
                false => files.insert(name.to_string(), bytes.to_vec()),
            };
        }
        let server = Arc::new(tiny_http::Server::http("127.0.0.1:0").unwrap());
        let url = format!("http://{}", server.server_addr());
        let (log, cut) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (s, l, c) = (server.clone(), log.clone(), cut.clone());
        thread::spawn(move || {
            for request in s.incoming_requests() {
                answer(request, &files, &l, &c);
            }
        });
        Server { url, log, cut, server }
    }

    fn answer(request: tiny_http::Request, files: &HashMap<String, Vec<u8>>, log: &Mutex<Vec<String>>, cut: &AtomicUsize) {
        let header = |name: &'static str| {
            request.headers().iter().find(|h| h.field.equiv(name)).map(|h| h.value.to_string()).unwrap_or_default()
        };
        let (url, range, token) = (request.url().to_string(), header("Range"), header("Authorization"));
        log.lock().unwrap().push(format!("{url} {range} {token}"));
        let say = |request: tiny_http::Request, code: u16| request.respond(tiny_http::Response::empty(code)).unwrap();
        if url.contains("gated") {
            return say(request, if token.is_empty() { 401 } else { 403 });
        }
        if url == "/api/models/org/tiny/revision/main" {
            let siblings: Vec<Value> = files.keys().map(|f| serde_json::json!({"rfilename": f})).collect();
            let body = serde_json::json!({"sha": SHA, "siblings": siblings}).to_string();
            return request.respond(tiny_http::Response::from_string(body)).unwrap();
        }
        let file = url.strip_prefix("/org/tiny/resolve/main/").and_then(|f| files.get(f).map(|b| (f, b)));
        let Some((name, bytes)) = file else { return say(request, 404) };
        let (start, end) = range.strip_prefix("bytes=").unwrap_or("0-").split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse::<usize>().map_or(bytes.len(), |e| e + 1);
        if start >= bytes.len() {
            return say(request, 416);
        }
        let mut send = end - start;
        if name == "model.safetensors" && send > 1 && cut.load(Ordering::SeqCst) > 0 {
            cut.fetch_sub(1, Ordering::SeqCst);
            send /= 2;
        }
        let etag: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let mut out = request.into_writer();
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\nETag: \"{etag}\"\r\n\
             x-repo-commit: {SHA}\r\nConnection: close\r\n\r\n",
            end - start,
            end - 1,
            bytes.len()
        );
        let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(&bytes[start..start + send]));
    }

    fn hub(server: &Server, cache: &Path) -> Hub {
        Hub {
            endpoint: server.url.clone(),
            cache: cache.to_path_buf(),
            token: None,
            offline: false,
            attempts: 3,
            wait: Duration::from_millis(1),
        }
    }

    fn go(hub: &Hub, name: &str) -> Result<PathBuf> {
        fetch(name, "main", hub, &mut |_| ())
    }

    #[test]
    fn only_what_is_needed_is_fetched_once_and_then_found_offline() {
        let (server, cache) = (serve(&[]), tempfile::tempdir().unwrap());
        let mut hub = hub(&server, cache.path());
        let (mut announced, mut bytes) = (Vec::new(), 0);
        let folder = fetch("org/tiny", "main", &hub, &mut |e| match e {
            Event::Start { file, files, .. } => announced.push((file.to_string(), files)),
            Event::Bytes(n) => bytes += n,
            Event::Finish => (),
        })
        .unwrap();
        let names: BTreeSet<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let want = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"];
        assert_eq!(names, want.map(String::from).into());
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
        assert_eq!((announced.len(), announced[0].1), (4, 4));
        assert_eq!(bytes, 200_000 + 2 + 7 + 7);
        let before = server.log.lock().unwrap().len();
        assert_eq!(go(&hub, "org/tiny").unwrap(), folder);
        assert_eq!(server.log.lock().unwrap().len(), before + 1, "one question, no file");
        hub.offline = true;
        hub.endpoint = "http://127.0.0.1:9".into();
        assert_eq!(go(&hub, "org/tiny").unwrap(), folder);
        fs::remove_file(folder.join("model.safetensors")).unwrap();
        assert!(go(&hub, "org/tiny").unwrap_err().to_string().contains("lacks model.safetensors"));
        assert!(go(&hub, "org/other").unwrap_err().to_string().contains("HF_HUB_OFFLINE is set"));
    }

    #[test]
    fn a_cut_connection_goes_on_where_it_broke_off() {
        let (server, cache) = (serve(&[]), tempfile::tempdir().unwrap());
        server.cut.store(2, Ordering::SeqCst);
        let folder = go(&hub(&server, cache.path()), "org/tiny").unwrap();
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
        let log = server.log.lock().unwrap();
        let asked = |range: &str| log.iter().any(|l| l.contains("model.safetensors") && l.contains(range));
        assert!(asked("bytes=0- ") && asked("bytes=100000- ") && asked("bytes=150000- "), "{log:?}");
    }

    #[test]
    fn a_download_that_was_killed_goes_on_too() {
        let (server, cache) = (serve(&[]), tempfile::tempdir().unwrap());
        let blobs = cache.path().join("models--org--tiny/blobs");
        for have in [70_000, 200_000, 300_000] {
            let _ = fs::remove_dir_all(cache.path().join("models--org--tiny"));
            fs::create_dir_all(&blobs).unwrap();
            let mut part = weights();
            part.resize(have, 0);
            fs::write(blobs.join("modelsafetensors.part"), part).unwrap();
            let folder = go(&hub(&server, cache.path()), "org/tiny").unwrap();
            assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights(), "{have}");
        }
        assert!(server.log.lock().unwrap().iter().any(|l| l.contains("bytes=70000- ")));
    }

    #[test]
    fn shards_by_their_index() {
        let index = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
        let files: [(&str, &[u8]); 4] = [
            ("model.safetensors", b""),
            ("model.safetensors.index.json", index),
            ("model-00001-of-00002.safetensors", b"one"),
            ("model-00002-of-00002.safetensors", b"two"),
        ];
        let (server, cache) = (serve(&files), tempfile::tempdir().unwrap());
        let folder = go(&hub(&server, cache.path()), "org/tiny").unwrap();
        assert_eq!(fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(), b"two");
        let (server, cache) = (serve(&files[..3]), tempfile::tempdir().unwrap());
        let e = go(&hub(&server, cache.path()), "org/tiny").unwrap_err().to_string();
        assert!(e.contains("names model-00002-of-00002.safetensors, which the repository does not hold"), "{e}");
        let files: [(&str, &[u8]); 2] = [("model.safetensors", b""), ("pytorch_model.bin", b"x")];
        let (server, cache) = (serve(&files), tempfile::tempdir().unwrap());
        let e = go(&hub(&server, cache.path()), "org/tiny").unwrap_err().to_string();
        assert!(e.contains("only pytorch_model.bin"), "{e}");
    }

    #[test]
    fn refusals_say_what_to_do() {
        let (server, cache) = (serve(&[]), tempfile::tempdir().unwrap());
        let mut hub = hub(&server, cache.path());
        let why = |hub: &Hub, name: &str| go(hub, name).unwrap_err().to_string();
        let e = why(&hub, "Qwen3-0.6B-Instruct");
        assert!(e.contains("no such model") && e.ends_with("did you mean `Qwen/Qwen3-0.6B`?"), "{e}");
        assert!(why(&hub, "org/gated").contains("set HF_TOKEN or hf_hub_token"));
        hub.token = Some("hf_x".into());
        assert!(why(&hub, "org/gated").contains("accept its licence"));
        assert!(server.log.lock().unwrap().iter().any(|l| l.ends_with("Bearer hf_x")));
        assert!(why(&hub, "../x").contains("is no folder"));
        assert!(why(&hub, "models/llama/7b").contains("is no folder"));
        assert!(fetch("org/tiny", "../../x", &hub, &mut |_| ()).unwrap_err().to_string().contains("model_revision"));
        hub.endpoint = "http://127.0.0.1:9".into(); // the discard port: nothing listens
        assert!(why(&hub, "org/tiny").contains("no connection to http://127.0.0.1:9"), "{}", why(&hub, "org/tiny"));
    }

    #[test]
    fn likely_names() {
        for (typed, meant) in [
            ("Qwen3-0.6B-Instruct", Some("Qwen/Qwen3-0.6B")),
            ("Qwen/Qwen3-0.6B-Instruct", Some("Qwen/Qwen3-0.6B")),
            ("Qwen3-0.6B", Some("Qwen/Qwen3-0.6B")),
            ("qwen/qwen2.5-7b-instruct", Some("Qwen/Qwen2.5-7B-Instruct")),
            ("meta-llama/Llama-3.2-1B-Chat", Some("meta-llama/Llama-3.2-1B")),
            ("mistral-7b-instruct-v0.2", Some("mistralai/Mistral-7B-Instruct-v0.2")),
            ("Qwen/Qwen3-0.6B", None),
            ("someone/thing", None),
        ] {
            assert_eq!(likely_name(typed), meant, "{typed}");
        }
    }
}
