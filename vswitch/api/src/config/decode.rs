//! From the tree to the types, by serde, without stopping at the first problem.
//!
//! A serde deserializer stops at the first error. So [`decode`] takes the place of the error out of
//! the tree (*strikes* it), notes the problem, and starts again, until the rest is sound. What
//! fails only because a part of it was struck is struck in silence. Work is bounded by
//! [`MAX_PROBLEMS`] and [`MAX_VISITS`].

use std::cell::Cell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::limits;
use super::near::{any_of, nearest};
use super::tree::{Child, Entry, Kind, NodeId, Span, Tree};

/// Problems after which reading stops.
pub(super) const MAX_PROBLEMS: usize = 50;
/// Nodes looked at, all attempts together: what keeps aliases of aliases from taking forever.
const MAX_VISITS: u64 = 20_000_000;

/// A problem of a value.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) span: Span,
    pub(super) message: String,
    pub(super) help: String,
}

/// Reads `T`. `None`: not even the outermost value was of use, or there were too many problems.
pub(super) fn decode<T: DeserializeOwned>(
    tree: &mut Tree<'_>,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    let visits = Cell::new(0);
    while faults.len() < MAX_PROBLEMS {
        let root = Node {
            tree,
            at: tree.root,
            entry: None,
            visits: &visits,
        };
        let error = match T::deserialize(root).map_err(|e| e.at(root)) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let site = error.site?;
        let silent = site.key.is_none() && tree.is_torn(site.node);
        if !silent {
            faults.push(Fault {
                span: site.span,
                message: error.message,
                help: error.help,
            });
        }
        match site.key {
            Some(key) => tree.remove_entry(site.node, key),
            None if site.node == tree.root.node || visits.get() >= MAX_VISITS => return None,
            None => tree.strike(site.node),
        }
    }
    None
}

/// What an error is about.
#[derive(Debug, Clone, Copy)]
struct Site {
    /// The value, or the map whose key it is.
    node: NodeId,
    /// The key, if it is about a key.
    key: Option<Span>,
    span: Span,
}

#[derive(Debug)]
pub(super) struct Error {
    site: Option<Site>,
    message: String,
    help: String,
}

