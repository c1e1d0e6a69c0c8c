//! What would become of a request: asked of a program of the same object, which is run on the request's head and on nothing
//! else.

use std::io;

use aya::programs::{Program, TestRun as _, TestRunOptions};
use enforcer_ebpf::abi::map;
use enforcer_ebpf::judge::explain::Explanation;

use super::{Error, Kernel, load, tables::failed};

impl Kernel {
    /// Runs the program on a request's head, of at least [`Kernel::SHORTEST`] bytes, for this question. Nothing comes of it
    /// for anybody, and packets are judged meanwhile as ever.
    ///
    /// The program is verified with the first question, which takes some time.
    ///
    /// # Errors
    /// The kernel refuses the program or the run, or a failed read or write.
    pub fn explain(&mut self, question: &Explanation, head: &[u8]) -> Result<Explanation, Error> {
        load::explain(&mut self.object)?;
        let Some(Program::Xdp(program)) = self.object.program(load::EXPLAIN) else {
            return Err(Error::Foreign { what: load::EXPLAIN });
        };
        let table = &mut self.tables.explanation;
        table.set(0, question, 0).map_err(|error| failed(map::EXPLANATION, "written", error))?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(head);
        let call = |error| Error::Call { action: "run a program on a request", source: io::Error::other(error) };
        program.test_run(options).map_err(call)?;
        table.get(&0, 0).map_err(|error| failed(map::EXPLANATION, "read", error))
    }

    /// The fewest bytes that the kernel runs a program on (ETH_HLEN); no request has less.
    pub const SHORTEST: usize = 14;
}
