//! Files written by others, and files of ours read by others' rules.

use std::path::Path;

use half::bf16;
use qlora_engine::format::{Checkpoint, Dtype};
use qlora_engine::quant::nf4::double_quantise;
use qlora_engine::quant::{Absmax, Nf4, dynamic8};

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Every code, both levels of absmax and every dequantised value of bitsandbytes' CPU path, to the bit.
#[test]
fn nf4_is_bitsandbytes_to_the_bit() {
    let golden = Checkpoint::open(Path::new("tests/golden/nf4/nf4.safetensors")).unwrap();
    let f32s = |name: &str| {
        let view = golden.get(name).unwrap();
        let mut out = vec![f32::NAN; view.len()];
        view.read_f32(&mut out).unwrap();
        out
    };
    assert_eq!(bits(&f32s("code2")), bits(dynamic8::code()));
    let mut cases = 0;
    for name in golden.names().filter_map(|n| n.strip_suffix(".w")) {
        cases += 1;
        let key = |part: &str| format!("{name}.{part}");
        let w = golden.get(&key("w")).unwrap();
        let plain = Nf4::from_view(&w, false, 2).unwrap();
        assert_eq!(plain.packed, golden.get(&key("packed")).unwrap().bytes, "{name}: codes");
        let Absmax::Plain(absmax) = &plain.absmax else { panic!("not plain") };
        assert_eq!(bits(absmax), bits(&f32s(&key("absmax"))), "{name}: absmax");

        // Our own offset is the f64 mean; theirs an f32 sum of `blocks` numbers, each step off by at most 2^-24 of it.
        let own = Nf4::from_view(&w, true, 2).unwrap();
        let Absmax::Double { offset, .. } = own.absmax else { panic!("not double") };
        let theirs = f32s(&key("offset"))[0];
        let limit = theirs * absmax.len() as f32 * 6e-8;
        assert!((offset - theirs).abs() <= limit, "{name}: offset {offset} {theirs}");

        let double = Nf4 { absmax: double_quantise(absmax, theirs), ..plain.clone() };
        let Absmax::Double { codes, absmax2, .. } = &double.absmax else { panic!("not double") };
        assert_eq!(*codes, golden.get(&key("codes")).unwrap().bytes, "{name}: second-level codes");
        assert_eq!(bits(absmax2), bits(&f32s(&key("absmax2"))), "{name}: second-level absmax");

        for (matrix, suffix) in [(&plain, ""), (&double, "_double")] {
            if name == "bf16.wide" {
                continue; // stored without its dequantised values
            }
            let mut out = vec![f32::NAN; matrix.len()];
            matrix.dequantise_f32(&mut out).unwrap();
            assert_eq!(bits(&out), bits(&f32s(&key(&format!("f32{suffix}")))), "{name}: f32{suffix}");
            let want = golden.get(&key(&format!("bf16{suffix}"))).unwrap();
            assert_eq!(want.dtype, Dtype::BF16);
            let mut out = vec![bf16::NAN; matrix.len()];
            matrix.dequantise_bf16(&mut out).unwrap();
            let got: Vec<u8> = out.iter().flat_map(|x| x.to_le_bytes()).collect();
            assert_eq!(got, want.bytes, "{name}: bf16{suffix}");
        }
    }
    assert_eq!(cases, 12);
}
