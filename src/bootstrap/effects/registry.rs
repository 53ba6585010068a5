//! The private registry on the hosts that run it.

use super::{Learned, secret_file, service};
use crate::{
    Result, paths,
    site::{Seat, Site},
};
use host::{
    Effect,
    effect::{Cert, RENEW_DAYS, Subject, Usage},
};

/// The list of images, the certificate, the password file, the unit; nothing on other hosts.
///
/// # Errors
/// When the image lacks the unit.
pub fn registry(site: &Site, seat: &Seat, learned: &Learned) -> Result<Vec<Effect>> {
    if !seat.registry {
        return Ok(Vec::new());
    }
    let mut effects = vec![Effect::Layout {
        index: site.image.layout.clone(),
    }];
    if !site.registry.insecure {
        effects.push(Effect::Cert(certificate(site, seat)));
    }
    let mut triggers = vec![paths::REGISTRY_CERT];
    if let Some(line) = learned.htpasswd.get(&seat.ip) {
        effects.push(secret_file(paths::HTPASSWD, line));
        triggers.push(paths::HTPASSWD);
    } else if seat.seen.htpasswd.is_some() {
        effects.push(Effect::Absent {
            path: paths::HTPASSWD.to_owned(),
        });
    }
    effects.push(service(site, seat, paths::unit::REGISTRY, &triggers)?);
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
        renew_days: RENEW_DAYS,
    }
}
