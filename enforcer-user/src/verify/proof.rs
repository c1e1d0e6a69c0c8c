//! A statement that is signed, as a file: a DSSE envelope (Dead Simple Signing Envelope, v1).
//!
//! What is signed is the payload's bytes and its type, by DSSE's pre-authentication encoding, and never JSON: there is
//! nothing to be made canonical, and what was signed of one type cannot be passed off as of another.

use base64ct::{Base64, Encoding as _};
use serde::{Deserialize, Serialize};

use super::signer::{PublicKey, Signer};
use super::statement::Statement;
use crate::api::Envelope;

/// What the payload is: an [`Envelope`] of a [`Statement`] in JSON.
pub const PAYLOAD_TYPE: &str = "application/vnd.enforcer.verify.v1+json";

/// Largest file of a proof, in bytes; one has a few thousand.
pub const MOST: u64 = 1 << 20;

/// Why a file proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no envelope, or what is in it no statement.
    #[error("this is no proof of `enforcer verify`: {0}")]
    Malformed(String),
    /// None of its signatures is the key's.
    #[error("the signature is not that of the key {key_id}: the proof was changed, or signed by another")]
    Signature {
        /// The key that it was checked with.
        key_id: String,
    },
}

impl Error {
    /// The exit code of a command that ends with this error.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Malformed(_) => 2,
            Self::Signature { .. } => 3,
        }
    }
}

/// The envelope, in the fields and words of DSSE.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Signed {
    payload_type: String,
    /// Base64.
    payload: String,
    signatures: Vec<SignedBy>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SignedBy {
    /// A hint, which nothing is decided by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyid: Option<String>,
    /// Base64 of the 64 bytes of an Ed25519 signature.
    sig: String,
}

/// Signs a statement; the file's text, which is one line.
///
/// # Errors
/// The statement cannot be written as JSON.
pub fn sign(statement: &Envelope<Statement>, signer: &Signer) -> Result<String, serde_json::Error> {
    let payload = serde_json::to_vec(statement)?;
    let signature = signer.sign(&encoded(PAYLOAD_TYPE, &payload));
    let signed = Signed {
        payload_type: PAYLOAD_TYPE.to_owned(),
        payload: Base64::encode_string(&payload),
        signatures: vec![SignedBy { keyid: Some(signer.public_key().id()), sig: Base64::encode_string(&signature) }],
    };
    Ok(serde_json::to_string(&signed)? + "\n")
}

/// What the owner of `key` has stated. Nothing of the payload is read before the signature is known to be good.
///
/// # Errors
/// It is no proof, or not that owner's.
pub fn check(text: &str, key: &PublicKey) -> Result<Envelope<Statement>, Error> {
    let malformed = |error: serde_json::Error| Error::Malformed(error.to_string());
    let Signed { payload_type, payload, signatures } = serde_json::from_str(text).map_err(malformed)?;
    let payload = Base64::decode_vec(&payload).map_err(|_| Error::Malformed("the payload is not base64".to_owned()))?;
    let message = encoded(&payload_type, &payload);
    let is_good = signatures.iter().any(|SignedBy { sig, .. }| {
        let mut bytes = [0; 64];
        let whole = Base64::decode(sig, &mut bytes).is_ok_and(|decoded| decoded.len() == 64);
        whole && key.accepts(&message, &bytes)
    });
    if !is_good {
        return Err(Error::Signature { key_id: key.id() });
    }
    if payload_type != PAYLOAD_TYPE {
        return Err(Error::Malformed(format!("it is of the type {payload_type:?}, not {PAYLOAD_TYPE:?}")));
    }
    serde_json::from_slice(&payload).map_err(malformed)
}

/// DSSE's pre-authentication encoding, PAE, of version 1.
fn encoded(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::statement::{Matter, PolicyOf};
    use crate::verify::{Check, Report};

    fn statement() -> Envelope<Statement> {
        let check =
            Check { check: "no key".to_owned(), passed: true, sent: 1, expected: 0, executed: 0, answers: vec![401] };
        let report = Report { passed: true, mode: "enforce".to_owned(), checks: vec![check] };
        let matter = Matter::new("version = 1\n", PolicyOf::File, "default", "/", None);
        Envelope::new(matter.state(report).expect("a statement"))
    }

    fn signer() -> Signer {
        let root = tempfile::tempdir().expect("a directory");
        Signer::of(root.path()).expect("a key")
    }

    #[test]
    fn the_encoding_is_that_of_the_standard() {
        // The example of DSSE's protocol document.
        assert_eq!(
            encoded("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn what_is_signed_is_what_is_read_and_each_changed_byte_is_noticed() {
        let (signer, statement) = (signer(), statement());
        let key = signer.public_key();
        let text = sign(&statement, &signer).expect("signed");
        assert_eq!(check(&text, &key).expect("good"), statement);
        let mut signed: Signed = serde_json::from_str(&text).expect("an envelope");
        let payload = Base64::decode_vec(&signed.payload).expect("base64");
        for place in 0..payload.len() {
            let mut changed = payload.clone();
            changed[place] ^= 1;
            signed.payload = Base64::encode_string(&changed);
            let text = serde_json::to_string(&signed).expect("JSON");
            assert!(matches!(check(&text, &key), Err(Error::Signature { .. })), "byte {place}");
        }
    }

    #[test]
    fn nothing_but_the_owners_whole_proof_is_one() {
        let (signer, statement) = (signer(), statement());
        let key = signer.public_key();
        let text = sign(&statement, &signer).expect("signed");
        let other = super::tests::signer().public_key();
        assert!(matches!(check(&text, &other), Err(Error::Signature { .. })), "of another key");
        for length in 0..text.trim_end().len() {
            assert!(matches!(check(&text[..length], &key), Err(Error::Malformed(_))), "the first {length} bytes");
        }
        let swapped = text.replace(PAYLOAD_TYPE, "application/vnd.enforcer.verify.v2+json");
        assert!(matches!(check(&swapped, &key), Err(Error::Signature { .. })), "another type");
        // One that the owner has signed for something else.
        let payload = serde_json::to_vec(&statement).expect("JSON");
        let sig = Base64::encode_string(&signer.sign(&encoded("text/plain", &payload)));
        let signatures = |signatures| Signed {
            payload_type: "text/plain".to_owned(),
            payload: Base64::encode_string(&payload),
            signatures,
        };
        let text = serde_json::to_string(&signatures(vec![SignedBy { keyid: None, sig }])).expect("JSON");
        assert!(matches!(check(&text, &key), Err(Error::Malformed(_))), "signed, and of another type");
        let text = serde_json::to_string(&signatures(Vec::new())).expect("JSON");
        assert!(matches!(check(&text, &key), Err(Error::Signature { .. })), "signed by nobody");
        let short = Base64::encode_string(&[0; 63]);
        let text = serde_json::to_string(&signatures(vec![SignedBy { keyid: None, sig: short }])).expect("JSON");
        assert!(matches!(check(&text, &key), Err(Error::Signature { .. })), "a signature that is too short");
    }

    #[test]
    fn a_hint_and_fields_of_others_decide_nothing() {
        let signer = signer();
        let text = sign(&statement(), &signer).expect("signed");
        let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        value["signatures"][0]["keyid"] = "whatever".into();
        value["note"] = "of somebody else".into();
        assert!(check(&value.to_string(), &signer.public_key()).is_ok());
    }
}
