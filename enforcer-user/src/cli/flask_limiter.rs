//! `enforcer import flask-limiter`: an app's limits as a policy.
//!
//! # Layout
//! - `inventory`, with `inventory.py`: what the app itself tells
//! - `path`: a URL rule as a path
//! - `translation`: what counts what, and what is lost
//! - `draft`: the policy's text

mod draft;
mod inventory;
mod path;
mod translation;

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use self::inventory::Inventory;
use super::exit::Usage;
use super::output::{print, say};

pub(super) const HELP: &str = "\
The app is imported as its server would import it, in this folder, with the rights of who calls this; nothing is served, \
and neither the daemon nor root is needed. Its key functions are called with made-up requests, to see whether they look at \
the key or at the address.

What no policy can hold (limits that are computed, conditions on a response) is named on standard error and in comments \
of the policy. Read both before you apply it. `TODO` stands for a limit that is computed: until you write one there, the \
policy is refused.

  enforcer import flask-limiter app:app --python venv/bin/python -o policy.toml
  enforcer import flask-limiter 'shop:create_app()'";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where the app is, as gunicorn takes it; a function that makes it is called
    #[arg(value_name = "MODULE:APP")]
    app: String,
    /// The interpreter that has the app's packages
    #[arg(long, value_name = "PATH", default_value = "python3")]
    python: PathBuf,
    /// Where to write the policy [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Arguments {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let Self { app, python, output } = self;
        let whole = app.split_once(':').is_some_and(|(module, name)| !module.is_empty() && !name.is_empty());
        if !whole {
            return Err(Usage(
                "MODULE:APP: this names no app; accepted: such as shop.web:app or shop:create_app()".into(),
            )
            .into());
        }
        let draft = Inventory::take(&python, &app)?.translate(&app);
        for loss in &draft.losses {
            say(&format!("warning: {loss}"));
        }
        let text = draft.to_string();
        match output {
            None => Ok(print(&text)?),
            Some(file) => fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display())),
        }
    }
}
