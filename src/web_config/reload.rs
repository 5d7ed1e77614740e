//! Reloads the configuration when its files change, and keeps the current configuration if the new
//! one is invalid. A separate thread reads the files, so that neither sampling nor serving waits
//! for a disk.

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

/// Time between two reads of the files. A change is applied after two equal reads: the file is
/// complete then.
const INTERVAL: Duration = Duration::from_millis(500);

/// Watches the files of the current configuration.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    in_force: Arc<ArcSwap<WebConfig>>,
    reloaded: Reloaded,
    sources: Sources,
    /// Digests of the contents that were last loaded or refused.
    judged: Vec<Digest>,
    /// Digests at the last read.
    seen: Vec<Digest>,
}

// === impl Watch ===

impl Watch {
    /// Loads the configuration for the first time.
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

    /// Whether the last reload succeeded.
    pub fn reloaded(&self) -> Reloaded {
        self.reloaded.clone()
    }

    /// Starts the thread that watches the files.
    pub fn spawn(mut self) -> std::io::Result<()> {
        let run = move || {
            // Keys and the configuration may be readable only for root.
            capabilities::keep(CapabilitySet::DAC_READ_SEARCH);
            loop {
                thread::sleep(INTERVAL);
                self.look();
            }
        };
        thread::Builder::new().name("web-config".into()).spawn(run).map(drop)
    }

    /// Reloads after a change that two consecutive reads agree on.
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
                tracing::error!(%error, "web config reload failed; keeping the current configuration");
            }
        }
        self.judged = sources.then();
        self.seen.clone_from(&self.judged);
        self.sources = sources;
    }

    /// Refuses changes that would remove protection: an emptied file, or one without TLS.
    fn accept(&self, new: WebConfig) -> Result<WebConfig, ConfigError> {
        let old = self.in_force.load();
        let what = match (old.tls.is_some(), new.tls.is_some()) {
            _ if new.is_blank() && !old.is_blank() => "nothing is left in the file",
            (true, false) => "turning TLS off needs a restart",
            (false, true) => "turning TLS on needs a restart",
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
        "web configuration loaded"
    );
}
