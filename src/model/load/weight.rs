//! One weight: read from the checkpoint or made, with adapters merged into it, quantised, and put where it is read.

use super::{Builder, INITIALIZER_RANGE, Init, Role};
use crate::by_dtype;
use crate::config::FinetuningType;
use crate::device::gemm::{DstView, View, gemm};
use crate::error::{Error, Result};
use crate::format::adapter::Part;
use crate::model::base::Base;
use crate::model::weights::Weight;
use crate::ops::philox::{Stream, normal};
use crate::quant::ggml::Blocks;
use crate::quant::{DeviceGgml, Nf4};
use crate::tensor::{DType, Float, Real, Tensor, no_f16};

impl Builder<'_> {
    /// `module.kind`, read from the checkpoint's tensor `source`.
    pub(super) fn parameter(
        &mut self,
        module: &str,
        kind: &str,
        source: &str,
        shape: &[usize],
        role: Role,
    ) -> Result<Weight> {
        let linear = role == Role::Linear;
        self.done += 1;
        let total = self.spec.tensors();
        (self.progress)(self.done.min(total), total);
        let turned = self.spec.transposed && linear && shape.len() == 2;
        let (rows, cols) = if let [r, c] = *shape { (r, c) } else { (1, shape.iter().product()) };
        if self.is_trained(module) {
            let name = format!("{module}.{kind}");
            let from = match self.trained {
                Some((i, a)) if self.o.method.finetuning_type == FinetuningType::Lora => {
                    Init::Adapter(i, a.tensor_of(&name, Part::Saved).unwrap_or(&name).to_string())
                }
                _ => Init::Base(source.to_string()),
            };
            // A whole model is saved under the names that it came with, an adapter under those of PEFT.
            let whole = self.o.method.finetuning_type != FinetuningType::Lora;
            let named = |base: &Base| base.name_of(self.spec, &name).to_string();
            let name = self.base.filter(|_| whole).map_or_else(|| name.clone(), named);
            let decay = shape.len() == 2;
            let i = self.entry(name, shape, decay, from);
            self.entries[i].turned = turned;
            if turned {
                self.entries[i].shape.reverse();
            }
            return Ok(Weight::Trained(i));
        }
        let planned = self.device.is_plan();
        let stored = self.base.map(|base| base.read(self.spec, source, shape, turned, !planned)).transpose()?;
        if let (true, true, Some(double)) = (planned, linear, self.o.nf4) {
            return Ok(Weight::Planned { out: rows, inn: cols, double });
        }
        let Some(stored) = stored else {
            let stream = Stream { seed: self.o.seed, step: 0, module: u32::MAX - self.done as u32 };
            let t = self.random(rows, cols, shape.len() == 1 && kind == "weight", stream)?;
            return self.placed(t, role);
        };
        if let Some(blocks) = stored.quantised().filter(|_| linear) {
            return self.quantised(blocks);
        }
        if let (true, Some(double), Some(view)) = (linear, self.o.nf4, stored.view()) {
            return match &mut self.quantiser {
                Some(quantiser) => quantiser.quantise(&view, double).map(|q| Weight::DeviceNf4(Box::new(q))),
                None => Nf4::from_view(&view, double, self.o.threads).map(Weight::Nf4),
            };
        }
        let mut t = Tensor::unwritten(rows, cols, self.o.dtype, &self.staging)?;
        if !self.device.is_plan() {
            match self.o.dtype {
                DType::F16 => return Err(no_f16()),
                DType::Bf16 => stored.read_bf16(t.slice_mut())?,
                DType::F32 => stored.read_f32(t.slice_mut())?,
                DType::F64 => {
                    let mut values = vec![0.0f32; rows * cols];
                    stored.read_f32(&mut values)?;
                    t.slice_mut::<f64>().iter_mut().zip(values).for_each(|(t, x)| *t = f64::from(x));
                }
            }
            self.merge(module, kind, &mut t)?;
        }
        self.placed(t, role)
    }

    /// To where the device reads it. What is only gathered stays in the CPU's memory where kernels run: they read a row of it
    /// a token, over the bus, and the card has that much more room. Where the system does not let so much be locked it goes
    /// to the card after all.
    fn placed(&self, t: Tensor, role: Role) -> Result<Weight> {
        if role != Role::Gathered || !self.device.runs_kernels() {
            return t.moved_to(self.device).map(Weight::Frozen);
        }
        if self.device.is_plan() {
            return Ok(Weight::Pinned(t));
        }
        match t.pinned_copy(self.device) {
            Ok(pinned) => Ok(Weight::Pinned(pinned)),
            Err(Error::Memory(why)) => {
                log::warn!("the embedding takes {} bytes of the GPU's memory that were not planned: {why}", t.bytes());
                t.moved_to(self.device).map(Weight::Frozen)
            }
            Err(e) => Err(e),
        }
    }

    /// Blocks stay as they are: mapped on the CPU, copied to where kernels read them.
    fn quantised(&self, blocks: &Blocks) -> Result<Weight> {
        if !self.device.runs_kernels() {
            return Ok(Weight::Ggml(blocks.clone()));
        }
        let on_device = match self.device.is_plan() {
            true => DeviceGgml::unwritten(blocks.ty, blocks.rows, blocks.cols, self.device)?,
            false => DeviceGgml::upload(blocks, self.device)?,
        };
        Ok(Weight::DeviceGgml(Box::new(on_device)))
    }

    /// Ones for a norm, else a normal distribution as transformers initialises; where values are made.
    fn random(&self, rows: usize, cols: usize, norm: bool, stream: Stream) -> Result<Tensor> {
        let mut t = Tensor::unwritten(rows, cols, self.o.dtype, &self.staging)?;
        if !self.device.is_plan() {
            by_dtype!(t.dtype(), T => for (i, x) in t.slice_mut::<T>().iter_mut().enumerate() {
                let value = if norm { 1.0 } else { f64::from(normal(stream, i as u64)) * INITIALIZER_RANGE };
                *x = T::narrow(<T as Float>::Acc::of(value));
            });
        }
        Ok(t)
    }

    /// W += scale B A for every adapter that is merged.
    fn merge(&self, module: &str, kind: &str, w: &mut Tensor) -> Result<()> {
        for a in self.merged.iter().filter(|_| kind == "weight") {
            let Some((name_a, name_b)) = a.tensor_of(module, Part::A).zip(a.tensor_of(module, Part::B)) else {
                continue;
            };
            let (out, inn, r) = (w.rows(), w.cols(), a.config.rank_of(module));
            let (mut va, mut vb) = (vec![0.0f32; r * inn], vec![0.0f32; out * r]);
            a.tensors.expect(name_a, &[r, inn])?.read_f32(&mut va)?;
            a.tensors.expect(name_b, &[out, r])?.read_f32(&mut vb)?;
            let scale = a.config.scale_of(module) as f32;
            let mut delta = vec![0.0f32; out * inn];
            let product = (View::f32(&vb, out, r), View::f32(&va, r, inn), DstView::f32(&mut delta, out, inn));
            gemm(None, scale, product.0, product.1, 0.0, product.2);
            by_dtype!(w.dtype(), T => for (w, d) in w.slice_mut::<T>().iter_mut().zip(&delta) {
                *w = T::narrow(w.acc() + <T as Float>::Acc::of(f64::from(*d)));
            });
        }
        Ok(())
    }
}
