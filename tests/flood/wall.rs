//! The least that stops a flood: an XDP program that drops what comes from its addresses, and looks at nothing else. What a
//! packet costs here is the link's.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Xdp, XdpMode},
};
use enforcer_tests::kernel;

use crate::stage::{SERVER, Stage};

/// The program.
const PROGRAM: &str = "bench_wall";

/// The attached program; gone with its value.
#[derive(Debug)]
pub(crate) struct Wall {
    _object: Ebpf,
}

impl Wall {
    /// Attaches it in the driver, as the enforcer's is.
    ///
    /// # Errors
    /// Without root, or if the kernel refuses it.
    pub(crate) fn attach(stage: &Stage) -> Result<Self> {
        let mut object = EbpfLoader::new().load(&kernel::object()?).context("cannot create the maps")?;
        let program: &mut Xdp = object.program_mut(PROGRAM).with_context(|| format!("no {PROGRAM}"))?.try_into()?;
        program.load()?;
        stage.link.server.run(|| program.attach(SERVER, XdpMode::Driver).context("attaching the wall"))?;
        Ok(Self { _object: object })
    }
}
