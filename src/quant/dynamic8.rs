//! The signed 8-bit dynamic data type, as bitsandbytes' CPU path quantises to it: the second level of double
//! quantisation.
//!
//! Source: Dettmers et al. 2021, arXiv:2110.02861, section 2.1. Seven decades [0.1, 1) * 10^(e-6), decade e cut into 2^e
//! equal parts; the code holds their midpoints with both signs, and 0 and 1. -1 is not among them.

use std::sync::OnceLock;

/// Elements that share one absmax.
pub const BLOCK: usize = 256;

/// Cells of the lookup table over [-1, 1].
const CELLS: usize = 65536;

/// The 256 values, ascending.
pub fn code() -> &'static [f32; 256] {
    static CODE: OnceLock<[f32; 256]> = OnceLock::new();
    CODE.get_or_init(|| map(true))
}

/// The 256 values of the unsigned map, ascending: each decade cut into twice as many parts, without negative values. The
/// second moments of 8-bit AdamW.
pub fn unsigned_code() -> &'static [f32; 256] {
    static CODE: OnceLock<[f32; 256]> = OnceLock::new();
    CODE.get_or_init(|| map(false))
}

fn map(signed: bool) -> [f32; 256] {
    let mut code = [0f32; 256];
    let mut next = 0;
    let mut put = |x: f32| {
        code[next] = x;
        next += 1;
    };
    for exponent in 0..7 {
        let parts = if signed { 1usize << exponent } else { 2 << exponent };
        let decade = 10f64.powi(exponent - 6) as f32;
        // The boundaries as torch.linspace lays them: an f32 step, counted up from 0.1 in the first half and down from
        // 1 after it, each boundary rounded once (the f64 product is exact).
        let step = f64::from((1.0 - 0.1f32) / parts as f32);
        let boundary = |i: usize| match i < parts.div_ceil(2) {
            true => (f64::from(0.1f32) + step * i as f64) as f32,
            false => (1.0 - step * (parts - i) as f64) as f32,
        };
        for i in 0..parts {
            let middle = decade * ((boundary(i) + boundary(i + 1)) / 2.0);
            put(middle);
            if signed {
                put(-middle);
            }
        }
    }
    put(0.0);
    put(1.0);
    code.sort_by(f32::total_cmp);
    code
}

/// The code of each cell: the nearest value to the cell's place. bitsandbytes rounds to a cell first and takes the cell's
/// code, so close to 0, where values lie denser than cells, its code is not always the nearest.
fn cells() -> &'static [u8; CELLS] {
    static TABLE: OnceLock<Box<[u8; CELLS]>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let code = code();
        let mut table = Box::new([0u8; CELLS]);
        let mut nearest = 0usize;
        for (i, cell) in table.iter_mut().enumerate() {
            let place = -1.0 + (2.0 * i as f32) / (CELLS - 1) as f32;
            while nearest < 255 && 0.5 * (code[nearest] + code[nearest + 1]) < place {
                nearest += 1;
            }
            *cell = nearest as u8;
        }
        table
    })
}

/// Quantises one block of at most [`BLOCK`] values; returns its absmax. A block of zeros gets codes 0, absmax 0.
pub fn quantise(values: &[f32], codes: &mut [u8]) -> f32 {
    let absmax = values.iter().fold(0f32, |m, x| m.max(x.abs()));
    if absmax == 0.0 {
        codes.fill(0);
        return absmax;
    }
    let (table, inverse) = (cells(), 1.0 / absmax);
    for (code, x) in codes.iter_mut().zip(values) {
        let unit = (x * inverse).clamp(-1.0, 1.0);
        let place = (unit + 1.0) * 0.5 * (CELLS - 1) as f32 + 0.5;
        *code = table[place as u16 as usize]; // truncates; saturates, so always a cell
    }
    absmax
}
