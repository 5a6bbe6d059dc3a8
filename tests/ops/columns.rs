use crate::*;
use qlora_engine::ops::columns;

#[test]
fn columns_apart_and_together() {
    for dtype in [DType::F64, DType::F32, DType::Bf16] {
        let x = rounded(&random(1, 3 * 7), dtype);
        let [a, b, c] = columns::split(&tensor(&x, 3, 7, dtype), [4, 1, 2]).unwrap();
        for (part, at) in [(&a, 0), (&b, 4), (&c, 5)] {
            let width = part.cols();
            let want: Vec<f64> = x.chunks(7).flat_map(|row| &row[at..at + width]).copied().collect();
            assert_eq!(part.to_f64(), want, "{dtype:?} from column {at}");
        }
        assert_eq!(columns::join([a, b, c]).unwrap().to_f64(), x);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = tensor(&[0.0; 6], 2, 3, DType::F64);
    assert!(columns::split(&x, [1, 1]).is_err() && columns::split(&x, [3, 0]).is_err());
    let other = |rows, dtype| tensor(&vec![0.0; rows], rows, 1, dtype);
    assert!(columns::join([other(2, DType::F64), other(3, DType::F64)]).is_err());
    assert!(columns::join([other(2, DType::F64), other(2, DType::F32)]).is_err());
}
