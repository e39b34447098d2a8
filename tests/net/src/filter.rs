//! What happens to packets where they enter a device: they may be dropped, all or by chance, and
//! are counted then.

use serde_json::Value;

use crate::space::Space;

/// Table and chain of a device's rules.
const TABLE: &str = "gannet";

/// Which packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drops {
    /// None.
    None,
    /// All.
    All,
    /// So many of a hundred, by chance.
    Percent(u32),
}

/// Drops packets that enter `device` from now on, and none others.
///
/// # Panics
/// If `nft` refuses.
pub fn set(space: &Space, device: &str, drops: Drops) {
    let begin = format!(
        "add table netdev {TABLE}; \
         add chain netdev {TABLE} {device} {{ type filter hook ingress device \"{device}\" priority \
         0; }}; flush chain netdev {TABLE} {device}; "
    );
    let rule = match drops {
        Drops::None => String::new(),
        Drops::All => format!("add rule netdev {TABLE} {device} counter drop"),
        Drops::Percent(percent) => format!(
            "add rule netdev {TABLE} {device} numgen random mod 100 < {percent} counter drop"
        ),
    };
    let _said = space.run("nft", &[&(begin + &rule)]);
}

/// How many packets that entered `device` were dropped since [`set`].
///
/// # Panics
/// If `nft` does not say.
#[must_use]
pub fn dropped(space: &Space, device: &str) -> u64 {
    let said = space.run("nft", &["-j", "list", "chain", "netdev", TABLE, device]);
    let listing = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    packets(&listing)
}

/// Sum of a listing's counters.
fn packets(listing: &Value) -> u64 {
    let rules = listing["nftables"].as_array().into_iter().flatten().map(|item| &item["rule"]);
    let steps = rules.flat_map(|rule| rule["expr"].as_array().into_iter().flatten());
    steps.filter_map(|step| step["counter"]["packets"].as_u64()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_in_a_listing() {
        let listing = serde_json::json!({ "nftables": [
            { "metainfo": { "version": "1.0.6" } },
            { "chain": { "name": "eth0" } },
            { "rule": { "expr": [
                { "match": { "op": "<", "right": 1 } },
                { "counter": { "packets": 2991, "bytes": 4_486_500 } },
                { "drop": null }
            ] } },
        ] });
        assert_eq!(packets(&listing), 2991);
    }
}
