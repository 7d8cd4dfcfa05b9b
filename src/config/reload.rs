//! What a changed configuration can change in a running balancer.

use super::types::Config;

impl Config {
    /// The keys that differ in `new` but take effect only at a restart: the sockets that are listened on (`port`,
    /// `admin_listen`, `takeover`), who this balancer says it is (`region`), and what queues and the history of
    /// policies are made with (`limits.clients`, `policy.history`).
    ///
    /// Everything else applies live: at once for timeouts, keys, distances, trust, discovery, the policy and its
    /// limits; for new connections, clients, links and requests where a limit is fixed when one of them begins.
    pub fn reload_diff(&self, new: &Self) -> Vec<String> {
        [
            ("port", self.port != new.port),
            ("admin_listen", self.admin_listen != new.admin_listen),
            ("takeover", self.takeover != new.takeover),
            ("region", self.region != new.region),
            ("limits.clients", self.limits.clients != new.limits.clients),
            ("policy.history", self.policy.history != new.policy.history),
        ]
        .into_iter()
        .filter(|(_, changed)| *changed)
        .map(|(key, _)| key.to_owned())
        .collect()
    }
}
