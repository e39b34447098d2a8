//! What files and names must hold, given what was asked and what was acknowledged.

use std::collections::BTreeSet;

use gannet_proto::Handle;

use crate::pattern::{GRANULE_BYTES, Random, stamp, version};

/// What is known of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    UnderWay,
    Acknowledged,
    /// It ended with an error that says that it may have taken effect, or still may.
    InDoubt,
}

/// A write that was started.
#[derive(Clone, Copy, Debug)]
struct Write {
    version: u32,
    start: u32,
    count: u32,
    progress: Progress,
}

impl Write {
    fn end(&self) -> u32 {
        self.start + self.count
    }

    fn covers(&self, granule: u32) -> bool {
        (self.start..self.end()).contains(&granule)
    }
}

/// A read that was started.
#[derive(Debug)]
pub(crate) struct Read {
    start: u32,
    /// What was acknowledged when it began, by granule.
    floors: Vec<u32>,
}

/// A file. Versions rise with each write of it.
#[derive(Debug)]
pub(crate) struct FileModel {
    pub(crate) index: u32,
    pub(crate) handle: Handle,
    /// By granule, the version that was acknowledged last.
    acknowledged: Vec<u32>,
    last_version: u32,
    /// Writes under way or in doubt, and those that some read under way may have seen half.
    writes: Vec<Write>,
    /// Versions of writes that took no effect: they must never be seen.
    void: BTreeSet<u32>,
    reads: usize,
}

impl FileModel {
    pub(crate) fn new(index: u32, handle: Handle, granules: u32) -> FileModel {
        FileModel {
            index,
            handle,
            acknowledged: vec![0; granules as usize],
            last_version: 0,
            writes: Vec::new(),
            void: BTreeSet::new(),
            reads: 0,
        }
    }

    pub(crate) fn granules(&self) -> u32 {
        self.acknowledged.len() as u32
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.acknowledged.len() as u64 * GRANULE_BYTES as u64
    }

    /// Blocks of `block_granules` granules in which something was written.
    pub(crate) fn blocks(&self, block_granules: u32) -> u64 {
        let blocks = self.acknowledged.chunks(block_granules as usize);
        blocks.filter(|granules| granules.iter().any(|version| *version > 0)).count() as u64
    }

    /// Starts a write and stamps its bytes; `None` if one of the same place is under way.
    pub(crate) fn begin_write(&mut self, start: u32, count: u32, into: &mut [u8]) -> Option<u32> {
        let overlaps = |write: &Write| {
            let is_under_way = write.progress == Progress::UnderWay;
            is_under_way && write.start < start + count && start < write.end()
        };
        if self.writes.iter().any(overlaps) {
            return None;
        }
        self.last_version += 1;
        let version = self.last_version;
        for (granule, bytes) in (start..start + count).zip(into.chunks_exact_mut(GRANULE_BYTES)) {
            stamp(bytes, self.index, granule, version);
        }
        self.writes.push(Write { version, start, count, progress: Progress::UnderWay });
        Some(version)
    }

    /// A write was acknowledged.
    pub(crate) fn end_write(&mut self, version: u32, bytes: u32) {
        let write = self.under_way(version);
        write.progress = Progress::Acknowledged;
        assert_eq!(bytes, write.count * GRANULE_BYTES as u32, "a write is done as a whole");
        let range = write.start as usize..write.end() as usize;
        self.acknowledged[range].fill(version);
        self.forget();
    }

    /// A write failed. It may have taken effect, or still may, if `in_doubt`.
    pub(crate) fn fail_write(&mut self, version: u32, in_doubt: bool) {
        if in_doubt {
            self.under_way(version).progress = Progress::InDoubt;
        } else {
            self.writes.retain(|write| write.version != version);
            self.void.insert(version);
        }
    }

    fn under_way(&mut self, version: u32) -> &mut Write {
        let wanted =
            |write: &&mut Write| write.version == version && write.progress == Progress::UnderWay;
        self.writes.iter_mut().find(wanted).expect("a write ends once")
    }

    /// Whether a write in doubt may have left this version here.
    fn is_in_doubt(&self, granule: u32, version: u32) -> bool {
        self.writes.iter().any(|write| {
            write.progress == Progress::InDoubt && write.version == version && write.covers(granule)
        })
    }

    /// Starts a read.
    pub(crate) fn begin_read(&mut self, start: u32, count: u32) -> Read {
        self.reads += 1;
        let range = start as usize..(start + count) as usize;
        Read { start, floors: self.acknowledged[range].to_vec() }
    }

