//! What a Monolith and the balancer say to each other on a link, and what a client says first.
