use super::{CANDIDATES, Picked, Row};
use crate::device::{Buffer, Device, Launcher, abi, bytes_of, bytes_of_mut, kernels};
use crate::error::Result;
use crate::ops::{bf16_only, size};

/// Enqueues `sample_split` and `sample_merge` for all rows, and waits for what they say; kernels/sample.h. Rows were checked by
/// [`super::pick`].
pub(super) fn pick(l: &Launcher, rows: &[Row]) -> Result<Vec<Option<Picked>>> {
    rows.iter().try_for_each(|r| bf16_only("logits", r.logits))?;
    let (n, vocab) = (rows.len(), rows[0].logits.cols());
    let device = rows[0].logits.device();
    let chunks = vocab.div_ceil(abi::SAMPLE_CHUNK as usize);
    let (mut settings, mut marks) = (Vec::with_capacity(n), Vec::new());
    for r in rows {
        let penalties = r.ask.penalties;
        settings.push(abi::SampleRow {
            logits: r.logits.ptr::<half::bf16>().wrapping_add(r.row * vocab) as u64,
            repetition: penalties.repetition,
            presence: penalties.presence,
            frequency: penalties.frequency,
            marks: marks.len() as u64,
            marked: size("marks", r.ask.marks.len())?,
            top_k: size("top_k", r.ask.top_k)?,
        });
        marks.extend(r.ask.marks.iter().map(|m| abi::SampleMark { id: m.id, count: m.count }));
    }
    let (settings, marks) = (uploaded(bytes_of(&settings), device)?, uploaded(bytes_of(&marks), device)?);
    // Lists have 4 bytes an element, ids as well as logits.
    let lists = if rows.iter().any(|r| r.ask.top_k > 0) { CANDIDATES * 4 } else { 0 };
    let parts = unwritten(n * chunks * size_of::<abi::SamplePart>(), device)?;
    let part_lists = unwritten(2 * n * chunks * lists, device)?;
    let heads = n * size_of::<abi::SampleHead>();
    let said = unwritten(heads + 2 * n * lists, device)?;
    let at = |buffer: &Buffer, offset: usize| buffer.addr() + offset as u64;
    let p = abi::Sample {
        heads: at(&said, 0) as *mut _,
        ids: at(&said, heads) as *mut _,
        logits: at(&said, heads + n * lists) as *mut _,
        parts: at(&parts, 0) as *mut _,
        part_ids: at(&part_lists, 0) as *mut _,
        part_logits: at(&part_lists, n * chunks * lists) as *mut _,
        rows: at(&settings, 0) as *const _,
        marks: at(&marks, 0) as *const _,
        vocab: size("vocabulary", vocab)?,
        chunks: size("chunks", chunks)?,
    };
    let (split, merge) = (size_of::<abi::SampleSplitSmem>(), size_of::<abi::SampleMergeSmem>());
    l.kernel(kernels::SAMPLE_SPLIT).grid3(chunks, n, 1).block(abi::SAMPLE_BLOCK).shared(split).launch(&p)?;
    l.kernel(kernels::SAMPLE_MERGE).grid(n).block(abi::SAMPLE_BLOCK).shared(merge).launch(&p)?;
    let mut words = vec![0u32; said.len() / 4];
    said.read(0, bytes_of_mut(&mut words));
    let (heads, lists) = words.split_at(heads / 4);
    let (ids, logits) = lists.split_at(lists.len() / 2);
    let of_row = |row: usize, head: &[u32]| {
        let [max, id, count, state] = head else { return None };
        if *state != abi::SAMPLE_FINE {
            return None;
        }
        let of = |list: &[u32]| list.iter().skip(row * CANDIDATES).take(*count as usize).copied().collect::<Vec<_>>();
        let candidates = of(ids).into_iter().zip(of(logits)).map(|(id, x)| (id, f32::from_bits(x))).collect();
        Some(Picked { max: f32::from_bits(*max), id: *id, candidates })
    };
    // (A failed read is full of 0xFF: no row is fine then.)
    Ok(heads.chunks_exact(4).enumerate().map(|(row, head)| of_row(row, head)).collect())
}

fn uploaded(bytes: &[u8], device: &Device) -> Result<Buffer> {
    let mut buffer = device.alloc(bytes.len())?;
    buffer.write(0, bytes);
    Ok(buffer)
}

/// Scratch; 0xFF in debug builds, so that what nobody wrote is seen.
fn unwritten(bytes: usize, device: &Device) -> Result<Buffer> {
    let mut buffer = device.alloc(bytes)?;
    if cfg!(debug_assertions) {
        buffer.fill(0xFF);
    }
    Ok(buffer)
}
