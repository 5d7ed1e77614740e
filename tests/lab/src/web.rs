//! A real web site of two servers: nginx in front of a php-fpm pool with a slow script.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::hammer::{Load, Manner, Outcome, visit};
use crate::netns::Netns;
use crate::rootfs::Rootfs;
use crate::running::Running;
use crate::wait::eventually;

/// Debian's php-fpm; check for it and for `nginx` with [`require_tool`](crate::tool::require_tool)
/// first.
pub const PHP: &str = "php-fpm8.2";
/// Timeout for the servers to listen.
const START: Duration = Duration::from_secs(15);
const NGINX_PORT: u16 = 8080;
const PHP_PORT: u16 = 9000;

/// The listen address of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// At 127.0.0.1:9000.
    Tcp,
    /// At a path in the site's own directory.
    Unix,
}

/// A builder of a site: set its options, then [`start`](Web::start) it.
#[derive(Debug, Clone)]
pub struct Web {
    pool: Pool,
    backlog: i32,
    workers: u32,
    takes: Duration,
    read_timeout: Duration,
}

/// A running site. Dropping it ends both servers and removes their files.
#[derive(Debug)]
pub struct Site {
    pool: Pool,
    nginx: Running,
    php: Running,
    root: Rootfs,
}

// === impl Web ===

impl Web {
    /// A pool with a backlog of 511 and two workers, whose script answers at once. nginx waits 60 s
    /// for the pool.
    #[must_use]
    pub fn new(pool: Pool) -> Self {
        Self {
            pool,
            backlog: 511,
            workers: 2,
            takes: Duration::ZERO,
            read_timeout: Duration::from_secs(60),
        }
    }

    /// Sets the pool's `listen.backlog`.
    #[must_use]
    pub fn backlog(self, backlog: i32) -> Self {
        Self { backlog, ..self }
    }

    /// Sets the number of requests that the pool handles at once (`pm.max_children`).
    #[must_use]
    pub fn workers(self, workers: u32) -> Self {
        Self { workers, ..self }
    }

    /// Sets the time that the script takes to answer.
    #[must_use]
    pub fn takes(self, takes: Duration) -> Self {
        Self { takes, ..self }
    }

    /// Sets how long nginx waits for the pool before nginx answers 504 (`fastcgi_read_timeout`).
    #[must_use]
    pub fn read_timeout(self, read_timeout: Duration) -> Self {
        Self { read_timeout, ..self }
    }

    /// Starts both servers inside `ns`, and waits until they listen.
    ///
    /// # Panics
    ///
    /// With their logs, when a server does not listen.
    #[must_use]
    pub fn start(&self, ns: &Netns) -> Site {
        let root = Rootfs::new();
        let php_config = root.file("fpm.conf", self.php_config(root.path()));
        let nginx_config = root.file("nginx.conf", self.nginx_config(root.path()));
        let mut php = ns.command(PHP);
        let php = Running::start_as(php.args(["--nodaemonize", "-y"]).arg(php_config), PHP);
        let mut nginx = ns.command("nginx");
        nginx.arg("-e").arg(root.path().join("nginx.log")).arg("-c").arg(nginx_config);
        let site =
            Site { pool: self.pool, nginx: Running::start_as(&mut nginx, "nginx"), php, root };
        site.await_listeners(ns);
        site
    }

    fn php_config(&self, at: &Path) -> String {
        let (address, at) = (self.pool.address(at), at.display());
        let Self { backlog, workers, .. } = self;
        format!(
            "[global]\nerror_log = {at}/php.log\npid = {at}/php.pid\n\
             [pool]\nlisten = {address}\nlisten.backlog = {backlog}\nuser = nobody\ngroup = nogroup\n\
             pm = static\npm.max_children = {workers}\n"
        )
    }

    fn nginx_config(&self, at: &Path) -> String {
        let pass = match self.pool {
            Pool::Tcp => self.pool.address(at),
            Pool::Unix => format!("unix:{}", self.pool.address(at)),
        };
        let (takes, patience) = (self.takes.as_micros(), self.read_timeout.as_millis());
        let script = at.join("index.php");
        fs::write(&script, format!("<?php usleep({takes}); echo 'done';\n")).expect("a script");
        let at = at.display();
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {at}/{what};"))
            .concat();
        format!(
            "daemon off; user root; worker_processes 1; pid {at}/nginx.pid; error_log {at}/nginx.log;\n\
             worker_rlimit_nofile 20000; events {{ worker_connections 10000; }}\n\
             http {{ access_log off; {temp} server {{ listen 127.0.0.1:{NGINX_PORT}; location / {{\n\
             fastcgi_pass {pass}; fastcgi_read_timeout {patience}ms; fastcgi_connect_timeout 60s;\n\
             fastcgi_param SCRIPT_FILENAME {script}; fastcgi_param REQUEST_METHOD GET; }} }} }}\n",
            script = script.display()
        )
    }
}

// === impl Pool ===

impl Pool {
    fn address(self, at: &Path) -> String {
        match self {
            Self::Tcp => format!("127.0.0.1:{PHP_PORT}"),
            Self::Unix => at.join("php.sock").display().to_string(),
        }
    }
}

// === impl Site ===

impl Site {
    /// The address of nginx.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, NGINX_PORT).into()
    }

    /// The address of the pool: `127.0.0.1:9000` or a path.
    #[must_use]
    pub fn pool(&self) -> String {
        self.pool.address(self.root.path())
    }

    /// The process id of php-fpm's master.
    #[must_use]
    pub fn php_pid(&self) -> u32 {
        self.php.pid()
    }

    /// The process id of nginx's master.
    #[must_use]
    pub fn nginx_pid(&self) -> u32 {
        self.nginx.pid()
    }

    /// The error log of nginx.
    #[must_use]
    pub fn nginx_log(&self) -> String {
        self.log("nginx.log")
    }

    /// The error log of php-fpm.
    #[must_use]
    pub fn php_log(&self) -> String {
        self.log("php.log")
    }

    /// Sends HTTP clients to nginx from inside `ns`, and counts their answers.
    #[must_use]
    pub fn load(&self, ns: &Netns, load: Load) -> Outcome {
        ns.run(|| visit(self.address(), load, &Manner::http_get("/")))
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.root.path().join(name)).unwrap_or_default()
    }

    fn await_listeners(&self, ns: &Netns) {
        let (what, pool) = (format!("nginx and php-fpm listening: {}", self.pool()), self.pool());
        eventually(&what, START, || {
            let ports: Vec<u16> = ns.ss_listen().iter().map(|row| row.port).collect();
            let pool_listens = match self.pool {
                Pool::Tcp => ports.contains(&PHP_PORT),
                Pool::Unix => ns.ss_unix(&pool).is_some(),
            };
            (pool_listens && ports.contains(&NGINX_PORT)).then_some(())
        });
    }
}
