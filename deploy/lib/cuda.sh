# A CUDA Toolkit to build with. Sourced after packages.sh, from the repository's
# root.

# NVIDIA's Python wheels of one toolkit: compiler and runtime. They hold no
# driver. cuBLAS, for bundles, is two thirds of all.
EXPERTMESH_CUDA_WHEELS=(
  nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
)
EXPERTMESH_CUBLAS_WHEELS=(nvidia-cublas==13.1.0.3)
EXPERTMESH_CUDA_FOLDER=build/cuda-toolkit
EXPERTMESH_OLDEST_CUDA=12.5

# nvcc_here: prints the compiler that CMake finds by itself
# (deploy/lib/cuda.cmake), or nothing.
nvcc_here() {
  local nvcc
  for nvcc in "${CUDACXX:-}" "$(command -v nvcc || true)" \
    "${CUDAToolkit_ROOT:-/usr/local/cuda}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc"; do
    [[ -z $nvcc || ! -x $nvcc ]] || { printf '%s\n' "$nvcc"; return; }
  done
}

# has_cuda: whether there is a compiler, and a new enough one.
has_cuda() {
  local nvcc version
  nvcc=$(nvcc_here)
  [[ -n $nvcc ]] || return
  version=$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')
  printf '%s\n' "$EXPERTMESH_OLDEST_CUDA" "$version" | sort -CV ||
    fail "$nvcc is of CUDA $version, and $EXPERTMESH_OLDEST_CUDA is needed; name another toolkit with CUDAToolkit_ROOT"
}

# cuda_of_wheels: prints where they put it; nothing before that.
cuda_of_wheels() {
  find "$PWD/$EXPERTMESH_CUDA_FOLDER"/lib -path '*/site-packages/nvidia/cu13' -print -quit 2>/dev/null || true
}

# install_wheels WHAT NAME...: into the folder, which is made first.
install_wheels() {
  local what=$1 log
  shift
  install_packages python3 python3-venv
  say "installing $what in $EXPERTMESH_CUDA_FOLDER"
  log=$(mktemp)
  if ! { python3 -m venv "$EXPERTMESH_CUDA_FOLDER" &&
    "$EXPERTMESH_CUDA_FOLDER/bin/pip" install --no-deps --no-cache-dir "$@"; } \
    >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    rm -f "$log"
    fail "$what could not be installed; install a CUDA Toolkit yourself and name it with CUDAToolkit_ROOT"
  fi
  rm -f "$log"
}

# install_cuda: the wheels, where they are not yet.
install_cuda() {
  local home
  home=$(cuda_of_wheels)
  [[ -e $home/complete ]] && return
  install_wheels "a CUDA Toolkit" "${EXPERTMESH_CUDA_WHEELS[@]}"
  home=$(cuda_of_wheels)
  # What they leave out of a toolkit's form.
  ln -sfn lib "$home/lib64"
  ln -sf libcudart.so.13 "$home/lib/libcudart.so"
  touch "$home/complete"
}

# install_cublas: beside them, where it is not yet.
install_cublas() {
  [[ -e $(cuda_of_wheels)/lib/libcublasLt.so.13 ]] ||
    install_wheels cuBLAS "${EXPERTMESH_CUBLAS_WHEELS[@]}"
}

# configure_cuda [CMAKE ARGUMENT...]: the preset cuda, with the toolkit that is
# there or else the wheels'.
configure_cuda() {
  if has_cuda; then
    configure cuda "$@"
  else
    install_cuda
    configure cuda "-DCUDAToolkit_ROOT=$(cuda_of_wheels)" "$@"
  fi
}
