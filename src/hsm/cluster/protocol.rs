//! What members say to each other, as the appliance user: sealed under a key that only members of the cluster have.
//!
//! Each side gives a nonce, and the messages of a conversation are counted: what was sealed for another conversation, or
//! sent before, does not open. So each side proves that it holds the cluster's mask key, on a Unix socket too.

use std::collections::BTreeMap;

use cryptoki_sys::*;

use super::super::Ck;
use super::super::appliance::{App, Appliance, Life, Meta};
use super::super::root::unhex;
use super::super::wire::{Bytes, Wire, decode, encode, wire_enum};
use super::merge::Digest;
use super::{Key, POLICY, Version};
use crate::crypto::{SealKey, Secret, derive, random};

/// Labels keep keys of different purposes apart. Never reuse one, never edit one.
const UNIT_KEY: &[u8] = b"envelopefs/hsm/v1/unit";
const SYNC_KEY: &[u8] = b"envelopefs/hsm/v1/sync-status";
/// Bytes of versions in one message.
pub(super) const BATCH: usize = 2 << 20;
/// Records that are asked for in one message.
pub(super) const BATCH_KEYS: usize = 4096;

wire_enum! {
    /// What one member asks another.
    Ask {
        /// The first message: who asks, and what he has.
        0 = Status { serial: String, clock: u64, horizon: u64, seen: u64, root: Bytes },
        1 = List {},
        2 = Get { keys: Vec<Bytes> },
        3 = Put { versions: Vec<Version> },
    }
}

wire_enum! {
    /// What the other answers.
    Said {
        0 = Status { serial: String, active: bool, clock: u64, horizon: u64, seen: u64, root: Bytes },
        1 = List { all: Vec<(Bytes, Bytes)> },
        /// `taken` of the keys are answered; ask for the rest.
        2 = Versions { some: Vec<Version>, taken: u32 },
        3 = Done {},
        4 = Refused { why: String },
    }
}

/// The direction of a message.
#[derive(Clone, Copy)]
pub(super) enum Way {
    Asked = 0,
    Answered = 1,
}

/// The state of a conversation, the same on both sides.
#[derive(Default)]
pub(in super::super) struct Talk {
    /// Nonces of who asks and of who answers.
    pub(super) nonces: [Vec<u8>; 2],
    /// Messages so far.
    pub(super) count: u64,
    /// Who asks, once he has said so.
    pub(super) serial: String,
}

impl Talk {
    pub(super) fn bound(&self, way: Way) -> Vec<u8> {
        let mut ad = UNIT_KEY.to_vec();
        ad.push(way as u8);
        for nonce in &self.nonces {
            ad.extend_from_slice(nonce);
        }
        ad.extend_from_slice(&self.count.to_le_bytes());
        ad
    }
}

/// Length of a nonce.
pub(super) const NONCE: usize = 32;

impl Appliance {
    /// The key of the members' conversations.
    pub(super) fn unit_key(&self) -> Ck<SealKey> {
        self.of_mask(UNIT_KEY).map(SealKey::new)
    }

    /// The key of the digests that SyncStatus shows.
    pub(in super::super) fn sync_key(&self) -> Ck<Secret<32>> {
        self.of_mask(SYNC_KEY)
    }

    fn of_mask(&self, label: &[u8]) -> Ck<Secret<32>> {
        let bytes = unhex(&self.state.read().meta.mask_key).map(zeroize::Zeroizing::new);
        let mask: Secret<32> = bytes.and_then(|b| Secret::from_slice(&b)).ok_or(CKR_DEVICE_ERROR)?;
        Ok(derive::hkdf(mask.expose(), b"", label))
    }

    /// Begins a conversation: tells who this is, which everybody may know.
    pub(in super::super) fn greet(&self, app: &App, nonce: &[u8]) -> Ck<(String, (String, Bytes))> {
        if nonce.len() != NONCE {
            return Err(CKR_ARGUMENTS_BAD);
        }
        let mine = random::array::<NONCE>().to_vec();
        let talk = Talk { nonces: [nonce.to_vec(), mine.clone()], ..Talk::default() };
        *app.unit.lock() = Some(talk);
        let state = self.state.read();
        Ok((state.meta.serial.clone(), (state.meta.cluster.clone(), Bytes::new(mine))))
    }

