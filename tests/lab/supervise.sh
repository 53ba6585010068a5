#!/bin/sh
# Keeps one lab host: starts it in its namespaces and starts it again when its init asks for a reboot (SIGHUP, pid_namespaces(7)).
# Arguments: the four of wire.sh, then boot.sh and its arguments. wire.sh lies beside this file.
netns=$1 veth=$2 bridge=$3 address=$4
shift 4
while :; do
	sh "$(dirname "$0")/wire.sh" "$netns" "$veth" "$bridge" "$address" || exit 1
	ip netns exec "$netns" unshare --mount --uts --ipc --pid --cgroup --fork --kill-child --propagation private "$@"
	[ $? -eq 129 ] || exit 0
done
