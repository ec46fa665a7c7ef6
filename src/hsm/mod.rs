//! A software HSM with AWS CloudHSM's roles, permissions and life, and the PKCS#11 module that is its client.
//!
//! The appliance is a process of its own: keys live in it and leave it wrapped only. The module talks to it over a
//! socket (`wire`), holds no key and decides nothing. Attributes, permissions and mechanisms are decided in the
//! appliance alone, so a client that lies gains nothing.

mod address;
mod admin;
mod appliance;
mod attrs;
mod audit;
mod backup;
mod budget;
mod calls;
mod certificate;
mod changes;
mod client;
mod cluster;
mod derive;
mod engine;
mod error;
mod export;
mod keycommands;
mod keyops;
mod keystore;
mod lc;
mod manager;
mod material;
mod mechs;
mod metrics;
#[cfg(all(target_endian = "little", target_pointer_width = "64"))]
mod module;
mod monitor;
mod object;
mod passworded;
mod pool;
mod quorum;
mod record;
mod root;
mod server;
mod session;
mod signature;
mod store;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod users;
mod wire;
mod wrapping;

pub use address::Address;
pub use appliance::{Appliance, Config, Life};
pub use client::Link;
pub use error::HsmError;
pub use keystore::{KeyStore, KeyStoreError, KeyUser};
pub use manager::{CURVES, Manager, NewKey, session_file};
pub use monitor::Monitor;
pub use quorum::{Service, Sharing};
pub use root::{Cost, Protection, needs_passphrase};
pub use server::{Peers, Server};
pub use signature::{Hash, Signature};
pub use tls::ClientTls;
pub use users::{Permission, Role};

/// What a call of the appliance answers: a value, or a CK_RV.
type Ck<T> = Result<T, cryptoki_sys::CK_RV>;
