//! Policies, held against real Flask apps: what an app's own limiter lets through, and what reaches the same app, unchanged,
//! behind the enforcer; then each way around a limit, with the exact number of requests that it gains.
//!
//! What counts is what the app executed, which its own record tells, and not what a client was told. Limits are per hour
//! where a test needs no shorter window, so that no pause of a loaded machine lets a window pass.

#[path = "policy/attack.rs"]
mod attack;
#[path = "policy/connections.rs"]
mod connections;
#[path = "policy/exempt.rs"]
mod exempt;
#[path = "policy/explain.rs"]
mod explain;
#[path = "policy/headers.rs"]
mod headers;
#[path = "policy/hosts.rs"]
mod hosts;
#[path = "policy/keys.rs"]
mod keys;
#[path = "policy/live.rs"]
mod live;
#[path = "policy/observe.rs"]
mod observe;
#[path = "policy/overflow.rs"]
mod overflow;
#[path = "policy/penalize.rs"]
mod penalize;
#[path = "policy/proxy.rs"]
mod proxy;
#[path = "policy/reboot.rs"]
mod reboot;
#[path = "policy/redis.rs"]
mod redis;
#[path = "policy/retired.rs"]
mod retired;
#[path = "policy/rules.rs"]
mod rules;
#[path = "policy/secrecy.rs"]
mod secrecy;
#[path = "policy/services.rs"]
mod services;
#[path = "policy/site.rs"]
mod site;
#[path = "policy/snippets.rs"]
mod snippets;
#[path = "policy/strangers.rs"]
mod strangers;
#[path = "policy/tenants.rs"]
mod tenants;
#[path = "policy/times.rs"]
mod times;
#[path = "policy/trial.rs"]
mod trial;
