//! The only folder that names `fuser`: translate, call, reply; an error is logged here, once.
//!
//! Refuses to know what a key, a block or a lower path is: all of that is `fs`'s. What the kernel may cache is
//! decided here ([`negotiate`], `adapter`), since a vault that is not shared changes only through this mount.

mod adapter;
mod buffer;
mod convert;
mod corrected;
mod device;
mod negotiate;
mod report;
mod seek;
mod session;

pub use device::{MountError, MountLine, mountinfo};
pub use session::{DeviceNumber, MountConfig, Mounted, mount};
