//! The command line: flags in the style of Prometheus exporters; each flag is also an environment
//! variable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
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

/// Prometheus exporter for Linux listen queues: for every listening socket, how many connections
/// wait to be accepted, how many may wait, and how many the kernel refused.
///
/// Without a command, listenq serves. Every flag is also an environment variable: --sample.interval
/// is LISTENQ_SAMPLE_INTERVAL. Exit status: 0 success, 1 failure, 64 wrong usage; `check` has its
/// own.
#[derive(Clone, Debug, Parser)]
#[command(name = "listenq", version = crate::LONG_VERSION, args_conflicts_with_subcommands = false)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Flags of sampling, for every command.
    #[command(flatten)]
    pub sampling: Sampling,

    /// The control socket of the daemon.
    #[command(flatten)]
    pub control: Control,

    /// Flags of the log.
    #[command(flatten)]
    pub log: Log,

    /// Flags for serving.
    #[command(flatten)]
    pub web: Web,
}

/// The command.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Take one sample and print it in the Prometheus text format, for the textfile collector of
    /// node_exporter. Counters that grow over several samples are 0.
    Metrics,
    /// Print a table of the listeners, those in trouble first, then the fullest. Asks the daemon;
    /// without one, takes a sample.
    List {
        /// Only these listeners, named as for explain.
        #[arg(value_name = "LISTENER")]
        target: Option<String>,
        /// Print JSON: an array of objects, null for what is not known.
        #[arg(long)]
        json: bool,
        /// Print the table again every two seconds, until Ctrl-C. The order changes at most every
        /// ten seconds.
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// The daemon to ask.
        #[command(flatten)]
        ask: Ask,
    },
    /// Explain in plain English what is wrong with a listener, why, and what to do about it.
    Explain {
        /// The listener: ADDRESS:PORT, PORT, the path of a Unix socket, the end of that path or
        /// @NAME, each optionally after NETNS/. Or its owner: a process, unit, pod (NAMESPACE/POD)
        /// or container (its name in the pod, or at least 12 digits of its id). By default, the
        /// listener with the most severe diagnosis.
        #[arg(value_name = "LISTENER")]
        target: Option<String>,
        /// Print JSON: an object for each listener, null for what is not known.
        #[arg(long)]
        json: bool,
        /// The daemon to ask, and the time to sample.
        #[command(flatten)]
        watch: Watch,
    },
    /// Print a line for each listener in trouble, and end with the exit status of a Nagios plugin:
    /// 0 ok, 1 warning, 2 critical, 3 unknown or wrong usage.
    Check {
        /// Only these listeners, named as for explain.
        #[arg(value_name = "LISTENER")]
        target: Option<String>,
        /// The daemon to ask, and the time to sample.
        #[command(flatten)]
        watch: Watch,
    },
    /// Check a file for --web.config.file and every file it refers to.
    CheckWebConfig {
        /// The file.
        file: PathBuf,
    },
}

/// The daemon to ask.
#[derive(Clone, Debug, Args)]
pub struct Ask {
    /// Ask the daemon at this http or https URL; with `none`, ask no daemon and sample. By default,
    /// listenq asks the daemon of this machine over --control.socket, and samples if there is no
    /// daemon. User and password are written as in https://USER:PASSWORD@HOST:PORT,
    /// percent-encoded.
    #[arg(long = "url", env = "LISTENQ_URL", value_name = "URL", value_parser = daemon)]
    pub url: Option<Daemon>,

    /// File of PEM certificates to trust for https in --url, instead of the certificates of the
    /// system.
    #[arg(long = "tls.ca-file", env = "LISTENQ_TLS_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// The control socket of the daemon.
#[derive(Clone, Debug, Args)]
pub struct Control {
    /// Unix socket over which list, explain and check ask the daemon of this machine. The daemon
    /// creates it. `none` disables it.
    #[arg(
        long = "control.socket",
        env = "LISTENQ_CONTROL_SOCKET",
        value_name = "PATH",
        default_value = crate::control::DEFAULT_PATH,
        global = true
    )]
    pub socket: PathBuf,
}

/// The daemon to ask, and the time to sample if no daemon answers.
#[derive(Clone, Debug, Args)]
pub struct Watch {
    /// The daemon to ask.
    #[command(flatten)]
    pub ask: Ask,

    /// Time to sample if no daemon answers; a diagnosis takes ten seconds. 1s to 1h.
    #[arg(
        long = "for",
        env = "LISTENQ_FOR",
        value_name = "DURATION",
        default_value = "12s",
        value_parser = duration("1s", "1h")
    )]
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

