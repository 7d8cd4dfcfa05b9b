//! Where the Monoliths are: manual, DNS, Fly and harness, each a stream of endpoint sets.
