//! The addresses of servers, as messages carry them in their tails.
//!
//! A server has one address per fabric that it can be reached over, or several. The first one
//! stands where the first version of the protocol had the only one; *further* ones follow at the
//! tail's end, where a reader that does not know them skips them. What is an address only a fabric
//! knows: here it is a text of bounded length.

use core::mem::size_of;

use zerocopy::little_endian::U16;

use crate::handshake::split_tail;
use crate::limits::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, REACTORS_MAX};
use crate::packet::{DecodeError, Message};

/// Checks an address's bytes.
///
/// # Errors
/// `Field` naming `address` of `T` when they are not UTF-8.
pub fn text_of<T: Message>(bytes: &[u8]) -> Result<&str, DecodeError> {
    core::str::from_utf8(bytes).map_err(|_| DecodeError::Field {
        message: T::NAME,
        field: "address",
        value: bytes.len() as u64,
    })
}

/// Takes an address off the front of a tail: its length in two bytes, and its text.
///
/// # Errors
/// `Field` naming `address` of `T`.
pub fn split_text<T: Message>(tail: &[u8]) -> Result<(&str, &[u8]), DecodeError> {
    let (length, rest) = split_tail::<T>(tail, "address", size_of::<U16>(), size_of::<U16>())?;
    let len_bytes = u16::from_le_bytes([length[0], length[1]]);
    let (bytes, rest) = split_tail::<T>(rest, "address", len_bytes.into(), ADDRESS_BYTES_MAX)?;
    Ok((text_of::<T>(bytes)?, rest))
}

/// Takes the `count` further addresses of one server off the front of a tail.
///
/// # Errors
/// `Field` naming `address` or `further_addresses` of `T`.
pub fn split_further<'a, T: Message>(
    tail: &'a [u8],
    count: u16,
    mut each: impl FnMut(&'a str),
) -> Result<&'a [u8], DecodeError> {
    if usize::from(count) >= ADDRESSES_MAX {
        return Err(too_many::<T>(count));
    }
    let mut rest = tail;
    for _ in 0..count {
        let (text, after) = split_text::<T>(rest)?;
        each(text);
        rest = after;
    }
    Ok(rest)
}

/// Takes the addresses of `reactors` metadata-server reactors off the front of a tail: first one of
/// each, then `further` ones, each behind the number of its reactor in two bytes.
///
/// # Errors
/// `Field` naming `reactors`, `address` or `further_addresses` of `T`.
pub fn split_reactors<'a, T: Message>(
    tail: &'a [u8],
    reactors: u16,
    further: u16,
    mut each: impl FnMut(u16, &'a str),
) -> Result<&'a [u8], DecodeError> {
    let field = |field, value: u16| {
        Err(DecodeError::Field { message: T::NAME, field, value: value.into() })
    };
    if reactors == 0 || usize::from(reactors) > REACTORS_MAX {
        return field("reactors", reactors);
    }
    let mut rest = tail;
    for reactor in 0..reactors {
        let (text, after) = split_text::<T>(rest)?;
        each(reactor, text);
        rest = after;
    }
    let mut counts = [1; REACTORS_MAX];
    for _ in 0..further {
        let (reactor, after) =
            split_tail::<T>(rest, "further_addresses", size_of::<U16>(), size_of::<U16>())?;
        let reactor = u16::from_le_bytes([reactor[0], reactor[1]]);
        let (text, after) = split_text::<T>(after)?;
        let count = &mut counts[..usize::from(reactors)].get_mut(usize::from(reactor));
        match count {
            Some(count) if **count < ADDRESSES_MAX => **count += 1,
            _ => return Err(too_many::<T>(reactor)),
        }
        each(reactor, text);
        rest = after;
    }
    Ok(rest)
}

fn too_many<T: Message>(value: u16) -> DecodeError {
    DecodeError::Field { message: T::NAME, field: "further_addresses", value: value.into() }
}

/// Appends an address as [`split_text`] reads it. It has at most [`ADDRESS_BYTES_MAX`] bytes.
pub fn push_text(tail: &mut impl Extend<u8>, text: &str) {
    tail.extend((text.len() as u16).to_le_bytes());
    tail.extend(text.bytes());
}

/// Appends the addresses of reactors as [`split_reactors`] reads them; returns how many are further
/// ones. Each reactor has at least one.
pub fn push_reactors<S: AsRef<str>, L: AsRef<[S]>>(
    tail: &mut impl Extend<u8>,
    reactors: &[L],
) -> u16 {
    for list in reactors {
        push_text(tail, list.as_ref().first().map_or("", S::as_ref));
    }
    let mut further = 0;
    for (reactor, list) in (0_u16..).zip(reactors) {
        for text in list.as_ref().iter().skip(1) {
            tail.extend(reactor.to_le_bytes());
            push_text(tail, text.as_ref());
            further += 1;
        }
    }
    further
}

