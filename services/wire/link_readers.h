#pragma once

// Who looks at local links.

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "services/core/mutex.h"
#include "services/wire/local_link.h"

namespace expertmesh {

// A thread for one link, which sleeps until its bell rings and then calls
// `read`; and a way for other threads to be quicker than it. `read` never runs
// twice at a time.
class LinkReader {
 public:
  // `read` reads a message if one is there, resumes writing, and returns
  // whether it did anything; it must not block. One message only, since threads
  // that have other things to do call it too: as long as there are more, it is
  // called again.
  LinkReader(std::shared_ptr<LocalLink> link, std::function<bool()> read);
  ~LinkReader();

  // Begins reading. Called once. Errors: UNAVAILABLE: the system gives no
  // thread, and nothing is read.
  absl::Status Start();

  // `read` does not run any more when this returns. Not from within it.
  void Stop();

 private:
  friend class LinkReaders;
  void Loop();
  bool Read();
  // As Read, but does nothing where somebody else reads.
  bool TryRead();
  // Whether the thread has a reason to be awake.
  bool HasNews() const { return is_stopped_.load() || link_->HasNews(); }

  const std::shared_ptr<LocalLink> link_;
  Mutex mutex_;  // held while `read` runs
  const std::function<bool()> read_;
  std::atomic<bool> is_stopped_{false};
  std::thread thread_;
};

// The readers of a process's links. Thread-safe.
class LinkReaders {
 public:
  void Add(std::shared_ptr<LinkReader> reader);
  void Remove(const LinkReader* reader);

  // For a thread with nothing else to do: reads links itself, briefly, until
  // `is_done`, which may be called at any time and must be cheap. While it
  // does, their threads are left asleep: being woken costs more than most
  // answers take to come. Returns what `is_done` last said; at once where there
  // are no links.
  bool AwaitBriefly(absl::FunctionRef<bool()> is_done);

 private:
  using List = std::vector<std::shared_ptr<LinkReader>>;
  std::shared_ptr<const List> Get() const;

  mutable Mutex mutex_;
  std::shared_ptr<const List> readers_ ABSL_GUARDED_BY(mutex_) =
      std::make_shared<List>();
};

}  // namespace expertmesh
