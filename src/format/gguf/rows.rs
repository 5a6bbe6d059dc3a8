//! The order of q's and k's rows in the files of `llama` models: llama.cpp's rotation turns neighbouring rows, ours, as
//! Hugging Face's, rows that lie half a head apart.

/// The heads of the module or tensor at `path` (Hugging Face's) if its rows are in another order in such files: those of q or k.
pub fn turned_heads(path: &str, heads: usize, kv_heads: usize) -> Option<usize> {
    let module = path.strip_suffix(".weight").or_else(|| path.strip_suffix(".bias")).unwrap_or(path);
    match module.rsplit('.').next() {
        Some("q_proj") => Some(heads),
        Some("k_proj") => Some(kv_heads),
        _ => None,
    }
}

/// Where such a file has the model's row `row` of `rows`: row t * d/2 + j of a head (t 0 or 1, j below d/2) stands at 2 j + t.
pub fn file_row(row: usize, rows: usize, heads: usize) -> usize {
    let d = rows / heads.max(1);
    let (head, at) = (row / d, row % d);
    let (t, j) = (at / (d / 2), at % (d / 2));
    head * d + 2 * j + t
}

/// The other way: which of the model's rows stands at row `row` of the file.
pub fn model_row(row: usize, rows: usize, heads: usize) -> usize {
    let d = rows / heads.max(1);
    let (head, at) = (row / d, row % d);
    head * d + (at % 2) * (d / 2) + at / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The converter's own words: W.reshape(heads, 2, d / 2, ..).swapaxes(1, 2).
    #[test]
    fn rows_are_those_before_the_converter() {
        let (rows, heads) = (24, 3);
        let d = rows / heads;
        let mut file = Vec::new();
        for head in 0..heads {
            for j in 0..d / 2 {
                file.extend((0..2).map(|t| head * d + t * d / 2 + j));
            }
        }
        let ours: Vec<usize> = (0..rows).map(|row| file[file_row(row, rows, heads)]).collect();
        assert_eq!(ours, (0..rows).collect::<Vec<_>>());
        assert_eq!((0..rows).map(|row| model_row(row, rows, heads)).collect::<Vec<_>>(), file);
    }
}
