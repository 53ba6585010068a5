//! Whether a login is good, and what to say where it isn't.

use std::sync::Arc;

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};

use super::auth::Login;
use super::content::Content;
use super::{Access, Call, Remote, Repository};
use crate::error::Error;

impl Remote {
    /// Asks a registry (`quay.io`, `registry.corp:5000`) whether it knows the login that this value's credentials have for
    /// it.
    ///
    /// # Errors
    /// When the registry refuses the login or can't be reached.
    pub async fn check_login(self: &Arc<Self>, registry: &str) -> Result<(), Error> {
        let (domain, path) = registry.split_once('/').unwrap_or((registry, ""));
        let repository = Repository {
            remote: Arc::clone(self),
            domain: domain.to_string(),
            path: path.to_string(),
            access: Access::Pull,
        };
        let mut url = repository.base()?;
        url.set_path("/v2/");
        let call = repository.login_call(url);
        repository.request(&call, &[StatusCode::OK]).await?;
        Ok(())
    }
}

impl Repository {
    fn login_call(&self, url: Url) -> Call<'_> {
        Call {
            repository: self,
            action: format!("log in to {}", self.domain),
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            scopes: Vec::new(),
            content: Content::Nothing,
        }
    }

    /// What to do after an answer that denies access.
    pub(super) fn advice(&self, status: StatusCode) -> String {
        let domain = &self.domain;
        let login = self.remote.credentials.login(&self.name()).ok().flatten();
        let who = match &login {
            Some(Login::Password { user, .. }) => format!("the login of {user}"),
            Some(_) => "the login's token".to_string(),
            None => String::new(),
        };
        match (status, login.is_some()) {
            (StatusCode::UNAUTHORIZED, true) => {
                format!("; {who} was refused: log in again with `installer login {domain}`")
            }
            (StatusCode::FORBIDDEN, true) => format!("; {who} does not allow it"),
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, false) => {
                format!("; there is no login for it: use `installer login {domain}`")
            }
            _ => String::new(),
        }
    }
}
