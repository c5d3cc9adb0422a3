#include "services/weights_transfer/weight_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"
#include "services/weights_transfer/crc32c.h"

namespace expertmesh {
namespace {

using expert::v1::Manifest;

constexpr char kJournal[] = "pulled.journal";

absl::Status FileError(const std::string& path) {
  return absl::UnavailableError(absl::StrCat(path, ": ", std::strerror(errno)));
}

// Peers choose neither where files go nor what is run.
bool IsCheckpointFile(absl::string_view name) {
  const bool known = name == "config.json" ||
                     name == "generation_config.json" ||
                     name == "model.safetensors.index.json" ||
                     absl::EndsWith(name, ".safetensors");
  return known && name.front() != '.' &&
         name.find('/') == absl::string_view::npos &&
         name.find('\0') == absl::string_view::npos;
}

bool IsFingerprint(absl::string_view text) {
  return !text.empty() && text.size() <= 64 &&
         std::all_of(text.begin(), text.end(), absl::ascii_isxdigit);
}

absl::Status WriteAll(int fd, const std::string& path, absl::string_view data,
                      uint64_t offset) {
  while (!data.empty()) {
    const ssize_t written =
        pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return FileError(path);
    data.remove_prefix(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  return absl::OkStatus();
}

// A new file of `size` bytes that begins with `contents`; the rest is a hole.
absl::Status MakeFile(const std::string& path, absl::string_view contents,
                      uint64_t size) {
  const int fd =
      open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(path);
  absl::Status status = WriteAll(fd, path, contents, 0);
  if (status.ok() && ftruncate(fd, static_cast<off_t>(size)) != 0) {
    status = FileError(path);
  }
  close(fd);
  return status;
}

absl::Status MakeFiles(const std::string& folder, const Manifest& manifest) {
  const auto refuse = [](absl::string_view name) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the manifest names ", Quoted(name), ", which is no checkpoint file"));
  };
  for (const expert::v1::WholeFile& file : manifest.files()) {
    if (!IsCheckpointFile(file.name())) return refuse(file.name());
    RETURN_IF_ERROR(MakeFile(absl::StrCat(folder, "/", file.name()),
                             file.contents(), file.contents().size()));
  }
  for (const expert::v1::WeightFile& file : manifest.weight_files()) {
    if (!IsCheckpointFile(file.name()) ||
        file.size_bytes() < file.header().size() ||
        file.size_bytes() > INT64_MAX) {
      return refuse(file.name());
    }
    RETURN_IF_ERROR(MakeFile(absl::StrCat(folder, "/", file.name()),
                             file.header(), file.size_bytes()));
  }
  return MakeFile(absl::StrCat(folder, "/", kJournal), "", 0);
}

// In one step, so that a folder that is there is complete.
absl::Status LayOut(const std::string& root, const std::string& folder,
                    const Manifest& manifest) {
  std::error_code error;
  std::filesystem::create_directories(root, error);
  std::string fresh = absl::StrCat(root, "/.new-XXXXXX");
  if (mkdtemp(fresh.data()) == nullptr) return FileError(root);
  absl::Status status = MakeFiles(fresh, manifest);
  if (status.ok()) {
    std::filesystem::rename(fresh, folder, error);
    // Another service may have been quicker: its folder is as good.
    if (error && !std::filesystem::is_directory(folder)) {
      status =
          absl::UnavailableError(absl::StrCat(folder, ": ", error.message()));
    }
  }
  std::filesystem::remove_all(fresh, error);
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightCache>> WeightCache::Create(
    const std::string& root, const Manifest& manifest) {
  const std::string& fingerprint = manifest.checkpoint_fingerprint();
  if (!IsFingerprint(fingerprint)) {
    return absl::FailedPreconditionError(absl::StrCat(
        Quoted(fingerprint), " is no fingerprint of a checkpoint"));
  }
  const std::string folder = absl::StrCat(root, "/", fingerprint);
  std::error_code ignored;
  if (!std::filesystem::is_directory(folder, ignored)) {
    RETURN_IF_ERROR(LayOut(root, folder, manifest));
  }
  return Open(root, fingerprint);
}

absl::StatusOr<std::unique_ptr<WeightCache>> WeightCache::OpenOnly(
    const std::string& root) {
  std::vector<std::string> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(root, error)) {
    const std::string name = entry.path().filename().string();
    if (IsFingerprint(name)) found.push_back(name);
  }
  if (found.size() != 1) {
    return absl::NotFoundError(
        absl::StrCat(root, ": holds ", found.size(), " checkpoints"));
  }
  return Open(root, found.front());
}

absl::StatusOr<std::unique_ptr<WeightCache>> WeightCache::Open(
    const std::string& root, const std::string& fingerprint) {
  const std::string folder = absl::StrCat(root, "/", fingerprint);
  ASSIGN_OR_RETURN(TensorIndex index, TensorIndex::Open(folder));
  const std::string path = absl::StrCat(folder, "/", kJournal);
  const int journal = open(path.c_str(), O_RDWR | O_APPEND | O_CLOEXEC);
  if (journal < 0) return FileError(path);
  return std::unique_ptr<WeightCache>(
      new WeightCache(folder, fingerprint, std::move(index), journal));
}

WeightCache::WeightCache(std::string directory, std::string fingerprint,
                         TensorIndex index, int journal)
    : directory_(std::move(directory)),
      fingerprint_(std::move(fingerprint)),
      index_(std::move(index)),
      journal_(journal) {}

WeightCache::~WeightCache() {
  close(journal_);
  for (const auto& [path, fd] : files_) close(fd);
}

absl::StatusOr<uint64_t> WeightCache::TensorBytes(
    const std::string& tensor) const {
  const TensorIndex::Entry entry = index_.Find(tensor);
  if (entry.tensor == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("the checkpoint has no tensor ", Quoted(tensor)));
  }
  return entry.tensor->end - entry.tensor->begin;
}

absl::StatusOr<WeightCache::Lock> WeightCache::Acquire() {
  while (flock(journal_, LOCK_EX) != 0) {
    if (errno != EINTR) return FileError(directory_);
  }
  Lock lock(&records_, [fd = journal_](void*) { flock(fd, LOCK_UN); });
  RETURN_IF_ERROR(ReadJournal());
  return lock;
}

absl::Status WeightCache::ReadJournal() {
  std::string text;
  char buffer[4096];
  while (true) {
    const ssize_t size = pread(journal_, buffer, sizeof(buffer),
                               static_cast<off_t>(journal_read_ + text.size()));
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) return FileError(directory_);
    if (size == 0) break;
    text.append(buffer, static_cast<size_t>(size));
  }
  // A line that was cut off by a kill stays for whoever comes to end it: its
  // bytes then name nothing, and are pulled again.
  const size_t whole = text.rfind('\n') + 1;  // npos + 1 is 0
  journal_read_ += whole;
  for (const absl::string_view line :
       absl::StrSplit(absl::string_view(text).substr(0, whole), '\n')) {
    TakeLine(line);
  }
  return absl::OkStatus();
}

// "CRC OFFSET LENGTH TENSOR", numbers in decimal.
void WeightCache::TakeLine(absl::string_view line) {
  const std::vector<std::string> fields =
      absl::StrSplit(line, absl::MaxSplits(' ', 3));
  uint64_t offset = 0;
  Record record;
  if (fields.size() != 4 || !absl::SimpleAtoi(fields[0], &record.crc32c) ||
      !absl::SimpleAtoi(fields[1], &offset) ||
      !absl::SimpleAtoi(fields[2], &record.length)) {
    return;
  }
  const absl::StatusOr<uint64_t> size = TensorBytes(fields[3]);
  if (!size.ok() || record.length == 0 || offset > *size ||
      record.length > *size - offset) {
    return;
  }
  records_[fields[3]][offset] = record;
}

absl::StatusOr<int> WeightCache::FileOf(const TensorIndex::Entry& entry) {
  const std::string& path = entry.file->path();
  const auto known = files_.find(path);
  if (known != files_.end()) return known->second;
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return FileError(path);
  files_[path] = fd;
  return fd;
}

absl::StatusOr<uint64_t> WeightCache::Have(const std::string& tensor) {
  ASSIGN_OR_RETURN(const uint64_t size, TensorBytes(tensor));
  const TensorIndex::Entry entry = index_.Find(tensor);
  const std::byte* data = entry.file->data(*entry.tensor);
  uint64_t& have = verified_[tensor];
  const Records& records = records_[tensor];
  while (have < size) {
    const auto record = records.find(have);
    if (record == records.end()) break;
    const absl::string_view bytes(reinterpret_cast<const char*>(data + have),
                                  record->second.length);
    const bool right = Crc32c(bytes) == record->second.crc32c;
    entry.file->mapping().Release(data + have, bytes.size());
    if (!right) break;
    have += bytes.size();
  }
  return have;
}

absl::Status WeightCache::Write(const std::string& tensor, uint64_t offset,
                                absl::string_view data, uint32_t crc32c) {
  const TensorIndex::Entry entry = index_.Find(tensor);
  ASSIGN_OR_RETURN(const int fd, FileOf(entry));
  const auto start = static_cast<uint64_t>(entry.file->data(*entry.tensor) -
                                           entry.file->mapping().data());
  RETURN_IF_ERROR(WriteAll(fd, entry.file->path(), data, start + offset));
  // Begins with a newline, in case a line before it was cut off.
  const std::string line = absl::StrCat("\n", crc32c, " ", offset, " ",
                                        data.size(), " ", tensor, "\n");
  if (write(journal_, line.data(), line.size()) !=
      static_cast<ssize_t>(line.size())) {
    return FileError(directory_);
  }
  records_[tensor][offset] = {data.size(), crc32c};
  if (verified_[tensor] == offset) verified_[tensor] += data.size();
  return absl::OkStatus();
}

}  // namespace expertmesh
