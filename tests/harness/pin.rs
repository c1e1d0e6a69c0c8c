//! What lies in a pinned map, as bytes, whatever its type.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::maps::{MapInfo, MapType};
use nix::libc;

// include/uapi/linux/bpf.h
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_OBJ_GET: libc::c_long = 7;

/// The attributes of the commands on one entry.
#[repr(C)]
struct Entry {
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
}

/// All entries of a map, values of all CPUs side by side.
///
/// # Errors
/// Without root, or when the kernel refuses.
pub fn content(pin: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let info = MapInfo::from_pin(pin).with_context(|| format!("{}", pin.display()))?;
    let copies = match info.map_type()? {
        MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash => possible_cpus()?,
        _ => 1,
    };
    let value_len = info.value_size().next_multiple_of(8) as usize * copies;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    #[repr(C)]
    struct Pin {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let fd = call(BPF_OBJ_GET, &Pin { path: path.as_ptr().addr() as u64, fd: 0, flags: 0 })?;
    // SAFETY: a new descriptor, which nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let map = u64::from(fd.as_raw_fd().cast_unsigned());
    let address = |bytes: &[u8]| bytes.as_ptr().addr() as u64;
    let mut entries = BTreeMap::new();
    let mut before: Option<Vec<u8>> = None;
    loop {
        let mut key = vec![0; info.key_size() as usize];
        let next = Entry {
            map,
            key: before.as_deref().map_or(0, address),
            value: key.as_mut_ptr().expose_provenance() as u64,
            flags: 0,
        };
        match call(BPF_MAP_GET_NEXT_KEY, &next) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(entries),
            Err(error) => return Err(error).context("the next key"),
        }
        let mut value = vec![0; value_len];
        let found = Entry { map, key: address(&key), value: value.as_mut_ptr().expose_provenance() as u64, flags: 0 };
        call(BPF_MAP_LOOKUP_ELEM, &found).context("an entry that was there")?;
        ensure!(entries.insert(key.clone(), value).is_none(), "the map changes while it is read");
        before = Some(key);
    }
}

/// CPUs that there may be: those of a value of each.
fn possible_cpus() -> Result<usize> {
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit(['-', ',']).next().context("no CPU")?;
    Ok(last.parse::<usize>()? + 1)
}

fn call<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: `attributes` is the prefix of the kernel's union for this command, of the size that is given; the pointers
    // in it are to values of the map's sizes that live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
