//! The daemon: opens the sockets, samples on a separate thread, serves, and stops on a signal.

use std::future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use rustix::thread::CapabilitySet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::capabilities;
use crate::cli::Web;
use crate::control::ControlSocket;
use crate::http::{self, AllowedHosts, Servers};
use crate::sampler::{Config, Sampler};
use crate::systemd;
use crate::view::publish::Reader;
use crate::web_config::LiveWebConfig;

/// Backlog of listenq's own sockets: a flood must not fill the queue in which scrapes wait.
const BACKLOG: i32 = 1024;
/// The default port of `--web.listen-address`.
const PORT: u16 = 19_511;
/// Timeout for a started sample after a signal.
const LAST_SAMPLE: Duration = Duration::from_millis(300);
/// Threads for rendering metrics, for rendering reports, and for checking passwords.
const WORKERS: usize = 3;

/// The running HTTP servers, one per listen socket.
struct Serving {
    servers: Servers,
    tasks: JoinSet<io::Result<()>>,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(config: &Config, web: &Web, control: Option<&Path>) -> Result<()> {
    let live = web.config_file.as_deref().map(LiveWebConfig::start).transpose()?;
    let listeners = listeners(web)?;
    let mut sampler = Sampler::new(config).context("is --path.procfs right?")?;
    let reader = sampler.reader();
    let hosts = AllowedHosts::new(&web.allowed_hosts, &config.rootfs);
    let mut router = http::router(reader.clone(), &web.telemetry_path, hosts);
    if let Some(live) = &live {
        router = live.protect(router);
        sampler.set_web_config(live.reloaded());
    }
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(WORKERS)
        .thread_name("http-worker")
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(async {
        let (stop, stopped) = mpsc::channel();
        let mut ended = spawn(sampler, stopped)?;
        // This thread serves and starts the runtime's threads.
        capabilities::keep(CapabilitySet::empty());
        let _control = control.and_then(|path| open_control(path, reader.clone()));
        let mut serving = Serving::start(listeners, &router, live.as_ref())?;
        systemd::ready();
        let result = tokio::select! {
            () = systemd::beat(reader) => Ok(()),
            result = stop_signal() => result,
            result = serving.first_end() => result,
            _ = &mut ended => bail!("the sampler stopped unexpectedly"),
        };
        tracing::info!("stopping");
        systemd::stopping();
        serving.stop();
        drop(stop);
        serving.ended().await;
        let _ = tokio::time::timeout(LAST_SAMPLE, ended).await;
        result
    });
    // Shutdown in the background: no client waits for a scrape that is still being rendered.
    Runtime::shutdown_background(runtime);
    result
}

// === impl Serving ===

impl Serving {
    fn start(
        listeners: Vec<TcpListener>,
        router: &Router,
        live: Option<&LiveWebConfig>,
    ) -> Result<Self> {
        let (mut servers, mut tasks) = (Servers::default(), JoinSet::new());
        for listener in listeners {
            let address = listener.local_addr().context("reading the listen address")?;
            let server = servers.start(listener, router.clone(), live.cloned());
            tasks.spawn(server.context("starting to serve")?);
            tracing::info!(%address, version = crate::VERSION, revision = crate::REVISION, "listening");
        }
        Ok(Self { servers, tasks })
    }

    /// Returns the result of the first server that ends.
    async fn first_end(&mut self) -> Result<()> {
        match self.tasks.join_next().await {
            Some(result) => result.context("serving")?.context("serving"),
            None => future::pending().await,
        }
    }

    fn stop(&self) {
        self.servers.stop();
    }

    async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Returns the sockets to serve on: those that systemd passed, or new ones.
fn listeners(web: &Web) -> Result<Vec<TcpListener>> {
    if !web.systemd_socket {
        return bind_all(&web.listen_addresses);
    }
    let default = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    if web.listen_addresses != [default] {
        tracing::warn!(
            "--web.listen-address has no effect: systemd passed the sockets to serve on"
        );
    }
    systemd::listeners()
}

/// Opens the control socket. The daemon also serves without a control socket.
fn open_control(path: &Path, reader: Reader) -> Option<ControlSocket> {
    let opened = ControlSocket::bind(path).and_then(|socket| {
        socket.serve(reader)?;
        Ok(socket)
    });
    if let Err(error) = &opened {
        let path = path.display();
        tracing::info!(%path, %error, "no control socket: list, explain and check need --url");
    }
    opened.ok()
}

/// Runs the sampler on a separate thread; the receiver completes when the sampler ends.
fn spawn(sampler: Sampler, stop: mpsc::Receiver<()>) -> Result<oneshot::Receiver<()>> {
    let (ends, ended) = oneshot::channel();
    let run = move || {
        sampler.run(&stop);
        drop(ends);
    };
    thread::Builder::new().name("sampler".into()).spawn(run).context("starting the sampler")?;
    Ok(ended)
}

async fn stop_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn bind_all(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>> {
    addresses.iter().map(|address| bind(*address)).collect()
}

/// Opens a listen socket. `[::]` serves both families; without IPv6 it becomes `0.0.0.0`.
fn bind(address: SocketAddr) -> Result<TcpListener> {
    let bound = match listen(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
            listen(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()))
        }
        bound => bound,
    };
    bound.with_context(|| format!("cannot listen on {address}"))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn is_without_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    const EADDRNOTAVAIL: i32 = 99;
    matches!(error.raw_os_error(), Some(EAFNOSUPPORT | EADDRNOTAVAIL))
}
