//! What is kept of every call: a line in the audit log, and a count.

use std::path::Path;

use serde_json::{Value, json};

use super::audit::{AuditError, Event, Identity, Log, Settings};
use super::caller::Caller;
use super::context::EncryptionContext;
use super::engine::Engine;
use super::error::KmsError;
use super::quota::Class;
use super::records::{KeyRecord, now_ms};
use super::seams::{CallRecord, Observer};
use super::usage::Counter;
use crate::crypto::MacKey;

/// The audit log's directory in that of the store.
const AUDIT_DIR: &str = "audit";
/// The counts' file in the directory of the store.
const USAGE_FILE: &str = "usage.json";

/// Where a store keeps its audit log.
pub fn audit_dir(store: &Path) -> std::path::PathBuf {
    store.join(AUDIT_DIR)
}

/// Where a store keeps its counts.
pub fn usage_file(store: &Path) -> std::path::PathBuf {
    store.join(USAGE_FILE)
}

/// Writes and counts the calls of one store.
#[derive(Debug)]
pub(super) struct Watch {
    log: Log,
    usage: Counter,
}

impl Watch {
    pub(super) fn open(store: &Path, key: MacKey, settings: Settings) -> Result<Self, AuditError> {
        let log = Log::open(&audit_dir(store), key, settings)?;
        Ok(Self { log, usage: Counter::new(&usage_file(store)) })
    }

    fn write(&self, events: &[Event<'_>]) -> Result<(), KmsError> {
        self.log.append(events).map_err(|error| {
            log::error!("{error}");
            KmsError::exception("KMSInternalException", "The audit log cannot be written.")
        })
    }
}

/// The class of a call's quota.
pub(super) fn class(action: &str, parameters: &Value) -> Class {
    let hint = ["KeyPairSpec", "EncryptionAlgorithm", "SigningAlgorithm"];
    let hint = hint.iter().find_map(|m| parameters.get(m).and_then(Value::as_str));
    Class::of(action, hint.unwrap_or_default())
}

impl Observer for Watch {
    fn calls(&self, records: &[CallRecord<'_>]) -> Result<(), KmsError> {
        let now = now_ms();
        let address = |record: &CallRecord<'_>| record.caller.source.map(|ip| ip.to_string());
        let sources: Vec<String> = records.iter().map(|r| address(r).unwrap_or_default()).collect();
        for record in records {
            let class = class(record.action, record.parameters);
            self.usage.count(now, class.name(), record.error.is_some());
        }
        let events: Vec<_> =
            records.iter().zip(&sources).map(|(record, source)| event(record, source, now)).collect();
        self.write(&events)
    }

    fn service(&self, event: &str, key_arn: &str, account: &str, region: &str) {
        let keys = [key_arn.to_owned()];
        let written = self.write(&[Event {
            time_ms: now_ms(),
            name: event,
            identity: None,
            region,
            account,
            source: "",
            user_agent: "",
            via: None,
            parameters: &Value::Null,
            keys: &keys,
            error: None,
            request_id: &super::caller::new_request_id(),
            count: 1,
        }]);
        // It was done by the clock, not for a caller who could be refused; the log of the process has the error.
        drop(written);
    }

    fn settle(&self) {
        self.log.settle();
    }
}

fn event<'a>(record: &CallRecord<'a>, source: &'a str, time_ms: u64) -> Event<'a> {
    let caller = record.caller;
    Event {
        time_ms,
        name: record.action,
        identity: Some(Identity {
            arn: &caller.arn,
            account: caller.account(),
            user_id: &caller.user_id,
            access_key: &caller.access_key,
        }),
        region: &caller.scope.region,
        account: &caller.scope.account,
        source,
        user_agent: &caller.user_agent,
        via: caller.via.as_deref(),
        parameters: record.parameters,
        keys: record.keys,
        error: record.error,
        request_id: &caller.request_id,
        count: 1,
    }
}

/// One of several things that the filesystem asked for at once, done.
struct Done<T> {
    caller: Caller,
    parameters: Value,
    result: Result<T, KmsError>,
    /// Exception and message, where it failed.
    text: Option<(&'static str, String)>,
}

impl Engine {
    /// Writes an audit line for every call, and counts it. An engine without it is for tests.
    pub fn watched(self) -> Result<Self, KmsError> {
        self.watched_with(Settings::default())
    }

