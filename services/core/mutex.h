#pragma once

// std::mutex with Clang's thread-safety annotations. Not absl::Mutex: the
// packaged Abseil is built without ThreadSanitizer, which then reports false
// races through it.

#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

namespace expertmesh {

class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  bool TryLock() ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true) {
    return mutex_.try_lock();
  }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

 private:
  friend class MutexLock;
  friend class CondVar;
  std::mutex mutex_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex)
      : lock_(mutex->mutex_) {}
  ~MutexLock() ABSL_UNLOCK_FUNCTION() = default;

  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

  // For code that must leave the critical section before the scope ends.
  void Unlock() ABSL_UNLOCK_FUNCTION() { lock_.unlock(); }

 private:
  friend class CondVar;
  std::unique_lock<std::mutex> lock_;
};

class CondVar {
 public:
  // Waits until `condition()` holds; the lock is held whenever it is called.
  template <typename Condition>
  void Wait(MutexLock& lock, Condition condition) {
    cv_.wait(lock.lock_, condition);
  }
  // As Wait, but gives up after `timeout`; returns the condition's value.
  template <typename Condition>
  bool WaitFor(MutexLock& lock, absl::Duration timeout, Condition condition) {
    // The standard library adds the time to now, which an infinite one
    // overflows.
    const absl::Duration bounded = std::min(timeout, absl::Hours(24 * 365));
    return cv_.wait_for(lock.lock_, absl::ToChronoNanoseconds(bounded),
                        condition);
  }
  void NotifyOne() { cv_.notify_one(); }
  void NotifyAll() { cv_.notify_all(); }

 private:
  std::condition_variable cv_;
};

}  // namespace expertmesh
