//! What a changed configuration can change in a running balancer.

use super::types::Config;

impl Config {
    /// The keys that differ in `new` but take effect only at a restart: the sockets that are listened on (`port`,
    /// `admin_listen`), who this balancer says it is (`region`), and what listeners, the pool of connections to
    /// Monoliths and the history of policies are made with.
    ///
    /// Everything else applies live: at once for the other timeouts, keys, distances, trust, discovery, the policy and
    /// its limits; for new clients, links and requests where a limit is fixed when one of them begins.
    pub fn reload_diff(&self, new: &Self) -> Vec<String> {
        [
            ("port", self.port != new.port),
            ("admin_listen", self.admin_listen != new.admin_listen),
            ("region", self.region != new.region),
            ("limits.clients", self.limits.clients != new.limits.clients),
            ("limits.header", self.limits.header != new.limits.header),
            ("timeouts.keep_alive", self.timeouts.keep_alive != new.timeouts.keep_alive),
            ("timeouts.http_connect", self.timeouts.http_connect != new.timeouts.http_connect),
            ("timeouts.http_response", self.timeouts.http_response != new.timeouts.http_response),
            ("timeouts.upstream_idle", self.timeouts.upstream_idle != new.timeouts.upstream_idle),
            ("policy.history", self.policy.history != new.policy.history),
        ]
        .into_iter()
        .filter(|(_, changed)| *changed)
        .map(|(key, _)| key.to_owned())
        .collect()
    }
}
