//! The one thread that owns the cluster and the deciding policy, and handles for everyone else.
