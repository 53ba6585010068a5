#!/bin/sh
# Takes programs out of Debian's packages and makes them self-contained: images/debian.sh OUT
#
#   OUT/rootfs/{bin,lib,cni/bin}   for /opt/installer on hosts: interpreter and rpath point to the libraries beside them
#   OUT/nft, OUT/etcd              for container images: files at their Debian places, unpatched
#   OUT/busybox                    for images of tests: a static shell and its tools, one link each
#   …/usr/share/installer/debian.json  in each of them: which file is of which package, and the packages' licences
#
# Packages come from the machine's own apt configuration and are unpacked, never installed. Libraries are found by reading
# what each program needs, package by package along their dependencies; there is no list of libraries here.
# The same package versions give the same bytes. Needs: apt-get, dpkg-deb, readelf, patchelf.
set -eu
umask 022
export LC_ALL=C

out=$(realpath -m "${1:?usage: $0 OUT}")
home=/opt/installer
packages='containerd runc containernetworking-plugins etcd-server etcd-client nftables busybox-static'
host_programs='usr/bin/containerd usr/bin/containerd-shim-runc-v2 usr/bin/ctr usr/sbin/runc usr/sbin/nft usr/bin/etcdctl'
cni_plugins='ptp bridge host-local loopback'

die() {
    echo "$0: $*" >&2
    exit 1
}

for tool in apt-get apt-cache dpkg-deb readelf patchelf sha256sum; do
    command -v $tool >/dev/null || die "$tool is missing"
done

# stamp PACKAGE…: a digest of what decides the result: this script, and the versions that apt would give now.
stamp() {
    { cat "$0"; apt-cache policy "$@" | grep -E '^[a-z]|Candidate'; } | sha256sum | cut -d' ' -f1
}

# Nothing to do if none of the packages used last time, libraries included, has changed.
if [ -s "$out/.packages" ] && [ "$(cat "$out/.stamp")" = "$(stamp $(cat "$out/.packages"))" ]; then
    exit 0
fi
apt-cache policy $packages | grep -q 'Candidate: [0-9]' || die "apt knows none of: $packages (apt-get update?)"

