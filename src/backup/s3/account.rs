//! Who asks a bucket: region, endpoint and credentials, found as the AWS tools find them. Without the feature `aws` they
//! are those of the environment.

use std::sync::Arc;

use object_store::aws::AwsCredentialProvider;

use super::StoreOptions;

/// What was found.
pub(super) struct Account {
    pub(super) region: Option<String>,
    /// Of a server that is not AWS's.
    pub(super) endpoint: Option<String>,
    pub(super) credentials: AwsCredentialProvider,
}

#[cfg(feature = "aws")]
pub(super) use chain::find;
#[cfg(not(feature = "aws"))]
pub(super) use environment::find;

/// Environment, profile, SSO, web identity, container, instance metadata.
#[cfg(feature = "aws")]
mod chain {
    use std::future::Future;
    use std::pin::Pin;

    use aws_config::{BehaviorVersion, Region};
    use aws_sdk_kms::config::{ProvideCredentials, SharedCredentialsProvider};
    use object_store::CredentialProvider;
    use object_store::aws::AwsCredential;

    use super::{Account, Arc, StoreOptions};

    /// Looks everywhere; the credentials themselves are asked for with each request.
    pub(in super::super) async fn find(options: &StoreOptions) -> Result<Account, String> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest());
        if let Some(profile) = &options.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        let config = loader.load().await;
        let credentials = config.credentials_provider().ok_or("no credentials")?;
        Ok(Account {
            region: config.region().map(|region| region.as_ref().to_owned()),
            endpoint: config.endpoint_url().map(str::to_owned),
            credentials: Arc::new(Chain(credentials)),
        })
    }

    #[derive(Debug)]
    struct Chain(SharedCredentialsProvider);

    type Found = object_store::Result<Arc<AwsCredential>>;

    impl CredentialProvider for Chain {
        type Credential = AwsCredential;

        fn get_credential<'s, 'f>(&'s self) -> Pin<Box<dyn Future<Output = Found> + Send + 'f>>
        where
            's: 'f,
            Self: 'f,
        {
            Box::pin(async move {
                let found = self.0.provide_credentials().await;
                let found = found.map_err(|source| object_store::Error::Unauthenticated {
                    path: "credentials".into(),
                    source: Box::new(source),
                })?;
                Ok(Arc::new(AwsCredential {
                    key_id: found.access_key_id().to_owned(),
                    secret_key: found.secret_access_key().to_owned(),
                    token: found.session_token().map(str::to_owned),
                }))
            })
        }
    }
}

#[cfg(not(feature = "aws"))]
mod environment {
    use object_store::StaticCredentialProvider;
    use object_store::aws::AwsCredential;

    use super::{Account, Arc, StoreOptions};

    /// Reads the variables that the AWS tools read.
    pub(in super::super) async fn find(options: &StoreOptions) -> Result<Account, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if options.profile.is_some() {
            return Err("this envelopefs was built without the feature `aws`, which reads profiles".into());
        }
        let need = |name: &str| {
            variable(name).ok_or_else(|| {
                format!("{name} is not set; a build without the feature `aws` looks nowhere else")
            })
        };
        let credential = AwsCredential {
            key_id: need("AWS_ACCESS_KEY_ID")?,
            secret_key: need("AWS_SECRET_ACCESS_KEY")?,
            token: variable("AWS_SESSION_TOKEN"),
        };
        let region = || variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
        Ok(Account {
            region: options.region.clone().or_else(region),
            endpoint: variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL")),
            credentials: Arc::new(StaticCredentialProvider::new(credential)),
        })
    }
}
