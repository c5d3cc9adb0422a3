#include "services/weights_transfer/weight_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "services/checkpoint/json_reader.h"
#include "services/core/status_macros.h"
#include "services/core/stoppable_sleep.h"
#include "services/weights_transfer/crc32c.h"

namespace expertmesh {
namespace {

using expert::v1::Manifest;

constexpr char kJournal[] = "pulled.journal";
constexpr char kFreshPrefix[] = ".new-";
constexpr absl::Duration kLockPoll = absl::Milliseconds(20);

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

// The tensor's first byte in its file.
uint64_t StartOf(const TensorIndex::Entry& entry) {
  return static_cast<uint64_t>(entry.file->data(*entry.tensor) -
                               entry.file->mapping().data());
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

// Whether an open file has `size` bytes and begins with `contents`.
bool IsLike(int fd, absl::string_view contents, uint64_t size) {
  struct stat info;
  if (fstat(fd, &info) != 0 || static_cast<uint64_t>(info.st_size) != size) {
    return false;
  }
  std::string found(contents.size(), '\0');
  return pread(fd, found.data(), found.size(), 0) ==
             static_cast<ssize_t>(found.size()) &&
         found == contents;
}

// Makes a file be of `size` bytes that begin with `contents`, unless it is. The
// rest stays, or is a hole. In place: others may have mapped it.
absl::Status MakeFile(const std::string& path, absl::string_view contents,
                      uint64_t size) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(path);
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  if (IsLike(fd, contents, size)) return absl::OkStatus();
  RETURN_IF_ERROR(WriteAll(fd, path, contents, 0));
  if (ftruncate(fd, static_cast<off_t>(size)) != 0 || fsync(fd) != 0) {
    return FileError(path);
  }
  return absl::OkStatus();
}

absl::Status SyncFolder(const std::string& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FileError(folder);
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  return fsync(fd) == 0 ? absl::OkStatus() : FileError(folder);
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
  const std::string journal = absl::StrCat(folder, "/", kJournal);
  const int fd = open(journal.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return FileError(journal);
  close(fd);
  return SyncFolder(folder);
}

// Folders of services that were killed while they laid theirs out. Requires
// that nobody is at it.
void RemoveLeftovers(const std::string& root) {
  std::error_code ignored;
  std::vector<std::filesystem::path> leftovers;
  for (const auto& entry : std::filesystem::directory_iterator(root, ignored)) {
    if (absl::StartsWith(entry.path().filename().string(), kFreshPrefix)) {
      leftovers.push_back(entry.path());
    }
  }
  for (const auto& path : leftovers) {
    std::filesystem::remove_all(path, ignored);
  }
}

// In one step, so that a folder that is there is complete.
absl::Status LayOut(const std::string& root, const std::string& folder,
                    const Manifest& manifest) {
  std::error_code error;
  std::filesystem::create_directories(root, error);
  const int fd = open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FileError(root);
  const auto closer = absl::MakeCleanup([fd] { close(fd); });
  if (flock(fd, LOCK_EX | LOCK_NB) == 0) RemoveLeftovers(root);
  flock(fd, LOCK_SH);  // whoever has it exclusively only removes
  std::string fresh = absl::StrCat(root, "/", kFreshPrefix, "XXXXXX");
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
  if (status.ok()) status = SyncFolder(root);
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
  RETURN_IF_ERROR(std::filesystem::is_directory(folder, ignored)
                      ? MakeFiles(folder, manifest)
                      : LayOut(root, folder, manifest));
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

absl::StatusOr<WeightCache::Lock> WeightCache::Acquire(
    const std::string& tensor, const std::stop_token& stop) {
  ASSIGN_OR_RETURN(const uint64_t size, TensorBytes(tensor));
  const TensorIndex::Entry entry = index_.Find(tensor);
  ASSIGN_OR_RETURN(const int fd, FileOf(entry));
  struct flock range = {};  // the tensor's own bytes
  range.l_whence = SEEK_SET;
  range.l_start = static_cast<off_t>(StartOf(entry));
  range.l_len = static_cast<off_t>(std::max<uint64_t>(size, 1));
  range.l_type = F_WRLCK;
  // Of the descriptor, not of the process. Polled, because one that waits in
  // the kernel cannot be told to stop, and whoever holds it may hang.
  while (fcntl(fd, F_OFD_SETLK, &range) != 0) {
    if (errno != EAGAIN && errno != EACCES && errno != EINTR) {
      return FileError(entry.file->path());
    }
    if (stop.stop_requested()) {
      return absl::CancelledError("pulling weights was given up");
    }
    SleepUnlessStopped(kLockPoll, stop);
  }
  range.l_type = F_UNLCK;
  Lock lock(&records_, [fd, range](void*) { fcntl(fd, F_OFD_SETLK, &range); });
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
  RETURN_IF_ERROR(
      WriteAll(fd, entry.file->path(), data, StartOf(entry) + offset));
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
