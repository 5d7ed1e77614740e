//! The command line: flags in the style of Prometheus exporters; each flag is also an environment
//! variable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use regex::Regex;

use crate::remote::Url;
use crate::sampler::Config;
use crate::state::{self, Filter};

/// Prefixes that the path of the metrics must not have.
const KEPT_PATHS: [(&str, &str); 4] = [
    ("/-/", "health checks"),
    ("/api/", "the JSON"),
    ("/runbooks/", "the runbooks"),
    ("/static/", "the page"),
];

/// Prometheus exporter for Linux listen queues: for every listening socket, how many connections wait to be
/// accepted, how many may, and how many the kernel refused.
///
/// Without a command it serves. Every flag is also an environment variable: --sample.interval is
/// LISTENQ_SAMPLE_INTERVAL. Exit status: 0 done, 1 something failed, 64 wrong usage (check: see there).
#[derive(Clone, Debug, Parser)]
#[command(name = "listenq", version = crate::LONG_VERSION, args_conflicts_with_subcommands = false)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Flags of every command.
    #[command(flatten)]
    pub sampling: Sampling,

    /// Where the daemon of this machine is asked.
    #[command(flatten)]
    pub control: Control,

    /// Flags of the log.
    #[command(flatten)]
    pub log: Log,

    /// Flags for serving.
    #[command(flatten)]
    pub web: Web,
}

/// What to do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Take one sample, print it in the Prometheus text format and end: for a textfile collector. Counters
    /// that need watching over time are 0.
    Metrics,
    /// Print a table of the listeners, those in trouble first, then the fullest: what the daemon knows, else one sample.
    List {
        /// Only these listeners, named as for explain.
        #[arg(value_name = "LISTENER")]
        target: Option<String>,
        /// Print JSON: an array of objects, null for what is not known.
        #[arg(long)]
        json: bool,
        /// Print the table again every two seconds, until Ctrl-C. The order changes at most every ten seconds.
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// Whom to ask.
        #[command(flatten)]
        ask: Ask,
    },
    /// Say in plain English what is going on with a listener and why, what to do about it, and what not.
    Explain {
        /// The listener: ADDRESS:PORT, PORT, a Unix socket's path, the end of it or @NAME; NETNS/ may stand before it. Or its
        /// owner: a process, unit, pod (NAMESPACE/POD) or container (its name in the pod, or its id from 12 digits on).
        /// Without it, the listener most in trouble.
        #[arg(value_name = "LISTENER")]
        target: Option<String>,
        /// Print JSON: an object for each listener, null for what is not known.
        #[arg(long)]
        json: bool,
        /// Whom to ask, and how long to watch.
        #[command(flatten)]
        watch: Watch,
    },
    /// Print a line for each listener in trouble and end with the exit status of a Nagios plugin: 0 none, 1 warning, 2
    /// critical, 3 not known or wrong usage.
    Check {
        /// Only these listeners, named as for explain.
        #[arg(value_name = "LISTENER")]
        target: Option<String>,
        /// Whom to ask, and how long to watch.
        #[command(flatten)]
        watch: Watch,
    },
    /// Read a file for --web.config.file and everything it names, and say what is wrong with it, if anything is.
    CheckWebConfig {
        /// The file.
        file: PathBuf,
    },
}

/// Whom to ask.
#[derive(Clone, Debug, Args)]
pub struct Ask {
    /// Ask the daemon at this URL, over http or https; `none` asks no daemon and samples. Without it, the daemon of this
    /// machine is asked over --control.socket, and without a daemon there, listenq samples. User and password are written
    /// as in https://USER:PASSWORD@HOST:PORT, percent-encoded.
    #[arg(long = "url", env = "LISTENQ_URL", value_name = "URL", value_parser = daemon)]
    pub url: Option<Daemon>,

    /// Certificates in PEM to trust for https in --url, instead of those of the system.
    #[arg(long = "tls.ca-file", env = "LISTENQ_TLS_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// Where the daemon of this machine is asked.
#[derive(Clone, Debug, Args)]
pub struct Control {
    /// The Unix socket over which list, explain and check ask the daemon of this machine; the daemon makes it. `none`
    /// switches it off.
    #[arg(
        long = "control.socket",
        env = "LISTENQ_CONTROL_SOCKET",
        value_name = "PATH",
        default_value = crate::control::DEFAULT_PATH,
        global = true
    )]
    pub socket: PathBuf,
}

