//! Times every tile and every path of the products on the GPU that is here, over the layer shapes of real models and from 64
//! to 8192 rows, and prints the line for the table of src/ops/tiles.rs.
//!
//! `cargo bench --bench kernels -- tiles [nt nn tn nf4-nt nf4-nn]`. All tiles and paths must give the same bits, or it stops; those by `wgmma`, which a card of
//! compute capability 9.0 has, their own ones, near those of the others. A product runs as a captured graph
//! over several sets of inputs, together larger than the second-level cache, between two events of the device.

use std::collections::BTreeMap;
use std::sync::Arc;

use qlora_engine::device::{Device, Gpu, HOPPER, Nf4Path, Tile, Wish, abi};
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::{self, Dx, Linear, Matrix};
use qlora_engine::ops::tiles::{self, Kind, Rule, Sample};
use qlora_engine::quant::{Code2, DeviceNf4, Nf4};
use qlora_engine::tensor::{DType, Tensor};
use qlora_engine::{Error, Result};

use crate::cases::Layer;
use crate::cases::inputs::{quantised, tensor};

pub const ROWS: [usize; 8] = [64, 128, 256, 512, 1024, 2048, 4096, 8192];
/// Times that each is measured; the best counts.
const RUNS: usize = 7;

/// A product of a layer of `out` x `inn`, which is the whole of a forward or a backward pass.
#[derive(Clone, Copy)]
struct Case {
    kind: Kind,
    rows: usize,
    out: usize,
    inn: usize,
}

impl Case {
    fn nf4(&self) -> bool {
        matches!(self.kind, Kind::Nf4Nt | Kind::Nf4Nn)
    }

    /// Columns of what is multiplied with W, or with x for its gradient.
    fn given(&self) -> usize {
        if matches!(self.kind, Kind::Nt | Kind::Nf4Nt) { self.inn } else { self.out }
    }

    /// Rows and columns of the result.
    fn result(&self) -> (usize, usize) {
        match self.kind {
            Kind::Nt | Kind::Nf4Nt => (self.rows, self.out),
            Kind::Nn | Kind::Nf4Nn => (self.rows, self.inn),
            Kind::Tn => (self.out, self.inn),
        }
    }

    fn bytes(&self) -> usize {
        let weights = self.out * self.inn;
        2 * self.rows * (self.out + self.inn) + if self.nf4() { weights / 2 } else { 2 * weights }
    }
}

/// The operands of a case on a device.
struct Inputs {
    case: Case,
    dense: Option<Tensor>,
    nf4: Option<DeviceNf4>,
    x: Tensor,
    dy: Tensor,
    grads: Tensor,
}

impl Inputs {
    fn new(case: Case, q: Option<&Nf4>, device: &Device) -> Result<Self> {
        let nf4 = match q {
            Some(q) if !device.is_plan() => Some(DeviceNf4::upload(q, &Code2::new(device)?)?),
            _ => None,
        };
        let trained = if case.kind == Kind::Tn { case.out * case.inn } else { 0 };
        Ok(Inputs {
            case,
            dense: if case.nf4() { None } else { Some(tensor(case.out, case.inn, 7, device)?) },
            nf4,
            x: tensor(case.rows, case.inn, 1, device)?,
            dy: tensor(case.rows, case.out, 2, device)?,
            grads: Tensor::zeros(1, trained, DType::F32, device)?,
        })
    }

    /// The product, and nothing else; None where it is added to the gradient.
    fn run(&mut self) -> Result<Option<Tensor>> {
        let trained = self.case.kind == Kind::Tn;
        let w = match (&self.dense, &self.nf4) {
            (Some(t), _) => Matrix::Dense(Slot { grad: trained, ..Slot::whole(t) }),
            (None, Some(q)) => Matrix::DeviceNf4(q),
            (None, None) => Matrix::Planned(self.case.out, self.case.inn),
        };
        let l = Linear { w, bias: None, lora: None };
        match self.case.kind {
            Kind::Nt | Kind::Nf4Nt => Ok(Some(linear::fwd(&self.x, &l, None)?.0)),
            kind => {
                let to = if kind == Kind::Tn { Dx::Skip } else { Dx::New };
                linear::bwd(linear::Saved::default(), &self.x, &l, &self.dy, to, &mut self.grads)
            }
        }
    }
}

/// A case on the GPU and in a plan: sets of inputs that together are larger than the second-level cache.
struct Bench<'a> {
    case: Case,
    device: &'a Device,
    planned: Device,
    inputs: Vec<Inputs>,
    dry: Vec<Inputs>,
}

