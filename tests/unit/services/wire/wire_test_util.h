#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "services/wire/payload_pool.h"

namespace expertmesh {

// The bytes of `buffer`, joined.
inline std::string Flatten(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

// A buffer of many slices of random odd lengths up to `max_slice`, some empty.
inline grpc::ByteBuffer Shatter(const std::string& bytes, std::mt19937& random,
                                size_t max_slice) {
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < bytes.size();) {
    const size_t n =
        std::min(bytes.size() - i, size_t{random() % (max_slice + 1)});
    slices.emplace_back(bytes.data() + i, n);
    i += n;
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

inline PayloadRef FilledPayload(PayloadPool& pool, size_t size, int seed) {
  PayloadRef payload = pool.Acquire(size);
  std::mt19937 random(seed);
  for (size_t i = 0; i < size; ++i) {
    payload.data()[i] = static_cast<std::byte>(random());
  }
  return payload;
}

inline std::string AsString(const PayloadRef& payload) {
  return std::string(reinterpret_cast<const char*>(payload.data()),
                     payload.size());
}

}  // namespace expertmesh
