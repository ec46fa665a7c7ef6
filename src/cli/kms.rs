//! Placeholder until the KMS commands are merged.

/// The `kms` commands.
#[derive(Debug, clap::Args)]
pub struct KmsArgs {}

/// Runs one.
pub fn run(
    _args: &KmsArgs,
    _secrets: &dyn Fn() -> std::io::Result<Option<zeroize::Zeroizing<String>>>,
) -> Result<(), Box<dyn std::error::Error>> {
    Ok(())
}
