//! What each client does in each weather.

use serde::Serialize;

const MEGABYTE: usize = 1 << 20;

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Do {
    /// A GET of a small page.
    Get,
    /// A GET with so many bytes of further fields in its head.
    Fields,
    /// A POST with a body of known length.
    Upload,
    /// A POST with a chunked body.
    Chunked,
    /// A GET that is answered with so many bytes.
    Download,
}

/// Some equal requests.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Step {
    /// What each is.
    #[serde(rename = "do")]
    pub(crate) what: Do,
    /// Bytes, as `what` says.
    pub(crate) size: usize,
    /// How many.
    pub(crate) count: usize,
    /// One connection for all of them, if the server keeps it; else one for each.
    pub(crate) keep: bool,
}

/// All of a client's steps for one server.
pub(crate) const PLAN: &[Step] = &[
    Step { what: Do::Get, size: 0, count: 20, keep: true },
    Step { what: Do::Get, size: 0, count: 10, keep: false },
    Step { what: Do::Fields, size: 12 << 10, count: 4, keep: true },
    Step { what: Do::Fields, size: 12 << 10, count: 2, keep: false },
    Step { what: Do::Upload, size: MEGABYTE, count: 1, keep: true },
    Step { what: Do::Chunked, size: MEGABYTE, count: 1, keep: true },
    Step { what: Do::Download, size: MEGABYTE, count: 1, keep: true },
];

/// What one client does besides, once.
pub(crate) const LARGE: &[Step] = &[
    Step { what: Do::Upload, size: 20 * MEGABYTE, count: 1, keep: false },
    Step { what: Do::Download, size: 20 * MEGABYTE, count: 1, keep: false },
];

/// The number of requests of some steps.
pub(crate) fn requests(steps: &[Step]) -> usize {
    steps.iter().map(|step| step.count).sum()
}
