//! The kernel's FUSE protocol: requests are decoded, answered by a [`Handler`], and replied to; an error is logged here,
//! once. The only folder that knows the protocol.
//!
//! Refuses to know what a key, a block or a lower path is: all of that is `fs`'s. What the kernel may cache is
//! decided here ([`negotiate`], `adapter`), since a vault that is not shared changes only through this mount.

mod abi;
mod adapter;
mod buffer;
mod channel;
mod convert;
mod corrected;
mod device;
mod device_loop;
mod dispatch;
mod entries;
mod handler;
mod locking;
mod negotiate;
mod notify;
mod report;
mod request;
mod rings;
mod seek;
mod session;
mod transport;

pub use device::{MountError, MountLine, mountinfo};
pub use entries::{Entries, Listed};
pub use handler::{Answer, Attributes, Copying, Entry, Handler, Looked, NewMode, Opened};
pub use notify::Notifier;
pub use rings::NoRings;
pub use session::{DeviceNumber, MountConfig, Mounted, Session, mount};
pub use transport::Transport;
