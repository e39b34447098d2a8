//! The metadata log of one reactor: records in, durable positions out.
//!
//! The log is one file: a superblock, then *frames* one behind the other, each a header and the
//! records of one group commit, padded to whole blocks. Frames are numbered, chained by checksum and
//! written one at a time, so that after a crash whatever follows the first invalid frame was never
//! acknowledged. [`frame`] draws the bytes, [`recovery`] reads them back and
//! [`decision`] says where they end, [`writer`] appends.
//!
//! One reactor owns a log. A crash loses only records whose position was never reported durable.

pub mod decision;
pub mod frame;
pub mod recovery;
pub mod superblock;
pub mod writer;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gannet_disk::ram::RamDisk;
    use gannet_disk::{Completion, Disk, FileId};
    use gannet_meta_core::Lsn;
    use gannet_runtime::time::Time;

    use super::decision::Damage;
    use super::frame::{FRAME_ALIGNMENT, FRAME_BYTES_MAX, Position, seal};
    use super::recovery::{Recovered, Recovery, RecoveryError};
    use super::superblock::{SUPERBLOCK_BYTES, Superblock};
    use super::writer::LogWriter;
    use crate::format;

    const UUID: [u8; 16] = [9; 16];

    fn disk() -> (RamDisk, FileId) {
        let mut disk = RamDisk::new(64).unwrap();
        let file = disk.create(4 << 20, 256 << 20).unwrap();
        let view = disk.resident(file, 0, SUPERBLOCK_BYTES).unwrap();
        format::format_resident(&view, UUID, 0, 1);
        (disk, file)
    }

    fn polled(disk: &mut RamDisk) -> Vec<Completion> {
        let mut completions = Vec::new();
        disk.flush();
        disk.poll(Time::ZERO, &mut completions);
        completions
    }

    fn recover(
        disk: &mut RamDisk,
        file: FileId,
    ) -> Result<(Recovered, Vec<Vec<u8>>), RecoveryError> {
        let mut records = Vec::new();
        let mut recovery = Recovery::new(file).unwrap();
        loop {
            recovery.advance(disk)?;
            for completion in polled(disk) {
                let mut apply = |_: &Superblock, record: &[u8]| {
                    records.push(record.to_vec());
                    Ok(())
                };
                recovery.complete(disk, completion, &mut apply)?;
            }
            if let Some(recovered) = recovery.recovered() {
                return Ok((recovered, records));
            }
        }
    }

    fn commit(writer: &mut LogWriter, disk: &mut RamDisk) {
        writer.commit(disk, false);
        for completion in polled(disk) {
            writer.complete(completion.token, completion.result);
        }
    }

    /// Record `n` is its number in as many bytes as makes it span blocks now and then.
    fn record(n: u64) -> Vec<u8> {
        n.to_le_bytes().repeat(1 + (n as usize * 37) % 900)
    }

    fn write(
        disk: &mut RamDisk,
        file: FileId,
        records: std::ops::RangeInclusive<u64>,
    ) -> LogWriter {
        let (at, _) = recover(disk, file).unwrap();
        let term = at.position.term + 1;
        let mut writer = LogWriter::new(file, UUID, term, at.position, at.offset).unwrap();
        for n in records {
            assert_eq!(writer.append(&record(n)), Lsn(n));
            if n % 3 == 0 {
                commit(&mut writer, disk);
                assert_eq!(writer.durable(), Lsn(n));
            }
        }
        commit(&mut writer, disk);
        assert!(writer.is_idle());
        writer
    }

    #[test]
    fn what_was_durable_is_read_back_over_several_lives() {
        let (mut disk, file) = disk();
        assert_eq!(recover(&mut disk, file).unwrap().1, Vec::<Vec<u8>>::new());
        write(&mut disk, file, 1..=1000);
        write(&mut disk, file, 1001..=1777);
        let (recovered, records) = recover(&mut disk, file).unwrap();
        assert_eq!(records, (1..=1777).map(record).collect::<Vec<_>>());
        assert_eq!((recovered.position.lsn, recovered.position.term), (1777, 2));
    }

    #[test]
    fn a_burst_larger_than_a_frame_is_cut_into_frames() {
        let (mut disk, file) = disk();
        let mut writer =
            LogWriter::new(file, UUID, 1, Position::default(), SUPERBLOCK_BYTES as u64).unwrap();
        let big = vec![7; 300 << 10];
        for _ in 0..20 {
            writer.append(&big);
        }
        assert!(writer.is_behind());
        while !writer.is_idle() {
            commit(&mut writer, &mut disk);
        }
        let (_, records) = recover(&mut disk, file).unwrap();
        assert_eq!(records, vec![big; 20]);
    }

    /// Cuts the last frame off at every block and flips a bit in every block of the log: a torn tail
    /// is forgotten, damage before it is refused, and never is a record lost in silence.
    #[test]
    fn torn_tails_end_the_log_and_damage_inside_is_refused() {
        let (mut disk, file) = disk();
        let mut writer = write(&mut disk, file, 1..=30);
        let (before, _) = recover(&mut disk, file).unwrap();
        for n in 31..=36 {
            writer.append(&record(n));
        }
        commit(&mut writer, &mut disk);
        let (after, _) = recover(&mut disk, file).unwrap();
        let last_frame_bytes = (after.offset - before.offset) as usize;
        let view = disk.resident(file, 0, after.offset as usize).unwrap();
        let mut image = vec![0; after.offset as usize];
        view.copy_out(0, &mut image);

        for kept in (0..last_frame_bytes).step_by(FRAME_ALIGNMENT) {
            let cut = before.offset as usize + kept;
            view.zero(cut, image.len() - cut);
            let (recovered, records) = recover(&mut disk, file).unwrap();
            assert_eq!((recovered, records.len()), (before, 30), "kept {kept} bytes");
            view.copy_in(0, &image);
        }
        let mut refused = 0;
        for block in (SUPERBLOCK_BYTES..before.offset as usize).step_by(FRAME_ALIGNMENT) {
            view.copy_in(block + 20, &[image[block + 20] ^ 4]);
            match recover(&mut disk, file) {
                Err(RecoveryError::Damaged { .. }) => refused += 1,
                // Padding carries nothing.
                Ok((_, records)) => assert_eq!(records.len(), 36, "block {block}"),
                Err(other) => panic!("{other}"),
            }
            view.copy_in(block + 20, &image[block + 20..=block + 20]);
        }
        assert!(refused > 10, "{refused}");
    }

    /// Frames of the longest length follow each other in a burst of small records. Damage to any of
    /// them but the last is refused, wherever reading in windows happens to begin.
    #[test]
    fn damage_in_a_row_of_longest_frames_is_refused() {
        let (mut disk, file) = disk();
        let mut writer =
            LogWriter::new(file, UUID, 1, Position::default(), SUPERBLOCK_BYTES as u64).unwrap();
        for _ in 0..(5 << 20) / 128 {
            writer.append(&[7; 124]);
        }
        let mut starts = vec![SUPERBLOCK_BYTES];
        while !writer.is_idle() {
            commit(&mut writer, &mut disk);
            starts.push(recover(&mut disk, file).unwrap().0.offset as usize);
        }
        let lengths: Vec<usize> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(lengths.len() > 4 && lengths[..4] == [FRAME_BYTES_MAX; 4], "{lengths:?}");
        let view = disk.resident(file, 0, starts[starts.len() - 1]).unwrap();
        for start in &starts[..starts.len() - 2] {
            for place in [start + 20, start + 9000] {
                let mut byte = [0];
                view.copy_out(place, &mut byte);
                view.copy_in(place, &[byte[0] ^ 4]);
                let found = recover(&mut disk, file);
                assert!(matches!(found, Err(RecoveryError::Damaged { .. })), "at byte {place}");
                view.copy_in(place, &byte);
            }
        }
    }

    /// A log of `frames` frames of one block, and where each begins.
    fn short_frames(frames: u64) -> (RamDisk, FileId, Vec<usize>) {
        let (mut disk, file) = disk();
        let mut writer =
            LogWriter::new(file, UUID, 1, Position::default(), SUPERBLOCK_BYTES as u64).unwrap();
        for n in 1..=frames {
            writer.append(&n.to_le_bytes());
            commit(&mut writer, &mut disk);
        }
        let starts = (0..frames as usize).map(|n| SUPERBLOCK_BYTES + n * FRAME_ALIGNMENT);
        (disk, file, starts.collect())
    }

    fn damage(disk: &mut RamDisk, file: FileId) -> Damage {
        match recover(disk, file) {
            Err(RecoveryError::Damaged { damage, .. }) => damage,
            other => panic!("{other:?}"),
        }
    }

    /// However much of a log is wiped out, it is not taken for the log's end as long as a single
    /// frame lies behind it: up to the last frame of the file.
    #[test]
    fn damage_of_any_length_is_refused() {
        let (mut disk, file, starts) = short_frames(1500);
        let last = starts[starts.len() - 1];
        let view = disk.resident(file, 0, last + FRAME_ALIGNMENT).unwrap();
        let mut image = vec![0; last + FRAME_ALIGNMENT];
        view.copy_out(0, &mut image);
        for frames in [1, 200, 255, 256, 257, 511, 512, 513, 1000, 1489] {
            view.zero(starts[10], frames * FRAME_ALIGNMENT);
            let (number, at) = (frames as u64 + 11, starts[10 + frames] as u64);
            let found = damage(&mut disk, file);
            assert_eq!(found, Damage::FrameLost { number, at }, "{frames} frames");
            view.copy_in(0, &image);
        }
        view.zero(starts[10], last + FRAME_ALIGNMENT - starts[10]);
        assert_eq!(recover(&mut disk, file).unwrap().1.len(), 10, "nothing tells of the rest");
    }

    /// Each way in which a medium betrays a log that was durable, and what recovery calls it.
    #[test]
    fn lost_misdirected_and_old_frames_are_told_from_the_end() {
        let (mut disk, file, starts) = short_frames(600);
        let bytes = starts[599] + 4 * FRAME_ALIGNMENT;
        let view = disk.resident(file, 0, bytes).unwrap();
        let mut image = vec![0; bytes];
        view.copy_out(0, &mut image);
        let of = |n: usize| &image[starts[n - 1]..starts[n - 1] + FRAME_ALIGNMENT];
        let at = |n: usize| starts[n - 1];
        let end = at(600) + FRAME_ALIGNMENT;

        // A lost write: frame 20 was acknowledged and is not there.
        view.zero(at(20), FRAME_ALIGNMENT);
        let lost = Damage::FrameLost { number: 21, at: at(21) as u64 };
        assert_eq!(damage(&mut disk, file), lost);
        // It went astray and lies over another frame, before or behind.
        view.copy_in(at(10), of(20));
        assert_eq!(damage(&mut disk, file), Damage::LaterFrame);
        view.copy_in(0, &image);
        view.copy_in(at(20), of(10));
        assert_eq!(damage(&mut disk, file), Damage::OlderFrame);
        view.copy_in(0, &image);
        // The last frame lies behind its place, or an old one lies behind the end.
        view.zero(at(600), FRAME_ALIGNMENT);
        view.copy_in(end + FRAME_ALIGNMENT, of(600));
        let lost = Damage::FrameLost { number: 600, at: (end + FRAME_ALIGNMENT) as u64 };
        assert_eq!(damage(&mut disk, file), lost);
        view.copy_in(end + FRAME_ALIGNMENT, of(7));
        let astray = Damage::Astray { number: 7, at: (end + FRAME_ALIGNMENT) as u64 };
        assert_eq!(damage(&mut disk, file), astray);
        view.copy_in(0, &image);
        // A frame of the right number from another history of the same file system.
        let mut other = vec![0; FRAME_ALIGNMENT];
        let before = Position { number: 19, lsn: 19, crc32c: 1, term: 1 };
        seal(&mut other, before, 1, UUID, 0, 0);
        view.copy_in(at(20), &other);
        assert_eq!(damage(&mut disk, file), Damage::OtherHistory);
        view.copy_in(0, &image);
        // A frame of another file system is nothing at all.
        seal(&mut other, Position { number: 600, lsn: 600, crc32c: 1, term: 1 }, 1, [1; 16], 0, 0);
        view.copy_in(end, &other);
        assert_eq!(recover(&mut disk, file).unwrap().1.len(), 600);
    }
}