/// Bytes that [`push_reactors`] appends for reactors whose addresses have these lengths.
pub fn reactors_bytes(lengths: impl Iterator<Item = impl Iterator<Item = usize>>) -> usize {
    let texts = lengths.map(|list| {
        let (count, bytes) =
            list.fold((0, 0), |(count, bytes), length| (count + 1, bytes + length));
        bytes + count * size_of::<U16>() + usize::saturating_sub(count, 1) * size_of::<U16>()
    });
    texts.sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::string::{String, ToString};
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::control::TargetHello;
    use crate::operations::HostWelcome;

    fn lists() -> Vec<Vec<String>> {
        let name = |text: &str| text.to_string();
        vec![
            vec![name("shm:///a"), name("tcp://[::1]:1"), name("rdma://h:1")],
            vec![name("tcp://h:2")],
            vec![name("shm:///c"), name("tcp://h:3")],
        ]
    }

    fn read(tail: &[u8], reactors: u16, further: u16) -> Result<Vec<Vec<String>>, DecodeError> {
        let mut read = vec![Vec::new(); reactors.into()];
        let each = |reactor: u16, text: &str| read[usize::from(reactor)].push(text.to_string());
        split_reactors::<HostWelcome>(tail, reactors, further, each)?;
        Ok(read)
    }

    #[test]
    fn reactors_and_all_their_addresses_survive_the_way() {
        let lists = lists();
        let mut tail = Vec::new();
        let further = push_reactors(&mut tail, &lists);
        assert_eq!(further, 3);
        let lengths = lists.iter().map(|list| list.iter().map(String::len));
        assert_eq!(reactors_bytes(lengths), tail.len());
        tail.extend(b"what comes later");
        assert_eq!(read(&tail, 3, further).unwrap(), lists);
        let firsts: Vec<Vec<String>> = lists.iter().map(|list| vec![list[0].clone()]).collect();
        assert_eq!(read(&tail, 3, 0).unwrap(), firsts, "as a reader of the first version");
    }

    #[test]
    fn tails_that_are_cut_short_or_out_of_bounds_are_refused_by_field() {
        let mut tail = Vec::new();
        let further = push_reactors(&mut tail, &lists());
        for length in 0..tail.len() {
            assert!(read(&tail[..length], 3, further).is_err(), "{length}");
        }
        let refused = |tail: &[u8], reactors, further| match read(tail, reactors, further) {
            Err(DecodeError::Field { field, value, .. }) => (field, value),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&tail, 0, 0), ("reactors", 0));
        assert_eq!(refused(&tail, 65, 0), ("reactors", 65));
        assert_eq!(refused(&[0xff, 0xff, 0], 1, 0), ("address", 0xffff));
        let long = [&121_u16.to_le_bytes()[..], &[b'x'; 121]].concat();
        assert_eq!(refused(&long, 1, 0), ("address", 121));
        assert_eq!(refused(&[1, 0, 0xff], 1, 0), ("address", 1), "not UTF-8");
        let foreign = [1, 0, b'x', 1, 0, 1, 0, b'y'];
        assert_eq!(refused(&foreign, 1, 1), ("further_addresses", 1), "no such reactor");
        let mut many = vec![1, 0, b'x'];
        for _ in 0..ADDRESSES_MAX {
            many.extend([0, 0, 1, 0, b'x']);
        }
        let most = ADDRESSES_MAX as u16 - 1;
        assert_eq!(read(&many, 1, most).unwrap()[0].len(), ADDRESSES_MAX);
        assert_eq!(refused(&many, 1, most + 1), ("further_addresses", 0));
    }

    #[test]
    fn one_servers_further_addresses_are_bounded() {
        let mut tail = Vec::new();
        push_text(&mut tail, "tcp://h:1");
        push_text(&mut tail, "");
        tail.push(7);
        let mut texts = Vec::new();
        let rest = split_further::<TargetHello>(&tail, 2, |text| texts.push(text)).unwrap();
        assert_eq!((texts, rest), (vec!["tcp://h:1", ""], &[7_u8][..]));
        for (count, field) in [(8, "further_addresses"), (u16::MAX, "further_addresses")] {
            let refused = split_further::<TargetHello>(&[0; 64], count, |_| {}).unwrap_err();
            let DecodeError::Field { field: named, .. } = refused else { panic!("{refused}") };
            assert_eq!(named, field);
        }
        assert!(split_further::<TargetHello>(&tail, 3, |_| {}).is_err());
    }
}
