//! The supported families, a file each: how a config becomes a [`Spec`].

mod gpt2;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;

use super::spec::{Position, Spec};
use crate::config::RopeScalingChoice;
use crate::error::{Error, Result};
use crate::format::HfConfig;

/// A family: its `model_type`, and how its config is read.
type Family = (&'static str, fn(&HfConfig, Spec) -> Result<Spec>);

const FAMILIES: [Family; 6] = [
    ("llama", llama::spec),
    ("mistral", mistral::spec),
    ("qwen2", qwen2::spec),
    ("qwen3", qwen3::spec),
    ("phi3", phi3::spec),
    (gpt2::NAME, gpt2::spec),
];

/// The [`Spec`] of a config. `max_positions` is the longest sequence that will be run.
///
/// # Errors
/// [`Error::Config`] if the family is not supported, [`Error::File`] if its numbers do not fit together.
pub fn spec(c: &HfConfig, max_positions: usize) -> Result<Spec> {
    let Some((name, read)) = FAMILIES.iter().find(|(name, _)| *name == c.model_type) else {
        let names: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let why = format!("is of the family `{}`; supported are {}", c.model_type, names.join(", "));
        return Err(Error::config("model_name_or_path", why));
    };
    let position = match *name {
        gpt2::NAME => gpt2::position(c, max_positions)?,
        _ => Position::Rope(rope::rope(c, max_positions)?),
    };
    read(c, Spec::common(name, c, position))
}

/// Sets the rope scaling that a run asks for, as [`HfConfig::scale_rope`].
///
/// # Errors
/// [`Error::Config`] for a family that rotates nothing.
pub fn scale(c: &mut HfConfig, choice: RopeScalingChoice, longest: usize) -> Result<()> {
    if c.model_type == gpt2::NAME {
        let why =
            format!("scales rotations, of which gpt2 has none: it has learned {} positions", c.max_position_embeddings);
        return Err(Error::config("rope_scaling", why));
    }
    c.scale_rope(choice, longest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const GPT2: &str = r#"{"model_type":"gpt2","vocab_size":50257,"n_embd":768,"n_layer":12,"n_head":12}"#;

    fn config(text: &str) -> HfConfig {
        HfConfig::parse(Path::new("config.json"), text).unwrap()
    }

    /// GPT-2 small: 124,439,808 parameters, of which those of its matrices inside the blocks are known.
    #[test]
    fn sizes_of_gpt2() {
        let s = spec(&config(GPT2), 1024).unwrap();
        assert_eq!(s.linear_params(), 12 * 12 * 768 * 768);
        let vectors = 12 * (4 * 768 + 3 * 768 + 768 + 4 * 768 + 768) + 2 * 768;
        assert_eq!(s.linear_params() + vectors + (50257 + 1024) * 768, 124_439_808);
        assert_eq!(s.tensors(), 148, "as many as openai-community/gpt2 has, its masks left out");
    }

    #[test]
    fn lengths_have_ends() {
        let c = config(GPT2);
        let why = spec(&c, 1025).unwrap_err().to_string();
        assert!(why.contains("`cutoff_len`") && why.contains("1025") && why.contains("at most 1024"), "{why}");
        let why = scale(&mut c.clone(), RopeScalingChoice::Linear, 2048).unwrap_err().to_string();
        assert!(why.contains("`rope_scaling`") && why.contains("gpt2"), "{why}");
        let phi3 = config(
            r#"{"model_type":"phi3","vocab_size":32064,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,
            "num_attention_heads":8,"max_position_embeddings":131072,"original_max_position_embeddings":4096,
            "rope_scaling":{"type":"longrope","short_factor":[1,1.5,2,4],"long_factor":[1,2,3,4]}}"#,
        );
        let Position::Rope(rope) = spec(&phi3, 4096).unwrap().position else { panic!("phi3 rotates") };
        // 10000^(-i/4) over the short factors; sqrt(1 + ln 32 / ln 4096).
        let off = |(got, want): (&f32, f64)| (f64::from(*got) / want - 1.0).abs();
        let worst = rope.freq.iter().zip([1.0, 0.1 / 1.5, 0.01 / 2.0, 0.001 / 4.0]).map(off).fold(0.0, f64::max);
        // A power, a product and a quotient in f32.
        assert!(rope.freq.len() == 4 && worst <= 3.0 * 2f64.powi(-24), "{:?}", rope.freq);
        assert!((rope.factor - 1.190_238_071_423_81).abs() < 1e-12, "{}", rope.factor);
        let why = spec(&phi3, 4097).unwrap_err().to_string();
        assert!(why.contains("longrope") && why.contains("4096"), "{why}");
    }

    /// Names are short where they are clear: `c_proj` alone would mean the MLP's too.
    #[test]
    fn targets_are_named() {
        let names = spec(&config(GPT2), 64).unwrap().names;
        let (attention, mlp) = ("transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj");
        assert_eq!(names.targets(&[attention, "transformer.h.1.attn.c_proj"]), ["attn.c_proj"]);
        assert_eq!(names.targets(&["transformer.h.0.attn.c_attn", attention, mlp]), ["c_attn", "c_proj"]);
        assert_eq!(names.linear_names(), ["c_attn", "c_proj", "c_fc"]);
        assert_eq!(names.parts(), ["attn", "mlp", "ln_1", "ln_2"]);
    }
}
