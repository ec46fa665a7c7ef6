//! The appliance user's work: what changed here is put to the other members, and what differs is found and mended.
//!
//! One thread for each other member compares with it every few seconds. Whoever waits for a member that does not answer
//! waits once: it counts as away until a round reaches it, and what it misses meanwhile is remembered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use cryptoki_sys::*;
use parking_lot::{Condvar, Mutex};

use super::super::Ck;
use super::super::address::Address;
use super::super::appliance::Appliance;
use super::super::client::{Link, Lost, parse};
use super::super::tls;
use super::super::wire::{Bytes, Request, Wire as _, decode, encode};
use super::merge::Digest;
use super::protocol::{Ask, BATCH, BATCH_KEYS, NONCE, Said, Talk, Way, listed};
use super::{Key, Member, POLICY, Version};
use crate::crypto::random;

/// How long a member may take to an answer; whether it lives at all is looked at sooner.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a member that starts waits for what it missed before it serves anyway.
const CATCH_UP: Duration = Duration::from_secs(10);
/// Records that are remembered as missed; beyond that all are compared.
const MAX_PENDING: usize = 65_536;
/// How old the note of what is known may get before it is written anew, in microseconds.
const NOTE: u64 = 3_600_000_000;

pub(super) const STALE: &str = "the HSM, or the backup that it was made of, is older than the deletions that the cluster \
                                remembers: deleted keys would come back. Make a new backup and restore the HSM from it";

/// The other members.
#[derive(Default)]
pub(in super::super) struct Peers {
    me: OnceLock<Weak<Appliance>>,
    /// Where the others reach this one; empty until it serves.
    own: Mutex<String>,
    all: Mutex<BTreeMap<String, Arc<Peer>>>,
    /// A member was tried.
    tried: Condvar,
    /// When it was last written what is known of them.
    noted: AtomicU64,
}

/// One of them.
pub(super) struct Peer {
    pub(super) member: Member,
    line: Mutex<Option<Line>>,
    standing: Mutex<Standing>,
    bell: Condvar,
}

/// What is known of a member.
#[derive(Clone, Default)]
pub(super) struct Standing {
    pub(super) tried: bool,
    pub(super) reachable: bool,
    /// Why not, or why it is refused.
    pub(super) why: String,
    /// What it has not got yet, each with the number of the telling that it waits for.
    pub(super) missing: BTreeMap<Key, u64>,
    /// Whether that is all.
    pub(super) compared: bool,
    /// Tellings so far, and the last one at which `missing` was given up.
    tellings: u64,
    forgotten: u64,
}

/// What a member is about to be told, and how many tellings there were until then.
struct Begun {
    keys: BTreeMap<Key, u64>,
    tellings: u64,
}

/// A conversation with a member.
pub(super) struct Line {
    link: Link,
    talk: Talk,
}

impl Standing {
    /// It was told what was begun, or compared with: what was changed again meanwhile it lacks still.
    fn told(&mut self, begun: &Begun, round: bool) {
        self.missing.retain(|key, telling| begun.keys.get(key) != Some(telling));
        self.compared |= round && self.forgotten <= begun.tellings;
        self.reachable |= round;
        self.why.clear();
    }
}

impl Peer {
    pub(super) fn standing(&self) -> Standing {
        self.standing.lock().clone()
    }

    /// Whether it has these records for sure.
    pub(super) fn has(&self, keys: &[Key]) -> bool {
        let standing = self.standing.lock();
        standing.compared && keys.iter().all(|key| !standing.missing.contains_key(key))
    }

    /// Remembers what it has to be told.
    pub(super) fn told(&self, keys: &[Key]) {
        let mut standing = self.standing.lock();
        standing.tellings += 1;
        let telling = standing.tellings;
        standing.missing.extend(keys.iter().map(|key| (key.clone(), telling)));
        if standing.missing.len() > MAX_PENDING {
            standing.missing.clear();
            standing.compared = false;
            standing.forgotten = telling;
        }
    }

    /// What it lacks. It goes on lacking that until it was told: a conversation may take long and fail.
    fn begin(&self) -> Begun {
        let standing = self.standing.lock();
        Begun { keys: standing.missing.clone(), tellings: standing.tellings }
    }
}

