#!/usr/bin/env bash
# Runs `make demo` and `make test` as root in a bare Debian 12, as a container without any preparation has it.
set -eu

usage() {
    cat <<'WORDS'
usage: make fresh [WHAT="demo test"] [HOW="chroot pivot_root"] [JOBS=n] [ARGS="paths and options of pytest"] [UMASK=077]

Clones this repository (what is committed) below /root of a bare Debian 12, and runs there, as root and
with the capabilities of a container:

  WHAT  the targets of make, one after the other: demo, test
  HOW   chroot      no process can create a user namespace, as in a container with the usual seccomp profile
        pivot_root  every process can

It needs root on Linux, debootstrap (installed by apt-get when it is missing), unshare and setpriv. The
Debian tree is made once and kept in ${TMPDIR:-/var/tmp}/workspaced-fresh; `make fresh WHAT=clean` removes it.
The inside gets what pip of this machine is configured with, its certificates, and its name servers.
WORDS
}

here=$(cd "$(dirname "$0")/../.." && pwd)
kept=${TMPDIR:-/var/tmp}/workspaced-fresh
release=bookworm
packages=python3,python3-venv,git,make,ca-certificates
# What container engines leave to root by default.
capabilities=chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,sys_chroot,mknod,audit_write,setfcap

say() { printf '\n== fresh: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Outside: the tree, a copy for each run, and a clone in it.

make_tree() {
    [ -e "$kept/tree/made" ] && return
    if ! command -v debootstrap >/dev/null; then
        say "install debootstrap"
        apt-get update -qq && apt-get install -qq -y debootstrap || fail "install debootstrap, which makes the Debian tree"
    fi
    say "make a Debian tree in $kept"
    mkdir -p "$kept"
    rm -rf "$kept/tree"
    # This machine's own mirror, if it is a Debian of that release; else debootstrap knows one.
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' "Created-By: Packages" 2>/dev/null \
        | sed -n "s/ $release\$//p" | head -n 1) || mirror=
    debootstrap --variant=minbase --include="$packages" "$release" "$kept/tree" ${mirror:+"$mirror"} >"$kept/debootstrap.log" 2>&1 \
        || fail "debootstrap failed: see $kept/debootstrap.log"
    touch "$kept/tree/made"
}

run_one() {
    how=$1
    root=$(mktemp -d "$kept/run.XXXXXX")
    cp -a "$kept/tree/." "$root"
    chmod 700 "$root/root"
    git clone --quiet --no-hardlinks "file://$here" "$root/root/workspaced"
    say "$how: $what"
    # All mounts are made in a mount namespace, and all processes in a pid namespace: both end with the run.
    unshare --mount --propagation private --ipc --pid --fork --kill-child "$0" inside "$how" "$root" &
    running=$!
    wait "$running"
    end_run
}

end_run() {
    # unshare ignores every signal but this one; its child, the first process of the namespace, dies with it.
    [ -z "$running" ] || kill -KILL "$running" 2>/dev/null || true
    wait
    [ -z "$root" ] || rm -rf --one-file-system "$root" 2>/dev/null || rm -rf --one-file-system "$root"
    running='' root=''
}

# Inside the namespaces: what a container has, then the change of the root.

configuration_of_pip() {
    # Files that pip reads, and paths that these and the environment name.
    files="/etc/pip.conf /etc/xdg/pip/pip.conf $HOME/.pip/pip.conf $HOME/.config/pip/pip.conf ${PIP_CONFIG_FILE:-}"
    for file in $files; do
        [ -f "$file" ] && echo "$file"
    done
    { cat $(for file in $files; do [ -f "$file" ] && echo "$file"; done) </dev/null; client_environment; } \
        | grep -oE '(file://)?/[^][ "=,:]+' | while read -r path; do
            case $path in
                # An index refers to files beside it.
                file://*) path=$(dirname "${path#file://}") ;;
            esac
            case $path in
                /|/root|/etc|/usr|/tmp|/var) ;;
                *) [ -e "$path" ] && echo "$path" ;;
            esac
        done
}

client_environment() {
    env | grep -iE '^(PIP_|SSL_CERT_|REQUESTS_CA_BUNDLE=|CURL_CA_BUNDLE=|(http|https|all|no)_proxy=)' || true
}

bring() {
    # Lay a file or directory of the outside over the same path inside, to be read.
    [ -e "$1" ] || return 0
    if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$(dirname "$root$1")"; [ -e "$root$1" ] || : >"$root$1"; fi
    mount --bind "$(realpath "$1")" "$root$1"
    mount -o remount,bind,ro "$root$1"
}

furnish() {
    mount --bind "$root" "$root"
    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    mount --bind "$root/proc/sys" "$root/proc/sys"
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
    mount -t tmpfs -o nosuid,mode=755 tmpfs "$root/dev"
    for device in null:3 zero:5 full:7 random:8 urandom:9; do
        mknod -m 666 "$root/dev/${device%:*}" c 1 "${device#*:}"
    done
    mknod -m 666 "$root/dev/tty" c 5 0
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,nosuid,noexec,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
    mount -t tmpfs -o nosuid,nodev,noexec,size=64m tmpfs "$root/dev/shm"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    for number in 0:stdin 1:stdout 2:stderr; do
        ln -s "/proc/self/fd/${number%:*}" "$root/dev/${number#*:}"
    done
    for path in /etc/resolv.conf /etc/hosts $(configuration_of_pip | sort -u); do
        bring "$path"
    done
}

inside() {
    how=$1 root=$2
    furnish
    words=(env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM="${TERM:-dumb}")
    while read -r variable; do
        [ -z "$variable" ] || words+=("$variable")
    done < <(client_environment)
    words+=(setpriv "--bounding-set=-all,+${capabilities//,/,+}" "--inh-caps=-all")
    words+=(make -C /root/workspaced JOBS="$JOBS" ARGS="$ARGS")
    if [ "$how" = pivot_root ]; then
        cd "$root"
        mkdir -p mnt/outside
        pivot_root . mnt/outside
        umount -l /mnt/outside
        cd /
        unshare --user true || fail "pivot_root: no user namespace could be created, so this would show the same as chroot"
    else
        cd "$root"
        words=(chroot "$root" "${words[@]}")
    fi
    umask "$UMASK"
    for target in $what; do
        "${words[@]}" "$target" </dev/null || fail "$how: make $target failed"
    done
}

what=${WHAT:-demo test} JOBS=${JOBS:-2} ARGS=${ARGS:-} UMASK=${UMASK:-022}
export WHAT="$what" JOBS ARGS UMASK
if [ "${1:-}" = inside ]; then
    inside "$2" "$3"
    exit
fi
if [ $# != 0 ]; then usage >&2; exit 2; fi
case " $what " in *" help "*) usage; exit ;; esac
[ "$(id -u)" = 0 ] || fail "this needs root, to make a Debian tree and to enter it"
case " $what " in *" clean "*) rm -rf --one-file-system "$kept"; exit ;; esac
make_tree
git -C "$here" diff --quiet HEAD || say "only what is committed is run"
running='' root=''
trap end_run EXIT
trap 'exit 130' HUP INT TERM
for how in ${HOW:-chroot pivot_root}; do
    run_one "$how"
done
say "passed: $what by ${HOW:-chroot pivot_root}"
