//! Where plaintext bytes live in the lower file. All offset arithmetic of the project stands in this file.
//!
//! Two coordinate systems: `plain_` counts bytes as the mount shows them, `disk_` bytes of the lower file.
//! A lower file is either *inline* (`disk_len <= 4096`: one 32-byte record head and the ciphertext) or a
//! sequence of *groups*, each a map page of 4 KiB and up to 128 blocks of 4 KiB.

/// Bytes of plaintext (and of ciphertext) in a full block.
pub const BLOCK: usize = 4096;
/// [`BLOCK`] as a file offset.
pub const BLOCK_U64: u64 = 4096;
/// Bytes of a map page.
pub const MAP_PAGE: usize = 4096;
/// Blocks in a full group.
pub const GROUP_BLOCKS: usize = 128;
/// [`GROUP_BLOCKS`] as a count of blocks of a file.
pub const GROUP_BLOCKS_U64: u64 = 128;
/// Plaintext bytes in a full group: 512 KiB.
pub const GROUP_PLAIN: u64 = GROUP_BLOCKS_U64 * BLOCK_U64;
/// Lower-file bytes of a full group: map page and blocks, 516 KiB.
pub const GROUP_DISK: u64 = GROUP_PLAIN + BLOCK_U64;
/// Every so many groups (1 GiB of plaintext) a group is a leader and knows which of the next ones exist.
pub const LEADER_SPAN: u64 = 2048;
/// Bytes in front of an inline file's ciphertext: kind, length, nonce, tag.
pub const INLINE_HEAD: usize = 32;
/// The longest plaintext that is kept inline.
pub const INLINE_MAX: u64 = BLOCK_U64 - 32;
/// The longest plaintext of a file: 16 TiB. Bounds the leaders that a truncate must write (16,384).
pub const MAX_PLAIN_LEN: u64 = 16 << 40;

/// Index of a block in a file, counted in plaintext.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockIndex(pub u64);

/// Index of a group in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupIndex(pub u64);

impl BlockIndex {
    /// The block that holds a plaintext offset.
    pub const fn of(plain_off: u64) -> Self {
        Self(plain_off / BLOCK_U64)
    }

    /// First plaintext byte of the block.
    pub const fn plain_start(self) -> u64 {
        self.0 * BLOCK_U64
    }

    /// The group the block belongs to.
    pub const fn group(self) -> GroupIndex {
        GroupIndex(self.0 / GROUP_BLOCKS_U64)
    }

    /// Place of the block within its group, `0..128`.
    pub const fn slot(self) -> usize {
        (self.0 % GROUP_BLOCKS_U64) as usize
    }

    /// Offset in the lower file of the block's ciphertext.
    pub const fn disk_start(self) -> u64 {
        self.group().disk_start() + BLOCK_U64 + (self.0 % GROUP_BLOCKS_U64) * BLOCK_U64
    }

    /// Bytes of the block in a file of `plain_len` bytes: 4096, less for the last one, 0 behind it.
    #[expect(clippy::cast_possible_truncation, reason = "at most 4096")]
    pub const fn len_in(self, plain_len: u64) -> usize {
        let rest = plain_len.saturating_sub(self.plain_start());
        if rest < BLOCK_U64 { rest as usize } else { BLOCK }
    }
}

impl GroupIndex {
    /// The group that holds a plaintext offset.
    pub const fn of(plain_off: u64) -> Self {
        Self(plain_off / GROUP_PLAIN)
    }

    /// First plaintext byte of the group.
    pub const fn plain_start(self) -> u64 {
        self.0 * GROUP_PLAIN
    }

    /// Offset in the lower file of the group's map page.
    pub const fn disk_start(self) -> u64 {
        self.0 * GROUP_DISK
    }

    /// First block of the group.
    pub const fn first_block(self) -> BlockIndex {
        BlockIndex(self.0 * GROUP_BLOCKS_U64)
    }

    /// Whether the group's header carries the bitmap of its span.
    pub const fn is_leader(self) -> bool {
        self.0.is_multiple_of(LEADER_SPAN)
    }

    /// The leader whose bitmap tells whether this group exists.
    pub const fn leader(self) -> GroupIndex {
        Self(self.0 - self.0 % LEADER_SPAN)
    }

    /// Place of the group in its leader's bitmap, `0..2048`.
    pub const fn bit(self) -> usize {
        (self.0 % LEADER_SPAN) as usize
    }
}