    /// As [`Engine::watched`], with settings of the log's files.
    pub fn watched_with(self, settings: Settings) -> Result<Self, KmsError> {
        let watch = Watch::open(self.dir(), self.audit_key(), settings).map_err(|e| match e {
            AuditError::Io { path, source } => KmsError::io(path)(source),
            AuditError::Head(path) => KmsError::Damaged {
                path,
                why: "the head of the audit log does not authenticate: it was changed, or is another store's"
                    .into(),
            },
        })?;
        Ok(self.with_observer(std::sync::Arc::new(watch)))
    }

    /// The key of the audit log.
    pub fn audit_key(&self) -> MacKey {
        MacKey::new(self.store.key.subkey(super::labels::AUDIT_KEY))
    }

    /// Does what the filesystem asks for with one key: decided by the key's policy, written to the audit log.
    /// `action` is AWS's for the same, the caller is the store's owner through the filesystem's service.
    pub(super) fn for_filesystem<T>(
        &self,
        action: &'static str,
        key: &str,
        context: &EncryptionContext,
        work: impl FnOnce(&KeyRecord) -> Result<T, KmsError>,
    ) -> Result<T, KmsError> {
        let record = self.resolve(key)?;
        let done = self.ask_filesystem(action, &record, context, work)?;
        self.record(action, &record, std::slice::from_ref(&done))?;
        done.result
    }

    /// As [`Engine::for_filesystem`] for many contexts; `work` is told which. Each is decided and has its line, but the
    /// lines are written at once. The first one that fails ends it.
    pub(super) fn for_filesystem_each<T>(
        &self,
        action: &'static str,
        record: &KeyRecord,
        contexts: &[&EncryptionContext],
        work: impl Fn(usize) -> Result<T, KmsError>,
    ) -> Result<Vec<T>, KmsError> {
        let mut all = Vec::with_capacity(contexts.len());
        for (at, context) in contexts.iter().enumerate() {
            let done = self.ask_filesystem(action, record, context, |_| work(at))?;
            let failed = done.result.is_err();
            all.push(done);
            if failed {
                break;
            }
        }
        self.record(action, record, &all)?;
        all.into_iter().map(|done| done.result).collect()
    }

    fn ask_filesystem<T>(
        &self,
        action: &'static str,
        record: &KeyRecord,
        context: &EncryptionContext,
        work: impl FnOnce(&KeyRecord) -> Result<T, KmsError>,
    ) -> Result<Done<T>, KmsError> {
        let caller = self.filesystem(record);
        let policy = self.key_policy(record)?;
        let watched = self.observer.is_some();
        let parameters = if watched || policy.needs_conditions() {
            json!({ "KeyId": record.arn(), "EncryptionContext": context })
        } else {
            Value::Null
        };
        let ask = super::access::Ask {
            caller: &caller,
            action,
            params: &parameters,
            key: Some(record),
            resource: None,
            same_key: None,
        };
        let result = self.admit(&ask).and_then(|()| work(record));
        let text = result.as_ref().err().map(|e| (e.code(), e.wire_text().unwrap_or_default()));
        Ok(Done { caller, parameters, result, text })
    }

    fn record<T>(&self, action: &str, record: &KeyRecord, all: &[Done<T>]) -> Result<(), KmsError> {
        let Some(observer) = &self.observer else { return Ok(()) };
        let keys = [record.arn()];
        let mut lines = Vec::with_capacity(all.len());
        for done in all {
            lines.push(CallRecord {
                action,
                caller: &done.caller,
                parameters: &done.parameters,
                keys: &keys,
                error: done.text.as_ref().map(|(code, text)| (*code, text.as_str())),
            });
        }
        observer.calls(&lines)
    }

    fn filesystem(&self, record: &KeyRecord) -> Caller {
        let mut caller = Caller::root(record.scope.clone());
        caller.via = Some(format!("envelopefs.{}.amazonaws.com", record.scope.region));
        caller
    }
}
