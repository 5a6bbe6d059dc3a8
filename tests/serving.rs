//! Continuous batching and the thread that owns the model: what runs beside a request changes none of its tokens, beginnings
//! are shared, and nothing is left behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use qlora_engine::config::{self, Config, Format};
use qlora_engine::device::Device;
use qlora_engine::infer::{Answer, Control, Engine, Event, Finish, Request, Room, Sampling, generate};
use qlora_engine::model::{self, Model, PAGE, PIECE};
use qlora_engine::serve::worker::{Limits, Refused, Ticket, Update, Worker};
use qlora_engine::tensor::DType;
use qlora_engine::train::{Target, plan};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/qwen3").join(path)
}

fn load(dtype: DType, positions: usize) -> Model {
    let folder = golden("");
    let text = format!("model_name_or_path: {}\ndataset: x\noutput_dir: x\ndo_train: true", folder.display());
    let c: Config = config::from_str(&text, Format::Yaml, &[]).unwrap();
    let options = plan::use_options(&c, &[], positions, &Target::Cpu { threads: 2 });
    let options = model::Options { dtype, ..options };
    model::load(&folder, &options, &Device::cpu(2), &|_, _| {}).unwrap()
}

/// With both adapters, 0 and 1.
fn with_adapters(dtype: DType, positions: usize) -> Model {
    let mut model = load(dtype, positions);
    assert_eq!(model.attach(&golden("adapter")).unwrap(), 0);
    assert_eq!(model.attach(&golden("adapter_rslora")).unwrap(), 1);
    model
}

fn ids(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % 256) as u32).collect()
}

fn request(prompt: Vec<u32>, max_new_tokens: usize, adapter: Option<usize>, seed: u64) -> Request {
    let sampling = match seed {
        0 => Sampling::greedy(),
        seed => Sampling { do_sample: true, temperature: 1.5, top_k: 40, seed, ..Sampling::greedy() },
    };
    Request { prompt, max_new_tokens, stops: vec![3], sampling, adapter, logprobs: None }
}

fn alone(model: &Model, request: &Request) -> Answer {
    generate(model, std::slice::from_ref(request), 1, &mut |_, _| Control::Continue).unwrap().remove(0)
}

/// Requests with long and short prompts, common beginnings and three adapters.
fn mixed(n: usize) -> Vec<Request> {
    let system = ids(2 * PAGE + 10, 99);
    (0..n)
        .map(|i| {
            let own = ids(5 + 37 * i % 90, i);
            let prompt = match i % 4 {
                0 => own,
                1 | 2 => [system.clone(), own].concat(),
                _ => [ids(2 * PIECE, 7), own].concat(),
            };
            request(prompt, 4 + 5 * i % 23, [None, Some(0), Some(1)][i % 3], i as u64 % 3)
        })
        .collect()
}

#[test]
fn what_joins_and_leaves_changes_no_token() {
    for dtype in [DType::F32, DType::Bf16] {
        let model = with_adapters(dtype, 3 * PIECE);
        let requests = mixed(14);
        let want: Vec<Answer> = requests.iter().map(|r| alone(&model, r)).collect();
        assert!(want.iter().any(|a| a.ids.len() > 10), "the answers are too short to tell");
        // A cache that holds few of them at once: some wait, and what was kept is given up.
        let mut engine = Engine::new(&model, Room { batch: 6, pages: 30, longest: 3 * PIECE }).unwrap();
        let mut got: Vec<Answer> = want.iter().map(|_| Answer { ids: vec![], finish: Finish::Stopped }).collect();
        let (mut cached, mut most) = (vec![0; want.len()], 0);
        let mut coming = requests.iter();
        while !engine.is_idle() || coming.len() > 0 {
            for r in coming.by_ref().take(2) {
                engine.add(&model, r.clone()).unwrap();
            }
            engine
                .step(&model, &mut |id, event| {
                    match event {
                        Event::Token(token) => got[id as usize].ids.push(token.id),
                        Event::Begun { cached: n } => cached[id as usize] = n,
                        Event::End(finish) => got[id as usize].finish = finish,
                        Event::Failed(e) => panic!("{id}: {e}"),
                    }
                    Control::Continue
                })
                .unwrap();
            most = most.max(engine.running());
            assert!(engine.cache().used() + engine.cache().kept() <= 30);
        }
        assert_eq!(got, want, "{dtype:?}");
        assert!(most > 2, "{most} at once");
        assert!(cached.iter().any(|&n| n >= 2 * PAGE), "no beginning was shared: {cached:?}");
        assert_eq!(engine.cache().used(), 0);
        let counts = engine.counts();
        let prompts: usize = requests.iter().map(|r| r.prompt.len()).sum();
        assert_eq!(counts.prompt_tokens + counts.cached_tokens, prompts as u64);
        assert_eq!(counts.new_tokens, want.iter().map(|a| a.ids.len() as u64).sum::<u64>());
    }
}

