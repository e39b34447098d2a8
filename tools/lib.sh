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

# Debian's lists of packages, once for a script and those that it starts.
update_package_lists() {
    if [[ -z ${GANNET_LISTS_UPDATED-} ]]; then
        apt-get update -qq || warn "apt-get update failed; trying with the lists that are here"
        export GANNET_LISTS_UPDATED=yes
    fi
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
    update_package_lists
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >/dev/null ||
        die "$package cannot be installed: run  apt-get install -y $package  and see why"
    command -v "$command" >/dev/null || die "$package is installed, and $command is still missing"
}

# need_packages PACKAGE...: makes sure of Debian packages, as root by installing those that are
# missing, without what they recommend.
need_packages() {
    local package missing=()
    command -v dpkg-query >/dev/null || die "this needs the Debian packages $*"
    for package in "$@"; do
        if [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>&1) != installed ]]
        then
            missing+=("$package")
        fi
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if [[ $(id -u) -ne 0 ]]; then
        die "packages are missing: run  sudo apt-get install -y ${missing[*]}  then try again"
    fi
    say "installing ${missing[*]}"
    update_package_lists
    DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        die "cannot install: run  apt-get install -y ${missing[*]}  and see why"
}

# The Debian packages that it takes to build with RDMA.
readonly rdma_packages=(pkg-config libclang-dev libibverbs-dev librdmacm-dev)

# True if a pattern of paths matches any.
any_path() {
    compgen -G "$1" >/dev/null
}

# True if the headers of the RDMA libraries are there, and a libclang with its own headers to read
# them with.
has_rdma_headers() {
    command -v pkg-config >/dev/null || return 1
    pkg-config --exists libibverbs librdmacm || return 1
    if [[ -n ${LIBCLANG_PATH:-} ]]; then
        return 0
    fi
    any_path '/usr/lib*/libclang*.so*' || any_path '/usr/lib/*/libclang*.so*' ||
        any_path '/usr/lib*/llvm*/lib*/libclang*.so*' || return 1
    any_path '/usr/lib*/clang/*/include/stddef.h' ||
        any_path '/usr/lib*/llvm*/lib*/clang/*/include/stddef.h'
}

# Makes sure of what it takes to build with RDMA, as root on Debian by installing it. Fails, having
# said what is missing, if it cannot be had.
need_rdma_headers() {
    has_rdma_headers && return 0
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        warn "to build with RDMA it takes pkg-config, libclang, and the headers of libibverbs and" \
            "librdmacm (on Debian: ${rdma_packages[*]})"
        return 1
    fi
    # In a shell of its own: what is missing is not the end of this one.
    (need_packages "${rdma_packages[@]}") && has_rdma_headers
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
