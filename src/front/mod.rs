//! The front door: listener, HTTP proxy, WebSocket clients, room list. The only place that turns an error into a status or a close code.

mod accept;
mod admit;
pub(crate) mod attempts;
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
pub mod threads;
pub mod tunnel;
mod turnstile;
pub mod upload;
pub mod upstream;
mod wire;

/// How many tasks run between two looks at what has arrived on the sockets. When thousands join at once there is always a
/// task to run, and at tokio's own pace, 61, whoever asks how this balancer is doing would wait a few milliseconds to be
/// heard at all. Under load the looks cost no more than the scatter of a measurement.
pub const SOCKETS_EVERY: u32 = 8;

#[cfg(test)]
pub(crate) mod broken;
#[cfg(test)]
mod testing;
