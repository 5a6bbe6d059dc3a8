//! Little-endian values one after the other, each checked against the end of the file before anything is allocated.

use std::fmt::Arguments;

/// A place in a file. Its methods name `what` they were about to read when the file ends before it.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    /// Bytes from the start of the file.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Bytes up to the end of the file.
    pub(super) fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// `count` things of at least `size` bytes each have to fit into the rest; the count as an index.
    pub(super) fn fits(&self, count: u64, size: u64, what: Arguments<'_>) -> Result<usize, String> {
        let fits = count.checked_mul(size).is_some_and(|n| n <= self.left());
        let short = || {
            let (at, left) = (self.at, self.left());
            format!("is truncated or lies: {what} takes {count} times {size} bytes at byte {at}, {left} are left")
        };
        usize::try_from(count).ok().filter(|_| fits).ok_or_else(short)
    }

    pub(super) fn one<const N: usize, T>(&mut self, what: Arguments<'_>, make: fn([u8; N]) -> T) -> Result<T, String> {
        let Some(bytes) = self.bytes[self.at..].first_chunk::<N>() else {
            let (at, left) = (self.at, self.left());
            return Err(format!("is truncated: {what} takes {N} bytes at byte {at}, {left} are left"));
        };
        self.at += N;
        Ok(make(*bytes))
    }

    pub(super) fn many<const N: usize, T>(
        &mut self,
        count: u64,
        what: Arguments<'_>,
        make: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, String> {
        let size = self.fits(count, N as u64, what)? * N;
        let bytes = &self.bytes[self.at..self.at + size];
        self.at += size;
        Ok(bytes.as_chunks::<N>().0.iter().map(|b| make(*b)).collect())
    }

    pub(super) fn u32(&mut self, what: Arguments<'_>) -> Result<u32, String> {
        self.one(what, u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: Arguments<'_>) -> Result<u64, String> {
        self.one(what, u64::from_le_bytes)
    }

    /// A length and that many bytes of UTF-8.
    pub(super) fn string(&mut self, what: Arguments<'_>) -> Result<&'a str, String> {
        let n = self.u64(what)?;
        let size = self.fits(n, 1, what)?;
        let bytes = &self.bytes[self.at..self.at + size];
        let text = std::str::from_utf8(bytes).map_err(|_| format!("{what} at byte {} is not UTF-8", self.at))?;
        self.at += size;
        Ok(text)
    }
}
