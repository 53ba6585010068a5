//! How many bytes a second may go to all hosts together.
//!
//! [`Bucket`] decides and is pure; [`Bandwidth`] is one bucket for all connections, and [`Throttled`] reads no faster than it allows.

use std::{
    fmt,
    num::NonZeroU64,
    pin::Pin,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Sleep,
};

/// Units of a rate and what one of them is in bits.
const UNITS: [(&str, u64); 11] = [
    ("B", 8),
    ("kB", 8_000),
    ("MB", 8_000_000),
    ("GB", 8_000_000_000),
    ("KiB", 8 << 10),
    ("MiB", 8 << 20),
    ("GiB", 8 << 30),
    ("bit", 1),
    ("kbit", 1_000),
    ("Mbit", 1_000_000),
    ("Gbit", 1_000_000_000),
];
/// The slowest rate that is of any use, in bytes per second.
const SLOWEST: u64 = 1 << 10;
/// Largest piece that is read at once, in bytes.
const PIECE: u64 = 64 << 10;
const NANOS: i128 = 1_000_000_000;

/// Bytes per second, at least 1 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(NonZeroU64);

impl FromStr for Rate {
    type Err = String;

    /// `10MiB`, `100Mbit`, `1.5MB/s`: a number, a unit, and `/s` if you like. Upper and lower case of units make no difference.
    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            let units = UNITS.map(|(unit, _)| unit).join(", ");
            format!("{text:?} is no rate: a number and a unit per second, such as 10MiB or 100Mbit (units: {units})")
        };
        let plain = text.trim().trim_end_matches("/s").trim_end();
        let split = plain.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(form)?;
        let (number, unit) = (&plain[..split], plain[split..].trim_start());
        let bits = UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .ok_or_else(form)?
            .1;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let (whole, digits): (u64, u64) = (
            whole.parse().map_err(|_| form())?,
            fraction.parse().map_err(|_| form())?,
        );
        let scale = u32::try_from(fraction.len())
            .ok()
            .and_then(|n| 10_u64.checked_pow(n))
            .ok_or_else(form)?;
        let total = u128::from(whole) * u128::from(bits) + u128::from(digits) * u128::from(bits) / u128::from(scale);
        let bytes = u64::try_from(total / 8).map_err(|_| form())?;
        match NonZeroU64::new(bytes) {
            Some(bytes) if bytes.get() >= SLOWEST => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is too slow to be of use: at least 1KiB")),
        }
    }
}

impl Rate {
    /// Bytes per second.
    pub fn bytes(self) -> u64 {
        self.0.get()
    }
}

/// A token bucket that may be overdrawn: whoever takes more than there is waits until the debt is paid, and so does everybody after.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    /// Bytes there, in billionths; below zero: debt.
    level: i128,
    /// Up to when it has been filled, since its beginning.
    filled: Duration,
}

impl Bucket {
    /// A full bucket: a quarter of a second's bytes.
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            level: Self::capacity(rate),
            filled: Duration::ZERO,
        }
    }

    fn capacity(rate: Rate) -> i128 {
        i128::from(rate.bytes()) * NANOS / 4
    }

    /// Takes bytes at the time `now` since the beginning; how long to wait before the next.
    pub(crate) fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let passed = now.saturating_sub(self.filled);
        self.filled = self.filled.max(now);
        let rate = i128::from(self.rate.bytes());
        let income = rate.saturating_mul(i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX));
        self.level = Self::capacity(self.rate).min(self.level.saturating_add(income)) - i128::from(bytes) * NANOS;
        let debt = (-self.level).max(0);
        Duration::from_nanos(u64::try_from(debt / rate).unwrap_or(u64::MAX))
    }
}

/// One bucket for everything that is sent. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Bandwidth {
    rate: Rate,
    began: Instant,
    bucket: Arc<Mutex<Bucket>>,
}

impl fmt::Debug for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bandwidth({} B/s)", self.rate.bytes())
    }
}

impl Bandwidth {
    /// At most `rate`, beginning now.
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            began: Instant::now(),
            bucket: Arc::new(Mutex::new(Bucket::new(rate))),
        }
    }

    fn take(&self, bytes: u64) -> Duration {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(self.began.elapsed(), bytes)
    }
}