    /// Answers another member.
    pub(in super::super) fn unit(&self, app: &App, message: &[u8]) -> Ck<Bytes> {
        let mut talk = app.unit.lock();
        let talk = talk.as_mut().ok_or(CKR_USER_NOT_LOGGED_IN)?;
        let key = self.unit_key()?;
        let plain = key.open(&talk.bound(Way::Asked), message).map_err(|_| CKR_PIN_INCORRECT)?;
        app.is_unit.store(true, std::sync::atomic::Ordering::Relaxed);
        let said = match decode::<Ask>(&plain) {
            Some(ask) => self.said(talk, ask),
            None => Said::Refused { why: "it speaks another version of the members' protocol".into() },
        };
        let sealed = key.seal(&talk.bound(Way::Answered), &encode(&said));
        talk.count += 1;
        Ok(Bytes::new(sealed))
    }

    fn said(&self, talk: &mut Talk, ask: Ask) -> Said {
        if let Ask::Status { serial, .. } = &ask {
            serial.clone_into(&mut talk.serial);
        }
        if !self.admits(&talk.serial) {
            if matches!(ask, Ask::Status { .. }) {
                // It learns that it is out by the list of who is in.
                return Said::Versions { some: self.version(&vec![POLICY]).into_iter().collect(), taken: 0 };
            }
            return Said::Refused {
                why: format!("HSM {} is no member of this cluster (any more): cluster add", talk.serial),
            };
        }
        match ask {
            Ask::Status { clock, horizon, seen, .. } => {
                self.clock.heard(clock);
                let stale = seen < self.state.read().meta.horizon;
                if stale {
                    return Said::Refused { why: super::rounds::STALE.into() };
                }
                if self.claim(&talk.serial).seen >= horizon {
                    self.adopt_horizon(horizon);
                }
                let Claim { clock, horizon, seen } = self.claim(&talk.serial);
                let (active, serial) = {
                    let state = self.state.read();
                    (state.meta.life == Life::Active, state.meta.serial.clone())
                };
                let root = Self::root_of(&self.inventory());
                Said::Status { serial, active, clock, horizon, seen, root }
            }
            Ask::List {} => {
                let bytes = |of: &[u8]| Bytes::new(of.to_vec());
                Said::List { all: self.inventory().iter().map(|(k, d)| (bytes(k), bytes(d))).collect() }
            }
            Ask::Get { keys } => self.some_of(&keys),
            Ask::Put { versions } => {
                let policy = versions.iter().any(|v| v.key == [POLICY]);
                match self.absorb(versions) {
                    Ok(()) => {
                        if policy {
                            self.tend();
                        }
                        Said::Done {}
                    }
                    Err(rv) => Said::Refused { why: format!("its store failed ({rv:#x}); see its log") },
                }
            }
        }
    }

    fn some_of(&self, keys: &[Bytes]) -> Said {
        let (mut some, mut taken, mut bytes) = (Vec::new(), 0, 0);
        for key in keys {
            if bytes > BATCH {
                break;
            }
            if let Some(version) = self.version(key) {
                bytes += version.size();
                some.push(version);
            }
            taken += 1;
        }
        Said::Versions { some, taken }
    }

    /// Whether another member's word is taken: in a cluster that of its members, before that of whoever has the mask key.
    fn admits(&self, serial: &str) -> bool {
        let state = self.state.read();
        !state.meta.joined || state.meta.policy().has(serial)
    }

    /// What this member says of itself to another one.
    pub(in super::super) fn claim(&self, to: &str) -> Claim {
        self.state.read().meta.claim(to, self.clock.last())
    }
}

impl Meta {
    /// Until when all deletions that the other one knows are known here.
    pub(in super::super) fn claim(&self, to: &str, clock: u64) -> Claim {
        let alone = self.members.len() < 2 && self.seen == 0;
        let known = self.known.get(to).copied().unwrap_or(0);
        // What was forgotten here was known here.
        let seen = if alone { clock } else { self.seen.max(self.horizon).max(known) };
        Claim { clock, horizon: self.horizon, seen }
    }
}

/// Clocks of a member.
pub(in super::super) struct Claim {
    pub(super) clock: u64,
    pub(super) horizon: u64,
    pub(in super::super) seen: u64,
}

/// A list as it came.
pub(super) fn listed(all: Vec<(Bytes, Bytes)>) -> BTreeMap<Key, Digest> {
    let one = |(key, digest): (Bytes, Bytes)| Some((key.to_vec(), digest.as_slice().try_into().ok()?));
    all.into_iter().filter_map(one).collect()
}
