//! Turns the handle: on its own thread and timer it reads a snapshot, folds it into the state and publishes
//! what is known. Nothing else touches the kernel.

pub mod health;
pub mod netns;
pub mod publish;
pub mod schedule;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use crate::kernel::own_process::OwnProcess;
use crate::kernel::procfs_file::ReadError;
use crate::own::Own;
use crate::snapshot::{NetnsSample, Snapshot};
use crate::state::State;

use netns::NetnsReader;
use publish::{Publisher, Reader};
use schedule::Schedule;

/// The name of the namespace that listenq itself is in.
const OWN_NETNS: &str = "host";
/// How often `process_*` is read.
const PROCESS_INTERVAL: Duration = Duration::from_secs(1);

/// How to sample.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where procfs is mounted.
    pub procfs: PathBuf,
    /// The mean gap between samples.
    pub interval: Duration,
    /// The share of a core that samples may use before the interval stretches.
    pub cpu_budget: f64,
    /// How long a peak is shown.
    pub peak_window: Duration,
}

/// The readers, the state and the publisher, in the hands of one thread.
pub struct Sampler {
    reader: NetnsReader,
    process: OwnProcess,
    process_at: Option<Duration>,
    snapshot: Snapshot,
    state: State,
    own: Own,
    publisher: Publisher,
    schedule: Schedule,
    stretched: bool,
    epoch: Instant,
    last: Option<Duration>,
}

// === impl Sampler ===

impl Sampler {
    /// Opens what is read at every sample.
    pub fn new(config: &Config) -> Result<Self, ReadError> {
        Ok(Self {
            reader: NetnsReader::open(&config.procfs)?,
            process: OwnProcess::new(&config.procfs),
            process_at: None,
            snapshot: Snapshot {
                namespaces: vec![NetnsSample::new(OWN_NETNS.into())],
                ..Snapshot::default()
            },
            state: State::new(config.peak_window),
            own: Own { target_interval: config.interval, ..Own::default() },
            publisher: Publisher::default(),
            schedule: Schedule::new(config.interval, config.cpu_budget, fastrand::u64(..)),
            stretched: false,
            epoch: Instant::now(),
            last: None,
        })
    }

    /// A reader of what this sampler publishes.
    pub fn reader(&self) -> Reader {
        self.publisher.reader()
    }

    /// Takes one sample and publishes it.
    pub fn sample(&mut self) {
        let start = self.epoch.elapsed();
        let cpu = thread_cpu();
        self.read(start);
        let elapsed =
            self.last.replace(start).map_or(Duration::ZERO, |last| start.saturating_sub(last));
        self.state.fold(&self.snapshot, elapsed);
        let end = self.epoch.elapsed();
        self.own.samples += 1;
        self.own.durations.observe(end - start);
        self.read_process(start);
        self.publish();
        let end = self.epoch.elapsed();
        self.own.missed += self.schedule.sampled(start, end, thread_cpu().saturating_sub(cpu));
        self.own.interval = self.schedule.achieved();
        self.say_when_stretched();
    }

    /// Samples on the timer until `stop` says so or its sender is gone.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let due = self.epoch + self.schedule.due();
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep_until(due.into()) => self.sample(),
            }
        }
    }

    fn read(&mut self, now: Duration) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.snapshot.unix = since_1970.as_secs_f64();
        self.snapshot.interval = self.schedule.interval();
        for sample in &mut self.snapshot.namespaces {
            self.reader.read(now, sample, &mut self.own);
        }
    }

    fn read_process(&mut self, now: Duration) {
        if self.process_at.is_none_or(|at| now.saturating_sub(at) >= PROCESS_INTERVAL) {
            self.process_at = Some(now);
            self.own.process = self.process.read().ok();
        }
    }

    fn publish(&mut self) {
        let (state, own) = (&self.state, &self.own);
        self.publisher.publish(|view| state.show(own, view));
    }

    fn say_when_stretched(&mut self) {
        let (interval, target) = (self.schedule.interval(), self.own.target_interval);
        if !self.stretched && interval > target.mul_f64(1.1) {
            self.stretched = true;
            tracing::warn!(
                ?interval,
                ?target,
                "samples cost more than --sample.cpu-budget allows: sampling slower"
            );
        } else if self.stretched && interval == target {
            self.stretched = false;
            tracing::info!(?interval, "sampling at the asked interval again");
        }
    }
}

/// `CLOCK_THREAD_CPUTIME_ID`.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
