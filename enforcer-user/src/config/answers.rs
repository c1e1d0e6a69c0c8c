//! What the file says about the answers.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::{Error, Source};
use crate::answer::{Field, Own, TOO_MANY_REQUESTS, Texts};

/// `[answers]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    realm: Option<Spanned<String>>,
    #[serde(default)]
    fields: Vec<Spanned<String>>,
    legacy_headers: Option<bool>,
    #[serde(rename = "400")]
    bad_request: Option<Spanned<WrittenOwn>>,
    #[serde(rename = "401")]
    unauthorized: Option<Spanned<WrittenOwn>>,
    #[serde(rename = "403")]
    forbidden: Option<Spanned<WrittenOwn>>,
    #[serde(rename = "413")]
    content_too_large: Option<Spanned<WrittenOwn>>,
    #[serde(rename = "414")]
    uri_too_long: Option<Spanned<WrittenOwn>>,
    #[serde(rename = "421")]
    misdirected_request: Option<Spanned<WrittenOwn>>,
    #[serde(rename = "429")]
    too_many_requests: Option<Spanned<WrittenOwn>>,
    #[serde(rename = "431")]
    fields_too_large: Option<Spanned<WrittenOwn>>,
}

/// `[answers.429]` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenOwn {
    body: Option<String>,
    content_type: Option<Spanned<String>>,
    #[serde(default)]
    fields: Vec<Spanned<String>>,
}

/// Reads it, and sees that every answer can be sent.
pub(super) fn merge(written: Option<Spanned<Written>>, source: &Source<'_>) -> Result<Texts, Error> {
    let Some(written) = written else { return Ok(Texts::default()) };
    let whole = written.span();
    let Written {
        realm,
        fields,
        legacy_headers,
        bad_request,
        unauthorized,
        forbidden,
        content_too_large,
        uri_too_long,
        misdirected_request,
        too_many_requests,
        fields_too_large,
    } = written.into_inner();
    let mut texts = Texts {
        realm: source.word("answers.realm", realm)?.unwrap_or_default(),
        fields: read("answers.fields", &fields, false, source)?,
        legacy_headers: legacy_headers.unwrap_or(false),
        ..Texts::default()
    };
    let mut places: Vec<(u16, Range<usize>)> = Vec::new();
    for (status, own) in [
        (400, bad_request),
        (401, unauthorized),
        (403, forbidden),
        (413, content_too_large),
        (414, uri_too_long),
        (421, misdirected_request),
        (TOO_MANY_REQUESTS, too_many_requests),
        (431, fields_too_large),
    ] {
        let Some(own) = own else { continue };
        places.push((status, own.span()));
        let WrittenOwn { body, content_type, fields } = own.into_inner();
        let content_type = source.word(&format!("answers.{status}.content_type"), content_type)?;
        let fields = read(&format!("answers.{status}.fields"), &fields, status == TOO_MANY_REQUESTS, source)?;
        texts.own.insert(status, Own { body, content_type, fields });
    }
    if let Err(error) = texts.compile() {
        let own = places.into_iter().find(|(status, _)| *status == error.status);
        return Err(source.invalid(own.map_or(whole, |(_, place)| place), format!("answers: {error}")));
    }
    Ok(texts)
}

