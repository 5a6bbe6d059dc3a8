//! A file's header: pairs and tensor descriptions, checked against each other and against the file's length.

use std::collections::HashSet;

use super::cursor::Cursor;
use super::metadata::shown;
use super::{ALIGNMENT, ALIGNMENT_KEY, Array, GgmlType, Metadata, TensorInfo, Value};

/// Bytes that a pair takes at the least: the key's length, the type, a value of one byte.
const LEAST_PAIR: u64 = 8 + 4 + 1;
/// Bytes that a tensor's description takes at the least: name, count of dimensions, one of them, type, offset.
const LEAST_INFO: u64 = 8 + 4 + 8 + 4 + 8;
/// No page or sector is larger, and what stands between tensors is kept in memory when a file is written.
const MOST_ALIGNMENT: u64 = 1 << 20;

/// Reads the pairs into `metadata` and returns the tensors, whose bytes then lie inside `bytes` and apart.
pub(super) fn parse(bytes: &[u8], metadata: &mut Metadata) -> Result<Vec<TensorInfo>, String> {
    let c = &mut Cursor::new(bytes);
    let magic: [u8; 4] = c.one(format_args!("the mark `GGUF`"), |b| b)?;
    if &magic != b"GGUF" {
        return Err(format!("is no GGUF file: it begins with `{}`, not with `GGUF`", magic.escape_ascii()));
    }
    let version = c.u32(format_args!("the version"))?;
    if version & 0xffff == 0 && version != 0 {
        return Err("is a big-endian GGUF file; little-endian ones can be read: convert it".into());
    }
    if !(2..=3).contains(&version) {
        return Err(format!("is GGUF version {version}; versions 2 and 3 can be read"));
    }
    let tensors = c.u64(format_args!("the count of tensors"))?;
    let pairs = c.u64(format_args!("the count of metadata"))?;
    c.fits(pairs, LEAST_PAIR, format_args!("metadata"))?;
    for i in 0..pairs {
        let key = c.string(format_args!("the key of metadata {i}"))?;
        let value = value(c, key)?;
        if metadata.get(key).is_some() {
            return Err(format!("metadata `{}` is there twice", shown(key)));
        }
        metadata.set(key, value);
    }
    let alignment = alignment(metadata)?;
    let infos = infos(c, tensors)?;
    if infos.is_empty() {
        return Ok(Vec::new()); // a vocabulary alone; nothing need be aligned
    }
    // u64 is no narrower than a file's length, and the header lies inside the file.
    let data = (c.at() as u64).checked_next_multiple_of(alignment).ok_or("has an alignment past any file's end")?;
    let tensors: Result<Vec<_>, String> =
        infos.into_iter().map(|info| info.place(data, alignment, bytes.len())).collect();
    apart(tensors?)
}

fn value(c: &mut Cursor<'_>, key: &str) -> Result<Value, String> {
    let key = shown(key);
    let what = format_args!("metadata `{key}`");
    let kind = c.u32(what)?;
    Ok(match kind {
        0 => Value::U8(c.one(what, u8::from_le_bytes)?),
        1 => Value::I8(c.one(what, i8::from_le_bytes)?),
        2 => Value::U16(c.one(what, u16::from_le_bytes)?),
        3 => Value::I16(c.one(what, i16::from_le_bytes)?),
        4 => Value::U32(c.u32(what)?),
        5 => Value::I32(c.one(what, i32::from_le_bytes)?),
        6 => Value::F32(c.one(what, f32::from_le_bytes)?),
        7 => Value::Bool(flag(c.one(what, u8::from_le_bytes)?, &key)?),
        8 => Value::String(c.string(what)?.into()),
        9 => Value::Array(array(c, &key)?),
        10 => Value::U64(c.u64(what)?),
        11 => Value::I64(c.one(what, i64::from_le_bytes)?),
        12 => Value::F64(c.one(what, f64::from_le_bytes)?),
        other => return Err(format!("{what} has the unknown type {other}")),
    })
}

fn array(c: &mut Cursor<'_>, key: &str) -> Result<Array, String> {
    let what = format_args!("metadata `{key}`");
    let (kind, n) = (c.u32(what)?, c.u64(what)?);
    Ok(match kind {
        0 => Array::U8(c.many(n, what, u8::from_le_bytes)?),
        1 => Array::I8(c.many(n, what, i8::from_le_bytes)?),
        2 => Array::U16(c.many(n, what, u16::from_le_bytes)?),
        3 => Array::I16(c.many(n, what, i16::from_le_bytes)?),
        4 => Array::U32(c.many(n, what, u32::from_le_bytes)?),
        5 => Array::I32(c.many(n, what, i32::from_le_bytes)?),
        6 => Array::F32(c.many(n, what, f32::from_le_bytes)?),
        7 => {
            let bytes: Vec<u8> = c.many(n, what, u8::from_le_bytes)?;
            Array::Bool(bytes.into_iter().map(|b| flag(b, key)).collect::<Result<_, _>>()?)
        }
        8 => {
            c.fits(n, 8, what)?;
            Array::String(
                (0..n).map(|i| c.string(format_args!("{what}[{i}]")).map(String::from)).collect::<Result<_, _>>()?,
            )
        }
        9 => return Err(format!("{what} is an array of arrays, which no model has")),
        10 => Array::U64(c.many(n, what, u64::from_le_bytes)?),
        11 => Array::I64(c.many(n, what, i64::from_le_bytes)?),
        12 => Array::F64(c.many(n, what, f64::from_le_bytes)?),
        other => return Err(format!("{what} is an array of the unknown type {other}")),
    })
}