/// Which daemon to ask, and how long to sample if no daemon answers.
#[derive(Clone, Debug, Args)]
pub struct Watch {
    /// Whom to ask.
    #[command(flatten)]
    pub ask: Ask,

    /// How long to watch where no daemon answers. A diagnosis needs ten seconds; 1s to 1h.
    #[arg(long = "for", env = "LISTENQ_FOR", value_name = "DURATION", default_value = "12s", value_parser = watch_time)]
    pub duration: Duration,
}

/// A daemon to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// The daemon at this URL.
    At(Url),
    /// No daemon.
    Never,
}

/// How to sample.
#[derive(Clone, Debug, Args)]
pub struct Sampling {
    /// Where procfs is mounted.
    #[arg(
        long = "path.procfs",
        env = "LISTENQ_PATH_PROCFS",
        value_name = "DIRECTORY",
        default_value = "/proc",
        global = true
    )]
    pub procfs: PathBuf,

    /// Where the root of the machine is; below it are cgroupfs, the mounts of network namespaces and the logs of
    /// the kubelet.
    #[arg(
        long = "path.rootfs",
        env = "LISTENQ_PATH_ROOTFS",
        value_name = "DIRECTORY",
        default_value = "/",
        global = true
    )]
    pub rootfs: PathBuf,

    /// Which network namespaces to sample: every one of the machine, or only the own.
    #[arg(
        long = "netns",
        env = "LISTENQ_NETNS",
        value_name = "WHICH",
        default_value = "all",
        global = true
    )]
    pub netns: Netns,

    /// How often to look for new network namespaces. 1s to 10s: an ended one is held no longer.
    #[arg(long = "discovery.interval", env = "LISTENQ_DISCOVERY_INTERVAL", value_name = "DURATION", default_value = "5s", value_parser = discovery_interval, global = true)]
    pub discovery_interval: Duration,

    /// Only listeners whose netns/protocol/address:port matches this regular expression have series. Not anchored.
    #[arg(
        long = "listener.include",
        env = "LISTENQ_LISTENER_INCLUDE",
        value_name = "REGEX", value_parser = regex,
        global = true
    )]
    pub include: Option<Regex>,

    /// Listeners whose netns/protocol/address:port matches this regular expression have none. Not anchored.
    #[arg(
        long = "listener.exclude",
        env = "LISTENQ_LISTENER_EXCLUDE",
        value_name = "REGEX", value_parser = regex,
        global = true
    )]
    pub exclude: Option<Regex>,

    /// How many listeners may have series when serving: the busiest and the fullest stay, the rest are counted.
    #[arg(
        long = "listener.max",
        env = "LISTENQ_LISTENER_MAX",
        value_name = "COUNT",
        default_value = "1000",
        value_parser = whole_number,
        global = true
    )]
    pub max: usize,

    /// How many network namespaces may have series when serving: those in trouble first, the rest are counted. At
    /// least 1; listenq's own always has.
    #[arg(
        long = "netns.max",
        env = "LISTENQ_NETNS_MAX",
        value_name = "COUNT",
        default_value = "512",
        value_parser = positive_number,
        global = true
    )]
    pub max_namespaces: usize,

    /// How many listen sockets are tracked when serving: those with a queue or drops first, then fairly between users,
    /// services and namespaces; the rest are counted. At least 1.
    #[arg(
        long = "sockets.max",
        env = "LISTENQ_SOCKETS_MAX",
        value_name = "COUNT",
        default_value = "20000",
        value_parser = positive_number,
        global = true
    )]
    pub max_sockets: usize,

    /// Mean time between two samples; each gap varies by up to half, so that nothing periodic is seen in
    /// phase. 10ms to 5s.
    #[arg(long = "sample.interval", env = "LISTENQ_SAMPLE_INTERVAL", value_name = "DURATION", default_value = "100ms", value_parser = sample_interval, global = true)]
    pub interval: Duration,

    /// Share of one core that sampling may use; when samples cost more, the interval stretches by itself.
    #[arg(long = "sample.cpu-budget", env = "LISTENQ_SAMPLE_CPU_BUDGET", value_name = "SHARE", default_value = "0.02", value_parser = share, global = true)]
    pub cpu_budget: f64,

    /// How long the largest length is remembered: longer than two scrapes. 1s to 24h.
    #[arg(long = "peak-window", env = "LISTENQ_PEAK_WINDOW", value_name = "DURATION", default_value = "150s", value_parser = peak_window, global = true)]
    pub peak_window: Duration,

    /// Mean time between two connection scans of a network namespace with a queue; every second while one is nearly
    /// full. Scans never use more than 1 % of a core. 1s to 1h.
    #[arg(long = "scan.interval", env = "LISTENQ_SCAN_INTERVAL", value_name = "DURATION", default_value = "5s", value_parser = scan_interval, global = true)]
    pub scan_interval: Duration,

    /// How long clients wait before they give up, where that cannot be measured: the largest useful limit follows from it.
    /// 10ms to 24h.
    #[arg(long = "client-patience", env = "LISTENQ_CLIENT_PATIENCE", value_name = "DURATION", default_value = "60s", value_parser = client_patience, global = true)]
    pub client_patience: Duration,

    /// Longest wait of the first client of a queue that is not yet trouble: a queue that is never empty and whose first
    /// client always waits for longer is a standing_queue. 100ms to 1h.
    #[arg(long = "standing-wait", env = "LISTENQ_STANDING_WAIT", value_name = "DURATION", default_value = "1s", value_parser = standing_wait, global = true)]
    pub standing_wait: Duration,

    /// Whether to show which client addresses have the most waiting and half-open connections: `authenticated` shows them over
    /// the control socket, and over HTTP to users of --web.config.file; `never` does not count them. They are never labels.
    #[arg(
        long = "scan.client-addresses",
        env = "LISTENQ_SCAN_CLIENT_ADDRESSES",
        value_name = "TO",
        default_value = "authenticated",
        global = true
    )]
    pub client_addresses: ClientAddresses,
}

