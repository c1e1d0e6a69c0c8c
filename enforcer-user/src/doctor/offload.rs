//! Offloads that merge segments before a program sees them, asked of the driver over the ethtool ioctl.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

// include/uapi/linux/{sockios,ethtool}.h
const SIOCETHTOOL: u64 = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_FEATURES: u32 = 4;
/// Bytes of a feature's name.
const NAME: usize = 32;
/// Words of `struct ethtool_get_features_block`, and which of them says what is on.
const BLOCK: usize = 4;
const ACTIVE: usize = 2;
/// More features than any kernel has.
const MAX_FEATURES: usize = 1024;

/// Features that merge segments in the card or its driver.
const MERGING: [&str; 2] = ["rx-lro", "rx-gro-hw"];

/// The merging features that are on at an interface of this network namespace.
///
/// # Errors
/// A failed call; an interface whose driver has no such settings has none on.
pub(super) fn merging(interface: &str) -> io::Result<Vec<&'static str>> {
    let active = match active(interface) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        active => active?,
    };
    Ok(MERGING.into_iter().filter(|wanted| active.iter().any(|name| name == wanted)).collect())
}

/// The names of all features that are on.
fn active(interface: &str) -> io::Result<Vec<String>> {
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // struct ethtool_sset_info: command, reserved, mask of sets (64 bits), the size of each.
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    call(&control, interface, &mut info)?;
    let count = info[4] as usize;
    if count == 0 || count > MAX_FEATURES {
        return Ok(Vec::new());
    }
    // struct ethtool_gstrings: command, set, count, the names.
    let mut names = vec![0; 3 + count * NAME / 4];
    names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32]);
    call(&control, interface, &mut names)?;
    // struct ethtool_gfeatures: command, blocks, and each block of 32 features.
    let blocks = count.div_ceil(32);
    let mut states = vec![0; 2 + blocks * BLOCK];
    states[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
    call(&control, interface, &mut states)?;
    Ok(names_of_active(&names[3..], &states[2..]))
}

/// The names whose bit is set.
fn names_of_active(names: &[u32], blocks: &[u32]) -> Vec<String> {
    let is_active = |feature: usize| {
        let word = blocks.get(feature / 32 * BLOCK + ACTIVE);
        word.is_some_and(|word| word >> (feature % 32) & 1 == 1)
    };
    let text = |words: &[u32]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        crate::netlink::text(&bytes)
    };
    let names = names.chunks_exact(NAME / 4).enumerate();
    names.filter(|(feature, _)| is_active(*feature)).map(|(_, name)| text(name)).collect()
}

/// Carries out an ethtool command, whose answer replaces it.
fn call(control: &OwnedFd, interface: &str, command: &mut [u32]) -> io::Result<()> {
    // SAFETY: the structure is bytes, integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = command.as_mut_ptr().cast();
    // SAFETY: `command` is as long as its header says, which bounds what the kernel writes, and lives until the call
    // returns, as does the request that points to it.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), SIOCETHTOOL as libc::Ioctl, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_tells_its_features_and_merges_nothing() {
        let active = active("lo").expect("lo has features");
        assert!(active.iter().any(|name| name == "loopback"), "{active:?}");
        assert!(merging("lo").expect("lo has features").is_empty());
    }

    #[test]
    fn an_interface_that_is_not_there_is_an_error() {
        assert_eq!(active("absent0").expect_err("no such device").raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn each_name_has_its_bit_across_blocks() {
        let mut names = vec![0u32; 34 * NAME / 4];
        for (feature, name) in [(1, *b"one\0"), (33, *b"far\0")] {
            names[feature * NAME / 4] = u32::from_ne_bytes(name);
        }
        let mut blocks = [0u32; 2 * BLOCK];
        blocks[ACTIVE] = 1 << 1;
        assert_eq!(names_of_active(&names, &blocks), ["one"]);
        blocks[BLOCK + ACTIVE] = 1 << 1;
        assert_eq!(names_of_active(&names, &blocks), ["one", "far"]);
        // What could be on, was asked for, or never changes is not what is on.
        for other in [0, 1, 3] {
            let mut blocks = [0u32; 2 * BLOCK];
            blocks[other] = u32::MAX;
            assert!(names_of_active(&names, &blocks).is_empty());
        }
    }
}
