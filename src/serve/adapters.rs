//! What is served, by name: the base and its adapters; how adapters come and go while requests run.

use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;

use super::engine::Engine;
use super::openai::error::ApiError;
use super::voice::{Voice, Voices};
use crate::error::{Error, Result};

/// The longest name of a model.
const NAME: usize = 128;

/// The base, or an adapter on it.
pub(super) struct Served {
    pub name: String,
    /// By which the worker knows it; None: the base.
    pub adapter: Option<usize>,
    pub voice: Arc<Voice>,
    /// Seconds since 1970 when it was loaded.
    pub created: u64,
}

/// Everything that is served.
pub(super) struct Registry {
    voices: Voices,
    /// The base, then the adapters in the order in which they came.
    served: RwLock<Vec<Arc<Served>>>,
    /// The only folder that adapters are loaded from while the server runs.
    jail: Option<PathBuf>,
    /// One is loaded at a time.
    loading: Mutex<()>,
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// # Errors
/// What is wrong with a name, as a phrase: names stand in URLs, logs and metrics.
pub(super) fn check_name(name: &str) -> std::result::Result<(), String> {
    let fine = |c: char| c.is_alphanumeric() || "._-+@:/".contains(c);
    match name {
        "" => Err("is empty".into()),
        long if long.len() > NAME => Err(format!("has {} bytes; {NAME} are allowed", long.len())),
        name if !name.chars().all(fine) => Err("may hold letters, digits and . _ - + @ : / alone".into()),
        _ => Ok(()),
    }
}

impl Registry {
    /// The base, called `name`. With `jail` adapters can be loaded from there.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that cannot be one, [`Error::File`] for a jail that is not there, and those of the
    /// base's tokenizer and template.
    pub fn new(name: &str, voices: Voices, jail: Option<&Path>) -> Result<Registry> {
        check_name(name).map_err(|why| Error::config("--model-name", format!("`{name}` {why}")))?;
        let jail = jail.map(|dir| dir.canonicalize().map_err(|e| Error::io(dir, "cannot be used", &e))).transpose()?;
        let voice = voices.of(None)?;
        let base = Arc::new(Served { name: name.to_string(), adapter: None, voice, created: now() });
        Ok(Registry { voices, served: RwLock::new(vec![base]), jail, loading: Mutex::new(()) })
    }

    fn all(&self) -> Vec<Arc<Served>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn names(&self) -> Vec<String> {
        self.all().iter().map(|s| s.name.clone()).collect()
    }

    /// The base first.
    pub fn list(&self) -> Vec<Arc<Served>> {
        self.all()
    }

    /// The one that answers where none is named: the first adapter, else the base.
    pub fn first(&self) -> Option<Arc<Served>> {
        let all = self.all();
        all.get(1).or(all.first()).cloned()
    }

    /// # Errors
    /// 404 `model_not_found`.
    pub fn find(&self, name: &str) -> std::result::Result<Arc<Served>, ApiError> {
        let all = self.all();
        all.iter().find(|s| s.name == name).cloned().ok_or_else(|| ApiError::no_model(name, &self.names()))
    }

    /// Runs `submit` while nobody can take `served` away, so that what is submitted finds its adapter.
    ///
    /// # Errors
    /// 404 if it has been taken away since it was found, and what `submit` returns.
    pub fn while_served<T>(
        &self,
        served: &Arc<Served>,
        submit: impl FnOnce() -> std::result::Result<T, ApiError>,
    ) -> std::result::Result<T, ApiError> {
        let all = self.served.read().unwrap_or_else(PoisonError::into_inner);
        match all.iter().any(|s| Arc::ptr_eq(s, served)) {
            true => submit(),
            false => Err(ApiError::no_model(&served.name, &all.iter().map(|s| s.name.clone()).collect::<Vec<_>>())),
        }
    }

    /// Serves what the worker already has as `adapter`, from `path`.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that is taken or cannot be one, and those of its template.
    pub fn add(&self, name: &str, path: &Path, adapter: usize) -> Result<()> {
        check_name(name).map_err(|why| Error::config("--adapter", format!("`{name}` {why}")))?;
        if self.names().iter().any(|n| n == name) {
            let why = format!("two models are called `{name}`; name them apart: --adapter NAME=PATH");
            return Err(Error::config("--adapter", why));
        }
        let voice = self.voices.of(Some(path))?;
        let served = Arc::new(Served { name: name.to_string(), adapter: Some(adapter), voice, created: now() });
        self.served.write().unwrap_or_else(PoisonError::into_inner).push(served);
        Ok(())
    }

