//! BPF programs that are not the enforcer's, of two instructions, loaded and attached by bare bpf(2) calls.
//!
//! A program's attachment ends with the value.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::libc;

use crate::root;

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
// include/uapi/linux/if_link.h
const XDP_FLAGS_SKB_MODE: u32 = 2;
/// `r0 = value`, without the value; `exit`.
const MOV: u64 = 0xb7;
const EXIT: u64 = 0x95;

/// What a program is for, and what it answers to let everything pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// XDP, in the driver where that can: `XDP_PASS`.
    Xdp,
    /// XDP, in the kernel's generic hook, which copies most packets for a program that takes them in fragments, as this
    /// one says: `XDP_PASS`.
    GenericXdp,
    /// tcx on ingress: `TCX_NEXT`.
    Tcx,
    /// Choice of a socket for a connection: `SK_PASS`, without a choice.
    SocketLookup,
    /// Messages between sockets: `SK_PASS`. Loaded only.
    SocketMessage,
}

impl Kind {
    /// The program's type, the type of its attachment, and its answer.
    const fn numbers(self) -> (u32, u32, i32) {
        match self {
            Self::Xdp | Self::GenericXdp => (6, 37, 2),
            Self::Tcx => (3, 46, -1),
            Self::SocketLookup => (30, 36, 1),
            Self::SocketMessage => (16, 7, 1),
        }
    }
}

/// A loaded program and, if it is attached, its link.
#[derive(Debug)]
pub struct Program {
    kind: Kind,
    program: OwnedFd,
    link: Option<OwnedFd>,
}

impl Program {
    /// Loads a program under a name of at most 15 letters.
    ///
    /// # Errors
    /// Without root, or when the kernel refuses.
    pub fn load(kind: Kind, name: &str) -> Result<Self> {
        root::require()?;
        #[repr(C)]
        struct Attributes {
            program_type: u32,
            instructions: u32,
            code: u64,
            license: u64,
            log: [u64; 2],
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
            interface: u32,
            attach_type: u32,
        }
        let (program_type, attach_type, answer) = kind.numbers();
        let code = [MOV | u64::from(answer.cast_unsigned()) << 32, EXIT];
        let mut text = [0; 16];
        text[..name.len()].copy_from_slice(name.as_bytes());
        let attributes = Attributes {
            program_type,
            instructions: 2,
            code: code.as_ptr().addr() as u64,
            license: c"GPL".as_ptr().addr() as u64,
            log: [0; 2],
            kernel_version: 0,
            flags: if kind == Kind::GenericXdp { BPF_F_XDP_HAS_FRAGS } else { 0 },
            name: text,
            interface: 0,
            attach_type,
        };
        let program = call(BPF_PROG_LOAD, &attributes).with_context(|| format!("loading {kind:?}"))?;
        Ok(Self { kind, program, link: None })
    }

    /// Attaches it to an interface's index, or to the descriptor of a network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(&mut self, target: u32) -> Result<()> {
        #[repr(C)]
        struct Attributes {
            program: u32,
            target: u32,
            attach_type: u32,
            flags: u32,
        }
        let (_, attach_type, _) = self.kind.numbers();
        let program = self.program.as_raw_fd().cast_unsigned();
        let flags = if self.kind == Kind::GenericXdp { XDP_FLAGS_SKB_MODE } else { 0 };
        let link = call(BPF_LINK_CREATE, &Attributes { program, target, attach_type, flags });
        self.link = Some(link.with_context(|| format!("attaching {:?}", self.kind))?);
        Ok(())
    }
}

fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: `attributes` is the prefix of the kernel's union for this command, of the size that is given; the
    // pointers in it are to values that live until the call returns, and the kernel only reads them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a new descriptor, which nobody else owns; descriptors fit their type.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}
