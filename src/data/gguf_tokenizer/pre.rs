//! How text is split into words before merging, by the names of `tokenizer.ggml.pre`.
//!
//! Each is a row of patterns, applied one after the other to the pieces that the earlier ones left: a match is a piece,
//! and so is what lies between two matches. The patterns are those of the models' own tokenizer.json files.

/// A way of splitting.
pub struct Pre {
    /// Its names; the first is written.
    pub names: &'static [&'static str],
    pub patterns: &'static [&'static str],
    /// A word that is a token as a whole is taken without looking at merges.
    pub ignore_merges: bool,
    /// bos is put before a text where the file does not say.
    pub add_bos: bool,
    /// Text is normalised to NFC first. llama.cpp does not; the models' own tokenizers do.
    pub nfc: bool,
}

/// GPT-2's pattern, which `ByteLevel` applies by itself.
pub const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// `Digits` of tokenizer.json, each alone and in runs.
pub const DIGIT: &str = r"\p{N}";
pub const DIGITS: &str = r"\p{N}+";
/// `Punctuation` of tokenizer.json, in runs: what Unicode calls punctuation, and ASCII's symbols.
pub const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const HAN: &str = "[一-龥ࠀ-一가-퟿]+";
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

const PLAIN: Pre = Pre { names: &[], patterns: &[], ignore_merges: false, add_bos: false, nfc: false };

/// All that are known. Where two split alike, the one that models of today are written with comes first.
pub const TABLE: [Pre; 19] = [
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Pre { names: &["smaug-bpe", "dbrx", "chatglm-bpe", "glm4"], patterns: &[LLAMA3], ..PLAIN },
    Pre { names: &["qwen2"], patterns: &[QWEN2], nfc: true, ..PLAIN },
    Pre {
        names: &["deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "grok-2", "solar-open"],
        patterns: &[QWEN2],
        ..PLAIN
    },
    Pre { names: &["qwen35"], patterns: &[QWEN35], nfc: true, ..PLAIN },
    Pre {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe", "exaone4", "gigachat", "mellum"],
        patterns: &[GPT2],
        ..PLAIN
    },
    Pre {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"],
        patterns: &[DIGIT, GPT2],
        ..PLAIN
    },
    Pre { names: &["falcon"], patterns: &[PUNCTUATION, GPT2, "[0-9][0-9][0-9]"], ..PLAIN },
    Pre { names: &["default"], patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, DIGITS, "[0-9][0-9][0-9]"], ..PLAIN },
    Pre {
        names: &["deepseek-llm"],
        patterns: &[r"[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", HAN, DIGITS],
        ..PLAIN
    },
    Pre {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN, DIGIT],
        ..PLAIN
    },
    Pre { names: &["deepseek-v3", "hunyuan-dense"], patterns: &DEEPSEEK_V3, ..PLAIN },
    Pre { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN },
    Pre { names: &["gpt-4o", "llama4"], patterns: &[GPT4O], ..PLAIN },
    Pre { names: &["bloom", "poro-chat", "gpt3-finnish"], patterns: &[BLOOM], ..PLAIN },
    Pre { names: &["viking"], patterns: &[BLOOM, DIGIT], ..PLAIN },
    Pre {
        names: &["seed-coder"],
        patterns: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    Pre {
        names: &["bailingmoe"],
        patterns: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        ..PLAIN
    },
    Pre { names: &["superbpe"], patterns: &[DIGITS, r"(?=(\d{3})+(?!\d))"], ..PLAIN },
];

/// The way of splitting called `name`.
pub fn find(name: &str) -> Option<&'static Pre> {
    TABLE.iter().find(|p| p.names.contains(&name))
}

/// All names, for messages.
pub fn names() -> String {
    TABLE.iter().flat_map(|p| p.names).copied().collect::<Vec<_>>().join(", ")
}

/// The name of the way that splits by `patterns`.
pub fn recognise(patterns: &[String], ignore_merges: bool, nfc: bool) -> Option<&'static str> {
    let same = |p: &&Pre| p.patterns.iter().map(|p| plain(p)).eq(patterns.iter().map(|p| plain(p)));
    // One that splits alike but differs in the rest is better than none: what differs is tried out by the writer.
    let rank = |p: &&Pre| (p.ignore_merges == ignore_merges, p.nfc == nfc);
    let mut best: Option<&Pre> = None;
    for p in TABLE.iter().filter(same) {
        if best.is_none_or(|b| rank(&p) > rank(&b)) {
            best = Some(p);
        }
    }
    best?.names.first().copied()
}

/// Line breaks are spelled out in some files and stand as they are in others; and some write cases out by hand.
fn plain(pattern: &str) -> String {
    let by_hand = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
    pattern.replace('\r', r"\r").replace('\n', r"\n").replace(by_hand, "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
}
