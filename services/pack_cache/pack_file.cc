#include "services/pack_cache/pack_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "services/core/huge_page_arena.h"
#include "services/core/status_macros.h"
#include "services/linalg/isa/panel_layout.h"

namespace expertmesh {
namespace {

constexpr uint64_t kMagic = 0x31304b4341504d45;  // "EMPACK01"
constexpr uint64_t kPageBytes = 4096;
constexpr uint32_t kMaxMatrices = 16;
constexpr int64_t kMaxDimension = int64_t{1} << 24;

struct MatrixHeader {
  int64_t n;
  int64_t k;
  uint64_t format;
  uint64_t offset;  // in the file
  uint64_t bytes;
  uint64_t checksum;
};

struct PackFileHeader {
  uint64_t magic;
  uint64_t checksum;  // of this header with a 0 here
  uint64_t file_bytes;
  uint64_t layout;  // kPanelLayoutVersion
  uint64_t sample;
  char fingerprint[64];
  uint64_t num_matrices;
  MatrixHeader matrices[kMaxMatrices];
};
static_assert(sizeof(PackFileHeader) <= kPageBytes);

uint64_t UpToPage(uint64_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

template <typename T>
absl::string_view BytesOf(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

uint64_t HeaderChecksum(PackFileHeader header) {
  header.checksum = 0;
  return PackChecksum(BytesOf(header));
}

absl::string_view BytesOf(const PackedMatrix& matrix) {
  return {reinterpret_cast<const char*>(matrix.panel(0)), matrix.size_bytes()};
}

PackFileHeader HeaderFor(const PackSource& source,
                         absl::Span<const PackedMatrix> matrices) {
  PackFileHeader header = {};
  header.magic = kMagic;
  header.layout = kPanelLayoutVersion;
  header.sample = source.sample;
  source.fingerprint.copy(header.fingerprint, sizeof(header.fingerprint) - 1);
  header.num_matrices = matrices.size();
  uint64_t end = kPageBytes;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const PackedMatrix& matrix = matrices[i];
    header.matrices[i] = {
        matrix.n(), matrix.k(),          static_cast<uint64_t>(matrix.format()),
        end,        matrix.size_bytes(), PackChecksum(BytesOf(matrix))};
    end += UpToPage(matrix.size_bytes());
  }
  header.file_bytes = end;
  header.checksum = HeaderChecksum(header);
  return header;
}

absl::Status WriteAt(int fd, uint64_t offset, absl::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written =
        pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      return absl::UnavailableError(
          std::strerror(written < 0 ? errno : ENOSPC));
    }
    bytes.remove_prefix(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, const PackFileHeader& header,
                      absl::Span<const PackedMatrix> matrices) {
  // The holes behind matrices read as zeros.
  if (ftruncate(fd, static_cast<off_t>(header.file_bytes)) != 0) {
    return absl::UnavailableError(std::strerror(errno));
  }
  for (size_t i = 0; i < matrices.size(); ++i) {
    RETURN_IF_ERROR(
        WriteAt(fd, header.matrices[i].offset, BytesOf(matrices[i])));
  }
  return WriteAt(fd, 0, BytesOf(header));
}

// Fills `out`. Whether the file has so much there.
bool ReadAt(int fd, uint64_t offset, size_t bytes, void* out) {
  auto* to = static_cast<std::byte*>(out);
  while (bytes > 0) {
    const ssize_t read = pread(fd, to, bytes, static_cast<off_t>(offset));
    if (read < 0 && errno == EINTR) continue;
    if (read <= 0) return false;
    to += read;
    offset += static_cast<uint64_t>(read);
    bytes -= static_cast<size_t>(read);
  }
  return true;
}

// What keeps a file from being used, in words; "" where nothing does.
std::string FaultOf(const PackFileHeader& header, uint64_t file_bytes,
                    const PackSource& source) {
  if (header.magic != kMagic) return "is no file of packed weights";
  if (HeaderChecksum(header) != header.checksum) return "has a broken header";
  if (header.layout != kPanelLayoutVersion) return "has another layout";
  if (header.file_bytes != file_bytes) return "is not whole";
  const absl::string_view fingerprint(
      header.fingerprint,
      strnlen(header.fingerprint, sizeof(header.fingerprint)));
  if (source.fingerprint != fingerprint ||
      (source.sample != 0 && source.sample != header.sample)) {
    return "is of other weights";
  }
  // From here on only our own faults could show.
  if (header.num_matrices > kMaxMatrices) return "has too many matrices";
  for (uint64_t i = 0; i < header.num_matrices; ++i) {
    const MatrixHeader& matrix = header.matrices[i];
    const bool fits =
        matrix.n >= 0 && matrix.n <= kMaxDimension && matrix.k >= 0 &&
        matrix.k <= kMaxDimension &&
        matrix.format <= static_cast<uint64_t>(WeightFormat::kInt4) &&
        matrix.bytes == static_cast<uint64_t>(PackedBytes(
                            matrix.n, matrix.k,
                            static_cast<WeightFormat>(matrix.format))) &&
        matrix.offset % kPageBytes == 0 && matrix.offset <= file_bytes &&
        matrix.bytes <= file_bytes - matrix.offset;
    if (!fits) return "has a matrix that does not fit";
  }
  return "";
}

}  // namespace

uint64_t PackChecksum(absl::string_view bytes) {
  // Eight chains of multiplications side by side. Each step maps words to
  // states one to one, so that no single change is lost.
  constexpr uint64_t kPrime = 0x9e3779b97f4a7c15;
  constexpr size_t kLanes = 8;
  constexpr size_t kStep = kLanes * sizeof(uint64_t);
  uint64_t lanes[kLanes];
  for (size_t i = 0; i < kLanes; ++i) lanes[i] = kPrime * (i + 1);
  const auto add = [&](const char* step) {
    for (size_t i = 0; i < kLanes; ++i) {
      uint64_t word;
      std::memcpy(&word, step + i * sizeof(word), sizeof(word));
      lanes[i] = std::rotl((lanes[i] ^ word) * kPrime, 29);
    }
  };
  size_t at = 0;
  for (; at + kStep <= bytes.size(); at += kStep) add(bytes.data() + at);
  char last[kStep] = {};
  std::copy_n(bytes.data() + at, bytes.size() - at, last);
  add(last);
  uint64_t sum = bytes.size();
  for (const uint64_t lane : lanes) {
    sum = std::rotl((sum ^ lane) * kPrime, 31);
  }
  return sum ^ sum >> 32;
}

absl::Status WritePackFile(const std::string& path, const PackSource& source,
                           absl::Span<const PackedMatrix> matrices) {
  if (matrices.size() > kMaxMatrices) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": too many matrices"));
  }
  const int fd =
      open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  absl::Status status =
      fd < 0 ? absl::UnavailableError(std::strerror(errno))
             : WriteAll(fd, HeaderFor(source, matrices), matrices);
  // Some file systems tell only now that there was no room.
  if (fd >= 0 && close(fd) != 0 && status.ok()) {
    status = absl::UnavailableError(std::strerror(errno));
  }
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(path, ": ", status.message()));
}

