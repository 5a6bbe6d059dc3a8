use crate::device::{Buffer, Device, abi};
use crate::error::{Error, Result};
use crate::quant::dynamic8;
use crate::tensor::{DType, Tensor};

/// Elements that share an absmax.
pub(super) const BLOCK: usize = abi::ADAMW_STATE_BLOCK as usize;

/// First and second moments, flat like the parameters.
#[allow(clippy::large_enum_variant)] // a run has one of it
pub enum Moments {
    /// In the dtype of the parameters.
    Full { m: Tensor, v: Tensor },
    /// In 8 bits.
    Eight { m: Codes, v: Codes },
}

impl Moments {
    /// Zeros for the parameters `p`.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn zeros(p: &Tensor, eight_bit: bool) -> Result<Self> {
        let (n, device) = (p.len(), p.device());
        Ok(match eight_bit {
            false => {
                let zeros = || Tensor::zeros(p.rows(), p.cols(), p.dtype(), device);
                Moments::Full { m: zeros()?, v: zeros()? }
            }
            true => Moments::Eight {
                m: Codes::zeros(n, dynamic8::code(), device)?,
                v: Codes::zeros(n, dynamic8::unsigned_code(), device)?,
            },
        })
    }

    /// Bytes that the moments of `n` parameters take, of `size` bytes each if they are not in 8 bits.
    pub fn bytes(n: usize, size: usize, eight_bit: bool) -> u64 {
        let n = n as u64;
        if eight_bit { 2 * (n + 4 * n.div_ceil(BLOCK as u64)) } else { 2 * n * size as u64 }
    }
}

/// Numbers as 8-bit codes of a map, with an absmax for each [`BLOCK`] of them.
pub struct Codes {
    /// A byte each.
    pub(super) codes: Buffer,
    /// (1, blocks) f32.
    pub(super) absmax: Tensor,
    /// (1, 256) f32: where kernels read the map.
    pub(super) map: Tensor,
    values: &'static [f32; 256],
}

impl Codes {
    fn zeros(n: usize, values: &'static [f32; 256], device: &Device) -> Result<Self> {
        let mut codes = device.alloc(n)?;
        codes.fill(0);
        let absmax = Tensor::zeros(1, n.div_ceil(BLOCK), DType::F32, device)?;
        Ok(Codes { codes, absmax, map: Tensor::from_slice(values, 1, 256, device)?, values })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.codes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of absmax.
    pub fn blocks(&self) -> usize {
        self.absmax.len()
    }

    /// The codes and the absmax, to be saved.
    pub fn read(&self) -> (Vec<u8>, Vec<f32>) {
        let mut codes = vec![0; self.len()];
        self.codes.read(0, &mut codes);
        (codes, self.absmax.read(0, self.absmax.len()))
    }

    /// Takes back what [`Codes::read`] gave.
    ///
    /// # Errors
    /// [`Error::Shape`] unless they are as many.
    pub fn write(&mut self, codes: &[u8], absmax: &[f32]) -> Result<()> {
        if (codes.len(), absmax.len()) != (self.len(), self.absmax.len()) {
            let why = format!("{} codes and {} absmax for {} elements", codes.len(), absmax.len(), self.len());
            return Err(Error::shape("adamw moments", why));
        }
        self.codes.write(0, codes);
        self.absmax.write(0, absmax);
        Ok(())
    }

    /// The numbers themselves.
    pub fn values(&self) -> Vec<f32> {
        let (codes, absmax) = self.read();
        let blocks = codes.chunks(BLOCK).zip(&absmax);
        blocks.flat_map(|(codes, absmax)| codes.iter().map(move |c| self.values[usize::from(*c)] * absmax)).collect()
    }

    pub(super) fn expect(&self, what: &'static str, n: usize) -> Result<()> {
        if self.len() == n { Ok(()) } else { Err(Error::shape(what, format!("has {} elements, not {n}", self.len()))) }
    }

    /// The map and the midpoints of its neighbouring values.
    pub(super) fn map(&self) -> Map {
        let values = self.values;
        Map { values, middles: std::array::from_fn(|i| 0.5 * (values[i] + values[i + 1])) }
    }
}

/// How [`Codes`] are read and written on the CPU.
pub(super) struct Map {
    values: &'static [f32; 256],
    middles: [f32; 255],
}

impl Map {
    pub(super) fn decode(&self, codes: &[u8], absmax: f32, out: &mut [f32]) {
        for (x, c) in out.iter_mut().zip(codes) {
            *x = self.values[usize::from(*c)] * absmax;
        }
    }

    /// Returns the absmax.
    pub(super) fn encode(&self, x: &[f32], codes: &mut [u8]) -> f32 {
        let absmax = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        let unit = if absmax > 0.0 { absmax } else { 1.0 };
        for (code, x) in codes.iter_mut().zip(x) {
            let x = x / unit;
            let nearest = self.middles.partition_point(|m| *m < x);
            // What is below 0 stays below 0.
            *code = (nearest - usize::from(x < 0.0 && self.values[nearest] >= 0.0)) as u8;
        }
        absmax
    }
}
