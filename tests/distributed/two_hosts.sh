#!/usr/bin/env bash
# Runs tests/distributed/cases.py on two hosts: two network namespaces, joined by a pair of virtual
# interfaces, whose ranks meet over TCP alone. Needs root, iproute2, and the extra mpi. Not part of CI.
#
#   sudo tests/distributed/two_hosts.sh [PYTHON] [MBIT]
#
# MBIT limits the link, which needs the kernel's tbf.
set -euo pipefail
cd "$(dirname "$0")"
python=${1:-python} mbit=${2:-}
bin=$(dirname "$(command -v "$python")")
work=$(mktemp -d)
finish() {
  for host in 1 2; do ip netns del "rnnkern$host" 2>/dev/null || true; done
  rm -rf "$work"
}
trap finish EXIT

for host in 1 2; do ip netns add "rnnkern$host"; done
ip link add rk1 netns rnnkern1 type veth peer name rk2 netns rnnkern2
for host in 1 2; do
  ip -n "rnnkern$host" addr add "10.77.0.$host/24" dev "rk$host"
  ip -n "rnnkern$host" link set "rk$host" up
  ip -n "rnnkern$host" link set lo up
  if [ -n "$mbit" ]; then
    ip netns exec "rnnkern$host" tc qdisc add dev "rk$host" root tbf rate "${mbit}mbit" burst 1m latency 400ms
  fi
done

for host in 1 2; do  # UCX leaves out an interface that is not up yet
  until ip -n "rnnkern$host" -br link show "rk$host" | grep -q ' UP '; do sleep 0.1; done
done

# What mpiexec calls in place of ssh: HOST COMMAND... enters the host's namespace.
cat >"$work/enter" <<'ENTER'
#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
host=${1##*.}
shift
exec ip netns exec "rnnkern$host" bash -c "$*"
ENTER
chmod +x "$work/enter"

export MPIR_CVAR_NOLOCAL=1 UCX_TLS=tcp,self RNNKERN_NUM_THREADS=1
on_two() {
  ip netns exec rnnkern1 "$bin/mpiexec" -launcher ssh -launcher-exec "$work/enter" -iface rk1 \
    -hosts 10.77.0.1,10.77.0.2 -ppn "$1" -n "$((2 * $1))" "${@:2}"
}
"$python" cases.py "$work/one.json"
for each in 1 2; do
  on_two "$each" "$python" cases.py "$work/two.json"
  cmp "$work/one.json" "$work/two.json"
  echo "$((2 * each)) ranks on two hosts: the bits of one process"
done
on_two 1 "$python" ../../benchmarks/ranks.py --quick
