//! From records to questions: what a model is asked when it predicts, and the answer that it should give.

use super::encode::infer_seqlen;
use super::template::Template;
use super::tokenizer::Tokenizer;
use super::{Record, Role};
use crate::error::{Error, Result};

/// A prompt and its label, as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The whole conversation before the last answer, ending where that begins.
    pub prompt: Vec<u32>,
    /// The last answer with its end marker, as it would be trained.
    pub label: Vec<u32>,
}

/// The questions of `records`, and how many records were left out because their turns do not come in pairs. Prompt and
/// label together have at most `cutoff` tokens; both are cut from the right, as LLaMA-Factory cuts them.
///
/// # Errors
/// [`Error::Dataset`], under `name`, if no record is left or a record's tools or function call are malformed.
pub fn questions(
    name: &str,
    records: &[Record],
    cutoff: usize,
    tokenizer: &Tokenizer,
    template: &Template,
) -> Result<(Vec<Question>, usize)> {
    let mut questions = Vec::with_capacity(records.len());
    for (i, record) in records.iter().enumerate().filter(|(_, r)| is_whole(r)) {
        let pair = template.encode_oneturn(tokenizer, &record.messages, &record.system, &record.tools);
        let (mut prompt, mut label) = pair.map_err(|e| match e {
            Error::Tokenizer(why) => Error::Dataset { name: name.into(), why: format!("row {}: {why}", i + 1) },
            e => e,
        })?;
        let (prompt_len, label_len) = infer_seqlen(prompt.len(), label.len(), cutoff);
        prompt.truncate(prompt_len);
        label.truncate(label_len);
        if prompt.is_empty() {
            let why = format!("row {}: no token is left of the prompt; raise cutoff_len (it is {cutoff})", i + 1);
            return Err(Error::Dataset { name: name.into(), why });
        }
        questions.push(Question { prompt, label });
    }
    if questions.is_empty() {
        let why = format!("none of its {} rows is a question with an answer", records.len());
        return Err(Error::Dataset { name: name.into(), why });
    }
    let left_out = records.len() - questions.len();
    Ok((questions, left_out))
}

/// Whether questions and answers alternate, an answer last.
fn is_whole(record: &Record) -> bool {
    let asks = |role| matches!(role, Role::User | Role::Observation);
    !record.messages.is_empty()
        && record.messages.len().is_multiple_of(2)
        && record.messages.iter().enumerate().all(|(i, m)| asks(m.role) == i.is_multiple_of(2))
}
