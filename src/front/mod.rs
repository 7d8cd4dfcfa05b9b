//! The front door: listener, HTTP proxy, WebSocket clients, room list. The only place that turns an error into a status or a close code.

pub mod body;
mod connection;
pub mod forward;
mod framing;
mod guard;
pub mod listener;
pub mod respond;
pub mod tunnel;
pub mod upload;
pub mod upstream;
mod wire;

#[cfg(test)]
mod testing;
