//! The table of servers whose backlog setting listenq knows: the directive, its default, when a
//! change takes effect, and what makes the server accept faster.

/// A server that listenq recognizes by its process name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Names (`comm`, at most 15 bytes) of the process; a name that ends with `*` is a prefix.
    pub processes: &'static [&'static str],
    /// The server's usual name.
    pub name: &'static str,
    /// Whether the process may be another server: an interpreter runs many servers.
    pub is_a_guess: bool,
    /// The source of the backlog.
    pub backlog: Backlog,
    /// When a change of the backlog takes effect.
    pub effect: Effect,
    /// The change that increases the number of connections accepted per second.
    pub capacity: Capacity,
    /// The meaning of a limit of 0, if the server sets 0 by itself.
    pub at_limit_zero: Option<LimitZero>,
}

/// The source of the argument of `listen(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backlog {
    /// A directive, written as in the server's configuration, with `N` for the number.
    Directive {
        text: &'static str,
        /// The file or other location of the directive.
        place: &'static str,
        /// The backlog without the directive.
        default: &'static str,
    },
    /// A value derived from other settings of the server.
    Derived {
        /// The rule, as the rest of "the backlog of … is …".
        rule: &'static str,
        /// The action to take instead of a change of these settings, in the imperative.
        remedy: &'static str,
    },
    /// All that `net.core.somaxconn` allows when the server starts.
    Somaxconn,
    /// A constant in the server's source.
    Fixed(u32),
}

