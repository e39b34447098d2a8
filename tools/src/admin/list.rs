//! `gannet ls`.

use std::io::{self, BufWriter, IsTerminal, Write};

use gannet_client::Operation;
use gannet_proto::operations::{Attributes, file_type};

use super::{REQUESTS_MAX, entries, for_each};
use crate::cli::LsArguments;
use crate::connection::{Connection, is_directory};
use crate::failure::Failure;
use crate::remote::RemotePath;
use crate::times::format_time;

/// Lists directories.
pub(crate) fn ls(arguments: &LsArguments) -> Result<(), Failure> {
    let paths = arguments.paths.iter().map(|path| RemotePath::parse(path));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    let mut connection = Connection::open(&arguments.server, REQUESTS_MAX)?;
    let mut printer = Printer {
        long: arguments.long,
        escape: io::stdout().is_terminal(),
        out: BufWriter::new(io::stdout().lock()),
    };
    let with_titles = arguments.recursive || paths.len() > 1;
    let mut is_first = true;
    for_each(paths, |path| {
        let about = format!("listing {path}");
        let found = connection.lookup(&path).map_err(|error| error.about(&about))?;
        if !is_directory(&found) {
            let name = path.name().unwrap_or_default();
            return printer.line(name, Some(&found), found.mode.get()).map_err(output);
        }
        let mut directories = vec![(path, found.handle)];
        while let Some((path, handle)) = directories.pop() {
            if with_titles {
                let gap = if std::mem::take(&mut is_first) { "" } else { "\n" };
                writeln!(printer.out, "{gap}{path}:").map_err(output)?;
            }
            let about = format!("listing {path}");
            let listed = entries(&mut connection, handle).map_err(|error| error.about(&about))?;
            let mut below = Vec::new();
            for entry in listed {
                let attributes = if arguments.long {
                    let asked = connection.entry(Operation::Stat { handle: entry.handle });
                    Some(asked.map_err(|error| error.about(&about))?)
                } else {
                    None
                };
                let mode = attributes.map_or(entry.file_type, |attributes| attributes.mode.get());
                printer.line(&entry.name, attributes.as_ref(), mode).map_err(output)?;
                if arguments.recursive && mode & file_type::MASK == file_type::DIRECTORY {
                    below.push((path.join(&entry.name), entry.handle));
                }
            }
            directories.extend(below.into_iter().rev());
        }
        Ok(())
    })?;
    printer.out.flush().map_err(output)
}

/// A failure to write to standard output. A reader that went away has seen enough.
pub(super) fn output(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    Failure::operation(format!("writing to standard output: {error}"))
}

struct Printer<W: Write> {
    long: bool,
    /// Whether control characters are replaced, so that names do not steer a terminal.
    escape: bool,
    out: W,
}

impl<W: Write> Printer<W> {
    fn line(&mut self, name: &[u8], attributes: Option<&Attributes>, mode: u32) -> io::Result<()> {
        if let (true, Some(attributes)) = (self.long, attributes) {
            write!(
                self.out,
                "{} {:>3} {:>5} {:>5} {:>14} {} ",
                mode_text(mode),
                attributes.links,
                attributes.uid,
                attributes.gid,
                attributes.size,
                format_time(attributes.mtime_ns.get()),
            )?;
        }
        if self.escape {
            let printable = |byte: &u8| if *byte < 0x20 || *byte == 0x7f { b'?' } else { *byte };
            let name: Vec<u8> = name.iter().map(printable).collect();
            self.out.write_all(&name)?;
        } else {
            self.out.write_all(name)?;
        }
        let is_directory = mode & file_type::MASK == file_type::DIRECTORY;
        self.out.write_all(if is_directory && !self.long { b"/\n" } else { b"\n" })
    }
}

/// Type and permissions as `ls -l` writes them.
pub(super) fn mode_text(mode: u32) -> String {
    let kind = match mode & file_type::MASK {
        file_type::DIRECTORY => 'd',
        file_type::REGULAR => '-',
        _ => '?',
    };
    let bits = (0..9).rev().map(|bit| match (mode >> bit & 1, bit % 3) {
        (0, _) => '-',
        (_, 2) => 'r',
        (_, 1) => 'w',
        _ => 'x',
    });
    std::iter::once(kind).chain(bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_as_with_ls() {
        assert_eq!(mode_text(file_type::DIRECTORY | 0o755), "drwxr-xr-x");
        assert_eq!(mode_text(file_type::REGULAR | 0o640), "-rw-r-----");
    }

    #[test]
    fn names_do_not_steer_a_terminal() {
        let print = |escape| {
            let mut printer = Printer { long: false, escape, out: Vec::new() };
            printer.line(b"a\x1b[2J", None, file_type::REGULAR).expect("a vector takes it");
            printer.out
        };
        assert_eq!(print(true), b"a?[2J\n");
        assert_eq!(print(false), b"a\x1b[2J\n");
    }
}
