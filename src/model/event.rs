//! What happens to the cluster, and what the cluster wants done about it.
