//! Every random order a run follows, bit for bit that of the libraries under LLaMA-Factory: of the training rows in an
//! epoch, of `num_samples`, of the `val_size` split, of interleaved data sets, of a stream's shuffle buffer.

mod mix;
mod numpy;
mod shuffle;

pub use mix::{Mixer, Pick, interleave};
pub use numpy::{Generator, LegacyRandom};
pub use shuffle::{BufferShuffle, stream_generator};

use rand_mt::Mt;

use crate::error::{Error, Result};

/// Order of `n` training rows in `epoch` (from 0): accelerate seeds torch's generator with `seed + epoch`, and
/// `torch.randperm` swaps i with i + random32 % (n - i). `seed` is `data_seed` where given. Only the low 32 bits of the
/// sum count. (torch draws 64 bits from 2^32 / 20 rows on; so many do not come here.)
pub fn epoch_order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut mt = Mt::new(seed.wrapping_add(epoch) as u32);
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..n.saturating_sub(1) {
        order.swap(i, i + mt.next_u32() as usize % (n - i));
    }
    order
}

/// The rows that `num_samples` picks from `rows`: the beginning of a permutation, and where more are asked for than
/// there are, all of them and then draws with replacement. `rng` is the process's, seeded once per run and shared by
/// all data sets in the order they are loaded.
pub fn sample(rng: &mut LegacyRandom, rows: usize, num_samples: usize) -> Vec<usize> {
    let mut picked = rng.permutation(rows);
    picked.truncate(num_samples);
    let more = num_samples - picked.len();
    picked.extend(rng.choice(rows, more));
    picked
}