/// The same prompt with another adapter, or after a page that differs, is read anew.
#[test]
fn only_what_is_the_same_is_shared() {
    let model = with_adapters(DType::F32, PIECE);
    let mut engine = Engine::new(&model, Room { batch: 1, pages: 20, longest: PIECE }).unwrap();
    let prompt = ids(2 * PAGE, 5);
    let other = [ids(1, 9), prompt[1..].to_vec()].concat();
    for (prompt, adapter, want) in [
        (&prompt, None, 0),
        // The last token is read again, and with it its page.
        (&prompt, None, PAGE),
        (&prompt, Some(0), 0),
        (&prompt, Some(1), 0),
        (&prompt, Some(0), PAGE),
        (&other, None, 0),
        (&prompt, None, PAGE),
    ] {
        let request = request(prompt.clone(), 3, adapter, 0);
        let answer = alone(&model, &request);
        engine.add(&model, request).unwrap();
        let (mut got, mut cached) = (Vec::new(), None);
        while !engine.is_idle() {
            engine
                .step(&model, &mut |_, event| {
                    match event {
                        Event::Token(token) => got.push(token.id),
                        Event::Begun { cached: n } => cached = Some(n),
                        Event::End(_) => {}
                        Event::Failed(e) => panic!("{e}"),
                    }
                    Control::Continue
                })
                .unwrap();
        }
        assert_eq!((got, cached), (answer.ids, Some(want)), "{adapter:?}");
    }
}

/// Where room is tight, what a request shares is not given up to make room for it.
#[test]
fn a_shared_beginning_counts_as_room() {
    let model = load(DType::F32, 2 * PIECE);
    let mut engine = Engine::new(&model, Room { batch: 1, pages: 5, longest: 2 * PIECE }).unwrap();
    let prompt = ids(2 * PAGE + 5, 5);
    for (new, want) in [(1, 0), (2 * PAGE, 2 * PAGE)] {
        engine.add(&model, Request { stops: vec![], ..request(prompt.clone(), new, None, 0) }).unwrap();
        let mut found = None;
        while !engine.is_idle() {
            engine
                .step(&model, &mut |_, event| {
                    if let Event::Begun { cached } = event {
                        found = Some(cached);
                    }
                    Control::Continue
                })
                .unwrap();
        }
        assert_eq!(found, Some(want), "{new} new tokens");
    }
}

/// Answers under way get a token at every step, while a prompt of several pieces is read; and of two long prompts none waits for
/// the whole of the other.
#[test]
fn a_long_prompt_holds_nobody_up() {
    let model = load(DType::F32, 4 * PIECE);
    let mut engine = Engine::new(&model, Room { batch: 4, pages: 64, longest: 4 * PIECE }).unwrap();
    let mut steps = Vec::new();
    let mut step = |engine: &mut Engine| {
        let mut told = Vec::new();
        engine
            .step(&model, &mut |id, event| {
                if let Event::Token(_) = event {
                    told.push(id);
                }
                Control::Continue
            })
            .unwrap();
        steps.push(told);
    };
    let long = |seed| Request { stops: vec![], ..request(ids(3 * PIECE, seed), 2, None, 0) };
    let short = Request { stops: vec![], ..request(ids(20, 1), 12, None, 0) };
    engine.add(&model, short.clone()).unwrap();
    step(&mut engine);
    engine.add(&model, long(2)).unwrap();
    engine.add(&model, long(3)).unwrap();
    engine.add(&model, short).unwrap();
    (0..10).for_each(|_| step(&mut engine));
    let first = |id| steps.iter().position(|told| told.contains(&id)).unwrap();
    assert!(steps.iter().all(|told| told.contains(&0)), "{steps:?}");
    assert!(first(3) <= 3, "the short prompt waits for pieces, not for prompts: {steps:?}");
    assert!(first(1) > 4 && first(2) == first(1) + 1, "they take turns: {steps:?}");
}

