#include "services/shared_memory/shared_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

// The first part of an offer: the form of all that follows, memory included.
constexpr char kVersion[] = "1";
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
// Of Linux 6.3, newer than the system's headers may be.
constexpr unsigned kNoExecSeal = 0x0008U;

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", strerror(errno)));
}

// A file in memory, not executable where the kernel knows such; some kernels
// are told to allow no other. Negative with errno.
int CreateFile() {
  constexpr unsigned kFlags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  const int file = memfd_create("expertmesh", kFlags | kNoExecSeal);
  if (file >= 0 || errno != EINVAL) return file;
  return memfd_create("expertmesh", kFlags);
}

// Whether nobody can change the size of `file`. Other seals may be there too.
bool IsSizeFixed(int file) {
  const int seals = fcntl(file, F_GET_SEALS);
  return seals >= 0 && (seals & kSeals) == kSeals;
}

// Closes a file at the end of the scope.
class ScopedFile {
 public:
  explicit ScopedFile(int file) : file_(file) {}
  ~ScopedFile() {
    if (file_ >= 0) close(file_);
  }
  ScopedFile(const ScopedFile&) = delete;
  ScopedFile& operator=(const ScopedFile&) = delete;
  int get() const { return file_; }

 private:
  const int file_;
};

// The running kernel, and the process ids that mean the same there. Empty where
// the system does not tell.
std::string ProcessSpace() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot_id;
  struct stat pids;
  if (!(file >> boot_id) || stat("/proc/self/ns/pid", &pids) != 0) return "";
  return absl::StrCat(boot_id, "/", pids.st_ino);
}

}  // namespace

absl::Status SharedMemory::Map(int file, size_t size) {
  void* map = mmap(nullptr, kDataAt + size, PROT_READ | PROT_WRITE, MAP_SHARED,
                   file, 0);
  if (map == MAP_FAILED) return SystemError("mmap");
  map_ = map;
  map_size_ = kDataAt + size;
  return absl::OkStatus();
}

absl::StatusOr<SharedMemory> SharedMemory::Create(size_t size) {
  SharedMemory memory;
  memory.file_ = CreateFile();
  if (memory.file_ < 0) return SystemError("memfd_create");
  if (ftruncate(memory.file_, static_cast<off_t>(kDataAt + size)) != 0) {
    return SystemError("ftruncate");
  }
  if (fcntl(memory.file_, F_ADD_SEALS, kSeals) != 0) {
    return SystemError("sealing memory");
  }
  RETURN_IF_ERROR(memory.Map(memory.file_, size));
  std::random_device random;
  for (uint64_t& half : memory.secret_) {
    half = uint64_t{random()} << 32 | random();
  }
  std::memcpy(memory.map_, memory.secret_.data(), sizeof(Secret));
  return memory;
}

std::string SharedMemory::Offer() const {
  return absl::StrCat(kVersion, ":", ProcessSpace(), ":", getpid(), ":", file_,
                      ":", absl::Hex(secret_[0]), ":", absl::Hex(secret_[1]));
}

void SharedMemory::Withdraw() {
  if (file_ >= 0) close(std::exchange(file_, -1));
}

absl::StatusOr<SharedMemory> SharedMemory::Open(absl::string_view offer,
                                                size_t size) {
  const std::vector<absl::string_view> parts = absl::StrSplit(offer, ':');
  int32_t process, descriptor;
  SharedMemory memory;
  if (parts.size() != 6 || parts[0] != kVersion ||
      !absl::SimpleAtoi(parts[2], &process) || process <= 0 ||
      !absl::SimpleAtoi(parts[3], &descriptor) || descriptor < 0 ||
      !absl::SimpleHexAtoi(parts[4], &memory.secret_[0]) ||
      !absl::SimpleHexAtoi(parts[5], &memory.secret_[1])) {
    return absl::UnavailableError("not an offer this version understands");
  }
  if (parts[1].empty() || parts[1] != ProcessSpace()) {
    return absl::UnavailableError("offered on another host or container");
  }
  const std::string path = absl::StrCat("/proc/", process, "/fd/", descriptor);
  // Looked at before it is opened: opening other things than plain files may
  // block, or do something.
  const auto fits = [size](const struct stat& file) {
    return S_ISREG(file.st_mode) && file.st_uid == geteuid() &&
           file.st_size == static_cast<off_t>(kDataAt + size);
  };
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return SystemError(path);
  if (!fits(status)) {
    return absl::UnavailableError("not memory of this user and size");
  }
  const ScopedFile file(
      open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (file.get() < 0) return SystemError(path);
  if (fstat(file.get(), &status) != 0 || !fits(status) ||
      !IsSizeFixed(file.get())) {
    return absl::UnavailableError("not memory whose size is fixed");
  }
  RETURN_IF_ERROR(memory.Map(file.get(), size));
  if (std::memcmp(memory.map_, memory.secret_.data(), sizeof(Secret)) != 0) {
    return absl::UnavailableError("not the memory that was offered");
  }
  return memory;
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : map_(std::exchange(other.map_, nullptr)),
      map_size_(other.map_size_),
      file_(std::exchange(other.file_, -1)),
      secret_(other.secret_) {}

SharedMemory& SharedMemory::operator=(SharedMemory&& other) noexcept {
  std::swap(map_, other.map_);
  std::swap(map_size_, other.map_size_);
  std::swap(file_, other.file_);
  std::swap(secret_, other.secret_);
  return *this;
}

SharedMemory::~SharedMemory() {
  if (map_ != nullptr) munmap(map_, map_size_);
  Withdraw();
}

}  // namespace expertmesh
