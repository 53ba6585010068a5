//! Of what parts a value consists in the eyes of ownership: the schema, read as a tree of places.

use super::path::Element;
use crate::schema::{Field, Message, Ownership, Shape};
use serde_json::{Map, Value};

/// What a value consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    /// Nothing: it is owned as one.
    Leaf,
    /// Fields.
    Message(&'static Message),
    /// Entries, whose values are of the field's type.
    Map(&'static Field),
    /// Items that are scalars.
    Set,
    /// Items of the field's type, told apart by the keys.
    Keyed(&'static Field, &'static str),
}

impl Parts {
    /// Those of a field's value.
    pub(super) fn of(field: &'static Field) -> Self {
        match (field.shape, field.ownership) {
            (Shape::List, Ownership::Keyed(keys)) => Self::Keyed(field, keys),
            (Shape::List, Ownership::Set) => Self::Set,
            (Shape::List, _) | (_, Ownership::Atomic) => Self::Leaf,
            (Shape::Map, _) => Self::Map(field),
            (Shape::One, Ownership::Granular) => field.ty.message().map_or(Self::Leaf, Self::Message),
            (Shape::One, _) => Self::of_value(field),
        }
    }

    /// Those of each value in a field's list or map.
    fn of_value(field: &'static Field) -> Self {
        field
            .ty
            .message()
            .filter(|m| !m.atomic)
            .map_or(Self::Leaf, Self::Message)
    }

    /// Those of what a step leads to. What the schema does not know is owned as one.
    pub(super) fn below(self, element: &Element) -> Self {
        match (self, element) {
            (Self::Message(_), _) => self.field(element).map_or(Self::Leaf, Self::of),
            (Self::Map(field) | Self::Keyed(field, _), _) => Self::of_value(field),
            _ => Self::Leaf,
        }
    }

    /// The field that a step leads to, if it is one that a message has by its nature, rather than an entry or item that somebody
    /// put there.
    pub(super) fn field(self, element: &Element) -> Option<&'static Field> {
        match (self, element) {
            (Self::Message(message), Element::Field(name)) => message.field(name),
            _ => None,
        }
    }

    /// The step to an item.
    ///
    /// # Errors
    /// Why the item cannot be told apart from others.
    pub(super) fn item(self, item: &Value) -> Result<Element, &'static str> {
        match self {
            Self::Keyed(field, keys) => {
                let message = field.ty.message();
                let default = |key: &str| message.and_then(|m| m.field(key)).and_then(|f| f.default);
                Element::of_item(keys, default, item)
            }
            _ => Element::of_value(item),
        }
    }

    /// The value's entries, if it is a map of the kind that these parts are of.
    pub(super) fn entries(self, value: Option<&Value>) -> Option<&Map<String, Value>> {
        value
            .and_then(Value::as_object)
            .filter(|_| matches!(self, Self::Message(_) | Self::Map(_)))
    }

    /// The value's items, if it is a list of the kind that these parts are of.
    pub(super) fn items(self, value: Option<&Value>) -> Option<&Vec<Value>> {
        value
            .and_then(Value::as_array)
            .filter(|_| matches!(self, Self::Set | Self::Keyed(..)))
    }
}
