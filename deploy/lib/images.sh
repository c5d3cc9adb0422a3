# What docker, podman and buildah do differently. Sourced after packages.sh by
# deploy/build_images, which sets $engine and $work.

# Docker's older builder has no caches. The chroot form of the other two asks
# least of the machine, and our builds need no more.
export DOCKER_BUILDKIT=1
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}

# find_engine: prints the one to use: EXPERTMESH_ENGINE, or the first that works.
find_engine() {
  local engine=${EXPERTMESH_ENGINE:-}
  if [[ -n $engine ]]; then
    [[ $engine == docker || $engine == podman || $engine == buildah ]] ||
      fail "EXPERTMESH_ENGINE is docker, podman or buildah, not $engine"
    command -v "$engine" >/dev/null || fail "there is no $engine here"
  elif docker info >/dev/null 2>&1; then
    engine=docker
  else
    engine=$(for engine in podman buildah; do
      ! command -v "$engine" || break
    done)
    [[ -n $engine ]] ||
      fail "there is no docker, podman or buildah here; install one: apt-get install podman"
  fi
  basename "$engine"
}

# save_image NAME:TAG FILE: as `docker save` does, replacing FILE.
save_image() {
  say "writing $2"
  rm -f -- "$2"
  case $engine in
    docker) docker save -o "$2" "$1" ;;
    *) "$engine" push -q "$1" "docker-archive:$2:$1" ;;
  esac >"$work/log" 2>&1 || fail "cannot write $2: $(tail -n 1 "$work/log")"
}

# push_image NAME:TAG REGISTRY/NAME:TAG
push_image() {
  say "pushing $2"
  case $engine in
    docker) docker tag "$1" "$2" && docker push -q "$2" ;;
    *) "$engine" push -q "$1" "docker://$2" ;;
  esac >"$work/log" 2>&1 || fail "cannot push $2: $(tail -n 1 "$work/log")"
}

# stop_containers ID...: ends and forgets them.
stop_containers() {
  (($# == 0)) || "$engine" rm -f "$@" >/dev/null 2>&1 || true
}
