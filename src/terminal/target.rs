//! Finds the listeners that match `9000`, `127.0.0.1:9000`, `host/tcp/[::]:443`,
//! `/run/php/www.sock`, `www.sock`, `nginx`, `nginx.service`, or a pod or container.

use anyhow::{Result, bail};

use crate::report::Listener;
use crate::report::words::count;
use crate::snapshot::owner::Owner;
use crate::terminal::source::Known;

/// The maximum number of near matches shown.
const NEAR: usize = 5;
/// The number of digits in the short form of a container id.
const SHORT_ID: usize = 12;

/// The result of a search.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetMatch<'a> {
    /// The listeners that match.
    Listeners(Vec<&'a Listener>),
    /// The listeners of which the text may mean any one.
    Ambiguous(Vec<&'a Listener>),
    /// No match; these listeners have similar names.
    None(Vec<&'a Listener>),
}

/// Finds the listeners that match `text`: by whole name, else by port, else by the end of a path,
/// else by owner.
pub fn find<'a>(listeners: &'a [Listener], text: &str) -> TargetMatch<'a> {
    let matching = |is_meant: fn(&Listener, &str) -> bool| -> Vec<&Listener> {
        listeners.iter().filter(|listener| is_meant(listener, within(listener, text))).collect()
    };
    for is_meant in [is_name, is_mapped_name, is_port] {
        let found = matching(is_meant);
        if !found.is_empty() {
            return TargetMatch::Listeners(found);
        }
    }
    let ends = matching(is_end);
    let is_one = ends.windows(2).all(|pair| pair[0].address == pair[1].address);
    match (ends.is_empty(), is_one) {
        (true, _) => owned(listeners, text),
        (false, true) => TargetMatch::Listeners(ends),
        (false, false) => TargetMatch::Ambiguous(ends),
    }
}

/// Finds the listeners that match `target`. If `may_be_several`, listeners of which the target may
/// mean any one all match.
pub fn chosen<'a>(
    known: &'a Known,
    target: &str,
    may_be_several: bool,
) -> Result<Vec<&'a Listener>> {
    let Known { report, origin, .. } = known;
    let listeners = &report.listeners;
    if let Some(why) = known.nothing() {
        bail!("{why} ({origin})");
    }
    match find(listeners, target) {
        TargetMatch::Listeners(found) => Ok(found),
        TargetMatch::Ambiguous(several) if may_be_several => Ok(several),
        TargetMatch::Ambiguous(several) => {
            bail!("{target:?} matches several listeners: {} ({origin})", names(&several))
        }
        TargetMatch::None(near) if near.is_empty() => {
            let all = count(listeners.len() as u64);
            bail!("no listener matches {target:?}; listenq list shows all {all} ({origin})")
        }
        TargetMatch::None(near) => {
            bail!("no listener matches {target:?}; similar: {} ({origin})", names(&near))
        }
    }
}

/// Keeps the listeners that match `target`; without a target, all.
pub fn narrow(mut known: Known, target: Option<&str>) -> Result<Known> {
    if let Some(target) = target {
        let found = chosen(&known, target, true)?;
        known.report.listeners = found.into_iter().cloned().collect();
    }
    Ok(known)
}

fn names(listeners: &[&Listener]) -> String {
    let name = |listener: &&Listener| match listener.address.as_str() {
        "0.0.0.0" | "::" => format!("{} (any address)", listener.named()),
        _ => listener.named(),
    };
    listeners.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn owned<'a>(listeners: &'a [Listener], text: &str) -> TargetMatch<'a> {
    // The path of a pod may begin with the name of a network namespace.
    let is_meant = |one: &&Listener| is_owner(one, text) || is_owner(one, within(one, text));
    let owned: Vec<&Listener> = listeners.iter().filter(is_meant).collect();
    match owned.is_empty() {
        true => TargetMatch::None(near(listeners, text)),
        false => TargetMatch::Listeners(owned),
    }
}

