//! Routines that copy whole cache lines between mappings, for finding out which one a machine runs
//! fastest.
//!
//! What a processor copies fastest by depends on its model and on the length: the library's
//! `memcpy`, one `rep movsb`, or vector loads with ordinary or with non-temporal stores. A
//! [`Copier`] is one of them, known to run on this machine because only [`Copier::available`] makes
//! them. All of them leave the same bytes, and those bytes are visible to whoever sees a later store
//! of the same thread: routines with non-temporal stores end in a store fence.
//!
//! [`prefetch`] hides what a copy of a few kilobytes from cold memory mostly consists of, the wait
//! for its first lines, for those who know early what they will copy next.
//!
//! Any thread may use a copier; it has no state.

use crate::memory::Mapping;

/// Unit of lengths, bytes: the longest step of a routine.
pub const UNIT_BYTES: usize = 256;
/// Alignment of offsets, bytes: the widest vector, and a cache line.
pub const ALIGNMENT_BYTES: usize = 64;

/// What [`prefetch`] asks for at most, bytes. A processor that sees so many lines in a row fetches
/// the rest by itself; asking for all of a block takes as long as it saves.
pub const PREFETCH_BYTES: usize = 512;

/// Has the processor fetch the beginning of a range, of which it need not wait for the end. Changes
/// no content. A range that leaves the mapping is none.
#[inline]
pub fn prefetch(mapping: &Mapping, offset: usize, len_bytes: usize) {
    let inside = offset.checked_add(len_bytes).is_some_and(|end| end <= mapping.len());
    if !inside {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    for at in (0..len_bytes.min(PREFETCH_BYTES)).step_by(ALIGNMENT_BYTES) {
        let line = mapping.base().wrapping_add(offset + at);
        // SAFETY: a hint that accesses no memory as far as the program can tell, wherever it points.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast())
        };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Routine {
    Memcpy,
    #[cfg(target_arch = "x86_64")]
    RepMovsb,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx2Streaming,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Streaming,
}

/// A routine that this machine can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copier(Routine);

impl Copier {
    /// The library's routine, which every machine has.
    pub const MEMCPY: Copier = Copier(Routine::Memcpy);

    /// All routines that this machine can run.
    #[must_use]
    pub fn available() -> Vec<Copier> {
        let mut copiers = vec![Copier::MEMCPY];
        #[cfg(target_arch = "x86_64")]
        {
            copiers.push(Copier(Routine::RepMovsb));
            if is_x86_feature_detected!("avx2") {
                copiers.extend([Copier(Routine::Avx2), Copier(Routine::Avx2Streaming)]);
            }
            if is_x86_feature_detected!("avx512f") {
                copiers.extend([Copier(Routine::Avx512), Copier(Routine::Avx512Streaming)]);
            }
        }
        copiers
    }

    /// What to call it in a report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Routine::Memcpy => "memcpy",
            #[cfg(target_arch = "x86_64")]
            Routine::RepMovsb => "rep-movsb",
            #[cfg(target_arch = "x86_64")]
            Routine::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Routine::Avx2Streaming => "avx2-streaming",
            #[cfg(target_arch = "x86_64")]
            Routine::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Routine::Avx512Streaming => "avx512-streaming",
        }
    }

    /// Copies `len_bytes` from `from[from_offset..]` to `to[to_offset..]`.
    ///
    /// # Panics
    /// If a range leaves its mapping, if both mappings are the same and the ranges overlap, if an
    /// offset is no multiple of [`ALIGNMENT_BYTES`] or the length none of [`UNIT_BYTES`].
    pub fn copy(
        self,
        from: &Mapping,
        from_offset: usize,
        to: &Mapping,
        to_offset: usize,
        len_bytes: usize,
    ) {
        let source = checked(from, from_offset, len_bytes);
        let destination = checked(to, to_offset, len_bytes);
        let distance = (source as usize).abs_diff(destination as usize);
        assert!(distance >= len_bytes, "the ranges of a copy overlap");
        self.copy_checked(source, destination, len_bytes);
    }

    /// `from` and `to` were checked by [`checked`] for `len_bytes`, and do not overlap.
    fn copy_checked(self, from: *const u8, to: *mut u8, len_bytes: usize) {
        match self.0 {
            Routine::Memcpy => {
                // SAFETY: both ranges were checked to lie in live mappings and to be distinct.
                unsafe { std::ptr::copy_nonoverlapping(from, to, len_bytes) }
            }
            #[cfg(target_arch = "x86_64")]
            Routine::RepMovsb => {
                // SAFETY: as for memcpy.
                unsafe { x86::rep_movsb(from, to, len_bytes) }
            }
            #[cfg(target_arch = "x86_64")]
            Routine::Avx2 => {
                // SAFETY: as for memcpy; the ranges are aligned, and the value exists only where
                // the instructions do.
                unsafe { x86::avx2(from, to, len_bytes) }
            }
            #[cfg(target_arch = "x86_64")]
            Routine::Avx2Streaming => {
                // SAFETY: as for `Avx2`.
                unsafe { x86::avx2_streaming(from, to, len_bytes) }
            }
            #[cfg(target_arch = "x86_64")]
            Routine::Avx512 => {
                // SAFETY: as for `Avx2`.
                unsafe { x86::avx512(from, to, len_bytes) }
            }
            #[cfg(target_arch = "x86_64")]
            Routine::Avx512Streaming => {
                // SAFETY: as for `Avx2`.
                unsafe { x86::avx512_streaming(from, to, len_bytes) }
            }
        }
    }
}

