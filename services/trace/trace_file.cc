#include "services/trace/trace_file.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "services/core/log.h"
#include "services/core/version.h"

namespace expertmesh {
namespace {

// Of one line, so that readers need not hold a long one.
constexpr size_t kMaxLineSpans = 256;
constexpr int kPollMilliseconds = 100;
// For a pipe that is full, once all is to end.
constexpr absl::Duration kPatience = absl::Seconds(1);

Attributes ResourceOf(const std::string& service_name) {
  char host[256] = {};
  gethostname(host, sizeof(host) - 1);
  return {{"service.name", service_name},
          {"service.namespace", std::string("expertmesh")},
          {"service.version", std::string(Version())},
          {"host.name", std::string(host)},
          {"process.pid", int64_t{getpid()}}};
}

}  // namespace

absl::StatusOr<std::unique_ptr<TraceFile>> TraceFile::Open(
    const Options& options) {
  const int file =
      open(options.path.c_str(),
           O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0644);
  if (file < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--trace-file: cannot write '", options.path, "': ", strerror(errno)));
  }
  return std::unique_ptr<TraceFile>(new TraceFile(options, file));
}

TraceFile::TraceFile(const Options& options, int file)
    : options_(options),
      file_(file),
      resource_(ResourceOf(options.service_name)) {
  thread_ = std::thread([this] { Run(); });
}

TraceFile::~TraceFile() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
  close(file_);
}

void TraceFile::Add(Span span) {
  {
    MutexLock lock(&mutex_);
    if (queue_.size() < options_.max_queued) {
      queue_.push_back(std::move(span));
      if (queue_.size() == 1) changed_.NotifyOne();
      return;
    }
  }
  Drop(1);
}

void TraceFile::Run() {
  std::vector<Span> spans;
  while (true) {
    spans.clear();
    {
      MutexLock lock(&mutex_);
      changed_.Wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      spans.swap(queue_);
    }
    for (size_t first = 0; first < spans.size(); first += kMaxLineSpans) {
      const size_t last = std::min(spans.size(), first + kMaxLineSpans);
      Write({std::make_move_iterator(spans.begin() + first),
             std::make_move_iterator(spans.begin() + last)});
    }
  }
}

void TraceFile::Write(const std::vector<Span>& spans) {
  // What is left of a line that failed ends here.
  const std::string line =
      absl::StrCat(is_torn_ ? "\n" : "",
                   ToOtlpJson(resource_, "expertmesh", Version(), spans), "\n");
  const int error = WriteAll(line);
  if (error == 0) {
    has_failed_ = false;
    return;
  }
  Drop(static_cast<int64_t>(spans.size()));
  if (std::exchange(has_failed_, true)) return;
  Log(LogLevel::kWarning, "spans cannot be written",
      {{"file", options_.path}, {"why", strerror(error)}});
}

int TraceFile::WriteAll(absl::string_view bytes) {
  absl::Duration waited_since_stop;
  while (!bytes.empty()) {
    const ssize_t written = write(file_, bytes.data(), bytes.size());
    if (written > 0) {
      bytes.remove_prefix(static_cast<size_t>(written));
      is_torn_ = !bytes.empty();
      continue;
    }
    const int error = written < 0 ? errno : ENOSPC;
    if (error == EINTR) continue;
    if (error != EAGAIN) return error;
    // A pipe that nobody empties must not hold up the process's end.
    pollfd pipe = {.fd = file_, .events = POLLOUT, .revents = 0};
    if (poll(&pipe, 1, kPollMilliseconds) != 0) continue;
    MutexLock lock(&mutex_);
    if (!stop_) continue;
    waited_since_stop += absl::Milliseconds(kPollMilliseconds);
    if (waited_since_stop > kPatience) return ETIMEDOUT;
  }
  return 0;
}

void TraceFile::Drop(int64_t spans) {
  if (options_.on_dropped) options_.on_dropped(spans);
}

}  // namespace expertmesh
