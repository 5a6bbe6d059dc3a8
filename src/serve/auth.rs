//! API keys. Only their hashes are kept, and every one is compared, in constant time.

use std::fmt;
use std::path::Path;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use super::openai::error::ApiError;
use crate::error::{Error, Result};

/// The keys that open the server; none: it is open.
#[derive(Clone, Default)]
pub struct Keys {
    hashes: Vec<blake3::Hash>,
}

/// Keys are never shown, nor their hashes.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.hashes.len())
    }
}

impl Keys {
    /// Adds a key; an empty one is none.
    pub fn add(&mut self, key: &str) {
        let key = key.trim();
        if !key.is_empty() {
            self.hashes.push(blake3::hash(key.as_bytes()));
        }
    }

    /// Adds the keys of a file, one a line. Empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, or holds none: a server that was to be locked must not be open.
    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "cannot read", &e))?;
        let before = self.hashes.len();
        text.lines().filter(|line| !line.trim_start().starts_with('#')).for_each(|line| self.add(line));
        match self.hashes.len() > before {
            true => Ok(()),
            false => Err(Error::file(path, "holds no key; write one a line")),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// # Errors
    /// 401 unless the headers carry `Authorization: Bearer KEY` with one of the keys.
    pub(super) fn check(&self, headers: &HeaderMap) -> std::result::Result<(), ApiError> {
        if self.is_empty() {
            return Ok(());
        }
        let value = headers.get(AUTHORIZATION).map(|v| v.as_bytes());
        let Some((scheme, key)) = value.and_then(|v| v.split_at_checked(7)) else {
            return Err(ApiError::unauthorised("a key is needed, as `Authorization: Bearer KEY`"));
        };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(ApiError::unauthorised("a key is needed, as `Authorization: Bearer KEY`"));
        }
        let hash = blake3::hash(key.trim_ascii());
        // All are compared whatever is found: time tells nothing. A hash's == is constant in time.
        let known = self.hashes.iter().fold(false, |known, h| known | (*h == hash));
        if known { Ok(()) } else { Err(ApiError::unauthorised("the API key is not one of this server's")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &[u8]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, axum::http::HeaderValue::from_bytes(value).unwrap());
        headers
    }

    #[test]
    fn only_a_known_key_opens() {
        let mut keys = Keys::default();
        assert!(keys.check(&HeaderMap::new()).is_ok(), "without keys everyone may");
        keys.add(" sk-one ");
        keys.add("sk-two");
        keys.add("");
        assert_eq!(format!("{keys:?}"), "2 keys");
        for good in ["Bearer sk-one", "bearer sk-two", "Bearer  sk-one "] {
            assert!(keys.check(&headers(good.as_bytes())).is_ok(), "{good}");
        }
        for bad in [
            &b"Bearer sk-on"[..],
            b"Bearer ",
            b"Bearer",
            b"sk-one",
            b"Basic sk-one",
            b"",
            b"\xff\xfe\xff\xff\xff\xff\xff\xff",
        ] {
            let e = keys.check(&headers(bad)).unwrap_err();
            assert_eq!(e.status.as_u16(), 401, "{bad:?}");
        }
        assert!(keys.check(&HeaderMap::new()).is_err());
    }

    #[test]
    fn a_file_holds_a_key_a_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# ours\nsk-a\n\n  sk-b  \r\n").unwrap();
        let mut keys = Keys::default();
        keys.add_file(file.path()).unwrap();
        assert_eq!(format!("{keys:?}"), "2 keys");
        assert!(keys.check(&headers(b"Bearer sk-b")).is_ok() && keys.check(&headers(b"Bearer # ours")).is_err());
        std::fs::write(file.path(), "# none yet\n").unwrap();
        assert!(keys.add_file(file.path()).unwrap_err().to_string().contains("holds no key"));
    }
}