/// Flags of sampling.
#[derive(Clone, Debug, Args)]
pub struct Sampling {
    /// Mount point of procfs.
    #[arg(
        long = "path.procfs",
        env = "LISTENQ_PATH_PROCFS",
        value_name = "DIRECTORY",
        default_value = defaults().procfs.display().to_string(),
        global = true
    )]
    pub procfs: PathBuf,

    /// Root directory of the machine: cgroupfs, the mounts of network namespaces and the logs of
    /// the kubelet are below it.
    #[arg(
        long = "path.rootfs",
        env = "LISTENQ_PATH_ROOTFS",
        value_name = "DIRECTORY",
        default_value = defaults().rootfs.display().to_string(),
        global = true
    )]
    pub rootfs: PathBuf,

    /// Network namespaces to sample: those of the whole machine, or only the namespace of listenq.
    #[arg(
        long = "netns",
        env = "LISTENQ_NETNS",
        value_name = "WHICH",
        default_value = if defaults().all_namespaces { "all" } else { "own" },
        global = true
    )]
    pub netns: Netns,

    /// Time between two searches for new network namespaces. An ended namespace is kept alive for
    /// no longer. 1s to 10s.
    #[arg(
        long = "discovery.interval",
        env = "LISTENQ_DISCOVERY_INTERVAL",
        value_name = "DURATION",
        default_value = text_of(defaults().discovery_interval),
        value_parser = duration("1s", "10s"),
        global = true
    )]
    pub discovery_interval: Duration,

    /// Export only listeners whose netns/protocol/address:port matches this regular expression. Not
    /// anchored.
    #[arg(
        long = "listener.include",
        env = "LISTENQ_LISTENER_INCLUDE",
        value_name = "REGEX", value_parser = regex,
        global = true
    )]
    pub include: Option<Regex>,

    /// Do not export listeners whose netns/protocol/address:port matches this regular expression.
    /// Not anchored.
    #[arg(
        long = "listener.exclude",
        env = "LISTENQ_LISTENER_EXCLUDE",
        value_name = "REGEX", value_parser = regex,
        global = true
    )]
    pub exclude: Option<Regex>,

    /// Largest number of listeners with series when serving: the busiest and the fullest keep
    /// theirs, the others are only counted.
    #[arg(
        long = "listener.max",
        env = "LISTENQ_LISTENER_MAX",
        value_name = "COUNT",
        default_value = defaults().state.max_listeners.to_string(),
        global = true
    )]
    pub max: usize,

    /// Largest number of network namespaces with series when serving: those in trouble come first,
    /// the others are only counted. At least 1; the namespace of listenq always has series.
    #[arg(
        long = "netns.max",
        env = "LISTENQ_NETNS_MAX",
        value_name = "COUNT",
        default_value = defaults().state.max_namespaces.to_string(),
        value_parser = RangedU64ValueParser::<usize>::new().range(1..),
        global = true
    )]
    pub max_namespaces: usize,

    /// Largest number of listen sockets that are tracked when serving: those with a queue or drops
    /// come first, then users, services and namespaces in turn; the others are only counted. At
    /// least 1.
    #[arg(
        long = "sockets.max",
        env = "LISTENQ_SOCKETS_MAX",
        value_name = "COUNT",
        default_value = defaults().state.max_sockets.to_string(),
        value_parser = RangedU64ValueParser::<usize>::new().range(1..),
        global = true
    )]
    pub max_sockets: usize,

    /// Mean time between two samples. Each gap varies by up to half, so that samples do not stay in
    /// step with periodic events. 10ms to 5s.
    #[arg(
        long = "sample.interval",
        env = "LISTENQ_SAMPLE_INTERVAL",
        value_name = "DURATION",
        default_value = text_of(defaults().interval),
        value_parser = duration("10ms", "5s"),
        global = true
    )]
    pub interval: Duration,

    /// Share of one core that sampling may use. When samples cost more, the interval grows.
    #[arg(
        long = "sample.cpu-budget",
        env = "LISTENQ_SAMPLE_CPU_BUDGET",
        value_name = "SHARE",
        default_value = defaults().cpu_budget.to_string(),
        value_parser = share,
        global = true
    )]
    pub cpu_budget: f64,

    /// Time for which the peak length is kept; choose more than two scrape intervals. 1s to 24h.
    #[arg(
        long = "peak-window",
        env = "LISTENQ_PEAK_WINDOW",
        value_name = "DURATION",
        default_value = text_of(defaults().state.peak_window),
        value_parser = duration("1s", "24h"),
        global = true
    )]
    pub peak_window: Duration,

    /// Mean time between two connection scans of a network namespace with a queue; every second
    /// while one is nearly full. Scans never use more than 1 % of a core. 1s to 1h.
    #[arg(
        long = "scan.interval",
        env = "LISTENQ_SCAN_INTERVAL",
        value_name = "DURATION",
        default_value = text_of(defaults().scan_interval),
        value_parser = duration("1s", "1h"),
        global = true
    )]
    pub scan_interval: Duration,

    /// Time after which clients give up, used where it cannot be measured. The largest useful limit
    /// follows from it. 10ms to 24h.
    #[arg(
        long = "client-patience",
        env = "LISTENQ_CLIENT_PATIENCE",
        value_name = "DURATION",
        default_value = text_of(defaults().state.client_patience),
        value_parser = duration("10ms", "24h"),
        global = true
    )]
    pub client_patience: Duration,

    /// Longest wait of the first client of a queue that is not yet trouble: a queue that is never
    /// empty and whose first client always waits for longer is a standing_queue. 100ms to 1h.
    #[arg(
        long = "standing-wait",
        env = "LISTENQ_STANDING_WAIT",
        value_name = "DURATION",
        default_value = text_of(defaults().state.standing_wait),
        value_parser = duration("100ms", "1h"),
        global = true
    )]
    pub standing_wait: Duration,

    /// Whether to show the client addresses with the most waiting and half-open connections:
    /// `authenticated` shows them over the control socket, and over HTTP to users of
    /// --web.config.file; `never` does not count them. They are never labels.
    #[arg(
        long = "scan.client-addresses",
        env = "LISTENQ_SCAN_CLIENT_ADDRESSES",
        value_name = "TO",
        default_value = "authenticated",
        global = true
    )]
    pub client_addresses: ClientAddresses,
}