/// First address of a range that was checked to be aligned and inside its mapping.
fn checked(mapping: &Mapping, offset: usize, len_bytes: usize) -> *mut u8 {
    assert!(
        offset.is_multiple_of(ALIGNMENT_BYTES) && len_bytes.is_multiple_of(UNIT_BYTES),
        "copy of {len_bytes} bytes at {offset} is not aligned"
    );
    let inside = offset.checked_add(len_bytes).is_some_and(|end| end <= mapping.len());
    assert!(inside, "range {offset}+{len_bytes} leaves a mapping of {} bytes", mapping.len());
    mapping.base().wrapping_add(offset)
}

/// The routines of this processor family. All share one contract: `from` and `to` are addresses of
/// `len_bytes` readable and writable bytes that do not overlap, multiples of [`ALIGNMENT_BYTES`];
/// `len_bytes` is a multiple of [`UNIT_BYTES`]; the processor has the instructions.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::{
        __m256i, __m512i, _mm_sfence, _mm256_load_si256, _mm256_setzero_si256, _mm256_store_si256,
        _mm256_stream_si256, _mm512_load_si512, _mm512_setzero_si512, _mm512_store_si512,
        _mm512_stream_si512,
    };

    use super::UNIT_BYTES;

    const LANE_256: usize = size_of::<__m256i>();
    const LANE_512: usize = size_of::<__m512i>();

    pub(super) unsafe fn rep_movsb(from: *const u8, to: *mut u8, len_bytes: usize) {
        // SAFETY: the contract of this module; the direction flag is clear by the calling
        // convention, and the instruction changes no other.
        unsafe {
            asm!(
                "rep movsb",
                inout("rcx") len_bytes => _,
                inout("rsi") from => _,
                inout("rdi") to => _,
                options(nostack, preserves_flags)
            );
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2(from: *const u8, to: *mut u8, len_bytes: usize) {
        for at in (0..len_bytes).step_by(UNIT_BYTES) {
            // SAFETY: one unit of the caller's range.
            let unit = unsafe { load_256(from.wrapping_add(at)) };
            for (lane, value) in unit.into_iter().enumerate() {
                let to = to.wrapping_add(at + lane * LANE_256);
                // SAFETY: inside the unit, aligned to the lane.
                unsafe { _mm256_store_si256(to.cast(), value) };
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn avx2_streaming(from: *const u8, to: *mut u8, len_bytes: usize) {
        for at in (0..len_bytes).step_by(UNIT_BYTES) {
            // SAFETY: one unit of the caller's range.
            let unit = unsafe { load_256(from.wrapping_add(at)) };
            for (lane, value) in unit.into_iter().enumerate() {
                let to = to.wrapping_add(at + lane * LANE_256);
                // SAFETY: inside the unit, aligned to the lane; the fence below follows.
                unsafe { _mm256_stream_si256(to.cast(), value) };
            }
        }
        _mm_sfence();
    }

    #[target_feature(enable = "avx2")]
    unsafe fn load_256(from: *const u8) -> [__m256i; UNIT_BYTES / LANE_256] {
        let mut unit = [_mm256_setzero_si256(); UNIT_BYTES / LANE_256];
        for (lane, value) in unit.iter_mut().enumerate() {
            let from = from.wrapping_add(lane * LANE_256);
            // SAFETY: inside the unit that the caller named, aligned to the lane.
            *value = unsafe { _mm256_load_si256(from.cast()) };
        }
        unit
    }

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(from: *const u8, to: *mut u8, len_bytes: usize) {
        for at in (0..len_bytes).step_by(UNIT_BYTES) {
            // SAFETY: one unit of the caller's range.
            let unit = unsafe { load_512(from.wrapping_add(at)) };
            for (lane, value) in unit.into_iter().enumerate() {
                let to = to.wrapping_add(at + lane * LANE_512);
                // SAFETY: inside the unit, aligned to the lane.
                unsafe { _mm512_store_si512(to.cast(), value) };
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512_streaming(from: *const u8, to: *mut u8, len_bytes: usize) {
        for at in (0..len_bytes).step_by(UNIT_BYTES) {
            // SAFETY: one unit of the caller's range.
            let unit = unsafe { load_512(from.wrapping_add(at)) };
            for (lane, value) in unit.into_iter().enumerate() {
                let to = to.wrapping_add(at + lane * LANE_512);
                // SAFETY: inside the unit, aligned to the lane; the fence below follows.
                unsafe { _mm512_stream_si512(to.cast(), value) };
            }
        }
        _mm_sfence();
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn load_512(from: *const u8) -> [__m512i; UNIT_BYTES / LANE_512] {
        let mut unit = [_mm512_setzero_si512(); UNIT_BYTES / LANE_512];
        for (lane, value) in unit.iter_mut().enumerate() {
            let from = from.wrapping_add(lane * LANE_512);
            // SAFETY: inside the unit that the caller named, aligned to the lane.
            *value = unsafe { _mm512_load_si512(from.cast()) };
        }
        unit
    }
}

#[cfg(all(test, not(loom)))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::memory::PAGE_BYTES;

    #[test]
    fn every_routine_moves_exactly_its_range() {
        let from = Mapping::anonymous(4 * PAGE_BYTES).unwrap();
        let bytes: Vec<u8> = (0..4 * PAGE_BYTES).map(|at| (at % 251) as u8 + 1).collect();
        from.copy_in(0, &bytes);
        let copiers = Copier::available();
        assert_eq!(copiers[0], Copier::MEMCPY);
        for copier in copiers {
            for (from_offset, to_offset, len) in [
                (0, 0, 4 * PAGE_BYTES),
                (64, 192, UNIT_BYTES),
                (3 * PAGE_BYTES, 64, PAGE_BYTES),
                (0, 0, 0),
            ] {
                let to = Mapping::shareable(4 * PAGE_BYTES).unwrap();
                copier.copy(&from, from_offset, &to, to_offset, len);
                let mut seen = vec![0; 4 * PAGE_BYTES];
                to.copy_out(0, &mut seen);
                let mut expected = vec![0; 4 * PAGE_BYTES];
                expected[to_offset..to_offset + len]
                    .copy_from_slice(&bytes[from_offset..from_offset + len]);
                assert!(seen == expected, "{} {from_offset} {to_offset} {len}", copier.name());
            }
        }
    }

    /// That it changes nothing and takes any range is all that can be seen of a hint.
    #[test]
    fn a_prefetch_changes_nothing_wherever_it_points() {
        let mapping = Mapping::anonymous(PAGE_BYTES).unwrap();
        mapping.copy_in(0, &[7; PAGE_BYTES]);
        for (offset, len) in
            [(0, PAGE_BYTES), (PAGE_BYTES - 1, 1), (PAGE_BYTES, 1), (usize::MAX, 2), (0, 0)]
        {
            prefetch(&mapping, offset, len);
        }
        let mut seen = [0; PAGE_BYTES];
        mapping.copy_out(0, &mut seen);
        assert_eq!(seen, [7; PAGE_BYTES]);
    }

    #[test]
    fn what_is_outside_unaligned_or_overlapping_is_refused() {
        let (one, other) = (
            Mapping::anonymous(2 * PAGE_BYTES).unwrap(),
            Mapping::anonymous(2 * PAGE_BYTES).unwrap(),
        );
        for copier in Copier::available() {
            let refuses = |to: &Mapping, from_offset, to_offset, len| {
                let copy = || copier.copy(&one, from_offset, to, to_offset, len);
                catch_unwind(AssertUnwindSafe(copy)).is_err()
            };
            assert!(refuses(&other, PAGE_BYTES, 0, 2 * PAGE_BYTES), "leaves the source");
            assert!(refuses(&other, 0, PAGE_BYTES, 2 * PAGE_BYTES), "leaves the destination");
            assert!(refuses(&other, usize::MAX - 63, 0, PAGE_BYTES), "overflows");
            assert!(refuses(&other, 32, 0, UNIT_BYTES), "unaligned source");
            assert!(refuses(&other, 0, 32, UNIT_BYTES), "unaligned destination");
            assert!(refuses(&other, 0, 0, UNIT_BYTES + 64), "unaligned length");
            assert!(refuses(&one, 0, PAGE_BYTES - 64, PAGE_BYTES), "overlap");
            assert!(!refuses(&one, 0, PAGE_BYTES, PAGE_BYTES), "neighbours");
        }
    }
}
