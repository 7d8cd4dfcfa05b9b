//! The front door: listener, HTTP proxy, WebSocket clients, room list. The only place that turns an error into a
//! status or a close code.

pub mod clients;
pub mod room_socket;
