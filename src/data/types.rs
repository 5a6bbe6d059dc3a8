//! The three types that data pass through.

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    User,
    Assistant,
    /** A tool's result. */
    Observation,
    /** A tool call. */
    Function,
}

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// One row of any data set, in one form. For `sft`: turns that alternate (user | observation), (assistant | function)
/// and end with the answer. For `pt`: one user turn holding the text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    pub messages: Vec<Message>,
    /// Empty: none given, so the template's default is used.
    pub system: String,
    /// JSON of the tools, or empty.
    pub tools: String,
}

/// One training row: a tokenised record, or several packed together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sample {
    pub ids: Vec<u32>,
    /// For each token whether its label is the token itself; otherwise its label is -100.
    pub trained: Vec<bool>,
    /// Lengths of the sequences inside, which sum to `ids.len()`. Positions restart at 0 at each.
    pub pieces: Vec<u32>,
    /// Whether attention stays inside each piece (`neat_packing`); otherwise one causal span covers the row.
    pub block_diagonal: bool,
}

/// One micro-batch: rows laid end to end, without a pad token.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// (tokens)
    pub ids: Vec<u32>,
    /// (tokens): position inside its piece.
    pub positions: Vec<u32>,
    /// (spans + 1): starts of the attention spans, and the number of tokens last.
    pub cu_seqlens: Vec<u32>,
    /// Tokens whose successor in the same row is trained, ascending: the rows that reach the head.
    pub loss_rows: Vec<u32>,
    /// For each of `loss_rows`, the id to predict.
    pub targets: Vec<u32>,
    /// Labels that are not -100, counted before the shift: this batch's share of the loss's denominator.
    pub labels: usize,
    /// Samples in the batch.
    pub rows: usize,
    /// Whether a model's sliding window does not apply: LLaMA-Factory's mask for `neat_packing` is causal within each
    /// piece, and takes the place of the mask that the model would have made with its window.
    pub no_window: bool,
    /// Length to which a padding collator would have brought the rows (see `batch::Padding`): NEFTune's L.
    pub padded_len: usize,
}
