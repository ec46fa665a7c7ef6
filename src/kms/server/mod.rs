//! The wire server: AWS JSON 1.1 over HTTP, every request's signature verified.
//!
//! One engine, held by one process. Beside the public address it listens on `control.sock` in the store's directory,
//! where the owner of the store manages principals and keys without a signature: the kernel says who he is.

mod admin;
mod auth;
mod http;
mod listen;
mod metrics;
mod patience;
mod sts;
#[cfg(test)]
mod tests;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::engine::Engine;
use super::error::KmsError;
use auth::Keyring;
pub use listen::Address;
use listen::Listener;
use metrics::Metrics;

/// Name of the control socket in the store's directory.
pub const CONTROL_SOCKET: &str = "control.sock";
/// Connections at a time. What comes beyond waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 8192;
/// How often what is due is done, and the last uses are written.
const SWEEP: Duration = Duration::from_secs(60);
/// How long requests in flight are waited for when the server ends.
const GRACE: Duration = Duration::from_secs(10);

/// How to serve.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen: `HOST:PORT` or `unix:PATH`.
    pub listen: String,
    /// Certificate chain and private key, as PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether plain HTTP is served to other hosts, too.
    pub allow_plain: bool,
    /// Whether `POST /moto-api/reset` forgets everything, then applies `seed` again.
    pub test_reset: bool,
    /// Text of the seed file.
    pub seed: Option<String>,
    /// Whether browsers on this machine get the console.
    pub console: bool,
}

/// Why a server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address that cannot be read.
    #[error("{0}: not an address to listen on; use HOST:PORT or unix:PATH")]
    Address(String),
    /// Plain HTTP for other hosts.
    #[error(
        "{0}: other hosts can reach this address, and without TLS everybody on the way reads data keys; give --tls-cert and --tls-key, or --allow-plain where the network itself is private"
    )]
    Plain(String),
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// The address or file.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Certificate or key.
    #[error("{path}: {why}")]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The store.
    #[error(transparent)]
    Kms(#[from] KmsError),
}

impl ServeError {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        |source| Self::Io { what, source }
    }
}

/// A server that listens already.
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    stop: watch::Sender<bool>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

/// Ends a server from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Ends it: no new connections; requests in flight have ten seconds.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// What every connection needs.
struct Shared {
    engine: Arc<Engine>,
    test_reset: bool,
    seed: Option<String>,
    console: bool,
    metrics: Metrics,
    keyring: Keyring,
    room: Arc<Semaphore>,
}

impl Server {
    /// Binds the addresses, applies the seed and does what fell due meanwhile. The engine should hold its store.
    pub fn bind(engine: Arc<Engine>, settings: &Settings) -> Result<Self, ServeError> {
        let control = engine.dir().join(CONTROL_SOCKET);
        let listeners = vec![
            Listener::public(&settings.listen, settings.tls.as_ref(), settings.allow_plain)?,
            Listener::control(&control)?,
        ];
        if let Some(seed) = &settings.seed {
            engine.seed(seed)?;
        }
        engine.settle_all()?;
        let shared = Shared {
            engine,
            test_reset: settings.test_reset,
            seed: settings.seed.clone(),
            console: settings.console,
            metrics: Metrics::default(),
            keyring: Keyring::default(),
            room: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        };
        Ok(Self { shared: Arc::new(shared), listeners, stop: watch::Sender::new(false) })
    }

    /// The addresses it listens on; a port 0 is the chosen one. The control socket is the last.
    pub fn addresses(&self) -> Vec<Address> {
        self.listeners.iter().map(|l| l.address.clone()).collect()
    }

    /// What ends it.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Serves until it is stopped.
    pub fn run(self) -> Result<(), ServeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("efs-kms")
            .enable_all()
            .build()
            .map_err(ServeError::io("the runtime"))?;
        let paths: Vec<PathBuf> = self.listeners.iter().filter_map(|l| l.path.clone()).collect();
        let shared = self.shared.clone();
        let done = runtime.block_on(async {
            let stop = self.stop.subscribe();
            let mut tasks = tokio::task::JoinSet::new();
            for listener in self.listeners {
                let listener = listener.activate()?;
                tasks.spawn(listen::serve(listener, self.shared.clone(), stop.clone()));
            }
            tasks.spawn(sweep(self.shared.clone(), stop));
            drop(self.shared);
            while tasks.join_next().await.is_some() {}
            Ok(())
        });
        runtime.shutdown_timeout(GRACE);
        for path in paths {
            // A socket that stays behind harms nobody.
            let _ = std::fs::remove_file(path);
        }
        shared.engine.write_uses()?;
        done
    }
}

/// Does what is due, about once a minute.
async fn sweep(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
        let engine = shared.engine.clone();
        let done = tokio::task::spawn_blocking(move || {
            engine.settle_all()?;
            engine.write_uses()
        });
        if let Ok(Err(error)) = done.await {
            log::error!("what is due in the KMS was not done: {error}");
        }
    }
}
