//! Refuses requests for a host name that does not belong to this machine. A web page of another
//! site can make a browser request listenq under a name whose DNS record the site changed to this
//! machine's address (DNS rebinding), and could otherwise read the answer.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// The host names, in lower case, allowed in requests for the page and the JSON.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts(Arc<HashSet<String>>);

/// Answers requests with an allowed name, an IP address, or without a name, as HTTP/1.0 allows.
pub(super) async fn check(
    State(allowed): State<AllowedHosts>,
    request: Request,
    next: Next,
) -> Response {
    if allowed.pass(&request) {
        return next.run(request).await;
    }
    let text = "listenq does not answer for this host name: use an IP address, localhost or the machine's name, or start \
                listenq with --web.allowed-host=NAME.\n";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

// === impl AllowedHosts ===

impl AllowedHosts {
    /// Creates the set of `given`, `localhost`, and the names of the machine whose root directory
    /// is `root`: its host name, the names beside it in `/etc/hosts`, and the host name with each
    /// search domain of `/etc/resolv.conf`.
    pub fn new(given: &[String], root: &Path) -> Self {
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
        let own = own_names(&host, &read("etc/hosts"), &read("etc/resolv.conf"));
        let all = given.iter().cloned().chain(own).chain(["localhost".into()]);
        Self(Arc::new(all.map(|name| normalized(&name)).collect()))
    }

    fn pass(&self, request: &Request) -> bool {
        let header = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
        [header, request.uri().host()].into_iter().flatten().all(|host| self.contains(host))
    }

    /// Whether a request may have this host, with or without a port.
    fn contains(&self, host: &str) -> bool {
        let name = without_port(host);
        is_ip_address(name) || self.0.contains(&normalized(name))
    }
}

fn own_names(host: &str, hosts: &str, resolv: &str) -> Vec<String> {
    let mut names = vec![host.to_owned()];
    for line in hosts.lines() {
        let words = line.split('#').next().unwrap_or_default().split_whitespace().skip(1);
        if words.clone().any(|name| name.eq_ignore_ascii_case(host)) {
            names.extend(words.map(str::to_owned));
        }
    }
    for line in resolv.lines() {
        let mut words = line.split_whitespace();
        if matches!(words.next(), Some("search" | "domain")) {
            names.extend(words.map(|domain| format!("{host}.{domain}")));
        }
    }
    names
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_ip_address(name: &str) -> bool {
    match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4()),
    }
}

fn normalized(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_given_names_are_allowed_and_other_names_are_not() {
        let names = ["localhost", "db1", "Listenq.Example."].map(normalized);
        let allowed = AllowedHosts(Arc::new(names.into()));
        for host in [
            "localhost",
            "localhost:19511",
            "LOCALHOST",
            "db1",
            "db1.:80",
            "listenq.example:443",
            "192.0.2.1",
            "192.0.2.1:19511",
            "[2001:db8::1]",
            "[::1]:19511",
        ] {
            assert!(allowed.contains(host), "{host}");
        }
        for host in [
            "",
            ":19511",
            "evil.example",
            "evil.example:19511",
            "localhost.evil.example",
            "db1.evil.example",
            "192.0.2.1.evil.example",
            "[::1].evil.example",
            "[::1",
            "1",
            "0x7f.1",
            "localhost@evil.example",
        ] {
            assert!(!allowed.contains(host), "{host}");
        }
    }

    #[test]
    fn the_machine_s_names_are_those_of_its_files() {
        let hosts = "127.0.0.1 localhost\n127.0.1.1\tdb1.example.com db1 # this one\n192.0.2.2 db2.example.com db2\n";
        let resolv =
            "# search old.example\nnameserver 192.0.2.53\nsearch example.com corp.example\n";
        let names = own_names("db1", hosts, resolv);
        let expected = ["db1", "db1.example.com", "db1", "db1.example.com", "db1.corp.example"];
        assert_eq!(names, expected);
        assert_eq!(own_names("db1", "", ""), ["db1"]);
    }
}
