//! AMX kernel: bf16 pairs into f32, 32 x 32 tiles as 2 x 2 tile registers of 16 x 16.
//!
//! The standard library has no stable AMX intrinsics, so this is inline assembly. `tdpbf16ps` takes 32 k at a time;
//! subnormal inputs and results count as zero.
//!
//! With few rows of A the weights are loaded as tiles where they lie, as the first operand: see [`few`].
//!
//! With alpha = 1 the sum goes on from C in the tile registers (spilled between blocks of K, as f32: the same bits as
//! if it had stayed); otherwise a block's sum is scaled and added to C by one fused step.

use super::avx512bf16::put_lines;
use super::drive::{Family, Tile};
use super::few::Few;
use super::pack::{Elem, Simd};
use super::{View, x86};
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;

pub(super) struct Amx;

const MR: usize = 32;
const KC: usize = 512;
const A_STRIDE: usize = KC + 32;

/// Does the processor have AMX-BF16, and does the system let this process use it? (Linux hands out the 8 KiB of state on
/// request, once for all threads of the process.)
pub(super) fn permitted() -> bool {
    if !cfg!(target_os = "linux") || __cpuid(0).eax < 7 {
        return false;
    }
    // CPUID leaf 7: EDX bit 22 is AMX-BF16, bit 24 AMX-TILE.
    let edx = __cpuid_count(7, 0).edx;
    edx & (1 << 22) != 0 && edx & (1 << 24) != 0 && ask()
}

#[cfg(target_os = "linux")]
fn ask() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: takes two numbers and touches no memory; an unknown request is an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn ask() -> bool {
    false
}

/// The operand of `ldtilecfg`: palette 1, all eight tiles 16 rows of 64 bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Family for Amx {
    type Elem = bf16;
    const MR: usize = MR;
    const NR: usize = 32;
    const KC: usize = KC;
    const K_STEP: usize = 32;
    const A_STRIDE: usize = A_STRIDE;
    const SIMD: Simd = Simd::Avx512Bf16;
    const PIECE: usize = 2048;
    const B_BYTES: usize = 768 << 10;
    const MACS_PER_CYCLE: usize = 300;
    const FEW: usize = 16;
    const LINES: usize = 32;
    const FEW_BY_LINE: bool = true;
    const FEW_ANY_ALPHA: bool = false;

    unsafe fn begin() {
        // SAFETY: AMX is permitted; the operand is a valid configuration. Compiled code uses no tile registers.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly, preserves_flags)) }
    }

    unsafe fn end() {
        // SAFETY: gives the tile state back, so that context switches need not save it.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
    }

    unsafe fn tile(t: &Tile<bf16>) {
        // SAFETY: the same contract.
        unsafe { tile(t) }
    }

    unsafe fn begin_few(rows: usize) {
        let mut config = CONFIG;
        for tile in [0, 1, 6] {
            config.bytes_per_row[tile] = 4 * rows as u16;
        }
        // SAFETY: as `begin`; 4 to 64 bytes a row.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly, preserves_flags)) }
    }

    unsafe fn few(t: &Few<bf16>) {
        // SAFETY: the same contract.
        unsafe { few(t) }
    }

    /// The pairs of k of all rows side by side, as the second operand of `tdpbf16ps`.
    unsafe fn pack_few(a: &View<'_>, rows: usize, k0: usize, kc: usize, out: *mut bf16) {
        let mut line = [bf16::ZERO; KC];
        let kp = kc.next_multiple_of(Self::K_STEP);
        for i in 0..rows {
            line[kc..].fill(bf16::ZERO);
            bf16::fetch(&a.src, (i * a.row_stride) + k0 * a.col_stride, a.col_stride, &mut line[..kc], Self::SIMD);
            for (p, pair) in line[..kp].chunks_exact(2).enumerate() {
                // SAFETY: rows * kp <= FEW * A_STRIDE elements.
                unsafe { out.add(2 * (p * rows + i)).cast::<[bf16; 2]>().write([pair[0], pair[1]]) };
            }
        }
    }

    unsafe fn put_rows(rows: [*const bf16; 2], n: usize, width: usize, out: *mut bf16) {
        // SAFETY: the same contract.
        unsafe { x86::pair_rows(rows[0], rows[1], n, width, out) }
    }

    unsafe fn put_lines(src: *const bf16, stride: usize, n: usize, kc: usize, width: usize, out: *mut bf16) {
        // SAFETY: the same contract.
        unsafe { put_lines(src, stride, n, kc, width, out) }
    }

    unsafe fn put_transposed(src: *const bf16, stride: usize, kc: usize, rows: usize, out: *mut bf16) {
        // SAFETY: the same contract; k is filled up to a multiple of 32 = K_STEP.
        unsafe { x86::transpose_rows_bf16(src, stride, kc, rows, out, A_STRIDE) }
    }

    fn round(src: &[f32], out: &mut [bf16]) {
        // SAFETY: this family runs on AVX-512 machines only; both have this length.
        unsafe { x86::round(src.as_ptr(), src.len().min(out.len()), out.as_mut_ptr()) }
    }
}

