//! The element types of GGUF tensors that this program reads: their sizes, numbers and names.

use std::fmt;

/// What a tensor's elements are: plain floats, or blocks of quantised values (`quant::ggml` holds their layouts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Bf16,
}

/// Type, number in the file, name, elements of a block, bytes of a block.
type Row = (GgmlType, u32, &'static str, usize, usize);

/// Types that other programs write and this one does not read, so that they can be refused by name.
const UNREAD: [(u32, &str); 21] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (31, "Q4_0_4_4"),
];

impl GgmlType {
    /// Every type, in the order of the numbers in the file.
    pub const ALL: [GgmlType; 13] = {
        use GgmlType::*;
        [F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Bf16]
    };

    const fn row(self) -> Row {
        match self {
            GgmlType::F32 => (self, 0, "F32", 1, 4),
            GgmlType::F16 => (self, 1, "F16", 1, 2),
            GgmlType::Q4_0 => (self, 2, "Q4_0", 32, 2 + 16),
            GgmlType::Q4_1 => (self, 3, "Q4_1", 32, 4 + 16),
            GgmlType::Q5_0 => (self, 6, "Q5_0", 32, 2 + 4 + 16),
            GgmlType::Q5_1 => (self, 7, "Q5_1", 32, 4 + 4 + 16),
            GgmlType::Q8_0 => (self, 8, "Q8_0", 32, 2 + 32),
            GgmlType::Q2K => (self, 10, "Q2_K", 256, 16 + 64 + 4),
            GgmlType::Q3K => (self, 11, "Q3_K", 256, 32 + 64 + 12 + 2),
            GgmlType::Q4K => (self, 12, "Q4_K", 256, 4 + 12 + 128),
            GgmlType::Q5K => (self, 13, "Q5_K", 256, 4 + 12 + 32 + 128),
            GgmlType::Q6K => (self, 14, "Q6_K", 256, 128 + 64 + 16 + 2),
            GgmlType::Bf16 => (self, 30, "BF16", 1, 2),
        }
    }

    /// Its number in the file.
    pub const fn id(self) -> u32 {
        self.row().1
    }

    /// Its name as ggml writes it, for example `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements of a block; 1 for plain floats. A row is a whole number of blocks.
    pub const fn block(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.row().4
    }

    /// The type of that number.
    ///
    /// # Errors
    /// What the number stands for, where it is none of the types read here.
    pub fn from_id(id: u32) -> Result<GgmlType, String> {
        if let Some(ty) = Self::ALL.into_iter().find(|t| t.id() == id) {
            return Ok(ty);
        }
        let name = UNREAD.iter().find(|(n, _)| *n == id).map(|(_, name)| *name);
        let known = Self::ALL.map(GgmlType::name).join(", ");
        Err(match name {
            Some(name) => format!("type {name} (number {id}) is not supported; known are {known}"),
            None => format!("unknown type number {id}; known are {known}"),
        })
    }

    /// Bytes of a row of `cols` elements; `None` if `cols` is not a whole number of blocks, or on overflow.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block()).then_some(cols / self.block())?.checked_mul(self.block_bytes())
    }

    /// Bytes of a tensor whose contiguous dimension is `dims[0]`.
    ///
    /// # Errors
    /// Why there is no such tensor: not 1 to 4 dimensions, one of them 0, a row that is no whole number of blocks, or a
    /// size past what can be addressed.
    pub fn tensor_bytes(self, dims: &[usize]) -> Result<usize, String> {
        if dims.is_empty() || dims.len() > 4 {
            return Err(format!("has {} dimensions, expected 1 to 4", dims.len()));
        }
        if dims.contains(&0) {
            return Err(format!("has a dimension of 0 in {dims:?}"));
        }
        if !dims[0].is_multiple_of(self.block()) {
            let block = self.block();
            return Err(format!("has rows of {}, which is no multiple of the {block} in a {self} block", dims[0]));
        }
        let size = self.row_bytes(dims[0]).and_then(|row| dims[1..].iter().try_fold(row, |n, &d| n.checked_mul(d)));
        // Offsets into memory are at most isize::MAX, and elements are counted too.
        let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        size.filter(|&n| isize::try_from(n).is_ok() && elements.is_some())
            .ok_or_else(|| format!("of {self} {dims:?} overflows any memory"))
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_names_and_sizes_are_ggmls() {
        // gguf-py's constants.GGML_QUANT_SIZES, read there.
        let want = [
            (0, "F32", 1, 4),
            (1, "F16", 1, 2),
            (2, "Q4_0", 32, 18),
            (3, "Q4_1", 32, 20),
            (6, "Q5_0", 32, 22),
            (7, "Q5_1", 32, 24),
            (8, "Q8_0", 32, 34),
            (10, "Q2_K", 256, 84),
            (11, "Q3_K", 256, 110),
            (12, "Q4_K", 256, 144),
            (13, "Q5_K", 256, 176),
            (14, "Q6_K", 256, 210),
            (30, "BF16", 1, 2),
        ];
        let got = GgmlType::ALL.map(|t| (t.id(), t.name(), t.block(), t.block_bytes()));
        assert_eq!(got, want);
        for ty in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ty.id()), Ok(ty));
        }
        assert!(GgmlType::from_id(39).unwrap_err().contains("MXFP4"));
        assert!(GgmlType::from_id(4).unwrap_err().contains("number 4; known are F32"));
        assert!(UNREAD.iter().all(|(id, _)| GgmlType::ALL.iter().all(|t| t.id() != *id)));
    }

    #[test]
    fn sizes_are_checked() {
        let q = GgmlType::Q4K;
        assert_eq!(q.row_bytes(512), Some(288));
        assert_eq!(q.row_bytes(100), None);
        assert_eq!(GgmlType::F32.row_bytes(usize::MAX), None);
        assert_eq!(q.tensor_bytes(&[512, 3, 2]), Ok(288 * 6));
        let why = |dims: &[usize]| q.tensor_bytes(dims).unwrap_err();
        assert!(why(&[]).contains("has 0 dimensions"));
        assert!(why(&[256, 1, 1, 1, 1]).contains("has 5 dimensions"));
        assert!(why(&[256, 0]).contains("a dimension of 0"));
        assert!(why(&[255, 2]).contains("no multiple of the 256 in a Q4_K block"));
        assert!(why(&[256, usize::MAX]).contains("overflows"));
        assert!(why(&[1 << 40, 1 << 40]).contains("overflows"));
    }
}
