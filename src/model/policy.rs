//! Which activations are kept from the forward pass for the backward pass, and which are rebuilt.

use std::fmt;

/// What a block keeps, group by group. Every choice gives the same bits, because rebuilding runs the same code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// q, k, v.
    pub qkv: bool,
    /// Attention's output with its log-sum-exp.
    pub attention: bool,
    /// The residual between attention and MLP.
    pub mid: bool,
    /// gate and up.
    pub gate_up: bool,
}

impl Policy {
    /// No recomputation: `disable_gradient_checkpointing: true`.
    pub const KEEP: Policy = Policy { qkv: true, attention: true, mid: true, gate_up: true };
    /// Only each block's input is kept: gradient checkpointing.
    pub const RECOMPUTE: Policy = Policy { qkv: false, attention: false, mid: false, gate_up: false };

    /// From keeping all to keeping nothing, each dropping what is cheapest to rebuild for the bytes it frees. A linear
    /// layer's output costs its input's width in multiply-adds an element: gate and up, q, k, v and the middle residual
    /// cost about the same, so the largest goes first; attention costs most and goes last.
    pub const CHAIN: [Policy; 5] = [
        Policy::KEEP,
        Policy { gate_up: false, ..Policy::KEEP },
        Policy { gate_up: false, qkv: false, ..Policy::KEEP },
        Policy { attention: true, ..Policy::RECOMPUTE },
        Policy::RECOMPUTE,
    ];
}

/// The policy of each block: the first `lean_layers` keep less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policies {
    pub full: Policy,
    pub lean: Policy,
    pub lean_layers: usize,
}

impl Policies {
    /// That of block `layer`.
    pub fn of(&self, layer: usize) -> Policy {
        if layer < self.lean_layers { self.lean } else { self.full }
    }
}

impl From<Policy> for Policies {
    /// One policy for every block.
    fn from(policy: Policy) -> Self {
        Policies { full: policy, lean: policy, lean_layers: 0 }
    }
}

impl fmt::Display for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lean_layers {
            0 => write!(f, "{}", self.full),
            n => write!(f, "{}; in the first {n} layers {}", self.full, self.lean),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.qkv, "q, k, v"),
            (self.attention, "attention"),
            (self.mid, "middle residual"),
            (self.gate_up, "gate, up"),
        ];
        let kept: Vec<&str> = all.iter().filter(|(kept, _)| *kept).map(|(_, name)| *name).collect();
        match kept.len() {
            0 => write!(f, "each block's input alone"),
            4 => write!(f, "everything"),
            _ => write!(f, "{}", kept.join(", ")),
        }
    }
}