/// How many groups a grouped file of `plain_len` bytes spans.
pub const fn groups_in(plain_len: u64) -> u64 {
    plain_len.div_ceil(GROUP_PLAIN)
}

/// Whether a file of `plain_len` bytes is kept inline.
pub const fn is_inline(plain_len: u64) -> bool {
    plain_len <= INLINE_MAX
}

/// Length of the lower file for a plaintext length.
pub const fn disk_len(plain_len: u64) -> u64 {
    if is_inline(plain_len) { plain_len + 32 } else { plain_len + BLOCK_U64 * groups_in(plain_len) }
}

/// Plaintext length for the length of a lower file, as `stat` shows it without any key.
///
/// `None` for a length that no complete file has: shorter than an inline head, or cut inside a map page or
/// before a group's first byte. Such a file is damaged, or a crash left it; opening it tells which.
pub const fn plain_len(disk_len: u64) -> Option<u64> {
    if disk_len < 32 {
        return None;
    }
    if disk_len <= BLOCK_U64 {
        return Some(disk_len - 32);
    }
    let groups = disk_len.div_ceil(GROUP_DISK);
    let last = disk_len - (groups - 1) * GROUP_DISK;
    let plain = disk_len - groups * BLOCK_U64;
    if last <= BLOCK_U64 || is_inline(plain) { None } else { Some(plain) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every length below three groups, one by one: `disk_len` has an inverse, and it is `plain_len`, exactly.
    #[test]
    fn lengths_map_one_to_one_around_the_first_groups() {
        let mut next = 0;
        for disk in 0..3 * GROUP_DISK {
            if let Some(plain) = plain_len(disk) {
                assert_eq!(plain, next, "no plaintext length may be left out");
                assert_eq!(disk_len(plain), disk);
                next += 1;
            }
        }
        assert_eq!(next, 3 * GROUP_PLAIN);
    }

    #[test]
    fn lengths_that_no_file_has_are_refused() {
        for disk in [0, 1, 31, 4097, 8160, GROUP_DISK + 1, GROUP_DISK + BLOCK_U64, 7 * GROUP_DISK + 4000] {
            assert_eq!(plain_len(disk), None, "{disk}");
        }
        assert_eq!(plain_len(32), Some(0));
        assert_eq!(plain_len(4096), Some(INLINE_MAX));
        assert_eq!(plain_len(8161), Some(INLINE_MAX + 1));
        assert_eq!(plain_len(GROUP_DISK + BLOCK_U64 + 1), Some(GROUP_PLAIN + 1));
    }

    proptest! {
        #[test]
        fn lengths_map_one_to_one_up_to_the_longest_file(plain in 0..=MAX_PLAIN_LEN) {
            prop_assert_eq!(plain_len(disk_len(plain)), Some(plain));
        }

        #[test]
        fn any_length_of_a_lower_file_is_safe_to_ask_about(disk in any::<u64>()) {
            if let Some(plain) = plain_len(disk) {
                prop_assert_eq!(disk_len(plain), disk);
            }
        }

        /// No two of map pages and blocks share a byte, and none lies behind the end of the file.
        #[test]
        fn blocks_and_map_pages_are_disjoint(block in 0..MAX_PLAIN_LEN / BLOCK_U64 - 1) {
            let (this, next) = (BlockIndex(block), BlockIndex(block + 1));
            let page = this.group().disk_start();
            prop_assert!(page + BLOCK_U64 <= this.disk_start());
            prop_assert_eq!(this.disk_start() % BLOCK_U64, 0);
            let gap = if next.slot() == 0 { BLOCK_U64 } else { 0 };
            prop_assert_eq!(this.disk_start() + BLOCK_U64 + gap, next.disk_start());
            let plain = next.plain_start().max(INLINE_MAX + 1);
            let last = BlockIndex::of(plain - 1);
            prop_assert_eq!(last.disk_start() + last.len_in(plain) as u64, disk_len(plain));
        }

        #[test]
        fn an_offset_lies_in_its_block_and_the_block_in_its_group(off in 0..MAX_PLAIN_LEN) {
            let (block, group) = (BlockIndex::of(off), GroupIndex::of(off));
            prop_assert!(block.plain_start() <= off && off - block.plain_start() < BLOCK_U64);
            prop_assert_eq!(block.group(), group);
            prop_assert_eq!(group.first_block().0 + block.slot() as u64, block.0);
            prop_assert!(group.leader().is_leader() && group.leader().0 + group.bit() as u64 == group.0);
        }
    }
}
