//! `gannet df`.

use gannet_client::{Operation, Outcome, Space};

use super::REQUESTS_MAX;
use crate::cli::DfArguments;
use crate::connection::{CallError, Connection, unexpected};
use crate::failure::Failure;
use crate::units::format_size;

/// Shows how much space there is.
pub(crate) fn df(arguments: &DfArguments) -> Result<(), Failure> {
    let mut connection = Connection::open(&arguments.server, REQUESTS_MAX)?;
    let about = "asking for space";
    let first = space(&mut connection, 0).map_err(|error| error.about(about))?;
    let mut sum = first;
    for reactor in 1..connection.reactors() {
        let more = space(&mut connection, reactor).map_err(|error| error.about(about))?;
        sum = add(sum, more);
    }
    let block_bytes = u64::from(sum.block_bytes);
    let bytes = |blocks: u64| blocks.saturating_mul(block_bytes);
    let (total, used) = (bytes(sum.blocks_total), bytes(sum.blocks_used));
    let free = total.saturating_sub(used);
    if arguments.json {
        println!(
            "{}",
            serde_json::json!({
                "total_bytes": total,
                "used_bytes": used,
                "free_bytes": free,
                "inodes": sum.inodes,
                "data_servers": sum.targets,
                "block_bytes": sum.block_bytes,
            })
        );
        return Ok(());
    }
    let percent = if total == 0 { 0.0 } else { used as f64 * 100.0 / total as f64 };
    println!(
        "{:>12} {:>12} {:>12} {:>6} {:>10} {:>13}",
        "Size", "Used", "Free", "Use%", "Inodes", "Data servers"
    );
    println!(
        "{:>12} {:>12} {:>12} {percent:>5.1}% {:>10} {:>13}",
        format_size(total),
        format_size(used),
        format_size(free),
        sum.inodes,
        sum.targets
    );
    Ok(())
}

fn space(connection: &mut Connection, reactor: u16) -> Result<Space, CallError> {
    match connection.call(Operation::StatFs { reactor })? {
        Outcome::Space(space) => Ok(space),
        _ => Err(unexpected("the answer is not about space")),
    }
}

/// Each reactor knows all stores, and its own shards' use of them.
fn add(sum: Space, more: Space) -> Space {
    Space {
        blocks_total: sum.blocks_total.max(more.blocks_total),
        blocks_used: sum.blocks_used.saturating_add(more.blocks_used),
        inodes: sum.inodes.saturating_add(more.inodes),
        targets: sum.targets.max(more.targets),
        block_bytes: sum.block_bytes,
    }
}
