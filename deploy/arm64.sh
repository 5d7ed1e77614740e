# shellcheck shell=bash
# Sourced by other scripts: installs a Rust compiler with the standard library of arm64 in a separate directory. Both come from Debian's
# security suite, which has the Rust version that Firefox needs. Without rustup, the machine's rustc builds for its own architecture only.
# shellcheck source=deploy/suites.sh
source deploy/suites.sh

# shellcheck disable=SC2034 # the scripts that source this file use it
arm64_target=aarch64-unknown-linux-gnu
arm64_rust=$suites_folder/rust

# Installs the compiler once. The linker is gcc-aarch64-linux-gnu of the machine, with libc6-dev-arm64-cross.
arm64_toolchain() {
    command -v aarch64-linux-gnu-gcc >/dev/null || {
        echo "missing packages: gcc-aarch64-linux-gnu libc6-dev-arm64-cross" >&2
        return 1
    }
    [ ! -e "$arm64_rust/complete" ] || return 0
    suites_update
    local suite library llvm
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME-security")
    rm -rf "$arm64_rust"
    # The names of these two contain the version of Rust and that of LLVM.
    library=$(arm64_dependency "libstd-rust-web-dev/$suite" libstd-rust-web-)
    llvm=$(arm64_dependency "$library/$suite" libllvm)
    suites_unpack "$arm64_rust" "rustc-web/$suite" "$library/$suite" "$llvm/$suite" \
        "libstd-rust-web-dev/$suite" "libstd-rust-web-dev:arm64/$suite"
    touch "$arm64_rust/complete"
}

# Prints the dependency of package $1 whose name begins with $2.
arm64_dependency() {
    suites_apt apt-cache depends "$1" | sed -n "s/^ *Depends: \($2[^ ]*\)\$/\1/p"
}

# Runs a command, such as cargo build, with that compiler. Call arm64_toolchain first.
arm64_env() {
    env LD_LIBRARY_PATH="$arm64_rust/usr/lib/x86_64-linux-gnu" RUSTC="$arm64_rust/usr/bin/rustc" \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc "$@"
}
