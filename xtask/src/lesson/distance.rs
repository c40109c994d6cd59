//! Lesson 2: latency against distance.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Lesson;
use super::chart::bars;
use super::stage::Stage;
use crate::bench::report::quantile;
use crate::driven::client::Client;
use crate::driven::pause;

pub(super) const LESSON: Lesson = Lesson {
    number: 2,
    title: "When may an answer leave",
    question: "What does the distance to the twin cost a client?",
    show,
    why: "The primary's guest never waits for its twin, it computes on; only what leaves for the network waits, for one round \
          trip on the log network. So the time to answer grows by twice the delay of one way, while the rate at which many \
          clients are served need not suffer. Switched off, the rule costs nothing at any distance, and lesson 1 shows \
          what that is worth.",
};

/// Delays of one way, in milliseconds.
const DELAYS: [u32; 4] = [0, 2, 5, 10];
const QUESTIONS: usize = 20;

fn show(stage: &Stage) -> Result<Vec<String>> {
    let with = scene(stage, "with-the-rule", &[])?;
    let without = scene(stage, "without-the-rule", &["--hypervisor-option", "break=output-rule"])?;
    let rows = |words: &str, medians: &[f64]| -> Vec<_> {
        let row = |(delay, ms): (u32, &f64)| (format!("{delay:>2} ms {words}"), *ms, format!("{ms:.1} ms"));
        DELAYS.into_iter().zip(medians).map(row).collect()
    };
    let picture = bars(&[rows("with the rule", &with), rows("without", &without)].concat());
    // The farthest and the nearest: twice the delay between, less what a busy desk adds to the nearest.
    let [grown, flat] = [&with, &without].map(|medians| medians[DELAYS.len() - 1] - medians[0]);
    ensure!(
        grown > 10.0 && flat < grown / 2.0,
        "from {DELAYS:?} ms latency grew by {grown:.1} ms, without the rule by {flat:.1}"
    );
    Ok(picture)
}

/// The median time to answer, in milliseconds, for each delay.
fn scene(stage: &Stage, name: &str, options: &[&str]) -> Result<Vec<f64>> {
    let mut rig = stage.pair(name, "counter", options)?;
    let mut client = Client::connect(rig.service())?;
    client.increment("x")?;
    let mut medians = Vec::new();
    for delay in DELAYS {
        rig.link("log", &[&format!("delay={delay}ms")])?;
        pause(Duration::from_millis(300))?;
        let mut times = Vec::new();
        for _ in 0..QUESTIONS {
            let asked = Instant::now();
            client.increment("x")?;
            times.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        let median = quantile(&times, 0.5).context("no answers")?;
        stage.tell(&format!("{delay} ms away: {median:.1} ms (median of {QUESTIONS})"));
        medians.push(median);
    }
    stage.end(rig)?;
    Ok(medians)
}
