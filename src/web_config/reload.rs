//! Takes a changed configuration over, or keeps the one in force and says why. It looks at the files on a thread
//! of its own: neither sampling nor serving waits for a disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use arc_swap::ArcSwap;
use rustix::thread::CapabilitySet;

use crate::capabilities;
use crate::self_stats::Reloaded;

use super::WebConfig;
use super::file::{ConfigError, Fault};
use super::sources::{Digest, Sources};

/// How often the files are looked at. A change counts when two looks see the same: then nobody is still writing.
const INTERVAL: Duration = Duration::from_millis(500);

/// The files of the configuration in force.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    in_force: Arc<ArcSwap<WebConfig>>,
    reloaded: Reloaded,
    sources: Sources,
    /// What the files held when they were last made into a configuration, or were found unfit for one.
    judged: Vec<Digest>,
    /// What they held at the last look.
    seen: Vec<Digest>,
}

// === impl Watch ===

impl Watch {
    /// Reads the configuration for the first time.
    pub fn start(path: &Path) -> Result<(Self, Arc<ArcSwap<WebConfig>>), ConfigError> {
        let mut sources = Sources::default();
        let config = WebConfig::load(path, &mut sources)?;
        say(path, &config);
        let in_force = Arc::new(ArcSwap::from_pointee(config));
        let judged = sources.then();
        let watch = Self {
            path: path.to_owned(),
            in_force: Arc::clone(&in_force),
            reloaded: Reloaded::default(),
            sources,
            seen: judged.clone(),
            judged,
        };
        Ok((watch, in_force))
    }

    /// Where it says whether the last change was taken over.
    pub fn reloaded(&self) -> Reloaded {
        self.reloaded.clone()
    }

    /// Looks at the files from now on.
    pub fn spawn(mut self) -> std::io::Result<()> {
        let run = move || {
            // Keys and the configuration may be readable for root only.
            capabilities::keep(CapabilitySet::DAC_READ_SEARCH);
            loop {
                thread::sleep(INTERVAL);
                self.look();
            }
        };
        thread::Builder::new().name("web-config".into()).spawn(run).map(drop)
    }

    /// Takes a change over when it has settled.
    fn look(&mut self) {
        let now = self.sources.now();
        if now != self.judged && now == self.seen {
            self.reload();
        } else {
            self.seen = now;
        }
    }

    fn reload(&mut self) {
        let mut sources = Sources::default();
        let loaded = WebConfig::load(&self.path, &mut sources).and_then(|new| self.accept(new));
        self.reloaded.set(loaded.is_ok());
        match loaded {
            Ok(config) => {
                say(&self.path, &config);
                self.in_force.store(Arc::new(config));
            }
            Err(error) => {
                tracing::error!(%error, "the web configuration in force stays: the new one is not good");
            }
        }
        self.judged = sources.then();
        self.seen.clone_from(&self.judged);
        self.sources = sources;
    }

    /// A file that was emptied by mistake, or is being written, must not open what was closed.
    fn accept(&self, new: WebConfig) -> Result<WebConfig, ConfigError> {
        let old = self.in_force.load();
        let what = match (old.tls.is_some(), new.tls.is_some()) {
            _ if new.is_blank() && !old.is_blank() => "nothing is left in it",
            (true, false) => "turning TLS off takes a restart",
            (false, true) => "turning TLS on takes a restart",
            _ => return Ok(new),
        };
        Err(ConfigError { path: self.path.clone(), fault: Fault::new(0, what) })
    }
}

fn say(path: &Path, config: &WebConfig) {
    let WebConfig { tls, headers, users, rate_limit } = config;
    tracing::info!(
        file = %path.display(),
        tls = tls.is_some(),
        users = users.len(),
        headers = headers.len(),
        rate_limit = rate_limit.is_some(),
        "web configuration in force"
    );
}
