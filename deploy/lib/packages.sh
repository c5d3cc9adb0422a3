# Debian packages the project stands on, and how to install what is missing.
# Sourced by deploy/quickstart, tests/run and .ci/run.

# To build and run the binaries.
EXPERTMESH_BUILD_PACKAGES=(
  build-essential cmake ninja-build ccache mold pkg-config
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler
  libabsl-dev prometheus-cpp-dev libcurl4-openssl-dev nlohmann-json3-dev
  libcli11-dev libpcre2-dev libutf8proc-dev libssl-dev zlib1g-dev
)
# To build and run the tests as well.
EXPERTMESH_TEST_PACKAGES=(
  libgtest-dev libgmock-dev libbenchmark-dev prometheus
  openssl python3 python3-grpcio python3-protobuf python3-numpy python3-yaml
)

# say TEXT: one line of progress.
say() { printf '==> %s\n' "$*"; }

# fail TEXT: says what is wrong and ends the script.
fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# missing_packages NAME...: prints those that are not installed.
missing_packages() {
  local name
  for name in "$@"; do
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null |
      grep -q '^install ok installed$' || printf '%s\n' "$name"
  done
}

# What invoke-rc.d and deb-systemd-invoke ask before they start a daemon. Tests
# name another file.
EXPERTMESH_POLICY_FILE=${EXPERTMESH_POLICY_FILE:-/usr/sbin/policy-rc.d}

# sh -c SCRIPT install POLICY_FILE NAME...: installs, as root, without starting
# the daemon of any package (prometheus has one): the policy says no while it
# runs. One that the machine's owner wrote is left alone, and decides.
EXPERTMESH_QUIET_INSTALL='
policy=$1
shift
if [ ! -e "$policy" ] && [ ! -L "$policy" ]; then
  trap "rm -f \"\$policy\"" EXIT
  trap "exit 130" HUP INT TERM
  printf "#!/bin/sh\nexit 101\n" >"$policy" && chmod 755 "$policy" || exit 1
fi
apt-get install -y --no-install-recommends "$@"
'

# install_packages NAME...: installs what is missing; nothing to do, nothing
# touched, and no root needed.
install_packages() {
  command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
    fail "this needs Debian 12 or a system with its packages: $*"
  local -a missing
  # Package names have no blanks.
  missing=($(missing_packages "$@"))
  if ((${#missing[@]} == 0)); then
    return 0
  fi
  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null ||
      fail "these packages are missing, and there is no sudo to install them: ${missing[*]}"
    as_root=(sudo)
  fi
  say "installing ${#missing[@]} packages: ${missing[*]}"
  local log
  log=$(mktemp)
  # The lists are fetched only where they lack a package.
  if ! apt-get install --simulate "${missing[@]}" >/dev/null 2>&1; then
    "${as_root[@]}" apt-get update >"$log" 2>&1 ||
      { tail -n 5 "$log" >&2; rm -f "$log"; fail "apt-get update failed"; }
  fi
  apt_install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive sh -c \
      "$EXPERTMESH_QUIET_INSTALL" install "$EXPERTMESH_POLICY_FILE" \
      "${missing[@]}" >"$log" 2>&1
  }
  # Lists that are there may still be too old to fetch from.
  if ! apt_install; then
    "${as_root[@]}" apt-get update >"$log" 2>&1 || true
    apt_install ||
      { tail -n 5 "$log" >&2; rm -f "$log"; fail "apt-get could not install: ${missing[*]}"; }
  fi
  rm -f "$log"
}