/// What is logged, on standard error, and how.
#[derive(Clone, Copy, Debug, Args)]
pub struct Log {
    /// Log what is at least so important. `list`, `explain` and `check` log nothing unless the level is given.
    #[arg(
        long = "log.level",
        env = "LISTENQ_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        global = true
    )]
    pub level: LogLevel,

    /// The shape of a log line.
    #[arg(
        long = "log.format",
        env = "LISTENQ_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "logfmt",
        global = true
    )]
    pub format: LogFormat,
}

/// What is served where.
#[derive(Clone, Debug, Args)]
pub struct Web {
    /// Address to listen on; `:19511` is every address of both families. Repeatable.
    #[arg(long = "web.listen-address", env = "LISTENQ_WEB_LISTEN_ADDRESS", value_name = "ADDRESS", default_value = ":19511", value_parser = listen_address, value_delimiter = ',')]
    pub listen_addresses: Vec<SocketAddr>,

    /// Serve on the sockets that systemd hands over, and on no address of --web.listen-address.
    #[arg(long = "web.systemd-socket", env = "LISTENQ_WEB_SYSTEMD_SOCKET")]
    pub systemd_socket: bool,

    /// Path under which the metrics are served.
    #[arg(long = "web.telemetry-path", env = "LISTENQ_WEB_TELEMETRY_PATH", value_name = "PATH", default_value = "/metrics", value_parser = telemetry_path)]
    pub telemetry_path: String,

    /// Host name under which the page and the JSON may be asked for, besides IP addresses, localhost and the names of this
    /// machine. Metrics and health checks are answered under any name. Repeatable.
    #[arg(
        long = "web.allowed-host",
        env = "LISTENQ_WEB_ALLOWED_HOST",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub allowed_hosts: Vec<String>,

