//! Keys of AWS KMS, or of a server that speaks its protocol: one client for both, AWS's own.
//!
//! Credentials come as everywhere with AWS: environment, profile, web identity, container or instance metadata.
//! Every call ends within [`OPERATION`]; a service that does not answer is then left alone for a while, so that what
//! asks meanwhile fails at once. Plaintext keys are in the SDK's buffers for the time of a call: see docs/SECURITY.md.

mod errors;
mod reactor;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_kms::Client;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use self::reactor::Reactor;
use super::breaker::Breaker;
use super::uri::RemoteKey;
use super::{KeyError, KeyInfo, Provider, WrapContext};
use crate::crypto::{DataKey, Secret};
use crate::format::header::Wrapped;

/// Time for a TCP connection and its TLS handshake.
const CONNECT: Duration = Duration::from_secs(2);
/// Time for one attempt of a call.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Time for a call with all its attempts: what an `open` waits at most.
const OPERATION: Duration = Duration::from_secs(8);
/// Attempts of a call; the pauses between them are random, up to [`BACKOFF`] and twice that.
const ATTEMPTS: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// Calls of one batch that are in flight at once: hides 10 ms of distance at 5,000 keys a second.
const IN_FLIGHT: usize = 64;
/// A signed header that tells a server of ours who calls on the principal's behalf, as AWS's own services tell AWS KMS:
/// it becomes `kms:ViaService` (docs/KMS.md).
const VIA_HEADER: &str = "x-envelopefs-via";
const VIA_SERVICE: &str = "envelopefs";

/// Endpoint, where it is not AWS's, and region.
type Place = (Option<String>, String);

/// Clients by place, and the threads they share.
#[derive(Default)]
pub(super) struct Clients {
    reactor: Arc<Reactor>,
    open: Mutex<BTreeMap<Place, (Client, Arc<Breaker>)>>,
    /// Instead of the chain.
    #[cfg(test)]
    credentials: Option<aws_sdk_kms::config::Credentials>,
}

/// Wraps under one key.
#[derive(Clone)]
pub(super) struct Remote {
    client: Client,
    reactor: Arc<Reactor>,
    breaker: Arc<Breaker>,
    key: RemoteKey,
    /// Endpoint and region.
    service: String,
    /// Whether the service is named: to servers of ours.
    names_service: bool,
}

impl Clients {
    /// The provider for a key. Reads the AWS configuration of this process at the first key of a place; asks nobody.
    pub(super) fn provider(&self, key: &RemoteKey) -> Result<Remote, KeyError> {
        let place = (key.endpoint.clone(), key.region.clone());
        let known = self.open.lock().get(&place).cloned();
        let (client, breaker) = match known {
            Some(open) => open,
            None => {
                let made = (self.reactor.run(self.connect(key))?, Arc::new(Breaker::default()));
                // Another one may have been faster.
                self.open.lock().entry(place).or_insert(made).clone()
            }
        };
        Ok(Remote {
            client,
            reactor: self.reactor.clone(),
            breaker,
            service: format!("{} {}", key.endpoint.as_deref().unwrap_or("aws"), key.region),
            names_service: key.endpoint.is_some(),
            key: key.clone(),
        })
    }

    async fn connect(&self, key: &RemoteKey) -> Client {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT)
            .operation_attempt_timeout(ATTEMPT)
            .operation_timeout(OPERATION)
            .build();
        let retries = RetryConfig::standard()
            .with_max_attempts(ATTEMPTS)
            .with_initial_backoff(BACKOFF)
            .with_max_backoff(LONGEST_BACKOFF);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(key.region.clone()))
            .timeout_config(timeouts)
            .retry_config(retries);
        if let Some(endpoint) = &key.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        #[cfg(test)]
        if let Some(credentials) = &self.credentials {
            loader = loader.credentials_provider(credentials.clone());
        }
        Client::new(&loader.load().await)
    }
}

/// Names the service behind a call to servers of ours.
macro_rules! send {
    ($self:ident, $call:expr) => {{
        let named = $self.names_service;
        let call = $call.customize().mutate_request(move |request| {
            if named {
                request.headers_mut().insert(VIA_HEADER, VIA_SERVICE);
            }
        });
        async move { call.send().await }
    }};
}

