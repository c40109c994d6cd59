//! A client that increments as fast as it gets answers, and remembers everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::history::{self, Increment, Summary};
use crate::resp::Client;
use crate::rig::{Rig, TAKEOVER_LIMIT};

/// No reply may take longer, whatever happens to the machines.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running client: one thread, one connection.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Result<Vec<Increment>>>>,
}

impl Load {
    /// Starts to increment `key` at `service`; times are since `epoch`.
    ///
    /// # Errors
    /// When the connection is refused.
    pub fn start(service: &str, key: &str, epoch: Instant) -> Result<Self> {
        let mut client = Client::connect(service, PATIENCE)?;
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count, key) = (Arc::clone(&stop), Arc::clone(&answered), key.to_owned());
        let thread = std::thread::spawn(move || {
            let mut increments = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let invoked = epoch.elapsed();
                let value = client.increment(&key)?;
                increments.push(Increment { invoked, reply: Some((epoch.elapsed(), value)) });
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(increments)
        });
        Ok(Self { stop, answered, thread: Some(thread) })
    }

    /// Replies so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether it still asks; not when its connection has failed.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends after the reply that is awaited, and tells everything.
    ///
    /// # Errors
    /// Why the connection failed, if it did.
    pub fn stop(mut self) -> Result<Vec<Increment>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("stopped already"))?;
        thread.join().map_err(|_| anyhow!("the client panicked"))?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Waits until the client has got `more` replies.
///
/// # Errors
/// When it does not get them, or the rig ends.
pub fn wait_answers(rig: &mut Rig, load: &Load, more: usize) -> Result<()> {
    let goal = load.answered() + more;
    let look = |_: &Rig| {
        ensure!(load.is_alive(), "the client's connection failed");
        Ok((load.answered() >= goal).then_some(()))
    };
    rig.wait("the client gets replies", TAKEOVER_LIMIT, look)
}

/// Ends the client, the only one of its counter, and checks that it saw 1, 2, 3 and so on without a gap or repeat.
///
/// # Errors
/// What was wrong.
pub fn judge(load: Load) -> Result<Summary> {
    let summary = history::check(1, &load.stop().context("the client's only connection")?)?;
    println!("{summary:?}");
    ensure!(summary.unanswered == 0);
    Ok(summary)
}