/// Splits `rows` for evaluation as `datasets.train_test_split(test_size, seed=seed)` does: rows of training and of
/// evaluation, each in its order. `val_size` above 1 is a count (its fraction is dropped), else a share rounded up.
///
/// # Errors
/// [`Error::Config`] if nothing would be left to train on, or if `val_size` is neither.
pub fn split(rows: usize, val_size: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    let held = if val_size > 1.0 {
        val_size.trunc()
    } else if val_size > 0.0 && val_size < 1.0 {
        (val_size * rows as f64).ceil()
    } else {
        return Err(Error::config("val_size", format!("must be a share in (0, 1) or a count above 1, got {val_size}")));
    };
    if !(held < rows as f64) {
        return Err(Error::config(
            "val_size",
            format!("takes {held} of {rows} rows and leaves none to train on; give less, or a share such as 0.1"),
        ));
    }
    let mut order = Generator::new(seed).permutation(rows);
    let train = order.split_off(held as usize);
    Ok((train, order))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MixStrategy;
    use serde_json::Value;

    fn golden() -> Value {
        serde_json::from_str(include_str!("../../../tests/golden/data/orders.json")).unwrap()
    }

    fn numbers(value: &Value) -> Vec<usize> {
        value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
    }

    /// The golden file keeps whole short orders, and of long ones both ends and a polynomial sum.
    fn assert_order(got: &[usize], want: &Value, what: &str) {
        assert_eq!(got.len() as u64, want["n"].as_u64().unwrap(), "{what}: length");
        if let Some(all) = want.get("all") {
            assert_eq!(got, numbers(all), "{what}");
            return;
        }
        assert_eq!(got[..16], numbers(&want["head"])[..], "{what}: head");
        assert_eq!(got[got.len() - 16..], numbers(&want["tail"])[..], "{what}: tail");
        let sum = got.iter().fold(0u64, |sum, &x| (sum * 31 + x as u64) % 1_000_000_007);
        assert_eq!(Some(sum), want["sum"].as_u64(), "{what}: sum");
    }

    fn cases<'a>(golden: &'a Value, name: &str) -> &'a Vec<Value> {
        let cases = golden[name].as_array().unwrap();
        assert!(cases.len() > 2, "{name}: too few cases");
        cases
    }

    #[test]
    fn epochs_follow_torch() {
        for case in cases(&golden(), "epoch") {
            let [n, seed, epoch] = ["rows", "seed", "epoch"].map(|key| case[key].as_u64().unwrap());
            assert_order(&epoch_order(n as usize, seed, epoch), &case["order"], &format!("n {n} seed {seed}+{epoch}"));
        }
    }

    #[test]
    fn num_samples_follows_numpy() {
        for case in cases(&golden(), "samples") {
            let mut rng = LegacyRandom::new(case["seed"].as_u64().unwrap() as u32);
            for draw in case["draws"].as_array().unwrap() {
                let [rows, num] = ["rows", "num_samples"].map(|key| draw[key].as_u64().unwrap() as usize);
                assert_order(&sample(&mut rng, rows, num), &draw["order"], &format!("{case}"));
            }
        }
    }

    #[test]
    fn val_size_follows_datasets() {
        for case in cases(&golden(), "split") {
            let [rows, seed] = ["rows", "seed"].map(|key| case[key].as_u64().unwrap());
            let val_size = case["val_size"].as_f64().unwrap();
            let (train, test) = split(rows as usize, val_size, seed).unwrap();
            assert_order(&train, &case["train"], &format!("train of {rows} rows, seed {seed}"));
            assert_order(&test, &case["test"], &format!("test of {rows} rows, seed {seed}"));
        }
    }

    #[test]
    fn a_split_that_leaves_nothing_is_refused() {
        for (rows, val_size) in [(10, 10.0), (10, 11.5), (1, 0.1), (0, 0.5), (0, 2.0), (5, 1.0), (5, f64::NAN), (5, -1.0)] {
            assert!(split(rows, val_size, 1).unwrap_err().to_string().contains("val_size"), "{rows} {val_size}");
        }
    }

    #[test]
    fn interleaving_follows_datasets() {
        for case in cases(&golden(), "interleave") {
            let lengths = numbers(&case["lengths"]);
            let probs: Option<Vec<f64>> =
                case["probs"].as_array().map(|p| p.iter().map(|p| p.as_f64().unwrap()).collect());
            let strategy = match case["strategy"].as_str().unwrap() {
                "first_exhausted" => MixStrategy::InterleaveUnder,
                "all_exhausted" => MixStrategy::InterleaveOver,
                _ => MixStrategy::InterleaveOnce,
            };
            let seed = case["seed"].as_u64().unwrap();
            let picks = interleave(&lengths, probs.as_deref(), seed, strategy).unwrap();
            let offset = |source: usize| lengths[..source].iter().sum::<usize>();
            let flat: Vec<usize> = picks.iter().map(|p| offset(p.source) + p.row).collect();
            assert_order(&flat, &case["order"], &format!("{case}"));
        }
    }

    #[test]
    fn streams_follow_datasets() {
        for case in cases(&golden(), "stream") {
            let lengths = numbers(&case["lengths"]);
            let probs: Option<Vec<f64>> =
                case["probs"].as_array().map(|p| p.iter().map(|p| p.as_f64().unwrap()).collect());
            let strategy = match case["strategy"].as_str().unwrap() {
                "first_exhausted" => MixStrategy::InterleaveUnder,
                "all_exhausted" => MixStrategy::InterleaveOver,
                _ => MixStrategy::Concat,
            };
            let [seed, epoch, buffer] = ["seed", "epoch", "buffer"].map(|key| case[key].as_u64().unwrap());
            let rng = stream_generator(seed, epoch);
            let mut mixer = Mixer::new(lengths.len(), probs.as_deref(), rng.clone(), strategy).unwrap();
            let mut at = vec![0; lengths.len()];
            let mixed = std::iter::from_fn(|| {
                let source = mixer.next()?;
                let row = at[source];
                at[source] += 1;
                if at[source] == lengths[source] {
                    mixer.exhausted(source);
                    at[source] = 0;
                }
                Some(Ok(lengths[..source].iter().sum::<usize>() + row))
            });
            let got: Vec<usize> = BufferShuffle::new(mixed, buffer as usize, rng).map(Result::unwrap).collect();
            assert_order(&got, &case["order"], &format!("{case}"));
        }
    }
}