impl Error {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            site: None,
            message: message.into(),
            help: help.into(),
        }
    }

    /// Places the error at `node` unless something inside has placed it.
    fn at(mut self, node: Node<'_, '_>) -> Self {
        self.site.get_or_insert_with(|| Site {
            node: node.at.node,
            key: None,
            span: match (node.kind(), node.entry) {
                (Kind::Map(_) | Kind::Seq(_), Some(entry)) => entry.key_span,
                _ => node.at.span,
            },
        });
        self
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

impl de::Error for Error {
    /// Sentences of this crate's values have the form "what is wrong; what to do".
    fn custom<T: fmt::Display>(message: T) -> Self {
        let message = message.to_string();
        match message.rsplit_once("; ") {
            Some((message, help)) => Self::new(message, help),
            None => Self::new(message, "correct the value"),
        }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            Unexpected::Bool(value) => format!("`{value}`"),
            Unexpected::Unsigned(n) => format!("the number {n}"),
            Unexpected::Signed(n) => format!("the number {n}"),
            Unexpected::Str(text) => format!("`{text}`"),
            Unexpected::Seq => "a list".into(),
            Unexpected::Map => "a block of keys".into(),
            Unexpected::Unit => "nothing".into(),
            other => other.to_string(),
        };
        Self::new(
            format!("this must be {expected}, not {found}"),
            "correct the value",
        )
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        let help = match nearest(field, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("keys known here: {}", known.join(", ")),
        };
        Self::new(format!("`{field}` is not a key that is known here"), help)
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        let help = match nearest(variant, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`? Possible: {}", any_of(known)),
            None => format!("write {}", any_of(known)),
        };
        Self::new(format!("`{variant}` is not possible here"), help)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(
            format!("`{field}` is missing"),
            format!("add `{field}: …` below this"),
        )
    }
}

/// A node about to be read.
#[derive(Clone, Copy)]
struct Node<'t, 'x> {
    tree: &'t Tree<'x>,
    at: Child,
    /// The entry it is the value of.
    entry: Option<&'t Entry>,
    visits: &'t Cell<u64>,
}

impl<'t> Node<'t, '_> {
    fn kind(self) -> &'t Kind {
        self.tree.kind(self.at.node)
    }

    fn is_null(self) -> bool {
        matches!(self.kind(), Kind::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The scalar's text, or what is there instead.
    fn text(self, expected: &str) -> Result<&'t str, Error> {
        let found = match self.kind() {
            Kind::Scalar { .. } if self.is_null() => "nothing",
            Kind::Scalar { text, .. } => return Ok(text),
            Kind::Seq(_) => "a list",
            Kind::Map(_) => "a block of keys",
        };
        Err(Error::new(
            format!("this must be {expected}, not {found}"),
            "write one value",
        )
        .at(self))
    }

    fn number(self, min: i128, max: i128) -> Result<i128, Error> {
        let text = self.text("a whole number")?;
        let Some(number) = integer(text) else {
            return Err(Error::new(
                format!("this must be a whole number, not `{text}`"),
                "write digits only, without unit",
            )
            .at(self));
        };
        if number < min || number > max {
            let own = self.entry.and_then(|entry| limits::of(&entry.key));
            let (min, max) = own.unwrap_or((min, max));
            return Err(Error::new(
                format!("{number} is out of range"),
                format!("use {min} to {max}"),
            )
            .at(self));
        }
        Ok(number)
    }

    fn visit(self) -> Result<(), Error> {
        self.visits.set(self.visits.get() + 1);
        if self.visits.get() < MAX_VISITS {
            return Ok(());
        }
        Err(Error::new(
            "aliases make this configuration too big",
            "write less with aliases",
        )
        .at(self))
    }
}

fn integer(text: &str) -> Option<i128> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let value = match digits.get(..2) {
        Some("0x") => i128::from_str_radix(&digits[2..], 16).ok()?,
        Some("0o") => i128::from_str_radix(&digits[2..], 8).ok()?,
        _ if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    Some(if text.starts_with('-') { -value } else { value })
}

macro_rules! integers {
    ($($method:ident $visit:ident $ty:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let number = self.number(<$ty>::MIN.into(), <$ty>::MAX.into())?;
            let number = <$ty>::try_from(number).map_err(de::Error::custom)?;
            visitor.$visit(number).map_err(|e: Error| e.at(self))
        }
    )*};
}

impl<'de> Deserializer<'de> for Node<'_, '_> {
    type Error = Error;

    integers! {
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_i64 visit_i64 i64;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.kind() {
            Kind::Seq(_) => self.deserialize_seq(visitor),
            Kind::Map(_) => self.deserialize_map(visitor),
            Kind::Scalar { .. } if self.is_null() => visitor.visit_unit(),
            Kind::Scalar { text, plain } => match (integer(text).filter(|_| *plain), text.as_str())
            {
                (Some(number), _) if number >= 0 => match u64::try_from(number) {
                    Ok(number) => visitor.visit_u64(number),
                    Err(_) => visitor.visit_str(text),
                },
                (_, "true") if *plain => visitor.visit_bool(true),
                (_, "false") if *plain => visitor.visit_bool(false),
                _ => visitor.visit_str(text),
            },
        }
        .map_err(|e: Error| e.at(self))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let value = match self.text("`true` or `false`")? {
            "true" | "True" | "TRUE" => true,
            "false" | "False" | "FALSE" => false,
            text => {
                let help = match text.to_lowercase().as_str() {
                    "yes" | "on" | "y" | "1" => "write `true`",
                    "no" | "off" | "n" | "0" => "write `false`",
                    _ => "write `true` or `false`",
                };
                let message = format!("this must be `true` or `false`, not `{text}`");
                return Err(Error::new(message, help).at(self));
            }
        };
        visitor.visit_bool(value).map_err(|e: Error| e.at(self))
    }

    /// Any scalar is a text, also one that looks like a number: `permissions: 0660`.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor
            .visit_str(self.text("a text")?)
            .map_err(|e: Error| e.at(self))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
        .map_err(|e: Error| e.at(self))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit()?;
        let items = match self.kind() {
            Kind::Seq(items) => items.as_slice(),
            _ if self.is_null() => &[],
            _ => {
                return Err(Error::new(
                    "this must be a list",
                    "write `[a, b]`, or one item a line with `- ` in front",
                )
                .at(self));
            }
        };
        visitor
            .visit_seq(Items {
                of: self,
                items: items.iter(),
            })
            .map_err(|e: Error| e.at(self))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.keys(&[], "write `name: value` pairs below it, indented", visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.keys(
            fields,
            &format!("keys known here: {}", fields.join(", ")),
            visitor,
        )
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let text = self.text(&any_of(variants))?;
        visitor
            .visit_enum(Word(text))
            .map_err(|e: Error| e.at(self))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

impl Node<'_, '_> {
    fn keys<'de, V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        help: &str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.visit()?;
        let entries = match self.kind() {
            Kind::Map(entries) => entries.as_slice(),
            _ if self.is_null() => &[],
            Kind::Seq(_) => return Err(Error::new("this must not be a list", help).at(self)),
            Kind::Scalar { text, .. } => {
                let message = format!("this must be a block of keys, not `{text}`");
                return Err(Error::new(message, help).at(self));
            }
        };
        let entries = Entries {
            of: self,
            entries: entries.iter(),
            value: None,
            fields,
        };
        visitor.visit_map(entries).map_err(|e: Error| e.at(self))
    }
}

struct Items<'t, 'x> {
    of: Node<'t, 'x>,
    items: std::slice::Iter<'t, Child>,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        let Some(item) = self.items.find(|item| !self.of.tree.is_struck(item.node)) else {
            return Ok(None);
        };
        let node = Node {
            at: *item,
            entry: None,
            ..self.of
        };
        node.visit()?;
        seed.deserialize(node).map(Some).map_err(|e| e.at(node))
    }
}

struct Entries<'t, 'x> {
    of: Node<'t, 'x>,
    entries: std::slice::Iter<'t, Entry>,
    value: Option<Node<'t, 'x>>,
    /// Keys that count as absent when they have no value, so that their default applies.
    fields: &'static [&'static str],
}

impl<'de> MapAccess<'de> for Entries<'_, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        for entry in self.entries.by_ref() {
            let value = Node {
                at: entry.value,
                entry: Some(entry),
                ..self.of
            };
            value.visit()?;
            let known = self.fields.contains(&entry.key.as_str());
            if self.of.tree.is_struck(entry.value.node) || (known && value.is_null()) {
                continue;
            }
            let key: StrDeserializer<'_, Error> = entry.key.as_str().into_deserializer();
            let key = seed.deserialize(key).map_err(|mut e| {
                let span = entry.key_span;
                e.site.get_or_insert(Site {
                    node: self.of.at.node,
                    key: Some(span),
                    span,
                });
                e
            })?;
            self.value = Some(value);
            return Ok(Some(key));
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(node) = self.value.take() else {
            return Err(Error::new(
                "a value without a key",
                "report this as a fault",
            ));
        };
        seed.deserialize(node).map_err(|e| e.at(node))
    }
}

/// The variant of an enum that is one word.
struct Word<'t>(&'t str);

impl<'de> EnumAccess<'de> for Word<'_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: StrDeserializer<'_, Error> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Error> {
        Err(de::Error::invalid_type(
            Unexpected::Str(self.0),
            &"a block of keys",
        ))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        Err(de::Error::invalid_type(Unexpected::Str(self.0), &"a list"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        Err(de::Error::invalid_type(
            Unexpected::Str(self.0),
            &"a block of keys",
        ))
    }
}
