//! The random generators of NumPy, to the bit: `RandomState` (MT19937) and `default_rng` (PCG64).
//!
//! Sources: Matsumoto & Nishimura 1998 (MT19937); O'Neill 2014, PCG XSL-RR 128/64; O'Neill 2015, `seed_seq`, which
//! NumPy's `SeedSequence` follows; Lemire 2019, arXiv:1805.10941 (bounded integers).

use rand_mt::Mt;

/// `numpy.random.RandomState(seed)`: the generator behind `np.random.permutation` after `np.random.seed`.
pub struct LegacyRandom {
    mt: Mt,
}

impl LegacyRandom {
    pub fn new(seed: u32) -> Self {
        Self { mt: Mt::new(seed) }
    }

    /// A number in [0, max], by masking and rejecting.
    fn interval(&mut self, max: u64) -> u64 {
        if max == 0 {
            return 0;
        }
        let mask = u64::MAX >> max.leading_zeros();
        loop {
            // Two draws, the first the high half, as soon as 32 bits cannot hold the bound.
            let draw = match u32::try_from(max) {
                Ok(_) => u64::from(self.mt.next_u32()),
                Err(_) => (u64::from(self.mt.next_u32()) << 32) | u64::from(self.mt.next_u32()),
            };
            if draw & mask <= max {
                return draw & mask;
            }
        }
    }

    /// `permutation(n)`: 0..n shuffled from the back.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.interval(i as u64) as usize);
        }
        order
    }

    /// `choice(n, count)`: `count` numbers of 0..n with replacement. `n` is at least 1.
    pub fn choice(&mut self, n: usize, count: usize) -> Vec<usize> {
        (0..count).map(|_| self.interval(n.saturating_sub(1) as u64) as usize).collect()
    }
}

/// `numpy.random.default_rng(seed)`.
#[derive(Clone)]
pub struct Generator {
    state: u128,
    increment: u128,
    /// The high half of the last 64-bit draw, not yet handed out as a 32-bit one.
    half: Option<u32>,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        let [a, b, c, d] = seed_words(seed);
        let wide = |high: u64, low: u64| (u128::from(high) << 64) | u128::from(low);
        let mut rng = Self { state: 0, increment: (wide(c, d) << 1) | 1, half: None };
        rng.step();
        rng.state = rng.state.wrapping_add(wide(a, b));
        rng.step();
        rng
    }

    fn step(&mut self) {
        const MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.step();
        ((self.state >> 64) as u64 ^ self.state as u64).rotate_right((self.state >> 122) as u32)
    }

    /// Low half of a 64-bit draw first, its high half at the next call.
    fn next_u32(&mut self) -> u32 {
        if let Some(high) = self.half.take() {
            return high;
        }
        let draw = self.next_u64();
        self.half = Some((draw >> 32) as u32);
        draw as u32
    }

    /// A number in [0, max]: the high part of draw * (max + 1), rejecting what would bias it.
    fn interval(&mut self, max: u64) -> u64 {
        let Ok(max32) = u32::try_from(max) else {
            let Some(range) = max.checked_add(1) else { return self.next_u64() };
            let threshold = (u64::MAX - max) % range;
            loop {
                let product = u128::from(self.next_u64()) * u128::from(range);
                if product as u64 >= threshold {
                    return (product >> 64) as u64;
                }
            }
        };
        let Some(range) = max32.checked_add(1) else { return u64::from(self.next_u32()) };
        if range == 1 {
            return 0; // nothing is drawn
        }
        let threshold = (u32::MAX - max32) % range;
        loop {
            let product = u64::from(self.next_u32()) * u64::from(range);
            if product as u32 >= threshold {
                return product >> 32;
            }
        }
    }

    /// `integers(0, n)`; `n` is at least 1.
    pub fn integer(&mut self, n: u64) -> u64 {
        self.interval(n.saturating_sub(1))
    }

    /// `random()`: uniform in [0, 1), a multiple of 2^-53.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let (max, mask) = (i as u64, u64::MAX >> (i as u64).leading_zeros());
            // Masked and rejected, as the legacy generator does it, not multiplied as in `interval`.
            let swap = loop {
                let draw = if u32::try_from(max).is_ok() { u64::from(self.next_u32()) } else { self.next_u64() };
                if draw & mask <= max {
                    break draw & mask;
                }
            };
            items.swap(i, swap as usize);
        }
    }

    /// `permutation(n)`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`: the seed's 32-bit words hashed into a pool of four, all mixed with
/// all, and hashed out again.
fn seed_words(seed: u64) -> [u64; 4] {
    /// Hashes one word after another, each with the next multiple of the constant.
    struct Hash {
        constant: u32,
        multiplier: u32,
    }
    impl Hash {
        fn word(&mut self, value: u32) -> u32 {
            let mixed = value ^ self.constant;
            self.constant = self.constant.wrapping_mul(self.multiplier);
            let mixed = mixed.wrapping_mul(self.constant);
            mixed ^ (mixed >> 16)
        }
    }
    fn mix(x: u32, y: u32) -> u32 {
        let mixed = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
        mixed ^ (mixed >> 16)
    }

    let mut hash = Hash { constant: 0x43b0_d7e5, multiplier: 0x931e_8875 };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(|word| hash.word(word));
    for from in 0..4 {
        for to in 0..4 {
            if from != to {
                pool[to] = mix(pool[to], hash.word(pool[from]));
            }
        }
    }
    let mut hash = Hash { constant: 0x8b51_f9dd, multiplier: 0x58f3_8ded };
    let mut words = [0u64; 4];
    for (i, word) in words.iter_mut().enumerate() {
        let low = hash.word(pool[2 * i % 4]);
        let high = hash.word(pool[(2 * i + 1) % 4]);
        *word = u64::from(low) | (u64::from(high) << 32);
    }
    words
}
