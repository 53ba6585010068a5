//! Times as Kubernetes writes them, and durations as `kubectl` prints them.

use jiff::{SignedDuration, Timestamp};

/// `metav1.Time`: RFC 3339 in UTC, whole seconds.
pub fn time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `metav1.MicroTime`: RFC 3339 in UTC with six digits.
pub fn micro_time(t: Timestamp) -> String {
    t.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Parses either form.
pub fn parse(s: &str) -> Option<Timestamp> {
    s.parse().ok()
}

/// How long ago, in the form of `kubectl get`; `<unknown>` if the time is missing or unreadable.
pub fn ago(since: Option<&str>, now: Timestamp) -> String {
    since
        .and_then(parse)
        .map_or_else(|| "<unknown>".to_owned(), |t| human(now.duration_since(t)))
}

/// A duration with at most two units, as precise as people need it.
pub fn human(d: SignedDuration) -> String {
    let seconds = d.as_secs();
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |a: i64, unit: &str, b: i64, small: &str| {
        if b == 0 {
            format!("{a}{unit}")
        } else {
            format!("{a}{unit}{b}{small}")
        }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ if days < 365 * 2 => format!("{days}d"),
        _ if days < 365 * 8 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_kubectl() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (192, "3m12s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_860, "3h1m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (176_400, "2d1h"),
            (8 * 86_400, "8d"),
            (365 * 2 * 86_400, "2y"),
            (366 * 2 * 86_400, "2y2d"),
            (365 * 9 * 86_400, "9y"),
            (-1, "0s"),
            (-5, "<invalid>"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human(SignedDuration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn times_have_the_precision_of_their_type() {
        let t = parse("2026-01-02T03:04:05.123456789Z").unwrap();
        assert_eq!(time(t), "2026-01-02T03:04:05Z");
        assert_eq!(micro_time(t), "2026-01-02T03:04:05.123456Z");
    }
}