impl Peers {
    pub(in super::super) fn belong_to(&self, appliance: &Arc<Appliance>) {
        let _ = self.me.set(Arc::downgrade(appliance));
    }

    pub(super) fn own(&self) -> String {
        self.own.lock().clone()
    }

    pub(super) fn all(&self) -> Vec<Arc<Peer>> {
        self.all.lock().values().cloned().collect()
    }

    fn knows(&self, peer: &Arc<Peer>) -> bool {
        self.all.lock().get(&peer.member.serial).is_some_and(|p| Arc::ptr_eq(p, peer))
    }
}

impl Appliance {
    /// Takes its place among the members: they reach it at `address`. Waits for what it missed while it was away.
    pub fn join(&self, address: &Address) {
        *self.peers.own.lock() = address.to_string();
        let moved = {
            let state = self.state.read();
            let mine = |m: &&Member| m.serial == state.meta.serial;
            state.meta.members.iter().find(mine).is_some_and(|m| m.address != address.to_string())
        };
        if moved {
            let changed = self.change_policy(|members, serial| {
                members
                    .iter_mut()
                    .filter(|m| m.serial == serial)
                    .for_each(|m| m.address = address.to_string());
            });
            if let Err(rv) = changed {
                log::error!("the new address could not be stored ({rv:#x})");
            }
        }
        self.tend();
        let until = Instant::now() + CATCH_UP;
        let mut all = self.peers.all.lock();
        while all.values().any(|peer| !peer.standing.lock().tried) {
            if self.peers.tried.wait_until(&mut all, until).timed_out() {
                log::warn!("some members do not answer; serving without what they may have changed");
                return;
            }
        }
    }

    /// Changes the list of members, as a new version of the policy.
    pub(super) fn change_policy(&self, change: impl FnOnce(&mut Vec<Member>, &str)) -> Ck<()> {
        let stamp = self.stamp();
        self.change_meta(|meta| {
            let serial = meta.serial.clone();
            change(&mut meta.members, &serial);
            meta.policy = stamp;
            meta.joined |= meta.policy().has(&serial);
        })
    }

    /// Has a thread for each other member, and none for who is none any more.
    pub(super) fn tend(&self) {
        let wanted: Vec<Member> = {
            let state = self.state.read();
            let meta = &state.meta;
            let others = |m: &&Member| m.serial != meta.serial;
            if meta.is_removed() || self.peers.own().is_empty() {
                Vec::new()
            } else {
                meta.members.iter().filter(others).cloned().collect()
            }
        };
        let mut all = self.peers.all.lock();
        all.retain(|_, peer| wanted.contains(&peer.member));
        for member in wanted {
            if all.contains_key(&member.serial) {
                continue;
            }
            let peer = Arc::new(Peer {
                line: Mutex::new(None),
                standing: Mutex::new(Standing::default()),
                bell: Condvar::new(),
                member: member.clone(),
            });
            all.insert(member.serial.clone(), peer.clone());
            let (weak, every) = (self.peers.me.get().cloned().unwrap_or_default(), self.config.sync_every);
            let spawned = std::thread::Builder::new()
                .name("hsm-unit".into())
                .spawn(move || attend(&weak, &peer, every));
            if let Err(e) = spawned {
                log::error!("member {}: no thread to synchronise it ({e})", member.serial);
            }
        }
        drop(all);
        self.peers.tried.notify_all();
    }

    /// Notes what the other members have to be told with the next change that is put to them.
    pub(in super::super) fn owe(&self, keys: Vec<Key>) {
        self.peers.all().iter().for_each(|peer| peer.told(&keys));
    }

    /// Puts changed records to the other members, those that are there.
    pub(in super::super) fn spread(&self, keys: &[Key]) {
        let peers = self.peers.all();
        peers.iter().for_each(|peer| peer.told(keys));
        for peer in &peers {
            if peer.standing.lock().reachable {
                self.deliver(peer);
            }
        }
    }

