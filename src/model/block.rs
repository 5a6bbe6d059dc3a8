//! One decoder block, forward and backward:
//!
//! mid = x + o(attention(rope(norm(q)), rope(norm(k)), v)), with q, k, v of norm1(x);
//! y = mid + down(silu(gate) * up), with gate, up of norm2(mid).
//!
//! What the backward pass needs is kept or rebuilt, group by group, as [`Policy`] says; norms, rotations and
//! silu(gate) * up are always rebuilt. Every policy gives the same bits, because rebuilding runs the same code.

use super::cache::{Layered, Read};
use super::policy::Policy;
use super::spec::Spec;
use super::weights::{Dropout, Layer, Values, Vector, Weight};
use crate::error::Result;
use crate::ops::attention::{self, Attention};
use crate::ops::linear::{self, Dx};
use crate::ops::rope::{self, Norm, Table};
use crate::ops::{rms_norm, swiglu};
use crate::tensor::{Index, Tensor};

/// A block's weights.
pub(super) struct Block {
    pub norm1: Vector,
    pub q: Layer,
    pub k: Layer,
    pub v: Layer,
    pub q_norm: Option<Vector>,
    pub k_norm: Option<Vector>,
    pub o: Layer,
    pub norm2: Vector,
    pub gate: Layer,
    pub up: Layer,
    pub down: Layer,
    pub window: Option<usize>,
}

/// What a block computes with, besides its weights.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub spec: &'a Spec,
    pub params: Values<'a>,
    pub rope: &'a Table,
    pub positions: &'a Index<'a>,
    pub cu_seqlens: &'a Index<'a>,
    /// Whether sliding windows apply.
    pub windows: bool,
    pub dropout: Option<Dropout>,
}

/// q, k and v as the projections gave them, and the adapters' intermediates.
struct Qkv {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    saved: [linear::Saved; 3],
}

struct Attended {
    o: Tensor,
    saved: attention::Saved,
}

struct Mid {
    mid: Tensor,
    saved: linear::Saved,
}

struct GateUp {
    gate: Tensor,
    up: Tensor,
    saved: [linear::Saved; 2],
}

/// What a block's backward pass takes: its input, and what the policy kept.
pub(super) struct Saved {
    x: Tensor,
    qkv: Option<Qkv>,
    attended: Option<Attended>,
    mid: Option<Mid>,
    gate_up: Option<GateUp>,
    down: linear::Saved,
}

