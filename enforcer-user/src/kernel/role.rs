//! What a program of ours is for on an interface. The place of its pin tells it, as another program may have its name.

use super::classifier::Side;

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Judges what arrives.
    Judge,
    /// Answers what XDP has refused.
    Answer,
    /// Watches what leaves.
    Watch,
}

impl Role {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Judge, Self::Answer, Self::Watch];

    /// The directory of the pins of its links.
    pub(super) const fn directory(self) -> &'static str {
        match self {
            Self::Judge => "links",
            Self::Answer => "answers",
            Self::Watch => "watches",
        }
    }

    /// The side of traffic control that it is on, unless it is XDP.
    pub(super) const fn side(self) -> Side {
        match self {
            Self::Judge | Self::Answer => Side::Ingress,
            Self::Watch => Side::Egress,
        }
    }

    /// The word for it in the pins of filters: the side, where that says enough.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Judge => "ingress",
            Self::Answer => "answer",
            Self::Watch => "egress",
        }
    }

    /// The role with this word.
    pub(super) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }
}
