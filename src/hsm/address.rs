//! Where an appliance listens: `unix:PATH` or `tcp:HOST:PORT`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// An address.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// A socket in the filesystem; peers are known by their credentials.
    Unix(PathBuf),
    /// Host and port; peers are known by their certificates.
    Tcp(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:")
            && !path.is_empty()
        {
            return Ok(Self::Unix(path.into()));
        }
        match text.strip_prefix("tcp:") {
            Some(at)
                if at.rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok()) =>
            {
                Ok(Self::Tcp(at.to_owned()))
            }
            _ => Err(format!("{text}: no address of an HSM; write unix:PATH or tcp:HOST:PORT")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(at) => write!(f, "tcp:{at}"),
        }
    }
}
