#pragma once

// What batches and their answers may take in memory, over all streams.

#include <prometheus/gauge.h>

#include <atomic>
#include <cstdint>

namespace expertmesh::expert {

// Thread-safe.
class ByteBudget {
 public:
  // `gauge` shows the bytes taken; may be null.
  ByteBudget(uint64_t max_bytes, prometheus::Gauge* gauge)
      : max_bytes_(max_bytes), gauge_(gauge) {}

  // False where they do not fit. The first to take always may, however much.
  bool Take(uint64_t bytes) {
    uint64_t taken = taken_.load();
    do {
      if (taken > 0 && (taken > max_bytes_ || bytes > max_bytes_ - taken)) {
        return false;
      }
    } while (!taken_.compare_exchange_weak(taken, taken + bytes));
    if (gauge_ != nullptr) gauge_->Increment(static_cast<double>(bytes));
    return true;
  }
  void Give(uint64_t bytes) {
    taken_.fetch_sub(bytes);
    if (gauge_ != nullptr) gauge_->Decrement(static_cast<double>(bytes));
  }

  uint64_t taken() const { return taken_.load(); }
  uint64_t max_bytes() const { return max_bytes_; }

 private:
  const uint64_t max_bytes_;
  prometheus::Gauge* const gauge_;
  std::atomic<uint64_t> taken_{0};
};

}  // namespace expertmesh::expert
