//! Objects of a bucket, or of a local directory laid out like one, as plain calls. The only async code of the backup.
//!
//! Every PUT says `If-None-Match: *` and carries a SHA-256, as a second line of defence: some stores answer 200 and
//! overwrite, so nothing rests on it; the names of a repository's objects are hashes of their content.

mod account;
mod open;
mod retry;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::Runtime;

use super::error::{BackupError, Result, StoreFault};
use super::meter::Meter;
use retry::{Limit, Patience, fault_of};

pub use open::{Place, is_location};

/// How a store is used.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Endpoint of an S3 server that is not AWS's.
    pub endpoint: Option<String>,
    /// Region; where it is not given, that of the profile or the environment, or `us-east-1`.
    pub region: Option<String>,
    /// Profile of `~/.aws/config`.
    pub profile: Option<String>,
    /// Bytes a second in each direction.
    pub limit: Option<u64>,
    /// Objects that are sent at once, 1 to 64.
    pub parallel: usize,
    /// A request without an answer is given up, and sent again, after this long and a while for its bytes.
    pub timeout: Duration,
    /// A request is sent again for this long.
    pub patience: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            profile: None,
            limit: None,
            parallel: 4,
            timeout: Duration::from_secs(60),
            patience: Duration::from_secs(600),
        }
    }
}

/// What became of an object that was put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Put {
    /// It is there now.
    Made,
    /// One of that name was there already, and stays as it was.
    WasThere,
}

/// The objects below a place. Calls may come from any thread that is none of its own runtime's.
pub struct Objects {
    runtime: Runtime,
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    location: String,
    patience: Patience,
    limit: Limit,
    meter: Arc<Meter>,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Objects({})", self.location)
    }
}

impl Objects {
    /// Opens a place. Asks the network for nothing but, where the environment says so, credentials.
    pub fn open(place: &str, options: &StoreOptions, meter: Arc<Meter>) -> Result<Self> {
        let place = Place::parse(place)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("efs-store")
            .enable_all()
            .build()
            .map_err(BackupError::io(std::path::Path::new("threads")))?;
        let (store, prefix) = runtime.block_on(place.open(options))?;
        Ok(Self {
            runtime,
            store,
            prefix,
            location: place.to_string(),
            patience: Patience { timeout: options.timeout, total: options.patience },
            limit: Limit::new(options.limit),
            meter,
        })
    }

    /// As the user wrote it.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// Counts an object that is asked for once more.
    pub fn again(&self) {
        self.meter.retries.add(1);
    }

    fn key(&self, name: &str) -> Key {
        name.split('/').fold(self.prefix.clone(), |key, part| key.join(part))
    }

