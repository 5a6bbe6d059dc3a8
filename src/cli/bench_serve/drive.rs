//! When requests are sent, and by whom.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::target::{Outcome, Target};
use crate::ops::philox::{Stream, uniform};

/// Time between two probes.
const PROBE: Duration = Duration::from_millis(50);

/// When each of `n` requests is due: at a rate, the pauses between them exponential, which makes it a Poisson process;
/// without one, at once. The same seed gives the same times.
pub(super) fn arrivals(n: usize, rate: f64, seed: u64) -> Vec<Duration> {
    if rate <= 0.0 {
        return vec![Duration::ZERO; n];
    }
    let stream = Stream { seed, step: 0, module: ARRIVALS };
    let mut at = 0.0;
    let next = |i: usize| {
        at -= f64::ln(1.0 - f64::from(uniform(stream, i as u64))) / rate;
        Duration::from_secs_f64(at)
    };
    (0..n).map(next).collect()
}

/// The stream of random numbers that arrivals are drawn from; that of words is the next.
pub(super) const ARRIVALS: u32 = 1;
pub(super) const WORDS: u32 = 2;

/// What a run gave: the requests in their order, and the probes.
pub(super) type Seen = (Vec<Outcome>, Vec<Option<Duration>>);

/// Sends request `i` of `bodies` to `path` when `due[i]` says so, if one of `clients` is free by then, and as soon as
/// one is otherwise. `probe` is asked meanwhile.
pub(super) fn run(
    target: &Target,
    path: &str,
    bodies: &[Value],
    due: &[Duration],
    clients: usize,
    probe: Option<&str>,
) -> Seen {
    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Outcome>> = bodies.iter().map(|_| Mutex::default()).collect();
    let client = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let (Some(body), Some(&due)) = (bodies.get(i), due.get(i)) else { return };
            thread::sleep(due.saturating_sub(start.elapsed()));
            let outcome = target.ask(path, body, start, if due.is_zero() { start.elapsed() } else { due });
            *outcomes[i].lock().unwrap_or_else(|e| e.into_inner()) = outcome;
        }
    };
    let (over, wait) = mpsc::channel::<()>();
    let probes = thread::scope(|scope| {
        let prober = probe.map(|path| {
            scope.spawn(move || {
                let mut probes = Vec::new();
                while wait.recv_timeout(PROBE) == Err(RecvTimeoutError::Timeout) {
                    probes.push(target.probe(path));
                }
                probes
            })
        });
        let clients: Vec<_> = (0..clients.min(bodies.len())).map(|_| scope.spawn(client)).collect();
        clients.into_iter().for_each(|client| _ = client.join());
        drop(over);
        prober.and_then(|p| p.join().ok()).unwrap_or_default()
    });
    (outcomes.into_iter().map(|o| o.into_inner().unwrap_or_else(|e| e.into_inner())).collect(), probes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_a_poisson_process() {
        let (n, rate) = (20_000, 50.0);
        let times = arrivals(n, rate, 7);
        assert_eq!(times, arrivals(n, rate, 7));
        assert_ne!(times, arrivals(n, rate, 8));
        let pauses: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
        let mean = pauses.iter().sum::<f64>() / pauses.len() as f64;
        let deviation = (pauses.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / pauses.len() as f64).sqrt();
        // An exponential distribution deviates by its mean; that of a mean of 20,000 is 0.7 % of it.
        assert!((mean * rate - 1.0).abs() < 0.03, "{mean}");
        assert!((deviation / mean - 1.0).abs() < 0.05, "{deviation}");
        assert_eq!(arrivals(3, 0.0, 1), [Duration::ZERO; 3]);
    }
}
