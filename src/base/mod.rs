//! Floor 0: time, units, ids, buffers and dice. Plain values that every floor may use.

pub mod buf;
pub mod id;
pub mod net;
pub mod pace;
pub mod rng;
pub mod time;
