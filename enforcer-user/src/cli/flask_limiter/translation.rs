//! From what Flask-Limiter does to a policy that does the same, and what of it no policy does.
//!
//! Flask-Limiter counts for each endpoint apart unless a limit is shared, so each URL rule becomes a route. Its
//! application limits, which are over all endpoints, become the plan's.

use enforcer_ebpf::abi::LIMITS;
use enforcer_ebpf::limit::MAX_COST;

use super::draft::{Count, Counted, Draft, PLAN, Per, Route, TODO};
use super::inventory::{Inventory, KeyFunction, Limit, Rule, Window};
use super::path::Path;
use crate::policy::Limits;

/// The methods that a policy tells apart; OTHER stands for the rest.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// Methods of a rule that are counted alike, and by what.
struct Entry<'i> {
    rule: &'i Rule,
    path: Path,
    /// Absent: all that the rule has.
    methods: Option<Vec<String>>,
    limits: Vec<&'i Limit>,
}

impl<'i> Entry<'i> {
    /// The limits that are known.
    fn counted(&self) -> impl Iterator<Item = &'i Limit> + use<'_, 'i> {
        self.limits.iter().copied().filter(|limit| !limit.windows.is_empty())
    }
}

impl Inventory {
    /// The policy; its losses tell what the app does otherwise.
    pub(super) fn translate(&self, app: &str) -> Draft {
        let mut draft =
            Draft { origin: format!("Taken from {app} with Flask-Limiter {}.", self.version), ..Draft::default() };
        self.settle_settings(&mut draft);
        for (index, key) in self.keys.iter().enumerate() {
            if self.uses(index) {
                key.judge(&mut draft);
            }
        }
        for (owner, limits) in [("the default limits", &self.defaults), ("the application limits", &self.application)] {
            limits.iter().for_each(|limit| limit.judge(owner, &mut draft));
        }
        self.count_over_all(&mut draft);
        let entries = self.entries(&mut draft);
        for entry in &entries {
            let count = self.count(entry, &entries, &mut draft);
            let cost = self.cost(entry, &mut draft);
            let Entry { rule, path, methods, .. } = entry;
            let (path, methods) = (path.text.clone(), methods.clone());
            draft.routes.push(Route { path, methods, count, cost, endpoint: rule.endpoint.clone() });
        }
        draft
    }

    /// Whether any limit names this key function.
    fn uses(&self, key: usize) -> bool {
        let of_routes = self.routes.iter().flat_map(|rule| rule.decorated.iter().chain(&rule.blueprint));
        self.defaults.iter().chain(&self.application).chain(of_routes).any(|limit| limit.key == key)
    }

    /// What is said once of the whole app.
    fn settle_settings(&self, draft: &mut Draft) {
        if self.strategy == "moving-window" {
            draft.lose(
                "strategy `moving-window`: `sliding` is the nearest; it keeps two counts instead of a time for each request",
            );
        }
        for setting in &self.settings {
            draft.lose(match setting.as_str() {
                "request_filter" => "`request_filter`: no code is asked; see [[exempt]] for known sources and paths",
                "meta_limits" | "on_meta_breach" => "`meta_limits`: see `penalty` in enforcer.toml, which is like them",
                "headers_enabled" => "`headers_enabled`: `answers.legacy_headers` in enforcer.toml gives them in refusals, not in the app's responses",
                "in_memory_fallback" => "`in_memory_fallback`: needs nothing in its place, since there is no store to lose",
                _ => "`on_breach`: the text of a refusal is `answers.429` in enforcer.toml",
            });
        }
        if self.behind_proxy {
            draft.lose("ProxyFix: name the proxies in [service] trusted_proxies, or all clients are one source");
        }
        if !self.defaults.is_empty() {
            draft.lose(format!(
                "default limits hold for each endpoint apart, as in the app; what a client may send in all is the limit of [plan.{PLAN}]"
            ));
        }
    }

