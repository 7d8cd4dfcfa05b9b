//! One supervisor per endpoint: dial, handshake, heartbeat, read loop, write loop, fan-out, back-off.
