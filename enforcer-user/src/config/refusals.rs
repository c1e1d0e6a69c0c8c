//! What is done with refused requests: one word for all reasons, or a table with words for single ones.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use enforcer_ebpf::abi::REASONS;
use enforcer_ebpf::verdict::{Action, Reason};
use toml::Spanned;

use super::choice::{Choice, InPlace};
use super::{Error, Source, UnknownWord};

/// What is done with a refused request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRefuse {
    /// It is answered in the app's place, and the worker is free at once.
    #[default]
    Answer,
    /// The connection ends: the worker is free at once, the client meets a closed connection.
    Reset,
    /// It is dropped: the client sends it again, and the worker waits.
    Drop,
}

/// What is done for which reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    usual: OnRefuse,
    /// In the reasons' order.
    exceptions: Vec<(Reason, OnRefuse)>,
}

/// `[on_refuse]` as it is written: the words of `default` and of reasons.
pub(super) type Table = BTreeMap<Spanned<String>, Spanned<String>>;

impl OnRefuse {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.action().as_str()
    }

    const fn action(self) -> Action {
        match self {
            Self::Answer => Action::Answer,
            Self::Reset => Action::Reset,
            Self::Drop => Action::Drop,
        }
    }
}

impl FromStr for OnRefuse {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        [Self::Answer, Self::Reset, Self::Drop]
            .into_iter()
            .find(|word| word.as_str() == text)
            .ok_or_else(|| UnknownWord::new(text, "answer, reset, drop"))
    }
}

impl Refusals {
    /// A word that stands above the file holds for all reasons, as it would in the file.
    pub(super) fn merge(
        above: Option<OnRefuse>,
        written: Option<Spanned<Choice<Table>>>,
        source: &Source<'_>,
    ) -> Result<Self, Error> {
        let mut refusals = Self::default();
        match written.map(|written| (written.span(), written.into_inner())) {
            None => {}
            Some((span, Choice::Word(word))) => refusals.usual = source.word_at("on_refuse", span, &word)?,
            Some((_, Choice::Table(entries))) => {
                for (name, word) in entries {
                    refusals.set(&name, &word, source)?;
                }
                refusals.exceptions.sort_by_key(|(reason, _)| *reason as u8);
            }
        }
        Ok(above.map_or(refusals, |usual| Self { usual, exceptions: Vec::new() }))
    }

    /// Takes an entry of the table.
    fn set(&mut self, name: &Spanned<String>, word: &Spanned<String>, source: &Source<'_>) -> Result<(), Error> {
        let field = format!("on_refuse.{}", name.get_ref());
        if name.get_ref() == "default" {
            self.usual = source.word_at(&field, word.span(), word.get_ref())?;
            return Ok(());
        }
        let Some(&reason) = Reason::ALL.iter().find(|reason| reason.as_str() == name.get_ref()) else {
            let reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
            let message =
                format!("on_refuse: {:?} is no reason; accepted: default, {}", name.get_ref(), reasons.join(", "));
            return Err(source.invalid(name.span(), message));
        };
        let action: OnRefuse = source.word_at(&field, word.span(), word.get_ref())?;
        match refused(reason, action) {
            None => {
                self.exceptions.push((reason, action));
                Ok(())
            }
            Some(why) => Err(source.invalid(word.span(), format!("{field}: {why}"))),
        }
    }

    /// What is done for a reason that is no exception.
    #[must_use]
    pub const fn usual(&self) -> OnRefuse {
        self.usual
    }

    /// The reasons for which something else is done, and what.
    #[must_use]
    pub fn exceptions(&self) -> &[(Reason, OnRefuse)] {
        &self.exceptions
    }

    /// The [`Action`] for each reason, by index.
    #[must_use]
    pub fn actions(&self) -> [u8; REASONS] {
        let mut actions = [self.usual.action() as u8; REASONS];
        for (reason, word) in &self.exceptions {
            actions[*reason as usize] = word.action() as u8;
        }
        actions
    }

    /// Whether anything is answered.
    #[must_use]
    pub fn answer(&self) -> bool {
        let actions = self.actions();
        Reason::ALL.iter().any(|reason| reason.answer().is_some() && actions[*reason as usize] == Action::Answer as u8)
    }
}

/// Why something cannot be done for a reason.
fn refused(reason: Reason, action: OnRefuse) -> Option<&'static str> {
    let is_placed = !matches!(reason, Reason::Fragment | Reason::Unparsable);
    match action {
        OnRefuse::Drop => None,
        _ if !is_placed => Some("what cannot be placed in a connection is always dropped; accepted: drop"),
        OnRefuse::Answer if reason.answer().is_none() => Some(
            "there is no answer for this reason, as no request is known that it could be for; accepted: reset, drop",
        ),
        OnRefuse::Answer | OnRefuse::Reset => None,
    }
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.usual.as_str())?;
        for (reason, action) in &self.exceptions {
            write!(f, ", {}: {}", reason.as_str(), action.as_str())?;
        }
        Ok(())
    }
}

