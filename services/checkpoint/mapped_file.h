#pragma once

// A file in memory, read page by page as it is touched.

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace expertmesh {

// Owns a read-only mapping of a whole file. Movable; thread-safe. The file must
// not be shortened while it is mapped (replace model files by renaming).
class MappedFile {
 public:
  // Touches no page, and tells the kernel to read no further than what is
  // touched: the neighbours of a tensor belong to other services.
  // Errors: NOT_FOUND, FAILED_PRECONDITION; both name the file.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  ~MappedFile();

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  // Whether [begin, begin + size) lies inside the mapping.
  bool Contains(const std::byte* begin, size_t size) const;

  // Starts reading a range of the mapping from disk, without waiting.
  void Prefetch(const std::byte* begin, size_t size) const;
  // Gives the pages of a range, and those mapped along with it, back to the
  // kernel. They can be used as before: a touch maps them again.
  void Release(const std::byte* begin, size_t size) const;

 private:
  MappedFile(std::byte* data, size_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace expertmesh
