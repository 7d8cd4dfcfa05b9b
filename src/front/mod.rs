//! The front door: listener, HTTP proxy, WebSocket clients, room list. The only place that turns an error into a status or a close code.

mod admit;
pub mod body;
pub mod clients;
mod connection;
pub mod door;
pub mod forward;
mod framing;
mod guard;
pub mod handshakes;
pub(crate) mod hold;
pub mod listener;
mod proxy;
mod rate;
pub mod respond;
pub mod room_list;
pub mod room_socket;
pub mod router;
pub mod tunnel;
mod turnstile;
pub mod upload;
pub mod upstream;
mod wire;

#[cfg(test)]
pub(crate) mod broken;
#[cfg(test)]
mod testing;