    fn failed(&self, what: String) -> impl FnOnce(object_store::Error) -> BackupError + '_ {
        move |e| {
            let fault = fault_of(&e);
            BackupError::Store { location: self.location.clone(), what, fault, why: retry::words(&e) }
        }
    }

    /// Writes an object that is not there yet.
    pub fn put(&self, name: &str, parts: &[Bytes]) -> Result<Put> {
        self.runtime.block_on(self.put_later(name, parts))
    }

    /// [`Self::put`], to be awaited on this store's runtime.
    async fn put_later(&self, name: &str, parts: &[Bytes]) -> Result<Put> {
        let key = self.key(name);
        let payload: PutPayload = parts.iter().cloned().collect();
        let len = payload.content_length() as u64;
        let put = || async {
            self.meter.sent.add(len);
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            self.store.put_opts(&key, payload.clone(), options).await
        };
        match self.patience.limited(len, &self.limit, &self.meter, put).await {
            Ok(_) => {
                self.meter.puts.add(1);
                Ok(Put::Made)
            }
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Put::WasThere)
            }
            Err(e) => Err(self.failed(format!("writing {name}"))(e)),
        }
    }

    /// Reads a whole object, or `length` bytes of it from `offset` on.
    pub fn get(&self, name: &str, range: Option<(u64, u64)>) -> Result<Bytes> {
        let key = self.key(name);
        let guess = range.map_or(32 << 20, |(_, length)| length);
        let get = || async {
            let bounded = range.map(|(offset, length)| GetRange::Bounded(offset..offset + length));
            let options = GetOptions { range: bounded, ..GetOptions::default() };
            self.store.get_opts(&key, options).await?.bytes().await
        };
        let done = self.runtime.block_on(async {
            let bytes = self.patience.run(guess, &self.meter, get).await?;
            self.limit.pass(bytes.len() as u64).await;
            Ok(bytes)
        });
        let bytes = done.map_err(self.failed(format!("reading {name}")))?;
        self.meter.gets.add(1);
        self.meter.received.add(bytes.len() as u64);
        Ok(bytes)
    }

    /// Whether an object is there, and how long it is.
    pub fn len_of(&self, name: &str) -> Result<Option<u64>> {
        let key = self.key(name);
        match self.runtime.block_on(self.patience.run(0, &self.meter, || self.store.head(&key))) {
            Ok(meta) => Ok(Some(meta.size)),
            Err(e) if fault_of(&e) == StoreFault::NotFound => Ok(None),
            // An answer to HEAD has no body: only a GET tells why.
            Err(e) if fault_of(&e) == StoreFault::Denied => Ok(Some(self.get(name, None)?.len() as u64)),
            Err(e) => Err(self.failed(format!("looking for {name}"))(e)),
        }
    }

    /// Last parts of the names of all objects below `folder`, with their lengths.
    pub fn list(&self, folder: &str) -> Result<Vec<(String, u64)>> {
        let key = self.key(folder);
        let list = || async {
            let mut found = Vec::new();
            let mut listing = self.store.list(Some(&key));
            while let Some(meta) = listing.next().await {
                let meta = meta?;
                found.extend(meta.location.filename().map(|name| (name.to_owned(), meta.size)));
            }
            Ok(found)
        };
        let done = self.runtime.block_on(self.patience.run(0, &self.meter, list));
        done.map_err(self.failed(format!("listing {folder}")))
    }

    /// Removes an object; one that is not there is fine.
    pub fn remove(&self, name: &str) -> Result<()> {
        let key = self.key(name);
        match self.runtime.block_on(self.patience.run(0, &self.meter, || self.store.delete(&key))) {
            Err(e) if fault_of(&e) != StoreFault::NotFound => Err(self.failed(format!("removing {name}"))(e)),
            _ => Ok(()),
        }
    }

    /// Starts [`Self::put`] in the background. The answer comes through the handle.
    pub fn put_in_background(self: &Arc<Self>, name: String, parts: Vec<Bytes>) -> Background {
        let this = Arc::clone(self);
        Background(self.runtime.spawn(async move { this.put_later(&name, &parts).await }))
    }

    /// Waits for a background put.
    pub fn finish(&self, background: Background) -> Result<Put> {
        let done = self.runtime.block_on(background.0);
        done.unwrap_or_else(|e| {
            Err(BackupError::Store {
                location: self.location.clone(),
                what: "writing an object".into(),
                fault: StoreFault::Other,
                why: e.to_string(),
            })
        })
    }
}

/// A put on its way.
#[derive(Debug)]
pub struct Background(tokio::task::JoinHandle<Result<Put>>);

impl Background {
    /// Whether [`Objects::finish`] would not wait.
    pub fn is_done(&self) -> bool {
        self.0.is_finished()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A local directory keeps what was put first, lists what is below a folder, and reads ranges.
    #[test]
    fn objects_are_written_once() {
        let base = tempfile::tempdir().unwrap();
        let meter = Arc::new(Meter::default());
        let place = base.path().join("repo");
        let objects =
            Objects::open(place.to_str().unwrap(), &StoreOptions::default(), Arc::clone(&meter)).unwrap();
        let put = |text: &'static str| objects.put("data/ab/abc", &[Bytes::from(text)]).unwrap();
        assert_eq!(put("first"), Put::Made);
        assert_eq!(put("second"), Put::WasThere);
        assert_eq!(&objects.get("data/ab/abc", None).unwrap()[..], b"first");
        assert_eq!(&objects.get("data/ab/abc", Some((1, 3))).unwrap()[..], b"irs");
        assert_eq!(objects.list("data").unwrap(), [("abc".to_owned(), 5)]);
        assert_eq!(objects.len_of("data/ab/abc").unwrap(), Some(5));
        assert_eq!(objects.len_of("config").unwrap(), None);
        objects.remove("data/ab/abc").unwrap();
        objects.remove("data/ab/abc").unwrap();
        assert!(objects.list("data").unwrap().is_empty());
        assert_eq!(meter.puts.get(), 1);
    }
}
