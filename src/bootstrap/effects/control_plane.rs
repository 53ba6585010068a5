//! The control plane of a master: static pods that its node agent starts.

use super::{Learned, file, owned_dir};
use crate::{
    Error, Result, paths, render,
    site::{Seat, Site},
};
use host::Effect;

/// Static pod manifests; nothing on hosts that are no masters.
///
/// # Errors
/// When the image has no static pods, or one cannot be rendered.
pub fn control_plane(site: &Site, seat: &Seat, _: &Learned) -> Result<Vec<Effect>> {
    if !seat.master {
        return Ok(Vec::new());
    }
    let mut effects = vec![owned_dir("/var/lib/etcd", 0o700)];
    let pods = site
        .image
        .files
        .keys()
        .filter(|path| path.starts_with(paths::source::STATIC_PODS));
    for path in pods {
        let name = path.strip_prefix(paths::source::STATIC_PODS).unwrap_or(path);
        let name = name.strip_suffix(".tmpl").unwrap_or(name);
        let text = render::file(site, seat, path)?;
        render::documents(path, &text)?;
        effects.push(file(format!("{}/{name}", paths::STATIC_PODS), text, 0o600));
    }
    if effects.len() == 1 {
        return Err(Error::Image {
            image: site.image.reference.clone(),
            message: format!("its rootfs has no static pods in {}", paths::source::STATIC_PODS),
        });
    }
    Ok(effects)
}
