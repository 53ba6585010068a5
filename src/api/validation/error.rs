//! One violated field, printed as Kubernetes prints it.

use serde_json::{Value, json};

/// Why a field is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The field must be given.
    Required,
    /// The value is malformed.
    Invalid,
    /// The value is none of those supported.
    NotSupported,
    /// The field may not be given or changed here.
    Forbidden,
    /// The value occurs twice.
    Duplicate,
    /// The value names something that is not there.
    NotFound,
    /// The text is too long.
    TooLong,
    /// There are too many items.
    TooMany,
    /// The JSON type is wrong.
    TypeInvalid,
}

impl Reason {
    /// Machine-readable cause (`metav1.CauseType`).
    pub fn cause(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::Duplicate => "Duplicate value",
            Self::NotFound => "Not found",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::TypeInvalid => "Invalid value",
        }
    }
}

/// One violated field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Why.
    pub reason: Reason,
    /// Path of the field, e.g. `spec.containers[0].image`.
    pub field: String,
    /// Offending value as printed, if it is part of the text.
    pub value: Option<String>,
    /// What is expected.
    pub detail: String,
}

impl FieldError {
    fn new(reason: Reason, field: impl Into<String>, value: Option<String>, detail: impl Into<String>) -> Self {
        Self {
            reason,
            field: field.into(),
            value,
            detail: detail.into(),
        }
    }

    /// A field that must be given.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Reason::Required, field, None, detail)
    }

    /// A malformed value.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: impl Into<String>) -> Self {
        Self::new(Reason::Invalid, field, Some(value.to_string()), detail)
    }

    /// A malformed text.
    pub fn invalid_text(field: impl Into<String>, value: &str, detail: impl Into<String>) -> Self {
        Self::new(Reason::Invalid, field, Some(format!("{value:?}")), detail)
    }

    /// A field that may not be given or changed here.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Reason::Forbidden, field, None, detail)
    }

    /// A value that is none of those supported.
    pub fn not_supported(field: impl Into<String>, value: &str, supported: &[&str]) -> Self {
        let mut sorted: Vec<_> = supported.iter().map(|s| format!("{s:?}")).collect();
        sorted.sort();
        let detail = if sorted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", sorted.join(", "))
        };
        Self::new(Reason::NotSupported, field, Some(format!("{value:?}")), detail)
    }

    /// A value that occurs twice.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(Reason::Duplicate, field, Some(value.to_string()), "")
    }

    /// A value that names something that is not there.
    pub fn not_found(field: impl Into<String>, value: &str) -> Self {
        Self::new(Reason::NotFound, field, Some(format!("{value:?}")), "")
    }

    /// Text longer than `max` bytes.
    pub fn too_long(field: impl Into<String>, max: usize) -> Self {
        Self::new(
            Reason::TooLong,
            field,
            None,
            format!("may not be more than {max} bytes"),
        )
    }

    /// More items than allowed.
    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> Self {
        Self::new(
            Reason::TooMany,
            field,
            Some(count.to_string()),
            format!("must have at most {max} items"),
        )
    }

    /// Text without the field, as the cause's message has it.
    pub fn body(&self) -> String {
        let mut out = self.reason.title().to_owned();
        if let Some(v) = &self.value {
            out.push_str(": ");
            out.push_str(v);
        }
        if !self.detail.is_empty() {
            out.push_str(": ");
            out.push_str(&self.detail);
        }
        out
    }

    /// The cause in a Status.
    pub fn cause(&self) -> Value {
        json!({"reason": self.reason.cause(), "message": self.body(), "field": self.field})
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.body())
        } else {
            write!(f, "{}: {}", self.field, self.body())
        }
    }
}
