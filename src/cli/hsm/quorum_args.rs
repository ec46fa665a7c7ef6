//! Command lines about quorum: tokens, approvals, and keys whose use needs some.

use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, Subcommand, ValueEnum};

use crate::hsm::{Hash, Service, Sharing, Signature};

/// The approvals of an operation.
#[derive(Debug, Args)]
pub(super) struct ApprovalArgs {
    /// The signed file of a quorum token, where the operation needs approvals.
    #[arg(long, value_name = "FILE")]
    pub(super) approval: Option<PathBuf>,
}

/// With whom a new key is shared, and what its users must approve of.
#[derive(Debug, Args)]
pub(super) struct SharingArgs {
    /// Crypto users to share the key with.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    share_crypto_users: Vec<String>,
    /// Approvals of the key's users to wrap, export, share or change it.
    #[arg(long, value_name = "VALUE")]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=8))]
    manage_key_quorum_value: Option<u32>,
    /// Approvals of the key's users to use it.
    #[arg(long, value_name = "VALUE")]
    #[arg(value_parser = clap::value_parser!(u32).range(2..=8))]
    use_key_quorum_value: Option<u32>,
}

impl SharingArgs {
    pub(super) fn sharing(&self) -> Sharing {
        Sharing {
            users: self.share_crypto_users.clone(),
            management: self.manage_key_quorum_value,
            usage: self.use_key_quorum_value,
        }
    }
}

/// The same for the private key of a pair.
#[derive(Debug, Args)]
pub(super) struct PairSharingArgs {
    /// Crypto users to share the private key with.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    share_crypto_users: Vec<String>,
    /// Approvals of the private key's users to wrap, export, share or change it.
    #[arg(long, value_name = "VALUE", value_parser = clap::value_parser!(u32).range(2..=8))]
    manage_private_key_quorum_value: Option<u32>,
    /// Approvals of the private key's users to use it.
    #[arg(long, value_name = "VALUE", value_parser = clap::value_parser!(u32).range(2..=8))]
    use_private_key_quorum_value: Option<u32>,
}

impl PairSharingArgs {
    pub(super) fn sharing(&self) -> Sharing {
        Sharing {
            users: self.share_crypto_users.clone(),
            management: self.manage_private_key_quorum_value,
            usage: self.use_private_key_quorum_value,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum ChangeQuorumCommand {
    /// The strategy of signed tokens.
    TokenSign {
        #[command(subcommand)]
        command: RegisterCommand,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RegisterCommand {
    /// Registers the key by which the user that is logged in approves.
    Register {
        /// The public key: RSA of 2,048 bits (PEM).
        #[arg(long, value_name = "FILE")]
        public_key: PathBuf,
        /// The registration token, signed by the private key.
        #[arg(long, value_name = "FILE")]
        signed_token: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum QuorumCommand {
    /// The strategy of signed tokens.
    TokenSign {
        #[command(subcommand)]
        command: TokenSignCommand,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenSignCommand {
    /// Writes a token to sign into a file: good for one operation, for ten minutes.
    Generate {
        /// What it is good for.
        #[arg(long)]
        service: Service,
        /// The file.
        #[arg(long, value_name = "FILE")]
        token: PathBuf,
        /// The only key that a token of a key service is good for.
        #[arg(long, value_name = "FILTER")]
        filter: Option<String>,
    },
    /// Lists the tokens.
    List,
    /// Ends tokens.
    Delete {
        /// One's own, or all (by an admin).
        #[arg(long)]
        scope: Scope,
    },
    /// Shows how many approvals the services need.
    ListQuorumValues,
    /// Shows how long tokens live.
    ListTimeouts,
    /// Sets how many approvals a service needs: 2 to 8, or 1 for none.
    SetQuorumValue {
        /// The service.
        #[arg(long)]
        service: ValuedService,
        /// The value.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8))]
        value: u32,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
}

/// Whose tokens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Scope {
    User,
    All,
}

/// Services with a value of the whole cluster.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ValuedService {
    /// Users are made, deleted, given passwords.
    User,
    /// Quorum values are set.
    Quorum,
    /// Members come and go.
    Cluster,
}

impl From<ValuedService> for Service {
    fn from(name: ValuedService) -> Self {
        match name {
            ValuedService::User => Self::User,
            ValuedService::Quorum => Self::Quorum,
            ValuedService::Cluster => Self::Cluster,
        }
    }
}

/// What tokens are good for.
impl ValueEnum for Service {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::User, Self::Quorum, Self::Cluster, Self::KeyManagement, Self::KeyUsage, Self::Registration]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self {
            Self::User => "user create, delete, change-password",
            Self::Quorum => "quorum token-sign set-quorum-value",
            Self::Cluster => "cluster add, remove, initialize",
            Self::KeyManagement => "key wrap, unwrap, export, rotate, share, unshare, set-attribute",
            Self::KeyUsage => "crypto sign",
            Self::Registration => "user change-quorum token-sign register",
        }))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum CryptoCommand {
    /// Signs.
    Sign {
        /// The mechanism.
        mechanism: SignatureName,
        /// The key: key-reference=0x..., or attr.label=NAME where only one key has it.
        #[arg(long, value_name = "FILTER")]
        key_filter: String,
        /// The digest.
        #[arg(long)]
        hash_function: HashName,
        /// The data, in base64.
        #[arg(
            long,
            value_name = "BASE64",
            required_unless_present = "data_path",
            conflicts_with = "data_path"
        )]
        data: Option<String>,
        /// A file with the data.
        #[arg(long, value_name = "FILE")]
        data_path: Option<PathBuf>,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
}

/// Mechanisms of signatures.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum SignatureName {
    RsaPkcs,
    RsaPkcsPss,
    Ecdsa,
}

impl From<SignatureName> for Signature {
    fn from(name: SignatureName) -> Self {
        match name {
            SignatureName::RsaPkcs => Self::RsaPkcs,
            SignatureName::RsaPkcsPss => Self::RsaPss,
            SignatureName::Ecdsa => Self::Ecdsa,
        }
    }
}

/// Digests.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum HashName {
    Sha256,
    Sha384,
    Sha512,
}

impl From<HashName> for Hash {
    fn from(name: HashName) -> Self {
        match name {
            HashName::Sha256 => Self::Sha256,
            HashName::Sha384 => Self::Sha384,
            HashName::Sha512 => Self::Sha512,
        }
    }
}
