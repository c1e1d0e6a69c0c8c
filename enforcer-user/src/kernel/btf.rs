//! Where the running kernel keeps what the program reads of a socket, from the kernel's own type information.
//!
//! A small reader of the BTF format (`Documentation/bpf/btf.rst`): finds a structure, and in it a member by name,
//! through the anonymous structures and unions that newer kernels group members in. aya parses the same bytes but
//! shows no members. The bytes are the kernel's, and still nothing here trusts a length or an offset in them.

use std::fs;

use enforcer_ebpf::abi::{EndsOffsets, SocketOffsets};

use super::Error;

/// Where the kernel publishes its type information.
pub(super) const PATH: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Bytes of `struct btf_type` and of `struct btf_member`, in words.
const TYPE_WORDS: usize = 3;
const MEMBER_WORDS: usize = 3;
/// Deepest nesting of anonymous members and of qualifiers that is followed; the kernel's own bound is 32.
const MAX_DEPTH: u32 = 32;

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// Reads the offsets of the running kernel: of what a socket holds, and of whose it is.
///
/// # Errors
/// [`Error::NoBtf`] if the kernel has no type information, or a socket does not hold what is read of it.
pub(crate) fn offsets() -> Result<(SocketOffsets, EndsOffsets), Error> {
    let no_btf = |reason: String| Error::NoBtf { reason };
    let bytes = fs::read(PATH).map_err(|error| no_btf(format!("cannot be read ({error})")))?;
    let types = Types::parse(&bytes).map_err(no_btf)?;
    let offset = |structure, member, size| types.offset(structure, member, size).map_err(no_btf);
    let common = |member, size| offset("sock_common", member, size);
    let namespace = types.begin("net", "ns").map_err(no_btf)?;
    let ends = EndsOffsets {
        port: offset("inet_sock", "inet_sport", 2)?,
        remote_port: common("skc_dport", 2)?,
        family: common("skc_family", 2)?,
        state: common("skc_state", 1)?,
        v4: common("skc_rcv_saddr", 4)?,
        remote_v4: common("skc_daddr", 4)?,
        v6: common("skc_v6_rcv_saddr", 16)?,
        remote_v6: common("skc_v6_daddr", 16)?,
        net: common("skc_net", 8)?,
        inum: namespace + offset("ns_common", "inum", 4)?,
        protocol: offset("sock", "sk_protocol", 2)?,
        reserved: 0,
    };
    let socket = SocketOffsets {
        rcv_nxt: offset("tcp_sock", "rcv_nxt", 4)?,
        bytes_received: offset("tcp_sock", "bytes_received", 8)?,
        snd_una: offset("tcp_sock", "snd_una", 4)?,
        bytes_acked: offset("tcp_sock", "bytes_acked", 8)?,
        write_seq: offset("tcp_sock", "write_seq", 4)?,
        reserved: 0,
        request_rcv_nxt: offset("tcp_request_sock", "rcv_nxt", 4)?,
        request_snt_isn: offset("tcp_request_sock", "snt_isn", 4)?,
    };
    Ok((socket, ends))
}

/// Type information: where each type begins, and the strings.
struct Types<'a> {
    words: &'a [u8],
    strings: &'a [u8],
    /// Position in `words`, by type id − 1.
    starts: Vec<usize>,
}

/// The head of a type.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    /// Members, values or parameters that follow.
    count: usize,
    /// Whether a member's offset also holds the width of a bit field.
    bit_fields: bool,
    /// Size in bytes, or the id of the type it refers to.
    size_or_type: u32,
    /// Position of what follows the head.
    body: usize,
}

/// A member of a structure or union.
#[derive(Clone, Copy)]
struct Member {
    name: u32,
    type_id: u32,
    /// Within its structure, in bits.
    bits: u32,
    is_bit_field: bool,
}