fn read(name: &str, fields: &[Spanned<String>], over_limit: bool, source: &Source<'_>) -> Result<Vec<Field>, Error> {
    let parse = |field: &Spanned<String>| {
        let parsed = Field::parse(field.get_ref(), over_limit);
        parsed.map_err(|error| source.invalid(field.span(), format!("{name}: {error}")))
    };
    fields.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::answer::{LONGEST, MediaType};
    use crate::config::{Overrides, Settings};

    fn merge(text: &str) -> Result<Texts, String> {
        let overrides = Overrides { interfaces: vec!["lo".into()], ports: vec![8000], ..Overrides::default() };
        let settings = Settings::merge(overrides, Path::new("e.toml"), text).map_err(|error| error.to_string())?;
        Ok(settings.services.into_iter().next().expect("a service").answers)
    }

    #[test]
    fn the_file_sets_texts_for_all_answers_and_for_each_status() {
        assert_eq!(merge(""), Ok(Texts::default()));
        assert_eq!(merge("[answers]"), Ok(Texts::default()));
        let texts = merge(
            r#"
            [answers]
            realm = "shop"
            fields = ["Access-Control-Allow-Origin: *", "X-Frame-Options: DENY"]
            legacy_headers = true

            [answers.401]
            body = '{"error":"which key?"}'
            content_type = "application/json"

            [answers.429]
            body = ""
            fields = ["X-Quota: {quota}"]
            "#,
        )
        .expect("texts");
        assert_eq!(texts.realm, "shop".parse().expect("a realm"));
        assert_eq!((texts.fields.len(), texts.legacy_headers), (2, true));
        let content_type: MediaType = "application/json".parse().expect("a type");
        let body = Some("{\"error\":\"which key?\"}".to_owned());
        assert_eq!(texts.own[&401], Own { body, content_type: Some(content_type), fields: Vec::new() });
        assert_eq!(texts.own[&429].fields, [Field::parse("X-Quota: {quota}", true).expect("a field")]);
        assert_eq!(texts.own.len(), 2);
    }

    #[test]
    fn the_example_of_the_documentation_is_accepted() {
        let readme = include_str!("../../../README.md");
        let example =
            readme.split_once("```toml\n").and_then(|(_, behind)| behind.split_once("```")).expect("an example").0;
        let texts = merge(example).expect("texts");
        assert!(texts.legacy_headers && texts.own.len() == 2);
    }

    #[test]
    fn says_where_a_text_is_wrong() {
        for (text, message) in [
            ("[answers]\nrealms = \"x\"", "e.toml:2:1: unknown field `realms`, expected one of `realm`, `fields`, "),
            ("[answers.404]\nbody = \"\"", "e.toml:1:10: unknown field `404`, expected one of "),
            ("[answers.401]\nbodies = \"\"", "e.toml:2:1: unknown field `bodies`, expected one of `body`, "),
            ("answers = 1", "e.toml:1:11: invalid type: integer `1`"),
            (
                "[answers]\nrealm = 'a\"b'",
                "e.toml:2:9: answers.realm: \"a\\\"b\" is not accepted here; accepted: visible",
            ),
            (
                "[answers]\nfields = [\"A: b\",\n  \"X: a\\r\\nB: c\"]",
                "e.toml:3:3: answers.fields: \"X: a\\r\\nB: c\" is not accepted here; accepted: `Name: value`",
            ),
            ("[answers]\nfields = [\"date: now\"]", "e.toml:2:11: answers.fields: date is set by the enforcer itself"),
            (
                "[answers]\nfields = [\"X: {retry_after}\"]",
                "e.toml:2:11: answers.fields: what it fills in is known only where a limit is used up; accepted here: ",
            ),
            (
                "[answers.429]\nfields = [\"X: {quotas}\"]",
                "e.toml:2:11: answers.429.fields: {quotas} stands for nothing",
            ),
            (
                "[answers.429]\ncontent_type = \"json\"",
                "e.toml:2:16: answers.429.content_type: \"json\" is not accepted here; accepted: a media type such as ",
            ),
        ] {
            let error = merge(text).expect_err(text);
            assert!(error.starts_with(message) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_how_much_too_long_it_is() {
        let body = "x".repeat(LONGEST);
        let error = merge(&format!("[answers]\n\n[answers.413]\nbody = \"{body}\"")).expect_err("too long");
        assert!(error.starts_with("e.toml:3:"), "{error}");
        assert!(error.contains("answers: the answer 413 has "), "{error}");
        assert!(
            error.contains(" bytes with everything filled in, ") && error.contains(" too many; accepted: at most 524")
        );
        let error = merge(&format!("\n[answers]\nfields = [\"X: {body}\"]")).expect_err("too long");
        assert!(error.starts_with("e.toml:2:1: answers: the answer 400 has "), "{error}");
        let many = "body = \"\"\nfields = [\"X: {quota}{quota}{quota}{quota}{quota}{quota}{quota}{quota}{quota}{quota}{quota}\"]";
        let error = merge(&format!("[answers.429]\n{many}")).expect_err("too many");
        assert!(error.contains("the answer 429 has 19 values to be filled in; accepted: at most 16"), "{error}");
    }
}
