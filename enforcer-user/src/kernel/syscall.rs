//! The bpf(2) calls, most of them for links, which aya either lacks or does in another way.
//!
//! aya 0.14 answers a refused link by attaching through netlink, which cannot be pinned and outlives nothing, and it
//! shows neither a link's interface nor, without CAP_SYS_ADMIN, the program that it holds. All numbers and structures
//! are the kernel's (`include/uapi/linux/bpf.h`); only the leading fields that are used are sent, the kernel takes the
//! rest as zero.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya::Pod;
use aya_obj::generated::{bpf_attach_type, bpf_cmd, bpf_link_info, bpf_link_type};

use super::classifier::Side;

/// What the kernel knows of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Index of the interface; 0 once the interface is gone.
    pub(super) interface: u32,
    /// Id of the program.
    pub(super) program: u32,
    /// The side of traffic control; `None` for an XDP link.
    pub(super) side: Option<Side>,
}

/// Attaches a program to an interface.
///
/// # Errors
/// EINVAL: the kernel does not know this type of attachment. For XDP,
/// EBUSY: another program is there; EOPNOTSUPP: the driver has no native XDP; EINVAL or ERANGE: it has, but not with
/// the interface's present settings.
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    interface: u32,
    attach_type: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        interface: u32,
        attach_type: u32,
        flags: u32,
    }
    let attributes =
        Attributes { program: program.as_raw_fd().cast_unsigned(), interface, attach_type: attach_type as u32, flags };
    call(bpf_cmd::BPF_LINK_CREATE, &attributes).map(into_fd)
}

/// Replaces the program of a link in one step: every packet meets the old one or the new one.
///
/// # Errors
/// ENOLINK: the interface is gone.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let attributes = Attributes {
        link: link.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_program: 0,
    };
    call(bpf_cmd::BPF_LINK_UPDATE, &attributes).map(drop)
}

/// Ends a link's attachment, whoever else still holds the link.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = link.as_raw_fd().cast_unsigned();
    call(bpf_cmd::BPF_LINK_DETACH, &attributes).map(drop)
}

/// What a link connects; `None` if it is neither of XDP nor of traffic control.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<Option<LinkInfo>> {
    #[repr(C)]
    struct Attributes {
        link: u32,
        length: u32,
        info: u64,
    }
    const XDP: u32 = bpf_link_type::BPF_LINK_TYPE_XDP as u32;
    const TCX: u32 = bpf_link_type::BPF_LINK_TYPE_TCX as u32;
    // SAFETY: the structure is integers and unions of integers, for which zero is a value.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let attributes = Attributes {
        link: link.as_raw_fd().cast_unsigned(),
        length: size_of_val(&info) as u32,
        info: (&raw mut info).addr() as u64,
    };
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &attributes)?;
    let (interface, side) = match info.type_ {
        // SAFETY: the kernel says that this is an XDP link, so it has filled this member.
        XDP => (unsafe { info.__bindgen_anon_1.xdp.ifindex }, None),
        TCX => {
            // SAFETY: likewise.
            let tcx = unsafe { info.__bindgen_anon_1.tcx };
            let side =
                [Side::Ingress, Side::Egress].into_iter().find(|side| side.attach_type() as u32 == tcx.attach_type);
            if side.is_none() {
                return Ok(None);
            }
            (tcx.ifindex, side)
        }
        _ => return Ok(None),
    };
    Ok(Some(LinkInfo { interface, program: info.prog_id, side }))
}

/// Ids of the programs that are attached to `target`, the index of an interface or a descriptor, in their order.
///
/// # Errors
/// EINVAL: the kernel does not know this type of attachment.
pub(crate) fn query_programs(attach_type: bpf_attach_type, target: u32) -> io::Result<Vec<u32>> {
    // The kernel runs at most so many at one place (BPF_MPROG_MAX), and says ENOSPC where it runs more.
    const MOST: usize = 64;
    #[repr(C)]
    struct Attributes {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        reserved: u32,
        // The kernel writes the revision, so the structure is sent whole.
        more: [u64; 4],
    }
    let mut ids = [0u32; MOST];
    let mut attributes = Attributes {
        target,
        attach_type: attach_type as u32,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().addr() as u64,
        count: MOST as u32,
        reserved: 0,
        more: [0; 4],
    };
    let pointer = &raw mut attributes;
    // SAFETY: the structure is the kernel's for this command and has its size; the array has room for as many ids as
    // it says, and both live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, bpf_cmd::BPF_PROG_QUERY as u32, pointer, size_of::<Attributes>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids.into_iter().take(attributes.count as usize).collect())
}

