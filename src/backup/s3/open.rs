//! From the text of a place to a store: `s3://BUCKET/PREFIX`, or a local directory.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectStore, RetryConfig};

use super::super::error::{BackupError, Result};
use super::{StoreOptions, account};

/// Where a connection is not made within this time, it is tried again.
const CONNECT: Duration = Duration::from_secs(10);
/// Where nothing says otherwise.
const REGION: &str = "us-east-1";

/// Where a repository is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A bucket, and what its objects' names begin with.
    S3 {
        /// Name of the bucket.
        bucket: String,
        /// Without slashes at its ends; may be empty.
        prefix: String,
    },
    /// A directory.
    Local(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Local(path) => path.display().fmt(f),
        }
    }
}

/// Whether a text is meant as a place of objects and not as a local path.
pub fn is_location(text: &str) -> bool {
    text.contains("://")
}

impl Place {
    /// Reads `s3://BUCKET[/PREFIX]`, `file:///DIR`, or the path of a directory.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| BackupError::Location(text.to_owned(), why.to_owned());
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.');
            if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(fits) {
                return Err(wrong("a bucket's name has 3 to 63 characters: a-z, 0-9, - and ."));
            }
            let prefix = prefix.trim_matches('/').to_owned();
            if prefix.split('/').any(|part| matches!(part, "." | "..")) || (prefix.contains("//")) {
                return Err(wrong("the part behind the bucket has an empty part, or `.` or `..`"));
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix });
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if is_location(path) {
            return Err(wrong("this build knows s3://BUCKET/PREFIX and local directories"));
        }
        if path.is_empty() {
            return Err(wrong("it is empty"));
        }
        Ok(Self::Local(path.into()))
    }

    /// The store, and where in it the place is.
    pub(super) async fn open(&self, options: &StoreOptions) -> Result<(Arc<dyn ObjectStore>, Key)> {
        match self {
            Self::Local(path) => {
                std::fs::create_dir_all(path).map_err(BackupError::io(path))?;
                let store = LocalFileSystem::new_with_prefix(path).map_err(|e| self.wrong(&e))?;
                // What was written is there after a power cut: an index must not outlive its packs.
                Ok((Arc::new(store.with_fsync(true)), Key::default()))
            }
            Self::S3 { bucket, prefix } => {
                let store = self.s3(bucket, options).await?;
                Ok((store, Key::parse(prefix).map_err(|e| self.wrong(&e))?))
            }
        }
    }

    fn wrong(&self, e: &dyn fmt::Display) -> BackupError {
        BackupError::Location(self.to_string(), e.to_string())
    }

    async fn s3(&self, bucket: &str, options: &StoreOptions) -> Result<Arc<dyn ObjectStore>> {
        let found = account::find(options).await.map_err(|e| self.wrong(&e))?;
        let region = found.region.unwrap_or_else(|| REGION.to_owned());
        let endpoint = options.endpoint.clone().or(found.endpoint);
        // Retries are counted and bounded here, one level up.
        let retry = RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() };
        let client = ClientOptions::new().with_connect_timeout(CONNECT).with_timeout_disabled();
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(bucket)
            .with_region(region)
            .with_credentials(found.credentials)
            .with_checksum_algorithm(Checksum::SHA256)
            .with_retry(retry);
        let plain = endpoint.as_deref().is_some_and(|e| e.starts_with("http://"));
        builder = builder.with_client_options(client.with_allow_http(plain));
        if let Some(endpoint) = endpoint {
            // Servers that are not AWS's rarely have a host name for each bucket.
            builder = builder.with_endpoint(endpoint).with_virtual_hosted_style_request(false);
        }
        Ok(Arc::new(builder.build().map_err(|e| self.wrong(&e))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written into a directory is on its disk when it was written.
    #[test]
    fn a_directory_is_synced() {
        let base = tempfile::tempdir().unwrap();
        let place = Place::parse(base.path().to_str().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (store, _) = runtime.block_on(place.open(&StoreOptions::default())).unwrap();
        assert!(format!("{store:?}").contains("fsync: true"), "{store:?}");
    }

    #[test]
    fn places_are_read_as_written() {
        let s3 = |bucket: &str, prefix: &str| Place::S3 { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!(Place::parse("s3://vaults/host-1/srv/").unwrap(), s3("vaults", "host-1/srv"));
        assert_eq!(Place::parse("s3://vaults").unwrap(), s3("vaults", ""));
        assert_eq!(Place::parse("/srv/repo").unwrap(), Place::Local("/srv/repo".into()));
        assert_eq!(Place::parse("file:///srv/repo").unwrap(), Place::Local("/srv/repo".into()));
        for wrong in
            ["s3://", "s3://ab", "s3://Upper", "s3://vaults/a/../b", "gs://x/y", "", "s3://vaults/a//b"]
        {
            assert!(Place::parse(wrong).is_err(), "{wrong}");
        }
    }
}