    /// [`Appliance::spread`], and whether so many have the records that a new key may be used: two, in a cluster.
    pub(in super::super) fn available(&self, keys: &[Key]) -> bool {
        if self.state.read().meta.members.len() < 2 {
            return true;
        }
        self.spread(keys);
        let others = self.peers.all().iter().filter(|peer| peer.has(keys)).count();
        let enough = others > 0 || self.config.disable_key_availability_check;
        if !enough {
            log::error!(
                "a key does not meet the availability requirements: it must be on at least 2 HSMs before it is used, \
                 and no other member answers (--disable-key-availability-check)"
            );
        }
        enough
    }

    pub(super) fn deliver(&self, peer: &Arc<Peer>) {
        let Some(mut line) = peer.line.try_lock_for(ANSWER) else { return };
        let begun = peer.begin();
        // Whoever had the line before may have found that nobody is there: one wait is enough.
        if !peer.standing.lock().reachable || begun.keys.is_empty() {
            return;
        }
        let done = self.put_all(peer, &mut line, begun.keys.keys());
        self.judge(peer, done, &begun, false);
    }

    /// Notes how a conversation with a member ended.
    fn judge(&self, peer: &Arc<Peer>, done: Result<(), String>, begun: &Begun, round: bool) {
        let mut standing = peer.standing.lock();
        match done {
            Ok(()) => {
                if round && !standing.reachable {
                    log::info!("member {} ({}) is synchronised", peer.member.serial, peer.member.address);
                }
                standing.told(begun, round);
            }
            Err(why) => {
                if standing.why != why {
                    log::warn!("member {} ({}): {why}", peer.member.serial, peer.member.address);
                }
                standing.reachable = false;
                standing.why = why;
            }
        }
        standing.tried = true;
        drop(standing);
        drop(self.peers.all.lock());
        self.peers.tried.notify_all();
    }

    /// Compares with a member and mends both.
    pub(super) fn round(&self, peer: &Arc<Peer>) {
        let Some(mut line) = peer.line.try_lock_for(ANSWER) else { return };
        let begun = peer.begin();
        let done = self.compare(peer, &mut line);
        self.judge(peer, done, &begun, true);
    }

    fn compare(&self, peer: &Peer, line: &mut Option<Line>) -> Result<(), String> {
        let ours = self.inventory();
        let root = Self::root_of(&ours);
        let (serial, since) = (&peer.member.serial, self.clock.last());
        let (clock, horizon, seen, theirs) = match self.converse(peer, line, &self.status(serial, &root))? {
            Said::Status { clock, horizon, seen, root, .. } => (clock, horizon, seen, root),
            Said::Versions { some, .. } => {
                self.absorb(some).map_err(|rv| format!("its policy could not be stored here ({rv:#x})"))?;
                self.tend();
                return Err("it says that this HSM is no member of the cluster".into());
            }
            _ => return Err(NONSENSE.into()),
        };
        self.may_meet(serial, clock, horizon, seen)?;
        if *theirs != *root {
            let Said::List { all } = self.converse(peer, line, &Ask::List {})? else {
                return Err(NONSENSE.into());
            };
            let theirs = listed(all);
            let differ = |a: &BTreeMap<Key, Digest>, b: &BTreeMap<Key, Digest>| -> Vec<Key> {
                a.iter().filter(|(k, d)| b.get(*k) != Some(*d)).map(|(k, _)| k.clone()).collect()
            };
            self.get_all(peer, line, differ(&theirs, &ours))?;
            self.put_all(peer, line, differ(&ours, &theirs).iter())?;
        }
        self.note_known(serial, since);
        Ok(())
    }

    /// Refuses to mend what would bring deleted keys back.
    pub(super) fn may_meet(&self, serial: &str, clock: u64, horizon: u64, seen: u64) -> Result<(), String> {
        self.clock.heard(clock);
        let mine = self.claim(serial);
        if seen < mine.horizon {
            return Err(STALE.into());
        }
        if mine.seen < horizon {
            return Err(format!("this HSM is out of date: {STALE}"));
        }
        self.adopt_horizon(horizon);
        Ok(())
    }

