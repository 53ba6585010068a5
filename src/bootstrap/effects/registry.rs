//! The private registry on the hosts that run it.

use super::{Learned, service};
use crate::{
    Result, paths,
    site::{Seat, Site},
};
use host::{
    Effect,
    effect::{Cert, Subject, Usage},
};

/// The list of images, the certificate, the unit; nothing on other hosts.
///
/// # Errors
/// When the image lacks the unit.
pub fn registry(site: &Site, seat: &Seat, _: &Learned) -> Result<Vec<Effect>> {
    if !seat.registry {
        return Ok(Vec::new());
    }
    let mut effects = vec![Effect::Layout {
        index: site.image.layout.clone(),
    }];
    if !site.registry.insecure {
        effects.push(Effect::Cert(certificate(site, seat)));
    }
    effects.push(service(site, seat, paths::unit::REGISTRY, &[paths::REGISTRY_CERT])?);
    Ok(effects)
}

fn certificate(site: &Site, seat: &Seat) -> Cert {
    let mut sans = vec![site.registry.domain.clone(), seat.name.clone(), seat.ip.to_string()];
    sans.extend(site.registry.alt_names.iter().cloned());
    sans.sort();
    sans.dedup();
    Cert {
        cert: paths::REGISTRY_CERT.to_owned(),
        key: paths::REGISTRY_KEY.to_owned(),
        ca_cert: paths::CA_CERT.to_owned(),
        ca_key: paths::CA_KEY.to_owned(),
        subject: Subject {
            common_name: site.registry.domain.clone(),
            organizations: Vec::new(),
            sans,
        },
        usage: Usage::Server,
        days: 365,
    }
}