/// The rest of `text` after the listener's namespace, its protocol, or both.
fn within<'a>(listener: &Listener, text: &'a str) -> &'a str {
    let without = |text: &'a str, start: &str| text.strip_prefix(start)?.strip_prefix('/');
    let text = without(text, &listener.netns).unwrap_or(text);
    without(text, listener.protocol.label()).unwrap_or(text)
}

fn is_name(listener: &Listener, text: &str) -> bool {
    let Listener { address, port, .. } = listener;
    // The regular expressions of the filters match IPv6 without brackets.
    text == listener.endpoint() || (!port.is_empty() && text == format!("{address}:{port}"))
}

/// Java opens `::ffff:127.0.0.1` for the address that people write as `127.0.0.1`.
fn is_mapped_name(listener: &Listener, text: &str) -> bool {
    let Listener { address, port, .. } = listener;
    let mapped = address.strip_prefix("::ffff:");
    mapped.is_some_and(|address| !port.is_empty() && text == format!("{address}:{port}"))
}

/// Whether `text` is the whole name of the process, unit, pod or container. A unit also matches
/// without `.service`, a container also by the first 12 or more digits of its id, and a pod or
/// container also by its path: `shop/web-1`, `shop/web-1/nginx`, `web-1/nginx`.
fn is_owner(listener: &Listener, text: &str) -> bool {
    let Owner { process, unit, k8s_namespace, k8s_pod, k8s_container, container_id, .. } =
        &listener.owner;
    let unit = [&**unit, unit.strip_suffix(".service").unwrap_or(unit)];
    let names = [&**process, k8s_pod, k8s_container].into_iter().chain(unit);
    let is_id = text.len() >= SHORT_ID && container_id.starts_with(text) || **container_id == *text;
    let path = [&**k8s_namespace, k8s_pod, k8s_container];
    let is_path = !k8s_pod.is_empty()
        && [&path[..2], &path[1..], &path[..]].iter().any(|parts| parts.join("/") == text);
    !text.is_empty() && (is_id || is_path || names.into_iter().any(|name| name == text))
}

fn is_port(listener: &Listener, text: &str) -> bool {
    let port = text.strip_prefix(':').unwrap_or(text);
    !port.is_empty() && listener.port == port
}

fn is_end(listener: &Listener, text: &str) -> bool {
    listener.port.is_empty() && !text.is_empty() && listener.address.ends_with(text)
}

