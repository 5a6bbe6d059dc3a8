//! One malformation each, and the words that name it.

use super::*;

/// Bytes of a file, built by hand so that it can lie.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, pairs: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(version).u64(tensors).u64(pairs)
    }

    fn put(mut self, bytes: &[u8]) -> Raw {
        self.0.extend(bytes);
        self
    }

    fn u32(self, x: u32) -> Raw {
        self.put(&x.to_le_bytes())
    }

    fn u64(self, x: u64) -> Raw {
        self.put(&x.to_le_bytes())
    }

    fn text(self, s: &str) -> Raw {
        self.u64(s.len() as u64).put(s.as_bytes())
    }

    /// The description of a tensor.
    fn info(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Raw {
        let raw = self.text(name).u32(dims.len() as u32);
        dims.iter().fold(raw, |raw, d| raw.u64(*d)).u32(ty).u64(offset)
    }

    /// `n` bytes of data, aligned to 32.
    fn data(mut self, n: usize) -> Raw {
        let to = self.0.len().next_multiple_of(32) + n;
        self.0.resize(to, 1);
        self
    }

    fn parse(&self) -> Result<Vec<TensorInfo>, String> {
        parse(&self.0, &mut Metadata::new())
    }

    fn why(&self) -> String {
        let why = self.parse().unwrap_err();
        assert!(!why.contains('\n'), "{why}");
        why
    }
}

fn one_pair(key: &str, kind: u32) -> Raw {
    Raw::new(3, 0, 1).text(key).u32(kind)
}

fn says(raw: &Raw, words: &str) {
    assert!(raw.why().contains(words), "`{}` lacks `{words}`", raw.why());
}

#[test]
fn both_versions_are_read() {
    for version in [2, 3] {
        let raw = Raw::new(version, 2, 1).text("general.name").u32(8).text("é");
        let raw = raw.info("a", &[2, 3], 0, 0).info("b", &[32], 8, 32).data(32 + 34);
        let tensors = raw.parse().unwrap();
        assert_eq!((tensors[0].dims.clone(), tensors[0].bytes.len()), (vec![2, 3], 24));
        assert_eq!(tensors[1].bytes, raw.0.len() - 34..raw.0.len());
        assert_eq!(tensors[1].bytes.start % 32, 0);
    }
    assert_eq!(Raw::new(3, 0, 0).parse().unwrap(), []);
}

#[test]
fn what_is_no_such_file() {
    says(&Raw(vec![]), "is truncated: the mark `GGUF` takes 4 bytes at byte 0, 0 are left");
    says(&Raw(b"PK\x03\x04....".to_vec()), "is no GGUF file: it begins with `PK\\x03\\x04`");
    says(&Raw(b"GGUF".to_vec()), "the version takes 4 bytes");
    says(&Raw::new(1, 0, 0), "is GGUF version 1; versions 2 and 3 can be read");
    says(&Raw::new(4, 0, 0), "is GGUF version 4");
    says(&Raw::new(3u32.swap_bytes(), 0, 0), "is a big-endian GGUF file");
    says(&Raw(Raw::new(3, 0, 0).0[..20].to_vec()), "the count of metadata takes 8 bytes at byte 16, 4 are left");
}

#[test]
fn counts_that_lie() {
    for n in [1, 1 << 40, u64::MAX / 13, u64::MAX / 13 + 1, u64::MAX] {
        says(&Raw::new(3, 0, n), &format!("metadata takes {n} times 13 bytes at byte 24, 0 are left"));
        says(&Raw::new(3, n, 0), &format!("tensor descriptions takes {n} times 32 bytes"));
        // A string and an array past the end.
        let raw = Raw::new(3, 0, 1).u64(n).put(&[0; 5]);
        if n > 5 {
            says(&raw, &format!("the key of metadata 0 takes {n} times 1 bytes at byte 32, 5 are left"));
        }
        says(&one_pair("k", 9).u32(6).u64(n), &format!("metadata `k` takes {n} times 4 bytes"));
        says(&one_pair("k", 9).u32(8).u64(n), &format!("metadata `k` takes {n} times 8 bytes"));
        says(&one_pair("k", 8).u64(n), &format!("metadata `k` takes {n} times 1 bytes"));
    }
    says(&one_pair("k", 9).u32(8).u64(2).text("ab").u64(9), "metadata `k`[1] takes 9 times 1 bytes");
}