    /// The application limits.
    fn count_over_all(&self, draft: &mut Draft) {
        for per in [Per::Principal, Per::Source, Per::Service] {
            let limits: Vec<_> = self.application.iter().filter(|limit| self.per(limit) == per).collect();
            let made = limits.iter().any(|limit| limit.dynamic.is_some()).then(|| TODO.to_owned());
            if let Some(text) = self.text(&limits, "the application limits", draft).or(made) {
                draft.over_all.insert(per, text);
            }
        }
        if self.application.iter().any(|limit| limit.per_method || limit.methods.is_some()) {
            draft.lose("the application limits are for all methods together");
        }
        if self.application.iter().any(|limit| limit.cost != Some(1)) {
            draft.lose(
                "the application limits: a request counts as one there, and as a route's `cost` where it has one",
            );
        }
    }

    /// All rules, each cut into methods that are counted alike, without those that another stands before.
    fn entries(&self, draft: &mut Draft) -> Vec<Entry<'_>> {
        let mut entries: Vec<Entry<'_>> = Vec::new();
        for rule in &self.routes {
            let path = Path::of(&rule.rule, &self.spanning);
            if let Some(host) = &rule.host {
                draft.lose(format!("`{}` is for the host `{host}` in the app, here for all", rule.rule));
            }
            if let Some(lost) = &path.lost {
                draft.lose(lost.clone());
            }
            self.judge_rule(rule, draft);
            for (methods, limits) in self.alike(rule) {
                entries.push(Entry {
                    rule,
                    path: Path::of(&rule.rule, &self.spanning),
                    methods: Some(methods),
                    limits,
                });
            }
        }
        let mut kept: Vec<Entry<'_>> = Vec::new();
        for mut entry in entries {
            let form = entry.path.form();
            let taken = |method: &String| {
                let mut others = kept.iter().filter(|other| other.path.form() == form);
                others.any(|other| other.methods.as_ref().is_some_and(|methods| methods.contains(method)))
            };
            let methods = entry.methods.take().unwrap_or_default();
            let (gone, methods): (Vec<_>, Vec<_>) = methods.into_iter().partition(taken);
            if !gone.is_empty() {
                draft.lose(format!(
                    "`{}` ({}) has the path of a rule before it, and is counted there",
                    entry.rule.rule, entry.rule.endpoint
                ));
            }
            if !methods.is_empty() {
                kept.push(Entry { methods: Some(methods), ..entry });
            }
        }
        // Methods are named only where a path has more than one route.
        let forms: Vec<_> = kept.iter().map(|entry| entry.path.form()).collect();
        for (index, entry) in kept.iter_mut().enumerate() {
            if forms.iter().filter(|form| **form == forms[index]).count() == 1 {
                entry.methods = None;
            }
        }
        kept
    }

    /// What is said of a rule's limits.
    fn judge_rule(&self, rule: &Rule, draft: &mut Draft) {
        let owner = format!("`{}`", rule.endpoint);
        rule.decorated.iter().chain(&rule.blueprint).for_each(|limit| limit.judge(&owner, draft));
        if !rule.is_static && rule.exempt_from_defaults && rule.decorated.is_empty() {
            draft.lose(format!(
                "{owner} is exempt: here it has no limit of its own, and still needs a key. For callers without one make `{}` \
                 [[public]], which has a limit for each source, or [[exempt]] for known sources",
                rule.rule
            ));
        }
        if rule.exempt_from_application && !self.application.is_empty() {
            draft.lose(format!("{owner} is exempt from the application limits: here it counts for them"));
        }
    }

    /// A rule's methods by what counts them, in order; HEAD goes with GET, and what Flask itself answers goes with none.
    fn alike<'i>(&'i self, rule: &'i Rule) -> Vec<(Vec<String>, Vec<&'i Limit>)> {
        let has_get = rule.methods.iter().any(|method| method == "GET");
        let own = rule.methods.iter().filter(|method| *method != "OPTIONS" && !(has_get && *method == "HEAD"));
        let mut alike: Vec<(Vec<String>, Vec<&Limit>)> = Vec::new();
        for method in own {
            let limits = self.limits_of(rule, method);
            let apart = limits.iter().any(|limit| limit.per_method);
            let method = if METHODS.contains(&method.as_str()) { method } else { "OTHER" };
            match alike.iter_mut().find(|(_, others)| !apart && *others == limits) {
                Some((all, _)) if all.iter().any(|known| known == method) => {}
                Some((all, _)) => all.push(method.to_owned()),
                None => alike.push((vec![method.to_owned()], limits)),
            }
        }
        alike
    }

    /// The limits that Flask-Limiter tests for a method of a rule, but those of the application.
    fn limits_of<'i>(&'i self, rule: &'i Rule, method: &str) -> Vec<&'i Limit> {
        if rule.is_static {
            return Vec::new();
        }
        let applies = |limit: &Limit| limit.methods.as_ref().is_none_or(|all| all.iter().any(|one| one == method));
        // One that is not understood is as if it were not there; one that is computed replaces the defaults.
        let is_there = |limit: &&Limit| !limit.windows.is_empty() || limit.dynamic.is_some();
        let mut decorated: Vec<&Limit> = rule.decorated.iter().filter(is_there).collect();
        if decorated.iter().all(|limit| !limit.overrides) {
            decorated.extend(rule.blueprint.iter().filter(is_there));
        }
        let beside_defaults =
            decorated.iter().all(|limit| !applies(limit)) || decorated.iter().all(|limit| !limit.overrides);
        if beside_defaults && !rule.exempt_from_defaults {
            decorated.extend(&self.defaults);
        }
        decorated.retain(|limit| applies(limit) && is_there(limit));
        decorated
    }

    /// What counts an entry: limits of one kind, since a route has one count.
    fn count(&self, entry: &Entry<'_>, all: &[Entry<'_>], draft: &mut Draft) -> Count {
        let owner = format!("`{}`", entry.rule.endpoint);
        let Some(first) = entry.counted().next() else {
            let made = entry.limits.iter().find_map(|limit| limit.dynamic.as_ref());
            return made.map_or(Count::Nothing, |function| Count::Unknown(function.to_string()));
        };
        let scope = |limit: &Limit| limit.scope.clone().filter(|_| limit.shared);
        let kind = |limit: &Limit| (self.per(limit), scope(limit));
        let (alike, others): (Vec<&Limit>, Vec<&Limit>) = entry.counted().partition(|limit| kind(limit) == kind(first));
        for other in others {
            let text = other.windows.first().map_or_else(String::new, Window::to_string);
            draft.lose(format!("{owner}: `{text}` is left out; a route has one count, of its own or of a named limit"));
        }
        let Some(limit) = self.text(&alike, &owner, draft) else { return Count::Nothing };
        let counted = Counted { limit, per: self.per(first) };
        if let Some(scope) = scope(first) {
            return Count::Shared(draft.name(&scope, counted));
        }
        let siblings: Vec<_> = all.iter().filter(|other| other.rule.endpoint == entry.rule.endpoint).collect();
        let same = siblings.iter().filter(|other| other.limits == entry.limits).count();
        let overlap = |other: &&&Entry<'_>| {
            other.limits != entry.limits && other.limits.iter().any(|limit| alike.contains(limit))
        };
        if siblings.iter().any(|other| overlap(&other)) {
            draft.lose(format!("{owner}: methods with different limits are counted apart, those that they share too"));
        }
        if same > 1 && alike.iter().all(|limit| !limit.per_method) {
            return Count::Shared(draft.name(&entry.rule.endpoint, counted));
        }
        Count::Own(counted)
    }

    /// How many requests one of an entry counts as.
    fn cost(&self, entry: &Entry<'_>, draft: &mut Draft) -> u32 {
        let Some(cost) = entry.counted().filter_map(|limit| limit.cost).max().filter(|cost| *cost > 1) else {
            return 1;
        };
        let owner = format!("`{}`", entry.rule.endpoint);
        if entry.counted().any(|limit| limit.cost != Some(cost)) {
            draft.lose(format!(
                "{owner}: a request counts as {cost} for all its limits, which have several costs in the app"
            ));
        }
        if !self.application.is_empty() {
            draft.lose(format!("{owner}: its cost counts for the limits over all routes, too"));
        }
        if u64::from(cost) > MAX_COST {
            draft.lose(format!("{owner}: a request counts as {MAX_COST} at most, not as {cost}"));
        }
        cost.min(MAX_COST as u32)
    }

    /// One string of all these limits.
    fn text(&self, limits: &[&Limit], owner: &str, draft: &mut Draft) -> Option<String> {
        let algorithm = if self.strategy == "fixed-window" { " algo=fixed" } else { "" };
        let mut windows = Vec::new();
        for window in limits.iter().flat_map(|limit| &limit.windows) {
            let text = format!("{window}{algorithm}");
            match text.parse::<Limits>() {
                Ok(_) if windows.contains(&text) => (),
                Ok(_) if windows.len() == LIMITS => {
                    draft.lose(format!("{owner}: `{window}` is left out; at most {LIMITS} limits hold together"));
                }
                Ok(_) => windows.push(text),
                Err(error) => draft.lose(format!("{owner}: `{window}` is left out: {}", error.message)),
            }
        }
        (!windows.is_empty()).then(|| windows.join("; "))
    }

    fn per(&self, limit: &Limit) -> Per {
        self.keys.get(limit.key).map_or(Per::Principal, KeyFunction::per)
    }
}