#[test]
fn what_can_never_fit_is_refused_and_what_ends_leaves_room() {
    let model = load(DType::F32, PIECE);
    let mut engine = Engine::new(&model, Room { batch: 2, pages: 3, longest: PIECE }).unwrap();
    let e = engine.add(&model, request(ids(3 * PAGE, 0), 1, None, 0)).unwrap_err().to_string();
    assert!(e.contains(&format!("{}", 3 * PAGE + 1)) && e.contains(&format!("{}", 3 * PAGE)), "{e}");
    assert!(engine.add(&model, request(ids(4, 0), 1, Some(0), 0)).is_err());
    let big = Request { stops: vec![], ..request(ids(PAGE, 0), 2 * PAGE, None, 0) };
    let first = engine.add(&model, big.clone()).unwrap();
    engine.add(&model, big.clone()).unwrap();
    let third = engine.add(&model, big).unwrap();
    engine.step(&model, &mut |_, _| Control::Continue).unwrap();
    assert_eq!((engine.running(), engine.waiting()), (1, 2));
    // One that runs and one that waits go away.
    engine.end(|id| id == first || id == third);
    assert_eq!((engine.running(), engine.waiting(), engine.cache().used()), (0, 1, 0));
    while !engine.is_idle() {
        engine.step(&model, &mut |_, _| Control::Continue).unwrap();
    }
    assert_eq!(engine.cache().used(), 0);
}

fn limits(batch: usize, queue: usize) -> Limits {
    Limits { batch, cache_tokens: 40 * PAGE, queue }
}

/// The answer, and whether it was whole.
fn hear(mut ticket: Ticket) -> (Answer, bool) {
    let mut answer = Answer { ids: vec![], finish: Finish::Stopped };
    while let Some(update) = ticket.updates.blocking_recv() {
        match update {
            Update::Token(token) => answer.ids.push(token.id),
            Update::Begun { .. } => {}
            Update::End(finish) => {
                answer.finish = finish;
                return (answer, true);
            }
            Update::Failed(e) => panic!("{e}"),
        }
    }
    (answer, false)
}

