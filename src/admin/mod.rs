//! Health, readiness, metrics, state, event stream and policy control over HTTP.
