//! Who is at the other end of the control socket.
//!
//! The kernel vouches for the user and the group (SO_PEERCRED). The process id is for the log only: it may be another
//! process's by the time it is read.

use nix::unistd::{Gid, Group, Uid, User, geteuid};
use tokio::net::UnixStream;

use crate::daemon::socket::READERS;

/// A client of the control socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// 0 if the kernel does not say.
    pub(super) pid: i32,
}

impl Peer {
    /// The client at the other end; `None` if the kernel does not say.
    pub(crate) fn of(stream: &UnixStream) -> Option<Self> {
        let credentials = stream.peer_cred().ok()?;
        Some(Self { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid().unwrap_or(0) })
    }

    /// Root and the daemon's own user.
    pub(super) fn may_change(&self) -> bool {
        self.uid == 0 || self.uid == geteuid().as_raw()
    }

    /// Those, and the members of the readers' group.
    pub(super) fn may_read(&self) -> bool {
        self.may_change() || self.is_reader().unwrap_or(false)
    }

    fn is_reader(&self) -> Option<bool> {
        let group = Group::from_name(READERS).ok()??;
        if group.gid == Gid::from_raw(self.gid) {
            return Some(true);
        }
        let user = User::from_uid(Uid::from_raw(self.uid)).ok()??;
        Some(user.gid == group.gid || group.mem.contains(&user.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_daemons_user_may_change_and_a_stranger_may_not_even_read() {
        let peer = |uid| Peer { uid, gid: 4_000_000_000, pid: 1 };
        assert!(peer(0).may_change() && peer(geteuid().as_raw()).may_change());
        let stranger = peer(3_999_999_999);
        assert!(!stranger.may_change() && !stranger.may_read());
    }
}
