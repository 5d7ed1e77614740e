//! The one table of servers whose backlog we know how to set: the directive, its default, when a change of it takes
//! effect, and what makes the server accept faster.

/// A server that is known by the name of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Names (`comm`, at most 15 bytes) of its process; one that ends with `*` stands for all that begin so.
    pub processes: &'static [&'static str],
    /// What people call it.
    pub name: &'static str,
    /// Whether the process may be something else: an interpreter runs many servers.
    pub is_a_guess: bool,
    /// Where its backlog comes from.
    pub backlog: Backlog,
    /// When a change takes effect.
    pub effect: Effect,
    /// What makes it accept more connections per second.
    pub capacity: &'static str,
}

/// Where the argument of `listen(2)` comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backlog {
    /// From a directive, written as in its configuration with `N` for the number.
    Directive {
        /// The directive.
        text: &'static str,
        /// The file, or other place, in which it stands.
        place: &'static str,
        /// What holds without it.
        default: &'static str,
    },
    /// From other settings of the server, in its own words.
    Derived(&'static str),
    /// It asks for all that `net.core.somaxconn` allows when it starts.
    Somaxconn,
    /// It is a constant in its source.
    Fixed(u32),
}

/// What makes a server call `listen(2)` again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A restart. Whether it has a reload that does it, we do not know.
    Restart,
    /// Only a restart: on a reload it keeps the socket as it is.
    RestartOnly,
    /// This command, but only when the number differs from the one it has; else a restart.
    ReloadWhenChanged(&'static str),
    /// Its socket unit has to be made anew.
    SocketUnit,
}

const fn directive(text: &'static str, place: &'static str, default: &'static str) -> Backlog {
    Backlog::Directive { text, place, default }
}

