# Starts containers of the images that deploy/build_images made, and asks them
# for text. Sourced by it, with $engine, $tag, $work and $started.

# Ready files go here, whoever the images run as. Shells are hidden by an empty
# file.
mkdir -m 777 "$work/ready"
: >"$work/nothing"

confined=(
  --network host --read-only --cap-drop ALL --security-opt no-new-privileges
  # Where the engine itself may not raise what its defaults ask for.
  --ulimit nofile=4096:4096 --ulimit nproc=4096:4096
  --volume "$PWD/deploy/demo_model:/model:ro"
  --volume "$work/ready:/ready"
  --volume "$work/nothing:/usr/bin/dash:ro"
  --volume "$work/nothing:/usr/bin/bash:ro"
)
# By default its read-only is not so for /tmp and others.
[[ $engine != podman ]] || confined+=(--read-only-tmpfs=false)

# start NAME IMAGE FLAG...: sets $address to that of its ready file, and $id.
start() {
  local name=$1 image=$2
  shift 2
  id=$("$engine" run --detach "${confined[@]}" "expertmesh-$image:$tag" \
    --ready-file "/ready/$name.json" --listen 127.0.0.1:0 --log-format json \
    "$@" 2>"$work/log") || fail "$engine cannot start $name: $(tail -n 1 "$work/log")"
  started+=("$id")
}

# await NAME ID: sets $address.
await() {
  until [[ -s $work/ready/$1.json ]]; do
    [[ $("$engine" inspect -f '{{.State.Running}}' "$2") == true ]] ||
      fail "$1 ended: $("$engine" logs "$2" 2>&1 | tail -n 1)"
    sleep 0.05
  done
  address=$(sed -n 's/.*"grpc":"\([^"]*\)".*/\1/p' "$work/ready/$1.json")
}

# cli ARGUMENT...: the command line of the router's image.
cli() {
  "$engine" run --rm "${confined[@]}" --entrypoint /usr/bin/expertmesh \
    "expertmesh-router:$tag" "$@"
}

for image in router expert; do
  user=$("$engine" image inspect -f '{{.Config.User}}' "expertmesh-$image:$tag" 2>/dev/null) ||
    fail "there is no expertmesh-$image:$tag"
  [[ $user == 65532:65532 ]] || fail "expertmesh-$image runs as $user"
  packages=$("$engine" run --rm "${confined[@]}" --entrypoint /usr/bin/cat \
    "expertmesh-$image:$tag" /usr/share/doc/expertmesh/packages.txt)
  grep -q '^libgrpc29 ' <<<"$packages" || fail "expertmesh-$image does not list its packages"
  compilers=$(grep -oE '^(gcc|g\+\+|cpp|clang|binutils|make|[^ ]*-dev)(-[0-9]+)? ' <<<"$packages" || true)
  [[ -z $compilers ]] || fail "expertmesh-$image has a compiler: $compilers"
  bytes=$("$engine" image inspect -f '{{.Size}}' "expertmesh-$image:$tag")
  say "expertmesh-$image:$tag: $((bytes >> 20)) MiB, $(wc -l <<<"$packages") packages"
done

say "starting a router and two expert services of the images"
start first expert --model /model --experts 0-7
first=$id
start second expert --model /model --experts 8-15
second=$id
await first "$first"
experts=$address
await second "$second"
experts+=,$address
start router router --model /model --experts-at "$experts"
await router "$id"

text=$(cli generate --server "$address" --prompt 'def sum_' --max-tokens 40 \
  --temperature 0 2>"$work/log") || fail "no answer: $(tail -n 1 "$work/log")"
[[ -n $text ]] || fail "the answer is empty"
printf 'def sum_%s\n' "$text"

say "ending them"
for id in "${started[@]}"; do
  "$engine" stop --time 60 "$id" >/dev/null
  code=$("$engine" inspect -f '{{.State.ExitCode}}' "$id")
  ((code == 0)) || fail "a container ended with $code: $("$engine" logs "$id" 2>&1 | tail -n 1)"
done