#[test]
fn metadata_that_cannot_be() {
    says(&one_pair("k", 13).u64(0), "metadata `k` has the unknown type 13");
    says(&one_pair("k", 9).u32(9).u64(1), "metadata `k` is an array of arrays");
    says(&one_pair("k", 9).u32(77).u64(0), "metadata `k` is an array of the unknown type 77");
    says(&one_pair("k", 7).put(&[2]), "metadata `k` has 2 where a bool is 0 or 1");
    says(&one_pair("k", 9).u32(7).u64(2).put(&[1, 9]), "metadata `k` has 9 where");
    says(&one_pair("k", 8).u64(2).put(&[0xc3, 0x28]), "metadata `k` at byte 45 is not UTF-8");
    says(&Raw::new(3, 0, 1).u64(1).put(&[0xff, 0, 0, 0, 0, 0]), "the key of metadata 0 at byte 32 is not UTF-8");
    says(&one_pair("k", 10).put(&[0; 7]), "metadata `k` takes 8 bytes at byte 37, 7 are left");
    let twice = Raw::new(3, 0, 2).text("k\n").u32(0).put(&[1]).text("k\n").u32(0).put(&[1]);
    says(&twice, "metadata `k\\n` is there twice");
    for (n, at_most) in [(0, "a power of two"), (48, "a power of two"), (1 << 31, "1048576 at the most")] {
        says(&one_pair("general.alignment", 4).u32(n), at_most);
    }
    says(&one_pair("general.alignment", 6).u32(0), "`general.alignment` is no integer");
}

#[test]
fn tensors_that_cannot_be() {
    let one = |dims: &[u64], ty, offset| Raw::new(3, 1, 0).info("w", dims, ty, offset).data(288);
    assert!(one(&[256, 2], 12, 0).parse().is_ok());
    says(&one(&[], 0, 0), "tensor `w` has 0 dimensions, expected 1 to 4");
    says(&one(&[1; 5], 0, 0), "tensor `w` has 5 dimensions");
    says(&one(&[4, 0], 0, 0), "tensor `w` has a dimension of 0 in [4, 0]");
    says(&one(&[255, 2], 12, 0), "tensor `w` has rows of 255, which is no multiple of the 256 in a Q4_K block");
    says(&one(&[256, 2], 39, 0), "tensor `w` is of type MXFP4 (number 39)");
    says(&one(&[256, 2], 4, 0), "tensor `w` is of unknown type number 4");
    says(&one(&[1 << 32, 1 << 32], 0, 0), "tensor `w` of F32 [4294967296, 4294967296] overflows");
    says(&one(&[u64::MAX], 0, 0), "overflows");
    says(&one(&[256, 2], 12, 8), "tensor `w` has the offset 8, no multiple of 32");
    says(&one(&[256, 3], 12, 0), "tensor `w` takes 432 bytes from byte 96 + 0, the file has 384");
    says(&one(&[256, 2], 12, 32), "tensor `w` takes 288 bytes from byte 96 + 32");
    for offset in [u64::MAX - 31, 1 << 63, u64::MAX - 95] {
        says(&one(&[256, 2], 12, offset), "is truncated or lies: tensor `w` takes 288 bytes");
    }
    let two = |names: [&str; 2], second| {
        Raw::new(3, 2, 0).info(names[0], &[8], 0, 32).info(names[1], &[8], 0, second).data(96)
    };
    assert!(two(["a", "b"], 0).parse().is_ok(), "the order in the file is free");
    says(&two(["a", "a"], 0), "tensor `a` is there twice");
    says(&two(["a", "b"], 32), "overlaps");
    let over = Raw::new(3, 2, 0).info("a", &[9], 0, 0).info("b", &[8], 0, 32).data(96);
    says(&over, "tensor `b` overlaps `a`");
    let cut = Raw::new(3, 1, 0).text("w").u32(2).u64(1).put(&[0; 12]);
    says(&cut, "the description of tensor `w` takes");
    says(&Raw::new(3, 1, 0).u64(1).put(&[0xff; 32]), "the name of tensor 0 at byte 32 is not UTF-8");
    says(&Raw::new(3, 1, 0).info("w", &[1], 0, 0), "is truncated or lies: tensor `w` takes 4 bytes");
}

#[test]
fn alignment_of_the_file_is_kept() {
    let raw = Raw::new(3, 2, 1).text("general.alignment").u32(4).u32(8);
    let mut raw = raw.info("a", &[1], 0, 0).info("b", &[1], 0, 8);
    raw.0.resize(raw.0.len().next_multiple_of(8) + 12, 0);
    assert_eq!(raw.parse().unwrap()[1].bytes.end, raw.0.len());
}