impl<'a> Bench<'a> {
    fn new(case: Case, q: Option<&Nf4>, device: &'a Device, l2: usize) -> Result<Self> {
        let copies = (2 * l2).div_ceil(case.bytes()).clamp(1, 16);
        let planned = Device::plan_kernels();
        let all = |device: &Device| (0..copies).map(|_| Inputs::new(case, q, device)).collect::<Result<Vec<_>>>();
        Ok(Bench { case, device, inputs: all(device)?, dry: all(&planned)?, planned })
    }

    /// Seconds with this wish, and the result's bits.
    fn time(&mut self, wish: Wish) -> Result<(f64, Vec<f64>)> {
        let Bench { device, planned, inputs, dry, .. } = self;
        for device in [*device, &*planned] {
            device.tuning().ok_or_else(|| Error::Gpu("runs no kernels".into()))?.set(Some(wish));
        }
        let _ = planned.take_plan();
        dry.iter_mut().try_for_each(|inputs| inputs.run().map(drop))?;
        let layout = Arc::new(planned.take_plan().unwrap_or_default().0.layout());
        let memory = device.reserve(layout.bytes())?;
        let mut bits = Vec::new();
        inputs.iter_mut().for_each(|inputs| inputs.grads.fill_zero());
        memory.run(&layout, || {
            for (i, inputs) in inputs.iter_mut().enumerate() {
                let made = inputs.run()?;
                if i == 0 {
                    bits = made.as_ref().unwrap_or(&inputs.grads).to_f64();
                }
            }
            Ok(())
        })?;
        let graph = memory
            .run(&layout, || device.capture(|| inputs.iter_mut().try_for_each(|inputs| inputs.run().map(drop))))?
            .ok_or_else(|| Error::Gpu("does not capture".into()))?;
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            best = best.min(device.timed(|| graph.launch())?.as_secs_f64() / inputs.len() as f64);
        }
        Ok((best, bits))
    }

    /// In every way that there is; and the best seconds by `wgmma`, where the card has it and the kind has such tiles.
    fn sample(&mut self) -> Result<(Sample, Option<f64>)> {
        let case = self.case;
        let hopper = self.device.gpu().is_some_and(|gpu| gpu.capability == HOPPER);
        let mut timed = |family: &mut Family, tile, nf4| {
            let wish = Wish { tile: Some(tile), nf4: Some(nf4) };
            family.seconds(self.time(wish)?, wish)
        };
        let (mut plain, mut family) = (Family::default(), Family::default());
        let seconds =
            [timed(&mut plain, Tile::Large, Nf4Path::Fused)?, timed(&mut plain, Tile::Small, Nf4Path::Fused)?];
        let mut scratch = None;
        if case.nf4() {
            let by_large = timed(&mut plain, Tile::Large, Nf4Path::Scratch)?;
            scratch = Some(by_large.min(timed(&mut plain, Tile::Small, Nf4Path::Scratch)?));
        }
        let mut wgmma = None;
        if hopper && case.kind != Kind::Tn {
            let narrow = timed(&mut family, Tile::Wgmma128, Nf4Path::Scratch)?;
            let best = narrow.min(timed(&mut family, Tile::Wgmma256, Nf4Path::Scratch)?);
            if !near(&plain.0.unwrap_or_default(), &family.0.unwrap_or_default()) {
                return Err(Error::Gpu(format!("wgmma is far from mma.sync: {:?} of {} rows", case.kind, case.rows)));
            }
            scratch = scratch.map(|other| other.min(best));
            wgmma = Some(best);
        }
        let (m, n) = case.result();
        let tiles = |of_m: u32, of_n: u32| m.div_ceil(of_m as usize) * n.div_ceil(of_n as usize);
        let sample = Sample {
            rows: case.rows,
            large: tiles(abi::GEMM_128_M, abi::GEMM_128_N),
            small: tiles(abi::GEMM_64_M, abi::GEMM_64_N),
            seconds,
            scratch,
        };
        Ok((sample, wgmma))
    }
}

/// What tiles of a family gave for a case, which all of them must give.
#[derive(Default)]
struct Family(Option<Vec<f64>>);

impl Family {
    fn seconds(&mut self, (seconds, bits): (f64, Vec<f64>), wish: Wish) -> Result<f64> {
        match &self.0 {
            Some(first) if *first != bits => return Err(Error::Gpu(format!("other bits with {wish:?}"))),
            Some(_) => {}
            None => self.0 = Some(bits),
        }
        Ok(seconds)
    }
}