absl::StatusOr<std::vector<PackedMatrix>> ReadPackFile(
    const std::string& path, const PackSource& source) {
  const auto fault = [&](absl::string_view what) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": ", what));
  };
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file"));
  }
  if (fd < 0) return fault(std::strerror(errno));
  const absl::Cleanup close_file = [fd] { close(fd); };
  struct stat status;
  if (fstat(fd, &status) != 0) return fault(std::strerror(errno));
  const auto file_bytes = static_cast<uint64_t>(status.st_size);
  if (file_bytes < kPageBytes) return fault("is not whole");
  PackFileHeader header;
  if (!ReadAt(fd, 0, sizeof(header), &header)) return fault("cannot be read");
  if (const std::string what = FaultOf(header, file_bytes, source);
      !what.empty()) {
    return fault(what);
  }
  std::vector<PackedMatrix> matrices;
  for (uint64_t i = 0; i < header.num_matrices; ++i) {
    const MatrixHeader& matrix = header.matrices[i];
    const std::shared_ptr<std::byte> panels =
        HugePageArena::Shared().Allocate(matrix.bytes);
    if (!ReadAt(fd, matrix.offset, matrix.bytes, panels.get())) {
      return fault("cannot be read");
    }
    const absl::string_view bytes(reinterpret_cast<const char*>(panels.get()),
                                  matrix.bytes);
    if (PackChecksum(bytes) != matrix.checksum) return fault("is corrupt");
    matrices.push_back(PackedMatrix::FromPanels(
        matrix.n, matrix.k, static_cast<WeightFormat>(matrix.format), panels));
  }
  return matrices;
}

}  // namespace expertmesh