/// Every server we know. Defaults and what a reload does are from the servers' sources and documentation, most of
/// them tried with a listener and `ss`.
pub const SERVERS: &[Server] = &[
    Server {
        processes: &["nginx", "openresty"],
        name: "nginx",
        is_a_guess: false,
        backlog: directive("listen ADDRESS:PORT backlog=N;", "nginx.conf", "511"),
        effect: Effect::ReloadWhenChanged("nginx -s reload"),
        capacity: "`worker_processes` and `worker_connections` in nginx.conf",
    },
    Server {
        processes: &["php-fpm*"],
        name: "php-fpm",
        is_a_guess: false,
        backlog: directive(
            "listen.backlog = N",
            "the file of the pool (pool.d/*.conf)",
            "511, newer versions all that somaxconn allows",
        ),
        effect: Effect::RestartOnly,
        capacity: "`pm.max_children` in the file of the pool (pool.d/*.conf)",
    },
    Server {
        processes: &["redis-server", "valkey-server"],
        name: "Redis",
        is_a_guess: false,
        backlog: directive("tcp-backlog N", "redis.conf", "511"),
        effect: Effect::Restart,
        capacity: "fewer slow commands (`redis-cli SLOWLOG GET`): one thread accepts and executes",
    },
    Server {
        processes: &["apache2", "httpd"],
        name: "Apache",
        is_a_guess: false,
        backlog: directive("ListenBacklog N", "apache2.conf or httpd.conf", "511"),
        effect: Effect::RestartOnly,
        capacity: "`MaxRequestWorkers` in the configuration of its MPM",
    },
    Server {
        processes: &["haproxy"],
        name: "HAProxy",
        is_a_guess: false,
        backlog: directive("backlog N", "the frontend in haproxy.cfg", "the frontend's maxconn"),
        effect: Effect::RestartOnly,
        capacity: "`maxconn` of the frontend and `nbthread` in haproxy.cfg",
    },
    Server {
        processes: &["envoy"],
        name: "Envoy",
        is_a_guess: false,
        backlog: directive("tcp_backlog_size: N", "the listener", "all that somaxconn allows"),
        effect: Effect::Restart,
        capacity: "`--concurrency`",
    },
    Server {
        processes: &["varnishd", "cache-main"],
        name: "Varnish",
        is_a_guess: false,
        backlog: directive("-p listen_depth=N", "the command line of varnishd", "1024"),
        effect: Effect::Restart,
        capacity: "`-p thread_pool_max=…` and `-p thread_pools=…` on its command line",
    },
    Server {
        processes: &["lighttpd"],
        name: "lighttpd",
        is_a_guess: false,
        backlog: directive("server.listen-backlog = N", "lighttpd.conf", "1024"),
        effect: Effect::Restart,
        capacity: "`server.max-connections` and `server.max-fds` in lighttpd.conf",
    },
    Server {
        processes: &["docker-proxy"],
        name: "docker-proxy",
        is_a_guess: false,
        backlog: Backlog::Somaxconn,
        effect: Effect::Restart,
        capacity: "the container behind it: docker-proxy only passes connections on",
    },
    Server {
        processes: &[
            "alertmanager",
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
            "node_exporter",
            "prometheus",
            "traefik",
            "vault",
        ],
        name: "this Go program",
        is_a_guess: false,
        backlog: Backlog::Somaxconn,
        effect: Effect::Restart,
        capacity: "more processor time (`GOMAXPROCS`, the CPU limit of its container)",
    },
    Server {
        processes: &["gunicorn*"],
        name: "gunicorn",
        is_a_guess: false,
        backlog: directive(
            "--backlog N",
            "its command line (`backlog` in gunicorn.conf.py)",
            "2048",
        ),
        effect: Effect::RestartOnly,
        capacity: "`--workers` and `--threads`",
    },
    Server {
        processes: &["uvicorn"],
        name: "uvicorn",
        is_a_guess: false,
        backlog: directive("--backlog N", "its command line", "2048"),
        effect: Effect::Restart,
        capacity: "`--workers`",
    },
    Server {
        processes: &["uwsgi*"],
        name: "uWSGI",
        is_a_guess: false,
        backlog: directive("listen = N", "its ini file (`--listen N`)", "100"),
        effect: Effect::Restart,
        capacity: "`processes` and `threads` in its ini file",
    },
    Server {
        processes: &["python3*"],
        name: "Python's socketserver",
        is_a_guess: true,
        backlog: directive("request_queue_size = N", "the class of the server", "5"),
        effect: Effect::Restart,
        capacity: "`ThreadingMixIn` or more processes",
    },
    Server {
        processes: &["puma*"],
        name: "Puma",
        is_a_guess: false,
        backlog: directive("bind 'tcp://ADDRESS:PORT?backlog=N'", "config/puma.rb", "1024"),
        effect: Effect::Restart,
        capacity: "`workers` and `threads` in config/puma.rb",
    },
    Server {
        processes: &["ruby*"],
        name: "Puma",
        is_a_guess: true,
        backlog: directive("bind 'tcp://ADDRESS:PORT?backlog=N'", "config/puma.rb", "1024"),
        effect: Effect::Restart,
        capacity: "`workers` and `threads` in config/puma.rb",
    },
    Server {
        processes: &["unicorn*"],
        name: "Unicorn",
        is_a_guess: false,
        backlog: directive("listen ADDRESS, backlog: N", "unicorn.rb", "1024"),
        effect: Effect::Restart,
        capacity: "`worker_processes` in unicorn.rb",
    },
    Server {
        processes: &["node", "node-MainThread"],
        name: "Node.js",
        is_a_guess: false,
        backlog: directive("server.listen({ port, backlog: N })", "the program", "511"),
        effect: Effect::Restart,
        capacity: "more processes (module cluster), and less work that blocks the event loop",
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
        effect: Effect::Restart,
        capacity: "`maxThreads` and `maxConnections` of the Connector",
    },
    Server {
        processes: &["dotnet"],
        name: "Kestrel",
        is_a_guess: true,
        backlog: directive("SocketTransportOptions.Backlog = N", "the program", "512"),
        effect: Effect::Restart,
        capacity: "less work that blocks threads of the pool",
    },
    Server {
        processes: &["beam.smp"],
        name: "RabbitMQ",
        is_a_guess: true,
        backlog: directive("tcp_listen_options.backlog = N", "rabbitmq.conf", "128"),
        effect: Effect::Restart,
        capacity: "`num_acceptors.tcp` in rabbitmq.conf",
    },
    Server {
        processes: &["postgres"],
        name: "PostgreSQL",
        is_a_guess: false,
        backlog: Backlog::Derived("about twice `max_connections` in postgresql.conf"),
        effect: Effect::Restart,
        capacity: "a pooler in front (PgBouncer): one process forks for every connection",
    },
    Server {
        processes: &["pgbouncer"],
        name: "PgBouncer",
        is_a_guess: false,
        backlog: directive("listen_backlog = N", "pgbouncer.ini", "128"),
        effect: Effect::Restart,
        capacity: "several processes (`so_reuseport = 1`): each has one thread",
    },
    Server {
        processes: &["mysqld", "mariadbd"],
        name: "MySQL or MariaDB",
        is_a_guess: false,
        backlog: directive(
            "back_log = N",
            "[mysqld] in my.cnf",
            "max_connections in MySQL 8, 50 + max_connections / 5 in MariaDB",
        ),
        effect: Effect::Restart,
        capacity: "`thread_cache_size`: threads are made while a connection waits",
    },
    Server {
        processes: &["mongod", "mongos"],
        name: "MongoDB",
        is_a_guess: false,
        backlog: directive("net.listenBacklog: N", "mongod.conf", "the C library's SOMAXCONN"),
        effect: Effect::Restart,
        capacity: "fewer new connections: pools in the clients",
    },
    Server {
        processes: &["memcached"],
        name: "memcached",
        is_a_guess: false,
        backlog: directive("--listen-backlog=N", "its command line (`-b N`)", "1024"),
        effect: Effect::Restart,
        capacity: "less load on the machine: one thread accepts",
    },
    Server {
        processes: &["named"],
        name: "BIND",
        is_a_guess: false,
        backlog: directive("tcp-listen-queue N;", "options in named.conf", "10"),
        effect: Effect::Restart,
        capacity: "`tcp-clients` in named.conf",
    },
    Server {
        processes: &["dnsmasq"],
        name: "dnsmasq",
        is_a_guess: false,
        backlog: Backlog::Fixed(32),
        effect: Effect::Restart,
        capacity: "fewer queries over TCP: it forks for each connection",
    },
    Server {
        processes: &["exim4", "exim"],
        name: "Exim",
        is_a_guess: false,
        backlog: directive("smtp_connect_backlog = N", "exim.conf", "20"),
        effect: Effect::Restart,
        capacity: "less load on the machine: it forks for each connection",
    },
    Server {
        processes: &["sshd"],
        name: "sshd",
        is_a_guess: false,
        backlog: Backlog::Fixed(128),
        effect: Effect::Restart,
        capacity: "less load on the machine: it forks for each connection",
    },
    Server {
        processes: &["systemd"],
        name: "the socket unit",
        is_a_guess: false,
        backlog: directive("Backlog=N", "its .socket file", "all that somaxconn allows"),
        effect: Effect::SocketUnit,
        capacity: "the service behind it: is it running? (`systemctl status`)",
    },
];

/// The server that runs as a process of this name.
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
        assert_eq!(name_of("nginx"), Some("nginx"));
        assert_eq!(name_of("php-fpm8.2"), Some("php-fpm"));
        assert_eq!(name_of("php-fpm"), Some("php-fpm"));
        assert_eq!(name_of("gunicorn: maste"), Some("gunicorn"));
        assert_eq!(name_of("nginx-exporter"), None);
        assert_eq!(name_of(""), None);
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
            if let Backlog::Directive { text, .. } = server.backlog {
                assert_eq!(text.matches('N').count(), 1, "{text}");
            }
        }
    }
}
