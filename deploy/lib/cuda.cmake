# The CUDA language, for expert_service/kernels/cuda and expert_service/device.
# Included by CMakeLists.txt with EXPERTMESH_CUDA.

# By CMake's usual means first; then beside the toolkit that is named, and where
# NVIDIA's packages put it.
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(EXPERTMESH_NVCC nvcc
    HINTS ${CUDAToolkit_ROOT}/bin $ENV{CUDAToolkit_ROOT}/bin $ENV{CUDA_PATH}/bin
    PATHS /usr/local/cuda/bin)
  if(NOT EXPERTMESH_NVCC)
    message(FATAL_ERROR "CUDA: no nvcc found; install the CUDA Toolkit 12.5 or "
      "newer, or name it with -DCUDAToolkit_ROOT=DIR; deploy/lib/cuda.sh can "
      "install one under build/")
  endif()
  set(CMAKE_CUDA_COMPILER ${EXPERTMESH_NVCC} CACHE FILEPATH "The CUDA compiler")
endif()

# Machine code for Ampere (sm_86 and sm_89 run it too) and Hopper, and PTX that
# drivers compile for what comes after.
set(CMAKE_CUDA_ARCHITECTURES 80-real 90 CACHE STRING "As CMake takes them")
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.5)
  message(FATAL_ERROR "CUDA: ${CMAKE_CUDA_COMPILER} is "
    "${CMAKE_CUDA_COMPILER_VERSION}; 12.5 or newer is needed")
endif()
find_package(CUDAToolkit 12.5 REQUIRED)

# CMake 3.25 does not know that these compilers have C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
endif()
if(CCACHE)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()
# Multiply-adds are fused only where the source says so, as on the CPU.
add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-Wno-unused-parameter,-ffp-contract=off>")
