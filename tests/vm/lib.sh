# Shared by the scripts of this directory. To be sourced by bash.
# shellcheck shell=bash

vm_directory=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=../../tools/lib.sh
source "$vm_directory/../../tools/lib.sh"

# shellcheck disable=SC2034
# Images, whatever directory cargo builds into.
vm_cache=${GANNET_VM_CACHE:-$repository/build/vm}

# What programs say is read by these scripts.
export LC_ALL=C
# Not everybody has these in the path, and tools for modules are there.
PATH=$PATH:/usr/sbin:/sbin

# Makes sure of what it takes to start a machine.
need_machine() {
    [[ $(uname -m) == x86_64 ]] || die "the virtual machine needs an x86_64 machine around it"
    need_packages qemu-system-x86 busybox-static cpio
}