/// Opens the program with this id; needs CAP_SYS_ADMIN.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    call(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &id).map(into_fd)
}

/// Copies a map's entries in one call, as many as `keys` and `values` have room for; says how many.
///
/// # Errors
/// ENOSPC: there is not enough room. EINVAL: this type of map cannot be read so.
pub(super) fn lookup_batch<K: Copy, V: Copy>(
    map: BorrowedFd<'_>,
    keys: &mut [MaybeUninit<K>],
    values: &mut [MaybeUninit<V>],
) -> io::Result<usize> {
    // Where the next call would go on.
    let mut next = 0u32;
    let mut attributes = BatchAttributes {
        from: 0,
        next: (&raw mut next).addr() as u64,
        keys: keys.as_mut_ptr().addr() as u64,
        values: values.as_mut_ptr().addr() as u64,
        count: keys.len().min(values.len()) as u32,
        map: map.as_raw_fd().cast_unsigned(),
        element_flags: 0,
        flags: 0,
    };
    let (command, pointer) = (bpf_cmd::BPF_MAP_LOOKUP_BATCH as u32, &raw mut attributes);
    // SAFETY: the structure is the kernel's for this command and has its size; it writes the count, and as many keys and
    // values as there is room for, all of which live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<BatchAttributes>()) };
    match io::Error::last_os_error() {
        // The map's end was reached.
        error if result < 0 && error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(attributes.count as usize),
    }
}

/// A map's entries, `most` at most, in one call: a walk key by key takes two for each.
///
/// # Errors
/// Those of [`lookup_batch`].
pub(super) fn entries<K: Pod, V: Pod>(map: BorrowedFd<'_>, most: usize) -> io::Result<Vec<(K, V)>> {
    let mut keys = vec![MaybeUninit::<K>::uninit(); most];
    let mut values = vec![MaybeUninit::<V>::uninit(); most];
    let found = lookup_batch(map, &mut keys, &mut values)?;
    // SAFETY: the kernel has written that many of both, and any bytes are a key or a value.
    let entry = |(key, value): (&MaybeUninit<K>, &MaybeUninit<V>)| unsafe { (key.assume_init(), value.assume_init()) };
    Ok(keys.iter().zip(&values).take(found).map(entry).collect())
}

/// Writes entries, whether they are there or not, in one call, one after the other. Each is seen whole or not at all.
///
/// # Errors
/// How many were written before one could not be, and why it could not.
pub(super) fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    let count = keys.len().min(values.len()) as u32;
    if count == 0 {
        return Ok(());
    }
    let mut attributes = BatchAttributes {
        from: 0,
        next: 0,
        keys: keys.as_ptr().addr() as u64,
        values: values.as_ptr().addr() as u64,
        count,
        map: map.as_raw_fd().cast_unsigned(),
        element_flags: 0,
        flags: 0,
    };
    let (command, pointer) = (bpf_cmd::BPF_MAP_UPDATE_BATCH as u32, &raw mut attributes);
    // SAFETY: the structure is the kernel's for this command and has its size; it reads as many keys and values as there
    // are, and writes the count, all of which live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size_of::<BatchAttributes>()) };
    if result >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // A call that fails before the first leaves the count as it was.
    Err((if attributes.count < count { attributes.count as usize } else { 0 }, error))
}

/// What both batch commands take.
#[repr(C)]
struct BatchAttributes {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Pins an object.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let attributes =
        ObjectAttributes { path: path.as_ptr().addr() as u64, object: object.as_raw_fd().cast_unsigned(), flags: 0 };
    call(bpf_cmd::BPF_OBJ_PIN, &attributes).map(drop)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let attributes = ObjectAttributes { path: path.as_ptr().addr() as u64, object: 0, flags: 0 };
    call(bpf_cmd::BPF_OBJ_GET, &attributes).map(into_fd)
}

#[repr(C)]
struct ObjectAttributes {
    path: u64,
    object: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

fn call<T>(command: bpf_cmd, attributes: &T) -> io::Result<i64> {
    // SAFETY: `attributes` is the prefix of the kernel's union for this command, of the size that is given; the
    // pointers in it are to values that live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn into_fd(result: i64) -> OwnedFd {
    // SAFETY: the commands that come here return a new descriptor, which nobody else owns; descriptors fit an i32.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}
