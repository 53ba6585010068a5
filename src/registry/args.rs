//! The command line of `clusterd registry`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Examples at the end of `--help`.
const EXAMPLES: &str = "\
Examples:
  Serve an image layout, read-only:
    clusterd registry --store /srv/images

  Take pushes from users of a file, over TLS; everybody may pull:
    htpasswd -cB /etc/registry/users alice
    clusterd registry --store /srv/images --writable --delete \\
      --htpasswd /etc/registry/users --anonymous-pull \\
      --tls-cert /etc/registry/tls.crt --tls-key /etc/registry/tls.key --domain images.example:5000

A repository that is pushed to as NAME is kept as DOMAIN/NAME in the layout's index.json, DOMAIN being the first --domain, else
\"localhost\". A NAME that begins with another domain is kept as it is, and found by runtimes that use this registry as a mirror.";

/// `clusterd registry`: serves container images from an OCI image layout, and takes new ones with --writable.
#[derive(Debug, Clone, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// OCI image layout to serve: index.json and blobs/ lie in it. Made if it is not there and --writable is given.
    #[arg(long, value_name = "DIR")]
    pub store: PathBuf,
    /// Address and port to listen on.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:5000")]
    pub listen: SocketAddr,
    /// Certificate chain (PEM). Without it plain HTTP is spoken.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key (PEM) of the certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// A domain this registry is reached by, with its port, such as sea.hub:5000. May be repeated.
    #[arg(long = "domain", value_name = "DOMAIN:PORT")]
    pub domains: Vec<String>,
    /// Take pushes. Without --htpasswd from everybody.
    #[arg(long)]
    pub writable: bool,
    /// Let manifests, tags and blobs be deleted.
    #[arg(long, requires = "writable")]
    pub delete: bool,
    /// File of users and bcrypt hashes (htpasswd -B). Read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub htpasswd: Option<PathBuf>,
    /// Let everybody pull; users are needed to push only.
    #[arg(long, requires = "htpasswd")]
    pub anonymous_pull: bool,
    /// The largest blob that is taken: bytes, or with K, M, G or T.
    #[arg(long, value_name = "SIZE", default_value = "20G", value_parser = size)]
    pub max_blob_size: u64,
    /// Most uploads that may be under way.
    #[arg(long, value_name = "NUMBER", default_value_t = 256, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_uploads: usize,
    /// How long an upload is kept to which nothing comes, and a blob that no manifest names: seconds, or with m, h or d.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = time)]
    pub upload_expiry: Duration,
    /// Most connections at once; one client gets at most half of them.
    #[arg(long, value_name = "NUMBER", default_value_t = 512, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(2..=65_536))]
    pub max_connections: usize,
    /// Address and port of /metrics and /healthz, in plain HTTP and for everybody. Without it there are no metrics.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

/// Reads a number of bytes; K, M, G and T are powers of 1024.
fn size(text: &str) -> Result<u64, String> {
    scaled(
        text,
        &[("", 1), ("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40)],
    )
    .ok_or_else(|| "expected a number of bytes, such as 500M or 20G".to_owned())
}

fn time(text: &str) -> Result<Duration, String> {
    scaled(text, &[("", 1), ("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)])
        .map(Duration::from_secs)
        .ok_or_else(|| "expected a time, such as 90s, 30m, 24h or 7d".to_owned())
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text
        .bytes()
        .position(|byte| !byte.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    digits
        .parse::<u64>()
        .ok()?
        .checked_mul(*scale)
        .filter(|value| *value > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!((size("7"), size("20G"), size("1T")), (Ok(7), Ok(20 << 30), Ok(1 << 40)));
        assert_eq!(
            (time("90"), time("30m")),
            (Ok(Duration::from_secs(90)), Ok(Duration::from_secs(1800)))
        );
        for bad in ["", "0", "G", "-1", "1.5G", "1GB", "99999999999999T"] {
            assert!(size(bad).is_err() && time(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn flags_are_consistent() {
        use clap::{CommandFactory, Parser};
        #[derive(Parser)]
        struct Cli {
            #[command(flatten)]
            args: Args,
        }
        Cli::command().debug_assert();
        let line = "registry --store /s --listen 10.0.0.1:5000 --tls-cert c --tls-key k --domain sea.hub:5000 --domain 10.0.0.1:5000";
        let args = Cli::parse_from(line.split(' ')).args;
        assert_eq!((args.domains.len(), args.writable), (2, false));
        for refused in [
            &["--tls-cert", "c"][..],
            &["--delete"],
            &["--anonymous-pull"],
            &["--writable", "--max-uploads", "0"],
            &["--max-connections", "1"],
        ] {
            let line = ["registry", "--store", "/s"].iter().chain(refused);
            assert!(Cli::try_parse_from(line).is_err(), "{refused:?}");
        }
    }
}
