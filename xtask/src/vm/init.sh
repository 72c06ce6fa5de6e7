#!/bin/sh
# First process of the VM: makes the system usable, runs /script, tells the host how it ended.
# Its console is the kernel's; the script's output goes out by ports of its own.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs tmp /tmp
mkdir -p /run/netns /run/lock /var/lib /var/log
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs trace /sys/kernel/tracing
ip link set lo up
for module in virtio_pci virtio_console virtio_rng virtio_net; do
    modprobe --quiet "$module"
done

off() {
    sync
    echo o >/proc/sysrq-trigger
    sleep 60
}

# The device of the port that the host gave this name.
port() {
    for dir in /sys/class/virtio-ports/*; do
        if [ "$(cat "$dir/name")" = "$1" ]; then
            echo "/dev/${dir##*/}"
            return
        fi
    done
    echo "init: the host has made no port $1" >&2
    off
}
echo "init: $(uname -r), $(nproc) CPUs, up for $(cut -d ' ' -f 1 /proc/uptime) s"

cd /root
if grep -q netbond.terminal /proc/cmdline; then
    setsid --ctty --wait bash /script </dev/hvc0 >/dev/hvc0 2>&1
else
    bash /script </dev/null >"$(port out)" 2>"$(port err)"
fi
code=$?
echo "init: the script ended with $code, up for $(cut -d ' ' -f 1 /proc/uptime) s"
echo "$code" >"$(port code)"
off
