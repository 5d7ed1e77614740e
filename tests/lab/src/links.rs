//! Links that lose or delay packets.

use std::net::Ipv4Addr;

use crate::netns::{Netns, ip, output};

/// The interface that drops all packets routed to it.
const VOID: &str = "lq-void";
/// The addresses of the interface: link-local, and assigned to no host.
pub(crate) const VOID_NET: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 0);
/// The addresses of a slow link: the end in the namespace that created it, and the other end.
const SLOW_ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(169, 254, 7, 1), Ipv4Addr::new(169, 254, 7, 2)];

impl Netns {
    /// Routes 169.254.0.0/16 to an interface that drops all packets: packets sent there, also by a
    /// listener on loopback, are lost without an error. Does nothing if the route exists.
    ///
    /// # Panics
    ///
    /// When `ip` fails.
    pub fn add_void(&self) {
        if self.has_link(VOID) {
            return;
        }
        let ip = |args: &[&str]| ip(&[&["-n", self.name()], args].concat()).unwrap();
        let peer = format!("{VOID}p");
        ip(&["link", "add", VOID, "type", "veth", "peer", "name", &peer]);
        // Without ARP the frames leave at once, and the other end drops all of them.
        for end in [VOID, &peer] {
            ip(&["link", "set", end, "addrgenmode", "none", "arp", "off", "up"]);
        }
        // A packet with source 127.0.0.1 may leave loopback on this interface.
        self.sysctl(&format!("net.ipv4.conf.{VOID}.route_localnet"), 1);
        ip(&["route", "add", &format!("{VOID_NET}/16"), "dev", VOID]);
    }

    /// Links this namespace to `other` over IPv4 and returns both addresses, this namespace's
    /// first. Packets sent from this namespace leave one after another at `kbit` kbit/s, as behind
    /// a narrow uplink.
    ///
    /// A SYN-ACK has 74 bytes: at 200 kbit/s one answer to a burst of SYNs arrives every three
    /// milliseconds. A packet from this namespace may have at most 150 bytes, else it is lost: a
    /// larger limit would let twenty packets leave at once.
    ///
    /// # Panics
    ///
    /// When `ip` or `tc` fails, or the link already exists.
    pub fn slow_link_to(&self, other: &Self, kbit: u32) -> [Ipv4Addr; 2] {
        let (name, peer) = ("lq-slow", "lq-slowp");
        self.add_link_to(other, name);
        for (ns, end, address) in [(self, name, SLOW_ENDS[0]), (other, peer, SLOW_ENDS[1])] {
            let ip = |args: &[&str]| ip(&[&["-n", ns.name()], args].concat()).unwrap();
            ip(&["address", "add", &format!("{address}/24"), "dev", end]);
            ip(&["link", "set", end, "addrgenmode", "none", "up"]);
        }
        self.learn_neighbour(name, SLOW_ENDS[1], &other.mac(peer));
        other.learn_neighbour(peer, SLOW_ENDS[0], &self.mac(name));
        let rate = format!("{kbit}kbit");
        let shape = ["qdisc", "add", "dev", name, "root", "tbf", "rate", &rate];
        let bucket = ["burst", "200", "limit", "1000000"];
        output(self.command("tc").args(shape).args(bucket)).unwrap();
        SLOW_ENDS
    }

    /// Adds the neighbour entry, so that the first packet needs no ARP request.
    fn learn_neighbour(&self, dev: &str, address: Ipv4Addr, mac: &str) {
        let neighbour = ["neigh", "add", &address.to_string(), "lladdr", mac, "dev", dev];
        ip(&[&["-n", self.name()], &neighbour[..]].concat()).unwrap();
    }

    fn mac(&self, dev: &str) -> String {
        let text = ip(&["-n", self.name(), "-br", "link", "show", "dev", dev]).unwrap();
        text.split_whitespace().nth(2).expect("name, state, address").to_owned()
    }
}
