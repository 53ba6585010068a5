//! Whether the Clusterfile lets an image be used: what `spec.trust` says, judged before any host is talked to.

use crate::{Error, Result};
use clusterfile::{Trust, TrustedKey};
use image::ClusterImage;
use oci::Reference;
use trust::PublicKey;

/// Judges an image of the store; gives what the operator should know though it stops nothing.
///
/// # Errors
/// When a key can't be read, when nobody trusted vouches for the image and that is required, and when a signature by a
/// trusted key was tampered with.
pub(crate) fn check(image: &ClusterImage, reference: &str, trust: &Trust) -> Result<Vec<String>> {
    let refused = |message: String| Error::Image {
        image: reference.to_owned(),
        message,
    };
    let keys = keys(trust)?;
    let verdict = trust::check(image.store(), &image.index, &keys).map_err(|e| {
        refused(format!(
            "its signatures cannot be judged: {e}; load or pull it again, or remove the damaged blob's image with installer rmi"
        ))
    })?;
    let tampered = verdict.is_suspicious();
    match verdict.accept(&keys) {
        Ok(good) => Ok(named_otherwise(&good, reference)),
        Err(untrusted) if tampered || trust.required => {
            let remedy = remedy(reference, tampered);
            Err(refused(format!("{untrusted}\n{remedy}")))
        }
        Err(untrusted) => Ok(vec![format!("cluster image {reference}: {untrusted}")]),
    }
}

fn keys(trust: &Trust) -> Result<Vec<PublicKey>> {
    let read = |key: &TrustedKey| match key {
        TrustedKey::File(path) => PublicKey::read(path),
        TrustedKey::Inline { pem, place } => PublicKey::from_pem(pem, place),
    };
    let keys: Result<_, _> = trust.keys.iter().map(read).collect();
    keys.map_err(|e| Error::Wish(format!("spec.trust.keys: {e}")))
}

fn named_otherwise(good: &[trust::Good], reference: &str) -> Vec<String> {
    let name = reference.parse::<Reference>().ok();
    let text = name.and_then(|name| trust::other_name(good, &name));
    text.into_iter()
        .map(|text| format!("cluster image {reference}: {text}"))
        .collect()
}

fn remedy(reference: &str, tampered: bool) -> String {
    let again = "load or pull it again from where it was signed";
    match tampered {
        true => format!("do not use it: {again}"),
        false => {
            format!(
                "if you know where it comes from, sign it with `installer sign {reference} --key FILE`; else {again}"
            )
        }
    }
}
