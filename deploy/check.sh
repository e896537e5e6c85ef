#!/usr/bin/env bash
# Are the files under deploy/ right?   usage: deploy/check.sh target/release/postern
#
# Needs the built program with its policies (target/plugins, or $POSTERN_PLUGINS) and Python 3. systemd-analyze, kubectl and
# promtool check more where they are installed.
set -euo pipefail

program=$(realpath "${1:?usage: deploy/check.sh PATH-OF-POSTERN}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# From 0 (good) to 100: what `systemd-analyze security` may say of the unit.
exposure_max=15

main() {
  check_configurations
  check_manifests
  check_kustomizations
  check_units
  check_alerts
  echo "deploy: good"
}

check_configurations() {
  local file
  for file in deploy/config/*.yaml deploy/two-doors/*.yaml; do
    "$program" check --config "$file"
  done
}

check_manifests() {
  if ! python3 -c 'import yaml' 2>/dev/null; then
    python3 -m pip install --quiet --disable-pip-version-check --target "$scratch/python" pyyaml
    export PYTHONPATH=$scratch/python
  fi
  python3 deploy/check_manifests.py "$program"
}

check_kustomizations() {
  local folder
  if ! command -v kubectl >/dev/null; then
    echo "kubectl is not here: the kustomizations were not rendered"
    return
  fi
  for folder in base scaled; do
    kubectl kustomize "deploy/kubernetes/$folder" >"$scratch/$folder.yaml"
    echo "deploy/kubernetes/$folder: renders"
  done
}

# With the program's real place, since the unit names the one that a package would have. systemd-analyze warns about an
# unknown setting and says 0 all the same: so whatever it says of this unit counts.
check_units() {
  local name
  if ! command -v systemd-analyze >/dev/null; then
    echo "systemd-analyze is not here: the units were not checked"
    return
  fi
  for name in postern postern-node postern-classified; do
    check_unit "$name.service"
  done
  check_user_unit postern-connect.service
}

# A user's own manager has no say over mounts and devices, so there is no number for it.
check_user_unit() {
  local unit=$scratch/$1 said
  sed "s#/usr/bin/postern #$program #" "deploy/systemd/$1" >"$unit"
  said=$(XDG_RUNTIME_DIR=$scratch systemd-analyze --user verify --man=no "$unit" 2>&1) || { echo "$said"; return 1; }
  if grep -F "$scratch/$1" <<<"$said"; then
    return 1
  fi
  echo "deploy/systemd/$1: good"
}

check_unit() {
  local unit=$scratch/$1 said
  local sockets=()
  cp deploy/systemd/*.socket "$scratch/"
  if grep -q ^Sockets= "deploy/systemd/$1"; then
    sockets=("$scratch"/*.socket)
  fi
  sed "s#/usr/bin/postern #$program #" "deploy/systemd/$1" >"$unit"
  mkdir "$unit.d"
  cp deploy/systemd/offline.conf "$unit.d/"
  said=$(systemd-analyze verify --man=no "$unit" "${sockets[@]}" 2>&1) || { echo "$said"; return 1; }
  if grep -F "$scratch" <<<"$said"; then
    return 1
  fi
  rm -r "$unit.d"
  # From systemd 250 on.
  if systemd-analyze --help | grep -q -- --threshold; then
    systemd-analyze security --no-pager --offline=true --threshold="$exposure_max" "$unit" | tail -n 1
  else
    echo "deploy/systemd/$1: good"
  fi
}

check_alerts() {
  if ! command -v promtool >/dev/null; then
    echo "promtool is not here: the alerts were parsed, but not tried"
    return
  fi
  (cd deploy/prometheus && promtool check rules rules.yaml && promtool test rules rules.test.yaml)
}

main
