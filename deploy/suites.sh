# shellcheck shell=bash
# Sourced by other scripts: unpacks Debian packages of other suites and architectures into directories. The packages come from the
# mirrors in the machine's /etc/apt/sources.list.d/debian.sources. apt uses a private configuration; the machine's does not change.

suites_folder=${SUITES_FOLDER:-$PWD/target/suites}

# apt-get or apt-cache with the private configuration.
suites_apt() {
    local command=$1
    shift
    "$command" -qq -o APT::Sandbox::User=root -o Dir::Etc="$suites_folder/etc" -o Dir::Etc::sourcelist=/dev/null -o Dir::State="$suites_folder/state" \
        -o Dir::State::status=/dev/null -o Dir::Cache="$suites_folder/cache" -o Dir::Cache::pkgcache=pkgcache.bin -o Dir::Cache::srcpkgcache=srcpkgcache.bin \
        -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@"
}

# Prints one paragraph of sources. Arguments: a pattern for the URIs of a paragraph of the machine, and the suites.
suites_source() {
    local paragraph
    paragraph=$(awk -v RS= -v pattern="$1" '$0 ~ "URIs:[^\n]*" pattern { print; exit }' /etc/apt/sources.list.d/debian.sources)
    [ -n "$paragraph" ] || return 0
    sed -E "s/^Suites:.*/Suites: $2/" <<<"$paragraph"
    echo
}

# Fetches the lists of packages, at most once a day.
suites_update() {
    local sources=$suites_folder/etc/sources.list.d/debian.sources
    mkdir -p "$suites_folder"/{etc/{apt.conf.d,preferences.d,sources.list.d},state/lists/partial,cache/archives/partial,debs}
    {
        suites_source '/debian( |$|\n)' 'bullseye bookworm bookworm-backports trixie trixie-backports sid'
        suites_source '/debian-security' 'bullseye-security bookworm-security trixie-security'
    } >"$sources.new"
    if cmp -s "$sources.new" "$sources" && [ -n "$(find "$suites_folder/updated" -mtime -1 2>/dev/null)" ]; then return; fi
    mv "$sources.new" "$sources"
    suites_apt apt-get update
    touch "$suites_folder/updated"
}

# Downloads packages and prints their paths, one per line. Arguments: NAME, NAME:ARCHITECTURE, NAME=VERSION or NAME/SUITE.
suites_download() {
    local names name
    # One call for all packages, because each call of apt reads the lists of every suite.
    names=$(suites_apt apt-get download --print-uris "$@" | awk '{ print $2 }') || return 1
    while read -r name; do
        [ -f "$suites_folder/debs/$name" ] || {
            (cd "$suites_folder/debs" && suites_apt apt-get download "$@") || return 1
            break
        }
    done <<<"$names"
    while read -r name; do echo "$suites_folder/debs/$name"; done <<<"$names"
}

# Unpacks packages into a directory. Arguments: the directory, and packages as above.
suites_unpack() {
    local to=$1 files file
    shift
    files=$(suites_download "$@") || return 1
    mkdir -p "$to"
    while read -r file; do dpkg -x "$file" "$to" || return 1; done <<<"$files"
}
