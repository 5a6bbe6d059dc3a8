//! One decoder block, forward and backward:
//!
//! mid = x + o(attention(rope(norm(q)), rope(norm(k)), v)), with q, k, v of norm1(x);
//! y = mid + down(silu(gate) * up), with gate, up of norm2(mid); or y = mid + down(gelu(up)).
//! Which norms, rotations and fused layers there are, the family says (`spec.rs`).
//!
//! What the backward pass needs is kept or rebuilt, group by group, as [`Policy`] says; norms, rotations
//! behind norms and silu(gate) * up are always rebuilt. Every policy gives the same bits, because rebuilding runs the same
//! code.

use super::cache::{Layered, Read};
use super::mlp::{Hidden, Mlp};
use super::norm::Norm;
use super::policy::Policy;
use super::qkv;
use super::spec::Spec;
use super::weights::{Dropout, Layer, Values, Vector, Weight};
use crate::error::Result;
use crate::ops::attention::{self, Attention, Scores};
use crate::ops::linear::{self, Dx};
use crate::ops::rope::{self, Table, Turn};
use crate::tensor::{Index, Tensor};

/// A block's weights.
pub(super) struct Block {
    pub norm1: Norm,
    pub qkv: qkv::Qkv,
    pub q_norm: Option<Vector>,
    pub k_norm: Option<Vector>,
    pub o: Layer,
    pub norm2: Norm,
    pub mlp: Mlp,
    pub window: Option<usize>,
}

/// What a block computes with, besides its weights.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub spec: &'a Spec,
    pub params: Values<'a>,
    /// None: positions were added to the embedding.
    pub rope: Option<&'a Table>,
    pub positions: &'a Index<'a>,
    pub cu_seqlens: &'a Index<'a>,
    /// Whether sliding windows apply.
    pub windows: bool,
    pub dropout: Option<Dropout>,
    /// A pass of few rows, each of which has the bits that it would have alone, and after which there is no backward one.
    pub few_rows: bool,
}

/// q, k and v, and the adapters' intermediates. q and k are as the projections gave them where norms of their heads follow,
/// else rotated already.
pub(super) struct Qkv {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    saved: qkv::Saved,
}

struct Attended {
    o: Tensor,
    saved: attention::Saved,
}

pub(super) struct Mid {
    pub mid: Tensor,
    saved: linear::Saved,
}

/// What a block's backward pass takes: its input, and what the policy kept.
pub(super) struct Saved {
    x: Tensor,
    qkv: Option<Qkv>,
    attended: Option<Attended>,
    mid: Option<Mid>,
    gate_up: Option<Hidden>,
    down: linear::Saved,
}

