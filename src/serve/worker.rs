//! The thread that owns the model: requests come to it from any thread, and their tokens go back as they are made.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::error::{Error, Result};
use crate::infer::{Control, Engine, Event, Finish, Id, Request, Room, Token};
use crate::model::{Model, PAGE, Prepared};

/// What a worker is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences in the running batch at most.
    pub batch: usize,
    /// Tokens whose keys and values are kept, over all sequences.
    pub cache_tokens: usize,
    /// Requests that wait at most, while the batch is full; one more is refused.
    pub queue: usize,
}

/// The way to the thread. Cheap to clone.
#[derive(Clone)]
pub struct Worker {
    /// The thread ends when nobody has one any more.
    to: Sender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    model: RwLock<Model>,
    /// Most tokens of a prompt and its answer, and the size of the vocabulary.
    most: usize,
    vocab: usize,
    /// Held while an adapter is read, so that there is one reader at most when the thread wants to change the model.
    loading: Mutex<()>,
    /// Requests that were sent and are not in the engine yet, and those that wait there.
    waiting: AtomicUsize,
    queue: usize,
    batch: usize,
    stopping: AtomicBool,
    now: Mutex<Load>,
    /// Whether the thread has ended, and then whether every request had.
    ended: Mutex<Option<bool>>,
    on_end: Condvar,
}

/// A request under way. Dropping it ends the request at the next step. Updates that cease without an end were cut off: the
/// worker was stopped before the answer was whole.
pub struct Ticket {
    pub updates: UnboundedReceiver<Update>,
}

/// What becomes of a request. After `End` or `Failed` nothing follows.
#[derive(Debug)]
pub enum Update {
    Begun {
        /// Tokens of the prompt that were in the cache already.
        cached: usize,
    },
    Token(Token),
    End(Finish),
    Failed(Arc<Error>),
}

/// Why a request was not taken.
#[derive(Debug)]
pub enum Refused {
    /// As many wait as may.
    Full,
    /// The worker is stopping.
    Stopping,
    /// The request can never be answered: it is malformed, or longer than the context or the whole cache.
    Wrong(Error),
}

/// How much is going on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences in the batch.
    pub running: usize,
    /// Those of them that the last step read.
    pub batch: usize,
    pub waiting: usize,
    /// Pages of the cache, of [`crate::model::PAGE`] tokens each.
    pub pages: usize,
    /// Those that a running sequence holds.
    pub pages_used: usize,
    /// Those kept for the prefixes of requests to come; they are given up when they are needed.
    pub pages_kept: usize,
    /// Steps since the start.
    pub steps: u64,
    /// Tokens that were read as prompts since the start, without those found in the cache; and those.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// Tokens that were made since the start.
    pub new_tokens: u64,
}

enum Command {
    Answer(Request, UnboundedSender<Update>),
    Install(Box<Prepared>, Sender<usize>),
    Unload(usize),
    /// Finish what runs, until then at most.
    Stop(Instant),
}

