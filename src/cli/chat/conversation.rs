//! What was said so far, and how much of it fits.

use crate::data::{Message, Role};
use crate::error::{Error, Result};

/// Turns that alternate, the user's first.
#[derive(Default)]
pub(super) struct Conversation {
    messages: Vec<Message>,
}

impl Conversation {
    pub fn clear(&mut self) {
        self.messages.clear();
    }

    /// Adds what the user says and returns the prompt, of at most `most` tokens, and how many pairs of turns, the oldest,
    /// were dropped for it.
    ///
    /// # Errors
    /// [`Error::Shape`] if what is said does not fit alone, and whatever `encode` returns; the conversation is then what it
    /// was.
    pub fn ask(
        &mut self,
        text: String,
        most: usize,
        encode: impl Fn(&[Message]) -> Result<Vec<u32>>,
    ) -> Result<(Vec<u32>, usize)> {
        self.messages.push(Message { role: Role::User, content: text });
        let fitted = self.fit(most, encode);
        match &fitted {
            Ok((_, dropped)) => drop(self.messages.drain(..2 * dropped)),
            Err(_) => self.withdraw(),
        }
        fitted
    }

    fn fit(&self, most: usize, encode: impl Fn(&[Message]) -> Result<Vec<u32>>) -> Result<(Vec<u32>, usize)> {
        let mut least = 0;
        for dropped in 0..self.messages.len().div_ceil(2) {
            let ids = encode(&self.messages[2 * dropped..])?;
            if ids.len() <= most {
                return Ok((ids, dropped));
            }
            least = ids.len();
        }
        let why = format!("has {least} tokens with the system prompt and the template's own; {most} are allowed");
        Err(Error::shape("message", why))
    }

    /// Takes back what the user said last.
    pub fn withdraw(&mut self) {
        self.messages.pop();
    }

    /// Adds the answer. Without one the question is taken back, so that turns go on to alternate.
    pub fn answered(&mut self, text: String) {
        match text.is_empty() {
            true => self.withdraw(),
            false => self.messages.push(Message { role: Role::Assistant, content: text }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token for each byte, and 3 for the system prompt.
    fn encode(messages: &[Message]) -> Result<Vec<u32>> {
        assert!(messages.iter().step_by(2).all(|m| m.role == Role::User));
        let text: String = messages.iter().map(|m| m.content.as_str()).collect();
        Ok([7, 7, 7].into_iter().chain(text.bytes().map(u32::from)).collect())
    }

    #[test]
    fn the_oldest_turns_go_first_and_in_pairs() {
        let mut c = Conversation::default();
        for i in 0..4 {
            let (ids, dropped) = c.ask("aaaa".into(), 23, encode).unwrap();
            // Each pair has 6 tokens: 3 + 6 * 2 + 4 = 19 fit in 23, one pair more does not.
            assert_eq!((ids.len(), dropped), (7 + 6 * i.min(2), usize::from(i == 3)), "turn {i}");
            c.answered("bb".into());
        }
        let (ids, dropped) = c.ask("c".repeat(20), 23, encode).unwrap();
        assert_eq!((ids.len(), dropped, c.messages.len()), (23, 3, 1));
    }

    #[test]
    fn too_long_a_message_changes_nothing_and_names_the_figures() {
        let mut c = Conversation::default();
        c.ask("aaaa".into(), 23, encode).unwrap();
        c.answered("bb".into());
        let e = c.ask("c".repeat(21), 23, encode).unwrap_err().to_string();
        assert!(e.contains("24 tokens") && e.contains("23 are allowed"), "{e}");
        assert_eq!(c.messages.len(), 2);
        assert_eq!(c.ask("a".into(), 23, encode).unwrap().0.len(), 10);
        // An answer that was stopped before its first word leaves no turn behind.
        c.answered(String::new());
        assert_eq!(c.messages.len(), 2);
        c.clear();
        assert_eq!(c.ask("a".into(), 23, encode).unwrap().0.len(), 4);
    }
}
