#include "expert_service/api/order_thread.h"

#include <sys/resource.h>
#include <unistd.h>

#include <utility>

namespace expertmesh::expert {
namespace {

// Of 19, the politest.
constexpr int kNiceness = 10;

}  // namespace

OrderThread::OrderThread(size_t max_waiting)
    : max_waiting_(max_waiting), thread_([this] { Loop(); }) {}

OrderThread::~OrderThread() {
  Stop();
  {
    MutexLock lock(&mutex_);
    end_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

bool OrderThread::Add(Task task) {
  MutexLock lock(&mutex_);
  if (tasks_.size() >= max_waiting_) return false;
  tasks_.push_back(std::move(task));
  changed_.NotifyAll();
  return true;
}

void OrderThread::Stop() { stop_.request_stop(); }

void OrderThread::Loop() {
  // Of this thread alone, on Linux; where it is refused, orders compete.
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNiceness);
  while (true) {
    Task task;
    {
      MutexLock lock(&mutex_);
      changed_.Wait(lock, [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return end_ || !tasks_.empty();
      });
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task(stop_.get_token());
  }
}

}  // namespace expertmesh::expert
