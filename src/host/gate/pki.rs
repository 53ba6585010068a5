//! Deciding about keys, certificates and kubeconfigs: what is there is looked at, what is missing or no longer right is made on the
//! host itself. Making them is [`crate::pki`]'s business, writing them the gate's.

use zeroize::Zeroizing;

use super::{Decision, Gate, Todo, change, unchanged};
use crate::{
    Error, Result,
    effect::{Action, Ca, Cert, Kubeconfig},
    fsops,
    pki::{self, Pem},
    proto::FaultKind,
};

/// Keys and certificates are small.
const MAX_PEM: u64 = 1 << 20;

/// What shall be made.
pub(crate) enum Issue {
    Ca(Ca),
    Key(String),
    Cert(Box<Cert>),
    ServiceAccount { key: String, public: String },
}

impl Gate {
    /// Text of a PEM file, if it is there.
    pub(crate) fn pem(&self, path: &str) -> Result<Option<Pem>> {
        let bytes = fsops::read_small(&self.root.path(path)?, MAX_PEM)?.map(Zeroizing::new);
        bytes
            .map(|b| std::str::from_utf8(&b).map(|text| Zeroizing::new(text.to_owned())))
            .transpose()
            .map_err(|_| Error::invalid(format!("{path} is no PEM file")))
    }

    pub(crate) fn need_pem(&self, path: &str) -> Result<Pem> {
        self.pem(path)?
            .ok_or_else(|| Error::new(FaultKind::NotFound, format!("{path} is not there")))
    }

    pub(super) fn decide_ca(&self, ca: &Ca) -> Result<Decision> {
        let what = format!("ca {}", ca.cert);
        match (self.pem(&ca.cert)?, self.pem(&ca.key)?) {
            (Some(cert), Some(key)) => {
                pki::check_pair(&cert, &key)
                    .map_err(|why| Error::invalid(format!("{} and {}: {why}", ca.cert, ca.key)))?;
                Ok(unchanged(what))
            }
            (None, None) => {
                let detail = format!("CN={}, {}", ca.common_name, oci::counted(ca.days, "day"));
                Ok((
                    change(what, Action::Create, detail),
                    Some(Todo::Issue(Issue::Ca(ca.clone()))),
                ))
            }
            // The certificate is written last, so a key alone is what a crash leaves.
            (None, Some(_)) => Ok((
                change(what, Action::Create, "certificate for the key that is there"),
                Some(Todo::Issue(Issue::Ca(ca.clone()))),
            )),
            // Making a new CA here would silently cut off everything the old one signed.
            (Some(_), None) => Err(Error::invalid(format!(
                "{} is there but its key {} is not",
                ca.cert, ca.key
            ))),
        }
    }

    pub(super) fn decide_key(&self, path: &str) -> Result<Decision> {
        let what = format!("key {path}");
        match self.pem(path)? {
            Some(key) => pki::check_key(&key)
                .map_err(|why| Error::invalid(format!("{path}: {why}")))
                .map(|()| unchanged(what)),
            None => Ok((
                change(what, Action::Create, "ECDSA P-256"),
                Some(Todo::Issue(Issue::Key(path.to_owned()))),
            )),
        }
    }

    pub(super) fn decide_cert(&self, cert: &Cert) -> Result<Decision> {
        let what = format!("certificate {}", cert.cert);
        let todo = Some(Todo::Issue(Issue::Cert(Box::new(cert.clone()))));
        let (Some(old), Some(key)) = (self.pem(&cert.cert)?, self.pem(&cert.key)?) else {
            let detail = format!("CN={}, {}", cert.subject.common_name, oci::counted(cert.days, "day"));
            return Ok((change(what, Action::Create, detail), todo));
        };
        // In a plan the CA may not exist yet; then neither does what it signed.
        let Some(ca) = self.pem(&cert.ca_cert)? else {
            return Ok((change(what, Action::Modify, "its CA is not there yet"), todo));
        };
        let ends = pki::Ends {
            now: jiff::Timestamp::now(),
            days: cert.renew_days,
        };
        match pki::why_reissue(&old, &key, &ca, &cert.subject, cert.usage, ends) {
            None => Ok(unchanged(what)),
            Some(why) => Ok((change(what, Action::Modify, why), todo)),
        }
    }

    pub(super) fn decide_service_account(&self, key: &str, public: &str) -> Result<Decision> {
        let what = format!("service account key {key}");
        let todo = Some(Todo::Issue(Issue::ServiceAccount {
            key: key.to_owned(),
            public: public.to_owned(),
        }));
        match (self.pem(key)?, self.pem(public)?) {
            (None, _) => Ok((change(what, Action::Create, "ECDSA P-256"), todo)),
            (Some(private), old) => {
                let right = pki::public_of(&private).map_err(|why| Error::invalid(format!("{key}: {why}")))?;
                match old {
                    Some(old) if old.trim() == right.trim() => Ok(unchanged(what)),
                    _ => Ok((change(what, Action::Modify, "public key"), todo)),
                }
            }
        }
    }

    pub(super) fn decide_kubeconfig(&self, config: &Kubeconfig) -> Result<Decision> {
        let inputs = [Some(&config.ca), config.cert.as_ref(), config.key.as_ref()];
        let missing = inputs
            .into_iter()
            .flatten()
            .find(|path| !matches!(self.pem(path), Ok(Some(_))));
        if let Some(missing) = missing {
            let why = Error::new(
                FaultKind::NotFound,
                format!("{} needs {missing}, which is not there", config.path),
            );
            return Ok((
                change(&config.path, Action::Create, format!("once {missing} is there")),
                Some(Todo::Refuse(why)),
            ));
        }
        let ca = self.need_pem(&config.ca)?;
        let cert = config.cert.as_ref().map(|path| self.need_pem(path)).transpose()?;
        let key = config.key.as_ref().map(|path| self.need_pem(path)).transpose()?;
        let text = pki::kubeconfig(
            config,
            &ca,
            cert.as_deref().map(String::as_str),
            key.as_deref().map(String::as_str),
        )?;
        self.decide_bytes(&config.path, text.as_bytes(), 0o600, None, true)
    }

    pub(super) fn issue(&mut self, issue: Issue) -> Result<()> {
        match issue {
            Issue::Key(path) => self.key_or_new(&path).map(drop),
            Issue::Ca(ca) => {
                let key = self.key_or_new(&ca.key)?;
                let cert = pki::self_signed(&key, &ca.common_name, ca.days)?;
                self.put_file(&ca.cert, cert.as_bytes(), 0o644, None)
            }
            Issue::Cert(cert) => {
                let key = self.key_or_new(&cert.key)?;
                let (ca, ca_key) = (self.need_pem(&cert.ca_cert)?, self.need_pem(&cert.ca_key)?);
                let pem = pki::signed(&key, &ca, &ca_key, &cert.subject, cert.usage, cert.days)?;
                self.put_file(&cert.cert, pem.as_bytes(), 0o644, None)
            }
            Issue::ServiceAccount { key, public } => {
                let private = self.key_or_new(&key)?;
                let pem = pki::public_of(&private).map_err(Error::invalid)?;
                self.put_file(&public, pem.as_bytes(), 0o644, None)
            }
        }
    }

    /// The key that is there, or a new one written 0600.
    pub(crate) fn key_or_new(&mut self, path: &str) -> Result<Pem> {
        if let Some(key) = self.pem(path)? {
            return Ok(key);
        }
        let key = pki::new_key()?;
        self.put_file(path, key.as_bytes(), 0o600, None)?;
        self.remember(&crate::Effect::Key { path: path.to_owned() })?;
        Ok(key)
    }
}
