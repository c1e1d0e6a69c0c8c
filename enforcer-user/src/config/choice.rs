//! A field of the file that is one word, or a table that says more.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// What stands in such a field.
#[derive(Debug)]
pub(super) enum Choice<T> {
    /// One word for all of it.
    Word(String),
    /// The table.
    Table(T),
}

/// A table in whose place a word may stand.
pub(super) trait InPlace {
    /// What the field may be, as an error says it.
    const EXPECTED: &'static str;
}

impl<'de, T: InPlace + Deserialize<'de>> Deserialize<'de> for Choice<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: InPlace + Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = Choice<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_str<E>(self, word: &str) -> Result<Choice<T>, E> {
                Ok(Choice::Word(word.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Choice<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Choice::Table)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}
