//! How hosts are reached where no Clusterfile says it: flags, and the same as `ssh` of a Clusterfile. No secret is a flag: they are
//! named by file or variable.

use anyhow::Context as _;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// See the head of this file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "How hosts are reached")]
pub struct SshArgs {
    /// Log in as this user, and become root by sudo [default: root]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// The hosts' SSH port [default: 22]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Log in with this private key [default: the agent's keys and the usual files]
    #[arg(long, value_name = "FILE")]
    pub pk: Option<PathBuf>,
    /// File whose first line is the key's passphrase
    #[arg(long, value_name = "FILE", requires = "pk", conflicts_with = "pk_passwd_env")]
    pub pk_passwd_file: Option<PathBuf>,
    /// Environment variable with the key's passphrase
    #[arg(long, value_name = "VAR", requires = "pk")]
    pub pk_passwd_env: Option<String>,
    /// File whose first line is the login password
    #[arg(long, value_name = "FILE", conflicts_with = "passwd_env")]
    pub passwd_file: Option<PathBuf>,
    /// Environment variable with the login password
    #[arg(long, value_name = "VAR")]
    pub passwd_env: Option<String>,
    /// File whose first line is the password for sudo [default: the login password]
    #[arg(long, value_name = "FILE", conflicts_with = "sudo_passwd_env")]
    pub sudo_passwd_file: Option<PathBuf>,
    /// Environment variable with the password for sudo
    #[arg(long, value_name = "VAR")]
    pub sudo_passwd_env: Option<String>,
    /// Go through this bastion; several, outermost first
    #[arg(long, value_name = "[USER@]HOST[:PORT]", value_delimiter = ',')]
    pub proxy_jump: Vec<String>,
}

/// `ssh` of a Clusterfile.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SshFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pk: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pk_passwd_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pk_passwd_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    passwd_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    passwd_env: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sudo_passwd_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sudo_passwd_env: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    proxy_jump: Vec<String>,
}

impl SshArgs {
    /// The same for a Clusterfile that may lie anywhere: relative paths start at `here`.
    pub fn fields(&self, here: &Path) -> SshFields {
        let from_here = |path: &Option<PathBuf>| path.as_ref().map(|path| absolute(path, here));
        SshFields {
            user: self.user.clone(),
            port: self.port,
            pk: from_here(&self.pk),
            pk_passwd_file: from_here(&self.pk_passwd_file),
            pk_passwd_env: self.pk_passwd_env.clone(),
            passwd_file: from_here(&self.passwd_file),
            passwd_env: self.passwd_env.clone(),
            sudo_passwd_file: from_here(&self.sudo_passwd_file),
            sudo_passwd_env: self.sudo_passwd_env.clone(),
            proxy_jump: self.proxy_jump.clone(),
        }
    }
}

/// `~/` is resolved when the Clusterfile is read, by whoever reads it.
fn absolute(path: &Path, here: &Path) -> PathBuf {
    if path.starts_with("~") {
        path.to_path_buf()
    } else {
        here.join(path)
    }
}

/// The working folder.
pub fn here() -> anyhow::Result<PathBuf> {
    std::env::current_dir().context("the working folder is gone")
}
