//! How large a request may be: bounds that can be made tighter than the built-in ones, never wider.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use enforcer_ebpf::abi::Service;
use toml::Spanned;

use super::bounds::OutOfBounds;
use super::{Error, Source, or};

/// A number from 1 to `MAX`, which is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AtMost<const MAX: u64>(u64);

/// Bytes of a request head, all lines together.
pub(super) type Head = AtMost<{ Service::DEFAULT.max_head as u64 }>;
/// Field lines of a head.
pub(super) type Fields = AtMost<{ Service::DEFAULT.max_fields as u64 }>;
/// Bytes of a request target.
pub(super) type Target = AtMost<{ Service::DEFAULT.max_target as u64 }>;
/// Bytes of a body that says its length.
pub(super) type Body = AtMost<{ Service::DEFAULT.max_body }>;

/// The bounds in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    head: Head,
    fields: Fields,
    target: Target,
    body: Body,
}

/// The bounds that the environment and the flags set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
pub struct SizeOverrides {
    /// Largest request head in bytes, request line and all fields, 1 to 16384 [default: 16384]
    ///
    /// What exceeds it, or one of the three bounds below, is refused by a reason of its own: head_too_large,
    /// target_too_long or body_too_large.
    #[arg(long, env = "ENFORCER_MAX_HEAD", value_name = "BYTES", hide_env_values = true)]
    max_head: Option<Head>,

    /// Most fields of a request head, 1 to 100 [default: 100]
    #[arg(long, env = "ENFORCER_MAX_FIELDS", value_name = "N", hide_env_values = true)]
    max_fields: Option<Fields>,

    /// Longest request target in bytes, 1 to 8190 [default: 8190]
    #[arg(long, env = "ENFORCER_MAX_TARGET", value_name = "BYTES", hide_env_values = true)]
    max_target: Option<Target>,

    /// Largest Content-Length in bytes, 1 to 1099511627776 [default: 1099511627776]
    ///
    /// A body in chunks does not say its length beforehand and is not bounded by this.
    #[arg(long, env = "ENFORCER_MAX_BODY", value_name = "BYTES", hide_env_values = true)]
    max_body: Option<Body>,
}

/// The bounds as they are written in the file.
pub(super) struct Written {
    pub(super) head: Option<Spanned<u64>>,
    pub(super) fields: Option<Spanned<u64>>,
    pub(super) target: Option<Spanned<u64>>,
    pub(super) body: Option<Spanned<u64>>,
}

impl Sizes {
    /// These, where the file and what stands above it say nothing else.
    pub(super) fn merge(self, above: SizeOverrides, written: Written, source: &Source<'_>) -> Result<Self, Error> {
        let SizeOverrides { max_head, max_fields, max_target, max_body } = above;
        let Written { head, fields, target, body } = written;
        Ok(Self {
            head: or(max_head, source.number("max_head", head)?).unwrap_or(self.head),
            fields: or(max_fields, source.number("max_fields", fields)?).unwrap_or(self.fields),
            target: or(max_target, source.number("max_target", target)?).unwrap_or(self.target),
            body: or(max_body, source.number("max_body", body)?).unwrap_or(self.body),
        })
    }

    /// Bytes of a head, its fields, bytes of a target, and of a body.
    pub(super) fn all(self) -> [u64; 4] {
        [self.head.0, self.fields.0, self.target.0, self.body.0]
    }

    /// Sets them in what the kernel reads.
    pub(super) fn apply(self, service: &mut Service) {
        let Self { head, fields, target, body } = self;
        // Each is at most the default of its field.
        service.max_head = head.0 as u32;
        service.max_fields = fields.0 as u32;
        service.max_target = target.0 as u32;
        service.max_body = body.0;
    }
}

impl<const MAX: u64> Default for AtMost<MAX> {
    fn default() -> Self {
        Self(MAX)
    }
}

impl<const MAX: u64> TryFrom<u64> for AtMost<MAX> {
    type Error = OutOfBounds;

    fn try_from(number: u64) -> Result<Self, OutOfBounds> {
        if (1..=MAX).contains(&number) { Ok(Self(number)) } else { Err(outside::<MAX>(number)) }
    }
}

impl<const MAX: u64> FromStr for AtMost<MAX> {
    type Err = OutOfBounds;

    fn from_str(text: &str) -> Result<Self, OutOfBounds> {
        text.parse().map_err(|_| outside::<MAX>(text)).and_then(|number: u64| Self::try_from(number))
    }
}

fn outside<const MAX: u64>(found: impl fmt::Display) -> OutOfBounds {
    OutOfBounds::new(found, format!("1 to {MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_can_be_made_tighter_and_never_wider() {
        let mut service = Service::DEFAULT;
        let sizes = Sizes {
            head: "1".parse().expect("the least"),
            fields: "100".parse().expect("the most"),
            target: "8190".parse().expect("the most"),
            body: "1000000".parse().expect("a number"),
        };
        sizes.apply(&mut service);
        assert_eq!((service.max_head, service.max_fields), (1, 100));
        assert_eq!((service.max_target, service.max_body), (8190, 1_000_000));
        for wrong in ["0", "16385", "-1", "", "1k"] {
            let error = wrong.parse::<Head>().expect_err(wrong);
            assert_eq!(error.to_string(), format!("{wrong:?} is not accepted here; accepted: 1 to 16384"));
        }
    }
}
