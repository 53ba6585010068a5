#!/bin/sh
# Runs as the first process of a lab host's own mount, pid, uts, ipc and cgroup namespaces: builds the host's view of the
# machine and becomes its init. Arguments: the host's folder, the base tree, the host's name.
set -eu
dir=$1 base=$2 name=$3
root=$dir/root

mount -t overlay overlay -o "lowerdir=$base,upperdir=$dir/upper,workdir=$dir/work" "$root"
# An overlay cannot be the upper layer of another one, which containerd needs below /var/lib.
mount --bind "$dir/varlib" "$root/var/lib"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"

# A device tree of its own: the machine's must not see what the host's init makes there.
mount -t tmpfs -o mode=0755,nosuid tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm" "$root/dev/mqueue" "$root/dev/net"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
mount -t mqueue mqueue "$root/dev/mqueue"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/full" c 1 7
mknod -m 666 "$root/dev/random" c 1 8
mknod -m 666 "$root/dev/urandom" c 1 9
mknod -m 666 "$root/dev/tty" c 5 0
mknod -m 600 "$root/dev/net/tun" c 10 200
mknod -m 644 "$root/dev/kmsg" c 1 11
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s /proc/self/fd/0 "$root/dev/stdin"
ln -s /proc/self/fd/1 "$root/dev/stdout"
ln -s /proc/self/fd/2 "$root/dev/stderr"
: >"$root/dev/console"
mount --bind "$dir/console" "$root/dev/console"

# The cgroup namespace makes the host's own groups the roots of these mounts.
cg=$root/sys/fs/cgroup
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
	mount -t cgroup2 cgroup2 "$cg"
	legacy=
else
	mount -t tmpfs -o mode=0755,nosuid,nodev,noexec tmpfs "$cg"
	for controller in $(sed 's/^[0-9]*:\([^:]*\):.*/\1/' /proc/self/cgroup); do
		case $controller in
		'') continue ;;
		name=systemd) at=systemd options=none,name=systemd ;;
		*) at=$controller options=$controller ;;
		esac
		mkdir "$cg/$at"
		mount -t cgroup -o "$options" cgroup "$cg/$at"
	done
	mkdir "$cg/unified"
	mount -t cgroup2 cgroup2 "$cg/unified"
	# The hybrid mode of systemd would keep its slices out of the named hierarchy, where runtimes look for them.
	legacy="systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
	umount "$cg/unified"
	rmdir "$cg/unified"
fi

hostname "$name"
mkdir -p "$root/.lab-old"
cd "$root"
pivot_root . .lab-old
exec </dev/null >/dev/console 2>&1
umount -l /.lab-old
rmdir /.lab-old
# shellcheck disable=SC2086
exec env -i container=lab TERM=dumb PATH=/usr/sbin:/usr/bin:/sbin:/bin /sbin/init --log-target=journal $legacy