    /// File that says how to secure the endpoint: TLS, users, headers and a rate limit, in the format of
    /// Prometheus' exporter-toolkit. Read again when it changes.
    #[arg(long = "web.config.file", env = "LISTENQ_WEB_CONFIG_FILE", value_name = "FILE")]
    pub config_file: Option<PathBuf>,
}

/// Which network namespaces to sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Netns {
    /// Every one of the machine.
    All,
    /// Only the one listenq is in.
    Own,
}

/// Who is shown the addresses of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClientAddresses {
    /// Users of the control socket, and authenticated users of HTTP.
    Authenticated,
    /// No user: the addresses are not counted.
    Never,
}

/// How important a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What helps to find a fault in listenq.
    Debug,
    /// What happens in the ordinary course.
    Info,
    /// What costs a feature or a number.
    Warn,
    /// What ends listenq or a request.
    Error,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `key=value` pairs.
    Logfmt,
    /// One JSON object.
    Json,
}

// === impl Control ===

impl Control {
    /// The path, unless the socket is disabled.
    pub fn path(&self) -> Option<&Path> {
        Some(self.socket.as_path()).filter(|path| *path != Path::new("none"))
    }
}

// === impl Sampling ===

impl Sampling {
    /// The sampler's configuration.
    pub fn config(&self) -> Config {
        Config {
            procfs: self.procfs.clone(),
            rootfs: self.rootfs.clone(),
            all_namespaces: self.netns == Netns::All,
            discovery_interval: self.discovery_interval,
            interval: self.interval,
            cpu_budget: self.cpu_budget,
            scan_interval: self.scan_interval,
            state: state::Config {
                peak_window: self.peak_window,
                client_patience: self.client_patience,
                standing_wait: self.standing_wait,
                names_clients: self.client_addresses == ClientAddresses::Authenticated,
                filter: Filter { include: self.include.clone(), exclude: self.exclude.clone() },
                max_listeners: self.max,
                max_namespaces: self.max_namespaces,
                max_sockets: self.max_sockets,
            },
        }
    }
}

fn sample_interval(text: &str) -> Result<Duration, String> {
    duration_between(text, "10ms", "5s")
}

/// Parses a regular expression. The last line of the parser's error contains the reason.
fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| {
        let error = error.to_string();
        error.lines().last().unwrap_or_default().trim_start_matches("error: ").into()
    })
}

fn discovery_interval(text: &str) -> Result<Duration, String> {
    duration_between(text, "1s", "10s")
}

fn scan_interval(text: &str) -> Result<Duration, String> {
    duration_between(text, "1s", "1h")
}

fn standing_wait(text: &str) -> Result<Duration, String> {
    duration_between(text, "100ms", "1h")
}

fn client_patience(text: &str) -> Result<Duration, String> {
    duration_between(text, "10ms", "24h")
}

fn watch_time(text: &str) -> Result<Duration, String> {
    duration_between(text, "1s", "1h")
}

fn daemon(text: &str) -> Result<Daemon, String> {
    match text {
        "none" => Ok(Daemon::Never),
        url => url.parse().map(Daemon::At),
    }
}

fn peak_window(text: &str) -> Result<Duration, String> {
    duration_between(text, "1s", "24h")
}

fn duration_between(text: &str, least: &str, most: &str) -> Result<Duration, String> {
    let parse = |text| {
        humantime::parse_duration(text).map_err(|error| format!("{error}, as in 100ms or 5s"))
    };
    let (duration, low, high) = (parse(text)?, parse(least)?, parse(most)?);
    match (low..=high).contains(&duration) {
        true => Ok(duration),
        false => Err(format!("not between {least} and {most}")),
    }
}

fn positive_number(text: &str) -> Result<usize, String> {
    match whole_number(text)? {
        0 => Err("not 1 or more".into()),
        number => Ok(number),
    }
}

fn whole_number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "not a whole number".into())
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("not a number above 0 and up to 1".into()),
    }
}

