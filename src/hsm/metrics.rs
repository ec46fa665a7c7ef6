//! Counters for Prometheus (text format 0.0.4). Labels are kinds of requests, opcodes of the audit log and members'
//! serial numbers: a bounded set, without names of users or keys.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::appliance::{Appliance, Life};
use super::users::User;
use super::wire::{Op, Request};

/// Kinds of requests.
const KINDS: [&str; 12] = [
    "encrypt", "decrypt", "sign", "verify", "digest", "generate", "wrap", "unwrap", "derive", "random",
    "objects", "other",
];

/// What was counted since the start.
#[derive(Default)]
pub(super) struct Counts {
    /// Good and refused requests of each kind.
    requests: [[AtomicU64; 2]; KINDS.len()],
    /// Good and refused commands of each opcode.
    commands: Mutex<BTreeMap<&'static str, [u64; 2]>>,
}

/// The place of a request in [`KINDS`]. An operation in pieces counts where it begins.
pub(super) fn kind(request: &Request) -> usize {
    match request {
        Request::Once { op, .. } | Request::Begin { op, .. } => match op {
            Op::Encrypt => 0,
            Op::Decrypt => 1,
            Op::Sign => 2,
            Op::Verify => 3,
            Op::Digest => 4,
        },
        Request::Generate { .. } | Request::GeneratePair { .. } | Request::With { .. } => 5,
        Request::Wrap { .. } => 6,
        Request::Unwrap { .. } => 7,
        Request::Derive { .. } => 8,
        Request::Random { .. } => 9,
        Request::Create { .. }
        | Request::Copy { .. }
        | Request::Destroy { .. }
        | Request::GetAttrs { .. }
        | Request::SetAttrs { .. }
        | Request::Find { .. } => 10,
        _ => 11,
    }
}

impl Counts {
    /// Counts a request by the frame of its answer.
    pub(super) fn request(&self, kind: usize, frame: &[u8]) {
        let refused = frame.get(4..12).is_none_or(|rv| rv != [0; 8]);
        if let Some(counts) = self.requests.get(kind) {
            let [good, bad] = counts;
            if refused { bad } else { good }.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a command of the audit log.
    pub(super) fn command(&self, opcode: &'static str, refused: bool) {
        let mut commands = self.commands.lock();
        let [good, bad] = commands.entry(opcode).or_default();
        *(if refused { bad } else { good }) += 1;
    }
}

/// The text of one metric: its head, then its values.
struct Page(String);

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP envelopefs_hsm_{name} {help}\n# TYPE envelopefs_hsm_{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "envelopefs_hsm_{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.metric(name, "gauge", help);
        self.value(name, "", value as u64);
    }
}

impl Appliance {
    /// What keeps it from its work; `None` for nothing.
    pub(super) fn ailment(&self) -> Option<&'static str> {
        let state = self.state.read();
        match state.meta.life {
            Life::Uninitialized | Life::Initialized => Some("not activated"),
            Life::Active if state.meta.is_removed() => Some("removed from its cluster"),
            Life::Active => None,
        }
    }

    /// The text that Prometheus reads.
    pub(super) fn metrics(&self) -> String {
        let mut page = Page(String::new());
        self.counters(&mut page);
        let sessions: usize = self.apps.lock().values().map(|a| a.sessions.lock().len()).sum();
        page.gauge(
            "applications",
            "Applications that are connected, or logged in for a command line.",
            self.apps.lock().len(),
        );
        page.gauge("sessions", "Open sessions.", sessions);
        page.gauge("quorum_tokens", "Quorum tokens that live.", self.tokens.count());
        {
            let state = self.state.read();
            page.gauge("token_keys", "Token objects.", state.token_objects);
            page.gauge("session_keys", "Session objects.", state.objects.len() - state.token_objects);
            page.gauge("users", "Users.", state.users.len());
            let locked = state.users.values().filter(|u| User::is_locked(u)).count();
            page.gauge("locked_users", "Users that are locked by wrong passwords.", locked);
        }
        page.gauge("up", "1 for an HSM in service.", usize::from(self.ailment().is_none()));
        self.members(&mut page);
        page.0
    }

    fn counters(&self, page: &mut Page) {
        page.metric("requests_total", "counter", "Requests of clients, by kind and result.");
        for (kind, counts) in KINDS.iter().zip(&self.counts.requests) {
            for (result, count) in ["ok", "refused"].iter().zip(counts) {
                let labels = format!("{{kind=\"{kind}\",result=\"{result}\"}}");
                page.value("requests_total", &labels, count.load(Ordering::Relaxed));
            }
        }
        page.metric("commands_total", "counter", "Commands of the audit log, by opcode and result.");
        for (opcode, counts) in &*self.counts.commands.lock() {
            for (result, count) in ["ok", "refused"].iter().zip(counts) {
                page.value("commands_total", &format!("{{opcode=\"{opcode}\",result=\"{result}\"}}"), *count);
            }
        }
    }

    fn members(&self, page: &mut Page) {
        let members = self.standings();
        page.metric("member_reachable", "gauge", "1 for a member of the cluster that answers.");
        for (serial, reachable, _) in &members {
            page.value("member_reachable", &format!("{{serial=\"{serial}\"}}"), u64::from(*reachable));
        }
        page.metric("member_lacks", "gauge", "Users, keys and policies that a member has not got yet.");
        for (serial, _, lacks) in &members {
            page.value("member_lacks", &format!("{{serial=\"{serial}\"}}"), *lacks as u64);
        }
    }
}
