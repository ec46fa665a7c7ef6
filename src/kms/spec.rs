//! Key specs, usages, origins and algorithms: AWS's names, and which of them go together
//! (<https://docs.aws.amazon.com/kms/latest/developerguide/symm-asymm-choose-key-spec.html>).

use serde::{Deserialize, Serialize};

/// An enum whose variants carry AWS's names, in JSON and in text.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($variant:ident = $name:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub(in crate::kms) enum $type { $(#[serde(rename = $name)] $variant),* }

        impl $type {
            /// AWS's name.
            pub(in crate::kms) fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// By AWS's name.
            #[allow(dead_code, reason = "one shape for all named enums")]
            pub(in crate::kms) fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

named! {
    /// What a key is made of.
    KeySpec {
        Symmetric = "SYMMETRIC_DEFAULT",
        Rsa2048 = "RSA_2048", Rsa3072 = "RSA_3072", Rsa4096 = "RSA_4096",
        P256 = "ECC_NIST_P256", P384 = "ECC_NIST_P384", P521 = "ECC_NIST_P521",
        Secp256k1 = "ECC_SECG_P256K1", Ed25519 = "ECC_NIST_EDWARDS25519",
        Hmac224 = "HMAC_224", Hmac256 = "HMAC_256", Hmac384 = "HMAC_384", Hmac512 = "HMAC_512",
        MlDsa44 = "ML_DSA_44", MlDsa65 = "ML_DSA_65", MlDsa87 = "ML_DSA_87",
        MlKem512 = "ML_KEM_512", MlKem768 = "ML_KEM_768", MlKem1024 = "ML_KEM_1024",
        Sm2 = "SM2",
    }
}

named! {
    /// What a key may do.
    KeyUsage {
        EncryptDecrypt = "ENCRYPT_DECRYPT",
        SignVerify = "SIGN_VERIFY",
        Mac = "GENERATE_VERIFY_MAC",
        Agreement = "KEY_AGREEMENT",
        Encapsulate = "ENCAPSULATE_DECAPSULATE",
    }
}

named! {
    /// Where key material comes from and lives.
    Origin {
        AwsKms = "AWS_KMS",
        External = "EXTERNAL",
        CloudHsm = "AWS_CLOUDHSM",
        ExternalStore = "EXTERNAL_KEY_STORE",
    }
}

named! {
    /// Who manages a key.
    Manager { Customer = "CUSTOMER", Aws = "AWS" }
}

named! {
    /// What made a key's material current.
    RotationKind { Automatic = "AUTOMATIC", OnDemand = "ON_DEMAND" }
}

impl KeySpec {
    /// The usages that a key of this spec may have; the first is AWS's default where there is one.
    pub(in crate::kms) fn usages(self) -> &'static [KeyUsage] {
        use KeyUsage::{Agreement, Encapsulate, EncryptDecrypt, Mac, SignVerify};
        match self {
            Self::Symmetric => &[EncryptDecrypt],
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => &[EncryptDecrypt, SignVerify],
            Self::P256 | Self::P384 | Self::P521 => &[SignVerify, Agreement],
            Self::Secp256k1 | Self::Ed25519 | Self::MlDsa44 | Self::MlDsa65 | Self::MlDsa87 => &[SignVerify],
            Self::Hmac224 | Self::Hmac256 | Self::Hmac384 | Self::Hmac512 => &[Mac],
            Self::MlKem512 | Self::MlKem768 | Self::MlKem1024 => &[Encapsulate],
            Self::Sm2 => &[EncryptDecrypt, SignVerify, Agreement],
        }
    }

    /// Whether a key has a public half.
    pub(in crate::kms) fn is_asymmetric(self) -> bool {
        !matches!(self, Self::Symmetric | Self::Hmac224 | Self::Hmac256 | Self::Hmac384 | Self::Hmac512)
    }

    /// Algorithms of a key with this spec and usage, in AWS's order.
    pub(in crate::kms) fn algorithms(self, usage: KeyUsage) -> &'static [&'static str] {
        use KeyUsage::{Agreement, Encapsulate, EncryptDecrypt, Mac, SignVerify};
        match (usage, self) {
            (EncryptDecrypt, Self::Symmetric) => &["SYMMETRIC_DEFAULT"],
            (EncryptDecrypt, Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096) => {
                &["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]
            }
            (SignVerify, Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096) => &[
                "RSASSA_PKCS1_V1_5_SHA_256",
                "RSASSA_PKCS1_V1_5_SHA_384",
                "RSASSA_PKCS1_V1_5_SHA_512",
                "RSASSA_PSS_SHA_256",
                "RSASSA_PSS_SHA_384",
                "RSASSA_PSS_SHA_512",
            ],
            (SignVerify, Self::P256 | Self::Secp256k1) => &["ECDSA_SHA_256"],
            (SignVerify, Self::P384) => &["ECDSA_SHA_384"],
            (SignVerify, Self::P521) => &["ECDSA_SHA_512"],
            (SignVerify, Self::Ed25519) => &["ED25519_SHA_512", "ED25519_PH_SHA_512"],
            (SignVerify, Self::MlDsa44 | Self::MlDsa65 | Self::MlDsa87) => &["ML_DSA_SHAKE_256"],
            (Mac, Self::Hmac224) => &["HMAC_SHA_224"],
            (Mac, Self::Hmac256) => &["HMAC_SHA_256"],
            (Mac, Self::Hmac384) => &["HMAC_SHA_384"],
            (Mac, Self::Hmac512) => &["HMAC_SHA_512"],
            (Agreement, Self::P256 | Self::P384 | Self::P521) => &["ECDH"],
            (Encapsulate, Self::MlKem512 | Self::MlKem768 | Self::MlKem1024) => &["ML_KEM"],
            _ => &[],
        }
    }

    /// Bytes of the material of a key without a public half.
    pub(in crate::kms) fn secret_len(self) -> Option<usize> {
        match self {
            Self::Symmetric | Self::Hmac256 => Some(32),
            Self::Hmac224 => Some(28),
            Self::Hmac384 => Some(48),
            Self::Hmac512 => Some(64),
            _ => None,
        }
    }
}

impl KeyUsage {
    /// Name of the metadata field that lists a key's algorithms.
    pub(in crate::kms) fn algorithms_field(self) -> &'static str {
        match self {
            Self::EncryptDecrypt => "EncryptionAlgorithms",
            Self::SignVerify => "SigningAlgorithms",
            Self::Mac => "MacAlgorithms",
            Self::Agreement => "KeyAgreementAlgorithms",
            Self::Encapsulate => "EncapsulationAlgorithms",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every spec but SM2, which AWS has in China only, has algorithms for each of its usages.
    #[test]
    fn every_usage_of_a_spec_has_algorithms() {
        for name in
            ["SYMMETRIC_DEFAULT", "RSA_3072", "ECC_NIST_P521", "ECC_SECG_P256K1", "HMAC_224", "ML_KEM_768"]
        {
            let spec = KeySpec::from_name(name).unwrap();
            assert_eq!(spec.name(), name);
            for usage in spec.usages() {
                assert!(!spec.algorithms(*usage).is_empty(), "{name} {}", usage.name());
            }
        }
        assert_eq!(KeySpec::from_name("AES_256"), None);
    }
}