/// A 32 x 32 f32 tile in memory.
#[repr(C, align(64))]
struct Block([[f32; 32]; 32]);

/// # Safety
/// As [`Family::tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tile(t: &Tile<bf16>) {
    let chained = t.alpha == 1.0;
    let whole = t.cols == t.width && t.rows.is_multiple_of(16);
    // SAFETY (all blocks): C has `rows` x `cols` elements; a Block has room for any tile.
    if chained && whole {
        return unsafe { multiply(t, t.c, t.ldc, t.accumulate) };
    }
    let mut block = std::mem::MaybeUninit::<Block>::uninit();
    let p = block.as_mut_ptr().cast::<f32>();
    if chained && t.accumulate {
        // Rows and columns past C hold zeros: their sums are dropped.
        for i in 0..t.rows.next_multiple_of(16) {
            for v in 0..t.width / 16 {
                let m = if i < t.rows { mask16(t.cols.saturating_sub(16 * v)) } else { 0 };
                unsafe {
                    let c = _mm512_maskz_loadu_ps(m, t.c.wrapping_add(i * t.ldc + 16 * v));
                    _mm512_store_ps(p.add(32 * i + 16 * v), c);
                }
            }
        }
    }
    unsafe { multiply(t, p, 32, chained && t.accumulate) };
    let alpha = _mm512_set1_ps(t.alpha);
    for i in 0..t.rows {
        for v in 0..t.width / 16 {
            let m = mask16(t.cols.saturating_sub(16 * v));
            unsafe {
                let c = t.c.add(i * t.ldc).wrapping_add(16 * v);
                let mut r = _mm512_load_ps(p.add(32 * i + 16 * v));
                if !chained {
                    r = if t.accumulate {
                        _mm512_fmadd_ps(alpha, r, _mm512_maskz_loadu_ps(m, c))
                    } else {
                        _mm512_mul_ps(alpha, r)
                    };
                }
                _mm512_mask_storeu_ps(c, m, r);
            }
        }
    }
}

fn mask16(n: usize) -> u16 {
    if n >= 16 { u16::MAX } else { (1u16 << n) - 1 }
}