    /// Loads the adapter at `path` under a new name, while requests run. Blocks.
    ///
    /// # Errors
    /// 403 if loading is off or the path lies outside of the jail; 400 for a name that is taken, and for what is no adapter
    /// of this base. Nothing has changed then.
    pub fn load(&self, engine: &Engine, name: &str, path: &str) -> std::result::Result<(), ApiError> {
        let jail = self.jail()?;
        check_name(name).map_err(|why| ApiError::invalid("lora_name", format!("`lora_name` {why}")))?;
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if self.names().iter().any(|n| n == name) {
            return Err(ApiError::invalid("lora_name", format!("`{name}` is served already; unload it first")));
        }
        let path = inside(jail, path)?;
        let refuse =
            |e: Error| ApiError::invalid("lora_path", format!("the adapter cannot be loaded: {}", shown(&e, jail)));
        let voice = self.voices.of(Some(&path)).map_err(refuse)?;
        let adapter = engine.load(&path).map_err(refuse)?;
        let served = Arc::new(Served { name: name.to_string(), adapter: Some(adapter), voice, created: now() });
        self.served.write().unwrap_or_else(PoisonError::into_inner).push(served);
        Ok(())
    }

    /// Takes an adapter away; requests that use it are finished.
    ///
    /// # Errors
    /// 403 if loading is off, 404 if there is none of this name, 400 for the base.
    pub fn unload(&self, engine: &Engine, name: &str) -> std::result::Result<(), ApiError> {
        self.jail()?;
        let found = self.find(name)?;
        let Some(adapter) = found.adapter else {
            return Err(ApiError::invalid("lora_name", format!("`{name}` is the base, which stays")));
        };
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let before = served.len();
        served.retain(|s| !Arc::ptr_eq(s, &found));
        // Of two requests to unload it one comes second.
        if served.len() < before {
            engine.unload(adapter);
        }
        Ok(())
    }

    fn jail(&self) -> std::result::Result<&Path, ApiError> {
        let off = || {
            let why = "adapters are loaded at run time only where the server was started with --adapters-dir";
            ApiError::refused(StatusCode::FORBIDDEN, "loading_is_off", why)
        };
        self.jail.as_deref().ok_or_else(off)
    }
}

/// An error's text without the server's own folders in front of what the client named.
fn shown(e: &Error, jail: &Path) -> String {
    e.to_string().replace(&format!("{}/", jail.display()), "")
}

/// `path` with every link followed, if it lies in `jail`, and all that lies directly in it. What is written outside is not
/// even looked at.
fn inside(jail: &Path, path: &str) -> std::result::Result<PathBuf, ApiError> {
    let outside = || {
        let why = "`lora_path` lies outside of the folder that adapters are loaded from";
        ApiError { param: Some("lora_path".into()), ..ApiError::refused(StatusCode::FORBIDDEN, "path_outside", why) }
    };
    let missing = || ApiError::invalid("lora_path", "there is nothing at `lora_path`");
    if path.is_empty() || path.contains('\0') {
        return Err(ApiError::invalid("lora_path", "`lora_path` is no path"));
    }
    let written = Path::new(path);
    if written.components().any(|c| matches!(c, Component::ParentDir)) {
        return Err(outside());
    }
    let joined = jail.join(written);
    if !joined.starts_with(jail) {
        return Err(outside());
    }
    let real = joined.canonicalize().map_err(|_| missing())?;
    if !real.starts_with(jail) {
        return Err(outside());
    }
    if real.is_dir() {
        for entry in real.read_dir().map_err(|_| missing())?.flatten() {
            let is_link = entry.file_type().is_ok_and(|t| t.is_symlink());
            if is_link && !entry.path().canonicalize().is_ok_and(|target| target.starts_with(jail)) {
                return Err(outside());
            }
        }
    }
    Ok(real)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_fit_everywhere() {
        for good in ["medical", "x/lora", "checkpoint-500", "Qwen3:4b", "医学"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "a b", "a\"b", "a\nb", "a\\b", "{a}", &"x".repeat(200)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_jail_holds() {
        let outer = tempfile::tempdir().unwrap();
        let jail = outer.path().join("jail");
        for dir in ["jail/good", "jail/linked", "jail/deep/er", "secret", "jail-too"] {
            std::fs::create_dir_all(outer.path().join(dir)).unwrap();
        }
        let jail = jail.canonicalize().unwrap();
        std::fs::write(outer.path().join("secret/adapter_config.json"), "{}").unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::symlink;
            symlink(outer.path().join("secret"), jail.join("out")).unwrap();
            symlink(jail.join("good"), jail.join("in")).unwrap();
            symlink(outer.path().join("secret/adapter_config.json"), jail.join("linked/adapter_config.json")).unwrap();
            assert_eq!(inside(&jail, "in").unwrap(), jail.join("good"));
            for bad in ["out", "linked"] {
                assert_eq!(inside(&jail, bad).unwrap_err().status.as_u16(), 403, "{bad}");
            }
        }
        assert_eq!(inside(&jail, "good").unwrap(), jail.join("good"));
        assert_eq!(inside(&jail, "deep/er").unwrap(), jail.join("deep/er"));
        assert_eq!(inside(&jail, jail.join("good").to_str().unwrap()).unwrap(), jail.join("good"));
        let too = outer.path().join("jail-too");
        for bad in ["../secret", "/etc", "good/../../secret", "/", "..", too.to_str().unwrap()] {
            assert_eq!(inside(&jail, bad).unwrap_err().status.as_u16(), 403, "{bad}");
        }
        for missing in ["nothing", "", "good\0"] {
            assert_eq!(inside(&jail, missing).unwrap_err().status.as_u16(), 400, "{missing:?}");
        }
    }
}
