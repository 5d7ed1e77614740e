//! The address that identifies a client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address of a client: an IPv4 address, or the /64 prefix of an IPv6 address, because a client
/// with one address of a /64 usually has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientAddress(IpAddr);

impl From<IpAddr> for ClientAddress {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
            v4 => v4,
        })
    }
}

/// The address of requests without a connection.
impl Default for ClientAddress {
    fn default() -> Self {
        Self(Ipv4Addr::UNSPECIFIED.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> ClientAddress {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn addresses_of_one_client_are_equal_and_those_of_two_are_not() {
        assert_eq!(client("192.0.2.1"), client("::ffff:192.0.2.1"));
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:0:0:2"));
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
    }
}
