//! Whether an InRelease file was signed by a key that the host trusts.
//!
//! One good signature of a trusted, unexpired, unrevoked key is enough, as for apt: archives sign with the keys of
//! several releases. Spec: RFC 9580 (§7 for the cleartext framework).

use std::io::Cursor;
use std::path::Path;

use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails, VerifyingKey};

use super::sources::Trust;
use crate::error::{BuildError, IoContext};

/// Largest keyring that is read, in bytes.
const KEYRING_BYTES_MAX: u64 = 16 << 20;

/// Returns the text that `in_release` signs, with its line ends as CR LF.
///
/// `now_s` is in seconds since the epoch; keys that expired before it do not count.
///
/// # Errors
/// [`BuildError::Signature`], [`BuildError::NoKeyring`], [`BuildError::Keyring`].
pub fn verified_text(url: &str, in_release: &[u8], trust: &Trust, now_s: u64) -> Result<String, BuildError> {
    let refused = |reason: String| BuildError::Signature { url: url.to_owned(), reason };
    let text = std::str::from_utf8(in_release).map_err(|error| refused(error.to_string()))?;
    let (message, _) = CleartextSignedMessage::from_string(text)
        .map_err(|error| refused(format!("not a signed message ({error})")))?;
    let signed_text = message.signed_text();
    if trust.unverified {
        return Ok(signed_text);
    }
    let keys = load_keys(trust)?;
    if keys.is_empty() {
        return Err(BuildError::NoKeyring { url: url.to_owned() });
    }
    let mut reason = "it has no signature of a type and hash that count".to_owned();
    for signature in message.signatures().iter().filter(|signature| is_acceptable(signature)) {
        match keys.iter().find_map(|key| check(signature, key, trust, &signed_text, now_s)) {
            Some(Ok(())) => return Ok(signed_text),
            Some(Err(why)) => reason = why,
            None => {
                let issuer = signature
                    .issuer_fingerprint()
                    .first()
                    .map_or("unknown".to_owned(), |fingerprint| format!("{fingerprint:X}"));
                reason = format!("no trusted key made it (signed by {issuer}, {} keys known)", keys.len());
            }
        }
    }
    Err(refused(reason))
}

/// A signature over a document with a hash that is still collision resistant.
fn is_acceptable(signature: &Signature) -> bool {
    matches!(signature.typ(), Some(SignatureType::Binary | SignatureType::Text))
        && matches!(
            signature.hash_alg(),
            Some(HashAlgorithm::Sha256 | HashAlgorithm::Sha384 | HashAlgorithm::Sha512)
        )
}

/// Checks one signature against one certificate; `None` when that certificate has not made it.
fn check(
    signature: &Signature,
    key: &SignedPublicKey,
    trust: &Trust,
    text: &str,
    now_s: u64,
) -> Option<Result<(), String>> {
    let fingerprint = key.fingerprint().to_string().to_ascii_uppercase();
    let subkey = key.public_subkeys.iter().find(|subkey| made_by(signature, &subkey.key));
    if subkey.is_none() && !made_by(signature, &key.primary_key) {
        return None;
    }
    let names = [
        Some(fingerprint.clone()),
        subkey.map(|subkey| subkey.key.fingerprint().to_string().to_ascii_uppercase()),
    ];
    if !trust.fingerprints.is_empty() && !names.iter().flatten().any(|name| trust.fingerprints.contains(name))
    {
        return None;
    }
    if is_revoked(key) {
        return Some(Err(format!("key {fingerprint} is revoked")));
    }
    if primary_expiry_s(key).is_some_and(|expiry_s| expiry_s < now_s) {
        return Some(Err(format!("key {fingerprint} has expired")));
    }
    let result = match subkey {
        Some(subkey) => check_subkey(subkey, key, now_s)
            .and_then(|()| signature.verify(&subkey.key, text.as_bytes()).map_err(|error| error.to_string())),
        None => signature.verify(&key.primary_key, text.as_bytes()).map_err(|error| error.to_string()),
    };
    Some(result.map_err(|reason| format!("bad signature by key {fingerprint} ({reason})")))
}

