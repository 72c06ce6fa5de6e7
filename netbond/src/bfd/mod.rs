//! A BFD speaker (RFC 5880) for single IP hops (RFC 5881) and several (RFC 5883): asynchronous
//! mode, no authentication, no echo. The far end is BIRD, FRR or any other speaker of the standard.
//!
//! [`packet`] is the wire format, [`session`] the state machine, [`task`] has the clock and the
//! sockets.

pub mod packet;
pub mod session;
pub mod task;

pub use packet::{Diagnostic, Reject};
pub use task::{Hops, Report, SessionConfig, Speaker};
