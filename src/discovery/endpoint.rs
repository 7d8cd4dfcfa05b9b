//! Where one Monolith listens for balancers.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Everything that is to be dialled.
pub type EndpointSet = BTreeSet<Endpoint>;

/// A host and a port. Written as `host:port`, an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// An IP address without brackets, or a DNS name.
    pub host: String,
    /// The port of the Monolith's balancer socket.
    pub port: u16,
}

impl Endpoint {
    /// The endpoint of an address.
    pub fn of_ip(ip: IpAddr, port: u16) -> Self {
        Self { host: ip.to_string(), port }
    }
}

/// Why a text is no endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no endpoint: write host:port, an IPv6 address in brackets")]
pub struct InvalidEndpoint(String);

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidEndpoint(text.chars().take(80).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?;
        if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let ip: Ipv6Addr = address.parse().map_err(|_| invalid())?;
            return Ok(Self::of_ip(ip.into(), port));
        }
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if host.is_empty() || host.len() > 253 || !host.chars().all(named) {
            return Err(invalid());
        }
        Ok(Self { host: host.into(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Endpoints in one line.
pub(super) fn join<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> String {
    endpoints.map(Endpoint::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for text in ["10.0.0.1:3002", "[::1]:3002", "[fdaa::3]:1", "my-app_1.local:65535"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        assert_eq!(Endpoint { host: "fdaa::3".into(), port: 1 }.to_string(), "[fdaa::3]:1");
        for bad in ["", "a", "a:", ":1", "a:0", "a:70000", "::1:5", "[::1]", "[::1:5", "[a]:5", "a b:1", "http://a:1"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad:?}");
        }
    }
}
