#!/bin/sh
# Gives a host a network as fresh as after power-up: a namespace with only lo and eth0, cabled to the lab's bridge.
# Arguments: namespace, the machine's end of the cable, bridge, address with prefix length.
set -eu
netns=$1 veth=$2 bridge=$3 address=$4
[ ! -e "/run/netns/$netns" ] || ip netns del "$netns"
# The namespace of a host that has just died may keep the cable's other end for a moment.
[ ! -e "/sys/class/net/$veth" ] || ip link del "$veth" 2>/dev/null || true
ip netns add "$netns"
# Nobody else has the lab's addresses. While the kernel looks for duplicates an address is tentative, and a snapshot would see that end.
ip netns exec "$netns" sh -c 'for conf in all default; do f=/proc/sys/net/ipv6/conf/$conf/accept_dad; [ ! -e $f ] || echo 0 > $f; done'
# A host keeps its hardware address over reboots, as real ones do.
# shellcheck disable=SC2046
mac=$(printf '02:00:%02x:%02x:%02x:%02x' $(echo "${address%/*}" | tr . ' '))
ip link add "$veth" type veth peer name eth0 netns "$netns" address "$mac"
ip link set "$veth" master "$bridge" up
ip -n "$netns" addr add "$address" dev eth0
ip -n "$netns" link set lo up
ip -n "$netns" link set eth0 up
