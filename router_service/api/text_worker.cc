#include "router_service/api/text_worker.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace expertmesh::router {

TextWorker::TextWorker(const Options& options)
    : options_(options), thread_([this] { Loop(); }) {}

TextWorker::~TextWorker() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    wake_.NotifyOne();
  }
  thread_.join();
}

absl::Status TextWorker::Run(size_t size, std::function<void()> job) {
  if (size <= options_.max_inline_size) {
    job();
    return absl::OkStatus();
  }
  MutexLock lock(&mutex_);
  if (queue_.size() >= options_.max_queue) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue for long texts is full (", options_.max_queue,
                     " waiting); try again later"));
  }
  queue_.push_back(std::move(job));
  wake_.NotifyOne();
  return absl::OkStatus();
}

void TextWorker::Loop() {
  while (true) {
    std::function<void()> job;
    {
      MutexLock lock(&mutex_);
      wake_.Wait(lock, [this] { return stop_ || !queue_.empty(); });
      if (queue_.empty()) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    job();
  }
}

}  // namespace expertmesh::router