impl Remote {
    /// One call, unless the service is being left alone.
    fn call<T, E>(&self, future: impl Future<Output = Result<T, SdkError<E>>>) -> Result<T, KeyError>
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        self.guarded(async { future.await.map_err(|e| errors::key_error(&self.key.uri(), e)) })
    }

    fn guarded<T>(&self, future: impl Future<Output = Result<T, KeyError>>) -> Result<T, KeyError> {
        let pass = self.breaker.enter()?;
        let outcome = self.reactor.run(future).and_then(|outcome| outcome);
        pass.done(&outcome);
        outcome
    }

    /// Runs one call for each of `items`, [`IN_FLIGHT`] at once; results in order. The first error ends all; what came
    /// in order before it is given where there is any.
    fn each<I, T, F>(
        &self,
        items: impl Iterator<Item = I>,
        start: impl Fn(Self, I) -> F,
    ) -> Result<Vec<T>, KeyError>
    where
        F: Future<Output = Result<T, KeyError>> + Send + 'static,
        T: Send + 'static,
    {
        self.guarded(async {
            let mut waiting = items.enumerate();
            let mut flying = JoinSet::new();
            let mut done = Vec::new();
            let mut failed = None;
            loop {
                while failed.is_none() && flying.len() < IN_FLIGHT {
                    let Some((at, item)) = waiting.next() else { break };
                    let one = start(self.clone(), item);
                    flying.spawn(async move { (at, one.await) });
                }
                match flying.join_next().await {
                    None => break,
                    Some(Ok((at, Ok(made)))) => done.push((at, made)),
                    Some(Ok((_, Err(error)))) => failed = failed.or(Some(error)),
                    Some(Err(e)) => failed = Some(KeyError::Unreachable(format!("{}: {e}", self.key.uri()))),
                }
            }
            done.sort_by_key(|(at, _)| *at);
            let whole = done.into_iter().zip(0..).take_while(|((at, _), n)| at == n);
            let whole: Vec<T> = whole.map(|((_, made), _)| made).collect();
            match failed {
                Some(error) if whole.is_empty() => Err(error),
                _ => Ok(whole),
            }
        })
    }

    async fn generate_one(self, context: WrapContext) -> Result<(DataKey, Wrapped), KeyError> {
        let call = self
            .client
            .generate_data_key()
            .key_id(&self.key.arn)
            .key_spec(DataKeySpec::Aes256)
            .set_encryption_context(Some(pairs(&context)));
        let made = send!(self, call).await.map_err(|e| errors::key_error(&self.key.uri(), e))?;
        Ok((DataKey(self.secret(made.plaintext)?), self.blob(made.ciphertext_blob)?))
    }

    async fn wrap_one(self, plain: Blob, context: WrapContext) -> Result<Wrapped, KeyError> {
        let call = self
            .client
            .encrypt()
            .key_id(&self.key.arn)
            .plaintext(plain)
            .set_encryption_context(Some(pairs(&context)));
        let made = send!(self, call).await.map_err(|e| errors::key_error(&self.key.uri(), e))?;
        self.blob(made.ciphertext_blob)
    }

    /// Takes the 32 bytes of a key over and wipes where they stood.
    fn secret(&self, plain: Option<Blob>) -> Result<Secret<32>, KeyError> {
        let plain = Zeroizing::new(plain.map(Blob::into_inner).unwrap_or_default());
        Secret::from_slice(&plain).ok_or_else(|| {
            KeyError::Unreachable(format!(
                "{}: the KMS answered with {} bytes for a key of 32",
                self.key.uri(),
                plain.len()
            ))
        })
    }

    fn blob(&self, blob: Option<Blob>) -> Result<Wrapped, KeyError> {
        match blob.map(Blob::into_inner) {
            Some(bytes) if !bytes.is_empty() => Ok(Wrapped::Blob(bytes)),
            _ => Err(KeyError::Unreachable(format!(
                "{}: the KMS answered without a CiphertextBlob",
                self.key.uri()
            ))),
        }
    }
}

impl Provider for Remote {
    fn describe(&self) -> Result<KeyInfo, KeyError> {
        let found = self.call(send!(self, self.client.describe_key().key_id(&self.key.arn)))?;
        let metadata = found.key_metadata.ok_or_else(|| {
            KeyError::Unreachable(format!("{}: the KMS answered without metadata", self.key.uri()))
        })?;
        if !metadata.enabled {
            return Err(KeyError::Disabled(self.key.uri()));
        }
        let arn = metadata.arn.unwrap_or_else(|| self.key.arn.clone());
        Ok(KeyInfo { uri: self.key.with_arn(&arn).uri(), key_id: arn, version: None })
    }

    fn generate(&self, contexts: &[WrapContext]) -> Result<Vec<(DataKey, Wrapped)>, KeyError> {
        self.each(contexts.iter().copied(), Self::generate_one)
    }

    fn wrap(&self, key: &Secret<32>, context: &WrapContext) -> Result<Wrapped, KeyError> {
        self.guarded(self.clone().wrap_one(Blob::new(key.expose().as_slice()), *context))
    }

    fn wrap_each(&self, keys: &[(&Secret<32>, WrapContext)]) -> Result<Vec<Wrapped>, KeyError> {
        let items = keys.iter().map(|(key, context)| (Blob::new(key.expose().as_slice()), *context));
        let wrapped = self.each(items, |provider, (plain, context)| provider.wrap_one(plain, context))?;
        if wrapped.len() < keys.len() {
            return Err(KeyError::Unreachable(format!("{}: the KMS stopped answering", self.key.uri())));
        }
        Ok(wrapped)
    }

    fn unwrap(&self, wrapped: &Wrapped, context: &WrapContext) -> Result<Secret<32>, KeyError> {
        let Wrapped::Blob(blob) = wrapped else { return Err(KeyError::Foreign) };
        let call = self
            .client
            .decrypt()
            .key_id(&self.key.arn)
            .ciphertext_blob(Blob::new(blob.as_slice()))
            .set_encryption_context(Some(pairs(context)));
        let opened = self.call(send!(self, call))?;
        self.secret(opened.plaintext)
    }

    fn is_far(&self) -> bool {
        true
    }

    fn service(&self) -> Option<&str> {
        Some(&self.service)
    }

    fn re_encrypt(&self, from: &str, wrapped: &Wrapped, context: &WrapContext) -> Result<Wrapped, KeyError> {
        let Wrapped::Blob(blob) = wrapped else { return Err(KeyError::Foreign) };
        let call = self
            .client
            .re_encrypt()
            .source_key_id(from)
            .destination_key_id(&self.key.arn)
            .ciphertext_blob(Blob::new(blob.as_slice()))
            .set_source_encryption_context(Some(pairs(context)))
            .set_destination_encryption_context(Some(pairs(context)));
        let made = self.call(send!(self, call))?;
        self.blob(made.ciphertext_blob)
    }

    fn settle(&self) {
        self.reactor.stop();
    }
}

fn pairs(context: &WrapContext) -> HashMap<String, String> {
    context.encryption_context().into_iter().collect()
}
