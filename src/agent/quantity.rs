//! Amounts of resources as whole numbers. Texts are read by `api`, as the API server reads them: an amount that is too
//! large for a number here is the largest number, never none.

use api::quantity::Quantity as Exact;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// The value in thousandths, rounded up; `None` if the text is no quantity.
pub fn milli(text: &str) -> Option<i64> {
    text.parse::<Exact>().ok().map(|q| q.millis())
}

/// The value in whole units, rounded up; `None` if the text is no quantity.
pub fn whole(text: &str) -> Option<i64> {
    text.parse::<Exact>().ok().map(|q| q.value())
}

/// The value in the unit that the kernel counts a resource in: thousandths of a CPU, and whole units of all else.
pub fn in_unit_of(resource: &str, text: &str) -> Option<i64> {
    if resource == "cpu" { milli(text) } else { whole(text) }
}

/// One resource of a list, see [`in_unit_of`].
pub fn amount_of(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<i64> {
    list?.get(resource).and_then(|q| in_unit_of(resource, &q.0))
}

/// A sum that stays at the largest number.
pub fn sum(amounts: impl IntoIterator<Item = i64>) -> i64 {
    amounts.into_iter().fold(0, i64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, thousandths, whole_units) in [
            ("1", Some(1000), Some(1)),
            ("100m", Some(100), Some(1)),
            ("0.5", Some(500), Some(1)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("1e3", Some(1_000_000), Some(1000)),
            ("1u", Some(1), Some(1)),
            ("-1", Some(-1000), Some(-1)),
            (".5", Some(500), Some(1)),
            // Too large for a number in thousandths, and for any.
            ("10P", Some(i64::MAX), Some(10_000_000_000_000_000)),
            ("100E", Some(i64::MAX), Some(i64::MAX)),
            ("", None, None),
            ("abc", None, None),
            ("1Zi", None, None),
        ] {
            assert_eq!((milli(text), whole(text)), (thousandths, whole_units), "{text:?}");
        }
        assert_eq!(in_unit_of("cpu", "2"), Some(2000));
        assert_eq!(in_unit_of("memory", "2Ki"), Some(2048));
        assert_eq!(sum([i64::MAX, 1]), i64::MAX);
    }
}
