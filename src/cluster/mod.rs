//! The state machine: rooms, Monoliths and clients. Events in, effects out; no I/O, no clock, no await.