impl Block {
    pub(super) fn layers(&self) -> [&Layer; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    pub(super) fn layers_mut(&mut self) -> [&mut Layer; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }

    /// Every matrix and vector, the adapters' not counted.
    pub(super) fn weights(&self) -> impl Iterator<Item = &Weight> {
        let norms = [Some(&self.norm1), Some(&self.norm2), self.q_norm.as_ref(), self.k_norm.as_ref()];
        let layers = self.layers().into_iter().flat_map(|l| std::iter::once(&l.w).chain(&l.bias));
        norms.into_iter().flatten().map(|n| &n.0).chain(layers)
    }

    /// Whether anything in the block is trained.
    pub(super) fn is_trained(&self) -> bool {
        self.weights().any(Weight::is_trained) || self.layers().iter().any(|l| l.lora.is_some())
    }

    /// `x` (tokens, hidden) -> y (tokens, hidden), keeping nothing.
    pub(super) fn infer(&self, x: Tensor, c: Context) -> Result<Tensor> {
        let qkv = self.qkv(&x, c)?;
        let o = self.attend(&qkv, c)?.o;
        drop(qkv);
        let mid = self.mid(&x, &o, c)?.mid;
        drop((x, o));
        let gate_up = self.gate_up(&mid, c)?;
        Ok(self.down(&mid, &gate_up, c)?.0)
    }

    /// As [`Block::infer`], for tokens that continue sequences whose keys and values are in `cache`; theirs are added.
    pub(super) fn cached(&self, x: Tensor, c: Context, read: &Read, cache: &mut Layered) -> Result<Tensor> {
        let qkv = self.qkv(&x, c)?;
        let (q, k) = self.turned(&qkv.q, &qkv.k, c)?;
        attention::store(&k, &qkv.v, &read.rows, &mut cache.k, &mut cache.v)?;
        let o = match &read.past {
            None => attention::fwd(&q, &k, &qkv.v, self.attention(c))?.0,
            Some(past) => attention::decode(&q, &cache.k, &cache.v, past.paged(self.attention(c)))?,
        };
        drop((q, k, qkv));
        let mid = self.mid(&x, &o, c)?.mid;
        drop((x, o));
        let gate_up = self.gate_up(&mid, c)?;
        Ok(self.down(&mid, &gate_up, c)?.0)
    }

    /// `x` (tokens, hidden) -> y (tokens, hidden) and what [`Block::bwd`] needs.
    pub(super) fn fwd(&self, x: Tensor, c: Context, keep: Policy) -> Result<(Tensor, Saved)> {
        let qkv = self.qkv(&x, c)?;
        let attended = self.attend(&qkv, c)?;
        let qkv = keep.qkv.then_some(qkv);
        let mid = self.mid(&x, &attended.o, c)?;
        let attended = keep.attention.then_some(attended);
        let gate_up = self.gate_up(&mid.mid, c)?;
        let (y, down) = self.down(&mid.mid, &gate_up, c)?;
        let (mid, gate_up) = (keep.mid.then_some(mid), keep.gate_up.then_some(gate_up));
        Ok((y, Saved { x, qkv, attended, mid, gate_up, down }))
    }

    /// The gradient of `x` from that of `y`, where something `below` needs it; gradients of what is trained here are
    /// added to `grads`.
    pub(super) fn bwd(
        &self,
        s: Saved,
        dy: Tensor,
        c: Context,
        below: bool,
        grads: &mut Tensor,
    ) -> Result<Option<Tensor>> {
        let Saved { x, mut qkv, mut attended, mid, gate_up, down } = s;
        // Rebuild, in the order of the forward pass, what the MLP's backward pass needs.
        let mid = match mid {
            Some(mid) => mid,
            None => {
                if attended.is_none() {
                    let rebuilt = match qkv.take() {
                        Some(kept) => kept,
                        None => self.qkv(&x, c)?,
                    };
                    attended = Some(self.attend(&rebuilt, c)?);
                    qkv = Some(rebuilt);
                }
                let Some(attended) = &attended else { unreachable!("rebuilt above") };
                self.mid(&x, &attended.o, c)?
            }
        };
        let dmid = self.mlp_bwd(&mid.mid, gate_up, down, dy, c, grads)?;

        let qkv = match qkv {
            Some(kept) => kept,
            None => self.qkv(&x, c)?,
        };
        let attended = match attended {
            Some(kept) => kept,
            None => self.attend(&qkv, c)?,
        };
        self.attention_bwd(&x, qkv, attended, mid.saved, dmid, c, below, grads)
    }

    fn mlp_bwd(
        &self,
        mid: &Tensor,
        gate_up: Option<GateUp>,
        down: linear::Saved,
        dy: Tensor,
        c: Context,
        grads: &mut Tensor,
    ) -> Result<Tensor> {
        let GateUp { gate, up, saved: [saved_gate, saved_up] } = match gate_up {
            Some(kept) => kept,
            None => self.gate_up(mid, c)?,
        };
        let a = swiglu::fwd(&gate, &up)?;
        let da = linear::bwd(down, &a, &self.down.linear(c.params, c.dropout), &dy, Dx::New, grads)?;
        drop(a);
        let (dgate, dup) = swiglu::bwd(gate, up, &wanted(da))?;
        let w = self.norm2.slot(c.params);
        let h = rms_norm::fwd(mid, w, c.spec.eps)?;
        let dh = linear::bwd(saved_gate, &h, &self.gate.linear(c.params, c.dropout), &dgate, Dx::New, grads)?;
        drop(dgate);
        let to = Dx::AddTo(wanted(dh));
        let dh = wanted(linear::bwd(saved_up, &h, &self.up.linear(c.params, c.dropout), &dup, to, grads)?);
        drop((dup, h));
        rms_norm::bwd(mid, w, c.spec.eps, &dh, Some(dy), Some(grads))
    }

    #[allow(clippy::too_many_arguments)] // everything that the forward pass left behind
    fn attention_bwd(
        &self,
        x: &Tensor,
        qkv: Qkv,
        attended: Attended,
        saved_o: linear::Saved,
        dmid: Tensor,
        c: Context,
        below: bool,
        grads: &mut Tensor,
    ) -> Result<Option<Tensor>> {
        let Attended { o, saved } = attended;
        let d_o = wanted(linear::bwd(saved_o, &o, &self.o.linear(c.params, c.dropout), &dmid, Dx::New, grads)?);
        let Qkv { q, k, v, saved: [saved_q, saved_k, saved_v] } = qkv;
        let [dq, dk, dv] = {
            let (rq, rk) = self.turned(&q, &k, c)?;
            attention::bwd(saved, &rq, &rk, &v, &o, &d_o, self.attention(c))?
        };
        drop((o, v, d_o));
        let dq = rope::bwd(&q, norm(&self.q_norm, c), c.positions, c.rope, dq, grads)?;
        drop(q);
        let dk = rope::bwd(&k, norm(&self.k_norm, c), c.positions, c.rope, dk, grads)?;
        drop(k);
        let w = self.norm1.slot(c.params);
        let h = rms_norm::fwd(x, w, c.spec.eps)?;
        let through = below || w.grad;
        let mut dh = None;
        for (saved, layer, d) in [(saved_q, &self.q, dq), (saved_k, &self.k, dk), (saved_v, &self.v, dv)] {
            let to = match dh.take() {
                _ if !through => Dx::Skip,
                None => Dx::New,
                Some(sum) => Dx::AddTo(sum),
            };
            dh = linear::bwd(saved, &h, &layer.linear(c.params, c.dropout), &d, to, grads)?;
        }
        drop(h);
        match dh {
            Some(dh) => rms_norm::bwd(x, w, c.spec.eps, &dh, Some(dmid), Some(grads)).map(Some),
            None => Ok(None),
        }
    }

    fn qkv(&self, x: &Tensor, c: Context) -> Result<Qkv> {
        let h = rms_norm::fwd(x, self.norm1.slot(c.params), c.spec.eps)?;
        let (q, saved_q) = linear::fwd(&h, &self.q.linear(c.params, c.dropout), None)?;
        let (k, saved_k) = linear::fwd(&h, &self.k.linear(c.params, c.dropout), None)?;
        let (v, saved_v) = linear::fwd(&h, &self.v.linear(c.params, c.dropout), None)?;
        Ok(Qkv { q, k, v, saved: [saved_q, saved_k, saved_v] })
    }

    /// q and k as attention sees them: normalised where the family does, and rotated.
    fn turned(&self, q: &Tensor, k: &Tensor, c: Context) -> Result<(Tensor, Tensor)> {
        let q = rope::fwd(q, norm(&self.q_norm, c), c.positions, c.rope)?;
        let k = rope::fwd(k, norm(&self.k_norm, c), c.positions, c.rope)?;
        Ok((q, k))
    }

    fn attend(&self, qkv: &Qkv, c: Context) -> Result<Attended> {
        let (q, k) = self.turned(&qkv.q, &qkv.k, c)?;
        let (o, saved) = attention::fwd(&q, &k, &qkv.v, self.attention(c))?;
        Ok(Attended { o, saved })
    }

    fn attention<'a>(&self, c: Context<'a>) -> Attention<'a> {
        let s = c.spec;
        Attention {
            heads: s.heads,
            kv_heads: s.kv_heads,
            head_dim: s.head_dim,
            cu_seqlens: c.cu_seqlens,
            window: self.window.filter(|_| c.windows),
        }
    }

    fn mid(&self, x: &Tensor, o: &Tensor, c: Context) -> Result<Mid> {
        let (mid, saved) = linear::fwd(o, &self.o.linear(c.params, c.dropout), Some(x))?;
        Ok(Mid { mid, saved })
    }

    fn gate_up(&self, mid: &Tensor, c: Context) -> Result<GateUp> {
        let h = rms_norm::fwd(mid, self.norm2.slot(c.params), c.spec.eps)?;
        let (gate, saved_gate) = linear::fwd(&h, &self.gate.linear(c.params, c.dropout), None)?;
        let (up, saved_up) = linear::fwd(&h, &self.up.linear(c.params, c.dropout), None)?;
        Ok(GateUp { gate, up, saved: [saved_gate, saved_up] })
    }

    fn down(&self, mid: &Tensor, s: &GateUp, c: Context) -> Result<(Tensor, linear::Saved)> {
        let a = swiglu::fwd(&s.gate, &s.up)?;
        linear::fwd(&a, &self.down.linear(c.params, c.dropout), Some(mid))
    }
}

/// The norm of q's or k's heads, where the family has one.
fn norm<'a>(w: &'a Option<Vector>, c: Context<'a>) -> Option<Norm<'a>> {
    w.as_ref().map(|w| Norm { w: w.slot(c.params), eps: c.spec.eps })
}

/// The input gradient that was asked for.
fn wanted(dx: Option<Tensor>) -> Tensor {
    match dx {
        Some(dx) => dx,
        None => unreachable!("linear::bwd returns dx unless told to skip it"),
    }
}
