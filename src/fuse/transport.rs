//! How requests come to the daemon, and the choice of it.

use std::fmt;
use std::str::FromStr;

use log::debug;

use super::rings::{self, NoRings, Ring};

/// How requests come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Transport {
    /// By io_uring where the kernel offers it, else by `/dev/fuse`.
    #[default]
    Auto,
    /// By `/dev/fuse`.
    Device,
    /// By io_uring, or not at all.
    Rings,
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "device" => Ok(Self::Device),
            "uring" => Ok(Self::Rings),
            _ => Err(format!("{word:?} is no way that requests come: it is auto, device or uring")),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Device => "device",
            Self::Rings => "uring",
        })
    }
}

impl Transport {
    /// The rings that a mount shall have; none: `/dev/fuse` alone. Before the mount, so that nothing is mounted when it
    /// fails. `locks`: requests may wait for locks, and by a ring a thread would have to wait with each.
    pub(super) fn rings(self, payload: usize, locks: bool) -> Result<Vec<Ring>, NoRings> {
        if self == Self::Device || locks && self == Self::Auto {
            return Ok(Vec::new());
        }
        if locks {
            return Err(NoRings::Locks);
        }
        match rings::offered(self == Self::Rings).and_then(|()| rings::make(payload)) {
            Err(why) if self == Self::Auto => {
                debug!("requests come by /dev/fuse: {why}");
                Ok(Vec::new())
            }
            other => other,
        }
    }
}