/// c (whole tiles) = A * B, or += with `accumulate`.
///
/// # Safety
/// Panels as in `t`; c has round_up(rows, 16) x width elements at stride ldc; the tiles are configured.
unsafe fn multiply(t: &Tile<bf16>, c: *mut f32, ldc: usize, accumulate: bool) {
    let steps = t.kc / 32;
    let (a, a_stride) = (t.a, 2 * A_STRIDE);
    let a_low = a.wrapping_add(16 * A_STRIDE);
    let (b, b_stride) = (t.b, 4 * t.width);
    let (c_stride, c_low) = (4 * ldc, c.wrapping_add(16 * ldc));
    // SAFETY (all four): per step, 16 (or 32) rows of 64 bytes of A and 16 rows of b_stride bytes of B are read,
    // inside the panels; whole tiles of C are read and written. Flags, the named registers and tiles are declared.
    match (t.rows > 16, t.width == 32) {
        (true, true) => unsafe {
            if accumulate {
                asm!(
                    "tileloadd tmm0, [{c} + {cs}]", "tileloadd tmm1, [{c} + {cs} + 64]",
                    "tileloadd tmm2, [{cl} + {cs}]", "tileloadd tmm3, [{cl} + {cs} + 64]",
                    c = in(reg) c, cl = in(reg) c_low, cs = in(reg) c_stride,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nostack, readonly, preserves_flags)
                );
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    options(nostack, nomem, preserves_flags));
            }
            asm!(
                "2:",
                "tileloadd tmm4, [{a} + {sa}]",
                "tileloadd tmm6, [{b} + {sb}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {sb} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{al} + {sa}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 64",
                "add {al}, 64",
                "add {b}, 2048",
                "dec {n}",
                "jnz 2b",
                a = inout(reg) a => _, al = inout(reg) a_low => _, b = inout(reg) b => _, n = inout(reg) steps => _,
                sa = in(reg) a_stride, sb = in(reg) b_stride,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly)
            );
            asm!(
                "tilestored [{c} + {cs}], tmm0", "tilestored [{c} + {cs} + 64], tmm1",
                "tilestored [{cl} + {cs}], tmm2", "tilestored [{cl} + {cs} + 64], tmm3",
                c = in(reg) c, cl = in(reg) c_low, cs = in(reg) c_stride,
                options(nostack, preserves_flags)
            );
        },
        (false, true) => unsafe {
            if accumulate {
                asm!("tileloadd tmm0, [{c} + {cs}]", "tileloadd tmm1, [{c} + {cs} + 64]",
                    c = in(reg) c, cs = in(reg) c_stride, out("tmm0") _, out("tmm1") _,
                    options(nostack, readonly, preserves_flags));
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", out("tmm0") _, out("tmm1") _,
                    options(nostack, nomem, preserves_flags));
            }
            asm!(
                "2:",
                "tileloadd tmm4, [{a} + {sa}]",
                "tileloadd tmm6, [{b} + {sb}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {sb} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, 64",
                "add {b}, 2048",
                "dec {n}",
                "jnz 2b",
                a = inout(reg) a => _, b = inout(reg) b => _, n = inout(reg) steps => _,
                sa = in(reg) a_stride, sb = in(reg) b_stride,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly)
            );
            asm!("tilestored [{c} + {cs}], tmm0", "tilestored [{c} + {cs} + 64], tmm1",
                c = in(reg) c, cs = in(reg) c_stride, options(nostack, preserves_flags));
        },
        (true, false) => unsafe {
            if accumulate {
                asm!("tileloadd tmm0, [{c} + {cs}]", "tileloadd tmm2, [{cl} + {cs}]",
                    c = in(reg) c, cl = in(reg) c_low, cs = in(reg) c_stride, out("tmm0") _, out("tmm2") _,
                    options(nostack, readonly, preserves_flags));
            } else {
                asm!("tilezero tmm0", "tilezero tmm2", out("tmm0") _, out("tmm2") _,
                    options(nostack, nomem, preserves_flags));
            }
            asm!(
                "2:",
                "tileloadd tmm4, [{a} + {sa}]",
                "tileloadd tmm6, [{b} + {sb}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{al} + {sa}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {a}, 64",
                "add {al}, 64",
                "add {b}, 1024",
                "dec {n}",
                "jnz 2b",
                a = inout(reg) a => _, al = inout(reg) a_low => _, b = inout(reg) b => _, n = inout(reg) steps => _,
                sa = in(reg) a_stride, sb = in(reg) b_stride,
                out("tmm0") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
                options(nostack, readonly)
            );
            asm!("tilestored [{c} + {cs}], tmm0", "tilestored [{cl} + {cs}], tmm2",
                c = in(reg) c, cl = in(reg) c_low, cs = in(reg) c_stride, options(nostack, preserves_flags));
        },
        (false, false) => unsafe {
            if accumulate {
                asm!("tileloadd tmm0, [{c} + {cs}]", c = in(reg) c, cs = in(reg) c_stride, out("tmm0") _,
                    options(nostack, readonly, preserves_flags));
            } else {
                asm!("tilezero tmm0", out("tmm0") _, options(nostack, nomem, preserves_flags));
            }
            asm!(
                "2:",
                "tileloadd tmm4, [{a} + {sa}]",
                "tileloadd tmm6, [{b} + {sb}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "add {a}, 64",
                "add {b}, 1024",
                "dec {n}",
                "jnz 2b",
                a = inout(reg) a => _, b = inout(reg) b => _, n = inout(reg) steps => _,
                sa = in(reg) a_stride, sb = in(reg) b_stride,
                out("tmm0") _, out("tmm4") _, out("tmm6") _,
                options(nostack, readonly)
            );
            asm!("tilestored [{c} + {cs}], tmm0", c = in(reg) c, cs = in(reg) c_stride,
                options(nostack, preserves_flags));
        },
    }
}

