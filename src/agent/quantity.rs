//! Reading resource quantities (`100m`, `1Gi`, `1e3`) as whole numbers. Only what the agent needs: amounts of
//! containers and thresholds; it never writes a quantity in another unit than it read.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// The value in thousandths, rounded up; `None` if the text is no quantity or does not fit.
pub fn milli(text: &str) -> Option<i64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (mul, div): (i128, i128) = match suffix {
        "" => (1, 1),
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        e if e.starts_with(['e', 'E']) => {
            let exp: i32 = e[1..].parse().ok()?;
            match u32::try_from(exp) {
                Ok(exp) => (10i128.checked_pow(exp)?, 1),
                Err(_) => (1, 10i128.checked_pow(exp.unsigned_abs())?),
            }
        }
        _ => return None,
    };
    let negative = number.starts_with('-');
    let digits = number.trim_start_matches(['+', '-']);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let scale = 10i128.checked_pow(fraction.len() as u32)?;
    let all: i128 = format!("{whole}{fraction}").parse().ok()?;
    let top = all.checked_mul(mul)?.checked_mul(1000)?;
    let bottom = div.checked_mul(scale)?;
    let value = (top + bottom - 1) / bottom;
    i64::try_from(if negative { -value } else { value }).ok()
}

/// The value in whole units, rounded up.
pub fn whole(text: &str) -> Option<i64> {
    // Large byte counts overflow thousandths only beyond 9 PB, which no host here has; those saturate.
    match milli(text) {
        Some(m) => Some((m + 999).div_euclid(1000)),
        None => text.trim().parse::<i64>().ok(),
    }
}

/// One resource of a list, in thousandths (for `cpu`).
pub fn milli_of(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<i64> {
    list?.get(resource).and_then(|q| milli(&q.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("128Mi", Some(134_217_728_000)),
            ("1e3", Some(1_000_000)),
            ("1E3", Some(1_000_000)),
            ("5E", None),
            ("1u", Some(1)),
            ("-1", Some(-1000)),
            (".5", Some(500)),
            ("", None),
            ("abc", None),
            ("1Zi", None),
        ] {
            assert_eq!(milli(text), expected, "{text:?}");
        }
        assert_eq!(whole("100m"), Some(1));
        assert_eq!(whole("10Ki"), Some(10240));
    }
}
