//! Times every tile and every path of the products on the GPU that is here, over the layer shapes of real models and from 64
//! to 8192 rows, and prints the lines for the table of src/ops/tiles.rs. Without a GPU it says so and ends.
//!
//! `cargo bench --bench tiles`. All tiles and paths must give the same bits, or it stops. A product runs as a captured graph
//! over several sets of inputs, together larger than the second-level cache, between two events of the device.

#[path = "kernels/cases/inputs.rs"]
mod inputs;
mod shapes;

use std::sync::Arc;

use inputs::{quantised, tensor};
use qlora_engine::device::{self, Chip, Device, Nf4Path, Tile, Wish, abi};
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::{self, Dx, Linear, Matrix};
use qlora_engine::ops::tiles::{self, Kind, Rule, Sample};
use qlora_engine::quant::{Code2, DeviceNf4, Nf4};
use qlora_engine::tensor::{DType, Tensor};
use qlora_engine::{Error, Result};
use shapes::GPU_LAYERS;

const ROWS: [usize; 8] = [64, 128, 256, 512, 1024, 2048, 4096, 8192];
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

/// Seconds of a case with this wish, and the result's bits.
fn time(case: Case, wish: Wish, q: Option<&Nf4>, device: &Device, l2: usize) -> Result<(f64, Vec<f64>)> {
    let copies = (2 * l2).div_ceil(case.bytes()).clamp(1, 16);
    let planned = Device::plan_kernels();
    for device in [device, &planned] {
        device.tuning().ok_or_else(|| Error::Gpu("runs no kernels".into()))?.set(Some(wish));
    }
    let all = |device: &Device| (0..copies).map(|_| Inputs::new(case, q, device)).collect::<Result<Vec<_>>>();
    let mut dry = all(&planned)?;
    let _ = planned.take_plan();
    dry.iter_mut().try_for_each(|inputs| inputs.run().map(drop))?;
    let layout = Arc::new(planned.take_plan().unwrap_or_default().0.layout());
    let memory = device.reserve(layout.bytes())?;
    let mut inputs = all(device)?;
    let mut bits = Vec::new();
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
        best = best.min(device.timed(|| graph.launch())?.as_secs_f64() / copies as f64);
    }
    Ok((best, bits))
}

/// A case in every way that there is.
fn sample(case: Case, q: Option<&Nf4>, device: &Device, l2: usize) -> Result<Sample> {
    let mut first: Option<Vec<f64>> = None;
    let mut timed = |tile, nf4| {
        let (seconds, bits) = time(case, Wish { tile: Some(tile), nf4: Some(nf4) }, q, device, l2)?;
        match &first {
            Some(first) if *first != bits => Err(Error::Gpu(format!("other bits with {tile:?} tiles, {nf4:?}"))),
            Some(_) => Ok(seconds),
            None => {
                first = Some(bits);
                Ok(seconds)
            }
        }
    };
    let seconds = [timed(Tile::Large, Nf4Path::Fused)?, timed(Tile::Small, Nf4Path::Fused)?];
    let scratch = match case.nf4() {
        true => Some(timed(Tile::Large, Nf4Path::Scratch)?.min(timed(Tile::Small, Nf4Path::Scratch)?)),
        false => None,
    };
    let (m, n) = case.result();
    let tiles = |of_m: u32, of_n: u32| m.div_ceil(of_m as usize) * n.div_ceil(of_n as usize);
    Ok(Sample {
        rows: case.rows,
        large: tiles(abi::GEMM_128_M, abi::GEMM_128_N),
        small: tiles(abi::GEMM_64_M, abi::GEMM_64_N),
        seconds,
        scratch,
    })
}

/// Times a kind over all shapes, printing each; returns the rule that loses least.
fn kind(kind: Kind, chip: Chip, device: &Device, l2: usize) -> Result<Rule> {
    let mut shapes: Vec<(usize, usize)> = Vec::new();
    for (_, hidden, mlp, heads, kv_heads, head_dim, _) in GPU_LAYERS {
        let of_layer = [(heads * head_dim, hidden), (kv_heads * head_dim, hidden), (mlp, hidden), (hidden, mlp)];
        shapes.extend(of_layer.into_iter().filter(|s| !shapes.contains(s)).collect::<Vec<_>>());
    }
    let mut samples = Vec::new();
    for (out, inn) in shapes {
        let nf4 = matches!(kind, Kind::Nf4Nt | Kind::Nf4Nn);
        let q = if nf4 { Some(quantised(out, inn)?) } else { None };
        for rows in ROWS {
            let case = Case { kind, rows, out, inn };
            let s = sample(case, q.as_ref(), device, l2)?;
            let [large, small] = s.seconds.map(|s| s * 1e6);
            let scratch = s.scratch.map_or_else(String::new, |s| format!("   scratch {:>9.1} us", s * 1e6));
            let (given, flops) = (case.given(), 2.0 * rows as f64 * out as f64 * inn as f64);
            let best = flops / s.seconds[0].min(s.seconds[1]) / 1e12;
            println!(
                "{kind:?} {rows:>5} x {given:>5}, W {out:>5} x {inn:>5}   large {large:>9.1} us   small {small:>9.1} us{scratch}   {best:>6.1} TFLOP/s"
            );
            samples.push(s);
        }
    }
    Ok(tiles::rule_of(chip, kind).fitted(chip, &samples))
}

fn sweep(device: &Device) -> Result<()> {
    let gpu = device.gpu().ok_or_else(|| Error::Gpu("there is none".into()))?;
    let (chip, l2) = (gpu.chip(), gpu.l2 as usize);
    let mut rules = Kind::ALL.map(|kind| tiles::rule_of(chip, kind));
    for (rule, of) in rules.iter_mut().zip(Kind::ALL) {
        *rule = kind(of, chip, device, l2)?;
    }
    println!("\n{}: the line for src/ops/tiles.rs", gpu.name);
    println!("{}", tiles::line(chip.capability, &rules));
    Ok(())
}

fn main() {
    let device = match device::driver_version() {
        Ok(Some(_)) => Device::cuda(0),
        Ok(None) => return println!("no NVIDIA driver is here: the tiles are not timed"),
        Err(e) => Err(e),
    };
    match device.and_then(|device| sweep(&device)) {
        Ok(()) => {}
        Err(e) => println!("the tiles are not timed: {e}"),
    }
}
