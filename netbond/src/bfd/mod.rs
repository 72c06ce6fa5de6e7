//! A BFD speaker (RFC 5880) for single IP hops (RFC 5881) and several (RFC 5883): asynchronous
//! mode, no authentication, no echo. The far end is BIRD, FRR or any other speaker of the standard.
//!
//! [`packet`] is the wire format, [`session`] the state machine, [`task`] has the clock and the
//! sockets, [`thread`] the thread that all of it runs on.

pub mod packet;
pub mod session;
pub mod task;
pub mod thread;

pub use packet::{Diagnostic, Reject};
pub use task::{Hops, Report, SessionConfig, Speaker};
pub use thread::Thread;
