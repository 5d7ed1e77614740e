//! Addresses: parsing with interface names, the addresses that traffic may reach, and client
//! sources.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

use anyhow::{Context, Result, bail};
use rustix::net::netdevice::name_to_index;

/// Parses `127.0.0.1:80`, `[::1]:80`, `[fe80::1%3]:80` and `[fe80::1%eth0]:80`.
///
/// An interface name is looked up in the calling thread's namespace.
///
/// # Errors
///
/// When the text is not an address or the interface does not exist.
pub fn parse(text: &str) -> Result<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (ip, zone, port) =
        split_zone(text).with_context(|| format!("not an address with a port: {text:?}"))?;
    let ip: Ipv6Addr = ip.parse().with_context(|| format!("not an IPv6 address: {text:?}"))?;
    let port = port.parse().with_context(|| format!("not a port: {text:?}"))?;
    let scope = interface_index(zone).with_context(|| format!("looking up interface {zone:?}"))?;
    Ok(SocketAddrV6::new(ip, port, 0, scope).into())
}

/// Splits `[ip%zone]:port`.
fn split_zone(text: &str) -> Option<(&str, &str, &str)> {
    let (host, port) = text.strip_prefix('[')?.split_once("]:")?;
    let (ip, zone) = host.split_once('%')?;
    Some((ip, zone, port))
}

/// The index of the interface `name` in the calling thread's namespace.
///
/// # Errors
///
/// When there is no such interface.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let any = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    Ok(name_to_index(&any, name)?)
}

/// The address that clients of a listener at `address` connect to: loopback for a wildcard.
#[must_use]
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        _ => return address,
    };
    SocketAddr::new(ip, address.port())
}

/// Accepts only loopback and link-local addresses: the lab sends no traffic elsewhere.
///
/// # Errors
///
/// For every other address.
pub fn ensure_local(address: SocketAddr) -> Result<()> {
    let local = match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local(),
    };
    if !local {
        bail!(
            "{address} is neither a loopback nor a link-local address: the lab sends nothing there"
        );
    }
    Ok(())
}

/// Accepts only loopback addresses, as the command line requires.
///
/// # Errors
///
/// For every other address.
pub fn ensure_loopback(address: SocketAddr) -> Result<()> {
    if !address.ip().is_loopback() {
        bail!("{address} is not a loopback address: listenq-lab sends nothing there");
    }
    Ok(())
}

/// The source address of the `n`th client of `target`: 250 addresses of 127.0.0.0/8 in turn, so
/// that ports do not run out.
///
/// `None` leaves the choice to the kernel (everything but IPv4 loopback).
#[must_use]
pub fn source(target: SocketAddr, n: usize) -> Option<SocketAddr> {
    let IpAddr::V4(ip) = target.ip() else {
        return None;
    };
    let last = u8::try_from(n % 250).ok()? + 1;
    ip.is_loopback().then(|| SocketAddr::new(Ipv4Addr::new(127, 1, 1, last).into(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_may_be_a_number_or_a_name() {
        assert_eq!(parse("[fe80::1%7]:80").unwrap().to_string(), "[fe80::1%7]:80");
        assert_eq!(parse("[fe80::1%lo]:80").unwrap().to_string(), "[fe80::1%1]:80");
        assert!(parse("[fe80::1%no-such-if]:80").is_err());
        assert!(parse("localhost").is_err());
    }

    #[test]
    fn addresses_of_other_machines_are_refused() {
        let check = |text: &str| {
            let address = parse(text).unwrap();
            (ensure_local(address).is_ok(), ensure_loopback(address).is_ok())
        };
        assert_eq!(check("127.9.9.9:80"), (true, true));
        assert_eq!(check("[::1]:80"), (true, true));
        assert_eq!(check("[fe80::1%1]:80"), (true, false));
        assert_eq!(check("192.0.2.1:80"), (false, false));
        assert_eq!(check("0.0.0.0:80"), (false, false));
    }
}