/// For few rows of A the operands change places: the lines of W, as they lie, are the first one, A (packed by pairs) the
/// second, and C comes out transposed. Each element is the same sum: only the factors of each product have changed places.
///
/// # Safety
/// As [`Family::few`].
unsafe fn few(t: &Few<bf16>) {
    let (lines_low, sums_low) = (t.lines.wrapping_add(16 * t.stride), t.sums.wrapping_add(16 * t.rows));
    let row = 4 * t.rows;
    // SAFETY (all three): 32 lines of kc = 32 `steps` elements, as many rows of A, 32 rows of sums; the tiles are
    // configured: 16 rows, of 4 * rows bytes (0, 1, 6) or 64 (4, 5). Prefetches cannot fault.
    unsafe {
        if t.accumulate {
            asm!("tileloadd tmm0, [{c} + {cs}]", "tileloadd tmm1, [{cl} + {cs}]",
                c = in(reg) t.sums, cl = in(reg) sums_low, cs = in(reg) row,
                out("tmm0") _, out("tmm1") _, options(nostack, readonly, preserves_flags));
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", out("tmm0") _, out("tmm1") _,
                options(nostack, nomem, preserves_flags));
        }
        asm!(
            "2:",
            "tileloadd tmm6, [{a} + {sa}]",
            "tileloadd tmm4, [{w} + {sw}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{wl} + {sw}]",
            "tdpbf16ps tmm1, tmm5, tmm6",
            "mov {q}, {p}",
            "mov {i:e}, 8",
            "3:",
            "prefetcht1 [{q}]", "prefetcht1 [{q} + 64]", "prefetcht1 [{q} + 128]", "prefetcht1 [{q} + 192]",
            "add {q}, {sp}",
            "dec {i:e}",
            "jnz 3b",
            "add {a}, {step}",
            "add {w}, 64",
            "add {wl}, 64",
            "add {p}, 256",
            "dec {n}",
            "jnz 2b",
            a = inout(reg) t.a => _, w = inout(reg) t.lines => _, wl = inout(reg) lines_low => _,
            p = inout(reg) t.ahead => _, n = inout(reg) t.kc / 32 => _, i = out(reg) _,
            q = out(reg) _, sp = in(reg) t.ahead_stride,
            sa = in(reg) row, sw = in(reg) 2 * t.stride, step = in(reg) 16 * row,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm5") _, out("tmm6") _,
            options(nostack, readonly)
        );
        asm!("tilestored [{c} + {cs}], tmm0", "tilestored [{cl} + {cs}], tmm1",
            c = in(reg) t.sums, cl = in(reg) sums_low, cs = in(reg) row, options(nostack, preserves_flags));
    }
}
