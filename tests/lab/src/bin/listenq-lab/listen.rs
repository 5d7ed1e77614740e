//! The subcommand `listen`.

use std::io::{Write, stdout};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use listenq_lab::address::parse;
use listenq_lab::listener::{Listen, Listener};
use listenq_lab::server::{Accept, Pace, Server, Service};
use listenq_lab::unix::{Kind, UnixListener};

use crate::seconds;

/// What to listen on, and how to serve.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address to listen at, or the path of a Unix stream socket. With port 0 the kernel chooses
    /// the port.
    #[arg(default_value = "127.0.0.1:0")]
    address: String,
    /// Argument of listen(2).
    #[arg(long, default_value_t = 128)]
    backlog: i32,
    /// Number of listen sockets. With --reuseport all have one address; otherwise each has a port
    /// that the kernel chooses, or the port after the previous one.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    count: u16,
    /// Print only the first address.
    #[arg(long)]
    quiet: bool,
    /// Allow other sockets to listen at the same address.
    #[arg(long)]
    reuseport: bool,
    /// Whether an IPv6 wildcard leaves IPv4 to other sockets.
    #[arg(long)]
    v6only: Option<bool>,
    /// Bind to this interface.
    #[arg(long)]
    device: Option<String>,
    /// Complete connections only with their first data, or after this number of seconds.
    #[arg(long, value_name = "SECONDS")]
    defer_accept: Option<u32>,
    /// Use multipath TCP.
    #[arg(long)]
    mptcp: bool,
    /// How to accept: fast, never, rate:N (per second) or bursts:MS (all waiting connections, after
    /// each pause).
    #[arg(long, default_value = "never", value_parser = pace)]
    pace: Pace,
    /// Milliseconds for which each accepted connection stays open.
    #[arg(long, default_value_t = 0)]
    hold_ms: u64,
    /// Wait for data or FIN of a client, send this line, and close.
    #[arg(long, value_name = "LINE", conflicts_with = "hold_ms")]
    answer: Option<String>,
    /// Seconds until the end, at most one hour.
    #[arg(long = "for", default_value = "60", value_parser = seconds)]
    lasting: Duration,
}

impl Args {
    /// Opens all sockets, prints one line per address, serves, and prints the number of accepted
    /// connections.
    pub(crate) fn run(self) -> Result<()> {
        if self.address.starts_with('/') {
            let listener = UnixListener::try_open(Kind::Stream, &self.address, self.backlog)?;
            println!("{}", self.address);
            return self.serve(vec![listener]);
        }
        let listeners = self.open()?;
        let printed = if self.quiet { 1 } else { listeners.len() };
        for listener in &listeners[..printed] {
            println!("{}", listener.addr());
        }
        self.serve(listeners)
    }

    fn serve<L: Accept>(&self, listeners: Vec<L>) -> Result<()> {
        stdout().flush()?;
        let serve = |listener| Server::<L>::start_serving(listener, self.pace, self.service());
        // A server that never accepts needs no thread.
        let (idle, served) =
            if self.pace == Pace::Never { (listeners, vec![]) } else { (vec![], listeners) };
        let servers: Vec<Server<L>> = served.into_iter().map(serve).collect();
        thread::sleep(self.lasting);
        println!("accepted={}", servers.iter().map(Server::accepted).sum::<u64>());
        drop(idle);
        Ok(())
    }

    fn service(&self) -> Service {
        match &self.answer {
            Some(line) => Service::Answer(format!("{line}\n").into_bytes()),
            None => Service::Hold(Duration::from_millis(self.hold_ms)),
        }
    }

    fn open(&self) -> Result<Vec<Listener>> {
        let mut listeners = vec![self.listen(&self.address).try_open()?];
        for n in 1..self.count {
            listeners.push(self.listen(&self.next(listeners[0].addr(), n)?).try_open()?);
        }
        Ok(listeners)
    }

    /// The address of the `n`th listen socket after the first.
    fn next(&self, first: SocketAddr, n: u16) -> Result<String> {
        if self.reuseport {
            return Ok(first.to_string());
        }
        if parse(&self.address)?.port() == 0 {
            return Ok(self.address.clone());
        }
        let port = first.port().checked_add(n).context("there are no more ports")?;
        Ok(SocketAddr::new(first.ip(), port).to_string())
    }

    fn listen(&self, address: &str) -> Listen {
        let mut listen = Listen::tcp(address).backlog(self.backlog);
        if self.reuseport {
            listen = listen.reuseport();
        }
        if self.mptcp {
            listen = listen.mptcp();
        }
        if let Some(v6only) = self.v6only {
            listen = listen.v6only(v6only);
        }
        if let Some(device) = &self.device {
            listen = listen.device(device);
        }
        if let Some(seconds) = self.defer_accept {
            listen = listen.defer_accept(seconds);
        }
        listen
    }
}

fn pace(text: &str) -> Result<Pace> {
    let (word, number) = text.split_once(':').unwrap_or((text, ""));
    match word {
        "fast" => Ok(Pace::Fast),
        "never" => Ok(Pace::Never),
        "rate" => {
            match number.parse().context("rate:N needs a number of connections per second")? {
                rate if rate > 0.0 && rate <= 1e6 => Ok(Pace::PerSecond(rate)),
                _ => bail!("a rate is above 0 and at most a million per second"),
            }
        }
        "bursts" => {
            let pause = number.parse().context("bursts:MS needs a number of milliseconds")?;
            Ok(Pace::Bursts(Duration::from_millis(pause)))
        }
        _ => bail!("a pace is fast, never, rate:N or bursts:MS"),
    }
}