/// Flags of the log, which goes to standard error.
#[derive(Clone, Copy, Debug, Args)]
pub struct Log {
    /// Lowest level to log. `list`, `explain` and `check` log nothing unless the flag is given.
    #[arg(
        long = "log.level",
        env = "LISTENQ_LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        global = true
    )]
    pub level: LogLevel,

    /// Format of the log.
    #[arg(
        long = "log.format",
        env = "LISTENQ_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "logfmt",
        global = true
    )]
    pub format: LogFormat,
}

/// Flags of the HTTP server.
#[derive(Clone, Debug, Args)]
pub struct Web {
    /// Address to listen on; `:19511` is every address of both families. Repeatable.
    #[arg(
        long = "web.listen-address",
        env = "LISTENQ_WEB_LISTEN_ADDRESS",
        value_name = "ADDRESS",
        default_value = ":19511",
        value_parser = listen_address,
        value_delimiter = ','
    )]
    pub listen_addresses: Vec<SocketAddr>,

    /// Serve on the sockets that systemd passes (socket activation) instead of
    /// --web.listen-address.
    #[arg(long = "web.systemd-socket", env = "LISTENQ_WEB_SYSTEMD_SOCKET")]
    pub systemd_socket: bool,

    /// Path under which the metrics are served.
    #[arg(
        long = "web.telemetry-path",
        env = "LISTENQ_WEB_TELEMETRY_PATH",
        value_name = "PATH",
        default_value = "/metrics",
        value_parser = telemetry_path
    )]
    pub telemetry_path: String,

    /// Additional Host header for which the page and the JSON are served. IP addresses, localhost
    /// and the names of this machine are always allowed; metrics and health checks are served for
    /// any name. Repeatable.
    #[arg(
        long = "web.allowed-host",
        env = "LISTENQ_WEB_ALLOWED_HOST",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub allowed_hosts: Vec<String>,

    /// File with TLS, users, headers and a rate limit for the endpoint, in the format of
    /// Prometheus' exporter-toolkit. listenq reloads it when it changes.
    #[arg(long = "web.config.file", env = "LISTENQ_WEB_CONFIG_FILE", value_name = "FILE")]
    pub config_file: Option<PathBuf>,
}

/// The network namespaces to sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Netns {
    /// All network namespaces of the machine.
    All,
    /// Only the namespace of listenq.
    Own,
}

/// The users who may see the addresses of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ClientAddresses {
    /// Users of the control socket, and authenticated users of HTTP.
    Authenticated,
    /// No user: the addresses are not counted.
    Never,
}

/// The level of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Details that help to find a fault in listenq.
    Debug,
    /// Ordinary events, such as the start and the end of an incident.
    Info,
    /// Events that make a feature or a number unavailable.
    Warn,
    /// Errors that end listenq or a request.
    Error,
}

/// The format of the log.
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

/// The configuration without flags: the defaults of the flags.
fn defaults() -> Config {
    Config::default()
}

/// Formats a duration as the flags take it.
fn text_of(duration: Duration) -> String {
    format!("{duration:?}")
}

/// Parses a regular expression. The last line of the parser's error contains the reason.
fn regex(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|error| {
        let error = error.to_string();
        error.lines().last().unwrap_or_default().trim_start_matches("error: ").into()
    })
}

fn daemon(text: &str) -> Result<Daemon, String> {
    match text {
        "none" => Ok(Daemon::Never),
        url => url.parse().map(Daemon::At),
    }
}

/// Creates a parser of durations from `least` to `most`.
fn duration(
    least: &'static str,
    most: &'static str,
) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    let parse = |text: &str| {
        humantime::parse_duration(text).map_err(|error| format!("{error}, as in 100ms or 5s"))
    };
    move |text| {
        let given = parse(text)?;
        match (parse(least)?..=parse(most)?).contains(&given) {
            true => Ok(given),
            false => Err(format!("not between {least} and {most}")),
        }
    }
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
        let config = cli.sampling.config();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
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
            (["--listener.max", "x"], "invalid digit"),
            (["--netns.max", "0"], "0 is not in 1.."),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(expected), "{args:?}: {error}");
            assert!(error.contains(args[1]), "{args:?}: {error}");
        }
    }
}
