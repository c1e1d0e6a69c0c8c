//! Tries kept inputs again, and explains those for which a property does not hold.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use enforcer_fuzz::{Target, seeds};

/// Try inputs of a fuzz target again.
#[derive(Parser)]
struct Options {
    /// http, segments or limits.
    #[arg(value_parser = target)]
    target: Target,
    /// The inputs.
    #[arg(required_unless_present = "seeds")]
    inputs: Vec<PathBuf>,
    /// Write the target's first inputs into this folder instead.
    #[arg(long)]
    seeds: Option<PathBuf>,
    /// With them, write libFuzzer's dictionary into this file.
    #[arg(long, requires = "seeds")]
    dictionary: Option<PathBuf>,
}

fn target(name: &str) -> Result<Target, String> {
    let found = Target::ALL.into_iter().find(|target| target.name() == name);
    found.ok_or_else(|| "is none of http, segments and limits".to_owned())
}

/// The target's tokens as libFuzzer reads them, a quoted one on each line.
fn words(target: Target) -> String {
    let quoted = |token: &&[u8]| {
        let plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        let byte = |byte: &u8| if plain(byte) { char::from(*byte).into() } else { format!("\\x{byte:02x}") };
        format!("\"{}\"\n", token.iter().map(byte).collect::<String>())
    };
    target.tokens().iter().map(quoted).collect()
}

fn main() -> Result<ExitCode> {
    let Options { target, inputs, seeds, dictionary } = Options::parse();
    if let Some(folder) = seeds {
        for (index, (_, seed)) in seeds::load(target)?.into_iter().enumerate() {
            let path = folder.join(format!("seed-{index}"));
            std::fs::write(&path, seed).with_context(|| format!("writing {}", path.display()))?;
        }
        if let Some(path) = dictionary {
            std::fs::write(&path, words(target)).with_context(|| format!("writing {}", path.display()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut failed = false;
    for path in &inputs {
        let input = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        println!("{}\n{}", path.display(), target.explain(&input));
        match target.check(&input) {
            Ok(()) => println!("all properties hold"),
            Err(error) => {
                println!("FAILED: {error}");
                failed = true;
            }
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
