#pragma once

// Functions of hosts and of devices, in headers that both compile.

#if defined(__CUDACC__)
#define EXPERTMESH_HOST_DEVICE __host__ __device__
#else
#define EXPERTMESH_HOST_DEVICE
#endif