fn flag(byte: u8, key: &str) -> Result<bool, String> {
    match byte {
        0 | 1 => Ok(byte == 1),
        _ => Err(format!("metadata `{key}` has {byte} where a bool is 0 or 1")),
    }
}

/// What offsets are multiples of.
pub(super) fn alignment(metadata: &Metadata) -> Result<u64, String> {
    let given = metadata.number(ALIGNMENT_KEY);
    match given {
        Ok(None) => Ok(ALIGNMENT),
        Ok(Some(n)) if n.is_power_of_two() && n <= MOST_ALIGNMENT => Ok(n),
        Ok(Some(n)) => {
            Err(format!("metadata `{ALIGNMENT_KEY}` is {n}, expected a power of two, {MOST_ALIGNMENT} at the most"))
        }
        Err(_) => Err(format!("metadata `{ALIGNMENT_KEY}` is no integer of 0 or more")),
    }
}

/// A description as it stands in the file.
struct Info {
    name: String,
    dims: Vec<usize>,
    ty: GgmlType,
    offset: u64,
    size: usize,
}

fn infos(c: &mut Cursor<'_>, count: u64) -> Result<Vec<Info>, String> {
    let count = c.fits(count, LEAST_INFO, format_args!("tensor descriptions"))?;
    let mut names = HashSet::with_capacity(count);
    let mut infos = Vec::with_capacity(count);
    for i in 0..count {
        let name = c.string(format_args!("the name of tensor {i}"))?;
        if !names.insert(name) {
            return Err(format!("tensor `{}` is there twice", shown(name)));
        }
        infos.push(info(c, name)?);
    }
    Ok(infos)
}

fn info(c: &mut Cursor<'_>, name: &str) -> Result<Info, String> {
    let shown = shown(name);
    let wrong = |why: String| format!("tensor `{shown}` {why}");
    let what = format_args!("the description of tensor `{shown}`");
    let n_dims = c.u32(what)?;
    if !(1..=4).contains(&n_dims) {
        return Err(wrong(format!("has {n_dims} dimensions, expected 1 to 4")));
    }
    let dims: Vec<u64> = c.many(u64::from(n_dims), what, u64::from_le_bytes)?;
    let ty = GgmlType::from_id(c.u32(what)?).map_err(|why| wrong(format!("is of {why}")))?;
    let offset = c.u64(what)?;
    let fitting = dims.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>();
    let dims = fitting.map_err(|_| wrong(format!("of {ty} {dims:?} overflows any memory")))?;
    let size = ty.tensor_bytes(&dims).map_err(wrong)?;
    Ok(Info { name: name.into(), dims, ty, offset, size })
}

impl Info {
    /// Where its bytes lie: `data` is where the first tensor may begin, `len` the file's length.
    fn place(self, data: u64, alignment: u64, len: usize) -> Result<TensorInfo, String> {
        let name = || shown(&self.name);
        if !self.offset.is_multiple_of(alignment) {
            return Err(format!("tensor `{}` has the offset {}, no multiple of {alignment}", name(), self.offset));
        }
        let start = data.checked_add(self.offset).and_then(|s| usize::try_from(s).ok());
        let end = start.and_then(|s| s.checked_add(self.size)).filter(|&end| end <= len);
        let (Some(start), Some(end)) = (start, end) else {
            let (size, offset) = (self.size, self.offset);
            return Err(format!(
                "is truncated or lies: tensor `{}` takes {size} bytes from byte {data} + {offset}, the file has {len}",
                name()
            ));
        };
        Ok(TensorInfo { name: self.name, dims: self.dims, ty: self.ty, bytes: start..end })
    }
}

/// The tensors, if no two share a byte.
fn apart(tensors: Vec<TensorInfo>) -> Result<Vec<TensorInfo>, String> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.bytes.start);
    for pair in order.windows(2) {
        if pair[0].bytes.end > pair[1].bytes.start {
            return Err(format!("tensor `{}` overlaps `{}`", shown(&pair[1].name), shown(&pair[0].name)));
        }
    }
    Ok(tensors)
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
