//! `cluster add`, `cluster remove`, `cluster hsm-info`, `health`, `user replicate`, `key replicate`: the cluster as its
//! admin sees it.

use serde_json::{Value, json};

use super::super::admin::Refusal;
use super::super::appliance::{Appliance, Life};
use super::protocol::Said;
use super::{Key, MOST_MEMBERS, Member, POLICY, named};

/// Names of missing records that `health` tells of one member.
const SHOWN: usize = 16;

fn refuse<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(why.into()))
}

impl Appliance {
    /// `full` where every member has the records, as far as is known.
    pub(in super::super) fn coverage(&self, keys: &[Key]) -> &'static str {
        if self.peers.all().iter().all(|peer| peer.has(keys)) { "full" } else { "inconsistent" }
    }

    /// Spreads a change, and says in its answer which members have not got it.
    pub(in super::super) fn covered(&self, mut answer: Value, keys: &[Key]) -> Value {
        self.spread(keys);
        let missing: Vec<_> = self
            .peers
            .all()
            .iter()
            .filter(|peer| !peer.has(keys))
            .map(|peer| json!({ "serial-number": peer.member.serial, "address": peer.member.address }))
            .collect();
        if !missing.is_empty()
            && let Some(map) = answer.as_object_mut()
        {
            map.insert("cluster-coverage".into(), "inconsistent".into());
            map.insert("missing-on".into(), missing.into());
        }
        answer
    }

    /// `user replicate`, `key replicate`.
    pub(in super::super) fn replicate(&self, key: Key) -> Result<Value, Refusal> {
        if self.version(&key).is_none() {
            return refuse(format!("there is no {}", named(&key)));
        }
        for peer in self.peers.all() {
            self.round(&peer);
        }
        let coverage = self.coverage(std::slice::from_ref(&key));
        let done = json!({ "message": format!("{} replicated", named(&key)), "cluster-coverage": coverage });
        Ok(self.covered(done, &[key]))
    }

    /// `cluster add`: the HSM at an address becomes a member.
    pub(in super::super) fn cluster_add(&self, address: &str) -> Result<Value, Refusal> {
        let own = self.peers.own();
        if own.is_empty() {
            return refuse("this HSM does not serve; start it with: envelopefs hsm serve");
        }
        if own.ends_with(":0") || own.starts_with("tcp:0.0.0.0") || own.starts_with("tcp:[::]") {
            return refuse(format!(
                "{own} is no address that others reach; start this HSM with --member-address"
            ));
        }
        let (members, most, serial) = {
            let state = self.state.read();
            if state.meta.life != Life::Active {
                return refuse("activate this HSM first: envelopefs hsm cluster activate");
            }
            (state.meta.members.clone(), self.config.max_members.min(MOST_MEMBERS), state.meta.serial.clone())
        };
        if members.len().max(1) >= most {
            return refuse(format!(
                "the cluster has {most} HSMs; more are a setting: hsm serve --max-members"
            ));
        }
        if address == own || members.iter().any(|m| m.address == address) {
            return refuse(format!("{address}: a member already"));
        }
        let (_, theirs, status) = self.call_on(address).map_err(Refusal)?;
        if theirs == serial || members.iter().any(|m| m.serial == theirs) {
            return refuse(format!("{address}: HSM {theirs} is a member already"));
        }
        let Said::Status { active, clock, horizon, seen, .. } = status else {
            return refuse(format!("{address}: it does not say how it is"));
        };
        if !active {
            return refuse(format!(
                "{address}: HSM {theirs} was never activated; make it out of a backup (envelopefs hsm restore)"
            ));
        }
        self.may_meet(&theirs, clock, horizon, seen).map_err(|why| Refusal(format!("{address}: {why}")))?;
        self.change_policy(|members, serial| {
            if members.is_empty() {
                members.push(Member { serial: serial.to_owned(), address: own.clone() });
            }
            members.push(Member { serial: theirs.clone(), address: address.to_owned() });
        })?;
        self.tend();
        self.spread(&[vec![POLICY]]);
        for peer in self.peers.all() {
            if peer.member.serial == theirs {
                self.round(&peer);
            }
        }
        let done = json!({ "message": "HSM added", "serial-number": theirs, "address": address });
        Ok(self.covered(done, &[vec![POLICY]]))
    }

    /// `cluster remove`: a member, by serial number or address, is one no longer.
    pub(in super::super) fn cluster_remove(&self, which: &str) -> Result<Value, Refusal> {
        let (found, own) = {
            let state = self.state.read();
            let found = state.meta.members.iter().find(|m| m.serial == which || m.address == which).cloned();
            (found, state.meta.serial.clone())
        };
        let Some(member) = found else { return refuse(format!("{which}: no member of this cluster")) };
        if member.serial == own {
            return refuse("an HSM does not remove itself: give the command to another member");
        }
        // It is told too, where it answers: it then logs nobody in any more.
        let leaving = self.peers.all().into_iter().find(|p| p.member.serial == member.serial);
        self.change_policy(|members, _| members.retain(|m| m.serial != member.serial))?;
        if let Some(peer) = leaving {
            peer.told(&[vec![POLICY]]);
            self.deliver(&peer);
        }
        self.tend();
        let done =
            json!({ "message": "HSM removed", "serial-number": member.serial, "address": member.address });
        Ok(self.covered(done, &[vec![POLICY]]))
    }

    /// The other members: serial number, whether it answers, how many records it lacks.
    pub(in super::super) fn standings(&self) -> Vec<(String, bool, usize)> {
        let of = |peer: &std::sync::Arc<super::rounds::Peer>| {
            let standing = peer.standing();
            (peer.member.serial.clone(), standing.reachable, standing.missing.len())
        };
        self.peers.all().iter().map(of).collect()
    }

    pub(in super::super) fn info(&self) -> Value {
        let hsm = |serial: &str, address: &str, life: Value| {
            json!({
                "vendor": "EnvelopeFS",
                "model": "envelopefs-hsm",
                "serial-number": serial,
                "address": address,
                "firmware-version-major": env!("CARGO_PKG_VERSION_MAJOR"),
                "firmware-version-minor": env!("CARGO_PKG_VERSION_MINOR"),
                "state": life,
                "fips-state": "0 [not certified]",
            })
        };
        let (own, cluster, label) = {
            let state = self.state.read();
            let life = if state.meta.is_removed() { json!("REMOVED") } else { json!(state.meta.life) };
            let own = hsm(&state.meta.serial, &self.peers.own(), life);
            (own, state.meta.cluster.clone(), state.meta.label.clone())
        };
        let mut all = vec![own];
        for peer in self.peers.all() {
            let life = if peer.standing().reachable { "ACTIVE" } else { "UNREACHABLE" };
            all.push(hsm(&peer.member.serial, &peer.member.address, life.into()));
        }
        json!({ "cluster": cluster, "label": label, "hsms": all })
    }

    /// How the HSM is; names of users only for who is one.
    pub(in super::super) fn health(&self, names: bool) -> Value {
        let members: Vec<_> = self
            .peers
            .all()
            .iter()
            .map(|peer| {
                let standing = peer.standing();
                let missing: Vec<_> = standing.missing.keys().take(SHOWN).map(named).collect();
                json!({
                    "serial-number": peer.member.serial,
                    "address": peer.member.address,
                    "reachable": standing.reachable,
                    "why": standing.why,
                    "compared": standing.compared,
                    "lacks": standing.missing.len(),
                    "lacks-first": missing,
                })
            })
            .collect();
        // Before the state: whoever waits to change it would make all others wait for these.
        let lines = self.audit.lock().head.lines;
        let (applications, sessions) = {
            let apps = self.apps.lock();
            (apps.len(), apps.values().map(|a| a.sessions.lock().len()).sum::<usize>())
        };
        let state = self.state.read();
        let locked: Vec<_> = state.users.values().filter(|u| u.is_locked()).map(|u| &u.name).collect();
        let mut health = json!({
            "state": if state.meta.is_removed() { json!("REMOVED") } else { json!(state.meta.life) },
            "serial-number": state.meta.serial,
            "token-keys": state.token_objects,
            "session-keys": state.objects.len() - state.token_objects,
            "users": state.users.len(),
            "locked": locked.len(),
            "applications": applications,
            "sessions": sessions,
            "audit-lines": lines,
            "starts": state.meta.reboot,
            "members": members,
        });
        if names && let Some(map) = health.as_object_mut() {
            map.insert("locked-users".into(), json!(locked));
        }
        health
    }
}