/// Waits until the thread has noticed; the harness ends a test that waits forever.
fn until(worker: &Worker, what: impl Fn(&Worker) -> bool) {
    while !what(worker) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_worker_answers_everybody_and_keeps_nothing() {
    let requests = mixed(12);
    let model = with_adapters(DType::F32, 3 * PIECE);
    let want: Vec<Answer> = requests.iter().map(|r| alone(&model, r)).collect();
    let worker = Worker::start(model, limits(5, 100)).unwrap();
    std::thread::scope(|s| {
        for (r, want) in requests.iter().zip(&want) {
            let worker = &worker;
            s.spawn(move || {
                let ticket = worker.submit(r.clone()).unwrap();
                assert_eq!(hear(ticket), (want.clone(), true));
            });
            // Others come and leave at once or in the middle.
            s.spawn(move || drop(worker.submit(r.clone()).unwrap()));
            s.spawn(move || {
                let mut ticket = worker.submit(r.clone()).unwrap();
                (0..2).for_each(|_| drop(ticket.updates.blocking_recv()));
            });
        }
    });
    until(&worker, |w| w.now().running + w.now().waiting == 0);
    let now = worker.now();
    assert_eq!((now.pages_used, now.pages), (0, 40));
    assert!(now.pages_kept > 0 && now.cached_tokens > 0 && now.new_tokens > 0 && now.steps > 0, "{now:?}");
    assert!(worker.stop(Duration::from_secs(60)));
    assert!(!worker.is_ready());
    assert!(matches!(worker.submit(requests[0].clone()), Err(Refused::Stopping)));
}

#[test]
fn a_full_queue_refuses_and_a_wrong_request_takes_no_place() {
    let worker = Worker::start(load(DType::F32, 4 * PIECE), limits(1, 2)).unwrap();
    assert_eq!(worker.longest(), 4 * PIECE);
    let long = || Request { stops: vec![], ..request(ids(10, 1), 3 * PIECE, None, 0) };
    let first = worker.submit(long()).unwrap();
    until(&worker, |w| w.now().running == 1 && w.now().waiting == 0);
    let (second, third) = (worker.submit(long()).unwrap(), worker.submit(long()).unwrap());
    assert!(matches!(worker.submit(long()), Err(Refused::Full)));
    drop((first, second));
    until(&worker, |w| w.now().waiting == 0 && w.now().running == 1);
    for wrong in [
        request(vec![], 1, None, 0),
        request(ids(10, 1), 4 * PIECE, None, 0),
        request(vec![1 << 20], 1, None, 0),
        Request { sampling: Sampling { temperature: f64::NAN, ..Sampling::greedy() }, ..long() },
    ] {
        assert!(matches!(worker.submit(wrong), Err(Refused::Wrong(_))));
    }
    assert_eq!(worker.now().waiting, 0);
    let mut unknown = worker.submit(request(ids(4, 0), 1, Some(7), 0)).unwrap();
    assert!(matches!(unknown.updates.blocking_recv(), Some(Update::Failed(e)) if e.to_string().contains("number 7")));
    drop(third);
    until(&worker, |w| w.now().running == 0);
}

#[test]
fn adapters_come_and_go_while_others_answer() {
    let model = with_adapters(DType::F32, 2 * PIECE);
    let asked = |adapter| request(ids(30, 4), 40, adapter, 0);
    let want: Vec<Answer> = [None, Some(0), Some(1)].map(|a| alone(&model, &asked(a))).into();
    drop(model);
    let worker = Worker::start(load(DType::F32, 2 * PIECE), limits(4, 20)).unwrap();
    let base = worker.submit(asked(None)).unwrap();
    let first = worker.load(&golden("adapter")).unwrap();
    let one = worker.submit(asked(Some(first))).unwrap();
    assert!(worker.load(&golden("no-such-adapter")).is_err());
    worker.unload(first);
    let second = worker.load(&golden("adapter_rslora")).unwrap();
    assert_ne!(first, second, "a number is never used again");
    let two = worker.submit(asked(Some(second))).unwrap();
    assert_eq!(hear(base).0, want[0]);
    assert_eq!(hear(two).0, want[2]);
    // What had begun with the first was answered by it; or it came too late, and failed.
    let mut one = one;
    let mut got = Vec::new();
    while let Some(update) = one.updates.blocking_recv() {
        match update {
            Update::Token(t) => got.push(t.id),
            Update::Begun { .. } => {}
            Update::End(_) => assert_eq!(got, want[1].ids),
            Update::Failed(e) => assert!(got.is_empty() && e.to_string().contains("adapter"), "{e}"),
        }
    }
    until(&worker, |w| {
        let ticket = w.submit(asked(Some(first)));
        matches!(ticket.map(|mut t| t.updates.blocking_recv()), Ok(Some(Update::Failed(_))))
    });
}

#[test]
fn stopping_finishes_what_runs_or_cuts_it_off() {
    let long = Request { stops: vec![], ..request(ids(10, 1), 60, None, 0) };
    for (limit, whole) in [(Duration::from_secs(600), true), (Duration::ZERO, false)] {
        let worker = Worker::start(load(DType::F32, PIECE), limits(2, 9)).unwrap();
        let tickets: Vec<Ticket> = (0..3).map(|_| worker.submit(long.clone()).unwrap()).collect();
        assert_eq!(worker.stop(limit), whole);
        for ticket in tickets {
            let (answer, ended) = hear(ticket);
            assert_eq!((ended, answer.ids.len() == 60), (whole, whole));
        }
    }
}
