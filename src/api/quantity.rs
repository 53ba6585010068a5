//! `resource.Quantity`: exact decimal numbers with SI, binary or exponent suffixes, and their canonical text.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// An exact quantity, kept in nano units.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// How a quantity was written, and so how it is written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `m`, none, `k`, `M`, ….
    DecimalSi,
    /// `Ki`, `Mi`, ….
    BinarySi,
    /// `e3`, `E6`, ….
    DecimalExponent,
}

/// The text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

const NANO: i128 = 1_000_000_000;
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
/// Suffixes with their power of ten.
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

impl Quantity {
    /// A whole number.
    pub fn new(value: i64, format: Format) -> Self {
        Self {
            nanos: i128::from(value) * NANO,
            format,
        }
    }

    /// A number of thousandths.
    pub fn from_millis(millis: i64) -> Self {
        Self {
            nanos: i128::from(millis) * (NANO / 1000),
            format: Format::DecimalSi,
        }
    }

    /// The value, rounded up to a whole number.
    pub fn value(&self) -> i64 {
        saturate(div_up(self.nanos, NANO))
    }

    /// The value in thousandths, rounded up.
    pub fn millis(&self) -> i64 {
        saturate(div_up(self.nanos, NANO / 1000))
    }

    /// Whether it is below zero.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// The sum, in the format of `self`.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            format: self.format,
        }
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn div_up(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

/// `digits * 10^power` in nanos; what is finer than a nano is rounded away from zero, as Kubernetes does.
fn scale(digits: i128, power: i32) -> Option<i128> {
    let power = power + 9;
    if power >= 0 {
        return digits.checked_mul(10_i128.checked_pow(u32::try_from(power).ok()?)?);
    }
    let by = 10_i128.checked_pow(u32::try_from(-power).ok()?).unwrap_or(i128::MAX);
    let magnitude = div_up(digits.abs(), by);
    Some(if digits < 0 { -magnitude } else { magnitude })
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30 {
            return Err(ParseError);
        }
        let digits: i128 = format!("{whole}{fraction}").parse().map_err(|_| ParseError)?;
        let digits = if negative { -digits } else { digits };
        let places = i32::try_from(fraction.len()).map_err(|_| ParseError)?;
        let (nanos, format) = if let Some(i) = BINARY.iter().position(|b| !b.is_empty() && *b == suffix) {
            let exact = digits.checked_mul(1024_i128.pow(u32::try_from(i).unwrap_or(0)));
            (exact.and_then(|n| scale(n, -places)), Format::BinarySi)
        } else if let Some((_, power)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
            (scale(digits, power - places), Format::DecimalSi)
        } else {
            let power = suffix.strip_prefix(['e', 'E']).ok_or(ParseError)?;
            let power: i32 = power.parse().map_err(|_| ParseError)?;
            if power.abs() > 18 {
                return Err(ParseError);
            }
            (scale(digits, power - places), Format::DecimalExponent)
        };
        // The largest quantities are capped as in Kubernetes.
        let limit = i128::from(i64::MAX) * NANO;
        Ok(Self {
            nanos: nanos
                .unwrap_or(if negative { -limit } else { limit })
                .clamp(-limit, limit),
            format,
        })
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that keeps the number whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // A binary quantity below 1024 that is whole is still written without suffix; one that is not whole turns decimal.
        if self.format == Format::BinarySi && self.nanos % NANO == 0 {
            let mut value = self.nanos / NANO;
            let mut i = 0;
            while value % 1024 == 0 && i + 1 < BINARY.len() {
                value /= 1024;
                i += 1;
            }
            return write!(f, "{value}{}", BINARY[i]);
        }
        let mut value = self.nanos;
        let mut i = 0;
        while value % 1000 == 0 && i + 1 < DECIMAL.len() {
            value /= 1000;
            i += 1;
        }
        match (self.format, DECIMAL[i]) {
            (Format::DecimalExponent, (_, power)) if power != 0 => write!(f, "{value}e{power}"),
            (_, (suffix, _)) => write!(f, "{value}{suffix}"),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_have_one_canonical_text() {
        for (text, canonical, millis) in [
            ("0", "0", 0),
            ("1", "1", 1000),
            ("0.5", "500m", 500),
            ("1500m", "1500m", 1500),
            ("1000m", "1", 1000),
            ("2000", "2k", 2_000_000),
            ("1.5Gi", "1536Mi", 1_610_612_736_000),
            ("1024Ki", "1Mi", 1_048_576_000),
            ("1e3", "1e3", 1_000_000),
            ("12E6", "12e6", 12_000_000_000),
            ("100u", "100u", 1),
            ("-1.5", "-1500m", -1500),
            ("+3", "3", 3000),
            (".5", "500m", 500),
            ("5.", "5", 5000),
            ("0.5Ki", "512", 512_000),
        ] {
            let quantity: Quantity = text.parse().unwrap();
            assert_eq!(
                (quantity.to_string().as_str(), quantity.millis()),
                (canonical, millis),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for bad in ["", "a", "1x", "1.2.3", "--1", "1 Gi", "1gi", "e3", ".", "1e", "1e99"] {
            assert!(bad.parse::<Quantity>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn equal_amounts_are_equal_however_written() {
        let q = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(q("1Ki"), q("1024"));
        assert_eq!(q("1"), q("1000m"));
        assert!(q("1G") < q("1Gi"));
        assert_eq!(q("1n").value(), 1);
    }

    proptest! {
        #[test]
        fn canonical_text_is_stable(n in -1_000_000_000_i64..1_000_000_000, suffix in prop::sample::select(vec!["", "m", "k", "Ki", "Mi", "G", "e3"])) {
            let once: Quantity = format!("{n}{suffix}").parse().unwrap();
            let again: Quantity = once.to_string().parse().unwrap();
            prop_assert_eq!(once, again);
            prop_assert_eq!(once.to_string(), again.to_string());
        }
    }
}
