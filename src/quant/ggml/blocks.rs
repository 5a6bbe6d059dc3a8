//! A quantised matrix: blocks kept as they are, in memory or in a mapped file.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::{GgmlType, dequantise};
use crate::error::{Error, Result};
use crate::format::gguf::{Gguf, MappedFile, TensorInfo};

/// A matrix (rows, cols), row-major, each row whole blocks. Cloning shares the bytes.
#[derive(Clone)]
pub struct Blocks {
    pub ty: GgmlType,
    pub rows: usize,
    pub cols: usize,
    /// Bytes of a row.
    row_bytes: usize,
    held: Held,
    /// Which of `held`'s bytes: `rows * row_bytes` of them.
    range: Range<usize>,
}

#[derive(Clone)]
enum Held {
    Memory(Arc<Vec<u8>>),
    File(Arc<MappedFile>),
}

impl Blocks {
    /// Of blocks in memory.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `bytes` is `rows` rows of `cols` values, and a row is whole blocks.
    pub fn new(ty: GgmlType, rows: usize, cols: usize, bytes: Vec<u8>) -> Result<Blocks> {
        let want = ty.tensor_bytes(&[cols, rows]).map_err(|why| Error::shape("quantised matrix", why))?;
        if bytes.len() != want {
            let why = format!("{rows} x {cols} of {ty} takes {want} bytes, {} were given", bytes.len());
            return Err(Error::shape("quantised matrix", why));
        }
        Ok(Blocks { ty, rows, cols, row_bytes: want / rows, held: Held::Memory(Arc::new(bytes)), range: 0..want })
    }

    /// The tensor `t` of `file`, not copied: the mapping lives as long as this. Dimensions past the first are rows.
    pub fn of_file(file: &Gguf, t: &TensorInfo) -> Blocks {
        let (rows, range) = (t.rows(), t.range());
        let row_bytes = range.len() / rows; // a tensor has no dimension of 0
        Blocks { ty: t.ty, rows, cols: t.cols(), row_bytes, held: Held::File(file.shared()), range }
    }

    /// All blocks, row after row.
    pub fn bytes(&self) -> &[u8] {
        let all: &[u8] = match &self.held {
            Held::Memory(bytes) => bytes,
            Held::File(map) => map,
        };
        &all[self.range.clone()]
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The blocks of row `i`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, i: usize) -> &[u8] {
        &self.bytes()[i * self.row_bytes..][..self.row_bytes]
    }

    /// The values of row `i`, of which there are `cols`.
    ///
    /// # Panics
    /// If there is no such row, or `out` is of another length.
    pub fn dequantise_row(&self, i: usize, out: &mut [f32]) {
        dequantise(self.ty, self.row(i), out);
    }

    /// Some of the rows, not copied: one part of a fused matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] if the range is empty or not among the rows.
    pub fn slice(&self, rows: Range<usize>) -> Result<Blocks> {
        if rows.is_empty() || rows.end > self.rows {
            return Err(Error::shape("rows of a quantised matrix", format!("{rows:?} of {}", self.rows)));
        }
        let range = self.range.start + rows.start * self.row_bytes..self.range.start + rows.end * self.row_bytes;
        Ok(Blocks { rows: rows.len(), range, ..self.clone() })
    }

    /// A copy whose row `i` is this one's row `from(i)`: a permutation of rows needs no dequantising.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn reordered(&self, from: impl Fn(usize) -> usize) -> Blocks {
        let bytes: Vec<u8> = (0..self.rows).flat_map(|i| self.row(from(i))).copied().collect();
        Blocks { range: 0..bytes.len(), held: Held::Memory(Arc::new(bytes)), ..self.clone() }
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blocks({} {} x {})", self.ty, self.rows, self.cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::{Metadata, Writer};

    #[test]
    fn rows_parts_and_orders() {
        let bytes: Vec<u8> = (0..4 * 36).map(|i| (i % 120) as u8).collect();
        let m = Blocks::new(GgmlType::Q4_0, 4, 64, bytes.clone()).unwrap();
        assert_eq!((m.row_bytes(), m.row(2)), (36, &bytes[72..108]));
        let part = m.slice(1..3).unwrap();
        assert_eq!((part.rows, part.bytes()), (2, &bytes[36..108]));
        assert_eq!(part.slice(1..2).unwrap().bytes(), &bytes[72..108]);
        let turned = part.reordered(|i| 1 - i);
        assert_eq!((turned.row(0), turned.row(1)), (m.row(2), m.row(1)));
        let mut values = [f32::NAN; 64];
        m.dequantise_row(3, &mut values);
        assert!(values.iter().all(|v| !v.is_nan()));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let why = |rows, cols, n| Blocks::new(GgmlType::Q4_0, rows, cols, vec![0; n]).unwrap_err().to_string();
        assert!(why(2, 64, 71).contains("2 x 64 of Q4_0 takes 72 bytes, 71 were given"));
        assert!(why(2, 33, 72).contains("no multiple of the 32"));
        assert!(why(0, 32, 0).contains("a dimension of 0"));
        assert!(why(usize::MAX, 32, 18).contains("overflows"));
        let m = Blocks::new(GgmlType::F32, 2, 1, vec![0; 8]).unwrap();
        assert!(m.slice(1..3).is_err() && m.slice(1..1).is_err());
    }

    #[test]
    fn a_file_outlives_its_handle() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let mut w = Writer::new(Metadata::new()).unwrap();
        w.tensor("a", &[3], GgmlType::F32).unwrap();
        w.tensor("b", &[32, 2], GgmlType::Q8_0).unwrap();
        w.write(&path, |t, sink| sink.bytes(&vec![t.dims.len() as u8; t.range().len()])).unwrap();
        let file = Gguf::open(&path).unwrap();
        let b = Blocks::of_file(&file, file.find("b").unwrap());
        drop(file);
        assert_eq!((b.rows, b.cols, b.bytes()), (2, 32, [2; 68].as_slice()));
        assert_eq!(b.slice(1..2).unwrap().row(0).len(), 34);
    }
}