    /// A member's deletions of until then are known here. From then on it had the clock that it was told.
    fn note_known(&self, serial: &str, since: u64) {
        {
            let mut state = self.state.write();
            let known = state.meta.known.entry(serial.to_owned()).or_default();
            *known = since.max(*known);
        }
        if self.peers.noted.load(Ordering::Relaxed).saturating_add(NOTE) < since {
            self.peers.noted.store(since, Ordering::Relaxed);
            // Only a note: a later round writes it where this one could not. Nothing is known of who is no member.
            let _ = self.change_meta(|meta| {
                let members: BTreeSet<_> = meta.members.iter().map(|m| m.serial.clone()).collect();
                meta.known.retain(|serial, _| members.contains(serial));
            });
        }
    }

    fn get_all(&self, peer: &Peer, line: &mut Option<Line>, mut keys: Vec<Key>) -> Result<(), String> {
        while !keys.is_empty() {
            let some = keys.iter().take(BATCH_KEYS).map(|k| Bytes::new(k.clone())).collect();
            let Said::Versions { some, taken } = self.converse(peer, line, &Ask::Get { keys: some })? else {
                return Err(NONSENSE.into());
            };
            if taken == 0 {
                return Err(NONSENSE.into());
            }
            let policy = some.iter().any(|v| v.key == [POLICY]);
            self.absorb(some).map_err(|rv| format!("what it sent could not be stored here ({rv:#x})"))?;
            if policy {
                self.tend();
            }
            keys.drain(..keys.len().min(taken as usize));
        }
        Ok(())
    }

    fn put_all<'a>(
        &self,
        peer: &Peer,
        line: &mut Option<Line>,
        keys: impl Iterator<Item = &'a Key>,
    ) -> Result<(), String> {
        let mut versions: Vec<Version> = Vec::new();
        let mut bytes = 0;
        for version in keys.filter_map(|key| self.version(key)) {
            bytes += version.size();
            versions.push(version);
            if bytes > BATCH {
                bytes = 0;
                self.converse(peer, line, &Ask::Put { versions: std::mem::take(&mut versions) })?;
            }
        }
        if !versions.is_empty() {
            self.converse(peer, line, &Ask::Put { versions })?;
        }
        Ok(())
    }

    pub(super) fn status(&self, to: &str, root: &Bytes) -> Ask {
        let mine = self.claim(to);
        let serial = self.state.read().meta.serial.clone();
        Ask::Status { serial, clock: mine.clock, horizon: mine.horizon, seen: mine.seen, root: root.clone() }
    }

    /// Asks a member; begins a new conversation where the old one ended.
    fn converse(&self, peer: &Peer, line: &mut Option<Line>, ask: &Ask) -> Result<Said, String> {
        for fresh in [false, true] {
            if line.is_none() {
                let (made, serial, _) = self.call_on(&peer.member.address)?;
                if serial != peer.member.serial {
                    return Err(format!("HSM {serial} answers at {}", peer.member.address));
                }
                *line = Some(made);
            }
            let Some(open) = line.as_mut() else { return Err(NONSENSE.into()) };
            match self.say(open, ask) {
                Ok(Said::Refused { why }) => return Err(why),
                Ok(said) => return Ok(said),
                Err(why) => {
                    *line = None;
                    if fresh {
                        return Err(why);
                    }
                }
            }
        }
        Err(NONSENSE.into())
    }

    /// Begins a conversation with the HSM at an address, which must be of this cluster; gives its serial number and status.
    pub(super) fn call_on(&self, address: &str) -> Result<(Line, String, Said), String> {
        let at: Address = address.parse()?;
        let (tls, cluster) = {
            let state = self.state.read();
            let meta = &state.meta;
            let tls = match at {
                Address::Unix(_) => None,
                Address::Tcp(_) if meta.certificate.is_empty() => {
                    return Err(format!(
                        "{at}: this HSM has no certificate to show there (cluster initialize)"
                    ));
                }
                Address::Tcp(_) => Some(
                    tls::member(meta.certificate.as_bytes(), meta.tls_key.as_bytes(), meta.ca.as_bytes())
                        .map_err(|e| e.to_string())?,
                ),
            };
            (tls, meta.cluster.clone())
        };
        let link = Link::with(at, tls, ANSWER);
        let nonce = random::array::<NONCE>().to_vec();
        let greeted = link.ask(&Request::Greet { nonce: Bytes::new(nonce.clone()) }).map_err(lost)?;
        let (serial, (theirs, answer)): (String, (String, Bytes)) =
            parse(&greeted).map_err(|rv| format!("{address}: it knows no members ({rv:#x})"))?;
        if theirs != cluster {
            return Err(format!(
                "{address}: HSM {serial} belongs to {theirs}, this one to {cluster}: make a member out of a backup of this \
                 cluster (envelopefs hsm restore)"
            ));
        }
        let talk = Talk { nonces: [nonce, answer.to_vec()], ..Talk::default() };
        let mut line = Line { link, talk };
        let root = Self::root_of(&self.inventory());
        match self.say(&mut line, &self.status(&serial, &root))? {
            Said::Refused { why } => Err(format!("{address}: {why}")),
            status => Ok((line, serial, status)),
        }
    }

    fn say(&self, line: &mut Line, ask: &Ask) -> Result<Said, String> {
        let failed = |rv: CK_RV| format!("this HSM's key of the cluster is damaged ({rv:#x})");
        let key = self.unit_key().map_err(failed)?;
        let sealed = key.seal(&line.talk.bound(Way::Asked), &encode(ask));
        let answer = line.link.ask(&Request::Unit { message: Bytes::new(sealed) }).map_err(lost)?;
        let sealed: Bytes = parse(&answer).map_err(|rv| match rv {
            CKR_PIN_INCORRECT => FOREIGN.to_owned(),
            rv => format!("it refuses with {rv:#x}"),
        })?;
        let plain = key.open(&line.talk.bound(Way::Answered), &sealed).map_err(|_| FOREIGN.to_owned())?;
        line.talk.count += 1;
        decode(&plain).ok_or_else(|| NONSENSE.to_owned())
    }

    /// Takes over how far back deletions are remembered.
    pub(in super::super) fn adopt_horizon(&self, horizon: u64) {
        if horizon <= self.state.read().meta.horizon {
            return;
        }
        let _one = self.writing.lock();
        self.forget_before(horizon);
    }
}