/// The action after which a server calls `listen(2)` again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A restart. A reload does not exist or is not known to be enough.
    Restart,
    /// Only a restart: a reload keeps the socket and its limit.
    RestartOnly,
    /// This command, each time it runs.
    Reload(&'static str),
    /// This command, but only if the number in the configuration changed; otherwise a restart.
    ReloadWhenChanged(&'static str),
    /// A stop and a start: a restart ends the server if the bind address changed.
    StopAndStart(&'static str),
    /// These commands, instead of a restart.
    Commands(&'static str),
    /// A restart of the socket unit.
    SocketUnit,
}

/// The change that makes a server accept faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// More workers: a connection waits until a worker is free. The text is the setting for the
    /// number of workers.
    Workers(&'static str),
    /// Less work in the event loop, or more event loops: one thread accepts and runs the requests.
    EventLoop(&'static str),
    /// Anything else: requests do not keep the server from accepting.
    Loop(&'static str),
}

/// A reason for which a server calls `listen(2)` with 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitZero {
    /// The reason, as the rest of "… set the limit to 0 because …".
    pub reason: &'static str,
    /// The steps, as sentences.
    pub steps: &'static [&'static str],
}

const fn directive(text: &'static str, place: &'static str, default: &'static str) -> Backlog {
    Backlog::Directive { text, place, default }
}

/// The default values of a row.
const KNOWN: Server = Server {
    processes: &[],
    name: "",
    is_a_guess: false,
    backlog: Backlog::Somaxconn,
    effect: Effect::Restart,
    capacity: Capacity::Loop("more processor time"),
    at_limit_zero: None,
};

const PUMA: Server = Server {
    name: "Puma",
    backlog: directive("bind 'tcp://ADDRESS:PORT?backlog=N'", "config/puma.rb", "1024"),
    effect: Effect::StopAndStart("a hot restart, SIGUSR2 or `pumactl restart`"),
    capacity: Capacity::Workers("`workers` and `threads` in config/puma.rb"),
    ..KNOWN
};

/// Every server known to listenq. tests/servers starts the servers packaged by Debian and compares
/// their limits; defaults and reloads of the others (Envoy, MongoDB, Kestrel, RabbitMQ) are from
/// their documentation.
pub const SERVERS: &[Server] = &[
    Server {
        processes: &["nginx", "openresty"],
        name: "nginx",
        backlog: directive("listen ADDRESS:PORT backlog=N;", "nginx.conf", "511"),
        effect: Effect::ReloadWhenChanged("nginx -s reload"),
        capacity: Capacity::Loop("`worker_processes` and `worker_connections` in nginx.conf"),
        ..KNOWN
    },
    Server {
        processes: &["php-fpm*"],
        name: "php-fpm",
        backlog: directive(
            "listen.backlog = N",
            "the file of the pool (pool.d/*.conf)",
            "all that somaxconn allows, 511 in old versions",
        ),
        effect: Effect::RestartOnly,
        capacity: Capacity::Workers("`pm.max_children` in the file of the pool (pool.d/*.conf)"),
        ..KNOWN
    },
    Server {
        processes: &["redis-server", "valkey-server"],
        name: "Redis",
        backlog: directive("tcp-backlog N", "redis.conf", "511"),
        capacity: Capacity::EventLoop(
            "fewer slow commands (`redis-cli SLOWLOG GET`), because one thread accepts and executes",
        ),
        ..KNOWN
    },
    Server {
        processes: &["apache2", "httpd"],
        name: "Apache",
        backlog: directive("ListenBacklog N", "apache2.conf or httpd.conf", "511"),
        effect: Effect::RestartOnly,
        capacity: Capacity::Workers("`MaxRequestWorkers` in the configuration of its MPM"),
        ..KNOWN
    },
    Server {
        processes: &["haproxy"],
        name: "HAProxy",
        backlog: directive("backlog N", "the frontend in haproxy.cfg", "the frontend's maxconn"),
        effect: Effect::RestartOnly,
        capacity: Capacity::Loop("`maxconn` of the frontend and `nbthread` in haproxy.cfg"),
        ..KNOWN
    },
    Server {
        processes: &["envoy"],
        name: "Envoy",
        backlog: directive("tcp_backlog_size: N", "the listener", "all that somaxconn allows"),
        capacity: Capacity::Loop("`--concurrency`"),
        ..KNOWN
    },
    Server {
        processes: &["varnishd", "cache-main"],
        name: "Varnish",
        backlog: directive("-p listen_depth=N", "the command line of varnishd", "1024"),
        effect: Effect::Commands(
            "`varnishadm param.set listen_depth …`, then `varnishadm stop` and `varnishadm start`",
        ),
        capacity: Capacity::Loop(
            "`-p thread_pool_max=…` and `-p thread_pools=…` on its command line",
        ),
        ..KNOWN
    },
    Server {
        processes: &["lighttpd"],
        name: "lighttpd",
        backlog: directive("server.listen-backlog = N", "lighttpd.conf", "1024"),
        effect: Effect::RestartOnly,
        capacity: Capacity::Loop("`server.max-connections` and `server.max-fds` in lighttpd.conf"),
        ..KNOWN
    },
    Server {
        processes: &["squid"],
        name: "Squid",
        backlog: Backlog::Derived {
            rule: "a quarter of `max_filedescriptors` in squid.conf",
            remedy: "raise `max_filedescriptors`",
        },
        capacity: Capacity::Loop("`workers` in squid.conf"),
        ..KNOWN
    },
    Server {
        processes: &["stunnel4", "stunnel"],
        name: "stunnel",
        backlog: Backlog::Fixed(4_096),
        capacity: Capacity::Loop("less load on the machine: one thread accepts"),
        ..KNOWN
    },
    Server {
        processes: &["socat"],
        name: "socat",
        backlog: directive("backlog=N", "its address, after a comma", "5"),
        capacity: Capacity::Loop("a server in its place: it forks for each connection"),
        ..KNOWN
    },
    Server {
        processes: &["docker-proxy"],
        name: "docker-proxy",
        capacity: Capacity::Loop("the container behind it: docker-proxy only forwards connections"),
        ..KNOWN
    },
    Server {
        processes: &[
            "alertmanager",
            "prometheus-aler",
            "caddy",
            "consul",
            "containerd",
            "coredns",
            "dockerd",
            "etcd",
            "kube-apiserver",
            "kube-proxy",
            "kubelet",
            "minio",
            "nats-server",
            "node_exporter",
            "prometheus",
            "prometheus-node",
            "traefik",
            "vault",
        ],
        name: "this Go program",
        capacity: Capacity::Loop(
            "more processor time (`GOMAXPROCS`, the CPU limit of its container)",
        ),
        ..KNOWN
    },
    Server {
        processes: &["gunicorn*"],
        name: "gunicorn",
        backlog: directive(
            "--backlog N",
            "its command line (`backlog` in gunicorn.conf.py)",
            "2048",
        ),
        effect: Effect::RestartOnly,
        capacity: Capacity::Workers("`--workers` and `--threads`"),
        ..KNOWN
    },
    Server {
        processes: &["uvicorn"],
        name: "uvicorn",
        backlog: directive("--backlog N", "its command line", "2048"),
        capacity: Capacity::EventLoop("`--workers`, and less work that blocks the event loop"),
        ..KNOWN
    },
    Server {
        processes: &["uwsgi*"],
        name: "uWSGI",
        backlog: directive("listen = N", "its ini file (`--listen N`)", "100"),
        effect: Effect::RestartOnly,
        capacity: Capacity::Workers("`processes` and `threads` in its ini file"),
        ..KNOWN
    },
    Server {
        processes: &["python", "python2*", "python3*"],
        name: "Python's socketserver",
        is_a_guess: true,
        backlog: directive("request_queue_size = N", "the class of the server", "5"),
        capacity: Capacity::Workers("`ThreadingMixIn` or more processes"),
        ..KNOWN
    },
    Server { processes: &["puma*"], ..PUMA },
    Server { processes: &["ruby*"], is_a_guess: true, ..PUMA },
    Server {
        processes: &["unicorn*"],
        name: "Unicorn",
        backlog: directive("listen ADDRESS, backlog: N", "unicorn.rb", "1024"),
        effect: Effect::Reload("kill -HUP PID"),
        capacity: Capacity::Workers("`worker_processes` in unicorn.rb"),
        ..KNOWN
    },
    Server {
        processes: &["node", "node-MainThread"],
        name: "Node.js",
        backlog: directive("server.listen({ port, backlog: N })", "the program", "511"),
        capacity: Capacity::EventLoop(
            "more processes (module cluster), and less work that blocks the event loop",
        ),
        ..KNOWN
    },
    Server {
        processes: &["java"],
        name: "Tomcat",
        is_a_guess: true,
        backlog: directive(
            "acceptCount=\"N\"",
            "the Connector in server.xml (Spring Boot: server.tomcat.accept-count)",
            "100",
        ),
        capacity: Capacity::Workers("`maxThreads` and `maxConnections` of the Connector"),
        ..KNOWN
    },
    Server {
        processes: &["dotnet"],
        name: "Kestrel",
        is_a_guess: true,
        backlog: directive("SocketTransportOptions.Backlog = N", "the program", "512"),
        capacity: Capacity::Loop("less work that blocks threads of the pool"),
        ..KNOWN
    },
    Server {
        processes: &["beam.smp"],
        name: "RabbitMQ",
        is_a_guess: true,
        backlog: directive("tcp_listen_options.backlog = N", "rabbitmq.conf", "128"),
        capacity: Capacity::Loop("`num_acceptors.tcp` in rabbitmq.conf"),
        ..KNOWN
    },
    Server {
        processes: &["postgres"],
        name: "PostgreSQL",
        backlog: Backlog::Derived {
            rule: "2 x (`max_connections` + about 22)",
            remedy: "put a pooler (PgBouncer) in front, so that clients keep their connections; do not raise \
                     `max_connections` for this",
        },
        capacity: Capacity::Loop(
            "a pooler in front (PgBouncer), because one process forks for each connection",
        ),
        ..KNOWN
    },
    Server {
        processes: &["pgbouncer"],
        name: "PgBouncer",
        backlog: directive("listen_backlog = N", "pgbouncer.ini", "128"),
        effect: Effect::RestartOnly,
        capacity: Capacity::Loop(
            "several processes (`so_reuseport = 1`), because each has one thread",
        ),
        ..KNOWN
    },
    Server {
        processes: &["mysqld", "mariadbd"],
        name: "MySQL or MariaDB",
        backlog: directive(
            "back_log = N",
            "[mysqld] in my.cnf",
            "max_connections in MySQL 8, 50 + max_connections / 5 in MariaDB",
        ),
        capacity: Capacity::Loop(
            "`thread_cache_size`, and clients that keep their connections (a pool)",
        ),
        ..KNOWN
    },
    Server {
        processes: &["mongod", "mongos"],
        name: "MongoDB",
        backlog: directive("net.listenBacklog: N", "mongod.conf", "the C library's SOMAXCONN"),
        capacity: Capacity::Loop("fewer new connections (pools in the clients)"),
        ..KNOWN
    },
    Server {
        processes: &["memcached"],
        name: "memcached",
        backlog: directive("--listen-backlog=N", "its command line (`-b N`)", "1024"),
        capacity: Capacity::Loop("less load on the machine: one thread accepts"),
        at_limit_zero: Some(LimitZero {
            reason: "it has reached its connection limit (`-c`) or its descriptor limit, and accepts nothing until \
                     clients close connections",
            steps: &[
                "Raise the connection limit (`-c N` on the command line of memcached) and the descriptor limit above \
                 it (`LimitNOFILE=` of its unit), and restart it.",
                "Have clients share connections: see how many each holds with `stats conns`.",
            ],
        }),
        ..KNOWN
    },
    Server {
        processes: &["named"],
        name: "BIND",
        backlog: directive("tcp-listen-queue N;", "options in named.conf", "10"),
        effect: Effect::RestartOnly,
        capacity: Capacity::Loop("`tcp-clients` in named.conf"),
        ..KNOWN
    },
    Server {
        processes: &["dnsmasq"],
        name: "dnsmasq",
        backlog: Backlog::Fixed(32),
        capacity: Capacity::Loop("fewer queries over TCP: it forks for each connection"),
        ..KNOWN
    },
    Server {
        processes: &["exim4", "exim"],
        name: "Exim",
        backlog: directive("smtp_connect_backlog = N", "exim.conf", "20"),
        capacity: Capacity::Loop("less load on the machine: it forks for each connection"),
        ..KNOWN
    },
    Server {
        processes: &["master"],
        name: "Postfix",
        is_a_guess: true,
        backlog: Backlog::Derived {
            rule: "`default_process_limit` in main.cf, or the maxproc column of the service in master.cf where that \
                   is larger",
            remedy: "raise the process limit of the service, or let postscreen answer first",
        },
        capacity: Capacity::Workers("the maxproc column of the service in master.cf"),
        ..KNOWN
    },
    Server {
        processes: &["vsftpd"],
        name: "vsftpd",
        backlog: Backlog::Fixed(32),
        capacity: Capacity::Loop("less load on the machine: it forks for each connection"),
        ..KNOWN
    },
    Server {
        processes: &["mosquitto"],
        name: "mosquitto",
        backlog: Backlog::Fixed(100),
        capacity: Capacity::Loop("clients that keep their connections: one thread does all"),
        ..KNOWN
    },
    Server {
        processes: &["sshd"],
        name: "sshd",
        backlog: Backlog::Fixed(128),
        capacity: Capacity::Loop("less load on the machine: it forks for each connection"),
        ..KNOWN
    },
    Server {
        processes: &["systemd"],
        name: "the socket unit",
        backlog: directive("Backlog=N", "its .socket file", "all that somaxconn allows"),
        effect: Effect::SocketUnit,
        capacity: Capacity::Loop("the service behind it: is it running? (`systemctl status`)"),
        ..KNOWN
    },
];

/// The server whose process has this name.
pub fn known(process: &str) -> Option<&'static Server> {
    SERVERS.iter().find(|server| server.processes.iter().any(|pattern| matches(pattern, process)))
}

fn matches(pattern: &str, process: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => process.starts_with(start),
        None => process == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(process: &str) -> Option<&'static str> {
        known(process).map(|server| server.name)
    }

    #[test]
    fn a_server_is_known_by_its_process() {
        for (process, name) in [
            ("nginx", "nginx"),
            ("php-fpm8.2", "php-fpm"),
            ("php-fpm", "php-fpm"),
            ("gunicorn: maste", "gunicorn"),
            ("python", "Python's socketserver"),
            ("prometheus-node", "this Go program"),
            ("nats-server", "this Go program"),
            ("master", "Postfix"),
            ("stunnel4", "stunnel"),
        ] {
            assert_eq!(name_of(process), Some(name), "{process}");
        }
        assert_eq!(["nginx-exporter", ""].map(name_of), [None; 2]);
    }

    #[test]
    fn every_pattern_can_match_and_belongs_to_one_server() {
        for server in SERVERS {
            for pattern in server.processes {
                let process = pattern.trim_end_matches('*');
                assert!((1..=15).contains(&process.len()), "{pattern} is no comm");
                assert_eq!(known(process), Some(server), "{pattern}");
            }
        }
    }

    #[test]
    fn every_directive_has_a_place_for_the_number() {
        for server in SERVERS {
            assert!(!server.processes.is_empty() && !server.name.is_empty());
            if let Backlog::Directive { text, .. } = server.backlog {
                assert_eq!(text.matches('N').count(), 1, "{text}");
            }
        }
    }
}
