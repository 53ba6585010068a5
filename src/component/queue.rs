//! A work queue: a key waits at most once, is never worked on twice at the same time, and comes back later, with
//! growing pauses, when its work failed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::Error;
use crate::metrics::QueueMetrics;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What a successful reconcile wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// Nothing until something changes.
    Done,
    /// The same key again after this time, whatever happens until then.
    After(Duration),
}

impl Requeue {
    /// `After` if there is a time.
    pub fn after(delay: Option<Duration>) -> Self {
        delay.map_or(Requeue::Done, Requeue::After)
    }
}

struct State<T> {
    ready: VecDeque<T>,
    waiting: HashSet<T>,
    working: HashSet<T>,
    failures: HashMap<T, u32>,
    timers: BTreeMap<(Instant, u64), T>,
    timed: HashMap<T, (Instant, u64)>,
    sequence: u64,
}

/// The queue of one controller.
pub struct Queue<T> {
    name: &'static str,
    state: Mutex<State<T>>,
    wake: Notify,
    metrics: QueueMetrics,
}

impl<T: Clone + Eq + Hash + Display + Send + 'static> Queue<T> {
    /// An empty queue; `name` appears in logs and metrics.
    pub fn new(name: &'static str, metrics: QueueMetrics) -> Arc<Self> {
        Arc::new(Self {
            name,
            state: Mutex::new(State {
                ready: VecDeque::new(),
                waiting: HashSet::new(),
                working: HashSet::new(),
                failures: HashMap::new(),
                timers: BTreeMap::new(),
                timed: HashMap::new(),
                sequence: 0,
            }),
            wake: Notify::new(),
            metrics,
        })
    }

    /// Work on `key` as soon as a worker is free.
    pub fn add(&self, key: T) {
        let mut state = self.lock();
        self.enqueue(&mut state, key);
        drop(state);
        self.wake.notify_one();
    }

    fn enqueue(&self, state: &mut State<T>, key: T) {
        if state.waiting.contains(&key) {
            return;
        }
        self.metrics.added(self.name);
        state.waiting.insert(key.clone());
        if !state.working.contains(&key) {
            state.ready.push_back(key);
        }
    }

    /// Work on `key` after `delay`; of several delays the shortest counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let due = Instant::now() + delay;
        let mut state = self.lock();
        if let Some(&at) = state.timed.get(&key) {
            if at.0 <= due {
                return;
            }
            state.timers.remove(&at);
        }
        state.sequence += 1;
        let at = (due, state.sequence);
        state.timers.insert(at, key.clone());
        state.timed.insert(key, at);
        drop(state);
        self.wake.notify_one();
    }

    /// Work on `key` again after a pause that doubles with each failure since [`Queue::forget`].
    pub fn add_failed(&self, key: T) {
        self.metrics.retried(self.name);
        let delay = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = retry_delay(*failures);
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
    }

    /// The key did well: its next failure starts with the shortest pause again.
    pub fn forget(&self, key: &T) {
        self.lock().failures.remove(key);
    }

    /// How many keys wait for a worker now.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    /// Whether no key waits for a worker.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key, marked as being worked on; [`Queue::done`] must follow.
    async fn next(&self) -> T {
        loop {
            let notified = self.wake.notified();
            let due = {
                let mut state = self.lock();
                self.fire_timers(&mut state);
                if let Some(key) = state.ready.pop_front() {
                    state.waiting.remove(&key);
                    state.working.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.timers.keys().next().map(|(due, _)| *due)
            };
            match due {
                None => notified.await,
                Some(due) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
        }
    }

    fn fire_timers(&self, state: &mut State<T>) {
        let now = Instant::now();
        while let Some(entry) = state.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            state.timed.remove(&key);
            self.enqueue(state, key);
        }
    }

    fn done(&self, key: &T) {
        let mut state = self.lock();
        state.working.remove(key);
        if state.waiting.contains(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Lets `workers` tasks call `reconcile` with one key each until `stop`; returns when the last call has ended.
    pub async fn run<F, Fut>(self: Arc<Self>, workers: usize, stop: CancellationToken, reconcile: F)
    where
        F: Fn(T) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Requeue, Error>> + Send,
        T: Sync,
    {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..workers.max(1) {
            let (queue, stop, reconcile) = (Arc::clone(&self), stop.clone(), reconcile.clone());
            tasks.spawn(async move {
                loop {
                    let key = tokio::select! {
                        () = stop.cancelled() => return,
                        key = queue.next() => key,
                    };
                    // A key taken must be given back even if its work is cut off by a panic: workers are tasks, and a
                    // panicking one ends alone.
                    let outcome = tokio::select! {
                        () = stop.cancelled() => return,
                        outcome = reconcile(key.clone()) => outcome,
                    };
                    queue.settle(key, outcome);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    fn settle(&self, key: T, outcome: Result<Requeue, Error>) {
        match outcome {
            Ok(next) => {
                self.forget(&key);
                if let Requeue::After(delay) = next {
                    self.add_after(key.clone(), delay);
                }
            }
            Err(error) => {
                if error.is_quiet() {
                    debug!(controller = self.name, %key, %error, "will retry");
                } else {
                    warn!(controller = self.name, %key, %error, "will retry");
                }
                self.add_failed(key.clone());
            }
        }
        self.done(&key);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn retry_delay(failures: u32) -> Duration {
    FIRST_RETRY
        .saturating_mul(1u32.checked_shl(failures.min(20)).unwrap_or(u32::MAX))
        .min(LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn queue() -> Arc<Queue<String>> {
        Queue::new("test", QueueMetrics::default())
    }

    #[test]
    fn pauses_double_and_are_bounded() {
        for (failures, ms) in [(0, 5), (1, 10), (4, 80), (10, 5120), (13, 30_000), (40, 30_000)] {
            assert_eq!(retry_delay(failures), Duration::from_millis(ms), "{failures}");
        }
    }

    #[tokio::test]
    async fn a_key_waits_once_and_is_worked_on_by_one_worker_at_a_time() {
        let queue = queue();
        let (at_once, most, calls) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
        );
        for _ in 0..10 {
            queue.add("a".into());
        }
        assert_eq!(queue.len(), 1);
        let stop = CancellationToken::new();
        let (q, s, o, m, c) = (
            Arc::clone(&queue),
            stop.clone(),
            at_once,
            Arc::clone(&most),
            Arc::clone(&calls),
        );
        let feeder = Arc::clone(&queue);
        let task = tokio::spawn(q.run(4, stop, move |_key| {
            let (o, m, c, feeder, s) = (
                Arc::clone(&o),
                Arc::clone(&m),
                Arc::clone(&c),
                Arc::clone(&feeder),
                s.clone(),
            );
            async move {
                m.fetch_max(o.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                feeder.add("a".into());
                tokio::task::yield_now().await;
                o.fetch_sub(1, Ordering::SeqCst);
                if c.fetch_add(1, Ordering::SeqCst) == 20 {
                    s.cancel();
                }
                Ok(Requeue::Done)
            }
        }));
        task.await.unwrap();
        assert_eq!(most.load(Ordering::SeqCst), 1);
        assert!(calls.load(Ordering::SeqCst) >= 20);
    }

    #[tokio::test(start_paused = true)]
    async fn the_shortest_delay_counts() {
        let queue = queue();
        queue.add_after("a".into(), Duration::from_secs(60));
        queue.add_after("a".into(), Duration::from_secs(1));
        queue.add_after("a".into(), Duration::from_secs(30));
        let start = Instant::now();
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 1);
        assert_eq!(queue.lock().timers.len(), 0);
    }
}
