#pragma once

// Sends the requests of a benchmark and notes when their tokens arrive.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "expertmesh/v1/generation.pb.h"
#include "services/cli/bench_load.h"
#include "services/cli/client.h"

namespace expertmesh {

// What became of one request. Times count from the start of its level.
struct RequestRecord {
  // Latency counts from here: in an open loop the planned arrival, so that
  // waiting for a client or server that is behind counts; else the sending.
  absl::Duration begun;
  std::vector<absl::Duration> tokens;  // when each arrived
  absl::Duration ended;
  // As the server said; INTERNAL where it said that all is well, but the last
  // message is missing or disagrees with what arrived.
  absl::Status status;
  uint32_t asked_tokens = 0;
  // The last message, without its tokens.
  v1::GenerateResponse last;
};

struct LoadResult {
  std::vector<RequestRecord> records;  // as they ended
  uint64_t unfinished = 0;             // cancelled by an interrupt
  absl::Duration elapsed;              // to the end of the last request
  // How well the client kept up: CPU time of its thread over elapsed time, and
  // how late it did what it had planned to do at some time.
  double cpu_share = 0;
  std::vector<absl::Duration> delays;
};

// Drives any number of streams from the thread that calls Run.
class BenchClient {
 public:
  struct Progress {
    absl::Duration now;
    uint64_t running = 0;
    uint64_t done = 0;  // with failed ones
    uint64_t failed = 0;
  };
  struct Callbacks {
    std::function<v1::GenerateRequest(uint64_t index)> make_request;
    // Called some times a second; Run ends soon after it has returned false,
    // and cancels what is under way.
    std::function<bool(const Progress&)> go_on;
  };

  // `client` must outlive this.
  explicit BenchClient(Client& client) : client_(client) {}

  // One level; `seed` is that of its arrival times.
  LoadResult Run(const LoadLevel& level, uint64_t seed,
                 const Callbacks& callbacks);

 private:
  Client& client_;
};

}  // namespace expertmesh
