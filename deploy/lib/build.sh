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

# Reads Ninja's lines; shows how far it is.
build_progress() {
  awk -v terminal="$([[ -t 1 ]] && echo 1 || echo 0)" '
    match($0, /^\[[0-9]+\/[0-9]+\]/) {
      split(substr($0, 2, RLENGTH - 2), at, "/")
      if (terminal) {
        printf "\r    %d of %d\033[K", at[1], at[2]; fflush()
      } else if (int(at[1] * 10 / at[2]) > tenth) {
        tenth = int(at[1] * 10 / at[2])
        printf "    %d of %d\n", at[1], at[2]; fflush()
      }
    }
    / warning: / { warnings++ }
    END {
      if (terminal) printf "\r\033[K"
      if (warnings) printf "    %d warnings\n", warnings
    }'
}