impl<'a> Types<'a> {
    /// # Errors
    /// Says, as the predicate of a sentence, what is wrong with the bytes.
    fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let malformed = || "is cut short".to_owned();
        let magic = bytes.first_chunk().map(|two| u16::from_ne_bytes(*two)).ok_or_else(malformed)?;
        if magic != MAGIC {
            return Err(format!("does not begin with BTF's magic number but with {magic:#x}"));
        }
        let field = |index: usize| word(bytes, index).ok_or_else(malformed);
        let [header, type_start, type_len, string_start, string_len] =
            [field(1)?, field(2)?, field(3)?, field(4)?, field(5)?].map(|value| value as usize);
        let section = |start: usize, len: usize| bytes.get(header..)?.get(start..)?.get(..len);
        let words = section(type_start, type_len).ok_or_else(malformed)?;
        let strings = section(string_start, string_len).ok_or_else(malformed)?;
        let mut types = Self { words, strings, starts: Vec::new() };
        let mut position = 0;
        while position < words.len() {
            types.starts.push(position);
            let head = types.at(position).ok_or_else(malformed)?;
            let body = match head.kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * head.count,
                kind::ENUM | kind::FUNC_PROTO => 8 * head.count,
                // Pointer, forward declaration, qualifiers, function, float.
                2 | 7..=12 | 16 | kind::TYPE_TAG => 0,
                unknown => return Err(format!("holds types of a kind this enforcer does not know ({unknown})")),
            };
            position = head.body + body;
        }
        Ok(types)
    }

    /// Offset in bytes of the member `structure.member`, which must be `size` bytes wide.
    fn offset(&self, structure: &str, member: &str, size: u32) -> Result<u32, String> {
        let (bits, member_type) = self.locate(structure, member)?;
        match self.size(member_type) {
            Some(found) if found == size && bits % 8 == 0 => Ok(bits / 8),
            _ => Err(format!("has a {structure}.{member} that is not {size} bytes wide")),
        }
    }

    /// Likewise of a member of any width.
    fn begin(&self, structure: &str, member: &str) -> Result<u32, String> {
        self.locate(structure, member).map(|(bits, _)| bits / 8)
    }

    /// A member's offset in bits, and its type.
    fn locate(&self, structure: &str, member: &str) -> Result<(u32, u32), String> {
        self.starts
            .iter()
            .filter_map(|&start| self.at(start))
            .filter(|head| head.kind == kind::STRUCT && self.name(head.name) == Some(structure.as_bytes()))
            .find_map(|head| self.find(head, member.as_bytes(), MAX_DEPTH))
            .ok_or_else(|| format!("has no {structure}.{member}"))
    }

    /// Looks for a member in a structure and in its anonymous ones: offset in bits, and type.
    fn find(&self, structure: Type, wanted: &[u8], depth: u32) -> Option<(u32, u32)> {
        for index in 0..structure.count {
            let member = self.member(structure, index)?;
            let name = self.name(member.name)?;
            if name == wanted && !member.is_bit_field {
                return Some((member.bits, member.type_id));
            }
            if !name.is_empty() || depth == 0 {
                continue;
            }
            let inner = self.resolve(member.type_id);
            if let Some(inner) = inner.filter(|inner| matches!(inner.kind, kind::STRUCT | kind::UNION))
                && let Some((bits, type_id)) = self.find(inner, wanted, depth - 1)
            {
                return Some((member.bits.checked_add(bits)?, type_id));
            }
        }
        None
    }

    /// Follows type names and qualifiers.
    fn resolve(&self, type_id: u32) -> Option<Type> {
        let mut type_id = type_id;
        for _ in 0..MAX_DEPTH {
            let head = self.at(*self.starts.get((type_id as usize).checked_sub(1)?)?)?;
            match head.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    type_id = head.size_or_type;
                }
                _ => return Some(head),
            }
        }
        None
    }

    /// Size in bytes of an integer or a structure.
    fn size(&self, type_id: u32) -> Option<u32> {
        let is_sized = |head: &Type| matches!(head.kind, kind::INT | kind::STRUCT);
        self.resolve(type_id).filter(is_sized).map(|head| head.size_or_type)
    }

    fn at(&self, start: usize) -> Option<Type> {
        let head = self.words.get(start..)?;
        let (name, info, size_or_type) = (word(head, 0)?, word(head, 1)?, word(head, 2)?);
        Some(Type {
            name,
            kind: (info >> 24) & 0x1f,
            count: (info & 0xffff) as usize,
            bit_fields: info >> 31 == 1,
            size_or_type,
            body: start + 4 * TYPE_WORDS,
        })
    }

    fn member(&self, structure: Type, index: usize) -> Option<Member> {
        let member = self.words.get(structure.body + 4 * MEMBER_WORDS * index..)?;
        let (name, type_id, offset) = (word(member, 0)?, word(member, 1)?, word(member, 2)?);
        let (bits, is_bit_field) =
            if structure.bit_fields { (offset & 0xff_ffff, offset >> 24 != 0) } else { (offset, false) };
        Some(Member { name, type_id, bits, is_bit_field })
    }

    fn name(&self, offset: u32) -> Option<&'a [u8]> {
        self.strings.get(offset as usize..)?.split(|&byte| byte == 0).next()
    }
}