impl Block {
    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.qkv.layers().into_iter().chain([&self.o]).chain(self.mlp.layers())
    }

    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        self.qkv.layers_mut().into_iter().chain([&mut self.o]).chain(self.mlp.layers_mut())
    }

    /// Every matrix and vector, the adapters' not counted.
    pub(super) fn weights(&self) -> impl Iterator<Item = &Weight> {
        let heads = self.q_norm.iter().chain(&self.k_norm).map(|n| &n.0);
        let layers = self.layers().flat_map(|l| std::iter::once(&l.w).chain(&l.bias));
        self.norm1.weights().chain(self.norm2.weights()).chain(heads).chain(layers)
    }

    /// Whether anything in the block is trained.
    pub(super) fn is_trained(&self) -> bool {
        self.weights().any(Weight::is_trained) || self.layers().any(|l| l.lora.is_some())
    }

    /// `x` (tokens, hidden) -> y (tokens, hidden), keeping nothing.
    pub(super) fn infer(&self, x: Tensor, c: Context) -> Result<Tensor> {
        let qkv = self.qkv(&x, c)?;
        let o = self.attend(&qkv, c)?.o;
        drop(qkv);
        let mid = self.mid(&x, &o, c)?.mid;
        drop((x, o));
        let gate_up = self.gate_up(&mid, c)?;
        Ok(self.mlp.down(&mid, &gate_up, c)?.0)
    }

    /// As [`Block::infer`], for tokens that continue sequences whose keys and values are in `cache`; theirs are added.
    pub(super) fn cached(&self, x: Tensor, c: Context, read: &Read, cache: &mut Layered) -> Result<Tensor> {
        let qkv = self.qkv(&x, c)?;
        let turned = self.turned(&qkv.q, &qkv.k, c)?;
        let (q, k) = turned.as_ref().map_or((&qkv.q, &qkv.k), |[q, k]| (q, k));
        attention::store(k, &qkv.v, &read.rows, &mut cache.k, &mut cache.v)?;
        let o = match &read.past {
            None => attention::fwd(q, k, &qkv.v, self.attention(c))?.0,
            Some(past) => attention::decode(q, &cache.k, &cache.v, past.paged(self.attention(c)))?,
        };
        drop((turned, qkv));
        let mid = self.mid(&x, &o, c)?.mid;
        drop((x, o));
        let gate_up = self.gate_up(&mid, c)?;
        Ok(self.mlp.down(&mid, &gate_up, c)?.0)
    }

    /// `x` (tokens, hidden) -> y (tokens, hidden) and what [`Block::bwd`] needs.
    pub(super) fn fwd(&self, x: Tensor, c: Context, keep: Policy) -> Result<(Tensor, Saved)> {
        let qkv = self.qkv(&x, c)?;
        let attended = self.attend(&qkv, c)?;
        let qkv = keep.qkv.then_some(qkv);
        let mid = self.mid(&x, &attended.o, c)?;
        let attended = keep.attention.then_some(attended);
        let gate_up = self.gate_up(&mid.mid, c)?;
        let (y, down) = self.mlp.down(&mid.mid, &gate_up, c)?;
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
        gate_up: Option<Hidden>,
        down: linear::Saved,
        dy: Tensor,
        c: Context,
        grads: &mut Tensor,
    ) -> Result<Tensor> {
        let gate_up = match gate_up {
            Some(kept) => kept,
            None => self.gate_up(mid, c)?,
        };
        let d = self.mlp.down_bwd(gate_up, down, &dy, c, grads)?;
        let h = self.norm2.fwd(mid, c.params, c.spec.eps)?;
        let dh = self.mlp.up_bwd(d, &h, c, grads)?;
        drop(h);
        self.norm2.bwd(mid, c.params, c.spec.eps, &dh, Some(dy), grads)
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
        let Qkv { q, k, v, saved: saved_qkv } = qkv;
        let [dq, dk, dv] = {
            let turned = self.turned(&q, &k, c)?;
            let (q, k) = turned.as_ref().map_or((&q, &k), |[q, k]| (q, k));
            attention::bwd(saved, q, k, &v, &o, &d_o, self.attention(c))?
        };
        drop((o, v, d_o));
        let [dq, dk] = self.turned_bwd([&q, &k], [dq, dk], c, grads)?;
        drop((q, k));
        let h = self.norm1.fwd(x, c.params, c.spec.eps)?;
        let through = below || self.norm1.is_trained();
        let dh = self.qkv.bwd(saved_qkv, &h, [dq, dk, dv], c, through, grads)?;
        drop(h);
        match dh {
            Some(dh) => self.norm1.bwd(x, c.params, c.spec.eps, &dh, Some(dmid), grads).map(Some),
            None => Ok(None),
        }
    }

    /// `x` (tokens, hidden) -> q, k and v of norm1(x); q and k rotated, unless their norms come before that.
    pub(super) fn qkv(&self, x: &Tensor, c: Context) -> Result<Qkv> {
        let h = self.norm1.fwd(x, c.params, c.spec.eps)?;
        let ([mut q, mut k, v], saved) = self.qkv.fwd(&h, c)?;
        if let (Some(table), None) = (c.rope, self.head_norms(c)) {
            rope::apply([&mut q, &mut k], c.positions, table, Turn::Forward)?;
        }
        Ok(Qkv { q, k, v, saved })
    }

    /// q and k as attention sees them, where their norms and rotation are still to come. None: as they are.
    pub(super) fn turned(&self, q: &Tensor, k: &Tensor, c: Context) -> Result<Option<[Tensor; 2]>> {
        let Some((table, norms)) = c.rope.zip(self.head_norms(c)) else { return Ok(None) };
        rope::fwd([q, k], norms, c.positions, table).map(Some)
    }

    /// The gradients of the projections' q and k from those of what attention saw of them; `x`: q and k as they were kept.
    fn turned_bwd(&self, x: [&Tensor; 2], mut d: [Tensor; 2], c: Context, grads: &mut Tensor) -> Result<[Tensor; 2]> {
        let Some(table) = c.rope else { return Ok(d) };
        if let Some(norms) = self.head_norms(c) {
            return rope::bwd(x, norms, c.positions, table, d, grads);
        }
        let [dq, dk] = &mut d;
        rope::apply([dq, dk], c.positions, table, Turn::Back)?;
        Ok(d)
    }

    /// The norms of q's and k's heads, where the family has them.
    fn head_norms<'a>(&'a self, c: Context<'a>) -> Option<[rope::Norm<'a>; 2]> {
        let norm = |w: &'a Vector| rope::Norm { w: w.slot(c.params), eps: c.spec.eps };
        Some([norm(self.q_norm.as_ref()?), norm(self.k_norm.as_ref()?)])
    }

    fn attend(&self, qkv: &Qkv, c: Context) -> Result<Attended> {
        let turned = self.turned(&qkv.q, &qkv.k, c)?;
        let (q, k) = turned.as_ref().map_or((&qkv.q, &qkv.k), |[q, k]| (q, k));
        let (o, saved) = attention::fwd(q, k, &qkv.v, self.attention(c))?;
        Ok(Attended { o, saved })
    }

    pub(super) fn attention<'a>(&self, c: Context<'a>) -> Attention<'a> {
        let s = c.spec;
        Attention {
            heads: s.heads,
            kv_heads: s.kv_heads,
            head_dim: s.head_dim,
            cu_seqlens: c.cu_seqlens,
            window: self.window.filter(|_| c.windows),
            scores: Scores::default(),
        }
    }

    pub(super) fn mid(&self, x: &Tensor, o: &Tensor, c: Context) -> Result<Mid> {
        let (mid, saved) = self.o.fwd(o, c, Some(x))?;
        Ok(Mid { mid, saved })
    }

    /// The activation's inputs, of norm2(mid).
    pub(super) fn gate_up(&self, mid: &Tensor, c: Context) -> Result<Hidden> {
        let h = self.norm2.fwd(mid, c.params, c.spec.eps)?;
        self.mlp.up(&h, c)
    }
}

/// The input gradient that was asked for.
pub(super) fn wanted(dx: Option<Tensor>) -> Tensor {
    match dx {
        Some(dx) => dx,
        None => unreachable!("linear::bwd returns dx unless told to skip it"),
    }
}
