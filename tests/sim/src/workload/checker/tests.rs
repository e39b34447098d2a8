//! Histories that are fine, and histories that are not.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::workload::history::{Appended, OperationRef};

struct Script(History);

impl Script {
    fn new() -> Script {
        Script(History::new(1))
    }

    fn begin_write(&mut self, offset: u64, end: u64) -> OperationRef {
        self.0.begin(0, 0, What::Write { offset, end })
    }

    fn write(&mut self, offset: u64, end: u64) -> u32 {
        let of = self.begin_write(offset, end);
        self.0.end(of, Outcome::Done);
        of.number
    }

    fn begin_read(&mut self, offset: u64, asked: u32) -> OperationRef {
        let (bytes, end_of_file) = (Vec::new(), false);
        self.0.begin(1, 0, What::Read { offset, asked, bytes, end_of_file })
    }

    fn see(&mut self, of: OperationRef, offset: u64, pieces: &[(u32, u64)], end: bool) {
        let mut seen = Vec::new();
        for (number, len_bytes) in pieces {
            let mut bytes = vec![0; *len_bytes as usize];
            if *number > 0 {
                content::fill(*number, offset + seen.len() as u64, &mut bytes);
            }
            seen.extend(bytes);
        }
        self.0.end_read(of, &seen, end);
    }

    fn read(&mut self, offset: u64, pieces: &[(u32, u64)], end: bool) {
        let asked = pieces.iter().map(|(_, len_bytes)| *len_bytes as u32).sum();
        let of = self.begin_read(offset, asked);
        self.see(of, offset, pieces, end);
    }

    fn verdict(&self) -> Result<(), String> {
        check_file(&self.0, 0)
    }
}

#[test]
fn what_happened_in_order_is_fine() {
    let mut script = Script::new();
    let one = script.write(0, 100);
    script.read(0, &[(one, 100)], true);
    let two = script.write(50, 200);
    script.read(0, &[(one, 50), (two, 150)], true);
    let of = script.0.begin(0, 0, What::Truncate { size: 60 });
    script.0.end(of, Outcome::Done);
    script.read(40, &[(one, 10), (two, 10)], true);
    let three = script.write(100, 120);
    script.read(40, &[(one, 10), (two, 10), (0, 40), (three, 20)], true);
    script.verdict().unwrap();
}

#[test]
fn old_bytes_are_found() {
    let mut script = Script::new();
    let one = script.write(0, 100);
    script.write(50, 100);
    script.read(0, &[(one, 100)], true);
    assert!(script.verdict().unwrap_err().contains("old bytes"));
}

#[test]
fn a_torn_read_is_found() {
    for is_cut_elsewhere in [false, true] {
        let mut script = Script::new();
        if is_cut_elsewhere {
            script.write(50, 60);
        }
        let (one, two) = (script.begin_write(0, 100), script.begin_write(0, 100));
        script.read(0, &[(one.number, 50), (two.number, 50)], true);
        script.0.end(one, Outcome::Done);
        script.0.end(two, Outcome::Done);
        let text = if is_cut_elsewhere { "one after the other" } else { "no write put there" };
        let verdict = script.verdict().unwrap_err();
        assert!(verdict.contains(text), "{verdict}");
    }
}

#[test]
fn two_reads_that_see_two_writes_in_different_orders_are_found() {
    let mut script = Script::new();
    let (one, two) = (script.begin_write(0, 100), script.begin_write(0, 100));
    script.read(0, &[(one.number, 100)], true);
    script.read(0, &[(two.number, 100)], true);
    script.verdict().unwrap();
    script.read(0, &[(one.number, 100)], true);
    assert!(script.verdict().is_err());
}

#[test]
fn an_unknown_write_may_show_late_but_not_vanish_again() {
    let mut script = Script::new();
    let one = script.write(0, 100);
    let lost = script.begin_write(0, 100);
    script.0.end(lost, Outcome::Maybe);
    script.read(0, &[(one, 100)], true);
    script.verdict().unwrap();
    script.read(0, &[(lost.number, 100)], true);
    script.verdict().unwrap();
    script.read(0, &[(one, 100)], true);
    assert!(script.verdict().is_err());
}

#[test]
fn a_failed_write_must_not_show_and_ends_must_be_somebodys() {
    let mut script = Script::new();
    let failed = script.begin_write(0, 100);
    script.0.end(failed, Outcome::Never);
    script.read(0, &[(failed.number, 100)], true);
    assert!(script.verdict().is_err());
    let mut script = Script::new();
    let one = script.write(0, 100);
    script.read(0, &[(one, 60)], true);
    assert!(script.verdict().unwrap_err().contains("found an end"));
}

#[test]
fn a_missing_write_behind_the_end_is_found() {
    let mut script = Script::new();
    let one = script.write(0, 100);
    script.write(100, 200);
    let of = script.begin_read(0, 200);
    script.see(of, 0, &[(one, 100)], true);
    assert!(script.verdict().unwrap_err().contains("old bytes"));
}

#[test]
fn log_records_are_there_once() {
    let append = |number, offset, outcome| Appended { number, len_bytes: 32, offset, outcome };
    let mut history = History::new(0);
    history.appends = vec![
        append(1, Some(0), Outcome::Done),
        append(2, None, Outcome::Maybe),
        append(3, Some(32), Outcome::Done),
    ];
    let content = |numbers: &[u32]| {
        let record = |number: &u32| {
            let mut bytes = vec![0; 32];
            content::fill(*number, 0, &mut bytes);
            bytes
        };
        numbers.iter().flat_map(record).collect::<Vec<u8>>()
    };
    history.log_content = content(&[1, 3]);
    check_log(&history).unwrap();
    history.log_content = content(&[1, 3, 2]);
    check_log(&history).unwrap();
    for wrong in [&[1][..], &[1, 2, 3], &[1, 3, 3], &[1, 3, 2, 2], &[1, 3, 9]] {
        history.log_content = content(wrong);
        assert!(check_log(&history).is_err(), "{wrong:?}");
    }
}