impl InPlace for Table {
    const EXPECTED: &'static str = "a word, or a table of words by reason";
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Guarded, Overrides, Settings};

    fn merge(above: Option<OnRefuse>, text: &str) -> Result<Guarded, String> {
        let overrides =
            Overrides { interfaces: vec!["lo".into()], ports: vec![8000], on_refuse: above, ..Overrides::default() };
        let settings = Settings::merge(overrides, Path::new("e.toml"), text);
        settings.map(|mut settings| settings.services.remove(0)).map_err(|error| error.to_string())
    }

    const TABLE: &str = "[on_refuse]\ndefault = \"reset\"\nover_limit = \"answer\"\nmid_stream = \"drop\"";

    #[test]
    fn one_word_holds_for_all_reasons_and_a_table_for_each() {
        let refusals = merge(None, "on_refuse = \"drop\"").expect("a word").on_refuse;
        assert_eq!((refusals.to_string().as_str(), refusals.answer()), ("drop", false));
        let refusals = merge(None, TABLE).expect("a table").on_refuse;
        assert_eq!(refusals.to_string(), "reset, over_limit: answer, mid_stream: drop");
        let actions = refusals.actions();
        let of = |reason: Reason| actions[reason as usize];
        assert_eq!(of(Reason::OverLimit), Action::Answer as u8);
        assert_eq!(of(Reason::MidStream), Action::Drop as u8);
        assert_eq!(of(Reason::Unkeyed), Action::Reset as u8);
        assert!(refusals.answer());
        let inline = merge(None, "on_refuse = { default = \"reset\", over_limit = \"answer\", mid_stream = \"drop\" }");
        assert_eq!(inline.expect("an inline table").on_refuse, refusals);
        assert!(merge(None, "").expect("nothing").on_refuse.answer());
        let rest = merge(None, "on_refuse.unkeyed = \"drop\"").expect("one entry").on_refuse;
        assert_eq!((rest.usual(), rest.exceptions()), (OnRefuse::Answer, &[(Reason::Unkeyed, OnRefuse::Drop)][..]));
    }

    #[test]
    fn a_word_above_the_file_holds_for_all_reasons_too() {
        let refusals = merge(Some(OnRefuse::Reset), TABLE).expect("a table").on_refuse;
        assert_eq!(refusals.to_string(), "reset");
        let error = merge(Some(OnRefuse::Reset), "[on_refuse]\nunkeyed = \"x\"").expect_err("checked all the same");
        assert!(error.starts_with("e.toml:2:11: "), "{error}");
    }

    #[test]
    fn says_where_a_word_is_wrong_and_which_are_accepted() {
        for (text, message) in [
            (
                "on_refuse = \"deny\"",
                "e.toml:1:13: on_refuse: \"deny\" is not accepted here; accepted: answer, reset, drop",
            ),
            ("on_refuse = 1", "e.toml:1:13: invalid type: integer `1`, expected a word, or a table of words by reason"),
            (
                "[on_refuse]\n over_limits = \"drop\"",
                "e.toml:2:2: on_refuse: \"over_limits\" is no reason; accepted: default, unkeyed, unknown_key, ",
            ),
            (
                "[on_refuse]\ndefault = \"deny\"",
                "e.toml:2:11: on_refuse.default: \"deny\" is not accepted here; accepted: answer, reset, drop",
            ),
            (
                "[on_refuse]\nmalformed = \"400\"",
                "e.toml:2:13: on_refuse.malformed: \"400\" is not accepted here; accepted: answer, reset, drop",
            ),
            (
                "[on_refuse]\nmid_stream = \"answer\"",
                "e.toml:2:14: on_refuse.mid_stream: there is no answer for this reason, as no request is known that it \
                 could be for; accepted: reset, drop",
            ),
            (
                "[on_refuse]\nfragment = \"reset\"",
                "e.toml:2:12: on_refuse.fragment: what cannot be placed in a connection is always dropped; accepted: drop",
            ),
            ("[on_refuse]\nunkeyed = \"drop\"\nunkeyed = \"drop\"", "e.toml:3:1: duplicate key"),
        ] {
            let error = merge(None, text).expect_err(text);
            assert!(error.starts_with(message) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn each_reason_can_be_given_what_can_be_done_for_it_and_nothing_else() {
        for reason in Reason::ALL {
            for word in [OnRefuse::Answer, OnRefuse::Reset, OnRefuse::Drop] {
                let text = format!("[on_refuse]\n{} = \"{}\"", reason.as_str(), word.as_str());
                assert_eq!(merge(None, &text).is_ok(), refused(*reason, word).is_none(), "{text}");
            }
            assert_eq!(refused(*reason, OnRefuse::Answer).is_none(), reason.answer().is_some(), "{reason:?}");
        }
    }
}
