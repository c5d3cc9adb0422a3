#pragma once

// How far the services of a mesh have started, as one line.

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "services/core/clock.h"
#include "services/core/load_progress.h"

namespace expertmesh {

// "starting 4 expert services: 37 % of the weights loaded". One thread.
class StartProgress {
 public:
  // Between two lines where they do not replace each other.
  static constexpr absl::Duration kInterval = absl::Seconds(10);

  struct Options {
    // Replaces the line shown, and takes it away when empty. Null where there
    // is no terminal.
    std::function<void(absl::string_view line)> show = nullptr;
    // Adds a line for good.
    std::function<void(absl::string_view line)> print;
    const Clock* clock = Clock::Real();
  };
  explicit StartProgress(Options options);

  // Services start now, whatever started before; `what` says which.
  void Begin(absl::string_view what);
  // One of these services has loaded so much. Those that never say so
  // are quick to load, and not counted.
  void OnLoad(pid_t service, LoadedBytes bytes);
  // Everything has started, or nothing more will: later loads are not shown.
  void End();

 private:
  const Options options_;
  std::string what_;  // empty: nothing starts
  std::map<pid_t, LoadedBytes> loaded_;
  absl::Duration next_print_;
};

}  // namespace expertmesh
