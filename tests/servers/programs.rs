//! Lists the programs: how each server is started, what its clients send, and the advice that
//! `explain` must give for it.
//!
//! In files and commands `@DIR@` is the server's own directory, `@LIMIT@` the backlog, `@TAKES@`
//! the seconds that a request takes, `@CONNECTIONS@` the number of connections that the server
//! accepts at once, and `@TIMEOUT@` the seconds after which it closes an idle connection. A server
//! with workers has two of them. Applications answer `/loop`, `/lock`, `/waits` and `/disk` with
//! the trouble that [`Situation`] describes.

use std::process::{Command, Stdio};

use listenq_lab::hammer::Manner;
use listenq_lab::rootfs::Rootfs;

use crate::table::Situation;

/// The address of the upstream that does not answer.
pub(crate) const UPSTREAM: &str = "127.0.0.1:9001";
/// The backlog where the situation does not set one.
const USUAL_LIMIT: u32 = 511;
/// The directories in which Debian installs servers.
const PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin";

/// A server.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// The program that must be installed.
    pub(crate) tool: &'static str,
    at: At,
    files: &'static [(&'static str, &'static str)],
    /// Shell commands before the first start.
    prepare: &'static str,
    command: &'static str,
    /// What a client sends.
    says: Says,
    /// What a client sends in situations with a slow server.
    says_when_slow: Option<Says>,
    /// What a client sends to hold its connection.
    says_when_held: Says,
    /// The suffix of the paths of its scripts.
    script_suffix: &'static str,
    /// Four fifths of the clients per second that the server can serve.
    pub(crate) busy_rate: f64,
    pub(crate) stops: Stops,
    /// What the output of `explain` must contain for a short queue.
    short_advice: &'static [&'static str],
    /// What the output of `explain` must contain when the server is slow.
    slow_advice: &'static [&'static str],
}

/// The address at which a server listens.
enum At {
    /// This TCP port of 127.0.0.1 or of all addresses.
    Port(u16),
    /// This path in the server's directory.
    Path(&'static str),
}

/// The bytes that a client sends.
#[derive(Clone, Copy)]
enum Says {
    Text(&'static str),
    /// A FastCGI request for `index.php` in the server's directory.
    FastCgi,
}

/// The processes that receive SIGSTOP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stops {
    All,
    OneWorker,
}

/// The settings of a server for one situation.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) limit: Option<u32>,
    pub(crate) situation: Situation,
}

// === impl Settings ===

impl Settings {
    /// The seconds that a request takes, for programs that can set this.
    fn takes(self) -> &'static str {
        match self.situation {
            Situation::Slow | Situation::Full => "0.5",
            Situation::Short | Situation::Throttled | Situation::Starved => "0",
            _ => "0.05",
        }
    }

    /// The number of connections that the server may hold, for servers with such a setting.
    fn connections(self) -> &'static str {
        match self.situation {
            Situation::Slow | Situation::Full | Situation::Held => "2",
            _ => "200",
        }
    }

    fn timeout(self) -> &'static str {
        match self.situation {
            Situation::Held | Situation::Descriptors => "300",
            _ => "1",
        }
    }
}

