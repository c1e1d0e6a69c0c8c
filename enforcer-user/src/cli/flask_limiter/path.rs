//! A URL rule of Flask as a path of a policy.

/// A path of a policy, and what of the rule it cannot say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Path {
    /// `{name}` stands for one segment; all beneath it belongs to it.
    pub(super) text: String,
    /// What it leaves out, in words.
    pub(super) lost: Option<String>,
}

impl Path {
    /// Reads a rule such as `/user/<int:id>`; the variables of the `spanning` converters can hold slashes.
    pub(super) fn of(rule: &str, spanning: &[String]) -> Self {
        let (mut segments, mut lost) = (Vec::new(), None);
        let mut rest = rule;
        while let Some(segment) = Segment::next(&mut rest) {
            if segment.converter.is_some_and(|name| spanning.iter().any(|known| known == name)) {
                let more = rest.trim_start_matches('/');
                if !more.is_empty() || segment.mixed {
                    lost = Some(format!("what follows the variable part of `{rule}` is not looked at"));
                }
                break;
            }
            match segment.variable {
                None => segments.push(encoded(segment.text)),
                Some(name) => {
                    segments.push(format!("{{{name}}}"));
                    if segment.mixed {
                        lost = Some(format!("`{}` in `{rule}` stands for any segment", segment.text));
                    }
                }
            }
        }
        Self { text: format!("/{}", segments.join("/")), lost }
    }

    /// Its form with all variables alike: two paths of one form match the same requests.
    pub(super) fn form(&self) -> String {
        let segment = |segment: &str| if segment.starts_with('{') { "{}" } else { segment }.to_owned();
        self.text.split('/').map(segment).collect::<Vec<_>>().join("/")
    }
}

/// A segment as a policy has it: what is not plain ASCII, or means something in a path, is percent-encoded.
fn encoded(segment: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()+,;=:@".contains(&byte);
    let mut text = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if plain(byte) { text.push(char::from(byte)) } else { text.push_str(&format!("%{byte:02X}")) }
    }
    text
}

/// What stands between two slashes.
struct Segment<'r> {
    text: &'r str,
    /// The name of the first variable in it.
    variable: Option<&'r str>,
    /// The converter of the first variable that has one.
    converter: Option<&'r str>,
    /// There is more in it than one variable.
    mixed: bool,
}

impl<'r> Segment<'r> {
    /// Cuts the next segment off a rule; a slash between `<` and `>` does not end it.
    fn next(rest: &mut &'r str) -> Option<Self> {
        *rest = rest.trim_start_matches('/');
        if rest.is_empty() {
            return None;
        }
        let mut inside = false;
        let end = rest.find(|c| {
            inside = (inside || c == '<') && c != '>';
            c == '/' && !inside
        });
        let (text, after) = rest.split_at(end.unwrap_or(rest.len()));
        *rest = after;
        let variable = text.split_once('<').and_then(|(_, inner)| inner.split_once('>'));
        let Some((inner, _)) = variable else {
            return Some(Self { text, variable: None, converter: None, mixed: false });
        };
        let (converter, name) = match inner.rsplit_once(':') {
            Some((converter, name)) => (Some(converter.split('(').next().unwrap_or(converter)), name),
            None => (None, inner),
        };
        Some(Self { text, variable: Some(name), converter, mixed: text.len() != inner.len() + 2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_stand_for_segments_and_paths_for_all_beneath() {
        let spanning = ["path".to_owned()];
        for (rule, path, lost) in [
            ("/", "/", false),
            ("/s/", "/s", false),
            ("/user/<id>", "/user/{id}", false),
            ("/user/<int:id>/orders", "/user/{id}/orders", false),
            ("/<any(a, \"b/c\"):kind>/list", "/{kind}/list", false),
            ("/files/<path:p>", "/files", false),
            ("/files/<path:p>/edit", "/files", true),
            ("/v<int:n>/x", "/{n}/x", true),
            ("/<year>-<month>", "/{year}", true),
            ("/caf\u{e9}/{x}*", "/caf%C3%A9/%7Bx%7D%2A", false),
        ] {
            let read = Path::of(rule, &spanning);
            assert_eq!((read.text.as_str(), read.lost.is_some()), (path, lost), "{rule}");
        }
        assert_eq!(Path::of("/a/<x>/b", &spanning).form(), Path::of("/a/<int:y>/b", &spanning).form());
        assert_ne!(Path::of("/a/<x>/b", &spanning).form(), Path::of("/a/x/b", &spanning).form());
    }
}