cache=$out/.cache
work=$(mktemp -d "${TMPDIR:-/tmp}/debian.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$cache" "$work/packages" "$work/new"
distribution=$(. /etc/os-release && echo "$ID-${VERSION_ID:-unstable}")

# quoted: each line of the input as a JSON string, joined by commas.
quoted() {
    tr -d '\000-\011\013-\037' | sed 's/[\\"]/\\&/g; s/.*/"&"/' | paste -sd, | sed 's/,/, /g'
}

# licences PACKAGE: what its copyright file calls them (DEP-5), else which common licences it refers to.
licences() {
    copyright=$work/packages/$1/usr/share/doc/$1/copyright
    [ -f "$copyright" ] || return 0
    if head -n1 "$copyright" | grep -q '^Format:'; then
        sed -n 's/^License: *\(.*[^ ]\) *$/\1/p' "$copyright" | sort -u
    else
        grep -o '/usr/share/common-licenses/[A-Za-z][A-Za-z0-9.-]*[A-Za-z0-9]' "$copyright" | sed 's,.*/,,' | sort -u
    fi
}

# describe PACKAGE DEB: what is worth knowing of a package wherever a file of it is, as JSON without its end.
describe() (
    field() { dpkg-deb -f "$deb" "$1"; }
    package=$1 deb=$2
    version=$(field Version)
    # "Source: NAME (VERSION)"; what differs from the package only is said.
    source=$(field Source | cut -d' ' -f1)
    source_version=$(field Source | sed -n 's/.*(\(.*\)).*/\1/p')
    printf '{"name": "%s", "version": "%s", "architecture": "%s", ' "$package" "$version" "$(field Architecture)"
    printf '"source": "%s", "sourceVersion": "%s", ' "${source:-$package}" "${source_version:-$version}"
    printf '"licenses": [%s], "sha256": "%s"' "$(licences "$package" | quoted)" "$(sha256sum "$deb" | cut -d' ' -f1)"
)

# fetch PACKAGE: into the cache, and unpacked; remembers the libraries it depends on.
fetch() {
    [ ! -e "$work/packages/$1" ] || return 0
    version=$(apt-cache policy "$1" | sed -n 's/^ *Candidate: //p')
    [ -n "$version" ] && [ "$version" != '(none)' ] || die "apt has no package $1"
    deb=$(ls "$cache/${1}_$(echo "$version" | sed 's/:/%3a/g')_"*.deb 2>/dev/null | head -n1)
    if [ -z "$deb" ]; then
        (cd "$cache" && apt-get -q -o APT::Sandbox::User=root download "$1=$version" >&2)
        deb=$(ls "$cache/${1}_$(echo "$version" | sed 's/:/%3a/g')_"*.deb | head -n1)
    fi
    dpkg-deb -x "$deb" "$work/packages/$1"
    describe "$1" "$deb" >"$work/about.$1"
    dpkg-deb -f "$deb" Depends Pre-Depends | sed 's/^[A-Za-z-]*: //' | tr ',' '\n' |
        sed 's/|.*//; s/(.*)//; s/:any//; s/ //g' | { grep '^lib' || true; } >"$work/depends.$1"
}

# interpreter FILE: the full path of its loader, if it has one.
interpreter() {
    readelf -l "$1" 2>/dev/null | sed -n 's/.*interpreter: \(.*\)\]/\1/p'
}

# needed FILE: the libraries it names, and its loader.
needed() {
    readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
    basename "$(interpreter "$1")"
}

# find PATH: where it lies, as PACKAGE/PATH, if a fetched package has it.
find() {
    for package in $(ls "$work/packages"); do
        if [ -e "$work/packages/$package/$1" ]; then
            echo "$package/$1"
            return
        fi
    done
}

# find_library SONAME: the same for a library in one of the usual folders.
find_library() {
    for folder in lib/x86_64-linux-gnu usr/lib/x86_64-linux-gnu lib/aarch64-linux-gnu usr/lib/aarch64-linux-gnu lib usr/lib; do
        found=$(find "$folder/$1")
        if [ -n "$found" ]; then
            echo "$found"
            return
        fi
    done
}

# closure PATH…: PACKAGE/PATH of all libraries that these PACKAGE/PATHs need, fetching packages as it turns out.
closure() {
    printf '%s\n' "$@" >"$work/todo"
    : >"$work/libraries"
    while [ -s "$work/todo" ]; do
        file=$(head -n1 "$work/todo")
        sed -i 1d "$work/todo"
        for soname in $(needed "$work/packages/$file"); do
            library=$(find_library "$soname")
            if [ -z "$library" ]; then
                for package in $(cat "$work/depends.${file%%/*}"); do
                    fetch "$package"
                done
                library=$(find_library "$soname")
            fi
            [ -n "$library" ] || die "$file needs $soname, which nothing that ${file%%/*} depends on has"
            if ! grep -qxF "$library" "$work/libraries"; then
                echo "$library" >>"$work/libraries"
                echo "$library" >>"$work/todo"
            fi
        done
    done
    sort "$work/libraries"
}

# place PACKAGE/PATH TO: a copy with plain modes, links followed.
place() {
    mkdir -p "$(dirname "$work/new/$2")"
    install -m 0755 "$work/packages/$1" "$work/new/$2"
    # "PART PACKAGE PATH-IN-PART PATH-IN-PACKAGE"; none of them has a space.
    echo "${2%%/*} ${1%%/*} $(echo "${2#*/}" | sed 's,^/*,,') ${1#*/}" >>"$work/placed"
}

# provenance PART: remembers in the part itself where its files come from.
provenance() {
    mkdir -p "$work/new/$1/usr/share/installer"
    {
        printf '{\n"format": "installer.internal/debian-provenance/v1",\n"distribution": "%s",\n"packages": [' "$distribution"
        before=
        for package in $(awk -v part="$1" '$1==part {print $2}' "$work/placed" | sort -u); do
            printf '%s\n%s,\n  "files": [' "$before" "$(cat "$work/about.$package")"
            awk -v part="$1" -v package="$package" '$1==part && $2==package {
                printf "{\"path\": \"%s\", \"from\": \"%s\"}\n", $3, $4}' "$work/placed" | sort -u | paste -sd, | sed 's/},{/}, {/g' | tr -d '\n'
            printf ']}'
            before=,
        done
        printf '\n]\n}\n'
    } >"$work/new/$1/usr/share/installer/debian.json"
}

# self_contained RPATH FILE: interpreter and search path of a program; a static one needs neither.
self_contained() {
    loader=$(basename "$(interpreter "$2")")
    if [ -n "$loader" ]; then
        # An RPATH, not a RUNPATH: it also holds for the libraries' own libraries.
        patchelf --set-interpreter "$home/lib/$loader" --force-rpath --set-rpath "$1" "$2"
    fi
}

for package in $packages; do
    fetch "$package"
done

# all PATH…: PACKAGE/PATH of each.
all() {
    for path in "$@"; do
        found=$(find "$path")
        [ -n "$found" ] || die "no package has $path"
        echo "$found"
    done
}

programs=$(all $host_programs)
plugins=$(all $(printf 'usr/lib/cni/%s ' $cni_plugins))
for library in $(closure $programs $plugins); do
    place "$library" "rootfs/lib/$(basename "$library")"
done
for program in $programs; do
    place "$program" "rootfs/bin/$(basename "$program")"
    self_contained '$ORIGIN/../lib' "$work/new/rootfs/bin/$(basename "$program")"
done
for plugin in $plugins; do
    place "$plugin" "rootfs/cni/bin/$(basename "$plugin")"
    self_contained '$ORIGIN/../../lib' "$work/new/rootfs/cni/bin/$(basename "$plugin")"
done

# image NAME FOLDER PATH…: for container images, where the loader finds libraries at their usual places.
image() {
    name=$1 folder=$2
    shift 2
    for program in $(all "$@"); do
        place "$program" "$name/$folder/$(basename "$program")"
        for library in $(closure "$program"); do
            case $library in
                */ld-linux*) place "$library" "$name/$(interpreter "$work/packages/$program")" ;;
                *) place "$library" "$name/${library#*/}" ;;
            esac
        done
    done
}
image nft usr/sbin usr/sbin/nft
image etcd usr/local/bin usr/bin/etcd usr/bin/etcdctl

place busybox-static/bin/busybox busybox/bin/busybox
for applet in $("$work/new/busybox/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$work/new/busybox/bin/$applet"
done

# Nothing may be left to the host: every program must find everything beside itself. The loader is asked, without running it.
loader=$(ls "$work"/new/rootfs/lib/ld-linux-* | head -n1)
for program in "$work"/new/rootfs/bin/* "$work"/new/rootfs/cni/bin/*; do
    [ -n "$(interpreter "$program")" ] || continue
    listed=$("$loader" --inhibit-cache --list "$program") || die "$program can't be loaded: $listed"
    if echo "$listed" | grep 'not found' >&2; then
        die "$program lacks a library"
    fi
    if echo "$listed" | grep -o '=> /[^ ]*' | grep -vF "$work/new/rootfs/" >&2; then
        die "$program would use a library of the host"
    fi
done

for part in rootfs nft etcd busybox; do
    provenance $part
done
rm -f "$out/.packages"
for part in rootfs nft etcd busybox; do
    rm -rf "${out:?}/$part"
    mv "$work/new/$part" "$out/$part"
done
stamp $(ls "$work/packages") >"$out/.stamp"
ls "$work/packages" >"$out/.packages"