    /// Checks what a read returned.
    pub(crate) fn end_read(&mut self, read: &Read, bytes: &[u8]) {
        assert!(!bytes.is_empty() && bytes.len().is_multiple_of(GRANULE_BYTES), "{}", bytes.len());
        let seen: Vec<u32> = (read.start..)
            .zip(bytes.chunks_exact(GRANULE_BYTES))
            .map(|(granule, bytes)| {
                version(bytes, self.index, granule).unwrap_or_else(|what| panic!("{what}"))
            })
            .collect();
        for (granule, (seen, floor)) in (read.start..).zip(seen.iter().zip(&read.floors)) {
            let is_possible = seen >= floor && *seen <= self.last_version;
            assert!(
                is_possible || self.is_in_doubt(granule, *seen),
                "file {} granule {granule}: read version {seen}, but {floor} was acknowledged \
                 before the read, and {} is the last",
                self.index,
                self.last_version
            );
            assert!(
                !self.void.contains(seen),
                "file {} granule {granule}: read version {seen}, whose write took no effect",
                self.index
            );
        }
        for write in &self.writes {
            self.check_whole(write, read.start, &seen);
        }
        self.reads -= 1;
        self.forget();
    }

    /// A read failed.
    pub(crate) fn fail_read(&mut self) {
        self.reads -= 1;
        self.forget();
    }

    /// A read sees all of a write or nothing: what is newer may lie over it. A write in doubt may
    /// take effect after newer ones, and it is seen where its own version is.
    fn check_whole(&self, write: &Write, start: u32, seen: &[u32]) {
        let end = start + seen.len() as u32;
        let (from, to) = (write.start.max(start), write.end().min(end));
        if from >= to {
            return;
        }
        let common = &seen[(from - start) as usize..(to - start) as usize];
        if write.progress == Progress::InDoubt && !common.contains(&write.version) {
            return;
        }
        // What another write in doubt left may be above it or below.
        let tells = |(granule, version): &(u32, &u32)| {
            **version == write.version || !self.is_in_doubt(*granule, **version)
        };
        let telling = (from..to).zip(common).filter(tells).map(|(_, version)| *version);
        let telling: Vec<u32> = telling.collect();
        let newer = telling.iter().filter(|version| **version >= write.version).count();
        assert!(
            newer == 0 || newer == telling.len(),
            "file {}: of the write of version {} to granules {}..{} a read saw {newer} of {}: \
             {common:?}",
            self.index,
            write.version,
            write.start,
            write.end(),
            telling.len()
        );
    }

    fn forget(&mut self) {
        if self.reads == 0 {
            self.writes.retain(|write| write.progress != Progress::Acknowledged);
        }
    }

    /// Checks all of the file when nothing is under way, and decides what became of the writes in
    /// doubt: what has left no trace by now never will. Returns how many have.
    pub(crate) fn decide(&mut self, bytes: &[u8]) -> u64 {
        let under_way = |write: &Write| write.progress == Progress::UnderWay;
        assert!(self.reads == 0 && !self.writes.iter().any(under_way), "nothing is under way");
        let seen = self.versions(bytes);
        for write in &self.writes {
            self.check_whole(write, 0, &seen);
        }
        for (granule, seen) in (0..).zip(&seen) {
            if !self.is_in_doubt(granule, *seen) {
                self.check_granule(granule, *seen);
            }
        }
        let (applied, void): (Vec<Write>, Vec<Write>) = self.writes.drain(..).partition(|write| {
            let range = write.start as usize..write.end() as usize;
            seen[range].contains(&write.version)
        });
        self.void.extend(void.iter().map(|write| write.version));
        self.acknowledged = seen;
        applied.len() as u64
    }

    /// Checks all of the file when nothing is under way or in doubt.
    pub(crate) fn check_final(&self, bytes: &[u8]) {
        assert!(self.reads == 0 && self.writes.is_empty(), "nothing is under way");
        for (granule, seen) in (0..).zip(self.versions(bytes)) {
            self.check_granule(granule, seen);
        }
    }

    fn versions(&self, bytes: &[u8]) -> Vec<u32> {
        let granules = (0..).zip(bytes.chunks_exact(GRANULE_BYTES));
        let seen: Vec<u32> = granules
            .map(|(granule, bytes)| {
                version(bytes, self.index, granule).unwrap_or_else(|what| panic!("{what}"))
            })
            .collect();
        assert_eq!(seen.len(), self.acknowledged.len(), "all of the file");
        seen
    }