fn near<'a>(listeners: &'a [Listener], text: &str) -> Vec<&'a Listener> {
    let last = text.rsplit(['/', ':']).next().unwrap_or(text);
    let looks_alike = |listener: &&Listener| {
        let Listener { address, port, owner, .. } = listener;
        !last.is_empty() && (port == last || address.contains(last) || owner.process.contains(last))
    };
    listeners.iter().filter(looks_alike).take(NEAR).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Protocol::{self, Tcp, Unix};

    fn listener(netns: &str, protocol: Protocol, address: &str, port: &str) -> Listener {
        Listener {
            netns: netns.into(),
            protocol,
            address: address.into(),
            port: port.into(),
            ..Listener::default()
        }
    }

    fn all() -> Vec<Listener> {
        vec![
            listener("host", Tcp, "0.0.0.0", "80"),
            listener("host", Tcp, "::", "80"),
            listener("blue", Tcp, "0.0.0.0", "80"),
            listener("host", Unix, "/run/php/www.sock", ""),
            listener("host", Unix, "/run/app/www.sock", ""),
            listener("blue", Unix, "/run/app/www.sock", ""),
            listener("host", Unix, "@bus", ""),
            Listener {
                owner: Owner {
                    process: "redis-server".into(),
                    unit: "redis.service".into(),
                    ..Owner::default()
                },
                ..listener("host", Tcp, "127.0.0.1", "6379")
            },
            listener("host", Tcp, "::ffff:127.0.0.1", "8000"),
        ]
    }

    /// Asserts a match; `places` are indices into [`all`].
    #[track_caller]
    fn assert_found(text: &str, places: &[usize]) {
        let all = all();
        let expected = places.iter().map(|place| &all[*place]).collect();
        assert_eq!(find(&all, text), TargetMatch::Listeners(expected), "{text}");
    }

    #[test]
    fn a_whole_name_means_one_listener_of_each_namespace() {
        assert_found("0.0.0.0:80", &[0, 2]);
        assert_found("[::]:80", &[1]);
        assert_found(":::80", &[1]);
        assert_found("@bus", &[6]);
        assert_found("/run/app/www.sock", &[4, 5]);
    }

    #[test]
    fn a_namespace_and_a_protocol_narrow_it() {
        assert_found("blue/tcp/0.0.0.0:80", &[2]);
        assert_found("blue/0.0.0.0:80", &[2]);
        assert_found("host/tcp/:::80", &[1]);
        assert_found("blue/unix//run/app/www.sock", &[5]);
        assert_found("blue/80", &[2]);
        assert_found("tcp/80", &[0, 1, 2]);
    }

    #[test]
    fn an_ipv4_address_means_the_socket_that_was_opened_as_ipv6() {
        assert_found("127.0.0.1:8000", &[8]);
        assert_found("host/tcp/127.0.0.1:8000", &[8]);
        assert_found("[::ffff:127.0.0.1]:8000", &[8]);
    }

    #[test]
    fn a_process_or_unit_matches_all_its_listeners() {
        for text in ["redis-server", "redis.service", "redis"] {
            assert_found(text, &[7]);
        }
        for text in ["host/redis-server", "host/redis.service", "host/tcp/redis"] {
            assert_found(text, &[7]);
        }
        assert_eq!(find(&all(), "blue/redis"), TargetMatch::None(vec![&all()[7]]));
    }

    #[test]
    fn a_pod_or_container_matches_all_its_listeners() {
        let id = "0123456789abcdef0123456789abcdef";
        let owner = Owner {
            k8s_namespace: "shop".into(),
            k8s_pod: "web-1".into(),
            k8s_container: "nginx".into(),
            container_id: id.into(),
            ..Owner::default()
        };
        let all = [Listener { owner, ..listener("pod", Tcp, "0.0.0.0", "80") }];
        let found = |text: &str| matches!(find(&all, text), TargetMatch::Listeners(_));
        for text in [
            "web-1",
            "nginx",
            "pod/nginx",
            "pod/shop/web-1",
            "shop/web-1",
            "web-1/nginx",
            "shop/web-1/nginx",
            &id[..12],
            id,
        ] {
            assert!(found(text), "{text}");
        }
        let lxc = Owner { container_id: "db".into(), ..Owner::default() };
        let outside = [Listener { owner: lxc, ..listener("lxc", Tcp, "0.0.0.0", "80") }];
        assert!(matches!(find(&outside, "db"), TargetMatch::Listeners(_)));
        assert_eq!(find(&outside, "/"), TargetMatch::None(vec![]));
        for text in ["shop", "web", &id[..11], &id[1..], "shop/nginx", "/", ""] {
            assert!(!found(text), "{text}");
        }
    }

    #[test]
    fn a_port_matches_all_its_listeners() {
        assert_found("80", &[0, 1, 2]);
        assert_found(":6379", &[7]);
    }

    #[test]
    fn the_end_of_a_path_must_be_of_one_path() {
        assert_found("php/www.sock", &[3]);
        assert_found("app/www.sock", &[4, 5]);
        let all = all();
        let three = vec![&all[3], &all[4], &all[5]];
        assert_eq!(find(&all, "www.sock"), TargetMatch::Ambiguous(three));
    }

    #[test]
    fn an_unknown_target_shows_similar_names() {
        let all = all();
        let near = |text: &str| find(&all, text);
        assert_eq!(near("10.0.0.1:6379"), TargetMatch::None(vec![&all[7]]));
        assert_eq!(near("redi"), TargetMatch::None(vec![&all[7]]));
        assert_eq!(near("/run/php/api.sock"), TargetMatch::None(vec![]));
        assert_eq!(near(""), TargetMatch::None(vec![]));
    }
}