impl KeyFunction {
    /// Whom it counts apart, as near as a policy comes to it.
    fn per(&self) -> Per {
        match self.looks_at.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            [] if self.failed.is_none() => Per::Service,
            ["source" | "X-Forwarded-For"] => Per::Source,
            _ => Per::Principal,
        }
    }

    /// What of it a policy does otherwise.
    fn judge(&self, draft: &mut Draft) {
        let Self { name, looks_at, failed } = self;
        if let Some(error) = failed {
            draft.lose(format!("`{name}` ended with {error} for a made-up request: taken as per principal"));
            return;
        }
        let words: Vec<_> = looks_at.iter().map(String::as_str).collect();
        match words[..] {
            ["X-API-Key" | "source"] => (),
            [] => draft.lose(format!(
                "`{name}` tells the same for every made-up request: taken as one count of all clients (per = \"service\")"
            )),
            ["X-Forwarded-For"] => draft.lose(format!(
                "`{name}` believes X-Forwarded-For: taken as per source; name the proxies in [service] trusted_proxies"
            )),
            _ if words.contains(&"X-Client-Id") => draft.lose(format!(
                "`{name}` looks at {}: taken as per principal, since a client chooses its X-Client-Id; declare those that you \
                 know under [principal.NAME.clients] and set [service] client_id",
                words.join(" and ")
            )),
            _ => draft.lose(format!(
                "`{name}` looks at {}: taken as per principal, which is whose key is in X-API-Key",
                words.join(" and ")
            )),
        }
    }
}

