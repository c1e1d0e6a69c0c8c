//! The statistics at the end of a verifier's log, as kernel/bpf/verifier.c prints them with BPF_LOG_STATS.

/// What is read from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Instructions that the verifier walked, each as often as it did.
    pub(crate) verified: u64,
    /// Most states that it held at once.
    pub(crate) peak_states: u64,
    /// Stack of the program and each of its functions, as `96+0+48`.
    pub(crate) stack: String,
}

impl Statistics {
    /// Reads a log; `None` if the statistics are not in it.
    pub(crate) fn read(log: &str) -> Option<Self> {
        let stack = log.lines().find_map(|line| line.strip_prefix("stack depth "))?.trim().to_owned();
        let processed = log.lines().find_map(|line| line.strip_prefix("processed "))?;
        let words: Vec<&str> = processed.split_whitespace().collect();
        let after =
            |name: &str| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)?.parse().ok());
        Some(Self { verified: words.first()?.parse().ok()?, peak_states: after("peak_states")?, stack })
    }
}

#[cfg(test)]
mod tests {
    use super::Statistics;

    #[test]
    fn reads_the_statistics_of_linux_6_1_and_later() {
        let log = "verification time 2317 usec\nstack depth 96+0+48\nprocessed 4012 insns (limit 1000000) \
                   max_states_per_insn 4 total_states 212 peak_states 97 mark_read 31\n";
        let expected = Statistics { verified: 4012, peak_states: 97, stack: "96+0+48".into() };
        assert_eq!(Statistics::read(log), Some(expected));
        assert_eq!(Statistics::read("last insn is not an exit or jmp\n"), None);
    }
}
