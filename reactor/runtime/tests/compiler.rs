//! The compiler keeps what the crates of this workspace rely on.
//!
//! rustc 1.95 with optimisation drops a use of a comparison's result that is branched on as well
//! (rust-lang/rust#158206). `tools/rustc-workspace-wrapper` leaves the pass out that does it. Without
//! the wrapper this test fails in an optimised build, and shows nothing in one that is not.

#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    arrived: [u64; 4],
    count: u16,
    total: u16,
}

impl Parts {
    fn insert(&mut self, part: u16) -> bool {
        let (word, bit) = (usize::from(part / 64) % 4, 1_u64 << (part % 64));
        let is_new = self.arrived[word] & bit == 0;
        self.arrived[word] |= bit;
        self.count += u16::from(is_new);
        is_new
    }
}

#[inline(never)]
fn complete(parts: &mut Parts, part: u16, late: &mut u64) -> bool {
    if !parts.insert(part) {
        *late += 1;
        return false;
    }
    parts.count == parts.total
}

#[test]
fn a_comparison_that_is_counted_and_branched_on_is_counted() {
    let mut parts = Parts { total: 2, ..Parts::default() };
    let mut late = 0;
    let part = std::hint::black_box(3);
    assert!(!complete(&mut parts, part, &mut late));
    assert!(!complete(&mut parts, part, &mut late));
    assert!(complete(&mut parts, part + 64, &mut late));
    assert_eq!((parts.count, late), (2, 1));
}
