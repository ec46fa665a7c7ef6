//! Which operations share a quota, and how many requests a second it allows.

/// A class of operations that share a quota.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Class(u8);

/// Names of classes, their requests a second (AWS's defaults where the Region does not raise them), their operations.
/// An operation that no row names is of the last one.
const CLASSES: &[(&str, f64, &[&str])] = &[
    (
        "symmetric",
        5500.0,
        &[
            "Decrypt",
            "Encrypt",
            "GenerateDataKey",
            "GenerateDataKeyWithoutPlaintext",
            "GenerateMac",
            "GenerateRandom",
            "ReEncrypt",
            "VerifyMac",
        ],
    ),
    // Of keys with these specs; the operations are found by `Class::of`.
    ("rsa", 500.0, &[]),
    ("ecc", 300.0, &["DeriveSharedSecret"]),
    ("pair-rsa-2048", 1.0, &[]),
    ("pair-rsa-3072", 0.5, &[]),
    ("pair-rsa-4096", 0.1, &[]),
    ("pair-ecc-256", 25.0, &[]),
    ("pair-ecc-384", 10.0, &[]),
    ("pair-ecc-521", 5.0, &[]),
    ("describe-key", 2000.0, &["DescribeKey"]),
    ("get-public-key", 2000.0, &["GetPublicKey"]),
    ("get-key-policy", 1000.0, &["GetKeyPolicy"]),
    ("get-key-rotation-status", 1000.0, &["GetKeyRotationStatus"]),
    ("list-aliases", 500.0, &["ListAliases"]),
    ("list-keys", 500.0, &["ListKeys"]),
    ("list-grants", 100.0, &["ListGrants"]),
    ("list-key-policies", 100.0, &["ListKeyPolicies"]),
    ("list-key-rotations", 100.0, &["ListKeyRotations"]),
    ("list-resource-tags", 2000.0, &["ListResourceTags"]),
    ("list-retirable-grants", 100.0, &["ListRetirableGrants"]),
    ("create-grant", 50.0, &["CreateGrant"]),
    ("retire-grant", 30.0, &["RetireGrant"]),
    ("revoke-grant", 30.0, &["RevokeGrant"]),
    ("put-key-policy", 15.0, &["PutKeyPolicy"]),
    ("enable-key-rotation", 15.0, &["EnableKeyRotation"]),
    ("schedule-key-deletion", 15.0, &["ScheduleKeyDeletion"]),
    ("delete-alias", 15.0, &["DeleteAlias"]),
    ("tag-resource", 10.0, &["TagResource"]),
    ("get-parameters-for-import", 0.25, &["GetParametersForImport"]),
    ("create-key", 5.0, &["CreateKey"]),
    ("other", 5.0, &[]),
];

impl Class {
    /// How many there are.
    pub(super) const COUNT: usize = CLASSES.len();

    /// The class of a request: its action, and the spec of its key, or of the pair that it makes.
    pub fn of(action: &str, spec: &str) -> Self {
        let name = match action {
            "GenerateDataKeyPair" | "GenerateDataKeyPairWithoutPlaintext" => match spec {
                "RSA_2048" => "pair-rsa-2048",
                "RSA_3072" => "pair-rsa-3072",
                "RSA_4096" => "pair-rsa-4096",
                "ECC_NIST_P384" => "pair-ecc-384",
                "ECC_NIST_P521" => "pair-ecc-521",
                _ => "pair-ecc-256",
            },
            "Encrypt" | "Decrypt" | "ReEncrypt" | "Sign" | "Verify" if spec.starts_with("RSA") => "rsa",
            "Sign" | "Verify" | "Encapsulate" | "Decapsulate" => "ecc",
            _ => return Self::with(|(_, _, actions)| actions.contains(&action)),
        };
        Self::named(name).unwrap_or(Self::with(|_| false))
    }

    /// The class of a name, as `symmetric`.
    pub fn named(name: &str) -> Option<Self> {
        CLASSES.iter().any(|(n, ..)| *n == name).then(|| Self::with(|(n, ..)| *n == name))
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        CLASSES[self.index()].0
    }

    /// Requests a second by default.
    pub fn default_rate(self) -> f64 {
        CLASSES[self.index()].1
    }

    /// Every class.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..CLASSES.len()).filter_map(|n| u8::try_from(n).ok()).map(Self)
    }

    pub(super) fn index(self) -> usize {
        self.0.into()
    }

    fn with(wanted: impl Fn(&(&str, f64, &[&str])) -> bool) -> Self {
        let at = CLASSES.iter().position(wanted).unwrap_or(CLASSES.len() - 1);
        Self(u8::try_from(at).expect("the table has far fewer than 256 rows"))
    }
}