/// The `index`th 32-bit word.
fn word(bytes: &[u8], index: usize) -> Option<u32> {
    bytes.get(4 * index..)?.first_chunk().map(|four| u32::from_ne_bytes(*four))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct s { u32 a; struct { u32 b; union { const u32 rcv_nxt; }; }; u32 bits : 3; }`
    fn sample() -> Vec<u8> {
        let strings = b"\0u32\0s\0a\0b\0rcv_nxt\0bits\0";
        let types: Vec<u32> = [
            vec![1, kind::INT << 24, 4, 32],
            vec![0, kind::CONST << 24, 1],
            vec![0, (kind::UNION << 24) | 1, 4, 11, 2, 0],
            vec![0, (kind::STRUCT << 24) | 2, 8, 9, 1, 0, 0, 3, 32],
            vec![5, (1 << 31) | (kind::STRUCT << 24) | 3, 16, 7, 1, 0, 0, 4, 32, 19, 1, (3 << 24) | 96],
        ]
        .concat();
        let header = [0x0001_eb9f, 24, 0, 4 * types.len() as u32, 4 * types.len() as u32, strings.len() as u32];
        let words = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes());
        words.chain(strings.iter().copied()).collect()
    }

    #[test]
    fn adds_the_offsets_of_anonymous_members() {
        let bytes = sample();
        let types = Types::parse(&bytes).expect("well formed");
        assert_eq!(types.offset("s", "a", 4), Ok(0));
        assert_eq!(types.offset("s", "b", 4), Ok(4));
        assert_eq!(types.offset("s", "rcv_nxt", 4), Ok(8));
    }

    #[test]
    fn names_a_member_that_is_missing_or_of_another_width() {
        let bytes = sample();
        let types = Types::parse(&bytes).expect("well formed");
        assert_eq!(types.offset("s", "snd_nxt", 4), Err("has no s.snd_nxt".to_owned()));
        assert_eq!(types.offset("t", "a", 4), Err("has no t.a".to_owned()));
        assert_eq!(types.offset("s", "bits", 4), Err("has no s.bits".to_owned()));
        assert_eq!(types.offset("s", "a", 8), Err("has a s.a that is not 8 bytes wide".to_owned()));
    }

    #[test]
    fn never_panics_on_cut_or_changed_bytes() {
        let bytes = sample();
        for end in 0..bytes.len() {
            if let Ok(types) = Types::parse(&bytes[..end]) {
                let _ = types.offset("s", "rcv_nxt", 4);
            }
        }
        for position in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[position] = value;
                if let Ok(types) = Types::parse(&changed) {
                    let _ = types.offset("s", "rcv_nxt", 4);
                }
            }
        }
    }

    #[test]
    fn reads_the_running_kernel() {
        let (offsets, ends) = offsets().expect("the kernel has a TCP stack");
        assert!(ends.port > ends.remote_port && ends.remote_v6 != ends.v6 && ends.inum > 0, "{ends:?}");
        assert!(offsets.rcv_nxt > 0 && offsets.rcv_nxt.is_multiple_of(4), "{offsets:?}");
        assert!(offsets.bytes_received > 0 && offsets.bytes_received.is_multiple_of(8), "{offsets:?}");
        assert!(offsets.request_rcv_nxt > 0 && offsets.request_rcv_nxt.is_multiple_of(4), "{offsets:?}");
    }
}
