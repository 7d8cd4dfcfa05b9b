//! One look-up of a name's addresses.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};

/// What to ask whom.
#[derive(Clone, Debug)]
pub(super) struct Query {
    /// The name; with a final dot no search domain is tried.
    pub(super) name: String,
    /// The server; none: the system's.
    pub(super) server: Option<SocketAddr>,
    /// Which addresses.
    pub(super) family: Family,
}

/// Which addresses count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// A and AAAA records. A Monolith with an address of each kind is linked once: the second link finds the first.
    Both,
    /// AAAA records.
    V6,
}

impl Query {
    /// Asks once. An empty set is an answer too: the name does not exist, or has no address.
    ///
    /// The resolver is made anew, so that a changed `resolv.conf` counts and no cache outlives a Monolith.
    pub(super) async fn addresses(&self) -> Result<BTreeSet<IpAddr>, NetError> {
        if let Ok(ip) = self.name.parse() {
            return Ok(BTreeSet::from([ip]));
        }
        let resolver = self.resolver()?;
        let kinds: &[RecordType] = match self.family {
            Family::Both => &[RecordType::A, RecordType::AAAA],
            Family::V6 => &[RecordType::AAAA],
        };
        let (mut found, mut failed) = (BTreeSet::new(), None);
        for kind in kinds {
            match resolver.lookup(self.name.as_str(), *kind).await {
                Ok(lookup) => found.extend(lookup.answers().iter().filter_map(|record| address(&record.data))),
                Err(error) if error.is_no_records_found() => {}
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            // Some servers cannot answer for one kind at all; what the other kind gave is good.
            Some(error) if found.is_empty() => Err(error),
            _ => Ok(found),
        }
    }

    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let mut builder = match self.server {
            None => TokioResolver::builder_tokio()?,
            Some(server) => {
                let mut name_server = NameServerConfig::udp_and_tcp(server.ip());
                for connection in &mut name_server.connections {
                    connection.port = server.port();
                }
                let config = ResolverConfig::from_name_servers(vec![name_server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        let options = builder.options_mut();
        options.timeout = Duration::from_secs(2);
        options.attempts = 1;
        options.cache_size = 0;
        builder.build()
    }
}

fn address(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(address) => Some(address.0.into()),
        RData::AAAA(address) => Some(address.0.into()),
        _ => None,
    }
}