/// So long the thread waits at most when there is nothing to do.
const IDLE: Duration = Duration::from_millis(500);

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::Memory`] if the cache does not fit.
    pub fn start(model: Model, limits: Limits) -> Result<Worker> {
        let longest = model.max_positions();
        let pages = limits.cache_tokens.div_ceil(PAGE);
        let engine = Engine::new(&model, Room { batch: limits.batch, pages, longest })?;
        let (most, vocab) = (longest.min(engine.cache().longest()), model.spec.vocab);
        let (to, from) = channel();
        let shared = Arc::new(Shared {
            model: RwLock::new(model),
            most,
            vocab,
            loading: Mutex::new(()),
            waiting: AtomicUsize::new(0),
            queue: limits.queue,
            batch: limits.batch,
            stopping: AtomicBool::new(false),
            now: Mutex::new(Load { pages, ..Load::default() }),
            ended: Mutex::new(None),
            on_end: Condvar::new(),
        });
        let thread = Thread {
            shared: shared.clone(),
            engine,
            tickets: HashMap::new(),
            leaving: Vec::new(),
            queued: 0,
            until: None,
        };
        let spawned = thread::Builder::new().name("model".into()).spawn(move || thread.run(&from));
        spawned.map_err(|e| Error::Memory(format!("no thread for the model: {e}")))?;
        Ok(Worker { to, shared })
    }

    /// Takes a request, which is answered as soon as there is room.
    ///
    /// # Errors
    /// [`Refused`] says why not.
    pub fn submit(&self, request: Request) -> std::result::Result<Ticket, Refused> {
        if self.shared.stopping.load(Ordering::SeqCst) {
            return Err(Refused::Stopping);
        }
        // Those that the batch has places for do not count: the thread takes them at its next step.
        let places = self.shared.batch.saturating_sub(lock(&self.shared.now).running);
        let most = self.shared.queue.saturating_add(places);
        let count = |n| (n < most).then_some(n + 1);
        if self.shared.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count).is_err() {
            return Err(Refused::Full);
        }
        let (to, updates) = unbounded_channel();
        if let Err(e) = request.fits(self.shared.most, self.shared.vocab) {
            self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(Refused::Wrong(e));
        }
        match self.send(Command::Answer(request, to)) {
            true => Ok(Ticket { updates }),
            false => Err(Refused::Stopping),
        }
    }

    /// Loads the adapter in `path` beside the others, while requests run; the number by which requests name it. Blocks
    /// until it is there.
    ///
    /// # Errors
    /// Those of [`Model::attach`]; nothing has changed then.
    pub fn load(&self, path: &Path) -> Result<usize> {
        let loading = lock(&self.shared.loading);
        let prepared = match self.shared.model.read() {
            Ok(model) => model.prepare(path)?,
            Err(_) => return Err(ended()),
        };
        let (to, number) = channel();
        if !self.send(Command::Install(Box::new(prepared), to)) {
            return Err(ended());
        }
        let number = number.recv().map_err(|_| ended());
        drop(loading);
        number
    }

    /// Takes an adapter away as soon as the last request that uses it has ended; one that names it after that fails. Returns at
    /// once.
    pub fn unload(&self, adapter: usize) {
        self.send(Command::Unload(adapter));
    }

    /// Most tokens of a prompt and its answer together.
    pub fn longest(&self) -> usize {
        self.shared.most
    }

    pub fn now(&self) -> Load {
        Load { waiting: self.shared.waiting.load(Ordering::SeqCst), ..*lock(&self.shared.now) }
    }

    /// Whether requests are taken.
    pub fn is_ready(&self) -> bool {
        !self.shared.stopping.load(Ordering::SeqCst) && lock(&self.shared.ended).is_none()
    }

    /// Refuses new requests from now on, and returns when the last one has ended, or after `limit`; those that had not
    /// ended are then cut off. True if all ended. Blocks.
    pub fn stop(&self, limit: Duration) -> bool {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.send(Command::Stop(Instant::now() + limit));
        let mut ended = lock(&self.shared.ended);
        loop {
            match *ended {
                Some(whole) => return whole,
                None => ended = self.shared.on_end.wait(ended).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// False if the thread has ended.
    fn send(&self, command: Command) -> bool {
        self.to.send(command).is_ok()
    }
}

fn ended() -> Error {
    Error::Memory("the model's thread has ended: start the server again".into())
}

/// Ignores poisoning: what is behind these is whole after every statement.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread has.
struct Thread {
    shared: Arc<Shared>,
    engine: Engine,
    tickets: HashMap<Id, UnboundedSender<Update>>,
    /// Adapters to be taken away when nobody uses them any more.
    leaving: Vec<usize>,
    /// Requests that wait in the engine, as they were counted last.
    queued: usize,
    /// Set when it is to stop.
    until: Option<Instant>,
}

impl Drop for Thread {
    /// Also when it panics: nobody waits for it in vain.
    fn drop(&mut self) {
        *lock(&self.shared.ended) = Some(self.engine.is_idle());
        self.shared.on_end.notify_all();
    }
}

impl Thread {
    fn run(mut self, from: &Receiver<Command>) {
        loop {
            if self.listen(from).is_none() {
                return;
            }
            let tickets = &self.tickets;
            self.engine.end(|id| tickets.get(&id).is_none_or(UnboundedSender::is_closed));
            self.tickets.retain(|_, ticket| !ticket.is_closed());
            self.part();
            self.step();
            self.publish();
            match self.until {
                Some(until) if self.engine.is_idle() || Instant::now() >= until => return,
                _ => {}
            }
        }
    }

    /// Takes every command that is there; with nothing to do, waits for one. None when nobody can send any more.
    fn listen(&mut self, from: &Receiver<Command>) -> Option<()> {
        if self.engine.is_idle() && self.until.is_none() {
            match from.recv_timeout(IDLE) {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
        loop {
            match from.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return Some(()),
                Err(TryRecvError::Disconnected) => return None,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Answer(request, to) => {
                self.queued += 1;
                let Ok(model) = self.shared.model.read() else { return };
                match self.engine.add(&model, request) {
                    Ok(id) => drop(self.tickets.insert(id, to)),
                    Err(e) => drop(to.send(Update::Failed(Arc::new(e)))),
                }
            }
            Command::Install(prepared, to) => {
                let Ok(mut model) = self.shared.model.write() else { return };
                // Nobody listens if the one who asked has left: the adapter is there all the same.
                let _ = to.send(model.install(*prepared));
            }
            Command::Unload(adapter) => self.leaving.push(adapter),
            Command::Stop(until) => self.until = Some(until),
        }
    }

    /// Parts with adapters that are to go and that nobody uses.
    fn part(&mut self) {
        let (gone, staying) = self.leaving.iter().partition::<Vec<usize>, _>(|a| !self.engine.uses(**a));
        self.leaving = staying;
        if let (false, Ok(mut model)) = (gone.is_empty(), self.shared.model.write()) {
            gone.into_iter().for_each(|adapter| model.detach(adapter));
        }
    }

    fn step(&mut self) {
        let Ok(model) = self.shared.model.read() else { return };
        let tickets = &mut self.tickets;
        let stepped = self.engine.step(&model, &mut |id, event| {
            let update = match event {
                Event::Begun { cached } => Update::Begun { cached },
                Event::Token(token) => Update::Token(token),
                Event::End(finish) => Update::End(finish),
                Event::Failed(e) => Update::Failed(Arc::new(e)),
            };
            let is_last = matches!(update, Update::End(_) | Update::Failed(_));
            let heard = tickets.get(&id).is_some_and(|to| to.send(update).is_ok());
            if is_last {
                tickets.remove(&id);
            }
            if heard { Control::Continue } else { Control::Stop }
        });
        if let Err(e) = stepped {
            log::error!("a step failed, and every request with it: {e}");
            let e = Arc::new(e);
            for (_, to) in self.tickets.drain() {
                drop(to.send(Update::Failed(e.clone())));
            }
            self.engine.end(|_| true);
        }
    }

    fn publish(&mut self) {
        let waiting = self.engine.waiting();
        self.shared.waiting.fetch_sub(self.queued - waiting, Ordering::SeqCst);
        self.queued = waiting;
        let (cache, counts) = (self.engine.cache(), self.engine.counts());
        *lock(&self.shared.now) = Load {
            running: self.engine.running(),
            batch: if self.engine.is_idle() { 0 } else { counts.batch },
            waiting,
            pages: cache.pages(),
            pages_used: cache.used(),
            pages_kept: cache.kept(),
            steps: counts.steps,
            prompt_tokens: counts.prompt_tokens,
            cached_tokens: counts.cached_tokens,
            new_tokens: counts.new_tokens,
        };
    }
}
