//! The threads that the KMS client runs on: made when they are first needed, and anew after [`Reactor::stop`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};

use crate::keys::KeyError;

/// Requests wait for a network, not for a core.
const THREADS: usize = 2;
/// Name resolution and files of credentials run beside them.
const BLOCKING_THREADS: usize = 8;
/// How long a stop waits for what is still running; it is abandoned then.
const GRACE: Duration = Duration::from_millis(500);

/// A small runtime.
#[derive(Default)]
pub(super) struct Reactor {
    runtime: Mutex<Option<Arc<Runtime>>>,
}

impl Reactor {
    /// Runs a call to its end. The caller waits; several may at once.
    pub(super) fn run<F: Future>(&self, future: F) -> Result<F::Output, KeyError> {
        Ok(self.runtime()?.block_on(future))
    }

    fn runtime(&self) -> Result<Arc<Runtime>, KeyError> {
        let mut slot = self.runtime.lock();
        if let Some(runtime) = &*slot {
            return Ok(runtime.clone());
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("efs-kms")
            .enable_all()
            .build()
            .map_err(|e| KeyError::Unreachable(format!("no threads for the KMS client: {e}")))?;
        let runtime = Arc::new(runtime);
        *slot = Some(runtime.clone());
        Ok(runtime)
    }

    /// Ends the threads, and with them the connections.
    pub(super) fn stop(&self) {
        let runtime = self.runtime.lock().take();
        // A call that is still in it ends it instead.
        if let Some(runtime) = runtime.and_then(Arc::into_inner) {
            runtime.shutdown_timeout(GRACE);
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.stop();
    }
}
