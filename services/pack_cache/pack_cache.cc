#include "services/pack_cache/pack_cache.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/core/log.h"

namespace expertmesh {
namespace {

namespace fs = std::filesystem;

constexpr char kSuffix[] = ".pack";
constexpr char kTemporarySuffix[] = ".tmp";
// No file takes that long to write.
constexpr std::chrono::hours kLeftoverAge{1};

absl::Status Rename(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat(to, ": ", std::strerror(errno)));
}

}  // namespace

bool IsPackedAs(const PackedMatrix& matrix, int64_t n, int64_t k,
                WeightFormat format) {
  return matrix.n() == n && matrix.k() == k && matrix.format() == format;
}

PackCache::PackCache(const std::string& directory,
                     const std::string& fingerprint)
    : folder_(absl::StrCat(directory, "/", fingerprint)),
      fingerprint_(fingerprint),
      writer_(absl::StrCat(absl::Hex(std::random_device()()))) {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) {
    writable_ = false;
    Log(LogLevel::kWarning, "packed weights cannot be kept",
        {{"folder", folder_}, {"error", error.message()}});
  }
  RemoveLeftovers();
}

std::string PackCache::PathOf(absl::string_view name) const {
  return absl::StrCat(folder_, "/", name, kSuffix);
}

void PackCache::RemoveLeftovers() const {
  std::error_code error;
  const auto now = fs::file_time_type::clock::now();
  for (fs::directory_iterator it(folder_, error), end; !error && it != end;
       it.increment(error)) {
    if (!absl::EndsWith(it->path().native(), kTemporarySuffix)) continue;
    std::error_code ignored;
    const auto written = it->last_write_time(ignored);
    if (!ignored && now - written > kLeftoverAge) {
      fs::remove(it->path(), ignored);
    }
  }
}

std::vector<PackedMatrix> PackCache::Load(absl::string_view name,
                                          uint64_t sample) {
  absl::StatusOr<std::vector<PackedMatrix>> matrices =
      ReadPackFile(PathOf(name), {fingerprint_, sample});
  if (matrices.ok()) {
    ++hits_;
    return *std::move(matrices);
  }
  ++misses_;
  if (!absl::IsNotFound(matrices.status())) {
    Log(LogLevel::kWarning, "kept weights cannot be used and are packed anew",
        {{"error", matrices.status().message()}});
  }
  return {};
}

void PackCache::Store(absl::string_view name, uint64_t sample,
                      absl::Span<const PackedMatrix> matrices) {
  if (!writable_.load(std::memory_order_relaxed)) return;
  const std::string temporary =
      absl::StrCat(folder_, "/", name, ".", writer_, ".", ++next_temporary_,
                   kTemporarySuffix);
  absl::Status status =
      WritePackFile(temporary, {fingerprint_, sample}, matrices);
  if (status.ok()) status = Rename(temporary, PathOf(name));
  if (status.ok()) {
    ++stored_;
    return;
  }
  unlink(temporary.c_str());
  // Once: what fails for one file fails for all.
  if (writable_.exchange(false)) {
    Log(LogLevel::kWarning, "packed weights cannot be kept",
        {{"error", status.message()}});
  }
}

}  // namespace expertmesh
