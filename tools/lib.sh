# Shared by tools/quickstart and tests/run: finding the repository, installing what is missing,
# saying what happens. To be sourced by bash.
# shellcheck shell=bash

# The repository. cargo must run inside it: see the warning in README.md.
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# The oldest cargo that builds this, as in Cargo.toml.
rust_version=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$repository/Cargo.toml")

say() {
    printf '%s\n' "$*"
}

warn() {
    printf '%s\n' "$*" >&2
}

die() {
    warn "$(basename "$0"): $*"
    exit 1
}

# need COMMAND PACKAGE: makes sure that a command exists, as root by installing the Debian package.
need() {
    local command=$1 package=$2
    if command -v "$command" >/dev/null; then
        return
    fi
    if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
        die "$command is missing: run  sudo apt-get install -y $package  (Debian), then try again"
    fi
    say "installing $package, for $command"
    apt-get update -qq || warn "apt-get update failed; trying with the lists that are here"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null ||
        die "$package cannot be installed: run  apt-get install -y $package  and see why"
    command -v "$command" >/dev/null || die "$package is installed, and $command is still missing"
}

# True if version $1 is at least version $2.
version_at_least() {
    [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]
}

# Makes sure of a Rust toolchain that is new enough, and of a C toolchain to link with.
need_toolchain() {
    local installer="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    need cc gcc
    if ! command -v cargo >/dev/null; then
        if [[ $(id -u) -ne 0 ]]; then
            die "cargo is missing: run  $installer  then open a new shell and try again"
        fi
        need curl curl
        say "installing Rust with rustup, for cargo"
        # The same as $installer, with as little as this needs.
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y -q --profile minimal -c rustfmt -c clippy ||
            die "Rust cannot be installed: run  $installer  and see why"
        PATH=$HOME/.cargo/bin:$PATH
        command -v cargo >/dev/null || die "Rust is installed, and cargo is still missing"
    fi
    local version
    version=$(cd "$repository" && cargo --version | cut -d ' ' -f 2)
    version_at_least "$version" "$rust_version" ||
        die "cargo is $version, and $rust_version or newer is needed: run  rustup update stable"
}

# mib BYTES: in MiB, with one decimal.
mib() {
    awk -v bytes="$1" 'BEGIN { printf "%.1f", bytes / 1048576 }'
}
