//! Text from tokens as they come: pieces that will not change any more, and the strings at which an answer ends.

use std::ops::Deref;

use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// What stands for bytes that are no UTF-8, whole or not yet.
const BROKEN: char = '\u{FFFD}';

/// So many tokens are decoded again for each new one; a longer stretch is cut off where that changes nothing.
const WINDOW: usize = 8;

/// Decodes an answer token by token. All pieces together, with what [`Streamer::finish`] gives, are what
/// [`Tokenizer::decode`] makes of all ids at once, special tokens left out.
///
/// A piece is only given when no later token can change it. So a character that is spread over tokens comes with the last of
/// them; and where a vocabulary spells bytes (`<0xE4>`), a run of those comes with the first token behind it, because one
/// byte more can make the whole run unreadable.
pub struct Streamer<T> {
    /// A reference, or an owner such as `Arc`.
    tokenizer: T,
    /// The last visible tokens.
    window: Vec<u32>,
    /// What of the window's text has been given.
    given: String,
}

impl<T: Deref<Target = Tokenizer>> Streamer<T> {
    pub fn new(tokenizer: T) -> Streamer<T> {
        Streamer { tokenizer, window: Vec::new(), given: String::new() }
    }

    /// The text that `token` settles; None if it settles none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer's decoder fails, or takes back what it has said.
    pub fn push(&mut self, token: u32) -> Result<Option<String>> {
        let spelt = match self.tokenizer.token(token) {
            // What is not shown does not end a run of bytes either: it is taken out before anything is decoded.
            None => return Ok(None),
            Some(_) if self.tokenizer.is_special(token) => return Ok(None),
            Some(spelt) => spelt,
        };
        self.window.push(token);
        if is_byte(&spelt) {
            return Ok(None);
        }
        let text = self.tokenizer.decode(&self.window, true)?;
        let settled = text.trim_end_matches(BROKEN);
        let piece = self.after_given(settled)?;
        self.given.push_str(&piece);
        if self.window.len() > WINDOW && settled.len() == text.len() {
            self.shorten(&text)?;
        }
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// The rest: what was held back and will not be completed any more.
    ///
    /// # Errors
    /// As [`Streamer::push`].
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window, true)?;
        self.after_given(&text)
    }

    fn after_given(&self, text: &str) -> Result<String> {
        match text.strip_prefix(self.given.as_str()) {
            Some(rest) => Ok(rest.to_string()),
            // Of trailing broken characters nothing is given, so a shorter text is one that is not settled yet.
            None if self.given.starts_with(text) => Ok(String::new()),
            None => Err(Error::Tokenizer("its decoder changes text that earlier tokens had settled".into())),
        }
    }

    /// Keeps the fewest last tokens whose text the whole window's ends with. What a decoder does at the start of a text, such
    /// as taking away a space, it does to the window before and after a new token alike.
    fn shorten(&mut self, text: &str) -> Result<()> {
        for n in 1..self.window.len() {
            let tail = &self.window[self.window.len() - n..];
            let said = self.tokenizer.decode(tail, true)?;
            if !said.is_empty() && text.ends_with(&said) {
                self.window = tail.to_vec();
                self.given = said;
                break;
            }
        }
        Ok(())
    }
}

