//! From ConfigMaps, Secrets and the downward API to files: keys, items, modes, optional sources. Pure.

use super::atomic::{File, Files, check_path};
use crate::env::{Facts, field, resource};
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};
use std::collections::BTreeMap;

/// Keys and bytes of an object.
pub type Payload = BTreeMap<String, Vec<u8>>;

/// A ConfigMap's payload.
pub fn of_config_map(map: &ConfigMap) -> Payload {
    let text = map
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

/// A Secret's payload.
pub fn of_secret(secret: &Secret) -> Payload {
    secret
        .data
        .iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.0.clone()))
        .collect()
}

/// Chooses `items` (all keys without) and gives modes. A missing item is an error unless `optional`.
pub fn select(
    payload: &Payload,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    optional: bool,
    what: &str,
) -> Result<Files, String> {
    let file = |data: &[u8], mode: i32| File {
        data: data.to_vec(),
        mode: mode.unsigned_abs() & 0o777,
        owner: None,
    };
    match items.filter(|i| !i.is_empty()) {
        None => Ok(payload
            .iter()
            .map(|(k, v)| (k.clone(), file(v, default_mode)))
            .collect()),
        Some(items) => {
            let mut out = Files::new();
            for item in items {
                check_path(&item.path)?;
                match payload.get(&item.key) {
                    Some(data) => {
                        out.insert(item.path.clone(), file(data, item.mode.unwrap_or(default_mode)));
                    }
                    None if optional => {}
                    None => return Err(format!("{what} references non-existent key: {}", item.key)),
                }
            }
            Ok(out)
        }
    }
}

/// Files of the downward API.
pub fn downward(pod: &Pod, items: &[DownwardAPIVolumeFile], default_mode: i32, facts: &Facts) -> Result<Files, String> {
    let mut out = Files::new();
    for item in items {
        check_path(&item.path)?;
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(f), _) => {
                field(pod, &f.field_path, facts).ok_or_else(|| format!("unsupported field path {:?}", f.field_path))?
            }
            (None, Some(r)) => resource(pod, None, r, facts)?,
            (None, None) => return Err(format!("{}: neither fieldRef nor resourceFieldRef", item.path)),
        };
        let mode = item.mode.unwrap_or(default_mode).unsigned_abs() & 0o777;
        out.insert(
            item.path.clone(),
            File {
                data: text.into_bytes(),
                mode,
                owner: None,
            },
        );
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_rename_and_set_modes() {
        let payload: Payload = [("k".to_owned(), b"v".to_vec()), ("l".to_owned(), b"w".to_vec())].into();
        let item = |key: &str, path: &str, mode| KeyToPath {
            key: key.into(),
            path: path.into(),
            mode,
        };
        let all = select(&payload, None, 0o644, false, "x").unwrap();
        assert_eq!(all.len(), 2);
        let some = select(&payload, Some(&[item("k", "a/b", Some(0o400))]), 0o644, false, "x").unwrap();
        assert_eq!(
            some["a/b"],
            File {
                data: b"v".to_vec(),
                mode: 0o400,
                owner: None
            }
        );
        assert!(
            select(&payload, Some(&[item("z", "z", None)]), 0o644, false, "x")
                .unwrap_err()
                .contains("non-existent key: z")
        );
        assert!(
            select(&payload, Some(&[item("z", "z", None)]), 0o644, true, "x")
                .unwrap()
                .is_empty()
        );
        assert!(select(&payload, Some(&[item("k", "../z", None)]), 0o644, false, "x").is_err());
    }
}
