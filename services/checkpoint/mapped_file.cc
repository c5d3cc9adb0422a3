#include "services/checkpoint/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace expertmesh {
namespace {

uintptr_t PageSize() {
  static const auto size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return size;
}

absl::Status FileError(const std::string& path, int error) {
  const std::string message = absl::StrCat(path, ": ", std::strerror(error));
  return error == ENOENT || error == ENOTDIR
             ? absl::NotFoundError(message)
             : absl::FailedPreconditionError(message);
}

}  // namespace

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  // O_NONBLOCK: opening a pipe by mistake must fail, not wait for a writer.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return FileError(path, errno);
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  struct stat info;
  if (fstat(fd, &info) != 0) return FileError(path, errno);
  if (!S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": not a regular file"));
  }
  const auto size = static_cast<size_t>(info.st_size);
  if (size == 0) return MappedFile(nullptr, 0);
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED) return FileError(path, errno);
  madvise(data, size, MADV_RANDOM);
  return MappedFile(static_cast<std::byte*>(data), size);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

bool MappedFile::Contains(const std::byte* begin, size_t size) const {
  const auto base = reinterpret_cast<uintptr_t>(data_);
  const auto first = reinterpret_cast<uintptr_t>(begin);
  return first >= base && first - base <= size_ &&
         size <= size_ - (first - base);
}

void MappedFile::Prefetch(const std::byte* begin, size_t size) const {
  const uintptr_t page = PageSize();
  const auto first = reinterpret_cast<uintptr_t>(begin) & ~(page - 1);
  const auto end = reinterpret_cast<uintptr_t>(begin) + size;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_WILLNEED);
}

void MappedFile::Release(const std::byte* begin, size_t size) const {
  // A touch maps what the page cache holds around it, up to a huge page: all of
  // that goes.
  constexpr size_t kBlock = size_t{2} << 20;
  const auto offset = static_cast<size_t>(begin - data_);
  const size_t first = offset / kBlock * kBlock;
  const size_t end =
      std::min(size_, (offset + size + kBlock - 1) / kBlock * kBlock);
  if (first < end) madvise(data_ + first, end - first, MADV_DONTNEED);
}

}  // namespace expertmesh