/// Whether a token is spelt `<0xE4>`: a byte, for decoders that know such tokens.
fn is_byte(spelt: &str) -> bool {
    let hex = spelt.strip_prefix("<0x").and_then(|s| s.strip_suffix('>'));
    hex.is_some_and(|h| h.len() == 2 && h.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Ends an answer before the first of some strings. Text that could begin one is held back until that is settled.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

/// What may be shown of a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub text: String,
    /// A stop string follows: the answer is over.
    pub stopped: bool,
}

impl StopStrings {
    /// # Errors
    /// [`Error::Config`] for an empty string, which would end every answer before it began.
    pub fn new(stops: Vec<String>) -> Result<StopStrings> {
        match stops.iter().any(String::is_empty) {
            true => Err(Error::config("stop", "holds an empty text; name the text at which answers are to end")),
            false => Ok(StopStrings { stops, held: String::new() }),
        }
    }

    /// Takes the next piece. How the text is cut into pieces makes no difference: the stop that is complete first counts, the
    /// longest of those that end at the same place. After a stop nothing more should come.
    pub fn push(&mut self, piece: &str) -> Shown {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|s| self.held.find(s.as_str()).map(|at| (at + s.len(), at))).min();
        if let Some((_, at)) = found {
            self.held.truncate(at);
            return Shown { text: std::mem::take(&mut self.held), stopped: true };
        }
        // The longest end of the text that begins a stop stays.
        let begins = |tail: &str| self.stops.iter().any(|s| s.starts_with(tail));
        let kept = self.held.char_indices().map(|(i, _)| i).find(|&i| begins(&self.held[i..]));
        let rest = self.held.split_off(kept.unwrap_or(self.held.len()));
        Shown { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back, where the answer ended for another reason.
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const FOLDERS: [&str; 6] = [
        "assets/tiny-base",
        "tests/golden/models/llama2",
        "tests/golden/models/mistral",
        "tests/golden/models/llama3",
        "tests/golden/models/qwen2",
        "tests/golden/models/qwen3",
    ];

    const TEXTS: [&str; 7] = [
        "Hello, world",
        "  two spaces, a\ttab\nand lines\n\n",
        "多久洗一次牙？一般每年一次。",
        "a 👩‍👩‍👧 family, 🇨🇳 and e\u{301}",
        "mixed 中文 and naïve café — “quotes” 😀😀😀 end",
        "\u{FFFD} said on purpose \u{FFFD}",
        "",
    ];

    fn tokenizer(folder: &str) -> Tokenizer {
        Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), false).unwrap()
    }

    /// The pieces of `ids`, and the rest.
    fn stream(t: &Tokenizer, ids: &[u32]) -> (Vec<String>, String) {
        let mut s = Streamer::new(t);
        let pieces = ids.iter().filter_map(|&id| s.push(id).unwrap()).collect();
        (pieces, s.finish().unwrap())
    }

    fn check(t: &Tokenizer, ids: &[u32]) -> std::result::Result<Vec<String>, String> {
        let (pieces, rest) = stream(t, ids);
        let (got, want) = (pieces.concat() + &rest, t.decode(ids, true).unwrap());
        if got == want { Ok(pieces) } else { Err(format!("{ids:?}: {got:?} for {want:?}")) }
    }

    #[test]
    fn pieces_are_the_text_and_whole_characters() {
        for folder in FOLDERS {
            let t = tokenizer(folder);
            for text in TEXTS {
                let ids = t.encode(text).unwrap();
                let pieces = check(&t, &ids).unwrap_or_else(|e| panic!("{folder}: {e}"));
                if !text.contains(BROKEN) {
                    // Cut anywhere, what was given before is the beginning of the whole.
                    for n in 0..ids.len() {
                        let (pieces, _) = stream(&t, &ids[..n]);
                        assert!(!pieces.concat().contains(BROKEN), "{folder}: {text:?} at {n}: {pieces:?}");
                    }
                    assert!(pieces.iter().all(|p| !p.contains(BROKEN) && !p.is_empty()), "{folder}: {pieces:?}");
                }
            }
        }
    }

    /// Streaming streams: of a text of words, nearly every token gives its piece at once.
    #[test]
    fn words_come_at_once() {
        for folder in FOLDERS {
            let t = tokenizer(folder);
            let ids = t.encode("the people of the world are in the house and there is a garden").unwrap();
            let (pieces, rest) = stream(&t, &ids);
            assert!(pieces.len() >= ids.len() - 2 && rest.is_empty(), "{folder}: {} of {}", pieces.len(), ids.len());
        }
    }

    #[test]
    fn an_emoji_in_bytes_comes_whole() {
        let t = tokenizer("tests/golden/models/llama2");
        let bytes: Vec<u32> = "😀".bytes().map(|b| t.id(&format!("<0x{b:02X}>")).unwrap()).collect();
        let a = *t.encode("a").unwrap().last().unwrap();
        let mut s = Streamer::new(&t);
        assert_eq!(s.push(a).unwrap().as_deref(), Some(t.decode(&[a], true).unwrap().as_str()));
        for &b in &bytes {
            assert_eq!(s.push(b).unwrap(), None);
        }
        assert_eq!(s.push(t.id("</s>").unwrap()).unwrap(), None, "what is not shown ends no run");
        assert!(s.push(a).unwrap().unwrap().starts_with('😀'));
        // Cut in the middle, the decoder gives up on every byte of it.
        assert_eq!(check(&t, &bytes[..3]), Ok(vec![]));
        assert_eq!(stream(&t, &bytes[..3]).1, "\u{FFFD}\u{FFFD}\u{FFFD}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

        /// Any tokens in any order: special ones, halves of characters, ids beyond the vocabulary.
        #[test]
        fn pieces_are_the_text_whatever_the_tokens(
            folder in 0..FOLDERS.len(),
            picks in prop::collection::vec((0u32..1000, any::<bool>()), 0..60),
        ) {
            thread_local! {
                static LOADED: Vec<Tokenizer> = FOLDERS.iter().map(|f| tokenizer(f)).collect();
            }
            LOADED.with(|all| {
                let t = &all[folder];
                let n = t.vocab_size() as u32;
                // Half of them from the front, where bytes are.
                let ids: Vec<u32> = picks.iter().map(|&(x, low)| if low { x % 260 } else { x * 7919 % (n + 3) }).collect();
                prop_assert_eq!(check(t, &ids).map(|_| ()), Ok(()), "{}", FOLDERS[folder]);
                Ok(())
            })?;
        }

        #[test]
        fn how_a_text_is_cut_makes_no_difference(text in "[abc。]{0,14}", cuts in prop::collection::vec(1usize..4, 14)) {
            let stops = || StopStrings::new(["abc", "b", "ca。a", "cc"].map(String::from).to_vec()).unwrap();
            let run = |pieces: &[String]| {
                let (mut s, mut out) = (stops(), String::new());
                for p in pieces {
                    let shown = s.push(p);
                    out += &shown.text;
                    if shown.stopped {
                        return (out, true);
                    }
                }
                (out + &s.finish(), false)
            };
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let (mut pieces, mut at) = (Vec::new(), 0);
            for n in cuts {
                let end = (at + n).min(chars.len());
                pieces.push(chars[at..end].concat());
                at = end;
            }
            let one_by_one = run(&chars);
            prop_assert_eq!(&run(&pieces), &one_by_one);
            prop_assert_eq!(&run(std::slice::from_ref(&text)), &one_by_one);
            let any = ["abc", "b", "ca。a", "cc"].iter().any(|s| text.contains(s));
            prop_assert!(one_by_one.1 == any && text.starts_with(&one_by_one.0));
        }
    }

    #[test]
    fn stops_hold_back_no_more_than_they_must() {
        let mut s = StopStrings::new(vec!["\nUser:".into(), "停止".into()]).unwrap();
        let shown = |text: &str, stopped| Shown { text: text.into(), stopped };
        assert_eq!(s.push("Hello\n"), shown("Hello", false));
        assert_eq!(s.push("Us"), shown("", false));
        assert_eq!(s.push("ual\nUse"), shown("\nUsual", false));
        assert_eq!(s.push("r: me"), shown("", true));
        let mut s = StopStrings::new(vec!["停止".into()]).unwrap();
        assert_eq!(s.push("不停"), shown("不", false));
        assert_eq!(s.clone().finish(), "停");
        assert_eq!(s.push("止了"), shown("", true));
        assert_eq!(StopStrings::new(vec![]).unwrap().push("all"), shown("all", false));
        assert!(StopStrings::new(vec![String::new()]).unwrap_err().to_string().contains("`stop`"));
    }
}