impl Limit {
    /// What of it a policy does otherwise.
    fn judge(&self, owner: &str, draft: &mut Draft) {
        if let Some(function) = &self.dynamic {
            draft.lose(format!(
                "{owner}: the limit is made by {function} for each request: left out; write one where {TODO} stands, or see plans"
            ));
        }
        if let Some(text) = &self.malformed {
            draft
                .lose(format!("{owner}: Flask-Limiter does not understand `{text}` and goes on without; so does this"));
        }
        if self.cost.is_none() {
            draft.lose(format!("{owner}: a computed `cost` counts as 1"));
        }
        for ignored in &self.ignored {
            draft.lose(match ignored.as_str() {
                "exempt_when" => format!("{owner}: `exempt_when` is not asked, the limit holds always"),
                "deduct_when" => {
                    format!("{owner}: `deduct_when` is not asked, every request counts whatever its response")
                }
                "scope" => format!("{owner}: a computed `scope` is not known, each route counts for itself"),
                "meta_limits" => format!("{owner}: `meta_limits`: see `penalty` in enforcer.toml, which is like them"),
                _ => format!("{owner}: `{ignored}`: the text of a refusal is `answers.429` in enforcer.toml"),
            });
        }
    }
}

impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, every, unit } = self;
        match (unit.as_str(), every) {
            // Its year has twelve months of 30 days.
            ("year", _) => write!(f, "{count}/{} days", every.saturating_mul(360)),
            (_, 1) => write!(f, "{count}/{unit}"),
            _ => write!(f, "{count}/{every} {unit}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy;
    use serde_json::{Value, json};

    fn limit(more: Value) -> Value {
        let mut limit = json!({
            "key": 0, "windows": [{"count": 10, "every": 1, "unit": "minute"}], "scope": null, "shared": false,
            "per_method": false, "methods": null, "overrides": true, "cost": 1, "ignored": [],
        });
        limit.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        limit
    }

    fn rule(rule: &str, endpoint: &str, decorated: &[Value]) -> Value {
        json!({
            "rule": rule, "endpoint": endpoint, "methods": ["GET", "HEAD", "OPTIONS"], "host": null, "is_static": false,
            "exempt_from_defaults": false, "exempt_from_application": false, "decorated": decorated, "blueprint": [],
        })
    }

    fn translate(routes: &[Value], more: Value) -> Draft {
        let mut inventory = json!({
            "version": "4.1.1", "strategy": "fixed-window", "defaults": [], "application": [], "routes": routes,
            "keys": [{"name": "by_key", "looks_at": ["X-API-Key"]}, {"name": "by_address", "looks_at": ["source"]}],
            "spanning": ["path"], "settings": [], "behind_proxy": false,
        });
        inventory.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let draft = serde_json::from_value::<Inventory>(inventory).expect("an inventory").translate("app:app");
        let text = draft.to_string();
        // What is to be written is wrong as it stands, and nothing else is.
        let written = text.replace(&format!("\"{TODO}\""), "\"1/hour\"");
        assert_eq!(written != text, policy::file::parse("policy.toml", &text).is_err(), "{text}");
        if let Err(problems) = policy::file::parse("policy.toml", &written) {
            panic!("it does not read back: {problems:?}: {text}");
        }
        draft
    }

    fn counts(draft: &Draft) -> Vec<(String, Count, u32)> {
        draft.routes.iter().map(|route| (route.path.clone(), route.count.clone(), route.cost)).collect()
    }

    fn own(limit: &str, per: Per) -> Count {
        Count::Own(Counted { limit: limit.to_owned(), per })
    }

    #[track_caller]
    fn loses(draft: &Draft, words: &[&str]) {
        assert_eq!(draft.losses.len(), words.len(), "{:#?}", draft.losses);
        for word in words {
            assert!(draft.losses.iter().any(|loss| loss.contains(word)), "{word}: {:#?}", draft.losses);
        }
    }

    #[test]
    fn limits_of_one_kind_go_together_up_to_four_and_those_of_another_are_named() {
        let windows: Vec<_> = (1..=5).map(|every| json!({"count": 10, "every": every, "unit": "hour"})).collect();
        let limits = [
            limit(json!({"windows": windows})),
            limit(json!({"key": 1})),
            limit(json!({"shared": true, "scope": "s"})),
        ];
        let draft = translate(&[rule("/a", "a", &limits)], json!({"strategy": "sliding-window-counter"}));
        let text = "10/hour; 10/2 hours; 10/3 hours; 10/4 hours";
        assert_eq!(counts(&draft), [("/a".to_owned(), own(text, Per::Principal), 1)]);
        loses(&draft, &["`10/5 hours` is left out; at most 4", "`10/minute` is left out; a route has one count"]);
    }

    #[test]
    fn limits_that_stand_beside_the_defaults_are_in_one_string_with_them() {
        let beside = limit(json!({"overrides": false, "windows": [{"count": 1, "every": 1, "unit": "second"}]}));
        let draft = translate(&[rule("/a", "a", &[beside])], json!({"defaults": [limit(json!({"overrides": false}))]}));
        let text = "1/second algo=fixed; 10/minute algo=fixed";
        assert_eq!(counts(&draft), [("/a".to_owned(), own(text, Per::Principal), 1)]);
    }

    #[test]
    fn what_is_over_all_endpoints_is_for_whom_its_key_function_tells_apart() {
        let day = |key: usize| {
            limit(
                json!({"key": key, "shared": true, "scope": "global", "windows": [{"count": 9, "every": 2, "unit": "day"}]}),
            )
        };
        let draft = translate(&[], json!({"application": [day(0), day(1)]}));
        let text = draft.to_string();
        assert!(text.contains("[service]\nsource = \"9/2 days algo=fixed\""), "{text}");
        assert!(text.contains("[plan.flask-limiter]\nlimit = \"9/2 days algo=fixed\""), "{text}");
        assert!(text.parse::<toml::Table>().is_ok(), "{text}");
        loses(&draft, &[]);
    }

    #[test]
    fn a_limit_that_is_made_for_each_request_is_not_none() {
        let made = || limit(json!({"windows": [], "dynamic": {"name": "by_plan", "place": "app.py:7"}}));
        let routes = [
            rule("/a", "a", &[made()]),
            rule("/b", "b", &[made(), limit(json!({}))]),
            rule("/c", "c", &[]),
            rule("/d", "d", &[limit(json!({"overrides": false}))]),
        ];
        let beside =
            || limit(json!({"windows": [], "overrides": false, "dynamic": {"name": "evil\nlimit", "place": null}}));
        let draft = translate(&routes, json!({"defaults": [beside()], "application": [made()]}));
        let unknown = |text: &str| Count::Unknown(text.to_owned());
        let minute = || own("10/minute algo=fixed", Per::Principal);
        let expected = [unknown("`by_plan` (app.py:7)"), minute(), unknown("`evil\nlimit`"), minute()];
        assert_eq!(draft.routes.iter().map(|route| route.count.clone()).collect::<Vec<_>>(), expected);
        let text = draft.to_string();
        assert!(text.contains("[plan.flask-limiter]\nlimit = \"TODO\"\n"), "{text}");
        assert!(text.contains("# TODO: a limit in the place of the one that `by_plan` (app.py:7) makes"), "{text}");
        let owners = [
            "`a`: the limit",
            "`b`: the limit",
            "the default limits: the limit",
            "the application limits: the",
            "default limits hold",
        ];
        loses(&draft, &owners);
    }

    #[test]
    fn one_scope_with_two_limits_is_two_names_and_costs_are_bounded() {
        let shared = |count: u32| {
            limit(
                json!({"shared": true, "scope": "re ports", "windows": [{"count": count, "every": 1, "unit": "hour"}], "cost": 300}),
            )
        };
        let draft = translate(
            &[rule("/a", "a", &[shared(1)]), rule("/b", "b", &[shared(2)]), rule("/c", "c", &[shared(1)])],
            json!({}),
        );
        let names = ["re-ports", "re-ports-2", "re-ports"];
        let expected = ["/a", "/b", "/c"].into_iter().zip(names);
        let expected: Vec<_> =
            expected.map(|(path, name)| (path.to_owned(), Count::Shared(name.to_owned()), 256)).collect();
        assert_eq!(counts(&draft), expected);
        loses(&draft, &["`a`: a request counts as 256", "`b`: a request", "`c`: a request"]);
    }

    #[test]
    fn a_count_beyond_the_kernel_s_is_left_out_and_nothing_in_a_name_ends_a_comment() {
        let huge = limit(json!({"windows": [{"count": 9_999_999_999_u64, "every": 1, "unit": "day"}]}));
        let draft = translate(&[rule("/a\"b", "evil\nlimit = \"unlimited\"", &[huge])], json!({}));
        loses(&draft, &["is too large a count"]);
        let text = draft.to_string();
        let policy = text.parse::<toml::Table>().expect("TOML");
        assert_eq!(policy["route"][0]["path"].as_str(), Some("/a%22b"), "{text}");
        assert_eq!(policy["route"][0].as_table().map(|route| route.len()), Some(2), "{text}");
    }
}
