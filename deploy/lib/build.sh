# Configuring and building with the presets of CMakePresets.json.
# Sourced after packages.sh, from the repository's root.

# configure PRESET [CMAKE ARGUMENT...]
configure() {
  local preset=$1 log
  shift
  say "configuring $preset"
  log=$(mktemp)
  if ! cmake --preset "$preset" "$@" >"$log" 2>&1; then
    grep -A 6 'CMake Error' "$log" >&2 || tail -n 20 "$log" >&2
    rm -f "$log"
    fail "cannot configure the preset $preset"
  fi
  rm -f "$log"
}

# build PRESET [TARGET...]: one line of progress that a terminal overwrites;
# elsewhere a line now and then.
build() {
  local preset=$1 log status=0
  shift
  say "building $preset${*:+: $*}"
  log=$(mktemp)
  NINJA_STATUS='[%f/%t] ' cmake --build --preset "$preset" \
    ${1:+--target "$@"} 2>&1 | tee "$log" | build_progress || status=$?
  if ((status != 0)); then
    grep -m 20 -E 'error|FAILED|undefined reference|ninja: ' "$log" >&2 ||
      tail -n 20 "$log" >&2
    rm -f "$log"
    fail "the build of $preset failed"
  fi
  rm -f "$log"
}

# Reads Ninja's lines; shows how far it is. (Not awk: Debian's reads a pipe in
# blocks, so its lines would come late.)
build_progress() {
  local line tenth=0 warnings=0
  while IFS= read -r line; do
    [[ $line == *' warning: '* ]] && ((++warnings))
    [[ $line =~ ^\[([0-9]+)/([0-9]+)\] ]] || continue
    if [[ -t 1 ]]; then
      printf '\r    %d of %d\033[K' "${BASH_REMATCH[@]:1}"
    elif ((BASH_REMATCH[1] * 10 / BASH_REMATCH[2] > tenth)); then
      tenth=$((BASH_REMATCH[1] * 10 / BASH_REMATCH[2]))
      printf '    %d of %d\n' "${BASH_REMATCH[@]:1}"
    fi
  done
  [[ ! -t 1 ]] || printf '\r\033[K'
  ((warnings == 0)) || printf '    %d warnings\n' "$warnings"
}