/// Parses a listen address. As in Go, an address without a host means every address of both
/// families.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().map_err(|_| format!("{port:?} is not a port"))?;
        return Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port));
    }
    // Go accepts brackets around either family, so that one template fits both.
    let bare = text.strip_prefix('[').and_then(|text| text.split_once("]:"));
    let v4 =
        bare.and_then(|(host, port)| Some((host.parse::<Ipv4Addr>().ok()?, port.parse().ok()?)));
    if let Some(address) = v4 {
        return Ok(address.into());
    }
    text.parse().map_err(|_| "not :PORT, IPv4:PORT or [IPv6]:PORT (names are not looked up)".into())
}

fn telemetry_path(text: &str) -> Result<String, String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    if !text.starts_with('/') || !text.bytes().all(is_plain) {
        return Err("not a path of letters, digits and /-._~ that begins with /".into());
    }
    match KEPT_PATHS.iter().find(|(kept, _)| text.starts_with(kept)) {
        Some((kept, what)) => Err(format!("{kept} is kept for {what}")),
        None => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, String> {
        let all = ["listenq"].into_iter().chain(args.iter().copied());
        Cli::try_parse_from(all).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_need_no_flag() {
        let cli = parse(&[]).unwrap();
        assert_eq!(cli.web.listen_addresses, ["[::]:19511".parse().unwrap()]);
        assert_eq!(cli.web.telemetry_path, "/metrics");
        assert_eq!(cli.sampling.interval, Duration::from_millis(100));
        assert_eq!(cli.sampling.peak_window, Duration::from_secs(150));
    }

    #[test]
    fn netns_is_all_or_own() {
        let netns = |value| parse(&["--netns", value]).map(|cli| cli.sampling.netns);
        assert_eq!(netns("all"), Ok(Netns::All));
        assert_eq!(netns("own"), Ok(Netns::Own));
        assert!(netns("other").is_err());
    }

    #[test]
    fn an_address_of_either_family_may_stand_in_brackets() {
        let addresses =
            |text| parse(&["--web.listen-address", text]).map(|cli| cli.web.listen_addresses);
        let expected = ["192.0.2.7:1", "[2001:db8::7]:2"].map(|text| text.parse().unwrap());
        assert_eq!(addresses("[192.0.2.7]:1,[2001:db8::7]:2").unwrap(), expected);
        for bad in ["[192.0.2.7]", "[192.0.2.7]:", "[192.0.2.7]:70000", "[192.0.2]:1"] {
            assert!(addresses(bad).unwrap_err().contains("names are not looked up"), "{bad}");
        }
    }

    #[test]
    fn every_flag_has_its_environment_variable() {
        let command = Cli::command();
        let of_commands = command.get_subcommands().flat_map(|command| command.get_arguments());
        let is_env = |arg: &&clap::Arg| arg.get_env().is_some();
        for arg in command.get_arguments().chain(of_commands.filter(is_env)) {
            if let (Some(long), Some(env)) = (arg.get_long(), arg.get_env()) {
                let expected = format!("LISTENQ_{}", long.replace(['.', '-'], "_").to_uppercase());
                assert_eq!(env.to_str(), Some(expected.as_str()));
            } else {
                assert!(arg.get_long().is_none_or(|long| long == "help" || long == "version"));
            }
        }
    }

    #[test]
    fn bad_values_are_named_with_their_flag() {
        for (args, expected) in [
            (["--sample.interval", "fast"], "--sample.interval"),
            (["--sample.interval", "1ms"], "not between 10ms and 5s"),
            (["--sample.cpu-budget", "0"], "not a number above 0"),
            (["--web.listen-address", ":notaport"], "\"notaport\" is not a port"),
            (["--web.listen-address", "localhost:80"], "names are not looked up"),
            (["--web.telemetry-path", "metrics"], "begins with /"),
            (["--web.telemetry-path", "/-/healthy"], "kept for health checks"),
            (["--web.telemetry-path", "/runbooks/"], "kept for the runbooks"),
            (["--web.telemetry-path", "/api/metrics"], "kept for the JSON"),
            (["--web.telemetry-path", "/{a}"], "not a path"),
            (["--listener.include", "a("], "unclosed group"),
            (["--listener.max", "x"], "not a whole number"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(expected), "{args:?}: {error}");
            assert!(error.contains(args[1]), "{args:?}: {error}");
        }
    }
}