/// Whether the program is installed on this machine.
pub(crate) fn is_installed(program: &Program) -> bool {
    let mut look = Command::new("sh");
    look.env("PATH", PATH).arg("-c").arg(format!("command -v {}", program.tool));
    look.stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

const GET: Says = Says::Text("GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
/// Half a request: the server waits for the rest and closes the connection after a second.
const HALF_A_GET: Says = Says::Text("GET / HTTP/1.1\r\nHost: lab\r\n");
const SILENCE: Says = Says::Text("");
const QUIT: Says = Says::Text("QUIT\r\n");
/// Not a valid message of any protocol used here: the server closes the connection.
const NONSENSE: Says = Says::Text("GET / HTTP/1.1\r\n\r\n\r\n\r\n");

/// A Python module that makes the trouble for `/waits`, `/lock`, `/loop` and `/disk`.
const TROUBLE: (&str, &str) = (
    "trouble.py",
    "import os, socket, threading, time\n\
     def trouble(path):\n    if path == '/waits':\n        socket.create_connection(('127.0.0.1', 9001)).recv(1)\n    \
     elif path == '/lock':\n        lock = threading.Lock()\n        lock.acquire()\n        lock.acquire()\n    \
     elif path == '/loop':\n        while True:\n            pass\n    \
     elif path == '/disk':\n        open('@DIR@/disk/file', 'w')\n    else:\n        time.sleep(@TAKES@)\n",
);
const WSGI: (&str, &str) = (
    "app.py",
    "from trouble import trouble\ndef app(environ, start):\n    trouble(environ['PATH_INFO'])\n    \
     start('200 OK', [('Content-Length', '2')])\n    return [b'ok']\n",
);
const RACK: (&str, &str) = (
    "config.ru",
    "require 'socket'\nrun lambda { |env|\n  case env['PATH_INFO']\n  when '/waits' then TCPSocket.new('127.0.0.1', 9001).read(1)\n  \
     when '/loop' then loop {}\n  when '/disk' then File.write('@DIR@/disk/file', '')\n  else sleep @TAKES@\n  end\n  \
     [200, {'Content-Type' => 'text/plain', 'Content-Length' => '2'}, ['ok']]\n}\n",
);

const HTTP: Program = Program {
    name: "",
    tool: "",
    at: At::Port(8000),
    files: &[],
    prepare: "",
    command: "",
    says: GET,
    says_when_slow: None,
    says_when_held: HALF_A_GET,
    script_suffix: "",
    busy_rate: 32.0,
    stops: Stops::All,
    short_advice: &["Raise the limit to 64:"],
    slow_advice: &[],
};

/// A program whose backlog cannot be set: its limit is `net.core.somaxconn`.
const FIXED: Program = Program {
    short_advice: &["Raise the limit to 64:", "First raise net.core.somaxconn, 4 now:"],
    ..HTTP
};

const NGINX: Program = Program {
    tool: "nginx",
    command: "nginx -e @DIR@/log -c @DIR@/nginx.conf",
    short_advice: &["Raise the limit to 64:", "backlog=64;", "`nginx -s reload` is enough"],
    ..HTTP
};

macro_rules! nginx_conf {
    ($listen:literal) => {
        &[(
            "nginx.conf",
            concat!(
                "daemon off; user root; worker_processes 2; pid @DIR@/pid; error_log @DIR@/log;\n",
                "events {} http { access_log off; client_body_temp_path @DIR@/b; proxy_temp_path @DIR@/p;\n",
                "fastcgi_temp_path @DIR@/f; uwsgi_temp_path @DIR@/u; scgi_temp_path @DIR@/s;\n",
                "server { listen 127.0.0.1:8000 backlog=@LIMIT@",
                $listen,
                "; return 200 ok; } }\n"
            ),
        )]
    };
}

const APACHE: Program = Program {
    tool: "apache2",
    command: "apache2 -DFOREGROUND -f @DIR@/apache.conf",
    says_when_slow: Some(HALF_A_GET),
    short_advice: &["Raise the limit to 64:", "`ListenBacklog 64`", "a reload keeps the socket"],
    slow_advice: &["`MaxRequestWorkers`"],
    ..HTTP
};

/// An Apache configuration with the default AcceptFilter, which is TCP_DEFER_ACCEPT.
macro_rules! apache_conf {
    ($mpm:literal, $workers:literal) => {
        &[
            (
                "apache.conf",
                concat!(
                    "ServerRoot @DIR@\nPidFile @DIR@/pid\nErrorLog @DIR@/log\nServerName lab\nTimeout @TIMEOUT@\n",
                    "LoadModule mpm_", $mpm, "_module /usr/lib/apache2/modules/mod_mpm_", $mpm, ".so\n",
                    "LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so\n",
                    "Listen 127.0.0.1:8000\nListenBacklog @LIMIT@\nDocumentRoot @DIR@/www\n", $workers
                ),
            ),
            ("www/index.html", "ok"),
        ]
    };
}

const GUNICORN: Program = Program {
    tool: "gunicorn",
    files: &[TROUBLE, WSGI],
    says_when_held: SILENCE,
    short_advice: &["Raise the limit to 64:", "`--backlog 64`"],
    slow_advice: &["`--workers` and `--threads`"],
    ..HTTP
};

pub(crate) const PROGRAMS: &[Program] = &[
    Program { name: "nginx", files: nginx_conf!(""), ..NGINX },
    Program {
        name: "nginx-reuseport",
        files: nginx_conf!(" reuseport"),
        stops: Stops::OneWorker,
        ..NGINX
    },
    Program { name: "nginx-deferred", files: nginx_conf!(" deferred"), ..NGINX },
    Program {
        name: "apache-prefork",
        files: apache_conf!(
            "prefork",
            "StartServers 2\nMinSpareServers 2\nMaxSpareServers 2\nMaxRequestWorkers 2\n"
        ),
        ..APACHE
    },
    Program {
        name: "apache-event",
        files: apache_conf!(
            "event",
            "StartServers 1\nServerLimit 1\nThreadsPerChild 2\nMinSpareThreads 2\nMaxSpareThreads 2\nMaxRequestWorkers 2\n\
             AsyncRequestWorkerFactor 1\n"
        ),
        ..APACHE
    },
    Program {
        name: "php-fpm",
        tool: "php-fpm8.2",
        files: &[
            (
                "fpm.conf",
                "[global]\nerror_log = @DIR@/log\npid = @DIR@/pid\n[pool]\nlisten = 127.0.0.1:8000\n\
                 listen.backlog = @LIMIT@\nuser = nobody\ngroup = nogroup\npm = static\npm.max_children = 2\n",
            ),
            ("index.php", "<?php usleep((int) (@TAKES@ * 1000000)); echo 'ok';\n"),
            ("waits.php", "<?php fread(fsockopen('127.0.0.1', 9001), 1);\n"),
            ("loop.php", "<?php set_time_limit(0); while (true);\n"),
            ("disk.php", "<?php fopen('@DIR@/disk/file', 'w');\n"),
        ],
        command: "php-fpm8.2 --nodaemonize -y @DIR@/fpm.conf",
        says: Says::FastCgi,
        says_when_slow: Some(Says::FastCgi),
        says_when_held: SILENCE,
        script_suffix: ".php",
        short_advice: &["Raise the limit to 64:", "`listen.backlog = 64`"],
        slow_advice: &["`pm.max_children`"],
        ..HTTP
    },
    Program {
        name: "haproxy",
        tool: "haproxy",
        files: &[(
            "haproxy.cfg",
            "defaults\n mode http\n timeout connect 1s\n timeout client 300s\n timeout server 5s\n timeout http-request @TIMEOUT@s\n\
             frontend f\n bind 127.0.0.1:8000\n maxconn @CONNECTIONS@\n backlog @LIMIT@\n http-request return status 200\n",
        )],
        command: "haproxy -W -f @DIR@/haproxy.cfg -p @DIR@/pid",
        says_when_slow: Some(HALF_A_GET),
        short_advice: &["Raise the limit to 64:", "`backlog 64`"],
        slow_advice: &["`maxconn` of the frontend"],
        ..HTTP
    },
    Program {
        name: "lighttpd",
        tool: "lighttpd",
        files: &[
            (
                "lighttpd.conf",
                "server.document-root = \"@DIR@/www\"\nserver.port = 8000\nserver.bind = \"127.0.0.1\"\n\
                 server.errorlog = \"@DIR@/log\"\nserver.listen-backlog = @LIMIT@\nserver.max-connections = @CONNECTIONS@\n\
                 server.max-read-idle = @TIMEOUT@\nindex-file.names = (\"index.html\")\n",
            ),
            ("www/index.html", "ok"),
        ],
        command: "lighttpd -D -f @DIR@/lighttpd.conf",
        says_when_slow: Some(HALF_A_GET),
        short_advice: &["Raise the limit to 64:", "`server.listen-backlog = 64`"],
        slow_advice: &["`server.max-connections`"],
        ..HTTP
    },
    Program {
        name: "caddy",
        tool: "caddy",
        files: &[("Caddyfile", "{\n admin off\n}\nhttp://:8000 {\n respond \"ok\"\n}\n")],
        command: "env HOME=@DIR@ caddy run --config @DIR@/Caddyfile --adapter caddyfile",
        ..FIXED
    },
    Program {
        name: "varnish",
        tool: "varnishd",
        files: &[(
            "lab.vcl",
            "vcl 4.1;\nbackend default none;\nsub vcl_recv { return (synth(200)); }\n",
        )],
        command: "varnishd -F -a 127.0.0.1:8000 -f @DIR@/lab.vcl -n @DIR@/varnish -p listen_depth=@LIMIT@ -S none",
        short_advice: &["Raise the limit to 64:", "`-p listen_depth=64`", "`varnishadm stop`"],
        ..HTTP
    },
    Program {
        name: "squid",
        tool: "squid",
        files: &[(
            "squid.conf",
            "http_port 127.0.0.1:8000\npid_filename @DIR@/pid\ncache_log @DIR@/log\naccess_log none\n\
             coredump_dir @DIR@\ncache deny all\nmax_filedescriptors 4096\n",
        )],
        command: "squid -N -f @DIR@/squid.conf",
        ..FIXED
    },
    Program {
        name: "stunnel",
        tool: "stunnel4",
        files: &[(
            "stunnel.conf",
            "foreground = yes\npid =\n[lab]\naccept = 127.0.0.1:8000\nconnect = 127.0.0.1:9\ncert = @DIR@/cert.pem\n",
        )],
        prepare: "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.crt -days 9 -subj /CN=lab && \
                  cat key.pem cert.crt >cert.pem",
        command: "stunnel4 @DIR@/stunnel.conf",
        // A TLS alert: handshake failure.
        says: Says::Text("\x15\x03\x01\x00\x02\x02\x28"),
        busy_rate: 8.0,
        ..FIXED
    },
    Program {
        name: "socat",
        tool: "socat",
        command: "socat TCP-LISTEN:8000,bind=127.0.0.1,fork,reuseaddr,backlog=@LIMIT@ SYSTEM:true",
        short_advice: &["Raise the limit to 64:", "`backlog=64`"],
        ..HTTP
    },
    Program {
        name: "gunicorn-sync",
        command: "gunicorn -t 300 -w 2 -b 127.0.0.1:8000 --backlog @LIMIT@ app:app",
        says_when_slow: Some(GET),
        ..GUNICORN
    },
    Program {
        name: "gunicorn-gthread",
        command: "gunicorn -t 300 -k gthread -w 1 --threads 2 --worker-connections 2 -b 127.0.0.1:8000 --backlog @LIMIT@ app:app",
        says_when_slow: Some(GET),
        ..GUNICORN
    },
    Program {
        name: "gunicorn-socket",
        tool: "systemd-socket-activate",
        command: "systemd-socket-activate -l 127.0.0.1:8000 gunicorn -t 300 -w 2 --backlog @LIMIT@ app:app",
        says_when_slow: Some(GET),
        ..GUNICORN
    },
    Program {
        name: "sleep-socket",
        tool: "systemd-socket-activate",
        command: "systemd-socket-activate -l 127.0.0.1:8000 sleep 600",
        ..HTTP
    },
    Program {
        name: "uvicorn",
        tool: "uvicorn",
        files: &[
            TROUBLE,
            (
                "asgi.py",
                "from trouble import trouble\nasync def app(scope, receive, send):\n    if scope['type'] != 'http':\n        return\n    \
                 trouble(scope['path'])\n    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n    \
                 await send({'type': 'http.response.body', 'body': b'ok'})\n",
            ),
        ],
        command: "uvicorn --lifespan off --port 8000 --backlog @LIMIT@ asgi:app",
        says_when_slow: Some(GET),
        busy_rate: 16.0,
        short_advice: &["Raise the limit to 64:", "`--backlog 64`"],
        slow_advice: &["`--workers`"],
        ..HTTP
    },
    Program {
        name: "uwsgi",
        tool: "uwsgi-core",
        files: &[TROUBLE, WSGI],
        command: "uwsgi-core --plugin python311 --http-socket 127.0.0.1:8000 --wsgi-file @DIR@/app.py --callable app \
                  --listen @LIMIT@ --master --processes 2",
        says_when_slow: Some(GET),
        short_advice: &["Raise the limit to 64:", "`listen = 64`"],
        slow_advice: &["`processes` and `threads`"],
        ..HTTP
    },
    Program {
        name: "node",
        tool: "node",
        files: &[(
            "lab.js",
            "const busy = () => { const end = Date.now() + @TAKES@ * 1000; while (Date.now() < end); };\n\
             const fs = require('fs');\n\
             const trouble = { '/loop': () => { while (true); }, '/disk': () => fs.writeFileSync('@DIR@/disk/file', '') };\n\
             require('http').createServer((q, r) => { (trouble[q.url] ?? busy)(); r.end('ok'); })\n\
             .listen({ port: 8000, host: '127.0.0.1', backlog: @LIMIT@ });\n",
        )],
        command: "node @DIR@/lab.js",
        says_when_slow: Some(GET),
        busy_rate: 12.0,
        short_advice: &["Raise the limit to 64:", "backlog: 64"],
        slow_advice: &["the event loop"],
        ..HTTP
    },
    Program {
        name: "tomcat",
        tool: "/usr/share/tomcat10/bin/catalina.sh",
        files: &[
            (
                "conf/server.xml",
                "<Server port=\"-1\"><Service name=\"Catalina\"><Connector port=\"8000\" address=\"127.0.0.1\" \
                 maxConnections=\"@CONNECTIONS@\" connectionTimeout=\"@TIMEOUT@000\" acceptCount=\"@LIMIT@\"/>\
                 <Engine name=\"Catalina\" defaultHost=\"localhost\"><Host name=\"localhost\" appBase=\"webapps\"/>\
                 </Engine></Service></Server>\n",
            ),
            ("webapps/ROOT/index.html", "ok"),
            (
                "webapps/ROOT/waits.jsp",
                "<% new java.net.Socket(\"127.0.0.1\", 9001).getInputStream().read(); %>",
            ),
        ],
        prepare: "cp /etc/tomcat10/web.xml conf/",
        command: "env CATALINA_BASE=@DIR@ CATALINA_HOME=/usr/share/tomcat10 JAVA_OPTS=-Xmx96m \
                  /usr/share/tomcat10/bin/catalina.sh run",
        says_when_slow: Some(HALF_A_GET),
        script_suffix: ".jsp",
        busy_rate: 16.0,
        short_advice: &["Raise the limit to 64:", "acceptCount=\"64\""],
        slow_advice: &["`maxThreads` and `maxConnections`"],
        ..HTTP
    },
    Program {
        name: "puma",
        tool: "puma",
        files: &[RACK],
        command: "puma -w 0 -t 2:2 -b 'tcp://127.0.0.1:8000?backlog=@LIMIT@' @DIR@/config.ru",
        says_when_slow: Some(GET),
        short_advice: &[
            "Raise the limit to 64:",
            "?backlog=64'",
            "stop puma",
            "not by a hot restart",
        ],
        slow_advice: &["`workers` and `threads`"],
        ..HTTP
    },
    Program {
        name: "unicorn",
        tool: "unicorn",
        files: &[
            RACK,
            ("unicorn.rb", "worker_processes 2\nlisten '127.0.0.1:8000', backlog: @LIMIT@\n"),
        ],
        command: "unicorn -c @DIR@/unicorn.rb @DIR@/config.ru",
        says_when_slow: Some(GET),
        short_advice: &["Raise the limit to 64:", "backlog: 64", "`kill -HUP PID`"],
        slow_advice: &["`worker_processes`"],
        ..HTTP
    },
    Program {
        name: "redis",
        tool: "redis-server",
        command: "redis-server --bind 127.0.0.1 --port 8000 --protected-mode no --save '' --daemonize no --tcp-backlog @LIMIT@ \
                  --enable-debug-command yes",
        says: QUIT,
        short_advice: &["Raise the limit to 64:", "`tcp-backlog 64`"],
        slow_advice: &["slow commands"],
        ..HTTP
    },
    Program {
        name: "memcached",
        tool: "memcached",
        command: "memcached -u root -l 127.0.0.1 -p 8000 -b @LIMIT@",
        says: Says::Text("quit\r\n"),
        says_when_held: SILENCE,
        short_advice: &["Raise the limit to 64:", "`--listen-backlog=64`"],
        ..HTTP
    },
    Program { name: "postgres", command: "@POSTGRES@ -D @DIR@/data -p 8000 -k @DIR@", ..POSTGRES },
    Program {
        name: "postgres-unix",
        at: At::Path(".s.PGSQL.8000"),
        command: "@POSTGRES@ -D @DIR@/data -p 8000 -k @DIR@ -c listen_addresses=",
        ..POSTGRES
    },
    Program {
        name: "mariadb",
        tool: "mariadbd",
        prepare: "mkdir data && mariadb-install-db --no-defaults --datadir=@DIR@/data --user=root \
                  --auth-root-authentication-method=normal --skip-test-db",
        command: "mariadbd --no-defaults --datadir=@DIR@/data --user=root --port=8000 --bind-address=127.0.0.1 \
                  --socket=@DIR@/sock --max-connect-errors=1000000 --back-log=@LIMIT@ --skip-name-resolve",
        says: NONSENSE,
        short_advice: &["Raise the limit to 64:", "`back_log = 64`"],
        ..HTTP
    },
    Program {
        name: "pgbouncer",
        tool: "pgbouncer",
        files: &[(
            "pgb.ini",
            "[databases]\n* = host=127.0.0.1 port=9\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = 8000\n\
             auth_type = any\nunix_socket_dir =\nlisten_backlog = @LIMIT@\n",
        )],
        command: "pgbouncer -u nobody @DIR@/pgb.ini",
        says: NONSENSE,
        short_advice: &["Raise the limit to 64:", "`listen_backlog = 64`"],
        ..HTTP
    },
    Program {
        name: "sshd",
        tool: "sshd",
        files: &[(
            "sshd.conf",
            "Port 8000\nListenAddress 127.0.0.1\nHostKey @DIR@/key\nPidFile @DIR@/pid\nUsePAM no\nMaxStartups 500\n",
        )],
        prepare: "ssh-keygen -q -t ed25519 -f key -N '' && mkdir -p /run/sshd",
        command: "/usr/sbin/sshd -D -f @DIR@/sshd.conf",
        says: NONSENSE,
        busy_rate: 16.0,
        ..FIXED
    },
    Program {
        name: "postfix",
        tool: "postfix",
        files: &[
            (
                "conf/main.cf",
                "compatibility_level = 3.6\nqueue_directory = @DIR@/queue\ndata_directory = @DIR@/data\n\
                 command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nmail_owner = postfix\n\
                 setgid_group = postdrop\ninet_interfaces = 127.0.0.1\nmyhostname = lab.invalid\nmydestination =\n\
                 maillog_file = /dev/stdout\nsmtpd_timeout = @TIMEOUT@s\nsmtpd_peername_lookup = no\n\
                 smtpd_client_connection_count_limit = 0\nsmtpd_client_connection_rate_limit = 0\n\
                 local_recipient_maps =\nalias_maps =\n",
            ),
            (
                "conf/master.cf",
                "8000 inet n - n - 2 smtpd\npostlog unix-dgram n - n - 1 postlogd\nanvil unix - - n - 1 anvil\n\
                 proxymap unix - - n - - proxymap\n\
                 rewrite unix - - n - - trivial-rewrite\ncleanup unix n - n - 0 cleanup\n",
            ),
        ],
        prepare: "mkdir queue data && chown postfix data && chmod 755 .",
        command: "postfix -c @DIR@/conf start-fg",
        says: QUIT,
        says_when_slow: Some(Says::Text("NOOP\r\n")),
        says_when_held: SILENCE,
        busy_rate: 16.0,
        slow_advice: &["maxproc"],
        ..FIXED
    },
    Program {
        name: "vsftpd",
        tool: "vsftpd",
        files: &[(
            "vsftpd.conf",
            "listen=YES\nlisten_port=8000\nlisten_address=127.0.0.1\nanonymous_enable=YES\nbackground=NO\n\
             secure_chroot_dir=@DIR@/empty\n",
        )],
        prepare: "mkdir -m 755 empty",
        command: "vsftpd @DIR@/vsftpd.conf",
        says: QUIT,
        busy_rate: 16.0,
        ..FIXED
    },
    Program {
        name: "mosquitto",
        tool: "mosquitto",
        files: &[("mosquitto.conf", "listener 8000 127.0.0.1\nallow_anonymous true\n")],
        command: "mosquitto -c @DIR@/mosquitto.conf",
        says: NONSENSE,
        ..FIXED
    },
    Program {
        name: "nats",
        tool: "nats-server",
        command: "nats-server -a 127.0.0.1 -p 8000",
        says: NONSENSE,
        ..FIXED
    },
];

const POSTGRES: Program = Program {
    tool: "postgres",
    prepare: "chown postgres . && install -d -o postgres data && \
              setpriv --reuid=postgres --regid=postgres --clear-groups initdb -D @DIR@/data -A trust",
    says: NONSENSE,
    busy_rate: 16.0,
    ..FIXED
};

// === impl Program ===

impl Program {
    /// Whether the backlog of the program can be set without `net.core.somaxconn`.
    pub(crate) fn has_backlog(&self) -> bool {
        let texts = self.files.iter().map(|(_, text)| *text).chain([self.command]);
        texts.into_iter().any(|text| text.contains("@LIMIT@"))
    }

    pub(crate) fn port(&self) -> Option<u16> {
        match self.at {
            At::Port(port) => Some(port),
            At::Path(_) => None,
        }
    }

    /// The path of its Unix socket, if it listens at one.
    pub(crate) fn path(&self, root: &Rootfs) -> String {
        match self.at {
            At::Port(_) => String::new(),
            At::Path(name) => root.path().join(name).display().to_string(),
        }
    }

    pub(crate) fn request(&self, root: &Rootfs, situation: Situation) -> Vec<u8> {
        let says = match situation {
            Situation::Slow | Situation::Full => self.says_when_slow.unwrap_or(self.says),
            Situation::Held | Situation::Descriptors => self.says_when_held,
            _ => self.says,
        };
        let script = match situation {
            Situation::Loop | Situation::Lock | Situation::Waits | Situation::Disk => {
                Some(format!("{}{}", situation.label(), self.script_suffix))
            }
            _ => None,
        };
        match (says, script) {
            (Says::FastCgi, script) => {
                let script = script.unwrap_or("index.php".into());
                fast_cgi(&root.path().join(script).display().to_string())
            }
            (_, Some(script)) => Manner::http_get(&format!("/{script}")).request,
            (Says::Text(text), None) => text.into(),
        }
    }

    /// What the output of `explain` must contain in this situation.
    pub(crate) fn advice(&self, situation: Situation) -> &'static [&'static str] {
        match situation {
            Situation::Short => self.short_advice,
            Situation::Slow | Situation::Full => self.slow_advice,
            Situation::Stopped if self.stops == Stops::All => &["`kill -CONT "],
            Situation::Frozen => &["Thaw the cgroup"],
            Situation::Throttled => &["Raise the CPU quota"],
            Situation::Waits => &[UPSTREAM],
            Situation::Descriptors => &["Allow more file descriptors"],
            _ => &[],
        }
    }

    /// Writes the server's files, and returns the shell script that executes the server.
    pub(crate) fn script(&self, root: &Rootfs, settings: Settings) -> String {
        let dir = root.path().display().to_string();
        let limit = settings.limit.unwrap_or(USUAL_LIMIT).to_string();
        let filled = |text: &str| {
            text.replace(
                "@POSTGRES@",
                "setpriv --reuid=postgres --regid=postgres --clear-groups postgres",
            )
            .replace("@DIR@", &dir)
            .replace("@LIMIT@", &limit)
            .replace("@TAKES@", settings.takes())
            .replace("@CONNECTIONS@", settings.connections())
            .replace("@TIMEOUT@", settings.timeout())
        };
        for (name, text) in self.files {
            root.file(name, filled(text));
        }
        let prepare = if self.prepare.is_empty() { "true" } else { self.prepare };
        format!(
            "PATH={PATH}; cd {dir} && exec >>log 2>&1; chmod 777 . log; \
             [ -e prepared ] || {{ {} && touch prepared; }} && exec {}",
            filled(prepare),
            filled(self.command)
        )
    }
}

/// A FastCGI request to run this script.
fn fast_cgi(script: &str) -> Vec<u8> {
    let record = |kind: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[1, kind, 0, 1, length[0], length[1], 0, 0], content].concat()
    };
    let pair = |name: &str, value: &str| {
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        [&[length(name), length(value)], name.as_bytes(), value.as_bytes()].concat()
    };
    let params = [pair("SCRIPT_FILENAME", script), pair("REQUEST_METHOD", "GET")].concat();
    let begin = [0, 1, 0, 0, 0, 0, 0, 0];
    [record(1, &begin), record(4, &params), record(4, &[]), record(5, &[])].concat()
}