const NONSENSE: &str = "it answers what was not asked; do all members run the same version?";
const FOREIGN: &str = "it has another cluster's keys, though the cluster's name: its backup is foreign; make the member out \
                       of a backup of this cluster (envelopefs hsm restore)";

fn lost(lost: Lost) -> String {
    match lost {
        Lost::Unreachable(e) => e.to_string(),
        Lost::Broken => "it does not answer".into(),
    }
}

/// The thread of one other member.
fn attend(weak: &Weak<Appliance>, peer: &Arc<Peer>, every: Duration) {
    loop {
        let Some(appliance) = weak.upgrade() else { return };
        if !appliance.peers.knows(peer) {
            return;
        }
        appliance.round(peer);
        drop(appliance);
        let mut standing = peer.standing.lock();
        peer.bell.wait_for(&mut standing, every);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While a member is being told something it has not got it, and what changes meanwhile it has to be told again.
    #[test]
    fn a_member_has_what_it_was_told_and_not_before() {
        let peer = Peer {
            member: Member { serial: "b".into(), address: "unix:/nowhere".into() },
            line: Mutex::new(None),
            standing: Mutex::new(Standing { reachable: true, compared: true, ..Standing::default() }),
            bell: Condvar::new(),
        };
        let (one, two) = ([vec![b'o', 1]], [vec![b'o', 2]]);
        peer.told(&one);
        peer.told(&two);
        let begun = peer.begin();
        assert!(!peer.has(&one) && !peer.has(&two), "nothing is confirmed");
        peer.told(&two);
        peer.standing.lock().told(&begun, false);
        assert!(peer.has(&one) && !peer.has(&two));
        // A comparison that began before what it lacks was given up says nothing of that.
        let begun = peer.begin();
        peer.told(&(0..=MAX_PENDING).map(|n| n.to_le_bytes().to_vec()).collect::<Vec<_>>());
        peer.standing.lock().told(&begun, true);
        assert!(!peer.has(&one));
        let begun = peer.begin();
        peer.standing.lock().told(&begun, true);
        assert!(peer.has(&one) && peer.has(&two));
    }
}
