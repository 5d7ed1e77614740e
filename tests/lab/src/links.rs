//! Owns links on which packets get lost or take their time.

use std::net::Ipv4Addr;

use crate::netns::{Netns, ip, output};

/// The interface that swallows what is routed to it.
const VOID: &str = "lq-void";
/// Its addresses: link-local, and nobody has one of them.
pub(crate) const VOID_NET: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 0);
/// The end of a slow link in the namespace that asked for it, and the other one.
const SLOW_ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(169, 254, 7, 1), Ipv4Addr::new(169, 254, 7, 2)];

impl Netns {
    /// Routes 169.254.0.0/16 to where nobody answers: what is sent there, also by a listener on loopback,
    /// is lost without an error. Does nothing when it is so already.
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
        // Without ARP the frames leave at once, and the other end takes none of them for its own.
        for end in [VOID, &peer] {
            ip(&["link", "set", end, "addrgenmode", "none", "arp", "off", "up"]);
        }
        // A source of 127.0.0.1 may leave loopback here.
        self.sysctl(&format!("net.ipv4.conf.{VOID}.route_localnet"), 1);
        ip(&["route", "add", &format!("{VOID_NET}/16"), "dev", VOID]);
    }

    /// Links this namespace to `other` over IPv4, and gives the addresses here and there. What is sent from
    /// here takes its time: one packet after another at so many kbit/s, as behind a narrow uplink.
    ///
    /// A SYN-ACK has 74 bytes: at 200 kbit/s the answers to a burst of SYNs come back one in three milliseconds.
    /// No packet from here may have more than 150, else it is lost: a longer one would let twenty go at once.
    ///
    /// # Panics
    ///
    /// When `ip` or `tc` fails, or the link is there already.
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

    /// Spares the first packet the question who has its address.
    fn learn_neighbour(&self, dev: &str, address: Ipv4Addr, mac: &str) {
        let neighbour = ["neigh", "add", &address.to_string(), "lladdr", mac, "dev", dev];
        ip(&[&["-n", self.name()], &neighbour[..]].concat()).unwrap();
    }

    fn mac(&self, dev: &str) -> String {
        let text = ip(&["-n", self.name(), "-br", "link", "show", "dev", dev]).unwrap();
        text.split_whitespace().nth(2).expect("name, state, address").to_owned()
    }
}
