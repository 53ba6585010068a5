//! Container images by what they are: a name in a manifest gets the digest of the image that is carried under it.
//!
//! A node that has an image of a name does not ask whether the name means another one by now. So a cluster image in which one is
//! changed under its old name changes the manifests too, and with them the pods, and these ask for the new image.

use crate::site::Site;
use serde_json::Value;

/// Where pod specs list their containers.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// The image's name with its tag and digest, if the cluster image carries it.
pub fn pinned(site: &Site, name: &str) -> Option<String> {
    let carried = carried(site, name)?;
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = if last.contains(':') { "" } else { ":latest" };
    Some(format!("{name}{tag}@{}", carried.served().digest))
}

/// The carried image of that name, which may be written as the private registry's own (`sea.hub:5000/quay.io/a/b:1`).
fn carried<'s>(site: &'s Site, name: &str) -> Option<&'s image::Carried> {
    let find = |reference: &oci::Reference| site.image.carried.iter().find(|image| image.reference == *reference);
    let reference: oci::Reference = name.parse().ok()?;
    if reference.digest().is_some() {
        // Whoever wrote it wants exactly that one.
        return None;
    }
    find(&reference).or_else(|| {
        let inner = name.strip_prefix(&format!("{}/", site.registry.host_port()))?;
        find(&inner.parse().ok()?)
    })
}

/// Pins every image of the pod specs in `object`, wherever they stand.
pub fn object(site: &Site, object: &mut Value) {
    match object {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::Array(items) if CONTAINERS.contains(&name.as_str()) => {
                        let images = items.iter_mut().filter_map(|item| item.get_mut("image"));
                        images.for_each(|image| pin(site, image));
                    }
                    Value::Array(items) if name == "volumes" => {
                        let images = items.iter_mut().filter_map(|item| item.get_mut("image"));
                        let names = images.filter_map(|image| image.get_mut("reference"));
                        names.for_each(|name| pin(site, name));
                    }
                    _ => {}
                }
                self::object(site, value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| self::object(site, item)),
        _ => {}
    }
}

fn pin(site: &Site, image: &mut Value) {
    if let Some(name) = image.as_str().and_then(|name| pinned(site, name)) {
        *image = Value::String(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{carry, site};
    use serde_json::json;

    #[test]
    fn only_carried_images_named_without_a_digest_are_pinned() {
        let mut site = site();
        let web = carry(&mut site, "docker.io/library/web:latest");
        let tool = carry(&mut site, "quay.io/a/tool:1");
        for (name, expected) in [
            ("web", Some(format!("web:latest@{web}"))),
            (
                "docker.io/library/web:latest",
                Some(format!("docker.io/library/web:latest@{web}")),
            ),
            ("quay.io/a/tool:1", Some(format!("quay.io/a/tool:1@{tool}"))),
            (
                "sea.hub:5000/quay.io/a/tool:1",
                Some(format!("sea.hub:5000/quay.io/a/tool:1@{tool}")),
            ),
            ("quay.io/a/tool:2", None),
            (&format!("quay.io/a/tool:1@{web}"), None),
            ("not an image", None),
        ] {
            assert_eq!(pinned(&site, name), expected, "{name}");
        }
    }

    #[test]
    fn pod_specs_are_found_wherever_they_stand() {
        let mut site = site();
        let digest = carry(&mut site, "quay.io/a/tool:1");
        let pod = |image: &str| {
            json!({"spec": {
                "containers": [{"name": "a", "image": image}, {"name": "b", "image": "elsewhere/x:1"}],
                "initContainers": [{"image": image}],
                "volumes": [{"image": {"reference": image}}, {"emptyDir": {}}],
            }})
        };
        let job = |image: &str| json!({"kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": pod(image)}}}});
        let mut given = job("quay.io/a/tool:1");
        object(&site, &mut given);
        assert_eq!(given, job(&format!("quay.io/a/tool:1@{digest}")));
        let schema = json!({"properties": {"containers": {"type": "array"}, "volumes": {"type": "array"}}});
        let mut same = schema.clone();
        object(&site, &mut same);
        assert_eq!(same, schema);
    }
}
