//! How long a host may be silent, as ssh_config(5) says it.

use std::time::Duration;

use crate::Config;

/// Time-outs that the files name; what they leave open stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `ConnectTimeout`.
    pub connect: Option<Duration>,
    /// `ServerAliveInterval`. Nothing for `0`: without signs of life a run would wait for a lost host for ever.
    pub alive_interval: Option<Duration>,
    /// `ServerAliveCountMax`.
    pub alive_count: Option<usize>,
}

impl Limits {
    /// Sets what is named.
    pub fn apply(&self, config: &mut Config) {
        config.connect_timeout = self.connect.unwrap_or(config.connect_timeout);
        config.keepalive_interval = self.alive_interval.unwrap_or(config.keepalive_interval);
        config.keepalive_max = self.alive_count.unwrap_or(config.keepalive_max);
    }
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) enum Limit {
    Connect(Duration),
    AliveInterval(Duration),
    AliveCount(usize),
}

impl Limit {
    /// What the line says, if it is about one of them.
    pub(super) fn read(keyword: &str, word: &str) -> Result<Option<Self>, String> {
        let time = || {
            time(word).ok_or_else(|| {
                format!("{keyword}: {word:?} is no time; seconds are, and numbers with units such as 1m30s")
            })
        };
        Ok(Some(match keyword {
            "connecttimeout" => Self::Connect(time()?),
            "serveraliveinterval" => Self::AliveInterval(time()?),
            "serveralivecountmax" => {
                let count = word.parse().ok().filter(|count| *count > 0);
                Self::AliveCount(count.ok_or_else(|| format!("{keyword}: {word:?} is no number above 0"))?)
            }
            _ => return Ok(None),
        }))
    }

    /// The first value counts.
    pub(super) fn add_to(&self, limits: &mut Limits) {
        let some = |time: Duration| Some(time).filter(|time| !time.is_zero());
        match self {
            Self::Connect(time) => limits.connect = limits.connect.or(some(*time)),
            Self::AliveInterval(time) => limits.alive_interval = limits.alive_interval.or(some(*time)),
            Self::AliveCount(count) => limits.alive_count = limits.alive_count.or(Some(*count)),
        }
    }
}

/// Numbers with the units of sshd_config(5), "TIME FORMATS", added up; a number alone is seconds.
fn time(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0_u64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..end].parse().ok()?;
        let mut after = rest[end..].chars();
        let unit = match after.next().map(|c| c.to_ascii_lowercase()) {
            None | Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            Some('w') => 604_800,
            Some(_) => return None,
        };
        seconds = seconds.checked_add(number.checked_mul(unit)?)?;
        rest = after.as_str();
    }
    (!text.is_empty()).then_some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_openssh() {
        for (text, seconds) in [
            ("0", Some(0)),
            ("15", Some(15)),
            ("1m30s", Some(90)),
            ("2H", Some(7200)),
            ("1w1d", Some(691_200)),
            ("", None),
            ("m", None),
            ("1x", None),
            ("-1", None),
            ("99999999999999999999", None),
            ("99999999999999999w", None),
        ] {
            assert_eq!(time(text).map(|time| time.as_secs()), seconds, "{text}");
        }
    }

    #[test]
    fn what_is_not_named_stays() {
        let mut config = Config::new("h", "root");
        let before = (config.connect_timeout, config.keepalive_max);
        let mut limits = Limits::default();
        for word in ["7", "9"] {
            let limit = Limit::read("serveraliveinterval", word).unwrap().unwrap();
            limit.add_to(&mut limits);
        }
        Limit::read("connecttimeout", "0").unwrap().unwrap().add_to(&mut limits);
        limits.apply(&mut config);
        assert_eq!(config.keepalive_interval, Duration::from_secs(7));
        assert_eq!((config.connect_timeout, config.keepalive_max), before);
        assert!(Limit::read("serveralivecountmax", "0").is_err());
        assert!(Limit::read("port", "22").unwrap().is_none());
    }
}