    fn check_granule(&self, granule: u32, seen: u32) {
        let acknowledged = self.acknowledged[granule as usize];
        let (file, last) = (self.index, self.last_version);
        assert_eq!(
            seen, acknowledged,
            "file {file} granule {granule} holds another version than was acknowledged last (of \
             {last})"
        );
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NameState {
    Absent,
    Present,
    /// A request that changes it is under way.
    Changing,
    /// Such a request failed, and may have taken effect, or still may.
    InDoubt,
}

/// Names in one directory.
#[derive(Debug)]
pub(crate) struct Names(Vec<NameState>);

impl Names {
    pub(crate) fn new(count: u32) -> Names {
        Names(vec![NameState::Absent; count as usize])
    }

    pub(crate) fn text(name: u32) -> String {
        format!("name-{name:03}")
    }

    /// A name that no request is about, and whether it exists; it is being changed from now on.
    pub(crate) fn choose(&mut self, random: &mut Random) -> Option<(u32, bool)> {
        let name = random.below(self.0.len() as u64) as u32;
        let is_known = matches!(self.0[name as usize], NameState::Present | NameState::Absent);
        is_known.then(|| {
            let state = std::mem::replace(&mut self.0[name as usize], NameState::Changing);
            (name, state == NameState::Present)
        })
    }

    pub(crate) fn in_doubt(&mut self, name: u32) {
        self.0[name as usize] = NameState::InDoubt;
    }

    pub(crate) fn created(&mut self, name: u32) {
        self.0[name as usize] = NameState::Present;
    }

    pub(crate) fn removed(&mut self, name: u32) {
        self.0[name as usize] = NameState::Absent;
    }

    /// The names that exist.
    pub(crate) fn present(&self) -> Vec<String> {
        let present = (0..).zip(&self.0).filter(|(_, state)| **state == NameState::Present);
        present.map(|(name, _)| Names::text(name)).collect()
    }

    /// Checks a listing when nothing is under way or in doubt.
    pub(crate) fn check(&self, listed: &[Vec<u8>]) {
        assert!(!self.0.contains(&NameState::Changing), "nothing is under way");
        let listed: Vec<String> =
            listed.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        assert_eq!(listed, self.present(), "names that were acknowledged, and no others");
    }

    /// As [`Names::check`]; names in doubt are what the listing says from now on.
    pub(crate) fn decide(&mut self, listed: &[Vec<u8>]) {
        for name in 0..self.0.len() as u32 {
            if self.0[name as usize] == NameState::InDoubt {
                let text = Names::text(name).into_bytes();
                let is_there = listed.contains(&text);
                self.0[name as usize] =
                    if is_there { NameState::Present } else { NameState::Absent };
            }
        }
        self.check(listed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> FileModel {
        FileModel::new(1, Handle::new(gannet_proto::Inode::ROOT), 64)
    }

    fn written(file: &mut FileModel, start: u32, count: u32) -> Vec<u8> {
        let mut bytes = vec![0; count as usize * GRANULE_BYTES];
        let version = file.begin_write(start, count, &mut bytes).expect("nothing is under way");
        file.end_write(version, bytes.len() as u32);
        bytes
    }

    #[test]
    fn reads_of_what_was_acknowledged_pass() {
        let mut file = file();
        let bytes = written(&mut file, 8, 16);
        let read = file.begin_read(8, 16);
        file.end_read(&read, &bytes);
        let mut all = vec![0; 64 * GRANULE_BYTES];
        all[8 * GRANULE_BYTES..24 * GRANULE_BYTES].copy_from_slice(&bytes);
        file.check_final(&all);
        assert_eq!(file.blocks(8), 2);
    }

    #[test]
    #[should_panic(expected = "was acknowledged before the read")]
    fn a_lost_write_is_found() {
        let mut file = file();
        let old = written(&mut file, 8, 16);
        let _new = written(&mut file, 8, 16);
        let read = file.begin_read(8, 16);
        file.end_read(&read, &old);
    }

    #[test]
    #[should_panic(expected = "a read saw 8 of 16")]
    fn half_a_write_is_found() {
        let mut file = file();
        let old = written(&mut file, 8, 16);
        let mut new = vec![0; old.len()];
        let _under_way = file.begin_write(8, 16, &mut new).expect("nothing is under way");
        let read = file.begin_read(8, 16);
        let mut mixed = old;
        mixed[..8 * GRANULE_BYTES].copy_from_slice(&new[..8 * GRANULE_BYTES]);
        file.end_read(&read, &mixed);
    }

    #[test]
    fn writes_under_way_may_be_seen_whole_or_not_at_all() {
        let mut file = file();
        let old = written(&mut file, 8, 16);
        let mut new = vec![0; old.len()];
        let version = file.begin_write(8, 16, &mut new).expect("nothing is under way");
        assert_eq!(file.begin_write(20, 8, &mut [0; 8 * GRANULE_BYTES]), None);
        let (before, after) = (file.begin_read(8, 16), file.begin_read(8, 16));
        file.end_write(version, new.len() as u32);
        file.end_read(&before, &old);
        file.end_read(&after, &new);
        assert!(file.writes.is_empty());
    }

    #[test]
    #[should_panic(expected = "another version than was acknowledged last")]
    fn a_file_that_is_behind_is_found() {
        let mut file = file();
        let _lost = written(&mut file, 0, 64);
        file.check_final(&[0; 64 * GRANULE_BYTES]);
    }

    #[test]
    #[should_panic(expected = "and no others")]
    fn a_lost_name_is_found() {
        let mut names = Names::new(4);
        let mut random = Random::new(1);
        let (name, exists) = names.choose(&mut random).expect("free");
        assert!(!exists);
        names.created(name);
        names.check(&[]);
    }

    #[test]
    fn a_write_in_doubt_may_take_effect_late_and_as_a_whole() {
        let mut file = file();
        let mut doubtful = vec![0; 8 * GRANULE_BYTES];
        let version = file.begin_write(8, 8, &mut doubtful).expect("nothing is under way");
        file.fail_write(version, true);
        // Something newer over one half of it.
        let newer = written(&mut file, 12, 4);
        let mut without = vec![0; 4 * GRANULE_BYTES];
        without.extend_from_slice(&newer);
        let mut below = doubtful[..4 * GRANULE_BYTES].to_vec();
        below.extend_from_slice(&newer);
        for possible in [&without, &below, &doubtful] {
            let read = file.begin_read(8, 8);
            file.end_read(&read, possible);
        }
        let mut all = vec![0; 64 * GRANULE_BYTES];
        all[8 * GRANULE_BYTES..16 * GRANULE_BYTES].copy_from_slice(&doubtful);
        assert_eq!(file.decide(&all), 1);
        file.check_final(&all);
    }

    #[test]
    fn a_write_in_doubt_says_nothing_about_others() {
        let mut file = file();
        let _old = written(&mut file, 0, 16);
        let mut doubtful = vec![0; 8 * GRANULE_BYTES];
        let in_doubt = file.begin_write(8, 8, &mut doubtful).expect("nothing is under way");
        file.fail_write(in_doubt, true);
        let mut newer = vec![0; 16 * GRANULE_BYTES];
        let under_way = file.begin_write(0, 16, &mut newer).expect("nothing is under way");
        let mut seen = vec![0; 16 * GRANULE_BYTES];
        for (granule, bytes) in (0..).zip(seen.chunks_exact_mut(GRANULE_BYTES)) {
            stamp(bytes, 1, granule, if granule < 8 { 1 } else { in_doubt });
        }
        for bytes in [&seen, &newer] {
            let read = file.begin_read(0, 16);
            file.end_read(&read, bytes);
        }
        file.end_write(under_way, newer.len() as u32);
    }

    #[test]
    #[should_panic(expected = "a read saw 4 of 8")]
    fn half_a_write_in_doubt_is_found() {
        let mut file = file();
        let mut doubtful = vec![0; 8 * GRANULE_BYTES];
        let version = file.begin_write(8, 8, &mut doubtful).expect("nothing is under way");
        file.fail_write(version, true);
        doubtful[4 * GRANULE_BYTES..].fill(0);
        let read = file.begin_read(8, 8);
        file.end_read(&read, &doubtful);
    }

    #[test]
    #[should_panic(expected = "whose write took no effect")]
    fn a_write_that_was_decided_and_comes_later_is_found() {
        let mut file = file();
        let mut doubtful = vec![0; 8 * GRANULE_BYTES];
        let version = file.begin_write(8, 8, &mut doubtful).expect("nothing is under way");
        file.fail_write(version, true);
        assert_eq!(file.decide(&[0; 64 * GRANULE_BYTES]), 0);
        let read = file.begin_read(8, 8);
        file.end_read(&read, &doubtful);
    }

    #[test]
    #[should_panic(expected = "whose write took no effect")]
    fn a_write_that_was_said_to_be_void_and_is_there_is_found() {
        let mut file = file();
        let mut bytes = vec![0; 8 * GRANULE_BYTES];
        let version = file.begin_write(8, 8, &mut bytes).expect("nothing is under way");
        file.fail_write(version, false);
        let read = file.begin_read(8, 8);
        file.end_read(&read, &bytes);
    }

    #[test]
    fn a_name_in_doubt_is_left_alone_until_it_is_decided() {
        let mut names = Names::new(1);
        let mut random = Random::new(1);
        assert_eq!(names.choose(&mut random), Some((0, false)));
        names.in_doubt(0);
        assert_eq!(names.choose(&mut random), None);
        names.decide(&[Names::text(0).into_bytes()]);
        assert_eq!(names.choose(&mut random), Some((0, true)));
    }
}