fn made_by(signature: &Signature, key: &impl VerifyingKey) -> bool {
    signature.issuer_fingerprint().contains(&&key.fingerprint())
        || signature.issuer_key_id().contains(&&key.legacy_key_id())
}

/// A subkey counts only when the primary key says, and is not too late to say, that it may sign.
fn check_subkey(subkey: &SignedPublicSubKey, key: &SignedPublicKey, now_s: u64) -> Result<(), String> {
    let of_type = |wanted| subkey.signatures.iter().filter(move |signature| signature.typ() == Some(wanted));
    if of_type(SignatureType::SubkeyRevocation)
        .any(|signature| signature.verify_subkey_binding(&key.primary_key, &subkey.key).is_ok())
    {
        return Err("its subkey is revoked".to_owned());
    }
    let created_s = u64::from(subkey.key.created_at().as_secs());
    let is_bound = of_type(SignatureType::SubkeyBinding).any(|binding| {
        let is_live = binding
            .key_expiration_time()
            .is_none_or(|duration| created_s + u64::from(duration.as_secs()) >= now_s);
        is_live
            && binding.key_flags().sign()
            && binding.verify_subkey_binding(&key.primary_key, &subkey.key).is_ok()
            && binding
                .embedded_signature()
                .is_some_and(|back| back.verify_primary_key_binding(&subkey.key, &key.primary_key).is_ok())
    });
    if is_bound { Ok(()) } else { Err("its subkey may not sign, or has expired".to_owned()) }
}

fn is_revoked(key: &SignedPublicKey) -> bool {
    key.details.revocation_signatures.iter().any(|signature| signature.verify_key(&key.primary_key).is_ok())
}

/// When the primary key expires, in seconds since the epoch: the newest valid self-signature decides.
fn primary_expiry_s(key: &SignedPublicKey) -> Option<u64> {
    let direct = key
        .details
        .direct_signatures
        .iter()
        .filter(|signature| signature.verify_key(&key.primary_key).is_ok());
    let of_users = key.details.users.iter().flat_map(|user| {
        user.signatures.iter().filter(move |signature| {
            signature.is_certification()
                && signature.verify_certification(&key.primary_key, pgp::types::Tag::UserId, &user.id).is_ok()
        })
    });
    let newest = direct
        .chain(of_users)
        .max_by_key(|signature| signature.created().map_or(0, |created| created.as_secs()))?;
    let created_s = u64::from(key.primary_key.created_at().as_secs());
    newest.key_expiration_time().map(|duration| created_s + u64::from(duration.as_secs()))
}

fn load_keys(trust: &Trust) -> Result<Vec<SignedPublicKey>, BuildError> {
    let mut keys = Vec::new();
    for file in &trust.files {
        let length = std::fs::metadata(file).at("cannot read the keyring", file)?.len();
        if length > KEYRING_BYTES_MAX {
            return Err(BuildError::Keyring {
                file: file.clone(),
                reason: format!("{length} bytes are too many"),
            });
        }
        parse_keys(file, &std::fs::read(file).at("cannot read the keyring", file)?, &mut keys)?;
    }
    for text in &trust.embedded {
        parse_keys(Path::new("Signed-By"), text.as_bytes(), &mut keys)?;
    }
    Ok(keys)
}

/// Adds the certificates of one keyring; those of kinds that we do not know are passed over.
fn parse_keys(file: &Path, bytes: &[u8], keys: &mut Vec<SignedPublicKey>) -> Result<(), BuildError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let parsed = SignedPublicKey::from_reader_many(Cursor::new(bytes.to_vec()));
    let (parsed, _) =
        parsed.map_err(|error| BuildError::Keyring { file: file.to_owned(), reason: error.to_string() })?;
    keys.extend(parsed.filter_map(Result::ok));
    Ok(())
}
