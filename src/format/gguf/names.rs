//! What llama.cpp calls the tensors of Hugging Face's checkpoints.

/// (Hugging Face's name without `.weight` or `.bias`, llama.cpp's), outside the blocks.
const WHOLE: [(&str, &str); 7] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_f", "output_norm"),
    ("transformer.lm_head", "output"),
];

/// The same inside `model.layers.N.` or `transformer.h.N.` and `blk.N.`.
const PARTS: [(&str, &str); 19] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    // gate and up of phi3 are one tensor
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("ln_1", "attn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("ln_2", "ffn_norm"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
];

/// `model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`; None for a tensor that GGUF has no name for. A LoRA's
/// A and B keep the name of their module: give the module's path with `.weight`.
pub fn gguf_name(hf: &str) -> Option<String> {
    let (module, kind) = hf.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    if let Some((_, name)) = WHOLE.iter().find(|(from, _)| *from == module) {
        return Some(format!("{name}.{kind}"));
    }
    let rest = module.strip_prefix("model.layers.").or_else(|| module.strip_prefix("transformer.h."))?;
    let (layer, part) = rest.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (_, name) = PARTS.iter().find(|(from, _)| *from == part)?;
    Some(format!("blk.{layer}.{name}.{kind}"))
}

/// The module of a `arch` model that llama.cpp's `blk.3.attn_q.weight` is the weight of: `model.layers.3.self_attn.q_proj`.
pub(super) fn hf_module(arch: &str, name: &str) -> Option<String> {
    let name = name.strip_suffix(".weight")?;
    let gpt2 = arch == "gpt2";
    let of_family = |hf: &str| match arch {
        "gpt2" => hf.starts_with("attn.") || hf.starts_with("mlp.c_"),
        "phi3" => hf.starts_with("self_attn.") || ["mlp.gate_up_proj", "mlp.down_proj"].contains(&hf),
        "llama" | "qwen2" | "qwen3" => {
            hf.starts_with("self_attn.") || ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"].contains(&hf)
        }
        _ => false,
    };
    if name == "output" {
        return Some("lm_head".into());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (hf, _) = PARTS.iter().find(|(hf, known)| *known == part && of_family(hf))?;
    Some(format!("{}.{layer}.{hf}", if gpt2 { "transformer.h" } else { "model.layers" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_llama_cpp_s() {
        let named = [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("lm_head.weight", "output.weight"),
            ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
            ("model.layers.0.mlp.gate_up_proj.weight", "blk.0.ffn_up.weight"),
            ("transformer.h.3.attn.c_attn.weight", "blk.3.attn_qkv.weight"),
        ];
        for (hf, gguf) in named {
            assert_eq!(gguf_name(hf).as_deref(), Some(gguf), "{hf}");
        }
        for (arch, module, name) in [
            ("llama", "model.layers.12.self_attn.q_proj", "blk.12.attn_q.weight"),
            ("qwen3", "model.layers.0.mlp.up_proj", "blk.0.ffn_up.weight"),
            ("phi3", "model.layers.0.mlp.gate_up_proj", "blk.0.ffn_up.weight"),
            ("gpt2", "transformer.h.3.attn.c_attn", "blk.3.attn_qkv.weight"),
            ("gpt2", "transformer.h.3.mlp.c_proj", "blk.3.ffn_down.weight"),
        ] {
            assert_eq!(hf_module(arch, name).as_deref(), Some(module), "{arch}");
            assert_eq!(gguf_name(&format!("{module}.weight")).as_deref(), Some(name), "{arch}");
        }
        assert_eq!(hf_module("gemma", "blk.0.attn_q.weight"), None);
        assert_eq!(hf_module("llama", "blk.0.attn_q.bias"), None);
        for odd in ["lm_head", "model.layers.x.mlp.up_proj.weight", "model.layers.1.mlp.other.weight", "a.b"] {
            assert_eq!(gguf_name(odd), None, "{odd}");
        }
    }
}