/// Reads no faster than the bandwidth allows; without one, as fast as it can.
pub(crate) struct Throttled<R> {
    inner: R,
    bandwidth: Option<Bandwidth>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<R> Throttled<R> {
    pub(crate) fn new(inner: R, bandwidth: Option<&Bandwidth>) -> Self {
        Self {
            inner,
            bandwidth: bandwidth.cloned(),
            pause: None,
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Throttled<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let Some(bandwidth) = self.bandwidth.clone() else {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        };
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        // Small pieces, so that a slow line is not silent for long.
        let piece = usize::try_from(PIECE.min(bandwidth.rate.bytes() / 16)).unwrap_or(usize::MAX);
        let room = piece.max(1).min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut part))?;
        let bytes = part.filled().len();
        buf.advance(bytes);
        let wait = bandwidth.take(bytes as u64);
        if !wait.is_zero() {
            self.pause = Some(Box::pin(tokio::time::sleep(wait)));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[test]
    fn rates_are_read_with_their_units() {
        let table = [
            ("10MiB", Ok(10 << 20)),
            ("10 MiB/s", Ok(10 << 20)),
            ("100Mbit", Ok(12_500_000)),
            ("100mbit/s", Ok(12_500_000)),
            ("1.5MB", Ok(1_500_000)),
            ("0.25Gbit", Ok(31_250_000)),
            ("2048B", Ok(2048)),
            ("1kB", Err("too slow")),
            ("0MiB", Err("too slow")),
            ("10", Err("is no rate")),
            ("MiB", Err("is no rate")),
            ("10M", Err("is no rate")),
            ("-1MiB", Err("is no rate")),
            ("1.MiB", Err("is no rate")),
            ("1.2.3MiB", Err("is no rate")),
            ("99999999999999999GiB", Err("is no rate")),
            ("1.00000000000000000000000001MiB", Err("is no rate")),
            ("", Err("is no rate")),
        ];
        for (text, expected) in table {
            match (text.parse::<Rate>(), expected) {
                (Ok(rate), Ok(bytes)) => assert_eq!(rate.bytes(), bytes, "{text}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn what_is_taken_beyond_the_bucket_is_waited_for() {
        let ms = Duration::from_millis;
        // 1 MB/s: the full bucket holds 250 kB.
        let mut bucket = Bucket::new("1MB".parse().unwrap());
        for (now, bytes, wait) in [
            (0, 250_000, 0),
            (0, 100_000, 100),
            (0, 100_000, 200),
            (200, 50_000, 50),
            (250, 0, 0),
            // However long nothing was sent, no more than the bucket's fill is for free.
            (60_000, 300_000, 50),
            // A clock that stands still or goes back fills nothing.
            (59_000, 10_000, 60),
        ] {
            assert_eq!(bucket.take(ms(now), bytes), ms(wait), "{bytes} B at {now} ms");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn whoever_waits_as_told_never_exceeds_the_rate(takes in proptest::collection::vec(0_u64..200_000, 1..60)) {
            let mut bucket = Bucket::new("1MB".parse().unwrap());
            let (mut now, mut sent) = (Duration::ZERO, 0);
            for bytes in takes {
                sent += bytes;
                now += bucket.take(now, bytes);
                let allowed = 250_000.0 + now.as_secs_f64() * 1_000_000.0;
                proptest::prop_assert!(sent as f64 <= allowed + 1.0, "{sent} B by {now:?}");
            }
        }
    }

    #[tokio::test]
    async fn all_readers_share_one_bandwidth_and_lose_nothing() {
        let bandwidth = Bandwidth::new("2MB".parse().unwrap());
        let content: Vec<u8> = (0..600_000_u32).map(|n| (n % 251) as u8).collect();
        let read = async || {
            let mut got = Vec::new();
            let mut reader = Throttled::new(&content[..], Some(&bandwidth));
            reader.read_to_end(&mut got).await.unwrap();
            assert!(got == content);
        };
        let began = Instant::now();
        tokio::join!(read(), read());
        // 1.2 MB at 2 MB/s, less the full bucket (0.5 MB) and the last pieces, which nobody waits for.
        assert!(began.elapsed() > Duration::from_millis(200), "{:?}", began.elapsed());
    }
}