/// Sums in another order, each rounded to bf16: neighbours at most, a unit of the last place of the largest apart.
fn near(a: &[f64], b: &[f64]) -> bool {
    let largest = a.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= largest * 2f64.powi(-7))
}

/// Seconds of dense products of so many rows, by the best tile of mma.sync and by wgmma.
type ByRows = BTreeMap<usize, [f64; 2]>;

/// Rows and columns of the matrices of some layers, each once.
pub fn shapes(layers: &[Layer]) -> Vec<(usize, usize)> {
    let mut shapes: Vec<(usize, usize)> = Vec::new();
    for &(_, hidden, mlp, heads, kv_heads, head_dim, _) in layers {
        for shape in [(heads * head_dim, hidden), (kv_heads * head_dim, hidden), (mlp, hidden), (hidden, mlp)] {
            if !shapes.contains(&shape) {
                shapes.push(shape);
            }
        }
    }
    shapes
}

/// Times a kind over all shapes and rows, printing each; returns the rule that loses least.
fn kind(kind: Kind, gpu: &Gpu, device: &Device, sizes: Sizes, dense: &mut ByRows) -> Result<Rule> {
    let mut samples = Vec::new();
    for &(out, inn) in sizes.0 {
        let nf4 = matches!(kind, Kind::Nf4Nt | Kind::Nf4Nn);
        let q = if nf4 { Some(quantised(out, inn)?) } else { None };
        for &rows in sizes.1 {
            let case = Case { kind, rows, out, inn };
            let (s, wgmma) = Bench::new(case, q.as_ref(), device, gpu.l2 as usize)?.sample()?;
            let best = s.seconds[0].min(s.seconds[1]);
            let [large, small] = s.seconds.map(|s| s * 1e6);
            let more =
                |name: &str, s: Option<f64>| s.map_or_else(String::new, |s| format!("   {name} {:>9.1} us", s * 1e6));
            let (scratch, by_wgmma) = (more("scratch", s.scratch), more("wgmma", wgmma));
            if let Some(wgmma) = wgmma.filter(|_| !nf4) {
                let sums = dense.entry(rows).or_default();
                *sums = [sums[0] + best, sums[1] + wgmma];
            }
            let (given, flops) = (case.given(), 2.0 * rows as f64 * out as f64 * inn as f64);
            let best = flops / best.min(wgmma.unwrap_or(best)).min(s.scratch.unwrap_or(best)) / 1e12;
            println!(
                "{kind:?} {rows:>5} x {given:>5}, W {out:>5} x {inn:>5}   large {large:>9.1} us   small {small:>9.1} us{scratch}{by_wgmma}   {best:>6.1} TFLOP/s"
            );
            samples.push(s);
        }
    }
    Ok(tiles::rule_of(gpu.chip(), kind).fitted(gpu.chip(), &samples))
}

/// Matrices (rows, columns), and rows of what they are multiplied with.
pub type Sizes<'a> = (&'a [(usize, usize)], &'a [usize]);

/// Kinds by the names of their kernels.
const NAMES: [&str; 5] = ["nt", "nn", "tn", "nf4-nt", "nf4-nn"];

/// Times the kinds that are named; all of them where none is. Prints the line of the table, and where wgmma wins.
///
/// # Errors
/// For other names; on a device that is no GPU; whatever the device says; and if two ways give other bits.
pub fn sweep(device: &Device, names: &[String], sizes: Sizes) -> Result<()> {
    if let Some(other) = names.iter().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(Error::config("tiles", format!("knows {}, not `{other}`", NAMES.join(", "))));
    }
    let gpu = device.gpu().ok_or_else(|| Error::Gpu("there is none".into()))?;
    let chip = gpu.chip();
    let mut dense = ByRows::new();
    let mut rules = Kind::ALL.map(|kind| tiles::rule_of(chip, kind));
    for ((rule, of), name) in rules.iter_mut().zip(Kind::ALL).zip(NAMES) {
        if names.is_empty() || names.iter().any(|n| n == name) {
            *rule = kind(of, gpu, device, sizes, &mut dense)?;
        }
    }
    // From where on wgmma wins at every number of rows.
    let from = dense.iter().rev().take_while(|(_, [mma, wgmma])| wgmma < mma).last();
    if let Some((rows, _)) = from {
        println!("\nWGMMA_FROM of src/ops/tiles.rs: Some({rows})");
    }
    println!("\n{}: the line for src/ops/tiles.rs", gpu.name);
    println!("{}", tiles::line(chip.capability, &rules));
    Ok(())
}
