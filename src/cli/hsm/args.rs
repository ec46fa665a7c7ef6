//! The command line of `envelopefs hsm`, in CloudHSM CLI's words.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::quorum_args::{
    ApprovalArgs, ChangeQuorumCommand, CryptoCommand, PairSharingArgs, QuorumCommand, SharingArgs,
};
use crate::hsm::Role;

/// `envelopefs hsm`.
#[derive(Debug, Args)]
pub(crate) struct HsmArgs {
    #[command(subcommand)]
    pub(super) command: HsmCommand,
    /// The HSM: unix:PATH or tcp:HOST:PORT; several members of a cluster with commas between.
    #[arg(long, value_name = "ADDRESS", env = "ENVELOPEFS_HSM", hide_env_values = true, global = true)]
    #[arg(help_heading = "HSM")]
    pub(super) hsm: Option<String>,
    /// For TCP: your CA's certificate (PEM).
    #[arg(long, value_name = "FILE", global = true, help_heading = "HSM", requires_all = ["tls_cert", "tls_key"])]
    pub(super) tls_ca: Option<PathBuf>,
    /// For TCP: the client's certificate by that CA (PEM).
    #[arg(long, value_name = "FILE", global = true, help_heading = "HSM")]
    pub(super) tls_cert: Option<PathBuf>,
    /// For TCP: the client's key (PEM).
    #[arg(long, value_name = "FILE", global = true, help_heading = "HSM")]
    pub(super) tls_key: Option<PathBuf>,
    /// Print CloudHSM CLI's answer as JSON.
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum HsmCommand {
    /// Runs an HSM: one process, one appliance.
    Serve(ServeArgs),
    /// Makes, initialises and activates an HSM.
    Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Logs in, for the next commands: ten minutes.
    Login {
        #[command(flatten)]
        user: UserArgs,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Ends the login.
    Logout,
    /// Manages users.
    User {
        #[command(subcommand)]
        command: UserCommand,
    },
    /// Manages keys.
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Has several users approve of what one alone may not do.
    Quorum {
        #[command(subcommand)]
        command: QuorumCommand,
    },
    /// Uses keys.
    Crypto {
        #[command(subcommand)]
        command: CryptoCommand,
    },
    /// Writes an encrypted backup of the whole HSM into its directory.
    Backup {
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Makes an HSM in a new directory out of a backup.
    Restore {
        /// The backup.
        #[arg(long, value_name = "FILE")]
        backup: PathBuf,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        new: NewArgs,
    },
    /// Checks the audit log.
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Tells how the HSM is.
    Health,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  envelopefs hsm serve --dir ~/hsm --listen unix:/run/user/1000/hsm.sock")]
pub(super) struct ServeArgs {
    /// Directory of the HSM.
    #[arg(long)]
    pub(super) dir: PathBuf,
    /// Where to listen: unix:PATH or tcp:HOST:PORT (TLS, both sides with certificates of your CA) [default: hsm.sock
    /// in the directory].
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: Vec<String>,
    /// User id that may connect to the Unix socket too.
    #[arg(long, value_name = "UID")]
    pub(super) allow_uid: Vec<u32>,
    /// Offer weak and old mechanisms too (RSA 1024, triple DES, MD5), for software that needs them.
    #[arg(long)]
    pub(super) legacy: bool,
    /// Make every IV of AES-GCM in the HSM, as CloudHSM does.
    #[arg(long)]
    pub(super) hsm_iv: bool,
    /// Where the other members of the cluster reach this one [default: the first --listen].
    #[arg(long, value_name = "ADDRESS")]
    pub(super) member_address: Option<String>,
    /// The most HSMs that the cluster may have: 1 to 28.
    #[arg(long, value_name = "COUNT", default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=28))]
    pub(super) max_members: u8,
    /// Serve /healthz and /metrics (Prometheus) there, for this machine.
    #[arg(long, value_name = "127.0.0.1:PORT")]
    pub(super) metrics: Option<std::net::SocketAddr>,
    /// Let a new key of a cluster be used although it is on this HSM only.
    #[arg(long)]
    pub(super) disable_key_availability_check: bool,
    /// Crypto user whose PIN is one without a colon.
    #[arg(long, value_name = "NAME", default_value = "user")]
    pub(super) default_user: String,
    /// End when stdin ends: for the process that hosts this one.
    #[arg(long, hide = true)]
    pub(super) until_eof: bool,
    #[command(flatten)]
    pub(super) root: RootArgs,
}

/// Where the passphrase of an HSM's root key comes from.
#[derive(Debug, Args)]
pub(super) struct RootArgs {
    /// Read the passphrase of the HSM's root key from the first line of a file (also: environment
    /// ENVELOPEFS_PASSPHRASE).
    #[arg(long, value_name = "FILE")]
    pub(super) passphrase_file: Option<PathBuf>,
}

/// A new HSM.
#[derive(Debug, Args)]
pub(super) struct NewArgs {
    /// Directory of the HSM.
    #[arg(long)]
    pub(super) dir: PathBuf,
    /// Seal the root key under a key file (mode 0600) beside the store: starts unattended.
    #[arg(long)]
    pub(super) key_file: bool,
    #[command(flatten)]
    pub(super) root: RootArgs,
}

/// A user's password.
#[derive(Debug, Args)]
pub(super) struct PasswordArgs {
    /// Read the password from the first line of a file (also: environment ENVELOPEFS_HSM_PASSWORD).
    #[arg(long, value_name = "FILE")]
    pub(super) password_file: Option<PathBuf>,
}

/// A user by name and role.
#[derive(Debug, Args)]
pub(super) struct UserArgs {
    /// User name.
    #[arg(long)]
    pub(super) username: String,
    /// Role.
    #[arg(long)]
    pub(super) role: RoleName,
}

/// Roles, in both spellings.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum RoleName {
    #[value(alias = "CO", alias = "co")]
    Admin,
    #[value(alias = "CU", alias = "cu")]
    CryptoUser,
    #[value(alias = "AU", alias = "au")]
    ApplianceUser,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Admin => Self::Admin,
            RoleName::CryptoUser => Self::CryptoUser,
            RoleName::ApplianceUser => Self::ApplianceUser,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Makes an HSM in a new directory.
    Create(NewArgs),
    /// Prints the certificate signing request of a new HSM, for your CA to sign.
    Csr,
    /// Gives the HSM its certificate, and your CA's.
    Initialize {
        /// The signed certificate (PEM).
        #[arg(long, value_name = "FILE")]
        signed_cert: PathBuf,
        /// Your CA's certificate (PEM): clients check the HSM against it, and it checks them.
        #[arg(long, value_name = "FILE")]
        trust_anchor: PathBuf,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
    /// Sets the password of the first admin; the HSM goes into service.
    Activate {
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Makes an HSM a member of the cluster: one that was restored from a backup of it, and serves.
    Add {
        /// The HSM: unix:PATH or tcp:HOST:PORT, as the other members reach it.
        #[arg(long, value_name = "ADDRESS")]
        member: String,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
    /// Takes a member out of the cluster.
    Remove {
        /// The member, by serial number or address.
        #[arg(long, value_name = "SERIAL|ADDRESS")]
        member: String,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
    /// Shows the HSMs of the cluster.
    HsmInfo,
}

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// Makes an admin or a crypto user.
    Create {
        #[command(flatten)]
        user: UserArgs,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
    /// Lists the users.
    List,
    /// Removes a user.
    Delete {
        #[command(flatten)]
        user: UserArgs,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
    /// Changes how a user takes part in quorum authentication.
    ChangeQuorum {
        #[command(subcommand)]
        command: ChangeQuorumCommand,
    },
    /// Brings a user to all members of the cluster.
    Replicate {
        /// User name.
        #[arg(long)]
        username: String,
    },
    /// Sets a password; by an admin it also unlocks the account.
    ChangePassword {
        #[command(flatten)]
        user: UserArgs,
        #[command(flatten)]
        password: PasswordArgs,
        /// Read the old password, for one's own, from the first line of a file.
        #[arg(long, value_name = "FILE")]
        old_password_file: Option<PathBuf>,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
}

/// One key.
#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// The key: key-reference=0x..., or attr.label=NAME where only one key has it.
    #[arg(long, value_name = "FILTER")]
    pub(super) filter: String,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Makes an AES key or a generic secret.
    GenerateSymmetric {
        /// Kind of key.
        kind: SymmetricKind,
        /// Label.
        #[arg(long)]
        label: String,
        /// Length in bytes.
        #[arg(long, value_name = "BYTES", default_value_t = 32)]
        key_length_bytes: u64,
        /// Attributes: encrypt=true extractable=false ...
        #[arg(long, value_name = "NAME=VALUE", num_args = 1..)]
        attributes: Vec<String>,
        #[command(flatten)]
        sharing: SharingArgs,
    },
    /// Makes an RSA or EC pair.
    GenerateAsymmetricPair {
        /// Kind of key.
        kind: PairKind,
        /// Label of the private key.
        #[arg(long, value_name = "LABEL")]
        private_label: String,
        /// Label of the public key.
        #[arg(long, value_name = "LABEL")]
        public_label: String,
        /// Bits of an RSA modulus.
        #[arg(long, value_name = "BITS", default_value_t = 2048)]
        modulus_size_bits: u64,
        /// Curve of an EC pair: secp224r1, prime256v1, secp384r1, secp521r1, secp256k1.
        #[arg(long, default_value = "prime256v1")]
        curve: String,
        /// Attributes of the private key.
        #[arg(long, value_name = "NAME=VALUE", num_args = 1..)]
        attributes: Vec<String>,
        #[command(flatten)]
        sharing: PairSharingArgs,
    },
    /// Lists the keys that one owns or that are shared with one.
    List,
    /// Deletes a key.
    Delete {
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Changes an attribute. Only an admin sets trusted=true.
    SetAttribute {
        #[command(flatten)]
        key: KeyArgs,
        /// Attribute and value.
        #[arg(value_name = "NAME=VALUE")]
        attribute: String,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
    /// Lets another crypto user use a key.
    Share {
        #[command(flatten)]
        key: KeyArgs,
        /// The crypto user.
        #[arg(long)]
        username: String,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
    /// Writes an extractable key into a file under a password.
    Export {
        #[command(flatten)]
        key: KeyArgs,
        /// The file.
        #[arg(long, value_name = "FILE")]
        path: PathBuf,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
    /// Takes in a key from such a file.
    Import {
        /// The file.
        #[arg(long, value_name = "FILE")]
        path: PathBuf,
        /// Another label than the file's.
        #[arg(long)]
        label: Option<String>,
        #[command(flatten)]
        password: PasswordArgs,
        #[command(flatten)]
        sharing: SharingArgs,
    },
    /// Makes a new secret key in the place of one: label, uses and shares go over to it, the old one stays.
    Rotate {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
    /// Brings a key to all members of the cluster.
    Replicate {
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Takes that back.
    Unshare {
        #[command(flatten)]
        key: KeyArgs,
        /// The crypto user.
        #[arg(long)]
        username: String,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
    /// Writes a key, wrapped under another (AES, RFC 5649), into a file.
    Wrap {
        /// The key to wrap.
        #[arg(long, value_name = "FILTER")]
        payload_filter: String,
        /// The key that wraps.
        #[arg(long, value_name = "FILTER")]
        wrapping_filter: String,
        /// The file.
        #[arg(long, value_name = "FILE")]
        path: PathBuf,
        /// The signed file of a quorum token, where the key to wrap needs approvals.
        #[arg(long, value_name = "FILE")]
        payload_approval: Option<PathBuf>,
        /// The signed file of a quorum token, where the key that wraps needs approvals.
        #[arg(long, value_name = "FILE")]
        wrapping_approval: Option<PathBuf>,
    },
    /// Takes in an AES key that was wrapped so.
    Unwrap {
        /// The key that unwraps.
        #[arg(long, value_name = "FILTER")]
        filter: String,
        /// The file.
        #[arg(long, value_name = "FILE")]
        data_path: PathBuf,
        /// Label of the new key.
        #[arg(long)]
        label: String,
        /// Attributes of the new key.
        #[arg(long, value_name = "NAME=VALUE", num_args = 1..)]
        attributes: Vec<String>,
        #[command(flatten)]
        sharing: SharingArgs,
        #[command(flatten)]
        approval: ApprovalArgs,
    },
}

/// Kinds of secret keys.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum SymmetricKind {
    Aes,
    GenericSecret,
}

/// Kinds of pairs.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum PairKind {
    Rsa,
    Ec,
}

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Follows the chain of the audit log: a removed or changed line is named.
    Verify,
}
