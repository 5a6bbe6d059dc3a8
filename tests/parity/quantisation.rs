//! NF4 against bitsandbytes, bit for bit.

use half::bf16;
use qlora_engine::format::{Checkpoint, Dtype, TensorView};
use qlora_engine::quant::dynamic8;
use qlora_engine::quant::nf4::{Absmax, CODE, Nf4, double_quantise};

use super::common::{Failures, golden, values, with_matrix};

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Compares the quantisation of `weight` with the golden tensors `<name>.…`. bitsandbytes' offset is given: its own sum
/// depends on its number of threads.
fn check(f: &mut Failures, file: &Checkpoint, weight: &TensorView, name: &str, double: bool) {
    let key = |part: &str| format!("{name}.{part}");
    let stored = |part: &str| file.get(&key(part)).unwrap().bytes.to_vec();
    let mut q = Nf4::from_view(weight, false, 2).unwrap();
    f.equal(&key("codes"), &q.packed, &stored("codes"));
    let Absmax::Plain(absmax) = q.absmax.clone() else { panic!("not asked to double") };
    if double {
        let offset = values(file, &key("offset"))[0];
        q.absmax = double_quantise(&absmax, offset);
        let Absmax::Double { codes, absmax2, .. } = &q.absmax else { panic!("asked to double") };
        f.equal(&key("absmax_codes"), codes, &stored("absmax_codes"));
        f.equal(&key("nested_absmax"), &bits(absmax2), &bits(&values(file, &key("nested_absmax"))));
        // Left to itself it takes the f64 mean, which changes no code of these.
        let own = Nf4::from_view(weight, true, 2).unwrap();
        let Absmax::Double { codes: own_codes, .. } = &own.absmax else { panic!("asked to double") };
        f.equal(&key("absmax_codes by our own mean"), own_codes, codes);
    } else {
        f.equal(&key("absmax"), &bits(&absmax), &bits(&values(file, &key("absmax"))));
    }
    if !file.contains(&key("dequantised")) {
        return;
    }
    let want = file.get(&key("dequantised")).unwrap();
    match want.dtype {
        Dtype::BF16 => {
            let mut got = vec![bf16::NAN; q.len()];
            q.dequantise_bf16(&mut got).unwrap();
            let got: Vec<u8> = got.iter().flat_map(|x| x.to_le_bytes()).collect();
            f.equal(&key("dequantised"), &got, &want.bytes.to_vec());
        }
        _ => {
            let mut got = vec![f32::NAN; q.len()];
            q.dequantise_f32(&mut got).unwrap();
            f.equal(&key("dequantised"), &bits(&got), &bits(&values(file, &key("dequantised"))));
        }
    }
}

#[test]
fn nf4_alone() {
    let mut f = Failures::default();
    let file = Checkpoint::open_file(&golden("models/nf4.safetensors")).unwrap();
    f.equal("code", &bits(&CODE), &bits(&values(&file, "code")));
    f.equal("nested_code", &bits(dynamic8::code()), &bits(&values(&file, "nested_code")));
    for name in ["ragged", "zeros"] {
        let weight = file.get(&format!("{name}.weight")).unwrap();
        for (kind, double) in [("double", true), ("single", false)] {
            check(&mut f, &file, &weight, &format!("{name}.{kind}"), double);
        }
    }
    f.report();
}

#[test]
fn nf4_of_the_models() {
    let mut f = Failures::default();
    for family in super::models::FAMILIES {
        let base = Checkpoint::open(golden(&format!("models/{family}"))).unwrap();
        for (case, double) in [("nf4", true), ("nf4_single", false)] {
            let path = golden(&format!("models/{family}/golden/{case}.safetensors"));
            if !path.exists() {
                assert!(!double, "every family has nf4");
                continue;
            }
            let file = Checkpoint::open_file(&path).unwrap();
            // Those whose quantisation is kept, in the golden file and in the checkpoint.
            let linears = match family {
                "gpt2" => ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"],
                "phi3" => ["model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.down_proj"],
                _ => ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"],
            };
            for linear in linears {
                let name = format!("{}.weight", linear.trim_start_matches("transformer."));
                with_matrix(&base, &name, |weight| check(&mut f, &file, weight, linear, double));
            }
        }
    }
    f.report();
}
