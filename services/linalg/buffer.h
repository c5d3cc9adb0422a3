#pragma once

// Aligned memory.

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace expertmesh {

// Owns `size` bytes, 64-byte aligned, uninitialised. Movable.
class Buffer {
 public:
  static constexpr size_t kAlignment = 64;

  Buffer() = default;
  explicit Buffer(size_t size)
      : data_(static_cast<std::byte*>(
            ::operator new (size, std::align_val_t{kAlignment}))),
        size_(size) {}

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return size_; }

  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_.get());
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }

 private:
  struct Deleter {
    void operator()(std::byte* p) const {
      ::operator delete (p, std::align_val_t{kAlignment});
    }
  };
  std::unique_ptr<std::byte[], Deleter> data_;
  size_t size_ = 0;
};

}  // namespace expertmesh
